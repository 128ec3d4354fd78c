"""The timer's look at everybody on the node: what VMs and containers use, and what is nobody's we know.

Its result is `others.Seen`. Between two passes it keeps the counters, as only their growth says something.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pxsched import state, stored
from pxsched.balance.background import Known, unexplained
from pxsched.errors import UserError
from pxsched.guest import container, process, schedstat
from pxsched.host import cgroup, cputime
from pxsched.ledger import file as ledgers
from pxsched.ledger.file import Ledger
from pxsched.node import others
from pxsched.node.others import FILE, Other, Seen
from pxsched.node.sighting import Sighting
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import NOTHING, Value, replace

# A shorter time says little, as the kernel counts a CPU's time in hundredths of a second; and a fast `watch`
# should not read a file for each VM at every pass.
LEAST_NS = 2 * 10**9
# After a longer pause the counters begin anew.
LONGEST_NS = 600 * 10**9
# Averages follow a change to 63 % in this time, as those of the VMs do.
SMOOTHING_S = 2.0
# A fast `watch` writes its file so often.
SAVE_NS = 10 * 10**9


class Counters(Value):
    """at_ns: boot time; 0 before the first look. used_ns: by VMID. idle_ns: by CPU."""

    at_ns: int = 0
    used_ns: Mapping[int, int] = NOTHING
    idle_ns: Mapping[int, int] = NOTHING


class _Party(NamedTuple):
    """A VM or container: where it may run, and its counter."""

    vmid: int
    cpus: frozenset[int]
    used_ns: int | None


class Observer:
    """What one process has seen of the others, and of the host's own work."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._before, self.seen = _load(root)
        self._saved_ns = -SAVE_NS

    def look(self, ledger: Ledger, sightings: Sequence[Sighting]) -> Seen:
        """Measures, if there is enough to be measured since the last time, and writes it down."""
        now_ns = ledgers.now_ns()
        elapsed_ns = now_ns - self._before.at_ns
        running = [sighting for sighting in sightings if sighting.process is not None]
        if not running and not container.running(self._root):
            return self._nobody(now_ns)
        if 0 <= elapsed_ns < LEAST_NS:
            return self.seen
        strangers = [vm for sighting in running if (vm := self._vm(ledger, sighting))]
        strangers += [one for vmid in container.running(self._root) if (one := self._container(vmid))]
        parties = [self._party(ledger, sighting, strangers) for sighting in running]
        parties += [
            _Party(one.vmid, one.cpus, cgroup.used_ns(self._root, container.group(one.vmid)))
            for one in strangers
            if one.process is None
        ]
        idle_ns = cputime.idle_ns(self._root)
        rates = self._rates(parties, elapsed_ns)
        new = 1 - math.exp(-elapsed_ns / 1e9 / SMOOTHING_S)
        earlier = {one.vmid: one.load for one in self.seen.others}
        strangers = [
            replace(one, load=_mixed(earlier.get(one.vmid), rates.get(one.vmid), new)) for one in strangers
        ]
        busy = self._busy(parties, rates, idle_ns, elapsed_ns, new)
        self.seen = Seen(now_ns, tuple(strangers), busy)
        used_ns = {party.vmid: party.used_ns for party in parties if party.used_ns is not None}
        self._before = Counters(now_ns, used_ns, idle_ns)
        if now_ns - self._saved_ns >= SAVE_NS:
            self._saved_ns = now_ns
            _save(self._root, self.seen, self._before)
        return self.seen

    def _nobody(self, now_ns: int) -> Seen:
        """Leaves nothing behind."""
        self._before, self.seen, self._saved_ns = Counters(), Seen(now_ns), -SAVE_NS
        try:
            os.unlink(self._root.path(FILE))
        except OSError:
            pass
        return self.seen

    def _vm(self, ledger: Ledger, sighting: Sighting) -> Other | None:
        """A VM that holds no claim, by the masks of all its threads."""
        if sighting.process is None or sighting.vmid in ledger.claims:
            return None
        masks = [process.mask(self._root, thread.tid) for thread in sighting.threads]
        cpus = frozenset[int]().union(*(mask for mask in masks if mask is not None))
        if not cpus:
            return None
        memory_mib = _memory_mib(self._root, cgroup.scope(sighting.vmid))
        return Other(sighting.vmid, sighting.process, cpus, memory_mib=memory_mib)

    def _container(self, vmid: int) -> Other | None:
        found = others.container_now(self._root, vmid)
        if found is None:
            return None
        return replace(found, memory_mib=_memory_mib(self._root, container.group(vmid)))

    def _party(self, ledger: Ledger, sighting: Sighting, strangers: Sequence[Other]) -> _Party:
        vmid, found = sighting.vmid, sighting.process
        claim = ledger.claims.get(vmid)
        assert found is not None
        used_ns = schedstat.used_ns(self._root, vmid, found)
        if claim is not None:
            return _Party(vmid, claim.placement.cpus | claim.placement.emulator, used_ns)
        cpus = next((one.cpus for one in strangers if one.process == found), frozenset[int]())
        return _Party(vmid, cpus, used_ns)

    def _rates(self, parties: Sequence[_Party], elapsed_ns: int) -> dict[int, float]:
        """What each used since the last look, in CPUs; a counter that went back is somebody else's."""
        if elapsed_ns > LONGEST_NS:
            return {}
        before = self._before.used_ns
        return {
            party.vmid: gained / elapsed_ns
            for party in parties
            if party.used_ns is not None
            and party.vmid in before
            and (gained := party.used_ns - before[party.vmid]) >= 0
        }

    def _busy(
        self,
        parties: Sequence[_Party],
        rates: Mapping[int, float],
        idle_ns: Mapping[int, int],
        elapsed_ns: int,
        new: float,
    ) -> Mapping[int, float]:
        """What was known before, where somebody has not been measured: his work would pass for the host's."""
        if any(party.vmid not in rates for party in parties):
            return self.seen.busy if elapsed_ns <= LONGEST_NS else NOTHING
        known = [Known(party.cpus, rates[party.vmid]) for party in parties]
        now = unexplained(cputime.busy(self._before.idle_ns, idle_ns, elapsed_ns), known)
        before = self.seen.busy
        mixed = {cpu: _mixed(before.get(cpu), now.get(cpu, 0.0), new) or 0.0 for cpu in {*before, *now}}
        return {cpu: part for cpu, part in sorted(mixed.items()) if part >= 0.01}


