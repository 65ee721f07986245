"""One run of `chpasswd --all --stopped` over every kind of container that can go wrong, each in its
own way."""

import os
import re
import subprocess

import pytest

from kit import static_busybox

PASSWORD = "z\u00f6o: '$HOME` \"%s\\"
LINE = ("root:%s\n" % PASSWORD).encode()
LOCKED = "!$6$saltsalt$" + "a" * 86
CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
MOUNTS = [
    "--cap-add",
    "SYS_ADMIN",
    "--security-opt",
    "apparmor=unconfined",
    "--security-opt",
    "seccomp=unconfined",
]
SHARED = ["-v", "{host}:/mnt/host"]
SET_ROOT = "sed -i 's,^root:[^:]*:,root:%s:,' /etc/shadow"
HOSTILE = "\n\x1b]0;x\x07\x1b[31m; touch /tmp/PWNED; #"


def outside_link(lab, name, host):
    """Make the container's /etc a link to /mnt/host/etc; only the host can do that, and only before
    its start."""
    upper = (
        lab.docker("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", name).stdout.decode().strip()
    )
    os.symlink("/mnt/host/etc", os.path.join(upper, "etc"))


def outside_link_started(lab, name, host):
    outside_link(lab, name, host)
    lab.docker("start", name)


class Animal:
    """A container: how it is made, and what must become of it."""

    def __init__(
        self,
        name,
        status,
        why="",
        via=None,
        image="debian",
        options=(),
        command=(),
        host=None,
        inside="",
        state="run",
        outside=None,
        cat=False,
    ):
        self.name, self.status, self.why, self.via = name, status, why, via
        self.image, self.options, self.command, self.state = image, options, command, state
        self.host = host  # a directory of the host, with account files in this folder of it
        self.inside = inside  # shell text, run in it
        self.outside = outside  # or done to it from outside
        self.cat = cat  # its processes see another shadow than docker cp

    def make(self, lab):
        name, host = self.name, None
        if self.host is not None:
            host = lab.host_dir(
                name + (HOSTILE.replace("/", "_") if "hostile" in name else ""), below=self.host
            )
            busybox = lab.read_bytes(static_busybox())
            with open(os.path.join(host, "sleep"), "wb") as f:
                f.write(busybox)
            os.chmod(f.name, 0o755)
        options = [option.format(host=host) for option in self.options]
        make = lab.create if self.state == "create" else lab.run
        make(name, *options, image=self.image, command=self.command)
        if self.inside:
            lab.inside(name, self.inside)
        if self.outside:
            self.outside(lab, name, host)
        if self.state in ("pause", "kill"):
            lab.docker(self.state, name)
        if host:
            lab.watch(host)

    def seen(self, lab):
        """Its shadow: (as docker cp has it, as its own processes have it)."""
        return lab.shadow(self.name), (
            lab.docker("exec", self.name, "cat", "/etc/shadow").stdout if self.cat else None
        )


