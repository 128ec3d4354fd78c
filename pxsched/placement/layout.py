"""How a VM's vCPUs are divided over NUMA nodes: as its guest nodes say, else evenly."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from pxsched.placement.request import Request
from pxsched.value import Value


class Part(Value):
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


def sockets(request: Request) -> int:
    """vCPUs of a guest socket; 0 where it has but one, or they do not come out even."""
    even = request.sockets > 1 and not request.vcpus % request.sockets
    return request.vcpus // request.sockets if even else 0


class Price(Value):
    """What a division costs; smaller is better. groups: L3 groups, then cores joined with other VMs.
    torn: shares that tear the siblings of a core apart. room: whole groups broken, then CPUs left over.
    """

    groups: tuple[int, int] = (0, 0)
    torn: int = 0
    room: tuple[int, int] = (0, 0)

    def __add__(self, other: "Price") -> "Price":
        return Price(
            (self.groups[0] + other.groups[0], self.groups[1] + other.groups[1]),
            self.torn + other.torn,
            (self.room[0] + other.room[0], self.room[1] + other.room[1]),
        )

    def __lt__(self, other: "Price") -> bool:
        return (self.groups, self.torn, self.room) < (other.groups, other.torn, other.room)


# The price of so many vCPUs on the node at a position; None when they do not fit.
Pricing = Callable[[int, int], Price | None]
Division = tuple[Price, tuple[int, ...]]


def whole_sockets(capacities: Sequence[int], request: Request, pricing: Pricing) -> tuple[int, ...] | None:
    """vCPUs for each node so that no guest socket is torn; None when that cannot be."""
    size = sockets(request)
    if not size or request.sockets < len(capacities):
        return None
    room = [capacity // size for capacity in capacities]
    counts = deal(room, request.sockets, 1, lambda position, count: pricing(position, count * size))
    return None if counts is None else tuple(count * size for count in counts)


def deal(capacities: Sequence[int], count: int, threads: int, pricing: Pricing) -> tuple[int, ...] | None:
    """`count` vCPUs over nodes, as evenly as they allow and at the lowest price; None when it does not fit.

    Nodes with room enough may differ by one core of `threads`. Where nothing else decides, the division is
    the most even one, and the first nodes get most.
    """
    even = level(capacities, count)
    if even is None:
        return None
    found: list[Division] = []
    for low in range(max(0, max(even) - threads), max(even) + 1):
        found += _window(capacities, count, low, low + threads, pricing)
    best = min(
        found, key=lambda way: (way[0], max(way[1]) - min(way[1]), [-share for share in way[1]]), default=None
    )
    return None if best is None else best[1]


def _window(capacities: Sequence[int], count: int, low: int, high: int, pricing: Pricing) -> list[Division]:
    """The cheapest way to give every node from `low` to `high` vCPUs, or all it has room for, if any."""
    reached: dict[int, Division] = {0: (Price(), ())}
    left = [sum(min(most, high) for most in capacities[i + 1 :]) for i in range(len(capacities))]
    for position, most in enumerate(capacities):
        after: dict[int, Division] = {}
        for share in range(min(most, low), min(most, high) + 1):
            price = pricing(position, share)
            if price is None:
                continue
            for given, (paid, shares) in reached.items():
                total = given + share
                if total > count or total + left[position] < count:
                    continue
                way = (paid + price, (*shares, share))
                # Of equals the one where earlier nodes have more.
                if total not in after or (way[0], after[total][1]) < (after[total][0], way[1]):
                    after[total] = way
        reached = after
    return [reached[count]] if count in reached else []


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
