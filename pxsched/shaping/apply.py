"""Writing a VM's shape through Proxmox, for its next start, and putting back what was there.

QEMU does not check that saved memory fits the processors it is given, so nothing is changed for a VM that
runs, is suspended or is locked.
"""

from collections.abc import Mapping

from pxsched.errors import UserError
from pxsched.guest import identity, process
from pxsched.proxmox import change, cluster
from pxsched.proxmox.api import Api
from pxsched.root import Root
from pxsched.shaping import look, record
from pxsched.shaping.look import File, Look
from pxsched.shaping.record import Record, Texts, Undone
from pxsched.stored import Damaged


def why_not_now(root: Root, vmid: int, options: Mapping[str, str]) -> str:
    """Why the VM may not be changed at this moment; empty when it may."""
    if process.find(root, vmid) is not None:
        return "it runs"
    if "vmstate" in options or options.get("lock") == "suspended":
        return "it is suspended, and its saved memory belongs to the processors that it had"
    return f"it is locked ({options['lock'][:20]})" if "lock" in options else ""


def apply(root: Root, found: Look, api: Api) -> None:
    """Carries out the changes of a look. Raises UserError, also when somebody changed the VM since."""
    vmid, before = found.vmid, found.record
    _refuse(root, vmid, found.options)
    new = {**found.options, **found.changes}
    keys = [key for key in {**found.base, **new} if new.get(key) != found.base.get(key)]
    owner = identity.of(found.options)
    entry = Record(
        vmid, owner, {key: found.base.get(key) for key in keys}, ({key: new.get(key) for key in keys},)
    )
    # Until Proxmox has said yes, it may be the old shape or the new one that has to be undone.
    earlier: tuple[Mapping[str, str | None], tuple[Texts, ...]] = (
        (before.before, before.wrote) if before else ({}, ())
    )
    both = Record(
        vmid, owner, {**earlier[0], **entry.before}, (*earlier[1][-6:], found.changes, *entry.wrote)
    )
    record.write(root, both)
    _set(root, vmid, found.file, found.changes, api)
    if keys:
        record.write(root, entry)
    else:
        record.RECORDS.drop(root, vmid)


def undo(root: Root, vmid: int, api: Api) -> Undone:
    """Puts back what was there. Raises UserError."""
    file = look.read(root, vmid)
    undone = plan_undo(root, vmid, file)
    if undone.changes:
        _refuse(root, vmid, file.next_start)
        _set(root, vmid, file, undone.changes, api)
    record.RECORDS.drop(root, vmid)
    return undone


def plan_undo(root: Root, vmid: int, file: File) -> Undone:
    """What `undo` would do. Raises UserError when nothing is remembered of this VM."""
    options = file.next_start
    try:
        found = record.read(root, vmid, options)
    except Damaged as error:
        raise UserError(f"/{record.RECORDS.path_of(vmid)} is damaged: {error}") from error
    if found is not None:
        return record.undo(found, options)
    stranger = root.exists(record.RECORDS.path_of(vmid))
    raise UserError(
        f"nothing is remembered that was changed of VM {vmid}",
        hint="what is remembered is of another VM that had this number" if stranger else None,
    )


def _refuse(root: Root, vmid: int, options: Mapping[str, str]) -> None:
    if why := why_not_now(root, vmid, options):
        raise UserError(f"VM {vmid} is not changed: {why}")


def _set(root: Root, vmid: int, file: File, changes: Texts, api: Api) -> None:
    node = cluster.node_name(root)
    change.write(api, node, vmid, changes, digest=file.digest, files=root)
    if not change.shown(root, node, vmid, changes):
        raise UserError(f"VM {vmid}: Proxmox took the change, but the configuration does not show it")
