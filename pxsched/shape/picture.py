"""Who shares what among a VM's vCPUs: cores, L3 groups and NUMA nodes, as they are or as a guest sees them.

Rules: Linux arch/x86/kernel/cpu/cacheinfo.c and topology, tried with the models that Proxmox offers.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from pxsched.guest.arguments import Smp
from pxsched.host.topology import CpuKind, Topology
from pxsched.shape.cpumodel import Groups, Traits
from pxsched.shape.smp import apic_id, place
from pxsched.value import Value

Parts = tuple[int, ...]
"""By vCPU the first one that it shares something with."""


class Picture(Value):
    cores: Parts
    l3s: Parts
    nodes: Parts


class Seat(NamedTuple):
    """The CPU a vCPU is pinned to, and what that is part of. cell: its L3 group, as far as on its node."""

    cpu: int
    core: int
    cell: tuple[int, int]
    node: int
    package: int
    kind: CpuKind | None


def parts(keys: Iterable[Hashable]) -> Parts:
    first: dict[Hashable, int] = {}
    return tuple(first.setdefault(key, index) for index, key in enumerate(keys))


def runs(of: Sequence[int]) -> list[list[int]]:
    """The vCPUs of each part, in the order of their first ones."""
    found: dict[int, list[int]] = {}
    for index, part in enumerate(of):
        found.setdefault(part, []).append(index)
    return list(found.values())


def seats(topology: Topology, cpus: Iterable[int]) -> tuple[Seat, ...]:
    """By vCPU. A CPU without L3 belongs to its node's group; what the kernel does not say is one for all."""
    return tuple(_seat(topology, cpu) for cpu in cpus)


def _seat(topology: Topology, number: int) -> Seat:
    cpu = topology.cpus[number]
    node = -1 if cpu.node is None else cpu.node
    core = -1 - number if cpu.core is None else cpu.core
    package = -1 if cpu.package is None else cpu.package
    return Seat(number, core, (node, -1 if cpu.l3 is None else cpu.l3), node, package, cpu.kind)


def truth(where: Sequence[Seat]) -> Picture:
    """How it is on the host."""
    return Picture(
        parts(seat.core for seat in where),
        parts(seat.cell for seat in where),
        parts(seat.node for seat in where),
    )


def seen(smp: Smp, nodes: Mapping[int, int], traits: Traits) -> Picture:
    """What the guest makes of it. nodes: by vCPU its guest node; QEMU puts the unlisted ones into node 0."""
    cores = (place(smp, index)[:3] if traits.siblings else index for index in range(smp.cpus))
    return Picture(
        parts(cores),
        parts(_group(smp, index, traits.groups) for index in range(smp.cpus)),
        parts(nodes.get(index, 0) for index in range(smp.cpus)),
    )


def _group(smp: Smp, index: int, groups: Groups) -> Hashable:
    if groups is Groups.EIGHTS:
        return apic_id(smp, index) >> 3
    return place(smp, index)[: 2 if groups is Groups.DIES else 1]
