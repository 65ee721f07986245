"""The virtual machine's image: what it is made of, how it is built and kept.

Built once, from Debian packages, and kept below ~/.cache until this file or the agent changes; with
the image goes a snapshot of the booted machine, dockerd up, a container running.  Python 3.6 and
the standard library."""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "engine"))

from kit import (
    CannotRun,
    busybox_tar,
    cache_dir,
    debian_source,
    need,
    tail,
)
from common import read_bytes

PACKAGES = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "iproute2",
    "procps",
    "util-linux",
    "python3",
    "linux-image-cloud-amd64",
    "busybox-static",
    "docker.io",
    "iptables",
    "dmsetup",
    "lvm2",
    "thin-provisioning-tools",
    "e2fsprogs",
    "xfsprogs",
    "rsync",
]
ROOT_SIZE, DATA_SIZE = 24 << 30, 12 << 30  # of sparse files
MEMORY = 1024  # MiB
# qemu with kvm, where there is one, hangs or aborts on machines that are virtual themselves: always
# in software (one processor, a plain one, and few generators of units: 40 % less work for the host
# in a restart of docker than two of "-cpu max")
QEMU = (
    "-accel tcg,tb-size=512 -cpu qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16 -smp 1 -m %d"
    " -nodefaults -no-user-config -display none -net none -rtc base=utc" % MEMORY
).split()
KERNEL_LINE = (
    "root=/dev/vda console=ttyS0 quiet loglevel=4 panic=0 mitigations=off nokaslr apparmor=0"
    " audit=0 init_on_alloc=0 transparent_hugepage=never cgroup.memory=nokmem"
    " randomize_kstack_offset=off nowatchdog rcupdate.rcu_cpu_stall_suppress=1 tsc=reliable"
    " clocksource=tsc no_timer_check net.ifnames=0 systemd.show_status=0 rw"
)
MODULES = ("virtio_pci", "virtio_blk", "virtio_console")
POOL_OPTIONS = ("dm.loopdatasize=4G", "dm.loopmetadatasize=1G", "dm.basesize=2G", "dm.fs=ext4")
# without rules of iptables every start is five seconds shorter; the daemon gives its containers 15
# seconds in all, as everywhere
DOCKERD = "/usr/sbin/dockerd --iptables=false -H fd:// --containerd=/run/containerd/containerd.sock"
DROP_IN = "/etc/systemd/system/docker.service.d/storage.conf"
IMAGE = "dockfix-test/busybox"
# A docker client in place of Debian's, for as far as it can speak with Debian's engine: one that is
# static starts four times as fast in emulation.
CLIENT = os.environ.get("DOCKFIX_TEST_CLIENT")
# slow in emulation, and of no use here
MASKED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    "getty@tty1.service",
    "getty-static.service",
    "serial-getty@ttyS0.service",
    "systemd-logind.service",
    "apparmor.service",
    "lvm2-monitor.service",
    "lvm2-lvmpolld.socket",
    "blk-availability.service",
    "dm-event.socket",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-firstboot.service",
    "systemd-repart.service",
    "systemd-machine-id-commit.service",
    "systemd-update-utmp.service",
    "systemd-pcrphase.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-sysusers.service",
    "systemd-journal-flush.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "systemd-fsck-root.service",
    "systemd-remount-fs.service",
    "remote-fs.target",
]
FILES = {
    "/etc/fstab": "/dev/vdb /data ext4 defaults,x-systemd.device-timeout=900 0 0\n",
    "/etc/hostname": "vm\n",
    "/etc/hosts": "127.0.0.1 localhost vm\n",
    "/etc/machine-id": "d0c1f1e0d0c1f1e0d0c1f1e0d0c1f1e0\n",
    "/etc/systemd/journald.conf.d/test.conf": "[Journal]\nStorage=volatile\n",
    "/etc/systemd/system.conf.d/test.conf": (
        "[Manager]\nDefaultTimeoutStartSec=600\nDefaultTimeoutStopSec=120\n"
    ),
    "/etc/udev/rules.d/69-lvm.rules": "",  # would start lvm for every loop device
    "/etc/systemd/system/agent.service": (
        """[Unit]
DefaultDependencies=no
After=local-fs.target
[Service]
ExecStart=/usr/bin/python3 -S -E /usr/local/lib/agent.py
Environment=HOME=/root
KillMode=process
OOMScoreAdjust=-1000
"""
    ),
    "/etc/systemd/system/docker.service.d/time.conf": "[Service]\nTimeoutStartSec=900\n",
    DROP_IN: (
        "[Service]\nExecStart=\nExecStart=%s --storage-driver devicemapper %s\n"
        % (DOCKERD, " ".join("--storage-opt " + option for option in POOL_OPTIONS))
    ),
}
FILES.update(
    {
        "/etc/systemd/system-generators/systemd-%s-generator" % name: ""
        # an empty file in place of the program: none
        for name in [
            "cryptsetup",
            "debug",
            "getty",
            "gpt-auto",
            "hibernate-resume",
            "integritysetup",
            "rc-local",
            "run",
            "system-update",
            "sysv",
            "veritysetup",
        ]
    }
)
INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod $module; done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 -o noinit_itable /dev/vda /root || exec /bin/busybox sh
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""
# what a fresh machine has: a container that runs, one that does not, each with a file of its own.
# The first ends on SIGTERM, as good services do: a daemon that stops waits ten seconds for one that
# does not.
CONTENT = """
ENDS="trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"
docker import -c "CMD [\\"/bin/sh\\", \\"-c\\", \\"$ENDS\\"]" - IMAGE
docker run -d --name web --restart unless-stopped -v web-data:/srv IMAGE
docker exec web sh -c 'echo web was here | tee /root/own > /srv/data'
docker create --name idle IMAGE sh -c 'echo idle was here > /root/own'
docker start -a idle
sync
""".replace("IMAGE", IMAGE)


