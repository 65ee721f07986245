"""backup on one engine, restore on another: a zoo of containers compared field by field, files by
sha256, runlike side by side, kills, a full disk."""

import fcntl
import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from conftest import Lab
from kit import CannotRun, PrivateEngine, cache_dir

LOOP = ("/bin/sh", "-c", "while :; do date >> /data/log; sleep 0.05; done")
# name: options of docker create, words behind the image. 20.10 and newer clients know all of them.
ZOO = {
    "plain": ((), ()),
    "settings": (
        (
            "-e",
            "A=1",
            "-e",
            "NL=a\nb",
            "-e",
            "Q='\"$(id)`\\",
            "-e",
            "-dash=--x",
            "-l",
            "lab=a=b",
            "-l",
            "nl=x\ny",
            "-u",
            "1000:42",
            "-w",
            "/tmp",
            "-h",
            "my.host",
            "--domainname",
            "dom.tld",
            "--stop-signal",
            "9",
            "--stop-timeout",
            "0",
            "-t",
            "-i",
        ),
        ("/bin/sleep", "1 2", "--name=x"),
    ),
    "entry": (("--entrypoint", "/bin/echo"), ("a", "-n")),
    "cleared": (("--entrypoint", ""), ("/bin/sleep", "99")),
    "ports": (
        (
            "-p",
            "127.0.0.1:8080:80",
            "-p",
            "53:53/udp",
            "-p",
            "7000-7002:7000-7002",
            "-p",
            "9000",
            "--expose",
            "1234",
            "--expose",
            "99/udp",
            "-P",
        ),
        (),
    ),
    "front": (
        (
            "--network",
            "zoo",
            "--ip",
            "10.77.33.130",
            "--network-alias",
            "al1",
            "--network-alias",
            "al2",
            "--dns",
            "1.1.1.1",
            "--dns-search",
            "foo.bar",
            "--dns-option",
            "ndots:3",
            "--add-host",
            "h1:1.2.3.4",
            "--link",
            "plain:pl",
        ),
        (),
    ),
    "limits": (
        (
            "--restart",
            "on-failure:3",
            "-m",
            "64m",
            "--memory-reservation",
            "32m",
            "--memory-swap",
            "128m",
            "--cpus",
            "0.5",
            "--cpu-shares",
            "100",
            "--cpuset-cpus",
            "0",
            "--cpuset-mems",
            "0",
            "--pids-limit",
            "77",
            "--shm-size",
            "1m",
            "--oom-score-adj",
            "-5",
            "--ulimit",
            "nofile=10:20",
            "--ulimit",
            "core=-1",
        ),
        (),
    ),
    "always": (("--restart", "always", "--cpu-period", "50000", "--cpu-quota", "20000"), ()),
    "unless": (("--restart", "unless-stopped"), ()),
    "caps": (
        (
            "--cap-add",
            "SYS_ADMIN",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--security-opt",
            "systempaths=unconfined",
            "--device",
            "/dev/null:/dev/nul2:rw",
            "--device-cgroup-rule",
            "c 1:3 rwm",
            "--sysctl",
            "net.ipv4.ip_forward=1",
            "--group-add",
            "daemon",
            "--read-only",
            "--tmpfs",
            "/run:rw,size=1m",
            "--tmpfs",
            "/t2",
            "--init",
        ),
        (),
    ),
    "seccomp": (("--security-opt", "seccomp=PROFILE"), ()),
    "privileged": (
        ("--privileged", "--pid", "host", "--ipc", "host", "--uts", "host", "--userns", "host"),
        (),
    ),
    "hostnet": (("--network", "host"), ()),
    "shared": (("--ipc", "shareable"), ()),
    "joined": (
        ("--network", "container:plain", "--pid", "container:plain", "--ipc", "container:shared"),
        (),
    ),
    "mounts": (
        (
            "-v",
            "FOLDER:/host:ro",
            "-v",
            "named:/named:nocopy",
            "-v",
            "/anon",
            "-v",
            "named2:/n2:ro",
            "--mount",
            "type=volume,source=named3,target=/m2,volume-nocopy,volume-label=a=b",
            "--mount",
            "type=volume,target=/m3",
            "--mount",
            'type=bind,"source=FOLDER/a,b",target=/m5,readonly',
        ),
        (),
    ),
    "tmp": (("--mount", "type=tmpfs,target=/m4,tmpfs-size=1m,tmpfs-mode=1700"), ()),
    "inherits": (("--volumes-from", "mounts:ro", "-v", "/own"), ()),
    "health": (
        (
            "--health-cmd",
            'true "x"',
            "--health-interval",
            "90s",
            "--health-retries",
            "7",
            "--health-start-period",
            "1m",
            "--health-timeout",
            "1500ms",
        ),
        (),
    ),
    "nohealth": (("--no-healthcheck",), ()),
    "logs": (
        (
            "--log-driver",
            "json-file",
            "--log-opt",
            "max-size=1m",
            "--log-opt",
            "tag={{.Name}}",
            "--cgroup-parent",
            "/zoo",
        ),
        (),
    ),
    "nologs": (("--log-driver", "none"), ()),
    "gpus": (("--gpus", '"device=0,1","capabilities=compute,utility"'), ()),
    "links": (("--link", "plain", "--link", "logs:l2"), ()),
    "rates": (("--device-read-bps", "/dev/zero:1mb", "--device-write-iops", "/dev/zero:100"), ()),
}
RUNNING = ("plain", "always", "shared", "mounts", "front", "health")  # health is paused
# What differs by nature or by docker's own doing, and why.
EXPLAINED = {
    "Config.Image": "a container with files of its own comes from an image of its own",
    "Config.AttachStdin": "noted by the client that created it, without effect",
    "Config.AttachStdout": "the same",
    "Config.AttachStderr": "the same",
    "Config.Volumes": "an anonymous volume comes back by its name, so it is a bind",
    "HostConfig.Binds": "the same",
    "HostConfig.Mounts": "the same",
    "HostConfig.ConsoleSize": "the terminal of the client that created it",
    "Config.StdinOnce": "",
}
OWN_NAME = (
    "Config.Hostname",
)  # of containers that share the host's or another's network: docker makes it from the id


