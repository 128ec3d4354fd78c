"""Measures the VMs, asks the balancer and the memory coordinator, and turns their answers into claims.

Nothing is turned here: a move is a new home in the ledger, a balloon target a size in it, and reconciling
does the rest. What is remembered between passes lies in /run/pxsched/balance.json; losing it costs a pass.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pxsched.balance import cpu, samples
from pxsched.guest import schedstat
from pxsched.guest.schedstat import Wanted
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.node import claims as claiming
from pxsched.node import guests, measuring, remembered, settle, turning
from pxsched.node.others import Seen
from pxsched.node.reconcile import reconcile
from pxsched.node.remembered import Remembered, Standing
from pxsched.node.sighting import Node, Sighting
from pxsched.node.turns import Report
from pxsched.placement.machine import machine_of
from pxsched.root import Root
from pxsched.value import NOTHING, Value, replace

if TYPE_CHECKING:  # most nodes have no guest whose balloon is ours
    from pxsched.balance import balloon

BALLOONS = "run/pxsched/balloons.json"  # the balloon knob's own memory
# Guests report every two seconds; asking oftener shows nothing new and keeps Proxmox from its sockets.
MEMORY_PERIOD_S = 5.0
# A fast `watch` writes its state down so often, and whenever something was done.
SAVE_PERIOD_S = 10.0
_OFF = "`balance_memory` is false"


Shares = Callable[[Iterable[int]], Mapping[int, str]]


class Result(Value):
    """What one pass moved and why."""

    report: Report
    moves: tuple[cpu.Move, ...] = ()
    balloons: "tuple[balloon.BalloonTarget, ...]" = ()

    @property
    def lines(self) -> list[str]:
        """One sentence for each thing done."""
        return [
            *(f"moved VM {move.vmid}: {move.why}" for move in self.moves),
            *(f"{target.why}: {target.target_mib} MiB" for target in self.balloons),
            *self.report.failed,
        ]


class Balancer:
    """What a process needs to balance pass after pass; a timer's process makes only one.

    shares: gives what is remembered of VMs' `shares` from before they became ours; asked only when needed.
    """

    def __init__(self, root: Root, *, keep: bool = False, shares: Shares | None = None) -> None:
        self._root = root
        self._shares = shares
        self._reader = schedstat.Reader(root, keep=keep)
        self._saved_s = -SAVE_PERIOD_S if not keep else time.monotonic()
        self._memory_s = -MEMORY_PERIOD_S
        self._keep = keep
        known, self._damage = remembered.load(root, set_aside=True)
        self._before, self._cpu, self._memory = known.before, known.cpu, known.memory
        self._last = known.last
        self._wanted: tuple[Wanted, ...] = ()

    def look(self, sightings: Sequence[Sighting]) -> None:
        """Takes note of which threads there are; the passes that follow read their counters only."""
        self._wanted = tuple(measuring.wanted(sightings))

    def run(self, node: Node, ledger: Ledger, sightings: Sequence[Sighting], seen: Seen) -> Result:
        """Measures, decides and applies. ledger: as it stands; it is locked only if something is to change.
        seen: who else is there.

        Raises UserError when the ledger cannot be used.
        """
        now_s = time.monotonic()
        settings = node.settings.node
        counters = self._reader.read(self._wanted)
        interval = samples.between(
            self._before, measuring.snapshot(self._wanted, counters), measuring.limits(sightings)
        )
        self._before = interval.base
        moves: tuple[cpu.Move, ...] = ()
        if interval.uses:
            vms = [
                vm
                for sighting in sightings
                if (vm := measuring.vm(sighting, ledger, interval.uses, node, seen))
            ]
            elapsed_s = max(use.elapsed_s for use in interval.uses.values())
            outcome = cpu.rebalance(
                [*vms, *measuring.containers(seen, elapsed_s)],
                node.topology,
                measuring.pool(node, ledger),
                self._cpu,
                settings,
                now_s,
                busy=seen.busy,
                act=settings.balance_cpu,
            )
            moves, self._cpu = outcome.moves, outcome.state
            standings = {
                vmid: Standing(*standing.rate[:2], standing.due, standing.lack)
                for vmid, standing in outcome.standings.items()
            }
            self._last = replace(self._last, standings=standings)
        memory = self._coordinate(node, ledger, sightings, now_s)
        result = self._apply(node, ledger, sightings, moves, memory, interval.uses)
        _forget_told(node.root)
        if self._damage:
            result.report.failed.append(self._damage)
            self._damage = ""
        self._note(result, now_s)
        return result

    @property
    def complete(self) -> bool:
        """Whether every thread that was looked for was found at the last pass."""
        return all(
            vm.vmid in self._before.vms and len(self._before.vms[vm.vmid].threads) == len(vm.tids)
            for vm in self._wanted
        )

    def _coordinate(
        self, node: Node, ledger: Ledger, sightings: Sequence[Sighting], now_s: float
    ) -> "balloon.Outcome | None":
        """The memory coordinator's answer; None where there is nobody to ask, or it is too early."""
        if now_s - self._memory_s < MEMORY_PERIOD_S:
            return None
        managed = {
            sighting.vmid: sighting
            for sighting in sightings
            if sighting.process and sighting.machine and sighting.vmid in ledger.claims
        }
        if not managed or not self._root.live:
            return None
        self._memory_s = now_s
        balances = node.settings.node.balance_memory
        excluded = guests.excluded(ledger, managed) if balances else dict.fromkeys(managed, _OFF)
        told = any(claim.balloon_mib is not None for claim in ledger.claims.values())
        idle = len(excluded) == len(managed) and not told and not guests.stranded(ledger, managed)
        if idle or not balances:
            self._memory = None
            self._last = replace(self._last, skipped=excluded, balloons_mib=NOTHING)
            return _nobodys(excluded) if told else None
        from pxsched.balance import balloon, memory

        ours = managed.keys() - excluded.keys()
        shares = self._shares(ours) if self._shares else {}
        found = guests.look(self._root, ledger, managed, excluded, shares)
        host = guests.host_memory(self._root, node, found)
        if host is None:
            return None
        outcome = memory.targets(found, host, self._memory or balloon.State(), node.settings.node, now_s)
        self._memory = outcome.state
        sizes = {guest.vmid: guest.actual_mib for guest in found if not guest.unheard}
        self._last = replace(self._last, skipped=outcome.skipped, balloons_mib=sizes)
        return outcome

    def _apply(
        self,
        node: Node,
        ledger: Ledger,
        sightings: Sequence[Sighting],
        moves: Sequence[cpu.Move],
        memory: "balloon.Outcome | None",
        uses: Mapping[int, samples.Use],
    ) -> Result:
        """Writes the answers into the ledger, and reconciles the VMs they are about."""
        loads = _loads(ledger, uses)
        sizes = _sizes(ledger, memory)
        if not moves and not loads and not sizes:
            return Result(Report())
        touched = {move.vmid for move in moves} | sizes.keys()
        with ledgers.locked(node.root) as held:
            for vmid, load in loads.items():
                if claim := _same_run(held, ledger, vmid):
                    held.claims[vmid] = replace(claim, load=load)
            for vmid, size in sizes.items():
                if claim := _same_run(held, ledger, vmid):
                    held.claims[vmid] = replace(claim, balloon_mib=size)
            made = tuple(move for move in moves if _move(held, ledger, node, move))
            if not touched:
                ledgers.save(node.root, held)
                return Result(Report())
            seen = [
                sighting
                for sighting in sightings
                if sighting.vmid in touched
                and (claim := held.claims.get(sighting.vmid))
                and not settle.blurred(claim, sighting)
            ]
            plan = settle.wanted(node, held, seen)
            report = reconcile(node.root, held, plan.settings, {sighting.vmid for sighting in seen})
        turning.run(node.root, report)
        return Result(report, made, memory.targets if memory else ())

    def _note(self, result: Result, now_s: float) -> None:
        """Keeps what `status` shows, and writes the state down when it is time."""
        self._last = replace(self._last, at_s=time.time())
        if result.lines:
            self._last = replace(self._last, acted_at_s=time.time(), acted=tuple(result.lines))
        if self._keep and not result.lines and now_s - self._saved_s < SAVE_PERIOD_S:
            return
        self._saved_s = now_s
        # Whoever makes many passes has the counters at hand; one that begins again measures a pass anew.
        before = samples.Snapshot() if self._keep else self._before
        known = Remembered(before, self._cpu, self._memory, self._last)
        with suppress(OSError):  # it costs the next pass its measurement, and nothing else
            remembered.save(self._root, known if self._before.vms else None)