ZOO = [
    Animal("debian", "changed", via="exec"),
    Animal("path-without-sbin", "changed", via="exec", options=["-e", "PATH=/usr/bin"]),
    Animal("user-1000", "changed", via="exec", options=["-u", "1000:1000"]),
    Animal(
        "hostile-labels",
        "changed",
        via="exec",
        options=["--label", "a=1" + HOSTILE, "-e", "X=" + HOSTILE],
    ),
    Animal("busybox", "changed", via="proc", image="busybox"),
    Animal("scratch", "changed", via="proc", image="scratch"),
    Animal("cap-drop-all", "changed", via="proc", options=["--cap-drop", "ALL"]),
    Animal("paused", "changed", via="proc", state="pause"),
    Animal("stopped", "changed", via="cp", state="kill"),
    Animal("created", "changed", via="cp", state="create"),
    Animal("created-scratch", "changed", via="cp", image="scratch", state="create"),
    Animal(
        "crash-loop",
        "changed",
        image="busybox",
        options=["--restart", "always"],
        command=["/bin/false"],
    ),
    Animal(
        "chrooted",
        "changed",
        via="exec",
        host="etc",
        options=SHARED,
        command=["chroot", "/mnt/host", "/sleep", "1000000"],
    ),
    Animal(
        "chrooted-busybox",
        "changed",
        via="cp",
        image="busybox",
        host="etc",
        options=SHARED,
        command=["chroot", "/mnt/host", "/sleep", "1000000"],
    ),
    Animal(
        "never-set",
        "changed",
        "no password before|never",
        via="proc",
        image="busybox",
        inside=SET_ROOT % "!locked",
    ),
    Animal(
        "never-set-debian",
        "changed",
        "no password before|never",
        via="exec",
        inside=SET_ROOT % "!!",
    ),
    Animal("read-only", "refused", "read-only", options=["--read-only"]),
    Animal("read-only-stopped", "refused", "read-only", options=["--read-only"], state="kill"),
    Animal("etc-mounted", "refused", "/etc", host="", options=["-v", "{host}:/etc"], cat=True),
    Animal(
        "etc-mounted-created",
        "refused",
        "/etc",
        host="",
        options=["-v", "{host}:/etc"],
        state="create",
    ),
    Animal("etc-of-the-host", "refused", "/etc", options=["-v", "/etc:/etc:ro"]),
    Animal(
        "etc-hostile",
        "refused",
        "/etc",
        host="",
        options=["--mount", '"type=bind","src={host}","dst=/etc"'],
        cat=True,
    ),
    Animal(
        "shadow-mounted",
        "refused",
        "/etc/shadow",
        host="",
        options=["-v", "{host}/shadow:/etc/shadow"],
        cat=True,
    ),
    Animal(
        "shadow-of-the-host", "refused", "/etc/shadow", options=["-v", "/etc/shadow:/etc/shadow:ro"]
    ),
    Animal(
        "passwd-mounted",
        "refused",
        "/etc/passwd",
        host="",
        options=["-v", "{host}/passwd:/etc/passwd"],
    ),
    Animal("etc-volume", "refused", "/etc", options=["-v", "ring-etc:/etc"], cat=True),
    Animal("etc-tmpfs", "refused", "/etc", image="busybox", options=["--tmpfs", "/etc"]),
    Animal(
        "etc-tmpfs-mount",
        "refused",
        "/etc",
        image="busybox",
        options=["--mount", "type=tmpfs,dst=/etc"],
    ),
    Animal(
        "etc-tmpfs-created",
        "refused",
        "/etc",
        image="busybox",
        options=["--tmpfs", "/etc"],
        state="create",
    ),
    Animal(
        "etc-link-to-host",
        "refused",
        "link",
        host="etc",
        options=SHARED,
        state="create",
        outside=outside_link_started,
    ),
    Animal(
        "etc-link-created",
        "refused",
        "link",
        host="etc",
        options=SHARED,
        state="create",
        outside=outside_link,
    ),
    Animal(
        "self-mounted-etc",
        "refused",
        "/etc",
        host="etc",
        options=SHARED + MOUNTS,
        inside="mount --bind /mnt/host/etc /etc",
        cat=True,
    ),
    Animal(
        "self-mounted-shadow",
        "refused",
        "/etc/shadow",
        host="etc",
        options=SHARED + MOUNTS,
        inside="mount --bind /mnt/host/etc/shadow /etc/shadow",
        cat=True,
    ),
    Animal(
        "self-tmpfs-etc",
        "refused",
        "/etc",
        options=MOUNTS,
        inside="cp -a /etc /new; mount -t tmpfs none /etc; cp -a /new/. /etc",
        cat=True,
    ),
    Animal("no-shadow-stopped", "refused", "shadow", inside="rm /etc/shadow", state="kill"),
    Animal(
        "shadow-link",
        "refused",
        "link",
        inside="mkdir /data; mv /etc/shadow /data; ln -s /data/shadow /etc/shadow",
        cat=True,
    ),
    Animal(
        "shadow-link-to-host",
        "refused",
        "link",
        host="",
        options=SHARED,
        cat=True,
        inside="rm /etc/shadow; ln -s /mnt/host/shadow /etc/shadow",
    ),
    Animal(
        "shadow-link-stopped",
        "refused",
        "link",
        host="",
        options=SHARED,
        state="kill",
        inside="rm /etc/shadow; ln -s /mnt/host/shadow /etc/shadow",
    ),
    Animal(
        "shadow-fifo", "refused", "fifo|pipe|regular", inside="rm /etc/shadow; mkfifo /etc/shadow"
    ),
    Animal(
        "shadow-fifo-stopped",
        "refused",
        "fifo|pipe|regular",
        inside="rm /etc/shadow; mkfifo /etc/shadow",
        state="kill",
    ),
    Animal(
        "shadow-device",
        "refused",
        "device|regular",
        inside="rm /etc/shadow; mknod /etc/shadow c 1 5",
    ),
    Animal(
        "shadow-directory",
        "refused",
        "director|regular",
        inside="rm /etc/shadow; mkdir /etc/shadow",
    ),
    Animal(
        "shadow-5-gib", "refused", "5368709120|5 GiB|5.0 GiB", inside="truncate -s 5G /etc/shadow"
    ),
    Animal(
        "shadow-5-gib-stopped",
        "refused",
        "5368709120|5 GiB|5.0 GiB",
        inside="truncate -s 5G /etc/shadow",
        state="kill",
    ),
    Animal("no-such-user", "refused", "root", inside="sed -i /^root:/d /etc/passwd"),
    Animal(
        "no-such-user-stopped",
        "refused",
        "root",
        inside="sed -i /^root:/d /etc/shadow",
        state="kill",
    ),
    Animal("locked", "refused", "lock", inside=SET_ROOT % LOCKED),
    Animal("locked-twice", "refused", "lock", inside=SET_ROOT % ("!" + LOCKED)),
    Animal("locked-stopped", "refused", "lock", inside=SET_ROOT % LOCKED, state="kill"),
]
BY_NAME = {animal.name: animal for animal in ZOO}
CHANGED = [animal for animal in ZOO if animal.status == "changed"]
REFUSED = [animal for animal in ZOO if animal.status == "refused"]


