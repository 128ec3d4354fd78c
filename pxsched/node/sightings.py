"""Looks at all VMs again and again, and reads of each only what has changed."""

import os
import time
from typing import NamedTuple

from pxsched.guest import process
from pxsched.guest.config import Machine
from pxsched.guest.process import Role, Threads
from pxsched.ledger.file import Ledger
from pxsched.node import sighting as nodes
from pxsched.node.sighting import Sighting
from pxsched.root import Root
from pxsched.value import replace

# /etc/pve counts whole seconds: a file written so lately may be written again without showing it.
FRESH_S = 2.0


class _File(NamedTuple):
    """A configuration, and what tells its file from a later one: inode, time in ns, size."""

    identity: tuple[int, int, int]
    machine: Machine


class _Known(NamedTuple):
    """The last sighting of a VM of which nothing was left open, and its threads to look at again."""

    sighting: Sighting
    threads: Threads


class Sightings:
    """What one process has seen of the VMs."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._known: dict[int, _Known] = {}
        self._files: dict[int, _File] = {}

    def look(self, ledger: Ledger) -> list[Sighting]:
        """All VMs worth a look: those with a pid file and those that hold something. A VM that arrives by
        migration is found through its claim's source.
        """
        running = set(process.running(self._root))
        sources = {vmid: claim.source for vmid, claim in ledger.claims.items()}
        directory = f"etc/pve/nodes/{nodes.name_of(self._root)}/qemu-server"
        found = []
        for vmid in sorted({*running, *sources}):
            source = sources.get(vmid, "")
            sighting = self._again(vmid, source, directory) if vmid in running else None
            found.append(sighting or self._afresh(vmid, source))
        for vmid in self._known.keys() - {sighting.vmid for sighting in found}:
            del self._known[vmid]
        return found

    def _again(self, vmid: int, source: str, directory: str) -> Sighting | None:
        """The VM as it is now, if it is the one that is known; None when it has to be looked at afresh."""
        known = self._known.get(vmid)
        if known is None or known.sighting.source != source:
            return None
        before = known.sighting
        machine = self._machine(vmid, f"{directory}/{vmid}.conf")
        threads = known.threads.read()
        if machine is None or not threads:
            return None
        if machine is before.machine and threads == before.threads:
            return before
        sighting = replace(before, machine=machine, threads=threads, opted_in=machine.opted_in)
        if not _is_whole(sighting):
            return None
        self._known[vmid] = _Known(sighting, known.threads)
        return sighting

    def _afresh(self, vmid: int, source: str) -> Sighting:
        sighting = nodes.sight(self._root, vmid, source=source)
        self._known.pop(vmid, None)
        if sighting.process is not None and _is_whole(sighting):
            self._known[vmid] = _Known(sighting, Threads(self._root, sighting.process))
        return sighting

    def _machine(self, vmid: int, path: str) -> Machine | None:
        """The VM's configuration, read again when its file is another one; None when it is not there."""
        try:
            found = os.stat(self._root.path(path))
        except OSError:
            return None
        identity = (found.st_ino, found.st_mtime_ns, found.st_size)
        known = self._files.pop(vmid, None)
        if known is None or known.identity != identity:
            machine = nodes.machine_at(self._root, vmid, path)
            if machine is None or time.time() - found.st_mtime < FRESH_S:
                return machine
            known = _File(identity, machine)
        self._files[vmid] = known
        return known.machine


def _is_whole(sighting: Sighting) -> bool:
    """Whether there is nothing left to be found out about the VM by asking QEMU."""
    if sighting.machine is None or sighting.notes:
        return False
    return sum(thread.role is Role.VCPU for thread in sighting.threads) >= sighting.machine.vcpus
