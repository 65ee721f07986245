"""The plan model: a change made of real programs (mkdir, dd, mv, truncate, cat), killed before and
after each of its steps, resumed, undone, run as a script."""

import fcntl
import json
import os
import shutil
import signal
import subprocess

import pytest

from conftest import die_at_step

if os.geteuid() != 0:
    pytest.skip("storage changes are root's", allow_module_level=True)

STEPS = 8


def trial_plan(dockfix, box):
    """old/ is set aside, a new one made in its place, a setting edited, a service told: the shape
    of every storage change."""
    step, at = dockfix.Step, box.at
    service = at("bin", "service")
    return dockfix.make_plan(
        "trial-1",
        "trial",
        "old data aside, new data in place",
        (
            step(
                "stop",
                "stop the daemon",
                (service, "stop"),
                (("says", "stopped", service, "status"),),
                daemon="down",
                wait=2,
                undo=(
                    step(
                        "start",
                        "start the daemon",
                        (service, "start"),
                        (("says", "started", service, "status"),),
                        wait=2,
                    ),
                ),
            ),
            step(
                "folder",
                "make the folder aside",
                ("mkdir", at("aside")),
                (("ok", "test", "-d", at("aside")),),
            ),
            dockfix.move_step(
                "aside", "old data aside", at("old"), at("aside", "old"), at("aside", "newer")
            ),
            step(
                "new-folder",
                "new folder",
                ("mkdir", at("aside", "made")),
                (("ok", "test", "-d", at("aside", "made")),),
            ),
            step(
                "copy",
                "copy",
                ("cat",),
                (("ok", "test", "-f", at("aside", "made", "copy")),),
                source=at("aside", "old", "file"),
                target=at("aside", "made", "copy"),
            ),
            step(
                "in-place",
                "new data in place",
                ("mv", "-T", at("aside", "made"), at("old")),
                (("not", "test", "-e", at("aside", "made")),),
            ),
            dockfix.put_file(
                "setting", "the setting", at("setting"), 'new "setting"\n$HOME \\ `x`\nno line end'
            ),
            step(
                "start-again",
                "start the daemon anew",
                (service, "start"),
                (("says", "started", service, "status"),),
                daemon="up",
                wait=2,
                undo=(
                    step(
                        "stop-newer",
                        "stop the newer daemon",
                        (service, "stop"),
                        (("says", "stopped", service, "status"),),
                    ),
                ),
            ),
        ),
        keeps=at("aside"),
    )


@pytest.fixture
def trial(box, dockfix):
    """A box with old data and a fake service; box.go(...) runs the plan as a command `trial`,
    killed or failing at a given step."""
    box.container("x")
    os.mkdir(box.at("old"))
    box.file("old/file", b"precious" * 1000)
    box.file("setting", b"old setting\n", 0o640)
    box.file("service.state", b"started\n")
    box.program(
        "service",
        "case $1 in status) /bin/cat %s;; stop) echo stopped > %s;; start) echo started > %s;; esac"
        % ((box.at("service.state"),) * 3),
    )

    def prelude(kill=None, side="before", extra=None):
        def patch(module):
            def run(host, opts, report):
                module.lock_storage(host, opts)
                module.run_change(
                    host,
                    opts,
                    report,
                    getattr(module, "trial_plan", trial_plan)(module, box),
                    "really?",
                )

            module.COMMANDS += (
                module.Command(
                    "trial", "", "trial", module.CHANGE_OPTIONS, run, module.show_change, "", (0, 0)
                ),
            )
            die_at_step(module, kill, side)
            if extra:
                extra(module)

        return patch

    box.go = lambda *args, **how: box.run(
        *args, **dict({"env": how.pop("env")} if "env" in how else {}, prelude=prelude(**how))
    )
    return box


def state(box):
    seen = {}
    for folder, _, files in os.walk(box.path):
        for name in files:
            path = os.path.join(folder, name)
            where = os.path.relpath(path, box.path)
            if where.startswith(("old/", "aside/", "setting", "service.state")):
                with open(path, "rb") as f:
                    seen[where] = f.read()
    return seen


