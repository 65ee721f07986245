"""clock and timezone on real containers: glibc of three Debian releases, musl, static programs,
Java, Python; killed at every write."""

import collections
import glob
import os
import re
import shlex
import signal
import subprocess

import pytest

import roots
from kit import CannotRun, PrivateEngine

ZONE = "Asia/Shanghai"
PATH = "/usr/share/zoneinfo/" + ZONE
TOUCHED = ("/etc/localtime", "/etc/timezone", PATH, "/usr/share/zoneinfo/Asia/Tokyo")
LOOP = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do date +%z; sleep 0.1; done"]
BIG = os.environ.get("DOCKFIX_TEST_BIG") == "1"

State = collections.namedtuple("State", "members diff")


@pytest.fixture(scope="module")
def shanghai(lab):
    """What stands before a command so that it sees a host in Asia/Shanghai: an /etc of its own, in
    a mount namespace."""
    if not os.path.isfile(PATH):
        pytest.fail("this machine has no %s (Debian: apt-get install tzdata)" % PATH)
    etc = lab.new_folder()
    for path in (
        "/etc/passwd",
        "/etc/group",
        "/etc/ld.so.cache",
        "/etc/ld.so.conf",
        "/etc/nsswitch.conf",
    ):
        if os.path.exists(path):
            with open(os.path.join(etc, os.path.basename(path)), "wb") as f:
                f.write(lab.read_bytes(path))
    os.symlink(PATH, os.path.join(etc, "localtime"))
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        'mount --bind "$0" /etc && exec "$@"',
        etc,
    ]


@pytest.fixture(scope="module")
def images(lab):
    """Images by name: clocks of one program with musl (dynamic, static), and where asked for the
    other Debian releases."""
    found = {
        libc: lab.engine.import_tar("ring/" + libc, roots.clock_tar(libc), ["/bin/date"])
        for libc in ("musl", "static")
    }
    if BIG:
        found.update(
            (suite, lab.engine.import_debian("ring/" + suite, suite=suite))
            for suite in roots.other_suites()
        )
    with lab.lock:
        lab.images.update(found)
    return found


def state(lab, name):
    return State(
        {path: lab.shadow(name, path) for path in TOUCHED},
        sorted(lab.docker("diff", name).stdout.decode().splitlines()),
    )


def offset_inside(lab, name):
    return lab.docker("exec", name, "date", "+%z").stdout.decode().strip()


def last_line(lab, name):
    lines = lab.docker("logs", "--tail", "1", name).stdout.decode().split()
    return lines[-1] if lines else ""


def wait_line(lab, name, text):
    from common import wait_until

    wait_until(lambda: last_line(lab, name) == text, "%r in the log of %s" % (text, name), 30)


# ---------------------------------------------------------------- clock


CLOCKS = {  # name: (image, options, shell text inside, verdict, how)
    "clock-good": ("debian", [], "ln -sf %s /etc/localtime" % PATH, "in sync", "date"),
    "clock-utc": ("debian", [], "", "other zone", "date"),
    "clock-tz": (
        "debian",
        ["-e", "TZ=America/New_York"],
        "ln -sf %s /etc/localtime" % PATH,
        "TZ variable wins",
        "date",
    ),
    "clock-posix": ("musl", ["-e", "TZ=CST-8"], "", "in sync", "date"),
    "clock-bare": ("musl", ["-e", "TZ=Asia/Shanghai"], "", "no tzdata", "date"),
    "clock-dangling": (
        "debian",
        [],
        "ln -sf /usr/share/zoneinfo/Asia/Nowhere /etc/localtime",
        "no tzdata",
        "date",
    ),
    "clock-static": ("static", [], "", "other zone", "date"),
    "clock-nodate": ("scratch", [], "", "other zone", "files"),
    "clock-mounted": ("scratch", ["-v", PATH + ":/etc/localtime:ro"], "", "in sync", "files"),
    "clock-stopped": (
        "debian",
        [],
        "ln -sf /usr/share/zoneinfo/Asia/Tokyo /etc/localtime",
        "other zone",
        "files",
    ),
    "clock-stopped-good": ("musl", ["-e", "TZ=<+08>-8"], "", "in sync", "files"),
    "clock-paused": ("debian", [], "ln -sf %s /etc/localtime" % PATH, "in sync", "files"),
}


