"""The findings of `storage`, each from the facts that make it. To add one: a row of CASES, and the
function in STORAGE_FINDINGS of dockfix.py. How the facts are read is tried in test_storage.py."""

import pytest

GIB = 1 << 30


@pytest.fixture
def facts_of(dockfix):
    """facts_of(case) -> StorageFacts. A case is a function of the module, which returns the fields
    that differ from those of an engine of which nothing is known."""
    return lambda case: dockfix.StorageFacts(**case(dockfix))


def size(module, number):
    return module.Fact(number, "dmsetup")


def space(module, used, total, **more):
    return module.PoolSpace(used=size(module, used), total=size(module, total), **more)


def pool(module, **fields):
    fields.setdefault("data", space(module, 10 * GIB, 100 * GIB))
    fields.setdefault("metadata", space(module, GIB, 100 * GIB))
    return {"pool": module.Pool(name=module.Fact("docker-pool", "docker info"), **fields)}


def full_data(module):
    return pool(module, data=space(module, 85 * GIB, 100 * GIB))


def data_below_min_free(module):
    return pool(module, data=space(module, 95 * GIB, 100 * GIB))


def fuller_metadata(module):
    return pool(module, metadata=space(module, 60 * GIB, 100 * GIB))


def failed_pool(module):
    return pool(module, state=module.Fact("Fail", "dmsetup"), needs_check=module.Fact(True, "x"))


def pool_beyond_disk(module):
    allocated = module.Fact(10 * GIB, "stat")
    free = module.Fact(20 * GIB, "statvfs")
    data = space(module, 10 * GIB, 100 * GIB, allocated=allocated, disk_free=free)
    return pool(module, mode=module.Fact("loop", "dmsetup"), data=data)


def deleted_loop_file(module):
    loop = module.LoopFile("/dev/loop7", "/x/devicemapper/devicemapper/data (deleted)")
    return {"deleted_loop_files": [loop]}


def disk(module, used_percent):
    return module.Disk("/srv/docker", 7, GIB, GIB, "xfs", "/srv", used_percent, 1.0)


def full_disk(module):
    return {"disks": [module.DiskUse(disk(module, 96.0), ["layers"])]}


def full_system_disk(module):
    return dict(full_disk(module), on_system_disk=True)


def system_disk(module):
    return {"disks": [module.DiskUse(disk(module, 5.0), ["layers"])], "on_system_disk": True}


def option(module, kind, name, value, used=True, fault=""):
    options = (module.DaemonOption(name, value),)
    return module.OptionSource(kind, "/etc/" + kind, "", "", options, used, fault)


def option_twice(module):
    flag = option(module, "unit", "storage-opt", "dm.basesize=5G")
    setting = option(module, "daemon.json", "storage-opt", "dm.basesize=20G")
    return {"options": [flag, setting]}


def broken_daemon_json(module):
    return {"options": [option(module, "daemon.json", "log-driver", "", fault="is no JSON")]}


def option_nobody_reads(module):
    return {"options": [option(module, "environment", "storage-opt", "dm.fs=xfs", used=False)]}


def option_that_waits(module):
    running = option(module, "running", "data-root", "/srv", used=False)
    return {"options": [running, option(module, "unit", "storage-opt", "dm.fs=xfs")]}


def useless_metadata(module):
    return {"options": [option(module, "unit", "storage-opt", "dm.loopmetadatasize=20G")]}


def smaller_base_size(module):
    facts = pool(module, base_device_size=module.Fact(10 * GIB, "metadata/base"))
    return dict(facts, options=[option(module, "unit", "storage-opt", "dm.basesize=5G")])


def large_log(module):
    row = module.ContainerUsage("web", True, False, "a" * 64, 3 * GIB, True)
    return {"usage": module.EngineUsage(logs=module.Usage([row], 1, 3 * GIB, True))}


def unused_volume(module):
    row = module.VolumeUsage("my data", GIB, True)
    return {"usage": module.EngineUsage(unused_volumes=module.Usage([row], 1, GIB, True))}


def orphan(module):
    row = module.LayerUsage("a" * 64, None, False)
    return {"usage": module.EngineUsage(orphans=module.Usage([row], 1, None, False))}


def engine(module, driver, version="20.10", **more):
    known = {"driver": driver, "server_version": version, "root": "/srv/docker"}
    facts = {name: module.Fact(value, "docker info") for name, value in known.items()}
    return module.EngineFacts(**dict(facts, **more))


