"""docker info of every age: own texts (docker_info/: rec-* were recorded, w-* written, x-* must be
refused), the corpus beside the checkout where it is there, and ten thousand seeded damages."""

import csv
import decimal
import json
import os
import random
import re

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
OWN = os.path.join(HERE, "docker_info")
CORPUS = os.environ.get("DOCKFIX_CORPUS") or os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(HERE))), "shared", "corpus"
)
GIGA, MIB = 1000**3, 1 << 20
LOOP = "/var/lib/docker/devicemapper/devicemapper/"
SIZES = (
    "data_used",
    "data_total",
    "data_available",
    "metadata_used",
    "metadata_total",
    "metadata_available",
    "base_device_size",
    "block_size",
    "min_free",
)
# driver, version, root, mode; the pool's figures in the order of SIZES (None: not said)
WANTED = {
    "rec-overlay2-client20.10.txt": ("overlay2", "20.10.24+dfsg1", "/srv/private/root", None, None),
    "rec-overlay2-client28.txt": ("overlay2", "20.10.24+dfsg1", "/srv/private/root", None, None),
    "rec-overlay2-client20.10.json": (
        "overlay2",
        "20.10.24+dfsg1",
        "/srv/private/root",
        None,
        None,
    ),
    "rec-overlay2-client28.json": ("overlay2", "20.10.24+dfsg1", "/srv/private/root", None, None),
    "rec-vfs-client28.txt": ("vfs", "20.10.24+dfsg1", "/srv/private/root", None, None),
    "rec-vfs-client20.10.json": ("vfs", "20.10.24+dfsg1", "/srv/private/root", None, None),
    "w-loop-1.0-mebi.txt": (
        "devicemapper",
        None,
        None,
        "loop",
        (MIB // 2, 204800 * MIB, None, 0, 2048 * MIB, None, None, None, None),
    ),
    "w-loop-1.2-kibi.txt": (
        "devicemapper",
        None,
        None,
        "loop",
        (3212836864, 53687091200, None, 4508877, 1073741824, None, None, 65536, None),
    ),
    "w-loop-17.03-quoted-mail.txt": (
        "devicemapper",
        "17.03.2-ce",
        "/data/docker",
        "loop",
        (
            8430000000,
            107400000000,
            21980000000,
            11490000,
            2147000000,
            2136000000,
            10740000000,
            65540,
            None,
        ),
    ),
    "w-lines-run-together.txt": ("devicemapper", "1.12.6", None, "unknown", (None,) * 9),
    "w-loop-1.6-warnings-inside.txt": (
        "devicemapper",
        None,
        "/data/docker",
        "loop",
        (536900000000, 536900000000, 0, 512, 21470000000, 21470000000, None, 131100, None),
    ),
    "w-direct-17.12-no-files.txt": (
        "devicemapper",
        "17.12.1-ce",
        "/var/lib/docker",
        "direct",
        (
            38650000000,
            102 * GIGA,
            63350000000,
            9982000,
            1070000000,
            1060000000,
            21470000000,
            524300,
            10200000000,
        ),
    ),
    "w-loop-19.03-sections.txt": (
        "devicemapper",
        "19.03.15",
        "/var/lib/docker",
        "loop",
        (
            1319000000,
            107400000000,
            20370000000,
            17990000,
            2147000000,
            2129000000,
            10740000000,
            65540,
            10740000000,
        ),
    ),
    "w-loop-18.09-unnested-remarks.txt": (
        "devicemapper",
        "18.09.9",
        "/var/lib/docker",
        "loop",
        (96640000000, 107400000000, 10740000000, 81920, 2147000000, 2147000000, None, 65540, None),
    ),
    "w-failed-20.10-zeros.txt": (
        "devicemapper",
        "20.10.7",
        "/var/lib/docker",
        "loop",
        (None,) * 6 + (10740000000, None, None),
    ),
    "w-unknown-1.7-outlived.txt": (
        "devicemapper",
        None,
        "/var/lib/docker",
        "unknown",
        (1820000000, 107400000000, 40300000000, 0, 2147000000, 2147000000, None, 65540, None),
    ),
    "w-direct-1.10-datadev.txt": (
        "devicemapper",
        "1.10.3",
        None,
        "direct",
        (5200000000, 53690000000, 48490000000, 2500000, 53690000, None, None, None, None),
    ),
    "w-grep-space.txt": (
        None,
        None,
        None,
        "unknown",
        (
            11800000,
            107400000000,
            7440000000,
            581600,
            2147000000,
            2147000000,
            None,
            None,
            10740000000,
        ),
    ),
    "w-containerd-29.txt": ("overlayfs", "29.1.0", "/var/lib/docker", None, None),
    "w-windows-lcow.txt": ("windowsfilter", "18.03.1-ee-3", "C:\\ProgramData\\docker", None, None),
    "w-utf16-overlay.txt": ("overlay", "1.13.1", "/var/lib/docker", None, None),
    "w-cut-in-a-figure.txt": ("devicemapper", "1.13.1", None, "loop", (None,) * 7 + (65540, None)),
    "w-two-versions-doubled.txt": ("overlay", None, "/var/lib/docker", None, None),
    "w-api-1.22.json": (
        "devicemapper",
        "1.10.2",
        "/var/lib/docker",
        "loop",
        (3890000000, 107400000000, 0, 5460000, 2147000000, None, 107400000000, 65540, None),
    ),
}
REFUSED = {
    "x-swarm-manager.txt": "Swarm manager",
    "x-swarm-manager-early.txt": "Swarm manager",
    "x-two-drivers.txt": "two storage drivers",
    "x-daemon-down.txt": "does not answer",
    "x-daemon-down.json": "does not answer",
    "x-podman-info.txt": "not an answer",
    "x-empty.txt": "not an answer",
    "x-cut.json": "not an answer",
}


def read(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


def parsed(dockfix, data):
    """(info, pool) of a saved answer."""
    info = dockfix.parse_info(dockfix.decode_saved(data))
    return info, dockfix.parse_reported_pool(info.driver_status)


def test_every_own_text_is_in_a_table():
    assert sorted(os.listdir(OWN)) == sorted(list(WANTED) + list(REFUSED))


@pytest.mark.parametrize("name", sorted(WANTED))
def test_own_texts(dockfix, name):
    info, pool = parsed(dockfix, read(OWN, name))
    driver, version, root, mode, sizes = WANTED[name]
    assert (info.driver, info.version, info.root) == (driver or "", version or "", root or "")
    assert tuple(getattr(pool, size) for size in SIZES) == (sizes or (None,) * 9)
    assert mode is None or pool.mode == mode
    assert pool.failed is ("failed" in name)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_a_reason_and_a_next_step(dockfix, name):
    with pytest.raises(dockfix.DockfixError) as caught:
        parsed(dockfix, read(OWN, name))
    assert REFUSED[name] in caught.value.msg and caught.value.hint


def test_empty_missing_and_zero_are_three_things(dockfix):
    _, pool = parsed(dockfix, read(OWN, "w-unknown-1.7-outlived.txt"))
    assert (
        pool.data_file == ""
        and pool.data_loop_file is None
        and pool.metadata_used == 0
        and pool.min_free is None
    )


def test_what_else_is_read(dockfix):
    info, _ = parsed(dockfix, read(OWN, "w-loop-19.03-sections.txt"))
    assert (info.swarm, info.live_restore, info.os_type) == (
        "active",
        False,
        "linux",
    )
    assert (
        "name=seccomp" in info.security_options
        and info.driver_status["Backing Filesystem"] == "ext4"
    )
    info, _ = parsed(dockfix, read(OWN, "w-direct-17.12-no-files.txt"))
    assert info.live_restore is True and info.swarm == ""
    text, document = (
        parsed(dockfix, read(OWN, "rec-overlay2-client28." + kind))[0] for kind in ("txt", "json")
    )
    assert text._replace(security_options=()) == document._replace(security_options=())
    info, _ = parsed(dockfix, read(OWN, "w-containerd-29.txt"))
    assert info.driver_status["driver-type"] == "io.containerd.snapshotter.v1"


@pytest.mark.parametrize(
    "text, size",
    [
        ("107.4 GB", 107400000000),
        ("107.4GB", 107400000000),
        ("65.54 kB", 65540),
        ("581.6 KB", 581600),
        ("0 B", 0),
        ("0B", 0),
        ("999 B", 999),
        ("1000 MB", 10**9),
        ("1.024 TB", 1024 * 10**9),
        ("2 GiB", 2 << 30),
        ("1.5 MiB", 3 << 19),
        ("991.7 MiB", 1039872819),
        ("12.5 kB of many", 12500),
    ],
)
def test_sizes_as_docker_prints_them(dockfix, text, size):
    assert dockfix.parse_docker_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "107.4",
        "107.4 G",
        "107.4 Gb",
        "1107.4 GB",
        "10.737 GB",
        "1e3 MB",
        "-1 B",
        "1,5 GB",
        "007.4 GB",
        "2536 GB",
        "1.5.5 GB",
        "1.5  GB",
        "GB",
        ".5 GB",
        "5. GB",
        "5 EB",
        "5 GBx",
        "\u0665 GB",
        "1_0 GB",
    ],
)
def test_what_is_no_size(dockfix, text):
    assert dockfix.parse_docker_size(text) is None


