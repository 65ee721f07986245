"""The words of the command line: safety flags on both sides, JSON on every path, exit codes."""

import hashlib
import os
import re
import sys

import pytest

from_file = ["chpasswd", "--password-file", "SECRET", "web1"]
run_ls = ["exec", "web1", "--", "ls"]


def told(result):
    """What a run said, without what differs from run to run: seconds, hashes."""
    text = (result.out + b"\n--\n" + result.err).decode("utf-8")
    return result.rc, re.sub(r"[0-9]+\.[0-9]+", "N", text)


def both_places(box, flag, command):
    """What was said and which calls were made, with the flag before the command's name, right after
    it, and at the end."""
    secret = box.file("secret", b"pw")
    command = [secret if word == "SECRET" else word for word in command]
    end = command.index("--") if "--" in command else len(command)
    run = box.run if flag[0] in ("-v", "--verbose") and command[0] == "exec" else box.quick
    seen = []
    for args in (
        flag + command,
        command[:1] + flag + command[1:],
        command[:end] + flag + command[end:],
    ):
        box.reset()
        result = run(*args)
        seen.append((told(result), sorted(c.words[:6] for c in box.calls())))
    return seen


@pytest.mark.parametrize("command", [from_file, run_ls], ids=["chpasswd", "exec"])
@pytest.mark.parametrize(
    "flag",
    [
        ["--dry-run"],
        ["-n"],
        ["--json"],
        ["-y"],
        ["--yes"],
        ["-q"],
        ["--quiet"],
        ["-v"],
        ["--verbose"],
        ["--timeout", "9"],
        ["--timeout=9"],
    ],
    ids=" ".join,
)
def test_a_flag_means_the_same_before_and_after_the_command(web, flag, command):
    seen = both_places(web, flag, command)
    assert all(one == seen[0] for one in seen[1:]), seen


@pytest.mark.parametrize("flag", ["--dry-run", "-n"])
@pytest.mark.parametrize("command", [from_file, run_ls], ids=["chpasswd", "exec"])
def test_dry_run_is_a_dry_run_in_every_place(web, flag, command):
    for _, calls in both_places(web, [flag], command):
        assert calls and not [
            words for words in calls if words[0] == "exec" or words[:2] == ["cp", "-"]
        ]
    assert web.field("web1") == b"*"


@pytest.mark.parametrize("command", [from_file, run_ls], ids=["chpasswd", "exec"])
def test_json_is_json_in_every_place(web, command):
    for (_, text), _ in both_places(web, ["--json"], command):
        assert text.startswith("{")


def test_timeout_holds_in_every_place(web):
    web.rule("exec", hang=600)
    for args in (
        ["--timeout", "1.5", "exec", "web1"],
        ["exec", "--timeout", "1.5", "web1"],
        ["exec", "web1", "--timeout", "1.5"],
    ):
        assert (
            web.run("--json", *([*args, "--", "x"])).statuses() == {"web1": "unknown"}
            and web.was_cut_off()
        )


def test_docker_is_chosen_in_every_place(web):
    web.program("other", 'exec docker --context other "$@"')
    for args in (
        ["--docker", "other", "exec", "web1"],
        ["exec", "--docker", "other", "web1"],
        ["exec", "web1", "--docker=other"],
    ):
        web.forget()
        assert web.run(*([*args, "--", "x"])).rc == 0
        assert web.calls() and all(c.words[0] == "--context" for c in web.calls())


def test_state_is_chosen_in_every_place(web):
    for n, args in enumerate(
        (
            ["--state", "X", "exec", "web1"],
            ["exec", "--state", "X", "web1"],
            ["exec", "web1", "--state=X"],
        )
    ):
        where = web.at("state%d" % n)
        assert web.run(*([w.replace("X", where) for w in args] + ["--", "x"]), state=False).rc == 0
        assert os.stat(where).st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    "args",
    [
        ["--dry", "exec", "web1"],
        ["exec", "--dry", "web1"],
        ["--js", "exec", "web1"],
        ["exec", "--jso", "web1"],
        ["exec", "--al"],
        ["--verb", "exec", "web1"],
        ["exec", "--time", "5", "web1"],
        ["exec", "--allow", "web1"],
        ["exe", "web1"],
    ],
    ids=" ".join,
)
def test_abbreviations_are_rejected(web, args):
    assert web.quick(*([*args, "--", "x"])).rc == 2 and not web.calls()


