"""Memory comes from the nodes of the vCPUs.

A VM's memory is touched while QEMU starts, and a process inherits the CPU mask of the one that starts it: so
the task that starts QEMU is steered onto the right nodes for that moment. `strict` has systemd confine the
VM's scope from QEMU's first instruction instead.

Later, memory that lies elsewhere is moved by the scope's memory nodes: for good when strict, else only until
it has moved, since a VM that is bound to a full node is killed. What is pinned (passed-through devices, huge
pages) or bound by the admin (numaN with hostnodes) stays where it is, and is reported.
"""

from collections.abc import Iterator

from pxsched.guest.config import Machine
from pxsched.host import cpulist
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger.claim import State, dedicated
from pxsched.placement.request import VmClass
from pxsched.plugins.view import HostView, Setting, VmView
from pxsched.settings.policy import Isolation, MemoryMode

NAME = "memory"

# Memory elsewhere that is worth a move: a share, and an amount, so that QEMU's own few pages do not count.
# A move that has begun goes on until much less is left.
WORTH_PERCENT, WORTH_MIB = 5, 64
DONE_PERCENT, DONE_MIB = 1, 16
# What a node should still have free after a move.
MARGIN_MIB = 512


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    claim = vm.claim
    if claim.policy.memory is MemoryMode.OFF or not claim.placement.nodes:
        return
    if claim.state is State.STARTING and claim.starter:
        cpus = _near(claim.placement.nodes, vm.vmid, host)
        if cpus:
            knob = ThreadAffinity(claim.starter.pid, claim.starter.start_ticks)
            yield Setting(knob, cpulist.format(cpus), vm.vmid, NAME)
    if claim.policy.memory is MemoryMode.STRICT or claim.state is State.RUNNING:
        yield from _scope(vm, host)


def _scope(vm: VmView, host: HostView) -> Iterator[Setting]:
    """What the VM's scope is confined to: nothing, mostly."""
    strict = vm.claim.policy.memory is MemoryMode.STRICT
    moves = vm.claim.state is State.RUNNING and not pinned(vm.machine) and (strict or _wants_move(vm, host))
    if not strict and not moves:
        return
    from pxsched.knobs.scope import DropIn, MemoryNodes

    nodes = cpulist.format(_allowed_nodes(vm))
    if strict:
        confined = f"{cpulist.format(_allowed_cpus(vm, host))} {nodes}"
        yield Setting(DropIn(vm.vmid), confined, vm.vmid, NAME)
    if moves:
        yield Setting(MemoryNodes(vm.vmid), nodes, vm.vmid, NAME)


def notes(vm: VmView, host: HostView) -> Iterator[str]:
    """What a person should know of this VM's memory, one line each."""
    mode = vm.claim.policy.memory
    if mode is MemoryMode.OFF:
        return
    if vm.claim.state is State.STARTING:
        if host.memory:
            yield from _shortages(vm, host)
        return
    far_mib, total_mib = _elsewhere_mib(vm)
    reason = pinned(vm.machine)
    if reason and far_mib > max(WORTH_MIB, total_mib * WORTH_PERCENT // 100):
        nodes = cpulist.format(_allowed_nodes(vm))
        yield (
            f"VM {vm.vmid}: {far_mib} of {total_mib} MiB lie outside node {nodes} and stay there until it is"
            f" started again: {reason}"
        )


def _shortages(vm: VmView, host: HostView) -> Iterator[str]:
    from pxsched.plugins.shortage import shortages

    strict = vm.claim.policy.memory is MemoryMode.STRICT
    for lack in shortages(vm.machine, vm.claim.placement, host.memory, strict=strict):
        yield f"VM {vm.vmid}: {lack.text}"


def pinned(machine: Machine) -> str:
    """Why the VM's memory cannot be moved; empty when it can."""
    if machine.hostpci:
        return "passed-through devices pin it"
    if machine.hugepage_mib is not None:
        return "it is in huge pages"
    if machine.numa and any(rule.host_nodes for rule in machine.guest_nodes):
        return "numaN binds it"
    return ""


def _wants_move(vm: VmView, host: HostView) -> bool:
    """Whether much of the memory lies elsewhere and could go home. A pass that does not look at it changes
    nothing.
    """
    held = f"memory-nodes:{vm.vmid}" in host.originals
    if vm.memory_bytes is None:
        return held
    far_mib, total_mib = _elsewhere_mib(vm)
    free_mib = sum(node.free_mib for node in host.memory if node.id in vm.claim.placement.nodes)
    if free_mib < far_mib + MARGIN_MIB:
        return False
    if held:
        return far_mib > max(DONE_MIB, total_mib * DONE_PERCENT // 100)
    return far_mib > max(WORTH_MIB, total_mib * WORTH_PERCENT // 100)


def _elsewhere_mib(vm: VmView) -> tuple[int, int]:
    """How much of the VM's memory lies outside the nodes where it belongs, and how much it has at all."""
    by_node = vm.memory_bytes or {}
    nodes = _allowed_nodes(vm)
    far = sum(amount for node, amount in by_node.items() if node not in nodes)
    return far // 2**20, sum(by_node.values()) // 2**20


def _allowed_nodes(vm: VmView) -> frozenset[int]:
    """The placement's nodes and those the admin binds guest nodes to: QEMU fails if it may not use these."""
    rules = vm.machine.guest_nodes if vm.machine.numa else ()
    return vm.claim.placement.nodes.union(*(rule.host_nodes for rule in rules))


def _allowed_cpus(vm: VmView, host: HostView) -> frozenset[int]:
    """All CPUs of the VM's nodes, and wherever its threads are placed. Depends on nothing but the VM itself,
    as each change costs a daemon-reload.
    """
    placement = vm.claim.placement
    partition = host.node.isolation is Isolation.PARTITION and vm.claim.policy.isolation
    if partition and placement.vm_class is VmClass.DEDICATED:
        return placement.cpus  # all that the partition will have
    nodes = _allowed_nodes(vm)
    own = placement.cpus | placement.emulator
    return own.union(*(node.cpus for node in host.topology.nodes if node.id in nodes))


def _near(nodes: frozenset[int], vmid: int, host: HostView) -> frozenset[int]:
    """The online CPUs of these nodes that are not dedicated to other VMs."""
    near = frozenset().union(*(node.cpus for node in host.topology.nodes if node.id in nodes))
    taken = dedicated(claim for claim in host.claims.values() if claim.vmid != vmid)
    return near - taken
