"""Checks of balloons: whose they are, whom nobody serves, and which guests say nothing of their memory."""

from collections.abc import Iterator

from pxsched.chain import handback
from pxsched.doctor.finding import Finding, Level, Subject, vms
from pxsched.guest.balloon import Silence
from pxsched.node import remembered
from pxsched.node.guests import pinned
from pxsched.proxmox import failures
from pxsched.proxmox.cluster import Guest

AREA = "balloons"
_GIVE_BACK = "or give the balloon back: qm set VMID --delete shares"
_REMEDIES = {
    Silence.NO_DRIVER: f"load virtio_balloon in the guest, {_GIVE_BACK}",
    Silence.NO_STATISTICS: f"on Windows install the balloon service (blnsvr.exe -i); {_GIVE_BACK}",
    Silence.STALE: f"is the guest paused, hung, or its balloon service stopped? {_GIVE_BACK}",
}


def contested(subject: Subject) -> Iterator[Finding]:
    """Proxmox's own controller moves balloons that have a minimum and shares; two would fight."""
    here = [guest for guest in _with_minimum(subject) if subject.machines[guest.vmid].shares]
    served = [guest for guest in here if not pinned(subject.machines[guest.vmid])]
    if served:
        text = f"Proxmox moves the balloons of VMs {vms(served)}; we leave them alone"
        remedy = "`pxsched enable VMID --balloon` (shares: 0) gives them to us"
        yield Finding(Level.NOTE, AREA, text, remedy if subject.settings.node.balance_memory else "")
    for guest in here:
        if reason := pinned(subject.machines[guest.vmid]):
            text = f"Proxmox moves the balloon of VM {guest.vmid}; we cannot serve it: {reason}"
            yield Finding(Level.NOTE, AREA, text)


def stranded(subject: Subject) -> Iterator[Finding]:
    """VMs that were taken from Proxmox and got a device or huge pages later."""
    failed = failures.load(subject.root, handback.FAILED)
    for guest in _with_minimum(subject):
        machine = subject.machines[guest.vmid]
        if machine.shares or not (reason := pinned(machine)):
            continue
        text = f"VM {guest.vmid} has `shares: 0`, but {reason}"
        remedy = f"qm set {guest.vmid} --delete shares gives its balloon to Proxmox"
        if guest.vmid in failed:
            text += f"; it cannot be given back to Proxmox: {failed[guest.vmid].why}"
            yield Finding(Level.WARN, AREA, text, f"the timer tries again; or {remedy}")
        elif handback.remembered(subject.root, guest) is not None:
            yield Finding(Level.NOTE, AREA, text, "the timer gives its balloon back to Proxmox while it runs")
        else:
            gets = ": it gets all its memory and keeps it" if subject.settings.node.balance_memory else ""
            yield Finding(Level.WARN, AREA, text + gets, remedy)


def idle(subject: Subject) -> Iterator[Finding]:
    """VMs that Proxmox leaves to us, and that we were told to leave alone."""
    balances = subject.settings.node.balance_memory
    for reason, found in (
        ("`balance_memory` is false", [] if balances else _with_minimum(subject)),
        ("their policy says `balloon = false`", _with_minimum(subject, ours=False)),
    ):
        idle = [guest for guest in found if subject.machines[guest.vmid].shares == 0]
        if idle:
            text = f"nobody moves the balloons of VMs {vms(idle)}: they have `shares: 0`, and {reason}"
            yield Finding(Level.WARN, AREA, text, "qm set VMID --delete shares gives them to Proxmox")


def silent(subject: Subject) -> Iterator[Finding]:
    """Guests that gave no statistics at the last pass."""
    known = remembered.last(subject.root).skipped
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
    if found and subject.settings.node.balance_memory:
        text = f"VMs {vms(found)} are to have a balloon minimum by their policy and have none"
        yield Finding(Level.NOTE, AREA, text, "`pxsched enable VMID --balloon` sets it")


def _with_minimum(subject: Subject, *, ours: bool = True) -> list[Guest]:
    """The VMs whose balloon there is something to move of, and that the policy lets us move, or does not."""
    return [
        guest
        for guest in subject.enabled
        if 0 < (subject.machines[guest.vmid].balloon_mib or 0) < subject.machines[guest.vmid].memory_mib
        and subject.settings.policy(guest.vmid, guest.tags).balloon == ours
    ]


CHECKS = (contested, stranded, idle, silent, whole)