def run(engine, *words, **more):
    return engine.docker(*words, **more).stdout.decode()


def inspect(engine, *names):
    return {
        one["Name"][1:]: one
        for one in json.loads(run(engine, "inspect", "--type", "container", *names))
    }


def all_names(engine):
    return run(engine, "ps", "-a", "--format", "{{.Names}}").split()


def fields(doc):
    """{name: value} of all settings; what is empty counts as not there, ids of other containers as
    their names (`ids`)."""
    found = {
        "%s.%s" % (part, key): value
        for part in ("Config", "HostConfig")
        for key, value in doc[part].items()
    }
    found["Mounts"] = sorted(
        [one.get(key) for key in ("Type", "Name", "Destination", "RW", "Propagation")]
        for one in doc["Mounts"]
    )
    ends = doc["NetworkSettings"]["Networks"]
    found["Networks"] = {
        name: [
            sorted(set(end["Aliases"] or []) - {doc["Id"][:12], doc["Config"]["Hostname"]}),
            end["IPAMConfig"],
            end["Links"],
        ]
        for name, end in ends.items()
    }
    for key in ("Config.Env", "HostConfig.Binds", "HostConfig.Links"):
        found[key] = sorted(one.replace(doc["Name"] + "/", "/") for one in found.get(key) or [])
    found["HostConfig.NetworkMode"] = found["HostConfig.NetworkMode"].replace("default", "bridge")
    return {key: value for key, value in found.items() if value not in (None, "", [], {}, False, 0)}


def named(docs, ids):
    """The same documents with container ids written as names."""
    text = json.dumps(docs)
    for one, name in ids.items():
        text = text.replace("container:" + one, "container:" + name)
    return json.loads(text)


def differences(old, new):
    a, b = fields(old), fields(new)
    return {key for key in set(a) | set(b) if a.get(key) != b.get(key)}


def volume_sum(engine, name):
    """sha256 of every file of a volume with owner, mode and type, read through a container of the
    test's own."""
    run(
        engine,
        "create",
        "--name",
        "reader",
        "--network",
        "none",
        "-v",
        name + ":/v",
        "ring/busybox",
        "x",
    )
    try:
        with tarfile.open(fileobj=io.BytesIO(engine.docker("cp", "reader:/v", "-").stdout)) as tar:
            return {
                m.name: (
                    m.type,
                    m.mode & 0o7777,
                    m.uid,
                    m.gid,
                    m.mtime,
                    m.linkname,
                    hashlib.sha256(tar.extractfile(m).read()).hexdigest() if m.isreg() else "",
                )
                for m in tar
            }
    finally:
        run(engine, "rm", "-f", "reader")


def make_zoo(lab, folder):
    engine = lab.engine
    os.makedirs(os.path.join(folder, "a,b"))
    with open(os.path.join(folder, "profile"), "w") as f:
        f.write('{"defaultAction":"SCMP_ACT_ALLOW"}')
    lab.image("busybox")
    run(engine, "tag", "ring/busybox", "ring/second:v2")
    run(
        engine,
        "network",
        "create",
        "--subnet",
        "10.77.33.0/24",
        "--ip-range",
        "10.77.33.128/25",
        "--gateway",
        "10.77.33.9",
        "--aux-address",
        "a=10.77.33.5",
        "--label",
        "x=y",
        "zoo",
    )
    run(engine, "network", "create", "--subnet", "10.77.34.0/24", "--internal", "zoo2")
    for name, (options, command) in ZOO.items():
        words = [
            word.replace("FOLDER", folder).replace("PROFILE", os.path.join(folder, "profile"))
            for word in options
        ]
        run(engine, "create", "--name", name, *([*words, "ring/busybox", *list(command)]))
    run(engine, "network", "connect", "--alias", "x2", "--ip", "10.77.34.77", "zoo2", "front")
    run(engine, "start", *RUNNING)
    run(
        engine,
        "exec",
        "plain",
        "sh",
        "-c",
        "echo mine > /root/own; rm /etc/group; mkdir /srv; ln -s /nowhere /srv/link; chmod 4711"
        " /root/own",
    )
    run(
        engine,
        "exec",
        "mounts",
        "sh",
        "-c",
        "mkdir -p /named/d /anon/e; echo hi > /named/d/f; ln /named/d/f /named/h; ln -s f"
        " /named/d/s; mkfifo /named/p; mknod /named/n c 1 3;touch -d '2001-01-01 00:00:01'"
        " /named/d; chown 77:88 /named; chmod 2750 /named; head -c 300000 /dev/urandom > /anon/e/r;"
        " echo 3 > /m3/x",
    )
    run(engine, "pause", "health")


