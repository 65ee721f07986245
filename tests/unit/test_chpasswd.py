"""chpasswd from the command line to the shadow file, against a fake docker whose tools misbehave in
every known way."""

import io
import json
import os
import tarfile
import time

import pytest

LINES = b"root:tr0ub4dor:& \xc3\xa9\n"
PASSWORD = b"tr0ub4dor:& \xc3\xa9"
OLD_HASH = b"$6$saltsalt$" + b"z" * 86


def is_password(dockfix, field, password):
    """Made again from the salt in the field: sha512_crypt itself is held by test_hash.py."""
    scheme, salt = field.split(b"$")[1:3]
    return scheme == b"6" and field == dockfix.sha512_crypt(password, salt)


def assert_only_the_hash_and_the_day_differ(before, after, users):
    """Line by line, byte by byte."""
    today = {str(int(time.time() // 86400) - late).encode() for late in (0, 1)}
    if not before.endswith(b"\n") and after.endswith(b"\n"):
        before += b"\n"  # a missing line end is added
    old, new = before.split(b"\n"), after.split(b"\n")
    assert len(old) == len(new)
    for a, b in zip(old, new):
        if a.split(b":")[0] in users:
            a, b = a.split(b":"), b.split(b":")
            assert b[2] in today and b[1] != a[1]
            assert a[:1] + a[3:] == b[:1] + b[3:]
        else:
            assert a == b


def set_by(box, name, users=(b"root",), password=PASSWORD):
    return all(is_password(box.module, box.field(name, user), password) for user in users)


def tar_members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m, tar.extractfile(m).read() if m.isreg() else None) for m in tar]


def writes(box):
    """The calls that can change a container."""
    return [c for c in box.calls() if c.command == "exec" or c.words[:2] == ["cp", "-"]]


# ---- the exec way


def test_all_running_containers_get_the_password(web, dockfix):
    before = {name: web.shadow(name) for name in ("web1", "web2", "db")}
    result = web.run("--json", "chpasswd", "--all", stdin=LINES)
    assert result.rc == 0 and result.statuses() == {
        "web1": "changed",
        "web2": "changed",
        "db": "changed",
    }
    assert result.json["changed"] is True and result.json["command"] == "chpasswd"
    for name, old in before.items():
        row = result.rows()[name]
        assert row["id"] == web.id(name) and row["users"] == ["root"] and row["via"] == "exec"
        assert set_by(web, name)
        assert_only_the_hash_and_the_day_differ(old, web.shadow(name), {b"root"})


def test_what_chpasswd_gets(web):
    assert web.run("chpasswd", "web1", stdin=LINES).rc == 0
    [call] = web.calls("exec")
    assert call.words == ["exec", "-i", "-u", "0", web.id("web1"), "chpasswd", "-e"]
    assert call.stdin == b"root:" + web.field("web1") + b"\n"


def test_every_container_has_a_salt_of_its_own(web):
    web.quick("chpasswd", "--all", stdin=LINES)
    assert len({web.field(name).split(b"$")[2] for name in ("web1", "web2", "db")}) == 3


def test_several_users_are_one_call(web):
    before = web.shadow("web1")
    assert web.quick("chpasswd", "web1", stdin=b"root:one\napp:two\nlast:three").rc == 0
    assert len(web.calls("exec")) == 1
    assert [
        set_by(web, "web1", [u], p)
        for u, p in ((b"root", b"one"), (b"app", b"two"), (b"last", b"three"))
    ] == [True] * 3
    assert_only_the_hash_and_the_day_differ(before, web.shadow("web1"), {b"root", b"app", b"last"})


def test_text_names_each_container_and_what_became_of_it(web):
    web.container("ro", host={"ReadonlyRootfs": True}, readonly=True)
    result = web.quick("chpasswd", "--all", stdin=LINES)
    assert result.rc == 3
    for name, word in (("web1", b"changed"), ("ro", b"refused")):
        assert any(
            name.encode() in line and word in line for line in result.out.splitlines()
        ), result


@pytest.mark.parametrize("missing_rc", [126, 127])
def test_chpasswd_not_on_the_path_is_tried_in_usr_sbin(box, missing_rc):
    box.container("thin", chpasswd="path", missing_rc=missing_rc)
    result = box.run("--json", "chpasswd", "thin", stdin=LINES)
    assert result.statuses() == {"thin": "changed"} and result.rows()["thin"]["via"] == "exec"
    assert [c.words[5:] for c in box.calls("exec")] == [
        ["chpasswd", "-e"],
        ["/usr/sbin/chpasswd", "-e"],
    ]
    assert set_by(box, "thin")


@pytest.mark.parametrize("kind", ["missing", "liar", "refuses"])
def test_a_tool_that_changes_nothing_is_followed_by_the_cp_way(box, kind):
    box.container("c", chpasswd=kind)
    before = box.shadow("c")
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert (
        result.rc == 0
        and result.statuses() == {"c": "changed"}
        and result.rows()["c"]["via"] == "cp"
    )
    assert set_by(box, "c")
    assert_only_the_hash_and_the_day_differ(before, box.shadow("c"), {b"root"})


@pytest.mark.parametrize("kind", ["missing", "liar", "refuses"])
def test_via_exec_stays_with_exec(box, kind):
    box.container("c", chpasswd=kind)
    before = box.shadow("c")
    result = box.quick("--json", "chpasswd", "--via", "exec", "c", stdin=LINES)
    assert (
        result.rc == 1
        and result.statuses() == {"c": "failed"}
        and result.rows()["c"]["via"] is None
    )
    assert box.shadow("c") == before and not [c for c in writes(box) if c.command == "cp"]


def test_exit_status_0_proves_nothing(box):
    box.container("c", chpasswd="liar", deaf=9)
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert result.rc == 1 and result.statuses() == {"c": "failed"}


def test_a_tool_that_writes_another_hash_is_never_called_changed(box):
    box.container("c", chpasswd="rehash")
    result = box.quick("--json", "chpasswd", "--via", "exec", "c", stdin=LINES)
    assert result.rc == 1 and result.statuses() == {"c": "failed"}
    assert result.rows()["c"]["msg"]


def test_what_a_tool_that_stops_half_way_left_undone_is_done_by_another_way(box):
    box.container("c", chpasswd="first")
    result = box.quick("--json", "chpasswd", "c", stdin=b"root:one\napp:two\n")
    assert result.rc == 0 and result.statuses() == {"c": "changed"}
    assert set_by(box, "c", [b"root"], b"one") and set_by(box, "c", [b"app"], b"two")


def test_a_half_way_tool_with_via_exec_says_which_user_was_changed(box):
    box.container("c", chpasswd="first")
    result = box.quick("--json", "chpasswd", "--via", "exec", "c", stdin=b"root:one\napp:two\n")
    row = result.rows()["c"]
    assert row["status"] == "failed" and "set root but not app" in row["msg"], row
    assert result.rc == 3  # 1 would say that nothing was changed


def test_proc_with_a_pid_of_another_program_is_not_used(box):
    host = os.stat("/etc/shadow")
    box.container(
        "c",
        inspect={
            "State": {
                "Status": "running",
                "Running": True,
                "Paused": False,
                "Restarting": False,
                "Pid": os.getpid(),
            }
        },
    )
    before = box.shadow("c")
    result = box.run("--json", "chpasswd", "--via", "proc", "c", stdin=LINES)
    assert result.statuses() == {"c": "failed"} and result.rc == 1
    assert box.shadow("c") == before and not writes(box)
    after = os.stat("/etc/shadow")
    assert (host.st_ino, host.st_mtime, host.st_size) == (
        after.st_ino,
        after.st_mtime,
        after.st_size,
    )


# ---- the cp way


def test_cp_sends_new_content_then_a_hard_link_then_an_empty_leftover(box):
    box.container("c")
    before = box.shadow("c")
    result = box.run("--json", "chpasswd", "--via", "cp", "c", stdin=LINES)
    assert result.rc == 0 and result.rows()["c"]["via"] == "cp"
    call = writes(box)[0]
    assert [c.words[4:] for c in writes(box)[1:]] in (
        [],
        [["rm", "-f", "/etc/.shadow.dockfix"]],
    )  # tidying, where there is an rm
    assert call.words == ["cp", "-", box.id("c") + ":/"]
    (etc, _), (new, text), (link, _), (rest, nothing) = tar_members(call.stdin)
    assert (etc.name, etc.isdir()) == ("etc", True)  # the daemon refuses to put it over a link
    assert (new.name, new.isreg(), new.mode & 0o7777, new.uid, new.gid) == (
        "etc/.shadow.dockfix",
        True,
        0o640,
        0,
        42,
    )
    assert (link.name, link.islnk(), link.linkname) == (
        "etc/shadow",
        True,
        "etc/.shadow.dockfix",
    )
    assert (rest.name, rest.isreg(), nothing) == ("etc/.shadow.dockfix", True, b"")
    assert text == box.shadow("c")
    assert_only_the_hash_and_the_day_differ(before, box.shadow("c"), {b"root"})
    assert not os.path.exists(box.at("fs", "c", "etc", ".shadow.dockfix"))


def test_where_there_is_no_rm_the_leftover_is_empty(box):
    box.container("c", rm=False, answer={"rc": 127})
    assert box.quick("chpasswd", "--via", "cp", "c", stdin=LINES).rc == 0 and set_by(box, "c")
    assert os.path.getsize(box.at("fs", "c", "etc", ".shadow.dockfix")) == 0


@pytest.mark.parametrize("status", ["Exited (0) 3 days ago", "Created", "Up 5 minutes (Paused)"])
def test_containers_where_nothing_runs_are_changed_by_cp(box, status):
    box.container("c", status=status)
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert (
        result.statuses() == {"c": "changed"}
        and result.rows()["c"]["via"] == "cp"
        and set_by(box, "c")
    )


def test_a_stopped_container_costs_no_exec(box):
    box.container("c", status="Exited (0) 3 days ago")
    assert box.quick("chpasswd", "c", stdin=LINES).rc == 0 and set_by(box, "c")
    assert not box.calls("exec")


def test_a_read_back_that_differs_puts_the_old_bytes_back(box):
    box.container("c", truncates=1)
    before = box.shadow("c")
    result = box.quick("--json", "chpasswd", "--via", "cp", "c", stdin=LINES)
    assert result.statuses() == {"c": "failed"} and result.rc == 1
    assert box.shadow("c") == before
    assert "the old file was put back" in result.rows()["c"]["msg"], result


def test_when_even_the_old_bytes_do_not_go_back_it_is_said(box):
    box.container("c", truncates=9)
    before = box.shadow("c")
    result = box.quick("--json", "chpasswd", "--via", "cp", "c", stdin=LINES)
    assert result.statuses() == {"c": "failed"}
    assert box.shadow("c") != before
    assert "was put back" not in result.rows()["c"]["msg"], result


def test_cp_that_is_refused_by_the_daemon_is_failed(box):
    box.container("c", readonly=True)
    before = box.shadow("c")
    result = box.quick("--json", "chpasswd", "--via", "cp", "c", stdin=LINES)
    assert result.rc == 1 and result.statuses() == {"c": "failed"} and box.shadow("c") == before
    assert "read-only" in result.rows()["c"]["msg"]


# ---- the password stands in /etc/passwd


def passwd_with(field):
    return b"daemon:x:1:1::/:/bin/false\nroot:%b:0:0:root:/root:/bin/sh\n" % field


IN_PASSWD = [b"", b"*", OLD_HASH]


@pytest.mark.parametrize("field", IN_PASSWD, ids=["empty", "star", "hash"])
def test_cp_sends_shadow_and_then_passwd_in_one_tar(box, field):
    box.container("c", passwd=passwd_with(field), status="Exited (0) 1 hour ago")
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert result.statuses() == {"c": "changed"} and set_by(box, "c"), result
    assert box.read("fs/c/etc/passwd") == passwd_with(b"x")
    assert "/etc/passwd" in result.rows()["c"]["msg"]
    [call] = writes(box)
    names = [(member.name, member.linkname) for member, _ in tar_members(call.stdin)]
    copy = "etc/.shadow.dockfix"
    sent = [("etc", ""), (copy, ""), ("etc/shadow", copy), (copy, ""), ("etc/passwd", copy)]
    assert names == [*sent, (copy, "")]
    modes = {member.name: member.mode for member, _ in tar_members(call.stdin) if member.islnk()}
    assert modes == {"etc/shadow": 0o640, "etc/passwd": 0o644}


@pytest.mark.parametrize("field", IN_PASSWD, ids=["empty", "star", "hash"])
def test_the_old_bytes_of_both_files_go_back(box, field):
    box.container("c", passwd=passwd_with(field), truncates=1)
    before = box.shadow("c")
    result = box.quick("--json", "chpasswd", "--via", "cp", "c", stdin=LINES)
    assert result.statuses() == {"c": "failed"} and result.rc == 1
    assert box.shadow("c") == before and box.read("fs/c/etc/passwd") == passwd_with(field)
    assert "was put back" in result.rows()["c"]["msg"]


def test_a_tool_that_writes_where_login_does_not_read_has_not_changed_the_password(box):
    """chpasswd of EL6 leaves the field of /etc/passwd alone."""
    box.container("c", passwd=passwd_with(OLD_HASH), chpasswd="shadow-only")
    result = box.quick("--json", "chpasswd", "--via", "exec", "c", stdin=LINES)
    assert result.statuses() == {"c": "failed"} and result.rc == 3
    assert "/etc/passwd" in result.rows()["c"]["msg"]
    again = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert again.statuses() == {"c": "changed"} and again.rows()["c"]["via"] == "cp"
    assert box.read("fs/c/etc/passwd") == passwd_with(b"x") and set_by(box, "c")


def test_a_hash_that_the_tool_leaves_in_passwd_is_said(box):
    box.container("c", passwd=passwd_with(OLD_HASH))
    result = box.quick("--json", "chpasswd", "--via", "exec", "c", stdin=LINES)
    assert result.statuses() == {"c": "changed"}
    assert box.read("fs/c/etc/passwd") == passwd_with(box.field("c"))
    assert "every user inside can read" in result.rows()["c"]["msg"]


@pytest.mark.parametrize("shadow", [None, b"daemon:*:1:0:99999:7:::\n"], ids=["no file", "no line"])
def test_a_user_without_a_shadow_line_is_set_by_the_images_own_tool_or_refused(box, shadow):
    box.container("c", shadow=shadow)
    box.container("stopped", shadow=shadow, status="Exited (0) 1 hour ago")
    box.container("bare", shadow=shadow, chpasswd="missing")
    result = box.quick("--json", "chpasswd", "c", "stopped", "bare", stdin=LINES)
    expected = {"c": "changed", "stopped": "refused", "bare": "refused"}
    assert result.statuses() == expected and result.rows()["c"]["via"] == "exec", result
    assert all("pwconv" in result.rows()[name]["msg"] for name in ("stopped", "bare"))


def test_where_libraries_differ_on_the_line_the_images_own_tool_is_not_used(box):
    line = b"root:" + OLD_HASH + b":19000:0:99999:7:::"
    box.container("c", shadow=line + b"\r\n" + line + b"\n")
    only = box.quick("--json", "chpasswd", "--via", "exec", "c", stdin=LINES)
    assert only.statuses() == {"c": "failed"} and not writes(box), only
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert result.statuses() == {"c": "changed"} and result.rows()["c"]["via"] == "cp"
    fields = [row.split(b":")[1] for row in box.shadow("c").splitlines()]
    assert len(set(fields)) == 1 and set_by(box, "c")


def test_sixty_thousand_accounts(box):
    many = range(60000)
    shadow = b"root:*:19000:0:99999:7:::\n" + b"".join(
        b"u%d:!:19000:0:99999:7:::\n" % n for n in many
    )
    passwd = b"root:x:0:0::/:/bin/sh\n" + b"".join(b"u%d:x:9:9::/:/bin/false\n" % n for n in many)
    box.container("c", shadow=shadow, passwd=passwd, status="Exited (0) 1 hour ago")
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert result.statuses() == {"c": "changed"} and set_by(box, "c"), result
    assert_only_the_hash_and_the_day_differ(shadow, box.shadow("c"), {b"root"})


def userns(box, json_text=True):
    box.world["userns"] = 500000
    box.container("c", chpasswd="missing")
    if json_text:
        box.world["info_json"] = (
            '{"ServerVersion":"20.10.24","DockerRootDir":"/data/docker/500000.500000",'
            '"SecurityOptions":["name=seccomp,profile=default","name=userns"]}'
        )
    else:
        box.world["info_json"] = None
        box.world["info_text"] = (
            "Containers: 1\n Running: 1\nServer Version: 1.12.6\nStorage Driver: overlay\nSecurity"
            " Options: seccomp\nKernel Version: 3.10.0\nDocker Root Dir:"
            " /data/docker/500000.500000\nDebug Mode (client): false\n"
        )


@pytest.mark.parametrize("json_text", [True, False], ids=["json", "text of 1.12"])
def test_cp_subtracts_the_base_of_the_user_namespace(box, json_text):
    userns(box, json_text)
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert (
        result.statuses() == {"c": "changed"}
        and result.rows()["c"]["via"] == "cp"
        and set_by(box, "c")
    )
    [call] = [c for c in writes(box) if c.command == "cp"]
    assert {
        (m.uid, m.gid)
        for m, _ in tar_members(call.stdin)
        if m.name == "etc/.shadow.dockfix" and m.size
    } == {(0, 42)}


def test_ids_outside_the_user_namespace_are_not_sent(box):
    """docker would unlink /etc/shadow first and fail then (moby#43698)."""
    userns(box)
    box.world["userns"] = 0
    before = box.shadow("c")
    result = box.quick("--json", "chpasswd", "--via", "cp", "c", stdin=LINES)
    assert result.statuses() == {"c": "failed"} and result.rc == 1
    assert box.shadow("c") == before and not writes(box)


def test_userns_host_under_a_remapping_daemon_is_not_changed_by_cp(box):
    userns(box)
    del box.world["containers"][:]
    os.rename(box.at("fs", "c"), box.at("fs", "unused"))
    box.container("c", chpasswd="missing", host={"UsernsMode": "host"})
    before = box.shadow("c")
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert result.statuses() == {"c": "refused"} and box.shadow("c") == before
    assert not [c for c in writes(box) if c.command == "cp"]


def test_docker_info_is_asked_at_most_once_and_only_for_cp(web):
    web.quick("chpasswd", "--all", stdin=LINES)
    assert not web.calls("info")
    web.quick("chpasswd", "--via", "cp", "--all", stdin=LINES)
    assert len(web.calls("info")) == 1


# ---- refusals


def refused(box, *options, **container):
    lines = container.pop("lines", LINES)
    box.container("c", **container)
    before = box.shadow("c") if os.path.isfile(box.at("fs", "c", "etc", "shadow")) else None
    result = box.quick("--json", "chpasswd", *((*options, "c")), stdin=lines)
    assert result.rc == 5 and result.statuses() == {"c": "refused"}, result
    assert result.json["changed"] is False and not writes(box)
    assert before is None or box.shadow("c") == before
    return result.rows()["c"]["msg"]


MOUNTS = {
    "Mounts /etc": {
        "inspect": {
            "Mounts": [{"Type": "bind", "Source": "/srv/etc", "Destination": "/etc", "RW": True}]
        }
    },
    "Mounts of 1.12, no Type": {
        "inspect": {
            "Mounts": [{"Source": "/srv/etc", "Destination": "/etc", "Mode": "", "RW": True}]
        }
    },
    "Mounts /": {
        "inspect": {
            "Mounts": [{"Type": "bind", "Source": "/srv/root", "Destination": "/", "RW": True}]
        }
    },
    "Mounts /etc/shadow": {
        "inspect": {
            "Mounts": [
                {"Type": "bind", "Source": "/srv/shadow", "Destination": "/etc/shadow", "RW": True}
            ]
        }
    },
    "Mounts /etc/passwd": {
        "inspect": {
            "Mounts": [
                {"Type": "bind", "Source": "/srv/passwd", "Destination": "/etc/passwd", "RW": False}
            ]
        }
    },
    "Mounts volume": {
        "inspect": {
            "Mounts": [
                {
                    "Type": "volume",
                    "Name": "v",
                    "Source": "/var/lib/docker/volumes/v/_data",
                    "Destination": "/etc",
                    "Driver": "local",
                    "RW": True,
                }
            ]
        }
    },
    "Mounts //etc/": {
        "inspect": {
            "Mounts": [{"Type": "bind", "Source": "/srv/etc", "Destination": "//etc/", "RW": True}]
        }
    },
    "Mounts /etc/.": {
        "inspect": {
            "Mounts": [{"Type": "bind", "Source": "/srv/etc", "Destination": "/etc/.", "RW": True}]
        }
    },
    "Mounts /var/../etc": {
        "inspect": {
            "Mounts": [
                {"Type": "bind", "Source": "/srv/etc", "Destination": "/var/../etc", "RW": True}
            ]
        }
    },
    "Binds": {"host": {"Binds": ["/srv/etc:/etc:ro"]}},
    "Binds, Windows-like source": {"host": {"Binds": ["vol:/etc/shadow"]}},
    "Tmpfs": {"host": {"Tmpfs": {"/etc": "size=1m"}}},
    "HostConfig.Mounts": {"host": {"Mounts": [{"Type": "tmpfs", "Target": "/etc"}]}},
    "HostConfig.Mounts shadow": {
        "host": {"Mounts": [{"Type": "bind", "Source": "/srv/s", "Target": "/etc/shadow"}]}
    },
}


@pytest.mark.parametrize("how", sorted(MOUNTS))
def test_a_mount_over_etc_is_refused(box, how):
    assert "/" in refused(box, **MOUNTS[how])


@pytest.mark.parametrize(
    "destination",
    ["/etc/hosts", "/etc/resolv.conf", "/etcetera", "/data/etc", "/etc/nginx", "/var"],
)
def test_other_mounts_are_none_of_our_business(box, destination):
    box.container(
        "c",
        inspect={
            "Mounts": [{"Type": "bind", "Source": "/srv/x", "Destination": destination, "RW": True}]
        },
    )
    assert box.quick("chpasswd", "c", stdin=LINES).rc == 0 and set_by(box, "c")


def test_allow_shared_etc_lifts_it(box):
    box.container("c", **MOUNTS["Mounts /etc"])
    assert box.quick("chpasswd", "--allow-shared-etc", "c", stdin=LINES).rc == 0 and set_by(
        box, "c"
    )


@pytest.mark.parametrize("source", ["/etc", "/", "/etc/shadow", "//etc/.", "/usr/../etc"])
def test_but_never_for_the_hosts_own_etc(box, source):
    target = "/etc/shadow" if source.endswith("shadow") else "/etc"
    mount = {"Type": "bind", "Source": source, "Destination": target, "RW": True}
    refused(box, "--allow-shared-etc", inspect={"Mounts": [mount]})


def test_nor_for_another_name_of_the_hosts_etc(box):
    os.symlink("/etc", box.at("alias"))
    mount = {"Type": "bind", "Source": box.at("alias"), "Destination": "/etc", "RW": True}
    refused(box, "--allow-shared-etc", inspect={"Mounts": [mount]})


@pytest.mark.parametrize("device, words", [("/etc", "never written"), ("/srv/etc", "")])
@pytest.mark.parametrize("source", ["vol", "/var/lib/docker/volumes/vol/_data"])
def test_nor_a_volume_that_becomes_the_hosts_etc_when_it_is_mounted(box, source, device, words):
    """Of a stopped container: its folder on the host is empty until docker cp has it mounted."""
    box.container(
        "c",
        status="Exited (0) 1 hour ago",
        inspect={
            "Mounts": [{"Type": "volume", "Name": "vol", "Source": source, "Destination": "/etc"}]
        },
    )
    box.rule(
        "volume",
        out=json.dumps(
            [
                {
                    "Name": "vol",
                    "Driver": "local",
                    "Options": {"type": "none", "o": "bind", "device": device},
                }
            ]
        ).encode(),
    )
    result = box.quick("--json", "chpasswd", "c", "--allow-shared-etc", stdin=LINES)
    assert (result.rc, result.statuses()["c"]) == (
        (5, "refused") if words else (0, "changed")
    ) and words in result.rows()["c"]["msg"]


def test_a_read_only_root_is_refused(box):
    assert "read-only" in refused(box, host={"ReadonlyRootfs": True}, readonly=True)


def test_a_user_that_is_not_there_is_refused_by_name(box):
    assert "nobody9" in refused(box, lines=b"nobody9:x\n")


def test_one_missing_user_refuses_all_lines_of_the_container(box):
    assert "nobody9" in refused(box, lines=b"root:x\nnobody9:x\n")


@pytest.mark.parametrize(
    "field",
    [
        b"!" + OLD_HASH,
        b"!!" + OLD_HASH,
        b"!$y$j9T$abc$" + b"b" * 43,
        b"!$1$salt$" + b"c" * 22,
        b"!$2b$10$" + b"d" * 53,
    ],
)
def test_an_account_locked_by_an_administrator_is_refused(box, field):
    assert "lock" in refused(box, shadow=b"root:" + field + b":19000:0:99999:7:::\n")


def test_unlock_sets_a_locked_account(box):
    box.container("c", shadow=b"root:!" + OLD_HASH + b":19000:0:99999:7:::\n")
    assert box.quick("chpasswd", "--unlock", "c", stdin=LINES).rc == 0 and set_by(box, "c")


@pytest.mark.parametrize("field", [b"*", b"!", b"!!", b"!locked", b"*LK*", b""])
def test_a_password_never_set_is_set_and_that_is_said(box, field):
    box.container("c", shadow=b"root:" + field + b":19000:0:99999:7:::\n")
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert result.statuses() == {"c": "changed"} and set_by(box, "c")
    assert (
        "root" in result.rows()["c"]["msg"]
        or "never" in result.rows()["c"]["msg"]
        or "empty" in result.rows()["c"]["msg"]
    ), result


def odd_shadow(box, make):
    box.container("c", shadow=None)
    make(box.at("fs", "c", "etc", "shadow"))


@pytest.mark.parametrize("client", ["1.12", "20.10", "28"])
def test_no_shadow_in_the_words_of_every_client(box, client):
    box.world["client"] = client
    box.container("c", shadow=None, status="Exited (0) 1 hour ago")
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert (
        result.rc == 5
        and result.statuses() == {"c": "refused"}
        and "/etc/shadow" in result.rows()["c"]["msg"]
        and not writes(box)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda path: os.symlink("/host/shadow", path),
        lambda path: os.mkfifo(path),
        lambda path: os.mkdir(path),
    ],
    ids=["symlink", "fifo", "directory"],
)
def test_a_shadow_that_is_no_plain_file_is_refused(box, make):
    odd_shadow(box, make)
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert (
        result.rc == 5
        and result.statuses() == {"c": "refused"}
        and "shadow" in result.rows()["c"]["msg"]
    )
    assert not writes(box)


