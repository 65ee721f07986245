"""`changed` is what login says: after each kind of damage to /etc/passwd and /etc/shadow, by every
way, `su` as another user opens root with the new password and with no other one; where the row says
anything else, it opens with what it opened with before.

Judged by PAM and shadow's su in a Debian container, and in one with musl by two BusyBox su: one
reads the account files itself, one leaves that to musl. DOCKFIX_TEST_BIG=1 runs every combination
(some twenty minutes), DOCKFIX_TEST=all every fifth, otherwise it is every nineteenth."""

import collections
import itertools
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit import CannotRun

# All numbers of values are powers of two: an odd stride meets every value of every dimension.
STRIDE = 5 if os.environ.get("DOCKFIX_TEST") == "all" else 19
if os.environ.get("DOCKFIX_TEST_BIG") == "1":
    STRIDE = 1
NEW, IN_PASSWD, IN_SHADOW, OTHER = "New-1", "old-passwd", "old-shadow", "other-1"
PASSWORDS = {
    "new": NEW,
    "in-passwd": IN_PASSWD,
    "in-shadow": IN_SHADOW,
    "other": OTHER,
    "empty": "",
}
REST = ":19000:0:99999:7:::\n"
SU = {"debian": ["/bin/su"], "musl": ["/bin/su", "/libc/su"]}
APP = "app:x:1000:1000::/tmp:/bin/sh\n"

# One combination. passwd: field 2 there; shadow: what stands there for root.
Case = collections.namedtuple("Case", "name image state way passwd shadow")


def passwd_fields(hashed):
    return {"x": "x", "hash": hashed(IN_PASSWD), "empty": "", "star": "*"}


def shadow_lines(hashed):
    """What stands in /etc/shadow for root; None: there is no such file."""
    old = "root:" + hashed(IN_SHADOW)
    return {
        "good": old + REST,
        "star": "root:*" + REST,
        "short": old + ":19000\n",
        "cr": old + REST.replace("\n", "\r\n"),
        "two": old + REST + "root:" + hashed(OTHER) + REST,
        "none": "",
        "cr-good": "root:" + hashed(OTHER) + REST.replace("\n", "\r\n") + old + REST,
        "no-file": None,
    }


def all_cases():
    hashed = str  # only the names count here
    dimensions = (
        SU,
        ("running", "stopped"),
        ("auto", "exec", "proc", "cp"),
        passwd_fields(hashed),
        shadow_lines(hashed),
    )
    return [
        Case("login-%s-%s-%s-%s-%s" % words, *words) for words in itertools.product(*dimensions)
    ]


def expected(case):
    """The status that is right. Where it is not `changed`, the reason is one that no way can do
    without guessing."""
    if case.shadow == "cr":
        return "refused"  # BusyBox reads this line, the C libraries do not
    no_line = case.shadow in ("short", "none", "no-file")
    running = case.state == "running"
    if no_line and case.passwd == "x" and not (running and case.way in ("auto", "exec")):
        # only chpasswd makes a line
        return "refused" if running or case.way != "exec" else "failed"
    fails = case.way in ("exec", "proc") and not running
    if case.way == "exec":
        fails = (
            fails
            or case.shadow == "cr-good"  # it would set one of the two lines
            # "Multiple entries named 'root'": shadow's own chpasswd does nothing then
            or (case.shadow == "two" and case.image == "debian")
            # some would set the damaged line, and point to it
            or (case.shadow == "short" and case.passwd != "x")
        )
    return "failed" if fails else "changed"


ALLOWED = {
    # BusyBox's chpasswd sets the damaged line, which nobody reads.
    ("musl", "running", "auto", "x", "short"): ("failed", "refused"),
    ("musl", "running", "exec", "x", "short"): ("failed",),
}


def judge_script(image):
    """Shell text that prints `PROGRAM PASSWORD'S NAME` for each password that opens root, all tried
    at once."""
    tries = [
        "(printf '%%s\\n' '%s' | %s root -c id 2>/dev/null | grep -q '^uid=0' && echo '%s %s') &"
        % (password, su, su, name)
        for su in SU[image]
        for name, password in PASSWORDS.items()
    ]
    return "\n".join(tries) + "\nwait\n"