@pytest.mark.parametrize(
    "text, facts",
    [
        ("Server Version: 1. 12.6\n", ("", "")),
        ("Server Version: 17 06.2-ce\n", ("", "")),
        ("Server Version: 18.09.6 # the engine\n", ("18.09.6", "")),
        ("Docker Root Dir: /data/docker # moved\n", ("", "/data/docker")),
        ("Docker Root Dir: /data/docker Debug Mode: false\n", ("", "")),
        ("Docker Root Dir: C:\\docker Debug Mode: false\n", ("", "")),
        ("Docker Root Dir: /my disk/docker\n", ("", "/my disk/docker")),
    ],
    ids=repr,
)
def test_remarks_and_lines_that_ran_together(dockfix, text, facts):
    info = dockfix.parse_info("Storage Driver: overlay2\n" + text)
    assert (info.version, info.root) == facts


# ---------------------------------------------------------------------- the corpus

UNITS = {"B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4, "Mb": MIB}


def second_opinion(printed):
    """Bytes of a printed figure by decimal arithmetic."""
    number, unit = re.match(r"([0-9.]+) ?([A-Za-z]+)$", printed).groups()
    return int((decimal.Decimal(number) * UNITS[unit]).to_integral_value(decimal.ROUND_HALF_UP))


def test_corpus(dockfix):
    index = os.path.join(CORPUS, "docker-info", "INDEX.tsv")
    if not os.path.exists(index):
        pytest.skip("no corpus at %s (DOCKFIX_CORPUS names another place)" % CORPUS)
    with open(index, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) > 40
    for row in rows:
        name = row["file"]
        try:
            info, pool = parsed(dockfix, read(CORPUS, "docker-info", name))
        except dockfix.DockfixError as err:
            assert not row["storage driver"] and "warm manager" in err.msg, (name, err.msg)
            continue
        assert (info.driver, info.version, info.root) == (
            row["storage driver"],
            row["server version"],
            row["Docker Root Dir"],
        ), name
        for key, field in dockfix.POOL_SIZES.items():
            assert getattr(pool, field) == (second_opinion(row[key]) if row[key] else None), (
                name,
                key,
            )
        for key, field in dockfix.POOL_WORDS.items():
            assert getattr(pool, field) == {"": None, "(empty)": ""}.get(row[key], row[key]), (
                name,
                key,
            )
        if row["storage driver"] == "devicemapper":
            assert pool.mode == ("loop" if "-loop" in name else "direct"), name


def test_corpus_json(dockfix):
    path = os.path.join(CORPUS, "graphdriver", "info-json-devicemapper-api1.22.json")
    if not os.path.exists(path):
        pytest.skip("no corpus at %s" % CORPUS)
    info, pool = parsed(dockfix, read(path))
    assert (info.version, pool.data_used, pool.base_device_size, pool.mode) == (
        "1.10.2",
        3890000000,
        107400000000,
        "loop",
    )


# ---------------------------------------------------------------------- damage

BASES = [
    "w-loop-1.6-warnings-inside.txt",
    "w-loop-19.03-sections.txt",
    "w-direct-17.12-no-files.txt",
    "w-loop-1.0-mebi.txt",
    "w-api-1.22.json",
    "rec-overlay2-client28.txt",
    "rec-overlay2-client20.10.json",
    "w-failed-20.10-zeros.txt",
]


def splice(rng, data, piece):
    at = rng.randrange(len(data) + 1)
    return data[:at] + piece + data[at:]


def some(rng, data):
    return sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))