def test_a_shadow_that_is_a_device_is_refused(box, make_tar):
    box.container("c", tar=make_tar(("shadow", tarfile.CHRTYPE, "")))
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert result.rc == 5 and result.statuses() == {"c": "refused"} and not writes(box)


@pytest.mark.parametrize("size, code", [(2 << 20, 0), ((64 << 20) + 1, 5)])
def test_a_shadow_above_64_mebibytes_is_refused(box, size, code):
    root = b"root:*:19000:0:99999:7:::\n"
    box.container("c", shadow=root + b"#" + b"x" * (size - len(root) - 2) + b"\n")
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert result.rc == code and (box.field("c") != b"*") == (code == 0), result


def test_an_etc_that_is_a_link_is_refused(box):
    box.container("c")
    os.rename(box.at("fs", "c", "etc"), box.at("fs", "c", "real"))
    os.symlink("real", box.at("fs", "c", "etc"))
    result = box.quick("--json", "chpasswd", "c", stdin=LINES)
    assert result.rc == 5 and result.statuses() == {"c": "refused"} and not writes(box)


def test_a_refusal_does_not_keep_the_others(web):
    web.container("ro", host={"ReadonlyRootfs": True}, readonly=True)
    result = web.quick("--json", "chpasswd", "--all", stdin=LINES)
    assert result.rc == 3 and result.statuses() == {
        "web1": "changed",
        "web2": "changed",
        "db": "changed",
        "ro": "refused",
    }


