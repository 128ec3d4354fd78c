"""Moves that would end avoidable crossings."""

import json

from pxsched.placement.defrag import Span, as_json, describe, remedies
from pxsched.placement.request import Host, VmClass

from .machines import held, machine, wish

# node 0: L3 0 = 0-3, L3 1 = 4-7; node 1: L3 2 = 8-11, L3 3 = 12-15
TOPOLOGY = machine(nodes=2, l3s=2, cores=4, threads=1)


def vm(vmid: int, cpus: str, vm_class: VmClass = VmClass.DEDICATED, **more):
    holding = held(cpus, vmid, vm_class, **more)
    return wish(len(holding.vcpus), vmid, vm_class, sum(holding.memory_mib.values())), holding


def test_nothing_is_moved_where_nothing_crosses():
    assert remedies(Host(TOPOLOGY), [vm(101, "0-3"), vm(102, "4-7"), vm(103, "8-9")]) == []


def test_a_crossing_that_free_cpus_can_end_takes_one_move():
    (remedy,) = remedies(Host(TOPOLOGY), [vm(101, "2-5"), vm(102, "8-9")])
    assert (remedy.vmid, remedy.before, remedy.after) == (101, Span(1, 2), Span(1, 1))
    assert [move.vmid for move in remedy.moves] == [101]


def test_another_vm_makes_room_where_that_helps():
    # 101 is torn over both nodes, and two free CPUs are too few for anybody: 101 and 102 swap.
    running = [vm(101, "2-3,8-9"), vm(102, "0-1"), vm(103, "4-6"), vm(104, "10-11"), vm(105, "12-14")]
    (remedy,) = remedies(Host(TOPOLOGY), running)
    assert (remedy.vmid, remedy.after) == (101, Span(1, 1))
    first, last = remedy.moves
    assert last.vmid == 101
    assert first.before == {0, 1} and first.to.cpus == {8, 9}
    assert last.to.cpus == {0, 1, 2, 3}


def test_fewest_moves_come_first():
    running = [vm(101, "2-5"), vm(102, "0-1"), vm(103, "7-8"), vm(104, "12-15")]
    found = remedies(Host(TOPOLOGY), running)
    assert [len(remedy.moves) for remedy in found] == sorted(len(remedy.moves) for remedy in found)
    assert {remedy.vmid for remedy in found} >= {103}


def test_pinned_vms_are_left_alone():
    assert remedies(Host(TOPOLOGY), [vm(101, "2-5", VmClass.PINNED)]) == []


def test_memory_that_has_no_room_elsewhere_keeps_a_vm_where_it_is():
    torn = vm(101, "6-9", memory_mib={0: 500, 1: 500})
    full = [vm(102, "0"), vm(103, "12")]
    assert len(remedies(Host(TOPOLOGY, free_mib={0: 1000, 1: 1000}), [torn, *full])) == 1
    assert remedies(Host(TOPOLOGY, free_mib={0: 100, 1: 100}), [torn, *full]) == []


def test_memory_given_back_by_the_vm_itself_counts():
    torn = vm(101, "6-9", memory_mib={0: 900, 1: 100})
    (remedy,) = remedies(Host(TOPOLOGY, free_mib={0: 100, 1: 100}), [torn])
    assert remedy.moves[0].to.nodes == {0}


def test_a_remedy_is_told_in_words():
    lines = list(describe(remedies(Host(TOPOLOGY), [vm(101, "2-5"), vm(102, "8-9")])))
    assert lines[0] == "VM 101 spans 1 node and 2 L3 groups; 1 move would make it 1 node and 1 L3 group"
    assert lines[1].startswith("  VM 101: CPUs 2-5 -> ")
    assert list(describe([])) == ["no VM crosses nodes or L3 groups that it need not cross"]


def test_a_remedy_as_json_lists_every_vcpu():
    (remedy,) = remedies(Host(TOPOLOGY), [vm(101, "2-5")])
    assert json.loads(json.dumps(as_json(remedy)))["moves"][0]["from"] == "2-5"
    assert len(as_json(remedy)["moves"][0]["vcpus"]) == 4
