"""How often a strict VM was refused its start since the node booted, and why the last time, by VMID, kept in
/run/pxsched.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from pxsched import lock, state, stored
from pxsched.errors import UserError
from pxsched.root import Root

FILE, LOCK = "run/pxsched/refusals.json", "run/pxsched/refusals.lock"
LOCK_S = 0.5
MOST_CHARACTERS = 300


class Refused(NamedTuple):
    """times: so far. reason: of the last time, in the program's words and perhaps a tenant's."""

    times: int
    reason: str = ""


def load(root: Root) -> Mapping[int, Refused]:
    """What was counted so far."""
    found, _ = state.load(root, FILE, lambda value: stored.by_vmid(value, _read), set_aside=False)
    return found or {}


def _read(value: object) -> Refused:
    if isinstance(value, int):  # an earlier version's, which goes on to count
        return Refused(stored.integer(value))
    times, reason = stored.pair(value)
    return Refused(stored.integer(times), stored.text(reason, MOST_CHARACTERS))


def count(root: Root, vmid: int, reason: str) -> None:
    """Counts one more; a count that cannot be kept is lost."""
    with suppress(OSError, UserError), lock.held(root, LOCK, patience_s=LOCK_S):
        known = dict(load(root))
        times = known[vmid].times if vmid in known else 0
        known[vmid] = Refused(times + 1, reason[:MOST_CHARACTERS])
        state.save(root, FILE, {str(one): refused for one, refused in known.items()})