def test_the_reading_of_a_huge_etc_stops_at_its_first_header(box):
    box.container("c")
    with open(box.at("fs", "c", "etc", "huge"), "wb") as f:
        f.truncate(100 << 20)
    box.wrap_docker('$INNER "$@"; code=$?; echo "$1 $2" >>%s; exit $code' % box.at("ended"))
    result = box.run("--json", "chpasswd", "c", stdin=LINES)
    assert result.rc == 0 and set_by(box, "c")
    ended = box.read("ended").decode().splitlines()
    assert (
        "cp %s:/etc" % box.id("c") in [" ".join(call.words[:2]) for call in box.calls()]
        and "cp %s:/etc" % box.id("c") not in ended
    )
    assert "exec -i" in ended and "cp %s:/etc/shadow" % box.id("c") in ended


# ---- containers that go away


@pytest.mark.parametrize(
    "rule",
    [
        {"on": "inspect", "remove": "db"},
        {"on": "exec", "has": "chpasswd", "nth": 1, "remove": "db"},
    ],
    ids=["before inspect", "at the first exec"],
)
def test_a_container_that_vanished_is_skipped(web, rule):
    web.rule(**rule)
    result = web.quick("--json", "chpasswd", "--all", "--jobs", "1", stdin=LINES)
    assert result.rc == 0 and result.statuses() == {
        "web1": "changed",
        "web2": "changed",
        "db": "skipped",
    }
    assert "gone" in result.rows()["db"]["msg"]


