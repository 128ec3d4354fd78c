"""Reads what the plugins need to know: only of the VMs at hand, and only what they can have."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from pxsched.guest import process
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State, dedicated
from pxsched.ledger.file import Ledger
from pxsched.node.sighting import Node, Sighting
from pxsched.plugins.view import HostView, Stranger, VmView
from pxsched.root import Root
from pxsched.settings.policy import Isolation, MemoryMode, Others
from pxsched.value import NOTHING, replace

if TYPE_CHECKING:
    from pxsched.host.frequency import FrequencyPolicy


MemoryBytes: TypeAlias = "Mapping[int, Mapping[int, int] | None]"  # by VMID and node


def vm_views(
    node: Node, ledger: Ledger, sightings: Iterable[Sighting], memory: MemoryBytes = NOTHING
) -> list[VmView]:
    """The VMs that hold a claim and whose configuration was read. memory: as `memory_bytes` gives it."""
    views = []
    for sighting in sightings:
        claim = ledger.claims.get(sighting.vmid)
        if claim is not None and sighting.machine is not None:
            views.append(_vm_view(node.root, claim, sighting, memory.get(sighting.vmid)))
    return views


def memory_bytes(node: Node, sightings: Iterable[Sighting]) -> MemoryBytes:
    """Where the memory of VMs lies that care. The kernel may walk all of it to say so, which takes long."""
    if len(node.topology.nodes) < 2:
        return {}
    from pxsched.host import memory

    claims = ledgers.peek(node.root).claims
    return {
        one.vmid: memory.of_vm(
            node.root, one.vmid, one.process.pid, hugepages=one.machine.hugepage_mib is not None
        )
        for one in sightings
        if one.process is not None
        and one.machine is not None
        and (one.opted_in or one.vmid in claims)
        and node.settings.policy(one.vmid, one.machine.tags).memory is not MemoryMode.OFF
    }


def _vm_view(root: Root, claim: Claim, sighting: Sighting, memory_bytes: Mapping[int, int] | None) -> VmView:
    machine = sighting.machine
    assert machine is not None
    if sighting.process is None or not (machine.hostpci or machine.nics):
        return VmView(claim, machine, sighting.threads, memory_bytes=memory_bytes)
    from pxsched.guest import passthrough
    from pxsched.host import interrupts, links

    devices = passthrough.of_vm(root, claim.vmid, machine, sighting.process) if machine.hostpci else ()
    return VmView(
        claim,
        machine,
        sighting.threads,
        devices,
        interrupts.of_devices(root, devices) if devices and claim.policy.interrupts else (),
        links.taps(root, claim.vmid, machine.nics) if claim.policy.nic else (),
        memory_bytes,
    )


def host_view(
    node: Node, ledger: Ledger, vms: Iterable[VmView], everybody: Iterable[Sighting] = ()
) -> HostView:
    """The node; each side of it only where somebody's knobs depend on it. everybody: all VMs that run, ours
    or not, if they were looked at.
    """
    vms, root, settings = list(vms), node.root, node.settings.node
    apart = settings.device_interrupts or settings.isolation is not Isolation.OFF
    felt = ledger.felt()
    wishes = any(claim.policy.governor or claim.policy.energy for claim in felt.values())
    allocating = any(vm.claim.state is State.STARTING or vm.memory_bytes is not None for vm in vms)
    confines = settings.others is Others.CONFINE and bool(dedicated(felt.values()))
    view = HostView(
        topology=node.topology,
        node=settings,
        housekeeping=node.housekeeping if apart else frozenset(),
        claims=felt,
        originals=ledger.journal.originals(),
        frequency=_frequency(root, felt) if wishes else (),
        memory=node.memory if allocating else (),
        strangers=tuple(_strangers(root, ledger, everybody)) if confines else (),
    )
    if settings.device_interrupts or any(vm.interrupts for vm in vms):
        return _with_interrupts(node, view)
    return view


def _strangers(root: Root, ledger: Ledger, everybody: Iterable[Sighting]) -> Iterator[Stranger]:
    for sighting in everybody:
        if sighting.process is not None and sighting.vmid not in ledger.claims:
            masks = {thread.tid: process.mask(root, thread.tid) for thread in sighting.threads}
            known = {tid: mask for tid, mask in masks.items() if mask is not None}
            yield Stranger(sighting.vmid, sighting.process, sighting.threads, known)


def _frequency(root: Root, claims: Mapping[int, Claim]) -> "tuple[FrequencyPolicy, ...]":
    from pxsched.host import frequency
    from pxsched.plugins import governor

    return frequency.read(root, governor.cpus(claims))


def _with_interrupts(node: Node, view: HostView) -> HostView:
    from pxsched.host import interrupts

    root = node.root
    view = replace(view, irqbalance=node.irqbalance)
    if not view.node.device_interrupts or not dedicated(view.claims.values()):
        return view
    default_irq_mask = root.read("proc/irq/default_smp_affinity") or ""
    return replace(view, interrupts=interrupts.of_host(root), default_irq_mask=default_irq_mask)


def device_nodes(node: Node, sightings: Iterable[Sighting]) -> dict[int, frozenset[int]]:
    """The NUMA nodes of the VMs' passed-through devices; VMs without any are left out."""
    found = {}
    for sighting in sightings:
        if sighting.machine is not None and sighting.machine.hostpci:
            from pxsched.guest import passthrough

            found[sighting.vmid] = passthrough.nodes(node.root, sighting.vmid, sighting.machine, node.name)
    return found
