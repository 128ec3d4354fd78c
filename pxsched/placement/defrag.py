"""Which VMs to move so that no dedicated VM crosses nodes or L3 groups without need. It only proposes."""

from collections.abc import Iterator, Mapping, Sequence

from pxsched.host import cpulist
from pxsched.placement.machine import Machine, machine_of, mask_of
from pxsched.placement.memory import divide, free_memory
from pxsched.placement.request import Holding, Host, Placement, Refused, Request, VmClass
from pxsched.placement.search import place
from pxsched.value import Value, replace

Running = Mapping[int, tuple[Request, Holding]]


class Span(Value):
    """How widely a VM is spread; smaller is better, nodes before L3 groups."""

    nodes: int
    groups: int

    @property
    def rank(self) -> tuple[int, int]:
        return (self.nodes, self.groups)


class Move(Value):
    vmid: int
    before: frozenset[int]
    to: Placement


class Remedy(Value):
    """Moves, in order, that end one VM's crossing. `vmid` is that VM; it moves last."""

    vmid: int
    before: Span
    after: Span
    moves: tuple[Move, ...]


def remedies(host: Host, running: Sequence[tuple[Request, Holding]]) -> list[Remedy]:
    """What would end avoidable crossings, fewest moves first; each remedy starts where the one before ends.

    host: with the memory that is free now. running: every VM with what it asked for.
    """
    state = dict(sorted((request.vmid, (request, holding)) for request, holding in running))
    found: list[Remedy] = []
    # Each remedy makes one VM better and none worse, so this ends; the bound is for a mistake of ours.
    for _ in range(4 * len(state)):
        best = min(_all(host, state), key=_cost, default=None)
        if best is None:
            break
        found.append(best)
        for move in best.moves:
            host, state = _moved(host, state, move)
    return found


def _cost(remedy: Remedy) -> tuple[int, tuple[int, int], int]:
    gain = (remedy.after.nodes - remedy.before.nodes, remedy.after.groups - remedy.before.groups)
    return (len(remedy.moves), gain, remedy.vmid)


def _all(host: Host, state: Running) -> Iterator[Remedy]:
    """Remedies of one move; where there is none at all, those of two."""
    machine = machine_of(host.topology)
    spans = {
        vmid: span_of(machine, holding)
        for vmid, (_, holding) in state.items()
        if holding.vm_class is VmClass.DEDICATED
    }
    crossing = [vmid for vmid, span in spans.items() if span.rank > (1, 1)]
    single = [remedy for vmid in crossing for remedy in _alone(machine, host, state, vmid)]
    if single:
        yield from single
        return
    for vmid in crossing:
        for other in spans:
            if other != vmid:
                yield from _with_another(machine, host, state, vmid, other)


def _alone(machine: Machine, host: Host, state: Running, vmid: int) -> Iterator[Remedy]:
    holding = state[vmid][1]
    answer = _placed(host, state, vmid)
    if answer is None:
        return
    was, now = span_of(machine, holding), span_of(machine, answer)
    if now.rank < was.rank:
        yield Remedy(vmid, was, now, (Move(vmid, holding.cpus, answer),))


def _with_another(machine: Machine, host: Host, state: Running, vmid: int, other: int) -> Iterator[Remedy]:
    """This VM is placed as if the other were not there, and then the other on what is left, no wider than
    before. They may swap CPUs: a move takes no time in which a CPU would have to be free.
    """
    request, holding = state[other]
    alone = {number: vm for number, vm in state.items() if number != other}
    for remedy in _alone(machine, _given_back(host, request, holding), alone, vmid):
        moved_host, moved = _moved(_given_back(host, request, holding), alone, remedy.moves[0])
        room = _with_memory(moved_host, request, holding.memory_mib, -1)
        answer = _placed(room, {**moved, other: (request, holding)}, other)
        if answer is not None and span_of(machine, answer).rank <= span_of(machine, holding).rank:
            moves = (Move(other, holding.cpus, answer), *remedy.moves)
            yield Remedy(vmid, remedy.before, remedy.after, moves)


def _placed(host: Host, state: Running, vmid: int) -> Placement | None:
    """Where the VM would be placed now if it had nothing yet."""
    request, holding = state[vmid]
    others = [held for number, (_, held) in state.items() if number != vmid]
    try:
        return place(_given_back(host, request, holding), others, replace(request, previous=None))
    except Refused:
        return None


def _given_back(host: Host, request: Request, holding: Holding) -> Host:
    """The host without this VM's memory."""
    return _with_memory(host, request, holding.memory_mib, 1)


def _with_memory(host: Host, request: Request, shares: Mapping[int, int], sign: int) -> Host:
    if request.hugepage_mib is not None and host.free_hugepages_mib:
        huge = dict(host.free_hugepages_mib)
        for node, size_mib in shares.items():
            key = (node, request.hugepage_mib)
            huge[key] = huge.get(key, 0) + sign * size_mib
        return replace(host, free_hugepages_mib=huge)
    plain = dict(host.free_mib)
    for node, size_mib in shares.items():
        if node in plain:
            plain[node] += sign * size_mib
    return replace(host, free_mib=plain)


def _moved(host: Host, state: Running, move: Move) -> tuple[Host, dict[int, tuple[Request, Holding]]]:
    request, holding = state[move.vmid]
    host = _given_back(host, request, holding)
    free = free_memory(machine_of(host.topology), host, request)
    shares = divide(sum(holding.memory_mib.values()), move.to.nodes, free)
    after = holding._replace(vcpus=move.to.vcpus, memory_mib=shares)
    return _with_memory(host, request, shares, -1), {**state, move.vmid: (request, after)}


def span_of(machine: Machine, vm: Holding | Placement) -> Span:
    mask = mask_of(vm.cpus)
    return Span(max(1, len(machine.nodes_of(mask))), len(machine.groups_of(mask)))


def describe(found: Sequence[Remedy]) -> Iterator[str]:
    """The remedies as a person reads them."""
    if not found:
        yield "no VM crosses nodes or L3 groups that it need not cross"
    for remedy in found:
        count = len(remedy.moves)
        yield (
            f"VM {remedy.vmid} spans {_span(remedy.before)}; {count} move{'s' * (count > 1)}"
            f" would make it {_span(remedy.after)}"
        )
        for move in remedy.moves:
            nodes = cpulist.format(move.to.nodes)
            yield (
                f"  VM {move.vmid}: CPUs {cpulist.format(move.before)} -> {cpulist.format(move.to.cpus)},"
                f" memory to node{'s' * (len(move.to.nodes) > 1)} {nodes}"
            )


def as_json(remedy: Remedy) -> dict[str, object]:
    return {
        "vmid": remedy.vmid,
        "nodes": [remedy.before.nodes, remedy.after.nodes],
        "l3_groups": [remedy.before.groups, remedy.after.groups],
        "moves": [
            {
                "vmid": move.vmid,
                "from": cpulist.format(move.before),
                "vcpus": [cpulist.format(cpus) for cpus in move.to.vcpus],
                "nodes": cpulist.format(move.to.nodes),
            }
            for move in remedy.moves
        ],
    }


def _span(span: Span) -> str:
    return f"{span.nodes} node{'s' * (span.nodes > 1)} and {span.groups} L3 group{'s' * (span.groups > 1)}"
