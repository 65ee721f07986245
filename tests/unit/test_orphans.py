"""The proof that a layer is an orphan: whatever record of a live or restorable layer is lost, that
layer is never called one, and what lost its record is named.  Roots are made by make_root.py; on a
real engine the same is tried in tests/engine/test_orphans.py."""

import json
import os
import shutil

import pytest

from make_root import NewRoot, OldRoot, digest, write
from test_owner import daemon, findings, graph, layer_of
import contextlib

BUILT = "x8cc0emfpq8hhwvx0gh5s6rtc"
BOLT = b"\0" * 16 + b"\xed\xda\x0c\xed\x02\0\0\0"


@pytest.fixture(autouse=True)
def no_wait(dockfix, monkeypatch):
    monkeypatch.setattr(dockfix, "LOOK_AGAIN_SECONDS", 0)


class Made:
    """A root with a live container of a tagged image, one of an image whose record was removed by
    force, one of an untagged image, a layer of BuildKit's, and one orphan."""

    def __init__(self, path, driver="overlay2", kind=NewRoot):
        self.root = root = kind(path, driver)
        self.driver = driver
        self.base = root.image(2, "base:1")
        self.app = root.image(2, "app:1", below=self.base)
        self.bare = root.image(1)
        self.live = root.container("live", self.app)
        self.other = root.container("other", self.bare)
        self.lost = root.orphan()

    def image_of(self, *parts):
        return self.root.at("image", self.driver, *parts)

    def chain(self, depth):
        """layerdb's folder of app's layer so many above the lowest."""
        chain, below = self.root.tops[self.app], []
        while chain:
            below.append(chain)
            chain = self.root.chains[chain][1]
        return self.image_of("layerdb", "sha256", below[::-1][depth])

    def mount(self, *parts):
        return self.image_of("layerdb", "mounts", self.live, *parts)

    def content(self, image):
        return self.image_of("imagedb", "content", "sha256", image)

    def needed(self):
        return {layer for layer, (role, _, _) in self.root.layers.items() if role != "orphan"}


def gone(*paths):
    for path in paths:
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def emptied(path):
    open(path, "w").close()


def untag(made, tags):
    made.root.tags = {tag: image for tag, image in made.root.tags.items() if tag not in tags}
    made.root.write_tags()


def forced(made):
    """The image of the live container was removed by force: the container alone keeps its
    layers."""
    gone(made.content(made.app), made.content(made.base))
    untag(made, ("app:1", "base:1"))


def lose_parent_of_mount(made):
    forced(made)
    gone(made.mount("parent"))


def lose_parent_of_chain(made):
    forced(made)
    gone(os.path.join(made.chain(3), "parent"))


def lose_chain_below_forced_image(made):
    forced(made)
    gone(made.chain(1))


def lose_untagged_image(made):
    write(made.image_of("imagedb", "metadata", "sha256", made.bare, "lastUpdated"), "2024")
    gone(made.content(made.bare), made.root.at("containers", made.other))
    gone(made.image_of("layerdb", "mounts", made.other))
    for layer in (layer_of(made.root, "other"), layer_of(made.root, "other") + "-init"):
        del made.root.layers[layer]
        gone(made.root.at("overlay2", layer))


def lose_tagged_image(made):
    gone(made.mount(), made.root.at("containers", made.live), made.content(made.app))
    for layer in (layer_of(made.root, "live"), layer_of(made.root, "live") + "-init"):
        del made.root.layers[layer]
        gone(made.root.at("overlay2", layer))


def lose_tags_and_image(text):
    def lose(made):
        lose_tagged_image(made)
        path = made.image_of("repositories.json")
        gone(path)
        if text is not None:
            write(path, text)

    return lose


def lose_container_folder(made):
    gone(made.root.at("containers", made.live))


def lose_build_database(made):
    made.root.make_layer(BUILT)
    made.root.layers[BUILT] = ("image", "", [])
    write(made.root.at("buildkit", "cache.db"), BOLT)


def garble_build_database(made):
    lose_build_database(made)
    write(made.root.at("buildkit", "snapshots.db"), b"\0" * 100000)