BEFORE = {
    "old/file": b"precious" * 1000,
    "setting": b"old setting\n",
    "service.state": b"started\n",
}
AFTER = {
    "aside/old/file": b"precious" * 1000,
    "old/copy": b"precious" * 1000,
    "setting": b'new "setting"\n$HOME \\ `x`\nno line end',
    "service.state": b"started\n",
}


def test_the_whole_way_and_back(trial):
    result = trial.go("-y", "--json", "trial")
    assert (
        result.rc == 0
        and result.json["changed"] is True
        and result.json["results"][0]["keeps"] == trial.at("aside")
    ), result
    assert state(trial) == AFTER and os.stat(trial.at("setting")).st_mode & 0o777 == 0o640
    assert sorted(os.listdir(trial.state)) == ["lock", "trial-1.json"]
    result = trial.go("-y", "rollback", "trial-1")
    assert result.rc == 0, result
    assert state(trial) == dict(BEFORE, **{"aside/newer/copy": b"precious" * 1000})
    assert trial.go("-y", "--json", "rollback").json["results"][0]["status"] == "unchanged"
    result = trial.go("-y", "discard", "trial-1")
    assert result.rc == 0 and state(trial) == BEFORE and os.listdir(trial.state) == ["lock"], result
    assert (
        trial.go("-y", "discard", "trial-1").rc == 2
        and trial.go("-y", "rollback").rc == 2
        and trial.go("resume").rc == 0
    )


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("kill", range(1, STEPS + 1))
@pytest.mark.parametrize("way", ["resume", "rollback"])
def test_killed_at_any_step(trial, kill, side, way):
    assert trial.go("-y", "trial", kill=kill, side=side).rc == -signal.SIGKILL
    result = trial.go("-y", "--json", "trial")
    assert (
        result.rc == 7
        and "step %d of %d" % (kill, STEPS) in result.json["errors"][0]["msg"]
        and "resume" in result.json["errors"][0]["hint"]
    )
    assert "half-way" in [one["id"] for one in result.json["findings"]]
    trial.file("service.state", b"started\n")  # a reboot in between starts the daemon
    result = trial.go("-y", way)
    assert result.rc == 0, result
    newer = {name: data for name, data in state(trial).items() if name.startswith("aside/")}
    assert state(trial) == (AFTER if way == "resume" else dict(BEFORE, **newer))
    assert not os.path.exists(os.path.join(trial.state, "journal.json"))


@pytest.mark.parametrize("kill", range(STEPS + 1, 2 * STEPS))
def test_killed_on_the_way_back(trial, kill):
    """The start fails, all is undone by itself, and that is killed: rollback and resume both go on
    going back."""

    def no_start(module):
        trial.program(
            "service",
            "case $1 in status) /bin/cat %s;; stop) echo stopped > %s;; start) exit 1;; esac"
            % ((trial.at("service.state"),) * 2),
        )

    result = trial.go("-y", "trial", kill=kill, extra=no_start)
    if result.rc != -signal.SIGKILL:
        assert kill > STEPS + 5
        return
    trial.program(
        "service",
        "case $1 in status) /bin/cat %s;; stop) echo stopped > %s;; start) echo started > %s;; esac"
        % ((trial.at("service.state"),) * 3),
    )
    result = trial.go("-y", "resume" if kill % 2 else "rollback")
    assert result.rc == 0, result
    assert {
        name: data for name, data in state(trial).items() if not name.startswith("aside/newer")
    } == {
        name: data
        for name, data in dict(
            BEFORE, **{k: v for k, v in state(trial).items() if k.startswith("aside/")}
        ).items()
        if not name.startswith("aside/newer")
    }


