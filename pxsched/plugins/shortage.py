"""Whether a VM that is about to start finds its memory, told before QEMU fails for want of it."""

from pxsched.guest.config import Machine
from pxsched.host.memory import NodeMemory
from pxsched.placement.request import Placement
from pxsched.value import Value


class Shortage(Value):
    """A node that cannot give a VM what it needs. fragmented: compaction may help."""

    node: int
    needed_mib: int
    free_mib: int
    fragmented: bool
    text: str


def shortages(
    machine: Machine, placement: Placement, memory: tuple[NodeMemory, ...], *, strict: bool = False
) -> tuple[Shortage, ...]:
    """What keeps QEMU from having its huge pages, and where ordinary memory is short, by node.

    strict: the VM may use no other nodes.
    """
    known = {node.id: node for node in memory}
    found = []
    for number, needed_mib in needs(machine, placement).items():
        if number in known:
            lack = _shortage(machine.hugepage_mib, known[number], needed_mib, strict)
            found += [lack] if lack else []
        elif known and machine.hugepage_mib is not None:
            text = f"it needs {needed_mib} MiB of huge pages on node {number}, which does not exist"
            found.append(Shortage(number, needed_mib, 0, False, text))
    return tuple(found)


def needs(machine: Machine, placement: Placement) -> dict[int, int]:
    """MiB by host node: as numaN says; with huge pages else guest socket i on node i, as Proxmox has it
    (PVE::QemuServer::Memory); else evenly over the nodes of the placement.
    """
    total: dict[int, int] = {}
    bound = [rule for rule in machine.guest_nodes if rule.host_nodes] if machine.numa else []
    if bound:
        parts = [(rule.host_nodes, rule.memory_mib) for rule in bound]
    elif machine.hugepage_mib is not None and machine.numa:
        share_mib = machine.memory_mib // machine.sockets
        parts = [(frozenset((node,)), share_mib) for node in range(machine.sockets)]
    else:
        parts = [(placement.nodes, machine.memory_mib)]
    for nodes, size_mib in parts:
        for node in nodes:
            total[node] = total.get(node, 0) + size_mib // len(nodes)
    return dict(sorted(total.items()))


def _shortage(size_mib: int | None, node: NodeMemory, needed_mib: int, strict: bool) -> Shortage | None:
    if size_mib is None:
        if needed_mib <= node.free_mib:
            return None
        has = f"node {node.id} has {node.free_mib} MiB free of the {needed_mib} MiB wanted there"
        text = f"{has}; " + ("the VM may be killed" if strict else "the rest comes from farther away")
        return Shortage(node.id, needed_mib, node.free_mib, False, text)
    pool_mib, free_mib = node.pool_mib(size_mib), node.huge_mib(size_mib)
    name = {2: "2 MiB", 1024: "1 GiB"}.get(size_mib, "huge")
    has = f"node {node.id} has {pool_mib} MiB free in {name} pages of the {needed_mib} MiB needed there"
    if needed_mib > free_mib:
        text = f"{has} and {node.free_mib} MiB of other memory to make them of; QEMU will not start"
        return Shortage(node.id, needed_mib, free_mib, False, text)
    if needed_mib > pool_mib + (node.contiguous_mib if size_mib != 1024 else 0):
        text = f"{has}; its {node.free_mib} MiB of other memory may be too fragmented to make the rest"
        return Shortage(node.id, needed_mib, free_mib, True, text)
    return None
