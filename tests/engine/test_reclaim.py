"""`reclaim` on a real engine whose root is a small file system of its own, so that what is freed
can be measured by statvfs."""

import json
import os
import re
import subprocess
import tempfile

import pytest

from conftest import Lab
from common import wait_until
from kit import CannotRun, PrivateEngine, make_tar

MEBI = 1 << 20


@pytest.fixture(scope="module")
def small(cannot_run):
    """A Lab on an engine whose root lies on a 600 MiB ext4 of its own."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="dockfix-reclaim-"))
    os.chmod(folder, 0o755)
    image, disk = os.path.join(folder, "image"), os.path.join(folder, "disk")
    os.mkdir(disk)
    with open(image, "wb") as f:
        f.truncate(600 * MEBI)
    subprocess.check_call(["mkfs.ext4", "-q", "-F", image])
    if subprocess.call(["mount", "-o", "loop", image, disk]):
        cannot_run("no loop device can be mounted here")
    kept, tempfile.tempdir = tempfile.tempdir, disk
    try:
        engine = PrivateEngine()
        try:
            engine.start()
        except CannotRun as reason:
            cannot_run(reason)
        finally:
            tempfile.tempdir = kept
        lab = Lab(engine, os.path.join(folder, "lab"))
        os.mkdir(lab.folder)
        lab.state, lab.disk = os.path.join(lab.folder, "state"), disk
        yield lab
        engine.stop()
    finally:
        tempfile.tempdir = kept
        subprocess.call(["umount", "-l", disk])
        subprocess.call(["rm", "-rf", "--one-file-system", folder])


@pytest.fixture
def lab(small):
    yield small
    small.docker(
        "rm",
        "-f",
        "-v",
        *(small.docker("ps", "-aq").stdout.decode().split() or ["none"]),
        check=False,
    )
    small.docker(
        "volume",
        "rm",
        *(small.docker("volume", "ls", "-q").stdout.decode().split() or ["none"]),
        check=False,
    )


def free(lab):
    subprocess.check_call(["sync"])
    found = os.statvfs(lab.disk)
    return found.f_bfree * found.f_frsize


def everything(lab):
    """Names and digests of all there is, by docker itself."""
    return {
        "containers": set(lab.docker("ps", "-a", "--format", "{{.Names}}").stdout.decode().split()),
        "images": set(lab.docker("images", "-a", "-q", "--no-trunc").stdout.decode().split()),
        "tags": set(
            lab.docker("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.decode().split()
        ),
        "volumes": set(lab.docker("volume", "ls", "-q").stdout.decode().split()),
    }


def reclaim(lab, *words, **more):
    return lab.dockfix("reclaim", "--json", "-y", *words, **more)


def fill(lab, name, size):
    lab.docker("exec", name, "dd", "if=/dev/urandom", "of=/fill", "bs=1048576", "count=%d" % size)


def agrees(measured, promised):
    return abs(measured - promised) <= max(0.05 * promised, MEBI)


def test_without_a_category_it_only_lists(lab):
    lab.run("old", image="busybox")
    fill(lab, "old", 5)
    lab.docker("kill", "old")
    lab.docker("volume", "create", "loose")
    before = everything(lab)
    done = lab.dockfix("reclaim", "--json")
    assert done.rc == 0 and not done.doc["changed"], done
    found = {(row["category"], row["target"]): row for row in done.doc["results"]}
    assert found["containers", "old"]["size"] >= 5 * MEBI and ("volumes", "loose") in found
    assert {row["status"] for row in done.doc["results"]} == {"unchanged"} and everything(
        lab
    ) == before
    people = lab.dockfix("reclaim")
    assert (
        "nothing was removed" in people.text and "MiB" in people.text and everything(lab) == before
    )


def test_without_a_terminal_and_without_yes_nothing_goes(lab):
    lab.create("kept", image="busybox")
    done = lab.dockfix("reclaim", "--containers", "--json", prefix=["setsid", "-w"])
    assert (
        done.rc == 5
        and "--yes" in done.doc["errors"][0]["hint"]
        and "kept" in everything(lab)["containers"]
    )


def test_stopped_containers_go_and_nothing_else(lab):
    for name in ("old", "live"):
        lab.run(name, "-v", "data-%s:/data" % name, image="busybox")
        fill(lab, name, 20)
    lab.create("made", image="busybox")
    lab.docker("kill", "old")
    before, room = everything(lab), free(lab)
    assert reclaim(lab, "--containers", "--older-than", "1h").doc["results"] == []
    done = reclaim(lab, "--containers")
    assert done.rc == 0 and {row["target"]: row["status"] for row in done.doc["results"]} == {
        "old": "changed",
        "made": "changed",
    }, done
    after = everything(lab)
    assert before["containers"] - after["containers"] == {"old", "made"}
    assert all(before[kind] == after[kind] for kind in ("images", "tags", "volumes"))
    assert (
        done.doc["promised"] >= 20 * MEBI
        and agrees(done.doc["freed"], done.doc["promised"])
        and agrees(free(lab) - room, done.doc["promised"])
    ), done


def test_what_is_started_meanwhile_is_left(lab):
    lab.create("idle", image="busybox")
    lab.create("other", image="busybox")
    inject = 'if [ "$1" = rm ]; then "$REAL" start idle >/dev/null; fi'
    done = reclaim(lab, "--containers", recorder=lab.recorder(inject))
    rows = done.rows_by_name = {row["target"]: row for row in done.doc["results"]}
    assert (
        rows["idle"]["status"] == "skipped"
        and "in use" in rows["idle"]["msg"]
        and rows["other"]["status"] == "changed"
    ), done
    assert lab.status()["idle"] == "Up" and done.rc == 0


def test_images(lab):
    for name in ("unused", "used", "dangling"):
        extra = make_tar({"big-" + name: os.urandom(8 * MEBI)})
        lab.engine.import_tar("try/%s:1" % name, extra, ["/x"])
    lab.docker("tag", "try/unused:1", "try/unused:2")
    ident = lab.docker("inspect", "-f", "{{.Id}}", "try/dangling:1").stdout.decode().strip()
    lab.engine.import_tar("try/dangling:1", make_tar({"other": b"x"}), ["/x"])
    lab.create("user", image="busybox")
    lab.docker("create", "--network", "none", "--name", "user2", "try/used:1", "/x")
    before, room = everything(lab), free(lab)
    assert ident in before["images"]
    done = reclaim(lab, "--images")
    after = everything(lab)
    assert (
        done.rc == 0
        and before["images"] - after["images"] == {ident}
        and before["tags"] - {"<none>:<none>"} == after["tags"]
    ), done
    assert (
        agrees(done.doc["freed"], done.doc["promised"])
        and agrees(free(lab) - room, done.doc["promised"])
        and done.doc["promised"] >= 8 * MEBI
    )
    done = reclaim(lab, "--images", "--unused")
    last = everything(lab)
    assert after["tags"] - last["tags"] == {"try/unused:1", "try/unused:2", "try/dangling:1"}, done
    assert {"try/used:1"} <= last["tags"] and last["containers"] == before["containers"]
    assert agrees(done.doc["freed"], done.doc["promised"]), done


def test_an_image_whose_tag_moves_meanwhile_is_left(lab):
    lab.engine.import_tar("move/it:1", make_tar({"a": b"1"}), ["/x"])
    lab.create("user", image="busybox")
    # the tag goes to another image while the question is open: the second look must see it
    inject = (
        'case "$*" in "inspect --type image"*) n=$(ls "$LOG" | wc -l); "$REAL" tag ring/busybox'
        " move/it:1 2>/dev/null;; esac"
    )
    lab.engine.import_tar("move/it:1", make_tar({"a": b"2"}), ["/x"])
    first = lab.docker("inspect", "-f", "{{.Id}}", "move/it:1").stdout
    recorder = lab.recorder(
        'case "$*" in "ps -a"*|"images -q"*) ;; "inspect --type image"*) [ -e "$LOG/../seen" ] &&'
        ' "$REAL" tag ring/busybox move/it:1; : > "$LOG/../seen";; esac'
    )
    done = reclaim(lab, "--images", "--unused", recorder=recorder)
    assert "move/it:1" in everything(lab)["tags"], (done, inject)
    assert lab.docker("inspect", "-f", "{{.Id}}", "move/it:1").stdout != first


def test_build_cache_goes_and_images_stay(lab):
    lab.run("kept", image="busybox")
    try:
        lab.engine.build(
            "ring/built",
            "FROM ring/busybox\nRUN dd if=/dev/urandom of=/one bs=1048576 count=20\n",
            lab.new_folder(),
        )
    except CannotRun as reason:
        pytest.skip(str(reason))
    lab.docker("rmi", "ring/built")
    before, room = everything(lab), free(lab)
    listed = lab.dockfix("reclaim", "--json")
    assert [
        row["size"] >= 20 * MEBI
        for row in listed.doc["results"]
        if row["category"] == "build-cache"
    ] == [True], listed
    done = reclaim(lab, "--build-cache")
    assert done.rc == 0 and [row["status"] for row in done.doc["results"]] == ["changed"], done
    assert (
        done.doc["promised"] >= 20 * MEBI
        and agrees(done.doc["freed"], done.doc["promised"])
        and agrees(free(lab) - room, done.doc["promised"])
    ), done
    assert everything(lab) == before
    assert reclaim(lab, "--build-cache").doc["results"] == []


def test_volumes_go_by_name_only_and_only_unused(lab):
    lab.run("holder", "-v", "taken:/data", image="busybox")
    for name in ("loose", "other"):
        lab.docker("volume", "create", name)
        lab.docker(
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            name + ":/data",
            "ring/busybox",
            "dd",
            "if=/dev/urandom",
            "of=/data/f",
            "bs=1048576",
            "count=10",
        )
    before = everything(lab)
    done = reclaim(lab, "--volumes", "taken", "loose")
    assert (
        done.rc == 5 and "holder" in done.doc["errors"][0]["msg"] and everything(lab) == before
    ), done
    done = reclaim(lab, "--volumes", "loose", "none-such")
    assert (
        done.rc == 2 and "none-such" in done.doc["errors"][0]["msg"] and everything(lab) == before
    )
    room = free(lab)
    done = reclaim(lab, "--volumes", "loose")
    assert done.rc == 0 and before["volumes"] - everything(lab)["volumes"] == {"loose"}, done
    assert agrees(free(lab) - room, done.doc["promised"]) and done.doc["promised"] >= 10 * MEBI


def test_a_log_that_is_being_written_loses_nothing_newer_than_the_cut(lab):
    ident = lab.run(
        "talker",
        image="busybox",
        command=(
            "/bin/sh",
            "-c",
            (
                "i=0; while :; do i=$((i+1)); echo"
                " line-$i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"
            ),
        ),
    )
    log = os.path.join(lab.engine.root, "containers", ident, ident + "-json.log")
    wait_until(lambda: os.path.getsize(log) > 3 * MEBI, "a log of 3 MiB")
    done = reclaim(lab, "--logs", "--max-log", "2M")
    assert done.rc == 0 and [row["status"] for row in done.doc["results"]] == ["changed"], done
    wait_until(lambda: os.path.getsize(log) > 50000, "more of the log")
    lab.docker("pause", "talker")
    with open(log) as f:
        numbers = [int(re.match("line-([0-9]+)-", json.loads(line)["log"]).group(1)) for line in f]
    assert numbers[0] > 1 and numbers == list(
        range(numbers[0], numbers[0] + len(numbers))
    ), numbers[:5]
    lab.docker("unpause", "talker")
    assert lab.status()["talker"] == "Up"
    lab.docker("kill", "talker")


def test_a_full_disk(lab):
    """Not one byte is left on the engine's disk: logs first, then containers."""
    ident = lab.run(
        "talker",
        image="busybox",
        command=(
            "/bin/sh",
            "-c",
            (
                "dd if=/dev/zero bs=1048576 count=12 2>/dev/null | tr '\\0' x | fold -w 200; sleep"
                " 10000"
            ),
        ),
    )
    lab.run("old", image="busybox")
    fill(lab, "old", 20)
    lab.docker("kill", "old")
    log = os.path.join(lab.engine.root, "containers", ident, ident + "-json.log")
    wait_until(lambda: os.path.getsize(log) > 12 * MEBI, "a long log")
    hog = os.path.join(lab.disk, "hog")
    try:
        subprocess.call(
            ["dd", "if=/dev/zero", "of=" + hog, "bs=1048576"], stderr=subprocess.DEVNULL
        )
        subprocess.call(
            ["dd", "if=/dev/zero", "of=" + hog, "bs=1", "oflag=append", "conv=notrunc"],
            stderr=subprocess.DEVNULL,
        )
        assert os.statvfs(lab.disk).f_bfree == 0 or os.statvfs(lab.disk).f_bavail == 0
        state = (
            "--state",
            os.path.join(lab.disk, "state", "dockfix"),
        )  # of a run that cannot even make its lock
        refused = reclaim(lab, "--containers", *state)
        assert (
            refused.rc == 6
            and "--state" in refused.doc["errors"][0]["hint"]
            and "old" in lab.status()
        ), refused
        done = reclaim(lab, "--logs", "--max-log", "11M", *state)
        assert done.rc == 0 and b"without the lock" in done.err and os.path.getsize(log) == 0, done
        with open(log, "wb") as f:
            f.write(b"x" * 12 * MEBI)
        done = reclaim(lab, "--containers", "--logs", "--max-log", "1M")
        assert done.rc == 0, done
        assert [row["category"] for row in done.doc["results"]] == [
            "logs",
            "containers",
        ] and agrees(done.doc["freed"], done.doc["promised"]), done
    finally:
        os.unlink(hog)


