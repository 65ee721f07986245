"""A private, real Docker engine for the tests, the demo and the benchmark.

    with PrivateEngine() as engine:
        image = engine.import_busybox()
        web = engine.run(image, "--name", "web")
        engine.docker("exec", web, "true")

Its sockets, data and containers live below one temporary directory; the host's own daemon, its
settings and its containerd are never spoken to.  Run as a program, it starts and stops one engine
and says whether that works here. Python 3.6 and the standard library, like dockfix.py itself."""

import contextlib
import fcntl
import glob
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading

# the folder of what all rings use
sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import is_zombie, read_bytes, wait_until

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # after `su`, root's PATH has no sbin
SLEEP_FOREVER = "2147483647"
PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nuser:x:1000:1000::/tmp:/bin/sh\n"
)
GROUP = "root:x:0:\ndaemon:x:1:\nshadow:x:42:\nuser:x:1000:\n"
SHADOW = "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nuser:!:19000:0:99999:7:::\n"
ACCOUNTS = {"etc/passwd": PASSWD, "etc/group": GROUP, "etc/shadow": SHADOW}
USERNS_BASE = 500000


def skip_or_fail(what, reason):
    """Skip the test with the reason; where a machine has been made for these tests, that is a
    failure."""
    import pytest  # the demo and the benchmarks have none

    text = "no %s: %s" % (what, reason)
    if os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def bench_in(place, work):
    """Exit code of a benchmark: work(one) with `place() as one`; 1 where there can be none here."""
    try:
        with place() as one:
            work(one)
    except CannotRun as reason:
        print("the benchmark cannot run here: %s" % reason, file=sys.stderr)
        return 1
    return 0


class CannotRun(Exception):
    """No private engine on this machine; the text says what would be needed."""


def need(program, package):
    """Path of a program, or CannotRun naming the Debian package that has it."""
    path = shutil.which(program) or shutil.which(program, path=SYSTEM_PATH)
    if not path:
        raise CannotRun("needs %s (Debian: apt-get install %s)" % (program, package))
    return path


def tail(path, lines=5):
    """The last lines of a log, for a message."""
    try:
        with open(path, errors="replace") as f:
            return "".join(f.readlines()[-lines:])
    except OSError:
        return ""


