"""Archives as `docker save` writes them, and tars of volumes as `docker cp` does, made by hand so
that they can be wrong.

An archive is a list of members, each (name, bytes) or a TarInfo; `tar` makes the file of them.
"""

import hashlib
import io
import json
import tarfile


def sha(data):
    return hashlib.sha256(data).hexdigest()


def text(found):
    return json.dumps(found, sort_keys=True).encode()


def tar(members, end=True):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
                continue
            member = tarfile.TarInfo(one[0])
            member.size = len(one[1])
            archive.addfile(member, io.BytesIO(one[1]))
        size = archive.offset
    return out.getvalue() if end else out.getvalue()[:size]


def special(name, kind, link="", mode=0o644, uid=0, gid=0, mtime=0):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    member.uid, member.gid, member.mtime = uid, gid, mtime
    return member


def layer(word):
    """The bytes of a layer: a tar with one small file."""
    return tar([(word, word.encode())])


def config_of(layers, **more):
    return text(
        dict(
            {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + sha(one) for one in layers]}},
            **more,
        )
    )


class Classic:
    """The form of Docker 1.10 to 24: HEX.json, ID/layer.tar, manifest.json. A layer that is there
    already is a link to it."""

    def __init__(self):
        self.members, self.entries, self.ids = [], [], {}

    def add(self, tags, layers):
        """Its id, as docker inspect says."""
        config, paths = config_of(layers), []
        for one in layers:
            ident = sha(b"v1" + one + str(len(self.members)).encode())
            path = ident + "/layer.tar"
            self.members += [(ident + "/VERSION", b"1.0"), (ident + "/json", b"{}")]
            if one in self.ids:
                self.members.append(special(path, tarfile.SYMTYPE, "../" + self.ids[one]))
            else:
                self.members.append((path, one))
                self.ids[one] = path
            paths.append(path)
        self.members.append((sha(config) + ".json", config))
        entry = {"Config": sha(config) + ".json", "RepoTags": list(tags) or None, "Layers": paths}
        self.entries.append(entry)
        return "sha256:" + sha(config)

    def all_members(self):
        return [*self.members, ("manifest.json", text(self.entries)), ("repositories", b"{}")]


class Oci:
    """The form with index.json: a blob for each config, manifest, layer and index; manifest.json
    beside it where asked for."""

    def __init__(self, docker=True):
        self.blobs, self.index, self.entries, self.docker = {}, [], [], docker

    def blob(self, data):
        self.blobs[sha(data)] = data
        return {"digest": "sha256:" + sha(data), "size": len(data)}

    def manifest(self, layers, stored=None, **config):
        """The descriptor of an image's manifest. stored: the layers' bytes as they are kept,
        compressed for instance."""
        found = self.blob(config_of(layers, **config))
        stored = [self.blob(one) for one in stored or layers]
        descriptor = self.blob(text({"schemaVersion": 2, "config": found, "layers": stored}))
        self.last = {
            "Config": "blobs/sha256/" + found["digest"][7:],
            "Layers": ["blobs/sha256/" + one["digest"][7:] for one in stored],
        }
        return descriptor

    def many(self, children):
        """The descriptor of an index of descriptors."""
        return self.blob(text({"schemaVersion": 2, "manifests": children}))

    def name(self, descriptor, *tags):
        """Its id, as docker inspect says with the containerd store."""
        names = {"moby-dangling@" + descriptor["digest"]: None} if not tags else {}
        for tag in tags or names:
            full = tag if "/" in tag or not tags else "docker.io/library/" + tag
            notes = {
                "io.containerd.image.name": full,
                "org.opencontainers.image.ref.name": tag.split(":")[-1],
            }
            self.index.append(dict(descriptor, annotations=notes))
        if self.docker:
            self.entries.append(dict(self.last, RepoTags=list(tags) or None))
        return descriptor["digest"]

    def all_members(self):
        members = [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')]
        members += [("blobs/sha256/" + name, data) for name, data in sorted(self.blobs.items())]
        members.append(("index.json", text({"schemaVersion": 2, "manifests": self.index})))
        if self.docker:
            members.append(("manifest.json", text(self.entries)))
        return members


def volume(members=(), root=None):
    """A volume's tar: its own folder `data`, and members below it, each (name, bytes) or a
    TarInfo."""
    return tar([root or special("data", tarfile.DIRTYPE, mode=493), *list(members)])
