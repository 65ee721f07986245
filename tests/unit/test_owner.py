"""`owner` as a command: every way to name a layer, what it says beside the rows, and docker's
answers against the files (test_layers.py has the table)."""

import json
import os
import re
import shutil

import pytest

from make_root import DRIVERS, NewRoot, OldRoot, write
from test_layers import CORPUS, KINDS, populate


def graph(root, name):
    """GraphDriver as docker inspect has it for a container of a made root."""
    layer = next(
        layer
        for layer, (role, owner, _) in root.layers.items()
        if (role, owner) == ("container", name)
    )
    home = root.at(root.driver, layer)
    data = {
        "overlay2": {
            "UpperDir": home + "/diff",
            "MergedDir": home + "/merged",
            "WorkDir": home + "/work",
            "LowerDir": home + "-init/diff",
        },
        "devicemapper": {
            "DeviceName": "docker-8:1-77-" + layer,
            "DeviceId": "",
            "DeviceSize": "10737418240",
        },
        "zfs": {"Dataset": "tank/docker/" + layer, "Mountpoint": root.at("zfs", "graph", layer)},
    }.get(root.driver)
    if root.driver == "devicemapper":
        with open(root.at("devicemapper", "metadata", layer)) as f:
            data["DeviceId"] = str(json.load(f)["device_id"])
    return {"Name": root.driver, "Data": data}


def daemon(box, root):
    """The fake docker answers for this root, and knows its containers."""
    box.world["info_json"] = json.dumps(
        {
            "ServerVersion": "20.10.24",
            "DockerRootDir": root.path,
            "Driver": root.driver,
            "SecurityOptions": [],
        }
    )
    for name, one in root.names.items():
        box.container(name, id=one, inspect={"GraphDriver": graph(root, name)})
    return root


@pytest.fixture(autouse=True)
def no_wait(dockfix, monkeypatch):
    monkeypatch.setattr(dockfix, "LOOK_AGAIN_SECONDS", 0)


@pytest.fixture
def root(box, tmp_path):
    return daemon(box, populate(NewRoot(tmp_path / "docker", "overlay2")))


def layer_of(root, name, role="container"):
    return next(
        layer for layer, (one, owner, _) in root.layers.items() if (one, owner) == (role, name)
    )


def layers(result):
    assert result.rc == 0, result
    return [row["layer"] for row in result.json["results"]]


def findings(result):
    return {one["id"]: one for one in result.json["findings"]}


def ask(box, root, *words):
    return box.quick("owner", "--json", "--root", root.path, *words)


@pytest.fixture
def named(dockfix):
    """The layers a word means, asked without a process for each word."""

    def ask(root, word):
        search = dockfix.owners_of(dockfix.read_layers(root.path), (word,))
        return [row["layer"] for row in search.rows]

    return ask


@pytest.mark.parametrize("kind, driver", KINDS, ids=lambda one: getattr(one, "__name__", one))
def test_every_name_of_a_container_and_of_its_layer(named, tmp_path, kind, driver):
    root = populate(kind(tmp_path / "docker", driver))
    one, layer = root.names["web"], layer_of(root, "web")
    both = [layer, layer + "-init"]
    for word in ("web", "/web", one, one[:12], root.at("containers", one, one + "-json.log")):
        assert named(root, word) == both, word
    # before 1.10 a layer's name is the container's id, and so means both its layers
    for word in (
        layer,
        layer[:12],
        root.paths[layer],
        root.paths[layer] + "/etc/../etc/hosts",
        root.paths[layer] + "/" + "0" * 64,
    ):
        assert named(root, word) == (both if layer == one else [layer]), word
    for word in (layer + "-init", layer[:10] + "-init", root.paths[layer + "-init"]):
        assert named(root, word) == [layer + "-init"]