def die_with_parent():
    """Between fork and exec: when Python is killed, no qemu and no half-made image stays behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def recipe(suite):
    """Everything the image is made of, as a key."""
    parts = [
        read_bytes(name)
        for name in [os.path.join(HERE, name) for name in ("image.py", "agent.py")]
        + ([CLIENT] if CLIENT else [])
    ]
    parts += [suite.encode(), os.uname().machine.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def check_machine():
    """The programs that are needed, or CannotRun."""
    if os.geteuid() != 0:
        raise CannotRun("needs root: a Debian root is made")
    if os.uname().machine != "x86_64":
        raise CannotRun("needs an x86_64 machine, this one is %s" % os.uname().machine)
    for program, package in (
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-img", "qemu-utils"),
        ("mmdebstrap", "mmdebstrap"),
        ("mkfs.ext4", "e2fsprogs"),
        ("unshare", "util-linux"),
        ("busybox", "busybox-static"),
    ):
        need(program, package)


BEGUN = time.monotonic()


def note(text):
    seconds = time.monotonic() - BEGUN
    print("[vm %5.1f s] %s" % (seconds, text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked():
    """Folders appear and disappear only under this lock."""
    with open(os.path.join(cache_dir(), "vm-lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_leftovers(cache):
    """What killed runs left: a folder whose lock nobody holds.  Images of other recipes go after a
    week."""
    for name in os.listdir(cache):
        path = os.path.join(cache, name)
        if name.startswith(("vm-build-", "vm-run-")):
            with contextlib.suppress(OSError), open(os.path.join(path, "lock"), "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
        elif name.startswith("vm-image-") and time.time() - os.stat(path).st_mtime > 7 * 86400:
            shutil.rmtree(path)


@contextlib.contextmanager
def work_folder(kind):
    """A folder below the cache that is removed at the end, by the next run at the latest."""
    path = tempfile.mkdtemp(prefix="vm-%s-" % kind, dir=cache_dir())
    try:
        with open(os.path.join(path, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)  # an image has been renamed


def image(machine):
    """Folder of the image and its snapshot; the first caller builds them, others wait for the lock.
    machine: makes one of a folder."""
    check_machine()
    suite, mirror = debian_source()
    path = os.path.join(cache_dir(), "vm-image-" + recipe(suite))
    with locked():
        remove_leftovers(cache_dir())
        if not os.path.exists(path):
            with work_folder("build") as work:
                build(work, suite, mirror, machine)
                os.rename(work, path)
        os.utime(path)
    return path


def build(work, suite, mirror, machine):
    note("building the image of a %s machine, once (a few minutes) ..." % suite)
    root = os.path.join(work, "root")
    run_logged(
        work,
        [
            need("unshare", "util-linux"),
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            need("mmdebstrap", "mmdebstrap"),
            "--mode=root",
            "--variant=minbase",
            "--include=" + ",".join(PACKAGES),
            '--aptopt=Acquire::Languages "none"',
            '--aptopt=Acquire::Retries "3"',
            "--dpkgopt=force-confold",
            # the kernel's scripts would make an initrd with everything in it
            (
                '--essential-hook=mkdir -p "$1/etc/initramfs-tools" && echo update_initramfs=no >'
                ' "$1/etc/initramfs-tools/update-initramfs.conf"'
            ),
        ]
        + [
            "--dpkgopt=path-exclude=/usr/share/%s/*" % name
            for name in ("doc", "locale", "man", "info", "i18n", "zoneinfo/right")
        ]
        + [
            suite,
            root,
        ]
        + mirror,
    )
    note("packages installed")
    furnish(root)
    kernel = next(
        name for name in os.listdir(os.path.join(root, "boot")) if name.startswith("vmlinuz-")
    )
    shutil.copy(os.path.join(root, "boot", kernel), os.path.join(work, "vmlinuz"))
    make_initrd(root, kernel.partition("-")[2], os.path.join(work, "initrd"))
    for name, size, more in (("root", ROOT_SIZE, ["-d", root]), ("data", DATA_SIZE, [])):
        with open(os.path.join(work, name + ".img"), "wb") as f:
            f.truncate(size)
        run_logged(
            work,
            [
                need("mkfs.ext4", "e2fsprogs"),
                "-q",
                "-N",
                "400000",
                "-J",
                "size=64",
                "-E",
                "lazy_itable_init=1",
                *more,
                f.name,
            ],
        )
        run_logged(
            work,
            [
                need("qemu-img", "qemu-utils"),
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "raw",
                "-b",
                name + ".img",
                os.path.join(work, name + ".qcow2"),
            ],
        )
    shutil.rmtree(root)
    note("disks made")
    vm = machine(work)
    try:
        vm.boot()
        note("booted, docker is up")
        vm.sh("docker version >/dev/null 2>&1 || rm /usr/local/bin/docker")
        vm.sh(CONTENT, stdin=busybox_tar(), timeout=600)
        note("containers made")
        vm.save("fresh")
        note("snapshot saved")
    finally:
        vm.stop()


def run_logged(work, argv):
    log = os.path.join(work, "log")
    with open(log, "ab") as out:
        code = subprocess.call(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=die_with_parent
        )
    if code:
        raise CannotRun(
            "no image of a machine: %s ended with %d:\n%s"
            % (os.path.basename(argv[0]), code, tail(log))
        )


def furnish(root):
    """Turn the packages into a machine that starts fast, with dockerd on a devicemapper pool."""
    units = os.path.join(root, "etc/systemd/system")
    for name in MASKED:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(units, name))
        os.symlink("/dev/null", os.path.join(units, name))
    for path, text in FILES.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, "w") as f:
            f.write(text)
    shutil.copy(os.path.join(HERE, "agent.py"), root + "/usr/local/lib/agent.py")
    if CLIENT:
        shutil.copy(CLIENT, root + "/usr/local/bin/docker")
    os.makedirs(os.path.join(units, "sysinit.target.wants"), exist_ok=True)
    os.symlink("../agent.service", os.path.join(units, "sysinit.target.wants", "agent.service"))
    os.makedirs(root + "/data")


def make_initrd(root, version, path):
    """An archive with busybox, the few modules that the root disk needs, and a script: udev there
    would cost half a minute."""
    folder = os.path.join(root, "lib/modules", version)
    with open(os.path.join(folder, "modules.dep")) as f:
        needs = {
            os.path.basename(line.split(":")[0]).split(".")[0]: (
                [line.split(":")[0], *line.split(":")[1].split()]
            )
            for line in f
        }
    wanted = []
    for name in MODULES:  # modules.dep lists what must come first last
        wanted += [module for module in reversed(needs[name]) if module not in wanted]
    out = [cpio(name, stat.S_IFDIR | 0o755) for name in ("dev", "bin", "modules", "root")]
    out += [
        cpio("bin/busybox", stat.S_IFREG | 0o755, read_bytes(os.path.join(root, "bin/busybox"))),
        cpio("init", stat.S_IFREG | 0o755, INIT.encode()),
    ]
    out += [
        cpio("modules/%02d.ko" % n, stat.S_IFREG | 0o644, read_bytes(os.path.join(folder, module)))
        for n, module in enumerate(wanted)
    ]
    with open(path, "wb") as f:
        f.write(b"".join(out) + cpio("TRAILER!!!", 0))


def cpio(name, mode, data=b""):
    """One member in the `newc` format, which the kernel reads."""
    inode = int(hashlib.md5(name.encode()).hexdigest()[:7], 16)
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
