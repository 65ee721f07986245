"""pool recreate on the real pool: a zoo of containers in a smaller pool with another base size, the
way back, BuildKit, a later start.

FULL=1: a second go, to overlay2; the script; a pool too full for docker commit."""

import json
import os
import re

import pytest

from stock import BACKUP, OVERLAY, SMALLER, build, finished, is_goal, is_old, is_overlay, look

FULL = bool(os.environ.get("FULL"))
# Images with several tags, one without a name, and a container of every kind. db counts, each
# number into a volume and into a file of its own; a successor that has both goes on where it was.
ZOO = r"""
IMG=dockfix-test/busybox
LOOP='trap "exit 0" TERM; while :; do sleep 3600 & wait; done'
COUNT='trap "exit 0" TERM; n=$(wc -l < /data/log); while :; do
    n=$((n+1)); echo $n | tee -a /data/log >> /root/log; sleep 0.3; done'
docker tag $IMG $IMG:v2; docker tag $IMG other.host:5000/name/space:1
docker create --name tmp $IMG sh
echo layer > /run/layer; docker cp /run/layer tmp:/layer
docker commit -c 'ENV BASE=1' -c 'LABEL of=image' -c 'EXPOSE 99' tmp app:1
echo more > /run/layer; docker cp /run/layer tmp:/layer
NAMELESS=$(docker commit tmp)
docker rm tmp idle
docker network create --subnet 10.77.0.0/24 --label net=1 net
docker volume create --label vol=1 db-data
mkdir -p /data/bind; echo 'host file' > /data/bind/file
touch $(docker volume inspect -f '{{.Mountpoint}}' db-data)/log
docker run -d --name db --network net --restart always -v db-data:/data -e PASS='a b"c$d' \
    app:1 sh -c "$COUNT"
docker run -d --name front --network net --ip 10.77.0.77 --network-alias al --link db:database \
    -p 127.0.0.1:8080:80 -p 53:53/udp -m 64m --cpus 0.5 --pids-limit 77 \
    --ulimit nofile=100:200 --restart on-failure:3 -v /data/bind:/bind -v /anon -e A=1 \
    -l lab=x=y --cap-add SYS_TIME --add-host h:1.2.3.4 -h my.host -w /tmp --log-opt max-size=1m \
    app:1 sh -c "$LOOP"
docker run -d --name side --volumes-from db:ro --network container:db --pid container:db $IMG:v2
docker create --name byhand --storage-opt size=3G --restart unless-stopped -v db-data:/d \
    $NAMELESS sh -c "$LOOP"
docker start byhand
docker exec byhand sh -c 'cd /root; echo byhand was here > own; chown 77:88 own; chmod 4711 own'
docker stop byhand
docker exec front sh -c 'echo front was here > /root/own; rm /etc/group; ln -s /nowhere /root/link
    head -c 300000 /dev/urandom > /anon/r; head -c 2000000 /dev/urandom > /root/big'
docker pause front
sync
"""


def zoo(vm):
    vm.sh(ZOO, timeout=3600)


@pytest.fixture(scope="module")
def smaller(ring):
    """The pool made smaller, with another base size."""
    ring.reset(zoo)
    before = look(ring)
    run = ring.dockfix("-y", "--json", *SMALLER)
    assert run.rc == 0, run
    facts = {
        "before": before,
        "doc": json.loads(run.out.decode()),
        "after": look(ring),
        "said": run.err.decode(),
    }
    facts["name"] = facts["doc"]["results"][0]["id"]
    ring.save("smaller")
    return facts


def test_all_is_there_again(smaller):
    assert is_goal(smaller["before"], smaller["after"]) == []
    rows = {row["target"]: row for row in smaller["doc"]["results"]}
    assert set(rows) == set(smaller["before"]["containers"]) | {"pool recreate"} and {
        row["status"] for row in rows.values()
    } == {"changed"}
    assert {row["msg"] for name, row in rows.items() if name != "pool recreate"} == {""}
    assert (
        smaller["after"]["containers"]["front"]["State"]["Paused"]
        and smaller["before"]["containers"]["front"]["State"]["Paused"]
    )
    assert (
        re.search("pool recreate: step [0-9]+ of [0-9]+: ", smaller["said"])
        and "the host's /data/bind" in smaller["said"]
        and "writes to" not in smaller["said"]
    )