def _nobodys(excluded: Mapping[int, str]) -> "balloon.Outcome":
    """No guest is ours any more: what they were told is handed over."""
    from pxsched.balance import balloon

    return balloon.Outcome((), excluded, balloon.State(), NOTHING)


def _sizes(ledger: Ledger, memory: "balloon.Outcome | None") -> dict[int, int | None]:
    """The balloon sizes that change in the ledger; None for guests that are no longer ours."""
    if memory is None:
        return {}
    sizes: dict[int, int | None] = {target.vmid: target.target_mib for target in memory.targets}
    for vmid, claim in ledger.claims.items():
        # The coordinator remembers whom it only could not hear.
        if claim.balloon_mib is not None and vmid in memory.skipped and vmid not in memory.state.guests:
            sizes[vmid] = None
    return sizes


def _forget_told(root: Root) -> None:
    """Forgets what guests were told that are gone."""
    if root.exists(BALLOONS):
        from pxsched.knobs import balloon as knob

        knob.forget_others(root, ledgers.peek(root).claims)


# What changes in the ledger.


def _loads(ledger: Ledger, uses: Mapping[int, samples.Use]) -> dict[int, float]:
    """Measured demands that placement should know of; small changes are not worth a write."""
    found = {}
    for vmid, use in uses.items():
        claim = ledger.claims.get(vmid)
        demand = round(use.total.demand, 2)
        if claim is not None and (
            claim.load is None or abs(claim.load - demand) > max(0.2, 0.25 * claim.load)
        ):
            found[vmid] = demand
    return found


def _same_run(held: Ledger, seen: Ledger, vmid: int) -> Claim | None:
    """The claim as it is now, if it is still of the VM that was looked at."""
    now, then = held.claims.get(vmid), seen.claims.get(vmid)
    return now if now is not None and then is not None and now.process == then.process else None


def _move(held: Ledger, seen: Ledger, node: Node, move: cpu.Move) -> bool:
    """Gives a VM its new home, unless it was placed anew meanwhile."""
    now = _same_run(held, seen, move.vmid)
    if now is None:
        return False
    placement = now.placement
    if move.vcpu is None:
        if placement.cpus != move.before:
            return False
        nodes = machine_of(node.topology).memory_of(move.after) or placement.nodes
        moved = claiming.moved_to(placement, move.after, nodes, move.why)
    else:
        if placement.vcpus[move.vcpu : move.vcpu + 1] != (move.before,):
            return False
        vcpus = list(placement.vcpus)
        vcpus[move.vcpu] = move.after
        moved = replace(placement, vcpus=tuple(vcpus), why=(move.why, *placement.why[:3]))
        moved = replace(moved, nodes=machine_of(node.topology).memory_of(moved.cpus) or placement.nodes)
    held.claims[move.vmid] = replace(now, placement=moved, aside=None)
    return True
