"""The layer table: whose each layer below a Docker root is, read from roots of every driver and
engine (make_root.py), whole or damaged."""

import functools
import json
import os
import shutil
import tarfile

import pytest

from make_root import DRIVERS, NewRoot, OldRoot, digest, write

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CORPUS = [
    os.path.join(above, "shared", "corpus")
    for above in (os.path.dirname(ROOT), os.path.dirname(os.path.dirname(ROOT)))
]  # beside the checkout, or its folder
KINDS = [(NewRoot, driver) for driver in DRIVERS] + [
    (OldRoot, driver) for driver in ("devicemapper", "overlay", "aufs", "btrfs", "zfs", "vfs")
]


def populate(root):
    base = root.image(2, "busybox:latest", "busybox:1")
    app = root.image(2, "example.org:5000/app:v2", below=base)
    bare = root.image(1)
    for name, image in (("web", app), ("db", base), ("odd", bare)):
        root.container(name, image)
    root.orphan()
    return root


def table(layers):
    """{layer: (role, container's name, ids of images)}, without the pool's base device."""
    return {
        row["layer"]: (
            row["role"],
            (row["container"] or {"name": ""})["name"],
            [image["id"] for image in row["images"]],
        )
        for row in layers.rows
        if row["layer"] != "base"
    }


def wanted(root):
    return {
        layer: (role, name, sorted(images)) for layer, (role, name, images) in root.layers.items()
    }


def roles(layers):
    return {row["layer"]: row["role"] for row in layers.rows}


def as_known(root, layers):
    found = {
        layer: (role, name, sorted(images)) for layer, (role, name, images) in table(layers).items()
    }
    assert found == wanted(root)


@pytest.mark.parametrize("kind, driver", KINDS, ids=lambda one: getattr(one, "__name__", one))
def test_every_driver_before_and_since_1_10(dockfix, tmp_path, kind, driver):
    root = populate(kind(tmp_path, driver))
    layers = dockfix.read_layers(str(tmp_path))
    as_known(root, layers)
    assert layers.unread == {}
    tags = {
        tag: image["id"] for row in layers.rows for image in row["images"] for tag in image["tags"]
    }
    assert tags == root.tags
    for row in layers.rows:
        assert row["driver"] == driver and (
            row["layer"] == "base" or root.paths[row["layer"]] in row["paths"]
        )
        assert all(os.path.exists(path) for path in row["paths"])
    assert {layers.containers[one].name: one for one in layers.containers} == root.names


def test_devicemapper_rows_have_device_and_device_id(dockfix, tmp_path):
    root = populate(NewRoot(tmp_path, "devicemapper"))
    found = os.stat(root.at("devicemapper"))
    prefix = "docker-%d:%d-%d-" % (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)
    for row in dockfix.read_layers(str(tmp_path)).rows:
        with open(root.at("devicemapper", "metadata", row["layer"])) as f:
            assert (
                row["device_id"] == json.load(f)["device_id"]
                and row["device"] == prefix + row["layer"]
            )
    base = [row for row in dockfix.read_layers(str(tmp_path)).rows if row["layer"] == "base"]
    assert [(row["role"], row["device_id"]) for row in base] == [
        ("image", 1)
    ] and "base device" in base[0]["note"]


def test_a_device_that_the_driver_will_delete_is_said(dockfix, tmp_path):
    root = populate(NewRoot(tmp_path, "devicemapper"))
    layer = root.orphan()
    write(root.at("devicemapper", "metadata", layer), '{"device_id":77,"deleted":true}')
    row = next(row for row in dockfix.read_layers(str(tmp_path)).rows if row["layer"] == layer)
    assert row["device_id"] == 77 and "delete" in row["note"]


def test_two_drivers_in_one_root_and_a_graph_left_by_a_migration(dockfix, tmp_path):
    new, other = populate(NewRoot(tmp_path, "overlay2")), populate(NewRoot(tmp_path, "aufs"))
    write(str(tmp_path / "graph" / digest("old") / "json"), json.dumps({"id": digest("old")}))
    found = {
        layer: (role, name, sorted(images))
        for layer, (role, name, images) in table(dockfix.read_layers(str(tmp_path))).items()
    }
    assert found == dict(wanted(new), **wanted(other))


