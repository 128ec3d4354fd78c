"""Guest nodes and sockets of a VM whose vCPUs float over several nodes: each stays on nodes of its own, in
order, so that what the guest takes for near is near.
"""

from collections.abc import Iterator, Sequence

from pxsched.host import cpulist
from pxsched.placement import obstacles
from pxsched.placement.layout import parts_of, sockets
from pxsched.placement.machine import Machine, mask_of, set_of
from pxsched.placement.occupancy import nodes_mask
from pxsched.placement.request import Request


def kept(
    machine: Machine, request: Request, vcpus: Sequence[frozenset[int]]
) -> tuple[tuple[frozenset[int], ...], list[str]]:
    """The CPUs of each vCPU less those on the nodes of others, and what is to be said. All as it is where the
    guest has but one group, where they do not come out even, or do not fit.

    vcpus: the CPUs among which each would float.
    """
    groups = _groups(machine, request)
    nodes = sorted(machine.nodes_of(mask_of(frozenset().union(*vcpus)))) if len(groups) > 1 else []
    if len(nodes) < 2 or len(set(vcpus)) > 1:
        return tuple(vcpus), []
    found, said = list(vcpus), []
    for group, own in _dealt(groups, nodes):
        cpus = vcpus[0] & set_of(nodes_mask(machine, frozenset(own)))
        if len(cpus) < len(group):
            return tuple(vcpus), []
        for vcpu in group:
            found[vcpu] = cpus
        said.append(f"vCPUs {cpulist.format(group)} on {obstacles.nodes(own)}")
    if not said:
        return tuple(vcpus), []
    what = "guest nodes" if request.guest_nodes else "sockets"
    return tuple(found), [f"its {what} stay apart, in order: {', '.join(said)}"]


def _groups(machine: Machine, request: Request) -> list[tuple[int, ...]]:
    """The vCPUs of each guest node, else of each socket; none where the memory of guest nodes is bound."""
    parts = parts_of(machine, request)
    if any(part.hosts is not None for part in parts):
        return []
    size = sockets(request)
    whole = range(0, request.vcpus, size) if size and not parts else ()
    return [part.vcpus for part in parts if part.vcpus] or [
        tuple(range(first, first + size)) for first in whole
    ]


def _dealt(
    groups: Sequence[tuple[int, ...]], nodes: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """As many groups for each node, or nodes for each group, in order; nothing where that is not even."""
    if len(groups) % len(nodes) and len(nodes) % len(groups):
        return
    ways = min(len(groups), len(nodes))
    for way in range(ways):
        members = groups[way * len(groups) // ways : (way + 1) * len(groups) // ways]
        own = nodes[way * len(nodes) // ways : (way + 1) * len(nodes) // ways]
        yield tuple(vcpu for group in members for vcpu in group), tuple(own)
