"""Carrying out opt-ins and opt-outs, one VM at a time, each checked by reading it back."""

from functools import partial

from pxsched.chain import entry as entries
from pxsched.chain import files as chain
from pxsched.chain import upkeep
from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.guest import identity
from pxsched.guest.hookscript import is_ours
from pxsched.optin.rules import Outcome, Step
from pxsched.proxmox import change, cluster
from pxsched.proxmox.api import Api
from pxsched.root import Root


def apply(step: Step, api: Api, files: Root | None) -> None:
    """Sets or removes the hookscript of one VM. files: the node's root, None when reached over HTTPS.

    The VM's own script is remembered before ours takes its place, and forgotten after it is back. Raises
    UserError.
    """
    if step.outcome is not Outcome.CHANGE:
        return
    vmid = step.guest.vmid
    if files is None and (step.chain or step.shares == "0"):
        raise UserError(
            f"VM {vmid}: --chain and --balloon need the node's files", hint="run it on a node of the cluster"
        )
    if files is None:
        _set(step, api, files)
        return
    if files.exists(chain.OLD_FILE):
        upkeep.take_over(files)
    before = chain.find(files, vmid, step.guest.options)
    entry = remembered_from_now(step, before)
    if entry is not None and entry != before:
        chain.write(files, entry)
    try:
        _set(step, api, files)
    except UserError:
        _undo(step, before, entry, files)
        raise
    if entry is None:
        chain.RECORDS.drop(files, vmid)
    elif chain.find(files, vmid, step.guest.options) != entry:
        chain.write(files, entry)  # another node's failed attempt took it away


def remembered_from_now(step: Step, before: Entry | None) -> Entry | None:
    """What is to be remembered of a VM whose step is done; None for nothing."""
    guest = step.guest
    if is_ours(step.want):
        mine = before if step.want == guest.hookscript else None
        script = step.chain or (mine.hookscript if mine else None)
        shares, minimum = (mine.shares, mine.minimum) if mine else (None, None)
        if step.shares == "0":
            shares = guest.options.get("shares", "")
        if step.balloon:
            now = guest.options.get("balloon", "")
            own = entries.restored(minimum, now)
            minimum = entries.remember(step.balloon, now if own is None else own)
    else:
        # A rollback brings our hookscript back, with what ours has to run, and shares and minimum.
        kept = before if guest.our_snapshots else None
        script, shares, minimum = (kept.hookscript, kept.shares, kept.minimum) if kept else (None, None, None)
    owner = identity.of(guest.options)
    nothing = script is None and shares is None and minimum is None
    return None if nothing else Entry(guest.vmid, owner, script, shares, minimum)


def _undo(step: Step, before: Entry | None, entry: Entry | None, files: Root) -> None:
    """Remembers what was remembered, unless somebody else opted the VM in meanwhile."""
    if entry is None or entry == before or (step.want != step.guest.hookscript and _is_ours_now(files, step)):
        return
    if before is None:
        chain.RECORDS.drop(files, step.guest.vmid)
    else:
        chain.write(files, before)


def _is_ours_now(files: Root, step: Step) -> bool:
    return is_ours(_hookscript(files, step) or "")


def _set(step: Step, api: Api, files: Root | None) -> None:
    guest, digest = step.guest, step.guest.digest
    write = partial(change.write, api, guest.node, guest.vmid, files=files)
    if step.balloon is not None:
        # By itself and before `shares`: Proxmox tells a running guest its new minimum at once when its shares
        # are 0 by then, and that may be far below what the guest uses. On the way back they still are 0, and
        # the guest gets all its memory at once.
        write({"balloon": step.balloon}, digest=digest)
        digest = ""  # the file is another one now
    changes = {"hookscript": step.want}
    if step.shares is not None:
        changes["shares"] = step.shares
    write(changes, digest=digest)
    if files is not None and _hookscript(files, step) != step.want:
        raise UserError(f"VM {guest.vmid}: Proxmox took the change, but the configuration does not show it")


def _hookscript(files: Root, step: Step) -> str | None:
    guest = cluster.read_guest(files, step.guest.node, step.guest.vmid)
    return None if guest is None else guest.hookscript
