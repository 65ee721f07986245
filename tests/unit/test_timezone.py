"""timezone: what it writes, refuses, keeps for undo and puts back, against a docker that is a
fake."""

import fcntl
import io
import json
import os
import re
import tarfile

import pytest

from test_clock import ZONES, add, in_shanghai, put
from test_zones import tzif

PATH = "/usr/share/zoneinfo/Asia/Shanghai"


def content_of(path):
    """Text of a link, bytes of a file, None for a folder."""
    if os.path.islink(path):
        return os.readlink(path)
    if os.path.isdir(path):
        return None
    with open(path, "rb") as f:
        return f.read()


def files(box, name):
    """{path: text of a link, bytes of a file, None for a folder} of a container, without its
    account files."""
    root, found = box.at("fs", name), {}
    for folder, names, some in os.walk(root):
        for one in names + some:
            path = os.path.join(folder, one)
            inside = path[len(root) :]
            if inside not in ("/etc", "/etc/passwd", "/etc/shadow"):
                found[inside] = content_of(path)
    return found


DONE = {
    "/etc/localtime": PATH,
    "/etc/timezone": b"Asia/Shanghai\n",
    "/usr": None,
    "/usr/share": None,
    "/usr/share/zoneinfo": None,
    "/usr/share/zoneinfo/Asia": None,
    PATH: ZONES["Asia/Shanghai"],
}
STATES = {
    "nothing": {},
    "a link": {
        "/usr/share/zoneinfo/Asia/Tokyo": ZONES["Asia/Tokyo"],
        "/etc/localtime": "../usr/share/zoneinfo/Asia/Tokyo",
        "/etc/timezone": b"Asia/Tokyo\n",
    },
    "a file": {"/etc/localtime": ZONES["Asia/Tokyo"]},
    "a dangling link": {"/etc/localtime": PATH},
    "a link out of the tree": {"/etc/localtime": "../../../../etc/passwd"},
    "an old file of the zone": {PATH: ZONES["Asia/Tokyo"], "/etc/localtime": PATH},
    "another name": {
        PATH: "../PRC",
        "/usr/share/zoneinfo/PRC": ZONES["Asia/Tokyo"],
        "/etc/localtime": PATH,
    },
    "no folder but the tree": {"/usr/share/zoneinfo/UTC": ZONES["Etc/UTC"]},
    "junk": {"/etc/localtime": b"junk", "/etc/timezone": "/etc/localtime"},
}


def zone_box(box, state, **more):
    add(box, "web", **more)
    for path, content in STATES[state].items():
        put(box, "web", path, content)
    return files(box, "web")


@pytest.mark.parametrize("status", ["Up 2 hours", "Exited (0) 2 hours ago"])
@pytest.mark.parametrize("state", sorted(STATES))
def test_set_then_unchanged_then_undone(box, state, status):
    before = zone_box(box, state, status=status)
    result = box.quick("timezone", "web", "--json", prelude=in_shanghai)
    assert result.code == 0 and result.rows()["web"]["zone"] == "Asia/Shanghai", result
    after = files(box, "web")
    others = {path: content for path, content in before.items() if path not in DONE}
    assert after == dict(
        (
            DONE
            if "dangling" not in state and state not in ("an old file of the zone", "another name")
            else {path: content for path, content in DONE.items() if path != "/etc/timezone"}
        ),
        **others,
    )
    shot = box.picture()
    assert (
        box.quick("timezone", "web", "--json", prelude=in_shanghai).statuses()
        == {"web": "unchanged"}
        and files(box, "web") == after
    )
    assert {
        path: seen for path, seen in box.picture().items() if not path.startswith(box.state)
    } == {path: seen for path, seen in shot.items() if not path.startswith(box.state)}
    result = box.quick("timezone", "web", "--undo", "--json", prelude=in_shanghai)
    assert result.code == 0 and result.statuses() == {"web": "changed"}
    left = {path: content for path, content in files(box, "web").items() if path not in before}
    assert {
        path: content for path, content in files(box, "web").items() if path in before
    } == before
    assert left == {} if status.startswith("Up") else set(left.values()) <= {None}
    assert not left or "start it and undo once more" in result.rows()["web"]["msg"]
    assert bool(os.listdir(os.path.join(box.state, "undo"))) is bool(left)


