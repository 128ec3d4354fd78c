"""The memory coordinator: balloon targets that keep every guest's unused memory within bounds, fairly.

One pass, in this order: what the host can lend (`lending`), what each guest needs (`need`), which size is
fair (`fair`), who gives and how fast (`taking`), who gets (`giving`). What a guest needs rises at once and
falls slowly; memory is given in one step and taken in steps that the guest is seen to follow. Pure: the
state between passes is a value.
"""

import math
from collections.abc import Iterable, Sequence

from pxsched.balance import fair, giving, lending, need, taking
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
from pxsched.balance.lending import Means
from pxsched.guest.balloon import BELIEVED_S, Silence
from pxsched.settings.policy import NodeSettings
from pxsched.value import replace

# How long a fallen need still counts for 37 % of its height: needs come back within minutes more often than
# not. While somebody waits for memory nobody's past need counts; where the host has room to spare, it counts
# so many times longer. (BitBrains, days 2 and 5, and Google, VMs of even number.)
FALL_S, LEISURE = 600.0, 12.0
# A guest that wants back what it gave up keeps things so many times longer from then on, up to half a day;
# loads have a daily rhythm, so that is forgiven in a day. (The same.)
REGRET, MOST_PATIENCE, FORGIVE_S = 8.0, 64.0, 86400.0


def targets(
    guests: Iterable[Guest], host: Host, state: State, settings: NodeSettings, now_s: float
) -> Outcome:
    """The balloon targets of one pass; guests that are to stay as they are get none."""
    means, host_record = lending.means(host, state.host, settings, now_s)
    fall_s = FALL_S * (1 + (LEISURE - 1) * means.room)
    skipped: dict[int, str] = {}
    standings: list[Standing] = []
    silent: list[Guest] = []
    unheard: list[Guest] = []
    records: dict[int, Record] = {}
    found: list[BalloonTarget] = []
    for guest in guests:
        known = state.guests.get(guest.vmid)
        known = known if known is not None and known.start == guest.start else None
        if reason := _untouchable(guest):
            skipped[guest.vmid] = reason
            if guest.pinned:
                records[guest.vmid] = known or Record(guest.start, now_s, 0.0)
                found += filter(None, [giving.freed(guest, records[guest.vmid].target_mib)])
        elif guest.unheard:
            skipped[guest.vmid] = guest.unheard
            if known is not None:
                records[guest.vmid] = known
                unheard.append(guest)
        elif guest.stats is None or guest.stats.total_mib <= 0 or guest.stats.age_s > BELIEVED_S:
            silent.append(guest)
            records[guest.vmid] = record = _silent(guest, known, now_s)
            skipped[guest.vmid] = _what_it_gets(guest, record, now_s)
        else:
            standings.append(standing := need.standing(guest, guest.stats, known, fall_s, now_s))
            records[guest.vmid] = _remember(standing, guest.stats, known, now_s)
    # What guests were given, or told to have, and have not touched yet is as good as gone.
    headroom = means.spare_mib - sum(one.guest.untouched_mib for one in standings)
    for guest in (*silent, *unheard):
        headroom -= max(0.0, _given_mib(guest, records[guest.vmid]) - guest.held_mib)
    found += _decide(standings, silent, records, host, means, headroom, settings, now_s)
    sizes = {one.guest.vmid: one.guest.actual_mib for one in standings}
    for told in found:
        # Who says nothing cannot answer to it, either.
        size = sizes.get(told.vmid, float(told.target_mib))
        records[told.vmid] = _told(records[told.vmid], told, size, now_s)
    by_vmid = {one.guest.vmid: one for one in standings}
    return Outcome(tuple(found), skipped, State(records, host_record), by_vmid)


def _given_mib(guest: Guest, record: Record) -> float:
    """What a guest that says nothing has or was told to have; the latter if it is not even heard."""
    told = record.target_mib or 0
    return told if guest.unheard else max(guest.actual_mib, told)


def _untouchable(guest: Guest) -> str:
    if guest.excluded:
        return guest.excluded
    return "its `balloon` minimum leaves nothing to move" if guest.minimum_mib >= guest.maximum_mib else ""


def _silent(guest: Guest, known: Record | None, now_s: float) -> Record:
    record = known or Record(guest.start, now_s, 0.0)
    return replace(record, silent_s=now_s) if record.silent_s is None else record


