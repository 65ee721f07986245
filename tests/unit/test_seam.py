"""The seam's files and questions: replace_file and confirm."""

import os
import socket
import threading

import pytest


def test_replace_file_leaves_the_old_bytes_where_it_fails(dockfix, tmp_path, monkeypatch):
    path = tmp_path / "journal"
    dockfix.replace_file(str(path), b"old")
    assert path.read_bytes() == b"old" and path.stat().st_mode & 0o777 == 0o600

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dockfix, "write_all", full)
    with pytest.raises(OSError):
        dockfix.replace_file(str(path), b"new")
    assert path.read_bytes() == b"old" and os.listdir(str(tmp_path)) == ["journal"]


def test_replace_file_keeps_the_mode_that_is_asked_for_and_replaces_a_link(dockfix, tmp_path):
    (tmp_path / "victim").write_bytes(b"safe")
    (tmp_path / "setting").symlink_to("victim")
    dockfix.replace_file(str(tmp_path / "setting"), b"new", 0o644)
    assert (tmp_path / "victim").read_bytes() == b"safe" and (
        tmp_path / "setting"
    ).read_bytes() == b"new"
    assert (tmp_path / "setting").lstat().st_mode & 0o777 == 0o644


def test_confirm_is_answered_by_yes_and_refused_without_a_terminal(dockfix, monkeypatch):
    dockfix.confirm(dockfix.Options(yes=True), "stop docker?")

    def no_terminal(*args, **more):
        raise OSError(6, "No such device or address")

    monkeypatch.setattr(dockfix.os, "open", no_terminal)
    with pytest.raises(dockfix.Refused) as refusal:
        dockfix.confirm(dockfix.Options(yes=False), "stop docker?")
    assert refusal.value.code == 5 and "--yes" in refusal.value.hint


@pytest.mark.parametrize("kind", ["fifo", "socket", "link", "directory"])
def test_what_is_no_file_is_not_opened_to_find_that_out(dockfix, tmp_path, monkeypatch, kind):
    """To open a device of a container is to act on it (a watchdog reboots the host): only O_PATH
    may touch it."""
    path = str(tmp_path / ".pwd.lock")
    if kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path)
    else:
        {"fifo": os.mkfifo, "link": lambda name: os.symlink("target", name), "directory": os.mkdir}[
            kind
        ](path)
    etc, opened, really = os.open(str(tmp_path), os.O_RDONLY), [], os.open

    def watched(name, flags, *args, **more):
        fd = really(name, flags, *args, **more)
        opened.append((name, flags & os.O_PATH))
        return fd

    monkeypatch.setattr(dockfix.os, "open", watched)
    with pytest.raises(dockfix.MethodUnavailable):
        dockfix.lock_accounts(etc, os.fstat(etc), threading.Event())
    assert [one for one in opened if not one[1]] == [] and opened
    monkeypatch.undo()
    os.close(etc)


def test_a_shadow_that_grows_while_it_is_read_is_not_used(dockfix, tmp_path, monkeypatch):
    (tmp_path / "shadow").write_bytes(b"root:*:1::::::\n")
    etc, fstat = os.open(str(tmp_path), os.O_RDONLY), os.fstat

    def grown(fd):
        with open(str(tmp_path / "shadow"), "ab") as more:
            more.write(b"x:*:1::::::\n")
        return fstat(fd)

    assert dockfix.read_accounts_by_proc(etc).content().shadow == b"root:*:1::::::\n"
    monkeypatch.setattr(dockfix.os, "fstat", lambda fd: (fstat(fd), grown(fd))[0])
    with pytest.raises(dockfix.MethodUnavailable):
        dockfix.read_accounts_by_proc(etc)
    monkeypatch.undo()
    os.close(etc)


def test_is_hosts_own_takes_any_name_under_any_locale(dockfix):
    for source in ("/\u5bb9\u5668", "/x\udcff", "relative", ""):
        assert dockfix.is_host_account_file(source) is False
    assert dockfix.is_host_account_file("/etc/../etc") is True


# ---- the account files below a container's /etc


SHADOW_OLD = b"root:*:1:0:99999:7:::\n"
PASSWD_OLD = b"root::0:0::/:/bin/sh\n"


def an_etc(dockfix, tmp_path):
    (tmp_path / "shadow").write_bytes(SHADOW_OLD)
    (tmp_path / "passwd").write_bytes(PASSWD_OLD)
    (tmp_path / "shadow").chmod(0o640)
    (tmp_path / "passwd").chmod(0o644)
    return os.open(str(tmp_path), os.O_RDONLY)


