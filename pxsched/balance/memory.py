"""The memory coordinator: balloon targets that keep every guest's unused memory within bounds, fairly.

What a guest needs is what it uses, by its own statistics (virtio's total and available memory), rising at
once and falling slowly. All guests get the same part of the way between starved and wasteful, weighted by
their shares, as far as the host's memory goes; below that, all give up the same part of what they could.
Memory is given in one step and taken in steps that the guest is seen to follow. Pure: the state between
passes is a value.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from pxsched.balance.balloon import (
    BalloonTarget,
    Guest,
    Host,
    Outcome,
    Record,
    Standing,
    State,
    Stats,
)
from pxsched.settings.policy import NodeSettings, Policy
from pxsched.value import replace

# How long a fallen need still counts for 37 % of its height: needs come back within minutes more often than
# not. While somebody waits for memory nobody's past need counts; where the host has this part of its own to
# spare, it counts so many times longer.
FALL_S, ROOM, LEISURE = 600.0, 0.05, 6.0
# A guest that wants back what it gave up keeps things so many times longer from then on, up to half a day;
# loads have a daily rhythm, so that is forgiven in a day.
REGRET, MOST_PATIENCE, FORGIVE_S = 8.0, 64.0, 86400.0
# How old statistics may be.
STALE_S = 15.0
# What firmware and kernel keep, at most: what is missing beyond that is a balloon that moves just now.
KEPT_MIB, KEPT_PART = 64, 1 / 16
# No guest is asked to go below what it uses and this much.
FLOOR_MIB, FLOOR_PART = 64, 0.03
# What a guest is first asked to give up in a second; twice as much each time it followed, half when it did
# not within FOLLOW_S.
PACE_MIB, PACE_PART, SLOWEST, FASTEST = 24.0, 0.005, 0.125, 8.0
FOLLOW_S = 30.0
# So much faster while the host or a starving guest waits for it.
HURRY = 4.0
# Less than this is not worth a balloon's movement; for a starving guest, less than the last.
_SMALL_MIB, _SMALL_PART, _LEAST_MIB = 16, 0.01, 4
# A guest that swaps or reads its programs back from disk has too little, whatever it says is available.
_SWAP_MIB_S, _FAULTS_S = 0.25, 100.0
# With this much of the time lost to memory stalls (full avg10, per cent) the host keeps a twentieth more.
_PRESSURE, _PRESSED_PART = 5.0, 0.05


def targets(
    guests: Iterable[Guest], host: Host, state: State, settings: NodeSettings, now_s: float
) -> Outcome:
    """The balloon targets of one pass; guests that are to stay as they are get none."""
    skipped: dict[int, str] = {}
    standings: dict[int, Standing] = {}
    records: dict[int, Record] = {}
    reserve = settings.reserved_mib + (_PRESSED_PART * host.total_mib if host.stalled > _PRESSURE else 0.0)
    room = min(1.0, max(0.0, host.available_mib - reserve) / (ROOM * host.total_mib))
    fall_s = FALL_S * (1 + (LEISURE - 1) * room)
    for guest in guests:
        known = state.guests.get(guest.vmid)
        known = known if known is not None and known.start == guest.start else None
        reason = _why_not(guest)
        if reason or guest.stats is None:
            skipped[guest.vmid] = reason
            if known is not None and not guest.excluded:
                records[guest.vmid] = known  # left at its last value
            continue
        standings[guest.vmid] = standing = _standing(guest, guest.stats, known, fall_s, now_s)
        records[guest.vmid] = _remember(standing, guest.stats, known, now_s)
    found = _decide(list(standings.values()), records, host, reserve, settings, now_s)
    for told in found:
        records[told.vmid] = _told(records[told.vmid], told, standings[told.vmid], now_s)
    return Outcome(tuple(found), skipped, State(records), standings)


def _told(record: Record, told: BalloonTarget, standing: Standing, now_s: float) -> Record:
    """The record after a target. Who wants back what it gave up may keep things longer from now on."""
    change = told.target_mib - standing.guest.actual_mib
    regrets = record.change_mib < 0 < change
    patience = min(MOST_PATIENCE, record.patience * REGRET) if regrets else record.patience
    return replace(record, target_mib=told.target_mib, set_s=now_s, change_mib=change, patience=patience)


def _why_not(guest: Guest) -> str:
    if guest.excluded:
        return guest.excluded
    if guest.minimum_mib >= guest.maximum_mib:
        return "its `balloon` minimum leaves nothing to move"
    if guest.stats is None:
        return guest.unheard or "it gives no statistics: no balloon driver, or not yet"
    if guest.stats.age_s > STALE_S:
        return f"its statistics are {guest.stats.age_s:.0f} s old: left at its last value"
    return ""


def _standing(guest: Guest, stats: Stats, known: Record | None, fall_s: float, now_s: float) -> Standing:
    # A balloon lowers the guest's total; what firmware and kernel keep for themselves is used as well.
    total = min(stats.total_mib, guest.actual_mib)
    kept = min(max(0.0, guest.actual_mib - stats.total_mib), max(KEPT_MIB, KEPT_PART * guest.maximum_mib))
    used = max(0.0, total - stats.available_mib) + kept
    need, elapsed, losing = used, 10.0, False
    if known is not None and now_s > known.at_s:
        elapsed = now_s - known.at_s
        need = max(used, used + (known.need_mib - used) * math.exp(-elapsed / fall_s / known.patience))
        swapped = (stats.swapped_mib - known.swapped_mib) / elapsed
        faults = (stats.major_faults - known.major_faults) / elapsed
        losing = swapped > _SWAP_MIB_S or faults > _FAULTS_S
    floor = max(FLOOR_MIB, FLOOR_PART * guest.actual_mib)
    if losing:
        # Whatever it says is available, it is not.
        used = max(used, guest.actual_mib - floor)
        need = max(need, used)
    low, high = bounds(guest.policy, used)
    lasting = bounds(guest.policy, need)[1]
    least = used + floor
    low, high, lasting, least = (
        min(guest.maximum_mib, max(guest.minimum_mib, size)) for size in (low, high, lasting, least)
    )
    return Standing(guest, used, need, low, high, lasting, min(least, low), losing, elapsed)


def bounds(policy: Policy, used_mib: float) -> tuple[float, float]:
    """The sizes below which a guest that uses so much starves, and above which it wastes."""
    low = max(used_mib + policy.starved_mib, used_mib / (1 - min(90.0, policy.starved_percent) / 100))
    high = max(used_mib + policy.wasteful_mib, used_mib / (1 - min(95.0, policy.wasteful_percent) / 100))
    return low, max(low, high)


def _remember(standing: Standing, stats: Stats, known: Record | None, now_s: float) -> Record:
    """The record with this pass's statistics, and what the guest's obedience says of its pace."""
    start, actual = standing.guest.start, standing.guest.actual_mib
    if known is None:
        known = Record(start, now_s, standing.need_mib)
    pace, target = known.pace, known.target_mib
    if target is not None and actual > target + _small(actual) and now_s - known.set_s > FOLLOW_S:
        # It will not get there; it is no longer asked to, and next time more gently.
        pace, target = max(SLOWEST, pace / 2), math.ceil(actual)
    return Record(
        start,
        now_s,
        standing.need_mib,
        stats.swapped_mib,
        stats.major_faults,
        target,
        known.set_s,
        pace,
        known.change_mib,
        1 + (known.patience - 1) * math.exp(-standing.elapsed_s / FORGIVE_S),
    )


def _small(size: float) -> float:
    return max(_SMALL_MIB, _SMALL_PART * size)


def _decide(
    standings: Sequence[Standing],
    records: dict[int, Record],
    host: Host,
    reserve: float,
    settings: NodeSettings,
    now_s: float,
) -> list[BalloonTarget]:
    if not standings:
        return []
    sizes = _fair_sizes(standings, host, reserve)
    # What guests were given and have not touched yet is as good as gone.
    untouched = sum(one.guest.actual_mib - _held(one) for one in standings)
    headroom = host.available_mib - reserve - untouched
    slacks = [one.slack for one in standings]
    mean = sum(slacks) / len(slacks)
    spread = settings.deviation * math.sqrt(sum((slack - mean) ** 2 for slack in slacks) / len(slacks))
    wanting: list[tuple[Standing, float]] = []
    for one in standings:
        growth = sizes[one.guest.vmid] - one.guest.actual_mib
        poor = one.slack < mean - spread and one.guest.actual_mib < one.high_mib
        least = _LEAST_MIB if one.starving else _small(one.guest.actual_mib)
        if growth > least and (one.starving or (poor and growth < headroom)):
            wanting.append((one, growth))
    coming = sum(_coming(one, records[one.guest.vmid]) for one in standings)
    missing = sum(growth for _, growth in wanting) - headroom - coming
    found = []
    for one, size in (givers := _givers(standings, sizes, missing)):
        told = _shrink(one, size, records, now_s, HURRY if missing > 0 else 1.0)
        found += [told] if told else []
    promised = sum(
        max(0.0, one.guest.actual_mib - max(size, one.least_mib)) for one, size in givers if not one.losing
    )
    return [*_grow(wanting, headroom, min(reserve / 2, coming + promised)), *found]


def _coming(one: Standing, record: Record) -> float:
    """What the guest was asked for and has not given yet."""
    return 0.0 if record.target_mib is None else max(0.0, one.guest.actual_mib - record.target_mib)


def _givers(
    standings: Sequence[Standing], sizes: Mapping[int, float], missing: float
) -> list[tuple[Standing, float]]:
    """Who is to shrink, and to what: who wastes in any case; while memory is missing, everyone the same part
    of what it has beyond its upper bound, and if that is not enough, of what it has beyond its fair size.
    """
    goal = {one.guest.vmid: one.guest.actual_mib for one in standings}
    for one in standings:
        if one.wasteful:
            goal[one.guest.vmid] = one.lasting_mib
            missing -= one.guest.actual_mib - one.lasting_mib
    for least in ({one.guest.vmid: one.high_mib for one in standings}, sizes):
        spare = {vmid: max(0.0, size - least[vmid]) for vmid, size in goal.items()}
        total = sum(spare.values())
        part = min(1.0, max(0.0, missing) / total) if total > 0 else 0.0
        for vmid, excess in spare.items():
            goal[vmid] -= part * excess
        missing -= part * total
    return [(one, goal[one.guest.vmid]) for one in standings if goal[one.guest.vmid] < one.guest.actual_mib]


def _fair_sizes(standings: Sequence[Standing], host: Host, reserve: float) -> dict[int, float]:
    """Everyone's size at the fill that the host's memory allows, and a NUMA node's for those bound to it."""
    budget = sum(_held(one) for one in standings) + host.available_mib - reserve
    fill = _fill(standings, budget)
    fills = {one.guest.vmid: fill for one in standings}
    for nodes in {one.guest.nodes for one in standings if one.guest.nodes}:
        if not nodes <= host.nodes_mib.keys():
            continue
        bound = [one for one in standings if one.guest.nodes == nodes]
        available = sum(host.nodes_mib[node] for node in nodes)
        part = reserve * len(nodes) / len(host.nodes_mib)
        local = _fill(bound, sum(_held(one) for one in bound) + available - part)
        fills |= {one.guest.vmid: min(fill, local) for one in bound}
    if min(fills.values()) < fill:
        # What a full node cannot use is there for the others.
        rest = [one for one in standings if fills[one.guest.vmid] == fill]
        mean = _mean_shares(standings)
        spent = sum(one.at(fills[one.guest.vmid], mean) for one in standings if one not in rest)
        fills |= {one.guest.vmid: _fill(rest, budget - spent) for one in rest}
    mean = _mean_shares(standings)
    return {one.guest.vmid: one.at(fills[one.guest.vmid], mean) for one in standings}


