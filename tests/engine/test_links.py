"""A container that makes a folder on the way a link into a folder of the host, later than dockfix
looked: whatever dockfix writes or removes in a container, undo included, the host's folder keeps
its bytes.

Three ways to be late: a loop in the container that exchanges the folder and the link as fast as the
kernel can; a docker command that does it right before one of dockfix's own calls; a mount whose
destination is behind a link. Everyday runs are few; DOCKFIX_TEST_BIG=1 makes them many."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile

import pytest

import conftest
import kit
from common import read_bytes, wait_until
import roots

BIG = os.environ.get("DOCKFIX_TEST_BIG") == "1"
LOOPS = 12 if BIG else 2
TOKYO = "/usr/share/zoneinfo/Asia/Tokyo"
OLD_ZONE = b"what the image has under this name\n"
# Exchanges two names until /stop is there, then leaves the first one a folder and makes /stopped.
SWAP_C = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void swap(char **words) {
    syscall(SYS_renameat2, AT_FDCWD, words[1], AT_FDCWD, words[2], 2);
}

int main(int count, char **words) {
    struct stat found;
    if (count > 3) {
        swap(words);
        return 0;
    }
    while (access("/stop", F_OK) != 0)
        for (int times = 0; times < 200; times++)
            swap(words);
    if (lstat(words[1], &found) == 0 && S_ISLNK(found.st_mode))
        swap(words);
    close(open("/stopped", O_CREAT | O_WRONLY, 0600));
    return 0;
}
"""
# What is swapped: (the folder, the link in its place, what that leads to)
ZONES = ("/usr/share/zoneinfo", "/usr/share/zi", "/mnt/host/zoneinfo")
ETC = ("/etc", "/e2", "/mnt/host/etc")
LIB = ("/usr/lib", "/usr/lib2", "/mnt/host/lib")
HOST = {
    "zoneinfo/Asia/Tokyo": b"the host's own zone\n",
    "zoneinfo/Asia/Seoul": b"the host's own zone\n",
    "etc/shadow": b"root:*:18000:0:99999:7:::\n",
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "etc/timezone": b"Host/Own\n",
    "etc/localtime": b"the host's own\n",
    "etc/ld.so.preload": b"/host/own.so\n",
    "etc/faketimerc": b"+1\n",
    "etc/.shadow.dockfix": b"the host's own\n",
    "lib/own": b"the host's own\n",
    # docker makes these itself, empty, at the first docker cp or start with /etc a link
    "etc/hosts": b"",
    "etc/hostname": b"",
    "etc/resolv.conf": b"",
}


@pytest.fixture(scope="module")
def swap_program():
    path = roots.compiled([kit.need("gcc", "gcc")], SWAP_C, "-static")
    yield path
    shutil.rmtree(os.path.dirname(path))


@pytest.fixture(scope="module")
def vfs():
    """A lab of its own, on the driver whose layers are plain folders of the host's disk: /etc can
    be renamed there."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="dockfix-lab-"))
    os.chmod(folder, 0o755)
    try:
        with kit.PrivateEngine(extra=["--storage-driver", "vfs"]) as engine:
            yield conftest.Lab(engine, folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["overlay2", "vfs"])
def any_driver(request, lab):
    return lab if request.param == "overlay2" else request.getfixturevalue("vfs")


def tar_of(name, data):
    """One program; the engine may not see this machine's files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o755
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


