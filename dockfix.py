#!/usr/bin/env python3
# dockfix: repairs Docker on hosts where nothing can be installed. One file, no network.
# SPDX-License-Identifier: MIT. The next line is for Python 2, which shows it as its syntax error.
f"dockfix needs Python 3.6 or newer: run it as  python3 dockfix.py"

###############################################################################
# 1. Promise, version floor, imports, constants
###############################################################################

import os
import sys

# A root tool copied to /tmp must not import a json.py lying beside it. Both modules above were
# loaded by the interpreter itself before this line, so only later imports can be led astray.
if __name__ == "__main__":
    _here = globals().get("__file__") or ""
    if sys.path[:1] in ([""], [os.path.dirname(os.path.abspath(_here))], [os.path.dirname(os.path.realpath(_here))]):
        del sys.path[0]

import argparse
import errno
import fcntl
import fnmatch
import hashlib
import io
import json
import posixpath
import re
import selectors
import shlex
import signal
import stat
import subprocess
import tarfile
import termios
import threading
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

__doc__ = """dockfix: one file that repairs Docker on hosts where nothing can be installed.

It speaks to Docker through the docker command only. Nothing on the host runs through a shell. No
password is ever in an argument list, an environment, a log or any output. --dry-run changes nothing
and prints a POSIX shell script that does what the real run would do.
"""

VERSION = "0.1.0"
SCHEMA = "dockfix/1"
CALL_SECONDS = 60.0         # default bound of one call for one container
LOCK_SECONDS = 15.0         # what lckpwdf(3) waits for /etc/.pwd.lock
DRAIN_SECONDS = 2.0         # after a kill: a grandchild may hold the pipe for ever
SHADOW_MAX = 1 << 20        # a larger shadow file is not one
CHUNK_IDS = 500             # ids in one docker call: 65 bytes each, far below ARG_MAX
PASSWORD_MAX = 511          # libcrypt's own limit, bytes
LEFTOVER = ".shadow.dockfix"
ETC_TARGETS = ("/", "/etc", "/etc/passwd", "/etc/shadow")

###############################################################################
# 2. Errors and exit codes
###############################################################################


class DockfixError(Exception):
    """What was wrong, in the user's words, and what to type next. `code` is the exit code."""
    code = 1

    def __init__(self, msg: str, hint: str = "") -> None:
        Exception.__init__(self, msg)
        self.msg = msg
        self.hint = hint


class UsageError(DockfixError):
    code = 2


class Refused(DockfixError):
    code = 5


class EnvironmentFault(DockfixError):
    code = 6


class HalfWay(DockfixError):
    code = 7


class Locked(DockfixError):
    code = 8


class Gone(Exception):
    """The container vanished between look and deed."""


class WayClosed(Exception):
    """This way into the container cannot be used; the text says why. Another may be open."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; args[0] is its number."""


###############################################################################
# 3. Pure parsers and formatters: bytes or text in, facts out, no I/O
###############################################################################


class Account(NamedTuple):
    """One line to set: user and password (or hash, with -e). Bytes. Never shows its secret."""
    user: bytes
    secret: bytes

    def __repr__(self) -> str:
        return "Account(%r, hidden)" % (self.user,)


class Target(NamedTuple):
    """One container as `docker ps` lists it. id is the full one."""
    id: str
    name: str
    status: str


class Mount(NamedTuple):
    """One line of /proc/PID/mountinfo (proc(5)); octal escapes undone."""
    dev: str
    root: str
    point: str
    fstype: str
    source: str
    options: Tuple[str, ...]


class Container(NamedTuple):
    """What chpasswd needs of one `docker inspect` object."""
    id: str
    name: str
    running: bool
    paused: bool
    restarting: bool
    pid: int
    read_only: bool
    userns: str
    driver: str
    layer: Dict[str, str]
    mounts: Tuple[Tuple[str, str], ...]     # (source, destination), destination normalised


# --- text for terminals and shells


def printable(text: str) -> str:
    """The text with control, format and undecodable characters escaped, so that nothing that comes
    from a container can steer a terminal. A line end is escaped too."""
    return "".join(ch if ch.isprintable() else escape_char(ch) for ch in text)


def escape_char(ch: str) -> str:
    code = ord(ch)
    if 0xDC80 <= code <= 0xDCFF:                    # a byte that was no UTF-8 (surrogateescape)
        return "\\x%02x" % (code - 0xDC00)
    return ch.encode("unicode_escape", "backslashreplace").decode("ascii")


def raw(text: str) -> bytes:
    """The bytes of a word for argv and paths: LANG=C must not matter (Python 3.6)."""
    return text.encode("utf-8", "surrogateescape")


def sh_quote(text: str) -> str:
    """One word for a POSIX shell. Control bytes come from printf, so that the script itself can be
    shown on a terminal; final newlines, which $(...) drops, come from IFS."""
    if text.isprintable():
        return shlex.quote(text)
    head = text.rstrip("\n")
    body = "".join(chr(b) if 32 <= b < 127 and b not in b"%\\'" else "\\%03o" % b for b in raw(head))
    return '"%s%s"' % ("$(printf '%s')" % body if head else "", "${IFS#??}" * (len(text) - len(head)))


def sh_line(argv: Sequence[str]) -> str:
    return " ".join(sh_quote(word) for word in argv)