CLIENTS = ["1.12", "20.10", "28"]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "via, rule",
    [
        ("auto", {"on": "cp", "nth": 1}),
        ("auto", {"on": "exec", "nth": 1}),
        ("cp", {"on": "cp", "nth": 2}),
        ("cp", {"on": "cp", "has": "-", "nth": 3}),
        ("exec", {"on": "exec", "nth": 1}),
    ],
    ids=["the first look", "exec", "the second look", "later", "only exec"],
)
def test_a_container_that_vanishes_at_the_moment_of_a_call_is_skipped(box, client, via, rule):
    box.world["client"] = client
    box.container("db")
    box.rule(remove="db", **rule)
    result = box.quick("--json", "chpasswd", "--via", via, "db", stdin=LINES)
    assert (
        result.rc == 0
        and result.statuses() == {"db": "skipped"}
        and result.json["changed"] is False
    )


def test_a_chpasswd_that_says_its_container_is_gone_is_not_believed(box):
    box.container("web1")
    box.rule("exec", rc=1, err=b"Error: No such container: web1\n")
    result = box.quick("--json", "chpasswd", "--via", "exec", "web1", stdin=LINES)
    assert result.rc == 1 and result.statuses() == {"web1": "failed"}


@pytest.mark.parametrize("state", [{"Status": "removing"}, {"Dead": True}], ids=str)
def test_a_container_that_is_being_removed_is_gone(box, state):
    box.container("web1", inspect={"State": dict({"Running": False, "Pid": 0}, **state)})
    result = box.quick("--json", "chpasswd", "web1", stdin=LINES)
    assert result.rc == 0 and result.statuses() == {"web1": "skipped"}


