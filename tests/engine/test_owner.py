"""`owner` on real engines, overlay2 and vfs: the files against `docker inspect` and against `find`,
with the daemon up and stopped.

Every container and every image layer gets a file with a name of its own, made through docker;
`find` then says in which layer folder it lies, and `owner`, given that path, must name the very
container or image."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from common import PROGRAM, load_program
from conftest import Lab, not_here
from kit import CannotRun, PrivateEngine

BUILD = (
    "FROM ring/busybox\nRUN echo one > /built-one\nRUN --mount=type=cache,target=/c touch /c/x"
    " /built-two\n"
)


class Storage:
    """An engine with images of several layers, and containers in every state."""

    def __init__(self, engine, folder, driver):
        self.engine, self.lab, self.driver, self.stopped = (
            engine,
            Lab(engine, folder),
            driver,
            False,
        )
        self.module = load_program()
        self.markers = {}  # file name -> container name, or the image whose top layer has it
        docker = engine.docker
        self.lab.image("busybox")
        for number in range(3):
            base = "ring/stack:%d" % (number - 1) if number else "ring/busybox"
            docker(
                "run", "--network", "none", "--name", "made", base, "touch", "/layer-%d" % number
            )
            docker("commit", "made", "ring/stack:%d" % number)
            docker("rm", "made")
            self.markers["layer-%d" % number] = "ring/stack:%d" % number
        docker("tag", "ring/stack:2", "ring/other:latest")
        for name, image in (
            ("up", "ring/stack:2"),
            ("paused", "ring/stack:0"),
            ("down", "ring/busybox"),
        ):
            engine.run(image, "--name", name, command=("/bin/sleep", "1000"))
            docker("exec", name, "touch", "/own-" + name)
            self.markers["own-" + name] = name
        docker("pause", "paused")
        docker("kill", "down")
        engine.create("ring/stack:1", "--name", "created")
        docker(
            "run",
            "--network",
            "none",
            "--name",
            "orphaned",
            "ring/busybox",
            "touch",
            "/own-orphaned",
        )
        docker("commit", "orphaned", "ring/doomed")
        engine.create("ring/doomed", "--name", "imageless")
        docker("rm", "orphaned")
        docker("rmi", "-f", "ring/doomed")

    def owner(self, *words, **how):
        run = self.lab.dockfix("owner", "--json", *words, **how)
        doc = json.loads(run.out.decode("ascii"))
        assert doc["exit_code"] == run.rc
        return run.rc, doc["results"], {one["id"]: one for one in doc["findings"]}

    def ask(self, *words):
        """The rows of these words, as `owner` finds them, without the start of a program for each
        of hundreds of words."""
        search = self.module.owners_of(self.module.read_layers(self.engine.root), words)
        assert search.errors == [] and search.rows, words
        return search.rows

    def inspect(self, *names, kind="container"):
        return json.loads(self.engine.docker("inspect", "--type", kind, *names).stdout.decode())

    def all(self, *words):
        return self.engine.docker(*words).stdout.decode().split()

    def find(self, name):
        """Where the layers' folders hold a file of this name; mounted ones are not entered."""
        home = os.path.join(self.engine.root, self.driver)
        return (
            subprocess.check_output(
                ["find", home, "-xdev", "-name", name, "-not", "-path", "*/merged/*"]
            )
            .decode()
            .split()
        )


@pytest.fixture(scope="module", params=["overlay2", "vfs"])
def storage(request):
    engine, folder = PrivateEngine(extra=["--storage-driver", request.param]), tempfile.mkdtemp(
        prefix="dockfix-owner-"
    )
    try:
        engine.start()
    except CannotRun as reason:
        not_here(reason)
    try:
        yield Storage(engine, folder, request.param)
    finally:
        engine.stop()
        shutil.rmtree(folder)


def test_the_files_agree_with_docker_about_every_container(storage):
    rc, rows, findings = storage.owner()
    assert rc == 0 and not set(findings) & {
        "owner-differs",
        "owner-unread",
        "owner-unchecked",
        "engine-silent",
    }, findings
    found = {row["container"]["id"]: row for row in rows if row["role"] == "container"}
    inspected = storage.inspect(*storage.all("ps", "-aq", "--no-trunc"))
    assert set(found) == {one["Id"] for one in inspected} and len(inspected) == 5
    for one in inspected:
        row = found[one["Id"]]
        assert (row["driver"], "/" + row["container"]["name"]) == (
            one["GraphDriver"]["Name"],
            one["Name"],
        )
        assert [image["id"] for image in row["images"]] == [one["Image"].split(":")[1]]
        data = one["GraphDriver"]["Data"] or {}
        if storage.driver == "overlay2":
            assert (
                data["UpperDir"] in row["paths"] and row["layer"] == data["UpperDir"].split("/")[-2]
            )
            assert (row["paths"][0] == data["MergedDir"]) is one["State"]["Running"], row
            lower = [path.split("/")[-2] for path in data["LowerDir"].split(":")]
            owned = {row["layer"]: (row["role"], row["container"]) for row in rows}
            assert owned[lower[0]] == ("container-init", row["container"]) and all(
                owned[layer][0] == "image" for layer in lower[1:]
            )
    assert [row["layer"] for row in rows if row["role"] == "container-init"] == [
        row["layer"] + "-init" for row in rows if row["role"] == "container"
    ]


