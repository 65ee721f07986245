"""Docker roots to try `owner` on, laid out as each storage driver and engine does, by rules written
down here a second time.

    root = NewRoot(path, "overlay2")           # an engine since 1.10
    base = root.image(3, "busybox:latest")     # three layers; gives the image's id
    web = root.container("web", base)          # gives the container's id
    root.layers                                # {layer: (role, container's name or "", image ids)}

A driver has its name in DRIVERS and a method make_NAME (fuse-overlayfs: make_fuse_overlayfs).
OldRoot is the same for engines before 1.10.  Nothing here is read from dockfix.py.  Python 3.6.
"""

import hashlib
import json
import os

DRIVERS = ("devicemapper", "overlay", "overlay2", "aufs", "btrfs", "zfs", "vfs", "fuse-overlayfs")


def digest(*words):
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()


def write(path, data=""):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
    return path


class MadeRoot:
    def __init__(self, path, driver):
        self.path, self.driver, self.layers, self.count, self.paths, self.tags, self.names = (
            str(path),
            driver,
            {},
            0,
            {},
            {},
            {},
        )
        for name in ("containers", "volumes", "tmp", driver):
            os.makedirs(self.at(name), exist_ok=True)

    def at(self, *parts):
        return os.path.join(self.path, *parts)

    def next(self, *words):
        self.count += 1
        return digest(self.path, self.driver, self.count, *words)

    def folder(self, *parts):
        os.makedirs(self.at(self.driver, *parts), exist_ok=True)
        return self.at(self.driver, *parts)

    def make_layer(self, name, writable=False):
        """What the storage driver itself keeps of one layer; notes the folder where its files
        are."""
        made = getattr(self, "make_" + self.driver.replace("-", "_"))(name, writable)
        self.paths[name] = made

    def make_devicemapper(self, name, writable):
        self.device = getattr(self, "device", 0) + 1
        if not os.path.exists(self.at("devicemapper", "metadata", "base")):
            write(
                self.at("devicemapper", "metadata", "base"),
                '{"device_id":1,"size":10737418240,"transaction_id":1,"initialized":true,"deleted":false}',
            )
            write(
                self.at("devicemapper", "metadata", "deviceset-metadata"),
                '{"next_device_id":2,"BaseDeviceUUID":"x","BaseDeviceFilesystem":"xfs"}',
            )
            write(
                self.at("devicemapper", "metadata", "transaction-metadata"),
                '{"open_transaction_id":2,"device_hash":"x","device_id":2}',
            )
            self.device += 1
        write(
            self.at("devicemapper", "metadata", name),
            json.dumps(
                {
                    "device_id": self.device,
                    "size": 10737418240,
                    "transaction_id": self.device,
                    "initialized": False,
                    "deleted": False,
                }
            ),
        )
        return self.folder("mnt", name)

    def make_overlay(self, name, writable):
        if writable:
            write(self.at("overlay", name, "lower-id"), "x")
            self.folder(name, "merged")
            self.folder(name, "work")
        return self.folder(name, "upper" if writable else "root")

    def make_overlay2(self, name, writable):
        short = digest(name)[:26].upper()
        write(self.at(self.driver, name, "link"), short)
        self.folder("l")
        os.symlink("../%s/diff" % name, self.at(self.driver, "l", short))
        return self.folder(name, "diff")

    make_fuse_overlayfs = make_overlay2

    def make_aufs(self, name, writable):
        write(self.at("aufs", "layers", name), "")
        self.folder("mnt", name)
        return self.folder("diff", name)

    def make_btrfs(self, name, writable):
        return self.folder("subvolumes", name)

    def make_zfs(self, name, writable):
        return self.folder("graph", name)

    def make_vfs(self, name, writable):
        return self.folder("dir", name)

    def orphan(self):
        name = self.next("orphan")
        self.make_layer(name)
        self.layers[name] = ("orphan", "", [])
        return name