@pytest.fixture(scope="module")
def second(engine):
    """Another private engine, and a lab on it."""
    private = PrivateEngine()
    try:
        private.start()
    except CannotRun as reason:
        pytest.fail("the first engine runs, a second one does not: %s" % reason)
    yield private
    private.stop()


@pytest.fixture(scope="module")
def moved(lab, second):
    """The zoo, backed up on the first engine and restored on the second: everything that the tests
    look at."""
    folder = lab.new_folder()
    make_zoo(lab, os.path.join(folder, "host"))
    other = Lab(second, lab.folder)
    other.state = os.path.join(folder, "state2")
    at = os.path.join(folder, "backup")
    facts = {
        "at": at,
        "lab": lab,
        "other": other,
        "folder": folder,
        "run": lab.dockfix("backup", at),
    }
    names = all_names(lab.engine)
    ids = {lab.id(name): name for name in names}
    facts["old"] = inspect(lab.engine, *names)
    volumes = run(lab.engine, "volume", "ls", "-q").split()
    facts["volumes"] = {name: volume_sum(lab.engine, name) for name in volumes}
    facts["networks"] = json.loads(run(lab.engine, "network", "inspect", "zoo", "zoo2"))
    facts["tags"] = {
        tag: run(lab.engine, "inspect", "-f", "{{.Id}}", tag)
        for tag in ("ring/busybox:latest", "ring/second:v2")
    }
    facts["runlike"] = runlike_clones(lab.engine, names)
    lab.clean()  # both engines' bridges would stand in one network namespace
    run(lab.engine, "network", "rm", "zoo", "zoo2")
    facts["verify"] = other.dockfix("backup", "--verify", at, "--json")
    facts["restore"] = other.dockfix("restore", at, "-y", "--json")
    facts["new"] = inspect(second, *all_names(second))
    facts["old"] = {name: named(doc, ids) for name, doc in facts["old"].items()}
    facts["new"] = {
        name: named(doc, {one["Id"]: one["Name"][1:] for one in facts["new"].values()})
        for name, doc in facts["new"].items()
    }
    yield facts
    other.clean()
    run(second, "network", "rm", "zoo", "zoo2", check=False)


