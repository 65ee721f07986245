"""Is a backup that is called complete all that `restore` needs?  On current engines: images that
`docker save` writes without their layers (moby#49784), an image for two platforms of which one is
there, a registry that must see no request, volumes that come back whole."""

import io
import json
import os
import shutil
import sys
import tarfile

import pytest

from current import image_without_layers, start_registry, stop_registry

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "unit"))

import make_archive

LOG = "var/log/registry.log"
FILL = (
    "mkdir -p /data/d /data/e; head -c 300000 /dev/urandom > /data/d/r; ln -s d/r /data/l; ln"
    " /data/d/r /data/h; mkfifo /data/p;chown 5:6 /data/e; chmod 4711 /data/d/r; touch -d"
    " '2001-01-01 00:00:01' /data/e; chown 77:88 /data; chmod 2750 /data"
)


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {
            m.name: (
                m.type,
                m.mode & 0o7777,
                (m.uid, m.gid, m.mtime),
                m.linkname,
                tar.extractfile(m).read() if m.isreg() else b"",
            )
            for m in tar
        }


def copied(lab, name, path):
    return members(lab.docker("cp", "%s:%s" % (name, path), "-").stdout)


def wipe(lab):
    """Containers, volumes and images: as on a new host."""
    for words, remove in (
        (("ps", "-aq"), ("rm", "-f", "-v")),
        (("volume", "ls", "-q"), ("volume", "rm")),
        (("images", "-aq"), ("rmi", "-f")),
    ):
        names = sorted(set(lab.docker(*words).stdout.decode().split()))
        if names:
            lab.docker(*(remove + tuple(names)), check=False)
    lab.images.clear()
    shutil.rmtree(lab.engine.root("srv/kept"), ignore_errors=True)
    shutil.rmtree(lab.engine.root("srv/old"), ignore_errors=True)


@pytest.fixture(params=[("trixie", "containerd"), ("trixie", "overlay2")], ids="-".join)
def host(request, current_labs):
    lab = current_labs(*request.param)
    wipe(lab)
    yield lab
    wipe(lab)


@pytest.fixture
def containerd(current_labs):
    lab = current_labs("trixie", "containerd")
    wipe(lab)
    yield lab
    wipe(lab)


def statuses(run):
    return {name: row["status"] for name, row in run.rows.items()}


def requests(lab):
    with open(lab.engine.root(LOG)) as f:
        return [line for line in f if "http.request.uri" in line or "HTTP/1.1" in line]


# ---------------------------------------------------------------------- images


def make_lost(lab):
    """A container on an image that docker save loses, and one on an image of which all is there;
    what they hold."""
    lost = image_without_layers(lab.engine, "gone", "keeper")
    lab.engine.import_busybox("good:1", files={"other": "another layer"})
    lab.docker("run", "-d", "--network", "none", "--name", "web", "-v", "data:/data", "good:1")
    lab.inside("web", "echo own > /own; " + FILL)
    return lost, copied(lab, "keeper", "/bin"), copied(lab, "web", "/data")


def test_what_docker_save_does_not_write_is_exported_and_named(containerd):
    lab = containerd
    lost, tree, data = make_lost(lab)
    made = lab.dockfix("backup", "/srv/kept", "--json")
    assert made.rc == 3, made
    assert statuses(made) == {"backup": "changed", lost: "failed"}
    assert made.rows["backup"]["msg"].startswith("not complete: ")
    checked = lab.dockfix("backup", "--verify", "/srv/kept", "--json")
    assert checked.rc == 3 and checked.rows[lost]["status"] == "failed"
    wipe_but_backup(lab)
    stop_registry(lab.engine)
    back = lab.dockfix("restore", "-y", "/srv/kept", "--json")
    assert back.rc == 3, back
    wanted = {"restore": "changed", lost: "failed", "keeper": "changed", "web": "changed"}
    assert statuses(back) == wanted
    assert copied(lab, "keeper", "/bin") == tree and tree
    assert copied(lab, "web", "/data") == data and lab.inside("web", "cat /own") == b"own\n"
    lab.docker("start", "keeper")
    assert lab.docker("exec", "keeper", "echo", "here").stdout == b"here\n"
    again = lab.dockfix("restore", "-y", "/srv/kept", "--json")
    assert again.rc == 3 and again.rows["keeper"]["status"] == "unchanged", again


