"""Balloons as values: what a guest says of its memory, what it may have, and what is remembered of it.

Sizes are in MiB. The statistics are virtio's (VIRTIO 1.2, 5.5.6.3), as QEMU shows them in `guest-stats`.
"""

from collections.abc import Mapping

from pxsched import stored
from pxsched.settings.policy import Policy
from pxsched.value import NOTHING, Value


class Stats(Value):
    """A guest's own statistics. swapped_mib, major_faults: since it booted. age_s: how old all this is."""

    total_mib: float
    available_mib: float
    swapped_mib: float = 0.0
    major_faults: int = 0
    age_s: float = 0.0


class Guest(Value):
    """One running guest. start: its process's start time. actual_mib: what its balloon leaves it.

    minimum_mib, maximum_mib: `balloon` and `memory`. shares: 0 counts as Proxmox's default, 1000.
    nodes: the NUMA nodes its memory is bound to, empty for none. resident_mib: host memory it really holds.
    excluded: why it is not to be touched, empty when it may be. unheard: why it has no statistics now.
    """

    vmid: int
    start: int
    actual_mib: float
    minimum_mib: int
    maximum_mib: int
    stats: Stats | None = None
    policy: Policy = Policy()
    shares: int = 1000
    nodes: frozenset[int] = frozenset()
    resident_mib: float | None = None
    excluded: str = ""
    unheard: str = ""


class Host(Value):
    """The host's memory. available_mib: what it could give without swapping, shrinkable caches included.

    stalled: time lost to memory stalls (pressure, full avg10, per cent). nodes_mib: available, by NUMA node.
    """

    total_mib: float
    available_mib: float
    stalled: float = 0.0
    nodes_mib: Mapping[int, float] = NOTHING


class BalloonTarget(Value):
    vmid: int
    target_mib: int
    why: str


class Record(Value):
    """What is remembered of one guest. need_mib: its need as smoothed at at_s (CLOCK_MONOTONIC).

    target_mib: what it was last told, None before that; set_s: when; change_mib: how much more than it had.
    pace: how well it follows, 1 at first. patience: how much longer than others it may keep what it does not
    use, since it has wanted back before what it gave up.
    """

    start: int
    at_s: float
    need_mib: float
    swapped_mib: float = 0.0
    major_faults: int = 0
    target_mib: int | None = None
    set_s: float = 0.0
    pace: float = 1.0
    change_mib: float = 0.0
    patience: float = 1.0


class State(Value):
    """The coordinator's memory between passes. targets: what every guest was last told."""

    guests: Mapping[int, Record] = NOTHING

    @property
    def targets(self) -> dict[int, int]:
        told = ((vmid, record.target_mib) for vmid, record in self.guests.items())
        return {vmid: target for vmid, target in told if target is not None}

    def to_json(self) -> dict[str, object]:
        return {
            str(vmid): [
                one.start,
                one.at_s,
                one.need_mib,
                one.swapped_mib,
                one.major_faults,
                one.target_mib,
                one.set_s,
                one.pace,
                one.change_mib,
                one.patience,
            ]
            for vmid, one in self.guests.items()
        }

    @classmethod
    def from_json(cls, value: object) -> "State":
        """The state again. Raises Damaged."""
        return cls(stored.by_vmid(value, _record))


def _record(body: object) -> Record:
    start, at_s, need, swapped, faults, target, set_s, pace, change, patience = stored.items(body, 10)
    return Record(
        stored.integer(start),
        stored.number(at_s),
        stored.number(need),
        stored.number(swapped),
        stored.integer(faults),
        stored.maybe(stored.integer, target),
        stored.number(set_s),
        stored.number(pace),
        stored.number(change, -1e15),
        stored.number(patience),
    )


class Outcome(Value):
    """One pass. skipped: why a guest was not looked at, by VMID. standings: how the others fare."""

    targets: tuple[BalloonTarget, ...]
    skipped: Mapping[int, str]
    state: State
    standings: Mapping[int, "Standing"]


class Standing(Value):
    """A guest's place. used_mib: what it uses now; need_mib: what it used of late, falling slowly.

    low_mib, high_mib: below the one it starves now, above the other it could give something up.
    lasting_mib: the upper bound for what it used of late: above it, it wastes.
    least_mib: what it is never asked to go below. losing: it swaps or reads its programs back.
    """

    guest: Guest
    used_mib: float
    need_mib: float
    low_mib: float
    high_mib: float
    lasting_mib: float
    least_mib: float
    losing: bool
    elapsed_s: float

    @property
    def starving(self) -> bool:
        return self.guest.actual_mib < self.low_mib - 1

    @property
    def wasteful(self) -> bool:
        return self.guest.actual_mib > self.lasting_mib + 1

    @property
    def slack(self) -> float:
        return (self.guest.actual_mib - self.used_mib) / max(1.0, self.guest.actual_mib)

    def at(self, fill: float, mean_shares: float) -> float:
        """Its size when everyone stands at `fill`: 0 at the lower bound, 1 at the upper, -1 at the least."""
        weight = (self.guest.shares or 1000) / mean_shares
        if fill >= 0:
            size = self.low_mib + min(1.0, fill * weight) * (self.high_mib - self.low_mib)
        else:
            size = self.low_mib + max(-1.0, fill / weight) * (self.low_mib - self.least_mib)
        return size
