"""The seam of the time commands: members of containers read and written, and what undo keeps."""

import contextlib
import functools
import json
import os
import stat

import pytest

ID = "c" * 64


@pytest.fixture
def walked(dockfix, tmp_path):
    """walk() below a directory that stands for a container's root: (kind of what is found, its
    path), or the error."""

    def look(path, follow=False):
        root = os.open(str(tmp_path), os.O_RDONLY)
        try:
            folder, name, place = dockfix.resolve_by_proc(root, path, follow)
            try:
                return (
                    dockfix.kind_of(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode),
                    place,
                )
            finally:
                os.close(folder)
        finally:
            os.close(root)

    return look


def test_links_are_walked_from_the_containers_own_root(walked, tmp_path):
    os.makedirs(str(tmp_path / "usr" / "lib" / "deep"))
    (tmp_path / "usr" / "lib" / "libc.so").write_bytes(b"x")
    for name, target in (
        ("lib", "usr/lib"),
        ("abs", "/usr/lib"),
        ("up", "../../../../usr/lib"),
        ("chain", "abs"),
        ("gone", "/nothing"),
        ("a", "b"),
        ("b", "a"),
        ("usr/lib/deep/back", "../../.."),
        ("file", "/usr/lib/libc.so"),
    ):
        os.symlink(target, str(tmp_path / name))
    open_before = len(os.listdir("/proc/self/fd"))
    for path in (
        "/usr/lib/libc.so",
        "/lib/libc.so",
        "//abs/./libc.so",
        "/up/libc.so",
        "/chain/libc.so",
        "/usr/lib/deep/back/lib/libc.so",
        "/../../usr/lib/deep/../libc.so",
    ):
        assert walked(path) == ("file", "/usr/lib/libc.so"), path
    assert walked("/file") == ("link", "/file") and walked("/file", True) == (
        "file",
        "/usr/lib/libc.so",
    )
    assert walked("/") == walked("/lib/..//../..", True) == ("dir", "/")
    for path, error in (
        ("/gone/x", FileNotFoundError),
        ("/a/x", OSError),
        ("/usr/lib/libc.so/x", NotADirectoryError),
        ("/none", FileNotFoundError),
    ):
        with pytest.raises(error):
            walked(path)
    assert len(os.listdir("/proc/self/fd")) == open_before


def make_host(dockfix, box, dry_run=False):
    host = dockfix.make_host(timeout=20.0, dry_run=dry_run, state=box.state)
    box.write_world()
    return host


@pytest.fixture
def seam(dockfix, box, monkeypatch):
    """(host, container facts) of a running container in the sandbox; docker is a function call."""
    box.container("web")
    monkeypatch.setattr(dockfix, "run_child", box.in_process)
    monkeypatch.setitem(dockfix.UNDO_FORMS, "test", dockfix.UndoForm("/.*", {}))
    host = make_host(dockfix, box)
    os.makedirs(box.state, 0o700)
    return host, dockfix.inspect_containers(host, [box.id("web")])[box.id("web")]


def at(box, path):
    return box.at("fs", "web", path.lstrip("/"))


def members(dockfix):
    uid, gid = os.getuid(), os.getgid()
    return [
        dockfix.Member("/etc/zone", "file", b"data\0\xff", "", uid, gid, 0o640, 1000),
        dockfix.Member("/etc/link", "link", b"", "/etc/zone", uid, gid, 0o777, 1000),
    ]


def test_a_member_comes_as_it_is(dockfix, box, seam):
    host, container = seam
    os.symlink("/etc/shadow", at(box, "/etc/link"))
    os.mkfifo(at(box, "/etc/fifo"))
    read = functools.partial(dockfix.read_member, host, container)
    assert read("/etc/link").kind == "link" and read("/etc/link").link == "/etc/shadow"
    followed = read("/etc/link", follow=True)
    assert followed.kind == "file" and followed.data == box.shadow("web") and followed.mode == 0o640
    assert (
        read("/etc").kind == "dir"
        and read("/etc/fifo").kind == "fifo"
        and read("/none/such").kind == "absent"
    )
    with pytest.raises(dockfix.Refused):
        read("/etc/shadow", limit=10)


