"""Whether a VM's memory fits: free memory, or free huge pages of the asked size, by node.

A node without CPUs (Optane, CXL, MCDRAM) serves nodes without memory, and others as their VM's policy has it.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

from pxsched.placement.machine import NO_NODE, Machine
from pxsched.placement.request import Host, Request
from pxsched.settings.policy import FarMemory
from pxsched.value import Value, replace

UNLIMITED = math.inf


class Room(Value):
    """The memory that one VM can have. free: MiB by node, unlimited where nothing is known; 0 on nodes that
    have none. reach: whether it may have that of nodes without CPUs (far), which comes last.
    tight: it is on no more nodes than its CPUs are, those that lend to nodes without memory included.
    """

    machine: Machine
    free: Mapping[int, float]
    far: frozenset[int]
    reach: bool = False
    tight: bool = False

    def of(self, nodes: Collection[int]) -> float:
        """MiB for a VM with CPUs on these nodes. What is lent to several of them is counted once."""
        found = [self.free[node] for node in self._reached(nodes)]
        return sum(sorted(found, reverse=True)[: len(nodes)] if self.tight else found)

    def remoteness(self, nodes: Collection[int], memory_mib: int) -> int:
        """How far such a VM's CPUs are from its memory on nodes without CPUs, in all."""
        if not self.reach:
            return 0
        distance = self.machine.topology.distance
        used = self.nodes(nodes, memory_mib) & self.far
        return sum(distance(node, far) for node in nodes if node != NO_NODE for far in used)

    def _reached(self, nodes: Iterable[int]) -> set[int]:
        found = set(nodes)
        if not found.isdisjoint(self.machine.bare):
            found = (found - self.machine.bare).union(self.machine.lenders)
        return found.union(self.far) if self.reach else found

    def most(self, node: int) -> float:
        """What a set of nodes has more, at most, for having this node in it; see `besides`."""
        return self._lent if node in self.machine.bare else self.free[node]

    @cached_property
    def besides(self) -> float:
        """What any set of nodes has besides."""
        return sum(self.free[node] for node in self.far) if self.reach else 0.0

    @cached_property
    def _lent(self) -> float:
        return sum(self.free[node] for node in self.machine.lenders)

    def nodes(self, nodes: Iterable[int], memory_mib: int) -> frozenset[int]:
        """The nodes that a VM with CPUs on `nodes` has its memory on: the same, and those that lend to them,
        the nearest first and as many as it takes.
        """
        own = {node for node in nodes if node != NO_NODE}
        found = own - self.machine.bare
        distance = self.machine.topology.distance

        def order(lender: int) -> tuple[bool, int, float, int]:
            near = min((distance(node, lender) for node in own), default=0)
            return (lender in self.far and self.reach, near, -self.free[lender], lender)

        for lender in sorted(self._reached(nodes) - found - {NO_NODE}, key=order):
            if found and sum(self.free[node] for node in found) >= memory_mib:
                break
            found.add(lender)
        return frozenset(found)


def room_of(machine: Machine, host: Host, request: Request) -> Room:
    """Where huge pages are known of some nodes and sizes, the others have none."""
    free: dict[int, float] = {
        node: _free_on(host, request, node) for node in {*machine.nodes, *machine.lenders, *machine.far}
    }
    free.update(dict.fromkeys(machine.bare, 0.0))
    allowed = machine.far if request.far_memory is not FarMemory.NEVER else ()
    return Room(
        machine,
        {node: free[node] for node in sorted(free)},
        frozenset(node for node in allowed if request.nodes is None or node in request.nodes),
    )


def rooms(machine: Machine, host: Host, request: Request) -> list[Room]:
    """From what a VM is given first to what it is given last."""
    near = room_of(machine, host, request)
    found = [replace(near, tight=True), near] if machine.bare else [near]
    return [*found, replace(near, reach=True)] if near.far else found


def free_memory(machine: Machine, host: Host, request: Request) -> Mapping[int, float]:
    """MiB by node that has memory."""
    free = room_of(machine, host, request).free
    return {node: free[node] for node in free if node not in machine.bare}


def _free_on(host: Host, request: Request, node: int) -> float:
    if request.hugepage_mib is None:
        return host.free_mib.get(node, UNLIMITED)
    if host.free_hugepages_mib:
        return host.free_hugepages_mib.get((node, request.hugepage_mib), 0)
    return UNLIMITED


def memory_nodes(machine: Machine, host: Host, request: Request, nodes: Iterable[int]) -> frozenset[int]:
    """Where a VM whose CPUs the admin chose has its memory."""
    return room_of(machine, host, request).nodes(nodes, request.memory_mib)


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


def describe(room: Room, nodes: Sequence[int]) -> str:
    """Such as `node 0 has 512 MiB free, node 2 (memory only) has 90 MiB free`."""
    return ", ".join(
        f"node {node}{' (memory only)' * (node in room.machine.far)} has"
        f" {'no memory' if node in room.machine.bare else f'{room.free[node]:.0f} MiB free'}"
        for node in nodes
        if node != NO_NODE and room.free[node] != UNLIMITED
    )
