"""clock: verdicts, remedies and exit codes, against a docker that is a fake; the host stands in
Asia/Shanghai."""

import os
import re

import pytest

from test_zones import tzif

EAST = 28800
ZONES = {
    "Asia/Shanghai": tzif(b"2", types=((EAST, 0, 0),), names=b"CST\0", footer=b"CST-8"),
    "Asia/Tokyo": tzif(b"2", types=((32400, 0, 0),), names=b"JST\0", footer=b"JST-9"),
    "Etc/UTC": tzif(b"2", types=((0, 0, 0),), footer=b"UTC0"),
}


def in_shanghai(module):
    def zone_data(name, root=""):
        if name not in ZONES:
            raise module.UsageError("this host knows no time zone %s" % name, "")
        return ZONES[name]

    module.zone_data, module.host_zone, module.host_localtime = (
        zone_data,
        lambda root="": "Asia/Shanghai",
        lambda root="": ZONES["Asia/Shanghai"],
    )


def put(box, name, path, content):
    """A file (bytes) or a link (text) in a container's root."""
    where = box.at("fs", name, path.lstrip("/"))
    if not os.path.isdir(os.path.dirname(where)):
        os.makedirs(os.path.dirname(where))
    if isinstance(content, str):
        os.symlink(content, where)
    else:
        with open(where, "wb") as f:
            f.write(content)


def add(box, name, zone=None, env=(), **more):
    """A container whose /etc/localtime is a link to a zone with its data; its `date` agrees unless
    told otherwise."""
    one = box.container(name, inspect={"Config": {"Env": ["PATH=/bin", *list(env)]}}, **more)
    if zone:
        put(box, name, "/usr/share/zoneinfo/" + zone, ZONES[zone])
        put(box, name, "/etc/localtime", "/usr/share/zoneinfo/" + zone)
    return one


def street(box):
    add(box, "good", "Asia/Shanghai", date=(0, "+0800"))
    add(box, "utc", date=(0, "+0000"))
    add(box, "tokyo", "Asia/Tokyo", date=(0, "+0900"))
    add(box, "tz", "Asia/Shanghai", ["TZ=UTC0"], date=(0, "+0000"))
    add(box, "bare", None, ["TZ=Asia/Tokyo"], date=(0, "+0000"))
    add(box, "dangling", None, date=(0, "+0000"))
    put(box, "dangling", "/etc/localtime", "/usr/share/zoneinfo/Asia/Shanghai")
    add(box, "faked", "Asia/Shanghai", ["FAKETIME=+8h"], date=(8 * 3600, "+0800"))
    add(box, "preloaded", "Asia/Shanghai", date=(-90, "+0800"))
    put(box, "preloaded", "/etc/ld.so.preload", b"/usr/lib/libfaketime.so.1\n")
    add(box, "odd", "Asia/Shanghai", date=(-400, "+0800"))
    add(
        box,
        "nodate",
        "Asia/Shanghai",
        answer={"rc": 126, "out": b"OCI runtime exec failed: exec failed: no date: unknown"},
    )
    add(box, "nodate-utc", answer={"rc": 127, "err": b"OCI runtime exec failed: not found"})
    add(box, "stopped", "Asia/Tokyo", status="Exited (0) 2 hours ago")
    add(box, "stopped-tz", None, ["TZ=:CST-8"], status="Created")
    add(box, "paused", "Asia/Shanghai", status="Up 2 hours (Paused)")


EXPECTED = {
    "good": ("in sync", "date", ""),
    "utc": ("other zone", "date", "8 hours behind"),
    "tokyo": ("other zone", "date", "1 hour ahead of"),
    "tz": ("TZ variable wins", "date", "8 hours behind"),
    "bare": ("no tzdata", "date", "TZ=Asia/Tokyo"),
    "dangling": ("no tzdata", "date", "leads to no zone file"),
    "faked": ("shifted by libfaketime", "date", "8 hours ahead"),
    "preloaded": ("shifted by libfaketime", "date", "90 s behind"),
    "odd": ("cannot tell", "date", "400 s behind"),
    "nodate": ("in sync", "files", "no `date`"),
    "nodate-utc": ("other zone", "files", "8 hours behind"),
    "stopped": ("other zone", "files", "1 hour ahead"),
    "stopped-tz": ("in sync", "files", "not running"),
    "paused": ("in sync", "files", "paused"),
}
REMEDIES = {
    "other zone": "python3 dockfix.py timezone utc",
    "shifted by libfaketime": "python3 dockfix.py faketime --undo faked",
    "no tzdata": "python3 dockfix.py timezone",
}


def at_one_moment(module):
    """A second that begins between the container's `date` and the middle of the call would make 90
    s into 89."""
    in_shanghai(module)
    module.time.time = lambda: 1.8e9 + 0.4


