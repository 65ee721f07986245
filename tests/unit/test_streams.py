"""Pipes that break, disks that are full, descriptors that are closed, locales that cannot say it,
signals in mid run."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from common import wait_until

CHINESE = "\u5bb9\u5668"
LINES = b"root:x\n"


def clean(data):
    return b"Traceback" not in data and b"Exception ignored" not in data and b"Error in" not in data


def send(pid, number):
    """A signal, and the time to take it: a second one of its kind that comes before that would be
    lost. One that ends the process stays marked as waiting."""

    def taken():
        with open("/proc/%d/status" % pid) as f:
            status = f.read()
        return (
            "State:\tZ" in status
            or not int(re.search(r"ShdPnd:\s*([0-9a-f]+)", status).group(1), 16) >> (number - 1) & 1
        )

    os.kill(pid, number)
    wait_until(taken, "delivery of the signal")
    time.sleep(0.15)


def wait_for_file(path):
    wait_until(lambda: os.path.exists(path), path)


# ---- standard streams


def broken_pipe():
    readable, writable = os.pipe()
    os.close(readable)
    return writable


@pytest.mark.parametrize(
    "args",
    [("chpasswd", "web1"), ("--json", "chpasswd", "web1"), ("-n", "chpasswd", "web1")],
    ids=" ".join,
)
def test_a_reader_that_went_away_stops_nothing(web, args):
    pipe = broken_pipe()
    result = web.run(*args, stdin=LINES, stdout=pipe)
    os.close(pipe)
    assert clean(result.err) and result.rc == 0, result
    assert (web.field("web1") != b"*") == ("-n" not in args)


def test_help_into_head(web):
    pipe = broken_pipe()
    result = web.run("--help", stdout=pipe, state=False)
    os.close(pipe)
    assert clean(result.err) and result.rc != 120, result


def test_script_into_head(box):
    box.container("web1", answer={"out": b"line\n" * 100000})
    command = "'%s' '%s' --state '%s' exec web1 --max-output 8M -- x | head -1" % (
        sys.executable,
        box.module.__file__,
        box.state,
    )
    result = box.spawn(["sh", "-c", command])
    assert result.out.startswith(b"== web1") and result.err == b""


@pytest.mark.parametrize(
    "args",
    [
        ("exec", "--all", "--", "x"),
        ("--json", "exec", "--all", "--", "x"),
        ("--version",),
        ("--help",),
    ],
    ids=" ".join,
)
def test_a_full_disk_as_stdout_is_told_and_no_success(web, args):
    full = os.open("/dev/full", os.O_WRONLY)
    result = web.quick(*args, stdout=full)
    os.close(full)
    assert result.rc not in (0, 120) and clean(result.err) and result.err != b"", result


def test_the_work_is_done_before_a_full_disk_is_noticed(web):
    full = os.open("/dev/full", os.O_WRONLY)
    web.run("chpasswd", "web1", stdin=LINES, stdout=full)
    os.close(full)
    assert web.field("web1") != b"*"


@pytest.mark.parametrize("closed", [[1], [2], [1, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_closed_descriptors_are_not_written_into(web, flags, closed):
    """The next file that is opened gets the free number: it must not receive the output."""
    path = web.file("secret", b"pw")
    result = web.run(*((*flags, "chpasswd", "web1", "--password-file", path)), closed=closed)
    # closed for standard output: the environment's fault; nothing is written to standard error here
    assert clean(result.err) and result.rc == (6 if 1 in closed else 0), result
    assert web.field("web1") != b"*"
    for name in os.listdir(web.state):
        assert b"web1" not in web.read(os.path.join("state", name))
    assert b"web1" not in web.read("secret")


def test_closed_stdin_is_an_empty_one(web):
    result = web.run("chpasswd", "--all", closed=[0])
    assert result.rc == 2 and clean(result.err) and not web.calls("exec")
    path = web.file("secret", b"pw")
    assert (
        web.run("chpasswd", "web1", "--password-file", path, closed=[0]).rc == 0
        and web.field("web1") != b"*"
    )
    assert web.run("exec", "web1", "--", "x", closed=[0]).rc == 0


def test_a_directory_as_stdin(web):
    fd = os.open(web.path, os.O_RDONLY)
    result = web.run("chpasswd", "--all", stdin=fd)
    os.close(fd)
    assert result.rc == 2 and clean(result.err) and not web.calls("exec")


# ---- locales

POOR = {
    "LANG=C": {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "POSIX": {"LANG": "POSIX", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "PYTHONIOENCODING": {
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    },
    "not installed": {"LANG": "zh_CN.GB18030", "LC_ALL": "zh_CN.GB18030"},
}


@pytest.mark.parametrize("locale", sorted(POOR))
def test_chinese_in_words_paths_and_output(box, locale):
    box.container("web1", answer={"out": CHINESE.encode("utf-8") + b"\n"})
    folder = box.at(CHINESE)
    result = box.script(
        "--state", folder, "exec", "web1", "--", "echo", CHINESE, state=False, env=POOR[locale]
    )
    assert result.rc == 0 and clean(result.err), result
    assert "web1 | " in result.out.decode("utf-8") and os.path.isdir(folder)
    assert "web1 | {}\n".format(CHINESE).encode("utf-8") in result.out
    assert box.calls("exec")[0].argv[-1] == CHINESE.encode("utf-8")


def test_errors_about_chinese_names_and_paths(box):
    box.container("web1")
    script = (
        "{0} {1} --state {2} exec {3} -- x; {0} {1} --state {2} chpasswd --password-file /none/{3}"
        " web1 --json; echo $?".format(sys.executable, box.module.__file__, box.state, CHINESE)
    )
    result = box.spawn(["sh", "-c", script], env=POOR["LANG=C"])
    assert clean(result.err), result
    document, code = result.out.decode("ascii").rsplit("}", 1)
    assert code.split() == ["2"] and CHINESE in json.loads(document + "}")["errors"][0]["msg"]


def test_undecodable_words_reach_docker_as_they_are(web):
    odd = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
    assert web.run("--json", "exec", "web1", "--", "echo", odd).rc == 0
    assert web.calls("exec")[0].argv[-1] == b"caf\xe9 \xff"
    assert web.run("exec", odd, "--", "x").rc == 2
    result = web.run("--json", "exec", odd, "--", "x")
    assert result.rc == 2 and result.json["errors"]


@pytest.mark.parametrize("flags", [(), ("--json",), ("-v",), ("-n",)], ids=" ".join)
def test_a_stream_that_speaks_ascii_only(box, flags):
    box.container("web1", answer={"out": CHINESE.encode("utf-8") + b"\n"})
    result = box.run(*((*flags, "exec", "web1", "--", "echo", CHINESE)), encoding="ascii")
    assert result.rc == 0 and clean(result.err), result


# ---- signals


def interrupted(box, numbers, *args, **how):
    """web1 is done, web2 is under way, db not begun: now the signals come; then web2 is let go."""
    box.rule("exec", has=box.id("web2"), touch=["waiting"], **{"await": "go"})
    pid = box.start(box.arguments(args), **how)
    wait_for_file(box.at("waiting"))
    for number in numbers:
        send(pid, number)
    if len(numbers) == 1:
        box.file("go", b"")
    result = box.outcome(pid)
    box.file("go", b"")
    return result


COMMANDS = [
    ["exec", "web1", "web2", "db", "--jobs", "1", "--", "x"],
    ["chpasswd", "web1", "web2", "db", "--jobs", "1"],
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("args", COMMANDS, ids=["exec", "chpasswd"])
def test_a_signal_finishes_what_runs_begins_nothing_and_really_kills(web, number, args):
    result = interrupted(web, [number], "--json", *args, stdin=LINES)
    assert result.rc == -number and clean(result.err), result
    assert result.json["exit_code"] == 128 + number and result.json["ok"] is False
    statuses = result.statuses()
    assert (statuses["web1"], statuses["web2"]) == ("changed", "changed") and statuses.get(
        "db"
    ) in ("skipped", "failed", None), statuses
    assert not [c for c in web.calls("exec") if web.id("db") in c.words] and web.field("db") == b"*"


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGINT] * 2, [signal.SIGTERM] * 2, [signal.SIGTERM, signal.SIGINT]],
    ids=["INT INT", "TERM TERM", "TERM INT"],
)
@pytest.mark.parametrize("args", COMMANDS, ids=["exec", "chpasswd"])
def test_a_second_signal_ends_it_at_once(web, numbers, args):
    result = interrupted(web, numbers, "--json", *args, stdin=LINES)
    assert result.rc in [-number for number in numbers] and clean(result.err), result
    statuses = result.statuses()
    assert statuses["web1"] == "changed" and statuses["web2"] in ("unknown", "failed"), statuses


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_in_text_mode_still_tells_what_was_done(web, number):
    result = interrupted(web, [number], *COMMANDS[0])
    assert result.rc == -number and clean(result.err) and b"web1" in result.out, result


def test_ctrl_c_during_the_look(web):
    web.rule("ps", touch=["waiting"], sleep=600)
    pid = web.start(web.arguments(["--json", "exec", "--all", "--", "x"]))
    wait_for_file(web.at("waiting"))
    os.kill(pid, signal.SIGINT)
    result = web.outcome(pid)
    assert result.rc == -signal.SIGINT and result.json["exit_code"] == 130


def test_two_signals_while_docker_cp_writes_are_unknown_and_not_put_back(box):
    box.container("c", status="Exited (0) 1 hour ago")
    box.rule("cp", nth=7, touch=["waiting"], sleep=600)
    pid = box.start(box.arguments(["--json", "chpasswd", "c"]), stdin=LINES)
    wait_for_file(box.at("waiting"))
    for _ in range(2):
        send(pid, signal.SIGINT)
    result = box.outcome(pid)
    assert result.rc == -signal.SIGINT and result.statuses() == {"c": "unknown"}, result
    assert len([call for call in box.calls("cp") if call.words[1] == "-"]) == 1


def test_ctrl_c_where_the_reader_of_the_report_hangs(box):
    box.container("web1", answer={"out": b"line\n" * 100000})
    readable, writable = os.pipe()
    pid = box.start(box.arguments(["exec", "web1", "--", "x"]), stdout=writable)
    os.close(writable)
    os.read(readable, 1)  # it is writing now, and nobody reads on
    time.sleep(0.1)
    os.kill(pid, signal.SIGINT)
    result = box.outcome(pid)
    os.close(readable)
    assert result.rc == -signal.SIGINT and clean(result.err), result


def test_an_interrupt_after_the_first_change_does_not_say_that_nothing_was_changed(web):
    def prelude(module):
        def interrupted(report, before):
            raise module.Interrupted(signal.SIGINT)

        module.check_host_accounts = interrupted

    result = web.run("--json", "chpasswd", "web1", stdin=LINES, prelude=prelude)
    assert (
        result.rc == -signal.SIGINT
        and "nothing" not in result.json["errors"][0]["msg"]
        and web.field("web1") != b"*"
    )
    web.rule("ps", touch=["waiting"], sleep=600)
    pid = web.start(web.arguments(["--json", "exec", "--all", "--", "x"]))
    wait_for_file(web.at("waiting"))
    os.kill(pid, signal.SIGINT)
    assert "nothing was changed" in web.outcome(pid).json["errors"][0]["msg"]


@pytest.mark.parametrize("how", ["closed", "no reader"])
def test_progress_that_nobody_can_read_stops_nothing(web, how):
    """The line of progress comes after two seconds, in the middle of the work."""
    web.rule("exec", sleep=3, has=web.id("web1"))
    more = {"closed": [2]} if how == "closed" else {"stderr": broken_pipe()}
    result = web.run("--json", "exec", "--all", "--jobs", "1", "--", "x", **more)
    assert result.rc == 0 and set(result.statuses().values()) == {"changed"}, result


@pytest.mark.parametrize("closed", [[0], [2], [0, 2], [1, 2]], ids=str)
def test_no_file_takes_the_number_of_a_closed_stream(web, closed):
    web.rule("exec", touch=["waiting"], **{"await": "go"})
    pid = web.start(web.arguments(["exec", "web1", "--", "x"]), closed=closed)
    wait_for_file(web.at("waiting"))
    places = [os.readlink("/proc/%d/fd/%d" % (pid, number)) for number in closed]
    web.file("go", b"")
    web.outcome(pid)
    assert places == ["/dev/null"] * len(closed)


def test_the_script_dies_of_sigint_too(web):
    web.rule("exec", touch=["waiting"], sleep=600)
    web.write_world()
    p = subprocess.Popen(
        [sys.executable, web.module.__file__, "--state", web.state, "exec", "web1", "--", "x"],
        env=web.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for_file(web.at("waiting"))
    send(p.pid, signal.SIGINT)
    p.send_signal(signal.SIGINT)
    _out, err = p.communicate(timeout=60)
    assert p.returncode == -signal.SIGINT and clean(err)


def test_a_signal_while_idle_at_the_start_is_no_traceback(web):
    """SIGINT comes while the program is being read and compiled: quiet or not, it must not look
    like success."""
    web.write_world()
    p = subprocess.Popen(
        [sys.executable, web.module.__file__, "--state", web.state, "exec", "web1", "--", "x"],
        env=web.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # Python itself may lose one while it starts
    wait_until(lambda: p.poll() is not None or p.send_signal(signal.SIGINT), "end")
    p.communicate(timeout=60)
    assert p.returncode != 0


# ---- the lock outlives a killed run


def test_an_orphan_keeps_the_lock(web):
    web.rule("exec", touch=["waiting"], **{"await": "go"})
    pid = web.start(web.arguments(["exec", "web1", "--", "x"]))
    wait_for_file(web.at("waiting"))
    os.kill(pid, signal.SIGKILL)
    assert web.outcome(pid).rc == -signal.SIGKILL
    free = []
    for name in os.listdir(web.state):
        with open(web.at("state", name)) as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(name)
            except (IOError, OSError):
                pass
    web.file("go", b"")
    assert os.listdir(web.state) and free == []
