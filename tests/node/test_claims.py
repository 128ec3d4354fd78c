"""Who keeps a claim, who loses it, who comes first; what is believed of sightings that are out of date."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pxsched.guest import process
from pxsched.guest.config import Machine
from pxsched.guest.process import Process
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.file import Ledger
from pxsched.node import claims, settle, wishes
from pxsched.node import sighting as nodes
from pxsched.node.sighting import Sighting
from pxsched.placement.request import Placement, VmClass
from pxsched.settings.policy import Policy
from pxsched.value import replace

DEDICATED = '[node]\nhousekeeping = ""\n[vm.104]\nclass = "dedicated"\n'
QEMU = Process(10000, 100)  # VM 100's on the node of these tests
ANOTHER = Process(10000, 99)


def open_node(small) -> nodes.Node:
    return nodes.open_node(small.root, {})


def update(small, ledger: Ledger, *sightings: Sighting) -> claims.Changes:
    return claims.update(open_node(small), ledger, sightings)


def placement(vmid: int, cpus: set[int], vm_class: VmClass = VmClass.SHARED) -> Placement:
    return Placement(vmid, vm_class, (frozenset(cpus),), frozenset(cpus), frozenset((0,)))


def sighting(
    vmid: int, *, process: Process | None = None, starter: Process | None = None, **machine
) -> Sighting:
    return Sighting(vmid, Machine(**machine), process, (), starter, opted_in=True)


@pytest.fixture
def starter(small):
    """A task that starts a VM, as the node's /proc shows it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        (Path(small.base) / "proc" / str(child.pid)).symlink_to(f"/proc/{child.pid}")
        yield child
        child.kill()


def starting(small, pid: int, *, age_s: float = 0.0) -> Ledger:
    who = process.identify(small.root, pid)
    assert who is not None
    ledger = Ledger()
    since_ns = int(ledgers.now_ns() - age_s * 1e9)
    ledger.claims[100] = Claim(placement(100, {1}), State.STARTING, starter=who, since_ns=since_ns)
    return ledger


def test_a_claim_waits_for_qemu_as_long_as_its_starter_lives(small, starter):
    ledger = starting(small, starter.pid)
    assert update(small, ledger, Sighting(100, Machine())).dropped == []
    starter.kill()
    starter.wait()
    assert update(small, ledger, Sighting(100, Machine())).dropped == [100]


def test_a_start_that_takes_an_hour_has_failed(small, starter):
    assert update(small, starting(small, starter.pid, age_s=3700), Sighting(100, Machine())).dropped == [100]


def test_newcomers_do_not_find_the_cpus_of_a_start_that_failed(small, starter):
    ledger = starting(small, starter.pid)
    starter.kill()
    starter.wait()
    changes = update(small, ledger, sighting(104, starter=Process(os.getpid(), 1)))
    assert (changes.dropped, changes.placed) == ([100], [104])


def test_those_who_want_cpus_of_their_own_are_placed_first_whatever_their_numbers(small):
    """The dedicated VM would else take the CPUs to which the admin pinned the other."""
    small.settings(DEDICATED)
    ledger = Ledger()
    wishes = [
        sighting(103, starter=QEMU, vcpus=2, cores=2),
        sighting(104, starter=QEMU, vcpus=4, cores=4),
        sighting(106, starter=QEMU, vcpus=4, cores=4, affinity=(1, 2, 7, 8)),
    ]
    changes = update(small, ledger, *wishes)
    assert (changes.refused, changes.placed) == ({}, [106, 104, 103])
    pinned, dedicated = (ledger.claims[vmid].placement.cpus for vmid in (106, 104))
    assert pinned == {1, 2, 7, 8} and not dedicated & pinned


def test_of_an_earlier_process_neither_balloon_nor_starter_is_believed(small):
    small.vm(100, "cores: 1", vcpus=1)
    ledger = Ledger()
    before = Claim(placement(100, {1}), State.RUNNING, process=ANOTHER, balloon_mib=512)
    for known, balloon_mib in ((before, None), (replace(before, process=QEMU), 512)):
        ledger.claims[100] = known
        update(small, ledger, sighting(100, process=QEMU, starter=ANOTHER))
        assert ledger.claims[100].balloon_mib == balloon_mib
        assert (ledger.claims[100].process, ledger.claims[100].starter) == (QEMU, None)


def test_a_sighting_of_a_process_that_has_ended_since_changes_nothing(small):
    """A hook has claimed CPUs for the next start in between."""
    ledger = Ledger()
    claim = Claim(placement(100, {1}), State.STARTING, starter=Process(1, 1), since_ns=ledgers.now_ns())
    ledger.claims[100] = claim
    update(small, ledger, sighting(104, process=ANOTHER))
    assert 104 not in ledger.claims


def test_a_vm_that_lost_our_hookscript_stays_ours_until_it_gets_another(small):
    small.vm(100, "cores: 1", vcpus=1)
    ledger = Ledger()
    known = Claim(placement(100, {1}), State.RUNNING, process=QEMU, hookscript="local:snippets/old")
    for script, kept in (("local:snippets/old", True), ("local:snippets/new", False)):
        ledger.claims[100] = known
        update(small, ledger, Sighting(100, Machine(hookscript=script), QEMU))
        assert (100 in ledger.claims) == kept


