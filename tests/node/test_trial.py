"""A VM on trial: what passes make of it, how it ends, and that everybody gets back what was his."""

import os

import pytest

from pxsched.errors import UserError
from pxsched.guest import process
from pxsched.guest.process import Process
from pxsched.host import cpulist
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger import claim as claims_module
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.node import proving, settle, trial, ways
from pxsched.node import sighting as nodes
from pxsched.node.trial import LONGEST_NS, Trial
from pxsched.placement.request import VmClass
from pxsched.proof import way as kinds
from pxsched.root import Root
from pxsched.value import replace

SECOND = 10**9


@pytest.fixture
def node(obedient):
    """Two shared VMs with two vCPUs each that run."""
    for vmid in (100, 101):
        obedient.vm(vmid, "cores: 2\n", vcpus=2)
    look(obedient)
    return obedient


def look(small, *vmids: int) -> settle.Pass:
    """A pass over these VMs, or over all."""
    everybody = not vmids
    seen = [nodes.sight(small.root, vmid) for vmid in vmids or process.running(small.root)]
    return settle.settle(nodes.open_node(small.root, {}), seen, everybody=everybody)


def claim(small, vmid: int) -> Claim:
    return ledgers.peek(small.root).claims[vmid]


def cpus(small, vmid: int) -> frozenset[int]:
    return claim(small, vmid).placement.cpus


def masks(small, vmid: int) -> set[str | None]:
    threads = (ThreadAffinity(vmid * 100 + 1 + number, 100) for number in range(2))
    return {small.masks.get(knob.key) for knob in threads}


def planned(small, *names: str, vmid: int = 100, move_memory: bool = False) -> dict[str, ways.Planned]:
    node = nodes.open_node(small.root, {})
    vm = ways.subject(node, vmid)
    found = ways.plan(node, vm, map(kinds.parse, names), move_memory=move_memory)
    return {one.name: one for one in found}


def begin(small, name: str, *others: str, owned: bool = True) -> ways.Planned:
    vm = ways.subject(nodes.open_node(small.root, {}), 100)
    way = planned(small, name, *others)[name]
    proving.begin(small.root, vm, way, 10, owned=owned)
    look(small)
    return way


def test_as_proxmox_starts_it_no_thread_is_turned_and_afterwards_all_are_again(node):
    before = dict(node.masks), claim(node, 100)
    assert masks(node, 100) != {None}
    begin(node, "stock")
    assert masks(node, 100) == {None}
    assert masks(node, 101) != {None}
    proving.end(node.root, 100)
    assert (node.masks, claim(node, 100)) == before


def test_its_own_cpus_are_given_and_taken_back_and_who_made_room_returns(node):
    node.settings('[defaults]\ncpus = "0-2,6-8"\n')
    look(node)
    homes = {vmid: claim(node, vmid).placement for vmid in (100, 101)}
    assert homes[100].cpus & homes[101].cpus
    way = begin(node, "dedicated")
    assert way.room == (101,)
    assert claim(node, 100).placement.vm_class is VmClass.DEDICATED
    assert not cpus(node, 100) & cpus(node, 101)
    begin(node, "home")
    assert {vmid: claim(node, vmid).placement for vmid in (100, 101)} == homes
    begin(node, "dedicated")
    proving.end(node.root, 100)
    assert {vmid: claim(node, vmid).placement for vmid in (100, 101)} == homes
    assert all(claim(node, vmid).aside is None for vmid in (100, 101))


@pytest.mark.parametrize("way", ["stock", "dedicated", "home@3"])
def test_whoever_is_killed_in_a_block_leaves_nothing_behind_the_next_pass(node, way):
    before = dict(node.masks), ledgers.peek(node.root).claims[100].placement, claim(node, 101).placement
    begin(node, way) if way != "home@3" else begin_far(node)
    dead = replace(trial.load(node.root), owner=Process((1 << 22) - 2, 1))
    trial.save(node.root, dead)
    assert trial.load(node.root) is None
    look(node)
    assert (dict(node.masks), claim(node, 100).placement, claim(node, 101).placement) == before
    trial.tidy(node.root)
    assert not node.root.exists(trial.FILE)