def mounts_below(directory):
    """Mount points at or below a directory, deepest first."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as f:
        points = [
            re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), line.split()[4])
            for line in f
        ]
    return sorted(
        (p for p in points if p == directory or p.startswith(directory + "/")),
        key=len,
        reverse=True,
    )


@contextlib.contextmanager
def undisturbed():
    """A second Ctrl-C must not interrupt the cleaning up, which is bounded."""
    main = threading.current_thread() is threading.main_thread()
    old = {
        n: signal.signal(n, signal.SIG_IGN)
        for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if main
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def end_leftovers(ids, marks=()):
    """What a daemon that died left: shims (they name its directory: marks), the containers'
    processes, their cgroups."""
    cgroups = [
        c
        for i in ids
        for c in glob.glob("/sys/fs/cgroup/docker/%s" % i)
        + glob.glob("/sys/fs/cgroup/*/*/*%s*" % i)
    ]
    marks = [i.encode() for i in ids] + list(marks)
    for cgroup in cgroups:  # what is paused dies only when thawed
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            with contextlib.suppress(OSError), open(os.path.join(cgroup, name), "r+") as f:
                f.write(value)

    def killed():
        found = False
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                text = b"".join(
                    read_bytes("/proc/%s/%s" % (pid, name)) for name in ("cmdline", "cgroup")
                )
                if (
                    int(pid) != os.getpid()
                    and any(mark in text for mark in marks)
                    and not is_zombie(pid)
                ):
                    os.kill(int(pid), signal.SIGKILL)
                    found = True
        return not found

    wait_until(killed, "end of the containers' processes")
    for cgroup in cgroups:
        with contextlib.suppress(OSError):
            os.rmdir(cgroup)


class Engine:
    """What the tests do with an engine by its docker client, wherever that engine is."""

    handlers = None  # of signals, as they were before

    def docker_command(self):
        """The words that start the docker client."""
        raise NotImplementedError

    def env(self, **more):
        """The environment for docker and for dockfix."""
        raise NotImplementedError

    def docker(self, *args, input=None, stdin=subprocess.DEVNULL, check=True, timeout=300):
        """Run the docker client; returns a CompletedProcess with bytes.  A failure shows both
        outputs.

        input: bytes; or stdin: a file.
        """
        feed = {"stdin": stdin} if input is None else {"input": input}
        done = subprocess.run(
            self.docker_command() + [str(a) for a in args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env(),
            timeout=timeout,
            **feed,
        )
        if check and done.returncode:
            raise RuntimeError(
                "docker %s: exit %d\n%s%s"
                % (
                    " ".join(map(shlex.quote, map(str, args))),
                    done.returncode,
                    done.stdout.decode(errors="replace"),
                    done.stderr.decode(errors="replace"),
                )
            )
        return done

    def catch_signals(self):
        """SIGTERM and SIGHUP end Python without its `finally` blocks; make exceptions of them."""
        if threading.current_thread() is threading.main_thread():
            self.handlers = {}
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    self.handlers[number] = signal.signal(
                        number, lambda n, frame: sys.exit(128 + n)
                    )

    def release_signals(self):
        for number, handler in (self.handlers or {}).items():
            signal.signal(number, handler)
        self.handlers = {}

    def build(self, tag, text, folder):
        """BuildKit builds an image of a Dockerfile, by the first docker client here that can (newer
        ones need buildx for it), or CannotRun."""
        with open(os.path.join(folder, "Dockerfile"), "w") as f:
            f.write(text)
        for client in filter(os.path.exists, (self.client, "/usr/bin/docker")):
            built = subprocess.run(
                [client, "build", "-t", tag, "--network", "none", folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self.env(DOCKER_BUILDKIT="1"),
            )
            if not built.returncode:
                return
            if b"buildx" not in built.stdout and b"BuildKit" not in built.stdout:
                raise RuntimeError("docker build: %s" % built.stdout.decode(errors="replace"))
        raise CannotRun(
            "no docker client here can build: %s"
            % built.stdout.decode(errors="replace").strip()[:100]
        )

    def run(self, image, *options, command=()):
        """`docker run -d` without a network; returns the full id."""
        return (
            self.docker("run", "-d", "--network", "none", *((*options, image, *tuple(command))))
            .stdout.decode()
            .strip()
        )

    def create(self, image, *options, command=()):
        return (
            self.docker("create", "--network", "none", *((*options, image, *tuple(command))))
            .stdout.decode()
            .strip()
        )

    def import_tar(self, name, tar, command, changes=()):
        """`docker import` of tar bytes, or of the file with that path; returns the image's name."""
        more = [word for change in changes for word in ("-c", change)]
        words = ", ".join('"%s"' % word for word in command)
        argv = ["import", "-c", "CMD [%s]" % words, *more, "-", name]
        if isinstance(tar, bytes):
            self.docker(*argv, input=tar)
        else:
            with open(tar, "rb") as f:
                self.docker(*argv, stdin=f)
        return name

    def import_busybox(self, name="dockfix-test/busybox", files=None, changes=()):
        """A root with a shell and busybox's applets (Debian's has no chpasswd).

        files: {path: text or bytes} to add or, with None, to leave out; changes: Dockerfile lines
        (`USER 1000`)."""
        return self.import_tar(name, busybox_tar(files), ["/bin/sleep", SLEEP_FOREVER], changes)

    def import_scratch(self, name="dockfix-test/scratch", files=None, changes=()):
        """One static program that sleeps, no shell, and its own account files.

        The program is busybox under the name of one applet, so it can be nothing else.
        """
        content = dict(ACCOUNTS, **(files or {}))
        return self.import_tar(
            name, make_tar(content, {"sleep": static_busybox()}), ["/sleep", SLEEP_FOREVER], changes
        )

    def import_debian(self, name="dockfix-test/debian", changes=(), suite=None):
        """A Debian-like minbase root with PAM and shadow's chpasswd (suite: not the host's own);
        built once, then kept below ~/.cache."""
        return self.import_tar(name, debian_tar(suite), ["/bin/sleep", SLEEP_FOREVER], changes)