def test_each_verdict_with_its_remedy(box):
    street(box)
    result = box.quick("clock", "--all", "--stopped", "--json", prelude=at_one_moment)
    assert result.code == 0
    rows = result.rows()
    assert {name: (row["verdict"], row["how"]) for name, row in rows.items()} == {
        name: want[:2] for name, want in EXPECTED.items()
    }
    for name, (verdict, how, words) in EXPECTED.items():
        row = rows[name]
        assert words in row["msg"], (name, row)
        assert (row["offset"] is None) is (how == "files") and (row["uncertainty"] is None) is (
            how == "files"
        )
        assert row["status"] == ("unknown" if verdict == "cannot tell" else "unchanged")
        assert (
            (row["remedy"] == "") is (verdict == "in sync")
            and "%s" not in row["remedy"]
            and (not row["remedy"] or name in row["remedy"])
        )
    assert (
        rows["utc"]["utc_offset"] == 0
        and rows["tokyo"]["utc_offset"] == 32400
        and rows["tokyo"]["zone"] == "Asia/Tokyo"
    )
    assert rows["bare"]["remedy"] == "python3 dockfix.py timezone --zone Asia/Tokyo bare"
    assert abs(rows["faked"]["offset"] - 8 * 3600) < 60
    findings = {one["text"].split(":")[0]: one for one in result.json["findings"]}
    assert set(findings) == {want[0] for want in EXPECTED.values()} - {"in sync"} and all(
        one["remedy"] for one in findings.values()
    )
    assert (
        findings["other zone"]["remedy"]
        == "python3 dockfix.py --state %s timezone nodate-utc stopped tokyo utc" % box.state
    )
    assert result.json["host"] == {"zone": "Asia/Shanghai", "utc_offset": EAST}


def test_one_inspect_and_at_most_one_exec_for_each_container(box):
    street(box)
    box.quick("clock", "--all", "--stopped", prelude=in_shanghai)
    execs = [call.words[1] for call in box.calls("exec")]
    assert (
        len(box.calls("inspect")) == 1
        and len(box.calls("ps")) == 1
        and len(execs) == len(set(execs))
    )
    assert (
        box.id("stopped") not in execs
        and box.id("paused") not in execs
        and len(execs) == len(EXPECTED) - 3
    )
    assert not os.path.exists(box.state)  # it only looks: no lock, no state


@pytest.mark.parametrize(
    "names, code",
    [
        (["good"], 0),
        (["good", "utc"], 3),
        (["odd"], 3),
        (["stopped"], 3),
        (["nodate"], 0),
        (["bare"], 3),
        (["tz"], 3),
    ],
)
def test_check_is_exit_3_for_every_verdict_but_in_sync(box, names, code):
    street(box)
    assert box.quick("clock", "--check", *names, prelude=in_shanghai).code == code
    assert box.quick("clock", *names, prelude=in_shanghai).code == 0


def test_max_skew(box):
    add(box, "late", "Asia/Shanghai", date=(-30, "+0800"))
    assert box.quick("clock", "late", "--check", "--max-skew", "60", prelude=in_shanghai).code == 0
    assert box.quick("clock", "late", "--check", "--max-skew=20", prelude=in_shanghai).code == 3
    for wrong in ("-1", "x", "nan"):
        assert box.quick("clock", "late", "--max-skew=" + wrong, prelude=in_shanghai).code == 2


def test_a_slow_answer_is_not_a_skew(box):
    """Where the call takes long, only what lies outside of all of it is off."""
    add(box, "slow", "Asia/Shanghai", date=(0, "+0800"))
    box.rule("exec", sleep=3.2)
    result = box.run("clock", "slow", "--json", "--max-skew", "0.1", prelude=in_shanghai)
    assert (
        result.rows()["slow"]["verdict"] == "in sync"
        and result.rows()["slow"]["uncertainty"] >= 1.5
    )


def test_no_answer_is_judged_by_the_files(box):
    add(box, "mute", "Asia/Tokyo", date=(0, "+0900"))
    box.rule("exec", sleep=600)
    row = box.run("clock", "mute", "--json", "--timeout", "2", prelude=in_shanghai).rows()["mute"]
    assert (
        row["verdict"] == "other zone"
        and row["how"] == "files"
        and "no answer in 2 s" in row["msg"]
    )


def test_a_flood_instead_of_a_date_is_cut_off(box):
    add(box, "flood", "Asia/Tokyo", answer={"out": b"1 +0000\n" * (1 << 20)})
    box.wrap_docker('$INNER "$@"; code=$?; echo "$1" >>%s; exit $code' % box.at("ended"))
    row = box.run("clock", "flood", "--json", prelude=in_shanghai).rows()["flood"]
    assert row["verdict"] == "other zone" and row["how"] == "files" and len(row["msg"]) < 1000
    assert (
        [call.command for call in box.calls()].count("exec") == 1
        and "exec" not in box.read("ended").decode().split()
        and "cp" in box.read("ended").decode().split()
    )


