"""Why a VM is where it is, as a person reads it: what was chosen, what the next best was and why it lost,
and what it would take to do better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pxsched.host import cpulist
from pxsched.host.topology import CpuKind
from pxsched.placement import memory, obstacles
from pxsched.placement.machine import Machine, mask_of
from pxsched.placement.request import Request
from pxsched.settings.policy import Prefer, Smt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pxsched.placement.candidates import Search
    from pxsched.placement.occupancy import Occupancy
    from pxsched.placement.score import Candidate, Home, HomeScore, Score


def dedicated(
    search: Search,
    found: Sequence[Candidate],
    chosen: Candidate,
    order: Sequence[int],
    *,
    again: bool,
    other_group: Callable[[], Candidate | None],
) -> tuple[str, ...]:
    """order: the CPU of each vCPU. other_group: the best candidate without the chosen L3 group, for machines
    with one node to choose.
    """
    request, machine = search.request, search.machine
    lines = [
        f"{obstacles.count(request.vcpus, 'exclusive CPU')} {cpulist.format_ordered(order)} on"
        f" {_place(machine, chosen.nodes, chosen.mask)}"
    ]
    if again:
        lines.append("the same CPUs as when it last ran: nothing better is free")
    lines += _fenced(request)
    lines += _dedicated_warnings(search, chosen)
    lines += _devices(request, chosen.nodes)
    rivals = [candidate for candidate in found if candidate.nodes != chosen.nodes]
    rival = min(rivals, key=lambda candidate: candidate.score, default=None) or (
        other_group() if chosen.score.groups == 1 else None
    )
    if rival and not again:
        where = _place(machine, rival.nodes, rival.mask)
        lines.append(f"next best was {where}: {_why_not(chosen.score, rival.score)}")
    elif not again and len(machine.nodes) > len(chosen.nodes):
        one = len(chosen.nodes) == 1
        lines.append("no other node can hold it now" if one else "no other set of as few nodes is as good")
    lines += _better(search, chosen)
    return tuple(lines)


def _dedicated_warnings(search: Search, chosen: Candidate) -> list[str]:
    request, machine = search.request, search.machine
    lines = []
    mixed = [kind for kind in CpuKind if machine.kinds.get(kind, 0) & chosen.mask]
    if len(mixed) > 1:
        lines.append(
            "warning: mixes performance and efficiency cores: no kind alone has"
            f" {obstacles.count(request.vcpus, 'free CPU')} as near together"
        )
    elif (
        mixed
        and request.prefer in (Prefer.PERFORMANCE, Prefer.EFFICIENCY)
        and mixed[0].value != request.prefer.value
    ):
        lines.append(
            f"warning: wishes {request.prefer.value} cores; too few are free, these are {mixed[0].value}"
        )
    if chosen.split:
        lines.append("warning: a guest NUMA node fits on no host node and is divided over several")
    if chosen.score.joined and request.smt is Smt.SHARE:
        lines.append(
            f'shares {obstacles.count(chosen.score.joined, "core")} with other VMs, as smt = "share" allows'
        )
    odd = request.vcpus % machine.threads
    if request.smt is Smt.REQUIRE and odd:
        lines.append(f"{request.vcpus} vCPUs are no multiple of {machine.threads}: one core is used in part")
    floating = [
        vmid
        for other in search.occupied.floats
        if other.mask & chosen.mask & search.occupied.constrained
        for vmid in other.vmids
    ]
    everywhere = _everywhere(search)
    confined = search.occupied.confined_to(chosen.mask, everywhere)
    if confined:
        are = "is" if len(confined) == 1 else "are"
        lines.append(
            f"warning: {obstacles.names(confined)} {are} confined to some of these CPUs and will run there,"
            f" too: too few others are free"
        )
    else:
        others = search.occupied.confined_to(search.allowed, everywhere)
        if others:
            are = "is" if len(others) == 1 else "are"
            held = search.occupied.confined(everywhere) & search.allowed
            lines.append(
                f"keeps off CPUs {obstacles.cpus(held)}: {obstacles.names(others)} {are} confined there"
            )
    if floating:
        lines.append(f"warning: affinity lets {obstacles.vms(sorted(floating))} run on some of these CPUs")
    return lines


def _everywhere(search: Search) -> int:
    """The CPUs that somebody must be able to run on not to be confined."""
    machine, fence = search.machine, search.request.fence
    mask = machine.online & ~machine.isolated
    return mask if fence is None else mask & mask_of(fence)


def _devices(request: Request, nodes: Sequence[int]) -> list[str]:
    if not request.device_nodes:
        return []
    away = request.device_nodes.difference(nodes)
    if not away:
        return [f"its passed-through devices are on {obstacles.nodes(sorted(request.device_nodes))}"]
    return [f"warning: passed-through devices are on {obstacles.nodes(sorted(away))}, where no room was left"]


_ROOM = (
    "it would leave the nodes unevenly filled",
    "it would break into an L3 group that is still whole",
    "shared VMs are at home there",
    "it would leave more free CPUs over in its L3 group",
    "it is emptier, and stays whole for a larger VM",
)


def _why_not(best: Score, rival: Score) -> str:
    """The first rule by which the rival is worse."""
    if rival.nodes != best.nodes:
        return f"it spans {obstacles.count(rival.nodes, 'node')} instead of {best.nodes}"
    if rival.bare != best.bare:
        return f"{obstacles.count(rival.bare, 'node')} of it without memory"
    if rival.distance != best.distance:
        return f"its nodes are further apart (distances {rival.distance} instead of {best.distance} in all)"
    if rival.unevenness != best.unevenness:
        return "the vCPUs would be divided less evenly"
    if rival.devices != best.devices:
        return "it is further from the passed-through devices"
    if rival.groups != best.groups:
        return f"it spans {obstacles.count(rival.groups, 'L3 group')} instead of {best.groups}"
    if rival.kinds != best.kinds:
        return "it mixes kinds of CPU" if rival.kinds[0] else "its CPUs are of a kind less preferred"
    if rival.joined != best.joined:
        return f"it shares {obstacles.count(rival.joined, 'core')} with other VMs instead of {best.joined}"
    if rival.torn != best.torn:
        return "it would tear siblings of a core apart"
    for mine, theirs, text in zip(best.room, rival.room, _ROOM, strict=True):
        if mine != theirs:
            return text
    return "it is as good, and the lower number comes first"


def _better(search: Search, chosen: Candidate) -> list[str]:
    """What is in the way of fewer nodes, or else of fewer L3 groups."""
    machine, request, count = search.machine, search.request, search.request.vcpus
    if len(chosen.nodes) > 1:
        places = [
            (f"node {node}", search.allowed & machine.cpus[node], search.usable & machine.cpus[node])
            for node in machine.nodes
        ]
        found = obstacles.in_the_way(search.occupied, places, count)
        if found:
            return [f"one node would do without {obstacles.vms(found[1])} ({found[2]} CPUs on {found[0]})"]
        if all(place[1].bit_count() < count for place in places):
            return []
        short = [
            node
            for node, place in zip(machine.nodes, places, strict=True)
            if place[2].bit_count() >= count and search.room.of((node,)) < request.memory_mib
        ]
        numbers = memory.describe(search.room, short)
        return [f"one node has the CPUs but not {request.memory_mib} MiB: {numbers}"] if numbers else []
    if chosen.score.groups > 1:
        cells = [
            (f"L3 group {obstacles.cpus(cell.mask)}", search.allowed & cell.mask, search.usable & cell.mask)
            for cells in machine.cells.values()
            for cell in cells
        ]
        found = obstacles.in_the_way(search.occupied, cells, count)
        if found:
            return [
                f"one L3 group would do without {obstacles.vms(found[1])} ({found[2]} CPUs of {found[0]})"
            ]
    return []


def apart(machine: Machine, chosen: Home, request: Request) -> str:
    """The first line of `shared` where the vCPUs do not float in their home."""
    where = f"{obstacles.cpus(chosen.mask)}: {_place(machine, chosen.nodes, chosen.mask)}"
    return f"{obstacles.count(request.vcpus, 'vCPU')}, each on one of CPUs {where}"


def shared(
    machine: Machine,
    occupied: Occupancy,
    homes: Sequence[Home],
    chosen: Home,
    request: Request,
    allowed: int,
) -> tuple[str, ...]:
    """allowed: the CPUs that it may use, whoever else is there."""
    size = chosen.mask.bit_count()
    lines = [
        f"{obstacles.count(request.vcpus, 'vCPU')} float{'s' * (request.vcpus == 1)} on CPUs"
        f" {obstacles.cpus(chosen.mask)}: {_place(machine, chosen.nodes, chosen.mask)}"
    ]
    if size < request.vcpus:
        few = allowed.bit_count() < request.vcpus
        rest = (obstacles.fence(request) or ": it may use no other") if few else "; other VMs hold the rest"
        lines.append(f"warning: {request.vcpus} vCPUs share {obstacles.count(size, 'CPU')}{rest}")
    if all(machine.kinds.get(kind, 0) & chosen.mask for kind in CpuKind):
        lines.append("warning: its home mixes performance and efficiency cores: no kind alone holds it")
    lines += _devices(request, chosen.nodes)
    if not any(obstacles.fence(request) in line for line in lines):
        lines += _fenced(request)
    lines += _bound(request)
    neighbours = sorted(vmid for other in occupied.floats if other.mask & chosen.mask for vmid in other.vmids)
    foreign = [name for one in occupied.outsiders if one.mask & chosen.mask for name in one.names]
    others = ([obstacles.vms(neighbours)] if neighbours else []) + (
        [obstacles.names(foreign)] if foreign else []
    )
    lines.append(
        f"shares it with {' and '.join(others)}, demand {chosen.score.contention:.2f} per CPU in all"
        if others
        else "no other VM is at home there"
    )
    rivals = [home for home in homes if home.mask != chosen.mask]
    if rivals:
        rival = min(rivals, key=lambda home: home.score)
        where = _place(machine, rival.nodes, rival.mask)
        lines.append(f"next best was {where}: {_why_no_home(chosen.score, rival.score)}")
    return tuple(lines)


def _fenced(request: Request) -> list[str]:
    return [obstacles.fence(request).removeprefix("; ")] if request.fence is not None else []


def _bound(request: Request) -> list[str]:
    """Which nodes its guest nodes leave to choose from."""
    hosts = frozenset[int]().union(*(guest.host_nodes for guest in request.guest_nodes))
    return [f"its guest NUMA nodes bind its memory to {obstacles.nodes(sorted(hosts))}"] if hosts else []


def _why_no_home(best: HomeScore, rival: HomeScore) -> str:
    if rival.nodes != best.nodes:
        return f"it spans {obstacles.count(rival.nodes, 'node')} instead of {best.nodes}"
    if rival.distance != best.distance:
        return "its nodes are further apart"
    if rival.short != best.short:
        return "it has fewer CPUs than the VM has vCPUs"
    if rival.devices != best.devices:
        return "it is further from the passed-through devices"
    if rival.away != best.away:
        return "it is further from the VM's memory"
    if rival.groups != best.groups:
        return f"it spans {obstacles.count(rival.groups, 'L3 group')} instead of {best.groups}"
    if rival.crowd != best.crowd:
        return f"more demand there ({rival.contention:.2f} per CPU)"
    if rival.bare != best.bare:
        return "part of it has no memory of its own"
    if rival.kinds != best.kinds:
        return "it mixes kinds of CPU" if rival.kinds[0] else "its CPUs are of a kind less preferred"
    if rival.contention > best.contention:
        return f"more demand there ({rival.contention:.2f} per CPU)"
    if rival.contention < best.contention:
        return "it is no better"
    if rival.node_load != best.node_load:
        return "more is wanted of its node"
    if rival.missing_mib != best.missing_mib:
        return "its node has less free memory"
    return "it is as good, and comes later"


def far_memory(room: memory.Room, nodes: frozenset[int]) -> list[str]:
    """Which nodes without CPUs a VM has memory on, for want of other."""
    far = sorted(nodes & room.far) if room.reach else []
    if not far:
        return []
    return [f"memory on {obstacles.nodes(far)}, too, of the nodes without CPUs: the others cannot hold it"]


def _place(machine: Machine, nodes: Sequence[int], mask: int) -> str:
    """Such as `node 1, in one L3 group (36-39,100-103)`."""
    named = obstacles.nodes(nodes)
    groups = machine.groups_of(mask)
    if any(group < 0 for group in groups) or len(machine.whole_group) == 1:
        return named
    if len(groups) == 1:
        whole = machine.whole_group[next(iter(groups))]
        return f"{named}, in one L3 group ({obstacles.cpus(whole)})" if len(nodes) == 1 else named
    return f"{named}, in {len(groups)} L3 groups"
