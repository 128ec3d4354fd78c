"""A host that is too small for all its guests: drives the coordinator's own code, and other rules beside it,
with recorded or invented needs. All sizes in MiB.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.models.memory_guests import Guest, bounds
from bench.models.memory_rules import Rule
from pxsched.balance import balloon, memory
from pxsched.balance.balloon import BalloonTarget
from pxsched.settings.policy import NodeSettings, Policy

# What counts as stuck at the minimum: an hour in all, while the host has this part of its memory to give.
STUCK_MINUTES, STUCK_ROOM = 60.0, 0.1


@dataclass(slots=True)
class Tally:
    """What a run cost. Minutes and GiB-minutes are summed over guests."""

    starved_minutes: float = 0.0
    wasted_gib_minutes: float = 0.0
    minutes: float = 0.0
    fairness: float = 0.0
    passes: int = 0
    traffic_gib: float = 0.0
    first_hour_gib: float = 0.0
    below_need: int = 0
    swapped_gib: float = 0.0
    host_short_minutes: float = 0.0
    # By VMID: minutes starved, also those at the minimum while the host had room; who was sent below need.
    starved: Counter[int] = field(default_factory=Counter)
    stuck: Counter[int] = field(default_factory=Counter)
    pressed: set[int] = field(default_factory=set)

    @property
    def worst_minutes(self) -> float:
        """Of the guest that starved longest."""
        return max(self.starved.values(), default=0.0)

    @property
    def stuck_guests(self) -> int:
        """How many starved at their minimum for an hour and more, though the host had room."""
        return sum(minutes >= STUCK_MINUTES for minutes in self.stuck.values())

    @property
    def wasted_gib(self) -> float:
        """What all guests together had beyond their bounds, on average."""
        return self.wasted_gib_minutes / max(1e-9, self.minutes)

    @property
    def mean_fairness(self) -> float:
        return self.fairness / max(1, self.passes)


class Host:
    """Guests, the memory they share, and the rule that is asked once a period."""

    def __init__(
        self,
        guests: Iterable[Guest],
        total_mib: float,
        rule: Rule,
        *,
        period_s: float = 10.0,
        used_mib: float = 0.0,
        policy: Policy | None = None,
    ) -> None:
        self.guests = list(guests)
        self.total_mib = total_mib
        self.rule = rule
        self.period_s = period_s
        self.used_mib = used_mib
        self.policy = policy or Policy()
        self.now_s = 0.0
        self.tally = Tally()
        for guest in self.guests:
            guest.target_mib = guest.actual_mib
            guest.pass_time(0.0, 0.0, 0.0)

    @property
    def available_mib(self) -> float:
        return self.total_mib - self.used_mib - sum(guest.actual_mib for guest in self.guests)

    def tick(self) -> list[BalloonTarget]:
        """One period, in steps of a second for the balloons, then the rule."""
        steps = max(1, min(10, round(self.period_s)))
        for _ in range(steps):
            self.now_s += self.period_s / steps
            for guest in self.guests:
                before = guest.actual_mib
                guest.pass_time(self.now_s, self.period_s / steps, self.available_mib)
                self.tally.traffic_gib += abs(guest.actual_mib - before) / 1024
        self._count()
        found = list(self.rule(self.guests, balloon.Host(self.total_mib, self.available_mib), self.now_s))
        known = {guest.vmid: guest for guest in self.guests}
        for target in found:
            guest = known[target.vmid]
            guest.target_mib = min(guest.maximum_mib, max(guest.minimum_mib, target.target_mib))
            if guest.target_mib < min(guest.need_mib, guest.actual_mib):
                self.tally.below_need += 1
                self.tally.pressed.add(guest.vmid)
        return found

    def _count(self) -> None:
        tally, minutes = self.tally, self.period_s / 60
        tally.minutes += minutes
        tally.passes += 1
        tally.host_short_minutes += minutes if self.available_mib < 0 else 0.0
        tally.swapped_gib = sum(guest.swapped_mib for guest in self.guests) / 1024
        slacks = []
        for guest in self.guests:
            unused = guest.actual_mib - guest.need_mib
            low, high = bounds(self.policy, guest.actual_mib)
            if unused < low - 1 and guest.actual_mib < guest.maximum_mib - 1:
                tally.starved_minutes += minutes
                tally.starved[guest.vmid] += minutes
                room = self.available_mib > STUCK_ROOM * self.total_mib
                if guest.actual_mib < guest.minimum_mib + 1 and room:
                    tally.stuck[guest.vmid] += minutes
            if guest.actual_mib > guest.minimum_mib + 1:
                tally.wasted_gib_minutes += max(0.0, unused - high) / 1024 * minutes
            slacks.append(min(1.0, max(0.0, unused) / high))
        squares = sum(slack * slack for slack in slacks)
        tally.fairness += sum(slacks) ** 2 / (len(slacks) * squares) if squares else 1.0


class Coordinator:
    """pxsched's own rule, with its state carried through text as the timer does."""

    def __init__(self, settings: NodeSettings | None = None, policy: Policy | None = None) -> None:
        self.settings = settings or NodeSettings()
        self.policy = policy or Policy()
        self.state = balloon.State()
        self.skipped: Mapping[int, str] = {}

    def __call__(self, guests: Sequence[Guest], host: balloon.Host, now_s: float) -> Iterable[BalloonTarget]:
        seen = [
            balloon.Guest(
                guest.vmid,
                1,
                guest.actual_mib,
                guest.minimum_mib,
                guest.maximum_mib,
                guest.stats(),
                self.policy,
                guest.shares,
                silence="a balloon driver without statistics" if guest.stats() is None else "",
            )
            for guest in guests
        ]
        state = balloon.State.from_json(self.state.to_json())
        outcome = memory.targets(seen, host, state, self.settings, now_s)
        self.state, self.skipped = outcome.state, outcome.skipped
        return outcome.targets