@pytest.mark.parametrize("driver", ["overlay2", "devicemapper", "vfs"])
def test_every_name_of_an_image(named, tmp_path, driver):
    root = populate(NewRoot(tmp_path / "docker", driver))
    for tag, image in list(root.tags.items())[-1:]:
        own = sorted(
            layer
            for layer, (_, _, images) in root.layers.items()
            if image in images and root.layers[layer][0] == "image"
        )
        for word in (
            tag,
            "docker.io/library/" + tag,
            image,
            "sha256:" + image,
            image[:12],
            root.at("image", driver, "imagedb", "content", "sha256", image),
        ):
            assert named(root, word) == own, word
        for diff in root.diffs[image]:
            assert named(root, "sha256:" + diff)[0] in own
        assert (
            named(root, root.at("image", driver, "layerdb", "sha256", root.tops[image], "size"))[0]
            in own
        )
    assert named(root, "busybox") == named(root, "busybox:latest")


def test_devices_by_name_by_number_and_by_dm_n(box, tmp_path):
    root = populate(NewRoot(tmp_path / "docker", "devicemapper"))
    layer = layer_of(root, "web")
    with open(root.at("devicemapper", "metadata", layer)) as f:
        number = json.load(f)["device_id"]
    sys_block = tmp_path / "block"
    write(str(sys_block / "dm-7" / "dm" / "name"), "docker-8:1-4711-%s\n" % layer)

    def prelude(module):
        module.SYS_BLOCK = str(sys_block)

    for word in (
        "docker-8:1-4711-" + layer,
        "/dev/mapper/docker-253:0-1-" + layer,
        str(number),
        "dm-7",
        "/dev/dm-7",
    ):
        found = box.quick("owner", "--json", "--root", root.path, word, prelude=prelude)
        assert layers(found) == [layer] and found.json["results"][0]["device_id"] == number, word
    assert ask(box, root, "dm-99").rc == ask(box, root, "999999").rc == 2
    pool = ask(box, root, "docker-8:1-4711-pool")
    assert pool.rc == 2 and "pool of all layers" in pool.json["errors"][0]["msg"]


def test_overlay2s_short_links(box, root):
    layer = layer_of(root, "web")
    with open(root.at("overlay2", layer, "link")) as f:
        short = f.read()
    for word in (
        short,
        "l/" + short,
        root.at("overlay2", "l", short),
        root.at("overlay2", "l", short, "etc"),
    ):
        assert layers(ask(box, root, word)) == [layer]


def test_a_path_through_a_link(box, root, tmp_path):
    layer = layer_of(root, "web")
    os.symlink(root.path, str(tmp_path / "link"))
    os.symlink(root.paths[layer], str(tmp_path / "deep"))
    assert (
        layers(ask(box, root, str(tmp_path / "link" / "overlay2" / layer / "diff")))
        == layers(ask(box, root, str(tmp_path / "deep")))
        == [layer]
    )


def test_several_words_give_each_row_once_in_the_order_asked(box, root):
    web, db = layer_of(root, "web"), layer_of(root, "db")
    assert layers(ask(box, root, db, "web", web, "web")) == [db, web, web + "-init"]


def test_a_hash_that_begins_two_names_both(box, root):
    for i in range(17):  # more layers than letters of a hash
        root.container("more%d" % i, next(iter(root.tags.values())))
    by_letter = {}
    for layer in root.layers:
        by_letter.setdefault(layer[0], set()).add(layer.replace("-init", ""))
    letter, both = next(
        (letter, found) for letter, found in sorted(by_letter.items()) if len(found) > 1
    )
    done = ask(box, root, letter)
    error = done.json["errors"][0]
    assert done.rc == 2 and done.json["results"] == [] and "begins" in error["msg"]
    shown = [layer for layer in both if layer in error["msg"]]
    assert len(shown) == len(both) or ", ..." in error["msg"]


def test_unknown_words(box, root):
    done = ask(box, root, "nonesuch", "web", "f00d/nonesuch")
    assert done.rc == 3 and len(done.json["results"]) == 2 and len(done.json["errors"]) == 2
    assert (
        "nonesuch" in done.json["errors"][0]["msg"]
        and "short hash" not in done.json["errors"][0]["msg"]
        and "device" in done.json["errors"][0]["hint"]
    )
    done = ask(box, root, "nonesuch")
    assert done.rc == 2 and done.json["results"] == []
    for word in (
        "",
        "/",
        ".",
        "-init",
        "l",
        "base",
        "\x1b[2J",
        "\udcff",
        "a" * 100000,
        "../..",
        "sha256:",
        "*",
    ):
        assert ask(box, root, "--", word).rc == 2, word
    shown = box.quick("owner", "--root", root.path, "\x1b[2J")
    assert b"\x1b" not in shown.err + shown.out and rb"\x1b[2J" in shown.err


