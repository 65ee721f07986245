"""Whether an archive of `docker save` holds all that it names: both forms, whole, with something
missing, and made to do harm."""

import gzip
import io
import json
import tarfile

import pytest

import make_archive
from make_archive import Classic, Oci, layer, sha, special, tar, text

AMD = {"os": "linux", "architecture": "amd64"}
ARM = {"os": "linux", "architecture": "arm64", "variant": "v8"}
HERE = ("linux", "amd64", "")


@pytest.fixture
def judge(dockfix, tmp_path):
    """judge(members or bytes, ref, ...): what the archive lacks of an image with these refs."""

    def faults(archive, *refs, **more):
        data = archive if isinstance(archive, bytes) else tar(archive)
        path = str(tmp_path / "images.tar")
        with open(path, "wb") as f:
            f.write(data)
        wanted = dockfix.WantedImage("key", refs, more.pop("platform", HERE), **more)
        return dockfix.archive_faults(path, [wanted], lambda done: None).get("key", "")

    return faults


def classic():
    made = Classic()
    made.add(["base:1"], [layer("a")])
    made.add(["app:1", "reg.example:5000/app:2"], [layer("a"), layer("b")])
    return made


def oci(docker=True):
    """One plain image, and one for two platforms of which only this one was pulled, with an
    attestation that was not."""
    made = Oci(docker)
    made.name(made.manifest([layer("a")]), "base:1")
    other = made.manifest([layer("arm")])
    for name in list(made.blobs):
        if made.blobs[name] in (layer("arm"),) or "sha256:" + name == other["digest"]:
            del made.blobs[name]
    proof = {"digest": "sha256:" + "e" * 64, "size": 5}
    proof["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    packed = gzip_of(layer("b"))
    mine = made.manifest([layer("a"), layer("b")], [layer("a"), packed])
    index = made.many([dict(mine, platform=AMD), dict(other, platform=ARM), proof])
    made.name(index, "app:1")
    made.mine, made.packed = mine, packed
    return made


def gzip_of(data):
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as f:
        f.write(data)
    return out.getvalue()


def without(members, *names):
    left = [one for one in members if isinstance(one, tarfile.TarInfo) or one[0] not in names]
    assert len(left) == len(members) - len(names)
    return left


def replaced(members, name, data):
    return [(name, data) if as_pair(one)[0] == name else one for one in members]


def as_pair(one):
    return (one, None) if isinstance(one, tarfile.TarInfo) else one


def test_whole_archives_are_whole(judge):
    for members in (classic().all_members(), oci().all_members(), oci(False).all_members()):
        assert judge(members, "base:1") == "" and judge(members, "app:1") == ""
        assert judge(members, "docker.io/library/app:1") == ""
    assert judge(classic().all_members(), "app:1", "reg.example:5000/app:2") == ""
    assert (
        judge(classic().all_members(), "reg.example:5000/app")
        == "reg.example:5000/app is not in the archive"
    )
    assert "app:3 is not in the archive" in judge(oci().all_members(), "app:3")


def test_an_image_without_a_tag_is_known_by_its_id(judge):
    made = Classic()
    ident = made.add([], [layer("a")])
    assert judge(made.all_members(), ident) == ""
    for docker in (True, False):
        made = Oci(docker)
        descriptor = made.manifest([layer("a")])
        ident = made.name(descriptor)
        config = json.loads(made.blobs[ident[7:]].decode())["config"]["digest"]
        assert judge(made.all_members(), ident) == "" and judge(made.all_members(), config) == ""
    assert "is not in the archive" in judge(made.all_members(), "sha256:" + "9" * 64)


def test_a_layer_that_is_missing_is_named_in_every_form(judge):
    made = classic()
    path = made.entries[1]["Layers"][1]
    lacking = without(made.all_members(), path)
    assert (
        judge(lacking, "app:1") == "layer %s is missing" % path and judge(lacking, "base:1") == ""
    )
    made = oci()
    lacking = without(made.all_members(), "blobs/sha256/" + sha(made.packed))
    assert "sha256:%s is missing" % sha(made.packed) in judge(lacking, "app:1")
    assert judge(lacking, "base:1") == ""
    lacking = without(oci(False).all_members(), "blobs/sha256/" + sha(layer("a")))
    assert "is missing" in judge(lacking, "app:1") and "is missing" in judge(lacking, "base:1")


def test_what_docker_26_writes_of_an_image_whose_content_is_gone(judge):
    """moby#49784: the manifest's blob only, neither config nor layers, and exit 0."""
    made = oci(False)
    keep = json.loads(made.blobs[made.index[0]["digest"][7:]].decode())
    lacking = without(
        made.all_members(),
        "blobs/sha256/" + keep["config"]["digest"][7:],
        "blobs/sha256/" + keep["layers"][0]["digest"][7:],
    )
    assert "config sha256:" in judge(lacking, "base:1")


def test_of_several_platforms_the_engines_own_must_be_whole(judge):
    made = oci(False)
    members = made.all_members()
    assert judge(members, "app:1", platform=("linux", "amd64", "")) == ""
    assert "is missing" in judge(members, "app:1", platform=("linux", "arm64", "v8"))
    assert "nothing in it is for linux/s390x" in judge(
        members, "app:1", platform=("linux", "s390x", "")
    )
    lacking = without(members, "blobs/sha256/" + made.mine["digest"][7:])
    assert "is missing" in judge(lacking, "app:1")
    assert judge(members, "app:1", manifests=(made.mine["digest"],)) == ""
    arm = json.loads(made.blobs[made.index[1]["digest"][7:]].decode())["manifests"][1]["digest"]
    assert "is missing" in judge(members, "app:1", manifests=(arm,))


def test_bytes_that_are_not_those_of_the_digest(judge):
    made = classic()
    members = made.all_members()
    path = made.entries[1]["Layers"][1]
    assert "other bytes" in judge(replaced(members, path, layer("x")), "app:1")
    config = made.entries[1]["Config"]
    assert "other bytes" in judge(
        replaced(members, config, b'{"rootfs": {"diff_ids": []}}'), "app:1"
    )
    made = oci(False)
    name = "blobs/sha256/" + sha(made.packed)
    assert "other bytes" in judge(replaced(made.all_members(), name, layer("b")), "app:1")
    name = "blobs/sha256/" + made.index[1]["digest"][7:]
    assert "other bytes" in judge(replaced(made.all_members(), name, b'{"manifests": []}'), "app:1")


def test_a_config_with_fewer_or_more_layers_than_the_list(judge):
    for change in (lambda paths: paths[:-1], lambda paths: paths + paths[:1]):
        made = classic()
        made.entries[1]["Layers"] = change(made.entries[1]["Layers"])
        assert "its config 2" in judge(made.all_members(), "app:1")


def test_cut_off_anywhere_it_is_not_whole(judge):
    for members in (classic().all_members(), oci().all_members()):
        data = tar(members, end=False)
        assert judge(tar(members), "app:1") == "" and judge(data, "app:1") == "the tar is cut off"
        for size in [*list(range(0, len(data), 512)), len(data) - 1, 700]:
            assert judge(data[:size], "app:1") != "", size


def test_the_same_name_twice_counts_only_with_the_same_bytes(judge):
    for made in (classic(), oci(False)):
        members = made.all_members()
        name, data = next(one for one in map(as_pair, members) if one[1] == layer("a"))
        assert judge([*members, (name, data)], "app:1") == ""
        assert judge([*members, (name, b"other")], "app:1") != ""
        assert judge([(name, b"other"), *members], "app:1") != ""
        for name in ("manifest.json", "index.json"):
            there = [one for one in map(as_pair, members) if one[0] == name]
            if there:
                assert judge([*members, (name, b"[]")], "app:1") != ""


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../../etc/passwd", "a/../../etc/passwd", "/", "", 7, None, ["x"], "x" * 5000],
)
def test_names_lead_nowhere(judge, name):
    made = classic()
    made.entries[1]["Layers"][0] = name
    said = judge([*made.all_members(), ("/etc/passwd", layer("a"))], "app:1")
    assert said.startswith("layer ") and "is missing" in said
    made = classic()
    made.entries[1]["Config"] = name
    assert "is missing" in judge(made.all_members(), "app:1")


