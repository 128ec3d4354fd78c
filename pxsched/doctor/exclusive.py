"""Checks of who else is on the node: those who are not placed, and what may run on dedicated CPUs."""

from collections.abc import Iterator

from pxsched.doctor.finding import Finding, Level, Subject, some
from pxsched.host import cgroup, cpulist
from pxsched.node import exclusive, others
from pxsched.node.exclusive import Exclusive, Kind, Sharer
from pxsched.report.exclusive import summary
from pxsched.settings.policy import Isolation, NodeSettings, Others

AGAIN = "it is set: see `pxsched status` for what the kernel refused, and the next pass"


def not_placed(subject: Subject) -> Iterator[Finding]:
    """VMs and containers that placement has to respect, and does not place."""
    ours = {*subject.ledger.claims, *(guest.vmid for guest in subject.enabled)}
    found = others.known(subject.root, ours).others
    if found:
        who = some([f"{other.name} on CPUs {cpulist.format(other.cpus)}" for other in found])
        text = f"not placed, and respected where they may run: {who}"
        vm = any(other.process for other in found)
        yield Finding(Level.NOTE, "others", text, "`pxsched enable VMID` places a VM" if vm else "")


def dedicated(subject: Subject) -> Iterator[Finding]:
    """Whether dedicated CPUs are their VMs' alone, by the kernel's word."""
    for vm in exclusive.check(subject.root, subject.ledger, subject.topology.isolated):
        if not vm.sharers:
            cpus = cpulist.format(vm.cpus)
            text = f"CPUs {cpus} are VM {vm.vmid}'s alone, but for the kernel's own threads"
            yield Finding(Level.OK, "dedicated CPUs", text)
        yield from _open(subject, vm)


def _open(subject: Subject, vm: Exclusive) -> Iterator[Finding]:
    for kind in Kind:
        sharers = [one for one in vm.sharers if one.kind is kind]
        if sharers:
            text = f"VM {vm.vmid} does not have its CPUs to itself: {summary(sharers)}"
            yield Finding(Level.NOTE, "dedicated CPUs", text, _remedy(subject, kind, sharers))


def _remedy(subject: Subject, kind: Kind, sharers: list[Sharer]) -> str:
    """The setting that ends it."""
    settings: NodeSettings = subject.settings.node
    if kind is Kind.INTERRUPT:
        return AGAIN if settings.device_interrupts else "device_interrupts = true in [node]"
    if kind is Kind.SLICE and cgroup.version(subject.root) is not cgroup.Version.V2:
        return "a start with cgroup v2, where `isolation` in [node] keeps them away"
    if kind is Kind.SLICE:
        return AGAIN if settings.isolation is not Isolation.OFF else 'isolation = "slices" in [node]'
    ours = {f"VM {vmid}" for vmid in subject.ledger.claims}
    if kind is Kind.VM and all(one.name in ours for one in sharers):
        return (
            "`pxsched status` says why: its policy (`vcpu`, `emulator`, `vhost`) or what the kernel refused"
        )
    return AGAIN if settings.others is Others.CONFINE else 'others = "confine" in [node]'


CHECKS = (not_placed, dedicated)
