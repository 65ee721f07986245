"""What a dry run is, and where a password must not be."""

import os
import re
import shlex
import subprocess
import time

import pytest

from test_chpasswd_zoo import LOCKED, SET_ROOT

SENTINEL = "S3ntinel-p\u00e4ssw0rd-'\"$x"
LINE = ("root:%s\n" % SENTINEL).encode()
READ_ONLY = {"ps", "inspect", "info", "version"}


def spellings(secret):
    """The secret, and how JSON, Python, shell or an escaper would write it; and a part that
    survives all of these."""
    raw = secret.encode()
    return {
        raw,
        ascii(secret)[1:-1].encode(),
        shlex.quote(secret).encode(),
        raw.decode("latin-1").encode(),
        b"S3ntinel",
    }


def holds(haystack, secret=SENTINEL):
    return sorted(word for word in spellings(secret) if word in haystack)


def make(lab, prefix):
    """Containers for all three ways, and one to be refused."""
    names = [prefix + word for word in ("exec", "proc", "cp", "refused")]
    lab.run(names[0])
    lab.run(names[1], image="busybox")
    lab.create(names[2])
    lab.run(names[3], "--read-only")
    return names


def only_reads(calls):
    return [
        call.argv
        for call in calls
        if not (call.argv[0] in READ_ONLY or (call.argv[0] == "cp" and call.argv[-1] == "-"))
    ]


# ---------------------------------------------------------------------- secrets


@pytest.mark.parametrize("options", [["--json", "-v"], ["-v"], ["--json"]], ids=" ".join)
def test_the_password_is_nowhere(lab, options):
    """Not in the arguments, the environment or the output of anything, not in the engine's events,
    not in the state folder."""
    lab.clean()
    names, recorder, since = make(lab, "s-"), lab.recorder(), time.time()
    run = lab.dockfix("chpasswd", *(options + names), stdin=LINE, recorder=recorder)
    assert run.rc == 3 and all(lab.opens(name, SENTINEL) for name in names[:3]), run
    time.sleep(0.2)
    events = lab.docker(
        "events",
        "--since",
        "%.9f" % since,
        "--until",
        "%.9f" % time.time(),
        "--format",
        "{{json .}}",
    ).stdout
    assert b"exec_start" in events and len(recorder.calls()) >= 4
    assert (
        recorder.calls()[0].parent[:2] == lab.argv()[:2]
    )  # so dockfix's own arguments are among what is searched
    state = b"".join(
        lab.read_bytes(os.path.join(folder, file))
        for folder, _, files in os.walk(lab.state)
        for file in files
    )
    logs = b"".join(lab.docker("logs", name).stdout for name in names)
    inspected = lab.docker("inspect", *names).stdout
    for what, haystack in {
        "stdout": run.out,
        "stderr": run.err,
        "calls": recorder.everything(),
        "events": events,
        "state": state,
        "logs": logs,
        "inspect": inspected,
    }.items():
        assert holds(haystack) == [], what
        for name in names[:3]:
            assert lab.field(name).encode() not in haystack, "the hash is in the " + what
    assert "-v" not in options or b"chpasswd -e" in run.err, "-v shows the calls"


