"""Checks of how this node's VMs are placed, or would be: what `plan` warns of, for all of them at once."""

from collections.abc import Iterator

from pxsched.doctor.finding import Finding, Level, Subject
from pxsched.errors import UserError
from pxsched.host import cpulist
from pxsched.node import fences, planning, remarks
from pxsched.node.planning import Outlook
from pxsched.node.sighting import Node
from pxsched.proxmox.cluster import Guest

_WARNING = "warning: "
_ISOLATED = (
    'as many CPUs in `affinity` as vCPUs, class = "dedicated", or isolcpus off the kernel\'s command line'
    " (`isolation` in [node] keeps host tasks away while VMs run)"
)


def fence(subject: Subject) -> Iterator[Finding]:
    """Whether the VMs' slice may use all CPUs."""
    node = _node(subject)
    found = fences.of_vm(node, subject.ledger, 0, None)
    if found is not None:
        inside = cpulist.format(found.cpus & subject.topology.online) or "no CPU"
        outside = cpulist.format(subject.topology.online - found.cpus)
        text = f"{found.name} lets VMs have CPUs {inside} only: {outside} are no candidates"
        remedy = "as it is meant? else `systemctl set-property qemu.slice AllowedCPUs=`, or end the partition"
        yield Finding(Level.WARN, "fence", text, remedy)


def vms(subject: Subject) -> Iterator[Finding]:
    """Each VM that is opted in: whether it has a place, and what to know of it."""
    node = _node(subject)
    placed = 0
    common = fences.of_vm(node, subject.ledger, 0, None)
    known = set(remarks.of_fence(common, node.topology))  # said once for all, above
    for guest in subject.enabled:
        try:
            found = planning.outlook(node, guest.vmid)
        except UserError as error:
            yield Finding(Level.BAD, "placement", f"VM {guest.vmid}: {error.message}", error.hint or "")
            continue
        placed += found.claim is not None
        yield from _refusal(guest, found)
        yield from _warnings(guest, found, known)
    if subject.enabled:
        text = f"{placed} of {len(subject.enabled)} opted-in VMs have a place"
        yield Finding(Level.OK, "placement", text)


def _refusal(guest: Guest, found: Outlook) -> Iterator[Finding]:
    if found.claim is None and remarks.CANNOT_START in found.refused and not guest.running:
        yield Finding(Level.BAD, "placement", f"VM {guest.vmid}: {found.refused}", _shown(guest))
    elif found.claim is None and guest.running:
        text = f"VM {guest.vmid} runs unplaced: {found.refused}"
        yield Finding(Level.WARN, "placement", text, f"`pxsched plan {guest.vmid}` once that has changed")
    elif found.claim is None:
        text = f"VM {guest.vmid} would find no place now: {found.refused}"
        yield Finding(Level.NOTE, "placement", text, "room for it, or another class in its policy")


def _warnings(guest: Guest, found: Outlook, known: set[str]) -> Iterator[Finding]:
    reasons = found.claim.placement.why if found.claim else ()
    said = [line.removeprefix(_WARNING) for line in reasons if line.startswith(_WARNING)]
    for line in dict.fromkeys((*found.warnings, *said)):
        if line in known:
            continue
        if remarks.CANNOT_START in line:
            level, remedy = Level.BAD, _shown(guest)
        else:
            level = Level.WARN if guest.running else Level.NOTE
            remedy = (
                _ISOLATED if "isolcpus" in line else f"`pxsched plan {guest.vmid}` shows what comes of it"
            )
        yield Finding(level, "placement", f"VM {guest.vmid}: {line}", remedy)


def _shown(guest: Guest) -> str:
    return f"`qm config {guest.vmid}` shows what Proxmox reads"


def _node(subject: Subject) -> Node:
    return Node(subject.root, subject.settings, subject.topology)


CHECKS = (fence, vms)