def wipe_but_backup(lab):
    shutil.move(lab.engine.root("srv/kept"), lab.engine.root("srv/away"))
    wipe(lab)
    shutil.move(lab.engine.root("srv/away"), lab.engine.root("srv/kept"))


def test_no_request_reaches_a_registry_that_answers(containerd):
    """The backup as an earlier version made it: called complete, and docker save has lost the
    image."""
    lab = containerd
    lost = make_lost(lab)[0]
    assert lab.dockfix("backup", "/srv/kept").rc == 3
    forge_complete(lab, lost)
    wipe_but_backup(lab)
    start_registry(lab.engine)
    before = len(requests(lab))
    assert before > 5, "the registry notes what is asked"
    checked = lab.dockfix("backup", "--verify", "/srv/kept", "--json")
    assert checked.rc == 3 and checked.rows["keeper"]["status"] == "failed", checked
    back = lab.dockfix("restore", "-y", "/srv/kept", "--json")
    assert back.rc == 3, back
    script = lab.dockfix("restore", "-n", "/srv/kept")
    assert script.rc == 0
    lab.call("sh", input=script.out, check=False)
    assert requests(lab)[before:] == []
    assert b"keeper" not in lab.docker("ps", "-a", "--format", "{{.Names}}").stdout
    lab.docker("pull", lost)  # it would have answered
    assert len(requests(lab)) > before
    stop_registry(lab.engine)


def forge_complete(lab, lost):
    at = lab.engine.root("srv/kept")
    with open(os.path.join(at, "manifest.json")) as f:
        made = json.load(f)
    del made["lacks"]
    made["own"] = {
        ident: "" if made["own"][ident] == "export" else made["own"][ident] for ident in made["own"]
    }
    assert "" in made["own"].values()
    ref = [one for one in tags_of(os.path.join(at, "images.tar")) if "dockfix/backup" in one]
    lab.docker("load", "-i", "/dev/stdin", input=read(os.path.join(at, "images.tar")))
    saved = lab.docker("save", lost, "good:1", *ref).stdout
    for name, data in (("images.tar", saved), ("manifest.json", json.dumps(made).encode())):
        with open(os.path.join(at, name), "wb") as f:
            f.write(data)
    with open(os.path.join(at, "images.tar.sha256"), "w") as f:
        f.write(make_archive.sha(read(os.path.join(at, "images.tar"))) + "  -\n")


def read(path):
    with open(path, "rb") as f:
        return f.read()


def tags_of(path):
    with tarfile.open(path) as tar:
        found = json.loads(tar.extractfile("manifest.json").read().decode())
    return [tag for one in found for tag in one["RepoTags"]]


def test_an_image_for_two_platforms_of_which_this_one_is_there_is_whole(containerd):
    lab = containerd
    machine = lab.docker("version", "-f", "{{.Server.Arch}}").stdout.decode().strip()
    other = "s390x" if machine != "s390x" else "amd64"
    root = lab.engine.import_busybox("base:1")
    with tarfile.open(fileobj=io.BytesIO(lab.docker("save", root).stdout)) as tar:
        entry = json.loads(tar.extractfile("manifest.json").read().decode())[0]
        config = json.loads(tar.extractfile(entry["Config"]).read().decode())
        layer = tar.extractfile(entry["Layers"][0]).read()
    lab.docker("rmi", root)
    made = make_archive.Oci(docker=False)
    mine = made.blob(make_archive.text(config))
    layers = [dict(made.blob(layer), mediaType="application/vnd.oci.image.layer.v1.tar+gzip")]
    kind = "application/vnd.oci.image."
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind + "manifest.v1+json",
        "config": dict(mine, mediaType=kind + "config.v1+json"),
        "layers": layers,
    }
    children = [
        dict(made.blob(make_archive.text(manifest)), mediaType=kind + "manifest.v1+json"),
        {"digest": "sha256:" + "5" * 64, "size": 500, "mediaType": kind + "manifest.v1+json"},
    ]
    for child, processor in zip(children, (machine, other)):
        child["platform"] = {"os": "linux", "architecture": processor}
    index = {"schemaVersion": 2, "mediaType": kind + "index.v1+json", "manifests": children}
    top = dict(made.blob(make_archive.text(index)), mediaType=kind + "index.v1+json")
    made.name(top, "many:1")
    lab.docker("load", input=make_archive.tar(made.all_members()))
    lab.docker("create", "--network", "none", "--name", "many", "many:1")
    tree = copied(lab, "many", "/bin")
    run = lab.dockfix("backup", "/srv/kept", "--json")
    assert run.rc == 0 and statuses(run) == {"backup": "changed"}, run
    assert lab.dockfix("backup", "--verify", "/srv/kept").rc == 0
    wipe_but_backup(lab)
    run = lab.dockfix("restore", "-y", "/srv/kept", "--json")
    assert run.rc == 0 and copied(lab, "many", "/bin") == tree and tree, run