def test_a_vm_that_is_not_opted_in_gets_no_place(small):
    ledger = Ledger()
    update(small, ledger, Sighting(100, Machine(), None, (), QEMU))
    assert list(ledger.claims) == []


def test_a_shared_vm_leaves_a_home_that_became_somebodys_own(small):
    small.vm(100, "cores: 1", vcpus=1)
    ledger = Ledger()
    update(small, ledger, sighting(100, process=QEMU))
    home = ledger.claims[100].placement.cpus
    ledger.claims[104] = Claim(placement(104, set(home), VmClass.DEDICATED), State.RUNNING, process=QEMU)
    changes = update(small, ledger, sighting(100, process=QEMU))
    assert changes.placed == [100]
    assert not ledger.claims[100].placement.cpus & home


def test_a_dedicated_vm_whose_cpu_went_offline_is_placed_anew(small):
    small.settings(DEDICATED)
    ledger = Ledger()
    wish = sighting(104, starter=QEMU, vcpus=2, cores=2)
    update(small, ledger, wish)
    assert update(small, ledger, wish).placed == [], "it stays where it is"
    lost = max(ledger.claims[104].placement.cpus)
    small.put("sys/devices/system/cpu/online", ",".join(str(cpu) for cpu in range(12) if cpu != lost))
    assert update(small, ledger, wish).placed == [104]
    assert lost not in ledger.claims[104].placement.cpus


def test_when_a_dedicated_vm_leaves_the_shared_ones_beside_it_look_for_a_home_again(small):
    ledger = Ledger()
    ledger.claims[104] = Claim(placement(104, {1}, VmClass.DEDICATED), State.RUNNING, process=ANOTHER)
    ledger.claims[105] = Claim(placement(105, {2}), State.RUNNING, process=QEMU, signature="x")
    update(small, ledger, Sighting(104, Machine()))
    assert ledger.claims[105].signature == ""


CLAIM = Claim(placement(100, {1}), State.RUNNING, process=QEMU)


@pytest.mark.parametrize(
    ("seen", "blurred"),
    [
        (Sighting(100, Machine(), QEMU), False),
        (Sighting(100, Machine(), ANOTHER), True),
        (Sighting(100, Machine(), None), True),
        (Sighting(100, None, QEMU), True),
        (None, True),
    ],
)
def test_knobs_are_turned_only_of_the_very_process_that_was_seen(seen, blurred):
    assert settle.blurred(CLAIM, seen) == blurred


def test_a_vm_gets_the_class_that_its_affinity_and_policy_say():
    for affinity, vcpus, vm_class in (
        ((0, 1), 2, VmClass.PINNED), ((0, 1), 1, VmClass.CONSTRAINED), ((), 1, VmClass.SHARED),
    ):  # fmt: skip
        assert wishes.vm_class(Machine(affinity=affinity), Policy(), vcpus) is vm_class


def test_pins_count_instead_of_affinity_and_are_told_by_their_name(small):
    """`affinity` goes with a VM to nodes where its numbers mean other CPUs."""
    small.vm(100, "cores: 2\naffinity: 0,6\n")
    small.settings('[node.pve1.vm.100]\npins = "4,3"\n[node.pve2.vm.100]\npins = "1,2"\n')
    plan = small.plan(100)
    assert plan["class"] == "pinned" and small.cpus(100) == ["4", "3"]
    assert plan["why"][0] == "pins pins vCPUs 0-1 to 4,3, in this order"


def test_pins_that_are_fewer_or_more_than_the_vcpus_are_a_set(small):
    small.vm(100, "cores: 4\n")
    small.settings('[vm.100]\npins = "4,3"\n')
    assert small.plan(100)["class"] == "constrained" and small.cpus(100) == ["3-4"] * 4


def test_what_a_vm_asks_for_is_worked_out_again_only_when_it_is_another_one(small, monkeypatch):
    node, ledger, vm = open_node(small), Ledger(), sighting(100, process=QEMU, vcpus=2, cores=2)
    small.settings("")
    monkeypatch.setattr(claims, "_is_current", lambda *_: True)
    assert claims.update(node, ledger, [vm]).placed == [100]
    before = ledger.claims[100]
    with monkeypatch.context() as patch:
        patch.setattr(wishes, "request", None)
        again = nodes.open_again(node, node.topology, {})
        assert claims.update(again, ledger, [vm]).placed == []
        assert ledger.claims[100] == before
    small.settings('[vm.100]\ncpus = "3"\n')
    later = nodes.open_again(again, again.topology, {})
    assert claims.update(later, ledger, [vm]).placed == [100]
    assert ledger.claims[100].placement.cpus == {3}
    grown = replace(vm, machine=replace(vm.machine, vcpus=3, cores=3))
    claims.update(later, ledger, [grown])
    assert len(ledger.claims[100].placement.vcpus) == 3
