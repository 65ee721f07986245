"""Ring one: pure functions, and whole commands against a fake docker on PATH (fake_docker.py).
Python 3.6, pytest 7.0.1.

`dockfix` is the program, imported once.  `box` is a sandbox with the fake docker, some containers
and a state folder: `box.run("chpasswd", "--all", stdin=b"root:x\n")` runs a whole command in a
forked child (real descriptors, real signals, real docker processes, no start-up cost);
`box.quick(...)` is the same with the fake docker called as a function, for what has nothing to do
with processes; `box.script(...)` runs the file itself in a new Python."""

import fcntl
import io
import json
import os
import py_compile
import pty
import random
import signal
import subprocess
import sys
import tarfile
import termios
import threading
import time
import traceback

import pytest

# the folder of what all rings use
sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import PROGRAM, Run, is_zombie, load_program, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))

SHADOW = (
    b"root:*:19000:0:99999:7:::\n"
    b"daemon:*:19000:0:99999:7:::\n"
    b"app:!:19001:1:90:7:14:20000:\n"
    b"locked:!$6$salt$"
    + b"a" * 86
    + b":19000:0:99999:7:::\n# a comment that is no entry\nlast:!!:::::::"
)
PASSWD = (
    b"root:x:0:0:root:/root:/bin/sh\n"
    b"daemon:x:1:1::/:/bin/false\n"
    b"app:x:1000:1000::/tmp:/bin/sh\n"
    b"locked:x:1001:1001::/tmp:/bin/sh\n"
    b"last:x:1002:1002::/tmp:/bin/sh\n"
)
LOCK = threading.Lock()


def pytest_collection_modifyitems(config, items):
    """DOCKFIX_PART=K/N: every Nth test, from test K modulo N on."""
    if os.environ.get("DOCKFIX_PART"):
        first, step = map(int, os.environ["DOCKFIX_PART"].split("/"))
        config.hook.pytest_deselected(
            items=[item for number, item in enumerate(items) if number % step != first % step]
        )
        items[:] = items[first % step :: step]


@pytest.fixture(scope="session")
def dockfix():
    return load_program()


@pytest.fixture
def load_again():
    """Makes a second module from the same file."""
    return load_program


def containers_of(dockfix):
    """data -> what container commands take from docker inspect's answer."""
    return lambda data: [
        dockfix.parse_answer(one, dockfix.parse_container) for one in dockfix.parse_objects(data)
    ]


@pytest.fixture
def rng(request):
    """Seeded by the test's name: a failure comes back on the next run."""
    return random.Random(request.node.nodeid.split("/")[-1])


class Result(Run):
    """What a run said with the fake docker, whose ids are made up."""

    container_ids = False

    @property
    def json(self):
        return self.doc

    def rows(self):
        return {row["target"]: row for row in self.json["results"]}

    def statuses(self):
        return {row["target"]: row["status"] for row in self.json["results"]}


class Call:
    def __init__(self, entry):
        self.__dict__.update(entry)
        self.words = [w.decode("utf-8", "surrogateescape") for w in self.argv]
        self.command = self.words[0] if self.words else ""

    def __repr__(self):
        return "docker " + " ".join(self.words)


def pid_alive(pid):
    try:
        return not is_zombie(pid)
    except OSError:
        return False


def die_at_step(module, number, side):
    """SIGKILL "before" or "after" the step of that number; None: at none."""
    real, count = module.do_step, [0]

    def do_step(host, step, tick):
        count[0] += 1
        if count[0] == number and side == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(host, step, tick)
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    module.do_step = do_step


def reap(pid, seconds):
    """Return code of a child as subprocess counts it; killed when it takes too long."""
    deadline = time.time() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if time.time() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("still running after %s s" % seconds)
        time.sleep(0.002)