def parse_size(text: str) -> int:
    """Bytes of '500', '64K', '1.5M', '20MiB': K, M, G, T and KiB... are binary. 'GB' is refused (UsageError)."""
    found = re.match(r"^([0-9]{1,15})(\.[0-9]{1,3})?(?:([KkMmGgTt])(iB)?)?\Z", text, re.A)
    if found and (found.group(3) or not found.group(2)):
        unit = 1 << 10 * " KMGT".index((found.group(3) or " ").upper())
        return int(found.group(1)) * unit + int(float(found.group(2) or 0) * unit)
    decimal = re.match(r"^([0-9.]+)([KMGTkmgt])[bB]\Z", text, re.A)
    hint = "write {0}{1} or {0}{1}iB, both binary".format(decimal.group(1), decimal.group(2).upper()) if decimal else "such as 500M or 20GiB"
    raise UsageError("not a size: %s" % text, hint)


# --- docker's answers


def parse_ps(text: str) -> List[Target]:
    """Rows of `docker ps --format "{{.ID}} {{.Names}} {{.Status}}"`. Raises EnvironmentFault."""
    rows = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        parts = line.rstrip("\r").split(" ", 2)
        if len(parts) < 2 or not re.match(r"^[0-9a-f]{64}$", parts[0]):
            raise EnvironmentFault("docker ps gave an answer that is not understood: %s" % line[:80], "docker ps -a --no-trunc")
        # With --no-trunc Names also lists link aliases ("other/alias").
        names = [name for name in parts[1].split(",") if name and "/" not in name]
        rows.append(Target(parts[0], names[0] if names else parts[0][:12], parts[2] if len(parts) > 2 else ""))
    return rows


def is_up(target: Target) -> bool:
    """Running, paused or restarting, by the status text, the same since Docker 1.0."""
    return target.status.startswith(("Up", "Restarting"))


def find_named(listed: List[Target], name: str) -> List[Target]:
    """The containers a name means: a full id, else a name or glob, else an id prefix. Raises
    UsageError where it means none, or two by prefix."""
    name = name[1:] if name.startswith("/") else name
    by_id = [t for t in listed if t.id == name]
    by_name = by_id or [t for t in listed if t.name == name] or [t for t in listed if fnmatch.fnmatchcase(t.name, name)]
    if by_name:
        return by_name
    prefixed = [t for t in listed if name and t.id.startswith(name)]
    if len(prefixed) > 1:
        raise UsageError("%s means %d containers: %s" % (name, len(prefixed), ", ".join(t.name for t in prefixed)), "give a name or more of the id")
    if not prefixed:
        raise UsageError("no such container: %s" % name, "docker ps -a")
    return prefixed


def choose_targets(listed: List[Target], names: Sequence[str], everything: bool = False, stopped: bool = False,
                   filtered: Optional[Sequence[str]] = None, exclude: Sequence[str] = ()) -> Tuple[List[Target], List[str]]:
    """The chosen containers in docker's order without doubles, and the --exclude globs that met none.
    `filtered` are the ids a --filter let through (None: no filter); it narrows --all, never names."""
    wanted = set()
    for name in names:
        wanted.update(target.id for target in find_named(listed, name))
    for target in listed if everything else ():
        if (stopped or is_up(target)) and (filtered is None or target.id in filtered):
            wanted.add(target.id)
    out = {glob: [t.id for t in listed if fnmatch.fnmatchcase(t.name, glob) or (len(glob) >= 4 and t.id.startswith(glob))] for glob in exclude}
    for ids in out.values():
        wanted.difference_update(ids)
    return [t for t in listed if t.id in wanted], [glob for glob in exclude if not out[glob]]


def parse_inspect(data: bytes) -> List[Container]:
    """The objects of `docker inspect`. Raises EnvironmentFault when they are none."""
    try:
        found = json.loads(data.decode("utf-8", "replace") or "[]")
        if not isinstance(found, list):
            raise ValueError("not a list")
        return [container_facts(one) for one in found]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise EnvironmentFault("docker inspect gave an answer that is not understood", "docker inspect CONTAINER") from None


def container_facts(one: dict) -> Container:
    if not re.match(r"^[0-9a-f]{64}$", one["Id"]):
        raise ValueError("no id")
    state, host = one["State"], one.get("HostConfig") or {}
    graph = one.get("GraphDriver") or {}
    layer = graph.get("Data") or {}
    pid = state.get("Pid") or 0
    if not isinstance(pid, int) or isinstance(pid, bool):
        raise ValueError("no pid")
    return Container(
        one["Id"], str(one.get("Name") or one["Id"][:12]).lstrip("/"), state["Running"] is True, state.get("Paused") is True,
        state.get("Restarting") is True, pid, host.get("ReadonlyRootfs") is True, str(host.get("UsernsMode") or ""),
        str(graph.get("Name") or ""), {str(k): str(v) for k, v in layer.items()}, tuple(inspect_mounts(one.get("Mounts") or [], host)))


def inspect_mounts(mounts: list, host: dict) -> List[Tuple[str, str]]:
    """(source, destination) of every mount in any of the places engines since 1.12 note them in."""
    found = [(str(m.get("Source") or m.get("Name") or ""), str(m["Destination"])) for m in mounts]
    for bind in host.get("Binds") or []:
        parts = str(bind).split(":")
        found.append((parts[0], parts[1]) if len(parts) > 1 else ("", parts[0]))
    found += [("tmpfs", str(path)) for path in (host.get("Tmpfs") or {})]
    found += [(str(m.get("Source") or m.get("Type") or ""), str(m["Target"])) for m in host.get("Mounts") or []]
    return [(source, posixpath.normpath("/" + target.lstrip("/"))) for source, target in found]


