"""Reads what the plugins need to know: only of the VMs at hand, and only what they can have."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pxsched.guest.config import Machine
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.file import Ledger
from pxsched.node.sighting import Node, Sighting
from pxsched.placement.request import VmClass
from pxsched.plugins.view import HostView, VmView
from pxsched.root import Root
from pxsched.settings.policy import Isolation, MemoryMode
from pxsched.value import replace

if TYPE_CHECKING:
    from pxsched.host.frequency import FrequencyPolicy


def vm_views(
    node: Node, ledger: Ledger, sightings: Iterable[Sighting], *, memory: bool = False
) -> list[VmView]:
    """The VMs that hold a claim and whose configuration was read. memory: look where theirs lies, too."""
    looks = memory and len(node.topology.nodes) > 1
    views = []
    for sighting in sightings:
        claim = ledger.claims.get(sighting.vmid)
        if claim is not None and sighting.machine is not None:
            memory_bytes = _memory_bytes(node.root, claim, sighting.machine) if looks else None
            views.append(_vm_view(node.root, claim, sighting, memory_bytes))
    return views


def _memory_bytes(root: Root, claim: Claim, machine: Machine) -> Mapping[int, int] | None:
    from pxsched.host import memory

    if claim.process is None or claim.policy.memory is MemoryMode.OFF:
        return None
    hugepages = machine.hugepage_mib is not None
    return memory.of_vm(root, claim.vmid, claim.process.pid, hugepages=hugepages)


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


def host_view(node: Node, ledger: Ledger, vms: Iterable[VmView]) -> HostView:
    """The node; each side of it only where somebody's knobs depend on it."""
    vms, root, settings = list(vms), node.root, node.settings.node
    apart = settings.device_interrupts or settings.isolation is not Isolation.OFF
    felt = ledger.felt()
    wishes = any(claim.policy.governor or claim.policy.energy for claim in felt.values())
    allocating = any(vm.claim.state is State.STARTING or vm.memory_bytes is not None for vm in vms)
    view = HostView(
        topology=node.topology,
        node=settings,
        housekeeping=node.housekeeping if apart else frozenset(),
        claims=felt,
        originals=ledger.journal.originals(),
        frequency=_frequency(root, felt) if wishes else (),
        memory=node.memory if allocating else (),
    )
    if settings.device_interrupts or any(vm.interrupts for vm in vms):
        return _with_interrupts(root, view)
    return view


def _frequency(root: Root, claims: Mapping[int, Claim]) -> "tuple[FrequencyPolicy, ...]":
    from pxsched.host import frequency
    from pxsched.plugins import governor

    return frequency.read(root, governor.cpus(claims))


def _with_interrupts(root: Root, view: HostView) -> HostView:
    from pxsched.host import interrupts, irqbalance

    view = replace(view, irqbalance=irqbalance.look(root))
    dedicated = any(claim.placement.vm_class is VmClass.DEDICATED for claim in view.claims.values())
    if not view.node.device_interrupts or not dedicated:
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
