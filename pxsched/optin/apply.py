"""Carrying out opt-ins and opt-outs, one VM at a time, each checked by reading it back."""

from pxsched.chain import files as chain
from pxsched.chain import upkeep
from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.guest import identity
from pxsched.guest.hookscript import is_ours
from pxsched.optin.rules import Outcome, Step
from pxsched.proxmox import cluster
from pxsched.proxmox.api import Api, ApiError, Method
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
        chain.drop(files, vmid)
    elif chain.find(files, vmid, step.guest.options) != entry:
        chain.write(files, entry)  # another node's failed attempt took it away


def remembered_from_now(step: Step, before: Entry | None) -> Entry | None:
    """What is to be remembered of a VM whose step is done; None for nothing."""
    guest = step.guest
    kept = before.hookscript if before else None
    if is_ours(step.want):
        script = step.chain or (kept if step.want == guest.hookscript else None)
        shares = guest.options.get("shares", "") if step.shares == "0" else None
    else:
        # A rollback brings our hookscript back, and with it what ours has to run.
        script, shares = (kept if guest.our_snapshots else None), None
    owner = identity.of(guest.options)
    return None if script is None and shares is None else Entry(guest.vmid, owner, script, shares)


def _undo(step: Step, before: Entry | None, entry: Entry | None, files: Root) -> None:
    """Remembers what was remembered, unless somebody else opted the VM in meanwhile."""
    if entry is None or entry == before or (step.want != step.guest.hookscript and _is_ours_now(files, step)):
        return
    if before is None:
        chain.drop(files, step.guest.vmid)
    else:
        chain.write(files, before)


def _is_ours_now(files: Root, step: Step) -> bool:
    return is_ours(_hookscript(files, step) or "")


def _set(step: Step, api: Api, files: Root | None) -> None:
    guest = step.guest
    changes = {"hookscript": step.want}
    if step.shares is not None:
        changes["shares"] = step.shares
    params = {key: value for key, value in changes.items() if value}
    if gone := [key for key, value in changes.items() if not value]:
        params["delete"] = ",".join(gone)
    if guest.digest:
        params["digest"] = guest.digest
    try:
        api.call(Method.SET, f"nodes/{guest.node}/qemu/{guest.vmid}/config", params)
    except ApiError:
        # proxmoxer's local backend takes any line on standard error for a failure, "trying to acquire
        # lock..." included; what the file says now decides.
        if files is None or _hookscript(files, step) != step.want:
            raise
    if files is not None and _hookscript(files, step) != step.want:
        raise UserError(f"VM {guest.vmid}: Proxmox took the change, but the configuration does not show it")


def _hookscript(files: Root, step: Step) -> str | None:
    guest = cluster.read_guest(files, step.guest.node, step.guest.vmid)
    return None if guest is None else guest.hookscript
