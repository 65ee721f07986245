"""Offsets, instants and ELF files: what faketime decides before it touches a container."""

import os
import re
import shutil
import struct
import subprocess
import sys

import pytest

LIBC = next(
    (
        p
        for p in ("/lib/%s-linux-gnu/libc.so.6" % os.uname().machine, "/lib64/libc.so.6")
        if os.path.exists(p)
    ),
    None,
)


def read(path):
    with open(path, "rb") as f:
        return f.read()


# ---------------------------------------------------------------------- offsets and instants


@pytest.mark.parametrize(
    "spec, seconds",
    [
        ("+8h", 28800),
        ("8h", 28800),
        ("-8h", -28800),
        ("-1.5d", -129600),
        ("+1.5h", 5400),
        ("90m", 5400),
        ("+1s", 1),
        ("+0s", 0),
        ("-0h", 0),
        ("+1y", 31536000),
        ("+0.5s", 1),
        ("+1.4s", 1),
        ("+0.1m", 6),
        ("+007d", 604800),
        ("0.000001d", None),
        ("1.3333d", 115197),
        ("+999999999999999999999y", 999999999999999999999 * 31536000),
        ("+0.000011574d", 1),
    ],
)
def test_offsets(dockfix, spec, seconds):
    if seconds is None:
        with pytest.raises(dockfix.UsageError, match="half a second"):
            dockfix.parse_offset(spec)
    else:
        assert dockfix.parse_offset(spec) == seconds


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "+",
        "8",
        "+8",
        "h",
        "+1w",
        "+1M",
        "+1month",
        "+1h30m",
        "+8hours",
        "+1,5h",
        "+ 8h",
        "+8 h",
        "+8H",
        "+8h\n",
        "\n+8h",
        "--8h",
        "+-8h",
        "1e3s",
        "+.5h",
        "+1.h",
        "0x10s",
        "@2030-01-01 00:00:00",
        "2030-01-01 00:00:00",
        "x2",
        "+0 x2",
        "i2",
        "%",
        "\u0661h",
        "+nan s",
        "inf",
        "+1h#",
        "1_000s",
        "9" * 31 + "s",
        "+1.0000000001h",
    ],
)
def test_what_libfaketime_would_take_for_something_else_is_refused(dockfix, spec):
    with pytest.raises(dockfix.UsageError) as refusal:
        dockfix.parse_offset(spec)
    assert "+8h" in refusal.value.hint and "+7d" in refusal.value.hint


def test_random_offsets_are_exact(dockfix, rng):
    from fractions import Fraction

    for _ in range(500):
        whole, part, unit = (
            rng.randrange(10 ** rng.randrange(1, 9)),
            "%0*d" % (rng.randrange(1, 9), rng.randrange(10)),
            rng.choice("smhdy"),
        )
        exact = Fraction("%d.%s" % (whole, part)) * dockfix.UNITS[unit]
        if not 0 < exact < Fraction(1, 2):
            assert abs(dockfix.parse_offset("+%d.%s%s" % (whole, part, unit)) - exact) <= Fraction(
                1, 2
            )
            assert dockfix.parse_offset("-%d.%s%s" % (whole, part, unit)) == -dockfix.parse_offset(
                "%d.%s%s" % (whole, part, unit)
            )


def test_instants_where_programs_fail(dockfix):
    for good in (0, 1, 2**31, 253402300799):
        dockfix.require_instant(good, "x")
    for bad, word in (
        (-1, "before 1970"),
        (253402300800, "9999"),
        (10**40, "9999"),
        (-(10**40), "1970"),
    ):
        with pytest.raises(dockfix.UsageError, match=word):
            dockfix.require_instant(bad, "x")


@pytest.mark.parametrize(
    "text, instant",
    [
        ("1970-01-01 00:00:00", 0),
        ("2038-01-19 03:14:08", 2**31),
        ("2024-02-29 12:00:00", 1709208000),
        ("9999-12-31 23:59:59", 253402300799),
        ("1969-12-31 23:59:59", -1),
        ("0001-01-01 00:00:00", -62135596800),
    ],
)
def test_wall_times(dockfix, text, instant):
    assert dockfix.parse_wall(text) == instant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2024-02-30 00:00:00",
        "2023-02-29 00:00:00",
        "2024-13-01 00:00:00",
        "2024-01-01",
        "2024-01-01T00:00:00",
        "2024-1-1 0:0:0",
        "2024-01-01 24:00:00",
        "2024-01-01 00:60:00",
        "2024-01-01 00:00:60",
        "2024-01-01 00:00:00Z",
        "@2024-01-01 00:00:00",
        "2024-01-01 00:00:00\n",
        " 2024-01-01 00:00:00",
        "0000-01-01 00:00:00",
        "\u0662024-01-01 00:00:00",
    ],
)
def test_other_times_are_refused(dockfix, text):
    with pytest.raises(dockfix.UsageError) as refusal:
        dockfix.parse_wall(text)
    assert "YYYY-MM-DD HH:MM:SS" in refusal.value.hint


