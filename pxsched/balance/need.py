"""What a guest needs: what it uses, by its own statistics, and the margins within which that is enough.

Available memory comes first. What a guest reads, swaps or faults in says nothing while it has memory to
spare: on Windows reads of mapped files are counted so, on Linux every first read of a mapped file, and zram
is swapped to long before memory is short (`balloon.Stats`).
"""

import math

from pxsched.balance.balloon import Guest, Record, Standing, Stats
from pxsched.settings.policy import Policy

# What firmware and kernel keep, at most: what is missing beyond that is a balloon that moves just now.
# (Linux of 128 MiB to 8 GiB in the sandbox kept 2 to 6 %.)
KEPT_MIB, KEPT_PART = 64, 1 / 16
# No guest is asked to go below what it uses and this much. (BitBrains, days 2 and 5.)
FLOOR_MIB, FLOOR_PART = 64, 0.03
# More than this is activity. Writing to swap says how much is missing, reading only that something is.
# (Guests with zram among the VMs of even number, Google: when who writes was believed to be full, they were
# given and gave the same memory at each pass, 709 GiB in twelve hours instead of 42. A Linux guest with much
# available: 11,292 major faults/s of one program that reads a mapped file.)
SWAP_MIB_S, FAULTS_S = 0.25, 100.0


def standing(guest: Guest, stats: Stats, known: Record | None, fall_s: float, now_s: float) -> Standing:
    """A guest's place between starved and wasteful. fall_s: how long a fallen need counts for 37 %."""
    used = _used(guest, stats)
    floor = max(FLOOR_MIB, FLOOR_PART * guest.actual_mib)
    elapsed, need, losing = 10.0, used, False
    if known is not None and now_s > known.at_s:
        elapsed = now_s - known.at_s
    # What was counted before a silence, or during one, is not of now.
    if known is not None and now_s > known.at_s and known.silent_s is None:
        written_mib = stats.swapped_out_mib - known.swapped_out_mib
        starving_below, wasteful_above = bounds(guest.policy, used)
        # Who says that more than the upper bound is available is not starved by what it does; and who reads
        # is short only if it starves by its own word as well.
        losing = guest.actual_mib < starving_below and _reads(stats, known, elapsed)
        if written_mib / elapsed > SWAP_MIB_S and guest.actual_mib < wasteful_above:
            losing = True
            # What it wrote meanwhile it would have kept.
            used = min(guest.actual_mib, used + written_mib)
    if known is not None:
        need = max(used, used + (known.need_mib - used) * math.exp(-elapsed / fall_s / known.patience))
    low, high = bounds(guest.policy, used)
    lasting = bounds(guest.policy, need)[1]
    low, high, lasting, least = (
        min(guest.maximum_mib, max(guest.minimum_mib, size)) for size in (low, high, lasting, used + floor)
    )
    return Standing(guest, used, need, low, high, lasting, min(least, low), losing, elapsed)


def bounds(policy: Policy, used_mib: float) -> tuple[float, float]:
    """The sizes below which a guest that uses so much starves, and above which it wastes."""
    low = max(used_mib + policy.starved_mib, used_mib / (1 - min(90.0, policy.starved_percent) / 100))
    high = max(used_mib + policy.wasteful_mib, used_mib / (1 - min(95.0, policy.wasteful_percent) / 100))
    return low, max(low, high)


def _used(guest: Guest, stats: Stats) -> float:
    """A balloon lowers Linux's total and not Windows'; what firmware and kernel keep is used as well."""
    total = min(stats.total_mib, guest.actual_mib)
    kept = min(guest.actual_mib - total, max(KEPT_MIB, KEPT_PART * guest.maximum_mib))
    return max(0.0, total - stats.available_mib) + kept


def _reads(stats: Stats, known: Record, elapsed_s: float) -> bool:
    """Whether the guest reads from swap or mapped files."""
    return (
        (stats.swapped_in_mib - known.swapped_in_mib) / elapsed_s > SWAP_MIB_S
        or (stats.major_faults - known.major_faults) / elapsed_s > FAULTS_S
    )  # fmt: skip
