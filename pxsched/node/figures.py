"""What is read of one VM at the beginning and at the end of a block, and the figures that come of it.

Nothing of it needs the guest's help but the steal that it sees. What cannot be read is left out and named.
Rules: Documentation/scheduler/sched-stats.rst (run and wait time, turns), proc_pid_status(5), proc_vmstat(5),
and of the guest's own `guest/agent.py`.
"""

import re
import time
from collections.abc import Mapping, Sequence
from statistics import median

from pxsched.guest import agent as agents
from pxsched.guest.agent import Times
from pxsched.guest.process import Process
from pxsched.guest.qmp import QmpError
from pxsched.host import interrupts, memory, perf, wakeup
from pxsched.host.topology import Topology
from pxsched.root import Root
from pxsched.value import NOTHING, Value

_PREEMPTED = re.compile(r"^nonvoluntary_ctxt_switches:\s+(\d+)$", re.MULTILINE | re.ASCII)
# The whole machine's: nobody counts them by process.
_MOVED, _REMOTE = "pgmigrate_success", "numa_other"


class Turns(Value):
    """Of all vCPU threads together, since they began. preempted: times that they had to leave a CPU."""

    run_ns: int
    wait_ns: int
    turns: int
    preempted: int


class Reading(Value):
    """at_ns: CLOCK_MONOTONIC. turns: None once a thread is gone. served: interrupts on the place's CPUs."""

    at_ns: int
    turns: Turns | None
    counted: perf.Raw
    served: int | None
    events: Mapping[str, int]
    guest: Times | None


def between(before: Reading, after: Reading, cpus: int) -> dict[str, float]:
    """The figures of a block, but those that were sampled during it. cpus: how many the place has."""
    elapsed_ns = after.at_ns - before.at_ns
    if elapsed_ns <= 0:
        return {}
    found: dict[str, float] = {}
    if before.turns is not None and after.turns is not None:
        found |= _of_turns(before.turns, after.turns, elapsed_ns)
    found |= _of_counters(perf.between(before.counted, after.counted), elapsed_ns)
    if before.served is not None and after.served is not None and cpus:
        found["interrupts"] = (after.served - before.served) / cpus / elapsed_ns * 1e9
    for name, event in ("moved_pages", _MOVED), ("remote_pages", _REMOTE):
        if event in before.events and event in after.events:
            found[name] = (after.events[event] - before.events[event]) / elapsed_ns * 1e9
    if before.guest is not None and after.guest is not None and after.guest.all > before.guest.all:
        stolen = (after.guest.stolen - before.guest.stolen) / (after.guest.all - before.guest.all)
        if 0 <= stolen <= 1:
            found["steal"] = stolen * 100
    return found


def _of_turns(before: Turns, after: Turns, elapsed_ns: int) -> dict[str, float]:
    run_ns, wait_ns = after.run_ns - before.run_ns, after.wait_ns - before.wait_ns
    turns = after.turns - before.turns
    wanted_ns = run_ns + wait_ns
    return {
        "running": run_ns / elapsed_ns,
        "waiting": 100 * wait_ns / wanted_ns if wanted_ns else 0.0,
        "wait_us": wait_ns / turns / 1000 if turns else 0.0,
        "preempted": (after.preempted - before.preempted) / elapsed_ns * 1e9,
    }


def _of_counters(counted: Mapping[str, float], elapsed_ns: int) -> dict[str, float]:
    seconds = elapsed_ns / 1e9
    found = {
        name: counted[name] / seconds for name in ("instructions", "cycles", "migrations") if name in counted
    }
    instructions = counted.get("instructions", 0.0)
    if instructions and "cycles" in counted and counted["cycles"]:
        found["per_cycle"] = instructions / counted["cycles"]
    if instructions:
        found |= {
            name: counted[name] / instructions * 1000
            for name in ("cache_misses", "remote_loads")
            if name in counted
        }
    return found


def far_percent(by_node: Mapping[int, int] | None, cpus: frozenset[int], topology: Topology) -> float | None:
    """How much of a VM's memory lies on other nodes than the CPUs it may use; None where it is not known, or
    there is but one node.
    """
    if by_node is None or len(topology.nodes) < 2:
        return None
    near = topology.nodes_of(cpus)
    total = sum(by_node.values())
    return 100 * sum(size for node, size in by_node.items() if node not in near) / total if total else None


class Reader:
    """Reads one VM. tids: of its vCPUs. counters: whether performance counters are opened; they stay so until
    `close`. agent: whether the guest's is asked. absent: what cannot be read, and why.
    """

    def __init__(
        self,
        root: Root,
        vmid: int,
        process: Process,
        tids: Sequence[int],
        *,
        counters: bool = True,
        agent: bool = True,
    ) -> None:
        self._root, self._vmid, self._process, self._tids = root, vmid, process, tuple(tids)
        self._counters = perf.Counters(self._tids) if counters and root.live else None
        self.absent: dict[str, str] = dict(self._counters.absent) if self._counters else {}
        self._asks = agent and root.live

    def close(self) -> None:
        if self._counters is not None:
            self._counters.close()

    def read(self, cpus: frozenset[int]) -> Reading:
        """cpus: those of its place."""
        return Reading(
            time.monotonic_ns(),
            self._turns(),
            self._counters.read() if self._counters is not None else NOTHING,
            interrupts.served(self._root, cpus),
            memory.events(self._root),
            self._guest(),
        )

    def _turns(self) -> Turns | None:
        run_ns = wait_ns = turns = preempted = 0
        for tid in self._tids:
            base = f"proc/{self._process.pid}/task/{tid}"
            words = (self._root.read_record(f"{base}/schedstat") or b"").split()
            status = _PREEMPTED.search(self._root.read(f"{base}/status") or "")
            if len(words) != 3 or status is None:
                self.absent["turns"] = "the kernel does not say what its threads ran"
                return None
            run_ns, wait_ns, turns = run_ns + int(words[0]), wait_ns + int(words[1]), turns + int(words[2])
            preempted += int(status[1])
        return Turns(run_ns, wait_ns, turns, preempted)

    def _guest(self) -> Times | None:
        """Asked until it fails once."""
        if not self._asks:
            return None
        try:
            return agents.times(self._root, self._vmid)
        except QmpError as error:
            self.absent["steal"] = f"the guest's agent: {error}"
            self._asks = False
            return None


class Wakeups:
    """Samples taken during a block, one CPU of the place after the other."""

    def __init__(self, cpus: frozenset[int]) -> None:
        self._cpus = sorted(cpus)
        self._found: list[float] = []
        self._next = 0

    def sample(self) -> None:
        cpu = self._cpus[self._next % len(self._cpus)]
        self._next += 1
        latency_us = wakeup.latency_us(cpu)
        if latency_us is not None:
            self._found.append(latency_us)

    @property
    def figures(self) -> dict[str, float]:
        return {"wakeup_us": median(self._found)} if self._found else {}
