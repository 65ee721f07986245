"""--dry-run: only reading calls, nothing changed, nothing asked; and its script does what the real
run would do."""

import array
import fcntl
import os
import re
import shlex
import subprocess
import sys
import termios

import pytest

SENTINEL = b"s3nt1nel-in-lines"


@pytest.fixture
def street(box):
    box.container("web1")
    box.container("web2")
    box.container("old", status="Exited (0) 2 days ago")
    box.container("ro", host={"ReadonlyRootfs": True}, readonly=True)
    box.container(
        "bound",
        inspect={
            "Mounts": [
                {
                    "Type": "bind",
                    "Source": "/srv\nreboot\x1b[31m",
                    "Destination": "/etc",
                    "RW": True,
                }
            ]
        },
    )
    return box


COMMANDS = {
    "chpasswd": ["chpasswd", "--all", "--stopped"],
    "chpasswd file": ["chpasswd", "--all", "--password-file", "FILE"],
    "chpasswd generate": ["chpasswd", "--all", "--generate", "--output", "OUT"],
    "chpasswd stdin": ["chpasswd", "--all", "--password-stdin"],
    "exec": ["exec", "--all", "--", "rm", "-rf", "/tmp/x"],
    "exec script": ["exec", "--all", "--script", "FILE"],
}


def words(box, name):
    box.file("file", b"content\n")
    return [
        {"FILE": box.at("file"), "OUT": box.at("out")}.get(word, word) for word in COMMANDS[name]
    ]


