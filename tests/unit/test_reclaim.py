"""`reclaim`: its pure parts, and bad input. What it does to an engine is tried in
tests/engine/test_reclaim.py."""

import json
import os
import shutil

import pytest

from make_root import NewRoot, write


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("1970-01-01T00:00:10Z", 10),
        ("2024-01-31T12:00:00.123456789Z", 1706702400.123456789),
        ("2024-01-31T20:00:00+08:00", 1706702400),
        ("2024-01-31T07:30:00.5-04:30", 1706702400.5),
        ("0001-01-01T00:00:00Z", 0),
        ("", 0),
        (None, 0),
        ("2024-13-01T00:00:00Z", 0),
        ("2024-01-31T12:00:00", 0),
        ("2024-01-31T12:00:00Z; rm -rf", 0),
        (7, 0),
    ],
)
def test_instants_of_docker(dockfix, text, seconds):
    assert dockfix.parse_instant(text) == seconds


@pytest.mark.parametrize(
    "text, seconds", [("0s", 0), ("90s", 90), ("15m", 900), ("12h", 43200), ("30d", 2592000)]
)
def test_ages(dockfix, text, seconds):
    assert dockfix.parse_age(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1", "h", "-1h", "1w", "1h30m", "1.5h", "1h ", "\u0661h", "9" * 9 + "d"]
)
def test_ages_that_are_none(dockfix, text):
    with pytest.raises(dockfix.UsageError):
        dockfix.parse_age(text)


@pytest.mark.parametrize(
    "said, status",
    [
        (
            (
                "Error response from daemon: You cannot remove a running container %s. Stop the"
                " container before attempting removal"
            ),
            "skipped",
        ),
        (
            (
                'Error response from daemon: conflict: unable to remove repository reference "x"'
                " (must force) - container %s is using its referenced image"
            ),
            "skipped",
        ),
        ("Error response from daemon: remove %s: volume is in use - [abc]", "skipped"),
        (
            (
                'Error response from daemon: driver "devicemapper" failed to remove root filesystem'
                " for %s: device or resource busy"
            ),
            "failed",
        ),
        ("nothing that names it", "failed"),
    ],
)
def test_what_is_still_there_is_judged_by_dockers_words(dockfix, said, status):
    ident = "ab" * 32
    candidate = dockfix.Candidate("containers", "web", ident, (ident,), None, "")
    if "%s" in said:
        said = said % ident
    removal = dockfix.judge_remaining(candidate, "another line\n" + said)
    assert removal.status == status


@pytest.mark.parametrize(
    "words, told",
    [
        (["--containers", "--older-than", "1w"], "30d"),
        (["--logs", "--max-log", "5GB"], "5G"),
        (["--images", "--older-than", "1d"], "--older-than goes with --containers"),
        (["--containers", "--unused"], "--unused goes with --images"),
        (["stray"], "takes no arguments: stray"),
    ],
)
def test_slips_are_told_before_docker_is_asked(box, words, told):
    run = box.run("reclaim", "-y", *words)
    assert run.rc == 2 and told in run.err.decode(), run
    assert box.calls() == []


@pytest.mark.parametrize(
    "garbage", [b"[{}]", b'[{"Id": 7}]', b"nonsense", b'[{"Id": "x", "State": null, "Name": 3}]']
)
def test_a_garbage_docker_is_no_traceback(box, garbage):
    box.container("web")
    box.rule("inspect", out=garbage, rc=0)
    box.rule("images", out=b"", rc=0)
    run = box.quick("reclaim", "--json")
    assert run.rc == 6 and "not understood" in run.json["errors"][0]["msg"], run


def test_only_the_containers_own_mount_is_trimmed(dockfix, tmp_path, monkeypatch):
    """Where the container ended meanwhile, a plain folder of the host's disk is left at that
    path."""
    asked, found = [], tmp_path.stat().st_dev
    monkeypatch.setattr(
        dockfix.fcntl, "ioctl", lambda fd, *words: asked.append(dockfix.os.fstat(fd).st_ino)
    )
    with pytest.raises(FileNotFoundError):
        dockfix.trim_mount("self", str(tmp_path), "253:999")
    assert asked == []
    dockfix.trim_mount(
        "self", str(tmp_path), "%d:%d" % (dockfix.os.major(found), dockfix.os.minor(found))
    )
    assert asked == [tmp_path.stat().st_ino]


# ---------------------------------------------------------------------- what cannot be read is not
# nothing


DOWN = (
    b"Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon"
    b" running?\n"
)
STORE = [["driver-type", "io.containerd.snapshotter.v1"]]


