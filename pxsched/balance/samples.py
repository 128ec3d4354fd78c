"""What the balancer sees: counters of every VM at one moment, and what happened between two such moments.

The counters are the kernel's (Documentation/scheduler/sched-stats.rst: time on a CPU and time runnable but
waiting, in ns, since the thread began). They are only ever subtracted from counters of the same thread of
the same process: a number alone, such as a process id, can come back as somebody else.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pxsched import stored
from pxsched.value import NOTHING, Value

# Two passes nearer than this (a timer and a person at once) share one measurement, taken by the later.
SHORTEST_NS = 20_000_000
# A waiting thread's time is added when it gets its CPU, so an interval may show a little of the one before.
CARRIED_NS = 1_000_000_000


class Counter(NamedTuple):
    """Totals of one thread since it began."""

    run_ns: int
    wait_ns: int


class Rate(NamedTuple):
    """One thread, or several together, over an interval, in CPUs: 1.0 is one CPU all the time.

    demand: what would have run, had nothing waited. A thread that ran and waited and slept the rest would
    have slept as often while running the more, so that a thread's demand is run / (1 - wait).
    """

    run: float
    wait: float
    demand: float


IDLE = Rate(0.0, 0.0, 0.0)


class Reading(Value):
    """One VM's counters. start: its process's start time, which with the VMID names this run of the VM.

    at_ns: CLOCK_MONOTONIC when read; it neither jumps nor counts the time the machine was suspended.
    threads: by thread id, in the order of the vCPUs. throttled_ns: time its scope was held by `cpulimit`.
    """

    vmid: int
    start: int
    at_ns: int
    threads: Mapping[int, tuple[int, int]]
    throttled_ns: int = 0


class Snapshot(Value):
    """All VMs at one moment, by VMID."""

    vms: Mapping[int, Reading] = NOTHING

    def to_json(self) -> dict[str, object]:
        return {str(vm.vmid): [vm.start, vm.at_ns, vm.throttled_ns, vm.threads] for vm in self.vms.values()}

    @classmethod
    def from_json(cls, value: object) -> "Snapshot":
        """The snapshot again. Raises Damaged."""
        bodies = stored.by_vmid(value, lambda body: stored.items(body, 4))
        return cls({vmid: _reading(vmid, *body) for vmid, body in bodies.items()})


def _reading(vmid: int, start: object, at_ns: object, throttled_ns: object, threads: object) -> Reading:
    """Threads stay in their order, which is that of the vCPUs."""
    counters = {
        stored.tid(tid): Counter(*map(stored.integer, stored.items(body, 2)))
        for tid, body in stored.table(threads).items()
    }
    return Reading(vmid, stored.integer(start), stored.integer(at_ns), counters, stored.integer(throttled_ns))


class Use(Value):
    """What one VM did between two readings. rates: by vCPU; total: their sum.

    Waiting that `cpulimit` caused is taken out: it is not contention.
    """

    vmid: int
    start: int
    elapsed_s: float
    rates: tuple[Rate, ...]
    total: Rate


class Interval(Value):
    """What two snapshots say together. base: what the next snapshot is to be compared with."""

    uses: Mapping[int, Use]
    base: Snapshot


def between(before: Snapshot, after: Snapshot, limits: Mapping[int, float] | None = None) -> Interval:
    """What every VM that is in both snapshots did; limits: `cpulimit` in CPUs of the VMs that have one.

    A VM that restarted, a thread that is new and counters that went back have no interval yet: they are
    measured from now on.
    """
    limits = limits or {}
    uses: dict[int, Use] = {}
    base: dict[int, Reading] = {}
    for vmid, now in after.vms.items():
        then = before.vms.get(vmid)
        base[vmid] = now
        if then is None or then.start != now.start:
            continue
        elapsed_ns = now.at_ns - then.at_ns
        if 0 <= elapsed_ns < SHORTEST_NS:
            base[vmid] = then
        elif elapsed_ns > 0:
            use = _use(then, now, elapsed_ns, limits.get(vmid))
            if use is not None:
                uses[vmid] = use
    return Interval(uses, Snapshot(base))


def _use(then: Reading, now: Reading, elapsed_ns: int, limit: float | None) -> Use | None:
    """One VM's use; None where it has no interval yet: a thread is new, or its counters cannot be true (they
    went back, the machine slept, or a thread id came back). What is not known is not idle.
    """
    rates = []
    run_sum = wait_sum = demand_sum = 0.0
    longest_run_ns = elapsed_ns * 1.1 + SHORTEST_NS
    earlier = then.threads
    for tid, (run_ns, wait_ns) in now.threads.items():
        counter = earlier.get(tid)
        if counter is None or run_ns < counter[0] or wait_ns < counter[1]:
            return None
        run_ns -= counter[0]
        wait_ns -= counter[1]
        if run_ns > longest_run_ns or wait_ns > elapsed_ns + CARRIED_NS:
            return None
        run = run_ns / elapsed_ns if run_ns < elapsed_ns else 1.0
        wait = min(1.0 - run, wait_ns / elapsed_ns)
        demand = run / (1.0 - wait) if run else wait
        rates.append(Rate(run, wait, demand))
        run_sum += run
        wait_sum += wait
        demand_sum += demand
    total = Rate(run_sum, wait_sum, demand_sum)
    explained = max(0, now.throttled_ns - then.throttled_ns) / elapsed_ns
    if wait_sum and (explained or limit):
        total, rates = _unlimited(total, rates, explained, limit)
    return Use(now.vmid, now.start, elapsed_ns / 1e9, tuple(rates), total)


def _unlimited(
    total: Rate, rates: list[Rate], explained: float, limit: float | None
) -> tuple[Rate, list[Rate]]:
    """The rates without the waiting that `cpulimit` caused: what it was seen to hold back (`explained`, in
    CPUs), and whatever would have led beyond the limit.
    """
    left = max(0.0, total.wait - explained)
    if limit:
        left = min(left, max(0.0, limit - total.run))
    kept = left / total.wait
    rates = [Rate(rate.run, rate.wait * kept, rate.run + (rate.demand - rate.run) * kept) for rate in rates]
    return Rate(total.run, left, sum(rate.demand for rate in rates)), rates
