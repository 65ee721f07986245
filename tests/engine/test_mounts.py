"""What a storage change unmounts below Docker's root once the daemon is down, on real mounts in a
namespace of its own: only what is Docker's own and in nobody's use; dockfix itself, and the
function of its scripts under every shell and awk here. And who is named where something stays."""

import os
import re
import shutil
import subprocess
import sys

import pytest

FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# What stays: a container that outlived the daemon (its root is mounted at another place in a view
# of its own), memory that a process stands in, a volume, a disk at a driver's folder, and the
# folders below these. What goes: idle mounts, also those that a service has a copy of.
SETUP = r"""
mkdir -p "$root" && mount -t tmpfs tmpfs "$root" && cd "$root" || exit
mkdir -p overlay2/a/merged devicemapper/mnt/b containers/c/mounts/shm containers/d/shm
mkdir -p volumes/v/_data vfs zfs rootfs/overlayfs/e elsewhere
mount --bind "$root" "$root" && cd "$root" || exit
for home in overlay2 overlay2 devicemapper zfs; do mount --bind "$root/$home" "$root/$home"; done
for point in overlay2/a/merged devicemapper/mnt/b containers/c/mounts/shm containers/d/shm \
    volumes/v/_data vfs rootfs/overlayfs/e; do mount -t tmpfs tmpfs "$root/$point"; done
mkdir devicemapper/mnt/b/rootfs
unshare -m sh -c 'mount --bind "$0"/devicemapper/mnt/b/rootfs "$0"/elsewhere; exec sleep 1000' \
    "$root" > /dev/null 2>&1 & echo $! >> "$pids"
unshare -m sleep 1000 > /dev/null 2>&1 & echo $! >> "$pids"
(cd containers/c/mounts/shm; exec sleep 1000) > /dev/null 2>&1 & echo $! >> "$pids"
cd /; sleep 1
"$@" "$root"; echo =; cut -d ' ' -f 5 /proc/self/mountinfo
"""
STAYS = sorted(
    [
        "",
        "",
        "/containers/c/mounts/shm",
        "/devicemapper",
        "/devicemapper/mnt/b",
        "/vfs",
        "/volumes/v/_data",
    ]
)
PYTHON = r"""
import sys
sys.path.insert(0, sys.argv[1])
import dockfix
host, root = dockfix.make_host(), sys.argv[2]
"""


def run(tmp_path, words, env=None):
    """The points still mounted at and below the root, without it, and what the words said."""
    root, pids = str(tmp_path / "docker's root"), str(tmp_path / "pids")
    text = "root=$1; pids=$2; shift 2" + SETUP
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", text, "sh", root, pids]
    done = subprocess.run(
        argv + words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, env=env
    )
    with open(pids) as f:
        for pid in f.read().split():
            subprocess.call(["kill", pid])
    said, _, points = done.stdout.decode().partition("=\n")
    quoted = root.replace(" ", "\\040")
    found = [one[len(quoted) :] for one in points.split("\n") if one.startswith(quoted)]
    return sorted(found), said + done.stderr.decode()


def python(text):
    return [sys.executable, "-B", "-c", PYTHON + text, FOLDER]


def test_only_what_is_dockers_own_and_idle_is_unmounted(tmp_path):
    points, said = run(tmp_path, python("dockfix.unmount_left(host, root)"))
    assert points == STAYS, said


@pytest.mark.parametrize("awk", ["mawk", "gawk", "busybox awk", "original-awk"])
@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_the_scripts_do_the_same(tmp_path, shell, awk):
    if not shutil.which(awk.split()[0]) or not shutil.which(shell.split()[0]):
        pytest.skip("not here: %s or %s" % (shell, awk))
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "awk").write_text('#!/bin/sh\nexec %s "$@"\n' % awk)
    (folder / "awk").chmod(0o755)
    sys.path.insert(0, FOLDER)
    import dockfix

    script = tmp_path / "script"
    script.write_text("\n".join([*dockfix.unmount_function(), 'unmount_left "$1"']))
    env = dict(os.environ, PATH="%s:%s" % (folder, os.environ["PATH"]))
    points, said = run(tmp_path, [*shell.split(), str(script)], env)
    assert points == STAYS, said


def test_who_holds_what_stays_and_the_line_that_ends_it(tmp_path):
    ask = (
        "print(dockfix.failing_test(host, [dockfix.not_mounted_test([root + '/containers', root +"
        " '/devicemapper'])]))"
    )
    _, said = run(tmp_path, python("dockfix.unmount_left(host, root); " + ask))
    root = str(tmp_path / "docker's root")
    assert "find" not in said and "%s/devicemapper/mnt/b" % root in said, said
    assert len(re.findall(r"sleep \(pid [0-9]+\)", said)) >= 2, said
    quoted = "'%s'" % root.replace("'", "'\"'\"'")
    assert "umount " + quoted[:-1] in said, said
