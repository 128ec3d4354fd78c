"""Whether a VM's memory fits: free memory, or free huge pages of the asked size, by node."""

import math
from collections.abc import Iterable, Mapping

from pxsched.placement.machine import Machine
from pxsched.placement.request import Host, Request

UNLIMITED = math.inf


def free_memory(machine: Machine, host: Host, request: Request) -> dict[int, float]:
    """MiB that each node with CPUs can give this VM; unlimited where nothing is known. Where huge pages are
    known of some nodes and sizes, the others have none.

    A node without memory of its own is not limited here: the kernel serves it from its neighbours.
    """
    size_mib = request.hugepage_mib
    lender = machine.memory_node
    free: dict[int, float] = {}
    for node in machine.nodes:
        if size_mib is not None and host.free_hugepages_mib:
            free[node] = host.free_hugepages_mib.get((lender[node], size_mib), 0)
        elif size_mib is not None or lender[node] != node:
            free[node] = UNLIMITED
        else:
            free[node] = host.free_mib.get(node, UNLIMITED)
    return free


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
