"""Which CPUs are the host's own: what the admin lists, else the first core of each node."""

from collections.abc import Mapping

from pxsched.host import cpulist
from pxsched.host.topology import Topology
from pxsched.placement.machine import machine_of, set_of
from pxsched.placement.request import Foreign, Host
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