@pytest.mark.parametrize("json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_nothing_changes_and_only_reading_calls_are_made(street, name, json):
    args = words(street, name)
    before = street.picture()
    result = street.quick(*([*json, "-n", *args]), stdin=b"root:x\n")
    # chpasswd refuses two of them: one is read-only, the other has a mounted /etc
    assert result.rc == (3 if name.startswith("chpasswd") else 0), result
    assert street.picture() == before
    assert not os.path.exists(street.state)
    assert street.calls("ps")
    for call in street.calls():
        assert call.command in ("ps", "inspect", "info") or (
            call.command == "cp" and call.words[-1] == "-"
        ), call


@pytest.mark.parametrize("name", ["chpasswd", "chpasswd stdin", "exec"])
def test_standard_input_is_not_read(street, name):
    args = words(street, name)
    readable, writable = os.pipe()
    os.write(writable, b"root:x\n")
    pid = street.start(street.arguments(["-n", *args]), stdin=readable)
    assert street.outcome(pid).rc == (0 if name == "exec" else 3)
    left = array.array("i", [0])
    fcntl.ioctl(readable, termios.FIONREAD, left)
    os.close(readable)
    os.close(writable)
    assert left[0] == 7 and street.calls("ps")


def test_it_asks_for_nothing_on_a_terminal(street, terminal):
    session = terminal("-n", "chpasswd", "web1")
    code = session.end()
    assert code == 0 and b"assword:" not in session.shown and b"chpasswd" in session.shown
    assert street.calls("ps") and not street.calls("exec")


def test_it_works_while_another_dockfix_holds_the_lock(web):
    assert web.quick("exec", "web1", "--", "x").rc == 0
    held = [os.open(web.at("state", name), os.O_RDONLY) for name in os.listdir(web.state)]
    for f in held:
        fcntl.flock(f, fcntl.LOCK_EX)
    assert web.quick("-n", "exec", "web1", "--", "x").rc == 0
    for f in held:
        os.close(f)


def test_status_changed_means_would_change(street):
    result = street.quick("--json", "-n", "chpasswd", "--all", "--stopped", stdin=b"")
    assert result.json["dry_run"] is True and result.rc == 3
    assert result.statuses() == {
        "web1": "changed",
        "web2": "changed",
        "old": "changed",
        "ro": "refused",
        "bound": "refused",
    }
    assert result.json["script"].startswith("#!/bin/sh")


def test_text_is_the_script_of_the_json(street):
    text = street.quick("-n", "chpasswd", "web1", "old", "ro").out.decode()
    assert (
        text.strip()
        == street.quick("--json", "-n", "chpasswd", "web1", "old", "ro").json["script"].strip()
    )


def test_a_refused_storage_change_is_a_script_that_exits_5(dockfix):
    assert dockfix.script_text(
        dockfix.new_report("restore", True), ["# refused: volume data exists"], 1
    ).endswith("exists\nexit 5\n")


def test_a_refusal_cannot_become_a_command(street):
    script = street.quick("-n", "chpasswd", "bound").out.decode()
    assert "exit 5" in script and "\x1b" not in script
    for line in script.splitlines():
        assert not line.strip().startswith("reboot"), script


def run_script(box, text, env=None, shell="sh"):
    """The printed script, run with this Python as python3."""
    path = box.file(
        "script.sh", text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    )
    box.program("python3", "exec '%s' \"$@\"" % sys.executable)
    return box.spawn([shell, path], env=env)


def test_nothing_but_refusals_is_comments_and_exit_5(street):
    result = street.quick("-n", "chpasswd", "ro", "bound")
    assert result.rc == 5
    before = street.picture()
    ran = run_script(street, result.out)
    assert ran.rc == 5
    after = street.picture()
    assert {k: v for k, v in after.items() if k in before} == before


def lines_file(box, data=b"root:" + SENTINEL + b"\napp:other\n"):
    return box.file("lines", data)


def test_the_script_of_chpasswd_changes_what_the_real_run_changes(make_box, dockfix):
    boxes = [make_box("real"), make_box("script")]
    for box in boxes:
        box.containers("web1", "web2")
        box.container("old", status="Exited (0) 2 days ago")
        box.container("thin", chpasswd="missing")
        box.container("ro", host={"ReadonlyRootfs": True}, readonly=True)
    real, scripted = boxes
    args = ["chpasswd", "--all", "--stopped"]
    with open(lines_file(real), "rb") as f:
        assert real.run(*args, stdin=f.read()).rc == 3
    text = scripted.run("-n", *args, stdin=b"").out
    assert b"--state" in text  # or it would use the host's own folder
    ran = run_script(scripted, text, {"DOCKFIX_LINES": lines_file(scripted)})
    for name in ("web1", "web2", "old", "thin"):
        for box in boxes:
            for user, password in ((b"root", SENTINEL), (b"app", b"other")):
                field = box.field(name, user)
                assert field == dockfix.sha512_crypt(password, field.split(b"$")[2]), (
                    box.path,
                    name,
                    ran,
                )
        assert [
            line.split(b":")[0:1] + line.split(b":")[2:] for line in real.shadow(name).split(b"\n")
        ] == [
            line.split(b":")[0:1] + line.split(b":")[2:]
            for line in scripted.shadow(name).split(b"\n")
        ]
    assert real.shadow("ro") == scripted.shadow("ro")


def test_the_script_of_chpasswd_asks_for_its_lines(web):
    text = web.quick("-n", "chpasswd", "web1").out
    ran = run_script(web, text)
    assert ran.rc != 0 and b"DOCKFIX_LINES" in ran.err and web.field("web1") == b"*"


def test_the_script_of_chpasswd_names_the_way_and_the_full_id(web):
    text = web.quick("-n", "chpasswd", "web1").out.decode()
    line = next(
        line
        for line in text.splitlines()
        if "DOCKFIX_LINES" in line and not line.lstrip().startswith("#")
    )
    assert (
        re.search("--via (auto|exec) ", line)
        and web.id("web1") in line
        and os.path.basename(web.module.__file__) in line
    )


def test_the_script_of_exec_makes_the_calls_of_the_real_run(make_box):
    boxes = [make_box("real"), make_box("script")]
    odd = [
        "a b",
        "$HOME `id` $(id)",
        "'\"",
        "line\nline\n",
        "\x1b[31m\x07\t",
        "*",
        "-n",
        "--",
        "\u5bb9\u5668",
        "tail\\",
        "",
        "\udcff\udc80",
    ]
    for box in boxes:
        box.containers("web1", "web2")
    real, scripted = boxes
    assert real.run("exec", "--all", "--jobs", "1", "--", "echo", *odd).rc == 0
    text = scripted.run("-n", "exec", "--all", "--", "echo", *odd).out
    assert not set(text) & (set(range(32)) - {9, 10} | {127})
    for shell in ("sh", "bash", "busybox"):
        if subprocess.call(["which", shell], stdout=subprocess.DEVNULL) != 0:
            continue
        scripted.forget()
        scripted.program("ash", 'exec busybox sh "$@"')
        ran = run_script(
            scripted, text, shell=scripted.at("bin", "ash") if shell == "busybox" else shell
        )
        assert ran.rc == 0, ran
        assert [c.argv for c in scripted.calls("exec")] == [
            c.argv for c in real.calls("exec")
        ], shell
        assert [c.stdin for c in scripted.calls("exec")] == [c.stdin for c in real.calls("exec")]


def test_the_script_of_a_script_feeds_the_file(make_box):
    boxes = [make_box("real"), make_box("script")]
    for box in boxes:
        box.containers("web1", "web2")
        job = box.file("it's a job.sh", b"echo hi\n")
        args = ["exec", "--all", "--jobs", "1", "--script", job, "-u", "app", "--", "one"]
        if box is boxes[0]:
            assert box.run(*args).rc == 0
        else:
            assert run_script(box, box.run("-n", *args).out).rc == 0
    asked = [[(c.argv, c.stdin) for c in box.calls("exec")] for box in boxes]
    assert asked[0] == asked[1] and len(asked[0]) == 2


@pytest.mark.parametrize(
    "failing, code", [((), 0), (("web1",), 3), (("web1", "web2"), 1)], ids=["none", "some", "all"]
)
def test_the_script_ends_with_the_code_of_the_outcome(box, failing, code):
    for name in ("web1", "web2"):
        box.container(name, answer={"rc": int(name in failing)})
    text = box.quick("-n", "exec", "--all", "--", "x").out
    assert run_script(box, text).rc == code
    assert box.quick("exec", "--all", "--", "x").rc == code


def test_the_script_is_one_for_posix_shells(street):
    for name in sorted(COMMANDS):
        text = street.quick(*(["-n", *words(street, name)]), stdin=b"").out
        assert text.startswith(b"#!/bin/sh")
        for shell in ("dash", "bash", "sh"):
            if subprocess.call(["which", shell], stdout=subprocess.DEVNULL) == 0:
                assert subprocess.call([shell, "-n", street.file("x.sh", text)]) == 0, (name, shell)


def test_generate_writes_no_passwords(web):
    result = web.quick("--json", "-n", "chpasswd", "--all", "--generate", "--output", web.at("out"))
    assert (
        result.rc == 0 and not os.path.exists(web.at("out")) and "chpasswd" in result.json["script"]
    )


def test_rows_name_the_users_that_would_be_set(web):
    secret = web.file("secret", b"pw")
    for flags in ([], ["-n"]):
        result = web.quick("--json", "chpasswd", "web1", "--password-file", secret, *flags)
        assert result.rows()["web1"]["users"] == ["root"], result


def test_the_script_speaks_to_the_same_daemon(web):
    given = {
        "DOCKER_HOST": "tcp://h:2376",
        "DOCKER_TLS_VERIFY": "1",
        "DOCKER_CERT_PATH": "/root/my certs",
        "DOCKER_API_VERSION": "1.24",
    }
    script = web.quick("-n", "exec", "web1", "--", "x", env=given).out.decode()
    for name, text in given.items():
        assert "%s=%s; export %s\n" % (name, shlex.quote(text), name) in script
