"""Which containers a command line means, and what docker answers when it cannot say."""

import pytest

UNREACHABLE = (
    b"Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon"
    b" running?\n"
)
FORBIDDEN = (
    b"Got permission denied while trying to connect to the Docker daemon socket at"
    b" unix:///var/run/docker.sock: Get"
    b' "http://%2Fvar%2Frun%2Fdocker.sock/v1.24/containers/json?all=1": dial unix'
    b" /var/run/docker.sock: connect: permission denied\n"
)


@pytest.fixture
def town(box):
    """Running, paused, restarting, stopped, created; two ids that begin alike; a name that is
    another one's id prefix."""
    box.container("web1", id="aaaa1" + "0" * 59)
    box.container("web2", id="aaaa2" + "0" * 59, aliases=["app/db", "app/db2"])
    box.container("paused", status="Up 3 hours (Paused)", id="b" * 64)
    box.container("loop", status="Restarting (1) 4 seconds ago", id="c" * 64)
    box.container("old", status="Exited (0) 5 weeks ago", id="d" * 64)
    box.container("new", status="Created", id="e" * 64)
    box.container("bbbb", id="f" * 64)
    box.world["filters"] = {"label=tier=web": ["web1", "web2", "old"], "name=zzz": []}
    return box


def chosen(box, *args, **how):
    result = box.quick("--json", "exec", *((*args, "--", "x")), **how)
    return (
        [row["target"] for row in result.json["results"]] if result.rc not in (2, 6) else result.rc
    )


RUNNING = ["web1", "web2", "paused", "loop", "bbbb"]


@pytest.mark.parametrize(
    "args, expected",
    [
        (["--all"], RUNNING),
        (["--stopped"], [*RUNNING, "old", "new"]),
        (["--all", "--stopped"], [*RUNNING, "old", "new"]),
        (["web1"], ["web1"]),
        (["old"], ["old"]),
        (["aaaa2" + "0" * 59], ["web2"]),
        (["web*"], ["web1", "web2"]),
        (["[wp]*[d2]"], ["web2", "paused"]),
        (["aaaa1"], ["web1"]),
        (["bbbb"], ["bbbb"]),
        (["bbbbb"], ["paused"]),
        (["web1", "web1", "web*"], ["web1", "web2"]),
        (["web2", "web1"], ["web1", "web2"]),
        (["--all", "old"], [*RUNNING, "old"]),
        (["--all", "--exclude", "web*"], ["paused", "loop", "bbbb"]),
        (["web1", "web2", "--exclude", "web1"], ["web2"]),
        (["--filter", "label=tier=web"], ["web1", "web2"]),
        (["--filter", "label=tier=web", "--stopped"], ["web1", "web2", "old"]),
        (["--filter", "label=tier=web", "paused"], ["web1", "web2", "paused"]),
        (["--filter=label=tier=web", "old"], ["web1", "web2", "old"]),
        (["nothing"], 2),
        (["aaaa"], 2),
        (["web9*"], 2),
        (["app/db"], 2),
        (["db"], 2),
        ([], 2),
        ([""], 2),
        (["web1", "nothing"], 2),
        (["WEB1"], 2),
    ],
    ids=lambda v: " ".join(map(str, v)) if isinstance(v, list) else str(v),
)
def test_chosen(town, args, expected):
    got = chosen(town, *args)
    assert (sorted(got) if isinstance(got, list) else got) == (
        sorted(expected) if isinstance(expected, list) else expected
    )
    assert bool(town.calls("exec")) == isinstance(expected, list)


def test_ambiguous_names_are_told_with_what_they_could_mean(town):
    result = town.quick("exec", "aaaa", "--", "x")
    assert result.rc == 2 and b"web1" in result.err and b"web2" in result.err


def test_every_unknown_name_is_told_at_once(town):
    result = town.quick("exec", "ghost1", "web1", "ghost2", "--", "x")
    assert result.rc == 2 and b"ghost1" in result.err and b"ghost2" in result.err


def test_from_a_file(town):
    path = town.file("list", b"# the web\nweb1\n\n  web2  # the second\nold\n")
    assert sorted(chosen(town, "--from", path)) == ["old", "web1", "web2"]
    assert sorted(chosen(town, "--from", "-", "paused", stdin=b"web1\n")) == ["paused", "web1"]


def test_from_a_file_that_is_not_there(town):
    assert chosen(town, "--from", "/nonexistent") == 2


def test_all_that_matches_nothing_is_1_unless_allowed(box):
    box.world["filters"] = {"name=zzz": []}
    for args in (["--all"], ["--filter", "name=zzz"]):
        assert box.quick("exec", *([*args, "--", "x"])).rc == 1
        result = box.quick("--json", "exec", *([*args, "--allow-empty", "--", "x"]))
        assert result.rc == 0 and result.json["results"] == []


def test_excluding_everything(town):
    assert town.quick("exec", "--all", "--exclude", "*", "--", "x").rc == 1
    assert town.quick("exec", "--all", "--exclude", "*", "--allow-empty", "--", "x").rc == 0


def test_filters_go_to_docker_as_they_are(town):
    town.quick("exec", "--filter", "label=tier=web", "--", "x")
    asked = [c.words for c in town.calls("ps")]
    assert len(asked) == 2 and "--filter" in asked[1] and "label=tier=web" in asked[1]


