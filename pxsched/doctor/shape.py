"""Whether guests are told the processors that they have."""

from collections.abc import Iterator

from pxsched.doctor.finding import Finding, Level, Subject, some
from pxsched.node.sighting import Node
from pxsched.shaping import advice, record


def shapes(subject: Subject) -> Iterator[Finding]:
    """What was told and is no longer so works against the guest; what was never told is a chance."""
    node = Node(subject.root, subject.settings, subject.topology)
    found = list(advice.of_claims(node, subject.ledger.claims.values()))
    for look in found:
        if look.shaped:
            text = f"VM {look.vmid}: {'; '.join(look.differences)}"
            yield Finding(
                Level.WARN, "shape", text, f"stop it, and `pxsched shape {look.vmid} --apply` or `--undo`"
            )
    if untold := [str(look.vmid) for look in found if not look.shaped]:
        text = f"guests that are not told the cores, caches or nodes they have: VMs {some(untold)}"
        yield Finding(
            Level.NOTE, "shape", text, f"`pxsched shape {untold[0]}` shows it and what would tell them"
        )


def left_behind(subject: Subject) -> Iterator[Finding]:
    """A VM that was opted out keeps what it was told; nothing places it accordingly any more."""
    enabled = {guest.vmid for guest in subject.enabled}
    here = {guest.vmid for guest in subject.here}
    for vmid in record.RECORDS.vmids(subject.root):
        if vmid in here - enabled:
            text = f"VM {vmid} is told what it had, and is not opted in any more"
            yield Finding(Level.NOTE, "shape", text, f"pxsched shape {vmid} --undo")


CHECKS = (shapes, left_behind)
