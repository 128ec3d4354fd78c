"""The guest topology that mirrors where a VM's vCPUs are pinned, or why there is none.

QEMU's processors are regular: every die has as many cores, every core as many threads, and vCPUs fill them
in the order of their numbers. Only the last group may be short: it lacks vCPUs that `maxcpus` counts.
"""

from collections.abc import Iterator, Mapping, Sequence

from pxsched.errors import UserError
from pxsched.guest.arguments import Smp
from pxsched.host import cpulist
from pxsched.host.topology import LOCAL_DISTANCE, Topology
from pxsched.shape.cpumodel import Traits
from pxsched.shape.picture import Parts, Picture, Seat, parts, runs, seen, truth
from pxsched.shape.smp import levels
from pxsched.value import NOTHING, Value, replace

MOST_NODES = 8  # numa0 to numa7


class NoMirror(UserError):
    """QEMU cannot build what the pins are, or the guest would not see it; the message says why."""


class GuestNode(Value):
    """A NUMA node of the guest. vcpus: absent ones included; host: the node where they run."""

    vcpus: frozenset[int]
    memory_mib: int
    host: int


class Mirror(Value):
    """What a guest should be told. nodes: empty where one is enough; distances: by pair of guest nodes, where
    they differ from QEMU's own (20). remedy: options of `-global` that the CPU model needs for it.
    """

    smp: Smp
    nodes: tuple[GuestNode, ...] = ()
    distances: Mapping[tuple[int, int], int] = NOTHING
    remedy: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether sockets and cores say it all."""
        return (self.smp.dies, self.smp.threads, self.smp.cpus) == (1, 1, self.smp.maxcpus)

    def node_of(self) -> dict[int, int]:
        """Guest node by vCPU."""
        return {vcpu: number for number, node in enumerate(self.nodes) for vcpu in node.vcpus}


def mirror(
    topology: Topology, where: Sequence[Seat], memory_mib: int, page_mib: int, traits: Traits
) -> Mirror:
    """page_mib: what a node's memory is a multiple of. Raises NoMirror."""
    real = truth(where)
    threads = _threads(where, real.cores)
    remedy = traits.remedy if threads > 1 and not traits.siblings else ()
    if threads > 1 and not traits.siblings and not remedy:
        raise NoMirror(f"the guest would not see siblings: {traits.deaf}")
    sizes = _group_sizes(where, real.l3s, threads)
    traits = replace(traits, siblings=True) if remedy else traits
    for smp in _candidates(where, real, sizes, threads):
        nodes = _nodes(where, real.nodes, smp, memory_mib, page_mib)
        found = Mirror(smp, nodes, _distances(topology, nodes), remedy)
        if seen(smp, found.node_of(), traits) == real:
            return found
    raise NoMirror(
        f"the guest's CPU model draws its L3 groups by {traits.groups}, which fits none of"
        f" {len(sizes)} groups of {sizes[0]} cores"
    )


def _threads(where: Sequence[Seat], cores: Parts) -> int:
    """How many vCPUs each core has; the last may have fewer. Raises NoMirror where others differ, or have no
    neighbouring numbers.
    """
    cpus = [seat.cpu for seat in where]
    if len(set(cpus)) < len(cpus):
        raise NoMirror("several vCPUs are pinned to one CPU, so they are no processors of their own")
    together = runs(cores)
    threads = len(together[0])
    if uneven := [group for group in together[:-1] if len(group) != threads] or [
        group for group in together[-1:] if len(group) > threads
    ]:
        one, other = (cpulist.format(cpus[vcpu] for vcpu in group) for group in (together[0], uneven[0]))
        raise NoMirror(f"some cores serve more of its vCPUs than others: CPU {one} but CPU {other}")
    if any(group != list(range(group[0], group[0] + len(group))) for group in together):
        raise NoMirror("siblings of a core are not vCPUs with neighbouring numbers", hint=_order(where))
    return threads


