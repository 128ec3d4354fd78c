"""What is remembered of a VM that was opted in: its own hookscript, `shares` and balloon minimum, until they
are put back.

An entry belongs to one VM, not to its number: see `guest/identity.py`.
"""

import json
from collections.abc import Mapping

from pxsched import stored
from pxsched.guest import identity
from pxsched.guest.hookscript import is_ours
from pxsched.guest.identity import Identity
from pxsched.stored import Damaged
from pxsched.value import Value

MOST_BYTES = 1 << 16
_MOST_TEXT = 4096


class Entry(Value):
    """One VM's. hookscript, shares: what it had, empty for unset; None: that is not ours to put back.
    minimum: the `balloon` that we set and the one it had, see `remember`.

    owner: None where an earlier version did not write it down; the entry is then of whoever has our
    hookscript.
    """

    vmid: int
    owner: Identity | None
    hookscript: str | None = None
    shares: str | None = None
    minimum: str | None = None

    def of(self, options: Mapping[str, str]) -> bool:
        """Whether it is this VM's, of which it is known that the number is right."""
        if self.owner is None:
            return is_ours(options.get("hookscript", ""))
        return identity.same(self.owner, identity.of(options))


def remember(balloon: str, before: str) -> str:
    """What is kept of a minimum that was changed: ours, and the VM's own (empty: unset)."""
    return f"{balloon}:{before}"


def restored(kept: str | None, now: str | None) -> str | None:
    """The VM's own minimum, empty for unset; None where an admin has set another one meanwhile."""
    ours, _, before = (kept or "").partition(":")
    return before if kept and now == ours else None


def dump(entry: Entry) -> bytes:
    """The file of one entry."""
    owner = entry.owner or Identity()
    document = {
        "schema": 1,
        "vmid": entry.vmid,
        "uuid": owner.uuid,
        "vmgenid": owner.genid,
        "ctime": owner.ctime_s,
        "hookscript": entry.hookscript,
        "shares": entry.shares,
        "minimum": entry.minimum,
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def load(data: bytes, vmid: int) -> Entry:
    """The entry of a file that is named by this VMID. Raises Damaged."""
    document = stored.table(stored.parse(data, most_bytes=MOST_BYTES))
    if stored.integer(document.get("vmid")) != vmid:
        raise Damaged("it is of another VMID")
    owner = Identity(*(_text(document.get(name, "")) for name in ("uuid", "vmgenid", "ctime")))
    own = (stored.maybe(_text, document.get(name)) for name in ("hookscript", "shares", "minimum"))
    return Entry(vmid, owner, *own)


def load_old(data: bytes) -> dict[int, Entry]:
    """The entries of the one file that all VMs of the cluster shared once. Raises Damaged."""
    document = stored.table(stored.parse(data))
    scripts, shares = (
        stored.by_vmid(document.get(name, {}), _text) for name in ("hookscripts", "shares")
    )  # an earlier version wrote either
    vmids = sorted({*scripts, *shares})
    return {vmid: Entry(vmid, None, scripts.get(vmid), shares.get(vmid)) for vmid in vmids}


def _text(value: object) -> str:
    return stored.text(value, _MOST_TEXT)
