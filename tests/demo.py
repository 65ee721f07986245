"""`make demo`: one password for root in three different containers of a private engine, then the
proof.

Nothing outside one temporary directory is touched, and that is removed at the end, after a failure
too."""

import hashlib
import os
import re
import shlex
import subprocess
import sys

TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(TESTS, "engine"))
from kit import CannotRun, PrivateEngine, SLEEP_FOREVER, busybox_tar, need
from common import read_bytes

DOCKFIX = os.path.join(os.path.dirname(TESTS), "dockfix.py")
PASSWORD = "correct horse: battery staple"
# Perl's crypt is the C library's: it shares no code with dockfix.  Password and hash come on
# standard input.
CRYPT = (
    r'my ($p, $h) = <STDIN>; chomp($p, $h); print crypt($p, $h) eq $h ? "opens" : "does not open"'
)


def step(text):
    print("\n\033[1m%s\033[0m" % text if sys.stdout.isatty() else "\n" + text, flush=True)


def shell(engine, line):
    """Show a command, run it where `docker` is the private engine; its status."""
    print("$ " + line, flush=True)
    return subprocess.call(["bash", "-o", "pipefail", "-c", line], env=engine.env(), cwd=engine.dir)


def real_chpasswd():
    """The host's chpasswd with its libraries: {path in the container: path here}."""
    program = os.path.realpath(need("chpasswd", "passwd"))
    libraries = re.findall(r"(/\S+) \(0x", subprocess.check_output(["ldd", program]).decode())
    return {path.lstrip("/"): path for path in [program, *libraries]}


def make_containers(engine):
    full = engine.import_tar(
        "demo/full", busybox_tar(programs=real_chpasswd()), ["/bin/sleep", SLEEP_FOREVER]
    )
    engine.run(full, "--name", "web")
    engine.run(engine.import_scratch("demo/scratch"), "--name", "oneprogram")
    engine.docker("kill", engine.run(engine.import_busybox("demo/busybox"), "--name", "stopped"))


def root_field(engine, name):
    """root's password field, read as anybody would: docker cp and tar."""
    line = "docker cp %s:/etc/shadow - | tar -xO | grep '^root:'" % name
    return subprocess.check_output(["bash", "-c", line], env=engine.env()).decode().split(":")[1]


def opens(password, field):
    fed = ("%s\n%s\n" % (password, field)).encode()
    return subprocess.run(
        ["perl", "-e", CRYPT], input=fed, stdout=subprocess.PIPE, check=True
    ).stdout.decode()


def fingerprint():
    return hashlib.sha256(read_bytes("/etc/shadow")).hexdigest()


def demo(engine):
    step("1. A private docker engine, and three containers that no one way could serve")
    make_containers(engine)
    shell(engine, "docker ps -a --format 'table {{.Names}}\\t{{.Image}}\\t{{.Status}}'")
    print(
        "web has shadow's chpasswd; oneprogram is a single static file, no shell; stopped is not"
        " running, and has no chpasswd."
    )
    names = ["web", "oneprogram", "stopped"]
    before, host = {name: root_field(engine, name) for name in names}, fingerprint()

    step("2. dockfix sets root's password in all of them; the password comes on standard input")
    with open(engine.path("accounts"), "w") as f:
        os.chmod(f.name, 0o600)
        f.write("root:%s\n" % PASSWORD)
    print("accounts (mode 0600) holds the line  root:%s" % PASSWORD)
    status = shell(
        engine,
        "python3 %s chpasswd --all --stopped --state state < accounts" % shlex.quote(DOCKFIX),
    )
    print("exit code %d" % status)

    step("3. The proof: each container's own shadow file, checked with perl's crypt")
    good = status == 0
    for name in names:
        field = root_field(engine, name)
        right, wrong = opens(PASSWORD, field), opens(PASSWORD + "!", field)
        good = good and (right, wrong) == ("opens", "does not open")
        print(
            "%-10s  root:%s -> root:%.24s...  the password %s it, a wrong one %s it"
            % (name, before[name], field, right, wrong)
        )
    same = fingerprint() == host
    print(
        "%-10s  /etc/shadow: %s" % ("this host", "the same bytes as before" if same else "CHANGED")
    )
    return good and same


def main():
    try:
        with PrivateEngine() as engine:
            good = demo(engine)
            step("4. Tearing down")
    except CannotRun as reason:
        print("the demo cannot run here: %s" % reason, file=sys.stderr)
        return 1
    print(
        "engine, containers and files are gone.\n\n%s" % ("Done." if good else "The demo FAILED.")
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
