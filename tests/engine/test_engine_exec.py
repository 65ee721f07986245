"""`exec` on real containers: whose output is whose, what came of it, and nothing raw on the
terminal."""

import json
import os
import re
import subprocess
import time

import pytest


@pytest.fixture(scope="module")
def pair(lab):
    """Two running containers; only the first one has the file /flag."""
    lab.run("one", image="busybox")
    lab.run("two", image="debian")
    lab.inside("one", "touch /flag")
    return lab


@pytest.fixture(scope="module")
def states(pair):
    pair.run("sleeping", image="busybox")
    pair.docker("pause", "sleeping")
    pair.run("dead", image="busybox")
    pair.docker("kill", "dead")
    yield pair
    pair.docker("rm", "-f", "sleeping", "dead")


def sh(*words):
    return ("--", "sh", "-c", *words)


def row_of(run, name="one"):
    row = run.rows[name]
    assert {"rc", "stdout", "stderr", "truncated", "seconds"} <= set(row), row
    return row


# ---------------------------------------------------------------------- text form


def test_output_is_grouped_and_labelled(pair):
    run = pair.dockfix(
        "exec", "one", "two", *sh("echo out $0; sleep 0.1; echo err >&2; echo more", "x")
    )
    assert run.rc == 0, run
    lines = run.text.splitlines()
    heads = [n for n, line in enumerate(lines) if line.startswith("== ")]
    assert [re.match(r"== (\w+): exit 0, [\d.]+ s$", lines[n]).group(1) for n in heads] == [
        "one",
        "two",
    ], run
    for name, part in (("one", lines[heads[0] + 1 : heads[1]]), ("two", lines[heads[1] + 1 :])):
        part = [line for line in part if line.startswith(name)]
        assert sorted(part) == sorted(
            ["%s | out x" % name, "%s | more" % name, "%s ! err" % name]
        ), run


def test_control_characters_and_undecodable_bytes_are_shown_not_sent(pair):
    script = (
        r"printf '\033[31mred\033]0;title\007\r\b\n\377\376caf\303\251\302\205\342\200\256\n';"
        r" printf '\033[2J\n' >&2"
    )
    run = pair.dockfix("exec", "one", *sh(script), env={"LC_ALL": "C.UTF-8"})
    assert (
        run.rc == 0
        and r"one | \x1b[31mred\x1b]0;title\x07" in run.text
        and r"one ! \x1b[2J" in run.text
    ), run
    assert r"\xff\xfe" in run.text
    assert not re.search(
        rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2\x85|\xe2\x80\xae|\xff|\xfe", run.out + run.err
    ), run
    doc = row_of(pair.dockfix("exec", "one", "--json", *sh(script)))
    assert (
        "\x1b[31mred" in doc["stdout"]
        and "\\xff\\xfe" in doc["stdout"]
        and "caf\u00e9" in doc["stdout"]
    )
    assert doc["stderr"] == "\x1b[2J\n"


def test_the_command_arrives_word_by_word(pair):
    """No shell on either side: every word is what it was."""
    words = [
        "a b",
        "",
        "'",
        '"',
        "$HOME",
        "`id`",
        "\\",
        "*",
        ";",
        "--json",
        "-n",
        "\u00e9\u4e2d",
        "new\nline",
    ]
    run = pair.dockfix("exec", "one", "two", "--json", "--", "printf", "%s|", *words)
    assert run.rc == 0, run
    assert [row["stdout"] for row in run.doc["results"]] == [
        "".join(word + "|" for word in words)
    ] * 2


# ---------------------------------------------------------------------- what came of it


@pytest.mark.parametrize(
    "script, statuses, codes, exit_code",
    [
        ("exit 0", ["changed", "changed"], [0, 0], 0),
        ("test -e /flag", ["changed", "failed"], [0, 1], 3),
        ("exit 7", ["failed", "failed"], [7, 7], 1),
        ("exit 126", ["failed", "failed"], [126, 126], 1),
        ("exit 127", ["failed", "failed"], [127, 127], 1),
        ("kill -9 $$", ["failed", "failed"], [137, 137], 1),
    ],
)
def test_exit_statuses(pair, script, statuses, codes, exit_code):
    run = pair.dockfix("exec", "one", "two", "--json", *sh(script))
    assert run.rc == exit_code, run
    assert [row["status"] for row in run.doc["results"]] == statuses and [
        row["rc"] for row in run.doc["results"]
    ] == codes