class Engine:
    """A made root whose fake daemon has a stopped and a running container, an unused image without
    a name, and a volume."""

    def __init__(self, box, driver="overlay2", **info):
        self.box, self.root = box, NewRoot(box.at("root"), driver)
        self.image, self.bare = self.root.image(2, "a:1"), self.root.image(1)
        self.old = self.root.container("old", self.image)
        self.web = self.root.container("web", self.image)
        write(self.log(self.web), b"x" * 9000)
        write(self.log(self.old), b"x" * 9000)
        write(self.root.at("volumes", "data", "_data", "f"), b"x" * 50000)
        self.info(Driver=driver, **info)
        for name, ident, status in (
            ("old", self.old, "Exited (0) 3 days ago"),
            ("web", self.web, "Up 2 hours"),
        ):
            box.container(name, id=ident, status=status, inspect={"Image": "sha256:" + self.image})
        self.list_images({})
        mount = {"Name": "data", "Mountpoint": self.root.at("volumes", "data", "_data")}
        box.rule("volume", has="ls", out=b"data\n", rc=0)
        box.rule("volume", has="inspect", out=json.dumps([mount]).encode(), rc=0)

    def list_images(self, parents):
        """docker's answers on the images of the root. parents: {image: the one that its build
        began from}."""
        documents = []
        for image in self.root.diffs:
            names = sorted(name for name, of in self.root.tags.items() if of == image)
            document = {
                "Id": "sha256:" + image,
                "RepoTags": [name for name in names if "@" not in name],
                "RepoDigests": [name for name in names if "@" in name],
                "Parent": "sha256:" + parents[image] if image in parents else "",
                "RootFS": self.layers_of(image),
            }
            documents.append(document)
        ids = "".join("%s\n" % document["Id"] for document in documents)
        rules = [rule for rule in self.box.world["rules"] if not rule.get("of_images")]
        self.box.world["rules"] = rules
        self.box.rule("images", out=ids.encode(), rc=0, of_images=True)
        answer = json.dumps(documents).encode()
        self.box.rule("inspect", has="image", out=answer, rc=0, of_images=True)

    def layers_of(self, image):
        return {"Type": "layers", "Layers": ["sha256:" + one for one in self.root.diffs[image]]}

    def log(self, ident):
        return self.root.at("containers", ident, ident + "-json.log")

    def info(self, **more):
        document = {"ServerVersion": "20.10.24", "DockerRootDir": self.root.path, "OSType": "linux"}
        self.box.world["info_json"] = json.dumps(dict(document, **more))

    def to_the_store(self):
        """As dockerd leaves it with the containerd image store."""
        self.info(Driver="overlayfs", DriverStatus=STORE)
        shutil.rmtree(self.root.at("overlay2"))
        shutil.rmtree(self.root.at("image"))

    def ask(self, *words, **how):
        def proved(module):
            module.require_root_of_engine = lambda host, info, root: None
            module.running_daemons = list
            module.LOOK_AGAIN_SECONDS = 0
            module.configured_root = lambda: self.root.path

        return self.box.quick("reclaim", "--json", *words, prelude=proved, **how)


@pytest.fixture
def engine(box):
    return Engine(box)


def sizes(done):
    return {(row["category"], row["target"]): row["size"] for row in done.json["results"]}


def test_everything_is_measured_where_it_can_be_read(engine):
    done = engine.ask("--max-log", "1k")
    found = sizes(done)
    assert done.rc == 0 and done.json["promised"] > 0
    assert {kind for kind, _ in found} == {"logs", "containers", "images", "volumes"}
    assert None not in found.values() and found["volumes", "data"] >= 50000


def same_layers_as_a_named_image(root, image):
    return [root.image(0, below=image)], {}


def loaded_without_its_parent(root, image):
    """After a backup is restored no image has a record of what its build began from."""
    base = root.image(1)
    root.image(1, "app:1", below=base)
    return [base], {}


def a_step_of_a_build(root, image):
    base = root.image(1)
    app = root.image(1, "app:1", below=base)
    root.built_from(app, base)
    return [], {app: base}


def a_step_of_a_build_that_lost_its_name(root, image):
    base = root.image(1)
    app = root.image(1, below=base)
    root.built_from(app, base)
    return [app], {app: base}


def used_by_a_container(root, image):
    root.container("bare", root.image(1))
    return [], {}


def pulled_by_its_digest(root, image):
    root.image(1, "app@sha256:" + "1" * 64)
    return [], {}


