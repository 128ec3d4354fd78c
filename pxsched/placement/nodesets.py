"""Which sets of NUMA nodes can hold a VM: the fewest nodes, and of these sets the nearest ones.

Firmware may show sixteen nodes in a socket (AMD's "L3 as NUMA domain"), and 32 nodes have 600 million sets of
sixteen. Up to MOST_SETS sets of a size are all looked at, which is every size on up to eight nodes. Beyond, a
walk adds the nearest node to what it has, leaves out what a bound excludes, and ends with its allowance.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple

MOST_SETS = 70  # sets of four of eight nodes
MOST_TIED = 12  # sets that are as near as each other and found by the walk
MOST_WEIGHED = 48  # nodes of such sets whose CPUs are dealt out to see which set is best
MOST_LOOKS = 12_000  # nodes that all walks of a decision may look at


class Site(NamedTuple):
    """What a node can give. cost: comes before nearness. rank: which of equally near nodes comes first."""

    node: int
    cpus: int
    memory_mib: float
    cost: int = 0
    rank: tuple[float, ...] = ()


class Need(NamedTuple):
    """holds: whether these nodes have the memory, for what they borrow is not the sum of what each can."""

    cpus: int
    memory_mib: float
    holds: Callable[[Sequence[int]], bool]


class Allowance:
    """Counts what a decision has looked at: nodes on walks, and sets of nodes that were weighed whole."""

    def __init__(self, looks: int = MOST_LOOKS) -> None:
        self.looks = 0
        self.sets = 0
        self.most = looks

    @property
    def left(self) -> int:
        return max(0, self.most - self.looks)


Pair = Mapping[tuple[int, int], int]
Nodes = tuple[int, ...]


def by_size(sites: Sequence[Site], need: Need, pair: Pair, allowance: Allowance) -> Iterator[list[Nodes]]:
    """For each number of nodes that suffices, ascending: the nearest sets that hold the VM, nodes ascending.

    pair: the distance of two nodes, there and back; the lower node first.
    """
    tops = _tops(sites, need)
    for size in range(1, len(sites) + 1):
        if any(sums[size] < 1 - 1e-9 for _, sums in tops):
            continue
        if all_seen(sites, size):
            allowance.sets += comb(len(sites), size)
            found = [
                tuple(sorted(site.node for site in some))
                for some in combinations(sites, size)
                if sum(site.cpus for site in some) >= need.cpus
            ]
            found = [nodes for nodes in found if need.holds(nodes)]
            if size > 1:
                found = _nearest(found, sites, pair)
        else:
            found = _Walk(sites, need, pair, size, allowance).sets([order[:size] for order, _ in tops])
        if found:
            yield found


def all_seen(sites: Sequence[Site], size: int) -> bool:
    """Whether all sets of so many nodes are looked at."""
    return comb(len(sites), size) <= MOST_SETS


def _nearest(found: list[Nodes], sites: Sequence[Site], pair: Pair) -> list[Nodes]:
    cost = {site.node: site.cost for site in sites}
    costs = [sum(map(cost.__getitem__, nodes)) + nearness(nodes, pair) for nodes in found]
    least = min(costs, default=0)
    return [nodes for nodes, own in zip(found, costs, strict=True) if own == least]


def nearness(nodes: Sequence[int], pair: Pair) -> int:
    """The sum of all distances among these nodes, there and back; nodes ascending."""
    return sum(pair[two] for two in combinations(nodes, 2))


# Weights of memory against CPUs. Whatever the weight, the best nodes by it bound what any set can give; and
# some weight mostly orders them so that they do.
_WEIGHTS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)


def _tops(sites: Sequence[Site], need: Need) -> list[tuple[list[Site], list[float]]]:
    """For each weight the sites, most useful first, and which part of the need the first of them meet."""
    parts = [
        (
            min(1.0, site.cpus / max(1, need.cpus)),
            min(1.0, site.memory_mib / need.memory_mib) if need.memory_mib > 0 else 1.0,
            site,
        )
        for site in sites
    ]
    found = []
    for weight in _WEIGHTS:
        worth = sorted(
            ((cpus * (1 - weight) + memory * weight, site) for cpus, memory, site in parts),
            key=lambda item: (-item[0], item[1].cost, item[1].rank, item[1].node),
        )
        sums = [0.0]
        for value, _ in worth:
            sums.append(sums[-1] + value)
        found.append(([site for _, site in worth], sums))
    return found


class _Walk:
    """Sets of one size on a machine with too many of them."""

    def __init__(
        self, sites: Sequence[Site], need: Need, pair: Pair, size: int, allowance: Allowance
    ) -> None:
        self.need, self.pair, self.size, self.allowance = need, pair, size, allowance
        self.sites = sites
        self.far: dict[int, dict[int, int]] = {site.node: {} for site in sites}
        for (one, other), distance in pair.items():
            if one in self.far and other in self.far:
                self.far[one][other] = self.far[other][one] = distance
        self.least = min(min(row.values()) for row in self.far.values())
        self.best: float = float("inf")
        self.found: list[Nodes] = []

    def sets(self, guesses: Sequence[Sequence[Site]]) -> list[Nodes]:
        for guess in guesses:
            nodes = tuple(sorted(site.node for site in guess))
            cost = sum(site.cost for site in guess) + nearness(nodes, self.pair)
            if cost < self.best and sum(site.cpus for site in guess) >= self.need.cpus:
                self._end(nodes, cost)
        even = self.need.cpus / self.size
        even_mib = self.need.memory_mib / self.size

        def short(site: Site) -> float:
            """How far it is from giving an even share."""
            cpus = max(0.0, 1 - site.cpus / even)
            return cpus + (max(0.0, 1 - site.memory_mib / even_mib) if even_mib > 0 else 0.0)

        def star(site: Site) -> int:
            return site.cost + sum(sorted(self.far[site.node].values())[: self.size - 1])

        ranked = sorted(self.sites, key=lambda site: (short(site), site.rank, site.node))
        ranked.sort(key=star)
        self._extend((), 0, 0, 0.0, [(site.cost, site) for site in ranked], self.allowance.left // 2)
        return self.found

    def _extend(
        self,
        chosen: Nodes,
        cost: int,
        cpus: int,
        memory_mib: float,
        others: list[tuple[int, Site]],
        looks: int,
    ) -> None:
        """Adds each of the others in turn; they come with what each would add to the cost, in order. The
        first one gets half of the allowance, the next half of the rest: late choices do not take all of it.
        """
        left = self.size - len(chosen)
        allowance, need = self.allowance, self.need
        before, tried = allowance.looks, False
        # Those that are left out from here on are not taken from these bounds: they stay bounds.
        most = sorted([site.cpus for _, site in others], reverse=True)[:left]
        most_mib = sorted([site.memory_mib for _, site in others], reverse=True)[:left]
        if cpus + sum(most) < need.cpus or memory_mib + sum(most_mib) < need.memory_mib:
            return
        least_cpus = need.cpus - cpus - sum(most[:-1])
        least_mib = need.memory_mib - memory_mib - sum(most_mib[:-1])
        least = cost + self.least * (left * (left - 1) // 2)
        costs = [own for own, _ in others]
        for position, (more, site) in enumerate(others):
            spent = allowance.looks - before
            if len(others) - position < left or (tried and spent >= looks):
                return
            bound = least + sum(costs[position : position + left])
            if bound > self.best or (bound == self.best and len(self.found) >= MOST_TIED):
                return
            allowance.looks += 1
            if site.cpus < least_cpus or site.memory_mib < least_mib:
                continue
            tried = True
            now = (*chosen, site.node)
            if left == 1:
                self._end(now, bound)
                continue
            allowance.looks += len(others) - position - 1
            far = self.far[site.node]
            following = [(own + far[other.node], other) for own, other in others[position + 1 :]]
            following.sort(key=_added)
            self._extend(
                now, cost + more, cpus + site.cpus, memory_mib + site.memory_mib, following,
                (looks - spent) // 2,
            )  # fmt: skip

    def _end(self, nodes: Nodes, cost: float) -> None:
        self.allowance.sets += 1
        nodes = tuple(sorted(nodes))
        if cost > self.best or not self.need.holds(nodes):
            return
        if cost < self.best:
            self.best, self.found = cost, []
        if nodes not in self.found:
            self.found.append(nodes)


def _added(item: tuple[int, Site]) -> int:
    return item[0]
