"""Everyone's fair size: the same part of the way between starved and wasteful, weighted by shares, as far as
the host's memory goes. Below that, who has more than its part of the host gives up what it could first, and
then the others, each the same part of it.

A weight is what an admin stated, relative to the others that have one. Who has stated none (`shares: 0`,
which takes a VM out of Proxmox's own division as well) is as heavy as their mean.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from pxsched.balance.balloon import Guest, Host, Standing
from pxsched.balance.lending import Means
from pxsched.value import NOTHING, Value

# A guest of few shares reaches its least at -1 x its part of the shares: this is beyond everyone.
_EMPTIEST = -64.0
# Who was given this much of its part and so many times its wasteful_mib, and neither had more available then
# nor swaps or reads back what it lost, is doubted. (A lying guest among the VMs of even number, days 2 and 5
# and Google. The second, two steps less what rounding takes, for small guests that really grow and have half
# their part in one. With three the liar of seed 3's tight host had 1456 MiB instead of 1156, and 4142 minutes
# were starved there instead of 1505.)
DOUBT, DOUBT_STEPS = 0.5, 1.9


class Place(Value):
    """A guest among the others. weight: 1 on average. part_mib: its part of the host.

    first: it needs more than its part, so that when not everybody can have enough it goes short before the
    others do. doubted: it was given so much without an answer that it may never say that it has enough; who
    neither swaps nor reads back what it lost is not harmed by having no more.
    """

    standing: Standing
    weight: float
    part_mib: float
    unanswered_mib: float

    @property
    def first(self) -> bool:
        return self.standing.low_mib > self.part_mib

    @property
    def doubted(self) -> bool:
        steps_mib = DOUBT_STEPS * self.standing.guest.policy.wasteful_mib
        return self.unanswered_mib > max(DOUBT * self.part_mib, steps_mib)

    def granted(self, size_mib: float) -> float:
        """The size it gets of a fair one: who is doubted, no more than its part, or what it has already."""
        if not (self.first and self.doubted):
            return size_mib
        return min(size_mib, max(self.standing.guest.actual_mib, self.part_mib))

    def at(self, fill: float) -> float:
        return self.standing.at(fill, self.weight, first=self.first)


def sizes(
    standings: Sequence[Standing], host: Host, means: Means, unanswered: Mapping[int, float] = NOTHING
) -> dict[int, float]:
    """By VMID: the size at the fill that the host's memory allows, or a NUMA node's for those bound to it.

    unanswered: what guests were given (MiB) that they did not answer to.
    """
    places = _places(standings, means, unanswered)
    # What KSM merged is counted once as held by each guest, and once as available.
    held = sum(one.guest.held_mib for one in standings)
    budget = held + means.spare_mib - min(host.merged_mib, held)
    fill = _fill(places.values(), budget)
    fills = dict.fromkeys(places, fill)
    for nodes in {one.guest.nodes for one in standings if one.guest.nodes}:
        if not nodes <= host.nodes_mib.keys():
            continue
        bound = [one for one in standings if one.guest.nodes == nodes]
        available = sum(host.nodes_mib[node] for node in nodes)
        part = means.reserve_mib * len(nodes) / len(host.nodes_mib)
        room = sum(one.guest.held_mib for one in bound) + available - part
        local = _fill([places[one.guest.vmid] for one in bound], room)
        fills |= {one.guest.vmid: min(fill, local) for one in bound}
    if min(fills.values()) < fill:
        # What a full node cannot use is there for the others.
        rest = {vmid for vmid, own in fills.items() if own == fill}
        spent = sum(place.at(fills[vmid]) for vmid, place in places.items() if vmid not in rest)
        fills |= dict.fromkeys(rest, _fill([places[vmid] for vmid in rest], budget - spent))
    return {vmid: place.granted(place.at(fills[vmid])) for vmid, place in places.items()}


def _places(standings: Sequence[Standing], means: Means, unanswered: Mapping[int, float]) -> dict[int, Place]:
    weight = weights(standings)
    part = parts([one.guest for one in standings], means)
    vmids = {one.guest.vmid: one for one in standings}
    return {
        vmid: Place(one, weight[vmid], part[vmid] * weight[vmid], unanswered.get(vmid, 0.0))
        for vmid, one in vmids.items()
    }


def weights(standings: Sequence[Standing]) -> dict[int, float]:
    """By VMID, 1 on average among those who have stated one."""
    stated = [one.guest.shares for one in standings if one.guest.shares > 0]
    mean = sum(stated) / len(stated) if stated else 1.0
    return {one.guest.vmid: one.guest.shares / mean if one.guest.shares > 0 else 1.0 for one in standings}


def parts(guests: Sequence[Guest], means: Means) -> dict[int, float]:
    """By VMID: what each would have if nobody's needs were known, the same part of what it may have."""
    budget = sum(guest.held_mib for guest in guests) + means.spare_mib
    part = min(1.0, max(0.0, budget) / max(1, sum(guest.maximum_mib for guest in guests)))
    return {guest.vmid: max(guest.minimum_mib, part * guest.maximum_mib) for guest in guests}


def outlier_slack(standings: Sequence[Standing], deviation: float) -> float:
    """Who has less of its memory unused than this stands out from the others."""
    slacks = [one.slack for one in standings]
    mean = sum(slacks) / len(slacks)
    return mean - deviation * math.sqrt(sum((slack - mean) ** 2 for slack in slacks) / len(slacks))


def _fill(places: Collection[Place], budget: float) -> float:
    """The highest fill, up to the upper bounds, at which everyone together fits the budget."""

    def total(fill: float) -> float:
        return sum(place.at(fill) for place in places)

    if total(1.0) <= budget:
        return 1.0
    low, high = _EMPTIEST, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) <= budget else (low, middle)
    return low
