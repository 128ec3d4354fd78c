"""Where a guest's picture of its vCPUs and the truth part, and what that costs it."""

from collections.abc import Iterator, Sequence

from pxsched.host import cpulist
from pxsched.shape.picture import Parts, Picture, runs


def differences(real: Picture, told: Picture) -> list[str]:
    """One sentence each. Empty where the guest sees what is so."""
    return [
        *_level(
            real.cores,
            told.cores,
            "vCPUs {} are siblings of one core and the guest takes them for cores: two busy tasks may share a"
            " core while others idle",
            "the guest takes vCPUs {} for siblings of one core and they are not: it crowds"
            " other cores before it uses them",
        ),
        *_level(
            real.nodes,
            told.nodes,
            "vCPUs {} are on one NUMA node and the guest has them on several: it keeps memory"
            " apart for nothing",
            "the guest has vCPUs {} on one NUMA node and they are on several: some of what it"
            " takes for near is far",
        ),
        *_level(
            real.l3s,
            told.l3s,
            "vCPUs {} share an L3 cache and the guest does not know: it wakes tasks away from their data",
            "the guest believes that vCPUs {} share an L3 cache and they have several: it wakes tasks"
            " away from their data",
        ),
    ]


def _level(real: Parts, told: Parts, hidden: str, false: str) -> Iterator[str]:
    if untrue := [group for group in runs(told) if len({real[vcpu] for vcpu in group}) > 1]:
        yield false.format(_some(untrue))
    if unknown := [group for group in runs(real) if len({told[vcpu] for vcpu in group}) > 1]:
        yield hidden.format(_some(unknown))


def _some(groups: Sequence[Sequence[int]]) -> str:
    more = f" (and {len(groups) - 1} more groups)" if len(groups) > 2 else ""
    named = groups[:1] if more else groups
    return " and ".join(cpulist.format(group) for group in named) + more


def summary(picture: Picture) -> str:
    """`8 cores x 2 threads, 2 L3 groups, 1 NUMA node`."""
    cores, l3s, nodes = (len(set(level)) for level in (picture.cores, picture.l3s, picture.nodes))
    vcpus = len(picture.cores)
    threads = f" x {vcpus // cores} threads" if vcpus > cores and not vcpus % cores else ""
    return f"{_of(cores, 'core')}{threads}, {_of(l3s, 'L3 group')}, {_of(nodes, 'NUMA node')}"


def _of(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
