"""CPU fairness: who stands out, and which homes to move so that waiting evens out.

What a VM is due is its weighted max-min share of all CPUs it may use; what it waits beyond that is contention
it would not have if everyone had a good home. So where all are equally short nobody lacks anything, and VMs
that wait for one CPU beside an idle one lack a lot. Only VMs that stand out are helped, by
the move that gains most over its cost; a move must leave nobody it touches worse off than the one it helps
was. Pure: the state between passes is a value.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from pxsched.balance.homes import Machine
from pxsched.balance.plan import Model, Party, Step, best_step
from pxsched.balance.samples import IDLE, Rate, Use
from pxsched.balance.sharing import cpus_of, mask_of, shares
from pxsched.balance.stored import by_vmid
from pxsched.host import cpulist
from pxsched.host.topology import Topology
from pxsched.settings.policy import NodeSettings
from pxsched.value import NOTHING, Value, replace

# Averages follow a change of load to 63 % in this time: one pass of the timer, several of a fast `watch`.
SMOOTHING_S = 2.0
# A fast `watch` looks at least this long before it acts on what it sees.
LEAST_OBSERVED_S = 0.5
# A guest that is due less than this only ticks.
_TICKING = 0.01
# Helping is given up in so many homes a pass; more means that moves no longer help.
_TRIES = 8
# Moves thought ahead, as a multiple of those a pass makes.
_AHEAD = 4
# Two VMs that lack as much as each other to a tenth are one crowd.
_SAME = 0.9


class Vm(Value):
    """One running VM as the balancer sees it.

    vcpus[i]: the CPUs vCPU i may use now. use: what it did in the last interval, None when not known yet.
    movable: a shared VM whose policy lets its home be moved; pins: its vCPUs are pinned and moved one by one;
    wants_pins: they are to be, and still float in its home.
    allowed: the policy's limits. memory_mib: by NUMA node.
    """

    vmid: int
    vcpus: tuple[frozenset[int], ...]
    use: Use | None = None
    weight: int = 100
    movable: bool = False
    pins: bool = False
    wants_pins: bool = False
    allowed: frozenset[int] | None = None
    memory_mib: Mapping[int, int] = NOTHING


class Move(Value):
    """A new home for a VM (vcpu None), or a new pin for one of its vCPUs."""

    vmid: int
    vcpu: int | None
    before: frozenset[int]
    after: frozenset[int]
    why: str


class Record(Value):
    """What is remembered of one VM. rates: averages, of the VM, or of each vCPU of one that is pinned.

    observed_s: how long they have been taken since its surroundings last changed.
    moved_s: CLOCK_MONOTONIC of its last move, None before the first.
    """

    start: int
    rates: tuple[Rate, ...] = ()
    observed_s: float = 0.0
    moved_s: float | None = None


class State(Value):
    """The balancer's memory between passes."""

    vms: Mapping[int, Record] = NOTHING

    def to_json(self) -> dict[str, object]:
        return {
            str(vmid): [one.start, one.rates, one.observed_s, one.moved_s] for vmid, one in self.vms.items()
        }

    @classmethod
    def from_json(cls, value: object) -> "State":
        """The state again; an empty one where the text is damaged."""
        return cls(by_vmid(value, _record))


def _record(body: Sequence[object]) -> Record:
    start, rates, observed, moved = body
    if (
        not isinstance(start, int)
        or not isinstance(rates, list | tuple)
        or not isinstance(observed, float | int)
    ):
        raise TypeError("no record")
    if moved is not None and not isinstance(moved, float | int):
        raise TypeError("no time")
    return Record(start, tuple(Rate(*map(float, rate)) for rate in rates), observed, moved)


class Standing(NamedTuple):
    """How a VM fares. due: its weighted fair share in CPUs. lack: its weighted contention, which is how much
    slower it runs than that share would let it, from 0 to 1.
    """

    rate: Rate
    due: float
    lack: float


class Outcome(Value):
    """One pass: the moves, the state to keep, how every measured VM fares, and who stands out."""

    moves: tuple[Move, ...]
    state: State
    standings: Mapping[int, Standing]
    outstanding: tuple[int, ...] = ()