class PrivateEngine(Engine):
    """A dockerd and a containerd of one's own, from `with` until its end.

    extra:    more arguments for dockerd userns:   remap the containers' ids to USERNS_BASE and up
    own_etc:  the daemons see an /etc of their own, where daemon.json says the root and the pid
    file, and a `service` (and `systemctl`) on PATH stops and starts this dockerd: for what changes
    the daemon's settings.  See `inside`. client:   the docker command to use (default:
    $DOCKFIX_TEST_CLIENT, else docker from PATH)"""

    def __init__(self, extra=(), userns=False, client=None, own_etc=False):
        self.extra, self.userns, self.own_etc = list(extra), userns, own_etc
        self.client = client or os.environ.get("DOCKFIX_TEST_CLIENT")
        self.dir = self.root = ""
        self.processes = []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.stop()

    # ------------------------------------------------------------------ start and stop

    def start(self):
        if os.geteuid() != 0:
            raise CannotRun("needs root: dockerd mounts file systems and makes namespaces")
        dockerd, containerd = need("dockerd", "docker.io"), need("containerd", "docker.io")
        self.client = os.path.abspath(self.client) if self.client else need("docker", "docker.io")
        if not os.access(self.client, os.X_OK):
            raise CannotRun("needs the docker client %s" % self.client)
        self.catch_signals()
        try:
            self.dir = os.path.realpath(tempfile.mkdtemp(prefix="dockfix-test-"))
            self.root = (
                self.path("root", "%d.%d" % (USERNS_BASE, USERNS_BASE))
                if self.userns
                else self.path("root")
            )
            self.lay_out()
            # A containerd of our own: where the host runs one, dockerd would otherwise join it.
            enter = (
                self.namespace_with_subids()
                if self.userns
                else self.namespace_with_etc() if self.own_etc else []
            )
            self.spawn("containerd", [*enter, containerd, "--config", self.path("containerd.toml")])
            wait_until(
                lambda: self.alive() and os.path.exists(self.path("containerd.sock")),
                "socket of containerd",
            )
            place = (
                ["--config-file", "/etc/docker/daemon.json"]
                if self.own_etc
                else ["--config-file", self.path("daemon.json"), "--data-root", self.path("root")]
            )
            argv = (
                self.inside()
                + [
                    dockerd,
                    "--containerd",
                    self.path("containerd.sock"),
                    "--exec-root",
                    self.path("exec"),
                    "-H",
                    "unix://" + self.path("docker.sock"),
                    "--bridge=none",
                    "--iptables=false",
                ]
                + place
                + ([] if self.own_etc else ["-p", self.path("pid")])
                + (["--userns-remap=daemon:daemon"] if self.userns else [])
                + self.extra
            )
            if self.own_etc:
                self.write_service(argv)
            self.spawn("dockerd", argv)
            wait_until(
                lambda: self.alive() and self.docker("version", check=False).returncode == 0,
                "answer from dockerd",
                120,
            )
        except BaseException:
            self.stop()
            raise

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def lay_out(self):
        # A container's root must be reachable for remapped ids, so the directory is open, its
        # content is dockerd's.
        os.chmod(self.dir, 0o711)
        os.makedirs(self.path("bin"))
        os.makedirs(self.path("client"))
        os.symlink(self.client, self.path("bin", "docker"))
        for name, text in {
            "daemon.json": "{}\n",
            "subid": "daemon:%d:65536\n" % USERNS_BASE,
            "containerd.toml": (
                'version = 2\nroot = "{0}/containerd"\nstate = "{0}/containerd.state"\n'
                'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                '[grpc]\naddress = "{0}/containerd.sock"\n'.format(self.dir)
            ),
        }.items():
            with open(self.path(name), "w") as f:
                f.write(text)

    def namespace_with_subids(self):
        """For remapping, the daemons see an /etc/subuid of their own: the host's stays as it is."""
        for path in ("/etc/subuid", "/etc/subgid"):
            if not os.path.exists(path):
                raise CannotRun("needs the file %s (may be empty)" % path)
        return [
            need("unshare", "util-linux"),
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            'for f in /etc/subuid /etc/subgid; do mount --bind "$0" $f || exit; done; exec "$@"',
            self.path("subid"),
        ]

    def namespace_with_etc(self):
        """The daemons' /etc is an overlay over the host's, which stays as it is."""
        os.makedirs(self.path("etc", "upper", "docker"))
        os.makedirs(self.path("etc", "work"))
        with open(self.path("etc", "upper", "docker", "daemon.json"), "w") as f:
            f.write(
                '{"data-root": "%s", "pidfile": "%s"}\n' % (self.path("root"), self.path("pid"))
            )
        return [
            need("unshare", "util-linux"),
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            (
                'mount -t overlay overlay -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work" /etc'
                ' || exit; exec "$@"'
            ),
            self.path("etc"),
        ]

    def inside(self):
        """What to put before a command, so that it sees what the daemons see."""
        return (
            [need("nsenter", "util-linux"), "--mount", "--target", str(self.processes[0].pid)]
            if self.userns or self.own_etc
            else []
        )

    def write_service(self, argv):
        """`service docker VERB` and `systemctl VERB docker.service` for this dockerd."""
        with open(self.path("bin", "service"), "w") as f:
            f.write(
                """#!/bin/sh
[ "$1" = docker ] || exit 1
# the first one stays a zombie of the tests'
alive() { [ -r "/proc/$1/stat" ] && ! grep -q ') Z ' "/proc/$1/stat"; }
pid=$(cat %(pid)s 2>/dev/null) && alive "$pid" || pid=
case $2 in
start) [ -n "$pid" ] && exit 0
    setsid %(argv)s >>%(log)s 2>&1 </dev/null &
    n=300
    until DOCKER_HOST=%(host)s %(client)s version >/dev/null 2>&1; do
        [ $((n -= 1)) -gt 0 ] && kill -0 $! || exit 1
        sleep 0.1
    done ;;
stop) [ -z "$pid" ] && exit 0
    kill "$pid"; n=1200; while alive "$pid"; do [ $((n -= 1)) -gt 0 ] || exit 1; sleep 0.1; done ;;
status) [ -n "$pid" ] ;;
*) exit 1 ;;
esac
"""
                % {
                    "pid": shlex.quote(self.path("pid")),
                    "argv": " ".join(map(shlex.quote, argv)),
                    "log": shlex.quote(self.path("dockerd.log")),
                    "host": shlex.quote("unix://" + self.path("docker.sock")),
                    "client": shlex.quote(self.client),
                }
            )
        with open(self.path("bin", "systemctl"), "w") as f:
            f.write(
                "#!/bin/sh\ncase $1 in daemon-reload|reset-failed) exit 0 ;;\nshow) echo"
                ' "MainPID=$(cat %s 2>/dev/null || echo 0)"; exit 0 ;;\nis-active) [ "$2" ='
                " docker.service ] && exec service docker status; exit 3 ;; esac\nexec service"
                ' "${2%%.service}" "$1"\n' % shlex.quote(self.path("pid"))
            )
        for name in ("service", "systemctl"):
            os.chmod(self.path("bin", name), 0o755)

    def spawn(self, name, argv):
        # In a session of its own: Ctrl-C is for the caller, who then stops the engine in good
        # order.
        with open(self.path(name + ".log"), "wb") as log:
            self.processes.append(
                subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=self.env(),
                )
            )

    def alive(self):
        for process, name in zip(self.processes, ("containerd", "dockerd")):
            if process.poll() is not None:
                raise CannotRun(
                    "%s ended with %s:\n%s"
                    % (name, process.returncode, tail(self.path(name + ".log")))
                )
        return True

    def stop(self):
        """Leave nothing behind: containers, daemons, mounts, files.  Can be called again, and in
        any state."""
        with undisturbed():
            if not self.dir:
                return
            self.kill_containers()
            for process in reversed(self.processes):
                self.end(process)
            self.kill_leftovers()
            for point in mounts_below(self.dir):
                subprocess.call(["umount", "-l", point], env=self.env())
            left = mounts_below(self.dir)
            if left:  # removing files through a mount could reach the host's
                raise RuntimeError("still mounted, so not removed: " + " ".join(left))
            shutil.rmtree(self.dir)
            self.dir, self.processes = "", []
        self.release_signals()

    def kill_containers(self):
        """At once: dockerd's own shutdown would wait ten seconds for each that ignores SIGTERM."""
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            running = self.docker("ps", "-q", check=False, timeout=20).stdout.decode().split()
            if running:
                self.docker("kill", *running, check=False, timeout=60)

    @staticmethod
    def end(process):
        for deed in (process.terminate, process.kill):
            if process.poll() is None:
                deed()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)

    def kill_leftovers(self):
        ids = [os.path.basename(p) for p in glob.glob(os.path.join(self.root, "containers", "*"))]
        end_leftovers(ids, [os.fsencode(self.dir)])

    # ------------------------------------------------------------------ use

    def env(self, **more):
        """The environment in which `docker`, and so dockfix, means this engine."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "DOCKFIX_"))}
        env.update(
            DOCKER_HOST="unix://" + self.path("docker.sock"),
            DOCKER_CONFIG=self.path("client"),
            PATH=os.pathsep.join([self.path("bin"), env.get("PATH", os.defpath), SYSTEM_PATH]),
        )
        env.update(more)
        return env

    def docker_command(self):
        return [self.client]

    def import_musl(self, name="dockfix-test/musl"):
        """musl and BusyBox with su and chpasswd (`musl_tar`)."""
        return self.import_tar(name, musl_tar(), ["/bin/sleep", SLEEP_FOREVER])


# ---------------------------------------------------------------------- processes and roots


def make_tar(files, programs=None, links=None, dirs=(), setuid=()):
    """Tar bytes.  files: path -> text, bytes or None (left out); programs: path -> host path;
    links: path -> target; setuid: names of programs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def add(path, data=b"", **fields):
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o755
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))

        seen = set()
        wanted = ["proc", "sys", "dev", "root", "tmp", "var", *list(dirs)]
        for path in wanted + [
            os.path.dirname(p) for p in list(files) + list(programs or {}) + list(links or {})
        ]:
            parts = path.split("/")
            for parent in ("/".join(parts[: n + 1]) for n in range(len(parts))):
                if parent and parent not in seen:
                    seen.add(parent)
                    add(parent, type=tarfile.DIRTYPE, mode=0o1777 if parent == "tmp" else 0o755)
        for path, host in (programs or {}).items():
            mode = 0o4755 if os.path.basename(path) in setuid else 0o755
            add(path, read_bytes(host), mode=mode)
        for path, target in (links or {}).items():
            add(path, type=tarfile.SYMTYPE, linkname=target)
        for path, data in files.items():
            if data is not None:
                secret = {"mode": 0o640, "gid": 42} if path == "etc/shadow" else {"mode": 0o644}
                add(path, data.encode() if isinstance(data, str) else data, **secret)
    return out.getvalue()


