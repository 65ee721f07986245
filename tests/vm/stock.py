"""What pool recreate must bring back: everything of the machine, looked at by other programs than
dockfix, and compared."""

import json
import re
import time

ROOT, BACKUP = "/var/lib/docker", "/data/backup"
SMALLER = (
    "pool",
    "recreate",
    "--data",
    "3G",
    "--metadata",
    "512M",
    "--base-size",
    "1G",
    "--backup",
    BACKUP,
)
OVERLAY = ("pool", "recreate", "--driver", "overlay2", "--backup", BACKUP)
# Run in the machine: every file of every container (docker export) and of every volume, [type,
# mode, uid, gid, link, sha256], and what docker and the host say.
LOOK = r"""
import hashlib, json, os, subprocess, sys, tarfile
from concurrent.futures import ThreadPoolExecutor

def out(*argv):
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return child.communicate()[0].decode()

def digest(data):
    return hashlib.sha256(data).hexdigest()

def names(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

def tree(name):
    child, found = subprocess.Popen(("docker", "export", name), stdout=subprocess.PIPE), {}
    with tarfile.open(fileobj=child.stdout, mode="r|") as tar:
        for m in tar:
            data = tar.extractfile(m).read() if m.isreg() else b""
            found[m.name] = [m.type.decode(), m.mode, m.uid, m.gid, m.linkname, digest(data)]
            if m.name == "root/log":
                found[m.name] = data.decode()
    return found if child.wait() == 0 else None

def volume(name):
    top, found = "/var/lib/docker/volumes/%s/_data" % name, {}
    for folder, _, files in os.walk(top):
        for path in [folder] + [os.path.join(folder, one) for one in files]:
            s = os.lstat(path)
            with open(path if os.path.isfile(path) else os.devnull, "rb") as f:
                data = f.read()
            name = path[len(top):]
            found[name] = [s.st_mode, s.st_uid, s.st_gid, digest(data)]
            if name == "/log":
                found[name] = data.decode()
    return found

def listed(argv):
    return out("docker", *argv).split()

def inspected(argv):
    return json.loads(out("docker", *argv))

pool = ThreadPoolExecutor(3)
lists = [["ps", "-aq", "--no-trunc"], ["images", "-q", "--no-trunc"]]
lists += [["network", "ls", "-q"], ["volume", "ls", "-q"]]
ids, images, networks, volumes = pool.map(listed, lists)
asked = [["inspect"] + ids, ["image", "inspect"] + images]
asked += [["network", "inspect"] + networks, ["volume", "inspect"] + volumes]
containers, images, networks, labels = pool.map(inspected, asked)
trees = list(pool.map(tree, [one["Id"] for one in containers]))
folder = "/etc/systemd/system/docker.service.d/"
print(json.dumps({
    "containers": {one["Name"][1:]: one for one in containers},
    "images": {one["Id"]: sorted(one["RepoTags"] or []) for one in images},
    "networks": {one["Name"]: one for one in networks},
    "volumes": {one["Name"]: one["Labels"] for one in labels},
    "files": {one["Name"][1:]: found for one, found in zip(containers, trees)},
    "content": {name: volume(name) for name in volumes},
    "driver": out("docker", "info", "--format", "{{.Driver}}").strip(),
    "tables": out("dmsetup", "table", "--target", "thin-pool"),
    "units": {name: open(folder + name).read() for name in os.listdir(folder)},
    "root": names("/var/lib/docker"),
    "state": names("/var/lib/dockfix"),
    "bind": open("/data/bind/file").read() if os.path.exists("/data/bind/file") else "",
}))
"""
# What differs in `docker inspect` after the daemon was stopped and started, and why; a pattern of
# dotted names.
RESTARTED = (
    (r"State\.(Pid|StartedAt|FinishedAt)", "it was stopped and started again"),
    (
        r"NetworkSettings\.(Sandbox(ID|Key)|EndpointID)|NetworkSettings\.Networks\.\w+\.EndpointID",
        "made at each start",
    ),
    (
        r"NetworkSettings\.Networks\.bridge\.(NetworkID|IPAddress|MacAddress)|NetworkSettings\.(IPAddress|MacAddress)",
        "docker makes its own bridge anew at each start, and gives addresses in order of arrival",
    ),
    (r"NetworkSettings\.Networks\.net\.(IPAddress|MacAddress)", "an address that nobody asked for"),
    (r"(Hostname|Hosts|ResolvConf|Log)Path", "written at each start"),
)
# The same for a container that was made anew.
ANEW = (
    *RESTARTED,
    (r"Id|Created|Image|GraphDriver\..*|Driver", "another container: its id is in most paths"),
    (r"State\.Status", "what had ended before is made, not run again"),
    (r"Config\.Hostname", "the old short id stays its host name"),
    (r"Mounts\..*\.Mode", "z, which docker notes for a volume that is named on the command line"),
    (r"HostConfig\.OomKillDisable", "False where nothing was noted: they mean the same"),
    (r"Config\.Image", "what has files of its own comes from an image of its own"),
    (r"Config\.Attach(Stdout|Stderr)", "noted by the client that created it, without effect"),
    (
        r"Config\.Volumes.*|HostConfig\.Binds|HostConfig\.ConsoleSize.*",
        "an anonymous volume comes back by its name, so it is a bind; the terminal of the client",
    ),
    (
        r"HostConfig\.VolumesFrom|HostConfig\.(Network|Pid)Mode",
        "the same container, named in another way",
    ),
    (r"NetworkSettings\.Networks\.\w+\.Aliases", "the old short id is not one of them any more"),
)