def runlike_path():
    """runlike in a virtual environment below the cache; None where PyPI or a Python for it is not
    there."""
    place = os.path.join(cache_dir(), "runlike-%d.%d" % sys.version_info[:2])
    program = os.path.join(place, "bin", "runlike")
    if not os.path.exists(program):
        words = [
            [sys.executable, "-m", "venv", "--clear", place],
            [
                os.path.join(place, "bin", "pip"),
                "install",
                "-q",
                "--disable-pip-version-check",
                "runlike",
            ],
        ]
        if any(
            subprocess.call(one, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for one in words
        ):
            return None
    return program


def runlike_clones(engine, names):
    """{name: inspect of what runlike's command line makes (None: it makes nothing)}; None where
    there is no runlike."""
    program = runlike_path()
    if not program:
        return None

    def clone(name):
        said = subprocess.run(
            [program, "--use-volume-id", name], stdout=subprocess.PIPE, env=engine.env()
        )
        try:
            words = shlex.split(said.stdout.decode())
        except ValueError:
            words = []
        words = ["create", "--name", name + ".clone"] + [
            word for word in words[2:] if not word.startswith(("--name=", "--detach"))
        ]
        if engine.docker(*words, check=False).returncode:
            return None
        found = json.loads(
            run(engine, "inspect", name + ".clone").replace("/%s.clone" % name, "/" + name)
        )[0]
        engine.docker("rm", "-f", name + ".clone", check=False)
        return found

    return Lab.parallel(clone, names)


# ---------------------------------------------------------------------- what came over


def test_the_runs_say_so(moved):
    assert moved["run"].rc == 0, moved["run"]
    assert (
        "host's %s" % os.path.join(moved["folder"], "host") in moved["run"].text
        and "what mounts writes to volume named meanwhile" in moved["run"].text
    )
    assert moved["verify"].rc == 0 and moved["restore"].rc == 0, (moved["verify"], moved["restore"])
    rows = {row["target"]: row for row in json.loads(moved["restore"].text)["results"]}
    assert set(ZOO) <= set(rows) and {row["status"] for row in rows.values()} == {"changed"}
    assert [row["msg"] for name, row in rows.items() if name in ZOO and row["msg"]] == []
    assert all(moved["new"][name]["Id"] == rows[name]["id"] for name in ZOO)


def test_the_folder_is_closed_and_whole(moved):
    assert os.stat(moved["at"]).st_mode & 0o7777 == 0o700
    names = os.listdir(moved["at"])
    assert "manifest.json" in names and not any(name.endswith(".part") for name in names)
    assert {os.stat(os.path.join(moved["at"], name)).st_mode & 0o7777 for name in names} == {0o600}
    for name in names:
        if name.endswith(".sha256"):
            with open(os.path.join(moved["at"], name[:-7]), "rb") as f, open(
                os.path.join(moved["at"], name)
            ) as noted:
                assert noted.read().split()[0] == hashlib.sha256(f.read()).hexdigest()


def test_inspect_field_by_field(moved):
    found = {}
    for name in ZOO:
        for key in differences(moved["old"][name], moved["new"][name]):
            found.setdefault(key, set()).add(name)
    for key in OWN_NAME:
        assert found.pop(key, set()) <= {"privileged", "hostnet", "joined"}
    assert set(found) <= set(EXPLAINED), {
        key: (
            names,
            [
                (fields(moved[side][name]).get(key))
                for name in sorted(names)[:1]
                for side in ("old", "new")
            ],
        )
        for key, names in found.items()
        if key not in EXPLAINED
    }
    assert found.get("HostConfig.Binds", set()) <= {"mounts", "inherits"} and found.get(
        "HostConfig.Mounts", set()
    ) <= {"mounts"}
    assert "settings" not in found.get("Config.StdinOnce", ())


def test_what_ran_runs_and_what_was_paused_is_paused(moved):
    for name in ZOO:
        old, new = moved["old"][name]["State"], moved["new"][name]["State"]
        assert (old["Running"], old["Paused"]) == (new["Running"], new["Paused"]), name
    assert (
        moved["new"]["health"]["State"]["Paused"]
        and moved["new"]["plain"]["State"]["StartedAt"]
        < moved["new"]["front"]["State"]["StartedAt"]
    )


def test_a_file_of_the_containers_own(moved):
    inside = (
        moved["other"]
        .inside(
            "plain",
            "cat /root/own; stat -c %a /root/own; readlink /srv/link; ls /etc/group 2>/dev/null ||"
            " echo gone",
        )
        .split()
    )
    assert inside == [b"mine", b"4711", b"/nowhere", b"gone"]
    assert (
        moved["new"]["plain"]["Config"]["Image"].startswith("dockfix/restored:plain-")
        and moved["new"]["limits"]["Config"]["Image"] == "ring/busybox"
    )


def test_volumes_are_equal_file_by_file(moved):
    engine = moved["other"].engine
    assert set(run(engine, "volume", "ls", "-q").split()) == set(moved["volumes"])
    for name, files in moved["volumes"].items():
        assert volume_sum(engine, name) == files
    assert any(
        entry[0] == tarfile.FIFOTYPE for entry in moved["volumes"]["named"].values()
    ) and moved["volumes"]["named"]["v"][1:4] == (0o2750, 77, 88)
    labels = json.loads(run(engine, "volume", "inspect", "named3"))[0]["Labels"]
    assert labels == {"a": "b"}


def test_tags_and_networks(moved):
    engine = moved["other"].engine
    assert {tag: run(engine, "inspect", "-f", "{{.Id}}", tag) for tag in moved["tags"]} == moved[
        "tags"
    ]
    new = json.loads(run(engine, "network", "inspect", "zoo", "zoo2"))
    for old, one in zip(moved["networks"], new):
        assert all(
            old[key] == one[key]
            for key in (
                "Name",
                "Driver",
                "IPAM",
                "Internal",
                "Attachable",
                "EnableIPv6",
                "Options",
                "Labels",
            )
        )


def test_nothing_is_left_behind(moved):
    for engine in (moved["lab"].engine, moved["other"].engine):
        assert "dockfix/backup" not in run(engine, "images") and "dockfix.helper" not in all_names(
            engine
        )


def test_at_least_what_runlike_carries_over(moved):
    """Side by side: wherever runlike's command line brings a field back, so does dockfix."""
    if moved["runlike"] is None:
        pytest.skip("runlike could not be installed from PyPI")
    carried, behind, made = [0, 0], {}, 0
    for name in ZOO:
        old, clone = moved["old"][name], moved["runlike"][name]
        theirs = set(fields(old)) - differences(old, named(clone, {})) if clone else set()
        mine = set(fields(old)) - differences(old, moved["new"][name])
        made += clone is not None
        carried = [carried[0] + len(theirs), carried[1] + len(mine)]
        lacking = (
            theirs
            - mine
            - set(OWN_NAME)
            - {"Config.Image", "Config.AttachStdin", "Config.AttachStdout", "Config.AttachStderr"}
        )
        behind.update({name: lacking} if lacking else {})
    print(
        "runlike made %d of %d containers and carried %d settings over, dockfix %d"
        % (made, len(ZOO), *carried)
    )
    assert behind == {} and carried[1] > carried[0] and made > len(ZOO) // 2


def test_again_it_is_there_already(moved):
    other = moved["other"]
    before = inspect(other.engine, *all_names(other.engine))
    again = other.dockfix("restore", moved["at"], "-y", "--json")
    rows = {row["target"]: row["status"] for row in json.loads(again.text)["results"]}
    assert again.rc == 0 and {rows[name] for name in ZOO} == {"unchanged"}
    run(other.engine, "rm", "-f", "gpus", "joined")
    again = other.dockfix("restore", moved["at"], "-y", "--json")
    rows = {row["target"]: row["status"] for row in json.loads(again.text)["results"]}
    assert again.rc == 0 and {name for name in ZOO if rows[name] == "changed"} == {"gpus", "joined"}
    after = inspect(other.engine, *all_names(other.engine))
    assert all(
        before[name]["Id"] == after[name]["Id"] for name in ZOO if name not in ("gpus", "joined")
    )


def test_what_is_in_the_way_is_not_overwritten(moved):
    other = moved["other"]
    run(other.engine, "rm", "-f", "rates")
    other.create("rates", image="busybox")
    refused = other.dockfix("restore", moved["at"], "-y")
    assert (
        refused.rc == 5
        and b"container rates exists, and differs in" in refused.err
        and b"--device-read-bps=/dev/zero:1048576" in refused.err
    )
    fresh = os.path.join(moved["folder"], "state3")
    refused = other.dockfix(
        "--state", fresh, "restore", moved["at"], "-y"
    )  # another state: nobody knows who filled these volumes
    assert refused.rc == 5 and b"volume named exists" in refused.err
    assert volume_sum(other.engine, "named") == moved["volumes"]["named"]


# ---------------------------------------------------------------------- small stocks: kills, full
# disks, scripts


@pytest.fixture
def small(lab):
    """One running container with a file, a volume and a network of its own, nothing else."""
    lab.clean()
    for words in (("volume", "ls", "-q"), ("network", "ls", "-q", "--filter", "name=small")):
        names = run(lab.engine, *words).split()
        if names:
            run(lab.engine, words[0], "rm", *names)
    images = [
        line
        for line in run(lab.engine, "images", "--format", "{{.Repository}}:{{.Tag}}").split()
        if line.startswith("dockfix/") or line == "ring/second:v2"
    ]
    if images:
        run(lab.engine, "rmi", *images)
    lab.state = os.path.join(lab.new_folder(), "state")
    lab.image("busybox")
    run(lab.engine, "network", "create", "--subnet", "10.77.35.0/24", "small")
    lab.docker(
        "run",
        "-d",
        "--name",
        "small",
        "--network",
        "small",
        "-v",
        "small:/data",
        "-e",
        "A=1",
        "ring/busybox",
        *LOOP,
    )
    lab.inside("small", "echo mine > /root/own; head -c 3000000 /dev/urandom > /data/big; sync")
    return lab


def leavings(engine):
    return [
        line
        for line in run(engine, "images", "--format", "{{.Repository}}").split()
        if line == "dockfix/backup"
    ] + [n for n in all_names(engine) if n.startswith("dockfix")]


def wipe(lab):
    lab.clean()
    for words in (("volume", "rm", "small"), ("network", "rm", "small"), ("rmi", "ring/busybox")):
        run(lab.engine, *words)
    lab.images.clear()


def start_and_kill(lab, recorder, mark, *words):
    """dockfix, killed with -9 as soon as docker is called with the word `mark`."""
    argv = lab.argv("--docker", shlex.quote(recorder.command), *words)
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=lab.engine.env(),
    )
    deadline = time.time() + 60
    while (
        process.poll() is None
        and time.time() < deadline
        and not any(
            mark.encode() in lab.read_bytes(os.path.join(recorder.log, name)).split(b"\0")
            for name in os.listdir(recorder.log)
            if name.endswith(".argv")
        )
    ):
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("mark", ["save", "cp"])
def test_a_backup_that_was_killed_is_no_backup_and_leaves_nothing(small, mark):
    at = os.path.join(small.new_folder(), "backup")
    killed_and_undone(small, mark, at)
    assert not os.path.exists(at)
    assert small.dockfix("backup", at).rc == 0 and small.dockfix("backup", "--verify", at).rc == 0


