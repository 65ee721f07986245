"""Ring three: dockfix in a virtual machine with a real devicemapper loop pool (machine.py; README.md tells how to write tests)."""
import os

import pytest

from machine import CannotRun, Machine


def not_here(reason):
    """Skip with the reason; where a machine has been made for these tests, that is a failure."""
    text = "no virtual machine: %s" % reason
    if os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@pytest.fixture(scope="session")
def ring():
    """The machine as some test left it: for those who reset it themselves."""
    machine = Machine()
    try:
        machine.open()
    except CannotRun as reason:
        machine.stop()
        not_here(reason)
    try:
        yield machine
    finally:
        machine.stop()


@pytest.fixture
def vm(ring):
    """A fresh machine for each test."""
    ring.reset()
    return ring


@pytest.fixture(scope="module")
def module_vm(ring):
    """A fresh machine for each module, whose tests use it one after the other."""
    ring.reset()
    return ring
