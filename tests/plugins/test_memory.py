"""Memory on the nodes of the vCPUs: from the first page, moved later, or explained."""

import pytest

from pxsched.guest.config import GuestNode, HostPci, Machine
from pxsched.host import memory as host_memory
from pxsched.host.memory import NodeMemory, Pool
from pxsched.knobs.knob import Gone
from pxsched.knobs.scope import DropIn, MemoryNodes
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import State
from pxsched.node import turning
from pxsched.node.reconcile import reconcile
from pxsched.placement.request import VmClass
from pxsched.plugins import memory
from pxsched.plugins.shortage import needs, shortages
from pxsched.settings.policy import Isolation, MemoryMode, NodeSettings

STEER = "affinity:4711,1"
ROOMY = (NodeMemory(0, 16384, 8192), NodeMemory(1, 16384, 8192))
HOSTPCI = (HostPci(0, ("0000:01:00.0",)),)
BOUND = (GuestNode(frozenset((0,)), 1024, frozenset((1,)), "bind"),)


def wants(views, vm, **host):
    return views.wants(memory.of_vm(vm, views.host(vm.claim, **{"memory": ROOMY, **host})))


# While the VM starts


def test_the_task_that_starts_qemu_is_steered_to_the_nodes(views):
    vm = views.vm(views.claim(100, "4-5", nodes="1", state=State.STARTING))
    assert wants(views, vm) == {STEER: "4-7"}


def test_it_is_steered_off_the_cpus_of_other_dedicated_vms(views):
    vm = views.vm(views.claim(100, "4-5", nodes="1", state=State.STARTING))
    host = views.host(vm.claim, views.claim(101, "6"), views.claim(102, "7", VmClass.SHARED))
    assert views.wants(memory.of_vm(vm, host)) == {STEER: "4-5,7"}


def test_off_means_off(views):
    for state in State:
        claim = views.claim(100, "4-5", nodes="1", state=state, memory=MemoryMode.OFF)
        assert wants(views, views.vm(claim, memory_mib={0: 900})) == {}


def strict(views, **claim):
    return views.claim(100, "4-5", nodes="1", memory=MemoryMode.STRICT, **claim)


def test_strict_confines_the_scope_before_it_exists(views):
    """To all CPUs of its nodes and those of its emulator, which may be another node's."""
    vm = views.vm(strict(views, state=State.STARTING))
    assert wants(views, vm) == {STEER: "4-7", "dropin:100": "0,4-7 1"}


def test_strict_never_forbids_what_the_admin_bound_guest_nodes_to(views):
    rules = (GuestNode(frozenset((0,)), 512, frozenset((0,)), "bind"),)
    vm = views.vm(strict(views, state=State.STARTING), numa=True, guest_nodes=rules)
    assert wants(views, vm)["dropin:100"] == "0-7 0-1"


def test_strict_stays_confined_while_it_runs(views):
    assert wants(views, views.vm(strict(views))) == {"dropin:100": "0,4-7 1", "memory-nodes:100": "1"}


def test_in_a_partition_the_drop_in_says_what_the_partition_will(views):
    vm = views.vm(strict(views))
    settings = NodeSettings(isolation=Isolation.PARTITION)
    assert wants(views, vm, settings=settings)["dropin:100"] == "4-5 1"


# After the start


def running(views, memory_mib, **machine):
    return views.vm(views.claim(100, "4-5", nodes="1"), memory_mib=memory_mib, **machine)


def test_memory_that_lies_right_costs_nothing(views):
    assert wants(views, running(views, {0: 30, 1: 2000})) == {}


def test_a_pass_that_does_not_look_turns_nothing(views):
    assert wants(views, running(views, None)) == {}


def test_memory_that_lies_elsewhere_is_moved(views):
    assert wants(views, running(views, {0: 1000, 1: 1000})) == {"memory-nodes:100": "1"}


def test_a_move_goes_on_until_hardly_anything_is_left_and_ends_then(views):
    held = {"memory-nodes:100": ""}
    assert wants(views, running(views, {0: 60, 1: 2000}), originals=held) == {"memory-nodes:100": "1"}
    assert wants(views, running(views, None), originals=held) == {"memory-nodes:100": "1"}
    assert wants(views, running(views, {0: 10, 1: 2000}), originals=held) == {}


