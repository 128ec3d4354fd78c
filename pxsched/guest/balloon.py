"""Balloons by QMP: what guests say of their memory, and what they are told to keep.

Rules: QEMU's virtio-balloon (`guest-stats` of the device Proxmox calls balloon0, `query-balloon`, `balloon`).
Statistics come from the guest: every number is bounded by what the VM was given, and none is trusted.
"""

import math
import threading
import time
from collections.abc import Iterable, Mapping
from enum import StrEnum

from pxsched.guest.qmp import Json, Qmp, QmpError, QmpProtocol, QmpRefused
from pxsched.root import Root
from pxsched.value import Value

DEVICE = "/machine/peripheral/balloon0"
MIB = 1 << 20
# Proxmox sets it at each start; where statistics do not come, or no longer, it is set again: other tools
# switch them off.
POLLING_S, LATE_S = 2, 6.0
# How old statistics may be.
BELIEVED_S = 15.0
# So many guests are asked at the same time; each conversation is a few milliseconds of waiting.
_AT_ONCE = 32


class Silence(StrEnum):
    """In which way a guest does not say what it has."""

    NO_DRIVER = "no balloon driver"
    NO_STATISTICS = "a balloon driver without statistics"
    STALE = "its statistics are stale"


class Reading(Value):
    """actual_mib: what the balloon leaves the guest. The rest is None or 0 where it has said nothing yet.

    swapped_in_mib, swapped_out_mib, major_faults: since it booted. age_s: how old the statistics are; None
    without any. answered: whether a driver ever answered, be it with every value unset.
    """

    actual_mib: float
    total_mib: float = 0.0
    available_mib: float = 0.0
    swapped_in_mib: float = 0.0
    swapped_out_mib: float = 0.0
    major_faults: int = 0
    age_s: float | None = None
    answered: bool = False

    def silence(self, maximum_mib: float, *, moved: bool = False) -> Silence | None:
        """None for a guest that speaks. maximum_mib: its memory; moved: whether its balloon has followed us.

        A balloon that leaves a guest less than all its memory has a driver: QEMU begins with all of it.
        """
        if self.age_s is not None:
            return Silence.STALE if self.age_s > BELIEVED_S else None
        driver = self.answered or moved or self.actual_mib < maximum_mib - 1
        return Silence.NO_STATISTICS if driver else Silence.NO_DRIVER


def read_all(root: Root, vmids: Iterable[int], *, patience_s: float) -> dict[int, Reading | str]:
    """What every guest says, or why it could not be asked. All are asked at once, within one deadline.

    Each time another one is the first: many that hang, on one dead storage, are in the way of others only now
    and then.
    """
    waiting = sorted(vmids)
    first = time.monotonic_ns() // 1000 % max(1, len(waiting))
    waiting = waiting[first:] + waiting[:first]
    found: dict[int, Reading | str] = dict.fromkeys(waiting, "QEMU does not answer")
    deadline = time.monotonic() + patience_s
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                vmid = waiting.pop(0)
            left = deadline - time.monotonic()
            answer = read(root, vmid, patience_s=left) if left > 0 else "there was no time to ask"
            with lock:
                found[vmid] = answer

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(_AT_ONCE, len(waiting)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, deadline + 0.1 - time.monotonic()))
    with lock:
        waiting.clear()
        return dict(found)


def read(root: Root, vmid: int, *, patience_s: float) -> Reading | str:
    """One guest's balloon, or why there is nothing to say of it."""
    try:
        with Qmp(root, vmid, patience_s=patience_s) as qmp:
            actual = _actual_bytes(qmp.execute("query-balloon"))
            stats = qmp.execute("qom-get", {"path": DEVICE, "property": "guest-stats"})
            reading = _reading(actual, stats, time.time())
            if reading.age_s is None or reading.age_s > LATE_S:
                polling: dict[str, Json] = {"property": "guest-stats-polling-interval", "value": POLLING_S}
                qmp.execute("qom-set", {"path": DEVICE, **polling})
            return reading
    except QmpError as error:
        return str(error)