@pytest.fixture(scope="module")
def clocks(lab, images):
    def make(name):
        image, options, script, _, _ = CLOCKS[name]
        lab.run(name, *options, image=image)
        if script:
            lab.inside(name, script)
        if "stopped" in name or "paused" in name:
            lab.docker("kill" if "stopped" in name else "pause", name)

    lab.parallel(make, CLOCKS)
    yield sorted(CLOCKS)
    lab.docker("rm", "-f", *CLOCKS)


def test_clock_tells_them_apart(lab, clocks, shanghai):
    recorder = lab.recorder()
    run = lab.dockfix("clock", *clocks, "--check", "--json", prefix=shanghai, recorder=recorder)
    assert run.rc == 3
    assert {name: (row["verdict"], row["how"]) for name, row in run.rows.items()} == {
        name: one[3:] for name, one in CLOCKS.items()
    }, run
    for name, row in run.rows.items():
        assert bool(row["remedy"]) is (row["verdict"] != "in sync") and (row["offset"] is None) is (
            row["how"] == "files"
        ), row
        remedy = (
            "timezone --zone Asia/Shanghai clock-bare"
            if name == "clock-bare"
            else {"other zone": "timezone " + name, "no tzdata": "timezone " + name}.get(
                row["verdict"]
            )
        )
        assert not remedy or row["remedy"] == "python3 dockfix.py " + remedy, row
        assert row["verdict"] != "TZ variable wins" or "-e TZ=" in row["remedy"], row
    assert run.doc["host"] == {"zone": ZONE, "utc_offset": 28800}
    calls = [call.argv for call in recorder.calls()]
    execs = [argv[1] for argv in calls if argv[0] == "exec"]
    # Clients before 23 do not say whether the file or the container is missing: one inspect more
    # for each file that is not there.
    assert (
        sum(argv[0] == "inspect" and len(argv) > 4 for argv in calls) == 1
        and len(execs) == len(set(execs))
        and not os.path.exists(lab.state)
    )


def test_clock_finds_libfaketime(lab, shanghai, images):
    library = ([*glob.glob("/usr/lib/*/faketime/libfaketime.so.1"), ""])[0]
    if not library:
        pytest.skip("needs libfaketime (Debian: apt-get install libfaketime)")
    for name, spec in (("shifted", "-3h"), ("frozen", "2020-01-01 00:00:00")):
        lab.run(
            name,
            "-v",
            library + ":/lib/f.so:ro",
            "-e",
            "LD_PRELOAD=/lib/f.so",
            "-e",
            "FAKETIME=" + spec,
            "-e",
            "TZ=CST-8",
        )
    try:
        rows = lab.dockfix("clock", "shifted", "frozen", "--json", prefix=shanghai).rows
        for name, row in rows.items():
            assert (
                row["verdict"] == "shifted by libfaketime"
                and "faketime --undo " + name in row["remedy"]
            ), row
        assert (
            abs(rows["shifted"]["offset"] + 3 * 3600) < 60
            and rows["frozen"]["offset"] < -86400 * 365
        )
    finally:
        lab.docker("rm", "-f", "shifted", "frozen")


# ---------------------------------------------------------------- timezone


