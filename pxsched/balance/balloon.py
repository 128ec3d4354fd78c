"""Balloons as values: what a guest says of its memory, what it may have, and what is remembered of it.

Sizes are in MiB. The statistics are virtio's (VIRTIO 1.2, 5.5.6.3), as QEMU shows them in `guest-stats`.
"""

from collections.abc import Mapping

from pxsched import stored
from pxsched.settings.policy import Policy
from pxsched.value import NOTHING, Value, items


class Stats(Value):
    """A guest's own statistics, as its driver defines them. age_s: how old all this is.

    swapped_in_mib, swapped_out_mib, major_faults: since it booted. Windows counts what it reads of mapped
    files as swapped in (virtio-win PR 54), Linux as major faults every first read of a mapped file
    (mm/filemap.c), and swapping to zram as any other.
    """

    total_mib: float
    available_mib: float
    swapped_in_mib: float = 0.0
    major_faults: int = 0
    age_s: float = 0.0
    swapped_out_mib: float = 0.0


class Guest(Value):
    """One running guest. start: its process's start time. actual_mib: what its balloon leaves it.

    minimum_mib, maximum_mib: `balloon` and `memory`. shares: its weight, 0 where it has stated none.
    nodes: the NUMA nodes its memory is bound to, empty for none. resident_mib: host memory it really holds.
    excluded: why it is not to be touched, empty when it may be. unheard: why it cannot be spoken with now.
    silence: in which way it gives no statistics. kept: why nothing may be taken from it now. pinned: the host
    does not get its memory back, whatever its balloon says: to let it have all costs nothing.
    """

    vmid: int
    start: int
    actual_mib: float
    minimum_mib: int
    maximum_mib: int
    stats: Stats | None = None
    policy: Policy = Policy()
    shares: int = 0
    nodes: frozenset[int] = frozenset()
    resident_mib: float | None = None
    excluded: str = ""
    unheard: str = ""
    silence: str = ""
    kept: str = ""
    pinned: bool = False

    @property
    def held_mib(self) -> float:
        """Host memory it holds."""
        return self.actual_mib if self.resident_mib is None else min(self.resident_mib, self.actual_mib)

    @property
    def untouched_mib(self) -> float:
        """What it was given and has not touched yet, or the host has swapped out: as good as gone."""
        return self.actual_mib - self.held_mib


class Host(Value):
    """The host's memory. available_mib: what it could give at once without swapping.

    arc_mib: what ZFS would give up besides, in its own time. merged_mib: what KSM saves until it is written
    to. stalled: time lost to memory stalls (pressure, full avg10, per cent). nodes_mib: available, by node.
    """

    total_mib: float
    available_mib: float
    stalled: float = 0.0
    nodes_mib: Mapping[int, float] = NOTHING
    arc_mib: float = 0.0
    merged_mib: float = 0.0


class BalloonTarget(Value):
    vmid: int
    target_mib: int
    why: str


class Record(Value):
    """What is remembered of one guest. need_mib: its need as smoothed at at_s (CLOCK_MONOTONIC).

    target_mib: what it was last told, None before that; set_s: when; change_mib: how much more than it had.
    pace: how well it follows, 1 at first. patience: how much longer than others it may keep what it does not
    use, since it has wanted back before what it gave up. silent_s: since when it gives no statistics.
    available_mib: what it had available at at_s. unanswered_mib: what it was given that it did not answer to.
    """

    start: int
    at_s: float
    need_mib: float
    swapped_in_mib: float = 0.0
    swapped_out_mib: float = 0.0
    major_faults: int = 0
    target_mib: int | None = None
    set_s: float = 0.0
    pace: float = 1.0
    change_mib: float = 0.0
    patience: float = 1.0
    silent_s: float | None = None
    unanswered_mib: float = 0.0
    available_mib: float = 0.0


class HostRecord(Value):
    """What is remembered of the host: ZFS's cache at at_s, and how fast it is believed to shrink."""

    at_s: float
    arc_mib: float
    arc_mib_s: float


class State(Value):
    """The coordinator's memory between passes. targets: what every guest was last told."""

    guests: Mapping[int, Record] = NOTHING
    host: HostRecord | None = None

    @property
    def targets(self) -> dict[int, int]:
        told = ((vmid, record.target_mib) for vmid, record in self.guests.items())
        return {vmid: target for vmid, target in told if target is not None}

    def to_json(self) -> dict[str, object]:
        guests = {str(vmid): [content for _, content in items(one)] for vmid, one in self.guests.items()}
        return {"guests": guests, "host": self.host and [content for _, content in items(self.host)]}

    @classmethod
    def from_json(cls, value: object) -> "State":
        """The state again. Raises Damaged."""
        document = stored.table(value)
        return cls(stored.by_vmid(document.get("guests"), _record), stored.maybe(_host, document.get("host")))


def _record(body: object) -> Record:
    start, at_s, need, swap_in, swap_out, faults, target, set_s, pace, change, *rest = stored.items(body, 14)
    patience, silent, given, available = rest
    return Record(
        stored.integer(start),
        stored.number(at_s),
        stored.number(need),
        stored.number(swap_in),
        stored.number(swap_out),
        stored.integer(faults),
        stored.maybe(stored.integer, target),
        stored.number(set_s),
        stored.number(pace),
        stored.number(change, -1e15),
        stored.number(patience),
        stored.maybe(stored.number, silent),
        stored.number(given),
        stored.number(available),
    )


def _host(body: object) -> HostRecord:
    return HostRecord(*(stored.number(one) for one in stored.items(body, 3)))


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
    least_mib: what it is never asked to go below. losing: it has less than it could use, and swaps or reads
    back what it lost.
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
    def firm(self) -> bool:
        """Whether nothing is taken from it while the host can do without."""
        return (self.losing and self.starving) or bool(self.guest.kept)

    @property
    def slack(self) -> float:
        return (self.guest.actual_mib - self.used_mib) / max(1.0, self.guest.actual_mib)

    def at(self, fill: float, weight: float, *, first: bool) -> float:
        """Its size when everyone stands at `fill`: 1 at the upper bound, 0 at the lower, below that
        on the way to the least. first: it is there at -1 by its weight, and the others only then begin.
        """
        if fill >= 0:
            return self.low_mib + min(1.0, fill * weight) * (self.high_mib - self.low_mib)
        below = fill if first else min(0.0, fill + 1)
        return self.low_mib + max(-1.0, below / weight) * (self.low_mib - self.least_mib)

    def why(self, what: str) -> str:
        """A sentence for people. what: what happens to it."""
        guest = self.guest
        unused = max(0.0, guest.actual_mib - self.used_mib)
        state = "starves" if self.starving else "has more than it needs" if self.wasteful else "stands out"
        if guest.actual_mib < guest.minimum_mib - 1:
            state = "is below its minimum"
        return f"VM {guest.vmid} {state} with {unused:.0f} of {guest.actual_mib:.0f} MiB unused and {what}"
