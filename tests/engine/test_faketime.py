"""`faketime` on real containers: what follows and when, what is refused before anything is written,
what is undone by itself, and what a killed run leaves that `--undo` cannot mend: nothing.

The first process is perl, which tells the time itself three times a second; `docker diff` and
docker's log are the second opinion."""

import calendar
import glob
import os
import shutil
import subprocess
import time

import pytest

import kit
from common import read_bytes, wait_until
import roots

TELLS = (
    "$| = 1; $SIG{TERM} = sub { exit }; sub tell_time { print time, qq(\\n); select undef, undef,"
    " undef, 0.3 } "
)
FAKED = "open F, q(/proc/self/maps); $faked = grep /faketime/, <F>; "
HOUR, DAY = 3600, 86400
BIG = os.environ.get("DOCKFIX_TEST_BIG") == "1"
UNWATCHED = ("--watch", "0")


def perl(code):
    return ("perl", "-e", TELLS + FAKED + code)


FOREVER = perl("tell_time while 1")


# ---------------------------------------------------------------------- what is needed


@pytest.fixture(scope="module")
def library():
    """The host's own, of the same release as the Debian root."""
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not found:
        (
            pytest.skip("needs libfaketime (Debian: apt-get install libfaketime)")
            if os.environ.get("CI") != "true"
            else pytest.fail("no libfaketime")
        )
    return found[0]


@pytest.fixture(scope="module")
def made(lab, library):
    """make(source, options) -> path of a shared library that says of itself that it is a
    libfaketime."""
    gcc, folder, count = [kit.need("gcc", "gcc")], lab.new_folder(), [0]

    def make(source, *options, mark='const char mark[] = "/etc/faketimerc";\n'):
        count[0] += 1
        program = roots.compiled(gcc, mark + source, "-shared", "-fPIC", "-L" + folder, *options)
        path = os.path.join(folder, "lib%d.so" % count[0])
        shutil.move(program, path)
        shutil.rmtree(os.path.dirname(program))
        return path

    make.folder = folder
    return make


@pytest.fixture(scope="module")
def web(lab, library):
    """One container for what leaves no trace."""
    lab.run("web", "-e", "TZ=CST-8", command=FOREVER)
    return lab


def diff(lab, name):
    return sorted(lab.docker("diff", name).stdout.decode().splitlines())


def shift(lab, name):
    """How far a new process's clock is ahead, by perl, which knows nothing of dockfix."""
    began = time.time()
    inside = int(lab.docker("exec", name, "perl", "-e", "print time").stdout)
    return round(inside - (began + time.time()) / 2)


def first_shift(lab, name):
    """The same for the first process, by a new line of its log beside docker's own time of that
    line."""
    wait_lines(lab, name, len(log_lines(lab, name)) + 1)
    at, told = log_lines(lab, name)[-1]
    return told - at


