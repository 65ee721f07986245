"""Runs in the virtual machine: dockfix, ended by SIGKILL before or after the step of that number (0: never) of the storage change that it makes.

    python3 kill_at.py NUMBER before|after [dockfix's words ...]
    python3 kill_at.py halt '[["before", "TITLE"], ...]' [dockfix's words ...]

halt: stands still (SIGSTOP) before, after or in every step whose title such a pattern matches, "in" being once its program runs; /run/halted then
holds "PID NUMBER SIDE TITLE". dockfix.py lies beside this file (conftest.py puts it there, compiled: in emulation that takes longer than all else).
"""
import json
import os
import re
import signal
import sys

import dockfix

number, side, real, count, now = sys.argv[1], sys.argv[2], dockfix.do_step, [0], [""]
halts, pump = json.loads(side) if number == "halt" else [], dockfix.pump


def reach(where):
    if number == str(count[0]) and where == side:
        os.kill(os.getpid(), signal.SIGKILL)
    if any(where == one and re.match(pattern + r"\Z", now[0]) for one, pattern in halts):
        with open("/run/halted.new", "w") as f:
            f.write("%d %d %s %s" % (os.getpid(), count[0], where, now[0]))
        os.rename("/run/halted.new", "/run/halted")
        os.kill(os.getpid(), signal.SIGSTOP)


def do_step(host, step, tick):
    count[0], now[0] = count[0] + 1, step.title
    reach("before")
    real(host, step, tick)
    reach("after")


def pumped(host, child, *more):
    if host.memo.get("working") and child.args and (b"save" in child.args or b"load" in child.args):
        reach("in")
    return pump(host, child, *more)


dockfix.do_step, dockfix.pump = do_step, pumped
sys.exit(dockfix.main(sys.argv[3:]))
