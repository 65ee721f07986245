"""The command `storage` on made roots (make_root.py), fake dmsetup and saved answers: figures with
their sources, findings, walks, exit codes."""

import json
import os
import shutil
import subprocess

import pytest

from common import du

from make_root import NewRoot, write

HERE = os.path.dirname(os.path.abspath(__file__))
GIB, MIB = 1 << 30, 1 << 20
POOL = "docker-8:1-77-pool"
DOWN = (
    b"Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon"
    b" running?\n"
)


@pytest.fixture
def make(box):
    """make(driver, **info) -> a root the fake engine says is its own."""

    def one(driver="overlay2", status=(), version="20.10.24", **info):
        root = NewRoot(box.at("root"), driver)
        box.world["info_json"] = json.dumps(
            dict(
                {
                    "ServerVersion": version,
                    "DockerRootDir": root.path,
                    "Driver": driver,
                    "OSType": "linux",
                    "DriverStatus": [list(pair) for pair in status],
                },
                **info,
            )
        )
        return root

    return one


def no_options(module):
    module.option_sources, module.running_daemons = (lambda top="/", unit="": []), list


def look(box, *args, **how):
    """(exit code, the one result, {finding id: finding}) of `storage --json`."""
    how.setdefault("prelude", no_options)
    result = box.run("storage", "--json", *args, **how)
    doc = json.loads(result.out.decode("ascii"))
    assert doc["exit_code"] == result.code and b"Traceback" not in result.err
    for finding in doc["findings"]:
        assert (
            finding["severity"] in ("info", "warning", "critical")
            and finding["text"]
            and finding["remedy"]
        )
    severities = [finding["severity"] for finding in doc["findings"]]
    assert severities == sorted(severities, key=("critical", "warning", "info").index)
    return (
        result.code,
        (doc["results"] or [None])[0],
        {finding["id"]: finding for finding in doc["findings"]},
    )


def fill(path, size):
    with open(write(path), "wb") as f:
        f.write(os.urandom(size))
        f.flush()
        os.fsync(f.fileno())  # what a file takes is settled when it is written out


def upper(root, name):
    """A container's folder for its own files."""
    layer = next(
        layer
        for layer, (role, owner, _) in root.layers.items()
        if (role, owner) == ("container", name)
    )
    return root.paths[layer]


# ---------------------------------------------------------------------- usage


def test_usage_by_kind_agrees_with_du(box, make):
    root = make()
    base = root.image(2, "busybox:latest")
    root.image(1, "unused:1", below=base)
    root.image(1)
    web = root.container(
        "web",
        base,
        State={"Running": True},
        MountPoints={"/data": {"Name": "held", "Driver": "local"}},
    )
    root.container("old", base)
    lost = root.orphan()
    fill(os.path.join(upper(root, "web"), "a", "b", "file"), 3 * MIB)
    fill(os.path.join(upper(root, "old"), "file"), MIB)
    fill(os.path.join(root.paths[lost], "file"), 2 * MIB)
    fill(root.at("volumes", "held", "_data", "x"), 5 * MIB)
    fill(root.at("volumes", "free", "_data", "x"), 4 * MIB)
    for name, size in (("-json.log", 70000), ("-json.log.1", 9000)):
        fill(root.at("containers", web, web + name), size)
    code, one, found = look(box)
    usage = one["usage"]
    assert (
        code == 0
        and one["driver"] == "overlay2"
        and one["root"] == root.path
        and one["image_store"] == "graphdriver"
        and one["pool"] is None
    )
    init = {name: upper(root, name).replace("/diff", "-init/diff") for name in ("web", "old")}
    assert {row["name"]: row["size"] for row in usage["containers"]["rows"]} == {
        name: du(upper(root, name), init[name]) for name in init
    }
    assert (usage["stopped_containers"]["count"], usage["stopped_containers"]["size"]) == (
        1,
        du(upper(root, "old"), init["old"]),
    )
    assert [(row["name"], row["size"]) for row in usage["volumes"]["rows"]] == [
        (name, du(root.at("volumes", name))) for name in ("held", "free")
    ]
    assert [row["name"] for row in usage["unused_volumes"]["rows"]] == ["free"]
    assert usage["orphans"]["size"] == du(root.paths[lost]) and usage["orphans"]["count"] == 1
    logs = {row["name"]: row["size"] for row in usage["logs"]["rows"]}
    assert logs == {
        "web": du(
            *[root.at("containers", web, web + name) for name in ("-json.log", "-json.log.1")]
        ),
        "old": 0,
    }
    assert (usage["images"]["count"], usage["images"]["size"]) == (3, 4) and usage[
        "dangling_images"
    ][
        "count"
    ] == 1  # layerdb says 1 byte each
    assert [(row["tags"], row["size"]) for row in usage["unused_images"]["rows"]] == [
        (["unused:1"], 1)
    ]
    assert {
        "stopped-containers",
        "dangling-images",
        "unused-images",
        "unused-volumes",
        "orphans",
        "driver-overlay2",
    } <= set(found)
    assert all(part["complete"] for part in usage.values()) and one["missing"] == []


def test_an_empty_engine_has_zeros_not_unknowns(box, make):
    make()
    _, one, found = look(box)
    assert {kind: (part["count"], part["size"]) for kind, part in one["usage"].items()} == {
        kind: (0, 0) for kind in one["usage"]
    }
    assert not {"stopped-containers", "orphans", "unused-volumes"} & set(found)


def test_a_build_step_is_not_dangling(box, make):
    root = make()
    base = root.image(1)  # has no name, but the next stands on it
    app = root.image(1, "app:1", below=base)
    root.built_from(app, base)
    root.container("web", root.image(1))  # no name either, but in use
    _, one, _ = look(box)
    assert one["usage"]["images"]["count"] == 3 and one["usage"]["dangling_images"]["count"] == 0