def reorder(rng, data):
    rows = data.split(b"\n")
    rng.shuffle(rows)
    return b"\n".join(rows)


def double_rows(rng, data):
    rows = data.split(b"\n")
    at, end = some(rng, rows)
    return b"\n".join(rows[:end] + rows[at:])


def cut_out(rng, data):
    at, end = some(rng, data)
    return data[:at] + data[min(end, at + 1 + rng.randrange(40)) :]


def flip(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def double_bytes(rng, data):
    at, end = some(rng, data)
    end = min(end, at + rng.randrange(60))
    return data[:end] + data[at:]


# after these, a figure is the old one or none
HARMLESS = {
    "cut": lambda rng, data: data[: rng.randrange(len(data) + 1)],
    "cut in front": lambda rng, data: data[rng.randrange(len(data) + 1) :],
    "whole rows doubled": double_rows,
    "reordered": reorder,
    "CR": lambda rng, data: splice(rng, data, rng.choice([b"\r", b"\r\n"])),
    "CR everywhere": (
        lambda rng, data: data.replace(b"\r\n", b"\n").replace(
            b"\n", rng.choice([b"\r\n", b"\r\r\n"])
        )
    ),
    "NUL": lambda rng, data: splice(rng, data, bytes(rng.randrange(1, 5))),
    "UTF-8": lambda rng, data: splice(
        rng,
        data,
        rng.choice(["\u5bb9", "\u2514", "\u00e9", "\u200b", "\u2028", "\u0663"]).encode("utf-8"),
    ),
    "no UTF-8": lambda rng, data: splice(
        rng, data, rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80"])
    ),
    "lost indentation": lambda rng, data: re.sub(
        rb"(?m)^ +", lambda m: b"" if rng.random() < 0.7 else m.group(0), data
    ),
    "more indentation": lambda rng, data: re.sub(rb"(?m)^", b" " * rng.randrange(9), data),
    "warnings": lambda rng, data: re.sub(
        rb"(?m)^(?= )",
        lambda m: b"WARNING: No swap limit support\n" if rng.random() < 0.2 else b"",
        data,
    ),
}
# after these, the text itself may say another figure: then that one is right
HARMFUL = {"flipped": flip, "piece cut out": cut_out, "piece doubled": double_bytes}


def figures(dockfix, data):
    try:
        info, pool = parsed(dockfix, data)
    except dockfix.DockfixError as err:
        assert err.msg and err.hint
        return None, {}
    return info, {name: getattr(pool, name) for name in SIZES if getattr(pool, name) is not None}


def said(dockfix, data):
    """Every figure that some line of a text gives, however it is read: {(field, bytes)}."""
    found = set()
    text = data.decode("utf-8", "replace")
    names = dict(dockfix.POOL_SIZES)
    for key, number, unit in re.findall(
        r'([A-Z][A-Za-z ]+)(?::|",\s*")[ \t]*([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?[Bb]\b)', text
    ):
        if key.strip() in names and unit in UNITS:
            found.add((names[key.strip()], second_opinion(number + unit)))
    return found


def test_ten_thousand_damages(dockfix):
    rng = random.Random(20260727)
    known = {name: figures(dockfix, read(OWN, name))[1] for name in BASES}
    kept = lost = 0
    rounds = 10000 if os.environ.get("DOCKFIX_TEST") == "all" else 1000
    for number in range(rounds):
        name = BASES[number % len(BASES)]
        data = read(OWN, name)
        kinds = [
            rng.choice(sorted(HARMLESS) + sorted(HARMFUL)) for _ in range(rng.choice((1, 1, 2, 3)))
        ]
        for kind in kinds:
            data = dict(HARMLESS, **HARMFUL)[kind](rng, data) or b" "
        info, got = figures(dockfix, data)
        for field, value in got.items():
            if value == known[name].get(field):
                kept += 1
                continue
            assert set(kinds) & set(HARMFUL), (name, kinds, field, value, data)
            assert (field, value) in said(dockfix, data), (name, kinds, field, value, data)
        lost += sum(field not in got for field in known[name])
        assert (
            info is None
            or info.driver == ""
            or info.driver in dockfix.REPORTED_DRIVERS
            or "driver-type" in info.driver_status
        )
    assert (
        kept > 1.5 * rounds and lost > rounds / 2
    )  # the damages do damage, and what is left is read


def test_other_shapes_of_json(dockfix):
    for text in (
        "[]",
        "{}",
        "null",
        '{"Driver": 5}',
        '{"Driver": "overlay2", "DriverStatus": {"a": 1}}',
        '{"DockerRootDir": ["/"]}',
        "[" * 100000,
        '{"a":' * 100000,
    ):
        info, got = figures(dockfix, text.encode())
        assert got == {} and (info is None or info.driver == "overlay2")
    doubled = json.dumps(
        {
            "Driver": "devicemapper",
            "DriverStatus": [
                ["Data Space Used", "1 GB"],
                ["Data Space Total", "9 GB"],
                ["Data Space Used", "2 GB"],
            ],
        }
    )
    assert figures(dockfix, doubled.encode())[1] == {}
