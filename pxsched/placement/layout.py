"""How a VM's vCPUs are divided over NUMA nodes: as its guest nodes say, else evenly."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from pxsched.placement.machine import NO_NODE, Machine
from pxsched.placement.nodesets import MOST_TIED, Allowance, Pair
from pxsched.placement.request import Request
from pxsched.value import Value


class Part(Value):
    """vCPUs that belong on one node, with their memory. hosts: the nodes with CPUs allowed, None for any.

    bound: the memory must come from that node, or from `memory_from`, which has no CPUs.
    """

    vcpus: tuple[int, ...]
    memory_mib: int
    hosts: frozenset[int] | None
    bound: bool
    memory_from: int | None = None


def parts_of(machine: Machine, request: Request) -> tuple[Part, ...]:
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
            hosts=cpu_nodes(machine, guest.host_nodes) or None,
            bound=guest.policy not in ("preferred", "interleave"),
            memory_from=min(guest.host_nodes)
            if guest.host_nodes and guest.host_nodes.issubset(machine.far)
            else None,
        )
        for own, guest in zip(members, request.guest_nodes, strict=True)
    )


def cpu_nodes(machine: Machine, host_nodes: frozenset[int]) -> frozenset[int]:
    """The nodes with CPUs that belong to these: themselves, or the nearest to nodes that have memory only."""
    distance = machine.topology.distance
    own = host_nodes.intersection(machine.cpus)
    if own or not host_nodes.intersection(machine.far):
        return host_nodes
    near = {node: min(distance(node, far) for far in host_nodes) for node in machine.nodes if node != NO_NODE}
    return frozenset(node for node in near if near[node] == min(near.values()))


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


_DIGIT = 1 << 20  # more than any sum of one part of a price


def price(groups: int, joined: int, torn: int, broken: int, leftover: int) -> int:
    """What a division costs, as one number that can be added: its parts are digits, the first counts most.

    groups: L3 groups; joined: cores joined with other VMs; torn: shares that tear the siblings of a core
    apart; broken: whole groups broken; leftover: CPUs left.
    """
    return (((groups * _DIGIT + joined) * _DIGIT + torn) * _DIGIT + broken) * _DIGIT + leftover


class Prices(Protocol):
    """What so many vCPUs cost on the node at a position: (vCPUs, price), where they fit."""

    def __call__(self, position: int, fewest: int, most: int) -> Sequence[tuple[int, int]]: ...


def whole_sockets(capacities: Sequence[int], request: Request, prices: Prices) -> tuple[int, ...] | None:
    """vCPUs for each node so that no guest socket is torn; None when that cannot be."""
    size = sockets(request)
    if not size or request.sockets < len(capacities):
        return None

    def of_sockets(position: int, fewest: int, most: int) -> list[tuple[int, int]]:
        each = (prices(position, number * size, number * size) for number in range(fewest, most + 1))
        return [(count // size, cost) for row in each for count, cost in row]

    counts = deal([capacity // size for capacity in capacities], request.sockets, 1, of_sockets)
    return None if counts is None else tuple(count * size for count in counts)


def deal(capacities: Sequence[int], count: int, threads: int, prices: Prices) -> tuple[int, ...] | None:
    """`count` vCPUs over nodes, as evenly as they allow and at the lowest price; None when it does not fit.

    Nodes with room enough may differ by one core of `threads`. Where nothing else decides, the division is
    the most even one, and the first nodes get most.
    """
    even = level(capacities, count)
    if even is None:
        return None
    top = max(even)
    lows = [
        low
        for low in range(max(0, top - threads), top + 1)
        if sum(min(most, low) for most in capacities)
        <= count
        <= sum(min(most, low + threads) for most in capacities)
    ]
    rows = [
        prices(position, min(most, lows[0]), min(most, lows[-1] + threads))
        for position, most in enumerate(capacities)
    ]
    # A division is one number: its price, and below that minus the shares, each a digit, so that of equal
    # prices the least number gives the first nodes most.
    digit = (top + threads).bit_length()
    whole = digit * len(capacities)
    found = []
    for low in lows:
        bounds = [(min(most, low), min(most, low + threads)) for most in capacities]
        sum_ = _cheapest(rows, bounds, count, digit)
        if sum_ is not None:
            digits = -sum_ & ((1 << whole) - 1)
            shares = [digits >> below & ((1 << digit) - 1) for below in range(whole - digit, -1, -digit)]
            found.append(((sum_ + digits) >> whole, max(shares) - min(shares), -digits, shares))
    return tuple(min(found)[3]) if found else None


def _cheapest(
    rows: Sequence[Sequence[tuple[int, int]]], bounds: Sequence[tuple[int, int]], count: int, digit: int
) -> int | None:
    """The least number, as `deal` makes them, of the divisions within these bounds."""
    least, most = map(sum, zip(*bounds, strict=True))
    below = whole = digit * len(rows)
    reached = {0: 0}
    for row, (fewest, highest) in zip(rows, bounds, strict=True):
        least, most, below = least - fewest, most - highest, below - digit
        after: dict[int, int] = {}
        for share, cost in row:
            if not fewest <= share <= highest:
                continue
            more = (cost << whole) - (share << below)
            # Only what leads to `count`.
            low, high = count - most - share, count - least - share
            for given, paid in reached.items():
                if low <= given <= high:
                    total = given + share
                    if total not in after or paid + more < after[total]:
                        after[total] = paid + more
        reached = after
    return reached.get(count)


def unevenness(capacities: Sequence[int], count: int) -> int:
    """How far from even the best division over these nodes is; one vCPU more here or there is even."""
    shares = level(capacities, count)
    return 0 if shares is None else max(0, max(shares) - min(shares) - 1)


class Assignment(NamedTuple):
    """The nodes of a VM, ascending, and the node of each part."""

    nodes: tuple[int, ...]
    node_of: tuple[int, ...]


class Assigning:
    """Puts each guest node whole on a host node, on few and near ones, as even as can be.

    It tries the emptiest and nearest node first and gives up with its allowance: this is to pack bins.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        capacity: Mapping[int, int],
        free: Mapping[int, float],
        memory_node: Mapping[int, int],
        pair: Pair,
        allowance: Allowance,
    ) -> None:
        self.parts = parts
        self.order = sorted(
            range(len(parts)), key=lambda i: (parts[i].hosts is None, -len(parts[i].vcpus), i)
        )
        self.room = dict(capacity)
        self.free = dict(free)
        self.memory_node = memory_node
        self.pair = pair
        self.allowance = allowance
        self.load: dict[int, int] = {}
        self.chosen: dict[int, int] = {}
        self.found: dict[tuple[int, ...], Assignment] = {}
        self.best: float = float("inf")

    def by_size(self) -> Iterator[list[Assignment]]:
        """For each number of nodes that suffices, ascending, the nearest ways found, one for each set."""
        for size in range(1, min(len(self.parts), len(self.room)) + 1):
            self.best, self.found = float("inf"), {}
            self._put(0, 0, size, self.allowance.left // 2)
            if self.found:
                yield list(self.found.values())

    def _put(self, position: int, cost: int, size: int, looks: int) -> None:
        unused = size - len(self.load)
        if len(self.order) - position < unused or cost > self.best:
            return
        if position == len(self.order):
            self._end(cost)
            return
        before, tried = self.allowance.looks, False
        part = self.parts[self.order[position]]
        options = [
            (self.load.get(node, 0), self._more(node), node)
            for node in (self.room if part.hosts is None else self.room.keys() & part.hosts)
            if (node in self.load or unused) and self._fits(part, node)
        ]
        self.allowance.looks += len(self.room)
        for _, more, node in sorted(options):
            spent = self.allowance.looks - before
            if tried and spent >= looks:
                return
            tried = True
            was = self.load.get(node)
            self._move(part, node, 1)
            self.load[node] = (was or 0) + max(1, len(part.vcpus))
            self.chosen[self.order[position]] = node
            self._put(position + 1, cost + more, size, (looks - spent) // 2)
            self._move(part, node, -1)
            if was is None:
                del self.load[node]
            else:
                self.load[node] = was

    def _more(self, node: int) -> int:
        """What this node would add to the distances."""
        if node in self.load:
            return 0
        return sum(self.pair[min(node, one), max(node, one)] for one in self.load)

    def _fits(self, part: Part, node: int) -> bool:
        if self.room[node] < len(part.vcpus):
            return False
        return not part.bound or self.free[self._memory_of(part, node)] >= part.memory_mib

    def _memory_of(self, part: Part, node: int) -> int:
        return self.memory_node[node] if part.memory_from is None else part.memory_from

    def _move(self, part: Part, node: int, sign: int) -> None:
        """Takes what a part needs from a node, or gives it back."""
        self.room[node] -= sign * len(part.vcpus)
        if part.bound:
            self.free[self._memory_of(part, node)] -= sign * part.memory_mib

    def _end(self, cost: int) -> None:
        self.allowance.sets += 1
        if cost < self.best:
            self.best, self.found = cost, {}
        nodes = tuple(sorted(self.load))
        if len(self.found) < MOST_TIED:
            way = Assignment(nodes, tuple(self.chosen[number] for number in range(len(self.parts))))
            self.found.setdefault(nodes, way)