class Victim:
    """A container with a writable folder of the host at /mnt/host, in which `way` can be
    swapped."""

    def __init__(self, lab, program, name, way, image="busybox", files=None):
        self.lab, self.name, self.way = lab, name, way
        self.host = os.path.join(lab.new_folder(), "host")
        for path, data in HOST.items():
            os.makedirs(os.path.join(self.host, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(self.host, path), "wb") as f:
                f.write(data)
        os.chmod(self.host, 0o777)
        self.before = lab.tree(self.host)
        self.state = os.path.join(lab.new_folder(), "state")
        self.runs = {}
        self.options = ("-v", self.host + ":/mnt/host")
        lab.docker("rm", "-f", name, check=False)
        lab.run(name, *self.options, image=image)
        lab.docker("cp", "-", name + ":/bin", input=tar_of("swap", lab.read_bytes(program)))
        self.prepare(files or {})

    def prepare(self, files):
        folder, link, target = self.way
        lines = ["mkdir -p /mnt/none"]
        if (
            self.way is ZONES
        ):  # on overlay a folder of the image cannot be renamed, one of the container's own can
            lines += ["rm -rf %s" % folder, "mkdir -p %s/Asia" % folder]
        lines.append("ln -s %s %s" % (target, link))
        for path, text in files.items():
            lines.append("printf '%s' > %s" % (text, path))
        self.lab.inside(self.name, "\n".join(lines))

    def swap_once(self):
        self.lab.docker("exec", self.name, "/bin/swap", *self.way[:2], "once")

    @contextlib.contextmanager
    def looping(self):
        self.lab.docker("exec", "-d", self.name, "/bin/swap", *self.way[:2])
        try:
            yield
        finally:
            self.stop_loop()

    def stop_loop(self):
        """/ is never swapped; docker cp puts the mark there without a shell, which may find no
        library now."""
        mark = kit.make_tar({"stop": b""})

        # the client looks at the destination first, and that may fail while all moves
        def marked():
            done = self.lab.docker("cp", "-", self.name + ":/", input=mark, check=False)
            return done.returncode == 0

        wait_until(marked, "mark that ends the loop", 60)
        wait_until(
            lambda: self.lab.shadow(self.name, "/stopped") is not None, "end of the loop", 60
        )
        self.lab.inside(self.name, "rm /stop /stopped")

    def dockfix(self, *args, **how):
        run = self.lab.dockfix("--state", self.state, *args, "--json", **how)
        rows = run.doc["results"]
        status = rows[0]["status"] if rows else "none"
        self.runs[status] = self.runs.get(status, 0) + 1
        return run, status

    def check(self):
        assert self.lab.tree(self.host) == self.before, "the host's folder has changed"


def show_runs(victim, title):
    """The numbers, with pytest -rA or -s."""
    print("%s: %s" % (title, ", ".join("%d %s" % (n, s) for s, n in sorted(victim.runs.items()))))


def zone_inside(lab, name, path=TOKYO):
    found = lab.shadow(name, path)
    return found.data if found and found.kind == "file" else None


def agrees(is_done, status):
    """Is a row true? What was moved under dockfix's hands is unknown, and only that may be
    either."""
    return status == "unknown" or is_done is (status == "changed")


# ---------------------------------------------------------------- a loop in the container


def test_timezone_and_its_undo_while_zoneinfo_is_swapped(any_driver, swap_program):
    lab = any_driver
    victim = Victim(lab, swap_program, "loop-zone", ZONES, files={TOKYO: OLD_ZONE.decode()})
    for _ in range(LOOPS):
        with victim.looping():
            _, status = victim.dockfix("timezone", victim.name, "--zone", "Asia/Tokyo")
            victim.check()
        assert agrees(zone_inside(lab, victim.name) != OLD_ZONE, status)
        run, status = victim.dockfix("timezone", victim.name, "--zone", "Asia/Tokyo")
        assert run.rc == 0, run
        with victim.looping():
            _, status = victim.dockfix("timezone", victim.name, "--undo")
            victim.check()
        assert agrees(zone_inside(lab, victim.name) == OLD_ZONE, status)
        assert victim.dockfix("timezone", victim.name, "--undo")[0].rc == 0
        assert zone_inside(lab, victim.name) == OLD_ZONE
    show_runs(victim, "timezone, zoneinfo swapped, %s" % lab.engine.extra)


@pytest.mark.parametrize("via", ["proc", "cp", "auto"])
def test_chpasswd_while_etc_is_swapped(vfs, swap_program, via):
    victim = Victim(vfs, swap_program, "loop-etc", ETC)
    for number in range(LOOPS):
        word = "word%d" % number
        with victim.looping():
            _, status = victim.dockfix(
                "chpasswd", victim.name, "--via", via, stdin=b"root:%s\n" % word.encode()
            )
            victim.check()
        assert agrees(vfs.opens(victim.name, word), status)
        assert vfs.status()[victim.name] == "Up"
        paused = vfs.docker("inspect", "-f", "{{.State.Paused}}", victim.name).stdout
        assert paused == b"false\n"
    show_runs(victim, "chpasswd --via %s, /etc swapped" % via)


@pytest.mark.parametrize("via", ["exec", "auto"])
def test_the_images_own_chpasswd_is_not_run_while_etc_is_swapped(vfs, swap_program, via):
    """It would follow the link as the container's root does: nothing that dockfix could hold."""
    victim = Victim(vfs, swap_program, "loop-exec", ETC, image="debian")
    for number in range(LOOPS):
        word = "word%d" % number
        with victim.looping():
            run, status = victim.dockfix(
                "chpasswd", victim.name, "--via", via, stdin=b"root:%s\n" % word.encode()
            )
            victim.check()
        assert agrees(vfs.opens(victim.name, word), status)
        assert run.rows[victim.name].get("via") != "exec", run
    show_runs(victim, "chpasswd --via %s, /etc swapped, with a chpasswd inside" % via)
    run, status = victim.dockfix("chpasswd", victim.name, "--via", via, stdin=b"root:calm\n")
    assert status == "changed" and run.rows[victim.name]["via"] == "exec", run
    victim.check()


def test_timezone_while_etc_is_swapped(vfs, swap_program):
    victim = Victim(vfs, swap_program, "loop-etc", ETC)
    for _ in range(LOOPS):
        with victim.looping():
            _, status = victim.dockfix("timezone", victim.name, "--zone", "Asia/Tokyo")
            victim.check()
        zone = zone_inside(vfs, victim.name, "/etc/timezone")
        assert agrees(zone == b"Asia/Tokyo\n", status)
        assert victim.dockfix("timezone", victim.name, "--zone", "Asia/Tokyo")[0].rc == 0
        with victim.looping():
            _, status = victim.dockfix("timezone", victim.name, "--undo")
            victim.check()
        assert agrees(zone_inside(vfs, victim.name, "/etc/timezone") is None, status)
        assert victim.dockfix("timezone", victim.name, "--undo")[0].rc == 0
    show_runs(victim, "timezone, /etc swapped")


@pytest.mark.parametrize("way", [ETC, LIB], ids=["etc", "lib"])
def test_faketime_and_its_undo_while_a_folder_is_swapped(vfs, swap_program, way):
    victim = Victim(vfs, swap_program, "loop-shift", way, image="debian")
    shift = ("faketime", victim.name, "--offset", "+8h", "--watch", "0")
    for _ in range(LOOPS):
        with victim.looping():
            victim.dockfix(*shift)
            victim.check()
        victim.dockfix("faketime", victim.name, "--undo")
        assert victim.dockfix(*shift)[0].rc == 0
        with victim.looping():
            victim.dockfix("faketime", victim.name, "--undo")
            victim.check()
        assert victim.dockfix("faketime", victim.name, "--undo")[0].rc == 0
        assert vfs.shadow(victim.name, "/etc/ld.so.preload") is None
    show_runs(victim, "faketime, %s swapped" % way[0])


def test_on_current_engines_descriptors_are_used_too(current, swap_program):
    """With containerd's image store inspect does not name the layer; the root is proven by the
    mount that docker itself makes."""
    victim = Victim(current, swap_program, "loop-current", ZONES)
    for _ in range(LOOPS):
        for words in (("--zone", "Asia/Tokyo"), ("--undo",)):
            with victim.looping():
                victim.dockfix("timezone", victim.name, *words)
                victim.check()
            recorder = current.recorder()
            run, _ = victim.dockfix("timezone", victim.name, *words, recorder=recorder)
            assert run.rc == 0, run
            asked = {call.argv[0] for call in recorder.calls()}
            assert not asked & {"cp", "pause"}, asked
    show_runs(victim, "timezone, zoneinfo swapped, a current engine")


# ---------------------------------------------------------------- the same for a user who has
# docker cp only


def test_a_user_without_root_pauses_what_runs(any_driver, swap_program):
    lab = any_driver
    victim = Victim(lab, swap_program, "loop-user", ZONES, files={TOKYO: OLD_ZONE.decode()})
    nobody = conftest.open_to_nobody(lab)
    prefix, victim.state = nobody.prefix, os.path.join(nobody.folder(), "state")
    for _ in range(LOOPS):
        with victim.looping():
            _, status = victim.dockfix(
                "timezone", victim.name, "--zone", "Asia/Tokyo", prefix=prefix
            )
            victim.check()
        assert agrees(zone_inside(lab, victim.name) != OLD_ZONE, status)
        run, _ = victim.dockfix("timezone", victim.name, "--zone", "Asia/Tokyo", prefix=prefix)
        assert run.rc == 0, run
        with victim.looping():
            victim.dockfix("timezone", victim.name, "--undo", prefix=prefix)
            victim.check()
        assert victim.dockfix("timezone", victim.name, "--undo", prefix=prefix)[0].rc == 0
        assert zone_inside(lab, victim.name) == OLD_ZONE
        assert lab.status()[victim.name] == "Up"
        lab.inside(victim.name, "true")  # what is paused takes no exec
    show_runs(victim, "timezone as nobody, zoneinfo swapped, %s" % lab.engine.extra)


# ---------------------------------------------------------------- a docker command that swaps right
# before one of dockfix's calls


def swapping(victim, number, stopped):
    """A recorder that swaps once, before the call of that number."""
    words = (victim.name, "/bin/swap", *victim.way[:2])
    swap = '"$REAL" exec %s %s %s %s once' % words
    if stopped:
        swap = '"$REAL" start %s; %s; "$REAL" kill %s' % (victim.name, swap, victim.name)
    return victim.lab.recorder(
        inject='if [ "$(ls "$LOG" | grep -c argv)" = %d ]; then { %s; } >/dev/null 2>&1; fi'
        % (number, swap)
    )


def call_numbers(calls):
    """Which calls to swap at: all of them; everyday the first, long before the look, and the first
    that writes."""
    numbers = range(1, len(calls) + 1)
    if BIG:
        return list(numbers)
    return [1, *[number for number in numbers if calls[number - 1].argv[:2] == ["cp", "-"]][:1]]


def settle(victim, stopped):
    """Puts the folder back in its place, whatever a swap left; the container is then as it was."""
    lab, (folder, link, _) = victim.lab, victim.way
    if lab.status()[victim.name] != "Up":
        lab.docker("start", victim.name)
    lab.docker("unpause", victim.name, check=False)
    if lab.shadow(victim.name, folder).kind == "link":
        victim.swap_once()
    assert lab.shadow(victim.name, link).kind == "link"
    if stopped:
        lab.docker("kill", victim.name)


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_timezone_and_its_undo_swapped_between_two_calls(any_driver, swap_program, stopped):
    lab = any_driver
    victim = Victim(lab, swap_program, "call-zone", ZONES, files={TOKYO: OLD_ZONE.decode()})
    settle(victim, stopped)
    do, undo = ("timezone", victim.name, "--zone", "Asia/Tokyo"), (
        "timezone",
        victim.name,
        "--undo",
    )
    clean = {}
    for words in (do, undo):
        recorder = lab.recorder()
        assert victim.dockfix(*words, recorder=recorder)[0].rc == 0
        clean[words] = call_numbers(recorder.calls())
    for number in clean[do]:
        victim.dockfix(*do, recorder=swapping(victim, number, stopped))
        victim.check()
        settle(victim, stopped)
        victim.dockfix(*undo)
        assert zone_inside(lab, victim.name) == OLD_ZONE
    for number in clean[undo]:
        assert victim.dockfix(*do)[0].rc == 0
        victim.dockfix(*undo, recorder=swapping(victim, number, stopped))
        victim.check()
        settle(victim, stopped)
        victim.dockfix(*undo)
        assert zone_inside(lab, victim.name) == OLD_ZONE
    show_runs(
        victim, "timezone, swapped between calls, %s, stopped %s" % (lab.engine.extra, stopped)
    )


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("via", ["proc", "cp", "auto"])
def test_chpasswd_swapped_between_two_calls(vfs, swap_program, via, stopped):
    if stopped and via == "proc":
        pytest.skip("there is no process to go through")
    victim = Victim(vfs, swap_program, "call-etc", ETC)
    settle(victim, stopped)
    recorder = vfs.recorder()
    words = ("chpasswd", victim.name, "--via", via)
    assert victim.dockfix(*words, stdin=b"root:first\n", recorder=recorder)[0].rc == 0
    for number in call_numbers(recorder.calls()):
        word = "word%d" % number
        victim.dockfix(
            *words, stdin=b"root:%s\n" % word.encode(), recorder=swapping(victim, number, stopped)
        )
        victim.check()
        settle(victim, stopped)
    show_runs(victim, "chpasswd --via %s, swapped between calls, stopped %s" % (via, stopped))


def test_what_the_images_own_chpasswd_did_behind_a_link_is_told(vfs, swap_program):
    """The container's own program, led by its own root at the very moment: it cannot be held, so it
    is never called changed or failed."""
    victim = Victim(vfs, swap_program, "exec-etc", ETC, image="debian")
    words = (victim.name, "/bin/swap", *victim.way[:2])
    swap = '"$REAL" exec %s %s %s %s once >/dev/null 2>&1' % words
    led = vfs.recorder(inject='[ "$1 $2" = "exec -i" ] && %s' % swap)
    run, status = victim.dockfix("chpasswd", victim.name, stdin=b"root:word\n", recorder=led)
    row = run.rows[victim.name]
    assert status == "unknown" and victim.host in row["msg"] and run.rc == 3, run
    assert {call.argv[0] for call in led.calls()} & {"cp"} == set()  # nothing else was tried


# ---------------------------------------------------------------- what was found by hand


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_mount_whose_destination_is_behind_a_link(any_driver, swap_program, state):
    """docker mounts where the links lead: inspect says /mnt/Asia, docker cp writes to the host
    through /usr/share/zoneinfo/Asia."""
    lab = any_driver
    host = os.path.join(lab.new_folder(), "Asia")
    os.makedirs(host)
    with open(os.path.join(host, "Tokyo"), "wb") as f:
        f.write(b"the host's own\n")
    os.chmod(host, 0o777)
    before = lab.tree(host)
    lab.docker("rm", "-f", "behind", check=False)
    lab.run("behind", "-v", host + ":/mnt/Asia", image="busybox")
    lab.inside(
        "behind",
        "mkdir -p /usr/share/zoneinfo; mv /mnt /m2; ln -s /usr/share/zoneinfo /mnt",
    )
    if state == "stopped":
        lab.docker("kill", "behind")
    run = lab.dockfix("timezone", "behind", "--zone", "Asia/Tokyo", "--json")
    assert lab.tree(host) == before
    status = run.rows["behind"]["status"]
    assert status == ("changed" if state == "running" else "refused"), run


def test_what_was_paused_stays_paused_and_what_cannot_be_paused_is_refused(lab, swap_program):
    victim = Victim(lab, swap_program, "paused", ZONES)
    words = ("timezone", victim.name, "--zone", "Asia/Tokyo")
    nobody = conftest.open_to_nobody(lab)
    prefix, victim.state = nobody.prefix, os.path.join(nobody.folder(), "state")
    lab.docker("pause", victim.name)
    assert victim.dockfix(*words, prefix=prefix)[1] == "changed"
    assert lab.docker("inspect", "-f", "{{.State.Paused}}", victim.name).stdout == b"true\n"
    lab.docker("unpause", victim.name)
    diff = sorted(lab.docker("diff", victim.name).stdout.splitlines())
    never = nobody.recorder(inject='[ "$1" = pause ] && { echo "no freezer here" >&2; exit 1; }')
    run, status = victim.dockfix("timezone", victim.name, "--undo", prefix=prefix, recorder=never)
    assert status == "refused" and "no freezer here" in run.rows[victim.name]["msg"], run
    assert sorted(lab.docker("diff", victim.name).stdout.splitlines()) == diff


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_does_not_leave_a_container_paused(lab, swap_program, number):
    victim = Victim(lab, swap_program, "signalled", ZONES)
    mark = os.path.join(lab.new_folder(), "mark")
    os.chmod(os.path.dirname(mark), 0o777)
    slow = lab.recorder(inject='[ "$1 $2" = "cp -" ] && { : > %s; sleep 20; }' % mark)
    nobody = conftest.open_to_nobody(lab)
    prefix, victim.state = nobody.prefix, os.path.join(nobody.folder(), "state")
    argv = prefix + lab.argv("--docker", slow.command, "--state", victim.state, "timezone")
    child = subprocess.Popen(
        [*argv, victim.name, "--zone", "Asia/Tokyo"],
        env=lab.engine.env(),
        # the tests themselves may run under nohup, which dockfix respects
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: os.path.exists(mark), "the write")
    paused = lab.docker("inspect", "-f", "{{.State.Paused}}", victim.name).stdout
    assert paused == b"true\n"
    for _ in range(2):  # the second one ends what runs
        child.send_signal(number)
    assert child.wait(60) == -number
    paused = lab.docker("inspect", "-f", "{{.State.Paused}}", victim.name).stdout
    assert paused == b"false\n"


@pytest.mark.parametrize("name", ["shadow-", "passwd-", "shadow+", ".pwd.lock"])
def test_the_images_own_chpasswd_follows_no_link_beside_the_account_files(lab, name):
    """shadow-utils writes its copies and its lock through a link: to a file of the host, here."""
    host = lab.host_dir("beside" + name, {"precious": b"the host's own\n"})
    container = "beside" + name.replace("+", "plus")
    lab.run(container, "-v", host + ":/mnt/host")
    script = "rm -f /etc/%s; ln -s /mnt/host/precious /etc/%s" % (name, name)
    lab.inside(container, script)
    run = lab.dockfix("chpasswd", container, "--json", stdin=b"root:New-1\n")
    row = json.loads(run.out.decode("ascii"))["results"][0]
    assert (
        row["via"] != "exec"
        and read_bytes(os.path.join(host, "precious")).decode("ascii") == "the host's own\n"
    ), row
    assert (row["status"] == "changed") is lab.opens(container, "New-1")
