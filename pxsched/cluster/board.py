"""The cluster as a plan goes on: what a move would do to it, and the best one for a VM. Pure."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from pxsched.cluster.hindrances import Verdict
from pxsched.cluster.paper import Paper, least, owns
from pxsched.cluster.wrongs import Guest, Reason, Wrong, crowded, fill, relieved
from pxsched.placement import defrag
from pxsched.placement.defrag import Span
from pxsched.placement.request import Placement, Refused, Request, VmClass
from pxsched.value import Value, replace

# So many targets that would do are compared for a VM; the emptiest are asked first.
ENOUGH = 4


class Options(Protocol):
    """What is known of a move, asked only for moves that are looked at."""

    def request(self, vmid: int, target: str) -> Request: ...

    def verdict(self, vmid: int, target: str, places: Mapping[int, str]) -> Verdict:
        """places: where the VMs are by then."""


class Move(Value):
    """to: None for a stopped VM. cost_mib: what has to be copied: memory, and local disks."""

    vmid: int
    source: str
    target: str
    reason: Reason
    why: str
    to: Placement | None
    cost_mib: int
    ha: bool = False


class Answer(NamedTuple):
    """What one target is worth to a VM: a move with its rank, or why not. Both: a move that is better than no
    place at all, and no better than that.
    """

    rank: tuple[object, ...]
    move: Move | None
    why: str = ""


class Board:
    """sheets: the usable nodes, as they are after the moves so far. closed: those that take nobody.
    refusals: what was said against the targets of a VM when it was last asked for.
    """

    def __init__(
        self, sheets: Mapping[str, Paper], guests: Iterable[Guest], options: Options, closed: frozenset[str]
    ) -> None:
        self.sheets = dict(sheets)
        self.guests = {guest.vmid: guest for guest in guests}
        self.options = options
        self.closed = closed
        self.places = {
            vmid: name for name, sheet in sheets.items() for vmid in (*sheet.tenants, *sheet.strangers)
        }
        self.moves: list[Move] = []
        self.refusals: dict[int, list[str]] = {}
        self._answers: dict[tuple[int, str, Reason], tuple[Paper, Paper, Answer]] = {}
        self._crowds: dict[str, tuple[Paper, dict[int, float]]] = {}

    def make(self, move: Move) -> None:
        """The target takes the VM before the source is rid of it."""
        if move.to is None:
            self.places[move.vmid] = move.target
            self.moves.append(move)
            return
        request = self.request(move.vmid, move.target)
        self.sheets[move.target] = self.sheets[move.target].having(request, move.to)
        self.sheets[move.source] = self.sheets[move.source].without(move.vmid)
        self.places[move.vmid] = move.target
        self.moves.append(move)

    def request(self, vmid: int, target: str) -> Request:
        """With what was measured of the VM."""
        sheet = self.sheets[self.places[vmid]]
        tenant = sheet.tenants.get(vmid)
        load = sheet.strangers[vmid].load if tenant is None else tenant.held.load
        return replace(self.options.request(vmid, target), load=load)

    def crowd(self, name: str) -> dict[int, float]:
        """The VMs in contention on a node."""
        sheet = self.sheets[name]
        if self._crowds.get(name, (None,))[0] is not sheet:
            self._crowds[name] = (sheet, crowded(sheet))
        return self._crowds[name][1]

    def best(self, vmid: int, wrong: Wrong) -> Move | None:
        """The best move that ends this."""
        guest, source = self.guests[vmid], self.places[vmid]
        said = self.refusals[vmid] = []
        moved = any(move.vmid == vmid for move in self.moves)
        if wrong.reason is not Reason.DRAIN and (moved or not guest.rested):
            said.append("it came to its node less than an hour ago")
            return None
        names = [name for name in self.sheets if name != source and name not in self.closed]
        found: list[Answer] = []
        for name in sorted(names, key=lambda name: (fill(self.sheets[name]), name)):
            answer = self._answer(guest, name, wrong)
            if answer.move is None:
                said.append(f"{name}: {answer.why}")
                continue
            found.append(answer)
            if sum(not one.why for one in found) == ENOUGH:
                break
        return min(found, key=lambda one: one.rank).move if found else None

    def _answer(self, guest: Guest, name: str, wrong: Wrong) -> Answer:
        """What placement says is asked again only when one of the two nodes has changed."""
        verdict = self.options.verdict(guest.vmid, name, self.places)
        if verdict.against or verdict.offline:
            return _no("; ".join(text for text in (*verdict.against, verdict.offline) if text))
        key = (guest.vmid, name, wrong.reason)
        source, target = self.sheets[self.places[guest.vmid]], self.sheets[name]
        kept = self._answers.get(key)
        if kept is None or kept[0] is not source or kept[1] is not target:
            kept = self._answers[key] = (source, target, self._ask(guest, name, wrong, verdict.copy_mib))
        return kept[2]

    def _ask(self, guest: Guest, name: str, wrong: Wrong, copy_mib: int) -> Answer:
        sheet, request = self.sheets[name], self.request(guest.vmid, name)
        free = sheet.host.free_mib
        if request.hugepage_mib is None and free and sum(free.values()) < request.memory_mib:
            return _no(f"needs {request.memory_mib} MiB, {sum(free.values())} are free")
        try:
            placement = sheet.place(request)
        except Refused as refusal:
            return _no(refusal.message)
        contention = sheet.contention(placement, request.load)
        span = defrag.span_of(sheet.machine, placement)
        crossing = owns(placement) and span.rank > least(sheet, request.vcpus).rank
        if problem := _clash(sheet, placement):
            return _no(problem)
        worse = ""
        if wrong.reason is not Reason.DRAIN:
            worse = self._worse(name, request, placement, contention, span, crossing=crossing)
            if worse and wrong.reason is not Reason.UNPLACED:
                return _no(worse)
        move = Move(
            guest.vmid, self.places[guest.vmid], name, wrong.reason, wrong.why, placement,
            request.memory_mib + copy_mib, guest.ha,
        )  # fmt: skip
        rank = (worse != "", crossing, copy_mib > 0, span.rank, round(contention, 2), name)
        return Answer(rank, move, worse)

    def _wider(self, vmid: int, span: Span) -> bool:
        """Whether a VM with CPUs of its own lies no wider now."""
        sheet = self.sheets[self.places[vmid]]
        tenant = sheet.tenants.get(vmid)
        if tenant is None or not owns(tenant.held):
            return False
        return span.rank > (1, 1) and span.rank >= defrag.span_of(sheet.machine, tenant.held).rank

    def _worse(
        self,
        name: str,
        request: Request,
        placement: Placement,
        contention: float,
        span: Span,
        *,
        crossing: bool,
    ) -> str:
        """Why a move would not end what is wrong, or would begin it for others; empty where it is good."""
        if crossing or self._wider(request.vmid, span):
            return "it would cross nodes or L3 groups there, too"
        if not owns(placement) and not relieved(contention, request.load, len(placement.cpus)):
            return f"{contention:.2f} would be wanted for each of its CPUs there"
        worse = crowded(self.sheets[name].having(request, placement)).keys() - self.crowd(name)
        worse -= {request.vmid}
        return f"VM {min(worse)} would be in contention there" if worse else ""


def _no(why: str) -> Answer:
    return Answer((), None, why)


def _clash(sheet: Paper, placement: Placement) -> str:
    """Whose own CPUs it would share, or who would share its own: what `affinity` says is obeyed. Shared VMs
    keep off dedicated CPUs by themselves, and may run on pinned ones.
    """
    cpus, own = placement.cpus, owns(placement)
    floating = sheet.host.topology.online if own else frozenset[int]()
    for vmid, tenant in sheet.tenants.items():
        held = tenant.held
        shared = VmClass.SHARED in (held.vm_class, placement.vm_class)
        if vmid != placement.vmid and not shared and (own or owns(held)) and held.cpus & cpus:
            return f"it and VM {vmid} would have CPUs in common there"
    for one in sheet.strangers.values():
        if own and one.cpus & cpus and not one.cpus >= floating:
            return f"{one.name} is confined to some of its CPUs there"
    return ""
