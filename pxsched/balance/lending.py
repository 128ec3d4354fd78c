"""What the host can lend: its available memory, ZFS's cache as it really shrinks, less what it keeps.

Kernel pressure (Documentation/accounting/psi.rst) stops lending before it makes the host keep more. Swap of
the host never counts: MemAvailable leaves it out, and guest memory that lies in it counts as not yet touched.
What KSM saves is available only until the guests write to it, so no guest's size is planned with it.
Where the slice of all VMs has a limit, that is the host's available memory (`host.pressure`).
"""

from pxsched.balance.balloon import Host, HostRecord
from pxsched.settings.policy import NodeSettings
from pxsched.value import Value

# Where the host has this part of its own to spare, nobody is hurried to give. (BitBrains, days 2 and 5.)
ROOM = 0.05
# With this much of the time lost to memory stalls (full avg10, per cent) nothing is lent and nobody is given
# more than he needs; with as much as the second, the host keeps a twentieth more. (Older than the traces,
# which have no stalls; kept low, as a host that is well has none at all.)
_LENDS_BELOW, _PRESSED, _PRESSED_PART = 1.0, 5.0, 0.05
# Below this part of the reserve the kernel is about to swap or kill: then even those give who are short
# themselves, or are being backed up. (No trace has such a host. Of the reserve half is lent at most.)
_URGENT_PART = 0.5
# ZFS gives up one 128th of its cache at a time (zfs_arc_shrink_shift, 7), and about once a second
# (arc_reap_cb_check). What it is seen to do counts from then on: twice as slow each time it did not give
# half of what was counted on while the host was short, down to the second. It counts until the next pass, ten
# seconds on. (No trace has ZFS.)
_ARC_PART, _ARC_SLOWEST_PART, _ARC_AHEAD_S = 1 / 128, 1 / 8192, 10.0


class Means(Value):
    """What may be given. available_mib: shrinkable caches included. spare_mib: of it, beyond the reserve.

    room: from 0 to 1, how leisurely guests may be treated. lends: whether the reserve may be drawn on.
    """

    total_mib: float
    reserve_mib: float
    available_mib: float
    lends: bool

    @property
    def spare_mib(self) -> float:
        return self.available_mib - self.reserve_mib

    @property
    def urgent(self) -> bool:
        return self.available_mib < _URGENT_PART * self.reserve_mib

    @property
    def room(self) -> float:
        return min(1.0, max(0.0, self.spare_mib) / (ROOM * self.total_mib))


def means(
    host: Host, known: HostRecord | None, settings: NodeSettings, now_s: float
) -> tuple[Means, HostRecord]:
    """The host's means in this pass, and what to remember of it."""
    reserve = settings.reserved_mib + (_PRESSED_PART * host.total_mib if host.stalled > _PRESSED else 0.0)
    record = HostRecord(now_s, host.arc_mib, _arc_mib_s(host, known, reserve, now_s))
    ahead_s = min(_ARC_AHEAD_S, now_s - known.at_s) if known and now_s > known.at_s else _ARC_AHEAD_S
    available = host.available_mib + min(host.arc_mib, record.arc_mib_s * ahead_s)
    return Means(host.total_mib, reserve, available, host.stalled < _LENDS_BELOW), record


def _arc_mib_s(host: Host, known: HostRecord | None, reserve_mib: float, now_s: float) -> float:
    """How fast ZFS is believed to give its cache up."""
    if known is None or known.arc_mib_s <= 0 or now_s <= known.at_s:
        return _ARC_PART * host.arc_mib
    seen = max(0.0, known.arc_mib - host.arc_mib) / (now_s - known.at_s)
    if seen >= known.arc_mib_s:
        return min(seen, max(known.arc_mib_s, host.arc_mib))
    if host.available_mib < reserve_mib and host.arc_mib > 0 and seen < known.arc_mib_s / 2:
        return max(_ARC_SLOWEST_PART * host.arc_mib, known.arc_mib_s / 2, seen)
    return known.arc_mib_s
