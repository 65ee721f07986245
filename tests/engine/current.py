"""A current Docker engine, as the only one of a host of its own.

    with CurrentEngine("trixie", "containerd") as engine:
        web = engine.run(engine.import_busybox(), "--name", "web")
        engine.call("python3", "/repo/dockfix.py", "owner")

PrivateEngine (kit.py) is the docker.io that this machine has, moved to sockets and directories of
its own.  Newer engines, and the containerd image store with containerd's own root, are tested at
their default paths: a Debian root is unpacked and entered with mount, pid, uts, ipc and network
namespaces, a private /run and /tmp, and `service` for the daemons (no systemd; of the network only
lo).  The repository is mounted read-only at /repo.

As a program: current.py start DIR [SUITE [STORE [REPOSITORY]]] | enter DIR [COMMAND ...] | stop DIR
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from kit import (
    CannotRun,
    Engine,
    build_debian,
    cache_dir,
    cached_root,
    debian_source,
    end_leftovers,
    mounts_below,
    need,
    tail,
    undisturbed,
)
from common import read_bytes, wait_until

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PACKAGES = [
    "docker.io",
    "docker-cli",
    "containerd",
    "runc",
    "iptables",
    "busybox-static",
    "python3",
    "docker-registry",
    "rsync",
    "e2fsprogs",
]
STORES = ("overlay2", "containerd")
DISK_SIZE = 16 << 30  # of a sparse file
MAKE_DISK = """set -e
mkfs.ext4 -q -F -m 0 -O ^has_journal "$0"
mount -o loop "$0" /mnt
tar --numeric-owner -C /mnt -xpf "$1"
umount /mnt
"""

# $1: the engine's folder; $2: the repository; $3: INIT; then directories to share.
# Mounts are private to the namespace (unshare sees to it) and go with its last process.  No
# barriers: nothing here has to survive a power cut, and each would be a flush of the machine's own
# disk.
ENTER_ROOT = """set -e
mount -o loop,nobarrier "$1/disk" "$1/mounted"
cd "$1/mounted"
mkdir -p repo old-root
mount --bind "$2" repo
mount -o remount,bind,ro repo
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir run/lock
init=$3
shift 3
for directory; do
    mkdir -p "$PWD$directory"
    mount --bind "$directory" "$PWD$directory"
done
pivot_root . old-root
umount -l /old-root
rmdir /old-root
cd /
/bin/hostname dockfix-test
/bin/busybox ip link set lo up
exec /usr/bin/env -i HOME=/root LANG=C.UTF-8 \\
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
    /usr/bin/python3 -c "$init"
"""
# process 1: says that the root is ready, then buries whoever dies
INIT = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
open("/run/entered", "w").close()
while True:
    try:
        os.wait()
    except ChildProcessError:
        signal.sigwait([signal.SIGCHLD])
"""
# Debian starts the system's containerd by systemd only
CONTAINERD_SERVICE = """#!/bin/sh
pid=/run/containerd-ssd.pid
case $1 in
start) start-stop-daemon --start --oknodo --background --no-close --make-pidfile --pidfile $pid \\
    --exec /usr/bin/containerd >>/var/log/containerd.log 2>&1 ;;
stop) start-stop-daemon --stop --oknodo --remove-pidfile --pidfile $pid --retry 30 ;;
restart) $0 stop; $0 start ;;
status) start-stop-daemon --status --pidfile $pid ;;
*) exit 1 ;;
esac
"""