@pytest.mark.parametrize(
    "link", ["/etc/passwd", "../../../etc/passwd", "../LOOP/layer.tar", "../nothing/layer.tar", ""]
)
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_lead_nowhere(judge, link, kind):
    made = classic()
    made.entries[1]["Layers"][0] = "LOOP/layer.tar"
    members = [*made.all_members(), special("LOOP/layer.tar", kind, link)]
    assert "layer LOOP/layer.tar is missing" in judge(members, "app:1")


def test_a_long_row_of_links_ends(judge):
    made = classic()
    target = made.entries[0]["Layers"][0]
    for number in range(30):
        made.members.append(special("l%d/layer.tar" % number, tarfile.SYMTYPE, "../" + target))
        target = "l%d/layer.tar" % number
    made.entries[1]["Layers"][0] = "l2/layer.tar"
    assert judge(made.all_members(), "app:1") == ""
    made.entries[1]["Layers"][0] = target
    assert "is missing" in judge(made.all_members(), "app:1")


DEEP = b'{"manifests": ' + b"[" * 200000 + b"]" * 200000 + b"}"


@pytest.mark.parametrize(
    "name, data",
    [
        ("index.json", b""),
        ("index.json", b"[]"),
        ("index.json", b'{"manifests": {"a": 1}}'),
        ("index.json", b'{"manifests": [[1]]}'),
        ("index.json", b"\xff\xfe"),
        ("index.json", DEEP),
        ("index.json", b'{"manifests": [' + b" " * (17 << 20) + b"]}"),
        ("manifest.json", b"{}"),
        ("manifest.json", b'["x"]'),
        ("manifest.json", b'[{"RepoTags": ["app:1"], "Config": {"a": 1}, "Layers": 5}]'),
        ("manifest.json", b'[{"RepoTags": {"app:1": 5}, "Config": null}]'),
        ("manifest.json", DEEP),
        ("manifest.json", b'[{"RepoTags": 5}]'),
    ],
)
def test_json_that_is_none_or_has_no_end(judge, name, data):
    assert judge(replaced(oci().all_members(), name, data), "app:1") != ""


