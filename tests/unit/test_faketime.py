"""faketime as a whole command, on the fake docker: the order of its deeds, what each failure
leaves, and its words."""

import json
import os
import re

import pytest

from test_faketime_pure import little_elf

MARKED = b"/etc/faketimerc"
LIBC = "lib/x86_64-linux-gnu/libc.so.6"


@pytest.fixture
def shiftable(box):
    """A container with a glibc, and a library for it; `date` tells the host's time once, then 8
    hours more."""
    one = box.container("web", inspect={"RestartCount": 0}, date=(28800, "+0000"))
    put(
        box,
        LIBC,
        little_elf(needed=("ld-linux-x86-64.so.2",), wants=(), has=("GLIBC_2.2.5", "GLIBC_2.30")),
    )
    os.makedirs(box.at("fs", "web", "usr", "lib"))
    box.lib = box.file("libfaketime.so.1", little_elf() + MARKED)
    box.rule("exec", has="+%s %z", nth=1, ahead=0)
    box.one = one
    return box


def put(box, path, data):
    full = box.at("fs", "web", path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as f:
        f.write(data)


def files(box):
    found = {}
    for folder, _, names in os.walk(box.at("fs", "web")):
        for name in names:
            path = os.path.join(folder, name)
            if name not in ("passwd", "shadow"):
                found[os.path.relpath(path, box.at("fs", "web"))] = box.read(path)
    return found


def records(box):
    folder = os.path.join(box.state, "undo")
    return os.listdir(folder) if os.path.isdir(folder) else []


def shift(box, *more, **how):
    return box.quick(
        "faketime", "web", "--lib", box.lib, "--watch", "0", *((*more, "--json")), **how
    )


def test_the_order_of_its_deeds(shiftable):
    before = files(shiftable)
    run = shift(shiftable, "--offset", "+8h")
    assert (
        run.rc == 0
        and run.rows()["web"]["offset"] == 28800
        and run.rows()["web"]["library"] == shiftable.lib
    ), run
    now = files(shiftable)
    private = next(name for name in now if "libfaketime-dockfix-" in name)
    assert re.match(r"usr/lib/libfaketime-dockfix-[0-9a-f]{12}\.so\.1$", private) and now[
        private
    ] == shiftable.read(shiftable.lib)
    assert (
        now["etc/faketimerc"] == b"+28800\n"
        and now["etc/ld.so.preload"] == b"/%s\n" % private.encode()
    )
    deeds = [
        call.words
        for call in shiftable.calls()
        if call.words[:2] == ["cp", "-"] or "date" in call.words
    ]
    assert [
        ("write" if words[0] == "cp" else "trial" if "env" in words else "date") for words in deeds
    ] == ["write", "date", "trial", "write", "write", "date"]
    trial = next(words for words in deeds if "env" in words)
    assert (
        trial[2:] == ["env", "LD_PRELOAD=/" + private, "FAKETIME=+28800", "date", "+%s %z"]
        and "-e" not in trial
    )
    undo = shiftable.quick("faketime", "web", "--undo", "--json")
    assert undo.rc == 0 and files(shiftable) == before and records(shiftable) == [], undo


@pytest.mark.parametrize("args", [("--offset", "-1.5d"), ("--offset=-1.5d",)])
def test_an_offset_that_looks_like_an_option(shiftable, args):
    run = shift(shiftable, *((*args, "--dry-run")))
    assert (
        run.rc == 0
        and run.rows()["web"]["offset"] == -129600
        and "--offset=-1.5d" in run.json["script"]
    ), run


@pytest.mark.parametrize(
    "args, word",
    [
        ((), "say one of"),
        (("--offset", "+8h", "--undo"), "say one of"),
        (("--offset", "+8h", "--at", "2030-01-01 00:00:00"), "say one of"),
        (("--offset", "--undo"), "not an offset: --undo"),
        (("--offset", "+1w"), "+1w"),
        (("--status", "--lib", "x"), "--lib"),
        (("--undo", "--step-running"), "--step-running"),
        (("--undo", "--zone", "UTC"), "--zone"),
        (("--status", "--restart"), "--restart"),
        (("--offset", "+8h", "--watch", "-1"), "--watch"),
        (("--offset", "+8h", "--lib", "x", "--build-from", "y"), "--lib"),
        (("--at", "2030-01-01 00:00:00", "--zone", "../../etc/shadow"), "time zone"),
        (("--offset", "+1h30m"), "+1h30m"),
        (("--offset=-99y",), "before 1970"),
        (("--offset", "+999999999y"), "after the year 9999"),
        (("--offset", "+0.2s"), "half a second"),
        (("--at", "1969-12-31 00:00:00"), "before 1970"),
        (("--at", "2030-01-01"), "not a time"),
        (("--at", "2030-01-01 00:00:00", "--zone", "No/Such"), "No/Such"),
        (("--at", "2030-03-10 02:30:00", "--zone", "America/New_York"), "never comes"),
        (("--at", "2030-11-03 01:30:00", "--zone", "America/New_York"), "comes twice"),
        (("--offset", "+8h", "--zone", "UTC"), "--zone"),
        (("--undo", "--lib", "x"), "--lib"),
        (("--offset", "+8h", "--lib", "/nothing/there"), "/nothing/there"),
        (("--offset", "+8h", "--build-from", "/etc"), "source of libfaketime"),
        (("--status", "--build-from", "x"), "--build-from"),
    ],
)
def test_usage(shiftable, args, word):
    before = shiftable.picture()
    run = shiftable.quick("faketime", "web", *((*args, "--json")))
    assert (
        run.rc == 2
        and word in run.json["errors"][0]["msg"]
        and (run.json["errors"][0]["hint"] or "--" in run.json["errors"][0]["msg"])
    ), run
    assert shiftable.picture() == before and shiftable.calls() == []


@pytest.mark.parametrize(
    "rules, word",
    [
        (
            [
                (
                    "exec",
                    dict(
                        has="LD_PRELOAD",
                        err=b"ERROR: ld.so: object cannot be preloaded\n",
                        ahead=28800,
                    ),
                )
            ],
            "cannot be preloaded",
        ),
        (
            [
                (
                    "exec",
                    dict(
                        has="LD_PRELOAD",
                        rc=127,
                        err=b"date: error while loading shared libraries: libx.so\n",
                    ),
                )
            ],
            "libx.so",
        ),
        ([("exec", dict(has="LD_PRELOAD", rc=1))], "trial of"),
        ([("exec", dict(has="LD_PRELOAD", out=b"\n"))], "trial of"),
        ([("exec", dict(has="LD_PRELOAD", out=b"100 +0000\n"))], "not by +28800 s"),
    ],
)
def test_a_trial_that_fails_leaves_nothing(shiftable, rules, word):
    before = files(shiftable)
    for on, rule in rules:
        shiftable.rule(on, **rule)
    run = shift(shiftable, "--offset", "+8h")
    row = run.rows()["web"]
    assert (
        run.rc == 5 and row["status"] == "refused" and word in row["msg"] and row["offset"] is None
    ), run
    assert files(shiftable) == before and records(shiftable) == []


def test_a_clock_that_is_off_already_is_refused(shiftable):
    shiftable.world["rules"] = []
    shiftable.one["date"] = (-4000, "+0000")
    run = shift(shiftable, "--offset", "+8h")
    assert run.rc == 5 and "off already" in run.rows()["web"]["msg"], run
    assert records(shiftable) == []


def fail_in_the_watch(box):
    """The first `date` meets the fixture's rule, the trial the one in front: the third is the
    watch's."""
    box.world["rules"].insert(0, {"on": "exec", "has": "LD_PRELOAD", "ahead": 28800})
    box.rule("exec", has="+%s %z", nth=1, rc=1, err=b"date: killed\n")


def test_what_fails_after_the_writes_is_put_back(shiftable):
    before = files(shiftable)
    fail_in_the_watch(shiftable)
    run = shift(shiftable, "--offset", "+8h")
    assert (
        run.rc == 1
        and "date: killed" in run.rows()["web"]["msg"]
        and "as it was" in run.rows()["web"]["msg"]
    ), run
    assert files(shiftable) == before and records(shiftable) == []


def test_what_cannot_be_put_back_is_said_and_undone_later(shiftable):
    """No docker cp works any more once the watch has failed."""
    before = files(shiftable)
    fail_in_the_watch(shiftable)
    shift(shiftable, "--offset", "+8h")
    words = [call.words for call in shiftable.calls()]
    last = max(number for number, one in enumerate(words) if "date" in one)
    done = sum(one[0] == "cp" for one in words[:last])
    shiftable.forget()
    shiftable.world["rules"] += [
        {"on": "cp", "has": "-", "nth": done + 1, "rc": 1, "err": b"no space left on device\n"}
        for _ in range(30)
    ]
    run = shift(shiftable, "--offset", "+8h")
    row = run.rows()["web"]
    assert (
        run.rc == 3
        and row["status"] == "failed"
        and row["partial"] is True
        and "date: killed" in row["msg"]
        and "as it was" not in row["msg"]
    ), run
    assert len(records(shiftable)) == 1
    shiftable.world["rules"] = []
    assert (
        "cut off" in shiftable.quick("faketime", "web", "--status", "--json").rows()["web"]["msg"]
    )
    undo = shiftable.quick("faketime", "web", "--undo", "--json")
    assert undo.rc == 0 and files(shiftable) == before and records(shiftable) == [], undo


@pytest.mark.parametrize(
    "change, word",
    [
        (
            lambda box: put(box, "etc/faketimerc", b"+1 fortnight\n"),
            "no plain offset (+1 fortnight)",
        ),
        (lambda box: put(box, "etc/faketimerc", b"2020-01-01 00:00:00\n"), "no plain offset"),
        (lambda box: put(box, "etc/faketimerc", b"+8h\n+8h\n"), "no plain offset"),
        (lambda box: put(box, "etc/ld.so.preload", b"/opt/libfaketime.so.1\n"), "not dockfix's"),
        (lambda box: put(box, LIBC, b"nothing"), "not an ELF file"),
        (lambda box: os.unlink(box.at("fs", "web", LIBC)), "no glibc"),
        (lambda box: put(box, LIBC, little_elf(machine=183, has=("GLIBC_2.30",))), "aarch64"),
        (lambda box: put(box, LIBC, little_elf(has=("GLIBC_2.2",))), "GLIBC_2.4"),
        (
            lambda box: put(box, LIBC, little_elf(bits=32, machine=3, has=("GLIBC_2.30",))),
            "for 32-bit x86",
        ),
        (lambda box: os.rmdir(box.at("fs", "web", "usr", "lib")), "no /usr/lib"),
        (lambda box: box.file("libfaketime.so.1", little_elf()), "no libfaketime"),
        (lambda box: box.file("libfaketime.so.1", MARKED), "not an ELF file"),
        (
            lambda box: box.file(
                "libfaketime.so.1", little_elf(needed=("libc.so.6", "libx.so.2")) + MARKED
            ),
            "libx.so.2",
        ),
    ],
)
def test_refusals_before_anything_is_written(shiftable, change, word):
    change(shiftable)
    before = files(shiftable)
    run = shift(shiftable, "--offset", "+8h")
    assert run.rc == 5 and word in run.rows()["web"]["msg"], run
    assert (
        files(shiftable) == before
        and records(shiftable) == []
        and not [call for call in shiftable.calls() if call.words[:2] == ["cp", "-"]]
    )


@pytest.mark.parametrize(
    "more, word",
    [
        (dict(status="Exited (0) 1 hour ago"), "does not run"),
        (dict(status="Up 1 hour (Paused)"), "paused"),
        (dict(status="Restarting (1) 1 s ago"), "restarting"),
        (dict(host={"ReadonlyRootfs": True}), "read-only"),
        (dict(host={"Binds": ["/x:/etc/ld.so.preload:ro"]}), "is a mount"),
        (dict(host={"Tmpfs": {"/usr/lib": ""}}), "is a mount"),
        (dict(inspect={"Config": {"Env": ["FAKETIME=+1d"], "User": ""}}), "FAKETIME"),
        (dict(inspect={"Config": {"Env": ["LD_PRELOAD=/opt/libfaketime.so.1"]}}), "LD_PRELOAD"),
    ],
)
def test_states_that_are_refused(box, more, word):
    box.container("web", **more)
    box.lib = box.file("libfaketime.so.1", little_elf() + MARKED)
    run = shift(box, "--offset", "+8h")
    assert run.rc == 5 and word in run.rows()["web"]["msg"], run


def test_the_entrypoint_that_goes_on_as_another_user(shiftable):
    """Seen in the words, or in the script that they name; a comment is none; the newest library
    may."""

    def with_words(*words):
        document = json.loads(shiftable.one["json"])
        document.update(Path=words[0], Args=list(words[1:]))
        shiftable.one["json"] = json.dumps(document)
        return shift(shiftable, "--offset", "+8h", "--dry-run")

    put(shiftable, "entry.sh", b'#!/bin/sh\nexec gosu postgres "$@"\n')
    put(shiftable, "plain.sh", b'#!/bin/sh\n# no gosu here, nor su -\nexec "$@" # resume\n')
    for words in (
        ("/entry.sh", "postgres"),
        ("sh", "/entry.sh"),
        ("sh", "-c", "exec setpriv --reuid 1 x"),
        ("tini", "--", "/entry.sh"),
        ("/usr/bin/su-exec", "x", "y"),
    ):
        run = with_words(*words)
        assert run.rc == 5 and "another user" in run.rows()["web"]["msg"], (words, run)
    for words in (("/plain.sh", "postgres"), ("issue", "resume")):
        assert with_words(*words).rc == 0, words
    shiftable.file("libfaketime.so.1", little_elf() + b"FAKETIME_FOLLOW_ABSOLUTE" + MARKED)
    assert with_words("/entry.sh", "postgres").rc == 0


def test_a_clock_of_32_bits_ends_in_2038(shiftable):
    put(
        shiftable,
        LIBC,
        little_elf(bits=32, machine=3, needed=("ld-linux.so.2",), wants=(), has=("GLIBC_2.30",)),
    )
    shiftable.file("libfaketime.so.1", little_elf(bits=32, machine=3) + MARKED)
    run = shift(shiftable, "--at", "2038-01-19 03:14:08", "--zone", "UTC")
    assert (
        run.rc == 5 and "January 2038" in run.rows()["web"]["msg"] and records(shiftable) == []
    ), run
    assert shift(shiftable, "--offset", "+8h", "--dry-run").rc == 0


def test_restart_asks_and_stops_before_it_writes(shiftable):
    run = shift(shiftable, "--offset", "+8h", "--restart")
    assert (
        run.rc == 5 and "restart web?" in run.json["errors"][0]["msg"] and records(shiftable) == []
    ), run


STARTED = "2026-01-01T10:00:00.95"
TALKS = b"".join(b"2026-01-01T10:00:%02d.5Z one more\n" % second for second in range(1, 9))


@pytest.mark.parametrize(
    "before, after, watch, good",
    [
        (b"", b"", "2", True),
        (TALKS, b"", "2", False),
        (TALKS, b"", "0", True),  # nobody looked
        (
            b"2026-01-01T10:00:00.949Z ready\n",
            b"2026-01-01T10:00:00.949Z ready\n",
            "2",
            True,
        ),  # a little before docker's note of the start
        (b"2026-01-01T10:00:01.1Z ready\n", b"", "2", False),
        (
            b"2026-01-01T10:00:01.1Z ready\n",
            b"2026-01-01T10:00:00.5Z the end of the run before\n",
            "2",
            False,
        ),
        (TALKS, TALKS[:64], "8", False),  # its first words, and then no more
        (TALKS, b"2026-01-01T10:00:01Z x\n" * 50000, "2", True),  # more than is read
        (b"no stamp\n\xff\n99999-01-01T10:00:01Z x\n", b"", "2", True),
    ],
)
def test_what_falls_silent_after_a_restart_is_put_back(shiftable, before, after, watch, good):
    document = json.loads(shiftable.one["json"])
    document["State"]["StartedAt"] = STARTED + "Z"
    shiftable.one["json"] = json.dumps(document)
    shiftable.rule("logs", nth=1, out=before)
    shiftable.rule("logs", out=after)

    def no_waiting(module):  # time goes by as it is slept
        gone, clock = [0.0], module.time.monotonic
        module.time.monotonic = lambda: clock() + gone[0]
        module.time.sleep = lambda seconds: gone.__setitem__(0, gone[0] + seconds)

    run = shift(
        shiftable, "--offset", "+8h", "--restart", "--yes", "--watch", watch, prelude=no_waiting
    )
    row = run.rows()["web"]
    assert (run.rc, row["status"]) == ((0, "changed") if good else (1, "failed")), run
    assert good or (
        "wrote nothing" in row["msg"] and "as it was" in row["msg"] and records(shiftable) == []
    ), run


def test_a_change_that_was_cut_off_is_told(shiftable):
    assert shift(shiftable, "--offset", "+8h").rc == 0
    path = os.path.join(shiftable.state, "undo", records(shiftable)[0])
    record = json.loads(shiftable.read(path).decode())
    record["more"]["done"] = False
    with open(path, "w") as f:
        json.dump(record, f)
    assert (
        "cut off" in shiftable.quick("faketime", "web", "--status", "--json").rows()["web"]["msg"]
    )
    run = shift(shiftable, "--offset", "+9h")
    assert run.rc == 5 and "--undo web" in run.rows()["web"]["msg"], run
    assert shiftable.quick("faketime", "--all", "--undo").rc == 0 and "etc/faketimerc" not in files(
        shiftable
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["more"].update(build="/"),
        lambda record: record["more"].update(build="/etc"),
        lambda record: record["more"].update(build="/.dockfix-build-0123456789ab/../etc"),
        lambda record: record["more"].update(build="/.dockfix-build-0123456789ab\n"),
        lambda record: record["more"].update(build=["/"]),
        lambda record: record["more"].pop("build"),
        lambda record: record["more"].update(offset="+8h"),
        lambda record: record["more"].update(done=1),
        lambda record: record.update(more=[]),
        lambda record: record["members"][0].update(path="/etc/shadow"),
        lambda record: record["members"][0].update(path="/etc/ld.so.preload\n"),
        lambda record: record["members"][2].update(
            path="/usr/lib/libfaketime-dockfix-../../etc/x.so.1"
        ),
        lambda record: record["members"][0].update(kind="dir"),
        lambda record: record["members"][0].update(mode="0644"),
        lambda record: record["members"][0].update(link=None),
        lambda record: record["members"][0].pop("path"),
        lambda record: record.update(id="f" * 64),
        lambda record: record.update(kind="timezone"),
        lambda record: record.update(schema="dockfix-undo/2"),
    ],
)
def test_a_record_that_dockfix_did_not_make_is_not_acted_on(shiftable, change):
    """It would be done as root inside the container."""
    assert shift(shiftable, "--offset", "+8h").rc == 0
    path = os.path.join(shiftable.state, "undo", records(shiftable)[0])
    before, record = files(shiftable), json.loads(shiftable.read(path).decode())
    assert record["members"][2]["path"].startswith("/usr/lib/")
    change(record)
    with open(path, "w") as f:
        json.dump(record, f)
    shiftable.forget()
    run = shiftable.quick("faketime", "web", "--undo", "--json")
    assert (
        run.rc == 1
        and "cannot be read" in run.rows()["web"]["msg"]
        and path in run.rows()["web"]["msg"]
    ), run
    assert files(shiftable) == before and not [
        call
        for call in shiftable.calls()
        if call.command == "exec" or call.words[:2] == ["cp", "-"]
    ]
    shiftable.world["containers"] = [
        dict(
            shiftable.one,
            id="e" * 64,
            json=shiftable.one["json"].replace(shiftable.one["id"], "e" * 64),
        )
    ]
    assert (
        shiftable.quick("faketime", "web", "--status").rc == 0
        and shiftable.quick("faketime", "web", "--undo").rc == 0
    )  # the others' are not held up by it


def test_the_recipe_names_no_library_that_it_would_not_suit(shiftable):
    for data, named in ((MARKED, False), (b"FAKETIME_DISABLE_SHM" + MARKED, True)):
        shiftable.file("libfaketime.so.1", little_elf() + data)
        [finding] = shift(shiftable, "--offset", "+8h").json["findings"]
        assert (
            ("-v %s:" % shiftable.lib) in finding["remedy"]
        ) is named and "FAKETIME=+28800" in finding["remedy"], finding
        shiftable.one["date"] = (0, "+0000")
        assert shiftable.quick("faketime", "web", "--undo").rc == 0


def test_hostile_names_and_files_stay_off_the_terminal(shiftable):
    put(shiftable, "etc/ld.so.preload", b"/opt/\x1b[2Jlibfaketime.so\n")
    run = shiftable.quick("faketime", "web", "--lib", shiftable.lib, "--offset", "+8h")
    assert run.rc == 5 and b"\x1b" not in run.out + run.err and b"\\x1b[2J" in run.out, run
