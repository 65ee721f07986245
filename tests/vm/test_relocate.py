"""`relocate` on a real devicemapper pool: the pool gets another name, everything else is the same
afterwards; back again; killed at steps on the way there and on the way back. FULL=1: at every one;
rolled back from a step of each kind, a power cut in the middle of the copy and after it, vfat."""

import json
import os
import re
import time

import pytest

FULL = bool(os.environ.get("FULL"))
full = pytest.mark.skipif(not FULL, reason="FULL=1: takes minutes")
OLD, NEW = "/var/lib/docker", "/data/docker"
JOURNAL = "/var/lib/dockfix/journal.json"
HOLD = "/etc/systemd/system/docker.service.d/zz-dockfix-hold.conf"

# Files that a careless copy loses something of, below a folder; and their second reader: one line
# of all that must be equal for each.
ODD = r"""
import os, sys
os.chdir(sys.argv[1])
with open("own", "w") as f:
    f.write("own")
os.chmod("own", 0o4755)
os.link("own", "again")
os.symlink("/nowhere", "link")
os.mkfifo("pipe", 0o640)
capability = bytes.fromhex("0100000200040000000000000000000000000000")
os.setxattr("own", "security.capability", capability)
os.setxattr("own", "user.note", b"kept")
with open("sparse", "wb") as f:
    f.seek(90 << 20)
    f.write(b"end")
os.mkdir("folder", 0o1777)
os.chown("folder", 1000, 1001)
open("folder/a b'\n", "w").close()
os.utime("folder/a b'\n", ns=(1, 1))
"""
READ = r"""
import hashlib, os, stat, sys
twins = {}
for folder, names, files in os.walk(sys.argv[1]):
    names.sort()
    for name in names + sorted(files):
        path = os.path.join(folder, name)
        seen = os.lstat(path)
        plain = stat.S_ISREG(seen.st_mode)
        text = twin = ""
        when = size = 0
        if stat.S_ISLNK(seen.st_mode):
            text = os.readlink(path)
        if plain:
            text = hashlib.sha256(open(path, "rb").read()).hexdigest()
            when, size = seen.st_mtime_ns, seen.st_size
        if plain and seen.st_nlink > 1:
            twin = twins.setdefault((seen.st_dev, seen.st_ino), name)
        marks = sorted(os.listxattr(path, follow_symlinks=False))
        marks = [(mark, os.getxattr(path, mark, follow_symlinks=False)) for mark in marks]
        shown = os.path.relpath(path, sys.argv[1])
        owner = (seen.st_mode, seen.st_uid, seen.st_gid)
        print(repr((shown, owner, when, size, text, marks, twin)))
"""
# What differs, and why: field of inspect -> reason. Paths below the root and names of the pool's
# devices are made equal before.
EXPLAINED = {
    r"State\.(Pid|StartedAt|FinishedAt)": "it was stopped and runs again",
    r"NetworkSettings\.(SandboxID|SandboxKey|EndpointID)": "it joined its network anew",
    r"NetworkSettings\.Networks\.\w+\.(EndpointID|NetworkID)": "it joined its network anew",
    r"Containers\.\w+\.EndpointID": "it joined its network anew",
    r"NetworkSettings\.Networks\.bridge\.\w+|Id|Created": (
        "docker makes its own bridge anew at each start"
    ),
    r"(ResolvConfPath|HostnamePath|HostsPath)": "docker sets them at a start",
    r"CreatedAt": "docker tells a volume's age by its folder",
    r"IPAM\.Config\[0\]\.Gateway": (
        "docker tells the gateway that it chose itself once it has started again"
    ),
}