def stranded_devicemapper(module):
    folder = module.DriverFolder("devicemapper", "/srv/docker/devicemapper", False, GIB)
    return {"engine": engine(module, "overlay2", "25.0.3"), "drivers_on_disk": [folder]}


def overlay2(module):
    return {"engine": engine(module, "overlay2")}


def windows(module):
    return {"engine": engine(module, "windowsfilter")}


def containerd(module):
    store = module.Fact("containerd", "docker info")
    return {"engine": engine(module, "overlayfs", image_store=store), "elsewhere": "saved"}


def something_missing(module):
    return {"missing": ["/srv/docker/volumes: Permission denied"]}


def nothing(module):
    return {}


# (the facts, the finding's id and severity, what its text says, what its remedy says)
CASES = [
    (full_data, "full-data", "warning", "85.0 % full", "pool grow --data"),
    (full_disk, "full-disk", "critical", "the disk under /srv/docker (layers)", "reclaim"),
    (nothing, "fullness-unknown", "warning", "fullness is known", "storage"),
    (failed_pool, "pool-state", "critical", "state Fail, needs_check", "dmsetup status"),
    (fuller_metadata, "metadata-fuller", "warning", "60.0 %", "pool grow --metadata"),
    (data_below_min_free, "min-free-data", "critical", "refuses now", "pool grow --data"),
    (pool_beyond_disk, "ceiling-beyond-disk", "warning", "90.0 GiB", "relocate"),
    (pool_beyond_disk, "next-ceiling", "info", "the disk under the pool files", "reclaim"),
    (deleted_loop_file, "loop-deleted", "critical", "still holds", "losetup -l /dev/loop7"),
    (option_twice, "option-twice", "critical", "dm.basesize", "grep -n"),
    (broken_daemon_json, "option-place", "critical", "is no JSON", "cat /etc/daemon.json"),
    (option_nobody_reads, "option-unread", "info", "no unit reads", "systemctl cat"),
    (option_that_waits, "option-waiting", "warning", "dm.fs=xfs", "daemon-reload"),
    (useless_metadata, "metadata-useless", "info", "15.88 GiB", "grep"),
    (smaller_base_size, "base-size-smaller", "critical", "10.0 GiB", "make it 10.0 GiB"),
    (large_log, "log-large", "warning", "container web has 3.0 GiB", "--logs"),
    (unused_volume, "unused-volumes", "info", ": 1 (size 1.0 GiB)", "--volumes 'my data'"),
    (orphan, "orphans", "info", ": 1 (size unknown)", "owner --orphans"),
    (system_disk, "root-on-system-disk", "info", "the system disk", "relocate"),
    (full_system_disk, "root-on-system-disk", "warning", "the system disk", "relocate"),
    (stranded_devicemapper, "devicemapper-stranded", "warning", "before 25", "owner"),
    (stranded_devicemapper, "other-drivers", "info", "devicemapper (1.0 GiB)", "owner"),
    (containerd, "containerd-store", "info", "figures are unknown", "docker system df"),
    (windows, "windows", "warning", "Windows engine", "docker system df"),
    (overlay2, "driver-overlay2", "info", "a file deleted inside", "owner"),
    (something_missing, "not-known", "info", "Permission denied", "storage"),
]


@pytest.mark.parametrize(
    "case, name, severity, text, remedy", CASES, ids=["%s-%s" % (row[1], row[2]) for row in CASES]
)
def test_facts_make_the_finding(dockfix, facts_of, case, name, severity, text, remedy):
    findings = dockfix.storage_findings(facts_of(case))
    (found,) = [finding for finding in findings if finding.id == name]
    assert found.severity == severity
    assert text in found.text and remedy in found.remedy


def test_every_function_of_the_table_makes_a_finding_of_a_case(dockfix, facts_of):
    silent = set(dockfix.STORAGE_FINDINGS)
    for row in CASES:
        facts = facts_of(row[0])
        silent -= {find for find in silent if find(facts)}
    assert silent == set()


def test_an_engine_where_all_is_well_has_no_warning(dockfix, facts_of):
    findings = dockfix.storage_findings(facts_of(system_disk))
    assert [finding for finding in findings if finding.severity != "info"] == []