# What is lost, and whether the true orphan is still proved to be one.
WAYS = {
    "nothing": (lambda made: None, True),
    "layerdb/mounts/ID": (lambda made: gone(made.mount()), False),
    "mount-id": (lambda made: gone(made.mount("mount-id")), False),
    "mount-id empty": (lambda made: emptied(made.mount("mount-id")), False),
    "init-id": (lambda made: gone(made.mount("init-id")), True),
    "init-id empty": (lambda made: emptied(made.mount("init-id")), False),
    "parent": (lambda made: gone(made.mount("parent")), False),
    "parent, image removed by force": (lose_parent_of_mount, False),
    "parent empty": (lambda made: emptied(made.mount("parent")), False),
    "every mount": (lambda made: gone(made.image_of("layerdb", "mounts")), False),
    "the image's top chain": (lambda made: gone(made.chain(3)), False),
    "an intermediate chain": (lambda made: gone(made.chain(2)), False),
    "the lowest chain": (lambda made: gone(made.chain(0)), False),
    "a chain, image removed by force": (lose_chain_below_forced_image, False),
    "a chain's cache-id": (lambda made: gone(made.chain(1) + "/cache-id"), False),
    "a chain's cache-id empty": (lambda made: emptied(made.chain(1) + "/cache-id"), False),
    "a chain's parent": (lambda made: gone(made.chain(2) + "/parent"), False),
    "a chain's parent, image removed by force": (lose_parent_of_chain, False),
    "a chain's diff": (lambda made: gone(made.chain(2) + "/diff"), False),
    "a chain's size": (lambda made: gone(made.chain(2) + "/size"), True),
    "every chain": (lambda made: gone(made.image_of("layerdb", "sha256")), False),
    "layerdb": (lambda made: gone(made.image_of("layerdb")), False),
    "the image removed by force": (forced, True),
    "a tagged image's content": (lose_tagged_image, False),
    "an untagged image's content": (lose_untagged_image, False),
    "every image's content": (lambda made: gone(made.image_of("imagedb", "content")), False),
    "imagedb": (lambda made: gone(made.image_of("imagedb")), False),
    "an image's content and repositories.json": (lose_tags_and_image(None), False),
    "an image's content, repositories.json garbled": (lose_tags_and_image("{[\0"), False),
    "an image's content, repositories.json empty": (lose_tags_and_image(""), False),
    "config.v2.json": (
        lambda made: gone(made.root.at("containers", made.live, "config.v2.json")),
        True,
    ),
    "config.v2.json garbled": (
        lambda made: write(made.root.at("containers", made.live, "config.v2.json"), "\0{"),
        True,
    ),
    "config.v2.json and its mount": (
        lambda made: gone(made.root.at("containers", made.live, "config.v2.json"), made.mount()),
        False,
    ),
    "the container's folder": (lose_container_folder, True),
    "containers": (lambda made: gone(made.root.at("containers")), False),
    "every container's folder": (
        lambda made: [
            gone(made.root.at("containers", made.live), made.root.at("containers", made.other))
        ],
        True,
    ),
    "the image tree of this driver": (lambda made: gone(made.image_of()), False),
    "image of another driver": (
        lambda made: os.rename(made.image_of(), made.root.at("image", "aufs")),
        False,
    ),
    "image": (lambda made: gone(made.root.at("image")), False),
    "overlay2/l": (lambda made: gone(made.root.at("overlay2", "l")), True),
    "a layer's link": (
        lambda made: gone(made.root.at("overlay2", layer_of(made.root, "live"), "link")),
        True,
    ),
    "BuildKit's database": (lose_build_database, False),
    "BuildKit's database garbled": (garble_build_database, False),
}


