"""exec: what docker is asked, how its answer is told from the command's, and what reaches the
terminal."""

import os
import time

import pytest

from conftest import pid_alive

DAEMON_TEXTS = {
    "stopped": (1, b"", b"Error response from daemon: Container 0123 is not running\n"),
    "paused": (
        1,
        b"",
        (
            b"Error response from daemon: Container 0123 is paused, unpause the container before"
            b" exec\n"
        ),
    ),
    "not found, old runtime": (
        126,
        (
            b"rpc error: code = 2 desc = oci runtime error: exec failed: container_linux.go:247:"
            b' starting container process caused "exec: \\"x\\": executable file not found in'
            b' $PATH"\r\n'
        ),
        b"",
    ),
    "not found on stdout": (
        126,
        (
            b'OCI runtime exec failed: exec failed: unable to start container process: exec: "x":'
            b" executable file not found in $PATH: unknown\r\n"
        ),
        b"",
    ),
    "not found, 28": (
        127,
        b"",
        (
            b'OCI runtime exec failed: exec failed: unable to start container process: exec: "x":'
            b" executable file not found in $PATH\n"
        ),
    ),
    "daemon gone": (
        1,
        b"",
        (
            b"Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker"
            b" daemon running?\n"
        ),
    ),
}


@pytest.fixture
def answer(box):
    def make(name="web1", **how):
        box.container(name, answer=how)
        return box

    return make


def test_each_container_gets_the_words_as_they_are(web):
    words = ["ls", "-n", "--json", "a b", "$HOME", "*", "'", "\n", "--"]
    result = web.run("--json", "exec", "web1", "web2", "--", *words)
    assert result.rc == 0 and result.statuses() == {"web1": "changed", "web2": "changed"}
    assert sorted(c.words for c in web.calls("exec")) == sorted(
        ["exec", web.id(name), *words] for name in ("web1", "web2")
    )


def test_a_row_holds_what_the_command_said(answer):
    box = answer(out=b"one\ntwo\n", err=b"oops\n", rc=3)
    started = time.monotonic()
    result = box.run("--json", "exec", "web1", "--", "x")
    row = result.rows()["web1"]
    assert 0 <= row["seconds"] <= time.monotonic() - started + 0.001
    assert (
        result.rc == 1
        and row["status"] == "failed"
        and row["rc"] == 3
        and row["id"] == box.id("web1")
    )
    assert (row["stdout"], row["stderr"], row["truncated"]) == ("one\ntwo\n", "oops\n", False)


def test_text_is_labelled_per_container(answer):
    box = answer(out=b"one\ntwo\n", err=b"oops\n")
    lines = box.quick("exec", "web1", "--", "x").out.decode().splitlines()
    assert lines[0].startswith("== web1: exit 0, ") and lines[0].endswith(" s")
    assert "web1 | one" in lines and "web1 | two" in lines and "web1 ! oops" in lines


def test_some_failed_is_3(web):
    web.container("bad", answer={"rc": 1})
    assert web.quick("exec", "--all", "--", "x").rc == 3


def test_all_failed_is_1(answer):
    box = answer(rc=1)
    assert box.quick("exec", "--all", "--", "x").rc == 1


@pytest.mark.parametrize("name", sorted(DAEMON_TEXTS))
def test_dockers_own_error_has_no_rc(answer, name):
    rc, out, err = DAEMON_TEXTS[name]
    box = answer(rc=rc, out=out, err=err)
    row = box.quick("--json", "exec", "web1", "--", "x").rows()["web1"]
    assert row["rc"] is None and row["status"] == "failed" and row["msg"]


@pytest.mark.parametrize("rc", [1, 2, 125, 126, 127, 137, 255])
def test_the_commands_own_number_is_kept(answer, rc):
    box = answer(rc=rc, err=b"sh: no such thing\n")
    assert box.run("--json", "exec", "web1", "--", "x").rows()["web1"]["rc"] == rc


@pytest.mark.parametrize("text", [b"Error: boo\n", b"Error: cannot open file\n"])
def test_a_command_that_speaks_like_docker_keeps_its_number(answer, text):
    assert (
        answer(rc=1, err=text).quick("--json", "exec", "web1", "--", "x").rows()["web1"]["rc"] == 1
    )


def test_a_command_that_says_its_container_is_gone_is_not_believed(answer):
    """`skipped: gone` is exit 0: a text from inside must not get there."""
    box = answer(rc=1, err=b"Error response from daemon: No such container: web1\n")
    result = box.quick("--json", "exec", "web1", "--", "x")
    assert result.rc == 1 and result.statuses() == {"web1": "failed"}