STREET = {  # name: (image, options, shell text inside, state)
    "link": ("debian", [], "", "run"),
    "tokyo": (
        "debian",
        [],
        "ln -sf /usr/share/zoneinfo/Asia/Tokyo /etc/localtime; echo Asia/Tokyo > /etc/timezone",
        "run",
    ),
    "file": (
        "debian",
        [],
        "rm /etc/localtime; cp /usr/share/zoneinfo/Asia/Tokyo /etc/localtime",
        "run",
    ),
    "missing": ("debian", [], "rm /etc/localtime /etc/timezone", "run"),
    "dangling": ("debian", [], "rm -f %s; ln -sf %s /etc/localtime" % (PATH, PATH), "run"),
    "outside": (
        "debian",
        [],
        "ln -sf ../../../../../../etc/../proc/1/root/etc/passwd /etc/localtime",
        "run",
    ),
    "no-tzdata": ("debian", [], "rm -rf /usr/share/zoneinfo", "run"),
    "same-tz": ("musl", ["-e", "TZ=" + ZONE], "", "run"),
    "user": ("debian", ["--user", "1000"], "", "run"),
    "paused": ("debian", [], "", "pause"),
    "stopped": ("debian", [], "", "kill"),
    "created": ("musl", [], "", "create"),
    "busybox": ("busybox", [], "", "run"),
    "musl": ("musl", [], "", "run"),
    "static": ("static", [], "", "run"),
    "scratch": ("scratch", [], "", "run"),
    "cap-drop": ("debian", ["--cap-drop", "ALL"], "", "run"),
}
if BIG:
    STREET.update((suite, (suite, [], "", "run")) for suite in roots.other_suites())
NO_DATE = ("scratch", "stopped", "created")


@pytest.fixture(scope="module")
def street(lab, images):
    def make(name):
        image, options, script, status = STREET[name]
        (lab.create if status == "create" else lab.run)(name, *options, image=image)
        if script:
            lab.inside(name, script)
        if status in ("pause", "kill"):
            lab.docker(status, name)

    lab.parallel(make, STREET)
    yield lab.parallel(lambda name: state(lab, name), STREET)
    lab.docker("rm", "-f", *STREET)


def test_the_hosts_zone_for_all_then_unchanged_then_undone(lab, street, shanghai):
    run = lab.dockfix("timezone", *street, "--json", prefix=shanghai)
    assert run.rc == 0 and {row["status"] for row in run.rows.values()} == {"changed"}, run
    assert {name for name, row in run.rows.items() if row["restart"] == "no"} == {
        "stopped",
        "created",
    }
    lab.docker("unpause", "paused")
    lab.docker("start", "stopped", "created")
    for name in set(street) - {"scratch"}:
        assert offset_inside(lab, name) == "+0800", name
    for name in ("link", "no-tzdata", "file"):
        assert (
            lab.docker(
                "exec", name, "perl", "-MPOSIX", "-e", 'print strftime("%z", localtime)'
            ).stdout
            == b"+0800"
        )
        assert lab.docker("exec", "-e", "TZ=" + ZONE, name, "date", "+%z").stdout == b"+0800\n"
    lab.docker("kill", "stopped", "created")
    after = lab.parallel(lambda name: state(lab, name), ("tokyo", "outside", "static", "stopped"))
    for name, one in after.items():
        was, now = street[name], one.members
        assert (
            now["/etc/localtime"].kind == "link"
            and now["/etc/localtime"].link == PATH
            and now[PATH].data == lab.read_bytes(PATH)
        ), name
        assert (
            now["/usr/share/zoneinfo/Asia/Tokyo"] == was.members["/usr/share/zoneinfo/Asia/Tokyo"]
        ), name
    assert (
        lab.inside("no-tzdata", "stat -c '%A %U' /usr/share/zoneinfo /usr/share/zoneinfo/Asia")
        == b"drwxr-xr-x root\n" * 2
    )
    run = lab.dockfix("timezone", *street, "--json", prefix=shanghai)
    assert run.rc == 0 and {row["status"] for row in run.rows.values()} == {"unchanged"}, run
    assert lab.dockfix("clock", *street, "--check", prefix=shanghai).rc == 0
    run = lab.dockfix("timezone", *street, "--undo", "--json")
    assert run.rc == 0 and {row["status"] for row in run.rows.values()} == {"changed"}
    back = lab.parallel(lambda name: state(lab, name), street)
    for name, was in street.items():
        if STREET[name][3] == "run":
            assert back[name] == was, name
    # A stopped container's new folders stay, empty, until it runs: this is said, and the record
    # waits.
    assert back["stopped"].members == street["stopped"].members
    assert (
        "start it and undo once more" in run.rows["created"]["msg"]
        and back["created"].members[PATH] is None
        and back["created"].members["/etc/localtime"] is None
    )
    lab.docker("start", "created")
    assert (
        lab.dockfix("timezone", *street, "--undo", "--json").rows["created"]["status"] == "changed"
    )
    assert state(lab, "created").members == street["created"].members
    assert glob.glob(os.path.join(lab.state, "undo", "*")) == []