@pytest.mark.parametrize(
    "situation",
    [
        same_layers_as_a_named_image,
        loaded_without_its_parent,
        a_step_of_a_build,
        a_step_of_a_build_that_lost_its_name,
        used_by_a_container,
        pulled_by_its_digest,
    ],
)
def test_storage_and_reclaim_mean_the_same_images(engine, situation):
    dangling, parents = situation(engine.root, engine.image)
    engine.list_images(parents)
    for name, ident in engine.root.names.items():
        if name == "bare":
            image = list(engine.root.diffs)[-1]
            document = {"Image": "sha256:" + image}
            engine.box.container(name, id=ident, status="Up 2 hours", inspect=document)
    wanted = {engine.bare, *dangling}

    def no_options(module):
        module.option_sources, module.running_daemons = (lambda top="/", unit="": []), list

    run = engine.box.quick("storage", "--json", "--quick", prelude=no_options)
    usage = json.loads(run.out.decode())["results"][0]["usage"]["dangling_images"]
    assert {row["id"] for row in usage["rows"]} == wanted
    assert usage["count"] == len(wanted)
    listed = engine.ask("--images", "-n").json["results"]
    assert {row["id"] for row in listed} == {"sha256:" + image for image in wanted}


@pytest.mark.parametrize("point", ["", "/nowhere"])
def test_what_is_not_mounted_any_more_is_not_trimmed(dockfix, tmp_path, point):
    with pytest.raises(FileNotFoundError, match="it is not mounted any more"):
        dockfix.trim_mount("self", str(tmp_path) + point, "253:99")


NAMELESS, NAMED = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.mark.parametrize(
    "tags, digests, stays",
    [
        ({}, {}, [NAMELESS, NAMED]),
        ({NAMELESS: ["<none>:<none>"]}, {NAMELESS: ["<none>@<none>"]}, [NAMELESS, NAMED]),
        ({NAMELESS: ["app:1"]}, {}, [NAMED]),
        ({}, {NAMELESS: ["app@sha256:" + "1" * 64]}, [NAMED]),
        ({NAMED: ["other:1"]}, {}, [NAMELESS]),
        ({NAMED: ["old:1", "other:1"]}, {}, [NAMELESS, NAMED]),
    ],
)
def test_an_image_that_has_got_another_name_meanwhile_stays(
    dockfix, monkeypatch, tags, digests, stays
):
    """The question may stand there for hours. By its id docker rmi removes an image of one tag."""
    known = {NAMED: ["old:1"]}
    known.update(tags)
    documents = []
    for ident in (NAMELESS, NAMED):
        names = known.get(ident), digests.get(ident)
        documents.append(dict(zip(("Id", "RepoTags", "RepoDigests"), (ident, *names))))
    monkeypatch.setattr(dockfix, "inspect_objects", lambda host, kind, ids: documents)
    candidates = [
        dockfix.Candidate("images", ident, ident, names, 1, "")
        for ident, names in ((NAMELESS, (NAMELESS,)), (NAMED, ("old:1",)))
    ]
    left = dockfix.left_in_place(dockfix.make_host(), candidates)
    assert [candidate.id for candidate in left] == stays


def test_on_the_containerd_store_nothing_is_0(engine):
    engine.to_the_store()
    done = engine.ask()
    found = sizes(done)
    image = "sha256:" + engine.bare[:12]
    assert found["containers", "old"] is None and found["images", image] is None
    assert found["build-cache", "BuildKit's cache"] is None
    assert found["volumes", "data"] >= 50000
    assert done.rc == 0 and done.json["promised"] is None
    text = engine.box.quick("reclaim").out.decode()
    assert "all of it: at least " in text and "build-cache" in text
    assert engine.ask("--images").json["promised"] is None


def test_a_container_without_its_layer_record_has_no_size(engine):
    shutil.rmtree(engine.root.at("image", "overlay2", "layerdb", "mounts", engine.old))
    assert sizes(engine.ask("--containers", "-n")) == {("containers", "old"): None}


@pytest.mark.parametrize("lost", ["content", "chain"])
def test_an_image_whose_records_are_not_whole_has_no_size(engine, lost):
    places = {
        "content": ("imagedb", "content", "sha256", engine.bare),
        "chain": ("layerdb", "sha256", engine.root.tops[engine.bare]),
    }
    path = engine.root.at("image", "overlay2", *places[lost])
    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    done = engine.ask("--images", "-n")
    assert list(sizes(done).values()) == [None] and done.json["promised"] is None


def test_the_build_cache_that_cannot_be_told_is_unknown(engine):
    write(engine.root.at("buildkit", "snapshots.db"), b"")
    assert sizes(engine.ask("--build-cache", "-n")) == {("build-cache", "BuildKit's cache"): None}
    shutil.rmtree(engine.root.at("buildkit"))
    done = engine.ask("--build-cache", "-n")
    assert done.rc == 0 and sizes(done) == {}