def test_its_own_zone_file_stays_where_it_agrees(box):
    own = tzif(
        b"2", times=(0,), kinds=(0,), types=((28800, 0, 0),), names=b"CST\0", footer=b"CST-8"
    )
    add(box, "web")
    put(box, "web", PATH, own)
    assert box.quick("timezone", "web", prelude=in_shanghai).code == 0
    assert files(box, "web")[PATH] == own and files(box, "web")["/etc/localtime"] == PATH


def test_new_files_belong_to_root_and_are_not_writable_for_all(box):
    add(box, "web")
    box.quick("timezone", "web", prelude=in_shanghai)
    sent = [call for call in box.calls("cp") if call.words[1] == "-"]
    assert len(sent) == 1
    with tarfile.open(fileobj=io.BytesIO(sent[0].stdin)) as tar:
        members = tar.getmembers()
    assert [one.name for one in members] == [
        "etc",  # the folder that is there goes along as it is: the daemon looks at it once more
        "usr",
        "usr/share",
        "usr/share/zoneinfo",
        "usr/share/zoneinfo/Asia",
        PATH[1:],
        "etc/timezone",
        "etc/localtime",
    ]
    assert {(one.uid, one.gid) for one in members} == {(0, 0)} and {
        one.mode for one in members
    } == {0o755, 0o644, 0o777}
    assert all(one.issym() for one in members if one.mode == 0o777)


REFUSED = [
    (dict(env=["TZ=Asia/Tokyo"]), "TZ=Asia/Tokyo"),
    (dict(env=["TZ="]), "TZ= wins"),
    (dict(host={"ReadonlyRootfs": True}), "read-only"),
    (dict(host={"Binds": ["/etc/localtime:/etc/localtime:ro"]}), "mount"),
    (dict(host={"Tmpfs": {"/etc": ""}}), "mount"),
    (dict(host={"Binds": ["zones:/usr/share/zoneinfo/Asia"]}), "mount"),
]


@pytest.mark.parametrize("more, why", REFUSED)
def test_where_something_else_wins_it_is_refused_with_what_to_do(box, more, why):
    host = more.pop("host", None) if "host" in more else None
    add(box, "web", host=host, **more)
    before = files(box, "web")
    result = box.quick("timezone", "web", "--json", prelude=in_shanghai)
    row = result.rows()["web"]
    assert (
        result.code == 5
        and why in row["msg"]
        and "docker run -e TZ=Asia/Shanghai" in row["msg"]
        and files(box, "web") == before
    )
    assert (
        row["lasting"][0] == "docker run -e TZ=Asia/Shanghai -v %s:%s:ro IMAGE" % (PATH, PATH)
        and row["lasting"][-1] == "ENV TZ=Asia/Shanghai"
    )


@pytest.mark.parametrize(
    "env", ["TZ=Asia/Shanghai", "TZ=:Asia/Shanghai", "TZ=" + PATH, "TZ=:/etc/localtime"]
)
def test_a_variable_that_names_the_same_zone_gets_its_data(box, env):
    add(box, "web", env=[env])
    assert box.quick("timezone", "web", prelude=in_shanghai).code == 0 and files(box, "web") == DONE


@pytest.mark.parametrize(
    "folder", ["/usr", "/usr/share", "/usr/share/zoneinfo", "/usr/share/zoneinfo/Asia"]
)
def test_a_link_in_the_way_is_not_followed(box, folder):
    add(box, "web")
    put(box, "web", folder, "/mnt/host")
    result = box.quick("timezone", "web", "--json", prelude=in_shanghai)
    assert (
        result.code == 5
        and "%s is a link to /mnt/host" % folder in result.rows()["web"]["msg"]
        and len([c for c in box.calls("cp") if c.words[1] == "-"]) == 0
    )


@pytest.mark.parametrize("path", [PATH, "/etc/localtime", "/etc/timezone"])
def test_a_folder_where_a_file_belongs_is_refused(box, path):
    add(box, "web")
    os.makedirs(box.at("fs", "web", path.lstrip("/")))
    result = box.quick("timezone", "web", "--json", prelude=in_shanghai)
    assert result.code == 5 and path in result.rows()["web"]["msg"]


@pytest.mark.parametrize(
    "words",
    [
        ["--zone", "Asia/Nowhere"],
        ["--zone", "../../etc/shadow"],
        ["--zone", "/etc/shadow"],
        ["--zone", ""],
        ["--zone", "Asia/Tokyo", "--host"],
        ["--undo", "--zone", "Asia/Tokyo"],
        ["--undo", "--host"],
    ],
)
def test_what_makes_no_sense_is_exit_2_before_docker_is_asked(box, words):
    add(box, "web")
    result = box.quick("timezone", "web", *words, prelude=in_shanghai)
    assert result.code == 2 and box.calls() == []