def test_remapped_users_have_a_tree_of_their_own(dockfix, tmp_path):
    main, remapped = populate(NewRoot(tmp_path, "overlay2")), populate(
        NewRoot(tmp_path / "165536.165536", "overlay2")
    )
    found = {
        layer: (role, name, sorted(images))
        for layer, (role, name, images) in table(dockfix.read_layers(str(tmp_path))).items()
    }
    assert found == dict(wanted(main), **wanted(remapped))
    as_known(remapped, dockfix.read_layers(str(tmp_path / "165536.165536")))


def test_a_container_keeps_the_layers_of_an_image_that_is_gone(dockfix, tmp_path):
    root = NewRoot(tmp_path, "overlay2")
    image = root.image(3, "gone:latest")
    root.container("web", image)
    os.unlink(root.at("image", "overlay2", "imagedb", "content", "sha256", image))
    found = dockfix.read_layers(str(tmp_path))
    assert sorted(roles(found).values()) == [
        "container",
        "container-init",
        "image",
        "image",
        "image",
    ]
    assert all(
        "stands on it" in row["note"] and row["images"] == []
        for row in found.rows
        if row["role"] == "image"
    )


def test_a_layer_that_no_image_has_is_an_orphan_and_so_is_the_mount_of_a_container_that_is_gone(
    dockfix, tmp_path
):
    root = NewRoot(tmp_path, "overlay2")
    image, kept = root.image(1), root.image(1)
    web = root.container("web", kept)
    os.unlink(root.at("image", "overlay2", "imagedb", "content", "sha256", image))
    shutil.rmtree(root.at("containers", web))
    found = dockfix.read_layers(str(tmp_path))
    assert sorted(roles(found).values()) == ["image", "orphan", "orphan", "orphan"]
    assert {row["container"]["id"] for row in found.rows if row["container"]} == {web}


def test_a_layer_whose_folder_is_missing_is_said(dockfix, tmp_path):
    root = populate(NewRoot(tmp_path, "overlay2"))
    layer = next(name for name, (role, _, _) in root.layers.items() if role == "image")
    shutil.rmtree(root.at("overlay2", layer))
    row = next(row for row in dockfix.read_layers(str(tmp_path)).rows if row["layer"] == layer)
    assert row["paths"] == [] and row["role"] == "image" and "missing" in row["note"]


def test_the_build_cache_is_no_orphan(dockfix, tmp_path):
    root = populate(NewRoot(tmp_path, "overlay2"))
    cached, lost = "x8cc0emfpq8hhwvx0gh5s6rtc", "t3zu8ahtznzq1bslt2ja9nyk2"
    for name in (cached, lost):
        root.make_layer(name)
    image = root.image(1)
    os.unlink(root.at("image", "overlay2", "imagedb", "content", "sha256", image))
    database = (
        b"\0" * 16
        + b"\xed\xda\x0c\xed\x02\0\0\0"  # bbolt's first page: its magic and version
        + b"\0\1" * 40
        + b"abc"
        + cached.encode()
        + b"chainidsha256:"
        + root.tops[image].encode()
        + b"\xff"
    )
    write(root.at("buildkit", "snapshots.db"), database)
    found = {row["layer"]: row for row in dockfix.read_layers(str(tmp_path)).rows}
    committed = root.chains[root.tops[image]][0]
    assert [found[name]["role"] for name in (cached, committed, lost)] == [
        "image",
        "image",
        "orphan",
    ]
    assert found[cached]["note"] == found[committed]["note"] == "build cache"


def hostile_fifo(path):
    os.mkfifo(path)


def hostile_link(path):
    os.symlink("/etc/passwd", path)


def hostile_folder(path):
    os.mkdir(path)


def hostile_giant(path):
    with open(path, "wb") as f:
        f.truncate(5 << 30)


def hostile_empty(path):
    open(path, "wb").close()