def test_nothing_is_moved_onto_a_node_that_has_no_room(views):
    """A VM that is bound to a full node is killed."""
    full = (NodeMemory(0, 16384, 8192), NodeMemory(1, 16384, 1200))
    assert wants(views, running(views, {0: 1000, 1: 1000}), memory=full) == {}


@pytest.mark.parametrize(
    "machine, reason",
    [
        ({"hostpci": HOSTPCI}, "passed-through devices pin it"),
        ({"hugepage_mib": 2, "numa": True}, "it is in huge pages"),
        ({"guest_nodes": BOUND, "numa": True}, "numaN binds it"),
    ],
)
def test_memory_that_cannot_move_is_reported_instead(views, machine, reason):
    claim = views.claim(100, "4-5", nodes="1")
    vm = views.vm(claim, memory_mib={0: 1000, 1: 24}, **machine)
    host = views.host(claim, memory=ROOMY)
    assert wants(views, vm) == {}
    (note,) = memory.notes(vm, host)
    assert note == (
        f"VM 100: 1000 of 1024 MiB lie outside node 1 and stay there until it is started again: {reason}"
    )
    assert list(memory.notes(views.vm(claim, memory_mib={0: 10, 1: 1014}, **machine), host)) == []


def test_strict_does_not_move_what_is_pinned(views):
    assert wants(views, views.vm(strict(views), hostpci=HOSTPCI)) == {"dropin:100": "0,4-7 1"}


# The knobs


def test_a_drop_in_is_read_by_systemd_at_once_and_leaves_nothing_behind(tree, fake_systemd, views):
    (tree.base / "run/pxsched").mkdir(parents=True)
    before = tree.content()

    def turn(settings) -> None:
        with ledgers.locked(tree.root) as ledger:
            report = reconcile(tree.root, ledger, settings, [100])
        turning.run(tree.root, report)

    vm = views.vm(strict(views, state=State.STARTING))
    settings = [item for item in memory.of_vm(vm, views.host(vm.claim)) if isinstance(item.knob, DropIn)]
    turn(settings)
    text = tree.get("run/systemd/system/100.scope.d/pxsched.conf")
    assert "[Scope]\nAllowedCPUs=0,4-7\nAllowedMemoryNodes=1" in text
    assert fake_systemd.calls == [("daemon-reload",)]
    turn(settings)
    assert fake_systemd.calls == [("daemon-reload",)], "nothing changed, nothing to read"
    turn([])
    assert tree.content() == before
    assert not (tree.base / "run/systemd/system/100.scope.d").exists()


def test_a_drop_in_that_systemd_did_not_read_is_not_taken_for_one_in_force(tree):
    knob = DropIn(100)
    with pytest.raises(OSError, match="systemd is not what runs this system"):
        knob.write(tree.root, "0-3 0")
    assert knob.read(tree.root) == ""
    knob.write(tree.root, "")
    assert not (tree.base / "run/systemd/system/100.scope.d").exists()


def test_drop_ins_of_others_stay(tree, fake_systemd):
    tree.put("run/systemd/system/100.scope.d/theirs.conf", "[Scope]")
    DropIn(100).write(tree.root, "0-3 0")
    DropIn(100).write(tree.root, "")
    assert tree.get("run/systemd/system/100.scope.d/theirs.conf") == "[Scope]"


def test_a_running_scope_is_told_when_its_drop_in_goes(tree, fake_systemd):
    tree.scope(100)
    DropIn(100).write(tree.root, "0-3 0")
    DropIn(100).write(tree.root, "")
    assert fake_systemd.calls == [("daemon-reload",)] * 2


def test_a_running_scope_is_bound_through_systemd(tree, fake_systemd):
    base = tree.scope(100)
    knob = MemoryNodes(100)
    original = knob.original(tree.root)
    knob.write(tree.root, "1")
    assert fake_systemd.calls == [("set-property", "--runtime", "--", "100.scope", "AllowedMemoryNodes=1")]
    assert (tree.get(f"{base}/cpuset.mems"), knob.read(tree.root)) == ("1", "1")
    knob.write(tree.root, original)
    assert tree.get(f"{base}/cpuset.mems") == ""


