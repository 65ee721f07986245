"""chpasswd while the world moves: containers that vanish, locks that nobody releases, an engine
that remaps ids, broken calls."""

import contextlib
import re
import subprocess
import sys
import time

import pytest

from kit import CannotRun, PrivateEngine

HOLD = """
import fcntl, os, sys
f = open(sys.argv[1], "w")
fcntl.lockf(f, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def password_lock(lab, name):
    """Hold the container's /etc/.pwd.lock, as another chpasswd would, until the end of the
    block."""
    path = "/proc/%d/root/etc/.pwd.lock" % lab.pid(name)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        yield
    finally:
        holder.communicate()


def writes(calls, id):
    """The calls that could have changed this container."""
    return [
        call.argv
        for call in calls
        if any(id in word for word in call.argv)
        and (call.argv[0] == "exec" or call.argv[:2] == ["cp", "-"])
    ]


# ---------------------------------------------------------------------- containers that vanish


@pytest.mark.parametrize("moment", ["after inspect", "before exec"])
def test_container_removed_in_the_middle_is_skipped(lab, moment):
    """Gone is not a failure, and the others are done."""
    lab.parallel(lab.run, ["stays1", "goes", "stays2"])
    gone = lab.id("goes")
    inject = {
        "after inspect": (
            'case "$1" in inspect) "$REAL" "$@"; rc=$?; "$REAL" rm -f $GONE >/dev/null 2>&1; exit'
            " $rc;; esac"
        ),
        "before exec": 'case "$*" in exec*$GONE*) "$REAL" rm -f $GONE >/dev/null 2>&1;; esac',
    }[moment]
    recorder = lab.recorder("GONE=%s\n%s" % (gone, inject))
    run = lab.dockfix("chpasswd", "--all", "--json", stdin=b"root:moving\n", recorder=recorder)
    assert "goes" not in lab.status()
    assert (
        run.rc == 0
        and run.rows["goes"]["status"] == "skipped"
        and "gone" in run.rows["goes"]["msg"]
    ), run
    assert run.rows["goes"]["id"] == gone
    assert all(
        run.rows[name]["status"] == "changed" and lab.opens(name, "moving")
        for name in ("stays1", "stays2")
    )
    lab.clean()


def test_stopped_container_removed_in_the_middle_is_skipped(lab):
    lab.parallel(lab.create, ["stays", "goes"])
    recorder = lab.recorder('case "$1 $2" in "cp -") "$REAL" rm -f goes >/dev/null 2>&1;; esac')
    run = lab.dockfix(
        "chpasswd",
        "stays",
        "goes",
        "--json",
        "--jobs",
        "1",
        stdin=b"root:moving\n",
        recorder=recorder,
    )
    assert (
        run.rc == 0 and run.rows["goes"]["status"] == "skipped" and lab.opens("stays", "moving")
    ), run


def test_container_that_stops_in_the_middle_is_still_done(lab):
    """exec finds it stopped; the cp way does not mind."""
    lab.run("stops")
    recorder = lab.recorder('case "$1" in exec) "$REAL" kill stops >/dev/null 2>&1;; esac')
    run = lab.dockfix("chpasswd", "stops", "--json", stdin=b"root:stopping\n", recorder=recorder)
    assert lab.status()["stops"] == "Exited"
    assert run.rc == 0 and run.rows["stops"]["via"] == "cp" and lab.opens("stops", "stopping"), run


# ---------------------------------------------------------------------- locks


def test_lock_that_is_never_released_ends_in_unknown(lab):
    """The client is killed, but chpasswd waits on in the container and may still act: so nobody
    else may."""
    lab.parallel(lab.run, ["held", "free"])
    before, recorder = lab.shadow("held"), lab.recorder()
    with password_lock(lab, "held"):
        run = lab.dockfix(
            "chpasswd",
            "held",
            "free",
            "--timeout",
            "10",
            "--json",
            stdin=b"root:late\n",
            recorder=recorder,
        )
        assert lab.shadow("held") == before
        assert run.rc == 3 and run.seconds < 60, run
        assert run.rows["held"]["status"] == "unknown" and run.rows["held"]["msg"], run
        assert run.rows["free"]["status"] == "changed" and lab.opens("free", "late")
        calls = writes(recorder.calls(), lab.id("held"))
        assert len(calls) == 1 and calls[0][0] == "exec", calls
    end = time.monotonic() + 120
    while lab.docker("top", "held").stdout.count(b"chpasswd") and time.monotonic() < end:
        time.sleep(0.2)
    assert lab.shadow("held") == before or lab.opens("held", "late")  # late, but whole


def test_lock_held_in_a_container_without_chpasswd(lab):
    """The proc way gives up on the lock; what the row then says must be what the file says."""
    lab.run("held-busybox", image="busybox")
    before = lab.shadow("held-busybox")
    with password_lock(lab, "held-busybox"):
        runs = lab.parallel(
            lambda way: lab.dockfix(
                "chpasswd",
                "held-busybox",
                "--via",
                way,
                "--timeout",
                "5",
                "--json",
                stdin=b"root:%s\n" % way.encode(),
            ),
            ["proc", "auto"],
        )
    row = runs["proc"].rows["held-busybox"]
    assert (
        row["status"] in ("failed", "refused")
        and "lock" in row["msg"]
        and runs["proc"].seconds < 60
    ), runs
    row = runs["auto"].rows["held-busybox"]
    assert (row["status"], row["via"]) in (("changed", "cp"), ("failed", None)) and runs[
        "auto"
    ].seconds < 60, runs
    assert lab.opens("held-busybox", "auto") == (row["status"] == "changed")
    assert row["status"] == "changed" or lab.shadow("held-busybox") == before


# ---------------------------------------------------------------------- a file that cannot be
# written


@pytest.fixture
def immutable(lab):
    """A container whose shadow file nobody can replace (chattr +i)."""
    lab.run("immutable")
    lab.inside("immutable", "touch /etc/shadow")
    upper = (
        lab.docker("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", "immutable")
        .stdout.decode()
        .strip()
    )
    path = upper + "/etc/shadow"
    if subprocess.call(["chattr", "+i", path]):
        pytest.skip("needs a file system with chattr +i below the temporary directory")
    yield "immutable"
    subprocess.check_call(["chattr", "-i", path])
    lab.docker("rm", "-f", "immutable")


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_file_that_cannot_be_written_stays_and_no_hash_is_left_beside_it(lab, immutable, state):
    if state == "stopped":
        lab.docker("kill", immutable)
    before = lab.shadow(immutable)
    run = lab.dockfix("chpasswd", immutable, "--json", stdin=b"root:immutable\n")
    assert (
        run.rc == 1
        and run.rows[immutable]["status"] == "failed"
        and "permitted" in run.rows[immutable]["msg"]
    ), run
    assert lab.shadow(immutable) == before
    left = lab.shadow(immutable, "/etc/.shadow.dockfix")
    assert left is None or left.size == 0


# ---------------------------------------------------------------------- traps laid by a container

TRAPS = {
    "helper-link": ("ln -s /mnt/host/shadow /etc/.shadow.dockfix", "cp", "changed"),
    "helper-fifo": ("mkfifo /etc/.shadow.dockfix", "cp", "changed"),
    "helper-directory": ("mkdir -p /etc/.shadow.dockfix/full", "cp", "failed"),
    "lock-link": ("ln -s /mnt/host/lock /etc/.pwd.lock", "auto", "changed"),
    "lock-link-to-shadow": ("ln -s /mnt/host/shadow /etc/.pwd.lock", "auto", "changed"),
    "lock-fifo": ("mkfifo /etc/.pwd.lock", "auto", "changed"),
    "lock-device": ("mknod /etc/.pwd.lock c 1 3", "auto", "changed"),
    "lock-directory": ("mkdir /etc/.pwd.lock", "auto", "changed"),
}


@pytest.mark.parametrize("trap", sorted(TRAPS))
def test_trap_laid_by_a_container_catches_nothing_of_the_host(lab, trap):
    """Names that dockfix itself uses below /etc are already there, as links into a mounted
    directory, fifos, directories."""
    host = lab.host_dir(trap)
    lab.run(trap, "-v", host + ":/mnt/host", image="busybox")
    lab.inside(trap, TRAPS[trap][0])
    lab.watch(host)
    before = lab.shadow(trap)
    run = lab.dockfix("chpasswd", trap, "--via", TRAPS[trap][1], "--json", stdin=b"root:trapped\n")
    row = run.rows[trap]
    assert row["status"] == TRAPS[trap][2] and run.seconds < 60, run
    assert lab.tree(host) == lab.watched[host]
    if row["status"] == "changed":
        assert (
            row["via"] == "cp"
            and lab.opens(trap, "trapped")
            and lab.only_password_changed(before, lab.shadow(trap)) == ""
        )
    else:
        assert lab.shadow(trap) == before


# ---------------------------------------------------------------------- chpasswd programs that lie

LIARS = {
    "says-yes": ("exit 0", "proc", "changed"),
    "says-no": ("exit 1", "proc", "changed"),
    "writes-another-hash": (
        "sed -i 's,^root:[^:]*:,root:$5$wrong$wrong:,' /etc/shadow",
        None,
        None,
    ),
}


@pytest.mark.parametrize("name", sorted(LIARS))
def test_exit_status_of_chpasswd_is_not_believed(lab, name):
    """Only the read-back counts: the row is `changed` when, and only when, the password opens the
    account."""
    body, via, status = LIARS[name]
    lab.run(name)
    lab.inside(
        name,
        "printf '#!/bin/sh\\ncat >/dev/null\\n%s\\n' \"$0\" > /usr/local/sbin/chpasswd; "
        "chmod 755 /usr/local/sbin/chpasswd".replace("$0", body.replace("$", "\\$")),
    )
    run = lab.dockfix("chpasswd", name, "--json", stdin=b"root:true\n")
    row = run.rows[name]
    assert (row["status"] == "changed") == lab.opens(name, "true"), run
    assert status is None or (row["status"], row["via"]) == (status, via), run
    only = lab.dockfix("chpasswd", name, "--via", "exec", "--json", stdin=b"root:exec only\n")
    assert only.rows[name]["status"] == "failed" and not lab.opens(name, "exec only"), only


def test_chpasswd_that_does_more_is_named(lab):
    """A tool of the image that also changes something else: the password is set, and the row says
    so."""
    lab.run("does-more")
    lab.inside(
        "does-more",
        "printf '#!/bin/sh\\n/usr/sbin/chpasswd \"$@\" || exit\\nsed -i /^games:/d /etc/shadow\\n' "
        "> /usr/local/sbin/chpasswd; chmod 755 /usr/local/sbin/chpasswd",
    )
    before = lab.shadow("does-more")
    run = lab.dockfix("chpasswd", "does-more", "--json", stdin=b"root:more\n")
    row = run.rows["does-more"]
    assert row["status"] == "changed" and lab.opens("does-more", "more"), run
    assert lab.only_password_changed(before, lab.shadow("does-more")) != ""
    assert re.search("chpasswd", row["msg"]) and re.search("more|else|other|games", row["msg"]), run


# ---------------------------------------------------------------------- broken docker

BROKEN = {
    "garbage": ('case "$1" in ps) head -c 3000 /dev/urandom; exit 0;; esac', 6),
    "inspect-garbage": ('case "$1" in inspect) echo "not json"; exit 0;; esac', 6),
    "inspect-empty": ('case "$1" in inspect) echo "[]"; exit 0;; esac', 0),
    "exec-killed": ('case "$1" in exec) kill -9 $$;; esac', 0),
    "exec-floods": ('case "$1" in exec) head -c 20000000 /dev/zero; exit 1;; esac', 0),
    "cp-truncated": ('case "$1" in cp) "$REAL" "$@" | head -c 700; exit 1;; esac', 0),
}


@pytest.mark.parametrize("fault", sorted(BROKEN))
def test_broken_docker_gives_a_message_and_no_lie(lab, fault):
    """No traceback (lab.dockfix sees to that), the stated exit code, and `changed` only where it is
    true."""
    name = "broken-" + fault
    lab.run(name)
    inject, code = BROKEN[fault]
    run = lab.dockfix(
        "chpasswd", name, "--json", stdin=b"root:broken\n", recorder=lab.recorder(inject)
    )
    assert run.rc == code, run
    changed = [row["target"] for row in run.doc["results"] if row["status"] == "changed"]
    assert (changed == [name]) == lab.opens(name, "broken"), run
    assert run.rc != 6 or (run.doc["errors"] and run.doc["errors"][0]["msg"]), run
    if fault == "inspect-empty":
        assert run.rows[name]["status"] == "skipped"


# ---------------------------------------------------------------------- an engine that remaps ids


@pytest.fixture(scope="module")
def remapped(lab, cannot_run):
    """A second engine under --userns-remap, with a lab of its own."""
    engine = PrivateEngine(userns=True)
    try:
        engine.start()
    except CannotRun as reason:
        cannot_run(reason)
    try:
        other = type(lab)(engine, lab.new_folder())
        other.run("running", image="busybox")
        other.create("created", image="busybox")
        other.run("stopped", image="busybox")
        other.docker("kill", "stopped")
        other.run("own-ids", "--userns", "host", image="busybox")
        other.create("own-ids-created", "--userns", "host", image="busybox")
        yield other
    finally:
        engine.stop()


@pytest.mark.parametrize("name", ["created", "stopped", "running"])
def test_cp_way_under_userns_remap_keeps_the_owner(remapped, name):
    """Uncorrected, docker cp unlinks the file first and then cannot map its owner: no shadow at all
    (moby issue 43698)."""
    before = remapped.shadow(name)
    run = remapped.dockfix("chpasswd", name, "--via", "cp", "--json", stdin=b"root:mapped\n")
    assert run.rc == 0 and run.rows[name]["via"] == "cp", run
    assert remapped.only_password_changed(before, remapped.shadow(name)) == "" and remapped.opens(
        name, "mapped"
    )
    if name != "running":
        remapped.docker("start", name)
    assert remapped.inside(name, "stat -c '%a %u %g' /etc/shadow") == b"640 0 42\n"


def test_proc_way_under_userns_remap_keeps_the_owner(remapped):
    before = remapped.shadow("running")
    run = remapped.dockfix(
        "chpasswd", "running", "--via", "proc", "--json", stdin=b"root:by proc\n"
    )
    assert run.rc == 0 and run.rows["running"]["via"] == "proc", run
    assert remapped.only_password_changed(
        before, remapped.shadow("running")
    ) == "" and remapped.opens("running", "by proc")
    assert remapped.inside("running", "stat -c '%a %u %g' /etc/shadow") == b"640 0 42\n"


@pytest.mark.parametrize("name", ["own-ids", "own-ids-created"])
def test_container_with_the_hosts_ids_is_refused_for_cp(remapped, name):
    before = remapped.shadow(name)
    run = remapped.dockfix("chpasswd", name, "--via", "cp", "--json", stdin=b"root:pw\n")
    assert (
        run.rows[name]["status"] == "refused" and "userns" in run.rows[name]["msg"] and run.rc == 5
    ), run
    assert remapped.shadow(name) == before


def test_all_under_userns_remap(remapped):
    """What cp must not touch is done by another way where there is one."""
    run = remapped.dockfix("chpasswd", "--all", "--stopped", "--json", stdin=b"root:everyone\n")
    assert run.rc == 3 and {
        row["status"] for name, row in run.rows.items() if name != "own-ids-created"
    } == {"changed"}, run
    assert run.rows["own-ids-created"]["status"] == "refused"
    assert all(
        remapped.opens(name, "everyone") for name in ("running", "created", "stopped", "own-ids")
    )
