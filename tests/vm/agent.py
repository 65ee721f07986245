"""Runs inside the virtual machine and does what machine.py asks for, through a virtio-serial port.

One JSON line is one request, one JSON line its answer; bytes travel as base64.  A job is a process
of its own session whose output goes to files, so that nothing it does can block this program, and
several can run at a time."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import contextlib

PORT = "dockfix.agent"
FOLDER = "/run/agent"
CHUNK = 1 << 20
jobs = {}


def pack(data):
    return base64.b64encode(data).decode("ascii")


def content(path):
    with open(path, "rb") as f:
        return f.read()


def hello(ask):
    """Where a snapshot was loaded, the clock stands in the past: the host tells the time with each
    hello."""
    time.clock_settime(time.CLOCK_REALTIME, ask["now"])
    return {"boot": content("/proc/sys/kernel/random/boot_id").decode().strip()}


def spawn(ask):
    number = len(jobs) + 1
    base = os.path.join(FOLDER, str(number))
    with open(base + ".in", "wb") as f:
        f.write(base64.b64decode(ask["stdin"]))
    with open(base + ".in", "rb") as given, open(base + ".out", "wb") as out, open(
        base + ".err", "wb"
    ) as err:
        jobs[number] = subprocess.Popen(
            ask["argv"],
            stdin=given,
            stdout=out,
            stderr=err,
            start_new_session=True,
            cwd=ask.get("cwd") or "/root",
            env=dict(os.environ, **(ask.get("env") or {})),
        )
    return dict(wait(dict(ask, job=number)), job=number)


def wait(ask):
    """State of a job: rc is null while it runs; both outputs, so far or in full."""
    job, base = jobs[ask["job"]], os.path.join(FOLDER, str(ask["job"]))
    try:
        job.wait(ask["wait"])
    except subprocess.TimeoutExpired:
        if not ask.get("output"):
            return {"rc": None}
    return {
        "rc": job.returncode,
        "out": pack(content(base + ".out")),
        "err": pack(content(base + ".err")),
    }


def kill(ask):
    """A signal for a job's process, or for all of its session."""
    pid = jobs[ask["job"]].pid
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if ask["group"] else os.kill)(pid, ask["signal"])
    return {}


def put(ask):
    if ask["first"]:
        os.makedirs(os.path.dirname(ask["path"]), exist_ok=True)
    with open(ask["path"], "wb" if ask["first"] else "ab") as f:
        f.write(base64.b64decode(ask["data"]))
    os.chmod(ask["path"], ask["mode"])
    return {}


def get(ask):
    with open(ask["path"], "rb") as f:
        f.seek(ask["offset"])
        return {"data": pack(f.read(CHUNK))}


DEEDS = {"hello": hello, "spawn": spawn, "wait": wait, "kill": kill, "put": put, "get": get}


def answer(line):
    try:
        ask = json.loads(line.decode())
        number = ask["id"]
    except (ValueError, KeyError, TypeError):
        return b""  # the rest of a line that a snapshot cut in two
    try:
        done = DEEDS[ask["do"]](ask)
    except Exception as error:
        done = {"error": "%s: %s" % (type(error).__name__, error)}
    # begins with a line end too: what was cut off before must not join it
    return b"\n" + json.dumps(dict(done, id=number)).encode() + b"\n"


def device():
    while True:
        for name in os.listdir("/sys/class/virtio-ports"):
            if content("/sys/class/virtio-ports/%s/name" % name).decode().strip() == PORT:
                return "/dev/" + name
        time.sleep(0.1)


def main():
    os.makedirs(FOLDER, exist_ok=True)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    port = os.open(device(), os.O_RDWR | os.O_CLOEXEC)
    held = bytearray()
    while True:
        got = os.read(port, CHUNK)
        if not got:  # nobody at the other end
            time.sleep(0.1)
            continue
        held += got
        while b"\n" in held:
            line, _, rest = bytes(held).partition(b"\n")
            held = bytearray(rest)
            reply = memoryview(answer(line))
            while reply:
                reply = reply[os.write(port, reply) :]


if __name__ == "__main__":
    sys.exit(main())