def test_running_programs_and_restart(lab, images, shanghai):
    lab.run("loop", command=LOOP)
    lab.run("musl-loop", image="musl")
    lab.run("idle")
    try:
        for name in ("loop", "musl-loop"):
            wait_line(lab, name, "+0000")
        assert lab.dockfix("timezone", "loop", "musl-loop", prefix=shanghai).rc == 0
        wait_line(lab, "loop", "+0800")  # a new `date` each time
        assert last_line(lab, "musl-loop") == "+0000"  # musl read its zone once
        run = lab.dockfix("timezone", "loop", "musl-loop", "--restart", prefix=shanghai)
        assert run.rc == 5 and b"confirm" in run.err and last_line(lab, "musl-loop") == "+0000"
        run = lab.dockfix(
            "timezone", "loop", "musl-loop", "--restart", "-y", "--json", prefix=shanghai
        )
        assert run.rc == 0 and {row["restart"] for row in run.rows.values()} == {"done"}, run
        wait_line(lab, "musl-loop", "+0800")
        lab.docker("restart", "-t", "0", "musl-loop")  # and it lasts
        wait_line(lab, "musl-loop", "+0800")
        run = lab.dockfix("timezone", "musl-loop", "--undo", "--restart", "-y", "--json")
        assert run.rows["musl-loop"]["restart"] == "done"
        wait_line(lab, "musl-loop", "+0000")
    finally:
        lab.docker("rm", "-f", "loop", "musl-loop", "idle")


def test_java_agrees(lab, shanghai):
    folder = lab.new_folder()
    try:
        options = roots.java_options(folder)
    except CannotRun as reason:
        pytest.skip(str(reason))
    lab.run("java", *options)
    lab.run("java-bare", *options)
    lab.inside("java-bare", "rm -rf /usr/share/zoneinfo /etc/localtime /etc/timezone")
    say = ["/jvm/bin/java", "-Xshare:off", "-XX:TieredStopAtLevel=1", "-cp", "/java", "Zone"]
    try:
        assert lab.dockfix("timezone", "java", "java-bare", prefix=shanghai).rc == 0
        for name in ("java", "java-bare"):
            assert lab.docker("exec", name, *say).stdout.split() == [ZONE.encode(), b"+08:00"]
    finally:
        lab.docker("rm", "-f", "java", "java-bare")


def test_python_agrees(lab, shanghai):
    try:
        options = roots.python_options()
    except CannotRun as reason:
        pytest.skip(str(reason))
    lab.run("python", *options)
    lab.inside("python", "rm -rf /usr/share/zoneinfo /etc/localtime")
    try:
        assert lab.dockfix("timezone", "python", prefix=shanghai).rc == 0
        say = (
            "import time, datetime; print(time.strftime('%z'),"
            " datetime.datetime.now().astimezone().strftime('%z'))"
        )
        assert lab.docker(
            "exec", "python", "/usr/bin/python3", "-IS", "-c", say
        ).stdout.split() == [b"+0800", b"+0800"]
    finally:
        lab.docker("rm", "-f", "python")


