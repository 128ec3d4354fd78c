"""Checks of balloons: whose they are, whom nobody serves, and which guests say nothing of their memory."""

from collections.abc import Iterator

from pxsched.doctor.finding import Finding, Level, Subject, vms
from pxsched.guest.balloon import Silence
from pxsched.node import balancing
from pxsched.node.guests import pinned
from pxsched.proxmox.cluster import Guest

AREA = "balloons"
_GIVE_BACK = "or give the balloon back: qm set VMID --delete shares"
_REMEDIES = {
    Silence.NO_DRIVER: f"load virtio_balloon in the guest, {_GIVE_BACK}",
    Silence.NO_STATISTICS: f"on Windows install the balloon service (blnsvr.exe -i); {_GIVE_BACK}",
    Silence.STALE: f"is the guest hung, or its balloon service stopped? {_GIVE_BACK}",
}


def contested(subject: Subject) -> Iterator[Finding]:
    """Proxmox's own controller moves balloons that have a minimum and shares; two would fight."""
    here = [guest for guest in _with_minimum(subject) if subject.machines[guest.vmid].shares]
    served = [guest for guest in here if not pinned(subject.machines[guest.vmid])]
    if served:
        text = f"Proxmox moves the balloons of VMs {vms(served)}; we leave them alone"
        yield Finding(Level.NOTE, AREA, text, "`pxsched enable VMID --balloon` (shares: 0) gives them to us")


def stranded(subject: Subject) -> Iterator[Finding]:
    """VMs that were taken from Proxmox and got a device or huge pages later."""
    for guest in _with_minimum(subject):
        machine = subject.machines[guest.vmid]
        if machine.shares == 0 and (reason := pinned(machine)):
            text = f"VM {guest.vmid} has `shares: 0`, but {reason}: it gets all its memory and keeps it"
            yield Finding(Level.WARN, AREA, text, f"qm set {guest.vmid} --delete shares, from its next start")


def silent(subject: Subject) -> Iterator[Finding]:
    """Guests that gave no statistics at the last pass."""
    known = balancing.last(subject.root).skipped
    for silence, remedy in _REMEDIES.items():
        said = [(guest, known.get(guest.vmid, "")) for guest in subject.enabled]
        found = [guest for guest, why in said if why.startswith(silence.value)]
        if found:
            yield Finding(Level.WARN, AREA, f"VMs {vms(found)} give no statistics: {silence.value}", remedy)


def whole(subject: Subject) -> Iterator[Finding]:
    """VMs for which the policy wants a minimum that they have not."""
    found = []
    for guest in subject.enabled:
        machine, policy = subject.machines[guest.vmid], subject.settings.policy(guest.vmid, guest.tags)
        unset = machine.balloon_mib is None or machine.balloon_mib >= machine.memory_mib
        if unset and policy.balloon and policy.balloon_minimum_percent and not pinned(machine):
            found.append(guest)
    if found:
        text = f"VMs {vms(found)} are to have a balloon minimum by their policy and have none"
        yield Finding(Level.NOTE, AREA, text, "`pxsched enable VMID --balloon` sets it")


def _with_minimum(subject: Subject) -> list[Guest]:
    """The VMs whose balloon there is something to move of, where the policy lets us."""
    return [
        guest
        for guest in subject.enabled
        if 0 < (subject.machines[guest.vmid].balloon_mib or 0) < subject.machines[guest.vmid].memory_mib
        and subject.settings.policy(guest.vmid, guest.tags).balloon
    ]


CHECKS = (contested, stranded, silent, whole)