# the records that say whose a layer is cannot be read at all: exit 6
NOTHING_PROVED = {
    "BuildKit's database garbled",
    "a chain's cache-id",
    "a chain's cache-id empty",
    "an image's content, repositories.json empty",
    "an image's content, repositories.json garbled",
    "containers",
    "every chain",
    "every image's content",
    "image",
    "image of another driver",
    "imagedb",
    "init-id empty",
    "layerdb",
    "mount-id",
    "mount-id empty",
    "parent empty",
    "the image tree of this driver",
}


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_lost_record_makes_no_layer_an_orphan(box, tmp_path, way):
    made = Made(tmp_path / "docker")
    lose, proved = WAYS[way]
    lose(made)
    before = sorted(os.walk(made.root.path))
    done = box.quick("owner", "--json", "--orphans", "--root", made.root.path)
    assert [row["layer"] for row in done.json["results"]] == ([made.lost] if proved else [])
    whole = box.quick("owner", "--json", "--root", made.root.path).json["results"]
    found = {row["layer"]: row["role"] for row in whole}
    assert set(found) >= made.needed()
    assert [layer for layer in made.needed() if found[layer] == "orphan"] == []
    # what cannot be told is not passed over in silence
    unknown = [layer for layer in found if found[layer] == "unknown"]
    if made.lost in unknown:
        assert done.rc == (6 if way in NOTHING_PROVED else 3) and done.json["findings"]
    assert sorted(os.walk(made.root.path)) == before


@pytest.mark.parametrize("driver", ["overlay", "overlay2", "aufs", "btrfs", "vfs", "devicemapper"])
def test_a_container_without_its_layer_record_is_named(box, tmp_path, driver):
    made = Made(tmp_path / "docker", driver)
    gone(made.mount())
    done = box.quick("owner", "--json", "--orphans", "--root", made.root.path)
    assert done.rc == 3 and done.json["results"] == []
    lost = findings(done)["layer-record-lost"]
    assert "container live has no layer record: %s is missing" % made.mount() in lost["text"]
    assert lost["remedy"].endswith(" owner --root " + made.root.path)
    whole = box.quick("owner", "--json", "--root", made.root.path).json["results"]
    layer = layer_of(made.root, "live")
    unknown = {row["layer"] for row in whole if row["role"] == "unknown"}
    assert unknown == {layer, layer + "-init", made.lost}
    asked = box.quick("owner", "--json", "--root", made.root.path, "live")
    assert asked.rc == 6 and asked.json["results"] == []
    assert made.mount() in asked.json["errors"][0]["msg"]
    assert "ctr" not in json.dumps(asked.json)
    table = box.quick("owner", "--root", made.root.path)
    assert b"\nunknown " in table.out and b"orphan" not in table.out.split(b"layers:")[0]


def test_a_lost_record_in_the_tree_of_remapped_users(box, tmp_path):
    made = Made(tmp_path / "docker" / "165536.165536")
    NewRoot(tmp_path / "docker", "overlay2").image(1, "a:1")
    gone(made.mount())
    done = box.quick("owner", "--json", "--orphans", "--root", str(tmp_path / "docker"))
    assert done.rc == 3 and done.json["results"] == []
    assert made.mount() in findings(done)["layer-record-lost"]["text"]


@pytest.mark.parametrize("what", ["parent", "tagged", "graph", "container"])
def test_lost_records_of_engines_before_1_10(box, tmp_path, what):
    root = OldRoot(tmp_path / "docker", "aufs")
    base = root.image(3, "base:1")
    live = root.container("live", base)
    root.orphan()
    lost = {
        "parent": root.at("graph", root.parents[base]),
        "tagged": root.at("graph", base),
        "graph": root.at("graph"),
        "container": root.at("aufs", "diff", live),
    }[what]
    gone(lost)
    done = box.quick("owner", "--json", "--orphans", "--root", root.path)
    # without graph/ nothing at all can be proved; each other loss is a finding of its own
    assert done.json["results"] == [] and done.rc == (6 if what == "graph" else 3)
    assert ("image/" in json.dumps(done.json["findings"])) is (what == "graph")
    assert (live in json.dumps(done.json)) is (what == "container")


def test_a_tag_of_an_image_whose_record_is_gone_is_named(box, tmp_path):
    made = Made(tmp_path / "docker")
    lose_tagged_image(made)
    text = findings(box.quick("owner", "--json", "--root", made.root.path))["owner-unread"]["text"]
    assert "app:1" in text and made.content(made.app) in text


