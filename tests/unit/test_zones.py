"""Time zone files and POSIX rules against other implementations: Python's zoneinfo where there is
one, and time.tzset everywhere."""

import os
import struct
import time

import pytest
import contextlib

ZONES = [
    "Asia/Shanghai",
    "Europe/Berlin",
    "Europe/Dublin",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "Pacific/Apia",
    "America/Nuuk",
    "Etc/UTC",
    "Etc/GMT+11",
    "Africa/Monrovia",
]
RULES = [
    "UTC0",
    "CST-8",
    "<+08>-8",
    "CET-1CEST,M3.5.0,M10.5.0/3",
    "QQQ5QQQ4,M3.2.0/2,M11.1.0",
    "IST-1GMT0,M10.5.0,M3.5.0/1",
    "NZST-12NZDT,M9.5.0,M4.1.0/3",
    "<-02>2<-01>,M3.5.0/-1,M10.5.0/0",
    "AAA3:30BBB,J60/12:30:30,J300",
    "AAA-3BBB,59,300/25",
    "XXX3EDT4,0/0,J365/23",
    "WGT3WGST,M3.5.0/-2,M10.5.0/-1",
]


def here(name):
    return os.path.exists("/usr/share/zoneinfo/" + name)


@pytest.fixture
def tz(monkeypatch):
    """The C library's own answer for a TZ: (seconds east, name) at a time."""

    def ask(text, when):
        monkeypatch.setenv("TZ", text)
        time.tzset()
        found = time.localtime(when)
        return found.tm_gmtoff, found.tm_zone

    yield ask
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("zone", ZONES)
def test_offsets_are_those_of_the_c_library(dockfix, tz, rng, zone):
    if not here(zone):
        pytest.skip("this machine has no %s" % zone)
    data = dockfix.zone_data(zone)
    for when in [0, -1, 2**31 - 1, 2**31, 1700000000] + [
        rng.randrange(-2 * 10**9, 9 * 10**9) for _ in range(300)
    ]:
        assert dockfix.zone_offset(data, when) == tz(zone, when), when


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_read_as_the_c_library_reads_them(dockfix, tz, rng, rule):
    for when in [rng.randrange(0, 4 * 10**9) for _ in range(300)] + [
        1710000000 + 3600 * n for n in range(200)
    ]:
        assert dockfix.posix_offset(rule, when) == tz(rule, when), when


def test_python_agrees_about_every_zone(dockfix, rng):
    zoneinfo = pytest.importorskip("zoneinfo")
    import datetime

    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    names = sorted(name for name in zoneinfo.available_timezones() if here(name))
    if not names:
        pytest.skip("this machine has no zones")
    for name in names:
        data, zone = dockfix.zone_data(name), zoneinfo.ZoneInfo(name)
        for when in (rng.randrange(-3 * 10**9, 10**10) for _ in range(12)):
            then = (start + datetime.timedelta(seconds=when)).astimezone(zone)
            assert dockfix.zone_offset(data, when) == (
                then.utcoffset().total_seconds(),
                then.tzname(),
            ), (name, when)


def tzif(version=b"1", times=(), kinds=(), types=((0, 0, 0),), names=b"UTC\0", footer=b"", leaps=0):
    """A zone file by hand: one block, or two and a footer."""

    def block(form):
        size = struct.calcsize(">" + form)
        return (
            b"TZif"
            + version
            + bytes(15)
            + struct.pack(">6L", 0, 0, leaps, len(times), len(types), len(names))
            + struct.pack(">%d%s" % (len(times), form), *times)
            + bytes(kinds)
            + b"".join(struct.pack(">lBB", *one) for one in types)
            + names
            + bytes(leaps * (size + 4))
        )

    return (
        block("l").replace(b"TZif1", b"TZif\0")
        if version == b"1"
        else block("l") + block("q") + b"\n" + footer + b"\n"
    )


