"""Kinds of CPU on one machine: fast ones and frugal ones, and what is only a spread of one kind.

Rules: Documentation/ABI/testing/sysfs-devices-system-cpu (cpu_capacity), sysfs-bus-event_source (Intel's two
PMUs). AMD's driver multiplies the highest frequency by each core's rank among preferred cores
(Documentation/admin-guide/pm/amd-pstate.rst): equal cores then differ by a third, in small steps.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import pairwise

from pxsched.errors import UserError
from pxsched.host import cpulist
from pxsched.root import Root

CPU_DIR = "sys/devices/system/cpu"
# Favoured cores of one kind differ by a few per cent; two kinds have a fifth and more between them.
LEAST_GAP = 0.15


class CpuKind(StrEnum):
    PERFORMANCE = "performance"
    EFFICIENCY = "efficiency"


def kinds(
    root: Root,
    leaders: Iterable[int],
    siblings: Mapping[int, frozenset[int]],
    max_khz: Mapping[int, int | None],
) -> dict[int, CpuKind]:
    """The kind of each CPU where there are two: by Intel's PMUs, else cpu_capacity, else frequency where the
    cores differ in something else, too.

    leaders: the first CPU of each core.
    """
    performance = _cpus(root, "sys/devices/cpu_core/cpus")
    efficiency = _cpus(root, "sys/devices/cpu_atom/cpus")
    if performance and efficiency:
        efficiency |= _cpus(root, "sys/devices/cpu_lowpower/cpus")
        found = dict.fromkeys(performance, CpuKind.PERFORMANCE)
        return found | dict.fromkeys(efficiency, CpuKind.EFFICIENCY)
    leaders = tuple(leaders)
    by_capacity = root.exists(f"{CPU_DIR}/cpu{leaders[0]}/cpu_capacity")
    if by_capacity:
        rated = {cpu: _number(root.read(f"{CPU_DIR}/cpu{cpu}/cpu_capacity")) for cpu in leaders}
    else:
        rated = {cpu: max_khz.get(cpu) or 0 for cpu in leaders}
    for bound in _bounds(rated.values()):
        slow = frozenset(cpu for cpu in leaders if rated[cpu] < bound)
        fast = frozenset(leaders) - slow
        if by_capacity or _differ(root, siblings, fast, slow):
            return {
                cpu: CpuKind.EFFICIENCY if leader in slow else CpuKind.PERFORMANCE
                for leader in leaders
                for cpu in siblings[leader]
            }
    return {}


def _bounds(ratings: Iterable[int]) -> list[int]:
    """The ratings from which on a core may be a fast one: above each gap, the widest first. Where there are
    three kinds, the two lower ones may be further apart than the upper two.
    """
    steps = sorted(set(ratings))
    if not steps[0]:
        return []  # unknown of some
    gaps = sorted(((upper - lower, upper) for lower, upper in pairwise(steps)), reverse=True)
    return [upper for gap, upper in gaps if gap >= LEAST_GAP * steps[-1]]


def _differ(
    root: Root, siblings: Mapping[int, frozenset[int]], fast: frozenset[int], slow: frozenset[int]
) -> bool:
    """Whether cores of the two groups are built differently: siblings, caches, nominal frequency."""
    files = (
        "cache/index2/size",
        "cache/index3/size",
        "cpufreq/base_frequency",
        "acpi_cppc/nominal_freq",
    )
    for name in files:
        values = [{root.read(f"{CPU_DIR}/cpu{cpu}/{name}") for cpu in group} for group in (fast, slow)]
        if None not in values[0] | values[1] and values[0].isdisjoint(values[1]):
            return True
    threads = [{len(siblings[cpu]) for cpu in group} for group in (fast, slow)]
    sharers = [
        {len(_cpus(root, f"{CPU_DIR}/cpu{cpu}/cache/index2/shared_cpu_list")) for cpu in group}
        for group in (fast, slow)
    ]
    return threads[0].isdisjoint(threads[1]) or sharers[0].isdisjoint(sharers[1])


def _cpus(root: Root, path: str) -> frozenset[int]:
    try:
        return cpulist.parse(root.read(path) or "")
    except UserError:
        return frozenset()


def _number(text: str | None) -> int:
    try:
        return int(text or "0")
    except ValueError:
        return 0