def test_what_is_written_is_read_back(dockfix, box, seam):
    host, container = seam
    dockfix.write_members(host, container, members(dockfix))
    with open(at(box, "/etc/zone"), "rb") as f:
        assert f.read() == b"data\0\xff" and stat.S_IMODE(os.fstat(f.fileno()).st_mode) == 0o640
    assert os.readlink(at(box, "/etc/link")) == "/etc/zone"
    box.world["containers"][0]["truncates"] = 9
    with pytest.raises(dockfix.MethodUnavailable, match="differs"):
        dockfix.write_members(host, container, [members(dockfix)[0]._replace(data=b"y" * 90)])


@pytest.mark.parametrize("rm", [True, False])
def test_removing_needs_no_rm_for_files(dockfix, box, seam, rm):
    host, container = seam
    box.world["containers"][0]["rm"] = rm
    os.makedirs(at(box, "/usr/new/deep"))
    dockfix.write_members(host, container, members(dockfix))
    left = dockfix.change_members(
        host, container, [], ["/etc/zone", "/etc/link", "/usr/new", "/usr/new/deep", "/never/there"]
    )
    assert left == ([] if rm else ["/usr/new/deep", "/usr/new"])
    assert sorted(os.listdir(at(box, "/etc"))) == ["passwd", "shadow"]


def test_undo_goes_back_to_before_the_first_change(dockfix, box, seam):
    host, container = seam
    absent = dockfix.Member("/etc/new", "absent")
    old = dockfix.read_member(host, container, "/etc/shadow")
    dockfix.save_undo(host, "test", container, [old], {"zone": "A"})
    dockfix.write_members(host, container, [old._replace(data=b"changed")])
    dockfix.save_undo(
        host, "test", container, [old._replace(data=b"changed"), absent], {"zone": "B"}
    )
    dockfix.write_members(
        host, container, [old._replace(data=b"again"), old._replace(path="/etc/new", gid=0)]
    )
    undo = dockfix.load_undo(host, "test", container.id)
    assert undo.members == (old, absent) and undo.facts == {"zone": "B"} and undo.name == "web"
    path = os.path.join(box.state, "undo", "test-%s.json" % container.id)
    assert (
        stat.S_IMODE(os.stat(path).st_mode) == 0o600
        and stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    )
    for _ in range(2):  # a second time changes nothing
        assert dockfix.restore_undo(host, container, undo) == []
        assert box.shadow("web") == old.data and not os.path.exists(at(box, "/etc/new"))
    dockfix.drop_undo(host, "test", container.id)
    assert dockfix.load_undo(host, "test", container.id) is None


def test_a_record_that_cannot_be_read_is_never_overwritten(dockfix, box, seam):
    host, container = seam
    dockfix.save_undo(host, "test", container, [])
    path = os.path.join(box.state, "undo", "test-%s.json" % container.id)
    with open(path, "w") as f:
        f.write("{}")
    with pytest.raises(dockfix.DockfixError, match="cannot be read"):
        dockfix.save_undo(host, "test", container, [])
    with open(path) as f:
        assert f.read() == "{}"


def test_records_are_tidied_for_containers_that_this_engine_had(dockfix, box, seam):
    host, container = seam
    box.world["info_json"] = json.dumps({"DockerRootDir": "/var/lib/docker", "ID": "ENGINE-1"})
    for number, engine in ((1, "ENGINE-1"), (2, "ENGINE-2"), (3, ""), (4, "ENGINE-1")):
        host.known.engine_info = dockfix.EngineInfo(id=engine)
        dockfix.save_undo(host, "test", container._replace(id="%064x" % number), [])
    host.known.engine_info = None
    dockfix.drop_undo_if_void(host, ["%064x" % 4])
    assert sorted(os.listdir(os.path.join(box.state, "undo"))) == [
        "test-%064x.json" % number for number in (2, 3, 4)
    ]


def test_folders_that_are_links_are_refused_and_missing_ones_named(dockfix, box, seam):
    host, container = seam
    os.makedirs(at(box, "/usr/share"))
    assert dockfix.missing_folders(
        host, container, ["/usr/share/zoneinfo/Asia/Shanghai", "/etc/localtime"]
    ) == ["/usr/share/zoneinfo", "/usr/share/zoneinfo/Asia"]
    os.symlink("/mnt/host", at(box, "/usr/share/zoneinfo"))
    with pytest.raises(dockfix.Refused, match="link to /mnt/host"):
        dockfix.missing_folders(host, container, ["/usr/share/zoneinfo/Asia/Shanghai"])