@pytest.mark.parametrize(
    "table",
    [
        "36 25 0:40 / {path}/merged rw - overlay overlay rw,lowerdir={lower},upperdir={path}/diff",
        (
            "36 25 0:40 / / rw - overlay overlay"
            " rw,lowerdir=l/X,upperdir={name}/diff,workdir={name}/work"
        ),
        "36 25 8:1 {path} / rw - ext4 /dev/sda1 rw",
        "36 25 253:3 /rootfs / rw - ext4 /dev/mapper/docker-8:1-77-{name} rw",
        "36 25 0:44 / / rw - zfs tank/docker/{name} rw",
    ],
)
@pytest.mark.parametrize("init", ["", "-init"])
def test_a_layer_that_is_mounted_is_no_orphan(box, tmp_path, table, init):
    """In whatever way it is mounted, and whoever sees it: the container's folder and its layer
    record are both gone."""
    made = Made(tmp_path / "docker")
    name = digest("mounted")
    made.root.make_layer(name, True)
    made.root.make_layer(name + "-init", True)
    text = table.format(path=made.root.at("overlay2", name), name=name, lower="l/X") + "\n"

    def mounted(module):
        module.mount_tables = lambda: ["", text]

    done = box.quick("owner", "--json", "--orphans", "--root", made.root.path, prelude=mounted)
    assert [row["layer"] for row in done.json["results"]] == [made.lost]
    rows = box.quick("owner", "--json", "--root", made.root.path, prelude=mounted).json["results"]
    row = next(row for row in rows if row["layer"] == name + init)
    assert row["role"] == "unknown" and "mounted" in row["note"]


@pytest.mark.parametrize("links", [True, False])
def test_what_is_mounted_below_a_layer_by_its_short_name_is_no_orphan(box, tmp_path, links):
    made = Made(tmp_path / "docker")
    with open(made.root.at("overlay2", made.lost, "link")) as f:
        short = f.read()
    if not links:
        shutil.rmtree(made.root.at("overlay2", "l"))

    def mounted(module):
        module.mount_tables = lambda: ["1 2 0:4 / / rw - overlay overlay rw,lowerdir=l/%s" % short]

    done = box.quick("owner", "--json", "--orphans", "--root", made.root.path, prelude=mounted)
    assert done.json["results"] == []


@pytest.mark.parametrize("driver", ["overlay2", "overlay", "aufs"])
def test_what_another_layer_stands_on_is_no_orphan(box, tmp_path, driver):
    made = Made(tmp_path / "docker", driver)
    name = digest("below")
    made.root.make_layer(name)
    live = layer_of(made.root, "live")
    if driver == "overlay2":
        with open(made.root.at(driver, name, "link")) as f:
            write(made.root.at(driver, live, "lower"), "l/%s" % f.read())
    elif driver == "overlay":
        write(made.root.at(driver, live, "lower-id"), name)
    else:
        write(made.root.at(driver, "layers", live), name + "\n")
    done = box.quick("owner", "--json", "--orphans", "--root", made.root.path)
    assert [row["layer"] for row in done.json["results"]] == [made.lost]


def test_another_process_sees_a_mount_that_this_one_does_not(dockfix, tmp_path):
    """Each mount namespace is read, this process's too."""
    with open("/proc/self/mountinfo") as f:
        first = f.readline()
    assert any(first.split()[4] in text for text in dockfix.mount_tables())
    tables = dockfix.mount_tables()
    spaces = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            spaces.add(os.readlink("/proc/%s/ns/mnt" % pid))
    assert 1 <= len(tables) <= len(spaces) + 1


# ---------------------------------------------------------------------- a daemon that answers


@pytest.fixture
def made(box, tmp_path):
    made = Made(tmp_path / "docker")
    daemon(box, made.root)
    return made


def orphans(box):
    done = box.quick("owner", "--json", "--orphans")
    return [row["layer"] for row in done.json["results"]], done


def test_with_a_daemon_that_agrees_the_orphan_is_one(box, made):
    found, done = orphans(box)
    assert found == [made.lost] and done.rc == 0


