"""What Karpenter's Proxmox provider makes of what it is told: it counts, and sees no machine. Pure.

Rules: `DiscoverFromSettings` in pkg/providers/cloudcapacity/cpumanager/topology of the provider. The listed
CPUs, divided by `threads`, are its cores; CPU n is core n, or n less the number of cores; L3 caches and
sockets are equal runs of cores.
"""

from collections.abc import Callable, Mapping

from pxsched.host import cpulist
from pxsched.host.topology import Topology
from pxsched.value import Value


class Told(Value):
    """What the provider gets to know. nodes: the CPUs listed for each. uncorecaches: how many L3 caches."""

    nodes: Mapping[int, frozenset[int]]
    sockets: int
    threads: int
    uncorecaches: int

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset().union(*self.nodes.values())


class Believed(Value):
    """Where the provider has one CPU."""

    core: int
    l3: int
    socket: int


def told(topology: Topology, nodes: Mapping[int, frozenset[int]]) -> Told:
    """The machine's numbers beside a list of CPUs by node. Kinds of core differ in threads: most count."""
    cores = [cpu.siblings for cpu in topology.cpus.values() if cpu.online and cpu.id == min(cpu.siblings)]
    sizes = [len(core) for core in cores]
    threads = max(sizes, key=lambda size: (sizes.count(size), size), default=1)
    caches = [l3 for l3 in topology.l3s if l3.cpus & topology.online]
    return Told(nodes, max(1, len(topology.packages)), threads, max(1, len(caches)))


def believed(told: Told) -> dict[int, Believed]:
    """Where the provider has each CPU that it knows of."""
    cores = sum(len(cpus) // told.threads for cpus in told.nodes.values())
    per_socket, per_l3 = max(1, cores // told.sockets), max(1, cores // told.uncorecaches)
    found = {}
    for cpu in told.cpus:
        core = cpu if cpu < cores else cpu - cores
        found[cpu] = Believed(core, core // per_l3, cpu // per_socket % told.sockets)
    return found


def mistakes(topology: Topology, told: Told) -> tuple[str, ...]:
    """What the provider will be wrong about, one sentence each."""
    belief, cpus = believed(told), topology.cpus
    packages = {cpu: package.id for package in topology.packages for cpu in package.cpus}
    questions: tuple[tuple[str, Callable[[int], object], Callable[[int], object]], ...] = (
        ("a core", lambda cpu: belief[cpu].core, lambda cpu: min(cpus[cpu].siblings)),
        ("an L3 cache", lambda cpu: belief[cpu].l3, lambda cpu: cpus[cpu].l3),
        ("a socket", lambda cpu: belief[cpu].socket, lambda cpu: packages.get(cpu)),
    )
    lines = (_mistake(told.cpus, *question) for question in questions)
    return tuple(line for line in lines if line)


def _mistake(
    cpus: frozenset[int], what: str, belief: Callable[[int], object], truth: Callable[[int], object]
) -> str:
    """One sentence about the CPUs whose company the provider gets wrong; empty where it is right, or where
    the kernel says nothing.
    """
    if any(truth(cpu) is None for cpu in cpus):
        return ""
    thought, real = _groups(cpus, belief), _groups(cpus, truth)
    wrong = sorted(cpu for cpu in cpus if thought[cpu] != real[cpu])
    if not wrong:
        return ""
    return (
        f"the provider will be wrong about who shares {what} for {len(wrong)} of {len(cpus)} CPUs:"
        f" CPU {wrong[0]} with {cpulist.format(thought[wrong[0]])}, where it is"
        f" {cpulist.format(real[wrong[0]])}"
    )


def _groups(cpus: frozenset[int], group: Callable[[int], object]) -> dict[int, frozenset[int]]:
    """Each CPU's group among these."""
    members: dict[object, set[int]] = {}
    for cpu in cpus:
        members.setdefault(group(cpu), set()).add(cpu)
    return {cpu: frozenset(members[group(cpu)]) for cpu in cpus}
