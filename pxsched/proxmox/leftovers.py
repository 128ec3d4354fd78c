"""Records whose VM is gone: who keeps `records` says what makes one useless, and the timer removes it.

Nothing is concluded from a cluster whose files cannot be read as a whole, nor from a VM that Proxmox is
working on: a restore takes its configuration away for a while.
"""

import time
from collections.abc import Callable, Iterator

from pxsched.proxmox import cluster
from pxsched.proxmox.cluster import Guest
from pxsched.proxmox.records import Records
from pxsched.root import Root
from pxsched.value import Value

# A record is written before its VM is changed, and read again after a rollback.
YOUNG_S = 600.0

Reason = Callable[[Guest], str | None]


class Dead(Value):
    """A record that no VM can ever need again, and why."""

    vmid: int
    reason: str


def dead(root: Root, records: Records, reason: Reason) -> list[Dead]:
    """What may be removed. reason: why an unlocked VM of this node does not need what is under its number.

    Raises UserError when the cluster's files cannot be read.
    """
    numbers = records.vmids(root)
    return list(_dead(root, numbers, reason)) if numbers else []


def _dead(root: Root, numbers: list[int], reason: Reason) -> Iterator[Dead]:
    here, places = cluster.node_name(root), places_of(root)
    for vmid in numbers:
        node = places.get(vmid)
        if node is None:
            yield Dead(vmid, "there is no such VM")
        elif node == here:  # the others are for the timers of their nodes
            guest = cluster.read_guest(root, node, vmid)
            why = None if guest is None or guest.options.get("lock") else reason(guest)
            if why:
                yield Dead(vmid, why)


def places_of(root: Root) -> dict[int, str]:
    """VMID -> node. Looked up twice, as a VM may migrate from one directory to another meanwhile."""
    return {**cluster.places(root), **cluster.places(root)}


def clean(root: Root, records: Records, reason: Reason) -> list[Dead]:
    """Removes what is dead or was never finished; gives the former. Raises UserError."""
    records.drop_unfinished(root, time.time() - YOUNG_S)
    found = dead(root, records, reason)
    for one in found:
        records.drop(root, one.vmid)
    return found
