"""Guest NUMA nodes whose memory QEMU binds to host nodes: no thread placement undoes that, so vCPUs go there.

Rules: PVE::QemuServer::Memory (`hostnodes` and `policy` of numaN become those of a memory backend; with huge
pages guest socket i is on host node i). QEMU does not start where a host node is missing.
"""

from collections.abc import Sequence

from pxsched.host import cpulist
from pxsched.placement.layout import cpu_nodes, parts_of
from pxsched.placement.machine import Machine, set_of
from pxsched.placement.memory import Room
from pxsched.placement.occupancy import nodes_mask
from pxsched.placement.request import Refused, Request


def missing(machine: Machine, request: Request) -> list[str]:
    """The bindings to nodes that are not there, one sentence each."""
    there = machine.topology.node_by_id.keys()
    return [
        f"{guest.named(number)} binds memory to node {cpulist.format(guest.host_nodes - there)}, which this"
        f" machine does not have: the VM cannot start"
        for number, guest in enumerate(request.guest_nodes)
        if not guest.host_nodes <= there
    ]


def refuse_missing(machine: Machine, request: Request) -> None:
    """Raises Refused where a guest node is bound to a node that is not there."""
    found = missing(machine, request)
    if found:
        raise Refused(found[0], hint=f"nodes here are {cpulist.format(sorted(machine.topology.node_by_id))}")


def anchors(machine: Machine, request: Request) -> list[frozenset[int]]:
    """For each guest node the nodes whose CPUs are beside its memory; empty for one that is not bound."""
    return [cpu_nodes(machine, guest.host_nodes) for guest in request.guest_nodes]


def anchored(
    machine: Machine, request: Request, vcpus: Sequence[frozenset[int]], *, uncrowded: bool = False
) -> list[frozenset[int]]:
    """The CPUs of each vCPU less those away from its memory, where that leaves any. uncrowded: or rather, as
    many as there are vCPUs: memory further away costs less than waiting.
    """
    found = list(vcpus)
    for part, nodes in zip(parts_of(machine, request), anchors(machine, request), strict=True):
        beside = set_of(nodes_mask(machine, nodes))
        least = len(part.vcpus) if uncrowded else 1
        for vcpu in part.vcpus:
            near = found[vcpu] & beside
            found[vcpu] = near if len(near) >= least else found[vcpu]
    return found


def warnings(machine: Machine, request: Request, vcpus: Sequence[frozenset[int]], how: str) -> list[str]:
    """What is bound elsewhere than its vCPUs may run. how: such as "affinity pins its vCPUs to"."""
    found = [f"warning: {line}" for line in missing(machine, request)]
    for number, (guest, beside) in enumerate(
        zip(request.guest_nodes, anchors(machine, request), strict=True)
    ):
        own = frozenset[int]().union(*(vcpus[vcpu] for vcpu in guest.cpus if vcpu < len(vcpus)))
        on = machine.topology.nodes_of(own)
        if guest.host_nodes <= machine.topology.node_by_id.keys() and beside and not on <= beside:
            found.append(
                f"warning: {guest.named(number)} binds memory to node {cpulist.format(guest.host_nodes)}, but"
                f" {how} node {cpulist.format(on)}"
            )
    return found


def short_of_memory(request: Request, room: Room) -> bool:
    """Whether guest nodes are bound to nodes that have not the memory for them."""
    wanted: dict[frozenset[int], int] = {}
    for guest in request.guest_nodes:
        if guest.host_nodes and guest.policy not in ("preferred", "interleave"):
            wanted[guest.host_nodes] = wanted.get(guest.host_nodes, 0) + guest.memory_mib
    return any(sum(room.free[node] for node in nodes) < size for nodes, size in wanted.items())
