"""Entries whose VM is gone, and the file in which an earlier version kept them all.

The timer removes the former (see `proxmox/leftovers.py`); `doctor` only names them.
"""

import os
import time
from functools import partial

from pxsched.chain import files
from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.guest import identity
from pxsched.proxmox import cluster, leftovers
from pxsched.proxmox.cluster import Guest
from pxsched.proxmox.leftovers import Dead
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import replace


def dead(root: Root) -> list[Dead]:
    """What may be removed. Raises UserError when the cluster's files cannot be read."""
    return leftovers.dead(root, files.RECORDS, partial(_reason, root))


def _reason(root: Root, guest: Guest) -> str | None:
    try:
        entry = files.read(root, guest.vmid)
    except Damaged:
        return None
    if entry is None:
        return None
    if not entry.of(guest.options):
        return "it is of an earlier VM of that number"
    if guest.names_ours or time.time() - _written_s(root, guest.vmid) < leftovers.YOUNG_S:
        return None
    return "the VM is not opted in, nor is any snapshot of it"


def _written_s(root: Root, vmid: int) -> float:
    try:
        return os.stat(root.path(files.RECORDS.path_of(vmid))).st_mtime
    except OSError:
        return float("inf")


def clean(root: Root) -> list[str]:
    """Takes over what an earlier version left and removes what is dead, as the timer does; returns what was
    done. A cluster that cannot be read or written is left for the next time.
    """
    if not (root.exists(files.RECORDS.directory) or root.exists(files.OLD_FILE)) or not cluster.quorate(root):
        return []
    lines: list[str] = []
    try:
        lines += take_over(root)
        for one in leftovers.clean(root, files.RECORDS, partial(_reason, root)):
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
    places, lines = leftovers.places_of(root), []
    for vmid, entry in old.items():
        guest = cluster.read_guest(root, places[vmid], vmid) if vmid in places else None
        if guest is not None and guest.options.get("lock") and not guest.names_ours:
            raise UserError(f"VM {vmid} is locked, so what /{files.OLD_FILE} says of it cannot be judged yet")
        if guest is None or not guest.names_ours:
            lines.append(f"forgot the hookscript remembered for VM {vmid}: it is not opted in")
        elif not root.exists(files.RECORDS.path_of(vmid)):
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