def _what_it_gets(guest: Guest, record: Record, now_s: float) -> str:
    """For people: in which way it is silent, and what follows."""
    word = guest.silence or Silence.NO_STATISTICS.value
    if guest.stats is not None and guest.stats.age_s > BELIEVED_S:
        word = f"{Silence.STALE.value} ({guest.stats.age_s:.0f} s old)"
    if guest.actual_mib >= guest.maximum_mib - 1:
        return f"{word}: it has all its memory"
    left_s = giving.SILENT_S - (now_s - (now_s if record.silent_s is None else record.silent_s))
    when = f"in {left_s:.0f} s it" if left_s > 0 else "it"
    return f"{word}: nothing is taken, and {when} gets its part of the host's memory"


def _remember(one: Standing, stats: Stats, known: Record | None, now_s: float) -> Record:
    """The record with this pass's statistics, and what the guest's obedience says of its pace."""
    known = known or Record(one.guest.start, now_s, one.need_mib)
    record = replace(
        known,
        at_s=now_s,
        need_mib=one.need_mib,
        swapped_in_mib=stats.swapped_in_mib,
        swapped_out_mib=stats.swapped_out_mib,
        major_faults=stats.major_faults,
        patience=1 + (known.patience - 1) * math.exp(-one.elapsed_s / FORGIVE_S),
        silent_s=None,
        available_mib=stats.available_mib,
        unanswered_mib=_unanswered(one, stats, known),
    )
    return taking.followed(record, one.guest.actual_mib, now_s)


def _unanswered(one: Standing, stats: Stats, known: Record) -> float:
    """What it was given without an answer: that it has enough, that it loses something, or has another amount
    available than before. Whoever says the same whatever it gets gives none. (On a tight Google host, VMs of
    even number, seed 3, a lying guest that used 325 MiB got 1543 when this was forgotten in a day, and 1156.)
    """
    if not one.starving or one.losing:
        return 0.0
    return max(0.0, known.unanswered_mib - abs(stats.available_mib - known.available_mib))


def _told(record: Record, told: BalloonTarget, actual_mib: float, now_s: float) -> Record:
    """The record after a target. Who wants back what it gave up may keep things longer from now on."""
    change = told.target_mib - actual_mib
    regrets = record.change_mib < 0 < change
    patience = min(MOST_PATIENCE, record.patience * REGRET) if regrets else record.patience
    return replace(
        record,
        target_mib=told.target_mib,
        set_s=now_s,
        change_mib=change,
        patience=patience,
        unanswered_mib=record.unanswered_mib + max(0.0, change),
    )


def _decide(
    standings: Sequence[Standing],
    silent: Sequence[Guest],
    records: dict[int, Record],
    host: Host,
    means: Means,
    headroom: float,
    settings: NodeSettings,
    now_s: float,
) -> list[BalloonTarget]:
    everyone = [*silent, *(one.guest for one in standings)]
    parts = fair.parts(everyone, means) if silent else {}
    patient = _long_silent(silent, records, now_s)
    given_mib = {guest.vmid: _given_mib(guest, records[guest.vmid]) for guest in patient}
    if not standings:
        return giving.blind(patient, parts, given_mib, means, headroom)
    unanswered = {one.guest.vmid: records[one.guest.vmid].unanswered_mib for one in standings}
    sizes = fair.sizes(standings, host, means, unanswered)
    wanting = giving.wanting(standings, sizes, headroom, settings.deviation, lends=means.lends)
    coming = sum(taking.coming(one, records[one.guest.vmid]) for one in standings)
    wanted = sum(growth for _, growth in wanting)
    missing = wanted - headroom - coming
    givers = taking.givers(standings, sizes, missing, urgent=means.urgent)
    hurry = taking.HURRY if missing > 0 else 1.0
    lent_out = -(headroom + coming) > taking.LENT_PART * means.reserve_mib
    found = []
    for one, size in givers:
        vmid = one.guest.vmid
        told, records[vmid] = taking.step(one, size, records[vmid], now_s, hurry, lent=lent_out)
        found += [told] if told else []
    promised = sum(max(0.0, one.guest.actual_mib - max(size, one.least_mib)) for one, size in givers)
    # They are lent of the host's reserve what others are about to give, at most half of it.
    lent = min(means.reserve_mib / 2, coming + promised) if means.lends else 0.0
    given = giving.grow(wanting, headroom, lent)
    return [*given, *found, *giving.blind(patient, parts, given_mib, means, headroom - wanted)]


def _long_silent(silent: Sequence[Guest], records: dict[int, Record], now_s: float) -> list[Guest]:
    """Those that have been silent for long enough."""
    since = {guest.vmid: records[guest.vmid].silent_s for guest in silent}
    return [
        guest
        for guest in silent
        if now_s - (now_s if (at := since[guest.vmid]) is None else at) >= giving.SILENT_S
    ]
