"""Which CPUs are the host's own: what the admin lists, else the first core of each node. And where those
threads of a VM run that are no vCPUs.
"""

from collections.abc import Mapping, Sequence

from pxsched.host import cpulist
from pxsched.host.topology import Topology
from pxsched.placement.machine import machine_of, mask_of, set_of
from pxsched.placement.request import EXCLUSIVE, Foreign, Holding, Host, Request
from pxsched.settings.policy import NodeSettings
from pxsched.value import NOTHING


def housekeeping(topology: Topology, settings: NodeSettings) -> frozenset[int]:
    """The housekeeping CPUs; none on a machine so small that the default would take all its CPUs."""
    if settings.housekeeping:
        return cpulist.parse(settings.housekeeping) & topology.online
    machine = machine_of(topology)
    usable = machine.online & ~machine.isolated
    found = 0
    for node in machine.nodes:
        cpus = machine.cpus[node] & usable
        if cpus:
            found |= machine.core_of[(cpus & -cpus).bit_length() - 1] & usable
    return set_of(found) if usable & ~found else frozenset()


def emulator(
    host: Host,
    holdings: Sequence[Holding],
    request: Request,
    nodes: frozenset[int],
    own: frozenset[int],
) -> tuple[frozenset[int], list[str]]:
    """The CPUs for emulator, iothread and vhost threads of a VM whose vCPUs have their `own`, and what is to
    be said: housekeeping CPUs of its nodes; else idle ones there, which nobody has to himself, rather not
    siblings of its own; else its own.
    """
    machine = machine_of(host.topology)
    near = set_of(sum(machine.cpus.get(node, 0) for node in nodes))
    if request.fence is not None:
        near &= request.fence
    kept = near & host.housekeeping - own
    if kept:
        return kept, []
    idle = floating = near - host.topology.isolated
    idle -= own
    for holding in holdings:
        if holding.vmid != request.vmid and holding.vm_class in EXCLUSIVE:
            idle -= holding.cpus
    for other in host.foreign:
        if not other.cpus >= floating:
            idle -= other.cpus
    if idle:
        return idle - set_of(machine.spread(mask_of(own))) or idle, []
    return own, ["warning: its emulator and I/O threads run on its vCPUs' CPUs: its nodes have no other left"]


def host_of(
    topology: Topology,
    settings: NodeSettings,
    *,
    free_mib: Mapping[int, int] | None = None,
    free_hugepages_mib: Mapping[tuple[int, int], int] | None = None,
    foreign: tuple[Foreign, ...] = (),
    busy: Mapping[int, float] = NOTHING,
) -> Host:
    """The machine as placement sees it, with the admin's or the default housekeeping CPUs."""
    kept = housekeeping(topology, settings)
    reserved = kept if settings.housekeeping else frozenset[int]()
    return Host(topology, kept, reserved, free_mib or {}, free_hugepages_mib or {}, foreign, busy)