ZONES = "/usr/share/zoneinfo/"
needs_zones = pytest.mark.skipif(
    not os.path.exists(ZONES + "America/New_York"), reason="needs the host's tzdata"
)


@needs_zones
@pytest.mark.parametrize(
    "text, zone, instants",
    [
        ("2030-01-01 00:00:00", "Asia/Shanghai", [1893427200]),
        ("2030-03-10 02:30:00", "America/New_York", []),
        ("2030-11-03 01:30:00", "America/New_York", [1919914200, 1919917800]),
        ("1969-12-31 20:00:00", "America/New_York", [3600]),
        ("2011-12-30 12:00:00", "Pacific/Apia", []),
        ("2100-07-01 00:00:00", "Europe/Berlin", [4118083200 - 7200]),
    ],
)
def test_wall_times_of_zones(dockfix, text, zone, instants):
    assert dockfix.wall_instants(read(ZONES + zone), dockfix.parse_wall(text)) == instants


@needs_zones
@pytest.mark.parametrize(
    "zone",
    [
        "Asia/Shanghai",
        "America/New_York",
        "Europe/Berlin",
        "Africa/Casablanca",
        "Pacific/Apia",
        "Australia/Lord_Howe",
        "Etc/UTC",
    ],
)
def test_wall_times_as_zoneinfo_has_them(dockfix, zone, rng):
    zoneinfo, datetime = pytest.importorskip("zoneinfo"), pytest.importorskip("datetime")
    data, known = read(ZONES + zone), zoneinfo.ZoneInfo(zone)
    for _ in range(400):
        instant = rng.randrange(86400, 4102444800)
        there = datetime.datetime.fromtimestamp(instant, known)
        found = dockfix.wall_instants(data, dockfix.parse_wall(there.strftime("%Y-%m-%d %H:%M:%S")))
        assert instant in found and set(found) == {
            int(there.replace(fold=fold).timestamp()) for fold in (0, 1)
        }


# ---------------------------------------------------------------------- ELF files


def little_elf(
    bits=64,
    order="<",
    needed=("libc.so.6",),
    wants=("GLIBC_2.4",),
    has=(),
    cut=0,
    machine=62,
    ring=False,
):
    """A shared library of tables only, made by hand: one PT_LOAD over the whole file, one
    PT_DYNAMIC."""
    wide = bits == 64
    head, step = (64, 16) if wide else (52, 8)
    names = [b""] + [w.encode() for w in tuple(needed) + tuple(wants) + tuple(has)]
    at, strings = {}, b""
    for name in names:
        at[name.decode()] = len(strings)
        strings += name + b"\0"
    base = head + 2 * (56 if wide else 32)
    strtab = base
    verneed = strtab + len(strings)
    need = struct.pack(order + "HHIII", 1, len(wants), at[needed[0]] if needed else 0, 16, 0)
    for n, one in enumerate(wants):
        need += struct.pack(order + "IHHII", 0, 0, 2, at[one], 0 if n == len(wants) - 1 else 16)
    verdef = verneed + len(need)
    define = b""
    for n, one in enumerate(has):
        define += struct.pack(
            order + "HHHHIII", 1, 0, n, 65535 if ring else 1, 0, 20, 0 if n == len(has) - 1 else 28
        )
        define += struct.pack(order + "II", at[one], 0)
    dynamic = verdef + len(define)
    tags = (
        [(1, at[one]) for one in needed]
        + [(5, strtab)]
        + ([(0x6FFFFFFE, verneed)] if wants else [])
        + ([(0x6FFFFFFC, verdef)] if has else [])
        + [(0, 0)]
    )
    table = b"".join(struct.pack(order + ("QQ" if wide else "II"), *pair) for pair in tags)
    size = dynamic + len(table)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    body = ident + struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        3,
        machine,
        1,
        0,
        head,
        0,
        0,
        head,
        56 if wide else 32,
        2,
        0,
        0,
        0,
    )
    for kind, start, length in ((1, 0, size), (2, dynamic, len(table))):
        body += (
            struct.pack("%sIIQQQQQQ" % order, kind, 4, start, start, start, length, length, 8)
            if wide
            else struct.pack("%sIIIIIIII" % order, kind, start, start, start, length, length, 4, 4)
        )
    data = body + strings + need + define + table
    assert len(body) == base and len(data) == size and step * len(tags) == len(table)
    return data[: len(data) - cut]


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_library_made_by_hand(dockfix, bits, order):
    data = little_elf(
        bits,
        order,
        ("libc.so.6", "libm.so.6"),
        ("GLIBC_2.4", "GLIBC_2.34"),
        ("A_1", "A_2"),
        machine=40,
    )
    found = dockfix.parse_elf(data)
    assert found == (
        bits,
        40,
        "",
        False,
        ("libc.so.6", "libm.so.6"),
        ("GLIBC_2.4", "GLIBC_2.34"),
        ("A_1", "A_2"),
    )


