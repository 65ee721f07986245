"""Ring two: dockfix on a private, real engine (kit.py).  Python 3.6, pytest 7.0.1.

`lab` is the engine with everything around it: containers, host directories that are watched, shadow
files read from outside dockfix, a second opinion on hashes (perl's crypt), and `lab.dockfix(...)`,
which runs the program as a user would.  Each module starts with an engine without containers, and
ends with the proof that nothing on the host has changed."""

import collections
import contextlib
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest

from current import STORES, CurrentEngine
from common import PROGRAM, Run, read_bytes
from kit import CannotRun, PrivateEngine, need, skip_or_fail

HOST_FILES = (
    "/etc/shadow",
    "/etc/passwd",
    "/etc/group",
    "/etc/gshadow",
    "/etc/shadow-",
    "/etc/passwd-",
)
FAKE_ETC = {
    "passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "group": b"root:x:0:\nshadow:x:42:\n",
    "shadow": b"root:*:18000:0:99999:7:::\nhost:*:18000:0:99999:7:::\n",
}
MEBI = 1 << 20

Shadow = collections.namedtuple("Shadow", "kind mode uid gid size link data")
Call = collections.namedtuple("Call", "argv env parent")


def tree(path):
    """{relative path: all that is known of it} of a directory of the host."""
    found = {}
    for folder, names, files in os.walk(path):
        for name in ["", *names, *files]:
            full = os.path.join(folder, name)
            info = os.lstat(full)
            content = (
                os.readlink(full)
                if stat.S_ISLNK(info.st_mode)
                else (
                    hashlib.sha256(read_bytes(full)).hexdigest()
                    if stat.S_ISREG(info.st_mode)
                    else ""
                )
            )
            found[os.path.relpath(full, path)] = (
                info.st_ino,
                info.st_mode,
                info.st_uid,
                info.st_gid,
                info.st_size,
                info.st_mtime_ns,
                content,
            )
    return found


def host_files(root="/"):
    """The host's account files, and the names beside them (a copy or a lock left behind is a change
    too)."""
    found = {
        "names": sorted(
            name
            for name in os.listdir(os.path.join(root, "etc"))
            if "shadow" in name or "passwd" in name or "dockfix" in name
        )
    }
    for path in filter(os.path.exists, [root + path.lstrip("/") for path in HOST_FILES]):
        info = os.stat(path)
        found[path] = (
            info.st_ino,
            info.st_mode,
            info.st_uid,
            info.st_gid,
            info.st_mtime_ns,
            read_bytes(path),
        )
    return found


def field_of(data, user="root"):
    for line in data.decode().split("\n"):
        if line.startswith(user + ":"):
            return line.split(":")[1]
    raise AssertionError("no %s in %r" % (user, data))


