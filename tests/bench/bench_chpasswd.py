"""`make bench`: root's password in many running Debian containers, by dockfix and by other ways,
beside each other.

The ways take turns in one run, so that a slow minute of the machine is shared by all.  What counts
is the ratio of the medians. Every timed run is checked afterwards: each container's hash must open
with the password of that very run. BENCH_N: containers (60), BENCH_ROUNDS: rounds (5),
BENCH_ANSIBLE=0: without Ansible.  No ratio makes this fail."""

import functools
import os
import shlex
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "tests", "engine"))
from kit import PrivateEngine, bench_in
from common import read_bytes

DOCKFIX = os.path.join(TOP, "dockfix.py")
VENV = os.path.join(TOP, ".venv", "ansible")
NUMBER, ROUNDS = int(os.environ.get("BENCH_N", 60)), int(os.environ.get("BENCH_ROUNDS", 5))
CRYPT = (
    r'while (<STDIN>) { chomp; my ($p, $h) = split /\t/; print crypt($p, $h) eq $h ? "yes\n" :'
    r' "no\n" }'
)


class Skip(Exception):
    """Why a way is not measured."""


class Fleet:
    """The containers, and where their shadow files are seen from the host."""

    def __init__(self, engine):
        self.engine, self.env = engine, engine.env()
        image = engine.import_debian()
        self.ids = [engine.run(image, "--name", "bench%03d" % n) for n in range(NUMBER)]
        listed = engine.docker("inspect", "--format", "{{.State.Pid}}", *self.ids).stdout.split()
        self.shadows = ["/proc/%s/root/etc/shadow" % pid.decode() for pid in listed]

    def run(self, argv, data=b"", **more):
        done = subprocess.run(
            argv,
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(self.env, **more),
            cwd=self.engine.dir,
        )
        if done.returncode:
            raise RuntimeError(
                "%s: exit %d\n%s"
                % (argv, done.returncode, done.stdout.decode(errors="replace")[-2000:])
            )

    def check(self, password):
        """The password opens every container, says perl's crypt."""
        fields = [read_bytes(path).split(b"root:", 1)[1].split(b":")[0] for path in self.shadows]
        fed = b"".join(password.encode() + b"\t" + field + b"\n" for field in fields)
        answers = subprocess.run(
            ["perl", "-e", CRYPT], input=fed, stdout=subprocess.PIPE, check=True
        ).stdout.split()
        if answers != [b"yes"] * NUMBER:
            raise RuntimeError("only %d of %d containers open" % (answers.count(b"yes"), NUMBER))


# ---------------------------------------------------------------------- the ways: each sets the
# password everywhere


def dockfix(via):
    def way(fleet, password):
        fleet.run(
            [sys.executable, DOCKFIX, "chpasswd", "--all", "--via", via, "--state", "state"],
            b"root:%s\n" % password.encode(),
        )

    return way


