"""A virtual machine for the tests: Debian, systemd, a real dockerd on a real devicemapper loop
pool, in software emulation.

    with Machine() as vm:
        vm.reset()                                  # as fresh as if just booted; about a second
        print(vm.sh("dmsetup status").text)

Nothing of the host's is shared with it: it has no network, and one serial port to an agent
(agent.py).  Run as a program, this builds the image (image.py) where it is missing.  Python 3.6 and
the standard library."""

import base64
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

from image import (
    DROP_IN,
    HERE,
    KERNEL_LINE,
    POOL_OPTIONS,
    QEMU,
    die_with_parent,
    image,
    locked,
    work_folder,
)
from common import PROGRAM, Run, read_bytes
from kit import CannotRun, need, tail

KILL_AT = "/root/kill/kill_at.py"


class Stuck(Exception):
    """The machine does not answer, or a command in it does not end."""


class Silent(Stuck):
    """No answer in time."""


class Line:
    """JSON lines over a socket to qemu or to the agent."""

    def __init__(self, path, alive, seconds=60):
        self.socket, self.held, self.alive = socket.socket(socket.AF_UNIX), bytearray(), alive
        end = time.monotonic() + seconds
        while True:
            try:
                self.socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > end:
                    raise
                alive()
                time.sleep(0.02)

    def send(self, message):
        self.socket.settimeout(600)
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, end):
        """The next message, or None when there is none before `end` (time.monotonic)."""
        while True:
            while b"\n" in self.held:
                line, _, rest = bytes(self.held).partition(b"\n")
                self.held = bytearray(rest)
                with contextlib.suppress(ValueError):
                    return json.loads(line.decode())
            left = end - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(min(left, 5))
            try:
                got = self.socket.recv(1 << 20)
            except socket.timeout:
                self.alive()
                continue
            if not got:
                self.alive()
                time.sleep(0.1)
            self.held += got


class Job:
    """A program that runs in the machine meanwhile."""

    def __init__(self, vm, number, what, start):
        self.vm, self.number, self.what, self.start = vm, number, what, start

    def poll(self, seconds=0):
        """Its Run, or None while it runs."""
        return self.vm.finished(self.vm.ask(do="wait", job=self.number, wait=seconds), self.start)

    def so_far(self):
        """A Run with what it has written until now; rc is None while it runs."""
        return self.vm.finished(
            self.vm.ask(do="wait", job=self.number, wait=0, output=True), self.start
        )

    def wait(self, timeout=600):
        """Its Run when it has ended.  A Stuck shows its output so far."""
        end = time.monotonic() + timeout
        while True:
            done = self.poll(max(0, min(2, end - time.monotonic())))
            if done:
                return done
            if time.monotonic() > end:
                raise Stuck(
                    "%s has not ended within %d s\n%r\n%s"
                    % (self.what, timeout, self.so_far(), self.vm.console())
                )

    def kill(self, number=signal.SIGKILL, group=False):
        """A signal for its first process, or for all that it started; does not wait."""
        self.vm.ask(do="kill", job=self.number, signal=int(number), group=group)