def fresh_streams(encoding=None):
    """sys.stdin, stdout and stderr as a starting Python makes them over descriptors 0, 1 and 2."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            raw = io.open(fd, mode + "b", buffering=-1, closefd=False)
        except OSError:
            stream = None
        else:
            errors = "backslashreplace" if fd == 2 else "strict"
            stream = io.TextIOWrapper(
                raw,
                encoding=encoding or "utf-8",
                errors=errors,
                line_buffering=fd == 2 or os.isatty(fd),
            )
        setattr(sys, name, stream)
        setattr(sys, "__%s__" % name, stream)


def be_the_program(module, argv, env, prelude, encoding):
    """In the forked child: become `python3 dockfix.py ARGV`; never returns."""
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )
        sys.excepthook = sys.__excepthook__
        os.environ.clear()
        os.environ.update(env)
        fresh_streams(encoding)
        sys.argv = [module.__file__, *list(argv)]
        if prelude:
            prelude(module)
        try:
            code = module.run_as_program()
        except SystemExit as e:
            code = e.code
        except KeyboardInterrupt:
            traceback.print_exc()
            code = 130
        except BaseException:
            traceback.print_exc()
            code = 1
        if not isinstance(code, int):
            code = 0 if code is None else 1
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except (OSError, ValueError):
            code = 120  # what a Python does whose last flush fails
    finally:
        os._exit(code)


class Box:
    """A sandbox: bin/docker (the fake), fs/NAME/etc/shadow, state/, and what `docker` was asked in
    calls."""

    def __init__(self, path, module, compiled, fake):
        self.path, self.module, self.fake = str(path), module, fake
        for name in ("bin", "fs", "home", "tmp"):
            os.makedirs(self.at(name))
        self.state = self.at("state")
        self.world = {
            "containers": [],
            "filters": {},
            "rules": [],
            "userns": 0,
            "client": "28",
            "info_text": "",
            "info_json": json.dumps(
                {
                    "ServerVersion": "20.10.24",
                    "DockerRootDir": "/var/lib/docker",
                    "Driver": "overlay2",
                    "SecurityOptions": ["name=seccomp,profile=default"],
                }
            ),
        }
        self.program(
            "docker", "exec '%s' -IS '%s' '%s' \"$@\"" % (sys.executable, compiled, self.path)
        )
        self.env = {
            "PATH": self.at("bin") + os.pathsep + os.defpath.lstrip(":"),
            "HOME": self.at("home"),
            "TMPDIR": self.at("tmp"),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
        }

    def at(self, *names):
        return os.path.join(self.path, *names)

    def program(self, name, body):
        """A sh script on the sandbox's PATH."""
        with open(self.at("bin", name), "w") as f:
            f.write("#!/bin/sh\n" + body + "\n")
        os.chmod(self.at("bin", name), 0o755)
        return self.at("bin", name)

    def file(self, name, data, mode=0o600):
        with open(self.at(name), "wb") as f:
            f.write(data)
        os.chmod(self.at(name), mode)
        return self.at(name)

    # ---- containers

    def container(
        self,
        name,
        status="Up 2 hours",
        shadow=SHADOW,
        passwd=PASSWD,
        chpasswd="shadow-utils",
        inspect=None,
        host=None,
        aliases=(),
        **more,
    ):
        """A container of the world; `inspect` and `host` are laid over the inspect object and its
        HostConfig."""
        number = len(self.world["containers"])
        full_id = more.pop("id", "") or "%02x" % (0xA0 + number % 96) + "%062x" % (
            number * 7919 + 1
        )
        root = self.at("fs", name)
        os.makedirs(os.path.join(root, "etc"))
        for file, data, mode in (("shadow", shadow, 0o640), ("passwd", passwd, 0o644)):
            if data is not None:
                with open(os.path.join(root, "etc", file), "wb") as f:
                    f.write(data)
                os.chmod(f.name, mode)
        state = (
            "paused"
            if "(Paused)" in status
            else {"Up": "running", "Re": "restarting", "Cr": "created"}.get(status[:2], "exited")
        )
        document = {
            "Id": full_id,
            "Name": "/" + name,
            "Created": "2024-01-01T00:00:00Z",
            "Path": "sleep",
            "Args": [],
            "State": {
                "Status": state,
                "Running": state in ("running", "paused", "restarting"),
                "Paused": state == "paused",
                "Restarting": state == "restarting",
                "Pid": 0,
                "Dead": False,
            },
            "Image": "sha256:" + "1" * 64,
            "Driver": "overlay2",
            "MountLabel": "",
            "Mounts": [],
            "HostConfig": dict(
                {
                    "Binds": None,
                    "Tmpfs": None,
                    "ReadonlyRootfs": False,
                    "UsernsMode": "",
                    "AutoRemove": False,
                    "NetworkMode": "none",
                },
                **(host or {}),
            ),
            "GraphDriver": {
                "Name": "overlay2",
                "Data": {
                    "UpperDir": self.at("layers", name, "diff"),
                    "MergedDir": "",
                    "LowerDir": "",
                },
            },
            "Config": {"User": "", "Labels": {}, "Env": ["PATH=/bin"], "Image": "img"},
        }
        document.update(inspect or {})
        one = dict(
            {
                "id": full_id,
                "name": name,
                "names": ",".join([*list(aliases), name]),
                "status": status,
                "json": json.dumps(document),
                "chpasswd": chpasswd,
                "missing_rc": 126,
                "deaf": 0,
                "readonly": False,
                "truncates": 0,
                "rm": True,
                "answer": {},
            },
            **more,
        )
        self.world["containers"].append(one)
        return one

    def containers(self, *names, **more):
        return [self.container(name, **more) for name in names]

    def id(self, name):
        return next(c["id"] for c in self.world["containers"] if c["name"] == name)

    def shadow(self, name):
        with open(self.at("fs", name, "etc", "shadow"), "rb") as f:
            return f.read()

    def field(self, name, user=b"root", number=1):
        for line in self.shadow(name).split(b"\n"):
            if line.split(b":")[0] == user:
                return line.split(b":")[number]
        return None

    def rule(self, on, **rule):
        self.world["rules"].append(dict(rule, on=on))

    # ---- running

    def arguments(self, args, state=True):
        return (["--state", self.state] if state else []) + list(args)

    def start(
        self,
        args,
        stdin=b"",
        stdout=None,
        stderr=None,
        env=None,
        prelude=None,
        encoding=None,
        closed=(),
    ):
        """Fork and become dockfix; returns the pid.  stdin: bytes, or a descriptor.  `closed`:
        descriptors to close."""
        self.write_world()
        source = (
            stdin if isinstance(stdin, int) else os.open(self.file("stdin", stdin), os.O_RDONLY)
        )
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        out = os.open(self.at("stdout"), flags, 0o600) if stdout is None else stdout
        err = os.open(self.at("stderr"), flags, 0o600) if stderr is None else stderr
        environment = dict(self.env, **(env or {}))
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for number, fd in enumerate((source, out, err)):
                os.dup2(fd, number)
            os.closerange(3, 256)
            for fd in closed:
                os.close(fd)
            be_the_program(self.module, args, environment, prelude, encoding)
        for fd, given in (
            (source, isinstance(stdin, int)),
            (out, stdout is not None),
            (err, stderr is not None),
        ):
            if not given:
                os.close(fd)
        return pid

    def write_world(self):
        with open(self.at("world.new"), "w") as f:
            f.write(repr(self.world))
        os.rename(self.at("world.new"), self.at("world"))

    def outcome(self, pid, seconds=30):
        rc = reap(pid, seconds)
        return Result(rc, self.read("stdout"), self.read("stderr"))

    def read(self, name):
        if not os.path.exists(self.at(name)):
            return b""
        with open(self.at(name), "rb") as f:
            return f.read()

    def run(self, *args, **how):
        """A whole command; --state is put in front unless state=False."""
        seconds = how.pop("seconds", 30)
        state = how.pop("state", True)
        return self.outcome(self.start(self.arguments(args, state), **how), seconds)

    def quick(self, *args, **how):
        """As run, but every docker call is a function call: a tenth of the time."""
        given = how.pop("prelude", None)

        def prelude(module):
            module.run_child = self.in_process
            if given:
                given(module)

        return self.run(*args, prelude=prelude, **how)

    def in_process(self, host, argv, stdin, seconds, limit, inherit, enough=0, flow=None):
        """Stands for dockfix.run_child: docker's answer from fake_docker.respond."""
        if argv[0] == "stat":
            return self.module.Answer(0, b"/\n", b"", 2, 0, 0.001, False)
        assert argv[0] == "docker", argv
        with LOCK:
            rule, rc, out, err = self.fake.respond(
                self.path, self.world, list(argv[1:]), stdin or b"", os.environb
            )
        assert not set(rule) & {
            "hang",
            "sleep",
            "linger",
            "await",
        }, "these rules need processes: use run"
        kept = out[: max(limit, enough)] if enough else out[:limit]
        return self.module.Answer(
            -9 if enough and len(out) > enough else rc,
            kept,
            err[:limit],
            len(out),
            len(err),
            0.001,
            False,
        )

    def script(self, *args, **how):
        """The same through a real `python3 dockfix.py`."""
        return self.spawn(
            [
                sys.executable,
                how.pop("program", PROGRAM),
                *self.arguments(args, how.pop("state", True)),
            ],
            **how,
        )

    def spawn(self, argv, stdin=b"", env=None, cwd=None, seconds=30, stdout=subprocess.PIPE):
        self.write_world()
        p = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=cwd or self.path,
            env=dict(self.env, **(env or {})),
        )
        try:
            out, err = p.communicate(stdin, timeout=seconds)
        except subprocess.TimeoutExpired:
            p.kill()
            p.communicate()
            raise AssertionError("still running after %s s: %r" % (seconds, argv)) from None
        return Result(p.returncode, out or b"", err)

    # ---- a docker that takes long

    def wrap_docker(self, shell):
        """Shell text stands for docker; $INNER is the fake one."""
        with open(self.at("bin", "docker")) as f:
            inner = self.program("docker-inner", f.read().split("\n", 1)[1])
        self.program("docker", "INNER=%s\n%s" % (inner, shell))

    def was_cut_off(self):
        """Of a docker with the rule `hang`: its process group was killed, and the process that left
        the group and holds the pipes was not waited for, or it would have ended."""
        client, in_group, left = eval(self.read("helpers").decode())
        try:
            wait_until(
                lambda: not pid_alive(client) and not pid_alive(in_group),
                "end of the process group",
            )
            return pid_alive(left)
        finally:
            os.kill(left, 9)

    # ---- what docker was asked

    def calls(self, command=None):
        found = [Call(eval(line)) for line in self.read("calls").decode("ascii").splitlines()]
        return [c for c in found if command is None or c.command == command]

    def forget(self):
        for name in os.listdir(self.path):
            if name == "calls" or name.startswith(("count.", "gone.")):
                os.unlink(self.at(name))

    def reset(self, shadow=SHADOW):
        """All plain containers as they were made, and no calls."""
        self.forget()
        for c in self.world["containers"]:
            with open(self.at("fs", c["name"], "etc", "shadow"), "wb") as f:
                f.write(shadow)

    def picture(self):
        """Every file of the sandbox but the records of the harness itself: name, type, mode, mtime,
        bytes."""
        seen = {}
        for folder, dirs, files in os.walk(self.path):
            for name in dirs + files:
                path = os.path.join(folder, name)
                if folder == self.path and (
                    name in ("calls", "stdin", "stdout", "stderr", "world")
                    or name.startswith("count.")
                ):
                    continue
                st = os.lstat(path)
                data = b""
                if os.path.isfile(path) and not os.path.islink(path):
                    with open(path, "rb") as f:
                        data = f.read()
                seen[path] = (
                    st.st_mode,
                    st.st_uid,
                    st.st_gid,
                    0 if os.path.isdir(path) else st.st_mtime,
                    st.st_ino,
                    data,
                )
        return seen


