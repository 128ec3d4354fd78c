"""Which CPUs are the host's own: what the admin lists, else the first core of each node. And where those
threads of a VM run that are no vCPUs.
"""

from collections.abc import Mapping, Sequence

from pxsched.host import cpulist
from pxsched.host.topology import Topology
from pxsched.placement.machine import machine_of, mask_of, set_of
from pxsched.placement.request import EXCLUSIVE, Foreign, Holding, Host, Placement, Request, VmClass
from pxsched.settings.policy import NodeSettings, Smt
from pxsched.value import NOTHING, replace

SQUEEZED = "warning: its emulator and I/O threads run on its vCPUs' CPUs: its nodes have no other left"


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
    be said: housekeeping CPUs of its nodes; else idle ones there, rather not siblings of its own; else its
    own. Nobody has them to himself, unless the admin lists them for housekeeping all the same.
    """
    machine = machine_of(host.topology)
    near = sum(machine.cpus.get(node, 0) for node in nodes)
    if request.fence is not None:
        near &= mask_of(request.fence)
    free = near & ~mask_of(own)
    for holding in holdings:
        if holding.vmid != request.vmid and holding.vm_class in EXCLUSIVE:
            held = mask_of(holding.cpus)
            alone = holding.smt is Smt.ISOLATE and holding.vm_class is VmClass.DEDICATED
            free &= ~(machine.spread(held) if alone else held)
    kept = free & mask_of(host.housekeeping) or near & mask_of(host.reserved - own)
    if kept:
        return set_of(kept), []
    floating = near & ~machine.isolated
    idle = free & floating
    for other in host.foreign:
        mask = mask_of(other.cpus)
        if floating & ~mask:
            idle &= ~mask
    if idle:
        return set_of(idle & ~machine.spread(mask_of(own)) or idle), []
    return own, [SQUEEZED]


def cleared(host: Host, holdings: Sequence[Holding], request: Request, placement: Placement) -> Placement:
    """The same vCPUs, and other CPUs for the rest: somebody has got some of those to himself."""
    own = placement.cpus
    sites = machine_of(host.topology).sites_of(mask_of(own))
    near, lines = emulator(host, holdings, request, sites, own)
    why = (line for line in placement.why if line != SQUEEZED)
    return replace(placement, emulator=near, why=(*why, *lines))


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
