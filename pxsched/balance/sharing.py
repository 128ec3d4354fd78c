"""How a host's scheduler deals CPU time out among VMs whose homes may overlap.

The model is weighted max-min fairness, which is what the kernel's fair scheduler approaches for groups of
tasks with weights (Documentation/scheduler/sched-design-CFS.rst): everyone's share rises in proportion to
its weight until it has what it wants or the CPUs it may use are full. CPU sets are bit masks here, because
they are intersected a great deal.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pxsched.value import NOTHING

# Homes that overlap without one containing the other need their unions looked at, too; beyond this many
# sets only the largest unions are, which makes the model a little too hopeful.
_MOST_REGIONS = 96


class Claim(NamedTuple):
    """One party. demand: in CPUs, what it would use; mask: the CPUs it may use."""

    demand: float
    weight: float
    mask: int


def mask_of(cpus: Iterable[int]) -> int:
    mask = 0
    for cpu in cpus:
        mask |= 1 << cpu
    return mask


def cpus_of(mask: int) -> frozenset[int]:
    return frozenset(cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1)


def level(claims: Iterable[Claim], capacity: float) -> float:
    """The height to which equal water rises: the sum of min(demand, level x weight) is the capacity.

    Infinite when everyone is satisfied. claims: in ascending order of demand / weight.
    """
    claims = list(claims)
    weight = sum(claim.weight for claim in claims)
    for claim in claims:
        if capacity <= 0:
            return 0.0
        if claim.demand * weight > capacity * claim.weight + 1e-9:
            return capacity / weight
        capacity -= claim.demand
        weight -= claim.weight
    return math.inf


def capacity(mask: int, busy: Mapping[int, float]) -> float:
    """What these CPUs have left beside what somebody else uses of them (`busy`, as of `shares`)."""
    used = sum(part for cpu, part in busy.items() if mask >> cpu & 1) if busy else 0.0
    return max(0.0, mask.bit_count() - used)


def shares(claims: Sequence[Claim], busy: Mapping[int, float] = NOTHING) -> list[float]:
    """What each party gets, in CPUs. busy: by CPU, the part of its time that is nobody's of these.

    The region (a set of CPUs with everyone confined to it) whose water is lowest when full decides for those
    in it; then the next, over what is left.
    """
    order = sorted(range(len(claims)), key=lambda index: claims[index].demand / claims[index].weight)
    by_mask: dict[int, list[int]] = {}
    for rank, index in enumerate(order):
        by_mask.setdefault(claims[index].mask, []).append(rank)
    regions = _regions(list(by_mask))
    members = {
        region: sorted(rank for mask, ranks in by_mask.items() if mask & ~region == 0 for rank in ranks)
        for region in regions
    }
    left = {region: capacity(region, busy) for region in regions}
    got = [claim.demand for claim in claims]
    settled: set[int] = set()

    def height(region: int) -> float:
        return level([claims[order[rank]] for rank in members[region] if rank not in settled], left[region])

    heights = {region: height(region) for region in regions}
    while heights:
        region = min(heights, key=heights.__getitem__)
        lowest = heights.pop(region)
        if lowest == math.inf:
            break
        now = [rank for rank in members[region] if rank not in settled]
        settled.update(now)
        for rank in now:
            claim = claims[order[rank]]
            got[order[rank]] = min(claim.demand, lowest * claim.weight)
        for other in heights:
            if other & region == region:
                left[other] -= sum(got[order[rank]] for rank in now)
            if other & region:
                heights[other] = height(other)
    return got


def _regions(masks: Sequence[int]) -> list[int]:
    """The CPU sets that can fill up: each home, and the unions of homes that overlap in part."""
    found = dict.fromkeys(mask for mask in masks if mask)
    queue = list(found)
    while queue and len(found) < _MOST_REGIONS:
        one = queue.pop()
        for other in list(found):
            both = one & other
            if both and both != one and both != other and (one | other) not in found:
                found[one | other] = None
                queue.append(one | other)
    if queue:
        found.update(dict.fromkeys(components(masks)))
    return list(found)


def components(masks: Iterable[int]) -> list[int]:
    """The unions of masks that are connected by overlapping."""
    groups: list[int] = []
    for mask in masks:
        apart = []
        for group in groups:
            if group & mask:
                mask |= group
            else:
                apart.append(group)
        groups = [*apart, mask] if mask else apart
    return groups


def jain(ratios: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything."""
    squares = sum(ratio * ratio for ratio in ratios)
    return sum(ratios) ** 2 / (len(ratios) * squares) if squares else 1.0
