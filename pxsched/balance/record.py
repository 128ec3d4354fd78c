"""What the balancer remembers of VMs from one pass to the next: averages, and when each moved last."""

import math
from collections.abc import Collection, Iterable, Mapping

from pxsched import stored
from pxsched.balance.samples import Rate, Use
from pxsched.value import NOTHING, Value, replace

# Averages follow a change of load to 63 % in this time: one pass of the timer, several of a fast `watch`.
SMOOTHING_S = 2.0
MOST_VCPUS = 8192


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
            str(vmid): [one.start, [[*rate] for rate in one.rates], one.observed_s, one.moved_s]
            for vmid, one in self.vms.items()
        }

    @classmethod
    def from_json(cls, value: object) -> "State":
        """The state again. Raises Damaged."""
        return cls(stored.by_vmid(value, _record))


def _record(body: object) -> Record:
    start, rates, observed_s, moved_s = stored.items(body, 4)
    return Record(
        stored.integer(start),
        tuple(Rate(*map(stored.number, stored.items(rate, 3))) for rate in stored.listed(rates, MOST_VCPUS)),
        stored.number(observed_s),
        stored.maybe(stored.number, moved_s),
    )


def observe(use: Use | None, record: Record | None, *, pins: bool) -> Record:
    """The averages with the last interval worked in. pins: of each vCPU, not of the VM."""
    if use is None:
        return record or Record(start=-1)
    if record is None or record.start != use.start:
        record = Record(use.start)
    now = use.rates if pins else (use.total,)
    new = 1.0 - math.exp(-use.elapsed_s / SMOOTHING_S)
    if len(record.rates) == len(now) and record.observed_s > 0:
        now = tuple(
            Rate(
                run + new * (rate.run - run),
                wait + new * (rate.wait - wait),
                demand + new * (rate.demand - demand),
            )
            for (run, wait, demand), rate in zip(record.rates, now, strict=True)
        )
    return Record(use.start, now, record.observed_s + use.elapsed_s, record.moved_s)


def after(
    records: Mapping[int, Record],
    homes: Mapping[int, Iterable[frozenset[int]]],
    moved: Collection[int],
    changed: frozenset[int],
    now_s: float,
) -> dict[int, Record]:
    """The records to keep: those around a move are measured afresh, since their surroundings changed.

    homes: the CPUs of each VM's vCPUs. moved: the VMs that got other ones; changed: all CPUs concerned.
    """
    kept = {}
    for vmid, record in records.items():
        if record.start < 0:
            continue
        if changed and any(changed & cpus for cpus in homes[vmid]):
            record = replace(record, observed_s=0.0)
        if vmid in moved:
            record = replace(record, moved_s=now_s)
        kept[vmid] = record
    return kept