def test_version_1_and_leap_seconds_and_no_footer(dockfix):
    data = tzif(
        times=(100, 200),
        kinds=(1, 0),
        types=((0, 0, 0), (3600, 1, 4)),
        names=b"AAA\0BBB\0",
        leaps=3,
    )
    assert [dockfix.zone_offset(data, when) for when in (0, 100, 199, 200, 10**10)] == [
        (0, "AAA"),
        (3600, "BBB"),
        (3600, "BBB"),
        (0, "AAA"),
        (0, "AAA"),
    ]
    second = tzif(
        b"3",
        times=(100,),
        kinds=(1,),
        types=((0, 0, 0), (7200, 0, 4)),
        names=b"AAA\0BBB\0",
        footer=b"CCC-2",
        leaps=1,
    )
    assert dockfix.zone_offset(second, 99) == (0, "AAA") and dockfix.zone_offset(second, 100) == (
        7200,
        "CCC",
    )
    assert dockfix.zone_offset(tzif(b"2", times=(100,), kinds=(0,)), 500) == (0, "UTC")


BAD = [
    b"",
    b"TZif",
    b"TZif2" + bytes(39),
    tzif()[:-1],
    tzif(types=()),
    tzif(times=(5, 1), kinds=(0, 0)),
    tzif(times=(1,), kinds=(7,)),
    tzif(names=b"UTC"),
    tzif(types=((100000, 0, 0),)),
    tzif(types=((0, 0, 9),)),
    tzif(b"2")[:-2],
    tzif(b"2", footer=b"Asia/Shanghai"),
    b"root:x:0:0\n" * 9,
    tzif(names=b"\xff\xff\0"),
]


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_zone_file_is_a_value_error(dockfix, data):
    with pytest.raises(ValueError):
        dockfix.zone_offset(data, 1700000000)


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "Asia/Shanghai",
        "UTC",
        "AB3",
        "CST-8x",
        "CST-168",
        "EST5EDT,M13.1.0,M1.1.0",
        "EST5EDT,M3.6.0,M11.1.0",
        "EST5EDT,J366,J1",
        "EST5EDT,366,1",
        "EST5EDT,M3.2.0",
        "EST:5",
        "EST5:60",
        "CST\u0668",
        "CST-8\n",
        "<>3",
        "EST5EDT,,M3.1.0",
        "EST99",
    ],
)
def test_what_is_no_rule_is_a_value_error(dockfix, rule):
    with pytest.raises(ValueError):
        dockfix.posix_offset(rule, 1700000000)


def test_damaged_files_give_an_offset_or_a_value_error(dockfix, rng):
    seeds = [dockfix.zone_data(zone) for zone in ZONES if here(zone)] + [
        tzif(b"2", footer=b"CET-1CEST,M3.5.0,M10.5.0/3")
    ]
    for _ in range(3000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((0, 1, 3, 20))):
            data[rng.randrange(min(len(data), rng.choice((60, 10**6))))] = rng.randrange(256)
        try:
            east, name = dockfix.zone_offset(
                bytes(data[: rng.choice((len(data), rng.randrange(len(data) + 1)))]),
                rng.randrange(-(2**40), 2**40),
            )
            assert abs(east) <= 26 * 3600 and isinstance(name, str)
        except ValueError:
            pass


def test_damaged_rules_too(dockfix, rng):
    for _ in range(3000):
        rule = list(rng.choice(RULES))
        for _ in range(rng.randrange(4)):
            rule[rng.randrange(len(rule))] = chr(
                rng.choice((rng.randrange(32, 127), rng.randrange(48, 58), 0x663))
            )
        with contextlib.suppress(ValueError):
            dockfix.posix_offset("".join(rule), rng.randrange(-(2**40), 2**40))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../../etc/passwd",
        "/etc/localtime",
        "Asia/../../../etc/shadow",
        "Asia",
        "zone.tab",
        "No/Where",
        "Asia/Shanghai\n",
        "a b",
        "Asia//Shanghai",
        "\u4e0a\u6d77",
    ],
)
def test_a_zone_is_one_of_the_hosts_files(dockfix, name):
    with pytest.raises(dockfix.UsageError, match="no time zone"):
        dockfix.zone_data(name)