# ---------------------------------------------------------------------- volumes


def test_volumes_come_back_member_by_member_and_a_second_restore_fills_an_empty_one(host):
    lab = host
    lab.engine.import_busybox("good:1")
    lab.docker("run", "-d", "--network", "none", "--name", "web", "-v", "data:/data", "good:1")
    lab.inside("web", FILL)
    data = copied(lab, "web", "/data")
    assert len(data) == 7 and lab.dockfix("backup", "/srv/kept").rc == 0
    wipe_but_backup(lab)
    run = lab.dockfix("restore", "-y", "/srv/kept", "--json")
    assert run.rc == 0 and copied(lab, "web", "/data") == data, run
    lab.inside("web", "rm -r /data/*")  # as a version before this one left it on old engines
    run = lab.dockfix("restore", "-y", "/srv/kept", "--json")
    assert run.rc == 0 and copied(lab, "web", "/data") == data, run
    assert b"docker restart web" in run.err
    lab.inside("web", "rm -r /data/*; echo mine > /data/own")
    run = lab.dockfix("restore", "-y", "/srv/kept", "--json")
    assert run.rc == 0 and lab.inside("web", "cat /data/*") == b"mine\n", run
    left = lab.docker("ps", "-a", "--format", "{{.Names}}").stdout.decode().split()
    assert left == ["web"]
    images = lab.docker("images", "--format", "{{.Repository}}").stdout.decode().split()
    assert "dockfix/backup" not in images


# ---------------------------------------------------------------------- links


def test_links_without_an_alias_do_not_end_a_backup(current_labs):
    """They need a network with addresses, so: an engine with a bridge driver; only what is made is
    looked at."""
    lab = current_labs("trixie", "containerd")
    wipe(lab)
    lab.engine.import_busybox("good:1")
    for name, net in (("n1", "10.231.30.0/24"), ("n2", "10.231.31.0/24")):
        lab.docker("network", "create", "--subnet", net, name)
    try:
        lab.docker("create", "--name", "db", "--network", "n1", "good:1")
        lab.docker("create", "--name", "app", "--network", "n1", "--link", "db", "good:1")
        lab.docker("create", "--name", "other", "--network", "n1", "good:1")
        lab.docker("network", "connect", "--link", "db", "n2", "other")
        run = lab.dockfix("backup", "/srv/kept", "--json")
        assert run.rc == 0, run
        lab.docker("rm", "-f", "app", "other", "db")
        run = lab.dockfix("restore", "-y", "/srv/kept", "--json")
        assert run.rc == 0, run
        form = "{{range .NetworkSettings.Networks}}{{.Links}}{{end}}"
        links = lab.docker("inspect", "-f", form, "app", "other").stdout.decode().split()
        assert links == ["[db:db]", "[][db:db]"]
    finally:
        lab.docker("rm", "-f", "app", "other", "db", check=False)
        lab.docker("network", "rm", "n1", "n2", check=False)
        wipe(lab)
