"""Emulator and I/O threads of VMs with CPUs of their own: never where somebody else has his."""

import shutil

import pytest

from pxsched.host import cpulist
from pxsched.ledger import file as ledgers

NODE_0 = "cores: 3\naffinity: 0-2"  # all of the node's first threads; 6-8 are their siblings


def rest(small, vmid: int) -> str:
    return cpulist.format(ledgers.peek(small.root).claims[vmid].placement.emulator)


def said(small, vmid: int) -> str:
    return " ".join(ledgers.peek(small.root).claims[vmid].placement.why)


@pytest.fixture
def pinned(small):
    small.vm(100, NODE_0, vcpus=3)
    return small


def test_they_leave_cpus_that_another_vm_gets_to_itself(pinned):
    pinned.run("tick")
    assert rest(pinned, 100) == "6"
    pinned.vm(101, "cores: 1\naffinity: 6", vcpus=1)
    pinned.run("tick")
    assert rest(pinned, 100) == rest(pinned, 101) == "7-8"


def test_vms_found_in_one_pass_are_as_well_off_as_those_that_come_one_by_one(pinned):
    pinned.vm(101, "cores: 2\naffinity: 6-7", vcpus=2)
    pinned.run("tick")
    assert (rest(pinned, 100), rest(pinned, 101)) == ("8", "8")


def test_where_nothing_is_left_they_are_on_the_vms_own_cpus_until_somebody_goes(pinned):
    pinned.vm(101, "cores: 3\naffinity: 6-8", vcpus=3)
    pinned.run("tick")
    assert (rest(pinned, 100), rest(pinned, 101)) == ("0-2", "6-8")
    assert "its nodes have no other left" in said(pinned, 100)
    shutil.rmtree(pinned.base / "proc/10100")
    pinned.run("tick")
    pinned.run("tick")
    assert rest(pinned, 100) == "6" and "no other left" not in said(pinned, 100)


def test_the_default_housekeeping_cpus_are_not_for_others_once_somebody_is_pinned_there(pinned):
    pinned.vm(101, "cores: 1\naffinity: 7", vcpus=1)
    pinned.vm(102, "cores: 2\naffinity: 6,8", vcpus=2)
    pinned.run("tick")
    assert rest(pinned, 101) == "7", "CPU 6, the core's other one, is VM 102's"


def test_cpus_that_the_admin_lists_for_housekeeping_are_obeyed(pinned):
    pinned.settings('[node]\nhousekeeping = "0"')
    pinned.vm(101, "cores: 1\naffinity: 7", vcpus=1)
    pinned.run("tick")
    assert rest(pinned, 101) == "0", "though VM 100 is pinned there"