class Matrix:
    """The containers of many cases before and after one run of each way."""

    def __init__(self, lab, cases):
        self.lab, self.cases = lab, cases
        cache = {}

        def hashed(password):
            if password not in cache:
                cache[password] = lab.crypt(password.encode(), b"$6$saltsalt$").decode()
            return cache[password]

        self.fields, self.lines = passwd_fields(hashed), shadow_lines(hashed)
        self.each(self.make)
        self.before = self.each(self.opened_by)
        stopped = [case.name for case in cases if case.state == "stopped"]
        self.in_chunks(lambda names: lab.docker("kill", *names), stopped)
        self.rows = {}
        for way in sorted({case.way for case in cases}):
            names = [case.name for case in cases if case.way == way]
            words = ("chpasswd", "--via", way, "--json", *tuple(names))
            run = lab.dockfix(*words, stdin=("root:%s\n" % NEW).encode(), timeout=900)
            self.rows.update(run.rows)
        self.in_chunks(lambda names: lab.docker("start", *names), stopped)
        self.after = self.each(self.opened_by)

    def each(self, function):
        """{case: function(case)}; most of the time is spent waiting for `su` to say no."""
        with ThreadPoolExecutor(8) as pool:
            return dict(zip(self.cases, pool.map(function, self.cases)))

    @staticmethod
    def in_chunks(function, names):
        for start in range(0, len(names), 50):
            function(names[start : start + 50])

    def make(self, case):
        self.lab.run(case.name, image=case.image)
        root = "root:%s:0:0:root:/root:/bin/sh\n" % self.fields[case.passwd]
        files = {"passwd": root + APP, "shadow": "app:!" + REST}
        line = self.lines[case.shadow]
        script = "cat >/etc/passwd <<'END'\n%sEND\n" % files["passwd"]
        if line is None:
            script += "rm -f /etc/shadow /etc/shadow-\n"
        else:
            script += "cat >/etc/shadow <<'END'\n%s%sEND\n" % (line, files["shadow"])
        self.lab.inside(case.name, script)

    def opened_by(self, case):
        words = ("exec", "-u", "1000", case.name, "/bin/sh", "-c", judge_script(case.image))
        return set(self.lab.docker(*words, check=False).stdout.decode().splitlines())


@pytest.fixture(scope="module")
def matrix(lab, cannot_run):
    cases = all_cases()[::STRIDE]
    try:
        for image in SU:
            lab.image(image)
    except CannotRun as reason:
        cannot_run(reason)
    found = Matrix(lab, cases)
    assert set(found.rows) == {case.name for case in cases}
    return found


def only_new(image):
    return {"%s new" % su for su in SU[image]}


@pytest.mark.parametrize("case", all_cases()[::STRIDE], ids=lambda case: case.name[6:])
def test_changed_is_what_login_says(matrix, case):
    row = matrix.rows[case.name]
    if row["status"] == "changed":
        assert matrix.after[case] == only_new(case.image), row
        assert row["via"] == case.way or case.way == "auto", row
    else:
        assert matrix.after[case] == matrix.before[case] and row["msg"], row
        assert case.passwd == "empty" or not matrix.after[case] & only_new(case.image)
    statuses = ALLOWED.get(case[1:], (expected(case),))
    assert row["status"] in statuses, row


def test_the_old_passwords_did_open_before(matrix):
    """Or nothing is shown by their not opening afterwards."""
    tried = 0
    for case, opened in matrix.before.items():
        names = {word.split(" ", 1)[1] for word in opened}
        if case.passwd == "hash":
            assert names == {"in-passwd"}, (case, opened)
            tried += 1
        if case.passwd == "x" and case.shadow in ("good", "two"):
            assert names == {"in-shadow"}, (case, opened)
            tried += 1
        if case.passwd == "empty":
            assert "empty" in names, (case, opened)
            tried += 1
    assert tried >= len(matrix.before) // 2


# ---- single containers


def opened_by(lab, name, image, user="root"):
    """Which of PASSWORDS open the account, by the image's su."""
    words = ("exec", "-u", "1000", name, "/bin/sh", "-c", judge_script(image))
    return set(lab.docker(*words, check=False).stdout.decode().splitlines())