def test_a_filter_docker_does_not_know(town):
    result = town.quick("exec", "--filter", "shape=round", "--", "x")
    assert result.rc == 2 and b"Invalid filter" in result.err and not town.calls("exec")


def test_the_list_is_asked_for_in_the_words_of_1_12(town):
    town.quick("exec", "--all", "--", "x")
    assert [c.words for c in town.calls("ps")] == [
        ["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Status}}"]
    ]


# ---- when docker cannot say


@pytest.mark.parametrize(
    "out, err, rc, word",
    [
        (b"", UNREACHABLE, 1, "daemon"),
        (b"", FORBIDDEN, 1, "permission"),
        (b"<html>502</html>\n", b"", 0, ""),
        (b"\xff\xfe\x00\x00", b"", 0, ""),
        (b"CONTAINER ID   IMAGE\nabc def\n", b"", 0, ""),
        (b"", b"segmentation fault\n", 139, "segmentation"),
    ],
    ids=["daemon down", "no permission", "html", "binary", "a table", "crash"],
)
@pytest.mark.parametrize(
    "command", [("exec", "--all", "--", "x"), ("chpasswd", "--all")], ids=["exec", "chpasswd"]
)
def test_a_ps_that_says_nothing_useful_is_exit_6(web, command, out, err, rc, word):
    web.rule("ps", out=out, err=err, rc=rc)
    result = web.quick("--json", *command, stdin=b"root:x\n")
    assert result.rc == 6 and result.json["errors"][0]["code"] == 6
    assert word in (result.json["errors"][0]["msg"] + str(result.json["errors"][0]["hint"])).lower()
    assert not web.calls("exec")


@pytest.mark.parametrize(
    "out",
    [
        b"",
        b"null",
        b"{}",
        b"[",
        b"[1]",
        b"[null]",
        b"\xff\xfe",
        b"[{}]",
        b'[{"Id": 7}]',
        b"Error: template",
        b'[{"Id": "' + b"0" * 64 + b'", "HostConfig": {}, "State": {}}]',
    ],
    ids=repr,
)
def test_garbage_from_inspect_is_exit_6(web, out):
    web.rule("inspect", out=out + b"\n", rc=0)
    result = web.quick("--json", "chpasswd", "--all", stdin=b"root:x\n")
    assert result.rc == 6 and not [c for c in web.calls() if c.command in ("exec", "cp")], result


def test_no_docker_on_the_path(web):
    result = web.run("--json", "--docker", "no-such-docker", "exec", "--all", "--", "x")
    assert result.rc == 6 and "no-such-docker" in result.json["errors"][0]["msg"]


def test_a_docker_that_may_not_be_run(web):
    path = web.file("plain", b"no program", 0o644)
    assert web.run("--docker", path, "exec", "--all", "--", "x").rc == 6


def test_a_ps_that_hangs_is_exit_6(web):
    web.rule("ps", hang=600)
    result = web.run("--json", "--timeout", "2", "exec", "--all", "--", "x")
    assert result.rc == 6 and web.was_cut_off()


def test_docker_can_be_several_words(web):
    web.program("sudo", 'exec "$@"')
    assert web.run("--docker", "sudo docker -H 'tcp://a b'", "exec", "web1", "--", "x").rc == 0
    assert [c.words[:3] for c in web.calls()] == [
        ["-H", "tcp://a b", "ps"],
        ["-H", "tcp://a b", "exec"],
    ]


def test_docker_from_the_environment(web):
    web.program("podman", 'exec docker "$@"')
    assert web.run("exec", "web1", "--", "x", env={"DOCKFIX_DOCKER": "podman"}).rc == 0
    assert web.run("exec", "web1", "--", "x", env={"DOCKFIX_DOCKER": "no-such"}).rc == 6
    assert (
        web.run(
            "--docker", "docker", "exec", "web1", "--", "x", env={"DOCKFIX_DOCKER": "no-such"}
        ).rc
        == 0
    )


@pytest.mark.parametrize("value", ["", "'unclosed", "   "], ids=repr)
def test_a_docker_that_is_no_command(web, value):
    assert web.run("--docker", value, "exec", "web1", "--", "x").rc == 2
    assert not web.calls()


def test_the_hint_repeats_the_command_line_so_that_it_can_be_pasted(town):
    town.rule("ps", err=FORBIDDEN, rc=1)
    hint = town.quick("--json", "exec", "--all", "--", "sh", "-c", "a b").json["errors"][0]["hint"]
    assert hint.startswith("sudo python3 dockfix.py --state ") and hint.endswith(
        " --json exec --all -- sh -c 'a b'"
    )


@pytest.mark.parametrize(
    "args",
    [
        ["chpasswd", "--all", "--generate"],
        ["exec", "--all", "--script", "nofile"],
        ["storage", "--docker-info", "nofile"],
        ["discard"],
        ["nosuch"],
    ],
    ids=" ".join,
)
def test_every_usage_error_names_the_next_command(town, args):
    error = town.quick("--json", *args).json["errors"][0]
    assert error["code"] == 2 and "python3 dockfix.py" in error["hint"]