def parse_info(text: str) -> Dict[str, object]:
    """DockerRootDir and SecurityOptions of `docker info`, JSON or (before 1.13) text."""
    try:
        facts = json.loads(text)
        if isinstance(facts, dict) and isinstance(facts.get("DockerRootDir"), str):
            return {"DockerRootDir": facts["DockerRootDir"], "SecurityOptions": [str(o) for o in facts.get("SecurityOptions") or []]}
    except (ValueError, TypeError, RecursionError):
        pass
    root = re.search(r"^ *Docker Root Dir: *(/.*?)\s*$", text, re.M)
    if not root:
        raise EnvironmentFault("docker info does not say where Docker's root is", "docker info")
    block = re.search(r"^ *Security Options:(.*(?:\n {2,}.*|\n [a-z].*)*)", text, re.M)
    return {"DockerRootDir": root.group(1), "SecurityOptions": ["name=" + w for w in block.group(1).split()] if block else []}


def userns_base(info: Dict[str, object]) -> Tuple[int, int]:
    """First host uid and gid of a remapped engine, (0, 0) without remapping. The root then ends in
    UID.GID (docker's own naming). Raises WayClosed where `docker cp` is unproven."""
    options = info["SecurityOptions"]
    if any("name=rootless" in option for option in options):
        raise WayClosed("docker cp under a rootless engine is not proven safe")
    found = re.search(r"/([0-9]+)\.([0-9]+)/?$", str(info["DockerRootDir"]))
    if found:
        return int(found.group(1)), int(found.group(2))
    if any("userns" in option for option in options):
        raise WayClosed("the engine remaps users, and its root does not say from which uid")
    return 0, 0


def parse_mountinfo(text: str) -> List[Mount]:
    """Lines of /proc/PID/mountinfo; lines not of that form are left out (they prove nothing)."""
    mounts = []
    for line in text.split("\n"):
        left, dash, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if dash and len(fields) >= 6 and len(tail) >= 3:
            root, point, source = (unescape_octal(word) for word in (fields[3], fields[4], tail[1]))
            mounts.append(Mount(fields[2], root, point, tail[0], source, tuple(unescape_octal(o) for o in tail[2].split(","))))
    return mounts


def unescape_octal(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), word)


def own_root(mounts: List[Mount], container: Container) -> Optional[Mount]:
    """The mount at / that provably is the container's own writable layer: its upperdir, or its
    device, is the one in GraphDriver.Data. None where that cannot be shown."""
    layer = container.layer
    for mount in mounts:
        if mount.point != "/":
            continue
        if mount.fstype == "overlay" and mount.root == "/" and layer.get("UpperDir"):
            upper = [o[len("upperdir="):] for o in mount.options if o.startswith("upperdir=")]
            # overlay2 passes a path relative to its home when the options fill a page.
            relative = "/".join(layer["UpperDir"].split("/")[-2:])
            if upper and upper[0] in (layer["UpperDir"], relative):
                return mount
        if mount.root == "/rootfs" and layer.get("DeviceName") and mount.source == "/dev/mapper/" + layer["DeviceName"]:
            return mount
        if mount.fstype == "zfs" and layer.get("Dataset") and mount.source == layer["Dataset"]:
            return mount
    return None


# --- passwords and shadow files


def check_user(user: bytes, what: str) -> None:
    if not user or any(bad in user for bad in (b":", b"\n", b"\r", b"\0")):
        raise UsageError("%s: a user name is not empty and has no ':', CR, LF or NUL in it" % what)


def check_secret(secret: bytes, what: str) -> None:
    """Refuses what would set another password than the user believes. Never shows it."""
    if not secret:
        raise UsageError("%s: the password is empty" % what)
    if b"\r" in secret:
        raise UsageError("%s: there is a carriage return (CR) in the password" % what, "the file has Windows line ends: tr -d '\\r' < FILE > NEWFILE")
    if b"\n" in secret or b"\0" in secret:
        raise UsageError("%s: there is a line feed or NUL in the password" % what, "--password-file takes one password, on one line")
    if len(secret) > PASSWORD_MAX:
        raise UsageError("%s: the password has %d bytes; crypt(3) takes %d" % (what, len(secret), PASSWORD_MAX))


HASHES = (
    (rb"\$(5)\$(?:rounds=[1-9][0-9]{3,8}\$)?[./0-9A-Za-z]{0,16}\$[./0-9A-Za-z]{43}", "SHA-256"),
    (rb"\$(6)\$(?:rounds=[1-9][0-9]{3,8}\$)?[./0-9A-Za-z]{0,16}\$[./0-9A-Za-z]{86}", "SHA-512"),
    (rb"\$(2[abxy])\$(?:0[4-9]|[12][0-9]|3[01])\$[./0-9A-Za-z]{53}", "bcrypt"),
    (rb"\$(y)\$[./0-9A-Za-z]+\$[./0-9A-Za-z]{0,86}\$[./0-9A-Za-z]{43}", "yescrypt"),
)


def check_hash(value: bytes, what: str = "--encrypted") -> str:
    """The scheme ('5', '6', '2b', 'y') of a well-formed hash, else UsageError. Programs before shadow 4.19 take
    anything with -e, clear text and an empty field (a root without password) included."""
    for form, _ in HASHES:
        found = re.match(form + rb"\Z", value)
        if found:
            return found.group(1).decode("ascii")
    raise UsageError("%s: the value is not a hash that starts with $5$, $6$, $2b$ or $y$" % what, "make one with: openssl passwd -6")


