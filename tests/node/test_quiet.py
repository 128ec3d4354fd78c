"""Quiet proofs: what the timer's passes do step by step, and when they leave a VM alone."""

import os
import time

import pytest

from pxsched.guest import process
from pxsched.ledger import file as ledgers
from pxsched.node import proofs, proving, quiet, settle, trial
from pxsched.node import sighting as nodes
from pxsched.proof.block import whole_rounds
from pxsched.proof.verdict import judge

SECOND = 10**9
WORK_NS = 50_000_000  # of each thread between two passes


@pytest.fixture
def node(obedient, monkeypatch):
    """Two shared VMs that run, and blocks that are over at once."""
    for name, value in ("SETTLE_S", 0.0), ("BLOCK_S", 0.001), ("REST_S", 0.0):
        monkeypatch.setattr(quiet, name, value)
    obedient.waited_ns = 0
    for vmid in (100, 101):
        obedient.vm(vmid, f"cores: 2\nsmbios1: uuid=00000000-0000-0000-0000-000000000{vmid}\n", vcpus=2)
    look(obedient)
    return obedient


def look(small) -> None:
    vmids = {*process.running(small.root), *ledgers.peek(small.root).claims}
    seen = [nodes.sight(small.root, vmid) for vmid in sorted(vmids)]
    settle.settle(nodes.open_node(small.root, {}), seen, everybody=True)


def tick(small) -> list[str]:
    """A step and the pass after it; VMs wait half of the time when they run as Proxmox starts them."""
    on = trial.load(small.root)
    small.waited_ns += WORK_NS if on is not None and on.way == "stock" else 0
    small.ran_ns = getattr(small, "ran_ns", 0) + WORK_NS
    for vmid in (100, 101):
        for tid in (vmid * 100 + 1, vmid * 100 + 2):
            base = f"proc/{vmid * 100}/task/{tid}"
            small.put(f"{base}/schedstat", f"{small.ran_ns} {small.waited_ns} 3")
            small.put(f"{base}/status", "Cpus_allowed_list:\t0-11\nnonvoluntary_ctxt_switches:\t0")
    time.sleep(0.002)
    said = list(quiet.step(nodes.open_node(small.root, {})))
    look(small)
    return said


def rounds(small, vmid: int) -> int:
    result = proofs.load(small.root, vmid)
    return 0 if result is None else len(whole_rounds(result.blocks, result.ways))


def tick_until(small, count: int, vmid: int) -> None:
    for _ in range(400):
        if rounds(small, vmid) >= count:
            return
        assert tick(small) == []
    raise AssertionError("it never came so far")


def test_round_by_round_it_learns_of_one_vm_after_the_other_and_says_what_it_found(node):
    before = dict(node.masks)
    tick_until(node, 8, 100)
    assert rounds(node, 101) >= 7
    found = proofs.load(node.root, 100)
    assert found is not None and found.quiet
    verdict = judge(found.blocks, found.ways)
    assert verdict.best == "home"
    assert verdict.sentence.startswith("home saves ")
    (one, *_) = proofs.briefs(node.root)
    assert one.sentence == verdict.sentence
    quiet.leave(node.root)
    look(node)
    assert node.masks == before


def test_a_vm_that_ends_in_the_middle_costs_this_round_only(node):
    while trial.load(node.root) is None:
        tick(node)
    vmid = trial.load(node.root).vmid
    for gone in f"run/qemu-server/{vmid}.pid", f"proc/{vmid * 100}/stat":
        os.unlink(node.root.path(gone))
    (said,) = tick(node)
    assert said == f"the quiet proof of VM {vmid} stopped: VM {vmid} does not run"
    assert trial.load(node.root) is None
    assert vmid not in ledgers.peek(node.root).claims


def test_who_proves_in_the_foreground_is_not_disturbed(node):
    with proving.alone(node.root):
        assert tick(node) == []
    assert trial.load(node.root) is None
    tick(node)
    assert trial.load(node.root) is not None


def test_between_two_rounds_everybody_rests(node, monkeypatch):
    tick_until(node, 1, 100)
    assert trial.load(node.root) is None
    monkeypatch.setattr(quiet, "REST_S", 3600.0)
    for _ in range(3):
        tick(node)
    assert trial.load(node.root) is None


def test_when_enough_is_known_of_all_nothing_is_tried(node, monkeypatch):
    monkeypatch.setattr(quiet, "ENOUGH_ROUNDS", 1)
    for _ in range(60):
        tick(node)
    assert (rounds(node, 100), rounds(node, 101)) == (1, 1)
    assert trial.load(node.root) is None


def test_when_the_timer_stops_time_ends_the_trial(node):
    tick(node)
    on = trial.load(node.root)
    assert on is not None and on.owner is None
    assert on.until_ns - ledgers.now_ns() < 300 * SECOND


def test_another_vm_of_that_number_begins_anew(node):
    tick_until(node, 1, 100)
    node.vm(100, "cores: 2\nsmbios1: uuid=00000000-0000-0000-0000-000000000999\n", vcpus=2)
    assert proofs.load(node.root, 100) is None
    assert [one.vmid for one in proofs.briefs(node.root)] == [] or proofs.briefs(node.root)[0].vmid == 101


def test_a_damaged_state_is_set_aside_and_begins_anew(node):
    tick(node)
    node.put(quiet.FILE, '{"vmid": "x"}')
    trial.remove(node.root)
    assert tick(node) == []
    assert trial.load(node.root) is not None
    assert node.root.exists(f"{quiet.FILE}.damaged")


def test_the_timer_takes_a_step_only_where_the_setting_says_so(node):
    from pxsched import tick as ticks

    node.settings("[node]\nbalance_cpu = false\nbalance_memory = false\n")
    ticks.tick(node.root, {})
    assert trial.load(node.root) is None
    node.settings("[node]\nbalance_cpu = false\nbalance_memory = false\nprove = true\n")
    ticks.tick(node.root, {})
    assert trial.load(node.root) is not None
    node.settings("[node]\nbalance_cpu = false\nbalance_memory = false\n")
    ticks.tick(node.root, {})
    assert trial.load(node.root) is None
    assert not node.root.exists(quiet.FILE)