def test_a_later_start_of_the_daemon_and_buildkit(ring, smaller):
    ring.load("smaller")
    build(ring)
    ring.sh("systemctl restart docker")
    ring.wait_docker()
    running = ring.docker("ps", "--format", "{{.Names}}").text.split()
    assert {"web", "db"} <= set(running) and "byhand" not in running


def test_rollback_and_a_second_go_and_discard(ring, smaller):
    before, name = smaller["before"], smaller["name"]
    ring.load("smaller")
    back = finished(ring, "rollback", name)
    assert back.rc == 0 and is_old(before, look(ring), kept=[name]) == [], back
    if not FULL:
        return
    build(ring)
    old = look(ring)
    again = ring.dockfix("-y", *((*OVERLAY[:-1], BACKUP + "2")))
    assert (
        again.rc == 0 and b"the limit of byhand's own files (3G): overlay2 sets none" in again.err
    ), again
    after = look(ring)
    assert is_overlay(old, after) == []
    second = next(one for one in after["root"] if one.startswith(".dockfix-") and name not in one)
    assert finished(ring, "discard", name).rc == 0
    now = look(ring)
    assert (
        sorted(now["root"] + [".dockfix-" + name]) == after["root"] and is_overlay(old, now) == []
    )
    assert (
        finished(ring, "rollback").rc == 0 and is_old(before, look(ring), kept=[second[9:]]) == []
    )


@pytest.mark.skipif(not FULL, reason="long: FULL=1")
def test_the_script_does_the_same(ring):
    ring.reset(zoo)
    before = look(ring)
    script = ring.dockfix("--dry-run", *SMALLER)
    assert script.rc == 0 and look(ring)["state"] == []
    done = ring.run("sh", "-s", stdin=script.out, check=False, timeout=7200)
    wrong = [one for one in is_goal(before, look(ring))]
    assert done.rc == 0 and wrong == [], (done, wrong)


# A small pool, written full until docker commit is refused; the files that filled it are gone
# again, which gives nothing back to the pool.
FULL_POOL = r"""
docker save -o /data/image dockfix-test/busybox
docker rm -f web idle; docker volume rm web-data
systemctl stop docker.socket docker
for pool in $(dmsetup ls --target thin-pool | cut -f1 | grep '^docker'); do
    dmsetup remove --retry $pool
done
rm -rf /var/lib/docker/devicemapper /var/lib/docker/image /var/lib/docker/containers
sed -i -e 's/loopdatasize=4G/loopdatasize=512M/; s/loopmetadatasize=1G/loopmetadatasize=64M/' \
    -e 's/basesize=2G/basesize=1G/' /etc/systemd/system/docker.service.d/storage.conf
systemctl daemon-reload; systemctl start docker.socket docker
docker load -i /data/image; rm /data/image
docker run -d --name web --restart unless-stopped -e A=1 -v web-data:/srv dockfix-test/busybox
docker exec web sh -c 'echo web was here | tee /root/own > /srv/data'
used() { dmsetup status --target thin-pool | sed 's,.* \([0-9]*\)/\([0-9]*\) - .*,\1,'; }
n=0; while [ $(used) -lt 7450 ]; do
    n=$((n+1)); docker exec web dd if=/dev/zero of=/fill.$n bs=1M count=20; sync
done
docker exec web sh -c 'rm /fill.*'; sync
"""


@pytest.mark.skipif(not FULL, reason="long: FULL=1")
def test_a_pool_too_full_for_docker_commit(ring):
    ring.reset()
    ring.sh(FULL_POOL, timeout=3600)
    refused = ring.sh("docker commit web probe", check=False)
    assert refused.rc and b"less than minimum required" in refused.err, refused
    before = look(ring)
    run = ring.dockfix("-y", "--json", "pool", "recreate", "--data", "1G", "--backup", BACKUP)
    assert (
        run.rc == 0
        and b"too full for docker commit: docker export takes the files of web" in run.err
    ), run
    assert is_goal(before, look(ring), sectors=(1 << 30) // 512) == []
    assert (
        finished(ring, "rollback").rc == 0
        and is_old(before, look(ring), kept=[json.loads(run.out.decode())["results"][0]["id"]])
        == []
    )