def test_cut_short_anywhere_is_refused(dockfix):
    whole = little_elf()
    for cut in range(1, len(whole) + 1):
        with pytest.raises(ValueError):
            dockfix.parse_elf(whole[:-cut])


def test_tables_that_go_round_in_a_ring_end(dockfix):
    with pytest.raises(ValueError, match="do not end"):
        dockfix.parse_elf(little_elf(has=("A_1",), ring=True))


def test_hostile_bytes_only_ever_raise_value_error(dockfix, rng):
    whole = little_elf(has=("A_1", "A_2"))
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 12)):
            data[rng.randrange(4, len(data))] = rng.choice(
                (0, 1, 127, 128, 255, rng.randrange(256))
            )
        for full in (True, False):
            try:
                found = dockfix.parse_elf(bytes(data), full)
                assert found.bits in (32, 64) and all(
                    len(name) <= 256 for name in found.needed + found.wants + found.has
                )
            except ValueError:
                pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n",
        b"\x7fELF\3\1" + bytes(100),
        b"\x7fELF\2\3" + bytes(100),
        bytes(1000),
    ],
)
def test_what_is_no_elf_file(dockfix, data):
    with pytest.raises(ValueError, match="not an ELF file"):
        dockfix.parse_elf(data)


@pytest.mark.skipif(
    not LIBC or not shutil.which("readelf"), reason="needs glibc and readelf, to compare with"
)
@pytest.mark.parametrize("path", [LIBC, os.path.realpath(sys.executable), shutil.which("readelf")])
def test_the_same_as_readelf(dockfix, path):
    found = dockfix.parse_elf(read(path))
    shown = subprocess.check_output(
        ["readelf", "-W", "-h", "-l", "-d", "-V", path], stderr=subprocess.DEVNULL
    ).decode()
    assert list(found.needed) == re.findall(r"\(NEEDED\).*\[(.*)\]", shown)
    assert found.interp == "".join(re.findall(r"Requesting program interpreter: (.*)\]", shown))
    assert found.bits == int(re.search(r"Class: +ELF(\d+)", shown).group(1))
    needs = shown.partition("Version needs section")[2]
    assert sorted(found.wants) == sorted(re.findall(r"Name: (\S+)  Flags", needs))


@pytest.mark.skipif(not LIBC, reason="needs glibc")
def test_libc_fits_itself_and_tells_its_version(dockfix):
    libc = dockfix.parse_elf(read(LIBC))
    assert "GLIBC_2.2.5" in libc.has or "GLIBC_2.17" in libc.has or "GLIBC_2.4" in libc.has
    assert dockfix.elf_mismatch(libc._replace(needed=("libc.so.6",)), libc) == ""


def test_fit(dockfix):
    libc = dockfix.Elf(
        64, 62, "", False, (), (), ("GLIBC_2.2.5", "GLIBC_2.9", "GLIBC_2.30", "GLIBC_PRIVATE")
    )

    def why(**more):
        return dockfix.elf_mismatch(
            dockfix.Elf(
                **dict(
                    dict(
                        bits=64,
                        machine=62,
                        interp="",
                        go=False,
                        needed=("libc.so.6",),
                        wants=(),
                        has=(),
                    ),
                    **more,
                )
            ),
            libc,
        )

    assert (
        why() == "" and why(wants=("GLIBC_2.30", "GLIBC_2.20", "GLIBC_2.4", "GLIBC_PRIVATE")) == ""
    )
    assert (
        why(wants=("OTHER_9.9",)) == ""
    )  # another library's own versions: its being there is looked at elsewhere
    assert "GLIBC_2.31" in why(wants=("GLIBC_2.31",)) and "GLIBC_2.30" in why(wants=("GLIBC_2.31",))
    assert "GLIBC_2.100" in why(wants=("GLIBC_2.31", "GLIBC_2.100", "GLIBC_2.34"))
    assert "GLIBC_ABI_DT_RELR" in why(wants=("GLIBC_ABI_DT_RELR",))
    assert "32-bit" in why(bits=32) and "aarch64" in why(machine=183) and "999" in why(machine=999)
    assert "not built for glibc" in why(
        needed=("libc.musl-x86_64.so.1",)
    ) and "not built for glibc" in why(needed=())


def test_how_new_a_libfaketime_is(dockfix):
    ages = [
        b"FAKETIME_FOLLOW_ABSOLUTE..FAKETIME_DISABLE_SHM",
        b"..FAKETIME_FORCE_MONOTONIC_FIX..FAKETIME_DISABLE_SHM",
        b"..FAKETIME_FORCE_MONOTONIC_FIX../etc/faketimerc",
        b"../etc/faketimerc",
        b"x" * 1000,
    ]
    assert [dockfix.judge_library("x", data).rank for data in ages] == [
        0,
        1,
        2,
        3,
        len(dockfix.RANKS) - 1,
    ]
