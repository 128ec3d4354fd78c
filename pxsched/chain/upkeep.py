"""Entries whose VM is gone, and the file in which an earlier version kept them all.

The timer removes the former; `doctor` only names them. Nothing is concluded from a cluster whose files cannot
be read as a whole, nor from a VM that Proxmox is working on: a restore takes its configuration away for a
while.
"""

import os
import time
from collections.abc import Iterator

from pxsched.chain import files
from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.guest import identity
from pxsched.proxmox import cluster
from pxsched.proxmox.cluster import Guest
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import Value, replace

# An entry is written before the VM gets our hookscript, and read again after a rollback.
_YOUNG_S = 600.0


class Dead(Value):
    """An entry that no VM can ever need again, and why."""

    vmid: int
    reason: str


def dead(root: Root, now_s: float | None = None) -> list[Dead]:
    """What may be removed. Raises UserError when the cluster's files cannot be read."""
    numbers = files.vmids(root)
    if not numbers:
        return []
    here = cluster.node_name(root)
    return list(_dead(root, numbers, here, time.time() if now_s is None else now_s))


def _dead(root: Root, numbers: list[int], here: str, now_s: float) -> Iterator[Dead]:
    places = _places(root)
    for vmid in numbers:
        node = places.get(vmid)
        if node is None:
            yield Dead(vmid, "there is no such VM")
        elif node == here:  # the others are for the timers of their nodes
            guest = cluster.read_guest(root, node, vmid)
            reason = None if guest is None else _reason(root, guest, now_s)
            if reason:
                yield Dead(vmid, reason)


def _places(root: Root) -> dict[int, str]:
    """VMID -> node. Looked up twice, as a VM may migrate from one directory to another meanwhile."""
    return {**cluster.places(root), **cluster.places(root)}


def _reason(root: Root, guest: Guest, now_s: float) -> str | None:
    try:
        entry = files.read(root, guest.vmid)
    except Damaged:
        return None
    if entry is None or guest.options.get("lock"):
        return None
    if not entry.of(guest.options):
        return "it is of an earlier VM of that number"
    if guest.names_ours or now_s - _written_s(root, guest.vmid) < _YOUNG_S:
        return None
    return "the VM is not opted in, nor is any snapshot of it"


def _written_s(root: Root, vmid: int) -> float:
    try:
        return os.stat(root.path(files.path_of(vmid))).st_mtime
    except OSError:
        return float("inf")


def clean(root: Root) -> list[str]:
    """Takes over what an earlier version left and removes what is dead, as the timer does; returns what was
    done. A cluster that cannot be read or written is left for the next time.
    """
    if not (root.exists(files.CHAIN_DIR) or root.exists(files.OLD_FILE)) or not cluster.quorate(root):
        return []
    lines: list[str] = []
    try:
        lines += take_over(root)
        files.drop_unfinished(root, time.time() - _YOUNG_S)
        for one in dead(root):
            files.drop(root, one.vmid)
            lines.append(f"forgot the hookscript remembered for VM {one.vmid}: {one.reason}")
    except UserError:
        pass  # `doctor` says so
    return lines


def take_over(root: Root) -> list[str]:
    """Gives each entry of the old file a file of its own, with the VM it belongs to; returns what was
    dropped.

    Raises UserError when the cluster or the old file, which then stays, cannot be read, or nothing be
    written.
    """
    try:
        old = files.read_old(root)
    except Damaged as error:
        raise UserError(f"/{files.OLD_FILE} is damaged: {error}", hint="mend it or delete it") from error
    if not old and not root.exists(files.OLD_FILE):
        return []
    places, lines = _places(root), []
    for vmid, entry in old.items():
        guest = cluster.read_guest(root, places[vmid], vmid) if vmid in places else None
        if guest is not None and guest.options.get("lock") and not guest.names_ours:
            raise UserError(f"VM {vmid} is locked, so what /{files.OLD_FILE} says of it cannot be judged yet")
        if guest is None or not guest.names_ours:
            lines.append(f"forgot the hookscript remembered for VM {vmid}: it is not opted in")
        elif not root.exists(files.path_of(vmid)):
            files.write(root, _owned(entry, guest))
    try:
        os.unlink(root.path(files.OLD_FILE))
    except FileNotFoundError:
        pass  # another node was faster
    except OSError as error:
        raise UserError(f"/{files.OLD_FILE}: {error.strerror}", hint="has the cluster quorum?") from error
    return lines


def _owned(entry: Entry, guest: Guest) -> Entry:
    return replace(entry, owner=identity.of(guest.options))