class CurrentEngine(Engine):
    """Docker of a Debian suite as the only one of a host of its own, from `with` until its end.

    store:    "overlay2" (the classic one) or "containerd" (the containerd image store)
    managed:  dockerd starts its own containerd, as it does where the system has none
    settings: more for /etc/docker/daemon.json
    folder:   for its files (must not exist yet; default: a new temporary directory)
    shared:   directories of this machine that the engine's host has too, under the same path
    """

    def __init__(
        self,
        suite="trixie",
        store="containerd",
        managed=False,
        settings=None,
        folder=None,
        repository=REPOSITORY,
        shared=(),
    ):
        assert store in STORES, store
        self.suite, self.store, self.managed = suite, store, managed
        self.settings, self.repository, self.shared = settings or {}, repository, list(shared)
        self.client = "/usr/bin/docker"
        self.dir = folder or ""
        self.init = 0  # process 1, as this machine numbers it
        self.holder = None  # unshare, the parent of process 1: they end together

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.stop()

    # ------------------------------------------------------------------ start and stop

    def start(self):
        if os.geteuid() != 0:
            raise CannotRun("needs root: it makes namespaces and mounts")
        self.catch_signals()
        made = root_disk(self.suite)
        if self.dir:
            os.makedirs(self.dir)
        else:
            self.dir = tempfile.mkdtemp(prefix="dockfix-current-")
        self.dir = os.path.realpath(self.dir)
        try:
            os.chmod(self.dir, 0o755)
            os.mkdir(os.path.join(self.dir, "mounted"))
            subprocess.check_call(["cp", "--sparse=always", made, os.path.join(self.dir, "disk")])
            self.enter_namespaces()
            self.configure()
            self.start_daemons()
        except BaseException:
            self.stop()
            raise

    def root(self, *parts):
        """Path of a file of the engine's host as this machine sees it; links in it must not be
        absolute ones."""
        return os.path.join("/proc/%d/root" % self.init, *[part.lstrip("/") for part in parts])

    def configure(self):
        features = {"containerd-snapshotter": self.store == "containerd"}
        settings = {"bridge": "none", "iptables": False, "ip6tables": False, "features": features}
        settings.update(self.settings)
        os.makedirs(self.root("etc/docker"), exist_ok=True)
        with open(self.root("etc/docker/daemon.json"), "w") as f:
            json.dump(settings, f, indent=2)
        with open(self.root("etc/init.d/containerd"), "w") as f:
            f.write(CONTAINERD_SERVICE)
        os.chmod(f.name, 0o755)
        with open(self.root("etc/init.d/docker")) as f:
            text = f.read()
        # Limits may not be raised in every container; a stop of ten seconds ends the daemon while
        # it waits for containers.
        text = re.sub(r"(?m)^(\s*)ulimit ", r"\1: ulimit ", text).replace(
            "--retry 10", "--retry 60"
        )
        with open(self.root("etc/init.d/docker"), "w") as f:
            f.write(text)

    def enter_namespaces(self):
        flags = ["--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child"]
        with open(os.path.join(self.dir, "log"), "wb") as log:
            self.holder = subprocess.Popen(
                [
                    need("unshare", "util-linux"),
                    *flags,
                    "sh",
                    "-c",
                    ENTER_ROOT,
                    "sh",
                    self.dir,
                    self.repository,
                    INIT,
                    *self.shared,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=tool_env(),
            )
        wait_until(self.entered, "host in namespaces of its own")
        with open(os.path.join(self.dir, "pids"), "w") as f:
            f.write("%d %d\n" % (self.holder.pid, self.init))
        os.symlink("/proc/%d/root" % self.init, os.path.join(self.dir, "root"))

    def entered(self):
        if self.holder.poll() is not None:
            raise CannotRun(
                "no namespaces or mounts here:\n%s" % tail(os.path.join(self.dir, "log"))
            )
        with contextlib.suppress(OSError, ValueError):
            with open("/proc/{0}/task/{0}/children".format(self.holder.pid)) as f:
                self.init = int(f.read())
            return os.path.exists("/proc/%d/root/run/entered" % self.init)

    def start_daemons(self):
        if not self.managed:
            self.call("service", "containerd", "start")
            wait_until(
                lambda: self.call(
                    "test", "-S", "/run/containerd/containerd.sock", check=False
                ).returncode
                == 0,
                "socket of containerd",
            )
        self.call("service", "docker", "start")
        try:
            wait_until(
                lambda: self.docker("version", check=False).returncode == 0,
                "answer of dockerd",
                120,
            )
        except RuntimeError as error:
            log = tail(self.root("var/log/docker.log"))
            raise CannotRun("%s:\n%s" % (error, log)) from None

    def stop(self):
        """Leave nothing behind: containers, daemons, namespaces, files.  Can be called again, and
        in any state."""
        if not self.dir:
            return
        with undisturbed():
            ids = self.container_ids()
            if self.holder is not None:
                self.holder.kill()  # process 1 goes with it, and with that one all others
                self.holder.wait()
            end_leftovers(ids)
            wait_until(lambda: not self.left(), "end of the engine's mounts")
            shutil.rmtree(self.dir)
            self.dir, self.holder, self.init = "", None, 0
        self.release_signals()

    def container_ids(self):
        """Of the containers that run, from the cgroups of all processes below process 1."""
        if not self.init:
            return []
        parents = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                stat = read_bytes("/proc/%s/stat" % pid)
                parents[int(pid)] = int(stat.rsplit(b")", 1)[1].split()[1])
        found = set()
        for pid in parents:
            above = parents[pid]
            while above not in (0, self.init):
                above = parents.get(above, 0)
            if above == self.init:
                with contextlib.suppress(OSError):
                    text = read_bytes("/proc/%d/cgroup" % pid).decode()
                    found.update(re.findall("[0-9a-f]{64}", text))
        return sorted(found)

    def left(self):
        """Loop devices on this engine's file (a mount that somebody still has is one of these), and
        mounts below its folder."""
        found = mounts_below(self.dir)
        for path in glob.glob("/sys/block/loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if read_bytes(path).decode(errors="replace").startswith(self.dir + "/"):
                    found.append(path)
        return found

    # ------------------------------------------------------------------ use

    def inside(self):
        """What to put before a command, so that it runs on the engine's host."""
        flags = ["--mount", "--pid", "--uts", "--ipc", "--net", "--target"]
        return [need("nsenter", "util-linux"), *flags, str(self.init), "--"]

    def env(self, **more):
        env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
        }
        env.update(more)
        return env

    def docker_command(self):
        return [*self.inside(), self.client]

    def call(self, *argv, input=None, check=True, timeout=300, env=None):
        """Run a command on the engine's host, as root; returns a CompletedProcess with bytes."""
        feed = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(
            self.inside() + [str(word) for word in argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env(**(env or {})),
            timeout=timeout,
            **feed,
        )
        if check and done.returncode:
            raise RuntimeError(
                "%s: exit %d\n%s%s"
                % (
                    argv,
                    done.returncode,
                    done.stdout.decode(errors="replace"),
                    done.stderr.decode(errors="replace"),
                )
            )
        return done


# ---------------------------------------------------------------------- a registry, and an image
# that docker save loses

REGISTRY = "127.0.0.1:5000"  # in the engine's own network namespace
REGISTRY_SETTINGS = """version: 0.1
storage: {filesystem: {rootdirectory: /srv/registry}, delete: {enabled: true}}
http: {addr: "%s"}
""" % REGISTRY
START_REGISTRY = """
[ ! -s /run/registry.pid ] || exit 0
setsid docker-registry serve /srv/registry.yml >/var/log/registry.log 2>&1 </dev/null &
echo $! >/run/registry.pid
"""
REGISTRY_ANSWERS = "import urllib.request as u; u.urlopen('http://%s/v2/', timeout=5)" % REGISTRY


def start_registry(engine):
    """A registry on the engine's own loopback; what begins with the address it returns can be
    pushed and pulled."""
    with open(engine.root("srv/registry.yml"), "w") as f:
        f.write(REGISTRY_SETTINGS)
    engine.call("sh", "-c", START_REGISTRY)
    wait_until(
        lambda: not engine.call("python3", "-c", REGISTRY_ANSWERS, check=False).returncode,
        "answer of the registry",
    )
    return REGISTRY


def stop_registry(engine):
    """As on a host that is offline: nothing can be pulled any more."""
    engine.call("sh", "-c", "kill $(cat /run/registry.pid) && rm /run/registry.pid")


def image_without_layers(engine, name="lost", container="keeper"):
    """Name of an image of which `docker save` writes an archive without layers, and ends with 0
    (moby#49784).

    Only with the containerd store: a container keeps the snapshots, the image and its content are
    deleted, and a pull finds the snapshots and leaves the layers where they are.  The container is
    created, not started; its image is this one."""
    image = "%s/%s:1" % (start_registry(engine), name)
    engine.import_busybox(image, {"only-here": image})  # no other image may have this layer
    engine.docker("push", image)
    engine.docker("rmi", image)
    engine.docker("pull", image)
    engine.create(image, "--name", container)
    number = engine.docker("inspect", "-f", "{{.Image}}", container).stdout.decode().strip()
    engine.docker("rmi", "-f", image)  # unnamed, as a container has it
    engine.docker("rmi", "-f", number)  # and deleted
    engine.docker("pull", image)
    return image


# ---------------------------------------------------------------------- the root


def tool_env():
    return dict(os.environ, PATH=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def root_disk(suite):
    """Path of a file system with the suite's root and the engine in it: made once, and again when
    what it is made of changes."""
    packages = ",".join(PACKAGES)
    recipe = "%s %d %s" % (packages, DISK_SIZE, MAKE_DISK)
    mark = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    kind = "current-%s-%s-" % (suite, os.uname().machine)

    def build(path):
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache_dir()) as folder:
            packed, disk = os.path.join(folder, "root.tar"), os.path.join(folder, "disk")
            build_debian(suite, debian_source()[1], packed, ["--include=" + packages])
            with open(disk, "wb") as f:
                f.truncate(DISK_SIZE)
            made = subprocess.run(
                [need("unshare", "util-linux"), "--mount", "sh", "-c", MAKE_DISK, disk, packed],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=tool_env(),
            )
            if made.returncode:
                raise CannotRun(
                    "no loop mount here:\n%s" % made.stdout.decode(errors="replace").strip()
                )
            os.rename(disk, path)
        for old in glob.glob(os.path.join(cache_dir(), kind + "*")):
            if old != path:
                os.unlink(old)

    return cached_root("%s%s.ext4" % (kind, mark), build)


# ---------------------------------------------------------------------- as a program


def attach(folder):
    """The engine that `start` has left running in a folder."""
    engine = CurrentEngine(folder=folder)
    engine.dir = os.path.realpath(folder)
    with open(os.path.join(folder, "pids")) as f:
        holder, init = [int(word) for word in f.read().split()]
    if os.path.exists(
        "/proc/%d/root/run/entered" % init
    ):  # else the number may be another's by now
        engine.init = init
    engine.holder = Foreign(holder)
    return engine


class Foreign:
    """The holder where another process is its parent."""

    def __init__(self, pid):
        self.pid = pid

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            with open("/proc/%d/cmdline" % self.pid, "rb") as f:
                ours = b"unshare" in f.read()
            if ours:
                os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        wait_until(lambda: not os.path.exists("/proc/%d/root/bin" % self.pid), "end of the holder")


def main(verb, folder, *words):
    if verb == "start":
        suite, store, repository = (words + ("trixie", "containerd", REPOSITORY)[len(words) :])[:3]
        try:
            CurrentEngine(suite, store, folder=folder, repository=repository).start()
        except CannotRun as reason:
            sys.exit("no current engine here: %s" % reason)
        return
    engine = attach(folder)
    if verb == "stop":
        engine.stop()
        return
    argv = engine.inside() + list(words or ("bash",))
    os.execve(argv[0], argv, engine.env(TERM=os.environ.get("TERM", "dumb")))


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("start", "stop", "enter"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
