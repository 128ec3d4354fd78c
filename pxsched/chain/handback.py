"""The timer's part: a VM whose balloon was taken from Proxmox's controller, and that got a passed-through
device or huge pages later, is given back. What `enable --balloon` took is put back; our hookscript stays.

`shares: 0` of which nothing is remembered is the admin's own. Proxmox is asked after the pass, with no lock
held: its `qm` may wait for one that a starting VM holds while that waits for us.
"""

import time
from collections.abc import Iterable, Iterator
from functools import partial

from pxsched.chain import entry as entries
from pxsched.chain import files
from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.node.guests import UNSERVED, pinned
from pxsched.node.remembered import Last
from pxsched.node.sighting import Node
from pxsched.proxmox import change, cluster, failures
from pxsched.proxmox.api import Api
from pxsched.proxmox.cluster import Guest
from pxsched.proxmox.failures import Failure
from pxsched.root import Root
from pxsched.sandbox.stand_in import local_api
from pxsched.stored import Damaged
from pxsched.value import Value, replace

FAILED = UNSERVED


def remembered(root: Root, guest: Guest) -> Entry | None:
    """What was taken from this VM; None where that is nothing, or cannot be read (`doctor` says so)."""
    try:
        entry = files.read(root, guest.vmid)
    except Damaged:
        return None
    return entry if entry is not None and entry.shares is not None and entry.of(guest.options) else None


class _Due(Value):
    guest: Guest
    entry: Entry
    reason: str


def _due(node: Node, vmid: int) -> _Due | None:
    """By its configuration as it is now; None where nothing is to be done, or can be while it is locked."""
    guest = cluster.read_guest(node.root, node.name, vmid)
    entry = remembered(node.root, guest) if guest is not None and not guest.options.get("lock") else None
    if guest is None or entry is None:
        return None
    machine = config.machine(config.Config(guest.options))
    reason = pinned(machine) if machine.shares == 0 else ""
    return _Due(guest, entry, reason) if reason else None


def tick(node: Node, vmids: Iterable[int], api: Api | None = None) -> Iterator[str]:
    """Gives these VMs back; yields what was done, and what failed, each time for another reason. After a
    failure the others wait for the next pass: it may be Proxmox that does not answer. Raises nothing.
    """
    before = failures.load(node.root, FAILED)
    found: dict[int, Failure] = {}
    silent = not cluster.quorate(node.root)
    for due in filter(None, (_due(node, vmid) for vmid in vmids)):
        vmid, digest, now_s = due.guest.vmid, due.guest.digest, time.monotonic()
        failed = before.get(vmid)
        if silent or (failed is not None and failures.rests(failed, digest, now_s)):
            found |= {vmid: failed} if failed is not None else {}
            continue
        try:
            undone = _give_back(node.root, due, api or local_api(node.root))
            yield f"VM {vmid}'s balloon is Proxmox's again ({undone}): {due.reason}"
        except UserError as error:
            silent = True
            found[vmid] = new = failures.after(failed, str(error), digest, now_s)
            if failed is None or failed.why != new.why:
                rest = f"{error}; tried again, less often each time"
                yield f"VM {vmid}'s balloon is not Proxmox's again: {rest}"
    if found != before:
        failures.save(node.root, FAILED, found)


def _give_back(root: Root, due: _Due, api: Api) -> str:
    """Gives what was written. Raises UserError, also when somebody changed the VM since."""
    guest, entry = due.guest, due.entry
    write = partial(change.write, api, guest.node, guest.vmid, files=root)
    digest = guest.digest
    minimum = entries.restored(entry.minimum, guest.options.get("balloon"))
    changes = {} if minimum is None else {"balloon": minimum}
    if minimum is not None:
        # By itself: while its shares are 0, Proxmox gives a running guest that size at once.
        write(changes, digest=digest)
        digest = ""  # the file is another one now
    shares = {"shares": entry.shares or ""}
    write(shares, digest=digest)
    if not change.shown(root, guest.node, guest.vmid, shares):
        raise UserError("Proxmox took the change, but the configuration does not show it")
    kept = replace(entry, shares=None, minimum=None)
    if kept.hookscript is None:
        files.RECORDS.drop(root, guest.vmid)
    else:
        files.write(root, kept)
    return ", ".join(f"{key} {value or 'unset'}" for key, value in {**changes, **shares}.items())


def explained(root: Root, last: Last) -> Last:
    """What the last pass found, with why VMs could not be given back."""
    failed = failures.load(root, FAILED)
    said = {
        vmid: f"{why}; not given back to Proxmox: {failed[vmid].why}"
        for vmid, why in last.skipped.items()
        if vmid in failed
    }
    return replace(last, skipped={**last.skipped, **said}) if said else last