def furnished(vm):
    """A network of its own, containers in several states, odd files in a container and in a volume;
    and the pool outlives the daemon, as it does at times."""
    vm.put("/root/odd.py", ODD.encode())
    vm.put("/root/read.py", READ.encode())
    vm.sh(
        r"""docker network create --label of=ring --subnet 10.9.0.0/24 inner >/dev/null
        docker run -d --name db --network inner --ip 10.9.0.7 -v db-data:/data -v /srv:/host:ro \
            -e 'X=a "b" $c' -m 64m --restart on-failure:3 --label 'q=it'"'"'s' \
            dockfix-test/busybox >/dev/null
        docker run -d --name down --restart unless-stopped dockfix-test/busybox >/dev/null
        docker stop down >/dev/null
        python3 /root/odd.py /var/lib/docker/volumes/db-data/_data
        inside=/proc/$(docker inspect -f '{{.State.Pid}}' db)/root
        mkdir $inside/odd
        python3 /root/odd.py $inside/odd
        docker exec db dd if=/dev/urandom of=/random bs=1M count=24 2>/dev/null; sync""",
        timeout=900,
    )


@pytest.fixture
def vm(ring):
    ring.reset(furnished)
    return ring


def outlive(vm):
    """Somebody holds the pool open while docker stops, so that docker cannot take it down; docker's
    last words let go of it."""
    vm.put("/root/hold", b"#!/bin/sh\nexec sleep 100000 < /dev/mapper/docker-*-pool\n", 0o755)
    vm.put(
        "/etc/systemd/system/docker.service.d/outlive.conf",
        b"[Service]\nExecStartPost=systemd-run --unit=holder --collect"
        b" /root/hold\nExecStopPost=-systemctl stop holder\n",
    )
    vm.sh("systemctl daemon-reload; systemd-run --unit=holder --collect /root/hold")


def root(vm):
    return vm.sh("docker info -f '{{.DockerRootDir}}'").text.strip()


def pools(vm):
    """Names of the pools that are up, and the files under loop devices, but for the test's own."""
    return vm.sh("dmsetup ls --target thin-pool | grep -o '^docker[^\t]*' || :").text.split(), set(
        vm.sh("losetup -ln -O BACK-FILE | grep -vx /root/fat || :").text.split()
    )


def flat(found, path=""):
    """{path of a field: value} of a JSON document."""
    if isinstance(found, dict):
        return {
            key: value
            for name in found
            for key, value in flat(found[name], path + "." + name if path else name).items()
        }
    if isinstance(found, list) and found and isinstance(found[0], dict):
        return {
            key: value
            for number, one in enumerate(sorted(found, key=str))
            for key, value in flat(one, "%s[%d]" % (path, number)).items()
        }
    return {path: found}


def look(vm):
    """(inspect of all there is, by field; sums of files of volumes, images' records and containers;
    allocated blocks of the root)."""
    where = root(vm)
    text = vm.sh(
        "docker inspect $(docker ps -aq) $(docker images -q) $(docker volume ls -q) $(docker"
        " network ls -q)"
    ).text
    prefix = os.path.basename(pools(vm)[0][0])[: -len("pool")]
    made = {}
    for one in json.loads(text.replace(where + "/", "ROOT/").replace(prefix, "DEVICE-")):
        made.update(
            {
                "%s|%s"
                % (
                    one["Name"].lstrip("/") if "Name" in one else one["RepoTags"][0],
                    key,
                ): value
                for key, value in flat(one).items()
            }
        )
    sums = vm.sh(
        "python3 /root/read.py {0}/volumes; python3 /root/read.py {0}/image; python3 /root/read.py"
        " /proc/$(docker inspect -f '{{{{.State.Pid}}}}' db)/root/odd\ncat /proc/$(docker inspect"
        " -f '{{{{.State.Pid}}}}' db)/root/random | sha256sum; for one in web idle; do docker"
        " export $one | tar -x --to-stdout --wildcards 'root/*' 'bin/*' 2>/dev/null | sha256sum;"
        " done".format(where)
    ).text
    sums = "\n".join(
        line
        for line in sums.splitlines()
        if "metadata.db" not in line and "backingFsBlockDev" not in line
    )
    return made, sums, int(vm.run("du", "-sx", "--block-size=512", where).text.split()[0])