def test_the_files_agree_with_docker_about_every_image(storage):
    rows = storage.owner()[1]
    images = storage.inspect(*set(storage.all("images", "-aq", "--no-trunc")), kind="image")
    for one in images:
        own = {
            row["layer"]
            for row in rows
            if row["role"] == "image"
            and one["Id"].split(":")[1] in [image["id"] for image in row["images"]]
        }
        assert len(own) == len(one["RootFS"]["Layers"])
        for words in (
            one["RepoTags"],
            [one["Id"]],
            [one["Id"].split(":")[1][:20]],
            one["RootFS"]["Layers"],
        ):
            assert not words or {row["layer"] for row in storage.ask(*words)} == own, words
        if storage.driver == "overlay2":
            data = one["GraphDriver"]["Data"]
            told = [data["UpperDir"], *(data.get("LowerDir") or "").split(":")]
            assert own == {path.split("/")[-2] for path in told if path}
    assert (
        all(tags for tags in [image["tags"] for row in rows for image in row["images"]] if tags)
        and images
    )


def test_owner_agrees_with_find_about_every_file(storage):
    for marker, wanted in storage.markers.items():
        places = storage.find(marker)
        assert places, marker
        lowest = None
        for place in places:
            rows = storage.ask(place)
            assert len(rows) == 1, (place, rows)
            tags = {tag for image in rows[0]["images"] for tag in image["tags"]}
            if marker.startswith("own-"):
                assert (rows[0]["role"], rows[0]["container"]["name"]) == ("container", wanted)
            elif rows[0]["role"] == "image" and wanted in tags:
                lowest = place
        # vfs copies a layer's files into each layer above it; overlay2 has them once
        assert marker.startswith("own-") or (
            lowest and (len(places) == 1 or storage.driver == "vfs")
        ), places


def test_everything_docker_calls_a_container_by_leads_to_it(storage):
    for one in storage.inspect(*storage.all("ps", "-aq")):
        words = [
            one["Name"],
            one["Name"][1:],
            one["Id"],
            one["Id"][:12],
            os.path.join(storage.engine.root, "containers", one["Id"], "hostname"),
        ]
        for word in words:
            rows = storage.ask(word)
            assert [row["role"] for row in rows] == ["container", "container-init"] and rows[0][
                "container"
            ]["id"] == one["Id"]
        layer = rows[0]["layer"]
        words = [layer, layer[:14], layer + "-init", layer[:14] + "-init"] + rows[0]["paths"]
        if storage.driver == "overlay2":
            with open(os.path.join(storage.engine.root, "overlay2", layer, "link")) as f:
                link = f.read()
            data = one["GraphDriver"]["Data"]
            words += [
                "l/" + link,
                link,
                os.path.join(storage.engine.root, "overlay2", "l", link),
                data["MergedDir"] + "/etc",
                data["WorkDir"],
            ]
        for word in words:
            assert [row["layer"] for row in storage.ask(word)] == [
                layer + ("-init" if word.endswith("-init") else "")
            ], word
    rc, rows, findings = storage.owner("up")
    assert rc == 0 and [row["role"] for row in rows] == ["container", "container-init"]
    assert ("owner-overlay2" in findings) is (storage.driver == "overlay2")


def test_a_path_through_a_link_and_a_word_that_means_nothing(storage):
    link = os.path.join(storage.lab.folder, "docker")
    if not os.path.islink(link):
        os.symlink(storage.engine.root, link)
    place = storage.find("own-up")[0]
    assert (
        storage.owner(place.replace(storage.engine.root, link))[1][0]["container"]["name"] == "up"
    )
    os.symlink(place, link + ".file")
    assert storage.owner(link + ".file")[1][0]["container"]["name"] == "up"
    rc, rows, _ = storage.owner("up", "nonesuch")
    assert rc == 3 and len(rows) == 2
    assert storage.owner("nonesuch")[:2] == (2, [])


