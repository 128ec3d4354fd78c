"""How often a strict VM was refused its start since the node booted, by VMID, kept in /run/pxsched."""

from collections.abc import Mapping
from contextlib import suppress

from pxsched import lock, state, stored
from pxsched.errors import UserError
from pxsched.root import Root

FILE, LOCK = "run/pxsched/refusals.json", "run/pxsched/refusals.lock"
LOCK_S = 0.5


def load(root: Root) -> Mapping[int, int]:
    """What was counted so far."""
    found, _ = state.load(root, FILE, lambda value: stored.by_vmid(value, stored.integer), set_aside=False)
    return found or {}


def count(root: Root, vmid: int) -> None:
    """Counts one more; a count that cannot be kept is lost."""
    with suppress(OSError, UserError), lock.held(root, LOCK, patience_s=LOCK_S):
        before = load(root)
        document = {str(one): times for one, times in before.items()} | {str(vmid): before.get(vmid, 0) + 1}
        state.save(root, FILE, document)