@pytest.mark.parametrize(
    "answer",
    [
        {"out": b""},
        {"out": b"Wed Nov 25\n"},
        {"out": b"99999999999999999999 +0000\n"},
        {"rc": 1, "err": b"date: not for you\n"},
        {"out": b"\x1b]0;x\x07 +0800\n"},
        {"out": b"1 +0000\n2 +0000\n"},
    ],
)
def test_odd_answers_are_not_believed(box, answer):
    add(box, "odd", "Asia/Tokyo", answer=answer)
    result = box.quick("clock", "odd", "--json", prelude=in_shanghai)
    row = result.rows()["odd"]
    assert row["verdict"] == "other zone" and row["how"] == "files" and row["offset"] is None


def test_what_is_gone_is_skipped(box):
    add(box, "good", "Asia/Shanghai", date=(0, "+0800"))
    add(box, "brief", "Asia/Tokyo")
    box.rule("inspect", remove="brief")
    result = box.quick("clock", "--all", "--check", "--json", prelude=in_shanghai)
    assert (
        result.code == 0
        and result.statuses() == {"good": "unchanged", "brief": "skipped"}
        and result.json["findings"] == []
    )
    box.forget()
    box.world["rules"] = []
    box.rule("exec", has=box.id("brief"), remove="brief")
    assert (
        box.quick("clock", "--all", "--check", "--json", prelude=in_shanghai).statuses()["brief"]
        == "skipped"
    )


def test_hostile_names_of_zones_do_not_steer_the_terminal(box):
    add(box, "bad", date=(0, "+0000"))
    put(box, "bad", "/etc/localtime", "/tmp/\x1b]0;pwned\x07\n; rm -rf /")
    add(box, "worse", env=["TZ=$(touch /tmp/PWNED)\x1b[2J"], date=(0, "+0000"))
    result = box.quick("clock", "--all", prelude=in_shanghai)
    assert result.code == 0 and not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", result.out + result.err)
    assert b"touch" not in b"".join(line for line in result.err.split(b"\n") if b"remedy" in line)


def test_the_table_has_the_host_and_what_each_figure_is_worth(box):
    street(box)
    result = box.quick("clock", "good", "utc", "nodate", prelude=in_shanghai)
    lines = result.out.decode().splitlines()
    assert lines[-1] == "3 containers; the host: Asia/Shanghai +0800" and lines[0].split() == [
        "CONTAINER",
        "ID",
        "VERDICT",
        "ZONE",
        "UTC",
        "CLOCK",
        "MESSAGE",
    ]
    assert (
        re.search(
            r"good +\w{12} +in sync +Asia/Shanghai +\+0800 +[+-]\d\.\d s \(within \d\.\d\)$",
            lines[1],
        )
        and " ?  " in lines[3]
    )
    assert (
        "remedy: python3 dockfix.py --state %s timezone utc\n" % box.state
    ).encode() in result.err
    assert box.quick("clock", "good", "-q", prelude=in_shanghai).out == b""


def test_a_zone_file_too_large_or_no_file_is_told(box):
    add(box, "big", status="Exited (0) 1 hour ago")
    put(box, "big", "/etc/localtime", bytes(1 << 19))
    add(box, "dir", status="Exited (0) 1 hour ago")
    os.makedirs(box.at("fs", "dir", "etc", "localtime"))
    rows = box.quick("clock", "--all", "--stopped", "--json", prelude=in_shanghai).rows()
    assert (
        rows["big"]["verdict"] == "cannot tell"
        and rows["big"]["utc_offset"] is None
        and "bytes" in rows["big"]["msg"]
    )
    assert rows["dir"]["verdict"] == "no tzdata"


def test_the_message_says_whether_clock_or_zone_was_not_read(box):
    """Only the zone file is too large, so `date` says all that counts; or neither can be read."""
    add(box, "zone", date=(0, "+0800"))
    put(box, "zone", "/etc/localtime", bytes(1 << 19))
    add(box, "both", status="Exited (0) 1 hour ago")
    put(box, "both", "/etc/localtime", bytes(1 << 19))
    rows = box.quick("clock", "--all", "--stopped", "--json", prelude=in_shanghai).rows()
    assert rows["zone"]["verdict"] == "in sync" and rows["zone"]["how"] == "date"
    assert rows["zone"]["msg"].startswith("its zone was not read: ")
    assert "its clock was not read" not in rows["zone"]["msg"]
    clock_fault, zone_fault = rows["both"]["msg"].split("; ", 1)
    assert clock_fault == "its clock was not read: it is not running"
    assert zone_fault.startswith("its zone was not read: ") and "bytes" in zone_fault
