"""Giving memory to guests, in one step: to the starving first, then to those that stand out; and to those
that say nothing, as long as nobody else could want it.

A guest without statistics starts at its minimum like every other, and nobody can tell what it needs. So it
gets the part of the host that its size is of all sizes, as far as the host has it, and nothing is taken back.
"""

from collections.abc import Mapping, Sequence

from pxsched.balance import fair
from pxsched.balance.balloon import BalloonTarget, Guest, Standing
from pxsched.balance.lending import Means
from pxsched.balance.taking import LEAST_MIB, small

# A guest that gives no statistics for so long grows: about what a slow guest takes to boot and to start the
# service that gives them.
SILENT_S = 300.0


def wanting(
    standings: Sequence[Standing],
    sizes: Mapping[int, float],
    headroom: float,
    deviation: float,
    *,
    lends: bool,
) -> list[tuple[Standing, float]]:
    """Who is to grow, and by how much: who starves; and where the host is not under pressure itself (lends),
    who is losing, and who stands out as far as the host has it to spare.
    """
    poor_below = fair.outlier_slack(standings, deviation)
    found = []
    for one in standings:
        growth = sizes[one.guest.vmid] - one.guest.actual_mib
        poor = (one.losing or one.slack < poor_below) and one.guest.actual_mib < one.high_mib
        least = LEAST_MIB if one.starving else small(one.guest.actual_mib)
        if growth > least and (one.starving or (poor and lends and (one.losing or growth < headroom))):
            found.append((one, growth))
    return found


def grow(wanting: Sequence[tuple[Standing, float]], headroom: float, lent: float) -> list[BalloonTarget]:
    """The starving first, all at once; if the host has not enough now, each the same part of what it lacks.

    lent: what they may have of the host's reserve besides.
    """
    starving = [pair for pair in wanting if pair[0].starving]
    others = [pair for pair in wanting if not pair[0].starving]
    found: list[BalloonTarget] = []
    left = max(0.0, headroom + lent)
    for group in (starving, others):
        wanted = sum(growth for _, growth in group)
        part = min(1.0, left / wanted) if wanted > 0 else 0.0
        for one, growth in group:
            size = one.guest.actual_mib + growth * part
            if growth * part >= LEAST_MIB / 2:
                found.append(BalloonTarget(one.guest.vmid, int(size), one.why("gets more")))
        left = max(0.0, min(left - wanted, headroom - wanted))
    return found


def blind(
    silent: Sequence[Guest],
    parts: Mapping[int, float],
    given_mib: Mapping[int, float],
    means: Means,
    headroom: float,
) -> list[BalloonTarget]:
    """Their parts for silent guests, or what the host has now, each the same part of what it lacks.

    parts: by VMID, as `fair.parts` gives them. given_mib: what each has or was told. headroom: what is left
    after everyone else.
    """
    lacking = {guest.vmid: max(0.0, parts[guest.vmid] - given_mib[guest.vmid]) for guest in silent}
    total = sum(lacking.values())
    if total <= 0 or headroom <= 0 or not means.lends:
        return []
    part = min(1.0, headroom / total)
    return [
        BalloonTarget(
            guest.vmid,
            int(given_mib[guest.vmid] + lacking[guest.vmid] * part),
            f"VM {guest.vmid} says nothing of its memory ({guest.silence}) and gets its part of the host's",
        )
        for guest in silent
        if lacking[guest.vmid] * part >= small(guest.actual_mib)
    ]


def freed(guest: Guest, told_mib: int | None) -> BalloonTarget | None:
    """All its memory for a guest whose memory the host cannot have back in any case."""
    if not guest.pinned or max(guest.actual_mib, told_mib or 0) >= guest.maximum_mib - 1:
        return None
    return BalloonTarget(
        guest.vmid, guest.maximum_mib, f"VM {guest.vmid} gets all its memory: {guest.excluded}"
    )
