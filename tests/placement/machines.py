"""Machines made of a few numbers or of a table, requests, and the questions tests ask of an answer."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from pxsched.host import cpulist
from pxsched.host.topology import L3, Cpu, CpuKind, Node, Package, Topology, read
from pxsched.placement.request import GuestNode, Holding, Host, Placement, Request, VmClass
from pxsched.root import Root
from pxsched.settings.policy import Smt

CORPORA = Path(os.environ["PXSCHED_CORPORA"])


def from_table(
    rows: Iterable[tuple[int, int, int, int | None, int]],
    *,
    distances: dict[tuple[int, int], int] | None = None,
    kinds: dict[int, CpuKind] | None = None,
    sizes: dict[int, int] | None = None,
    khz: dict[int, int] | None = None,
    isolated: Iterable[int] = (),
    offline: Iterable[int] = (),
) -> Topology:
    """rows: CPU, core, node, L3 (None: it has none), package."""
    table = list(rows)
    gone = frozenset(offline)
    alive = [row for row in table if row[0] not in gone]

    def members(column: int, value: int | None) -> frozenset[int]:
        return frozenset(row[0] for row in alive if row[column] == value)

    def values(column: int) -> list[int]:
        return sorted({row[column] for row in table if row[column] is not None})  # type: ignore[type-var]

    nodes = values(2)
    return Topology(
        cpus={
            cpu: Cpu(
                cpu,
                cpu not in gone,
                core,
                l3,
                node,
                package,
                members(1, core),
                (kinds or {}).get(cpu),
                (khz or {}).get(cpu),
            )
            for cpu, core, node, l3, package in sorted(table)
        },
        l3s=tuple(L3(l3, members(3, l3), (sizes or {}).get(l3, 32 << 20)) for l3 in values(3)),
        nodes=tuple(
            Node(
                node,
                members(2, node),
                64 << 30,
                {other: (distances or {}).get((node, other), 10 if other == node else 20) for other in nodes},
            )
            for node in nodes
        ),
        packages=tuple(Package(package, members(4, package)) for package in values(4)),
        isolated=frozenset(isolated),
    )


def machine(nodes: int = 2, l3s: int = 2, cores: int = 4, threads: int = 2, **more) -> Topology:
    """`cores` in each of `l3s` groups of each node; thread t of core c is CPU c + t * (number of cores)."""
    total = nodes * l3s * cores
    return from_table(
        (
            (
                core + thread * total,
                core,
                core // (l3s * cores),
                core // cores,
                core // (l3s * cores),
            )
            for core in range(total)
            for thread in range(threads)
        ),
        **more,
    )


def epyc(nodes: int, cores: int = 4, *, quadrants: bool = False, **more) -> Topology:
    """Two sockets whose firmware shows each L3 as a NUMA node ("L3 as NUMA domain"), siblings half the
    machine apart. quadrants: nodes of a quarter of a socket are nearer, as some firmware has it.
    """
    half = nodes // 2

    def distance(one: int, other: int) -> int:
        if one == other:
            return 10
        if one // half != other // half:
            return 32
        return 12 if quadrants and one // max(1, half // 4) != other // max(1, half // 4) else 11

    pairs = ((one, other) for one in range(nodes) for other in range(nodes))
    return machine(nodes, 1, cores, 2, distances={pair: distance(*pair) for pair in pairs}, **more)


def wish(vcpus: int, vmid: int = 100, vm_class: VmClass = VmClass.DEDICATED, memory_mib: int = 1024, **more):
    return Request(vmid, vcpus, memory_mib, vm_class, **more)


def held(cpus: str, vmid: int = 900, vm_class: VmClass = VmClass.DEDICATED, smt: Smt = Smt.PREFER, **more):
    """A VM that has these CPUs, one for each vCPU; all of them for each if it floats."""
    ordered = cpulist.parse_ordered(cpus)
    if vm_class in (VmClass.SHARED, VmClass.CONSTRAINED):
        return Holding(vmid, vm_class, (frozenset(ordered),) * more.pop("vcpus", len(ordered)), smt, **more)
    return Holding(vmid, vm_class, tuple(frozenset((cpu,)) for cpu in ordered), smt, **more)


def holding_of(placement: Placement, request: Request) -> Holding:
    return Holding(placement.vmid, placement.vm_class, placement.vcpus, request.smt, request.weight)


def guest_node(cpus: str, memory_mib: int = 1024, host: str = "", policy: str = "") -> GuestNode:
    return GuestNode(cpulist.parse(cpus), memory_mib, cpulist.parse(host), policy)


def l3s_of(topology: Topology, cpus: Iterable[int]) -> set[object]:
    """L3 groups; CPUs without an L3 are one group a node."""
    found = (topology.cpus[cpu] for cpu in cpus)
    return {("node", cpu.node) if cpu.l3 is None else cpu.l3 for cpu in found}


def cores_of(topology: Topology, cpus: Iterable[int]) -> set[int | None]:
    return {topology.cpus[cpu].core for cpu in cpus}


def half_used_cores(topology: Topology, cpus: Iterable[int]) -> int:
    own = frozenset(cpus)
    return len({core for core in (topology.cpus[cpu].siblings for cpu in own) if not core <= own})


def host(topology: Topology, housekeeping: str = "", **more) -> Host:
    return Host(topology, cpulist.parse(housekeeping), **more)


@functools.cache
def captured(topologies: Path, name: str) -> Topology:
    """One of the captured machines."""
    return read(Root(str(topologies / name / "root")))
