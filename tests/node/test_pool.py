"""The CPUs among which the balancer may move shared VMs: never those of others, nor what is kept idle."""

import pytest

from bench.models.cpu import machine
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.file import Ledger
from pxsched.node import measuring
from pxsched.node.sighting import Node
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root
from pxsched.settings.files import Settings
from pxsched.settings.policy import NodeSettings, Policy, Smt
from pxsched.value import replace

CPUS = frozenset(range(8))  # four cores; CPU 2N and 2N + 1 are siblings


def node(isolated: frozenset[int] = frozenset(), housekeeping: str = "") -> Node:
    topology = replace(machine(cores=4, threads=2), isolated=isolated)
    return Node(Root("/nonexistent"), Settings(NodeSettings(housekeeping=housekeeping)), topology)


def ledger(vm_class: VmClass, cpus: set[int], smt: Smt = Smt.PREFER) -> Ledger:
    vcpus = tuple(frozenset((cpu,)) for cpu in cpus)
    placement = Placement(100, vm_class, vcpus, frozenset((0,)), frozenset((0,)))
    found = Ledger()
    found.claims[100] = Claim(placement, State.RUNNING, Policy(smt=smt))
    return found


def test_dedicated_cpus_are_nobody_elses():
    assert measuring.pool(node(), ledger(VmClass.DEDICATED, {2, 3})) == CPUS - {2, 3}


@pytest.mark.parametrize(("smt", "away"), [(Smt.ISOLATE, {2, 3}), (Smt.SHARE, {2}), (Smt.PREFER, {2})])
def test_the_siblings_of_a_vm_that_wants_them_idle_stay_idle(smt, away):
    assert measuring.pool(node(), ledger(VmClass.DEDICATED, {2}, smt)) == CPUS - away


def test_cpus_to_which_an_admin_pinned_a_vm_can_be_shared():
    assert measuring.pool(node(), ledger(VmClass.PINNED, {2}, Smt.ISOLATE)) == CPUS


def test_isolated_cpus_and_those_that_are_the_hosts_by_the_admins_word_are_left_out():
    assert measuring.pool(node(frozenset({6, 7}), "0-1"), Ledger()) == CPUS - {0, 1, 6, 7}
