"""Runs in the virtual machine: dockfix, ended or halted at steps of the storage change that it makes.

    python3 kill_at.py NUMBER before|after [dockfix's words ...]
    python3 kill_at.py halt '[["before", "TITLE"], ...]' [dockfix's words ...]
    python3 kill_at.py each kill|half|stop [dockfix's words ...]

NUMBER: SIGKILL before or after the step of that number (0: never).
halt: stands still (SIGSTOP) before, after or in every step whose title such a pattern matches, "in" being once its program runs; /run/halted then
holds "PID NUMBER SIDE TITLE".
each: SIGKILL at the first point that no run before it has ended at (/root/kill/seen has those), so that a chain of resumes, or of rollbacks, is ended
once at every point of the way. kill: before and after every step; half: before odd steps, after even ones; stop: the same points as half, halted there.
dockfix.py lies beside this file (conftest.py puts it there, compiled: in emulation that takes longer than all else).
"""
import json
import os
import re
import signal
import sys

import dockfix

mode, which = sys.argv[1:3]
real = {name: getattr(dockfix, name) for name in ("do_step", "pump", "save_journal", "settle_daemon")}
halts = json.loads(which) if mode == "halt" else []
count, title, at, settling = 0, "", "", False


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
    if mode == "each":
        wanted = where != "in" and not settling and (which == "kill" or (where == "after") != int(at.split()[1]) % 2)
        if wanted and is_new(where):
            os.kill(os.getpid(), signal.SIGKILL) if which != "stop" else halt(where)
    elif mode == str(count) and where == which:
        os.kill(os.getpid(), signal.SIGKILL)
    elif any(where == one and re.match(pattern + r"\Z", title) for one, pattern in halts):
        halt(where)


def do_step(host, step, tick):
    global count, title
    count, title = count + 1, step.title
    reach("before")
    real["do_step"](host, step, tick)
    reach("after")


def pump(host, child, *more):
    if host.memo.get("working") and child.args and (b"save" in child.args or b"load" in child.args):
        reach("in")
    return real["pump"](host, child, *more)


def save_journal(host, journal):
    global at
    at = "%s %d" % (journal.going, journal.at + 1)
    return real["save_journal"](host, journal)


def settle_daemon(*words):
    global settling
    settling = True             # steps of before, done again: they have been points already
    real["settle_daemon"](*words)
    settling = False


dockfix.do_step, dockfix.pump, dockfix.save_journal, dockfix.settle_daemon = do_step, pump, save_journal, settle_daemon
sys.exit(dockfix.main(sys.argv[3:]))
