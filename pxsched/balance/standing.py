"""How VMs fare, and who of them stands out.

What a VM is due is its weighted max-min share of all CPUs it may use; what it waits beyond that is contention
it would not have if everyone had a good home. So where all are equally short nobody lacks anything, and VMs
that wait for one CPU beside an idle one lack a lot.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pxsched.balance.plan import Party
from pxsched.balance.samples import IDLE, Rate
from pxsched.balance.sharing import shares
from pxsched.settings.policy import NodeSettings

# A guest that is due less than this only ticks.
_TICKING = 0.01
# Two VMs that lack as much as each other to a tenth are one crowd.
_SAME = 0.9


class Standing(NamedTuple):
    """How a VM fares. due: its weighted fair share in CPUs. lack: its weighted contention, which is how much
    slower it runs than that share would let it, from 0 to 1.
    """

    rate: Rate
    due: float
    lack: float


def due_of(parties: Sequence[Party], busy: Mapping[int, float]) -> list[float]:
    """What each would get if everyone lived wherever it may. busy: as of `sharing.shares`."""
    return shares([party.claim(party.allowed) for party in parties], busy)


def lack_of(rate: Rate, due: float) -> float:
    """How much slower it runs than it could if it had what it is due.

    A VM's speed is run / (run + wait), one minus its contention. If all must wait, the speed that its share
    allows is below one, and waiting that much is no contention.
    """
    if due <= _TICKING or rate.wait <= 0 or rate.demand <= rate.run:
        return 0.0
    fair_wait = rate.wait * min(1.0, max(0.0, rate.demand - due) / (rate.demand - rate.run))
    return max(0.0, 1 - rate.run / (rate.run + rate.wait) * (due + fair_wait) / due)


def standings_of(parties: Sequence[Party], due: Sequence[float]) -> dict[int, Standing]:
    found: dict[int, tuple[Rate, float]] = {}
    for party, share in zip(parties, due, strict=True):
        rate, total = found.get(party.vmid, (IDLE, 0.0))
        both = Rate(*(one + other for one, other in zip(rate, party.rate, strict=True)))
        found[party.vmid] = both, total + share
    return {vmid: Standing(rate, total, lack_of(rate, total)) for vmid, (rate, total) in found.items()}


def outstanding(parties: Sequence[Party], lacks: Sequence[float], settings: NodeSettings) -> list[Party]:
    """Those that lack more than the floor and stand out by `deviation` standard deviations, worst first.

    "The others" are those that are better off, and the fair share itself: a crowd stuck together must not
    hide its members behind each other, and someone between two crowds is no exception.
    """
    found = []
    number, total, squares = 1, 0.0, 0.0  # the fair share: one member that lacks nothing
    ranked = sorted(range(len(parties)), key=lambda index: lacks[index])
    better = 0
    for index in ranked:
        lack = lacks[index]
        while lacks[ranked[better]] < lack * _SAME:
            other = lacks[ranked[better]]
            number, total, squares = number + 1, total + other, squares + other * other
            better += 1
        mean = total / number
        spread = math.sqrt(max(0.0, squares / number - mean * mean))
        if lack > settings.contention_floor and lack > mean + settings.deviation * spread:
            found.append(parties[index])
    return found[::-1]
