"""Who else may run on dedicated CPUs, for `status` and for Prometheus."""

from collections.abc import Iterable, Iterator
from typing import Any

from pxsched.host import cpulist
from pxsched.node.exclusive import Exclusive, Kind, Sharer
from pxsched.output import some

MOST = 4


def document(found: Exclusive | None) -> dict[str, Any] | None:
    """One VM's part; None for a VM that has no CPUs to itself."""
    if found is None:
        return None
    sharers = [
        {"kind": one.kind, "name": one.name, "cpus": cpulist.format(one.cpus)} for one in found.sharers
    ]
    return {"cpus": cpulist.format(found.cpus), "open_to": sharers}


def lines(found: Iterable[Exclusive]) -> Iterator[str]:
    """The same for a person, a line a VM."""
    for vm in found:
        cpus = cpulist.format(vm.cpus)
        if vm.sharers:
            yield f"VM {vm.vmid}: CPUs {cpus} are open to others, too: {summary(vm.sharers)}"
        else:
            yield f"VM {vm.vmid}: nothing else may run on CPUs {cpus} but the kernel's own threads"


def summary(sharers: Iterable[Sharer]) -> str:
    """`system.slice, VM 200 (on CPUs 1-2), 12 interrupts (on CPUs 1)`: who, and where."""
    sharers = list(sharers)
    by_place: dict[frozenset[int], list[str]] = {}
    for one in sharers:
        if one.kind is not Kind.INTERRUPT:
            by_place.setdefault(one.cpus, []).append(one.name)
    parts = [f"{some(names, MOST)} on CPUs {cpulist.format(cpus)}" for cpus, names in by_place.items()]
    vectors = [one for one in sharers if one.kind is Kind.INTERRUPT]
    if vectors:
        cpus = frozenset[int]().union(*(one.cpus for one in vectors))
        count = f"{len(vectors)} interrupts" if len(vectors) > 1 else vectors[0].name
        parts.append(f"{count} on CPUs {cpulist.format(cpus)}")
    return "; ".join(parts)