def test_mounts_over_a_path_are_seen(dockfix):
    def facts(*targets, **more):
        given = dict(
            id=ID,
            name="web",
            running=True,
            mounts=tuple(("/src", target) for target in targets),
            env=(),
            started="",
            layer={},
            driver="overlay2",
            **dict({"read_only": False}, **more),
        )
        return dockfix.Container(
            **dict({name: False for name in dockfix.Container._fields}, **given)
        )

    paths = ["/etc/localtime", "/usr/share/zoneinfo/Asia/Tokyo"]
    for target in ("/", "/etc", "/etc/localtime", "/usr/share/zoneinfo", "/usr"):
        assert "mount" in dockfix.files_refusal(facts(target), paths), target
    assert (
        dockfix.files_refusal(
            facts("/etc/hosts", "/usr/share/zone", "/etc/localtime2", "/data"), paths
        )
        == ""
    )
    assert "read-only" in dockfix.files_refusal(facts(read_only=True), paths)


def test_ids_outside_the_user_namespace_are_never_sent(dockfix):
    one = dockfix.Member("/etc/x", "file", b"", "", 500000, 500042, 0o644, 1)
    assert dockfix.format_tar([one], (500000, 500000))
    for base in ((500001, 500000), (0, 0)):
        with pytest.raises(dockfix.MethodUnavailable, match="outside"):
            dockfix.format_tar([one], base)


def test_a_record_is_itself_again_and_garbage_is_a_value_error(dockfix, rng, seam):
    undo = dockfix.Undo(
        "test",
        ID,
        "web",
        "E",
        "2026-01-01T00:00:00Z",
        (
            dockfix.Member("/etc/x", "file", bytes(range(256)), "", 1, 2, 0o644, 5),
            dockfix.Member("/etc/y\udcff\u4e2d", "absent"),
        ),
        {"zone": "Asia/Tokyo"},
    )
    text = dockfix.format_undo(undo)
    assert dockfix.parse_undo(text, "test", ID) == undo
    for kind, ident in (("timezone", ID), ("test", "f" * 64)):
        with pytest.raises(ValueError):
            dockfix.parse_undo(text, kind, ident)
    for _ in range(300):
        data = bytearray(text)
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with contextlib.suppress(ValueError):
            assert isinstance(
                dockfix.parse_undo(
                    bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data),
                    "test",
                    ID,
                ),
                dockfix.Undo,
            )


# ---------------------------------------------------------------- a link made later, where docker
# cp is all there is


def mounted(dockfix, box, name="held", status="Up 2 hours", target="/mnt/host"):
    """A container with a folder of the host; (host, facts)."""
    mounts = [{"Type": "bind", "Source": "/srv/host", "Destination": target}]
    box.container(name, status=status, inspect={"Mounts": mounts})
    host = make_host(dockfix, box)
    return host, dockfix.inspect_containers(host, [box.id(name)])[box.id(name)]


@pytest.fixture
def held(dockfix, box, monkeypatch):
    monkeypatch.setattr(dockfix, "run_child", box.in_process)
    os.makedirs(box.state, 0o700)
    return mounted(dockfix, box)


def commands(box):
    return [call.command for call in box.calls()]


def in_etc(dockfix):
    return [dockfix.Member("/etc/zone", "file", b"data", mode=0o644, uid=os.getuid())]


def test_what_runs_with_mounts_is_paused_while_its_files_are_changed(dockfix, box, held):
    host, container = held
    dockfix.write_members(host, container, in_etc(dockfix))
    asked = [word for word in commands(box) if word != "inspect"]
    assert asked[0] == "pause" and asked[-1] == "unpause" and set(asked[1:-1]) == {"info", "cp"}
    assert not os.path.exists(box.at("frozen.held"))


@pytest.mark.parametrize("status", ["Up 2 hours (Paused)", "Exited (0) 1 hour ago"])
def test_what_does_not_run_is_not_paused(dockfix, box, monkeypatch, status):
    monkeypatch.setattr(dockfix, "run_child", box.in_process)
    host, container = mounted(dockfix, box, status=status)
    dockfix.write_members(host, container, in_etc(dockfix))
    assert not {"pause", "unpause"} & set(commands(box))


