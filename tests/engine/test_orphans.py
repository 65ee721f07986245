"""The layer of a live container is never called an orphan, whichever of its records is lost: on a
real engine, overlay2 and vfs, with the daemon up, and after a restart that forgot the container."""

import glob
import json
import os
import shutil
import tempfile

import pytest

from conftest import Lab, not_here
from common import wait_until
from kit import CannotRun, PrivateEngine


class House:
    """One engine with a live container that wrote a file of its own, and one leftover folder that
    really is nobody's."""

    def __init__(self, engine, folder, driver):
        self.engine, self.lab, self.driver = engine, Lab(engine, folder), driver
        self.root, self.aside = engine.root, os.path.join(folder, "aside")
        self.lab.image("busybox")
        engine.docker("run", "--name", "made", "--network", "none", "ring/busybox", "touch", "/own")
        engine.docker("commit", "made", "ring/app")
        engine.docker("rm", "made")
        engine.run("ring/app", "--name", "live", command=("/bin/sleep", "1000"))
        engine.docker("exec", "live", "sh", "-c", "echo precious > /precious")
        self.id = self.lab.id("live")
        self.image = self.inspect("live")["Image"].split(":")[1]
        self.own_layers = self.layers_of_live()
        place = "vfs/dir" if driver == "vfs" else driver
        self.leftover = os.path.join(self.root, place, "f" * 64)
        os.makedirs(os.path.join(self.leftover, "diff"))

    def inspect(self, name):
        return json.loads(self.engine.docker("inspect", name).stdout.decode())[0]

    def layers_of_live(self):
        """Found by the file that was written inside, not by any record."""
        place = os.path.join(self.root, "vfs/dir" if self.driver == "vfs" else self.driver)
        tail = "precious" if self.driver == "vfs" else "diff/precious"
        found = glob.glob(os.path.join(glob.escape(place), "*", tail))
        names = {os.path.relpath(path, place).split("/")[0] for path in found}
        assert len(names) == 1
        return names | {name + "-init" for name in names}

    def layerdb(self, *parts):
        return os.path.join(self.root, "image", self.driver, "layerdb", *parts)

    def imagedb(self, *parts):
        return os.path.join(self.root, "image", self.driver, "imagedb", *parts)

    def ask(self, *words, code=None):
        run = self.lab.dockfix(*words, "--json")
        doc = json.loads(run.out.decode("ascii"))
        assert doc["exit_code"] == run.rc and code in (None, run.rc), run
        return doc

    def orphans(self, code=None):
        doc = self.ask("owner", "--orphans", code=code)
        assert all(row["role"] == "orphan" for row in doc["results"])
        return {row["layer"] for row in doc["results"]}

    def restart(self):
        words = self.engine.processes[1].args
        self.engine.end(self.engine.processes.pop(1))
        self.engine.spawn("dockerd", words)
        wait_until(
            lambda: self.engine.alive()
            and self.engine.docker("version", check=False).returncode == 0,
            "answer from dockerd",
            120,
        )

    def without(self, *paths):
        return Without(self.aside, paths)


class Without:
    """The paths are elsewhere meanwhile."""

    def __init__(self, aside, paths):
        self.aside, self.paths = aside, paths

    def __enter__(self):
        os.makedirs(self.aside)
        for number, path in enumerate(self.paths):
            shutil.move(path, os.path.join(self.aside, str(number)))

    def __exit__(self, *exc):
        for number, path in enumerate(self.paths):
            shutil.move(os.path.join(self.aside, str(number)), path)
        os.rmdir(self.aside)


@pytest.fixture(scope="module", params=["overlay2", "vfs"])
def house(request):
    engine = PrivateEngine(extra=["--storage-driver", request.param])
    folder = tempfile.mkdtemp(prefix="dockfix-orphans-")
    try:
        engine.start()
    except CannotRun as reason:
        not_here(reason)
    try:
        yield House(engine, folder, request.param)
    finally:
        engine.stop()
        shutil.rmtree(folder)


def test_a_whole_root_has_the_one_orphan(house):
    assert house.orphans(code=0) == {"f" * 64}