def test_a_step_that_fails_undoes_all_of_it(trial):
    trial.program("mv", 'case "$2" in */old) exit 1;; esac; exec /bin/mv "$@"')
    result = trial.go("-y", "--json", "trial")
    assert (
        result.rc == 1
        and "old data aside" in result.json["errors"][0]["msg"]
        and "undone" in result.json["errors"][0]["msg"]
    ), result
    assert result.json["changed"] is False and state(trial) == BEFORE


@pytest.mark.parametrize("fail", [0, 3, 6])
def test_the_dry_run_script_gives_the_same_end(trial, fail):
    before = trial.picture()
    result = trial.go("-n", "trial")
    assert result.rc == 0 and trial.picture() == before and not os.path.exists(trial.state)
    if fail:
        trial.program(
            "mv",
            'case "$2" in %s) exit 1;; esac; exec /bin/mv "$@"'
            % ("*/old" if fail == 3 else "*/made"),
        )
    done = subprocess.run(["sh", "-s"], input=result.out, env=trial.env, stderr=subprocess.PIPE)
    if not fail:
        assert done.returncode == 0 and state(trial) == AFTER, done.stderr
    else:
        assert done.returncode == 1 and b"step %d failed" % fail in done.stderr, done.stderr
        assert {k: v for k, v in state(trial).items() if not k.startswith("aside/")} == BEFORE


MANY = "\n".join(
    "%064d" % number for number in range(3000)
)  # more than one argument of a program may have
SAID = {
    "a": "printf 'b\\na\\n\\n'",
    "none": "true",
    "fails": "echo a; exit 1",
    "no program": "exit 127",
    "many": "seq -f %064.0f 0 2999",
    "one more": "seq -f %064.0f 0 3000",
    "twice": "printf 'c\\nc\\na\\n'",
    "my number": "echo MainPID=%d" % os.getpid(),
    "my number alone": "printf %d" % os.getpid(),
    "my parent's number": "echo MainPID=%d" % os.getppid(),
    "no process": "echo MainPID=0",
}


@pytest.mark.parametrize(
    "test,says,holds",
    [
        (("ok",), "a", True),
        (("ok",), "fails", False),
        (("not",), "fails", True),
        (("not",), "a", False),
        (("not",), "no program", False),
        (("silent",), "none", True),
        (("silent",), "a", False),
        (("silent",), "fails", False),
        (("none",), "none", True),
        (("none",), "a", False),
        (("none",), "fails", False),
        (("none",), "no program", False),
        (("no_point",), "none", True),
        (("no_point",), "a", False),
        (("no_device",), "fails", False),
        (("unmounted",), "none", True),
        (("unmounted",), "a", False),
        (("closed",), "none", True),
        (("closed",), "a", False),
        (("says", "b\na"), "a", True),
        (("says", "b"), "a", False),
        (("has", "a"), "a", True),
        (("has", "c"), "a", False),
        (("lacks", "c"), "a", True),
        (("lacks", "a"), "a", False),
        (("among", "a\nb\nc"), "a", True),
        (("among", "a"), "a", False),
        (("among", "a"), "none", True),
        (("among", ""), "none", True),
        (("among", ""), "a", False),
        (("among", "a\nb"), "fails", False),
        (("among", "a\nb"), "twice", False),
        (("among", MANY), "many", True),
        (("among", MANY), "one more", False),
        (("serves", "HERE"), "my number", True),
        (("serves", "HERE"), "my number alone", True),
        (("serves", "HERE"), "my parent's number", True),
        (("serves", "HERE/old"), "my number", False),
        (("serves", "HERE"), "no process", False),
        (("serves", "HERE"), "none", False),
        (("serves", "HERE"), "no program", False),
        (("unserved", "HERE"), "my number", False),
        (("unserved", "HERE"), "my parent's number", False),
        (("unserved", "HERE/old"), "my number", True),
        (("unserved", "HERE"), "no process", True),
        (("unserved", "HERE"), "none", True),
        (("unserved", "HERE"), "fails", True),
        (("unserved", "HERE"), "no program", False),
    ],
)
def test_the_scripts_tests_hold_where_the_runs_do(trial, dockfix, test, says, holds):
    trial.program("asked", SAID[says])
    test = tuple(word.replace("HERE", trial.path) for word in test)
    kept_open = os.open(trial.at("setting"), os.O_RDONLY)  # what a daemon has of its root
    host = dockfix.make_host(state=trial.state)
    words = (*test, trial.at("bin", "asked"))
    assert (dockfix.failing_test(host, (words,)) == "") is holds
    script = (
        "\n".join("%s() { %s; }" % (name, mode.sh) for name, mode in dockfix.TESTS.items())
        + "\n"
        + dockfix.quote_line(words)
        + "\n"
    )
    for shell in [
        shell for shell in ("sh", "bash", "busybox sh") if shutil.which(shell.split()[0])
    ]:
        assert (
            subprocess.run([*shell.split(), "-s"], input=script.encode(), env=trial.env).returncode
            == 0
        ) is holds, shell
    os.close(kept_open)


