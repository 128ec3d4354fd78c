"""Why a VM is where it is, as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pxsched.host import cpulist
from pxsched.placement import memory
from pxsched.placement.machine import NO_NODE, Machine, set_of
from pxsched.placement.request import Host, Refused, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pxsched.placement.dedicated import Candidate, Search
    from pxsched.placement.occupancy import Occupancy
    from pxsched.placement.shared import Home


def dedicated(
    search: Search, found: Sequence[Candidate], chosen: Candidate, *, again: bool
) -> tuple[str, ...]:
    cpus = cpulist.format_ordered(chosen.vcpus)
    where = _nodes(chosen.nodes)
    return (f"{len(chosen.vcpus)} exclusive CPUs {cpus} on {where}",)


def shared(
    machine: Machine, occupied: Occupancy, homes: Sequence[Home], chosen: Home, request: Request
) -> tuple[str, ...]:
    return (f"{request.vcpus} vCPUs float on {cpulist.format(set_of(chosen.mask))}, {_nodes(chosen.nodes)}",)


def refusal(search: Search, host: Host, allowed: int) -> Refused:
    """Which rule keeps a dedicated VM from being placed, and the numbers."""
    request, machine = search.request, search.machine
    free = search.usable
    if free.bit_count() < request.vcpus:
        parts = [f"node {node} has {(free & machine.cpus[node]).bit_count()}" for node in machine.nodes]
        return Refused(
            f"needs {request.vcpus} exclusive CPUs (smt {request.smt.value}); {free.bit_count()} of"
            f" {allowed.bit_count()} allowed ones are free: {', '.join(parts)}"
        )
    return memory_refusal(machine, host, request)


def memory_refusal(machine: Machine, host: Host, request: Request) -> Refused:
    free = memory.free_memory(machine, host, request)
    return Refused(
        f"needs {request.memory_mib} MiB; {memory.describe(free, machine.nodes)}",
    )


def _nodes(nodes: Sequence[int]) -> str:
    known = [node for node in nodes if node != NO_NODE]
    return f"node{'s' if len(known) > 1 else ''} {cpulist.format(known)}"
