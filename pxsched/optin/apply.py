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
    if step.chain and files is None:
        raise UserError(f"VM {vmid}: --chain needs the node's files", hint="run it on a node of the cluster")
    if step.chain and files is not None:
        chain.remember(files, vmid, step.chain)
    try:
        _set(step, api, files)
    except UserError:
        if step.chain and files is not None:
            chain.forget(files, vmid)
        raise
    # Also when a VM is enabled anew: a number may have been used before.
    if not step.chain and files is not None:
        chain.forget(files, vmid)


def _set(step: Step, api: Api, files: Root | None) -> None:
    guest = step.guest
    params = {"hookscript": step.want} if step.want else {"delete": "hookscript"}
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
