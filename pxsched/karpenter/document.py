"""The node-settings document of Karpenter's Proxmox provider: what the capacity VM cannot carry. Pure.

Its shape is {REGION: {NODE: settings}}; the provider takes `cores` as physical cores of the machine,
`threads` as SMT threads per core and `uncorecaches` as the number of L3 caches (its manual: the highest L3
number of `lscpu -e` plus one). It ignores keys it does not know inside a node's settings and nowhere else, so
the schema's number is there.
"""

from pxsched.host import cpulist
from pxsched.host.topology import Topology
from pxsched.karpenter import reader
from pxsched.karpenter.capacity import MIB, reserved_cpus
from pxsched.settings.policy import NodeSettings
from pxsched.value import Value


class Numa(Value):
    """cpus: kernel list syntax; memsize: bytes."""

    cpus: str
    memsize: int


class Document(Value):
    """Names are the provider's. l3 and smt are ours, in kernel list syntax, for readers that want more."""

    cores: int
    sockets: int
    threads: int
    uncorecaches: int
    nodes: dict[str, Numa]
    reservedcpus: list[int]
    reservedmemory: int
    l3: tuple[str, ...] = ()
    smt: tuple[str, ...] = ()
    schema: int = 1


def build(topology: Topology, settings: NodeSettings) -> Document:
    """Describes the whole machine; reservations are told, not subtracted."""
    siblings = sorted({cpu.siblings for cpu in topology.cpus.values() if cpu.online}, key=min)
    listed = {node.id: node.cpus for node in topology.nodes if node.cpus}
    told = reader.told(topology, listed)
    return Document(
        cores=len(siblings),
        sockets=told.sockets,
        threads=told.threads,
        uncorecaches=told.uncorecaches,
        nodes={
            str(node.id): Numa(cpulist.format(node.cpus), node.memory_bytes or 0)
            for node in topology.nodes
            if node.cpus
        },
        reservedcpus=sorted(reserved_cpus(topology, settings)),
        reservedmemory=settings.karpenter_reserved_mib * MIB,
        l3=tuple(cpulist.format(l3.cpus) for l3 in topology.l3s),
        smt=tuple(cpulist.format(core) for core in siblings if len(core) > 1),
    )