def test_program_that_is_not_there_is_the_runtimes_error(pair):
    run = pair.dockfix("exec", "one", "--json", "--", "no-such-program")
    row = row_of(run)
    assert (
        run.rc == 1
        and row["status"] == "failed"
        and row["rc"] is None
        and "no-such-program" in json.dumps(row)
    ), run


@pytest.mark.parametrize("name, why", [("sleeping", "paused"), ("dead", "not running")])
def test_errors_of_the_engine_are_no_exit_status(states, name, why):
    run = states.dockfix("exec", "one", name, "--json", "--", "true")
    row = row_of(run, name)
    assert run.rc == 3 and row["status"] == "failed" and row["rc"] is None, run
    assert why in json.dumps(row) and run.rows["one"]["rc"] == 0


def test_all_takes_running_and_paused_ones_and_not_the_stopped(states):
    run = states.dockfix("exec", "--all", "--json", "--", "true")
    assert set(run.rows) == {"one", "two", "sleeping"} and run.rc == 3, run
    run = states.dockfix("exec", "--all", "--exclude", "s*", "--json", "--", "true")
    assert set(run.rows) == {"one", "two"} and run.rc == 0, run
    run = states.dockfix("exec", "--filter", "name=one", "--json", "--", "true")
    assert set(run.rows) == {"one"}, run
    listed = os.path.join(states.new_folder(), "names")
    with open(listed, "w") as f:
        f.write("# a comment\none\n\n%s\n" % states.id("two")[:12])
    run = states.dockfix("exec", "--from", listed, "--json", "--", "true")
    assert set(run.rows) == {"one", "two"}, run
    run = states.dockfix("exec", "t*", "o??", "--json", "--", "true")
    assert set(run.rows) == {"one", "two"}, run


def test_timeout_is_unknown(pair):
    """Killing the client does not kill the process inside, so `failed` would be a guess."""
    run = pair.dockfix(
        "exec",
        "one",
        "two",
        "--timeout",
        "15",
        "--json",
        *sh("if test -e /flag; then echo begun; echo $$ > /hangs; exec sleep 300; fi"),
    )
    row = row_of(run)
    assert (
        row["status"] == "unknown" and row["rc"] is None and run.rows["two"]["status"] == "changed"
    ), run
    assert run.rc == 3 and run.seconds < 60 and row["seconds"] >= 15
    assert row["stdout"] == "begun\n"
    assert pair.docker("top", "one").stdout.count(b"sleep 300") == 1  # it does run on
    pair.inside("one", "kill $(cat /hangs)")


def test_containers_are_worked_on_together(pair):
    """As many at a time as --jobs says."""
    script = sh("date +%s.%N 2>/dev/null; sleep 2")
    single = pair.dockfix("exec", "one", "two", "--jobs", "1", "--json", *script)
    assert single.rc == 0 and single.seconds >= 4, single
    # each waits for the other
    met = pair.recorder(
        'case "$1" in exec) : > %(at)s/$$; n=600; until [ $(ls %(at)s | wc -l) -ge 2 ]; do [ $((n'
        " -= 1)) -gt 0 ] || exit 1; sleep 0.1; done;; esac" % {"at": pair.new_folder()}
    )
    both = pair.dockfix("exec", "one", "two", "--jobs", "2", "--json", "--", "true", recorder=met)
    assert both.rc == 0, both


# ---------------------------------------------------------------------- input, users, scripts


def test_user(pair):
    run = pair.dockfix("exec", "one", "-u", "1000", "--json", "--", "id", "-u")
    assert row_of(run)["stdout"] == "1000\n", run