class Machine:
    """One qemu process and what can be done with it.

    folder: with the image in it, which is changed; default: a copy for this run, removed by stop().
    """

    def __init__(self, folder=None):
        self.folder, self.process, self.qmp, self.agent = folder, None, None, None
        self.numbers, self.states, self.closing = (
            itertools.count(1),
            {"fresh"},
            contextlib.ExitStack(),
        )

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, *exc):
        self.stop()

    def open(self):
        """Build the image if need be, take a copy of the disks, and put today's dockfix.py
        there."""
        source = image(Machine)
        with locked():
            self.folder = self.closing.enter_context(work_folder("run"))
        for name in ("vmlinuz", "initrd", "root.img", "data.img"):
            os.symlink(os.path.join(source, name), os.path.join(self.folder, name))
        for name in ("root.qcow2", "data.qcow2"):
            subprocess.check_call(["cp", "--reflink=auto", os.path.join(source, name), self.folder])
        self.load("fresh")
        install(self)
        self.save("fresh")

    def stop(self):
        try:
            self.power_off()
        finally:
            self.closing.close()

    # ------------------------------------------------------------------ power

    def start(self):
        """A qemu that stands still."""
        sockets = self.closing.enter_context(
            tempfile.TemporaryDirectory(prefix="vm-")
        )  # such paths must be short
        argv = [
            need("qemu-system-x86_64", "qemu-system-x86"),
            *QEMU,
            "-S",
            "-kernel",
            self.path("vmlinuz"),
            "-initrd",
            self.path("initrd"),
            "-append",
            KERNEL_LINE,
            "-serial",
            "file:" + self.path("console"),
            "-qmp",
            "unix:%s/qmp,server=on,wait=off" % sockets,
            "-device",
            "virtio-serial-pci",
            "-chardev",
            "socket,id=agent,path=%s/agent,server=on,wait=off" % sockets,
            "-device",
            "virtserialport,chardev=agent,name=dockfix.agent",
            "-device",
            "virtio-rng-pci",
        ]
        for name in ("root", "data"):
            argv += [
                "-drive",
                "if=virtio,format=qcow2,cache=unsafe,discard=unmap,file="
                + self.path(name + ".qcow2"),
            ]
        with open(self.path("qemu.log"), "ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.qmp = Line(sockets + "/qmp", self.alive)
        self.command("qmp_capabilities")
        self.agent = Line(sockets + "/agent", self.alive)

    def path(self, name):
        return os.path.join(self.folder, name)

    def alive(self):
        if not self.process or self.process.poll() is not None:
            raise Stuck(
                "qemu has ended with %s\n%s\n%s"
                % (
                    self.process and self.process.returncode,
                    tail(self.path("qemu.log")),
                    self.console(),
                )
            )

    def console(self):
        return "--- the machine's console\n" + tail(self.path("console"), 30)

    def command(self, name, **arguments):
        """One command for qemu; its answer."""
        self.qmp.send({"execute": name, "arguments": arguments})
        end = time.monotonic() + 600
        while True:
            found = self.qmp.receive(end)
            if found is None:
                raise Stuck("qemu does not answer %s\n%s" % (name, self.console()))
            if "error" in found:
                raise Stuck("qemu refuses %s: %s" % (name, found["error"].get("desc")))
            if "return" in found:
                return found["return"]

    def monitor(self, line):
        said = self.command("human-monitor-command", **{"command-line": line})
        if said.strip():
            raise Stuck("qemu: %s: %s" % (line, said.strip()))

    def power_off(self):
        """As if the plug were pulled: what the machine had not yet written to its disks is lost."""
        if self.process and self.process.poll() is None:
            with contextlib.suppress(Stuck, OSError):
                self.command("quit")  # qemu itself must write out what it has of the disks
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.process.wait()
        for line in (self.qmp, self.agent):
            if line:
                line.socket.close()
        self.process = self.qmp = self.agent = None

    def boot(self, docker=True):
        """Start from the disks as they are.  docker: also wait until the daemon answers."""
        if self.process:
            raise Stuck("the machine runs: power_off() comes first")
        self.start()
        self.command("cont")
        self.hello(900)
        self.sh(
            "mountpoint -q /data || { systemctl status data.mount || :; journalctl -b -n 60"
            " --no-pager; exit 1; }"
        )  # seen once, never explained
        if docker:
            self.wait_docker()

    def reboot(self, docker=True):
        """`systemctl reboot`, until the machine is there again."""
        old = self.hello()
        self.spawn("systemctl reboot")
        end = time.monotonic() + 900
        while True:
            with contextlib.suppress(Stuck):
                if self.hello(20) != old:
                    break
            self.alive()
            if time.monotonic() > end:
                raise Stuck("no reboot\n%s" % self.console())
        if docker:
            self.wait_docker()

    def wait_docker(self, timeout=900):
        """Until the daemon answers; a start that has failed shows its log lines."""
        self.sh(
            "systemctl start docker.service || { journalctl -n 40 --no-pager -u docker >&2; exit 1;"
            " }; docker version >/dev/null",
            timeout=timeout,
        )

    # ------------------------------------------------------------------ snapshots

    def save(self, tag):
        """A snapshot of memory and disks, some 0.5 GB until the end or until forget(tag)."""
        self.command("stop")
        self.monitor("savevm " + tag)
        self.command("cont")
        self.states.add(tag)

    def forget(self, tag):
        self.states.discard(tag)
        self.monitor("delvm " + tag)

    def reset(self, make=None):
        """The fresh machine.  make: a function of the machine that makes more of it; runs once, its
        result is kept as a snapshot."""
        tag = make.__module__ + "." + make.__qualname__ if make else "fresh"
        if tag in self.states:
            self.load(tag)
        else:
            self.load("fresh")
            make(self)
            self.save(tag)

    def load(self, tag):
        """Back to a snapshot, from any state, power_off() included."""
        if not self.process or self.process.poll() is not None:
            self.power_off()
            self.start()
        self.command("stop")
        self.monitor("loadvm " + tag)
        self.command("cont")
        self.hello()

    # ------------------------------------------------------------------ inside

    def hello(self, seconds=300):
        """Set the machine's clock; its boot id."""
        end, wait = time.monotonic() + seconds, 2
        while True:  # what is sent before anybody listens can get lost
            with contextlib.suppress(Silent):
                return self.ask(min(wait, seconds), do="hello", now=time.time())["boot"]
            wait = 20
            if time.monotonic() > end:
                raise Stuck(
                    "the machine does not answer within %d s\n%s" % (seconds, self.console())
                )

    def ask(self, seconds=300, **request):
        """One request to the agent; its answer."""
        self.alive()
        number = "%s-%d" % (os.getpid(), next(self.numbers))
        self.agent.send(dict(request, id=number))
        end = time.monotonic() + seconds
        while True:
            found = self.agent.receive(end)
            if found is None:
                raise Silent(
                    "the machine does not answer %s within %d s\n%s"
                    % (request["do"], seconds, self.console())
                )
            if found.pop("id", None) == number:  # others are from before a snapshot was loaded
                if "error" in found:
                    raise RuntimeError("in the machine: " + found["error"])
                return found

    @staticmethod
    def finished(found, start):
        if "out" not in found:
            return None
        return Run(
            found["rc"],
            base64.b64decode(found["out"]),
            base64.b64decode(found["err"]),
            time.monotonic() - start,
        )

    def run(self, *argv, stdin=b"", check=True, timeout=600, env=None):
        """Run a program, without a shell; a Run with rc, out, err.  check: a failure is an error
        that shows both outputs."""
        done = self.start_job(argv, stdin, env).wait(timeout)
        if check and done.rc:
            raise RuntimeError("%s: %r" % (" ".join(map(str, argv))[:500], done))
        return done

    def start_job(self, argv, stdin, env=None):
        start = time.monotonic()
        found = self.ask(
            do="spawn",
            argv=[str(word) for word in argv],
            stdin=base64.b64encode(stdin).decode(),
            env=env,
            wait=0,
        )
        return Job(self, found["job"], " ".join(map(str, argv))[:200], start)

    def sh(self, script, stdin=b"", check=True, timeout=600, env=None):
        """Run shell text as root, with `sh -e`."""
        return self.run(
            "/bin/sh", "-ec", script, stdin=stdin, check=check, timeout=timeout, env=env
        )

    def docker(self, *args, **more):
        return self.run("docker", *args, **more)

    def spawn(self, script, stdin=b"", env=None):
        """Start shell text, without waiting for it: a Job."""
        return self.start_job(("/bin/sh", "-ec", script), stdin, env)

    def put(self, path, data, mode=0o644):
        size = 1 << 20
        for offset in range(0, len(data) or 1, size):
            self.ask(
                do="put",
                path=path,
                data=base64.b64encode(data[offset : offset + size]).decode(),
                mode=mode,
                first=not offset,
            )

    def get(self, path):
        found = []
        while not found or found[-1]:
            found.append(
                base64.b64decode(self.ask(do="get", path=path, offset=sum(map(len, found)))["data"])
            )
        return b"".join(found)

    def dockfix(self, *args, stdin=b"", timeout=1800, env=None):
        """One run that comes through; never raises for its exit code."""
        done = self.run(
            "python3", KILL_AT, 0, "-", *args, stdin=stdin, check=False, timeout=timeout, env=env
        )
        assert b"Traceback" not in done.err and b"internal error" not in done.err, done
        return done

    def kill_at(self, number, side, *args, timeout=1800):
        """A dockfix that is ended by SIGKILL "before" or "after" its step of that number."""
        return self.run("python3", KILL_AT, number, side, *args, check=False, timeout=timeout)

    def halt_at(self, halts, *args):
        """A Job: a dockfix that stands still at some of its steps (kill_at.py), for vm.halted() and
        vm.go_on()."""
        return self.start_job(("python3", KILL_AT, "halt", json.dumps(halts), *args), b"")

    def chain(self, every, first, again, power=False):
        """dockfix with the words `first`, and after that with `again` for as long as it takes, each
        ended (by SIGKILL, or with the plug pulled) at a point of the way where none before it was,
        at every `every`-th point (each step has two). The Run that came through, and the points.
        """
        self.sh("rm -f /root/kill/seen")
        if not power:
            done = self.run(
                "python3",
                KILL_AT,
                "chain",
                every,
                json.dumps(first),
                json.dumps(again),
                check=False,
                timeout=7200,
            )
        else:
            done = self.unplugged(every, first, again)
        points = self.sh("cat /root/kill/seen").text.splitlines()
        assert done.rc == 0, (points[-1:], done)
        return done, points

    def unplugged(self, every, words, again):
        while True:
            job, done = (
                self.start_job(("python3", KILL_AT, "each", every, *tuple(words)), b""),
                None,
            )
            while not done and not self.halted():
                done = job.poll(0.5)
            if done:
                return done
            self.power_off()
            self.boot(docker=False)
            words = again

    def halted(self):
        """[pid, number, side, title] of the step where it stands, or None."""
        text = self.sh("cat /run/halted 2>/dev/null || :").text
        return text.split(" ", 3) if text else None

    def go_on(self, halted):
        self.sh("rm /run/halted; kill -CONT " + halted[0])


def options_in_daemon_json(vm):
    """Variant of the machine: the pool's options live in /etc/docker/daemon.json, none in the
    unit."""
    settings = {
        "storage-driver": "devicemapper",
        "storage-opts": list(POOL_OPTIONS),
        "iptables": False,
    }
    vm.put("/etc/docker/daemon.json", json.dumps(settings, indent=4).encode() + b"\n")
    vm.sh("rm %s; systemctl daemon-reload; systemctl restart docker" % DROP_IN)


def install(vm):
    """Today's dockfix.py as users have it, and compiled beside what can end it at a step: in
    emulation that takes longer than all else that it does."""
    program = read_bytes(PROGRAM)
    vm.put("/root/dockfix.py", program)
    vm.put(os.path.dirname(KILL_AT) + "/dockfix.py", program)
    vm.put(KILL_AT, read_bytes(os.path.join(HERE, "kill_at.py")))
    vm.sh(
        "python3 -m compileall -q --invalidation-mode unchecked-hash %s/dockfix.py; sync"
        % os.path.dirname(KILL_AT)
    )


def main():
    try:
        print(image(Machine))
    except CannotRun as reason:
        print("no virtual machine here: %s" % reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