@pytest.mark.parametrize(
    "found",
    [
        [],
        5,
        {"config": 5, "layers": []},
        {"config": {"digest": "sha256:" + "0" * 64}, "layers": None},
        {"config": {"digest": ["x"]}, "layers": [5, None, "x"]},
        {"manifests": [None, 5]},
        {"manifests": [{"digest": "sha256:../../../../etc/passwd", "size": 1}]},
        {"manifests": [{"digest": "md5:" + "0" * 32}]},
        {"manifests": []},
        {
            "config": {"digest": "sha256:" + "0" * 64},
            "layers": [{"digest": "sha256:" + "1" * 64}] * 200000,
        },
    ],
)
def test_manifests_of_the_wrong_shape(judge, found):
    made = Oci(False)
    made.name(made.blob(text(found)), "app:1")
    assert judge(made.all_members(), "app:1") != ""


def test_indexes_in_indexes(judge):
    made = Oci(False)
    descriptor = made.manifest([layer("a")])
    for _ in range(4):
        descriptor = made.many([descriptor])
    made.name(descriptor, "app:1")
    for _ in range(20):
        descriptor = made.many([descriptor])
    made.name(descriptor, "deep:1")
    descriptor = made.manifest([layer("a")])
    for _ in range(7):  # 100 ** 7 ways to the same manifest
        descriptor = made.many([descriptor] * 100)
    made.name(descriptor, "wide:1")
    members = made.all_members()
    assert judge(members, "app:1") == ""
    assert "without end" in judge(members, "deep:1")
    assert "more than" in judge(members, "wide:1")


def test_no_archive_of_docker_save(judge):
    for data in (b"", b"x" * 100000, tar([]), tar([("repositories", b"{}")]), b"\0" * 10240):
        assert judge(data, "app:1") != ""


def test_a_header_that_never_ends(judge, dockfix):
    long = special("x" * 100, tarfile.XHDTYPE)
    long.size = 1 << 40
    assert "longer than" in judge(long.tobuf(tarfile.GNU_FORMAT), "app:1")
    for content in (b"5 a=", b"99999999 a=b\n", b"x", b"0 a=b\n", b"7 a=b\n\n7"):
        with pytest.raises(dockfix.ArchiveError):
            dockfix.parse_pax(content)
    assert dockfix.parse_pax(b"6 a=b\n10 cd=\xffgh\n") == {"a": "b", "cd": "\udcffgh"}


