"""Runs in the virtual machine: dockfix, ended by SIGKILL before or after the step of that number (0: never) of the storage change that it makes.

    python3 kill_at.py NUMBER before|after [dockfix's words ...]

dockfix.py lies beside this file (conftest.py puts it there, compiled: in emulation that takes longer than all else).
"""
import os
import signal
import sys

import dockfix

number, side, real, count = int(sys.argv[1]), sys.argv[2], dockfix.do_step, [0]


def do_step(*args):
    count[0] += 1
    if count[0] == number and side == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(*args)
    if count[0] == number:
        os.kill(os.getpid(), signal.SIGKILL)


dockfix.do_step = do_step
sys.exit(dockfix.main(sys.argv[3:]))
