"""CPU time that belongs to nobody we know: what is left of each CPU's busy time without VMs and containers.

The kernel says of a VM what it used, not on which CPU. So it is taken from the CPUs where it may run, in
proportion to what is left there, and those with the fewest CPUs come first: of a VM with a CPU of its own
nothing has to be guessed, and over all CPUs of a home the sum is right.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

# Less is what any host does beside its work.
LEAST = 0.02


class Known(NamedTuple):
    """Somebody who is known. used: in CPUs."""

    cpus: frozenset[int]
    used: float


def unexplained(busy: Mapping[int, float], known: Iterable[Known]) -> dict[int, float]:
    """The part of its time (0 to 1) that each CPU works for nobody known. busy: for everybody."""
    left = dict(busy)
    for one in sorted(known, key=lambda one: len(one.cpus)):
        cpus = [cpu for cpu in one.cpus if cpu in left]
        total = sum(left[cpu] for cpu in cpus)
        if total > 0:
            part = max(0.0, 1 - one.used / total)
            for cpu in cpus:
                left[cpu] *= part
    return {cpu: round(part, 3) for cpu, part in left.items() if part >= LEAST}
