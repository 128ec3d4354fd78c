"""Why a VM cannot be placed: the rule that keeps it, the numbers, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pxsched.host import cpulist
from pxsched.placement import memory, obstacles
from pxsched.placement.machine import NO_NODE, Machine
from pxsched.placement.request import Host, Refused, Request
from pxsched.placement.supply import usable_for
from pxsched.settings.policy import FarMemory, Smt

if TYPE_CHECKING:
    from pxsched.placement.candidates import Search


def refusal(search: Search, allowed: int) -> Refused:
    """Which rule keeps a dedicated VM from being placed, and the numbers."""
    request, machine = search.request, search.machine
    usable, count = search.usable, request.vcpus
    if usable.bit_count() >= count:
        return memory_refusal(machine, search.host, request)
    if request.smt is Smt.REQUIRE and machine.threads == 1:
        return Refused(
            'smt = "require", but no core has siblings online: SMT is off, or these CPUs have none',
            hint='smt = "prefer" takes cores without siblings, too',
        )
    if request.smt is Smt.REQUIRE and allowed and not usable_for(machine, allowed, 0, request.smt):
        return Refused(
            f'smt = "require", but no core is among CPUs {obstacles.cpus(allowed)} with all its siblings:'
            f" that is all it may use{_limit(machine, request)}",
            hint='smt = "prefer" takes single siblings, too',
        )
    wanted = {
        Smt.PREFER: "exclusive CPUs on cores that no other VM has part of",
        Smt.REQUIRE: "exclusive CPUs on whole cores with siblings",
        Smt.ISOLATE: "whole cores",
        Smt.SHARE: "exclusive CPUs",
    }[request.smt]
    numbers = ", ".join(
        f"node {node} has {(usable & machine.cpus[node]).bit_count()}"
        for node in machine.nodes
        if node != NO_NODE and allowed & machine.cpus[node]
    )
    there = usable.bit_count()
    free = f"{there} {'is' if there == 1 else 'are'} free" + (f" ({numbers})" if numbers else "")
    obstacle = obstacles.in_the_way(search.occupied, [("", allowed, usable)], count)
    limit = _limit(machine, request)
    return Refused(
        f"needs {count} {wanted if machine.threads > 1 else 'exclusive CPUs'}; {free}"
        f" of {obstacles.count(allowed.bit_count(), 'CPU')} it may use{limit}",
        hint=f"{obstacles.vms(obstacle[1])} would have to stop" if obstacle else None,
    )


def _limit(machine: Machine, request: Request) -> str:
    """Which list of the admin's narrows the choice, and what of it is not there."""
    listed = frozenset(request.affinity)
    policy = [
        f"{name} {cpulist.format(value)}"
        for name, value in (
            ("cpus", None if request.cpus == listed else request.cpus),
            ("nodes", request.nodes),
        )
        if value
    ]
    limits = [f"policy: {', '.join(policy)}"] if policy else []
    if listed:
        limits.append(f"{request.affinity_name} {cpulist.format(listed)}")
    if away := (listed | (request.cpus or frozenset())) - machine.topology.online:
        limits.append(f"offline or absent {cpulist.format(away)}")
    said = f" ({'; '.join(limits)})" if limits else ", housekeeping and isolated CPUs left out"
    return said + obstacles.fence(request)


def no_cpu_left(machine: Machine, request: Request, allowed: int, beside: int) -> Refused:
    """Why a shared VM finds no CPU. beside: the CPUs near the memory that guest nodes are bound to."""
    if allowed and not allowed & beside:
        hosts = frozenset[int]().union(*(guest.host_nodes for guest in request.guest_nodes))
        return Refused(
            f"guest NUMA nodes bind its memory to {obstacles.nodes(sorted(hosts))}, where it may use no CPU:"
            f" CPUs {obstacles.cpus(allowed)} are left to it{_limit(machine, request)}"
        )
    return Refused(
        f"no CPU is left for a shared VM: {(allowed & beside).bit_count()} may be used"
        f"{obstacles.fence(request) if allowed else _limit(machine, request)}"
        f"{', all of them dedicated to other VMs' if allowed else ''}",
        hint="stop a dedicated VM, or give the VM other CPUs" if allowed else None,
    )


def memory_refusal(machine: Machine, host: Host, request: Request) -> Refused:
    room = memory.room_of(machine, host, request)
    pages = "" if request.hugepage_mib is None else f" in huge pages of {request.hugepage_mib} MiB"
    if request.guest_nodes:
        wishes = ", ".join(
            f"{guest.named(number)} needs {obstacles.count(len(guest.cpus), 'CPU')}"
            f" and {guest.memory_mib} MiB"
            + (f" on node {cpulist.format(guest.host_nodes)}" if guest.host_nodes else "")
            for number, guest in enumerate(request.guest_nodes)
        )
        return Refused(f"guest nodes fit on no host nodes: {wishes}{pages}; {_state(machine, room)}")
    never = request.far_memory is FarMemory.NEVER and machine.far
    return Refused(
        f"needs {request.memory_mib} MiB{pages}; {_state(machine, room)}",
        hint='far_memory = "last" lets it have that of nodes without CPUs' if never else None,
    )


def _state(machine: Machine, room: memory.Room) -> str:
    return (
        memory.describe(room, (*machine.nodes, *machine.far))
        or "memory is not the limit, CPUs on these nodes are"
    )
