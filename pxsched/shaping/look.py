"""One VM's processors as its guest is told, beside where they run, and what would mirror that."""

from collections.abc import Mapping

from pxsched.errors import UserError
from pxsched.guest import config, process
from pxsched.guest.config import Config
from pxsched.host import processor
from pxsched.host.processor import Processor
from pxsched.host.topology import Topology
from pxsched.node import planning
from pxsched.node import sighting as nodes
from pxsched.node.sighting import Node
from pxsched.placement.request import EXCLUSIVE, Placement, Refused
from pxsched.root import Root
from pxsched.shape import cpumodel, differences, mirror, options, picture
from pxsched.shape.mirror import Mirror, NoMirror
from pxsched.shape.options import Changes, Told
from pxsched.shape.picture import Picture, Seat
from pxsched.shape.smp import Unreadable
from pxsched.shaping import record
from pxsched.shaping.record import Record
from pxsched.stored import Damaged
from pxsched.value import NOTHING, Value, replace


class File(Value):
    """A VM's configuration as it was at one moment. digest: of the whole file, as Proxmox makes it."""

    config: Config
    digest: str

    @property
    def next_start(self) -> dict[str, str]:
        """The options with what is pending merged into them, as the next start does."""
        pending = dict(self.config.pending)
        gone = {key.strip(" !") for key in pending.pop("delete", "").split(",")}
        return {key: value for key, value in self.config.options.items() if key not in gone} | pending


class Look(Value):
    """options: those in force, or of the next start. told, seen: what the guest is told and what it makes of
    it; None where `args` hides it. seats, real: where its vCPUs run; empty and None where they float.

    mirror: None where there is none, or none is needed. record: what we changed before; base: the options
    without that; changes: what makes the mirror of `options`. reason: why not, and what to do about that.
    """

    vmid: int
    file: File
    options: Mapping[str, str]
    told: Told | None = None
    seen: Picture | None = None
    seats: tuple[Seat, ...] = ()
    real: Picture | None = None
    mirror: Mirror | None = None
    base: Mapping[str, str] = NOTHING
    changes: Changes = NOTHING
    reason: str = ""
    record: Record | None = None

    @property
    def differences(self) -> list[str]:
        """What the guest has wrong, and what that costs."""
        if self.seen is None or self.real is None:
            return []
        return differences.differences(self.real, self.seen)

    @property
    def shaped(self) -> bool:
        """Whether the guest was told more than Proxmox says by itself, so that differences are untruths."""
        smp = self.told.smp if self.told else None
        ours = self.record is not None and bool(record.undo(self.record, self.options).changes)
        return ours or (smp is not None and smp.threads * smp.dies > 1)


def read(root: Root, vmid: int) -> File:
    """The VM's configuration. Raises UserError without such a VM on this node."""
    import hashlib

    path = nodes.config_path(root, vmid)
    text = root.read_bytes(path) if path else None
    if text is None:
        raise UserError(f"there is no VM {vmid} on node {nodes.name_of(root)}")
    parsed = config.parse(text.decode("utf-8", "replace"), name=f"{vmid}.conf")
    return File(parsed, hashlib.sha1(text, usedforsecurity=False).hexdigest())


def of(node: Node, vmid: int) -> Look:
    """One VM where it is placed, or would be. Raises UserError without such a VM."""
    file = read(node.root, vmid)
    running = process.find(node.root, vmid) is not None
    try:
        placement = planning.plan(node, vmid).claim.placement
    except Refused as refusal:
        found = look(node.root, node.topology, vmid, file, None, running=running)
        return replace(found, reason=f"there is no place for it: {refusal}")
    return look(node.root, node.topology, vmid, file, placement, running=running)


def look(
    root: Root, topology: Topology, vmid: int, file: File, placement: Placement | None, *, running: bool
) -> Look:
    """Compares what the guest is told with where it is placed. Raises nothing: what cannot be is `reason`."""
    current = file.config.options if running else file.next_start
    found = Look(vmid, file, current)
    host = processor.read(root)
    try:
        found = replace(found, record=record.read(root, vmid, current))
        found = _told(found, host)
        if placement is None:
            return found
        found = _placed(found, topology, placement)
        return _mirrored(found, topology, host)
    except (NoMirror, Unreadable) as error:
        return replace(found, reason=str(error))
    except Damaged as error:
        return replace(found, reason=f"/{record.RECORDS.path_of(vmid)} is damaged: {error}")


def _told(found: Look, host: Processor) -> Look:
    """Raises Unreadable."""
    told = options.read(found.options)
    traits = cpumodel.traits(told.model, host)
    return replace(found, told=told, seen=picture.seen(told.smp, told.node_of, traits))


def _placed(found: Look, topology: Topology, placement: Placement) -> Look:
    """Raises NoMirror for vCPUs that have no CPU of their own."""
    if found.told and not found.told.machine.opted_in:
        raise NoMirror("it is not opted in, so nothing pins its vCPUs", hint=f"pxsched enable {found.vmid}")
    if placement.vm_class not in EXCLUSIVE:
        raise NoMirror(
            f"it is {placement.vm_class}: its vCPUs float, so none has a core of its own",
            hint='class = "dedicated", or as many CPUs in `affinity` as it has vCPUs',
        )
    cpus = [min(cpus) for cpus in placement.vcpus if len(cpus) == 1]
    if len(cpus) < len(placement.vcpus):
        raise NoMirror("some of its vCPUs are not pinned to one CPU")
    if gone := [cpu for cpu in cpus if cpu not in topology.online]:
        raise NoMirror(f"CPU {gone[0]} is offline or absent")
    if found.seen and len(cpus) != len(found.seen.cores):
        raise NoMirror(f"{len(cpus)} vCPUs are placed, and the guest has {len(found.seen.cores)}")
    seats = picture.seats(topology, cpus)
    return replace(found, seats=seats, real=picture.truth(seats))


def _mirrored(found: Look, topology: Topology, host: Processor) -> Look:
    """Raises NoMirror, Unreadable."""
    if found.seen == found.real:
        return found
    # Our own earlier words do not count as the admin's.
    base = {**found.options, **(record.undo(found.record, found.options).changes if found.record else {})}
    clean = {key: value for key, value in base.items() if value is not None}
    told = options.read(clean)
    options.check(clean, told)
    wanted = mirror.mirror(
        topology,
        found.seats,
        told.machine.memory_mib,
        options.page_mib(told.machine),
        cpumodel.traits(told.model, host),
    )
    new = {**base, **options.changes(clean, told, wanted)}
    changes = {key: value for key, value in new.items() if found.options.get(key) != value}
    return replace(found, mirror=wanted, base=clean, changes=changes)