def notes_recipe(fleet, password):
    """As the field notes have it: one after another, a shell on both sides, the command on standard
    input."""
    for container in fleet.ids:
        child = subprocess.Popen(
            "docker exec -i %s /bin/bash" % container,
            shell=True,
            env=fleet.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        child.communicate(b"echo 'root:%s' | chpasswd\n" % password.encode())


def xargs(workers):
    """The best that a shell line can do: it hashes once, and does not look at what came of it."""

    def way(fleet, password):
        hashed = subprocess.run(
            ["perl", "-e", "print crypt(<STDIN>, q($6$benchbenchbench$))"],
            input=password.encode(),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout.decode()
        with open(fleet.engine.path("line"), "w") as f:
            f.write("root:%s\n" % hashed)
        fleet.run(
            [
                "xargs",
                "-P",
                str(workers),
                "-I",
                "ID",
                "sh",
                "-c",
                "docker exec -i -u 0 ID chpasswd -e < line",
            ],
            "\n".join(fleet.ids).encode(),
        )

    return way


def ansible(fleet, password):
    """Ad hoc, without Python inside the containers: the raw module over the docker connection, 8
    forks."""
    with open(fleet.engine.path("inventory"), "w") as f:
        f.write("".join("%s ansible_connection=community.docker.docker\n" % i for i in fleet.ids))
    fleet.run(
        [
            os.path.join(VENV, "bin", "ansible"),
            "-i",
            "inventory",
            "all",
            "-f",
            "8",
            "-m",
            "raw",
            "-a",
            "echo 'root:%s' | chpasswd" % password,
        ],
        ANSIBLE_LOCALHOST_WARNING="false",
        LC_ALL="C.UTF-8",
        ANSIBLE_HOME=fleet.engine.path("ansible"),
        PATH=os.path.join(VENV, "bin") + os.pathsep + fleet.env["PATH"],
    )


def install_ansible():
    """Into a virtual environment of its own, once; Skip where that fails.  The full package brings
    community.docker along."""
    if os.environ.get("BENCH_ANSIBLE") == "0":
        raise Skip("BENCH_ANSIBLE=0")
    ready = os.path.join(VENV, "ready")
    if os.path.exists(ready):
        return
    listed = subprocess.check_output([os.path.join(TOP, "tests", "pythons")]).decode().split()
    for argv in (
        [listed[-1].split("=")[1], "-m", "venv", "--clear", VENV],
        [
            os.path.join(VENV, "bin", "python"),
            "-m",
            "pip",
            "install",
            "-qq",
            "--disable-pip-version-check",
            "ansible",
        ],
    ):
        print("+ " + " ".join(map(shlex.quote, argv)), flush=True)
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise Skip(
                "not installable: "
                + done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
            )
    open(ready, "w").close()


WAYS = {
    "dockfix --via exec": dockfix("exec"),
    "dockfix --via proc": dockfix("proc"),
    "notes: shell, one by one": notes_recipe,
    "xargs -P 4 docker exec": xargs(4),
    "xargs -P 8 docker exec": xargs(8),
    "ansible raw, 8 forks": ansible,
}


# ---------------------------------------------------------------------- measuring


def timed(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def fleet_rounds(fleet, ways):
    """{way: [seconds]}; the order turns by one each round, the round before the first is not
    counted."""
    taken, names = {name: [] for name in ways}, list(ways)
    for number in range(ROUNDS + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            password = "bench %d %s" % (number, name)
            seconds = timed(ways[name], fleet, password)
            fleet.check(password)
            if number:
                taken[name].append(seconds)
        print("round %d of %d" % (number, ROUNDS) if number else "warm", flush=True)
    return taken


def start_up(env):
    """{what: [seconds]} of --help and of Python with the same large modules, in turns."""
    argvs = {
        "dockfix --help": [sys.executable, DOCKFIX, "--help"],
        "python3 -c 'import ...'": [sys.executable, "-c", "import argparse, json, subprocess"],
    }
    taken = {name: [] for name in argvs}
    for number in range(8 * ROUNDS + 1):
        for name, argv in argvs.items():
            call = functools.partial(
                subprocess.check_call, argv, env=env, stdout=subprocess.DEVNULL
            )
            seconds = timed(call)
            if number:
                taken[name].append(seconds)
    return taken


def table(title, taken, base):
    """base: name of the way that is 1.00."""
    unit = statistics.median(taken[base])
    print("\n%-28s %8s %8s %8s %8s" % (title, "ratio", "median", "min", "max"))
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        print(
            "%-28s %8.2f %7.3fs %7.3fs %7.3fs"
            % (name, middle / unit, middle, min(seconds), max(seconds))
        )


def bench(engine):
    ways, skipped = dict(WAYS), {}
    try:
        install_ansible()
    except Skip as reason:
        del ways["ansible raw, 8 forks"]
        skipped["ansible raw, 8 forks"] = reason
    print("starting %d containers ..." % NUMBER, flush=True)
    fleet = Fleet(engine)
    taken = fleet_rounds(fleet, ways)
    best = min(
        (n for n in taken if n.startswith("xargs")), key=lambda n: statistics.median(taken[n])
    )
    table("%d containers, %d rounds" % (NUMBER, ROUNDS), taken, best)
    for name, reason in skipped.items():
        print("%-28s not measured: %s" % (name, reason))
    table("start-up", start_up(fleet.env), "python3 -c 'import ...'")
    print(
        "\nratio: of the medians, the better xargs (or bare Python) = 1. Python %s, docker client"
        " %s, engine %s, %d processors.\nEvery run was verified in every container. Only dockfix"
        " verifies by itself; that is in its time."
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
