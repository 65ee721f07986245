"""dockfix on a current engine (Debian trixie's; with DOCKFIX_TEST_BIG=1 also sid's), at the default
paths of a host of its own, with either image store.

What each command does in every case is tested on the machine's own engine; here it is that the
facts it rests on (inspect, the container's root as a mount, `docker cp`, save and load,
containerd's store) hold on this engine too.  Judged from outside: by `docker cp`, by a program in
the container, by the bytes that come back."""

import io
import json
import os
import tarfile

import pytest

from current import image_without_layers, stop_registry

ZONE = "Asia/Shanghai"
DRIVERS = {"overlay2": "overlay2", "containerd": "overlayfs"}


@pytest.fixture(scope="module")
def pair(current):
    """Two running containers, one of them without chpasswd."""
    current.run("deb")
    current.run("small", image="busybox")
    yield current
    current.docker("rm", "-f", "deb", "small")


def test_the_engine_is_what_it_says(current):
    """A wrong engine would make all other tests here worth nothing."""
    version, driver = (
        current.docker("info", "-f", "{{.ServerVersion}} {{.Driver}}").stdout.decode().split()
    )
    assert int(version.split(".")[0]) >= 26
    assert driver == DRIVERS[current.engine.store]
    assert os.path.isdir(current.engine.root("var/lib/docker/image/overlay2/imagedb")) is (
        current.engine.store == "overlay2"
    )


def test_exec(pair):
    run = pair.dockfix("exec", "--all", "--json", "--", "sh", "-c", "echo $0; id -u; exit 4", "x y")
    assert run.rc == 1, run
    rows = run.rows
    assert set(rows) == {"deb", "small"}
    for row in rows.values():
        assert (row["rc"], row["stdout"]) == (4, "x y\n0\n"), row
    assert pair.dockfix("exec", "deb", "--", "true").rc == 0


@pytest.mark.parametrize("name, way", [("deb", "exec"), ("deb", "cp"), ("small", "auto")])
def test_chpasswd(pair, name, way):
    password, before = "on %s by %s" % (name, way), pair.shadow(name)
    options = [] if way == "auto" else ["--via", way]
    run = pair.dockfix(
        "chpasswd", *([*options, name, "--json"]), stdin=b"root:%s\n" % password.encode()
    )
    assert run.rc == 0 and run.rows[name]["status"] == "changed", run
    assert way in ("auto", run.rows[name]["via"]), run
    assert pair.opens(name, password)
    assert pair.only_password_changed(before, pair.shadow(name)) == ""


def test_chpasswd_in_a_stopped_container(current):
    current.run("down")
    current.docker("kill", "down")
    before = current.shadow("down")
    run = current.dockfix("chpasswd", "down", "--json", stdin=b"root:while it was down\n")
    assert run.rc == 0 and run.rows["down"]["via"] == "cp", run
    assert current.opens("down", "while it was down")
    assert current.only_password_changed(before, current.shadow("down")) == ""
    current.docker("start", "down")
    assert current.opens("down", "while it was down")
    current.docker("rm", "-f", "down")


def test_a_password_opens_a_login(pair):
    """Debian's own su, started by a user without rights."""
    assert pair.dockfix("chpasswd", "deb", stdin=b"root:say friend\n").rc == 0

    def try_su(password):
        return pair.docker(
            *["exec", "-i", "-u", "daemon", "deb", "su", "-c", "id", "root"],
            input=password + b"\n",
            check=False,
        )

    assert b"uid=0(root)" in try_su(b"say friend").stdout
    refused = try_su(b"mellon")
    assert refused.returncode and not refused.stdout, refused


# ---------------------------------------------------------------- clock and timezone


@pytest.fixture
def host_zone(current):
    """The engine's host in Asia/Shanghai; its containers, of Debian, start with UTC."""
    link = current.engine.root("etc/localtime")
    was = os.readlink(link) if os.path.islink(link) else None
    current.call("ln", "-sf", "/usr/share/zoneinfo/" + ZONE, "/etc/localtime")
    yield ZONE
    if was is None:
        os.unlink(link)
    else:
        current.call("ln", "-sf", was, "/etc/localtime")


def offset(lab, name):
    return lab.docker("exec", name, "date", "+%z").stdout.decode().strip()