def test_the_table_is_checked_against_docker(box, root):
    done = box.quick("owner", "--json")
    assert done.rc == 0 and [call.command for call in box.calls()] == ["info", "ps", "inspect"]
    assert len(done.json["results"]) == len(root.layers) and set(findings(done)) == {
        "owner-orphans"
    }


@pytest.mark.parametrize("driver", DRIVERS)
def test_docker_and_files_agree_for_every_driver(box, tmp_path, driver):
    daemon(box, populate(NewRoot(tmp_path / "docker", driver)))
    assert "owner-differs" not in findings(box.quick("owner", "--json"))


@pytest.mark.parametrize(
    "change, text",
    [
        (
            lambda one: one.update(Name="/renamed"),
            "its name is web by the files, renamed by docker",
        ),
        (lambda one: one["GraphDriver"].update(Name="vfs"), "its driver is overlay2"),
        (
            lambda one: one["GraphDriver"].update(
                Data={"UpperDir": "/var/lib/docker/overlay2/%s/diff" % ("9" * 64)}
            ),
            "9" * 64,
        ),
    ],
)
def test_what_differs_is_a_finding(box, root, change, text):
    one = next(one for one in box.world["containers"] if one["name"] == "web")
    document = json.loads(one["json"])
    change(document)
    one["json"] = json.dumps(document)
    for words in ((), ("web",)):
        assert text in findings(box.quick("owner", "--json", *words))["owner-differs"]["text"]
    assert "owner-differs" not in findings(box.quick("owner", "--json", "db"))


FORMS = [
    {"Name": "aufs", "Data": None},
    {
        "Name": "devicemapper",
        "Data": {
            "DeviceId": "5",
            "DeviceName": "docker-253:1-2763198-" + "a" * 64,
            "DeviceSize": "171798691840",
        },
    },
    {"Name": "overlay", "Data": {"RootDir": "/var/lib/docker/overlay/%s/root" % ("a" * 64)}},
    {
        "Name": "overlay",
        "Data": {
            "LowerDir": "/var/lib/docker/overlay/%s/root" % ("b" * 64),
            "MergedDir": "/var/lib/docker/overlay/%s/merged" % ("a" * 64),
            "UpperDir": "/var/lib/docker/overlay/%s/upper" % ("a" * 64),
            "WorkDir": "/var/lib/docker/overlay/%s/work" % ("a" * 64),
        },
    },
    {
        "Name": "zfs",
        "Data": {
            "Dataset": "tank/a/" + "a" * 64,
            "Mountpoint": "/var/lib/docker/zfs/graph/" + "a" * 64,
        },
    },
]


def corpus_forms():
    """GraphDriver objects of real hosts, where the corpus is there."""
    folder = os.path.join(
        os.environ.get("DOCKFIX_CORPUS")
        or next((place for place in CORPUS if os.path.isdir(place)), "/nonexistent"),
        "graphdriver",
    )
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if name.startswith("gd-"):
            with open(os.path.join(folder, name)) as f:
                yield json.load(f)


def judge(dockfix, form, layer, device="5"):
    row = {
        "layer": layer,
        "driver": form["Name"],
        "container": {"id": "c" * 64, "name": "web"},
        "device_id": int(device),
    }
    one = dockfix.parse_container(
        {
            "Id": "c" * 64,
            "Name": "/web",
            "State": {"Running": False},
            "HostConfig": {},
            "Mounts": [],
            "GraphDriver": form,
        }
    )
    return dockfix.inspect_differences(row, one)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["Name"])
def test_every_form_in_which_docker_tells_a_layer(dockfix, form):
    assert judge(dockfix, form, "a" * 64) == ""
    for other in ("b" * 64, "c" * 64, "a" * 63):
        assert ("its layer is " + other in judge(dockfix, form, other)) is bool(form["Data"])