# ---- time-outs


@pytest.mark.parametrize("lands", [True, False], ids=["after all", "not so far"])
def test_a_docker_cp_that_hangs_is_unknown_unless_it_is_seen_to_have_worked(box, lands):
    """The daemon may still be at it: nothing is put back, nothing else is tried."""
    box.container("c", status="Exited (0) 1 hour ago")
    # /etc, passwd and shadow at the look; /etc, passwd and shadow before the write
    box.rule("cp", nth=7, has="-", **({"linger": 600} if lands else {"sleep": 600}))
    result = box.run("--json", "chpasswd", "c", "--timeout", "3", stdin=LINES)
    assert result.statuses() == {"c": "changed" if lands else "unknown"} and result.rc == (
        0 if lands else 3
    ), result
    assert len([call for call in box.calls("cp") if call.words[1] == "-"]) == 1


def test_a_hanging_chpasswd_is_unknown_and_no_other_way_is_tried(box):
    box.container("c")
    box.rule("exec", has="chpasswd", hang=600)
    result = box.run("--json", "--timeout", "2", "chpasswd", "c", stdin=LINES)
    assert result.rc == 3 and result.statuses() == {"c": "unknown"}, result
    assert box.was_cut_off()
    assert [c.command for c in writes(box)] == ["exec"]