def test_a_vanished_container_is_skipped(web):
    web.rule("exec", remove="db", has=web.id("db"))
    result = web.quick("--json", "exec", "--all", "--", "x")
    assert result.rc == 0 and result.statuses() == {
        "web1": "changed",
        "web2": "changed",
        "db": "skipped",
    }


def test_without_a_command_the_right_line_is_shown(web):
    result = web.quick("exec", "web1", "ls")
    assert result.rc == 2 and b" -- " in result.err and not web.calls("exec")


@pytest.mark.parametrize(
    "args", [["exec", "web1", "--"], ["exec", "--all"], ["exec", "--", "ls"]], ids=" ".join
)
def test_nothing_to_run_or_nowhere_to_run_it(web, args):
    assert web.quick(*args).rc == 2 and not web.calls("exec")


def test_without_stdin_docker_gets_dev_null(web):
    web.rule("exec", has="probe", out=b"", late=True)
    web.run("exec", "web1", "--", "probe", stdin=b"not for you")
    [call] = web.calls("exec")
    assert "-i" not in call.words and call.stdin == b""


def test_user_is_handed_on(web):
    web.quick("exec", "-u", "app", "web1", "--", "id")
    assert [c.words for c in web.calls("exec")] == [["exec", "-u", "app", web.id("web1"), "id"]]


def test_a_file_on_standard_input(web):
    path = web.file("data", bytes(range(256)))
    web.run("exec", "--stdin", path, "--all", "--", "cat")
    assert {(tuple(c.words[:2]), c.stdin) for c in web.calls("exec")} == {
        (("exec", "-i"), bytes(range(256)))
    }
    assert len(web.calls("exec")) == 3


def test_a_script_goes_to_sh_on_standard_input(web):
    path = web.file("job.sh", b"echo hi\n")
    web.run("exec", "web1", "--script", path, "--", "one", "-n")
    [call] = web.calls("exec")
    assert (
        call.words == ["exec", "-i", web.id("web1"), "sh", "-s", "--", "one", "-n"]
        and call.stdin == b"echo hi\n"
    )


def test_a_script_without_arguments_and_with_another_shell(web):
    path = web.file("job.sh", b"echo hi\n")
    web.quick("exec", "web1", "--script", path, "--shell", "/bin/bash")
    [call] = web.calls("exec")
    assert call.words == ["exec", "-i", web.id("web1"), "/bin/bash", "-s"]


def test_a_script_from_standard_input(web):
    assert web.quick("exec", "--all", "--script", "-", stdin=b"echo hi\n").rc == 0
    assert [c.stdin for c in web.calls("exec")] == [b"echo hi\n"] * 3


