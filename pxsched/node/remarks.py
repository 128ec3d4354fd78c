"""What a person should know of one VM beside its place: why it may not start, what of its configuration
counts for nothing, what the machine makes of its policy.

For `plan` and `doctor`. Rules: cpufreq.rst, intel_pstate.rst and amd-pstate.rst for what a governor and an
energy preference need; Proxmox's own refusals at start.
"""

from collections.abc import Iterable, Iterator

from pxsched.guest import config, guestnodes, passthrough
from pxsched.guest.config import Machine
from pxsched.host import cpulist, devices, frequency
from pxsched.host.frequency import FrequencyPolicy
from pxsched.host.topology import CpuKind, Topology
from pxsched.ledger.claim import Claim
from pxsched.node import sighting as nodes
from pxsched.node.fences import Fence
from pxsched.node.sighting import Node, Sighting
from pxsched.placement.request import EXCLUSIVE, Placement, VmClass
from pxsched.root import Root
from pxsched.settings.policy import Policy, Prefer, Smt

CANNOT_START = "cannot start"


def of_vm(
    node: Node, sighting: Sighting, claim: Claim | None, refused: str, fence: Fence | None
) -> tuple[str, ...]:
    """All there is to say of a VM, most important first. claim: its place, None where it is `refused` one."""
    machine = sighting.machine
    if machine is None:
        return ()
    lines = [
        *machine.warnings,
        *guestnodes.remarks(machine),
        *of_size(machine, node.topology),
        *of_file(node.root, sighting),
        *of_devices(node.root, machine, node.name),
        *([sighting.surplus] if sighting.surplus else []),
        *([] if _named(fence, claim, refused) else of_fence(fence, node.topology)),
    ]
    if claim is not None:
        placement, policy = claim.placement, claim.policy
        lines += of_kinds(node.topology, placement, policy)
        if placement.vm_class in EXCLUSIVE and (policy.energy or policy.governor):
            lines += of_frequency(frequency.read(node.root, placement.cpus), policy)
    return tuple(lines)


def of_size(machine: Machine, topology: Topology) -> Iterator[str]:
    """Proxmox starts no VM of more vCPUs, those to be plugged in counted, than CPUs are online."""
    most, there = machine.sockets * machine.cores, len(topology.online)
    if most > there:
        yield f"the VM {CANNOT_START}: Proxmox refuses {most} vCPUs on a node of {there} CPUs"


def of_file(root: Root, sighting: Sighting) -> Iterator[str]:
    """Lines of its configuration that count for nothing."""
    path = nodes.config_path(root, sighting.vmid, sighting.source)
    text = root.read(path) if path else None
    for warning in config.parse(text or "", name=f"{sighting.vmid}.conf").warnings:
        yield f"Proxmox drops a line: {warning}"


def _named(fence: Fence | None, claim: Claim | None, refused: str) -> bool:
    """Whether the placement's reasons speak of the fence already."""
    said = claim.placement.why if claim is not None else (refused,)
    return fence is not None and any(fence.name in line for line in said)


def of_fence(fence: Fence | None, topology: Topology) -> Iterator[str]:
    if fence is not None:
        cpus = cpulist.format(fence.cpus & topology.online) or "none"
        yield f"{fence.name} lets it have CPUs {cpus} only"


def of_kinds(topology: Topology, placement: Placement, policy: Policy) -> Iterator[str]:
    """CPUs of both kinds in a fixed affinity; whole cores that have no siblings to keep free."""
    cpus = placement.cpus & topology.online
    slow = {cpu for cpu in cpus if topology.cpus[cpu].kind is CpuKind.EFFICIENCY}
    fast = {cpu for cpu in cpus if topology.cpus[cpu].kind is CpuKind.PERFORMANCE}
    if slow and fast and placement.vm_class in (VmClass.PINNED, VmClass.CONSTRAINED):
        where = "pins" if policy.pins else "affinity"
        yield (
            f"{where} mixes performance cores ({cpulist.format(fast)}) and efficiency cores"
            f" ({cpulist.format(slow)}): its vCPUs are not equally fast"
        )
    isolates = placement.vm_class is VmClass.DEDICATED and policy.smt is Smt.ISOLATE
    if slow and isolates and policy.prefer is not Prefer.EFFICIENCY:
        where = cpulist.format(slow)
        yield f'smt = "isolate" has vCPUs on efficiency cores ({where}): performance cores could not hold it'


def of_frequency(policies: Iterable[FrequencyPolicy], policy: Policy) -> Iterator[str]:
    """What frequency drivers do not take, or take without effect; each line once for all CPUs."""
    said: dict[str, None] = {}
    for found in policies:
        said |= dict.fromkeys((*_of_governor(found, policy.governor), *_of_energy(found, policy)))
    yield from said


def _of_governor(found: FrequencyPolicy, governor: str) -> Iterator[str]:
    if governor and found.governors and governor not in found.governors:
        yield f"there is no governor {governor!r}: available are {' '.join(found.governors)}"


def _of_energy(found: FrequencyPolicy, policy: Policy) -> Iterator[str]:
    energy = policy.energy
    if energy and not found.preference:
        yield "energy counts for nothing: the frequency driver has no energy preferences"
    elif energy and found.preferences and not _known(energy, found.preferences):
        yield f"there is no energy preference {energy!r}: available are {' '.join(found.preferences)}"
    elif energy not in ("", "0", "performance") and _governor(found, policy) == "performance":
        yield f"energy = {energy!r} is refused: the governor performance takes no other preference"


def _known(energy: str, preferences: Iterable[str]) -> bool:
    return int(energy) <= 255 if energy.isdecimal() else energy in preferences


def _governor(found: FrequencyPolicy, policy: Policy) -> str:
    """The governor that the CPUs will have."""
    return policy.governor if policy.governor in found.governors else found.governor


def of_devices(root: Root, machine: Machine, node_name: str) -> Iterator[str]:
    """Passed-through devices that are not there: an address moves when a card is added."""
    if not root.exists(devices.PCI_DIR):
        return
    for option in machine.hostpci:
        gone = [address for address in option.addresses if not devices.expand(root, address)]
        what = f"{' '.join(gone)} {'is' if len(gone) == 1 else 'are'} not there" if gone else ""
        if option.mapping:
            what = passthrough.unmapped(root, option.mapping, node_name)
        if what:
            yield f"the VM {CANNOT_START} while its device is gone (hostpci{option.number}: {what})"
