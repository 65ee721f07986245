"""A docker with real volumes, images and containers on the disk: what `restore` needs, and no more.

Installed as BOX/bin/docker by install(box, make).  State stands below BOX/engine: volumes/NAME/,
images/NAME/ (a root), containers/NAME/ (json, and root/, the container's own layer).  make "1.12":
no --pull; docker cp does not see what is mounted below the folder that it is told, so that files
for it land in the own layer; a mount gives the volume owner and rwx bits of the image's folder.
make "28": docker cp sees mounts; a first mount gives the volume all of the image's folder.  Both
leave out '.' of a tar. What inspect shows of a container that is called NAME is
BOX/engine/docs/NAME, where that is there. BOX/engine/pulled gets a line for each image that a
registry was asked for."""

import json
import os
import re
import shutil
import sys
import tarfile
import contextlib

HERE = os.path.abspath(__file__)
IMAGES = {"sha256:" + "1" * 64: "img:latest"}  # ids that tests know
CREATED = {"StartedAt": "0001-01-01T00:00:00Z", "Running": False, "Paused": False}


def install(box, make):
    for name in ("volumes", "images", "containers", "docs"):
        os.makedirs(box.at("engine", name), exist_ok=True)
    box.program(
        "docker",
        'exec %s -B %s %s %s "$@"\n' % (sys.executable, HERE, box.at("engine"), make),
    )


class Stop(Exception):
    """What docker says, with exit status 1."""


