"""Carrying out opt-ins and opt-outs, one VM at a time, each checked by reading it back."""

from pxsched import chain
from pxsched.errors import UserError
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
    had_shares = step.guest.options.get("shares", "")
    if files is None and (step.chain or step.shares == "0"):
        raise UserError(
            f"VM {vmid}: --chain and --balloon need the node's files", hint="run it on a node of the cluster"
        )
    if files is None:
        _set(step, api, files)
        return
    if step.chain:
        chain.remember(files, vmid, step.chain)
    if step.shares == "0":
        chain.remember(files, vmid, had_shares, chain.SHARES)
    try:
        _set(step, api, files)
    except UserError:
        _forget(files, vmid, scripts=bool(step.chain), shares=step.shares == "0")
        raise
    # Also when a VM is enabled anew: a number may have been used before.
    replaced = not step.chain and step.want != step.guest.hookscript
    _forget(files, vmid, scripts=replaced, shares=step.shares != "0")


def _forget(files: Root, vmid: int, *, scripts: bool, shares: bool) -> None:
    if scripts:
        chain.forget(files, vmid)
    if shares:
        chain.forget(files, vmid, chain.SHARES)


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