def test_links_holes_and_mounts(box, make):
    root = make()
    root.container("web", root.image(1, "a:1"))
    top = upper(root, "web")
    fill(os.path.join(top, "big"), MIB)
    for n in range(5):
        os.link(os.path.join(top, "big"), os.path.join(top, "link%d" % n))
    os.symlink("/", os.path.join(top, "rootlink"))
    os.symlink(root.at("volumes"), os.path.join(top, "dirlink"))
    os.mkfifo(os.path.join(top, "fifo"))
    with open(os.path.join(top, "holes"), "wb") as f:
        f.truncate(8 * GIB)
    _, one, _ = look(box)
    (row,) = one["usage"]["containers"]["rows"]
    assert row["size"] == du(top, top.replace("/diff", "-init/diff")) < 2 * MIB and row["complete"]


def test_mount_points_are_left_out(dockfix, tmp_path):
    fill(str(tmp_path / "top" / "own"), 10000)
    fill(str(tmp_path / "top" / "mounted" / "x"), 50000)
    plain, _ = dockfix.disk_usage(str(tmp_path / "top"), 1e18, set())
    less, why = dockfix.disk_usage(
        str(tmp_path / "top"), 1e18, {os.fsencode(str(tmp_path / "top" / "mounted"))}
    )
    assert plain - less == du(str(tmp_path / "top" / "mounted")) and why == ""


def test_hostile_names_are_escaped_for_people_and_whole_in_json(box, make):
    root = make()
    evil = "\x1b[2J\nA\r\u202e"
    base = root.image(1, "img\x1b]0;x:1")
    root.container(evil, base)
    fill(os.path.join(upper(root, evil), "a\x1b[1m\n", "b"), 5000)
    fill(root.at("volumes", "v\x1b[31m\n", "_data", "x"), 5000)
    fill(root.at("volumes", "caf\udce9", "_data", "x"), 5000)
    _, one, _found = look(box)
    assert [row["name"] for row in one["usage"]["containers"]["rows"]] == [evil]
    assert {row["name"] for row in one["usage"]["volumes"]["rows"]} == {"v\x1b[31m\n", "caf\udce9"}
    result = box.run("storage", prelude=no_options)
    assert (
        b"\x1b" not in result.out + result.err
        and b"\r" not in result.out
        and b"\xe9" not in result.out
        and "\u202e" not in result.out.decode("utf-8")
    )
    assert b"\\x1b[31m\\n" in result.out


# ---------------------------------------------------------------------- time


def slow(module):
    no_options(module)
    module.WALK_SECONDS = 0.0


def test_what_is_not_reached_is_said(box, make):
    root = make()
    root.container("web", root.image(1, "a:1"))
    for n in range(50):
        fill(os.path.join(upper(root, "web"), "d%d" % n, "f"), 5000)
    for args, prelude in ((["--quick"], no_options), ([], slow)):
        _, one, _ = look(box, *args, prelude=prelude)
        part = one["usage"]["containers"]
        assert part["count"] == 1 and not part["complete"] and not part["rows"][0]["complete"]
        assert bool(one["missing"]) is (not args)
    _, one, _ = look(box, "--full", prelude=slow)
    assert one["usage"]["containers"]["rows"][0]["size"] >= du(upper(root, "web"))


def test_time_is_shared_out_and_the_largest_goes_on(dockfix, monkeypatch):
    """Virtual folders: cost in seconds and bytes; the clock moves only by walking."""
    clock, costs = [0.0], {"huge": 100.0, "large": 6.0, "s1": 0.01, "s2": 0.01, "s3": 0.01}
    monkeypatch.setattr(dockfix.time, "monotonic", lambda: clock[0])
    walked = []

    def usage(path, deadline, points):
        walked.append(path)
        took = min(costs[path], max(0.0, deadline - clock[0]))
        clock[0] += took
        reason = "" if took == costs[path] else dockfix.NOT_FINISHED
        return dockfix.Measured(int(took * 1000), reason)

    monkeypatch.setattr(dockfix, "disk_usage", usage)
    sizes = dockfix.measure_folders({(name,): name for name in costs}, 10.0, lambda text: None)
    assert clock[0] <= 10.0001 and all(sizes[(name,)] == (10, "") for name in ("s1", "s2", "s3"))
    assert (
        walked[:5] == list(costs)
        and sizes[("huge",)][1] == dockfix.NOT_FINISHED
        and sizes[("huge",)][0] >= 1000
    )


def test_a_tree_that_is_unreadable_in_part_is_at_least(dockfix, tmp_path):
    fill(str(tmp_path / "t" / "a" / "f"), 5000)
    real = os.open

    def refuse(path, *args, **more):
        if path == b"a":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    dockfix.os.open, kept = refuse, dockfix.os.open
    try:
        size, why = dockfix.disk_usage(str(tmp_path / "t"), 1e18, set())
    finally:
        dockfix.os.open = kept
    assert size == os.lstat(str(tmp_path / "t")).st_blocks * 512 and "at least" in why


def test_a_file_that_vanishes_costs_only_itself(dockfix, tmp_path, monkeypatch):
    fill(str(tmp_path / "t" / "stays"), 50000)
    fill(str(tmp_path / "t" / "goes"), 5000)
    listed = os.listdir
    monkeypatch.setattr(
        dockfix.os,
        "listdir",
        lambda *args: (
            listed(*args),
            [
                os.unlink(str(tmp_path / "t" / "goes"))
                for name in ["goes"]
                if os.path.exists(str(tmp_path / "t" / name))
            ],
        )[0],
    )
    assert dockfix.disk_usage(str(tmp_path / "t"), 1e18, set()) == (du(str(tmp_path / "t")), "")


