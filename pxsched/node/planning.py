"""What a pass would do for one VM, without doing it; and how the knobs in the journal stand now."""

from pxsched.errors import UserError
from pxsched.guest import schedstat
from pxsched.guest.process import Process
from pxsched.knobs import knob as knobs
from pxsched.knobs.knob import Gone
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import NODE, Entry
from pxsched.node import claims, fences, remarks, settle, views
from pxsched.node import sighting as nodes
from pxsched.node.sighting import Node, Sighting
from pxsched.placement.request import Refused
from pxsched.root import Root
from pxsched.value import Value

# Stands for the task that would start QEMU, in a plan for a VM that does not run.
_NOBODY = Process(0, 0)


class PlannedSetting(Value):
    """knob: its key. now: None when the knob cannot be read."""

    knob: str
    now: str | None
    want: str


class Outlook(Value):
    """Where a VM would be placed. claim: None where it is refused, for the reason `refused`. warnings: what
    else a person should know of it, beside the placement's reasons.
    """

    claim: Claim | None
    refused: str
    warnings: tuple[str, ...]


class Plan(Value):
    """enabled: whether the VM is opted in; where it is not, this is what would be done if it were."""

    claim: Claim
    settings: tuple[PlannedSetting, ...]
    warnings: tuple[str, ...]
    enabled: bool


def plan(node: Node, vmid: int) -> Plan:
    """What would be done for this VM. Raises UserError without such a VM, Refused without a place for it."""
    ledger = ledgers.peek(node.root)
    sighting, found = _look(node, ledger, vmid)
    if found.claim is None:
        raise Refused("; ".join((found.refused, *found.warnings)))
    nobody = ThreadAffinity(_NOBODY.pid, _NOBODY.start_ticks)
    settings = [
        PlannedSetting(setting.knob.key, now(node.root, setting.knob.key), setting.want)
        for setting in settle.wanted(node, ledger, [sighting]).settings
        if setting.owner in (vmid, NODE) and setting.knob != nobody
    ]
    enabled = sighting.machine is not None and sighting.machine.opted_in
    return Plan(found.claim, tuple(settings), found.warnings, enabled)


def outlook(node: Node, vmid: int) -> Outlook:
    """Where it would be placed now. Raises UserError without such a VM."""
    return _look(node, ledgers.peek(node.root), vmid)[1]


def _look(node: Node, ledger: Ledger, vmid: int) -> tuple[Sighting, Outlook]:
    """Places the VM in this copy of the ledger. Raises UserError without such a VM."""
    before = ledger.claims.get(vmid)
    source = before.source if before else ""
    sighting = nodes.sight(node.root, vmid, starter=_NOBODY, source=source, hooked=True)
    if sighting.machine is None:
        raise UserError(f"there is no VM {vmid} on node {node.name}")
    fence = fences.of_vm(node, ledger, vmid, sighting.process)
    changes = claims.update(node, ledger, [sighting], views.device_nodes(node, [sighting]))
    claim = None if vmid in changes.refused else ledger.claims.get(vmid)
    refused = changes.refused.get(vmid, "" if claim else "it ended meanwhile")
    return sighting, Outlook(claim, refused, remarks.of_vm(node, sighting, claim, refused, fence))


def now(root: Root, key: str) -> str | None:
    """A knob's value at this moment; None when it is gone or cannot be read."""
    try:
        knob = knobs.from_key(key)
        return knob.read(root) if knob.present(root) else None
    except (Gone, OSError, ValueError):
        return None


def standing(root: Root, key: str, entry: Entry) -> str | None:
    """A turned knob's value; the wanted one where the kernel merely writes it differently (masks, flags)."""
    value = now(root, key)
    try:
        return entry.wanted if value is not None and knobs.from_key(key).same(value, entry.wanted) else value
    except UserError:  # one of the two is no value, as where a bundle left words out
        return value


def run_delay(root: Root, claim: Claim) -> dict[str, int] | None:
    """Nanoseconds that the VM's threads ran and waited since they began (/proc/PID/task/TID/schedstat)."""
    if claim.process is None:
        return None
    found = schedstat.of_process(root, claim.process).values()
    return {"ran_ns": sum(ran for ran, _ in found), "waited_ns": sum(waited for _, waited in found)}
