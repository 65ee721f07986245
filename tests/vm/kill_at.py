"""Runs in the virtual machine (tests/engine uses it too): dockfix, ended or halted at steps of the
storage change that it makes.

    python3 kill_at.py NUMBER before|after [dockfix's words ...]
    python3 kill_at.py during TITLE [dockfix's words ...]
    python3 kill_at.py halt '[["before", "TITLE"], ...]' [dockfix's words ...]
    python3 kill_at.py chain N '[dockfix's words ...]' '[words of the next runs ...]'
    python3 kill_at.py each N [dockfix's words ...]

NUMBER: SIGKILL before or after the step of that number (0: never). during: SIGKILL as soon as a
program runs for the first step with these words in its title (before it, where it has none); that
program goes on. halt: stands still (SIGSTOP) before, after or in every step whose title such a
pattern matches, "in" being once its program (cp, docker save, docker load) runs, which then stands
still too; /run/halted then holds "PID NUMBER SIDE TITLE". each: halts so at the first point, before
or after a step, where no run before it did (/root/kill/seen has those), but only at every N-th of
all; 2: at one of each step, before and after in turn. chain: the same with SIGKILL in place of the
halt, and another run goes on where that one ended, until one comes through; exits as that one does.
In the machine dockfix.py lies beside this file (machine.py puts it there, compiled: in emulation
that takes longer than all else)."""

import json
import os
import re
import signal
import sys
import time

import dockfix

mode, which = sys.argv[1:3]
real = {
    name: getattr(dockfix, name)
    for name in ("do_step", "run_until_closed", "save_journal", "restore_daemon_state")
}
halts = json.loads(which) if mode == "halt" else []
count, title, no_program, at, settling = 0, "", False, "", False


def halt(where):
    with open("/run/halted.new", "w") as f:
        f.write("%d %d %s %s" % (os.getpid(), count, where, title))
    os.rename("/run/halted.new", "/run/halted")
    os.kill(os.getpid(), signal.SIGSTOP)


def is_new(where):
    """Is this the first time that a run comes by this point?"""
    point = "%s %s %s\n" % (at, where, title)
    with open("/root/kill/seen", "a+") as f:
        f.seek(0)
        if point in f.readlines():
            return False
        f.write(point)
        f.flush()
        os.fsync(f.fileno())
    return True


def reach(where):
    if mode in ("each", "chain"):
        step = int(at.split()[1])
        number = 2 * step + step % 2 + (where == "after")
        if where != "in" and not settling and number % int(which) == 0 and is_new(where):
            halt(where) if mode == "each" else os.kill(os.getpid(), signal.SIGKILL)
    elif (mode == str(count) and where == which) or (
        mode == "during" and where == "before" and which in title and no_program
    ):
        os.kill(os.getpid(), signal.SIGKILL)
    elif any(where == one and re.match(pattern + r"\Z", title) for one, pattern in halts):
        halt(where)


def do_step(host, step, tick):
    global count, title, no_program
    count, title, no_program = count + 1, step.title, not step.argv
    reach("before")
    real["do_step"](host, step, tick)
    reach("after")


def run_until_closed(host, child, *more):
    if mode == "during" and title and which in title:
        os.kill(os.getpid(), signal.SIGKILL)
    if (
        host.known.working
        and {b"save", b"load", b"cp"}.intersection(child.args[:2])
        and any(where == "in" for where, _ in halts)
    ):
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGSTOP)  # in the middle of its work
        reach("in")
        os.kill(child.pid, signal.SIGCONT)
    return real["run_until_closed"](host, child, *more)


def save_journal(host, journal):
    global at
    at = "%s %d" % (journal.state, journal.at + 1)
    return real["save_journal"](host, journal)


def restore_daemon_state(*words):
    global settling
    settling = True  # steps of before, done again: they have been points already
    real["restore_daemon_state"](*words)
    settling = False


dockfix.do_step, dockfix.run_until_closed, dockfix.save_journal, dockfix.restore_daemon_state = (
    do_step,
    run_until_closed,
    save_journal,
    restore_daemon_state,
)
if mode == "chain":  # forked, for the sake of time: a start of Python takes long in emulation
    words, again = map(json.loads, sys.argv[3:])
    while True:
        child = os.fork()
        if not child:
            sys.exit(dockfix.main(words))
        status = os.waitpid(child, 0)[1]
        if status != signal.SIGKILL:
            sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
        words = again
sys.exit(dockfix.main(sys.argv[3:]))
