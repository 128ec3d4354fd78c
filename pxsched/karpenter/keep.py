"""Keeping the capacity VM as it should be: find it, compare, write only what differs.

The VM is found by name and tag on this node. Both can be written by tenants, so a VM that looks like one that
could run is never taken for it.
"""

import os
import re

from pxsched import state, stored
from pxsched.errors import UserError
from pxsched.guest.options import property_string
from pxsched.host.topology import Topology
from pxsched.karpenter import capacity
from pxsched.proxmox import cluster
from pxsched.proxmox.api import Api, ApiError, Method
from pxsched.proxmox.cluster import Guest
from pxsched.root import Root
from pxsched.sandbox.stand_in import local_api
from pxsched.settings.policy import NodeSettings
from pxsched.value import Value

# Where the VM was last found: the tick then reads one file instead of all configurations.
RECORD = "run/pxsched/karpenter.json"

_DISK = re.compile(r"(?:ide|sata|scsi|virtio|efidisk|tpmstate|unused)\d+", re.ASCII)
_ORDER = ("name", "tags", "description", "affinity", "cores", "cpu", "memory", "numa")


class Change(Value):
    """One option. now, want: None where it is not set."""

    key: str
    now: str | None
    want: str | None

    def __str__(self) -> str:
        if self.want is None:
            return f"- {self.key}: {self.now}"
        if self.now is None:
            return f"+ {self.key}: {self.want}"
        return f"~ {self.key}: {self.now} -> {self.want}"


class Plan(Value):
    """What has to be written. vmid: None while there is no such VM on the node."""

    node: str
    vmid: int | None
    changes: tuple[Change, ...]
    digest: str = ""
    notes: tuple[str, ...] = ()


class Record(Value):
    """What is kept between passes. said: what the last one had to say."""

    vmid: int | None = None
    said: tuple[str, ...] = ()


def wanted(topology: Topology, settings: NodeSettings) -> dict[str, str]:
    """All options we hold it to: what it describes, and `protection` against being removed by mistake."""
    options = capacity.build(topology, settings)
    return options | {"description": capacity.DESCRIPTION, "protection": "1"}


def plan(root: Root, topology: Topology, settings: NodeSettings) -> Plan:
    """Compares the node's VM with what it should be. Raises UserError when the node cannot be described."""
    want = wanted(topology, settings)
    node = cluster.node_name(root)
    guest, notes = find(root, node)
    now: dict[str, str] = {}
    if guest is not None:
        now = {**guest.options, **({"description": guest.description} if guest.description else {})}
    keys = {*want, *(key for key in capacity.STALE if key in now)}
    changes = [Change(key, now.get(key), want.get(key)) for key in sorted(keys, key=_rank)]
    return Plan(
        node,
        guest.vmid if guest else None,
        tuple(change for change in changes if _meaning(change.now) != _meaning(change.want)),
        guest.digest if guest else "",
        (*notes, *capacity.notes(topology, settings)),
    )


def _meaning(value: str | None) -> object:
    """The value free of how Proxmox chooses to write it: property strings have no order."""
    if value is None or "=" not in value:
        return value
    try:
        values = property_string(value, "current")
    except ValueError:
        return value
    return values["current"] if values.keys() == {"current"} else values


def _rank(key: str) -> tuple[int, str]:
    return (_ORDER.index(key) if key in _ORDER else len(_ORDER), key)


def find(root: Root, node: str) -> tuple[Guest | None, tuple[str, ...]]:
    """The node's capacity VM, and what is to be said about other candidates."""
    recorded = _record(root).vmid
    if recorded is not None:
        guest = cluster.read_guest(root, node, recorded)
        if guest is not None and guest.describes_capacity and not _could_run(guest):
            return guest, ()
    found = [guest for guest in cluster.guests(root, node) if guest.describes_capacity]
    notes = [
        f"VM {guest.vmid} is called {guest.name!r} and tagged, but {why}: left alone"
        for guest in found
        if (why := _could_run(guest))
    ]
    usable = [guest for guest in found if not _could_run(guest)]
    # Ours is protected, and a tenant's later imitation has the higher number more often than not.
    usable.sort(key=lambda guest: (guest.options.get("protection") != "1", guest.vmid))
    notes += [f"VM {guest.vmid} describes the node a second time: remove it" for guest in usable[1:]]
    return (usable[0] if usable else None), tuple(notes)


