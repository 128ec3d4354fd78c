"""The node at one moment, for those who watch it: how busy its CPUs are, what each VM does and waits for,
what was done last, and what is wrong. Reads only.
"""

import os
import time
from collections.abc import Mapping

from pxsched.balance import samples
from pxsched.guest import schedstat
from pxsched.guest.hookscript import is_ours
from pxsched.host import topology as topologies
from pxsched.host.topology import Topology
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import AGAIN_AND_AGAIN
from pxsched.node import measuring, remembered
from pxsched.node.sighting import Sighting
from pxsched.node.sightings import Sightings
from pxsched.placement.request import EXCLUSIVE
from pxsched.report import host
from pxsched.report.host import HostNow
from pxsched.root import Root
from pxsched.value import NOTHING, Value


def unplaced(hookscript: str) -> str:
    """What stands in the place of a VM's class where it has none: one of ours may have been refused a place,
    or waits for the next pass.
    """
    return "not placed" if is_ours(hookscript) else "not opted in"


class Row(Value):
    """One VM. vcpus: by vCPU, the CPUs it may use; empty when nobody placed it. cpus: all of these.

    running, waiting: CPUs' worth of time; None before it was measured. balloon_mib: None when not ours.
    """

    vmid: int
    vm_class: str
    vcpus: tuple[frozenset[int], ...]
    l3_groups: int
    nodes: frozenset[int]
    memory_mib: int | None
    running: float | None = None
    waiting: float | None = None
    balloon_mib: int | None = None

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset().union(*self.vcpus)

    @property
    def exclusive(self) -> bool:
        return self.vm_class in EXCLUSIVE


class Frame(Value):
    """busy: by CPU, the part of the time that it worked; empty when it was not looked at. memory in bytes.

    acted: what the last pass that changed something did, acted_s_ago before; wrong: what needs a person.
    """

    topology: Topology
    rows: tuple[Row, ...]
    busy: Mapping[int, float] = NOTHING
    memory_total: int | None = None
    memory_available: int | None = None
    acted: tuple[str, ...] = ()
    acted_s_ago: float | None = None
    wrong: tuple[str, ...] = ()


class Watcher:
    """Makes one frame after the other; what a VM does is measured between them."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._topology = topologies.read(root)
        self._online = self._read_online()
        self._seen = Sightings(root)
        self._reader = schedstat.Reader(root, keep=True)
        self._before = samples.Snapshot()

    def close(self) -> None:
        self._reader.close()

    def look(self) -> Frame:
        """Raises UserError when the topology cannot be read."""
        online, self._online = self._online, self._read_online()
        if self._online != online:
            self._topology = topologies.read(self._root)
        topology, ledger = self._topology, ledgers.peek(self._root)
        sightings = self._seen.look(ledger)
        uses = self._uses(sightings)
        rows = [row(one, ledger.claims.get(one.vmid), uses.get(one.vmid), topology) for one in sightings]
        now = host.look(self._root)
        last = remembered.last(self._root)
        return Frame(
            topology,
            tuple(rows),
            _busy(topology, now) if now else NOTHING,
            now.memory_total_bytes if now else None,
            now.memory_available_bytes if now else None,
            last.acted,
            None if last.acted_at_s is None else max(0.0, time.time() - last.acted_at_s),
            tuple(wrong(ledger)),
        )

    def _read_online(self) -> str | None:
        return self._root.read(f"{topologies.CPU_DIR}/online")

    def _uses(self, sightings: list[Sighting]) -> Mapping[int, samples.Use]:
        wanted = tuple(measuring.wanted(sightings))
        now = measuring.snapshot(wanted, self._reader.read(wanted))
        interval = samples.between(self._before, now, measuring.limits(sightings))
        self._before = interval.base
        return interval.uses


def _busy(topology: Topology, now: HostNow) -> dict[int, float]:
    """By CPU. /proc/stat lists those that are online, and none by number where one went this moment."""
    online = sorted(topology.online)
    if len(online) != len(now.cpu_percent):
        return {}
    return {cpu: percent / 100 for cpu, percent in zip(online, now.cpu_percent, strict=True)}


def row(sighting: Sighting, claim: Claim | None, use: samples.Use | None, topology: Topology) -> Row:
    """One VM as it is shown."""
    machine = sighting.machine
    vcpus = claim.placement.vcpus if claim else ()
    cpus = frozenset().union(*vcpus)
    l3s = {topology.cpus[cpu].l3 for cpu in cpus if cpu in topology.cpus} - {None}
    return Row(
        sighting.vmid,
        claim.placement.vm_class.value if claim else unplaced(machine.hookscript if machine else ""),
        vcpus,
        len(l3s),
        claim.placement.nodes if claim else frozenset(),
        machine.memory_mib if machine else None,
        use.total.run if use else None,
        use.total.wait if use else None,
        claim.balloon_mib if claim else None,
    )


def wrong(ledger: Ledger) -> list[str]:
    """What the ledger knows to be not as wanted, worst first."""
    found = list(ledger.warnings)
    notes: dict[tuple[int, str], int] = {}
    drifting: dict[int, int] = {}
    for entry in ledger.journal.values():
        if entry.note:
            notes[entry.owner, entry.note] = notes.get((entry.owner, entry.note), 0) + 1
        if entry.drifts >= AGAIN_AND_AGAIN:
            drifting[entry.owner] = drifting.get(entry.owner, 0) + 1
    found += [f"{_owner(owner)}: {count} knobs: {note}" for (owner, note), count in sorted(notes.items())]
    found += [
        f"{_owner(owner)}: {count} knobs are turned by somebody else again and again"
        for owner, count in sorted(drifting.items())
    ]
    return found


def _owner(owner: int) -> str:
    return f"VM {owner}" if owner else "this node"


def terminal_size(default: tuple[int, int] = (80, 24)) -> tuple[int, int]:
    """Columns and lines of the terminal on standard output."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return default
    return size.columns or default[0], size.lines or default[1]