def log_lines(lab, name):
    """(docker's own time, what the process printed) of each line that is a number."""
    lines = [
        line.split(" ", 1) for line in lab.docker("logs", "-t", name).stdout.decode().splitlines()
    ]
    return [
        (calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")), int(told))
        for stamp, told in lines
        if told.isdigit()
    ]


def wait_lines(lab, name, count):
    wait_until(lambda: len(log_lines(lab, name)) >= count, "line %d of %s" % (count, name), 120)


def near(found, wanted):
    """No two shifts of these tests are less than minutes apart, and a call may take long."""
    return abs(found - wanted) <= 60


def own_state(lab, name):
    """A state folder for runs that go side by side, or that look at all that is in it."""
    return ("--state", os.path.join(lab.state, name))


def records(lab, state=()):
    folder = os.path.join(state[1] if state else lab.state, "undo")
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def faketime(lab, *args, **how):
    return lab.dockfix("faketime", *args, **how)


def is_as_it_was(lab, name, before, state=()):
    """docker diff, the clocks and the state of dockfix: nothing is left of it."""
    assert diff(lab, name) == before
    assert near(shift(lab, name), 0)
    assert not [one for one in records(lab, state) if lab.id(name) in one]


# ---------------------------------------------------------------------- the main road


def test_new_processes_at_once_and_undone_without_a_trace(web):
    before, zone = diff(web, "web"), web.docker("exec", "web", "date", "+%z %Z").stdout
    run = faketime(web, "web", "--offset", "+8h", "--watch", "4", "--json")
    row = run.rows["web"]
    assert (
        run.rc == 0
        and row["status"] == "changed"
        and row["offset"] == 8 * HOUR
        and row["library"].endswith("libfaketime.so.1")
    ), run
    assert any(
        "docker run" in one["remedy"] and "FAKETIME=+28800" in one["remedy"]
        for one in run.doc["findings"]
    )
    assert "%s s" % row["offset"] in row["msg"] and "restart" in row["msg"]
    assert near(shift(web, "web"), 8 * HOUR) and near(first_shift(web, "web"), 0)
    assert web.docker("exec", "web", "date", "+%z %Z").stdout == zone  # N12: the zone stays
    assert web.docker("exec", "web", "cat", "/etc/faketimerc").stdout == b"+28800\n"
    told = faketime(web, "web", "--status", "--json").rows["web"]
    assert (
        told["offset"] == 8 * HOUR
        and told["preloaded"] is False
        and "after a restart" in told["msg"]
    ), told
    again = faketime(web, "web", "--offset", "+8h", "--json")
    assert again.rc == 0 and again.rows["web"]["status"] == "unchanged", again
    assert web.dockfix("clock", "web", "--json").rows["web"]["verdict"] == "shifted by libfaketime"
    undo = faketime(web, "web", "--off")
    assert undo.rc == 0, undo
    is_as_it_was(web, "web", before)
    assert faketime(web, "web", "--undo", "--json").rows["web"]["status"] == "unchanged"


def test_at_names_an_instant_and_goes_on_ticking_in_separate_execs(web):
    """The notes' open question: `@TIME` starts anew in each exec; an offset does not."""
    before, began = diff(web, "web"), time.time()
    run = faketime(web, "web", "--at", "2030-06-01 12:00:00", "--zone", "Asia/Shanghai", *UNWATCHED)
    assert run.rc == 0, run
    first = int(web.docker("exec", "web", "date", "+%s").stdout)
    assert 0 <= first - 1906516800 <= time.time() - began + 1  # 12:00 in Shanghai is 04:00 UTC
    time.sleep(1.2)
    second = int(web.docker("exec", "web", "date", "+%s").stdout)
    assert first + 1 <= second and second - 1906516800 <= time.time() - began + 1
    assert faketime(web, "web", "--undo").rc == 0
    is_as_it_was(web, "web", before)


def test_the_first_process_follows_a_restart_and_stays_shifted(lab, library):
    lab.run("first", "--stop-timeout", "1", command=FOREVER)
    before = diff(lab, "first")
    asked = faketime(lab, "first", "--offset", "-1.5d", "--restart", "--json")
    assert asked.rc == 5 and diff(lab, "first") == before, asked  # no terminal to ask on
    run = faketime(lab, "first", "--offset", "-1.5d", "--restart", "--yes", "--watch", "4")
    assert run.rc == 0, run
    assert near(first_shift(lab, "first"), -1.5 * DAY) and near(shift(lab, "first"), -1.5 * DAY)
    lab.docker("restart", "first")
    assert near(first_shift(lab, "first"), -1.5 * DAY)
    assert faketime(lab, "first", "--status", "--json").rows["first"]["preloaded"] is True
    refused = faketime(lab, "first", "--offset=+3h", "--json")
    assert (
        refused.rc == 5
        and "--step-running" in refused.rows["first"]["msg"]
        and "--restart" in refused.rows["first"]["msg"]
    ), refused
    assert lab.docker("exec", "first", "cat", "/etc/faketimerc").stdout == b"-129600\n"
    stepped = faketime(lab, "first", "--offset=+3h", "--step-running", *UNWATCHED)
    done = time.time()
    assert stepped.rc == 0 and near(shift(lab, "first"), 3 * HOUR), stepped
    wait_until(lambda: near(first_shift(lab, "first"), 3 * HOUR), "step of the first process", 120)
    # what it printed tells when it last read a clock of the former offset: no later than 10 s after
    # the write
    assert (
        max(told + 1.5 * DAY for at, told in log_lines(lab, "first") if near(told - at, -1.5 * DAY))
        <= done + 10
    )
    again = faketime(lab, "first", "--offset", "+1d", "--restart", "-y", *UNWATCHED)
    assert again.rc == 0 and near(first_shift(lab, "first"), DAY), again
    undo = faketime(lab, "first", "--undo", "--restart", "-y")
    assert undo.rc == 0 and near(first_shift(lab, "first"), 0), undo
    is_as_it_was(lab, "first", before)


def test_a_new_offset_that_does_not_do_well_leaves_the_former_one(lab, library):
    lab.run(
        "former", "--stop-timeout", "1", command=perl("exit 1 if time > 4e9; tell_time while 1")
    )
    assert faketime(lab, "former", "--offset", "+8h", *UNWATCHED).rc == 0
    files = diff(lab, "former")
    run = faketime(lab, "former", "--offset", "+80y", "--restart", "-y", "--watch", "3", "--json")
    assert (
        run.rc == 1
        and "stay up" in run.rows["former"]["msg"]
        and "undone" in run.rows["former"]["msg"]
    ), run
    assert near(shift(lab, "former"), 8 * HOUR) and diff(lab, "former") == files
    assert faketime(lab, "former", "--status", "--json").rows["former"]["offset"] == 8 * HOUR
    assert faketime(lab, "former", "--undo", "--restart", "-y").rc == 0
    assert near(first_shift(lab, "former"), 0)


def test_what_was_there_is_kept_and_put_back(lab, library, made):
    """Other entries of ld.so.preload stay in force; a plain offset of somebody else comes back."""
    other = made("int other;", mark="")
    lab.create("kept", command=FOREVER)
    lab.docker("cp", other, "kept:/usr/lib/libother.so")
    lab.docker("start", "kept")
    lab.inside(
        "kept",
        "printf /usr/lib/libother.so >/etc/ld.so.preload; printf '+5m' >/etc/faketimerc; chmod 0600"
        " /etc/faketimerc; chown 7:8 /etc/faketimerc",
    )
    before = [lab.shadow("kept", path) for path in ("/etc/ld.so.preload", "/etc/faketimerc")]
    run = faketime(lab, "kept", "--offset", "+2h", *UNWATCHED)
    assert run.rc == 0 and near(shift(lab, "kept"), 2 * HOUR), run
    lines = lab.shadow("kept", "/etc/ld.so.preload").data.splitlines()
    assert lines[0] == b"/usr/lib/libother.so" and len(lines) == 2
    assert faketime(lab, "kept", "--undo").rc == 0
    assert [
        lab.shadow("kept", path) for path in ("/etc/ld.so.preload", "/etc/faketimerc")
    ] == before


def test_many_at_once_and_the_script_of_a_dry_run(lab, library):
    names, state = ["m1", "m2"], own_state(lab, "many")
    for name in names:
        lab.run(name, command=FOREVER)
    lab.run("m3", image="busybox")
    before = {name: diff(lab, name) for name in names}
    dry = faketime(lab, "m1", "m2", "m3", "--offset", "+90m", *UNWATCHED, *state, "--dry-run")
    assert (
        dry.rc == 3
        and {name: diff(lab, name) for name in names} == before
        and not os.path.exists(state[1])
    ), dry
    script = lab.script(dry.out)
    assert script.rc == 3, script
    assert all(near(shift(lab, name), 90 * 60) for name in names)
    told = faketime(lab, "--all", "--status", "--json", *state).rows
    assert {name for name, row in told.items() if row["offset"] == 5400} == set(names)
    undo = faketime(lab, "m1", "m2", "--undo", *state, "--dry-run")
    assert lab.script(undo.out).rc == 0
    for name in names:
        is_as_it_was(lab, name, before[name], state)


# ---------------------------------------------------------------------- refused before anything is
# written


def test_containers_that_are_refused(lab, library, made, cannot_run):
    """Each with its reason; nothing is written, nothing is kept."""
    folder, state = lab.host_dir("rc", {"faketimerc": b"+0\n"}), own_state(lab, "refused")
    reasons = {}

    def add(name, reason, *options, command=FOREVER, image="debian", deed=None):
        lab.run(name, *options, image=image, command=command)
        if deed:
            deed()
        reasons[name] = reason

    for libc in ("musl", "static"):
        lab.images["clock-" + libc] = lab.engine.import_tar(
            "ring/clock-" + libc, roots.clock_tar(libc), ["/bin/date"]
        )
    add("r-musl", "musl", image="clock-musl", command=("/bin/date",))
    add("r-static", "static program", image="clock-static", command=("/bin/date",))
    add("r-busybox", "static program", image="busybox", command=())
    add("r-env", "environment sets FAKETIME", "-e", "FAKETIME=2020-01-01 00:00:00")
    add(
        "r-mount",
        "/etc/faketimerc is a mount",
        "-v",
        os.path.join(folder, "faketimerc") + ":/etc/faketimerc:ro",
    )
    add("r-readonly", "read-only", "--read-only")
    add("r-stopped", "does not run", deed=lambda: lab.docker("kill", "r-stopped"))
    add("r-paused", "paused", deed=lambda: lab.docker("pause", "r-paused"))
    add(
        "r-rc",
        "no plain offset (+1 fortnight)",
        deed=lambda: lab.inside("r-rc", "echo '+1 fortnight' >/etc/faketimerc"),
    )
    add(
        "r-frozen",
        "no plain offset",
        deed=lambda: lab.inside("r-frozen", "echo '2020-01-01 00:00:00' >/etc/faketimerc"),
    )
    add(
        "r-preload",
        "names a libfaketime already",
        deed=lambda: lab.inside("r-preload", "echo /opt/libfaketime.so.1 >/etc/ld.so.preload"),
    )
    add(
        "r-link",
        "no plain file",
        deed=lambda: lab.inside("r-link", "ln -s /tmp/elsewhere /etc/faketimerc"),
    )
    add(
        "r-drop",
        "another user",
        command=(
            "bash",
            "-c",
            "exec setpriv --reuid 1000 --clear-groups perl -e '%s'" % FOREVER[2],
        ),
    )
    add(
        "r-dropped",
        "another user",
        command=perl("$> = $< = 1000; exec 'perl', '-e', '%s'" % "sleep 1 while 1"),
    )
    if shutil.which("go"):
        with open(os.path.join(made.folder, "main.go"), "w") as f:
            f.write(
                'package main\n\nimport "time"\n\nfunc main() {\n\tfor'
                " {\n\t\ttime.Sleep(time.Second)\n\t}\n}\n"
            )
        subprocess.check_call(
            ["go", "build", "-o", "gone", "main.go"],
            cwd=made.folder,
            env=dict(
                os.environ, GOCACHE=made.folder + "/cache", GO111MODULE="off", HOME=made.folder
            ),
        )
        lab.create("r-go", command=("/gone",))
        lab.docker("cp", os.path.join(made.folder, "gone"), "r-go:/gone")
        lab.docker("start", "r-go")
        reasons["r-go"] = "Go program"
    wait_until(
        lambda: b"\nUid:\t0\t1000\t" in lab.read_bytes("/proc/%d/status" % lab.pid("r-dropped"))
        or b"\nUid:\t1000\t1000\t" in lab.read_bytes("/proc/%d/status" % lab.pid("r-dropped")),
        "drop of root",
        120,
    )
    before = {name: diff(lab, name) for name in reasons}
    run = faketime(lab, *([*list(reasons), "--offset", "+8h", "--json"]), *state, timeout=600)
    told = {name: "%(status)s: %(msg)s" % row for name, row in run.rows.items()}
    assert {
        name: told[name]
        for name, reason in reasons.items()
        if not told[name].startswith("refused") or reason not in told[name]
    } == {}
    assert run.rc == 5, run
    assert {name: diff(lab, name) for name in reasons} == before and records(lab, state) == []
    lab.run("r-rm", "--rm", command=FOREVER)
    run = faketime(lab, "r-rm", "--offset", "+8h", "--restart", "-y", "--json")
    assert run.rc == 5 and "--rm" in run.rows["r-rm"]["msg"], run
    lab.docker(
        "kill", *(["r-rm"] + [name for name in reasons if name not in ("r-stopped", "r-paused")])
    )


def test_libraries_that_are_refused(web, library, made):
    """By their ELF facts, or by their trial: nothing is left in the container."""
    data, before = read_bytes(library), diff(web, "web")

    def file(name, content):
        path = os.path.join(made.folder, name)
        with open(path, "wb") as f:
            f.write(content)
        return path

    stub = made(
        "void future(void) {}",
        "-Wl,-soname,libc.so.6",
        "-Wl,--version-script=" + file("future.map", b"GLIBC_2.99 { future; };"),
    )
    os.rename(stub, os.path.join(made.folder, "libfuture.so"))
    stub = made("void nothing(void) {}", "-Wl,-soname,libnothere.so.1")
    os.rename(stub, os.path.join(made.folder, "libnothere.so"))
    hooks = (
        "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n__attribute__((constructor))"
        " static void begin(void) { %s }"
    )
    unfit = [
        (made("void future(void); void use(void) { future(); }", "-lfuture"), "GLIBC_2.99"),
        (
            made(
                '#include <stdio.h>\nvoid nothing(void); void use(void) { nothing(); puts(""); }',
                "-lnothere",
            ),
            "libnothere.so.1",
        ),
        (file("machine", data[:18] + b"\xb7\0" + data[20:]), "aarch64"),
        (file("class", data[:4] + b"\1" + data[5:]), ""),
        (file("truncated", data[: len(data) // 2]), "cut short"),
        (file("one-less", data[:-1]), "cut short"),
        (file("empty", b""), "not an ELF file"),
        (file("text", b"#!/bin/sh\n"), "not an ELF file"),
        (made("int nothing;", mark=""), "no libfaketime"),
    ]
    run = faketime(
        web,
        "web",
        "--offset",
        "+8h",
        *[word for path, _ in unfit for word in ("--lib", path)],
        "--json",
    )
    told = dict(
        part.split(": ", 1) for part in run.rows["web"]["msg"].split("; ") if part.startswith("/")
    )
    assert run.rc == 5 and [path for path, reason in unfit if reason not in told[path]] == [], run
    is_as_it_was(web, "web", before)
    for path, reason in [
        (made(hooks % 'puts("");'), "trial of"),
        (made(hooks % "getpid();"), "not by +28800 s"),
        (made(hooks % 'fprintf(stderr, "loaded\\n");'), "loaded"),
        (made(hooks % "_exit(3);"), "trial of"),
        (made(hooks % "abort();"), "trial of"),
    ]:
        run = faketime(web, "web", "--offset", "+8h", "--lib", path, "--json")
        assert (
            run.rc == 5
            and run.rows["web"]["status"] == "refused"
            and reason in run.rows["web"]["msg"]
        ), (path, run)
        assert diff(web, "web") == before and records(web) == []
    # the first that fits is taken
    run = faketime(
        web,
        "web",
        "--offset",
        "+8h",
        "--lib",
        unfit[0][0],
        "--lib",
        unfit[4][0],
        "--lib",
        library,
        *UNWATCHED,
        "--json",
    )
    assert run.rc == 0 and run.rows["web"]["library"] == library, run
    assert faketime(web, "web", "--undo").rc == 0
    is_as_it_was(web, "web", before)
    # one that hangs: the trial's process stays, as docker cannot end it
    web.run("hung", command=FOREVER)
    before = diff(web, "hung")
    run = faketime(
        web,
        "hung",
        "--offset",
        "+8h",
        "--lib",
        made(hooks % "sleep(600);"),
        "--json",
        "--timeout",
        "8",
    )
    assert run.rc == 5 and "no answer in 8 s" in run.rows["hung"]["msg"], run
    is_as_it_was(web, "hung", before)
    web.docker("rm", "-f", "hung")


def test_no_compiler_in_the_container(web, made):
    before, source = diff(web, "web"), os.path.join(made.folder, "tree", "src")
    os.makedirs(source)
    for name in ("libfaketime.c", "Makefile"):
        open(os.path.join(source, name), "w").close()
    run = faketime(web, "web", "--offset", "+8h", "--build-from", os.path.dirname(source), "--json")
    assert run.rc == 5 and "no make" in run.rows["web"]["msg"], run
    is_as_it_was(web, "web", before)


# ---------------------------------------------------------------------- undone by itself

SICK = {  # name: (options, the code of its first process, what is said)
    "dies": ((), "exit 1 if $faked; tell_time while 1", "stay up"),
    "loops": (("--restart", "always"), "exit 1 if $faked; tell_time while 1", "stay up"),
    "silent": ((), "sleep 1 while $faked; tell_time while 1", "wrote nothing"),
    "hangs": (
        (),
        (
            "tell_time; sleep 1 while $faked; exec q(/bin/bash), q(-c), q(trap exit TERM; while :;"
            " do sleep 0.3; done)"
        ),
        "hangs in its start",
    ),
}


def test_what_does_not_do_well_is_put_back(lab, library):
    def one(name):
        options, code, word = SICK[name]
        lab.run(name, "--stop-timeout", "1", *options, command=perl(code))
        wait_lines(lab, name, 1)
        wait_until(
            lambda: name != "hangs" or os.readlink("/proc/%d/exe" % lab.pid(name)).endswith("bash"),
            "bash",
            120,
        )
        before, state = diff(lab, name), own_state(lab, name)
        run = faketime(
            lab, name, "--offset", "+8h", "--restart", "-y", "--watch", "4", "--json", *state
        )
        row = run.rows[name]
        assert (
            run.rc == 1
            and row["status"] == "failed"
            and word in row["msg"]
            and row["msg"].endswith("as it was")
        ), run
        wait_until(lambda: lab.status()[name] == "Up", name, 120)
        is_as_it_was(lab, name, before, state)
        assert name == "hangs" or near(first_shift(lab, name), 0)
        lab.docker("rm", "-f", name)

    lab.parallel(one, SICK)


# ---------------------------------------------------------------------- timed waits

WAITS_C = """#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <time.h>
int main(void) {                /* what std::condition_variable::wait_for does */
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    for (;;) {
        struct timespec end;
        clock_gettime(CLOCK_MONOTONIC, &end);
        end.tv_nsec += 300000000;
        if (end.tv_nsec >= 1000000000) { end.tv_sec++; end.tv_nsec -= 1000000000; }
        pthread_mutex_lock(&lock);
        pthread_cond_clockwait(&never, &lock, CLOCK_MONOTONIC, &end);
        pthread_mutex_unlock(&lock);
        printf("%ld\\n", (long) time(NULL));
        fflush(stdout);
    }
}
"""
WAITS_PYTHON = (
    "import signal, sys, threading, time\nsignal.signal(signal.SIGTERM, lambda *a:"
    " sys.exit())\nwhile 1: threading.Event().wait(0.3); print(int(time.time()), flush=True)"
)
WAITS_JAVA = """public class Waits {
    public static void main(String[] words) throws Exception {
        Object lock = new Object();
        for (;;) {
            synchronized (lock) { lock.wait(300); }
            System.out.println(System.currentTimeMillis() / 1000);
        }
    }
}
"""


def goes_on_or_is_refused_or_put_back(lab, name, before, *more):
    """Whatever this library does to timed waits: the program goes on, shifted or as it was. Returns
    the row."""
    run = faketime(lab, name, "--offset", "-8h", "--restart", "-y", "--watch", "4", "--json", *more)
    row = run.rows[name]
    assert row["status"] in ("changed", "refused", "failed"), run
    if row["status"] == "changed":
        assert near(first_shift(lab, name), -8 * HOUR), run
        assert faketime(lab, name, "--undo", "--restart", "-y").rc == 0
    assert near(first_shift(lab, name), 0) and lab.status()[name] == "Up", run
    is_as_it_was(lab, name, before)
    return row


def test_timed_waits_as_in_cplusplus(lab, library):
    program = roots.compiled([kit.need("gcc", "gcc")], WAITS_C, "-pthread")
    lab.create("cplusplus", "--stop-timeout", "1", command=("/waits",))
    lab.docker("cp", program, "cplusplus:/waits")
    shutil.rmtree(os.path.dirname(program))
    lab.docker("start", "cplusplus")
    wait_lines(lab, "cplusplus", 2)
    row = goes_on_or_is_refused_or_put_back(lab, "cplusplus", diff(lab, "cplusplus"))
    assert row["status"] == "changed" or "wrote nothing" in row["msg"], row


def test_timed_waits_of_python(lab, library):
    lab.run(
        "python",
        "--stop-timeout",
        "1",
        *roots.python_options(),
        command=("/usr/bin/python3", "-c", WAITS_PYTHON),
    )
    wait_lines(lab, "python", 2)
    row = goes_on_or_is_refused_or_put_back(lab, "python", diff(lab, "python"))
    assert row["status"] == "changed" or "timed waits hang" in row["msg"], row


@pytest.mark.skipif(
    not BIG or not shutil.which("javac"),
    reason="a JVM: only with DOCKFIX_TEST_BIG=1 and default-jdk-headless",
)
def test_timed_waits_of_java(lab, library):
    folder = lab.new_folder()
    options = roots.java_options(folder)
    with open(os.path.join(folder, "Waits.java"), "w") as f:
        f.write(WAITS_JAVA)
    subprocess.check_call(["javac", f.name], cwd=folder)
    lab.run(
        "java", "--stop-timeout", "1", *options, command=("/jvm/bin/java", "-cp", "/java", "Waits")
    )
    wait_lines(lab, "java", 2)
    row = goes_on_or_is_refused_or_put_back(lab, "java", diff(lab, "java"), "--watch", "10")
    assert row["status"] == "changed", row


# ---------------------------------------------------------------------- as people do it by hand


@pytest.mark.skipif(
    not BIG,
    reason=(
        "roots of the other Debian releases, and their libfaketime: only with DOCKFIX_TEST_BIG=1"
    ),
)
def test_other_debian_releases(lab, library):
    """The host's library fits its own release and later ones; the one made on the oldest fits all;
    each release's own fits it."""
    (suite, mirror), order = kit.debian_source(), ["bullseye", "bookworm", "trixie"]
    folders, libraries = {one: lab.new_folder() for one in order}, {}
    for one in order:
        lab.images[one] = lab.engine.import_debian("ring/" + one, suite=one)
        lab.run(one, "--stop-timeout", "1", image=one, command=FOREVER)
        apt(folders[one], one, mirror, "deb", "download", "libfaketime")
        subprocess.check_call(
            [
                "dpkg-deb",
                "-x",
                glob.glob(os.path.join(folders[one], "libfaketime_*.deb"))[0],
                folders[one],
            ]
        )
        libraries[one] = glob.glob(
            os.path.join(folders[one], "usr/lib/*/faketime/libfaketime.so.1")
        )[0]
    before = {one: diff(lab, one) for one in order}

    def shifted(*more):
        rows = faketime(
            lab,
            *(
                (
                    *tuple(order),
                    "--offset",
                    "+8h",
                    "--restart",
                    "-y",
                    "--watch",
                    "2",
                    "--json",
                    *more,
                )
            ),
        ).rows
        for one in order:
            assert near(first_shift(lab, one), 8 * HOUR if rows[one]["status"] == "changed" else 0)
        assert faketime(lab, *((*tuple(order), "--undo", "--restart", "-y"))).rc == 0
        for one in order:
            is_as_it_was(lab, one, before[one])
            assert near(first_shift(lab, one), 0)
        return {
            one: (rows[one]["status"], rows[one]["library"] or rows[one]["msg"]) for one in order
        }

    told = shifted()
    for one in order:
        if order.index(one) < order.index(suite):
            assert told[one][0] == "refused" and "it needs GLIBC_" in told[one][1], told
        else:
            assert told[one] == ("changed", library), told
    assert shifted("--lib", libraries["bullseye"]) == {
        one: ("changed", libraries["bullseye"]) for one in order
    }
    newest_first = [word for one in reversed(order) for word in ("--lib", libraries[one])]
    assert shifted(*newest_first) == {one: ("changed", libraries[one]) for one in order}


@pytest.mark.skipif(
    not BIG,
    reason=(
        "a root with a compiler, and Debian's source of libfaketime: only with DOCKFIX_TEST_BIG=1"
    ),
)
def test_built_from_debians_source_in_the_container(lab, library):
    suite, mirror = kit.debian_source()
    folder, tar = lab.new_folder(), os.path.join(
        kit.cache_dir(), "%s-%s-gcc.tar" % (suite, os.uname().machine)
    )
    if not os.path.exists(tar):
        kit.build_debian(suite, mirror, tar, ["--include=gcc,make,libc6-dev"])
    apt(folder, suite, mirror, "deb-src", "source", "libfaketime")
    source = os.path.dirname(
        os.path.dirname(glob.glob(os.path.join(folder, "*", "src", "libfaketime.c"))[0])
    )
    lab.images["gcc"] = lab.engine.import_tar("ring/gcc", tar, ["/bin/sleep", kit.SLEEP_FOREVER])
    lab.run("builds", image="gcc", command=FOREVER)
    before = diff(lab, "builds")
    run = faketime(
        lab, "builds", "--offset", "+8h", "--build-from", source, *UNWATCHED, "--json", timeout=600
    )
    assert (
        run.rc == 0
        and "built in it" in run.rows["builds"]["library"]
        and near(shift(lab, "builds"), 8 * HOUR)
    ), run
    assert not [line for line in diff(lab, "builds") if "dockfix-build" in line]
    assert faketime(lab, "builds", "--undo").rc == 0
    is_as_it_was(lab, "builds", before)
    run = faketime(
        lab,
        "builds",
        "--offset",
        "+8h",
        "--build-from",
        source,
        recorder=lab.recorder(
            'case "$*" in *" make -C "*) "$REAL" "$@" >/dev/null 2>&1; kill -9 $PPID; exit 1;; esac'
        ),
        timeout=600,
    )
    assert run.rc == -9 and [line for line in diff(lab, "builds") if "dockfix-build" in line], run
    assert faketime(lab, "builds", "--undo").rc == 0
    is_as_it_was(lab, "builds", before)


def apt(folder, suite, mirror, kind, *words):
    """An apt of its own settings: the host's stay as they are."""
    for part in ("lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(folder, part))
    with open(os.path.join(folder, "sources.list"), "w") as f:
        f.write("%s %s %s main\n" % (kind, (mirror or ["http://deb.debian.org/debian"])[0], suite))
    options = [
        "-o",
        "Dir::Etc::SourceList=" + f.name,
        "-o",
        "Dir::Etc::SourceParts=/dev/null",
        "-o",
        "Dir::State::Lists=%s/lists" % folder,
        "-o",
        "Dir::Cache=%s/cache" % folder,
        "-o",
        "Dir::State::status=/dev/null",
        "-o",
        "APT::Sandbox::User=root",
        "-qq",
    ]
    subprocess.check_call(["apt-get", *options, "update"], cwd=folder)
    subprocess.check_call(["apt-get", *options, *list(words)], cwd=folder)


# ---------------------------------------------------------------------- killed

KILL = """case "$1 $2" in "cp -"|"stop "*|"start "*|"restart "*)
    : >"$LOG/$$.write"
    [ $(ls "$LOG" | grep -c 'write$') != %d ] || { %s; kill -9 $PPID; exit 1; } ;; esac"""


def test_killed_between_any_two_writes(lab, library):
    """SIGKILL before stop, the rc file, the preload file, start, and after the last; --undo mends
    all of them. (The library is written while the container runs, by no docker call.)"""

    def one(case):
        number, deed = case
        name = "killed-%d%d" % (number, len(deed) > 1)
        lab.run(name, "--stop-timeout", "1", command=FOREVER)
        before, state = diff(lab, name), own_state(lab, name)
        run = faketime(
            lab,
            name,
            "--offset",
            "+8h",
            "--restart",
            "-y",
            *UNWATCHED,
            *state,
            recorder=lab.recorder(KILL % (number, deed)),
        )
        assert run.rc == (0 if number == 5 else -9), "there are four writes: %s, %s" % (case, run)
        recorder = lab.recorder(KILL % (99, ":"))
        undo = faketime(
            lab,
            name,
            "--undo",
            "--json",
            *(state + (("--restart", "-y") if number == 5 else ())),
            recorder=recorder,
        )
        assert undo.rc == 0, (case, undo)
        assert (
            number != 5
            or sum(one.endswith("write") for one in os.listdir(recorder.log)) == UNDO_WRITES
        )
        assert lab.status()[name] == "Up", case
        is_as_it_was(lab, name, before, state)
        assert near(first_shift(lab, name), 0), case
        lab.docker("rm", "-f", name)

    lab.parallel(
        one, [(number, ":") for number in range(1, 6)] + [(4, '"$REAL" "$@" >/dev/null 2>&1')]
    )


UNDO_WRITES = 5  # stop, the preload file, the rc file, the library, start


def test_killed_while_undoing(lab, library):
    """--undo once more mends all of them."""

    def one(number):
        name = "undoing-%d" % number
        lab.run(name, "--stop-timeout", "1", command=FOREVER)
        before, state = diff(lab, name), own_state(lab, name)
        assert faketime(lab, name, "--offset", "+8h", *UNWATCHED, *state).rc == 0
        run = faketime(
            lab,
            name,
            "--undo",
            "--restart",
            "-y",
            *state,
            recorder=lab.recorder(KILL % (number, ":")),
        )
        assert run.rc == -9, (number, run)
        undo = faketime(lab, name, "--undo", "--restart", "-y", *state)
        assert undo.rc == 0, undo
        assert lab.status()[name] == "Up" and near(first_shift(lab, name), 0)
        is_as_it_was(lab, name, before, state)
        lab.docker("rm", "-f", name)

    lab.parallel(one, range(1, UNDO_WRITES + 1))


def test_a_cut_off_change_is_told_and_goes_no_further(lab, library):
    lab.run("cut", command=FOREVER)
    after_the_trial = '[ "$1" != logs ] || { kill -9 $PPID; exit 1; }'
    run = faketime(lab, "cut", "--offset", "+8h", recorder=lab.recorder(after_the_trial))
    assert run.rc == -9
    assert "cut off" in faketime(lab, "cut", "--status", "--json").rows["cut"]["msg"]
    again = faketime(lab, "cut", "--offset", "+8h", "--json")
    assert again.rc == 5 and "--undo cut" in again.rows["cut"]["msg"], again
    assert faketime(lab, "cut", "--undo").rc == 0
    lab.docker("rm", "-f", "cut")


def test_records_of_containers_that_are_gone_are_dropped(lab, library):
    lab.run("leaves", command=FOREVER)
    lab.run("stays", command=FOREVER)
    state = own_state(lab, "leaves")
    assert (
        faketime(lab, "leaves", "stays", "--offset", "+8h", *UNWATCHED, *state).rc == 0
        and len(records(lab, state)) == 2
    )
    lab.docker("rm", "-f", "leaves")
    assert faketime(lab, "stays", "--undo", *state).rc == 0 and records(lab, state) == []


def test_a_stopped_container_is_put_back_too(lab, library):
    lab.run("halted", "--stop-timeout", "1", command=FOREVER)
    before = diff(lab, "halted")
    assert faketime(lab, "halted", "--offset", "+8h", *UNWATCHED).rc == 0
    lab.docker("stop", "halted")
    undo = faketime(lab, "halted", "--undo")
    assert (
        undo.rc == 0 and diff(lab, "halted") == before and lab.status()["halted"] == "Exited"
    ), undo
    lab.docker("start", "halted")
    is_as_it_was(lab, "halted", before)
