"""Part of `make bench`: `pool grow` beside the field notes' recipe, in a virtual machine with a
real devicemapper loop pool (tests/vm).

First part: a container writes to the pool all the while, with fsync after each block. How long it
cannot is what a change costs its users: the longest pause between two of its writes, of a quiet
time, of `pool grow` and of `pool grow --offline`; and the recipe, done by a script that makes no
mistake: save images and the container, stop docker, delete its root, dd, options, start, load,
volume and container back. There is next to nothing to save and to load, the best case for it.
Second part: the time of `pool grow` by 1 GiB from ceilings of 4, 40 and 400 GiB: it should be flat.
BENCH_ROUNDS rounds (3), each from a fresh machine; ratios of medians. Slow figures do not make this
fail; a pool that has not grown, or a byte that is lost, does."""

import os
import signal
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
sys.path[:0] = [os.path.join(TESTS, "engine"), os.path.join(TESTS, "vm")]
from image import DROP_IN, IMAGE
from kit import bench_in
from machine import Machine

ROUNDS = int(os.environ.get("BENCH_ROUNDS", 3))
ROOT = "/var/lib/docker"
RUN = (
    "docker run -d --name beat -v beat:/srv %s sh -c \"trap 'exit 0' TERM; while :; do dd"
    ' if=/dev/zero of=/root/beat bs=4k count=1 conv=fsync 2>/dev/null; echo x > /srv/beat; done"'
)
WATCH = """
import os, signal, sys, time
path, seen, last, longest = "%s/volumes/beat/_data/beat", None, time.monotonic(), 0.0
signal.signal(signal.SIGTERM, lambda *_: (print(max(longest, time.monotonic() - last)), sys.exit()))
while True:
    try:
        now = os.stat(path).st_mtime_ns
    except OSError:
        now = seen
    if now != seen:
        longest, seen, last = max(longest, time.monotonic() - last), now, time.monotonic()
    time.sleep(0.005)
""" % ROOT
RECIPE = (
    """
mkdir /data/kept; docker commit beat kept/beat
docker save -o /data/kept/images.tar IMAGE kept/beat
tar -C ROOT/volumes/beat -cf /data/kept/volume.tar _data
systemctl stop docker.socket docker
for p in $(dmsetup ls --target thin-pool | grep -o '^docker[^\t]*'); do
    dmsetup remove --retry $p
done
rm -rf ROOT; mkdir -p ROOT/devicemapper/devicemapper
dd if=/dev/zero of=ROOT/devicemapper/devicemapper/data bs=1M count=0 seek=5120
dd if=/dev/zero of=ROOT/devicemapper/devicemapper/metadata bs=1M count=0 seek=1024
sed -i s/dm.loopdatasize=4G/dm.loopdatasize=5G/ DROP_IN
systemctl daemon-reload; systemctl start docker
docker load -i /data/kept/images.tar; docker volume create beat
tar -C ROOT/volumes/beat -xf /data/kept/volume.tar; RUN
""".replace("RUN", RUN % "kept/beat")
    .replace("ROOT", ROOT)
    .replace("IMAGE", IMAGE)
    .replace("DROP_IN", DROP_IN)
)


def with_a_writer(vm):
    vm.put("/root/watch.py", WATCH.encode())
    vm.sh(RUN % IMAGE + "; docker exec beat sh -c 'echo precious > /root/own; sync'")


def ceiling(size):
    """A variant of the machine: the pool grown to `size` GiB."""

    def make(vm):
        grow(vm, size, "--overcommit")

    make.__qualname__ = "ceiling%d" % size
    return make


def grow(vm, size, *words):
    done = vm.dockfix("-y", "pool", "grow", "--data", "%dG" % size, *words)
    if done.rc or vm.sh("dmsetup table --target thin-pool").text.split()[2] != str(size << 21):
        raise RuntimeError("not grown: %r" % done)
    return done.seconds


def pause(vm, deed):
    """The longest time in which the container did not write, while deed() was done."""
    vm.reset(with_a_writer)
    watch = vm.start_job(("python3", "/root/watch.py"), b"", None)
    vm.sh("sleep 2")
    deed()
    vm.sh('sleep 2; [ "$(docker exec beat cat /root/own)" = precious ]')
    watch.kill(signal.SIGTERM)
    return float(watch.wait().text)


def bench(vm):
    ways = {
        "nothing": lambda: vm.sh("sleep 5"),
        "pool grow": lambda: grow(vm, 5),
        "pool grow --offline": lambda: grow(vm, 5, "--offline"),
        "the recipe": lambda: vm.sh(RECIPE),
    }
    found = {
        name: statistics.median(pause(vm, deed) for _ in range(ROUNDS))
        for name, deed in ways.items()
    }
    print("longest pause of a container that writes, against that of a quiet time")
    for name, seconds in found.items():
        print("%-24s %8.1f" % (name, seconds / found["nothing"]), flush=True)
    for name in ("pool grow", "pool grow --offline"):
        print(
            "the recipe stops it %.1f times as long as %s"
            % (found["the recipe"] / found[name], name),
            flush=True,
        )
    taken = {}
    for size in (4, 40, 400):
        some = []
        for _ in range(ROUNDS):
            vm.reset(ceiling(size) if size > 4 else None)
            some.append(grow(vm, size + 1, "--overcommit"))
        taken[size] = statistics.median(some)
        print(
            "time of pool grow from %3d GiB, against that from 4 GiB: %.2f"
            % (size, taken[size] / taken[4]),
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(bench_in(Machine, bench))
