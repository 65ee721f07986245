"""Part of `make bench`: `storage` beside docker's own commands, on a private engine.

First part: BENCH_N containers (200), started once; `storage --quick` against `docker info` plus one
`docker inspect` of them all, and again after every container has got 300 files more: its time must
be flat in the number of files. What the start of dockfix alone takes is shown beside it. Second
part: 20 containers with 10,000 files each; `storage --full` against `docker system df -v`. Each way
takes its turn in each of BENCH_ROUNDS rounds (5), so that a slow minute is shared by all; what
counts is the ratio of the medians. Wrong figures make this fail, slow ones do not."""

import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "tests", "engine"))
from kit import PrivateEngine, bench_in

STORAGE = [sys.executable, os.path.join(TOP, "dockfix.py"), "storage", "--json"]
NUMBER, ROUNDS = int(os.environ.get("BENCH_N", 200)), int(os.environ.get("BENCH_ROUNDS", 5))
FEW, MANY, HEAVY = 20, 10000, 300


def run(engine, *argvs):
    """Seconds of some commands, one after the other, and the output of the last."""
    begin = time.perf_counter()
    for argv in argvs:
        out = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=engine.env(), check=True
        ).stdout
    return time.perf_counter() - begin, out


def rounds(engine, ways):
    """{name: median seconds} and {name: last output}."""
    taken, outputs = {name: [] for name in ways}, {}
    for number in range(ROUNDS + 1):  # the first is not counted
        for name in sorted(ways, key=lambda name: (list(ways).index(name) + number) % len(ways)):
            seconds, outputs[name] = run(engine, *ways[name])
            taken[name] += [seconds] if number else []
    return {name: statistics.median(some) for name, some in taken.items()}, outputs


def table(title, taken, base):
    print("\n%-44s %8s %8s" % (title, "ratio", "median"))
    for name, seconds in taken.items():
        print("%-44s %8.2f %7.3fs" % (name, seconds / taken[base], seconds), flush=True)


def upper(engine, one):
    return (
        engine.docker("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", one)
        .stdout.decode()
        .strip()
    )


def add_files(folder, number):
    for n in range(number):
        os.makedirs(os.path.join(folder, "d%d" % (n // 100)), exist_ok=True)
        with open(os.path.join(folder, "d%d" % (n // 100), "f%d" % n), "w") as f:
            f.write("x")


def quick(engine):
    image = engine.import_busybox()
    ids = [engine.create(image, "--name", "bench%03d" % n) for n in range(NUMBER)]
    ways = {
        "docker info + docker inspect": [[engine.client, "info"], [engine.client, "inspect", *ids]],
        "storage --quick": [[*STORAGE, "--quick"]],
        "(dockfix --version: its start alone)": [
            [sys.executable, os.path.join(TOP, "dockfix.py"), "--version"]
        ],
    }
    before, outputs = rounds(engine, ways)
    check(outputs["storage --quick"], NUMBER, False)
    table("%d containers, no files of their own" % NUMBER, before, "docker info + docker inspect")
    for one in ids:
        add_files(upper(engine, one), HEAVY)
    after, outputs = rounds(engine, ways)
    check(outputs["storage --quick"], NUMBER, False)
    table("the same, %d files more in each" % HEAVY, after, "docker info + docker inspect")
    print(
        "storage --quick, with files / without: %.2f"
        % (after["storage --quick"] / before["storage --quick"])
    )
    engine.docker("rm", *ids)


def full(engine):
    ids = [engine.create("dockfix-test/busybox", "--name", "heavy%02d" % n) for n in range(FEW)]
    for one in ids:
        add_files(upper(engine, one), MANY)
    os.sync()
    taken, outputs = rounds(
        engine,
        {
            "docker system df -v": [[engine.client, "system", "df", "-v"]],
            "storage --full": [[*STORAGE, "--full"]],
        },
    )
    check(outputs["storage --full"], FEW, True)
    table("%d containers, %d files in each" % (FEW, MANY), taken, "docker system df -v")


def check(out, number, sizes):
    one = json.loads(out.decode())["results"][0]
    rows = one["usage"]["containers"]["rows"]
    if len(rows) != number or (
        sizes and not all(row["complete"] and row["size"] > MANY * 4096 for row in rows)
    ):
        raise RuntimeError("wrong figures: %s" % out.decode()[:2000])


def bench(engine):
    quick(engine)
    full(engine)
    print(
        "Python %s, docker client %s, engine %s, %d processors."
        % (
            sys.version.split()[0],
            *engine.docker("version", "--format", "{{.Client.Version}} {{.Server.Version}}")
            .stdout.decode()
            .split(),
            os.cpu_count(),
        )
    )


if __name__ == "__main__":
    sys.exit(bench_in(PrivateEngine, bench))