def test_hostile_names_and_links_in_place_of_logs(lab, small):
    ident = lab.run("linked", image="busybox")
    log = os.path.join(lab.engine.root, "containers", ident, ident + "-json.log")
    victim = os.path.join(lab.folder, "victim")
    with open(victim, "wb") as f:
        f.write(b"x" * 2 * MEBI)
    os.rename(log, log + ".kept")
    os.symlink(victim, log)
    try:
        done = reclaim(lab, "--logs", "--max-log", "1M")
        assert done.rc == 0 and done.doc["results"] == [] and os.path.getsize(victim) == 2 * MEBI
    finally:
        os.unlink(log)
        os.rename(log + ".kept", log)


def test_the_dry_run_script_does_the_same(lab):
    lab.run("old", image="busybox")
    lab.docker("kill", "old")
    lab.run("live", image="busybox")
    lab.docker("volume", "create", "loose")
    before = everything(lab)
    done = lab.dockfix(
        "reclaim", "--dry-run", "--containers", "--volumes", "loose", recorder=lab.recorder()
    )
    assert done.rc == 0 and everything(lab) == before
    ran = lab.script(done.out)
    after = everything(lab)
    assert (
        ran.rc == 0
        and before["containers"] - after["containers"] == {"old"}
        and before["volumes"] - after["volumes"] == {"loose"}
    ), ran
