"""Proofs in the timer: one VM at a time, one round of blocks an hour, until enough is known of each.

Passes come every ten seconds and remember nothing, so what is under way is a file in /run. A step looks
whether the block at hand is over, and begins the next one; the pass that follows turns the knobs. When the
timer is stopped, the trial ends by its time.
"""

import time
from collections.abc import Iterator
from random import SystemRandom

from pxsched import state, stored
from pxsched.errors import UserError
from pxsched.guest import process
from pxsched.guest.process import Process
from pxsched.ledger import file as ledgers
from pxsched.lock import Locked
from pxsched.node import figures, proofs, proving, trial
from pxsched.node import sighting as nodes
from pxsched.node import ways as planning
from pxsched.node.figures import Reading, Turns
from pxsched.node.sighting import Node
from pxsched.node.ways import Planned, Subject
from pxsched.placement.request import EXCLUSIVE
from pxsched.proof import way as kinds
from pxsched.proof.block import Block, order
from pxsched.proof.result import Result
from pxsched.root import Root
from pxsched.value import NOTHING, Value, plain, replace

FILE = "run/pxsched/quiet.json"
SETTLE_S, BLOCK_S = 15.0, 60.0
# From the end of one round to the next.
REST_S = 3600.0
# What is enough, and when it is looked at again.
ENOUGH_ROUNDS, AGAIN_S = 16, 30 * 86400.0


class State(Value):
    """vmid: 0 between two rounds. left: the ways of this round that are still to come, the one at hand first.

    since_s: boot time of its beginning, or of the end of the last round. first: the reading after settling.
    """

    vmid: int = 0
    process: Process = Process(0, 0)
    round: int = 0
    left: tuple[str, ...] = ()
    since_s: float = -REST_S
    first: Reading | None = None
    first_at_s: float = 0.0

    def to_json(self) -> dict[str, object]:
        return {"schema": 1, **plain(self)}

    @classmethod
    def from_json(cls, value: object) -> "State":
        """Raises Damaged, TypeError, LookupError."""
        body = stored.table(value)
        whose = stored.table(body["process"])
        return cls(
            stored.integer(body["vmid"], 0, 999_999_999),
            Process(stored.integer(whose["pid"], 0, 1 << 22), stored.integer(whose["start_ticks"])),
            stored.integer(body["round"], 0, 1 << 20),
            tuple(stored.text(way, 80) for way in stored.listed(body["left"], 16)),
            stored.number(body["since_s"], -REST_S),
            stored.maybe(_reading, body["first"]),
            stored.number(body["first_at_s"]),
        )


def _reading(value: object) -> Reading:
    body = stored.table(value)
    turns = stored.maybe(
        lambda one: Turns(*(stored.integer(stored.table(one)[name]) for name in Turns._fields)), body["turns"]
    )
    events = {
        stored.text(name, 80): stored.integer(one) for name, one in stored.table(body["events"]).items()
    }
    served = stored.maybe(stored.integer, body["served"])
    return Reading(stored.integer(body["at_ns"]), turns, NOTHING, served, events, None)


def step_alone(root: Root) -> list[str]:
    """One step, and a pass over the VM it is about. Raises UserError."""
    before = trial.load(root)
    said = list(step(nodes.open_node(root)))
    for vmid in {one.vmid for one in (before, trial.load(root)) if one is not None}:
        proving.settled(root, vmid)
    return said


def step(node: Node) -> Iterator[str]:
    """Goes on with what is under way; lines to tell. Nothing is turned here: a pass has to follow."""
    root = node.root
    try:
        with proving.alone(root):
            now = state.load(root, FILE, State.from_json, set_aside=True)[0] or State()
            try:
                after, said = _step(node, now)
            except UserError as error:  # the VM ended or changed; this round is lost
                trial.remove(root)
                after, said = State(since_s=_now_s()), f"the quiet proof of VM {now.vmid} stopped: {error}"
            if after != now:
                state.save(root, FILE, after.to_json())
            if said:
                yield said
    except Locked:
        return  # somebody proves in the foreground
    except OSError as error:
        yield f"cannot go on with quiet proofs: {error.strerror}"


def leave(root: Root) -> None:
    """Ends what is under way, as the setting was taken back."""
    if root.exists(FILE):
        found = state.load(root, FILE, State.from_json, set_aside=True)[0]
        on = trial.load(root)
        if found is not None and on is not None and on.owner is None:
            trial.remove(root)
        state.remove(root, FILE)


