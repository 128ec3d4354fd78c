"""Taking memory from guests: who gives, how much, and how fast: in steps that each is seen to follow.

A Linux balloon driver that finds nothing free presses the guest into swap (drivers/virtio/virtio_balloon.c,
fill_balloon retries for as long as it takes), so nobody is sent below what it uses and a floor.
"""

import math
from collections.abc import Mapping, Sequence

from pxsched.balance.balloon import BalloonTarget, Record, Standing
from pxsched.value import replace

# What a guest is first asked to give up in a second; twice as much each time it followed, half when it did
# not within FOLLOW_S. (BitBrains, days 2 and 5.)
PACE_MIB, PACE_PART, SLOWEST, FASTEST = 24.0, 0.005, 0.125, 8.0
FOLLOW_S = 30.0
# So much faster while the host or a starving guest waits for it. (The same.)
HURRY = 4.0
# Less than this is not worth a balloon's movement. (Below the smallest step a guest is asked for.)
_SMALL_MIB, _SMALL_PART = 16, 0.01
# While more than this part of the host's reserve is lent, so little is: of what many can do without, each has
# little. (Google, VMs of even number. Guests of several kinds, seed 3: 1289 minutes starved by those that say
# what they have without this, 58 with it, and less moved, 38 GiB for 41; all Linux, seed 2: 29 for 40. Where
# nothing was lent, it took from guests what they needed next: 64.)
LENT_PART, LEAST_MIB = 1 / 32, 4


def small(size_mib: float) -> float:
    return max(_SMALL_MIB, _SMALL_PART * size_mib)


def givers(
    standings: Sequence[Standing], fair: Mapping[int, float], missing: float, *, urgent: bool = False
) -> list[tuple[Standing, float]]:
    """Who is to shrink, and to what: who wastes in any case; while memory is missing, everyone the same part
    of what it has beyond its upper bound, and if that is not enough, of what it has beyond its fair size.

    urgent: those give, too, of whom nothing is taken otherwise.
    """
    giving = [one for one in standings if urgent or not one.firm]
    goal = {one.guest.vmid: one.guest.actual_mib for one in giving}
    for one in giving:
        if one.wasteful:
            goal[one.guest.vmid] = one.lasting_mib
            missing -= one.guest.actual_mib - one.lasting_mib
    for least in ({one.guest.vmid: one.high_mib for one in giving}, fair):
        spare = {vmid: max(0.0, size - least[vmid]) for vmid, size in goal.items()}
        total = sum(spare.values())
        part = min(1.0, max(0.0, missing) / total) if total > 0 else 0.0
        for vmid, excess in spare.items():
            goal[vmid] -= part * excess
        missing -= part * total
    return [(one, goal[one.guest.vmid]) for one in giving if goal[one.guest.vmid] < one.guest.actual_mib]


def coming(one: Standing, record: Record) -> float:
    """What the guest was asked for and has not given yet."""
    return 0.0 if record.target_mib is None else max(0.0, one.guest.actual_mib - record.target_mib)


def followed(record: Record, actual_mib: float, now_s: float) -> Record:
    """The record after looking how far the guest has come."""
    target = record.target_mib
    if target is not None and actual_mib > target + small(actual_mib) and now_s - record.set_s > FOLLOW_S:
        # It will not get there; it is no longer asked to, and next time more gently.
        return replace(record, pace=max(SLOWEST, record.pace / 2), target_mib=math.ceil(actual_mib))
    return record


def step(
    one: Standing, size: float, record: Record, now_s: float, hurry: float, *, lent: bool
) -> tuple[BalloonTarget | None, Record]:
    """A step down towards size, when the guest has done the one before; and its record. lent: much of the
    host's reserve is.
    """
    actual = one.guest.actual_mib
    if record.target_mib is not None and actual > record.target_mib + small(actual):
        return None, record  # still on its way
    if record.target_mib is not None and now_s - record.set_s < FOLLOW_S:
        record = replace(record, pace=min(FASTEST, record.pace * 2))
    most = hurry * record.pace * max(PACE_MIB, PACE_PART * actual) * min(10.0, max(0.5, one.elapsed_s))
    target = max(size, one.least_mib, actual - most, one.guest.minimum_mib)
    if target > actual - (LEAST_MIB if lent else small(actual)):
        return None, record
    return BalloonTarget(one.guest.vmid, math.ceil(target), one.why("gives some of it up")), record