def test_the_script_stops_where_its_disk_is_not_mounted_by_then(trial):
    """Printed, read, and run after a reboot."""
    place = subprocess.check_output(
        ["stat", "-c", "%m", trial.path], universal_newlines=True
    ).strip()
    on_disk = {"disk": [["says", place, "stat", "-c", "%m", trial.path]]}
    texts, facts = [], lambda module: setattr(
        module, "trial_plan", lambda *of: trial_plan(*of)._replace(facts=on_disk)
    )
    texts.append(trial.go("-n", "trial", extra=facts).out)
    assert trial.go("-y", "trial", kill=4, extra=facts).rc == -signal.SIGKILL
    texts.append(trial.go("-n", "resume").out)
    texts.append(trial.go("-n", "rollback").out)
    trial.program("stat", "echo /elsewhere")
    before = trial.picture()
    for text, code in zip(texts, (5, 7)):
        done = subprocess.run(["sh", "-s"], input=text, env=trial.env, stderr=subprocess.PIPE)
        assert (
            done.returncode == code
            and b"not mounted: " + place.encode() in done.stderr
            and trial.picture() == before
        ), done
    assert subprocess.run(["sh", "-s"], input=texts[2], env=trial.env).returncode == 0 and state(
        trial
    ) == dict(
        BEFORE
    )  # the way back needs none


@pytest.mark.parametrize("script", [False, True])
def test_what_somebody_wrote_into_the_settings_meanwhile_is_kept(trial, script):
    theirs, kept = b"old setting\nand mine\n", trial.at("setting") + ".dockfix-kept"

    def go(*words):
        if not script:
            return trial.go("-y", *words)
        text = trial.go("-n", *words).out
        return subprocess.run(
            ["sh", "-s"], input=text, env=trial.env, stderr=subprocess.PIPE, check=True
        )

    assert trial.go("-y", "trial", kill=7).rc == -signal.SIGKILL
    trial.file("setting", theirs)
    go("resume")
    assert {
        name: data for name, data in state(trial).items() if "kept" not in name
    } == AFTER and trial.read("setting.dockfix-kept") == theirs
    os.unlink(kept)
    trial.file("setting", theirs)
    go("rollback")
    assert (
        state(trial)["setting"] == BEFORE["setting"]
        and trial.read("setting.dockfix-kept") == theirs
    )
    os.unlink(kept)


def test_a_settings_file_that_was_not_there_is_taken_away_but_for_what_is_somebodys(trial, dockfix):
    path = trial.at("other")
    step = dockfix.put_file("t", "t", path, "ours\n")
    host = dockfix.make_host(state=trial.state)
    for there in (b"ours\n", b"theirs\n"):
        dockfix.do_step(host, step, None)
        assert trial.read("other") == b"ours\n" and not os.path.exists(path + ".dockfix-kept")
        trial.file("other", there)
        for _ in range(2):
            dockfix.do_step(host, step.undo[0], None)
        assert not os.path.exists(path)
        script = dockfix.plan_script(
            {"command": "t"}, dockfix.make_plan("n", "t", "g", (step, *step.undo))
        )
        trial.file("other", b"")
        os.unlink(path)
        assert subprocess.run(
            ["sh", "-s"], input=script.encode(), env=trial.env
        ).returncode == 0 and not os.path.exists(path)
    assert trial.read("other.dockfix-kept") == b"theirs\n"