def test_forms_of_real_hosts(dockfix):
    forms = list(corpus_forms())
    if not forms:
        pytest.skip("no ../shared/corpus/graphdriver beside the checkout, and no $DOCKFIX_CORPUS")
    for form in forms:
        data = form["Data"] or {}
        own = {
            match
            for key, value in data.items()
            if key != "LowerDir"
            for match in re.findall("[0-9a-f]{64}", value)
        }
        below = set(re.findall("[0-9a-f]{64}", data.get("LowerDir", ""))) - own
        assert len(own) == bool(data)
        assert [judge(dockfix, form, layer, data.get("DeviceId", "5")) for layer in own] == [
            ""
        ] * len(own)
        assert all(
            "its layer is" in judge(dockfix, form, layer)
            for layer in [*list(below), "0" * 64]
            if data
        )


def test_a_device_id_that_differs_is_a_finding(box, tmp_path):
    root = daemon(box, populate(NewRoot(tmp_path / "docker", "devicemapper")))
    write(root.at("devicemapper", "metadata", layer_of(root, "web")), '{"device_id": 4711}')
    assert (
        "its device id is 4711 by the files"
        in findings(box.quick("owner", "--json", "web"))["owner-differs"]["text"]
    )


def test_containers_that_only_one_side_knows(box, root):
    box.container("stranger")
    box.world["containers"] = [one for one in box.world["containers"] if one["name"] != "web"]
    text = findings(box.quick("owner", "--json"))["owner-differs"]["text"]
    assert "web: docker does not know it" in text and "stranger: it has no layer" in text


