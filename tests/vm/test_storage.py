"""`storage` on a real devicemapper pool: every figure against dmsetup, stat and df; the options
where they are set; the daemon stopped."""

import json
import re

import pytest

FILES = "/var/lib/docker/devicemapper/devicemapper/"


@pytest.fixture(scope="module")
def pool(module_vm):
    module_vm.sh(
        "docker exec web dd if=/dev/urandom of=/root/big bs=1M count=20; docker volume create free;"
        " echo x > /var/lib/docker/volumes/free/_data/x; sync"
    )
    return module_vm


def storage(vm, *words):
    done = vm.dockfix("--json", "storage", *words)
    doc = json.loads(done.out.decode("ascii"))
    assert doc["exit_code"] == done.rc, done
    return done.rc, doc["results"][0], {one["id"]: one for one in doc["findings"]}


def kernel(vm):
    """(name, data used, data total, metadata used, metadata total, block size) in bytes, from
    dmsetup."""
    name, rest = re.search(
        r"(?m)^(\S+): 0 \d+ thin-pool (.*)$", vm.sh("dmsetup status").text
    ).groups()
    block = (
        int(
            re.search(
                r"(?m)^%s: 0 \d+ thin-pool \S+ \S+ (\d+) " % re.escape(name),
                vm.sh("dmsetup table").text,
            ).group(1)
        )
        * 512
    )
    counts = re.match(r"\d+ (\d+)/(\d+) (\d+)/(\d+) ", rest).groups()
    return (
        name,
        *tuple(int(counts[n]) * size for n, size in ((2, block), (3, block), (0, 4096), (1, 4096))),
        block,
    )


def check_pool(vm, one):
    got = one["pool"]
    assert (
        got["name"],
        got["data_used"],
        got["data_total"],
        got["metadata_used"],
        got["metadata_total"],
        got["block_size"],
    ) == kernel(vm)
    assert (got["mode"], got["state"], got["needs_check"], got["data_loop_file"]) == (
        "loop",
        "rw",
        False,
        FILES + "data",
    )
    assert (
        got["base_device_size"]
        == json.loads(vm.get("/var/lib/docker/devicemapper/metadata/base").decode())["size"]
    )
    for kind in ("data", "metadata"):
        size, blocks = map(int, vm.sh("stat -c '%%s %%b' %s%s" % (FILES, kind)).text.split())
        assert (
            got[kind + "_total"] == size and abs(got[kind + "_allocated"] - blocks * 512) < 1 << 20
        )
    free = int(vm.sh("df --block-size=1 --output=avail /var/lib/docker | tail -n 1").text)
    assert (
        abs(got["data_disk_free"] - free) < 64 << 20 and abs(one["disk"]["free"] - free) < 64 << 20
    )
    assert one["sources"]["pool.data_used"] == "dmsetup" and got["data_available"] == min(
        got["data_total"] - got["data_used"], got["data_disk_free"]
    )


def test_figures_of_the_pool(pool):
    code, one, found = storage(pool)
    assert code == 0 and one["driver"] == "devicemapper" and one["missing"] == []
    check_pool(pool, one)
    reported = {
        line.split(": ")[0].strip(): line.split(": ")[1]
        for line in pool.sh("docker info 2>/dev/null").text.splitlines()
        if "Space" in line
    }
    assert (
        abs(float(reported["Data Space Total"].rstrip("GB")) * 1e9 - one["pool"]["data_total"])
        < 1e7
    )
    sizes = {row["name"]: row["size"] for row in one["usage"]["containers"]["rows"]}
    device = pool.sh("docker inspect -f '{{.GraphDriver.Data.DeviceName}}' web").text.strip()
    mapped = int(pool.sh("dmsetup status %s" % device).text.split()[3]) * 512
    assert (
        sizes == {"web": mapped, "idle": None} and mapped > 20 << 20
    )  # idle's device is not active
    assert [row["name"] for row in one["usage"]["unused_volumes"]["rows"]] == ["free"]
    assert {"next-ceiling", "driver-devicemapper", "unused-volumes"} <= set(found) and not {
        "pool-state",
        "option-twice",
    } & set(found)
    options = {(row["option"], row["value"]): row["where"] for row in one["options"] if row["used"]}
    assert options["storage-opt", "dm.basesize=2G"].startswith(
        "/etc/systemd/system/docker.service.d/"
    )


def test_an_option_in_two_places_and_a_smaller_base_size(pool):
    pool.put("/etc/docker/daemon.json", b'{"storage-opts": ["dm.basesize=1G"]}')
    try:
        code, _, found = storage(pool, "--check", "--quick")
    finally:
        pool.sh("rm /etc/docker/daemon.json")
    assert (
        code == 3
        and found["option-twice"]["severity"] == "critical"
        and "daemon.json" in found["option-twice"]["text"]
        and "base-size-smaller" in found
    )


def test_with_the_daemon_stopped(pool):
    """The pool may outlive the daemon, or not: both are said as they are."""
    before = storage(pool, "--quick")[1]
    pool.sh("systemctl stop docker.socket docker", check=False)
    code, one, found = storage(pool, "--quick")
    assert (
        code == 0
        and "engine-silent" in found
        and one["driver"] == "devicemapper"
        and one["sources"]["root"] == "configuration"
    )
    assert (
        one["pool"]["data_total"] == before["pool"]["data_total"]
        and one["pool"]["base_device_size"] == before["pool"]["base_device_size"]
    )
    assert (
        one["usage"]["images"] == before["usage"]["images"]
        and one["usage"]["containers"]["count"] == 2
    )
    if "thin-pool" in pool.sh("dmsetup status").text:
        check_pool(pool, one)
    else:
        assert one["pool"]["data_used"] is None and one["pool"]["state"] is None
