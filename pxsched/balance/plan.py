"""One step of rebalancing: which homes to exchange so that someone gets more of what it is due.

Another home for somebody who lives where the starved VM lives; an exchange of two homes where that gains
more for its two moves; a wider home where neither helps. Hysteresis as in irqbalance: whoever a step
makes poorer stays better off than the one it helps was, so that no step is the last one's reverse.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import NamedTuple

from pxsched.balance.homes import Machine
from pxsched.balance.samples import Rate
from pxsched.balance.sharing import Claim, capacity, cpus_of, shares
from pxsched.host.topology import LOCAL_DISTANCE
from pxsched.value import NOTHING, Value

# What a move costs in CPUs over the time until the next one may follow: cold caches, and pages to copy
# (about 1 s of CPU a GiB) or to reach over the interconnect.
_COLD = 0.02
_COLD_OTHER_CACHE = 0.025
_WIDER = 0.1  # and its caches shared with more neighbours
_DRAG_S_PER_GIB = 1.0
# Four servers at half load: by Sakasegawa's approximation (1977) those who wait grow with about the fourth
# power of the load, which is that of those who live there and this one of all.
_CROWDING = 3
_TELLS = 0.01  # CPUs; a home where nobody computes tells nothing of collisions
_TARGETS = 4
_MOVERS = 10


class Party(Value):
    """A VM, or one pinned vCPU. home, allowed: CPU masks; width: its vCPUs; rate: what it does now."""

    vmid: int
    vcpu: int | None
    home: int
    allowed: int
    width: int
    rate: Rate
    weight: float
    movable: bool
    memory_mib: Mapping[int, int] = NOTHING

    @property
    def demand(self) -> float:
        return self.rate.demand

    def claim(self, mask: int) -> Claim:
        return Claim(self.demand, self.weight, mask)


class Step(NamedTuple):
    """homes: the new home by party. gain, cost: in CPUs."""

    homes: Mapping[int, int]
    gain: float
    cost: float

    def worth(self) -> float:
        return round(self.gain - self.cost, 6)


class Model:
    """What everyone would get if some lived elsewhere: fluid sharing, and waiting that it does not explain.

    The latter comes from bursts that collide although there would be enough CPU on average. It is measured
    for each home, and taken to grow with the load of those who live there, and with a power of all that its
    CPUs bear: their load, that of homes that overlap, and somebody else's.
    """

    def __init__(
        self,
        parties: Sequence[Party],
        due: Sequence[float],
        lacks: Sequence[float],
        machine: Machine,
        horizon_s: float,
    ) -> None:
        self.parties = parties
        self.due = due
        self.lacks = list(lacks)
        self.machine = machine
        self.horizon_s = max(10.0, horizon_s)
        self.homes = [party.home for party in parties]
        self.got = shares([party.claim(party.home) for party in parties], machine.busy)
        self.load: dict[int, float] = {}
        waiting: dict[int, float] = {}
        for party, got in zip(parties, self.got, strict=True):
            self.load[party.home] = self.load.get(party.home, 0.0) + party.demand
            waiting[party.home] = waiting.get(party.home, 0.0) + _unexplained(party.rate, got)
        self.crowd = self._crowds()
        self.collision = {
            home: waiting[home] / (load * _collides(home, self.crowd[home]))
            for home, load in self.load.items()
            if load > _TELLS
        }
        self._index = {(party.vmid, party.vcpu): index for index, party in enumerate(parties)}
        self._nodes: dict[int, frozenset[int]] = {}

    def copy(self) -> "Model":
        """A model to think ahead with."""
        other = copy(self)
        other.homes, other.load, other.lacks = list(self.homes), dict(self.load), list(self.lacks)
        other.crowd = dict(self.crowd)
        return other

    def index(self, party: Party) -> int:
        return self._index[party.vmid, party.vcpu]

    def due_of(self, party: Party) -> float:
        return self.due[self.index(party)]

    def lack(self, party: Party) -> float:
        """The part of its due that the party would still not get."""
        return self._lack(self.index(party), self.got)

    def apply(self, step: Step) -> None:
        for index, home in step.homes.items():
            self.load[self.homes[index]] -= self.parties[index].demand
            self.homes[index] = home
            self.load[home] = self.load.get(home, 0.0) + self.parties[index].demand
        self.crowd = self._crowds()
        before = self.got
        claims = [party.claim(home) for party, home in zip(self.parties, self.homes, strict=True)]
        self.got = shares(claims, self.machine.busy)
        for index, got in enumerate(self.got):
            # What was measured no longer counts where things have changed.
            if index in step.homes or abs(got - before[index]) > 1e-9:
                self.lacks[index] = self._lack(index, self.got)

    def step(self, changes: Mapping[int, int], helped: Party, *, collisions: bool = True) -> Step | None:
        """The step that these changes make, None when it does not pay or only passes the trouble on.

        collisions: whether fewer of them count as a gain, where nobody gets more or less.
        """
        cost = sum(self._cost(index, home) for index, home in changes.items())
        affected = self._affected(changes)
        claims = [self.parties[index].claim(changes.get(index, self.homes[index])) for index in affected]
        got = shares(claims, self.machine.busy)
        bound = max(self.lack(helped), self.lacks[self.index(helped)]) - 1e-6
        gain = 0.0
        for index, share in zip(affected, got, strict=True):
            before = self._lack(index, self.got)
            after = max(0.0, 1 - share / self.due[index]) if self.due[index] > 0 else 0.0
            if after > before + 1e-6 and after >= bound:
                return None
            # Lacking much is worse than lacking a little twice.
            gain += self.due[index] * (before * (1 + before) - after * (1 + after))
        if collisions and -1e-6 <= gain <= cost:
            gain += self._fewer_collisions(changes)
        return Step(dict(changes), gain, cost) if gain > cost + 1e-6 else None

    def cpu_loads(self, without: Party) -> dict[int, float]:
        """The demand on each CPU, everyone's spread over its home, but for one party's."""
        loads = dict(self.machine.busy)
        own = self.homes[self.index(without)]
        for home, load in self.load.items():
            load -= without.demand if home == own else 0.0
            if load > 1e-9:
                cpus = cpus_of(home)
                for cpu in cpus:
                    loads[cpu] = loads.get(cpu, 0.0) + load / len(cpus)
        return loads

    def capacity(self, home: int) -> float:
        return capacity(home, self.machine.busy)

    def _lack(self, index: int, got: Sequence[float]) -> float:
        due = self.due[index]
        return max(0.0, 1 - got[index] / due) if due > 0 else 0.0

    def _affected(self, changes: Mapping[int, int]) -> list[int]:
        """Everyone whose home is connected, by overlapping homes, with a home that changes."""
        region = 0
        for index, home in changes.items():
            region |= home | self.homes[index]
        homes = {*self.homes, *changes.values()}
        grown = True
        while grown:
            touching = [home for home in homes if home & region]
            grown = any(home & ~region for home in touching)
            for home in touching:
                region |= home
        return [index for index, home in enumerate(self.homes) if home & region]

    def _fewer_collisions(self, changes: Mapping[int, int]) -> float:
        rate = max(self.collision.get(self.homes[index], 0.0) for index in changes)
        new = set(changes.values())
        region = 0
        for index, home in changes.items():
            region |= home | self.homes[index]
        gain = 0.0
        for home in (home for home in {*self.load, *new} if home & region):
            load = load_after = self.load.get(home, 0.0)
            crowd = crowd_after = self.crowd[home] if home in self.crowd else self._crowd(home)
            for index, there in changes.items():
                here, demand = self.homes[index], self.parties[index].demand
                load_after += demand * ((home == there) - (home == here))
                crowd_after += demand * (_part(there, home) - _part(here, home))
            own = self.collision.get(home, 0.0)
            after = max(own, rate) if home in new else own
            gain += own * load * _collides(home, crowd)
            gain -= after * load_after * _collides(home, crowd_after)
        return gain

    def _crowds(self) -> dict[int, float]:
        return {home: self._crowd(home) for home in self.load}

    def _crowd(self, home: int) -> float:
        """All that the home's CPUs bear, in CPUs."""
        others = sum(load * _part(other, home) for other, load in self.load.items() if other & home)
        return home.bit_count() - self.capacity(home) + others

    def _cost(self, index: int, home: int) -> float:
        old = self.homes[index]
        same_cache = any(old & ~level == 0 and home & ~level == 0 for level in self.machine.levels[0])
        cost = _COLD if same_cache else _COLD_OTHER_CACHE
        cost += _WIDER if home & old == old else 0.0
        topology = self.machine.topology
        here, there = self._nodes_of(old), self._nodes_of(home)
        for node, mib in self.parties[index].memory_mib.items():
            before = sum(topology.distance(cpu, node) for cpu in here) / max(1, len(here))
            after = sum(topology.distance(cpu, node) for cpu in there) / max(1, len(there))
            further = max(0.0, after - before) / LOCAL_DISTANCE
            cost += mib / 1024 * further * _DRAG_S_PER_GIB / self.horizon_s
        return cost

    def _nodes_of(self, home: int) -> frozenset[int]:
        if home not in self._nodes:
            self._nodes[home] = self.machine.topology.nodes_of(cpus_of(home))
        return self._nodes[home]