def parse_password_lines(data: bytes, encrypted: bool = False) -> List[Account]:
    """USER:PASSWORD lines as for chpasswd(8); only the first colon splits. Raises UsageError, which
    names the line by its number and never shows it."""
    accounts = []               # type: List[Account]
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1] if data.endswith(b"\n") else lines, 1):
        what = "line %d" % number
        user, colon, secret = line.partition(b":")
        if not colon:
            raise UsageError("%s is not USER:PASSWORD (no colon)" % what)
        check_user(user, what)
        check_secret(secret, what)
        if encrypted:
            check_hash(secret, what)
        if any(user == known.user for known in accounts):
            raise UsageError("%s: this user has been named before" % what)
        accounts.append(Account(user, secret))
    return accounts


CRYPT64 = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def sha512_crypt(password: bytes, salt: bytes, rounds: int = 5000) -> bytes:
    """The $6$ hash of crypt(3), after Drepper's specification (SHA-crypt.txt, 2008). salt: 1 to 16
    bytes of [./0-9A-Za-z]. The crypt module left Python with 3.13, openssl 1.0 has no -6."""
    sha = hashlib.sha512
    alternate = sha(password + salt + password).digest()
    start = password + salt + repeat(alternate, len(password))
    bits = len(password)
    while bits:
        start += alternate if bits & 1 else password
        bits >>= 1
    digest = sha(start).digest()
    word = repeat(sha(password * len(password)).digest(), len(password))
    seasoning = repeat(sha(salt * (16 + digest[0])).digest(), len(salt))
    digest = sha512_rounds(digest, word, seasoning, rounds)
    prefix = b"$6$" if rounds == 5000 else b"$6$rounds=%d$" % rounds
    return prefix + salt + b"$" + sha512_text(digest)