def test_standard_input_is_empty_unless_given(pair):
    process = subprocess.Popen(
        pair.argv("exec", "one", "two", "--json", "--", "cat"),
        env=pair.engine.env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        doc = json.loads(process.stdout.read().decode())  # ends, though the pipe stays open
        assert [(row["rc"], row["stdout"]) for row in doc["results"]] == [(0, ""), (0, "")]
    finally:
        process.kill()
        process.communicate()
    data = os.path.join(pair.new_folder(), "data")
    with open(data, "wb") as f:
        f.write(b"x" * 300000 + b"\n")
    run = pair.dockfix("exec", "one", "two", "--stdin", data, "--json", "--", "wc", "-c")
    assert [row["stdout"].strip() for row in run.doc["results"]] == ["300001"] * 2, run


def test_script_file_with_arguments(pair):
    path = os.path.join(pair.new_folder(), "script")
    with open(path, "w") as f:
        f.write(
            'echo "$#" "$1" "$2"\nread line; echo "read: $line"\n# the last line has no'
            " newline\nexit 3"
        )
    run = pair.dockfix("exec", "one", "two", "--script", path, "--json", "--", "a b", "-n")
    assert run.rc == 1 and [row["rc"] for row in run.doc["results"]] == [3, 3], run
    assert [row["stdout"].splitlines()[0] for row in run.doc["results"]] == ["2 a b -n"] * 2
    run = pair.dockfix("exec", "one", "two", "--script", "-", "--json", stdin=b"echo $0 and $#\n")
    assert run.rc == 0 and all(
        row["stdout"].endswith(" and 0\n") for row in run.doc["results"]
    ), run
    run = pair.dockfix(
        "exec", "two", "--script", path, "--shell", "/bin/bash", "--json", "--", "x", "y"
    )
    assert row_of(run, "two")["rc"] == 3 and row_of(run, "two")["stdout"].startswith("2 x y\n"), run


# ---------------------------------------------------------------------- a lot of output


@pytest.mark.parametrize("form", ["json", "text"])
def test_three_megabytes_are_cut_and_it_is_said(pair, form):
    """The command is not stopped or blocked by it: its exit status is its own."""
    script = sh("head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2; exit 9")
    run = pair.dockfix(
        "exec", "one", "--max-output", "100k", *((("--json",) if form == "json" else ()) + script)
    )
    assert run.rc == 1, run
    if form == "json":
        row = row_of(run)
        assert (
            row["rc"] == 9
            and row["truncated"]
            and 90000 <= len(row["stdout"]) <= 110000
            and row["stderr"] == "end\n"
        )
    else:
        (cut,) = re.findall(r"\[cut: (\d+) more bytes", run.text)
        (shown,) = re.findall(r"^one \| (x+)$", run.text, re.M)
        assert (
            len(shown) == 3000000 - int(cut) <= 110000
            and "exit 9" in run.text
            and "one ! end" in run.text
        )
    whole = pair.dockfix("exec", "one", "--max-output", "4M", "--json", *script)
    assert len(row_of(whole)["stdout"]) == 3000000 and not row_of(whole)["truncated"]


def test_output_without_end_does_not_fill_the_memory(pair):
    """`yes` for three seconds is gigabytes; what is kept is --max-output."""
    start = time.monotonic()
    run = pair.dockfix(
        "exec",
        "one",
        "--timeout",
        "3",
        "--max-output",
        "1k",
        "--json",
        "--",
        "yes",
        prefix=("prlimit", "--as=1500000000"),
    )
    assert (
        row_of(run)["status"] == "unknown"
        and len(row_of(run)["stdout"]) <= 2048
        and time.monotonic() - start < 60
    ), run
    pair.inside("one", "kill $(pidof yes)")


# ---------------------------------------------------------------------- the usual slips


@pytest.mark.parametrize(
    "words, hint",
    [
        (["exec", "one"], "--"),
        (["exec", "one", "--"], "--"),
        (["exec", "--", "true"], "--all"),
        (["exec", "one", "true"], ""),
    ],
)
def test_slips_are_usage_errors_with_the_right_line(pair, words, hint):
    run = pair.dockfix(*words)
    assert (
        run.rc == 2 and hint in run.err.decode() and run.out == b"" and b"error: " in run.err
    ), run
    doc = pair.dockfix("--json", *words).doc
    assert doc["exit_code"] == 2 and doc["errors"][0]["code"] == 2 and doc["results"] == []
