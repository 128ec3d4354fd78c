"""What balancing remembers from pass to pass, in a file of /run: averages, when who was moved, and for
whoever wants to see it what the last pass found and the last one that acted did.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pxsched import state, stored
from pxsched.balance import record, samples
from pxsched.root import Root
from pxsched.value import NOTHING, Value

if TYPE_CHECKING:  # most nodes have no guest whose balloon is ours
    from pxsched.balance import balloon

FILE = "run/pxsched/balance.json"


class Standing(NamedTuple):
    """One VM: what it ran, waited for and is due, in CPUs. lack: contention from 0 to 1."""

    ran: float
    waited: float
    due: float
    lack: float


class Last(Value):
    """at_s, acted_at_s: seconds since 1970, None before the first. acted: sentences.

    By VMID: skipped: why a guest's memory is left alone; balloons_mib: what its balloon leaves each guest.
    """

    at_s: float | None = None
    acted_at_s: float | None = None
    acted: tuple[str, ...] = ()
    skipped: Mapping[int, str] = NOTHING
    standings: Mapping[int, Standing] = NOTHING
    balloons_mib: Mapping[int, float] = NOTHING

    def to_json(self) -> dict[str, object]:
        return {
            "at": self.at_s,
            "acted_at": self.acted_at_s,
            "acted": list(self.acted),
            "skipped": {str(vmid): why for vmid, why in self.skipped.items()},
            "standings": {
                str(vmid): [round(value, 4) for value in standing]
                for vmid, standing in self.standings.items()
            },
            "balloons": {str(vmid): round(size_mib, 1) for vmid, size_mib in self.balloons_mib.items()},
        }

    @classmethod
    def from_json(cls, value: object) -> "Last":
        """The same again; words it does not know are left out. Raises Damaged."""
        document = stored.table(value)
        return cls(
            stored.maybe(stored.number, document.get("at")),
            stored.maybe(stored.number, document.get("acted_at")),
            tuple(stored.text(line) for line in stored.listed(document.get("acted", []))),
            stored.by_vmid(document.get("skipped", {}), stored.text),
            stored.by_vmid(document.get("standings", {}), _standing),
            stored.by_vmid(document.get("balloons", {}), stored.number),
        )


def _standing(body: object) -> Standing:
    return Standing(*map(stored.number, stored.items(body, 4)))


class Remembered(Value):
    """What earlier passes left. memory: None where there is no guest whose balloon is ours."""

    before: samples.Snapshot = samples.Snapshot()
    cpu: record.State = record.State()
    memory: "balloon.State | None" = None
    last: Last = Last()


def last(root: Root) -> Last:
    """What the last pass found and the last one that acted did."""
    return load(root, set_aside=False)[0].last


def load(root: Root, *, set_aside: bool) -> tuple[Remembered, str]:
    """The state of this boot, empty when there is none or it is damaged; and what to tell of that."""
    found, damage = state.load(root, FILE, lambda document: _remembered(root, document), set_aside=set_aside)
    return found or Remembered(), damage


def save(root: Root, known: Remembered | None) -> None:
    """Writes the state down; None: there is nothing to be remembered. Raises OSError."""
    if known is None:
        state.remove(root, FILE)
        return
    document = {
        "schema": 1,
        "boot_id": _boot_id(root),
        "samples": known.before.to_json(),
        "cpu": known.cpu.to_json(),
        "memory": known.memory.to_json() if known.memory else None,
        "last": known.last.to_json(),
    }
    state.save(root, FILE, document)


def _remembered(root: Root, value: object) -> Remembered:
    """Raises Damaged."""
    document = stored.table(value)
    if stored.text(document.get("boot_id")) != _boot_id(root):
        return Remembered()
    memory = None
    if document.get("memory") is not None:
        from pxsched.balance import balloon

        memory = balloon.State.from_json(document["memory"])
    return Remembered(
        samples.Snapshot.from_json(document.get("samples", {})),
        record.State.from_json(document.get("cpu", {})),
        memory,
        Last.from_json(document.get("last", {})),
    )


def _boot_id(root: Root) -> str:
    return root.read("proc/sys/kernel/random/boot_id") or ""
