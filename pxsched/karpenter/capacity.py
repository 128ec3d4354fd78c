"""The VM that describes a node's capacity to Karpenter, built from the topology. Pure.

Its reader takes `affinity` as an ordered list of CPUs and each `numaN`'s `cpus` as positions in that list;
memory is offered in whole GiB per NUMA node, one GiB held back where there is more than one. Rules: the
documentation of Karpenter's Proxmox provider; PVE::QemuServer::Memory knows numa0 to numa7.
"""

from collections.abc import Iterable, Mapping

from pxsched.errors import UserError
from pxsched.host import cpulist
from pxsched.host.topology import Node, Topology
from pxsched.karpenter import reader
from pxsched.proxmox.cluster import CAPACITY_NAME, CAPACITY_TAG
from pxsched.settings.policy import NodeSettings
from pxsched.value import Value

DESCRIPTION = "Karpenter discovery service"
MAX_NUMA_NODES = 8  # PVE::QemuServer::Memory, $MAX_NUMA
MIB = 1 << 20
GIB_MIB = 1024

# Options of other shapes of this VM (fewer nodes, an admin's experiments) that would make it something else.
STALE = (
    *(f"numa{number}" for number in range(MAX_NUMA_NODES)),
    *("hookscript", "hugepages", "onboot", "sockets", "startup", "vcpus"),
)


class Offer(Value):
    """What one NUMA node offers. memory_mib: whole GiB."""

    node: int
    cpus: tuple[int, ...]
    memory_mib: int


def reserved_cpus(topology: Topology, settings: NodeSettings) -> frozenset[int]:
    """The CPUs the admin keeps from Karpenter. Only what is set counts: the default housekeeping CPUs are a
    preference for host tasks, not a reservation.
    """
    named = cpulist.parse(settings.housekeeping) | cpulist.parse(settings.reserved_cpus)
    return named & topology.online


def left_out(topology: Topology, settings: NodeSettings) -> frozenset[int]:
    """The reserved CPUs that need not be listed. All are, where the provider would be wrong about more of the
    machine without them: it knows siblings by counting. Then only the node-settings document reserves them.
    """
    reserved = reserved_cpus(topology, settings)
    nodes = {node.id: node.cpus for node in topology.nodes if node.cpus}
    less = {number: cpus - reserved for number, cpus in nodes.items() if cpus - reserved}
    before = reader.mistakes(topology, reader.told(topology, nodes))
    after = reader.mistakes(topology, reader.told(topology, less))
    return reserved if len(after) <= len(before) else frozenset()


def offers(topology: Topology, settings: NodeSettings) -> tuple[Offer, ...]:
    """What each node with CPUs and memory offers, by its id. Raises UserError when that cannot be told."""
    if not topology.online - reserved_cpus(topology, settings):
        raise UserError(
            "no CPU is left to offer to Karpenter", hint="see `housekeeping` and `reserved_cpus` in [node]"
        )
    unlisted = left_out(topology, settings)
    used = [node for node in topology.nodes if node.cpus - unlisted]
    left_mib = _after_reservation(used, settings.karpenter_reserved_mib)
    used = [node for node in used if whole_gib(left_mib[node.id])]
    if not used:
        raise UserError("no NUMA node has CPUs and 1 GiB of memory to offer to Karpenter")
    if len(used) > MAX_NUMA_NODES:
        raise UserError(
            f"{len(used)} NUMA nodes cannot be described: Proxmox knows numa0 to numa{MAX_NUMA_NODES - 1}",
            hint="`pxsched karpenter settings` has no such limit; or set fewer nodes per socket (NPS, SNC)",
        )
    return tuple(
        Offer(node.id, tuple(sorted(node.cpus - unlisted)), whole_gib(left_mib[node.id])) for node in used
    )


def notes(topology: Topology, settings: NodeSettings) -> tuple[str, ...]:
    """What cannot be told as it is, one sentence each. Raises UserError as `offers` does."""
    offered = offers(topology, settings)
    listed = reader.told(topology, {offer.node: frozenset(offer.cpus) for offer in offered})
    found = list(reader.mistakes(topology, listed))
    if kept := reserved_cpus(topology, settings) & listed.cpus:
        found.append(
            f"CPUs {cpulist.format(kept)} are listed though they are reserved, as the provider would pair"
            " siblings wrongly without them: give it `pxsched karpenter settings`, which reserves them"
        )
    empty = [node for node in topology.nodes if node.cpus and node.id not in listed.nodes]
    found += [
        f"NUMA node {node.id} is not offered: it has no whole GiB of memory, or all its CPUs are reserved"
        for node in empty
    ]
    if lost := topology.online.difference(*(node.cpus for node in topology.nodes)):
        found.append(f"CPUs {cpulist.format(lost)} are not offered: no NUMA node claims them")
    return tuple(found)


def whole_gib(memory_mib: int) -> int:
    """Whole GiB, in MiB, one held back where there is more than one."""
    gib = max(0, memory_mib) // GIB_MIB
    return (gib - 1 if gib > 1 else gib) * GIB_MIB


def _after_reservation(nodes: Iterable[Node], reserved_mib: int) -> dict[int, int]:
    """Each node's memory less its share of the reservation; what a small node cannot give the others give."""
    sizes = {node.id: _memory_mib(node) for node in nodes}
    left: dict[int, int] = {}
    for done, (node, size) in enumerate(sorted(sizes.items(), key=lambda item: (item[1], item[0]))):
        share = -(-reserved_mib // (len(sizes) - done))
        taken = min(share, size)
        left[node] = size - taken
        reserved_mib -= taken
    return left


def _memory_mib(node: Node) -> int:
    if node.memory_bytes is None:
        raise UserError(
            f"the memory of NUMA node {node.id} is unknown",
            hint=f"node{node.id}/meminfo is missing below sys/devices/system/node",
        )
    return node.memory_bytes // MIB


def build(topology: Topology, settings: NodeSettings) -> dict[str, str]:
    """The VM's options. Raises UserError when the node cannot be described as a VM."""
    parts = offers(topology, settings)
    cores = sum(len(offer.cpus) for offer in parts)
    memory_mib = sum(offer.memory_mib for offer in parts)
    options = {
        # Each node's list apart: a run that ends one node and begins the next must stay two.
        "affinity": ",".join(cpulist.format(offer.cpus) for offer in parts),
        "cores": str(cores),
        "cpu": "host",
        "memory": str(memory_mib),
        "name": CAPACITY_NAME,
        "numa": "1",
        "tags": CAPACITY_TAG,
    }
    first = 0
    for number, offer in enumerate(parts):
        last = first + len(offer.cpus) - 1
        positions = f"{first}-{last}" if last > first else f"{first}"
        # Without a policy beside hostnodes Proxmox refuses to start it, as it must never start.
        options[f"numa{number}"] = f"cpus={positions},hostnodes={offer.node},memory={offer.memory_mib}"
        first = last + 1
    return options


def text(options: Mapping[str, str]) -> str:
    """The configuration file that Proxmox would write."""
    lines = [f"#{DESCRIPTION}", *(f"{key}: {value}" for key, value in sorted(options.items()))]
    return "\n".join(lines) + "\n"