def test_old_data_that_is_not_there_is_no_way_back(trial):
    assert trial.go("-y", "trial").rc == 0
    os.rename(trial.at("aside"), trial.at("elsewhere"))
    now = state(trial)
    result = trial.go("-y", "--json", "rollback")
    assert (
        result.rc == 5
        and "the old data is not in" in result.json["errors"][0]["msg"]
        and state(trial) == now
    ), result
    os.rename(trial.at("elsewhere"), trial.at("aside"))
    os.rename(trial.at("aside", "old"), trial.at("elsewhere"))  # only a part of it is missing
    assert trial.go("-y", "rollback").rc == 5 and state(trial)["old/copy"]
    os.rename(trial.at("elsewhere"), trial.at("aside", "old"))
    assert (
        trial.go("-y", "rollback").rc == 0
        and {k: v for k, v in state(trial).items() if not k.startswith("aside/")} == BEFORE
    )


def test_another_folder_at_the_place_of_the_old_data_is_not_touched(trial):
    """As after the disk of the old root was taken away: what is there is its mount point, or
    somebody else's."""
    on = {
        "extra": lambda module: setattr(
            module, "trial_plan", lambda *of: trial_plan(*of)._replace(facts={"old": 1})
        )
    }
    assert trial.go("-y", "trial", **on).rc == 0
    now = state(trial)
    for word in ("discard", "rollback"):
        result = trial.go("-y", "--json", word, "trial-1")
        assert (
            result.rc == 5
            and "disk is not mounted" in result.json["errors"][0]["msg"]
            and state(trial) == now
        ), result


def test_dockers_root_is_never_discarded(trial):
    """The root went back by hand to where it had been."""
    assert trial.go("-y", "trial").rc == 0
    now = state(trial)
    trial.world["info_json"] = json.dumps(
        {
            "ServerVersion": "20.10.24",
            "Driver": "overlay2",
            "DockerRootDir": trial.at("aside", "old"),
            "OSType": "linux",
        }
    )
    result = trial.go("-y", "--json", "discard", "trial-1")
    assert (
        result.rc == 5
        and "is Docker's root now" in result.json["errors"][0]["msg"]
        and state(trial) == now
    ), result


def test_a_discard_that_was_killed_leaves_no_way_back(trial):
    assert trial.go("-y", "trial").rc == 0
    assert trial.go("-y", "discard", "trial-1", kill=2).rc == -signal.SIGKILL
    result = trial.go("-y", "--json", "rollback", "trial-1")
    assert result.rc == 5 and result.json["errors"][0]["hint"].endswith("discard trial-1"), result
    assert trial.go("-y", "discard", "trial-1").rc == 0 and not os.path.exists(trial.at("aside"))


def test_a_discard_of_what_somebody_deleted_does_not_call_it_its_deed(trial):
    assert trial.go("-y", "trial").rc == 0
    os.rename(trial.at("aside"), trial.at("elsewhere"))
    result = trial.go("-y", "discard", "trial-1")
    assert (
        result.rc == 0
        and b"was not there any more" in result.out
        and b"is deleted" not in result.out
    ), result


def test_a_discard_that_cannot_begin_leaves_the_way_back(trial):
    trial.program("grep", "echo /proc/7/mountinfo")  # somebody has a mount there
    assert trial.go("-y", "trial").rc == 0
    assert trial.go("-y", "discard", "trial-1").rc == 1 and os.path.exists(
        trial.at("aside", "old", "file")
    )
    assert (
        trial.go("-y", "rollback", "trial-1").rc == 0
        and {k: v for k, v in state(trial).items() if not k.startswith("aside/")} == BEFORE
    )


