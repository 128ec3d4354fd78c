"""Whether a VM's memory fits: free memory, or free huge pages of the asked size, by node."""

import math
from collections.abc import Iterable, Mapping

from pxsched.placement.machine import NO_NODE, Machine
from pxsched.placement.request import Host, Request

UNLIMITED = math.inf


def free_memory(machine: Machine, host: Host, request: Request) -> dict[int, float]:
    """MiB that each node with CPUs can give this VM; unlimited where nothing is known. Where huge pages are
    known of some nodes and sizes, the others have none.

    A node without memory of its own can give what the nodes without CPUs have.
    """
    lent = sum(_free_on(host, request, node) for node in machine.lenders)
    return {
        node: _free_on(host, request, node) if machine.memory_node[node] == node else lent
        for node in machine.nodes
    }


def _free_on(host: Host, request: Request, node: int) -> float:
    if request.hugepage_mib is None:
        return host.free_mib.get(node, UNLIMITED)
    if host.free_hugepages_mib:
        return host.free_hugepages_mib.get((node, request.hugepage_mib), 0)
    return UNLIMITED


def memory_nodes(machine: Machine, host: Host, request: Request, nodes: Iterable[int]) -> frozenset[int]:
    """The nodes that a VM with CPUs on `nodes` has its memory on: the same, or those that lend to them, the
    nearest first and as many as it takes.
    """
    own = [node for node in nodes if node != NO_NODE]
    found = {machine.memory_node[node] for node in own}
    bare = [node for node in own if machine.memory_node[node] != node]
    if bare:
        distance = machine.topology.distance
        for lender in sorted(machine.lenders, key=lambda node: (distance(bare[0], node), node)):
            if sum(_free_on(host, request, node) for node in found) >= request.memory_mib:
                break
            found.add(lender)
    return frozenset(found)


def divide(memory_mib: int, nodes: Iterable[int], free: Mapping[int, float]) -> dict[int, int]:
    """A VM's memory on its nodes: evenly, and what does not fit on one goes to the others."""
    left = sorted(nodes, key=lambda node: (free.get(node, UNLIMITED), node))
    shares: dict[int, int] = {}
    for position, node in enumerate(left):
        even = -(-memory_mib // (len(left) - position))
        shares[node] = int(min(even, max(0, free.get(node, UNLIMITED))))
        memory_mib -= shares[node]
    if left and memory_mib > 0:
        shares[left[-1]] += memory_mib
    return {node: shares[node] for node in sorted(shares)}


def describe(free: Mapping[int, float], nodes: Iterable[int]) -> str:
    """Such as `node 0 has 512 MiB free, node 1 has 90 MiB free`."""
    known = [f"node {node} has {free[node]:.0f} MiB free" for node in nodes if free[node] != UNLIMITED]
    return ", ".join(known)
