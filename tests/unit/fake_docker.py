"""A docker that is not one: the fault-injecting fake of ring one.

Installed as BOX/bin/docker by conftest.Box.  It reads BOX/world (a Python literal), appends one
literal line per call to BOX/calls (argv, stdin, environment, process group), and answers like
Docker 1.12 to 28 do.  Only cheap modules are imported at the top, because a test run starts it some
hundred times.  Box.quick calls respond() without a process.

world = { "containers": [{"id", "name", "names", "status", "json", "chpasswd", "deaf", "readonly",
...}],   conftest.Box.container makes them "filters": {"label=x": ["web1"]},      what `ps --filter`
lets through "info_json": TEXT or None,             None: `info --format` is unknown, as in Docker
1.12 "info_text": TEXT, "client": "28",                        whose words for what is not there:
"28", "20.10" or "1.12" "userns": 0,                           ids in tars of `cp ID:PATH -` have
this added; ids at or above 65536 cannot be mapped "rules": [{"on": "exec", "has": "chpasswd",
"nth": 1, ...}], } A rule applies to calls whose command is `on` (and whose argv holds `has`, the
nth time only where given): "out"/"err"/"rc"  the whole answer, nothing else is done      "late":
True   the effect first, then the answer "sleep": S        wait first
"linger": S    the effect and the answer first, then wait "hang": S         wait first, while a
child of the same process group, and one in a session of its own, hold the pipes; their process ids
are in BOX/helpers "remove": NAME    that container is gone from now on "ahead": S        the answer
is a `date` so many seconds ahead "touch": PATH     made first; "await": PATH: waits till PATH
exists (at most 20 s) "write": {PATH: bytes}   files of the sandbox that change at this moment"""

import os
import stat
import sys
import time