def hand_over(root: Root, vmid: int, low_mib: int, high_mib: int, *, patience_s: float) -> int:
    """Leaves the guest what it needs, for whoever moves its balloon from now on; gives the size it was told.

    low_mib, high_mib: its configured bounds. Raises QmpError.
    """
    with Qmp(root, vmid, patience_s=patience_s) as qmp:
        actual = _actual_bytes(qmp.execute("query-balloon"))
        try:
            stats = qmp.execute("qom-get", {"path": DEVICE, "property": "guest-stats"})
        except QmpRefused:
            stats = None
        target_mib = needed_mib(_reading(actual, stats, time.time()), low_mib, high_mib)
        qmp.execute("balloon", {"value": target_mib * MIB})
        return target_mib


# What a guest keeps beyond what it uses when its balloon is handed over: MiB, and a share of its memory.
SPARE_MIB, SPARE_PERCENT = 300, 15
# Statistics older than this tell nothing of the guest as it is.
STALE_S = 60.0


def needed_mib(reading: Reading, low_mib: int, high_mib: int) -> int:
    """What a guest can be left with: never less than it has, it uses, and is configured; all that it may have
    where nothing is known of it.
    """
    high_mib = max(high_mib, low_mib)
    if reading.age_s is None or reading.age_s > STALE_S:
        return high_mib
    used_mib = reading.total_mib - reading.available_mib
    # What the guest counts as its total lacks what its kernel keeps for itself.
    hidden_mib = max(0.0, reading.actual_mib - reading.total_mib)
    spare_mib = max(SPARE_MIB, high_mib * SPARE_PERCENT // 100)
    needed = math.ceil(max(low_mib, reading.actual_mib, used_mib + hidden_mib + spare_mib))
    return min(needed, max(high_mib, math.ceil(reading.actual_mib)))


def actual_mib(root: Root, vmid: int, *, patience_s: float) -> int:
    """What the balloon leaves the guest now. Raises QmpError."""
    with Qmp(root, vmid, patience_s=patience_s) as qmp:
        return _actual_bytes(qmp.execute("query-balloon")) // MIB


def set_target(root: Root, vmid: int, target_mib: int, *, patience_s: float) -> None:
    """Tells the guest how much to keep; it follows in its own time. Raises QmpError."""
    with Qmp(root, vmid, patience_s=patience_s) as qmp:
        qmp.execute("balloon", {"value": int(target_mib) * MIB})


def _actual_bytes(answer: Json) -> int:
    actual = answer.get("actual") if isinstance(answer, dict) else None
    if type(actual) is not int or not 0 < actual < 1 << 60:
        raise QmpProtocol("query-balloon: no size")
    return actual


def _reading(actual_bytes: int, answer: Json, now_s: float) -> Reading:
    """The statistics as far as they make sense; QEMU gives 2^64 - 1 or -1 for what the guest did not say."""
    actual = actual_bytes / MIB
    stats = answer.get("stats") if isinstance(answer, dict) else None
    updated = answer.get("last-update") if isinstance(answer, dict) else None
    if not isinstance(stats, dict) or type(updated) is not int or not 0 < updated < 1 << 60:
        return Reading(actual)
    total, available = _bytes(stats, "stat-total-memory"), _bytes(stats, "stat-available-memory")
    if not total or available is None:
        return Reading(actual, answered=True)
    return Reading(
        actual,
        total / MIB,
        min(total, available) / MIB,
        (_bytes(stats, "stat-swap-in") or 0) / MIB,
        (_bytes(stats, "stat-swap-out") or 0) / MIB,
        _bytes(stats, "stat-major-faults") or 0,
        # A clock that was set back makes them as old as they were made young.
        abs(now_s - updated),
        answered=True,
    )


def _bytes(stats: Mapping[str, Json], name: str) -> int | None:
    value = stats.get(name)
    return value if type(value) is int and 0 <= value < 1 << 60 else None