def test_what_it_prints_for_new_containers_works(lab, images, shanghai):
    """In an image without tzdata, with musl and with glibc; the Dockerfile's lines too."""
    lab.run("any", image="scratch")
    try:
        lines = lab.dockfix("timezone", "any", "--json", "--dry-run", prefix=shanghai).rows["any"][
            "lasting"
        ]
        options = shlex.split(lines[0])
        assert options[:2] == ["docker", "run"] and options[-1] == "IMAGE"
        for image, program in (
            ("musl", ["/bin/date", "+%z"]),
            ("busybox", ["date", "+%z"]),
            ("debian", ["date", "+%z"]),
        ):
            done = lab.docker(
                "run", "--rm", "--network", "none", *([*options[2:-1], lab.image(image), *program])
            )
            assert done.stdout == b"+0800\n", image
        context = lab.new_folder()
        subprocess.check_call(shlex.split(lines[1].split(": ")[1]), cwd=context)
        with open(os.path.join(context, "Dockerfile"), "w") as f:
            f.write("\n".join(["FROM " + lab.image("musl"), *lines[1:]]) + "\n")
        built = subprocess.run(
            [lab.engine.client, "build", "-q", "-t", "ring/lasting", context],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=lab.engine.env(DOCKER_BUILDKIT="0"),
        )
        assert built.returncode == 0, built
        assert (
            lab.docker(
                "run", "--rm", "--network", "none", "ring/lasting", "/bin/date", "+%z"
            ).stdout
            == b"+0800\n"
        )
    finally:
        lab.docker("rm", "-f", "any")


def test_the_dry_runs_script_does_what_the_run_does(lab, images):
    names = ("plain", "done", "tz")
    for name in names:
        lab.run(name, *(["-e", "TZ=Asia/Tokyo"] if name == "tz" else []), image="musl")
    try:
        assert lab.dockfix("timezone", "done", "--zone", ZONE).rc == 0
        before = state(lab, "plain")
        dry = lab.dockfix("timezone", *names, "--zone", ZONE, "--dry-run")
        assert state(lab, "plain") == before and dry.rc == 3
        script = lab.script(dry.out)
        assert script.rc == dry.rc and offset_inside(lab, "plain") == "+0800", script
        undo = lab.dockfix("timezone", *names, "--undo", "--dry-run")
        assert lab.script(undo.out).rc == undo.rc == 0 and state(lab, "plain") == before
        assert glob.glob(os.path.join(lab.state, "undo", "*")) == []
    finally:
        lab.docker("rm", "-f", *names)


# ---------------------------------------------------------------- what must not be done


REFUSED = {  # name: (image, options, shell text inside, words of the refusal)
    "no-read-only": ("debian", ["--read-only"], "", "read-only"),
    "no-mount": (
        "debian",
        ["-v", "/etc/localtime:/etc/localtime:ro"],
        "",
        "/etc/localtime is a mount",
    ),
    "no-etc": ("scratch", ["-v", "{host}:/etc"], "", "/etc is a mount"),
    "no-tmpfs": (
        "debian",
        ["--tmpfs", "/usr/share/zoneinfo"],
        "",
        "/usr/share/zoneinfo is a mount",
    ),
    "no-volume": ("debian", ["-v", "/usr/share/zoneinfo/Asia"], "", "is a mount"),
    "no-tz": ("debian", ["-e", "TZ=Asia/Tokyo"], "", "TZ=Asia/Tokyo wins"),
    "no-linked": (
        "debian",
        ["-v", "{host}:/mnt/host"],
        "rm -rf /usr/share/zoneinfo; ln -s /mnt/host /usr/share/zoneinfo",
        "link to /mnt/host",
    ),
    "no-linked-deep": (
        "debian",
        ["-v", "{host}:/mnt/host"],
        "rm -rf /usr/share/zoneinfo/Asia; ln -s ../../../mnt/host /usr/share/zoneinfo/Asia",
        "is a link to",
    ),
    "no-stopped-linked": (
        "debian",
        ["-v", "{host}:/mnt/host"],
        "rm -rf /usr/share; ln -s /mnt/host /usr/share",
        "link to /mnt/host",
    ),
    "no-folder": ("debian", [], "rm /etc/localtime; mkdir /etc/localtime", "neither file nor link"),
}