def note(box, entry):
    """One write with O_APPEND, so lines of parallel calls never mix."""
    fd = os.open(os.path.join(box, "calls"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, repr(entry).encode("ascii", "backslashreplace") + b"\n")
    os.close(fd)


def times(box, number):
    """How often rule `number` has matched, this time included: the position after an O_APPEND write
    of one byte."""
    fd = os.open(
        os.path.join(box, "count.%d" % number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    os.write(fd, b".")
    where = os.lseek(fd, 0, os.SEEK_CUR)
    os.close(fd)
    return where


def find_rule(box, world, argv):
    for number, rule in enumerate(world["rules"]):
        if rule["on"] not in (argv[:1] or [""])[0] or not any(
            rule.get("has", "") in word for word in argv
        ):
            continue
        if times(box, number) == rule.get("nth", 0) or not rule.get("nth"):
            return rule
    return {}


def hang(box, seconds):
    """Two grandchildren that hold stdout and stderr: one in this process group, one that left
    it."""
    pids = []
    for leaves in (False, True):
        pids.append(os.fork())
        if pids[-1] == 0:
            if leaves:
                os.setsid()
            time.sleep(seconds)
            os._exit(0)
    with open(os.path.join(box, "helpers.new"), "w") as f:
        f.write(repr([os.getpid(), *pids]))
    os.rename(os.path.join(box, "helpers.new"), os.path.join(box, "helpers"))
    time.sleep(seconds)


def before(box, rule):
    for path in rule.get("touch", []):
        open(os.path.join(box, path), "w").close()
    if "hang" in rule:
        hang(box, rule["hang"])
    time.sleep(rule.get("sleep", 0))
    deadline = time.time() + 20
    while (
        "await" in rule
        and not os.path.exists(os.path.join(box, rule["await"]))
        and time.time() < deadline
    ):
        time.sleep(0.01)
    if "remove" in rule:
        open(os.path.join(box, "gone." + rule["remove"]), "w").close()
    for path, data in rule.get("write", {}).items():
        with open(os.path.join(box, path), "wb") as f:
            f.write(data)


def tar_member(path, name, base):
    """One file as docker cp sends it: ustar, by hand (importing tarfile costs as much as all the
    rest of a call)."""
    st = os.lstat(path)
    kind, target, data = b"0", "", b""
    if stat.S_ISDIR(st.st_mode):
        kind, name = b"5", name + "/"
    elif stat.S_ISLNK(st.st_mode):
        kind, target = b"2", os.readlink(path)
    elif stat.S_ISFIFO(st.st_mode):
        kind = b"6"
    else:
        with open(path, "rb") as f:
            data = f.read()
    gid = base + (42 if name.endswith("shadow") else 0)
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        st.st_mode & 0o7777,
        base,
        gid,
        len(data),
        int(st.st_mtime),
    )
    rest = kind + os.fsencode(target).ljust(100, b"\0") + b"ustar\x0000"
    header = (os.fsencode(name).ljust(100, b"\0") + numbers + b" " * 8 + rest).ljust(512, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:] + data + bytes(-len(data) % 512)


# What clients say, as {id} and {path} of the call: a container that is gone, to cp and to
# everything else; a file that is not there.
WORDS = {
    "28": (
        "Error response from daemon: No such container: {id}",
        "Error response from daemon: No such container: {id}",
        "Error response from daemon: Could not find the file {path} in container {id}",
    ),
    "20.10": (
        "Error: No such container:path: {id}:{path}",
        "Error: No such container: {id}",
        "Error: No such container:path: {id}:{path}",
    ),
    "1.12": (
        "Error response from daemon: No such container: {id}",
        "Error response from daemon: No such container: {id}",
        (
            "Error response from daemon: lstat /var/lib/docker/devicemapper/mnt/77/rootfs{path}: no"
            " such file or directory"
        ),
    ),
}


class Fake:
    def __init__(self, box, world):
        self.box, self.world = box, world
        self.out, self.err = b"", b""

    def root(self, c):
        return os.path.join(self.box, "fs", c["name"])

    def listed(self):
        return [
            c
            for c in self.world["containers"]
            if not os.path.exists(os.path.join(self.box, "gone." + c["name"]))
        ]

    def find(self, ref, path=None):
        for c in self.listed():
            if ref in (c["id"], c["name"]) or (len(ref) >= 4 and c["id"].startswith(ref)):
                return c
        self.complain(0 if path else 1, ref, path)
        return None

    def complain(self, which, ref, path):
        self.err += (
            os.fsencode(WORDS[self.world["client"]][which].format(id=ref, path=path)) + b"\n"
        )

    def ps(self, argv):
        shown = self.listed()
        wanted = [argv[i + 1] for i, word in enumerate(argv) if word in ("-f", "--filter")]
        wanted += [word.split("=", 1)[1] for word in argv if word.startswith("--filter=")]
        for one in wanted:
            if one not in self.world["filters"]:
                self.err += b"Error response from daemon: Invalid filter '%s'\n" % os.fsencode(
                    one.split("=")[0]
                )
                return 1
            shown = [c for c in shown if c["name"] in self.world["filters"][one]]
        if "-a" not in argv and "--all" not in argv:
            shown = [c for c in shown if c["status"].startswith("Up")]
        quiet = "-q" in argv or "-aq" in argv or "--quiet" in argv
        for c in shown:
            line = c["id"] if quiet else "%s %s %s" % (c["id"], c["names"], c["status"])
            self.out += line.encode("utf-8", "surrogateescape") + b"\n"
        return 0

    def inspect(self, argv):
        refs = argv[:]
        while refs and refs[0].startswith("-"):
            del refs[: 1 if "=" in refs[0] or refs[0] == "--" else 2]
        found = [c for c in map(self.find, refs) if c]
        self.out += b"[" + b",".join(self.state(c).encode("ascii") for c in found) + b"]\n"
        return 0 if len(found) == len(refs) else 1

    def info(self, argv):
        if any(word.startswith(("--format", "-f")) for word in argv):
            if self.world["info_json"] is None:
                self.err += b"flag provided but not defined: --format\nSee 'docker info --help'.\n"
                return 125
            self.out += self.world["info_json"].encode() + b"\n"
            return 0
        self.out += self.world["info_text"].encode()
        return 0

    def exec(self, argv, stdin):
        while argv and argv[0].startswith("-"):
            takes_value = argv[0] in ("-u", "--user", "-w", "--workdir", "-e", "--env")
            del argv[: 2 if takes_value else 1]
        c = self.find(argv[0])
        if c is None:
            return 1
        if not c["status"].startswith("Up"):
            self.err += (
                b"Error response from daemon: Container %s is not running\n" % c["id"].encode()
            )
            return 1
        if "(Paused)" in c["status"] or '"Paused": true' in self.state(c):
            self.err += (
                b"Error response from daemon: Container %s is paused, unpause the container before"
                b" exec\n" % c["id"].encode()
            )
            return 1
        if argv[1] in ("chpasswd", "/usr/sbin/chpasswd"):
            return self.chpasswd(c, argv[1:], stdin)
        if argv[1:3] == ["rm", "-f"] and c["rm"]:
            for path in argv[3:]:
                os.unlink(os.path.join(self.root(c), path.lstrip("/")))
            return 0
        if argv[1] == "rmdir" and c["rm"]:
            for path in argv[2:]:
                os.rmdir(os.path.join(self.root(c), path.lstrip("/")))
            return 0
        if "date" in argv[1:] and "date" in c:  # (seconds ahead, offset as %z)
            self.out += b"%d %s\n" % (int(time.time() + c["date"][0]), c["date"][1].encode())
            return 0
        answer = c["answer"]
        self.out += stdin if answer == "cat" else answer.get("out", b"")
        self.err += b"" if answer == "cat" else answer.get("err", b"")
        return 0 if answer == "cat" else answer.get("rc", 0)

    def frozen(self, argv, freeze):
        """pause and unpause: docker's words, and the status from then on by a file of the
        sandbox."""
        c = self.find(argv[-1])
        if c is None:
            return 1
        mark = os.path.join(self.box, "frozen." + c["name"])
        if not c["status"].startswith("Up") or os.path.exists(mark) is freeze:
            state = "is already paused" if freeze else "is not paused"
            self.err += b"Error response from daemon: Container %s %s\n" % (
                c["id"].encode(),
                state.encode() if c["status"].startswith("Up") else b"is not running",
            )
            return 1
        if freeze:
            open(mark, "w").close()
        else:
            os.unlink(mark)
        self.out += argv[-1].encode() + b"\n"
        return 0

    def pause(self, argv):
        return self.frozen(argv, True)

    def unpause(self, argv):
        return self.frozen(argv, False)

    def state(self, c):
        """The inspect object, paused where it has been paused since."""
        if os.path.exists(os.path.join(self.box, "frozen." + c["name"])):
            return c["json"].replace('"Paused": false', '"Paused": true', 1)
        return c["json"]

    def restart(self, argv):
        c = self.find(argv[-1])
        self.out += argv[-1].encode() + b"\n" if c else b""
        return 0 if c else 1

    def parrot(self, kind, stdin):
        """It repeats what it reads, in some form, and does nothing."""
        import base64

        forms = {
            "parrot": stdin,
            "parrot-pieces": b"\n".join(stdin[at : at + 9] for at in range(4, len(stdin), 9)),
            "parrot-spaced": b" ".join(stdin[at : at + 1] for at in range(len(stdin))),
            "parrot-base64": base64.b64encode(stdin),
            "parrot-hash-base64": base64.b64encode(stdin.split(b":")[1]),
            "parrot-hex": stdin.hex().encode(),
        }
        if kind == "parrot":
            self.out += forms[kind]
        self.err += forms[kind]
        return 1

    def chpasswd(self, c, argv, stdin):
        """The tools A1 of the research tells apart."""
        kind = c["chpasswd"]
        if kind == "missing" or (kind == "path" and not argv[0].startswith("/")):
            self.out += (
                b"OCI runtime exec failed: exec failed: unable to start container process: exec:"
                b' "%s": executable file not found in $PATH: unknown\r\n' % argv[0].encode()
            )
            return c["missing_rc"]
        if kind == "liar":
            return 0
        if kind == "refuses":
            self.err += b"chpasswd: cannot lock /etc/passwd; try again later.\n"
            return 1
        if kind.startswith("parrot"):
            return self.parrot(kind, stdin)
        wanted = [line.split(b":", 1) for line in stdin.splitlines()]
        if kind == "first":  # BusyBox: stops at the first line it does not like, earlier lines stay
            self.err += b"chpasswd: unknown user\n"
            wanted = wanted[:1]
        passwd, shadow = self.lines(c, "passwd"), self.lines(c, "shadow")
        for user, value in wanted:
            value = b"$6$other$" + b"x" * 86 if kind == "rehash" else value
            listed = any(line.split(b":")[0] == user for line in shadow or [])
            refers = any(line.startswith(user + b":x:") for line in passwd)
            if shadow is not None and not listed and refers:  # as shadow-utils: a new line
                shadow.append(user + b":!::0:99999:7:::\n")
                listed = True
            if listed:
                shadow = [self.edited(line, user, value, kind) for line in shadow]
            if not (listed and refers) and kind != "shadow-only":
                passwd = [self.with_password(line, user, value) for line in passwd]
        for name, lines in (("passwd", passwd), ("shadow", shadow)):
            if lines is not None:
                path = os.path.join(self.root(c), "etc", name)
                with open(path + "+", "wb") as f:
                    f.write(b"".join(lines))
                os.rename(path + "+", path)
        return 1 if kind == "first" else 0

    def lines(self, c, name):
        """The lines of an account file, the last one with its end, as every tool writes it; None
        where there is no file."""
        try:
            with open(os.path.join(self.root(c), "etc", name), "rb") as f:
                data = f.read()
        except OSError:
            return None
        return (data if data.endswith(b"\n") else data + b"\n").splitlines(True)

    def with_password(self, line, user, value):
        fields = line.split(b":")
        return b":".join([user, value, *fields[2:]]) if fields[0] == user else line

    def edited(self, line, user, value, kind):
        fields = line.split(b":")
        if fields[0] != user:
            return line
        fields[1] = value
        fields[2] = str(int(time.time() // 86400)).encode()
        if kind == "greedy" and len(fields) > 4:  # also changes what it was not asked to change
            fields[4] = b"7"
        return b":".join(fields)

    def cp(self, argv, stdin):
        source, target = argv[-2:]
        ref, path = (target if source == "-" else source).split(":", 1)
        c = self.find(ref, path)
        if c is None:
            if source == "-":  # the client looks first, and takes `not there` for `no directory`
                self.err = b'destination "%s" must be a directory\n' % os.fsencode(target)
            return 1
        where = os.path.join(self.root(c), path.lstrip("/"))
        if "-L" in argv and os.path.islink(where):  # as within the container
            where = os.path.join(
                self.root(c), os.path.join(os.path.dirname(path), os.readlink(where)).lstrip("/")
            )
        return self.cp_in(c, where, stdin) if source == "-" else self.cp_out(c, where, path)

    def cp_out(self, c, where, path):
        if not os.path.lexists(where):
            self.complain(2, c["id"], path)
            return 1
        if c.get("tar") is not None and not os.path.isdir(where):  # a tar of the test's own making
            self.out += c["tar"]
            return 0
        self.out += tar_member(where, os.path.basename(where), self.world["userns"])
        if os.path.isdir(where) and not os.path.islink(where):
            for name in sorted(os.listdir(where)):
                self.out += tar_member(
                    os.path.join(where, name),
                    os.path.basename(where) + "/" + name,
                    self.world["userns"],
                )
        self.out += bytes(1024)
        return 0

    def cp_in(self, c, where, stdin):
        import io
        import tarfile

        if c["readonly"]:
            self.err += b"Error response from daemon: container rootfs is marked read-only\n"
            return 1
        if c["deaf"] and times(self.box, 1000) <= c["deaf"]:
            return 0
        with tarfile.open(fileobj=io.BytesIO(stdin)) as tar:
            for member in tar:
                path = os.path.join(where, member.name)
                error = self.overwrite_error(member, path)
                if not error:
                    error = self.put_member(c, tar, member, where, path)
                if error:
                    self.err += b"Error response from daemon: %s\n" % error
                    return 1
        return 0

    def overwrite_error(self, member, path):
        """What docker says of a member that is to replace what is no such thing; b"" where it is
        fine."""
        if not os.path.lexists(path):
            return b""
        real_folder = os.path.isdir(path) and not os.path.islink(path)
        if real_folder and not member.isdir():
            return b"cannot overwrite directory with non-directory"
        if member.isdir() and not real_folder:
            return b'cannot overwrite non-directory "%s" with directory "/"' % (
                os.fsencode(member.name)
            )
        return b""

    def put_member(self, c, tar, member, where, path):
        """What docker says where it cannot, else b""."""
        if member.isdir() and os.path.isdir(path) and not os.path.islink(path):
            return b""
        if os.path.lexists(path):
            os.unlink(path)  # docker removes the old file first: a failure now leaves none
        if not os.path.exists(os.path.dirname(path)):
            os.makedirs(os.path.dirname(path), 0o777)
        if member.uid >= 65536 or member.gid >= 65536:
            number = max(member.uid, member.gid)
            return b"Container ID %d cannot be mapped to a host ID" % number
        if member.islnk():
            try:
                os.link(os.path.join(where, member.linkname), path)
            except FileNotFoundError as err:
                return str(err).encode()
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.isdir():
            os.mkdir(path, member.mode)
        else:
            data = tar.extractfile(member).read()
            if c["truncates"] and data and times(self.box, 1001) <= c["truncates"]:
                data = data[:-20]
            with open(path, "wb") as f:
                f.write(data)
            os.chmod(path, member.mode)
        return b""


def wants_input(argv):
    return (
        argv[:1] == ["exec"] and any(w in ("-i", "-it", "--interactive") for w in argv[1:])
    ) or argv[:2] == ["cp", "-"]


def respond(box, world, argv, stdin, env):
    """(rule, rc, stdout, stderr) of one call, noted and with its effects done."""
    note(
        box,
        {
            "argv": [os.fsencode(a) for a in argv],
            "stdin": stdin,
            "env": dict(env),
            "pid": os.getpid(),
            "pgid": os.getpgrp(),
        },
    )
    argv = list(argv)
    while argv[:1] == ["-H"] or argv[:1] == ["--context"]:
        del argv[:2]
    rule = find_rule(box, world, argv)
    before(box, rule)
    fake = Fake(box, world)
    if "ahead" in rule:
        rule = dict(rule, out=b"%d +0000\n" % (time.time() + rule["ahead"]))
    answers = "out" in rule or "err" in rule or "rc" in rule
    rc = 0
    if not answers or rule.get("late"):
        command = argv[0] if argv else ""
        if command in ("exec", "cp"):
            rc = getattr(fake, command)(argv[1:], stdin)
        elif command in ("ps", "inspect", "info", "restart", "stop", "start", "pause", "unpause"):
            rc = getattr(fake, {"stop": "restart", "start": "restart"}.get(command, command))(
                argv[1:]
            )
        else:
            fake.err, rc = b"docker: '%s' is not a docker command.\n" % os.fsencode(command), 1
    if answers:
        return rule, rule.get("rc", 0), rule.get("out", b""), rule.get("err", b"")
    return rule, rc, fake.out, fake.err


def main(box):
    argv = sys.argv[1:]
    with open(os.path.join(box, "world")) as f:
        world = eval(f.read())
    stdin = sys.stdin.buffer.read() if wants_input(argv) else b""
    rule, rc, out, err = respond(box, world, argv, stdin, os.environb)
    try:
        for stream, data in ((sys.stdout.buffer, out), (sys.stderr.buffer, err)):
            stream.write(data)
            stream.flush()
    except BrokenPipeError:
        rc = 1
    time.sleep(rule.get("linger", 0))
    os._exit(rc)