class Engine:
    def __init__(self, home, make):
        self.home, self.make = home, make

    def at(self, kind, name="", *more):
        return os.path.join(self.home, kind, name.replace("/", "%") if name else "", *more)

    def names(self, kind):
        return sorted(name.replace("%", "/") for name in os.listdir(self.at(kind)))

    def need(self, kind, name):
        for full in (name, name + ":latest"):
            if os.path.isdir(self.at(kind, full)):
                return full
        raise Stop("Error: No such %s: %s" % (kind[:-1], name))

    # ---- what is asked

    def info(self, words):
        return json.dumps(
            {"ID": "fake", "Driver": "overlay2", "DockerRootDir": self.home + "/none"}
        )

    def version(self, words):
        return self.make

    def ps(self, words):
        found = [self.container(name) for name in self.names("containers")]
        wanted = [word[7:] for word in words if word.startswith("volume=")]
        found = [one for one in found if not wanted or wanted[0] in one["mounts"].values()]
        if "-aq" in words:
            return "\n".join(one["Id"] for one in found)
        return "\n".join("%s %s Created" % (one["Id"], one["Name"][1:]) for one in found)

    def images(self, words):
        return "\n".join(self.names("images")) if "-q" in words else ""

    def network(self, words):
        return ""

    def volume(self, words):
        if words[0] == "ls":
            return "\n".join(self.names("volumes"))
        if words[0] == "create":
            name = next(word[7:] for word in words if word.startswith("--name="))
            os.mkdir(self.at("volumes", name), 0o755)
            return name
        if words[0] == "rm":
            shutil.rmtree(self.at("volumes", self.need("volumes", words[-1])))
            return ""
        docs = []
        for name in words[1:]:
            self.need("volumes", name)
            place = {"Driver": "local", "Mountpoint": self.at("volumes", name)}
            docs.append(dict(place, Name=name))
        return json.dumps(docs)

    def inspect(self, words):
        kind = "images" if "image" in words[:2] else "containers"
        names = [word for word in words if not word.startswith("-")]
        if "-f" in words or any("{{" in word for word in words):
            name, form = names[-1], next(word for word in words if "{{" in word)
            if kind == "images":
                return self.need("images", name)
            state = self.container(self.find(name))["State"]
            if "StartedAt" in form:
                return "true" if state["StartedAt"].startswith("0001") else "false"
            return "[/%s]" % self.find(name)
        if kind == "images":
            there = []
            for name in names[1:]:
                with contextlib.suppress(Stop):
                    there.append(self.need("images", IMAGES.get(name, name)))
            ids = {IMAGES[ident]: ident for ident in IMAGES}
            docs = [{"Id": ids.get(one, one), "RepoTags": [one], "Config": {}} for one in there]
            print(json.dumps(docs))
            if len(there) < len(names[1:]):
                raise Stop("Error: No such image")
            return None
        return json.dumps([self.container(self.find(name)) for name in names[1:]])

    def find(self, ref):
        for name in self.names("containers"):
            if ref in (name, self.container(name)["Id"]):
                return name
        raise Stop("Error: No such container: %s" % ref)

    def container(self, name):
        with open(self.at("containers", self.need("containers", name), "json")) as f:
            return json.load(f)

    # ---- what is done

    def load(self, words):
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
            for member in archive:
                if member.name == "manifest.json":
                    for one in json.loads(archive.extractfile(member).read().decode()):
                        for tag in one["RepoTags"]:
                            os.makedirs(self.at("images", tag), exist_ok=True)
        return ""

    def tag(self, words):
        shutil.copytree(
            self.at("images", self.need("images", words[0])), self.at("images", words[1])
        )
        return ""

    def rmi(self, words):
        shutil.rmtree(self.at("images", self.need("images", words[0])))
        return ""

    def __call__(self, words):
        command = words[0]
        if command == "import":
            os.makedirs(self.at("images", words[2]))
            if words[1] == "-":
                self.unpack(self.at("images", words[2]))
            return ""
        if command == "create" and "--help" in words:
            return "Usage: docker create" + ("" if self.make == "1.12" else "\n  --pull string")
        return getattr(self, command)(words[1:])

    def create(self, words):
        options, rest = [], list(words)
        while rest[0].startswith("--"):
            options.append(rest.pop(0))
        name = next(word[7:] for word in options if word.startswith("--name="))
        try:
            image = self.need("images", rest[0])
        except Stop:
            if "--pull=never" not in options:
                with open(self.at("pulled"), "a") as f:
                    f.write(rest[0] + "\n")
            raise
        os.makedirs(self.at("containers", name, "root"))
        mounts = {}
        for word in options:
            found = re.match(r"--volume=([^/:]+):([^:]+)(:.*)?$", word)
            if found:
                mounts[found.group(2)] = found.group(1)
                os.makedirs(self.at("containers", name, "root", found.group(2)[1:]))
                if found.group(3) != ":nocopy":
                    self.first_mount(self.at("images", image), found.group(2), found.group(1))
        doc = {
            "Id": (name.encode().hex() + "0" * 64)[:64],
            "Name": "/" + name,
            "Image": rest[0],
            "argv": ["create", *options, *rest],
            "mounts": mounts,
            "Config": {},
            "HostConfig": {"Binds": ["%s:%s" % (mounts[one], one) for one in mounts]},
            "NetworkSettings": {"Networks": {}},
            "State": CREATED,
            "Mounts": [{"Name": mounts[one], "Destination": one} for one in sorted(mounts)],
        }
        if os.path.exists(self.at("docs", name)):
            with open(self.at("docs", name)) as f:
                doc = dict(
                    json.load(f), **{key: doc[key] for key in ("Id", "argv", "mounts", "State")}
                )
        doc["stdin"] = "" if sys.stdin.isatty() else sys.stdin.read()
        with open(self.at("containers", name, "json"), "w") as f:
            json.dump(doc, f)
        return doc["Id"]

    def first_mount(self, image, point, volume):
        source, target = os.path.join(image, point[1:]), self.at("volumes", volume)
        if not os.path.isdir(source) or (self.make != "1.12" and os.listdir(target)):
            return
        found = os.stat(source)
        os.chown(target, found.st_uid, found.st_gid)
        os.chmod(target, found.st_mode & (0o777 if self.make == "1.12" else 0o7777))

    def start(self, words):
        name = self.find(words[-1])
        doc = self.container(name)
        doc["State"] = {"StartedAt": "2024-01-01T00:00:00Z", "Running": True, "Paused": False}
        with open(self.at("containers", name, "json"), "w") as f:
            json.dump(doc, f)
        return name

    def rm(self, words):
        shutil.rmtree(self.at("containers", self.find(words[-1])))
        return ""

    # ---- docker cp

    def place(self, ref, path, outward):
        """Where a path of a container is on the disk, and the mounts that are seen below it."""
        name = self.find(ref)
        mounts = self.container(name)["mounts"]
        for point in mounts:
            if path == point or path.startswith(point + "/"):
                return self.at("volumes", mounts[point]) + path[len(point) :], {}
        seen = {} if self.make == "1.12" and not outward else mounts
        return self.at("containers", name, "root", path[1:]), {
            os.path.relpath(point, path): self.at("volumes", mounts[point])
            for point in seen
            if point.startswith(path.rstrip("/") + "/")
        }

    def cp(self, words):
        source, target = words
        if source == "-":
            where, seen = self.place(*([*target.split(":", 1), False]))
            self.unpack(where, seen)
            return ""
        where, _ = self.place(*([*source.split(":", 1), True]))
        base = os.path.basename(source.split(":", 1)[1])
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as out:
            self.send(out, where, base)
        return None

    def send(self, out, path, name):
        """In the order of names, as Go's filepath.Walk goes."""
        out.add(path, name, recursive=False)
        if os.path.isdir(path) and not os.path.islink(path):
            for one in sorted(os.listdir(path)):
                self.send(out, os.path.join(path, one), name + "/" + one)

    def unpack(self, where, seen=()):
        """As docker does: '.' is left out, and where a mount is seen its files go there."""
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
            tar.extraction_filter = lambda member, path: member
            for member in tar:
                if member.name in (".", "./"):
                    continue
                into, name = where, member.name
                for point in seen:
                    if name == point or name.startswith(point + "/"):
                        into, name = seen[point], name[len(point) :].lstrip("/")
                        if member.islnk():
                            member.linkname = member.linkname[len(point) :].lstrip("/")
                member.name = name or "."
                if not name:  # the mount point's own folder
                    os.chown(into, member.uid, member.gid)
                    os.chmod(into, member.mode & 0o7777)
                    continue
                tar.extract(member, into, numeric_owner=True)


def main(home, make, words):
    engine = Engine(home, make)
    if os.path.exists(os.path.join(home, "log")):
        with open(os.path.join(home, "log"), "a") as f:
            f.write(json.dumps(words) + "\n")
    try:
        said = engine(words)
    except Stop as err:
        sys.stderr.write("%s\n" % err)
        return 1
    if said is not None:
        sys.stdout.write(said + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
