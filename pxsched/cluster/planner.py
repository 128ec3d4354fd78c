"""Which VMs to move to which nodes: to end what is wrong, to empty a node, or to even demand out. Pure.

Every move is made on paper before the next one is looked for, the target first, so that a plan can be carried
out step by step. A move counts only if it ends what is wrong with its VM, and begins nothing with another; a
VM without a place may cross, or crowd others, where it gets one. So after each there is less wrong, or what
is wrong is less bad; a plan ends, and planning again after it finds nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pxsched.cluster.board import Board, Move, Options
from pxsched.cluster.paper import Paper, owns
from pxsched.cluster.wrongs import Guest, Reason, Wrong, fill, wrongs
from pxsched.placement.request import Refused, Request
from pxsched.value import NOTHING, Value

# Nodes are uneven from this difference of demand per CPU on; a move must take a good part of it away.
UNEVEN, MARGIN = 0.25, 0.05
MOST_MOVES = 16


class Stay(NamedTuple):
    """A VM with something wrong that no move ends, and why."""

    vmid: int
    node: str
    why: str


class Plan(Value):
    """moves: in order. more: there may be others, beyond the bound. after: the nodes when all are made."""

    moves: tuple[Move, ...]
    stays: tuple[Stay, ...] = ()
    more: bool = False
    after: Mapping[str, Paper] = NOTHING


def plan(
    sheets: Mapping[str, Paper],
    guests: Iterable[Guest],
    options: Options,
    *,
    drain: str = "",
    stopped: Sequence[Guest] = (),
    even: bool = False,
    closed: frozenset[str] = frozenset(),
    most: int = MOST_MOVES,
) -> Plan:
    """The moves, in the order in which they can be carried out.

    sheets: the usable nodes. closed: nodes that take nobody, such as those in maintenance. drain: a node that
    is to be left by all VMs; its bound is not `most`. stopped: the VMs that do not run there, which leave it
    last. even: also even demand out.
    """
    board = Board(sheets, guests, options, closed | ({drain} if drain else frozenset()))
    if drain:
        return _drain(board, drain, stopped)
    stays = _mend(board, most)
    while even and _even(board, most):
        stays = _mend(board, most)  # what made room may have made more possible
    more = len(board.moves) >= most
    return Plan(tuple(board.moves), tuple(stays), more, board.sheets)


def _drain(board: Board, name: str, stopped: Sequence[Guest]) -> Plan:
    """All VMs leave a node, those that are hardest to place first. Who could not is asked again after others
    have moved: shared VMs may have made room for these.
    """
    wrong = Wrong(Reason.DRAIN, f"{name} is to be emptied")
    while True:
        before = len(board.moves)
        for vmid in _by_size(board, name):
            if move := board.best(vmid, wrong):
                board.make(move)
        if len(board.moves) == before:
            break
    stays = [
        Stay(vmid, name, "; ".join(board.refusals[vmid]) or "there is no other node")
        for vmid in _by_size(board, name)
    ]
    stays += [stay for guest in stopped if (stay := _carry(board, guest, name))]
    return Plan(tuple(board.moves), tuple(stays), False, board.sheets)


def _carry(board: Board, guest: Guest, source: str) -> Stay | None:
    """A stopped VM goes to a node that nothing speaks against, rather to one where it could start now."""
    if guest.ha:
        return Stay(
            guest.vmid, source, f"it does not run, and is HA's: ha-manager migrate vm:{guest.vmid} NODE"
        )
    said, found = [], []
    for name, sheet in board.sheets.items():
        if name == source or name in board.closed:
            continue
        verdict = board.options.verdict(guest.vmid, name, board.places)
        if verdict.against:
            said.append(f"{name}: {'; '.join(verdict.against)}")
            continue
        refused = _refused(sheet, board.options.request(guest.vmid, name))
        found.append(((bool(refused), verdict.copy_mib > 0, fill(sheet), name), verdict.copy_mib, refused))
    if not found:
        return Stay(guest.vmid, source, "; ".join(said) or "there is no other node")
    (*_, target), copy_mib, refused = min(found)
    why = f"{source} is to be emptied" + f"; it could not start on {target} now: {refused}" * bool(refused)
    board.make(Move(guest.vmid, source, target, Reason.DRAIN, why, None, copy_mib))
    return None


def _refused(sheet: Paper, request: Request) -> str:
    """Why the VM has no place there now; empty where it has one."""
    try:
        sheet.place(request)
    except Refused as refusal:
        return refusal.message
    return ""


def _by_size(board: Board, name: str) -> list[int]:
    sheet = board.sheets[name]
    inside = [vmid for vmid in board.guests if board.places.get(vmid) == name]

    def size(vmid: int) -> tuple[object, ...]:
        tenant = sheet.tenants.get(vmid)
        vcpus = len(tenant.held.vcpus) if tenant else 0
        return (not (tenant and owns(tenant.held)), -vcpus, vmid)

    return sorted(inside, key=size)


def _mend(board: Board, most: int) -> list[Stay]:
    """Ends what is wrong: VMs without a place first, then by the cheapest move. Gives what no move ends."""
    while len(board.moves) < most:
        found = wrongs(board.sheets, board.guests, board.crowd)
        moves = [move for vmid, wrong in found.items() if (move := board.best(vmid, wrong))]
        if not moves:
            return [
                Stay(vmid, board.places[vmid], f"{wrong.why}; {'; '.join(board.refusals[vmid])}")
                for vmid, wrong in found.items()
            ]
        board.make(min(moves, key=_urgency))
    return []


def _urgency(move: Move) -> tuple[bool, int, int]:
    return move.reason is not Reason.UNPLACED, move.cost_mib, move.vmid


def _even(board: Board, most: int) -> bool:
    """Shared VMs leave the node that is wanted most, while that makes a difference. Says whether any did."""
    before = len(board.moves)
    while len(board.moves) < most:
        fills = {name: fill(sheet) for name, sheet in board.sheets.items() if name not in board.closed}
        if len(fills) < 2:
            break
        fullest = max(fills, key=lambda name: (fills[name], name))
        if fills[fullest] - min(fills.values()) <= UNEVEN:
            break
        move = min(_relieving(board, fullest, fills), key=lambda one: (one.cost_mib, one.vmid), default=None)
        if move is None:
            break
        board.make(move)
    return len(board.moves) > before


def _relieving(board: Board, fullest: str, fills: Mapping[str, float]) -> Iterator[Move]:
    """Moves off the fullest node after which neither node is nearly as full as it was."""
    sheet = board.sheets[fullest]
    cpus = {name: board.sheets[name].machine.online.bit_count() for name in fills}
    why = f"{fills[fullest]:.2f} are wanted for each CPU of {fullest}, {min(fills.values()):.2f} elsewhere"
    for vmid, tenant in sheet.tenants.items():
        load = tenant.held.load or 0.0
        if vmid not in board.guests or owns(tenant.held) or load / cpus[fullest] < MARGIN / 2:
            continue
        move = board.best(vmid, Wrong(Reason.EVEN, why))
        if move and fills[move.target] + load / cpus[move.target] <= fills[fullest] - MARGIN:
            yield move


def executable(sheets: Mapping[str, Paper], moves: Sequence[Move], options: Options) -> str:
    """Whether the moves can be made one after the other; else what is wrong, for the first that cannot."""
    board = Board(sheets, (), options, frozenset())
    for move in moves:
        if move.to is not None:
            if board.places.get(move.vmid) != move.source:
                return f"VM {move.vmid} is not on {move.source}"
            if refused := _refused(board.sheets[move.target], board.request(move.vmid, move.target)):
                return f"VM {move.vmid} does not fit on {move.target}: {refused}"
        board.make(move)
    return ""