def same(vm, before):
    """Everything is equal but what is explained."""
    now = look(vm)
    assert now[1] == before[1], sorted(set(now[1].splitlines()) ^ set(before[1].splitlines()))[:6]
    # what a new ext4 in the pool has written of nothing but zeros becomes holes in the copy: less
    # than before, never less than what is in the files
    assert 24 << 11 <= now[2] <= 1.05 * before[2], (before[2], now[2])
    differ = {
        key: (before[0].get(key), now[0].get(key))
        for key in set(before[0]) | set(now[0])
        if before[0].get(key) != now[0].get(key)
    }
    odd = {
        key: pair
        for key, pair in differ.items()
        if not any(re.match(r"(%s)\Z" % field, key.split("|", 1)[1]) for field in EXPLAINED)
    }
    assert not odd and not {
        key: pair
        for key, pair in differ.items()
        if key.split("|", 1)[1] in ("Id", "Created") and not key.startswith("bridge|")
    }, (odd or differ)
    states = {name: now[0]["%s|State.Status" % name] for name in ("web", "db", "idle", "down")}
    assert states == {"web": "running", "db": "running", "idle": "exited", "down": "exited"}
    assert vm.docker("exec", "web", "cat", "/root/own", "/srv/data").text == "web was here\n" * 2


def at(vm, place, pool=None):
    """Docker lives there, on one pool alone, whose files lie there; nothing holds it down."""
    up, files = pools(vm)
    assert root(vm) == place and len(up) == 1 and (pool is None or up[0] == pool), (up, pool)
    assert files == {place + "/devicemapper/devicemapper/" + kind for kind in ("data", "metadata")}
    assert vm.sh("ls %s %s" % (HOLD, JOURNAL), check=False).text == ""
    return up[0]


@full
def test_there_and_back_though_the_pool_outlives_the_daemon(vm):
    outlive(vm)
    before, pool = look(vm), at(vm, OLD)
    done = vm.dockfix("--json", "relocate", "-y", NEW)
    assert done.rc == 0, done
    keeps = done.doc["results"][0]["keeps"]
    assert at(vm, NEW) != pool
    same(vm, before)
    back = vm.dockfix("--json", "rollback", "-y")
    assert back.rc == 0 and vm.sh("ls -d %s" % keeps, check=False).rc, back
    at(vm, OLD, pool)
    same(vm, before)


@full
def test_a_power_cut_in_the_copy_and_one_after_it_then_discard(vm):
    before, pool = look(vm), at(vm, OLD)
    vm.sh(
        "echo 0 > /proc/sys/vm/dirty_writeback_centisecs; echo 90 > /proc/sys/vm/dirty_ratio"
    )  # only what is synced is on the disks
    job, end = vm.halt_at([["in", "copy"]], "relocate", "-y", NEW), time.monotonic() + 900
    while not vm.halted():
        assert not job.poll(1) and time.monotonic() < end
    vm.power_off()
    vm.boot(docker=False)
    held = vm.sh("systemctl start docker.service; systemctl is-active docker", check=False)
    assert held.text == "inactive\n" and vm.dockfix("--json", "storage", "--quick").rc == 0
    assert vm.dockfix("--json", "pool", "grow", "--data", "+1G", "-y").rc == 7
    vm.sh("echo 0 > /proc/sys/vm/dirty_writeback_centisecs; echo 90 > /proc/sys/vm/dirty_ratio")
    kill_at(vm, "before", "set the old root aside.*", "resume")
    vm.power_off()
    vm.boot(docker=False)
    done = vm.dockfix("--json", "resume")
    assert done.rc == 0 and at(vm, NEW) != pool, done
    same(vm, before)
    name, _keeps = (done.doc["results"][0][key] for key in ("id", "keeps"))
    assert (
        vm.dockfix("discard", "-y", name).rc == 0
        and vm.sh("ls -d %s*" % OLD, check=False).text == ""
    )
    same(vm, before)


