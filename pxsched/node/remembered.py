"""What the last pass found, and what the last one that acted did: kept for whoever wants to see it."""

from collections.abc import Mapping
from typing import NamedTuple

from pxsched import stored
from pxsched.value import NOTHING, Value


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