def replace_both(dockfix, etc):
    old = dockfix.read_accounts_by_proc(etc)
    new = dockfix.edit_accounts(old.content(), {b"root": b"HASH"}, 9)
    dockfix.replace_account_files(etc, old, new)


def test_shadow_is_replaced_before_passwd_points_to_it(dockfix, tmp_path, monkeypatch):
    """In between, /etc/passwd still holds the old password: a kill there opens nothing that was
    closed."""
    etc, order, rename = an_etc(dockfix, tmp_path), [], os.rename
    monkeypatch.setattr(
        dockfix.os, "rename", lambda old, new, **more: (order.append(new), rename(old, new, **more))
    )
    replace_both(dockfix, etc)
    os.close(etc)
    assert order == ["shadow", "passwd"] and sorted(os.listdir(str(tmp_path))) == order[::-1]
    assert (tmp_path / "shadow").read_bytes() == b"root:HASH:9:0:99999:7:::\n"
    assert (tmp_path / "passwd").read_bytes() == b"root:x:0:0::/:/bin/sh\n"
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in order]
    assert modes == [0o640, 0o644]


def test_where_the_second_file_cannot_be_replaced_the_first_goes_back(
    dockfix, tmp_path, monkeypatch
):
    etc, rename = an_etc(dockfix, tmp_path), os.rename

    def not_passwd(old, new, **more):
        if new == "passwd":
            raise OSError(28, "No space left on device")
        rename(old, new, **more)

    monkeypatch.setattr(dockfix.os, "rename", not_passwd)
    with pytest.raises(OSError):
        replace_both(dockfix, etc)
    os.close(etc)
    assert (tmp_path / "shadow").read_bytes() == SHADOW_OLD
    assert (tmp_path / "passwd").read_bytes() == PASSWD_OLD
    assert sorted(os.listdir(str(tmp_path))) == ["passwd", "shadow"]


# ---- files of the host that something else names


PLAIN = ["fifo", "socket", "directory", "device"]


@pytest.mark.parametrize("kind", PLAIN)
def test_a_file_of_the_host_that_is_no_plain_file_is_never_opened(
    dockfix, tmp_path, monkeypatch, kind
):
    """Its name may come from a process's command line: a fifo would hold dockfix for ever, and to
    open a device is to act on it."""
    path, opened, really = str(tmp_path / "named"), [], os.open
    if kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path)
    elif kind == "device":
        os.symlink("/dev/zero", path)  # links are followed: a setting may well be one
    else:
        {"fifo": os.mkfifo, "directory": os.mkdir}[kind](path)

    def watched(name, flags, *args, **more):
        opened.append(flags & os.O_PATH)
        return really(name, flags, *args, **more)

    monkeypatch.setattr(dockfix.os, "open", watched)
    for read in (
        dockfix.read_all,
        dockfix.read_host_text,
        lambda path: dockfix.read_head(path, 10),
    ):
        with pytest.raises(OSError, match="no plain file"):
            read(path)
    assert dockfix.read_settings(path, str) == ("", "", "cannot be read: it is no plain file")
    assert opened and all(opened)


def test_a_file_of_the_host_is_read_to_a_limit(dockfix, tmp_path):
    huge = tmp_path / "huge"
    with open(str(huge), "wb") as f:
        f.truncate(1 << 40)
    for read in (dockfix.read_all, dockfix.read_host_text):
        with pytest.raises(OSError, match="longer than"):
            read(str(huge))
    assert "longer than" in dockfix.read_settings(str(huge), str)[2]
    assert dockfix.read_head(str(huge), 5) == bytes(5)
    (tmp_path / "real").write_bytes(b"{}")
    (tmp_path / "link").symlink_to("real")
    assert dockfix.read_settings(str(tmp_path / "link"), str) == ("{}", "{}", "")
    with pytest.raises(FileNotFoundError):
        dockfix.read_all(str(tmp_path / "none"))
    # The kernel makes these up as they are read, and some give what they have once only.
    assert dockfix.read_all("/proc/self/status").startswith(b"Name:")
    assert dockfix.read_settings_text("/proc/self/status") == ""


def test_a_log_is_emptied_only_where_it_is_a_plain_file(dockfix, tmp_path):
    victim, fifo = tmp_path / "victim", str(tmp_path / "fifo")
    victim.write_bytes(b"safe")
    (tmp_path / "log").symlink_to("victim")
    os.mkfifo(fifo)
    for path in (str(tmp_path / "log"), fifo, str(tmp_path)):
        with pytest.raises(OSError):
            dockfix.truncate_file(path)
    assert victim.read_bytes() == b"safe"
    dockfix.truncate_file(str(victim))
    assert victim.read_bytes() == b""
