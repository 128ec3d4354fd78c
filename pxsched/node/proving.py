"""Runs a proof: one block after the other, each in one way, and everything as it was in the end.

A switch is a trial (`node/trial.py`) and an ordinary pass over the VM and those who make room for it. Whoever
kills this process leaves a trial without its owner, which the next pass takes back.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import SystemRandom

from pxsched import child, lock
from pxsched.errors import UserError
from pxsched.guest import process
from pxsched.guest.process import Role
from pxsched.host import cpulist, memory
from pxsched.knobs.knob import Gone
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger import file as ledgers
from pxsched.node import figures, proofs, settle, trial
from pxsched.node import sighting as nodes
from pxsched.node.figures import Reader, Wakeups
from pxsched.node.trial import Trial
from pxsched.node.ways import Planned, Subject
from pxsched.proof.block import Block, order
from pxsched.proof.figure import OWN, OWN_LESS
from pxsched.proof.result import Result
from pxsched.proof.schedule import Schedule
from pxsched.root import Root
from pxsched.value import replace

LOCK = "run/pxsched/prove.lock"
# How often one looks whether all is as it should be, and samples what has to be sampled.
_PERIOD_S = 1.0
# What a block may last longer than planned, before its trial ends by itself.
_GRACE_S = 60.0


class Stopped(UserError):
    """The proof cannot go on: the VM ended or changed, or others need the CPUs."""


class Measure:
    """The user's own command: it prints a number, once a block. less: less of it is better."""

    def __init__(self, command: str, *, less: bool) -> None:
        self._command, self._figure = command, OWN_LESS if less else OWN
        self._thread: threading.Thread | None = None
        self._said: str | None = None

    def begin(self, block_s: float, way: str) -> None:
        environ = {**os.environ, "PXSCHED_BLOCK_S": f"{block_s:g}", "PXSCHED_WAY": way}

        def work() -> None:
            try:
                done = child.run(["sh", "-c", self._command], patience_s=block_s + _GRACE_S / 2, env=environ)
                self._said = done.stdout if done.returncode == 0 else None
            except (OSError, child.Late):
                self._said = None

        self._said = None
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    @property
    def works(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def figures(self) -> dict[str, float]:
        """Raises Stopped where the command printed no number."""
        words = (self._said or "").split()
        try:
            return {self._figure: float(words[-1])}
        except (IndexError, ValueError):
            raise Stopped(f"{self._command[:60]!r} printed no number") from None


@contextmanager
def alone(root: Root) -> Iterator[None]:
    """One proof at a time on a node. Raises Locked."""
    with lock.held(root, LOCK, patience_s=0):
        yield


def settled(root: Root, vmid: int) -> None:
    """A pass over the VM and those that make room for one on trial. Raises UserError."""
    node = nodes.open_node(root)
    ledger = ledgers.peek(root)
    aside = {one for one, claim in ledger.claims.items() if claim.aside is not None}
    sightings = []
    for one in sorted({vmid, *aside}):
        claim = ledger.claims.get(one)
        sightings.append(nodes.sight(root, one, source=claim.source if claim else ""))
    settle.settle(node, sightings, everybody=False)


def begin(root: Root, vm: Subject, planned: Planned, lasts_s: float, *, owned: bool) -> None:
    """Has the VM run in this way. owned: until this process ends, at the latest."""
    us = process.identify(Root(), os.getpid()) if owned else None
    until_ns = ledgers.now_ns() + int((lasts_s + _GRACE_S) * 1e9)
    trial.save(
        root, Trial(vm.vmid, planned.name, vm.process, until_ns, us, planned.overlay, planned.placement)
    )


def end(root: Root, vmid: int) -> None:
    """Everything is as before."""
    trial.remove(root)
    settled(root, vmid)


def check(root: Root, vm: Subject, planned: Planned) -> None:
    """Whether the VM really runs in this way. Raises Stopped."""
    if not process.alive(root, vm.process):
        raise Stopped(f"VM {vm.vmid} has stopped")
    node = nodes.open_node(root)
    claim = ledgers.peek(root).claims.get(vm.vmid)
    if claim is None or claim.process != vm.process:
        raise Stopped(f"VM {vm.vmid} has lost its place")
    machine = nodes.machine_of(root, vm.vmid, claim.source)
    if machine is None or node.settings.policy(vm.vmid, machine.tags) != vm.policy:
        raise Stopped(f"the settings of VM {vm.vmid} have changed")
    now = trial.load(root)
    if now is None or now.way != planned.name or now.vmid != vm.vmid:
        raise Stopped("another VM looks for a place")
    wanted = planned.placement or vm.home
    if claim.placement.vcpus != wanted.vcpus or claim.policy != replace(vm.policy, **planned.overlay):
        raise Stopped(f"{planned.name} cannot be any more: its CPUs are gone, or are another VM's own")
    vcpus = [one for one in process.threads(root, vm.process) if one.role is Role.VCPU]
    if {one.tid for one in vcpus} != set(vm.tids):
        raise Stopped(f"the vCPUs of VM {vm.vmid} have changed")
    for thread in vcpus if claim.policy.vcpu else ():
        try:
            cpus = ThreadAffinity(thread.tid, thread.start_ticks).read(root)
        except (Gone, OSError):
            continue  # the next look says what has become of it
        if not cpulist.parse(cpus) <= planned.cpus:
            raise Stopped(f"{planned.name} is not in force: a vCPU of VM {vm.vmid} may run on CPUs {cpus}")


def blank(root: Root, vm: Subject, ways: Sequence[Planned], block_s: float, settle_s: float) -> Result:
    """A proof of which nothing is known yet."""
    return Result(
        vm.vmid,
        proofs.identity_of(root, vm.vmid),
        tuple(one.name for one in ways),
        {one.name: one.place for one in ways},
        {one.name: dict(one.settings) for one in ways},
        time.time(),
        block_s,
        settle_s,
    )


def run(
    root: Root,
    vm: Subject,
    ways: Sequence[Planned],
    plan: Schedule,
    *,
    measure: Measure | None = None,
    tell: Callable[[Block, int], None] = lambda block, number: None,
) -> Result:
    """The whole proof; what it learned is kept. tell: called after each block. Raises UserError when it
    cannot begin; what stops it later is in the result.
    """
    result = blank(root, vm, ways, plan.block_s, plan.settle_s)
    by_name, lot = {one.name: one for one in ways}, SystemRandom()
    blocks: list[Block] = []
    reader = Reader(root, vm.vmid, vm.process, vm.tids)
    stopped = ""
    try:
        for number in range(plan.rounds):
            for name in order(result.ways, lot):
                blocks.append(_block(root, vm, by_name[name], plan, reader, measure, number))
                tell(blocks[-1], len(blocks))
    except Stopped as reason:
        stopped = str(reason)
    finally:
        reader.close()
        end(root, vm.vmid)
        result = replace(result, blocks=tuple(blocks), absent=reader.absent, stopped=stopped)
        if blocks:
            proofs.save(root, result)
    return result


def _block(
    root: Root,
    vm: Subject,
    planned: Planned,
    plan: Schedule,
    reader: Reader,
    measure: Measure | None,
    number: int,
) -> Block:
    begin(root, vm, planned, plan.settle_s + plan.block_s, owned=True)
    settled(root, vm.vmid)
    check(root, vm, planned)
    _wait(root, vm, plan.settle_s)
    topology = nodes.open_node(root).topology
    wakeups = Wakeups(planned.cpus)
    began_s, before = time.time(), reader.read(planned.cpus)
    if measure is not None:
        measure.begin(plan.block_s, planned.name)
    _wait(root, vm, plan.block_s, wakeups)
    while measure is not None and measure.works:
        _wait(root, vm, 0.1)
    after = reader.read(planned.cpus)
    check(root, vm, planned)
    found = figures.between(before, after, len(planned.cpus)) | wakeups.figures
    by_node = (
        memory.of_vm(root, vm.vmid, vm.process.pid, hugepages=False) if len(topology.nodes) > 1 else None
    )
    far = figures.far_percent(by_node, planned.cpus, topology)
    if far is not None:
        found["far_memory"] = far
    if measure is not None:
        found |= measure.figures()
    return Block(number, planned.name, began_s, (after.at_ns - before.at_ns) / 1e9, found)


def _wait(root: Root, vm: Subject, lasts_s: float, wakeups: Wakeups | None = None) -> None:
    """Waits, and looks meanwhile whether the VM lives and the trial is on. Raises Stopped."""
    until_s = time.monotonic() + lasts_s
    while (left_s := until_s - time.monotonic()) > 0:
        if wakeups is not None:
            wakeups.sample()
        time.sleep(min(_PERIOD_S, max(0.0, left_s)))
        if not process.alive(root, vm.process):
            raise Stopped(f"VM {vm.vmid} has stopped")
        if not root.exists(trial.FILE):
            raise Stopped("another VM looks for a place")