@pytest.fixture(scope="session")
def fake(tmp_path_factory):
    """fake_docker.py compiled once, with a line at the end that runs it."""
    folder = tmp_path_factory.mktemp("fake")
    with open(os.path.join(HERE, "fake_docker.py")) as f:
        source = f.read()
    path = str(folder / "fake.py")
    with open(path, "w") as f:
        f.write(source + "\n\nmain(sys.argv.pop(1))\n")
    return py_compile.compile(path, cfile=path + "c", doraise=True), load_program(
        os.path.join(HERE, "fake_docker.py"), "fake_docker"
    )


@pytest.fixture
def make_box(tmp_path, dockfix, fake):
    def make(name="box"):
        os.mkdir(str(tmp_path / name))
        return Box(tmp_path / name, dockfix, *fake)

    return make


@pytest.fixture
def box(make_box):
    return make_box()


@pytest.fixture
def web(box):
    """A box with three plain running containers."""
    box.containers("web1", "web2", "db")
    return box


class Terminal:
    """dockfix on a terminal of its own: what was shown, what is typed, whether the terminal echoes.

    The test keeps the terminal's other end open too, so its settings can be looked at after dockfix
    has died."""

    def __init__(self, box, args, stdout=None, prelude=None, env=None):
        box.write_world()
        self.fd, self.tty = pty.openpty()
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        self.shown, self.code = b"", None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(self.tty, termios.TIOCSCTTY, 0)
            for number, fd in enumerate(
                (self.tty, self.tty if stdout is None else stdout, self.tty)
            ):
                os.dup2(fd, number)
            os.closerange(3, 256)
            be_the_program(
                box.module, box.arguments(args), dict(box.env, **(env or {})), prelude, None
            )

    def pump(self):
        """Take what is there, without waiting; False when there was nothing."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return False
        self.shown += data
        return data != b""

    def ended(self):
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.code = (
                    -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                )
        return self.code is not None

    def expect(self, text, seconds=15):
        """Wait till `text` was shown (any case); what came before and with it is returned and
        forgotten."""
        deadline = time.time() + seconds
        while text.lower() not in self.shown.lower():
            over = self.ended()
            if not self.pump() and (over or time.time() > deadline):
                raise AssertionError("%r was not shown, only %r" % (text, self.shown))
            time.sleep(0.002)
        cut = self.shown.lower().index(text.lower()) + len(text)
        seen, self.shown = self.shown[:cut], self.shown[cut:]
        return seen

    def echo(self):
        return bool(termios.tcgetattr(self.tty)[3] & termios.ECHO)

    def answer(self, data):
        """Wait for a prompt (it ends in ': '), check that nothing typed would show, type; returns
        the prompt."""
        seen = self.expect(b": ")
        self.type(data)
        return seen

    def type(self, data):
        wait_until(lambda: not self.echo(), "echo off", 15)
        os.write(self.fd, data)

    def end(self, seconds=20):
        """Return code; the rest of what was shown is in .shown."""
        deadline = time.time() + seconds
        while not self.ended() and time.time() < deadline:
            self.pump()
            time.sleep(0.002)
        while self.pump():
            pass
        assert self.ended(), "still running; shown: %r" % self.shown
        return self.code

    def close(self):
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)
        os.close(self.tty)


@pytest.fixture
def terminal(box):
    opened = []

    def make(*args, **how):
        opened.append(Terminal(box, args, **how))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def make_tar():
    def make(*members):
        """A tar of (name, type, data or link name[, attributes]) members."""
        buf = io.BytesIO()
        with tarfile.open(fileobj=buf, mode="w") as tar:
            for name, kind, content in members:
                info = tarfile.TarInfo(name)
                info.type, info.mode = kind, 0o640
                if kind == tarfile.REGTYPE:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                else:
                    info.linkname = content
                    tar.addfile(info)
        return buf.getvalue()

    return make
