"""The ring itself: that the machine is what the other tests take it for, and that dockfix's
container commands work on devicemapper."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

import image
from machine import CannotRun, Machine, Stuck, options_in_daemon_json

POOL_DIR = "/var/lib/docker/devicemapper/devicemapper"


def info(vm):
    return json.loads(vm.docker("info", "--format", "{{json .}}").text)


def opens(vm, container, password):
    """Whether this password opens root's account, as the machine's perl sees it."""
    line = vm.sh("docker cp %s:/etc/shadow - | tar -xO" % container).text.split("\n")[0]
    field = line.split(":")[1]
    made = vm.run(
        "perl",
        "-e",
        "local $/; my ($p, $s) = split /\\0/, <STDIN>; print crypt($p, $s)",
        stdin=("%s\0%s" % (password, field)).encode(),
    ).text
    return line.startswith("root:$") and made == field


def test_the_pool_is_real(vm):
    facts = info(vm)
    status = dict(facts["DriverStatus"])
    assert facts["Driver"] == "devicemapper" and status["Data loop file"] == POOL_DIR + "/data"
    pool = status["Pool Name"]
    name, begin, sectors, kind, _metadata, _data, _block = vm.run(
        "dmsetup", "table", "--target", "thin-pool"
    ).text.split()[:7]
    assert (name, begin, kind) == (pool + ":", "0", "thin-pool") and int(sectors) * 512 == 4 << 30
    assert re.search(r" rw .*queue_if_no_space", vm.run("dmsetup", "status", pool).text)
    loops = vm.run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").text.split()
    assert set(loops[1::2]) == {POOL_DIR + "/data", POOL_DIR + "/metadata"}
    sizes = vm.run("stat", "-c", "%s %b", POOL_DIR + "/data", POOL_DIR + "/metadata").text.split()
    assert (int(sizes[0]), int(sizes[2])) == (4 << 30, 1 << 30) and int(
        sizes[1]
    ) * 512 < 1 << 30, "the loop files are sparse"
    assert vm.run("findmnt", "-n", "-o", "FSTYPE", "/data").text == "ext4\n"
    assert (
        vm.run("docker", "exec", "web", "cat", "/root/own", "/srv/data").text
        == "web was here\n" * 2
    )


def test_a_reset_brings_back_disk_memory_and_clock(vm):
    vm.sh("echo here > /root/disk; echo here > /run/memory; docker rm -f web; sync")
    vm.reset()
    assert vm.sh("ls /root/disk /run/memory", check=False).rc == 2
    assert "web" in vm.docker("ps").text
    assert abs(float(vm.sh("date +%s").text) - time.time()) < 600  # the snapshot may be days old


def test_a_state_of_ones_own_is_made_once(ring):
    calls = []

    def with_a_mark(vm):
        calls.append(vm)
        vm.sh("echo mark > /run/mark")

    for _ in range(2):
        ring.reset(with_a_mark)
        assert ring.sh("cat /run/mark; rm /run/mark").text == "mark\n"
    assert len(calls) == 1
    ring.reset()
    assert ring.sh("cat /run/mark", check=False).rc == 1


def test_a_point_on_the_way_can_be_kept(vm):
    vm.sh("echo 1 > /run/step")
    vm.save("middle")
    vm.sh("echo 2 > /run/step")
    vm.power_off()
    vm.load("middle")
    assert vm.sh("cat /run/step").text == "1\n"
    vm.forget("middle")
    with pytest.raises(Stuck):
        vm.load("middle")


def test_options_in_daemon_json(ring):
    ring.reset(options_in_daemon_json)
    assert (
        "dm.loopdatasize=4G"
        in json.loads(ring.get("/etc/docker/daemon.json").decode())["storage-opts"]
    )
    assert "storage-opt" not in ring.sh("tr '\\0' ' ' < /proc/$(pidof dockerd)/cmdline").text
    assert info(ring)["Driver"] == "devicemapper" and "web" in ring.docker("ps").text


def test_power_off_and_boot(vm):
    """What was synced is there, what was only in memory is lost, and the pool comes up again."""
    vm.sh(
        "echo 0 > /proc/sys/vm/dirty_writeback_centisecs; docker exec web sh -c 'echo synced >"
        " /srv/kept'; sync; echo memory > /root/unsynced"
    )
    vm.power_off()
    with pytest.raises(Stuck):
        vm.sh("true")
    vm.boot()
    assert (
        vm.docker("exec", "web", "cat", "/srv/kept", "/root/own").text == "synced\nweb was here\n"
    )
    assert "memory" not in vm.sh("cat /root/unsynced", check=False).text


def test_reboot(vm):
    before = vm.sh("cat /proc/sys/kernel/random/boot_id").text
    vm.reboot()
    assert vm.sh("cat /proc/sys/kernel/random/boot_id").text != before
    assert vm.docker("exec", "web", "cat", "/root/own").text == "web was here\n"


def test_bytes_and_failures_come_back_as_they_are(vm):
    data = bytes(range(256)) * 9000
    vm.put("/root/sub/data", data, 0o600)
    assert vm.get("/root/sub/data") == data and vm.sh("stat -c %a /root/sub/data").text == "600\n"
    done = vm.sh("cat; echo failed >&2; exit 7", stdin=data, check=False)
    assert (done.rc, done.out, done.err) == (7, data, b"failed\n")
    with pytest.raises(RuntimeError, match="failed"):
        vm.sh("echo failed >&2; false")
    with pytest.raises(RuntimeError, match="No such file"):
        vm.get("/nowhere")


def test_jobs_beside_the_test(vm):
    job = vm.spawn("echo begun; sleep 1000 & wait")
    while not job.so_far().out:
        pass
    assert job.poll() is None and job.so_far().rc is None
    job.kill(signal.SIGTERM, group=True)
    assert job.wait().rc == -signal.SIGTERM
    job = vm.spawn("echo lost; sleep 1000")
    with pytest.raises(Stuck, match="lost"):
        job.wait(timeout=1)


def test_a_machine_that_hangs_shows_its_console(ring):
    ring.reset()
    ring.sh("echo 'last words' > /dev/ttyS0")
    ring.command("stop")
    with pytest.raises(Stuck, match="last words"):
        ring.hello(3)
    ring.command("cont")
    ring.hello()


def test_qemu_dies_with_its_python(tmp_path):
    """Also when that is killed without any chance to clean up; the next one removes what it
    left."""
    script = (
        "import sys, time; sys.path[:0] = sys.argv[1:]; from machine import *; vm = Machine();"
        " vm.open()\nprint(vm.process.pid, vm.folder, flush=True); time.sleep(1000)"
    )
    child = subprocess.Popen(
        ["python3", "-B", "-c", script, os.path.dirname(os.path.abspath(__file__))],
        stdout=subprocess.PIPE,
    )
    pid, folder = child.stdout.readline().decode().split()
    with open("/proc/%s/cmdline" % pid, "rb") as f:
        assert b"qemu" in f.read()
    with image.locked():  # another ring's machine would remove it
        child.kill()
        child.communicate()
        while os.path.exists("/proc/%s/exe" % pid) and os.path.realpath(
            "/proc/%s/exe" % pid
        ).endswith(
            "qemu-system-x86_64"
        ):  # a zombie has none
            time.sleep(0.05)
        assert os.path.isdir(folder)
    with Machine() as vm:
        assert not os.path.exists(folder) and os.path.isdir(vm.folder)
    assert not os.path.exists(vm.folder)


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    for name in ("bin", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "mmdebstrap").write_text(
        '#!/bin/sh\necho no network; touch "$PWD/begun"; exit 9\n'
    )
    (tmp_path / "bin" / "mmdebstrap").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "%s:%s" % (tmp_path / "bin", os.environ["PATH"]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(CannotRun, match="no network"):
        image.image(Machine)
    assert (tmp_path / "begun").exists() and os.listdir(
        str(tmp_path / "cache" / "dockfix-tests")
    ) == ["vm-lock"]


@pytest.mark.parametrize(
    "way, password",
    [("exec", "by-exec"), ("proc", "by-proc"), ("cp", "by-cp"), ("auto", "by-auto")],
)
def test_chpasswd_on_devicemapper(vm, way, password):
    done = vm.dockfix(
        "--json", "chpasswd", "web", "--via", way, stdin=b"root:%s\n" % password.encode()
    )
    row = done.rows["web"]
    if way == "exec":  # busybox of Debian has no chpasswd; that this is told is all there is to see
        assert row["status"] == "failed" and "no chpasswd" in row["msg"], row
    else:
        assert row["status"] == "changed" and opens(vm, "web", password), row
        assert row["via"] == ("proc" if way == "auto" else way), row


def test_exec_and_a_stopped_container_on_devicemapper(vm):
    rows = vm.dockfix("--json", "exec", "--all", "--", "cat", "/root/own").rows
    assert rows["web"]["stdout"] == "web was here\n" and set(rows) == {"web"}
    assert (
        vm.dockfix("--json", "chpasswd", "idle", stdin=b"root:idle\n").rows["idle"]["via"] == "cp"
    )
    assert opens(vm, "idle", "idle")
