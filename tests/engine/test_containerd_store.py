"""What dockfix does not read yet, the containerd image store of a current engine, is unknown in
`storage`, `owner` and `reclaim`: never 0, and never "nothing".  Judged by what docker itself and
`du` say."""

import json
import os

import pytest

from conftest import current_lab, lab_without_containers

MEBI = 1 << 20
IN_THE_STORE = ("images", "unused_images", "dangling_images", "build_cache", "orphans")


@pytest.fixture(scope="module")
def store(current_labs):
    """An engine with the containerd image store, a running container with 7 MiB of its own, a
    stopped one, and an unused volume."""
    with lab_without_containers(current_labs("trixie", "containerd")) as lab:
        lab.run("web", image="busybox")
        lab.docker("exec", "web", "dd", "if=/dev/zero", "of=/own", "bs=1048576", "count=7")
        lab.run("old", image="busybox")
        lab.docker("exec", "old", "dd", "if=/dev/zero", "of=/own", "bs=1048576", "count=7")
        lab.docker("kill", "old")
        lab.docker("volume", "create", "spare")
        try:
            yield lab
        finally:
            lab.docker("volume", "rm", "-f", "spare")


@pytest.fixture
def current_lab_of_its_own():
    """Its daemon is killed and its root moved."""
    with current_lab("trixie", "containerd") as lab:
        yield lab


def ask(lab, *words, code=None):
    run = lab.dockfix(*words, "--json")
    doc = json.loads(run.out.decode("ascii"))
    assert doc["exit_code"] == run.rc and code in (None, run.rc), run
    return doc


def test_storage(store):
    one = ask(store, "storage", "--full", code=0)["results"][0]
    usage = one["usage"]
    for kind in IN_THE_STORE:
        assert (usage[kind]["size"], usage[kind]["complete"]) == (None, False), kind
    # docker's own figure: it counts an image once for each of its names
    counted = int(store.docker("info", "-f", "{{.Images}}").stdout)
    ids = set(store.docker("images", "-aq").stdout.split())
    assert usage["images"]["count"] == counted >= len(ids) >= 1
    assert usage["containers"]["count"] == 2 and usage["containers"]["size"] is None
    assert usage["stopped_containers"]["count"] == 1
    assert usage["stopped_containers"]["size"] is None
    assert usage["volumes"]["count"] == usage["unused_volumes"]["count"] == 1
    measured = store.engine.call("du", "-sx", "--block-size=1", "/var/lib/containerd").stdout
    assert abs(usage["containerd_store"]["size"] - int(measured.split()[0])) < MEBI


def test_a_remedy_that_works(store):
    doc = ask(store, "storage")
    remedy = [one["remedy"] for one in doc["findings"] if one["id"] == "containerd-store"]
    assert remedy == ["docker system df"]
    assert b"Images" in store.docker("system", "df").stdout


@pytest.mark.parametrize("words", [(), ("--orphans",), ("web",)])
def test_owner(store, words):
    doc = ask(store, "owner", *words, code=6)
    assert doc["results"] == [] and len(doc["errors"]) == 1


def test_reclaim_lists_what_docker_can_remove(store):
    doc = ask(store, "reclaim", "--images", "--unused", "--containers", "--dry-run")
    found = {row["target"]: row["size"] for row in doc["results"]}
    assert found["old"] is None and set(found.values()) == {None}
    assert doc["promised"] is None
    bare = ask(store, "reclaim", code=0)
    kinds = {row["category"] for row in bare["results"]}
    assert {"containers", "build-cache", "volumes"} <= kinds


def test_reclaim_removes_it(store):
    store.run("doomed", image="busybox")
    store.docker("kill", "doomed")
    doc = ask(store, "-y", "reclaim", "--containers", "--build-cache", "--older-than", "0s")
    done = {row["target"]: row["status"] for row in doc["results"]}
    assert done["doomed"] == done["old"] == "changed"
    assert done["BuildKit's cache"] == "unchanged"  # docker says that there is none
    assert set(store.status()) == {"web"}


@pytest.fixture
def member(store):
    """Runs dockfix as somebody who may speak to docker and read nothing of its root."""
    store.engine.call("chmod", "666", "/run/docker.sock")
    words = ["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-"]

    def run(*args):
        with open(os.path.join(os.path.dirname(__file__), "..", "..", "dockfix.py"), "rb") as f:
            done = store.engine.call(
                "setpriv",
                *words,
                "--state",
                "/nonexistent",
                *args,
                "--json",
                check=False,
                input=f.read(),
            )
        assert b"Traceback" not in done.stderr, done
        return done.returncode, json.loads(done.stdout.decode("ascii"))

    yield run
    store.engine.call("chmod", "660", "/run/docker.sock")


@pytest.mark.parametrize("words", [("reclaim", "--logs"), ("owner",), ("owner", "--orphans")])
def test_a_member_of_the_docker_group_is_told_what_cannot_be_read(member, words):
    code, doc = member(*words)
    assert code == 6 and doc["results"] == []
    assert "Permission denied" in doc["errors"][0]["msg"] and "sudo" in doc["errors"][0]["hint"]


def test_a_member_of_the_docker_group_sees_what_docker_can_remove(member):
    code, doc = member("reclaim")
    assert code == 3 and "logs" in doc["errors"][0]["msg"]
    assert {row["size"] for row in doc["results"]} == {None}


def test_relocate_says_what_stays(store):
    doc = ask(store, "relocate", "/srv/docker", "--dry-run")
    assert doc["exit_code"] == 0, doc  # a mount of docker's own below ROOT/rootfs is no foreign one
    assert doc["stays"]["path"] == "/var/lib/containerd" and doc["stays"]["size"] > MEBI
    assert [one["id"] for one in doc["findings"]].count("containerd-stays") == 1


def test_relocate_there_and_back_past_a_container_that_outlives_the_daemon(current_lab_of_its_own):
    """Docker's root moves, containerd's stays.  Where the daemon was killed and a container goes
    on, its mount below ROOT/rootfs stops the way back, by name; when it has ended, the way back is
    free, and its files are as they were."""
    lab = current_lab_of_its_own
    loop = "trap exit TERM; while :; do sleep 1; done"
    lab.run("web", "-v", "data:/v", image="busybox", command=("sh", "-c", loop))
    lab.docker("exec", "web", "sh", "-c", "echo precious > /own; echo kept > /v/f")
    doc = ask(lab, "-y", "relocate", "/srv/docker", code=0)
    assert doc["stays"]["path"] == "/var/lib/containerd"
    assert lab.docker("info", "-f", "{{.DockerRootDir}}").stdout.strip() == b"/srv/docker"
    assert lab.docker("exec", "web", "cat", "/own", "/v/f").stdout == b"precious\nkept\n"
    name, pid = doc["results"][0]["id"], lab.pid("web")
    mount = "/srv/docker/rootfs/overlayfs/" + lab.id("web")
    lab.call("sh", "-c", "kill -9 $(cat /var/run/docker.pid)")
    stuck = ask(lab, "-y", "rollback", name, code=7)
    assert mount in stuck["errors"][0]["msg"]
    assert os.path.exists(lab.engine.root("srv/docker/containers"))
    lab.call("sh", "-c", "kill -9 %d" % pid)
    ask(lab, "-y", "rollback", code=0)
    assert lab.docker("info", "-f", "{{.DockerRootDir}}").stdout.strip() == b"/var/lib/docker"
    assert lab.docker("exec", "web", "cat", "/own", "/v/f").stdout == b"precious\nkept\n"
