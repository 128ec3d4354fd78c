"""The timer's part: VMs whose policy says `shape = "apply"` are told what they have before they start again.

Only VMs that do not run, nor are about to. What cannot be mirrored is left to `plan` and `doctor` to say.
"""

import time
from collections.abc import Iterator

from pxsched.errors import UserError
from pxsched.guest.hookscript import is_ours
from pxsched.ledger.file import Ledger
from pxsched.node.sighting import Node
from pxsched.proxmox import cluster
from pxsched.proxmox.api import Api
from pxsched.sandbox.stand_in import local_api
from pxsched.settings.policy import Shaping
from pxsched.shaping import apply, failures, look
from pxsched.shaping.failures import Failure


def tick(node: Node, ledger: Ledger, api: Api | None = None) -> Iterator[str]:
    """One pass; yields what was done, and what failed, each time for another reason. Raises nothing."""
    if not node.settings.shapes or not cluster.quorate(node.root):
        return
    before = failures.load(node.root)
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
        failures.save(node.root, found)


def _tell(node: Node, vmid: int, api: Api | None) -> str:
    """The options that were written; empty where there was nothing to write. Raises UserError."""
    found = look.of(node, vmid)
    if not found.changes or apply.why_not_now(node.root, vmid, found.options):
        return ""
    apply.apply(node.root, found, api or local_api(node.root))
    return ", ".join(sorted(found.changes))