@pytest.mark.parametrize(
    "options",
    [
        ["--from", "-", "--script", "-"],
        ["--script", "-", "--stdin", "-"],
        ["--script", "/nonexistent"],
        ["--stdin", "/nonexistent"],
        ["--max-output", "lots"],
        ["--jobs", "0"],
        ["--jobs", "x"],
        ["--timeout", "-1"],
        ["--timeout", "soon"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit_are_exit_2(web, options):
    assert web.quick("exec", *([*options, "web1", "--", "x"]), stdin=b"web2\n").rc == 2
    assert not web.calls("exec")


@pytest.mark.parametrize("shell", ["'", "", " "], ids=repr)
def test_a_shell_that_is_no_command_is_exit_2(web, shell):
    result = web.quick(
        "--json", "exec", "web1", "--script", web.file("fix.sh", b"id\n"), "--shell", shell
    )
    assert result.rc == 2 and "--shell" in result.json["errors"][0]["msg"] and not web.calls("exec")


def test_nothing_reaches_the_terminal_raw(answer):
    box = answer(
        out=b"\x1b]0;evil\x07 red \x1b[31m\r\x08 \xff\xfe \xc2\x9b1m \xe2\x80\xae bidi\n",
        err=b"\x1b[2J\n",
    )
    result = box.quick("exec", "web1", "--", "x")
    assert not set(result.out + result.err) & (set(range(32)) - {10} | {127}), result
    for raw in (b"\xc2\x9b", b"\xe2\x80\xae", b"\xff"):
        assert raw not in result.out + result.err
    assert b"\\x1b[31m" in result.out


def test_json_keeps_undecodable_bytes_visible(answer):
    box = answer(out=b"caf\xe9 \xe5\xae\xb9\xe5\x99\xa8 \0 end")
    row = box.quick("--json", "exec", "web1", "--", "x").rows()["web1"]
    assert (
        "e9" in row["stdout"].lower()
        and "\u5bb9\u5668" in row["stdout"]
        and row["stdout"].endswith("end")
    )
    row["stdout"].encode("utf-8")  # no lone surrogates in the document


def test_chinese_output_is_readable(answer):
    box = answer(out="\u5bb9\u5668\n".encode("utf-8"))
    assert "web1 | \u5bb9\u5668".encode("utf-8") in box.quick("exec", "web1", "--", "x").out


def test_long_output_is_cut_and_that_is_said(answer):
    box = answer(out=b"x" * 5000 + b"\n", err=b"y" * 10)
    row = box.run("--json", "exec", "web1", "--max-output", "1000", "--", "x").rows()["web1"]
    assert (
        row["truncated"] is True
        and row["stdout"].startswith("x" * 1000)
        and len(row["stdout"]) < 1100
        and row["stderr"] == "y" * 10
    )
    text = box.run("exec", "web1", "--max-output", "1000", "--", "x").out
    assert b"[cut: 4001 more bytes" in text


def test_output_of_exactly_the_limit_is_not_cut(answer):
    box = answer(out=b"x" * 1000)
    row = box.run("--json", "exec", "web1", "--max-output", "1000", "--", "x").rows()["web1"]
    assert row["truncated"] is False and row["stdout"] == "x" * 1000


def test_a_flood_neither_fills_memory_nor_blocks(answer):
    box = answer(out=b"x" * (20 << 20))
    row = box.run("--json", "exec", "web1", "--", "x").rows()["web1"]
    assert row["truncated"] is True and row["rc"] == 0 and len(row["stdout"]) < (1 << 20) + 100


def test_time_out_is_unknown_kills_the_group_and_does_not_wait_for_the_pipe(web):
    web.rule("exec", hang=600)
    result = web.run("--json", "exec", "web1", "--timeout", "2", "--", "sleep", "600")
    row = result.rows()["web1"]
    assert (
        row["status"] == "unknown" and row["rc"] is None and result.rc == 3 and row["seconds"] >= 2
    )
    assert web.was_cut_off()


def test_output_before_the_time_out_is_kept(web):
    web.rule("exec", out=b"so far\n", linger=600)
    row = web.run("--json", "exec", "web1", "--timeout", "4", "--", "x").rows()["web1"]
    assert row["status"] == "unknown" and row["stdout"] == "so far\n"


def test_a_grandchild_that_keeps_the_pipe_open_does_not_delay_a_finished_command(box):
    box.container("web1")
    box.wrap_docker(
        'if [ "$1" = exec ]; then setsid sleep 600 & echo $! >%s; fi\nexec $INNER "$@"'
        % box.at("grandchild")
    )
    result = box.run("exec", "web1", "--timeout", "600", "--", "x")
    grandchild = int(box.read("grandchild"))
    assert pid_alive(grandchild)
    os.kill(grandchild, 9)
    assert result.rc == 0 and len(box.calls("exec")) == 1


def test_the_client_is_in_a_process_group_of_its_own(web):
    web.run("exec", "web1", "--", "x")
    [call] = web.calls("exec")
    assert call.pgid != os.getpgrp() and call.pgid == call.pid


def test_children_speak_english(web):
    web.run("exec", "web1", "--", "x", env={"LANG": "zh_CN.UTF-8", "LC_ALL": "zh_CN.UTF-8"})
    assert len(web.calls()) == 2
    for call in web.calls():
        assert call.env.get(b"LC_ALL") == b"C", call


def test_many_containers_are_one_call_each(box):
    count = 200
    box.containers(*["c%03d" % i for i in range(count)])
    result = box.quick("--json", "exec", "--all", "--", "true")
    assert result.rc == 0 and len(result.json["results"]) == count
    assert [row["target"] for row in result.json["results"]] == ["c%03d" % i for i in range(count)]
    assert len(box.calls("exec")) == count and len(box.calls()) <= count + 3


def test_jobs_is_how_many_at_a_time(web):
    """With 3, each waits until all have begun; with 1, none begins before the one before has
    ended."""
    web.wrap_docker("""[ "$1" = exec ] || exec $INNER "$@"
echo begin >>%s; while [ $(grep -c begin %s) -lt $AT_ONCE ]; do sleep 0.02; done
$INNER "$@"; code=$?; echo end >>%s; exit $code""" % ((web.at("log"),) * 3))
    for jobs, log in (("1", b"begin\nend\n" * 3), ("3", b"begin\n" * 3 + b"end\n" * 3)):
        web.file("log", b"")
        assert web.run("exec", "--all", "--jobs", jobs, "--", "x", env={"AT_ONCE": jobs}).rc == 0
        assert web.read("log") == log if jobs == "1" else web.read("log").startswith(b"begin\n" * 3)