def _part(home: int, region: int) -> float:
    """The part of a load spread over `home` that is in `region`."""
    return (home & region).bit_count() / home.bit_count()


def _collides(home: int, crowd: float) -> float:
    """How much a home that bears so much makes its VMs wait, as a part of what it does when it is full.

    Beyond full, waiting is for want of CPUs, which sharing tells.
    """
    return min(1.0, crowd / home.bit_count()) ** _CROWDING


def _unexplained(rate: Rate, got: float) -> float:
    """The part of the waiting that remains if the party could run for `got`: it waits for what it lacks."""
    if rate.demand <= rate.run:
        return 0.0
    return rate.wait * min(1.0, max(0.0, got - rate.run) / (rate.demand - rate.run))


def best_step(model: Model, helped: Party) -> Step | None:
    """The step that helps `helped` most."""
    movers = _movers(model, helped)
    plain = _best(model, helped, [{index: home} for index in movers for home in _targets(model, index)])
    trade = _best(model, helped, _exchanges(model, movers))
    if plain is None and trade is None:
        return _best(model, helped, _widenings(model, movers), collisions=False)
    return plain if 2 * _worth(plain) >= _worth(trade) else trade


def _worth(step: Step | None) -> float:
    return step.worth() if step else 0.0


def _best(
    model: Model, helped: Party, choices: Iterable[Mapping[int, int]], *, collisions: bool = True
) -> Step | None:
    found = (model.step(choice, helped, collisions=collisions) for choice in choices)
    steps = [step for step in found if step is not None]
    return max(steps, key=Step.worth, default=None)