class NewRoot(MadeRoot):
    """The records of engines since 1.10: image/<driver>/, containers/*/config.v2.json."""

    def __init__(self, path, driver):
        MadeRoot.__init__(self, path, driver)
        self.chains, self.tops, self.diffs = {}, {}, {}
        for name in ("imagedb/content/sha256", "layerdb"):
            os.makedirs(self.at("image", driver, name))
        self.write_tags()

    def write_tags(self):
        repositories = {}
        for tag, image in self.tags.items():
            repositories.setdefault(tag.split("@")[0].rsplit(":", 1)[0], {})[tag] = (
                "sha256:" + image
            )
        write(
            self.at("image", self.driver, "repositories.json"),
            json.dumps({"Repositories": repositories}),
        )

    def image(self, layers, *tags, below=None):
        """An image of so many new layers above those of the image `below`."""
        diffs = list(self.diffs.get(below, []))
        chain = self.tops.get(below, "")
        for _ in range(layers):
            diff, cache = self.next("diff"), self.next("cache")
            parent, chain = chain, digest("sha256:" + chain, "sha256:" + diff) if chain else diff
            diffs.append(diff)
            folder = self.at("image", self.driver, "layerdb", "sha256", chain)
            for name, text in (
                ("cache-id", cache),
                ("diff", "sha256:" + diff),
                ("size", "1"),
                ("parent", "sha256:" + parent),
            ):
                if text != "sha256:":
                    write(os.path.join(folder, name), text)
            self.chains[chain] = (cache, parent)
            self.make_layer(cache)
            self.layers[cache] = ("image", "", [])
        text = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"n": self.next()},
                "rootfs": {"type": "layers", "diff_ids": ["sha256:" + diff for diff in diffs]},
            }
        )
        image = hashlib.sha256(text.encode()).hexdigest()
        write(self.at("image", self.driver, "imagedb", "content", "sha256", image), text)
        self.diffs[image], self.tops[image] = diffs, chain
        while chain:
            self.layers[self.chains[chain][0]][2].append(image)
            chain = self.chains[chain][1]
        self.tags.update({tag: image for tag in tags})
        self.write_tags()
        return image

    def built_from(self, image, base):
        """Docker's own builder records the image that a build began from; a pull, a load and
        BuildKit do not."""
        folder = self.at("image", self.driver, "imagedb", "metadata", "sha256", image)
        write(os.path.join(folder, "parent"), "sha256:" + base)

    def container(self, name, image, **config):
        container, mount = self.next("container"), self.next("mount")
        folder = self.at("image", self.driver, "layerdb", "mounts", container)
        for file, text in (
            ("mount-id", mount),
            ("init-id", mount + "-init"),
            ("parent", "sha256:" + self.tops[image]),
        ):
            write(os.path.join(folder, file), text)
        document = dict(
            {
                "ID": container,
                "Name": "/" + name,
                "Image": "sha256:" + image,
                "Driver": self.driver,
                "State": {"Running": False},
            },
            **config,
        )
        write(
            self.at("containers", container, "config.v2.json"),
            json.dumps(document, ensure_ascii=False),
        )
        self.make_layer(mount, True)
        self.make_layer(mount + "-init", True)
        self.layers[mount] = ("container", name, [image])
        self.layers[mount + "-init"] = ("container-init", name, [image])
        self.names[name] = container
        return container


class OldRoot(MadeRoot):
    """The records of engines before 1.10: graph/, repositories-<driver>, containers/*/config.json;
    a layer has the image's or the container's id."""

    def image(self, layers, *tags, below=""):
        for _ in range(layers):
            parent, below = below, self.next("layer")
            write(
                self.at("graph", below, "json"),
                json.dumps(
                    dict(
                        {"id": below, "created": "2015-01-01T00:00:00Z"},
                        **({"parent": parent} if parent else {}),
                    )
                ),
            )
            write(self.at("graph", below, "layersize"), "1")
            self.make_layer(below)
            self.layers[below] = ("image", "", [])
            self.parents = dict(getattr(self, "parents", {}), **{below: parent})
        chain = below
        while chain:
            self.layers[chain][2].append(below)
            chain = self.parents[chain]
        repositories = {}
        self.tags.update({tag: below for tag in tags})
        for tag, image in self.tags.items():
            name, word = tag.rsplit(":", 1)
            repositories.setdefault(name, {})[word] = image
        write(self.at("repositories-" + self.driver), json.dumps({"Repositories": repositories}))
        return below

    def container(self, name, image, **config):
        container = self.next("container")
        write(
            self.at("containers", container, "config.json"),
            json.dumps(
                dict(
                    {"ID": container, "Name": "/" + name, "Image": image, "Driver": self.driver},
                    **config,
                ),
                ensure_ascii=False,
            ),
        )
        self.make_layer(container, True)
        self.make_layer(container + "-init", True)
        self.layers[container] = ("container", name, [image])
        self.layers[container + "-init"] = ("container-init", name, [image])
        self.names[name] = container
        return container