FAULTS = {
    "exec fails": 'case "$1" in exec) cat; exit 1;; esac',
    "exec echoes": 'case "$1" in exec) cat >&2; exit 126;; esac',
    "cp echoes": 'case "$1 $2" in "cp -") cat | tr -d "\\0"; exit 1;; esac',
    "exec killed": 'case "$1" in exec) kill -9 $$;; esac',
    "inspect garbage": 'case "$1" in inspect) echo "{"; exit 0;; esac',
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_the_password_is_nowhere_when_things_break(lab, fault):
    lab.clean()
    names, recorder = make(lab, "f-"), lab.recorder(FAULTS[fault])
    for options in (["--json", "-v"], ["-v"]):
        run = lab.dockfix("chpasswd", *(options + names), stdin=LINE, recorder=recorder)
        assert run.rc != 0, run
        assert holds(run.out + run.err + recorder.everything()) == []


def test_bad_lines_are_not_shown(lab):
    """A message about a line says which, and does not repeat it."""
    lab.clean()
    lab.run("bad-lines")
    for line in (
        LINE[:-1] + b"\r\n",
        LINE.replace(b":", b" "),
        LINE[:-1] + b"\0\n",
        b"root:" + LINE * 40,
        LINE[4:],
    ):
        run = lab.dockfix("chpasswd", "bad-lines", "-v", stdin=line.replace(b"\n", b"") + b"\n")
        assert run.rc == 2 and run.err and holds(run.out + run.err) == [], run
    assert lab.field("bad-lines") == "*"


def test_password_files_and_generated_passwords_stay_out_of_sight(lab):
    lab.clean()
    names, folder = make(lab, "g-"), lab.new_folder()
    secret, output = os.path.join(folder, "secret"), os.path.join(folder, "made")
    with open(secret, "wb") as f:
        f.write(SENTINEL.encode() + b"\n")
    recorder = lab.recorder()
    run = lab.dockfix(
        "chpasswd", "--password-file", secret, "-v", "--json", *names, recorder=recorder
    )
    assert run.rc == 3 and lab.opens(names[0], SENTINEL), run
    assert holds(run.out + run.err + recorder.everything()) == []
    run = lab.dockfix("chpasswd", "--generate", "--output", output, "-v", *names, recorder=recorder)
    made = [line.split("\t")[3] for line in lab.read_bytes(output).decode().splitlines()]
    assert run.rc == 3 and len(made) >= 3 and lab.opens(names[1], made[1]), run
    assert not [word for word in made if word.encode() in run.out + run.err + recorder.everything()]


# ---------------------------------------------------------------------- dry run


def test_dry_run_only_reads_and_makes_nothing(lab):
    lab.clean()
    names, recorder = make(lab, "d-"), lab.recorder()
    lab.state = os.path.join(lab.new_folder(), "state")
    before = {name: (lab.shadow(name), lab.docker("diff", name).stdout) for name in names}
    folder = lab.new_folder()
    for args in (
        ["chpasswd"],
        ["chpasswd", "--generate", "--output", os.path.join(folder, "made")],
        ["chpasswd", "--json"],
    ):
        run = lab.dockfix("--dry-run", *(args + names), recorder=recorder)
        assert run.rc == 3 and run.out, run  # some of the containers are refused
    run = lab.dockfix("--dry-run", "exec", *([*names, "--", "touch", "/made"]), recorder=recorder)
    assert run.rc == 0, run
    assert len(recorder.calls()) >= 4 and only_reads(recorder.calls()) == []
    assert before == {name: (lab.shadow(name), lab.docker("diff", name).stdout) for name in names}
    assert not os.path.exists(lab.state) and os.listdir(folder) == []


@pytest.mark.parametrize("where", ["before", "after"])
def test_dry_run_asks_for_nothing(lab, where):
    """Standard input is a pipe that nobody writes to and nobody closes."""
    lab.clean()
    lab.run("asks")
    words = ["-n", "chpasswd", "asks"] if where == "before" else ["chpasswd", "asks", "-n"]
    process = subprocess.Popen(
        lab.argv(*words),
        env=lab.engine.env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out = (
            process.stdout.read()
        )  # to its end: dockfix has ended, and nothing has been written to it
        assert process.wait(60) == 0 and lab.id("asks").encode() in out
        assert lab.field("asks") == "*"
    finally:
        process.kill()
        process.communicate()


def test_dry_run_says_what_would_be_in_json_too(lab):
    lab.clean()
    names = make(lab, "j-")
    run = lab.dockfix("chpasswd", "--dry-run", "--json", *names)
    assert run.doc["dry_run"] is True
    assert [row["status"] for row in run.doc["results"]] == ["changed"] * 3 + ["refused"]
    plain = lab.dockfix("chpasswd", "--dry-run", *names)
    assert run.doc["script"].strip() == plain.text.strip() and "DOCKFIX_LINES" in plain.text
    pending = lab.dockfix("chpasswd", "--dry-run", "--exit-code", *names)
    assert pending.rc == 4, pending


def test_script_of_a_dry_run_does_what_the_real_run_does(lab):
    """The same containers by the same ways, the same exit status; the password comes from a file
    that the caller names."""
    lab.clean()
    names, had_state = make(lab, "r-"), os.path.exists("/var/lib/dockfix")
    before = {name: lab.shadow(name) for name in names}
    dry = lab.dockfix("chpasswd", "--dry-run", *names)
    lines = os.path.join(lab.new_folder(), "lines")
    with open(lines, "wb") as f:
        f.write(b"root:by script\n")
    without = lab.script(dry.out)
    assert (
        without.rc != 0
        and b"DOCKFIX_LINES" in without.err
        and before == {name: lab.shadow(name) for name in names}
    )
    script = lab.script(dry.out, {"DOCKFIX_LINES": lines})
    assert script.rc == 3, script
    assert [
        name for name in names if lab.shadow(name).data and lab.opens(name, "by script")
    ] == names[:3], script
    after_script = {name: lab.shadow(name) for name in names}
    real = lab.dockfix("chpasswd", "--json", *names, stdin=b"root:by hand\n")
    assert (
        real.rc == 3 and [name for name in names if lab.opens(name, "by hand")] == names[:3]
    ), real
    for name in names[:3]:
        assert lab.only_password_changed(before[name], after_script[name]) == ""
        (line,) = [
            line
            for line in dry.text.splitlines()
            if real.rows[name]["id"] in line and not line.startswith("#")
        ]
        assert re.search("--via (auto|%s) " % real.rows[name]["via"], line)
    assert after_script[names[3]] == before[names[3]]
    assert os.path.exists("/var/lib/dockfix") == had_state, "the script forgot --state"


def test_script_carries_the_options_that_matter(lab):
    lab.clean()
    lab.run("locked")
    lab.inside("locked", SET_ROOT % LOCKED)
    value = lab.crypt(b"prepared", b"$6$saltsalt$")
    lines = os.path.join(lab.new_folder(), "lines")
    with open(lines, "wb") as f:
        f.write(b"root:" + value + b"\n")
    dry = lab.dockfix("chpasswd", "--dry-run", "--unlock", "-e", "locked")
    script = lab.script(dry.out, {"DOCKFIX_LINES": lines})
    assert script.rc == 0 and lab.field("locked") == value.decode(), (dry, script)


def test_script_of_nothing_but_refusals_exits_5(lab):
    lab.clean()
    lab.run("only-refused", "--read-only")
    dry = lab.dockfix("chpasswd", "--dry-run", "only-refused")
    script = lab.script(dry.out)
    assert script.rc == 5 and script.out + script.err == b"", script
    assert re.search("^# .*only-refused.*read-only", dry.text, re.M), dry


def test_script_of_an_exec_does_what_exec_does(lab):
    lab.clean()
    lab.parallel(lab.run, ["x1", "x2"])
    word = "a b'c\"$HOME\n\x1b"
    args = [
        "exec",
        "x1",
        "x2",
        "-u",
        "1000",
        "--",
        "sh",
        "-c",
        'printf "%s" "$1" > /tmp/made; id -u > /tmp/id',
        "sh",
        word,
    ]
    script = lab.script(lab.dockfix("--dry-run", *args).out)
    assert script.rc == 0, script
    made = {
        name: (lab.shadow(name, "/tmp/made").data, lab.shadow(name, "/tmp/id").data)
        for name in ("x1", "x2")
    }
    assert made == {name: (word.encode(), b"1000\n") for name in ("x1", "x2")}
    lab.inside("x1", "rm /tmp/made /tmp/id")
    assert lab.dockfix(*args).rc == 0 and lab.shadow("x1", "/tmp/made").data == word.encode()


def test_script_of_exec_with_a_script_file(lab):
    lab.clean()
    lab.parallel(lab.run, ["x1", "x2"])
    path = os.path.join(lab.new_folder(), "it's a script")
    with open(path, "w") as f:
        f.write('echo "$#:$1" > /made\n')
    args = ["exec", "x1", "x2", "--script", path, "--", "-a b"]
    script = lab.script(lab.dockfix("--dry-run", *args).out)
    assert script.rc == 0, script
    assert [lab.shadow(name, "/made").data for name in ("x1", "x2")] == [b"1:-a b\n"] * 2