def rebalance(
    vms: Iterable[Vm],
    topology: Topology,
    pool: frozenset[int],
    state: State,
    settings: NodeSettings,
    now_s: float,
    *,
    act: bool = True,
) -> Outcome:
    """The moves of one pass. pool: the CPUs shared VMs may use (online, not dedicated, not housekeeping);
    now_s: CLOCK_MONOTONIC; act: False only measures.
    """
    vms = list(vms)
    records = {vm.vmid: _observe(vm, state.vms.get(vm.vmid)) for vm in vms}
    machine = Machine.of(topology, pool)
    parties = [party for vm in vms for party in _parties(vm, records[vm.vmid], machine.pool, settings, now_s)]
    parties = [party for party in parties if party.home & machine.pool]
    due = _due(parties)
    standings = _standings(parties, due)
    lacks = [_lack(party.rate, share) for party, share in zip(parties, due, strict=True)]
    outstanding = [
        party
        for party in _outstanding(parties, lacks, settings)
        if records[party.vmid].observed_s >= LEAST_OBSERVED_S
    ]
    moves = _first_pins(vms, parties, machine) if act else ()
    if outstanding and act and not moves:
        model = Model(parties, due, lacks, machine, settings.cooldown_s)
        moves = _plan(outstanding, model, settings)
    state = State(_after(records, moves, vms, now_s))
    return Outcome(moves, state, standings, tuple(dict.fromkeys(party.vmid for party in outstanding)))


def _first_pins(vms: Sequence[Vm], parties: Sequence[Party], machine: Machine) -> tuple[Move, ...]:
    """Pins for the vCPUs of VMs that are to be pinned and are not, on the quietest CPUs of their homes."""
    loads: dict[int, float] = {}
    moves = []
    for vm in vms:
        home = mask_of(frozenset().union(*vm.vcpus)) & machine.pool
        if not vm.wants_pins or not home:
            continue
        if not loads:
            for party in parties:
                for cpu in cpus_of(party.home):
                    loads[cpu] = loads.get(cpu, 0.0) + party.demand / party.home.bit_count()
        for index, before in enumerate(vm.vcpus):
            cpu = min(cpus_of(home), key=lambda one: (loads.get(one, 0.0), one))
            loads[cpu] = loads.get(cpu, 0.0) + 1.0
            moves.append(
                Move(vm.vmid, index, before, frozenset((cpu,)), "its profile wants its vCPUs pinned")
            )
    return tuple(moves)


def _observe(vm: Vm, record: Record | None) -> Record:
    """The averages with the last interval worked in."""
    use = vm.use
    if use is None:
        return record or Record(start=-1)
    if record is None or record.start != use.start:
        record = Record(use.start)
    now = use.rates if vm.pins else (use.total,)
    new = 1.0 - math.exp(-use.elapsed_s / SMOOTHING_S)
    if len(record.rates) == len(now) and record.observed_s > 0:
        now = tuple(
            Rate(*(a + new * (b - a) for a, b in zip(old, rate, strict=True)))
            for old, rate in zip(record.rates, now, strict=True)
        )
    return Record(use.start, now, record.observed_s + use.elapsed_s, record.moved_s)


def _parties(vm: Vm, record: Record, pool: int, settings: NodeSettings, now_s: float) -> list[Party]:
    """The VM as one party, or one per vCPU when it is pinned; nothing when it has not been measured."""
    if not record.rates or not vm.vcpus:
        return []
    allowed = pool if vm.allowed is None else pool & mask_of(vm.allowed)
    resting = record.moved_s is not None and 0 <= now_s - record.moved_s < settings.cooldown_s
    movable = vm.movable and vm.use is not None and not resting and bool(allowed)
    pins = vm.pins and len(record.rates) == len(vm.vcpus)
    homes = vm.vcpus if pins else (frozenset().union(*vm.vcpus),)
    return [
        Party(
            vmid=vm.vmid,
            vcpu=index if pins else None,
            home=mask_of(home),
            allowed=allowed if vm.movable and allowed else mask_of(home),
            width=1 if pins else len(vm.vcpus),
            rate=rate,
            weight=vm.weight / (len(homes) if pins else 1),
            movable=movable,
            memory_mib=vm.memory_mib,
        )
        for index, (home, rate) in enumerate(zip(homes, record.rates, strict=True))
    ]


def _due(parties: Sequence[Party]) -> list[float]:
    """What each would get if everyone lived wherever it may."""
    return shares([party.claim(party.allowed) for party in parties])


def _lack(rate: Rate, due: float) -> float:
    """How much slower it runs than it could if it had what it is due.

    A VM's speed is run / (run + wait), one minus its contention. If all must wait, the speed that its share
    allows is below one, and waiting that much is no contention.
    """
    if due <= _TICKING or rate.wait <= 0 or rate.demand <= rate.run:
        return 0.0
    fair_wait = rate.wait * min(1.0, max(0.0, rate.demand - due) / (rate.demand - rate.run))
    return max(0.0, 1 - rate.run / (rate.run + rate.wait) * (due + fair_wait) / due)


def _standings(parties: Sequence[Party], due: Sequence[float]) -> dict[int, Standing]:
    found: dict[int, tuple[Rate, float]] = {}
    for party, share in zip(parties, due, strict=True):
        rate, total = found.get(party.vmid, (IDLE, 0.0))
        both = Rate(*(one + other for one, other in zip(rate, party.rate, strict=True)))
        found[party.vmid] = both, total + share
    return {vmid: Standing(rate, total, _lack(rate, total)) for vmid, (rate, total) in found.items()}


