"""Whose balloon is ours to move, and what Proxmox's locks say of that."""

import os
from types import SimpleNamespace

import pytest

from pxsched.balance.vm import Move
from pxsched.guest.balloon import Reading
from pxsched.guest.config import Machine, machine, parse
from pxsched.guest.process import Process
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.file import Ledger
from pxsched.node import balancing, guests
from pxsched.node.balancing import Balancer
from pxsched.node.remembered import Last
from pxsched.node.sighting import Sighting
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root
from pxsched.settings.policy import NodeSettings
from pxsched.value import replace
from tests.placement import machines

HOME = Placement(100, VmClass.SHARED, (frozenset({0}),), frozenset({0}), frozenset({0}))
OURS = {"memory_mib": 4096, "balloon_mib": 1024, "shares": 0}


def ledger():
    found = Ledger()
    found.claims[100] = Claim(HOME, State.RUNNING, process=Process(4711, 1))
    return found


def sighted(**options):
    return Sighting(100, Machine(**{**OURS, **options}), Process(4711, 1))


def looked_at(monkeypatch, tmp_path, sighting):
    """The guest as it is seen, and who was asked."""
    asked = []

    def ask(root, vmids):
        asked.extend(vmids)
        return {vmid: Reading(2048.0, 2000.0, 500.0, age_s=1.0) for vmid in vmids}

    monkeypatch.setattr(guests, "_ask", ask)
    managed = {100: sighting}
    known = ledger()
    excluded = guests.excluded(known, managed)
    [guest] = guests.look(Root(str(tmp_path)), known, managed, excluded, {})
    return guest, asked


@pytest.mark.parametrize("lock", ["backup", "snapshot", "snapshot-delete", "clone", "create"])
def test_while_proxmox_works_beside_a_running_guest_it_may_grow_and_nothing_is_taken(
    monkeypatch, tmp_path, lock
):
    guest, asked = looked_at(monkeypatch, tmp_path, sighted(lock=lock))
    assert asked == [100]
    assert guest.kept
    assert guest.unheard == ""
    free, _ = looked_at(monkeypatch, tmp_path, sighted())
    assert free.kept == ""


@pytest.mark.parametrize("lock", ["migrate", "suspending", "suspended", "rollback", "unheard-of"])
def test_a_vm_that_goes_away_is_not_even_asked(monkeypatch, tmp_path, lock):
    guest, asked = looked_at(monkeypatch, tmp_path, sighted(lock=lock))
    assert asked == []
    assert guest.unheard == f"it is locked: {lock}"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hostpci0: 0000:01:00.0", "passed-through"),
        ("hostpci1: mapping=gpu", "passed-through"),
        ("args: -device vfio-pci,host=01:00.0", "passed-through"),
        ("""args: -device '{"driver":"vfio-pci","host":"01:00.0"}'""", "passed-through"),
        ("args: -netdev vhost-vdpa,vhostdev=/dev/vhost-vdpa-0,id=n0", "passed-through"),
        ("args: -overcommit mem-lock=on", "locked"),
        ("args: -realtime mlock=on", "locked"),
        ("hugepages: any", "huge pages"),
        ("amd-sev: type=es", "encrypted"),
        ("intel-tdx: type=tdx", "encrypted"),
    ],
)
def test_what_the_host_does_not_get_back_is_not_served_whoever_has_its_balloon(line, reason):
    text = f"{line}\nmemory: 4096\nballoon: 1024\n"
    ours, theirs = machine(parse(text + "shares: 0\n")), machine(parse(text))
    known = ledger()
    mine = Sighting(100, ours, Process(4711, 1))
    assert reason in guests.excluded(known, {100: mine})[100]
    assert guests.unserved(known.claims, [mine]) == [100]
    assert guests.stranded(known, {100: mine}) == [100]
    others = Sighting(100, theirs, Process(4711, 1))
    said = guests.excluded(known, {100: others})[100]
    assert said.startswith("Proxmox balances it itself") and reason in said
    assert guests.unserved(known.claims, [others]) == guests.stranded(known, {100: others}) == []


def test_where_memory_is_no_longer_balanced_balloons_are_handed_over_and_status_says_why(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/self").symlink_to(str(os.getpid()))
    root = Root(str(tmp_path))
    cases = ((True, 2048, {100: None}), (True, None, {}), (False, None, {}))
    for number, (off, size, sizes) in enumerate(cases):
        known = ledger()
        known.claims[100] = replace(known.claims[100], balloon_mib=size)
        balancer = Balancer(root)
        balancer._last = Last(skipped={100: "its statistics are stale"})
        node = SimpleNamespace(settings=SimpleNamespace(node=NodeSettings(balance_memory=not off)))
        outcome = balancer._coordinate(node, known, [sighted(shares=1000)], 100.0 + number)
        assert balancing._sizes(known, outcome) == sizes
        assert ("`balance_memory` is false" in balancer._last.skipped[100]) is off


def test_who_can_be_served_or_does_not_run_is_not_given_back():
    assert guests.unserved(ledger().claims, [sighted()]) == []
    pinned = sighted(vfio=True)
    assert guests.unserved(ledger().claims, [pinned]) == [100]
    assert guests.unserved(ledger().claims, [Sighting(100, pinned.machine)]) == []
    assert guests.unserved({}, [pinned]) == []


def test_a_vm_that_is_moved_to_cpus_without_memory_has_it_from_the_nearest_node():
    plain = machines.machine(nodes=2, l3s=1, cores=2, threads=1)
    bare = replace(plain, nodes=(plain.nodes[0], replace(plain.nodes[1], memory_bytes=0)))
    for topology, there in (plain, {1}), (bare, {0}):
        held, seen, node = ledger(), ledger(), SimpleNamespace(topology=topology)
        move = Move(100, None, frozenset({0}), frozenset({2, 3}), "")
        assert balancing._move(held, seen, node, move)
        assert held.claims[100].placement.nodes == there
