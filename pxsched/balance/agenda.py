"""Which moves a pass makes: the way to where everyone should end is thought through, and its share gone."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from pxsched.balance.homes import Machine
from pxsched.balance.plan import Model, Party, Step, best_step
from pxsched.balance.sharing import cpus_of, mask_of
from pxsched.balance.vm import Move, Vm
from pxsched.host import cpulist
from pxsched.settings.policy import NodeSettings

# Helping is given up in so many homes a pass; more means that moves no longer help.
_TRIES = 8
# Moves thought ahead, as a multiple of those a pass makes.
_AHEAD = 4


def plan(outstanding: Sequence[Party], model: Model, settings: NodeSettings) -> tuple[Move, ...]:
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


def first_pins(vms: Sequence[Vm], parties: Sequence[Party], machine: Machine) -> tuple[Move, ...]:
    """Pins for the vCPUs of VMs that are to be pinned and are not, on the quietest CPUs of their homes."""
    loads: dict[int, float] = {}
    moves = []
    for vm in vms:
        home = mask_of(frozenset().union(*vm.vcpus)) & machine.pool
        if not vm.wants_pins or not home:
            continue
        if not loads:
            loads.update(machine.busy)
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
