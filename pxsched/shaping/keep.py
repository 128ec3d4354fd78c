"""The timer's part: VMs whose policy says `shape = "apply"` are told what they have before they start again.

Only VMs that do not run, nor are about to. What cannot be mirrored is left to `plan` and `doctor` to say.
"""

from collections.abc import Iterator

from pxsched.errors import UserError
from pxsched.guest.hookscript import is_ours
from pxsched.ledger.file import Ledger
from pxsched.node.sighting import Node
from pxsched.proxmox import cluster
from pxsched.proxmox.api import Api
from pxsched.sandbox.stand_in import local_api
from pxsched.settings.policy import Shaping
from pxsched.shaping import apply, look


def tick(node: Node, ledger: Ledger, api: Api | None = None) -> Iterator[str]:
    """One pass; yields what was done, and what failed. Raises nothing."""
    if not node.settings.shapes or not cluster.quorate(node.root):
        return
    for guest in cluster.guests(node.root, node.name):
        policy = node.settings.policy(guest.vmid, guest.tags)
        if policy.shape is not Shaping.APPLY or guest.vmid in ledger.claims or not is_ours(guest.hookscript):
            continue
        try:
            found = look.of(node, guest.vmid)
            if found.changes and not apply.why_not_now(node.root, guest.vmid, found.options):
                apply.apply(node.root, found, api or local_api(node.root))
                options = ", ".join(sorted(found.changes))
                yield f"VM {guest.vmid} is told what it has, from its next start: {options}"
        except UserError as error:
            yield f"VM {guest.vmid} is not shaped: {error}"
