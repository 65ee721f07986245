"""`pool grow` on a real devicemapper pool: under load, with the daemon stopped, on a full pool,
killed at every step; options wherever they live. What is to be grown and what became of it is read
from the kernel, the loop devices, the files and the daemon's own command line."""

import os
import re
import signal

from image import DOCKERD, DROP_IN, IMAGE
from machine import options_in_daemon_json

FULL = bool(os.environ.get("FULL"))
FILES = "/var/lib/docker/devicemapper/devicemapper/"
MINE = "/etc/systemd/system/docker.service.d/zz-dockfix.conf"
GIB = 1 << 30
OLD, NEW = (4 * GIB, GIB), (5 * GIB, 5 * GIB // 4)
BOTH = ("-y", "pool", "grow", "--data", "5G", "--metadata", "+256M")
LOOK = r"""
p=$(dmsetup ls --target thin-pool | cut -f1); dmsetup table $p; dmsetup status $p
dmsetup info $p | grep -E '^(State|Tables)' | tr -s ' ' | paste -sd,
for k in data metadata; do
    stat -c %s FILES$k; blockdev --getsize64 $(losetup -j FILES$k | cut -d: -f1)
done
""".replace("FILES", FILES)


def lengths(vm, state="rw"):
    """(data, metadata) in bytes, once the pool's table and status, the loop devices and their files
    agree on them; none is suspended, none has a table in waiting."""
    table, status, info, data, data_loop, metadata, metadata_loop = vm.sh(LOOK).text.splitlines()
    blocks = re.match(r"0 \d+ thin-pool \d+ \d+/(\d+) \d+/(\d+) \S+ (\S+)", status).groups()
    assert info == "State: ACTIVE,Tables present: LIVE" and blocks[2] == state, (info, status)
    assert int(data) == int(data_loop) == int(blocks[1]) * 65536 == int(table.split()[1]) * 512, (
        table,
        status,
        data,
        data_loop,
    )
    assert int(metadata) == int(metadata_loop) == int(blocks[0]) * 4096, (
        status,
        metadata,
        metadata_loop,
    )
    return int(data), int(metadata)


def next_start(vm):
    """(data, metadata) as the options say, of the unit as systemd has it and of daemon.json."""
    text = vm.sh(
        "systemctl show -p ExecStart docker; cat /etc/docker/daemon.json 2>/dev/null || :"
    ).text
    return tuple(
        re.findall(r"dm\.%s=(\w+)" % key, text) for key in ("loopdatasize", "loopmetadatasize")
    )


def running(vm):
    """The same of the daemon that runs."""
    text = vm.sh("tr '\\0' ' ' < /proc/$(pidof dockerd)/cmdline").text
    return tuple(
        re.findall(r"dm\.%s=(\w+)" % key, text) for key in ("loopdatasize", "loopmetadatasize")
    )


def life(vm):
    return vm.docker(
        "inspect", "-f", "{{.State.StartedAt}} {{.State.Pid}} {{.RestartCount}}", "web"
    ).text


def until(vm, script, seconds=600):
    vm.sh("n=%d; until %s; do [ $((n -= 1)) -gt 0 ]; sleep 1; done" % (seconds, script))


def said(done):
    return done.text + done.err.decode()


# what the container writes goes through the pool; what it should read again is kept outside, in a
# volume
WRITER = """mkdir -p /root/load; n=0
while [ ! -e /srv/stop ]; do
    n=$((n + 1))
    s=$(head -c 262144 /dev/urandom | tee /root/load/$n | sha256sum) &&
        dd if=/dev/null of=/root/load/$n conv=notrunc,fsync 2>/dev/null &&
        echo "${s%-}/root/load/$n" >> /srv/sums || echo $n >> /srv/failed
done; echo $n > /srv/ended"""
SRV = "/var/lib/docker/volumes/web-data/_data/"


def written(vm):
    return int(vm.sh("wc -l < %ssums" % SRV).text)


def more(vm, number=3):
    """Until the writer has written so many files more."""
    until(
        vm,
        "[ $(cat %ssums 2>/dev/null | wc -l) -ge %d ] || [ -e %sfailed ]"
        % (SRV, number + int(vm.sh("cat %ssums 2>/dev/null | wc -l" % SRV).text), SRV),
    )


def check_written(vm):
    """The writer has ended by itself, without a fault or a gap, and every byte is on the pool."""
    vm.sh("touch %sstop" % SRV)
    until(vm, "[ -e %sended ]" % SRV)
    numbers = [int(line.rpartition("/")[2]) for line in vm.sh("cat %ssums" % SRV).text.splitlines()]
    assert (
        numbers == list(range(1, int(vm.sh("cat %sended" % SRV).text) + 1))
        and vm.sh("[ ! -e %sfailed ]" % SRV).rc == 0
    )
    check_sums(vm)
    assert not re.search(r"(?i)i/o error|buffer i/o|ext4-fs error|remounting", vm.sh("dmesg").text)
    return len(numbers)


def check_sums(vm):
    vm.sh("sync; echo 3 > /proc/sys/vm/drop_caches")
    vm.docker("exec", "web", "sha256sum", "-c", "-s", "/srv/sums")


def test_online_under_load_and_after_a_reboot(vm):
    vm.docker("exec", "-d", "web", "sh", "-c", WRITER)
    more(vm)
    before, count = life(vm), written(vm)
    done = vm.dockfix(*BOTH)
    assert done.rc == 0 and "data 4G -> 5G, metadata 1G -> 1280M" in done.text, said(done)
    assert written(vm) > count and lengths(vm) == NEW
    more(vm)
    assert life(vm) == before and check_written(vm) > count + 3
    assert (
        next_start(vm) == (["5G"], ["1280M"])
        and "option-waiting" not in vm.dockfix("storage", "--json").out.decode()
    )
    vm.reboot()
    assert lengths(vm) == NEW and running(vm) == next_start(vm) == (["5G"], ["1280M"])
    check_sums(vm)


def test_offline_on_a_terminal_where_the_pool_outlives_the_daemon(ring):
    """Somebody has the pool open while the daemon stops, and lets go as soon as it has: the daemon
    leaves the pool behind, unused.  Meanwhile something pokes docker's socket all the time, and
    systemd has had its fill of starts.  Options in daemon.json."""
    vm = ring
    vm.reset(options_in_daemon_json)
    vm.put(
        "/etc/systemd/system/docker.service.d/let-go.conf",
        b"[Unit]\nStartLimitIntervalSec=9h\nStartLimitBurst=1\n"
        b"[Service]\nExecStopPost=/bin/sh -c 'sleep 4; kill $(cat /run/holder)'\n",
    )  # a stop that takes long enough for the progress to be told
    vm.sh(
        "systemctl daemon-reload; sleep 100000 < /dev/mapper/$(dmsetup ls --target thin-pool | cut"
        " -f1) > /dev/null 2>&1 & echo $! > /run/holder"
    )
    assert (
        vm.sh(
            "systemctl start docker.socket; while :; do docker version; sleep 1; done > /dev/null"
            " 2>&1 & systemctl is-active docker.socket"
        ).text
        == "active\n"
    )
    done = vm.run(
        "script",
        "-qec",
        "python3 /root/dockfix.py -v pool grow --offline --data +1G --metadata +256M",
        "/dev/null",
        stdin=b"y\n",
        check=False,
    )
    assert done.rc == 0, said(done)
    assert "docker and its 1 running container stop meanwhile)? [y/N]" in done.text and re.search(
        r"\rpool grow: step \d+ of \d+: stop docker", done.text.replace("\x1b[K", "")
    ), done.text
    assert (
        "+ find /dev/mapper -name docker-" in done.text and "-exec dmsetup remove" in done.text
    ), ("the pool did not outlive the daemon: " + done.text)
    assert lengths(vm) == NEW and next_start(vm) == (["5G"], ["1280M"]) and running(vm) == ([], [])
    assert vm.sh("systemctl is-active docker docker.socket").text == "active\n" * 2
    assert vm.docker("exec", "web", "cat", "/root/own", "/srv/data").text == "web was here\n" * 2


def test_a_mount_that_leaked_and_a_file_left_open_are_named_and_all_is_undone(vm):
    """Somebody else's view of the mounts has a container's file system too, at another place: so
    its device, and so the pool, outlive the daemon."""
    vm.sh("""mnt=$(grep -o '/var/lib/docker/devicemapper/mnt/[^ ]*' /proc/mounts)
        unshare -m sh -c "mount --bind $mnt /mnt && exec perl -e 'sleep 100000'" > /dev/null 2>&1 &
        sleep 1""")
    for name, word in (
        ("perl", "held by perl (pid "),
        ("tail", "still open: fuser -v -m /dev/mapper/docker-"),
    )[: 1 + FULL]:
        done = vm.dockfix("-y", "pool", "grow", "--offline", "--data", "5G")
        assert done.rc == 1 and word in said(done) and "all of it is undone\n" in said(done), said(
            done
        )
        assert (
            lengths(vm) == OLD
            and next_start(vm) == (["4G"], ["1G"])
            and vm.sh("ls /var/lib/dockfix").text == "lock\n"
        )
        until(vm, "docker exec web cat /root/own")
        vm.sh(
            "kill $(pidof %s); systemctl reset-failed docker; tail -f /proc/$(docker inspect -f"
            " '{{.State.Pid}}' web)/root/root/own > /dev/null 2>&1 & sleep 1" % name
        )


def options_in_files(vm):
    """Variant: the options in the two files that distributions have for them."""
    vm.put(
        DROP_IN,
        (
            "[Service]\nEnvironmentFile=-/etc/default/docker\nEnvironmentFile=-/etc/sysconfig/docker-storage\nExecStart=\nExecStart=%s"
            " $DOCKER_OPTS $DOCKER_STORAGE_OPTIONS\n" % DOCKERD
        ).encode(),
    )
    vm.put(
        "/etc/default/docker",
        b'# kept\nDOCKER_OPTS="--storage-driver devicemapper --storage-opt dm.loopdatasize=4G'
        b' --storage-opt dm.basesize=2G"\n',
    )
    vm.put(
        "/etc/sysconfig/docker-storage",
        b"DOCKER_STORAGE_OPTIONS=--storage-opt dm.loopmetadatasize=1G --storage-opt dm.fs=ext4\n",
    )
    vm.sh("systemctl daemon-reload")


def test_metadata_alone_by_the_dry_runs_script_then_data_each_with_its_options_file(vm):
    options_in_files(vm)
    before = life(vm)
    script = vm.dockfix("--dry-run", "pool", "grow", "--metadata", "+256M")
    assert script.rc == 0 and lengths(vm) == OLD
    vm.sh(script.text)
    assert lengths(vm) == (OLD[0], NEW[1])
    done = vm.dockfix("-y", "pool", "grow", "--data", "5G", "--metadata", "1280M")
    assert (
        done.rc == 0
        and lengths(vm) == NEW
        and life(vm) == before
        and "data 4G -> 5G\n" in done.text
    ), said(done)
    assert (
        vm.sh(
            "cat /etc/default/docker /etc/sysconfig/docker-storage; ls"
            " /etc/systemd/system/docker.service.d"
        ).text
        == '# kept\nDOCKER_OPTS="--storage-driver devicemapper --storage-opt dm.loopdatasize=5G'
        ' --storage-opt dm.basesize=2G"\nDOCKER_STORAGE_OPTIONS=--storage-opt'
        " dm.loopmetadatasize=1280M --storage-opt dm.fs=ext4\nstorage.conf\ntime.conf\n"
    )
    done = vm.dockfix("-y", "pool", "grow", "--data", "+0")
    assert done.rc == 0 and "as large as that already" in done.text, said(done)
    vm.sh("systemctl restart docker")
    assert running(vm) == (["5G"], ["1280M"]) and lengths(vm) == NEW


# ---------------------------------------------------------------- a pool that is full

FILL = r"""
p=$(dmsetup ls --target thin-pool | cut -f1)
echo 0 > /sys/module/dm_thin_pool/parameters/no_space_timeout
dmsetup message $p 0 "create_thin 7777777"
dmsetup create fill --table "0 8388608 thin /dev/mapper/$p 7777777"
python3 - $p <<'X'
import os, re, subprocess, sys
status = subprocess.check_output(["dmsetup", "status", sys.argv[1]]).decode()
used, total = map(int, re.search(r"/\d+ (\d+)/(\d+)", status).groups())
fill = os.open("/dev/mapper/fill", os.O_WRONLY)
# a little of each block: all of them are taken, the disk hardly is
for block in range(total - used - 100):
    os.pwrite(fill, b"x" * 4096, block << 16)
os.fsync(fill)
X
"""


def test_a_writer_that_hangs_on_a_full_pool_goes_on(vm):
    """Nothing can be committed or created any more, what is written hangs; then the pool is grown,
    and every byte arrives."""
    vm.sh(FILL)
    vm.docker("exec", "-d", "web", "sh", "-c", WRITER)
    until(vm, "dmsetup status --target thin-pool | grep -q out_of_data_space")
    before, count = life(vm), int(vm.sh("cat %ssums 2>/dev/null | wc -l" % SRV).text)
    assert (
        "minimum required" in vm.docker("create", "dockfix-test/busybox", check=False).err.decode()
    )
    done = vm.dockfix("-y", "pool", "grow", "--data", "5G")
    assert done.rc == 0, said(done)
    assert lengths(vm) == (NEW[0], OLD[1])
    more(vm)
    assert life(vm) == before and check_written(vm) > count + 2
    vm.docker("create", "dockfix-test/busybox")


# ---------------------------------------------------------------- killed

OWN = "$(echo /var/lib/docker/devicemapper/mnt/*/rootfs)/root/"


def ready(vm):
    """Something on the pool, with its sum outside; where the daemon's mounts are not the host's
    this must look through its eyes."""
    vm.sh(
        "in=$(docker inspect -f '{{.State.Pid}}' web); head -c 1000000 /dev/urandom >"
        " /proc/$in/root/root/load; sync; sha256sum < /proc/$in/root/root/load > /root/sum; echo"
        " $in > /root/in; sync"
    )


def alive(vm):
    """The container of before still runs, its file is whole, and it can write."""
    vm.sh(
        "echo 3 > /proc/sys/vm/drop_caches; in=$(cat /root/in); sha256sum <"
        " /proc/$in/root/root/load | cmp - /root/sum; echo x > /proc/$in/root/root/new; sync"
        " /proc/$in/root/root/new"
    )


def check_end(vm, way, kept):
    """What resume and rollback promise. kept: the pool had its new length before."""
    assert lengths(vm) == (NEW if way == "resume" or kept else OLD)
    assert next_start(vm) == ((["5G"], ["1280M"]) if way == "resume" else (["4G"], ["1G"]))
    assert vm.sh("ls /var/lib/dockfix; ls -d %s 2>/dev/null || :" % MINE).text == "lock\n" + (
        MINE + "\n"
    ) * (way == "resume")


def test_killed_at_every_step(ring, capsys):
    """The pool is never left suspended, whatever runs goes on, and both ways out lead to their
    stated ends."""
    vm, number, tried = ring, 0, []
    while True:
        number += 1
        for side, way in (
            [(side, way) for side in ("before", "after") for way in ("resume", "rollback")]
            if FULL
            else [(("before", "after")[number % 2], ("resume", "rollback")[number // 2 % 2])]
        ):
            vm.reset(ready)
            done = vm.kill_at(number, side, *BOTH)
            if done.rc != -signal.SIGKILL:
                assert done.rc == 0, said(done)
                break
            info = vm.sh("dmsetup info -c --noheadings --separator ' ' -o suspended,name").text
            assert "Suspended" not in info and info.count("Active") == 2, info
            alive(vm)
            kept = vm.sh("dmsetup table --target thin-pool").text.split()[2] == str(NEW[0] // 512)
            done = vm.dockfix("-y", way)
            assert done.rc == 0 and ("keeps its new length" in done.text) == (
                kept and way == "rollback"
            ), (number, side, way, said(done))
            check_end(vm, way, kept)
            alive(vm)
            tried.append((number, side, way, kept))
        if done.rc == 0 and (not tried or tried[-1][0] != number):
            break
    with capsys.disabled():
        print(
            "\npool grow, online: %d steps; killed at %d points, the pool suspended at none; %d"
            " resumed, %d rolled back (%d of these to the larger pool with the old options)"
            % (
                number - 1,
                len(tried),
                sum(one[2] == "resume" for one in tried),
                sum(one[2] == "rollback" for one in tried),
                sum(one[2:] == ("rollback", True) for one in tried),
            )
        )
    assert {one[0] for one in tried} == set(range(1, number)) and {one[3] for one in tried} == {
        True,
        False,
    }


TAKER = b"""[Unit]
Before=docker.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/losetup /dev/loop0 /root/other
"""


def test_after_a_power_cut_somebody_else_has_the_pools_loop_device(vm):
    """The pool's files are on other devices then: what was planned for /dev/loop0 is none of its
    business any more."""
    vm.put("/etc/systemd/system/taker.service", TAKER)
    vm.sh(
        "truncate -s 8M /root/other; mkdir -p /etc/systemd/system/docker.service.wants; ln -s"
        " ../taker.service /etc/systemd/system/docker.service.wants/; sync"
    )
    for number, side, way in [(1, "before", "resume")] + [
        (1, "after", "rollback"),
        (1, "after", "resume"),
    ] * FULL:
        vm.save("taken")
        done = vm.kill_at(number, side, *BOTH)
        assert (
            done.rc == -signal.SIGKILL and "/dev/loop0: " in vm.sh("losetup -j %sdata" % FILES).text
        ), said(done)
        vm.power_off()
        vm.boot()
        assert "/root/other" in vm.sh(
            "losetup /dev/loop0; truncate -s 9M /root/other"
        ).text and lengths(vm) in (OLD, (NEW[0], OLD[1]))
        done = vm.dockfix("-y", way)
        assert done.rc == 0 and lengths(vm) == (NEW if way == "resume" else (NEW[0], OLD[1])), said(
            done
        )
        assert vm.sh("blockdev --getsize64 /dev/loop0").text == "%d\n" % (8 << 20)
        vm.docker("exec", "web", "cat", "/root/own")
        vm.load("taken")


def test_killed_offline_then_started_by_somebody_then_rolled_back(ring, capsys):
    """A reboot starts docker on the longer files: the pool has counted the new blocks from then on,
    and files that were cut back would be the end of it."""
    vm = ring
    vm.reset(ready)
    before = vm.docker("inspect", "-f", "{{.Id}}", "web").text
    job = vm.halt_at([["after", "lengthen .*/metadata to .*"]], *BOTH, "--offline")
    while not vm.halted():
        assert not job.poll(1)
    vm.sh("kill -9 %s; rm /run/halted" % vm.halted()[0])
    assert job.wait().rc == -signal.SIGKILL
    assert vm.sh("systemctl is-active docker", check=False).text == "inactive\n"
    assert vm.sh("stat -c %%s %sdata %smetadata" % (FILES, FILES)).text == "%d\n%d\n" % NEW
    vm.save("lengthened")
    for start, way in (
        [(start, way) for start in (True, False) for way in ("rollback", "resume")]
        if FULL
        else [(True, "rollback")]
    ):
        vm.load("lengthened")
        if start and FULL:
            vm.power_off()
            vm.boot()
        elif start:
            vm.sh("systemctl start docker")
        done = vm.dockfix("-y", way)
        assert done.rc == 0 and ("keeps its new length" in done.text) == (
            start and way == "rollback"
        ), (start, way, said(done))
        check_end(vm, way, start)
        until(vm, "docker exec web cat /root/own", 120)
        assert vm.docker("inspect", "-f", "{{.Id}}", "web").text == before
        vm.sh(
            "echo 3 > /proc/sys/vm/drop_caches; sha256sum < /proc/$(docker inspect -f"
            " '{{.State.Pid}}' web)/root/root/load | cmp - /root/sum"
        )
    vm.forget("lengthened")


# ---------------------------------------------------------------- refused before anything is
# touched

READ_ONLY = """p=$(dmsetup ls --target thin-pool | cut -f1)
table=$(dmsetup table $p | sed 's/ 1 skip_block_zeroing/ 2 skip_block_zeroing read_only/')
dmsetup reload $p --table "$table"; dmsetup resume $p"""
REFUSED = [  # (what is done before, words, exit code, what it says, what mends it)
    ("", ["--data", "6GB"], 2, "not a size: 6GB", "write 6G or 6GiB, both binary"),
    ("", ["--data", "-1G"], 2, "", ""),
    ("", ["--metadata", "1.5.2G"], 2, "not a size", "such as 500M or 20GiB"),
    ("", [], 2, "how large?", "--data +100G"),
    (
        "",
        ["--data", "3G"],
        5,
        "data has 4.0 GiB already, and a thin pool never shrinks",
        "pool recreate --data 3G --backup DIR",
    ),
    ("", ["--metadata", "17G", "--overcommit"], 5, "15.88 GiB", "--metadata 15G"),
    ("", ["--data", "40G"], 5, "it would fill before the pool does", "--overcommit"),
    (
        "fallocate -l $(($(df --output=avail -B1 / | tail -n 1) - (200 << 20))) /root/filler",
        ["--data", "5G"],
        5,
        "it would fill before the pool does",
        "--overcommit",
    ),
    (
        (
            "rm /root/filler; mkdir -p /var/lib/docker/stranger; mount -t tmpfs none"
            " /var/lib/docker/stranger"
        ),
        ["--data", "5G", "--offline"],
        5,
        "not Docker's own: /var/lib/docker/stranger",
        "umount",
    ),
    (
        (
            'umount /var/lib/docker/stranger; echo \'{"storage-opts": ["dm.loopdatasize=4G"]}\' >'
            " /etc/docker/daemon.json"
        ),
        ["--data", "5G"],
        5,
        "two places: ",
        "leave it in one of them",
    ),
    (
        "echo '{' > /etc/docker/daemon.json",
        ["--data", "5G"],
        5,
        "/etc/docker/daemon.json",
        "repair it first",
    ),
    ("rm /etc/docker/daemon.json; " + READ_ONLY, ["--data", "5G"], 5, "state ro", "thin_check"),
]


def test_refusals(vm):
    before, files = lengths(vm), vm.sh("ls /etc/systemd/system/docker.service.d").text
    for first, words, code, msg, hint in REFUSED:
        vm.sh(first or ":")
        done = vm.dockfix("-y", "--json", "pool", "grow", *words)
        assert (
            done.rc == code
            and msg in done.doc["errors"][0]["msg"]
            and hint in done.doc["errors"][0]["hint"]
            and not done.doc["changed"]
        ), (words, done)
    assert (
        lengths(vm, "ro") == before
        and vm.sh("ls /etc/systemd/system/docker.service.d").text == files
        and vm.sh("ls /var/lib/dockfix").text == "lock\n"
    )


NEEDS_CHECK = """
import struct, sys
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc
with open(sys.argv[1], "r+b") as f:
    block = bytearray(f.read(4096))
    assert struct.unpack("<I", block[:4])[0] == crc32c(block[4:]) ^ 160774
    block[4] |= 1                               # THIN_METADATA_NEEDS_CHECK_FLAG
    block[:4] = struct.pack("<I", crc32c(block[4:]) ^ 160774)
    f.seek(0)
    f.write(block)
"""


def test_a_pool_that_needs_a_check_is_mended_by_what_the_hint_says(vm):
    """As the kernel marks one after an error with its metadata: it comes up read-only, and docker
    cannot read an image from it."""
    vm.sh("systemctl stop docker.socket docker")
    vm.run("python3", "-", FILES + "metadata", stdin=NEEDS_CHECK.encode())
    vm.sh("systemctl start docker; ! docker save %s > /dev/null" % IMAGE)
    found = {one["id"]: one for one in vm.dockfix("--json", "storage").doc["findings"]}
    hints = [found["pool-state"]["remedy"]]
    for words in (BOTH[1:], ("pool", "recreate", "--driver", "overlay2", "--backup", "/data/kept")):
        done = vm.dockfix("-y", "--json", *words)
        assert (
            done.rc == 5
            and "ro, needs_check" in done.doc["errors"][0]["msg"]
            and vm.sh("ls /var/lib/dockfix").text == "lock\n"
        ), done
        hints.append(done.doc["errors"][0]["hint"])
    assert len(set(hints)) == 1
    vm.sh(hints[0])
    assert lengths(vm) == OLD
    vm.sh("docker save %s > /dev/null" % IMAGE)
    assert (
        vm.docker("exec", "web", "cat", "/root/own").text == "web was here\n"
        and vm.dockfix(*BOTH).rc == 0
        and lengths(vm) == NEW
    )


def test_not_root_not_confirmed_and_another_driver(vm):
    vm.sh("cp /root/dockfix.py /tmp/dockfix.py")
    done = vm.run(
        "setpriv",
        "--reuid",
        "65534",
        "--clear-groups",
        "python3",
        "/tmp/dockfix.py",
        "pool",
        "grow",
        "--data",
        "5G",
        check=False,
    )
    assert done.rc == 6 and "only root" in said(done), said(done)
    done = vm.run(
        "script",
        "-qec",
        "python3 /root/dockfix.py pool grow --data +1G",
        "/dev/null",
        stdin=b"n\n",
        check=False,
    )
    assert (
        done.rc == 5
        and ": data 4G -> 5G (nothing stops)? [y/N]" in done.text
        and "nothing was changed" in done.text
    ), done
    assert lengths(vm) == OLD
    vm.sh(
        "sed -i 's/ --storage-driver.*/ --storage-driver overlay2/' %s; systemctl daemon-reload;"
        " systemctl restart docker" % DROP_IN
    )
    done = vm.dockfix("-y", "pool", "grow", "--data", "5G")
    assert done.rc == 6 and "the storage driver is overlay2; only devicemapper has a pool" in said(
        done
    ), said(done)