def repeat(block: bytes, length: int) -> bytes:
    return (block * (length // len(block) + 1))[:length]


def sha512_rounds(digest: bytes, word: bytes, salt: bytes, rounds: int) -> bytes:
    """The slow part. What a round mixes in repeats every 42 rounds (2 * 3 * 7), so it is laid out
    once, two rounds at a time: three times as fast as the specification's loop."""
    sha = hashlib.sha512
    mixes = [(salt if n % 3 else b"") + (word if n % 7 else b"") for n in range(42)]
    pairs = [(mixes[n] + word, word + mixes[n + 1]) for n in range(0, 42, 2)]
    full, rest = divmod(rounds, 42)
    for even, odd in pairs * full + pairs[:rest // 2]:
        digest = sha(odd + sha(digest + even).digest()).digest()
    return sha(digest + pairs[rest // 2][0]).digest() if rest % 2 else digest


def sha512_text(digest: bytes) -> bytes:
    """crypt's own base64: groups of three bytes that rotate through the digest's thirds."""
    out = bytearray()
    first, second, third = 0, 21, 42
    for _ in range(21):
        value = digest[first] << 16 | digest[second] << 8 | digest[third]
        out += bytes(CRYPT64[value >> shift & 63] for shift in (0, 6, 12, 18))
        first, second, third = second + 1, third + 1, first + 1
    return bytes(out) + bytes((CRYPT64[digest[63] & 63], CRYPT64[digest[63] >> 6]))


def shadow_line(data: bytes, user: bytes) -> Optional[List[bytes]]:
    """The fields of a user's first line in shadow(5), None without one."""
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if fields[0] == user and len(fields) > 1:
            return fields
    return None


def shadow_field(data: bytes, user: bytes) -> Optional[bytes]:
    fields = shadow_line(data, user)
    return fields[1] if fields else None


def edit_shadow(data: bytes, hashes: Dict[bytes, bytes], day: int) -> bytes:
    """The file with each user's hash and date of last change (days since 1970) set and every other
    byte kept. Raises KeyError(user) where a user has no line."""
    left = dict(hashes)
    lines = data.split(b"\n")
    for number, line in enumerate(lines):
        fields = line.split(b":")
        if fields[0] in left and len(fields) > 1:
            fields[1] = left.pop(fields[0])
            fields[2:3] = [b"%d" % day] if len(fields) > 2 else []
            lines[number] = b":".join(fields)
    if left:
        raise KeyError(sorted(left)[0])
    return b"\n".join(lines)


def field_state(field: bytes) -> str:
    """'set', 'empty', 'never' (*, !, !!, !locked, *LK*: no password was ever set) or 'locked' by an
    administrator: one or more ! before a well-formed hash."""
    if not field:
        return "empty"
    if field.startswith(b"!"):
        kept = field.lstrip(b"!")
        return "locked" if re.match(rb"(\$[0-9a-z]+\$.+|_?[./0-9A-Za-z]{13}|_[./0-9A-Za-z]{19})\Z", kept, re.S) else "never"
    return "never" if field.startswith(b"*") else "set"


def etc_refusal(container: Container, allow_shared: bool, host_ids: Callable[[str], bool]) -> str:
    """Why the container's /etc must not be written, '' when it may. host_ids(source) tells whether
    a mount's source is the host's own /, /etc, passwd or shadow."""
    shared = [(source, target) for source, target in container.mounts if target in ETC_TARGETS]
    for source, target in shared:
        if host_ids(source):
            return "%s is the host's own %s: never written" % (target, source)
    if shared and not allow_shared:
        return "%s is a mount (%s): a change would reach beyond the container; --allow-shared-etc if that is meant" % (shared[0][1], shared[0][0] or "volume")
    if container.read_only and not any(target == "/etc" for _, target in shared):
        return "the container's root file system is read-only"
    return ""

###############################################################################
# 4. The seam: the only code that starts a process or writes a file
###############################################################################


class Answer(NamedTuple):
    """What a child left behind. Streams are cut at the limit; *_total are their lengths as sent."""
    rc: int
    out: bytes
    err: bytes
    out_total: int
    err_total: int
    seconds: float
    timed_out: bool

    def text(self) -> str:
        """Both streams for classification: runtimes put their errors on either (docker/cli#2025)."""
        return (self.err + b"\n" + self.out[:4096]).decode("utf-8", "replace")


class Host(NamedTuple):
    """Everything a call needs to know of this run. `held` keeps the lock's descriptor, `stop` is set
    by the first signal and `kill` by the second, `memo` holds what is looked up once."""
    docker: Tuple[str, ...]
    timeout: float
    dry_run: bool
    verbose: bool
    state: str
    held: List[int]
    stop: threading.Event
    kill: threading.Event
    memo: dict
    guard: threading.Lock


def run_child(host: Host, argv: Sequence[str], stdin: Optional[bytes], seconds: float, limit: int, inherit: Sequence[int], enough: int = 0) -> Answer:
    """Runs argv in its own process group without a shell. Keeps `limit` bytes of each stream and
    throws the rest away; with `enough` it stops the child once that much of stdout is there.
    After `seconds` the group is killed and the pipes drained for a bounded time (a grandchild may
    hold them; subprocess.run does not come back from that on 3.6). Raises EnvironmentFault."""
    if host.verbose:
        say("+ " + sh_line(argv))
    try:
        child = subprocess.Popen([raw(word) for word in argv], stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, pass_fds=tuple(inherit),
                                 env=dict(os.environ, LC_ALL="C"))
    except OSError as err:
        raise EnvironmentFault("%s cannot be started: %s" % (argv[0], err.strerror), "is Docker's client installed? --docker names another") from None
    return pump(host, child, stdin, seconds, limit, enough)


def pump(host: Host, child: "subprocess.Popen[bytes]", stdin: Optional[bytes], seconds: float, limit: int, enough: int) -> Answer:
    began = time.monotonic()
    end = began + seconds
    kept, total = {child.stdout: bytearray(), child.stderr: bytearray()}, {child.stdout: 0, child.stderr: 0}
    timed_out = killed = False
    left = memoryview(stdin or b"")
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr):
            selector.register(stream, selectors.EVENT_READ)
        if child.stdin:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            now = time.monotonic()
            if not killed and (now >= end or host.kill.is_set() or (enough and len(kept[child.stdout]) >= enough)):
                timed_out = now >= end or host.kill.is_set()
                kill_group(child)
                killed, end = True, now + DRAIN_SECONDS
            elif killed and now >= end:
                break
            for key, _ in selector.select(min(0.2, max(0.0, end - now))):
                if key.fileobj is child.stdin:
                    left = feed(selector, child.stdin, left)
                else:
                    collect(selector, key.fileobj, kept, total, limit)
    for stream in (child.stdin, child.stdout, child.stderr):
        close_quietly(stream)
    rc = wait_child(host, child, max(0.0, end - time.monotonic()))
    return Answer(-1 if rc is None else rc, bytes(kept[child.stdout]), bytes(kept[child.stderr]), total[child.stdout],
                  total[child.stderr], time.monotonic() - began, timed_out or rc is None)


def feed(selector: selectors.BaseSelector, stream, left: memoryview) -> memoryview:
    try:
        left = left[os.write(stream.fileno(), left[:65536]):] if left else left
    except BlockingIOError:
        return left
    except OSError:                     # the child does not want the rest: its answer will say why
        left = left[:0]
    if not left:
        selector.unregister(stream)
        close_quietly(stream)
    return left


def collect(selector: selectors.BaseSelector, stream, kept: dict, total: dict, limit: int) -> None:
    data = os.read(stream.fileno(), 65536)
    if not data:
        selector.unregister(stream)
    total[stream] += len(data)
    kept[stream] += data[:max(0, limit - len(kept[stream]))]


def close_quietly(stream) -> None:
    try:
        if stream:
            stream.close()
    except OSError:
        pass


def kill_group(child: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except OSError:
        pass


def wait_child(host: Host, child: "subprocess.Popen[bytes]", seconds: float) -> Optional[int]:
    """The exit status; None when the child had to be killed after it had closed its pipes."""
    end = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < end and not host.kill.is_set():
        time.sleep(0.005)
    if child.poll() is not None:
        return child.returncode
    kill_group(child)
    try:
        child.wait(DRAIN_SECONDS)
    except subprocess.TimeoutExpired:       # not even SIGKILL: stuck in the kernel on a sick disk
        pass
    return None


def query(host: Host, *words: str, seconds: float = 0, limit: int = 1 << 28, enough: int = 0) -> Answer:
    """A docker call that only reads. Allowed in a dry run, needs no lock."""
    return run_child(host, host.docker + words, None, seconds or max(host.timeout, CALL_SECONDS), limit, (), enough)


def change(host: Host, words: Sequence[str], stdin: Optional[bytes] = None, limit: int = 1 << 20) -> Answer:
    """A docker call that may change something. The child inherits the lock, so an orphan of a killed
    run is seen by the next one."""
    if host.dry_run:
        raise DockfixError("internal error: a change was asked for in a dry run")
    return run_child(host, host.docker + tuple(words), stdin, host.timeout, limit, host.held)


FAULTS = (
    (r"permission denied", "no permission to speak to the Docker daemon", "sudo python3 dockfix.py ..., or --docker 'sudo docker'"),
    (r"[Cc]annot connect to the Docker daemon|[Ii]s the docker daemon running|connection refused|no such host|error during connect",
     "the Docker daemon does not answer", "systemctl status docker; journalctl -u docker -n 50"),
)


def expect(answer: Answer, what: str) -> Answer:
    """The answer, or EnvironmentFault in the user's words when docker itself failed."""
    if answer.timed_out:
        raise EnvironmentFault("%s did not answer in %d s" % (what, answer.seconds), "a sick daemon: systemctl status docker")
    if answer.rc == 0:
        return answer
    for pattern, msg, hint in FAULTS:
        if re.search(pattern, answer.text()):
            raise EnvironmentFault("%s: %s" % (msg, first_line(answer)), hint)
    raise EnvironmentFault("%s failed (exit %d): %s" % (what, answer.rc, first_line(answer)), "docker version")


def first_line(answer: Answer) -> str:
    lines = [line.strip() for line in answer.text().split("\n") if line.strip()]
    return lines[0][:300] if lines else "no message"


def list_containers(host: Host, filters: Sequence[str] = ()) -> List[Target]:
    words = ["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Status}}"]
    for one in filters:
        words += ["--filter", one]
    return parse_ps(expect(query(host, *words), "docker ps").out.decode("utf-8", "surrogateescape"))


def inspect_containers(host: Host, ids: Sequence[str]) -> Dict[str, Container]:
    """Facts by id. One call for CHUNK_IDS containers; one that is gone is left out by docker, which
    then exits 1 but prints the others."""
    found = {}
    for start in range(0, len(ids), CHUNK_IDS):
        answer = query(host, "inspect", "--type", "container", *ids[start:start + CHUNK_IDS])
        if answer.rc and not re.search(r"No such (container|object)", answer.text()):
            expect(answer, "docker inspect")
        found.update((one.id, one) for one in parse_inspect(answer.out))
    return found


def engine_userns(host: Host) -> Tuple[int, int]:
    """First host uid and gid of the engine's remapping; looked up once, and only for docker cp."""
    with host.guard:
        if "userns" not in host.memo:
            answer = query(host, "info", "--format", "{{json .}}")
            if answer.rc or not answer.out.strip():         # Docker 1.12 has no info --format
                answer = query(host, "info")
            host.memo["userns"] = userns_base(parse_info(expect(answer, "docker info").out.decode("utf-8", "replace")))
        return host.memo["userns"]


# --- the host's files


def open_state(path: str) -> None:
    """Makes the state folder 0700; refuses one that somebody else could write."""
    try:
        os.makedirs(raw(path), 0o700, exist_ok=True)
        found = os.lstat(raw(path))
    except OSError as err:
        raise EnvironmentFault("the state folder %s cannot be made: %s" % (path, err.strerror), "--state DIR names another, such as /run/dockfix") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Refused("the state folder %s is not a folder that only this user can write" % path, "--state DIR names another")


def take_lock(host: Host, exclusive: bool = False) -> None:
    """flock on STATE/lock: storage changes exclusive, the container commands shared."""
    open_state(host.state)
    try:
        lock = os.open(raw(os.path.join(host.state, "lock")), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise EnvironmentFault("the lock in %s cannot be opened: %s" % (host.state, err.strerror), "--state DIR names another folder, such as /run/dockfix") from None
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise Locked("another dockfix, or a child of one that was killed, changes the storage now (lock: %s/lock)" % host.state,
                     "wait for it: fuser -v %s/lock" % host.state) from None
    host.held.append(lock)


def read_input(path: str, limit: int, what: str) -> bytes:
    """A file that the user named, '-' = standard input; at most `limit` bytes, more is a UsageError."""
    try:
        with (os.fdopen(os.dup(0), "rb") if path == "-" else open(raw(path), "rb")) as source:
            data = source.read(limit + 1)
    except OSError as err:
        raise UsageError("%s %s cannot be read: %s" % (what, path, err.strerror)) from None
    if len(data) > limit:
        raise UsageError("%s %s is longer than %d bytes" % (what, path, limit))
    return data


def write_secret_file(path: str, data: bytes) -> None:
    """A new file, 0600, on the disk before this returns. Refuses one that exists."""
    try:
        new = os.open(raw(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused("%s exists; it is never overwritten" % path, "--output NEWFILE") from None
    except OSError as err:
        raise EnvironmentFault("%s cannot be written: %s" % (path, err.strerror), "--output FILE on another disk") from None
    try:
        os.fchmod(new, 0o600)
        write_all(new, data)
        os.fsync(new)
        sync_folder(os.path.dirname(os.path.abspath(path)))
    except OSError as err:
        os.unlink(raw(path))
        raise EnvironmentFault("%s cannot be written: %s; no password was changed" % (path, err.strerror), "--output FILE on another disk") from None
    finally:
        os.close(new)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def sync_folder(path: str) -> None:
    folder = os.open(raw(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def host_accounts() -> Dict[str, Tuple]:
    """The tripwire's look at the host's own account files: inode, mtime, size, and bytes where
    readable (as a digest)."""
    seen = {}
    for path in ("/etc/shadow", "/etc/passwd"):
        try:
            found = os.stat(path)
            seen[path] = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            with open(path, "rb") as source:
                seen[path] += (hashlib.sha512(source.read()).digest(),)
        except OSError:
            seen.setdefault(path, ())
    return seen


def is_hosts_own(source: str) -> bool:
    """Is a mount's source the host's own /, /etc, passwd or shadow, under whatever name?"""
    if not source.startswith("/"):
        return False
    own = ETC_TARGETS
    if posixpath.normpath("/" + source.lstrip("/")) in own or os.path.realpath(source) in own:
        return True
    try:
        return any(os.path.samefile(raw(source), path) for path in own)
    except OSError:
        return False


# --- a container's /etc, by descriptors below /proc/PID: no chroot, no fork, no link is followed


class Shadow(NamedTuple):
    """A container's shadow file as read: bytes, owner, mode, and its state as (dev, inode, mtime, size)."""
    data: bytes
    uid: int
    gid: int
    mode: int
    state: Tuple


def read_at(folder: int, name: str, limit: int) -> Tuple[bytes, os.stat_result]:
    """A regular file of at most `limit` bytes; never a link, never blocks on a fifo. Raises Refused."""
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    check_regular("/etc/" + name, found.st_mode, found.st_size, limit)
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder), "rb") as source:
        opened = os.fstat(source.fileno())
        check_regular("/etc/" + name, opened.st_mode, opened.st_size, limit)
        return source.read(limit + 1), opened


def check_regular(path: str, mode: int, size: int, limit: int) -> None:
    kinds = ((stat.S_ISLNK, "a symbolic link"), (stat.S_ISFIFO, "a fifo"), (stat.S_ISDIR, "a directory"), (stat.S_ISREG, ""))
    kind = next((word for test, word in kinds if test(mode)), "a device or socket")
    if kind:
        raise Refused("its %s is %s, not a file" % (path, kind))
    if size > limit:
        raise Refused("its %s has %d bytes; more than %d is not a shadow file" % (path, size, limit))


def open_etc(container: Container) -> int:
    """A descriptor of the container's own /etc, through its first process. Raises WayClosed where
    it is not proven that this is the container's own layer: a process may have chrooted itself
    into a mount of the host, and a pid may have been reused."""
    fds = []
    try:
        proc = keep(fds, os.open("/proc/%d" % container.pid, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        if container.id not in read_proc(proc, "cgroup"):
            raise WayClosed("process %d is not this container's" % container.pid)
        root = keep(fds, os.open("root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc))
        # After the open, so that what is judged is what was opened: the device ties both together.
        mount = own_root(parse_mountinfo(read_proc(proc, "mountinfo")), container)
        device = os.fstat(root).st_dev
        if not mount or mount.dev != "%d:%d" % (os.major(device), os.minor(device)):
            raise WayClosed("the root of its first process is not shown to be the container's own layer (driver %s)" % (container.driver or "unknown"))
        if not stat.S_ISDIR(os.stat("etc", dir_fd=root, follow_symlinks=False).st_mode):
            raise Refused("its /etc is a link, not a directory")
        etc = os.open("etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        if os.fstat(etc).st_dev != device:
            os.close(etc)
            raise WayClosed("its /etc is on another device")
        return etc
    except OSError as err:
        raise WayClosed("/proc/%d: %s" % (container.pid, err.strerror)) from None
    finally:
        for fd in fds:
            os.close(fd)


def keep(fds: List[int], fd: int) -> int:
    fds.append(fd)
    return fd


def read_proc(proc: int, name: str) -> str:
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb") as source:
        return source.read().decode("utf-8", "surrogateescape")


def proc_shadow(etc: int) -> Shadow:
    """The shadow file below an opened /etc; passwd must be a plain file too, for chpasswd writes both."""
    try:
        check_regular("/etc/passwd", os.stat("passwd", dir_fd=etc, follow_symlinks=False).st_mode, 0, 0)
    except FileNotFoundError:
        pass
    try:
        data, found = read_at(etc, "shadow", SHADOW_MAX)
    except FileNotFoundError:
        raise Refused("it has no /etc/shadow") from None
    except OSError as err:
        raise WayClosed("/etc/shadow: %s" % err.strerror) from None
    return Shadow(data, found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), file_state(found))


def file_state(found: os.stat_result) -> Tuple:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def proc_write(container: Container, edit: Callable[[bytes], bytes], stop: threading.Event) -> None:
    """Replaces the shadow file atomically under its lock, keeping owner, mode and xattrs. Any
    surprise is WayClosed, and the old file is still there."""
    if os.geteuid() != 0:
        raise WayClosed("only root can go through /proc")
    if not container.pid:
        raise WayClosed("it has no running process")
    etc = open_etc(container)
    try:
        owner = os.fstat(etc)
        lock = lock_accounts(etc, owner, stop)
        try:
            replace_shadow(etc, proc_shadow(etc), edit)
        finally:
            os.close(lock)
    except OSError as err:
        raise WayClosed("writing through /proc: %s" % err.strerror) from None
    finally:
        os.close(etc)


def lock_accounts(etc: int, owner: os.stat_result, stop: threading.Event) -> int:
    """The lock of lckpwdf(3). One made here gets /etc's owner: under user-namespace remapping a file
    of the host's root would lock the container's root out for good."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock = os.open(".pwd.lock", flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=etc)
        os.fchown(lock, owner.st_uid, owner.st_gid)
    except FileExistsError:
        lock = os.open(".pwd.lock", flags, dir_fd=etc)
    try:
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            raise WayClosed("its /etc/.pwd.lock is not a file")
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except OSError as err:
                if err.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() >= end or stop.is_set():
                raise WayClosed("its /etc/.pwd.lock was held by another program for %d s" % LOCK_SECONDS)
            time.sleep(0.1)
    except BaseException:
        os.close(lock)
        raise


def replace_shadow(etc: int, old: Shadow, edit: Callable[[bytes], bytes]) -> None:
    name = ".shadow.dockfix-%s" % os.urandom(8).hex()
    source = os.open("shadow", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=etc)
    new = -1
    try:
        new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=etc)
        write_all(new, edit(old.data))
        os.fchown(new, old.uid, old.gid)
        os.fchmod(new, old.mode)
        copy_xattrs(source, new)
        os.fsync(new)
        if file_state(os.fstat(source)) != old.state or file_state(os.stat("shadow", dir_fd=etc, follow_symlinks=False)) != old.state:
            raise WayClosed("its /etc/shadow was changed by another program meanwhile")
        os.rename(name, "shadow", src_dir_fd=etc, dst_dir_fd=etc)
        os.fsync(etc)
    except BaseException:
        unlink_quietly(name, etc, new >= 0)
        raise
    finally:
        os.close(source)
        if new >= 0:
            os.close(new)


def unlink_quietly(name: str, folder: int, made: bool) -> None:
    try:
        if made:
            os.unlink(name, dir_fd=folder)
    except OSError:
        pass


def copy_xattrs(source: int, new: int) -> None:
    """SELinux labels and ACLs; one that the new file got by itself is not set again."""
    try:
        names = os.listxattr(source)
    except OSError as err:
        if err.errno in (errno.ENOTSUP, errno.ENOSYS):
            return
        raise
    for name in names:
        value = os.getxattr(source, name)
        if name not in os.listxattr(new) or os.getxattr(new, name) != value:
            os.setxattr(new, name, value)


# --- a container's /etc through docker cp


def cp_first(host: Host, container: Container, path: str, limit: int) -> tarfile.TarInfo:
    """Header and data (as .pax_headers-free TarInfo with .data set) of the first member docker cp
    sends for a path; the client is stopped once `limit` bytes are here."""
    answer = query(host, "cp", container.id + ":" + path, "-", seconds=host.timeout, limit=limit, enough=limit)
    if len(answer.out) < 512:
        text = answer.text()
        if re.search(r"No such container|is not found|removal.*in progress", text) and container.id[:12] in text and path not in text:
            raise Gone()
        if re.search(r"Could not find the file|[Nn]o such file or directory|not found in container", text):
            raise FileNotFoundError(errno.ENOENT, path)
        if answer.timed_out:
            raise WayClosed("docker cp did not answer in %d s" % host.timeout)
        raise WayClosed("docker cp: %s" % first_line(answer))
    try:
        # A stream cut by `limit` is fine: only the first member counts.
        member = next(iter(tarfile.open(fileobj=io.BytesIO(answer.out), mode="r|")))
    except (tarfile.TarError, StopIteration, ValueError, OSError, EOFError):
        raise WayClosed("docker cp sent something that is not a tar stream") from None
    offset = member.offset_data
    member.data = answer.out[offset:offset + member.size]
    return member


def cp_shadow(host: Host, container: Container) -> Shadow:
    """The shadow file by docker cp; ids are the host's under user-namespace remapping."""
    try:
        if not cp_first(host, container, "/etc", 512).isdir():
            raise Refused("its /etc is a link, not a directory")
        member = cp_first(host, container, "/etc/shadow", SHADOW_MAX + 16384)
    except FileNotFoundError as err:
        raise Refused("it has no %s" % err.strerror if False else "it has no /etc/shadow") from None
    kind = stat.S_IFREG if member.isreg() else stat.S_IFLNK if member.issym() or member.islnk() else stat.S_IFIFO if member.isfifo() else stat.S_IFDIR if member.isdir() else stat.S_IFCHR
    check_regular("/etc/shadow", kind, member.size, SHADOW_MAX)
    if len(member.data) != member.size:
        raise WayClosed("docker cp sent only a part of /etc/shadow")
    return Shadow(member.data, member.uid, member.gid, member.mode, ())


def shadow_tar(old: Shadow, data: bytes, base: Tuple[int, int]) -> bytes:
    """The tar for `docker cp - C:/etc`. What can fail (space, ids) fails on the first member, while
    the old file is still there; the link then takes its place; the third empties the leftover,
    which docker cp cannot delete."""
    uid, gid = old.uid - base[0], old.gid - base[1]
    if uid < 0 or gid < 0:
        raise WayClosed("the owner of its /etc/shadow (%d:%d) is outside the engine's user namespace (from %d:%d)" % (old.uid, old.gid, base[0], base[1]))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, body, link in ((LEFTOVER, data, ""), ("shadow", b"", LEFTOVER), (LEFTOVER, b"", "")):
            member = tarfile.TarInfo(name)
            member.uid, member.gid, member.mode, member.mtime = uid, gid, old.mode, int(time.time())
            member.type, member.linkname, member.size = (tarfile.LNKTYPE if link else tarfile.REGTYPE), link, len(body)
            tar.addfile(member, io.BytesIO(body))
    return out.getvalue()


def cp_write(host: Host, container: Container, edit: Callable[[bytes], bytes]) -> None:
    """Replaces the shadow file through docker cp, reads it back, and puts the old bytes back if
    the read-back differs. docker cp has no lock and is not atomic: the last way."""
    base = engine_userns(host)
    if base != (0, 0) and container.userns == "host":
        raise WayClosed("--userns host under a remapping engine: docker cp would delete its /etc/shadow (moby#43698)")
    old = cp_shadow(host, container)
    new = edit(old.data)
    answer = change(host, ["cp", "-", container.id + ":/etc"], shadow_tar(old, new, base))
    try:
        same = cp_shadow(host, container).data == new
    except (Refused, WayClosed):
        same = False
    if not same:
        change(host, ["cp", "-", container.id + ":/etc"], shadow_tar(old, old.data, base))
        raise WayClosed("docker cp: %s; the old file was put back" % (first_line(answer) if answer.rc else "what was read back differs from what was sent"))
    if container.running and not container.paused:       # tidy where the image has an rm; empty otherwise
        change(host, ["exec", "-u", "0", container.id, "rm", "-f", "/etc/" + LEFTOVER])