def test_where_it_would_not_hold_or_reach_beyond_it_is_refused(lab, images, shanghai):
    hosts = {}

    def make(name):
        image, options, script, _ = REFUSED[name]
        hosts[name] = lab.host_dir("zone-" + name)
        lab.run(name, *[option.format(host=hosts[name]) for option in options], image=image)
        if script:
            lab.inside(name, script)
        if "stopped" in name:
            lab.docker("kill", name)
        lab.watch(hosts[name])

    lab.parallel(make, REFUSED)
    try:
        before = lab.parallel(lambda name: state(lab, name), REFUSED)
        run = lab.dockfix("timezone", *REFUSED, "--json", prefix=shanghai)
        assert run.rc == 5, run
        for name, row in run.rows.items():
            assert row["status"] == "refused" and REFUSED[name][3] in row["msg"], row
        assert lab.parallel(lambda name: state(lab, name), REFUSED) == before
        assert lab.dockfix("timezone", *REFUSED, "--zone", "Asia/Nowhere").rc == 2
    finally:
        lab.docker("rm", "-f", "-v", *REFUSED)


def test_a_mount_made_inside_is_seen(lab, shanghai):
    lab.run(
        "inside",
        "--cap-add",
        "SYS_ADMIN",
        "--security-opt",
        "apparmor=unconfined",
        "--security-opt",
        "seccomp=unconfined",
    )
    try:
        lab.inside("inside", "mount -t tmpfs none /usr/share/zoneinfo")
        run = lab.dockfix("timezone", "inside", "--json", prefix=shanghai)
        assert run.rc == 5 and "mount" in run.rows["inside"]["msg"], run
    finally:
        lab.docker("rm", "-f", "inside")


# ---------------------------------------------------------------- killed


# At the docker cp that writes: die before it, with a part of the tar sent, or when all is written
# but not read back.
CUTS = {
    "debian": ["0", "1024", "all"],
    "busybox": ["0", "512", "2048", "3072", "4096", "4608", "5120", "all"],
}
KILL = """
if [ "$1 $2" = "cp -" ] && [ ! -e "$LOG/done" ]; then
    : > "$LOG/done"
    if [ CUT = all ]; then "$REAL" "$@"; elif [ CUT != 0 ]; then head -c CUT | "$REAL" "$@"; fi
    kill -9 $PPID
    exit 1
fi
"""


@pytest.mark.parametrize("image", ["busybox", "debian"])
def test_killed_at_any_write_of_docker_cp_undo_repairs_it(lab, images, nobody, image):
    """A user without root has no other way."""

    def one(cut):
        name = "killed-%s-%s" % (image, cut)
        lab.run(name, image=image)
        try:
            before = state(lab, name)
            recorder = nobody.recorder(KILL.replace("CUT", cut))
            folder = ["--state", os.path.join(nobody.folder(), "state")]
            words, how = ["timezone", name, *folder], {"prefix": nobody.prefix}
            run = lab.dockfix(*words, "--zone", ZONE, recorder=recorder, **how)
            assert run.rc == -signal.SIGKILL
            half = state(lab, name)
            recorder = nobody.recorder(KILL.replace("CUT", "512"))  # once more, while it is undone
            killed = lab.dockfix(*words, "--undo", recorder=recorder, **how)
            assert killed.rc in (0, -signal.SIGKILL)
            run = lab.dockfix(*words, "--undo", "--json", **how)
            assert run.rc == 0, run
            return half != before, state(lab, name) == before, bool(killed.rc)
        finally:
            lab.docker("rm", "-f", name)

    done = lab.parallel(one, CUTS[image])
    assert all(repaired for _, repaired, _ in done.values()), done
    assert (
        done["all"][0] and not done["0"][0] and sum(half for half, _, _ in done.values()) > 1
    ), done