def _outstanding(parties: Sequence[Party], lacks: Sequence[float], settings: NodeSettings) -> list[Party]:
    """Those that lack more than the floor and stand out by `deviation` standard deviations, worst first.

    "The others" are those that are better off, and the fair share itself: a crowd stuck together must not
    hide its members behind each other, and someone between two crowds is no exception.
    """
    found = []
    number, total, squares = 1, 0.0, 0.0  # the fair share: one member that lacks nothing
    ranked = sorted(range(len(parties)), key=lambda index: lacks[index])
    better = 0
    for index in ranked:
        lack = lacks[index]
        while lacks[ranked[better]] < lack * _SAME:
            other = lacks[ranked[better]]
            number, total, squares = number + 1, total + other, squares + other * other
            better += 1
        mean = total / number
        spread = math.sqrt(max(0.0, squares / number - mean * mean))
        if lack > settings.contention_floor and lack > mean + settings.deviation * spread:
            found.append(parties[index])
    return found[::-1]


def _plan(outstanding: Sequence[Party], model: Model, settings: NodeSettings) -> tuple[Move, ...]:
    """The pass's share of the way to where everyone should end, the most useful moves first.

    Steps are thought through further than one pass may go, so that nobody is sent to a place that it would
    have to leave again.
    """
    goal = model.copy()
    helped: dict[int, Party] = {}
    hopeless: set[int] = set()
    waiting = list(outstanding)
    for number, party in enumerate(waiting):
        sure = number < len(outstanding)
        while len(helped) < _AHEAD * settings.moves and len(hopeless) < _TRIES:
            home = goal.homes[goal.index(party)]
            # Whoever could move out of its way could do so for its neighbours, too.
            if home in hopeless or not (sure or goal.lack(party) > settings.contention_floor):
                break
            sure = False
            step = best_step(goal, party)
            if step is None:
                hopeless.add(home)
                break
            # Who moves rests afterwards, so its new home must do for itself, too.
            waiting += [goal.parties[index] for index in step.homes if index not in helped]
            helped.update(dict.fromkeys(step.homes, party))
            goal.apply(step)
    wanted = {index: goal.homes[index] for index in helped if goal.homes[index] != model.homes[index]}
    moves: list[Move] = []
    while step := _next(model, wanted, helped, settings.moves - len(moves)):
        moves.extend(_moves(model, step, helped[min(step.homes)]))
        model.apply(step)
        for index in step.homes:
            del wanted[index]
    return tuple(moves)


def _next(model: Model, wanted: Mapping[int, int], helped: Mapping[int, Party], room: int) -> Step | None:
    """The most useful of the wanted moves, or pair of them, that is good even if the rest never comes."""
    singles = [{index: home} for index, home in wanted.items()] if room > 0 else []
    pairs = [{one: wanted[one], other: wanted[other]} for one, other in combinations(wanted, 2) if room > 1]
    for choices in (singles, pairs):
        steps = [model.step(choice, helped[min(choice)]) for choice in choices]
        best = max((step for step in steps if step), key=Step.worth, default=None)
        if best:
            return best
    return None


def _moves(model: Model, step: Step, helped: Party) -> list[Move]:
    lack, due = 100 * model.lacks[model.index(helped)], model.due_of(helped)
    why = f"VM {helped.vmid} runs {lack:.0f} % slower than the {due:.2f} CPUs it is due would let it; "
    why += f"worth {step.gain:.2f} CPUs at a cost of {step.cost:.2f}"
    return [
        Move(
            model.parties[index].vmid,
            model.parties[index].vcpu,
            cpus_of(model.homes[index]),
            cpus_of(home),
            f"{why} (from {cpulist.format(cpus_of(model.homes[index]))} to {cpulist.format(cpus_of(home))})",
        )
        for index, home in step.homes.items()
    ]


def _after(
    records: Mapping[int, Record], moves: Sequence[Move], vms: Iterable[Vm], now_s: float
) -> dict[int, Record]:
    """The records to keep: those around a move are measured afresh, since their surroundings changed."""
    changed = frozenset().union(*(move.before | move.after for move in moves))
    moved = {move.vmid for move in moves}
    kept = {}
    for vm in vms:
        record = records[vm.vmid]
        if record.start < 0:
            continue
        if changed and any(changed & cpus for cpus in vm.vcpus):
            record = replace(record, observed_s=0.0)
        if vm.vmid in moved:
            record = replace(record, moved_s=now_s)
        kept[vm.vmid] = record
    return kept