def begin_far(node) -> None:
    vm = ways.subject(nodes.open_node(node.root, {}), 100)
    way = planned(node, "home@3", move_memory=True)["home@3"]
    proving.begin(node.root, vm, way, 10, owned=True)
    look(node)
    assert masks(node, 100) == {"3"}


def test_without_an_owner_time_ends_a_trial(node):
    begin(node, "stock", owned=False)
    on = trial.load(node.root)
    assert on is not None and on.owner is None
    trial.save(node.root, replace(on, until_ns=ledgers.now_ns() - 1))
    assert trial.load(node.root) is None
    look(node)
    assert masks(node, 100) != {None}


def test_a_trial_that_claims_to_last_for_ever_is_not_ours(node):
    begin(node, "stock")
    trial.save(node.root, replace(trial.load(node.root), until_ns=ledgers.now_ns() + 2 * LONGEST_NS))
    assert trial.load(node.root) is None


def test_another_process_of_that_vm_is_not_on_trial(node):
    begin(node, "stock")
    trial.save(node.root, replace(trial.load(node.root), process=Process(10000, 99)))
    look(node)
    assert masks(node, 100) != {None}


def test_a_vm_that_wants_cpus_to_itself_ends_the_trial_and_comes_first(node):
    before = claim(node, 100).placement
    begin(node, "dedicated")
    node.settings('[vm.102]\nclass = "dedicated"\n')
    node.vm(102, "cores: 2\n", vcpus=2)
    done = look(node, 102)
    assert done.changes.called_off == 100
    assert trial.load(node.root) is None
    assert claim(node, 102).placement.vm_class is VmClass.DEDICATED
    assert claim(node, 100).placement.vm_class is VmClass.SHARED
    assert not cpus(node, 100) & cpus(node, 102)
    assert claim(node, 100).placement.cpus <= before.cpus
    assert masks(node, 100) != {None}


def test_a_shared_vm_that_starts_disturbs_no_trial_in_which_nobody_makes_room(node):
    begin(node, "stock")
    node.vm(102, "cores: 2\n", vcpus=2)
    assert look(node, 102).changes.called_off is None
    assert masks(node, 100) == {None}


def test_to_plan_for_another_vm_ends_nothing(node):
    from pxsched.node import planning

    begin(node, "dedicated")
    node.settings('[vm.102]\nclass = "dedicated"\n')
    node.vm(102, "cores: 2\n")
    planning.plan(nodes.open_node(node.root, {}), 102)
    assert trial.load(node.root) is not None


def test_a_cpu_that_goes_offline_ends_the_way_that_needs_it(node):
    vm = ways.subject(nodes.open_node(node.root, {}), 100)
    way = begin(node, "dedicated")
    gone = max(cpus(node, 100))
    online = ",".join(str(cpu) for cpu in range(12) if cpu != gone)
    node.put("sys/devices/system/cpu/online", online)
    look(node)
    assert claim(node, 100).placement.vm_class is VmClass.SHARED
    assert all(str(gone) not in (mask or "").split(",") for mask in masks(node, 100))
    with pytest.raises(proving.Stopped, match="CPUs are gone"):
        proving.check(node.root, vm, way)


def test_what_changes_meanwhile_stops_a_proof_with_its_reason(node):
    vm = ways.subject(nodes.open_node(node.root, {}), 100)
    way = begin(node, "stock")
    proving.check(node.root, vm, way)
    node.settings('[vm.100]\nnic = false\n')
    with pytest.raises(proving.Stopped, match="settings of VM 100 have changed"):
        proving.check(node.root, vm, way)
    node.settings("")
    node.vm(100, "cores: 2\n", vcpus=3)
    with pytest.raises(proving.Stopped, match="vCPUs of VM 100 have changed"):
        proving.check(node.root, vm, way)
    node.vm(100, "cores: 2\n", vcpus=2)
    trial.remove(node.root)
    with pytest.raises(proving.Stopped, match="another VM looks for a place"):
        proving.check(node.root, vm, way)
    os.unlink(node.root.path("run/qemu-server/100.pid"))
    os.unlink(node.root.path("proc/10000/stat"))
    with pytest.raises(proving.Stopped, match="has stopped"):
        proving.check(node.root, vm, way)