def _movers(model: Model, helped: Party) -> list[int]:
    """Who may move out of the helped one's way: itself first, of equals one, of many a spread of sizes."""
    home = model.homes[model.index(helped)]
    alike: dict[tuple[object, ...], int] = {}
    own = model.index(helped)
    for index in [own, *range(len(model.parties))]:
        party = model.parties[index]
        if party.movable and model.homes[index] & home:
            pinned_vm = party.vmid if party.vcpu is not None else None
            key = (model.homes[index], round(party.demand, 2), party.weight, party.width, party.allowed)
            memory = tuple(sorted(party.memory_mib.items()))
            alike.setdefault((*key, memory, pinned_vm), index)
    found = sorted(alike.values(), key=lambda index: (index != own, -model.parties[index].demand))
    return found if len(found) <= _MOVERS else found[:: -(-len(found) // _MOVERS)]


def _targets(model: Model, index: int) -> list[int]:
    party = model.parties[index]
    found = model.machine.alike(model.homes[index], party.allowed, model.cpu_loads(party))
    return [home for home in found if home.bit_count() >= min(party.width, model.homes[index].bit_count())][
        :_TARGETS
    ]


def _exchanges(model: Model, movers: Sequence[int]) -> list[dict[int, int]]:
    """Pairs that may trade homes: a larger one here for a smaller one in one of the quietest homes."""
    found = []
    for index in movers:
        party, home = model.parties[index], model.homes[index]
        size = home.bit_count()
        rooms = [mask for mask in model.load if mask.bit_count() == size and not mask & home]
        rooms = sorted(rooms, key=lambda mask: (model.load[mask] - model.capacity(mask), mask))[:_TARGETS]
        partners: dict[tuple[object, ...], int] = {}
        for other, theirs in enumerate(model.homes):
            partner = model.parties[other]
            if (
                theirs in rooms
                and partner.movable
                and theirs & ~party.allowed == 0
                and home & ~partner.allowed == 0
                and partner.vmid != party.vmid
                and (partner.demand < party.demand - 0.01 or partner.weight < party.weight)
            ):
                partners.setdefault((theirs, round(partner.demand, 2), partner.weight), other)
        chosen = sorted(partners.values(), key=lambda other: model.parties[other].demand)
        stride = -(-len(chosen) // _MOVERS) or 1
        found += [{index: model.homes[other], other: home} for other in chosen[::stride]]
    return found


def _widenings(model: Model, movers: Sequence[int]) -> list[dict[int, int]]:
    return [
        {index: home}
        for index in movers
        if model.parties[index].vcpu is None
        for home in model.machine.wider(model.homes[index], model.parties[index].allowed)[:2]
    ]
