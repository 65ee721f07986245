"""What stops and starts again around a storage change, on a machine as they are found: seven
containers whose first process ignores SIGTERM, the daemon's own limit of 15 seconds for all of
them, and folders that each start binds onto themselves and no end unbinds (engines before
17.12). `relocate`, `pool grow --offline`, `pool recreate` (FULL=1), each with its way back; how
long the writer among the seven paused is printed."""

import os
import re
import time

import pytest

from image import IMAGE

FULL = bool(os.environ.get("FULL"))
full = pytest.mark.skipif(not FULL, reason="FULL=1: takes minutes")
OLD, NEW = "/var/lib/docker", "/data/docker"
POLICIES = ("always", "unless-stopped", "on-failure:3", "no", "always", "no")
DEAF = ["deaf%d" % number for number in range(len(POLICIES))] + ["writer"]
# 20.10 unmounts devicemapper/ when it ends, however it came to be a mount; containers/, which Red
# Hat's builds bind, it leaves
BOUND = ("containers", "devicemapper")
BIND = r"""#!/bin/sh -e
root=$(systemctl show -p ExecStart docker | grep -o 'data-root[= ][^ ;]*' | tail -n 1 | cut -c 11-)
for name in containers devicemapper; do
    home=$(readlink -f "${root:-/var/lib/docker}")/$name
    mkdir -p $home
    grep -q " $home " /proc/self/mountinfo ||
        { mount --bind $home $home; mount --make-private $home; }
done
"""
WRITE = "while :; do cat /proc/uptime >> /ticks/log; sleep 0.2; done"


def deaf(vm):
    vm.put("/root/bind", BIND.encode(), 0o755)
    vm.put(
        "/etc/systemd/system/docker.service.d/bind.conf", b"[Service]\nExecStartPre=/root/bind\n"
    )
    vm.sh("systemctl daemon-reload; systemctl restart docker", timeout=900)
    vm.wait_docker()
    for name, policy in zip(DEAF, POLICIES):
        vm.docker("run", "-d", "--name", name, "--restart", policy, IMAGE, "sleep", "1000000")
    words = ("--name", "writer", "--restart", "always", "-v", "ticks:/ticks", IMAGE)
    vm.docker("run", "-d", *words, "sh", "-c", WRITE)


@pytest.fixture
def vm(ring):
    ring.reset(deaf)
    assert look(ring) == all_well(OLD)
    return ring


def all_well(root):
    return root, {"web", *DEAF}, [root + "/" + name for name in BOUND]


def look(vm):
    """(Docker's root, what runs, the folders that are mounts of themselves); the restart
    policies are those of before."""
    root = vm.docker("info", "-f", "{{.DockerRootDir}}").text.strip()
    running = set(vm.docker("ps", "--format", "{{.Names}}").text.split())
    form = "{{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}"
    found = vm.docker("inspect", "-f", form, *DEAF).text.split()
    wanted = [one if ":" in one else one + ":0" for one in (*POLICIES, "always")]
    assert found == wanted
    points = "cut -d ' ' -f 5 /proc/self/mountinfo | grep -E '/(%s)$' || :" % "|".join(BOUND)
    mounts = vm.sh(points).text
    return root, running, sorted(mounts.split())


def ticks(vm, root=OLD):
    return [
        float(line.split()[0])
        for line in vm.sh("cat %s/volumes/ticks/_data/log" % root).text.splitlines()
    ]


def longest(found):
    return max(after - before for before, after in zip(found, found[1:]))


def watch(vm):
    """What docker does to containers goes to a file, until the daemon ends."""
    form = "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.signal}}"
    words = "--filter event=kill --filter event=die --format '%s'" % form
    job = vm.spawn("docker events %s > /run/events 2>/dev/null || :" % words)
    time.sleep(2)
    return job


def check_stopped(vm):
    """All were asked to end before the first of them was killed, and the daemon, which came last,
    had nothing left to kill."""
    lines = vm.sh("cat /run/events").text.splitlines()
    mine = [line.split()[:3] for line in lines if line.split()[1] in DEAF]
    asked = [line[1] for line in mine if line[0] == "kill" and line[2] == "15"]
    first_end = next(number for number, line in enumerate(mine) if line[0] == "die")
    assert sorted(asked) == sorted(DEAF), lines
    assert len([line for line in mine[:first_end] if line[2:] == ["15"]]) >= 3, lines
    assert "Force shutdown" not in vm.sh("journalctl -u docker --no-pager -o cat").text