def test_long_names_of_both_kinds_and_sizes_beyond_eight_gigabytes(dockfix):
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = special("d/" * 120 + "\udcff", tarfile.SYMTYPE, "l/" * 120, uid=3000000)
        data = member.tobuf(form, "utf-8", "surrogateescape") + bytes(1024)
        found = list(dockfix.TarReader(io.BytesIO(data)))
        assert [(one.name, one.linkname, one.uid) for one in found] == [
            (member.name, member.linkname, 3000000)
        ]
        big = special("big", tarfile.REGTYPE)
        big.size = 9 << 30
        assert dockfix.TarReader(io.BytesIO(big.tobuf(form))).header().size == 9 << 30


def test_names_as_docker_means_them(dockfix):
    for ref, full in (
        ("busybox", "docker.io/library/busybox:latest"),
        ("me/app:1", "docker.io/me/app:1"),
        ("localhost/app:1", "localhost/app:1"),
        ("reg:5000/app", "reg:5000/app:latest"),
        ("index.docker.io/library/a:1", "docker.io/library/a:1"),
    ):
        assert dockfix.full_name(ref) == full


# ---------------------------------------------------------------------- volumes


def compare(dockfix, wanted, found):
    differences = dockfix.VolumeDifferences()
    readers = [
        dockfix.volume_entries(dockfix.TarReader(io.BytesIO(one))) for one in (wanted, found)
    ]
    differences.add(*readers)
    return differences.texts()


FULL = [
    special("data/d", tarfile.DIRTYPE, mode=0o2750, uid=5, gid=6),
    ("data/d/f", b"hello"),
    special("data/h", tarfile.LNKTYPE, "data/d/f"),
    special("data/s", tarfile.SYMTYPE, "/nowhere"),
    special("data/p", tarfile.FIFOTYPE),
]


def test_equal_volumes_are_equal_whatever_the_folder_is_called_and_in_any_order(dockfix):
    wanted = make_archive.volume(FULL)
    assert compare(dockfix, wanted, wanted) == []
    assert compare(dockfix, wanted, make_archive.volume(FULL[:2] + FULL[:1:-1])) == []
    other = tar([special("mysql", tarfile.DIRTYPE, mode=0o755), ("mysql/a", b"1")])
    assert compare(dockfix, make_archive.volume([("data/a", b"1")]), other) == []


@pytest.mark.parametrize(
    "number, member, words",
    [
        (0, special("data/d", tarfile.DIRTYPE, mode=0o750, uid=5, gid=6), "d differs"),
        (0, special("data/d", tarfile.DIRTYPE, mode=0o2750, uid=5, gid=7), "d differs"),
        (1, ("data/d/f", b"hellO"), "d/f differs"),
        (1, ("data/d/f", b""), "d/f differs"),
        (2, ("data/h", b"hello"), "h differs"),
        (3, special("data/s", tarfile.SYMTYPE, "/elsewhere"), "s differs"),
        (4, ("data/p", b""), "p differs"),
        (4, None, "p is missing"),
    ],
)
def test_each_thing_that_may_differ_of_a_member(dockfix, number, member, words):
    found = list(FULL)
    found[number : number + 1] = [] if member is None else [member]
    assert compare(dockfix, make_archive.volume(FULL), make_archive.volume(found)) == [words]


def test_more_than_the_backup_has_is_a_difference_and_an_empty_volume_is_one(dockfix):
    more = make_archive.volume([*FULL, ("data/z", b"")])
    assert compare(dockfix, make_archive.volume(FULL), more) == ["z was not in the backup"]
    said = compare(dockfix, make_archive.volume(FULL), make_archive.volume())
    assert said == ["d, d/f, h and 2 more is missing"]


@pytest.mark.parametrize("name", ["/data/f", "data/../../f", "..", "/"])
def test_a_name_that_leads_out_of_the_volume_is_refused(dockfix, name):
    with pytest.raises(dockfix.ArchiveError):
        compare(dockfix, make_archive.volume([(name, b"")]), make_archive.volume())
    with pytest.raises(dockfix.ArchiveError):
        link = special("data/h", tarfile.LNKTYPE, name)
        compare(dockfix, make_archive.volume([link]), make_archive.volume())