def test_a_disk_of_its_own_that_is_the_backups_folder_stays_on_the_way_back(small):
    at = small.new_folder()
    subprocess.run(["mount", "-t", "tmpfs", "stick", at], check=True)
    try:
        killed_and_undone(small, "save", at)
        assert os.listdir(at) == []
    finally:
        subprocess.run(["umount", at], check=True)


def orphan_ended(small):
    """What a killed dockfix had started holds its lock."""
    with open(os.path.join(small.state, "lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def killed_and_undone(small, mark, at):
    slow = small.recorder('case " $* " in *" %s "*) sleep 0.5;; esac' % mark)
    start_and_kill(small, slow, mark, "backup", at)
    orphan_ended(small)
    assert small.dockfix("backup", "--verify", at).rc == 5 and small.dockfix(
        "restore", "-y", at
    ).rc in (5, 7)
    undone = small.dockfix("rollback", "-y")
    assert undone.rc == 0, undone
    assert leavings(small.engine) == [] and small.status() == {"small": "Up"}


STRIDE = 1 if os.environ.get("FULL") else 3
ENDS = [(side, way) for side in ("before", "after") for way in ("resume", "rollback")]


def end_at_steps(small, words, check):
    """dockfix, killed at every third step, before or after it, and resumed or rolled back; FULL=1:
    at every one, all four ends. words: those of a turn; check(way, turn): what must be. How many
    points."""
    tried, number, journal = 0, 1, os.path.join(small.state, "journal.json")
    while True:
        for side, way in ENDS if STRIDE == 1 else [ENDS[number % 4]]:
            killed = small.dockfix_until(str(number), side, *words(tried))
            if killed.returncode == 0:
                return tried
            assert killed.returncode == -signal.SIGKILL, killed
            done = small.dockfix(
                *(way, "-y", "--json") if os.path.exists(journal) else words(tried)
            )  # it had not begun, or has ended and the containers come
            assert done.rc == 0 and not os.path.exists(journal) and leavings(small.engine) == [], (
                number,
                side,
                way,
                done,
            )
            check(way if way in done.doc["command"] else "again", tried)
            tried += 1
        number += STRIDE


def test_a_backup_that_is_killed_at_steps(small):
    at = os.path.join(small.new_folder(), "backup")

    def check(way, turn):
        assert os.path.exists(at + str(turn)) is (way != "rollback") and small.status() == {
            "small": "Up"
        }, (way, turn)
        assert way == "rollback" or small.dockfix("backup", "--verify", at + str(turn)).rc == 0, (
            way,
            turn,
        )

    assert (
        end_at_steps(small, lambda turn: ("backup", "--json", at + str(turn)), check) > 12 // STRIDE
    )


def test_a_restore_that_is_killed_at_steps(small):
    at = os.path.join(small.new_folder(), "backup")
    assert small.dockfix("backup", at).rc == 0
    files = volume_sum(small.engine, "small")["v/big"]
    wipe(small)

    def check(way, turn):
        there = [
            run(small.engine, *words)
            for words in (
                ("ps", "-aq"),
                ("images", "-q", "ring/busybox"),
                ("network", "ls", "-q", "--filter", "name=small"),
                ("volume", "ls", "-q"),
            )
        ]
        assert [bool(one) for one in there] == [way != "rollback"] * 4, (way, turn, there)
        if way != "rollback":
            assert (
                small.status() == {"small": "Up"}
                and small.inside("small", "cat /root/own") == b"mine\n"
                and volume_sum(small.engine, "small")["v/big"] == files
            ), (way, turn)
            wipe(small)

    assert end_at_steps(small, lambda turn: ("restore", "-y", "--json", at), check) > 9 // STRIDE
    small.images["busybox"] = "ring/busybox"


def test_a_volume_that_somebody_uses_meanwhile_is_not_filled(small):
    at = os.path.join(small.new_folder(), "backup")
    assert small.dockfix("backup", at).rc == 0
    wipe(small)
    start_and_kill(
        small,
        small.recorder('case " $* " in *" load "*) sleep 0.5;; esac'),
        "load",
        "restore",
        "-y",
        at,
    )
    orphan_ended(small)
    small.docker(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "theirs",
        "-v",
        "small:/theirs",
        "ring/busybox",
        "sh",
        "-c",
        "echo mine > /theirs/new; sleep 2147483647",
    )
    held = small.dockfix("resume", "-y")
    assert held.rc == 7 and b"no container has the new volumes" in held.err, held
    assert small.inside("theirs", "ls /theirs") == b"new\n"
    assert (
        small.dockfix("rollback", "-y").rc == 7 and small.inside("theirs", "ls /theirs") == b"new\n"
    )
    small.docker("rm", "-f", "theirs")
    assert (
        small.dockfix("rollback", "-y").rc == 0
        and run(small.engine, "volume", "ls", "-q") == ""
        and leavings(small.engine) == []
    )


def test_a_volume_made_after_the_restore_is_not_taken_for_one_that_it_filled(small):
    at = os.path.join(small.new_folder(), "backup")
    assert small.dockfix("backup", at).rc == 0
    wipe(small)
    assert small.dockfix("restore", "-y", at).rc == 0
    small.inside(
        "small", "touch /data/later"
    )  # which changes its date, as docker up to 22 tells it
    assert small.dockfix("restore", "-y", at).rc == 0
    run(small.engine, "rm", "-f", "small")
    run(small.engine, "volume", "rm", "small")
    run(small.engine, "volume", "create", "small")
    refused = small.dockfix("restore", "-y", at)
    assert refused.rc == 5 and b"volume small exists" in refused.err, refused
    run(small.engine, "volume", "rm", "small")
    assert small.dockfix("restore", "-y", at).rc == 0 and "v/big" in volume_sum(
        small.engine, "small"
    )


def test_a_volume_that_an_earlier_restore_left_empty_is_filled(small):
    """As a version of dockfix before this one did on engines before 1.13; what is not empty is
    never written."""
    at = os.path.join(small.new_folder(), "backup")
    small.inside(
        "small", "mkdir /data/d; ln /data/big /data/d/h; chown 5:6 /data; chmod 2750 /data"
    )
    small.docker("stop", "-t", "0", "small")
    files = volume_sum(small.engine, "small")
    assert small.dockfix("backup", at).rc == 0
    wipe(small)
    assert small.dockfix("restore", "-y", at).rc == 0
    assert volume_sum(small.engine, "small") == files
    point = run(small.engine, "volume", "inspect", "-f", "{{.Mountpoint}}", "small").strip()
    subprocess.run(["find", point, "-mindepth", "1", "-delete"], check=True)
    assert small.dockfix("restore", "-y", at).rc == 0
    assert volume_sum(small.engine, "small") == files
    subprocess.run(["find", point, "-mindepth", "1", "-delete"], check=True)
    with open(os.path.join(point, "own"), "w") as f:
        f.write("somebody's")
    assert small.dockfix("restore", "-y", at).rc == 0
    assert sorted(volume_sum(small.engine, "small")) == ["v", "v/own"]
    small.images["busybox"] = "ring/busybox"


def test_a_container_that_cannot_be_committed_is_exported(small):
    """Its image was removed by force: docker commit fails, the container goes on."""
    small.docker("commit", "--change", 'ENTRYPOINT ["/bin/sh", "-c"]', "small", "gone:1")
    small.docker("run", "-d", "--name", "noimg", "--network", "none", "gone:1", "sleep 2147483647")
    small.inside("noimg", "echo mine > /root/own2")
    small.docker("stop", "-t", "0", "noimg")
    small.docker("rmi", "-f", run(small.engine, "images", "-q", "gone:1").strip())
    small.docker("start", "noimg")
    at = os.path.join(small.new_folder(), "backup")
    made = small.dockfix("backup", "--json", at)
    assert made.rc == 0 and b"docker export took them" in made.err, made
    assert small.dockfix("backup", "--verify", at).rc == 0 and leavings(small.engine) == []
    wipe(small)
    back = small.dockfix("restore", "-y", at)
    assert back.rc == 0 and b"not carried over" not in back.out, back
    assert inspect(small.engine, "noimg")["noimg"]["Config"]["Entrypoint"] == ["/bin/sh", "-c"]
    assert small.inside("noimg", "cat /root/own2") == b"mine\n"
    assert small.inside("small", "cat /root/own") == b"mine\n"
    small.images["busybox"] = "ring/busybox"


def test_a_rollback_while_the_daemon_is_down_does_not_call_it_undone(small):
    at = os.path.join(small.new_folder(), "backup")
    assert small.dockfix("backup", at).rc == 0
    wipe(small)
    mark = os.path.join(small.new_folder(), "down")
    slow = small.recorder(
        '[ ! -e %s ] || { echo Cannot connect to the Docker daemon >&2; exit 1; }; case " $* " in'
        ' *" cp "*) sleep 0.5;; esac' % mark
    )
    start_and_kill(small, slow, "cp", "restore", "-y", at)
    orphan_ended(small)
    open(mark, "w").close()
    down = small.dockfix("rollback", "-y")
    assert (
        down.rc == 7
        and b"Cannot connect to the Docker daemon" in down.err
        and "small" in run(small.engine, "volume", "ls", "-q")
    ), down
    os.unlink(mark)
    assert (
        small.dockfix("rollback", "-y").rc == 0
        and run(small.engine, "volume", "ls", "-q") == ""
        and leavings(small.engine) == []
    )


def test_two_backups_of_one_container_each_bring_back_their_own_files(small):
    at = os.path.join(small.new_folder(), "backup")
    for word in ("old", "new"):
        small.inside("small", "echo %s > /root/own" % word)
        assert small.dockfix("backup", at + word).rc == 0
    for word in ("old", "new"):
        small.clean()  # but the images stay
        for words in (("volume", "rm", "small"), ("network", "rm", "small")):
            run(small.engine, *words)
        assert small.dockfix("restore", "-y", at + word).rc == 0
        assert small.inside("small", "cat /root/own") == word.encode() + b"\n"


def test_a_killed_restore_is_resumed_or_undone(small):
    at = os.path.join(small.new_folder(), "backup")
    assert small.dockfix("backup", at).rc == 0
    files = volume_sum(small.engine, "small")["v/big"]
    wipe(small)
    for way in ("rollback", "resume"):
        slow = small.recorder('case " $* " in *" cp "*) sleep 0.5;; esac')
        start_and_kill(small, slow, "cp", "restore", "-y", at)
        orphan_ended(small)
        assert small.dockfix("backup", at + "2").rc == 7 and not os.path.exists(at + "2")
        if way == "resume":
            done = small.script(small.dockfix("--dry-run", "resume").out)
            assert done.rc == 0 and small.status() == {"small": "Up"}, done
        assert small.dockfix(way, "-y").rc == 0
        volumes = run(small.engine, "volume", "ls", "-q").split()
        assert ("small" in volumes) is (way == "resume") and leavings(small.engine) == []
        if way == "rollback":
            assert "ring/busybox" not in run(small.engine, "images") and "small" not in run(
                small.engine, "network", "ls"
            )
    assert small.status() == {"small": "Up"} and small.inside("small", "cat /root/own") == b"mine\n"
    assert volume_sum(small.engine, "small")["v/big"] == files
    small.images["busybox"] = "ring/busybox"


def test_the_scripts_do_the_same(small):
    at = os.path.join(small.new_folder(), "backup")
    before = small.tree(os.path.dirname(at))
    dry = small.dockfix("backup", "-n", at)
    assert (
        dry.rc == 0
        and small.tree(os.path.dirname(at)) == before
        and not os.path.exists(small.state)
    )
    done = small.script(dry.out)
    assert done.rc == 0 and small.dockfix("backup", "--verify", at).rc == 0, done
    files, old = volume_sum(small.engine, "small")["v/big"], inspect(small.engine, "small")["small"]
    wipe(small)
    dry = small.dockfix("restore", "-n", at)
    assert dry.rc == 0 and small.status() == {}
    assert (
        small.script(dry.out).rc == 0
        and small.status() == {"small": "Up"}
        and small.inside("small", "cat /root/own") == b"mine\n"
    )
    assert volume_sum(small.engine, "small")["v/big"] == files and differences(
        old, inspect(small.engine, "small")["small"]
    ) <= set(EXPLAINED)
    assert leavings(small.engine) == []
    small.images["busybox"] = "ring/busybox"


def test_a_pool_too_full_for_a_commit_is_read_by_export(small):
    """docker info tells of a thin pool below its minimum: no commit, no helper container; the
    config comes back from inspect."""
    folder = small.new_folder()
    at, facts = os.path.join(folder, "backup"), os.path.join(folder, "info")
    with open(facts, "w") as f:
        json.dump(
            {
                "Driver": "devicemapper",
                "DockerRootDir": small.engine.root,
                "SecurityOptions": [],
                "DriverStatus": [
                    ["Pool Name", "docker-8:1-1-pool"],
                    ["Data Space Used", "97.5GB"],
                    ["Data Space Total", "107.4GB"],
                    ["Thin Pool Minimum Free Space", "10.74GB"],
                ],
            },
            f,
        )
    full = small.recorder(
        '[ "$1" != info ] || { cat %s; exit; }; case "$1" in commit|create|import) echo "free data'
        ' blocks" >&2; exit 1;; esac' % shlex.quote(facts)
    )
    made = small.dockfix("backup", at, recorder=full)
    assert made.rc == 0, made
    old, big = inspect(small.engine, "small")["small"], volume_sum(small.engine, "small")["v/big"]
    wipe(small)
    assert small.dockfix("restore", "-y", at).rc == 0
    new = inspect(small.engine, "small")["small"]
    assert (
        differences(old, new) <= set(EXPLAINED)
        and new["Config"]["Cmd"] == list(LOOP)
        and small.inside("small", "cat /root/own") == b"mine\n"
    )
    assert volume_sum(small.engine, "small")["v/big"] == big and small.status() == {"small": "Up"}
    small.images["busybox"] = "ring/busybox"


def test_a_disk_too_small_or_full_in_the_middle(small):
    folder = small.new_folder()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], check=True)
    try:
        at, filler = os.path.join(folder, "backup"), os.path.join(folder, "filler")
        filling = small.recorder(
            '[ "$1" != save ] || dd if=/dev/zero of=%s bs=1M count=30 2>/dev/null'
            % shlex.quote(filler)
        )
        failed = small.dockfix("backup", at, recorder=filling)
        assert (
            failed.rc == 1
            and b"undone" in failed.err
            and os.listdir(folder) == ["filler"]
            and leavings(small.engine) == []
        ), failed
        refused = small.dockfix("backup", at)
        assert refused.rc == 5 and b"free" in refused.err and os.listdir(folder) == ["filler"]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_places_that_are_none(small):
    folder = small.new_folder()
    with open(os.path.join(folder, "file"), "w") as f:
        f.write("mine")
    for at, word in (
        (os.path.join(small.engine.root, "kept"), b"below Docker's own root"),
        (folder, b"not an empty folder"),
        (os.path.join(folder, "file"), b"cannot be"),
        (os.path.join(folder, "no", "such"), b"must exist"),
    ):
        refused = small.dockfix("backup", at)
        assert refused.rc == 5 and word in refused.err, refused
    assert os.listdir(folder) == ["file"] and not os.path.exists(
        os.path.join(small.engine.root, "kept")
    )