def test_a_dry_run_changes_nothing_and_its_script_does_the_same(box):
    before = zone_box(box, "a link")
    add(box, "fixed", env=["TZ=UTC"])
    shot = box.picture()
    result = box.quick(
        "timezone",
        "web",
        "fixed",
        "--zone",
        "Asia/Shanghai",
        "--restart",
        "-n",
        prelude=in_shanghai,
    )
    assert (
        result.code == 3
        and box.picture() == shot
        and not os.path.exists(box.state)
        and files(box, "web") == before
    )
    lines = result.out.decode().splitlines()
    command = [line for line in lines if line.startswith("run ")]
    assert len(command) == 1 and re.search(
        r"dockfix\.py timezone --zone Asia/Shanghai --restart --yes --state \S+ %s$"
        % box.id("web"),
        command[0],
    )
    assert any(line.startswith("# refused: fixed") for line in lines)
    assert box.quick("timezone", "web", "-n", "--exit-code", prelude=in_shanghai).code == 4
    box.quick("timezone", "web", prelude=in_shanghai)
    result = box.quick("timezone", "web", "--undo", "-n", prelude=in_shanghai)
    assert "timezone --undo --state" in result.out.decode() and box.quick(
        "timezone", "web", "-n", "--json", prelude=in_shanghai
    ).statuses() == {"web": "unchanged"}


def test_restart_asks_and_restarts_what_runs_and_was_changed(box):
    add(box, "run")
    add(box, "stopped", status="Exited (0) 1 hour ago")
    add(box, "tz", env=["TZ=UTC"])
    result = box.quick("timezone", "--all", "--stopped", "--restart", prelude=in_shanghai)
    assert (
        result.code == 5
        and b"restart run?" in result.err
        and files(box, "run") == {}
        and box.calls("restart") == []
    )
    result = box.quick(
        "timezone", "--all", "--stopped", "--restart", "-y", "--json", prelude=in_shanghai
    )
    assert [call.words for call in box.calls("restart")] == [["restart", box.id("run")]]
    assert {name: row["restart"] for name, row in result.rows().items()} == {
        "run": "done",
        "stopped": "no",
        "tz": "no",
    }
    box.forget()
    result = box.quick("timezone", "run", "--undo", "--json", prelude=in_shanghai)
    assert result.rows()["run"]["restart"] == "needed" and box.calls("restart") == []


def test_a_later_restart_is_for_what_started_before_the_change(box):
    for name, started in (("old", "2020-01-01T00:00:00.1Z"), ("new", "2999-01-01T00:00:00.1Z")):
        add(box, name)
        one = box.world["containers"][-1]
        document = json.loads(one["json"])
        document["State"]["StartedAt"] = started
        one["json"] = json.dumps(document)
    box.quick("timezone", "--all", prelude=in_shanghai)
    rows = box.quick("timezone", "--all", "--json", prelude=in_shanghai).rows()
    assert {name: (row["status"], row["restart"]) for name, row in rows.items()} == {
        "old": ("unchanged", "needed"),
        "new": ("unchanged", "no"),
    }
    box.forget()
    box.quick("timezone", "--all", "--restart", "-y", prelude=in_shanghai)
    assert [call.words[1] for call in box.calls("restart")] == [box.id("old")]


def test_a_restart_that_fails_is_told(box):
    add(box, "web")
    box.rule(
        "restart", rc=1, err=b"Error response from daemon: Cannot restart container: no space\n"
    )
    result = box.quick("timezone", "web", "--restart", "-y", "--json", prelude=in_shanghai)
    assert (
        result.code == 3 and "no space" in result.rows()["web"]["msg"] and files(box, "web") == DONE
    )


@pytest.mark.parametrize("more", [dict(readonly=True), dict(deaf=1)])
def test_a_write_that_fails_leaves_all_as_it_was(box, more):
    before = zone_box(box, "a link", **more)
    result = box.quick("timezone", "web", "--json", prelude=in_shanghai)
    assert (
        result.code == 1
        and "all is as it was" in result.rows()["web"]["msg"]
        and files(box, "web") == before
    )
    assert os.listdir(os.path.join(box.state, "undo")) == []