def _could_run(guest: Guest) -> str:
    """Why this is a VM of somebody's and not a description; empty when it may be ours."""
    if guest.running:
        return "it is running"
    if guest.template:
        return "it is a template"
    disk = next((key for key in guest.options if _DISK.fullmatch(key)), "")
    return f"it has a disk ({disk})" if disk else ""


def apply(root: Root, todo: Plan, api: Api) -> int:
    """Writes a plan; returns the VMID. Raises UserError with one clear line when Proxmox does not take it."""
    if todo.changes and not cluster.quorate(root):
        raise UserError("the cluster has no quorum: the capacity VM cannot be written")
    vmid = todo.vmid
    if vmid is None:
        vmid = _create(todo, api)
    elif todo.changes:
        _update(todo, vmid, api)
    _remember(root, Record(vmid))
    return vmid


def _create(todo: Plan, api: Api) -> int:
    vmid = cluster.parse_vmid(str(api.call(Method.GET, "cluster/nextid")))
    options = {change.key: change.want for change in todo.changes if change.want is not None}
    try:
        api.call(Method.CREATE, f"nodes/{todo.node}/qemu", {"vmid": str(vmid), **options})
    except ApiError as error:
        if "exists" in error.message or "already" in error.message:
            raise UserError(f"VMID {vmid} was taken meanwhile", hint="try again") from error
        raise
    return vmid


def _update(todo: Plan, vmid: int, api: Api) -> None:
    params = {change.key: change.want for change in todo.changes if change.want is not None}
    stale = [change.key for change in todo.changes if change.want is None]
    if stale:
        params["delete"] = ",".join(stale)
    api.call(Method.SET, f"nodes/{todo.node}/qemu/{vmid}/config", {**params, "digest": todo.digest})


def tick(root: Root, topology: Topology, settings: NodeSettings, api: Api | None = None) -> list[str]:
    """One pass of the timer: reads one small file when nothing changed. Returns what to say, never raises
    UserError, so that the next pass tries again; a failure that repeats itself is said once.
    """
    before = _record(root)
    try:
        todo = plan(root, topology, settings)
        if not todo.changes:
            _remember(root, Record(todo.vmid, todo.notes))
            return list(todo.notes) if todo.notes != before.said else []
        vmid = apply(root, todo, api or local_api(root))
    except UserError as error:
        said = (f"karpenter: {error}; trying again at the next pass",)
        _remember(root, Record(before.vmid, said))
        return list(said) if said != before.said else []
    verb = "created" if todo.vmid is None else "updated"
    return [f"karpenter: {verb} VM {vmid} ({', '.join(change.key for change in todo.changes)})", *todo.notes]


def _record(root: Root) -> Record:
    """What is damaged says nothing: the VM is simply looked for again."""
    return state.load(root, RECORD, _read, set_aside=False)[0] or Record()


def _read(document: object) -> Record:
    body = stored.table(document)
    vmid = stored.maybe(lambda value: stored.integer(value, 100, 999_999_999), body.get("vmid"))
    return Record(vmid, tuple(stored.text(line) for line in stored.listed(body.get("said"))))


def _remember(root: Root, record: Record) -> None:
    """Without a writable /run the VM is simply looked for again."""
    if _record(root) == record:
        return
    try:
        os.makedirs(os.path.dirname(root.path(RECORD)), mode=0o700, exist_ok=True)
        state.save(root, RECORD, {"schema": 1, "vmid": record.vmid, "said": record.said})
    except OSError:
        return
