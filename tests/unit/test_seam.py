"""The seam's files and questions: replace_file and confirm."""
import argparse
import os

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
    assert (tmp_path / "victim").read_bytes() == b"safe" and (tmp_path / "setting").read_bytes() == b"new"
    assert (tmp_path / "setting").lstat().st_mode & 0o777 == 0o644


def test_confirm_is_answered_by_yes_and_refused_without_a_terminal(dockfix, monkeypatch):
    dockfix.confirm(argparse.Namespace(yes=True), "stop docker?")

    def no_terminal(*args, **more):
        raise OSError(6, "No such device or address")
    monkeypatch.setattr(dockfix.os, "open", no_terminal)
    with pytest.raises(dockfix.Refused) as refusal:
        dockfix.confirm(argparse.Namespace(yes=False), "stop docker?")
    assert refusal.value.code == 5 and "--yes" in refusal.value.hint