# Ends itself at the call of that number of the functions that change a file by descriptors: before
# it, or right after it.
KILL_CALL = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.dont_write_bytecode = True
import dockfix
at, side, count = int(sys.argv[2]), sys.argv[3], 0
def watched(deed):
    def call(*args, **more):
        global count
        count += 1
        mine = count == at
        if mine and side == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = deed(*args, **more)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return call
for name in ("write_draft", "link_draft", "put_member", "remove_entry"):
    setattr(dockfix, name, watched(getattr(dockfix, name)))
sys.exit(dockfix.main(sys.argv[4:]))
"""


@pytest.mark.parametrize("image", ["musl", "debian"])
def test_killed_at_any_write_by_descriptors_undo_repairs_it(lab, images, image):
    def run_until(number, side, *words):
        """The exit code of a run that ends there, if it gets there."""
        python, program = lab.argv()[:2]
        argv = [python, "-B", "-c", KILL_CALL, program, str(number), side, *list(words)]
        return subprocess.run(
            argv, env=lab.engine.env(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ).returncode

    name, reached = "cut-" + image, set()
    lab.run(name, image=image)
    try:
        before = state(lab, name)
        for number, side in [(n, side) for n in range(1, 16) for side in ("before", "after")]:
            words = ("--state", os.path.join(lab.new_folder(), "state"), "timezone", name)
            if run_until(number, side, *words, "--zone", ZONE) != -signal.SIGKILL:
                break
            reached.add(state(lab, name) != before)
            run_until(2, side, *words, "--undo")
            run = lab.dockfix(*words, "--undo", "--json")
            assert run.rc == 0 and state(lab, name) == before, (number, side, run)
        assert number > 4 and reached == {False, True}
    finally:
        lab.docker("rm", "-f", name)


# ---------------------------------------------------------------- remapped users


def test_under_a_remapping_engine(lab, shanghai, cannot_run):
    try:
        with PrivateEngine(userns=True) as engine:
            debian, musl = engine.import_debian(), engine.import_tar(
                "ring/musl", roots.clock_tar(), ["/bin/date"]
            )
            ids = [
                engine.run(debian, "--name", "debian"),
                engine.run(musl, "--name", "musl"),
                engine.create(musl, "--name", "created"),
                engine.run(debian, "--name", "hostns", "--userns", "host"),
            ]
            other = type(lab)(engine, lab.new_folder())
            before = {name: state(other, name) for name in ("debian", "musl", "hostns")}
            run = other.dockfix("timezone", *ids, "--json", prefix=shanghai)
            assert run.rc == 3 and {name: row["status"] for name, row in run.rows.items()} == {
                "debian": "changed",
                "musl": "changed",
                "created": "changed",
                "hostns": "refused",
            }
            assert [offset_inside(other, name) for name in ("debian", "musl")] == ["+0800", "+0800"]
            assert re.match(
                "root root 755",
                engine.docker(
                    "exec", "debian", "stat", "-c", "%U %G %a", "/usr/share/zoneinfo/Asia"
                ).stdout.decode(),
            )
            assert (
                engine.docker("exec", "debian", "stat", "-c", "%u", "/etc/localtime").stdout
                == b"0\n"
            )
            run = other.dockfix("timezone", "debian", "musl", "created", "--undo", "--json")
            assert (
                run.rc == 0
                and {name: state(other, name) for name in ("debian", "musl", "hostns")} == before
            )
    except CannotRun as reason:
        cannot_run(reason)
