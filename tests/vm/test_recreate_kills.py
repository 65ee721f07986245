"""pool recreate that ends in the middle, by a kill or a power cut, and goes on or back; children
that outlive it; what it refuses.

Killed at each step on the way to overlay2 and on the way back, each run going on where the last one
ended. FULL=1: before and after each step; a smaller pool too; the plug pulled at each step there
and back; back from each step, half of them after a power cut. FULL=all: all of these before and
after each, and both ways."""

import json
import os
import re
import signal
import time

import pytest

from stock import BACKUP, OVERLAY, ROOT, SMALLER, build, finished, is_goal, is_old, is_overlay, look

FULL, ALL = bool(os.environ.get("FULL")), os.environ.get("FULL") == "all"
# of the points where a run is killed, one before and one after each step: all, or in turn
EACH = 1 if FULL else 2
full = pytest.mark.skipif(not FULL, reason="long: FULL=1")


def pair(vm):
    """Small, for what is done often: web, idle, and a container with a restart policy that was
    stopped by hand."""
    vm.sh(
        "docker tag dockfix-test/busybox other:1; docker tag other:1 other:2; docker run -d --name"
        " byhand --restart unless-stopped dockfix-test/busybox; docker stop byhand; sync"
    )


# in the middle of a program's work: the program stands still, so a kill would leave it for ever
IN = [("power", "rollback")]


def every(number, side):
    return {
        "before": [("kill", "resume"), ("power", "rollback")],
        "after": [("kill", "rollback"), ("power", "resume")],
        "in": IN,
    }[side]