def look(vm):
    """Everything; ids of containers are their names in it."""
    text = vm.run("python3", "-c", LOOK).text
    ids = {one["Id"]: name for name, one in json.loads(text)["containers"].items()}
    found = json.loads(
        re.sub(
            "|".join(["%s(?:%s)?" % (one[:12], one[12:]) for one in ids] or ["(?!)"]),
            lambda m: "<%s>" % next(ids[one] for one in ids if one.startswith(m.group()[:12])),
            text,
        )
    )
    for doc in found["containers"].values():
        doc["Mounts"] = {one["Destination"]: one for one in doc["Mounts"]}
    return dict(found, ids={name: one for one, name in ids.items()})


def flat(value, path=""):
    """{dotted name: value} of a document."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        name: one
        for key, part in value.items()
        for name, one in flat(part, path + "." * bool(path) + key).items()
    }


def differing(old, new, explained):
    """Fields of `docker inspect` that differ without an explanation."""
    a, b = flat(old), flat(new)
    return [
        "%s: %r, now %r" % (key, a.get(key), b.get(key))
        for key in sorted(set(a) | set(b))
        if a.get(key) != b.get(key)
        and not any(re.match(pattern + r"\Z", key) for pattern, _ in explained)
    ]


def counted(text):
    return [int(line) for line in text.split()]


def compare(before, after, explained, power=False):
    """In words, what is not as it was; explained: RESTARTED, or more where containers may be other
    ones."""
    anew = explained is not RESTARTED
    wrong = []
    for part in ("volumes", "bind"):
        wrong += ["%s: %r, now %r" % (part, before[part], after[part])] * (
            before[part] != after[part]
        )
    nets = [
        {
            name: [
                one["Id"],
                one["Driver"],
                one["Options"],
                one["Labels"],
                [part["Subnet"] for part in one["IPAM"]["Config"]],
            ]
            for name, one in found["networks"].items()
            if name != "bridge"
        }
        for found in (before, after)
    ]  # that one docker makes anew at each start
    wrong += ["networks: %r, now %r" % tuple(nets)] * (nets[0] != nets[1])
    wrong += [
        "%s is not there" % name for name in before["containers"] if name not in after["containers"]
    ] + ["%s is new" % name for name in after["containers"] if name not in before["containers"]]
    for name in set(before["containers"]) & set(after["containers"]):
        old, new = before["containers"][name], after["containers"][name]
        wrong += ["%s: %s" % (name, one) for one in differing(old, new, explained)]
        if old["State"]["Status"] != new["State"]["Status"]:
            wrong += [
                "%s was %s and is %s" % (name, old["State"]["Status"], new["State"]["Status"])
            ] * (old["State"]["Status"] != "exited" or new["State"]["Status"] != "created")
        wrong += ["%s: another id" % name] * (
            not anew and before["ids"][name] != after["ids"][name]
        )
    for part in ("files", "content"):
        for name in before[part]:
            old, new = before[part][name], after[part].get(name)
            if new is None:
                wrong.append("%s of %s: none" % (part, name))
                continue
            for path in sorted(set(old) | set(new)):
                if isinstance(old.get(path), str):
                    numbers, was = counted(new.get(path) or ""), counted(old[path])
                    rising = (
                        all(a < b for a, b in zip(numbers, numbers[1:]))
                        if anew or part == "files"
                        else numbers == list(range(1, len(numbers) + 1))
                    )
                    wrong += ["%s of %s: %s goes %r" % (part, name, path, numbers)] * (
                        numbers[: len(was)] != was or not (rising or power)
                    )
                elif old.get(path) != new.get(path):
                    wrong.append(
                        "%s of %s: %s is %r, now %r"
                        % (part, name, path, old.get(path), new.get(path))
                    )
    return wrong


def is_goal(before, after, driver="devicemapper", sectors=(3 << 30) // 512, explained=()):
    """What is not as it should be after the change."""
    images = {
        one: [tag for tag in tags if not tag.startswith("dockfix/restored:")]
        for one, tags in after["images"].items()
        if not all(tag.startswith("dockfix/restored:") for tag in tags or [""])
    }
    wrong = compare(before, after, ANEW + explained) + [
        "images: %r, now %r" % (before["images"], images)
    ] * (images != before["images"])
    wrong += ["the driver is " + after["driver"]] * (after["driver"] != driver) + [
        "the tables are " + after["tables"]
    ] * (
        "thin-pool" in after["tables"]
        if driver == "overlay2"
        else not re.match(r"\S+: 0 %d thin-pool [^\n]*\n\Z" % sectors, after["tables"])
    )
    wrong += ["units: %s" % sorted(after["units"])] * (
        sorted(after["units"]) != sorted(set(before["units"]) | {"zz-dockfix.conf"})
    )
    was, own, volume = (
        counted(one.get(path) or "")
        for one, path in (
            (before["files"].get("db", {}), "root/log"),
            (after["files"].get("db", {}), "root/log"),
            (after["content"].get("db-data", {}), "/log"),
        )
    )
    last = was[-1] if was else 0  # after a rollback its own file lacks what only the volume kept
    onward = was + list(range(last + 1, last + 1 + len(own) - len(was)))
    return wrong + ["a number is missing: %r of %r" % (own, volume)] * (
        own != onward or volume != list(range(1, len(volume) + 1))
    )


def is_old(before, after, power=False, kept=()):
    """What is not as it was, after everything is undone; kept: names of changes whose trees
    stay."""
    wrong = compare(before, after, RESTARTED, power)
    pools = [re.sub(r" thin-pool .*", "", found["tables"]) for found in (before, after)]
    wrong += ["the pool is %r, was %r" % tuple(pools)] * (pools[0] != pools[1])
    wrong += [
        "%s: %r, now %r" % (part, before[part], after[part])
        for part in ("images", "driver", "units")
        if before[part] != after[part]
    ]
    wrong += ["in the root: %s" % after["root"]] * (
        sorted(before["root"] + [".dockfix-" + name for name in kept]) != after["root"]
    )
    return wrong + ["in the state: %s" % after["state"]] * (
        after["state"] != sorted(["lock"] + [name + ".json" for name in kept])
    )


def is_overlay(before, after):
    return is_goal(
        before,
        after,
        "overlay2",
        explained=(
            (
                r"HostConfig\.StorageOpt.*",
                "overlay2 limits no container's own files; it is said beforehand",
            ),
        ),
    )


def finished(vm, *words):
    """One dockfix that comes after a kill: what the killed one had started is waited for."""
    while True:
        done = vm.dockfix("-y", "--json", *words)
        if done.rc != 8:
            return done
        assert b"step" in done.out, done
        time.sleep(0.3)


def build(vm):
    """One build with BuildKit, which must find what the engine has, and nothing of before."""
    vm.sh(
        "mkdir -p /run/build; date +%s%N > /run/build/file; printf 'FROM dockfix-test/busybox\nCOPY"
        " file /file\nRUN cat /file\n' > /run/build/Dockerfile\nDOCKER_BUILDKIT=1 /usr/bin/docker"
        " build --network none -t built /run/build; docker rmi built"
    )
