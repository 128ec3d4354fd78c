"""One pass: look, decide who holds what, turn the knobs. The hook, the timer and the commands all do this."""

import time
from collections.abc import Iterable, Mapping

from pxsched.knobs import words
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import NODE
from pxsched.node import claims, turning, views
from pxsched.node import sighting as nodes
from pxsched.node import trial as trials
from pxsched.node.claims import Changes
from pxsched.node.reconcile import reconcile
from pxsched.node.sighting import Node, Sighting
from pxsched.node.turns import Report
from pxsched.plugins import registry
from pxsched.plugins.view import Setting
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import NOTHING, Value, replace

# Nobody holds the ledger's lock longer than a fraction of a second.
LOCK_S = 10.0
# For all that other programs turn, when everything is put back: nobody comes after that.
RESTORE_S = 30.0


class Pass(Value):
    """What one pass found and did. claims: as they are now, of the VMs that were looked at.

    restless: something is expected to appear soon, such as the interrupts of a device whose guest boots.
    """

    changes: Changes
    report: Report
    claims: Mapping[int, Claim] = NOTHING
    notes: tuple[str, ...] = ()
    restless: bool = False


def settle(
    node: Node,
    sightings: Iterable[Sighting],
    *,
    everybody: bool,
    lock_s: float = LOCK_S,
    patience_s: float = turning.PATIENCE_S,
) -> Pass:
    """Brings claims and knobs up to date with the sightings. Whatever somebody else has to answer is asked
    before the ledger is locked, or after.

    everybody: the sightings are of all VMs; entries whose VM is not among them go back, too.
    lock_s: how long the ledger's lock may take; patience_s: what other programs have to turn, all together.
    Raises UserError when the ledger cannot be used.
    """
    sightings = list(sightings)
    waits = Waits(lock_s, patience_s)
    done, crowded = _settle(node, sightings, waits, everybody=everybody)
    if crowded:
        # They have to make room for dedicated VMs: they are looked at and placed as well.
        theirs = [nodes.sight(node.root, vmid, source=source) for vmid, source in crowded.items()]
        more, _ = _settle(node, theirs, waits, everybody=False)
        done.changes.placed += more.changes.placed
        done.changes.dropped += more.changes.dropped
        done.changes.why |= more.changes.why
        done.changes.refused |= more.changes.refused
        done.report.add(more.report)
        done = replace(done, claims={**more.claims, **done.claims}, notes=(*done.notes, *more.notes))
    return done


class Waits(Value):
    """How long may be waited: for the ledger's lock, and for other programs."""

    lock_s: float
    patience_s: float


def _settle(
    node: Node, sightings: list[Sighting], waits: Waits, *, everybody: bool
) -> tuple[Pass, dict[int, str]]:
    """A pass, and the VMs whose home was dedicated to another one in it: the node each migrates from."""
    asked = _ask(node, sightings, memory=everybody)
    lines = None if everybody else [NODE, *(sighting.vmid for sighting in sightings)]
    try:
        done, crowded = _turn(node, sightings, asked, lines, waits, everybody=everybody)
    except Damaged:  # a line of others, which this pass need not have looked at
        done, crowded = _turn(node, sightings, asked, None, waits, everybody=everybody)
    turning.run(node.root, done.report, patience_s=waits.patience_s, lock_s=waits.lock_s)
    return done, crowded


def _ask(node: Node, sightings: list[Sighting], *, memory: bool) -> views.MemoryBytes:
    """What takes an answer of irqbalance's, or long to read. memory: look where the VMs' memory lies, too."""
    running = [one.machine for one in sightings if one.machine is not None and one.process is not None]
    if node.settings.node.device_interrupts or any(machine.hostpci for machine in running):
        _ = node.irqbalance
    return views.memory_bytes(node, sightings) if memory else {}