def test_what_has_no_mounts_is_not_paused(dockfix, box, seam):
    """There is nothing that a link in it could lead to."""
    host, container = seam
    dockfix.write_members(host, container, in_etc(dockfix))
    assert not {"pause", "unpause"} & set(commands(box))


def test_what_cannot_be_paused_is_refused(dockfix, box, held):
    host, container = held
    box.rule("pause", rc=1, err=b"Error response from daemon: no freezer cgroup\n")
    box.write_world()
    with pytest.raises(dockfix.Refused, match="no freezer cgroup"):
        dockfix.write_members(host, container, in_etc(dockfix))
    assert "cp" not in commands(box) and "unpause" not in commands(box)


@pytest.mark.parametrize("fault", ["error", "second signal"])
def test_it_is_unpaused_whatever_happened(dockfix, box, held, monkeypatch, fault):
    host, container = held

    def deed(now):
        assert now.paused
        if fault == "second signal":
            host.stop.set()
            host.kill.set()
        raise dockfix.MethodUnavailable("on purpose")

    with pytest.raises(dockfix.MethodUnavailable, match="on purpose"):
        dockfix.while_paused(host, container, deed)
    assert not os.path.exists(box.at("frozen.held"))


def test_one_that_stays_paused_is_named_with_the_line_that_helps(dockfix, box, held, monkeypatch):
    host, container = held
    monkeypatch.setattr(dockfix.time, "sleep", lambda seconds: None)
    box.rule("unpause", rc=1, err=b"Error response from daemon: try later\n")
    box.write_world()
    dockfix.while_paused(host, container, lambda now: None)
    assert commands(box).count("unpause") == dockfix.UNPAUSE_TRIES
    (found,) = host.known.not_done.values()
    assert found.argv[1:] == ("unpause", container.id) and "still paused" in found.text


@pytest.mark.parametrize("part", ["/usr", "/usr/share", "/usr/share/zoneinfo"])
def test_a_folder_that_has_become_a_link_is_refused_before_anything_is_written(
    dockfix, box, held, part
):
    host, container = held
    os.makedirs(at(box, "/elsewhere/share/zoneinfo").replace("/web/", "/held/"))
    folder = at(box, part).replace("/web/", "/held/")
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    os.symlink("/mnt/host", folder)
    wanted = [*in_etc(dockfix), dockfix.Member("/usr/share/zoneinfo/Z", "file", b"data")]
    with pytest.raises(dockfix.Refused, match="%s is a link to /mnt/host" % part):
        dockfix.change_members(host, container, wanted, ["/usr/share/zoneinfo/Y"])
    assert not [call for call in box.calls("cp") if call.words[1] == "-"]


@pytest.mark.parametrize(
    "target, link, hit",
    [
        ("/mnt/Asia", "/mnt", True),
        ("/usr/share/zoneinfo", None, True),
        ("/mnt/elsewhere", "/mnt", False),
        ("/mnt", None, False),
    ],
)
def test_a_mount_is_where_its_destination_leads(dockfix, box, monkeypatch, target, link, hit):
    monkeypatch.setattr(dockfix, "run_child", box.in_process)
    host, container = mounted(dockfix, box, target=target)
    os.makedirs(box.at("fs", "held", "usr/share/zoneinfo/Asia"))
    if link:
        os.symlink("../usr/share/zoneinfo", box.at("fs", "held", link[1:]))
    paths = ["/usr/share/zoneinfo/Asia/Tokyo"]
    if not hit:
        assert set(dockfix.read_tree_by_cp(host, container, paths).folders) == set(
            dockfix.folders_above(paths)
        )
        return
    with pytest.raises(dockfix.Refused, match="is a mount"):
        dockfix.read_tree_by_cp(host, container, paths)


def test_what_differs_from_the_look_is_not_overwritten(dockfix, box, seam):
    """What undo keeps was read by its path: a link may have led the look to a file of the host."""
    host, container = seam
    (new,) = in_etc(dockfix)
    looked_at = new._replace(data=b"the host's")
    with pytest.raises(dockfix.Refused, match="changed between"):
        dockfix.write_members(host, container, [new], [looked_at])
    assert not os.path.exists(at(box, "/etc/zone"))


# ---------------------------------------------------------------- the same by descriptors