def test_a_write_cut_in_the_middle_is_put_back(box):
    before = zone_box(box, "a file", truncates=1)
    result = box.quick("timezone", "web", "--json", prelude=in_shanghai)
    assert (
        result.code == 1
        and "all is as it was" in result.rows()["web"]["msg"]
        and files(box, "web") == before
    )


def test_a_write_that_does_not_answer_is_unknown_and_not_put_back(box):
    zone_box(box, "a link")
    box.quick("timezone", "web", prelude=in_shanghai)
    writes = [number for number, call in enumerate(box.calls("cp"), 1) if call.words[1] == "-"]
    box.quick("timezone", "web", "--undo", prelude=in_shanghai)
    box.forget()
    box.rule("cp", nth=writes[0], sleep=600)
    result = box.run("timezone", "web", "--json", "--timeout", "2", prelude=in_shanghai)
    row = result.rows()["web"]
    assert row["status"] == "unknown" and "timezone --undo" in row["msg"] and result.code == 3, row
    assert (
        len(os.listdir(os.path.join(box.state, "undo"))) == 1
        and [c for c in box.calls("cp") if c.words[1] == "-"][1:] == []
    )
    box.world["rules"] = []
    assert box.quick("timezone", "web", "--undo", prelude=in_shanghai).code == 0


def test_what_cannot_be_put_back_is_told_and_stays_recorded(box):
    zone_box(box, "a file", truncates=3)
    result = box.quick("timezone", "web", "--json", prelude=in_shanghai)
    assert result.code == 1 and "timezone --undo" in result.rows()["web"]["msg"]
    assert (
        box.quick("timezone", "web", "--undo", prelude=in_shanghai).code == 0
        and files(box, "web") == STATES["a file"]
    )


def test_a_state_folder_that_cannot_keep_it_refuses_the_change(box):
    before = zone_box(box, "a link")
    os.makedirs(box.state, 0o700)
    with open(os.path.join(box.state, "undo"), "w"):
        pass
    result = box.quick("timezone", "web", "--json", prelude=in_shanghai)
    assert (
        result.code in (1, 6)
        and files(box, "web") == before
        and [c for c in box.calls("cp") if c.words[1] == "-"] == []
    )


def test_records_of_containers_that_are_gone_go_too(box):
    add(box, "web")
    add(box, "old")
    box.world["info_json"] = json.dumps(
        {
            "ServerVersion": "20.10.24",
            "Driver": "overlay2",
            "DockerRootDir": "/var/lib/docker",
            "ID": "AB:CD",
        }
    )
    box.quick("timezone", "--all", prelude=in_shanghai)
    assert len(os.listdir(os.path.join(box.state, "undo"))) == 2
    gone = box.id("old")
    box.world["containers"] = [one for one in box.world["containers"] if one["name"] != "old"]
    box.quick("timezone", "--all", prelude=in_shanghai)
    left = os.listdir(os.path.join(box.state, "undo"))
    assert len(left) == 1 and gone not in left[0]


def test_two_runs_at_once_do_not_mix_their_records(box):
    add(box, "web")
    os.makedirs(box.state, 0o700)
    with open(os.path.join(box.state, "undo.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert box.quick("timezone", "web", prelude=in_shanghai).code == 8
    assert box.quick("timezone", "web", prelude=in_shanghai).code == 0


def test_what_lasts_is_said_but_not_in_json_nor_when_quiet(box):
    add(box, "web")
    assert b"ENV TZ=Asia/Shanghai" in box.quick("timezone", "web", prelude=in_shanghai).err
    assert (
        b"ENV TZ"
        not in box.quick("timezone", "web", "--json", prelude=in_shanghai).err
        + box.quick("timezone", "web", "-q", prelude=in_shanghai).err
    )


def test_under_remapping_new_files_are_the_containers_roots(box):
    add(box, "web")
    add(box, "hostns", host={"UsernsMode": "host"})
    box.world["userns"] = 500000
    box.world["info_json"] = json.dumps(
        {
            "ServerVersion": "20.10.24",
            "Driver": "overlay2",
            "DockerRootDir": "/var/lib/docker/500000.500000",
            "SecurityOptions": ["name=userns"],
        }
    )
    rows = box.quick("timezone", "--all", "--json", prelude=in_shanghai).rows()
    assert (
        rows["web"]["status"] == "changed"
        and rows["hostns"]["status"] == "refused"
        and files(box, "web") == DONE
        and files(box, "hostns") == {}
    )
    assert (
        box.quick("timezone", "web", "--undo", prelude=in_shanghai).code == 0
        and files(box, "web") == {}
    )