def _turn(
    node: Node,
    sightings: list[Sighting],
    memory: views.MemoryBytes,
    lines: list[int] | None,
    waits: Waits,
    *,
    everybody: bool,
) -> tuple[Pass, dict[int, str]]:
    """What is done under the lock. lines: those of the ledger that are checked before, None for all."""
    with ledgers.locked(node.root, lines, patience_s=waits.lock_s) as ledger:
        if everybody:
            ledger.journal.read()
        changes = claims.update(node, ledger, sightings, views.device_nodes(node, sightings))
        seen = {sighting.vmid: sighting for sighting in sightings}
        looked_at = ledger.claims if everybody else [vmid for vmid in seen if vmid in ledger.claims]
        unsure = {vmid for vmid in looked_at if blurred(ledger.claims[vmid], seen.get(vmid))}
        sharp = [sighting for vmid, sighting in seen.items() if vmid not in unsure]
        plan = wanted(node, ledger, sharp, memory=memory, everybody=everybody)
        owners = _owners(ledger, seen, changes, everybody) - unsure
        spared = set() if everybody else _balloons(ledger, plan, sharp)
        report = reconcile(node.root, ledger, plan.settings, owners, spared=spared)
        notes = [*ledger.warnings, *(note for sighting in seen.values() for note in sighting.notes)]
        held = {vmid: ledger.claims[vmid] for vmid in seen if vmid in ledger.claims}
        crowded = {vmid: ledger.claims[vmid].source for vmid in claims.displaced(node, ledger)}
        if changes.called_off is not None:
            trials.remove(node.root)
            if changes.called_off not in seen and changes.called_off in ledger.claims:
                crowded[changes.called_off] = ledger.claims[changes.called_off].source
        return Pass(changes, report, held, (*notes, *plan.notes), plan.restless), crowded


def _balloons(ledger: Ledger, plan: "Wanted", sightings: Iterable[Sighting]) -> set[str]:
    """The keys of running VMs' balloons: a hook, which holds its VM's lock, leaves them to the timer, as QEMU
    may not answer.
    """
    running = [sighting.vmid for sighting in sightings if sighting.process is not None]
    keys = [*ledger.journal.of(running), *(setting.knob.key for setting in plan.settings)]
    return {key for key in keys if key.startswith("balloon:")}


def blurred(claim: Claim, sighting: Sighting | None) -> bool:
    """Whether we know too little of a VM to turn its knobs, or to put them back: its configuration cannot be
    read, or a hook was there after we looked.
    """
    return sighting is None or sighting.machine is None or sighting.process != claim.process


class Wanted(Value):
    """What all plugins want and have to say. restless: something of a VM is expected to appear soon."""

    settings: list[Setting]
    notes: list[str]
    restless: bool


def wanted(
    node: Node,
    ledger: Ledger,
    sightings: Iterable[Sighting],
    *,
    memory: views.MemoryBytes = NOTHING,
    everybody: bool = False,
) -> Wanted:
    """What is wanted for these VMs and for the node. memory: where the VMs' lies, as far as it was looked.

    everybody: the sightings are of all VMs that run, ours or not; so those that are to be confined are told.
    """
    sightings = list(sightings)
    vms = views.vm_views(node, ledger, sightings, memory)
    host = views.host_view(node, ledger, vms, sightings if everybody else ())
    settings = list(registry.of_node(host))
    notes: list[str] = []
    for vm in vms:
        settings += registry.of_vm(vm, host, node.memos.threads)
        notes += registry.notes(vm, host)
    now_ns = ledgers.now_ns()
    return Wanted(settings, notes, any(registry.restless(vm, now_ns) for vm in vms))


def _owners(ledger: Ledger, seen: dict[int, Sighting], changes: Changes, everybody: bool) -> set[int]:
    owners = {NODE, *seen, *changes.dropped}
    return owners | ledger.journal.owners() if everybody else owners


def restore_all(root: Root) -> Report:
    """Puts back every value we hold, and forgets all claims; waits for what another process has in hand.

    Of a ledger that is damaged it says what is lost, and puts back what can be known without it.
    """
    deadline_s = time.monotonic() + RESTORE_S
    report = Report()
    trials.remove(root)
    while True:
        with ledgers.locked(root) as ledger:
            ledger.claims.clear()
            more = reconcile(root, ledger, (), None, insist=True)
            lent = {key for key in more.unmet if key in ledger.journal and ledger.journal[key].lease}
        turning.run(root, more, patience_s=RESTORE_S)
        report.unmet.clear()
        report.add(more)
        if not lent or time.monotonic() > deadline_s:
            report.failed += [
                f"{words.label(root, key)}: another process has it in hand" for key in sorted(lent)
            ]
            break
        time.sleep(0.1)
    if ledgers.is_damaged(root):
        from pxsched.node import salvage

        # Only then are the files mourned: whoever is killed before leaves them to the next run.
        salvaged = Report()
        salvage.run(root, salvaged)
        lost = " and ".join(ledgers.mourn(root))
        report.failed.append(f"the ledger was damaged, and is kept as {lost}")
        report.add(salvaged)
    return report
