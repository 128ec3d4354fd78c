"""How a VM's vCPUs are divided over NUMA nodes: as its guest nodes say, else evenly."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pxsched.placement.request import Request


@dataclass(frozen=True, slots=True)
class Part:
    """vCPUs that belong on one node, with their memory. hosts: the nodes allowed, None for any.

    bound: the memory must come from that node.
    """

    vcpus: tuple[int, ...]
    memory_mib: int
    hosts: frozenset[int] | None
    bound: bool


def parts_of(request: Request) -> tuple[Part, ...]:
    """The guest nodes; empty when the VM has none. vCPUs that no guest node lists belong to the first."""
    if not request.guest_nodes:
        return ()
    listed: set[int] = set()
    members: list[list[int]] = []
    for guest in request.guest_nodes:
        own = sorted(cpu for cpu in guest.cpus if cpu < request.vcpus and cpu not in listed)
        listed.update(own)
        members.append(own)
    members[0] = sorted(members[0] + [vcpu for vcpu in range(request.vcpus) if vcpu not in listed])
    return tuple(
        Part(
            vcpus=tuple(own),
            memory_mib=guest.memory_mib,
            hosts=guest.host_nodes or None,
            bound=guest.policy not in ("preferred", "interleave"),
        )
        for own, guest in zip(members, request.guest_nodes, strict=True)
    )


def level(capacities: Sequence[int], count: int) -> list[int] | None:
    """`count` dealt out as evenly as the capacities allow; None when it does not fit."""
    if sum(capacities) < count:
        return None
    shares = [0] * len(capacities)
    order = sorted(range(len(capacities)), key=lambda index: capacities[index])
    for position, index in enumerate(order):
        shares[index] = min(capacities[index], count // (len(order) - position))
        count -= shares[index]
    return shares


def units(request: Request, threads: int) -> tuple[int, ...]:
    """The pieces in which vCPUs are dealt out, largest first: guest sockets, cores, single vCPUs."""
    socket = request.vcpus // request.sockets if request.sockets > 1 else 0
    whole = [socket] if socket and not request.vcpus % request.sockets else []
    return tuple(dict.fromkeys([*whole, threads, 1]))


def deal(
    capacities: Sequence[int], count: int, unit: int, price: Callable[[int, int], int]
) -> tuple[int, ...] | None:
    """vCPUs for each node, in whole units; None when that cannot be.

    price(node position, vCPUs): the L3 groups that so many vCPUs need there; the surplus units go where they
    add fewest.
    """
    whole, rest = divmod(count, unit)
    if whole < len(capacities) and unit > 1:
        return None
    room = [capacity // unit for capacity in capacities]
    shares = level(room, whole)
    if shares is None:
        return None
    low = min((share for share, most in zip(shares, room, strict=True) if share < most), default=None)
    counts = [share * unit for share in shares]
    if low is not None:
        raised = [i for i, share in enumerate(shares) if share == low + 1]
        open_ = [i for i, share in enumerate(shares) if share in (low, low + 1) and room[i] > low]
        base = low * unit
        if raised and len(open_) > len(raised):
            open_.sort(key=lambda i: (price(i, base + unit) - price(i, base), i))
            for rank, index in enumerate(open_):
                counts[index] = base + (unit if rank < len(raised) else 0)
    if rest:
        fitting = [i for i, most in enumerate(capacities) if most - counts[i] >= rest]
        if not fitting:
            return None
        best = min(fitting, key=lambda i: (price(i, counts[i] + rest) - price(i, counts[i]), counts[i], i))
        counts[best] += rest
    return tuple(counts)


def unevenness(capacities: Sequence[int], count: int) -> int:
    """How far from even the best division over these nodes is; one vCPU more here or there is even."""
    shares = level(capacities, count)
    return 0 if shares is None else max(0, max(shares) - min(shares) - 1)


def assignments(
    parts: Sequence[Part], nodes: Sequence[int], capacity: Mapping[int, int], memory: Mapping[int, float]
) -> Iterator[dict[int, int]]:
    """Every way (fullest first) to put each part whole on one of `nodes` so that all of them are used.

    A way is the node of each part. The emptiest node is tried first, so the first way is an even one.
    """
    order = sorted(range(len(parts)), key=lambda i: (parts[i].hosts is None, -len(parts[i].vcpus), i))
    room = {node: capacity.get(node, 0) for node in nodes}
    free = {node: memory.get(node, 0.0) for node in nodes}
    load = dict.fromkeys(nodes, 0)
    chosen: dict[int, int] = {}

    def walk(position: int) -> Iterator[dict[int, int]]:
        unused = sum(1 for node in nodes if not load[node])
        if len(order) - position < unused:
            return
        if position == len(order):
            yield dict(chosen)
            return
        part = parts[order[position]]
        need = part.memory_mib if part.bound else 0
        for node in sorted(nodes, key=lambda node: (load[node], node)):
            if part.hosts is not None and node not in part.hosts:
                continue
            if room[node] < len(part.vcpus) or free[node] < need:
                continue
            room[node] -= len(part.vcpus)
            free[node] -= need
            load[node] += max(1, len(part.vcpus))
            chosen[order[position]] = node
            yield from walk(position + 1)
            load[node] -= max(1, len(part.vcpus))
            free[node] += need
            room[node] += len(part.vcpus)
            del chosen[order[position]]

    yield from walk(0)
