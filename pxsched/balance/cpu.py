"""CPU fairness: who stands out, and which homes to move so that waiting evens out.

Only VMs that stand out are helped, by the move that gains most over its cost; a move must leave nobody it
touches worse off than the one it helps was. Pure: the state between passes is a value.
"""

from collections.abc import Iterable, Mapping, Sequence

from pxsched.balance.agenda import first_pins, plan
from pxsched.balance.homes import Machine
from pxsched.balance.plan import Model, Party
from pxsched.balance.record import State as State
from pxsched.balance.record import after, observe
from pxsched.balance.sharing import components
from pxsched.balance.standing import Standing, due_of, lack_of, outstanding, standings_of
from pxsched.balance.vm import Move as Move
from pxsched.balance.vm import Vm as Vm
from pxsched.balance.vm import parties as parties_of
from pxsched.host.topology import Topology
from pxsched.settings.policy import NodeSettings
from pxsched.value import NOTHING, Value

# A fast `watch` looks at least this long before it acts on what it sees.
LEAST_OBSERVED_S = 0.5


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
    busy: Mapping[int, float] = NOTHING,
    act: bool = True,
) -> Outcome:
    """The moves of one pass. vms: everybody who is known, containers as VMs that cannot be moved.

    pool: the CPUs shared VMs may use (online, not dedicated, not housekeeping); now_s: CLOCK_MONOTONIC;
    busy: by CPU, the part of its time (0 to 1) that somebody else uses; act: False only measures.
    """
    vms = list(vms)
    records = {vm.vmid: observe(vm.use, state.vms.get(vm.vmid), pins=vm.pins) for vm in vms}
    machine = Machine.of(topology, pool, busy)
    parties = [p for vm in vms for p in parties_of(vm, records[vm.vmid], machine.pool, settings, now_s)]
    parties = _concerned(parties, machine.pool)
    due = due_of(parties, busy)
    lacks = [lack_of(party.rate, share) for party, share in zip(parties, due, strict=True)]
    helped = [
        party
        for party in outstanding(parties, lacks, settings)
        if records[party.vmid].observed_s >= LEAST_OBSERVED_S
    ]
    moves = first_pins(vms, parties, machine) if act else ()
    if helped and act and not moves:
        moves = plan(helped, Model(parties, due, lacks, machine, settings.cooldown_s), settings)
    homes = {vm.vmid: vm.vcpus for vm in vms}
    changed = frozenset[int]().union(*(move.before | move.after for move in moves))
    return Outcome(
        moves,
        State(after(records, homes, {move.vmid for move in moves}, changed, now_s)),
        standings_of(parties, due),
        tuple(dict.fromkeys(party.vmid for party in helped)),
    )


def _concerned(parties: Sequence[Party], pool: int) -> list[Party]:
    """Those who live in the pool, and those elsewhere whose neighbours could come into it: somebody who may
    run everywhere goes where the CPUs outside leave him.
    """
    regions = [region for region in components(party.home for party in parties) if region & pool]
    return [party for party in parties if any(party.home & region for region in regions)]