def test_the_build_cache_and_images_without_a_name_are_no_orphans(storage):
    try:
        storage.engine.build("ring/built", BUILD, storage.lab.new_folder())
    except CannotRun as reason:
        pytest.skip(str(reason))
    for _ in range(2):
        assert storage.owner("--orphans")[:2] == (0, [])
        assert all(
            row["note"] == "build cache"
            for row in storage.owner()[1]
            if row["role"] == "image" and not row["images"] and "stands" not in row["note"]
        )
        storage.engine.docker("rmi", "ring/built", check=False)
    assert sum(row["note"] == "build cache" for row in storage.owner()[1]) >= 2


def test_an_orphan_is_found_and_measured_and_left_where_it_is(storage):
    home = os.path.join(storage.engine.root, storage.driver) + (
        "/dir" if storage.driver == "vfs" else ""
    )
    folder = os.path.join(home, "f" * 64)
    os.makedirs(os.path.join(folder, "diff"))
    try:
        with open(os.path.join(folder, "diff", "data"), "wb") as f:
            f.write(b"x" * 3000000)
        rc, rows, findings = storage.owner("--orphans")
        du = int(subprocess.check_output(["du", "-s", "--block-size=1", folder]).split()[0])
        assert (
            rc == 0
            and [row["layer"] for row in rows] == ["f" * 64]
            and rows[0]["size"] == du >= 3000000
        )
        assert "owner-orphans" in findings and os.path.exists(os.path.join(folder, "diff", "data"))
    finally:
        shutil.rmtree(folder)


def test_files_that_docker_denies_are_a_finding(storage):
    """A container's record that the running daemon does not know of, as after a restored backup."""
    name = "e" * 64
    mounts = os.path.join(storage.engine.root, "image", storage.driver, "layerdb", "mounts")
    one = storage.inspect("down")[0]["Id"]
    try:
        shutil.copytree(os.path.join(mounts, one), os.path.join(mounts, name))
        with open(os.path.join(mounts, name, "mount-id"), "w") as f:
            f.write("d" * 64)
        os.unlink(os.path.join(mounts, name, "init-id"))
        shutil.copytree(
            os.path.join(storage.engine.root, "containers", one),
            os.path.join(storage.engine.root, "containers", name),
        )
        findings = storage.owner()[2]
        assert "docker does not know it" in findings["owner-differs"]["text"]
    finally:
        shutil.rmtree(os.path.join(mounts, name), ignore_errors=True)
        shutil.rmtree(os.path.join(storage.engine.root, "containers", name), ignore_errors=True)


def test_the_number_of_docker_calls_does_not_grow(storage):
    counts = []
    for _ in range(2):
        recorder = storage.lab.recorder()
        assert storage.lab.dockfix("owner", recorder=recorder).rc == 0
        counts.append([call.argv[0] for call in recorder.calls()])
        if len(counts) == 1:
            names = ["extra%d" % n for n in range(4)]
            for name in names:
                storage.engine.create("ring/busybox", "--name", name)
    storage.engine.docker("rm", *names)
    assert counts[0] == counts[1] == ["info", "ps", "inspect"]


def test_somebody_who_is_not_root_is_told_so(storage):
    user = [
        shutil.which("setpriv") or "/usr/bin/setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ]
    python = next(
        (
            one
            for one in (sys.executable, "/usr/bin/python3")
            if subprocess.call([*user, one, "-c", ""], stderr=subprocess.DEVNULL) == 0
        ),
        None,
    )
    if not python:
        pytest.skip(
            "another user cannot run a Python here: it lies below a directory that is closed to"
            " others"
        )
    with open(
        PROGRAM, "rb"
    ) as program:  # on standard input: the checkout may be closed to others too
        done = subprocess.run(
            [*user, python, "-", "--state", "/nonexistent", "owner", "--root", storage.engine.root],
            stdin=program,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=storage.engine.env(),
        )
    assert (
        done.returncode == 6
        and b"cannot be read: Permission denied" in done.stderr
        and b"root" in done.stderr
    ), done


def test_the_table_is_the_same_when_the_daemon_is_stopped(storage):
    """Last: it stops the daemon."""
    before = storage.owner("--root", storage.engine.root)[1]
    storage.engine.docker("unpause", "paused")
    storage.engine.docker("kill", "up", "paused")
    storage.engine.end(storage.engine.processes[1])
    rc, rows, _ = storage.owner("--root", storage.engine.root)

    def kept(rows):
        return {row["layer"]: (row["role"], row["container"], row["images"]) for row in rows}

    assert rc == 0 and kept(rows) == kept(before)
    rc, rows, findings = storage.owner()  # without --root: the host's own, which a test cannot know
    assert "engine-silent" in findings or rc == 6
    for marker, wanted in storage.markers.items():
        if marker.startswith("own-"):
            rows = storage.owner("--root", storage.engine.root, storage.find(marker)[0])[1]
            assert [row["container"]["name"] for row in rows] == [wanted]