def test_200_containers_take_as_many_calls_as_2(make_box, tmp_path):
    counts = []
    for number in (2, 200):
        box, root = make_box("box%d" % number), NewRoot(tmp_path / str(number), "overlay2")
        images = [root.image(1) for _ in range(max(1, number * 3 // 10))]
        for n in range(number):
            root.container("c%d" % n, images[n % len(images)])
        daemon(box, root)
        for words in ((), ("c0", "c1"), root.names):
            done = box.quick("owner", "--json", *words)
            assert done.rc == 0 and "owner-differs" not in findings(done)
            counts.append([call.command for call in box.calls()])
            box.forget()
    assert (
        counts[:3]
        == counts[3:]
        == [["info", "ps", "inspect"], ["info", "inspect"], ["info", "inspect"]]
    )


DOWN = (
    b"Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon"
    b" running?\n"
)


@pytest.mark.parametrize(
    "answer",
    [
        {"err": DOWN, "rc": 1},
        {"out": b"\0\xff garbage", "rc": 0},
        {"out": b"{}", "rc": 0},
        {"out": b"[" * 100000, "rc": 0},
    ],
)
def test_a_daemon_that_is_down_or_says_garbage(box, root, answer):
    box.rule("info", **answer)

    def prelude(module):
        module.option_sources = lambda: [
            module.OptionSource(
                "daemon.json",
                "/etc/docker/daemon.json",
                "",
                "",
                (("data-root", root.path),),
                True,
                "",
            )
        ]

    done = box.quick("owner", "--json", prelude=prelude)
    assert done.rc == 0 and len(done.json["results"]) == len(root.layers)
    assert findings(done)["engine-silent"]["severity"] == "info" and [
        call.command for call in box.calls()
    ] in (["info"], ["info", "info"])
    assert layers(box.quick("owner", "--json", "web", prelude=prelude))[0] == layer_of(root, "web")


def test_docker_that_fails_after_info_leaves_the_files(box, root):
    box.rule("inspect", err=b"Error response from daemon: oops\n", rc=1)
    done = box.quick("owner", "--json")
    assert (
        done.rc == 0
        and len(done.json["results"]) == len(root.layers)
        and "oops" in findings(done)["owner-unchecked"]["text"]
    )


def test_no_docker_command_at_all(box, root):
    done = box.run("owner", "--json", "--docker", "/nonexistent/docker", "--root", root.path)
    assert done.rc == 0 and len(done.json["results"]) == len(root.layers)


def test_a_root_of_ones_own_asks_no_docker_and_needs_no_state(box, root):
    done = ask(box, root)
    assert done.rc == 0 and box.calls() == [] and not os.path.exists(box.state)
    assert box.quick("owner", "--root", root.path, "--dry-run").rc == 0 and not os.path.exists(
        box.state
    )


def test_a_root_that_is_not_there(box):
    done = box.quick("owner", "--json", "--root", "/nonexistent/docker")
    assert (
        done.rc == 6
        and done.json["results"] == []
        and "/nonexistent/docker" in done.json["errors"][0]["msg"]
    )


def test_nothing_is_written(box, root):
    before = box.picture()
    tree = sorted(os.walk(root.path))
    for words in ((), ("web",), ("--orphans",), ("nonesuch",)):
        box.quick("owner", *words)
    assert sorted(os.walk(root.path)) == tree and box.picture() == before


def test_what_is_not_readable_is_a_finding_and_stops_the_orphans(box, root):
    os.unlink(root.at("image", "overlay2", "layerdb", "mounts", root.names["web"], "mount-id"))
    os.mkfifo(root.at("image", "overlay2", "layerdb", "mounts", root.names["web"], "mount-id"))
    done = ask(box, root)
    found = findings(done)
    assert done.rc == 0 and "owner-orphans" not in found and "fifo" in found["owner-unread"]["text"]
    unknown = [row for row in done.json["results"] if row["role"] == "unknown"]
    assert {layer_of(root, "web")} < {row["layer"] for row in unknown} and all(
        "could not be read" in row["note"] for row in unknown
    )
    assert ask(box, root, "--orphans").json["results"] == []
    table = box.quick("owner", "--root", root.path).out
    assert b"\nunknown " in table and b"\norphan" not in table


def test_orphans_with_sizes(box, root):
    layer = next(layer for layer, (role, _, _) in root.layers.items() if role == "orphan")
    write(root.at("overlay2", layer, "diff", "data"), b"x" * 100000)
    os.link(root.at("overlay2", layer, "diff", "data"), root.at("overlay2", layer, "diff", "again"))
    os.symlink("/usr", root.at("overlay2", layer, "diff", "usr"))
    done = ask(box, root, "--orphans")
    du = sum(
        os.lstat(os.path.join(folder, name)).st_blocks
        for folder, names, files in os.walk(root.at("overlay2", layer))
        for name in names + files
        if name != "again"
    )
    assert [(row["layer"], row["size"]) for row in done.json["results"]] == [
        (layer, du * 512 + os.lstat(root.at("overlay2", layer)).st_blocks * 512)
    ]
    assert "pull or build" in findings(done)["owner-orphans"]["text"]
    text = box.quick("owner", "--root", root.path, "--orphans").out.decode()
    assert "SIZE" in text and " KiB  " in text and "1 layer: 1 orphan" in text
    both = ask(box, root, "--orphans", "web")
    assert both.rc == 2 and "--orphans" in both.json["errors"][0]["msg"]


def test_a_size_that_is_not_known_is_not_0(box, tmp_path):
    root = populate(NewRoot(tmp_path / "docker", "devicemapper"))
    assert [row["size"] for row in ask(box, root, "--orphans").json["results"]] == [None]
    assert b"unknown" in box.quick("owner", "--root", root.path, "--orphans").out

    def prelude(module):
        module.WALK_SECONDS = -1.0

    root = populate(NewRoot(tmp_path / "other", "aufs"))
    row = box.quick("owner", "--json", "--root", root.path, "--orphans", prelude=prelude).json[
        "results"
    ][0]
    assert row["size"] is None and "time" in row["note"]


@pytest.mark.parametrize(
    "driver, word", [("overlay2", "diff"), ("overlay", "upper"), ("aufs", "diff")]
)
def test_the_driver_is_explained_where_a_container_is_asked_for(box, tmp_path, driver, word):
    root = populate(NewRoot(tmp_path / "docker", driver))
    found = findings(ask(box, root, "web"))["owner-" + driver]
    assert (
        root.paths[layer_of(root, "web")] in found["text"]
        and word in found["text"]
        and found["remedy"] == "docker exec web rm FILE"
    )
    assert ("never delete" in found["text"]) is (driver != "aufs") and (
        "merged" in found["text"]
    ) is (driver != "aufs")
    assert "owner-" + driver not in findings(ask(box, root))


def test_the_containerd_store_is_elsewhere(box, tmp_path):
    root = NewRoot(tmp_path / "docker", "overlay2")
    container = "ab" * 32
    write(
        root.at("containers", container, "config.v2.json"),
        json.dumps(
            {"ID": container, "Name": "/web", "Driver": "overlayfs", "Image": "sha256:" + "1" * 64}
        ),
    )
    shutil.rmtree(root.at("overlay2"))
    for words in ((), ("--orphans",), ("web",), (container[:12],)):
        done = ask(box, root, *words)
        assert done.rc == 6 and done.json["results"] == []
        assert findings(done)["owner-containerd"]["remedy"].startswith("du -sxh ")
        asked = words not in ((), ("--orphans",))
        told = "overlayfs" if asked else "containerd's store"
        assert told in done.json["errors"][0]["msg"]
    shutil.rmtree(root.at("containers", container))
    shutil.rmtree(root.at("image"))
    os.makedirs(root.at("rootfs", "overlayfs"))
    for words in ((), ("--orphans",)):  # an engine without containers has images all the same
        done = ask(box, root, *words)
        assert done.rc == 6 and "containerd's store" in done.json["errors"][0]["msg"]
    box.world["info_json"] = json.dumps(
        {
            "ServerVersion": "29.0.0",
            "DockerRootDir": root.path,
            "Driver": "overlayfs",
            "SecurityOptions": [],
            "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        }
    )
    done = box.quick("owner", "--json")
    assert "/var/lib/containerd" in findings(done)["owner-containerd"]["text"]
    assert done.rc == 6 and done.json["errors"][0]["hint"] == "docker system df"


def test_hostile_names_are_escaped_in_the_table_and_intact_in_json(box, tmp_path):
    names = ["a\x1b[2Jb", "\u202etxt.exe", "line\nfeed", "\udcff"]
    root = NewRoot(tmp_path / "docker", "overlay2")
    image = root.image(1, "evil\x1b]0;x\x07:latest")
    for name in names:
        root.container(name, image)
    found = {row["container"]["name"] for row in ask(box, root).json["results"] if row["container"]}
    assert found == set(names)
    done = box.quick("owner", "--root", root.path, *names)
    assert (
        done.rc == 0
        and not set(done.out + done.err) & set(b"\x1b\x07\x80\xff")
        and b"\xe2\x80\xae" not in done.out + done.err
    )
    assert rb"a\x1b[2Jb" in done.out and rb"line\nfeed" in done.out
    assert len(done.out.splitlines()) == 2 + 2 * len(names)


def test_the_table_is_aligned_and_nothing_is_cut(box, root):
    lines = box.quick("owner", "--root", root.path).out.decode().splitlines()
    assert lines[0].split() == ["ROLE", "DRIVER", "OWNER", "ID", "PATH"]
    column = lines[0].index("PATH")
    paths = [line[column:] for line in lines[1:-1]]
    assert {path.split(" (")[0] for path in paths} <= set(root.paths.values()) and len(
        paths
    ) == len(root.layers)
    assert lines[-1] == "14 layers: 3 container, 3 container-init, 7 image, 1 orphan" or lines[
        -1
    ].startswith("%d layers: 3 container, " % len(root.layers))
    assert (
        box.quick("owner", "--quiet", "--root", root.path).out.decode().splitlines() == lines[:-1]
    )


def test_old_images_of_a_layer_are_those_above_it(box, tmp_path):
    root = OldRoot(tmp_path / "docker", "aufs")
    base = root.image(1, "base:1")
    app = root.image(1, "app:1", below=base)
    rows = ask(box, root, base).json["results"]
    assert [row["layer"] for row in rows][:1] == [base]
    by_layer = {
        row["layer"]: {tag for image in row["images"] for tag in image["tags"]}
        for row in ask(box, root).json["results"]
    }
    assert by_layer == {base: {"base:1", "app:1"}, app: {"app:1"}}


def test_help_names_what_it_takes(box):
    text = box.quick("owner", "--help").out.decode()
    assert "--orphans" in text and "--root DIR" in text and "owner --root" in text