def test_names_may_be_split_by_options(web):
    secret = web.file("secret", b"pw")
    result = web.quick("chpasswd", "web1", "--json", "web2", "--password-file", secret, "db")
    assert result.rc == 0 and set(result.statuses()) == {"web1", "web2", "db"}
    result = web.quick("exec", "web1", "--json", "web2", "--", "x", "db")
    assert result.rc == 0 and set(result.statuses()) == {"web1", "web2"}


def test_after_two_dashes_come_names(web):
    assert web.quick(
        "--json", "chpasswd", "--password-stdin", "--", "web1", stdin=b"x"
    ).statuses() == {"web1": "changed"}
    result = web.quick("chpasswd", "--password-stdin", "--", "--all", stdin=b"x")
    assert result.rc == 2 and b"--all" in result.err


def test_no_command_is_brief_help_on_stderr(web):
    result = web.quick(state=False)
    assert (
        result.rc == 2
        and result.out == b""
        and b"usage" in result.err.lower()
        and b"chpasswd" in result.err
    )
    assert not web.calls()


@pytest.mark.parametrize(
    "args",
    [["launder"], ["--bogus"], ["chpasswd", "--bogus"], ["-z", "chpasswd"], ["exec", "--jobs"]],
    ids=" ".join,
)
def test_what_is_not_known_is_exit_2_with_a_reason(web, args):
    result = web.quick(*args)
    assert (
        result.rc == 2
        and result.out == b""
        and b"dockfix: error: " in result.err
        and b"Traceback" not in result.err
    )


