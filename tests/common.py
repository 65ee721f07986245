"""What more than one ring uses: where the program is, it as a module, what one run of it said, and
small helpers. Python 3.6 and the standard library: the demo and the benchmarks have no pytest."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "dockfix.py")
ENVELOPE = {
    "schema",
    "command",
    "ok",
    "exit_code",
    "changed",
    "dry_run",
    "results",
    "findings",
    "errors",
}
STATUSES = {"changed", "unchanged", "skipped", "refused", "failed", "unknown"}
# what the rows of these commands have, which tell facts and not deeds
FACT_ROWS = {
    "owner": {"layer", "driver", "paths", "role", "container", "images"},
    "storage": {"driver", "usage"},
}
# whose rows are things of other kinds than containers, without a container's id
NAMED_ROWS = {"reclaim", "relocate", "pool", "backup", "restore", "resume", "rollback", "discard"}


def load_program(path=PROGRAM, name="dockfix"):
    """A file as a module, without leaving a __pycache__ in the tree."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def read_bytes(path):
    with open(path, "rb") as f:
        return f.read()


def wait_until(condition, what, seconds=60):
    """Until condition() is true; RuntimeError names `what` after so many seconds, which are there
    to end a hang, not to judge a speed."""
    end = time.monotonic() + seconds
    pause = 0.005
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("no %s within %s s" % (what, seconds))
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def is_zombie(pid):
    """proc(5): the state stands behind the name in brackets. Raises OSError for a process that is
    gone."""
    return read_bytes("/proc/%s/stat" % pid).rsplit(b")", 1)[1].split()[0] == b"Z"


def du(*paths):
    """Allocated bytes, by coreutils."""
    out = subprocess.check_output(["du", "-sx", "--block-size=1", *paths]).decode()
    return sum(int(line.split()[0]) for line in out.splitlines())


def check_row(command, row, container_ids):
    """container_ids: `id` is a real engine's, of 64 digits."""
    if command in FACT_ROWS:
        assert set(row) >= FACT_ROWS[command], row
        return
    if "sha256" in row:  # of backup --verify: a file
        return
    assert {"target", "id", "status", "msg"} <= set(row), row
    assert row["status"] in STATUSES and isinstance(row["msg"], str), row
    if container_ids and command not in NAMED_ROWS:
        assert re.match("[0-9a-f]{64}$", row["id"]), row


def check_document(doc, code, container_ids=True):
    """The envelope that every command has, and its rows."""
    assert set(doc) >= ENVELOPE, "missing: %s" % sorted(ENVELOPE - set(doc))
    assert doc["schema"] == "dockfix/1" and doc["exit_code"] == code, doc
    assert doc["ok"] is (code == 0), doc
    assert isinstance(doc["changed"], bool) and isinstance(doc["dry_run"], bool), doc
    for row in doc["results"]:
        check_row(doc["command"], row, container_ids)
    for row in doc["errors"]:
        assert {"msg", "hint", "code"} <= set(row), row


class Run:
    """What one run of dockfix said. rc: negative for a signal; seconds: None where not timed."""

    container_ids = True  # are the ids in rows those of a real engine?

    def __init__(self, rc, out, err, seconds=None):
        self.rc, self.out, self.err, self.seconds = rc, out, err, seconds

    def __repr__(self):
        timed = "" if self.seconds is None else " after %.1f s" % self.seconds
        return "exit %s%s\n--- stdout\n%s\n--- stderr\n%s" % (
            self.rc,
            timed,
            self.out.decode("utf-8", "backslashreplace")[:8000],
            self.err.decode("utf-8", "backslashreplace")[:4000],
        )

    @property
    def text(self):
        return self.out.decode("utf-8", "backslashreplace")

    @property
    def code(self):
        """Exit code as a shell shows it."""
        return self.rc if self.rc >= 0 else 128 - self.rc

    @property
    def doc(self):
        """The one document of --json, checked."""
        text = self.out.decode("ascii")
        doc, end = json.JSONDecoder().raw_decode(text)
        assert text[end:].strip() == "", "more than one document: %r" % text[end:]
        check_document(doc, self.code, self.container_ids)
        return doc

    @property
    def rows(self):
        """{container name: its row}; a name that comes twice is an error."""
        rows = self.doc["results"]
        assert len({row["target"] for row in rows}) == len(rows), rows
        return {row["target"]: row for row in rows}
