"""The timer's part: VMs whose policy says `shape = "apply"` are told what they have before they start again,
and what is remembered of VMs that are gone is forgotten.

Only VMs that do not run, nor are about to. What cannot be mirrored is left to `plan` and `doctor` to say.
"""

import time
from collections.abc import Iterator

from pxsched.errors import UserError
from pxsched.guest.hookscript import is_ours
from pxsched.ledger.file import Ledger
from pxsched.node.sighting import Node
from pxsched.proxmox import cluster, failures, leftovers
from pxsched.proxmox.api import Api
from pxsched.proxmox.cluster import Guest
from pxsched.proxmox.failures import Failure
from pxsched.root import Root
from pxsched.sandbox.stand_in import local_api
from pxsched.settings.policy import Shaping
from pxsched.shaping import apply, look, record
from pxsched.stored import Damaged

FAILED = "run/pxsched/shape.json"


def tick(node: Node, ledger: Ledger, api: Api | None = None) -> Iterator[str]:
    """One pass; yields what was done, and what failed, each time for another reason. Raises nothing."""
    if not node.settings.shapes or not cluster.quorate(node.root):
        return
    before = failures.load(node.root, FAILED)
    found: dict[int, Failure] = {}
    for guest in cluster.guests(node.root, node.name):
        policy = node.settings.policy(guest.vmid, guest.tags)
        if policy.shape is not Shaping.APPLY or guest.vmid in ledger.claims or not is_ours(guest.hookscript):
            continue
        failed, now_s = before.get(guest.vmid), time.monotonic()
        if failed is not None and failures.rests(failed, guest.digest, now_s):
            found[guest.vmid] = failed
            continue
        try:
            if options := _tell(node, guest.vmid, api):
                yield f"VM {guest.vmid} is told what it has, from its next start: {options}"
        except UserError as error:
            found[guest.vmid] = new = failures.after(failed, str(error), guest.digest, now_s)
            if failed is None or failed.why != new.why:
                yield f"VM {guest.vmid} is not shaped: {error}; tried again, less often each time"
    if found != before:
        failures.save(node.root, FAILED, found)


def _tell(node: Node, vmid: int, api: Api | None) -> str:
    """The options that were written; empty where there was nothing to write. Raises UserError."""
    found = look.of(node, vmid)
    if not found.changes or apply.why_not_now(node.root, vmid, found.options):
        return ""
    apply.apply(node.root, found, api or local_api(node.root))
    return ", ".join(sorted(found.changes))


def clean(root: Root) -> list[str]:
    """Forgets what is remembered of VMs that are gone; gives what was done. A cluster that cannot be read or
    written is left for the next time.
    """
    if not root.exists(record.RECORDS.directory) or not cluster.quorate(root):
        return []

    def reason(guest: Guest) -> str | None:
        try:
            ours = record.read(root, guest.vmid, guest.options)
        except Damaged:
            return None  # `shape` says so
        return "it is of an earlier VM of that number" if ours is None else None

    try:
        gone = leftovers.clean(root, record.RECORDS, reason)
    except UserError:
        return []
    return [f"forgot the shape remembered for VM {one.vmid}: {one.reason}" for one in gone]