def crypt(password, salt):
    """crypt(3) by perl, which knows what libcrypt knows; the words go by standard input."""
    return subprocess.run(
        ["perl", "-e", "local $/; my ($p, $s) = split /\\0/, <STDIN>; print crypt($p, $s)"],
        input=password + b"\0" + salt,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


def days():
    return int(time.time() // 86400)


def only_password_changed(before, after, user="root"):
    """Nothing differs but the password and the date of last change; text of what else does."""
    old, new = before.data.split(b"\n"), after.data.split(b"\n")
    if before._replace(data=None, size=0) != after._replace(data=None, size=0):
        return "%s became %s" % (before._replace(data=None), after._replace(data=None))
    if len(old) != len(new):
        return "%d lines became %d" % (len(old), len(new))
    for was, now in zip(old, new):
        if not was.startswith(user.encode() + b":"):
            if was != now:
                return "%r became %r" % (was, now)
        elif was.split(b":")[3:] != now.split(b":")[3:] or int(now.split(b":")[2]) not in (
            days() - 1,
            days(),
        ):
            return "%r became %r" % (was, now)
    return ""


class Recorder:
    """A docker command that writes down its arguments and its environment, then (after `inject`,
    shell text) does the call."""

    def __init__(self, folder, client, inject=""):
        self.log, self.bin = os.path.join(folder, "log"), os.path.join(folder, "bin")
        self.command = os.path.join(self.bin, "docker")
        os.makedirs(self.log)
        os.makedirs(self.bin)
        with open(self.command, "w") as f:
            f.write(
                "#!/bin/sh\nREAL=%s\nLOG=%s\n" % (shlex.quote(client), shlex.quote(self.log))
                + 'printf "%s\\0" "$@" > "$LOG/$$.argv"\n'
                'cat /proc/$$/environ > "$LOG/$$.env"\n'
                'cat /proc/$PPID/cmdline > "$LOG/$$.parent" 2>/dev/null\n'
                + inject
                + '\nexec "$REAL" "$@"\n'
            )
        os.chmod(self.command, 0o755)

    def calls(self):
        """In the order in which they began."""
        pids = [name[: -len(".argv")] for name in os.listdir(self.log) if name.endswith(".argv")]
        pids.sort(key=lambda pid: os.stat(os.path.join(self.log, pid + ".argv")).st_mtime_ns)
        return [
            Call(self.words(pid + ".argv"), self.words(pid + ".env"), self.words(pid + ".parent"))
            for pid in pids
        ]

    def words(self, name):
        return [
            os.fsdecode(word) for word in read_bytes(os.path.join(self.log, name)).split(b"\0")[:-1]
        ]

    def everything(self):
        return b"\n".join(
            read_bytes(os.path.join(self.log, name)) for name in sorted(os.listdir(self.log))
        )


class Lab:
    crypt, field_of, only_password_changed = (
        staticmethod(crypt),
        staticmethod(field_of),
        staticmethod(only_password_changed),
    )
    read_bytes, tree = staticmethod(read_bytes), staticmethod(tree)
    python, program, host = sys.executable, PROGRAM, "/"

    def __init__(self, engine, folder):
        self.engine, self.folder, self.watched = engine, folder, {}
        self.state = os.path.join(folder, "state")
        self.images, self.lock, self.count = {}, threading.Lock(), 0

    # ---------------------------------------------------------------- containers

    def image(self, name):
        with self.lock:
            if name not in self.images:
                self.images[name] = getattr(self.engine, "import_" + name)("ring/" + name)
            return self.images[name]

    def docker(self, *args, **options):
        return self.engine.docker(*args, **options)

    def run(self, name, *options, image="debian", command=()):
        return self.engine.run(self.image(image), "--name", name, *options, command=command)

    def create(self, name, *options, image="debian", command=()):
        return self.engine.create(self.image(image), "--name", name, *options, command=command)

    def inside(self, name, script):
        """Run shell text in a container, as root; its output."""
        return self.docker("exec", "-u", "0", name, "/bin/sh", "-ec", script).stdout

    def pid(self, name):
        return int(self.docker("inspect", "-f", "{{.State.Pid}}", name).stdout)

    def id(self, name):
        return self.docker("inspect", "-f", "{{.Id}}", name).stdout.decode().strip()

    def status(self):
        """{name: first word of its state}, for all containers."""
        lines = (
            self.docker("ps", "-a", "--format", "{{.Names}} {{.Status}}")
            .stdout.decode()
            .splitlines()
        )
        return {line.split()[0]: line.split()[1] for line in lines}

    def clean(self):
        listed = self.docker("ps", "-aq").stdout.decode().split()
        if listed:
            self.docker("rm", "-f", "-v", *listed)
        self.watched.clear()

    @staticmethod
    def parallel(function, items):
        """{item: function(item)}; two at a time for each core is what the engine can use."""
        items = list(items)
        with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
            return dict(zip(items, pool.map(function, items)))

    # ---------------------------------------------------------------- the host's side

    def host_dir(self, name, files=None, below=""):
        """A new directory of the host with account files, to be mounted into containers."""
        path = os.path.join(self.folder, "host", name)
        os.makedirs(os.path.join(path, below))
        for file, data in (FAKE_ETC if files is None else files).items():
            with open(os.path.join(path, below, file), "wb") as f:
                f.write(data)
            os.chmod(f.name, 0o640 if file == "shadow" else 0o755)
        return path

    def watch(self, path):
        """From now until the module's end this directory must stay as it is (the engine writes
        mount points on start)."""
        self.watched[path] = tree(path)

    def check_host(self, before):
        assert host_files(self.host) == before, "the host's own account files have changed"
        for path, old in self.watched.items():
            assert tree(path) == old, "%s, mounted into a container, has changed" % path

    def new_folder(self):
        with self.lock:
            self.count += 1
            path = os.path.join(self.folder, "work", str(self.count))
            os.makedirs(path)
            return path

    def recorder(self, inject=""):
        return Recorder(self.new_folder(), self.engine.client, inject)

    # ---------------------------------------------------------------- dockfix

    def place(self):
        """What to put before a command, so that it runs on the engine's host."""
        return []

    def argv(self, *args):
        return [self.python, self.program, "--state", self.state] + [str(arg) for arg in args]

    def dockfix(self, *args, stdin=b"", recorder=None, env=None, prefix=(), timeout=150):
        """One run, as a user would start it.  stdin: bytes; env: more variables; recorder: given
        with --docker."""
        argv = (
            self.place()
            + list(prefix)
            + self.argv(*((("--docker", shlex.quote(recorder.command)) if recorder else ()) + args))
        )
        start = time.monotonic()
        done = subprocess.run(
            argv,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.engine.env(**(env or {})),
            timeout=timeout,
        )
        run = Run(done.returncode, done.stdout, done.stderr, time.monotonic() - start)
        assert b"Traceback" not in run.err, run
        return run

    def dockfix_until(self, mode, which, *args):
        """One run that kill_at.py ends by SIGKILL; its exit code and error output."""
        python, program, *words = self.argv(*args)
        kill_at = os.path.join(os.path.dirname(program), "tests", "vm", "kill_at.py")
        return subprocess.run(
            [*self.engine.inside(), python, "-B", kill_at, mode, which, *words],
            env=self.engine.env(PYTHONPATH=os.path.dirname(program)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=150,
        )

    def script(self, text, env=None):
        """Run a dry run's script as a user would, with `sh`."""
        folder = self.new_folder()
        with open(os.path.join(folder, "python3"), "w") as f:
            f.write('#!/bin/sh\nexec %s "$@"\n' % shlex.quote(self.python))
        os.chmod(f.name, 0o755)
        with open(os.path.join(folder, "script"), "wb") as f:
            f.write(text)
        variables = self.engine.env(**(env or {}))
        variables["PATH"] = folder + os.pathsep + variables["PATH"]
        start = time.monotonic()
        done = subprocess.run(
            [*self.place(), "sh", f.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
            timeout=150,
        )
        return Run(done.returncode, done.stdout, done.stderr, time.monotonic() - start)

    # ---------------------------------------------------------------- a second opinion

    def shadow(self, name, path="/etc/shadow"):
        """A file of a container, in any state, as `docker cp` has it; None where there is none.
        Big ones without data."""
        client = subprocess.Popen(
            [*self.engine.docker_command(), "cp", "%s:%s" % (name, path), "-"],
            env=self.engine.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            with tarfile.open(fileobj=client.stdout, mode="r|") as tar:
                member = tar.next()
                kinds = {
                    tarfile.REGTYPE: "file",
                    tarfile.SYMTYPE: "link",
                    tarfile.DIRTYPE: "directory",
                    tarfile.FIFOTYPE: "fifo",
                    tarfile.CHRTYPE: "device",
                }
                small = member.isreg() and member.size <= MEBI
                return Shadow(
                    kinds[member.type],
                    member.mode,
                    member.uid,
                    member.gid,
                    member.size,
                    member.linkname,
                    tar.extractfile(member).read() if small else None,
                )
        except tarfile.ReadError:
            error = client.stderr.read()
            assert b"Could not find" in error or b"No such" in error or b"no such" in error, error
            return None
        finally:
            client.kill()
            client.communicate()

    def field(self, name, user="root"):
        return field_of(self.shadow(name).data, user)

    def opens(self, name, password, user="root"):
        """Whether this password (bytes or text) opens the account, as perl's crypt(3) sees it."""
        password = password.encode() if isinstance(password, str) else password
        field = self.field(name, user).encode()
        return field.startswith(b"$") and crypt(password, field) == field


class CurrentLab(Lab):
    """The same on a host of its own (current.py): dockfix runs there, by that host's Python.  The
    folder has one path here and there."""

    python, program = "/usr/bin/python3", "/repo/dockfix.py"

    def __init__(self, engine, folder):
        super().__init__(engine, folder)
        self.host = engine.root("")

    def place(self):
        return self.engine.inside()

    def call(self, *argv, **options):
        """A command on the engine's host."""
        return self.engine.call(*argv, **options)


def not_here(reason):
    skip_or_fail("private engine", reason)


@pytest.fixture(scope="session")
def cannot_run():
    return not_here


@pytest.fixture(scope="session")
def engine():
    if not os.path.exists(PROGRAM):
        pytest.exit("there is no %s" % PROGRAM, 2)
    private = PrivateEngine()
    try:
        private.start()
    except CannotRun as reason:
        not_here(reason)
    yield private
    private.stop()


@pytest.fixture(scope="session")
def session_lab(engine):
    folder = os.path.realpath(tempfile.mkdtemp(prefix="dockfix-lab-"))
    os.chmod(folder, 0o755)
    try:
        yield Lab(engine, folder)
    finally:
        if engine.dir:
            engine.kill_containers()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def lab(session_lab):
    """The engine without containers; at the end of the module the host must be as it was."""
    with lab_without_containers(session_lab) as clean:
        yield clean


@contextlib.contextmanager
def lab_without_containers(lab):
    """The lab for one module; at its end the host must be as it was."""
    before, lab.state = host_files(lab.host), os.path.join(lab.new_folder(), "state")
    lab.clean()
    yield lab
    try:
        lab.check_host(before)
    finally:
        lab.clean()
        shutil.rmtree(os.path.join(lab.folder, "host"), ignore_errors=True)


@contextlib.contextmanager
def current_lab(suite, store, **options):
    """A current engine with a lab; at the end nothing is left of it (else `stop` raises)."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="dockfix-lab-"))
    os.chmod(folder, 0o755)
    try:
        with CurrentEngine(suite, store, shared=[folder], **options) as engine:
            yield CurrentLab(engine, folder)
    except CannotRun as reason:
        skip_or_fail("current engine", reason)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def current_labs():
    """get(suite, store): the session's lab of that kind."""
    made = {}
    with contextlib.ExitStack() as stack:

        def get(suite, store):
            if (suite, store) not in made:
                made[suite, store] = stack.enter_context(current_lab(suite, store))
            return made[suite, store]

        yield get


# Debian's development suite as well, where asked for: it changes from day to day
SUITES = ("trixie", "sid") if os.environ.get("DOCKFIX_TEST_BIG") == "1" else ("trixie",)


@pytest.fixture(scope="module", params=["%s-%s" % pair for pair in product(SUITES, STORES)])
def current(request, current_labs):
    """Debian's engine with each image store, without containers."""
    with lab_without_containers(current_labs(*request.param.split("-"))) as clean:
        yield clean


class Nobody:
    """A user of the engine's socket who is not root: docker cp is all that dockfix has then.
    prefix: what stands before a command; this user reads everything, for the Python of the tests
    may lie where only root can."""

    def __init__(self, lab):
        self.lab = lab
        self.prefix = [need("setpriv", "util-linux"), "--reuid=65534", "--regid=65534"]
        self.prefix += ["--clear-groups", "--inh-caps=+dac_read_search"]
        self.prefix.append("--ambient-caps=+dac_read_search")

    def folder(self):
        """A new folder of that user's."""
        path = self.lab.new_folder()
        os.chown(path, 65534, 65534)
        return path

    def recorder(self, inject=""):
        made = self.lab.recorder(inject)
        os.chmod(made.log, 0o777)
        return made


def open_to_nobody(lab):
    os.chmod(lab.engine.path("docker.sock"), 0o666)
    return Nobody(lab)


@pytest.fixture(scope="module")
def nobody(lab):
    yield open_to_nobody(lab)
    os.chmod(lab.engine.path("docker.sock"), 0o660)
