"""Part of `make bench`: `owner` from the files over more and more layers, and beside one `docker
inspect` of the same containers.

First part: roots made by tests/unit/make_root.py (overlay2, one container for each image of six
layers), no docker. The sizes take turns, processor time counts (a busy machine changes it less),
its median, without what the start of Python takes. Growth is the time for 8 times the layers over 8
times the time: 1 is linear. Second part: a private engine with BENCH_N containers (created, 60).
`owner --root` against `docker inspect` of them all in one call. BENCH_ROUNDS: rounds (5). No figure
makes this fail; an answer that lacks a layer does."""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(TOP, "tests", "engine"), os.path.join(TOP, "tests", "unit")]
from kit import CannotRun, PrivateEngine
from make_root import NewRoot

DOCKFIX = [sys.executable, os.path.join(TOP, "dockfix.py")]
NUMBER, ROUNDS = int(os.environ.get("BENCH_N", 60)), int(os.environ.get("BENCH_ROUNDS", 5))
SIZES = (500, 1000, 2000, 4000)


def processor():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(argv, env, clock):
    begin = clock()
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    if done.returncode:
        raise RuntimeError(
            "%s: exit %d\n%s" % (argv, done.returncode, done.stderr.decode(errors="replace"))
        )
    return clock() - begin, done.stdout


def medians(ways, env=None, clock=time.monotonic):
    """{name: median seconds} of argument lists that take turns, and {name: last output}."""
    times, outputs = {name: [] for name in ways}, {}
    for _ in range(ROUNDS):
        for name, argv in ways.items():
            seconds, outputs[name] = timed(argv, env, clock)
            times[name].append(seconds)
    return {name: statistics.median(some) for name, some in times.items()}, outputs


def make(path, layers):
    """layers = images of 6 and, for each of them, a container with 2."""
    root = NewRoot(path, "overlay2")
    while len(root.layers) < layers:
        image = root.image(min(6, layers - len(root.layers)), "bench/i%d:latest" % root.count)
        if len(root.layers) + 2 <= layers:
            root.container("c%d" % root.count, image)
    return root


def growth(folder):
    roots = {size: make(os.path.join(folder, str(size)), size) for size in SIZES}
    ways = {
        size: [*DOCKFIX, "owner", "--json", "--root", root.path] for size, root in roots.items()
    }
    ways["start"] = [*DOCKFIX, "--version"]
    found, outputs = medians(ways, clock=processor)
    print("%8s  %9s  %12s" % ("layers", "median s", "us per layer"))
    for size, root in roots.items():
        if {row["layer"] for row in json.loads(outputs[size].decode())["results"]} != set(
            root.layers
        ):
            raise RuntimeError("owner does not have all %d layers" % size)
        print(
            "%8d  %9.3f  %12.1f" % (size, found[size], 1e6 * (found[size] - found["start"]) / size)
        )
    print(
        "start of Python alone %.3f s; growth from %d to %d layers: %.2f (1 is linear)"
        % (
            found["start"],
            SIZES[0],
            SIZES[-1],
            (found[SIZES[-1]] - found["start"])
            / (found[SIZES[0]] - found["start"])
            / (SIZES[-1] // SIZES[0]),
        )
    )


def beside_docker():
    with PrivateEngine() as engine:
        engine.import_busybox("bench/busybox")
        ids = [engine.create("bench/busybox", "--name", "bench%03d" % n) for n in range(NUMBER)]
        found, outputs = medians(
            {
                "owner, files alone": [*DOCKFIX, "owner", "--json", "--root", engine.root],
                "owner, checked with docker": [*DOCKFIX, "owner", "--json"],
                "docker inspect of all": [engine.client, "inspect", *ids],
            },
            engine.env(),
        )
        if (
            sum(
                row["role"] == "container"
                for row in json.loads(outputs["owner, files alone"].decode())["results"]
            )
            != NUMBER
        ):
            raise RuntimeError("owner does not have all containers")
        for name, seconds in found.items():
            print(
                "%-28s %d containers: %.3f s, %.2f of docker inspect"
                % (name, NUMBER, seconds, seconds / found["docker inspect of all"])
            )


def main():
    folder = tempfile.mkdtemp(prefix="dockfix-bench-")
    try:
        growth(folder)
        beside_docker()
    except CannotRun as reason:
        print("no private docker engine here: %s" % reason)
        return 1
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
