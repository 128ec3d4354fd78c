"""A host with a scheduler and guests, in the small: drives the balancer's own code in tests and benches.

The scheduler is none of `sharing`: it deals out slices of 4 ms, each CPU to the allowed thread whose VM had
least of late for its weight, so that collisions, unfinished bursts and uneven turns appear as they do in
the kernel's counters.
"""

import random
from collections.abc import Iterable, Mapping, Sequence

from pxsched.balance import cpu, samples
from pxsched.balance.background import Known, unexplained
from pxsched.balance.sharing import cpus_of, jain, mask_of, shares
from pxsched.host.topology import L3, Cpu, Node, Package, Topology
from pxsched.settings.policy import NodeSettings
from pxsched.value import NOTHING, Value, replace

SLICE_MS = 4
# Fairness is kept over about this time, as the scheduler's wake-up rules do; old favours are forgotten.
_MEMORY_MS = 400.0
_CYCLE_MS = 60.0


class Guest(Value):
    """A simulated VM. loads: by vCPU, the part of the time it would compute if it never waited.

    home: where its vCPUs float; pins: one CPU each instead. hidden: work of the host's, of which the balancer
    is told only how busy the CPUs are.
    """

    vmid: int
    loads: tuple[float, ...]
    home: frozenset[int] = frozenset()
    pins: tuple[int, ...] = ()
    weight: int = 100
    movable: bool = True
    memory_mib: Mapping[int, int] = NOTHING
    hidden: bool = False

    @property
    def masks(self) -> tuple[frozenset[int], ...]:
        if self.pins:
            return tuple(frozenset((pin,)) for pin in self.pins)
        return (self.home,) * len(self.loads)


class _Thread:
    """One vCPU: computes for its load's part of a cycle, sleeps for the rest of it."""

    def __init__(self, guest: Guest, vcpu: int, rng: random.Random) -> None:
        self.vcpu = vcpu
        self.run_ns = self.wait_ns = 0
        self.left_ms = 0.0
        self.sleep_ms = rng.uniform(0, _CYCLE_MS)
        self.wake(guest.loads[vcpu])

    def wake(self, load: float) -> None:
        if load >= 1:
            self.sleep_ms, self.left_ms = 0.0, float("inf")
        elif self.left_ms == float("inf"):
            self.left_ms = load * _CYCLE_MS

    def ready(self, load: float, rng: random.Random) -> bool:
        if load <= 0:
            return False
        if self.left_ms <= 0:
            self.sleep_ms -= SLICE_MS
            while self.sleep_ms <= 0 and self.left_ms <= 0:
                # What a slice is too coarse for evens out from one cycle to the next.
                self.left_ms += load * _CYCLE_MS * rng.uniform(0.8, 1.2)
                self.sleep_ms += 0.0 if self.left_ms > 0 else _CYCLE_MS
        return self.left_ms > 0

    def run(self, load: float, rng: random.Random) -> None:
        self.run_ns += SLICE_MS * 1_000_000
        self.left_ms -= SLICE_MS
        if self.left_ms <= 0:
            self.sleep_ms += (1 - load) * _CYCLE_MS * rng.uniform(0.8, 1.2)


