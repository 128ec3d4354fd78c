"""What is wrong in the cluster that a move could end: VMs without a place, needless crossings, contention.
And how much is wanted of each node. Pure.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

from pxsched.cluster.paper import Paper, least, owns
from pxsched.placement import defrag
from pxsched.placement.request import VmClass
from pxsched.value import Value

# A VM whose CPUs are wanted more than they are there is in contention, unless it is nearly alone in wanting
# them; a move must leave it clearly better. In CPUs for each CPU.
CROWDED, RELIEF = 1.0, 0.8
ALONE, LONELY = 0.1, 0.05
COOLDOWN_S = 3600.0


class Reason(StrEnum):
    UNPLACED = "unplaced"
    CROSSING = "crossing"
    CONTENTION = "contention"
    DRAIN = "drain"
    EVEN = "even"


class Wrong(NamedTuple):
    reason: Reason
    why: str


class Guest(Value):
    """A VM that runs. rested_s: since it came to its node, None when unknown. ha: HA moves it."""

    vmid: int
    enabled: bool
    rested_s: float | None = None
    ha: bool = False

    @property
    def rested(self) -> bool:
        return self.rested_s is None or self.rested_s >= COOLDOWN_S


def wrongs(
    sheets: Mapping[str, Paper], guests: Mapping[int, Guest], crowd_of: Callable[[str], Mapping[int, float]]
) -> dict[int, Wrong]:
    """What is wrong with which VM, where a move could end it. crowd_of: as `crowded`, by node."""
    found: dict[int, Wrong] = {}
    for name, sheet in sheets.items():
        for vmid in sheet.strangers:
            if vmid in guests and guests[vmid].enabled:
                found[vmid] = Wrong(Reason.UNPLACED, f"it has no place on {name}")
        crowd = crowd_of(name)
        for vmid, tenant in sheet.tenants.items():
            held = tenant.held
            if vmid not in guests:
                continue
            span = defrag.span_of(sheet.machine, held)
            narrow = least(sheet, len(held.vcpus))
            if held.vm_class is VmClass.DEDICATED and span.rank > narrow.rank:
                text = f"it spans {_span(span)} on {name}, where {_span(narrow)} could do"
                found[vmid] = Wrong(Reason.CROSSING, text)
            elif vmid in crowd:
                text = f"{crowd[vmid]:.2f} are wanted for each of its CPUs on {name}"
                found[vmid] = Wrong(Reason.CONTENTION, text)
    return found


def crowded(sheet: Paper) -> dict[int, float]:
    """The VMs in contention, and what is wanted of their CPUs: those that share them and were measured."""
    found = {}
    floats = [tenant.held for tenant in sheet.tenants.values() if not owns(tenant.held)]
    for held in floats:
        if held.load is not None:
            wanted = sheet.contention(held, held.load)
            if wanted > CROWDED and wanted - held.load / len(held.cpus) > ALONE:
                found[held.vmid] = wanted
    return found


def relieved(contention: float, load: float | None, cpus: int) -> bool:
    """Whether a VM with this demand would be clearly better off where so much is wanted of so many CPUs."""
    return load is None or contention <= RELIEF * CROWDED or contention - load / cpus <= LONELY


def _span(span: defrag.Span) -> str:
    return f"{span.nodes} node{'s' * (span.nodes > 1)} and {span.groups} L3 group{'s' * (span.groups > 1)}"


def fill(sheet: Paper) -> float:
    """How much is wanted of a node, for each of its CPUs."""
    return sheet.demand / max(1, sheet.machine.online.bit_count())