def ids(animal):
    return animal.name


class Visit:
    """The zoo before and after a dry run and a real run."""

    def __init__(self, lab):
        def look():
            return lab.parallel(lambda name: BY_NAME[name].seen(lab), BY_NAME)

        lab.parallel(lambda animal: animal.make(lab), ZOO)
        self.ids = lab.parallel(lab.id, BY_NAME)
        self.before = look()
        self.diff = lab.parallel(
            lambda name: self.names(lab, name), [animal.name for animal in CHANGED]
        )
        secret = os.path.join(lab.new_folder(), "secret")
        with open(secret, "wb") as f:
            f.write(PASSWORD.encode())
        self.dry = lab.dockfix("chpasswd", "--all", "--stopped", "--dry-run")
        self.foreseen = lab.dockfix(
            "chpasswd", "--all", "--stopped", "--dry-run", "--password-file", secret, "--json"
        )
        self.between = look()
        self.run = lab.dockfix("chpasswd", "--all", "--stopped", "--json", stdin=LINE)
        self.after = look()
        self.states = lab.status()

    @staticmethod
    def names(lab, name):
        """The paths that differ from the container's image."""
        return {line[2:] for line in lab.docker("diff", name).stdout.decode().splitlines()}


@pytest.fixture(scope="module")
def visit(lab):
    return Visit(lab)


def test_one_run_does_what_can_be_done_and_says_so(visit):
    assert visit.run.rc == 3, visit.run
    rows = visit.run.rows
    assert (
        set(rows) == set(BY_NAME) and {name: row["id"] for name, row in rows.items()} == visit.ids
    )
    assert {name: row["status"] for name, row in rows.items()} == {
        animal.name: animal.status for animal in ZOO
    }
    assert visit.run.doc["changed"] is True and not visit.run.doc["errors"]
    assert not [f for f in visit.run.doc["findings"] if f["severity"] == "critical"]


@pytest.mark.parametrize("animal", CHANGED, ids=ids)
def test_changed_is_true(lab, visit, animal):
    """The new password opens the account, and nothing else in the file differs: not a line, not a
    field, not its owner."""
    row, before, after = (
        visit.run.rows[animal.name],
        visit.before[animal.name][0],
        visit.after[animal.name][0],
    )
    assert row["status"] == "changed", row
    assert row["users"] == ["root"] and (row["via"] == animal.via or animal.via is None), row
    assert re.search(animal.why, row["msg"]), row
    field = lab.field_of(after.data)
    assert (
        field.startswith("$6$") and lab.crypt(PASSWORD.encode(), field.encode()).decode() == field
    )
    assert lab.only_password_changed(before, after) == ""


