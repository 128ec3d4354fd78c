"""The node-settings document of Karpenter's Proxmox provider: what the capacity VM cannot carry. Pure.

Its shape is {REGION: {NODE: settings}}; the provider takes `cores` as physical cores of the machine,
`threads` as SMT threads per core and `uncorecaches` as the cores that share one L3 cache. It ignores keys
it does not know inside a node's settings and nowhere else, so the schema's number is there.
"""

from collections import Counter

from pxsched.host import cpulist
from pxsched.host.topology import Topology
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
    online = [topology.cpus[cpu] for cpu in sorted(topology.online)]
    core_of = {cpu.id: cpu.core for cpu in online}
    siblings = sorted({cpu.siblings for cpu in online if cpu.siblings}, key=min)
    cores_per_l3 = [len({core_of.get(cpu) for cpu in l3.cpus}) for l3 in topology.l3s]
    return Document(
        cores=len(siblings),
        sockets=max(1, len(topology.packages)),
        threads=_usual([len(core) for core in siblings]),
        uncorecaches=_usual(cores_per_l3),
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


def _usual(counts: list[int]) -> int:
    """The most frequent number, the larger of equals; 1 where the kernel says nothing."""
    if not counts:
        return 1
    tally = Counter(counts)
    return max(tally, key=lambda count: (tally[count], count))
