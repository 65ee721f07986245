"""Which mounts below Docker's root are Docker's own, and which only look so; what a folder that is
mounted onto itself is."""

import pytest
from make_root import DRIVERS

ROOT = "/var/lib/docker"
HEX = "0a" * 32
LINES = """1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
2 1 8:17 / /data rw shared:2 - xfs /dev/sdb1 rw
3 2 8:17 /docker /data/docker rw - xfs /dev/sdb1 rw
4 1 8:1 /var/lib/docker /var/lib/docker rw - ext4 /dev/sda1 rw
5 4 8:1 /var/lib/docker/devicemapper /var/lib/docker/devicemapper rw - ext4 /dev/sda1 rw
6 5 254:3 / /var/lib/docker/devicemapper/mnt/{0} rw - ext4 /dev/mapper/docker-8:1-7-{0} rw
7 4 8:1 /srv /var/lib/docker/overlay2 rw - ext4 /dev/sda1 rw
8 4 8:33 / /var/lib/docker/volumes rw - ext4 /dev/sdc1 rw
9 5 8:1 /var/lib/docker/devicemapper /var/lib/docker/devicemapper rw - ext4 /dev/sda1 rw
10 1 8:17 /docker /mnt/twice rw - xfs /dev/sdb1 rw
11 10 8:17 /docker/vfs /mnt/twice/vfs rw - xfs /dev/sdb1 rw
12 77 8:1 /home /home rw - ext4 /dev/sda1 rw
""".format(HEX)


def mount(dockfix, point, dev="0:50", root="/", number="9"):
    return dockfix.Mount(dev, root, point, "overlay", "overlay", (), (), number, "1")


def test_a_folder_mounted_onto_itself(dockfix):
    """Stacked, below another one, and below a bind mount too; not where the parent is another disk,
    another folder, or not to be seen."""
    mounts = dockfix.parse_mountinfo(LINES)
    assert [one.number for one in dockfix.self_binds(mounts)] == ["3", "4", "5", "9", "11"]
    hidden = dockfix.points_of_others(mounts)
    assert b"/var/lib/docker/devicemapper" not in hidden and b"/var/lib/docker" not in hidden
    assert {b"/var/lib/docker/overlay2", b"/var/lib/docker/volumes"} < hidden
    assert ("/var/lib/docker/devicemapper/mnt/" + HEX).encode() in hidden
    assert dockfix.parse_mountinfo(LINES)[0].tags == ("shared:1",)


@pytest.mark.parametrize(
    "place, kind",
    [
        ("devicemapper/mnt/" + HEX, "container"),
        ("overlay2/%s/merged" % HEX, "container"),
        ("overlay/%s/merged" % HEX, "container"),
        ("fuse-overlayfs/%s/merged" % HEX, "container"),
        ("aufs/mnt/%s-init" % HEX, "container"),
        ("zfs/graph/" + HEX, "container"),
        ("rootfs/overlayfs/" + HEX, "container"),
        ("containers/%s/shm" % HEX, "container"),
        ("containers/%s/mounts/shm" % HEX, "container"),
        ("containers/%s/mounts/secrets" % HEX, "container"),
        ("buildkit/executor/x1/rootfs", "container"),
        ("containerd/daemon/tmpmounts/containerd-mount123", "container"),
        ("tmp/buildkit-mount123", "container"),
        ("plugins/%s/rootfs" % HEX, "container"),
        ("plugins/%s/propagated-mount/volumes/v" % HEX, "data"),
        ("volumes/v/_data", "data"),
        ("volumes/v/_data/nfs", "data"),
        ("overlay2/%s/diff" % HEX, ""),
        ("overlay2/%s/merged/srv" % HEX, ""),
        ("overlay2", ""),
        ("devicemapper", ""),
        ("devicemapper/devicemapper", ""),
        ("volumes", ""),
        ("tmp", ""),
        ("image", ""),
        ("rootfs/overlayfs", ""),
        ("buildkit", ""),
        ("", ""),
    ],
)
def test_whose_a_mount_below_the_root_is(dockfix, place, kind):
    one = mount(dockfix, (ROOT + "/" + place).rstrip("/"))
    assert dockfix.own_mount_kind(ROOT, one, []) == kind
    assert dockfix.own_mount_kind("/var/lib/dock", one, []) == ""
    foreign = [] if kind or not place else [one]
    assert dockfix.foreign_mounts(ROOT, [one]) == foreign


@pytest.mark.parametrize("driver", ["", "/overlay2", "/devicemapper", "/containers", "/zfs"])
def test_a_drivers_folder_on_itself_is_dockers_and_a_disk_there_is_not(dockfix, driver):
    disk = mount(dockfix, "/", "8:1", number="1")
    bind = mount(dockfix, ROOT + driver, "8:1", ROOT + driver)
    assert dockfix.own_mount_kind(ROOT, bind, dockfix.self_binds([disk, bind])) == "itself"
    assert dockfix.foreign_mounts(ROOT, [disk, bind]) == []
    other = mount(dockfix, ROOT + driver, "8:2")
    assert dockfix.own_mount_kind(ROOT, other, dockfix.self_binds([disk, other])) == ""


def test_a_bind_of_another_folder_onto_itself_is_nobodys(dockfix):
    disk = mount(dockfix, "/", "8:1", number="1")
    bind = mount(dockfix, ROOT + "/network", "8:1", ROOT + "/network")
    assert dockfix.foreign_mounts(ROOT, [disk, bind]) == [bind]


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_a_driver_mounts_is_dockers_own_and_is_proved_gone(dockfix, driver):
    """A driver that is in the table is in the proof that no mount is left too."""
    facts = dockfix.STORAGE_DRIVERS[driver]
    for place in facts.mounts:
        layer = mount(dockfix, "%s/%s/%s" % (ROOT, driver, place.replace("*", HEX)))
        assert dockfix.foreign_mounts(ROOT, [layer]) == []
    check = dockfix.unmount_step(ROOT, "", as_undo=False).check
    assert " %s/%s/" % (ROOT, driver) in check[0]


def test_the_table_has_every_driver_and_each_row_agrees_with_itself(dockfix):
    assert set(dockfix.STORAGE_DRIVERS) == set(DRIVERS)
    for name, facts in dockfix.STORAGE_DRIVERS.items():
        assert set(facts.own_paths) <= set(facts.paths), name
        assert all(path.count("%s") == 1 for path in facts.paths), name
        mounted = {path.replace("%s", "*") for path in facts.paths} & set(facts.mounts)
        assert mounted == set(facts.mounts), name
        assert facts.family in dockfix.STORAGE_DRIVERS, name
        assert facts.advice.count("%") == bool(facts.advice), name
    assert set(dockfix.SNAPSHOTTERS) & set(DRIVERS) == set()
    assert dockfix.facts_of_driver("overlayfs") is dockfix.STORAGE_DRIVERS["overlay2"]
    assert dockfix.facts_of_driver("native") is dockfix.facts_of_driver("") is None