@pytest.mark.parametrize(
    "said, status",
    [
        (b"Total reclaimed space: 0B\n", "unchanged"),
        (b"ID  RECLAIMABLE  SIZE\nTotal:\t0B\n", "unchanged"),
        (b"Total:\t1.2MB\n", "changed"),
        (b"Total:\t10B\n", "changed"),
        (b"docker: 'builder' is not a docker command.\n", "failed"),
    ],
)
def test_docker_removes_a_build_cache_of_unknown_size(engine, said, status):
    engine.to_the_store()
    engine.box.rule("builder", out=said, rc=0)
    done = engine.ask("-y", "--build-cache")
    assert [row["status"] for row in done.json["results"]] == [status]
    assert ["builder", "prune", "-a", "-f"] in [call.words for call in engine.box.calls()]


def unreadable(engine):
    """The containers' folder as somebody who is not root finds it."""
    shutil.rmtree(engine.root.at("containers"))
    write(engine.root.at("containers"))


def no_folder(engine):
    shutil.rmtree(engine.root.at("containers"))


def no_root(engine):
    shutil.rmtree(engine.root.path)


def another_host(engine):
    engine.info(Driver="overlay2", Name="elsewhere")


def another_root(engine):
    for name in os.listdir(engine.root.at("containers")):
        os.rename(engine.root.at("containers", name), engine.root.at("containers", "f" * 64 + name))


AWAY = {
    unreadable: "Not a directory",
    no_folder: "No such file",
    no_root: "is not there",
    another_host: "another host, elsewhere",
    another_root: "none of docker's containers has a folder",
}


@pytest.mark.parametrize("away", sorted(AWAY, key=lambda one: one.__name__))
@pytest.mark.parametrize("words", [("--logs",), ("--logs", "-y"), ("--logs", "-n")])
def test_logs_that_cannot_be_read_are_not_nothing(engine, away, words):
    away(engine)
    done = engine.ask(*words)
    assert done.rc == 6 and done.json["results"] == []
    assert AWAY[away] in done.json["errors"][0]["msg"] and done.json["errors"][0]["hint"]
    text = engine.box.quick("reclaim", *words)
    assert b"nothing to reclaim" not in text.out + text.err


@pytest.mark.parametrize("away", [no_root, another_host])
def test_what_docker_itself_can_remove_is_listed_with_unknown_sizes(engine, away):
    away(engine)
    done = engine.ask()
    found = sizes(done)
    assert done.rc == 3 and len(done.json["errors"]) == 1 and done.json["errors"][0]["code"] == 6
    assert {kind for kind, _ in found} == {"containers", "images", "build-cache", "volumes"}
    assert set(found.values()) == {None} and done.json["promised"] is None
    text = engine.box.quick("reclaim")
    assert b"all of it: unknown" in text.out and text.rc == 3


def test_one_category_that_cannot_be_read_does_not_stop_the_others(engine):
    another_host(engine)
    engine.box.rule("rm", out=b"", rc=0, remove="old")
    done = engine.ask("-y", "--logs", "--containers")
    assert [(row["target"], row["status"]) for row in done.json["results"]] == [("old", "changed")]
    assert done.rc == 3 and "logs" in done.json["errors"][0]["msg"]
    assert done.json["freed"] is None  # the disk of this host tells nothing of that one's


def test_with_the_daemon_down_logs_are_still_cut(engine):
    engine.box.rule("info", rc=1, err=DOWN)
    done = engine.ask("-y", "--logs", "--max-log", "1k")
    assert done.rc == 0 and {row["target"] for row in done.json["results"]} == {"old", "web"}
    assert os.path.getsize(engine.log(engine.web)) == 0


def test_with_the_daemon_down_and_no_root_it_is_not_nothing(engine):
    engine.box.rule("info", rc=1, err=DOWN)
    no_root(engine)
    done = engine.ask("-y", "--logs")
    assert done.rc == 6 and "is not there" in done.json["errors"][0]["msg"]


def test_nothing_is_nothing_where_all_was_read(engine):
    done = engine.ask("-y", "--logs")
    assert done.rc == 0 and done.json["results"] == [] and done.json["errors"] == []


def test_a_running_container_whose_mount_is_not_found_is_not_passed_over(box):
    engine = Engine(box, "devicemapper")
    for one in box.world["containers"]:
        document = json.loads(one["json"])
        data = {"DeviceName": "docker-8:1-77-" + one["id"], "DeviceId": "3"}
        one["json"] = json.dumps(dict(document, GraphDriver={"Name": "devicemapper", "Data": data}))
    done = engine.ask("-y", "--trim")
    assert done.rc == 6 and "not trimmed: web" in done.json["errors"][0]["msg"]
