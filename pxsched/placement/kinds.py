"""Which CPUs a VM should rather have where a machine has several kinds: by core type, L3 or frequency."""

from collections import defaultdict

from pxsched.host.topology import CpuKind
from pxsched.placement.machine import Machine, bits
from pxsched.settings.policy import Prefer
from pxsched.value import Value

# Favoured cores come in a few steps; finer differences are not worth a search each.
MOST_CLASSES = 6


class Variant(Value):
    """A subset of the CPUs to search in. rank: (kinds mixed, how far from the preferred class)."""

    rank: tuple[int, int]
    mask: int


def variants(machine: Machine, prefer: Prefer, usable: int) -> list[Variant]:
    """From the most to the least wanted subset; the last is everything."""
    found: list[Variant] = []
    classes = _classes(machine, prefer)
    for mixed, kind_rank, kind in _by_kind(machine, prefer):
        reached = 0
        for position, members in enumerate(classes):
            reached |= members
            mask = usable & kind & reached
            if mask and (not found or all(mask != other.mask for other in found)):
                found.append(Variant((mixed, kind_rank if len(classes) == 1 else position), mask))
    return found


def _by_kind(machine: Machine, prefer: Prefer) -> list[tuple[int, int, int]]:
    """(mixed, rank, CPUs): each kind alone, then all together."""
    fast = machine.kinds.get(CpuKind.PERFORMANCE, 0)
    slow = machine.kinds.get(CpuKind.EFFICIENCY, 0)
    if not fast or not slow:
        return [(0, 0, machine.online)]
    order = (slow, fast) if prefer is Prefer.EFFICIENCY else (fast, slow)
    return [(0, 0, order[0]), (0, 1, order[1]), (1, 0, machine.online)]


def _classes(machine: Machine, prefer: Prefer) -> list[int]:
    """CPUs by the wanted property, best first; one class where it makes no difference."""
    by_value: dict[int, int] = defaultdict(int)
    if prefer is Prefer.CACHE:
        for cells in machine.cells.values():
            for cell in cells:
                by_value[cell.size_bytes] |= cell.mask
    elif prefer is Prefer.FREQUENCY:
        for cpu in bits(machine.online):
            by_value[machine.topology.cpus[cpu].max_khz or 0] |= 1 << cpu
    if len(by_value) < 2:
        return [machine.online]
    ordered = [by_value[value] for value in sorted(by_value, reverse=True)]
    rest = 0
    for members in ordered[MOST_CLASSES - 1 :]:
        rest |= members
    return [*ordered[: MOST_CLASSES - 1], rest]