def print_pauses(capsys, what, there, back):
    with capsys.disabled():
        print("\n%s: the writer paused %.1f s, and %.1f s on the way back" % (what, there, back))


def test_relocate_there_and_back(vm, capsys):
    events = watch(vm)
    done = vm.dockfix("--json", "relocate", "-y", NEW)
    assert done.rc == 0, done
    events.wait(600)
    check_stopped(vm)
    assert look(vm) == all_well(NEW)
    there = longest(ticks(vm, NEW))
    back = vm.dockfix("--json", "rollback", "-y")
    assert back.rc == 0 and look(vm) == all_well(OLD), back
    last = ticks(vm, NEW)[-1]
    first = next(one for one in ticks(vm) if one > last)
    print_pauses(capsys, "relocate", there, first - last)
    assert "Force shutdown" not in vm.sh("journalctl -u docker --no-pager -o cat").text
    kept = vm.sh(
        "cat /data/docker/volumes/web-data/_data/data; docker exec web cat /root/own /srv/data"
    )
    assert kept.text == "web was here\n" * 3


def pool_size(vm):
    return int(vm.sh("dmsetup table --target thin-pool | grep docker").text.split()[2]) // 2**21


@full
def test_grow_offline_there_and_back(vm, capsys):
    """Back from just before the start: after that the pool has its new length for ever."""
    halted = vm.halt_at(
        [["before", "start docker"]], "-y", "pool", "grow", "--offline", "--data", "5G"
    )
    end = time.monotonic() + 900
    while not vm.halted():
        assert not halted.poll(1) and time.monotonic() < end
    mounts = vm.sh("grep ' %s' /proc/self/mountinfo || :" % OLD).text
    assert (mounts, vm.sh("dmsetup ls").text) == ("", "No devices found\n")
    vm.sh("kill -9 %s; rm /run/halted" % vm.halted()[0])
    back = vm.dockfix("--json", "rollback", "-y")
    assert back.rc == 0 and look(vm) == all_well(OLD), back
    assert pool_size(vm) == 4
    before = len(ticks(vm))
    done = vm.dockfix("--json", "pool", "grow", "-y", "--offline", "--data", "5G")
    assert done.rc == 0 and look(vm) == all_well(OLD), done
    assert pool_size(vm) == 5
    found = ticks(vm)
    print_pauses(capsys, "grow --offline", longest(found[before - 1 :]), longest(found[:before]))


@full
def test_a_mount_that_is_busy_is_named_with_who_holds_it(vm):
    """Nothing is unmounted under a process; all runs again."""
    hold = "cd /var/lib/docker/containers && exec sleep 1000000"
    vm.run("systemd-run", "--unit=holder", "--collect", "sh", "-c", hold)
    time.sleep(2)
    assert vm.sh("systemctl is-active holder").text == "active\n"
    done = vm.dockfix("--json", "pool", "grow", "-y", "--offline", "--data", "5G")
    assert done.rc == 1 and vm.sh("systemctl is-active holder").text == "active\n", done
    said = done.doc["errors"][0]["msg"]
    assert "all of it is undone" in said and "find " not in said, done
    assert re.search(
        r"/var/lib/docker/containers is still mounted; held by sleep \(pid \d+\): end that first,"
        r" then: umount /var/lib/docker/containers;",
        said,
    ), said
    assert look(vm) == all_well(OLD)
    assert pool_size(vm) == 4


@full
@pytest.mark.parametrize("words", [("--data", "3G"), ("--driver", "overlay2")])
def test_recreate_there_and_back(vm, capsys, words):
    events = watch(vm)
    before = len(ticks(vm))
    done = vm.dockfix("--json", "pool", "recreate", "-y", "--backup", "/data/backup", *words)
    assert done.rc == 0, done
    events.wait(600)
    check_stopped(vm)
    driver = "overlay2" if "overlay2" in words else "devicemapper"
    assert vm.docker("info", "-f", "{{.Driver}}").text.strip() == driver
    assert look(vm)[:2] == (OLD, {"web", *DEAF})
    middle = ticks(vm)
    back = vm.dockfix("--json", "rollback", "-y")
    assert back.rc == 0 and look(vm) == all_well(OLD), back
    after = ticks(vm)
    there, home = longest(middle[before - 1 :]), longest(after[len(middle) - 1 :])
    print_pauses(capsys, "recreate " + " ".join(words), there, home)
    assert vm.docker("exec", "web", "cat", "/root/own", "/srv/data").text == "web was here\n" * 2
