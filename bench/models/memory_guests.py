"""Guests with balloons, of several kinds: what each needs, what its balloon does, and what it says of itself.

A guest uses what its load says and fills the rest with cache. Its balloon grows only as fast as the guest
can free memory and never into what it uses; it shrinks at once. A guest whose need exceeds what it has
swaps. All sizes in MiB.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from pxsched.balance import balloon
from pxsched.guest.balloon import BELIEVED_S
from pxsched.settings.policy import Policy

# A guest's balloon driver frees pages at this speed; firmware and kernel keep a part for themselves.
INFLATE_MIB_S = 200.0
KERNEL_PART = 0.02
_TIGHT_MIB = 8.0
_SWAP_MIB_S = 20.0
# What a Windows guest reads of files, counted as swapped in (virtio-win PR 54); what a Linux guest with zram
# swaps out early, with this part of its memory still available; mapped files' first reads (PGMAJFAULT), by
# Linux guests of odd number: the others are quiet.
_READS_MIB_S, _FAULTS_S = 2.0, 150.0
_EARLY_MIB_S, _EARLY_PART = 1.0, 0.3
# A guest that falls silent does so at this time; whoever polls again is answered unless it has no statistics.
SILENT_FROM_S = 4 * 3600.0


class Kind(StrEnum):
    LINUX = "Linux"
    ZRAM = "Linux with zram"
    WINDOWS = "Windows"
    FREEBSD = "FreeBSD"  # a balloon driver without statistics
    SILENT = "silent"  # its statistics end
    LYING = "lying"  # says that nothing is available


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
    kind: Kind = Kind.LINUX
    target_mib: float = 0.0
    swapped_mib: float = 0.0
    read_mib: float = 0.0
    early_mib: float = 0.0
    faults: float = 0.0
    need_mib: float = 0.0
    stats_age_s: float = 0.0
    inflate_mib_s: float = INFLATE_MIB_S

    def pass_time(self, now_s: float, seconds: float, spare_mib: float) -> None:
        """Lets time go by. spare_mib: what the host can still give."""
        self.need_mib = self.load(now_s) + KERNEL_PART * self.maximum_mib
        missing = max(0.0, self.need_mib - self.actual_mib)
        if missing:
            self.swapped_mib += min(missing, _SWAP_MIB_S * seconds)
        self._count(seconds)
        if not self.driver or (self.kind is Kind.SILENT and now_s >= SILENT_FROM_S):
            self.stats_age_s += seconds
        if not self.driver:
            return
        if self.target_mib > self.actual_mib:
            self.actual_mib += min(self.target_mib - self.actual_mib, max(0.0, spare_mib))
        elif self.target_mib < self.actual_mib:
            unused = max(0.0, self.actual_mib - self.need_mib - _TIGHT_MIB)
            wanted = self.actual_mib - self.target_mib
            self.actual_mib -= min(wanted, unused, self.inflate_mib_s * seconds)

    def _count(self, seconds: float) -> None:
        """What it does with its memory however much it has."""
        if self.kind is Kind.WINDOWS:
            self.read_mib += _READS_MIB_S * seconds
        elif self.kind in (Kind.LINUX, Kind.ZRAM) and self.vmid % 2:
            self.faults += _FAULTS_S * seconds
        if self.kind is Kind.ZRAM and self.actual_mib - self.need_mib < _EARLY_PART * self.actual_mib:
            self.early_mib += _EARLY_MIB_S * seconds

    @property
    def available_mib(self) -> float:
        """By its own word."""
        return 0.0 if self.kind is Kind.LYING else max(0.0, self.actual_mib - self.need_mib)

    def stats(self) -> balloon.Stats | None:
        if self.kind is Kind.FREEBSD:
            return None
        # Windows counts what its balloon holds as its own (NumberOfPhysicalPages).
        size = self.maximum_mib if self.kind is Kind.WINDOWS else self.actual_mib
        return balloon.Stats(
            size - KERNEL_PART * self.maximum_mib,
            self.available_mib,
            self.swapped_mib + self.read_mib,
            int(self.faults),
            self.stats_age_s,
            self.swapped_mib + self.early_mib,
        )

    def said_unused(self) -> float | None:
        """What another rule takes for its unused memory; None of a silent one.

        What is missing is told as well, which no statistics do: that is kinder.
        """
        stats = self.stats()
        if stats is None or stats.age_s > BELIEVED_S:
            return None
        return 0.0 if self.kind is Kind.LYING else self.actual_mib - self.need_mib


def bounds(policy: Policy, actual_mib: float) -> tuple[float, float]:
    """Below the one unused memory a guest of this size starves, above the other it wastes."""
    return (
        max(policy.starved_mib, policy.starved_percent / 100 * actual_mib),
        max(policy.wasteful_mib, policy.wasteful_percent / 100 * actual_mib),
    )


def copies(guests: Iterable[Guest]) -> list[Guest]:
    """The same guests as at the beginning, for another rule."""
    return [replace(guest) for guest in guests]
