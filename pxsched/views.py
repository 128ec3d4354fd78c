"""Reads what the plugins need to know: only of the VMs at hand, and only what they can have."""

from collections.abc import Iterable

from pxsched.ledger import Claim, Ledger
from pxsched.node import Node, Sighting
from pxsched.plugins.view import HostView, VmView
from pxsched.policy import Isolation
from pxsched.root import Root


def vm_views(node: Node, ledger: Ledger, sightings: Iterable[Sighting]) -> list[VmView]:
    """The VMs that hold a claim and whose configuration was read."""
    views = []
    for sighting in sightings:
        claim = ledger.claims.get(sighting.vmid)
        if claim is not None and sighting.machine is not None:
            views.append(_vm_view(node.root, claim, sighting))
    return views


def _vm_view(root: Root, claim: Claim, sighting: Sighting) -> VmView:
    machine = sighting.machine
    assert machine is not None
    if sighting.process is None or not (machine.hostpci or machine.nics):
        return VmView(claim, machine, sighting.threads)
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
    )


def host_view(node: Node, ledger: Ledger, vms: Iterable[VmView]) -> HostView:
    """The node, with the interrupts' side of it only where somebody's interrupts are turned."""
    settings = node.settings.node
    apart = settings.device_interrupts or settings.isolation is not Isolation.OFF
    view = HostView(
        node.topology,
        settings,
        node.housekeeping if apart else frozenset(),
        ledger.claims,
        {key: entry.original for key, entry in ledger.journal.items()},
    )
    if not settings.device_interrupts and not any(vm.interrupts for vm in vms):
        return view
    from dataclasses import replace

    from pxsched.host import interrupts, irqbalance

    root = node.root
    view = replace(view, irqbalance=irqbalance.look(root))
    if settings.device_interrupts:
        default_irq_mask = root.read("proc/irq/default_smp_affinity") or ""
        view = replace(view, interrupts=interrupts.of_host(root), default_irq_mask=default_irq_mask)
    return view


def device_nodes(node: Node, sightings: Iterable[Sighting]) -> dict[int, frozenset[int]]:
    """The NUMA nodes of the VMs' passed-through devices; VMs without any are left out."""
    found = {}
    for sighting in sightings:
        if sighting.machine is not None and sighting.machine.hostpci:
            from pxsched.guest import passthrough

            found[sighting.vmid] = passthrough.nodes(node.root, sighting.vmid, sighting.machine, node.name)
    return found