def static_busybox():
    path = need("busybox", "busybox-static")
    if subprocess.call(["ldd", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
        raise CannotRun("needs a static busybox (Debian: apt-get install busybox-static)")
    return path


def busybox_tar(files=None, programs=None):
    busybox = static_busybox()
    applets = subprocess.check_output([busybox, "--list"]).decode().split()
    links = {"bin/" + name: "busybox" for name in applets if name != "busybox"}
    return make_tar(
        dict(ACCOUNTS, **(files or {})), dict({"bin/busybox": busybox}, **(programs or {})), links
    )


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = os.path.join(base, "dockfix-tests")
    os.makedirs(path, exist_ok=True)
    return path


def debian_source():
    """(suite, mirror): the host's own, as apt knows them, so that a machine with a local mirror
    uses that."""
    release = dict(
        line.rstrip().split("=", 1)
        for line in read_bytes("/etc/os-release").decode().splitlines()
        if "=" in line
    )
    suite = release.get("VERSION_CODENAME", "stable").strip('"')
    if shutil.which("apt-get"):
        listed = subprocess.check_output(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(REPO_URI) $(RELEASE) $(COMPONENT)",
                "Created-By: Packages",
            ]
        ).decode()
        for line in listed.splitlines():
            uri, name, component = line.rsplit(" ", 2)
            if (name, component) == (suite, "main") and uri.startswith("http"):
                return suite, [uri]
    return suite, []


def debian_tar(suite=None):
    """Path of the cached root of the host's own suite or another one."""
    own, mirror = debian_source()
    suite = suite or own
    return cached_root(
        "%s-%s.tar" % (suite, os.uname().machine), lambda path: build_debian(suite, mirror, path)
    )


def cached_root(name, build):
    """Path of a file in the cache; the first caller builds it, others wait for the lock."""
    path = os.path.join(cache_dir(), name)
    with open(os.path.join(cache_dir(), "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            build(path)
    return path


def build_debian(suite, mirror, path, more=()):
    debootstrap = need("debootstrap", "debootstrap")
    work = tempfile.mkdtemp(prefix="build-", dir=cache_dir())
    root, log = os.path.join(work, "root"), os.path.join(work, "log")
    try:
        print(
            "building a %s root with debootstrap, once (about a minute) ..." % suite,
            file=sys.stderr,
            flush=True,
        )
        with open(log, "wb") as out:
            # In namespaces of its own: an interrupted debootstrap leaves no mounts and no processes
            # on the host.
            code = subprocess.call(
                [
                    need("unshare", "util-linux"),
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    debootstrap,
                    "--variant=minbase",
                    *list(more),
                    suite,
                    root,
                    *mirror,
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        if code:
            raise CannotRun(
                "needs a Debian root; debootstrap ended with %d:\n%s" % (code, tail(log))
            )
        made = os.path.join(work, "root.tar")
        subprocess.check_call(
            [
                "tar",
                "--numeric-owner",
                "-C",
                root,
                "-cf",
                made,
                "--exclude=./dev/*",
                "--exclude=./proc/*",
                "--exclude=./sys/*",
                "--exclude=./var/cache/apt/archives/*",
                "--exclude=./var/lib/apt/lists/*",
                "--exclude=./usr/share/doc/*",
                "--exclude=./usr/share/locale/*",
                ".",
            ]
        )
        os.rename(made, path)
    finally:
        shutil.rmtree(work)


MUSL_APPLETS = (
    "ASH SH_IS_ASH ASH_ECHO ASH_TEST ASH_PRINTF SU CHPASSWD PASSWD ID SLEEP CAT GREP RM SED STAT LS"
    " TRUE"
)
MUSL_OPTIONS = (
    "BUSYBOX FEATURE_INSTALLER LONG_OPTS FEATURE_SUID FEATURE_SHADOWPASSWDS USE_BB_CRYPT"
    " USE_BB_CRYPT_SHA SHOW_USAGE"
)
# BusyBox can read the account files itself or leave it to the C library: /bin/su does the first,
# /libc/su the second.
MUSL_KINDS = {"bin": "USE_BB_PWD_GRP USE_BB_SHADOW", "libc": ""}


def musl_tar():
    """Path of a cached root with musl and BusyBox, built of Debian's own source, once."""
    path = os.path.join(cache_dir(), "musl-%s.tar" % os.uname().machine)
    with open(os.path.join(cache_dir(), "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            build_musl(path)
    return path


def build_musl(path):
    need("gcc", "gcc")
    compiler = need("musl-gcc", "musl-tools")
    loader = (glob.glob("/lib/ld-musl-*.so.1") or [""])[0]
    if not loader:
        raise CannotRun("needs musl's loader (Debian: apt-get install musl)")
    work = tempfile.mkdtemp(prefix="build-", dir=cache_dir())
    try:
        print("building BusyBox with musl, once (about a minute) ...", file=sys.stderr, flush=True)
        source = busybox_source(work)
        programs = {loader.lstrip("/"): loader}
        links = {}
        for folder, options in MUSL_KINDS.items():
            program = build_busybox(source, compiler, options)
            programs[folder + "/busybox"] = shutil.copy(program, os.path.join(work, folder))
            for applet in subprocess.check_output([program, "--list"]).decode().split():
                links["%s/%s" % (folder, applet)] = "busybox"
        made = os.path.join(work, "root.tar")
        with open(made, "wb") as f:
            f.write(make_tar(dict(ACCOUNTS), programs, links, setuid=("busybox",)))
        os.rename(made, path)
    finally:
        shutil.rmtree(work)


def busybox_source(work):
    """Debian's source of BusyBox, unpacked; apt's own lists and settings are left alone."""
    suite, mirror = debian_source()
    if not mirror:
        raise CannotRun("needs Debian's source of busybox, and apt knows no mirror")
    places = {name: os.path.join(work, name) for name in ("lists/partial", "archives/partial")}
    for place in places.values():
        os.makedirs(place)
    listed = os.path.join(work, "sources.list")
    with open(listed, "w") as f:
        f.write("deb-src %s %s main\n" % (mirror[0].rstrip("/"), suite))
    settings = {
        "Dir::Etc::sourcelist": listed,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": os.path.join(work, "lists"),
        "Dir::Cache": work,
        "APT::Sandbox::User": "root",
    }
    options = [word for pair in settings.items() for word in ("-o", "%s=%s" % pair)]
    for words in (["update"], ["source", "--download-only", "busybox"]):
        done = subprocess.run(
            ["apt-get", "-qq", *options, *words],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise CannotRun("needs Debian's source of busybox: %s" % done.stdout.decode()[-300:])
    archives = glob.glob(os.path.join(work, "busybox_*.orig.tar.*"))
    (archive,) = [one for one in archives if not one.endswith(".asc")]
    # Python's own tar knows bzip2; a small Debian has no program for it.
    subprocess.check_call([sys.executable, "-W", "ignore", "-m", "tarfile", "-e", archive, work])
    (source,) = glob.glob(os.path.join(work, "busybox-*"))
    return source


def build_busybox(source, compiler, options):
    """Path of a BusyBox with MUSL_APPLETS, built in its source folder."""
    headers = ["/usr/include", "/usr/include/%s-linux-gnu" % os.uname().machine]
    words = [compiler] + [word for one in headers for word in ("-idirafter", one)]
    make = ["make", "-C", source, "-j%d" % (os.cpu_count() or 1), "CC=" + " ".join(words)]
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "stdout": subprocess.PIPE}
    subprocess.run([*make, "allnoconfig"], check=True, **quiet)
    wanted = " ".join((MUSL_APPLETS, MUSL_OPTIONS, options)).split()
    config = os.path.join(source, ".config")
    with open(config) as f:
        lines = [line for line in f if not any("CONFIG_%s " % name in line for name in wanted)]
    lines += ["CONFIG_%s=y\n" % name for name in wanted]
    with open(config, "w") as f:
        f.write("".join(lines) + 'CONFIG_FEATURE_DEFAULT_PASSWD_ALGO="sha512"\n')
    answers = dict(quiet, input=b"\n" * 2000)
    del answers["stdin"]
    subprocess.run([*make, "oldconfig"], check=True, **answers)
    built = subprocess.run([*make, "busybox"], **quiet)
    if built.returncode:
        raise CannotRun("BusyBox is not built with musl: %s" % built.stdout.decode()[-500:])
    return os.path.join(source, "busybox")


def main():
    try:
        with PrivateEngine() as engine:
            print(
                "docker %s"
                % engine.docker(
                    "version", "--format", "client {{.Client.Version}}, engine {{.Server.Version}}"
                )
                .stdout.decode()
                .strip()
            )
    except CannotRun as reason:
        print("no private docker engine here: %s" % reason)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