@pytest.mark.parametrize("animal", REFUSED, ids=ids)
def test_refused_with_the_reason_and_left_alone(visit, animal):
    row = visit.run.rows[animal.name]
    assert row["status"] == "refused" and row["via"] is None, row
    assert re.search(animal.why, row["msg"]), row
    assert visit.after[animal.name] == visit.before[animal.name]


def test_every_container_has_its_own_salt(lab, visit):
    fields = [lab.field_of(visit.after[animal.name][0].data) for animal in CHANGED]
    assert len(set(fields)) == len(CHANGED)


@pytest.mark.parametrize("animal", CHANGED, ids=ids)
def test_no_copy_of_a_hash_is_left_behind(lab, visit, animal):
    """The cp way cannot remove its helper file, so that one must be empty; the proc way leaves a
    lock at most."""
    new = Visit.names(lab, animal.name) - visit.diff[animal.name] - {"/etc", "/etc/shadow"}
    via = visit.run.rows[animal.name]["via"]
    if via == "cp":
        assert new <= {"/etc/.shadow.dockfix"}
        left = lab.shadow(animal.name, "/etc/.shadow.dockfix")
        assert left is None or left.size == 0
    elif via == "proc":
        assert new <= {"/etc/.pwd.lock"}
    else:
        assert new <= {"/etc/.pwd.lock", "/etc/shadow-"}


def test_the_containers_still_stand_as_they_did(visit):
    states = dict(visit.states)
    assert states.pop("crash-loop") in ("Restarting", "Up")
    made = {"kill": "Exited", "create": "Created"}
    assert states == dict(
        {
            animal.name: made.get(animal.state, "Up")
            for animal in ZOO
            if animal.name != "crash-loop"
        },
        **{"etc-link-to-host": "Up"},
    )


def test_dry_run_changes_nothing(visit):
    assert visit.between == visit.before


def test_dry_run_that_knows_the_user_foresees_every_row(visit):
    assert {name: row["status"] for name, row in visit.foreseen.rows.items()} == {
        name: row["status"] for name, row in visit.run.rows.items()
    }
    assert {
        name: row["msg"] for name, row in visit.foreseen.rows.items() if row["status"] == "refused"
    } == {name: row["msg"] for name, row in visit.run.rows.items() if row["status"] == "refused"}


def test_dry_run_that_awaits_lines_lists_what_is_refused_for_every_user(visit):
    """Whether a user is there, or locked, or has its password in /etc/passwd, is not known before
    the lines are."""
    assert visit.dry.rc == 3, visit.dry
    comments = [line for line in visit.dry.text.splitlines() if line.startswith("#")]
    commands = [line for line in visit.dry.text.splitlines() if not line.startswith("#")]
    for animal in CHANGED:
        assert any(visit.ids[animal.name] in line for line in commands), animal.name
    refused = [
        animal.name
        for animal in REFUSED
        if not re.match("locked|no-such-user|no-shadow", animal.name)
    ]
    assert [name for name in refused if any(visit.ids[name] in line for line in commands)] == []
    for name in refused:
        assert any(re.search("refused.*%s\\b" % name, line) for line in comments), name


def test_dry_run_script_is_shell_and_holds_nothing_raw(lab, visit):
    assert not CONTROL.search(visit.dry.out) and not CONTROL.search(visit.dry.err)
    assert "\n; touch" not in visit.dry.text and not re.search(r"^[^#]*touch", visit.dry.text, re.M)
    subprocess.run(["sh", "-n"], input=visit.dry.out, check=True)


def test_nothing_from_a_container_reaches_the_terminal_raw(lab, visit):
    names = ["etc-hostile", "etc-of-the-host", "locked", "shadow-fifo"]
    run = lab.dockfix("chpasswd", *names, stdin=LINE)
    assert run.rc == 5, run
    assert not CONTROL.search(run.out) and not CONTROL.search(run.err), run
    assert all(name in run.text for name in names)


def test_no_host_directory_and_no_host_file_was_touched(lab, visit):
    """Also checked at the end of every module; here it has a name."""
    assert len(lab.watched) >= 12
    for path, before in lab.watched.items():
        assert lab.tree(path) == before, path
    shadow = lab.read_bytes("/etc/shadow")
    assert not any(lab.field_of(visit.after[a.name][0].data).encode() in shadow for a in CHANGED)