def test_docker_names_the_layer_of_a_container_whose_record_is_gone(box, made):
    gone(made.mount())
    found, done = orphans(box)
    lost = findings(done)["layer-record-lost"]
    assert found == [] and done.rc == 3
    assert made.mount() in lost["text"] and "forgets it" in lost["text"]
    assert lost["remedy"] == "docker export -o {0}.tar {0}".format(made.live[:12])
    asked = box.quick("owner", "--json", "live")
    layer = layer_of(made.root, "live")
    assert asked.rc == 0 and [row["layer"] for row in asked.json["results"]] == [
        layer,
        layer + "-init",
    ]
    for row in asked.json["results"]:
        assert row["role"] == "unknown" and "live" in row["note"]
        assert row["container"] == {"id": made.live, "name": "live"}
    assert made.mount() in findings(asked)["layer-record-lost"]["text"]


def test_docker_knows_a_container_of_which_nothing_is_left_on_the_disk(box, made):
    gone(made.mount(), made.root.at("containers", made.live))
    found, done = orphans(box)
    assert found == [] and done.rc == 3
    assert made.root.at("containers", made.live) in findings(done)["layer-record-lost"]["text"]


def test_docker_knows_more_images_than_there_are_records(box, made):
    """The record of an image without a name, and of its layers, is gone; docker still has it in
    memory."""
    info = json.loads(box.world["info_json"])
    box.world["info_json"] = json.dumps(dict(info, Images=3))
    assert orphans(box)[0] == [made.lost]
    box.world["info_json"] = json.dumps(dict(info, Images=4))
    found, done = orphans(box)
    assert found == [] and done.rc == 3
    assert "4 images" in findings(done)["owner-unknown"]["text"]


def test_a_layer_record_whose_container_is_gone_is_an_orphan_only_if_docker_agrees(box, made):
    gone(made.root.at("containers", made.live))
    layer = layer_of(made.root, "live")
    assert orphans(box)[0] == []
    box.world["containers"] = [one for one in box.world["containers"] if one["name"] != "live"]
    assert sorted(orphans(box)[0]) == sorted([made.lost, layer, layer + "-init"])
    down = box.quick("owner", "--json", "--orphans", "--root", made.root.path)
    assert [row["layer"] for row in down.json["results"]] == [made.lost]


def test_docker_names_an_orphan_in_what_it_says_of_a_container(box, made):
    for one in box.world["containers"]:
        if one["name"] == "live":
            document = json.loads(one["json"])
            document["GraphDriver"]["Data"]["LowerDir"] = made.root.at(
                "overlay2", made.lost, "diff"
            )
            one["json"] = json.dumps(document)
    found, done = orphans(box)
    assert found == [] and done.rc == 3


def test_a_daemon_that_does_not_answer_in_the_middle(box, made):
    box.rule("inspect", err=b"Error response from daemon: oops\n", rc=1)
    found, done = orphans(box)
    assert found == [] and done.rc == 6
    assert "oops" in findings(done)["owner-unknown"]["text"]


def test_an_engine_on_another_host_is_not_mixed_with_the_files_of_this_one(box, made):
    info = json.loads(box.world["info_json"])
    box.world["info_json"] = json.dumps(dict(info, Name="elsewhere"))
    for words in ((), ("--orphans",), ("live",)):
        done = box.quick("owner", "--json", *words)
        assert done.rc == 6 and done.json["results"] == []
        assert "another host, elsewhere" in done.json["errors"][0]["msg"]


def test_what_is_removed_just_now_has_not_lost_its_record(box, made, dockfix, monkeypatch):
    """docker rm takes the layer record first, the container's folder last."""
    kept = str(made.mount()) + ".kept"
    os.rename(made.mount(), kept)
    monkeypatch.setattr(
        dockfix.time, "sleep", lambda seconds: gone(made.root.at("containers", made.live))
    )
    layers = dockfix.read_layers(made.root.path, follow=True)
    assert layers.lost == {}
    assert layers.rows and not [
        row
        for row in layers.rows
        if row["role"] == "orphan" and row["layer"].startswith(layer_of(made.root, "live"))
    ]


def test_graph_is_what_inspect_says(tmp_path):
    """The fixtures' own answer names the live layer."""
    made = Made(tmp_path)
    assert layer_of(made.root, "live") in graph(made.root, "live")["Data"]["UpperDir"]