def test_a_chpasswd_that_hangs_after_its_work_is_verified(box):
    box.container("c")
    box.rule("exec", has="chpasswd", linger=600)
    result = box.run("--json", "--timeout", "3", "chpasswd", "c", stdin=LINES)
    assert result.rc == 0 and result.statuses() == {"c": "changed"} and set_by(box, "c")


def test_one_that_hangs_does_not_keep_the_others(web):
    web.rule("exec", has=web.id("db"), sleep=600)
    result = web.run("--json", "--timeout", "2", "chpasswd", "--all", stdin=LINES)
    assert result.rc == 3 and result.statuses() == {
        "web1": "changed",
        "web2": "changed",
        "db": "unknown",
    }


# ---- where the password comes from


def test_password_file_is_for_root_and_loses_one_line_feed(web):
    path = web.file("secret", PASSWORD + b"\n")
    assert web.quick("chpasswd", "--password-file", path, "web1").rc == 0 and set_by(web, "web1")


def test_password_stdin_is_for_the_user_named(web):
    assert (
        web.quick(
            "chpasswd", "--password-stdin", "--user", "app", "web1", stdin=PASSWORD + b"\n"
        ).rc
        == 0
    )
    assert set_by(web, "web1", [b"app"]) and web.field("web1") == b"*"