def hostile_garbage(path):
    write(path, b"\0\xff{[" * 50)


def hostile_depth(path):
    write(path, b'{"a":' + b"[" * 100000)


def hostile_escape(path):
    write(path, "../../../../etc\n")


HOSTILE = (
    hostile_fifo,
    hostile_link,
    hostile_folder,
    hostile_giant,
    hostile_empty,
    hostile_garbage,
    hostile_depth,
    hostile_escape,
)
RECORDS = (
    "image/overlay2/layerdb/sha256/CHAIN/cache-id",
    "image/overlay2/layerdb/mounts/CONTAINER/mount-id",
    "image/overlay2/layerdb/mounts/CONTAINER/init-id",
    "image/overlay2/imagedb/content/sha256/IMAGE",
    "buildkit/snapshots.db",
)


@pytest.mark.parametrize("put", HOSTILE, ids=lambda put: put.__name__)
@pytest.mark.parametrize("record", RECORDS)
def test_a_hostile_record_hides_orphans_and_nothing_else(dockfix, tmp_path, put, record):
    root = populate(NewRoot(tmp_path, "overlay2"))
    image = root.tags["busybox:latest"]
    path = root.at(
        *record.replace("CHAIN", root.tops[image])
        .replace("CONTAINER", root.names["web"])
        .replace("IMAGE", image)
        .split("/")
    )
    if os.path.exists(path):
        os.unlink(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    put(path)
    found = dockfix.read_layers(str(tmp_path))
    assert "orphan" not in roles(found).values()
    known = {layer: one for layer, one in table(found).items() if one[0] != "unknown"}
    for layer, (role, name, images) in known.items():
        assert (role, name) == root.layers[layer][:2] and set(images) <= set(root.layers[layer][2])
    if not record.startswith("buildkit"):
        assert (
            len(found.unread) == 1 and os.path.dirname(path) in next(iter(found.unread)) + "/"
        ), found.unread
        assert len(known) >= len(root.layers) - 3
    else:
        assert list(found.unread) == [path]


@pytest.mark.parametrize("put", HOSTILE, ids=lambda put: put.__name__)
def test_a_hostile_name_hides_no_orphan(dockfix, tmp_path, put):
    """A container without a readable configuration is still known by its id, which its layer record
    has."""
    root = populate(NewRoot(tmp_path, "overlay2"))
    path = root.at("containers", root.names["web"], "config.v2.json")
    os.unlink(path)
    put(path)
    found = dockfix.read_layers(str(tmp_path))
    assert roles(found) == {layer: role for layer, (role, _, _) in root.layers.items()}
    assert len(found.unread) == 1


@pytest.mark.parametrize(
    "folder",
    (
        "containers",
        "image",
        "image/overlay2",
        "image/overlay2/layerdb",
        "image/overlay2/layerdb/sha256",
        "image/overlay2/layerdb/mounts",
        "image/overlay2/imagedb",
        "overlay2",
    ),
)
@pytest.mark.parametrize("way", ("link", "gone", "fifo"))
def test_a_folder_that_is_a_link_or_gone_hides_orphans(dockfix, tmp_path, folder, way):
    root = populate(NewRoot(tmp_path / "root", "overlay2"))
    os.rename(root.at(folder), str(tmp_path / "away"))
    if way == "link":
        os.symlink(str(tmp_path / "away"), root.at(folder))
    elif way == "fifo":
        os.mkfifo(root.at(folder))
    found = dockfix.read_layers(root.path)
    if not (
        way == "gone" and folder.endswith("mounts")
    ):  # a root whose containers are all gone has no mounts either
        assert "orphan" not in roles(found).values()
    # a root without containers has no mounts; one without the driver's folder has no layers
    empty = way == "gone" and folder in ("image/overlay2/layerdb/mounts", "overlay2")
    assert bool(found.unread) is not empty
    if way == "link" and "/" not in folder:
        followed = dockfix.read_layers(
            root.path, follow=True
        )  # the daemon's own root: its administrator moved a part away
        as_known(root, followed)
    os.rename(str(tmp_path / "away"), root.at(folder)) if way == "gone" else None


def test_a_root_that_is_not_there_or_no_folder_is_the_environments_fault(dockfix, tmp_path):
    write(str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "file", "empty"):
        with pytest.raises(dockfix.EnvironmentFault) as fault:
            dockfix.read_layers(str(tmp_path / name))
        assert name in fault.value.msg and fault.value.hint
    (tmp_path / "empty" / "containers").mkdir()  # an engine that has made nothing yet
    assert dockfix.read_layers(str(tmp_path / "empty")).rows == []


def test_names_that_are_no_layers_are_left_alone(dockfix, tmp_path):
    root = populate(NewRoot(tmp_path, "overlay2"))
    for name in ("backup", "lost+found", "\x1b[2J", "a" * 64 + "x"):
        os.makedirs(root.at("overlay2", name))
        os.makedirs(root.at("containers", name))
        os.makedirs(root.at("image", "overlay2", "layerdb", "sha256", name))
    as_known(root, dockfix.read_layers(str(tmp_path)))


def test_hostile_container_names_stay_as_they_are(dockfix, tmp_path):
    root = NewRoot(tmp_path, "overlay2")
    image = root.image(1, "evil\x1b]0;x\x07:latest")
    names = ["a\x1b[2Jb", "\u202etxt", "caf\u00e9", "x" * 5000, "\udcff"]
    for name in names:
        root.container(name, image)
    as_known(root, dockfix.read_layers(str(tmp_path)))


def test_a_cycle_of_parents_ends(dockfix, tmp_path):
    root = NewRoot(tmp_path / "new", "overlay2")
    image = root.image(2, "a:1")
    root.container("web", image)
    bottom = root.chains[root.tops[image]][1]
    write(
        root.at("image", "overlay2", "layerdb", "sha256", bottom, "parent"),
        "sha256:" + root.tops[image],
    )
    as_known(root, dockfix.read_layers(root.path))
    old = OldRoot(tmp_path / "old", "aufs")
    image = old.image(2, "a:1")
    write(old.at("graph", old.parents[image], "json"), json.dumps({"parent": image}))
    assert roles(dockfix.read_layers(old.path)) == {image: "image", old.parents[image]: "image"}


class Counted:
    """A function whose calls are counted; before the one numbered `moment` something happens."""

    def __init__(self, function, moment=0, event=None):
        self.function, self.moment, self.event, self.calls = function, moment, event, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.moment:
            self.event()
        return self.function(*args, **kwargs)


def test_files_that_vanish_while_they_are_read(dockfix, tmp_path, monkeypatch):
    """Whatever moment the root vanishes at: an answer, and no orphan that is none."""
    kept = dockfix.open_regular_at
    for moment in range(0, 40, 6):
        root = populate(NewRoot(tmp_path / str(moment), "overlay2"))
        opened = Counted(kept, moment, functools.partial(shutil.rmtree, root.path))
        monkeypatch.setattr(dockfix, "open_regular_at", opened)
        try:
            found = dockfix.read_layers(root.path)
        except dockfix.EnvironmentFault:
            continue
        assert "orphan" not in roles(found).values() or os.path.exists(root.path)


def test_the_calls_grow_with_the_layers_not_faster(dockfix, tmp_path, monkeypatch):
    """Counted, not timed: system calls for four times the layers are at most four times as many."""
    counts = []
    for number, images in (("few", 5), ("many", 20)):
        root = NewRoot(tmp_path / number, "overlay2")
        for n in range(images):
            root.container("c%d" % n, root.image(5, "i%d:latest" % n))
        names = ("open", "stat", "lstat", "readlink", "listdir")
        counted = [Counted(getattr(os, name)) for name in names]
        for name, function in zip(names, counted):
            monkeypatch.setattr(dockfix.os, name, function)
        as_known(root, dockfix.read_layers(root.path))
        monkeypatch.undo()
        counts.append(sum(function.calls for function in counted))
    assert 0 < counts[1] <= 4 * counts[0]


def test_on_the_daemons_own_root_what_is_just_being_made_is_no_orphan(
    dockfix, tmp_path, monkeypatch
):
    """A container whose records come between the two looks, one whose folder comes after the first,
    and an orphan that stays."""
    root = populate(NewRoot(tmp_path, "overlay2"))
    lost = next(layer for layer, (role, _, _) in root.layers.items() if role == "orphan")
    image = root.tags["busybox:latest"]
    other = NewRoot(tmp_path / "other", "overlay2")
    other.diffs, other.tops = root.diffs, root.tops
    other.container("late", image)
    early = next(layer for layer, (role, _, _) in other.layers.items() if role == "container")
    root.make_layer(early, True)
    new = root.next("new")

    def meanwhile(seconds):
        for name in ("containers", "image/overlay2/layerdb/mounts"):
            for one in os.listdir(other.at(name)):
                shutil.copytree(other.at(name, one), root.at(name, one))
        root.make_layer(new, True)

    monkeypatch.setattr(dockfix.time, "sleep", meanwhile)
    found = {row["layer"]: row for row in dockfix.read_layers(root.path, follow=True).rows}
    assert found[early]["container"]["name"] == "late" and found[lost]["role"] == "orphan"
    assert found[new]["role"] == "unknown" and "just now" in found[new]["note"]


def corpus_roots():
    place = os.path.join(
        os.environ.get("DOCKFIX_CORPUS")
        or next((place for place in CORPUS if os.path.isdir(place)), "/nonexistent"),
        "docker-root",
    )
    return (
        sorted(os.path.join(place, name) for name in os.listdir(place))
        if os.path.isdir(place)
        else []
    )


def unpack(path, where):
    """Files, folders and links of a tar, by hand: no owner, no device, nothing outside `where`."""
    with tarfile.open(path) as tar:
        for member in tar:
            parts = os.path.normpath(member.name).split("/")
            target = os.path.join(where, *parts)
            if (
                ".." in parts
                or os.path.isabs(member.name)
                or os.path.realpath(os.path.dirname(target)) != os.path.dirname(target)
            ):
                continue
            if member.isdir():
                os.makedirs(target, exist_ok=True)
            elif member.issym():
                os.symlink(member.linkname, target)
            elif member.isreg() and member.size < 1 << 20:
                write(target, tar.extractfile(member).read())
    return os.path.join(where, os.listdir(where)[0])


def in_the_tree(root):
    """{driver: {layer folder}}, {container id: name} and {image id} of a real root, by listing and
    plain JSON."""
    names, images = {}, set()
    for one in os.listdir(os.path.join(root, "containers")):
        for file in ("config.v2.json", "config.json"):
            path = os.path.join(root, "containers", one, file)
            if os.path.exists(path):
                with open(path) as f:
                    names[one] = json.load(f)["Name"].lstrip("/")
                break
    for folder, _, files in os.walk(root):
        if folder.endswith("imagedb/content/sha256"):
            images |= set(files)
        if os.path.dirname(folder) == os.path.join(root, "graph") and "json" in files:
            images.add(os.path.basename(folder))
    return names, images


def test_whole_roots_of_the_corpus(dockfix, tmp_path):
    tars = corpus_roots()
    if not tars:
        pytest.skip("no ../shared/corpus/docker-root beside the checkout, and no $DOCKFIX_CORPUS")
    for number, path in enumerate(tars):
        root = unpack(path, str(tmp_path / str(number)))
        found = dockfix.read_layers(root)
        names, images = in_the_tree(root)
        assert found.unread == {} and names and images
        assert {one: facts.name for one, facts in found.containers.items()} == names
        assert {
            row["container"]["name"]: row["role"]
            for row in found.rows
            if row["role"] == "container"
        } == dict.fromkeys(names.values(), "container")
        assert {image["id"] for row in found.rows for image in row["images"]} <= images and set(
            found.images
        ) == images
        assert all(
            row["images"] and row["images"][0]["tags"] for row in found.rows
        ), "each of these layers has an image with a tag"