def test_a_lost_layer_record_is_named_everywhere(house):
    record = house.layerdb("mounts", house.id)
    told = "container live has no layer record: %s is missing" % record
    with house.without(record):
        assert house.orphans(code=3) == set()
        whole = house.ask("owner", code=0)
        roles = {row["layer"]: row["role"] for row in whole["results"]}
        assert {roles[layer] for layer in house.own_layers} == {"unknown"}
        for words in (("owner",), ("owner", "--orphans"), ("storage", "--full")):
            doc = house.ask(*words)
            texts = [one["text"] for one in doc["findings"] if one["id"] == "layer-record-lost"]
            assert len(texts) == 1 and told in texts[0], (words, doc["findings"])
        orphans = doc["results"][0]["usage"]["orphans"]
        assert (orphans["count"], orphans["size"], orphans["complete"]) == (None, None, False)
        asked = house.ask("owner", "live")
        assert record in json.dumps(asked) and "ctr" not in json.dumps(asked)
        if house.driver == "overlay2":  # docker inspect says nothing of vfs
            assert {row["layer"] for row in asked["results"]} == house.own_layers
        else:
            assert asked["exit_code"] == 6 and asked["results"] == []
        target = tempfile.mkdtemp(prefix="kept-", dir=house.lab.folder)
        kept = house.ask("backup", target)
        assert [one for one in kept["findings"] if told in one["text"]], kept


def test_the_remedy_saves_the_files_while_docker_still_has_the_container(house):
    with house.without(house.layerdb("mounts", house.id)):
        doc = house.ask("owner")
        remedy = next(one for one in doc["findings"] if one["id"] == "layer-record-lost")["remedy"]
        words = remedy.split()
        assert words[:3] == ["docker", "export", "-o"]
        words[3] = os.path.join(house.lab.folder, words[3])
        house.engine.docker(*words[1:])
        with open(words[3], "rb") as f:
            assert b"precious\n" in f.read()


LOST = {
    "mount-id": lambda house: [house.layerdb("mounts", house.id, "mount-id")],
    "parent and the image": lambda house: [
        house.layerdb("mounts", house.id, "parent"),
        house.imagedb("content", "sha256", house.image),
    ],
    "every mount": lambda house: [house.layerdb("mounts")],
    "the image": lambda house: [house.imagedb("content", "sha256", house.image)],
    "a chain": lambda house: sorted(glob.glob(house.layerdb("sha256", "*")))[:1],
    "every chain's parent": lambda house: glob.glob(house.layerdb("sha256", "*", "parent")),
    "containers/ID": lambda house: [os.path.join(house.root, "containers", house.id)],
    "containers/ID and its mount": lambda house: [
        os.path.join(house.root, "containers", house.id),
        house.layerdb("mounts", house.id),
    ],
    "config.v2.json and its mount": lambda house: [
        os.path.join(house.root, "containers", house.id, "config.v2.json"),
        house.layerdb("mounts", house.id),
    ],
    "repositories.json and the image": lambda house: [
        os.path.join(house.root, "image", house.driver, "repositories.json"),
        house.imagedb("content", "sha256", house.image),
    ],
    "image": lambda house: [os.path.join(house.root, "image")],
}


@pytest.mark.parametrize("way", sorted(LOST))
def test_no_lost_record_makes_a_live_layer_an_orphan(house, way):
    paths = LOST[way](house)
    assert paths and all(os.path.exists(path) for path in paths)
    with house.without(*paths):
        assert not house.orphans() & house.own_layers
        rows = house.ask("owner", "--root", house.root)["results"]
        wrong = [row for row in rows if row["role"] == "orphan" and row["layer"] != "f" * 64]
        assert wrong == []
    assert house.orphans(code=0) == {"f" * 64}


def test_after_a_restart_that_forgot_the_container(house):
    """Last: the daemon does not list it any more, nothing has its layer mounted, and its files are
    still there."""
    record = house.layerdb("mounts", house.id)
    with house.without(record):
        house.restart()
        assert "live" not in house.lab.status()
        assert house.orphans(code=3) == set()
        doc = house.ask("owner", "live")
        assert doc["exit_code"] == 6 and record in doc["errors"][0]["msg"]
        finding = [one for one in doc["findings"] if one["id"] == "layer-record-lost"]
        assert "does not know it" in finding[0]["text"]
    house.restart()
    assert house.orphans(code=0) == {"f" * 64}
    assert house.lab.status() == {"live": "Exited"}