def test_a_very_deep_tree_does_not_end_it(dockfix, tmp_path):
    here = os.open(str(tmp_path), os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    size, why = dockfix.disk_usage(str(tmp_path), 1e18, set())
    assert (
        size > 0 and (why == "" or "at least" in why) and len(os.listdir("/proc/self/fd")) == before
    )
    subprocess.check_call(["rm", "-rf", str(tmp_path / "d")])


def test_the_number_of_docker_calls_does_not_grow(box, make):
    root = make()
    base = root.image(1, "a:1")
    counts = []
    for number in (2, 198):
        for n in range(number):
            root.container("c%d-%d" % (number, n), base)
        box.forget()
        _, one, _ = look(box)
        counts.append(len(box.calls()))
    assert one["usage"]["containers"]["count"] == 200 and counts == [1, 1]
    box.world["info_text"], box.world["info_json"] = (
        "Storage Driver: overlay2\nDocker Root Dir: %s\nDebug Mode: false\n" % root.path,
        None,
    )
    box.forget()
    _, one, _ = look(box)
    assert (
        one["usage"]["containers"]["count"] == 200 and len(box.calls()) == 2
    )  # Docker 1.12 has no info --format


# ---------------------------------------------------------------------- devicemapper


def dmsetup(
    box,
    mode="rw",
    data=(1000, 10000),
    metadata=(10, 1000),
    tail="needs_check",
    name=POOL,
    block=128,
    data_dev="7:0",
    thin="",
):
    """A dmsetup that knows one pool; data in blocks of `block` sectors, metadata in blocks of 4
    KiB."""
    status = (
        mode
        if mode == "Fail"
        else "4 %d/%d %d/%d - %s discard_passdown queue_if_no_space %s 1024"
        % (metadata + data + (mode, tail))
    )
    box.program(
        "dmsetup",
        "case $1 in table) echo '%s: 0 %d thin-pool 7:1 %s %d 32768 1 skip_block_zeroing';;\n"
        "status) echo '%s: 0 %d thin-pool %s'; %s;; esac"
        % (name, data[1] * block, data_dev, block, name, data[1] * block, status, thin or ":"),
    )


def pool_status(name=POOL, used="5.2 GB", total="107.4 GB", available="20 GB", **more):
    pairs = [
        ("Pool Name", name),
        ("Pool Blocksize", "65.54 kB"),
        ("Data file", "/dev/loop0"),
        ("Metadata file", "/dev/loop1"),
        ("Data Space Used", used),
        ("Data Space Total", total),
        ("Data Space Available", available),
        ("Metadata Space Used", "20 MB"),
        ("Metadata Space Total", "2.147 GB"),
    ]
    return [(key, more.get(key.replace(" ", "_"), value)) for key, value in pairs]


@pytest.fixture
def pool(box, make):
    """A devicemapper root with loop files: 4 GiB and 1 GiB long, 8 and 1 MiB of them allocated."""
    root = make("devicemapper", pool_status())
    for name, length, size in (("data", 4 * GIB, 8 * MIB), ("metadata", GIB, MIB)):
        fill(root.at("devicemapper", "devicemapper", name), size)
        os.truncate(root.at("devicemapper", "devicemapper", name), length)
    return root


def test_the_kernel_and_the_files_before_docker_info(box, pool):
    web = pool.container("web", pool.image(1, "a:1"))
    found = os.stat(pool.at("devicemapper"))
    device = "docker-%d:%d-%d-%s" % (
        os.major(found.st_dev),
        os.minor(found.st_dev),
        found.st_ino,
        next(layer for layer, (role, _, _) in pool.layers.items() if role == "container"),
    )
    dmsetup(
        box,
        data=(1000, 65536),
        metadata=(10, 262144),
        tail="-",
        thin="echo '%s: 0 20971520 thin 2048 20971519'" % device,
    )
    _, one, finding = look(box)
    got, disk = one["pool"], os.statvfs(pool.path)
    assert (got["name"], got["mode"], got["state"], got["needs_check"], got["failed"]) == (
        POOL,
        "loop",
        "rw",
        False,
        False,
    )
    assert (
        got["data_used"],
        got["data_total"],
        got["metadata_used"],
        got["metadata_total"],
        got["block_size"],
    ) == (1000 * 65536, 4 * GIB, 40960, GIB, 65536)
    assert (
        got["data_available"] == min(4 * GIB - 1000 * 65536, got["data_disk_free"])
        and abs(got["data_disk_free"] - disk.f_bavail * disk.f_frsize) < GIB
    )
    assert (
        got["data_allocated"] == du(pool.at("devicemapper", "devicemapper", "data"))
        and got["base_device_size"] == 10 * GIB
    )
    assert got["data_loop_file"] == pool.at("devicemapper", "devicemapper", "data")
    sources = one["sources"]
    assert (
        sources["pool.data_used"],
        sources["pool.data_allocated"],
        sources["pool.base_device_size"],
        sources["disk"],
    ) == ("dmsetup", "stat", "metadata/base", "statvfs")
    assert [(row["id"], row["size"]) for row in one["usage"]["containers"]["rows"]] == [(web, MIB)]
    assert (
        "driver-devicemapper" in finding
        and "next-ceiling" in finding
        and "pool-state" not in finding
    )


def test_without_dmsetup_the_files_and_docker_info_remain(box, pool):
    box.program("dmsetup", "echo 'Permission denied' >&2; exit 1")
    _, one, _ = look(box)
    got = one["pool"]
    assert (got["mode"], got["state"], got["data_used"], got["data_total"]) == (
        "loop",
        None,
        5200000000,
        107400000000,
    )
    assert one["sources"]["pool.data_used"] == "docker info (four digits)" and any(
        "dmsetup" in why for why in one["missing"]
    )
    box.rule("info", rc=1, err=DOWN)
    _, one, _ = look(box, "--root", pool.path)
    got = one["pool"]
    assert (got["mode"], got["data_total"], got["data_used"], got["data_allocated"]) == (
        "loop",
        4 * GIB,
        None,
        du(got["data_loop_file"]),
    )
    assert (
        one["sources"]["pool.data_total"] == "stat of the loop file"
        and one["sources"]["driver"] == "the only driver's folder"
    )


@pytest.mark.parametrize(
    "mode, tail, word",
    [
        ("ro", "-", "ro"),
        ("out_of_data_space", "-", "no more data"),
        ("rw", "needs_check", "needs_check"),
        ("Fail", "", "Fail"),
    ],
)
def test_a_sick_pool_is_critical(box, pool, mode, tail, word):
    dmsetup(box, mode, tail=tail)
    code, one, found = look(box, "--check")
    assert (
        code == 3
        and found["pool-state"]["severity"] == "critical"
        and word in found["pool-state"]["text"]
    )
    assert (
        "pool grow"
        if mode == "out_of_data_space"
        else "thin_check --clear-needs-check-flag "
        + pool.at("devicemapper", "devicemapper", "metadata")
    ) in found["pool-state"]["remedy"]
    assert one["pool"]["state"] == mode and (
        mode != "Fail" or one["sources"]["pool.state"] == "dmsetup"
    )


@pytest.mark.parametrize(
    "data, metadata, wanted, absent",
    [
        ((8100, 10000), (10, 1000), {"full-data": "warning"}, {"full-metadata", "min-free-data"}),
        (
            (9100, 10000),
            (10, 1000),
            {"full-data": "critical", "min-free-data": "critical"},
            {"metadata-fuller"},
        ),
        ((8700, 10000), (10, 1000), {"full-data": "warning", "min-free-data": "warning"}, set()),
        (
            (1000, 10000),
            (950, 1000),
            {
                "full-metadata": "critical",
                "metadata-fuller": "warning",
                "min-free-metadata": "critical",
            },
            {"full-data", "min-free-data"},
        ),
        ((1000, 10000), (200, 1000), {"metadata-fuller": "info"}, {"full-metadata"}),
        (
            (1000, 10000),
            (10, 1000),
            {},
            {"full-data", "full-metadata", "metadata-fuller", "min-free-data", "min-free-metadata"},
        ),
    ],
)
def test_ceilings(box, pool, data, metadata, wanted, absent):
    dmsetup(box, data=data, metadata=metadata, tail="-")
    _, _, found = look(box)
    assert {name: found[name]["severity"] for name in wanted} == wanted and not absent & set(found)


def test_a_ceiling_beyond_the_disk(box, pool):
    blocks = 120 * GIB // 65536

    def little_room(module):
        real = module.read_disk
        module.read_disk = lambda *of: (lambda disk: disk and disk._replace(free=20 * GIB))(
            real(*of)
        )
        no_options(module)

    os.truncate(pool.at("devicemapper", "devicemapper", "data"), blocks * 65536)
    dmsetup(box, data=(1000, blocks), tail="-")
    _, _one, found = look(box, prelude=little_room)
    assert (
        found["ceiling-beyond-disk"]["severity"] == "warning"
        and "the disk under the pool files" in found["next-ceiling"]["text"]
    )
    text = box.run("storage", prelude=little_room).out.decode()
    rows = [
        line
        for line in text.splitlines()
        if line.startswith(("ceiling", "allocated on disk", "free on that disk"))
    ]
    assert len(rows) == 3 and rows[0].split()[1:3] == ["%.1f" % (blocks * 65536 / GIB), "GiB"]
    assert text.index("fills first") < text.index(
        "overlay2" if "overlay2, engine" in text else "devicemapper, engine"
    )


def test_a_direct_pool_has_no_loop_files(box, make):
    root = make("devicemapper", [("Pool Name", "docker-thinpool")])
    fill(root.at("devicemapper", "devicemapper", "data"), 4096)  # left from former days
    dmsetup(box, name="docker-thinpool", data_dev="254:3")
    _, one, found = look(box)
    assert (one["pool"]["mode"], one["pool"]["data_loop_file"], one["pool"]["data_allocated"]) == (
        "direct",
        None,
        None,
    ) and "ceiling-beyond-disk" not in found


def test_deleted_loop_files_that_are_still_held(box, pool):
    def held(module):
        no_options(module)
        module.loop_files = lambda: [
            module.LoopFile(
                "/dev/loop0", "/var/lib/docker/devicemapper/devicemapper/data (deleted)"
            ),
            module.LoopFile("/dev/loop1", "/iso (deleted)"),
        ]

    _, _, found = look(box, prelude=held)
    assert (
        found["loop-deleted"]["severity"] == "critical"
        and "/dev/loop0" in found["loop-deleted"]["remedy"]
    )


def test_loop_files_are_read_from_the_kernel(dockfix):
    assert all(device.startswith("/dev/loop") and path for device, path in dockfix.loop_files())


# ---------------------------------------------------------------------- options, logs, other
# drivers


def options(top):
    def prelude(module):
        real = module.option_sources
        module.option_sources, module.running_daemons = lambda: real(top), list

    return prelude


def test_options_with_their_places_and_twice_is_critical(box, pool):
    top = box.at("host")
    write(
        top + "/lib/systemd/system/docker.service",
        "[Service]\nExecStart=/usr/bin/dockerd -g %s --storage-opt dm.basesize=5G --storage-opt"
        " dm.min_free_space=3%%\n" % pool.path,
    )
    dmsetup(box, data=(9500, 10000), tail="-")
    pool.container("web", pool.image(1, "a:1"))
    _, one, found = look(box, prelude=options(top))
    assert ("storage-opt", "dm.basesize=5G", True) in [
        (row["option"], row["value"], row["used"]) for row in one["options"]
    ]
    assert (
        found["min-free-data"]["severity"] == "warning" and "3 %" in found["min-free-data"]["text"]
    )
    assert found["base-size-smaller"]["severity"] == "critical" and "option-twice" not in found
    write(
        top + "/etc/docker/daemon.json",
        '{"storage-opts": ["dm.basesize=20G", "dm.loopmetadatasize=20G"]}',
    )
    code, _, found = look(box, "--check", prelude=options(top))
    assert (
        code == 3
        and found["option-twice"]["severity"] == "critical"
        and "daemon.json" in found["option-twice"]["text"]
        and "metadata-useless" in found
    )
    write(top + "/etc/docker/daemon.json", '{"storage-opts": ')
    assert look(box, prelude=options(top))[2]["option-place"]["severity"] == "critical"


def test_options_that_no_unit_reads_or_that_wait_for_a_restart(box, make):
    root, top = make(), box.at("host")
    write(
        top + "/lib/systemd/system/docker.service",
        "[Service]\nExecStart=/usr/bin/dockerd -g %s --storage-opt dm.basesize=5G\n" % root.path,
    )
    write(top + "/etc/sysconfig/docker-storage", "DOCKER_STORAGE_OPTIONS=--storage-opt dm.fs=xfs\n")

    def started_without(module):
        options(top)(module)
        module.running_daemons = lambda: [
            module.OptionSource(
                "running", "/proc/7/cmdline", "7", "", (("data-root", root.path),), False, ""
            )
        ]

    _, _one, found = look(box, prelude=started_without)
    assert (
        "docker-storage" in found["option-unread"]["text"]
        and found["option-unread"]["severity"] == "info"
    )
    assert (
        "dm.basesize=5G" in found["option-waiting"]["text"]
        and found["option-waiting"]["severity"] == "warning"
    )
    assert not {"option-unread", "option-waiting"} & set(look(box)[2])


@pytest.mark.parametrize(
    "limit, severity",
    [(["--warning", "100", "--critical", "100"], "info"), (["--warning", "0"], "warning")],
)
def test_a_root_on_the_system_disk(box, make, limit, severity):
    root = make()

    def no_disk_of_its_own(module):
        no_options(module)
        real = module.read_disk

        def system_disk(path, mounts):
            disk = real(path, mounts)
            device = os.stat("/").st_dev
            return disk and disk._replace(
                device=device, used_percent=50.0, inodes_used_percent=50.0
            )

        module.read_disk = system_disk

    found = look(box, *limit, prelude=no_disk_of_its_own)[2]["root-on-system-disk"]
    assert (
        found["severity"] == severity
        and root.path in found["text"]
        and "relocate" in found["remedy"]
    )


def test_options_of_another_engine_are_not_shown(box, make):
    make()
    top = box.at("host")
    write(
        top + "/lib/systemd/system/docker.service",
        "[Service]\nExecStart=/usr/bin/dockerd -g /other --storage-opt dm.basesize=5G\n",
    )
    assert look(box, prelude=options(top))[1]["options"] == []


@pytest.mark.parametrize(
    "config, told",
    [
        ({}, True),
        ({"Type": "json-file", "Config": {}}, True),
        ({"Type": "json-file", "Config": {"max-size": "10m"}}, False),
        ({"Type": "journald", "Config": {}}, False),
    ],
)
def test_a_large_log_without_rotation(box, make, config, told):
    root = make()
    web = root.container("web", root.image(1, "a:1"))
    write(root.at("containers", web, "hostconfig.json"), json.dumps({"LogConfig": config}))
    fill(root.at("containers", web, web + "-json.log"), 50000)

    def small(module):
        no_options(module)
        module.LOG_LARGE = 40000

    found = look(box, prelude=small)[2]
    assert ("log-large" in found) is told
    assert not told or (
        "web" in found["log-large"]["text"] and "--logs" in found["log-large"]["remedy"]
    )


def test_other_drivers_and_a_stranded_devicemapper(box, make):
    root = make(version="25.0.3")
    NewRoot(root.path, "aufs")
    fill(root.at("devicemapper", "devicemapper", "data"), MIB)
    _, one, found = look(box)
    there = {row["driver"]: (row["in_use"], row["size"]) for row in one["drivers_on_disk"]}
    assert (
        there["overlay2"] == (True, None)
        and there["devicemapper"] == (False, du(root.at("devicemapper")))
        and there["aufs"][0] is False
    )
    assert (
        found["devicemapper-stranded"]["severity"] == "warning"
        and "aufs" in found["other-drivers"]["text"]
    )
    assert "no aufs driver any more" in found["aufs-stranded"]["text"]
    assert "before 24" in found["aufs-stranded"]["text"]


def test_an_engine_that_still_has_the_driver_strands_nothing(box, make):
    root = make(version="23.0.6")
    NewRoot(root.path, "aufs")
    fill(root.at("devicemapper", "devicemapper", "data"), MIB)
    found = look(box)[2]
    assert not [name for name in found if name.endswith("-stranded")]


IN_THE_STORE = ("images", "unused_images", "dangling_images", "build_cache", "orphans")


def containerd_engine(box, make, **info):
    """A root as dockerd keeps it with the containerd image store: no image/, no driver's folder;
    one container with a log."""
    root = make(
        "overlay2", [("driver-type", "io.containerd.snapshotter.v1")], Driver="overlayfs", **info
    )
    shutil.rmtree(root.at("overlay2"))
    shutil.rmtree(root.at("image"))
    os.makedirs(root.at("rootfs", "overlayfs"))
    container = "ab" * 32
    document = {
        "ID": container,
        "Name": "/web",
        "Driver": "overlayfs",
        "Image": "sha256:" + "1" * 64,
    }
    write(
        root.at("containers", container, "config.v2.json"),
        json.dumps(dict(document, State={"Running": False})),
    )
    fill(root.at("containers", container, container + "-json.log"), 9000)
    store = box.at("containerd")
    fill(os.path.join(store, "io.containerd.content.v1.content", "blobs", "x"), MIB)

    def there(module):
        no_options(module)
        module.CONTAINERD_ROOT, module.CONTAINERD_SETTINGS = store, box.at("config.toml")
        module.configured_root = lambda: root.path

    return root, store, there


def unknown_in_the_store(one):
    for kind in IN_THE_STORE:
        part = one["usage"][kind]
        assert (part["size"], part["complete"], part["rows"]) == (None, False, []), kind
    for kind in ("containers", "stopped_containers"):
        part = one["usage"][kind]
        assert (part["count"], part["size"], part["complete"]) == (1, None, False), kind
    logs = one["usage"]["logs"]
    assert logs["count"] == 1 and logs["size"] >= 9000 and logs["complete"]
    assert (one["usage"]["volumes"]["count"], one["usage"]["volumes"]["size"]) == (0, 0)


def test_the_containerd_store(box, make):
    root, store, there = containerd_engine(box, make, Images=3)
    _, one, found = look(box, prelude=there)
    assert (one["driver"], one["image_store"], one["root"]) == (
        "overlayfs",
        "containerd",
        root.path,
    )
    assert one["usage"]["containerd_store"]["size"] == du(store)
    unknown_in_the_store(one)
    assert one["usage"]["images"]["count"] == 3
    assert one["sources"]["usage.images.count"] == "docker info"
    assert one["usage"]["build_cache"]["count"] is None
    finding = found["containerd-store"]
    assert store in finding["text"] and finding["remedy"] == "docker system df"
    text = box.run("storage", prelude=there).out.decode()
    for row in ("images              3       unknown", "orphans             unknown  unknown"):
        assert " ".join(row.split()) in " ".join(text.split()), text


def test_the_containerd_store_with_the_daemon_down(box, make):
    root, store, there = containerd_engine(box, make)
    box.rule("info", rc=1, err=DOWN)
    _, one, found = look(box, prelude=there)
    assert one["image_store"] == "containerd"
    unknown_in_the_store(one)
    assert one["usage"]["images"]["count"] is None
    assert found["containerd-store"]["remedy"] == "du -sxh " + store
    shutil.rmtree(root.at("containers"))
    os.makedirs(root.at("containers"))
    _, one, _ = look(box, prelude=there)
    assert one["usage"]["images"]["count"] is None and one["usage"]["images"]["size"] is None


def test_a_containerd_store_that_is_not_found_is_unknown_not_0(box, make):
    _, store, there = containerd_engine(box, make)
    shutil.rmtree(store)
    _, one, _ = look(box, prelude=there)
    part = one["usage"]["containerd_store"]
    assert (part["count"], part["size"], part["complete"]) == (1, None, False)


def test_layers_left_from_before_the_containerd_store_are_at_least(box, make):
    root = make(
        "overlay2", [("driver-type", "io.containerd.snapshotter.v1")], Driver="overlayfs", Images=3
    )
    root.image(2, "left:1")
    _, one, _ = look(box)
    images = one["usage"]["images"]
    assert (images["size"], images["complete"]) == (2, False)


@pytest.mark.parametrize(
    "settings, place",
    [
        ("version = 2\nroot = '%s'\n[grpc]\nroot = '/no'\n", "moved"),
        ('root = "%s"\n', "moved"),
        ("version = 2\n[plugins]\nroot = '%s'\n", "containerd"),
        ("#root = '%s'\n", "containerd"),
        ("", "containerd"),
        (None, "containerd"),
    ],
)
def test_where_containerds_root_is(dockfix, tmp_path, monkeypatch, settings, place):
    for name in ("moved", "containerd", "docker"):
        (tmp_path / name).mkdir()
    config = tmp_path / "config.toml"
    if settings is not None:
        config.write_text(settings.replace("%s", str(tmp_path / "moved")))
    monkeypatch.setattr(dockfix, "CONTAINERD_ROOT", str(tmp_path / "containerd"))
    monkeypatch.setattr(dockfix, "CONTAINERD_SETTINGS", str(config))
    root = str(tmp_path / "docker")
    assert dockfix.containerd_root(root) == str(tmp_path / place)
    (tmp_path / "docker" / "containerd" / "daemon").mkdir(parents=True)  # dockerd manages its own
    assert dockfix.containerd_root(root) == root + "/containerd/daemon"
    line = (
        "36 25 0:40 / %s/rootfs/overlayfs/%s rw - overlay overlay rw,lowerdir=/x\\040y/1/fs,"
        "upperdir=/srv/c/io.containerd.snapshotter.v1.overlayfs/snapshots/3/fs"
    )
    mounts = dockfix.parse_mountinfo(line % (root, "a" * 64))
    monkeypatch.setattr(dockfix, "mounts_of", lambda pid="self": mounts)
    assert dockfix.containerd_root(root) == "/srv/c"


def test_a_container_without_its_layer_record(box, make):
    root = make()
    base = root.image(1, "a:1")
    live = root.container("live", base)
    root.container("web", base)
    shutil.rmtree(root.at("image", "overlay2", "layerdb", "mounts", live))
    _, one, found = look(box)
    lost = found["layer-record-lost"]
    assert lost["severity"] == "warning" and "container live has no layer record" in lost["text"]
    assert root.at("image", "overlay2", "layerdb", "mounts", live) in lost["text"]
    orphans = one["usage"]["orphans"]
    assert (orphans["count"], orphans["size"], orphans["complete"]) == (None, None, False)
    assert "orphans" not in found
    rows = {row["name"]: row["size"] for row in one["usage"]["containers"]["rows"]}
    assert rows["live"] is None and rows["web"] is not None
    assert not one["usage"]["containers"]["complete"] and one["usage"]["images"]["complete"]


def test_a_log_folder_that_is_gone_is_not_an_empty_log(box, make, dockfix):
    root = make()
    assert dockfix.log_size(root.path, "ab" * 32)[0] is None


def test_volumes_that_containers_name_and_that_are_not_there(box, make):
    root = make()
    points = {"/d": {"Name": "data", "Driver": "local"}}
    root.container("web", root.image(1, "a:1"), MountPoints=points)
    shutil.rmtree(root.at("volumes"))
    _, one, found = look(box)
    assert one["usage"]["volumes"]["size"] is None and one["usage"]["volumes"]["count"] is None
    assert "volumes" in found["not-known"]["text"]


# ---------------------------------------------------------------------- no daemon, no right, no
# root


@pytest.mark.parametrize(
    "rule",
    [
        dict(rc=1, err=DOWN),
        dict(rc=0, out=b"\x00\xff garbage"),
        dict(rc=1, err=b"permission denied\n"),
        dict(rc=0, out=b"[]"),
        dict(rc=-9),
    ],
)
def test_no_daemon_but_its_files(box, make, rule):
    root = make()
    root.container("web", root.image(1, "a:1"))
    fill(os.path.join(upper(root, "web"), "f"), MIB)
    box.rule("info", **rule)

    def configured(module):
        no_options(module)
        module.configured_root = lambda: root.path

    code, one, found = look(box, prelude=configured)
    assert (
        code == 0
        and "engine-silent" in found
        and one["driver"] == "overlay2"
        and one["sources"]["root"] == "configuration"
    )
    assert (
        one["usage"]["containers"]["size"] > MIB
        and one["server_version"] is None
        and one["disk"]["total"] > 0
    )


def test_with_the_daemon_down_the_disk_of_the_layers_is_known(box, make):
    make()
    box.rule("info", rc=1, err=DOWN)
    _, one, _ = look(box, "--root", box.at("root"))
    assert "layers" in one["disk"]["for"]


def test_orphans_without_a_folder_are_counted(box, pool):
    """A layer of devicemapper is a device, so its size is in no folder."""
    pool.image(1, "a:1")
    pool.orphan()
    dmsetup(box, tail="-")
    _, one, found = look(box)
    part = one["usage"]["orphans"]
    assert (part["count"], part["size"], part["complete"]) == (1, None, False)
    assert "1 (size unknown)" in found["orphans"]["text"]


def test_no_docker_at_all_and_no_root(box, make):
    def nowhere(module):
        no_options(module)
        module.configured_root = lambda: box.at("nowhere")

    result = box.run("--docker", "/nonexistent/docker", "storage", "--json", prelude=nowhere)
    doc = json.loads(result.out.decode())
    assert result.code == 6 and doc["results"] == [] and doc["errors"][0]["hint"]
    assert [finding["id"] for finding in doc["findings"]] == ["engine-silent"]


def test_a_root_that_vanishes_while_it_is_read(box, make):
    root = make()
    root.container("web", root.image(1, "a:1"))

    def vanish(module):
        no_options(module)
        real = module.measure_folders

        def gone(*args):
            subprocess.check_call(["rm", "-rf", root.path])
            return real(*args)

        module.measure_folders = gone

    code, one, _ = look(box, prelude=vanish)
    assert (
        code == 0
        and one["usage"]["containers"]["size"] is None
        and one["usage"]["containers"]["count"] == 1
        and one["missing"]
    )


def test_a_root_that_is_not_there_is_told_with_what_docker_says(box, make):
    make("devicemapper", pool_status())
    subprocess.check_call(["rm", "-rf", box.at("root")])
    code, one, _ = look(box)
    assert (
        code == 0
        and one["pool"]["data_used"] == 5200000000
        and one["disk"] is None
        and any("cannot be read" in why for why in one["missing"])
    )


def test_a_folder_that_is_no_root_is_not_an_engine_without_containers(box):
    os.makedirs(box.at("unmounted"))
    code, one, found = look(box, "--root", box.at("unmounted"))
    assert (
        code == 0
        and all(part["size"] is None and part["count"] is None for part in one["usage"].values())
        and "mounted" in found["not-known"]["text"]
    )
    text = box.run("storage", "--root", box.at("unmounted"), prelude=no_options).out.decode()
    assert "driver unknown, engine unknown, root /" in text and " 0 B" not in text


@pytest.mark.parametrize(
    "name, kinds",
    [
        ("volumes", ("volumes", "unused_volumes")),
        ("containers", ("containers", "stopped_containers", "logs")),
    ],
)
def test_what_cannot_be_listed_is_not_none(box, make, name, kinds):
    root = make()
    root.image(1, "a:1")
    os.rename(root.at(name), root.at(name + "-kept"))
    write(root.at(name))
    code, one, found = look(box)
    assert code == 0 and {
        kind: (one["usage"][kind]["count"], one["usage"][kind]["size"]) for kind in kinds
    } == {kind: (None, None) for kind in kinds}
    assert (
        one["usage"]["images"]["count"] == 1
        and not one["usage"]["images"]["complete"]
        and name in found["not-known"]["text"]
    )


def test_an_engine_elsewhere_is_not_mixed_with_this_hosts_files(box, make):
    root = make(Name="elsewhere", Containers=7, ContainersStopped=2, Images=3)
    root.container("web", root.image(1, "a:1"))
    _, one, _ = look(box)
    assert (
        one["disk"] is None
        and one["usage"]["containers"]["count"] == 7
        and one["usage"]["containers"]["size"] is None
        and "another host" in one["msg"]
    )


# ---------------------------------------------------------------------- saved answers, --check,
# usage errors


def saved(box, used="5.2 GB", available="20 GB", total="107.4 GB"):
    return box.file(
        "saved.txt",
        (
            "Storage Driver: devicemapper\n"
            + "".join(
                " %s: %s\n" % pair
                for pair in pool_status(used=used, available=available, total=total)
            )
            + "Docker Root Dir: /var/lib/docker\nServer Version: 1.12.6\nContainers: 14\n"
        ).encode(),
    )


def test_a_saved_answer_needs_no_docker_and_no_files(box):
    code, one, found = look(box, "--docker-info", saved(box))
    assert (
        code == 0
        and box.calls() == []
        and one["pool"]["data_used"] == 5200000000
        and one["pool"]["mode"] == "loop"
        and one["disk"] is None
    )
    assert "ceiling-beyond-disk" in found and one["usage"]["containers"] == {
        "count": 14,
        "size": None,
        "complete": False,
        "rows": [],
    }
    with open(box.at("saved.txt"), "rb") as f:
        code, other, _ = look(box, "--docker-info", "-", stdin=f.read())
    assert code == 0 and other == one
    with open(os.path.join(HERE, "docker_info", "w-failed-20.10-zeros.txt"), "rb") as f:
        code, one, found = look(box, "--docker-info", "-", "--check", stdin=f.read())
    assert (
        code == 3
        and found["pool-state"]["severity"] == "critical"
        and one["pool"]["data_total"] is None
    )


@pytest.mark.parametrize(
    "used, args, code, severity",
    [
        ("90 GB", [], 0, "warning"),
        ("90 GB", ["--check"], 3, "warning"),
        ("102 GB", ["--check"], 3, "critical"),
        ("10 GB", ["--check"], 0, None),
        ("90 GB", ["--check", "--warning", "86", "--critical", "95"], 0, None),
        ("10 GB", ["--check", "--warning", "5", "--critical", "8"], 3, "critical"),
    ],
)
def test_check_and_its_thresholds(box, used, args, code, severity):
    available = "%.4g GB" % (107.4 - float(used.split()[0]))
    got, _, found = look(box, "--docker-info", saved(box, used, available), *args)
    assert got == code and found.get("full-data", {}).get("severity") == severity


def test_check_does_not_call_unknown_well(box, make):
    make()
    code, _, found = look(
        box,
        "--check",
        prelude=lambda module: (
            no_options(module),
            setattr(module, "read_disk", lambda *args: None),
        ),
    )
    assert code == 3 and "fullness-unknown" in found


@pytest.mark.parametrize(
    "args, code",
    [
        (["--docker-info", "/nonexistent"], 2),
        (["--warning", "95", "--critical", "90"], 2),
        (["--warning", "x"], 2),
        (["--full", "--quick"], 2),
        (["web"], 2),
        (["--critical", "101"], 2),
    ],
)
def test_usage_errors(box, args, code):
    result = box.run("storage", "--json", *args, prelude=no_options)
    doc = json.loads(result.out.decode())
    assert result.code == code and doc["errors"][0]["msg"] and doc["results"] == []


@pytest.mark.parametrize(
    "name",
    [
        "x-swarm-manager.txt",
        "x-empty.txt",
        "x-two-drivers.txt",
        "x-daemon-down.json",
        "x-podman-info.txt",
    ],
)
def test_saved_answers_that_are_none(box, name):
    result = box.run(
        "storage", "--docker-info", os.path.join(HERE, "docker_info", name), prelude=no_options
    )
    assert result.code == 6 and result.out == b"" and b"hint:" in result.err


def test_for_people(box, make):
    """Findings come first and on standard output; quiet leaves only what is wrong."""
    root = make()
    root.container("web", root.image(1, "a:1"))
    result = box.run("storage", prelude=no_options)
    text = result.out.decode()
    assert (
        text.startswith(("info", "warning", "critical"))
        and result.err == b""
        and "overlay2, engine 20.10.24, root " in text
    )
    assert "-> python3 dockfix.py" in text and "USED BY" in text and "FILE SYSTEM" in text
    quiet = box.run("storage", "-q", prelude=no_options).out.decode()
    assert "USED BY" not in quiet and "info " not in quiet


def test_dry_run_is_the_same(box, make):
    make()
    assert box.run("storage", "-n", prelude=no_options).code == 0 and not os.path.exists(box.state)


def test_progress_is_for_long_walks_only(box, make):
    root = make()
    root.container("web", root.image(1, "a:1"))

    def late(module):  # a clock that jumps by three seconds whenever a walk begins
        no_options(module)
        clock, real = [0.0], module.disk_usage
        module.time.monotonic = lambda: clock[0]

        def walk(*args):
            clock[0] += 3
            return real(*args)

        module.disk_usage = walk

    assert b"storage: measur" in box.quick("storage", prelude=late).err
    assert (
        box.quick("storage", prelude=no_options).err == b""
        and box.quick("storage", "-q", prelude=late).err == b""
    )