def test_password_bytes_are_kept(web):
    odd = bytes(b for b in range(1, 256) if b not in (10, 13))
    assert web.quick("chpasswd", "--password-stdin", "web1", stdin=odd).rc == 0 and set_by(
        web, "web1", password=odd
    )


@pytest.mark.parametrize("size, code", [(511, 0), (512, 2)])
def test_511_bytes_are_the_limit(web, size, code):
    assert web.quick("chpasswd", "--password-stdin", "web1", stdin=b"x" * size).rc == code
    assert set_by(web, "web1", password=b"x" * size) if code == 0 else not writes(web)


BAD_SECRETS = {
    "empty": b"",
    "only a line feed": b"\n",
    "CR": b"abc\r\n",
    "NUL": b"a\0b",
    "LF inside": b"a\nroot:b\n",
    "two line feeds": b"a\n\n",
}


@pytest.mark.parametrize("source", ["--password-file", "--password-stdin"])
@pytest.mark.parametrize("name", sorted(BAD_SECRETS))
def test_a_bad_password_is_exit_2_and_nothing_is_changed(web, source, name):
    data = BAD_SECRETS[name]
    options = [source, web.file("secret", data)] if source == "--password-file" else [source]
    result = web.quick("--json", "chpasswd", *([*options, "web1"]), stdin=data)
    assert result.rc == 2 and result.json["errors"][0]["code"] == 2 and not writes(web), result


BAD_LINES = {
    "empty": b"",
    "no colon": b"root\n",
    "CR": b"root:x\r\n",
    "NUL": b"root:a\0b\n",
    "empty password": b"root:\n",
    "empty user": b":x\n",
    "long": b"root:" + b"x" * 512 + b"\n",
    "second line bad": b"root:x\napp\n",
}


@pytest.mark.parametrize("name", sorted(BAD_LINES))
def test_bad_lines_are_exit_2_and_nothing_is_changed(web, name):
    result = web.quick("--json", "chpasswd", "web1", stdin=BAD_LINES[name])
    assert result.rc == 2 and not writes(web), result


def test_empty_standard_input_names_the_way_for_cron(web):
    result = web.quick("chpasswd", "--all", stdin=b"")
    assert result.rc == 2 and b"--password-file" in result.err


@pytest.mark.parametrize(
    "options",
    [
        ["--password-stdin", "--generate"],
        ["--password-file", "X", "--password-stdin"],
        ["--password-file", "X", "--generate"],
    ],
    ids=" ".join,
)
def test_two_sources_are_exit_2(web, options):
    path = web.file("secret", b"x")
    options = [path if word == "X" else word for word in options]
    if "--generate" in options:
        options += ["--output", web.at("out")]
    assert web.quick("chpasswd", *([*options, "web1"]), stdin=b"x").rc == 2
    assert not writes(web) and not os.path.exists(web.at("out"))


