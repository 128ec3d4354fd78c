"""What the timer's passes did since the node booted: counts that only ever go up, kept in /run/pxsched.

They are counted here and not looked up, as what they are about goes away: the journal forgets a VM's knobs
with the VM, and with them how often somebody else had turned them.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TypeVar

from pxsched import state, stored
from pxsched.node.balancing import Result
from pxsched.node.settle import Pass
from pxsched.root import Root
from pxsched.value import NOTHING, Value, items

FILE = "run/pxsched/passes.json"
K = TypeVar("K", str, int)


class Passes(Value):
    """count, seconds: of all passes; began_s, lasted_s: of the last one, in seconds since 1970, and long.

    moves, balloons: by VM, what was moved and resized. drifts: by plugin, the knobs somebody else had turned.
    failures: things that could not be done. unplaced: the VMs for which the last pass found no place.
    """

    count: int = 0
    seconds: float = 0.0
    began_s: float = 0.0
    lasted_s: float = 0.0
    moves: Mapping[int, int] = NOTHING
    balloons: Mapping[int, int] = NOTHING
    drifts: Mapping[str, int] = NOTHING
    failures: int = 0
    unplaced: tuple[int, ...] = ()

    def to_json(self) -> list[object]:
        return [list(one) if isinstance(one, tuple) else one for _, one in items(self)]

    @classmethod
    def from_json(cls, value: object) -> "Passes":
        """The counts again. Raises Damaged."""
        count, seconds, began_s, lasted_s, moves, balloons, drifts, failures, unplaced = stored.items(
            value, 9
        )
        return cls(
            stored.integer(count),
            stored.number(seconds),
            stored.number(began_s),
            stored.number(lasted_s),
            stored.by_vmid(moves, stored.integer),
            stored.by_vmid(balloons, stored.integer),
            {plugin: stored.integer(times) for plugin, times in stored.table(drifts, 64).items()},
            stored.integer(failures),
            tuple(stored.integer(vmid) for vmid in stored.listed(unplaced)),
        )


def after(before: Passes, settled: Pass, balanced: Result | None, began_s: float, lasted_s: float) -> Passes:
    """The counts with one more pass in them."""
    reports = [settled.report] if balanced is None else [settled.report, balanced.report]
    drifted = [turn.plugin for report in reports for turn in report.turned if turn.drifted]
    return Passes(
        before.count + 1,
        before.seconds + lasted_s,
        began_s,
        lasted_s,
        _more(before.moves, (move.vmid for move in balanced.moves) if balanced else ()),
        _more(before.balloons, (target.vmid for target in balanced.balloons) if balanced else ()),
        _more(before.drifts, drifted),
        before.failures + sum(len(report.failed) for report in reports),
        tuple(sorted(settled.changes.refused)),
    )


def _more(counts: Mapping[K, int], events: Iterable[K]) -> dict[K, int]:
    found = dict(counts)
    for event in events:
        found[event] = found.get(event, 0) + 1
    return found


def load(root: Root) -> Passes:
    """What was counted so far; nothing after a boot, or where the file is damaged."""
    return state.load(root, FILE, Passes.from_json, set_aside=False)[0] or Passes()


def count(root: Root, settled: Pass, balanced: Result | None, began_s: float, lasted_s: float) -> None:
    """Counts one more pass. Only one is ever under way."""
    now = after(load(root), settled, balanced, began_s, lasted_s)
    with suppress(OSError):  # a full /run: the knobs matter more
        state.save(root, FILE, now.to_json())