def test_a_way_that_is_not_in_force_is_not_measured(node):
    vm = ways.subject(nodes.open_node(node.root, {}), 100)
    way = begin(node, "dedicated")
    proving.check(node.root, vm, way)
    node.masks[ThreadAffinity(10001, 100).key] = "0-11"
    with pytest.raises(proving.Stopped, match="a vCPU of VM 100 may run on CPUs 0-11"):
        proving.check(node.root, vm, way)


def test_putting_everything_back_ends_the_trial_as_well(node):
    begin(node, "stock")
    settle.restore_all(node.root)
    assert not node.root.exists(trial.FILE)


def test_no_way_takes_cpus_from_a_vm_that_has_them_to_itself(node):
    node.settings('[vm.101]\nclass = "dedicated"\n')
    look(node)
    own = min(cpus(node, 101))
    with pytest.raises(UserError, match=f"another VM has CPU {own} to itself"):
        planned(node, f"home@{own}", move_memory=True)


def test_a_way_that_moves_memory_needs_a_word(node):
    (here,) = claim(node, 100).placement.nodes
    far = 3 if here == 0 else 0
    with pytest.raises(UserError, match=r"would move the memory of VM 100 .*--move-memory"):
        planned(node, f"home@{far}")
    assert planned(node, f"home@{far}", move_memory=True)


def test_a_vm_with_cpus_of_its_own_keeps_them_whatever_is_compared(node):
    node.settings('[vm.100]\nclass = "dedicated"\n')
    look(node)
    own = claim(node, 100).placement
    for name in ("home", "stock"):
        begin(node, name)
        assert claim(node, 100).placement.vm_class is VmClass.DEDICATED
        assert cpus(node, 100) == own.cpus
    begin(node, "home")
    assert masks(node, 100) == {cpulist.format(own.cpus)}
    proving.end(node.root, 100)
    assert claim(node, 100).placement == own


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("home", "now"), "home and now are the same"),
        (("stock", "home@14"), "CPU 14 is not online"),
        (("stock", "home+governor"), "only pinned and dedicated CPUs are governed"),
        (("stock", "dedicated-isolation"), "nothing is isolated here"),
    ],
)
def test_ways_that_make_no_difference_or_cannot_be_are_refused(node, names, said):
    with pytest.raises(UserError, match=said):
        planned(node, *names, move_memory=True)


@pytest.mark.parametrize(("vmid", "said"), [(102, "there is no VM 102"), (103, "VM 103 does not run")])
def test_only_vms_that_run_and_are_ours_can_be_proven(node, vmid, said):
    node.vm(103, "cores: 2\n")
    with pytest.raises(UserError, match=said):
        ways.subject(nodes.open_node(node.root, {}), vmid)


def test_a_trial_comes_back_as_it_was_written_and_a_damaged_one_is_none(node):
    way = planned(node, "dedicated")["dedicated"]
    us = process.identify(Root(), os.getpid())
    on = Trial(100, "dedicated", Process(10000, 100), ledgers.now_ns() + 60 * SECOND, us, way.overlay,
               way.placement)  # fmt: skip
    trial.save(node.root, on)
    assert trial.load(node.root) == on
    for text in ("", "{", '{"vmid": 100}', '{"vmid":"x"}', "[]", '{"vmid":100,"way":"w","process":[1,1],'
                 '"until_ns":1,"owner":null,"overlay":{"nonsense":1},"placement":null}'):  # fmt: skip
        node.put(trial.FILE, text)
        assert trial.load(node.root) is None


def test_a_claim_remembers_in_the_ledger_where_its_vm_was(node):
    begin(node, "dedicated")
    found = claim(node, 100)
    assert found.aside is not None
    assert claims_module.decode(100, claims_module.encode(found)) == found
