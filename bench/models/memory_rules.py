"""Other rules for the same guests: Proxmox's, the pairwise one, kvmScheduling's, and none.

Each sees of a guest what its statistics say, and of a silent one nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from bench.models.memory_guests import Guest, bounds
from pxsched.balance import balloon
from pxsched.balance.balloon import BalloonTarget
from pxsched.settings.policy import Policy


class Rule(Protocol):
    """What decides on targets, by VMID."""

    def __call__(
        self, guests: Sequence[Guest], host: balloon.Host, now_s: float
    ) -> Iterable[BalloonTarget]: ...


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
            free = guest.said_unused()
            return free is None or free <= guest.minimum_mib / 4 or guest.actual_mib < guest.minimum_mib

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
        unused = _unused(guests)
        known = [guest for guest in guests if guest.vmid in unused]
        poor = [one for one in known if unused[one.vmid] < bounds(self.policy, one.actual_mib)[0]]
        rich = [one for one in known if unused[one.vmid] > bounds(self.policy, one.actual_mib)[1]]
        if not poor or not rich:
            return []
        giver = max(rich, key=lambda guest: unused[guest.vmid] / guest.actual_mib)
        taker = min(poor, key=lambda guest: unused[guest.vmid] / guest.actual_mib)
        amount = min(
            unused[giver.vmid] / 2, giver.actual_mib - giver.minimum_mib, taker.maximum_mib - taker.actual_mib
        )
        if amount <= 0:
            return []
        return [
            BalloonTarget(giver.vmid, round(giver.actual_mib - amount), ""),
            BalloonTarget(taker.vmid, round(taker.actual_mib + amount), ""),
        ]


class KvmScheduling:
    """The memory coordinator of kvmScheduling (github.com/seanchen1991/kvmScheduling), as it really is.

    One pair a period: the guest with most unused memory and the one with least, wherever they stand between
    150 and 300 MiB. While the least has 150 or less and the most 300 or more, the one's size is set to half
    of what it has unused, and the other's to what it has unused plus that half; without a rich one, to what
    it has unused plus 300 MiB. While nobody is poor, the rich one's size is set to what it has unused less
    300 MiB. So it takes unused memory for the size; libvirt obeys, here down to the guests' minimum. What it
    reads is free memory, without cache; here it is given what is available, which is kinder.
    """

    STARVED_MIB, WASTEFUL_MIB = 150.0, 300.0

    def __call__(self, guests: Sequence[Guest], host: balloon.Host, now_s: float) -> Iterable[BalloonTarget]:
        unused = _unused(guests)
        if not unused:
            return []
        rich, poor = max(unused, key=unused.__getitem__), min(unused, key=unused.__getitem__)
        half = unused[rich] / 2
        if unused[poor] <= self.STARVED_MIB:
            if unused[rich] >= self.WASTEFUL_MIB:
                sizes = {rich: half, poor: unused[poor] + half}
            else:
                sizes = {poor: unused[poor] + self.WASTEFUL_MIB}
        elif unused[rich] >= self.WASTEFUL_MIB:
            sizes = {rich: unused[rich] - self.WASTEFUL_MIB}
        else:
            sizes = {}
        return [BalloonTarget(vmid, round(size), "") for vmid, size in sizes.items()]


def _unused(guests: Sequence[Guest]) -> dict[int, float]:
    said = ((guest.vmid, guest.said_unused()) for guest in guests)
    return {vmid: mib for vmid, mib in said if mib is not None}