def test_a_scope_that_has_ended_is_gone(tree, fake_systemd):
    with pytest.raises(Gone):
        MemoryNodes(100).read(tree.root)
    with pytest.raises(Gone):
        MemoryNodes(100).write(tree.root, "1")


# Shortages, before QEMU fails


def host(*pools, free_mib=8192, contiguous_mib=0):
    node = NodeMemory(0, 16384, free_mib, contiguous_mib, pools)
    return node, NodeMemory(1, 16384, 8192, 8192)


def lacks(views, memory_mib, nodes, *, strict=False, **machine):
    placement = views.claim(100, "2-3").placement
    return shortages(Machine(memory_mib=memory_mib, **machine), placement, nodes, strict=strict)


def test_enough_is_no_shortage(views):
    assert lacks(views, 8192, host()) == ()
    assert lacks(views, 4096, host(Pool(2, 2048, 2048), free_mib=0), hugepage_mib=2, numa=True) == ()


def test_huge_pages_that_no_memory_can_make_are_named_with_the_numbers(views):
    (lack,) = lacks(views, 8192, host(Pool(1024, 4, 3), free_mib=2048), hugepage_mib=1024, numa=True)
    assert lack.text == (
        "node 0 has 3072 MiB free in 1 GiB pages of the 8192 MiB needed there and 2048 MiB of other memory to"
        " make them of; QEMU will not start"
    )
    assert not lack.fragmented


def test_free_memory_in_small_pieces_may_need_compaction(views):
    nodes = host(Pool(2, 0, 0), free_mib=8192, contiguous_mib=1000)
    (lack,) = lacks(views, 4096, nodes, hugepage_mib=2, numa=True)
    assert lack.fragmented and "too fragmented" in lack.text
    whole = host(Pool(2, 0, 0), free_mib=8192, contiguous_mib=4096)
    assert lacks(views, 4096, whole, hugepage_mib=2, numa=True) == ()


def test_a_node_that_does_not_exist_is_named(views):
    rules = (GuestNode(frozenset((0,)), 1024, frozenset((3,)), "bind"),)
    (lack,) = lacks(views, 1024, host(), hugepage_mib=2, numa=True, guest_nodes=rules)
    assert "node 3, which does not exist" in lack.text


def test_ordinary_memory_comes_from_farther_away_unless_strict(views):
    (lack,) = lacks(views, 9000, host())
    assert lack.text.endswith("; the rest comes from farther away")
    (lack,) = lacks(views, 9000, host(), strict=True)
    assert lack.text.endswith("; the VM may be killed")


def test_what_each_node_needs_is_what_proxmox_will_ask_of_it(views):
    def of(**machine):
        vm = views.vm(views.claim(100, "2-3", nodes="0-1"), **machine)
        return needs(vm.machine, vm.claim.placement)

    rules = (
        GuestNode(frozenset((0,)), 1024, frozenset((1,)), "bind"),
        GuestNode(frozenset((1,)), 3072, frozenset((0, 1)), "interleave"),
    )
    assert of(numa=True, guest_nodes=rules) == {0: 1536, 1: 2560}
    assert of(numa=True, hugepage_mib=2, sockets=2) == {0: 256, 1: 256}
    assert of() == {0: 256, 1: 256}


def test_a_shortage_is_told_while_the_vm_starts(views):
    claim = views.claim(100, "2-3", state=State.STARTING)
    vm = views.vm(claim)
    poor = (NodeMemory(0, 16384, 100), NodeMemory(1, 16384, 8192))
    (note,) = memory.notes(vm, views.host(claim, memory=poor))
    assert note.startswith("VM 100: node 0 has 100 MiB free of the 512 MiB wanted there")
    assert list(memory.notes(vm, views.host(claim))) == []


def test_placement_counts_the_pages_that_proxmox_can_still_make(tree):
    tree.node(0, 1000, pools={2: (512, 256), 1024: (4, 1)})
    nodes = host_memory.read(tree.root)
    free = host_memory.free_hugepages_mib(nodes)
    assert free[0, 2] == 512 + 1000
    assert free[0, 1024] == 1024
    assert free[0, 0] == 512 + 1024 + 1000
    assert host_memory.free_mib(nodes) == {0: 1000, 1: 8192}