# (before or after, title of a step) where dockfix dies and is rolled back from: one of each kind
PLACES = [
    ("after", "set the old root aside.*"),
    ("after", "stop docker.socket"),
    ("after", "hold docker down.*"),
    ("before", "copy"),
    ("after", "put the new place.*"),
    ("after", "set the options.*"),
    ("before", "start docker"),
    ("after", "start docker"),
    ("before", "start db"),
]


def kill_at(vm, side, title, *command):
    """SIGKILL before or after the step of that title, or the undoing of one."""
    job, end = vm.halt_at([[side, title]], "--json", *command), time.monotonic() + 900
    while not vm.halted():
        done = job.poll(1)
        assert not done and time.monotonic() < end, (title, done)
    vm.sh("kill -9 %s; rm /run/halted" % vm.halted()[0])
    assert job.wait().rc == -9
    assert "half-way" in vm.dockfix("storage", "--quick").text


def test_killed_at_steps_there_and_back(vm, capsys):
    """Before and after each step in turn, or at both: every run goes on where the one before it
    ended. The pool outlives the daemon."""
    outlive(vm)
    before, pool, every = look(vm), at(vm, OLD), 1 if FULL else 2
    _, there = vm.chain(every, ("--json", "relocate", "-y", NEW), ("--json", "resume"))
    at(vm, NEW)
    same(vm, before)
    _, back = vm.chain(every, *[("--json", "rollback", "-y")] * 2)
    at(vm, OLD, pool)
    same(vm, before)
    with capsys.disabled():
        print(
            "\nrelocate, killed at %d points there and at %d back\n%s"
            % (len(there), len(back), "\n".join(there + back))
        )
    assert len(there) >= 35 // every and len(back) >= 20 // every


def rolled_back(vm, before, pool, left=""):
    done = vm.dockfix("--json", "rollback", "-y")
    assert (
        done.rc == 0 and vm.sh("ls -d %s /var/lib/docker.*" % NEW, check=False).text == left
    ), done
    assert ("rm -rf " + NEW in done.err.decode()) == bool(left), done
    at(vm, OLD, pool)
    same(vm, before)


@full
@pytest.mark.parametrize("side, title", PLACES)
def test_killed_at_a_step_then_rolled_back(vm, side, title):
    before, pool = look(vm), at(vm, OLD)
    kill_at(vm, side, title, "relocate", "-y", NEW)
    begun = title.startswith("start")  # from then on docker may have run on the new root
    rolled_back(vm, before, pool, (NEW + "\n") * begun)


@full
def test_vfat_takes_no_root_and_a_backup_only_where_root_alone_can_read_it(vm):
    """In the other ring only kernels that have it can try."""
    before, pool = look(vm), at(vm, OLD)
    vm.sh(
        "truncate -s 3G /root/fat; busybox mkdosfs /root/fat >/dev/null; mkdir /mnt/fat; mount -o"
        " loop -t vfat /root/fat /mnt/fat"
    )
    done = vm.dockfix("--json", "relocate", "-y", "/mnt/fat/docker")
    assert (
        done.rc == 5 and "vfat" in done.doc["errors"][0]["msg"] and vm.sh("ls /mnt/fat").text == ""
    ), done
    at(vm, OLD, pool)
    same(vm, before)
    done = vm.dockfix("backup", "/mnt/fat/kept")
    assert (
        done.rc == 5
        and "umount /mnt/fat, then mount it with -o fmask=0177,dmask=0077" in done.err.decode()
        and vm.sh("ls /mnt/fat").text == ""
    ), done
    vm.sh("umount -d /mnt/fat; mount -o loop,fmask=0177,dmask=0077 -t vfat /root/fat /mnt/fat")
    assert (
        vm.dockfix("backup", "/mnt/fat/kept").rc == 0
        and vm.dockfix("backup", "--verify", "/mnt/fat/kept").rc == 0
    )