def with_hash_in_passwd(lab, name, image):
    lab.run(name, image=image)
    hashed = lab.crypt(IN_PASSWD.encode(), b"$6$saltsalt$").decode()
    script = "cat >/etc/passwd <<'END'\nroot:%s:0:0::/root:/bin/sh\n%sEND\n" % (hashed, APP)
    lab.inside(name, script + "cat >/etc/shadow <<'END'\nroot::19000:0:99999:7:::\nEND\n")


# The module's own functions, with a SIGKILL at once after the first file has its new name.
KILLED = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import dockfix
really = os.rename
def rename(old, new, **more):
    really(old, new, **more)
    if new in ("shadow", "passwd"):
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = rename
sys.exit(dockfix.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("image", sorted(SU))
def test_a_kill_between_the_two_files_opens_nothing_that_was_closed(lab, image):
    """An empty password waits in shadow, and /etc/passwd keeps everybody from it until it is
    replaced."""
    name = "killed-" + image
    with_hash_in_passwd(lab, name, image)
    before = opened_by(lab, name, image)
    assert before == {"%s in-passwd" % su for su in SU[image]}
    python, program, *words = lab.argv("chpasswd", "--via", "proc", name)
    done = subprocess.run(
        [python, "-c", KILLED, program, *words],
        input=("root:%s\n" % NEW).encode(),
        env=lab.engine.env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=150,
    )
    assert done.returncode == -9, done
    assert lab.field(name) != "" and opened_by(lab, name, image) == before
    run = lab.dockfix("chpasswd", name, "--json", stdin=("root:%s\n" % NEW).encode())
    assert run.rows[name]["status"] == "changed", run
    assert opened_by(lab, name, image) == only_new(image)


def test_sixty_thousand_accounts(lab):
    names = {"big-exec": "exec", "big-proc": "proc", "big-cp": "cp"}
    many = (
        "i=0; while [ $i -lt 60000 ]; do i=$((i + 1));"
        ' echo "u$i:x:$((i + 2000)):1000::/:/bin/false" >&3; echo "u$i:!:19000:0:99999:7:::" >&4;'
        " done 3>>/etc/passwd 4>>/etc/shadow; echo '%s' >>/etc/passwd" % APP.strip()
    )
    lab.parallel(lambda name: (lab.run(name), lab.inside(name, many)), names)
    lab.docker("kill", "big-cp")
    line = ("root:%s\n" % NEW).encode()
    for name, way in names.items():
        run = lab.dockfix("chpasswd", name, "--via", way, "--json", stdin=line)
        assert run.rows[name]["status"] == "changed", run
    lab.docker("start", "big-cp")
    assert [opened_by(lab, name, "debian") for name in names] == [only_new("debian")] * 3


def test_a_user_that_only_shadow_has_is_refused(lab):
    lab.run("ghost")
    lab.inside("ghost", "echo 'ghost:!:19000:0:99999:7:::' >> /etc/shadow")
    before = lab.shadow("ghost")
    run = lab.dockfix("chpasswd", "ghost", "--json", stdin=b"ghost:%s\n" % NEW.encode())
    assert run.rows["ghost"]["status"] == "refused" and "only" in run.rows["ghost"]["msg"], run
    assert lab.shadow("ghost") == before


@pytest.mark.parametrize("flags", [["--json"], ["-v"]], ids=lambda flags: flags[0])
def test_an_image_whose_chpasswd_repeats_what_it_reads(lab, flags):
    name = "parrot" + flags[0].strip("-")
    lab.run(name)
    lab.inside(
        name,
        "printf '#!/bin/sh\\ntee /etc/heard >&2\\ncat /etc/heard\\nexit 1\\n' >"
        " /usr/local/sbin/chpasswd; chmod 755 /usr/local/sbin/chpasswd",
    )
    run = lab.dockfix("chpasswd", name, "--via", "exec", *flags, stdin=b"root:Sentinel-77\n")
    heard = lab.inside(name, "cat /etc/heard").strip().split(b":")[1]
    assert heard.startswith(b"$6$") and run.rc == 1, run
    for size in (len(heard), 30, 12):
        shown = run.out + run.err
        assert not any(heard[at : at + size] in shown for at in range(len(heard) - size + 1)), run
    assert b"Sentinel" not in run.out + run.err and b"$6$" not in run.out + run.err
