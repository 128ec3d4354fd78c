"""A topology as bit masks, so that the search asks "which of these CPUs" with one machine instruction.

Bit N of a mask is logical CPU N. Tables are built once for a topology and kept while it is in use.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from pxsched.host.topology import CpuKind, Topology
from pxsched.value import Value

NO_NODE = 1 << 30  # of CPUs that no NUMA node claims; comes after all nodes, never shown


def mask_of(cpus: Iterable[int]) -> int:
    mask = 0
    for cpu in cpus:
        mask |= 1 << cpu
    return mask


def bits(mask: int) -> Iterator[int]:
    """The CPUs of a mask, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def set_of(mask: int) -> frozenset[int]:
    return frozenset(bits(mask))


class Cell(Value):
    """The CPUs of one L3 group on one node: the whole L3, but for sub-NUMA clustering.

    group: names the L3; CPUs without one form a group per node. cores: masks of its cores, in order.
    """

    node: int
    group: int
    mask: int
    cores: tuple[int, ...]
    size_bytes: int


class Machine(Value):
    """Masks of online CPUs only.

    threads: most siblings that any core has. nodes: ids of nodes with CPUs, cpus: their masks.
    """

    topology: Topology
    online: int
    isolated: int
    cores: tuple[int, ...]
    core_of: dict[int, int]
    threads: int
    nodes: tuple[int, ...]
    cpus: dict[int, int]
    cells: dict[int, tuple[Cell, ...]]
    kinds: dict[CpuKind, int]

    def spread(self, mask: int) -> int:
        """The mask with all siblings of its CPUs."""
        if self.threads == 1:
            return mask
        for core in self.cores:
            if core & mask:
                mask |= core
        return mask

    def nodes_of(self, mask: int) -> frozenset[int]:
        return self.sites_of(mask) - {NO_NODE}

    def sites_of(self, mask: int) -> frozenset[int]:
        """Their nodes, NO_NODE among them where no node claims some of these CPUs."""
        return frozenset(node for node in self.nodes if self.cpus[node] & mask)

    def groups_of(self, mask: int) -> frozenset[int]:
        """The L3 groups that these CPUs belong to."""
        return frozenset(cell.group for cells in self.cells.values() for cell in cells if cell.mask & mask)

    @cached_property
    def whole_group(self) -> dict[int, int]:
        """All CPUs of each L3 group, over all nodes."""
        whole: dict[int, int] = defaultdict(int)
        for cells in self.cells.values():
            for cell in cells:
                whole[cell.group] |= cell.mask
        return dict(whole)

    @cached_property
    def lenders(self) -> tuple[int, ...]:
        """The nodes that have memory, which serve CPUs on nodes without any."""
        return tuple(node.id for node in self.topology.nodes if node.memory_bytes != 0)

    @cached_property
    def far(self) -> tuple[int, ...]:
        """The nodes that have memory and no CPU."""
        return tuple(node for node in self.lenders if node not in self.cpus)

    @cached_property
    def bare(self) -> frozenset[int]:
        """The nodes that have CPUs and no memory; CPUs that no node claims are one of them."""
        return frozenset(self.cpus).difference(self.lenders) if self.lenders else frozenset()

    def memory_of(self, cpus: frozenset[int]) -> frozenset[int]:
        """Where the memory of a VM on these CPUs belongs."""
        return frozenset(self.memory_node[node] for node in self.sites_of(mask_of(cpus))) - {NO_NODE}

    @cached_property
    def memory_node(self) -> dict[int, int]:
        """For each node with CPUs, where its memory is: itself, or the nearest node that lends it some."""
        distance = self.topology.distance
        return {
            node: min(self.lenders, key=lambda other: (distance(node, other), other))
            if node in self.bare
            else node
            for node in self.nodes
        }

    @cached_property
    def pair(self) -> dict[tuple[int, int], int]:
        """The distance of two nodes with CPUs, there and back, by both, the lower one first."""
        distance = self.topology.distance
        return {
            (one, other): distance(one, other) + distance(other, one)
            for position, one in enumerate(self.nodes)
            for other in self.nodes[position + 1 :]
        }


# The tables of the topologies asked for last; a process knows one machine, or those of a cluster.
_known: list[Machine] = []
_MOST_KNOWN = 64


def machine_of(topology: Topology) -> Machine:
    """The tables of a topology; the same object for the same topology object."""
    for machine in _known:
        if machine.topology is topology:
            return machine
    machine = _build(topology)
    _known.insert(0, machine)
    del _known[_MOST_KNOWN:]
    return machine


def _build(topology: Topology) -> Machine:
    online = isolated = 0
    cores: dict[object, int] = defaultdict(int)
    node_masks: dict[int, int] = defaultdict(int)
    cell_masks: dict[tuple[int, int], int] = defaultdict(int)
    kinds: dict[CpuKind, int] = defaultdict(int)
    for cpu in topology.cpus.values():
        if not cpu.online:
            continue
        bit = 1 << cpu.id
        online |= bit
        cores[("alone", cpu.id) if cpu.core is None else cpu.core] |= bit
        node = NO_NODE if cpu.node is None else cpu.node
        node_masks[node] |= bit
        cell_masks[node, -2 - node if cpu.l3 is None else cpu.l3] |= bit
        if cpu.kind is not None:
            kinds[cpu.kind] |= bit
    isolated = mask_of(topology.isolated)
    ordered = sorted(cores.values(), key=lambda core: core & -core)
    core_of = {cpu: core for core in ordered for cpu in bits(core)}
    sizes = {l3.id: l3.size_bytes or 0 for l3 in topology.l3s}
    cells: dict[int, list[Cell]] = defaultdict(list)
    for (node, group), mask in sorted(cell_masks.items(), key=lambda item: item[1] & -item[1]):
        cells[node].append(Cell(node, group, mask, _cores_in(mask, core_of), sizes.get(group, 0)))
    return Machine(
        topology=topology,
        online=online,
        isolated=isolated & online,
        cores=tuple(ordered),
        core_of=core_of,
        threads=max((core.bit_count() for core in ordered), default=1),
        nodes=tuple(sorted(node_masks)),
        cpus=dict(node_masks),
        cells={node: tuple(found) for node, found in cells.items()},
        kinds=dict(kinds),
    )


def _cores_in(mask: int, core_of: dict[int, int]) -> tuple[int, ...]:
    found: list[int] = []
    left = mask
    while left:
        core = core_of[(left & -left).bit_length() - 1]
        found.append(core & mask)
        left &= ~core
    return tuple(found)


def remoteness(machine: Machine, nodes: Sequence[int], devices: Iterable[int]) -> int:
    """SLIT distance from each device's node to the nearest of `nodes`, above the local distance."""
    distance = machine.topology.distance
    return sum(
        min(distance(device, node) for node in nodes) - distance(device, device)
        for device in devices
        if nodes and device not in nodes
    )
