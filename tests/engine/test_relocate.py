"""`relocate` on a real engine (overlay2) with an /etc of its own: to another disk and back, killed
on the way, and to disks that cannot take it."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time

import pytest

from conftest import Lab
from common import Run, wait_until
from kit import CannotRun, PrivateEngine

MEBI = 1 << 20


@contextlib.contextmanager
def disk(lab, name, size, mkfs=("mkfs.ext4", "-q", "-F", "-b", "4096"), options="defaults"):
    """A file system of its own, mounted for the tests and for the daemons, which see mounts of
    their own."""
    image, point = os.path.join(lab.folder, name + ".image"), os.path.join(lab.folder, name)
    os.mkdir(point)
    with open(image, "wb") as f:
        f.truncate(size)
    subprocess.check_call([*list(mkfs), image], stdout=subprocess.DEVNULL)
    loop = subprocess.check_output(["losetup", "-f", "--show", image]).decode().strip()
    try:
        subprocess.check_call(["mount", "-o", options, loop, point])
        if subprocess.call([*lab.engine.inside(), "mountpoint", "-q", point]):
            subprocess.check_call([*lab.engine.inside(), "mount", "-o", options, loop, point])
        yield point
    finally:
        for where in (lab.engine.inside(), []):
            subprocess.call([*where, "umount", "-q", "-l", point])
        subprocess.call(["losetup", "-d", loop])
        os.unlink(image)
        with contextlib.suppress(OSError):
            os.rmdir(point)


@pytest.fixture(scope="module")
def lab(cannot_run):
    folder = os.path.realpath(tempfile.mkdtemp(prefix="dockfix-relocate-"))
    os.chmod(folder, 0o755)
    engine = PrivateEngine(own_etc=True)
    try:
        engine.start()
    except CannotRun as reason:
        cannot_run(reason)
    lab = Lab(engine, folder)
    lab.state = os.path.join(folder, "state")
    try:
        fill(lab)
        yield lab
    finally:
        engine.stop()
        subprocess.call(["rm", "-rf", "--one-file-system", folder])


def fill(lab):
    """Containers in several states, with files that a careless copy would lose something of. With
    --init they end at once when docker stops."""
    lab.run("web", "--init", "-v", "data:/data", "--restart", "unless-stopped", image="busybox")
    lab.inside(
        "web",
        "echo own > /own; ln /own /again; chmod 4755 /own; mkfifo /pipe; dd if=/dev/zero of=/sparse"
        " bs=1 count=1 seek=20000000 2>/dev/null;dd if=/dev/urandom of=/data/random bs=1048576"
        " count=3 2>/dev/null; rm /bin/vi; mkdir /tmp/x; ln -s /nowhere /data/link",
    )
    lab.run("idle", "--init", image="busybox")
    lab.inside("idle", "echo idle > /own")
    lab.run("down", "--init", "--restart", "unless-stopped", image="busybox")
    lab.docker("kill", "idle")
    lab.docker("stop", "-t", "0", "down")
    lab.run("still", "--init", image="busybox")
    lab.docker("pause", "still")
    upper = (
        lab.docker("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", "web").stdout.decode().strip()
    )
    os.setxattr(os.path.join(upper, "own"), "user.note", b"kept")
    os.setxattr(
        os.path.join(upper, "own"),
        "security.capability",
        b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    )


def root(lab):
    return lab.docker("info", "-f", "{{.DockerRootDir}}").stdout.decode().strip()


def go(lab, *words, **more):
    return lab.dockfix(*words, prefix=lab.engine.inside(), **more)


def seen(lab, path):
    """{relative path: all that must be equal} of layers, volumes and images below a Docker root;
    sizes in blocks apart."""
    found, blocks, first = {}, 0, {}
    for part in ("overlay2", "volumes", "image"):
        for folder, names, files in os.walk(os.path.join(path, part)):
            names[:] = [
                name
                for name in sorted(names)
                if name != "merged" and not os.path.ismount(os.path.join(folder, name))
            ]
            for name in names + sorted(files):
                full = os.path.join(folder, name)
                info, short = os.lstat(full), os.path.relpath(full, path)
                blocks += info.st_blocks
                if (
                    short.endswith(("metadata.db", "/lower", "backingFsBlockDev"))
                    or "/work" in short
                ):
                    continue
                twin = (
                    first.setdefault((info.st_dev, info.st_ino), short)
                    if info.st_nlink > 1 and stat.S_ISREG(info.st_mode)
                    else ""
                )
                content = (
                    os.readlink(full)
                    if stat.S_ISLNK(info.st_mode)
                    else (
                        hashlib.sha256(lab.read_bytes(full)).hexdigest()
                        if stat.S_ISREG(info.st_mode)
                        else ""
                    )
                )
                attributes = {
                    name: os.getxattr(full, name, follow_symlinks=False)
                    for name in os.listxattr(full, follow_symlinks=False)
                }
                when = info.st_mtime_ns if stat.S_ISREG(info.st_mode) else 0
                found[short] = (
                    info.st_mode,
                    info.st_uid,
                    info.st_gid,
                    info.st_rdev,
                    when,
                    content,
                    attributes,
                    twin,
                )
    return found, blocks


def documents(lab):
    """inspect of everything, without what a start changes."""
    text = lab.docker("inspect", "web", "idle", "down", "still").stdout.decode()
    found = json.loads(text)
    for one in found:
        one["State"] = {key: one["State"][key] for key in ("Status", "Running", "Paused")}
        one["NetworkSettings"] = None
        for key in (
            ()
            if one["State"]["Running"]
            else ("LogPath", "HostnamePath", "HostsPath", "ResolvConfPath")
        ):
            one[key] = None  # docker itself sets them anew at the next start
    return json.dumps(found, sort_keys=True).replace(root(lab), "ROOT")


def check_same(lab, before, documents_before):
    after = seen(lab, root(lab))
    assert after[0] == before[0], sorted(
        key for key in set(before[0]) | set(after[0]) if before[0].get(key) != after[0].get(key)
    )[:20]
    assert abs(after[1] - before[1]) <= 0.05 * before[1], (before[1], after[1])
    now = documents(lab)
    assert now == documents_before, [
        (a, b) for a, b in zip(now.split(", "), documents_before.split(", ")) if a != b
    ][:6]


def let_go(lab):
    """Discards the old data of all finished changes."""
    for name in os.listdir(lab.state):
        if name.startswith("relocate-"):
            done = go(lab, "discard", "-y", name[: -len(".json")])
            assert done.rc == 0, done


def without_rsync(lab):
    return [
        *lab.engine.inside(),
        "sh",
        "-c",
        "if command -v rsync >/dev/null; then mount --bind /dev/null $(command -v rsync); fi",
    ]


def test_there_and_back_and_there_for_good(lab):
    old, before, told = root(lab), seen(lab, root(lab)), documents(lab)
    with disk(lab, "big", 400 * MEBI) as point:
        new = os.path.join(point, "docker")
        done = go(lab, "relocate", "--json", "-y", new)
        assert done.rc == 0 and root(lab) == new and not os.path.exists(old), done
        settings = lab.read_bytes(lab.engine.path("etc", "upper", "docker", "daemon.json"))
        assert json.loads(settings.decode())["data-root"] == new
        check_same(lab, before, told)
        kept = done.doc["results"][0]["keeps"]
        assert seen(lab, kept)[0] == before[0] and kept.startswith(old)
        lab.run("later", image="busybox")
        back = go(lab, "rollback", "--json", "-y")
        assert (
            back.rc == 0 and root(lab) == old and b"later" in back.err and os.path.isdir(new)
        ), back
        check_same(lab, before, told)
        assert "later" not in lab.status()
        subprocess.check_call(["rm", "-rf", "--one-file-system", new])
        done = go(lab, "relocate", "-y", new, "--no-presync")
        assert done.rc == 0 and root(lab) == new and "discard" in done.text, done
        name = re.search(r"discard --state \S+ (\S+) deletes", done.text).group(1)
        assert go(lab, "discard", "-y", name).rc == 0
        assert (
            not os.path.exists(kept)
            and [
                one
                for one in os.listdir(os.path.dirname(old))
                if "dockfix" in one and "root" in one
            ]
            == []
        )
        check_same(lab, before, told)
        done = go(lab, "relocate", "-y", old)
        assert done.rc == 0 and root(lab) == old, done
        let_go(lab)
        check_same(lab, before, told)


def test_without_rsync(lab):
    old, before, told = root(lab), seen(lab, root(lab)), documents(lab)
    subprocess.check_call(without_rsync(lab))
    try:
        with disk(lab, "plain", 400 * MEBI) as point:
            new = os.path.join(point, "docker")
            done = go(lab, "relocate", "--json", "-y", new)
            assert done.rc == 0 and root(lab) == new, done
            check_same(lab, before, told)
            back = go(lab, "rollback", "--json", "-y")
            assert (
                back.rc == 0 and root(lab) == old and ("rm -rf " + new).encode() in back.err
            ), back
            check_same(lab, before, told)
    finally:
        subprocess.call(
            [*lab.engine.inside(), "sh", "-c", "umount /usr/bin/rsync 2>/dev/null || :"]
        )


STEPS = [
    "make",
    "copy while",
    "stop docker",
    "no daemon",
    "copy what is left",
    "records",
    "set the options",
    "aside",
    "start docker",
    "there",
]
SAMPLE = [
    ("copy while", "rollback"),
    ("stop docker", "resume"),
    ("copy what is left", "rollback"),
    ("aside", "resume"),
    ("start docker", "rollback"),
    ("there", "resume"),
]


@pytest.mark.parametrize(
    "word, end",
    (
        [(word, end) for word in STEPS for end in ("resume", "rollback")]
        if os.environ.get("FULL")
        else SAMPLE
    ),
)
def test_killed_at_a_step(lab, word, end):
    """SIGKILL while a program of the step runs; then either way."""
    if word.startswith("copy ") and not shutil.which("rsync"):
        pytest.skip("no rsync: there is one copy only")
    old, before, told = root(lab), seen(lab, root(lab)), documents(lab)
    journal = os.path.join(lab.state, "journal.json")
    with disk(lab, "kill", 400 * MEBI) as point:
        new = os.path.join(point, "docker")
        killed = lab.dockfix_until("during", word, "relocate", "-y", new)
        assert killed.returncode == -signal.SIGKILL, killed
        assert word in half_way(lab, journal)
        refused = go(lab, "exec", "--json", "--all", "--", "true")
        assert refused.rc in (7, 8), refused
        done = wait_free(lab, end)
        assert done.rc == 0, done
        assert root(lab) == (new if end == "resume" else old)
        check_same(lab, before, told)
        if end == "resume":
            assert go(lab, "rollback", "-y").rc == 0
            check_same(lab, before, told)
    assert root(lab) == old and not os.path.exists(journal)


def test_resumed_and_rolled_back_while_the_new_disk_is_not_mounted(lab):
    """As after a reboot without a line in fstab: nothing is written to, and nothing deleted from,
    what lies below its mount point."""
    old, before, told = root(lab), seen(lab, root(lab)), documents(lab)
    with disk(lab, "gone", 400 * MEBI) as point:
        new = os.path.join(point, "docker")
        killed = lab.dockfix_until(
            "during",
            "copy what is left" if shutil.which("rsync") else "copy",
            "relocate",
            "-y",
            new,
        )
        assert killed.returncode == -signal.SIGKILL, killed
        assert wait_free(lab, "discard", "none").rc == 7
        for where in (lab.engine.inside(), []):
            subprocess.check_call([*where, "umount", point])
        os.mkdir(new)
        with open(os.path.join(new, "precious"), "w") as f:
            f.write("not docker's")
        assert go(lab, "--dry-run", "resume").rc == 7  # no script that would do it
        refused = wait_free(lab, "resume")
        assert (
            refused.rc == 7
            and "mounted at %s is not there: mount it first" % point
            in refused.doc["errors"][0]["msg"]
        ), refused
        done = wait_free(lab, "rollback")
        assert (
            done.rc == 0
            and root(lab) == old
            and os.listdir(point) == ["docker"]
            and os.listdir(new) == ["precious"]
        ), done
        check_same(lab, before, told)
        shutil.rmtree(new)


def half_way(lab, journal):
    """The title of the step that the journal says is begun."""
    found = json.loads(lab.read_bytes(journal).decode())
    return found["plan"]["steps"][found["at"]]["title"]


def wait_free(lab, *words):
    """An orphan of the killed run holds the lock until it ends: exit 8 names the step."""
    end = time.monotonic() + 120
    while True:
        done = go(lab, *words, "--json", "-y")
        if done.rc != 8 or time.monotonic() > end:
            return done
        assert "step" in done.doc["errors"][0]["msg"]
        time.sleep(0.3)


def untouched(lab, before, told, done, code):
    assert done.rc == code, done
    check_same(lab, before, told)
    assert not os.path.exists(os.path.join(lab.state, "journal.json"))


def test_disks_that_cannot_take_it(lab):
    before, told = seen(lab, root(lab)), documents(lab)
    with disk(lab, "small", 4 * MEBI) as point:
        done = go(lab, "relocate", "--json", "-y", os.path.join(point, "docker"))
        untouched(lab, before, told, done, 5)
        assert "free" in done.doc["errors"][0]["msg"] and os.listdir(point) == ["lost+found"]
    with disk(lab, "ro", 300 * MEBI, options="ro") as point:
        done = go(lab, "relocate", "--json", "-y", os.path.join(point, "docker"))
        untouched(lab, before, told, done, 5)
        assert "ro" in done.doc["errors"][0]["msg"]
    with disk(lab, "noexec", 300 * MEBI, options="noexec") as point:
        untouched(
            lab, before, told, go(lab, "relocate", "--json", "-y", os.path.join(point, "docker")), 5
        )
    with disk(
        lab, "inodes", 300 * MEBI, mkfs=("mkfs.ext4", "-q", "-F", "-N", "200")
    ) as point:  # full in the middle
        done = go(lab, "relocate", "--json", "-y", "--no-presync", os.path.join(point, "docker"))
        untouched(lab, before, told, done, 1)
        assert "undone" in done.doc["errors"][0]["msg"] and os.listdir(point) == [
            "lost+found"
        ], done


def test_a_disk_that_somebody_mounted_into_a_volume(lab):
    """Its data would stay behind, and the database start on an empty folder."""
    before, told = seen(lab, root(lab)), documents(lab)
    lab.docker("volume", "create", "db")
    place = os.path.join(root(lab), "volumes", "db", "_data")
    subprocess.check_call([*lab.engine.inside(), "mount", "-t", "tmpfs", "tmpfs", place])
    try:
        done = go(lab, "relocate", "--json", "-y", os.path.join(lab.folder, "new"))
        assert (
            done.rc == 5
            and place + ", in the volume db" in done.doc["errors"][0]["msg"]
            and "umount " + place in done.doc["errors"][0]["hint"]
        ), done
    finally:
        subprocess.check_call([*lab.engine.inside(), "umount", place])
        lab.docker("volume", "rm", "db")
    untouched(lab, before, told, done, 5)


def test_file_systems_on_which_docker_cannot_live(lab):
    """vfat where this kernel has it (tests/vm tries it on every machine)."""
    before, told = seen(lab, root(lab)), documents(lab)
    vfat = (
        subprocess.call(
            [
                "sh",
                "-c",
                "command -v mkfs.vfat && { grep -qw vfat /proc/filesystems || modprobe vfat; }",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        == 0
    )
    with contextlib.ExitStack() as stack:
        point = os.path.join(lab.folder, "memory")
        os.mkdir(point)
        subprocess.check_call([*lab.engine.inside(), "mount", "-t", "tmpfs", "tmpfs", point])
        stack.callback(subprocess.call, [*lab.engine.inside(), "umount", point])
        for name, where in [("tmpfs", point)] + (
            [("vfat", stack.enter_context(disk(lab, "fat", 300 * MEBI, mkfs=("mkfs.vfat",))))]
            if vfat
            else []
        ):
            done = go(lab, "relocate", "--json", "-y", os.path.join(where, "docker"))
            untouched(lab, before, told, done, 5)
            assert (
                name in done.doc["errors"][0]["msg"] and "ext4" in done.doc["errors"][0]["hint"]
            ), done


def inside(lab, *words):
    subprocess.check_call(lab.engine.inside() + list(words), env=lab.engine.env())


def mounted_at(lab, path):
    text = subprocess.check_output([*lab.engine.inside(), "cat", "/proc/self/mountinfo"]).decode()
    return sum(line.split()[4] == path for line in text.splitlines())


@contextlib.contextmanager
def home_bound(lab):
    """The driver's folder is a mount of itself, as engines before 17.12 make it, while the daemon
    runs and after it."""
    home = os.path.join(root(lab), "overlay2")

    def with_daemon_down(*words):
        lab.docker("unpause", "still")
        inside(lab, "service", "docker", "stop")
        inside(lab, *words)
        inside(lab, "service", "docker", "start")
        lab.docker("start", "still")
        lab.docker("pause", "still")

    with_daemon_down("sh", "-c", 'mount --bind "$0" "$0" && mount --make-private "$0"', home)
    try:
        yield home
    finally:
        with_daemon_down("sh", "-c", 'while umount "$0" 2>&1; do :; done; true', home)


def test_a_drivers_folder_that_is_a_mount_of_itself(lab):
    """It counts in the size; it is unmounted, with what else Docker left mounted and nobody uses;
    on the way back it is bound again."""
    old = root(lab)
    with home_bound(lab) as home:
        before, told = seen(lab, old), documents(lab)
        size = int(subprocess.check_output(["du", "-sk", home]).split()[0]) << 10
        with disk(lab, "less", size) as point:
            done = go(lab, "relocate", "--json", "-y", os.path.join(point, "docker"))
            untouched(lab, before, told, done, 5)
            assert "free" in done.doc["errors"][0]["msg"], done
        with disk(lab, "bound", 400 * MEBI) as point:
            new = os.path.join(point, "docker")
            left = os.path.join(home, "left", "merged")
            os.makedirs(left)
            inside(lab, "mount", "-t", "tmpfs", "tmpfs", left)
            done = go(lab, "relocate", "--json", "-y", new)
            assert done.rc == 0 and root(lab) == new, done
            kept = done.doc["results"][0]["keeps"]
            shutil.rmtree(os.path.join(new, "overlay2", "left"))
            shutil.rmtree(os.path.join(kept, "overlay2", "left"))
            check_same(lab, before, told)
            assert not mounted_at(lab, os.path.join(kept, "overlay2"))
            back = go(lab, "rollback", "--json", "-y")
            assert back.rc == 0 and mounted_at(lab, home) == 1, back
            check_same(lab, before, told)
            shutil.rmtree(new)
            script = os.path.join(lab.folder, "bound.sh")
            with open(script, "wb") as f:
                f.write(go(lab, "relocate", "--dry-run", new).out)
            inside(lab, "sh", script)
            assert root(lab) == new and not mounted_at(lab, home)
            check_same(lab, before, told)
            [kept] = [one for one in os.listdir(os.path.dirname(old)) if "root.dockfix" in one]
            shutil.rmtree(os.path.join(os.path.dirname(old), kept))
            assert go(lab, "relocate", "-y", old).rc == 0 and root(lab) == old
            let_go(lab)
            check_same(lab, before, told)
            inside(lab, "mount", "--bind", home, home)


def test_containers_that_ignore_sigterm_have_their_own_time(lab):
    """All together take no longer than the slowest; the daemon, which gives them 15 seconds in all,
    finds none that runs."""
    old, told = root(lab), documents(lab)
    names = ["deaf%d" % number for number in range(5)]
    for name in names:
        lab.run(name, "--restart", "always", image="busybox", command=("sleep", "100000"))
    log = os.path.join(lab.engine.dir, "dockerd.log")
    mark = os.path.getsize(log)
    try:
        with disk(lab, "deaf", 400 * MEBI) as point:
            done = go(
                lab, "relocate", "--json", "-y", "--no-presync", os.path.join(point, "docker")
            )
            assert done.rc == 0 and {lab.status()[name] for name in names} == {"Up"}, done
            back = go(lab, "rollback", "--json", "-y")
            assert back.rc == 0 and root(lab) == old, back
            assert {lab.status()[name] for name in names} == {"Up"}
    finally:
        lab.docker("rm", "-f", *names)
    said = lab.read_bytes(log)[mark:].decode("utf-8", "replace")
    assert said.count("using the force") == 2 * len(names), said[-2000:]
    assert "Force shutdown" not in said and documents(lab) == told


def test_slips(lab):
    before, told, old = seen(lab, root(lab)), documents(lab), root(lab)
    full = os.path.join(lab.folder, "full")
    os.makedirs(os.path.join(full, "something"))
    for word, code in (
        (os.path.join(old, "below"), 5),
        (os.path.dirname(old), 5),
        (full, 5),
        (os.path.join(lab.folder, "no", "such"), 2),
        (os.path.join(lab.folder, "a b"), 2),
    ):
        untouched(lab, before, told, go(lab, "relocate", "--json", "-y", word), code)
    untouched(lab, before, told, go(lab, "relocate", "--json"), 2)
    untouched(
        lab,
        before,
        told,
        lab.dockfix(
            "relocate",
            "--json",
            os.path.join(lab.folder, "new"),
            prefix=["setsid", "-w", *lab.engine.inside()],
        ),
        5,
    )
    lab.docker("run", "-d", "--rm", "--network", "none", "--name", "fleeting", "ring/busybox")
    try:
        done = go(lab, "relocate", "--json", "-y", os.path.join(lab.folder, "new"))
        assert (
            done.rc == 5
            and "fleeting" in done.doc["errors"][0]["msg"]
            and not os.path.exists(os.path.join(lab.folder, "new"))
        ), done
    finally:
        lab.docker("kill", "fleeting")
        wait_until(lambda: "fleeting" not in lab.status(), "removal of fleeting")


def test_a_container_that_may_vanish(lab):
    old, told = root(lab), documents(lab)
    with disk(lab, "vanish", 400 * MEBI) as point:
        lab.docker("run", "-d", "--rm", "--network", "none", "--name", "fleeting", "ring/busybox")
        done = go(
            lab,
            "relocate",
            "--json",
            "-y",
            "--lose-autoremove",
            "fleeting",
            os.path.join(point, "docker"),
        )
        assert (
            done.rc == 0
            and root(lab).startswith(point)
            and "fleeting" not in lab.status()
            and documents(lab) == told
        ), done
        back = go(lab, "rollback", "--json", "-y")
        assert back.rc == 0 and root(lab) == old and documents(lab) == told, back


def test_the_dry_run_script_does_the_same(lab):
    old, before, told = root(lab), seen(lab, root(lab)), documents(lab)
    with disk(lab, "script", 400 * MEBI) as point:
        new = os.path.join(point, "docker")
        text = go(lab, "relocate", "--dry-run", new)
        assert text.rc == 0 and not os.path.exists(new), text
        check_same(lab, before, told)
        script = os.path.join(lab.folder, "script.sh")
        with open(script, "wb") as f:
            f.write(text.out)
        ran = subprocess.run(
            [*lab.engine.inside(), "sh", script],
            env=lab.engine.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        ran = Run(ran.returncode, ran.stdout, ran.stderr, 0)
        assert ran.rc == 0 and root(lab) == new, ran
        check_same(lab, before, told)
        done = go(lab, "relocate", "-y", old)
        assert done.rc == 0 and root(lab) == old, done
        let_go(lab)