def _mixed(before: float | None, now: float | None, new: float) -> float | None:
    """The average with its latest value worked in; None when that is unknown."""
    if now is None or before is None:
        return now
    return round(before + new * (now - before), 3)


def _memory_mib(root: Root, group: str) -> dict[int, int]:
    found = cgroup.memory_bytes(root, group) or {}
    return {node: size >> 20 for node, size in found.items() if size >> 20}


def _load(root: Root) -> tuple[Counters, Seen]:
    """What the last pass left; a first look where there is nothing that can be used."""
    document = others.read(root)
    try:
        if document is None:
            return Counters(), Seen(0)
        counters = stored.table(document.get("counters"))
        used_ns, idle_ns = (
            {number: stored.integer(value) for number, value in others.numbered(counters.get(name)).items()}
            for name in ("used_ns", "idle_ns")
        )
        seen = others.seen_of(document)
        return Counters(seen.at_ns, used_ns, idle_ns), seen
    except (Damaged, UserError):
        return Counters(), Seen(0)


def _save(root: Root, seen: Seen, counters: Counters) -> None:
    """A file that cannot be written costs the next hook its knowledge, and nothing else."""
    document = {
        "schema": 1,
        "boot_id": others.boot_id(root),
        **others.document(seen),
        "counters": {"used_ns": counters.used_ns, "idle_ns": counters.idle_ns},
    }
    try:
        os.makedirs(os.path.dirname(root.path(FILE)), mode=0o700, exist_ok=True)
        state.save(root, FILE, document)
    except OSError:
        pass
