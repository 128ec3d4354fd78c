"""The candidates for exclusive CPUs: every set of nodes worth considering, measured rule by rule.

The rules in order: fewest nodes, near ones, evenly; the devices' nodes; fewest L3 groups; kinds of CPU;
siblings, as far as `share` leaves a choice; room for the next VM; stability.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from pxsched.placement import memory
from pxsched.placement.kinds import Variant, variants
from pxsched.placement.layout import Assigning, deal, parts_of, price, unevenness, whole_sockets
from pxsched.placement.machine import Machine, bits, machine_of, mask_of, remoteness
from pxsched.placement.nodesets import MOST_WEIGHED, Allowance, Need, Nodes, Site, all_seen, by_size, nearness
from pxsched.placement.occupancy import Occupancy
from pxsched.placement.request import Host, Request, VmClass
from pxsched.placement.score import Candidate, Score
from pxsched.placement.supply import Fill, Stock, fill, stocks_of, usable_for
from pxsched.settings.policy import Smt


class Search:
    """One request on one machine state; everything is computed at most once.

    shunned: CPUs of the pool that others run on, too: as few of them as can be are taken.
    """

    def __init__(
        self,
        host: Host,
        request: Request,
        occupied: Occupancy,
        allowed: int,
        pool: int,
        allowance: Allowance | None = None,
        shunned: int = 0,
    ) -> None:
        self.host = host
        self.allowed = allowed
        self.machine: Machine = machine_of(host.topology)
        self.request = request
        self.occupied = occupied
        busy = occupied.taken | (mask_of(host.housekeeping) if request.cpus is None else 0)
        self.usable = usable_for(self.machine, pool, busy, request.smt)
        self.shunned = shunned
        self.touched = shunned & pool
        if request.smt is Smt.SHARE:
            self.touched |= self.machine.spread(occupied.taken)
        self.room = memory.room_of(self.machine, host, request)
        self.parts = parts_of(self.machine, request)
        self.allowance = allowance or Allowance()
        self.threads = 1 if request.smt is Smt.ISOLATE else self.machine.threads
        self._stocks: dict[tuple[int, int], list[Stock]] = {}
        self._fills: dict[tuple[int, int, int], Fill | None] = {}
        self._rows: dict[tuple[int, int, int, int], list[tuple[int, int]]] = {}
        self._used = {node: (occupied.taken & mask).bit_count() for node, mask in self.machine.cpus.items()}

    def candidates(self) -> list[Candidate]:
        """All candidates of the fewest nodes; empty when the VM does not fit at all."""
        for room in memory.rooms(self.machine, self.host, self.request):
            self.room = room
            if self.room.of(self.machine.nodes) >= self._least_memory:
                found = self._found()
                if found:
                    return found
        return []

    def _found(self) -> list[Candidate]:
        found: list[Candidate] = []
        # First as if cores that others have part of were not allowed: the L3 groups that then serve differ.
        for usable in dict.fromkeys((self.usable & ~self.touched, self.usable)):
            if any(candidate.ideal for candidate in found):
                break
            for variant in variants(self.machine, self.request.prefer, usable):
                if variant.mask.bit_count() >= self.request.vcpus:
                    found += self._in_variant(variant)
        return found

    def _in_variant(self, variant: Variant) -> list[Candidate]:
        capacity = {node: (variant.mask & cpus).bit_count() for node, cpus in self.machine.cpus.items()}
        if self.parts:
            found = self._assigned(variant, capacity)
            if found or any(part.hosts is not None for part in self.parts):
                return found
        sites = self._sites(variant, capacity)
        for sets in by_size(sites, self._need, self.machine.pair, self.allowance):
            size = len(sets[0])
            if size > 1:
                sets = self._best(sets, capacity)
            if len(sets) * size > MOST_WEIGHED and not all_seen(sites, size):
                sets = self._promising(sets, variant)[: max(1, MOST_WEIGHED // size)]
            found = [candidate for nodes in sets for candidate in self._on(nodes, variant, capacity)]
            if found:
                return found
        return []

    @property
    def _need(self) -> Need:
        least = self._least_memory
        room = self.room
        return Need(self.request.vcpus, least - room.besides, lambda nodes: room.of(nodes) >= least)

    def _sites(self, variant: Variant, capacity: Mapping[int, int]) -> list[Site]:
        """The nodes with CPUs or memory to give. One without memory costs more than any distance."""
        machine = self.machine
        dear = 1 + sum(machine.pair.values()) if machine.bare else 0
        return [
            Site(
                node,
                capacity[node],
                self.room.most(node),
                dear * (node in machine.bare),
                (self._devices((node,)), (self.touched & machine.cpus[node]).bit_count(), self._used[node]),
            )
            for node in machine.nodes
            if capacity[node] or self._lends_memory(node)
        ]

    def _best(self, sets: list[tuple[int, ...]], capacity: Mapping[int, int]) -> list[tuple[int, ...]]:
        """Of the nearest sets the most even ones, and of these the nearest to the devices."""
        for measure in (self._distance, lambda nodes: self._unevenness(nodes, capacity), self._devices):
            values = [measure(nodes) for nodes in sets]
            best = min(values)
            sets = [nodes for nodes, value in zip(sets, values, strict=True) if value == best]
        return sets

    def _promising(self, sets: Sequence[Nodes], variant: Variant) -> list[Nodes]:
        """First those that need few L3 groups, disturb few shared VMs and break few groups, by what that
        comes to if every CPU were used.
        """

        def figures(node: int) -> tuple[bool, int, float]:
            stocks = self._stock(node, variant)
            few = sum(stock.capacity for stock in stocks) < self.threads
            return few, sum(stock.whole for stock in stocks), sum(stock.disturbed for stock in stocks)

        found = {node: figures(node) for node in frozenset().union(*sets)}
        return sorted(
            sets, key=lambda nodes: [sum(all_) for all_ in zip(*map(found.__getitem__, nodes), strict=True)]
        )

    def _lends_memory(self, node: int) -> bool:
        allowed = self.request.nodes
        return self.room.free[node] > 0 and (allowed is None or node in allowed)

    @property
    def _least_memory(self) -> int:
        return 0 if self.parts else self.request.memory_mib

    def _assigned(self, variant: Variant, capacity: Mapping[int, int]) -> list[Candidate]:
        """Every guest node whole on a node."""
        room = {node: count for node, count in capacity.items() if count or self._lends_memory(node)}
        machine = self.machine
        ways = Assigning(self.parts, room, self.room.free, machine.memory_node, machine.pair, self.allowance)
        for found in ways.by_size():
            candidates: list[Candidate] = []
            for nodes, node_of in found:
                members: dict[int, list[int]] = {node: [] for node in nodes}
                for part, node in zip(self.parts, node_of, strict=True):
                    members[node] += part.vcpus
                homes = [tuple(members[node]) for node in nodes]
                candidates += self._candidate(nodes, homes, variant, capacity, divided=False)
            if candidates:
                return candidates
        return []

    def _on(
        self, nodes: tuple[int, ...], variant: Variant, capacity: Mapping[int, int]
    ) -> Iterator[Candidate]:
        split = self._dealt(nodes, variant, capacity)
        if split is None:
            return
        vcpus = list(range(self.request.vcpus))
        homes: list[tuple[int, ...]] = []
        for share in split:
            homes.append(tuple(vcpus[:share]))
            vcpus = vcpus[share:]
        yield from self._candidate(nodes, homes, variant, capacity, divided=bool(self.parts))

    def _dealt(
        self, nodes: tuple[int, ...], variant: Variant, capacity: Mapping[int, int]
    ) -> tuple[int, ...] | None:
        if len(nodes) == 1:
            return (self.request.vcpus,)
        # Where it makes no difference to the VM, the emptiest node gets most.
        order = sorted(nodes, key=lambda node: (self._used[node], node))
        room = [capacity[node] for node in order]

        def prices(position: int, fewest: int, most: int) -> list[tuple[int, int]]:
            return self._row(order[position], fewest, most, variant)

        counts = whole_sockets(room, self.request, prices) or deal(
            room, self.request.vcpus, self.threads, prices
        )
        if counts is None:
            return None
        share = dict(zip(order, counts, strict=True))
        return tuple(share[node] for node in nodes)

    def _row(self, node: int, fewest: int, most: int, variant: Variant) -> list[tuple[int, int]]:
        key = (node, fewest, most, variant.mask)
        if key not in self._rows:
            fills = ((count, self._fill(node, count, variant)) for count in range(fewest, most + 1))
            self._rows[key] = [
                (
                    count,
                    price(
                        len(chosen.groups),
                        chosen.joined,
                        int(count % self.threads > 0),
                        chosen.broken,
                        chosen.leftover,
                    ),
                )
                for count, chosen in fills
                if chosen is not None
            ]
        return self._rows[key]

    def _fill(self, node: int, count: int, variant: Variant) -> Fill | None:
        key = (node, count, variant.mask)
        if key not in self._fills:
            self._fills[key] = fill(self._stock(node, variant), count, self.touched)
        return self._fills[key]

    def _stock(self, node: int, variant: Variant) -> list[Stock]:
        key = (node, variant.mask)
        if key not in self._stocks:
            self._stocks[key] = stocks_of(
                self.machine.cells[node],
                variant.mask,
                self.occupied.taken,
                self.touched,
                self.occupied.demand,
            )
        return self._stocks[key]

    def _candidate(
        self,
        nodes: tuple[int, ...],
        homes: Sequence[tuple[int, ...]],
        variant: Variant,
        capacity: Mapping[int, int],
        *,
        divided: bool,
    ) -> Iterator[Candidate]:
        fills = [self._fill(node, len(home), variant) for node, home in zip(nodes, homes, strict=True)]
        sound = [chosen for chosen in fills if chosen is not None]
        if len(sound) < len(fills):
            return
        mask = 0
        for chosen in sound:
            mask |= chosen.mask
        score = Score(
            nodes=len(nodes),
            bare=len(self.machine.bare.intersection(nodes)),
            distance=self._distance(nodes),
            unevenness=0 if self.parts else self._unevenness(nodes, capacity),
            devices=self._devices(nodes),
            groups=len(frozenset().union(*(chosen.groups for chosen in sound))),
            kinds=variant.rank,
            joined=sum(chosen.joined for chosen in sound),
            torn=sum(len(home) % self.threads > 0 for home in homes),
            room=self._room(nodes, homes, sound),
            order=nodes,
        )
        yield Candidate(score, nodes, mask, tuple(homes), divided)

    def _room(
        self, nodes: Sequence[int], homes: Sequence[tuple[int, ...]], fills: Sequence[Fill]
    ) -> tuple[float, ...]:
        """What is left for the next VM: nodes filled alike to within one L3 group, few groups broken, little
        left over in those, and the fuller node first.
        """
        used = dict(self._used)
        for node, home in zip(nodes, homes, strict=True):
            used[node] += len(home)
        apart = max(used.values()) - min(used.values())
        return (
            max(0, apart - self._tolerance),
            sum(chosen.broken for chosen in fills),
            sum(chosen.disturbed for chosen in fills),
            sum(chosen.leftover for chosen in fills),
            -sum(used[node] for node in nodes),
        )

    @cached_property
    def _tolerance(self) -> int:
        """How far apart the use of nodes may be: one L3 group, but no more than an eighth of a node, which
        is one L3 group of the machines with many of them.
        """
        group = max(cell.mask.bit_count() for cells in self.machine.cells.values() for cell in cells)
        return min(group, min(cpus.bit_count() for cpus in self.machine.cpus.values()) // 8)

    def vcpus(self, candidate: Candidate) -> tuple[int, ...]:
        """The CPU of each vCPU: neighbouring vCPUs on siblings, then on neighbours in an L3 group."""
        found = [0] * self.request.vcpus
        for node, home in zip(candidate.nodes, candidate.homes, strict=True):
            cpus = (
                cpu
                for cell in self.machine.cells[node]
                if cell.mask & candidate.mask
                for core in cell.cores
                for cpu in bits(core & candidate.mask)
            )
            for vcpu, cpu in zip(home, cpus, strict=True):
                found[vcpu] = cpu
        return tuple(found)

    def _unevenness(self, nodes: Sequence[int], capacity: Mapping[int, int]) -> int:
        """Nodes that give memory only are not counted."""
        return unevenness([capacity[node] for node in nodes if capacity[node]], self.request.vcpus)

    def _distance(self, nodes: Nodes) -> int:
        return nearness(nodes, self.machine.pair) + self.room.remoteness(nodes, self.request.memory_mib)

    def _devices(self, nodes: Sequence[int]) -> int:
        return remoteness(self.machine, nodes, self.request.device_nodes)

    def previous(self, best: Candidate) -> tuple[Candidate, tuple[int, ...]] | None:
        """What the VM had, and vCPU by vCPU, if it is free and as good as `best` by every rule but room."""
        before = self.request.previous
        if before is None or before.vm_class is not VmClass.DEDICATED:
            return None
        cpus = [next(iter(one)) for one in before.vcpus if len(one) == 1]
        mask = mask_of(cpus)
        if len(cpus) != self.request.vcpus or mask.bit_count() != len(cpus) or mask & ~self.usable:
            return None
        return self._measured(cpus, mask, best)

    def _measured(
        self, cpus: list[int], mask: int, best: Candidate
    ) -> tuple[Candidate, tuple[int, ...]] | None:
        machine = self.machine
        nodes = tuple(node for node in machine.nodes if machine.cpus[node] & mask)
        if self.parts and nodes != best.nodes:
            return None
        counts = [(machine.cpus[node] & mask).bit_count() for node in nodes]
        best_counts = [(machine.cpus[node] & best.mask).bit_count() for node in best.nodes]
        cores = len({machine.core_of[cpu] for cpu in cpus})
        best_cores = len({machine.core_of[cpu] for cpu in bits(best.mask)})
        as_good = (
            len(nodes) == len(best.nodes)
            and sorted(counts) == sorted(best_counts)
            and self._distance(nodes) <= best.score.distance
            and len(machine.bare.intersection(nodes)) <= best.score.bare
            and self._devices(nodes) <= best.score.devices
            and len(machine.groups_of(mask)) <= best.score.groups
            and cores <= best_cores
            and len({machine.core_of[cpu] for cpu in bits(mask & self.touched)}) <= best.score.joined
            and self.room.of(nodes) >= self._least_memory
            and self._guest_nodes_kept(cpus, best)
            and any(
                mask & ~variant.mask == 0
                for variant in variants(machine, self.request.prefer, self.usable)
                if variant.rank <= best.score.kinds
            )
        )
        if not as_good:
            return None
        return Candidate(best.score, nodes, mask, best.homes, best.split), tuple(cpus)

    def _guest_nodes_kept(self, cpus: Sequence[int], best: Candidate) -> bool:
        node_of = self.machine.topology.cpus
        return not self.parts or all(
            node_of[cpu].node == node_of[other].node
            for cpu, other in zip(cpus, self.vcpus(best), strict=True)
        )
