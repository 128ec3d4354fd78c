"""One pass: look, decide who holds what, turn the knobs. The hook, the timer and the commands all do this."""

from collections.abc import Iterable, Mapping

from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import NODE
from pxsched.node import claims, views
from pxsched.node import sighting as nodes
from pxsched.node.claims import Changes
from pxsched.node.reconcile import Report, reconcile
from pxsched.node.sighting import Node, Sighting
from pxsched.plugins import registry
from pxsched.plugins.view import Setting
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import NOTHING, Value


class Pass(Value):
    """What one pass found and did. claims: as they are now, of the VMs that were looked at.

    restless: something is expected to appear soon, such as the interrupts of a device whose guest boots.
    """

    changes: Changes
    report: Report
    claims: Mapping[int, Claim] = NOTHING
    notes: tuple[str, ...] = ()
    restless: bool = False


def settle(node: Node, sightings: Iterable[Sighting], *, everybody: bool) -> Pass:
    """Brings claims and knobs up to date with the sightings, under the ledger's lock.

    everybody: the sightings are of all VMs; entries whose VM is not among them go back, too.
    Raises UserError when the ledger cannot be used.
    """
    sightings = list(sightings)
    lines = None if everybody else [NODE, *(sighting.vmid for sighting in sightings)]
    try:
        return _settle(node, sightings, lines, everybody=everybody)
    except Damaged:  # a line of others, which this pass need not have looked at
        return _settle(node, sightings, None, everybody=everybody)


def _settle(node: Node, sightings: list[Sighting], lines: list[int] | None, *, everybody: bool) -> Pass:
    """lines: those of the ledger that are checked before anything is done, None for all."""
    with ledgers.locked(node.root, lines) as ledger:
        changes, seen = decide(node, ledger, sightings)
        looked_at = ledger.claims if everybody else [vmid for vmid in seen if vmid in ledger.claims]
        unsure = {vmid for vmid in looked_at if blurred(ledger.claims[vmid], seen.get(vmid))}
        sharp = [sighting for vmid, sighting in seen.items() if vmid not in unsure]
        plan = wanted(node, ledger, sharp, memory=everybody)
        owners = _owners(ledger, seen, changes, everybody) - unsure
        report = reconcile(node.root, ledger, plan.settings, owners)
        notes = [*ledger.warnings, *(note for sighting in seen.values() for note in sighting.notes)]
        held = {vmid: ledger.claims[vmid] for vmid in seen if vmid in ledger.claims}
        return Pass(changes, report, held, (*notes, *plan.notes), plan.restless)


def blurred(claim: Claim, sighting: Sighting | None) -> bool:
    """Whether we know too little of a VM to turn its knobs, or to put them back: its configuration cannot be
    read, or a hook was there after we looked.
    """
    return sighting is None or sighting.machine is None or sighting.process != claim.process


def decide(node: Node, ledger: Ledger, sightings: list[Sighting]) -> tuple[Changes, dict[int, Sighting]]:
    """Updates the claims; VMs that must make room for dedicated ones are looked at and placed as well."""
    seen = {sighting.vmid: sighting for sighting in sightings}
    near = views.device_nodes(node, seen.values())
    changes = claims.update(node, ledger, seen.values(), near)
    for vmid in claims.displaced(ledger):
        sighting = nodes.sight(node.root, vmid, source=ledger.claims[vmid].source)
        seen[vmid] = sighting
        more = claims.update(node, ledger, [sighting], views.device_nodes(node, [sighting]))
        changes.placed += more.placed
        changes.dropped += more.dropped
        changes.refused |= more.refused
    return changes, seen


class Wanted(Value):
    """What all plugins want and have to say. restless: something of a VM is expected to appear soon."""

    settings: list[Setting]
    notes: list[str]
    restless: bool


def wanted(node: Node, ledger: Ledger, sightings: Iterable[Sighting], *, memory: bool = False) -> Wanted:
    """What is wanted for these VMs and for the node. memory: look where the VMs' memory lies, too."""
    vms = views.vm_views(node, ledger, sightings, memory=memory)
    host = views.host_view(node, ledger, vms)
    settings = list(registry.of_node(host))
    notes: list[str] = []
    for vm in vms:
        settings += registry.of_vm(vm, host)
        notes += registry.notes(vm, host)
    now_ns = ledgers.now_ns()
    return Wanted(settings, notes, any(registry.restless(vm, now_ns) for vm in vms))


def _owners(ledger: Ledger, seen: dict[int, Sighting], changes: Changes, everybody: bool) -> set[int]:
    owners = {NODE, *seen, *changes.dropped}
    return owners | ledger.journal.owners() if everybody else owners


def restore_all(root: Root) -> Report:
    """Puts back every value we hold, and forgets all claims."""
    with ledgers.locked(root) as ledger:
        ledger.claims.clear()
        return reconcile(root, ledger, (), None)