def _now_s() -> float:
    return ledgers.now_ns() / 1e9


def _step(node: Node, now: State) -> tuple[State, str]:
    """What is under way after this step, and what to tell. Raises UserError."""
    if not now.vmid:
        if _now_s() - now.since_s < REST_S:
            return now, ""
        vmid = choose(node)
        return (now if vmid is None else _begin(node, vmid)), ""
    vm = planning.subject(node, now.vmid)
    planned = {one.name: one for one in plan(node, vm)}
    if vm.process != now.process or now.left[0] not in planned:
        raise UserError("it is another one now")
    way = planned[now.left[0]]
    if now.first is None:
        if _now_s() - now.since_s < SETTLE_S:
            return now, ""
        proving.check(node.root, vm, way)
        return replace(now, first=_read(node.root, vm, way), first_at_s=time.time()), ""
    if time.monotonic_ns() - now.first.at_ns < BLOCK_S * 1e9:
        return now, ""
    proving.check(node.root, vm, way)
    _note(node, vm, tuple(planned.values()), now, way)
    left = now.left[1:]
    if not left:
        trial.remove(node.root)
        return State(since_s=_now_s()), ""
    _try(node.root, vm, planned[left[0]])
    return replace(now, left=left, since_s=_now_s(), first=None), ""


def plan(node: Node, vm: Subject) -> tuple[Planned, ...]:
    """The ways that are compared quietly: nobody has to make room for them, and no memory moves."""
    names = ("stock", "now") if vm.home.vm_class in EXCLUSIVE else ("stock", "home")
    return planning.plan(node, vm, kinds.parse_all(names), move_memory=False)


def choose(node: Node) -> int | None:
    """The VM of which least is known; None where enough is known of all."""
    known: dict[int, tuple[int, float]] = {}
    for vmid, claim in ledgers.peek(node.root).claims.items():
        if claim.process is None or not process.alive(node.root, claim.process):
            continue
        result = proofs.load(node.root, vmid)
        rounds = 1 + max((block.round for block in result.blocks), default=-1) if result else 0
        began_s = result.began_s if result else 0.0
        if rounds < ENOUGH_ROUNDS or time.time() - began_s > AGAIN_S:
            known[vmid] = (rounds, began_s)
    return min(known, key=lambda vmid: (known[vmid], vmid), default=None)


def _begin(node: Node, vmid: int) -> State:
    vm = planning.subject(node, vmid)
    planned = {one.name: one for one in plan(node, vm)}
    left = order(tuple(planned), SystemRandom())
    before = _earlier(node.root, vm, tuple(planned.values()))
    number = 1 + max((block.round for block in before.blocks), default=-1)
    _try(node.root, vm, planned[left[0]])
    return State(vmid, vm.process, number, left, _now_s())


def _try(root: Root, vm: Subject, way: Planned) -> None:
    proving.begin(root, vm, way, SETTLE_S + BLOCK_S + 60, owned=False)


def _read(root: Root, vm: Subject, way: Planned) -> Reading:
    reader = figures.Reader(root, vm.vmid, vm.process, vm.tids, counters=False, agent=False)
    return reader.read(way.cpus)


def _note(node: Node, vm: Subject, planned: tuple[Planned, ...], now: State, way: Planned) -> None:
    """Adds the block to what is known of the VM. Raises OSError."""
    assert now.first is not None
    after = _read(node.root, vm, way)
    found = figures.between(now.first, after, len(way.cpus))
    lasted_s = (after.at_ns - now.first.at_ns) / 1e9
    block = Block(now.round, way.name, now.first_at_s, lasted_s, found)
    result = _earlier(node.root, vm, planned)
    proofs.save(node.root, replace(result, blocks=(*result.blocks, block)))


def _earlier(root: Root, vm: Subject, planned: tuple[Planned, ...]) -> Result:
    """What was learned quietly of this VM in the same ways, or nothing yet."""
    names = tuple(one.name for one in planned)
    before = proofs.load(root, vm.vmid)
    fresh = before is None or not before.quiet or before.ways != names
    if before is None or fresh or time.time() - before.began_s > AGAIN_S:
        absent = {"hardware counters": "they are read by `pxsched prove VMID` only"}
        return replace(proving.blank(root, vm, planned, BLOCK_S, SETTLE_S), absent=absent, quiet=True)
    return before
