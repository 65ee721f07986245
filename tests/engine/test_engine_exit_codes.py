"""Exit codes that only a real engine, a real user and a real socket can give; nothing is changed by
any of them."""

import os
import shutil
import subprocess

import pytest

LINE = b"root:never set\n"


@pytest.fixture(scope="module")
def still(lab):
    """A running container whose shadow must never change here."""
    lab.run("still")
    before = lab.shadow("still")
    yield lab
    assert lab.shadow("still") == before


def check(run, code, *words):
    """Text form: a line on standard error that says it, nothing on standard output."""
    text = run.err.decode()
    assert run.rc == code and text.startswith("dockfix: error: ") and run.out == b"", run
    for word in words:
        assert word in text, run


def check_json(run, code):
    doc = run.doc
    assert doc["exit_code"] == code == run.rc and not doc["ok"] and not doc["changed"], run
    assert doc["errors"] and all(
        set(error) >= {"msg", "hint", "code"} for error in doc["errors"]
    ), run
    assert doc["errors"][0]["code"] == code


COMMANDS = [(["chpasswd"], LINE), (["exec"], b"")]


def words(command, *targets):
    """A whole command line with these targets."""
    return command + list(targets) + (["--", "touch", "/made"] if command[0] == "exec" else [])


@pytest.mark.parametrize("command, stdin", COMMANDS, ids=["chpasswd", "exec"])
class TestUsage:
    def test_no_targets(self, still, command, stdin):
        check(still.dockfix(*words(command), stdin=stdin), 2, "--all")
        check_json(still.dockfix("--json", *words(command), stdin=stdin), 2)

    def test_unknown_name_stops_all_before_anything_is_changed(self, still, command, stdin):
        check(still.dockfix(*words(command, "still", "no-such-one"), stdin=stdin), 2, "no-such-one")
        check_json(
            still.dockfix(*words([*command, "--json"], "still", "no-such-one"), stdin=stdin), 2
        )
        assert still.shadow("still", "/made") is None

    def test_id_prefix_of_two(self, still, twins, command, stdin):
        prefix = twins
        check(still.dockfix(*words(command, "still", prefix), stdin=stdin), 2, prefix)
        check_json(still.dockfix(*words([*command, "--json"], prefix), stdin=stdin), 2)

    def test_all_that_is_nothing(self, still, command, stdin):
        nothing = ["--filter", "label=nobody=has.this"]
        run = still.dockfix("--json", *words(command + nothing), stdin=stdin)
        assert run.rc == 1 and run.doc["results"] == [], run
        run = still.dockfix("--json", *words(command + nothing + ["--allow-empty"]), stdin=stdin)
        assert run.rc == 0 and run.doc["results"] == [], run


@pytest.fixture(scope="module")
def twins(still):
    """A first digit that two ids share; containers are made until there are two."""
    seen = set()
    for number in range(17):
        digit = still.create("twin%d" % number, image="busybox")[0]
        if digit in seen:
            return digit
        seen.add(digit)
    raise AssertionError("17 ids and 16 digits")


def test_leading_dash_is_a_name_after_two_dashes(still):
    check(still.dockfix("chpasswd", "--", "-x", stdin=LINE), 2, "-x")
    check(still.dockfix("chpasswd", "-x", stdin=LINE), 2, "-x")


def test_unique_prefix_and_full_id_are_names(still):
    for word in (still.id("still"), still.id("still")[:12], "/still"[1:], "st?ll"):
        run = still.dockfix("exec", word, "--json", "--", "true")
        assert list(run.rows) == ["still"] and run.rc == 0, run


# ---------------------------------------------------------------------- the environment

ENVIRONMENTS = {
    "daemon down": {"DOCKER_HOST": "unix:///nonexistent/docker.sock"},
    "no docker command": {"PATH": "/nonexistent"},
    "unusable host": {"DOCKER_HOST": "nonsense"},
}


@pytest.mark.parametrize("command, stdin", COMMANDS, ids=["chpasswd", "exec"])
@pytest.mark.parametrize("what", sorted(ENVIRONMENTS))
def test_environment_is_6(still, what, command, stdin):
    env = ENVIRONMENTS[what]
    check(still.dockfix(*words(command, "still"), stdin=stdin, env=env), 6, "docker")
    check_json(still.dockfix(*words([*command, "--json"], "still"), stdin=stdin, env=env), 6)
    dry = still.dockfix(*words([*command, "-n"], "still"), stdin=stdin, env=env)
    assert dry.rc == 6 and dry.out == b"", dry


@pytest.mark.parametrize("docker", ["/nonexistent/docker", "/etc", "/etc/passwd"])
def test_docker_that_is_no_program(still, docker):
    check(still.dockfix("--docker", docker, "chpasswd", "still", stdin=LINE), 6, docker)


def test_user_without_permission_is_6(still):
    """Nobody, who may read files wherever this Python lives, and may not write to the engine's
    socket."""
    nobody = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "--inh-caps",
        "+dac_read_search",
        "--ambient-caps",
        "+dac_read_search",
    ]
    if not shutil.which("setpriv") or subprocess.call([*nobody, "true"]):
        pytest.fail("needs setpriv with ambient capabilities (Debian: util-linux)")
    state = os.path.join(still.new_folder(), "state")
    os.mkdir(state)
    os.chown(state, 65534, 65534)
    os.chmod(os.path.dirname(state), 0o755)
    run = still.dockfix("--state", state, "chpasswd", "still", stdin=LINE, prefix=nobody)
    check(run, 6, "ermission")
    check_json(
        still.dockfix("--state", state, "chpasswd", "still", "--json", stdin=LINE, prefix=nobody), 6
    )


def test_ordinary_user_with_the_socket_can_do_all_that_needs_no_root(still):
    """A member of the docker group: the proc way is closed to him, exec and cp are not."""
    group = os.stat(still.engine.path("docker.sock")).st_gid
    member = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        str(group),
        "--clear-groups",
        "--inh-caps",
        "+dac_read_search",
        "--ambient-caps",
        "+dac_read_search",
    ]
    state = os.path.join(still.new_folder(), "state")
    os.mkdir(state)
    os.chown(state, 65534, 65534)
    still.run("user-debian")
    still.run("user-busybox", image="busybox")
    still.create("user-created")
    run = still.dockfix(
        "--state",
        state,
        "chpasswd",
        "user-debian",
        "user-busybox",
        "user-created",
        "--json",
        stdin=b"root:as a user\n",
        prefix=member,
    )
    assert run.rc == 0, run
    ways = {name: row["via"] for name, row in run.rows.items()}
    assert ways == {"user-debian": "exec", "user-busybox": "cp", "user-created": "cp"}
    assert all(still.opens(name, "as a user") for name in run.rows)


def test_empty_standard_input_changes_nothing(still):
    check(still.dockfix("chpasswd", "still", stdin=b""), 2, "--password-file")
    check_json(still.dockfix("chpasswd", "still", "--json", stdin=b""), 2)


def test_state_folder_is_private(still):
    still.run("private", image="busybox")
    assert still.dockfix("chpasswd", "private", stdin=b"root:x\n").rc == 0
    assert os.stat(still.state).st_mode & 0o7777 == 0o700
