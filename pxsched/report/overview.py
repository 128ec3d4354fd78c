"""All VMs and containers of the node, one line each: what and where they are, and what they wait for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.host import cgroup, cpulist, topology
from pxsched.host.topology import Topology
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.node import exclusive, others, remembered
from pxsched.node import sighting as nodes
from pxsched.node.exclusive import Exclusive
from pxsched.node.others import Other
from pxsched.report import balance, frame
from pxsched.root import Root
from pxsched.value import NOTHING, Value

TITLES = ("", "class", "CPUs", "L3 crossings", "waits", "memory by node", "exclusive")
MOST_LETTERS = 30  # of the CPUs, on a terminal


class Line(Value):
    """One VM or container. cpus: in the order of its vCPUs where each has one of its own; crossings: L3
    groups beyond the first, None where the machine does not say. waiting: CPUs' worth of time, None before it
    was measured. memory_mib: by NUMA node, empty when unknown, as huge pages are, which the kernel does not
    count by group. exclusive: None for who was promised no CPUs.
    """

    vmid: int
    name: str
    kind: str
    cpus: str
    crossings: int | None = None
    waiting: float | None = None
    memory_mib: Mapping[int, int] = NOTHING
    exclusive: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """As a person reads them, in the order of TITLES."""
        memory = ", ".join(f"{node}: {_size(mib)}" for node, mib in sorted(self.memory_mib.items()))
        alone = {None: "-", True: "yes", False: "open to others"}[self.exclusive]
        crossings = "-" if self.crossings is None else str(self.crossings)
        waiting = "-" if self.waiting is None else f"{self.waiting:.2f}"
        return self.name, self.kind, self.cpus or "-", crossings, waiting, memory or "-", alone


def of_node(root: Root, ledger: Ledger) -> list[Line]:
    """All that is known of the node now."""
    return look(
        root,
        [claim for _, claim in sorted(ledger.claims.items())],
        others.known(root, {*ledger.claims}).others,
        {vm.vmid: vm for vm in exclusive.check(root, ledger, topology.isolated(root))},
        balance.waiting(remembered.last(root)),
    )


def look(
    root: Root,
    claims: Iterable[Claim],
    strange: Iterable[Other],
    checked: Mapping[int, Exclusive],
    waiting: Mapping[int, float],
) -> list[Line]:
    """The VMs that have a place, and then who else is there. checked, waiting: by VMID, as far as known."""
    try:
        machine = topology.read(root)
    except UserError:
        machine = None
    placed = [
        _placed(root, machine, claim, checked.get(claim.vmid), waiting.get(claim.vmid)) for claim in claims
    ]
    strangers = [
        Line(
            other.vmid,
            other.name,
            _kind(root, other),
            cpulist.format(other.cpus),
            memory_mib=other.memory_mib,
        )
        for other in strange
    ]
    return placed + strangers


def _placed(
    root: Root, machine: Topology | None, claim: Claim, checked: Exclusive | None, waiting: float | None
) -> Line:
    placement = claim.placement
    return Line(
        claim.vmid,
        f"VM {claim.vmid}",
        placement.vm_class.value,
        cpulist.of_vcpus(placement.vcpus),
        crossings(machine, placement.cpus) if machine else None,
        waiting,
        _memory_mib(root, claim),
        None if checked is None else not checked.sharers,
    )


def _kind(root: Root, other: Other) -> str:
    """Of those that have no place."""
    if other.process is None:
        return "container"
    path = nodes.config_path(root, other.vmid, "")
    options = config.parse((root.read(path) if path else None) or "", name="").options
    return frame.unplaced(options.get("hookscript", ""))


def _memory_mib(root: Root, claim: Claim) -> Mapping[int, int]:
    path = nodes.config_path(root, claim.vmid, claim.source)
    if path is None or "hugepages" in config.parse(root.read(path) or "", name="").options:
        return {}
    found = cgroup.memory_bytes(root, cgroup.scope(claim.vmid)) or {}
    return {node: size >> 20 for node, size in found.items() if size >> 20}


def crossings(machine: Topology, on: frozenset[int]) -> int | None:
    """L3 groups that these CPUs are in, beyond the first; None where the kernel says nothing of some."""
    groups = {machine.cpus[cpu].l3 if cpu in machine.cpus else None for cpu in on}
    return None if None in groups or not groups else len(groups) - 1


def table(lines: Sequence[Line]) -> Iterator[str]:
    """The lines below their titles; none without any."""
    rows = [TITLES, *(line.cells for line in lines)] if lines else []
    rows = [tuple(_shortened(cell) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def document(line: Line) -> dict[str, object]:
    """What `status --json` has of it beside all else."""
    return {"l3_crossings": line.crossings, "memory_mib": dict(line.memory_mib)}


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"


def _size(mib: int) -> str:
    return f"{mib} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
