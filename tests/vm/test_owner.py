"""`owner` on a real devicemapper pool: layers, devices and device ids against docker inspect,
dmsetup and find, with the daemon up and stopped."""

import json
import re

import pytest

HOME = "/var/lib/docker/devicemapper"


@pytest.fixture(scope="module")
def pool(module_vm):
    """Two image layers more, and a container on them."""
    module_vm.sh(
        "docker run -d --network none --name made dockfix-test/busybox; docker exec made touch"
        " /layer; docker commit made ring/second:v2\ndocker run -d --network none --name second"
        " ring/second:v2; docker exec second touch /own-second"
    )
    return module_vm


def rows(vm, *words):
    done = vm.dockfix("--json", "owner", *words)
    assert done.rc == 0 and not {one["id"] for one in done.doc["findings"]} & {
        "owner-differs",
        "owner-unread",
        "owner-unchecked",
    }, done
    return done.doc["results"]


def check_files(vm, found):
    """The rows against the driver's own files, without docker."""
    layers = {row["layer"]: row for row in found}
    metadata = vm.sh(
        'cd %s/metadata; for f in *; do echo "$f $(cat $f)"; done' % HOME
    ).text.splitlines()
    devices = {
        name: json.loads(text)
        for name, text in (line.split(" ", 1) for line in metadata)
        if not name.endswith("-metadata")
    }
    assert {name: row["device_id"] for name, row in layers.items()} == {
        name: one["device_id"] for name, one in devices.items()
    }
    assert all("%s/metadata/%s" % (HOME, name) in row["paths"] for name, row in layers.items())
    # of a device that was busy when its container was removed, the driver only notes that it is
    # deleted; here, until docker starts the next time
    assert {
        name
        for name, row in layers.items()
        if row["role"] == "orphan" and "deletes it later" in row["note"]
    } == {name for name, one in devices.items() if one["deleted"]}
    assert {row["role"] for name, row in layers.items() if not devices[name]["deleted"]} == {
        "container",
        "container-init",
        "image",
    }
    return layers


def test_every_container_and_image_agrees_with_docker(pool):
    found = rows(pool)
    layers = check_files(pool, found)
    inspected = json.loads(pool.sh("docker inspect $(docker ps -aq)").text)
    assert {
        row["container"]["name"]: (row["device"], str(row["device_id"]))
        for row in found
        if row["role"] == "container"
    } == {
        one["Name"][1:]: (
            one["GraphDriver"]["Data"]["DeviceName"],
            one["GraphDriver"]["Data"]["DeviceId"],
        )
        for one in inspected
    }
    for one in json.loads(pool.sh("docker image inspect $(docker images -q)").text):
        own = [
            row
            for row in found
            if one["Id"][7:] in [image["id"] for image in row["images"]] and row["role"] == "image"
        ]
        assert len(own) == len(one["RootFS"]["Layers"]) and one["GraphDriver"]["Data"][
            "DeviceName"
        ] in [row["device"] for row in own]
    assert "base device" in layers["base"]["note"]


def test_devices_lead_to_their_container(pool):
    mapped = [line.split("\t") for line in pool.sh("dmsetup ls").text.splitlines()]
    named = {
        name: re.search(r":(\d+)\)", where).group(1)
        for name, where in mapped
        if not name.endswith("-pool")
    }
    container = "second"
    row = rows(pool, container)[0]
    device = row["device"]
    words = [
        "dm-" + named[device],
        "/dev/mapper/" + device,
        device,
        str(row["device_id"]),
        row["layer"][:12],
        HOME + "/mnt/%s/rootfs/etc/passwd" % row["layer"],
    ]
    # in one call, for one takes seconds here: each word alone is tried in the other rings
    assert [(one["layer"], one["container"]["name"]) for one in rows(pool, *words)] == [
        (row["layer"], container)
    ]
    mark = pool.sh("docker exec %s cat /proc/self/mountinfo" % container).text
    assert device in mark
    pool_device = next(name for name, _ in mapped if name.endswith("-pool"))
    assert pool.dockfix("--json", "owner", pool_device).rc == 2


def test_the_same_with_the_daemon_stopped(pool):
    """Last: the next module has a fresh machine."""
    before = rows(pool)
    pool.sh("systemctl stop docker.socket docker.service")
    after = pool.dockfix("--json", "owner")
    assert after.rc == 0 and "engine-silent" in [one["id"] for one in after.doc["findings"]]

    def kept(some):
        return [
            (
                row["layer"],
                row["role"],
                row["container"],
                row["images"],
                row["device_id"],
                row["device"],
            )
            for row in some
        ]

    assert kept(after.doc["results"]) == kept(before)
    check_files(pool, after.doc["results"])
