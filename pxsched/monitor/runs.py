"""How long each VM's threads ran and waited for a CPU, counted over those that have ended.

/proc/PID/task/TID/schedstat begins anew with each thread: a sum over the threads that there are goes back
when one ends or the VM starts again, which a monitor takes for a restart of ours. So what has been seen is
kept in /run/pxsched, and only what came since is added. What a thread does after the last look is lost.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pxsched import lock, state, stored
from pxsched.errors import UserError
from pxsched.guest import schedstat
from pxsched.ledger.claim import Claim
from pxsched.root import Root
from pxsched.value import NOTHING, Value

FILE, LOCK = "run/pxsched/runs.json", "run/pxsched/runs.lock"
LOCK_S = 2.0


class Time(NamedTuple):
    """Nanoseconds on a CPU, and waiting for one."""

    ran_ns: int
    waited_ns: int


class Run(Value):
    """One VM. start: when its last process began. total: of all its threads so far.

    threads: those that were last seen, and what they had by then.
    """

    start: int
    total: Time = Time(0, 0)
    threads: Mapping[int, Time] = NOTHING

    def to_json(self) -> list[object]:
        return [self.start, self.total, {str(tid): time for tid, time in self.threads.items()}]

    @classmethod
    def from_json(cls, value: object) -> "Run":
        """The same again. Raises Damaged."""
        start, total, threads = stored.items(value, 3)
        known = {stored.tid(tid): _time(time) for tid, time in stored.table(threads).items()}
        return cls(stored.integer(start), _time(total), known)


def _time(value: object) -> Time:
    ran_ns, waited_ns = stored.pair(value)
    return Time(stored.integer(ran_ns), stored.integer(waited_ns))


def counted(before: Run | None, start: int, threads: Mapping[int, Time]) -> Run:
    """What a VM has run and waited in all. threads: what each has now."""
    total = Time(0, 0) if before is None else before.total
    known = before.threads if before is not None and before.start == start else NOTHING
    for tid, now in threads.items():
        then = known.get(tid, Time(0, 0))
        if now.ran_ns < then.ran_ns:  # another thread with the same number
            then = Time(0, 0)
        total = Time(total.ran_ns + now.ran_ns - then.ran_ns,
                     total.waited_ns + max(0, now.waited_ns - then.waited_ns))  # fmt: skip
    return Run(start, total, threads)


def count(root: Root, claims: Iterable[Claim]) -> Mapping[int, Run]:
    """Looks at every VM's threads, and gives all that was counted since the node booted, by VMID.

    Raises UserError when it cannot be kept, as the next time would then.
    """
    with lock.held(root, LOCK, patience_s=LOCK_S):
        runs, _ = state.load(root, FILE, _from_json, set_aside=True)
        runs = dict(runs or {})
        for claim in claims:
            if claim.process is None or not (found := schedstat.of_process(root, claim.process)):
                continue
            threads = {tid: Time(*time) for tid, time in found.items()}
            runs[claim.vmid] = counted(runs.get(claim.vmid), claim.process.start_ticks, threads)
        try:
            state.save(root, FILE, {str(vmid): run.to_json() for vmid, run in runs.items()})
        except OSError as error:
            raise UserError(f"cannot write /{FILE}: {error.strerror}") from error
        return runs


def _from_json(value: object) -> dict[int, Run]:
    return stored.by_vmid(value, Run.from_json)
