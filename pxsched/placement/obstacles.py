"""What it would take to do better: which VMs are in the way of a node or an L3 group of its own."""

from collections.abc import Iterable, Sequence

from pxsched.host import cpulist
from pxsched.placement.machine import NO_NODE, set_of
from pxsched.placement.occupancy import Occupancy
from pxsched.placement.request import Request


def in_the_way(
    occupied: Occupancy, places: Iterable[tuple[str, int, int]], needed: int
) -> tuple[str, list[int], int] | None:
    """The place that fewest VMs keep from offering `needed` CPUs, those VMs, and their CPUs there.

    places: name, CPUs that could be had were it empty, CPUs that can be had now.
    """
    best: tuple[str, list[int], int] | None = None
    for name, whole, free in places:
        if whole.bit_count() < needed or free.bit_count() >= needed:
            continue
        found = _fewest(occupied, whole & ~free, needed - free.bit_count())
        if found and (best is None or (len(found[0]), found[1]) < (len(best[1]), best[2])):
            best = (name, *found)
    return best


def _fewest(occupied: Occupancy, held: int, missing: int) -> tuple[list[int], int] | None:
    """The fewest VMs that hold `missing` CPUs of `held`: the smallest one, else the largest together."""
    parts = sorted(
        ((mask & held).bit_count(), holding.vmid) for holding, mask in occupied.owned if mask & held
    )
    for size, vmid in parts:
        if size >= missing:
            return [vmid], size
    vmids: list[int] = []
    total = 0
    for size, vmid in reversed(parts):
        vmids.append(vmid)
        total += size
        if total >= missing:
            return sorted(vmids), total
    return None


def vms(vmids: Sequence[int]) -> str:
    """Such as `VM 101` or `VMs 101, 102 and 103`; a long list is cut."""
    return f"VM{'s' * (len(vmids) > 1)} {names([str(vmid) for vmid in vmids])}"


def names(found: Sequence[str]) -> str:
    """Such as `VM 101, container 102 and others`."""
    some = [*found[:6], *(["others"] if len(found) > 6 else [])]
    return some[0] if len(some) == 1 else f"{', '.join(some[:-1])} and {some[-1]}"


def cpus(mask: int) -> str:
    return cpulist.format(set_of(mask))


def nodes(found: Sequence[int]) -> str:
    """Such as `node 1` or `nodes 0-1`."""
    known = [node for node in found if node != NO_NODE]
    return f"node{'s' if len(known) > 1 else ''} {cpulist.format(known)}" if known else "no known node"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def fence(request: Request) -> str:
    """Who keeps CPUs from the VM's cgroup."""
    if request.fence is None:
        return ""
    return f"; {request.fence_name or 'its cgroup'} lets it have {cpulist.format(request.fence) or 'none'}"