@pytest.fixture
def tree(dockfix, tmp_path):
    """A Tree on a folder that stands for a container's root."""
    root = tmp_path / "root"
    os.makedirs(str(root / "etc"))
    os.makedirs(str(root / "usr" / "share"))
    made = dockfix.Tree(os.open(str(root), os.O_RDONLY), {}, set())
    made.folders["/"] = made.root
    yield made
    dockfix.close_tree(made)


def test_by_descriptors_members_are_put_replaced_and_removed(dockfix, tree, tmp_path):
    own = {"uid": os.getuid(), "gid": os.getgid(), "mtime": 1000}
    wanted = [
        dockfix.Member("/usr/share/zoneinfo/Asia/Tokyo", "file", b"data", mode=0o640, **own),
        dockfix.Member("/etc/localtime", "link", link="/usr/share/zoneinfo/Asia/Tokyo", **own),
    ]
    (tmp_path / "root" / "etc" / "localtime").write_bytes(b"old")
    (tmp_path / "root" / "etc" / ".localtime.dockfix").write_bytes(b"left by a killed run")
    for _ in range(2):
        assert dockfix.change_members_by_proc(tree, wanted, [], []) == []
        for one in wanted:
            found = dockfix.read_entry(tree, one.path, 1 << 20)
            assert dockfix.is_same_member(found, one) and found.mtime == 1000
    assert os.listdir(str(tmp_path / "root" / "etc")) == ["localtime"]
    folders = ["/usr/share/zoneinfo", "/usr/share/zoneinfo/Asia"]
    gone = ["/etc/localtime", "/usr/share/zoneinfo/Asia/Tokyo", *folders]
    assert dockfix.change_members_by_proc(tree, [], [*gone, "/none/such"], []) == []
    assert os.listdir(str(tmp_path / "root" / "usr" / "share")) == []


@pytest.mark.parametrize("part", ["/usr", "/usr/share", "/usr/share/zoneinfo"])
def test_by_descriptors_no_link_is_followed(dockfix, tree, tmp_path, part):
    outside = tmp_path / "outside"
    os.makedirs(str(outside / "share" / "zoneinfo"))
    os.makedirs(str(outside / "zoneinfo"))
    folder = str(tmp_path / "root") + part
    if os.path.isdir(folder):
        os.rename(folder, str(tmp_path / "moved"))
    os.symlink(str(outside), folder)
    seen = sorted(os.walk(str(outside)))
    one = dockfix.Member("/usr/share/zoneinfo/Z", "file", b"data", mode=0o644)
    other = dockfix.Member("/etc/z", "file", b"data", mode=0o644)
    for write, remove in (([other, one], []), ([other], ["/usr/share/zoneinfo/Z"])):
        with pytest.raises(dockfix.Refused, match="%s is a link to" % part):
            dockfix.change_members_by_proc(tree, write, remove, [])
    assert sorted(os.walk(str(outside))) == seen and os.listdir(str(tmp_path / "root/etc")) == []


def test_by_descriptors_a_folder_that_moves_is_told(dockfix, tree, tmp_path, monkeypatch):
    """The opened folder is written to all the same, and nothing else is."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    os.makedirs(str(outside))
    real = dockfix.put_member

    def late(tree, member):
        os.rename(str(root / "etc"), str(root / "e2"))
        os.symlink(str(outside), str(root / "etc"))
        real(tree, member)

    monkeypatch.setattr(dockfix, "put_member", late)
    one = dockfix.Member("/etc/z", "file", b"data", "", os.getuid(), os.getgid(), 0o644, 1)
    with pytest.raises(dockfix.PathMoved, match="/etc while"):
        dockfix.change_members_by_proc(tree, [one], [], [])
    assert os.listdir(str(outside)) == [] and (root / "e2" / "z").read_bytes() == b"data"


def test_a_folder_of_dockfixs_own_is_emptied_without_following(dockfix, tree, tmp_path):
    own, outside = tmp_path / "root" / "build", tmp_path / "outside"
    os.makedirs(str(own / "deep" / "deeper"))
    os.makedirs(str(outside))
    (outside / "safe").write_bytes(b"safe")
    (own / "deep" / "file").write_bytes(b"x")
    os.symlink(str(outside), str(own / "deep" / "link"))
    dockfix.remove_below(tree, "/build")
    assert not own.exists() and (outside / "safe").read_bytes() == b"safe"