def test_clock_and_timezone_and_undo(current, host_zone):
    current.run("up")
    current.run("held")
    current.docker("pause", "held")
    current.run("off")
    current.docker("kill", "off")
    names = ["up", "held", "off"]
    try:
        run = current.dockfix("clock", *([*names, "--check", "--json"]))
        assert run.rc == 3, run
        assert {row["verdict"] for row in run.rows.values()} == {"other zone"}, run
        run = current.dockfix("timezone", *([*names, "--json"]))
        assert run.rc == 0, run
        assert {row["status"] for row in run.rows.values()} == {"changed"}, run
        assert current.dockfix("clock", *([*names, "--check"])).rc == 0
        current.docker("unpause", "held")
        current.docker("start", "off")
        assert {name: offset(current, name) for name in names} == dict.fromkeys(names, "+0800")
        run = current.dockfix("timezone", "--undo", *([*names, "--json"]))
        assert run.rc == 0, run
        assert {name: offset(current, name) for name in names} == dict.fromkeys(names, "+0000")
    finally:
        current.docker("rm", "-f", *names)


# ---------------------------------------------------------------- backup and restore


def members(data):
    """{name: (mode, owner, link, bytes)} of tar bytes."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {
            m.name: (
                m.mode,
                m.uid,
                m.gid,
                m.linkname,
                tar.extractfile(m).read() if m.isreg() else b"",
            )
            for m in tar
        }


def copied(lab, name, path):
    return members(lab.docker("cp", "%s:%s" % (name, path), "-").stdout)


FILL = (
    "mkdir -p /data/d; head -c 300000 /dev/urandom > /data/d/r; ln -s d/r /data/l; chown 77:88"
    " /data/d; chmod 2750 /data/d; echo own > /srv/own; rm /etc/group"
)


def test_backup_and_restore_bring_all_back(current):
    at = "/srv/backup"
    current.run("kept", "-e", "A=1 2", "-v", "vol:/data", "--label", "x=y", image="busybox")
    current.inside("kept", "mkdir -p /srv; " + FILL)
    current.create("never", "-w", "/tmp", image="busybox", command=["sh", "-c", "exit 7"])
    image = current.image("busybox")
    old = json.loads(current.docker("inspect", "kept", "never").stdout.decode())
    data, own = copied(current, "kept", "/data"), copied(current, "kept", "/srv")
    run = current.dockfix("backup", at)
    assert run.rc == 0, run
    assert current.dockfix("backup", "--verify", at).rc == 0
    current.docker("rm", "-f", "kept", "never")
    current.docker("volume", "rm", "vol")
    current.docker("rmi", "-f", image)
    run = current.dockfix("restore", at, "-y", "--json")
    assert run.rc == 0, run
    status = current.status()
    assert (status["kept"], status["never"]) == ("Up", "Created")
    assert copied(current, "kept", "/data") == data and data
    assert copied(current, "kept", "/srv") == own and own
    assert current.docker("exec", "kept", "test", "-e", "/etc/group", check=False).returncode == 1
    new = json.loads(current.docker("inspect", "kept", "never").stdout.decode())
    for was, now in zip(old, new):
        for key in ("Env", "Cmd", "Labels", "WorkingDir", "User"):
            assert was["Config"][key] == now["Config"][key], (was["Name"], key)
    assert current.docker("start", "-a", "never", check=False).returncode == 7
    current.docker("rm", "-f", "-v", "kept", "never")
    current.docker("volume", "rm", "vol")


# ---------------------------------------------------------------- the kit's own: an image that
# docker cannot save


def test_docker_save_loses_layers(current_labs):
    """What backup must find out: docker ends with 0, and the archive names blobs that are not in it
    (moby#49784)."""
    lab = current_labs("trixie", "containerd")
    image = image_without_layers(lab.engine)
    try:
        saved = members(lab.docker("save", image).stdout)
        (entry,) = json.loads(saved["manifest.json"][-1].decode())
        assert entry["RepoTags"] == [image] and entry["Layers"]
        assert not set(entry["Layers"]) & set(saved)
        lab.docker("start", "keeper")  # its own layers are there
        assert lab.docker("exec", "keeper", "echo", "here").stdout == b"here\n"
    finally:
        lab.docker("rm", "-f", "keeper")
        lab.docker("rmi", "-f", image)
        stop_registry(lab.engine)
