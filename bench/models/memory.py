"""Guests with balloons on a host that is too small for all of them: drives the coordinator's own code, and
other rules beside it, with recorded or invented needs.

A guest uses what its load says and fills the rest with cache. Its balloon grows only as fast as the guest
can free memory and never into what it uses; it shrinks at once. A guest whose need exceeds what it has
swaps. All sizes in MiB.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pxsched.balance import balloon, memory
from pxsched.balance.balloon import BalloonTarget
from pxsched.settings.policy import NodeSettings, Policy

# A guest's balloon driver frees pages at this speed; firmware and kernel keep a part for themselves.
INFLATE_MIB_S = 200.0
KERNEL_PART = 0.02
_TIGHT_MIB = 8.0


@dataclass(slots=True)
class Guest:
    """A simulated guest. load: its need at a time in seconds; driver: whether its balloon driver lives."""

    vmid: int
    minimum_mib: int
    maximum_mib: int
    load: Callable[[float], float]
    actual_mib: float
    shares: int = 1000
    driver: bool = True
    target_mib: float = 0.0
    swapped_mib: float = 0.0
    need_mib: float = 0.0
    stats_age_s: float = 0.0
    inflate_mib_s: float = INFLATE_MIB_S

    def pass_time(self, now_s: float, seconds: float, spare_mib: float) -> None:
        """Lets time go by. spare_mib: what the host can still give."""
        self.need_mib = self.load(now_s) + KERNEL_PART * self.maximum_mib
        missing = max(0.0, self.need_mib - self.actual_mib)
        if missing:
            self.swapped_mib += min(missing, 20 * seconds)
        if not self.driver:
            self.stats_age_s += seconds
            return
        if self.target_mib > self.actual_mib:
            self.actual_mib += min(self.target_mib - self.actual_mib, max(0.0, spare_mib))
        elif self.target_mib < self.actual_mib:
            unused = max(0.0, self.actual_mib - self.need_mib - _TIGHT_MIB)
            wanted = self.actual_mib - self.target_mib
            self.actual_mib -= min(wanted, unused, self.inflate_mib_s * seconds)

    def stats(self) -> balloon.Stats:
        total = self.actual_mib - KERNEL_PART * self.maximum_mib
        available = max(0.0, self.actual_mib - self.need_mib)
        return balloon.Stats(total, available, self.swapped_mib, 0, self.stats_age_s)


class Rule(Protocol):
    """What decides on targets, by VMID."""

    def __call__(
        self, guests: Sequence[Guest], host: balloon.Host, now_s: float
    ) -> Iterable[BalloonTarget]: ...


@dataclass(slots=True)
class Tally:
    """What a run cost. Minutes and GiB-minutes are summed over guests."""

    starved_minutes: float = 0.0
    wasted_gib_minutes: float = 0.0
    minutes: float = 0.0
    fairness: float = 0.0
    passes: int = 0
    traffic_gib: float = 0.0
    below_need: int = 0
    swapped_gib: float = 0.0
    host_short_minutes: float = 0.0

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
            if guest.actual_mib > guest.minimum_mib + 1:
                tally.wasted_gib_minutes += max(0.0, unused - high) / 1024 * minutes
            slacks.append(min(1.0, max(0.0, unused) / high))
        squares = sum(slack * slack for slack in slacks)
        tally.fairness += sum(slacks) ** 2 / (len(slacks) * squares) if squares else 1.0


def bounds(policy: Policy, actual_mib: float) -> tuple[float, float]:
    """Below the one unused memory a guest of this size starves, above the other it wastes."""
    return (
        max(policy.starved_mib, policy.starved_percent / 100 * actual_mib),
        max(policy.wasteful_mib, policy.wasteful_percent / 100 * actual_mib),
    )


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
            )
            for guest in guests
        ]
        state = balloon.State.from_json(self.state.to_json())
        outcome = memory.targets(seen, host, state, self.settings, now_s)
        self.state, self.skipped = outcome.state, outcome.skipped
        return outcome.targets


def nothing(guests: Sequence[Guest], host: balloon.Host, now_s: float) -> Iterable[BalloonTarget]:
    """No coordination: everyone keeps what it was given."""
    return ()


class Proxmox:
    """pvestatd's rule: towards each VM's minimum plus its shares' part of what the host's goal leaves.

    At most 100 MiB a VM and cycle; growth goes to guests short of free memory first, shrinking to the others.
    """

    def __init__(self, goal: float = 0.8, step_mib: float = 100.0) -> None:
        self.goal = goal
        self.step_mib = step_mib

    def __call__(self, guests: Sequence[Guest], host: balloon.Host, now_s: float) -> Iterable[BalloonTarget]:
        goal = host.total_mib * self.goal - (host.total_mib - host.available_mib)
        if abs(goal) <= 10:
            return []
        wanted = self._parts(guests, goal)

        def pressed(guest: Guest) -> bool:
            free = guest.actual_mib - guest.need_mib
            return free <= guest.minimum_mib / 4 or guest.actual_mib < guest.minimum_mib

        left = abs(goal)
        found = []
        for guest in sorted(guests, key=lambda guest: pressed(guest) != (goal > 0)):
            change = wanted[guest.vmid] - guest.actual_mib
            if change * goal <= 0:
                continue
            step = min(abs(change), self.step_mib, left)
            left -= step
            if step > 0:
                size = guest.actual_mib + (step if goal > 0 else -step)
                found.append(BalloonTarget(guest.vmid, round(size), ""))
        return found

    def _parts(self, guests: Sequence[Guest], goal: float) -> dict[int, float]:
        """Minimum plus part by shares, what exceeds a maximum going to the others."""
        pool = max(0.0, goal + sum(guest.actual_mib - guest.minimum_mib for guest in guests))
        wanted = {guest.vmid: float(guest.minimum_mib) for guest in guests}
        open_guests = list(guests)
        while open_guests and pool > 1:
            shares = sum(guest.shares for guest in open_guests) or 1
            given = 0.0
            for guest in open_guests:
                part = min(pool * guest.shares / shares, guest.maximum_mib - wanted[guest.vmid])
                wanted[guest.vmid] += part
                given += part
            pool -= given
            open_guests = [guest for guest in open_guests if wanted[guest.vmid] < guest.maximum_mib - 0.5]
            if given < 1:
                break
        return wanted


class Pairwise:
    """The classic: what the most wasteful has unused is halved, and the most starved gets that."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()

    def __call__(self, guests: Sequence[Guest], host: balloon.Host, now_s: float) -> Iterable[BalloonTarget]:
        def unused(guest: Guest) -> float:
            return guest.actual_mib - guest.need_mib

        poor = [guest for guest in guests if unused(guest) < bounds(self.policy, guest.actual_mib)[0]]
        rich = [guest for guest in guests if unused(guest) > bounds(self.policy, guest.actual_mib)[1]]
        if not poor or not rich:
            return []
        giver = max(rich, key=lambda guest: unused(guest) / guest.actual_mib)
        taker = min(poor, key=lambda guest: unused(guest) / guest.actual_mib)
        amount = min(
            unused(giver) / 2, giver.actual_mib - giver.minimum_mib, taker.maximum_mib - taker.actual_mib
        )
        if amount <= 0:
            return []
        return [
            BalloonTarget(giver.vmid, round(giver.actual_mib - amount), ""),
            BalloonTarget(taker.vmid, round(taker.actual_mib + amount), ""),
        ]


def copies(guests: Iterable[Guest]) -> list[Guest]:
    """The same guests as at the beginning, for another rule."""
    return [replace(guest) for guest in guests]
