"""`reclaim`: its pure parts, and bad input. What it does to an engine is tried in tests/engine/test_reclaim.py."""

import pytest


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("1970-01-01T00:00:10Z", 10),
        ("2024-01-31T12:00:00.123456789Z", 1706702400.123456789),
        ("2024-01-31T20:00:00+08:00", 1706702400),
        ("2024-01-31T07:30:00.5-04:30", 1706702400.5),
        ("0001-01-01T00:00:00Z", 0),
        ("", 0),
        (None, 0),
        ("2024-13-01T00:00:00Z", 0),
        ("2024-01-31T12:00:00", 0),
        ("2024-01-31T12:00:00Z; rm -rf", 0),
        (7, 0),
    ],
)
def test_instants_of_docker(dockfix, text, seconds):
    assert dockfix.parse_instant(text) == seconds


@pytest.mark.parametrize(
    "text, seconds", [("0s", 0), ("90s", 90), ("15m", 900), ("12h", 43200), ("30d", 2592000)]
)
def test_ages(dockfix, text, seconds):
    assert dockfix.parse_age(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1", "h", "-1h", "1w", "1h30m", "1.5h", "1h ", "\u0661h", "9" * 9 + "d"]
)
def test_ages_that_are_none(dockfix, text):
    with pytest.raises(dockfix.UsageError):
        dockfix.parse_age(text)


@pytest.mark.parametrize(
    "said, status",
    [
        (
            "Error response from daemon: You cannot remove a running container %s. Stop the container before attempting removal",
            "skipped",
        ),
        (
            'Error response from daemon: conflict: unable to remove repository reference "x" (must force) - container %s is using its referenced image',
            "skipped",
        ),
        ("Error response from daemon: remove %s: volume is in use - [abc]", "skipped"),
        (
            'Error response from daemon: driver "devicemapper" failed to remove root filesystem for %s: device or resource busy',
            "failed",
        ),
        ("nothing that names it", "failed"),
    ],
)
def test_what_is_still_there_is_judged_by_dockers_words(dockfix, said, status):
    ident = "ab" * 32
    spoil = dockfix.Spoil("containers", "web", ident, (ident,), None, "")
    assert (
        dockfix.verdict(spoil, "another line\n" + (said % ident if "%s" in said else said))[0]
        == status
    )


@pytest.mark.parametrize(
    "words, told",
    [
        (["--containers", "--older-than", "1w"], "30d"),
        (["--logs", "--max-log", "5GB"], "5G"),
        (["--images", "--older-than", "1d"], "--older-than goes with --containers"),
        (["--containers", "--unused"], "--unused goes with --images"),
        (["stray"], "takes no words of its own: stray"),
    ],
)
def test_slips_are_told_before_docker_is_asked(box, words, told):
    run = box.run("reclaim", "-y", *words)
    assert run.rc == 2 and told in run.err.decode(), run
    assert box.calls() == []


@pytest.mark.parametrize(
    "garbage", [b"[{}]", b'[{"Id": 7}]', b"nonsense", b'[{"Id": "x", "State": null, "Name": 3}]']
)
def test_a_garbage_docker_is_no_traceback(box, garbage):
    box.container("web")
    box.rule("inspect", out=garbage, rc=0)
    box.rule("images", out=b"", rc=0)
    run = box.quick("reclaim", "--json")
    assert run.rc == 6 and "not understood" in run.json["errors"][0]["msg"], run


def test_only_the_containers_own_mount_is_trimmed(dockfix, tmp_path, monkeypatch):
    """Where the container ended meanwhile, a plain folder of the host's disk is left at that path."""
    asked, found = [], tmp_path.stat().st_dev
    monkeypatch.setattr(
        dockfix.fcntl, "ioctl", lambda fd, *words: asked.append(dockfix.os.fstat(fd).st_ino)
    )
    with pytest.raises(FileNotFoundError):
        dockfix.trim_mount("self", str(tmp_path), "253:999")
    assert asked == []
    dockfix.trim_mount(
        "self", str(tmp_path), "%d:%d" % (dockfix.os.major(found), dockfix.os.minor(found))
    )
    assert asked == [tmp_path.stat().st_ino]
