"""Ring three: dockfix in a virtual machine with a real devicemapper loop pool (machine.py;
README.md tells how to write tests)."""

import pytest

from machine import CannotRun, Machine  # which tells Python where kit is
from kit import skip_or_fail


@pytest.fixture(scope="session")
def ring():
    """The machine as some test left it: for those who reset it themselves."""
    machine = Machine()
    try:
        machine.open()
    except CannotRun as reason:
        machine.stop()
        skip_or_fail("virtual machine", reason)
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