@pytest.fixture
def hosts(dockfix, tmp_path, monkeypatch):
    """A host's root with some zones; its zone as dockfix names it, for a localtime that is a link,
    bytes or None."""
    monkeypatch.delenv("TZ", raising=False)
    folder = tmp_path / "usr" / "share" / "zoneinfo"
    (folder / "Asia").mkdir(parents=True)
    (folder / "Etc").mkdir()
    (tmp_path / "etc").mkdir()
    shanghai, tokyo, utc = (
        tzif(b"2", types=((east, 0, 0),), names=name + b"\0", footer=rule)
        for east, name, rule in (
            (28800, b"CST", b"CST-8"),
            (32400, b"JST", b"JST-9"),
            (0, b"UTC", b"UTC0"),
        )
    )
    for name, data in (
        ("Asia/Chongqing", shanghai),
        ("Asia/Shanghai", shanghai),
        ("PRC", shanghai),
        ("Asia/Tokyo", tokyo),
        ("Etc/UTC", utc),
        ("Zulu", utc),
    ):
        (folder / name).write_bytes(data)
    (folder / "zone.tab").write_text("CN\t+3114+12128\tAsia/Shanghai\tBeijing\n#\n")

    def ask(localtime, timezone=None):
        if isinstance(localtime, str):
            os.symlink(localtime, str(tmp_path / "etc" / "localtime"))
        elif localtime is not None:
            (tmp_path / "etc" / "localtime").write_bytes(localtime)
        if timezone:
            (tmp_path / "etc" / "timezone").write_text(timezone)
        return dockfix.host_zone(str(tmp_path))

    return ask, tmp_path, shanghai, tokyo


def test_the_hosts_zone_by_its_link(hosts):
    ask, _root, _, _ = hosts
    assert ask("../usr/share/zoneinfo/Asia/Chongqing", "Asia/Tokyo\n") == "Asia/Chongqing"


def test_the_hosts_zone_by_timezone_where_the_bytes_agree(hosts):
    ask, _, shanghai, _ = hosts
    assert ask(shanghai, "PRC\n") == "PRC"


def test_the_hosts_zone_by_content_where_timezone_is_stale(hosts, monkeypatch):
    ask, _, shanghai, _ = hosts
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert ask(shanghai, "Asia/Tokyo\n") == "Asia/Shanghai"


def test_the_hosts_zone_by_tz_and_by_any_name_and_none(hosts, monkeypatch, dockfix):
    ask, root, shanghai, tokyo = hosts
    monkeypatch.setenv("TZ", ":PRC")
    assert ask(shanghai) == "PRC"
    (root / "etc" / "localtime").write_bytes(tokyo)
    assert dockfix.host_zone(str(root)) == "Asia/Tokyo"
    (root / "etc" / "localtime").unlink()
    assert dockfix.host_zone(str(root)) == "Etc/UTC"
    (root / "etc" / "localtime").write_bytes(tzif(types=((1234, 0, 0),)))
    with pytest.raises(dockfix.DockfixError) as caught:
        dockfix.host_zone(str(root))
    assert "--zone" in caught.value.hint


@pytest.mark.parametrize(
    "target, name",
    [
        ("/usr/share/zoneinfo/Asia/Tokyo", "Asia/Tokyo"),
        ("../usr/share/zoneinfo/posix/UTC", "UTC"),
        ("/etc/x", ""),
        ("/usr/share/zoneinfo/../../x", ""),
        ("/usr/share/zoneinfo/a\nb", ""),
        ("/uclibc/zoneinfo/Etc/GMT+8", "Etc/GMT+8"),
        ("/usr/share/zoneinfo/", ""),
    ],
)
def test_a_links_zone(dockfix, target, name):
    assert dockfix.zone_of_link(target) == name