def test_another_engine_in_the_environment(trial):
    """A change of tcp://b is not carried on here, where the same names mean other things."""
    there, left = {"DOCKER_HOST": "tcp://b:2376"}, {"DOCKER_HOST": "", "DOCKER_CONTEXT": "c"}
    assert trial.go("-y", "trial", kill=4, env=there).rc == -signal.SIGKILL
    now = state(trial)
    for env, hint in (
        ({"DOCKER_HOST": ""}, "env DOCKER_HOST=tcp://b:2376 python3 dockfix.py"),
        (left, "env -uDOCKER_CONTEXT DOCKER_HOST=tcp://b:2376 python3 dockfix.py"),
    ):
        for word in ("resume", "rollback"):
            result = trial.go("-y", "--json", word, env=env)
            assert (
                result.rc == 7
                and result.json["errors"][0]["hint"].startswith(hint)
                and result.json["errors"][0]["hint"].endswith(word)
            ), result
    assert (
        state(trial) == now
        and trial.go("-y", "resume", env=dict(there, DOCKER_CONFIG="/else")).rc == 0
    )
    result = trial.go("-y", "--json", "rollback", env={"DOCKER_HOST": ""})
    assert result.rc == 5 and "another engine" in result.json["errors"][0]["msg"], result


def test_an_orphan_of_a_killed_run_keeps_resume_out(trial, dockfix):
    trial.program(
        "cat",
        ": >'%s'; n=3000; until [ -e '%s' ] || [ $((n -= 1)) = 0 ]; do sleep 0.1; done; exec"
        " /bin/cat" % (trial.at("begun"), trial.at("go")),
    )
    pid = trial.start(
        trial.arguments(["-y", "trial"]), prelude=lambda module: trial_prelude(module, trial)
    )
    journal = os.path.join(trial.state, "journal.json")
    from common import wait_until

    def at_step_5():
        if not os.path.exists(journal):
            return False
        with open(journal) as f:
            return json.loads(f.read())["at"] == 4

    wait_until(at_step_5, "step 5")
    # copy.part is there before it
    wait_until(lambda: os.path.exists(trial.at("begun")), "copying child")
    os.kill(pid, signal.SIGKILL)
    trial.outcome(pid)
    result = trial.go("--json", "resume")
    assert result.rc == 8 and "step 5 of 8: copy" in result.json["errors"][0]["msg"], result
    trial.file("go", b"")
    lock = os.open(os.path.join(trial.state, "lock"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)  # comes back when the orphan has ended
    os.close(lock)
    assert trial.go("resume").rc == 0 and state(trial) == AFTER


def trial_prelude(module, box):
    def run(host, opts, report):
        module.lock_storage(host, opts)
        module.run_change(host, opts, report, trial_plan(module, box))

    module.COMMANDS += (
        module.Command(
            "trial", "", "trial", module.CHANGE_OPTIONS, run, module.show_change, "", (0, 0)
        ),
    )


def test_a_journal_that_cannot_be_written_refuses_the_change(trial):
    def full(module):
        def replace_file(path, data, mode=0o600):
            raise OSError(28, "No space left on device")

        module.replace_file = replace_file

    result = trial.go("-y", "--json", "trial", extra=full)
    assert (
        result.rc == 6
        and "journal" in result.json["errors"][0]["msg"]
        and "nothing was changed" in result.json["errors"][0]["msg"]
    )
    assert state(trial) == BEFORE and os.listdir(trial.state) == ["lock"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_journal_that_cannot_be_closed_undoes_nothing(trial, kept):
    """The change is done, and said to be: only its journal is in the way. Then it is closed by
    resume, or undone as a finished one."""

    def stuck(module):
        real, remove = module.replace_file, module.remove_file

        def full(path, data, mode=0o600):
            if os.path.basename(path) == "trial-1.json":
                raise OSError(28, "No space left on device")
            real(path, data, mode)

        def read_only(path):
            if os.path.basename(path) == "journal.json":
                raise OSError(30, "Read-only file system")
            remove(path)

        if kept:
            module.replace_file = full
        else:
            module.remove_file = read_only

    result = trial.go("-y", "--json", "trial", extra=stuck)
    error = result.json["errors"][0]
    assert result.rc == 7 and state(trial) == AFTER, result
    assert "all steps are done" in error["msg"] and "resume" in error["hint"], result
    assert trial.go("-y", "--json", "trial").rc == 7
    result = trial.go("resume")
    assert result.rc == 0 and state(trial) == AFTER, result
    assert sorted(os.listdir(trial.state)) == ["lock", "trial-1.json"]
    stays = trial.go("-y", "--json", "rollback", extra=stuck)
    assert stays.rc == 7 and "all steps are undone" in stays.json["errors"][0]["msg"], stays
    assert trial.go("-y", "rollback").rc == 0 and state(trial)["old/file"] == BEFORE["old/file"]


CHANGING = (
    ["chpasswd", "x", "--password-file", "secret"],
    ["exec", "x", "--", "true"],
    ["timezone", "x", "--zone", "UTC"],
    ["timezone", "x", "--undo"],
    ["faketime", "x", "--offset", "+1h"],
    ["faketime", "x", "--undo"],
    ["reclaim", "--logs"],
    ["reclaim", "--containers"],
    ["relocate", "/new"],
    ["pool", "grow", "--data", "+1G"],
    ["backup", "/new"],
    ["discard", "trial-1"],
)


@pytest.mark.parametrize("words", CHANGING, ids=" ".join)
def test_half_way_is_said_before_the_daemon_is_asked(trial, words):
    """It may well be down, in the middle of a move: then 'the daemon does not answer' would lead
    into the middle of it."""
    assert trial.go("-y", "trial", kill=4).rc == -signal.SIGKILL
    trial.file("secret", b"new")
    trial.program("docker", ": > %s; exit 1" % trial.at("asked"))
    words = [trial.at("secret") if word == "secret" else word for word in words]
    result = trial.go("-y", "--json", *words)
    assert result.rc == 7 and "half-way" in result.json["errors"][0]["msg"], result
    assert not os.path.exists(trial.at("asked"))


def test_ctrl_c_finishes_the_step_and_stops(trial):
    trial.program("cat", "kill -INT $(cut -d' ' -f4 /proc/$$/stat); exec /bin/cat")
    result = trial.go("-y", "--json", "trial")
    assert result.rc == -signal.SIGINT and "step 6 of 8" in result.json["errors"][0]["msg"], result
    assert (
        os.path.exists(trial.at("aside", "made", "copy"))
        and trial.go("-y", "exec", "x", "--", "y").rc == 7
    )
    os.unlink(trial.at("bin", "cat"))
    assert trial.go("resume").rc == 0 and state(trial) == AFTER


def test_a_journal_that_is_not_understood_blocks_changes(trial):
    assert trial.go("-y", "trial", kill=3).rc == -signal.SIGKILL
    with open(os.path.join(trial.state, "journal.json"), "w") as f:
        f.write('{"at": 3')
    for words in (["-y", "trial"], ["resume"], ["-y", "rollback"], ["exec", "--all", "--", "x"]):
        result = trial.go("--json", *words)
        assert result.rc == 7, result


def test_old_data_that_a_process_has_open_is_not_discarded(trial):
    """Another daemon may have it as its root, one that the docker command of now does not speak
    to."""
    assert trial.go("-y", "trial").rc == 0
    with open(trial.at("aside", "old", "file")):
        result = trial.go("-y", "--json", "discard", "trial-1")
    assert result.rc == 5 and "(pid %d)" % os.getpid() in result.json["errors"][0]["msg"], result
    assert state(trial) == AFTER
    assert trial.go("-y", "discard", "trial-1").rc == 0


def test_no_answer_is_a_refusal(trial):
    result = trial.go("trial")
    assert result.rc == 5 and state(trial) == BEFORE and os.listdir(trial.state) == ["lock"]


def test_steps_survive_the_journal(trial, dockfix):
    plan = trial_plan(dockfix, trial)
    back = tuple(
        dockfix.step_from(json.loads(json.dumps(dockfix.step_data(step)))) for step in plan.steps
    )
    assert back == plan.steps


@pytest.mark.parametrize(
    "ids,void_after,fault",
    [
        (("copy", "start", "copy"), "", "two steps have the id copy"),
        (("copy", "start"), "begin", "no step with the id begin"),
        (("copy", "start"), "start", ""),
    ],
)
def test_a_plan_knows_its_steps_by_their_ids(dockfix, ids, void_after, fault):
    """Two steps may have one title, never one id."""
    steps = [dockfix.Step(one, "title", undo_void_after=void_after) for one in ids]
    if not fault:
        plan = dockfix.make_plan("trial-1", "trial", "goal", steps)
        assert [dockfix.step_index(plan, one) for one in ids] == list(range(len(ids)))
        return
    with pytest.raises(dockfix.DockfixError) as raised:
        dockfix.make_plan("trial-1", "trial", "goal", steps)
    assert "internal error" in raised.value.msg and fault in raised.value.msg


@pytest.mark.parametrize("text,size", [("500", 500), ("+1G", (1 << 30) + 7), ("2GiB", 2 << 30)])
def test_relative_sizes(dockfix, text, size):
    assert dockfix.parse_size_request(text).bytes_from(7) == size
    if "+" in text:
        with pytest.raises(dockfix.UsageError):
            dockfix.parse_size(text)


@pytest.mark.parametrize(
    "size,text",
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_for_people(dockfix, size, text):
    assert dockfix.format_size(size) == text


def test_the_way_back_is_said_once_only(dockfix):
    row = {
        "target": "relocate",
        "id": "relocate-1",
        "status": "changed",
        "keeps": "/old",
        "msg": "move Docker's root",
    }
    assert dockfix.show_change({"results": [row]}, False).endswith(
        "kept in /old; rollback relocate-1 goes back; discard relocate-1 deletes it\n"
    )
    undone = dockfix.show_change(
        {
            "results": [
                dict(row, msg="undone: move Docker's root"),
                {"target": "web", "id": "", "status": "changed", "msg": ""},
            ]
        },
        False,
    )
    assert "rollback" not in undone and "discard relocate-1 deletes it\nweb: changed\n" in undone


@pytest.mark.parametrize("driver_status", [{}, {"driver-type": "io.containerd.snapshotter.v1"}])
@pytest.mark.parametrize("place", ["containerd", "old/containerd/daemon", ""])
def test_relocate_says_that_containerds_store_stays(
    dockfix, tmp_path, monkeypatch, capfd, driver_status, place
):
    old = str(tmp_path / "old")
    os.makedirs(old)
    if place:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "blob").write_bytes(b"x" * 70000)
    monkeypatch.setattr(dockfix, "CONTAINERD_ROOT", str(tmp_path / "containerd"))
    monkeypatch.setattr(dockfix, "CONTAINERD_SETTINGS", str(tmp_path / "config.toml"))
    driver = "overlayfs" if driver_status else "overlay2"
    info = dockfix.EngineInfo(driver=driver, driver_status=driver_status)
    host = dockfix.make_host()
    host.known.engine_info = info
    report = {"findings": []}
    dockfix.report_what_stays(host, old, report)
    said = capfd.readouterr().err
    if not driver_status or place == "old/containerd/daemon":  # that one moves along
        assert report == {"findings": []} and said == ""
        return
    stays = report["stays"]
    assert [one["id"] for one in report["findings"]] == ["containerd-stays"]
    assert report["findings"][0]["text"] in said
    if place:
        assert stays["path"] == str(tmp_path / place) and stays["size"] >= 70000
        assert stays["path"] in said and "KiB" in said
    else:
        assert stays == {"path": None, "size": None} and "of unknown size" in said
