"""`reclaim --trim` on a real devicemapper pool, and `reclaim --logs` with the daemon down: every
figure against dmsetup and stat, and the host's own file systems as they were.  The daemon and its
containerd have a mount namespace of their own, as on CentOS 7."""

import re

import pytest

LOOP_FILE = "/var/lib/docker/devicemapper/devicemapper/data"
MEBI = 1 << 20


def spoiled(vm):
    """Two containers deleted 32 MiB; a host file system on a loop file deleted 30 MiB: its blocks
    tell whether the host was trimmed."""
    vm.put("/etc/systemd/system/docker.service.d/mounts.conf", b"[Service]\nPrivateMounts=yes\n")
    vm.sh(
        """docker kill web >/dev/null; systemctl stop docker.socket docker
        systemctl mask --runtime --now containerd; rm -f /run/containerd/containerd.sock
        sed -i 's/ --containerd=[^ ]*//' /etc/systemd/system/docker.service.d/storage.conf
        systemctl daemon-reload; systemctl start docker; docker start web >/dev/null
        docker run -d --name other dockfix-test/busybox >/dev/null
        for one in web other; do
            docker exec $one sh -c 'echo kept > /root/kept
                dd if=/dev/zero of=/big bs=1M count=32; sync; rm /big; sync'
        done
        truncate -s 200M /root/host.img; mkfs.ext4 -q /root/host.img
        mkdir /mnt/host; mount -o loop /root/host.img /mnt/host
        dd if=/dev/zero of=/mnt/host/big bs=1M count=30; sync; rm /mnt/host/big; sync
        fstrim -v / >/root/once""",
        timeout=900,
    )


@pytest.fixture
def vm(ring):
    ring.reset(spoiled)
    return ring


def pool(vm):
    """(bytes used in the pool, bytes that its loop file has on the disk), by dmsetup and stat."""
    used = re.search(r"thin-pool \d+ \d+/\d+ (\d+)/\d+ ", vm.sh("dmsetup status").text).group(1)
    block = re.search(r"thin-pool \S+ \S+ (\d+) ", vm.sh("dmsetup table").text).group(1)
    return int(used) * int(block) * 512, int(vm.run("stat", "-c", "%b", LOOP_FILE).text) * 512


def host(vm):
    """What a trim of the host's file systems would change: discards seen by its disks, blocks of
    the file under /mnt/host."""
    return vm.sh(
        "for disk in vda vdb; do set -- $(cat /sys/block/$disk/stat); echo $disk ${12} ${14}; done;"
        " stat -c %b /root/host.img"
    ).text.split()


def containers(vm):
    return vm.sh(
        "for one in web other; do docker exec $one sh -c 'cat /root/* /srv/* 2>/dev/null; ls -R / |"
        " grep -v ^/proc | head -n 60 | md5sum'; done; docker ps --format '{{.Names}} {{.ID}}';"
        " docker inspect -f '{{.State.Pid}} {{.State.StartedAt}}' web other"
    ).text


def test_what_containers_deleted_goes_back_to_pool_and_disk_and_the_host_is_not_trimmed(vm):
    device = vm.sh("docker inspect -f '{{.GraphDriver.Data.DeviceName}}' web").text.strip()
    assert (
        vm.sh("readlink /proc/self/ns/mnt").text
        != vm.sh("readlink /proc/$(pidof dockerd)/ns/mnt").text
        and device in vm.sh("cat /proc/$(pidof dockerd)/mountinfo").text
    )
    before, outside, inside = pool(vm), host(vm), containers(vm)
    script = vm.dockfix("reclaim", "--trim", "--dry-run", "other")
    assert script.rc == 2
    done = vm.dockfix("--json", "reclaim", "--trim", "-y")
    after = pool(vm)
    assert done.rc == 0 and {name: row["status"] for name, row in done.rows.items()} == {
        "web": "changed",
        "other": "changed",
    }, done
    assert before[0] - after[0] >= 60 * MEBI and before[1] - after[1] >= 60 * MEBI, (before, after)
    for when, seen in (("before", before), ("after", after)):
        told = done.doc[when]
        assert (
            abs(told["pool_data_used"] - seen[0])
            <= MEBI
            >= abs(told["loop_file_allocated"] - seen[1])
        ), (
            told,
            seen,
        )  # a file's new atime is a block
    assert abs(done.doc["freed"] - (before[1] - after[1])) < 8 * MEBI
    assert re.match(r"3[0-9]\.\d MiB handed back", done.rows["web"]["msg"]), done
    assert host(vm) == outside and containers(vm) == inside
    people = vm.dockfix("reclaim", "--trim", "-y")
    assert (
        people.rc == 0
        and abs(
            float(re.search(r"used in the pool: ([0-9.]+) MiB -> ", people.text).group(1))
            - after[0] / MEBI
        )
        <= 1
    ), people
    # the same check sees it when the host is trimmed
    vm.sh(
        "fstrim /mnt/host; dd if=/dev/zero of=/root/x bs=1M count=8; sync; rm /root/x; sync;"
        " fstrim /"
    )
    now = host(vm)
    assert int(now[1]) > int(outside[1]) and int(now[-1]) < int(outside[-1]) - 20000


def test_the_script_does_the_same_and_a_container_that_ended_is_no_way_to_the_host(vm):
    before, outside = pool(vm), host(vm)
    text = vm.dockfix("reclaim", "--trim", "--dry-run").text
    assert text.count("fstrim") == 2 and pool(vm)[0] == before[0]
    vm.docker("kill", "other")
    vm.put("/root/script", text.encode())
    assert vm.sh("sh /root/script").rc == 0
    after = pool(vm)
    assert 28 * MEBI <= before[0] - after[0] < 40 * MEBI and host(vm) == outside
    point, pid = re.search(r"fstrim -v (\S+)", text).group(1), vm.sh("pidof dockerd").text.strip()
    for place in (
        point,
        "/var/lib/docker/devicemapper/mnt",
    ):  # docker 20.10 removes the folder, others leave it there
        gone = vm.sh(
            "cd /root; python3 -c 'import sys, dockfix; dockfix.trim_mount(*sys.argv[1:])' %s %s"
            " 253:99" % (pid, place),
            check=False,
        )
        assert (
            gone.rc == 1 and "not mounted any more" in gone.err.decode() and host(vm) == outside
        ), gone


def test_logs_are_cut_with_the_daemon_down(vm):
    log = vm.sh(
        "echo /var/lib/docker/containers/$(docker inspect -f '{{.Id}}' web)/*-json.log"
    ).text.strip()
    vm.sh("systemctl stop docker.socket docker; dd if=/dev/zero of=%s bs=1M count=20; sync" % log)
    refused = vm.dockfix("--json", "reclaim", "--containers", "-y")
    assert refused.rc == 6 and "reclaim --logs" in refused.doc["errors"][0]["hint"], refused
    free = int(vm.sh("stat -f -c %f /").text)
    done = vm.dockfix("--json", "reclaim", "--logs", "--max-log", "10M", "-y")
    assert done.rc == 0 and {
        name: (row["status"], row["size"] // MEBI) for name, row in done.rows.items()
    } == {"web": ("changed", 20)}, done
    assert (
        vm.run("stat", "-c", "%s", log).text == "0\n"
        and int(vm.sh("stat -f -c %f /").text) - free > 4000
    )
    assert (
        vm.dockfix("reclaim", "--logs", "--max-log", "10M", "-y").text
        == "there is nothing to reclaim\n"
    )
    vm.wait_docker()
    assert vm.docker("exec", "web", "cat", "/root/own").text == "web was here\n"