class Host:
    """Guests on CPUs, and a balancer that is asked once a pass."""

    def __init__(
        self,
        topology: Topology,
        guests: Iterable[Guest],
        *,
        settings: NodeSettings | None = None,
        period_s: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.topology = topology
        self.settings = settings or NodeSettings()
        self.period_s = period_s
        self.guests: dict[int, Guest] = {}
        self.moves: list[list[cpu.Move]] = []
        self.state = cpu.State()
        self.clock_ms = 0
        self.gained_ns: dict[int, int] = {}
        self._rng = random.Random(seed)
        self._threads: dict[int, list[_Thread]] = {}
        self._recent: dict[int, float] = {}
        self._busy_ms: dict[int, int] = {}
        for guest in guests:
            self.add(guest)
        self._before = self.snapshot()

    def add(self, guest: Guest) -> None:
        self.guests[guest.vmid] = guest
        self._threads[guest.vmid] = [_Thread(guest, vcpu, self._rng) for vcpu in range(len(guest.loads))]
        self._recent[guest.vmid] = 0.0

    def change(self, vmid: int, loads: tuple[float, ...]) -> None:
        """Gives a guest another load while it runs."""
        self.guests[vmid] = replace(self.guests[vmid], loads=loads)
        for thread in self._threads[vmid]:
            thread.wake(loads[thread.vcpu])

    def run(self, seconds: float) -> None:
        """Lets the guests compute for a while."""
        cpus = sorted(self.topology.online)
        fade = 1 - SLICE_MS / _MEMORY_MS
        masks = {vmid: guest.masks for vmid, guest in self.guests.items()}
        started = self._runs()
        self._busy_ms = dict.fromkeys(cpus, 0)
        for _ in range(round(seconds * 1000 / SLICE_MS)):
            self.clock_ms += SLICE_MS
            ready = [
                (vmid, thread, masks[vmid][thread.vcpu])
                for vmid, threads in self._threads.items()
                for thread in threads
                if thread.ready(self.guests[vmid].loads[thread.vcpu], self._rng)
            ]
            self._rng.shuffle(ready)
            self._rng.shuffle(cpus)
            taken = self._deal(cpus, ready)
            for index in taken:
                vmid, thread, _mask = ready[index]
                thread.run(self.guests[vmid].loads[thread.vcpu], self._rng)
                self._recent[vmid] += 1
            for index, (_vmid, thread, _mask) in enumerate(ready):
                if index not in taken:
                    thread.wait_ns += SLICE_MS * 1_000_000
            for vmid in self._recent:
                self._recent[vmid] *= fade
        self.gained_ns = {vmid: total - started.get(vmid, 0) for vmid, total in self._runs().items()}

    def _deal(self, cpus: Iterable[int], ready: Sequence[tuple[int, _Thread, frozenset[int]]]) -> set[int]:
        """Who of the ready runs in this slice: on each CPU the neediest allowed, on an idle one whoever
        another CPU can spare.
        """
        need = sorted(
            range(len(ready)),
            key=lambda index: self._recent[ready[index][0]] / self.guests[ready[index][0]].weight,
        )
        runs_on: dict[int, int] = {}
        idle = []
        taken: set[int] = set()
        for number in cpus:
            best = next((index for index in need if index not in taken and number in ready[index][2]), None)
            if best is None:
                idle.append(number)
            else:
                runs_on[number] = best
                taken.add(best)
        for number in idle:
            for other, runner in list(runs_on.items()):
                waiting = (i for i in need if i not in taken and other in ready[i][2])
                if number in ready[runner][2] and (heir := next(waiting, None)) is not None:
                    runs_on[number], runs_on[other] = runner, heir
                    taken.add(heir)
                    break
        for number in runs_on:
            self._busy_ms[number] += SLICE_MS
        return taken

    def snapshot(self) -> samples.Snapshot:
        return samples.Snapshot(
            {
                vmid: samples.Reading(
                    vmid,
                    1,
                    self.clock_ms * 1_000_000,
                    {
                        vmid * 1000 + thread.vcpu: samples.Counter(thread.run_ns, thread.wait_ns)
                        for thread in threads
                    },
                )
                for vmid, threads in self._threads.items()
            }
        )

    def tick(self) -> list[cpu.Move]:
        """Lets one period go by, asks the balancer, and does what it says."""
        self.run(self.period_s)
        interval = samples.between(self._before, self.snapshot())
        self._before = interval.base
        known = [guest for guest in self.guests.values() if not guest.hidden]
        # Through text and back, as the state of a timer is.
        self.state = cpu.State.from_json(self.state.to_json())
        outcome = cpu.rebalance(
            [
                cpu.Vm(
                    guest.vmid,
                    guest.masks,
                    interval.uses.get(guest.vmid),
                    weight=guest.weight,
                    movable=guest.movable,
                    pins=bool(guest.pins),
                    memory_mib=guest.memory_mib,
                )
                for guest in known
            ],
            self.topology,
            self.topology.online,
            self.state,
            self.settings,
            self.clock_ms / 1000,
            busy=self._host_load(known, interval.uses),
        )
        self.state = outcome.state
        for move in outcome.moves:
            self._apply(move)
        self.moves.append(list(outcome.moves))
        return self.moves[-1]

    def _host_load(self, known: Iterable[Guest], uses: Mapping[int, samples.Use]) -> dict[int, float]:
        """What a pass finds of it: each CPU's busy time without that of those who are known."""
        busy = {number: ms / 1000 / self.period_s for number, ms in self._busy_ms.items()}
        parts = [
            Known(frozenset().union(*guest.masks), uses[guest.vmid].total.run)
            for guest in known
            if guest.vmid in uses
        ]
        return unexplained(busy, parts)

    def _apply(self, move: cpu.Move) -> None:
        guest = self.guests[move.vmid]
        if move.vcpu is None:
            self.guests[move.vmid] = replace(guest, home=move.after)
        else:
            pins = list(guest.pins)
            (pins[move.vcpu],) = move.after
            self.guests[move.vmid] = replace(guest, pins=tuple(pins))

    def _runs(self) -> dict[int, int]:
        return {vmid: sum(thread.run_ns for thread in threads) for vmid, threads in self._threads.items()}

    # What a spectator knows, and the balancer does not.

    def demand_on(self, number: int) -> float:
        """The demand on one CPU, everyone's spread over its home."""
        return sum(
            load / len(mask)
            for guest in self.guests.values()
            for load, mask in zip(guest.loads, guest.masks, strict=True)
            if number in mask
        )

    def due(self) -> dict[int, float]:
        """Everyone's weighted fair share of the whole host, from its true load."""
        everywhere = mask_of(self.topology.online)
        guests = [guest for guest in self.guests.values() if sum(guest.loads) > 0]
        return dict(zip((g.vmid for g in guests), fair_shares(guests, everywhere), strict=True))

    def satisfaction(self) -> dict[int, float]:
        """What each guest got in the last run, as a part of what it is due."""
        span_ns = self.period_s * 1e9
        return {
            vmid: min(1.2, self.gained_ns.get(vmid, 0) / span_ns / share)
            for vmid, share in self.due().items()
        }

    def fairness(self) -> float:
        return jain(list(self.satisfaction().values()))


def fair_shares(guests: Sequence[Guest], mask: int) -> list[float]:
    """What each guest would get on the CPUs of `mask` alone."""
    from pxsched.balance.sharing import Claim

    return shares([Claim(sum(guest.loads), guest.weight, mask) for guest in guests])


def machine(nodes: int = 1, caches: int = 1, cores: int = 4, threads: int = 1) -> Topology:
    """A host of `nodes` x `caches` x `cores` x `threads` CPUs, siblings next to each other."""
    size = cores * threads
    cpus: dict[int, Cpu] = {}
    l3s, members = [], []
    for number in range(nodes * caches):
        here = frozenset(range(number * size, (number + 1) * size))
        l3s.append(L3(number, here, 32 << 20))
        for cpu_id in here:
            first = cpu_id - cpu_id % threads
            siblings = frozenset(range(first, first + threads))
            node = number // caches
            cpus[cpu_id] = Cpu(cpu_id, True, first // threads, number, node, node, siblings)
    for node in range(nodes):
        here = frozenset(cpu_id for cpu_id, one in cpus.items() if one.node == node)
        members.append(Node(node, here, 64 << 30, {n: 10 if n == node else 21 for n in range(nodes)}))
    packages = tuple(Package(node.id, node.cpus) for node in members)
    return Topology(cpus, tuple(l3s), tuple(members), packages)


__all__ = ["Guest", "Host", "cpus_of", "fair_shares", "machine"]