@pytest.mark.parametrize(
    "args",
    [
        ["--json"],
        ["--json", "launder"],
        ["launder", "--json"],
        ["--json", "--bogus"],
        ["--bogus", "--json"],
        ["chpasswd", "--json", "--bogus"],
        ["chpasswd", "--bogus", "--json"],
        ["--json", "exec", "web1"],
        ["exec", "--json"],
        ["--json", "exec", "--jobs"],
        ["--json", "chpasswd", "ghost"],
        ["--json", "exec", "--timeout", "x", "web1", "--", "ls"],
        ["--json", "--timeout"],
        ["--json", "chpasswd", "--via", "x", "web1"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_one_document(web, args):
    result = web.quick(*args, stdin=b"root:x\n")
    document = result.json
    assert (
        result.rc == 2
        and document["ok"] is False
        and document["changed"] is False
        and document["results"] == []
    )
    assert document["errors"] and all(row["code"] == 2 and row["msg"] for row in document["errors"])


def test_json_after_the_two_dashes_is_not_ours(web):
    result = web.quick("exec", "ghost", "--", "--json")
    assert result.rc == 2 and result.out == b"" and b"ghost" in result.err


def test_errors_have_the_shape_of_the_house(web):
    lines = web.quick("exec", "ghost", "--", "x").err.decode().splitlines()
    assert any(re.match("dockfix: error: .", line) for line in lines)
    assert all(line.startswith(("dockfix: ", "  hint: ")) for line in lines), lines


def test_help_is_on_stdout_and_names_every_command(web):
    result = web.quick("--help", state=False)
    assert result.rc == 0 and result.err == b""
    for word in (
        b"chpasswd",
        b"exec",
        b"--dry-run",
        b"--json",
        b"--docker",
        b"--timeout",
        b"--version",
        b"-y",
        b"-q",
        b"-v",
    ):
        assert word in result.out
    for command in web.module.COMMANDS:
        own = web.quick(command.name, "--help", state=False)
        assert (
            own.rc == 0
            and own.err == b""
            and ("usage: python3 dockfix.py %s\n" % command.usage).encode() in own.out
        )
        assert b"\n  %s  " % command.name.encode() in result.out and all(
            name.encode() in own.out for names, _ in command.all_options() for name in names
        )


def test_version_is_the_hash_of_the_file(web, dockfix):
    with open(dockfix.__file__, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    expected = "dockfix %s sha256 %s python %d.%d.%d\n" % (
        (dockfix.VERSION, digest, *sys.version_info[:3])
    )
    assert web.quick("--version", state=False).out.decode() == expected
    assert web.quick("chpasswd", "--version").out.decode() == expected
    assert digest in web.quick("--version", "--json", state=False).out.decode()


def test_version_of_the_script_itself(web, dockfix):
    with open(dockfix.__file__, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    result = web.script("--version", state=False)
    assert result.rc == 0 and digest in result.out.decode()
    result = web.script("--json", "--version", state=False)
    assert result.rc == 0 and digest in str(result.json)


def test_quiet_keeps_errors_and_the_product(web):
    assert b"dockfix: error" in web.quick("-q", "exec", "ghost", "--", "x").err
    result = web.quick("-q", "exec", "web1", "--", "x")
    assert result.rc == 0 and result.err == b""


def test_verbose_traces_each_call_in_shell_form(web):
    result = web.run("-v", "exec", "web1", "--", "echo", "a b")
    traced = [line for line in result.err.decode().splitlines() if "docker exec" in line]
    assert traced and traced[0].rstrip().endswith(
        "docker exec %s echo 'a b'" % web.id("web1")
    ), result


def test_not_asked_for_there_is_no_trace(web):
    assert web.run("exec", "web1", "--", "x").err == b"" and web.calls("exec")


# ---- the rows of the table of exit codes that these commands reach


def outcome(box, **status):
    """A box whose containers end as told."""
    for name, kind in sorted(status.items()):
        if kind == "changed":
            box.container(name)
        elif kind == "failed":
            box.container(name, chpasswd="refuses", readonly=True)
        elif kind == "refused":
            box.container(name, host={"ReadonlyRootfs": True}, readonly=True)
        elif kind == "skipped":
            box.container(name)
            box.rule("inspect", remove=name)
        elif kind == "unknown":
            box.container(name)
            box.rule("exec", has=box.id(name), sleep=600)
    run = box.run if "unknown" in status.values() else box.quick
    return run("--json", "--timeout", "2", "chpasswd", "--all", stdin=b"root:x\n")


@pytest.mark.parametrize(
    "code, status",
    [
        (0, dict(a="changed", b="changed")),
        (0, dict(a="changed", b="skipped")),
        (0, dict(a="skipped")),
        (1, dict(a="failed", b="failed")),
        (1, dict(a="failed", b="refused")),
        (3, dict(a="changed", b="failed")),
        (3, dict(a="changed", b="refused")),
        (3, dict(a="failed", b="unknown")),
        (3, dict(a="unknown")),
        (5, dict(a="refused")),
        (5, dict(a="refused", b="refused")),
    ],
    ids=lambda v: " ".join(sorted(v.values())) if isinstance(v, dict) else str(v),
)
def test_exit_code_of_an_outcome(box, code, status):
    result = outcome(box, **status)
    assert result.statuses() == status and result.rc == code, result
    assert result.json["changed"] is ("changed" in status.values())


def test_exit_4_is_changes_pending(web):
    assert web.quick("--dry-run", "chpasswd", "--exit-code", "web1").rc == 4
    assert web.quick("--dry-run", "chpasswd", "web1").rc == 0
    assert web.quick("--dry-run", "exec", "--exit-code", "web1", "--", "x").rc == 4


def test_exit_code_without_dry_run_changes_nothing_about_the_meaning(web):
    assert web.quick("exec", "--exit-code", "web1", "--", "x").rc == 0
    assert len(web.calls("exec")) == 1


@pytest.mark.parametrize(
    "args",
    [("--version",), ("--json", "exec", "ghost", "--", "x"), ("exec", "web1", "--", "x")],
    ids=" ".join,
)
def test_the_script_and_main_agree(web, args):
    a, b = web.script(*args), web.run(*args)
    assert told(a) == told(b)


def test_main_takes_argv_from_the_command_line_when_none_is_given(web):
    result = web.spawn(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, %r); sys.argv[1:] = ['launder']; import dockfix; "
            "sys.exit(dockfix.main())" % os.path.dirname(web.module.__file__),
        ],
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.rc == 2 and b"launder" in result.err


def test_stdout_is_empty_when_nothing_was_produced(web):
    assert web.quick("exec", "ghost", "--", "x").out == b""


@pytest.mark.parametrize("args", [["--help"], ["chpasswd", "--help"], ["exec", "-h"]], ids=" ".join)
def test_help_is_json_too_where_json_is_asked_for(web, args):
    result = web.quick("--json", *args)
    assert (
        result.rc == 0
        and result.json["help"].encode() == web.quick(*args).out
        and b"usage:" in web.quick(*args).out
    )


@pytest.mark.parametrize(
    "args, command",
    [
        (["chpasswd", "--nope"], "chpasswd"),
        (["--jobs", "x", "exec"], "x"),
        (["--timeout", "x", "exec", "a", "--", "b"], "exec"),
        (["nosuch"], "nosuch"),
        ([], None),
        (["--", "exec"], None),
    ],
    ids=str,
)
def test_a_usage_error_in_json_says_of_which_command(web, args, command):
    result = web.quick("--json", *args)
    assert result.rc == 2 and result.json["command"] == command


@pytest.mark.parametrize("json", [[], ["--json"]])
@pytest.mark.parametrize(
    "word", ["--password-stdin=hunter22", "--generate=hunter22", "-phunter22", "--unlock=hunter22"]
)
def test_a_password_in_a_wrong_spelling_is_not_repeated(box, word, json):
    result = box.quick("chpasswd", "web", word, *json)
    assert result.rc == 2 and b"hunter22" not in result.out + result.err, result


# ---- options as values


def test_every_option_of_the_command_table_has_its_field(dockfix):
    fields = set(dockfix.Options._fields)
    for command in (None, *dockfix.COMMANDS):
        made = {action.dest for action in dockfix.make_parser(command)._actions}
        assert made <= fields, command


def test_options_are_values_that_nothing_writes_to(dockfix, monkeypatch):
    monkeypatch.setenv("DOCKFIX_DOCKER", "sudo docker")
    words = "pool grow --data +1G --metadata 64M --timeout 1.5 --lose-autoremove a"
    _, opts = dockfix.parse_command_line([*words.split(), "--lose-autoremove=b"])
    assert (opts.command, opts.arguments, opts.timeout) == ("pool", ("grow",), 1.5)
    assert opts.data == dockfix.SizeRequest(1 << 30, True)
    assert opts.metadata == dockfix.SizeRequest(64 << 20, False)
    assert (opts.docker, opts.lose_autoremove) == (("sudo", "docker"), ("a", "b"))
    assert opts.is_given("metadata") and not opts.is_given("base_size")
    with pytest.raises(AttributeError):
        opts.timeout = 2


@pytest.mark.parametrize(
    "args, words",
    [
        (["clock", "--all", "--jobs", "many"], "--jobs takes a number from 1 to 1000, not many"),
        (["clock", "--all", "--max-skew", "nan"], "--max-skew takes a number from 0 to 1e+09"),
        (["exec", "web1", "--max-output", "1GB", "--", "x"], "not a size: 1GB"),
        (["reclaim", "--containers", "--older-than", "2 weeks"], "not an age: 2 weeks"),
        # a variable of a script that is not set: never to be taken for "any age"
        (["reclaim", "--containers", "--older-than", "", "--yes"], "not an age: "),
        (["reclaim", "--logs", "--max-log", "", "--yes"], "not a size: "),
        (["pool", "grow", "--data", "+"], "not a size: "),
        (["pool", "recreate", "--backup", "/kept", "--base-size", "+1G"], "not a size: +1G"),
        (["--docker", "'", "clock", "--all"], "--docker '"),
    ],
)
def test_a_value_that_is_none_is_refused_before_docker_is_asked(web, args, words):
    result = web.quick("--json", *args)
    assert result.rc == 2 and result.json["errors"][0]["msg"].startswith(words), result
    assert web.calls() == []


@pytest.mark.parametrize(
    "hint, complete",
    [
        ("docker ps -a", "docker ps -a"),
        ("sudo python3 dockfix.py ...", "sudo python3 dockfix.py clock 'a b' --state /s"),
        ("python3 dockfix.py ... --yes", "python3 dockfix.py clock 'a b' --state /s --yes"),
        (
            "python3 dockfix.py resume, or: python3 dockfix.py rollback",
            "python3 dockfix.py --state /s resume, or: python3 dockfix.py --state /s rollback",
        ),
    ],
)
def test_a_line_to_type_has_the_options_of_this_run(dockfix, hint, complete):
    call = dockfix.OwnCall("clock 'a b' --state /s", "--state /s ")
    assert dockfix.complete_hint(hint, call) == complete
