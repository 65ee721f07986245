#!/usr/bin/env python3
# dockfix: repairs Docker on hosts where nothing can be installed. One file, no network.
# SPDX-License-Identifier: MIT. The next line is for Python 2, which shows it as its syntax error.
f"dockfix needs Python 3.6 or newer: run it as  python3 dockfix.py"

# The chapters, each readable alone; a chapter uses itself and those above it:
#
#    1 constants, errors              17 layer owners and orphans
#    2 text, sizes, tar streams       18 which engine answers
#    3 options, report of a run       19 storage: where the space goes
#    4 the host: processes, files,    20 owner: whose a directory, layer or device is
#      lock, terminal                 21 reclaim: give space back
#    5 storage drivers: one row each  22 the change engine: step, plan, journal, script
#    6 Docker: ps, inspect, info,     23 create recipes: inspect field to docker flag
#      its own mounts                 24 the daemon: stop, start, options
#    7 choosing containers            25 backup and restore
#    8 files of a container           26 pool: grow and recreate a devicemapper loop pool
#    9 chpasswd                       27 relocate: move the Docker root
#   10 exec                           28 resume, rollback, discard
#   11 time zones, clock              29 output: tables and JSON
#   12 timezone                       30 the command table, help
#   13 faketime                       31 main
#   14 the daemon's options
#   15 Docker's root: place, sizes, devicemapper's pool
#   16 layer records: what a Docker root holds
#
# Where to add: a command: COMMANDS (30) and a chapter of its own; an option: the table (30) and a
# field of Options (3); a storage driver: a row of STORAGE_DRIVERS (5); a finding of `storage`:
# STORAGE_FINDINGS (19); a refusal of chpasswd: require_settable (9), of a storage change:
# require_stoppable (24); a setting that `restore` carries over: a row of CREATE_FLAGS (23); another
# wording of docker's errors: DAEMON_FAULTS (6), of `docker info`: INFO_KEYS (6).

import os
import sys

# A root tool copied to /tmp must not import a json.py lying beside it. Both modules above were
# loaded by the interpreter itself before this line, so only later imports can be led astray.
if __name__ == "__main__":
    _here = globals().get("__file__") or ""
    if sys.path[:1] in (
        [""],
        [os.path.dirname(os.path.abspath(_here))],
        [os.path.dirname(os.path.realpath(_here))],
    ):
        del sys.path[0]

import argparse
import base64
import calendar
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
import struct
import subprocess
import tarfile
import termios
import threading
import time
from typing import (
    IO,
    BinaryIO,
    Callable,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
    TypeVar,
    Union,
)

__doc__ = """dockfix: one file that repairs Docker on hosts where nothing can be installed.

It speaks to Docker through the docker command only. Nothing on the host runs through a shell. No
password is ever in an argument list, an environment, a log or any output. --dry-run changes nothing
and prints a POSIX shell script that does what the real run would do.
"""


###############################################################################
# 1. Constants and errors
###############################################################################

# Limits, places, and the errors with their exit codes. A limit is no setting: it bounds what a
# hostile container, disk or archive can make dockfix read, hold or wait for.

VERSION = "0.1.0"
SCHEMA = "dockfix/1"

# Time limits, in seconds.
CALL_SECONDS = 60.0  # default bound of one call for one container
WALK_SECONDS = 10.0  # what looking for sizes may take in all
LOOK_AGAIN_SECONDS = 0.5  # an engine makes and removes the records of a layer one after the other
LOCK_SECONDS = 15.0  # what lckpwdf(3) waits for /etc/.pwd.lock
DRAIN_SECONDS = 2.0  # after a kill: a grandchild may hold the pipe for ever
BUILD_SECONDS = 900.0  # to compile libfaketime
STEADY_SECONDS = 0.05  # the clock of a folder's last change ticks every 1 to 10 ms
UNPAUSE_TRIES = 5

# How much is read, in bytes: what is longer is refused, never held in memory.
READ_MAX = 1 << 28  # bytes of a file of the host, or of docker's output, that is read whole
READ_PIECE = 1 << 18
READ_BACK_MAX = 1 << 26  # bytes of a file that was written, or is to be replaced
HEAD_BYTES = 65536  # of a program: its kind stands at its start
RECORD_MAX = 16 << 20  # of a record of a Docker root: a huge environment stays far below
SHADOW_MAX = 1 << 20  # of a small settings file in a container
ACCOUNTS_MAX = 64 << 20  # of /etc/passwd and /etc/shadow: a million accounts
HEADER_BYTES = 16384  # of a tar: the first header is in it, with a long name or link too
TAR_BLOCK = 512
TAR_EXTRA_MAX = 1 << 20  # bytes of a tar member's long names and attributes
TAR_CHUNK = 1 << 20  # bytes read at once of a tar member's content

# How many.
ARCHIVE_NAMES_MAX = 200000  # members of a docker save archive: some five for each image and layer
ARCHIVE_STEPS_MAX = 100000  # things that its JSON names: a hostile one names the same for ever
ARCHIVE_DEPTH_MAX = 8  # indexes in indexes, links to links
LINKS_MAX = 40  # as many links on one path as the kernel follows
BESIDE = 32  # docker clients at once: each takes some 20 MB
CHUNK_IDS = 500  # ids in one docker call: 65 bytes each, far below ARG_MAX
ID_MAX = 65535  # a user namespace of the engine spans so many ids
PASSWORD_MAX = 511  # libcrypt's own limit, bytes

# Where logs become worth a word, in bytes.
LOG_LIMIT = 100 << 20  # bytes: reclaim empties longer logs, unless --max-log says another
LOG_LARGE = 1 << 30  # a log without rotation that is worth a warning

# Places.
DOCKER_ROOT = "/var/lib/docker"  # where nothing else is said
CONTAINERD_ROOT = "/var/lib/containerd"  # where its settings name no other
CONTAINERD_SETTINGS = "/etc/containerd/config.toml"
MAPPER = "/dev/mapper"
SBIN_PATH = ":/usr/sbin:/sbin"  # dmsetup, losetup
ETC_TARGETS = ("/", "/etc", "/etc/passwd", "/etc/shadow")
SERVICE_PROGRAMS = ("systemctl", "service")
SHADOW_COPY_NAME = ".shadow.dockfix"
# beside a settings file that somebody changed during a storage change: what stood there
FOREIGN_EDIT_SUFFIX = ".dockfix-kept"
JOURNAL = "journal.json"  # in the state folder while a storage change is under way

# How a storage change is going, as its journal says it.
STATE_ON = "on"  # its steps are done, one after the other
STATE_BACK = "back"  # they are undone, one after the other
STATE_DONE = "done"
STATE_UNDONE = "undone"
STATE_DISCARDING = "discarding"  # its old data is being deleted: there is no way back

# Words of several chapters.
HALF_WAY_HINT = "python3 dockfix.py resume, or: python3 dockfix.py rollback"
NOT_FINISHED = "not finished in time"

# What these programs, and these words of docker's, change is not on the disk yet when they end: a
# power cut would take it back behind the journal.
SYNCED = {
    "mkdir",
    "chmod",
    "mv",
    "rm",
    "rmdir",
    "dd",
    "cp",
    "truncate",
    "rsync",
    "find",
    "create",
    "load",
    "import",
    "tag",
    "commit",
    "rmi",
}


class DockfixError(Exception):
    """What was wrong, in the user's words, and what to type next. `code` is the exit code.

    In `hint`, "python3 dockfix.py NAME ..." is a command of this program: complete_hint gives it
    the options of this run.
    """

    code = 1

    def __init__(self, msg: str, hint: str = "") -> None:
        Exception.__init__(self, msg)
        self.msg = msg
        self.hint = hint


class UsageError(DockfixError):
    """The command line cannot be carried out, whatever the host is like."""

    code = 2


class Refused(DockfixError):
    """A safety check says no, or a confirmation is missing."""

    code = 5


class EnvironmentFault(DockfixError):
    """What dockfix needs is not there: docker, its daemon, a driver, the rights of root."""

    code = 6


class HalfWay(DockfixError):
    """A storage change stands half-way: it must be finished or undone first."""

    code = 7


class Locked(DockfixError):
    """Another dockfix holds the lock."""

    code = 8


class ArchiveError(DockfixError):
    """A tar that is broken, cut off, or made to do harm."""


class ContainerGone(Exception):
    """The container vanished between look and deed."""


class MethodUnavailable(Exception):
    """This way into the container cannot be used; the text says why. Another may be open."""


class NoAnswer(MethodUnavailable):
    """docker cp did not answer: what was sent may still arrive."""


class PathMoved(NoAnswer):
    """Something in the container moved a folder, or made it a link, while dockfix wrote: where the
    bytes are now is not known."""


class EtcIsAMount(MethodUnavailable):
    """/etc is a mount that docker does not tell of."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; args[0] is its number."""


class AccountFiles(NamedTuple):
    """The content of a container's account files; None where there is no such file."""

    passwd: Optional[bytes]
    shadow: Optional[bytes]


###############################################################################
# 2. Text, sizes, times
###############################################################################

# Pure functions on text, sizes and tar streams; nothing here starts a process, opens a file or
# knows of Docker. What comes from a container is never trusted: it is escaped before it reaches a
# terminal, quoted before it reaches a script, and a tar is read as a stream in which every size is
# bounded and no name is followed. Facts: the format of tar and pax headers is that of POSIX.1-2001
# (pax, "ustar Interchange Format") with GNU tar's long names.


# Text for terminals and shells.


def escape_controls(text: str) -> str:
    """The text with control, format and undecodable characters escaped, so that nothing that comes
    from a container can steer a terminal. A line end is escaped too."""
    escaped = ""
    for character in text:
        if not character.isprintable():
            character = escape_character(character)
        escaped += character
    return escaped


def escape_character(character: str) -> str:
    """As a Python string literal would have it: \\x1b, \\n, \\u202e."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8 (surrogateescape)
        return "\\x%02x" % (code - 0xDC00)
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def os_bytes(text: str) -> bytes:
    """The bytes of a word for argv and paths: LANG=C must not matter (Python 3.6)."""
    return text.encode("utf-8", "surrogateescape")


def os_text(data: bytes) -> str:
    """The reverse of os_bytes."""
    return data.decode("utf-8", "surrogateescape")


def format_bytes(data: bytes) -> str:
    """Text for messages; what is no UTF-8 is escaped."""
    return data.decode("utf-8", "backslashreplace")


def quote_word(text: str) -> str:
    """One word for a POSIX shell. Control bytes come from printf, so that the script itself can be
    shown on a terminal; final newlines, which $(...) drops, come from IFS."""
    if text.isprintable():
        return shlex.quote(text)
    head = text.rstrip("\n")
    quoted = ""
    if head:
        quoted = "$(printf '%s')" % quote_printf_format(os_bytes(head))
    newlines = len(text) - len(head)
    return '"%s%s"' % (quoted, "${IFS#??}" * newlines)


def quote_printf_format(data: bytes) -> str:
    """A format of printf(1) that prints these bytes, for use between single quotes."""
    quoted = ""
    for byte in data:
        is_plain = 32 <= byte < 127 and byte not in b"%\\'"
        if byte == ord("-") and not quoted:
            is_plain = False  # at the start printf would take it for an option
        if is_plain:
            quoted += chr(byte)
        else:
            quoted += "\\%03o" % byte
    return quoted


def quote_line(argv: Sequence[str]) -> str:
    return " ".join(quote_word(word) for word in argv)


def format_names(names: Sequence[str]) -> str:
    """'a, b, c and 2 more'."""
    text = ", ".join(names[:3])
    if len(names) > 3:
        text += " and %d more" % (len(names) - 3)
    return text


# Numbers and sizes.


def parse_byte_count(text: str, kilo: int) -> Optional[int]:
    """Bytes of '500', '64K', '1.5 GB' or '20MiB', rounded to a whole byte; None for anything else.

    Every size that is text is read here. kilo: what K and KB stand for, 1000 or 1024; KiB is 1024
    in any case. The callers differ in what else they demand of the text.
    """
    form = r"([0-9]{1,15})(?:\.([0-9]{1,3}))? ?(?:([KMGT])(iB|B)?|B)?\Z"
    match = re.match(form, text, re.A | re.I)
    if not match:
        return None
    whole, fraction, letter, suffix = match.groups(default="")
    if suffix.lower() == "ib":
        kilo = 1024
    unit = 1
    if letter:
        power = "KMGT".index(letter.upper()) + 1
        unit = kilo**power
    # In thousandths, so that no float rounds a large size.
    thousandths = int(whole + fraction.ljust(3, "0"))
    return (thousandths * unit + 500) // 1000


class SizeRequest(NamedTuple):
    """A size to be reached: so many bytes, or so many more than there are now."""

    amount: int  # bytes
    is_growth: bool

    def bytes_from(self, now: int) -> int:
        if self.is_growth:
            return now + self.amount
        return self.amount


def parse_size_request(text: str) -> SizeRequest:
    """A size on the command line, or '+100G' for so much more. Raises UsageError."""
    if text.startswith("+"):
        return SizeRequest(parse_size(text[1:]), True)
    return SizeRequest(parse_size(text), False)


def parse_size(text: str) -> int:
    """Bytes of a size on the command line: '500', '64K', '1.5M', '20MiB', all binary.

    'GB' is refused (UsageError), because it means 1000 to some and 1024 to others.
    """
    size = None
    if re.match(r"([0-9]+|[0-9.]+[KMGT](iB)?)\Z", text, re.A | re.I):
        size = parse_byte_count(text, 1024)
    if size is not None:
        return size
    hint = "such as 500M or 20GiB"
    decimal = re.match(r"([0-9.]+)([KMGT])B\Z", text, re.A | re.I)
    if decimal:
        number = decimal.group(1) + decimal.group(2).upper()
        hint = "write %s or %siB, both binary" % (number, number)
    raise UsageError("not a size: %s" % text, hint)


def parse_option_size(text: str) -> Optional[int]:
    """Bytes of a size as Docker's options take it: 8G, 500GB, 10GiB, all binary (RAMInBytes in
    docker/go-units, size.go). None where the text is no such size."""
    if not re.match(r"[0-9]+([KMGT](i?B)?)?\Z", text, re.A | re.I):
        return None
    return parse_byte_count(text, 1024)


def format_option_size(size: int) -> str:
    """A size as Docker's options take it: '500G', '1536M', plain bytes where nothing larger is
    exact."""
    letter = ""
    for larger in "KMGT":
        if not size or size % 1024:
            break
        size //= 1024
        letter = larger
    return "%d%s" % (size, letter)


def parse_docker_size(text: str) -> Optional[int]:
    """Bytes of a size as docker prints it ('107.4 GB', '65.54kB', '0 B', '1.5GiB'), exact within
    what is printed; a remark may follow. None for anything else.

    HumanSize and BytesSize in docker/go-units, size.go, print at most four digits, and a unit that
    keeps the number below 1000 or 1024: a text of another form is damaged.
    """
    match = re.match(r"([0-9]{1,4})(\.[0-9]{1,3})? ?(B|[kKMGT]B|[KMGT]iB)(?= |\Z)", text, re.A)
    if not match:
        return None
    whole, fraction, unit = match.groups(default="")
    if len(whole + fraction.lstrip(".")) > 4 or re.match("0[0-9]", whole):
        return None
    largest = 1023 if unit.endswith("iB") else 1000  # 999.96 is printed as 1000
    if int(whole) > largest:
        return None
    return parse_byte_count(match.group(), 1000)


def last_number(text: str) -> int:
    """The number at the end of what `systemctl show -p MainPID` or a pid file says; 0 where there
    is none."""
    match = re.search(r"([0-9]+)\s*\Z", text)
    if not match:
        return 0
    return int(match.group(1))


def format_size(size: float) -> str:
    """Bytes for people, in binary units: '1.5 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    if unit == "B":
        return "%d B" % size
    return "%.1f %s" % (size, unit)


def format_count(number: int, noun: str) -> str:
    """'1 layer', '2 layers'."""
    if number == 1:
        return "1 " + noun
    return "%d %ss" % (number, noun)


def format_known_size(size: Optional[int], complete: bool = True) -> str:
    """'unknown' for None; 'at least ...' where a part of it is unknown."""
    if size is None:
        return "unknown"
    if not complete:
        return "at least " + format_size(size)
    return format_size(size)


def add_sizes(sizes: Iterable[Optional[int]]) -> Optional[int]:
    """The sum of sizes; None where one is unknown."""
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


# Tar files, read as a stream: nothing is unpacked, no name is followed.


TAR_XATTR = "SCHILY.xattr."
TAR_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
TAR_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tuple(TAR_LONG))
TAR_HEADER_ONLY = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


class TarReader:
    """The members of a tar, one after the other, from a stream that cannot be wound back.

    A volume and an image come from a container, an archive from a stick: all sizes are bounded, and
    what is cut off or malformed raises ArchiveError. `progress` is called with the number of bytes
    that were read so far.
    """

    def __init__(
        self, stream: BinaryIO, progress: Callable[[int], None] = lambda done: None
    ) -> None:
        self.stream, self.progress = stream, progress
        self.offset = 0  # bytes read
        self.left = self.padding = 0  # of the member whose header was read last

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        while True:
            for _ in self.data():
                pass
            member = self.header()
            if member is None:
                return
            yield member

    def read_up_to(self, size: int) -> bytes:
        """So many bytes, fewer only where the stream ends: a pipe gives what it has."""
        data = self.stream.read(size)
        while len(data) < size:
            piece = self.stream.read(size - len(data))
            if not piece:
                break
            data += piece
        self.offset += len(data)
        self.progress(self.offset)
        return data

    def read_exactly(self, size: int) -> bytes:
        data = self.read_up_to(size)
        if len(data) != size:
            raise ArchiveError("the tar is cut off")
        return data

    def data(self) -> Iterator[bytes]:
        """The content of the member whose header was read last, as far as it was not read yet."""
        while self.left:
            piece = self.read_exactly(min(self.left, TAR_CHUNK))
            self.left -= len(piece)
            yield piece
        self.read_exactly(self.padding)
        self.padding = 0

    def drain(self) -> None:
        """Reads what stands behind the last member, so that who writes the tar is not cut off."""
        while self.stream.read(TAR_CHUNK):
            pass

    def header(self) -> Optional[tarfile.TarInfo]:
        """The next member's header, with what its extended headers say; None at the end."""
        extra = {}  # type: Dict[str, str]
        extra_size = 0
        while True:
            block = self.read_up_to(TAR_BLOCK)
            at_end = not block.strip(b"\0")
            # docker always writes a block of zeros at the end: without one the tar is cut off
            if len(block) < TAR_BLOCK or (at_end and extra):
                raise ArchiveError("the tar is cut off")
            if at_end:
                return None
            member = parse_tar_header(block)
            if member.type not in TAR_EXTENDED:
                apply_extended_headers(member, extra)
                self.left, self.padding = member.size, -member.size % TAR_BLOCK
                return member
            extra_size += member.size + TAR_BLOCK
            if extra_size > TAR_EXTRA_MAX:
                raise ArchiveError("a tar header is longer than %d bytes" % TAR_EXTRA_MAX)
            content = self.read_exactly(member.size + -member.size % TAR_BLOCK)[: member.size]
            if member.type in TAR_LONG:
                extra.setdefault(TAR_LONG[member.type], os_text(content.split(b"\0")[0]))
            elif member.type != tarfile.XGLTYPE:
                extra.update(parse_pax(content))


def parse_tar_header(block: bytes) -> tarfile.TarInfo:
    """Raises ArchiveError."""
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        raise ArchiveError("a tar header is not understood") from None
    if member.size < 0 or member.type == tarfile.GNUTYPE_SPARSE:
        raise ArchiveError("a tar header is not understood")
    return member


def parse_pax(data: bytes) -> Dict[str, str]:
    """The records of a pax header, "LENGTH KEY=VALUE" and a newline each, where LENGTH counts the
    whole record. Raises ArchiveError."""
    records = {}
    begin = 0
    form = re.compile(rb"([0-9]{1,8}) ([^=\n\0]+)=")
    while begin < len(data):
        start = form.match(data, begin)
        if not start:
            raise ArchiveError("a tar header is not understood")
        length, key = start.groups()
        end = begin + int(length)
        is_whole = start.end() < end <= len(data)
        if not is_whole or data[end - 1 : end] != b"\n":
            raise ArchiveError("a tar header is not understood")
        value = data[start.end() : end - 1]
        records[os_text(key)] = os_text(value)
        begin = end
    return records


def apply_extended_headers(member: tarfile.TarInfo, extra: Dict[str, str]) -> None:
    """Writes into the member what its pax headers and GNU long names say. Raises ArchiveError."""
    try:
        for key in ("uid", "gid", "size", "mtime"):
            number = extra.get(key, getattr(member, key))
            setattr(member, key, int(float(number)))
    except (ValueError, OverflowError):
        raise ArchiveError("a tar header is not understood") from None
    member.name = extra.get("path", member.name)
    member.linkname = extra.get("linkpath", member.linkname)
    member.pax_headers = {}
    for key, value in extra.items():
        if key.startswith("GNU.sparse"):
            raise ArchiveError("a tar header is not understood")
        if key.startswith(TAR_XATTR):
            member.pax_headers[key] = value
    if member.size < 0:
        raise ArchiveError("a tar header is not understood")
    if member.type in TAR_HEADER_ONLY:
        member.size = 0


# The content of a volume, as `docker cp CONTAINER:/some/volume -` sends it.


def within_volume(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member with its names as they are inside the volume: without the first folder, which is
    the volume's own ('.'). Raises ArchiveError for a name that leads out of it."""
    member.name = below_first(member.name)
    if member.islnk():
        member.linkname = below_first(member.linkname)
    return member


def below_first(name: str) -> str:
    """The name without its first folder; '.' where nothing is left."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    leads_out = name.startswith("/") or ".." in parts
    if leads_out or not parts:
        raise ArchiveError("the name %s leads out of the volume" % escape_controls(name))
    inside = "/".join(parts[1:])
    return inside or "."


class VolumeEntry(NamedTuple):
    """What has to be equal of a member of a volume. Not the time: docker before 1.13 cannot set
    that of the volume's own folder. link: where a link leads. digest: sha256 of a file's content.
    device: of a device node. attributes: those that docker cp carries."""

    kind: bytes
    mode: int
    owner: Tuple[int, int]
    link: str
    size: int
    digest: str
    device: Tuple[int, int]
    attributes: Tuple[Tuple[str, str], ...]


def volume_entries(reader: TarReader) -> Iterator[Tuple[str, VolumeEntry]]:
    """(name inside the volume, what has to be equal) of each member. Raises ArchiveError."""
    for member in reader:
        digest = hashlib.sha256()
        for piece in reader.data():
            digest.update(piece)
        member = within_volume(member)
        entry = volume_entry(member, digest.hexdigest())
        yield member.name, entry


def volume_entry(member: tarfile.TarInfo, digest: str) -> VolumeEntry:
    """What means nothing for the kind of the member is empty: a link's mode, a folder's digest."""
    kind, link, device = member.type, "", (0, 0)
    mode = member.mode & 0o7777
    if member.isreg():
        kind = tarfile.REGTYPE
    else:
        digest = ""
    if member.issym():
        mode = 0
    if member.issym() or member.islnk():
        link = member.linkname
    if member.ischr() or member.isblk():
        device = (member.devmajor, member.devminor)
    return VolumeEntry(
        kind=kind,
        mode=mode,
        owner=(member.uid, member.gid),
        link=link,
        size=member.size,
        digest=digest,
        device=device,
        attributes=tuple(sorted(member.pax_headers.items())),
    )


class VolumeDifferences:
    """Two volumes compared while both are read. Docker sends the members of a folder in the order
    of their names, so that of each side only what the other side has not sent yet is remembered."""

    def __init__(self) -> None:
        self.wanted = {}  # type: Dict[str, VolumeEntry]
        self.actual = {}  # type: Dict[str, VolumeEntry]
        self.differing = {}  # type: Dict[str, Tuple[VolumeEntry, VolumeEntry]]  # wanted, actual

    def add(
        self,
        wanted: Iterator[Tuple[str, VolumeEntry]],
        actual: Iterator[Tuple[str, VolumeEntry]],
    ) -> None:
        """Reads both to their end, in turn."""
        unfinished = True
        while unfinished:
            unfinished = self.add_next(wanted, self.wanted, self.actual)
            if self.add_next(actual, self.actual, self.wanted):
                unfinished = True

    def add_next(
        self,
        entries: Iterator[Tuple[str, VolumeEntry]],
        own: Dict[str, VolumeEntry],
        other: Dict[str, VolumeEntry],
    ) -> bool:
        """Reads one member: compares it where the other side has sent it, else remembers it. False
        at the end."""
        member = next(entries, None)
        if member is None:
            return False
        name, entry = member
        if name not in other:
            own[name] = entry
            return True
        partner = other.pop(name)
        if partner != entry:
            pair = (partner, entry)
            if own is self.wanted:
                pair = (entry, partner)
            self.differing[name] = pair
        return True

    def texts(self) -> List[str]:
        """In words; [] where the volumes are equal."""
        out = []
        for verb, names in (
            ("is missing", sorted(self.wanted)),
            ("was not in the backup", sorted(self.actual)),
            ("differs", sorted(self.differing)),
        ):
            if not names:
                continue
            shown = format_names([escape_controls(name) for name in names])
            out.append("%s %s" % (shown, verb))
        return out


###############################################################################
# 3. What a run knows and reports
###############################################################################

# What goes through a whole run: its options, what it has learned on the way, its report, which
# becomes a JSON document or text, and the script of a dry run. Nothing here looks at Docker or
# changes anything. The exit codes and the keys of the report are a promise to the scripts that call
# dockfix: they never change their meaning. No secret may enter a report or a script.


# The options, and what a run has learned.


class Options(NamedTuple):
    """What the command line says, as values: sizes in bytes, durations in seconds.

    parse_command_line makes it; nothing writes to it afterwards. The options of other commands have
    their defaults.
    """

    # Of all commands.
    command: str = ""  # '' where none is given
    json: bool = False
    dry_run: bool = False
    yes: bool = False
    quiet: bool = False
    verbose: bool = False
    version: bool = False
    help: bool = False
    docker: Tuple[str, ...] = ("docker",)  # the words of the docker command
    timeout: float = CALL_SECONDS  # seconds
    state: str = ""  # path of the state folder; never empty after parsing
    # What a command takes itself: NAME, DIR, grow; of `exec` the command behind --.
    arguments: Tuple[str, ...] = ()
    # Of commands that change something.
    exit_code: bool = False  # a dry run exits 4 where there is something to do
    restart: bool = False
    undo: bool = False
    # Of commands that choose containers.
    containers: Tuple[str, ...] = ()  # names, globs, ids
    all: bool = False
    stopped: bool = False
    filter: Tuple[str, ...] = ()  # KEY=VALUE, as `docker ps --filter` takes them
    from_file: Tuple[str, ...] = ()  # paths; - is standard input
    exclude: Tuple[str, ...] = ()  # globs
    allow_empty: bool = False
    jobs: int = 1  # containers at a time
    # storage, owner
    full: bool = False
    quick: bool = False
    root: Optional[str] = None
    docker_info: Optional[str] = None  # a path; - is standard input
    check: bool = False  # of clock too
    warning: float = 80.0  # percent
    critical: float = 90.0  # percent
    orphans: bool = False
    # reclaim
    take_logs: bool = False
    max_log: Optional[int] = None  # bytes
    take_trim: bool = False
    take_containers: bool = False
    older_than: Optional[int] = None  # seconds
    take_images: bool = False
    unused: bool = False
    take_build_cache: bool = False
    take_volumes: Tuple[str, ...] = ()  # names
    # pool, relocate
    data: Optional[SizeRequest] = None
    metadata: Optional[SizeRequest] = None
    offline: bool = False
    overcommit: bool = False
    base_size: Optional[int] = None  # bytes
    driver: str = ""
    backup: str = ""  # path of a folder
    no_presync: bool = False
    lose_autoremove: Tuple[str, ...] = ()  # names
    # backup
    verify: bool = False
    step: str = ""  # the key of TASKS that a script runs by itself
    # chpasswd
    password_file: Optional[str] = None
    password_stdin: bool = False
    generate: bool = False
    output: str = ""  # a path
    user: Optional[str] = None  # of exec too
    encrypted: bool = False
    via: str = "auto"  # auto, exec, proc or cp
    unlock: bool = False
    allow_shared_etc: bool = False
    # exec
    script: Optional[str] = None  # a path; - is standard input
    shell: Tuple[str, ...] = ("sh",)  # the words of the shell for --script
    stdin: Optional[str] = None  # a path; - is standard input
    max_output: int = 1 << 20  # bytes of each stream
    # clock
    max_skew: float = 2.0  # seconds
    # timezone, faketime
    zone: Optional[str] = None
    host: bool = False
    offset: Optional[str] = None  # as it was given: the script of a dry run repeats it
    at: Optional[str] = None  # local time of a zone, which is known only later
    status: bool = False
    lib: Tuple[str, ...] = ()  # paths
    build_from: Optional[str] = None  # path of a folder
    step_running: bool = False
    watch: float = 10.0  # seconds

    def is_given(self, name: str) -> bool:
        """Is a field other than its default?"""
        return getattr(self, name) != getattr(Options(), name)


class NotDone(NamedTuple):
    """Something that a run could not put back, or could not start again."""

    argv: Tuple[str, ...]  # the command that does it
    text: str  # what is wrong, for people


class RunState:
    """What one run has done, and what it has learned and need not ask again.

    Worker threads share it: where two of them would ask the same at the same time, Host.guard is
    held meanwhile.
    """

    def __init__(self) -> None:
        # Something may have been changed. note_change sets it; without it, a run that is
        # interrupted says that nothing was changed.
        self.begun = False
        # Work is under way that a signal lets come to its end, and that is synced to the disk step
        # by step. in_parallel and what carries out a storage change set it; the signal handler and
        # the steps read it.
        self.working = False
        # What standard input is read for ('' for nothing): it serves one purpose per run
        # (claim_stdin).
        self.stdin_purpose = ""
        # The number of the last signal, 0 for none. The signal handler sets it; main makes the exit
        # code of it.
        self.signal_number = 0
        # What is to be done by hand, by a key of its own: set, and taken away again, by unpause and
        # by the steps of a storage change; main makes a finding of each.
        self.not_done = {}  # type: Dict[str, NotDone]
        # Why a step that counts failed, by its id. The steps of a storage change set it; the
        # command makes rows of it.
        self.failed_steps = {}  # type: Dict[str, str]
        # What engine_info made of `docker info`; None before it is asked.
        self.engine_info = None  # type: Optional[EngineInfo]
        # The first uid and gid of the engine's user namespace (engine_userns); None before.
        self.engine_userns = None  # type: Optional[Tuple[int, int]]
        # Does `docker create` know --pull (create_words)? None before it is asked.
        self.create_knows_pull = None  # type: Optional[bool]
        # The plan that write_journal made text of last, and the text: a plan never changes, and
        # may be long.
        self.journal_plan = None  # type: Optional[object]
        self.journal_plan_text = ""


# The report.


def new_report(command: Optional[str], dry_run: bool) -> dict:
    """What a run reports: `results` rows for what it worked on, `findings` for what it noticed,
    `errors` for why it ended."""
    return {
        "schema": SCHEMA,
        "command": command,
        "ok": True,
        "exit_code": 0,
        "changed": False,
        "dry_run": dry_run,
        "results": [],
        "findings": [],
        "errors": [],
    }


class Finding(NamedTuple):
    """Something that a run noticed, and what to type next.

    id: what JSON calls it; it never changes its meaning.
    severity: "critical", "warning" or "info".
    remedy: a line that can be pasted.
    """

    id: str
    severity: str
    text: str
    remedy: str


def add_finding(report: dict, finding: Finding) -> None:
    report["findings"].append(dict(finding._asdict()))


def add_error(report: dict, err: DockfixError) -> None:
    """The error, and its exit code. A usage error without a hint gets the line for --help."""
    hint = err.hint
    if not hint and err.code == UsageError.code:
        command = ""
        if report["command"]:
            command = report["command"] + " "
        hint = "python3 dockfix.py %s--help" % command
    report["errors"].append({"msg": err.msg, "hint": hint, "code": err.code})
    report["exit_code"] = err.code


OWN_PROGRAM = "python3 dockfix.py "  # in a hint: a command of this program follows


class OwnCall(NamedTuple):
    """How this run was called, as a shell takes it."""

    words: str  # all its words
    shared_options: str  # those that another command needs too, with a blank at their end


def complete_hint(hint: str, call: OwnCall) -> str:
    """Makes a line to type fit this run.

    "python3 dockfix.py ..." stands for this very command line. Another command of this program
    gets the options that name the same docker command and the same state folder.
    """
    first, *commands = hint.split(OWN_PROGRAM)
    complete = first
    for command in commands:
        complete += OWN_PROGRAM
        if command.startswith("..."):
            complete += call.words + command[len("...") :]
        else:
            complete += call.shared_options + command
    return complete


def exit_code(rows: List[dict], dry_exit: bool = False) -> int:
    """The exit code of a container command, from its rows' statuses. dry_exit: a dry run with
    --exit-code, which tells by 4 that there is something to do."""
    statuses = {row["status"] for row in rows}
    if any(row.get("partial") for row in rows):  # something of a failed row was changed
        statuses.add("changed")
    if dry_exit and "changed" in statuses:
        return 4
    if statuses <= {"changed", "unchanged", "skipped"}:
        return 0
    if statuses & {"changed", "unknown"}:
        return 3
    if statuses == {"refused"}:
        return 5
    return 1


# The script of a dry run.


def was_read_from_stdin() -> bool:
    """Was this program read from standard input (`python3 - ... < dockfix.py`)? Python then says
    that __file__ is "<stdin>"."""
    path = globals().get("__file__") or ""
    try:
        return os.path.samestat(os.stat(path), os.fstat(0))
    except OSError:
        return not os.path.isfile(os.path.dirname(path))  # a file: this is inside dockfix.pyz


def program_path() -> str:
    """How a script calls this very program; 'dockfix.py' where it was read from standard input."""
    path = globals().get("__file__") or ""
    if os.path.basename(path) == "__main__.py" and os.path.isfile(os.path.dirname(path)):
        path = os.path.dirname(path)  # inside dockfix.pyz
    if not os.path.isfile(path) or was_read_from_stdin():
        return "dockfix.py"
    return os.path.abspath(path)


def docker_environment() -> Dict[str, str]:
    """What in the environment says which engine is spoken to, and how (docker(1), ENVIRONMENT)."""
    values = {}
    for name in (
        "DOCKER_HOST",
        "DOCKER_CONTEXT",
        "DOCKER_CONFIG",
        "DOCKER_TLS_VERIFY",
        "DOCKER_CERT_PATH",
        "DOCKER_API_VERSION",
    ):
        if os.environ.get(name):
            values[name] = os_text(os.fsencode(os.environ[name]))
    return values


def script_comment(text: str) -> str:
    """A script's comment: escaped like terminal text, so that no newline in a label ends it."""
    return "# " + escape_controls(text)


def script_text(report: dict, lines: List[str], refused: int) -> str:
    """A POSIX script of `lines` (commands, or comments that start with #). refused: how many
    targets are refused. The script ends as the real run would: 0, 1, 3, or 5 where there is nothing
    but refusals."""
    head = ["#!/bin/sh", "# dockfix %s --dry-run: %s" % (VERSION, report["command"])]
    commands = [line for line in lines if not line.startswith("#")]
    if refused and not commands:
        end = "exit %d" % (exit_code(report["results"]) or 5)
        return "\n".join([*head, *lines, end]) + "\n"
    for name, value in docker_environment().items():
        head.append("%s=%s; export %s" % (name, quote_word(value), name))
    bad = 1 if refused else 0
    head.append("done=0 bad=%d" % bad)
    head.append('run() { if "$@"; then done=1; else bad=1; fi; }')
    tail = ["[ $bad = 0 ] && exit 0", "[ $done = 1 ] && exit 3", "exit 1"]
    return "\n".join(head + lines + tail) + "\n"


###############################################################################
# 4. The host
###############################################################################

# The one seam to this host: no other chapter starts a process or writes a file of the host. What
# only reads goes through query and query_host, what may change something through change and
# change_host, which refuse in a dry run. Nothing runs through a shell, and no password is ever in
# an argument list, an environment or a file name.
#
# A call comes back in bounded time and with bounded memory, whatever the child and its children
# do. A file that something else names is opened only where it is a plain file. What is written is
# on the disk before the function returns, and a reader meets the old bytes or the new ones.
#
# The facts about processes, mounts and sockets are those of proc(5).


# Mounts.


class Mount(NamedTuple):
    """One line of /proc/PID/mountinfo (proc(5)); octal escapes undone."""

    dev: str  # MAJOR:MINOR
    root: str  # which directory of the file system is mounted
    point: str  # where
    fstype: str
    source: str
    options: Tuple[str, ...]  # of the file system
    flags: Tuple[str, ...] = ()  # of this mount: ro, nosuid ...
    number: str = ""
    parent: str = ""  # number of the mount that this one is mounted on
    tags: Tuple[str, ...] = ()  # shared:N, master:N ...; none: private


def format_device(number: int) -> str:
    """MAJOR:MINOR, as the kernel's tables have it."""
    return "%d:%d" % (os.major(number), os.minor(number))


def unescape_octal(word: str) -> str:
    """The kernel writes a space, a tab, a line end and a backslash as \\ and three digits."""

    def decode(match: "re.Match[str]") -> str:
        return chr(int(match.group(1), 8))

    return re.sub(r"\\([0-7]{3})", decode, word)


def parse_mountinfo(text: str) -> List[Mount]:
    """Lines of /proc/PID/mountinfo; lines not of that form are left out (they prove nothing)."""
    mounts = []
    for line in text.split("\n"):
        mount = parse_mount_line(line)
        if mount:
            mounts.append(mount)
    return mounts


def parse_mount_line(line: str) -> Optional[Mount]:
    """ID, parent's ID, device, root, mount point, flags, tags; behind a dash: type, source,
    options. None for a line of another form."""
    left, dash, right = line.partition(" - ")
    fields = left.split(" ")
    tail = right.split(" ")
    if not dash or len(fields) < 6 or len(tail) < 3:
        return None
    return Mount(
        dev=fields[2],
        root=unescape_octal(fields[3]),
        point=unescape_octal(fields[4]),
        fstype=tail[0],
        source=unescape_octal(tail[1]),
        options=tuple(unescape_octal(option) for option in tail[2].split(",")),
        flags=tuple(fields[5].split(",")),
        number=fields[0],
        parent=fields[1],
        tags=tuple(fields[6:]),
    )


def mount_of(path: str, mounts: Sequence[Mount]) -> Optional[Mount]:
    """The mount that a path without links lies on."""
    nearest = None  # type: Optional[Mount]
    for mount in mounts:
        folder = mount.point.rstrip("/") + "/"
        if not (path + "/").startswith(folder):
            continue
        if nearest is None or len(mount.point) > len(nearest.point):
            nearest = mount
    return nearest


def mounts_of(pid: str = "self") -> List[Mount]:
    """What is mounted in a process's view; nothing where that process is gone."""
    try:
        return parse_mountinfo(os_text(read_all("/proc/%s/mountinfo" % pid)))
    except OSError:
        if pid == "self":
            raise
        return []  # not there, or dead and not yet buried: EINVAL


# Calls: what they are given, and what they bring back.


class Host(NamedTuple):
    """Everything that a call needs to know of this run. make_host builds one."""

    docker: Tuple[str, ...]  # the words of the docker command
    timeout: float  # seconds that a call for one container may take
    dry_run: bool
    verbose: bool  # show each call on stderr
    state: str  # path of the state folder: lock, journals, undo records
    held: List[int]  # descriptors of the locks; changing children inherit them
    stop: threading.Event  # set by the first signal: begin nothing new
    kill: threading.Event  # set by the second: end what runs
    known: RunState
    guard: threading.Lock  # for what threads look up once, in `known`


def make_host(
    docker: Sequence[str] = ("docker",),
    timeout: float = CALL_SECONDS,
    dry_run: bool = False,
    verbose: bool = False,
    state: str = "",
) -> Host:
    """A host at the begin of a run: nothing is locked, nothing is known, no signal has come."""
    return Host(
        docker=tuple(docker),
        timeout=timeout,
        dry_run=dry_run,
        verbose=verbose,
        state=state,
        held=[],
        stop=threading.Event(),
        kill=threading.Event(),
        known=RunState(),
        guard=threading.Lock(),
    )


class Answer(NamedTuple):
    """What a child left behind. Streams are cut at the limit; *_total are their lengths as sent."""

    rc: int
    out: bytes
    err: bytes
    out_total: int
    err_total: int
    seconds: float
    timed_out: bool

    def out_text(self) -> str:
        return self.out.decode("utf-8", "replace")

    def text(self) -> str:
        """Both streams for classification: runtimes put their errors on either
        (docker/cli#2025)."""
        return (self.err + b"\n" + self.out[:4096]).decode("utf-8", "replace")


class Flow(NamedTuple):
    """Files or functions instead of memory at a child's ends."""

    # Standard input comes from this file; '' for none.
    source: str = ""
    # Standard output goes to this file; '' for none. The file appears, 0600, only once the child
    # has succeeded and the bytes are on the disk; until then it is target.part.
    target: str = ""
    # Called with the bytes so far, some five times a second while the child runs.
    tick: Callable[[int], None] = lambda done: None
    # fill writes the child's standard input, empty reads its standard output, in a thread of their
    # own; what they raise, run_child raises.
    fill: Optional[Callable[[BinaryIO], None]] = None
    empty: Optional[Callable[[BinaryIO], None]] = None


NO_FLOW = Flow()


class ChildEnds:
    """Descriptors that a child gets as its standard input and output, where a Flow asks for them;
    else None."""

    def __init__(self) -> None:
        self.stdin = None  # type: Optional[int]
        self.stdout = None  # type: Optional[int]

    def close(self) -> None:
        for descriptor in (self.stdin, self.stdout):
            if descriptor is not None:
                os.close(descriptor)


# Processes.


def run_child(
    host: Host,
    argv: Sequence[str],
    stdin: Optional[bytes],
    seconds: float,
    limit: int,
    inherit: Sequence[int],
    enough: int = 0,
    flow: Flow = NO_FLOW,
) -> Answer:
    """Runs argv in its own process group, without a shell.

    limit: bytes of each stream that are kept; the rest is thrown away. enough: the child is killed
    once so much of its standard output is there; 0 for never. inherit: descriptors that it gets.
    After `seconds` the group is killed and the pipes are drained for a bounded time: a grandchild
    may hold them, and subprocess.run does not come back from that on Python 3.6. Raises
    EnvironmentFault, and what flow's functions raise.
    """
    if host.verbose:
        say(format_trace(argv, flow))
    ends = open_flow(flow)
    threads = start_stream_threads(flow, ends)
    try:
        child = start_child(argv, stdin, inherit, ends)
    except OSError as err:
        close_flow(flow, ends, False)
        hint = "command -v %s" % argv[0]
        if argv[:1] == host.docker[:1]:
            hint = "is Docker's client installed? --docker names another"
        raise EnvironmentFault("%s cannot be started: %s" % (argv[0], err.strerror), hint) from None
    succeeded = False
    try:
        answer = run_until_closed(
            host, child, stdin, seconds, limit, enough, lambda: flow.tick(bytes_flowed(ends))
        )
        succeeded = answer.rc == 0 and not answer.timed_out
    except BaseException:  # a signal: leave no child behind
        kill_group(child)
        raise
    finally:
        close_flow(flow, ends, succeeded)
    for thread in threads:
        error = thread.wait(host)
        # A child that failed says itself why, but not where its end of the pipe was closed for a
        # reason.
        if error and (succeeded or thread.fills or answer.rc == -signal.SIGPIPE):
            raise error
    return answer


def format_trace(argv: Sequence[str], flow: Flow) -> str:
    """A call as --verbose shows it."""
    text = "+ " + quote_line(argv)
    if flow.source:
        text += " < " + quote_word(flow.source)
    if flow.target:
        text += " > " + quote_word(flow.target)
    return text


def start_child(
    argv: Sequence[str], stdin: Optional[bytes], inherit: Sequence[int], ends: ChildEnds
) -> "subprocess.Popen[bytes]":
    """Raises OSError."""
    child_stdin = ends.stdin
    if child_stdin is None:
        child_stdin = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    child_stdout = ends.stdout
    if child_stdout is None:
        child_stdout = subprocess.PIPE
    # LC_ALL: messages are recognised by their English text.
    environment = dict(os.environ, LC_ALL="C", PATH=search_path())
    return subprocess.Popen(
        [os_bytes(word) for word in argv],
        stdin=child_stdin,
        stdout=child_stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=tuple(inherit),
        env=environment,
    )


class StreamThread:
    """This program's end of a pipe to a child, and the thread that fills or empties it."""

    def __init__(self, stream: BinaryIO, work: Callable[[BinaryIO], None]) -> None:
        self.error = None  # type: Optional[Exception]
        self.stream = stream
        self.fills = stream.writable()
        self.work = work
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            with self.stream:
                self.work(self.stream)
        except BrokenPipeError:  # the child does not want the rest: its answer will say why
            pass
        except Exception as err:
            self.error = err

    def wait(self, host: Host) -> Optional[Exception]:
        """What the work raised. The child is gone, and no end of the pipe is open but that of a
        grandchild."""
        while self.thread.is_alive() and not host.kill.is_set():
            self.thread.join(0.2)
        return self.error


def start_stream_threads(flow: Flow, ends: ChildEnds) -> List[StreamThread]:
    """Puts the child's ends of the pipes that a flow asks for into `ends`."""
    threads = []
    if flow.fill:
        ends.stdin, own_end = os.pipe()
        stream = os.fdopen(own_end, "wb")  # type: BinaryIO
        threads.append(StreamThread(stream, flow.fill))
    if flow.empty:
        own_end, ends.stdout = os.pipe()
        stream = os.fdopen(own_end, "rb")
        threads.append(StreamThread(stream, flow.empty))
    return threads


def open_flow(flow: Flow) -> ChildEnds:
    """The descriptors of a flow's files. Raises EnvironmentFault."""
    ends = ChildEnds()
    try:
        if flow.source:
            ends.stdin = open_file(flow.source)
        if flow.target:
            ends.stdout = os.open(
                os_bytes(flow.target + ".part"),
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
            os.fchmod(ends.stdout, 0o600)
    except OSError as err:
        close_flow(flow, ends, False)
        path = flow.target  # fchmod's error names none
        if err.filename:
            path = os_text(err.filename)
        raise EnvironmentFault("%s cannot be opened: %s" % (path, err.strerror)) from None
    return ends


def bytes_flowed(ends: ChildEnds) -> int:
    """Bytes read of the source, else written to the target; of pipes nothing is known."""
    if ends.stdin is not None:
        status = os.fstat(ends.stdin)
        if stat.S_ISREG(status.st_mode):
            # The child shares the offset.
            return os.lseek(ends.stdin, 0, os.SEEK_CUR)
    if ends.stdout is not None:
        return os.fstat(ends.stdout).st_size
    return 0


def close_flow(flow: Flow, ends: ChildEnds, succeeded: bool) -> None:
    """Gives the finished output its name, or removes the partial file. Raises EnvironmentFault
    where the disk does not keep it."""
    partial = os_bytes(flow.target + ".part")
    try:
        if flow.target and ends.stdout is not None:
            if succeeded:
                os.fsync(ends.stdout)
                os.rename(partial, os_bytes(flow.target))
                sync_folder(os.path.dirname(os.path.abspath(flow.target)))
            else:
                suppress_errors(os.unlink, partial)
    except OSError as err:
        raise EnvironmentFault("%s cannot be written: %s" % (flow.target, err.strerror)) from None
    finally:
        ends.close()


class ChildOutput:
    """What a child has written to one of its streams."""

    def __init__(self, stream: Optional[IO[bytes]], limit: int) -> None:
        self.stream = stream  # None where it goes elsewhere
        self.limit = limit  # bytes that are kept
        self.data = bytearray()
        self.total = 0  # bytes as sent

    def read(self) -> bool:
        """Takes what is there; False at the end of the stream."""
        if self.stream is None:
            return False
        piece = os.read(self.stream.fileno(), 65536)
        self.total += len(piece)
        self.data += piece[: max(0, self.limit - len(self.data))]
        return bool(piece)


def run_until_closed(
    host: Host,
    child: "subprocess.Popen[bytes]",
    stdin: Optional[bytes],
    seconds: float,
    limit: int,
    enough: int,
    beat: Callable[[], None],
) -> Answer:
    """Writes and reads a child's pipes until all are closed, or until its time is over. beat() is
    called some five times a second. The rest of the parameters are run_child's."""
    began = time.monotonic()
    deadline = began + seconds
    out = ChildOutput(child.stdout, limit)
    err = ChildOutput(child.stderr, limit)
    unwritten = memoryview(stdin or b"")
    timed_out = False
    is_ending = False  # it was killed, or has ended: its pipes are drained until the deadline
    with selectors.DefaultSelector() as selector:
        register_streams(selector, child, out, err)
        while selector.get_map():
            beat()
            now = time.monotonic()
            is_late = now >= deadline or host.kill.is_set()
            has_enough = enough > 0 and len(out.data) >= enough
            if is_ending:
                if now >= deadline:
                    break
            elif is_late or has_enough:
                timed_out = is_late
                kill_group(child)
                is_ending = True
                deadline = now + DRAIN_SECONDS
            elif child.poll() is not None:  # a grandchild may hold the pipe
                is_ending = True
                deadline = min(deadline, now + DRAIN_SECONDS)
            pause = min(0.2, max(0.0, deadline - now))
            for key, _ in selector.select(pause):
                if key.data is None:
                    unwritten = write_stdin(selector, child.stdin, unwritten)
                elif not key.data.read():
                    selector.unregister(key.fileobj)
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream:
            suppress_errors(stream.close)
    rc = wait_child(host, child, max(0.0, deadline - time.monotonic()))
    return Answer(
        rc=-1 if rc is None else rc,
        out=bytes(out.data),
        err=bytes(err.data),
        out_total=out.total,
        err_total=err.total,
        seconds=time.monotonic() - began,
        timed_out=timed_out or rc is None,
    )


def register_streams(
    selector: selectors.BaseSelector,
    child: "subprocess.Popen[bytes]",
    out: ChildOutput,
    err: ChildOutput,
) -> None:
    """A stream's data is its ChildOutput; that of standard input is None."""
    for output in (out, err):
        if output.stream:
            selector.register(output.stream, selectors.EVENT_READ, output)
    if child.stdin:
        os.set_blocking(child.stdin.fileno(), False)
        selector.register(child.stdin, selectors.EVENT_WRITE)


def write_stdin(
    selector: selectors.BaseSelector, stream: Optional[IO[bytes]], unwritten: memoryview
) -> memoryview:
    """What is left after one piece. Closes the pipe where nothing is."""
    if stream is None:
        return unwritten
    if unwritten:
        try:
            unwritten = unwritten[os.write(stream.fileno(), unwritten[:65536]) :]
        except BlockingIOError:
            return unwritten
        except OSError:  # the child does not want the rest: its answer will say why
            unwritten = unwritten[:0]
    if not unwritten:
        selector.unregister(stream)
        suppress_errors(stream.close)
    return unwritten


def kill_group(child: "subprocess.Popen[bytes]") -> None:
    suppress_errors(os.killpg, child.pid, signal.SIGKILL)


def wait_child(host: Host, child: "subprocess.Popen[bytes]", seconds: float) -> Optional[int]:
    """The exit status; None when the child had to be killed after it had closed its pipes."""
    deadline = time.monotonic() + seconds
    while child.poll() is None:
        if time.monotonic() >= deadline or host.kill.is_set():
            break
        time.sleep(0.005)
    if child.poll() is not None:
        return child.returncode
    kill_group(child)
    # Not even SIGKILL ends what is stuck in the kernel on a sick disk.
    deadline = time.monotonic() + DRAIN_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return None


# The seam: what only reads, and what may change something.


def query(host: Host, *words: str, limit: int = READ_MAX, enough: int = 0) -> Answer:
    """A docker call that only reads. Allowed in a dry run, needs no lock."""
    argv = host.docker + words
    return query_host(host, argv, limit, enough)


def query_host(host: Host, argv: Sequence[str], limit: int = READ_MAX, enough: int = 0) -> Answer:
    """The same for a program of the host (dmsetup, losetup, systemctl): only calls that read.
    Raises EnvironmentFault where there is no such program."""
    return run_child(host, argv, None, host.timeout, limit, (), enough)


def change(
    host: Host, words: Sequence[str], stdin: Optional[bytes] = None, limit: int = 1 << 20
) -> Answer:
    """A docker call that may change something."""
    argv = (*host.docker, *words)
    return change_host(host, argv, stdin, host.timeout, limit)


def change_host(
    host: Host,
    argv: Sequence[str],
    stdin: Optional[bytes] = None,
    seconds: float = 1e9,
    limit: int = 1 << 20,
    flow: Flow = NO_FLOW,
) -> Answer:
    """A program that may change something. The child inherits the lock, so an orphan of a killed
    run is seen by the next one; not what starts or stops a service: the daemon would keep it."""
    note_change(host)
    inherit = host.held
    if os.path.basename(argv[0]) in SERVICE_PROGRAMS:
        inherit = []
    return run_child(host, argv, stdin, seconds, limit, inherit, flow=flow)


def note_change(host: Host) -> None:
    """Before anything is changed: never in a dry run, and no message says any more that nothing
    was."""
    if host.dry_run:
        raise DockfixError("internal error: a change was asked for in a dry run")
    host.known.begun = True


# The host's files.


def open_file(path: str, access: int = os.O_RDONLY, links: int = 0) -> int:
    """A descriptor of a plain file of the host; links are followed, but with links=os.O_NOFOLLOW.
    Never one of a fifo, whose open waits for ever, nor of a device, whose open is an act (a
    watchdog reboots the host). Raises OSError."""
    # O_PATH opens nothing: it only names the inode, which is judged, and then opened itself.
    place = os.open(os_bytes(path), os.O_PATH | os.O_CLOEXEC | links)
    try:
        status = os.fstat(place)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", path)
        flags = access | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open("/proc/self/fd/%d" % place, flags)
    except FileNotFoundError:  # of the second open: never to be taken for a file that is not there
        raise OSError(errno.EIO, "/proc is not mounted", path) from None
    finally:
        os.close(place)


def read_all(path: str, limit: int = READ_MAX) -> bytes:
    """A plain file of the host, whole. Raises OSError, for one that is longer than `limit` bytes
    too."""
    data = read_head(path, limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, "it is longer than %d bytes" % limit, path)
    return data


def read_head(path: str, size: int) -> bytes:
    """The first `size` bytes of a plain file of the host. Raises OSError."""
    descriptor = open_file(path)
    data = bytearray()
    try:
        while len(data) < size:
            piece = os.read(descriptor, min(READ_PIECE, size - len(data)))
            if not piece:
                break
            data += piece
        return bytes(data)
    finally:
        os.close(descriptor)


def read_host_text(path: str) -> str:
    """read_all as text, at most 1 MiB."""
    return os_text(read_all(path, 1 << 20))


def read_settings_text(path: str) -> str:
    """A settings file, whose name may come from another program's command line. One without a size
    is empty: the kernel's own files only look plain, and to read from some is to take from them
    (/proc/kmsg). Raises OSError."""
    status = os.stat(os_bytes(path))
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        return ""
    return read_host_text(path)


def read_input(path: str, limit: int, source: str) -> bytes:
    """A file that the user named, '-' = standard input; at most `limit` bytes, more is a
    UsageError. source: its name in messages."""
    file: Union[bytes, int] = os_bytes(path)
    try:
        if path == "-":
            file = os.dup(0)  # a copy is closed, not standard input itself
        with open(file, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as err:
        raise UsageError("%s %s cannot be read: %s" % (source, path, err.strerror)) from None
    if len(data) > limit:
        raise UsageError("%s %s is longer than %d bytes" % (source, path, limit))
    return data


def real_path(path: str) -> str:
    return os_text(os.path.realpath(os_bytes(path)))


class DiskRoom(NamedTuple):
    """The room on a file system, as statvfs(3) tells it. Blocks are in bytes.

    total: its size. free: what nothing uses, root's reserve included: deleting makes it grow at
    once, also on a full disk. available: what anybody can still write.
    """

    total: int
    free: int
    available: int
    inodes_total: int
    inodes_free: int
    inodes_available: int


def read_disk_room(path: str) -> DiskRoom:
    """The room on the file system under a path. Raises OSError."""
    status = os.statvfs(os_bytes(path))
    return DiskRoom(
        total=status.f_blocks * status.f_frsize,
        free=status.f_bfree * status.f_frsize,
        available=status.f_bavail * status.f_frsize,
        inodes_total=status.f_files,
        inodes_free=status.f_ffree,
        inodes_available=status.f_favail,
    )


def free_bytes(path: str) -> Optional[int]:
    """DiskRoom.free of the file system under a path; None where there is no such path."""
    room = suppress_errors(read_disk_room, path)
    if room is None:
        return None
    return room.free


def has_program(name: str) -> bool:
    """Is there a program of this name, for run_child?"""
    for folder in search_path().split(":"):
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK):
            return True
    return False


def search_path() -> str:
    """PATH with sbin: after `su` root has none in it."""
    return os.environ.get("PATH", os.defpath) + SBIN_PATH


def suppress_errors(function: Callable, *args, **settings):
    """The result of a call whose failure changes nothing any more; None where it raises OSError."""
    try:
        return function(*args, **settings)
    except OSError:
        return None


def already_exists_error(path: str) -> Refused:
    return Refused("%s exists; it is never overwritten" % path, "--output NEWFILE")


def write_new(path: bytes, data: bytes, mode: int) -> None:
    """A new file, on the disk before this returns; nothing stays of one that cannot be finished.
    Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    try:
        os.fchmod(descriptor, mode)
        write_all(descriptor, data)
        os.fsync(descriptor)
    except BaseException:
        suppress_errors(os.unlink, path)
        raise
    finally:
        os.close(descriptor)


def write_secret_file(path: str, data: bytes) -> None:
    """A new file, 0600, on the disk before this returns. Refuses one that exists."""
    try:
        write_new(os_bytes(path), data, 0o600)
        sync_folder(os.path.dirname(os.path.abspath(path)))
    except FileExistsError:
        raise already_exists_error(path) from None
    except OSError as err:
        raise EnvironmentFault(
            "%s cannot be written: %s; no password was changed" % (path, err.strerror),
            "--output FILE on another disk",
        ) from None


def replace_file(path: str, data: bytes, mode: int = 0o600) -> None:
    """Writes a file of dockfix's own state (or a setting of the host) so that a reader, or a power
    cut, meets the old bytes or the new ones and nothing between; on the disk before this returns.
    Raises OSError."""
    folder, name = os.path.split(os.path.abspath(path))
    # A name that nobody can foresee, and put a link there.
    draft_name = ".%s.dockfix-%s" % (name, os.urandom(6).hex())
    draft = os_bytes(os.path.join(folder, draft_name))
    write_new(draft, data, mode)
    try:
        os.rename(draft, os_bytes(path))
    except OSError:
        suppress_errors(os.unlink, draft)
        raise
    sync_folder(folder)


def remove_file(path: str) -> None:
    """A file of dockfix's own state; gone from the disk before this returns. Raises OSError."""
    os.unlink(os_bytes(path))
    sync_folder(os.path.dirname(os.path.abspath(path)))


def truncate_file(path: str) -> None:
    """Empties a container's log in place; dockerd appends, so it goes on behind the cut and nothing
    newer is lost. Raises OSError."""
    log = open_file(path, os.O_WRONLY, os.O_NOFOLLOW)
    try:
        os.ftruncate(log, 0)
    finally:
        os.close(log)


FITRIM = 0xC0185879  # linux/fs.h


def trim_mount(pid: str, point: str, device: str) -> None:
    """What fstrim does, on the file system that is mounted at `point` in a process's view, by a
    descriptor that certainly is on `device` (MAJOR:MINOR): where a container ended meanwhile there
    is a plain folder, and fstrim by its path would trim the host's disk. Raises OSError."""
    path = os_bytes("/proc/%s/root%s" % (pid, point))
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(folder)
        if format_device(status.st_dev) != device:
            raise FileNotFoundError(errno.ENOENT, "it is not mounted any more")
        # struct fstrim_range: start, length, the shortest extent worth trimming
        whole = struct.pack("QQQ", 0, (1 << 64) - 1, 0)
        fcntl.ioctl(folder, FITRIM, whole)
    finally:
        os.close(folder)


def write_all(descriptor: int, data: bytes) -> None:
    """One write may take a part only. Raises OSError."""
    unwritten = memoryview(data)
    while unwritten:
        unwritten = unwritten[os.write(descriptor, unwritten) :]


def sync_folder(path: str) -> None:
    """Puts a folder's entries on the disk: a new name, or one that is gone. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    folder = os.open(os_bytes(path), flags)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# The state folder, and its locks.


OTHER_STATE_HINT = "--state DIR names another (in /run for all but storage changes)"


def default_state() -> str:
    if os.geteuid() == 0:
        return "/var/lib/dockfix"
    home = os.environ.get("XDG_STATE_HOME")
    if not home:
        home = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(home, "dockfix")


def open_state(path: str) -> None:
    """Makes the state folder 0700; refuses one that somebody else could write."""
    try:
        os.makedirs(os_bytes(path), 0o700, exist_ok=True)
        status = os.lstat(os_bytes(path))
    except OSError as err:
        raise EnvironmentFault(
            "the state folder %s cannot be made: %s" % (path, err.strerror), OTHER_STATE_HINT
        ) from None
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not is_own or status.st_mode & 0o022:
        raise Refused(
            "the state folder %s is not a folder that only this user can write" % path,
            "--state DIR names another",
        )


def take_lock(
    host: Host, exclusive: bool = False, carries_on: bool = False, name: str = "lock"
) -> None:
    """flock on STATE/lock: storage changes exclusive, the container commands shared. What keeps
    undo records takes STATE/undo.lock too, exclusive: two runs would note each other's changes as
    the former state. Raises Locked, and HalfWay while a storage change stands half-way (not with
    `carries_on`: resume and rollback)."""
    open_state(host.state)
    path = os.path.join(host.state, name)
    try:
        lock = os.open(os_bytes(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise EnvironmentFault(
            "the lock in %s cannot be opened: %s" % (host.state, err.strerror), OTHER_STATE_HINT
        ) from None
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        changed = describe_half_way(host) or "something"
        raise Locked(
            "another dockfix, or a child of one that was killed, changes %s now (lock: %s)"
            % (changed, path),
            "wait for it: fuser -v %s" % path,
        ) from None
    host.held.append(lock)
    half_way = describe_half_way(host)
    if half_way and not carries_on:
        raise HalfWay("a storage change stands half-way: %s" % half_way, HALF_WAY_HINT)


def require_no_half_way(host: Host) -> None:
    """For what changes something, before it asks the daemon anything: with a storage change
    half-way that may well be down. Raises HalfWay, and Locked while another run carries the change
    on."""
    if not host.dry_run and describe_half_way(host):
        take_lock(host)


def describe_half_way(host: Host) -> str:
    """Where a storage change stands ('pool recreate, step 7 of 12: TITLE'), '' where there is none.
    Fails closed: a journal that is not understood is one."""
    path = os.path.join(host.state, JOURNAL)
    try:
        return format_half_way(json.loads(read_all(path).decode("ascii")))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except PermissionError:  # another user's folder: nothing that this run could change
        return ""
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return "its journal %s is not understood" % path


def format_half_way(journal: dict) -> str:
    """journal: as write_journal has written it. Raises KeyError and the like for another form."""
    plan = journal["plan"]
    steps = plan["steps"]
    # "at" is the step that is on, counted from 0; behind the last one only the end is missing.
    number = min(journal["at"] + 1, len(steps))
    step = steps[number - 1]
    text = "%s, step %d of %d: %s" % (plan["kind"], number, len(steps), step["title"])
    if journal["going"] == STATE_BACK:
        text += " (being undone)"
    return text


# The host's own accounts.


class AccountFileState(NamedTuple):
    """One of the host's account files, to be compared with itself later."""

    status: Optional[Tuple[int, ...]]  # of file_state; None where there is no such file
    digest: Optional[bytes]  # of its content; None where it cannot be read


def file_state(status: os.stat_result) -> Tuple[int, ...]:
    """Device, inode, time of the last change and size: they differ where a file was changed."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def read_host_accounts() -> Dict[str, AccountFileState]:
    """The host's own account files by their paths: nothing in a container may change them."""
    states = {}
    for path in ("/etc/shadow", "/etc/passwd"):
        status = suppress_errors(os.stat, path)
        if status:
            status = file_state(status)
        digest = None
        data = suppress_errors(read_all, path)
        if data is not None:
            digest = hashlib.sha512(data).digest()
        states[path] = AccountFileState(status, digest)
    return states


def is_host_account_file(source: str) -> bool:
    """Is a mount's source the host's own /, /etc, passwd or shadow, under whatever name?"""
    if not source.startswith("/"):
        return False
    if posixpath.normpath("/" + source.lstrip("/")) in ETC_TARGETS:
        return True
    if os_text(os.path.realpath(os_bytes(source))) in ETC_TARGETS:
        return True
    try:
        return any(os.path.samefile(os_bytes(source), path) for path in ETC_TARGETS)
    except OSError:
        return False


# Processes of this host, and what they hold: by /proc, as root.


def process_is_alive(pid: int) -> bool:
    """A zombie has no program any more, nor has a number that no process bears."""
    return pid > 0 and suppress_errors(os.readlink, "/proc/%d/exe" % pid) is not None


def all_processes() -> List[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def process_and_children(pid: int) -> List[int]:
    """A service's main process, and those that it has started: CentOS 7 had `sh -c 'docker daemon
    ... | forward-journald'` as docker.service's, and OpenRC writes the number of its supervisor
    into the pid file. None where there is no such process."""
    if not process_is_alive(pid):
        return []
    family = [pid]
    for child in all_processes():
        status = suppress_errors(read_host_text, "/proc/%d/status" % child) or ""
        if re.search(r"(?m)^PPid:\s*%d$" % pid, status):
            family.append(child)
    return family


def process_name(pid: int) -> str:
    """For messages: 'dockerd (pid 12)'."""
    name = suppress_errors(read_host_text, "/proc/%d/comm" % pid) or "a process"
    return "%s (pid %d)" % (name.strip(), pid)


def open_paths(pid: int) -> List[str]:
    """Where the descriptors of a process lead: paths, and words such as 'socket:[12]'. None where
    it has ended."""
    folder = "/proc/%d/fd" % pid
    paths = []
    for name in suppress_errors(os.listdir, folder) or ():
        path = suppress_errors(os.readlink, "%s/%s" % (folder, name))
        if path is not None:
            paths.append(path)
    return paths


def process_uses(pid: int, root: str) -> bool:
    """Has the process a file below this folder open? A daemon keeps ROOT/volumes/metadata.db open
    and locked as long as it lives (moby, volume/service/db.go; since 1.10), so this is true of one
    daemon for each root."""
    return any(path.startswith(root + "/") for path in open_paths(pid))


def listening_paths(pid: int) -> List[str]:
    """The unix sockets at which a process takes connections, by the paths that it has bound
    (/proc/PID/net/unix; Flags 00010000: it listens)."""
    sockets = {path for path in open_paths(pid) if path.startswith("socket:")}
    if not sockets:
        return []
    paths = []
    table = suppress_errors(read_all, "/proc/%d/net/unix" % pid) or b""
    for line in os_text(table).split("\n"):
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(None, 7)
        if len(fields) < 8:
            continue
        is_own = "socket:[%s]" % fields[6] in sockets
        is_listening = fields[3] == "00010000"
        path = fields[7]
        if is_own and is_listening and path.startswith("/"):
            paths.append(path)
    return paths


def process_listens(pid: int, socket: str) -> bool:
    """Does whoever connects to this path reach this process? The files are compared, each as its
    owner sees it: /run/docker.sock is /var/run/docker.sock, and the same path in another mount
    namespace is not."""
    for path in listening_paths(pid):
        bound = os_bytes("/proc/%d/root%s" % (pid, path))
        if suppress_errors(os.path.samefile, bound, os_bytes(socket)):
            return True
    return False


# The terminal.


CLEAR_LINE = "\r\033[K"


def fill_standard_streams() -> None:
    """A closed 0, 1 or 2 (cron, `2>&-`) would be the number of the next file that is opened: a
    lock, a shadow file."""
    for number in (0, 1, 2):
        if suppress_errors(os.fstat, number) is None:
            os.open(os.devnull, os.O_RDWR)


def say(text: str) -> None:
    """One line of conversation on stderr, escaped. A lost stderr is no reason to stop."""
    line = escape_controls(text) + "\n"
    if Progress.is_shown:
        line = CLEAR_LINE + line
    if suppress_errors(os.write, 2, line.encode("utf-8", "backslashreplace")) is not None:
        Progress.is_shown = False


def write_out(data: bytes) -> None:
    """The product, on stdout. A reader that left (| head) is not an error; a full disk is."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "standard output is closed")
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as err:
        if sys.stdout is not None:
            # else the interpreter's own flush fails at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(err, BrokenPipeError):
            raise EnvironmentFault(
                "the result cannot be written to standard output: %s" % err.strerror,
                "what was asked for has been done; only its report is lost",
            ) from None


def confirm(opts: Options, question: str) -> None:
    """A yes/no question on the terminal; --yes answers it. Raises Refused on no, and where there is
    no terminal."""
    if opts.yes:
        return
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise Refused(
            "%s: this has to be confirmed, and there is no terminal to ask on" % question,
            "look at it with --dry-run, then add --yes",
        ) from None
    try:
        os.write(terminal, os_bytes(escape_controls(question) + " [y/N] "))
        reply = os.read(terminal, 4096).strip().lower()
    finally:
        os.close(terminal)
    if reply not in (b"y", b"yes"):
        raise Refused("not confirmed; nothing was changed")


def ask_secret(prompt: str) -> bytes:
    """One line from the terminal without echo, as bytes: getpass decodes by the locale, and falls
    back to echoing when it finds no terminal. Raises OSError."""
    with open("/dev/tty", "r+b", buffering=0) as terminal:
        settings = termios.tcgetattr(terminal)
        silent = list(settings)
        silent[3] &= ~termios.ECHO  # the local modes
        try:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
            terminal.write(os_bytes(prompt))
            line = terminal.readline()
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, settings)
            terminal.write(b"\n")
    if line.endswith(b"\n"):
        line = line[:-1]
    return line


# Work that takes long.


class Progress:
    """'chpasswd: 12 of 60 containers' on stderr for what takes longer than 2 s: one line that is
    rewritten on a terminal, otherwise a line each 10 s."""

    # A line stands on the terminal without its end. Of the class: `say` must know of any.
    is_shown = False

    def __init__(self, task: str, total: int, quiet: bool) -> None:
        self.task = task
        self.total = total  # containers, or steps of a plan
        self.quiet = quiet
        self.began = time.monotonic()
        self.next_line = self.began + 2

    def tick(self, done: int) -> None:
        """done: the number of containers."""
        if done < self.total:
            left = format_time_left(self.began, done, self.total)
            self.show("%d of %d containers%s" % (done, self.total, left))

    def step(self, number: int, title: str, size: int) -> Callable[[int], None]:
        """tick(bytes done) for one step of a plan; size: the bytes to come, 0 = not known."""
        began = time.monotonic()

        def tick(done: int) -> None:
            text = "step %d of %d: %s" % (number, self.total, title)
            if done:
                text += "; " + format_size(done)
            if done and size:
                text += " of " + format_size(size)
            self.show(text + format_time_left(began, done, size))

        return tick

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self.quiet or now < self.next_line:
            return
        is_terminal = os.isatty(2)
        line = escape_controls("%s: %s" % (self.task, text))
        if is_terminal:
            self.next_line = now + 0.5
            line = CLEAR_LINE + line
        else:
            self.next_line = now + 10
            line += "\n"
        suppress_errors(os.write, 2, line.encode("ascii", "replace"))
        Progress.is_shown = is_terminal

    def end(self) -> None:
        if Progress.is_shown:
            suppress_errors(os.write, 2, CLEAR_LINE.encode("ascii"))
            Progress.is_shown = False


def format_time_left(began: float, done: int, total: int) -> str:
    """', about 9 s left', at the speed since `began`; '' where nothing can be said."""
    if not 0 < done < total:
        return ""
    elapsed = time.monotonic() - began
    seconds = elapsed / done * (total - done)
    return ", about %d s left" % seconds


def in_parallel(host: Host, items: Sequence, work: Callable, jobs: int, progress: Progress) -> list:
    """work(item) for each item, `jobs` at a time; results in order, None for what was not begun
    after a signal. An exception in a thread is the result of its item."""
    results = [None] * len(items)  # type: list
    numbers = iter(range(len(items)))
    guard = threading.Lock()
    host.known.working = True

    def run_worker() -> None:
        while not host.stop.is_set():
            with guard:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = work(items[number])
            except Exception as err:
                results[number] = err

    threads = []
    for _ in range(min(jobs, len(items))):
        thread = threading.Thread(target=run_worker, daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        # A join without a time limit would keep Python from handling a signal.
        while thread.is_alive():
            thread.join(0.1)
            done = sum(result is not None for result in results)
            progress.tick(done)
    progress.end()
    host.known.working = False
    return results


###############################################################################
# 5. Storage drivers
###############################################################################

# One row for each storage driver of Docker's: where its layers are, how they are mounted, what the
# driver needs, and what a person must know of it. A new driver goes here and nowhere else; that a
# name is in the table says that dockfix reads its layers. Nothing here looks at the host.
#
# Facts: moby's daemon/graphdriver/DRIVER (folders, files and mounts), its docs/deprecated.md (which
# engine dropped a driver), and containerd's docs/snapshotters (its own names of the same kinds).

# A layer's name. BuildKit's have 25 characters, all others are hashes.
LAYER = r"(?:[0-9a-f]{64}|[0-9a-z]{25})(?:-init|-removing)?\Z"
UNION_DELETION = (
    "a file deleted inside a container is free at once if the container made it, and only hidden if"
    " the image has it; "
)
SNAPSHOT_DELETION = (
    "a file deleted inside a container is free once no snapshot has its blocks any more; "
)
OVERLAY_DELETION = UNION_DELETION + "never delete in a diff or upper folder from the host"
OVERLAY_ADVICE = (
    "never delete below %s from the host while the container is there: it is left with a file that"
    " ls does not show and writes that vanish; delete inside the container, or below its merged"
    " folder while that is mounted"
)


class StorageDriver(NamedTuple):
    """What dockfix knows of one storage driver. Its home is ROOT/NAME, below Docker's root; all
    paths are relative to the home, and '%s' in them stands for a layer's name.

    Where its layers are:
    layer_folder: the folder whose names are the layers; '.' for the home itself, where one folder
        has all of a layer.
    paths: every path that a layer may have.
    own_paths: those of them with the layer's own files, without those of the layers below; the
        first that is there counts. () where no folder has them.
    in_pool: a layer is a device of a thin pool, and layer_folder has a record of it.
    full_copies: a layer holds a copy of all files below it too, so its size in layerdb, which
        counts the files that it adds, is not what it takes.
    hidden_at_rest: a layer's folder is there only while the layer is mounted.

    How a layer names those that it stands on:
    lower_files: files in a layer's folder.
    lower_folder: a folder with one file for each layer, '' for none.
    link_folder: a folder of short links to layers, by which mounts and lower_files name them.

    What it mounts, each undone when the container ends:
    mounts: places; '*' stands for one name.
    root_is_layer: a container's root is the layer's own folder, so no mount names the layer.

    What it needs:
    file_system: the file system that the kernel must have ('': none), by its name in
        /proc/filesystems, which is the module's name too.
    needs_ftype: the disk must tell the type of a folder's entries (xfs with ftype=1).
    plain_files: copying the files moves the layers.
    removed_in: the major version of the first engine without the driver, None: all have it.
    snapshotter: containerd has a snapshotter of the same name, so the name alone does not say that
        layers are below Docker's root.

    What to tell a person:
    family: the driver whose name the finding of `storage` bears.
    deletion: what deleting a file inside a container gives back, and what must not be touched.
    remedy: the command that tells more; ROOT stands for Docker's root.
    advice: what to know before a container's folder (%s) is touched, '' for nothing.
    """

    layer_folder: str
    paths: Tuple[str, ...]
    own_paths: Tuple[str, ...]
    family: str
    deletion: str
    remedy: str = "python3 dockfix.py owner"
    advice: str = ""
    in_pool: bool = False
    full_copies: bool = False
    hidden_at_rest: bool = False
    lower_files: Tuple[str, ...] = ()
    lower_folder: str = ""
    link_folder: str = ""
    mounts: Tuple[str, ...] = ()
    root_is_layer: bool = False
    file_system: str = ""
    needs_ftype: bool = False
    plain_files: bool = True
    removed_in: Optional[int] = None
    snapshotter: bool = False


STORAGE_DRIVERS = {
    "devicemapper": StorageDriver(
        layer_folder="metadata",
        paths=("mnt/%s", "metadata/%s"),
        own_paths=(),
        in_pool=True,
        mounts=("mnt/*",),
        removed_in=25,
        family="devicemapper",
        deletion=(
            "a file deleted inside a container stays allocated in the pool until fstrim or the"
            " container's removal; never touch data, metadata or /dev/mapper by hand"
        ),
        remedy="python3 dockfix.py reclaim --dry-run --trim",
    ),
    "overlay2": StorageDriver(
        layer_folder=".",
        paths=("%s/diff", "%s/merged", "%s"),
        own_paths=("%s/diff", "%s"),
        lower_files=("link", "lower"),
        link_folder="l",
        mounts=("*/merged",),
        file_system="overlay",
        needs_ftype=True,
        family="overlay2",
        deletion=OVERLAY_DELETION,
        advice=OVERLAY_ADVICE,
    ),
    "fuse-overlayfs": StorageDriver(
        layer_folder=".",
        paths=("%s/diff", "%s/merged", "%s"),
        own_paths=("%s/diff", "%s"),
        lower_files=("link", "lower"),
        link_folder="l",
        mounts=("*/merged",),
        file_system="fuse",
        snapshotter=True,
        family="overlay2",
        deletion=OVERLAY_DELETION,
        advice=OVERLAY_ADVICE,
    ),
    "overlay": StorageDriver(
        layer_folder=".",
        paths=("%s/upper", "%s/root", "%s/merged", "%s"),
        own_paths=("%s/upper", "%s/root", "%s"),
        lower_files=("lower-id",),
        mounts=("*/merged",),
        file_system="overlay",
        needs_ftype=True,
        removed_in=24,
        family="overlay2",
        deletion=OVERLAY_DELETION,
        advice=OVERLAY_ADVICE,
    ),
    "aufs": StorageDriver(
        layer_folder="diff",
        paths=("diff/%s", "mnt/%s", "layers/%s"),
        own_paths=("diff/%s",),
        lower_folder="layers",
        mounts=("mnt/*",),
        file_system="aufs",
        removed_in=24,
        family="aufs",
        deletion=UNION_DELETION + "never delete in diff/ from the host",
        advice=(
            "%s has the layer's own files; below mnt is what the container sees while it runs, "
            "below layers the list of what lies under it"
        ),
    ),
    "btrfs": StorageDriver(
        layer_folder="subvolumes",
        paths=("subvolumes/%s",),
        own_paths=("subvolumes/%s",),
        mounts=("subvolumes/*",),
        root_is_layer=True,
        file_system="btrfs",
        plain_files=False,
        snapshotter=True,
        family="btrfs",
        deletion=SNAPSHOT_DELETION + "never delete below subvolumes/ from the host",
        remedy="btrfs filesystem usage ROOT",
    ),
    "zfs": StorageDriver(
        layer_folder="graph",
        paths=("graph/%s",),
        own_paths=("graph/%s",),
        hidden_at_rest=True,
        mounts=("graph/*",),
        file_system="zfs",
        plain_files=False,
        snapshotter=True,
        family="zfs",
        deletion=SNAPSHOT_DELETION + "never destroy a data set by hand",
        remedy="zfs list -o space",
    ),
    "vfs": StorageDriver(
        layer_folder="dir",
        paths=("dir/%s",),
        own_paths=("dir/%s",),
        full_copies=True,
        root_is_layer=True,
        family="vfs",
        deletion=(
            "every layer is a whole copy of all files below it: nothing is shared, "
            "and a file deleted inside a container is free at once in that copy"
        ),
    ),
}
# What `docker info` names where containerd keeps the layers, beside the rows with `snapshotter`:
# containerd's own name -> the row whose `deletion` holds for it, '' for none.
SNAPSHOTTERS = {"overlayfs": "overlay2", "native": "", "stargz": "", "nydus": ""}
WINDOWS_DRIVERS = ("windowsfilter", "windows", "lcow")
REPORTED_DRIVERS = (*STORAGE_DRIVERS, *SNAPSHOTTERS, *WINDOWS_DRIVERS)


def facts_of_driver(name: str) -> Optional[StorageDriver]:
    """The row that holds for a driver or a snapshotter that `docker info` names; None for another
    name."""
    return STORAGE_DRIVERS.get(SNAPSHOTTERS.get(name, name))


###############################################################################
# 6. Docker
###############################################################################

# This chapter reads what docker answers: ps, inspect and info. Everything here only asks, and an
# answer that is not understood is an EnvironmentFault, never a guess.
#
# It never repeats a word that may be a password, and never changes anything.
#
# The facts: the output of engines from 0.12 to 29, collected in tests/unit/docker_info; moby's
# daemon/graphdriver and daemon/daemon_linux.go for the mounts that are Docker's own.


class Target(NamedTuple):
    """One container as `docker ps` lists it."""

    id: str  # 64 hexadecimal digits
    name: str
    status: str  # for people: 'Up 2 hours', 'Exited (0) 3 days ago'; '' where docker prints none


class Container(NamedTuple):
    """A container as `docker inspect` shows it: the one reading of that object. The comments name
    the keys that a field is from."""

    id: str  # Id, 64 hexadecimal digits
    name: str  # Name, without its slash
    running: bool  # State.Running: true for paused and restarting ones too
    paused: bool  # State.Paused
    restarting: bool  # State.Restarting
    being_removed: bool  # State.Status is "removing", or State.Dead: docker failed to remove it
    pid: int  # State.Pid, as the engine's host numbers it; 0 where it does not run
    started: str  # State.StartedAt, ISO 8601 in UTC; year 1 where it never ran
    command: Tuple[str, ...]  # Path and Args: entrypoint and command together
    env: Tuple[str, ...]  # Config.Env, NAME=VALUE each
    user: str  # Config.User: a name or number, with :GROUP or not
    working_dir: str  # Config.WorkingDir
    mounts: Tuple[Tuple[str, str], ...]  # (source, destination), destination normalised
    read_only: bool  # HostConfig.ReadonlyRootfs
    userns: str  # HostConfig.UsernsMode: "host", or '' for the engine's own
    auto_remove: bool  # HostConfig.AutoRemove: docker removes it when it stops
    restart_policy: str  # HostConfig.RestartPolicy, as --restart takes it; '' for none
    restart_count: int  # RestartCount: restarts by that policy
    driver: str  # GraphDriver.Name
    layer: Dict[str, str]  # GraphDriver.Data: what the storage driver says of its layer
    docker_root: str  # Docker's root, as ResolvConfPath has it: where the container's files are
    inspect: dict  # the whole object, for settings that have no field here


# docker ps and docker inspect


def parse_ps(text: str) -> List[Target]:
    """Rows of `docker ps --format "{{.ID}} {{.Names}} {{.Status}}"`. Raises EnvironmentFault."""
    targets = []
    listed = set()  # type: Set[str]
    for line in text.split("\n"):
        if not line.strip():
            continue
        ident, blank, rest = line.rstrip("\r").partition(" ")
        names, _, status = rest.partition(" ")
        if not blank or not re.match(r"[0-9a-f]{64}\Z", ident):
            raise EnvironmentFault(
                "docker ps gave an answer that is not understood: %s" % line[:80],
                "docker ps -a --no-trunc",
            )
        if ident in listed:
            raise EnvironmentFault(
                "docker ps lists one container twice: %s" % ident[:12], "docker ps -a --no-trunc"
            )
        listed.add(ident)
        name = first_name(names) or ident[:12]
        targets.append(Target(ident, name, status))
    return targets


def first_name(names: str) -> str:
    """The container's own name. With --no-trunc Names also lists link aliases ("other/alias")."""
    for name in names.split(","):
        if name and "/" not in name:
            return name
    return ""


class DaemonFault(NamedTuple):
    """Why no daemon answers. pattern: a regular expression for what docker then says."""

    pattern: str
    meaning: str
    remedy: str


DAEMON_FAULTS = (
    DaemonFault(
        r"permission denied",
        "no permission to speak to the Docker daemon",
        "sudo python3 dockfix.py ...",
    ),
    DaemonFault(
        r"[Cc]annot connect to the Docker daemon|[Ii]s the docker daemon running"
        r"|connection refused|no such host|error during connect",
        "the Docker daemon does not answer",
        "systemctl status docker; journalctl -u docker -n 50",
    ),
)


def is_gone(text: str) -> bool:
    """Does the text say that the container is no more? It may be the command's own: is_gone_now()
    asks docker."""
    return bool(
        re.search(
            r"No such container|marked for removal|[Rr]emoval .*in progress|container .* is dead",
            text,
        )
    )


def is_docker_error(rc: int, err: str, both: str) -> bool:
    """Whether the exit status of `docker exec` is the daemon's or the runtime's, and not the
    command's. The daemon speaks on stderr, runtimes on either."""
    daemon = (
        r"\s*(Error response from daemon|Error: ([Nn]o such|no) container|[Cc]annot connect to the"
        r" Docker daemon|error during connect|rpc error)"
    )
    runtime = r"OCI runtime exec failed|oci runtime error|unable to find user|rpc error: code"
    if rc in (1, 255):
        return bool(re.match(daemon, err))
    if rc in (126, 127):
        return bool(re.search(runtime, both))
    return False


def require_names(words: Iterable[str]) -> None:
    """Raises UsageError for a word with a colon where a container's name belongs. No container is
    called so, and it may be a password (USER:PASSWORD): it is not repeated, in no output."""
    if any(":" in word for word in words):
        raise UsageError(
            "a word with a colon stands where a container's name belongs; no name has one (the word"
            " is not shown: it may be a password)",
            "USER:PASSWORD goes to standard input: python3 dockfix.py chpasswd NAME < FILE",
        )


def hide_value(word: str) -> str:
    """A word that is not understood, for a message: what it holds besides a name may be a
    password."""
    if re.match(r"-[^-]..", word, re.S):  # -pSECRET
        return word[:2] + "..."
    name, equals, _ = word.partition("=")
    if ":" in name:
        return "..."
    if equals:
        return name + "=..."
    return name


def parse_objects(data: bytes) -> List[dict]:
    """The objects of `docker inspect` as they are, each with an Id or a Name. Raises
    EnvironmentFault when they are none."""

    def parse_list(text: str) -> List[dict]:
        objects = json.loads(text)
        if not isinstance(objects, list):
            raise ValueError("not a list")
        for doc in objects:
            if not isinstance(doc, dict):
                raise ValueError("not a list of objects")
            if not doc.get("Id") and not doc.get("Name"):
                raise ValueError("an object without a name")
        return objects

    return parse_answer(data.decode("utf-8", "replace"), parse_list)


def parse_answer(answer: object, parse: Callable):
    """parse(answer), or EnvironmentFault where the answer lacks what is parsed, or has it of
    another type. So `parse` may take what it needs without asking whether it is there."""
    try:
        return parse(answer)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        raise EnvironmentFault(
            "docker inspect gave an answer that is not understood", "docker inspect CONTAINER"
        ) from None


def parse_container(doc: dict) -> Container:
    """doc: an object of `docker inspect`. Raises as parse_answer expects."""
    ident = doc["Id"]
    if not re.match(r"[0-9a-f]{64}\Z", ident):
        raise ValueError("no id")
    state, host = doc["State"], doc["HostConfig"]
    if not isinstance(host, dict):
        raise ValueError("no HostConfig")  # without it a mount over /etc could not be seen
    pid = state.get("Pid") or 0
    if not isinstance(pid, int) or isinstance(pid, bool):
        raise ValueError("no pid")
    config = object_at(doc, "Config")
    graph = object_at(doc, "GraphDriver")
    layer = object_at(graph, "Data")
    is_removing = state.get("Status") == "removing"
    name = text_at(doc, "Name") or ident[:12]
    return Container(
        id=ident,
        name=name.lstrip("/"),
        running=state["Running"] is True,
        paused=state.get("Paused") is True,
        restarting=state.get("Restarting") is True,
        being_removed=is_removing or state.get("Dead") is True,
        pid=pid,
        started=text_at(state, "StartedAt"),
        command=(text_at(doc, "Path"), *texts_at(doc, "Args")),
        env=texts_at(config, "Env"),
        user=text_at(config, "User"),
        working_dir=text_at(config, "WorkingDir"),
        mounts=tuple(inspect_mounts(doc["Mounts"] or [], host)),
        read_only=host.get("ReadonlyRootfs") is True,
        userns=text_at(host, "UsernsMode"),
        auto_remove=host.get("AutoRemove") is True,
        restart_policy=format_restart_policy(object_at(host, "RestartPolicy")),
        restart_count=int(doc.get("RestartCount") or 0),
        driver=text_at(graph, "Name"),
        layer={str(key): str(value) for key, value in layer.items()},
        docker_root=text_at(doc, "ResolvConfPath").partition("/containers/")[0],
        inspect=doc,
    )


def parse_containers(docs: Sequence[dict]) -> List[Container]:
    """Objects of `docker inspect`. Raises EnvironmentFault."""
    return [parse_answer(doc, parse_container) for doc in docs]


# In an inspect object null, an empty value and a key that is not there mean the same.


def object_at(doc: dict, key: str) -> dict:
    return doc.get(key) or {}


def list_at(doc: dict, key: str) -> list:
    return doc.get(key) or []


def text_at(doc: dict, key: str) -> str:
    return str(doc.get(key) or "")


def texts_at(doc: dict, key: str) -> Tuple[str, ...]:
    return tuple(str(value) for value in list_at(doc, key))


def format_restart_policy(policy: dict) -> str:
    """A restart policy as docker create and docker update take it: 'always', 'on-failure:3'; '' for
    none. policy: an object of HostConfig.RestartPolicy; one without a name is none."""
    name = policy.get("Name") or ""
    if name in ("", "no"):
        return ""
    retries = policy.get("MaximumRetryCount")
    if retries:
        return "%s:%d" % (name, retries)
    return str(name)


def inspect_mounts(mounts: list, host: dict) -> List[Tuple[str, str]]:
    """(source, destination) of every mount, from all the places where engines since 1.12 note them:
    mounts (Mounts), and of host (HostConfig) Binds, Tmpfs and Mounts."""
    pairs = []
    for mount in mounts:
        source = text_at(mount, "Source") or text_at(mount, "Name")
        pairs.append((source, mount["Destination"]))
    for bind in list_at(host, "Binds"):
        source, colon, rest = bind.partition(":")
        if colon:
            path, _, _ = rest.partition(":")
            pairs.append((source, path))
        else:
            pairs.append(("", bind))  # an anonymous volume
    for path in object_at(host, "Tmpfs"):
        pairs.append(("tmpfs", path))
    for mount in list_at(host, "Mounts"):
        source = text_at(mount, "Source") or text_at(mount, "Type")
        pairs.append((source, mount["Target"]))
    normalised = []
    for source, path in pairs:
        destination = posixpath.normpath("/" + path.lstrip("/"))
        normalised.append((source, destination))
    return normalised


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "y": 365 * 86400}


def parse_instant(text: object) -> float:
    """Seconds since 1970 of Docker's '2024-01-31T12:00:00.123456789Z' (or +08:00); 0 where it is
    none, and for year 1, Docker's 'never'."""
    match = re.match(
        r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(?:Z|([+-])(\d\d):(\d\d))\Z",
        str(text or ""),
        re.A,
    )
    if not match:
        return 0.0
    whole, fraction, sign, hours, minutes = match.groups()
    east = 0  # seconds
    if sign:
        east = int(hours) * 3600 + int(minutes) * 60
    if sign == "-":
        east = -east
    try:
        seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
        return max(0.0, seconds - east + float("0" + (fraction or "")))
    except ValueError:
        return 0.0


def self_binds(mounts: Sequence[Mount]) -> List[Mount]:
    """The mounts of a folder onto itself: the files below such a mount point are those that lie
    there without the mount."""
    by_number = {mount.number: mount for mount in mounts}
    binds = []
    for mount in mounts:
        parent = by_number.get(mount.parent)
        if parent is None or not mount.number or parent.dev != mount.dev:
            continue
        # The folder of the file system at which the parent shows the mount point.
        below_parent = mount.point[len(parent.point.rstrip("/")) :]
        folder = parent.root.rstrip("/") + below_parent
        if mount.root == (folder or "/"):
            binds.append(mount)
    return binds


def mountinfo_word(path: str) -> str:
    """A path as mountinfo writes it (show_mountinfo in the kernel's fs/proc_namespace.c)."""
    for character in "\\ \t\n":  # the backslash first: the others bring new ones
        path = path.replace(character, "\\%03o" % ord(character))
    return path


def points_of_others(mounts: Sequence[Mount]) -> Set[bytes]:
    """Mount points below which other files lie than in the folder itself: a walk over that folder
    leaves them out. The layers of an old engine, which binds its driver's folder onto itself, are
    no others."""
    binds = set(self_binds(mounts))
    return {os_bytes(mount.point) for mount in mounts if mount not in binds}


class OwnMount(NamedTuple):
    """A place at which Docker itself mounts.

    place: below Docker's root ('': the root itself); '*' stands for one name, '**' for all that is
    below. kind is one of these:
    'itself': the daemon binds the folder onto itself. Only such a bind is Docker's own; a disk that
        somebody mounted there is not.
    'container': the root, the memory or the secrets of one container, plugin or step of a build.
        Docker unmounts it when that ends.
    'data': files that a volume's options or a volume plugin name. Docker mounts and unmounts them,
        dockfix never does.
    """

    place: str
    kind: str


def driver_mounts() -> Tuple[OwnMount, ...]:
    """What storage drivers mount: each its home onto itself (until 17.12), and its layers."""
    rows = []
    for name, driver in STORAGE_DRIVERS.items():
        rows.append(OwnMount(name, "itself"))
        for place in driver.mounts:
            rows.append(OwnMount("%s/%s" % (name, place), "container"))
    return tuple(rows)


# Sources, beside the table of storage drivers: moby's daemon/daemon_linux.go (the root itself, from
# 18.03 on, where its parent is private), container/container_unix.go, plugin/manager_linux.go,
# daemon/containerd (rootfs/SNAPSHOTTER/ID), libnetwork's osl; buildkit's executor/runcexecutor;
# containers/ is bound by Red Hat's builds.
OWN_MOUNTS = (
    OwnMount("", "itself"),
    OwnMount("containers", "itself"),
    *driver_mounts(),
    OwnMount("rootfs/*/*", "container"),
    OwnMount("containers/*/mqueue", "container"),
    OwnMount("containers/*/secrets", "container"),
    OwnMount("containers/*/shm", "container"),
    OwnMount("containers/*/mounts/*", "container"),
    OwnMount("netns/*", "container"),
    OwnMount("buildkit/executor/*/rootfs", "container"),
    OwnMount("buildkit/*/executor/*/rootfs", "container"),
    OwnMount("containerd/daemon/tmpmounts/*", "container"),
    OwnMount("tmp/buildkit-mount*", "container"),
    OwnMount("tmp/containerd-mount*", "container"),
    OwnMount("plugins/*/rootfs", "container"),
    OwnMount("plugins/**", "data"),
    OwnMount("volumes/**", "data"),
)


def place_pattern(place: str) -> str:
    """What stands behind Docker's root in the paths that a place of OWN_MOUNTS means: a regular
    expression for Python, grep and awk."""
    if not place:
        return ""
    return "/" + place.replace("**", ".+").replace("*", "[^/]+")


def own_mount_kind(root: str, mount: Mount, bound: Sequence[Mount]) -> str:
    """Of which kind of OWN_MOUNTS a mount at or below Docker's root is; '' for one that is not
    Docker's own. bound: the self_binds among all mounts."""
    root = root.rstrip("/")
    if not (mount.point + "/").startswith(root + "/"):
        return ""
    below_root = mount.point[len(root) :]
    is_bound = mount in bound
    for row in OWN_MOUNTS:
        if row.kind == "itself" and not is_bound:
            continue
        if re.match(place_pattern(row.place) + r"\Z", below_root):
            return row.kind
    return ""


def foreign_mounts(root: str, mounts: Sequence[Mount]) -> List[Mount]:
    """The mounts below Docker's root (not the disk that the root itself is on) that are not
    Docker's own."""
    bound = self_binds(mounts)
    inside = root.rstrip("/") + "/"
    foreign = []
    for mount in mounts:
        if mount.point.startswith(inside) and not own_mount_kind(root, mount, bound):
            foreign.append(mount)
    return foreign


def root_mount(mounts: List[Mount], container: Container) -> Optional[Mount]:
    """The mount at / that provably is the container's own writable layer. None where that cannot be
    shown."""
    for mount in mounts:
        if mount.point == "/" and shows_layer(mount, container.layer):
            return mount
    return None


def shows_layer(mount: Mount, layer: Dict[str, str]) -> bool:
    """Whether a mount's upperdir, device or data set is the one that GraphDriver.Data names."""
    upper = layer.get("UpperDir")
    if mount.fstype == "overlay" and mount.root == "/" and upper:
        # overlay2 passes a path relative to its home when the options fill a page.
        relative = "/".join(upper.split("/")[-2:])
        for option in mount.options:
            if option.startswith("upperdir="):
                return option in ("upperdir=" + upper, "upperdir=" + relative)
    device = layer.get("DeviceName")
    if device and mount.root == "/rootfs" and mount.source == "/dev/mapper/" + device:
        return True
    data_set = layer.get("Dataset")
    return bool(data_set) and mount.fstype == "zfs" and mount.source == data_set


# docker info, of any engine from 0.12 to 29, as text or JSON.


class EngineInfo(NamedTuple):
    """What `docker info` says of an engine, whichever way it was printed. What is not said once and
    well is '' or None."""

    version: str = ""
    driver: str = ""  # the storage driver, or containerd's snapshotter
    root: str = ""  # Docker's root: with user-namespace remapping it ends in UID.GID
    id: str = ""
    host_name: str = ""
    os_type: str = ""
    swarm: str = ""  # the node's state: inactive, active, pending ...
    live_restore: Optional[bool] = None
    containers: Optional[int] = None
    stopped: Optional[int] = None  # of the containers
    images: Optional[int] = None
    driver_status: Dict[str, str] = {}  # those of STATUS_KEYS that are said in one way
    security_options: Tuple[str, ...] = ()  # such as name=seccomp


class InfoKey(NamedTuple):
    """One fact of `docker info`.

    field: of EngineInfo. text_key: what the text calls it. json_key: what the JSON calls it, with a
    dot before a key inside an object. form: a regular expression for the whole value; a value of
    another form is damaged and counts as not said. json_type: the type of the JSON's value.
    """

    field: str
    text_key: str
    json_key: str
    form: str
    json_type: type = str


PATH_FORM = r"/(?:[^:]|:(?! ))*"  # no ": ", which tells that lines ran together
COUNT_FORM = r"[0-9]{1,9}"
# One row for each key. What an engine calls by another name is one more row with the same field.
INFO_KEYS = (
    InfoKey(
        "version",
        "Server Version",
        "ServerVersion",
        r"(?![0-9]*\.?(?: |\Z))[0-9A-Za-z][\w.+~-]*(?: .*)?",
    ),
    InfoKey("driver", "Storage Driver", "Driver", r"[\w./:-]+(?: .*)?|"),
    InfoKey("root", "Docker Root Dir", "DockerRootDir", PATH_FORM + r"|[A-Za-z]:\\[^:]*"),
    InfoKey("os_type", "OSType", "OSType", r"\w+"),
    InfoKey("swarm", "Swarm", "Swarm.LocalNodeState", r"\w+"),
    InfoKey("live_restore", "Live Restore Enabled", "LiveRestoreEnabled", r"true|false", bool),
    InfoKey("id", "ID", "ID", r"[\w:.-]+"),
    InfoKey("host_name", "Name", "Name", r"[\w.-]+"),
    InfoKey("containers", "Containers", "Containers", COUNT_FORM, int),
    InfoKey("stopped", "Stopped", "ContainersStopped", COUNT_FORM, int),
    InfoKey("images", "Images", "Images", COUNT_FORM, int),
)

# The keys of a devicemapper pool's status, and their fields in ReportedPool.
POOL_SIZES = {
    "Data Space Used": "data_used",
    "Data Space Total": "data_total",
    "Data Space Available": "data_available",
    "Metadata Space Used": "metadata_used",
    "Metadata Space Total": "metadata_total",
    "Metadata Space Available": "metadata_available",
    "Base Device Size": "base_device_size",
    "Pool Blocksize": "block_size",
    "Thin Pool Minimum Free Space": "min_free",
}
POOL_WORDS = {
    "Pool Name": "name",
    "Data file": "data_file",
    "Metadata file": "metadata_file",
    "Data loop file": "data_loop_file",
    "Metadata loop file": "metadata_loop_file",
}
# The keys of a storage driver's own status that dockfix knows.
STATUS_KEYS = (
    *POOL_SIZES,
    *POOL_WORDS,
    "Backing Filesystem",
    "driver-type",
    "Root Dir",
    "Parent Dataset",
)
MANAGER_KEYS = ("Strategy", "Filters", "Role")  # only a classic Swarm manager prints these


class InfoAnswer(NamedTuple):
    """An answer of `docker info` before it is judged. pairs: (key, value) by the keys of the text,
    also where it was JSON; a key may come twice."""

    pairs: List[Tuple[str, str]]
    security_options: List[str]


def decode_saved(data: bytes) -> str:
    """A saved answer as text: UTF-8, or UTF-16 with its mark (what PowerShell's > writes)."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8", "replace").lstrip("\ufeff")


def parse_info(text: str) -> EngineInfo:
    """Raises EnvironmentFault where nothing, or no engine's answer, is recognised."""
    text = re.sub(r"(?m)^[ \t]*(?:>[ \t]?)+", "", text)  # quoted, in a mail
    answer = info_from_json(text)
    if answer is None:
        answer = info_from_text(text)
    status = values_said_once(answer.pairs)
    facts = {}  # type: Dict[str, str]
    for row in INFO_KEYS:
        value = status.pop(row.text_key, None)
        if value is not None and re.match("(?:%s)\\Z" % row.form, value, re.A):
            facts[row.field] = value
    require_engine_answer(text, facts, status)
    # A remark may follow both.
    driver = facts.get("driver", "").split(" ")[0]
    if driver not in REPORTED_DRIVERS and "driver-type" not in status:
        driver = ""
    live_restore = None
    if "live_restore" in facts:
        live_restore = facts["live_restore"] == "true"
    return EngineInfo(
        version=facts.get("version", "").split(" ")[0],
        driver=driver,
        root=facts.get("root", ""),
        id=facts.get("id", ""),
        host_name=facts.get("host_name", ""),
        os_type=facts.get("os_type", ""),
        swarm=facts.get("swarm", ""),
        live_restore=live_restore,
        containers=parse_count(facts.get("containers")),
        stopped=parse_count(facts.get("stopped")),
        images=parse_count(facts.get("images")),
        driver_status={key: status[key] for key in STATUS_KEYS if key in status},
        security_options=tuple(answer.security_options),
    )


def parse_count(text: Optional[str]) -> Optional[int]:
    if text is None:
        return None
    return int(text)


def info_from_json(text: str) -> Optional[InfoAnswer]:
    """From the JSON of `docker info --format` or the API's /info; None where it is none."""
    start = re.search(r"^\s*\{", text, re.M)  # warnings, or HTTP headers, may stand before it
    if not start:
        return None
    try:
        document, _ = json.JSONDecoder().raw_decode(text, start.end() - 1)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    pairs = []
    for row in INFO_KEYS:
        value = value_at(document, row.json_key)
        if type(value) is bool and row.json_type is bool:
            pairs.append((row.text_key, str(value).lower()))
        elif type(value) is row.json_type:
            pairs.append((row.text_key, str(value)))
    for name in ("DriverStatus", "SystemStatus"):
        pairs += text_pairs(document.get(name))
    options = document.get("SecurityOptions")
    if not isinstance(options, list):
        options = []
    return InfoAnswer(pairs, [str(option) for option in options])


def value_at(document: dict, path: str) -> object:
    """The value of 'Key' or 'Key.Inner'; None where there is no such key."""
    value = document  # type: object
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def text_pairs(rows: object) -> List[Tuple[str, str]]:
    """Those of a list's items that are lists of two texts."""
    if not isinstance(rows, list):
        return []
    pairs = []
    for row in rows:
        if not isinstance(row, list) or len(row) != 2:
            continue
        key, value = row
        if isinstance(key, str) and isinstance(value, str):
            pairs.append((key, value))
    return pairs


def info_from_text(text: str) -> InfoAnswer:
    """Keys are known by name: pastes lose the nesting, and warnings, their continuation lines and
    remarks stand anywhere between them. A last line without its end may be cut, and counts only
    where a size with its unit is whole."""
    text = re.sub(r"(?m)^ *WARNING:.*(?:\n {9}.*)*", "", text.replace("\u00a0", " "))
    lines = text.split("\n" if "\n" in text else "\r")
    pairs = []
    for number, line in enumerate(lines, 1):
        key, colon, value = line.rstrip("\r").partition(":")
        # a remark stands behind a tab, two blanks, an arrow or a #
        value = re.split(r"\t|  +|\s+(?:<-|#)|\s*WARNING:", value.lstrip(" \t"))[0].rstrip(" ")
        if not colon:
            continue
        may_be_cut = number == len(lines)
        if may_be_cut and parse_docker_size(value) is None:
            continue
        pairs.append((key, value))
    options = []
    block = re.search(r"^ *Security Options:(.*(?:\n {2,}.*|\n [a-z].*)*)", text, re.M)
    if block:
        options = ["name=" + word for word in block.group(1).split()]
    return InfoAnswer(pairs, options)


def values_said_once(pairs: List[Tuple[str, str]]) -> Dict[str, str]:
    """The known keys with their values, without what is said in two ways or is no plain text.
    Raises EnvironmentFault where there are two storage drivers."""
    known_keys = {row.text_key for row in INFO_KEYS}.union(STATUS_KEYS, MANAGER_KEYS)
    values = {}  # type: Dict[str, Set[str]]
    for key, value in pairs:
        key = key.strip(" \t\b")  # early Swarm managers put a backspace before theirs
        if key in known_keys:
            values.setdefault(key, set()).add(value.strip(" \t"))
    drivers = sorted(values.get("Storage Driver", ()))
    if len(drivers) > 1:
        raise EnvironmentFault(
            "two storage drivers in one text: %s" % escape_controls(", ".join(drivers))[:200],
            "give each host's answer in a file of its own",
        )
    once = {}
    for key, said in values.items():
        value = min(said)
        if len(said) == 1 and value.isprintable() and "\ufffd" not in value:
            once[key] = value
    return once


def require_engine_answer(text: str, facts: Dict[str, str], status: Dict[str, str]) -> None:
    """Raises EnvironmentFault for a text that is no engine's answer. facts: by the fields of
    EngineInfo; status: the other keys."""
    if facts.get("driver"):
        return
    if any(key in status for key in MANAGER_KEYS):
        raise EnvironmentFault(
            "this is the answer of a classic Swarm manager, which has no storage of its own",
            "ask each engine: docker -H ENGINE:2375 info",
        )
    if facts.get("root") or any(key in status for key in POOL_SIZES):
        return
    # Clients of 20.10 and older print these, and exit 0.
    for fault in DAEMON_FAULTS:
        found = re.search('(?:%s)[^"\\n]{0,160}' % fault.pattern, text)
        if found:
            raise EnvironmentFault("%s: %s" % (fault.meaning, found.group(0).strip()), fault.remedy)
    raise EnvironmentFault(
        "this is not an answer of docker info, or only a part without storage driver and root",
        "docker info, on the host in question",
    )


# A devicemapper pool, as docker info reports it.


class ReportedPool(NamedTuple):
    """A devicemapper pool as the status in `docker info` has it. Texts are None where they are not
    said, '' where they are said to be empty. Sizes are bytes, None where they are unknown.

    failed: the driver prints zeros, as it does for a pool whose state it cannot read. mode: 'loop',
    'direct' or 'unknown'; mode_why: the reason, for people.
    """

    name: Optional[str]
    data_file: Optional[str]
    metadata_file: Optional[str]
    data_loop_file: Optional[str]
    metadata_loop_file: Optional[str]
    data_used: Optional[int]
    data_total: Optional[int]
    data_available: Optional[int]
    metadata_used: Optional[int]
    metadata_total: Optional[int]
    metadata_available: Optional[int]
    base_device_size: Optional[int]
    block_size: Optional[int]
    min_free: Optional[int]
    failed: bool
    mode: str
    mode_why: str


def parse_reported_pool(status: Dict[str, str]) -> ReportedPool:
    """status: EngineInfo.driver_status."""
    texts = {}
    for key, field in POOL_WORDS.items():
        form = r"[\w:.+-]+\Z" if field == "name" else PATH_FORM + r"\Z"
        text = status.get(key)
        if text and not re.match(form, text):
            text = None  # damaged
        texts[field] = text
    sizes = parse_pool_sizes(status)
    failed = is_failed_pool(status)
    if failed:
        for field in sizes:
            if field != "base_device_size":
                sizes[field] = None
    mode, reason = pool_mode(
        texts["name"] or "", texts["data_file"] or "", texts["data_loop_file"] or ""
    )
    return ReportedPool(
        name=texts["name"],
        data_file=texts["data_file"],
        metadata_file=texts["metadata_file"],
        data_loop_file=texts["data_loop_file"],
        metadata_loop_file=texts["metadata_loop_file"],
        data_used=sizes["data_used"],
        data_total=sizes["data_total"],
        data_available=sizes["data_available"],
        metadata_used=sizes["metadata_used"],
        metadata_total=sizes["metadata_total"],
        metadata_available=sizes["metadata_available"],
        base_device_size=sizes["base_device_size"],
        block_size=sizes["block_size"],
        min_free=sizes["min_free"],
        failed=failed,
        mode=mode,
        mode_why=reason,
    )


def parse_pool_sizes(status: Dict[str, str]) -> Dict[str, Optional[int]]:
    """Bytes by the fields of ReportedPool."""
    sizes = {}
    for key, field in POOL_SIZES.items():
        text = status.get(key, "")
        sizes[field] = parse_docker_size(text)
        if is_old_pool(status):
            sizes[field] = parse_old_pool_size(text)
    for kind in ("data", "metadata"):
        used, total = sizes[kind + "_used"], sizes[kind + "_total"]
        # The two are printed together: one alone is damage.
        if used is None or not total or used > total:
            for tail in ("_used", "_total", "_available"):
                sizes[kind + tail] = None
    if sizes["min_free"] == 0 and sizes["data_total"] is None:
        sizes["min_free"] = None
    return sizes


def is_old_pool(status: Dict[str, str]) -> bool:
    """Whether all sizes are printed as engines up to 1.2 print them."""
    printed = [status[key] for key in POOL_SIZES if key in status]
    return all(parse_old_pool_size(text) is not None for text in printed)


def parse_old_pool_size(text: str) -> Optional[int]:
    """Bytes of a pool's size as engines up to 1.2 print it: MiB as '204800.0 Mb', KiB as '64 Kb'
    (daemon/graphdriver/devmapper/driver.go). None for anything else."""
    if not re.match(r"[0-9]{1,9}(\.[0-9] Mb| Kb)\Z", text, re.A):
        return None
    return parse_byte_count(text, 1024)


def is_failed_pool(status: Dict[str, str]) -> bool:
    for key in ("Data Space Total", "Metadata Space Total", "Pool Blocksize"):
        if parse_docker_size(status.get(key, "")) == 0:
            return True
    return False


def pool_mode(name: str, data_file: str, data_loop_file: str) -> Tuple[str, str]:
    """('loop' | 'direct' | 'unknown', why). An empty Data file alone decides nothing: a loop pool
    that outlived its daemon shows the same (moby#14020), and dm.datadev pools are named like loop
    pools."""
    if data_loop_file:
        return "loop", "there is a Data loop file"
    if data_file.startswith("/"):
        reason = "its data file is %s" % data_file
        if re.match(r"/dev/loop[0-9]+\Z", data_file) or not data_file.startswith("/dev/"):
            return "loop", reason
        return "direct", reason
    if name and not re.match(r"docker-[0-9]+:[0-9]+-[0-9]+-pool\Z", name):
        return "direct", "its name is not one that Docker gives to its own pools"
    return "unknown", "neither a loop file nor a data device is said"


# The order of containers, and the calls that ask docker


def title_of(doc: dict) -> str:
    """The name of a container, network or volume, from its inspect object."""
    return doc["Name"].lstrip("/")


def is_running(doc: dict) -> bool:
    """Container.running, from the object of a backup; also true for paused and restarting ones."""
    return doc["State"].get("Running") is True


def find_needs(container: Container, others: Sequence[Container]) -> List[str]:
    """Ids of the containers that must be there, and up, before this one: links, shared namespaces,
    volumes-from, compose's depends_on."""
    references = container_references(container)
    needed = []
    for other in others:
        if other is container:
            continue
        names = (other.name, other.id, other.id[:12])
        if not references.isdisjoint(names) or is_compose_need(container, other):
            needed.append(other.id)
    return needed


def container_references(container: Container) -> Set[str]:
    """The names and ids by which a container's settings mean other containers."""
    host = container.inspect["HostConfig"]
    networks = object_at(container.inspect["NetworkSettings"], "Networks")
    references = set()
    for key in ("NetworkMode", "IpcMode", "PidMode"):
        kind, _, reference = text_at(host, key).partition(":")
        if kind == "container":
            references.add(reference)
    links = [*list_at(host, "VolumesFrom"), *list_at(host, "Links")]  # CONTAINER[:...]
    for network in networks.values():
        links += list_at(network, "Links")
    for link in links:
        reference, _, _ = link.partition(":")
        references.add(reference.lstrip("/"))
    return references


def is_compose_need(container: Container, other: Container) -> bool:
    """Whether docker compose's labels say that a container depends on the other one."""
    compose = "com.docker.compose."
    labels = object_at(container.inspect["Config"], "Labels")
    other_labels = object_at(other.inspect["Config"], "Labels")
    project = text_at(labels, compose + "project")
    if not project or text_at(other_labels, compose + "project") != project:
        return False
    depends_on = text_at(labels, compose + "depends_on")  # SERVICE[:CONDITION...],...
    services = [entry.split(":")[0] for entry in depends_on.split(",")]
    return other_labels.get(compose + "service") in services


def sort_by_needs(containers: Sequence[Container]) -> List[Container]:
    """Containers so that each comes behind those it needs, otherwise as they were started; a circle
    is cut there."""
    waiting = sorted(containers, key=lambda container: (container.started, container.name))
    needs = {container.id: set(find_needs(container, containers)) for container in containers}
    ordered = []  # type: List[Container]
    done = set()  # type: Set[str]
    while waiting:
        following = waiting[0]
        for container in waiting:
            if needs[container.id] <= done:
                following = container
                break
        ordered.append(following)
        done.add(following.id)
        waiting.remove(following)
    return ordered


def require_answer(answer: Answer, what: str) -> Answer:
    """The answer, or EnvironmentFault in the user's words when docker itself failed."""
    if answer.timed_out:
        raise EnvironmentFault(
            "%s did not answer in %d s" % (what, answer.seconds),
            "a sick daemon: systemctl status docker",
        )
    if answer.rc == 0:
        return answer
    for fault in DAEMON_FAULTS:
        if re.search(fault.pattern, answer.text()):
            raise EnvironmentFault("%s: %s" % (fault.meaning, first_line(answer)), fault.remedy)
    raise EnvironmentFault(
        "%s failed (exit %d): %s" % (what, answer.rc, first_line(answer)), "docker version"
    )


def run_or_fail(host: Host, *words: str) -> None:
    """A docker call that changes something and must succeed. Raises NoAnswer, MethodUnavailable."""
    answer = change(host, words)
    if answer.timed_out:
        raise NoAnswer("docker %s did not answer in %g s" % (words[0], host.timeout))
    if answer.rc:
        raise MethodUnavailable("docker %s: %s" % (words[0], first_line(answer)))


def first_line(answer: Answer) -> str:
    """The first line with something in it, for messages."""
    for line in answer.text().split("\n"):
        if line.strip():
            return line.strip()[:300]
    return "no message"


def list_containers(host: Host, filters: Sequence[str] = ()) -> List[Target]:
    """All containers, also stopped ones, that pass the filters (of `docker ps --filter`)."""
    arguments = ["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Status}}"]
    for condition in filters:
        arguments += ["--filter", condition]
    answer = require_answer(query(host, *arguments), "docker ps")
    return parse_ps(answer.out_text())


def inspect_containers(host: Host, ids: Sequence[str]) -> Dict[str, Container]:
    """Containers by id, without those that are gone or being removed."""
    containers = {}
    for doc in inspect_objects(host, "container", ids):
        container = parse_answer(doc, parse_container)
        if not container.being_removed:
            containers[container.id] = container
    return containers


def inspect_running(host: Host, ident: str) -> Container:
    """A container as it is now. Raises ContainerGone."""
    for container in inspect_containers(host, [ident]).values():
        return container
    raise ContainerGone


def inspect_objects(host: Host, kind: str, names: Sequence[str]) -> List[dict]:
    """Whole objects (kind: container, image, volume, network), CHUNK_IDS of them in one call. What
    is gone is left out: docker then exits 1 but prints the others."""
    verb = ["inspect", "--type", kind]
    if kind in ("volume", "network"):  # 1.12 has --type for the other two kinds only
        verb = [kind, "inspect"]
    gone = r"[Nn]o such (container|object|image|volume)|network .* not found"
    objects = []  # type: List[dict]
    for start in range(0, len(names), CHUNK_IDS):
        chunk = names[start : start + CHUNK_IDS]
        answer = query(host, *verb, *chunk)
        if answer.rc and not re.search(gone, answer.text()):
            require_answer(answer, "docker inspect")
        objects += parse_objects(answer.out)
    return objects


def volume_device(host: Host, source: str) -> str:
    """What a local volume (its name, or its _data folder) is a mount of, '' for another source.
    Docker mounts it only while a container runs, or for a docker cp; before that its folder does
    not look like the host's /etc."""
    name = source
    if "/" in source:
        folder, last = os.path.split(source)
        if last != "_data":
            return ""
        name = os.path.basename(folder)
    if name in ("", "tmpfs"):
        return ""
    for volume in inspect_objects(host, "volume", [name]):
        return text_at(object_at(volume, "Options"), "device")
    return ""


def is_gone_now(host: Host, ident: str, text: str) -> bool:
    """Whether the text says that the container is no more, and docker agrees."""
    if not is_gone(text):
        return False
    return ident not in inspect_containers(host, [ident])


def engine_info(host: Host) -> EngineInfo:
    """What parse_info makes of this engine's `docker info`; asked once. Raises EnvironmentFault."""
    if host.known.engine_info is None:
        host.known.engine_info = read_engine_info(host)
    return host.known.engine_info


def read_engine_info(host: Host) -> EngineInfo:
    """The same, asked now. Raises EnvironmentFault."""
    answer = query(host, "info", "--format", "{{json .}}")
    # Docker 1.12 has no info --format
    if re.search(r"flag provided but not defined|unknown flag", answer.text()):
        answer = query(host, "info")
    return parse_info(decode_saved(require_answer(answer, "docker info").out))


def userns_base(info: EngineInfo) -> Tuple[int, int]:
    """First host uid and gid of a remapped engine, (0, 0) without remapping. The root then ends in
    UID.GID (docker's own naming). Raises MethodUnavailable where `docker cp` is unproven."""
    options = info.security_options
    if any("name=rootless" in option for option in options):
        raise MethodUnavailable("docker cp under a rootless engine is not proven safe")
    if not info.root:
        raise MethodUnavailable("docker info does not say where Docker's root is")
    remapped = re.search(r"/([0-9]+)\.([0-9]+)/?$", info.root)
    if remapped:
        uid, gid = remapped.groups()
        return int(uid), int(gid)
    if any("userns" in option for option in options):
        raise MethodUnavailable("the engine remaps users, and its root does not say from which uid")
    return 0, 0


def engine_userns(host: Host) -> Tuple[int, int]:
    """First host uid and gid of the engine's remapping; looked up once, and only for docker cp."""
    known = host.known
    with host.guard:
        if known.engine_userns is None:
            info = engine_info(host)
            known.engine_userns = userns_base(info)
        return known.engine_userns


SYSTEMD_MARK = "/run/systemd/system"  # sd_booted(3)


###############################################################################
# 7. Choosing containers
###############################################################################

# Which containers a command works on, and the work on many of them at a time.
#
# A command that changes containers goes two ways over them. The survey looks at each and decides:
# either there is work, or its row is written already (unchanged, refused, gone). The second way
# does the work, and writes the other rows. A dry run ends after the survey. A word that means no
# container, or two, ends the run before anything is changed.
#
# A `target` is a container as `docker ps` lists it: its row needs no more, and it has one also when
# it is gone meanwhile. A `container` is what `docker inspect` says of it.
#
# Fact: `docker ps --filter` is handed what the user wrote; only the engine knows its filters.


# The rows of a report


class ResultRow(NamedTuple):
    """What a command reports of one container."""

    target: str  # its name
    id: str  # the full one
    # 'changed', 'unchanged', 'skipped' (it is gone, or was not begun), 'refused', 'failed' or
    # 'unknown'
    status: str
    msg: str
    # The command's own keys of the JSON document, in their order there. Each command says beside
    # its first row what they are.
    fields: Mapping[str, object]
    # Was something changed, though the whole failed? The JSON document has no such key for None.
    partial: Optional[bool] = None

    def to_json(self) -> Dict[str, object]:
        """The row as the JSON document has it."""
        row = {
            "target": self.target,
            "id": self.id,
            "status": self.status,
            "msg": self.msg,
        }  # type: Dict[str, object]
        row.update(self.fields)
        if self.partial is not None:
            row["partial"] = self.partial
        return row


def row_for(
    target: Target,
    status: str,
    msg: str,
    fields: Mapping[str, object],
    partial: Optional[bool] = None,
) -> ResultRow:
    """A row with the target's name and id."""
    return ResultRow(target.name, target.id, status, msg, fields, partial)


class Unchanged(Exception):
    """There is nothing to do in a container.

    `fields` are those of the row's fields that differ from what the command says of every
    container.
    """

    def __init__(self, msg: str, fields: Optional[Mapping[str, object]] = None) -> None:
        Exception.__init__(self, msg)
        self.fields = {}  # type: Mapping[str, object]
        if fields is not None:
            self.fields = fields


def row_of_error(target: Target, err: Exception, fields: Mapping[str, object]) -> ResultRow:
    """The row of a container whose look or change ended with an exception."""
    if isinstance(err, Unchanged):
        own_fields = dict(fields)
        own_fields.update(err.fields)
        return row_for(target, "unchanged", str(err), own_fields)
    if isinstance(err, ContainerGone):
        return row_for(target, "skipped", "gone", fields)
    if isinstance(err, Refused):
        return row_for(target, "refused", str(err), fields)
    # NoAnswer is a MethodUnavailable, but what was sent may have arrived.
    if isinstance(err, NoAnswer):
        return row_for(target, "unknown", str(err), fields)
    if isinstance(err, (DockfixError, MethodUnavailable)):
        return row_for(target, "failed", str(err), fields)
    # The text of any other exception may hold what was being worked on, a password perhaps.
    msg = "internal error: %s" % type(err).__name__
    return row_for(target, "failed", msg, fields)


def report_rows(report: dict, rows: List[ResultRow]) -> None:
    """Puts the rows into the report, and the exit code that follows from them."""
    report["results"] = [row.to_json() for row in rows]
    report["exit_code"] = exit_code(report["results"])


# Choosing


def choose_containers(host: Host, opts: Options) -> List[Target]:
    """The containers a command line means.

    There is one `docker ps`, and one more where there are filters. Raises UsageError where none is
    named or a name is not known, DockfixError where nothing matches.
    """
    names = [*opts.containers, *read_listed_names(host, opts)]
    # No word is a password in the wrong place.
    require_names(names)
    # Something is chosen.
    everything = opts.all or opts.stopped or bool(opts.filter)
    if not names and not everything:
        raise UsageError(
            "no containers are named",
            "python3 dockfix.py %s --all, or name containers" % opts.command,
        )
    listed = list_containers(host)
    filtered = None
    if opts.filter:
        filtered = list_filtered_ids(host, opts.filter)
    named = find_named(listed, names)
    if everything:
        named += select_all(listed, opts.stopped, filtered)
    chosen = drop_excluded(named, listed, opts.exclude)
    # An empty choice is no success by mistake.
    if not chosen and not opts.allow_empty:
        hint = "docker ps -a"
        if not opts.stopped:
            hint += "; stopped containers are left out: --stopped adds them"
        hint += "; --allow-empty makes this a success"
        raise DockfixError("no container matches", hint)
    return chosen


def read_listed_names(host: Host, opts: Options) -> List[str]:
    """The names in the files of --from: one on a line, a comment begins with #."""
    names = []
    for path in opts.from_file:
        if path == "-":
            claim_stdin(host, "--from -", "--from FILE")
        text = os_text(read_input(path, FROM_FILE_MAX, "--from"))
        for line in text.split("\n"):
            name = line.split("#", 1)[0].strip()
            if name:
                names.append(name)
    return names


FROM_FILE_MAX = 1 << 24  # bytes: some 200,000 full ids


def claim_stdin(host: Host, purpose: str, hint: str) -> None:
    """Standard input serves one purpose per run.

    purpose: what it is read for, as the message names it.
    hint: what the user can do instead.

    Raises UsageError.
    """
    # dockfix itself did not come that way (`python3 - < dockfix.py`).
    if was_read_from_stdin():
        raise UsageError(
            "dockfix itself was read from standard input, so %s cannot be" % purpose, hint
        )
    # It is not read for something else already.
    former_purpose = host.known.stdin_purpose
    if former_purpose:
        raise UsageError(
            "standard input serves one purpose: %s or %s" % (former_purpose, purpose), hint
        )
    # Somebody feeds it. A dry run does not read it.
    if os.isatty(0) and not host.dry_run:
        raise UsageError(
            "%s is to come from standard input, and that is a terminal" % purpose, hint
        )
    host.known.stdin_purpose = purpose


def list_filtered_ids(host: Host, filters: Sequence[str]) -> Set[str]:
    """The ids that the filters let through. Raises UsageError for one the engine does not know."""
    try:
        return {target.id for target in list_containers(host, filters)}
    except EnvironmentFault as err:
        if "nvalid filter" not in err.msg:
            raise
        raise UsageError(err.msg, "docker ps --help") from None


def find_named(listed: List[Target], names: Sequence[str]) -> List[Target]:
    """The containers that the names mean, in the order of the names. Raises UsageError where a name
    means none, or an id prefix means two."""
    named = []
    unknown = []
    for name in names:
        matches = find_by_name(listed, name)
        named += matches
        if not matches:
            unknown.append(name)
    if unknown:
        raise UsageError("no such container: %s" % ", ".join(unknown), "docker ps -a")
    return named


def find_by_name(listed: List[Target], name: str) -> List[Target]:
    """The containers a name means: a full id, else a name or glob, else an id prefix. Raises
    UsageError for a prefix of two."""
    # docker inspect shows a name with its slash.
    if name.startswith("/"):
        name = name[1:]
    same_id = [target for target in listed if target.id == name]
    if same_id:
        return same_id
    same_name = [target for target in listed if target.name == name]
    if same_name:
        return same_name
    alike = [target for target in listed if fnmatch.fnmatchcase(target.name, name)]
    if alike or not name:
        return alike
    prefixed = [target for target in listed if target.id.startswith(name)]
    if len(prefixed) > 1:
        names = ", ".join(target.name for target in prefixed)
        raise UsageError(
            "%s means %d containers: %s" % (name, len(prefixed), names),
            "give a name or more of the id",
        )
    return prefixed


# How the status text of running, paused and restarting containers begins, since Docker 1.0.
UP = ("Up", "Restarting")


def select_all(listed: List[Target], stopped: bool, filtered: Optional[Set[str]]) -> List[Target]:
    """The containers of --all, by name.

    stopped: take those too that do not run.
    filtered: the ids a --filter let through, None for no filter.
    """
    selected = []
    for target in sorted(listed, key=lambda target: target.name):
        if filtered is not None and target.id not in filtered:
            continue
        if stopped or target.status.startswith(UP):
            selected.append(target)
    return selected


def drop_excluded(
    chosen: List[Target], listed: List[Target], exclude: Sequence[str]
) -> List[Target]:
    """The chosen containers without doubles and without those that --exclude means. Warns of a glob
    that means no container of the host: it may be a slip of the pen."""
    excluded = set()  # type: Set[str]
    for glob in exclude:
        ids = [target.id for target in listed if is_meant_by_glob(target, glob)]
        excluded.update(ids)
        if not ids:
            say("dockfix: warning: --exclude %s matches no container" % glob)
    by_id = {}  # type: Dict[str, Target]
    for target in chosen:
        if target.id not in excluded:
            by_id[target.id] = target
    return list(by_id.values())


def is_meant_by_glob(target: Target, glob: str) -> bool:
    """Whether --exclude means a container: by its name, or by four characters of its id."""
    if fnmatch.fnmatchcase(target.name, glob):
        return True
    return len(glob) >= 4 and target.id.startswith(glob)


# Looking and working


Facts = TypeVar("Facts")


class Survey(Generic[Facts]):
    """What a look at the chosen containers has brought. Each target is in one of the two dicts, by
    its id.

    facts: of the containers in which there is work. What they are is the command's own type, often
        a plan.
    rows: of the containers of which all is said already.
    """

    def __init__(self, targets: List[Target]) -> None:
        self.targets = targets
        self.facts = {}  # type: Dict[str, Facts]
        self.rows = {}  # type: Dict[str, ResultRow]

    def pending(self) -> List[Target]:
        """The targets in which there is work, in their order."""
        return [target for target in self.targets if target.id in self.facts]

    def all_facts(self) -> List[Facts]:
        """The facts in the order of the targets."""
        return [self.facts[target.id] for target in self.pending()]


def survey_targets(
    host: Host,
    opts: Options,
    title: str,
    targets: List[Target],
    look: Callable[[Target], Facts],
    fields: Mapping[str, object],
) -> Survey[Facts]:
    """Looks at each target, --jobs at a time, with progress on stderr.

    title: what the progress line calls it.
    look: returns the facts; an exception becomes a row.
    fields: those of such a row.
    """
    survey = Survey(targets)  # type: Survey[Facts]
    progress = Progress(title, len(targets), opts.quiet)
    results = in_parallel(host, targets, look, opts.jobs, progress)
    for target, result in zip(targets, results):
        if result is None:
            msg = "not begun: interrupted"
            survey.rows[target.id] = row_for(target, "skipped", msg, fields)
        elif isinstance(result, Exception):
            survey.rows[target.id] = row_of_error(target, result, fields)
        else:
            survey.facts[target.id] = result
    return survey


def survey_containers(
    host: Host,
    opts: Options,
    title: str,
    targets: List[Target],
    look: Callable[[Container], Facts],
    fields: Mapping[str, object],
) -> Survey[Facts]:
    """survey_targets with what docker inspect says. It is asked once for all; a container that it
    does not find any more is skipped."""
    containers = inspect_containers(host, [target.id for target in targets])

    def look_at(target: Target) -> Facts:
        if target.id not in containers:
            raise ContainerGone
        return look(containers[target.id])

    return survey_targets(host, opts, title, targets, look_at, fields)


def run_over_targets(
    host: Host,
    opts: Options,
    targets: List[Target],
    work: Callable[[Target], ResultRow],
    fields: Mapping[str, object],
) -> List[ResultRow]:
    """Does the work on each target, --jobs at a time. Returns the rows in the order of the targets.

    work: returns the row; an exception becomes one.
    fields: those of such a row.
    """
    done = survey_targets(host, opts, opts.command, targets, work, fields)
    rows = dict(done.rows)
    rows.update(done.facts)
    return [rows[target.id] for target in targets]


def run_over_survey(
    host: Host,
    opts: Options,
    survey: Survey[Facts],
    work: Callable[[Target, Facts], ResultRow],
    fields: Mapping[str, object],
) -> List[ResultRow]:
    """run_over_targets for the containers in which the survey has found work. Returns the rows of
    all."""

    def work_on(target: Target) -> ResultRow:
        return work(target, survey.facts[target.id])

    rows = dict(survey.rows)
    for row in run_over_targets(host, opts, survey.pending(), work_on, fields):
        rows[row.id] = row
    return [rows[target.id] for target in survey.targets]


def confirm_restarts(opts: Options, containers: List[Container]) -> None:
    """Asks before --restart interrupts the containers that run. Raises Refused on no."""
    names = [container.name for container in containers if container.running]
    if names:
        confirm(opts, "restart %s?" % ", ".join(names))


# The script of a dry run


def shared_words(opts: Options) -> List[str]:
    """The options a script must repeat to do the same."""
    words = []
    if opts.docker != ("docker",):
        words += ["--docker", quote_line(opts.docker)]
    if opts.timeout != CALL_SECONDS:
        words += ["--timeout", "%g" % opts.timeout]
    if opts.state != default_state():
        words += ["--state", opts.state]
    return words


def not_done_comment(row: ResultRow) -> str:
    """The script's comment for a row of what is not to be done."""
    return script_comment("%s: %s (%s): %s" % (row.status, row.target, row.id, row.msg))


def set_script(opts: Options, report: dict, rows: List[ResultRow], lines: List[str]) -> None:
    """What a dry run leaves in the report.

    rows: as they would be; the exit code follows from them.
    lines: of the script: commands, and comments.
    """
    report_rows(report, rows)
    refused = [row for row in rows if row.status in ("refused", "failed")]
    report["script"] = script_text(report, lines, len(refused))
    # With --exit-code, 4 says that there is something to do.
    report["exit_code"] = exit_code(report["results"], opts.exit_code)


def plan_own_calls(
    opts: Options,
    report: dict,
    survey: Survey[Facts],
    options: List[str],
    fields: Mapping[str, object],
) -> None:
    """A dry run whose script calls dockfix once for each container. A command that notes what undo
    needs has no docker commands of its own to show: they would leave no notes.

    options: those of this run, for the calls.
    fields: those of the rows of what would be changed.
    """
    own_call = ["python3", program_path(), opts.command, *options, *shared_words(opts)]
    rows, lines = [], []
    for target in survey.targets:
        if target.id in survey.facts:
            row = row_for(target, "changed", "", fields)
            line = "run " + quote_line([*own_call, target.id])
        else:
            row = survey.rows[target.id]
            line = not_done_comment(row)
        rows.append(row)
        lines.append(line)
    set_script(opts, report, rows, lines)


###############################################################################
# 8. Files of a container
###############################################################################

# How dockfix reads and changes files inside a container. What is in a container is hostile: its
# programs may make a link, a fifo, a device or a mount of any name, at any moment, also between a
# look and the change that follows. So nothing here may ever follow a link that leads out of the
# container, write through a mount, open a device, or wait for a fifo.
#
# There are two ways, and the callers need not know which one is taken:
#
# By proc, where dockfix is root on the engine's own host and a process of the container runs.
#   1. /proc/PID/root is opened, and shown to be the container's own layer (open_root): the pid may
#      have been reused, and the process may have made a mount of the host its root (chroot(2)).
#   2. From there, every folder of a path is opened by itself, relative to the one above, with
#      O_NOFOLLOW. Each opened folder must be on the mount of the root. The kernel resolves no link:
#      to read, dockfix reads each link and walks it from the container's root; to write, a link on
#      the way is a refusal. There is no chroot and no fork: a codec that is loaded after a chroot
#      is the container's code.
#   3. A file is judged by its name with O_PATH, which opens nothing, and then that very inode is
#      opened: no other can take its place.
#   4. A file is replaced by a new one beside it (a temporary name, O_EXCL), which gets the old
#      one's owner, mode and extended attributes, is on the disk (fsync), and then takes the name
#      (rename). At the end dockfix reads it back, and looks whether the folders that it wrote to
#      are still where they were.
#
# By cp, everywhere else: `docker cp` sends and takes a tar.
#   1. Only the first member of a tar is read, and only so many bytes of it as were asked for.
#   2. docker cp knows paths only, so a link made between the look and the write would lead it into
#      a mount. The proof that there is none: a container that runs and has mounts is paused; each
#      folder on the way, and where each mount's destination leads, is looked at while nothing in it
#      can run; then the tar is sent, and the folders on the way go with it, for the daemon puts no
#      folder over what is none (NoOverwriteDirNonDir in moby's pkg/archive; seen on 20.10 and 28).
#      Afterwards everything is looked at once more: the container was neither started, stopped nor
#      unpaused meanwhile, and no folder has moved.
#   3. The daemon removes a file before it writes the new one (moby#43698), so what can fail for
#      want of space or of an owner's id is sent first, under another name.
#
# Sources: openat(2), open(2) for O_PATH, path_resolution(7), proc(5), rename(2), lckpwdf(3).


class Member(NamedTuple):
    """One path of a container. kind: 'file', 'link' (its text in `link`), 'dir', 'fifo', 'other'
    (a device, a socket), 'absent', or 'hard' (a hard link to `link`, only to be written). uid and
    gid as the host sees them (user-namespace base included); mtime in whole seconds."""

    path: str
    kind: str
    data: bytes = b""
    link: str = ""
    uid: int = 0
    gid: int = 0
    mode: int = 0
    mtime: int = 0


EditAccounts = Callable[[AccountFiles], AccountFiles]  # the files with a change in them


# How a folder or a name of a container is opened: never through a link that has the name itself.
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_TO_JUDGE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC  # the inode, without opening what it is
CREATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
CHANGED_MEANWHILE = (errno.ELOOP, errno.ENOTDIR)  # of what was a folder a moment ago


# What may be written: facts of docker inspect alone.


READ_ONLY = "the container's root file system is read-only"


def can_exec(container: Container) -> bool:
    """Does docker exec work in it?"""
    return container.running and not container.paused and not container.restarting


def is_at_or_above(place: str, path: str) -> bool:
    """Is a place of a container this path, or a folder that it lies in?"""
    return (path + "/").startswith(place.rstrip("/") + "/")


def mounts_over(container: Container, paths: Sequence[str]) -> List[Tuple[str, str]]:
    """(source, destination) of the mounts at or above any of these paths."""
    over = []
    for source, destination in container.mounts:
        if any(is_at_or_above(destination, path) for path in paths):
            over.append((source, destination))
    return over


def files_refusal(container: Container, paths: Sequence[str]) -> str:
    """Why these paths must not be written, '' when they may."""
    over = mounts_over(container, paths)
    if over:
        source, destination = over[0]
        return (
            "%s is a mount (%s): a change would reach beyond the container, or be covered at its"
            " next start" % (destination, source or "volume")
        )
    if container.read_only:
        return READ_ONLY
    return ""


def leads_out(container: Container) -> bool:
    """Has it mounts? Without one, no link in it leads docker cp, or a program in it, to anything
    that is not its own. (What docker itself mounts, /etc/hosts and the like, are single files; a
    tmpfs holds nothing of the host.)"""
    memory = {destination for source, destination in container.mounts if source == "tmpfs"}
    destinations = {destination for _, destination in container.mounts}
    return bool(destinations - memory)


def folders_above(paths: Iterable[str]) -> List[str]:
    """Every folder above these paths but the root, outermost first."""
    folders = set()
    for path in paths:
        while posixpath.dirname(path) != "/":
            path = posixpath.dirname(path)
            folders.add(path)
    return sorted(folders)


def deepest_first(paths: Iterable[str]) -> List[str]:
    """In the order in which folders can be removed: what is in one comes before it."""
    return sorted(paths, key=lambda path: -len(path))


def not_a_folder(path: str, kind: str, link: str) -> Refused:
    """What to raise for a part of the way that is none. link: its text, where it is a link."""
    text = "a file"
    if kind == "link":
        text = "a link to %s" % link
    return Refused("its %s is %s, not a folder" % (path, text))


# A member: from st_mode, from the tar of docker cp, and into a tar.


MODE_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFDIR: "dir",
    stat.S_IFIFO: "fifo",
}
READ_TYPES = {  # a hard link is read as a link: its text is a path
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "link",
    tarfile.FIFOTYPE: "fifo",
    tarfile.DIRTYPE: "dir",
}
WRITE_TYPES = {
    "file": tarfile.REGTYPE,
    "link": tarfile.SYMTYPE,
    "hard": tarfile.LNKTYPE,
    "dir": tarfile.DIRTYPE,
}
IRREGULAR = {"link": "a symbolic link", "fifo": "a fifo", "dir": "a directory"}


def kind_of(mode: int) -> str:
    """The kind of a Member from st_mode."""
    return MODE_KINDS.get(stat.S_IFMT(mode), "other")


def require_regular(path: str, kind: str, size: int, limit: int) -> None:
    """Raises Refused for what is no file, and for one of more than `limit` bytes."""
    if kind != "file":
        text = IRREGULAR.get(kind, "a device or socket")
        raise Refused("its %s is %s, not a file" % (path, text))
    if size > limit:
        raise Refused("its %s has %d bytes; more than %d is not such a file" % (path, size, limit))


def parse_tar_member(path: str, header: tarfile.TarInfo, data: bytes) -> Member:
    """The member of a path from what docker cp sent for it."""
    kind = READ_TYPES.get(header.type, "other")
    if kind != "file":
        data = b""
    link = ""
    if kind == "link":
        link = header.linkname
    mode = header.mode & 0o7777
    return Member(path, kind, data, link, header.uid, header.gid, mode, int(header.mtime))


def format_tar(members: Sequence[Member], base: Tuple[int, int]) -> bytes:
    """The tar for `docker cp - C:/` of the members that are not absent, in their order. `base` is
    the engine's userns_base. Raises MethodUnavailable for an owner outside it: docker cp unlinks
    first and fails then (moby#43698)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            if member.kind != "absent":
                tar.addfile(format_tar_header(member, base), io.BytesIO(member.data))
    return out.getvalue()


def format_tar_header(member: Member, base: Tuple[int, int]) -> tarfile.TarInfo:
    """Raises MethodUnavailable as format_tar."""
    first_uid, first_gid = base
    # docker cp unpacks below the place that it is given, here the root.
    header = tarfile.TarInfo(member.path.lstrip("/"))
    # A tar has the ids as a process in the container sees them.
    header.uid = member.uid - first_uid
    header.gid = member.gid - first_gid
    header.mode = member.mode
    header.mtime = member.mtime
    if not (0 <= header.uid <= ID_MAX and 0 <= header.gid <= ID_MAX):
        raise MethodUnavailable(
            "the owner of its %s (%d:%d) is outside the engine's user namespace (from %d:%d)"
            % (member.path, member.uid, member.gid, first_uid, first_gid)
        )
    header.type = WRITE_TYPES[member.kind]
    header.linkname = member.link
    header.size = len(member.data)
    return header


def is_same_member(present: Member, wanted: Member) -> bool:
    """Is it what was to be written? A link's mode and what a directory holds say nothing. Nor do
    times: docker keeps no mtime of links."""
    if present.kind != wanted.kind:
        return False
    if wanted.kind in ("absent", "dir"):
        return True
    if present.uid != wanted.uid or present.gid != wanted.gid:
        return False
    if wanted.kind == "link":
        return present.link == wanted.link
    return present.mode == wanted.mode and present.data == wanted.data


# By proc: the container's root, opened and proven.


class OpenedRoot(NamedTuple):
    """A descriptor of a container's own root, and the mounts that its first process sees."""

    fd: int
    mounts: List[Mount]


def open_root(container: Container) -> OpenedRoot:
    """The container's own root, through its first process. Raises MethodUnavailable where it is not
    proven that this is the container's own layer: a process may have chrooted itself into a mount
    of the host, and a pid may have been reused."""
    if os.geteuid() != 0:
        raise MethodUnavailable("only root can go through /proc")
    if not container.pid:
        raise MethodUnavailable("it has no running process")
    folder = "/proc/%d" % container.pid
    try:
        process = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_root_of(process, container)
        finally:
            os.close(process)
    except OSError as err:
        raise MethodUnavailable("%s: %s" % (folder, err.strerror)) from None


def open_root_of(process: int, container: Container) -> OpenedRoot:
    """process: an opened /proc/PID, which stays that process's even when its pid is reused. Raises
    OSError, MethodUnavailable."""
    if container.id not in read_proc(process, "cgroup"):
        raise MethodUnavailable("process %d is not this container's" % container.pid)
    # This name is a link of the kernel's own, which it resolves without a path.
    root = os.open("root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process)
    try:
        # After the open, so that what is judged is what was opened: the device ties both together.
        mounts = parse_mountinfo(read_proc(process, "mountinfo"))
        if not is_own_layer(root, mounts, container):
            raise MethodUnavailable(
                "the root of its first process is not shown to be the container's own layer"
                " (driver %s)" % (container.driver or "unknown")
            )
    except BaseException:
        os.close(root)
        raise
    return OpenedRoot(root, mounts)


def read_proc(process: int, name: str) -> str:
    """The text of a file below an opened /proc/PID. Raises OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    with os.fdopen(fd, "rb") as source:
        return os_text(source.read())


def is_own_layer(root: int, mounts: List[Mount], container: Container) -> bool:
    """Is an opened root the container's own layer: by the mount at /, or by the folder that Docker
    has on record?"""
    mount = root_mount(mounts, container)
    if mount and mount.dev == format_device(os.fstat(root).st_dev):
        return True
    return is_recorded_root(root, container)


def is_recorded_root(root: int, container: Container) -> bool:
    """Is an opened folder the one that Docker's own records name as the container's root? For
    drivers whose mounts name no layer: vfs and btrfs have none, and with containerd's image store
    inspect tells nothing of the layer (seen on 26.1 and 28.5). On vfs the host's folders are on the
    same device, so the kernel must tell mounts apart by number."""
    if not mount_id(root):
        return False
    own = os.fstat(root)
    for place in recorded_roots(container):
        if not place.startswith("/"):
            continue
        status = suppress_errors(os.stat, os_bytes(place))
        if status is not None and os.path.samestat(status, own):
            return True
    return False


def recorded_roots(container: Container) -> List[str]:
    """The folders that Docker's records name as a container's root; '' among them for none."""
    places = [container.layer.get("MergedDir", "")]
    if not container.docker_root.startswith("/"):
        return places
    # With containerd's image store docker mounts it at ROOT/rootfs/SNAPSHOTTER/ID.
    stores = os.path.join(container.docker_root, "rootfs")
    snapshotters = suppress_errors(os.listdir, os_bytes(stores)) or []
    for snapshotter in map(os.fsdecode, snapshotters):
        places.append(os.path.join(stores, snapshotter, container.id))
    places.append(recorded_layer(container))
    return places


def recorded_layer(container: Container) -> str:
    """The folder of a container's own layer, from its record in the layerdb; '' where there is
    none."""
    driver = STORAGE_DRIVERS.get(container.driver)
    if not driver or not driver.root_is_layer:
        return ""
    record = "image/%s/layerdb/mounts/%s/mount-id" % (container.driver, container.id)
    text = suppress_errors(read_host_text, os.path.join(container.docker_root, record))
    if text is None:
        return ""
    name = text.strip()
    # What is in the record becomes a part of a path.
    if not re.match(LAYER, name):
        return ""
    return os.path.join(container.docker_root, container.driver, driver.layer_folder, name)


def mount_id(fd: int) -> str:
    """The kernel's number of the mount that an open file is on (proc(5), fdinfo; Linux 3.15), ''
    where it does not say."""
    text = suppress_errors(read_host_text, "/proc/self/fdinfo/%d" % fd)
    line = re.search(r"(?m)^mnt_id:\s*([0-9]+)", text or "")
    if line is None:
        return ""
    return line.group(1)


def is_same_mount(fd: int, other: int) -> bool:
    """Are two open files on the same mount? A folder of the host that is mounted in may be on the
    same device, so the mount's number decides too."""
    if os.fstat(fd).st_dev != os.fstat(other).st_dev:
        return False
    return mount_id(fd) == mount_id(other)


# By proc: reading one name of an opened folder.


def open_regular_at(folder: int, name: str, flags: int, limit: int, path: str) -> int:
    """A descriptor of a regular file; never a link, never blocks on a fifo. Judged through O_PATH
    first, and then that very inode is opened: to open a device is to act on it (a watchdog reboots
    the host).

    folder: a descriptor; the file is looked for below it, as `name`.
    flags: os.O_RDONLY or os.O_WRONLY.
    limit: bytes; a larger file is Refused.
    path: what a refusal calls the file.

    Raises OSError, Refused."""
    judged = os.open(os_bytes(name), OPEN_TO_JUDGE, dir_fd=folder)
    try:
        status = os.fstat(judged)
        require_regular(path, kind_of(status.st_mode), status.st_size, limit)
        # The link of the kernel's own leads to this inode, whatever has the name by now.
        inode = "/proc/self/fd/%d" % judged
        return os.open(inode, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(judged)


class FileRead(NamedTuple):
    """The bytes of a file, and what stat said of it when it was opened."""

    data: bytes
    status: os.stat_result


def read_file_at(folder: int, name: str, limit: int, path: str) -> FileRead:
    """The file of open_regular_at. Raises MethodUnavailable for one that grows meanwhile."""
    fd = open_regular_at(folder, name, os.O_RDONLY, limit, path)
    with os.fdopen(fd, "rb") as source:
        # Before the read: what the size was then decides whether all of it is here.
        status = os.fstat(source.fileno())
        data = source.read(limit + 1)
    if len(data) != status.st_size:
        raise MethodUnavailable("its %s grows while it is read" % path)
    return FileRead(data, status)


def read_member_at(folder: int, name: bytes, path: str, limit: int) -> Member:
    """What an opened folder has under a name; a file's bytes unless `limit` is -1. `path` is what
    the member, and an error, call it. Raises OSError, Refused, MethodUnavailable."""
    link = ""
    data = b""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        kind = kind_of(status.st_mode)
        if kind == "link":
            link = os_text(os.readlink(name, dir_fd=folder))
        elif kind == "file" and limit >= 0:
            data, status = read_file_at(folder, os_text(name), limit, path)
    except FileNotFoundError:
        return Member(path, "absent")
    mode = stat.S_IMODE(status.st_mode)
    mtime = int(status.st_mtime)
    return Member(path, kind, data, link, status.st_uid, status.st_gid, mode, mtime)


# By proc: reading any path, links included.


class Place(NamedTuple):
    """Where a path of a container leads: an opened folder, the name in it (b"." for the folder
    itself), and the path without links."""

    folder: int
    name: bytes
    path: str


class PathWalk:
    """A walk below an opened root, folder by folder, as a process with that root would go: each
    link is read and walked from that root, and none is left to the kernel."""

    def __init__(self, root: int) -> None:
        """root: a descriptor; it stays the caller's."""
        self.root = root
        self.folders = [os.dup(root)]  # opened, outermost first
        self.names = []  # type: List[bytes]
        self.links = 0  # followed so far

    def enter(self, name: bytes) -> None:
        """Raises OSError, and MethodUnavailable for a mount."""
        self.folders.append(os.open(name, OPEN_FOLDER, dir_fd=self.folders[-1]))
        self.names.append(name)
        if not is_same_mount(self.folders[-1], self.root):
            raise MethodUnavailable("its /%s is a mount" % format_bytes(b"/".join(self.names)))

    def leave(self) -> None:
        """To the folder above; the root is above itself."""
        if self.names:
            os.close(self.folders.pop())
            self.names.pop()

    def is_link(self, name: bytes) -> bool:
        """Raises OSError, FileNotFoundError where nothing has the name."""
        status = os.stat(name, dir_fd=self.folders[-1], follow_symlinks=False)
        return stat.S_ISLNK(status.st_mode)

    def read_link(self, name: bytes) -> List[bytes]:
        """The parts of a link's text, which are to be walked next. Raises OSError."""
        self.links += 1
        if self.links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(name, dir_fd=self.folders[-1])
        # An absolute one starts at the container's root, not at the host's.
        if target.startswith(b"/"):
            while self.names:
                self.leave()
        return target.split(b"/")

    def end_at(self, name: bytes) -> Place:
        """The descriptor of the folder is the caller's from here on."""
        names = list(self.names)
        if name != b".":
            names.append(name)
        path = "/" + os_text(b"/".join(names))
        return Place(self.folders.pop(), name, path)

    def close(self) -> None:
        """Closes what end_at has not handed over."""
        for fd in self.folders:
            os.close(fd)


def resolve_by_proc(root: int, path: str, follow: bool) -> Place:
    """Where a path leads below an opened root; a link at its end is followed with `follow` only.
    The caller closes the folder. Raises OSError, and MethodUnavailable where a folder on the way is
    a mount."""
    walk = PathWalk(root)
    ahead = os_bytes(path).split(b"/")[::-1]  # the parts to be walked, the next one last
    try:
        while True:
            name = b"."
            if ahead:
                name = ahead.pop()
            # A slash or a dot at the end adds nothing; `..` does.
            is_last = all(part in (b"", b".") for part in ahead)
            if name == b"..":
                walk.leave()
            if name in (b"", b".", b".."):
                if is_last:
                    return walk.end_at(b".")
                continue
            is_link = walk.is_link(name)
            if is_link and (follow or not is_last):
                ahead += walk.read_link(name)[::-1]
            elif is_last:
                return walk.end_at(name)
            else:
                walk.enter(name)
    finally:
        walk.close()


def read_member_by_proc(container: Container, path: str, limit: int, follow: bool) -> Member:
    """read_member, through an opened root. Raises MethodUnavailable, Refused."""
    root = open_root(container)
    folder = -1
    try:
        place = resolve_by_proc(root.fd, path, follow)
        folder = place.folder
        points = {mount.point for mount in root.mounts}
        if place.path != "/" and place.path in points:
            raise MethodUnavailable("its %s is a mount" % place.path)
        return read_member_at(folder, place.name, path, limit)
    except (FileNotFoundError, NotADirectoryError):
        return Member(path, "absent")
    except OSError as err:
        raise MethodUnavailable("%s: %s" % (path, err.strerror)) from None
    finally:
        os.close(root.fd)
        if folder >= 0:
            os.close(folder)


# By cp: reading any path.


class FirstMember(NamedTuple):
    """The header of the first member of a tar, and as much of its content as was sent."""

    header: tarfile.TarInfo
    data: bytes


def read_first_by_cp(
    host: Host, container: Container, path: str, limit: int, follow: bool = False
) -> FirstMember:
    """The first member docker cp sends for a path.

    limit: bytes of the tar; the client is stopped once they are here, however large the file is.
    follow: docker cp follows a link at the end of the path (-L).

    Raises ContainerGone, FileNotFoundError, MethodUnavailable."""
    options = []
    if follow:
        options = ["-L"]
    source = container.id + ":" + path
    answer = query(host, "cp", *options, source, "-", limit=limit, enough=limit)
    if len(answer.out) < TAR_BLOCK:
        raise cp_read_error(host, container, path, answer)
    try:
        # A stream cut by `limit` is fine: only the first member counts.
        with tarfile.open(fileobj=io.BytesIO(answer.out), mode="r|") as stream:
            header = next(iter(stream))
    except (tarfile.TarError, StopIteration, ValueError, OSError, EOFError):
        raise MethodUnavailable("docker cp sent something that is not a tar stream") from None
    start = header.offset_data
    return FirstMember(header, answer.out[start : start + header.size])


def cp_read_error(host: Host, container: Container, path: str, answer: Answer) -> Exception:
    """What to raise for a docker cp that sent no tar."""
    text = answer.text()
    if "Could not find the file" in text:
        return FileNotFoundError(errno.ENOENT, path)
    # Other clients say "No such container:path" where either is missing: so docker is asked.
    if is_gone(text) or re.search(r"[Nn]o such file or directory", text):
        if container.id in inspect_containers(host, [container.id]):
            return FileNotFoundError(errno.ENOENT, path)
        return ContainerGone()
    if answer.timed_out:
        return MethodUnavailable("docker cp did not answer in %d s" % host.timeout)
    return MethodUnavailable("docker cp: %s" % first_line(answer))


def read_member_by_cp(
    host: Host, container: Container, path: str, limit: int, follow: bool = False
) -> Member:
    """read_member, through docker cp. Raises ContainerGone, MethodUnavailable, Refused."""
    try:
        first = read_first_by_cp(host, container, path, limit + HEADER_BYTES, follow)
    except FileNotFoundError:
        return Member(path, "absent")
    header = first.header
    if header.isreg():
        require_regular(path, "file", header.size, limit)
        if len(first.data) != header.size:
            raise MethodUnavailable("docker cp sent only a part of %s" % path)
    return parse_tar_member(path, header, first.data)


def read_kind_by_cp(host: Host, container: Container, path: str) -> Member:
    """What is at a path, without a file's bytes: the first header that docker cp sends. Raises
    ContainerGone, MethodUnavailable."""
    try:
        first = read_first_by_cp(host, container, path, HEADER_BYTES)
    except FileNotFoundError:
        return Member(path, "absent")
    return parse_tar_member(path, first.header, b"")


# Reading any path: by proc where that is possible, else by cp.


def read_member(
    host: Host, container: Container, path: str, limit: int = SHADOW_MAX, follow: bool = False
) -> Member:
    """What is at an absolute path of the container, in any state of it: kind 'absent' where nothing
    is. The path of a member is the one asked for, whatever links led there.

    path: links above its end are followed, as a process in the container would follow them.
    limit: bytes of a file; a larger one is Refused.
    follow: a link at the end is followed too, and what it leads to is returned.

    Raises ContainerGone; MethodUnavailable where neither way can be used."""
    try:
        return read_member_by_proc(container, path, limit, follow)
    except MethodUnavailable:  # not root, another host, no process, a mount on the way
        return read_member_by_cp(host, container, path, limit, follow)


def refuse_hidden_mounts(container: Container, paths: Sequence[str]) -> None:
    """Raises Refused for a mount at or above one of these paths that docker does not tell of:
    docker cp would read and write below it."""
    try:
        root = open_root(container)
    except MethodUnavailable:
        return
    os.close(root.fd)
    for mount in root.mounts:
        if mount.point == "/":
            continue
        if any(is_at_or_above(mount.point, path) for path in paths):
            raise Refused("its %s is a mount made inside it" % mount.point)


def missing_folders(host: Host, container: Container, paths: Sequence[str]) -> List[str]:
    """The folders above these paths that are not there, outermost first. Raises Refused where one
    is a link or no folder, or a mount that docker does not tell of. change_members looks again when
    it writes."""
    refuse_hidden_mounts(container, paths)
    missing = []  # type: List[str]
    for folder in folders_above(paths):
        if posixpath.dirname(folder) in missing:
            missing.append(folder)
            continue
        member = read_member(host, container, folder)
        if member.kind == "absent":
            missing.append(folder)
        elif member.kind != "dir":
            raise not_a_folder(folder, member.kind, member.link)
    return missing


# By proc: folders opened one by one to write below them, none of them a link or a mount.


class Tree(NamedTuple):
    """A container's root, opened, and the folders opened below it, by path. An opened folder stays
    the same one wherever something moves it, so a path that was proven stays proven while dockfix
    writes."""

    root: int
    folders: Dict[str, int]
    points: Set[str]  # where something was mounted when the root was opened


def open_tree(container: Container) -> Tree:
    """Raises MethodUnavailable where the root is not shown to be the container's own."""
    root = open_root(container)
    points = {mount.point for mount in root.mounts}
    points.discard("/")
    return Tree(root.fd, {"/": root.fd}, points)


def close_tree(tree: Tree) -> None:
    """Closes the root and every folder."""
    for fd in tree.folders.values():
        suppress_errors(os.close, fd)


def open_folder(tree: Tree, path: str) -> int:
    """A descriptor of a folder of the container, opened part by part and kept. Raises
    FileNotFoundError, and Refused where a part of the way is a link, a file or a mount."""
    if path in tree.folders:
        return tree.folders[path]
    above, last = posixpath.split(path)
    parent = open_folder(tree, above)
    name = os_bytes(last)
    # Looked at first, only to say what it is: the open below would refuse a link as well.
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    kind = kind_of(status.st_mode)
    if kind != "dir":
        link = suppress_errors(os.readlink, name, dir_fd=parent) or b"?"
        raise not_a_folder(path, kind, os_text(link))
    try:
        folder = os.open(name, OPEN_FOLDER, dir_fd=parent)
    except OSError as err:
        if err.errno in CHANGED_MEANWHILE:
            raise Refused("its %s changes while it is looked at" % path) from None
        raise
    if not is_same_mount(folder, tree.root):
        os.close(folder)
        raise Refused("its %s is a mount" % path)
    tree.folders[path] = folder
    return folder


def read_entry(tree: Tree, path: str, limit: int = -1) -> Member:
    """What is at a path whose folders are neither links nor mounts; a file's bytes unless limit is
    -1. Raises what open_folder raises but FileNotFoundError ('absent'), Refused for a mount or a
    file above `limit`, MethodUnavailable."""
    above, last = posixpath.split(path)
    name = os_bytes(last)
    try:
        folder = open_folder(tree, above)
        judged = os.open(name, OPEN_TO_JUDGE, dir_fd=folder)
    except FileNotFoundError:
        return Member(path, "absent")
    try:
        # The device of a file says nothing: with overlay it may be that of a lower layer.
        if path in tree.points or mount_id(judged) != mount_id(tree.root):
            raise Refused("its %s is a mount" % path)
    finally:
        os.close(judged)
    return read_member_at(folder, name, path, limit)


# By proc: replacing one name of an opened folder.


def draft_name(name: str) -> str:
    """What a new file is called until it is whole. Always the same, so that the next run finds what
    a killed one left."""
    return ".%s.dockfix" % name


def remove_draft(tree: Tree, path: str) -> None:
    """What a killed run may have left beside a path."""
    above, name = posixpath.split(path)
    folder = tree.folders.get(above, -1)
    if folder >= 0:
        suppress_errors(os.unlink, os_bytes(draft_name(name)), dir_fd=folder)


def write_draft(folder: int, name: str, member: Member) -> None:
    """A new file beside `name`, whole and on the disk, with the extended attributes (SELinux label,
    ACL) of the file that has that name now. Raises OSError."""
    old = open_former_file(folder, name)
    try:
        draft = os.open(os_bytes(draft_name(name)), CREATE_FILE, 0o600, dir_fd=folder)
        try:
            write_all(draft, member.data)
            # The mode after the owner: a change of the owner takes the set-user-ID bit away.
            os.fchown(draft, member.uid, member.gid)
            os.fchmod(draft, member.mode)
            if old >= 0:
                copy_xattrs(old, draft)
            os.utime(draft, (member.mtime, member.mtime))
            os.fsync(draft)
        finally:
            os.close(draft)
    finally:
        if old >= 0:
            os.close(old)


def open_former_file(folder: int, name: str) -> int:
    """A descriptor of the file of that name, -1 where there is none."""
    try:
        return open_regular_at(folder, name, os.O_RDONLY, 1 << 40, name)
    except (OSError, Refused):
        return -1


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
        present = os.listxattr(new)
        if name not in present or os.getxattr(new, name) != value:
            os.setxattr(new, name, value)


def link_draft(folder: int, name: str, member: Member) -> None:
    """write_draft for a symbolic link."""
    draft = os_bytes(draft_name(name))
    times = (member.mtime, member.mtime)
    os.symlink(os_bytes(member.link), draft, dir_fd=folder)
    # Of the link itself, never of what it leads to.
    os.chown(draft, member.uid, member.gid, dir_fd=folder, follow_symlinks=False)
    os.utime(draft, times, dir_fd=folder, follow_symlinks=False)


def put_member(tree: Tree, member: Member) -> None:
    """Makes a path what the member says, in one rename; what stood there is replaced, a link too.
    Raises OSError, Refused."""
    above, name = posixpath.split(member.path)
    folder = make_folders(tree, above)
    if member.kind == "dir":
        # Closed to others until it is opened and shown to be no link, and has its owner.
        os.mkdir(os_bytes(name), 0o700, dir_fd=folder)
        made = open_folder(tree, member.path)
        os.fchown(made, member.uid, member.gid)
        os.fchmod(made, member.mode)
        return
    remove_draft(tree, member.path)
    draft = os_bytes(draft_name(name))
    try:
        if member.kind == "link":
            link_draft(folder, name, member)
        else:
            write_draft(folder, name, member)
        os.rename(draft, os_bytes(name), src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        remove_draft(tree, member.path)
        raise
    suppress_errors(os.fsync, folder)  # the new entry is there: reading it again judges, not this


def make_folders(tree: Tree, path: str) -> int:
    """open_folder, with the parts that are missing made as docker cp would: mode 0755, the owner of
    the folder above."""
    try:
        return open_folder(tree, path)
    except FileNotFoundError:
        above = os.fstat(make_folders(tree, posixpath.dirname(path)))
        put_member(tree, Member(path, "dir", uid=above.st_uid, gid=above.st_gid, mode=0o755))
        return open_folder(tree, path)


def remove_entry(tree: Tree, path: str) -> None:
    """Removes a file, a link or an empty folder; what cannot be removed stays. Raises Refused,
    MethodUnavailable as read_entry does."""
    kind = read_entry(tree, path).kind
    if kind == "absent":
        return
    above, last = posixpath.split(path)
    folder = open_folder(tree, above)
    name = os_bytes(last)
    if kind == "dir":
        suppress_errors(os.rmdir, name, dir_fd=folder)
    else:
        suppress_errors(os.unlink, name, dir_fd=folder)
    opened = tree.folders.pop(path, -1)
    if opened >= 0:
        os.close(opened)


def remove_below(tree: Tree, path: str, depth: int = 16) -> None:
    """Empties a folder of dockfix's own, `depth` folders deep at most, and removes it."""
    folder = open_folder(tree, path)
    for name in map(os.fsencode, os.listdir(folder)):
        inner = posixpath.join(path, os_text(name))
        is_folder = read_entry(tree, inner).kind == "dir"
        if is_folder and depth > 0:
            remove_below(tree, inner, depth - 1)
        else:
            remove_entry(tree, inner)
    remove_entry(tree, path)


def moved_folder(tree: Tree) -> str:
    """The first of the opened folders that is not at its path any more, ''."""
    again = Tree(tree.root, {"/": tree.root}, tree.points)
    try:
        for path in sorted(tree.folders):
            try:
                present = os.fstat(open_folder(again, path))
            except (OSError, Refused):
                return path
            if not os.path.samestat(present, os.fstat(tree.folders[path])):
                return path
        return ""
    finally:
        del again.folders["/"]  # the root is the first tree's, and stays open
        close_tree(again)


def require_folders_unmoved(tree: Tree) -> None:
    """Raises PathMoved."""
    moved = moved_folder(tree)
    if moved:
        raise PathMoved(
            "something in it moved or replaced its %s while dockfix wrote; nothing outside its own"
            " files was reached, but what was written is not where it should be" % moved
        )


def change_members_by_proc(
    tree: Tree, write: Sequence[Member], remove: Sequence[str], former: Sequence[Member]
) -> List[str]:
    """change_members by descriptors: every folder on the way is opened before the first change."""
    present = {}  # type: Dict[str, Member]
    for member in write:
        present[member.path] = read_entry(tree, member.path, READ_BACK_MAX)
    for entry in present.values():
        require_as_former(entry, former)
    # Raises Refused where one of them cannot be reached, before anything is written.
    for path in remove:
        read_entry(tree, path)
    # From here on there are changes.
    for path in [*present, *remove]:
        remove_draft(tree, path)
    for member in write:
        if not is_same_member(present[member.path], member):
            put_member(tree, member)
    for path in deepest_first(remove):
        remove_entry(tree, path)
    # What was written is where it should be, and is what it should be.
    require_folders_unmoved(tree)
    for member in write:
        entry = read_entry(tree, member.path, READ_BACK_MAX)
        if not is_same_member(entry, member):
            raise MethodUnavailable(
                "what was read back of %s differs from what was written" % member.path
            )
    left = [path for path in remove if read_entry(tree, path).kind != "absent"]
    return deepest_first(left)


def require_as_former(present: Member, former: Sequence[Member]) -> None:
    """What undo keeps was read by path, at the look: a link may have led that to another file."""
    for member in former:
        if member.path == present.path and not is_same_member(present, member):
            raise Refused("its %s changed between the look and the change" % present.path)


# By cp: while nothing in the container runs that could make a link.


def while_paused(host: Host, container: Container, action: Callable):
    """action(the container as it is now) while nothing in it runs: docker cp knows paths only, and
    a link made between the look and the change would lead it into a mount. What runs and has mounts
    is paused meanwhile; what was paused stays so. Raises Refused where it cannot be paused,
    ContainerGone."""
    now = inspect_running(host, container.id)
    if not now.running or now.paused or not leads_out(now):
        return action(now)
    pause(host, now)
    try:
        return action(now._replace(paused=True))
    finally:
        unpause(host, now)


def pause(host: Host, container: Container) -> None:
    """Raises Refused where docker cannot, ContainerGone."""
    answer = change(host, ["pause", container.id])
    if answer.rc == 0 and not answer.timed_out:
        return
    reason = first_line(answer)
    if answer.timed_out:
        reason = "no answer in %g s" % host.timeout
        unpause(host, container)  # it may still be done
    if is_gone_now(host, container.id, answer.text()):
        raise ContainerGone
    raise Refused(
        "it runs and has mounts, and cannot be paused while its files are changed (%s):"
        " a link made meanwhile would lead into them" % reason
    )


def unpause(host: Host, container: Container) -> None:
    """Whatever happened, and after a second Ctrl-C too: a container that is left paused is an
    outage."""
    # The first signal sets host.stop, the second host.kill: neither may end these calls.
    unhurried = host._replace(kill=threading.Event(), stop=threading.Event())
    for _ in range(UNPAUSE_TRIES):
        answer = change(unhurried, ["unpause", container.id])
        if answer.rc == 0 or is_nothing_to_unpause(answer.text()):
            return
        time.sleep(0.5)
    argv = (*host.docker, "unpause", container.id)
    text = "container %s is still paused: %s" % (container.name, first_line(answer))
    host.known.not_done["unpause " + container.id] = NotDone(argv, text)


def is_nothing_to_unpause(text: str) -> bool:
    """By what `docker unpause` says."""
    return "not paused" in text or "not running" in text or is_gone(text)


def resolve_by_cp(look: Callable[[str], Member], path: str) -> str:
    """A path of the container without links, each looked at by look(path) and followed from its
    root."""
    resolved = "/"
    links = 0
    ahead = path.split("/")[::-1]  # the parts to be walked, the next one last
    while ahead:
        name = ahead.pop()
        if name in ("", "."):
            continue
        if name == "..":
            resolved = posixpath.dirname(resolved)
            continue
        place = posixpath.join(resolved, name)
        member = look(place)
        if member.kind != "link":
            resolved = place
            continue
        links += 1
        if links > LINKS_MAX:
            raise Refused("its %s is a circle of links" % path)
        if member.link.startswith("/"):
            resolved = "/"
        ahead += member.link.split("/")[::-1]
    return resolved


class CpTree(NamedTuple):
    """A container as docker cp has it, and the folders above the paths in question, by their path,
    outermost first; none of them is a link or a mount."""

    host: Host
    container: Container
    folders: Dict[str, Member]


def read_tree_by_cp(host: Host, container: Container, paths: Sequence[str]) -> CpTree:
    """Raises Refused where a folder above one of these paths is a link or a mount, ContainerGone,
    MethodUnavailable."""
    require_no_mount_led_here(host, container, paths)
    folders = {}  # type: Dict[str, Member]
    for path in folders_above(paths):
        above = folders.get(posixpath.dirname(path))
        if above is not None and above.kind == "absent":
            folders[path] = Member(path, "absent")
            continue
        member = read_kind_by_cp(host, container, path)
        if member.kind not in ("dir", "absent"):
            raise not_a_folder(path, member.kind, member.link)
        folders[path] = member
    return CpTree(host, container, folders)


def require_no_mount_led_here(host: Host, container: Container, paths: Sequence[str]) -> None:
    """Raises Refused where a mount is at or above one of these paths. docker mounts volumes where
    their destination leads, links included (seen on 20.10), so the destinations are followed
    too."""
    seen = {}  # type: Dict[str, Member]

    def look(path: str) -> Member:
        if path not in seen:
            try:
                seen[path] = read_kind_by_cp(host, container, path)
            except MethodUnavailable:  # a socket, for one, has no tar header
                seen[path] = Member(path, "other")
        return seen[path]

    for source, destination in container.mounts:
        place = resolve_by_cp(look, destination)
        if any(is_at_or_above(place, path) for path in paths):
            raise Refused("its %s is a mount (%s)" % (place, source or "volume"))


def read_entry_by_cp(tree: CpTree, path: str, limit: int = -1) -> Member:
    """read_entry by docker cp."""
    above = tree.folders.get(posixpath.dirname(path))
    if above is not None and above.kind == "absent":
        return Member(path, "absent")
    if limit < 0:
        return read_kind_by_cp(tree.host, tree.container, path)
    return read_member_by_cp(tree.host, tree.container, path, limit)


def cp_base(host: Host, container: Container) -> Tuple[int, int]:
    """engine_userns for a write through docker cp. Raises Refused where that would delete what it
    should replace."""
    base = engine_userns(host)
    if base != (0, 0) and container.userns == "host":
        raise Refused(
            "--userns host under a remapping engine: docker cp would delete the file that it should"
            " replace (moby#43698)"
        )
    return base


def send_members(tree: CpTree, members: Sequence[Member]) -> Answer:
    """One `docker cp - C:/`. The folders on the way go with the members, as they are: the daemon
    refuses to put a folder over what is none, so it looks at each of them once more itself, right
    before it writes below (NoOverwriteDirNonDir; seen on 20.10 and 28). Raises ContainerGone."""
    paths = [member.path for member in members]
    sent = []
    for path in folders_above(paths):
        folder = tree.folders.get(path)
        if folder and folder.kind == "dir":
            sent.append(folder)
    sent += members
    container = tree.container
    tar = format_tar(sent, cp_base(tree.host, container))
    answer = change(tree.host, ["cp", "-", container.id + ":/"], tar)
    if answer.rc and is_gone_now(tree.host, container.id, answer.text()):
        raise ContainerGone
    return answer


def link_to_nothing(member: Member) -> Member:
    """A hard link to what is not there, in the place of a member: docker cp removes what has the
    name, and then fails to make the link. So it removes a file without a program of the image."""
    return member._replace(kind="hard", link=".dockfix-nothing-%s" % os.urandom(8).hex())


def require_unmoved_by_cp(host: Host, container: Container, paths: Sequence[str]) -> CpTree:
    """read_tree_by_cp once more, after the change; PathMoved where a folder is none any more, or
    where the container did not stand still. container: as it was before the change."""
    now = inspect_running(host, container.id)
    reason = ""
    before = (container.running, container.paused, container.started)
    after = (now.running, now.paused, now.started)
    if leads_out(now) and after != before:
        reason = "it was started, stopped or unpaused by something else"
    try:
        tree = read_tree_by_cp(host, now, paths)
        if not reason:
            return tree
    except Refused as err:
        reason = err.msg
    advice = ""
    places = host_sources(now)
    if places:
        advice = "; look at %s" % places
    raise PathMoved(
        "%s, while dockfix wrote: what was written may have gone where a link led%s"
        % (reason, advice)
    )


def host_sources(container: Container) -> str:
    """The folders of the host that are mounted in a container, as a message has them."""
    sources = {source for source, _ in container.mounts if source.startswith("/")}
    return ", ".join(sorted(sources))


def change_members_by_cp(
    host: Host,
    container: Container,
    write: Sequence[Member],
    remove: Sequence[str],
    former: Sequence[Member],
) -> List[str]:
    """change_members by docker cp: it replaces a link and does not write through it, but unlinks
    first, so what can fail for want of space goes first. A file is removed by link_to_nothing, a
    folder by rmdir inside, where something runs that has no mounts."""
    paths = [member.path for member in write] + list(remove)
    tree = read_tree_by_cp(host, container, paths)
    wanted = []  # type: List[Member]
    for member in write:
        present = read_entry_by_cp(tree, member.path, READ_BACK_MAX)
        require_as_former(present, former)
        if not is_same_member(present, member):
            wanted.append(member)
    # From here on there are changes.
    answer = None
    if wanted:
        answer = send_members(tree, wanted)
    removed = remove_by_cp(tree, remove)
    # What was written is where it should be, and is what it should be.
    tree = require_unmoved_by_cp(host, container, paths)
    if answer is not None:
        require_as_sent(tree, answer, wanted)
    left = [path for path in removed if read_entry_by_cp(tree, path).kind != "absent"]
    return deepest_first(left)


def remove_by_cp(tree: CpTree, paths: Sequence[str]) -> List[str]:
    """Tries to remove what is at these paths, folders last; returns the paths of what was there."""
    container = tree.container
    present = []
    for path in paths:
        member = read_entry_by_cp(tree, path)
        if member.kind != "absent":
            present.append(member)
    inner = []
    for member in present:
        if member.kind == "dir":
            inner.append(member.path)
            continue
        # One docker cp for each: it ends with an error at the first link that it cannot make.
        send_members(tree, [link_to_nothing(member)])
    # Where it has mounts, a link could lead the image's rmdir into one.
    if inner and can_exec(container) and not leads_out(container):
        call = ["exec", "-u", "0", container.id, "rmdir"]
        change(tree.host, call + deepest_first(inner))
    return [member.path for member in present]


def require_as_sent(tree: CpTree, answer: Answer, members: Sequence[Member]) -> None:
    """Reads back what docker cp was to write. Raises NoAnswer, MethodUnavailable."""
    for member in members:
        present = read_entry_by_cp(tree, member.path, READ_BACK_MAX)
        if is_same_member(present, member):
            continue
        if answer.timed_out:
            raise NoAnswer(
                "docker cp did not answer in %.3g s, and may still write" % answer.seconds
            )
        reason = "what was read back of %s differs from what was sent" % member.path
        if answer.rc:
            reason = first_line(answer)
        raise MethodUnavailable("docker cp: %s" % reason)


# Changing any files: by proc where that is possible, else by cp.


def change_members(
    host: Host,
    container: Container,
    write: Sequence[Member],
    remove: Sequence[str],
    former: Sequence[Member] = (),
) -> List[str]:
    """Writes files, links and folders, reads each back, and removes others; returns the paths of
    what could not be removed. What is so already is left alone. save_undo comes first.

    write: in this order; folders above them that are missing are made.
    remove: paths of files, links and empty folders.
    former: what undo will put back. A path that is not as it is there is not touched.

    Raises Refused before anything is changed where a part of the way is a link or a mount, or where
    a path is not as in `former`; PathMoved where it became one meanwhile; ContainerGone;
    MethodUnavailable (then look at what is there); NoAnswer."""
    if not write and not remove:
        return []
    note_change(host)
    try:
        tree = open_tree(container)
    except MethodUnavailable:
        return while_paused(
            host, container, lambda now: change_members_by_cp(host, now, write, remove, former)
        )
    try:
        return change_members_by_proc(tree, write, remove, former)
    except OSError as err:
        raise MethodUnavailable("writing through /proc: %s" % err.strerror) from None
    finally:
        close_tree(tree)


class NewMembers:
    """Makes what is to be written into a container: it belongs to the root of the container, and is
    from now. Raises what cp_base raises."""

    def __init__(self, host: Host, container: Container) -> None:
        self.uid, self.gid = cp_base(host, container)
        self.now = int(time.time())

    def folder(self, path: str) -> Member:
        return self.member(path, "dir", 0o755)

    def file(self, path: str, data: bytes) -> Member:
        return self.member(path, "file", 0o644, data=data)

    def link(self, path: str, target: str) -> Member:
        return self.member(path, "link", 0o777, link=target)

    def member(self, path: str, kind: str, mode: int, data: bytes = b"", link: str = "") -> Member:
        return Member(
            path=path,
            kind=kind,
            data=data,
            link=link,
            uid=self.uid,
            gid=self.gid,
            mode=mode,
            mtime=self.now,
        )


def write_members(
    host: Host, container: Container, members: Sequence[Member], former: Sequence[Member] = ()
) -> None:
    """change_members for what is only written; 'absent' ones are left alone."""
    wanted = [member for member in members if member.kind != "absent"]
    change_members(host, container, wanted, [], former)


def remove_folder(host: Host, container: Container, path: str) -> bool:
    """Removes a folder of dockfix's own with all that is in it; is it gone?"""
    note_change(host)
    try:
        tree = open_tree(container)
    except MethodUnavailable:
        if can_exec(container) and not leads_out(container):
            change(host, ["exec", "-u", "0", container.id, "rm", "-rf", path])
        return read_kind_by_cp(host, container, path).kind == "absent"
    try:
        if read_entry(tree, path).kind == "dir":
            remove_below(tree, path)
        return read_entry(tree, path).kind == "absent"
    except OSError:
        return False
    finally:
        close_tree(tree)


# The account files: /etc/passwd and /etc/shadow, both replaced or neither.


class OpenedAccounts(NamedTuple):
    """The account files below an opened /etc; None where there is no such file."""

    passwd: Optional[FileRead]
    shadow: Optional[FileRead]

    def content(self) -> AccountFiles:
        return AccountFiles(file_content(self.passwd), file_content(self.shadow))


def file_content(file: Optional[FileRead]) -> Optional[bytes]:
    """None where there is no file."""
    if file is None:
        return None
    return file.data


# The order in which account files are replaced. A run that is killed between the two leaves an
# account whose password still stands in /etc/passwd: the old one opens it, as before. The other way
# round /etc/passwd would point to whatever shadow held.
REPLACE_ORDER = ("shadow", "passwd")
ACCOUNT_PATHS = ("/etc/passwd", "/etc/shadow")


# The account files by proc.


def open_etc(container: Container) -> int:
    """A descriptor of the container's own /etc. Raises MethodUnavailable, EtcIsAMount where it is a
    mount, Refused where it is a link."""
    root = open_root(container)
    try:
        return open_etc_below(root)
    except OSError as err:
        if err.errno in CHANGED_MEANWHILE:
            raise Refused("its /etc changes while it is looked at") from None
        raise MethodUnavailable("/proc/%d: %s" % (container.pid, err.strerror)) from None
    finally:
        os.close(root.fd)


def open_etc_below(root: OpenedRoot) -> int:
    """open_etc, without its words for an OSError."""
    status = os.stat("etc", dir_fd=root.fd, follow_symlinks=False)
    if kind_of(status.st_mode) != "dir":
        raise Refused("its /etc is a link, not a directory")
    etc = os.open("etc", OPEN_FOLDER, dir_fd=root.fd)
    try:
        # A mount on one of the files, and one on the folder.
        for mount in root.mounts:
            if mount.point in ACCOUNT_PATHS:
                raise EtcIsAMount("its %s is a mount" % mount.point)
        if not is_same_mount(etc, root.fd):
            raise EtcIsAMount("its /etc is not on the mount of its root: a mount of its own")
    except BaseException:
        os.close(etc)
        raise
    return etc


def read_accounts_by_proc(etc: int) -> OpenedAccounts:
    """The account files below an opened /etc. Raises MethodUnavailable, Refused."""
    return OpenedAccounts(read_account_file(etc, "passwd"), read_account_file(etc, "shadow"))


def read_account_file(etc: int, name: str) -> Optional[FileRead]:
    """None where there is no such file. Raises MethodUnavailable, Refused."""
    path = "/etc/" + name
    try:
        return read_file_at(etc, name, ACCOUNTS_MAX, path)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise MethodUnavailable("%s: %s" % (path, err.strerror)) from None


def write_accounts_by_proc(container: Container, edit: EditAccounts, stop: threading.Event) -> None:
    """Replaces the account files that `edit` changes, each atomically, under their lock, keeping
    owner, mode and xattrs.

    edit: is given the files as they are under the lock. What it raises ends this, with no change.
    stop: is set by a signal; the lock is not waited for any longer.

    Any surprise is MethodUnavailable, and the old files are still there (or it says which is
    not)."""
    etc = open_etc(container)
    try:
        lock = lock_accounts(etc, os.fstat(etc), stop)
        try:
            # Under the lock, so that no change of another program is lost.
            old = read_accounts_by_proc(etc)
            replace_account_files(etc, old, edit(old.content()))
        finally:
            suppress_errors(os.close, lock)
    except OSError as err:
        raise MethodUnavailable("writing through /proc: %s" % err.strerror) from None
    finally:
        suppress_errors(os.close, etc)


def lock_accounts(etc: int, owner: os.stat_result, stop: threading.Event) -> int:
    """The lock of lckpwdf(3), waited for LOCK_SECONDS. owner: /etc's."""
    lock = open_accounts_lock(etc, owner)
    end = time.monotonic() + LOCK_SECONDS
    # Asked again and again: in a thread, no signal would end a call that waits.
    try:
        while True:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except (BlockingIOError, PermissionError):  # EAGAIN, EACCES
                if time.monotonic() >= end or stop.is_set():
                    raise MethodUnavailable(
                        "its /etc/.pwd.lock is held by another program"
                    ) from None
                time.sleep(0.1)
    except BaseException:
        os.close(lock)
        raise


def open_accounts_lock(etc: int, owner: os.stat_result) -> int:
    """One made here gets /etc's owner: under user-namespace remapping a file of the host's root
    would lock the container's root out for good."""
    name = ".pwd.lock"
    try:
        lock = os.open(name, CREATE_FILE, 0o600, dir_fd=etc)
    except FileExistsError:
        try:
            return open_regular_at(etc, name, os.O_WRONLY, SHADOW_MAX, "/etc/" + name)
        except Refused as err:
            raise MethodUnavailable(err.msg) from None
    os.fchown(lock, owner.st_uid, owner.st_gid)
    return lock


def replace_account_files(etc: int, old: OpenedAccounts, new: AccountFiles) -> None:
    """All of the changed files, or none. Raises OSError, MethodUnavailable."""
    replaced = []  # type: List[str]
    for name in REPLACE_ORDER:
        former = getattr(old, name)
        data = getattr(new, name)
        if data == file_content(former):
            continue
        try:
            replace_account_file(etc, name, data, former.status)
        except (OSError, MethodUnavailable, Refused):
            # Back to what was read, so that no account is left with half of its change.
            for done in replaced:
                now = os.stat(done, dir_fd=etc, follow_symlinks=False)
                replace_account_file(etc, done, getattr(old, done).data, now)
            raise
        replaced.append(name)


def replace_account_file(etc: int, name: str, data: bytes, old: os.stat_result) -> None:
    """Puts `data` in the place of /etc/NAME, with the owner, the mode and the extended attributes
    of the file that is there.

    etc: a descriptor of the container's /etc.
    old: what stat said when the file was read; it must still be that file.

    Raises OSError, MethodUnavailable, Refused; then the old file still has the name."""
    # A name of its own: what a killed run left must not be in the way of the next one.
    copy = "%s-%s" % (SHADOW_COPY_NAME, os.urandom(8).hex())
    source = open_regular_at(etc, name, os.O_RDONLY, ACCOUNTS_MAX, "/etc/" + name)
    new = -1
    try:
        # Closed to everybody else until all of it is there.
        new = os.open(copy, CREATE_FILE, 0o600, dir_fd=etc)
        write_all(new, data)
        os.fchown(new, old.st_uid, old.st_gid)
        os.fchmod(new, stat.S_IMODE(old.st_mode))
        copy_xattrs(source, new)
        # On the disk before it has the name: a power cut leaves the old file or the new one.
        os.fsync(new)
        # The file that was read, and the one that has the name now: both as they were. Not every
        # program takes the lock.
        opened = os.fstat(source)
        named = os.stat(name, dir_fd=etc, follow_symlinks=False)
        if file_state(opened) != file_state(old) or file_state(named) != file_state(old):
            raise MethodUnavailable("its /etc/%s was changed by another program meanwhile" % name)
        os.rename(copy, name, src_dir_fd=etc, dst_dir_fd=etc)
    except BaseException:
        if new >= 0:
            suppress_errors(os.unlink, copy, dir_fd=etc)
        raise
    finally:
        suppress_errors(os.close, source)
        if new >= 0:
            suppress_errors(os.close, new)
    suppress_errors(os.fsync, etc)  # the new file is in place: the read-back judges, not this


# The account files by cp.


class AccountMembers(NamedTuple):
    """The account files as docker cp has them, with their owners and modes; kind 'absent' where
    there is none."""

    passwd: Member
    shadow: Member

    def content(self) -> AccountFiles:
        return AccountFiles(member_content(self.passwd), member_content(self.shadow))


def member_content(member: Member) -> Optional[bytes]:
    """None where nothing is."""
    if member.kind == "absent":
        return None
    return member.data


def read_accounts_by_cp(host: Host, container: Container, first: bool = False) -> AccountMembers:
    """The account files by docker cp; ids are the host's under user-namespace remapping. The first
    look asks about /etc too, and each one where there are mounts: docker cp would follow a link
    there. Raises ContainerGone, MethodUnavailable, Refused."""
    etc_kind = "dir"  # where nothing speaks against it
    if first or leads_out(container):
        etc_kind = read_kind_by_cp(host, container, "/etc").kind
    if etc_kind not in ("dir", "absent"):
        raise Refused("its /etc is a link, not a directory")
    members = []
    for path in ACCOUNT_PATHS:
        member = read_member_by_cp(host, container, path, ACCOUNTS_MAX)
        if member.kind != "absent":
            require_regular(path, member.kind, len(member.data), ACCOUNTS_MAX)
        members.append(member)
    return AccountMembers(members[0], members[1])


def read_back_by_cp(host: Host, container: Container) -> Optional[AccountFiles]:
    """None where they cannot be read."""
    try:
        return read_accounts_by_cp(host, container).content()
    except (Refused, MethodUnavailable):
        return None


def accounts_tar(files: Sequence[Member], base: Tuple[int, int], etc: Optional[Member]) -> bytes:
    """The tar that replaces these account files, in their order. What can fail (space, ids) fails
    on the member that carries the content, while the old file is still there; the link then takes
    its place. The last member empties the leftover, which docker cp cannot delete.

    base: first uid and gid of the engine's user namespace.
    etc: the folder as it is, for `docker cp - C:/` (see send_members); None for
    `docker cp - C:/etc`."""
    folder = ""
    members = []
    if etc:
        folder = "/etc"
        members.append(etc)
    now = int(time.time())
    copy_path = folder + "/" + SHADOW_COPY_NAME
    copy = Member(copy_path, "file", mtime=now)
    for file in files:
        # The content under the other name, with the owner and the mode of the file.
        copy = file._replace(path=copy_path, mtime=now)
        members.append(copy)
        # Its own name becomes a second name of that content; nothing is written any more.
        place = folder + "/" + posixpath.basename(file.path)
        target = copy_path.lstrip("/")
        members.append(file._replace(path=place, kind="hard", data=b"", link=target))
    # A new, empty file takes the other name: the content has only its own left.
    members.append(copy._replace(data=b"", mode=0o600))
    return format_tar(members, base)


class EtcTarget(NamedTuple):
    """Where docker cp writes account files: with etc (see accounts_tar) to /; without, to an /etc
    that is a mount and may be written."""

    host: Host
    container: Container
    base: Tuple[int, int]
    etc: Optional[Member]

    def send(self, files: Sequence[Member]) -> Answer:
        """The one docker cp that replaces these files; with none it empties the leftover."""
        place = self.container.id + ":/etc"
        if self.etc:
            place = self.container.id + ":/"
        tar = accounts_tar(files, self.base, self.etc)
        return change(self.host, ["cp", "-", place], tar)

    def require_unmoved(self) -> None:
        """Raises PathMoved. There is nothing to compare where the tar went to an /etc that is a
        mount."""
        if self.etc:
            require_unmoved_by_cp(self.host, self.container, ACCOUNT_PATHS)

    def remove_leftover(self) -> None:
        """By the image's rm, where it has one and no link can lead it to a mount; a leftover that
        stays is empty."""
        container = self.container
        path = "/etc/" + SHADOW_COPY_NAME
        if can_exec(container) and not leads_out(container):
            change(self.host, ["exec", "-u", "0", container.id, "rm", "-f", path])
        elif container.running and self.etc:
            uid, gid = self.base
            leftover = Member(path, "file", uid=uid, gid=gid)
            tree = CpTree(self.host, container, {"/etc": self.etc})
            send_members(tree, [link_to_nothing(leftover)])


def find_etc_target(host: Host, container: Container) -> EtcTarget:
    """Raises Refused where /etc is a link, or a mount that inspect does not tell of; the others
    have been allowed at the look."""
    base = cp_base(host, container)
    etc = None
    if not mounts_over(container, ACCOUNT_PATHS):
        tree = read_tree_by_cp(host, container, ACCOUNT_PATHS)
        etc = tree.folders["/etc"]
        if etc.kind == "absent":
            raise Refused("it has no /etc")
    return EtcTarget(host, container, base, etc)


class SentAccounts(NamedTuple):
    """What became of account files that were sent to a container: docker's answer, and what was
    read back; each None where the way has none."""

    answer: Optional[Answer]
    files: Optional[AccountFiles]


def write_accounts_by_cp(host: Host, container: Container, edit: EditAccounts) -> SentAccounts:
    """Replaces the account files that `edit` changes through one docker cp. Puts the old bytes back
    if what is read back differs, but not after a time-out: the daemon may still be at it. docker cp
    has no lock and is not atomic: the last way. Raises ContainerGone, Refused, PathMoved,
    MethodUnavailable."""
    return while_paused(host, container, lambda now: send_accounts(host, now, edit))


def send_accounts(host: Host, container: Container, edit: EditAccounts) -> SentAccounts:
    """write_accounts_by_cp, while nothing in the container runs that could lead it elsewhere."""
    target = find_etc_target(host, container)
    # Read once more: the look may be long ago, and every other byte is to stay as it is now.
    members = read_accounts_by_cp(host, container)
    old = members.content()
    new = edit(old)
    before = []  # type: List[Member]
    after = []  # type: List[Member]
    for name in REPLACE_ORDER:
        data = getattr(new, name)
        if data != getattr(old, name):
            member = getattr(members, name)
            before.append(member)
            after.append(member._replace(data=data))
    answer = target.send(after)
    if answer.timed_out:
        return SentAccounts(answer, read_back_by_cp(host, container))
    # The exit status of docker cp proves nothing: what is there decides.
    target.require_unmoved()
    present = read_back_by_cp(host, container)
    if present == new:
        target.remove_leftover()
        return SentAccounts(answer, new)
    reason = "what was read back differs from what was sent"
    if answer.rc:
        reason = first_line(answer)
    if present == old:  # it failed between the members: no hash may stay behind
        target.send([])
        raise MethodUnavailable("docker cp: %s" % reason)
    # In the reverse order: /etc/passwd must not point to a shadow that is the old one already.
    target.send(before[::-1])
    if read_back_by_cp(host, container) != old:
        paths = " and ".join(member.path for member in before)
        raise MethodUnavailable(
            "docker cp: %s; AND its old %s could not be restored: look at it now" % (reason, paths)
        )
    raise MethodUnavailable("docker cp: %s; the old file was put back" % reason)


# What undo needs: a record of what was there before dockfix's first change.


class Undo(NamedTuple):
    """What STATE/undo/KIND-ID.json holds: what was at each path before dockfix's first change of
    this kind. `engine` is `docker info`'s ID, `changed` the time of the last change (ISO 8601 in
    UTC), `facts` what the feature itself has to know (the file calls them `more`)."""

    kind: str
    id: str
    name: str
    engine: str
    changed: str
    members: Tuple[Member, ...]
    facts: dict


class UndoForm(NamedTuple):
    """What a record of one kind can hold, for it is acted on as root inside. `paths`: a pattern of
    its paths; `facts`: of each of its facts, a pattern of what Python's repr shows."""

    paths: str
    facts: Dict[str, str]


UNDO_SCHEMA = "dockfix-undo/1"
UNDO_FORMS = {
    "timezone": UndoForm(
        r"/etc(/localtime|/timezone)?|/usr(/share(/zoneinfo(/[A-Za-z0-9_+-]+)*)?)?", {}
    ),
    "faketime": UndoForm(
        r"/etc/(ld\.so\.preload|faketimerc)|/usr/lib/libfaketime-dockfix-[0-9a-f]{12}\.so\.1",
        {
            "done": "True|False",
            "stopped": "True|False",
            "offset": "-?[0-9]+",
            "build": r"'(/\.dockfix-build-[0-9a-f]{12})?'",
        },
    ),
}
MEMBER_TYPES = [str, str, bytes, str, int, int, int, int]


def format_undo(undo: Undo) -> bytes:
    """JSON; the content of files is in base64."""
    members = []
    for member in undo.members:
        fields = dict(member._asdict())
        fields["data"] = base64.b64encode(member.data).decode("ascii")
        members.append(fields)
    record = dict(undo._asdict(), schema=UNDO_SCHEMA, members=members)
    record["more"] = record.pop("facts")
    text = json.dumps(record, indent=1) + "\n"
    return text.encode("ascii")


def parse_undo(data: bytes, kind: str, ident: str) -> Undo:
    """The record of format_undo. Raises ValueError for what is no record of this kind and
    container."""
    try:
        record = json.loads(data.decode("utf-8", "replace"))
        members = [parse_undo_member(fields) for fields in record.pop("members")]
        schema = record.pop("schema")
        if schema != UNDO_SCHEMA or record["kind"] != kind or record["id"] != ident:
            raise ValueError("another record")
        facts = record.pop("more")
        if not is_undo_of_form(members, facts, UNDO_FORMS[kind]):
            raise ValueError("not a record")
        return Undo(members=tuple(members), facts=facts, **record)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise ValueError("not an undo record of dockfix") from None


def parse_undo_member(fields: dict) -> Member:
    """Raises what parse_undo catches, for what has not the fields of a member."""
    content = base64.b64decode(fields["data"], validate=True)
    return Member(**dict(fields, data=content))


def is_undo_of_form(members: Sequence[Member], facts: object, form: UndoForm) -> bool:
    """Raises TypeError, KeyError for what has not even the shape."""
    for member in members:
        types = [type(field) for field in member]
        if types != MEMBER_TYPES or member.kind not in ("file", "link", "absent"):
            return False
        if not re.match("(?:%s)\\Z" % form.paths, member.path, re.S):
            return False
    if not isinstance(facts, dict):
        return False
    for name, pattern in form.facts.items():
        if not re.match("(?:%s)\\Z" % pattern, repr(facts[name])):
            return False
    return True


def undo_path(host: Host, kind: str, ident: str) -> str:
    """Where the record of a container is. ident: its full id."""
    return os.path.join(host.state, "undo", "%s-%s.json" % (kind, ident))


def load_undo(host: Host, kind: str, ident: str) -> Optional[Undo]:
    """The record of a container, None without one. Raises DockfixError for one that cannot be read:
    it is never overwritten."""
    path = undo_path(host, kind, ident)
    try:
        return parse_undo(read_all(path), kind, ident)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise DockfixError(
            "what undo needs cannot be read from %s: %s" % (path, err),
            "look at it; moved away, the former state is forgotten",
        ) from None


def save_undo(
    host: Host,
    kind: str,
    container: Container,
    former: Sequence[Member],
    facts: Optional[dict] = None,
) -> Undo:
    """Notes what was there, on the disk before this returns and so before the container is touched.

    kind: a key of UNDO_FORMS.
    former: what is there now. Of a path that the record has already, the older state stays: undo
    goes back to before dockfix's first change.
    facts: of the feature; they replace those of the same name.

    Raises EnvironmentFault where it cannot be kept, DockfixError where a record is there that
    cannot be read."""
    all_facts = {}  # type: Dict[str, object]
    members = ()  # type: Tuple[Member, ...]
    old = load_undo(host, kind, container.id)
    if old:
        all_facts.update(old.facts)
        members = old.members
    if facts:
        all_facts.update(facts)
    recorded = {member.path for member in members}
    members += tuple(member for member in former if member.path not in recorded)
    engine = engine_info(host).id
    now = utc_microseconds()
    undo = Undo(kind, container.id, container.name, engine, now, members, all_facts)
    try:
        os.makedirs(os_bytes(os.path.join(host.state, "undo")), 0o700, exist_ok=True)
        replace_file(undo_path(host, kind, container.id), format_undo(undo))
        sync_folder(host.state)
    except OSError as err:
        raise EnvironmentFault(
            "what undo needs cannot be kept in %s: %s; nothing was changed"
            % (host.state, err.strerror),
            "--state DIR on another disk",
        ) from None
    return undo


def utc_microseconds() -> str:
    """Now, ISO 8601 in UTC with microseconds, as docker inspect has its times."""
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return "%s.%06dZ" % (seconds, now % 1 * 1e6)


def drop_undo(host: Host, kind: str, ident: str) -> None:
    """Nothing is left to undo."""
    suppress_errors(os.unlink, os_bytes(undo_path(host, kind, ident)))


def restore_undo(host: Host, container: Container, undo: Undo) -> List[str]:
    """Puts back every path of the record, and returns what could not be removed. The record stays:
    drop_undo it when nothing is left. Raises what change_members raises: where the container has
    made a part of the way a link meanwhile, nothing is touched."""
    present = [member for member in undo.members if member.kind != "absent"]
    absent = [member.path for member in undo.members if member.kind == "absent"]
    return change_members(host, container, present, absent)


def drop_undo_if_void(host: Host, listed: Sequence[str]) -> None:
    """Drops the records of containers that this engine had and has no more; `listed` are all its
    ids (docker ps -a). Another engine's stay."""
    folder = os_bytes(os.path.join(host.state, "undo"))
    for name in suppress_errors(os.listdir, folder) or []:
        record = re.match(r"([a-z]+)-([0-9a-f]{64})\.json\Z", os.fsdecode(name))
        if record is None:
            continue
        kind, ident = record.groups()
        if ident in listed:
            continue
        try:
            undo = load_undo(host, kind, ident)
        except DockfixError:  # nothing that is done now rests on it
            continue
        if undo and undo.engine and undo.engine == engine_info(host).id:
            drop_undo(host, undo.kind, undo.id)


###############################################################################
# 9. chpasswd
###############################################################################

# Sets a user's password in many containers. `changed` means: the new password opens the account and
# the old one does not, by the rules that login itself follows, as read back from the files. The
# exit status of a program of the image proves nothing.
#
# Which container is refused is decided in one place: require_settable has the checks in the order
# in which a person would ask, each with its reason and its remedy. The checks of an account are in
# require_login_lines. Which way into the container is not used, though it is not refused, is said
# by require_safe_chpasswd (the image's own chpasswd) and by chapter 8 (open_root, open_etc).
#
# The password is hashed on the host (SHA-512, a salt for each container), and one of three ways
# carries the hash: `chpasswd -e` of the image by docker exec; the files below /proc/PID/root; the
# files through docker cp. A way whose read-back shows no change gives place to the next one, but
# nothing is tried after a way of which it is not known what it did.
#
# It must never: show a password or a hash, or have one in an argument list, an environment, a log
# or the report; write to the host's own account files; set a password for some of the users of a
# container and say nothing; open an account that was closed, not even for the moment in between.
#
# What login reads. pam_unix (is_pwd_shadowed) looks into /etc/shadow only where field 2 of
# /etc/passwd is exactly `x` or `##NAME`, BusyBox (get_passwd) where it is `x` or `*`; otherwise
# that field is the password, and an empty one means none. sshd without PAM and dropbear prefer a
# line in shadow in any case. So a password counts for certain only where the field is `x` and
# shadow has the hash, or where both hold it. Which line is a user's differs too, by C library.
# Sources: glibc 2.36 pwd/fgetpwent_r.c, shadow/sgetspent_r.c and nss/nss_files; musl 1.2.3
# src/passwd/getpwent_a.c and getspnam_r.c; BusyBox 1.35 libpwdgrp/pwd_grp.c, which many images use
# in place of either; shadow(5), crypt(5), Linux-PAM 1.5 modules/pam_unix/passverify.c.


class Account(NamedTuple):
    """One line to set: user and password (or hash, with -e). Bytes. Never shows its secret."""

    user: bytes
    secret: bytes

    def __repr__(self) -> str:
        return "Account(%r, hidden)" % (self.user,)


Hashes = Dict[bytes, bytes]  # the hash to be set, by user


# Users, passwords and hashes as they are given. `source` is what an error calls their origin.


BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def require_user_name(user: bytes, source: str) -> None:
    """Raises UsageError for what no account file can hold as a name."""
    impossible = (b":", b"\n", b"\r", b"\0", BYTE_ORDER_MARK)
    if not user or any(bad in user for bad in impossible):
        raise UsageError(
            "%s: a user name is not empty and has no ':', CR, LF, NUL or byte order mark in it"
            % source
        )


def require_secret(secret: bytes, source: str) -> None:
    """Raises UsageError for what would set another password than the user believes. Never shows
    it."""
    if not secret:
        raise UsageError("%s: the password is empty" % source)
    if b"\r" in secret:
        raise UsageError(
            "%s: there is a carriage return (CR) in the password" % source,
            "the file has Windows line ends: tr -d '\\r' < FILE > NEWFILE",
        )
    if b"\n" in secret or b"\0" in secret:
        raise UsageError(
            "%s: there is a line feed or NUL in the password" % source,
            "--password-file takes one password, on one line",
        )
    if secret.startswith(BYTE_ORDER_MARK):
        raise UsageError(
            "%s: the password starts with a byte order mark" % source,
            "the file comes from Windows: tail -c +4 FILE > NEWFILE",
        )
    if len(secret) > PASSWORD_MAX:
        raise UsageError(
            "%s: the password has %d bytes; crypt(3) takes %d" % (source, len(secret), PASSWORD_MAX)
        )


HASHES = (
    rb"\$(5)\$(?:rounds=[1-9][0-9]{3,8}\$)?[./0-9A-Za-z]{0,16}\$[./0-9A-Za-z]{43}",  # SHA-256
    rb"\$(6)\$(?:rounds=[1-9][0-9]{3,8}\$)?[./0-9A-Za-z]{0,16}\$[./0-9A-Za-z]{86}",  # SHA-512
    rb"\$(2[abxy])\$(?:0[4-9]|[12][0-9]|3[01])\$[./0-9A-Za-z]{53}",  # bcrypt
    rb"\$(y)\$[./0-9A-Za-z]+\$[./0-9A-Za-z]{0,86}\$[./0-9A-Za-z]{43}",  # yescrypt
)


def require_hash(value: bytes, source: str = "--encrypted") -> str:
    """The scheme ('5', '6', '2b', 'y') of a well-formed hash, else UsageError. Programs before
    shadow 4.19 take anything with -e, clear text and an empty field (a root without password)
    included."""
    for form in HASHES:
        match = re.match(form + rb"\Z", value)
        if match:
            return match.group(1).decode("ascii")
    raise UsageError(
        "%s: the value is not a hash that starts with $5$, $6$, $2b$ or $y$" % source,
        "make one with: openssl passwd -6",
    )


def parse_password_lines(data: bytes, encrypted: bool = False) -> List[Account]:
    """USER:PASSWORD lines as for chpasswd(8); only the first colon splits. Raises UsageError, which
    names the line by its number and never shows it."""
    accounts = []  # type: List[Account]
    users = set()  # type: Set[bytes]
    lines = data.split(b"\n")
    if data.endswith(b"\n"):
        lines.pop()
    for number, line in enumerate(lines, 1):
        source = "line %d" % number
        user, colon, secret = line.partition(b":")
        if not colon:
            raise UsageError("%s is not USER:PASSWORD (no colon)" % source)
        require_user_name(user, source)
        require_secret(secret, source)
        if encrypted:
            require_hash(secret, source)
        if user in users:
            raise UsageError("%s: this user has been named before" % source)
        users.add(user)
        accounts.append(Account(user, secret))
    return accounts


# The hash of crypt(3), $6$: after Drepper's specification (SHA-crypt.txt, 2008). The crypt module
# left Python with 3.13, and openssl 1.0 has no -6.


CRYPT64 = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def random_password(length: int) -> bytes:
    """Uniform letters from the kernel's generator: bytes above the last whole multiple are thrown
    away, or the first letters would come more often."""
    top = 256 - 256 % len(ALPHABET)
    password = bytearray()
    while len(password) < length:
        for number in os.urandom(length):
            if number < top:
                password.append(ALPHABET[number % len(ALPHABET)])
    return bytes(password[:length])


def sha512_crypt(password: bytes, salt: bytes, rounds: int = 5000) -> bytes:
    """salt: 1 to 16 bytes of [./0-9A-Za-z]. The names and the numbers of the steps are those of the
    specification."""
    sha = hashlib.sha512
    # Steps 4 to 8: digest B.
    digest_b = sha(password + salt + password).digest()
    # Steps 1 to 3 and 9 to 12: digest A.
    text = password + salt + repeat_to_length(digest_b, len(password))
    bits = len(password)
    while bits:
        if bits & 1:
            text += digest_b
        else:
            text += password
        bits >>= 1
    digest_a = sha(text).digest()
    # Steps 13 to 16: sequence P, of the password's length.
    digest_dp = sha(password * len(password)).digest()
    p = repeat_to_length(digest_dp, len(password))
    # Steps 17 to 20: sequence S, of the salt's length.
    digest_ds = sha(salt * (16 + digest_a[0])).digest()
    s = repeat_to_length(digest_ds, len(salt))
    # Steps 21 and 22: the rounds, and the text. The default number of rounds is not written.
    digest = sha512_rounds(digest_a, p, s, rounds)
    prefix = b"$6$"
    if rounds != 5000:
        prefix += b"rounds=%d$" % rounds
    return prefix + salt + b"$" + sha512_text(digest)


def repeat_to_length(block: bytes, length: int) -> bytes:
    """The block again and again, cut off at `length` bytes."""
    return (block * (length // len(block) + 1))[:length]


def sha512_rounds(digest: bytes, p: bytes, s: bytes, rounds: int) -> bytes:
    """Step 21, the slow part. An even round hashes the digest, a mix and P; an odd one P, a mix and
    the digest. The mixes repeat every 42 rounds (2 * 3 * 7), so they are laid out once, two rounds
    at a time: three times as fast as the specification's loop."""
    sha = hashlib.sha512
    mixes = []
    for number in range(42):
        mix = b""
        if number % 3:
            mix += s
        if number % 7:
            mix += p
        mixes.append(mix)
    pairs = []
    for number in range(0, 42, 2):
        after_digest = mixes[number] + p
        before_digest = p + mixes[number + 1]
        pairs.append((after_digest, before_digest))
    cycles, rest = divmod(rounds, 42)
    for after_digest, before_digest in pairs * cycles + pairs[: rest // 2]:
        digest = sha(before_digest + sha(digest + after_digest).digest()).digest()
    if rest % 2:
        after_digest, _ = pairs[rest // 2]
        digest = sha(digest + after_digest).digest()
    return digest


def sha512_text(digest: bytes) -> bytes:
    """Step 22, crypt's own base64: groups of three bytes that rotate through the digest's thirds,
    four letters each, the lowest bits first; the last byte has two letters."""
    text = bytearray()
    first, second, third = 0, 21, 42
    for _ in range(21):
        value = digest[first] << 16 | digest[second] << 8 | digest[third]
        for shift in (0, 6, 12, 18):
            text.append(CRYPT64[value >> shift & 63])
        first, second, third = second + 1, third + 1, first + 1
    last = digest[63]
    text.append(CRYPT64[last & 63])
    text.append(CRYPT64[last >> 6])
    return bytes(text)


# The judges: which line of an account file each C library takes for a user's. Pure functions.


class FileLine(NamedTuple):
    """A line of an account file; ended: it has its line end."""

    text: bytes
    ended: bool


class AccountLine(NamedTuple):
    """A line that a C library takes for a user's: where its text starts and ends in the file, and
    its field 2."""

    start: int
    end: int
    field: bytes


class Reading(NamedTuple):
    """What a C library makes of a line with the user's name. field None: it stops there and finds
    no such user."""

    field: Optional[bytes]


STOPS = Reading(None)
# What follows field 2. glibc: numbers as strtoul(3) takes them, blanks before them included.
BLANKS = rb"[\t\v\f\r ]*"
DIGITS = rb"(?:\+?[0-9]+|-0+)"
GLIBC_NUMBER = BLANKS + DIGITS  # what strtoul(3) takes, without a minus
GLIBC_MAYBE = b"(?:" + GLIBC_NUMBER + b")?"
# The old form ends after the third number; in the new one the flag may be missing, with its colon.
GLIBC_NEW_FORM = b"(?:%b)?:%b:(?:%b|%b:%b)" % (
    (DIGITS, GLIBC_MAYBE, GLIBC_NUMBER, GLIBC_MAYBE, GLIBC_MAYBE)
)
GLIBC_REST = {
    "passwd": b"%b:%b(?::|\\Z)" % (GLIBC_NUMBER, GLIBC_NUMBER),
    "shadow": (
        b"%b:%b:(?:%b|%b:%b(?:%b)?)\\Z"
        % (GLIBC_MAYBE, GLIBC_MAYBE, GLIBC_NUMBER, GLIBC_MAYBE, BLANKS, GLIBC_NEW_FORM)
    ),
}
MUSL_REST = {"passwd": rb"[0-9]*:[0-9]*:[^:]*:[^:]*:", "shadow": rb"[0-9]*(?::[0-9]*){6}\Z"}
# bytes of a shadow line: the buffer is 256 with the line end and a NUL, BusyBox's own as well
MUSL_LINE = 254


class BusyboxForm(NamedTuple):
    """How BusyBox reads a file: so many fields, which of them are numbers, and their form."""

    fields: int
    numbers: slice
    number: bytes


BUSYBOX_FORMS = {
    "passwd": BusyboxForm(7, slice(2, 4), rb"[0-9]{1,10}\Z"),
    "shadow": BusyboxForm(9, slice(2, 8), rb"-?[0-9]{1,18}\Z"),
}
SAME_NAME_MAX = 100  # lines of one user in a file; more are an attack on the reader's time


# Each judge says what its library makes of a line: a Reading, or None where it goes on to the next
# line as if this one were not there. kind: 'passwd' or 'shadow'.


def read_glibc(kind: str, line: FileLine, user: bytes) -> Optional[Reading]:
    """It skips blanks before the name, and any line whose numbers are none."""
    form = BLANKS + re.escape(user) + b":([^:]*):" + GLIBC_REST[kind]
    match = re.match(form, line.text, re.S)
    if match is None:
        return None
    return Reading(match.group(1))


def read_musl(kind: str, line: FileLine, user: bytes) -> Optional[Reading]:
    """Without a line end musl cuts the last byte of a passwd line, and gives up at a shadow
    line."""
    text = line.text
    if not text.startswith(user + b":"):
        return None
    if kind == "shadow" and (not line.ended or len(text) > MUSL_LINE):
        return STOPS
    if not line.ended:
        text = text[:-1]
    match = re.match(re.escape(user) + b":([^:]*):" + MUSL_REST[kind], text, re.S)
    if match is None:
        return None
    return Reading(match.group(1))


def read_busybox(kind: str, line: FileLine, user: bytes) -> Optional[Reading]:
    """It takes blanks off every field, skips a line with another number of fields, and gives up at
    a bad number or at a long line of shadow."""
    form = BUSYBOX_FORMS[kind]
    fields = []
    for field in line.text.split(b":"):
        fields.append(re.sub(rb"\A[\t ][\t-\r ]*", b"", field).rstrip(b"\t "))
    if len(fields) != form.fields or fields[0] != user:
        return None
    if kind == "shadow" and len(line.text) > MUSL_LINE:
        return STOPS
    numbers = fields[form.numbers]
    if kind == "shadow":  # there a number may be missing
        numbers = [number for number in numbers if number]
    # Only the last one counts: a good number makes it forget that one before was bad.
    if numbers and not re.match(form.number, numbers[-1]):
        return STOPS
    return Reading(fields[1])


READERS = (read_glibc, read_musl, read_busybox)


def user_line_form(user: bytes) -> bytes:
    """The pattern of what may be a user's line, for any of READERS."""
    return rb"(?m)^[\t\v\f\r ]*" + re.escape(user) + rb"[\t ]*:[^\n]*"


def find_user_lines(
    kind: str, data: bytes, user: bytes, ended: bool = False
) -> List[Optional[AccountLine]]:
    """The line that each of READERS takes for the user's in /etc/KIND ('passwd' or 'shadow'); None
    where it finds none. ended: as if the file's last line had a line end. Raises Refused where
    there are too many to look at."""
    matches = []
    for match in re.finditer(user_line_form(user), data):
        matches.append(match)
        if len(matches) > SAME_NAME_MAX:
            raise Refused(
                "its /etc/%s has more than %d lines of %s: mend it first"
                % (kind, SAME_NAME_MAX, format_bytes(user))
            )
    lines = []
    for reader in READERS:
        taken = None
        for match in matches:
            has_end = ended or match.end() < len(data)
            reading = reader(kind, FileLine(match.group(), has_end), user)
            if reading is None:
                continue
            if reading.field is not None:
                taken = AccountLine(match.start(), match.end(), reading.field)
            break  # the first line that it takes, or at which it gives up, decides
        lines.append(taken)
    return lines


def describe_damage(kind: str, data: bytes, user: bytes) -> str:
    """In a word, what is wrong with the user's first line. Never shows a field."""
    line = b""
    ended = True
    match = re.search(user_line_form(user), data)
    if match:
        line = match.group()
        ended = match.end() < len(data)
    if line.endswith(b"\r"):
        return "it ends with a carriage return"
    fields = line.count(b":") + 1
    wanted = BUSYBOX_FORMS[kind].fields
    if fields != wanted:
        return "it has %d fields in place of %d" % (fields, wanted)
    if kind == "shadow" and len(line) > MUSL_LINE:
        return "it is longer than %d bytes" % MUSL_LINE
    if ended:
        return "a number or a blank in it"
    return "it has no line end"


def describe_shadow_damage(files: AccountFiles, user: bytes) -> str:
    """What is wrong with the user's line in /etc/shadow, '' where there is none. Only for one that
    nobody reads (see require_login_lines)."""
    shadow = files.shadow or b""
    if not re.search(rb"(?m)^" + re.escape(user) + b":", shadow):
        return ""
    return describe_damage("shadow", shadow, user)


def describe_no_shadow_line(files: AccountFiles, user: bytes) -> str:
    """Why /etc/shadow holds no password of this user (see require_login_lines: nobody finds a
    line)."""
    if files.shadow is None:
        return "it has no /etc/shadow"
    text = "%s has no line in its /etc/shadow" % format_bytes(user)
    damage = describe_shadow_damage(files, user)
    if damage:
        text += " that counts: " + damage
    return text


class LoginLines(NamedTuple):
    """A user's lines, one for each of READERS. shadow is empty where none of them finds one
    there."""

    passwd: Tuple[AccountLine, ...]
    shadow: Tuple[AccountLine, ...]

    def same_for_all(self) -> bool:
        """Do all C libraries take the same lines?"""
        return len(set(self.passwd)) == 1 and len(set(self.shadow)) <= 1

    def passwd_fields(self) -> Set[bytes]:
        """What they read in field 2 of /etc/passwd."""
        return {line.field for line in self.passwd}

    def shadow_fields(self) -> Set[bytes]:
        """What they read in field 2 of /etc/shadow."""
        return {line.field for line in self.shadow}

    def refers_to_shadow(self, user: bytes) -> bool:
        """Does /etc/passwd say, to one of them at least, that the password stands in shadow?"""
        references = {b"x", b"##" + user}
        return not references.isdisjoint(self.passwd_fields())


# $ID$..., or what DES (13 characters) and BSDi (19 after _) made; crypt(5).
WELL_FORMED_HASH = rb"(\$[0-9a-z]+\$.+|_?[./0-9A-Za-z]{13}|_[./0-9A-Za-z]{19})\Z"


def field_state(field: bytes) -> str:
    """'set', 'empty', 'never' (*, !, !!, !locked, *LK*: no password was ever set) or 'locked' by an
    administrator: one or more ! before a well-formed hash."""
    if not field:
        return "empty"
    if field.startswith(b"!"):
        if re.match(WELL_FORMED_HASH, field.lstrip(b"!"), re.S):
            return "locked"
        return "never"
    if field.startswith(b"*"):
        return "never"
    return "set"


# Which container is refused: every reason, in the order in which a person would ask.


class PasswordJob(NamedTuple):
    """A container in which passwords may be set, as it was at the look."""

    container: Container
    before: AccountFiles
    lines: Dict[bytes, LoginLines]  # of each user whose password is to be set
    notes: str


def require_settable(
    host: Host, opts: Options, container: Container, users: Sequence[bytes]
) -> PasswordJob:
    """Decides, before anything is changed, whether these users' passwords may be set in a
    container. Raises Refused with the reason and the remedy; ContainerGone, MethodUnavailable where
    the container could not be looked at."""

    def is_hosts(source: str) -> bool:
        if is_host_account_file(source):
            return True
        # A volume whose device is the host's /etc does not look so before docker mounts it.
        return opts.allow_shared_etc and is_host_account_file(volume_device(host, source))

    # Writing stays in the container, and can be done.
    require_own_etc(container, opts.allow_shared_etc, is_hosts)
    # /etc is a folder of its own, and the account files are plain files.
    files = read_account_files(host, container, opts.allow_shared_etc, first=True)
    lines = {}  # type: Dict[bytes, LoginLines]
    for user in users:
        # The user has an account there, and it is certain what opens it.
        lines[user] = require_login_lines(files, user)
        # No administrator has locked it.
        require_unlocked(lines[user], user, opts.unlock)
    # There is a place for the password, or a program of the image may make one.
    if "exec" not in methods_for(container, opts.via):
        for user in users:
            require_shadow_line(files, lines[user], user)
    return PasswordJob(container, files, lines, describe_accounts(files, lines))


def require_own_etc(
    container: Container, allow_shared: bool, is_hosts: Callable[[str], bool]
) -> None:
    """The checks of docker inspect alone. is_hosts(source) tells whether a mount's source is the
    host's own /, /etc, passwd or shadow."""
    mounts = mounts_over(container, ACCOUNT_PATHS)
    # The host's own account files are not written, whatever the options say.
    for source, destination in mounts:
        if is_hosts(source):
            raise Refused(
                "%s is the host's own %s: never written; passwd on the host sets that one"
                % (destination, source)
            )
    # Files that others share are not written, unless that is meant.
    if mounts and not allow_shared:
        source, destination = mounts[0]
        raise Refused(
            "%s is a mount (%s): a change would reach beyond the container; --allow-shared-etc if"
            " that is meant" % (destination, source or "volume")
        )
    # The files can be written: the root is not read-only, or a mount at /etc is what counts.
    if container.read_only and "/etc" not in [destination for _, destination in mounts]:
        raise Refused(READ_ONLY + "; set the password in its image, or run it without --read-only")


def read_account_files(
    host: Host, container: Container, allow_shared: bool, first: bool = False
) -> AccountFiles:
    """Both account files without a docker call where root is on the engine's own host, else by
    docker cp. Raises Refused where /etc is a link, a mount that docker does not tell of, or where
    an account file is no plain file; ContainerGone, MethodUnavailable."""
    try:
        return read_own_accounts(container)
    except EtcIsAMount as err:
        if not allow_shared:
            raise Refused("%s; --allow-shared-etc if that is meant" % err) from None
    except MethodUnavailable:
        pass
    return read_accounts_by_cp(host, container, first).content()


def read_own_accounts(container: Container) -> AccountFiles:
    """Its account files by proc. Raises MethodUnavailable, Refused."""
    etc = open_etc(container)
    try:
        return read_accounts_by_proc(etc).content()
    finally:
        os.close(etc)


def require_login_lines(files: AccountFiles, user: bytes, strict: bool = False) -> LoginLines:
    """The lines by which this user logs in. Raises Refused where there is no such user, or where it
    depends on the C library. Only with `strict` a missing line end of shadow's last line counts:
    whatever writes the file adds it."""
    name = format_bytes(user)
    # The name can be an account's: not a NIS entry or a comment, and no blanks that a library cuts.
    if user.startswith((b"+", b"-", b"#")) or user != user.strip(b"\t\v\f\r "):
        raise Refused("%s is no name of an account; name the user as /etc/passwd does" % name)
    # Somebody can log in at all.
    if files.passwd is None:
        raise Refused("it has no /etc/passwd: nobody can log in")
    shadow_data = files.shadow or b""
    # The C libraries agree on where a line ends.
    require_no_nul("passwd", files.passwd)
    require_no_nul("shadow", shadow_data)
    # There are not too many lines of that name to look at (find_user_lines).
    passwd = find_user_lines("passwd", files.passwd, user)
    shadow = find_user_lines("shadow", shadow_data, user, not strict)
    # There is such a user.
    if not any(passwd):
        raise Refused(why_no_account(files, name, any(shadow)))
    # The C libraries agree on whether there is a line.
    require_undamaged("passwd", files.passwd, passwd, user)
    require_undamaged("shadow", shadow_data, shadow, user)
    # No line above takes in accounts from elsewhere.
    require_no_nis_before(files.passwd, passwd, name)
    require_no_nis_before(shadow_data, shadow, name)
    return LoginLines(tuple(filter(None, passwd)), tuple(filter(None, shadow)))


def require_no_nul(kind: str, data: bytes) -> None:
    """Raises Refused. For C a text ends at a NUL, and the libraries differ on what comes after."""
    if b"\0" in data:
        raise Refused(
            "its /etc/%s has NUL bytes in it: what login reads there is not certain; mend it first"
            % kind
        )


def why_no_account(files: AccountFiles, name: str, in_shadow: bool) -> str:
    """in_shadow: there is a line of the user in /etc/shadow."""
    text = "there is no user %s in its /etc/passwd" % name
    if re.search(rb"(?m)^\+", files.passwd or b""):
        return text + " itself, and a + line takes in others from NIS: set the password there"
    if in_shadow:
        return text + ", only in /etc/shadow: nobody can log in"
    return text + ": name a user that it has"


def require_undamaged(
    kind: str, data: bytes, lines: Sequence[Optional[AccountLine]], user: bytes
) -> None:
    """lines: those of find_user_lines."""
    if any(lines) and not all(lines):
        damage = describe_damage(kind, data, user)
        raise Refused(
            "the line of %s in its /etc/%s is damaged, and C libraries differ on what it says"
            " (%s): mend it first" % (format_bytes(user), kind, damage)
        )


def require_no_nis_before(data: bytes, lines: Sequence[Optional[AccountLine]], name: str) -> None:
    """lines: those of find_user_lines."""
    starts = [line.start for line in lines if line]
    if starts and re.search(rb"(?m)^[+-]", data[: min(starts)]):
        raise Refused(
            "a + or - line (NIS) stands before %s in its account files: they alone do not decide"
            " who logs in; set the password in NIS" % name
        )


def require_unlocked(lines: LoginLines, user: bytes, unlock: bool) -> None:
    """Raises Refused for an account that an administrator has locked, in either file; not with
    `unlock`."""
    if unlock:
        return
    fields = lines.passwd_fields() | lines.shadow_fields()
    if any(field_state(field) == "locked" for field in fields):
        raise Refused(
            "%s is locked by an administrator (! before the hash); --unlock sets a password all the"
            " same" % format_bytes(user)
        )


def require_shadow_line(files: AccountFiles, lines: LoginLines, user: bytes) -> None:
    """Raises Refused for a user whose password belongs into a line of /etc/shadow that is not
    there: only the image's own chpasswd can tell what such a line looks like there."""
    if not lines.shadow and lines.refers_to_shadow(user):
        reason = describe_no_shadow_line(files, user)
        raise Refused(reason + "; pwconv, run inside, makes it where the image has that")


# What is worth a note, before and after.


def describe_accounts(files: AccountFiles, accounts: Dict[bytes, LoginLines]) -> str:
    """What is worth a note before these users' passwords are set."""
    notes = []  # type: List[str]
    for user, lines in accounts.items():
        note = describe_old_password(lines, user)
        if note:
            notes.append(note)
        if lines.shadow and has_expired(files.shadow or b"", lines.shadow[0]):
            notes.append("%s's account has expired and stays so" % format_bytes(user))
    return "; ".join(notes)


def describe_old_password(lines: LoginLines, user: bytes) -> str:
    """A note where the account had no password, an empty one, or one that /etc/shadow does not
    hold; ''."""
    name = format_bytes(user)
    place = ""
    fields = lines.shadow_fields()
    if not lines.refers_to_shadow(user):
        fields = lines.passwd_fields()
        place = " in /etc/passwd itself"
    states = {field_state(field) for field in fields}
    marks = "".join(sorted({format_mark(field) for field in fields}))
    if "empty" in states:
        return "%s had an empty password before%s (%s)" % (name, place, marks)
    if "never" in states:
        return "%s had no password before%s (%s)" % (name, place, marks)
    if place:
        return "%s's password stood%s" % (name, place)
    return ""


def format_mark(field: bytes) -> str:
    """A field that is no password, as the file has it; what may hold a part of a hash is not
    shown."""
    if re.match(rb"[!*A-Za-z]{0,10}\Z", field):
        return format_bytes(field)
    return "..."


def today() -> int:
    """Days since 1970, as shadow(5) counts them."""
    return int(time.time()) // 86400


def split_line(shadow: bytes, line: AccountLine) -> List[bytes]:
    """The fields of a line of /etc/shadow, numbered from 0."""
    return shadow[line.start : line.end].split(b":")


def has_expired(shadow: bytes, line: AccountLine) -> bool:
    """By field 8, the day since which nobody logs in any more; shadow(5)."""
    fields = split_line(shadow, line)
    if len(fields) < 8 or not fields[7].isdigit():
        return False
    return int(fields[7]) <= today()


def describe_change(before: AccountFiles, after: AccountFiles, hashes: Hashes) -> str:
    """What is worth a note in a container whose passwords are set."""
    notes = []
    lines = {user: require_login_lines(after, user) for user in hashes}
    if any(b"x" not in lines[user].passwd_fields() for user in hashes):
        notes.append("the hash stands in its /etc/passwd, which every user inside can read")
    date = describe_odd_date(after.shadow or b"", lines)
    if date:
        notes.append(date)
    if changed_more(before, after, hashes):
        notes.append(
            "the image's chpasswd changed more in its account files than password and date"
        )
    return "; ".join(notes)


def changed_more(before: AccountFiles, after: AccountFiles, users: Iterable[bytes]) -> bool:
    """Do the files differ in more than password and date of these users? Not where a line of shadow
    was made."""
    try:
        if blank_passwords(before, users) == blank_passwords(after, users):
            return False
    except Refused:  # one of them has no line that can be read
        pass
    return all(require_login_lines(before, user).shadow for user in users)


def blank_passwords(files: AccountFiles, users: Iterable[bytes]) -> AccountFiles:
    """The files with the same password and date for these users, so that what else differs
    shows."""
    for user in users:
        lines = require_login_lines(files, user)
        passwd = set_fields(files.passwd or b"", lines.passwd, b"x")
        shadow = files.shadow
        if shadow is not None:
            shadow = set_fields(shadow, lines.shadow, b"", 0)
        files = AccountFiles(passwd, shadow)
    return files


def describe_odd_date(shadow: bytes, accounts: Dict[bytes, LoginLines]) -> str:
    """A word where the image's tool wrote another day than today: libfaketime inside, or a wrong
    clock."""
    for lines in accounts.values():
        if not lines.shadow:
            continue
        day = split_line(shadow, lines.shadow[0])[2]
        if not day.isdigit():
            continue
        off = int(day) - today()
        if abs(off) > 1:
            return (
                "the date of last change was written %d days off: is the container's clock shifted?"
                % off
            )
    return ""


# The account files with the hashes in them, and whether they say what they should.


def edit_accounts(files: AccountFiles, hashes: Hashes, day: int) -> AccountFiles:
    """The files with each user's hash and date of last change (days since 1970) set, and every
    other byte kept. Field 2 of /etc/passwd becomes `x`; where shadow has no line and that field is
    the password, the hash goes there. Raises Refused."""
    new = files
    for user, value in hashes.items():
        lines = require_login_lines(new, user)
        require_shadow_line(new, lines, user)
        # The hash stands in one of the two files, and /etc/passwd tells which one it is.
        field = value
        if lines.shadow:
            field = b"x"
            shadow = set_fields(new.shadow or b"", lines.shadow, value, day)
            new = AccountFiles(new.passwd, shadow)
        if lines.passwd_fields() != {field}:
            passwd = set_fields(new.passwd or b"", lines.passwd, field)
            new = AccountFiles(passwd, new.shadow)
    # Judged as it will be read back, before anything is written.
    left = passwords_not_set(new, hashes)
    if left:
        raise Refused(
            "the line of %s would not be read by every C library with this hash (too long?)"
            % format_bytes(left[0])
        )
    return new


def set_fields(
    data: bytes, lines: Sequence[AccountLine], value: bytes, day: Optional[int] = None
) -> bytes:
    """The file with field 2 of these lines set, and with `day` field 3 too."""
    places = {(line.start, line.end) for line in lines}
    # From the last one on, so that the places before it stay where they are.
    for start, end in sorted(places, reverse=True):
        fields = data[start:end].split(b":")
        fields[1] = value
        if day is not None:
            fields[2] = b"%d" % day
        rest = data[end:] or b"\n"  # musl reads no shadow line without a line end
        data = data[:start] + b":".join(fields) + rest
    return data


def passwords_not_set(files: AccountFiles, hashes: Hashes) -> List[bytes]:
    """The users whose account would not open with the password of this hash, or also with another
    one."""
    return [user for user, value in hashes.items() if not login_takes(files, user, value)]


def login_takes(files: AccountFiles, user: bytes, value: bytes) -> bool:
    """Is this hash what every program that asks for the user's password compares with?"""
    try:
        lines = require_login_lines(files, user, strict=True)
    except Refused:
        return False
    in_passwd = lines.passwd_fields()
    in_shadow = lines.shadow_fields()
    if in_passwd == {b"x"}:
        return in_shadow == {value}
    # Programs that prefer a line in shadow, where there is one, must find the same there.
    return in_passwd == {value} and in_shadow <= {value}


# By exec: the image's own chpasswd, where it can do no harm.


def require_safe_chpasswd(job: PasswordJob, user: bytes) -> None:
    """Raises MethodUnavailable where the image's own chpasswd could leave the account worse than it
    was."""
    lines = job.lines[user]
    # It would set the line that its own C library takes, and no other.
    if not lines.same_for_all():
        raise MethodUnavailable("C libraries differ on which line is %s's" % format_bytes(user))
    # BusyBox's sets a damaged line, and then field 2 of /etc/passwd to x: nobody gets in any more.
    if lines.shadow or lines.refers_to_shadow(user):
        return
    if describe_shadow_damage(job.before, user):
        raise MethodUnavailable(describe_no_shadow_line(job.before, user))


class EtcState(NamedTuple):
    """What tells whether a container's /etc was swapped: the folder itself, and when a name in /
    was last changed."""

    inode: int
    changed: int


def etc_state(container: Container) -> Optional[EtcState]:
    """None where it cannot be seen (root elsewhere, no root, a mount that may be written). Raises
    Refused where it is a link."""
    try:
        etc = open_etc(container)
    except MethodUnavailable:
        return None
    try:
        # /etc was opened below the container's root, so what is above it is that root.
        root = os.stat("..", dir_fd=etc)
        return EtcState(os.fstat(etc).st_ino, root.st_ctime_ns)
    finally:
        os.close(etc)


# What chpasswd and its library open beside the account files, and follow where it is a link
# (shadow-utils lib/commonio.c, libmisc; BusyBox libbb/update_passwd.c; glibc's lckpwdf).
ETC_COMPANIONS = (
    *("passwd-", "passwd+", "passwd.lock", "npasswd", "shadow-", "shadow+", "shadow.lock"),
    *("nshadow", "group", "group-", "group+", "gshadow", "gshadow-", "gshadow+", ".pwd.lock"),
)


def require_plain_companions(container: Container) -> None:
    """Raises MethodUnavailable where the image's own chpasswd would follow a link in /etc, to a
    file of the host perhaps, or wait for a fifo."""
    etc = open_etc(container)
    try:
        for name in ETC_COMPANIONS:
            try:
                mode = os.stat(name, dir_fd=etc, follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(mode):
                raise MethodUnavailable(
                    "its /etc/%s is no plain file: the image's own chpasswd would follow it" % name
                )
    finally:
        os.close(etc)


def require_steady_etc(container: Container) -> Optional[EtcState]:
    """etc_state, before a program of the image writes there by itself: it would follow a link to a
    mount. Raises Refused where something renames what is in / right now, MethodUnavailable as
    require_plain_companions."""
    state = etc_state(container)
    if state and leads_out(container):
        require_plain_companions(container)
        # Longer than a tick of the clock that folders have: a later change shows another time.
        time.sleep(STEADY_SECONDS)
        if etc_state(container) != state:
            raise Refused("something in it makes, renames or removes names in its / all the time")
    return state


def require_same_etc(container: Container, before: Optional[EtcState], hashes: Hashes) -> None:
    """Raises PathMoved where /etc was swapped while the image's chpasswd ran, and that did not
    write to the /etc that is there now. before: require_steady_etc's."""
    if not before or not leads_out(container):
        return
    try:
        if etc_state(container) == before:
            return
        if not passwords_not_set(read_own_accounts(container), hashes):
            return
    except Refused:  # it is a link now, or has no such user
        pass
    except MethodUnavailable:  # it ended meanwhile
        return
    raise PathMoved(
        "something in it changed its / while its chpasswd ran, and a link may have led that"
        " elsewhere; look at %s" % host_sources(container)
    )


def format_hash_lines(hashes: Hashes) -> bytes:
    """USER:HASH lines, as chpasswd -e reads them."""
    return b"".join(user + b":" + value + b"\n" for user, value in hashes.items())


def exec_chpasswd(host: Host, container: Container, hashes: Hashes) -> Answer:
    """chpasswd -e in the container, the lines on its standard input, no shell on either side. 126
    and 127 are one (moby#45795): once more by its full path, for a PATH without /usr/sbin."""
    lines = format_hash_lines(hashes)
    # No -t: a terminal would echo the lines.
    call = ["exec", "-i", "-u", "0", container.id]
    answer = change(host, [*call, "chpasswd", "-e"], lines)
    if answer.rc in (126, 127) and not answer.timed_out:
        answer = change(host, [*call, "/usr/sbin/chpasswd", "-e"], lines)
    return answer


def set_by_exec(host: Host, job: PasswordJob, hashes: Hashes) -> Answer:
    """Runs the image's own chpasswd. Raises ContainerGone, MethodUnavailable, Refused,
    PathMoved."""
    container = job.container
    for user in hashes:
        require_safe_chpasswd(job, user)
    before = require_steady_etc(container)
    answer = exec_chpasswd(host, container, hashes)
    require_same_etc(container, before, hashes)
    if answer.rc and is_gone_now(host, container.id, answer.text()):
        raise ContainerGone
    return answer


# What a program of an image said: shown only where no part of a hash can be in it.


HIDDEN = "what it said is not shown: a part of an account file may be in it"
# Bytes in a row that two texts do not share by chance; twice as many in base64 and hex.
SECRET_PIECE = 4
# A word or a path as messages have them: a hash of any kind mixes letters and digits.
PLAIN_WORD = (
    r"[(\"'`]*"
    r"(?:[A-Z]?[a-z]{1,14}|[A-Z]{1,8}|(?:/?[a-z]{1,14}[-._/]?){1,6}(?:\(\))?|[a-z_]+\.go:[0-9]+)"
    r"[)\"'`.,:;!?]*"
)
# At most two of these in a line: a short number, the id of a container.
PLAIN_NUMBER = r"[(]?(?:[0-9]{1,4}|[0-9a-f]{12}|[0-9a-f]{64})[).,:;]*"


def hide_secrets(text: str, hashes: Hashes) -> str:
    """What a program of an image said, or HIDDEN where it looks like a hash, or has one in it,
    whole, in pieces, in base64 or in hex."""
    if not is_plain_speech(text):
        return HIDDEN
    lines = format_hash_lines(hashes)
    hexadecimal = lines.hex().encode()
    encoded = [hexadecimal, hexadecimal.upper()]
    for start in range(3):  # base64 of a part that starts elsewhere in a group of three bytes
        encoded.append(base64.b64encode(lines[start:]).rstrip(b"="))
    said = os_bytes(text)
    # A hash may be broken up by blanks or by quotes.
    unbroken = re.sub(rb"[^$./0-9A-Za-z]", b"", said)
    for shown in (said, unbroken):
        if re.search(rb"\$(?:[0-9a-z]{1,2}|2[abxy])\$", shown):
            return HIDDEN
        if any(shares_piece(shown, value, SECRET_PIECE) for value in hashes.values()):
            return HIDDEN
        if any(shares_piece(shown, form, 2 * SECRET_PIECE) for form in encoded):
            return HIDDEN
    return text


def is_plain_speech(text: str) -> bool:
    """Is a line made of plain words and paths? What else a program of an image says may be a line
    of an account file, in whatever form."""
    words = text.split()
    numbers = 0
    for word in words:
        if re.match(PLAIN_NUMBER + r"\Z", word, re.A):
            numbers += 1
        elif not re.match(PLAIN_WORD + r"\Z", word, re.A):
            return False
    return len(words) <= 40 and numbers <= 2


def shares_piece(text: bytes, secret: bytes, size: int) -> bool:
    """Do both have the same `size` bytes in a row?"""
    return not pieces_of(text, size).isdisjoint(pieces_of(secret, size))


def pieces_of(text: bytes, size: int) -> Set[bytes]:
    """All that are `size` bytes long."""
    ends = range(size, len(text) + 1)
    return {text[end - size : end] for end in ends}


# One container: the ways, one after the other, and what the read-back says.


class MethodResult(NamedTuple):
    """What one way made of a container. status: 'changed', 'unchanged', 'unknown', 'refused',
    'failed' where the read-back shows no change, 'partial' where it shows some of the users, or a
    part of what one of them needs."""

    status: str
    msg: str


def methods_for(container: Container, via: str) -> List[str]:
    """The ways to try, in this order. via: --via."""
    if via != "auto":
        return [via]
    methods = []
    if can_exec(container):
        methods.append("exec")
    if os.geteuid() == 0 and container.pid:
        methods.append("proc")
    methods.append("cp")
    return methods


def make_hashes(opts: Options, accounts: Sequence[Account]) -> Hashes:
    """With -e the secrets are hashes already; else each gets a fresh salt."""
    hashes = {}
    for account in accounts:
        if opts.encrypted:
            hashes[account.user] = account.secret
        else:
            hashes[account.user] = sha512_crypt(account.secret, random_password(16))
    return hashes


def set_passwords(
    host: Host, opts: Options, target: Target, job: PasswordJob, accounts: List[Account]
) -> ResultRow:
    """The row of one container: tries the ways in order, judges by the read-back only. Raises
    ContainerGone."""
    hashes = make_hashes(opts, accounts)
    fields = row_fields(list(hashes))
    reasons = []  # type: List[str]
    partial = None  # type: Optional[bool]
    status = "failed"
    for method in methods_for(job.container, opts.via):
        status, msg = try_method(host, opts, job, method, hashes)
        if status in ("failed", "refused", "partial"):
            # The next way may succeed.
            partial = bool(partial) or status == "partial"
            reasons.append("%s: %s" % (method, msg))
            continue
        notes = [msg, job.notes]
        if reasons:
            notes.append("not by " + " / ".join(reasons))
        msg = "; ".join(note for note in notes if note)
        fields["via"] = method
        return ResultRow(target.name, target.id, status, msg, fields, partial)
    if status != "refused" or partial:
        status = "failed"
    return ResultRow(target.name, target.id, status, "; ".join(reasons), fields, partial)


def row_fields(users: Sequence[bytes]) -> Dict[str, object]:
    """The command's own keys of a row: the users, and the way that was taken."""
    return {"users": [format_bytes(user) for user in users], "via": None}


def try_method(
    host: Host, opts: Options, job: PasswordJob, method: str, hashes: Hashes
) -> MethodResult:
    """Raises ContainerGone."""
    try:
        if opts.encrypted:
            files = read_account_files(host, job.container, opts.allow_shared_etc)
            if not passwords_not_set(files, hashes):
                return MethodResult("unchanged", "the hash was already this one")
        sent = send_hashes(host, job, method, hashes)
        return judge_read_back(host, opts, job, hashes, sent)
    except NoAnswer as err:
        return MethodResult("unknown", str(err))
    except Refused as err:
        return MethodResult("refused", err.msg)
    except MethodUnavailable as err:
        return MethodResult("failed", str(err))


def send_hashes(host: Host, job: PasswordJob, method: str, hashes: Hashes) -> SentAccounts:
    """Hands the hashes to a container by one way. Raises ContainerGone, MethodUnavailable,
    Refused."""

    def edit(files: AccountFiles) -> AccountFiles:
        return edit_accounts(files, hashes, today())

    if method == "proc":
        note_change(host)
        write_accounts_by_proc(job.container, edit, host.stop)
        return SentAccounts(None, None)
    if method == "cp":
        return write_accounts_by_cp(host, job.container, edit)
    return SentAccounts(set_by_exec(host, job, hashes), None)


def judge_read_back(
    host: Host, opts: Options, job: PasswordJob, hashes: Hashes, sent: SentAccounts
) -> MethodResult:
    """Raises ContainerGone."""
    files = sent.files
    try:
        if files is None:
            files = read_account_files(host, job.container, opts.allow_shared_etc)
    except (MethodUnavailable, Refused, FileNotFoundError) as err:
        return MethodResult("unknown", "sent, but the read-back failed: %s" % err)
    left = passwords_not_set(files, hashes)
    if not left:
        return MethodResult("changed", describe_change(job.before, files, hashes))
    if sent.answer and sent.answer.timed_out:
        return MethodResult(
            "unknown",
            "no answer in %.3g s and not changed so far: what was begun may still do it (is"
            " /etc/.pwd.lock held?)" % sent.answer.seconds,
        )
    return explain_failure(sent.answer, files, hashes, left)


def explain_failure(
    answer: Optional[Answer], files: AccountFiles, hashes: Hashes, left: List[bytes]
) -> MethodResult:
    """Where the read-back does not show every hash. left: the users that are not set."""
    if len(left) < len(hashes):
        done = [format_bytes(user) for user in hashes if user not in left]
        missed = [format_bytes(user) for user in left]
        msg = "the image's chpasswd set %s but not %s" % (", ".join(done), ", ".join(missed))
        return MethodResult("partial", msg)
    shadow = files.shadow or b""
    if any(hashes[user] in shadow for user in left):
        return MethodResult(
            "partial",
            "the image's chpasswd wrote to /etc/shadow, but login reads another place (field 2 of"
            " /etc/passwd, or another line)",
        )
    if answer is None or answer.rc == 0:
        return MethodResult("failed", "chpasswd reported success, but nothing changed")
    said = "there is no chpasswd inside that runs"
    if answer.rc not in (126, 127):
        said = hide_secrets(first_line(answer), hashes)
    return MethodResult("failed", "%s (exit %d)" % (said, answer.rc))


# The command.


def password_source(host: Host, opts: Options) -> str:
    """'lines' (USER:PASSWORD on standard input), 'file', 'stdin', 'generate' or 'prompt'. Raises
    UsageError for two or none."""
    given = []
    if opts.password_file is not None:
        given.append("file")
    if opts.password_stdin:
        given.append("stdin")
    if opts.generate:
        given.append("generate")
    if len(given) > 1:
        raise UsageError(
            "the password has more than one source: --password-file, --password-stdin or --generate"
        )
    require_generate_options(opts)
    if given == ["file"] and opts.password_file == "-":
        return claim_password_stdin(host, "stdin")
    if given == ["stdin"]:
        return claim_password_stdin(host, "stdin")
    if given:
        return given[0]
    if os.isatty(0):
        return "prompt"
    if opts.user is not None and not opts.dry_run:
        raise UsageError(
            "--user goes with --password-file, --password-stdin, --generate or the prompt; lines on"
            " standard input name their users",
            "echo the line as USER:PASSWORD, or --password-file FILE",
        )
    return claim_password_stdin(host, "lines")


def require_generate_options(opts: Options) -> None:
    """Raises UsageError."""
    if opts.generate != bool(opts.output):
        raise UsageError("--generate and --output FILE go together")
    if opts.generate and opts.encrypted:
        raise UsageError("--generate makes passwords, not hashes: leave -e out")
    if opts.generate and os.path.lexists(os_bytes(opts.output)):
        raise already_exists_error(opts.output)


def claim_password_stdin(host: Host, source: str) -> str:
    """Returns the source. A dry run reads nothing. Raises UsageError."""
    hint = "--password-file FILE"
    if source == "stdin":
        hint += "; on a terminal leave --password-stdin out to be asked"
    if not host.dry_run:
        claim_stdin(host, "the password", hint)
    return source


def read_accounts(opts: Options, source: str, user: bytes) -> List[Account]:
    """What is to be set in every container (not for 'generate'). Raises UsageError."""
    if source == "lines":
        return read_password_lines(opts)
    if source == "prompt":
        name = "the password"
        secret = ask_twice(user)
    elif source == "file" and opts.password_file is not None:
        name = "--password-file"
        secret = read_password(opts.password_file)
    else:
        name = "--password-stdin"
        secret = read_password("-")
    require_secret(secret, name)
    if opts.encrypted:
        require_hash(secret, name)
    return [Account(user, secret)]


def read_password_lines(opts: Options) -> List[Account]:
    """From standard input. Raises UsageError."""
    data = read_input("-", 1 << 22, "standard input")
    if not data.strip(b"\r\n "):
        raise UsageError(
            "standard input is empty: no USER:PASSWORD line",
            "python3 dockfix.py ... --password-file FILE",
        )
    return parse_password_lines(data, opts.encrypted)


def read_password(path: str) -> bytes:
    """A file's one line, without its line end. path: - is standard input."""
    secret = read_input(path, 65536, "--password-file")
    if secret.endswith(b"\n"):
        secret = secret[:-1]
    return secret


def ask_twice(user: bytes) -> bytes:
    """On the terminal, without echo. Raises UsageError."""
    try:
        first = ask_secret("New password for %s: " % escape_controls(os_text(user)))
        second = ask_secret("Retype the new password: ")
    except OSError as err:
        raise UsageError(
            "there is no terminal to ask on (%s)" % err.strerror, "--password-file FILE"
        ) from None
    if first != second:
        raise UsageError("the two passwords differ; nothing was changed")
    return first


def generate_passwords(
    opts: Options, survey: Survey[PasswordJob], user: bytes
) -> Dict[str, List[Account]]:
    """A password for each container that was not refused, by its id, on the disk before anything is
    changed."""
    passwords = {}  # type: Dict[str, List[Account]]
    lines = []
    for target in survey.targets:
        if target.id not in survey.facts:
            continue
        account = Account(user, random_password(20))
        passwords[target.id] = [account]
        fields = (os_bytes(target.name), os_bytes(target.id), user, account.secret)
        lines.append(b"\t".join(fields) + b"\n")
    if lines:
        write_secret_file(opts.output, b"".join(lines))
    return passwords


def format_chpasswd_options(opts: Options) -> List[str]:
    """The options that a script must repeat to do the same."""
    options = ["--via", opts.via]
    if opts.encrypted:
        options.append("--encrypted")
    if opts.unlock:
        options.append("--unlock")
    if opts.allow_shared_etc:
        options.append("--allow-shared-etc")
    options += shared_words(opts)
    if opts.generate:
        options += ["--generate", "--output", os.path.abspath(opts.output)]
        options += ["--user", opts.user or "root"]
    return options


# In a script: the file that stands for what this run would read.
LINES_FILE = '"${DOCKFIX_LINES:?file of USER:PASSWORD lines, mode 0600}"'


def plan_chpasswd(
    opts: Options, report: dict, survey: Survey[PasswordJob], users: Sequence[bytes]
) -> None:
    """The dry run: rows as they would be, and the script."""
    call = ["python3", program_path(), "chpasswd", *format_chpasswd_options(opts)]
    rows = []
    lines = []
    ids = []
    for target in survey.targets:
        if target.id in survey.rows:
            row = survey.rows[target.id]
            rows.append(row)
            lines.append(not_done_comment(row))
            continue
        job = survey.facts[target.id]
        methods = methods_for(job.container, opts.via)
        fields = row_fields(users)
        fields["via"] = methods[0]
        rows.append(row_for(target, "changed", job.notes, fields))
        comment = "%s: by %s" % (target.name, ", then ".join(methods))
        if job.notes:
            comment += "; " + job.notes
        lines.append(script_comment(comment))
        ids.append(target.id)
        if not opts.generate:
            line = quote_line([*call, target.id])
            lines.append("run %s < %s" % (line, LINES_FILE))
    # The passwords of all containers go to one file, which must not be there: so one call.
    if opts.generate and ids:
        lines.append("run " + quote_line(call + ids))
    set_script(opts, report, rows, lines)


def check_host_accounts(report: dict, before: Dict[str, AccountFileState]) -> None:
    """The tripwire: the host's own account files must be as they were."""
    changed = [path for path, state in read_host_accounts().items() if state != before.get(path)]
    if not changed:
        return
    text = (
        "the HOST's own %s changed while dockfix ran; dockfix never writes it: another program did,"
        " or a container reached it" % " and ".join(changed)
    )
    remedy = "ls -l --time-style=full-iso %s" % " ".join(changed)
    add_finding(report, Finding("host-accounts-changed", "critical", text, remedy))
    report["exit_code"] = 3


def run_chpasswd(host: Host, opts: Options, report: dict) -> None:
    """look -> refuse -> (dry run: script) -> write the generated passwords -> change -> read
    back."""
    source = password_source(host, opts)
    user = b"root"
    if opts.user is not None:
        user = os_bytes(opts.user)
    require_user_name(user, "--user")
    accounts = []  # type: List[Account]
    if source not in ("generate", "prompt") and not opts.dry_run:
        accounts = read_accounts(opts, source, user)
    require_no_half_way(host)
    targets = choose_containers(host, opts)
    if not opts.dry_run:
        take_lock(host)
        # Nobody is asked before the containers are known and the lock is held.
        if source == "prompt":
            accounts = read_accounts(opts, source, user)
    users = [account.user for account in accounts]
    if not users and source != "lines":
        users = [user]
    host_files = read_host_accounts()
    fields = row_fields(users)

    def look(container: Container) -> PasswordJob:
        return require_settable(host, opts, container, users)

    survey = survey_containers(host, opts, "chpasswd: looking", targets, look, fields)
    if opts.dry_run:
        plan_chpasswd(opts, report, survey, users)
        return
    passwords = {}  # type: Dict[str, List[Account]]
    if opts.generate:
        passwords = generate_passwords(opts, survey, user)

    def work(target: Target, job: PasswordJob) -> ResultRow:
        return set_passwords(host, opts, target, job, passwords.get(target.id, accounts))

    report_rows(report, run_over_survey(host, opts, survey, work, fields))
    check_host_accounts(report, host_files)
    if opts.encrypted:
        warn_of_yescrypt(accounts)


def warn_of_yescrypt(accounts: Sequence[Account]) -> None:
    """Which images know the hashes cannot be told from here."""
    if any(account.secret.startswith(b"$y$") for account in accounts):
        say(
            "dockfix: warning: musl images (Alpine) and EL7 do not know $y$ hashes; $6$ works"
            " everywhere"
        )


###############################################################################
# 10. exec
###############################################################################

# Runs one command, or a script of the host, in many containers.
#
# Nothing is added to the command, and no shell stands between: the words reach the program in the
# container as they are. The output is cut at a limit, because a container may write for ever.
#
# Facts: `docker exec` returns 1, 126 or 127 for its own errors as well as for the command's
# (moby's cli/command/container/exec.go), so its text decides whose it was. When the docker client
# is killed, the process inside goes on: a command that did not end in time is unknown, not failed.


class ExecRequest(NamedTuple):
    """The options of one run, as typed values."""

    command: List[str]  # program and arguments inside
    user: Optional[str]  # of docker exec -u; None: the container's own
    input_path: Optional[str]  # what goes to its standard input; '-': dockfix's own; None: nothing
    input_data: bytes  # what is there; b'' where a dry run does not read it
    max_output: int  # bytes of each stream


# The fields of a row for which docker gave no answer. `rc` is null in JSON where the exit status is
# not the command's own. Rows with an answer have `cut` too: how many bytes of each stream are left
# out.
NO_ANSWER = {
    "rc": None,
    "stdout": "",
    "stderr": "",
    "truncated": False,
    "seconds": 0.0,
}  # type: Dict[str, object]
SCRIPT_MAX = 1 << 26  # bytes


def exec_argv(request: ExecRequest, target: Target) -> List[str]:
    """The words behind `docker`."""
    argv = ["exec"]
    if request.input_path is not None:
        argv.append("-i")
    if request.user is not None:
        argv += ["-u", request.user]
    return [*argv, target.id, *request.command]


def exec_fields(answer: Answer, rc: Optional[int]) -> Dict[str, object]:
    """The fields of a row: how the command ended, and what it wrote. `rc` is None where the exit
    status is not the command's own."""
    cut_stdout = answer.out_total - len(answer.out)
    cut_stderr = answer.err_total - len(answer.err)
    return {
        "rc": rc,
        "stdout": format_bytes(answer.out),
        "stderr": format_bytes(answer.err),
        "truncated": cut_stdout > 0 or cut_stderr > 0,
        "seconds": round(answer.seconds, 3),
        "cut": {"stdout": cut_stdout, "stderr": cut_stderr},
    }


def run_in_container(host: Host, request: ExecRequest, target: Target) -> ResultRow:
    """Runs the command in one container. Raises ContainerGone."""
    stdin = None
    if request.input_path is not None:
        stdin = request.input_data
    answer = change(host, exec_argv(request, target), stdin, request.max_output)
    stderr = answer.err.decode("utf-8", "replace")
    if answer.timed_out:
        is_dockers_error = True
    else:
        is_dockers_error = is_docker_error(answer.rc, stderr, answer.text())
    if is_dockers_error and is_gone_now(host, target.id, stderr):
        raise ContainerGone
    rc = None  # type: Optional[int]
    if not is_dockers_error:
        rc = answer.rc
    fields = exec_fields(answer, rc)
    if answer.timed_out:
        msg = "no answer in %g s: the process inside may still run" % host.timeout
        return row_for(target, "unknown", msg, fields)
    if answer.rc == 0:
        return row_for(target, "changed", "", fields)
    if is_dockers_error:
        return row_for(target, "failed", first_line(answer), fields)
    return row_for(target, "failed", "exit %d" % answer.rc, fields)


# The command


def parse_exec_options(host: Host, opts: Options) -> ExecRequest:
    """The options as typed values. Reads the file of --script or --stdin, and standard input where
    that is `-`. Raises UsageError."""
    # One thing goes to the command's standard input.
    if opts.script is not None and opts.stdin is not None:
        raise UsageError("standard input inside carries --script or --stdin, not both")
    # There is something to run.
    if opts.script is None and not opts.arguments:
        names = " ".join(opts.containers) or "--all"
        raise UsageError(
            "no command: write it after --, or give --script FILE",
            "python3 dockfix.py exec %s -- CMD ARG" % names,
        )
    command = list(opts.arguments)
    option, path, purpose = "--stdin", opts.stdin, "the command's input"
    if opts.script is not None:
        option, path, purpose = "--script", opts.script, "the script"
        # The shell takes the script from its standard input, and the words as its $1, $2 ...
        command = [*opts.shell, "-s"]
        if opts.arguments:
            command += ["--", *opts.arguments]
    data = b""
    if path == "-":
        claim_stdin(host, purpose, "put it into a file")
    if path is not None and not (opts.dry_run and path == "-"):
        data = read_input(path, SCRIPT_MAX, option)
    return ExecRequest(command, opts.user, path, data, opts.max_output)


def format_script_input(request: ExecRequest) -> str:
    """Where the script of a dry run takes the command's standard input from."""
    if request.input_path is None:
        return "/dev/null"
    if request.input_path == "-":
        return '"${DOCKFIX_STDIN:?file for standard input}"'
    return quote_word(os.path.abspath(request.input_path))


def plan_exec(
    host: Host, opts: Options, report: dict, request: ExecRequest, targets: List[Target]
) -> None:
    """The dry run: a docker exec for each container, under its name."""
    source = format_script_input(request)
    rows = []
    lines = []
    for target in targets:
        argv = [*host.docker, *exec_argv(request, target)]
        lines.append(script_comment(target.name))
        lines.append("run %s < %s" % (quote_line(argv), source))
        row = row_for(target, "changed", "would run", NO_ANSWER)
        rows.append(row)
    set_script(opts, report, rows, lines)


def run_exec(host: Host, opts: Options, report: dict) -> None:
    """Runs the command in each chosen container, --jobs at a time."""
    request = parse_exec_options(host, opts)
    require_no_half_way(host)
    targets = choose_containers(host, opts)
    if opts.dry_run:
        plan_exec(host, opts, report, request, targets)
        return
    take_lock(host)

    def work(target: Target) -> ResultRow:
        return run_in_container(host, request, target)

    rows = run_over_targets(host, opts, targets, work, NO_ANSWER)
    report_rows(report, rows)


###############################################################################
# 11. Time zones, clock
###############################################################################

# Reads zone files and rules, finds the host's zone, reads the clock inside a container; `clock`
# compares the containers' clocks and zones with the host's. It never changes anything. The commands
# `timezone` and `faketime` build on it.
#
# The zone of a container is what its own C library would take: the variable TZ, else
# /etc/localtime. It is read from the files, so that it is known also where no `date` runs.
#
# Facts: zone files as in RFC 8536; the rules of TZ as in POSIX; where the C libraries look for the
# zone as in tzset(3).


# Zone files and rules


ZONEINFO = "/usr/share/zoneinfo"
LOCALTIME = "/etc/localtime"
TIMEZONE = "/etc/timezone"
ZONE_NAME = r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*\Z"
ZONE_MAX = 1 << 18  # bytes; the largest zone file has some 4 KiB
ZONE_ABBREVIATION = r"([A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)"
# Standard time and its offset, then summer time, its offset, its begin and its end
POSIX_TZ = (
    ZONE_ABBREVIATION
    + r"([+-]?[0-9:]+)(?:"
    + ZONE_ABBREVIATION
    + r"([+-]?[0-9:]+)?(?:,([^,]+),([^,]+))?)?\Z"
)
# When summer begins and ends where the rule does not say it, as in glibc: the dates of the USA.
DEFAULT_BEGIN = "M3.2.0"
DEFAULT_END = "M11.1.0"
EAST_MAX = 26 * 3600  # seconds; no zone is further from UTC
RULE_HOURS_MAX = 167  # of RFC 8536: a rule may name a time up to a week away
DAY = 86400  # seconds


class LocalOffset(NamedTuple):
    """By how much the clocks of a zone differ from UTC at an instant."""

    east: int  # seconds east of UTC
    name: str  # the abbreviation: CET, CEST


class ZoneType(NamedTuple):
    """An offset that a zone has at some time (RFC 8536: a local time type)."""

    east: int  # seconds east of UTC
    is_summer: int
    place: int  # where its abbreviation begins in `names` of the block


class ZoneBlock(NamedTuple):
    """One data block of a zone file (RFC 8536, part 3.2)."""

    times: Tuple[int, ...]  # the instants at which the offset changes
    numbers: bytes  # the type from each instant on: its place in `types`
    types: List[ZoneType]
    names: bytes  # the abbreviations, each ended by a zero byte
    end: int  # where the block ends in the file


def zone_offset(data: bytes, when: int) -> LocalOffset:
    """The offset at a time in seconds since 1970, by a zone file (TZif, versions 1 to 4). Raises
    ValueError for what is no zone file."""
    try:
        return read_zone_offset(data, when)
    except (struct.error, LookupError, ValueError):
        raise ValueError("not a time zone file") from None


def read_zone_offset(data: bytes, when: int) -> LocalOffset:
    """zone_offset. Raises ValueError, LookupError or struct.error, as the damage is."""
    block = parse_zone_block(data, 0, "l")
    rule = ""
    # From version 2 on, a second block of 64 bits follows, and the rule for later times.
    if data[4:5] >= b"2":
        block = parse_zone_block(data, block.end, "q")
        footer = data[block.end :].decode("ascii")
        before, rule, _ = footer.split("\n", 2)
        if before:
            raise ValueError("no footer")
    is_later = not block.times or when >= block.times[-1]
    if rule and is_later:
        return posix_offset(rule, when)
    # Before the first change the first type holds.
    number = 0
    past = [instant for instant in block.times if instant <= when]
    if past:
        number = block.numbers[len(past) - 1]
    zone_type = block.types[number]
    require_zone_east(zone_type.east)
    name = read_abbreviation(block, zone_type.place)
    return LocalOffset(zone_type.east, name)


def read_abbreviation(block: ZoneBlock, place: int) -> str:
    """The abbreviation that begins there. Raises ValueError."""
    end = block.names.index(b"\0", place)
    return block.names[place:end].decode("ascii")


def parse_zone_block(data: bytes, at: int, form: str) -> ZoneBlock:
    """The block of a zone file that begins at `at`.

    form: struct's letter for its times: "l" in the first block, "q" in the second.

    Raises ValueError, struct.error.
    """
    header = struct.unpack_from(">4s16x6L", data, at)
    magic, utc_flags, standard_flags, leaps, count, kinds, chars = header
    size = struct.calcsize(">" + form)
    # The parts in their order: the times, the type from each on, the types, the abbreviations; then
    # what is not read: the leap seconds and two kinds of flags.
    times_at = at + 44
    numbers_at = times_at + count * size
    types_at = numbers_at + count
    names_at = types_at + kinds * 6
    leaps_at = names_at + chars
    flags_at = leaps_at + leaps * (size + 4)
    end = flags_at + standard_flags + utc_flags
    if magic != b"TZif" or end > len(data):
        raise ValueError("cut short")
    times = struct.unpack_from(">%d%s" % (count, form), data, times_at)
    if list(times) != sorted(times):
        raise ValueError("out of order")
    types = []
    for place in range(types_at, names_at, 6):
        fields = struct.unpack_from(">lBB", data, place)
        types.append(ZoneType(*fields))
    return ZoneBlock(
        times=times,
        numbers=data[numbers_at:types_at],
        types=types,
        names=data[names_at:leaps_at],
        end=end,
    )


def posix_offset(rule: str, when: int) -> LocalOffset:
    """The offset by a rule as in TZ=CET-1CEST,M3.5.0,M10.5.0/3 (POSIX), at a time in seconds since
    1970. Raises ValueError, also for the name of a zone file."""
    match = re.match(POSIX_TZ, rule, re.A)
    if not match:
        raise ValueError("not a rule for TZ")
    standard_name, west, summer_name, summer_west, begin, end = match.groups()
    # POSIX counts west of Greenwich: TZ=CET-1 is an hour east.
    east = -parse_rule_clock(west)
    require_zone_east(east)
    standard = LocalOffset(east, standard_name.strip("<>"))
    if not summer_name:
        return standard
    summer_east = east + 3600
    if summer_west:
        summer_east = -parse_rule_clock(summer_west)
    require_zone_east(summer_east)
    try:
        year = time.gmtime(when + east).tm_year
        start = parse_rule_day(begin or DEFAULT_BEGIN, year) - east
        stop = parse_rule_day(end or DEFAULT_END, year) - summer_east
    except (OverflowError, OSError):
        raise ValueError("no such year") from None
    is_summer = start <= when < stop
    if start >= stop:  # south of the equator, where summer spans the new year
        is_summer = not stop <= when < start
    if is_summer:
        return LocalOffset(summer_east, summer_name.strip("<>"))
    return standard


def require_zone_east(east: int) -> None:
    """Raises ValueError for an offset, in seconds, that no zone has."""
    if abs(east) > EAST_MAX:
        raise ValueError("no such offset")


def parse_rule_clock(text: str) -> int:
    """The seconds of '-3:30' or '167:00:00'. Raises ValueError."""
    match = re.match(r"([+-]?)([0-9]{1,3})(?::([0-5][0-9]))?(?::([0-5][0-9]))?\Z", text, re.A)
    if not match:
        raise ValueError("not a time")
    sign, hours, minutes, rest = match.groups()
    if int(hours) > RULE_HOURS_MAX:
        raise ValueError("not a time")
    seconds = int(hours) * 3600
    seconds += int(minutes or 0) * 60
    seconds += int(rest or 0)
    if sign == "-":
        return -seconds
    return seconds


def parse_rule_day(rule: str, year: int) -> int:
    """The instant that a rule names in a year, as if it were UTC.

    rule: 'M3.5.0/2' (month, week, weekday), 'J60' (never counts 29 February) or '59' (counts it);
        the time of day follows after a slash.

    Raises ValueError.
    """
    day, _, clock = rule.partition("/")
    match = re.match(r"(?:M([1-9]|1[0-2])\.([1-5])\.([0-6])|(J?)([0-9]{1,3}))\Z", day, re.A)
    if not match:
        raise ValueError("not a day")
    seconds = parse_rule_clock(clock or "2")
    month, week, weekday, julian, number = match.groups()
    if month:
        first_month = int(month)
        days = weekday_in_month(year, first_month, int(week), int(weekday))
    else:
        first_month = 1
        days = day_in_year(year, int(number), bool(julian))
    midnight = calendar.timegm((year, first_month, 1, 0, 0, 0))
    return midnight + DAY * days + seconds


def weekday_in_month(year: int, month: int, week: int, weekday: int) -> int:
    """The day of the month, from 0 on, of its first to fourth Sunday (weekday 0), Monday ...; week
    5 is the last one."""
    first, length = calendar.monthrange(year, month)  # Monday is 0 here, Sunday in the rule
    day = (weekday - first - 1) % 7
    day += 7 * (week - 1)
    if day >= length:
        day -= 7
    return day


def day_in_year(year: int, number: int, julian: bool) -> int:
    """The day of the year, from 0 on. `julian` days count from 1 and leave out 29 February. Raises
    ValueError."""
    if not julian:
        if number > 365:
            raise ValueError("not a day")
        return number
    if not 1 <= number <= 365:
        raise ValueError("not a day")
    if number >= 60 and calendar.isleap(year):  # 1 March is day 60
        return number
    return number - 1


def same_zone(first: bytes, second: bytes, when: int) -> bool:
    """Do two zone files agree, day by day, for the year from `when` on?"""
    if first == second:
        return True
    try:
        for instant in range(when, when + 366 * DAY, DAY):
            if zone_offset(first, instant).east != zone_offset(second, instant).east:
                return False
    except ValueError:
        return False
    return True


def zone_of_link(target: str) -> str:
    """'Asia/Tokyo' of the text of a link to its file, '' where that is none."""
    if "zoneinfo/" not in target:
        return ""
    path = target.rpartition("zoneinfo/")[2]
    # These two folders hold all zones once more, without and with leap seconds.
    name = re.sub(r"^(?:posix|right)/", "", path)
    if not re.match(ZONE_NAME, name, re.A):
        return ""
    return name


def format_span(seconds: float) -> str:
    """'8 hours', '5 h 30 min', '90 s'."""
    size = int(abs(seconds) + 0.5)
    if size < 3600:
        return "%d s" % size
    if size == 3600:
        return "1 hour"
    if size % 3600 == 0:
        return "%d hours" % (size // 3600)
    minutes = size % 3600 // 60
    return "%d h %d min" % (size // 3600, minutes)


def format_utc_offset(east: Optional[int]) -> str:
    """'+0800' of seconds, '?' where they are not known."""
    if east is None:
        return "?"
    sign = "+"
    if east < 0:
        sign = "-"
    hours, rest = divmod(abs(east), 3600)
    return "%s%02d%02d" % (sign, hours, rest // 60)


# The host's zone


# A zone file for UTC of version 1: no change, one type, four letters.
UTC_FILE = (
    b"TZif"
    + bytes(16)
    + struct.pack(">6L", 0, 0, 0, 0, 1, 4)
    + bytes(6)  # the type: no offset, no summer time, the abbreviation at 0
    + b"UTC\0"
)


def zone_data(name: str, root: str = "") -> bytes:
    """The host's own file of a zone. Raises UsageError where there is none of that name.

    root: a folder in which the host's files lie, '' for /.
    """
    try:
        if not re.match(ZONE_NAME, name, re.A):
            raise ValueError("not a name")
        data = read_all(root + ZONEINFO + "/" + name, ZONE_MAX)
        zone_offset(data, 0)
        return data
    except (OSError, ValueError):
        raise UsageError(
            "this host knows no time zone %s" % name,
            "ls -R %s shows its zones, such as Asia/Shanghai or Etc/UTC" % ZONEINFO,
        ) from None


def find_zone_data(name: str, root: str = "") -> Optional[bytes]:
    """zone_data, None where there is none of that name."""
    try:
        return zone_data(name, root)
    except UsageError:
        return None


def host_localtime(root: str = "") -> bytes:
    """The zone file that rules the host; one for UTC where there is none, as glibc takes it."""
    try:
        return read_all(root + LOCALTIME, ZONE_MAX)
    except OSError:
        return UTC_FILE


def named_zones(root: str) -> List[str]:
    """What the host calls its zone: by the link, by /etc/timezone and by TZ. These may differ, and
    may be no names."""
    names = []
    link = suppress_errors(os.readlink, root + LOCALTIME)
    if link is not None:
        names.append(zone_of_link(link))
    text = suppress_errors(read_host_text, root + TIMEZONE)
    if text is not None:
        names.append(text.strip())
    variable = os.environ.get("TZ", "")
    names.append(variable.lstrip(":"))
    return names


def installed_zones(root: str) -> Iterator[str]:
    """The names of all zones of the host, those of zone.tab first: of the five names that
    Asia/Shanghai has, it lists this one."""
    base = root + ZONEINFO
    table = suppress_errors(read_host_text, base + "/zone.tab")
    if table is not None:
        # country, coordinates, name
        yield from re.findall(r"(?m)^[A-Z]{2}\t\S+\t(\S+)", table)
    for folder, _, files in os.walk(base):
        for name in sorted(files):
            path = os.path.join(folder, name)
            yield os.path.relpath(path, base)


def host_zone(root: str = "") -> str:
    """The name of the host's zone. Raises DockfixError where no name is found."""
    now = int(time.time())
    data = host_localtime(root)
    # What the host calls it, where that zone agrees with its clock.
    for name in named_zones(root):
        candidate = find_zone_data(name, root)
        if candidate is not None and same_zone(candidate, data, now):
            return name
    # The zone whose file has the same bytes: two zones that agree this year may differ later.
    for name in installed_zones(root):
        if find_zone_data(name, root) == data:
            return name
    # UTC, which may have no file of its own.
    for name in ("Etc/UTC", "UTC"):
        candidate = find_zone_data(name, root)
        if candidate is not None and same_zone(candidate, data, now):
            return name
    raise DockfixError(
        "the name of this host's time zone is not found (%s is no file of %s)"
        % (LOCALTIME, ZONEINFO),
        "--zone NAME",
    )


# The clock inside a container, for clock and faketime


class Clock(NamedTuple):
    """What `date` inside a container shows. Its second passes somewhere in the call, so the clock
    is ahead of the host's by between `least` and `most` seconds."""

    least: float
    most: float
    east: int  # seconds east of UTC

    def middle(self) -> float:
        """How far it is ahead, in seconds: the best guess."""
        return (self.least + self.most) / 2

    def uncertainty(self) -> float:
        """By how many seconds the best guess may be wrong, each way."""
        return (self.most - self.least) / 2


class DateAnswer(NamedTuple):
    """What `date "+%s %z"` prints."""

    seconds: int  # since 1970
    east: int  # seconds east of UTC


def parse_date_answer(output: bytes) -> Optional[DateAnswer]:
    """The time in '1700000000 +0530', None for another text."""
    match = re.match(rb"(-?[0-9]{1,15}) ([+-])([0-9]{2})([0-9]{2})\s*\Z", output)
    if not match:
        return None
    seconds, sign, hours, minutes = match.groups()
    east = int(hours) * 3600 + int(minutes) * 60
    if sign == b"-":
        east = -east
    return DateAnswer(int(seconds), east)


def format_no_exec(container: Container) -> str:
    """Why no command can run in a container, for messages."""
    if container.paused:
        return "it is paused"
    if container.restarting:
        return "it is restarting"
    return "it is not running"


def read_clock(
    host: Host, container: Container, env: Sequence[str] = (), quiet: bool = False
) -> Clock:
    """The clock inside a container, by one `date`.

    env: variables, set through the program env (docker exec -e came with 17.05).
    quiet: a line on stderr is a fault.

    Raises MethodUnavailable, ContainerGone.
    """
    if not can_exec(container):
        raise MethodUnavailable(format_no_exec(container))
    argv = ["date", "+%s %z"]
    if env:
        argv = ["env", *env, *argv]
    began = time.time()
    answer = query(host, "exec", container.id, *argv, limit=4096, enough=4096)
    ended = time.time()
    if answer.rc and is_gone_now(host, container.id, answer.text()):
        raise ContainerGone
    shown = parse_date_answer(answer.out)
    is_clean = not (quiet and answer.err)
    if shown and answer.rc == 0 and is_clean:
        # The second that it shows had begun, and had not ended, at one instant of the call.
        least = shown.seconds - ended
        most = shown.seconds + 1 - began
        return Clock(least, most, shown.east)
    if answer.timed_out:
        raise MethodUnavailable("no answer in %g s" % host.timeout)
    if answer.rc in (126, 127) and not quiet:
        raise MethodUnavailable("there is no `date` inside that runs")
    raise MethodUnavailable("date: " + first_line(answer))


# The zone of a container


class Zone(NamedTuple):
    """The zone that TZ or the files of a container name."""

    name: str
    east: Optional[int]  # seconds east of UTC now, None where it is not known
    lost: bool = False  # the name has no data, so that programs fall back to UTC


def read_tz(container: Container) -> Optional[str]:
    """The container's variable TZ without its colon. None where the file rules, also by
    TZ=:/etc/localtime."""
    value = None
    for variable in container.env:
        if variable.startswith("TZ="):
            value = variable[len("TZ=") :].lstrip(":")
    if value == LOCALTIME:
        return None
    return value


def format_zone_source(tz: Optional[str], localtime: Member) -> str:
    """What names the zone: TZ, else the link /etc/localtime, else only that it is a file."""
    if tz is not None:
        return tz
    if localtime.kind != "link":
        return "a file"
    return zone_of_link(localtime.link) or localtime.link


def container_zone(host: Host, container: Container) -> Zone:
    """The zone by TZ, else by /etc/localtime, as the container's C library reads them. Raises
    MethodUnavailable, Refused, ContainerGone."""
    tz = read_tz(container)
    now = int(time.time())
    path = LOCALTIME
    if tz:
        path = posixpath.join(ZONEINFO, tz)
    # The link itself is wanted of /etc/localtime, for its text is the zone's name.
    member = read_member(host, container, path, ZONE_MAX, tz is not None)
    # An empty TZ, and no file at all, mean UTC.
    if tz == "" or (tz is None and member.kind == "absent"):
        return Zone("UTC", 0)
    name = format_zone_source(tz, member)
    if member.kind == "link":
        member = read_member(host, container, LOCALTIME, ZONE_MAX, True)
    try:
        return Zone(name, zone_offset(member.data, now).east)
    except ValueError:
        pass  # TZ may be a rule in place of a name
    try:
        return Zone(name, posix_offset(tz or "", now).east)
    except ValueError:
        return Zone(name, 0, lost=True)


def is_faked(host: Host, container: Container) -> bool:
    """Is libfaketime set up, by the container's variables or by its ld.so.preload?"""
    preload = read_member(host, container, "/etc/ld.so.preload")
    if b"faketime" in preload.data:
        return True
    for variable in container.env:
        if variable.startswith("FAKETIME="):
            return True
        if variable.startswith("LD_PRELOAD=") and "faketime" in variable:
            return True
    return False


# Judging a clock


IN_SYNC = "in sync"
CANNOT_TELL = "cannot tell"
FAKED = "shifted by libfaketime"
NO_DATA = "no tzdata"
# The fields of a row of which nothing was read.
NO_CLOCK = {
    "verdict": CANNOT_TELL,
    "zone": None,  # its name
    "utc_offset": None,  # seconds east of UTC
    "offset": None,  # seconds by which its clock is ahead of the host's
    "uncertainty": None,  # seconds that `offset` may be wrong, each way
    "how": None,  # 'date', or 'files' where no date could run
    "remedy": "",  # a command that can be pasted
}  # type: Dict[str, object]
# The %s stands for the containers' names.
CLOCK_ADVICE = "docker inspect -f '{{.Name}} {{.State.Status}} {{.Config.Env}} {{.Mounts}}' %s"
ZONE_ADVICE = "python3 dockfix.py timezone %s"


class ClockVerdict(NamedTuple):
    """What `clock` says of one container."""

    verdict: str
    remedy: str  # a command with a %s for the names, '' where all is well
    msg: str


class ClockReading(NamedTuple):
    """What `clock` has read of one container, and what follows."""

    zone: str  # its name
    east: Optional[int]  # seconds east of UTC, None where it is not known
    clock: Optional[Clock]  # None where it was not read
    verdict: ClockVerdict
    msg: str


UNREAD = ClockVerdict(CANNOT_TELL, CLOCK_ADVICE, "")  # of a container that could not be looked at


def clock_skew(clock: Clock, max_skew: float) -> float:
    """By how many seconds a clock is ahead, 0.0 where it is within the limit. It is beyond only
    where no instant of the call would be within."""
    if clock.least > max_skew or clock.most < -max_skew:
        return clock.middle()
    return 0.0


def format_skew(skew: float) -> str:
    """'90 s ahead' of seconds."""
    direction = "behind"
    if skew > 0:
        direction = "ahead"
    return "%s %s" % (format_span(skew), direction)


def format_zone_difference(east: Optional[int], host_east: int) -> str:
    """'8 hours behind the host', '' where the UTC offsets (seconds) are the same or one is not
    known."""
    if east is None or east == host_east:
        return ""
    direction = "ahead of"
    if east < host_east:
        direction = "behind"
    return "%s %s the host" % (format_span(east - host_east), direction)


def judge_clock(
    host: Host,
    container: Container,
    clock: Optional[Clock],
    zone: Zone,
    zone_difference: str,
    max_skew: float,
) -> ClockVerdict:
    """The verdict of one container.

    clock: None where it could not be read.
    zone_difference: from format_zone_difference.
    max_skew: in seconds.
    """
    skew = 0.0
    if clock:
        skew = clock_skew(clock, max_skew)
    is_suspect = skew != 0.0 or clock is None
    if is_suspect and is_faked(host, container):
        msg = "by how much is not known"
        if clock:
            msg = format_skew(skew)
        return ClockVerdict(FAKED, "python3 dockfix.py faketime --undo %s", msg)
    if skew:
        msg = (
            "its clock is %s, and nothing of libfaketime is seen: another kernel, or the engine is"
            " on another host" % format_skew(skew)
        )
        return ClockVerdict(CANNOT_TELL, CLOCK_ADVICE, msg)
    if clock is None and zone.east is None:
        return UNREAD
    if zone_difference:
        return judge_zone(read_tz(container), zone)
    if clock is None:
        return ClockVerdict(IN_SYNC, "", "by its files")
    return ClockVerdict(IN_SYNC, "", "")


def judge_zone(tz: Optional[str], zone: Zone) -> ClockVerdict:
    """The verdict of a container whose UTC offset is not the host's; `tz` is from read_tz."""
    if tz is None:
        if not zone.lost:
            return ClockVerdict("other zone", ZONE_ADVICE, "")
        msg = "its %s leads to no zone file" % LOCALTIME
        return ClockVerdict(NO_DATA, ZONE_ADVICE, msg)
    # A name that the host knows can be given its data; a wrong name cannot.
    if zone.lost and find_zone_data(tz) is not None:
        remedy = "python3 dockfix.py timezone --zone %s %%s" % tz
        return ClockVerdict(NO_DATA, remedy, "TZ=%s has no data inside" % tz)
    remedy = CLOCK_ADVICE + "    # re-create it with -e TZ=ZONE"
    return ClockVerdict("TZ variable wins", remedy, "TZ=%s" % tz)


def look_at_clock(
    host: Host, container: Container, host_east: int, max_skew: float
) -> ClockReading:
    """Reads one container, by the files that name the zone, and by one exec where `date` can run.

    host_east: the host's UTC offset in seconds.
    max_skew: in seconds.

    Raises ContainerGone.
    """
    zone = Zone("unknown", None)
    clock = None
    zone_fault, clock_fault = "", ""
    try:
        zone = container_zone(host, container)
    except (MethodUnavailable, Refused) as err:
        zone_fault = "its zone was not read: %s" % err
    try:
        clock = read_clock(host, container)
    except MethodUnavailable as err:
        clock_fault = "its clock was not read: %s" % err
    east = zone.east
    if clock:
        east = clock.east
    zone_difference = format_zone_difference(east, host_east)
    verdict = judge_clock(host, container, clock, zone, zone_difference, max_skew)
    notes = [verdict.msg, zone_difference, clock_fault, zone_fault]
    msg = "; ".join(note for note in notes if note)
    return ClockReading(zone.name, east, clock, verdict, msg)


# The command


def clock_row(target: Target, reading: ClockReading) -> ResultRow:
    """The row of one container."""
    verdict = reading.verdict.verdict
    fields = dict(NO_CLOCK)
    fields["verdict"] = verdict
    fields["zone"] = reading.zone
    fields["utc_offset"] = reading.east
    fields["how"] = "files"
    if reading.clock:
        fields["how"] = "date"
        # + 0.0 makes 0.0 of -0.0
        fields["offset"] = round(reading.clock.middle(), 1) + 0.0
        fields["uncertainty"] = round(reading.clock.uncertainty(), 1)
    if verdict != IN_SYNC:
        fields["remedy"] = reading.verdict.remedy % quote_word(target.name)
    status = "unchanged"
    if verdict == CANNOT_TELL:
        status = "unknown"
    return row_for(target, status, reading.msg, fields)


def unread_clock_row(row: ResultRow) -> ResultRow:
    """The row of a container at which the look ended with an exception, with the remedy."""
    if row.status == "skipped":
        return row
    fields = dict(NO_CLOCK)
    fields["remedy"] = UNREAD.remedy % quote_word(row.target)
    return ResultRow(row.target, row.id, row.status, row.msg, fields)


def clock_findings(survey: Survey[ClockReading]) -> List[Finding]:
    """One finding for the containers of the same verdict and remedy, for all that are not in
    sync."""
    groups = {}  # type: Dict[Tuple[str, str], List[str]]
    for target in survey.targets:
        verdict = UNREAD
        if target.id in survey.facts:
            verdict = survey.facts[target.id].verdict
        elif survey.rows[target.id].status == "skipped":
            continue
        if verdict.verdict != IN_SYNC:
            group = (verdict.verdict, verdict.remedy)
            groups.setdefault(group, []).append(target.name)
    findings = []
    for title, remedy in sorted(groups):
        names = groups[title, remedy]
        findings.append(
            Finding(
                id="clock-" + title.replace(" ", "-").lower(),
                severity="warning",
                text="%s: %s" % (title, ", ".join(names)),
                remedy=remedy % quote_line(names),
            )
        )
    return findings


def run_clock(host: Host, opts: Options, report: dict) -> None:
    """Compares the containers' clocks and zones with the host's."""
    targets = choose_containers(host, opts)
    try:
        name = host_zone()
    except DockfixError:
        name = "unknown"
    try:
        host_east = zone_offset(host_localtime(), int(time.time())).east
    except ValueError:
        raise EnvironmentFault(
            "this host's own %s is no time zone file" % LOCALTIME, "ls -l %s" % LOCALTIME
        ) from None

    def look(container: Container) -> ClockReading:
        return look_at_clock(host, container, host_east, opts.max_skew)

    survey = survey_containers(host, opts, "clock", targets, look, NO_CLOCK)
    rows = []
    for target in targets:
        if target.id in survey.facts:
            rows.append(clock_row(target, survey.facts[target.id]))
        else:
            rows.append(unread_clock_row(survey.rows[target.id]))
    report_rows(report, rows)
    report["host"] = {"zone": name, "utc_offset": host_east}
    findings = clock_findings(survey)
    for finding in findings:
        add_finding(report, finding)
    # `clock` tells; only --check makes an exit code of it.
    report["exit_code"] = 0
    if opts.check and findings:
        report["exit_code"] = 3


###############################################################################
# 12. timezone
###############################################################################

# Gives containers a zone: its data below /usr/share/zoneinfo, the link /etc/localtime, the name in
# /etc/timezone. So glibc, musl and Java all find it, in images without tzdata too.
#
# It never writes through a mount, and it writes nothing before what was there is noted on the disk,
# for --undo. A container whose variable TZ says another zone is refused: the variable wins over
# every file (tzset(3)), and only a new container can have another one.


class ZoneRequest(NamedTuple):
    """The options of one run, as typed values."""

    name: str  # '' with --undo
    data: bytes  # the host's file of that zone, b'' with --undo
    undo: bool
    restart: bool


class FileChange(NamedTuple):
    """What is to be written, and what is at the same paths now."""

    members: Tuple[Member, ...]  # folders first, the link last
    former: Tuple[Member, ...]


class ZonePlan(NamedTuple):
    """What is to be done in one container."""

    container: Container  # as it was at the look
    change: FileChange  # empty where its processes only are to be restarted
    undo: Optional[Undo]  # to be put back, in place of a change


NO_FILE_CHANGE = FileChange((), ())


def format_lasting(name: str) -> List[str]:
    """How new containers get the zone, in images without tzdata too: by docker run, or by lines of
    a Dockerfile."""
    path = ZONEINFO + "/" + name
    return [
        "docker run -e TZ=%s -v %s:%s:ro IMAGE" % (name, path, path),
        "# in the Dockerfile, after: cp %s ." % path,
        "COPY %s %s" % (posixpath.basename(name), path),
        "ENV TZ=%s" % name,
    ]


def zone_fields(request: ZoneRequest, restart: str = "no") -> Dict[str, object]:
    """The fields of a row.

    zone: the name that was asked for, None with --undo.
    restart: 'no', 'needed' or 'done'.
    lasting: from format_lasting.
    """
    fields = {"zone": None, "restart": restart, "lasting": []}  # type: Dict[str, object]
    if request.name:
        fields["zone"] = request.name
        fields["lasting"] = format_lasting(request.name)
    return fields


def format_left_behind(container: Container, left: Sequence[str]) -> str:
    """The note on folders that undo could not remove, and what would remove them."""
    if container.running:
        reason = "only root on the engine's host can remove them"
        remedy = "undo once more there"
    else:
        reason = "it does not run"
        remedy = "start it and undo once more"
    return "left behind, for %s: %s; %s" % (reason, ", ".join(left), remedy)


# Looking


def plan_zone(host: Host, request: ZoneRequest, container: Container) -> ZonePlan:
    """What is to be done in one container. Raises Unchanged, ContainerGone, Refused,
    MethodUnavailable."""
    undo = load_undo(host, "timezone", container.id)
    if request.undo:
        if undo is None:
            raise Unchanged("no change of its zone is recorded")
        return ZonePlan(container, NO_FILE_CHANGE, undo)
    path = ZONEINFO + "/" + request.name
    require_settable_zone(container, request.name, (path, LOCALTIME, TIMEZONE))
    change = plan_zone_files(host, container, request, path)
    # Do its processes know the old zone only?
    is_outdated = False
    if undo and container.running:
        is_outdated = parse_instant(container.started) < parse_instant(undo.changed)
    if change.members or (is_outdated and request.restart):
        return ZonePlan(container, change, None)
    if is_outdated:
        msg = "its processes started before the change: --restart"
        raise Unchanged(msg, zone_fields(request, "needed"))
    raise Unchanged("")


def require_settable_zone(container: Container, name: str, paths: Sequence[str]) -> None:
    """Raises Refused where files cannot set the zone: `paths` are those that would be written."""
    # No variable wins over the files.
    tz = read_tz(container)
    if tz is not None and tz not in (name, ZONEINFO + "/" + name):
        raise Refused(
            "its variable TZ=%s wins over every file, and is part of it: re-create the container"
            " with docker run -e TZ=%s" % (tz, name)
        )
    # The files belong to this container alone, and can be written.
    refusal = files_refusal(container, paths)
    if refusal:
        raise Refused(
            "%s: re-create the container without that, with docker run -e TZ=%s" % (refusal, name)
        )
    # No mount that docker inspect does not show lies over them.
    refuse_hidden_mounts(container, paths)


def require_replaceable(members: Iterable[Member]) -> None:
    """Raises Refused for what --undo could not put back: a folder, a device."""
    for member in members:
        if member.kind not in ("file", "link", "absent"):
            raise Refused("its %s is neither file nor link" % member.path)


def plan_zone_files(
    host: Host, container: Container, request: ZoneRequest, path: str
) -> FileChange:
    """The files that set the zone; none where all is well. A zone file of the container's own that
    agrees with the host's for a year stays.

    path: of the zone's file in the container.

    Raises Refused, MethodUnavailable, ContainerGone.
    """
    zone_file = read_member(host, container, path, ZONE_MAX)
    name_file = read_member(host, container, TIMEZONE, ZONE_MAX)
    link = read_member(host, container, LOCALTIME, ZONE_MAX)
    require_replaceable([zone_file, name_file, link])
    former = []
    if not has_zone_data(host, container, request, zone_file):
        former.append(zone_file)
    is_linked = is_link_to(link, path)
    # Many images have no /etc/timezone: with the right link none is added.
    is_named = name_file.data.strip() == os_bytes(request.name)
    is_name_needed = not is_linked or name_file.kind != "absent"
    if is_name_needed and not is_named:
        former.append(name_file)
    if not is_linked:
        former.append(link)
    if not former:
        return NO_FILE_CHANGE
    return build_zone_files(host, container, request, former)


def has_zone_data(
    host: Host, container: Container, request: ZoneRequest, zone_file: Member
) -> bool:
    """Does the container's own file of the zone agree with the host's? `zone_file` may be a link
    to it."""
    if zone_file.kind == "link":
        zone_file = read_member(host, container, zone_file.path, ZONE_MAX, True)
    return same_zone(zone_file.data, request.data, int(time.time()))


def is_link_to(link: Member, path: str) -> bool:
    """Is this a link in /etc that leads to the path?"""
    if link.kind != "link":
        return False
    return posixpath.normpath(posixpath.join("/etc", link.link)) == path


def build_zone_files(
    host: Host, container: Container, request: ZoneRequest, former: Sequence[Member]
) -> FileChange:
    """The new file for each of the former ones, after the folders that are missing."""
    new = NewMembers(host, container)
    former_paths = [member.path for member in former]
    folders = missing_folders(host, container, former_paths)
    members = [new.folder(folder) for folder in folders]
    absent = [Member(folder, "absent") for folder in folders]
    for path in former_paths:
        if path == LOCALTIME:
            members.append(new.link(path, ZONEINFO + "/" + request.name))
        elif path == TIMEZONE:
            members.append(new.file(path, os_bytes(request.name) + b"\n"))
        else:
            members.append(new.file(path, request.data))
    return FileChange(
        members=tuple(members),
        former=(*absent, *former),
    )


# Changing


def set_zone(host: Host, request: ZoneRequest, target: Target, plan: ZonePlan) -> ResultRow:
    """Writes or undoes, then restarts where that is asked for. Returns the row."""
    container = plan.container
    notes = []
    if plan.undo:
        left = restore_undo(host, container, plan.undo)
        if left:
            notes.append(format_left_behind(container, left))
        else:
            drop_undo(host, "timezone", container.id)
    elif plan.change.members:
        write_zone(host, plan)
    if not container.running:
        return row_for(target, "changed", "; ".join(notes), zone_fields(request))
    if not request.restart:
        notes.append("running programs may keep the old zone until --restart")
        return row_for(target, "changed", "; ".join(notes), zone_fields(request, "needed"))
    try:
        run_or_fail(host, "restart", container.id)
    except MethodUnavailable as err:
        status = "failed"
        if isinstance(err, NoAnswer):
            status = "unknown"
        msg = "its files are done, but %s" % err
        return row_for(target, status, msg, zone_fields(request, "needed"), partial=True)
    notes.append("restarted")
    return row_for(target, "changed", "; ".join(notes), zone_fields(request, "done"))


def write_zone(host: Host, plan: ZonePlan) -> None:
    """Writes the files, or leaves the container as it was.

    Raises Refused where nothing was written, NoAnswer where it is not known, MethodUnavailable with
    the words whether all is as it was.
    """
    container = plan.container
    is_first = load_undo(host, "timezone", container.id) is None
    undo = save_undo(host, "timezone", container, plan.change.former)
    try:
        write_members(host, container, plan.change.members, plan.change.former)
    except NoAnswer as err:
        raise NoAnswer("%s; timezone --undo puts back what was there" % err) from None
    except Refused:
        if is_first:
            drop_undo(host, "timezone", container.id)
        raise
    except MethodUnavailable as err:
        left = undo_zone_write(host, container, undo, plan.change.former)
        if left:
            raise MethodUnavailable(
                "%s; not put back: %s: try timezone --undo" % (err, ", ".join(left))
            ) from None
        if is_first:
            drop_undo(host, "timezone", container.id)
        raise MethodUnavailable("%s; all is as it was" % err) from None


def undo_zone_write(
    host: Host, container: Container, undo: Undo, former: Tuple[Member, ...]
) -> List[str]:
    """Puts back what was there before this run, not before the first change. Returns the paths that
    could not be put back."""
    try:
        return restore_undo(host, container, undo._replace(members=former))
    except (Refused, MethodUnavailable):
        return [member.path for member in former]


# The command


def parse_timezone_options(opts: Options) -> ZoneRequest:
    """The options as typed values. Raises UsageError for two that exclude each other, and for a
    zone that the host does not know."""
    if [opts.undo, opts.host, opts.zone is not None].count(True) > 1:
        raise UsageError("say one of --zone NAME, --host (the default) and --undo")
    if opts.undo:
        return ZoneRequest(name="", data=b"", undo=True, restart=opts.restart)
    name = opts.zone
    if name is None:
        name = host_zone()
    return ZoneRequest(name, zone_data(name), undo=False, restart=opts.restart)


def format_timezone_options(request: ZoneRequest) -> List[str]:
    """The options of this run, for the script of a dry run."""
    options = ["--zone", request.name]
    if request.undo:
        options = ["--undo"]
    if request.restart:
        options += ["--restart", "--yes"]
    return options


def run_timezone(host: Host, opts: Options, report: dict) -> None:
    """Looks, prints the script of a dry run, asks about restarts, notes what was there, writes,
    reads back, restarts."""
    request = parse_timezone_options(opts)
    require_no_half_way(host)
    targets = choose_containers(host, opts)
    if not opts.dry_run:
        take_lock(host)
        # Two runs would note each other's changes as what was there before.
        take_lock(host, True, name="undo.lock")
    fields = zone_fields(request)

    def look(container: Container) -> ZonePlan:
        return plan_zone(host, request, container)

    def work(target: Target, plan: ZonePlan) -> ResultRow:
        return set_zone(host, request, target, plan)

    survey = survey_containers(host, opts, "timezone: looking", targets, look, fields)
    if opts.dry_run:
        options = format_timezone_options(request)
        plan_own_calls(opts, report, survey, options, fields)
        return
    if request.restart:
        containers = [plan.container for plan in survey.all_facts()]
        confirm_restarts(opts, containers)
    rows = run_over_survey(host, opts, survey, work, fields)
    report_rows(report, rows)
    drop_old_zone_records(host)
    if not opts.json and not opts.quiet:
        tell_what_lasts(request)


def drop_old_zone_records(host: Host) -> None:
    """Drops the undo records of containers that are no more. Docker is not asked where there is
    none."""
    folder = os.path.join(host.state, "undo")
    if not os.path.isdir(os_bytes(folder)):
        return
    ids = [target.id for target in list_containers(host)]
    drop_undo_if_void(host, ids)


def tell_what_lasts(request: ZoneRequest) -> None:
    """A zone that is written into a container ends with it: how the next one gets it."""
    if request.undo:
        return
    say("what lasts, for new containers:")
    for line in format_lasting(request.name):
        say(line)


###############################################################################
# 13. faketime
###############################################################################

# Shifts the clock of containers through libfaketime. The library is copied into the container,
# /etc/ld.so.preload names it, and /etc/faketimerc holds the offset, so that every program that is
# started from then on loads it. Running programs that have the library follow by themselves; the
# others follow after a restart.
#
# It must never leave a container that does not start: the library is tried in commands of its own
# before a file that others read names it, the container is watched afterwards, and what does not do
# well is undone. What undo needs is on the disk before the first write. Nothing but whole seconds
# is ever written to /etc/faketimerc: a line that libfaketime does not understand ends every program
# that reads it.
#
# Facts: ELF files as in elf(5) and the Linux Standard Base (symbol versions); ld.so.preload as in
# ld.so(8), which musl does not read; libfaketime's README and source for its files and variables
# and for what each release does.


# Offsets and instants


LAST_INSTANT = 253402300799  # 9999-12-31 23:59:59 UTC
WALL_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-5][0-9]\Z"


def parse_offset(spec: str) -> int:
    """Whole seconds of '+8h', '-1.5d', '90m': sign, number, one unit of s m h d y (365 days).

    Raises UsageError for anything else: libfaketime itself takes +1w for one second and +1h30m for
    one minute.
    """
    match = re.match(r"([+-]?)([0-9]{1,30})(?:\.([0-9]{1,9}))?([smhdy])\Z", spec, re.A)
    if not match:
        raise UsageError(
            "not an offset: %s" % spec,
            "a sign, one number and one unit of s, m, h, d, y (365 days): +8h, -1.5d, +90m; "
            "a week is +7d, 1h30m is +90m or +1.5h",
        )
    sign, whole, fraction, unit = match.groups()
    if fraction is None:
        fraction = ""
    # Integers only: a float would lose seconds of a long offset. Halves are rounded up.
    scale = 10 ** len(fraction)
    twice = 2 * int(whole + fraction) * UNITS[unit]
    if 0 < twice < scale:
        raise UsageError(
            "%s is less than half a second: only whole seconds can be set" % spec, "--offset +1s"
        )
    seconds = (twice + scale) // (2 * scale)
    if sign == "-":
        return -seconds
    return seconds


def require_instant(instant: int, option: str) -> None:
    """Raises UsageError for a clock that would stand where programs fail.

    instant: where it would stand, in seconds since 1970.
    option: what asks for it, for the message.
    """
    if 0 <= instant <= LAST_INSTANT:
        return
    reason = "after the year 9999"
    if instant < 0:
        reason = "before 1970, where time(2) is negative and programs fail"
    raise UsageError(
        "%s: the clock would stand %s" % (option, reason),
        "an instant from 1970-01-01 00:00:00 to 9999-12-31 23:59:59 UTC",
    )


def parse_wall(text: str) -> int:
    """'YYYY-MM-DD HH:MM:SS' in seconds since 1970, as if it were UTC. Raises UsageError."""
    try:
        if not re.match(WALL_TIME, text, re.A):
            raise ValueError("another form")
        return calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M:%S"))
    except ValueError:
        raise UsageError(
            "not a time: %s" % text, "--at 'YYYY-MM-DD HH:MM:SS' --zone NAME"
        ) from None


def wall_instants(zone: bytes, wall: int) -> List[int]:
    """The instants at which the clocks of a zone show a wall time: none where the clocks skip it,
    two where it comes twice.

    zone: the data of its file.
    wall: from parse_wall.
    """
    # An offset that holds at the instant holds a day before, a day after, or now.
    offsets = set()
    for shift in (-DAY, 0, DAY):
        near = min(max(0, wall + shift), LAST_INSTANT)
        offsets.add(zone_offset(zone, near).east)
    instants = []
    for east in offsets:
        if zone_offset(zone, wall - east).east == east:
            instants.append(wall - east)
    return sorted(instants)


def find_wall_instant(wall_time: str, zone: str) -> int:
    """The instant (seconds since 1970) at which the clocks of a zone show a wall time. Raises
    UsageError where there is none, or two."""
    wall = parse_wall(wall_time)
    # Zones are known from 1970 on only.
    require_instant(min(wall + DAY, LAST_INSTANT), "--at '%s'" % wall_time)
    instants = wall_instants(zone_data(zone), wall)
    if not instants:
        raise UsageError(
            "%s never comes in %s: the clocks are changed then" % (wall_time, zone),
            "an hour earlier or later",
        )
    if len(instants) > 1:
        hints = []
        for instant in instants:
            utc = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(instant))
            hints.append("--at '%s' --zone UTC" % utc)
        raise UsageError(
            "%s comes twice in %s: the clocks are changed then" % (wall_time, zone),
            "; ".join(hints),
        )
    return instants[0]


# ELF files: which library fits


class Elf(NamedTuple):
    """What decides whether a program or library fits (elf(5))."""

    bits: int
    machine: int
    interp: str  # the loader; '' in libraries and static programs
    go: bool  # made by Go, whose programs read the clock past any library
    needed: Tuple[str, ...] = ()  # the libraries it loads
    wants: Tuple[str, ...] = ()  # symbol versions that it needs of other libraries
    has: Tuple[str, ...] = ()  # symbol versions that it defines


class Segment(NamedTuple):
    """A program header: where a part of the file lies, and its address in memory."""

    kind: int
    offset: int
    address: int
    size: int


class ElfLayout(NamedTuple):
    """How the file of an ELF header is to be read."""

    bits: int
    order: str  # struct's letter for its byte order
    machine: int
    segments: List[Segment]
    end: int  # the file is at least as long


class ElfNames(NamedTuple):
    """The names in the dynamic section."""

    needed: Tuple[str, ...]
    wants: Tuple[str, ...]
    has: Tuple[str, ...]


class DynamicEntry(NamedTuple):
    """An entry of the dynamic section."""

    tag: int
    value: int


class Processor(NamedTuple):
    """A processor: its name in messages, and Debian's folder below /lib for its libraries."""

    name: str
    folder: str


# e_machine of elf(5)
MACHINES = {
    3: Processor("x86", "i386-linux-gnu"),
    21: Processor("ppc64", "powerpc64le-linux-gnu"),
    22: Processor("s390x", "s390x-linux-gnu"),
    40: Processor("arm", "arm-linux-gnueabihf"),
    62: Processor("x86-64", "x86_64-linux-gnu"),
    183: Processor("aarch64", "aarch64-linux-gnu"),
    243: Processor("riscv", "riscv64-linux-gnu"),
}
ELF_STEPS = 4096  # no honest table is longer; a hostile one may go round in a ring
SEGMENTS_MAX = 256
NAME_MAX = 256  # bytes of a library's name, or of a symbol version's
# p_type of elf(5)
PT_LOAD = 1
PT_DYNAMIC = 2
PT_INTERP = 3
PT_NOTE = 4
# d_tag of elf(5)
DT_NEEDED = 1
DT_STRTAB = 5
DT_VERNEED = 0x6FFFFFFE
DT_VERDEF = 0x6FFFFFFC


def parse_elf(data: bytes, whole: bool = True) -> Elf:
    """The facts of an ELF file.

    whole: False where `data` is the first part of a program; it has no names then.

    Raises ValueError for what is no ELF file, is cut short or contradicts itself.
    """
    is_of_known_form = data[4:5] in (b"\1", b"\2") and data[5:6] in (b"\1", b"\2")
    if data[:4] != b"\x7fELF" or not is_of_known_form:
        raise ValueError("not an ELF file")
    names = ElfNames((), (), ())
    try:
        layout = parse_elf_layout(data)
        if whole:
            if layout.end > len(data):
                raise ValueError("it is cut short")
            names = parse_elf_names(layout, data)
        loader = join_segments(layout, data, PT_INTERP)
        notes = join_segments(layout, data, PT_NOTE)
        return Elf(
            bits=layout.bits,
            machine=layout.machine,
            interp=loader.split(b"\0")[0].decode("ascii"),
            go=b"Go\0\0" in notes,
            needed=names.needed,
            wants=names.wants,
            has=names.has,
        )
    except (struct.error, LookupError, UnicodeDecodeError, OverflowError):
        raise ValueError("its tables contradict each other") from None


def parse_elf_layout(data: bytes) -> ElfLayout:
    """The header and the segments. Raises ValueError, struct.error, OverflowError."""
    order = ">"
    if data[5] == 1:
        order = "<"
    bits = 32
    header_form = "H8xII6x4H"
    segment_form = "III4xI12x"
    if data[4] == 2:
        bits = 64
        header_form = "H12xQQ6x4H"
        segment_form = "I4xQQ8xQ16x"
    header = struct.unpack_from(order + header_form, data, 18)
    machine, first_segment, sections, segment_size, segment_count = header[:5]
    section_size, section_count = header[5:]
    if segment_count > SEGMENTS_MAX:
        raise ValueError("it has too many segments")
    end = sections + section_size * section_count
    segments = []
    for number in range(segment_count):
        at = first_segment + segment_size * number
        fields = struct.unpack_from(order + segment_form, data, at)
        segment = Segment(*fields)
        segments.append(segment)
        end = max(end, segment.offset + segment.size)
    return ElfLayout(bits, order, machine, segments, end)


def join_segments(layout: ElfLayout, data: bytes, kind: int) -> bytes:
    """The content of all segments of a kind, at most 4 KiB of each."""
    content = b""
    for segment in layout.segments:
        if segment.kind == kind:
            size = min(segment.size, ELF_STEPS)
            content += data[segment.offset : segment.offset + size]
    return content


def parse_elf_names(layout: ElfLayout, data: bytes) -> ElfNames:
    """The names of the dynamic section. Raises ValueError, LookupError, struct.error,
    UnicodeDecodeError."""
    entries = parse_dynamic_section(layout, data)
    tables = {entry.tag: entry.value for entry in entries}
    needed = [entry.value for entry in entries if entry.tag == DT_NEEDED]
    wants = []  # type: List[int]
    if DT_VERNEED in tables:
        at = find_address(layout.segments, tables[DT_VERNEED])
        wants = parse_version_table(data, layout.order, at, "2xH4xII", "8xII")
    has = []  # type: List[int]
    if DT_VERDEF in tables:
        at = find_address(layout.segments, tables[DT_VERDEF])
        has = parse_version_table(data, layout.order, at, "6xH4xII", "II")

    def read_names(offsets: List[int]) -> Tuple[str, ...]:
        """All names lie in one table of strings; a file without names has none."""
        names = []
        for offset in offsets:
            at = find_address(layout.segments, tables[DT_STRTAB] + offset)
            name = data[at : at + NAME_MAX].split(b"\0")[0]
            names.append(name.decode("ascii"))
        return tuple(names)

    return ElfNames(
        needed=read_names(needed),
        wants=read_names(wants),
        has=read_names(has),
    )


def parse_dynamic_section(layout: ElfLayout, data: bytes) -> List[DynamicEntry]:
    """The entries of the dynamic section, [] without one. An entry of zeros ends it. Raises
    struct.error."""
    form = layout.order + "II"
    if layout.bits == 64:
        form = layout.order + "QQ"
    step = struct.calcsize(form)
    entries = []  # type: List[DynamicEntry]
    dynamic = [segment for segment in layout.segments if segment.kind == PT_DYNAMIC]
    if not dynamic:
        return entries
    start = dynamic[0].offset
    end = start + min(dynamic[0].size, step * ELF_STEPS)
    for at in range(start, end - step + 1, step):
        tag, value = struct.unpack_from(form, data, at)
        if tag == 0 and value == 0:
            break
        entries.append(DynamicEntry(tag, value))
    return entries


def find_address(segments: List[Segment], address: int) -> int:
    """Where in the file the byte of an address is. Raises LookupError where no segment has it."""
    for segment in segments:
        if segment.kind != PT_LOAD:
            continue
        if segment.address <= address < segment.address + segment.size:
            return segment.offset + address - segment.address
    raise LookupError("no segment holds this address")


def parse_version_table(
    data: bytes, order: str, at: int, entry_form: str, part_form: str
) -> List[int]:
    """The name offsets of a version table at `at`.

    order: struct's letter for the byte order.
    entry_form: struct's form of an entry: number of parts, first part, next entry.
    part_form: of a part: name, next part. Both next ones are distances, 0 at the last.

    Raises ValueError for a table that goes round in a ring, struct.error.
    """
    names = []
    steps_left = ELF_STEPS
    next_entry = 1
    while next_entry:
        count, first_part, next_entry = struct.unpack_from(order + entry_form, data, at)
        steps_left -= 1 + count
        if steps_left < 0:
            raise ValueError("its tables do not end")
        part_at = at + first_part
        for _ in range(count):
            name, next_part = struct.unpack_from(order + part_form, data, part_at)
            names.append(name)
            part_at += next_part
        at += next_entry
    return names


def glibc_number(version: str) -> List[int]:
    """[2, 31] of 'GLIBC_2.31', [] for a symbol version that is no release."""
    if not re.match(r"GLIBC_[0-9]{1,4}(\.[0-9]{1,4}){1,3}\Z", version):
        return []
    numbers = version[len("GLIBC_") :].split(".")
    return [int(number) for number in numbers]


def format_processor(elf: Elf) -> str:
    """'64-bit x86-64'."""
    name = "machine %d" % elf.machine
    if elf.machine in MACHINES:
        name = MACHINES[elf.machine].name
    return "%d-bit %s" % (elf.bits, name)


def elf_mismatch(library: Elf, libc: Elf) -> str:
    """Why a library cannot be loaded beside this libc.so.6, '' where nothing speaks against it.
    Symbol versions are compared, not releases: an old library made on a new system may fit."""
    # Both are for the same processor.
    if format_processor(library) != format_processor(libc):
        return "it is for %s, the container's libc for %s" % (
            format_processor(library),
            format_processor(libc),
        )
    # It is made for this C library.
    if "libc.so.6" not in library.needed:
        return "it is not built for glibc"
    # That one is new enough.
    newest = max([glibc_number(version) for version in libc.has], default=[])
    missing = []
    for version in library.wants:
        # Another library's own versions are not libc's to have.
        if not version.startswith("GLIBC_") or version in libc.has:
            continue
        number = glibc_number(version)
        if not number or number > newest:
            missing.append(version)
    if missing:
        return "it needs %s, the container's glibc ends at GLIBC_%s" % (
            max(missing, key=glibc_number),
            ".".join(map(str, newest)),
        )
    return ""


# What travels


class LibraryAge(NamedTuple):
    """How new a libfaketime is, by a variable that it reads."""

    variable: bytes  # in its file
    release: str  # for messages


# The newest first. The last one fits any file: it is no libfaketime.
RANKS = (
    LibraryAge(b"FAKETIME_FOLLOW_ABSOLUTE", "after 0.9.12"),
    LibraryAge(b"FAKETIME_DISABLE_SHM", "about 0.9.11"),
    LibraryAge(b"FAKETIME_FORCE_MONOTONIC_FIX", "0.9.10"),
    LibraryAge(b"/etc/faketimerc", "before 0.9.10"),
    LibraryAge(b"", "no libfaketime"),
)
# The newest that keeps a program alive which starts as root and goes on as another user.
RANK_FOR_ROOT_DROPPERS = 0
# The oldest that serves a new container by variables alone.
RANK_FOR_NEW_CONTAINERS = 1


class Library(NamedTuple):
    """A libfaketime of the host, or built in a container."""

    path: str
    data: bytes
    elf: Optional[Elf]  # None where the file is no ELF file
    rank: int  # its place in RANKS
    fault: str  # why it cannot serve, '' where it can


class ShiftRequest(NamedTuple):
    """The options of one run, as typed values."""

    action: str  # 'set', 'undo', 'status'
    seconds: int  # by how much the clock is to be ahead
    watch: float  # seconds
    at: Optional[str]  # the wall time of --at
    zone: Optional[str]  # the zone of --at, never None with it
    restart: bool
    step_running: bool
    libraries: List[Library]  # to choose from; [] where one is built in the container
    source: Dict[str, bytes]  # of libfaketime, by file name; {} where there are libraries


class FirstProgram(NamedTuple):
    """The first process of a container."""

    path: str  # '' where it is not known
    head: bytes  # the first part of its file
    drops_root: bool  # does it start as root and go on as another user?


class ProgramFile(NamedTuple):
    """A program in a container."""

    path: str
    head: bytes  # the first part of its file


class Libc(NamedTuple):
    """The C library of a container."""

    folder: str
    elf: Elf


class Needs(NamedTuple):
    """What a library must fit in a container."""

    libc: Libc
    drops_root: bool


class ShiftRecord(NamedTuple):
    """What the undo record holds beside the files."""

    done: bool  # False while a change is under way; it stays so where that was cut off
    offset: int  # seconds
    stopped: bool  # dockfix stopped the container, and has not seen it well since
    build: str  # a folder in the container in which a library is built, '' for none
    library: str  # path on the host


class Shift(NamedTuple):
    """One container as it is at the look."""

    container: Container
    undo: Optional[Undo]
    record: Optional[ShiftRecord]  # of the undo
    users: Dict[int, bool]  # from processes_of
    # Do its running programs use a libfaketime? None: cannot be seen
    preloaded: Optional[bool]


class ShiftPlan(NamedTuple):
    """A shift that is to be set in one container."""

    shift: Shift
    preload: Member  # ld.so.preload at the look
    rc: Member  # faketimerc at the look
    program: str  # path of the first process, '' where it is not known
    needs: Needs
    library: Optional[Library]  # None where it is yet to be built
    note: str  # for the user, about the first process


class ShiftUndo(NamedTuple):
    """A shift that is to be undone in one container."""

    shift: Shift
    undo: Undo
    record: ShiftRecord


class OutputCount(NamedTuple):
    """In how many seconds of each half of --watch a container wrote to its log."""

    early: int
    late: int


PRELOAD_PATH = "/etc/ld.so.preload"
FAKETIMERC_PATH = "/etc/faketimerc"
# The library in the container, with a part of its sum; and what marks a line of ld.so.preload as
# dockfix's.
PRIVATE = "/usr/lib/libfaketime-dockfix-%s.so.1"
PRIVATE_FORM = b"/libfaketime-dockfix-"
PLAIN_OFFSET = rb"[+-][0-9]+(\.[0-9]+)?[smhdy]?\n?\Z"  # in a faketimerc that is not dockfix's
LIBRARY_MAX = 1 << 24  # bytes
LIBC_MAX = 1 << 25  # bytes
SOURCE_FILES_MAX = 100
SOURCE_FILE_MAX = 1 << 22  # bytes
LOG_MAX = 1 << 20  # bytes of a container's log that are read
# Static programs that do nothing but start others
INITS = ("tini", "tini-static", "docker-init", "dumb-init", "catatonit", "s6-svscan", "runsvdir")
USER_SWITCHERS = (
    rb"(?:^|[\s;&|(\"'/])"
    rb"(gosu|su-exec|setpriv|runuser|setuidgid|s6-setuidgid|chpst|sudo|su)"
    rb"(?=[\s\"']|$)"
)
GLIBC_OWN = (  # comes with libc.so.6
    r"(lib(c|m|dl|rt|pthread)\.so\.[0-9]+|ld-linux.*\.so\.[0-9]+|ld64\.so\.[0-9]+)\Z"
)
# The fields of a row of which nothing is known.
NO_SHIFT = {
    "offset": None,  # seconds by which the clock is ahead
    "library": None,  # its path on the host
    "preloaded": None,  # do running programs use it?
}  # type: Dict[str, object]
UNDONE = dict(NO_SHIFT, offset=0)  # the fields of a row of a shift that is undone
LOOKING = "faketime: looking"  # for progress
NO_STOP = "it was started with --rm: stopped for a restart, it would be removed"
RECIPE = (
    "docker run -v %s:/opt/libfaketime.so.1:ro -e LD_PRELOAD=/opt/libfaketime.so.1 -e FAKETIME=%+d"
    " -e FAKETIME_DONT_FAKE_MONOTONIC=1 -e FAKETIME_FORCE_MONOTONIC_FIX=0 -e FAKETIME_DISABLE_SHM=1"
    " IMAGE"
)


# Looking into a container


def look_at_shift(host: Host, container: Container) -> Shift:
    """A container as it is now, with the record of an earlier shift. Raises DockfixError for a
    record that cannot be read."""
    undo = load_undo(host, "faketime", container.id)
    record = None
    if undo:
        record = read_shift_record(undo)
    users = processes_of(container)
    preloaded = None
    if users:
        preloaded = any(users.values())
    return Shift(container, undo, record, users, preloaded)


def processes_of(container: Container) -> Dict[int, bool]:
    """{pid: does it map a libfaketime?} of all its processes; {} where that cannot be seen (not
    root, another host, none runs)."""
    maps = {}  # type: Dict[int, bool]
    if os.geteuid() != 0 or not container.pid:
        return maps
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if os_bytes(container.id) in read_all("/proc/%s/cgroup" % name):
                maps[int(name)] = b"faketime" in read_all("/proc/%s/maps" % name)
        except OSError:  # ended meanwhile
            continue
    return maps


def read_shift_record(undo: Undo) -> ShiftRecord:
    """The facts of an undo record with their types."""
    facts = undo.facts
    return ShiftRecord(
        done=facts["done"],
        offset=facts["offset"],
        stopped=facts["stopped"],
        build=facts["build"],
        library=str(facts.get("library", "")),
    )


def find_program(host: Host, container: Container, word: str) -> Optional[ProgramFile]:
    """A program as the container finds it by its PATH, None where it is not found."""
    if not word:
        return None
    for folder in program_folders(container, word):
        path = posixpath.join("/", folder, word)
        try:
            first = read_first_by_cp(host, container, path, HEAD_BYTES, True)
        except (FileNotFoundError, MethodUnavailable):
            continue
        if first.header.isreg():
            return ProgramFile(path, first.data[:HEAD_BYTES])
    return None


def program_folders(container: Container, word: str) -> List[str]:
    """Where a word of the command is looked for: with a slash in the working directory, else in
    the folders of PATH."""
    if "/" in word:
        return [container.working_dir]
    for variable in container.env:
        if variable.startswith("PATH="):
            return variable[len("PATH=") :].split(":")
    # what docker sets where the image has no PATH
    return ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]


def parse_interpreter(script: bytes) -> str:
    """The interpreter in the first line of a script; of '#!/usr/bin/env NAME' it is NAME."""
    first_line_of_script = script[len(b"#!") :].split(b"\n")[0]
    words = first_line_of_script.split()
    if not words:
        return ""
    if words[0].endswith(b"/env"):
        return format_bytes(words[-1])
    return format_bytes(words[0])


def entrypoint_programs(container: Container) -> List[str]:
    """The first word of the container's command, and the next three where they look like programs:
    `tini -- /entrypoint.sh` names two."""
    programs = list(container.command[:1])
    for word in container.command[1:4]:
        if "/" in word or word.endswith(".sh"):
            programs.append(word)
    return programs


def switches_user(texts: Sequence[bytes]) -> bool:
    """Does a command or script call a program that goes on as another user? Comments do not
    count."""
    for text in texts:
        for line in text.split(b"\n"):
            is_comment = line.lstrip().startswith(b"#")
            if not is_comment and re.search(USER_SWITCHERS, line):
                return True
    return False


SCRIPTS_MAX = 8  # that are read: a script may name itself as its interpreter


class FirstProcess(NamedTuple):
    """A container's first process: the path of its program, that program's first bytes, and its
    uid as the host sees it."""

    program: str
    head: bytes
    uid: int


UNSEEN = FirstProcess("", b"", -1)


def first_process(container: Container) -> FirstProcess:
    """UNSEEN where it cannot be seen."""
    if os.geteuid() != 0 or not container.pid:
        return UNSEEN
    proc = "/proc/%d" % container.pid
    program = proc + "/exe"  # the very file that runs, whatever its name
    try:
        if os_bytes(container.id) not in read_all(proc + "/cgroup"):
            return UNSEEN
        head = read_head(program, HEAD_BYTES)
        uid = re.search(rb"^Uid:\s+\d+\s+(\d+)", read_all(proc + "/status"), re.M)
        if uid is None:
            return UNSEEN
        return FirstProcess(os.readlink(program), head, int(uid.group(1)))
    except OSError:
        return UNSEEN


def first_program(host: Host, container: Container) -> FirstProgram:
    """The first process of a container: by /proc, or else by the container's configuration."""
    process = first_process(container)
    path, head = process.program, process.head
    seen_name = posixpath.basename(process.program)
    texts = [os_bytes(" ".join(container.command))]
    for word in entrypoint_programs(container):
        # What runs needs no second look.
        if posixpath.basename(word) == seen_name:
            continue
        program = find_program(host, container, word)
        # The interpreter of a script may be a script itself.
        while program and program.head[:2] == b"#!" and len(texts) <= SCRIPTS_MAX:
            texts.append(program.head)
            interpreter = parse_interpreter(program.head)
            program = find_program(host, container, interpreter)
        if program and not path:
            path, head = program.path, program.head
    drops_root = has_dropped_root(host, container, process.uid) or switches_user(texts)
    return FirstProgram(path, head, drops_root)


def has_dropped_root(host: Host, container: Container, uid: int) -> bool:
    """Was the first process started as root, and is it another user now? `uid` is its own as the
    host sees it, -1 where it cannot be seen."""
    if uid < 0 or container.user.split(":")[0] not in ("", "0", "root"):
        return False
    return uid != engine_userns(host)[0]


def find_libc(host: Host, container: Container, machine: int) -> Libc:
    """The container's libc.so.6.

    machine: the number of the processor in an ELF file, 0 where it is not known.

    Raises Refused where there is none.
    """
    folders = []
    for number, processor in MACHINES.items():
        if machine in (0, number):
            folders.append("/lib/" + processor.folder)
    folders += ["/lib64", "/usr/lib64", "/usr/lib", "/lib"]
    for folder in folders:
        libc = read_member(host, container, folder + "/libc.so.6", LIBC_MAX, True)
        if libc.kind != "file":
            continue
        try:
            return Libc(folder, parse_elf(libc.data))
        except ValueError as err:
            raise Refused("its %s/libc.so.6 is not understood: %s" % (folder, err)) from None
    raise Refused(
        "there is no glibc in it (no libc.so.6): musl and static programs do not read %s"
        % PRELOAD_PATH
    )


# Libraries


def format_library_age(library: Library) -> str:
    """How new a library is, for messages."""
    return RANKS[library.rank].release


def judge_library(path: str, data: bytes) -> Library:
    """The facts of a library file; its `fault` says why it cannot serve."""
    rank = 0
    while RANKS[rank].variable not in data:
        rank += 1
    try:
        elf = parse_elf(data)
    except ValueError as err:
        return Library(path, data, None, rank, str(err))
    fault = ""
    if rank == len(RANKS) - 1:
        fault = "it is no libfaketime"
    return Library(path, data, elf, rank, fault)


def find_host_libraries() -> List[str]:
    """The paths of libfaketime in the usual places of this host. Debian's are one folder deeper, in
    the one that is named after the processor."""
    folders = []
    for base in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64"):
        if not os.path.isdir(base):
            continue
        folders.append(base)
        for name in sorted(os.listdir(base)):
            folders.append(os.path.join(base, name))
    paths = []
    for folder in folders:
        path = os.path.join(folder, "faketime", "libfaketime.so.1")
        if os.path.isfile(path):
            paths.append(path)
    return paths


def host_libraries(given_paths: Sequence[str]) -> List[Library]:
    """The libraries of --lib in the order given, else those of the usual places, the newest first.
    Raises UsageError, EnvironmentFault."""
    paths = list(given_paths)
    if not paths:
        paths = find_host_libraries()
    libraries = []
    for path in paths:
        data = read_input(path, LIBRARY_MAX, "--lib")
        libraries.append(judge_library(os.path.abspath(path), data))
    if not libraries:
        raise EnvironmentFault(
            "there is no libfaketime in this host's usual places, and dockfix brings none",
            "--lib FILE (Debian: apt-get install libfaketime; EL: EPEL has it)",
        )
    if not given_paths:
        libraries.sort(key=lambda library: library.rank)
    return libraries


def lacks_library(host: Host, container: Container, folder: str, name: str) -> bool:
    """Is a shared library in none of the container's usual places? `folder` is that of its libc."""
    for place in (folder, "/usr" + folder, "/usr/lib", "/usr/lib64"):
        path = posixpath.join(place, name)
        if read_member(host, container, path, 1 << 26, True).kind == "file":
            return False
    return True


def library_refusal(host: Host, container: Container, library: Library, needs: Needs) -> str:
    """Why a library cannot serve in this container, '' where it can."""
    # It is a libfaketime.
    if library.fault or library.elf is None:
        return library.fault
    # The container's C library can load it.
    mismatch = elf_mismatch(library.elf, needs.libc.elf)
    if mismatch:
        return mismatch
    # What it needs itself is there.
    missing = []
    for name in library.elf.needed:
        if re.match(GLIBC_OWN, name):
            continue
        if lacks_library(host, container, needs.libc.folder, name):
            missing.append(name)
    if missing:
        return "it needs %s, which is not in the container" % ", ".join(missing)
    # The entrypoint survives it.
    if needs.drops_root and library.rank > RANK_FOR_ROOT_DROPPERS:
        return (
            "its entrypoint starts as root and goes on as another user, where a libfaketime up"
            " to 0.9.12 (this one: %s) ends it or hangs" % format_library_age(library)
        )
    return ""


def choose_library(
    host: Host, container: Container, libraries: List[Library], needs: Needs
) -> Library:
    """The first library that fits. Raises Refused with what speaks against each."""
    reasons = []
    for library in libraries:
        reason = library_refusal(host, container, library, needs)
        if not reason:
            return library
        reasons.append("%s: %s" % (library.path, reason))
    raise Refused(
        "%s; --lib FILE names another: one made on a release as old as the container's, or older,"
        " fits" % "; ".join(reasons)
    )


def read_library_source(folder: str) -> Dict[str, bytes]:
    """The files of libfaketime's folder src by their names, at most 100. Raises UsageError."""
    folder = os.path.join(folder, "src")
    listed = suppress_errors(os.listdir, folder)
    names = []
    if listed is not None:
        names = [name for name in sorted(listed) if os.path.isfile(os.path.join(folder, name))]
    names = names[:SOURCE_FILES_MAX]
    if "libfaketime.c" not in names or "Makefile" not in names:
        raise UsageError(
            "--build-from: there is no source of libfaketime in %s" % folder,
            "apt-get source libfaketime, or its source unpacked: DIR holds src/libfaketime.c",
        )
    source = {}
    for name in names:
        path = os.path.join(folder, name)
        source[name] = read_input(path, SOURCE_FILE_MAX, "--build-from")
    return source


def build_library(host: Host, container: Container, source: Dict[str, bytes]) -> Library:
    """Compiles libfaketime inside the container, in a folder that is gone afterwards.

    source: the files of libfaketime's folder src, by their names.

    Raises Refused, MethodUnavailable.
    """
    # There is a compiler.
    for tool in ("make", "gcc"):
        if change(host, ["exec", container.id, tool, "--version"]).rc:
            raise Refused("there is no %s in it to compile with" % tool)
    folder = "/.dockfix-build-%s" % os.urandom(6).hex()
    new = NewMembers(host, container)
    members = [new.folder(folder)]
    for name, data in source.items():
        members.append(new.file(folder + "/" + name, data))
    # A run that is cut off leaves the folder: --undo knows it by its name.
    save_undo(host, "faketime", container, (), {"build": folder})
    write_members(host, container, members)
    answer = run_make(host, container, folder)
    built = read_member(host, container, folder + "/libfaketime.so.1", LIBRARY_MAX)
    left = remove_build(host, container, folder)
    if left or answer.rc or built.kind != "file":
        reason = compiler_error(answer)[:300]
        raise MethodUnavailable("make in it failed (exit %d): %s" % (answer.rc, reason))
    return judge_library("the library built in it", built.data)


def run_make(host: Host, container: Container, folder: str) -> Answer:
    """Makes the library in its folder, as root of the container. A compiler takes longer than what
    one call may take."""
    argv = (
        *host.docker,
        *("exec", "-u", "0", container.id),
        *("make", "-C", folder, "CC=gcc", "libfaketime.so.1"),
    )
    seconds = max(host.timeout, BUILD_SECONDS)
    return change_host(host, argv, None, seconds)


def compiler_error(answer: Answer) -> str:
    """The first line that speaks of an error, else the first line."""
    for line in answer.text().split("\n"):
        if "rror" in line:
            return line
    return first_line(answer)


def remove_build(host: Host, container: Container, folder: str) -> List[str]:
    """Removes the folder of build_library, '' for none. Returns it where it stays."""
    if not folder or remove_folder(host, container, folder):
        return []
    return [folder]


# Deciding


def plan_shift(host: Host, request: ShiftRequest, shift: Shift) -> ShiftPlan:
    """What is to be done in one container. Looks only: all that speaks against the shift is raised
    here, before anything is written.

    Raises Unchanged where the clock is shifted by that already, Refused, MethodUnavailable.
    """
    container = shift.container
    require_shiftable(request, shift)
    preload = read_member(host, container, PRELOAD_PATH)
    rc = read_member(host, container, FAKETIMERC_PATH)
    require_known_files(shift, preload, rc)
    if shift.record and is_in_place(request, shift.record, preload, rc):
        fields = {
            "offset": request.seconds,
            "library": shift.record.library,
            "preloaded": shift.preloaded,
        }  # type: Dict[str, object]
        raise Unchanged("it is shifted by that already", fields)
    program = first_program(host, container)
    machine, note = judge_program(posixpath.basename(program.path), program.head)
    libc = find_libc(host, container, machine)
    # Each file has its folder; dockfix makes none for them.
    missing = missing_folders(host, container, (PRELOAD_PATH, PRIVATE))
    if missing:
        raise Refused("it has no %s" % ", no ".join(missing))
    # Its clock can hold the new time.
    if libc.elf.bits == 32 and time.time() + request.seconds >= 1 << 31:
        raise Refused("its programs are of 32 bits: their clock ends in January 2038")
    require_no_step(request, shift)
    needs = Needs(libc, program.drops_root)
    library = None
    if request.libraries:
        library = choose_library(host, container, request.libraries, needs)
    return ShiftPlan(shift, preload, rc, program.path, needs, library, note)


def require_shiftable(request: ShiftRequest, shift: Shift) -> None:
    """Raises Refused for what docker inspect and the undo record tell against a shift."""
    container = shift.container
    # The library can be tried.
    if not can_exec(container):
        raise Refused(
            "it does not run (or is paused, or restarting): the library could not be tried in it"
        )
    # No earlier change is half done.
    if shift.record and not shift.record.done:
        raise Refused(
            "an earlier change was cut off: python3 dockfix.py faketime --undo %s" % container.name
        )
    # A restart does not delete the container.
    if request.restart and container.auto_remove:
        raise Refused(NO_STOP)
    # No variable of the container wins over the file.
    variables = []
    for variable in container.env:
        if re.match(r"FAKETIME|LD_PRELOAD=.*faketime", variable):
            variables.append(variable.split("=")[0])
    if variables:
        raise Refused(
            "its environment sets %s, which beats %s: re-create the container without that"
            % (", ".join(variables), FAKETIMERC_PATH)
        )
    # The files belong to this container alone.
    refusal = files_refusal(container, (PRELOAD_PATH, FAKETIMERC_PATH, PRIVATE))
    if refusal:
        raise Refused(refusal)


def require_known_files(shift: Shift, preload: Member, rc: Member) -> None:
    """Raises Refused for files that dockfix has not written and could not put back safely."""
    # Both are files, or not there.
    for member in (preload, rc):
        if member.kind not in ("file", "absent"):
            raise Refused("its %s or %s is no plain file" % (PRELOAD_PATH, FAKETIMERC_PATH))
    # With a record, what was there before is noted.
    if shift.undo:
        return
    # No other libfaketime is loaded beside this one.
    if b"faketime" in preload.data:
        raise Refused(
            "its %s names a libfaketime already, not dockfix's: %s"
            % (PRELOAD_PATH, format_bytes(preload.data[:200].strip()))
        )
    # An undo puts back an offset that programs can read.
    if rc.kind == "file" and not re.match(PLAIN_OFFSET, rc.data):
        raise Refused(
            "its %s is not dockfix's and no plain offset (%s): put back by an undo, it would"
            " end each program that reads it; remove it first"
            % (FAKETIMERC_PATH, format_bytes(rc.data[:60].strip()))
        )


def format_faketimerc(seconds: int) -> bytes:
    """The content of /etc/faketimerc. libfaketime takes a number without a unit for seconds."""
    return b"%+d\n" % seconds


def is_in_place(request: ShiftRequest, record: ShiftRecord, preload: Member, rc: Member) -> bool:
    """Is this very shift in the files already, with no restart wished for?"""
    return (
        not request.restart
        and rc.data == format_faketimerc(request.seconds)
        and record.offset == request.seconds
        and PRIVATE_FORM in preload.data
    )


def require_no_step(request: ShiftRequest, shift: Shift) -> None:
    """Raises Refused where the clock of running programs would step and nobody asked for that."""
    # The programs start anew, or a step is wished for.
    if request.restart or request.step_running:
        return
    # None of them uses the library: they keep the real time until they are restarted.
    if shift.preloaded:
        reason = "its running programs use"
    elif shift.preloaded is None and shift.undo:
        reason = "it cannot be seen from here whether its running programs use"
    else:
        return
    raise Refused(
        "%s libfaketime, and a step makes timers run in bursts or stand still: --restart"
        " (stop, write, start) or --step-running" % reason
    )


class ProgramVerdict(NamedTuple):
    """What the file of the first process tells."""

    machine: int  # the number of the processor, 0 where it is not known
    note: str  # for the user


def judge_program(name: str, head: bytes) -> ProgramVerdict:
    """What the first process is, by the first part of its file. Raises Refused where a shift would
    not reach it."""
    try:
        elf = parse_elf(head, whole=False)
    except ValueError:
        return ProgramVerdict(0, "what its first process is cannot be told")
    # Its loader reads ld.so.preload.
    if "musl" in elf.interp:
        raise Refused(
            "its programs are built for musl, which ignores %s: re-create the container, with"
            " -e LD_PRELOAD and a library built with musl" % PRELOAD_PATH
        )
    # It asks the C library for the time.
    if elf.go:
        raise Refused(
            "its first process, %s, is a Go program, which reads the clock past any library: it"
            " would keep the real time" % name
        )
    if elf.interp:
        return ProgramVerdict(elf.machine, "")
    # A static first process only starts others.
    if name not in INITS:
        raise Refused(
            "its first process, %s, is a static program, which loads no library: it would keep"
            " the real time" % name
        )
    note = "its first process, %s, is static and keeps the real time" % name
    return ProgramVerdict(elf.machine, note)


# Changing


class ShiftOutcome(NamedTuple):
    """How the attempt to shift one container ended."""

    status: str  # 'changed', 'refused' or 'failed'
    trouble: str  # why it does not do well with the library, '' where it does
    library: Optional[Library]  # None where none was built
    former: Tuple[Member, ...]  # what was there before this run


def set_shift(host: Host, request: ShiftRequest, target: Target, plan: ShiftPlan) -> ResultRow:
    """Shifts one container, and undoes that where it does not do well. Returns the row."""
    shift = plan.shift
    outcome = try_shift(host, request, plan)
    fields = dict(NO_SHIFT)
    if outcome.library is not None:
        fields["library"] = outcome.library.path
    if outcome.trouble:
        left = undo_failed_shift(host, shift, outcome.former)
        if left:
            msg = outcome.trouble + left
            return row_for(target, "failed", msg, fields, partial=True)
        msg = outcome.trouble + "; undone: it is as it was"
        return row_for(target, outcome.status, msg, fields)
    end_facts = {"done": True, "stopped": False}
    save_undo(host, "faketime", shift.container, (), end_facts)
    fields["offset"] = request.seconds
    fields["preloaded"] = shift.preloaded
    if request.restart:
        fields["preloaded"] = True
    msg = format_shift(request, plan)
    return row_for(target, "changed", msg, fields)


def try_shift(host: Host, request: ShiftRequest, plan: ShiftPlan) -> ShiftOutcome:
    """Library, trial, offset, ld.so.preload last, restart, watch. What undo needs is on the disk
    before the first write. Raises NoAnswer, ContainerGone."""
    container = plan.shift.container
    library = plan.library
    former = (plan.preload, plan.rc)  # type: Tuple[Member, ...]
    record = ShiftRecord(
        done=False,
        offset=request.seconds,
        stopped=False,
        build="",
        library="",
    )
    try:
        save_undo(host, "faketime", container, former, dict(record._asdict()))
        if library is None:
            built = build_library(host, container, request.source)
            library = choose_library(host, container, [built], plan.needs)
        path = PRIVATE % hashlib.sha256(library.data).hexdigest()[:12]
        private = read_member(host, container, path, LIBRARY_MAX)
        former = (*former, private)
        save_undo(host, "faketime", container, former, {"library": library.path})
        trouble = apply_shift(host, request, plan, library, private)
    except NoAnswer as err:  # what was sent may still arrive: nothing is put back under it
        raise NoAnswer(
            "%s; look again, then: python3 dockfix.py faketime --undo %s" % (err, container.name)
        ) from None
    except Refused as err:
        return ShiftOutcome("refused", str(err), library, former)
    except (MethodUnavailable, EnvironmentFault) as err:
        return ShiftOutcome("failed", str(err), library, former)
    if trouble:
        return ShiftOutcome("failed", trouble, library, former)
    return ShiftOutcome("changed", "", library, former)


def format_shift(request: ShiftRequest, plan: ShiftPlan) -> str:
    """The message of a container whose clock is shifted now."""
    notes = ["%+d s" % request.seconds]
    if request.at is not None:
        notes.append("%s %s" % (request.at, request.zone))
    if plan.note:
        notes.append(plan.note)
    if not request.restart:
        if plan.shift.preloaded:
            notes.append("its running programs follow within 10 s")
        else:
            notes.append("its first process follows when it is restarted (--restart)")
    return "; ".join(notes)


def apply_shift(
    host: Host, request: ShiftRequest, plan: ShiftPlan, library: Library, private: Member
) -> str:
    """Writes the library, tries it, writes the rest, watches.

    private: what was at the library's place.

    Returns why the container does not do well with it, '' where it does. Raises Refused,
    MethodUnavailable, ContainerGone.
    """
    container = plan.shift.container
    new = NewMembers(host, container)
    if private.data != library.data:
        library_file = new.file(private.path, library.data)
        write_members(host, container, [library_file], [private])
    try_library(host, request.seconds, plan, library, private.path)
    output = count_output(host, request, container, time.time() - request.watch)
    if request.restart:
        save_undo(host, "faketime", container, (), {"stopped": True})
        run_or_fail(host, "stop", container.id)
    rc = new.file(FAKETIMERC_PATH, format_faketimerc(request.seconds))
    write_members(host, container, [rc], [plan.rc])
    # From here on, programs that start load the library.
    lines = preload_lines(plan.preload.data, private.path)
    preload = new.file(PRELOAD_PATH, lines)
    if plan.preload.kind == "file":
        preload = plan.preload._replace(data=lines, mtime=preload.mtime)
    write_members(host, container, [preload], [plan.preload])
    if request.restart:
        run_or_fail(host, "start", container.id)
    return watch_shift(host, request, plan, output)


def preload_lines(former: bytes, path: str) -> bytes:
    """ld.so.preload with the library at its end, and without an earlier one of dockfix's."""
    lines = []
    for line in former.splitlines(True):
        if PRIVATE_FORM not in line:
            lines.append(line.rstrip(b"\n") + b"\n")
    lines.append(os_bytes(path) + b"\n")
    return b"".join(lines)


def is_shift(clock: Clock, seconds: float) -> bool:
    """Is a clock ahead by so many seconds? Two more each way for whole seconds and a busy host."""
    return clock.least - 2 <= seconds <= clock.most + 2


SMALL_SHIFT = 60  # seconds: less could not be told from a slow host


def try_library(
    host: Host, seconds: int, plan: ShiftPlan, library: Library, private_path: str
) -> None:
    """Tries the library in commands of dockfix's own, before a file that others read names it.
    Raises Refused."""
    shift = plan.shift
    trial_seconds = seconds
    if abs(seconds) < SMALL_SHIFT:
        trial_seconds = DAY
    trial = "the trial of %s" % library.path
    env = ["LD_PRELOAD=" + private_path, "FAKETIME=%+d" % trial_seconds]
    try:
        real = read_clock(host, shift.container)
        # The clock is right before the first shift.
        if not shift.undo and not is_shift(real, 0):
            raise Refused("its clock is %+d s off already, and not by dockfix" % real.least)
        shifted = read_clock(host, shift.container, env, quiet=True)
    except MethodUnavailable as err:
        raise Refused("%s: %s" % (trial, err)) from None
    # The library shifts the clock by what is asked.
    if not is_shift(shifted, trial_seconds):
        raise Refused(
            "%s shifted the clock by %+d s, not by %+d s" % (trial, shifted.least, trial_seconds)
        )
    # Python's timed waits end: with some releases they hang on the monotonic clock.
    if re.match(r".*/python[0-9.]*\Z", plan.program):
        code = "import signal, threading; signal.alarm(4); threading.Event().wait(0.1)"
        argv = ["exec", shift.container.id, "env", *env, plan.program, "-c", code]
        if change(host, argv).rc:
            raise Refused(
                "its first process is Python, whose timed waits hang with %s (%s)"
                % (library.path, format_library_age(library))
            )


# Watching


class StartedAs(NamedTuple):
    """What changes when a container is started again."""

    started: str  # as docker inspect has it
    restart_count: int


def started_as(container: Container) -> StartedAs:
    return StartedAs(container.started, container.restart_count)


def watch_shift(host: Host, request: ShiftRequest, plan: ShiftPlan, output: OutputCount) -> str:
    """Looks each second, for --watch seconds, whether the container does well. At the end its first
    process is the same program as before, and its output goes on: a container that hangs in its
    entrypoint stays Up.

    output: what it wrote before.

    Returns what is wrong, '' for nothing. Raises ContainerGone.
    """
    began = time.monotonic()
    began_at = time.time()
    container = inspect_running(host, plan.shift.container.id)
    start = started_as(container)
    trouble = shift_trouble(host, request, container, start)
    left = request.watch - (time.monotonic() - began)
    while not trouble and left > 0 and not host.stop.is_set():
        time.sleep(min(1.0, left))
        container = inspect_running(host, container.id)
        trouble = shift_trouble(host, request, container, start)
        left = request.watch - (time.monotonic() - began)
    if trouble:
        return trouble
    program = first_process(container).program
    output_now = count_output(host, request, container, began_at)
    if program and posixpath.basename(program) != posixpath.basename(plan.program):
        return (
            "after %g s its first process is %s, not %s: it hangs in its start (--watch SECONDS"
            " waits longer)" % (request.watch, program, plan.program)
        )
    if is_silent(request, output, output_now):
        return (
            "it wrote nothing for %g s, and did before (--watch SECONDS waits longer)"
            % request.watch
        )
    return ""


def shift_trouble(host: Host, request: ShiftRequest, container: Container, start: StartedAs) -> str:
    """One look at a shifted container: it is up, has not been started again since `start`, runs a
    command, and its clock is shifted. Returns what is wrong, '' for nothing."""
    clock = None
    reason = ""
    try:
        clock = read_clock(host, container, quiet=True)
    except MethodUnavailable as err:
        reason = str(err)
        # It may have ended since it was inspected.
        container = inspect_running(host, container.id)
    if not can_exec(container) or started_as(container) != start:
        return "with it, the container does not stay up"
    if clock is None:
        return "with it, a command inside fails: %s" % reason
    if not is_shift(clock, request.seconds):
        return "its clock is then %+d s off, not %+d s (is there a ~/.faketimerc?)" % (
            clock.least,
            request.seconds,
        )
    return ""


def is_silent(request: ShiftRequest, before: OutputCount, now: OutputCount) -> bool:
    """Has the output of a container ended that wrote regularly before?"""
    if not request.watch:
        return False
    total_before = before.early + before.late
    total_now = now.early + now.late
    if request.restart and total_before > 0 and total_now == 0:
        return True
    is_regular = total_before >= 3 and before.late > 0
    return is_regular and now.late == 0


def count_output(
    host: Host, request: ShiftRequest, container: Container, since: float
) -> OutputCount:
    """In how many seconds of each half of --watch the container wrote to its log, by docker's own
    clock.

    since: in seconds since 1970; with --restart the count begins at the container's start.

    (0, 0) where docker cannot read the log, (1, 1) where there is more than is read.
    """
    if request.restart:
        # The first lines are older than docker's note of the start by a little.
        since = parse_instant(container.started) - 0.3
    argv = ("logs", "-t", "--since", "%d" % since, container.id)
    answer = query(host, *argv, limit=LOG_MAX, enough=LOG_MAX)
    is_cut = max(answer.out_total, answer.err_total) >= LOG_MAX
    if answer.timed_out or is_cut:
        return OutputCount(1, 1)
    half = request.watch / 2
    early = set()
    late = set()
    log = answer.out + b"\n" + answer.err
    for line in log.decode("utf-8", "replace").split("\n"):
        timestamp = line.split(" ")[0]
        second = parse_instant(timestamp) - since
        if 0 <= second < half:
            early.add(int(second))
        elif half <= second <= 2 * half:
            late.add(int(second))
    return OutputCount(len(early), len(late))


# Undoing


def undo_failed_shift(host: Host, shift: Shift, former: Sequence[Member]) -> str:
    """Puts back what was there before this run. Returns '', or what is left, for the message."""
    try:
        left = restore_shift(host, shift.container.id, former, False, shift.record)
    except (Refused, MethodUnavailable, EnvironmentFault) as err:
        return "; AND it could not be undone (%s): python3 dockfix.py faketime --undo %s" % (
            err,
            shift.container.name,
        )
    if left:
        return "; left behind: %s" % ", ".join(left)
    return ""


def restore_shift(
    host: Host,
    container_id: str,
    members: Sequence[Member],
    restart: bool,
    record: Optional[ShiftRecord],
) -> List[str]:
    """Restores files, ld.so.preload first: no program that starts meanwhile may look for a library
    that is gone. A container that dockfix stopped, or started with the library, is started or
    restarted.

    members: what is put back.
    restart: stop a running container meanwhile.
    record: what the undo record holds afterwards; with None it is dropped once nothing is left.

    Returns what could not be removed. Raises Refused, MethodUnavailable, ContainerGone.
    """
    container = inspect_running(host, container_id)
    undo = load_undo(host, "faketime", container_id)
    if not undo:
        return []
    if restart and container.running:
        undo = save_undo(host, "faketime", container, (), {"stopped": True})
        run_or_fail(host, "stop", container.id)
        container = container._replace(running=False, pid=0)
    now = read_shift_record(undo)
    preload = tuple(member for member in members if member.path == PRELOAD_PATH)
    restore_undo(host, container, undo._replace(members=preload))
    left = restore_undo(host, container, undo._replace(members=tuple(members)))
    left = left + remove_build(host, container, now.build)
    if now.stopped:
        verb = "start"
        if container.running:
            verb = "restart"
        run_or_fail(host, verb, container.id)
    if record is not None:
        save_undo(host, "faketime", container, (), dict(record._asdict()))
    elif not left:
        drop_undo(host, "faketime", container.id)
    return left


def undo_shift(host: Host, request: ShiftRequest, target: Target, plan: ShiftUndo) -> ResultRow:
    """Puts back what was there before dockfix's first shift, byte by byte. Returns the row."""
    left = restore_shift(host, target.id, plan.undo.members, request.restart, None)
    if left:
        msg = "left behind: %s" % ", ".join(left)
        return row_for(target, "failed", msg, NO_SHIFT, partial=True)
    msg = ""
    is_restarted = request.restart or plan.record.stopped
    if plan.shift.preloaded and not is_restarted:
        msg = (
            "its running programs go back within 10 s; they keep the library until they are"
            " restarted (--restart)"
        )
    return row_for(target, "changed", msg, UNDONE)


# Status


def shift_status(host: Host, shift: Shift) -> Unchanged:
    """What --status tells: what is set in the container, by its files. What its clock shows is for
    `clock` to tell."""
    container, record = shift.container, shift.record
    preload = read_member(host, container, PRELOAD_PATH)
    rc = read_member(host, container, FAKETIMERC_PATH)
    fields = dict(NO_SHIFT, preloaded=shift.preloaded)
    if not shift.undo or not record:
        return Unchanged(format_foreign_shift(shift, preload, rc), fields)
    if not record.done:
        msg = "a change was cut off: python3 dockfix.py faketime --undo %s" % container.name
        return Unchanged(msg, fields)
    fields["offset"] = record.offset
    fields["library"] = record.library
    msg = "%+d s by dockfix since %s; its first process: %s" % (
        record.offset,
        shift.undo.changed[:19] + "Z",
        format_follows(shift),
    )
    return Unchanged(msg, fields)


def format_follows(shift: Shift) -> str:
    """Does the first process follow the shifted clock?"""
    if not shift.users:
        return "cannot be seen"
    if shift.users.get(shift.container.pid):
        return "follows"
    return "after a restart only"


def format_foreign_shift(shift: Shift, preload: Member, rc: Member) -> str:
    """The status of a container that dockfix has not shifted: where else a shift is set."""
    places = []
    if b"faketime" in preload.data:
        places.append(PRELOAD_PATH)
    if rc.kind != "absent":
        places.append(FAKETIMERC_PATH)
    if any("faketime" in variable.lower() for variable in shift.container.env):
        places.append("its environment")
    if places:
        return "not by dockfix, but set in %s" % ", ".join(places)
    msg = "dockfix has shifted nothing here"
    if shift.preloaded:
        msg += "; its running programs use libfaketime still, until a docker restart"
    return msg


# The command


JOBS = ("offset", "at", "undo", "status")  # options that name a job: just one is given


def parse_faketime_options(opts: Options) -> ShiftRequest:
    """The options as typed values, with the files that --lib and --build-from name. Raises
    UsageError, EnvironmentFault."""
    job = parse_job(opts)
    require_fitting_options(opts, job)
    action, seconds, zone = "set", 0, None
    now = int(time.time())
    if job == "offset" and opts.offset is not None:
        seconds = parse_offset(opts.offset)
        require_instant(now + seconds, "--offset %s" % opts.offset)
    elif job == "at" and opts.at is not None:
        zone = opts.zone
        if zone is None:
            zone = host_zone()
        seconds = find_wall_instant(opts.at, zone) - now
        require_instant(now + seconds, "--at '%s'" % opts.at)
    else:
        action = job
    source = {}  # type: Dict[str, bytes]
    libraries = []  # type: List[Library]
    if opts.build_from is not None:
        source = read_library_source(opts.build_from)
    elif action == "set":
        libraries = host_libraries(opts.lib)
    return ShiftRequest(
        action=action,
        seconds=seconds,
        watch=opts.watch,
        at=opts.at,
        zone=zone,
        restart=opts.restart,
        step_running=opts.step_running,
        libraries=libraries,
        source=source,
    )


def parse_job(opts: Options) -> str:
    """Which of JOBS is asked for. Raises UsageError for none, and for two."""
    jobs = [name for name in JOBS if opts.is_given(name)]
    if len(jobs) != 1:
        raise UsageError(
            "say one of --offset SPEC, --at TIME, --undo, --status",
            "python3 dockfix.py faketime NAME --offset +8h",
        )
    return jobs[0]


def require_fitting_options(opts: Options, job: str) -> None:
    """Raises UsageError for an option that does not go with the job."""
    is_set = job in ("offset", "at")
    is_build = opts.build_from is not None
    # What a shift needs is given for a shift only.
    if not is_set:
        refuse_together("--lib", bool(opts.lib), job)
        refuse_together("--build-from", is_build, job)
        refuse_together("--step-running", opts.step_running, job)
    # There is one library.
    if is_build:
        refuse_together("--lib", bool(opts.lib), "build-from")
    # An offset is the same in every zone.
    if job != "at":
        refuse_together("--zone", opts.zone is not None, job)
    # --status changes nothing.
    if job == "status":
        refuse_together("--restart", opts.restart, job)


def refuse_together(option: str, is_given: bool, other: str) -> None:
    """Raises UsageError where an option is given beside another one."""
    if is_given:
        raise UsageError("%s does not go with --%s" % (option, other))


def format_faketime_options(opts: Options, request: ShiftRequest) -> List[str]:
    """The options of this run, for the script of a dry run."""
    options = []
    if opts.offset is not None:
        options.append("--offset=%s" % opts.offset)
    if request.at is not None:
        options.append("--at=%s" % request.at)
    if request.zone is not None:
        options.append("--zone=%s" % request.zone)
    if opts.build_from is not None:
        options.append("--build-from=%s" % os.path.abspath(opts.build_from))
    for path in opts.lib:
        options.append("--lib=%s" % os.path.abspath(path))
    if request.action == "undo":
        options.append("--undo")
    if request.restart:
        options += ["--restart", "--yes"]
    if request.step_running:
        options.append("--step-running")
    options.append("--watch=%g" % request.watch)
    return options


def new_containers_finding(seconds: int, plans: Sequence[ShiftPlan]) -> Finding:
    """Advice: how a new container gets the same shift. The library is one that is new enough for
    that, where this run uses one."""
    path = "LIBFAKETIME"
    for plan in plans:
        if plan.library and plan.library.rank <= RANK_FOR_NEW_CONTAINERS:
            path = plan.library.path
            break
    return Finding(
        id="faketime-new-containers",
        severity="info",
        text=(
            "for a new container there is a safer way, with a libfaketime of 0.9.11 or newer (for"
            " musl, one built with musl)"
        ),
        remedy=RECIPE % (quote_word(path), seconds),
    )


def run_faketime(host: Host, opts: Options, report: dict) -> None:
    """Looks, prints the script of a dry run, asks about restarts, changes, watches. A container
    that does not do well is undone by itself."""
    request = parse_faketime_options(opts)
    if request.action != "status":
        require_no_half_way(host)
    targets = choose_containers(host, opts)
    if request.action != "status" and not opts.dry_run:
        take_lock(host)
        take_lock(host, True, name="undo.lock")
        drop_undo_if_void(host, [target.id for target in list_containers(host)])
    if request.action == "set":
        set_shifts(host, opts, report, request, targets)
    else:
        undo_shifts(host, opts, report, request, targets)


def set_shifts(
    host: Host, opts: Options, report: dict, request: ShiftRequest, targets: List[Target]
) -> None:
    """The jobs --offset and --at."""

    def look(container: Container) -> ShiftPlan:
        shift = look_at_shift(host, container)
        return plan_shift(host, request, shift)

    def work(target: Target, plan: ShiftPlan) -> ResultRow:
        return set_shift(host, request, target, plan)

    survey = survey_containers(host, opts, LOOKING, targets, look, NO_SHIFT)
    if opts.dry_run:
        options = format_faketime_options(opts, request)
        fields = dict(NO_SHIFT)
        fields["offset"] = request.seconds
        plan_own_calls(opts, report, survey, options, fields)
        return
    plans = survey.all_facts()
    advice = new_containers_finding(request.seconds, plans)
    add_finding(report, advice)
    if request.restart:
        containers = [plan.shift.container for plan in plans]
        confirm_restarts(opts, containers)
    rows = run_over_survey(host, opts, survey, work, NO_SHIFT)
    report_rows(report, rows)


def undo_shifts(
    host: Host, opts: Options, report: dict, request: ShiftRequest, targets: List[Target]
) -> None:
    """The jobs --undo and --status."""

    def look(container: Container) -> ShiftUndo:
        shift = look_at_shift(host, container)
        if request.action == "status" or not shift.undo or not shift.record:
            raise shift_status(host, shift)
        # A restart does not delete the container.
        if request.restart and container.auto_remove:
            raise Refused(NO_STOP)
        return ShiftUndo(shift, shift.undo, shift.record)

    def work(target: Target, plan: ShiftUndo) -> ResultRow:
        return undo_shift(host, request, target, plan)

    survey = survey_containers(host, opts, LOOKING, targets, look, NO_SHIFT)
    if opts.dry_run:
        options = format_faketime_options(opts, request)
        plan_own_calls(opts, report, survey, options, UNDONE)
        return
    if request.restart:
        containers = [plan.shift.container for plan in survey.all_facts()]
        confirm_restarts(opts, containers)
    rows = run_over_survey(host, opts, survey, work, NO_SHIFT)
    report_rows(report, rows)


###############################################################################
# 14. The daemon's options
###############################################################################

# Where the options of Docker's daemon are set: the command line of its unit with drop-ins, the
# variables and files of the unit, daemon.json; and what the daemons that run were started with. It
# only reads; a place that cannot be read is one with a fault, and never one without options.
#
# Facts: systemd.syntax(7), systemd.exec(5), dockerd(8), proc(5).


# Parsing.


class DaemonOption(NamedTuple):
    """One option of the daemon, by its name in FLAGS, and its value as it was given."""

    name: str
    value: str


class OptionSource(NamedTuple):
    """One place that can set options of the daemon.

    kind, raw: 'unit', the ExecStart line in force; 'environment', what `variable` holds in a file
        or an Environment= line; 'daemon.json', its text; 'running', a process's command line.
    path: the file. variable: the variable's name; for a process, its id.
    options: what is set there, in its order.
    used: the daemon is given them on its next start.
    fault: why the place cannot be read or understood, else ''.
    """

    kind: str
    path: str
    variable: str = ""
    raw: str = ""
    options: Tuple[DaemonOption, ...] = ()
    used: bool = False
    fault: str = ""

    def where(self) -> str:
        """The place, for messages."""
        if self.variable:
            return "%s (%s)" % (self.path, self.variable)
        return self.path


FLAGS = {
    "--storage-opt": "storage-opt",
    "--storage-driver": "storage-driver",
    "-s": "storage-driver",
    "--data-root": "data-root",
    "--graph": "data-root",
    "-g": "data-root",
    "--config-file": "config-file",
    "--pidfile": "pidfile",
    "-p": "pidfile",
    "--log-opt": "log-opt",
    "--log-driver": "log-driver",
    "--live-restore": "live-restore",
}


def shell_words(text: str) -> List[str]:
    """Words as sh and systemd split them; what has no closing quote is split at blanks."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def parse_daemon_flags(words: Sequence[str]) -> Tuple[DaemonOption, ...]:
    """The known options among the words of a daemon's command line, in their order."""
    flat = []  # type: List[str]
    for word in words:
        if " " in word and "docker" in word:  # sh -c '...', as CentOS 7 has it
            flat += shell_words(word)
        else:
            flat.append(word)
    options = []
    for number, word in enumerate(flat):
        flag, equals, value = word.partition("=")
        if flag not in FLAGS:
            continue
        takes_next_word = not equals and flag != "--live-restore"
        if takes_next_word:
            value = "".join(flat[number + 1 : number + 2])
        options.append(DaemonOption(FLAGS[flag], value))
    return tuple(options)


# The keys of daemon.json that hold one value, with the names of their options.
DAEMON_JSON_KEYS = {
    "storage-driver": "storage-driver",
    "data-root": "data-root",
    "graph": "data-root",
    "log-driver": "log-driver",
    "live-restore": "live-restore",
    "pidfile": "pidfile",
}


def parse_daemon_json(text: str) -> Tuple[DaemonOption, ...]:
    """The known options in daemon.json. Raises ValueError, TypeError or AttributeError where
    dockerd would not start with it."""
    settings = json.loads(text or "{}")
    if not isinstance(settings, dict):
        raise ValueError("it is not a JSON object")
    options = []
    for value in settings.get("storage-opts") or []:
        options.append(DaemonOption("storage-opt", str(value)))
    for key, name in DAEMON_JSON_KEYS.items():
        if key in settings:
            options.append(DaemonOption(name, str(settings[key])))
    log_options = settings.get("log-opts") or {}
    for key, value in log_options.items():
        options.append(DaemonOption("log-opt", "%s=%s" % (key, value)))
    return tuple(options)


def unit_settings(text: str) -> List[Tuple[str, str]]:
    """(key, value) of a unit's [Service] section (systemd.syntax(7)): a backslash joins lines,
    comments between joined lines are left out."""
    section = ""
    line = ""
    settings = []
    for part in text.split("\n"):
        if part.lstrip().startswith(("#", ";")):
            continue
        line += part.rstrip("\r")
        if line.endswith("\\"):
            line = line[:-1] + " "
            continue
        if line.strip().startswith("["):
            section = line.strip()
        key, equals, value = line.partition("=")
        if equals and section == "[Service]":
            settings.append((key.strip(), value.strip()))
        line = ""
    return settings


def environment_settings(text: str) -> Dict[str, str]:
    """NAME -> value of an EnvironmentFile or a shell's settings file (/etc/default/docker)."""
    joined = text.replace("\\\n", " ")
    settings = {}
    for name, value in re.findall(r"^[ \t]*(?:export[ \t]+)?(\w+)=(.*)", joined, re.M):
        settings[name] = " ".join(shell_words(value))
    return settings


# Reading the settings of the next start.

UNIT_FOLDERS = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
SETTING_FILES = ("/etc/sysconfig/docker", "/etc/sysconfig/docker-storage", "/etc/default/docker")


def unit_files(top: str, unit: str) -> List[str]:
    """The unit's file and its drop-ins in the order in which systemd takes them."""
    files = []
    for folder in UNIT_FOLDERS:
        path = os.path.join(top, folder, unit)
        if os.path.isfile(os_bytes(path)):
            files.append(path)
            break
    drop_ins = {}  # type: Dict[str, str]
    for folder in UNIT_FOLDERS:
        place = os.path.join(top, folder, unit + ".d")
        for name in list_drop_ins(place):
            # the first folder's file of a name hides those of later folders
            drop_ins.setdefault(name, os.path.join(place, name))
    for name in sorted(drop_ins):
        files.append(drop_ins[name])
    return files


def list_drop_ins(folder: str) -> List[str]:
    """The names of a folder's drop-ins, none where there is no such folder."""
    if not os.path.isdir(os_bytes(folder)):
        return []
    names = [os.fsdecode(name) for name in os.listdir(os_bytes(folder))]
    return [name for name in names if name.endswith(".conf")]


Parsed = TypeVar("Parsed")


def read_settings(path: str, parse: Callable[[str], Parsed]) -> Tuple[str, Parsed, str]:
    """(the text of a file, what parse makes of it, why it cannot be read or understood). A file
    that is not there, or not readable, has the text ''; what cannot be parsed counts as ''."""
    try:
        text = read_settings_text(path)
    except FileNotFoundError:
        return "", parse(""), ""
    except OSError as err:
        return "", parse(""), "cannot be read: %s" % err.strerror
    try:
        return text, parse(text), ""
    except (ValueError, TypeError, AttributeError, RecursionError) as err:
        return text, parse(""), "is not what dockerd takes: %s" % err


class SettingsFault(NamedTuple):
    """A file of settings, and why it cannot be read."""

    path: str
    reason: str


class Variable(NamedTuple):
    """A variable for the daemon. path: where it is set; given: the unit is given that file."""

    path: str
    name: str
    value: str
    given: bool


class UnitOptions(NamedTuple):
    """What a unit says together with its drop-ins.

    path, command: the file of the ExecStart in force ('': there is no unit), and its value.
    files: the paths of EnvironmentFile=; variables: those of Environment=.
    """

    path: str
    command: str
    files: List[str]
    variables: List[Variable]
    faults: List[SettingsFault]


def read_unit_options(top: str, unit: str) -> UnitOptions:
    """The later file wins; an empty value takes back what was given before (systemd.exec(5))."""
    path = ""
    command = ""
    files = []  # type: List[str]
    variables = []  # type: List[Variable]
    faults = []
    for unit_file in unit_files(top, unit):
        _, settings, fault = read_settings(unit_file, unit_settings)
        if fault:
            faults.append(SettingsFault(unit_file, fault))
        for key, value in settings:
            if key == "ExecStart":
                path = unit_file
                command = value
            elif key == "EnvironmentFile" and not value:
                files = []
            elif key == "EnvironmentFile":
                named = value.lstrip("-")  # '-': it may be missing
                files = [other for other in files if other != named]
                files.append(named)
            elif key == "Environment" and not value:
                variables = []
            elif key == "Environment":
                variables += unit_variables(unit_file, value)
    return UnitOptions(path, command, files, variables, faults)


def unit_variables(unit_file: str, value: str) -> List[Variable]:
    """The variables of one Environment= line."""
    variables = []
    for word in shell_words(value):
        name, _, setting = word.partition("=")
        variables.append(Variable(unit_file, name, setting, True))
    return variables


def option_sources(top: str = "/", unit: str = "docker.service") -> List[OptionSource]:
    """Every place that sets options of the host's daemon, in the order in which they come to count:
    the unit's ExecStart (with drop-ins), the variables and files it takes, settings files that no
    unit takes (used False; without any unit an init script takes them), daemon.json.

    The unit and daemon.json are there even where they set nothing, so that an edit knows its place.
    top: another root, for tests.
    """
    in_unit = read_unit_options(top, unit)
    faults = list(in_unit.faults)
    sources = []
    if in_unit.path:
        flags = parse_daemon_flags(shell_words(in_unit.command))
        source = OptionSource("unit", in_unit.path, raw=in_unit.command, options=flags, used=True)
        sources.append(source)
    variables = in_unit.variables + read_setting_files(top, in_unit, faults)
    names_in_command = set(re.findall(r"\$\{?(\w+)", in_unit.command))
    for path, name, value, given in variables:
        options = parse_daemon_flags(shell_words(value))
        used = (given and name in names_in_command) or not in_unit.path
        if options:
            sources.append(OptionSource("environment", path, name, value, options, used))
    config = next_options(sources).get("config-file", "/etc/docker/daemon.json")
    place = os.path.join(top, config.lstrip("/"))
    text, options, reason = read_settings(place, parse_daemon_json)
    sources.append(OptionSource("daemon.json", config, "", text, options, True, reason))
    for fault in faults:
        sources.append(OptionSource("unit", fault.path, fault=fault.reason))
    return sources


def read_setting_files(
    top: str, in_unit: UnitOptions, faults: List[SettingsFault]
) -> List[Variable]:
    """The variables of the files that the unit is given, then of those that it could be given."""
    not_given = [path for path in SETTING_FILES if path not in in_unit.files]
    variables = []
    for path in in_unit.files + not_given:
        file = os.path.join(top, path.lstrip("/"))
        _, settings, reason = read_settings(file, environment_settings)
        if reason:
            faults.append(SettingsFault(path, reason))
        given = path in in_unit.files
        for name, value in settings.items():
            variables.append(Variable(path, name, value, given))
    return variables


def next_options(sources: Sequence[OptionSource]) -> Dict[str, str]:
    """The daemon's options on its next start; of one that is given twice, the last."""
    options = {}  # type: Dict[str, str]
    for source in sources:
        if source.used:
            options.update(source.options)
    return options


class OptionConflict(NamedTuple):
    """An option that is set more than once for the next start, and the places."""

    option: str
    places: List[str]


def option_conflicts(sources: Sequence[OptionSource]) -> List[OptionConflict]:
    """What is set more than once for the next start.

    The daemon does not start with one directive both as a flag and in daemon.json, even with
    different dm.* keys; twice on the command line, the last one wins silently.
    """
    places = {}  # type: Dict[str, List[str]]
    in_file = {}  # type: Dict[str, Set[str]]  # directive: its places in daemon.json
    as_flag = {}  # type: Dict[str, Set[str]]  # directive: its other places
    for source in sources:
        if not source.used:
            continue
        where = source.where()
        sides = in_file if source.kind == "daemon.json" else as_flag
        for option in source.options:
            key = option.name
            directive = option.name
            if option.name.endswith("-opt"):  # may be given several times, each with its own key
                key = option.value.partition("=")[0]
                directive = option.name + "s"
            places.setdefault(key, []).append(where)
            sides.setdefault(directive, set()).add(where)
    conflicts = []
    for key, key_places in places.items():
        if len(key_places) > 1:
            conflicts.append(OptionConflict(key, key_places))
    repeated = {conflict.option for conflict in conflicts}
    pool_option_repeated = any(key.startswith("dm.") for key in repeated)
    for directive, flag_places in as_flag.items():
        if directive not in in_file or directive in repeated:
            continue
        if directive.endswith("-opts") and pool_option_repeated:
            continue  # the key itself is in the list
        both = flag_places | in_file[directive]
        conflicts.append(OptionConflict(directive, sorted(both)))
    return conflicts


def configured_root() -> str:
    """Docker's root where no daemon tells it: by the options of its next start, else where it
    always was."""
    return next_options(option_sources()).get("data-root") or DOCKER_ROOT


# Reading the daemons that run.


def running_daemons() -> List[OptionSource]:
    """The daemons of this host that run, by their command lines. variable: the process id."""
    daemons = []
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        path = "/proc/%s/cmdline" % pid
        text = suppress_errors(read_host_text, path) or ""  # '': it ended meanwhile
        words = text.split("\0")[:-1]
        if is_daemon_call(words) and is_of_this_host(pid):
            flags = parse_daemon_flags(words)
            line = quote_line(words)
            daemons.append(OptionSource("running", path, pid, line, flags))
    return daemons


def is_daemon_call(words: Sequence[str]) -> bool:
    """Whether a command line starts Docker's daemon: dockerd, and `docker daemon` or `docker -d` of
    old engines."""
    if not words:
        return False
    name = os.path.basename(words[0])
    if re.match(r"dockerd(-\w+)?\Z", name):
        return True
    if not re.match(r"docker(-\w+)?\Z", name):
        return False
    return words[1:2] in (["daemon"], ["-d"])


def is_of_this_host(pid: str) -> bool:
    """Whether a process belongs to the host that dockfix runs on, and to no container.

    Anybody can call a program dockerd. Other processes or users than ours, or a container's cgroup,
    say no. A mount namespace of its own says nothing, because systemd gives the daemon one.
    """
    for kind in ("pid", "user"):
        own = suppress_errors(os.readlink, "/proc/self/ns/" + kind)
        # None: only root may read it
        other = suppress_errors(os.readlink, "/proc/%s/ns/%s" % (pid, kind))
        if other is not None and other != own:
            return False
    status = suppress_errors(read_host_text, "/proc/%s/status" % pid) or ""
    if not re.search(r"(?m)^Uid:\s*0\s", status):  # any user can call a program dockerd
        return False
    # two numbers: it has another one in an inner namespace
    if re.search(r"(?m)^NSpid:\s*[0-9]+\s+[0-9]", status):
        return False
    theirs = suppress_errors(read_host_text, "/proc/%s/cgroup" % pid)
    if theirs is None:
        return False
    # dockfix itself may run in a container
    ours = suppress_errors(read_host_text, "/proc/self/cgroup") or ""
    return container_ids(theirs) <= container_ids(ours)


def container_ids(cgroup: str) -> Set[str]:
    """The ids of containers that a /proc/PID/cgroup names, whatever engine made them."""
    return set(re.findall(r"[0-9a-f]{64}", cgroup))


###############################################################################
# 15. Docker's root: place, sizes, pool
###############################################################################

# Where the files of the engine that answers are, whether they are this host's, how large folders
# are, and the state of a devicemapper pool. It only looks. A size that was not measured as a whole
# comes with the reason, and is never taken for the whole.
#
# Facts: moby's daemon/containerd and cmd/dockerd (where containerd keeps layers), the kernel's
# device-mapper/thin-provisioning document, its drivers/block/loop.c (backing_file).


# Whose files they are.


class EngineAnswer(NamedTuple):
    """What the daemon answers to docker info. info: None where it does not answer; findings: why
    everything is then told from the files alone."""

    info: Optional[EngineInfo]
    findings: List[Finding]


def ask_engine(host: Host) -> EngineAnswer:
    """For the commands that work with the daemon down: the files tell as much."""
    try:
        info = engine_info(host)
    except EnvironmentFault as err:
        text = "from the files alone, unchecked: %s" % err.msg
        return EngineAnswer(None, [Finding("engine-silent", "info", text, err.hint)])
    if not info.root:
        return EngineAnswer(None, [])
    return EngineAnswer(info, [])


def runs_elsewhere(info: EngineInfo) -> bool:
    """Whether the engine that answers runs on another host; an old one may not say where."""
    return info.host_name not in ("", os.uname().nodename)


def require_same_host(info: EngineInfo, subject: str) -> None:
    """Refuses to read this host's files for an engine that runs on another one."""
    if runs_elsewhere(info):
        raise EnvironmentFault(
            "the engine runs on another host, %s: %s cannot be read here"
            % (info.host_name, subject),
            "run dockfix on %s" % info.host_name,
        )


def nearest_folder(path: str) -> str:
    """The path, or the first folder above it that is there: what is missing cannot be listed."""
    while not os.path.lexists(os_bytes(path)):
        above = os.path.dirname(path)
        if above == path:
            break
        path = above
    return path


# The store of containerd.


def has_containerd_store(info: EngineInfo) -> bool:
    """Whether this engine keeps images and layers in containerd's store."""
    return bool(info.driver_status.get("driver-type"))


def has_rootfs(root: str) -> bool:
    """Whether the daemon keeps containers' mounts where it does with the containerd image store
    (moby daemon/containerd)."""
    return os.path.isdir(os_bytes(os.path.join(root, "rootfs")))


def containerd_root(root: str) -> str:
    """The root of the containerd that keeps the images and layers of the daemon with this Docker
    root; '' where none is found.

    In this order: a running container's mount names it, dockerd's own containerd has it below
    Docker's root (moby cmd/dockerd), containerd's settings name it, and else it is the default.
    """
    mounted = mounted_containerd_root(root)
    if mounted:
        return mounted
    own = os.path.join(root, "containerd/daemon")
    if os.path.isdir(os_bytes(own)):
        return own
    system = CONTAINERD_ROOT
    settings = suppress_errors(read_host_text, CONTAINERD_SETTINGS) or ""
    setting = re.search(r"(?m)\A(?:[^\[]*\n)?\s*root\s*=\s*[\"'](/[^\"'\n]*)[\"']", settings)
    if setting:
        system = setting.group(1)
    if os.path.isdir(os_bytes(system)):
        return system
    return ""


def mounted_containerd_root(root: str) -> str:
    """The root that the mount of a running container names, which lies at
    ROOT/rootfs/SNAPSHOTTER/ID (moby daemon/containerd); '' where none runs."""
    for mount in mounts_of():
        if not mount.point.startswith(os.path.join(root, "rootfs/")):
            continue
        for option in mount.options:
            lower = re.match(r"(?:upper|lower)dir=(/.*?)/io\.containerd\.snapshotter\.", option)
            if lower:
                return lower.group(1)
    return ""


def store_text(root: str) -> str:
    """Where the images of an engine with the containerd image store are, for messages."""
    place = containerd_root(root)
    return "containerd's store, " + (place or "of which the place is not known")


def store_remedy(root: str, answers: bool) -> str:
    """The command that tells the size of what is in containerd's store. answers: whether the daemon
    does."""
    if answers:
        return "docker system df"
    return "du -sxh %s" % quote_word(containerd_root(root) or root)


# Sizes.


class Measured(NamedTuple):
    """A measured size. size: allocated bytes, None where unknown; reason: why it is not the whole
    size, '' where it is."""

    size: Optional[int]
    reason: str

    def is_complete(self) -> bool:
        return self.reason == ""


def open_folder_at(name: bytes, parent: Optional[int]) -> int:
    """A descriptor of a folder in an open one (None: by its path); a link is not followed."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


class OpenFolder(NamedTuple):
    """A folder on the way of a walk. below: the names of the folders in it still to enter."""

    fd: int
    path: bytes
    below: List[bytes]


class UsageWalk:
    """The walk of disk_usage, depth first, so that few descriptors are open.

    deadline: the monotonic time when it stops. points: mount points that are left out.
    device: the number of the device that is counted.
    size: bytes so far. failed: how many folders could not be read.
    counted: inodes with several hard links that are in the size already.
    stack: the folders from the top down to where the walk is.
    """

    def __init__(self, deadline: float, points: Set[bytes]) -> None:
        self.deadline = deadline
        self.points = points
        self.device = 0
        self.size = 0
        self.failed = 0
        self.counted = set()  # type: Set[int]
        self.stack = []  # type: List[OpenFolder]

    def is_over(self) -> bool:
        return time.monotonic() > self.deadline

    def start(self, path: str) -> None:
        """Enters the top. Raises OSError."""
        top = open_folder_at(os_bytes(path), None)
        self.device = os.fstat(top).st_dev
        self.enter(top, os.path.realpath(os_bytes(path)))

    def enter(self, fd: int, path: bytes) -> None:
        """Counts the files of a folder and lists its folders. Raises OSError, and then counts
        nothing of it."""
        blocks = os.fstat(fd).st_blocks
        folder = OpenFolder(fd, path, [])
        self.stack.append(folder)
        for number, name in enumerate(os.listdir(fd)):
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:  # removed meanwhile
                continue
            if stat.S_ISDIR(status.st_mode):
                if status.st_dev == self.device:
                    folder.below.append(os.fsencode(name))
            elif self.is_first_link(status):
                blocks += status.st_blocks
            if number % 1000 == 999 and self.is_over():
                break
        self.size += blocks * 512

    def is_first_link(self, status: os.stat_result) -> bool:
        """Whether a file is not counted yet under another name."""
        if status.st_nlink == 1:
            return True
        if status.st_ino in self.counted:
            return False
        self.counted.add(status.st_ino)
        return True

    def run(self) -> None:
        """Enters every folder below, until the time is over."""
        while self.stack:
            folder = self.stack[-1]
            if not folder.below or self.is_over():
                os.close(folder.fd)
                self.stack.pop()
                continue
            name = folder.below.pop()
            path = os.path.join(folder.path, name)
            if path in self.points:
                continue
            try:
                self.enter(open_folder_at(name, folder.fd), path)
            except FileNotFoundError:  # removed meanwhile
                pass
            except OSError:
                self.failed += 1


def disk_usage(path: str, deadline: float, points: Set[bytes]) -> Measured:
    """Bytes allocated by a folder and all below it on its own device, hard links once, without what
    lies below `points`.

    By descriptors, so that no link a container makes meanwhile is followed. Stops at the monotonic
    time `deadline`: NOT_FINISHED, and what it had by then.
    """
    walk = UsageWalk(deadline, points)
    try:
        walk.start(path)
    except OSError as err:
        if walk.stack:
            suppress_errors(os.close, walk.stack[0].fd)
        return Measured(None, "not measured: %s" % err.strerror)
    walk.run()
    if walk.is_over():
        return Measured(walk.size, NOT_FINISHED)
    if walk.failed:
        return Measured(
            walk.size, "at least: %s not readable" % format_count(walk.failed, "folder")
        )
    return Measured(walk.size, "")


def measure_folders(
    folders: Dict[Tuple, str], seconds: float, tick: Callable[[str], None]
) -> Dict[Tuple, Measured]:
    """{key: the size of its folder} within `seconds` in all. Half of the time is shared out evenly;
    the rest goes to what was not finished, the largest so far first."""
    end = time.monotonic() + seconds
    points = points_of_others(mounts_of())
    sizes = {}  # type: Dict[Tuple, Measured]
    for key, path in folders.items():
        tick("measured %d of %d folders" % (len(sizes), len(folders)))
        now = time.monotonic()
        if now >= end:
            sizes[key] = Measured(None, NOT_FINISHED)
            continue
        share = seconds / 2 / len(folders)
        sizes[key] = disk_usage(path, min(end, now + share), points)
    unfinished = [key for key in sizes if sizes[key].reason == NOT_FINISHED]
    unfinished.sort(key=lambda key: sizes[key].size or 0, reverse=True)
    for key in unfinished:
        tick("measuring what is large: %s" % folders[key])
        if time.monotonic() >= end:
            continue
        again = disk_usage(folders[key], end, points)
        is_larger = (again.size or 0) > (sizes[key].size or 0)
        if again.reason != NOT_FINISHED or is_larger:
            sizes[key] = again
    return sizes


# The thin pool of devicemapper.

METADATA_MAX = 33292800 * 512  # what dm-thin can use, some 15.88 GiB


class ThinPool(NamedTuple):
    """A thin pool as dmsetup tells of it.

    table: its line. sectors: its length, of 512 bytes each. block: bytes of a data block.
    metadata_dev, data_dev: its devices, as MAJOR:MINOR.
    state: 'rw', 'ro', 'out_of_data_space' or 'Fail'.
    The last four are bytes, None in state Fail.
    """

    table: str
    sectors: int
    metadata_dev: str
    data_dev: str
    block: int
    state: str
    needs_check: bool
    data_used: Optional[int] = None
    data_total: Optional[int] = None
    metadata_used: Optional[int] = None
    metadata_total: Optional[int] = None

    def longer(self, sectors: int) -> str:
        """The same table with another length."""
        return re.sub("^0 [0-9]+ ", "0 %d " % sectors, self.table)


# Both lines may begin with the pool's name. Kernels since 2015 add needs_check to the status.
POOL_TABLE = (
    r"(?:\S+: )?(?P<table>0 (?P<sectors>[0-9]+) thin-pool"
    r" (?P<metadata>[0-9]+:[0-9]+) (?P<data>[0-9]+:[0-9]+) (?P<block>[0-9]+) .*)\Z"
)


POOL_STATUS = (
    r"(?:\S+: )?0 [0-9]+ thin-pool (?:(?P<failed>Fail|Error)|[0-9]+"
    r" (?P<metadata_used>[0-9]+)/(?P<metadata_total>[0-9]+)"
    r" (?P<data_used>[0-9]+)/(?P<data_total>[0-9]+)"
    r" \S+ (?P<state>rw|ro|out_of_data_space)\b(?P<rest>.*))"
)


METADATA_BLOCK = 4096  # bytes, of every pool


def parse_thin_pool(table: str, status: str) -> ThinPool:
    """From `dmsetup table POOL` and `dmsetup status POOL` (kernel,
    device-mapper/thin-provisioning). Raises EnvironmentFault."""
    line = re.match(POOL_TABLE, table.strip())
    state = re.match(POOL_STATUS, status.strip())
    if not line or not state:
        odd = status if line else table
        raise EnvironmentFault(
            "dmsetup's answer about the pool is not understood: %s" % odd.strip()[:200],
            "dmsetup table; dmsetup status",
        )
    block = int(line.group("block")) * 512
    metadata_dev = line.group("metadata")
    data_dev = line.group("data")
    sectors = int(line.group("sectors"))
    if state.group("failed"):
        return ThinPool(line.group("table"), sectors, metadata_dev, data_dev, block, "Fail", False)
    return ThinPool(
        table=line.group("table"),
        sectors=sectors,
        metadata_dev=metadata_dev,
        data_dev=data_dev,
        block=block,
        state=state.group("state"),
        needs_check="needs_check" in state.group("rest"),
        data_used=int(state.group("data_used")) * block,
        data_total=int(state.group("data_total")) * block,
        metadata_used=int(state.group("metadata_used")) * METADATA_BLOCK,
        metadata_total=int(state.group("metadata_total")) * METADATA_BLOCK,
    )


def thin_pool(host: Host, name: str) -> ThinPool:
    """The pool as the kernel reports it now. Raises EnvironmentFault."""
    table = require_answer(query_host(host, ("dmsetup", "table", name)), "dmsetup")
    status = require_answer(query_host(host, ("dmsetup", "status", name)), "dmsetup")
    return parse_thin_pool(table.out_text(), status.out_text())


def pool_prefix(home: str) -> str:
    """How the names of a pool's devices begin: the driver makes them from where its folder is, so
    they are right on this host only."""
    status = suppress_errors(os.stat, os_bytes(home))
    if not status:
        return ""
    return "docker-%s-%d-" % (format_device(status.st_dev), status.st_ino)


def pool_repair_line(metadata: str) -> str:
    """What to type where a loop pool is ro, failed or needs a check: dm-thin's own checker, which
    wants the pool down (seen to do, 20.10)."""
    stop = "service docker stop"
    start = "service docker start"
    if os.path.isdir(SYSTEMD_MARK):
        stop = "systemctl stop docker.socket docker"
        start = "systemctl start docker"
    return (
        "{1}; cp --sparse=always {0} {0}.before && thin_check --clear-needs-check-flag {0} && {2} "
        " # thin_repair where it finds faults".format(quote_word(metadata), stop, start)
    )


class LoopFile(NamedTuple):
    """A loop device in use, and its file. The kernel puts ' (deleted)' behind a file that has no
    name any more."""

    device: str
    path: str


def loop_files() -> List[LoopFile]:
    """The loop devices in use, sorted."""
    files = []
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith("loop"):
            continue
        path = suppress_errors(read_host_text, "/sys/block/%s/loop/backing_file" % name)
        if path is not None:
            files.append(LoopFile("/dev/" + name, path.rstrip("\n")))
    return files


###############################################################################
# 16. Layer records
###############################################################################

# A Docker root is a folder of records: image/DRIVER/imagedb has the images, image/DRIVER/layerdb
# the layers ("chains") that they stand on and one mount for each container, containers/ID the
# containers, buildkit/ the build cache. Each storage driver keeps the layers themselves in its home
# (see "Storage drivers"). Engines before 1.10 had one folder for each image and layer in graph/.
#
# This chapter reads those records. It never writes, never follows a link below a foreign root, and
# reads no file larger than RECORD_MAX. A record that is missing, not readable or not understood is
# noted: it is a doubt, for which the next chapter calls no layer an orphan.
#
# Facts: moby's layer/ and image/ packages (layerdb, imagedb), container/ (config.v2.json),
# daemon/graphdriver, graph/ of engines before 1.10; OCI image-spec, config.md (chain ids).


# Parsing: the records of image/DRIVER, of engines since 1.10.

HASH = r"[0-9a-f]{64}\Z"


def strip_algorithm(digest: str) -> str:
    """A digest without 'sha256:' in front."""
    if digest.startswith("sha256:"):
        return digest[len("sha256:") :]
    return digest


def bare_id(ident: str) -> str:
    """An id without the algorithm in front, whichever it is."""
    return ident.split(":")[-1]


def chain_ids(diff_ids: Sequence[str]) -> List[str]:
    """The name in layerdb of each layer of an image, lowest first: the lowest's diff id, then the
    hash of 'PARENT DIFF'."""
    chains = []  # type: List[str]
    for diff in diff_ids:
        chains.append(chain_id(chains, diff))
    return [chain[len("sha256:") :] for chain in chains]


def chain_id(below: Sequence[str], diff: str) -> str:
    """The chain id of a layer, from the chain ids of those below it and its own diff id, all with
    'sha256:' (OCI image-spec, config.md)."""
    if not below:
        return diff
    text = "%s %s" % (below[-1], diff)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


class ChainRecord(NamedTuple):
    """layerdb/sha256/CHAIN.

    layer: the driver's name of the layer; parent: the chain id below it, '' for the lowest;
    size: bytes of its files; diff: its diff id, '' where that is missing.
    """

    layer: str
    parent: str
    size: Optional[int]
    diff: str


class MountRecord(NamedTuple):
    """layerdb/mounts/CONTAINER: the container's layer, its init layer or '', the chain id that it
    stands on or ''."""

    layer: str
    init: str
    parent: str


class DriverRecords(NamedTuple):
    """The records of image/DRIVER, by name. A value is None where the record is there, but not
    readable.

    chains: by chain id. mounts: by container. images: the diff ids of each image.
    tags: {image: its tags}.
    metadata: {image that has any: the image that its build began from, '' where none is recorded}.
    """

    chains: Dict[str, Optional[ChainRecord]]
    mounts: Dict[str, Optional[MountRecord]]
    images: Dict[str, Optional[List[str]]]
    tags: Dict[str, List[str]]
    metadata: Dict[str, Optional[str]]


def parse_word_record(files: Dict[str, bytes], name: str, form: str) -> str:
    """The only word of a record's file, without 'sha256:'. Raises ValueError where it does not have
    the form."""
    data = files.get(name, b"")
    text = data.decode("ascii", "replace").strip()
    if not re.match(form, text):
        raise ValueError("its %s is not valid" % name)
    return strip_algorithm(text)


def parse_optional_record(files: Dict[str, bytes], name: str, form: str) -> str:
    """As parse_word_record, but '' where the file is not there."""
    if name not in files:
        return ""
    return parse_word_record(files, name, form)


def parse_object_record(data: Optional[bytes]) -> dict:
    """The JSON object of a record's file. Raises ValueError where it is none."""
    text = (data or b"").decode("utf-8", "surrogateescape")
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record


def parse_chain_record(files: Dict[str, bytes]) -> ChainRecord:
    """layerdb/sha256/CHAIN. Raises ValueError where a file of it is damaged."""
    size = None
    text = files.get("size", b"").strip()
    if re.match(rb"[0-9]{1,18}\Z", text):
        size = int(text)
    digest = "sha256:" + HASH
    return ChainRecord(
        layer=parse_word_record(files, "cache-id", LAYER),
        parent=parse_optional_record(files, "parent", digest),
        size=size,
        diff=parse_optional_record(files, "diff", digest),
    )


def parse_mount_record(files: Dict[str, bytes]) -> MountRecord:
    """layerdb/mounts/CONTAINER. Raises ValueError where a file of it is damaged."""
    return MountRecord(
        layer=parse_word_record(files, "mount-id", LAYER),
        init=parse_optional_record(files, "init-id", LAYER),
        parent=parse_optional_record(files, "parent", "sha256:" + HASH),
    )


def parse_image_record(files: Dict[str, bytes]) -> List[str]:
    """The diff ids of an image's configuration, lowest first. Raises ValueError."""
    config = parse_object_record(files.get(""))
    rootfs = config.get("rootfs") or {}
    diff_ids = rootfs.get("diff_ids") or []
    for diff in diff_ids:
        if not isinstance(diff, str) or not re.match("sha256:" + HASH, diff):
            raise ValueError("its diff ids are not valid")
    return diff_ids


def parse_repositories(files: Dict[str, bytes]) -> Dict[str, List[str]]:
    """{image id: tags and digests, sorted} of repositories.json, whose inner keys are whole
    references since 1.10 and bare tags before."""
    tags = {}  # type: Dict[str, List[str]]
    record = parse_object_record(files.get(""))
    repositories = record.get("Repositories") or {}
    for name, references in repositories.items():
        for reference, image in references.items():
            tag = reference
            if not reference.startswith(name):
                tag = name + ":" + reference
            image_tags = tags.setdefault(bare_id(str(image)), [])
            image_tags.append(tag)
    for image_tags in tags.values():
        image_tags.sort()
    return tags


# Parsing: the records of containers, drivers and BuildKit.


def parse_graph_parent(files: Dict[str, bytes]) -> str:
    """The parent of an image of an engine before 1.10, or ''."""
    record = parse_object_record(files.get("json"))
    return str(record.get("parent") or "")


class ContainerRecord(NamedTuple):
    """What containers/ID tells of a container. An unreadable record has nothing but the defaults.

    name, driver, image: '' where not known.
    running: None where it is not said.
    volumes: the names of its volumes, and the folders that are no volumes.
    rotated: something keeps the container's log from growing without end.
    """

    name: str = ""
    driver: str = ""
    image: str = ""
    running: Optional[bool] = None
    volumes: Tuple[str, ...] = ()
    rotated: bool = False


def parse_image_parent(files: Dict[str, bytes]) -> str:
    """The image that the build of an image began from; '' where none is recorded: it was pulled,
    loaded, or built by BuildKit."""
    return parse_optional_record(files, "parent", "sha256:" + HASH)


def parse_container_record(files: Dict[str, bytes]) -> ContainerRecord:
    """config.json is the file of engines before 1.10. Raises ValueError, TypeError or
    AttributeError where the record is damaged."""
    config = parse_object_record(files.get("config.v2.json", files.get("config.json")))
    state = config.get("State") or {}
    return ContainerRecord(
        name=str(config.get("Name") or "").lstrip("/"),
        driver=str(config.get("Driver") or ""),
        image=strip_algorithm(str(config.get("Image") or "")),
        running=state.get("Running"),
        volumes=recorded_volumes(config),
        rotated=has_rotated_log(config, files),
    )


def recorded_volumes(config: dict) -> Tuple[str, ...]:
    """The names of a container's volumes, and the folders that are no volumes. Engines since 1.7
    list MountPoints, older ones Volumes."""
    mounts = config.get("MountPoints") or {}
    volumes = config.get("Volumes") or {}
    sources = []
    for mount in mounts.values():
        sources.append(mount.get("Name") or mount.get("Source") or "")
    sources += volumes.values()
    names = []
    for source in sources:
        names.append(re.sub(r".*/volumes/([^/]+)/_data\Z", r"\1", str(source)))
    return tuple(names)


def has_rotated_log(config: dict, files: Dict[str, bytes]) -> bool:
    """Whether a container's log has a limit, or is not written by the json-file driver."""
    if "hostconfig.json" not in files:
        return False
    host_config = parse_object_record(files["hostconfig.json"])
    log = host_config.get("LogConfig") or config.get("LogConfig") or {}
    options = log.get("Config") or {}
    if "max-size" in options:
        return True
    return log.get("Type") not in (None, "", "json-file")


class DeviceRecord(NamedTuple):
    """devicemapper/metadata/LAYER. deleted: the driver still has to delete the device; size: bytes,
    None where the record has none."""

    device_id: int
    deleted: bool
    size: Optional[int]


def parse_device_record(files: Dict[str, bytes]) -> DeviceRecord:
    """The record of a layer in a pool. Raises ValueError where it has no device."""
    record = parse_object_record(files.get(""))
    device_id = record.get("device_id")
    size = record.get("size")
    # bool is a kind of int in Python, so isinstance is not enough
    if type(device_id) is not int:
        raise ValueError("it has no device_id")
    if type(size) is not int:
        size = None
    deleted = record.get("deleted") is True
    return DeviceRecord(device_id, deleted, size)


class LowerRecord(NamedTuple):
    """What a storage driver itself notes of a layer: its other name ('' where it has none), and the
    names of the layers below it."""

    short: str
    below: Tuple[str, ...]


LAYER_WORD = "[0-9A-Za-z]{25,}"  # what may be a layer's name, or a short link's, in any text


def parse_lower_record(files: Dict[str, bytes]) -> LowerRecord:
    """From the file `link` of a layer, and the one file that names the layers below it."""
    short_names = find_layer_words(files.get("link", b""))
    below = b""
    for name in ("lower", "lower-id", ""):
        if name in files:
            below = files[name]
            break
    short = short_names[0] if short_names else ""
    return LowerRecord(short, find_layer_words(below))


def find_layer_words(data: bytes) -> Tuple[str, ...]:
    return tuple(re.findall(LAYER_WORD, data.decode("ascii", "replace")))


BOLT_MAGIC = (b"\xed\xda\x0c\xed", b"\xed\x0c\xda\xed")


# Where the first two pages may begin: a page has 4 KiB or a power of 2 more.
BOLT_PAGES = (0, 4096, 8192, 16384, 32768, 65536)


BUILDKIT_NAME = 25  # characters of the layer names that BuildKit gives


def is_bolt(data: bytes) -> bool:
    """Whether this is a bbolt database: its magic number stands in one of the first two pages
    (bbolt internal/common/meta.go), in the byte order of the host that wrote it."""
    return any(data[page + 16 : page + 20] in BOLT_MAGIC for page in BOLT_PAGES)


def find_names(data: bytes, names: Set[str]) -> Set[str]:
    """Which of these names (of 25 or 64 characters) a BuildKit database holds. Its pages are not
    parsed: a name in a page that is no longer used counts too, which errs on the side of
    keeping."""
    present = set()
    for run in re.findall(rb"[0-9a-z]{25,}", data):
        text = run.decode("ascii")
        for start in range(len(text) - BUILDKIT_NAME + 1):
            for length in (BUILDKIT_NAME, 64):
                name = text[start : start + length]
                if name in names:
                    present.add(name)
    return present


# Which records are missing.


def chain_gaps(records: DriverRecords) -> Dict[str, str]:
    """{place in image/<driver>: why it must have been there} of the layer records that others
    name."""
    gaps = {}  # type: Dict[str, str]
    for chain, user in needed_chains(records):
        if chain and chain not in records.chains:
            gaps["layerdb/sha256/" + chain] = "missing, though %s needs it" % user
    for chain, record in records.chains.items():
        if not record:
            continue
        place = "layerdb/sha256/" + chain
        if not record.diff:
            gaps[place + "/diff"] = "missing"
        elif not is_own_chain_id(chain, record):
            gaps[place + "/parent"] = "missing, or not that of this layer"
    return gaps


def needed_chains(records: DriverRecords) -> List[Tuple[str, str]]:
    """(chain id, what needs it) of every layer that a record names; '' for an image's lowest."""
    needed = []
    for image, diff_ids in records.images.items():
        for chain in chain_ids(diff_ids or ()):
            needed.append((chain, "image " + image[:12]))
    for container, mount in records.mounts.items():
        if mount:
            needed.append((mount.parent, "container " + container[:12]))
    for chain, record in records.chains.items():
        if record:
            needed.append((record.parent, "layer " + chain[:12]))
    return needed


def is_own_chain_id(chain: str, record: ChainRecord) -> bool:
    """Whether a layer's name is the hash over its parent's and its own diff id. It is not where the
    record lost its file `parent`."""
    below = []
    if record.parent:
        below.append("sha256:" + record.parent)
    return chain_id(below, "sha256:" + record.diff) == "sha256:" + chain


def image_gaps(records: DriverRecords) -> Dict[str, str]:
    """{place in image/<driver>: why it must have been there} of the image records that tags or
    metadata name."""
    place = "imagedb/content/sha256/"
    gaps = {}
    for image in records.metadata:
        if image not in records.images:
            gaps[place + image] = "missing, though it has metadata"
    for image, tags in records.tags.items():
        if image not in records.images:
            gaps[place + image] = "missing, though the tag %s names it" % tags[0]
    return gaps


def mount_gaps(records: DriverRecords, containers: Dict[str, ContainerRecord]) -> Dict[str, str]:
    """{place in image/<driver>: why it must have been there}: a container stands on its image's
    layers, unless the image has none."""
    gaps = {}
    for container, mount in records.mounts.items():
        if not mount or mount.parent or container not in containers:
            continue
        image = containers[container].image
        if records.images.get(image) != []:
            gaps["layerdb/mounts/%s/parent" % container] = "missing"
    return gaps


# Reading.


class Doubt(NamedTuple):
    """Why no layer of a driver ('': of any driver) can be proved to be an orphan.

    unreadable: a record is there and could not be read; else a record is missing.
    """

    driver: str
    reason: str
    unreadable: bool


class OpenRoot(NamedTuple):
    """A Docker root while it is read.

    follow: links of its own first level are followed (the daemon's own root, not a foreign disk's).
    unread: {path: what is wrong with it}, and doubts: why no orphan can be proved. Both grow while
        the root is read.
    """

    path: str
    fd: int
    follow: bool
    unread: Dict[str, str]
    doubts: List[Doubt]


def note_unreadable(root: OpenRoot, path: str, err: Exception, needed_for: Optional[str]) -> None:
    """Notes a record that could not be read. needed_for: the driver whose orphans cannot be proved
    without it, '' for all drivers, None for none."""
    full_path = os.path.normpath(os.path.join(root.path, path))
    root.unread[full_path] = format_read_error(err)
    if needed_for is not None:
        reason = "what would tell whose it is could not be read"
        root.doubts.append(Doubt(needed_for, reason, True))


def format_read_error(err: Exception) -> str:
    if isinstance(err, OSError):
        if err.errno in (errno.ENOTDIR, errno.ELOOP):
            return "a link, or not a folder: not followed"
        return str(err.strerror or err)
    if isinstance(err, (DockfixError, json.JSONDecodeError)):
        return err.msg
    return str(err)


def note_gap(root: OpenRoot, place: str, reason: str, needed_for: str, unreadable: bool) -> None:
    """Notes a record that is missing or makes no sense, and that no layer of the driver ('' all)
    can be proved an orphan without it."""
    path = os.path.normpath(os.path.join(root.path, place))
    root.unread[path] = reason
    doubt = Doubt(needed_for, "%s is %s" % (path, reason), unreadable)
    root.doubts.append(doubt)


def is_below(root: OpenRoot, name: str) -> bool:
    """Whether a file, folder or link is there."""
    path = os.path.join(root.path, name)
    return os.path.lexists(os_bytes(path))


def open_below(root: OpenRoot, path: str, needed_for: Optional[str], required: bool = False) -> int:
    """A descriptor of a folder below the root, opened part by part so that no link is followed; -1
    where it is not there, or not readable, which is noted. required: it has to be there."""
    folder = os.dup(root.fd)
    try:
        for depth, part in enumerate(path.split("/")):
            link = os.O_NOFOLLOW
            if root.follow and depth == 0:
                link = 0
            inner = os.open(
                os_bytes(part),
                os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | link,
                dir_fd=folder,
            )
            os.close(folder)
            folder = inner
        return folder
    except OSError as err:
        os.close(folder)
        if required or not isinstance(err, FileNotFoundError):
            note_unreadable(root, path, err, needed_for)
        return -1


def names_of_form(folder: int, form: str) -> List[str]:
    """The names in an open folder that have the form, sorted."""
    names = []
    for raw_name in os.listdir(folder):
        name = os_text(os.fsencode(raw_name))
        if re.match(form, name):
            names.append(name)
    return sorted(names)


def list_records(
    root: OpenRoot,
    path: str,
    needed_for: Optional[str],
    form: str = HASH,
    required: bool = False,
) -> List[str]:
    """The names in `path` that have the form. Where `path` is not readable, that is noted, and
    there are none. needed_for, required: as for read_records."""
    folder = open_below(root, path, needed_for, required)
    if folder < 0:
        return []
    try:
        return names_of_form(folder, form)
    except OSError as err:
        note_unreadable(root, path, err, needed_for)
        return []
    finally:
        os.close(folder)


def read_records(
    root: OpenRoot,
    path: str,
    files: Sequence[str],
    parse: Callable[[Dict[str, bytes]], Parsed],
    needed_for: Optional[str],
    form: str = HASH,
    required: bool = False,
    each_needed: bool = True,
) -> Dict[str, Optional[Parsed]]:
    """{name: parse({file: bytes})} of the records in a folder. A value is None where the record is
    not readable or not understood, which is noted, or vanished meanwhile.

    path: the folder. form: that of the records' names.
    files: those of a record that are read; () where a record is no folder, but a file, whose bytes
        parse gets as {'': bytes}.
    needed_for: the driver whose orphans cannot be proved without these records: '' all drivers,
        None none. each_needed: False where only the folder itself is needed for that.
    required: the folder has to be there.
    """
    folder = open_below(root, path, needed_for, required)
    if folder < 0:
        return {}
    records = {}
    record_needed_for = needed_for if each_needed else None
    try:
        for name in names_of_form(folder, form):
            place = os.path.join(path, name)
            records[name] = read_record(root, folder, place, files, parse, record_needed_for)
        return records
    except OSError as err:
        note_unreadable(root, path, err, needed_for)
        return {}
    finally:
        os.close(folder)


def read_record(
    root: OpenRoot,
    folder: int,
    path: str,
    files: Sequence[str],
    parse: Callable[[Dict[str, bytes]], Parsed],
    needed_for: Optional[str],
) -> Optional[Parsed]:
    """One record, as read_records returns it. folder: the open folder that holds it; path: that of
    the record, below the root."""
    name = os.path.basename(path)
    try:
        if files:
            content = read_record_folder(folder, name, files)
        else:
            content = read_record_files(folder, [name])
            content = {"": content[name]} if content else {}
        return parse(content)
    except FileNotFoundError:  # the folder vanished meanwhile
        return None
    except (OSError, Refused, ValueError, TypeError, AttributeError, RecursionError) as err:
        note_unreadable(root, path, err, needed_for)
        return None


def read_record_folder(folder: int, name: str, files: Sequence[str]) -> Dict[str, bytes]:
    """{file: its bytes} of a record that is a folder, without those that are not there. Raises
    OSError and Refused."""
    record = open_folder_at(os_bytes(name), folder)
    try:
        return read_record_files(record, files)
    finally:
        os.close(record)


def read_record_files(folder: int, files: Sequence[str]) -> Dict[str, bytes]:
    """{file: its bytes} in an open folder, without those that are not there. Raises OSError, and
    Refused for one that is no regular file, or longer than RECORD_MAX."""
    content = {}
    for name in files:
        try:
            fd = open_regular_at(folder, name, os.O_RDONLY, RECORD_MAX, name)
        except FileNotFoundError:
            continue
        with os.fdopen(fd, "rb") as source:
            # read() allocates a buffer of the size that it is given, so that is asked first
            size = min(RECORD_MAX, os.fstat(source.fileno()).st_size)
            content[name] = source.read(size + 1)
    return content


def readable(records: Dict[str, Optional[Parsed]]) -> Dict[str, Parsed]:
    """Without the records that could not be read."""
    return {name: record for name, record in records.items() if record is not None}


# Reading each kind of record.


def list_driver_homes(root: OpenRoot) -> Dict[str, List[str]]:
    """{driver: its layers' names}, [] for a driver that is not there."""
    homes = {}
    for name, driver in STORAGE_DRIVERS.items():
        folder = os.path.normpath(os.path.join(name, driver.layer_folder))
        form = layer_form(driver)
        homes[name] = list_records(root, folder, needed_for=name, form=form)
    return homes


def layer_form(driver: StorageDriver) -> str:
    """The form of a layer's name. In a pool the base device, which all others are snapshots of, has
    a record too."""
    if driver.in_pool:
        return LAYER + "|base\\Z"
    return LAYER


def read_container_records(root: OpenRoot, required: bool) -> Dict[str, ContainerRecord]:
    """{id: its record}. One that is not readable is there all the same: no layer that it may have
    is an orphan."""
    containers = {}
    records = read_records(
        root,
        "containers",
        ("config.v2.json", "config.json", "hostconfig.json"),
        parse_container_record,
        needed_for="",
        required=required,
        each_needed=False,
    )
    for container, record in records.items():
        if record is None:
            record = ContainerRecord()
        containers[container] = record
    return containers


def read_build_database(root: OpenRoot, homes: Dict[str, List[str]]) -> bytes:
    """BuildKit's database of the layers that it has. Where BuildKit was at work and its database is
    gone, or is none, its layers look as if they had no owner."""
    place = "buildkit/snapshots.db"
    databases = read_records(
        root, "buildkit", (), parse_whole_file, needed_for="", form=r"snapshots\.db\Z"
    )
    content = databases.get("snapshots.db")
    if content is not None and not is_bolt(content):
        note_gap(root, place, "not a BuildKit database", "", unreadable=True)
    if databases or not any(homes.values()):
        return content or b""
    if has_buildkit_layer(homes) or is_below(root, "buildkit"):
        reason = "missing, though BuildKit was at work here"
        note_gap(root, place, reason, "", unreadable=False)
    return b""


def parse_whole_file(files: Dict[str, bytes]) -> Optional[bytes]:
    """A record that is a file, as it is; None where it vanished meanwhile."""
    return files.get("")


def has_buildkit_layer(homes: Dict[str, List[str]]) -> bool:
    """Whether BuildKit has made one of these layers."""
    lengths = set()  # type: Set[int]
    for names in homes.values():
        lengths.update(map(len, names))
    return BUILDKIT_NAME in lengths


def is_since_1_10(root: OpenRoot, graph: Dict[str, Optional[str]]) -> bool:
    """Whether an engine since 1.10, which keeps image/<driver>, was at work here: before, all that
    is known of images was in graph/."""
    if not graph:
        return True
    return is_below(root, "image")


def read_driver_records(root: OpenRoot, driver: str, required: bool) -> DriverRecords:
    """The records in image/DRIVER. required: they have to be there."""
    place = "image/%s/" % driver
    chains = read_records(
        root,
        place + "layerdb/sha256",
        ("cache-id", "parent", "size", "diff"),
        parse_chain_record,
        needed_for=driver,
        required=required,
    )
    mounts = read_records(
        root,
        place + "layerdb/mounts",
        ("mount-id", "init-id", "parent"),
        parse_mount_record,
        needed_for=driver,
        form=LAYER,
    )
    images = read_records(
        root,
        place + "imagedb/content/sha256",
        (),
        parse_image_record,
        needed_for=driver,
        required=required,
    )
    metadata = read_records(
        root,
        place + "imagedb/metadata/sha256",
        ("parent",),
        parse_image_parent,
        needed_for=driver,
        each_needed=False,
    )
    tags = read_tags(root, place, "repositories.json", driver)
    if required and tags is None:
        # the engine makes this file with the folder; without it a tag may have named an image that
        # is gone
        note_gap(root, place + "repositories.json", "missing", driver, unreadable=False)
    return DriverRecords(chains, mounts, images, tags or {}, metadata)


def read_tags(
    root: OpenRoot, folder: str, name: str, driver: str
) -> Optional[Dict[str, List[str]]]:
    """{image: its tags}: empty where the file is not readable, None where it is not there."""
    form = re.escape(name) + r"\Z"
    records = read_records(
        root, os.path.normpath(folder), (), parse_repositories, needed_for=driver, form=form
    )
    if name not in records:
        return None
    return records[name] or {}


def read_old_tags(root: OpenRoot, driver: str) -> Dict[str, List[str]]:
    """{image: its tags} of engines before 1.10."""
    return read_tags(root, ".", "repositories-" + driver, driver) or {}


def note_graph_gaps(
    root: OpenRoot, driver: str, graph: Dict[str, Optional[str]], tags: Dict[str, List[str]]
) -> None:
    """Notes the images of engines before 1.10 that another one stands on or a tag names, and whose
    record is gone."""
    users = {}
    for image, parent in graph.items():
        if parent:
            users[parent] = "image " + image[:12]
    for image, image_tags in tags.items():
        users[image] = "the tag " + image_tags[0]
    for image in sorted(users):
        if image in graph:
            continue
        reason = "missing, though %s needs it" % users[image]
        note_gap(root, "graph/" + image, reason, driver, unreadable=False)


def read_lower_records(root: OpenRoot, driver: str) -> Dict[str, LowerRecord]:
    """{layer: what the driver itself notes of it}; {} for drivers that keep no such files."""
    facts = STORAGE_DRIVERS[driver]
    folder = driver
    if facts.lower_folder:
        folder += "/" + facts.lower_folder
    elif not facts.lower_files:
        return {}
    records = read_records(
        root, folder, facts.lower_files, parse_lower_record, needed_for=driver, form=LAYER
    )
    return readable(records)


def short_links(root: OpenRoot, driver: str) -> Dict[str, List[str]]:
    """{layer: its short names} of a driver that keeps a folder of links to ../LAYER/diff."""
    links = {}  # type: Dict[str, List[str]]
    link_folder = STORAGE_DRIVERS[driver].link_folder
    if not link_folder:
        return links
    folder = os.path.join(driver, link_folder)
    for name in list_records(root, folder, needed_for=None, form="[0-9A-Z]+\\Z"):
        path = os.path.join(root.path, folder, name)
        target = suppress_errors(os.readlink, os_bytes(path)) or b""
        parts = os_text(target).split("/")
        if len(parts) == 3 and parts[0] == "..":
            links.setdefault(parts[1], []).append(name)
    return links


###############################################################################
# 17. Layer owners and orphans
###############################################################################

# Whose a layer is: a container's, an image's, the build cache's, or nobody's. It works with the
# daemon down, and on the disk of another host. Containers of engines with containerd's store have
# no layers below Docker's root; they have no rows here.
#
# What must never happen: that a layer in use is called an orphan, because `reclaim --orphans` takes
# those away. A layer is one only where every record was readable and whole, none names it, nothing
# has it mounted, no other layer stands on it, and a daemon that answers agrees. Otherwise it is
# "unknown".


# What is known of the layers.


class LostRecord(NamedTuple):
    """A container whose layer record is gone, so that no file names its layer.

    name: '' where not known. missing: the path of that record.
    root: the Docker root (or its uid.gid folder) that it was in.
    known: docker still has the container in memory.
    """

    name: str
    missing: str
    root: str
    known: bool


LOST_REASON = "it may be of container %s, whose layer record is missing"


class Layers(NamedTuple):
    """The owners of the layers below a Docker root. The fields are filled while its files are read,
    and corrected by what the daemon says (confirm_orphans).

    rows: a row for each layer, as `owner` prints it: {"layer", "driver", "paths", "role",
        "container", "images", "note"}, in a pool also "device", "device_id" and "device_size".
        Roles: image, container, container-init, orphan, unknown (the owner cannot be told).
    names: each name of a row (full id, tag, chain id, diff id, short link, device id) -> the
        numbers of its rows.
    containers: {id: its record}. images: {id: tags}.
    unread: {path: why it could not be read, or what is wrong with it}.
    sizes: {layer: bytes of the files that it adds, by layerdb}.
    image_counts: {driver with image records here: their number}.
    lost: {container id: its record that is gone}.
    doubts: what keeps layers from being proved orphans.
    parents: the images that another image's build began from.
    """

    rows: List[dict]
    names: Dict[str, List[int]]
    containers: Dict[str, ContainerRecord]
    images: Dict[str, List[str]]
    unread: Dict[str, str]
    sizes: Dict[str, int]
    image_counts: Dict[str, int]
    lost: Dict[str, LostRecord]
    doubts: List[Doubt]
    parents: Set[str]


class LayerOwner(NamedTuple):
    """The owner of a layer by the records.

    role: as in Layers. container: its id, '' for none. images: their ids. note: a remark.
    aliases: the layer's other names.
    """

    role: str
    container: str = ""
    images: Tuple[str, ...] = ()
    note: str = ""
    aliases: Tuple[str, ...] = ()


UNKNOWN = "unknown"  # the role of a layer of which it cannot be told whose it is


class LayerTree(NamedTuple):
    """What all drivers of one tree have in common: a Docker root, or its uid.gid folder.

    homes: {driver: its layers' names}. containers: {id: its record}.
    graph: {image of an engine before 1.10: its parent, None where not readable}.
    since_1_10: an engine since 1.10 was at work here.
    """

    homes: Dict[str, List[str]]
    containers: Dict[str, ContainerRecord]
    graph: Dict[str, Optional[str]]
    since_1_10: bool


def join_notes(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def format_owner(row: dict) -> str:
    """A row's owner in words: the container's name, else the tags of its images, '-' for none."""
    container = row["container"]
    if container:
        return container["name"] or "container " + container["id"][:12]
    names = []
    for image in row["images"]:
        name = image["id"][:12]
        if image["tags"]:
            name = image["tags"][0]
        names.append(name)
    if not names:
        return "-"
    text = ", ".join(names[:3])
    if len(names) > 3:
        text += " and %d more" % (len(names) - 3)
    return text


def own_folder(row: dict) -> str:
    """Where a layer keeps its own files (not where it is mounted together with those below), ''
    where that is no folder."""
    for form in STORAGE_DRIVERS[row["driver"]].own_paths:
        ending = "/" + form % row["layer"]
        for path in row["paths"]:
            if path.endswith(ending) and os.path.isdir(os_bytes(path)):
                return path
    return ""


# Owners by the records.


def assign_layer_owners(
    chains: Dict[str, ChainRecord],
    mounts: Dict[str, MountRecord],
    images: Dict[str, List[str]],
    containers: Dict[str, ContainerRecord],
) -> Dict[str, LayerOwner]:
    """{layer: its owner} by the records of engines since 1.10."""
    owners = assign_image_layers(chains, mounts, images)
    for container, mount in mounts.items():
        role = "container"
        init_role = "container-init"
        note = ""
        if container not in containers:
            role = "orphan"
            init_role = "orphan"
            note = "of container %s, which is gone, or of a build" % container[:12]
        owners[mount.layer] = LayerOwner(role, container, note=note)
        if mount.init:
            owners[mount.init] = LayerOwner(init_role, container, note=note)
    return owners


def assign_image_layers(
    chains: Dict[str, ChainRecord], mounts: Dict[str, MountRecord], images: Dict[str, List[str]]
) -> Dict[str, LayerOwner]:
    """{layer: its owner} of the layers in layerdb. An image has the layers of its diff ids; a
    container keeps the layers below it alive even where their image is gone."""
    users = {}  # type: Dict[str, List[str]]
    diffs = {}  # type: Dict[str, str]
    for image, diff_ids in images.items():
        for chain, diff in zip(chain_ids(diff_ids), diff_ids):
            users.setdefault(chain, []).append(image)
            diffs[chain] = strip_algorithm(diff)
    standing = chains_below_containers(chains, mounts)
    owners = {}
    for chain, record in chains.items():
        role = "image"
        note = ""
        if chain not in users and chain in standing:
            note = "its image is gone; container %s stands on it" % standing[chain][:12]
        elif chain not in users:
            role = "orphan"
            note = "in layerdb, but no image has it"
        image_ids = tuple(sorted(users.get(chain, ())))
        aliases = (chain, diffs.get(chain, chain))
        owners[record.layer] = LayerOwner(role, "", image_ids, note, aliases)
    return owners


def chains_below_containers(
    chains: Dict[str, ChainRecord], mounts: Dict[str, MountRecord]
) -> Dict[str, str]:
    """{chain id: a container that stands on it}."""
    standing = {}  # type: Dict[str, str]
    for container, mount in mounts.items():
        chain = mount.parent
        while chain in chains and chain not in standing:
            standing[chain] = container
            chain = chains[chain].parent
    return standing


def assign_graph_owners(
    parents: Dict[str, str], tagged: Dict[str, List[str]]
) -> Dict[str, LayerOwner]:
    """{layer: its owner} by the records of engines before 1.10, where each layer is an image: it
    belongs to the images above it that have a tag, or that nothing stands on."""
    users = {}  # type: Dict[str, List[str]]
    topmost = set(parents) - set(parents.values())
    topmost.update(image for image in tagged if image in parents)
    for top in sorted(topmost):
        image = top
        seen = set()  # type: Set[str]
        while image in parents and image not in seen:  # a damaged record may lead in a circle
            seen.add(image)
            users.setdefault(image, []).append(top)
            image = parents[image]
    owners = {}
    for image in parents:
        owners[image] = LayerOwner("image", images=tuple(users.get(image, ())))
    return owners


def mark_build_cache(
    names: List[str], owners: Dict[str, LayerOwner], database: bytes
) -> Dict[str, LayerOwner]:
    """The owners, with BuildKit's cache for layers that have no other owner and that its database
    holds by their name or chain id."""
    loose = {}
    for name in names:
        owner = owners.get(name) or LayerOwner("orphan")
        if owner.role == "orphan":
            loose[name] = owner
    wanted = set()  # type: Set[str]
    for name, owner in loose.items():
        wanted.update((name, *owner.aliases))
    present = find_names(database, wanted)
    marked = dict(owners)
    for name, owner in loose.items():
        if not present.isdisjoint((name, *owner.aliases)):
            marked[name] = LayerOwner("image", note="build cache", aliases=owner.aliases)
    return marked


class DriverOwners(NamedTuple):
    """What the records of one driver tell.

    owners: {layer: its owner}. recorded: the containers that have a record of their layer, readable
    or not.
    """

    owners: Dict[str, LayerOwner]
    recorded: Set[str]


def assign_driver_owners(
    root: OpenRoot, tree: LayerTree, driver: str, layers: Layers
) -> DriverOwners:
    """The owners by the records of both kinds of engines: one since 1.10 leaves graph/ where it
    was. Records that are missing are noted; images and sizes are added to `layers`."""
    names = set(tree.homes[driver])
    records = read_driver_records(root, driver, required=bool(names) and tree.since_1_10)
    note_record_gaps(root, driver, records, tree.containers)
    old_tags = read_old_tags(root, driver)
    if names:
        note_graph_gaps(root, driver, tree.graph, old_tags)
    owners = {}
    recorded = set(records.mounts)
    for container in tree.containers:
        if container in names:  # before 1.10 a container's layer has the container's id
            owners[container] = LayerOwner("container", container)
            recorded.add(container)
    for image, owner in assign_graph_owners(readable(tree.graph), old_tags).items():
        if image in names:
            owners[image] = owner
    owners.update(
        assign_layer_owners(
            readable(records.chains),
            readable(records.mounts),
            readable(records.images),
            tree.containers,
        )
    )
    if STORAGE_DRIVERS[driver].in_pool and "base" in names:
        note = "the base device: image layers are snapshots of it"
        owners["base"] = LayerOwner("image", note=note)
    for record in readable(records.chains).values():
        if record.size is not None:
            layers.sizes[record.layer] = record.size
    add_images(root, driver, records, tree.graph, old_tags, layers)
    return DriverOwners(owners, recorded)


def note_record_gaps(
    root: OpenRoot, driver: str, records: DriverRecords, containers: Dict[str, ContainerRecord]
) -> None:
    """Notes the records in image/DRIVER that others need, and that are missing."""
    gaps = chain_gaps(records)
    gaps.update(image_gaps(records))
    gaps.update(mount_gaps(records, containers))
    for place, reason in sorted(gaps.items()):
        note_gap(root, "image/%s/%s" % (driver, place), reason, driver, unreadable=False)


def add_images(
    root: OpenRoot,
    driver: str,
    records: DriverRecords,
    graph: Dict[str, Optional[str]],
    old_tags: Dict[str, List[str]],
    layers: Layers,
) -> None:
    """Adds the images of one driver with their tags and parents, and how many records it has, where
    it is here."""
    before_1_10 = is_below(root, "graph") and is_below(root, driver)
    if before_1_10 or is_below(root, "image/" + driver):
        count = layers.image_counts.get(driver, 0)
        layers.image_counts[driver] = count + len(records.images)
    for parent in (*records.metadata.values(), *graph.values()):
        if parent:
            layers.parents.add(parent)
    for image in (*records.images, *graph):
        image_tags = layers.images.setdefault(image, [])
        for tag in records.tags.get(image, []) + old_tags.get(image, []):
            if tag not in image_tags:
                image_tags.append(tag)


def is_dangling(image: str, names: Sequence[str], used: Set[str], parents: Set[str]) -> bool:
    """Whether nothing needs an image: it has no name (a tag or a digest), no container was made of
    it, and no other image's build began from it, by docker's own record. used, parents: ids."""
    if names or image in used:
        return False
    return image not in parents


def note_lost_records(
    root: OpenRoot, tree: LayerTree, recorded: Dict[str, Set[str]], layers: Layers
) -> None:
    """Notes the containers that no record gives a layer: any layer that nothing has may be theirs.
    recorded: {driver: the containers that have a record of their layer}."""
    present = []
    for driver, names in tree.homes.items():
        if names or recorded[driver] or is_below(root, "image/" + driver):
            present.append(driver)
    for container, record in tree.containers.items():
        if not is_record_lost(container, record.driver, recorded, present):
            continue
        home = record.driver or present[0]
        place = "image/%s/layerdb/mounts" % home
        if not tree.since_1_10:
            place = os.path.join(home, STORAGE_DRIVERS[home].layer_folder)
        path = os.path.normpath(os.path.join(root.path, place, container))
        layers.lost[container] = LostRecord(record.name, path, root.path, False)
        reason = LOST_REASON % (record.name or container[:12])
        root.doubts.append(Doubt(record.driver, reason, False))


def is_record_lost(
    container: str, driver: str, recorded: Dict[str, Set[str]], present: List[str]
) -> bool:
    """Whether a container must have a layer record here, and has none. driver: '' where not known;
    present: the drivers that were at work here."""
    if not driver:
        has_record = any(container in containers for containers in recorded.values())
        return bool(present) and not has_record
    if driver not in STORAGE_DRIVERS:
        return False  # its layers are in containerd's store
    if STORAGE_DRIVERS[driver].snapshotter and driver not in present:
        return False  # the name is that of a snapshotter of containerd's
    return container not in recorded[driver]


# Orphans, and their proof by the files.


def words_in_mounts(
    root: OpenRoot, tree: LayerTree, by_driver: Dict[str, DriverOwners]
) -> Set[str]:
    """Every word that may be a layer's name in what is mounted, in any process's view. Looked up
    only where a layer has no owner."""
    if not has_loose_layer(tree, by_driver):
        return set()
    if os.geteuid() != 0:
        root.doubts.append(Doubt("", "only root sees whether it is mounted", True))
    words = set()  # type: Set[str]
    for table in mount_tables():
        words.update(re.findall(LAYER_WORD, table))
    return words


def has_loose_layer(tree: LayerTree, by_driver: Dict[str, DriverOwners]) -> bool:
    """Whether a layer has no owner by the records."""
    for driver, names in tree.homes.items():
        owners = by_driver[driver].owners
        for name in names:
            owner = owners.get(name)
            if owner is None or owner.role == "orphan":
                return True
    return False


def mount_tables() -> List[str]:
    """The text of /proc/PID/mountinfo of one process of each mount namespace; a daemon, and each
    container, can have one of its own."""
    seen = set()
    texts = []
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        namespace = suppress_errors(os.readlink, "/proc/%s/ns/mnt" % pid)
        if namespace is not None and namespace in seen:
            continue
        text = suppress_errors(read_all, "/proc/%s/mountinfo" % pid)
        if text:
            seen.add(namespace)
            texts.append(os_text(text))
    return texts


def prove_orphans(
    root: OpenRoot,
    driver: str,
    names: List[str],
    owners: Dict[str, LayerOwner],
    in_use: Set[str],
) -> Dict[str, LayerOwner]:
    """An owner for every layer that is there or that the records have.

    What nothing has is an orphan only if every record was readable and whole, nothing has it
    mounted and no other layer stands on it; else it is unknown. What vanished, or is being made,
    is left out. in_use: words_in_mounts.
    """
    settled = {}
    loose = {}
    listed = set(names)
    for name in listed | set(owners):
        owner = layer_owner_of(name, owners)
        if owner.role != "orphan":
            settled[name] = owner
        elif name in listed and not has_container_folder(root, owner):
            loose[name] = owner
    if not loose:
        return settled
    reasons = reasons_against_orphans(root, driver, set(loose), set(settled), in_use)
    for name, owner in loose.items():
        if name in reasons:
            note = join_notes(owner.note, reasons[name])
            owner = owner._replace(role=UNKNOWN, note=note)
        settled[name] = owner
    return settled


def reasons_against_orphans(
    root: OpenRoot, driver: str, loose: Set[str], settled: Set[str], in_use: Set[str]
) -> Dict[str, str]:
    """{layer: why it cannot be proved an orphan} of the loose ones that cannot."""
    lowers = read_lower_records(root, driver)  # what is not readable there is one more doubt
    doubts = [doubt for doubt in root.doubts if doubt.driver in ("", driver)]
    links = short_links(root, driver)
    aliases = {name: names_in_use_of(name, links, lowers) for name in loose}
    mounted = {name for name in loose if not in_use.isdisjoint(aliases[name])}
    above = layers_by_lower(lowers, settled | mounted)
    reasons = {}
    for name in loose:
        users = [above[alias] for alias in aliases[name] if alias in above]
        if name in mounted:
            reasons[name] = "it is mounted, though no record says whose it is"
        elif doubts:
            reasons[name] = doubts[0].reason
        elif users:
            reasons[name] = "layer %s stands on it" % users[0][:12]
    return reasons


def layer_owner_of(name: str, owners: Dict[str, LayerOwner]) -> LayerOwner:
    """A layer's owner; where no record has H-init, it is of the container of H."""
    if name in owners:
        return owners[name]
    if not name.endswith("-init"):
        return LayerOwner("orphan")
    base = owners.get(name[: -len("-init")])
    if base and base.role == "container":
        return base._replace(role="container-init")
    return LayerOwner("orphan")


def has_container_folder(root: OpenRoot, owner: LayerOwner) -> bool:
    """Whether the container of a layer still has its folder: it is being made or removed."""
    if not owner.container:
        return False
    return is_below(root, os.path.join("containers", owner.container))


def names_in_use_of(
    name: str, links: Dict[str, List[str]], lowers: Dict[str, LowerRecord]
) -> List[str]:
    """The names by which mounts and other layers mean a layer."""
    names = [re.sub("-(?:init|removing)\\Z", "", name)]
    names += links.get(name, [])
    if name in lowers:
        names.append(lowers[name].short)
    return names


def layers_by_lower(lowers: Dict[str, LowerRecord], layers: Set[str]) -> Dict[str, str]:
    """{a name of a lower layer: one of these layers that stands on it}."""
    above = {}
    for layer, record in lowers.items():
        if layer not in layers:
            continue
        for lower in record.below:
            above[lower] = layer
    return above


# The rows.


def add_rows(
    root: OpenRoot,
    driver: str,
    owners: Dict[str, LayerOwner],
    layers: Layers,
) -> None:
    """Adds the rows of one driver, and their names."""
    home = os.path.join(root.path, driver)
    devices = read_devices(root, driver)
    prefix = pool_prefix(home) if devices else ""
    links = short_links(root, driver)
    mounted = {mount.point for mount in mounts_of()} if owners else set()
    for name, owner in sorted(owners.items()):
        paths = layer_paths(home, driver, name, mounted)
        if owner.role in ("orphan", UNKNOWN) and not paths:
            continue  # it vanished
        row = layer_row(driver, name, owner, paths, layers)
        names = names_of_layer(name, owner, layers)
        names.update(links.get(name, []))
        device = devices.get(name)
        if device:
            add_device(row, device, prefix + name)
            names.update([str(device.device_id), prefix + name])
        for each_name in names:
            layers.names.setdefault(each_name, []).append(len(layers.rows))
        layers.rows.append(row)


def read_devices(root: OpenRoot, driver: str) -> Dict[str, Optional[DeviceRecord]]:
    """{layer: its device} of a driver in a pool."""
    facts = STORAGE_DRIVERS[driver]
    if not facts.in_pool:
        return {}
    folder = os.path.join(driver, facts.layer_folder)
    form = layer_form(facts)
    return read_records(root, folder, (), parse_device_record, needed_for=None, form=form)


def add_device(row: dict, device: DeviceRecord, name: str) -> None:
    """Adds to a row the device that has the layer."""
    row["device"] = name
    row["device_id"] = device.device_id
    row["device_size"] = device.size
    if device.deleted and not row["note"]:
        row["note"] = (
            "removed; the driver deletes it later, after docker's next start at the latest"
        )


def names_of_layer(name: str, owner: LayerOwner, layers: Layers) -> Set[str]:
    """All names that lead to a layer, but for those of the driver's own."""
    names = {name, *owner.aliases}
    if owner.container:
        names.add(owner.container)
    record = layers.containers.get(owner.container)
    if record and record.name:
        names.add(record.name)
    for image in owner.images:
        names.add(image)
        names.update(layers.images.get(image, []))
    return names


def layer_paths(home: str, driver: str, name: str, mounted: Set[str]) -> List[str]:
    """The paths of a layer that are there, those that are mount points first."""
    at_rest = []
    in_use = []
    for form in STORAGE_DRIVERS[driver].paths:
        path = os.path.join(home, form % name)
        if not os.path.lexists(os_bytes(path)):
            continue
        if path in mounted:
            in_use.append(path)
        else:
            at_rest.append(path)
    return in_use + at_rest


def layer_row(driver: str, name: str, owner: LayerOwner, paths: List[str], layers: Layers) -> dict:
    """A row as Layers has it."""
    record = layers.containers.get(owner.container, ContainerRecord())
    image_ids = owner.images
    if not image_ids and record.image:
        image_ids = (record.image,)
    images = []
    for image in image_ids:
        images.append({"id": image, "tags": layers.images.get(image, [])})
    container = None
    if owner.container:
        container = {"id": owner.container, "name": record.name}
    note = owner.note
    if not note and not paths and not STORAGE_DRIVERS[driver].hidden_at_rest:
        note = "its folder is missing"
    return {
        "layer": name,
        "driver": driver,
        "paths": paths,
        "role": owner.role,
        "container": container,
        "images": images,
        "note": note,
    }


# Reading a Docker root.


def read_layers(path: str, follow: bool = False) -> Layers:
    """The layer table of a Docker root (of its uid.gid folders too, where users are remapped), from
    the files alone.

    follow: for the daemon's own root, whose first level may be links; there, what is half made or
    half removed at the first look is looked at again, and an orphan is one at both. Raises
    EnvironmentFault where the root itself cannot be read, or is none.
    """
    first = read_layers_once(path, follow)
    if not first.rows and not first.containers and not looks_like_root(path):
        raise EnvironmentFault(
            "%s holds nothing of Docker's: is its disk mounted?" % path,
            "findmnt -T %s" % quote_word(path),
        )
    loose = {(row["driver"], row["layer"]) for row in first.rows if row["role"] == "orphan"}
    is_settled = not loose and not first.unread and not first.doubts
    if is_settled or not follow:
        return first
    time.sleep(LOOK_AGAIN_SECONDS)
    again = read_layers_once(path, follow)
    for row in again.rows:
        if row["role"] == "orphan" and (row["driver"], row["layer"]) not in loose:
            row["role"] = UNKNOWN
            row["note"] = "made or removed just now"
    # docker deletes a container's folder last: one that was whole at first is being removed
    for container in set(again.lost) - set(first.lost):
        del again.lost[container]
    return again


def looks_like_root(path: str) -> bool:
    """Whether a folder has any of what an engine makes first."""
    for name in ("containers", "image", "graph"):
        if os.path.isdir(os_bytes(os.path.join(path, name))):
            return True
    return False


def read_layers_once(path: str, follow: bool) -> Layers:
    """One look at a Docker root, as read_layers has it."""
    layers = Layers([], {}, {}, {}, {}, {}, {}, {}, [], set())
    fd = open_docker_root(path)
    root = OpenRoot(real_path(path), fd, follow, layers.unread, [])
    remapped = list_records(root, ".", needed_for=None, form=r"[0-9]+\.[0-9]+\Z")
    for name in [".", *remapped]:
        tree_path = os.path.normpath(os.path.join(root.path, name))
        tree_fd = open_below(root, name, needed_for=None)
        tree_root = OpenRoot(tree_path, tree_fd, follow, layers.unread, [])
        if tree_fd >= 0:
            read_tree(tree_root, layers)
            os.close(tree_fd)
        for doubt in tree_root.doubts:
            if doubt not in layers.doubts:
                layers.doubts.append(doubt)
    os.close(fd)
    return layers


def open_docker_root(path: str) -> int:
    """A descriptor of a Docker root, which may be a link. Raises EnvironmentFault."""
    try:
        return os.open(os_bytes(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        hint = "--root DIR names another"
        if isinstance(err, PermissionError):
            hint = "sudo python3 dockfix.py ..."
        raise EnvironmentFault(
            "Docker's root %s cannot be read: %s" % (path, err.strerror), hint
        ) from None


def read_tree(root: OpenRoot, layers: Layers) -> None:
    """Adds one tree's rows. The drivers' folders are listed before the records are read, so that a
    layer made meanwhile is in no list."""
    homes = list_driver_homes(root)
    containers = read_container_records(root, required=any(homes.values()))
    graph = read_records(root, "graph", ("json",), parse_graph_parent, needed_for="")
    database = read_build_database(root, homes)
    tree = LayerTree(homes, containers, graph, is_since_1_10(root, graph))
    layers.containers.update(containers)
    by_driver = {}  # type: Dict[str, DriverOwners]
    recorded = {}  # type: Dict[str, Set[str]]
    for driver in homes:
        by_driver[driver] = assign_driver_owners(root, tree, driver, layers)
        recorded[driver] = by_driver[driver].recorded
    note_lost_records(root, tree, recorded, layers)
    in_use = words_in_mounts(root, tree, by_driver)
    for driver, names in homes.items():
        with_cache = mark_build_cache(names, by_driver[driver].owners, database)
        settled = prove_orphans(root, driver, names, with_cache, in_use)
        add_rows(root, driver, settled, layers)


# Orphans: what the daemon says.


def confirm_orphans(
    host: Host, root: str, layers: Layers, info: Optional[EngineInfo]
) -> Optional[Dict[str, Container]]:
    """All containers as docker has them, None where it was not asked.

    The last part of the proof that a layer is an orphan: a daemon that answers agrees. It knows
    containers and images whose records are gone from the disk until its next start. Without it, the
    layer of a container whose folder alone is gone stays unknown.
    """
    orphans = [row for row in layers.rows if row["role"] == "orphan"]
    if not orphans and not layers.lost:
        return None
    of_containers = [row for row in orphans if row["container"]]
    if info is None:
        doubt = Doubt("", "only docker can tell whether that container is gone", False)
        withdraw_orphans(layers, of_containers, doubt)
        return None
    try:
        ids = {target.id for target in list_containers(host)}
        inspected = inspect_containers(host, sorted(ids.union(layers.lost)))
    except EnvironmentFault as err:
        doubt = Doubt("", "docker could not be asked about it: %s" % err.msg, True)
        withdraw_orphans(layers, orphans, doubt)
        return None
    others = [row for row in of_containers if row["driver"] != info.driver]
    doubt = Doubt("", "docker, which runs with another storage driver, cannot confirm it", False)
    withdraw_orphans(layers, others, doubt)
    for container in inspected.values():
        if container.driver in STORAGE_DRIVERS:
            compare_orphans(host, root, layers, container)
    compare_image_counts(layers, info, orphans)
    return inspected


def compare_image_counts(layers: Layers, info: EngineInfo, orphans: List[dict]) -> None:
    """Takes back the orphans of docker's driver where docker has images that no record tells of."""
    recorded = layers.image_counts.get(info.driver)
    known = info.images or 0
    if recorded is None or known <= recorded:
        return
    own = [row for row in orphans if row["driver"] == info.driver]
    reason = "docker has %d images, but only %d are recorded" % (known, recorded)
    withdraw_orphans(layers, own, Doubt(info.driver, reason, False))


def withdraw_orphans(layers: Layers, rows: List[dict], doubt: Doubt) -> None:
    """Makes those of the rows that are orphans by the files alone unknown."""
    orphans = [row for row in rows if row["role"] == "orphan"]
    if not orphans:
        return
    layers.doubts.append(doubt)
    for row in orphans:
        row["role"] = UNKNOWN
        row["note"] = join_notes(row["note"], doubt.reason)


def compare_orphans(host: Host, root: str, layers: Layers, container: Container) -> None:
    """Takes back what docker says that a container uses, and all that could be of a container whose
    records are gone."""
    rows = [row for row in layers.rows if row["driver"] == container.driver]
    used = named_layers(container, with_lower=True)
    reason = "docker says that container %s uses it" % container.name
    named = [row for row in rows if base_layer(row) in used]
    withdraw_orphans(layers, named, Doubt(container.driver, reason, False))
    if container.id in layers.lost:
        lost = layers.lost[container.id]
        layers.lost[container.id] = LostRecord(lost.name, lost.missing, lost.root, True)
        note_layers_of(layers, container)
    elif is_folder_lost(host, root, layers, container):
        folder = os.path.join(root, "containers", container.id)
        layers.lost[container.id] = LostRecord(container.name, folder, root, True)
        reason = LOST_REASON % container.name
        withdraw_orphans(layers, rows, Doubt(container.driver, reason, False))
        note_layers_of(layers, container)


def is_folder_lost(host: Host, root: str, layers: Layers, container: Container) -> bool:
    """Whether docker still has a container whose folder is gone, and that was not made or removed
    just now."""
    if container.id in layers.containers:
        return False
    folder = os.path.join(root, "containers", container.id)
    if os.path.lexists(os_bytes(folder)):
        return False
    return bool(inspect_containers(host, [container.id]))


def named_layers(container: Container, with_lower: bool) -> Set[str]:
    """The layers that docker inspect names for a container. with_lower: those below its own too."""
    names = set()  # type: Set[str]
    for key, value in container.layer.items():
        if with_lower or key != "LowerDir":
            names.update(re.findall("[0-9a-z]{25,}", value))
    return names


def base_layer(row: dict) -> str:
    """A layer's name as docker inspect has it: an init layer goes with the container's own."""
    return re.sub(r"-init\Z", "", row["layer"])


def note_layers_of(layers: Layers, container: Container) -> None:
    """Gives a container whose layer record is gone from the disk the layers that docker, which
    still has it in memory, names."""
    own = named_layers(container, with_lower=False)
    note = "docker says that it is of container %s, whose layer record is missing" % container.name
    for number, row in enumerate(layers.rows):
        if row["role"] != UNKNOWN or base_layer(row) not in own:
            continue
        row["container"] = {"id": container.id, "name": container.name}
        row["note"] = note
        for name in (container.id, container.name):
            layers.names.setdefault(name, []).append(number)


# Containers without a layer record.


def lost_record_findings(layers: Layers) -> List[Finding]:
    """A finding for each container whose layer record is gone: docker forgets it at its next start,
    and nothing else leads to its files."""
    unknown = [row for row in layers.rows if row["role"] == UNKNOWN]
    findings = []
    for container, lost in sorted(layers.lost.items()):
        short = container[:12]
        text = "container %s has no layer record: %s is missing" % (
            lost.name or short,
            lost.missing,
        )
        if lost.known:
            text += "; docker forgets it at its next start, and its files with it"
            remedy = "docker export -o %s.tar %s" % (short, short)
        else:
            text += ", and docker does not know it any more"
            remedy = "python3 dockfix.py owner --root %s" % quote_word(lost.root)
        if unknown:
            count = format_count(len(unknown), "layer")
            text += "; the owner of %s is unknown: delete none of them" % count
        findings.append(Finding("layer-record-lost", "warning", text, remedy))
    return findings


def read_lost_record_findings(host: Host) -> List[Finding]:
    """lost_record_findings for a command that does not read the layers itself; none where this
    host's files cannot be read, or are not the engine's."""
    try:
        info = engine_info(host)
        require_same_host(info, "its layers")
        layers = read_layers(info.root, follow=True)
        confirm_orphans(host, info.root, layers, info)
    except EnvironmentFault:
        return []
    return lost_record_findings(layers)


###############################################################################
# 18. Which engine answers
###############################################################################

# `docker` speaks to whatever DOCKER_HOST, a context or a wrapper names, but `systemctl stop docker`
# stops the service of this host. So a storage change looks which socket the docker command uses,
# which process listens there, and whether that is the service's main process, on the root that is
# to be changed. From then on every call names that socket, also in the script and in the journal:
# DOCKER_HOST and contexts decide nothing any more (docker/cli, cli/command/cli.go: -H comes first).
# The name that `docker info` tells proves nothing by itself.


DEFAULT_SOCKET = "/var/run/docker.sock"
DEFAULT_PID_FILE = (  # dockerd's own default; Debian's init script names the same
    "/var/run/docker.pid"
)
NOT_THE_SERVICE = "  # for this host's docker service; no other engine's storage is changed"


class Client(NamedTuple):
    """A docker command, with what names an engine apart: host is the value of -H, context that of
    --context; '' for none."""

    words: Tuple[str, ...]
    host: str
    context: str


class Service(NamedTuple):
    """This host's docker service, proved to be what answers.

    socket: where its main process listens.
    root: its data, links resolved.
    main: the program that prints the number of its main process.
    configured: whether the host's settings name that root, so that it can be told with the daemon
        down.
    """

    socket: str
    root: str
    main: Tuple[str, ...]
    configured: bool

    def facts(self, host: Host, new_root: str) -> dict:
        """What a plan keeps of it: tests for the moment when it begins, and what resume and
        rollback prove again. new_root: the root afterwards."""
        root = engine_info(host).root
        proof = [
            ["has", "Docker Root Dir: " + root, *host.docker, "info"],
            ["serves", self.root, *self.main],
        ]
        engine = {
            "socket": self.socket,
            "roots": [self.root, new_root],
            "configured": self.configured,
        }
        return {"proof": proof, "engine": engine}


def without_remap(root: str) -> str:
    """The daemon's data root as its settings name it: without the uid.gid part of user-namespace
    remapping."""
    return re.sub(r"/[0-9]+\.[0-9]+\Z", "", root)


def split_client(command: Sequence[str]) -> Client:
    """Only what stands behind the docker program counts: `sudo -H docker` names no engine."""
    start = 1
    for number, word in enumerate(command):
        if re.match(r"(docker|podman)(-[\w.]+)?\Z", os.path.basename(word)):
            start = number + 1
            break
    words, rest = list(command[:start]), list(command[start:])
    named = {"host": "", "context": ""}
    while rest:
        word = rest.pop(0)
        option = re.match(r"(-H|-c|--host(?==|\Z)|--context(?==|\Z))=?(.*)\Z", word, re.S)
        if not option:
            words.append(word)
            continue
        flag, value = option.groups()
        if not value and rest:
            value = rest.pop(0)
        if flag in ("-H", "--host"):
            named["host"] = value
        else:
            named["context"] = value
    return Client(tuple(words), named["host"], named["context"])


def with_socket(host: Host, socket: str) -> Host:
    """The same with a docker command that speaks to this unix socket, whatever the environment
    says."""
    client = split_client(host.docker)
    return host._replace(docker=(*client.words, "-H", "unix://" + socket))


def client_endpoint(host: Host) -> str:
    """The engine that the docker command speaks to, such as unix:///var/run/docker.sock or
    tcp://HOST:PORT, by docker's own word; no daemon is asked. Clients before 19.03 know no
    contexts: there it is -H, else DOCKER_HOST, else the default."""
    answer = query(host, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    endpoint = answer.out_text().strip()
    if answer.rc == 0 and "://" in endpoint:
        return endpoint
    if re.search(r"context .*not found", answer.text()):
        raise EnvironmentFault("docker: " + first_line(answer), "docker context ls")
    client = split_client(host.docker)
    if client.host:
        return client.host
    variable = os.fsencode(os.environ.get("DOCKER_HOST", ""))
    if variable:
        return os_text(variable)
    return "unix://" + DEFAULT_SOCKET


def own_engine_hint(host: Host) -> str:
    """How to speak to this host's service instead: by what it is that names another engine."""
    client = split_client(host.docker)
    if client.host or client.context:
        line = "--docker " + quote_word(quote_line(client.words))
    elif os.environ.get("DOCKER_HOST"):
        line = "env -u DOCKER_HOST python3 dockfix.py ..."
    else:
        line = "env DOCKER_HOST=unix://%s python3 dockfix.py ..." % DEFAULT_SOCKET
    return line + NOT_THE_SERVICE


def socket_of(endpoint: str) -> str:
    """The path of a unix socket's endpoint; '' for an engine that is reached in another way."""
    if not endpoint.startswith("unix://"):
        return ""
    return endpoint[len("unix://") :] or DEFAULT_SOCKET


def require_local_socket(host: Host, endpoint: str) -> str:
    """The path of the unix socket. Raises Refused for an engine that is reached in another way, and
    for a rootless one's socket."""
    socket = socket_of(endpoint)
    if not socket:
        raise Refused(
            "the docker command speaks to %s: that engine need not be on this host, and is not"
            " reached as its docker service is" % endpoint,
            own_engine_hint(host),
        )
    if real_path(socket).startswith("/run/user/"):
        raise Refused(
            "the docker command speaks to a rootless engine, at %s" % endpoint,
            own_engine_hint(host),
        )
    return socket


def require_docker(host: Host, *arguments: str) -> Answer:
    """docker's answer, failed or not. Raises Refused where podman answers.

    podman takes docker's words (podman-docker, or its socket), but its storage is another one, and
    no service. arguments: of the docker call that tells ('version': client and engine; '--version':
    the client alone).
    """
    answer = query(host, *arguments)
    if re.search(r"podman", answer.text(), re.I):
        raise Refused(
            "what answers is podman, not Docker: dockfix does not change its storage",
            "podman system df; podman system prune; man containers-storage.conf",
        )
    return answer


def require_rootful(host: Host, info: EngineInfo, endpoint: str) -> None:
    """Raises Refused for an engine of another host, and for a rootless one."""
    if any("rootless" in option for option in info.security_options):
        raise Refused(
            "the engine at %s is rootless (data in %s): it is a user's own, not this host's docker"
            " service" % (endpoint, info.root),
            own_engine_hint(host),
        )
    here = os.uname().nodename
    if not info.host_name:
        raise Refused("the engine at %s does not say on which host it is" % endpoint, "docker info")
    if info.host_name != here:
        raise Refused(
            "the engine at %s is on the host %s, and this is %s" % (endpoint, info.host_name, here),
            "run dockfix on " + info.host_name,
        )


def main_process_words() -> Tuple[str, ...]:
    """The program that prints the number of the service's main process: systemd's, or one for the
    pid file that the daemon is started with."""
    if os.path.isdir(SYSTEMD_MARK):
        return ("systemctl", "show", "-p", "MainPID", "docker.service")
    return ("cat", service_pid_file())


def service_pid_file(settings_file: str = "/etc/default/docker") -> str:
    """The pid file of a daemon that an init script starts.

    Debian's and Ubuntu's script (docker's contrib/init/sysvinit-debian/docker) reads both variables
    from the settings file and runs `dockerd -p "$DOCKER_PIDFILE" $DOCKER_OPTS`: an option comes
    later and wins.
    """
    option = next_options(option_sources()).get("pidfile")
    if option:
        return option
    _, variables, _ = read_settings(settings_file, environment_settings)
    path = variables.get("DOCKER_PIDFILE", "")
    if path.startswith("/") and "$" not in path:
        return path
    return DEFAULT_PID_FILE


def main_process(host: Host, main: Tuple[str, ...]) -> int:
    """The number of the service's main process, 0 where it does not run. main: as
    main_process_words has it."""
    answer = query_host(host, main)
    pid = last_number(answer.out_text())
    if not process_is_alive(pid):
        return 0
    return pid


def socket_holder(socket: str) -> str:
    """Who listens at a path, for messages. systemd (pid 1) only where it is the only one."""
    listening = [pid for pid in all_processes() if process_listens(pid, socket)]
    if not listening:
        return "a process that this host does not show"
    return process_name(max(listening))


def require_service_process(
    host: Host, pid: int, main: Sequence[str], socket: str, root: str
) -> None:
    """Raises Refused where the service's main process (pid, 0 for none) is not what listens at the
    socket, or not what has the root."""
    asked = "%s, from which the docker command gets its answers (data in %s)," % (socket, root)
    service = "the docker service of this host"
    # The service runs.
    if not pid:
        raise Refused(
            "%s is held by %s, and %s does not run (%s names no process)"
            % (asked, socket_holder(socket), service, quote_line(main)),
            own_engine_hint(host),
        )
    # It, or a process that it started, listens at the socket.
    family = process_and_children(pid)
    listening = [member for member in family if process_listens(member, socket)]
    if not listening:
        raise Refused(
            "%s is held by %s, and %s is %s"
            % (asked, socket_holder(socket), service, process_name(pid)),
            own_engine_hint(host),
        )
    # The same process has the root.
    if not any(process_uses(member, root) for member in listening):
        raise Refused(
            "%s, %s, has no file of %s open: that is another engine's root"
            % (service, process_name(listening[0]), root),
            own_engine_hint(host),
        )


def info_by_socket(host: Host, socket: str) -> EngineInfo:
    """What `docker info` says by this very socket: named by a descriptor of this process (proc(5)),
    which a docker command that goes to another host, or runs in a container, does not find. Raises
    OSError, EnvironmentFault."""
    descriptor = os.open(os_bytes(socket), os.O_PATH | os.O_RDONLY | os.O_CLOEXEC)
    try:
        path = "/proc/%d/fd/%d" % (os.getpid(), descriptor)
        return read_engine_info(with_socket(host, path))
    finally:
        os.close(descriptor)


def is_same_engine(first: EngineInfo, second: EngineInfo) -> bool:
    return (
        first.id == second.id
        and first.host_name == second.host_name
        and first.root == second.root
        and first.version == second.version
    )


def require_same_answer(host: Host, socket: str, info: EngineInfo) -> None:
    """Raises Refused where the docker command, as it was given, does not speak to this socket of
    this host."""
    command = quote_line(host.docker)
    try:
        by_socket = info_by_socket(host, socket)
    except (OSError, EnvironmentFault) as err:
        reason = str(err)
        if isinstance(err, OSError) and err.strerror:
            reason = err.strerror
        raise Refused(
            "the docker command (%s) does not reach %s of this host: %s"
            % (command, socket, reason),
            "--docker docker; a wrapper that goes to another host or into a container will not do",
        ) from None
    if not is_same_engine(by_socket, info):
        raise Refused(
            "the docker command (%s) speaks to another engine (data in %s) than %s (data in %s)"
            % (command, info.root, socket, by_socket.root),
            own_engine_hint(host),
        )


def require_root_of_engine(host: Host, info: Optional[EngineInfo], root: str) -> None:
    """For what is done on the files of a root themselves, of whichever engine of this host. info:
    what it says, None where it is silent: then the root is that of this host's settings, so it must
    be the service that was meant. Raises Refused."""
    endpoint = client_endpoint(host)
    socket = socket_of(endpoint)
    # The engine is on this host.
    if not socket:
        raise Refused(
            "the docker command speaks to %s: that %s is a folder of this host cannot be proved"
            % (endpoint, root),
            own_engine_hint(host),
        )
    # A silent engine is this host's service.
    if info is None:
        if real_path(socket) != real_path(DEFAULT_SOCKET):
            raise Refused(
                "the engine at %s does not answer, and %s is the root of this host's docker service"
                % (endpoint, root),
                own_engine_hint(host),
            )
        return
    # What listens at the socket has the root.
    users = [pid for pid in all_processes() if process_uses(pid, real_path(root))]
    if not any(process_listens(pid, socket) for pid in users):
        raise Refused(
            "the engine at %s says that its data is in %s, and no process that listens there has a"
            " file of it open" % (endpoint, root),
            "run dockfix on the host of that engine, as it sees its own files",
        )
    require_same_answer(host, socket, info)


def root_by_settings(pid: int) -> str:
    """The data root of the service's next start: by the host's settings, else by the command line
    of its process of now (pid, 0 for none)."""
    root = next_options(option_sources()).get("data-root")
    if not root and pid:
        command_line = suppress_errors(read_host_text, "/proc/%d/cmdline" % pid) or ""
        root = dict(parse_daemon_flags(command_line.split("\0"))).get("data-root")
    return real_path(root or DOCKER_ROOT)


def require_root_user() -> None:
    if os.geteuid() != 0:
        raise EnvironmentFault(
            "only root can see which process the docker service is", "sudo python3 dockfix.py ..."
        )


def prove_engine(host: Host) -> Tuple[Host, Service]:
    """The host with a docker command that speaks to this host's docker service and nothing else,
    and what is known of that service. Everything that stops, moves or edits begins with this, a dry
    run too. Raises Refused where another engine answers."""
    require_root_user()
    endpoint = client_endpoint(host)
    # The socket is this host's: asked first, because an engine far away may take long to answer.
    socket = require_local_socket(host, endpoint)
    # Docker answers, on this host, as root.
    require_answer(require_docker(host, "version"), "docker version")
    info = engine_info(host)
    require_rootful(host, info, endpoint)
    # The service's process listens there and has the root.
    root = real_path(info.root)
    main = main_process_words()
    pid = main_process(host, main)
    require_service_process(host, pid, main, socket, root)
    require_same_answer(host, socket, info)
    # It will have the same root after its next start.
    own_root = without_remap(root)
    next_root = root_by_settings(pid)
    if next_root != own_root:
        raise Refused(
            "the docker service has its data in %s, and would have it in %s after its next start"
            % (own_root, next_root),
            "put data-root right in its settings, or restart docker; then again",
        )
    is_configured = root_by_settings(0) == next_root
    return with_socket(host, socket), Service(socket, root, main, is_configured)


def require_engine_of(host: Host, engine: dict) -> Host:
    """The same for a change that was begun: the docker command of now means the engine of then, and
    the service of this host, up or down, still is that engine. engine: Service.facts. Raises
    Refused."""
    require_root_user()
    # The docker command means the same socket.
    endpoint = client_endpoint(host)
    socket, roots = engine["socket"], engine["roots"]
    if real_path(require_local_socket(host, endpoint)) != real_path(socket):
        raise Refused(
            "the docker command speaks to %s, and the change is about the docker service at %s"
            % (endpoint, socket),
            own_engine_hint(host),
        )
    # It is Docker's. No daemon is asked: a connection to docker.socket might start it.
    require_docker(host, "--version")
    # A service that runs has one of the change's roots.
    pid = wait_for_root(host, roots)
    # One that is down will have one of them after its next start.
    if not pid and engine["configured"]:
        next_root = root_by_settings(0)
        if next_root not in [without_remap(root) for root in roots]:
            raise Refused(
                "the docker service of this host is down, and by its settings its data is in %s,"
                " not in %s" % (next_root, " or ".join(sorted(set(roots)))),
                "put data-root right in its settings, then again",
            )
    return with_socket(host, socket)


def wait_for_root(host: Host, roots: Sequence[str]) -> int:
    """The number of the service's main process, once it has files of one of the roots open: a
    daemon that just starts has none open yet. 0 where the service is down. Raises Refused after 30
    seconds."""
    main = main_process_words()
    end = time.monotonic() + 30
    while True:
        pid = main_process(host, main)
        if not pid or has_one_of(pid, roots):
            return pid
        if time.monotonic() > end:
            raise Refused(
                "the docker service of this host, %s, has no file of %s open"
                % (process_name(pid), " or ".join(sorted(set(roots)))),
                "docker info; the settings that name its data root",
            )
        time.sleep(0.2)


def has_one_of(pid: int, roots: Sequence[str]) -> bool:
    for member in process_and_children(pid):
        if any(process_uses(member, root) for root in roots):
            return True
    return False


###############################################################################
# 19. storage
###############################################################################

# Shows where the space goes: driver, pool, disks, images, containers, volumes, logs, build cache;
# and findings, each with the command to type next.
#
# It only looks. It never changes anything, and never prints an unknown figure as 0: what cannot be
# read is None, and the reason stands in `missing`.
#
# It rests on `docker info`, on the files below Docker's root, on statvfs, and on dmsetup and the
# loop files of a devicemapper pool. Each figure comes with its source.
#
# To add a finding: write a function that takes StorageFacts and returns a list of Finding, and add
# its name to STORAGE_FINDINGS. Then add a row to CASES in tests/unit/test_findings.py: the facts,
# and the finding that they make. A fact that is not in StorageFacts yet is a field of it first, and
# collect_from_files fills it in.


# Facts.


Value = TypeVar("Value")


class Fact(Generic[Value]):
    """A value and where it comes from. value: None where it is unknown; source: '' there."""

    def __init__(self, value: Optional[Value] = None, source: str = "") -> None:
        self.value = value
        self.source = source if value is not None else ""


def first_known(*facts: Fact[Value]) -> Fact[Value]:
    """The first fact whose value is known. The facts stand in the order of trust."""
    for fact in facts:
        if fact.value is not None:
            return fact
    return Fact()


class EngineFacts(NamedTuple):
    """What is known of the engine.

    image_store: "graphdriver" or "containerd".
    system: the engine's operating system, as docker info has it.
    """

    driver: Fact[str] = Fact()
    server_version: Fact[str] = Fact()
    root: Fact[str] = Fact()
    image_store: Fact[str] = Fact()
    system: Optional[str] = None
    backing_filesystem: Optional[str] = None


class PoolSpace(NamedTuple):
    """The data space or the metadata space of a thin pool. Sizes are bytes.

    device: as docker info has it.
    available: what can still be used; never more than the disk of a loop file has free.
    loop_file: the path of the file that holds the space.
    allocated: what that file takes of its disk.
    disk_free: what that disk has free.
    """

    device: Fact[str] = Fact()
    used: Fact[int] = Fact()
    total: Fact[int] = Fact()
    available: Fact[int] = Fact()
    loop_file: Fact[str] = Fact()
    allocated: Fact[int] = Fact()
    disk_free: Fact[int] = Fact()

    def used_percent(self) -> Optional[float]:
        return percent(self.used.value, self.total.value)


class Pool(NamedTuple):
    """The thin pool of devicemapper. Sizes are bytes.

    mode: "loop", "direct" or "unknown", and mode_reason says why.
    state: "rw", "ro", "out_of_data_space" or "Fail".
    base_device_size: what a container's file system may take.
    min_free: what the driver keeps free in the data space.
    """

    name: Fact[str] = Fact()
    mode: Fact[str] = Fact()
    mode_reason: Fact[str] = Fact()
    state: Fact[str] = Fact()
    needs_check: Fact[bool] = Fact()
    failed: Fact[bool] = Fact()
    block_size: Fact[int] = Fact()
    base_device_size: Fact[int] = Fact()
    min_free: Fact[int] = Fact()
    data: PoolSpace = PoolSpace()
    metadata: PoolSpace = PoolSpace()


class Disk(NamedTuple):
    """The file system under a path, as df shows it. Sizes are bytes, and the names are those of the
    JSON document."""

    path: str
    device: int  # st_dev
    total: int
    free: int
    filesystem: Optional[str]
    mount_point: Optional[str]
    used_percent: Optional[float]
    inodes_used_percent: Optional[float]


class DiskUse(NamedTuple):
    """A disk, and what of Docker's is on it."""

    disk: Disk
    purposes: List[str]

    def title(self) -> str:
        return "the disk under %s (%s)" % (self.disk.path, ", ".join(self.purposes))


class DriverFolder(NamedTuple):
    """A storage driver's folder below Docker's root. size: bytes, measured only where the driver is
    not the engine's own."""

    driver: str
    path: str
    in_use: bool
    size: Optional[int]


UNKNOWN_SIZE = Measured(None, "unknown")


# What takes space: one row for each thing. The names are those of the JSON document.


class ContainerUsage(NamedTuple):
    """A container's own files, or its logs. rotated: something keeps its log short."""

    name: str
    running: Optional[bool]
    rotated: bool
    id: str
    size: Optional[int]
    complete: bool


class VolumeUsage(NamedTuple):
    name: str
    size: Optional[int]
    complete: bool


class LayerUsage(NamedTuple):
    """A layer of the build cache, or an orphan."""

    layer: str
    size: Optional[int]
    complete: bool


class ImageUsage(NamedTuple):
    """An image. size: bytes of the layers that no other image has, which is what deleting it would
    give; used: a container was made of it."""

    id: str
    tags: List[str]
    size: Optional[int]
    used: bool
    dangling: bool


class FolderUsage(NamedTuple):
    path: str
    size: Optional[int]
    complete: bool


MeasuredRow = TypeVar("MeasuredRow", ContainerUsage, VolumeUsage, LayerUsage, FolderUsage)
Row = TypeVar("Row", ContainerUsage, VolumeUsage, LayerUsage, FolderUsage, ImageUsage)


class Usage(Generic[Row]):
    """All things of one kind, the largest first.

    count: None where it is unknown how many there are.
    size: the sum of what is known; None, never 0, where nothing is.
    complete: nothing is missing in rows and size.
    count_source: where count comes from, '' for the rows.
    """

    def __init__(
        self,
        rows: Sequence[Row] = (),
        count: Optional[int] = None,
        size: Optional[int] = None,
        complete: bool = False,
        count_source: str = "",
    ) -> None:
        self.rows = sorted(rows, key=lambda row: row.size or 0, reverse=True)  # type: List[Row]
        self.count = count
        self.size = size
        self.complete = complete
        self.count_source = count_source


class EngineUsage(NamedTuple):
    """What takes space, by kind. What of it could be freed is a kind of its own."""

    # Of containers: their own files, without those of their images.
    containers: Usage[ContainerUsage] = Usage()
    stopped_containers: Usage[ContainerUsage] = Usage()
    # What json-file and local have written, rotated files too.
    logs: Usage[ContainerUsage] = Usage()
    volumes: Usage[VolumeUsage] = Usage()
    # No container has them.
    unused_volumes: Usage[VolumeUsage] = Usage()
    # BuildKit's layers that no image has.
    build_cache: Usage[LayerUsage] = Usage()
    # Layers that nothing has.
    orphans: Usage[LayerUsage] = Usage()
    images: Usage[ImageUsage] = Usage()
    # They have a name, but no container.
    unused_images: Usage[ImageUsage] = Usage()
    # They have neither.
    dangling_images: Usage[ImageUsage] = Usage()
    # A single folder; None where the engine does not use it.
    containerd_store: Optional[Usage[FolderUsage]] = None


class StorageFacts(NamedTuple):
    """All that `storage` knows. Its result row and its findings are made from this alone.

    missing: what is not known, a line for each.
    elsewhere: why the files of this host tell nothing of the engine, '' where they do.
    on_system_disk: Docker's root is on the disk of /.
    deleted_loop_files: those of the pool that have no name any more.
    warning, critical: per cent of fullness.
    """

    engine: EngineFacts = EngineFacts()
    pool: Optional[Pool] = None
    disks: Sequence[DiskUse] = ()
    on_system_disk: bool = False
    deleted_loop_files: Sequence[LoopFile] = ()
    usage: EngineUsage = EngineUsage()
    drivers_on_disk: Sequence[DriverFolder] = ()
    options: Sequence[OptionSource] = ()
    missing: Sequence[str] = ()
    elsewhere: str = ""
    warning: float = 80.0
    critical: float = 90.0

    def root(self) -> str:
        return self.engine.root.value or DOCKER_ROOT

    def in_containerd(self) -> bool:
        return self.engine.image_store.value == "containerd"

    def driver_options(self) -> Dict[str, str]:
        """The storage options in force, such as {"dm.basesize": "20G"}."""
        settings = {}
        for source in self.options:
            for option in source.options:
                if source.used and option.name == "storage-opt":
                    key, _, setting = option.value.partition("=")
                    settings[key] = setting
        return settings


def percent(part: Optional[int], whole: Optional[int]) -> Optional[float]:
    """Per cent with one digit; None where a number is unknown or the whole is 0."""
    if not whole or part is None:
        return None
    return round(100.0 * part / whole, 1)


# Parsing docker info.


def parse_engine(info: EngineInfo) -> EngineFacts:
    """The engine as docker info has it."""
    image_store = None
    if info.driver_status.get("driver-type"):
        image_store = "containerd"
    elif info.driver in STORAGE_DRIVERS:
        image_store = "graphdriver"
    return EngineFacts(
        driver=Fact(info.driver or None, "docker info"),
        server_version=Fact(info.version or None, "docker info"),
        root=Fact(info.root or None, "docker info"),
        image_store=Fact(image_store, "docker info"),
        system=info.os_type or None,
        backing_filesystem=info.driver_status.get("Backing Filesystem"),
    )


# The pool, from docker info, the kernel and its files.


class PoolFile(NamedTuple):
    """A file that holds a space of the pool. Sizes are bytes."""

    path: str
    length: int
    allocated: int
    disk_free: int


class PoolEvidence(NamedTuple):
    """What this host tells of the pool, beside docker info.

    loops: the files of "data" and "metadata" that are there.
    kernel: None where dmsetup does not know the pool.
    default_name: how the driver names the pool, '' where that cannot be told.
    base_size: bytes of the base device, by the driver's record.
    """

    loops: Dict[str, PoolFile]
    kernel: Optional[ThinPool] = None
    default_name: str = ""
    base_size: Optional[int] = None


class PoolReport:
    """The pool as docker info has it; every fact is unknown where it has none. The keys are fields
    of ReportedPool."""

    def __init__(self, info: EngineInfo) -> None:
        self.pool = None  # type: Optional[ReportedPool]
        if any(key in POOL_SIZES or key in POOL_WORDS for key in info.driver_status):
            self.pool = parse_reported_pool(info.driver_status)

    def text(self, key: str) -> Fact[str]:
        return Fact(getattr(self.pool, key, None), "docker info")

    def size(self, key: str) -> Fact[int]:
        """Bytes; docker info rounds them to four digits."""
        return Fact(getattr(self.pool, key, None), "docker info (four digits)")

    def failed(self) -> Fact[bool]:
        if self.pool is None:
            return Fact()
        return Fact(self.pool.failed, "docker info")


def parse_pool(info: EngineInfo) -> Optional[Pool]:
    """The pool as docker info has it, None where it has none."""
    reported = PoolReport(info)
    if reported.pool is None:
        return None
    return combine_pool(reported, PoolEvidence({}))


def combine_pool(reported: PoolReport, evidence: PoolEvidence) -> Pool:
    """The pool by the kernel, by its files, and by docker info, in this order of trust."""
    mode = pool_mode_of(reported, evidence)
    name = reported.text("name")
    if evidence.default_name:
        name = first_known(name, Fact(evidence.default_name, "its folder's inode"))
    base_size = Fact(evidence.base_size, "metadata/base")
    pool = Pool(
        name=name,
        mode=mode.mode,
        mode_reason=mode.reason,
        failed=reported.failed(),
        block_size=reported.size("block_size"),
        base_device_size=first_known(base_size, reported.size("base_device_size")),
        min_free=reported.size("min_free"),
        data=combine_pool_space("data", reported, evidence),
        metadata=combine_pool_space("metadata", reported, evidence),
    )
    kernel = evidence.kernel
    if not kernel:
        return pool
    return pool._replace(
        state=Fact(kernel.state, "dmsetup"),
        needs_check=Fact(kernel.needs_check, "dmsetup"),
        failed=Fact(kernel.state == "Fail", "dmsetup"),
        block_size=Fact(kernel.block, "dmsetup"),
    )


class PoolMode(NamedTuple):
    """mode and reason as in Pool."""

    mode: Fact[str]
    reason: Fact[str]


def pool_mode_of(reported: PoolReport, evidence: PoolEvidence) -> PoolMode:
    """The kernel decides; else docker info; and where that cannot tell, a loop file that is
    there."""
    if evidence.kernel:
        return kernel_pool_mode(evidence.kernel)
    mode = reported.text("mode")
    reason = reported.text("mode_why")
    if mode.value not in (None, "unknown") or not evidence.loops:
        return PoolMode(mode, reason)
    path = next(iter(evidence.loops.values())).path
    text = "there is a loop file %s" % path
    return PoolMode(Fact("loop", mode.source), Fact(text, reason.source))


def kernel_pool_mode(pool: ThinPool) -> PoolMode:
    """Major number 7 is the loop driver (kernel: admin-guide/devices.txt)."""
    mode = "direct"
    reason = "its data device is no loop device"
    if pool.data_dev.startswith("7:"):
        mode = "loop"
        reason = "its data device is a loop device"
    return PoolMode(Fact(mode, "dmsetup"), Fact(reason, "dmsetup"))


def combine_pool_space(kind: str, reported: PoolReport, evidence: PoolEvidence) -> PoolSpace:
    """One space of the pool, of "data" and "metadata". The kernel is exact. A loop file is as long
    as the space, unless the file was made longer since."""
    total = reported.size(kind + "_total")
    space = PoolSpace(
        device=reported.text(kind + "_file"),
        used=reported.size(kind + "_used"),
        total=total,
        available=reported.size(kind + "_available"),
        loop_file=reported.text(kind + "_loop_file"),
    )
    loop = evidence.loops.get(kind)
    if loop:
        # The file's length replaces a rounded figure that it confirms.
        if total.value is None or abs(total.value - loop.length) < total.value // 1000:
            total = Fact(loop.length, "stat of the loop file")
        space = space._replace(
            total=total,
            loop_file=first_known(space.loop_file, Fact(loop.path, "stat")),
            allocated=Fact(loop.allocated, "stat"),
            disk_free=Fact(loop.disk_free, "statvfs"),
        )
    if evidence.kernel:
        return with_kernel_figures(space, kind, evidence.kernel)
    return space


def with_kernel_figures(space: PoolSpace, kind: str, kernel: ThinPool) -> PoolSpace:
    """A space with what the kernel says: nothing where the pool has failed."""
    used, total = kernel.data_used, kernel.data_total
    if kind == "metadata":
        used, total = kernel.metadata_used, kernel.metadata_total
    if used is None or total is None:
        return space
    available = Fact(total - used, "dmsetup")
    disk_free = space.disk_free.value
    if disk_free is not None:
        available = Fact(max(0, min(total - used, disk_free)), "dmsetup, statvfs")
    return space._replace(
        used=Fact(used, "dmsetup"),
        total=Fact(total, "dmsetup"),
        available=available,
    )


# Reading: options, disks, drivers.


def engine_options(root: str) -> List[OptionSource]:
    """Where the options of the daemon with this root are set. That is in the host's settings, where
    they name this root; else in the daemon's own command line and the daemon.json that it names."""
    own = without_remap(root)
    configured = option_sources()
    of_process = []  # type: List[OptionSource]
    of_settings = []  # type: List[OptionSource]
    for daemon in running_daemons():
        given = dict(daemon.options)
        config_file = given.get("config-file") or "/etc/docker/daemon.json"
        text, options, fault = read_settings(config_file, parse_daemon_json)
        data_root = given.get("data-root") or dict(options).get("data-root") or DOCKER_ROOT
        if data_root == own:
            of_process.append(daemon)
            of_settings.append(
                OptionSource("daemon.json", config_file, "", text, options, True, fault)
            )
    configured_root_option = next_options(configured).get("data-root") or DOCKER_ROOT
    if configured_root_option == own:
        return configured + of_process
    running = []
    for daemon, settings in zip(of_process, of_settings):
        # No file of this host says how that daemon is started: its command line counts.
        running += [daemon._replace(used=True), settings]
    return running


def read_disk(path: str, mounts: List[Mount]) -> Optional[Disk]:
    """The file system under a path; None where it cannot be asked."""
    space = suppress_errors(os.statvfs, os_bytes(path))
    folder = suppress_errors(os.stat, os_bytes(path))
    if not space or not folder:
        return None
    filesystem = mount_point = None
    mount = mount_of(real_path(path), mounts)
    if mount:
        filesystem = mount.fstype
        mount_point = mount.point
    # As df does: what is kept for root counts neither as used nor as free.
    used = space.f_blocks - space.f_bfree
    inodes_used = space.f_files - space.f_ffree
    return Disk(
        path=path,
        device=folder.st_dev,
        total=space.f_blocks * space.f_frsize,
        free=space.f_bavail * space.f_frsize,
        filesystem=filesystem,
        mount_point=mount_point,
        used_percent=percent(used, used + space.f_bavail),
        inodes_used_percent=percent(inodes_used, inodes_used + space.f_favail),
    )


def collect_disks(root: str, driver: str) -> List[DiskUse]:
    """Each file system that holds a part of Docker's data, once."""
    mounts = mounts_of()
    by_device = {}  # type: Dict[int, DiskUse]
    places = (
        ("Docker's root", root),
        ("volumes", root + "/volumes"),
        ("layers", "%s/%s" % (root, driver)),
        ("pool files", root + "/devicemapper/devicemapper"),
        ("containerd's store", containerd_root(root)),
    )
    for purpose, path in places:
        disk = read_disk(path, mounts)
        if disk:
            use = by_device.setdefault(disk.device, DiskUse(disk, []))
            use.purposes.append(purpose)
    return list(by_device.values())


def drivers_below(root: str) -> List[str]:
    """The storage drivers that have a folder below Docker's root."""
    drivers = []
    for driver in STORAGE_DRIVERS:
        if os.path.isdir(os_bytes(os.path.join(root, driver))):
            drivers.append(driver)
    return drivers


def complete_engine(
    engine: EngineFacts, layers: Optional[Layers], options: List[OptionSource], on_disk: List[str]
) -> EngineFacts:
    """The engine, with what the options and the files tell where no daemon does. on_disk: the
    drivers that have a folder."""
    of_containers = []  # type: List[str]
    if layers:
        for facts in layers.containers.values():
            if facts.driver:
                of_containers.append(facts.driver)
    in_containerd = any(driver not in STORAGE_DRIVERS for driver in of_containers)
    if not in_containerd and not on_disk:
        in_containerd = has_rootfs(str(engine.root.value))
    usual = None
    if of_containers:
        usual = max(of_containers, key=of_containers.count)
    return engine._replace(
        driver=first_known(
            engine.driver,
            Fact(next_options(options).get("storage-driver"), "configuration"),
            Fact(usual, "the containers' files"),
            Fact(on_disk[0] if len(on_disk) == 1 else None, "the only driver's folder"),
        ),
        image_store=first_known(
            engine.image_store,
            Fact("containerd" if in_containerd else None, "the containers' files"),
        ),
    )


# Reading: the devicemapper pool.


class KernelPool(NamedTuple):
    """What dmsetup tells.

    pool: None where it does not know this pool.
    devices: {name: bytes mapped} of the active thin devices.
    faults: why something could not be read.
    """

    pool: Optional[ThinPool]
    devices: Dict[str, int]
    faults: List[str]


class PoolFiles(NamedTuple):
    """The files of "data" and "metadata" that are there, and why others could not be read."""

    by_kind: Dict[str, PoolFile]
    faults: List[str]


class PoolReading(NamedTuple):
    """A pool by all sources, None where there is none; devices and faults as in KernelPool."""

    pool: Optional[Pool]
    devices: Dict[str, int]
    faults: List[str]


def read_pool(host: Host, root: str, info: EngineInfo, layers: Optional[Layers]) -> PoolReading:
    """The pool by all sources: docker info, dmsetup, its files and the driver's records."""
    home = os.path.join(root, "devicemapper")
    reported = PoolReport(info)
    default_name = ""
    prefix = pool_prefix(home)
    if prefix:
        default_name = prefix + "pool"
    name = reported.text("name").value or default_name
    kernel = read_kernel_pool(host, name)
    evidence = PoolEvidence(
        loops={},
        kernel=kernel.pool,
        default_name=default_name,
        base_size=recorded_base_size(layers),
    )
    loops = PoolFiles({}, [])
    # A direct pool has no files: what is there was left by a loop pool of former days.
    if pool_mode_of(reported, evidence).mode.value != "direct":
        loops = read_loop_files(home, reported)
    pool = combine_pool(reported, evidence._replace(loops=loops.by_kind))
    faults = kernel.faults
    if pool.mode.value == "loop":
        faults = faults + loops.faults
    return PoolReading(pool, kernel.devices, faults)


def read_kernel_pool(host: Host, name: str) -> KernelPool:
    """One call of dmsetup for all tables, one for all states."""
    pool = None
    faults = []
    status_text = ""
    try:
        table_text = read_dmsetup(host, "table")
        status_text = read_dmsetup(host, "status")
        table = device_line(table_text, name)
        status = device_line(status_text, name)
        if table and status:
            pool = parse_thin_pool(table, status)
    except EnvironmentFault as err:
        faults.append(err.msg)
    devices = {}
    for device, sectors in re.findall(r"^(\S+): 0 [0-9]+ thin ([0-9]+) ", status_text, re.M):
        devices[device] = int(sectors) * 512
    return KernelPool(pool, devices, faults)


def read_dmsetup(host: Host, verb: str) -> str:
    """The output of `dmsetup table` or `dmsetup status` for all devices."""
    return require_answer(query_host(host, ("dmsetup", verb)), "dmsetup " + verb).out_text()


def device_line(text: str, name: str) -> str:
    """The line of one device in dmsetup's output, '' where there is none."""
    for line in text.split("\n"):
        if line.startswith("%s: " % name):
            return line
    return ""


def read_loop_files(home: str, reported: PoolReport) -> PoolFiles:
    """The pool's files, where docker info names them, else where the driver puts them."""
    files = {}
    faults = []
    for kind in ("data", "metadata"):
        path = reported.text(kind + "_loop_file").value
        if not path:
            path = os.path.join(home, "devicemapper", kind)
        try:
            loop = read_loop_file(path)
        except OSError as err:
            faults.append("%s: %s" % (path, err.strerror))
            continue
        if loop:
            files[kind] = loop
    return PoolFiles(files, faults)


def read_loop_file(path: str) -> Optional[PoolFile]:
    """None where it is no regular file, or its disk cannot be asked. Raises OSError where nothing
    is there."""
    state = os.lstat(os_bytes(path))
    disk = read_disk(os.path.dirname(path), [])
    if not stat.S_ISREG(state.st_mode) or not disk:
        return None
    allocated = state.st_blocks * 512
    return PoolFile(path, state.st_size, allocated, disk.free)


def recorded_base_size(layers: Optional[Layers]) -> Optional[int]:
    """Bytes of the base device, by the driver's own record."""
    if not layers:
        return None
    for row in layers.rows:
        if row["driver"] == "devicemapper" and row["layer"] == "base":
            return row.get("device_size")
    return None


# Reading: sizes.


class VolumeFolders(NamedTuple):
    """{volume: its folder}. fault: why they could not be listed, '' where they were."""

    paths: Dict[str, str]
    fault: str


class Sizes(NamedTuple):
    """What was measured: of containers and their logs by container id, of layers by layer, of
    volumes by name, of storage drivers that are not in use by driver.

    image_layers: only of a driver whose layers are whole copies.
    store: of containerd's store.
    faults: a line for each folder that was not measured as a whole.
    """

    containers: Dict[str, Measured]
    logs: Dict[str, Measured]
    volumes: Dict[str, Measured]
    cache_layers: Dict[str, Measured]
    orphans: Dict[str, Measured]
    image_layers: Dict[str, Measured]
    drivers: Dict[str, Measured]
    store: Measured
    faults: List[str]


def read_volume_folders(root: str, layers: Layers) -> VolumeFolders:
    """That there is no folder of volumes is a fault only where a container has a volume."""
    folder = root + "/volumes"
    try:
        names = sorted(os.listdir(os_bytes(folder)))
    except FileNotFoundError as err:
        if not any(facts.volumes for facts in layers.containers.values()):
            return VolumeFolders({}, "")
        return VolumeFolders({}, "%s: %s" % (folder, err.strerror))
    except OSError as err:
        return VolumeFolders({}, "%s: %s" % (folder, err.strerror))
    paths = {}
    for raw_name in names:
        name = os.fsdecode(raw_name)
        path = os.path.join(folder, name)
        # Beside the volumes is their database, a file.
        if os.path.isdir(os_bytes(path)):
            paths[name] = path
    return VolumeFolders(paths, "")


def measure_all(
    opts: Options, root: str, layers: Layers, folders: Dict[Tuple, str], devices: Dict[str, int]
) -> Sizes:
    """Folders are walked, thin devices were told by dmsetup, and logs are only listed.

    folders: {(kind, name): folder}, those of folders_to_measure.
    devices: bytes mapped in the active thin devices.
    """
    sizes = {}  # type: Dict[Tuple, Measured]
    faults = []  # type: List[str]
    if opts.quick:
        for key in folders:
            sizes[key] = Measured(None, "not measured (--quick)")
    else:
        sizes = walk_folders(opts, folders)
    sizes.update(device_sizes(layers, devices))
    add_init_layers(sizes)
    if not opts.quick:
        faults = incomplete_sizes(folders, sizes)
    logs = {}
    for ident in layers.containers:
        logs[ident] = log_size(root, ident)
    return Sizes(
        containers=sizes_of(sizes, "container"),
        logs=logs,
        volumes=sizes_of(sizes, "volume"),
        cache_layers=sizes_of(sizes, "cache"),
        orphans=sizes_of(sizes, "orphan"),
        image_layers=sizes_of(sizes, "image"),
        drivers=sizes_of(sizes, "driver"),
        store=sizes.get(("store", ""), UNKNOWN_SIZE),
        faults=faults[:20],
    )


def walk_folders(opts: Options, folders: Dict[Tuple, str]) -> Dict[Tuple, Measured]:
    """The sizes of folders; in WALK_SECONDS, unless --full gives all the time that it takes."""
    seconds = WALK_SECONDS
    if opts.full:
        seconds = 1e9
    progress = Progress("storage", len(folders), opts.quiet)
    sizes = measure_folders(folders, seconds, progress.show)
    progress.end()
    return sizes


def folders_to_measure(
    layers: Layers, volumes: VolumeFolders, store: str, drivers: Dict[str, str]
) -> Dict[Tuple, str]:
    """{(kind, name): folder} of those that are there.

    store: containerd's, '' where it is not used.
    drivers: {driver that is not in use: its folder}.
    """
    folders = layer_folders(layers)
    for name, path in volumes.paths.items():
        folders["volume", name] = path
    folders["store", ""] = store
    for name, path in drivers.items():
        folders["driver", name] = path
    return {key: path for key, path in folders.items() if os.path.isdir(os_bytes(path))}


def layer_folders(layers: Layers) -> Dict[Tuple, str]:
    """{(kind, name): folder} of the layers whose size no record tells. kind: the role, or "cache";
    name: the container's id for a container's layers, else the layer."""
    folders = {}  # type: Dict[Tuple, str]
    for row in layers.rows:
        kind = row["role"]
        name = row["layer"]
        if kind in ("container", "container-init"):
            name = row["container"]["id"]
        elif is_build_cache(row):
            kind = "cache"
        elif kind != "orphan" and not STORAGE_DRIVERS[row["driver"]].full_copies:
            continue  # layerdb has the size of an image's layer
        folder = own_folder(row)
        if folder:
            folders[kind, name] = folder
    return folders


def is_build_cache(row: dict) -> bool:
    """Whether a layer is of BuildKit's cache alone."""
    return row["note"] == "build cache"


def sizes_of(sizes: Dict[Tuple, Measured], kind: str) -> Dict[str, Measured]:
    """{name: size} of one kind."""
    chosen = {}
    for key, size in sizes.items():
        if key[0] == kind:
            chosen[key[1]] = size
    return chosen


def device_sizes(layers: Layers, devices: Dict[str, int]) -> Dict[Tuple, Measured]:
    """The containers' thin devices. Only an active device tells its size."""
    sizes = {}  # type: Dict[Tuple, Measured]
    for row in layers.rows:
        device = row.get("device")
        if not device or row["role"] != "container":
            continue
        ident = row["container"]["id"]
        sizes["container", ident] = Measured(None, "its device is not active")
        if device in devices:
            sizes["container", ident] = Measured(devices[device], "")
    return sizes


def add_init_layers(sizes: Dict[Tuple, Measured]) -> None:
    """Add each container's init layer to the container: it goes when the container goes. With vfs
    it is a whole copy."""
    for ident, init in sizes_of(sizes, "container-init").items():
        key = ("container", ident)
        own = sizes.get(key, UNKNOWN_SIZE)
        total = add_sizes((own.size, init.size))
        sizes[key] = Measured(total, own.reason or init.reason)


def incomplete_sizes(folders: Dict[Tuple, str], sizes: Dict[Tuple, Measured]) -> List[str]:
    """A line for each folder that was not measured as a whole."""
    lines = []
    for key, path in folders.items():
        if key[0] == "container-init":
            continue  # its size is in its container's
        measured = sizes[key]
        if measured.is_complete():
            continue
        line = "%s: %s" % (path, measured.reason)
        if measured.size is not None:
            line += ", at least %s" % format_size(measured.size)
        lines.append(line)
    return lines


def log_size(root: str, container: str) -> Measured:
    """Bytes that a container's logs take, the rotated ones too. The names are those of the log
    drivers json-file and local."""
    total = 0
    folder = os.path.join(root, "containers", container)
    prefixes = (os_bytes(container) + b"-json.log", b"container.log")
    try:
        places = [folder]
        if "local-logs" in os.listdir(os_bytes(folder)):
            places.append(os.path.join(folder, "local-logs"))
        for place in places:
            for entry in os.scandir(os_bytes(place)):
                if entry.name.startswith(prefixes):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError as err:
        return Measured(None, "not measured: %s" % err.strerror)
    return Measured(total, "")


# Deciding: what is used, and what could be freed.


def sum_known(sizes: Sequence[Optional[int]], whole: bool) -> Optional[int]:
    """The sum of the sizes that are known; None, never 0, where none is. whole: there are no more
    sizes than these."""
    known = [size for size in sizes if size is not None]
    if known or (whole and not sizes):
        return sum(known)
    return None


def usage_of(rows: Sequence[MeasuredRow], whole: bool) -> Usage[MeasuredRow]:
    """The rows with their number and sum. whole: the rows are all that there are; else there may be
    more, so that no row does not mean that there is none."""
    count = None
    if rows or whole:
        count = len(rows)
    sizes = [row.size for row in rows]
    return Usage(
        rows=rows,
        count=count,
        size=sum_known(sizes, whole),
        complete=whole and all(row.complete for row in rows),
    )


def container_rows(layers: Layers, sizes: Dict[str, Measured]) -> List[ContainerUsage]:
    """A row for each container. sizes: of their own files, or of their logs."""
    rows = []
    for ident, facts in layers.containers.items():
        measured = sizes.get(ident, UNKNOWN_SIZE)
        rows.append(
            ContainerUsage(
                name=facts.name,
                running=facts.running,
                rotated=facts.rotated,
                id=ident,
                size=measured.size,
                complete=measured.is_complete(),
            )
        )
    return rows


def volume_rows(volumes: VolumeFolders, sizes: Dict[str, Measured]) -> List[VolumeUsage]:
    rows = []
    for name in volumes.paths:
        measured = sizes.get(name, UNKNOWN_SIZE)
        row = VolumeUsage(name, measured.size, measured.is_complete())
        rows.append(row)
    return rows


def layer_rows(rows: Iterable[dict], sizes: Dict[str, Measured]) -> List[LayerUsage]:
    """A layer without a folder of its own, as with devicemapper, has no size."""
    usage = []
    for row in rows:
        name = row["layer"]
        measured = sizes.get(name, UNKNOWN_SIZE)
        usage.append(LayerUsage(name, measured.size, measured.is_complete()))
    return usage


def has_layer_records(engine: EngineFacts, layers: Layers) -> bool:
    """Whether the records tell all layers of the engine's driver. They do not where the layers are
    in containerd's store."""
    if engine.image_store.value == "containerd":
        return False
    if engine.driver.value:
        return engine.driver.value in layers.image_counts
    return bool(layers.image_counts)


def used_volumes_of(layers: Layers) -> Set[str]:
    """The volumes that a container has, running or not."""
    used = set()  # type: Set[str]
    for facts in layers.containers.values():
        used.update(facts.volumes)
    return used


class ImageLayer(NamedTuple):
    """A layer of images. images: the ids of those that have it; size: bytes, None if unknown."""

    images: Set[str]
    size: Optional[int]


def image_layers_of(layers: Layers, sizes: Sizes) -> List[ImageLayer]:
    """The layers that images have. A measured size comes before the one in layerdb."""
    image_layers = []
    for row in layers.rows:
        if row["role"] != "image":
            continue
        images = {image["id"] for image in row["images"]}
        size = layers.sizes.get(row["layer"])
        measured = sizes.image_layers.get(row["layer"])
        if measured:
            size = measured.size
        if images:  # the build cache has none
            image_layers.append(ImageLayer(images, size))
    return image_layers


class ImageRows(NamedTuple):
    """What the records say of images: all of them, and their layers."""

    rows: List[ImageUsage]
    layers: List[ImageLayer]


def image_rows(layers: Layers, image_layers: List[ImageLayer]) -> List[ImageUsage]:
    """A row for each image that the records have."""
    used = {facts.image for facts in layers.containers.values()}
    own_sizes = {}  # type: Dict[str, List[Optional[int]]]
    for layer in image_layers:
        for image in layer.images:
            own = own_sizes.setdefault(image, [])
            if len(layer.images) == 1:
                own.append(layer.size)
    rows = []
    for image, tags in layers.images.items():
        rows.append(
            ImageUsage(
                id=image,
                tags=tags,
                size=add_sizes(own_sizes.get(image, [None])),
                used=image in used,
                dangling=is_dangling(image, tags, used, layers.parents),
            )
        )
    return rows


def image_usage(images: ImageRows, whole: bool) -> Usage[ImageUsage]:
    """All images. They share layers, so their own sizes do not add up."""
    return sum_images(images.rows, images.layers, whole)


def image_usage_of(
    images: ImageRows, chosen: Callable[[ImageUsage], bool], whole: bool
) -> Usage[ImageUsage]:
    """The chosen images, with the sum of the layers that no other image has."""
    rows = [row for row in images.rows if chosen(row)]
    ids = {row.id for row in rows}
    own = [layer for layer in images.layers if layer.images <= ids]
    return sum_images(rows, own, whole)


def sum_images(rows: List[ImageUsage], layers: List[ImageLayer], whole: bool) -> Usage[ImageUsage]:
    """whole: these are all that there are."""
    sizes = [layer.size for layer in layers]
    count = None
    if rows or whole:
        count = len(rows)
    return Usage(
        rows=rows,
        count=count,
        size=sum_known(sizes, whole),
        complete=whole and None not in sizes,
    )


def is_unused(image: ImageUsage) -> bool:
    """An image with a name that no container was made of."""
    return bool(image.tags) and not image.used


def usage_by_files(
    engine: EngineFacts, layers: Layers, sizes: Sizes, volumes: VolumeFolders, store: str
) -> EngineUsage:
    """What takes space, by the records and the measured sizes. store: containerd's, '' where its
    place is not known."""
    # Where something could not be read there may be more of every kind.
    readable = not layers.unread and not volumes.fault
    whole = readable and has_layer_records(engine, layers)

    containers = container_rows(layers, sizes.containers)
    stopped = [row for row in containers if row.running is False]
    states_known = all(row.running is not None for row in containers)
    usage = EngineUsage(
        containers=usage_of(containers, readable),
        stopped_containers=usage_of(stopped, readable and states_known),
        logs=usage_of(container_rows(layers, sizes.logs), readable),
    )

    used = used_volumes_of(layers)
    all_volumes = volume_rows(volumes, sizes.volumes)
    unused = [row for row in all_volumes if row.name not in used]
    usage = usage._replace(
        volumes=usage_of(all_volumes, readable),
        unused_volumes=usage_of(unused, readable),
    )

    # A doubt about one layer is a doubt about all: any of them could be an orphan.
    proved = whole and not layers.doubts
    cache = [row for row in layers.rows if is_build_cache(row)]
    orphans = [row for row in layers.rows if row["role"] == "orphan"]
    usage = usage._replace(
        build_cache=usage_of(layer_rows(cache, sizes.cache_layers), whole),
        orphans=usage_of(layer_rows(orphans, sizes.orphans), proved),
    )

    image_layers = image_layers_of(layers, sizes)
    images = ImageRows(image_rows(layers, image_layers), image_layers)
    usage = usage._replace(
        images=image_usage(images, whole),
        unused_images=image_usage_of(images, is_unused, whole),
        dangling_images=image_usage_of(images, lambda row: row.dangling, whole),
    )
    folder = FolderUsage(store, sizes.store.size, sizes.store.is_complete())
    return with_store(usage, engine, folder)


def with_store(usage: EngineUsage, engine: EngineFacts, folder: FolderUsage) -> EngineUsage:
    """The usage, with containerd's store where the engine uses it."""
    if engine.image_store.value != "containerd":
        return usage
    return usage._replace(containerd_store=usage_of([folder], True))


def usage_without_files(engine: EngineFacts) -> EngineUsage:
    """Nothing is known where the files cannot be read."""
    return with_store(EngineUsage(), engine, FolderUsage("", None, False))


def with_reported_counts(usage: EngineUsage, info: EngineInfo) -> EngineUsage:
    """The usage, with docker info's numbers of what the files do not tell."""
    return usage._replace(
        containers=with_reported_count(usage.containers, info.containers),
        stopped_containers=with_reported_count(usage.stopped_containers, info.stopped),
        images=with_reported_count(usage.images, info.images),
    )


def with_reported_count(usage: Usage[Row], number: Optional[int]) -> Usage[Row]:
    """number: as docker info has it, None where it is not told."""
    if usage.count is not None or usage.rows or number is None:
        return usage
    return Usage(
        count=number,
        size=usage.size,
        complete=usage.complete,
        count_source="docker info",
    )


# Findings: how full things are.


FREE = "python3 dockfix.py reclaim --dry-run "
# What to type where one of these is nearly full.
MAKE_ROOM = {
    "data": (
        FREE + "--trim --containers --images; python3 dockfix.py pool grow --data +50G --dry-run"
    ),
    "metadata": "python3 dockfix.py pool grow --metadata +1G --dry-run",
    "disk": FREE + "--containers --images --build-cache --logs",
}


class Fullness(NamedTuple):
    """How full something is. finding: the id of the finding on it; percent: None where unknown."""

    finding: str
    subject: str
    percent: Optional[float]
    remedy: str


def fullness_of(facts: StorageFacts) -> List[Fullness]:
    """The fullness of the pool's two spaces, and of each disk in bytes and in files."""
    fullness = []
    pool = facts.pool or Pool()
    for kind, space in (("data", pool.data), ("metadata", pool.metadata)):
        fullness.append(
            Fullness(
                finding="full-" + kind,
                subject="the pool's %s space" % kind,
                percent=space.used_percent(),
                remedy=MAKE_ROOM[kind],
            )
        )
    for use in facts.disks:
        fullness.append(
            Fullness(
                finding="full-disk",
                subject=use.title(),
                percent=use.disk.used_percent,
                remedy=MAKE_ROOM["disk"],
            )
        )
        fullness.append(
            Fullness(
                finding="full-inodes",
                subject="the number of files of " + use.title(),
                percent=use.disk.inodes_used_percent,
                remedy=MAKE_ROOM["disk"],
            )
        )
    return fullness


def find_full(facts: StorageFacts) -> List[Finding]:
    """What is as full as --warning or --critical say; a finding too where no fullness is known."""
    findings = []
    any_known = False
    for fullness in fullness_of(facts):
        if fullness.percent is None:
            continue
        any_known = True
        if fullness.percent < facts.warning:
            continue
        severity = "warning"
        if fullness.percent >= facts.critical:
            severity = "critical"
        text = "%s is %.1f %% full" % (fullness.subject, fullness.percent)
        findings.append(Finding(fullness.finding, severity, text, fullness.remedy))
    if not any_known:
        severity = "warning"
        if facts.elsewhere:
            severity = "info"
        text = "neither the disk's nor a pool's fullness is known"
        remedy = "sudo python3 dockfix.py storage"
        findings.append(Finding("fullness-unknown", severity, text, remedy))
    return findings


# Findings: the pool.


def find_bad_pool(facts: StorageFacts) -> List[Finding]:
    """A pool that failed, takes no writes, or needs a check (kernel: thin-provisioning.txt)."""
    pool = facts.pool or Pool()
    state = pool.state.value
    needs_check = pool.needs_check.value
    bad_state = state in ("Fail", "ro", "out_of_data_space")
    if not bad_state and not needs_check and not pool.failed.value:
        return []
    advice = "do not grow or write to it before it is checked"
    if state == "out_of_data_space":
        advice = "it takes no more data"
    metadata_file = pool.metadata.loop_file.value
    if state == "out_of_data_space" and not needs_check:
        remedy = MAKE_ROOM["data"]
    elif metadata_file:
        remedy = pool_repair_line(metadata_file)
    else:
        remedy = "dmsetup status %s" % quote_word(pool.name.value or "")
    title = state or "unknown (docker info shows zeros)"
    if needs_check:
        title += ", needs_check"
    text = "the pool %s is in state %s: %s" % (pool.name.value, title, advice)
    return [Finding("pool-state", "critical", text, remedy)]


def find_fuller_metadata(facts: StorageFacts) -> List[Finding]:
    """Metadata that is fuller than the data."""
    pool = facts.pool or Pool()
    data = pool.data.used_percent()
    metadata = pool.metadata.used_percent()
    if data is None or metadata is None or metadata <= data:
        return []
    text = (
        "the pool's metadata is fuller (%.1f %%) than its data (%.1f %%): if both go on so, it"
        " ends first, with room left"
    ) % (metadata, data)
    severity = "warning" if metadata >= 50 else "info"
    return [Finding("metadata-fuller", severity, text, MAKE_ROOM["metadata"])]


def min_free_percent(facts: StorageFacts) -> float:
    """The driver's minimum of free space in per cent: by its option, else by docker info, else its
    default."""
    option = facts.driver_options().get("dm.min_free_space", "")
    if re.match(r"[0-9]{1,2}%\Z", option):
        return float(option[:-1])
    pool = facts.pool or Pool()
    min_free = percent(pool.min_free.value, pool.data.total.value)
    if min_free is None:
        return 10.0  # moby: daemon/graphdriver/devmapper/deviceset.go
    return min_free


def room_until_refusal(space: PoolSpace, min_free: float) -> Optional[int]:
    """Bytes until the driver refuses to write; None where unknown. min_free: per cent."""
    used = space.used.value
    total = space.total.value
    if not total or used is None:
        return None
    usable = int(total * (100 - min_free) / 100)
    return max(0, usable - used)


def find_min_free(facts: StorageFacts) -> List[Finding]:
    """The pool is near the driver's minimum of free space, or beyond it."""
    pool = facts.pool or Pool()
    min_free = min_free_percent(facts)
    findings = []
    for kind, space in (("data", pool.data), ("metadata", pool.metadata)):
        used = space.used_percent()
        room = room_until_refusal(space, min_free)
        if used is None or room is None or used <= 95 - min_free:
            continue
        severity = "warning"
        outlook = "%s to go" % format_size(room)
        if used > 100 - min_free:
            severity = "critical"
            outlook = "so it refuses now"
        text = (
            "below %g %% free the driver refuses new containers and images: the pool's %s has"
            " %.1f %% free, %s"
        ) % (min_free, kind, 100 - used, outlook)
        findings.append(Finding("min-free-" + kind, severity, text, MAKE_ROOM[kind]))
    return findings


def find_pool_beyond_disk(facts: StorageFacts) -> List[Finding]:
    """A loop pool that may grow more than the disk under its files has room for."""
    pool = facts.pool or Pool()
    total = pool.data.total.value
    if pool.mode.value != "loop" or total is None:
        return []
    # A loop file grows only where it has a hole; docker info knows nothing of holes.
    taken = pool.data.allocated.value
    available = pool.data.disk_free.value
    if taken is None or available is None:
        taken = pool.data.used.value
        available = pool.data.available.value
    if taken is None or available is None:
        return []
    growth = total - taken
    # Two per cent: docker info rounds its figures.
    if available >= 0.98 * growth:
        return []
    text = "the pool may still take %s, but the disk under it has %s: the disk fills first" % (
        format_size(growth),
        format_size(available),
    )
    remedy = "python3 dockfix.py relocate --help"
    return [Finding("ceiling-beyond-disk", "warning", text, remedy)]


def find_next_ceiling(facts: StorageFacts) -> List[Finding]:
    """Which is full first, the pool or the disk under its files."""
    pool = facts.pool or Pool()
    disk_room = pool.data.disk_free.value
    pool_room = room_until_refusal(pool.data, min_free_percent(facts))
    if disk_room is None or pool_room is None:
        return []
    subject = "the disk under the pool files"
    if pool_room < disk_room:
        subject = "the pool's data space"
    room = min(disk_room, pool_room)
    text = "next to be full: %s, in %s" % (subject, format_size(room))
    return [Finding("next-ceiling", "info", text, FREE.strip())]


def find_deleted_loop_files(facts: StorageFacts) -> List[Finding]:
    """Loop files that were deleted under a pool."""
    findings = []
    for loop in facts.deleted_loop_files:
        text = (
            "%s still holds %s: its space comes back, and its content is lost, when the pool goes"
            " down"
        ) % (loop.device, loop.path)
        findings.append(Finding("loop-deleted", "critical", text, "losetup -l %s" % loop.device))
    return findings


# Findings: the options that the daemon is given.


def find_option_conflicts(facts: StorageFacts) -> List[Finding]:
    """Options that are set in two places."""
    findings = []
    for name, places in option_conflicts(facts.options):
        text = (
            "%s is set in more than one place (%s): with one in daemon.json the daemon does not"
            " start, else the last one wins"
        ) % (name, ", ".join(places))
        files = " ".join(quote_word(place.split(" (")[0]) for place in places)
        remedy = "grep -n %s %s" % (quote_word(name.split(" ")[0]), files)
        findings.append(Finding("option-twice", "critical", text, remedy))
    return findings


def find_unreadable_options(facts: StorageFacts) -> List[Finding]:
    """Places of options that cannot be read or understood."""
    findings = []
    for source in facts.options:
        if not source.fault:
            continue
        severity = "warning"
        if source.kind == "daemon.json":
            severity = "critical"  # the daemon does not start with it
        text = "%s %s" % (source.path, source.fault)
        remedy = "cat %s" % quote_word(source.path)
        findings.append(Finding("option-place", severity, text, remedy))
    return findings


def find_unread_options(facts: StorageFacts) -> List[Finding]:
    """Settings files that no unit reads."""
    findings = []
    for source in facts.options:
        if source.kind != "environment" or source.used or not source.options:
            continue
        name = source.options[0].name
        text = "%s is set in %s, which no unit reads" % (name, source.where())
        findings.append(Finding("option-unread", "info", text, "systemctl cat docker"))
    return findings


def find_waiting_option(facts: StorageFacts) -> List[Finding]:
    """An option that the running daemon was started without."""
    running = set()  # type: Set[DaemonOption]
    given = []  # type: List[DaemonOption]
    for source in facts.options:
        if source.kind == "running":
            running.update(source.options)
        if source.used and source.kind in ("unit", "environment"):
            given.extend(source.options)
    if not running:
        return []
    for option in given:
        if option in running or is_grown_to(facts.pool, option.value):
            continue
        text = "%s %s is set, but the running daemon was started without it" % (
            option.name,
            option.value,
        )
        remedy = "systemctl daemon-reload; systemctl restart docker"
        return [Finding("option-waiting", "warning", text, remedy)]
    return []


def is_grown_to(pool: Optional[Pool], option: str) -> bool:
    """Whether the pool has the size that an option gives it: it was grown in place."""
    if not pool:
        return False
    setting, _, size = option.partition("=")
    if setting == "dm.loopdatasize":
        return option_bytes(size) == pool.data.total.value
    if setting == "dm.loopmetadatasize":
        return option_bytes(size) == pool.metadata.total.value
    return False


OPTION_SEARCH = "grep -rns %s /etc/docker /etc/sysconfig /etc/default /etc/systemd/system"


def find_useless_metadata(facts: StorageFacts) -> List[Finding]:
    """More metadata than dm-thin can use."""
    option = facts.driver_options().get("dm.loopmetadatasize", "")
    size = option_bytes(option)
    if size is None or size <= METADATA_MAX:
        return []
    text = "dm.loopmetadatasize=%s: more than 15.88 GiB of metadata is never used" % option
    remedy = OPTION_SEARCH % "dm.loopmetadatasize" + "  # it does no harm"
    return [Finding("metadata-useless", "info", text, remedy)]


def find_smaller_base_size(facts: StorageFacts) -> List[Finding]:
    """A base size with which the daemon does not start."""
    option = facts.driver_options().get("dm.basesize", "")
    pool = facts.pool or Pool()
    # docker info's figure is rounded, and so proves nothing.
    if pool.base_device_size.source != "metadata/base":
        return []
    wanted = option_bytes(option)
    present = pool.base_device_size.value
    if not wanted or not present or wanted >= present:
        return []
    size = format_size(present)
    text = (
        "dm.basesize=%s is smaller than the pool's base device (%s): the daemon does not start with"
        " it"
    ) % (option, size)
    remedy = OPTION_SEARCH % "dm.basesize" + "  # make it %s or more" % size
    return [Finding("base-size-smaller", "critical", text, remedy)]


class Reclaimable(NamedTuple):
    """What one category of reclaim could remove. finding: the id of the finding on it."""

    finding: str
    usage: Usage
    subject: str
    remedy: str


def option_bytes(text: str) -> Optional[int]:
    """Bytes of a size as the driver's options take it: 8G, 500GB, 10GiB, all binary. None where the
    text is no such size."""
    match = re.match(r"([0-9]{1,12})(?:([kKmMgGtT])(?:i?[bB])?)?\Z", text)
    if not match:
        return None
    unit = (match.group(2) or " ").upper()
    return int(match.group(1)) << 10 * " KMGT".index(unit)


# Findings: what could be freed.


def find_large_logs(facts: StorageFacts) -> List[Finding]:
    findings = []
    for row in facts.usage.logs.rows:
        if row.rotated or row.size is None or row.size <= LOG_LARGE:
            continue
        text = "the log of container %s has %s and grows without end (no max-size)" % (
            row.name or row.id[:12],
            format_size(row.size),
        )
        findings.append(Finding("log-large", "warning", text, FREE + "--logs"))
    return findings


def find_reclaimable(facts: StorageFacts) -> List[Finding]:
    """What reclaim could remove, a finding for each kind."""
    findings = []
    for kind in reclaimable_kinds(facts.usage):
        if not kind.usage.count:
            continue
        size = format_known_size(kind.usage.size, kind.usage.complete)
        text = "%s: %d (size %s)" % (kind.subject, kind.usage.count, size)
        findings.append(Finding(kind.finding, "info", text, kind.remedy))
    return findings


def reclaimable_kinds(usage: EngineUsage) -> List[Reclaimable]:
    # Volumes go only by their names.
    volumes = [quote_word(row.name) for row in usage.unused_volumes.rows[:20]]
    return [
        Reclaimable(
            "stopped-containers",
            usage.stopped_containers,
            "stopped containers",
            FREE + "--containers",
        ),
        Reclaimable(
            "dangling-images",
            usage.dangling_images,
            "images without a name that nothing uses",
            FREE + "--images",
        ),
        Reclaimable(
            "unused-images",
            usage.unused_images,
            "images that no container uses",
            FREE + "--images --unused",
        ),
        Reclaimable(
            "build-cache",
            usage.build_cache,
            "layers of build cache",
            FREE + "--build-cache",
        ),
        Reclaimable(
            "unused-volumes",
            usage.unused_volumes,
            "volumes that no container uses",
            FREE + " ".join(["--volumes", *volumes]),
        ),
        Reclaimable(
            "orphans",
            usage.orphans,
            "layers that nothing has",
            "python3 dockfix.py owner --orphans",
        ),
    ]


# Findings: where the data lies, and what kind of engine this is.


def find_root_on_system_disk(facts: StorageFacts) -> List[Finding]:
    """Docker's root beside the host's own files."""
    if not facts.on_system_disk:
        return []
    severity = "info"
    for fullness in fullness_of(facts):
        if fullness.percent is not None and fullness.percent >= facts.warning:
            severity = "warning"
    text = (
        "Docker's root %s lies on the system disk: when it fills, the host stops with it"
        % facts.root()
    )
    remedy = "python3 dockfix.py relocate --help"
    return [Finding("root-on-system-disk", severity, text, remedy)]


def find_stranded_drivers(facts: StorageFacts) -> List[Finding]:
    """Folders of drivers that this engine does not have any more."""
    findings = []
    version = facts.engine.server_version.value or ""
    major = re.match("[0-9]{1,4}", version)
    if not major:
        return []
    for folder in facts.drivers_on_disk:
        removed_in = STORAGE_DRIVERS[folder.driver].removed_in
        if folder.in_use or not removed_in or int(major.group(0)) < removed_in:
            continue
        text = (
            "%s is there, but engine %s has no %s driver any more: its images and containers need"
            " an engine before %d"
        ) % (folder.path, version, folder.driver, removed_in)
        remedy = "python3 dockfix.py owner"
        findings.append(Finding(folder.driver + "-stranded", "warning", text, remedy))
    return findings


def find_other_drivers(facts: StorageFacts) -> List[Finding]:
    """What other drivers left behind."""
    folders = []
    for folder in facts.drivers_on_disk:
        if not folder.in_use:
            folders.append("%s (%s)" % (folder.path, format_known_size(folder.size)))
    if not folders:
        return []
    text = "left by other storage drivers: " + ", ".join(folders)
    return [Finding("other-drivers", "info", text, "python3 dockfix.py owner")]


def find_containerd_store(facts: StorageFacts) -> List[Finding]:
    """Why figures are unknown on an engine with the containerd image store, and what tells them."""
    if not facts.in_containerd():
        return []
    place, remedy = "containerd's store", "docker system df"
    if not facts.elsewhere:
        answers = facts.engine.server_version.value is not None
        place = store_text(facts.root())
        remedy = store_remedy(facts.root(), answers)
    text = (
        "images, build cache and the containers' own files are in %s, which dockfix does not take"
        " apart yet: their figures are unknown"
    ) % place
    return [Finding("containerd-store", "info", text, remedy)]


def find_windows(facts: StorageFacts) -> List[Finding]:
    """An engine that dockfix cannot help."""
    driver = facts.engine.driver.value or ""
    of_windows = driver.startswith(("windows", "lcow"))
    if facts.engine.system != "windows" and not of_windows:
        return []
    text = "this is a Windows engine: dockfix looks after Linux hosts only"
    return [Finding("windows", "warning", text, "docker system df")]


def find_driver_advice(facts: StorageFacts) -> List[Finding]:
    """What deleting a file inside a container gives back, with this driver."""
    driver = facts.engine.driver.value
    if not driver:
        return []
    row = facts_of_driver(driver)
    if not row:
        return []
    remedy = row.remedy.replace("ROOT", quote_word(facts.root()))
    if facts.in_containerd():
        remedy = "docker system df"
    text = "%s: %s" % (driver, row.deletion)
    return [Finding("driver-" + row.family, "info", text, remedy)]


def find_missing(facts: StorageFacts) -> List[Finding]:
    """What is not known."""
    if not facts.missing:
        return []
    remedy = "python3 dockfix.py storage --full"
    if os.geteuid() != 0:
        remedy = "sudo python3 dockfix.py storage"
    text = "not known: %s" % "; ".join(facts.missing)
    return [Finding("not-known", "info", text, remedy)]


# Every function that makes findings of StorageFacts. Their order is that of the report, within the
# same severity.
STORAGE_FINDINGS = (
    find_full,
    find_bad_pool,
    find_fuller_metadata,
    find_min_free,
    find_pool_beyond_disk,
    find_next_ceiling,
    find_deleted_loop_files,
    find_option_conflicts,
    find_unreadable_options,
    find_unread_options,
    find_waiting_option,
    find_useless_metadata,
    find_smaller_base_size,
    find_large_logs,
    find_reclaimable,
    find_root_on_system_disk,
    find_stranded_drivers,
    find_other_drivers,
    find_containerd_store,
    find_windows,
    find_driver_advice,
    find_missing,
)  # type: Tuple[Callable[[StorageFacts], List[Finding]], ...]


def storage_findings(facts: StorageFacts) -> List[Finding]:
    findings = []  # type: List[Finding]
    for find in STORAGE_FINDINGS:
        findings += find(facts)
    return findings


def worst_first(findings: List[dict]) -> List[dict]:
    """Findings of a report by their severity."""
    severities = ("critical", "warning", "info")
    return sorted(findings, key=lambda finding: severities.index(finding["severity"]))


# The result row.


def storage_row(facts: StorageFacts) -> dict:
    """The result of `storage` as the JSON document has it. Sizes are bytes, or None."""
    engine = facts.engine
    disks = [disk_json(use) for use in facts.disks]
    disk = None
    if disks and disks[0]["path"] == engine.root.value:
        disk = disks[0]
    msg = ""
    if facts.elsewhere:
        msg = "%s: what only files and devices tell is unknown" % facts.elsewhere
    pool = None
    if facts.pool:
        pool = {key: fact.value for key, fact in pool_facts(facts.pool).items()}
    return {
        "driver": engine.driver.value,
        "server_version": engine.server_version.value,
        "root": engine.root.value,
        "image_store": engine.image_store.value,
        "os": engine.system,
        "backing_filesystem": engine.backing_filesystem,
        "pool": pool,
        "disk": disk,
        "disks": disks,
        "usage": {kind: usage_json(usage) for kind, usage in usage_by_kind(facts.usage).items()},
        "drivers_on_disk": [folder._asdict() for folder in facts.drivers_on_disk],
        "options": options_json(facts.options),
        "driver_options": facts.driver_options(),
        "sources": storage_sources(facts, disk is not None),
        "missing": list(facts.missing),
        "msg": msg,
    }


def usage_by_kind(usage: EngineUsage) -> Dict[str, Usage]:
    """Without containerd's store where it is not used."""
    by_kind = usage._asdict()
    if usage.containerd_store is None:
        del by_kind["containerd_store"]
    return by_kind


def disk_json(use: DiskUse) -> dict:
    row = dict(use.disk._asdict())
    row["for"] = use.purposes
    return row


def options_json(sources: Sequence[OptionSource]) -> List[dict]:
    """A row for each option, with the place where it is set."""
    rows = []
    for source in sources:
        for option in source.options:
            rows.append(
                {
                    "option": option.name,
                    "value": option.value,
                    "where": source.where(),
                    "used": source.used,
                }
            )
    return rows


def storage_sources(facts: StorageFacts, has_disk: bool) -> Dict[str, str]:
    """{key of the row, such as pool.data_used: where its value comes from}."""
    engine = facts.engine
    sources = {
        "driver": engine.driver.source,
        "server_version": engine.server_version.source,
        "root": engine.root.source,
        "image_store": engine.image_store.source,
    }
    if has_disk:
        sources["disk"] = "statvfs"
    if facts.pool:
        for key, fact in pool_facts(facts.pool).items():
            sources["pool." + key] = fact.source
    for kind, usage in usage_by_kind(facts.usage).items():
        sources["usage.%s.count" % kind] = usage.count_source
    return {key: source for key, source in sources.items() if source}


def pool_facts(pool: Pool) -> Dict[str, Fact]:
    """The facts of a pool by their keys in the JSON document."""
    facts = {
        "name": pool.name,
        "mode": pool.mode,
        "mode_why": pool.mode_reason,
        "state": pool.state,
        "needs_check": pool.needs_check,
        "failed": pool.failed,
        "block_size": pool.block_size,
        "base_device_size": pool.base_device_size,
        "min_free": pool.min_free,
    }  # type: Dict[str, Fact]
    for kind, space in (("data", pool.data), ("metadata", pool.metadata)):
        facts[kind + "_file"] = space.device
        facts[kind + "_used"] = space.used
        facts[kind + "_total"] = space.total
        facts[kind + "_available"] = space.available
        facts[kind + "_loop_file"] = space.loop_file
        facts[kind + "_allocated"] = space.allocated
        facts[kind + "_disk_free"] = space.disk_free
    return facts


def usage_json(usage: Usage) -> dict:
    return {
        "count": usage.count,
        "size": usage.size,
        "complete": usage.complete,
        "rows": [row._asdict() for row in usage.rows],
    }


# The command.


def run_storage(host: Host, opts: Options, report: dict) -> None:
    require_storage_options(opts)
    answer = ask_for_info(host, opts)
    info = answer.info or EngineInfo()
    elsewhere = why_no_files(opts, info)
    if elsewhere:
        reading = FileReading(facts_of_info(info, elsewhere), [])
    else:
        reading = collect_from_files(host, opts, answer.info)
    facts = reading.facts._replace(
        usage=with_reported_counts(reading.facts.usage, info),
        warning=opts.warning,
        critical=opts.critical,
    )
    findings = answer.findings + reading.findings + storage_findings(facts)
    for finding in findings:
        add_finding(report, finding)
    report["findings"] = worst_first(report["findings"])
    report["results"].append(storage_row(facts))
    if opts.check and any(finding["severity"] != "info" for finding in report["findings"]):
        report["exit_code"] = 3


def facts_of_info(info: EngineInfo, elsewhere: str) -> StorageFacts:
    """What docker info alone tells, of an engine whose files are not here."""
    engine = parse_engine(info)
    return StorageFacts(
        engine=engine,
        pool=parse_pool(info),
        usage=usage_without_files(engine),
        elsewhere=elsewhere,
    )


def require_storage_options(opts: Options) -> None:
    """Raises UsageError before anything is looked at."""
    hint = "python3 dockfix.py storage --help"
    # The limits are in their order.
    if opts.warning > opts.critical:
        raise UsageError("--warning is above --critical", hint)
    # Folders are measured to their end, or not at all.
    if opts.full and opts.quick:
        raise UsageError("--full and --quick exclude each other", hint)


def ask_for_info(host: Host, opts: Options) -> EngineAnswer:
    """docker info: a saved one, or the engine's. None with --root, and where no daemon answers."""
    if opts.docker_info is not None:
        if opts.docker_info == "-":
            claim_stdin(host, "the answer of docker info", "--docker-info FILE")
        saved = read_input(opts.docker_info, 1 << 24, "--docker-info")
        return EngineAnswer(parse_info(decode_saved(saved)), [])
    if opts.root is not None:
        return EngineAnswer(None, [])
    return ask_engine(host)


def why_no_files(opts: Options, info: EngineInfo) -> str:
    """Why the files of this host tell nothing of the engine, '' where they do."""
    if opts.docker_info is not None:
        return "from a saved docker info"
    if runs_elsewhere(info):
        return "the engine runs on another host, %s" % info.host_name
    return ""


class FileReading(NamedTuple):
    """What the files tell, and findings on the records themselves."""

    facts: StorageFacts
    findings: List[Finding]


class LayerReading(NamedTuple):
    """layers: None where they are not readable. faults: what could not be read; findings: on
    records that are lost."""

    layers: Optional[Layers]
    faults: List[str]
    findings: List[Finding]


def collect_from_files(host: Host, opts: Options, answer: Optional[EngineInfo]) -> FileReading:
    """Everything that the files and devices of this host tell, after docker info (answer: None
    where it was not asked, or the daemon does not answer). Raises EnvironmentFault where there is
    nothing to look at: no daemon answers, and there is no root."""
    info = answer or EngineInfo()
    engine = parse_engine(info)
    if opts.root is not None:
        engine = engine._replace(root=Fact(opts.root, "--root"))
    elif answer is None:
        engine = engine._replace(root=Fact(configured_root(), "configuration"))
    root = str(engine.root.value)
    options = engine_options(root)
    reading = read_storage_layers(host, root, answer)
    on_disk = drivers_below(root)
    engine = complete_engine(engine, reading.layers, options, on_disk)
    driver = str(engine.driver.value)
    disks = collect_disks(root, driver)
    pool = PoolReading(parse_pool(info), {}, [])
    deleted_loop_files = []
    if driver == "devicemapper":
        pool = read_pool(host, root, info, reading.layers)
        deleted_loop_files = read_deleted_pool_files()
    space = measure_usage(opts, engine, reading.layers, on_disk, pool.devices)
    facts = StorageFacts(
        engine=engine,
        pool=pool.pool,
        disks=disks,
        on_system_disk=is_on_system_disk(root, disks),
        deleted_loop_files=deleted_loop_files,
        usage=space.usage,
        drivers_on_disk=space.drivers,
        options=options,
        missing=reading.faults + pool.faults + space.faults,
    )
    return FileReading(facts, reading.findings)


class SpaceReading(NamedTuple):
    """What takes space; the folders of all drivers; a line for each thing that is not known."""

    usage: EngineUsage
    drivers: List[DriverFolder]
    faults: List[str]


def measure_usage(
    opts: Options,
    engine: EngineFacts,
    layers: Optional[Layers],
    on_disk: List[str],
    devices: Dict[str, int],
) -> SpaceReading:
    """on_disk: the drivers that have a folder; devices: bytes mapped in the active thin devices."""
    root = str(engine.root.value)
    driver = str(engine.driver.value)
    if not layers:
        drivers = driver_folders(root, driver, on_disk, {})
        return SpaceReading(usage_without_files(engine), drivers, [])
    store = ""
    if engine.image_store.value == "containerd":
        store = containerd_root(root)
    others = {}
    for name in on_disk:
        if name != driver:
            others[name] = os.path.join(root, name)
    volumes = read_volume_folders(root, layers)
    folders = folders_to_measure(layers, volumes, store, others)
    sizes = measure_all(opts, root, layers, folders, devices)
    faults = list(sizes.faults)
    if volumes.fault:
        faults.insert(0, volumes.fault)
    return SpaceReading(
        usage=usage_by_files(engine, layers, sizes, volumes, store),
        drivers=driver_folders(root, driver, on_disk, sizes.drivers),
        faults=faults,
    )


def read_deleted_pool_files() -> List[LoopFile]:
    """The loop files of a pool that were deleted under it."""
    deleted = []
    for loop in loop_files():
        if re.search(r"/devicemapper/(meta)?data \(deleted\)\Z", loop.path):
            deleted.append(loop)
    return deleted


def read_storage_layers(host: Host, root: str, info: Optional[EngineInfo]) -> LayerReading:
    """Raises EnvironmentFault where no daemon answers and there is no root."""
    try:
        layers = read_layers(root, follow=True)
        confirm_orphans(host, root, layers, info)
    except EnvironmentFault as err:
        if info is None and not read_disk(root, []):
            raise
        return LayerReading(None, [err.msg], [])
    faults = []
    for path, reason in sorted(layers.unread.items())[:20]:
        faults.append("%s: %s" % (path, reason))
    return LayerReading(layers, faults, lost_record_findings(layers))


def is_on_system_disk(root: str, disks: List[DiskUse]) -> bool:
    """Whether Docker's root is on the disk of /."""
    if not disks:
        return False
    first = disks[0].disk
    return first.path == root and first.device == os.stat("/").st_dev


def driver_folders(
    root: str, driver: str, on_disk: List[str], sizes: Dict[str, Measured]
) -> List[DriverFolder]:
    """driver: the engine's; on_disk: those that have a folder."""
    folders = []
    for name in on_disk:
        folders.append(
            DriverFolder(
                driver=name,
                path=os.path.join(root, name),
                in_use=name == driver,
                size=sizes.get(name, UNKNOWN_SIZE).size,
            )
        )
    return folders


###############################################################################
# 20. owner
###############################################################################

# Says which container, image or volume a layer, folder, snapshot or device belongs to.
#
# It only looks, and works with the daemon down. It never guesses: "orphan" is a layer for which
# every record was readable and none names it; everything else that cannot be told is "unknown".
#
# It rests on the records below Docker's root (see "Layer records"), on /sys/block for device
# names, and on `docker inspect`, against which the records are checked.


SYS_BLOCK = "/sys/block"  # kernel: dm-N/dm/name


# What a word means.


def rows_named(layers: Layers, word: str) -> List[int]:
    """Numbers of the rows that a word means: a name as it stands, else the layer of a device's
    name, else the first part of a path that is one, else the beginning of a hash. [] where it means
    none. Raises UsageError where it is the beginning of hashes of more than one layer."""
    bare = re.sub(r"^(?:sha256:|docker\.io/(?:library/)?|/(?=[^/]+\Z))", "", word)
    for name in names_in_word(word, bare):
        if name in layers.names:
            return layers.names[name]
    matches = hashes_that_begin(layers, bare)
    # A layer may have several hashes: its own, its chain id, its diff id.
    meanings = {tuple(layers.names[name]) for name in matches}
    if len(meanings) > 1:
        raise ambiguous_hash_error(layers, word, matches)
    if not matches:
        return []
    return layers.names[matches[0]]


def names_in_word(word: str, bare: str) -> List[str]:
    """What a word may name as a whole, the likeliest first."""
    names = [word, bare, bare + ":latest"]
    device = re.match(r"(?:/dev/mapper/)?docker-[0-9]+:[0-9]+-[0-9]+-(.+)\Z", word)
    if device:
        names.append(device.group(1))
    if "/" in word:
        for part in posixpath.normpath(word).split("/"):
            # A layer's folder, or a short link of overlay2.
            if re.match(LAYER + "|[0-9A-Z]{26}\\Z", part):
                names.append(part)
    return names


def hashes_that_begin(layers: Layers, text: str) -> List[str]:
    """The hashes that begin with this text; those of init layers only where it ends in -init."""
    stem = text
    wants_init = text.endswith("-init")
    if wants_init:
        stem = text[: -len("-init")]
    if not stem:
        return []
    hashes = []
    for name in layers.names:
        if name.startswith(stem) and name.endswith("-init") == wants_init:
            hashes.append(name)
    return [name for name in hashes if re.match(LAYER, name)]


def ambiguous_hash_error(layers: Layers, word: str, matches: List[str]) -> UsageError:
    """The beginning of several hashes, with the owners that it may mean."""
    meanings = []
    for name in sorted(matches):
        row = layers.rows[layers.names[name][0]]
        meanings.append("%s (%s)" % (name, format_owner(row)))
    listed = ", ".join(meanings[:6])
    if len(meanings) > 6:
        listed += ", ..."
    text = "%s begins %d hashes: %s" % (word, len(matches), listed)
    return UsageError(text, "give more of the hash")


def other_names(word: str) -> List[str]:
    """The word, and what this host knows it by: the device-mapper name of a dm-N, the real path of
    a path."""
    names = [word]
    device = word
    if word.startswith("/dev/"):
        device = real_path(word)
    node = re.match(r"(?:/dev/)?(dm-[0-9]+)\Z", device)
    if node:
        path = "%s/%s/dm/name" % (SYS_BLOCK, node.group(1))
        name = suppress_errors(read_host_text, path)
        if name is not None:
            names.append(name.strip())
    if "/" in word or os.path.lexists(os_bytes(word)):
        names.append(real_path(word))
    return names


def find_rows_of(layers: Layers, word: str) -> List[int]:
    """Numbers of the rows that a word means by the first of its names that means any."""
    for name in other_names(word):
        numbers = rows_named(layers, name)
        if numbers:
            return numbers
    return []


class OwnerSearch(NamedTuple):
    """The rows asked for, each once, in the order asked; an error for each word that means none."""

    rows: List[dict]
    errors: List[DockfixError]


def owners_of(layers: Layers, words: Sequence[str]) -> OwnerSearch:
    """All rows where there are no words."""
    if not words:
        return OwnerSearch(list(layers.rows), [])
    chosen = []  # type: List[int]
    errors = []
    for word in words:
        numbers = find_rows_of(layers, word)
        if not numbers:
            errors.append(no_owner_error(layers, word))
        for number in numbers:
            if number not in chosen:
                chosen.append(number)
    rows = [layers.rows[number] for number in chosen]
    return OwnerSearch(rows, errors)


def no_owner_error(layers: Layers, word: str) -> DockfixError:
    """Why a word means no layer, and what to do."""
    bare = word.lstrip("/")
    for ident, facts in layers.containers.items():
        if bare and (facts.name == bare or ident.startswith(bare)):
            return no_layer_error(layers, ident)
    if re.search(r"docker-[0-9]+:[0-9]+-[0-9]+-pool\Z", word):
        return UsageError("%s is the pool of all layers" % word, "python3 dockfix.py storage")
    text = "%s: not found among the layers, devices, containers and images" % word
    if layers.unread:
        text += ", or its record could not be read"
    hint = (
        "a hash or its beginning, a path, l/LINK, a device name, dm-N, a device id, a container's"
        " name, an image's tag; all of them: python3 dockfix.py owner"
    )
    return UsageError(text, hint)


def no_layer_error(layers: Layers, ident: str) -> EnvironmentFault:
    """Why a container that is there has no layer below Docker's root."""
    lost = layers.lost.get(ident)
    if lost:
        text = "container %s has no layer record, so its layer is unknown: %s is missing" % (
            lost.name or ident[:12],
            lost.missing,
        )
        hint = "python3 dockfix.py owner lists the layers of which one is its own, as unknown"
        return EnvironmentFault(text, hint)
    facts = layers.containers[ident]
    text = "container %s (%s) is there, but its layer is not below Docker's root (driver %s)" % (
        facts.name,
        ident[:12],
        facts.driver or "unknown",
    )
    return EnvironmentFault(text, "docker inspect %s" % ident[:12])


# Orphans.


def orphans_of(layers: Layers) -> List[dict]:
    return [row for row in layers.rows if row["role"] == "orphan"]


def orphans_with_sizes(layers: Layers) -> List[dict]:
    """The orphans' rows, with "size": allocated bytes, or None. WALK_SECONDS is the time for all of
    them."""
    rows = orphans_of(layers)
    folders = {}  # type: Dict[Tuple, str]
    for row in rows:
        folder = orphan_folder(row)
        if folder:
            folders[row["driver"], row["layer"]] = folder
    sizes = measure_folders(folders, WALK_SECONDS, lambda text: None)
    not_in_files = Measured(None, "its size is not in files")
    measured_rows = []
    for row in rows:
        measured = sizes.get((row["driver"], row["layer"]), not_in_files)
        note = join_notes(row["note"], measured.reason)
        measured_rows.append(dict(row, size=measured.size, note=note))
    return measured_rows


def orphan_folder(row: dict) -> str:
    """The folder that removing a layer gives back. The overlay drivers keep all of a layer in one
    folder, and all of it would be given back."""
    if STORAGE_DRIVERS[row["driver"]].layer_folder == ".":
        for path in row["paths"]:
            if path.endswith("/" + row["layer"]):
                return path
    return own_folder(row)


def orphan_doubt_error(layers: Layers, rows: List[dict]) -> EnvironmentFault:
    """What keeps layers from being proved orphans: that none was found does not mean that there is
    none. rows: the orphans that were found."""
    reasons = {doubt.reason for doubt in unreadable_doubts(layers) or layers.doubts}
    subject = "orphans"
    if rows:
        subject = "more orphans"
    text = "whether there are %s cannot be told: %s" % (subject, "; ".join(sorted(reasons)[:3]))
    hint = "sudo python3 dockfix.py ..."
    if os.geteuid() == 0:
        hint = "the findings say what is missing"
    return EnvironmentFault(text, hint)


def unreadable_doubts(layers: Layers) -> List[Doubt]:
    return [doubt for doubt in layers.doubts if doubt.unreadable]


# The containerd image store.


def is_containerd_store(root: str, layers: Layers, info: Optional[EngineInfo]) -> bool:
    """Whether images and layers of this root are in containerd's store. info: None where the daemon
    does not answer."""
    if info:
        return has_containerd_store(info)
    if containers_elsewhere(layers):
        return True
    return not layers.image_counts and has_rootfs(root)


def containers_elsewhere(layers: Layers) -> List[ContainerRecord]:
    """The containers whose layers are not below Docker's root."""
    with_layer = set()
    for row in layers.rows:
        if row["container"]:
            with_layer.add(row["container"]["id"])
    elsewhere = []
    for ident, facts in layers.containers.items():
        if not facts.driver or facts.driver in STORAGE_DRIVERS:
            continue
        if ident not in with_layer:
            elsewhere.append(facts)
    return elsewhere


def containerd_error(root: str, answers: bool) -> EnvironmentFault:
    """Layers in containerd's store. answers: whether the daemon does."""
    text = "the layers are in %s, which dockfix cannot read yet" % store_text(root)
    return EnvironmentFault(text, store_remedy(root, answers))


# The files against docker inspect.


def find_differences(
    host: Host,
    rows: List[dict],
    words: Sequence[str],
    inspected: Optional[Dict[str, Container]],
) -> List[Finding]:
    """What `docker inspect` says, one call for all containers, against the files. inspected: its
    answer where it is known already."""
    own = {row["container"]["id"]: row for row in rows if row["role"] == "container"}
    if inspected is None:
        try:
            inspected = inspect_own(host, list(own), not words)
        except EnvironmentFault as err:
            text = "not checked against docker inspect: %s" % err.msg
            return [Finding("owner-unchecked", "info", text, err.hint)]
    different = []
    for ident, row in own.items():
        difference = inspect_differences(row, inspected.get(ident))
        if difference:
            name = row["container"]["name"] or ident[:12]
            different.append("%s: %s" % (name, difference))
    for container in inspected.values():
        # With words only some of the containers were asked for.
        if words or container.id in own:
            continue
        if container.driver in STORAGE_DRIVERS:
            different.append("%s: it has no layer by the files" % container.name)
    if not different:
        return []
    text = "files and docker inspect differ (made or removed just now?): %s" % "; ".join(
        different[:10]
    )
    return [Finding("owner-differs", "warning", text, "python3 dockfix.py owner")]


def inspect_own(host: Host, idents: List[str], add_listed: bool) -> Dict[str, Container]:
    """docker inspect of these containers; add_listed: and of all that docker lists."""
    wanted = set(idents)
    if add_listed:
        wanted.update(container.id for container in list_containers(host))
    if not wanted:
        return {}
    return inspect_containers(host, sorted(wanted))


def inspect_differences(row: dict, container: Optional[Container]) -> str:
    """In what `docker inspect` (None: it has no such container) differs from a container's row, ''
    where both agree or it says nothing: aufs, btrfs and vfs name no paths."""
    if container is None:
        return "docker does not know it"
    layer = row["layer"]
    names = reported_layer_names(container)
    if names and row["layer"] not in names:
        layer = " ".join(own_layer_values(container))
    device_id = str(row.get("device_id"))
    checks = (
        ("name", row["container"]["name"], container.name),
        ("driver", row["driver"], container.driver or row["driver"]),
        ("layer", row["layer"], layer),
        ("device id", device_id, container.layer.get("DeviceId", device_id)),
    )
    differences = []
    for title, by_files, by_docker in checks:
        if by_files != by_docker:
            differences.append(
                "its %s is %s by the files, %s by docker" % (title, by_files, by_docker)
            )
    return "; ".join(differences)


def own_layer_values(container: Container) -> List[str]:
    """GraphDriver.Data of docker inspect, without LowerDir, which names the layers below."""
    values = []
    for key, value in sorted(container.layer.items()):
        if key != "LowerDir":
            values.append(value)
    return values


def reported_layer_names(container: Container) -> Set[str]:
    """Every word of GraphDriver.Data that may be a layer's name: a part of a path, or the end of a
    device's name."""
    names = set()  # type: Set[str]
    for value in own_layer_values(container):
        names.update(value.split("/"))
        names.add(value.split("-", 3)[-1])
    return names


# Findings.


def find_driver_advices(rows: List[dict]) -> List[Finding]:
    """For each driver, what to know before a container's folder is touched."""
    findings = []
    for driver, facts in STORAGE_DRIVERS.items():
        row = first_container_row(rows, driver)
        if not row or not facts.advice:
            continue
        name = row["container"]["name"] or row["container"]["id"]
        text = facts.advice % (own_folder(row) or row["paths"][0])
        remedy = "docker exec %s rm FILE" % quote_word(name)
        findings.append(Finding("owner-" + driver, "info", text, remedy))
    return findings


def first_container_row(rows: List[dict], driver: str) -> Optional[dict]:
    """The first row of a container whose layer of this driver is there."""
    for row in rows:
        if row["driver"] == driver and row["role"] == "container" and row["paths"]:
            return row
    return None


def find_layers_elsewhere(root: str, layers: Layers, info: Optional[EngineInfo]) -> List[Finding]:
    if not is_containerd_store(root, layers, info) and not containers_elsewhere(layers):
        return []
    text = "images and containers of the containerd store are not in Docker's root but in %s" % (
        containerd_root(root) or CONTAINERD_ROOT
    )
    remedy = store_remedy(root, info is not None)
    return [Finding("owner-containerd", "info", text, remedy)]


def find_unproved(layers: Layers) -> List[Finding]:
    """Layers whose owner cannot be told, where no record that is missing or not readable explains
    it."""
    unknown = count_unknown(layers)
    if not unknown or layers.unread or layers.lost:
        return []
    reasons = sorted({doubt.reason for doubt in layers.doubts})
    text = "the owner of %s is unknown: %s" % (
        format_count(unknown, "layer"),
        "; ".join(reasons[:3]),
    )
    return [Finding("owner-unknown", "warning", text, "python3 dockfix.py owner")]


def find_orphans(layers: Layers) -> List[Finding]:
    orphans = orphans_of(layers)
    if not orphans:
        return []
    text = (
        "layers that nothing has: %d; a pull or build that runs now makes such layers too, so look"
        " again when none runs; nothing is deleted here"
    ) % len(orphans)
    remedy = "python3 dockfix.py owner --orphans"
    return [Finding("owner-orphans", "info", text, remedy)]


def find_unread_records(layers: Layers) -> List[Finding]:
    """Records that could not be read."""
    unread = list(layers.unread.items())
    if not unread:
        return []
    listed = ["%s: %s" % (path, reason) for path, reason in unread[:5]]
    text = "not readable, or missing: " + "; ".join(listed)
    if len(unread) > 5:
        text += " and %d more" % (len(unread) - 5)
    unknown = count_unknown(layers)
    if unknown:
        text += "; so the owner of %s is unknown" % format_count(unknown, "layer")
    remedy = "sudo python3 dockfix.py owner"
    if os.geteuid() == 0:
        first_path, _ = unread[0]
        remedy = "ls -la %s" % quote_word(nearest_folder(first_path))
    return [Finding("owner-unread", "warning", text, remedy)]


def count_unknown(layers: Layers) -> int:
    """The number of layers whose owner cannot be told."""
    unknown = [row for row in layers.rows if row["role"] == UNKNOWN]
    return len(unknown)


# The command.


def run_owner(host: Host, opts: Options, report: dict) -> None:
    if opts.orphans and opts.arguments:
        raise UsageError("--orphans takes no words", "python3 dockfix.py owner --orphans")
    answer = EngineAnswer(None, [])
    if opts.root is None:
        answer = ask_engine(host)
    info = answer.info
    root = root_of_owner(opts, info)
    layers = read_layers(root, follow=opts.root is None)
    inspected = confirm_orphans(host, root, layers, info)
    search = owners_of(layers, opts.arguments)
    rows = search.rows
    findings = list(answer.findings)
    if opts.orphans:
        rows = orphans_with_sizes(layers)
    elif info:
        findings += find_differences(host, rows, opts.arguments, inspected)
    if opts.arguments:
        findings += find_driver_advices(rows)
    findings += find_layers_elsewhere(root, layers, info)
    findings += lost_record_findings(layers)
    findings += find_unproved(layers)
    if not opts.arguments:
        findings += find_orphans(layers)
    findings += find_unread_records(layers)
    report["results"] += rows
    for finding in findings:
        add_finding(report, finding)
    for err in search.errors:
        add_error(report, err)
    add_errors_of_all(report, opts, root, layers, info)
    if report["errors"] and rows:
        report["exit_code"] = 3


def root_of_owner(opts: Options, info: Optional[EngineInfo]) -> str:
    """Whose files are looked at: those that --root names, else those of the engine that answers,
    which must be this host's; else those that the daemon's options name."""
    if opts.root is not None:
        return opts.root
    if info is None:
        return configured_root()
    require_same_host(info, "its layers")
    return info.root


def add_errors_of_all(
    report: dict, opts: Options, root: str, layers: Layers, info: Optional[EngineInfo]
) -> None:
    """Why the answer may lack layers, where it was not narrowed by words."""
    if opts.arguments:
        return
    if opts.orphans and layers.doubts:
        add_error(report, orphan_doubt_error(layers, report["results"]))
        if not unreadable_doubts(layers):
            report["exit_code"] = 3  # all could be read, but not all can be told
    if (opts.orphans or not layers.rows) and is_containerd_store(root, layers, info):
        add_error(report, containerd_error(root, info is not None))


###############################################################################
# 21. reclaim
###############################################################################

# Gives space back: logs, trim, containers, images, build cache, volumes.
#
# It lists what it would remove, asks, and removes nothing that it did not list. Without a category
# it only lists. It never uses force: docker refuses what came into use meanwhile. Volumes go only
# when they are named.
#
# It rests on `docker inspect` (what is used), on the layer table (what removing gives back), and
# afterwards on what is gone and on statvfs: the gain is measured, not added up.
#
# A category is a row of CATEGORIES, at the end of the chapter: what it removes, and how.


class ContainerMount(NamedTuple):
    """Where a container's file system is mounted, in the view of the process `pid`. device: as
    MAJOR:MINOR."""

    pid: str
    point: str
    device: str


class Candidate(NamedTuple):
    """One thing whose removal gives space back.

    names: the words by which docker removes it.
    size: bytes on the disk that nothing else needs, None where unknown.
    lost: what is gone for good, for people.
    path: of a log.
    mount: of what is trimmed.
    """

    category: str
    name: str
    id: str
    names: Tuple[str, ...]
    size: Optional[int]
    lost: str
    path: str = ""
    mount: Optional[ContainerMount] = None


class CandidateList(NamedTuple):
    """What could be removed, and why something could not be looked at."""

    candidates: List[Candidate]
    faults: List[EnvironmentFault]


class Removal(NamedTuple):
    """What became of a candidate. status: as in a container command's row."""

    candidate: Candidate
    status: str
    msg: str

    def to_json(self) -> Dict[str, object]:
        return {
            "target": self.candidate.name,
            "id": self.candidate.id,
            "status": self.status,
            "msg": self.msg,
            "category": self.candidate.category,
            "size": self.candidate.size,
        }


class Space(NamedTuple):
    """What is free and used now, in bytes; None where unknown.

    disk_free: on the disk of Docker's root, and on that of containerd's store.
    has_pool: only then do the others mean something.
    pool_data_used: in the devicemapper pool.
    loop_file_allocated: what the pool's loop file takes of its disk.
    """

    disk_free: Optional[int]
    has_pool: bool = False
    pool_data_used: Optional[int] = None
    loop_file_allocated: Optional[int] = None

    def to_json(self) -> Dict[str, Optional[int]]:
        space = {"disk_free": self.disk_free}
        if self.has_pool:
            space["pool_data_used"] = self.pool_data_used
            space["loop_file_allocated"] = self.loop_file_allocated
        return space


class LayerSizes:
    """Measures layers and folders, each layer once.

    absent: why the root is no folder of this host, '' where it is one.
    until: when measuring gives up, by the monotonic clock.
    points: mount points, whose content does not count.
    """

    def __init__(self, host: Host, absent: str) -> None:
        self.host = host
        self.absent = absent
        self.until = time.monotonic() + 6 * WALK_SECONDS
        self.points = points_of_others(mounts_of())
        self.known = {}  # type: Dict[str, Optional[int]]

    def of_path(self, path: str) -> Optional[int]:
        """Allocated bytes below a path; None where they are not all known."""
        if self.absent:
            return None  # a folder of that name here is another engine's
        measured = disk_usage(path, self.until, self.points)
        if measured.reason:
            return None
        return measured.size

    def of_layer(self, row: dict) -> Optional[int]:
        """Allocated bytes of one layer. A thin device tells its mapped sectors, and only while it
        is active."""
        layer = row["layer"]
        if layer not in self.known:
            if row["driver"] == "devicemapper":
                size = thin_device_size(self.host, row.get("device") or "none")
            else:
                size = self.of_path(own_folder(row))
            self.known[layer] = size
        return self.known[layer]

    def of_layers(self, rows: Iterable[dict]) -> Optional[int]:
        """The sum; None where one is unknown."""
        return add_sizes([self.of_layer(row) for row in rows])


class Inventory(NamedTuple):
    """What reclaim chooses from, read once.

    root: Docker's root.
    store: where containerd keeps images and layers, '' where they are below Docker's root.
    absent: why the root is no folder of this host, '' where it is one.
    containers, images: whole objects of docker inspect.
    layers: None where they cannot be read.
    """

    root: str
    driver: str
    store: str
    absent: str
    containers: List[dict]
    images: List[dict]
    layers: Optional[Layers]
    sizes: LayerSizes

    def layer_rows(self) -> List[dict]:
        if self.layers is None:
            return []
        return self.layers.rows


# (option, the category that it needs)
NARROWING_OPTIONS = (("older_than", "containers"), ("unused", "images"), ("max_log", "logs"))
KEEP_LOGS_SHORT = (
    "dockfix: to keep them short from now on, in /etc/docker/daemon.json (for containers created"
    ' afterwards): "log-driver": "json-file", "log-opts": {"max-size": "100m", "max-file": "3"}'
)
OTHER_HOST_HINT = "findmnt -T %s; on the engine's own host it works"


# Reading: the inventory and its sizes.


class EngineObjects(NamedTuple):
    """What docker answers. info: None where the daemon does not answer."""

    info: Optional[EngineInfo]
    containers: List[dict]
    images: List[dict]


def read_engine_objects(host: Host) -> EngineObjects:
    """All containers and images. Raises EnvironmentFault."""
    info = engine_info(host)
    idents = [container.id for container in list_containers(host)]
    containers = inspect_objects(host, "container", idents)
    answer = require_answer(query(host, "images", "-q", "-a", "--no-trunc"), "docker images")
    image_ids = sorted(set(answer.out_text().split()))
    images = inspect_objects(host, "image", image_ids)
    return EngineObjects(info, containers, images)


def collect_inventory(host: Host, chosen: Sequence[str]) -> Inventory:
    """Raises EnvironmentFault with the daemon down, except for logs: a full disk is cured with them
    first."""
    try:
        engine = read_engine_objects(host)
    except EnvironmentFault as err:
        if list(chosen) != ["logs"]:
            hint = err.hint + (
                "; where a full disk keeps it down: python3 dockfix.py reclaim --logs, which needs"
                " no daemon"
            )
            raise EnvironmentFault(err.msg, hint) from None
        engine = EngineObjects(None, [], [])
    root = configured_root()
    driver = ""
    if engine.info:
        root = engine.info.root
        driver = engine.info.driver
    absent = why_absent(engine.info, root)
    is_folder = os.path.isdir(os_bytes(root))
    writes_below_root = "logs" in chosen or "trim" in chosen
    if is_folder and writes_below_root and os.geteuid() == 0:
        require_root_of_engine(host, engine.info, root)
    layers = None
    store = ""
    if not absent:
        layers = layers_if_readable(root)
        if engine.info and has_containerd_store(engine.info):
            store = containerd_root(root)
    return Inventory(
        root=root,
        driver=driver,
        store=store,
        absent=absent,
        containers=engine.containers,
        images=engine.images,
        layers=layers,
        sizes=LayerSizes(host, absent),
    )


def layers_if_readable(root: str) -> Optional[Layers]:
    """The layer table; None without the rights to read it: then only what needs the files is not
    looked at."""
    try:
        return read_layers(root, follow=True)
    except EnvironmentFault:
        return None


def why_absent(info: Optional[EngineInfo], root: str) -> str:
    """Why the files of the engine that was asked are not on this host, '' where they are."""
    if info and runs_elsewhere(info):
        return "the engine runs on another host, %s" % info.host_name
    if not os.path.isdir(os_bytes(root)):
        return "Docker's root %s is not there" % root
    return ""


def thin_device_size(host: Host, device: str) -> Optional[int]:
    """Bytes mapped in a thin device, None where it is not active."""
    answer = query_host(host, ("dmsetup", "status", device))
    if answer.rc != 0:
        return None
    match = re.match(rb"0 [0-9]+ thin ([0-9]+) ", answer.out)
    if not match:
        return None
    return int(match.group(1)) * 512


def disk_free(inventory: Inventory) -> Optional[int]:
    """Bytes free under Docker's root, and under containerd's store where that is on another disk;
    None where that is not this host's."""
    if inventory.absent:
        return None
    free = free_bytes(inventory.root)
    root = suppress_errors(os.stat, os_bytes(inventory.root))
    store = suppress_errors(os.stat, os_bytes(inventory.store or inventory.root))
    if root is None or store is None or root.st_dev == store.st_dev:
        return free
    return add_sizes((free, free_bytes(inventory.store)))


def read_space(host: Host, inventory: Inventory) -> Space:
    space = Space(disk_free(inventory))
    if inventory.driver != "devicemapper":
        return space
    info = engine_info(host)
    pool = parse_reported_pool(info.driver_status)
    space = space._replace(has_pool=True)
    try:
        used = thin_pool(host, str(pool.name)).data_used
        space = space._replace(pool_data_used=used)
        state = os.lstat(os_bytes(pool.data_loop_file or ""))
        return space._replace(loop_file_allocated=state.st_blocks * 512)
    except (OSError, EnvironmentFault):
        return space  # not root, or a pool on a device of its own


# Deciding: logs.


def list_logs(host: Host, opts: Options, inventory: Inventory) -> CandidateList:
    """json logs longer than --max-log, by Docker's own layout: a path from inspect could name
    anything."""
    try:
        require_container_files(inventory, "the logs")
    except EnvironmentFault as err:
        return CandidateList([], [err])
    limit = LOG_LIMIT
    if opts.max_log is not None:
        limit = opts.max_log
    candidates = []
    names = container_names(inventory)
    for ident in sorted(names, key=lambda ident: names[ident]):
        path = os.path.join(inventory.root, "containers", ident, ident + "-json.log")
        state = suppress_errors(os.lstat, os_bytes(path))
        if not state or not stat.S_ISREG(state.st_mode) or state.st_size <= limit:
            continue
        candidates.append(
            Candidate(
                category="logs",
                name=names[ident],
                id=ident,
                names=(),
                size=state.st_blocks * 512,
                lost="its log so far, %s; it goes on from here" % format_size(state.st_size),
                path=path,
            )
        )
    return CandidateList(candidates, [])


def container_names(inventory: Inventory) -> Dict[str, str]:
    """{container id: its name}, by docker; by the files where the daemon does not answer."""
    names = {}
    for inspected in inventory.containers:
        names[inspected["Id"]] = container_name(inspected)
    if not names and inventory.layers:
        for ident, facts in inventory.layers.containers.items():
            names[ident] = facts.name
    return names


def container_name(inspected: dict) -> str:
    return inspected["Name"].lstrip("/")


def require_container_files(inventory: Inventory, subject: str) -> None:
    """Raises EnvironmentFault where the containers' folders below Docker's root cannot be looked
    at, or are not those of this engine."""
    cannot = "%s cannot be read: " % subject
    # The root is a folder of this host.
    if inventory.absent:
        raise EnvironmentFault(cannot + inventory.absent, OTHER_HOST_HINT % inventory.root)
    # The folders can be read.
    folder = os.path.join(inventory.root, "containers")
    idents = [inspected["Id"] for inspected in inventory.containers]
    try:
        names = set(os.listdir(os_bytes(folder)))
        own = [ident for ident in idents if os_bytes(ident) in names]
        for ident in own:
            require_listable(os.path.join(folder, ident))
    except OSError as err:
        reason = "%s: %s" % (os_text(os.fsencode(err.filename)), err.strerror)
        hint = "ls -la %s" % quote_word(nearest_folder(folder))
        if os.geteuid() != 0:
            hint = "sudo python3 dockfix.py reclaim --logs"
        raise EnvironmentFault(cannot + reason, hint) from None
    # They are those of the containers that docker has.
    if idents and not own:
        reason = "none of docker's containers has a folder in %s" % folder
        raise EnvironmentFault(cannot + reason, OTHER_HOST_HINT % inventory.root)


def require_listable(folder: str) -> None:
    """Raises OSError where a folder is not readable; not where it was removed meanwhile."""
    try:
        os.listdir(os_bytes(folder))
    except FileNotFoundError:
        return


# Deciding: what to trim.


def list_trims(host: Host, opts: Options, inventory: Inventory) -> CandidateList:
    """Running containers of devicemapper, by their mounts in dockerd's own view. Never by `fstrim
    /proc/PID/root`: fstrim resolves that link to / and trims the host (seen to do)."""
    if inventory.driver != "devicemapper":
        if opts.take_trim:
            say(
                "dockfix: nothing to trim: with %s what is deleted in a container is free at once"
                % inventory.driver
            )
        return CandidateList([], [])
    running = {}  # type: Dict[str, dict]
    for inspected in inventory.containers:
        if inspected["State"].get("Running"):
            device = inspected["GraphDriver"]["Data"]["DeviceName"]
            running[device] = inspected
    if not running:
        return CandidateList([], [])
    if os.geteuid() != 0 or inventory.absent:
        reason = "only root can trim"
        if inventory.absent:
            reason = "the containers' file systems cannot be trimmed: %s" % inventory.absent
        fault = EnvironmentFault(reason, "sudo python3 dockfix.py reclaim --trim")
        return CandidateList([], [fault])
    candidates = []
    mounts = read_device_mounts(inventory.root)
    not_mounted = []
    for device, inspected in running.items():
        if device in mounts:
            candidates.append(trim_candidate(inspected, mounts[device]))
        else:
            not_mounted.append(container_name(inspected))
    faults = []
    if not_mounted:
        text = "not trimmed: %s: no daemon of this host has it mounted" % ", ".join(
            sorted(not_mounted)
        )
        faults.append(EnvironmentFault(text, "python3 dockfix.py storage"))
    return CandidateList(candidates, faults)


def trim_candidate(inspected: dict, mount: ContainerMount) -> Candidate:
    return Candidate(
        category="trim",
        name=container_name(inspected),
        id=inspected["Id"],
        names=(),
        size=None,
        lost="nothing; what its deleted files still hold goes back to the pool",
        mount=mount,
    )


def read_device_mounts(root: str) -> Dict[str, ContainerMount]:
    """{thin device: where it is mounted}, in the views of the daemons of this host."""
    mounts = {}  # type: Dict[str, ContainerMount]
    for daemon in running_daemons():
        pid = daemon.variable
        for mount in mounts_of(pid):
            if mount.point.startswith(root + "/devicemapper/mnt/"):
                device = mount.source[len("/dev/mapper/") :]
                mounts.setdefault(device, ContainerMount(pid, mount.point, mount.dev))
    return mounts


# Deciding: containers.


def list_stopped_containers(host: Host, opts: Options, inventory: Inventory) -> CandidateList:
    """docker rm, without -f, refuses one that was started meanwhile."""
    candidates = []
    now = time.time()
    for inspected in inventory.containers:
        state = inspected["State"]
        ended = when_ended(inspected)
        if state.get("Running") or state.get("Paused") or state.get("Restarting"):
            continue
        if now - ended < (opts.older_than or 0):
            continue
        age = "an unknown time"
        if ended:
            age = format_count(int((now - ended) // 86400), "day")
        ident = inspected["Id"]
        candidates.append(
            Candidate(
                category="containers",
                name=container_name(inspected),
                id=ident,
                names=(ident,),
                size=container_size(inventory, ident),
                lost="its own files and its log; stopped for %s" % age,
            )
        )
    return CandidateList(candidates, [])


def when_ended(inspected: dict) -> float:
    """Seconds since 1970, 0 where unknown. One that never ran has only been created."""
    finished = parse_instant(inspected["State"].get("FinishedAt"))
    created = parse_instant(inspected.get("Created"))
    return max(finished, created)


def container_size(inventory: Inventory, ident: str) -> Optional[int]:
    """Bytes of a container's own layers and of its folder with the log; None where no record says
    which its layers are."""
    own = []
    for row in inventory.layer_rows():
        if row["container"] and row["container"]["id"] == ident:
            own.append(row)
    if not any(row["role"] == "container" for row in own):
        return None
    folder = os.path.join(inventory.root, "containers", ident)
    layers = inventory.sizes.of_layers(own)
    return add_sizes((layers, inventory.sizes.of_path(folder)))


# Deciding: images.


def list_unused_images(host: Host, opts: Options, inventory: Inventory) -> CandidateList:
    """Dangling images; with --unused every image that no container was created from. docker rmi,
    without -f, refuses what is in use."""
    used = {str(inspected.get("Image")) for inspected in inventory.containers}
    parents = {str(image.get("Parent")) for image in inventory.images}
    candidates = []
    for image in inventory.images:
        ident = image["Id"]
        tags = without_none(image.get("RepoTags"))
        # An image that was pulled by its digest has that for a name.
        names = tags or without_none(image.get("RepoDigests"))
        if is_dangling(ident, names, used, parents):
            lost = "an image without a name"
        elif opts.unused and names and ident not in used:
            lost = "the image; a host without network cannot pull it again"
        else:
            continue
        candidates.append(
            Candidate(
                category="images",
                name=", ".join(tags) or ident[:19],
                id=ident,
                names=tuple(names or [ident]),
                size=image_size(inventory, image),
                lost=lost,
            )
        )
    return CandidateList(candidates, [])


def without_none(names: Optional[List[str]]) -> List[str]:
    """The names of an image; docker shows '<none>' for one that has none."""
    return [name for name in names or [] if not name.startswith("<none>")]


def image_size(inventory: Inventory, image: dict) -> Optional[int]:
    """Bytes of the layers that only this image has; None where its layers are not all known."""
    ident = bare_id(image["Id"])
    if not inventory.layers or ident not in inventory.layers.images:
        return None
    number = 0
    own = []
    for row in inventory.layer_rows():
        if row["role"] != "image":
            continue
        users = [user["id"] for user in row["images"]]
        if ident in users:
            number += 1
        if users == [ident]:
            own.append(row)
    if "RootFS" in image and number != len(image["RootFS"].get("Layers") or ()):
        return None
    return inventory.sizes.of_layers(own)


# Deciding: build cache and volumes.


def list_build_cache(host: Host, opts: Options, inventory: Inventory) -> CandidateList:
    """All of BuildKit's cache. Where its records cannot be read there may be one: docker removes it
    all the same."""
    size = None
    lost = "the next builds begin from nothing"
    if cache_is_known(inventory):
        rows = [row for row in inventory.layer_rows() if is_build_cache(row)]
        if not rows:
            return CandidateList([], [])
        size = inventory.sizes.of_layers(rows)
        lost = "%s; %s" % (format_count(len(rows), "layer"), lost)
    else:
        lost = "if there is any: " + lost
    cache = Candidate(
        category="build-cache",
        name="BuildKit's cache",
        id="",
        names=(),
        size=size,
        lost=lost,
    )
    return CandidateList([cache], [])


def cache_is_known(inventory: Inventory) -> bool:
    """Whether the records below Docker's root tell of all the build cache."""
    layers = inventory.layers
    if not layers or inventory.driver not in layers.image_counts:
        return False
    return not any(path.endswith("/buildkit/snapshots.db") for path in layers.unread)


def list_volumes(host: Host, opts: Options, inventory: Inventory) -> CandidateList:
    """The volumes that were named; without a category, those that no container has. Raises
    UsageError and Refused before anything is removed."""
    users = volume_users(inventory)
    names = list(opts.take_volumes)
    if not names:
        answer = require_answer(query(host, "volume", "ls", "-q"), "docker volume ls")
        names = answer.out_text().split()
    volumes = {}
    for volume in inspect_objects(host, "volume", names):
        volumes[volume["Name"]] = volume
    # Every volume that was named is there.
    unknown = [name for name in names if name not in volumes]
    if unknown:
        raise UsageError("no such volume: %s" % ", ".join(unknown), "docker volume ls")
    # No container has a volume that was named.
    for name in opts.take_volumes:
        if name in users:
            raise Refused(
                "volume %s is used by container %s; nothing was removed" % (name, users[name]),
                "docker rm %s, if that container is not needed any more" % quote_word(users[name]),
            )
    candidates = []
    for name in names:
        if name in users:
            continue
        lost = "ALL DATA in it"
        if not opts.take_volumes:
            lost += " (goes only when named: --volumes %s)" % name
        folder = volumes[name].get("Mountpoint") or ""
        size = inventory.sizes.of_path(folder)
        candidates.append(Candidate("volumes", name, name, (name,), size, lost))
    return CandidateList(candidates, [])


def volume_users(inventory: Inventory) -> Dict[str, str]:
    """{volume: a container that has it}."""
    users = {}  # type: Dict[str, str]
    for inspected in inventory.containers:
        for mount in inspected.get("Mounts") or []:
            if mount.get("Type", "volume") == "volume":
                users[mount.get("Name")] = container_name(inspected)
    return users


# Deciding: what it gives back.


def estimate_gain(inventory: Inventory, candidates: List[Candidate]) -> Optional[int]:
    """What all of it together gives back: layers that only images on the list share count too. None
    where a part is unknown."""
    if any(candidate.size is None for candidate in candidates):
        return None
    images = set()
    sizes = []  # type: List[Optional[int]]
    for candidate in candidates:
        if candidate.category == "images":
            images.add(bare_id(candidate.id))
        else:
            sizes.append(candidate.size)
    for row in inventory.layer_rows():
        users = {image["id"] for image in row["images"]}
        if row["role"] == "image" and users and users <= images:
            sizes.append(inventory.sizes.of_layer(row))
    return add_sizes(sizes)


# Changing.


def cut_logs(host: Host, inventory: Inventory, candidates: List[Candidate]) -> List[Removal]:
    removals = []
    for candidate in candidates:
        try:
            truncate_file(candidate.path)
        except (OSError, DockfixError) as err:
            removals.append(failed_removal(candidate, err))
            continue
        removals.append(Removal(candidate, "changed", candidate.lost))
    if removals:
        say(KEEP_LOGS_SHORT)
    return removals


def failed_removal(candidate: Candidate, err: Exception) -> Removal:
    if isinstance(err, FileNotFoundError):
        return Removal(candidate, "skipped", "gone")
    return Removal(candidate, "failed", getattr(err, "strerror", None) or str(err))


def trim_containers(host: Host, inventory: Inventory, candidates: List[Candidate]) -> List[Removal]:
    removals = []
    for candidate in candidates:
        try:
            msg = trim_container(host, inventory, candidate)
        except (OSError, DockfixError) as err:
            removals.append(failed_removal(candidate, err))
            continue
        removals.append(Removal(candidate, "changed", msg))
    return removals


def trim_container(host: Host, inventory: Inventory, candidate: Candidate) -> str:
    """What the pool has got back, for people. Raises OSError and DockfixError."""
    before = read_space(host, inventory).pool_data_used
    mount = candidate.mount
    if mount:
        trim_mount(mount.pid, mount.point, mount.device)
    after = read_space(host, inventory).pool_data_used
    if before is None or after is None:
        return candidate.lost
    return "%s handed back to the pool" % format_size(max(0, before - after))


def remove_objects(host: Host, inventory: Inventory, candidates: List[Candidate]) -> List[Removal]:
    """docker rm, rmi and volume rm, 20 at a time. What is gone afterwards is what was removed."""
    if not candidates:
        return []
    output = ""
    category = candidates[0].category
    for start in range(0, len(candidates), 20):
        names = []  # type: List[str]
        for candidate in left_in_place(host, candidates[start : start + 20]):
            names.extend(candidate.names)
        if names and not host.stop.is_set():
            argv = host.docker + CATEGORIES[category].docker_words + tuple(names)
            output += change_host(host, argv, seconds=max(host.timeout, 600)).text()
    remaining = remaining_ids(host, candidates)
    removals = []
    for candidate in candidates:
        if candidate.id in remaining:
            removals.append(judge_remaining(candidate, output))
        else:
            removals.append(Removal(candidate, "changed", candidate.lost))
    return removals


def left_in_place(host: Host, candidates: List[Candidate]) -> List[Candidate]:
    """Without the images whose tags were given to another one since the look: rmi goes by the
    tag."""
    if candidates[0].category != "images":
        return candidates
    names = {}  # type: Dict[str, Set[str]]
    for image in inspect_objects(host, "image", [candidate.id for candidate in candidates]):
        tags = image.get("RepoTags") or []
        digests = image.get("RepoDigests") or []
        names[image["Id"]] = {image["Id"], *tags, *digests}
    unmoved = []
    for candidate in candidates:
        if set(candidate.names) <= names.get(candidate.id, set()):
            unmoved.append(candidate)
    return unmoved


def remaining_ids(host: Host, candidates: List[Candidate]) -> Set[str]:
    """The ids of containers, images or volumes that are still there."""
    category = candidates[0].category
    if category == "containers":
        return {container.id for container in list_containers(host)}
    ids = [candidate.id for candidate in candidates]
    if category == "images":
        return {image["Id"] for image in inspect_objects(host, "image", ids)}
    return {volume["Name"] for volume in inspect_objects(host, "volume", ids)}


def judge_remaining(candidate: Candidate, output: str) -> Removal:
    """What docker says of something that is still there."""
    names = (*candidate.names, candidate.id[:12], candidate.id[7:19])
    lines = []
    for line in output.split("\n"):
        if any(name in line for name in names):
            lines.append(line)
    if not lines:
        lines = ["docker said nothing of it"]
    first = lines[0].strip()
    in_use = (
        r"in use|is using|running container|is being used|stop the container|conflict|dependent"
        r" child"
    )
    if re.search(in_use, " ".join(lines)):
        return Removal(candidate, "skipped", "in use meanwhile: " + first)
    return Removal(candidate, "failed", first)


def prune_build_cache(
    host: Host, inventory: Inventory, candidates: List[Candidate]
) -> List[Removal]:
    """The build cache has no names, so only docker's output tells whether it was removed."""
    if not candidates:
        return []
    cache = candidates[0]
    output = ""
    if not host.stop.is_set():
        argv = host.docker + CATEGORIES["build-cache"].docker_words
        output = change_host(host, argv, seconds=max(host.timeout, 600)).text()
    if re.search(r"(?m)^Total(?: reclaimed space)?:\s+0\s?B\s*$", output):
        return [Removal(cache, "unchanged", "there is none")]
    if re.search(r"(?i)error|unknown|not a docker command", output):
        return [judge_remaining(cache, output)]
    return [Removal(cache, "changed", cache.lost)]


class Category(NamedTuple):
    """What an option of reclaim removes.

    docker_words: the docker command, () where docker has no part in it.
    list: what could be removed.
    remove: removes what was listed; it is given the candidates of its own category.
    """

    docker_words: Tuple[str, ...]
    list: Callable[[Host, Options, Inventory], CandidateList]
    remove: Callable[[Host, Inventory, List[Candidate]], List[Removal]]


# In the order of work. Logs need no daemon and a trim needs no space; images can go only after
# their containers.
CATEGORIES = {
    "logs": Category((), list_logs, cut_logs),
    "trim": Category((), list_trims, trim_containers),
    "containers": Category(("rm",), list_stopped_containers, remove_objects),
    "images": Category(("rmi",), list_unused_images, remove_objects),
    "build-cache": Category(("builder", "prune", "-a", "-f"), list_build_cache, prune_build_cache),
    "volumes": Category(("volume", "rm"), list_volumes, remove_objects),
}


# The command.


def run_reclaim(host: Host, opts: Options, report: dict) -> None:
    """Read, list, ask, remove, read again: what is gone is judged by the state afterwards, and the
    gain by statvfs. Without a category it only lists."""
    chosen = chosen_categories(opts)
    require_reclaim_options(opts, chosen)
    if chosen:
        require_no_half_way(host)
    inventory = collect_inventory(host, chosen)
    listing = list_candidates(host, opts, inventory, chosen or list(CATEGORIES))
    candidates = listing.candidates
    report["root"] = inventory.root
    report["promised"] = estimate_gain(inventory, candidates)
    for fault in listing.faults:
        add_error(report, fault)
    if listing.faults and not candidates:
        return  # nothing was found, but not all was looked at: exit 6 with the reasons
    incomplete = 3 if listing.faults else 0
    report["exit_code"] = incomplete
    if not chosen or opts.dry_run:
        status = "changed" if chosen else "unchanged"
        removals = [Removal(candidate, status, candidate.lost) for candidate in candidates]
        report["results"] = [removal.to_json() for removal in removals]
        if opts.dry_run:
            lines = script_lines(host, listing, chosen)
            report["script"] = script_text(report, lines, len(listing.faults))
        return
    confirm_reclaim(opts, listing)
    lock_reclaim(host, chosen)
    before = read_space(host, inventory)
    report["before"] = before.to_json()
    removals = []
    for name in chosen:
        own = [candidate for candidate in candidates if candidate.category == name]
        of_category = CATEGORIES[name].remove(host, inventory, own)
        removals += of_category
        # At once: a later category may end the run.
        report["results"] += [removal.to_json() for removal in of_category]
    gain = measure_gain(host, inventory, before, removals)
    report["after"] = gain.after.to_json()
    report["freed"] = gain.freed
    for finding in gain.findings:
        add_finding(report, finding)
    report["exit_code"] = exit_code(report["results"]) or incomplete


def chosen_categories(opts: Options) -> List[str]:
    chosen = []
    for name in CATEGORIES:
        if getattr(opts, "take_" + name.replace("-", "_")):
            chosen.append(name)
    return chosen


def require_reclaim_options(opts: Options, chosen: Sequence[str]) -> None:
    """Raises UsageError before anything is looked at."""
    # An option that narrows a category stands with that category.
    for option, category in NARROWING_OPTIONS:
        if opts.is_given(option) and chosen and category not in chosen:
            name = option.replace("_", "-")
            raise UsageError(
                "--%s goes with --%s" % (name, category),
                "python3 dockfix.py reclaim --%s --%s" % (category, name),
            )


def list_candidates(
    host: Host, opts: Options, inventory: Inventory, categories: Sequence[str]
) -> CandidateList:
    """Raises EnvironmentFault if docker's answer is not understood."""
    candidates = []
    faults = []
    for name in categories:
        listing = list_category(host, opts, inventory, CATEGORIES[name])
        candidates += listing.candidates
        faults += listing.faults
    return CandidateList(candidates, faults)


def list_category(
    host: Host, opts: Options, inventory: Inventory, category: Category
) -> CandidateList:
    return parse_answer(inventory, lambda answer: category.list(host, opts, answer))


def confirm_reclaim(opts: Options, listing: CandidateList) -> None:
    """Shows what would be removed, and asks."""
    for fault in listing.faults:
        say("dockfix: warning: %s" % fault.msg)
    for candidate in listing.candidates:
        size = format_known_size(candidate.size)
        line = (candidate.category, size, candidate.name, candidate.lost)
        say("  %-11s %10s  %s: %s" % line)
    if listing.candidates:
        confirm(opts, "remove for good what is listed (%d)?" % len(listing.candidates))


def lock_reclaim(host: Host, chosen: Sequence[str]) -> None:
    """Takes the lock. On a disk without a free byte logs are cut without it: a full disk is cured
    with them first. Not while a storage change stands half-way."""
    try:
        take_lock(host)
    except EnvironmentFault as err:
        journal = os.path.join(os_bytes(host.state), os_bytes(JOURNAL))
        if list(chosen) != ["logs"] or os.path.exists(journal):
            raise
        say("dockfix: warning: %s; going on without the lock" % err.msg)


class Gain(NamedTuple):
    """What was measured afterwards. freed: bytes that the disk has more, None where unknown."""

    after: Space
    freed: Optional[int]
    findings: List[Finding]


def measure_gain(host: Host, inventory: Inventory, before: Space, removals: List[Removal]) -> Gain:
    """What the disk has more than before. The file system may need a moment."""
    removed = [removal.candidate for removal in removals if removal.status == "changed"]
    estimated = estimate_gain(inventory, removed)
    after = disk_free(inventory)
    if estimated and before.disk_free is not None:
        wanted = before.disk_free + 0.95 * estimated
        end = time.monotonic() + 5
        while after is not None and after < wanted and time.monotonic() < end:
            time.sleep(0.2)
            after = disk_free(inventory)
    space = read_space(host, inventory)._replace(disk_free=after)
    if before.disk_free is None or after is None:
        return Gain(space, None, [])
    freed = after - before.disk_free
    tolerance = 0.05 * (estimated or 0) + (1 << 20)
    if not estimated or abs(freed - estimated) <= tolerance:
        return Gain(space, freed, [])
    text = (
        "%s were to be freed, the disk has %s more: other programs wrote or deleted meanwhile, or a"
        " process still holds a deleted file open"
    ) % (format_size(estimated), format_size(freed))
    remedy = "lsof +L1 %s" % inventory.root
    return Gain(space, freed, [Finding("reclaim-differs", "info", text, remedy)])


# The script of a dry run.


def script_lines(host: Host, listing: CandidateList, chosen: Sequence[str]) -> List[str]:
    """The commands that do the same; without a category there is nothing to do."""
    lines = []
    for fault in listing.faults:
        lines.append(script_comment("not looked at: " + fault.msg))
    if not chosen:
        return lines
    for candidate in listing.candidates:
        title = "%s %s: %s" % (candidate.category, candidate.name, candidate.lost)
        lines.append(script_comment(title))
        lines.append(format_removal(host, candidate))
    return lines


def format_removal(host: Host, candidate: Candidate) -> str:
    """The line of a script that removes a candidate."""
    if candidate.mount:
        inside = ("nsenter", "-t", candidate.mount.pid, "-m", "--")
        is_mounted = quote_line((*inside, "mountpoint", "-q", candidate.mount.point))
        trim = quote_line((*inside, "fstrim", "-v", candidate.mount.point))
        return "%s && run %s" % (is_mounted, trim)
    if candidate.path:
        return "run " + quote_line(("truncate", "-s", "0", "--", candidate.path))
    docker_words = CATEGORIES[candidate.category].docker_words
    return "run " + quote_line(host.docker + docker_words + candidate.names)


###############################################################################
# 22. The change engine
###############################################################################


# A storage change is a plan: a list of steps as data. The plan is confirmed, written to a journal,
# and carried out step by step; a step that fails undoes all of it. The same steps make the script
# of a dry run. This chapter never decides what to change, and it begins no step before the journal
# that names it is on the disk: so a run that was killed can be carried on or undone, after a reboot
# too. It rests on rename(2) and fsync(2) alone.


class Step(NamedTuple):
    """One step of a storage change. `id` is unique among the steps of a plan; `title` is for people
    only. It is done when every test of `check` holds: they are asked
    before the deed (then there is nothing to do, as after a kill) and after it, for at most `wait`
    seconds; without tests, when the deed succeeds. The deed is a host program (`argv`, no shell;
    standard input `data`, or the file `source`; standard output to the file `target`), or, with
    `path`, putting `data` there with `mode`; with neither the step only waits for its tests. A test
    is (MODE, [TEXT,] WORD ...), see TESTS. `undo`: steps that are safe also where the deed never
    began or is undone already; void once the step with the id `undo_void_after` was begun. The whole
    step is void where `skip_if` holds. `each`: the program runs once for each of these words, or
    (`each_of`) for each that another program prints, behind its own, BESIDE of them at a time; the
    tests alone say whether that did it. `unmount`: the deed is to unmount what Docker left mounted
    at and below this root (see unmount_left), again and again until the tests hold. An `optional`
    step that fails is told, and the change goes on; what does not start again is exit 3, and so is
    a failed step that `counts` (RunState.failed_steps has the reason). `size`:
    bytes that will flow, for the progress. `daemon`: 'down' or 'up', what the daemon must be from
    here on: made so again when a reboot has changed it. What stands at `path` and is neither `data`
    nor `before` is somebody's: it is kept beside it. With a mode of 0 the file is taken away. With
    `task` the deed is that function of TASKS, here and now, and `argv` is what a script calls for
    it (task_step)."""

    id: str
    title: str
    argv: Tuple[str, ...] = ()
    check: Tuple[Tuple[str, ...], ...] = ()
    undo: Tuple = ()
    wait: float = 0.0
    data: str = ""  # text stands for bytes as raw() makes them
    path: str = ""
    before: str = ""
    mode: int = 0o600
    source: str = ""
    target: str = ""
    size: int = 0
    progress_dir: str = ""  # a folder whose file system fills up meanwhile: the progress of a copy
    daemon: str = ""
    undo_void_after: str = ""
    skip_if: Tuple[Tuple[str, ...], ...] = ()
    optional: bool = False
    counts: bool = False
    task: str = ""
    each: Tuple[str, ...] = ()
    each_of: Tuple[str, ...] = ()
    unmount: str = ""


# What a plan may want to know of a device whose name changes from one boot to the next.
LOOP_NAME = "loop name"  # loop3
LOOP_NUMBER = "loop number"  # 7:3
DISK_NUMBER = "disk number"  # 8:1


class Device(NamedTuple):
    """Something of a device that is another after a reboot, though the device is the same.

    kind: LOOP_NAME, LOOP_NUMBER or DISK_NUMBER.
    file: what the device is known by at all times: the file behind a loop device, or a folder on
        the disk that is meant.
    now: as it was when dockfix last looked.
    """

    kind: str
    file: str
    now: str


class Plan(NamedTuple):
    """A storage change.

    name: unique, also the name for rollback and discard.
    kind: the command.
    goal: one line for people.
    keeps: the folder with the old data that only discard deletes ('': nothing is kept).
    facts: what the features want to know later (JSON).
    devices: by role what the words of the steps, and of their tests and undos, have as {ROLE}. Only
        bind_steps puts the names of now in place of that, right before they are used.
    """

    name: str
    kind: str
    goal: str
    steps: Tuple[Step, ...]
    keeps: str = ""
    facts: dict = {}
    devices: Dict[str, Device] = {}


def make_plan(
    name: str,
    kind: str,
    goal: str,
    steps: Iterable[Step],
    keeps: str = "",
    facts: Optional[dict] = None,
    devices: Optional[Dict[str, Device]] = None,
) -> Plan:
    """Every plan is built here. Raises DockfixError, an internal error, where two steps have one id
    or where an undo refers to a step that is not there."""
    plan = Plan(name, kind, goal, tuple(steps), keeps, facts or {}, devices or {})
    known = set()  # type: Set[str]
    for step in plan.steps:
        if step.id in known:
            raise plan_error(plan, "two steps have the id %s" % step.id)
        known.add(step.id)
    for step in plan.steps:
        if step.undo_void_after and step.undo_void_after not in known:
            raise plan_error(plan, "there is no step with the id %s" % step.undo_void_after)
    return plan


def plan_error(plan: Plan, fault: str) -> DockfixError:
    return DockfixError(
        "internal error in the plan of %s: %s; nothing was changed" % (plan.kind, fault),
        "please report it with the output of --version",
    )


class Journal(NamedTuple):
    """How far a plan is.

    at: the step (from 0) that is begun; those before it are done.
    reached: the furthest step that was ever begun.
    state: STATE_ON, STATE_BACK, STATE_DONE, STATE_UNDONE or STATE_DISCARDING.
    """

    plan: Plan
    at: int = 0
    reached: int = 0
    state: str = STATE_ON


def step_index(plan: Plan, step_id: str) -> int:
    """From 0. Raises ValueError where the plan has no such step."""
    return [step.id for step in plan.steps].index(step_id)


# The devices of a plan.


def bind_steps(plan: Plan) -> Tuple[Step, ...]:
    """The plan's steps with the names that its devices have now."""
    if not plan.devices:
        return plan.steps
    return tuple(bind_step(step, plan.devices) for step in plan.steps)


def bind_step(step: Step, devices: Dict[str, Device]) -> Step:
    """Only the words of programs have placeholders: what is written to a file stays as it is."""
    return step._replace(
        argv=bind_words(step.argv, devices),
        check=tuple(bind_words(test, devices) for test in step.check),
        skip_if=tuple(bind_words(test, devices) for test in step.skip_if),
        undo=tuple(bind_step(undo, devices) for undo in step.undo),
    )


def bind_words(words: Sequence[str], devices: Dict[str, Device]) -> Tuple[str, ...]:
    def name_of(match: "re.Match") -> str:
        device = devices.get(match.group(1))
        return device.now if device else match.group()  # the braces of a format of docker's stay

    return tuple(re.sub(r"\{([a-z-]+)\}", name_of, word) for word in words)


def rebind_devices(host: Host, plan: Plan) -> Plan:
    """The plan with its devices as they are now. One that is not there at present, such as the loop
    device of a pool that is down, keeps the name of before: the steps' tests see that it is not
    there."""
    devices = {}
    for role, device in plan.devices.items():
        now = present_device(host, device) or device.now
        devices[role] = device._replace(now=now)
    return plan._replace(devices=devices)


def present_device(host: Host, device: Device) -> str:
    """'' where there is none, or more than one."""
    if device.kind == DISK_NUMBER:
        return disk_number(device.file)
    answer = query_host(host, ("losetup", "-j", device.file))
    paths = parse_loop_devices(answer.out_text())
    if len(paths) != 1:
        return ""
    if device.kind == LOOP_NAME:
        return os.path.basename(paths[0])
    return device_number(paths[0])


def parse_loop_devices(text: str) -> List[str]:
    """The paths of the devices in the answer of `losetup -j FILE` (losetup(8))."""
    return re.findall(r"(?m)^(/dev/loop[0-9]+):", text)


def device_number(path: str) -> str:
    """Of a device: MAJOR:MINOR, '' where it is not there."""
    status = suppress_errors(os.stat, os_bytes(path))
    return format_device(status.st_rdev) if status else ""


def disk_number(folder: str) -> str:
    """Of the disk that a folder lies on: MAJOR:MINOR, '' where the folder is not there."""
    status = suppress_errors(os.stat, os_bytes(folder))
    return format_device(status.st_dev) if status else ""


class Test(NamedTuple):
    """One MODE of test. takes_text: is there a TEXT before the words; holds(answer, text); sh: the
    same as a function's body (exit statuses 126 and 127 mean that there is no such program); wrong:
    what is said where it does not hold, and shows(answer, text) what it found. tells(words,
    answer): the whole message, where the program that was asked would say nothing to a person."""

    takes_text: bool
    holds: Callable
    wrong: str
    sh: str
    shows: Callable = lambda answer, text: first_line(answer)
    tells: Optional[Callable] = None


def finds_nothing(answer: Answer, text: bytes) -> bool:
    return answer.rc in (0, 1) and not answer.out.strip()


def main_process_uses(answer: Answer, root: str) -> bool:
    """Has the process whose number is the answer, or one that it has started, files of this root
    open?"""
    family = process_and_children(last_number(answer.out_text()))
    return any(process_uses(pid, root) for pid in family)


def unexpected_lines(answer: Answer, text: bytes) -> set:
    """The lines that are not among the text's."""
    return set(answer.out.split(b"\n")) - set(text.split(b"\n")) - {b""}


def failing_test(host: Host, tests: Sequence[Sequence[str]]) -> str:
    """The first test that does not hold, with what its program said; '' when all hold."""
    failed = first_failing(host, tests)
    return say_failing(*failed) if failed else ""


def first_failing(
    host: Host, tests: Sequence[Sequence[str]]
) -> Optional[Tuple[Sequence[str], Answer]]:
    """The first test that does not hold, and what its program answered."""
    for test in tests:
        mode = TESTS[test[0]]
        answer = query_host(host, test[2:] if mode.takes_text else test[1:])
        if answer.timed_out or not mode.holds(answer, os_bytes(test[1])):
            return test, answer
    return None


def say_failing(test: Sequence[str], answer: Answer) -> str:
    mode = TESTS[test[0]]
    words = test[2:] if mode.takes_text else test[1:]
    if answer.timed_out:
        return "%s: no answer" % quote_line(words)
    if mode.tells:
        return mode.tells(words, answer)
    shows = mode.shows(answer, os_bytes(test[1]))
    return "%s %s: %s" % (quote_line(words), mode.wrong.replace("TEXT", test[1]), shows)


def pids_in(out: bytes) -> List[str]:
    """The processes whose /proc/PID/... a program has printed."""
    return sorted(set(re.findall(r"(?m)^/proc/([0-9]+)/", out.decode("utf-8", "replace"))), key=int)


def name_processes(pids: Iterable[str]) -> str:
    """'dockerd (pid 7), perl (pid 12)': what an operator has to end. Those that ended meanwhile are
    left out."""
    names = [(suppress_errors(read_host_text, "/proc/%s/comm" % pid), pid) for pid in pids]
    return ", ".join("%s (pid %s)" % (name.strip(), pid) for name, pid in names if name is not None)


class StillMounted(NamedTuple):
    """Mounts that match some patterns. own: in dockfix's own view; others: by the process that sees
    them, what dockfix does not see at the same place (that goes with its own); holders: the
    processes that use one of them."""

    own: List[Mount]
    others: Dict[str, List[Mount]]
    holders: List[str]


def collect_still_mounted(patterns: Sequence[str]) -> StillMounted:
    own = matching_mounts("self", patterns)
    known = {(one.dev, one.point) for one in own}
    views = other_views()
    others = {}
    for pid in views:
        found = matching_mounts(pid, patterns)
        found = [one for one in found if (one.dev, one.point) not in known]
        if found:
            others[pid] = found
    holders = list(others)
    parts = []  # type: List[Mount]
    for one in own[:9]:
        parts += [part for part in mounts_of() if is_part_of(one, part) and part not in own]
        holders += sharers_of(one, views) + standing_in(one)
    return StillMounted(own + parts, others, sorted(set(holders), key=int))


def describe_mounts(words: Sequence[str], answer: Answer) -> str:
    """What is still mounted where nothing may be (see unused), who holds it, and the lines that end
    it."""
    left = collect_still_mounted([word for option, word in zip(words, words[1:]) if option == "-e"])
    points = [one.point for one in reversed(left.own)]
    lines = [quote_line(["umount", *points[:9]])] if points else []
    for pid in list(left.others)[:3]:
        theirs = [one.point for one in reversed(left.others[pid])]
        enter = ["nsenter", "--target", pid, "--mount", "umount"]
        lines.append(quote_line(enter + theirs[:9]))
        points += [one for one in theirs if one not in points]
    if not points:
        return "a mount was there just now: try again"
    told = ", ".join(points[:3])
    told += " and %d more" % (len(points) - 3) if len(points) > 3 else ""
    told += " is still mounted" if len(points) == 1 else " are still mounted"
    held = name_processes(left.holders[:9])
    if held:
        told += "; held by %s: end that first, then" % held
    return "%s: %s" % (told, "; ".join(lines))


def matching_mounts(pid: str, patterns: Sequence[str]) -> List[Mount]:
    """The mounts in a process's view whose line in mountinfo has one of the patterns."""
    text = os_text(suppress_errors(read_all, "/proc/%s/mountinfo" % pid) or b"")
    lines = [line for line in text.split("\n") if any(one in line for one in patterns)]
    return parse_mountinfo("\n".join(lines))


def describe_open_files(words: Sequence[str], answer: Answer) -> str:
    """words: of find /proc; the last is the pattern of the files' names."""
    return "%s is still open; held by %s" % (words[-1], name_processes(pids_in(answer.out)))


def describe_mount_points(words: Sequence[str], answer: Answer) -> str:
    points = answer.out_text().strip().split("\n")
    return "still mounted: %s: %s" % (", ".join(points[:3]), quote_line(["umount", *points[:3]]))


def describe_devices(words: Sequence[str], answer: Answer) -> str:
    """Mounted nowhere, but a file on it is still open."""
    device = first_line(answer)
    return "%s is still there; still open: fuser -v -m %s/docker-*" % (device, MAPPER)


TESTS = {
    "ok": Test(False, lambda answer, text: answer.rc == 0, "fails", '"$@" >/dev/null 2>&1'),
    "not": Test(
        False,
        lambda answer, text: 0 < answer.rc < 126,
        "still succeeds",
        '"$@" >/dev/null 2>&1; case $? in 0|12[67]) false;; esac',
    ),
    "silent": Test(
        False,
        finds_nothing,
        "still finds something",
        'out=$("$@" 2>/dev/null) || [ $? = 1 ] && [ -z "$out" ]',
    ),
    "unmounted": Test(False, finds_nothing, "", 'silent "$@"', tells=describe_mounts),
    "no_point": Test(False, finds_nothing, "", 'silent "$@"', tells=describe_mount_points),
    "no_device": Test(False, finds_nothing, "", 'silent "$@"', tells=describe_devices),
    "closed": Test(False, finds_nothing, "", 'silent "$@"', tells=describe_open_files),
    "none": Test(
        False,
        lambda answer, text: answer.rc == 0 and not answer.out.strip(),
        "still shows something",
        'out=$("$@" 2>/dev/null) && [ -z "$out" ]',
    ),
    "among": Test(
        True,
        lambda answer, text: answer.rc == 0 and not unexpected_lines(answer, text),
        "shows more than when dockfix looked",
        'want=$1; shift; out=$("$@" 2>/dev/null) || return; ! { printf "%s\\n%s\\n" "$want"'
        ' "$want"; printf "%s\\n" "$out" | LC_ALL=C sort -u; } | LC_ALL=C sort | uniq -u | grep'
        " -q .",
        lambda answer, text: ", ".join(map(os_text, sorted(unexpected_lines(answer, text))))
        or first_line(answer),
    ),
    "says": Test(
        True,
        lambda answer, text: answer.rc == 0 and answer.out.strip() == text,
        "does not say 'TEXT'",
        'want=$1; shift; out=$("$@" 2>/dev/null) && [ "$out" = "$want" ]',
    ),
    "has": Test(
        True,
        lambda answer, text: text in answer.out,
        "does not show 'TEXT'",
        'want=$1; shift; "$@" 2>/dev/null | grep -q -F -e "$want"',
    ),
    "lacks": Test(
        True, lambda answer, text: text not in answer.out, "still shows 'TEXT'", '! has "$@"'
    ),
    "serves": Test(
        True,
        lambda answer, text: main_process_uses(answer, os_text(text)),
        "is not the process that has the files below TEXT open",
        'want=$1; shift; out=$("$@" 2>/dev/null); out=${out##*[!0-9]}; [ "${out:-0}" -gt 0 ] ||'
        ' return; for pid in $out $(grep -l -s -E "^PPid:[[:space:]]*$out$" /proc/[0-9]*/status |'
        ' cut -d/ -f3); do ls -l "/proc/$pid/fd" 2>/dev/null | grep -q -F -e " -> $want/" &&'
        " return; done; false",
    ),
    "unserved": Test(
        True,
        lambda answer, text: answer.rc < 126 and not main_process_uses(answer, os_text(text)),
        "is still the process that has the files below TEXT open",
        '! serves "$@" || return; shift; "$@" >/dev/null 2>&1; case $? in 12[67]) false;; esac',
    ),
}


def do_step(host: Host, step: Step, tick: Callable[[int], None]) -> None:
    """Raises DockfixError where the step is not done afterwards."""
    host.known.not_done.pop(step.id, None)
    if any(tests and not failing_test(host, tests) for tests in (step.skip_if, step.check)):
        return sync_deed(host, step)  # a run that was killed may have done it and come no further
    try:
        run_deed(host, step, tick)
    except DockfixError as err:
        if not step.optional or host.kill.is_set():
            raise
        if step.counts:
            host.known.failed_steps[step.id] = err.msg
        elif starts(step):
            host.known.not_done[step.id] = NotDone(step.argv, err.msg)
        say("dockfix: warning: " + err.msg)


def starts(step: Step) -> bool:
    """Is it a container that shall run (or be paused, or be restarted by docker) again?"""
    verb = "".join(step.argv[-2:-1])
    return verb in ("start", "pause") or verb.startswith("--restart=")


def run_deed(host: Host, step: Step, tick: Callable[[int], None]) -> None:
    """Raises DockfixError."""
    failed = ""
    if step.path:
        write_setting(step)
    elif step.task:
        do_task(host, step, tick)
    elif step.each or step.each_of:
        failed = run_for_each(host, step, tick)
    elif step.argv:
        run_program(host, step, tick)
        sync_deed(host, step)
    wait_for_tests(host, step, failed, tick)


def write_setting(step: Step) -> None:
    try:
        back_up_foreign_edit(step)
        if step.mode:
            replace_file(step.path, os_bytes(step.data), step.mode)
        elif os.path.lexists(os_bytes(step.path)):
            remove_file(step.path)
    except OSError as err:
        raise DockfixError(
            "%s: %s cannot be written: %s" % (step.title, step.path, err.strerror)
        ) from None


def run_program(host: Host, step: Step, tick: Callable[[int], None]) -> None:
    before = free_bytes(step.progress_dir) if step.progress_dir else None

    def grown(done: int) -> None:
        tick(max(0, (before or 0) - (free_bytes(step.progress_dir) or 0)))

    data = os_bytes(step.data) if step.data else None
    flow = Flow(step.source, step.target, grown if step.progress_dir else tick)
    answer = change_host(host, step.argv, data, flow=flow)
    if answer.rc or answer.timed_out:
        raise DockfixError("%s: %s" % (step.title, say_failed(step.argv, answer)), "")


def say_failed(argv: Sequence[str], answer: Answer) -> str:
    return "%s failed (exit %d): %s" % (quote_line(argv), answer.rc, first_line(answer))


def run_for_each(host: Host, step: Step, tick: Callable[[int], None]) -> str:
    """Runs the step's program for each of its words, BESIDE at a time. What the first that failed
    said, '' where none did."""
    words = list(step.each)
    if step.each_of:
        words += query_host(host, step.each_of).out_text().split()
    failed, guard = [], threading.Lock()  # type: List[str], threading.Lock

    def work() -> None:
        while True:
            with guard:
                if not words:
                    return
                argv = (*step.argv, words.pop(0))
            try:
                answer = change_host(host, argv)
                wrong = say_failed(argv, answer) if answer.rc or answer.timed_out else ""
            except DockfixError as err:
                wrong = err.msg
            with guard:
                failed.extend([wrong] if wrong else [])

    threads = [threading.Thread(target=work, daemon=True) for _ in words[:BESIDE]]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.1)
            tick(0)
    return failed[0] if failed else ""


def wait_for_tests(host: Host, step: Step, failed: str, tick: Callable[[int], None]) -> None:
    """Raises DockfixError where the tests do not hold within the step's time. failed: what is said
    of its programs then."""
    end = time.monotonic() + step.wait
    while step.check:
        if step.unmount:
            unmount_left(host, step.unmount)
        wrong = first_failing(host, step.check)
        if not wrong:
            break
        if time.monotonic() >= end or host.kill.is_set():
            said = say_failing(*wrong)
            raise DockfixError(
                "%s: %s" % (step.title, "%s; %s" % (failed, said) if failed else said)
            )
        tick(0)
        time.sleep(1 if step.unmount else 0.2)


def unmount_left(host: Host, root: str) -> None:
    """Unmounts what Docker's daemon, which is down, left mounted at and below its root, as far as
    that is Docker's own and nobody uses it. What is busy stays; a test that follows tells it."""
    mounts = mounts_of()
    bound = self_binds(mounts)
    left = [(own_mount_kind(root, one, bound), one) for one in mounts]
    views = every_view() if any(kind == "container" for kind, _ in left) else {}
    for kind, one in reversed(left):  # what is mounted on another stands behind it
        if kind == "itself" or (kind == "container" and not sharers_of(one, views)):
            change_host(host, ("umount", one.point))


def mount_namespace(pid: str) -> str:
    """The name of a process's mount namespace; '' where it is gone."""
    return suppress_errors(os.readlink, "/proc/%s/ns/mnt" % pid) or ""


def every_view() -> Dict[str, List[Mount]]:
    """What is mounted, by the first process of each mount namespace."""
    views, seen = {}, set()  # type: Dict[str, List[Mount]], set
    for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        space = mount_namespace(pid)
        if space and space not in seen:
            seen.add(space)
            views[pid] = mounts_of(pid)
    return views


def other_views() -> Dict[str, List[Mount]]:
    """The same without the one that dockfix has itself."""
    here, views = mount_namespace("self"), every_view()
    return {pid: views[pid] for pid in views if mount_namespace(pid) != here}


def sharers_of(mount: Mount, views: Dict[str, List[Mount]]) -> List[str]:
    """The processes that have the files of a mount, or a folder of them, at another place too: as a
    container that outlived the daemon has its root."""
    return [pid for pid in views if any(is_part_of(mount, one) for one in views[pid])]


def standing_in(mount: Mount) -> List[str]:
    """The processes that stand in a mount or have a file of it open: for these umount says that it
    is busy."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        links = ["/proc/%s/%s" % (pid, name) for name in ("cwd", "root")]
        files = suppress_errors(os.listdir, "/proc/%s/fd" % pid) or ()
        links += ["/proc/%s/fd/%s" % (pid, name) for name in files]
        targets = [suppress_errors(os.readlink, link) or "" for link in links]
        if any((target + "/").startswith(mount.point + "/") for target in targets):
            found.append(pid)
    return found


def is_part_of(whole: Mount, part: Mount) -> bool:
    """Are the files of `part` those of `whole` (or some of them), at another place?"""
    top = whole.root.rstrip("/") + "/"
    return part.dev == whole.dev and part.point != whole.point and (part.root + "/").startswith(top)


# What docker cannot do alone: name: function(host, request, tick). The request is JSON; tick(bytes
# so far) is called often, and raises where the work must end at once. It raises DockfixError, or
# OSError.
TASKS = {}  # type: Dict[str, Callable[[Host, dict, Callable[[int], None]], None]]


def task_step(host: Host, step_id: str, title: str, task: str, request: dict, **more) -> Step:
    """A step that this program does itself, also as a line of a script."""
    words = (
        "python3",
        program_path(),
        "--docker",
        quote_line(host.docker),
        "backup",
        "--step",
        task,
        ".",
    )
    return Step(step_id, title, words, task=task, data=json.dumps(request, sort_keys=True), **more)


def do_task(host: Host, step: Step, tick: Callable[[int], None]) -> None:
    """Raises DockfixError."""

    def beat(done: int) -> None:
        if host.kill.is_set():
            raise DockfixError("%s: interrupted" % step.title)
        tick(done)

    try:
        TASKS[step.task](host, json.loads(step.data), beat)
    except OSError as err:
        raise DockfixError("%s: %s" % (step.title, err)) from None
    if host.known.working:  # as sync_deed
        change_host(host, ("sync",), seconds=60)


def back_up_foreign_edit(step: Step) -> None:
    """Raises OSError."""
    there = read_all(step.path) if os.path.exists(os_bytes(step.path)) else None
    if there not in (None, os_bytes(step.data), os_bytes(step.before)):
        replace_file(step.path + FOREIGN_EDIT_SUFFIX, there)
        say(
            "dockfix: warning: %s was changed by somebody meanwhile; that is kept in %s"
            % (step.path, step.path + FOREIGN_EDIT_SUFFIX)
        )


def sync_deed(host: Host, step: Step) -> None:
    """Before the journal says that a step is done: a power cut must not take it back, on whichever
    file system it lies."""
    if host.known.working and SYNCED.intersection(step.argv[:6]):
        change_host(host, ("sync",), seconds=60)


def put_file(
    step_id: str,
    title: str,
    path: str,
    text: str,
    mode: int = 0o644,
    undo_after: Sequence[Step] = (),
) -> Step:
    """A step that writes a setting of the host. Its undo puts the bytes of now back, or takes the
    file away where there is none; the steps `undo_after` follow that."""
    try:
        old = os_text(read_all(path))
        kept = Step(
            "put-back",
            "put %s back" % path,
            path=path,
            data=old,
            before=text,
            mode=stat.S_IMODE(os.stat(os_bytes(path)).st_mode),
        )
        mode = kept.mode
    except FileNotFoundError:
        kept = Step("take-away", "take %s away" % path, path=path, before=text, mode=0)
    return Step(
        step_id,
        title,
        path=path,
        data=text,
        before=kept.data,
        mode=mode,
        undo=(kept, *undo_after),
    )


def move_step(step_id: str, title: str, old: str, new: str, stray: str = "") -> Step:
    """A rename inside one file system, never into or over what is there. Undone, it first moves
    what stands at `old` meanwhile to `stray`."""
    aside = Step(
        "newer-aside",
        "move the newer %s aside" % old,
        ("mv", "-T", old, stray),
        (("not", "test", "-e", old, "-a", "-e", new),),
    )
    back = Step(
        "move-back",
        "move %s back" % old,
        ("mv", "-T", new, old),
        (("ok", "test", "-e", old, "-a", "!", "-e", new),),
    )
    return Step(
        step_id,
        title,
        ("mv", "-T", old, new),
        (("ok", "test", "!", "-e", old, "-a", "-e", new),),
        ((aside,) if stray else ()) + (back,),
    )


def tidy_step(folder: str) -> Step:
    """Undoes the making of a folder. One that is not there yet, not empty, or will not go is
    nothing to stop for on the way back."""
    return Step(
        "remove-folder",
        "remove " + folder,
        ("rmdir", "--ignore-fail-on-non-empty", folder),
        skip_if=(("not", "test", "-e", folder),),
        optional=True,
    )


# --- the plan as a script


def script_step(step: Step, fail: str) -> List[str]:
    """The lines that do in sh what do_step does; `fail` is a command that does not come back."""
    if step.optional:
        missed = "; bad=1" if step.counts or starts(step) else ""
        fail = "{ echo %s >&2%s; }" % (quote_word("warning: not done: " + step.title), missed)
    tests = " && ".join(quote_line(test) for test in step.check)
    deed = script_deed(step)
    if " && " in deed or " | " in deed:
        deed = "{ %s; }" % deed
    lines = ["%s%s || %s" % (tests + " || " if tests else "", deed, fail)]
    if tests:
        again = "unmount_left %s; " % quote_word(step.unmount) if step.unmount else ""
        lines.append(
            "n=%d; until %s; do [ $((n -= 1)) -ge 0 ] || { %s; break; }; %ssleep 1; done"
            % (step.wait, tests, fail, again)
        )
    if not step.skip_if:
        return lines
    void = " && ".join(quote_line(test) for test in step.skip_if)
    return ["if ! { %s; }; then" % void, *lines, "fi"]


def script_deed(step: Step) -> str:
    """One command of sh."""
    if step.path:
        return "put %o %s" % (step.mode, quote_line((step.path, step.data, step.before)))
    if step.unmount:
        return "unmount_left " + quote_word(step.unmount)
    if not step.argv:
        return ":"
    command = quote_line(step.argv)
    if step.each or step.each_of:
        words = quote_line(step.each)
        if step.each_of:
            words += " $(%s)" % quote_line(step.each_of)
        turn = '%s "$each" < /dev/null & [ $((n += 1)) -lt %d ] || { wait; n=0; }'
        return "{ n=0; for each in %s; do %s; done; wait; }" % (words, turn % (command, BESIDE))
    if step.data:
        command = "printf %%s %s | %s" % (quote_word(step.data), command)
    if step.source:
        command += " < " + quote_word(step.source)
    elif not step.data:
        command += " < /dev/null"
    if step.target:
        part = quote_word(step.target + ".part")
        command = "(umask 077; %s > %s) && mv %s %s" % (
            command,
            part,
            part,
            quote_word(step.target),
        )
    return command


def unmount_function() -> List[str]:
    """unmount_left as a function of sh, for a script. The first copy of mountinfo that awk reads,
    to the empty line, is this process's own; the others tell which of those mounts are used at
    another place."""
    places = {}
    for kind in ("itself", "container"):
        rows = [place_pattern(row.place) for row in OWN_MOUNTS if row.kind == kind and row.place]
        places[kind] = "^(%s)%s$" % ("|".join(rows), "?" if kind == "itself" else "")
    program = (
        'function slash(path) { return path == "/" ? path : path "/" }',
        "!NF { for (i = 1; i <= n; i++) {",
        'if (index(at[i] "/", ENVIRON["root"] "/") != 1) continue;',
        'below = substr(at[i], length(ENVIRON["root"]) + 1); p = number[parent[i]];',
        (
            'own = (root[p] == "/" ? "" : root[p])'
            ' (at[p] == "/" ? at[i] : substr(at[i], length(at[p]) + 1)); if (own == "") own = "/";'
        ),
        'if (p && dev[p] == dev[i] && own == root[i] && below ~ ENVIRON["itself"]) left[i] = 1;',
        'else if (below ~ ENVIRON["container"]) left[i] = 2 }; others = 1; next }',
        "!others { number[$1] = ++n; parent[n] = $2; dev[n] = $3; root[n] = $4; at[n] = $5; next }",
        (
            "{ for (i in left) if (left[i] == 2 && $3 == dev[i] && $5 != at[i]"
            " && index(slash($4), slash(root[i])) == 1) left[i] = 0 }"
        ),
        "END { for (i = n; i > 0; i--) if (left[i]) print at[i] }",
    )
    return [
        "unmount_left() (",
        (
            'export root itself container; root=$(printf %s "$1" | sed \'s/\\\\/\\\\134/g; s/'
            " /\\\\040/g')"
        ),
        "itself=%s container=%s" % (quote_word(places["itself"]), quote_word(places["container"])),
        "{ cat /proc/self/mountinfo; echo; cat /proc/[0-9]*/mountinfo; } 2>/dev/null | awk %s |"
        % quote_word(" ".join(program)),
        (
            'sed \'s/\\\\/\\\\0/g\' | while read -r point; do umount "$(printf %b "$point")" <'
            " /dev/null; done )"
        ),
    ]


def steps_and_undos(steps: Iterable[Step]) -> Iterable[Step]:
    for step in steps:
        yield step
        yield from step.undo


def plan_script(report: dict, plan: Plan, start: int = 0, closing: Sequence[Step] = ()) -> str:
    """The change from step `start` on as a POSIX script; a step that fails undoes what was done, as
    the real run would, and ends in 1 (7: the undoing failed). Where the plan says beforehand what
    it cannot do (the fact "lacks") it ends in 3. closing: what comes after the change."""
    plan = plan._replace(steps=bind_steps(plan), devices={})
    lines = [script_comment(plan.goal)]
    for text in plan.facts.get("lacks", ()):
        lines += [script_comment(text), "bad=1"]
    lines += ["%s() { %s; }" % (name, mode.sh) for name, mode in TESTS.items()]
    lines += script_proofs(plan, start)
    if any(step.unmount for step in steps_and_undos(plan.steps)):
        lines += unmount_function()
    lines += put_function()
    lines += back_function(plan)
    for number, step in list(enumerate(plan.steps, 1))[start:]:
        comment = script_comment("of %d: %s" % (len(plan.steps), step.title))
        lines.append("at=%d %s" % (number, comment))
        lines += script_step(step, "back")
    lines.append("done=1")
    for step in closing:
        lines += script_step(step, "bad=1")
    return script_text(report, lines, 0)


def script_proofs(plan: Plan, start: int) -> List[str]:
    """The lines that end the script where it is not what the plan was made for. Once the change has
    begun, only the disks are asked for: its engine may be down."""
    lines = []
    for test in plan.facts.get("disk", ()):
        why = quote_word("not mounted: " + test[1])
        lines.append("%s || { echo %s >&2; exit %d; }" % (quote_line(test), why, 7 if start else 5))
    if start:
        return lines
    why = "not the engine, or not the root, that the plan was made for: make the script anew"
    for test in plan.facts.get("proof", ()):
        lines.append("%s || { echo %s >&2; exit 5; }" % (quote_line(test), quote_word(why)))
    return lines


def put_function() -> List[str]:
    """`put MODE PATH DATA BEFORE` in sh: what write_setting does."""
    return [
        (
            'differs() { [ -e "$1" ] && ! printf %s "$2" | cmp -s - "$1" && ! printf %s "$3" | cmp'
            ' -s - "$1"; }'
        ),
        'put() { ! differs "$2" "$3" "$4" || cp "$2" "$2%s" || return' % FOREIGN_EDIT_SUFFIX,
        '[ $1 != 0 ] || { rm -f "$2"; return; }',
        (
            '(umask 077; printf %s "$3" > "$2.dockfix") && chmod "$1" "$2.dockfix" && mv'
            ' "$2.dockfix" "$2"; }'
        ),
    ]


def back_function(plan: Plan) -> List[str]:
    """`back` in sh: undoes the steps from $at down to the first, and ends the script."""
    lines = [
        'stuck() { echo "step $at failed and could not be undone" >&2; exit 7; }',
        "back() {",
        'echo "step $at failed; undoing" >&2',
    ]
    for number, step in reversed(list(enumerate(plan.steps, 1))):
        if not step.undo:
            continue
        before = ""
        if step.undo_void_after:
            before = " && [ $at -lt %d ]" % (step_index(plan, step.undo_void_after) + 1)
        comment = script_comment(step.title)
        lines.append("if [ $at -ge %d ]%s; then %s" % (number, before, comment))
        for undo_step in step.undo:
            lines += script_step(undo_step, "stuck")
        lines.append("fi")
    return [*lines, "exit 1", "}"]


# --- the journal


def step_data(step: Step) -> dict:
    """A step for JSON: only the fields that differ from their defaults."""
    data = {}
    for name, value in step._asdict().items():
        if value != Step._field_defaults.get(name):
            data[name] = value
    if step.undo:
        data["undo"] = [step_data(undo_step) for undo_step in step.undo]
    return data


def step_from(data: dict) -> Step:
    """The step that step_data made `data` of: JSON has lists where a step has tuples."""
    fields = dict(data)
    for name in ("argv", "each", "each_of"):
        fields[name] = tuple(data.get(name, ()))
    for name in ("check", "skip_if"):
        fields[name] = tuple(tuple(test) for test in data.get(name, ()))
    fields["undo"] = tuple(step_from(undo_data) for undo_data in data.get("undo", ()))
    return Step(**fields)


def write_journal(host: Host, journal: Journal) -> None:
    """On the disk before this returns. Raises OSError."""
    plan = journal.plan
    with host.guard:  # the plan never changes: made text once
        if host.known.journal_plan is not plan:
            steps = [step_data(step) for step in plan.steps]
            host.known.journal_plan_text = json.dumps(dict(plan._asdict(), steps=steps))
            host.known.journal_plan = plan
    text = '{"dockfix": "%s", "going": "%s", "at": %d, "reached": %d, "plan": %s}\n' % (
        VERSION,
        journal.state,
        journal.at,
        journal.reached,
        host.known.journal_plan_text,
    )
    path = record_path(host, plan)
    if journal.state in (STATE_ON, STATE_BACK):
        path = journal_path(host)
    replace_file(path, text.encode("ascii"))


def journal_path(host: Host) -> str:
    """Of the journal of a change that stands half-way."""
    return os.path.join(host.state, JOURNAL)


def record_path(host: Host, plan: Plan) -> str:
    """Of the journal of a change that is finished, as long as its old data is kept."""
    return os.path.join(host.state, plan.name + ".json")


def save_journal(host: Host, journal: Journal) -> None:
    """The same. Raises DockfixError where that fails: the next step is then not begun."""
    try:
        write_journal(host, journal)
    except OSError as err:
        begun = os.path.exists(os.path.join(host.state, JOURNAL))
        state = "the change stands half-way" if begun else "nothing was changed"
        raise (HalfWay if begun else EnvironmentFault)(
            "the journal in %s cannot be written: %s; %s" % (host.state, err.strerror, state),
            "make room there, or --state DIR on another disk",
        ) from None


def read_journal(host: Host, name: str = JOURNAL) -> Optional[Journal]:
    """None where there is no such change. Raises HalfWay where the journal is not understood."""
    try:
        found = json.loads(read_all(os.path.join(host.state, name)).decode("ascii"))
        fields = dict(found["plan"])
        fields["steps"] = tuple(step_from(step) for step in fields["steps"])
        devices = fields["devices"].items()
        fields["devices"] = {role: Device(*device) for role, device in devices}
        plan = Plan(**fields)
        return Journal(plan, int(found["at"]), int(found["reached"]), str(found["going"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise HalfWay(
            "the journal %s is not understood" % os.path.join(host.state, name),
            "made by another version of dockfix? use that one",
        ) from None


# --- carrying a plan out


def lock_storage(host: Host, opts: Options, carries_on: bool = False) -> None:
    """What every storage change does before it looks: only root, one at a time, none while another
    stands half-way. A dry run needs none of it."""
    if not opts.dry_run:
        if os.geteuid() != 0:
            raise EnvironmentFault(
                "only root can change Docker's storage", "sudo python3 dockfix.py ..."
            )
        take_lock(host, exclusive=True, carries_on=carries_on)


def run_change(
    host: Host,
    opts: Options,
    report: dict,
    plan: Plan,
    question: str = "",
) -> None:
    """Confirmation (with a question), journal, steps; a step that fails undoes all of it (exit 1).
    A dry run: the script. Facts and refusals come before this, under lock_storage. One row in
    report: the change."""
    if opts.dry_run:
        report["script"] = plan_script(report, plan)
        report["exit_code"] = 4 if opts.exit_code and plan.steps else 0
        return change_row(report, plan, "changed", "would: " + plan.goal)
    mount = mount_of(real_path(host.state), mounts_of())
    if mount and mount.fstype in ("tmpfs", "ramfs"):
        raise Refused(
            "the state folder %s lies in memory: after a reboot nothing would know the way on or"
            " back" % host.state,
            "--state DIR on a disk, for resume and rollback too",
        )
    if question:
        confirm(opts, question)
    moved = failing_test(host, plan.facts.get("proof", ()))
    if moved:  # the question may have stood there for hours
        raise Refused("it is not the engine any more that dockfix looked at: " + moved)
    plan = plan._replace(facts=dict(plan.facts, docker=docker_environment()))
    save_journal(host, Journal(plan))
    host.known.working = True
    progress = Progress(plan.kind, len(plan.steps), opts.quiet)
    try:
        run_steps_on(host, Journal(plan), progress)
    except HalfWay:
        raise
    except DockfixError as err:
        if host.stop.is_set():
            raise half_way_error(host, err) from None
        say("dockfix: %s; undoing what was done" % err.msg)
        print_daemon_log(host, plan)
        journal = read_journal(host)
        undo_steps_back(host, journal, progress)
        report_left_copy(journal)
        raise DockfixError(
            "%s; all of it is undone%s" % (err.msg, describe_kept_length(host, plan)), err.hint
        ) from None
    finally:
        progress.end()
        host.known.working = False
    change_row(report, plan, "changed", plan.goal)


def describe_kept_length(host: Host, plan: Plan) -> str:
    """A pool that was loaded with its new length keeps it."""
    if failing_test(host, plan.facts.get("lengths", ())):
        return ", but the pool keeps its new length (a thin pool never shrinks)"
    return ""


def report_left_copy(journal: Journal) -> None:
    """After a way back: what was copied stays where docker may have run on it."""
    left, begun = journal.plan.facts.get("left", ""), journal.plan.steps[: journal.reached + 1]
    daemon = [step.daemon for step in begun if step.daemon]
    started = "down" in daemon and "up" in daemon[daemon.index("down") :]
    if started and os.path.lexists(os_bytes(left)):
        say(
            "dockfix: docker may have run on %s, so it stays; when nothing in it is needed: rm"
            " -rf %s" % (left, quote_word(left))
        )


def change_row(report: dict, plan: Plan, status: str, msg: str) -> None:
    report["results"].append(
        {
            "target": plan.kind,
            "id": plan.name,
            "status": status,
            "msg": msg,
            "steps": len(plan.steps),
            "keeps": plan.keeps or None,
        }
    )


def half_way_error(host: Host, err: Optional[DockfixError]) -> HalfWay:
    return HalfWay(
        "%sthe change stands half-way: %s"
        % (err.msg + "; " if err else "", describe_half_way(host)),
        HALF_WAY_HINT,
    )


def step_size(step: Step) -> int:
    """Bytes that will flow: the length of the file that is read, where it is there by now."""
    if step.size:
        return step.size
    if step.source and os.path.isfile(os_bytes(step.source)):
        return os.path.getsize(os_bytes(step.source))
    return 0


def run_steps_on(host: Host, journal: Journal, progress: Progress) -> None:
    """The steps from where the journal stands to the end. Raises DockfixError for the step that
    failed, HalfWay after a signal."""
    plan = journal.plan
    steps = bind_steps(plan)
    for number in range(journal.at, len(steps)):
        save_journal(host, Journal(plan, number, max(number, journal.reached)))
        if host.stop.is_set():
            raise half_way_error(host, None)
        step = steps[number]
        do_step(host, step, progress.step(number + 1, step.title, step_size(step)))
    close_journal(host, Journal(plan, len(steps), len(steps) - 1, STATE_DONE))


def undo_steps_back(host: Host, journal: Journal, progress: Progress) -> None:
    """Undoes the steps from where the journal stands down to the first. Raises HalfWay where one
    cannot be undone."""
    plan = journal.plan
    steps = bind_steps(plan)
    for number in range(min(journal.at, len(steps) - 1), -1, -1):
        save_journal(host, Journal(plan, number, journal.reached, STATE_BACK))
        if host.stop.is_set():
            raise half_way_error(host, None)
        for undo in undo_of(journal, steps[number]):
            try:
                do_step(host, undo, progress.step(number + 1, undo.title, undo.size))
            except DockfixError as err:
                raise half_way_error(host, err) from None
    close_journal(host, Journal(plan, 0, journal.reached, STATE_UNDONE))


def undo_of(journal: Journal, step: Step) -> Tuple[Step, ...]:
    """What undoes a step of the change; nothing where that is void by now."""
    void_after = step.undo_void_after
    if void_after and step_index(journal.plan, void_after) <= journal.reached:
        return ()
    return step.undo


def kept_folder(plan: Plan, state: str) -> str:
    """The old data that is there for rollback and discard, '' where there is none. state: of its
    journal."""
    if not keeps_data(plan, state):
        return ""
    return plan.keeps if os.path.isdir(os_bytes(plan.keeps)) else ""


def keeps_data(plan: Plan, state: str) -> bool:
    """A relocate that is undone has its old root in use again."""
    if plan.kind == "relocate" and state in (STATE_BACK, STATE_UNDONE):
        return False
    return bool(plan.keeps)


def close_journal(host: Host, journal: Journal) -> None:
    """The end of a change. Where old data is kept, the record stays under the change's name, for
    rollback and discard. Raises HalfWay: what is done stays done, nothing is undone for the sake of
    the journal."""
    record = record_path(host, journal.plan)
    try:
        if kept_folder(journal.plan, journal.state):
            write_journal(host, journal)
        elif os.path.exists(record):
            remove_file(record)
        if os.path.exists(journal_path(host)):
            remove_file(journal_path(host))
    except OSError as err:
        done, again = "done", "resume"
        if journal.state == STATE_UNDONE:
            done, again = "undone", "rollback"
        raise HalfWay(
            "all steps are %s, but the journal in %s cannot be closed: %s"
            % (done, host.state, err.strerror),
            "make room there, then: python3 dockfix.py " + again,
        ) from None


def closing_steps(host: Host, journal: Journal) -> List[Step]:
    """close_journal for a script that goes on with a change: run again, it or `resume` must not
    begin where that change once stood."""
    plan = journal.plan
    path, record = journal_path(host), record_path(host, plan)
    close = ("rm", "-f", path, record)
    if not keeps_data(plan, journal.state):
        return [Step("close-journal", "close the journal", close)]
    state, at, reached = STATE_DONE, len(plan.steps), len(plan.steps) - 1
    if journal.state == STATE_BACK:
        state, at, reached = STATE_UNDONE, 0, journal.reached
    pattern = '"going": "[a-z]*", "at": [0-9]*, "reached": [0-9]*'
    end = '"going": "%s", "at": %d, "reached": %d' % (state, at, reached)
    kept = ("ok", "test", "-d", plan.keeps)
    not_kept = ("not", "test", "-d", plan.keeps)
    return [
        Step(
            "keep-record",
            "keep the journal as the change's record",
            ("mv", "-f", path, record),
            skip_if=((*not_kept, "-a", "-e", path),),
        ),
        Step(
            "note-end",
            "note the end in it",
            ("sed", "-i", "-e", "s/%s/%s/" % (pattern, end), record),
            skip_if=(not_kept,),
        ),
        Step("close-journal", "close the journal", close, skip_if=(kept,)),
    ]


def restore_daemon_state(host: Host, journal: Journal, progress: Progress) -> None:
    """A reboot in between may have started (or stopped) the daemon: the last steps that say what it
    must be are done again.

    On the way back only 'down' counts, once there was one: a start that fails may be why one goes
    back.
    """
    done = bind_steps(journal.plan)[: journal.at]
    settling = [step for step in done if step.daemon]
    if not settling:
        return
    state = settling[-1].daemon
    was_down = any(step.daemon == "down" for step in settling)
    if journal.state != STATE_ON and state != "down" and was_down:
        return
    last = []  # type: List[Step]
    for step in reversed(settling):
        if step.daemon != state:
            break
        last.insert(0, step)
    for step in last:
        do_step(host, step, progress.step(journal.at + 1, step.title, 0))


def print_daemon_log(host: Host, plan: Plan) -> None:
    """After a start that failed: the last lines of the daemon's log."""
    journal = read_journal(host)
    if not journal or plan.steps[journal.at].daemon != "up":
        return
    argv = ("journalctl", "-u", "docker", "-n", "20", "--no-pager", "-o", "cat")
    for line in query_host(host, argv).out_text().split("\n"):
        say("| " + line)


###############################################################################
# 23. Create recipes
###############################################################################

# From `docker inspect` to the arguments of `docker create`, `docker network create` and `docker
# volume create` that make the same object again. Everything here is pure: nothing is read from the
# host or from Docker. A recipe never drops a setting in silence: what no argument carries is in its
# field `lost`, by name. Every value travels as --flag=value, in one argument: no value is taken for
# an option, and none needs a shell. A recipe carries at least what the tool runlike does.
# Sources: docker/cli cli/command/container/opts.go (flags to Config and HostConfig), opts/mount.go,
# opts/gpus.go, opts/network.go, cli/command/network/create.go and cli/command/volume/create.go.


class Recipe(NamedTuple):
    """How `docker create` makes a container again.

    options: the arguments before the image, each as --flag=value.
    command: the arguments behind the image.
    stdin: the standard input of `docker create`: a seccomp profile, else ''.
    networks: the calls of `docker network` that follow, each as a list of arguments.
    bound: the settings that only an image made of this container carries, for people.
    lost: the settings that nothing carries over, for people.
    """

    options: List[str]
    command: List[str]
    stdin: str
    networks: List[List[str]]
    bound: List[str]
    lost: List[str]


# The forms of a setting's value: each makes the texts behind the flag's =, one for each time that
# the flag is given. No text: the flag is not given.


def as_text(value: object) -> List[str]:
    return ["%s" % value]


def as_switch(value: object) -> List[str]:
    """For a flag that stands alone, without a =."""
    return [""]


def as_list(values: Iterable[str]) -> List[str]:
    return list(values)


def as_map(values: Dict[str, str]) -> List[str]:
    return ["%s=%s" % pair for pair in sorted(values.items())]


def as_period(nanoseconds: int) -> List[str]:
    return ["%dns" % nanoseconds]


def as_tmpfs(mounts: Dict[str, str]) -> List[str]:
    """mounts: path to mount options, which may be empty."""
    texts = []
    for path, mount_options in sorted(mounts.items()):
        texts.append(path + ":" + mount_options if mount_options else path)
    return texts


def as_devices(devices: List[dict]) -> List[str]:
    return ["%(PathOnHost)s:%(PathInContainer)s:%(CgroupPermissions)s" % row for row in devices]


def as_ulimits(limits: List[dict]) -> List[str]:
    return ["%(Name)s=%(Soft)d:%(Hard)d" % row for row in limits]


def as_links(links: List[str]) -> List[str]:
    """NAME:ALIAS of '/db:/web/alias' (HostConfig.Links) and of 'db:alias' or 'db' (the Links of a
    network)."""
    texts = []
    for link in links:
        name, _, alias = link.partition(":")
        name = name.lstrip("/")
        alias = alias.split("/")[-1]
        texts.append("%s:%s" % (name, alias or name))
    return texts


def as_cpus(nano_cpus: int) -> List[str]:
    """HostConfig.NanoCpus counts billionths of a processor."""
    return ["%d.%09d" % divmod(nano_cpus, 10**9)]


def as_restart_policy(policy: dict) -> List[str]:
    text = format_restart_policy(policy)
    return [text] if text else []


def as_rates(limits: List[dict]) -> List[str]:
    """Limits of block devices: Rate in bytes or operations per second, or a Weight."""
    return ["%s:%s" % (row["Path"], row.get("Rate", row.get("Weight"))) for row in limits]


# The settings that a recipe carries.


class CreateFlag(NamedTuple):
    """A setting of a container, and its flag of `docker create`.

    field: where `docker inspect` has it. After a *, it is one that docker inspect has in another
        way, and that one of the functions below makes.
    form: makes the texts behind the flag's =.
    default: the value that docker notes by itself where nothing was asked for.
    empty: the empty value that somebody may have asked for. Any other one was not asked for.
    inherited: `docker create` takes it from the image: it is given only where it is not the
        image's.
    """

    field: str
    flag: str
    form: Callable[..., List[str]] = as_text
    default: object = None
    empty: object = None
    inherited: bool = False


# One more setting that restore carries over is one more row. The flags stand in a recipe in this
# order.
CREATE_FLAGS = (
    CreateFlag("Config.Hostname", "--hostname"),
    CreateFlag("Config.Domainname", "--domainname"),
    CreateFlag("Config.User", "--user", inherited=True),
    CreateFlag("Config.WorkingDir", "--workdir", inherited=True),
    CreateFlag("Config.StopSignal", "--stop-signal", inherited=True),
    CreateFlag("Config.StopTimeout", "--stop-timeout", empty=0, inherited=True),
    CreateFlag("Config.MacAddress", "--mac-address"),
    CreateFlag("*Entrypoint", "--entrypoint", empty=""),
    CreateFlag("*HealthCommand", "--health-cmd"),
    CreateFlag("Config.Healthcheck.Interval", "--health-interval", as_period, inherited=True),
    CreateFlag("Config.Healthcheck.Timeout", "--health-timeout", as_period, inherited=True),
    CreateFlag(
        "Config.Healthcheck.StartPeriod", "--health-start-period", as_period, inherited=True
    ),
    CreateFlag(
        "Config.Healthcheck.StartInterval", "--health-start-interval", as_period, inherited=True
    ),
    CreateFlag("Config.Healthcheck.Retries", "--health-retries", inherited=True),
    CreateFlag("HostConfig.NetworkMode", "--network"),
    CreateFlag("HostConfig.VolumeDriver", "--volume-driver"),
    CreateFlag("HostConfig.CgroupnsMode", "--cgroupns"),
    CreateFlag("HostConfig.IpcMode", "--ipc"),
    CreateFlag("HostConfig.PidMode", "--pid"),
    CreateFlag("HostConfig.UTSMode", "--uts"),
    CreateFlag("HostConfig.UsernsMode", "--userns"),
    CreateFlag("HostConfig.ShmSize", "--shm-size", default=1 << 26),
    CreateFlag("HostConfig.LogConfig.Type", "--log-driver"),
    CreateFlag("HostConfig.Runtime", "--runtime"),
    CreateFlag("HostConfig.OomScoreAdj", "--oom-score-adj"),
    CreateFlag("HostConfig.CgroupParent", "--cgroup-parent"),
    CreateFlag("HostConfig.CpuShares", "--cpu-shares"),
    CreateFlag("HostConfig.CpuPeriod", "--cpu-period"),
    CreateFlag("HostConfig.CpuQuota", "--cpu-quota"),
    CreateFlag("HostConfig.PidsLimit", "--pids-limit", default=-1),
    CreateFlag("HostConfig.CpuRealtimePeriod", "--cpu-rt-period"),
    CreateFlag("HostConfig.CpuRealtimeRuntime", "--cpu-rt-runtime"),
    CreateFlag("HostConfig.CpusetCpus", "--cpuset-cpus"),
    CreateFlag("HostConfig.CpusetMems", "--cpuset-mems"),
    CreateFlag("HostConfig.BlkioWeight", "--blkio-weight"),
    CreateFlag("HostConfig.Memory", "--memory"),
    CreateFlag("HostConfig.MemoryReservation", "--memory-reservation"),
    CreateFlag("HostConfig.MemorySwap", "--memory-swap"),
    CreateFlag("HostConfig.MemorySwappiness", "--memory-swappiness", default=-1, empty=0),
    CreateFlag("HostConfig.KernelMemory", "--kernel-memory"),
    CreateFlag("HostConfig.AutoRemove", "--rm", as_switch),
    CreateFlag("HostConfig.Privileged", "--privileged", as_switch),
    CreateFlag("HostConfig.PublishAllPorts", "--publish-all", as_switch),
    CreateFlag("HostConfig.ReadonlyRootfs", "--read-only", as_switch),
    CreateFlag("HostConfig.OomKillDisable", "--oom-kill-disable", as_switch),
    CreateFlag("HostConfig.Init", "--init", as_switch),
    CreateFlag("Config.Tty", "--tty", as_switch),
    CreateFlag("Config.OpenStdin", "--interactive", as_switch),
    CreateFlag("*NoHealthCheck", "--no-healthcheck", as_switch),
    CreateFlag("HostConfig.Binds", "--volume", as_list),
    CreateFlag("HostConfig.VolumesFrom", "--volumes-from", as_list),
    CreateFlag("HostConfig.CapAdd", "--cap-add", as_list),
    CreateFlag("HostConfig.CapDrop", "--cap-drop", as_list),
    CreateFlag("HostConfig.Dns", "--dns", as_list),
    CreateFlag("HostConfig.DnsOptions", "--dns-opt", as_list),
    CreateFlag("HostConfig.DnsSearch", "--dns-search", as_list),
    CreateFlag("HostConfig.ExtraHosts", "--add-host", as_list),
    CreateFlag("Config.Env", "--env", as_list),
    CreateFlag("Config.ExposedPorts", "--expose", as_list),
    CreateFlag("HostConfig.GroupAdd", "--group-add", as_list),
    CreateFlag("HostConfig.DeviceCgroupRules", "--device-cgroup-rule", as_list),
    CreateFlag("HostConfig.SecurityOpt", "--security-opt", as_list),
    CreateFlag("HostConfig.PortBindings", "--publish", as_list),
    CreateFlag("*Endpoint.Aliases", "--network-alias", as_list),
    CreateFlag("*Endpoint.IPv4Address", "--ip", as_list),
    CreateFlag("*Endpoint.IPv6Address", "--ip6", as_list),
    CreateFlag("*Endpoint.LinkLocalIPs", "--link-local-ip", as_list),
    CreateFlag("*Attach", "--attach", as_list),
    CreateFlag("HostConfig.Mounts", "--mount", as_list),
    CreateFlag("HostConfig.DeviceRequests", "--gpus", as_list),
    CreateFlag("*CdiDevices", "--device", as_list),
    CreateFlag("HostConfig.StorageOpt", "--storage-opt", as_map),
    CreateFlag("HostConfig.Sysctls", "--sysctl", as_map),
    CreateFlag("HostConfig.Annotations", "--annotation", as_map),
    CreateFlag("Config.Labels", "--label", as_map),
    CreateFlag("HostConfig.LogConfig.Config", "--log-opt", as_map),
    CreateFlag("HostConfig.Tmpfs", "--tmpfs", as_tmpfs),
    CreateFlag("HostConfig.Devices", "--device", as_devices),
    CreateFlag("HostConfig.Ulimits", "--ulimit", as_ulimits),
    CreateFlag("HostConfig.Links", "--link", as_links),
    CreateFlag("HostConfig.NanoCpus", "--cpus", as_cpus),
    CreateFlag("HostConfig.RestartPolicy", "--restart", as_restart_policy),
    CreateFlag("HostConfig.BlkioWeightDevice", "--blkio-weight-device", as_rates),
    CreateFlag("HostConfig.BlkioDeviceReadBps", "--device-read-bps", as_rates),
    CreateFlag("HostConfig.BlkioDeviceWriteBps", "--device-write-bps", as_rates),
    CreateFlag("HostConfig.BlkioDeviceReadIOps", "--device-read-iops", as_rates),
    CreateFlag("HostConfig.BlkioDeviceWriteIOps", "--device-write-iops", as_rates),
)

# Fields without a flag that are no loss: the functions below make settings of them, docker derives
# them by itself, or they mean something on Windows only.
FIELDS_WITHOUT_FLAG = (
    "Config.AttachStdin",
    "Config.AttachStdout",
    "Config.AttachStderr",
    "Config.StdinOnce",
    "Config.Cmd",
    "Config.Entrypoint",
    "Config.ArgsEscaped",
    "Config.Image",
    "Config.NetworkDisabled",
    "Config.Volumes",
    "Config.OnBuild",
    "Config.Shell",
    "HostConfig.ContainerIDFile",
    "HostConfig.ConsoleSize",
    "HostConfig.MaskedPaths",
    "HostConfig.ReadonlyPaths",
    "HostConfig.Isolation",
)


def field_value(doc: dict, field: str) -> object:
    """What an object of `docker inspect` has at a path like HostConfig.LogConfig.Type; None where
    it has nothing."""
    value = doc  # type: object
    for key in field.split("."):
        if not value:
            return None
        if not isinstance(value, dict):
            raise TypeError("%s is no object" % field)
        value = value.get(key)
    return value


def format_csv_line(fields: Sequence[str]) -> str:
    """One record as Go's encoding/csv reads it: so docker reads --mount, --gpus and --network."""
    quoted = []
    for field in fields:
        if re.search('[,"\r\n]', field):
            field = '"%s"' % field.replace('"', '""')
        quoted.append(field)
    return ",".join(quoted)


def format_flag(row: CreateFlag, value: object) -> List[str]:
    """The arguments for one setting; [] where it was not asked for."""
    if value is None or value == row.default:
        return []
    if not value and (row.empty is None or value != row.empty):
        return []
    if row.form is as_switch:
        return [row.flag]
    return ["%s=%s" % (row.flag, text) for text in row.form(value)]


def create_recipe(doc: dict, image: dict, others: Sequence[dict]) -> Recipe:
    """The recipe of a container.

    doc: its object of `docker inspect`.
    image: the Config of the image that it is to be made from; {}: as if that had none.
    others: the objects of all containers that it may refer to.
    Raises KeyError, TypeError and the like for an object of another kind, as parse_answer expects.
    """
    config = doc["Config"]
    host = doc["HostConfig"]
    references = reference_settings(host, others)
    mode = references["HostConfig.NetworkMode"]
    command, entrypoint = command_and_entrypoint(config, image)
    # First what is carried as it stands in the object, then what is not.
    settings = plain_settings(doc, image)
    settings.update(references)
    settings.update(config_settings(config, image))
    settings.update(host_name_settings(config, host, mode))
    settings.update(health_settings(config, image))
    settings.update(mount_settings(doc, references["HostConfig.VolumesFrom"], others))
    settings.update(device_settings(host))
    settings.update(network_settings(doc, mode))
    settings["*Entrypoint"] = entrypoint
    settings["Config.ExposedPorts"] = exposed_ports(config, image, host)
    settings["HostConfig.SecurityOpt"] = security_options(host)
    settings["HostConfig.PortBindings"] = published_ports(host)
    options = ["--name=" + title_of(doc)]
    for row in CREATE_FLAGS:
        options += format_flag(row, settings.get(row.field))
    return Recipe(
        options=options,
        command=command,
        stdin=seccomp_profile(host),
        networks=network_calls(doc, mode),
        bound=image_bound_settings(config, image),
        lost=lost_settings(doc, options + command),
    )


def lost_settings(doc: dict, words: List[str]) -> List[str]:
    """The settings that nothing carries over, for people. words: of the recipe."""
    lost = unknown_settings(doc)
    for mount in doc["HostConfig"].get("Mounts") or []:
        lost += lost_mount_options(mount)
    if any("\ufffd" in word for word in words):
        lost.append("bytes that are not UTF-8 (docker itself shows U+FFFD)")
    return lost


def known_fields() -> Set[str]:
    """As Config.NAME or HostConfig.NAME: what a recipe understands, whatever stands in it."""
    fields = list(FIELDS_WITHOUT_FLAG)
    for row in CREATE_FLAGS:
        part, *names = row.field.split(".")
        fields.append(".".join([part, *names[:1]]))
    return set(fields)


def plain_settings(doc: dict, image: dict) -> Dict[str, object]:
    """By field of CREATE_FLAGS what the container has there. image: the Config of its image."""
    settings = {}
    for row in CREATE_FLAGS:
        if row.field.startswith("*"):
            continue
        value = field_value(doc, row.field)
        if row.inherited and value == field_value({"Config": image}, row.field):
            value = None
        settings[row.field] = value
    return settings


def unknown_settings(doc: dict) -> List[str]:
    """The settings that this program does not know, with their values as JSON."""
    known = known_fields()
    unknown = []
    for part in ("HostConfig", "Config"):
        for key, value in doc[part].items():
            if not value or part + "." + key in known:
                continue
            unknown.append("%s (%s)" % (key, json.dumps(value, sort_keys=True)))
    return unknown


def reference_settings(host: dict, others: Sequence[dict]) -> dict:
    """The settings that name other containers, by their names: docker notes ids, and a container
    that is made again has another id.

    host: HostConfig.
    others: the objects of all containers that it may refer to.
    """
    names = {}
    for other in others:
        for reference in (other["Id"], other["Id"][:12], title_of(other)):
            names[reference] = title_of(other)
    volumes_from = []
    for source in host.get("VolumesFrom") or []:  # CONTAINER[:MODE]
        container, colon, mode = source.partition(":")
        volumes_from.append(names.get(container, container) + colon + mode)
    settings = {"HostConfig.VolumesFrom": volumes_from}  # type: dict
    for key in ("NetworkMode", "IpcMode", "PidMode"):
        value = host.get(key)
        kind, _, container = (value or "").partition(":")
        if kind == "container":
            value = "container:" + names.get(container, container)
        settings["HostConfig." + key] = value
    return settings


# A seccomp profile stands in SecurityOpt as its whole JSON text. It is longer than an argument may
# be, so `docker create` reads it from its standard input.
SECCOMP_TEXT = "seccomp={"


def seccomp_profile(host: dict) -> str:
    """The text of a profile; '' where there is none, or one that docker knows by its name."""
    for option in host.get("SecurityOpt") or []:
        if option.startswith(SECCOMP_TEXT):
            return option[len("seccomp=") :]
    return ""


def security_options(host: dict) -> List[str]:
    """The values of --security-opt. host: HostConfig."""
    options = []
    for option in host.get("SecurityOpt") or []:
        if option.startswith(SECCOMP_TEXT):
            option = "seccomp=/dev/stdin"
        options.append(option)
    # docker turns systempaths=unconfined into an empty list of paths to mask
    if host.get("MaskedPaths") == [] and not host.get("Privileged"):
        options.append("systempaths=unconfined")
    return options


def published_ports(host: dict) -> List[str]:
    """[IP:][HOST_PORT]:PORT/PROTOCOL for each binding."""
    published = []
    for port, bindings in sorted((host.get("PortBindings") or {}).items()):
        for binding in bindings or [{}]:
            address = binding.get("HostIp") or ""
            if ":" in address:
                address = "[%s]" % address
            if address:
                address += ":"
            published.append("%s%s:%s" % (address, binding.get("HostPort") or "", port))
    return published


def device_settings(host: dict) -> dict:
    """DeviceRequests: devices by their CDI names (--device), and GPUs (--gpus)."""
    cdi, gpus = [], []  # type: List[str], List[str]
    for request in host.get("DeviceRequests") or []:
        if request.get("Driver") == "cdi":
            cdi += request.get("DeviceIDs") or []
        else:
            gpus.append(format_gpu_request(request))
    return {"*CdiDevices": cdi, "HostConfig.DeviceRequests": gpus}


def format_gpu_request(request: dict) -> str:
    kinds = []
    for capabilities in request.get("Capabilities") or []:
        kinds += [kind for kind in capabilities if kind != "gpu"]  # docker adds that one
    count = request.get("Count")
    if count == -1:
        count = "all"
    pairs = [
        ("driver", request.get("Driver")),
        ("device", ",".join(request.get("DeviceIDs") or [])),
        ("count", count),
        ("capabilities", ",".join(kinds)),
        ("options", format_csv_line(as_map(request.get("Options") or {}))),
    ]
    return format_csv_line(["%s=%s" % (key, value) for key, value in pairs if value])


# Settings of Config. The image's own are not repeated: `docker create` takes them from it.


def own_variables(config: dict, image: dict) -> List[str]:
    """NAME=VALUE, or a bare NAME, which removes the image's variable."""
    of_image = image.get("Env") or []
    return [variable for variable in config.get("Env") or [] if variable not in of_image]


def has_value(variable: str) -> bool:
    """A variable without a = must not become an argument: docker would take the operator's own."""
    return variable.find("=") > 0


def config_settings(config: dict, image: dict) -> dict:
    """Variables and labels that are not the image's, and what is attached."""
    variables = own_variables(config, image)
    labels = {}
    labels_of_image = image.get("Labels") or {}
    for key, value in (config.get("Labels") or {}).items():
        if labels_of_image.get(key) != value:
            labels[key] = value
    settings = {
        "Config.Env": [variable for variable in variables if has_value(variable)],
        "Config.Labels": labels,
    }  # type: dict
    if config.get("OpenStdin") and not config.get("StdinOnce"):
        # with standard input attached docker would note StdinOnce
        settings["*Attach"] = ["stdout"]
    return settings


def host_name_settings(config: dict, host: dict, mode: Optional[str]) -> dict:
    """Who shares another's host name has none of its own: docker refuses one.

    mode: HostConfig.NetworkMode, with containers by their names.
    """
    shares_name = re.match(r"host\Z|container:", mode or "")
    if shares_name or host.get("UTSMode") == "host":
        return {"Config.Hostname": None, "Config.Domainname": None}
    return {}


def exposed_ports(config: dict, image: dict, host: dict) -> List[str]:
    """Those that neither the image nor --publish exposes."""
    exposed = set(config.get("ExposedPorts") or {})
    exposed -= set(image.get("ExposedPorts") or {})
    exposed -= set(host.get("PortBindings") or {})
    return sorted(exposed)


def replaces_entrypoint(config: dict, image: dict) -> bool:
    """An image's command cannot be removed alone: only --entrypoint clears it."""
    if (config.get("Entrypoint") or []) != (image.get("Entrypoint") or []):
        return True
    return not config.get("Cmd") and bool(image.get("Cmd"))


def command_and_entrypoint(config: dict, image: dict) -> Tuple[List[str], Optional[str]]:
    """The arguments behind the image, and the value of --entrypoint (None: not given), which takes
    one word: the others go before the command."""
    entrypoint = config.get("Entrypoint") or []
    command = config.get("Cmd") or []
    if replaces_entrypoint(config, image):
        if not entrypoint:
            return command, ""
        return entrypoint[1:] + command, entrypoint[0]
    if command == (image.get("Cmd") or []):
        return [], None
    return list(command), None


def health_test(config: dict, image: dict) -> List[str]:
    """The health check where it is not the image's: ["NONE"], ["CMD-SHELL", LINE] or ["CMD",
    WORD, ...]; else []."""
    test = (config.get("Healthcheck") or {}).get("Test")
    if test == (image.get("Healthcheck") or {}).get("Test"):
        return []
    return test or []


def health_settings(config: dict, image: dict) -> dict:
    """--no-healthcheck, or the line of --health-cmd: words become one, quoted for a shell."""
    test = health_test(config, image)
    command = quote_line(test[1:])
    if test[:1] == ["CMD-SHELL"]:
        command = "".join(test[1:2])  # docker takes one without a line, and never runs it
    return {"*NoHealthCheck": test[:1] == ["NONE"], "*HealthCommand": command}


def image_bound_settings(config: dict, image: dict) -> List[str]:
    """What the arguments carry only in part, or not at all, while an image made of the container
    carries it."""
    bound = []
    for variable in own_variables(config, image):
        if not has_value(variable):
            bound.append("variable " + variable)
    entrypoint = config.get("Entrypoint") or []
    if replaces_entrypoint(config, image) and len(entrypoint) > 1:
        bound.append("an entrypoint of several words (%s)" % quote_line(entrypoint))
    for key in ("Shell", "OnBuild"):
        # an empty list and no list mean the same
        if (config.get(key) or None) != (image.get(key) or None):
            bound.append(key)
    test = health_test(config, image)
    if test[:1] == ["CMD"]:
        bound.append("a health check that is not a shell line (%s)" % quote_line(test[1:]))
    if test == ["CMD-SHELL"]:
        bound.append("a health check without a line")
    return bound


# Networks. `docker create` joins one network: the one that NetworkMode names, by name or by id. A
# `docker network connect` follows for each further one.


def first_network(doc: dict, mode: str) -> str:
    """The name of the network that `docker create` joins."""
    endpoints = doc["NetworkSettings"].get("Networks") or {}
    for name, endpoint in endpoints.items():
        if mode in (name, endpoint.get("NetworkID") or name):
            return name
    return mode


def is_predefined_network(name: str) -> bool:
    """Such a network takes no address and no alias of a container."""
    return name in ("default", "bridge", "host", "none") or name.startswith("container:")


def endpoint_settings(doc: dict, endpoint: dict) -> Dict[str, List[str]]:
    """By field of CREATE_FLAGS. endpoint: an object of NetworkSettings.Networks."""
    ipam = endpoint.get("IPAMConfig") or {}
    aliases = endpoint.get("Aliases") or []
    return {
        # docker adds the id by itself
        "*Endpoint.Aliases": [alias for alias in aliases if alias != doc["Id"][:12]],
        "*Endpoint.IPv4Address": list(filter(None, [ipam.get("IPv4Address")])),
        "*Endpoint.IPv6Address": list(filter(None, [ipam.get("IPv6Address")])),
        "*Endpoint.LinkLocalIPs": ipam.get("LinkLocalIPs") or [],
        "HostConfig.Links": endpoint.get("Links") or [],
    }


def endpoint_options(endpoint: dict) -> List[str]:
    """Options of an endpoint that are fields of --network for `docker create`, and flags for
    `docker network connect`."""
    options = ["driver-opt=" + text for text in as_map(endpoint.get("DriverOpts") or {})]
    if endpoint.get("GwPriority"):
        options.append("gw-priority=%s" % endpoint["GwPriority"])
    return options


def network_settings(doc: dict, mode: Optional[str]) -> dict:
    """The network that `docker create` joins, with the addresses and names that the container has
    there.

    mode: HostConfig.NetworkMode, with containers by their names.
    """
    endpoints = doc["NetworkSettings"].get("Networks") or {}
    first = first_network(doc, mode or "default")
    endpoint = endpoints.get(first) or {}
    settings = {}  # type: dict
    network = first
    if first in ("default", "bridge"):
        network = ""
    if first in endpoints and not is_predefined_network(first):
        settings.update(endpoint_settings(doc, endpoint))
        options = endpoint_options(endpoint)
        if options:
            network = format_csv_line(["name=" + first, *options])
    settings["HostConfig.NetworkMode"] = network
    settings["Config.MacAddress"] = asked_mac_address(doc, endpoint)
    return settings


def asked_mac_address(doc: dict, endpoint: dict) -> str:
    """'' where docker made it itself: such an address begins with 02:42 (libnetwork, netutils,
    genMAC)."""
    address = doc["Config"].get("MacAddress")
    if address:
        return address  # it stands there only where it was asked for
    address = endpoint.get("MacAddress") or ""
    if address.startswith("02:42:"):
        return ""
    return address


def network_calls(doc: dict, mode: Optional[str]) -> List[List[str]]:
    """The calls of `docker network` behind `docker create`; mode as above."""
    endpoints = doc["NetworkSettings"].get("Networks") or {}
    first = first_network(doc, mode or "default")
    if is_predefined_network(first):
        return []
    calls = []
    for name, endpoint in sorted(endpoints.items()):
        if name != first:
            calls.append(connect_call(doc, name, endpoint))
    if first not in endpoints:  # the container was taken off the network that it was made with
        calls.append(["network", "disconnect", first, title_of(doc)])
    return calls


def connect_call(doc: dict, name: str, endpoint: dict) -> List[str]:
    """The call of `docker network connect`. name: the network's; endpoint: its object of
    NetworkSettings.Networks."""
    settings = endpoint_settings(doc, endpoint)
    call = ["network", "connect"]
    for row in CREATE_FLAGS:
        value = settings.get(row.field)
        if not value:
            continue
        flag = row.flag.replace("network-", "")  # --network-alias is --alias here
        call += ["%s=%s" % (flag, text) for text in row.form(value)]
    call += ["--" + option for option in endpoint_options(endpoint)]
    return [*call, name, title_of(doc)]


# Mounts. HostConfig has what was asked for (Binds, Mounts, Tmpfs, VolumesFrom); the object's own
# Mounts has all that there is, the anonymous volumes with the names that docker gave them.


def mount_settings(doc: dict, volumes_from: List[str], others: Sequence[dict]) -> dict:
    """An anonymous volume gets its name of now: so the new container has the same data.

    volumes_from: HostConfig.VolumesFrom, with containers by their names.
    others: the objects of all containers that it may refer to.
    """
    host = doc["HostConfig"]
    mounts = doc.get("Mounts") or []
    covered = asked_mount_points(host, volumes_from, others)
    binds = asked_binds(host)
    for mount in mounts:
        name = mount.get("Name")
        if not name or posixpath.normpath(mount["Destination"]) in covered:
            continue
        bind = "%s:%s" % (name, mount["Destination"])
        if mount.get("RW") is False:
            bind += ":ro"
        binds.append(bind)
    lines = [format_mount(asked, mounts) for asked in host.get("Mounts") or []]
    return {"HostConfig.Binds": binds, "HostConfig.Mounts": lines}


def asked_binds(host: dict) -> List[str]:
    """A bind without a colon is the path of an anonymous volume: it gets a name."""
    return [bind for bind in host.get("Binds") or [] if ":" in bind]


def asked_mount_points(host: dict, volumes_from: List[str], others: Sequence[dict]) -> Set[str]:
    """The paths in the container that a setting of HostConfig mounts something at."""
    paths = list(host.get("Tmpfs") or {})
    for bind in asked_binds(host):  # SOURCE:PATH[:MODE]
        paths.append(bind.split(":")[1])
    for mount in host.get("Mounts") or []:
        paths.append(mount["Target"])
    sources = [source.split(":")[0] for source in volumes_from]
    for other in others:
        if title_of(other) not in sources:
            continue
        for mount in other.get("Mounts") or []:
            paths.append(mount["Destination"])
    return {posixpath.normpath(path) for path in paths}


# Key of --mount -> where an object of HostConfig.Mounts has the value, in the order of a recipe.
MOUNT_FIELDS = {
    "type": "Type",
    "source": "Source",
    "target": "Target",
    "readonly": "ReadOnly",
    "consistency": "Consistency",
    "bind-propagation": "BindOptions.Propagation",
    "bind-nonrecursive": "BindOptions.NonRecursive",
    "bind-recursive": "BindOptions.ReadOnlyNonRecursive",  # and another one: bind_recursion
    "volume-nocopy": "VolumeOptions.NoCopy",
    "volume-subpath": "VolumeOptions.Subpath",
    "volume-driver": "VolumeOptions.DriverConfig.Name",
    "tmpfs-size": "TmpfsOptions.SizeBytes",
    "tmpfs-mode": "TmpfsOptions.Mode",
}
LOST_MOUNT_FIELDS = (
    "ImageOptions",
    "ClusterOptions",
    "TmpfsOptions.Options",
    "BindOptions.CreateMountpoint",
)


def format_mount(asked: dict, mounts: Sequence[dict]) -> str:
    """The value of --mount.

    asked: an object of HostConfig.Mounts.
    mounts: the container's Mounts, for the name of an anonymous volume.
    """
    values = {key: field_value(asked, field) for key, field in MOUNT_FIELDS.items()}
    if not values["source"]:
        values["source"] = volume_name_at(asked["Target"], mounts)
    values["bind-recursive"] = bind_recursion(asked.get("BindOptions") or {})
    mode = values["tmpfs-mode"]
    if isinstance(mode, int):
        values["tmpfs-mode"] = "%o" % mode if mode else ""
    fields = []
    for key, value in values.items():
        if value is True:
            value = "true"
        if value:
            fields.append("%s=%s" % (key, value))
    fields += ["volume-label=" + text for text in mount_map(asked, "VolumeOptions.Labels")]
    options = mount_map(asked, "VolumeOptions.DriverConfig.Options")
    fields += ["volume-opt=" + text for text in options]
    return format_csv_line(fields)


def mount_map(asked: dict, field: str) -> List[str]:
    """NAME=VALUE for each that an object of HostConfig.Mounts has there."""
    values = field_value(asked, field) or {}
    if not isinstance(values, dict):
        raise TypeError("%s is no object" % field)
    return as_map(values)


def volume_name_at(path: str, mounts: Sequence[dict]) -> Optional[str]:
    """The volume that a container has at a path; None where it has none. mounts: its Mounts."""
    for mount in mounts:
        if mount["Destination"] == path:
            return mount.get("Name")
    return None


def bind_recursion(bind: dict) -> str:
    """What of the mounts below a read-only bind is read-only too."""
    if bind.get("ReadOnlyNonRecursive"):
        return "writable"
    if bind.get("ReadOnlyForceRecursive"):
        return "readonly"
    return ""


def lost_mount_options(asked: dict) -> List[str]:
    """Options of a mount that --mount does not take in every Docker that knows them."""
    lost = []
    for field in LOST_MOUNT_FIELDS:
        if field_value(asked, field):
            key = field.split(".")[-1]
            lost.append("%s of the mount at %s" % (key, asked["Target"]))
    return lost


# Networks and volumes themselves.


def format_map_flags(flag: str, values: Optional[dict]) -> List[str]:
    """--FLAG=NAME=VALUE for each."""
    return ["--%s=%s" % (flag, text) for text in as_map(values or {})]


# Key of `docker network inspect` -> flag of `docker network create`.
NETWORK_SWITCHES = {
    "Internal": "--internal",
    "Attachable": "--attachable",
    "EnableIPv6": "--ipv6",
    "ConfigOnly": "--config-only",
}


def network_recipe(doc: dict) -> List[str]:
    """The arguments of docker that make a network again, with the addresses that it has. doc: its
    object of `docker network inspect`."""
    call = ["network", "create", "--driver=" + doc["Driver"]]
    for key, switch in NETWORK_SWITCHES.items():
        if doc.get(key):
            call.append(switch)
    if doc.get("EnableIPv4") is False:  # a Docker before 28 does not have the key
        call.append("--ipv4=false")
    source = field_value(doc, "ConfigFrom.Network")
    if source:
        call.append("--config-from=%s" % source)
    ipam = doc.get("IPAM") or {}
    if ipam.get("Driver") not in (None, "", "default"):
        call.append("--ipam-driver=%s" % ipam["Driver"])
    call += format_map_flags("ipam-opt", ipam.get("Options"))
    call += format_map_flags("opt", doc.get("Options"))
    call += format_map_flags("label", doc.get("Labels"))
    for subnet in ipam.get("Config") or []:
        call += subnet_flags(subnet)
    return [*call, doc["Name"]]


def subnet_flags(subnet: dict) -> List[str]:
    """subnet: an object of IPAM.Config. Its Gateway may have a prefix length, which the flag does
    not take."""
    flags = []
    if subnet.get("Subnet"):
        flags.append("--subnet=%s" % subnet["Subnet"])
    if subnet.get("Gateway"):
        flags.append("--gateway=%s" % subnet["Gateway"].split("/")[0])
    if subnet.get("IPRange"):
        flags.append("--ip-range=%s" % subnet["IPRange"])
    return flags + format_map_flags("aux-address", subnet.get("AuxiliaryAddresses"))


def volume_recipe(doc: dict) -> List[str]:
    """The arguments of docker that make a volume again. doc: its object of `docker volume inspect`.
    --name is understood by Docker 1.12 to 29."""
    call = ["volume", "create", "--driver=" + doc["Driver"]]
    call += format_map_flags("label", doc.get("Labels"))
    call += format_map_flags("opt", doc.get("Options"))
    return [*call, "--name=" + doc["Name"]]


###############################################################################
# 24. The daemon
###############################################################################

# Stops this host's containers and its docker service for a storage change, starts them again as they
# were, and sets the daemon's options where they are set today. The functions here look, refuse and
# make steps; only the change engine carries a step out.
#
# No container may be lost (one with --rm vanishes when it stops). A daemon that is silent is not
# taken for one that is stopped. What somebody else mounted is not unmounted, and a setting is edited
# only in a place that is understood.
#
# Facts: systemd.service(5) and systemd.unit(5) for units and drop-ins; moby's daemon/daemon.go (a
# daemon that stops gives its containers 15 seconds) and cmd/dockerd for its options; `docker update
# --restart` is there since 1.11.


# What docker holds.


class Stock(NamedTuple):
    """What an engine holds, or a backup of it, as docker's inspect gives it. Each container stands
    behind those it needs."""

    containers: List[dict]
    images: List[dict]
    networks: List[dict]
    volumes: List[dict]


class InspectedContainers(NamedTuple):
    """containers: each behind those it needs. unreadable: by the name of a container, why docker
    cannot show it, or that its object is not understood."""

    containers: List[Container]
    unreadable: Dict[str, str]


def inspect_all_containers(host: Host) -> List[Container]:
    """All containers, each behind those it needs: two docker calls. Raises EnvironmentFault."""
    ids = [target.id for target in list_containers(host)]
    containers = parse_containers(inspect_objects(host, "container", ids))
    return parse_answer(containers, sort_by_needs)


def inspect_readable_containers(host: Host) -> InspectedContainers:
    """The same for a backup: one container that docker cannot show, or shows in a way that is not
    understood, does not keep the others from it."""
    targets = list_containers(host)
    docs, unreadable = inspect_each(host, targets)
    names = {target.id: target.name for target in targets}
    containers = []
    for doc in docs:
        try:
            containers.append(parse_answer(doc, parse_backup_container))
        except EnvironmentFault as err:
            ident = str(doc.get("Id"))
            unreadable[names.get(ident, ident)] = err.msg
    return InspectedContainers(sort_by_needs(containers), unreadable)


def inspect_each(host: Host, targets: List[Target]) -> Tuple[List[dict], Dict[str, str]]:
    """Objects, and what docker says of those that it cannot show, by name. All in one call; where
    docker fails at one of them (its layer is lost: "RWLayer is unexpectedly nil"), one by one."""
    docs = []  # type: List[dict]
    faults = {}
    try:
        return inspect_objects(host, "container", [target.id for target in targets]), {}
    except EnvironmentFault:
        for target in targets:
            try:
                docs += inspect_objects(host, "container", [target.id])
            except EnvironmentFault as err:
                faults[target.name] = err.msg
        if not docs:  # the fault is docker's, and not that of one container
            raise
    return docs, faults


def parse_backup_container(doc: dict) -> Container:
    """A container of which everything is understood that a backup and a restore take later. Raises
    as parse_answer expects."""
    container = parse_container(doc)
    create_recipe(doc, {}, [doc])
    sort_by_needs([container])
    own_changes(doc, "")
    for key in ("Name", "Image"):
        if not isinstance(doc[key], str):
            raise ValueError("no " + key)
    return container


def own_changes(doc: dict, diff: str) -> bool:
    """Does `docker diff` show files of the container's own? Not mount points and the folders on the
    way to them. diff: lines such as 'A /path'."""
    made_for_mounts = set()
    for mount in list_at(doc, "Mounts"):
        path = posixpath.normpath(mount["Destination"])
        while path not in made_for_mounts:
            made_for_mounts.add(path)
            path = posixpath.dirname(path)
    for line in diff.split("\n"):
        path = line[2:]
        if line.strip() and path not in made_for_mounts:
            return True
    return False


def collect_stock(host: Host, containers: Sequence[Container]) -> Stock:
    """These containers and all else: six docker calls, whatever there is. Raises
    EnvironmentFault."""
    image_ids = set(list_words(host, "images", "-q", "--no-trunc"))
    networks = list_words(host, "network", "ls", "-q", "--no-trunc")
    volumes = list_words(host, "volume", "ls", "-q")
    image_ids.update(container.inspect["Image"] for container in containers)
    return Stock(
        containers=[container.inspect for container in containers],
        images=inspect_objects(host, "image", sorted(image_ids)),
        networks=inspect_objects(host, "network", networks),
        volumes=inspect_objects(host, "volume", volumes),
    )


def list_words(host: Host, *arguments: str) -> List[str]:
    """The ids or names that a docker command lists. Raises EnvironmentFault."""
    answer = require_answer(query(host, *arguments), "docker " + arguments[0])
    return answer.out_text().split()


def object_names(host: Host) -> Dict[str, List[str]]:
    """Names of all containers and tags of all images; a finished change knows them, so that a
    rollback can tell what was made since."""
    answers = {
        "containers": query(host, "ps", "-a", "--format", "{{.Names}}"),
        "images": query(host, "images", "--format", "{{.Repository}}:{{.Tag}}"),
    }
    names = {}
    for kind, answer in answers.items():
        lines = answer.out_text().split("\n")
        names[kind] = [line for line in lines if line and "<none>" not in line]
    return names


def image_refs(images: Sequence[dict]) -> List[str]:
    """Every tag of every image, or its id: saved by id an image comes back without a name."""
    refs = []  # type: List[str]
    for image in images:
        refs += list_at(image, "RepoTags") or [image["Id"]]
    return refs


# Tests, and steps about one object of docker's. See TESTS for the first word of a test.


REMOVE_COMMANDS = {
    "container": ("rm", "-f", "-v"),
    "image": ("rmi",),
    "network": ("network", "rm"),
    "volume": ("volume", "rm"),
}


def inspect_words(host: Host, kind: str) -> Tuple[str, ...]:
    if kind in ("container", "image"):
        return (*host.docker, "inspect", "--type", kind)
    return (*host.docker, kind, "inspect")


def exists_test(host: Host, kind: str, name: str, there: bool = True) -> Tuple[str, ...]:
    """A container or network must bear the very name: docker takes one like 'db' for the beginning
    of an id, too."""
    inspect = inspect_words(host, kind)
    if kind not in ("container", "network"):
        return ("ok" if there else "not", *inspect, name)
    shown = "[%s]" % name
    if kind == "container":
        shown = "[/%s]" % name
    return ("has" if there else "lacks", shown, *inspect, "-f", "[{{.Name}}]", name)


def state_test(host: Host, name: str, field: str, value: str) -> Tuple[str, ...]:
    """field: of a container's object, such as .State.Running, or another Go template."""
    return ("says", value, *host.docker, "inspect", "-f", "{{%s}}" % field, name)


def answers_test(host: Host) -> Tuple[str, ...]:
    return ("ok", *host.docker, "version", "--format", "{{.Server.Version}}")


def docker_step(host: Host, step_id: str, title: str, words: Sequence[str], **fields) -> Step:
    """fields: of the Step."""
    return Step(step_id, title, (*host.docker, *words), **fields)


def remove_step(host: Host, kind: str, name: str) -> Step:
    """Of a daemon that is down nothing is known: there it fails."""
    is_gone = exists_test(host, kind, name, False)
    return docker_step(
        host,
        "remove-%s:%s" % (kind, name),
        "remove %s %s" % (kind, name),
        (*REMOVE_COMMANDS[kind], name),
        check=(is_gone, answers_test(host)),
    )


def create_step(
    host: Host, kind: str, name: str, words: Sequence[str], undoable: bool = True, **fields
) -> Step:
    """undoable: False where all that docker holds then is set aside on the way back. fields: of the
    Step."""
    undo = ()  # type: Tuple[Step, ...]
    if undoable:
        undo = (remove_step(host, kind, name),)
    return docker_step(
        host,
        "make-%s:%s" % (kind, name),
        "%s %s" % (kind, name),
        words,
        check=(exists_test(host, kind, name),),
        undo=undo,
        **fields,
    )


# Stopping and starting containers.


def stop_levels(containers: Sequence[Container]) -> List[List[Container]]:
    """Containers in the order in which they may be stopped: those that nothing needs first, those
    of one level side by side. containers: each behind those it needs."""
    levels = []  # type: List[List[Container]]
    number_of = {}  # type: Dict[str, int]
    for container in containers:
        # A container that needs none is on level 0, every other one above all that it needs.
        number = 0
        for ident in find_needs(container, containers):
            if ident in number_of:
                number = max(number, number_of[ident] + 1)
        number_of[container.id] = number
        if number == len(levels):
            levels.append([])
        levels[number].append(container)
    levels.reverse()
    return levels


def stop_container_steps(
    host: Host, containers: Sequence[Container], by_name: bool = False
) -> List[Step]:
    """Stops what ran when it was looked at: side by side, each with the time that is its own, in
    order of dependency, what is paused first. A daemon that stops gives all of them 15 seconds
    together and leaves the others behind, running. There is no undo here: answers_step has it.

    by_name: after the change, when they may be other containers or not there; so no failure is one.
    """
    paused = [container for container in containers if container.running and container.paused]
    others = [container for container in containers if container.running and not container.paused]
    steps = []
    if paused:
        steps.append(halt_step(host, "unpause-paused", "unpause", paused, by_name))
        steps.append(halt_step(host, "stop-paused", "stop", paused, by_name))
    for number, level in enumerate(stop_levels(others), 1):
        steps.append(halt_step(host, "stop-level:%d" % number, "stop", level, by_name))
    return steps


def halt_step(
    host: Host, step_id: str, verb: str, containers: Sequence[Container], by_name: bool
) -> Step:
    """verb: stop or unpause. by_name: as in stop_container_steps."""
    references = []
    filters = []  # type: List[str]
    for container in containers:
        if by_name:
            references.append(container.name)
            filters += ["--filter", "name=^/?%s$" % re.escape(container.name)]
        else:
            references.append(container.id)
            filters += ["--filter", "id=" + container.id]
    test = "silent" if by_name else "none"
    names = [container.name for container in containers]
    return docker_step(
        host,
        step_id,
        "%s %s" % (verb, format_names(names)),
        (verb,),
        each=tuple(references),
        check=((test, *ids_to(host, verb), *filters),),
        optional=by_name,
    )


def ids_to(host: Host, verb: str) -> Tuple[str, ...]:
    """The program that prints the ids of what there is to stop, or to unpause."""
    command = (*host.docker, "ps", "-q", "--no-trunc")
    if verb == "unpause":
        return (*command, "--filter", "status=paused")
    return command


def stop_others_steps(host: Host, daemon: str) -> List[Step]:
    """Stops what others have started meanwhile. With the daemon down nothing runs that docker could
    stop. daemon: as a Step has it."""
    steps = []
    for verb, state in (("unpause", "is paused"), ("stop", "runs")):
        ids = ids_to(host, verb)
        step = docker_step(
            host,
            "%s-others" % verb,
            "%s what else %s" % (verb, state),
            (verb,),
            each_of=ids,
            check=(("silent", *ids),),
            optional=True,
            daemon=daemon,
        )
        steps.append(step)
    return steps


def start_levels(
    host: Host, containers: Sequence[Container], wait: float = 0.0, by_name: bool = False
) -> List[Step]:
    """Starts what ran, side by side, those first that others need. These steps have no tests:
    start_again_steps behind them tells what does not run. wait: as a Step has it."""
    running = [container for container in containers if container.running]
    levels = stop_levels(running)
    levels.reverse()
    steps = []
    for number, level in enumerate(levels, 1):
        if len(level) == 1:
            continue
        names = [container.name for container in level]
        references = names if by_name else [container.id for container in level]
        step = docker_step(
            host,
            "start-level:%d" % number,
            "start %s, side by side" % format_names(names),
            ("start",),
            each=tuple(references),
            optional=True,
            wait=wait,
            daemon="up",
        )
        steps.append(step)
    return steps


def start_again_steps(
    host: Host,
    containers: Sequence[Container],
    by_id: bool = False,
    must_run: bool = False,
    **fields,
) -> List[Step]:
    """Starts what ran when it was looked at, and pauses what was paused.

    by_id: they are the same containers; else they are known by name.
    must_run: a start counts while the container runs. Else it counts once there was one, because a
        new container may end at once.
    fields: of each Step.
    """
    steps = []
    for container in containers:
        if not container.running:
            continue
        reference = container.id if by_id else container.name
        never_started = 'eq (printf "%.4s" .State.StartedAt) "0001"'  # year 1
        is_started = state_test(host, reference, never_started, "false")
        if must_run:
            is_started = state_test(host, reference, ".State.Running", "true")
        start = docker_step(
            host,
            "start:" + container.name,
            "start " + container.name,
            ("start", reference),
            check=(is_started,),
            **fields,
        )
        steps.append(start)
        if not container.paused:
            continue
        pause = docker_step(
            host,
            "pause:" + container.name,
            "pause " + container.name,
            ("pause", reference),
            check=(state_test(host, reference, ".State.Paused", "true"),),
            **fields,
        )
        steps.append(pause)
    return steps


# Restart policies: while containers are stopped, neither a reboot nor a start of the daemon may
# start one, and so change what is being moved or backed up.


def with_policy(host: Host, containers: Sequence[Container]) -> List[Container]:
    """The containers whose restart policy can be held: Docker changes one from 1.11 on (`docker
    update --restart`), and not that of a container that it has failed to remove, which never
    starts again."""
    version = re.match(r"1\.([0-9]+)\.", engine_info(host).version)
    if version and int(version.group(1)) < 11:
        return []
    held = []
    for container in containers:
        if container.restart_policy and not container.being_removed:
            held.append(container)
    return held


def policy_steps(host: Host, containers: Sequence[Container], optional: bool = False) -> List[Step]:
    """Gives each container its restart policy back; one that is gone needs none."""
    steps = []
    for container in with_policy(host, containers):
        is_gone = (
            ("not", *inspect_words(host, "container"), container.id),
            answers_test(host),
        )
        step = docker_step(
            host,
            "policy:" + container.name,
            "restart policy of " + container.name,
            ("update", "--restart=" + container.restart_policy, container.id),
            skip_if=is_gone,
            optional=optional,
        )
        steps.append(step)
    return steps


def hold_policies(host: Host, containers: Sequence[Container]) -> List[Step]:
    """Takes the restart policies away, in one docker call."""
    held = with_policy(host, containers)
    if not held:
        return []
    names = [container.name for container in held]
    step = docker_step(
        host,
        "no-restarts",
        "no restart of %s meanwhile" % format_names(names),
        ("update", "--restart=no", *[container.id for container in held]),
        undo=tuple(policy_steps(host, held)),
    )
    return [step]


# The daemon as it stands, and what speaks against stopping it.


class Engine(NamedTuple):
    """The daemon as it stands, so that it can be stopped and started again as it was.

    host: with a docker command that speaks to this daemon only.
    has_systemd: systemd runs the service; else an init script does.
    has_socket_unit: docker.socket is active: whoever connects to it starts the daemon.
    root: Docker's root, links resolved.
    containers: each behind those it needs; [] where the daemon is not to be stopped.
    identity: what prove_engine found.
    """

    host: Host
    has_systemd: bool
    has_socket_unit: bool
    root: str
    containers: List[Container]
    identity: Service

    def service(self, verb: str, unit: str = "docker.service") -> Tuple[str, ...]:
        """The program for the verb: start, stop, is-active. Without systemd there is no unit but
        the service itself."""
        if self.has_systemd:
            return ("systemctl", verb, unit)
        return ("service", "docker", verb)


def collect_engine(host: Host, identity: Service, stop: bool = True) -> Engine:
    """host and identity: as prove_engine gave them. stop: whether the daemon is to be stopped, for
    which its containers are looked up."""
    has_systemd = os.path.isdir(SYSTEMD_MARK)
    has_socket_unit = False
    if has_systemd:
        answer = query_host(host, ("systemctl", "is-active", "docker.socket"))
        has_socket_unit = answer.rc == 0
    containers = []  # type: List[Container]
    if stop:
        containers = inspect_all_containers(host)
    return Engine(host, has_systemd, has_socket_unit, identity.root, containers, identity)


def require_stoppable(host: Host, engine: Engine, lose: Sequence[str]) -> None:
    """Raises Refused where stopping the daemon would lose a container, or would not stop it. lose:
    the names given with --lose-autoremove."""
    # The containers stop with the daemon.
    if engine_info(host).live_restore:
        raise Refused(
            "the daemon has live-restore: its containers, and the pool under them, would outlive"
            " the stop",
            "set live-restore to false, restart docker, then again",
        )
    # No container vanishes when it stops, unless the user said so.
    doomed = []
    for container in engine.containers:
        if container.running and container.auto_remove and container.name not in lose:
            doomed.append(container.name)
    if doomed:
        options = " ".join("--lose-autoremove " + name for name in doomed)
        raise Refused(
            "docker removes %s for good when it stops (--rm)" % ", ".join(doomed),
            "stop it yourself, or " + options,
        )
    # Whatever is mounted below the root is Docker's own, and goes with the daemon.
    foreign = [mount.point for mount in foreign_mounts(engine.root, mounts_of())]
    if foreign:
        raise Refused(
            "there is a mount below Docker's root that is not Docker's own: " + ", ".join(foreign),
            "umount %s" % quote_line(foreign),
        )


# Starting the daemon. What is undone last stands first in a plan: answers_step.


def start_step(
    engine: Engine,
    step_id: str = "start-docker",
    title: str = "start docker",
    checks: Sequence[Tuple[str, ...]] = (),
    **fields,
) -> Step:
    """What answers then must be the service's new main process, on this very root. checks: more
    tests that must hold; fields: of the Step."""
    is_up = (
        answers_test(engine.host),
        ("serves", engine.root, *engine.identity.main),
        *checks,
    )
    return Step(step_id, title, engine.service("start"), is_up, wait=120, **fields)


def start_socket_step(engine: Engine) -> Step:
    return Step(
        "start-socket",
        "start docker.socket",
        engine.service("start", "docker.socket"),
        (("ok", *engine.service("is-active", "docker.socket")),),
    )


def clear_failures_step() -> Step:
    """systemd refuses a start to what was started often lately."""
    return Step(
        "clear-failures",
        "clear earlier failures",
        ("systemctl", "reset-failed", "docker.service"),
        optional=True,
    )


def run_again(engine: Engine) -> Tuple[Step, ...]:
    """Starts what ran before: docker itself leaves those down that were stopped by hand before, or
    have no restart policy. Nothing of it is worth undoing a change for."""
    wait = 30
    staying = [container for container in engine.containers if not container.auto_remove]
    steps = start_levels(engine.host, staying, wait)
    steps += start_again_steps(
        engine.host, staying, by_id=True, must_run=True, optional=True, wait=wait, daemon="up"
    )
    return tuple(steps)


def answers_step(engine: Engine) -> Step:
    """The daemon is up, also after a reboot. What its undo does comes last of all: what ran is
    started."""
    undo = run_again(engine)
    return start_step(engine, "docker-answers", "docker answers", undo=undo, daemon="up")


def go_again(host: Host, engine: Engine) -> Tuple[Step, ...]:
    """What ran runs, and every container has its restart policy: nothing of it is worth undoing the
    change for."""
    policies = policy_steps(host, engine.containers, optional=True)
    return (*run_again(engine), *policies)


def up_steps(
    engine: Engine, pool: str = "", checks: Sequence[Tuple[str, ...]] = ()
) -> Tuple[Step, ...]:
    """One start attempt; undone by a stop of the containers and of the daemon that was started.
    pool: as in down_steps; checks: what must hold of the daemon then, too."""
    halt = stop_container_steps(engine.host, engine.containers, by_name=True)
    undo = (*halt, *down_steps(engine, pool, as_undo=True))
    start = start_step(engine, checks=checks, undo=undo, daemon="up")
    if engine.has_socket_unit:
        return (start, start_socket_step(engine))
    return (start,)


# Stopping the daemon.


def stop_steps(host: Host, engine: Engine, pool: str = "") -> Tuple[Step, ...]:
    """All containers and the daemon stopped, for a change that keeps the containers; go_again
    brings them up. pool: as in down_steps."""
    return (
        answers_step(engine),
        *hold_policies(host, engine.containers),
        *stop_container_steps(host, engine.containers),
        *down_steps(engine, pool),
    )


def down_steps(engine: Engine, pool: str = "", as_undo: bool = False) -> Tuple[Step, ...]:
    """The daemon stopped, with the proof that nothing of it is left. stop_container_steps stopped
    the containers before.

    pool: the name of its loop pool, or a pattern of names, '' for none: that is taken down too.
    as_undo: the steps undo a start, so they have no undo of their own, and the daemon need not stay
        down.
    """
    daemon = "" if as_undo else "down"
    steps = stop_others_steps(engine.host, daemon)
    # The socket first: a connection to it would start the daemon again.
    if engine.has_socket_unit:
        steps.append(stop_socket_step(engine, as_undo))
    steps.append(stop_service_step(engine, as_undo))
    if engine.has_systemd:
        steps.append(clear_failures_step())
    steps.append(no_daemon_step(engine, daemon))
    device_prefix = ""
    own_pool = re.match(r"docker-[^-]+-", pool)
    if own_pool:
        device_prefix = os.path.join(MAPPER, own_pool.group())
    steps.append(unmount_step(engine.root, device_prefix, as_undo))
    if pool:
        steps += pool_down(engine, pool, daemon)
    return tuple(steps)


def stop_socket_step(engine: Engine, as_undo: bool) -> Step:
    """as_undo: as in down_steps."""
    undo = () if as_undo else (start_socket_step(engine),)
    return Step(
        "stop-socket",
        "stop docker.socket",
        engine.service("stop", "docker.socket"),
        (("not", *engine.service("is-active", "docker.socket")),),
        daemon="" if as_undo else "down",
        undo=undo,
    )


def stop_service_step(engine: Engine, as_undo: bool) -> Step:
    """as_undo: as in down_steps."""
    # A daemon that does not answer may still run, or be on its way up or down.
    checks = [silent_test(engine), ("unserved", engine.root, *engine.identity.main)]
    undo = [start_step(engine)]
    if engine.has_systemd:
        is_active = engine.service("is-active")
        checks += [("not", *is_active), ("lacks", "activating", *is_active)]
        undo.insert(0, clear_failures_step())
    if as_undo:
        undo = []
    return Step(
        "stop-docker",
        "stop docker",
        engine.service("stop"),
        tuple(checks),
        undo=tuple(undo),
        wait=120,
        daemon="" if as_undo else "down",
    )


def silent_test(engine: Engine) -> Tuple[str, ...]:
    _, *command = answers_test(engine.host)
    return ("not", *command)


def no_daemon_step(engine: Engine, daemon: str) -> Step:
    """No process has one of Docker's databases open: not the daemon, and no second one on the same
    root. daemon: as a Step has it."""
    find = ("find", "/proc", "-mindepth", "3", "-maxdepth", "3", "-path", "/proc/[0-9]*/fd/*")
    are_closed = ("closed", *find, "-lname", os.path.join(engine.root, "*.db"))
    return Step(
        "no-daemon",
        "no daemon is left",
        check=(silent_test(engine), are_closed),
        wait=30,
        daemon=daemon,
    )


def unmount_step(root: str, device_prefix: str, as_undo: bool) -> Step:
    """What the daemon, which is down, left mounted is unmounted where nobody uses it; else the step
    fails, with the names. The mounts of containers need no undo: a start makes them.

    device_prefix: how the paths of its pool's devices begin, '' for none. as_undo: as in
    down_steps.
    """
    folders = set()
    for row in OWN_MOUNTS:
        if row.kind != "data" and row.place:
            folders.add(os.path.join(root, row.place.split("/")[0]))
    checks = [not_mounted_test(sorted(folders), device_prefix)]
    undo = []  # type: List[Step]
    bound = self_binds(mounts_of())
    for mount in bound:
        if own_mount_kind(root, mount, bound) != "itself":
            continue
        if mount.point == root:  # it cannot be renamed as long as it is one
            checks.append(("not", *mounted_words(root)))
        elif not as_undo:
            undo += bind_again(mount)
    return Step(
        "no-mounts",
        "no mount is left",
        unmount=root,
        check=tuple(checks),
        undo=tuple(undo),
        wait=30,
        daemon="" if as_undo else "down",
    )


def not_mounted_test(paths: Sequence[str], prefix: str = "") -> Tuple[str, ...]:
    """Nothing is mounted at or below the paths, and no device or place whose path begins with
    `prefix`, in any process's view. What it prints where it fails names the processes."""
    beginnings = []
    for path in paths:
        word = mountinfo_word(path)
        beginnings += [word + "/", word + " "]
    if prefix:
        beginnings.append(mountinfo_word(prefix))
    patterns = []  # type: List[str]
    for beginning in beginnings:
        patterns += ["-e", " " + beginning]
    find = ("find", "/proc", "-mindepth", "2", "-maxdepth", "2", "-name", "mountinfo")
    return ("unmounted", *find, "-exec", "grep", "-l", "-s", "-F", *patterns, "{}", "+")


def mounted_words(point: str) -> Tuple[str, ...]:
    """A program that ends with 0 where something is mounted at this path; `mountpoint` of busybox
    does not see a bind on the same disk."""
    quoted = re.sub(r"[][\\.^$*+?(){}|]", r"\\\g<0>", mountinfo_word(point))
    return ("grep", "-q", "-E", "^([^ ]+ ){4}%s " % quoted, "/proc/self/mountinfo")


def bind_again(mount: Mount) -> List[Step]:
    """What Docker's daemon had bound onto itself, as it was. Docker's root itself is left out: a
    daemon that wants that binds it at its start, and one that finds it bound would not unmount it
    at its end."""
    point = mount.point
    bind = Step(
        "bind:" + point,
        "bind %s onto itself" % point,
        ("mount", "--bind", point, point),
        (("ok", *mounted_words(point)),),
    )
    if mount.tags:
        return [bind]
    private = Step(
        "private:" + point,
        "make the mount %s private" % point,
        ("mount", "--make-private", point),
    )
    return [bind, private]


def pool_down(engine: Engine, pool: str, daemon: str) -> List[Step]:
    """The pool (a name, or a pattern of names), and the containers' devices on it, taken down.
    daemon: as a Step has it."""
    find = ("find", MAPPER, "-name")
    remove = ("-exec", "dmsetup", "remove", "--retry", "{}", ";")
    devices = pool[: -len("pool")] + "*"
    checks = [("no_device", *find, pool)]  # type: List[Tuple[str, ...]]
    for kind in ("data", "metadata"):
        path = os.path.join(engine.root, "devicemapper/devicemapper", kind)
        checks.append(("silent", "losetup", "-j", path))
    devices_down = Step(
        "containers-devices-down",
        "take down the containers' devices that outlived the daemon",
        (*find, devices, "!", "-name", "*-pool", *remove),
        optional=True,
    )
    down = Step(
        "pool-down",
        "take the pool down if it outlived the daemon",
        (*find, pool, *remove),
        tuple(checks),
        wait=10,
        daemon=daemon,
    )
    return [devices_down, down]


# While old and new are being swapped a reboot must not start docker on half of it.


DROP_IN = "/etc/systemd/system/docker.service.d/zz-dockfix.conf"
MASK_DROP_IN = "/etc/systemd/system/docker.service.d/zz-dockfix-hold.conf"
MASK_TEXT = """\
# dockfix: a storage change stands half-way: python3 dockfix.py resume
[Unit]
ConditionPathExists=!/
"""


def reload_step(step_id: str) -> Step:
    return Step(step_id, "let systemd read its units again", ("systemctl", "daemon-reload"))


def folder_step(step_id: str, folder: str) -> Step:
    """A folder for a file of dockfix's own among systemd's."""
    undo = (tidy_step(folder),)
    return Step(step_id, "make " + folder, ("mkdir", "-p", folder), undo=undo)


def mask_unit_steps(engine: Engine, hold: bool) -> Tuple[Step, ...]:
    """Holds docker down, or lets it start again. Hosts without systemd have no such hold."""
    if not engine.has_systemd:
        return ()
    reload = reload_step("reload-units")
    if hold:
        return (
            folder_step("hold-folder", os.path.dirname(MASK_DROP_IN)),
            mask_step(undo=(unmask_step(undo=()), reload)),
            reload_step("hold-reload"),
        )
    return (unmask_step(undo=(mask_step(undo=()), reload)), reload_step("release-reload"))


def mask_step(undo: Tuple[Step, ...]) -> Step:
    return Step(
        "hold-docker",
        "hold docker down, also over a reboot",
        path=MASK_DROP_IN,
        data=MASK_TEXT,
        mode=0o644,
        undo=undo,
    )


def unmask_step(undo: Tuple[Step, ...]) -> Step:
    return Step(
        "release-docker",
        "let docker start again",
        ("rm", "-f", MASK_DROP_IN),
        (("not", "test", "-e", MASK_DROP_IN),),
        undo=undo,
    )


# Setting the daemon's options, each in the place where it is set today.


class OptionChange(NamedTuple):
    """An option of the daemon that is to be set.

    name: by FLAGS. key: of a storage-opt, such as dm.basesize; '' for a plain option. value: None
    takes the option away.
    """

    name: str
    key: str
    value: Optional[str]

    def prefix(self) -> str:
        """What stands before the value in the option's text."""
        if self.key:
            return self.key + "="
        return ""

    def is_about(self, option: DaemonOption) -> bool:
        return option.name == self.name and option.value.startswith(self.prefix())

    def wanted_values(self) -> List[str]:
        """The values of the option, as DaemonOption has them, once the change is made."""
        if self.value is None:
            return []
        return [self.prefix() + self.value]


def edit_flags(text: str, change: OptionChange) -> str:
    """A command line, or the variable for it, with one option changed and every other byte kept. A
    new one is put behind the last storage option that is there; without one nothing is changed."""
    flags = [re.escape(flag) for flag, name in FLAGS.items() if name == change.name]
    flag = r"(?<![\w-])(?:%s)(?:=|\s+)" % "|".join(flags)
    prefix = change.prefix()
    option = r"(?P<begin>%s)(?P<quote>[\"']?)%s[^\s\"']*(?P=quote)" % (flag, re.escape(prefix))
    if change.value is None:
        return re.sub(r"[ \t]*" + option, "", text)
    value = prefix + change.value

    def with_value(match) -> str:
        return match.group("begin") + match.group("quote") + value + match.group("quote")

    edited, count = re.subn(option, with_value, text)
    if count:
        return edited
    storage_option = r"--storage-(?:opt|driver)(?:=|\s+)([\"']?)[^\s\"']*\1"
    ends = [match.end() for match in re.finditer(storage_option, text)]
    if not ends:
        return text
    return "%s --%s %s%s" % (text[: ends[-1]], change.name, value, text[ends[-1] :])


def edit_daemon_json(text: str, change: OptionChange) -> str:
    """The same of daemon.json, whose other keys stay, in their order."""
    settings = json.loads(text or "{}")
    if change.key:
        options = []
        for option in list_at(settings, "storage-opts"):
            key, _, _ = option.partition("=")
            if key != change.key:
                options.append(option)
        options += change.wanted_values()
        settings["storage-opts"] = options
        if not options:
            del settings["storage-opts"]
    else:
        name = change.name
        if name == "data-root" and "graph" in settings:
            name = "graph"  # its name until 17.05
        settings[name] = change.value
        if change.value is None:
            del settings[name]
    return json.dumps(settings, indent=4) + "\n"


def edit_source(kind: str, text: str, change: OptionChange) -> str:
    """kind: of an OptionSource."""
    if kind == "daemon.json":
        return edit_daemon_json(text, change)
    return edit_flags(text, change)


def parse_source(kind: str, text: str) -> Tuple[DaemonOption, ...]:
    """kind: of an OptionSource."""
    if kind == "daemon.json":
        return parse_daemon_json(text)
    return parse_daemon_flags(shell_words(text))


def option_steps(changes: Sequence[OptionChange], add: bool = True) -> Tuple[Step, ...]:
    """Steps that change the daemon's options where they are set. What is set nowhere is added (with
    `add`) beside the other storage options, else to daemon.json. Raises Refused where two places
    set one, or a place is not understood."""
    sources = require_editable_sources()
    texts = [source.raw for source in sources]
    for change in changes:
        number = place_of_option(sources, change, add)
        if number is not None:
            texts[number] = edit_source(sources[number].kind, texts[number], change)
    steps = []  # type: List[Step]
    for source, text in zip(sources, texts):
        if text != source.raw:
            steps += option_edit(source, text)
    require_options_set(sources, texts, changes, add)
    if any(step.path == DROP_IN for step in steps):
        steps.append(reload_step("options-reload"))
    return tuple(steps)


def require_editable_sources() -> List[OptionSource]:
    """The places that set the daemon's options on its next start. Raises Refused."""
    sources = option_sources()
    # No storage option is set in two places.
    for conflict in option_conflicts(sources):
        if conflict.option.startswith(("dm.", "storage-", "data-root")):
            raise Refused(
                "%s is set in two places: %s" % (conflict.option, " and ".join(conflict.places)),
                "leave it in one of them, then again",
            )
    # Every place can be read.
    for source in sources:
        if source.fault:
            raise Refused(
                "%s: %s" % (source.where(), source.fault),
                "repair it first: docker would not start with it either",
            )
    return [source for source in sources if source.used]


def place_of_option(
    sources: Sequence[OptionSource], change: OptionChange, add: bool
) -> Optional[int]:
    """Which of the sources has the option, or is to have it; None where none is. add: as in
    option_steps."""
    for number, source in enumerate(sources):
        if any(change.is_about(option) for option in source.options):
            return number
    if not add or change.value is None:
        return None
    for number, source in enumerate(sources):
        if any(option.name == "storage-opt" for option in source.options):
            return number
    for number, source in enumerate(sources):
        if source.kind == "daemon.json":
            return number
    return None


def require_options_set(
    sources: Sequence[OptionSource],
    texts: Sequence[str],
    changes: Sequence[OptionChange],
    add: bool,
) -> None:
    """Reads the edited texts as the daemon will. Raises Refused where one does not say what was
    wanted: its form is not understood."""
    options = []  # type: List[DaemonOption]
    for source, text in zip(sources, texts):
        options += parse_source(source.kind, text)
    for change in changes:
        values = [option.value for option in options if change.is_about(option)]
        if values == change.wanted_values():
            continue
        if not values and not add:  # it is set nowhere, and may stay so
            continue
        places = ", ".join(source.where() for source in sources)
        raise Refused(
            "%s cannot be edited where it is set (%s)" % (change.key or change.name, places),
            "set it there by hand",
        )


def option_edit(source: OptionSource, text: str) -> List[Step]:
    """The steps that put the edited text of one place where it belongs: for a unit, a drop-in of
    dockfix's own."""
    path = real_path(source.path)
    if source.kind == "unit":
        drop_in = put_file(
            "options:" + DROP_IN,
            "set the options in " + DROP_IN,
            DROP_IN,
            "[Service]\nExecStart=\nExecStart=%s\n" % text,
            undo_after=(reload_step("reload-units"),),
        )
        return [folder_step("options-folder", os.path.dirname(DROP_IN)), drop_in]
    step_id = "options:" + path
    if source.kind == "environment":
        step_id += ":" + source.variable
        text = edit_variable(source, path, text)
    return [put_file(step_id, "set the options in " + path, path, text)]


def edit_variable(source: OptionSource, path: str, text: str) -> str:
    """A settings file with another value of the variable, in the line that counts: the last one.
    Raises Refused."""
    whole = read_host_text(path)
    form = r"(?m)^[ \t]*(?:export[ \t]+)?%s=((?:.*\\\n)*.*)" % re.escape(source.variable)
    spans = [match.span(1) for match in re.finditer(form, whole)]
    start, end = spans[-1] if spans else (0, 0)
    value = whole[start:end]
    is_unit = path.endswith((".service", ".conf"))
    if not spans or is_unit or source.raw not in value:
        raise Refused("%s cannot be edited" % source.where(), "set the options there by hand")
    return whole[:start] + value.replace(source.raw, text) + whole[end:]


def new_name(kind: str) -> str:
    """A name for a plan of this kind."""
    return kind + time.strftime("-%Y%m%d-%H%M%S")


# The disk of Docker's root, and the pools on it.


UNFIT_FILE_SYSTEMS = {
    "vfat",
    "msdos",
    "exfat",
    "ntfs",
    "ntfs3",
    "fuseblk",
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "9p",
    "tmpfs",
    "ramfs",
    "overlay",
    "iso9660",
    "squashfs",
    "udf",
}


def require_fit_disk(host: Host, driver: str, where: str) -> None:
    """Raises Refused for a file system on which the driver, or the containers, would not work."""
    mount = mount_of(where, mounts_of())
    if mount is None:
        raise Refused(
            "on which file system %s lies is not known" % where,
            "findmnt --target %s" % quote_word(where),
        )
    # Docker's root can be on it.
    if mount.fstype in UNFIT_FILE_SYSTEMS or mount.fstype.startswith("fuse"):
        raise Refused(
            "%s lies on %s, on which Docker's root cannot live" % (where, mount.fstype),
            "ext4, or xfs with ftype=1",
        )
    # Containers can write there, and run their programs.
    flags = sorted({"ro", "noexec", "nosuid"}.intersection(mount.flags))
    if flags:
        raise Refused(
            "%s is mounted %s: containers would not work there" % (mount.point, ",".join(flags)),
            "mount -o remount,rw,exec,suid %s, and correct /etc/fstab" % quote_word(mount.point),
        )
    # The driver can tell a folder's entries apart.
    facts = facts_of_driver(driver)
    needs_ftype = facts is not None and facts.needs_ftype
    if needs_ftype and mount.fstype == "xfs" and has_program("xfs_info"):
        answer = query_host(host, ("xfs_info", mount.point))
        if b"ftype=0" in answer.out:
            raise Refused(
                "%s is an xfs without ftype: %s cannot use it" % (mount.point, driver),
                "mkfs.xfs -n ftype=1, on an empty disk",
            )


def disk_tests(host: Host, path: str) -> List[List[str]]:
    """Tests: the disk on which a folder lies, or will, is mounted where it is now. After a reboot
    it need not be, and what is written to the folder below its mount point fills another disk, and
    is hidden later."""
    folder = path
    if not os.path.isdir(os_bytes(path)):
        folder = os.path.dirname(path)
    ask = ("stat", "-c", "%m", folder)
    answer = query_host(host, ask)
    if answer.rc:
        return []
    return [["says", answer.out_text().strip(), *ask]]


def every_pool(name: str) -> str:
    """A pattern of the names that loop pools on the same file system have: the inode of the folder
    devicemapper/ is in them."""
    return re.sub(r"-[0-9]+-pool\Z", "-*-pool", name)


def require_no_foreign_pool(host: Host, pattern: str, name: str) -> None:
    """Raises Refused where a pool of the pattern, which is to be taken down, is another daemon's.
    name: this daemon's own."""
    answer = query_host(host, ("find", MAPPER, "-name", pattern))
    for path in answer.out_text().split():
        pool = os.path.basename(path)
        if pool != name:
            raise Refused(
                "%s lies where Docker's pool is to be, and is not this daemon's" % path,
                "dmsetup info; take it down if no daemon uses it: dmsetup remove " + pool,
            )


###############################################################################
# 25. backup and restore
###############################################################################


# `backup` writes images, containers, networks and volumes into a folder; `restore` makes of it what
# an engine lacks; `pool recreate` uses the same steps. None of them may overwrite what exists, ask
# a registry, unpack an archive onto the host by itself, or call a backup complete that is not.
#
# Docker does the carrying: `docker save`, `commit`, `export` and `cp` out of it; `load`, `import`,
# `create` and `cp` into it. But docker save can leave layers out and exit 0 (moby#49784), so each
# archive is read back. How archives and tars are made is read from moby (image/tarexport,
# pkg/archive, distribution/reference) and containerd (core/images/archive).


# Reading an archive of docker save.

NAME_NOTE = "io.containerd.image.name"
REF_NOTE = "org.opencontainers.image.ref.name"
PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # how gzip and zstd begin
TOO_MANY_NAMES = "its JSON names more than %d things" % ARCHIVE_STEPS_MAX


class Platform(NamedTuple):
    """What an image runs on, in the words of Go (linux, arm, v7); '' where nothing is said."""

    system: str = ""
    processor: str = ""
    variant: str = ""


class Blob(NamedTuple):
    """A member of an archive.

    offset, size: where its bytes are in the archive, and how many.
    digest: their sha256 in hex; '' where the archive has the name twice, with different bytes.
    head: its first bytes.
    link: of a link, the name that it leads to; else ''.
    """

    offset: int
    size: int
    digest: str
    head: bytes
    link: str


class WantedImage(NamedTuple):
    """An image that an archive must hold whole.

    key: how the caller knows it: its id, or the tag of an image made of a container.
    refs: its tags, or its id.
    platform: what the engine has it for.
    manifests: the digests of those manifests that containers use.
    """

    key: str
    refs: Tuple[str, ...]
    platform: Tuple[str, str, str] = Platform()
    manifests: Tuple[str, ...] = ()


class PlatformImage(NamedTuple):
    """An image for one platform, as an index of an archive names it.

    digest: of its manifest. config: the digest of its config.
    faults: what it lacks, in words.
    """

    digest: str
    platform: Platform
    config: str
    faults: Tuple[str, ...]


def is_inside_archive(name: str) -> bool:
    """Is it a path that stays in the archive, and not an endless one?"""
    if not 0 < len(name) <= 1024:
        return False
    return not name.startswith("/") and ".." not in name.split("/")


def full_name(ref: str) -> str:
    """An image's name with everything that docker leaves out (distribution/reference,
    ParseNormalizedNamed)."""
    domain, slash, path = ref.partition("/")
    if not slash:
        domain, path = "docker.io", "library/" + ref
    elif "." not in domain and ":" not in domain and domain != "localhost":
        domain, path = "docker.io", ref
    if domain == "index.docker.io":
        domain = "docker.io"
    if ":" not in path and "@" not in path:
        path += ":latest"
    return domain + "/" + path


def blob_path(digest: str) -> str:
    """Where an archive in the form of OCI (image-spec, image-layout.md) has the bytes of a
    digest."""
    return "blobs/" + digest.replace(":", "/", 1)


def config_digest(image: dict) -> str:
    """Of an entry of manifest.json: HEX.json (1.10 to 24), or blobs/sha256/HEX."""
    name = str(image.get("Config"))
    match = re.match(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?\Z", name)
    if not match:
        return "no digest"
    return match.group(1)


def parse_platform(facts: object) -> Platform:
    """Of a descriptor's "platform". It may be anything: the archive came from elsewhere."""
    if not isinstance(facts, dict):
        return Platform()
    return Platform(
        system=str(facts.get("os") or ""),
        processor=str(facts.get("architecture") or ""),
        variant=str(facts.get("variant") or ""),
    )


def is_same_platform(first: Sequence[str], second: Sequence[str]) -> bool:
    """What one of them does not say is no difference."""
    for name, other_name in zip(first, second):
        if name and other_name and name != other_name:
            return False
    return True


def is_listed(image: dict, ref: str) -> bool:
    """Is it the entry of manifest.json for that tag, or for the image of that id?"""
    if ref.startswith("sha256:"):
        return ref == "sha256:" + config_digest(image)
    names = [full_name(str(tag)) for tag in image.get("RepoTags") or []]
    return full_name(ref) in names


def is_attestation(descriptor: dict) -> bool:
    """What BuildKit adds to an index. A pull leaves it behind, and nothing needs it."""
    notes = descriptor.get("annotations") or {}
    if notes.get("vnd.docker.reference.type") == "attestation-manifest":
        return True
    return parse_platform(descriptor.get("platform")).processor == "unknown"


def index_archive(reader: TarReader) -> Dict[str, Blob]:
    """Every file and link of an archive of docker save, each hashed. Raises ArchiveError."""
    blobs = {}  # type: Dict[str, Blob]
    for member in reader:
        name = member.name
        if name.startswith("./"):
            name = name[2:]
        if not is_inside_archive(name):
            continue
        if not member.isreg() and not member.issym() and not member.islnk():
            continue
        if len(blobs) >= ARCHIVE_NAMES_MAX:
            raise ArchiveError("more than %d files: no archive of docker save" % ARCHIVE_NAMES_MAX)
        blob = read_blob(reader, member, name)
        before = blobs.get(name)
        if before and (before.digest, before.link) != (blob.digest, blob.link):
            # docker load may take either
            blob = Blob(blob.offset, blob.size, digest="", head=blob.head, link="")
        blobs[name] = blob
    return blobs


def read_blob(reader: TarReader, member: tarfile.TarInfo, name: str) -> Blob:
    """Reads the member whose header was read last. Raises ArchiveError."""
    offset = reader.offset
    content_hash = hashlib.sha256()
    head = b""
    for piece in reader.data():
        if not head:
            head = piece[:8]
        content_hash.update(piece)
    link = ""
    if member.issym():
        link = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
    elif member.islnk():
        link = posixpath.normpath(member.linkname)
    return Blob(offset, member.size, content_hash.hexdigest(), head, link)


class SavedArchive:
    """The images in an archive of docker save: what its JSON names, and whether the bytes are
    there.

    Two forms (moby image/tarexport, containerd core/images/archive): manifest.json with a config
    and layers for each image (from 1.10 on; a layer may be a link to another's), and index.json, an
    OCI index of manifests, or of indexes with one manifest for each platform. Newer engines write
    both. The archive may be hostile: links and indexes may go round in a circle, and any value may
    be of any kind.
    """

    def __init__(self, blobs: Dict[str, Blob], read: Callable[[int, int], bytes]) -> None:
        """read: gives the bytes at an offset, so many. Raises ArchiveError."""
        self.blobs = blobs
        self.read = read
        self.names_followed = 0
        self.platform_images = {}  # type: Dict[str, List[PlatformImage]]  # by digest
        self.index = []  # type: List[dict]
        self.images = []  # type: List[dict]
        if "index.json" in blobs:
            index = self.parse_json("index.json")
            manifests = index.get("manifests") if isinstance(index, dict) else None
            self.index = self.require_objects("index.json", manifests)
        if "manifest.json" in blobs:
            self.images = self.require_objects("manifest.json", self.parse_json("manifest.json"))
        if not self.index and not self.images:
            raise ArchiveError("it names no image: neither index.json nor manifest.json is in it")

    @staticmethod
    def require_objects(name: str, entries: object) -> List[dict]:
        """The entries, which must be a list of objects. Raises ArchiveError."""
        if not isinstance(entries, list):
            raise ArchiveError("%s is not understood" % name)
        for entry in entries:
            if not isinstance(entry, dict):
                raise ArchiveError("%s is not understood" % name)
        return entries

    def count_name(self) -> None:
        """Ends an archive whose JSON leads on and on. Raises ArchiveError."""
        self.names_followed += 1
        if self.names_followed > ARCHIVE_STEPS_MAX:
            raise ArchiveError(TOO_MANY_NAMES)

    def find_blob(self, name: object) -> Optional[Blob]:
        """The file of that name, links followed inside the archive; None where there is none."""
        self.count_name()
        for _ in range(ARCHIVE_DEPTH_MAX):
            if not isinstance(name, str) or not is_inside_archive(name):
                return None
            blob = self.blobs.get(posixpath.normpath(name))
            if blob is None or not blob.link:
                return blob
            name = blob.link
        return None

    def parse_json(self, name: str) -> object:
        """Raises ArchiveError."""
        blob = self.find_blob(name)
        if blob is None or not blob.digest or blob.size > RECORD_MAX:
            raise ArchiveError("%s is missing, there twice, or too long" % escape_controls(name))
        try:
            return json.loads(self.read(blob.offset, blob.size).decode("utf-8"))
        except (ValueError, RecursionError):
            raise ArchiveError("%s is not understood" % escape_controls(name)) from None

    def blob_fault(self, descriptor: object, kind: str) -> str:
        """What is wrong with what a descriptor names; '' where its bytes are those that it
        names."""
        facts = {}  # type: dict
        if isinstance(descriptor, dict):
            facts = descriptor
        digest = facts.get("digest")
        if not isinstance(digest, str) or not re.match(r"sha256:[0-9a-f]{64}\Z", digest):
            return "the name of a %s is no sha256 digest" % kind
        blob = self.find_blob(blob_path(digest))
        if blob is None:
            return "%s %s is missing" % (kind, digest)
        size = facts.get("size")
        is_other_size = isinstance(size, int) and size != blob.size
        if "sha256:" + blob.digest != digest or is_other_size:
            return "%s %s has other bytes than its name says" % (kind, digest)
        return ""

    # By index.json.

    def images_of(self, descriptor: dict, depth: int = 0) -> List[PlatformImage]:
        """The images for one platform each that a descriptor leads to, without attestations."""
        self.count_name()
        platform = parse_platform(descriptor.get("platform"))
        digest = str(descriptor.get("digest"))
        fault = self.blob_fault(descriptor, "manifest")
        if not fault and depth > ARCHIVE_DEPTH_MAX:
            fault = "indexes in indexes without end"
        if fault:
            return [PlatformImage(digest, platform, "", (fault,))]
        if digest not in self.platform_images:
            self.platform_images[digest] = self.read_images_of(digest, platform, depth)
        return self.platform_images[digest]

    def read_images_of(self, digest: str, platform: Platform, depth: int) -> List[PlatformImage]:
        """What the manifest, or the index, of that digest names."""
        try:
            manifest = self.parse_json(blob_path(digest))
            if not isinstance(manifest, dict):
                raise TypeError("no object")
            if isinstance(manifest.get("manifests"), list):
                return self.images_of_index(manifest["manifests"], depth)
            config = str(manifest["config"]["digest"])
            faults = self.manifest_faults(manifest)
        except (TypeError, KeyError, AttributeError):
            config, faults = "", ("manifest %s is not understood" % digest,)
        except ArchiveError as err:
            config, faults = "", (err.msg,)
        return [PlatformImage(digest, platform, config, faults)]

    def images_of_index(self, descriptors: List[dict], depth: int) -> List[PlatformImage]:
        images = []  # type: List[PlatformImage]
        for descriptor in descriptors:
            if not is_attestation(descriptor):
                images += self.images_of(descriptor, depth + 1)
            if len(images) > ARCHIVE_STEPS_MAX:
                raise ArchiveError(TOO_MANY_NAMES)
        return images

    def manifest_faults(self, manifest: dict) -> Tuple[str, ...]:
        faults = [self.blob_fault(manifest["config"], "config")]
        for layer in manifest["layers"]:
            faults.append(self.blob_fault(layer, "layer"))
        return tuple(filter(None, faults))

    def index_faults(self, descriptor: dict, wanted: WantedImage) -> List[str]:
        """Whole is an index with all of the image for the platform that the engine has. Other
        platforms, which were never pulled, may be missing."""
        faults = []  # type: List[str]
        fitting = []
        for image in self.images_of(descriptor):
            if image.digest in wanted.manifests:
                faults += image.faults
            if is_same_platform(image.platform, wanted.platform):
                fitting.append(image)
        if not fitting:
            platform = "/".join(filter(None, wanted.platform))
            return [*faults, "nothing in it is for %s" % platform]
        if all(image.faults for image in fitting):
            faults += fitting[0].faults
        return faults

    # By manifest.json.

    def image_faults(self, image: dict) -> List[str]:
        """One entry of manifest.json: its config, and each layer by the digest in the config."""
        name = image.get("Config")
        blob = self.find_blob(name)
        if not isinstance(name, str) or blob is None:
            return ["config %s is missing" % escape_controls(str(name))]
        if blob.digest != config_digest(image):
            return ["config %s has other bytes than its name says" % name]
        try:
            config = self.parse_json(name)
        except ArchiveError as err:
            return [err.msg]
        if not isinstance(config, dict):
            raise TypeError("no object")
        diff_ids = list((config.get("rootfs") or {}).get("diff_ids") or [])
        layers = image.get("Layers") or []
        if not isinstance(layers, list) or len(layers) != len(diff_ids):
            return ["it lists %d layers, its config %d" % (len(layers), len(diff_ids))]
        faults = [self.layer_fault(layer, diff_id) for layer, diff_id in zip(layers, diff_ids)]
        return list(filter(None, faults))

    def layer_fault(self, name: object, diff_id: object) -> str:
        """'' where a layer is what the config says. A packed layer has another digest than the
        diff id: there its name must be right."""
        blob = self.find_blob(name)
        if blob is None:
            return "layer %s is missing" % escape_controls(str(name))
        digest = "sha256:" + blob.digest
        if digest == diff_id:
            return ""
        if blob.head.startswith(PACKED) and name == blob_path(digest):
            return ""
        return "layer %s has other bytes than the config says" % escape_controls(str(name))

    # By both.

    def faults(self, wanted: WantedImage) -> List[str]:
        """What the archive lacks of an image; [] where all of it is there."""
        faults = []  # type: List[str]
        self.names_followed = 0
        try:
            for ref in wanted.refs:
                faults += self.ref_faults(ref, wanted)
        except ArchiveError as err:
            faults.append(err.msg)
        except (TypeError, AttributeError, KeyError, ValueError, RecursionError):
            faults.append("its JSON is not understood")
        return list(dict.fromkeys(faults))

    def ref_faults(self, ref: str, wanted: WantedImage) -> List[str]:
        """What each entry for one tag, or id, lacks."""
        descriptors = [row for row in self.index if self.is_named(row, ref)]
        entries = [row for row in self.images if is_listed(row, ref)]
        faults = []  # type: List[str]
        if not descriptors and ("index.json" in self.blobs or not entries):
            faults.append("%s is not in the archive" % ref)
        for descriptor in descriptors:
            faults += self.index_faults(descriptor, wanted)
        for entry in entries:
            faults += self.image_faults(entry)
        return faults

    def is_named(self, descriptor: dict, ref: str) -> bool:
        """Is it the image of that tag, or of that id (of an index, a manifest or a config)?"""
        if not ref.startswith("sha256:"):
            notes = descriptor.get("annotations") or {}
            name = notes.get(NAME_NOTE) or notes.get(REF_NOTE)
            return isinstance(name, str) and full_name(name) == full_name(ref)
        ids = [descriptor.get("digest")]
        for image in self.images_of(descriptor):
            ids += [image.digest, image.config]
        return ref in ids


# What a backup holds.

BACKUP_SCHEMA = "dockfix-backup/2"
HELPER = "dockfix.helper"  # the container that only carries volumes
BACKUP_REPOSITORY = "dockfix/backup"  # images made of containers while a backup runs
RESTORED_REPOSITORY = "dockfix/restored"  # the same images after a restore
STOCK_FILES = ("containers.json", "images.json", "networks.json", "volumes.json")
STOCK_KINDS = ("container", "image", "network", "volume")  # of the files above
TIGHT_ROOM = 1 << 26  # bytes in a thin pool that docker commit may need

# How a container's own files are kept: a value of Backup.own.
IN_IMAGE = ""  # it has none: its image will do
COMMIT = "commit"
EXPORT = "export"
LOST = "lost"


class VolumeFile(NamedTuple):
    """Where a volume's content goes to, and where it is read from.

    file: its name in the backup. holder, path: the container (HELPER, or an id) that the content
    is read through, and where in it.
    """

    file: str
    holder: str
    path: str


class Lack(NamedTuple):
    """Something that a backup should hold and does not. id: of a container or an image."""

    target: str
    id: str
    why: str


class Backup(NamedTuple):
    """A backup as it stands in a folder, or will once its steps are done.

    stock: what inspect says of all that it holds.
    own: by container id how its own files are kept (COMMIT and the others).
    volumes: by the volume's name; only those whose content is held.
    loads: the names of its archives of docker save.
    left_out: what it does not hold, in words.
    made: when (ISO 8601).
    lacks: what it should hold and does not.
    """

    folder: str
    stock: Stock
    own: Dict[str, str]
    volumes: Dict[str, VolumeFile]
    loads: Sequence[str]
    left_out: Sequence[str]
    made: str
    lacks: Sequence[Lack] = ()

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def export_file(self, container_id: str) -> str:
        return "export-%s.tar" % container_id

    def files(self) -> List[str]:
        """All but the manifest; each has its sha256 beside it."""
        exports = [self.export_file(ident) for ident in self.own if self.own[ident] == EXPORT]
        volumes = [place.file for place in self.volumes.values()]
        return [*STOCK_FILES, *self.loads, *sorted(exports), *sorted(volumes)]


def is_builtin_network(network: dict) -> bool:
    """Is it one that docker makes by itself, at each start?"""
    return network["Driver"] in ("host", "null") or network["Name"] == "bridge"


def carried_networks(stock: Stock) -> List[dict]:
    """The networks that a backup holds: the local ones that somebody made."""
    carried = []
    for network in stock.networks:
        if is_builtin_network(network) or network["Name"] == "docker_gwbridge":
            continue
        if network.get("Scope") == "local":
            carried.append(network)
    return carried


def name_for_backup(backup: Backup, name: str) -> str:
    """A name for something that this backup alone makes. What has it already was made by a run that
    was killed, and never for another backup."""
    return name + "-" + re.sub("[^0-9T]", "", backup.made)


def own_image_reference(backup: Backup, doc: dict, repository: str = BACKUP_REPOSITORY) -> str:
    """The tag of the image that is made of a container.

    doc: the container's object of `docker inspect`.
    repository: RESTORED_REPOSITORY for the name that it has after a restore.
    """
    # docker takes at most 128 characters for the part behind the colon
    tag = "%s-%s" % (title_of(doc)[:90], doc["Id"][:12])
    return name_for_backup(backup, "%s:%s" % (repository, tag))


def own_image_references(backup: Backup) -> List[str]:
    """The tags of all images that the backup makes of containers, until they are saved."""
    references = []
    for doc in backup.stock.containers:
        if backup.own[doc["Id"]] == COMMIT:
            references.append(own_image_reference(backup, doc))
    return references


# Deciding what a backup will hold, and where.


def plan_backup(
    host: Host, folder: str, stock: Stock, loads: Sequence[str], live: bool = True
) -> Backup:
    """What a backup of this stock will be.

    loads: the names of its archives of docker save.
    live: containers are taken as they are now; else what runs may still write before it is
        stopped.
    """
    tight = is_pool_tight(host)
    own = {}
    for doc in stock.containers:
        if has_no_files_of_its_own(host, stock, doc, live):
            own[doc["Id"]] = IN_IMAGE
        else:
            own[doc["Id"]] = EXPORT if tight else COMMIT
    exported = [title_of(doc) for doc in stock.containers if own[doc["Id"]] == EXPORT]
    if exported:
        say(
            "dockfix: the pool is too full for docker commit: docker export takes the files of "
            + ", ".join(exported)
        )
    volumes = place_volumes(host, stock, tight)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Backup(folder, stock, own, volumes, loads, left_out(stock, volumes, live), made)


def is_pool_tight(host: Host) -> bool:
    """Would a thin pool refuse one more container (dm.min_free_space)? Then docker export takes the
    containers' files, and volumes are read through containers that have them."""
    facts = engine_info(host).driver_status
    total = parse_docker_size(facts.get("Data Space Total") or "")
    used = parse_docker_size(facts.get("Data Space Used") or "")
    least = parse_docker_size(facts.get("Thin Pool Minimum Free Space") or "")
    if total is None or used is None or least is None:
        return False
    return total - used < least + TIGHT_ROOM


def has_no_files_of_its_own(host: Host, stock: Stock, doc: dict, live: bool) -> bool:
    """Is its image all that a container needs: none of its files differs, and no setting is bound
    to an image made of it?"""
    if is_running(doc) and not live:
        return False
    config = image_config(stock, doc)
    if config is None:
        return False
    recipe = parse_answer(doc, lambda obj: create_recipe(obj, config, stock.containers))
    if recipe.bound:
        return False
    changes = query(host, "diff", doc["Id"])
    return changes.rc == 0 and not own_changes(doc, changes.out_text())


def image_config(stock: Stock, doc: dict) -> Optional[dict]:
    """The Config of a container's image; None where the image is gone."""
    for image in stock.images:
        if image["Id"] == doc["Image"]:
            return image.get("Config") or {}
    return None


def place_volumes(host: Host, stock: Stock, tight: bool) -> Dict[str, VolumeFile]:
    """The volumes whose content docker cp can carry. It gives the ids of the host, and takes those
    of the container: with a user namespace they would come back shifted."""
    if engine_userns(host) != (0, 0):
        return {}
    names = []
    for volume in stock.volumes:
        options = volume.get("Options") or {}
        if volume["Driver"] == "local" and not options.get("device"):
            names.append(volume["Name"])
    places = {}
    for number, name in enumerate(sorted(names), 1):
        file = "volume-%d.tar" % number
        if not tight:
            places[name] = VolumeFile(file, HELPER, "/dockfix-%d/data" % number)
            continue
        for doc in stock.containers:
            path = readable_mount_point(doc, name)
            if path and name not in places:
                places[name] = VolumeFile(file, doc["Id"], path)
    return places


def readable_mount_point(doc: dict, volume: str) -> str:
    """Where a container has a volume with nothing else mounted below it, which docker cp would read
    as a part of it; '' where it does not."""
    mounts = doc.get("Mounts") or []
    for mount in mounts:
        if mount.get("Name") != volume:
            continue
        below = mount["Destination"].rstrip("/") + "/"
        if not any(other["Destination"].startswith(below) for other in mounts):
            return mount["Destination"]
    return ""


def left_out(stock: Stock, volumes: Dict[str, VolumeFile], live: bool = True) -> List[str]:
    """What a backup does not hold, in words.

    volumes: those whose content it holds.
    live: what runs goes on meanwhile.
    """
    texts = networks_left_out(stock)
    texts += volumes_left_out(stock, volumes)
    texts += binds_left_out(stock)
    for image in stock.images:
        digests = ", ".join(image.get("RepoDigests") or [])
        if digests:
            texts.append("digests of %s: docker load brings back tags only" % digests)
    if live:
        texts += writes_left_out(stock, volumes)
    if stock.containers:
        texts.append("the containers' logs")
    return texts


def binds_left_out(stock: Stock) -> List[str]:
    """Folders and files of the host, which containers have."""
    binds = set()
    for doc in stock.containers:
        for mount in doc.get("Mounts") or []:
            # a volume has a name, and a Source below Docker's root
            if mount.get("Source") and not mount.get("Name"):
                binds.add((mount["Source"], title_of(doc)))
    return ["the host's %s, mounted into %s" % bind for bind in sorted(binds)]


def networks_left_out(stock: Stock) -> List[str]:
    """Networks of a swarm or of a plugin. docker makes its own ones again by itself."""
    carried = carried_networks(stock)
    texts = []
    for network in stock.networks:
        if network in carried or is_builtin_network(network):
            continue
        texts.append(
            "network %s (driver %s, scope %s)"
            % (network["Name"], network["Driver"], network.get("Scope"))
        )
    return texts


def volumes_left_out(stock: Stock, volumes: Dict[str, VolumeFile]) -> List[str]:
    texts = []
    for volume in stock.volumes:
        if volume["Name"] in volumes:
            continue
        driver = volume["Driver"]
        if volume.get("Options"):
            driver += ", on %s" % volume["Options"].get("device")
        texts.append(
            "the content of volume %s (driver %s): docker cp cannot carry it"
            % (volume["Name"], driver)
        )
    return texts


def writes_left_out(stock: Stock, volumes: Dict[str, VolumeFile]) -> List[str]:
    """What changes in a volume while it is read, or after that."""
    texts = []
    for doc in stock.containers:
        if not is_running(doc):
            continue
        for mount in doc.get("Mounts") or []:
            if mount.get("Name") in volumes:
                texts.append(
                    "what %s writes to volume %s meanwhile" % (title_of(doc), mount["Name"])
                )
    return texts


def estimate_backup_size(host: Host, stock: Stock) -> int:
    """Bytes that a backup takes, by docker's own figures: what images share is counted once where
    the engine tells (1.13 and newer)."""
    answer = query(host, "system", "df", "--format", "{{.Type}}\t{{.Size}}")
    sizes = {}
    for line in answer.out_text().split("\n"):
        kind, tab, size = line.partition("\t")
        if tab:
            sizes[kind] = parse_docker_size(size) or 0
    if not sizes:
        say(
            "dockfix: warning: docker system df does not answer: the containers' own files and the"
            " volumes are not in the estimate"
        )
    images = sizes.get("Images")
    if not images:
        images = sum(image.get("Size") or 0 for image in stock.images)
    return images + sizes.get("Containers", 0) + sizes.get("Local Volumes", 0)


def require_backup_folder(host: Host, folder: str, size: int) -> None:
    """Raises Refused where a folder is no place for a backup of so many bytes."""
    # Docker's own files are not mixed with it.
    root = real_path(engine_info(host).root or DOCKER_ROOT)
    if (real_path(folder) + "/").startswith(root + "/"):
        raise Refused(
            "%s lies below Docker's own root %s" % (folder, root), "a folder on another disk"
        )
    # Nobody's files are mixed with it, and nobody else owns it.
    try:
        if os.path.lexists(os_bytes(folder)) and not is_own_empty_folder(folder):
            raise Refused(
                "%s is not an empty folder of this user's" % folder,
                "name a folder that does not exist yet",
            )
        place = folder if os.path.isdir(os_bytes(folder)) else os.path.dirname(folder)
        room = read_disk_room(place).available
    except OSError as err:
        raise Refused(
            "%s cannot be a backup's folder: %s" % (folder, err.strerror),
            "the folder above it must exist",
        ) from None
    # Other users cannot read it.
    require_closed_file_system(folder, place)
    # It fits.
    facts = (format_size(size), folder, format_size(room))
    say("dockfix: the backup takes about %s; free at %s: %s" % facts)
    if size > room:
        raise Refused(
            "the backup takes about %s, and the disk of %s has %s free" % facts,
            "a folder on a larger disk",
        )


def is_own_empty_folder(folder: str) -> bool:
    """Raises OSError."""
    path = os_bytes(folder)
    return os.lstat(path).st_uid == os.geteuid() and not os.listdir(path)


def require_closed_file_system(folder: str, place: str) -> None:
    """A file system without owners gives every file the mode that it was mounted with (mount(8),
    options of fat). Raises Refused. place: the folder, or the one above it."""
    mount = mount_of(real_path(place), mounts_of())
    if mount is None or mount.fstype not in ("vfat", "msdos", "exfat"):
        return
    if not {"fmask=0177", "dmask=0077"} <= set(mount.options):
        raise Refused(
            "%s lies on %s, mounted so that a backup there could not be closed to other users"
            % (folder, mount.fstype),
            "umount %s, then mount it with -o fmask=0177,dmask=0077" % quote_word(mount.point),
        )


# Reading a backup.


def read_backup(folder: str) -> Backup:
    """Raises Refused for what is none, or not a whole one."""
    name = "manifest.json"
    try:
        manifest = read_backup_json(folder, name)
        documents = []
        for name in STOCK_FILES:
            documents.append(read_backup_json(folder, name))
        if manifest["schema"] != BACKUP_SCHEMA:
            raise Refused(
                "%s is a %s, this dockfix reads %s" % (folder, manifest["schema"], BACKUP_SCHEMA),
                "the dockfix.py that made it",
            )
        backup = parse_backup(folder, manifest, documents)
        missing = missing_files(backup)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise incomplete_backup(folder, "%s (%s)" % (name, type(err).__name__)) from None
    if missing:
        raise incomplete_backup(folder, ", ".join(missing))
    return backup


def read_backup_json(folder: str, name: str):
    """Raises OSError, ValueError."""
    return json.loads(read_all(os.path.join(folder, name)).decode("utf-8", "replace"))


def parse_backup(folder: str, manifest: dict, documents: Sequence[list]) -> Backup:
    """manifest: what seal_backup has written; documents: what STOCK_FILES hold. Raises KeyError,
    TypeError and the like for anything else."""
    containers, images, networks, volumes = documents
    ordered = sort_by_needs([parse_container(doc) for doc in containers])
    docs = [container.inspect for container in ordered]
    lacks = []
    for row in manifest.get("lacks", []):  # a backup of an earlier version has no such key
        lacks.append(Lack(str(row["target"]), str(row["id"]), str(row["why"])))
    return Backup(
        folder=folder,
        stock=Stock(docs, images, networks, volumes),
        own=manifest["own"],
        volumes={name: VolumeFile(*place) for name, place in manifest["volumes"].items()},
        loads=manifest["loads"],
        left_out=manifest["left_out"],
        made=manifest["made"],
        lacks=lacks,
    )


def missing_files(backup: Backup) -> List[str]:
    """The files that are not in its folder, or could lead out of it."""
    missing = []
    for name in backup.files():
        if "/" in name or not os.path.isfile(os_bytes(backup.path(name))):
            missing.append(name)
    return missing


def incomplete_backup(folder: str, missing: str) -> Refused:
    """The refusal of a folder. missing: the names of what is not there, or not readable."""
    return Refused(
        "%s holds no complete backup: %s is missing or broken" % (folder, missing),
        "ls -la %s; where a backup was interrupted, make it once more" % quote_word(folder),
    )


# The steps of a backup. Each of these functions takes `undo_void_after`: the id of the step after
# which its files stay, also where the change is undone.


def remove_file_step(path: str) -> Step:
    """Removes a file of a backup, its sum, and what a killed run left of both."""
    files = tuple(path + end for end in ("", ".part", ".sha256", ".sha256.part"))
    return Step("remove-file", "remove %s" % path, ("rm", "-f", "--", *files))


def sum_step(path: str, skip_if: Tuple[Tuple[str, ...], ...] = ()) -> Step:
    """The sha256 of a file beside it: `sha256sum -c FILE.sha256 < FILE`."""
    return Step(
        "sum:" + os.path.basename(path),
        "sha256 of %s" % path,
        ("sha256sum",),
        source=path,
        target=path + ".sha256",
        skip_if=skip_if,
    )


def file_steps(
    title: str,
    argv: Tuple[str, ...],
    path: str,
    optional: bool = False,
    skip_if: Tuple[Tuple[str, ...], ...] = (),
    undo_void_after: str = "",
) -> List[Step]:
    """A program with its standard output into a file of the backup, and the sum beside it.
    optional: where the program fails there is no such file, and the change goes on."""
    written = Step(
        "write:" + os.path.basename(path),
        title,
        argv,
        target=path,
        undo=(remove_file_step(path),),
        optional=optional,
        skip_if=skip_if,
        undo_void_after=undo_void_after,
    )
    no_file = ("not", "test", "-e", path)
    return [written, sum_step(path, skip_if=(no_file,) if optional else ())]


def settings_steps(host: Host, backup: Backup, undo_void_after: str = "") -> List[Step]:
    """The folder, and what inspect says of everything, in a file for each kind of thing."""
    steps = folder_steps(backup.folder)
    for file, kind, docs in zip(STOCK_FILES, STOCK_KINDS, backup.stock):
        names = [inspected_name(doc) for doc in docs]
        argv = (*inspect_words(host, kind), *names)
        if not names:
            argv = ("echo", "[]")  # docker inspect wants a name
        steps += file_steps(
            "settings of " + format_count(len(names), kind),
            argv,
            backup.path(file),
            undo_void_after=undo_void_after,
        )
    return steps


def folder_steps(folder: str) -> List[Step]:
    """A folder for this user alone. One that is there already, such as a stick's root, stays when
    the backup is undone, with the mode that it had."""
    argv = ("mkdir", "-m", "700", "-p", folder)
    close_argv = ("chmod", "700", folder)
    close_title = "close %s to others" % folder
    if not os.path.isdir(os_bytes(folder)):
        undo = (tidy_step(folder),)
        return [
            Step("make-folder", "make %s" % folder, argv, undo=undo),
            Step("close-folder", close_title, close_argv),
        ]
    mode = "%o" % stat.S_IMODE(os.stat(os_bytes(folder)).st_mode)
    reopened = Step(
        "reopen-folder",
        "open %s again" % folder,
        ("chmod", mode, folder),
        skip_if=(("not", "test", "-e", folder),),
        optional=True,
    )
    return [
        Step("make-folder", "make %s" % folder, argv),
        Step("close-folder", close_title, close_argv, undo=(reopened,)),
    ]


def inspected_name(doc: dict) -> str:
    """What names an object to docker inspect. The bridge has another id after each start."""
    if doc.get("Name") == "bridge":
        return "bridge"
    return doc.get("Id") or doc["Name"]


def save_steps(
    host: Host,
    backup: Backup,
    file: str,
    wanted: Sequence[WantedImage],
    size: int,
    strict: bool,
    undo_void_after: str = "",
) -> List[Step]:
    """All images in one `docker save`: what they share is kept once. size: bytes, for the progress.
    strict: nothing may be lacking."""
    if not wanted:
        return []
    path = backup.path(file)
    record = "" if strict else backup.path(LACKING_FILE)
    request = {
        "file": path,
        "wanted": [image._asdict() for image in wanted],
        "record": record,
        "needs": {} if strict else image_needs(backup),
    }
    tried = (record or path, path + PROBE_END, path + PROBE_END + ".part")
    saved = task_step(
        host,
        "save:" + file,
        "save " + format_count(len(wanted), "image"),
        "save-images",
        request,
        size=size,
        undo=(
            remove_file_step(path),
            Step("remove-tried", "remove what was tried", ("rm", "-f", "--", *tried)),
        ),
        undo_void_after=undo_void_after,
    )
    none_saved = ("not", "test", "-e", path)
    return [saved, sum_step(path, skip_if=() if strict else (none_saved,))]


def image_needs(backup: Backup) -> Dict[str, str]:
    """By container id the key (WantedImage) of the image that it comes back from. A container whose
    whole tree is exported needs none."""
    needs = {}
    for doc in backup.stock.containers:
        ident = doc["Id"]
        if backup.own[ident] == IN_IMAGE:
            needs[ident] = doc["Image"]
        elif backup.own[ident] != EXPORT:
            needs[ident] = own_image_reference(backup, doc)
    return needs


def own_steps(host: Host, backup: Backup, optional: bool, undo_void_after: str = "") -> List[Step]:
    """Each container's own files: an image made of it (own_image_references, for save_steps), or
    its whole tree. optional: where docker refuses a commit (the image was removed by force, it has
    too many layers), needed_exports follow."""
    steps = []
    for doc in backup.stock.containers:
        own = backup.own[doc["Id"]]
        if own == COMMIT:
            ref = own_image_reference(backup, doc)
            words = ("commit", doc["Id"], ref)
            steps.append(create_step(host, "image", ref, words, optional=optional))
        elif own == EXPORT:
            steps += export_steps(host, backup, doc, optional, undo_void_after=undo_void_after)
    return steps


def export_steps(
    host: Host,
    backup: Backup,
    doc: dict,
    optional: bool,
    skip_if: Tuple[Tuple[str, ...], ...] = (),
    undo_void_after: str = "",
) -> List[Step]:
    """optional: a container that cannot be read is LOST, and the others stay."""
    return file_steps(
        "own files of %s" % title_of(doc),
        (*host.docker, "export", doc["Id"]),
        backup.path(backup.export_file(doc["Id"])),
        optional=optional,
        skip_if=skip_if,
        undo_void_after=undo_void_after,
    )


def needed_exports(host: Host, backup: Backup) -> List[Step]:
    """Of the containers whose image docker save has not written: which, only LACKING_FILE will
    tell."""
    steps = []
    for doc in backup.stock.containers:
        if backup.own[doc["Id"]] != EXPORT:
            is_whole = ("lacks", doc["Id"], "cat", backup.path(LACKING_FILE))
            steps += export_steps(host, backup, doc, optional=True, skip_if=(is_whole,))
    return steps


def verify_step(backup: Backup, name: str) -> Step:
    """A file of the backup against its sum."""
    argv = ("sha256sum", "-c", backup.path(name + ".sha256"))
    return Step("verify:" + name, "verify " + name, argv, source=backup.path(name))


def verify_steps(backup: Backup) -> List[Step]:
    """Every file against its sum, right after they were written: for pool recreate, which then
    takes the old data away."""
    return [verify_step(backup, name) for name in backup.files()]


# Whether docker save has written all of an image. It is asked while a backup is made, and once more
# before a restore: an earlier version of dockfix, or docker, may have called it whole.

# in the folder while a backup is made: {"images": {key: why}, "containers": [id, ...]}
LACKING_FILE = "lacking.json"
PROBE_END = ".probe"


def wanted_images(stock: Stock) -> List[WantedImage]:
    """Every image by all its tags, or its id."""
    manifests = used_manifests(stock)
    wanted = []
    for image in stock.images:
        platform = Platform(
            system=str(image.get("Os") or ""),
            processor=str(image.get("Architecture") or ""),
            variant=str(image.get("Variant") or ""),
        )
        wanted.append(
            WantedImage(
                key=image["Id"],
                refs=tuple(image_refs([image])),
                platform=platform,
                manifests=tuple(manifests.get(image["Id"], ())),
            )
        )
    return wanted


def used_manifests(stock: Stock) -> Dict[str, List[str]]:
    """By image the digests of the manifests that containers use. Engines say that from 28 on, with
    the containerd store: there an image may have a manifest for each platform."""
    used = {}  # type: Dict[str, List[str]]
    for doc in stock.containers:
        descriptor = doc.get("ImageManifestDescriptor") or {}
        digest = descriptor.get("digest")
        if digest:
            used.setdefault(str(doc["Image"]), []).append(str(digest))
    return used


def wanted_commits(backup: Backup) -> List[WantedImage]:
    """The images that are made of containers. Any platform is right: docker has just made them."""
    return [WantedImage(key=ref, refs=(ref,)) for ref in own_image_references(backup)]


def parse_wanted(row: dict) -> WantedImage:
    """Of a request in JSON, which has lists for tuples."""
    return WantedImage(
        key=row["key"],
        refs=tuple(row["refs"]),
        platform=Platform(*row["platform"]),
        manifests=tuple(row["manifests"]),
    )


def read_saved(path: str, tick: Callable[[int], None]) -> SavedArchive:
    """Reads and hashes all of an archive of docker save. Raises ArchiveError, OSError."""
    with open(os_bytes(path), "rb") as stream:
        blobs = index_archive(TarReader(stream, tick))

    def read(offset: int, size: int) -> bytes:
        with open(os_bytes(path), "rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    return SavedArchive(blobs, read)


def archive_faults(
    path: str, wanted: Sequence[WantedImage], tick: Callable[[int], None]
) -> Dict[str, str]:
    """By key why an image is not whole in an archive."""
    try:
        archive = read_saved(path, tick)
    except ArchiveError as err:
        return {image.key: err.msg for image in wanted}
    reasons = {}
    for image in wanted:
        faults = archive.faults(image)
        if faults:
            reasons[image.key] = first_fault(faults)
    return reasons


def first_fault(faults: Sequence[str]) -> str:
    """One line of many faults: an image with one layer missing often lacks all of them."""
    if len(faults) == 1:
        return faults[0]
    return "%s (and %d more)" % (faults[0], len(faults) - 1)


def save_once(
    host: Host, images: Sequence[WantedImage], path: str, tick: Callable[[int], None]
) -> str:
    """`docker save` into a file; what docker says where it fails, else ''."""
    argv = [*host.docker, "save"]
    for image in images:
        argv += image.refs
    answer = change_host(host, argv, flow=Flow(target=path, tick=tick))
    if answer.rc or answer.timed_out:
        return "docker save failed: " + first_line(answer)
    return ""


def failing_images(
    host: Host, images: Sequence[WantedImage], path: str, tick: Callable[[int], None]
) -> Dict[str, str]:
    """After a `docker save` of all of them that failed: those that are the reason, each tried
    alone. {} where there is only one image: it has had its try."""
    reasons = {}  # type: Dict[str, str]
    if len(images) == 1:
        return reasons
    probe = path + PROBE_END
    for image in images:
        failure = save_once(host, [image], probe, tick)
        if failure:
            reasons[image.key] = failure
        else:
            reasons.update(archive_faults(probe, [image], tick))
            remove_file(probe)
    return reasons


def save_images(host: Host, request: dict, tick: Callable[[int], None]) -> None:
    """A task: saves the images, and reads back what docker has written, which can leave layers out
    and exit 0 (moby#49784, moby#49473). Then it saves again without what is not whole: the file
    that stays can be loaded. Raises DockfixError.

    request: of save_steps. Where it names no record nothing may be lacking.
    """
    path, record, needs = request["file"], request["record"], request["needs"]
    images = [parse_wanted(row) for row in request["wanted"]]
    if not record:
        faults, failure = try_save(host, images, path, tick)
        if faults or failure:
            raise save_error(images, faults, failure)
        return
    lacking = missing_commits(host, images)
    while True:
        images = [image for image in images if image.key not in lacking]
        if not images:
            break  # nothing to save, and no file
        faults, failure = try_save(host, images, path, tick)
        if not faults and not failure:
            break
        if not faults:
            # docker itself failed, or the disk is full: no image is the reason
            raise save_error(images, faults, failure)
        lacking.update(faults)
        suppress_errors(remove_file, path)
    note = {
        "images": lacking,
        "containers": [ident for ident in sorted(needs) if needs[ident] in lacking],
    }
    replace_file(record, json.dumps(note, sort_keys=True).encode("ascii"))


def try_save(
    host: Host, images: Sequence[WantedImage], path: str, tick: Callable[[int], None]
) -> Tuple[Dict[str, str], str]:
    """By key why an image cannot be saved, and what docker said where it failed."""
    failure = save_once(host, images, path, tick)
    if failure:
        return failing_images(host, images, path, tick), failure
    return archive_faults(path, images, tick), ""


def save_error(images: Sequence[WantedImage], faults: Dict[str, str], failure: str) -> DockfixError:
    """failure: what docker said, '' where it called the archive whole."""
    if failure:
        return DockfixError(failure)
    texts = []
    for image in images:
        if image.key in faults:
            texts.append("%s: %s" % (image.refs[0], faults[image.key]))
    return DockfixError("docker save has not written all of " + "; ".join(texts[:3]))


def missing_commits(host: Host, images: Sequence[WantedImage]) -> Dict[str, str]:
    """By key those images of containers that docker commit has refused to make."""
    missing = {}
    for image in images:
        if image.key.startswith(BACKUP_REPOSITORY + ":"):
            answer = query(host, "inspect", "--type", "image", "-f", "{{.Id}}", image.key)
            if answer.rc:
                missing[image.key] = "docker commit failed"
    return missing


def judge_backup(backup: Backup, tick: Callable[[int], None] = lambda done: None) -> Backup:
    """The backup with all that its archives lack noted in `own` and `lacks`, read from the archives
    themselves: gigabytes."""
    known = lost_ids(backup)
    images = [image for image in wanted_images(backup.stock) if image.key not in known]
    faults = faults_of_all_archives(backup, images + wanted_commits(backup), tick)
    lacks = list(backup.lacks)
    for image in images:
        if image.key in faults:
            lacks.append(Lack(image.refs[0], image.key, faults[image.key]))
    # A container whose image is not whole cannot be made.
    own = dict(backup.own)
    needs = image_needs(backup)
    for doc in backup.stock.containers:
        ident = doc["Id"]
        fault = faults.get(needs.get(ident, ""))
        if fault and own[ident] != LOST:
            own[ident] = LOST
            lacks.append(Lack(title_of(doc), ident, "its image: " + fault))
    return backup._replace(own=own, lacks=lacks)


def faults_of_all_archives(
    backup: Backup, wanted: Sequence[WantedImage], tick: Callable[[int], None]
) -> Dict[str, str]:
    """By key why an image is whole in none of a backup's archives."""
    reasons = {image.key: "no archive is there" for image in wanted}
    for name in backup.loads:
        faults = archive_faults(backup.path(name), wanted, tick)
        reasons = {key: faults[key] for key in reasons if key in faults}
    return reasons


def make_row(target: str, ident: str, status: str, msg: str) -> dict:
    """ident: '' where what the row is about has none, or where it is not known."""
    return ResultRow(target, ident, status, msg, {}).to_json()


def lacking_rows(backup: Backup) -> List[dict]:
    return [lacking_row(lack) for lack in backup.lacks]


def lacking_row(lack: Lack) -> dict:
    return make_row(lack.target, lack.id, "failed", "not in the backup: " + lack.why)


def lost_ids(backup: Backup) -> Set[str]:
    """Ids of the images and containers that the backup does not hold."""
    return {lack.id for lack in backup.lacks}


# The end of a backup.


def seal_step(host: Host, backup: Backup, lossy: bool, undoable: bool = True) -> Step:
    """The manifest, last of all: without it a folder is no backup.

    lossy: something of it may have been left out.
    undoable: undone, the folder is no backup any more.
    """
    manifest = dict(backup._asdict(), schema=BACKUP_SCHEMA, dockfix=VERSION)
    del manifest["folder"], manifest["stock"]
    request = {
        "folder": backup.folder,
        "manifest": manifest,
        "images": {image["Id"]: image_refs([image])[0] for image in backup.stock.images},
        "containers": {doc["Id"]: title_of(doc) for doc in backup.stock.containers},
        "lossy": lossy,
    }
    argv = ("rm", "-f", backup.path("manifest.json"))
    removed = Step("remove-manifest", "remove the manifest", argv)
    return task_step(
        host,
        "manifest",
        "write the manifest",
        "write-manifest",
        request,
        undo=(removed,) if undoable else (),
    )


def seal_backup(host: Host, request: dict, tick: Callable[[int], None]) -> None:
    """A task: writes the manifest, which says what was planned, and what has become of it.

    request: of seal_step.
    """
    folder = request["folder"]
    manifest = request["manifest"]
    if request["lossy"]:
        note_lacks(folder, request, manifest)
    loads = []
    for name in manifest["loads"]:
        # where no image was whole there is no archive
        if os.path.exists(os_bytes(os.path.join(folder, name))):
            loads.append(name)
    manifest["loads"] = loads
    text = json.dumps(manifest, sort_keys=True) + "\n"
    replace_file(os.path.join(folder, "manifest.json"), text.encode("ascii"))


def note_lacks(folder: str, request: dict, manifest: dict) -> None:
    """Corrects a manifest by what the steps have left in the folder: a container is exported where
    the plan was another one, and what is in no file is lacking."""
    images, containers = read_lacking_note(folder)
    lacks = []
    for ident, tag in sorted(request["images"].items()):
        if ident in images:
            lacks.append(Lack(tag, ident, images[ident]))
    own = manifest["own"]
    for ident in own:
        if own[ident] == EXPORT or ident in containers:
            is_exported = has_sum(folder, "export-%s.tar" % ident)
            own[ident] = EXPORT if is_exported else LOST
    for ident, title in sorted(request["containers"].items()):
        if own.get(ident) == LOST:
            lacks.append(Lack(title, ident, "neither docker commit nor docker export keeps it"))
    for name, place in sorted(manifest["volumes"].items()):
        if not has_sum(folder, VolumeFile(*place).file):
            del manifest["volumes"][name]
            lacks.append(Lack("volume " + name, "", "docker cp cannot read its content"))
    manifest["lacks"] = [lack._asdict() for lack in lacks]


def read_lacking_note(folder: str) -> Tuple[Dict[str, str], List[str]]:
    """What save_images could not save: by image the reason, and the ids of the containers that need
    such an image."""
    path = os.path.join(folder, LACKING_FILE)
    if not os.path.exists(os_bytes(path)):
        return {}, []  # there was no image to save
    note = json.loads(read_all(path).decode("ascii"))
    return note["images"], note["containers"]


def has_sum(folder: str, name: str) -> bool:
    """Is a file there as a whole? Its sum is written after it."""
    path = os.path.join(folder, name + ".sha256")
    return os.path.exists(os_bytes(path))


TASKS.update({"save-images": save_images, "write-manifest": seal_backup})


# A container that only carries volumes. Docker itself packs and unpacks them.

TAR_END = bytes(2 * TAR_BLOCK)


def helper_image(backup: Backup) -> str:
    """The tag of the image that the container for volumes is made from."""
    return name_for_backup(backup, BACKUP_REPOSITORY + ":helper")


def helper_steps(
    host: Host,
    backup: Backup,
    binds: Sequence[str],
    steps: Sequence[Step],
    image_step: Step,
) -> List[Step]:
    """The steps between making and removing a container that never runs.

    binds: the volumes in it, as NAME:PATH[:OPTIONS].
    image_step: makes its image, helper_image. That has no content, so that no image of the host is
        needed.
    """
    if not binds:
        return list(steps)
    name = name_for_backup(backup, HELPER)
    words = [*create_words(host), "--name=" + name, "--network=none"]
    words += ["--volume=" + bind for bind in binds]
    words += [helper_image(backup), "x"]
    return [
        image_step,
        create_step(host, "container", name, words),
        *steps,
        remove_step(host, "container", name),
        remove_step(host, "image", helper_image(backup)),
    ]


def create_words(host: Host) -> List[str]:
    """`docker create` that never asks a registry: --pull came with the client 20.10."""
    with host.guard:
        if host.known.create_knows_pull is None:
            answer = query(host, "create", "--help")
            host.known.create_knows_pull = bool(re.search(r"--pull\b", answer.out_text()))
    if host.known.create_knows_pull:
        return ["create", "--pull=never"]
    return ["create"]


def volume_steps(
    host: Host, backup: Backup, undo_void_after: str = "", optional: bool = False
) -> List[Step]:
    """The volumes into their files. optional: one that cannot be read is named by note_lacks, and
    the others stay."""
    helper = name_for_backup(backup, HELPER)
    binds = []
    reads = []  # type: List[Step]
    for name, place in sorted(backup.volumes.items()):
        holder = place.holder
        if holder == HELPER:
            holder = helper
            # nocopy: docker changes nothing of a volume that is read
            binds.append("%s:%s:nocopy" % (name, place.path))
        reads += file_steps(
            "volume %s" % name,
            (*host.docker, "cp", "%s:%s" % (holder, place.path), "-"),
            backup.path(place.file),
            optional=optional,
            undo_void_after=undo_void_after,
        )
    image = helper_image(backup)
    empty_image = create_step(host, "image", image, ("import", "/dev/null", image))
    return helper_steps(host, backup, binds, reads, empty_image)


# The tar of a volume.


def volume_members(
    path: str, tick: Callable[[int], None] = lambda done: None
) -> Iterator[Tuple[tarfile.TarInfo, Iterator[bytes]]]:
    """Each member of a volume's tar, with its name inside the volume, and its content in pieces.
    Raises ArchiveError, OSError."""
    with open(os_bytes(path), "rb") as stream:
        reader = TarReader(stream, tick)
        for member in reader:
            yield within_volume(member), reader.data()


def volume_root(path: str) -> tarfile.TarInfo:
    """The volume's own folder in its tar. Raises ArchiveError, OSError."""
    for member, _ in volume_members(path):
        if member.name == "." and member.isdir():
            return member
        break
    raise ArchiveError("%s does not begin with the volume's own folder" % path)


def has_content(path: str) -> bool:
    """Is there more in a volume's tar than its own folder? Not readable: no."""
    members = 0
    try:
        for _ in volume_members(path):
            members += 1
            if members > 1:
                return True
    except (ArchiveError, OSError):
        pass
    return False


def tar_header(member: tarfile.TarInfo, name: str) -> bytes:
    """Of a member under another name. It is by number whose it is: the names are the host's."""
    member.name = name
    member.mode &= 0o7777
    member.uname = member.gname = ""
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def import_mount_points(host: Host, request: dict, tick: Callable[[int], None]) -> None:
    """A task. Makes the helper's image: one folder for each volume, with the owner and mode of the
    volume's own. When docker mounts a volume for the first time, it gives these to it, and that is
    the only way on engines before 1.13. Raises DockfixError, OSError."""
    image_tar = bytearray()
    for path, point in request["points"]:
        root = volume_root(path)
        above = tarfile.TarInfo(posixpath.dirname(point).lstrip("/"))
        above.type = tarfile.DIRTYPE
        above.mode = 0o755
        image_tar += tar_header(above, above.name)
        image_tar += tar_header(root, point.lstrip("/"))
    argv = (*host.docker, "import", "-", request["image"])
    answer = change_host(host, argv, bytes(image_tar + TAR_END))
    if answer.rc or answer.timed_out:
        raise DockfixError("docker import failed: " + first_line(answer))


def fill_volume(host: Host, request: dict, tick: Callable[[int], None]) -> None:
    """A task. Puts a volume's content into the helper's mount point, and reads it back. Raises
    DockfixError, OSError.

    Before 1.13 docker cp does not see what is mounted below the folder that it is told: so the
    mount point itself is, and the members are named as from there. docker cp leaves out what such a
    tar says of the folder itself ('.').
    """
    path, point = request["file"], request["point"]
    helper_root = request["helper"] + ":/"
    target = request["helper"] + ":" + point
    special_links = set()  # type: Set[str]  # hard links with set-user-ID and the like
    flow = Flow(fill=lambda stream: write_volume(stream, path, special_links, tick))
    answer = change_host(host, (*host.docker, "cp", "-", target), flow=flow)
    if answer.rc or answer.timed_out:
        raise DockfixError("docker cp to %s failed: %s" % (target, first_line(answer)))
    # What this cannot do (no engine before 1.13 can), the comparison finds.
    flow = Flow(fill=lambda stream: write_from_above(stream, path, point[1:], special_links))
    change_host(host, (*host.docker, "cp", "-", helper_root), flow=flow)
    faults = compare_volume(host, target, path, tick)
    if faults:
        raise DockfixError(
            "volume %s does not hold what the backup has: %s"
            % (request["volume"], "; ".join(faults))
        )


def write_volume(
    stream: BinaryIO, path: str, special_links: Set[str], tick: Callable[[int], None]
) -> None:
    """The tar for the mount point. Adds to special_links what write_from_above has to set."""
    for member, content in volume_members(path, tick):
        if member.name == ".":
            continue
        if member.islnk() and member.mode & 0o7000:
            special_links.add(member.name)
        stream.write(tar_header(member, member.name))
        for piece in content:
            stream.write(piece)
        stream.write(bytes(-member.size % TAR_BLOCK))
    stream.write(TAR_END)


def write_from_above(stream: BinaryIO, path: str, point: str, special_links: Set[str]) -> None:
    """The tar for the container's root that sets what a tar for the mount point cannot: the
    volume's own folder, and set-user-ID of a hard link, for which docker looks from the root (moby
    pkg/archive, handleLChmod); with the folders' times, which a new link changes."""
    for member, _ in volume_members(path):
        is_changed = member.name == "."
        if special_links and (member.isdir() or member.name in special_links):
            is_changed = True
        if is_changed:
            name = posixpath.normpath(posixpath.join(point, member.name))
            if member.islnk():
                member.linkname = posixpath.join(point, member.linkname)
            stream.write(tar_header(member, name))
        if not special_links:
            break  # the volume's own folder comes first
    stream.write(TAR_END)


def compare_volume(host: Host, place: str, path: str, tick: Callable[[int], None]) -> List[str]:
    """What a volume and its tar differ in, in words. place: CONTAINER:PATH that it is read
    through."""
    differences = VolumeDifferences()

    def compare(stream: BinaryIO) -> None:
        reader = TarReader(stream)
        with open(os_bytes(path), "rb") as tar:
            differences.add(volume_entries(TarReader(tar, tick)), volume_entries(reader))
        reader.drain()

    answer = change_host(host, (*host.docker, "cp", place, "-"), flow=Flow(empty=compare))
    if answer.rc or answer.timed_out:
        return ["docker cp cannot read it back: " + first_line(answer)]
    warn_of_special_bits(place, differences)
    return differences.texts()


def warn_of_special_bits(place: str, differences: VolumeDifferences) -> None:
    """An engine before 1.13 cannot set set-user-ID, set-group-ID and sticky of a volume's own
    folder and of hard links: that is said, and no reason to call the content wrong."""
    for name, (wanted, actual) in sorted(differences.differing.items()):
        if wanted._replace(mode=wanted.mode & 0o777) == actual:
            del differences.differing[name]
            say(
                "dockfix: warning: this docker cannot set the mode %o of %s in the volume at %s; it"
                " has %o" % (wanted.mode, escape_controls(name), place, actual.mode)
            )


def require_empty_volume(host: Host, request: dict, tick: Callable[[int], None]) -> None:
    """A task, right before a volume that was there is filled. Raises DockfixError."""
    if volume_is_empty(host, request["helper"] + ":" + request["point"]) is not True:
        raise DockfixError(
            "volume %s has files of its own by now; nothing in it was changed" % request["volume"]
        )


def volume_is_empty(host: Host, place: str) -> Optional[bool]:
    """By the beginning of what docker cp reads there; None where it does not answer."""
    answer = query(host, "cp", place, "-", enough=1 << 16)
    members = 0
    is_cut_off = False
    try:
        for _ in TarReader(io.BytesIO(answer.out)):
            members += 1
            if members > 1:
                return False
    except ArchiveError:
        is_cut_off = True
    if not members:
        return None
    if is_cut_off:
        return False
    return True if answer.rc == 0 else None


TASKS.update(
    {
        "import-mount-points": import_mount_points,
        "fill-volume": fill_volume,
        "require-empty-volume": require_empty_volume,
    }
)


# The steps of a restore.


def restore_steps(
    host: Host,
    backup: Backup,
    have: Stock,
    fill: bool = True,
    empty: Sequence[str] = (),
    undoable: bool = True,
) -> List[Step]:
    """Makes what is not there yet, up to the containers: networks, volumes, images.

    have: what the engine has.
    fill: the new volumes get their content, too.
    empty: volumes that an earlier restore has left empty: they get it as well.
    undoable: as create_step has it.
    """
    steps = []
    networks = {title_of(network) for network in have.networks}
    for network in carried_networks(backup.stock):
        name = network["Name"]
        if name not in networks:
            networks.add(name)  # docker lets two networks have one name: the first is made
            words = network_recipe(network)
            steps.append(create_step(host, "network", name, words, undoable))
    volumes = {title_of(volume) for volume in have.volumes}
    for volume in backup.stock.volumes:
        if volume["Name"] not in volumes:
            words = volume_recipe(volume)
            steps.append(create_step(host, "volume", volume["Name"], words, undoable))
    steps += load_steps(host, backup, have, undoable)
    if fill:
        new = [name for name in sorted(backup.volumes) if name not in volumes]
        steps += fill_steps(host, backup, new, empty)
    return steps


def load_steps(host: Host, backup: Backup, have: Stock, undoable: bool) -> List[Step]:
    """docker load; then the containers' own images under a name of their own.

    have: what the engine has.
    undoable: as create_step has it.
    """
    known = set(image_refs(have.images))
    for image in have.images:
        known.add(image["Id"])
    own = own_image_steps(host, backup, known, undoable)
    lost = lost_ids(backup)
    whole = [image for image in backup.stock.images if image["Id"] not in lost]
    new = [ref for ref in image_refs(whole) if ref not in known]
    if not new and not needs_commits(backup, known):
        return own  # nothing of the archives is needed
    # All images of containers come along, whichever are needed: they go again.
    passing = [remove_step(host, "image", ref) for ref in own_image_references(backup)]
    undo = ()  # type: Tuple[Step, ...]
    if undoable:
        undo = (*[remove_step(host, "image", ref) for ref in new], *passing)
    loads = []
    for name in backup.loads:
        loads.append(
            docker_step(
                host,
                "load:" + name,
                "load " + name,
                ("load", "-q"),
                source=backup.path(name),
                undo=undo,
            )
        )
    if not loads:
        return own
    return loads + own + passing


def needs_commits(backup: Backup, known: Set[str]) -> bool:
    """Is an image that was made of a container not there yet? known: tags and ids of images."""
    for doc in backup.stock.containers:
        if backup.own[doc["Id"]] != COMMIT:
            continue
        if own_image_reference(backup, doc, RESTORED_REPOSITORY) not in known:
            return True
    return False


def own_image_steps(host: Host, backup: Backup, known: Set[str], undoable: bool) -> List[Step]:
    """The images that containers with files of their own are made from.

    known: tags and ids of the images that are there.
    undoable: as create_step has it.
    """
    steps = []
    for doc in backup.stock.containers:
        own = backup.own[doc["Id"]]
        ref = own_image_reference(backup, doc, RESTORED_REPOSITORY)
        if ref in known:
            continue
        if own == COMMIT:
            words = ["tag", own_image_reference(backup, doc), ref]
            steps.append(create_step(host, "image", ref, words, undoable))
        elif own == EXPORT:
            words = ["import", *import_options(doc), "-", ref]
            path = backup.path(backup.export_file(doc["Id"]))
            steps.append(create_step(host, "image", ref, words, undoable, source=path))
    return steps


def import_options(doc: dict) -> List[str]:
    """Gives the image of an export what exported_config says."""
    entrypoint = exported_config(doc).get("Entrypoint")
    if not entrypoint:
        return []
    return ["--change=ENTRYPOINT " + json.dumps(entrypoint)]


def exported_config(doc: dict) -> dict:
    """The Config of the image that docker import makes of a container's export: docker create
    cannot give an entrypoint of several words."""
    entrypoint = doc["Config"].get("Entrypoint") or []
    if len(entrypoint) > 1:
        return {"Entrypoint": entrypoint}
    return {}


def fill_steps(host: Host, backup: Backup, new: Sequence[str], empty: Sequence[str]) -> List[Step]:
    """Through a container that never runs: docker unpacks, not dockfix. Filled is what holds, read
    back, what the backup has.

    new: the volumes that this restore makes.
    empty: those that an earlier one has left empty.
    """
    steps = []
    if new:
        steps.append(unused_step(host, new))
    points = {}
    for number, name in enumerate(sorted([*new, *empty]), 1):
        points[name] = "/dockfix-%d/data" % number
    work = []
    for name in empty:
        work.append(
            task_step(
                host,
                "empty:" + name,
                "volume %s is still empty" % name,
                "require-empty-volume",
                fill_request(backup, name, points[name]),
            )
        )
    for name, point in points.items():
        request = fill_request(backup, name, point)
        work.append(
            task_step(
                host,
                "fill:" + name,
                "content of volume " + name,
                "fill-volume",
                request,
                size=suppress_errors(os.path.getsize, os_bytes(request["file"])) or 0,
            )
        )
    binds = ["%s:%s" % (name, point) for name, point in points.items()]
    image_step = mount_points_step(host, backup, points)
    return steps + helper_steps(host, backup, binds, work, image_step)


def unused_step(host: Host, volumes: Sequence[str]) -> Step:
    """Ends the change where somebody has taken a volume that it has just made."""
    checks = []
    for name in volumes:
        ask = (*host.docker, "ps", "-aq", "--filter", "volume=" + name)
        checks.append(("silent", *ask))
    return Step("volumes-unused", "no container has the new volumes", check=tuple(checks))


def fill_request(backup: Backup, name: str, point: str) -> Dict[str, str]:
    """Of fill_volume and require_empty_volume. point: where the helper has the volume."""
    return {
        "helper": name_for_backup(backup, HELPER),
        "volume": name,
        "point": point,
        "file": backup.path(backup.volumes[name].file),
    }


def mount_points_step(host: Host, backup: Backup, points: Dict[str, str]) -> Step:
    """points: by volume where the helper has it."""
    image = helper_image(backup)
    pairs = [(backup.path(backup.volumes[name].file), points[name]) for name in points]
    return task_step(
        host,
        "make-helper-image",
        "image for the helper",
        "import-mount-points",
        {"image": image, "points": pairs},
        check=(exists_test(host, "image", image),),
        undo=(remove_step(host, "image", image),),
    )


def container_steps(
    host: Host, backup: Backup, doc: dict, undoable: bool = True, optional: bool = False
) -> List[Step]:
    """One container with its networks, not started.

    optional: where a step fails the container's other steps are left out, and the change goes on
        with the others. The run then ends in 3.
    undoable: as create_step has it.
    """
    name = title_of(doc)
    ref, _ = image_for_container(backup, doc)
    recipe = container_recipe(backup, doc)
    steps = create_container_steps(host, name, ref, recipe, undoable, optional)
    is_missing = exists_test(host, "container", name, False)
    for words in recipe.networks:
        verb, network = words[1], words[-2]
        steps.append(
            docker_step(
                host,
                "%s:%s:%s" % (verb, network, name),
                "network %s %s %s" % (verb, network, name),
                words,
                check=(joined_test(host, name, network, verb == "connect"),),
                skip_if=(is_missing,) if optional else (),
                optional=optional,
                counts=optional,
            )
        )
    return steps


def image_for_container(backup: Backup, doc: dict) -> Tuple[str, dict]:
    """The image that a container is made from, and the Config that it gives."""
    own = backup.own[doc["Id"]]
    if own == COMMIT:
        return own_image_reference(backup, doc, RESTORED_REPOSITORY), doc["Config"]
    if own == EXPORT:
        return own_image_reference(backup, doc, RESTORED_REPOSITORY), exported_config(doc)
    for image in backup.stock.images:
        if image["Id"] == doc["Image"]:
            break
    else:
        raise KeyError("no image %s" % doc["Image"])
    refs = image_refs([image])
    asked = doc["Config"].get("Image") or ""  # the name that docker create was given
    if asked in refs or asked + ":latest" in refs:
        return asked, image.get("Config") or {}
    return refs[0], image.get("Config") or {}


def container_recipe(backup: Backup, doc: dict) -> Recipe:
    """How a container is made from its image of now."""
    _, config = image_for_container(backup, doc)
    others = backup.stock.containers
    return parse_answer(doc, lambda obj: create_recipe(obj, config, others))


def joined_test(host: Host, name: str, network: str, joined: bool) -> Tuple[str, ...]:
    """Has a container a network, or (not joined) has it not?"""
    mode = "has" if joined else "lacks"
    key = json.dumps(network) + ":"
    template = "{{json .NetworkSettings.Networks}}"
    return (mode, key, *host.docker, "inspect", "-f", template, name)


def create_container_steps(
    host: Host, name: str, ref: str, recipe: Recipe, undoable: bool, optional: bool
) -> List[Step]:
    """A client before 20.10 asks a registry for an image that is not there: it is called for one
    that is there only."""
    words = create_words(host)
    never_pulls = len(words) > 1
    no_image = exists_test(host, "image", ref, False)
    created = create_step(
        host,
        "container",
        name,
        words + recipe.options + [ref] + recipe.command,
        undoable,
        data=recipe.stdin,
        skip_if=() if never_pulls else (no_image,),
        optional=optional,
        counts=optional,
    )
    if never_pulls:
        return [created]
    seen = Step(
        "image-for:" + name,
        "see that image %s is there" % ref,
        check=(exists_test(host, "image", ref),),
        skip_if=(exists_test(host, "container", name),),
        optional=optional,
        counts=optional,
    )
    return [seen, created]


def each_container_steps(host: Host, backup: Backup, doc: dict, is_known: bool) -> List[Step]:
    """The steps for one container of a restore: made where it is not known, and started where it
    ran and was never started since."""
    if is_known:
        return start_again_steps(host, parse_containers([doc]), optional=True, counts=True)
    if backup.own[doc["Id"]] == LOST:
        return []
    made = container_steps(host, backup, doc, optional=True)
    return made + start_again_steps(
        host,
        parse_containers([doc]),
        skip_if=(unready_test(host, backup, doc),),
        optional=True,
        counts=True,
    )


def unready_test(host: Host, backup: Backup, doc: dict) -> Tuple[str, ...]:
    """Is the new container not there, or not in its networks as it was? Then it is not started:
    what it serves would be reached by the wrong ones."""
    name = title_of(doc)
    calls = container_recipe(backup, doc).networks
    if not calls:
        return exists_test(host, "container", name, False)
    conditions = []
    for words in calls:
        # a network that the container has not is a zero value, which is false (text/template)
        condition = "(index .NetworkSettings.Networks %s)" % json.dumps(words[-2])
        if words[1] == "disconnect":
            condition = "(not %s)" % condition
        conditions.append(condition)
    template = "{{if and true %s}}ready{{end}}" % " ".join(conditions)
    argv = (*host.docker, "inspect", "--type", "container", "-f", template, name)
    return ("lacks", "ready", *argv)


# What came back.


def find_lost_settings(
    old: dict, olds: Sequence[dict], new: dict, news: Sequence[dict]
) -> List[str]:
    """Settings of a container that its successor lacks: every word of its recipe (without any
    image's help) that is not in the other's."""
    new_words = recipe_words(new, news)
    return [word for word in recipe_words(old, olds) if word not in new_words]


def recipe_words(doc: dict, docs: Sequence[dict]) -> List[str]:
    """All that a recipe says of a container, as if its image said nothing. docs: all containers
    that it may refer to."""
    recipe = parse_answer(doc, lambda obj: create_recipe(obj, {}, docs))
    words = [*recipe.options, *recipe.command, *recipe.bound]
    for call in recipe.networks:
        words += call
    return words


def compare_containers(
    host: Host, backup: Backup, failed: Dict[str, str], known: Iterable[str]
) -> List[dict]:
    """A row for each container of the backup: is it there, and with which settings?

    failed: by name what went wrong with it.
    known: the names of those that were there before.
    """
    docs = backup.stock.containers
    now = inspect_all_containers(host)
    now_docs = [container.inspect for container in now]
    rows = []
    for doc in docs:
        name = title_of(doc)
        texts = []
        lost = create_recipe(doc, {}, docs).lost
        ident, status = "", "failed"
        fault = failed.get(name, "")
        for new in now:
            if new.name == name:
                ident = new.id
                status = "unchanged" if name in known else "changed"
                lost = find_lost_settings(doc, docs, new.inspect, now_docs) + lost
                if not fault and is_running(doc) and never_started(new.inspect):
                    fault = "it ran, and was not started again"
        if fault:
            status = "failed"
            texts.append(fault)
        if lost:
            texts.append("not carried over: " + ", ".join(lost))
        rows.append(make_row(name, ident, status, "; ".join(texts)))
    return rows


def never_started(doc: dict) -> bool:
    """docker gives the first instant of the year 1 then."""
    started = str(doc["State"].get("StartedAt"))
    return started.startswith("0001")


def compare_stock(host: Host, opts: Options, report: dict, plan: Plan) -> None:
    """What came back after pool recreate, container by container, beside what the backup says."""
    folder = plan.facts.get("backup")
    if folder and not opts.dry_run:
        rows = compare_containers(host, read_backup(folder), {}, ())
        add_container_rows(report, rows)


def add_container_rows(report: dict, rows: List[dict]) -> None:
    """A row that failed, of a container or of something else, makes exit code 3."""
    report["results"] += rows
    for row in report["results"]:
        if row["status"] == "failed":
            report["exit_code"] = 3


# backup


def run_backup(host: Host, opts: Options, report: dict) -> None:
    """One row for the backup, one for each thing that should be in it and is not (exit code 3).
    What it cannot hold by its nature stands in left_out."""
    folder = os.path.abspath(opts.arguments[0])
    if opts.step:
        run_script_step(host, opts)
        return
    if opts.verify:
        verify_backup(host, opts, report, read_backup(folder))
        return
    lock_storage(host, opts)
    for finding in read_lost_record_findings(host):
        add_finding(report, finding)
    containers, unreadable = inspect_readable_containers(host)
    stock = collect_stock(host, containers)
    require_backup_folder(host, folder, estimate_backup_size(host, stock))
    loads = ["images.tar"] if stock.images else []
    backup = plan_backup(host, folder, stock, loads)
    facts = {
        "disk": disk_tests(host, folder),
        "lacks": ["not in the backup: %s: %s" % pair for pair in sorted(unreadable.items())],
    }
    goal = backup_goal(backup)
    steps = backup_steps(host, backup)
    plan = make_plan(new_name("backup"), "backup", goal, steps, facts=facts)
    report["left_out"] = backup.left_out
    run_change(host, opts, report, plan)
    lacks = dict(unreadable)
    if not opts.dry_run:
        made = read_backup(folder)
        report_exported(backup, made)
        for lack in made.lacks:
            lacks[lack.target] = lack.why
    report_incomplete(report, lacks)


def backup_steps(host: Host, backup: Backup) -> List[Step]:
    """All of a backup of containers that may go on meanwhile."""
    wanted = wanted_images(backup.stock) + wanted_commits(backup)
    manifest = backup.path("manifest.json")
    return [
        *settings_steps(host, backup),
        *own_steps(host, backup, optional=True),
        *save_steps(host, backup, "images.tar", wanted, 0, strict=False),
        *[remove_step(host, "image", ref) for ref in own_image_references(backup)],
        *needed_exports(host, backup),
        *volume_steps(host, backup, optional=True),
        seal_step(host, backup, lossy=True),
        Step(
            "remove-noted",
            "remove what was noted",
            ("rm", "-f", "--", backup.path(LACKING_FILE)),
        ),
        # seal_backup writes what the backup lacks, or []
        Step(
            "nothing-lacks",
            "see that the backup lacks nothing",
            check=(("has", '"lacks": []', "cat", manifest),),
            optional=True,
            counts=True,
        ),
    ]


def backup_goal(backup: Backup) -> str:
    """For people."""
    stock = backup.stock
    return "backup of %s, %s, %s, %s in %s" % (
        format_count(len(stock.images), "image"),
        format_count(len(stock.containers), "container"),
        format_count(len(carried_networks(stock)), "network"),
        format_count(len(backup.volumes), "volume"),
        backup.folder,
    )


def report_exported(planned: Backup, made: Backup) -> None:
    """Says which containers have come another way than planned."""
    names = []
    for doc in made.stock.containers:
        ident = doc["Id"]
        if made.own[ident] == EXPORT and planned.own[ident] != EXPORT:
            names.append(title_of(doc))
    if names:
        say(
            "dockfix: docker commit or docker save did not keep the files of %s: docker export took"
            " them" % ", ".join(names)
        )


def report_incomplete(report: dict, lacks: Dict[str, str]) -> None:
    """A row for each thing that should be in the backup and is not, with the reason; the backup is
    then not called one."""
    if not lacks:
        return
    for row in report["results"]:
        row["msg"] = "not complete: " + row["msg"]
    for name in sorted(lacks):
        report["results"].append(lacking_row(Lack(name, "", lacks[name])))
    report["exit_code"] = 3


def run_script_step(host: Host, opts: Options) -> None:
    """One step of a dry run's script; what it is to do comes by standard input."""
    if opts.step not in TASKS:
        raise UsageError("--step takes what a dry run's script says: %s" % ", ".join(sorted(TASKS)))
    try:
        request = json.loads(os_text(read_input("-", 1 << 28, "the step")))
        TASKS[opts.step](host, request, lambda done: None)
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise DockfixError("%s: %s" % (opts.step, err)) from None


def verify_backup(host: Host, opts: Options, report: dict, backup: Backup) -> None:
    """Every file against its sum, then what docker save has written into it: one row each. Exit
    code 1: damaged; 3: as it was written, but it lacks something."""
    damaged = verify_sums(host, opts, report, backup)
    if not damaged:
        backup = read_images_of(opts, backup)
    report["results"] += lacking_rows(backup)
    if damaged:
        report["exit_code"] = 1
    elif backup.lacks:
        report["exit_code"] = 3


def read_images_of(opts: Options, backup: Backup) -> Backup:
    """judge_backup, which reads some gigabytes, with its progress."""
    progress = Progress("read the images", 1, opts.quiet)
    size = sum(os.stat(os_bytes(backup.path(name))).st_size for name in backup.loads)
    try:
        return judge_backup(backup, progress.step(1, "what docker save has written", size))
    finally:
        progress.end()


def verify_sums(host: Host, opts: Options, report: dict, backup: Backup) -> List[str]:
    """The names of the files that differ from their sums. A row for each file, also of a dry run:
    it only reads."""
    names = backup.files()
    progress = Progress("verify", len(names), opts.quiet)
    reader = host._replace(dry_run=False)
    damaged = []
    for number, name in enumerate(names, 1):
        step = verify_step(backup, name)
        tick = progress.step(number, name, step_size(step))
        status, msg = "unchanged", "as it was written"
        try:
            do_step(reader, step, tick)
        except DockfixError:
            status, msg = "failed", "differs from its sum"
            damaged.append(name)
        report["results"].append(make_row(name, "", status, msg))
    progress.end()
    return damaged


# restore


def restore_refusals(backup: Backup, have: Stock, filled: float) -> List[str]:
    """What stands in the way. What is the same already is adopted.

    have: what the engine has.
    filled: when this backup has filled its volumes (seconds since 1970, 0: never). A volume that is
        younger is another one.
    """
    reasons = container_refusals(backup, have)
    # A network of that name is the same one.
    networks = {title_of(network): network for network in have.networks}
    for network in carried_networks(backup.stock):
        there = networks.get(network["Name"])
        if there and network_recipe(there) != network_recipe(network):
            reasons.append("network %s exists, and is another one" % network["Name"])
    # A volume of that name has its content from this backup.
    volumes = {volume["Name"]: volume for volume in have.volumes}
    for volume in backup.stock.volumes:
        there = volumes.get(volume["Name"])
        if there and (not filled or is_made_after(there, filled)):
            reasons.append("volume %s exists" % volume["Name"])
    return reasons + image_refusals(backup, have)


def container_refusals(backup: Backup, have: Stock) -> List[str]:
    """A container of that name is the same one."""
    reasons = []
    containers = {title_of(doc): doc for doc in have.containers}
    for doc in backup.stock.containers:
        name = title_of(doc)
        there = containers.get(name)
        if not there:
            continue
        lost = find_lost_settings(doc, backup.stock.containers, there, have.containers)
        if lost:
            settings = ", ".join(lost[:3])
            reasons.append("container %s exists, and differs in %s" % (name, settings))
    return reasons


def image_refusals(backup: Backup, have: Stock) -> List[str]:
    """A tag means the same image."""
    ids = {}
    for image in have.images:
        for tag in image.get("RepoTags") or []:
            ids[tag] = image["Id"]
    reasons = []
    for image in backup.stock.images:
        for tag in image.get("RepoTags") or []:
            if ids.get(tag, image["Id"]) != image["Id"]:
                reasons.append("image %s exists, and is another one" % tag)
    return reasons


def is_made_after(volume: dict, instant: float) -> bool:
    """Its folder changes only when docker makes the volume (what CreatedAt says, up to 22, changes
    with its content). Not readable: no."""
    folder = os.path.dirname(volume.get("Mountpoint") or "/")
    facts = suppress_errors(os.stat, os_bytes(folder))
    return facts is not None and facts.st_mtime > instant


def stock_for_restore(host: Host, backup: Backup, note: str) -> Stock:
    """What docker has. Raises Refused where something of it is in the way. note: a file that is
    there once this backup has filled its volumes."""
    have = collect_stock(host, inspect_all_containers(host))
    facts = suppress_errors(os.stat, os_bytes(note))
    reasons = restore_refusals(backup, have, facts.st_mtime if facts else 0.0)
    if reasons:
        raise Refused(
            "; ".join(reasons),
            "rename or remove what is in the way; nothing that exists is overwritten",
        )
    return have


def volumes_left_empty(host: Host, backup: Backup, have: Stock) -> List[str]:
    """Volumes that an earlier restore of this backup made, and that hold nothing, though the backup
    has content for them: a version of dockfix before this one did that to engines before 1.13."""
    docs = {volume["Name"]: volume for volume in have.volumes}
    names = []
    for name, place in sorted(backup.volumes.items()):
        if name not in docs or not has_content(backup.path(place.file)):
            continue
        if holds_nothing(host, have, docs[name]):
            names.append(name)
    return names


def holds_nothing(host: Host, have: Stock, volume: dict) -> bool:
    """Read through a container that has the volume; without one, from its folder, where that can be
    seen. What cannot be told counts as something."""
    name = volume["Name"]
    for doc in have.containers:
        for mount in doc.get("Mounts") or []:
            if mount.get("Name") == name:
                place = "%s:%s" % (doc["Id"], mount["Destination"])
                return volume_is_empty(host, place) is True
    folder = str(volume.get("Mountpoint") or "/")
    return suppress_errors(os.listdir, os_bytes(folder)) == []


def run_restore(host: Host, opts: Options, report: dict) -> None:
    """One change, undone where its networks, volumes and images cannot all be made. A container
    that cannot be made is told, and the others stay: run again it goes on with those that are
    missing."""
    backup = read_backup(os.path.abspath(opts.arguments[0]))
    lock_storage(host, opts)
    note = filled_note(host, backup)
    have = stock_for_restore(host, backup, note)
    require_room_for_restore(host, backup)
    report_lacking(backup, set())
    if not opts.dry_run:
        confirm(opts, "restore %s?" % restore_goal(backup))
        require_whole_files(host, opts, report, backup)
    known_lacks = lost_ids(backup)
    backup = read_images_of(opts, backup)
    report_lacking(backup, known_lacks)
    if not opts.dry_run:
        # That took its time: what others have made meanwhile is theirs.
        have = stock_for_restore(host, backup, note)
    plan = plan_restore(host, backup, have, note)
    report.update(results=[], left_out=list(backup.left_out))
    run_change(host, opts, report, plan)
    if not opts.dry_run:
        report_restored(host, report, plan, backup)


def filled_note(host: Host, backup: Backup) -> str:
    """The path of the file which says that this backup has filled its volumes on this engine."""
    engine = re.sub(r"\W", "", engine_info(host).id)
    made = backup.made.replace(":", "")
    return os.path.join(host.state, "restored-%s-%s.txt" % (made, engine))


def require_room_for_restore(host: Host, backup: Backup) -> None:
    """Raises Refused. On another host's disk nobody can look."""
    root = engine_info(host).root
    if not os.path.isdir(os_bytes(root)):
        return
    size = sum(os.stat(os_bytes(backup.path(name))).st_size for name in backup.files())
    if size > read_disk_room(root).available:
        raise Refused(
            "the backup has %s, and the disk of Docker's root has less free" % format_size(size),
            "make room, or move the root: python3 dockfix.py relocate",
        )


def require_whole_files(host: Host, opts: Options, report: dict, backup: Backup) -> None:
    """Raises Refused where a file differs from its sum."""
    damaged = verify_sums(host, opts, report, backup)
    if damaged:
        raise Refused(
            "the backup in %s is damaged: %s" % (backup.folder, ", ".join(damaged)),
            "another copy of it",
        )


def plan_restore(host: Host, backup: Backup, have: Stock, note: str) -> Plan:
    """The plan of a restore. Its facts are what restored_backup and report_restored need, after a
    kill too.

    backup: as judge_backup gives it.
    have: what the engine has.
    note: the path of filled_note.
    """
    empty = volumes_left_empty(host, backup, have)
    report_restarts(have, empty)
    steps = restore_steps(host, backup, have, empty=empty)
    make_state = ("mkdir", "-m", "700", "-p", host.state)
    steps.append(Step("state-folder", "make " + host.state, make_state))
    title = "note that the volumes are filled"
    steps.append(put_file("note-filled", title, note, backup.folder, 0o600))
    known = [title_of(doc) for doc in have.containers]
    for doc in backup.stock.containers:
        steps += each_container_steps(host, backup, doc, title_of(doc) in known)
    facts = {
        "restores": backup.folder,
        "known": known,
        "own": backup.own,
        "judged": [lack._asdict() for lack in backup.lacks],
        "lacks": ["not in the backup: %s: %s" % (lack.target, lack.why) for lack in backup.lacks],
    }
    goal = "restore of " + restore_goal(backup)
    return make_plan(new_name("restore"), "restore", goal, steps, facts=facts)


def restored_backup(plan: Plan) -> Backup:
    """The backup of a plan of plan_restore, as it was judged then. Raises Refused where it is not
    there."""
    backup = read_backup(plan.facts["restores"])
    lacks = [Lack(**fields) for fields in plan.facts["judged"]]
    return backup._replace(own=plan.facts["own"], lacks=lacks)


def report_restored(host: Host, report: dict, plan: Plan, backup: Backup) -> None:
    """A row for each container, and for what else the backup lacks.

    plan: of plan_restore.
    backup: as it was judged then.
    """
    known = plan.facts["known"]
    lacks = {lack.id: lack for lack in backup.lacks}
    failed = {}
    for doc in backup.stock.containers:
        name = title_of(doc)
        lack = lacks.pop(doc["Id"], None)
        if backup.own[doc["Id"]] == LOST and name not in known:
            failed[name] = "not in the backup"
            if lack:
                failed[name] += ": " + lack.why
        for step in each_container_steps(host, backup, doc, name in known):
            # the first that failed is the reason: the others were left out
            if step.id in host.known.failed_steps:
                failed.setdefault(name, host.known.failed_steps[step.id])
    for lack in backup.lacks:
        if lack.id in lacks:
            report["results"].append(lacking_row(lack))
    rows = compare_containers(host, backup, failed, known)
    add_container_rows(report, rows)


def restore_goal(backup: Backup) -> str:
    """For people. What is lacking is not counted."""
    lost = lost_ids(backup)
    images = [image for image in backup.stock.images if image["Id"] not in lost]
    containers = [ident for ident in backup.own if backup.own[ident] != LOST]
    return "%s, %s, %s from %s" % (
        format_count(len(images), "image"),
        format_count(len(containers), "container"),
        format_count(len(backup.volumes), "volume"),
        backup.folder,
    )


def report_lacking(backup: Backup, reported: Set[str]) -> None:
    """reported: ids of what was said already."""
    for lack in backup.lacks:
        if lack.id not in reported:
            say("dockfix: warning: not in the backup: %s: %s" % (lack.target, lack.why))


def report_restarts(have: Stock, empty: Sequence[str]) -> None:
    """What runs on a volume that an earlier restore has left empty, and is filled now."""
    for doc in have.containers:
        if not is_running(doc):
            continue
        names = [mount["Name"] for mount in doc.get("Mounts") or [] if mount.get("Name") in empty]
        if names:
            say(
                "dockfix: warning: volume %s was left empty by an earlier restore, and is filled"
                " now; what runs on it sees that after: docker restart %s"
                % (", ".join(names), title_of(doc))
            )


###############################################################################
# 26. pool
###############################################################################

# pool grow makes a devicemapper loop pool larger in place; pool recreate backs everything up, sets
# the old storage aside and has docker begin anew, with another pool or with overlay2. A pool never
# shrinks and is never loaded with files that are shorter than its table says: it would not come up
# again. The old storage is renamed, never deleted, and nothing is written into a volume in place.
#
# The facts: docker keeps the pool's two files as ROOT/devicemapper/devicemapper/data and metadata
# (moby, daemon/graphdriver/devmapper/deviceset.go); dm-thin's table, status and largest metadata
# are in the kernel's Documentation/admin-guide/device-mapper/thin-provisioning.rst.


class LoopPool(NamedTuple):
    """The daemon's pool, as it is.

    name: as device-mapper has it.
    files, loops, lengths: by 'data' and 'metadata', the file, the path of its loop device, and the
        file's length in bytes.
    spare: bytes that the two files may have together on their disk.
    """

    name: str
    thin: ThinPool
    files: Dict[str, str]
    loops: Dict[str, str]
    lengths: Dict[str, int]
    spare: int

    def home(self) -> str:
        """ROOT/devicemapper: the pool's name tells its disk and its inode."""
        return os.path.dirname(os.path.dirname(self.files["data"]))


def run_pool(host: Host, opts: Options, report: dict) -> None:
    action = opts.arguments[0]
    if action not in ("grow", "recreate"):
        raise UsageError(
            "pool takes grow or recreate, not %s" % action, "python3 dockfix.py pool --help"
        )
    require_pool_options(opts, action)
    lock_storage(host, opts)
    if action == "grow":
        run_grow(host, opts, report)
    else:
        run_recreate(host, opts, report)


def require_pool_options(opts: Options, action: str) -> None:
    """Refuses an option of the other action."""
    owners = {
        "offline": "grow",
        "base_size": "recreate",
        "driver": "recreate",
        "backup": "recreate",
    }
    for option, owner in owners.items():
        if opts.is_given(option) and owner != action:
            raise UsageError(
                "--%s goes with pool %s" % (option.replace("_", "-"), owner),
                "python3 dockfix.py pool --help",
            )


# Reading the pool.


def collect_loop_pool(host: Host, engine: Engine) -> LoopPool:
    """Raises EnvironmentFault for another driver, Refused for a pool that is no loop pool."""
    info = engine_info(host)
    if info.driver != "devicemapper":
        raise EnvironmentFault(
            "the storage driver is %s; only devicemapper has a pool" % info.driver,
            "python3 dockfix.py storage",
        )
    name = parse_reported_pool(info.driver_status).name or ""
    thin = thin_pool(host, name)
    numbers = {"data": thin.data_dev, "metadata": thin.metadata_dev}
    files, loops, lengths = {}, {}, {}
    allocated = 0
    for kind, number in numbers.items():
        file = os.path.join(engine.root, "devicemapper/devicemapper", kind)
        status = require_loop_file(file, name)
        files[kind] = file
        loops[kind] = require_loop_device(host, file, kind, number, name)
        lengths[kind] = status.st_size
        allocated += status.st_blocks * 512
    spare = read_disk_room(files["data"]).available + allocated
    return LoopPool(name, thin, files, loops, lengths, spare)


def require_loop_file(file: str, pool: str) -> os.stat_result:
    """What lstat says of a file of the pool. Raises Refused where there is none: the pool is on
    devices of its own."""
    try:
        status = os.lstat(os_bytes(file))
    except OSError:
        raise Refused(
            "the pool has no loop file %s: it lies on a device of its own (direct-lvm)" % file,
            "lvextend -L +SIZE VG/POOL (lvs names it; the pool is %s), nothing else is needed"
            % pool,
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise Refused(
            "%s is not a regular file but a link or a device" % file,
            "grow the device behind it: lvextend",
        )
    return status


def require_loop_device(host: Host, file: str, kind: str, number: str, pool: str) -> str:
    """The path of the loop device of a file that the pool really has, by its number."""
    answer = require_answer(query_host(host, ("losetup", "-j", file)), "losetup")
    for path in parse_loop_devices(answer.out_text()):
        if device_number(path) == number:
            return path
    raise Refused(
        "the pool's %s device (%s) is not the loop device of %s" % (kind, number, file),
        "losetup -a; dmsetup table %s" % pool,
    )


def asked_sizes(opts: Options, pool: LoopPool) -> Dict[str, int]:
    """Bytes by kind, whole MiB. What is not asked for is the size of now."""
    sizes = dict(pool.lengths)
    for kind, request in (("data", opts.data), ("metadata", opts.metadata)):
        if not request:
            continue
        size = request.bytes_from(pool.lengths[kind])
        if size != pool.lengths[kind]:
            sizes[kind] = size >> 20 << 20
    return sizes


# Refusing what cannot work.


def require_healthy_pool(pool: LoopPool) -> None:
    """dm-thin would refuse a new length of an ill pool, or make it worse."""
    state = pool.thin.state
    if state in ("rw", "out_of_data_space") and not pool.thin.needs_check:
        return
    if pool.thin.needs_check:
        state += ", needs_check"
    raise Refused(
        "the pool is in state %s: it must be repaired first; until then only what runs can be"
        " read (docker export, docker cp)" % state,
        pool_repair_line(pool.files["metadata"]),
    )


def require_sizes(pool: LoopPool, sizes: Dict[str, int], overcommit: bool) -> None:
    # dm-thin cannot use more metadata. A file that is longer already does no harm.
    metadata = sizes["metadata"]
    if metadata > METADATA_MAX and metadata != pool.lengths["metadata"]:
        raise Refused(
            "metadata of %s: dm-thin can use 15.88 GiB at most" % format_size(metadata),
            "--metadata 15G; a full pool of 100 GiB needs 0.1 GiB",
        )
    # The files are sparse: they could be longer than the disk under them is large.
    total = sum(sizes.values())
    if total > pool.spare and not overcommit:
        raise Refused(
            "the disk under %s can take %s in all, not %s: it would fill before the pool does"
            % (os.path.dirname(pool.files["data"]), format_size(pool.spare), format_size(total)),
            "a smaller size, or --overcommit; relocate moves Docker to a larger disk",
        )


def require_no_shrinking(pool: LoopPool, sizes: Dict[str, int]) -> None:
    for kind in ("data", "metadata"):
        if sizes[kind] < pool.lengths[kind]:
            size = format_option_size(sizes[kind])
            raise Refused(
                "%s has %s already, and a thin pool never shrinks"
                % (kind, format_size(pool.lengths[kind])),
                "python3 dockfix.py pool recreate --%s %s --backup DIR" % (kind, size),
            )


# pool grow.


def run_grow(host: Host, opts: Options, report: dict) -> None:
    """Makes the pool larger in place.

    Before the first call that changes anything these programs are asked, in this order.
    prove_engine: docker context, version and info; the service's main process (systemctl show), and
    docker info once more, through the socket that this process has open. collect_engine: the state
    of docker.socket; with --offline, docker ps and docker inspect. collect_loop_pool: dmsetup table
    and status, and losetup -j for each of the two files. Then come the refusals, the plan, the
    question and the journal (run_change), and the plan's first step lengthens a file (truncate).
    """
    if not opts.data and not opts.metadata:
        raise UsageError(
            "how large? --data SIZE, --metadata SIZE, or both",
            "python3 dockfix.py pool grow --data +100G",
        )
    host, identity = prove_engine(host)
    engine = collect_engine(host, identity, opts.offline)
    pool = collect_loop_pool(host, engine)
    sizes = asked_sizes(opts, pool)
    require_no_shrinking(pool, sizes)
    require_healthy_pool(pool)
    require_sizes(pool, sizes, opts.overcommit)
    if opts.offline:
        require_stoppable(host, engine, opts.lose_autoremove)
    plan = plan_grow(host, opts, engine, pool, sizes)
    if not plan.steps:
        return change_row(report, plan, "unchanged", plan.goal)
    stops = "nothing stops"
    if opts.offline and larger_kinds(pool, sizes):
        running = sum(1 for container in engine.containers if container.running)
        stops = "docker and its %s stop meanwhile" % format_count(running, "running container")
    run_change(host, opts, report, plan, "grow the %s (%s)?" % (plan.goal, stops))


def plan_grow(
    host: Host, opts: Options, engine: Engine, pool: LoopPool, sizes: Dict[str, int]
) -> Plan:
    """A plan without steps where the pool and its options are so already."""
    wanted = []
    for kind, request in (("data", opts.data), ("metadata", opts.metadata)):
        if request:
            size = format_option_size(sizes[kind])
            wanted.append(OptionChange("storage-opt", "dm.loop%ssize" % kind, size))
    options = option_steps(wanted, add=False)
    larger = larger_kinds(pool, sizes)
    named = planned_pool(pool)
    if not larger:
        steps = options
        goal = "as large as that already"
        if options:
            goal += ", and from now on by its options"
    else:
        if opts.offline:
            steps = grow_offline(host, engine, named, sizes, options)
        else:
            steps = grow_online(named, sizes) + options
        now = present_sizes(pool)
        goal = ", ".join(
            "%s %s -> %s" % (kind, format_option_size(now[kind]), format_option_size(sizes[kind]))
            for kind in larger
        )
    facts = engine.identity.facts(host, engine.root)
    facts["lengths"] = [superblock_test("has", pool, kind) for kind in larger]
    return make_plan(
        new_name("pool-grow"),
        "pool grow",
        "pool %s: %s" % (pool.name, goal),
        steps,
        facts=facts,
        devices=pool_devices(pool),
    )


def present_sizes(pool: LoopPool) -> Dict[str, int]:
    """What the pool has of its files, in bytes: a file may be longer than that."""
    return dict(pool.lengths, data=min(pool.lengths["data"], pool.thin.sectors * 512))


def larger_kinds(pool: LoopPool, sizes: Dict[str, int]) -> List[str]:
    """What of the pool is to have more sectors than now."""
    now = present_sizes(pool)
    return [kind for kind in sizes if sizes[kind] // 512 > now[kind] // 512]


def planned_pool(pool: LoopPool) -> LoopPool:
    """The pool as the steps of a plan name it: with placeholders (pool_devices) for what a reboot
    changes."""
    words = pool.thin.table.split(" ")  # 0 LENGTH thin-pool METADATA_DEVICE DATA_DEVICE ...
    words[3:5] = ["{metadata-number}", "{data-number}"]
    disk = "docker-%s-" % disk_number(pool.home())
    name = pool.name
    if name.startswith(disk):
        name = "docker-{pool-disk}-" + name[len(disk) :]
    return pool._replace(
        name=name,
        thin=pool.thin._replace(table=" ".join(words)),
        loops={kind: "/dev/{%s-loop}" % kind for kind in pool.loops},
    )


def pool_devices(pool: LoopPool) -> Dict[str, Device]:
    """The devices of a plan for this pool, by the roles that planned_pool uses."""
    home = pool.home()
    devices = {"pool-disk": Device(DISK_NUMBER, home, disk_number(home))}
    for kind, loop in pool.loops.items():
        file = pool.files[kind]
        devices[kind + "-loop"] = Device(LOOP_NAME, file, os.path.basename(loop))
        devices[kind + "-number"] = Device(LOOP_NUMBER, file, device_number(loop))
    return devices


def superblock_test(mode: str, pool: LoopPool, kind: str) -> Tuple[str, ...]:
    """A test of the number of blocks in the pool's superblock: is it that of now?

    It is on the disk with the pool down too, and tells whether the pool was ever loaded with
    another length. Source: kernel, drivers/md/dm-thin-metadata.c, struct thin_disk_superblock; the
    space maps of data and metadata begin at bytes 64 and 192 with nr_blocks.
    """
    if kind == "data":
        offset, total, block = 64, pool.thin.data_total, pool.thin.block
    else:
        offset, total, block = 192, pool.thin.metadata_total, 4096
    # total is None for a pool that has failed only, and require_healthy_pool refuses that.
    blocks = "%016x" % ((total or 0) // block)
    read = ("od", "-A", "n", "-t", "x8", "-j", str(offset), "-N", "8", pool.files["metadata"])
    return (mode, blocks, *read)


def lengthen_steps(pool: LoopPool, sizes: Dict[str, int]) -> Tuple[Step, ...]:
    """The loop files made longer."""
    steps = []
    for kind, path in pool.files.items():
        if sizes[kind] > pool.lengths[kind]:
            steps.append(lengthen_step(pool, kind, path, sizes[kind]))
    return tuple(steps)


def lengthen_step(pool: LoopPool, kind: str, path: str, size: int) -> Step:
    loop = pool.loops[kind]
    old = str(pool.lengths[kind])
    # Cut back only while the pool was never loaded with the new length, by a reboot either: from
    # then on a shorter file is a pool that never comes up again.
    cut_back = Step(
        "cut-back",
        "cut %s back" % path,
        ("truncate", "-s", old, path),
        (("says", old, "stat", "-c", "%s", path),),
        skip_if=(superblock_test("lacks", pool, kind),),
    )
    # After a reboot the loop device may be another file's, or nobody's.
    tell_loop = Step(
        "tell-loop",
        "tell the loop device of %s" % path,
        ("losetup", "-c", loop),
        skip_if=(("lacks", loop + ":", "losetup", "-j", path),),
    )
    return Step(
        "lengthen:" + kind,
        "lengthen %s to %s" % (path, format_option_size(size)),
        ("truncate", "-s", str(size), path),
        (("says", str(size), "stat", "-c", "%s", path),),
        undo=(cut_back, tell_loop),
    )


def grow_online(pool: LoopPool, sizes: Dict[str, int]) -> Tuple[Step, ...]:
    """Lengthen the files, tell their loop devices, load the pool's new table, switch to it.

    There is no suspend of its own: resume suspends, swaps the tables and goes on by itself, so that
    a kill leaves no frozen pool (dmsetup(8)).
    """
    sectors = sizes["data"] // 512
    blocks = min(sizes["metadata"], METADATA_MAX) // 4096
    info = ("dmsetup", "info", pool.name)
    load = ("dmsetup", "reload", pool.name, "--table")
    switch = ("dmsetup", "resume", pool.name)
    # After a reboot the pool has the new length by itself.
    grown = (
        ("has", "0 %d thin-pool" % sectors, "dmsetup", "table", pool.name),
        ("has", "/%d " % blocks, "dmsetup", "status", pool.name),
        ("has", "ACTIVE", *info),
    )

    # 1. The files. Undo: cut back, see lengthen_step.
    steps = list(lengthen_steps(pool, sizes))

    # 2. The loop devices see the new lengths. Undo: none, the first steps' undo tells them again.
    for kind, loop in pool.loops.items():
        size = ("cat", "/sys/block/%s/size" % os.path.basename(loop))
        tell_loop = Step(
            "tell-loop:" + kind,
            "tell the loop device of %s the new length" % pool.files[kind],
            ("losetup", "-c", loop),
            (("says", str(sizes[kind] // 512), *size),),
            skip_if=grown,
        )
        steps.append(tell_loop)

    # 3. The new table waits beside the live one. Undo: forget it.
    forget_table = Step(
        "forget-table",
        "forget the new table",
        ("dmsetup", "clear", pool.name),
        skip_if=(("not", *info),),
    )
    load_table = Step(
        "load-table",
        "load the pool's new table beside the old one",
        (*load, pool.thin.longer(sectors)),
        skip_if=grown,
        undo=(forget_table,),
    )
    steps.append(load_table)

    # 4. The switch. Once the pool was live with its new length, it keeps it. Undo: only a pool that
    # the switch has left frozen gets its old table, and goes on with it.
    not_frozen = (("lacks", "SUSPENDED", *info),)
    old_table = Step(
        "load-old-table",
        "load the pool's old table",
        (*load, pool.thin.table),
        skip_if=not_frozen,
    )
    switch_back = Step("switch-back", "switch the pool to it", switch, skip_if=not_frozen)
    switch_table = Step(
        "switch-table",
        "switch the pool to its new length",
        switch,
        grown,
        undo=(old_table, switch_back),
    )
    steps.append(switch_table)
    return tuple(steps)


def grow_offline(
    host: Host,
    engine: Engine,
    pool: LoopPool,
    sizes: Dict[str, int],
    options: Tuple[Step, ...],
) -> Tuple[Step, ...]:
    """Stop docker, lengthen the files, set the options, start docker, which loads the pool with the
    length of its files. Each of these steps has its undo from its maker.

    options: the steps that set the daemon's options, for its next start.
    """
    grown = ("has", "0 %d thin-pool" % (sizes["data"] // 512), "dmsetup", "table", pool.name)
    return (
        *stop_steps(host, engine, pool.name),
        *lengthen_steps(pool, sizes),
        *options,
        *up_steps(engine, pool.name),
        *go_again(host, engine),
        Step("new-length", "the pool has its new length", check=(grown,)),
    )


# pool recreate.

# What is set aside below Docker's root. Volumes, networks and plugins stay.
SET_ASIDE = ("devicemapper", "image", "containers", "buildkit")
NEW_DRIVERS = ("devicemapper", "overlay2")


class NewStorage(NamedTuple):
    """What is to be made in place of the pool.

    driver: one of NEW_DRIVERS.
    sizes: of a new pool, bytes by 'data' and 'metadata'.
    base_size: of a container's file system in a new pool, in bytes; None: Docker's default.
    """

    driver: str
    sizes: Dict[str, int]
    base_size: Optional[int]

    def is_pool(self) -> bool:
        return self.driver == "devicemapper"

    def describe(self) -> str:
        if not self.is_pool():
            return self.driver
        text = "a pool of %s data, %s metadata" % (
            format_size(self.sizes["data"]),
            format_size(self.sizes["metadata"]),
        )
        if self.base_size is not None:
            text += ", base size %s" % format_option_size(self.base_size)
        return text


def run_recreate(host: Host, opts: Options, report: dict) -> None:
    """Backs everything up, sets the old storage aside, and has docker begin anew with what the
    backup has."""
    driver = require_new_driver(opts)
    host, identity = prove_engine(host)
    engine = collect_engine(host, identity)
    pool = collect_loop_pool(host, engine)
    new = NewStorage(driver, asked_sizes(opts, pool), opts.base_size)
    stock = collect_stock(host, engine.containers)
    size = require_recreate(host, opts, engine, stock, pool, new)
    backup = plan_whole_backup(host, opts, stock, new)
    plan = plan_recreate(host, engine, pool, backup, new, size)
    report["left_out"] = backup.left_out
    for line in backup.left_out:
        say("dockfix: not in the backup: " + line)
    question = "stop docker, set %s aside, and build it anew as %s?" % (
        ", ".join(SET_ASIDE),
        plan.goal,
    )
    run_change(host, opts, report, plan, question)
    compare_stock(host, opts, report, plan)


def require_new_driver(opts: Options) -> str:
    """The driver that is asked for. Raises UsageError where the options do not fit together."""
    driver = opts.driver or "devicemapper"
    sized = opts.data or opts.metadata or opts.base_size is not None
    if driver not in NEW_DRIVERS or (driver == "overlay2" and sized):
        raise UsageError("--driver takes overlay2 (then without sizes) or devicemapper")
    if not opts.backup:
        raise UsageError(
            "where to, with the backup? --backup DIR, a folder on another disk that does not"
            " exist yet"
        )
    return driver


def require_recreate(
    host: Host,
    opts: Options,
    engine: Engine,
    stock: Stock,
    pool: LoopPool,
    new: NewStorage,
) -> int:
    """Bytes that the backup takes. Raises Refused."""
    info = engine_info(host)
    # The tasks and secrets of a swarm are in no backup.
    if info.swarm not in ("", "inactive"):
        raise Refused(
            "this host is a node of a swarm (%s): its tasks and secrets cannot be carried over"
            % info.swarm,
            "docker swarm leave, then again",
        )
    # All of the old pool must be readable.
    require_healthy_pool(pool)
    # The new storage works here.
    if new.is_pool():
        require_sizes(pool, new.sizes, opts.overcommit)
    else:
        require_overlay(host, engine.root)
    # Docker can be stopped, and the pool taken down, without a loss.
    require_stoppable(host, engine, opts.lose_autoremove)
    require_no_foreign_pool(host, every_pool(pool.name), pool.name)
    # There is room for the backup, and for old and new side by side.
    size = estimate_backup_size(host, stock)
    folder = os.path.abspath(opts.backup)
    needed = size
    if is_on_same_disk(os.path.dirname(folder), engine.root):
        needed = size * 2
    room = read_disk_room(engine.root).available
    require_backup_folder(host, folder, needed)
    if size > room:
        raise Refused(
            "old and new lie side by side for a while: the new one takes up to %s, and the disk of"
            " %s has %s free" % (format_size(size), engine.root, format_size(room)),
            "python3 dockfix.py reclaim --images --containers, or relocate first",
        )
    return size


def is_on_same_disk(folder: str, root: str) -> bool:
    """False where the folder is not there."""
    if not os.path.isdir(os_bytes(folder)):
        return False
    return os.stat(os_bytes(folder)).st_dev == os.stat(os_bytes(root)).st_dev


def require_overlay(host: Host, root: str) -> None:
    """overlay2 needs the kernel's overlay, and a file system that it works on."""
    file_system = STORAGE_DRIVERS["overlay2"].file_system
    known = "\t%s\n" % file_system in read_host_text("/proc/filesystems")
    if not known and query_host(host, ("modprobe", "-n", file_system)).rc:
        raise Refused(
            "this kernel has no overlay file system", "keep devicemapper: leave --driver out"
        )
    require_fit_disk(host, "overlay2", root)


def plan_whole_backup(host: Host, opts: Options, stock: Stock, new: NewStorage) -> Backup:
    """All that docker holds, but for containers that vanish when they are stopped (--rm;
    require_stoppable has asked for their names)."""
    containers = []
    limits = []
    for doc in stock.containers:
        settings = doc["HostConfig"]
        if is_running(doc) and settings.get("AutoRemove"):
            continue
        if not new.is_pool():  # overlay2 has no size for each container
            limit = (settings.get("StorageOpt") or {}).get("size")
            doc = dict(doc, HostConfig=dict(settings, StorageOpt={}))
            if limit:
                name = title_of(doc)
                limits.append(
                    "the limit of %s's own files (%s): overlay2 sets none" % (name, limit)
                )
        containers.append(doc)
    stock = stock._replace(containers=containers)
    backup = plan_backup(host, os.path.abspath(opts.backup), stock, [], live=False)
    loads = []
    if image_refs(stock.images):
        loads.append("images.tar")
    if own_image_references(backup):
        loads.append("own.tar")
    return backup._replace(loads=loads, left_out=[*backup.left_out, *limits])


def plan_recreate(
    host: Host, engine: Engine, pool: LoopPool, backup: Backup, new: NewStorage, size: int
) -> Plan:
    """size: bytes of the backup."""
    name = new_name("pool-recreate")
    keeps = os.path.join(engine.root, ".dockfix-" + name)
    stock = backup.stock
    steps = recreate_steps(host, engine, pool, backup, new, keeps, size)
    images = image_refs(stock.images)
    for doc in stock.containers:
        images.append(own_image_reference(backup, doc, RESTORED_REPOSITORY))
    facts = {
        "containers": [title_of(doc) for doc in stock.containers],
        "images": images,
        "backup": backup.folder,
        "disk": disk_tests(host, backup.folder),
    }
    facts.update(engine.identity.facts(host, engine.root))
    return make_plan(name, "pool recreate", new.describe(), steps, keeps, facts)


def recreate_steps(
    host: Host,
    engine: Engine,
    pool: LoopPool,
    backup: Backup,
    new: NewStorage,
    keeps: str,
    size: int,
) -> List[Step]:
    """All the steps in their order; above each what undoes it. keeps: the folder for the old
    storage; size: bytes of the backup."""
    stock = backup.stock
    # The new pool has another name, and may be up after a reboot.
    pools = every_pool(pool.name)
    # A backup that is complete stays, whatever becomes of the change: the undo of its files is void
    # once this step is begun.
    sealed = seal_step(host, backup, lossy=False, undoable=False)

    # Docker answers. Undo, last of all: what ran is started by name.
    steps = [answers_step(engine)]

    # The images are saved while containers run. Undo: the backup's files are removed.
    steps += settings_steps(host, backup, sealed.id)
    images = wanted_images(stock)
    steps += save_steps(host, backup, "images.tar", images, size, True, sealed.id)

    # No restarts; the containers stopped. Undo: the restart policies; answers_step starts them.
    steps += hold_policies(host, parse_containers(stock.containers))
    steps += stop_container_steps(host, engine.containers)

    # What the containers and volumes hold, from the stopped state, then the proof that the backup
    # is whole. What others make meanwhile would be in the old storage only, so this fails where
    # somebody did. Undo: the files and the images that were made for it are removed.
    steps += nothing_new_steps(host, engine, stock, "before")
    steps += own_steps(host, backup, False, sealed.id)
    steps += save_steps(host, backup, "own.tar", wanted_commits(backup), 0, True, sealed.id)
    steps += volume_steps(host, backup, sealed.id)
    steps += verify_steps(backup)
    steps.append(sealed)
    steps += nothing_new_steps(host, engine, stock, "after")

    # The daemon stopped, and held down over a reboot. Undo: started, the hold taken away.
    steps += down_steps(engine, pools)
    steps += mask_unit_steps(engine, True)

    # The old storage aside, files for a new pool in its place. Undo: what is there by then is moved
    # to KEEPS/newer-..., and the old storage back.
    steps += set_aside_steps(engine, keeps, new)
    if new.is_pool():
        steps += make_pool_steps(engine, keeps, new.sizes)

    # The daemon's settings. Undo: the bytes of before.
    steps += option_steps(new_options(new))

    # Docker started on the new storage. Undo: the hold again; containers and daemon stopped.
    steps += mask_unit_steps(engine, False)
    steps += up_steps(engine, pools if new.is_pool() else "")
    steps.append(new_storage_step(host, new))

    # What the backup has, in the new storage. Undo: none for each, the new storage is set aside as
    # a whole. Volumes and networks have stayed.
    have = Stock([], [], stock.networks, stock.volumes)
    steps += restore_steps(host, backup, have, fill=False, undoable=False)
    for doc in stock.containers:
        steps += container_steps(host, backup, doc, undoable=False)
    steps += start_new_steps(host, stock)

    # The proof. Where it fails, all of the above is undone.
    steps.append(images_back_step(host, stock))
    return steps


def new_storage_step(host: Host, new: NewStorage) -> Step:
    checks = [("has", "Storage Driver: " + new.driver, *host.docker, "info")]
    if new.is_pool():
        sectors = new.sizes["data"] // 512
        checks.append(("has", "0 %d thin-pool" % sectors, "dmsetup", "table"))
    return Step("new-storage", "the daemon has the new storage", check=tuple(checks))


def start_new_steps(host: Host, stock: Stock) -> List[Step]:
    """What ran is started by name: the containers have new ids. What does not start is said, and is
    no reason to go back."""
    wait = 5.0
    containers = parse_containers(stock.containers)
    steps = start_levels(host, containers, wait, by_name=True)
    steps += start_again_steps(
        host, containers, must_run=True, optional=True, wait=wait, daemon="up"
    )
    return steps


def images_back_step(host: Host, stock: Stock) -> Step:
    ask_id = (*host.docker, "inspect", "--type", "image", "-f", "{{.Id}}")
    checks = []
    for image in stock.images:
        for ref in image_refs([image]):
            checks.append(("says", image["Id"], *ask_id, ref))
    return Step("images-back", "every image is back under its id", check=tuple(checks))


def new_options(new: NewStorage) -> List[OptionChange]:
    """The daemon's options for the new storage, for option_steps."""
    wanted = [OptionChange("storage-driver", "", new.driver)]
    if not new.is_pool():
        # dockerd does not start with options of another driver.
        keys = set()  # type: Set[str]
        for source in option_sources():
            keys.update(value.partition("=")[0] for _, value in source.options)
        for key in sorted(keys):
            if key.startswith("dm."):
                wanted.append(OptionChange("storage-opt", key, None))
        return wanted
    for kind, size in new.sizes.items():
        wanted.append(OptionChange("storage-opt", "dm.loop%ssize" % kind, format_option_size(size)))
    if new.base_size is not None:
        wanted.append(OptionChange("storage-opt", "dm.basesize", format_option_size(new.base_size)))
    return wanted


def nothing_new_steps(host: Host, engine: Engine, stock: Stock, when: str) -> List[Step]:
    """What others make, or tag anew, meanwhile would be in the old storage only.

    when: a word for the steps' ids. The images that dockfix makes itself are left out.
    """
    containers = [container.id for container in engine.containers]
    form = '{{if ne .Repository "%s"}}{{.Repository}}:{{.Tag}} {{.ID}}{{end}}' % BACKUP_REPOSITORY
    return [
        nothing_new_step(host, when, "containers", containers, ("ps", "-aq", "--no-trunc")),
        nothing_new_step(
            host, when, "images", listed_images(stock), ("images", "--no-trunc", "--format", form)
        ),
    ]


def nothing_new_step(
    host: Host, when: str, kind: str, known: Sequence[str], words: Sequence[str]
) -> Step:
    return Step(
        "nothing-new-%s:%s" % (when, kind),
        "see that nobody made %s meanwhile" % kind,
        check=(("among", "\n".join(sorted(known)), *host.docker, *words),),
    )


def listed_images(stock: Stock) -> List[str]:
    """The lines of `docker images` for these: NAME:TAG ID."""
    lines = []
    for image in stock.images:
        names = list(image.get("RepoTags") or ["<none>:<none>"])
        for digest in image.get("RepoDigests") or []:
            names.append(digest.split("@")[0] + ":<none>")
        lines += ["%s %s" % (name, image["Id"]) for name in names]
    return lines


def set_aside_steps(engine: Engine, keeps: str, new: NewStorage) -> List[Step]:
    """Renames inside the root. What the new daemon makes at the same places goes to KEEPS/newer-...
    on the way back."""
    steps = [
        Step(
            "aside-folder",
            "make " + keeps,
            ("mkdir", "-m", "700", keeps),
            (("ok", "test", "-d", keeps),),
            undo=(tidy_step(keeps),),
        )
    ]
    parts = list(SET_ASIDE)
    if not new.is_pool():
        parts.append(new.driver)  # of an earlier change of driver
    for part in parts:
        old = os.path.join(engine.root, part)
        aside, newer = os.path.join(keeps, part), os.path.join(keeps, "newer-" + part)
        if os.path.lexists(os_bytes(old)):
            steps.append(move_step("aside:" + part, "set %s aside" % old, old, aside, newer))
        else:
            steps.append(no_part_step(part, old, newer))
    return steps


def no_part_step(part: str, old: str, newer: str) -> Step:
    """For what is not there yet: only its undo has anything to do."""
    newer_aside = Step(
        "newer-aside",
        "move the newer %s aside" % old,
        ("mv", "-T", old, newer),
        (("not", "test", "-e", old),),
    )
    return Step("aside:" + part, "there is no %s yet" % old, undo=(newer_aside,))


def make_pool_steps(engine: Engine, keeps: str, sizes: Dict[str, int]) -> List[Step]:
    """The sparse files of a new pool. dd only sets a length, and it would cut a longer file, so it
    works in a folder that is dockfix's own."""
    made = os.path.join(keeps, "made")
    folder = made + "/devicemapper"
    place = os.path.join(engine.root, "devicemapper")
    steps = [
        Step(
            "new-pool-folder",
            "make " + made,
            ("mkdir", "-p", "-m", "700", folder),
            (("ok", "test", "-d", folder, "-o", "-d", place),),
        )
    ]
    for kind, size in sizes.items():
        path = os.path.join(folder, kind)
        mebibytes = size >> 20
        made_file = Step(
            "new-pool:" + kind,
            "make %s, %s" % (path, format_size(size)),
            ("dd", "if=/dev/zero", "of=" + path, "bs=1M", "count=0", "seek=%d" % mebibytes),
            (("says", str(mebibytes << 20), "stat", "-c", "%s", path),),
        )
        steps.append(made_file)
    in_place = Step(
        "new-pool-in-place",
        "put it in place",
        ("mv", "-T", made, place),
        (("ok", "test", "!", "-e", made, "-a", "-d", place),),
    )
    return [*steps, in_place]


###############################################################################
# 27. relocate
###############################################################################

# relocate copies Docker's root to another disk and has the daemon use the copy. The old root is
# never written to and never deleted: it is renamed aside (a mount point stays where it is), and
# only `discard` deletes it. Whatever the copy would miss, such as a disk that is mounted into a
# volume, is refused before anything is touched.
#
# The facts: dockerd takes its root from data-root (graph before 17.05). dockerd 20.10 keeps
# absolute paths of named volumes in the containers' records and fails at them ("error evaluating
# symlinks from mount source"; measured). A loop pool's name has the disk and the inode of its
# folder (moby, daemon/graphdriver/devmapper/deviceset.go), so the copy comes up as another pool.


class Move(NamedTuple):
    """From where to where Docker's root goes.

    old: Docker's root without links and without the uid.gid part of remapping.
    new: the root to be.
    size: bytes that the old root has allocated.
    made: `new` is there already, and empty.
    """

    old: str
    new: str
    size: int
    made: bool


class MovedPools(NamedTuple):
    """The loop pool of devicemapper, '' for other drivers.

    old: the name of the pool of now.
    new: a pattern of the names that the pool on the new disk may have.
    """

    old: str
    new: str


def run_relocate(host: Host, opts: Options, report: dict) -> None:
    lock_storage(host, opts)
    host, identity = prove_engine(host)
    engine = collect_engine(host, identity)
    require_stoppable(host, engine, opts.lose_autoremove)
    move = collect_move(host, engine, opts.arguments[0])
    report_what_stays(host, without_remap(engine.root), report)
    plan = plan_relocate(host, opts, engine, move)
    question = "move %s from %s to %s? Docker and its containers stop meanwhile" % (
        format_size(move.size),
        move.old,
        move.new,
    )
    run_change(host, opts, report, plan, question)


# Reading, and refusing what cannot work before anything is touched.


def collect_move(host: Host, engine: Engine, word: str) -> Move:
    """word: NEW_ROOT of the command line. Raises UsageError, Refused."""
    old = without_remap(engine.root)
    new = real_path(word)
    where = new if os.path.isdir(os_bytes(new)) else os.path.dirname(new)
    require_plain_place(word, old, new, where)
    require_movable(host, engine, where)
    warn_of_selinux(host, new)
    size = require_room_for(old, new, where)
    return Move(old, new, size, where == new)


def require_plain_place(word: str, old: str, new: str, where: str) -> None:
    """where: `new`, or the folder above it where `new` is not there yet."""
    # The daemon's settings have the path as one word.
    if not re.match(r"/[\w./+:@=-]+\Z", new, re.A):
        raise UsageError(
            "NEW_ROOT %s: blanks, quotes and the like do not survive in the daemon's settings"
            % word,
            "a plain path, such as /data/docker",
        )
    # A copy into itself would never end.
    if (new + "/").startswith(old + "/") or (old + "/").startswith(new + "/"):
        raise Refused("%s and %s lie in one another" % (new, old), "a folder on another disk")
    # Only the last folder of the path is made: one that lacks more is a disk that is not mounted.
    if not os.path.isdir(os_bytes(where)):
        raise UsageError(
            "there is no folder %s" % where, "mount the disk first, or: mkdir -p %s" % where
        )
    # The copy never mixes with what somebody has there. lost+found is the file system's own.
    if os.path.lexists(os_bytes(new)) and (where != new or set(os.listdir(new)) - {"lost+found"}):
        raise Refused(
            "%s is there and is not an empty folder; nothing is ever written over" % new,
            "name a folder that does not exist",
        )


def require_movable(host: Host, engine: Engine, where: str) -> None:
    """Refuses what a copy of files would not carry over, or would not work at the new place."""
    info = engine_info(host)
    driver = facts_of_driver(info.driver)
    if driver and not driver.plain_files:
        raise Refused(
            "the layers of the %s driver are no plain files: copying does not move them"
            % info.driver,
            "%s send and receive them" % info.driver,
        )
    require_fit_disk(host, info.driver, where)
    require_no_volume_mounts(host, engine.root + "/volumes/")


def require_no_volume_mounts(host: Host, folder: str) -> None:
    """Refuses a disk that somebody mounted into a volume: the copy would leave out what is on it. A
    volume with a device of its own is mounted by docker, and is no such disk."""
    for mount in mounts_of():
        if not mount.point.startswith(folder):
            continue
        name = mount.point[len(folder) :].split("/")[0]
        volumes = parse_objects(query(host, "volume", "inspect", name).out)
        if not any((volume.get("Options") or {}).get("device") for volume in volumes):
            raise Refused(
                "%s, in the volume %s, is a mount of its own: what is on it would not be moved"
                % (mount.point, name),
                "stop what uses it, and: umount %s; mount it below the new root afterwards"
                % quote_word(mount.point),
            )


def warn_of_selinux(host: Host, new: str) -> None:
    if has_program("getenforce") and query_host(host, ("getenforce",)).out.strip() == b"Enforcing":
        say(
            "dockfix: SELinux: the labels are copied; so that a relabel keeps them: semanage"
            " fcontext -a -e %s" % quote_line((DOCKER_ROOT, new))
        )


def require_room_for(old: str, new: str, where: str) -> int:
    """The size of the old root in bytes. The copy may need a little more: other block sizes."""
    size, why = disk_usage(old, float("inf"), points_of_others(mounts_of()))
    room = read_disk_room(where).available
    if size is not None and size * 1.02 <= room:
        return size
    text = "%s holds %s, the disk of %s has %s free" % (
        old,
        format_known_size(size),
        new,
        format_size(room),
    )
    if why:
        text += "; " + why
    raise Refused(text, "python3 dockfix.py reclaim, or a larger disk")


def report_what_stays(host: Host, root: str, report: dict) -> None:
    """Says what does not move with Docker's root: with the containerd image store, the root of a
    containerd that dockerd does not run itself."""
    if not has_containerd_store(engine_info(host)):
        return
    place = containerd_root(root)
    if (place + "/").startswith(root + "/"):
        return  # dockerd's own containerd: it moves along
    size = None  # type: Optional[int]
    if place:
        until = time.monotonic() + WALK_SECONDS
        walked, why = disk_usage(place, until, points_of_others(mounts_of()))
        if not why:
            size = walked
    report["stays"] = {"path": place or None, "size": size}
    size_text = "of unknown size" if size is None else format_size(size)
    text = "images and the containers' layers stay where they are, in %s (%s)" % (
        store_text(root),
        size_text,
    )
    say("dockfix: warning: " + text)
    remedy = "docker system df; to move it by hand, stop both, copy it, and set `root` in %s"
    add_finding(report, Finding("containerd-stays", "warning", text, remedy % CONTAINERD_SETTINGS))


def require_own_pools(host: Host, move: Move) -> MovedPools:
    """Raises Refused where a pool of the names that the new one may have is somebody else's: it
    would be taken down on the way back. A pool on devices of its own (direct-lvm) is not made by a
    start of the daemon, so it stays as it is."""
    pool = parse_reported_pool(engine_info(host).driver_status)
    if pool.mode != "loop":
        return MovedPools("", "")
    old = str(pool.name)
    disk = move.new if move.made else os.path.dirname(move.new)
    new = every_pool(pool_prefix(disk) + "pool")
    require_no_foreign_pool(host, new, old)
    return MovedPools(old, new)


# Planning.


def plan_relocate(host: Host, opts: Options, engine: Engine, move: Move) -> Plan:
    name = new_name("relocate")
    aside = move.old
    if not os.path.ismount(os_bytes(move.old)):  # a mount point cannot be renamed
        aside = "%s.dockfix-%s" % (move.old, name)
    steps = relocate_steps(host, opts, engine, move, aside)
    facts = dict(object_names(host))  # type: Dict[str, object]
    facts["left"] = move.new
    facts["disk"] = disk_tests(host, move.new)
    facts["old"] = os.stat(os_bytes(move.old)).st_ino
    facts.update(engine.identity.facts(host, moved_root(engine, move)))
    goal = "move Docker's root from %s to %s" % (move.old, move.new)
    return make_plan(name, "relocate", goal, steps, aside, facts)


def moved_root(engine: Engine, move: Move) -> str:
    """Where the daemon's root is afterwards, with the uid.gid part of remapping."""
    return move.new + engine.root[len(move.old) :]


def relocate_steps(
    host: Host, opts: Options, engine: Engine, move: Move, aside: str
) -> Tuple[Step, ...]:
    """All the steps in their order; above each what undoes it. aside: what becomes of the old
    root."""
    driver = engine_info(host).driver
    # rsync reads all of the holes of loop files, and the copy of a pool in use is none.
    rsync = driver != "devicemapper" and has_program("rsync")
    pools = require_own_pools(host, move)
    root = moved_root(engine, move)
    is_new = ("has", "Docker Root Dir: " + move.new, *engine.host.docker, "info")
    up = up_steps(engine._replace(root=root), pools.new, checks=(is_new,))
    started = up[0].id  # from then on docker may have written to the new root: it is never emptied

    # The new root. Undo: removed, where this step made it.
    steps = [new_root_step(host, move, started)]

    # A first copy while Docker runs, so that it is down for a short time only. Undo: emptied.
    twice = rsync and not opts.no_presync
    if twice:
        steps.append(first_copy_step(host, move, started))

    # Docker answers; no restarts; the containers stopped; the daemon stopped. Undo: the daemon
    # started, the restart policies, and first to last what ran started by name (answers_step).
    steps += stop_steps(host, engine, pools.old)

    # A volume with a mount would be copied without its content. Nothing to undo.
    steps.append(no_volume_mounted_step(engine.root))

    # A reboot from here on does not start docker on half of a copy. Undo: the hold is taken away.
    steps += mask_unit_steps(engine, True)

    # The copy, of a root that nobody writes to. Undo: emptied.
    title = "copy what is left" if twice else "copy"
    steps.append(copy_step(host, move, title, rsync, started))

    # The records of the copy name the new place. Undo: none, the old root has its own.
    steps.append(records_step(move, root))

    # The daemon's settings. Undo: the bytes of before.
    steps += option_steps([OptionChange("data-root", "", move.new)])

    # The old root aside, so that nobody takes it for the one in use. Undo: moved back.
    if aside != move.old:
        title = "set the old root aside as " + aside
        steps.append(move_step("old-root-aside", title, move.old, aside, aside + ".newer"))

    # Docker started on the new root. Undo: the hold again; the daemon stopped.
    steps += mask_unit_steps(engine, False)
    steps += up

    # The proof. Where it fails, all of the above is undone.
    there = all_there_tests(host, opts.lose_autoremove)
    steps.append(Step("all-there", "every container and image is there", check=there, wait=10))

    # What ran runs, and the restart policies are back. These are optional: what does not start is
    # said, and is no reason to go back.
    steps += go_again(host, engine)
    return tuple(steps)


def new_root_step(host: Host, move: Move, started: str) -> Step:
    remove = Step(
        "remove-new-root",
        "remove " + move.new,
        ("rmdir", move.new),
        (("not", "test", "-e", move.new),),
        skip_if=away_tests(host, move),
    )
    return Step(
        "new-root",
        "make " + move.new,
        ("mkdir", "-m", "711", move.new),
        (("ok", "test", "-d", move.new),),
        undo=() if move.made else (remove,),
        undo_void_after=started,
    )


def away_tests(host: Host, move: Move) -> Tuple[Tuple[str, ...], ...]:
    """Tests: the disk of the new root is not mounted. What is at its place then is not ours to
    remove."""
    return tuple(("lacks", *test[1:]) for test in disk_tests(host, move.new))


def empty_new_root_step(host: Host, move: Move) -> Step:
    inside = ("find", move.new, "-xdev", "-mindepth", "1")
    nothing_left = ("find", move.new, "-mindepth", "1", "!", "-name", "lost+found")
    return Step(
        "empty-new-root",
        "empty " + move.new,
        (*inside, "!", "-path", move.new + "/lost+found", "-delete"),
        (("silent", *nothing_left),),
        skip_if=away_tests(host, move),
    )


def rsync_words(move: Move) -> Tuple[str, ...]:
    """Hard links, ACLs, extended attributes and holes are kept; on one file system only."""
    options = ("-aHAXSx", "--numeric-ids", "--delete", "--exclude=/lost+found")
    return ("rsync", *options, move.old + "/", move.new + "/")


def cp_words(move: Move) -> Tuple[str, ...]:
    options = ("-ax", "--sparse=always", "--remove-destination")
    return ("cp", *options, move.old + "/.", move.new + "/")


def first_copy_step(host: Host, move: Move, started: str) -> Step:
    """Optional: files that vanish while they are copied make rsync fail, and the second copy gets
    them right."""
    return Step(
        "first-copy",
        "copy while Docker runs",
        rsync_words(move),
        undo=(empty_new_root_step(host, move),),
        undo_void_after=started,
        optional=True,
        size=move.size,
        progress_dir=move.new,
    )


def copy_step(host: Host, move: Move, title: str, rsync: bool, started: str) -> Step:
    return Step(
        "copy",
        title,
        rsync_words(move) if rsync else cp_words(move),
        undo=(empty_new_root_step(host, move),),
        undo_void_after=started,
        size=move.size,
        progress_dir=move.new,
    )


def no_volume_mounted_step(root: str) -> Step:
    volumes = ("find", root + "/volumes", "-mindepth", "1", "-maxdepth", "2")
    mounted = (*volumes, "-exec", "mountpoint", "-q", "{}", ";", "-print")
    return Step(
        "no-volume-mounted", "no volume is mounted", check=(("no_point", *mounted),), wait=10
    )


def records_step(move: Move, root: str) -> Step:
    """Docker's records have absolute paths below its root."""
    inside = ("find", root + "/containers", "-mindepth", "2", "-maxdepth", "2")
    records = (*inside, "-name", "config.v2.json", "-type", "f")
    old = re.sub(r"([^\w/-])", r"\\\1", move.old)
    keys = "(Source|LogPath|HostnamePath|HostsPath|ResolvConfPath)"
    program = r's#"%s":"%s/#"\1":"%s/#g' % (keys, old, move.new)
    return Step(
        "records",
        "put the new place into the containers' records",
        (*records, "-exec", "sed", "-i", "-E", "-e", program, "{}", "+"),
    )


def all_there_tests(host: Host, lose: Sequence[str]) -> Tuple[Tuple[str, ...], ...]:
    """Tests: docker knows every container of now (but those that may be lost), and every image."""
    answer = require_answer(query(host, "images", "-q", "--no-trunc"), "docker images")
    images = sorted(set(answer.out_text().split()))
    containers = [target.id for target in list_containers(host) if target.name not in lose]
    tests = []
    for kind, ids in (("container", containers), ("image", images)):
        for start in range(0, len(ids), CHUNK_IDS):
            chunk = ids[start : start + CHUNK_IDS]
            tests.append(("ok", *host.docker, "inspect", "--type", kind, *chunk))
    return tuple(tests)


###############################################################################
# 28. resume, rollback, discard
###############################################################################

# resume finishes a change that stands half-way, rollback undoes it (or one that is finished, as
# long as its old data is there), discard deletes the old data. All three act on the engine of the
# change and on no other. Only discard deletes old data, and only when it is named.
#
# The facts are the journal's: nothing is guessed from what the host looks like, but for the
# devices, whose names a reboot changes (rebind_devices), and the daemon, which it may have started
# or stopped (restore_daemon_state).


# The engine of the change.


def require_same_engine(host: Host, opts: Options, journal: Journal) -> Host:
    """The host with the docker command that speaks to the engine of the change. Raises HalfWay
    (Refused for a finished change) where that is another one, or the same names would mean another
    one's things."""
    plan = journal.plan
    refusal = HalfWay if read_journal(host) else Refused
    if "engine" not in plan.facts:
        require_same_environment(opts, plan, refusal)
        return host
    try:
        return require_engine_of(host, plan.facts["engine"])
    except Refused as err:
        msg = "%s was begun with another engine: %s" % (plan.name, err.msg)
        raise refusal(msg, err.hint) from None


def require_same_environment(opts: Options, plan: Plan, refusal: Type[DockfixError]) -> None:
    """For a change that proves no engine of this host's, such as a backup: the environment names
    the one that docker speaks to."""
    now = docker_environment()
    begun = plan.facts.get("docker", now)
    if all(begun.get(name) == now.get(name) for name in ("DOCKER_HOST", "DOCKER_CONTEXT")):
        return
    given = ["%s=%s" % (name, value) for name, value in sorted(begun.items())]
    unset = ["-u" + name for name in sorted(now)]
    raise refusal(
        "%s was begun with another engine in the environment (%s)"
        % (plan.name, ", ".join(given) or "none was named"),
        quote_line(["env", *unset, *given, "python3", "dockfix.py", opts.command, *opts.arguments]),
    )


# Carrying a change on.


def carry_change_on(host: Host, opts: Options, report: dict, journal: Journal) -> None:
    """A change that stands half-way, or is to be undone, to its end, the way that its journal says.
    Raises HalfWay where it does not come there."""
    journal = journal._replace(plan=rebind_devices(host, journal.plan))
    plan = journal.plan
    back = journal.state == STATE_BACK
    msg = "undone: " + plan.goal if back else plan.goal
    if not back:  # the way back needs no disk
        require_disk(host, plan)
    if opts.dry_run:
        report["script"] = rest_script(host, report, journal)
        change_row(report, plan, "changed", "would: " + msg)
        return
    save_journal(host, journal)
    host.known.working = True
    progress = Progress(opts.command, len(plan.steps), opts.quiet)
    try:
        restore_daemon_state(host, journal, progress)
        if back:
            undo_steps_back(host, journal, progress)
            report_left_copy(journal)
        else:
            run_steps_on(host, journal, progress)
    except HalfWay:
        raise
    except DockfixError as err:
        raise half_way_error(host, err) from None
    finally:
        progress.end()
        host.known.working = False
    if back:
        msg += describe_kept_length(host, plan)
    kept = plan._replace(keeps=kept_folder(plan, journal.state))
    change_row(report, kept, "changed", msg)
    if not back:
        compare_stock(host, opts, report, plan)


def require_disk(host: Host, plan: Plan) -> None:
    """Raises HalfWay where a disk that the steps write to is not mounted: they would fill another
    one."""
    disk = plan.facts.get("disk", ())
    wrong = failing_test(host, disk)
    if wrong:
        mount_point = disk[0][1]
        text = "the disk that was mounted at %s is not there: mount it first (%s)"
        raise half_way_error(host, DockfixError(text % (mount_point, wrong)))


def rest_script(host: Host, report: dict, journal: Journal) -> str:
    """What carry_change_on would do, as a script."""
    plan = journal.plan
    closing = closing_steps(host, journal)
    if journal.state != STATE_BACK:
        return plan_script(report, plan, journal.at, closing)
    undoing = []  # type: List[Step]
    for step in reversed(plan.steps[: journal.at + 1]):
        undoing += undo_of(journal, step)
    return plan_script(report, plan._replace(steps=tuple(undoing), facts={}), 0, closing)


# resume.


def run_resume(host: Host, opts: Options, report: dict) -> None:
    lock_storage(host, opts, carries_on=True)
    journal = read_journal(host)
    if not journal:
        say("dockfix: no storage change stands half-way; there is nothing to resume")
        return
    host = require_same_engine(host, opts, journal)
    if journal.state == STATE_ON and "restores" in journal.plan.facts:
        resume_restore(host, opts, report, journal)
    else:
        carry_change_on(host, opts, report, journal)


def resume_restore(host: Host, opts: Options, report: dict, journal: Journal) -> None:
    """The change, and a row for each container. The backup is read first: without it the change
    stays half-way."""
    try:
        backup = restored_backup(journal.plan)
    except DockfixError as err:
        raise half_way_error(host, err) from None
    carry_change_on(host, opts, report, journal)
    if not opts.dry_run:
        report_restored(host, report, journal.plan, backup)


# rollback.


def run_rollback(host: Host, opts: Options, report: dict) -> None:
    """The change that stands half-way, else the finished one that is named (or the only one)."""
    lock_storage(host, opts, carries_on=True)
    journal = choose_change(host, opts.arguments[0] if opts.arguments else "")
    plan = journal.plan
    host = require_same_engine(host, opts, journal)
    if journal.state == STATE_UNDONE:
        msg = "undone already; discard %s deletes what was set aside" % plan.name
        change_row(report, plan, "unchanged", msg)
        return
    if journal.state == STATE_DISCARDING:
        raise Refused(
            "a discard of %s was interrupted: what it left of the old data is no way back"
            % plan.name,
            "python3 dockfix.py discard " + plan.name,
        )
    if journal.state == STATE_DONE:
        require_kept_data(plan, all_of_it=True)
        for line in list_made_since(host, plan.facts):
            say("dockfix: made since, kept aside: " + line)
    if not opts.dry_run:
        confirm(opts, "undo %s (%s)?" % (plan.name, plan.goal))
    last = min(journal.at, len(plan.steps) - 1)
    carry_change_on(host, opts, report, journal._replace(state=STATE_BACK, at=last))


def choose_change(host: Host, name: str) -> Journal:
    """What rollback undoes. name: '' for none. Raises HalfWay where another one stands half-way."""
    journal = read_journal(host)
    if not journal:
        return finished_change(host, name)
    if name not in ("", journal.plan.name):
        raise HalfWay("%s stands half-way; that one comes first" % journal.plan.name, HALF_WAY_HINT)
    return journal


def finished_change(host: Host, name: str) -> Journal:
    """The record of a finished change. name: '' means the only one. Raises UsageError where it
    means none, or more than one."""
    files = suppress_errors(os.listdir, os_bytes(host.state)) or ()
    names = []
    for file in sorted(map(os_text, files)):
        if file.endswith(".json") and file != JOURNAL:
            names.append(file[: -len(".json")])
    kept = "kept: " + ", ".join(names) if names else ""
    if name and name not in names:
        raise UsageError("there is no storage change %s" % name, kept)
    if not name and len(names) != 1:
        count = format_count(len(names), "finished one")
        verb = "is" if len(names) == 1 else "are"
        text = "no storage change stands half-way, and %s %s kept" % (count, verb)
        raise UsageError(text, kept)
    name = name or names[0]
    journal = read_journal(host, name + ".json")
    if not journal:
        raise UsageError(
            "the storage change %s was just discarded" % name, "ls %s" % quote_word(host.state)
        )
    return journal


def require_kept_data(plan: Plan, all_of_it: bool) -> None:
    """Raises Refused where the folder of the old data is not there, or is another one: the mount
    point of a disk that is not mounted. all_of_it: everything that was moved into it is there, too,
    which the way back needs."""
    lost = []
    if all_of_it:
        moved_to = [step.argv[-1] for step in plan.steps if step.argv[:2] == ("mv", "-T")]
        lost = [path for path in moved_to if not os.path.lexists(os_bytes(path))]
    folder = suppress_errors(os.stat, os_bytes(plan.keeps))
    if not folder or plan.facts.get("old", folder.st_ino) != folder.st_ino:
        lost.append(plan.keeps)
    if lost:
        raise Refused(
            "the old data is not in %s: moved, deleted, or its disk is not mounted" % lost[0],
            "ls -la %s; findmnt; mount the disk first" % quote_word(plan.keeps),
        )


def list_made_since(host: Host, facts: dict) -> List[str]:
    """Containers and image tags that the finished change did not know, and where the data of now
    stays."""
    lines = []
    if "containers" in facts:
        for kind, names in object_names(host).items():
            known = facts.get(kind, ())
            noun = kind[: -len("s")]
            lines += ["%s %s" % (noun, name) for name in names if name not in known]
    if facts.get("left"):
        lines.append("all that is in " + facts["left"])
    return lines


# discard.


def run_discard(host: Host, opts: Options, report: dict) -> None:
    """Deletes the old data of a finished (or undone) change; from then on there is no way back."""
    lock_storage(host, opts)
    journal = finished_change(host, opts.arguments[0])
    plan = journal.plan
    there = os.path.lexists(os_bytes(plan.keeps))
    if there:
        require_kept_data(plan, all_of_it=False)
    require_out_of_use(host, report, plan)
    steps = discard_steps(plan.keeps)
    if opts.dry_run:
        deleting = plan._replace(goal="delete " + plan.keeps, steps=steps, facts={})
        report["script"] = plan_script(report, deleting)
    else:
        confirm(opts, "delete %s for good (the old data of %s)?" % (plan.keeps, plan.name))
        run_discard_steps(host, opts, journal, steps)
        remove_file(record_path(host, plan))
    msg = "%s was not there any more; its record goes" % plan.keeps
    if there:
        msg = "%s is deleted" % plan.keeps
    change_row(report, plan._replace(keeps=""), "changed", msg)


def require_out_of_use(host: Host, report: dict, plan: Plan) -> None:
    """Refuses to delete what a daemon of this host has as its root, whichever one the docker
    command speaks to."""
    answer = ask_engine(host)
    for finding in answer.findings:
        add_finding(report, finding)
    roots = [configured_root()]
    if answer.info:
        roots.append(answer.info.root)
    if any((real_path(root) + "/").startswith(plan.keeps + "/") for root in roots):
        raise Refused(
            "%s is Docker's root now: nothing of it is old data" % plan.keeps,
            "rm %s, the record of the change" % quote_word(record_path(host, plan)),
        )
    users = [pid for pid in all_processes() if process_uses(pid, plan.keeps)]
    if users:
        names = ", ".join(process_name(pid) for pid in users[:3])
        verb = "has" if len(users) == 1 else "have"
        raise Refused(
            "%s is in use: %s %s files of it open" % (plan.keeps, names, verb),
            "end that first; a daemon there has it as its root",
        )


def discard_steps(folder: str) -> Tuple[Step, ...]:
    """The proof that nobody has the folder mounted, and the deleting."""
    if os.path.ismount(os_bytes(folder)):  # a mount point cannot go itself: only what is in it
        unused = not_mounted_test([], prefix=folder + "/")
        delete = ("find", folder, "-xdev", "-mindepth", "1", "-delete")
        gone = ("silent", "find", folder, "-mindepth", "1")
    else:
        unused = not_mounted_test([folder])
        delete = ("rm", "-rf", "--one-file-system", "--", folder)
        gone = ("not", "test", "-e", folder)
    return (
        Step("unused", "nothing uses " + folder, check=(unused,)),
        Step("delete", "delete " + folder, delete, (gone,)),
    )


def run_discard_steps(host: Host, opts: Options, journal: Journal, steps: Sequence[Step]) -> None:
    progress = Progress("discard", len(steps), opts.quiet)
    for number, step in enumerate(steps, 1):
        if step.id == "delete":
            # A half-deleted tree is nothing to go back to.
            save_journal(host, journal._replace(state=STATE_DISCARDING))
        do_step(host, step, progress.step(number, step.title, 0))
    progress.end()


###############################################################################
# 29. Output
###############################################################################

# What a run reports becomes text here: one JSON document, or tables for people.
#
# Nothing is decided here and no figure is made here: an unknown figure is printed as "unknown",
# never as 0. Names, messages and output come from containers, so control characters are escaped
# before they are printed. The product goes to stdout, warnings and errors go to stderr.
#
# TABLES has the columns of every table. A command whose results are one table has a row in
# LISTINGS; others have a function show_COMMAND.


class Column(NamedTuple):
    """One column of a table: its title, and the text of its cell for a row. only_with: the column
    is left out where no row has this key."""

    title: str
    cell: Callable[[dict], str]
    only_with: str = ""


def text_of(key: str) -> Callable[[dict], str]:
    """The cell that is the row's own text."""

    def cell(row: dict) -> str:
        return row[key]

    return cell


def size_of(key: str) -> Callable[[dict], str]:
    """The cell of a size in bytes; without the key, and for None, it is unknown."""

    def cell(row: dict) -> str:
        return format_known_size(row.get(key))

    return cell


def short_id(row: dict) -> str:
    return row["id"][:12]


def format_tally(values: List[str], order: Sequence[str]) -> str:
    """'2 changed, 1 failed' of statuses or roles: how often each value of `order` occurs."""
    parts = []
    for value in order:
        number = values.count(value)
        if number:
            parts.append("%d %s" % (number, value))
    return ", ".join(parts)


def render_json(report: dict) -> bytes:
    """One ASCII document: no locale can break it, and no terminal obeys it."""
    document = json.dumps(report, indent=1, ensure_ascii=True)
    return (document + "\n").encode("ascii")


def render_table(columns: Sequence[Column], rows: Sequence[dict]) -> str:
    """A line of titles and a line for each row, aligned; nothing is cut."""
    present = [column for column in columns if is_present(column, rows)]
    lines = [[column.title for column in present]]
    for row in rows:
        cells = [escape_controls(column.cell(row)) for column in present]
        lines.append(cells)
    # The last column is free text, so it is not padded.
    widths = []
    for number in range(len(present) - 1):
        width = max(len(line[number]) for line in lines)
        widths.append(width)
    return "".join(align_line(line, widths) for line in lines)


def is_present(column: Column, rows: Sequence[dict]) -> bool:
    """Whether a column is printed for these rows."""
    if not column.only_with:
        return True
    return any(column.only_with in row for row in rows)


def align_line(cells: List[str], widths: List[int]) -> str:
    """widths: of all cells but the last."""
    aligned = []
    for cell, width in zip(cells, widths):
        aligned.append(cell.ljust(width))
    aligned.append(cells[-1])
    return "  ".join(aligned).rstrip() + "\n"


# The report of `storage`: findings, the driver and its ceilings, and where the space goes.


def cell_used_percent(disk: dict) -> str:
    if disk["used_percent"] is None:
        return "unknown"
    return "%s %%" % disk["used_percent"]


def cell_file_system(disk: dict) -> str:
    return disk["filesystem"] or "unknown"


def cell_purposes(disk: dict) -> str:
    """What of Docker's is on a disk."""
    return ", ".join(disk["for"])


def cell_number(usage: dict) -> str:
    if usage["count"] is None:
        return "unknown"
    return str(usage["count"])


def cell_usage_size(usage: dict) -> str:
    """'at least' where a part of it is unknown."""
    return format_known_size(usage["size"], usage.get("complete", True))


def cell_object_name(row: dict) -> str:
    """A container's or volume's name, or an image's tags; the id where it has none."""
    return row.get("name") or ", ".join(row.get("tags", ())) or short_id(row)


def cell_set_in(option: dict) -> str:
    if option["used"]:
        return option["where"]
    return option["where"] + " (not for the next start)"


POOL_ROWS = (  # the title, and what follows data_ and metadata_ in the pool's facts
    ("ceiling", "total"),
    ("allocated on disk", "allocated"),
    ("free on that disk", "disk_free"),
    ("used", "used"),
    ("available", "available"),
)
LARGEST_ROWS = 10  # of each kind


def show_storage(report: dict, quiet: bool) -> str:
    """The report for people: what is wrong first, then the ceilings, then where the space went."""
    findings = show_findings(report["findings"], quiet)
    if quiet or not report["results"]:
        return findings
    facts = report["results"][0]
    parts = [findings, show_engine(facts)]
    if facts["pool"]:
        parts.append(show_pool(facts["pool"]))
    if facts["disks"]:
        parts.append("\n" + render_table(TABLES["disks"], facts["disks"]))
    parts.append(show_usage(facts))
    parts.append(show_largest(facts))
    parts.append(show_options(facts["options"]))
    return "".join(parts)


def show_findings(findings: List[dict], quiet: bool) -> str:
    """Each with the line to type next. quiet: only what is wrong."""
    out = ""
    for finding in findings:
        severity = finding["severity"]
        if quiet and severity == "info":
            continue
        text = escape_controls(finding["text"])
        remedy = escape_controls(finding["remedy"])
        out += "%-8s  %s\n" % (severity, text)
        out += "          -> %s\n" % remedy
    return out


def show_engine(facts: dict) -> str:
    """The driver, the version and the root, and why the files tell nothing."""
    driver = escape_controls(facts["driver"] or "driver unknown")
    version = escape_controls(facts["server_version"] or "unknown")
    root = escape_controls(facts["root"] or "unknown")
    out = "\n%s, engine %s, root %s\n" % (driver, version, root)
    if facts["msg"]:
        out += facts["msg"] + "\n"
    return out


def show_pool(pool: dict) -> str:
    """The thin pool of devicemapper."""
    name = escape_controls(pool["name"] or "unknown")
    reason = escape_controls(pool["mode_why"] or "")
    state = pool["state"] or "unknown"
    base_size = format_known_size(pool["base_device_size"])
    heading = "\npool %s: %s (%s), state %s, base size %s\n" % (
        name,
        pool["mode"],
        reason,
        state,
        base_size,
    )
    rows = []
    for title, key in POOL_ROWS:
        row = {
            "title": title,
            "data": pool.get("data_" + key),
            "metadata": pool.get("metadata_" + key),
        }
        rows.append(row)
    return heading + render_table(TABLES["pool"], rows)


def show_usage(facts: dict) -> str:
    """A row for each kind. With a message that facts are missing, only the kinds that are known."""
    rows = []
    for kind, usage in facts["usage"].items():
        if facts["msg"] and usage["count"] is None:
            continue
        title = kind.replace("_", " ")
        rows.append(dict(usage, title=title))
    return "\n" + render_table(TABLES["usage"], rows)


def show_largest(facts: dict) -> str:
    """The ten largest of each kind."""
    own = "CONTAINER'S OWN FILES"
    if facts["pool"]:
        own = "CONTAINER, WITH ITS IMAGE'S BLOCKS"
    out = ""
    for kind, title in (
        ("logs", "LOG OF CONTAINER"),
        ("containers", own),
        ("volumes", "VOLUME"),
        ("images", "IMAGE, WHAT ONLY IT HAS"),
    ):
        rows = [row for row in facts["usage"][kind]["rows"] if row["size"]]
        columns = (Column(title, cell_object_name), Column("SIZE", cell_usage_size))
        if rows:
            out += "\n" + render_table(columns, rows[:LARGEST_ROWS])
    return out


def show_options(options: List[dict]) -> str:
    """The daemon's options of the next start, and those that only the running daemon has."""
    next_start = set()
    for row in options:
        if row["used"]:
            next_start.add((row["option"], row["value"]))
    rows = []
    for row in options:
        only_running = (row["option"], row["value"]) not in next_start
        if row["used"] or only_running:
            rows.append(row)
    if not rows:
        return ""
    return "\n" + render_table(TABLES["options"], rows)


# Commands whose results are one table.


def cell_owner_id(row: dict) -> str:
    """The container's id, else the first image's."""
    if row["container"]:
        return short_id(row["container"])
    if row["images"]:
        return short_id(row["images"][0])
    return "-"


def cell_owner_path(row: dict) -> str:
    """The first path, else the layer; then what else is known of it."""
    path = row["layer"]
    if row["paths"]:
        path = row["paths"][0]
    notes = []
    if "device_id" in row:
        notes.append("device id %d" % row["device_id"])
    if row["note"]:
        notes.append(row["note"])
    if not notes:
        return path
    return "%s (%s)" % (path, ", ".join(notes))


def cell_zone(row: dict) -> str:
    return row["zone"] or "?"


def cell_utc_offset(row: dict) -> str:
    return format_utc_offset(row["utc_offset"])


def cell_via(row: dict) -> str:
    """The way a password went, '-' where none was set."""
    return row["via"] or "-"


def cell_verdict(row: dict) -> str:
    if row["status"] == "skipped":
        return "gone"
    return row["verdict"]


def cell_offset(row: dict) -> str:
    """How far the container's clock is off; half the call's duration is the uncertainty."""
    if row["offset"] is None:
        return "?"
    return "%+.1f s (within %.1f)" % (row["offset"], row["uncertainty"])


def is_done(row: dict) -> bool:
    """Whether a container is as it was to be."""
    return row["status"] in ("changed", "unchanged")


def is_kept(row: dict) -> bool:
    """Whether a backup has, or a restore has brought, all of something."""
    return row["status"] != "failed"


def is_removed(row: dict) -> bool:
    return row["status"] == "changed"


def is_never_left_out(row: dict) -> bool:
    """For the commands that only show something: --quiet shows all of it."""
    return False


def is_in_sync(row: dict) -> bool:
    return row["verdict"] == "in sync"


def count_statuses(report: dict) -> str:
    """'2 changed, 1 failed', as the last line."""
    order = ("changed", "unchanged", "skipped", "refused", "failed", "unknown")
    statuses = [row["status"] for row in report["results"]]
    tally = format_tally(statuses, order)
    if not tally:
        tally = "no containers"
    return tally + "\n"


def count_layers(report: dict) -> str:
    """'3 layers: 1 container, 2 image', as the last line."""
    order = ("container", "container-init", "image", "orphan", UNKNOWN)
    roles = [row["role"] for row in report["results"]]
    count = format_count(len(roles), "layer")
    tally = format_tally(roles, order)
    if tally:
        count += ": " + tally
    return count + "\n"


def describe_host_clock(report: dict) -> str:
    """What the containers were compared with."""
    count = format_count(len(report["results"]), "container")
    zone = report["host"]["zone"]
    offset = format_utc_offset(report["host"]["utc_offset"])
    return "%s; the host: %s %s\n" % (count, zone, offset)


def format_estimate(report: dict) -> str:
    """What all candidates give back; 'at least' the sum of the known sizes, 'unknown' where none is
    known."""
    estimate = report.get("promised")
    if estimate is not None:
        return format_size(estimate)
    known = 0
    for row in report["results"]:
        if row["size"] is not None:
            known += row["size"]
    if not known:
        return "unknown"
    return "at least " + format_size(known)


def describe_gain(report: dict) -> str:
    """What `reclaim` has freed, or would free."""
    if not report["results"]:
        return "there is nothing to reclaim\n"
    if "freed" in report:
        out = "freed on the disk: %s (measured)\n" % format_known_size(report["freed"])
    else:
        out = (
            "all of it: %s; nothing was removed: choose categories, such as --logs --containers\n"
            % format_estimate(report)
        )
    return out + describe_pool_gain(report)


def describe_pool_gain(report: dict) -> str:
    """What devicemapper's pool and its loop file have given back; '' without a pool."""
    out = ""
    for key, title in (
        ("pool_data_used", "used in the pool"),
        ("loop_file_allocated", "the pool's loop file"),
    ):
        if key not in report.get("after", ()):
            continue
        before = format_known_size(report["before"][key])
        after = format_known_size(report["after"][key])
        out += "%s: %s -> %s\n" % (title, before, after)
    return out


def list_left_out(report: dict) -> str:
    """What a backup could not keep, a line for each."""
    lines = []
    for name in report.get("left_out", ()):
        line = "not in the backup: %s\n" % escape_controls(name)
        lines.append(line)
    return "".join(lines)


class Listing(NamedTuple):
    """How the results of a command become one table.

    table: its name in TABLES.
    expected(row): the row is as it should be, so --quiet leaves it out.
    footer(report): the text below the table, which --quiet leaves out.
    """

    table: str
    expected: Callable[[dict], bool]
    footer: Callable[[dict], str]


LISTINGS = {
    "chpasswd": Listing("containers", is_done, count_statuses),
    "timezone": Listing("containers", is_done, count_statuses),
    "faketime": Listing("containers", is_done, count_statuses),
    "backup": Listing("backup", is_kept, list_left_out),
    "restore": Listing("backup", is_kept, list_left_out),
    "clock": Listing("clock", is_in_sync, describe_host_clock),
    "owner": Listing("owner", is_never_left_out, count_layers),
    "reclaim": Listing("reclaim", is_removed, describe_gain),
}


# Every table, from the left: a column's title, and how its cell comes from a row.
TABLES = {
    "containers": (
        Column("CONTAINER", text_of("target")),
        Column("ID", short_id),
        Column("STATUS", text_of("status")),
        Column("VIA", cell_via, only_with="via"),
        Column("MESSAGE", text_of("msg")),
    ),
    "backup": (
        Column("NAME", text_of("target")),
        Column("STATUS", text_of("status")),
        Column("MESSAGE", text_of("msg")),
    ),
    "clock": (
        Column("CONTAINER", text_of("target")),
        Column("ID", short_id),
        Column("VERDICT", cell_verdict),
        Column("ZONE", cell_zone),
        Column("UTC", cell_utc_offset),
        Column("CLOCK", cell_offset),
        Column("MESSAGE", text_of("msg")),
    ),
    "owner": (
        Column("ROLE", text_of("role")),
        Column("DRIVER", text_of("driver")),
        Column("OWNER", format_owner),
        Column("ID", cell_owner_id),
        Column("SIZE", size_of("size"), only_with="size"),
        Column("PATH", cell_owner_path),
    ),
    "reclaim": (
        Column("CATEGORY", text_of("category")),
        Column("NAME", text_of("target")),
        Column("SIZE", size_of("size")),
        Column("STATUS", text_of("status")),
        Column("MESSAGE", text_of("msg")),
    ),
    # Those of `storage`.
    "pool": (
        Column("POOL", text_of("title")),
        Column("DATA", size_of("data")),
        Column("METADATA", size_of("metadata")),
    ),
    "disks": (
        Column("DISK", text_of("path")),
        Column("SIZE", size_of("total")),
        Column("FREE", size_of("free")),
        Column("USED", cell_used_percent),
        Column("FILE SYSTEM", cell_file_system),
        Column("FOR", cell_purposes),
    ),
    "usage": (
        Column("USED BY", text_of("title")),
        Column("NUMBER", cell_number),
        Column("SIZE", cell_usage_size),
    ),
    "options": (
        Column("OPTION", text_of("option")),
        Column("VALUE", text_of("value")),
        Column("SET IN", cell_set_in),
    ),
}


def show_listing(report: dict, quiet: bool) -> str:
    """The table of a command's results and the text below it."""
    listing = LISTINGS[report["command"]]
    rows = []
    for row in report["results"]:
        if not quiet or not listing.expected(row):
            rows.append(row)
    out = ""
    if rows:
        out = render_table(TABLES[listing.table], rows)
    if not quiet:
        out += listing.footer(report)
    return out


# Commands whose results are no table.


def show_exec(report: dict, quiet: bool) -> str:
    """A heading for each container, then its output, each line under the container's name."""
    out = []
    for row in report["results"]:
        out.append(exec_heading(row))
        out += stream_lines(row, "stdout", "|")
        out += stream_lines(row, "stderr", "!")
    if not quiet:
        out.append(count_statuses(report))
    return "".join(out)


def exec_heading(row: dict) -> str:
    """The exit status, or why there is none."""
    outcome = row["status"]
    reason = ""
    if row["rc"] is not None:
        outcome = "exit %d" % row["rc"]
    elif row["msg"]:
        reason = ": " + escape_controls(row["msg"])
    name = escape_controls(row["target"])
    return "== %s: %s, %.1f s%s\n" % (name, outcome, row["seconds"], reason)


def stream_lines(row: dict, stream: str, mark: str) -> List[str]:
    """What a program wrote to stdout or stderr."""
    prefix = "%s %s " % (escape_controls(row["target"]), mark)
    lines = []
    for line in split_output(row[stream]):
        lines.append(prefix + line + "\n")
    cut = row.get("cut", {}).get(stream)
    if cut:
        lines.append("%s[cut: %d more bytes of %s]\n" % (prefix, cut, stream))
    return lines


def split_output(text: str) -> List[str]:
    """The lines of a program's output, escaped. Tabs stay: a terminal only moves on at them."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    escaped = []
    for line in lines:
        parts = [escape_controls(part) for part in line.split("\t")]
        escaped.append("\t".join(parts))
    return escaped


def show_change(report: dict, quiet: bool) -> str:
    """A line for each result of a storage change; where old data stays, how to get back to it and
    how to delete it."""
    out = ""
    for row in report["results"]:
        name = escape_controls(row["target"])
        outcome = escape_controls(row["msg"] or row["status"])
        out += "%s: %s\n" % (name, outcome)
        if not quiet and row.get("keeps") and row["status"] == "changed":
            out += "  %s\n" % escape_controls(describe_old_data(row))
    return out


def describe_old_data(row: dict) -> str:
    """The commands that lead back, or let go of the old data."""
    folder = row["keeps"]
    # The options name the same state folder and docker command.
    name = row.get("options", "") + row["id"]
    text = "the old data is kept in %s; rollback %s goes back" % (folder, name)
    if row["msg"].startswith("undone"):
        text = "what is set aside is kept in %s" % folder
    return "%s; discard %s deletes it" % (text, name)


def print_errors(findings: List[dict], errors: List[dict]) -> None:
    """On stderr, each with the line to type next."""
    for finding in findings:
        severity = finding["severity"]
        say("dockfix: %s: %s" % (severity, finding["text"]))
        say("  remedy: %s" % finding["remedy"])
    for error in errors:
        say("dockfix: error: %s" % error["msg"])
        if error["hint"]:
            say("  hint: %s" % error["hint"])


def emit(report: dict, opts: Options, command: Optional["Command"]) -> None:
    """Prints all that a run reports, once: the product on stdout, the rest on stderr. Raises
    DockfixError where stdout takes no more."""
    statuses = [row.get("status") for row in report["results"]]
    report["ok"] = report["exit_code"] == 0
    report["changed"] = "changed" in statuses and not report["dry_run"]
    if opts.json:
        write_out(render_json(report))
        return
    findings = report["findings"]
    if command and command.shows_findings and report["results"]:
        findings = []  # command.show has them
    print_errors(findings, report["errors"])
    text = ""
    if "script" in report:
        text = report["script"]
    elif command and (report["results"] or not report["errors"]):
        text = command.show(report, opts.quiet)
    if text:
        write_out(text.encode("utf-8", "backslashreplace"))


###############################################################################
# 30. The command table
###############################################################################

# COMMANDS says everything about each command: its options, its function, how its results are shown,
# its examples. The parser and every help text are made from it, so that they cannot differ.
#
# Two traps of argparse: in a subparser, the default of a shared option overwrites the value that
# stood before the command, so there are no subparsers; and a value such as -1.5d is taken for an
# option. A command line is refused (UsageError) before anything is looked at, and a word that may
# be a password is never repeated in the message.


# How an option is declared.


class Option(NamedTuple):
    """An option as argparse's add_argument takes it.

    Its field in Options has the option's name, or settings["dest"]. Where the option is not given,
    the field keeps its default: none is declared here.
    """

    names: Tuple[str, ...]
    settings: dict


def flag_option(*names: str, help: str, **settings: str) -> Option:
    """An option without a value: True where it is given."""
    return Option(names, dict(settings, action="store_true", default=argparse.SUPPRESS, help=help))


def value_option(*names: str, help: str, metavar: str, **settings: object) -> Option:
    """An option with a value. type: what makes the value of its text, and raises UsageError;
    without it the value is the text."""
    return Option(names, dict(settings, default=argparse.SUPPRESS, help=help, metavar=metavar))


def list_option(*names: str, help: str, metavar: str, **settings: object) -> Option:
    """An option that may be repeated: its value is a tuple of texts."""
    return value_option(*names, help=help, metavar=metavar, action="append", **settings)


def number_option(
    name: str, help: str, metavar: str, low: float, high: float, kind: type = float
) -> Option:
    """An option whose value is a number of this kind (float, int), from low to high."""

    def parse(text: str) -> float:
        return kind(parse_number(name, text, low, high))

    return value_option(name, help=help, metavar=metavar, type=parse)


def parse_number(name: str, text: str, low: float, high: float) -> float:
    """The number of the option `name`. Raises UsageError."""
    try:
        number = float(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise UsageError("%s takes a number from %g to %g, not %s" % (name, low, high, text))
    return number


def parse_age(text: str) -> int:
    """Seconds of '90s', '15m', '12h' or '30d'. Raises UsageError."""
    found = re.match(r"([0-9]{1,6})([smhd])\Z", text, re.A)
    if not found:
        raise UsageError(
            "not an age: %s" % text, "a number and one unit of s m h d, such as 12h or 30d"
        )
    return int(found.group(1)) * UNITS[found.group(2)]


def split_option(option: str, text: str) -> List[str]:
    """The words of a command that an option names, as a shell splits them. Raises UsageError."""
    try:
        words = shlex.split(text)
    except ValueError as err:
        raise UsageError("%s %s: %s" % (option, text, err)) from None
    if not words:
        raise UsageError("%s names no command" % option)
    return words


def words_option(name: str, help: str, metavar: str) -> Option:
    """An option whose value is the words of a command."""

    def parse(text: str) -> Tuple[str, ...]:
        return tuple(split_option(name, text))

    return value_option(name, help=help, metavar=metavar, type=parse)


def state_path(text: str) -> str:
    """The path of --state; an empty one is as if it were not given."""
    if not text:
        return default_state()
    return os.path.abspath(text)


GLOBAL_OPTIONS = (
    flag_option("--json", help="one JSON document on stdout, whatever happens"),
    flag_option(
        "-n", "--dry-run", help="change nothing; print a shell script of what would be done"
    ),
    flag_option("-y", "--yes", help="answer yes to yes/no questions"),
    flag_option("-q", "--quiet", help="no progress; list only what is not done"),
    flag_option("-v", "--verbose", help="show each docker call on stderr"),
    words_option(
        "--docker",
        metavar="CMD",
        help=(
            "docker command, split as a shell splits words (default: $DOCKFIX_DOCKER, else docker)"
        ),
    ),
    number_option(
        "--timeout",
        metavar="SECONDS",
        low=0.1,
        high=1e6,
        help="bound of each container's call (default: 60)",
    ),
    value_option(
        "--state",
        metavar="DIR",
        type=state_path,
        help="lock and state folder (default: /var/lib/dockfix)",
    ),
    flag_option("--version", help="version, sha256 of this file, Python"),
)
CHANGE_OPTIONS = (
    flag_option("--exit-code", help="with --dry-run: exit 4 when there is something to do"),
)
CHOOSING_OPTIONS = (
    flag_option("--all", help="all running, paused and restarting containers"),
    flag_option("--stopped", help="with the stopped ones; implies --all"),
    list_option(
        "--filter",
        metavar="K=V",
        help="as for docker ps --filter; implies --all",
    ),
    list_option(
        "--from",
        metavar="FILE",
        dest="from_file",
        help="names, one a line, # comments; - is standard input",
    ),
    list_option(
        "--exclude",
        metavar="GLOB",
        help="leave these out, last of all",
    ),
    flag_option("--allow-empty", help="--all that matches nothing is a success"),
    number_option(
        "--jobs",
        metavar="N",
        low=1,
        high=1000,
        kind=int,
        help="containers at a time (default: 2 for each CPU, at most 8)",
    ),
    *CHANGE_OPTIONS,
)
ROOT_OPTION = value_option(
    "--root",
    metavar="DIR",
    help="a Docker root that is not the daemon's: another disk's, or a copy",
)
STORAGE_OPTIONS = (
    flag_option("--full", help="finish every walk, however long it takes (default: 10 s in all)"),
    flag_option(
        "--quick", help="no walks: what docker info, the records, stat and dmsetup say at once"
    ),
    ROOT_OPTION,
    value_option(
        "--docker-info",
        metavar="FILE",
        help="a saved docker info of another host, text or JSON; - is standard input",
    ),
    flag_option("--check", help="exit 3 when a finding is a warning or worse"),
    number_option(
        "--warning",
        metavar="PERCENT",
        low=0,
        high=100,
        help="fullness of data, metadata or disk that is a warning (default: 80)",
    ),
    number_option(
        "--critical",
        metavar="PERCENT",
        low=0,
        high=100,
        help="fullness that is critical (default: 90)",
    ),
)
OWNER_OPTIONS = (
    flag_option(
        "--orphans", help="only layers that nothing uses, with their sizes; deletes nothing"
    ),
    ROOT_OPTION,
)
CHPASSWD_OPTIONS = (
    value_option("--password-file", metavar="FILE", help="one password, one line, for --user"),
    flag_option("--password-stdin", help="the same from standard input"),
    flag_option(
        "--generate", help="a new password of 20 characters for each container; needs --output"
    ),
    value_option(
        "--output",
        metavar="FILE",
        help="where --generate writes NAME, ID, USER, PASSWORD; must not exist",
    ),
    value_option(
        "--user",
        metavar="USER",
        help="whose password (default: root); lines on standard input name their own",
    ),
    flag_option("-e", "--encrypted", help="the values are hashes ($5$, $6$, $2b$, $y$) already"),
    value_option(
        "--via",
        metavar="WAY",
        choices=("auto", "exec", "proc", "cp"),
        help="auto, exec, proc or cp (default: auto, in this order)",
    ),
    flag_option("--unlock", help="set a password also where an administrator locked the account"),
    flag_option("--allow-shared-etc", help="also where /etc is a mount, but never the host's own"),
)
EXEC_OPTIONS = (
    value_option("-u", "--user", metavar="USER", help="run as this user (docker exec -u)"),
    value_option(
        "--script",
        metavar="FILE",
        help=(
            "run this script: it goes to 'sh -s' on standard input; words after -- are its"
            " arguments"
        ),
    ),
    words_option("--shell", metavar="SHELL", help="the shell for --script (default: sh)"),
    value_option(
        "--stdin",
        metavar="FILE",
        help="standard input of the command (default: empty); - is dockfix's own",
    ),
    value_option(
        "--max-output",
        metavar="SIZE",
        type=parse_size,
        help="keep so much of each stream (default: 1M)",
    ),
)
FAKETIME_OPTIONS = (
    value_option(
        "--offset",
        metavar="SPEC",
        help="a sign, a number, one unit of s, m, h, d, y (365 days): +8h, -1.5d",
    ),
    value_option(
        "--at",
        metavar="TIME",
        help="'YYYY-MM-DD HH:MM:SS': the clock stands there now, and runs on",
    ),
    value_option(
        "--zone",
        metavar="NAME",
        help="the zone of --at, such as Asia/Shanghai or UTC (default: the host's)",
    ),
    flag_option("--undo", "--off", help="put back what was there"),
    flag_option("--status", help="show what is set"),
    list_option(
        "--lib",
        metavar="FILE",
        help=(
            "a libfaketime.so.1; may be repeated, the first that fits is used (default: the host's)"
        ),
    ),
    value_option(
        "--build-from",
        metavar="DIR",
        help="compile libfaketime's source inside the container (it needs gcc and make)",
    ),
    flag_option("--restart", help="stop and start it, so that its first process follows; asks"),
    flag_option(
        "--step-running", help="move the clock of running programs that use libfaketime already"
    ),
    number_option(
        "--watch",
        metavar="SECONDS",
        low=0,
        high=3600,
        help="watch the container for so long; undo if it fails (default: 10)",
    ),
)
RECLAIM_OPTIONS = (
    flag_option(
        "--logs", dest="take_logs", help="empty the json logs longer than --max-log, in place"
    ),
    value_option(
        "--max-log", metavar="SIZE", type=parse_size, help="how long a log may be (default: 100M)"
    ),
    flag_option(
        "--trim",
        dest="take_trim",
        help=(
            "devicemapper: give what running containers have deleted back to the pool and the disk"
        ),
    ),
    flag_option("--containers", dest="take_containers", help="remove the stopped containers"),
    value_option(
        "--older-than",
        metavar="AGE",
        type=parse_age,
        help="only those stopped for so long, such as 12h or 30d",
    ),
    flag_option(
        "--images", dest="take_images", help="remove the dangling images (no name, no container)"
    ),
    flag_option("--unused", help="with --images: all that no container was made from"),
    flag_option("--build-cache", dest="take_build_cache", help="empty BuildKit's cache"),
    value_option(
        "--volumes",
        dest="take_volumes",
        metavar="NAME",
        nargs="+",
        help="remove these volumes, if no container has them",
    ),
    *CHANGE_OPTIONS,
)
CLOCK_OPTIONS = (
    flag_option("--check", help="exit 3 where a container is not in sync"),
    number_option(
        "--max-skew",
        metavar="SECONDS",
        low=0,
        high=1e9,
        help="how far a clock may be off (default: 2)",
    ),
)
TIMEZONE_OPTIONS = (
    value_option(
        "--zone",
        metavar="NAME",
        help="this zone, such as Asia/Shanghai; it must be one of the host's",
    ),
    flag_option("--host", help="the host's zone (the default)"),
    flag_option("--restart", help="restart the running containers afterwards; asks first"),
    flag_option("--undo", help="put back what was there before dockfix's first change of the zone"),
)


class Command(NamedTuple):
    """A command: its help and its functions."""

    name: str
    summary: str  # its line in the list of commands
    usage: str  # the first line of its --help
    options: Tuple[Option, ...]
    run: Callable[[Host, Options, dict], None]  # run(host, opts, report) does the work
    show: Callable[[dict, bool], str]  # show(report, quiet) returns the text for people
    examples: str  # the rest of its --help
    # (least, most) arguments that it takes itself; None where it chooses containers
    arguments: Optional[Tuple[int, int]] = None
    shows_findings: bool = False  # the text of `show` has the findings in it

    def all_options(self) -> Tuple[Option, ...]:
        if self.arguments is None:
            return self.options + CHOOSING_OPTIONS
        return self.options


LOSE_OPTION = list_option(
    "--lose-autoremove",
    metavar="NAME",
    help="this --rm container may vanish when docker stops",
)
POOL_OPTIONS = (
    *CHANGE_OPTIONS,
    value_option(
        "--data",
        metavar="SIZE",
        type=parse_size_request,
        help="of the data file: 500G, 20GiB, or +100G for so much more",
    ),
    value_option(
        "--metadata", metavar="SIZE", type=parse_size_request, help="of the metadata file"
    ),
    flag_option(
        "--offline", help="grow: stop docker and its containers meanwhile, and start them again"
    ),
    flag_option("--overcommit", help="also beyond what the disk can take"),
    value_option(
        "--base-size",
        metavar="SIZE",
        type=parse_size,
        help="recreate: size of each container's file system",
    ),
    value_option("--driver", metavar="NAME", help="recreate: overlay2, without a pool"),
    value_option("--backup", metavar="DIR", help="recreate: folder for the backup; it stays"),
    LOSE_OPTION,
)
BACKUP_OPTIONS = (
    *CHANGE_OPTIONS,
    flag_option(
        "--verify", help="read the backup again: each file against its sha256, each image whole"
    ),
    value_option("--step", metavar="NAME", help="for the script of a dry run: this step only"),
)
RELOCATE_OPTIONS = (
    *CHANGE_OPTIONS,
    flag_option("--no-presync", help="no first copy while Docker runs"),
    LOSE_OPTION,
)
COMMANDS = (
    Command(
        name="storage",
        summary="where the space goes, which ceiling comes next, and what to type",
        usage="storage [OPTIONS]",
        options=STORAGE_OPTIONS,
        run=run_storage,
        show=show_storage,
        examples="""\
  python3 dockfix.py storage                              the whole report
  python3 dockfix.py storage --check --quick              for a monitor: exit 3 on a warning
  python3 dockfix.py storage --docker-info saved.txt      for another host, from its docker info

Nothing is changed. One docker call, however many containers; works with the daemon down, from the
files.""",
        arguments=(0, 0),
        shows_findings=True,
    ),
    Command(
        name="owner",
        summary="which container or image a layer's folder or device belongs to, and back",
        usage="owner [OPTIONS] [HASH|PATH|DEVICE|CONTAINER|IMAGE ...]",
        options=OWNER_OPTIONS,
        run=run_owner,
        show=show_listing,
        examples="""\
  python3 dockfix.py owner                                all layers and whose they are
  python3 dockfix.py owner 92fd3b3e /dev/dm-3 web1        a hash's beginning, a device, a container
  python3 dockfix.py owner /var/lib/docker/overlay2/4b*   paths, and whatever is below one
  python3 dockfix.py owner --root /mnt/disk/docker        a root of another host

It reads Docker's own files, so it works with the daemon down; when the daemon answers, the
containers are checked against docker inspect. Nothing is changed.""",
        arguments=(0, 10000),
    ),
    Command(
        name="reclaim",
        summary="give space back: logs, trim, containers, images, build cache, volumes",
        usage="reclaim [OPTIONS]",
        options=RECLAIM_OPTIONS,
        run=run_reclaim,
        show=show_listing,
        examples="""\
  python3 dockfix.py reclaim                              what each category would free
  python3 dockfix.py reclaim --logs --max-log 500M        on a full disk: needs no daemon
  python3 dockfix.py reclaim --containers --older-than 30d --images
  python3 dockfix.py reclaim --volumes old-db             a volume goes only by its name

It shows every object, its size and what will be lost, and asks. Nothing that is in use is
touched.""",
        arguments=(0, 0),
    ),
    Command(
        name="pool",
        summary="a devicemapper loop pool: larger in place, or created again from a backup",
        usage="pool grow|recreate [OPTIONS]",
        options=POOL_OPTIONS,
        run=run_pool,
        show=show_change,
        examples="""\
  python3 dockfix.py pool grow --data +100G
  python3 dockfix.py pool grow --metadata 4G --offline
  python3 dockfix.py pool recreate --data 40G --base-size 20G --backup /mnt/usb/kept
  python3 dockfix.py pool recreate --driver overlay2 --backup /mnt/usb/kept

grow keeps everything, and stops nothing unless --offline is given. The daemon's options for the
next start are changed in the file that sets them. recreate makes a full backup, stops Docker, sets
the old pool aside (rollback goes back to it, discard deletes it), creates a new one, and brings
images, containers and networks back; volumes stay where they are.""",
        arguments=(1, 1),
    ),
    Command(
        name="relocate",
        summary="move the Docker root to another disk",
        usage="relocate [OPTIONS] NEW_ROOT",
        options=RELOCATE_OPTIONS,
        run=run_relocate,
        show=show_change,
        examples="""\
  python3 dockfix.py relocate /data/docker --dry-run
  python3 dockfix.py relocate /data/docker

A first copy while Docker runs, then a stop, a second copy, the option changed in the file that sets
it, a start. The old root is kept until discard; rollback goes back at any point.""",
        arguments=(1, 1),
    ),
    Command(
        name="backup",
        summary="keep images, containers, networks and volumes in a folder",
        usage="backup [--verify] DIR",
        options=BACKUP_OPTIONS,
        run=run_backup,
        show=show_listing,
        examples="""\
  python3 dockfix.py backup /mnt/usb/docker-backup
  python3 dockfix.py backup --verify /mnt/usb/docker-backup

DIR must be new or empty. Containers go on running: a volume that is written meanwhile is kept as
after a power cut.""",
        arguments=(1, 1),
    ),
    Command(
        name="restore",
        summary="bring back what a backup holds",
        usage="restore DIR",
        options=CHANGE_OPTIONS,
        run=run_restore,
        show=show_listing,
        examples="""\
  python3 dockfix.py restore /mnt/usb/docker-backup

Nothing that exists is overwritten; what is there and equal stays as it is. What ran runs
again.""",
        arguments=(1, 1),
    ),
    Command(
        name="resume",
        summary="finish a storage change that was interrupted",
        usage="resume",
        options=CHANGE_OPTIONS,
        run=run_resume,
        show=show_change,
        examples="""\
  python3 dockfix.py resume

After a kill, a Ctrl-C or a power cut: goes on with the step that was begun, in the direction in
which the change was going.""",
        arguments=(0, 0),
    ),
    Command(
        name="rollback",
        summary="undo a storage change, half-way or finished",
        usage="rollback [NAME]",
        options=CHANGE_OPTIONS,
        run=run_rollback,
        show=show_change,
        examples="""\
  python3 dockfix.py rollback
  python3 dockfix.py rollback pool-recreate-20240131-120000

Everything is as before: the old data, the old options, what ran runs. What was made since is set
aside, not deleted.""",
        arguments=(0, 1),
    ),
    Command(
        name="discard",
        summary="delete the old data that a storage change has kept",
        usage="discard NAME",
        options=CHANGE_OPTIONS,
        run=run_discard,
        show=show_change,
        examples="""\
  python3 dockfix.py discard pool-recreate-20240131-120000

Only this deletes what pool recreate, relocate and rollback have set aside.""",
        arguments=(1, 1),
    ),
    Command(
        name="chpasswd",
        summary="set a user's password in many containers",
        usage="chpasswd [OPTIONS] [CONTAINER ...]",
        options=CHPASSWD_OPTIONS,
        run=run_chpasswd,
        show=show_listing,
        examples="""\
  echo 'root:NEW' | python3 dockfix.py chpasswd --all
  python3 dockfix.py chpasswd web1 'db-*' --password-file /root/pw
  python3 dockfix.py chpasswd --all --generate --output /root/new-passwords

The password becomes a SHA-512 hash here; the container never sees the clear text. It comes from one
source: USER:PASSWORD lines on standard input, --password-file, --password-stdin, --generate, or a
prompt on a terminal. Each change is read back; the host's own accounts are watched.""",
    ),
    Command(
        name="exec",
        summary="run one command, or a script, in many containers",
        usage="exec [OPTIONS] [CONTAINER ...] -- CMD [ARG ...]",
        options=EXEC_OPTIONS,
        run=run_exec,
        show=show_exec,
        examples="""\
  python3 dockfix.py exec --all -- cat /etc/os-release
  python3 dockfix.py exec web1 web2 -u 1000 -- ls -n /srv
  python3 dockfix.py exec --all --script fix.sh

A line of output is NAME | TEXT, of error output NAME ! TEXT; control characters are escaped. Do not
put a secret into CMD: docker events shows it; --stdin FILE carries one.""",
    ),
    Command(
        name="clock",
        summary="compare the containers' clocks and zones with the host's",
        usage="clock [OPTIONS] [CONTAINER ...]",
        options=CLOCK_OPTIONS,
        run=run_clock,
        show=show_listing,
        examples="""\
  python3 dockfix.py clock --all
  python3 dockfix.py clock --all --stopped --check --json

Verdicts: in sync, other zone, TZ variable wins, no tzdata, shifted by libfaketime, cannot tell.
Containers that are stopped or have no `date` are judged by TZ and their zone file.""",
    ),
    Command(
        name="timezone",
        summary="give containers the host's zone, or another",
        usage="timezone [OPTIONS] [CONTAINER ...]",
        options=TIMEZONE_OPTIONS,
        run=run_timezone,
        show=show_listing,
        examples="""\
  python3 dockfix.py timezone --all
  python3 dockfix.py timezone web1 --zone Asia/Shanghai --restart
  python3 dockfix.py timezone --all --undo

Writes the zone's data, /etc/timezone and the link /etc/localtime, which glibc, musl and Java
understand, also in images without tzdata. Refused where a TZ variable or a mount would win. What
was there is kept for --undo.""",
    ),
    Command(
        name="faketime",
        summary="shift the clock of containers through libfaketime, and put it back",
        usage="faketime [OPTIONS] [CONTAINER ...]",
        options=FAKETIME_OPTIONS,
        run=run_faketime,
        show=show_listing,
        examples="""\
  python3 dockfix.py faketime web1 --offset +8h --restart
  python3 dockfix.py faketime web1 --at '2030-01-01 00:00:00' --zone Asia/Shanghai
  python3 dockfix.py faketime --all --status
  python3 dockfix.py faketime web1 --undo --restart

For glibc containers that run. The library is tried in one exec before any file names it; where a
container does not run well with it, all is undone. New processes follow at once, the first process
after a restart.""",
    ),
)
BRIEF_HELP = """\
usage: python3 dockfix.py [GLOBAL] COMMAND [OPTIONS] [CONTAINER ...]
commands: %s""" % ", ".join(command.name for command in COMMANDS)
TOP_HELP = """\
usage: python3 dockfix.py [GLOBAL] COMMAND [OPTIONS] [CONTAINER ...]

Repairs Docker where nothing can be installed: one file, no network, the docker command only.

examples:
  echo 'root:NEW' | python3 dockfix.py chpasswd --all     a new root password in every container
  python3 dockfix.py chpasswd --all --dry-run             what that would do, as a shell script
  python3 dockfix.py exec --all -- date                   one command in every container
  python3 dockfix.py owner 4b7c /dev/dm-3 web             whose layer that is, and back
  python3 dockfix.py timezone --all                       the host's time zone in every container

commands (COMMAND --help tells more):
%s
global options, before or after the command:
%s
exit codes: 0 done, 1 failed and nothing changed, 2 usage, 3 some targets not done, 4 changes
pending (--dry-run --exit-code), 5 refused, 6 environment (docker, daemon, permission), 7 half-way,
8 locked
"""


class Parser(argparse.ArgumentParser):
    # Without annotations: typing has NoReturn only since Python 3.6.2.
    def error(self, message):
        """Raises UsageError, where argparse would print and exit."""
        # argparse repeats the word behind --flag=WORD, which may be a password
        message = re.sub(r"(ignored explicit argument) .*", r"\1 ...", message, flags=re.S)
        command = ""
        if self.prog != "dockfix":
            command = self.prog + " "
        raise UsageError(message, "python3 dockfix.py %s--help" % command)


def make_parser(command: Optional[Command]) -> Parser:
    """One parser for the global options and those of the command, wherever they stand."""
    name = "dockfix"
    options = GLOBAL_OPTIONS  # type: Tuple[Option, ...]
    if command:
        name = command.name
        options = GLOBAL_OPTIONS + command.all_options()
    parser = Parser(prog=name, add_help=False, allow_abbrev=False)
    for option in options:
        parser.add_argument(*option.names, **option.settings)
    parser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS)
    if command:
        parser.add_argument("containers", nargs="*", metavar="CONTAINER")
    return parser


HELP_COLUMN = 27  # where the text of an option starts
HELP_WIDTH = 100


def format_help_line(term: str, text: str) -> str:
    """An option or a command and its text, which goes on below itself where it is long."""
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + 1 + len(word) > HELP_WIDTH - HELP_COLUMN:
            lines.append(word)
        else:
            lines[-1] = (lines[-1] + " " + word).lstrip()
    return "  %-24s %s\n" % (term, ("\n" + " " * HELP_COLUMN).join(lines))


def format_options(options: Sequence[Option]) -> str:
    out = ""
    for option in options:
        term = ", ".join(option.names)
        if "metavar" in option.settings:
            term += " " + option.settings["metavar"]
        out += format_help_line(term, option.settings["help"])
    return out


def help_text(command: Optional[Command]) -> str:
    if command is None:
        commands = ""
        for known in COMMANDS:
            commands += format_help_line(known.name, known.summary)
        return TOP_HELP % (commands, format_options(GLOBAL_OPTIONS))
    out = "usage: python3 dockfix.py %s\n\n%s\n\n%s\n" % (
        command.usage,
        command.summary,
        command.examples,
    )
    if command.options:
        out += "\noptions:\n" + format_options(command.options)
    if command.arguments is None:
        out += "\nwhich containers:\n" + format_options(CHOOSING_OPTIONS)
    return out + "\nglobal options:\n" + format_options(GLOBAL_OPTIONS)


# From the words of a command line to typed options.


def split_command(words: List[str]) -> Tuple[Optional[str], List[str]]:
    """The command's name, None where there is none, and the other words. The command is the first
    word that is neither an option nor the value of one."""
    with_value = set()  # type: Set[str]
    for option in GLOBAL_OPTIONS:
        if "metavar" in option.settings:
            with_value.update(option.names)
    is_value = False
    for number, word in enumerate(words):
        if is_value:
            is_value = False
        elif word.startswith("-"):
            is_value = word in with_value
        else:
            return word, words[:number] + words[number + 1 :]
    return None, words


def find_command(name: Optional[str]) -> Optional[Command]:
    """None where no command is given; UsageError for one that does not exist."""
    if name is None:
        return None
    for command in COMMANDS:
        if command.name == name:
            return command
    names = ", ".join(command.name for command in COMMANDS)
    raise UsageError(
        "%s is not a command; the commands are: %s" % (hide_value(name), names),
        "python3 dockfix.py --help",
    )


def adapt_to_argparse(words: List[str]) -> List[str]:
    """The same words in the form that every argparse understands."""
    adapted = []
    for word in words:
        # -nq as -n -q: before Python 3.8, argparse does not split them without abbreviations
        if re.match(r"^-[nyqve]{2,}\Z", word):
            adapted += ["-" + letter for letter in word[1:]]
        else:
            adapted.append(word)
    # argparse takes -1.5d for an option
    while "--offset" in adapted[:-1]:
        at = adapted.index("--offset")
        adapted[at : at + 2] = ["--offset=" + adapted[at + 1]]
    return adapted


def parse_command_line(argv: Sequence[str]) -> Tuple[Optional[Command], Options]:
    """The command, None where none is given, and its options. Raises UsageError."""
    # The words are split at the first -- before argparse sees them: behind it stand the command of
    # `exec`, or names of containers.
    words = list(argv)
    behind = []  # type: List[str]
    if "--" in words:
        dashes = words.index("--")
        behind = words[dashes + 1 :]
        words = words[:dashes]
    name, rest = split_command(words)
    command = find_command(name)
    parser = make_parser(command)
    # argparse takes names in one run only: those that stand between options come back as extras
    parsed, extras = parser.parse_known_args(adapt_to_argparse(rest))
    unknown = [word for word in extras if word.startswith("-")]
    if not command and not unknown:
        unknown = extras
    if unknown:
        parser.error("unknown option: %s" % hide_value(unknown[0]))
    given = vars(parsed)
    values = common_defaults(given)
    for option, value in given.items():
        # argparse collects values in lists
        values[option] = tuple(value) if isinstance(value, list) else value
    if command:
        values["command"] = command.name
        names = [*given["containers"], *extras]
        values["containers"], values["arguments"] = split_arguments(command, names, behind)
    opts = Options(**values)
    if command:
        require_arguments(command, opts)
    return command, opts


def split_arguments(
    command: Command, names: List[str], behind: List[str]
) -> Tuple[Tuple[str, ...], Tuple[str, ...]]:
    """The containers that a command works on, and the arguments that it takes itself. behind: what
    stands behind --."""
    if command.name == "exec":
        return tuple(names), tuple(behind)
    if command.arguments is None:
        return tuple(names + behind), ()
    return (), tuple(names + behind)


def require_arguments(command: Command, opts: Options) -> None:
    """Raises UsageError."""
    # The words that choose containers are names.
    if command.arguments is None:
        require_names(opts.containers + opts.exclude)
        return
    # The command gets as many arguments as it takes; --help and --version need none.
    least, most = command.arguments
    if opts.help or opts.version or least <= len(opts.arguments) <= most:
        return
    if most == 0:
        takes = "no arguments"
    elif least == most:
        takes = format_count(most, "argument")
    else:
        takes = "%d to %d arguments" % (least, most)
    given = "none is given"
    if opts.arguments:
        given = " ".join(opts.arguments)
    raise UsageError(
        "%s takes %s: %s" % (command.name, takes, given),
        "python3 dockfix.py %s --help" % command.name,
    )


def common_defaults(given: dict) -> dict:
    """The defaults that depend on this host and on the environment. Raises UsageError."""
    values = {"state": default_state(), "jobs": min(8, 2 * (os.cpu_count() or 1))}  # type: dict
    docker = os.environ.get("DOCKFIX_DOCKER")
    if docker and not {"docker", "help", "version"}.intersection(given):
        values["docker"] = tuple(split_option("--docker", docker))
    return values


###############################################################################
# 31. main
###############################################################################

# One command line, from its words to an exit code. Nothing escapes as a traceback: whatever goes
# wrong becomes an error of the report, with an exit code and a line to type. The first signal lets
# the current work end in a stated way, the second kills what runs.


class Run:
    """One command line, as far as it got."""

    def __init__(self, words: List[str]) -> None:
        own_words = words
        if "--" in words:
            own_words = words[: words.index("--")]
        name, _ = split_command(own_words)
        if name is not None and ":" in name:
            name = None  # no command; it may be a password
        self.words = words
        # Until the command line is parsed: enough to print why it is refused.
        is_dry_run = "--dry-run" in own_words or "-n" in own_words
        self.opts = Options(json="--json" in own_words, dry_run=is_dry_run)
        self.report = new_report(name, is_dry_run)
        self.command = None  # type: Optional[Command]
        self.host = None  # type: Optional[Host]
        self.old_handlers = {}  # type: dict  # what catch_signals returned


# --version and --help.


def print_help(command: Optional[Command], opts: Options) -> None:
    if opts.version:
        facts = collect_version_facts()
        text = "dockfix %(version)s sha256 %(sha256)s python %(python)s\n" % facts
    else:
        text = help_text(command)
        facts = {"help": text}
    if not opts.json:
        write_out(text.encode("ascii"))
        return
    report = new_report(opts.command or None, False)
    report.update(facts)
    write_out(render_json(report))


def collect_version_facts() -> Dict[str, str]:
    digest = "unknown (read from standard input)"
    path = program_path()
    if os.path.isfile(path) and not was_read_from_stdin():
        digest = hashlib.sha256(read_all(path)).hexdigest()
    return {
        "version": VERSION,
        "sha256": digest,
        "python": "%d.%d.%d" % sys.version_info[:3],
    }


# A run, from its words to its exit code.


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs one command line (default: the process's own) and returns the exit code; 130 and 143
    stand for SIGINT and SIGTERM. Raises nothing that a user would see as a traceback."""
    if argv is None:
        argv = sys.argv[1:]
    run = Run([os_text(os.fsencode(word)) for word in argv])
    try:
        run.command, run.opts = parse_command_line(run.words)
        run.report["dry_run"] = run.opts.dry_run
        if run.opts.version or run.opts.help:
            print_help(run.command, run.opts)
            return 0
        run_command(run)
    except DockfixError as err:
        add_refusal(run.report, err)
    except (Interrupted, KeyboardInterrupt) as err:
        add_interruption(run, err)
    except Exception as err:
        add_internal_error(run.report, err)
    if run.host:
        add_unfinished(run.report, run.host)
    complete_hints(run)
    return finish(run)


def run_command(run: Run) -> None:
    """Raises what the command raises."""
    opts = run.opts
    if run.command is None:
        if not opts.json:
            for line in BRIEF_HELP.split("\n"):
                say(line)
        raise UsageError("no command is given", "python3 dockfix.py --help")
    run.host = make_host(opts.docker, opts.timeout, opts.dry_run, opts.verbose, opts.state)
    run.old_handlers = catch_signals(run.host)
    if run.command.name not in ("resume", "rollback"):
        where = describe_half_way(run.host)
        if where:
            text = "a storage change stands half-way, or is under way: " + where
            remedy = "python3 dockfix.py resume"
            add_finding(run.report, Finding("half-way", "critical", text, remedy))
    run.command.run(run.host, opts, run.report)


def catch_signals(host: Host) -> dict:
    """First signal: nothing new is begun, what runs is finished; outside the work it ends at once.
    Second: what runs is killed. Returns the handlers as they were, by signal number."""

    def handle(number: int, frame: object) -> None:
        if host.stop.is_set():
            host.kill.set()
        host.stop.set()
        host.known.signal_number = number
        if not host.known.working:
            raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [signal.SIGINT, signal.SIGTERM]
    # A closed terminal must not leave a container paused; under nohup it is no signal to end.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        numbers.append(signal.SIGHUP)
    old_handlers = {}
    for number in numbers:
        old_handlers[number] = signal.signal(number, handle)
    return old_handlers


# Whatever went wrong, as errors and findings of the report.


def add_refusal(report: dict, err: DockfixError) -> None:
    """The error; a dry run's script ends with the same exit code as the real run would."""
    add_error(report, err)
    if "script" in report or not report["dry_run"]:
        return
    if err.code == Refused.code:
        comment = script_comment("refused: " + err.msg)
        report["script"] = script_text(report, [comment], 1)


def add_interruption(run: Run, err: BaseException) -> None:
    text = "interrupted"
    if not run.host or not run.host.known.begun:
        text = "interrupted; nothing was changed"
    add_error(run.report, DockfixError(text))
    run.report["exit_code"] = signal_exit_code(err)


def signal_exit_code(err: BaseException) -> int:
    """Of Interrupted, which has the signal's number, or KeyboardInterrupt, which has none."""
    if err.args:
        return 128 + err.args[0]
    return 128 + signal.SIGINT


def add_internal_error(report: dict, err: Exception) -> None:
    """A fault of this program. The error's own text may hold a secret: only its type and its line
    are shown."""
    line = 0
    place = err.__traceback__
    while place is not None:
        line = place.tb_lineno
        place = place.tb_next
    text = "internal error: %s in line %d" % (type(err).__name__, line)
    add_error(report, DockfixError(text, "please report it with the output of --version"))


def add_unfinished(report: dict, host: Host) -> None:
    """What the run could not put back, each with the command that does it; and the signal."""
    for entry in host.known.not_done.values():
        remedy = quote_line(entry.argv)
        add_finding(report, Finding("not-done", "warning", entry.text, remedy))
        if report["exit_code"] == 0:
            report["exit_code"] = 3
    if host.known.signal_number:
        report["exit_code"] = 128 + host.known.signal_number


def complete_hints(run: Run) -> None:
    """Makes all lines to type fit this run."""
    shared_options = ""
    if run.host:
        for word in shared_words(run.opts):
            shared_options += quote_word(word) + " "
    call = OwnCall(quote_line(run.words), shared_options)
    report = run.report
    for error in report["errors"]:
        error["hint"] = complete_hint(error["hint"], call)
    for finding in report["findings"]:
        finding["remedy"] = complete_hint(finding["remedy"], call)
    if not shared_options:
        return
    # For the commands that show_change names.
    for row in report["results"]:
        if row.get("keeps"):
            row["options"] = shared_options


# The end.


def finish(run: Run) -> int:
    """Prints the report, puts the signals back, releases the locks. Returns the exit code."""
    report = run.report
    try:
        emit(report, run.opts, run.command)
    except DockfixError as err:
        print_errors([], [{"msg": err.msg, "hint": err.hint}])
        if report["exit_code"] == 0:
            report["exit_code"] = err.code
    except (Interrupted, KeyboardInterrupt) as err:  # the reader of stdout hangs
        report["exit_code"] = signal_exit_code(err)
    for number, handler in run.old_handlers.items():
        signal.signal(number, handler)
    if run.host:
        for lock in run.host.held:
            os.close(lock)
    return report["exit_code"]


def run_as_program() -> None:
    """Dies of the signal where one ended the run, so that a shell's loop stops too."""
    fill_standard_streams()
    code = main()
    if code in (129, 130, 143):
        signal.signal(code - 128, signal.SIG_DFL)
        os.kill(os.getpid(), code - 128)
    sys.exit(code)


if __name__ == "__main__":
    run_as_program()