@pytest.mark.parametrize(
    "options",
    [
        ["--user", "app"],
        ["--generate"],
        ["--output", "out"],
        ["--password-stdin", "--user", "a:b"],
        ["--password-stdin", "--user", ""],
        ["--password-stdin", "--user", "a\nb"],
        ["--password-file", "/nonexistent/file"],
        ["--via", "telnet"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit_are_exit_2(web, options):
    result = web.quick("--json", "chpasswd", *([*options, "web1"]), stdin=LINES)
    assert result.rc == 2 and result.json["errors"] and not writes(web), result


def test_standard_input_serves_one_purpose(web):
    assert web.quick("chpasswd", "--from", "-", stdin=b"web1\n").rc == 2
    assert web.quick("chpasswd", "--from", "-", "--password-stdin", stdin=b"web1\n").rc == 2
    path = web.file("secret", PASSWORD)
    assert (
        web.quick("chpasswd", "--from", "-", "--password-file", path, stdin=b"# mine\n\nweb1\n").rc
        == 0
    )
    assert set_by(web, "web1") and web.field("web2") == b"*"


# ---- hashes given

HASHES = {
    "sha256": b"$5$rounds=6000$saltsalt$" + b"a" * 43,
    "sha512": OLD_HASH,
    "sha512 rounds": b"$6$rounds=10000$saltsalt$" + b"b" * 86,
    "bcrypt a": b"$2a$10$" + b"c" * 53,
    "bcrypt b": b"$2b$12$" + b"d" * 53,
    "bcrypt x": b"$2x$10$" + b"d" * 53,
    "bcrypt y": b"$2y$05$" + b"e" * 53,
    "yescrypt": b"$y$j9T$saltsaltsalt$" + b"f" * 43,
}
NOT_HASHES = {
    "clear text": b"secret",
    "empty": b"",
    "star": b"*",
    "locked": b"!" + OLD_HASH,
    "md5": b"$1$salt$" + b"a" * 22,
    "des": b"abJnggxhB/yWI",
    "short": b"$6$salt$abc",
    "no hash": b"$6$salt$",
    "colon inside": b"$6$salt$" + b"a" * 40 + b":" + b"a" * 45,
    "CR": OLD_HASH + b"\r",
    "bad letter": b"$6$saltsalt$" + b"*" * 86,
    "long salt": b"$6$" + b"s" * 17 + b"$" + b"z" * 86,
    "unknown scheme": b"$9$salt$" + b"a" * 86,
    "trailing word": OLD_HASH + b" x",
}


@pytest.mark.parametrize("name", sorted(HASHES))
def test_a_hash_given_is_stored_as_it_is(web, name):
    result = web.quick("--json", "chpasswd", "-e", "web1", stdin=b"root:" + HASHES[name] + b"\n")
    assert result.rc == 0 and web.field("web1") == HASHES[name]
    said = result.out.decode() + result.err.decode()
    assert ("musl" in said) == (name == "yescrypt"), result


@pytest.mark.parametrize("name", sorted(NOT_HASHES))
def test_a_malformed_hash_is_exit_2(web, name):
    result = web.quick(
        "--json", "chpasswd", "--encrypted", "web1", stdin=b"root:" + NOT_HASHES[name] + b"\n"
    )
    assert result.rc == 2 and not writes(web), result


# ---- generated passwords


def generated(path):
    with open(path, "rb") as f:
        return [line.split("\t") for line in f.read().decode("ascii").splitlines()]


def test_generated_passwords_are_in_the_file_and_in_the_containers(web, dockfix):
    out = web.at("new passwords")
    result = web.quick("--json", "chpasswd", "--all", "--generate", "--output", out)
    assert result.rc == 0 and os.stat(out).st_mode & 0o7777 == 0o600
    rows = generated(out)
    assert sorted(row[:3] for row in rows) == sorted(
        [name, web.id(name), "root"] for name in ("web1", "web2", "db")
    )
    assert len({row[3] for row in rows}) == 3
    for name, _, _, password in rows:
        assert (
            len(password) == 20
            and password.isalnum()
            and is_password(dockfix, web.field(name), password.encode())
        )
        assert password not in result.out.decode() + result.err.decode()


def test_the_file_is_whole_before_anything_is_changed(web):
    out = web.at("out")
    web.rule("exec", touch=["waiting"], **{"await": "go"})
    pid = web.start(web.arguments(["chpasswd", "--all", "--generate", "--output", out]))
    deadline = time.time() + 15
    while not os.path.exists(web.at("waiting")) and time.time() < deadline:
        time.sleep(0.01)
    seen = generated(out)
    web.file("go", b"")
    assert web.outcome(pid).rc == 0
    assert len(seen) == 3 and seen == generated(out)


def test_an_output_that_exists_is_refused(web):
    out = web.file("out", b"precious")
    result = web.quick("--json", "chpasswd", "--all", "--generate", "--output", out)
    assert result.rc == 5 and web.read("out") == b"precious" and not writes(web)


@pytest.mark.parametrize("flags", [[], ["-n"]], ids=["real", "dry run"])
def test_an_output_that_exists_stops_all_at_once(web, flags):
    result = web.quick(
        "chpasswd", "--all", "--generate", "--output", web.file("taken", b"mine"), *flags
    )
    assert result.rc == 5 and web.read("taken") == b"mine" and web.calls() == []


@pytest.mark.parametrize("user", ["", "a:b"], ids=repr)
@pytest.mark.parametrize("flags", [[], ["-n"]], ids=["real", "dry run"])
def test_a_user_that_is_no_name_is_exit_2_for_generate_too(web, user, flags):
    assert (
        web.quick(
            "chpasswd", "--all", "--generate", "--output", web.at("new"), "--user", user, *flags
        ).rc
        == 2
    )
    assert web.calls() == [] and not os.path.exists(web.at("new"))


def test_nothing_but_refusals_makes_no_output(box):
    box.container("web1", shadow=None, status="Exited (0) 1 hour ago")
    assert box.quick("chpasswd", "web1", "--generate", "--output", box.at("new")).rc == 5
    assert not os.path.exists(box.at("new"))


def test_an_output_that_is_a_dangling_link_is_refused(web):
    os.symlink(web.at("elsewhere"), web.at("out"))
    assert web.quick("chpasswd", "--all", "--generate", "--output", web.at("out")).rc == 5
    assert not os.path.exists(web.at("elsewhere")) and not writes(web)


def test_an_output_that_cannot_be_written_is_exit_6(web):
    result = web.quick(
        "--json", "chpasswd", "--all", "--generate", "--output", web.at("no", "such", "folder")
    )
    assert result.rc == 6 and not writes(web)


def test_an_output_whose_disk_is_full_is_exit_6(web):
    def full_disk(dockfix):
        def fsync(fd):
            raise OSError(28, "No space left on device")

        dockfix.os.fsync = fsync

    result = web.quick(
        "--json", "chpasswd", "--all", "--generate", "--output", web.at("out"), prelude=full_disk
    )
    assert (
        result.rc == 6 and "space" in result.json["errors"][0]["msg"].lower() and not writes(web)
    ), result


# ---- how often docker is asked


def test_calls_grow_with_the_containers_by_a_fixed_number_each(box):
    count = 24
    box.containers(*["c%02d" % i for i in range(count)])
    assert box.quick("chpasswd", "--all", stdin=LINES).rc == 0
    by_command = {name: len(box.calls(name)) for name in ("ps", "inspect", "info", "exec", "cp")}
    assert (
        by_command["ps"] == 1
        and by_command["inspect"] == 1
        and by_command["info"] == 0
        and by_command["exec"] == count
    )
    assert by_command["cp"] <= 5 * count, by_command  # /etc, and twice two files
    assert [c.words[:3] for c in box.calls("inspect")] == [["inspect", "--type", "container"]]


def test_all_ids_are_full_ids(web):
    assert web.quick("chpasswd", "web1", "web2", stdin=LINES).rc == 0 and len(writes(web)) == 2
    for call in web.calls():
        for word in call.words:
            assert word not in ("web1", "web2") and not word.startswith("web"), call