def _group_sizes(where: Sequence[Seat], l3s: Parts, threads: int) -> list[int]:
    """Cores of each L3 group, in order. Raises NoMirror unless only the last is smaller."""
    together = runs(l3s)
    if any(group != list(range(group[0], group[0] + len(group))) for group in together):
        raise NoMirror("the vCPUs of an L3 group have no neighbouring numbers", hint=_order(where))
    sizes = [-(-len(group) // threads) for group in together]
    if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]:
        text = " + ".join(map(str, sizes))
        ordered = sorted(sizes, reverse=True)
        fits = ordered != sizes and len(set(ordered[:-1])) == 1
        raise NoMirror(
            f"the L3 groups have {text} of its cores, and QEMU makes equal ones of which only the last may"
            " be short",
            hint=_order(where) if fits else "give the VM as many cores in each group",
        )
    return sizes


def _order(where: Sequence[Seat]) -> str:
    """The same CPUs in an order that can be mirrored: large groups first, siblings side by side."""
    groups = sorted(
        runs(truth(where).l3s), key=lambda group: (where[group[0]].node, -len(group), where[group[0]].cell)
    )
    groups.sort(key=len, reverse=True)
    ordered = [
        seat.cpu
        for group in groups
        for seat in sorted((where[vcpu] for vcpu in group), key=lambda seat: (seat.core, seat.cpu))
    ]
    return f"affinity {','.join(map(str, ordered))} has the same CPUs in an order that can be mirrored"


def _candidates(where: Sequence[Seat], real: Picture, sizes: Sequence[int], threads: int) -> Iterator[Smp]:
    """Ways to build so many groups: a socket a package, then one for all, then one a group."""
    groups, cores = len(sizes), sizes[0]
    packages = parts(seat.package for seat in where)
    # As many groups in each package, and those next to each other.
    counts = [len({real.l3s[vcpu] for vcpu in run}) for run in runs(packages)]
    ascending = list(packages) == sorted(packages)
    even = len(set(counts)) == 1 and sum(counts) == groups
    sockets = [len(counts)] if even and ascending else []
    for number in dict.fromkeys([*sockets, 1, groups]):
        yield levels(len(where), number, groups // number, cores, threads)


def _nodes(
    where: Sequence[Seat], of: Parts, smp: Smp, memory_mib: int, page_mib: int
) -> tuple[GuestNode, ...]:
    """The guest's nodes, with memory in proportion. Absent vCPUs belong to the node of the last group."""
    together = runs(of)
    if len(together) == 1:
        return ()
    if len(together) > MOST_NODES:
        raise NoMirror(
            f"its vCPUs are on {len(together)} NUMA nodes, and Proxmox has numa0 to numa{MOST_NODES - 1}"
        )
    absent = range(smp.cpus, smp.maxcpus)
    pages, odd = divmod(memory_mib, page_mib)
    if odd or pages < len(together):
        raise NoMirror(
            f"{memory_mib} MiB cannot be divided over {len(together)} nodes in pages of {page_mib} MiB"
        )
    given = 0
    nodes = []
    for number, group in enumerate(together):
        upto = pages * (group_end(together, number)) // len(where)
        share = upto - given
        given = upto
        more = absent if of[-1] == group[0] else ()
        nodes.append(GuestNode(frozenset((*group, *more)), share * page_mib, where[group[0]].node))
    return tuple(nodes)


def group_end(together: Sequence[Sequence[int]], number: int) -> int:
    """How many vCPUs there are up to this group, which is included."""
    return sum(len(group) for group in together[: number + 1])


def _distances(topology: Topology, nodes: Sequence[GuestNode]) -> dict[tuple[int, int], int]:
    """The host's; empty where the firmware gave none, or what QEMU says by itself."""
    found = {
        (one, other): topology.distance(a.host, b.host)
        for one, a in enumerate(nodes)
        for other, b in enumerate(nodes)
        if one != other
    }
    usable = all(LOCAL_DISTANCE < distance < 255 for distance in found.values())
    if not usable or set(found.values()) <= {2 * LOCAL_DISTANCE}:
        return {}
    if all(found[pair] == found[pair[::-1]] for pair in found):
        return {pair: found[pair] for pair in found if pair[0] < pair[1]}
    return found  # QEMU wants every direction as soon as two differ