def _held(standing: Standing) -> float:
    """Host memory the guest holds; what it never touched is still the host's to give only once."""
    resident = standing.guest.resident_mib
    return standing.guest.actual_mib if resident is None else min(resident, standing.guest.actual_mib)


def _mean_shares(standings: Sequence[Standing]) -> float:
    return sum(one.guest.shares or 1000 for one in standings) / len(standings)


def _fill(standings: Sequence[Standing], budget: float) -> float:
    """The highest fill, up to the upper bounds, at which everyone together fits the budget."""
    mean = _mean_shares(standings) if standings else 1.0

    def total(fill: float) -> float:
        return sum(one.at(fill, mean) for one in standings)

    if total(1.0) <= budget:
        return 1.0
    # A guest of few shares reaches its least at -1 x its part of the shares: -64 is beyond everyone.
    low, high = -64.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) <= budget else (low, middle)
    return low


def _grow(wanting: Sequence[tuple[Standing, float]], headroom: float, lent: float) -> list[BalloonTarget]:
    """The starving first, all at once; if the host has not enough now, each the same part of what it lacks.

    They are lent of the host's reserve what the others are about to give, at most half of it.
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
            if growth * part >= _LEAST_MIB / 2:
                found.append(BalloonTarget(one.guest.vmid, int(size), _why(one, "gets more")))
        left = max(0.0, min(left - wanted, headroom - wanted))
    return found


def _shrink(
    one: Standing, size: float, records: dict[int, Record], now_s: float, hurry: float
) -> BalloonTarget | None:
    """A step down, when the guest has done the one before and is not hurt by it."""
    vmid, actual = one.guest.vmid, one.guest.actual_mib
    record = records[vmid]
    if one.losing:
        return None
    if record.target_mib is not None and actual > record.target_mib + _small(actual):
        return None  # still on its way
    if record.target_mib is not None and now_s - record.set_s < FOLLOW_S:
        record = records[vmid] = replace(record, pace=min(FASTEST, record.pace * 2))
    step = hurry * record.pace * max(PACE_MIB, PACE_PART * actual) * min(10.0, max(0.5, one.elapsed_s))
    target = max(size, one.least_mib, actual - step, one.guest.minimum_mib)
    if target > actual - _small(actual):
        return None
    return BalloonTarget(vmid, math.ceil(target), _why(one, "gives some of it up"))


def _why(one: Standing, what: str) -> str:
    unused = max(0.0, one.guest.actual_mib - one.used_mib)
    state = "starves" if one.starving else "has more than it needs" if one.wasteful else "stands out"
    return (
        f"VM {one.guest.vmid} {state} with {unused:.0f} of {one.guest.actual_mib:.0f} MiB unused and {what}"
    )