def back_in_turn(number, side):
    """From each step, before or after it. Onward from each is what a chain does."""
    return (
        IN
        if side == "in"
        else (
            [(("kill", "power")[number // 2 % 2], "rollback")]
            if side == ("before", "after")[number % 2]
            else []
        )
    )


def walk(vm, before, goal, ends, *words):
    """dockfix's whole way, and what becomes of it when it ends at a point of it: ends(number, side)
    says which ("kill" or "power", way on) are tried. Its Run, and a line of text for each point."""
    lines = []
    job = vm.halt_at(
        [("before", ".*"), ("after", ".*"), ("in", "save . images")], "-y", "--json", *words
    )
    while True:
        done, point = job.poll(0.3), vm.halted()
        if done:
            assert done.rc == 0, done
            return done, lines
        for cut, way in ends(int(point[1]), point[2]) if point else ():
            vm.save("here")
            name = json.loads(vm.get("/var/lib/dockfix/journal.json").decode())["plan"]["name"]
            begun = time.monotonic()
            job.kill(signal.SIGKILL)
            if cut == "power":
                vm.power_off()
                vm.boot(docker=False)
            end = finished(vm, way)
            assert end.rc == 0, (point, cut, way, end)
            after = look(vm)
            kept = [name] if ".dockfix-" + name in after["root"] else []
            wrong = (
                goal(before, after)
                if way == "resume"
                else is_old(before, after, cut == "power", kept)
            )
            assert not wrong, (point, cut, way, wrong, end)
            lines.append(
                "step %s, %s %s: %s, %s: as it should be (%d s)"
                % (point[1], point[2], point[3], cut, way, time.monotonic() - begun)
            )
            vm.load("here")
        if point:
            vm.go_on(point)


RESUME, ROLLBACK = ("-y", "--json", "resume"), ("-y", "--json", "rollback")


def told(capsys, what, lines):
    with capsys.disabled():
        print("\n%s: %d points\n%s" % (what, len(lines), "\n".join(lines)))


def there(vm, words, every, power=False):
    """The way to the goal from a fresh pair, ended at points and resumed; what was before, the
    change's name, the points."""
    vm.reset(pair)
    before = look(vm)
    done, points = vm.chain(every, ("-y", "--json", *words), RESUME, power)
    return before, json.loads(done.out.decode())["results"][0]["id"], points


@pytest.fixture(scope="module")
def overlay(ring):
    """From devicemapper to overlay2, killed on the way."""
    before, name, points = there(ring, OVERLAY, EACH)
    after = look(ring)
    ring.save("overlay")
    return {"before": before, "after": after, "name": name, "points": points}


def test_killed_at_steps_to_overlay2_and_at_steps_back(ring, overlay, capsys):
    before = overlay["before"]
    assert is_overlay(before, overlay["after"]) == []
    ring.load("overlay")
    build(ring)
    _, points = ring.chain(EACH, ROLLBACK, ROLLBACK)
    told(capsys, "recreate to overlay2, ended at each by SIGKILL, resumed", overlay["points"])
    told(capsys, "its rollback, ended at each by SIGKILL, called again", points)
    assert is_old(before, look(ring), kept=[overlay["name"]]) == []
    assert len(overlay["points"]) >= 100 // EACH and len(points) >= 40 // EACH
    assert finished(ring, "discard", overlay["name"]).rc == 0 and is_old(before, look(ring)) == []


@full
@pytest.mark.parametrize("words, goal", [(OVERLAY, is_overlay), (SMALLER, is_goal)])
def test_the_plug_pulled_at_steps_there_and_back(ring, words, goal, capsys):
    before, name, points = there(ring, words, 1 if ALL else 2, power=True)
    told(capsys, "%s, the plug pulled at each, resumed" % " ".join(words), points)
    assert goal(before, look(ring)) == []
    _, points = ring.chain(1 if ALL else 2, ROLLBACK, ROLLBACK, power=True)
    told(capsys, "its rollback, the plug pulled at each, called again", points)
    assert is_old(before, look(ring), True, [name]) == []


@full
def test_killed_at_every_step_of_a_new_pool_and_at_every_step_back(ring, capsys):
    before, name, points = there(ring, SMALLER, 1)
    told(capsys, "recreate of a smaller pool, ended at each by SIGKILL, resumed", points)
    assert is_goal(before, look(ring)) == []
    _, points = ring.chain(1, ROLLBACK, ROLLBACK)
    told(capsys, "its rollback, ended at each by SIGKILL, called again", points)
    assert is_old(before, look(ring), kept=[name]) == []


@full
@pytest.mark.parametrize("words, goal", [(OVERLAY, is_overlay), (SMALLER, is_goal)])
def test_back_from_each_step(ring, words, goal, capsys):
    """Rolled back from the middle of the way; FULL=all: and resumed, before and after each step,
    after a kill and after a power cut."""
    ring.reset(pair)
    before = look(ring)
    _, lines = walk(ring, before, goal, every if ALL else back_in_turn, *words)
    told(capsys, " ".join(words), lines)
    assert len(lines) >= 40 and goal(before, look(ring)) == []


@full
def test_the_scripts_that_end_a_change_which_stands_half_way(ring):
    """By hand instead of by dockfix: resumed, and then rolled back, each by the script of its dry
    run; dockfix knows afterwards."""
    ring.reset(pair)
    before = look(ring)
    job = ring.halt_at([("after", "set .*/image aside")], "-y", *OVERLAY)
    while not ring.halted():
        assert job.poll(0.3) is None, job.poll()
    job.kill(signal.SIGKILL)
    name = json.loads(ring.get("/var/lib/dockfix/journal.json").decode())["plan"]["name"]
    ring.sh(ring.dockfix("--dry-run", "resume").text, timeout=3600)
    after = look(ring)
    assert is_overlay(before, after) == [] and after["state"] == ["lock", name + ".json"]
    ring.sh(ring.dockfix("--dry-run", "rollback", name).text, timeout=3600)
    assert is_old(before, look(ring), kept=[name]) == []
    assert finished(ring, "discard", name).rc == 0 and is_old(before, look(ring)) == []


def test_discard_deletes_the_old_tree_and_nothing_else(ring, overlay):
    ring.load("overlay")
    assert finished(ring, "discard", overlay["name"]).rc == 0
    now = look(ring)
    assert sorted(now["root"] + [".dockfix-" + overlay["name"]]) == overlay["after"][
        "root"
    ] and now["state"] == ["lock"]
    assert (
        is_overlay(overlay["before"], now) == []
        and ring.sh("ls " + BACKUP + "/manifest.json").rc == 0
    )


def test_an_orphan_of_a_killed_run_is_waited_for(ring):
    ring.reset(pair)
    before = look(ring)
    ring.put(
        "/root/slow",
        b'#!/bin/sh\ncase " $* " in *" save "*) touch /run/begun;'
        b' until [ -e /run/go ]; do sleep 0.1; done ;; esac\nexec docker "$@"\n',
        0o755,
    )
    job = ring.start_job(
        ("python3", "/root/kill/kill_at.py", "0", "-", "--docker", "/root/slow", "-y", *OVERLAY),
        b"",
    )
    while ring.sh("test -e /run/begun", check=False).rc:
        assert job.poll() is None, job.poll()
        time.sleep(0.2)
    job.kill(signal.SIGKILL)
    job.wait()
    for words in (("resume",), ("rollback",), OVERLAY):
        refused = ring.dockfix("-y", "--json", *words)
        assert refused.rc == 8 and re.search(
            "pool recreate, step [0-9]+ of [0-9]+: save [0-9]+ images?",
            json.loads(refused.out.decode())["errors"][0]["msg"],
        ), refused
    ring.sh("touch /run/go")
    assert finished(ring, "rollback").rc == 0
    assert is_old(before, look(ring)) == [] and ring.sh("ls /data").text.split() == ["lost+found"]


REFUSALS = (
    ("", (*OVERLAY[:-1], ROOT + "/b"), "below Docker's own root"),
    ("fallocate -l $(df --output=avail -B1 /data | tail -n 1) /data/full || :", OVERLAY, "free"),
    (
        "rm /data/full; fallocate -l $(df --output=avail -B1 / | tail -n 1) /full || :",
        (*OVERLAY[:-1], "/backup"),
        "free",
    ),
    ("rm -f /full; docker run -d --rm --name passing dockfix-test/busybox", OVERLAY, "passing"),
    (
        (
            "docker stop passing; while docker inspect passing; do sleep 0.2; done; mkdir"
            " /var/lib/docker/mine; mount -t tmpfs mine /var/lib/docker/mine"
        ),
        SMALLER,
        "/var/lib/docker/mine",
    ),
    (
        (
            'umount /var/lib/docker/mine; rmdir /var/lib/docker/mine; echo \'{"live-restore":'
            " true}' > /etc/docker/daemon.json; systemctl reload docker;until docker info | grep"
            " 'Live Restore Enabled: true'; do sleep 1; done"
        ),
        SMALLER,
        "live-restore",
    ),
    (
        (
            "echo '{\"live-restore\": false}' > /etc/docker/daemon.json; systemctl reload docker;"
            " until docker info | grep 'Live Restore Enabled: false'; do sleep 1; done;docker swarm"
            " init --advertise-addr 127.0.0.1 --listen-addr 127.0.0.1:2377"
        ),
        SMALLER,
        "swarm",
    ),
    (
        (
            'docker swarm leave --force; echo \'{"storage-opts": ["dm.basesize=1G"]}\' >'
            " /etc/docker/daemon.json"
        ),
        SMALLER,
        "two places",
    ),
)


def test_refused_before_anything_is_touched(ring):
    ring.reset()
    seen = (
        "docker ps -aq --no-trunc; docker images -q; ls -A /var/lib/docker /data; dmsetup table;"
        " systemctl is-active docker.socket docker; cat /etc/systemd/system/docker.service.d/*"
    )
    for script, words, text in REFUSALS if FULL else REFUSALS[:4]:
        ring.sh(script)
        here = ring.sh(seen).text
        done = ring.dockfix("-y", "--json", *words)
        assert done.rc == 5 and text in done.text.split('"errors"')[1], (words, done)
        assert here == ring.sh(seen).text, words
        assert ring.sh("ls /var/lib/dockfix").text.split() == ["lock"]
