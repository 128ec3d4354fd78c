"""The CPUs that VMs cannot have, because somebody fenced their control groups: AllowedCPUs= of `qemu.slice`
or of a VM's scope, an admin's cpuset partition.

Rules: systemd.resource-control(5) AllowedCPUs=; Documentation/admin-guide/cgroup-v2.rst: a group's tasks run
on what `cpuset.cpus.effective` says; where a group has no such file, on what the nearest group above says.

On cgroup v1 systemd has no cpusets: a VM is in the set of whoever started it, which is known once it runs.
"""

from typing import TYPE_CHECKING, NamedTuple

from pxsched.errors import UserError
from pxsched.guest.process import Process
from pxsched.host import cgroup, cpulist
from pxsched.ledger.file import Ledger
from pxsched.root import Root
from pxsched.settings.policy import Isolation

if TYPE_CHECKING:
    from pxsched.node.sighting import Node

SLICE = "qemu.slice"


class Fence(NamedTuple):
    """cpus: those inside, of which some online ones are missing. name: who set it, as a person knows it."""

    cpus: frozenset[int]
    name: str


def of_slice(root: Root) -> tuple[str, frozenset[int]] | None:
    """What all VMs may use, and which group says so; None where nothing does."""
    for group in (SLICE, ""):
        cpus = cgroup.stated_cpus(root, group)
        if cpus is not None:
            return group, cpus
    return None


def of_vm(node: "Node", ledger: Ledger, vmid: int, process: Process | None) -> Fence | None:
    """The fence around one VM, without what we confine it to ourselves; None when it may use all CPUs.

    process: that runs, in a scope which may be narrower than the slice; None before the VM's start.
    """
    said = node.slice_cpus
    own = None if process is None else _own(node.root, vmid, process)
    if own is not None and not _confined(ledger, vmid):
        said = own
    if said is None:
        return None
    group, cpus = said
    if node.topology.online <= cpus:
        return None
    if node.settings.node.isolation is Isolation.PARTITION:
        cpus |= _given_back(ledger)
        if node.topology.online <= cpus:
            return None
    return Fence(cpus, name_of(node.root, group))


def _own(root: Root, vmid: int, process: Process) -> tuple[str, frozenset[int]] | None:
    """The group that says what a running VM may use, and what that is; None where its slice says it."""
    group = cgroup.group_of(root, process.pid)
    if group is not None:
        try:
            return group, cgroup.effective_cpus(root, group)
        except UserError:
            return None  # it ended meanwhile
    cpus = cgroup.stated_cpus(root, cgroup.scope(vmid))
    return None if cpus is None else (cgroup.scope(vmid), cpus)


def _confined(ledger: Ledger, vmid: int) -> bool:
    """Whether its scope has a set of ours."""
    from pxsched.knobs.scope import DropIn, Partition

    held = ledger.journal.of((vmid,))
    return any(knob.key in held for knob in (DropIn(vmid), Partition(vmid)))


def _given_back(ledger: Ledger) -> frozenset[int]:
    """What partitions of ours take from the groups above them: the VMs' own CPUs."""
    from pxsched.knobs.scope import Partition

    kind = f"{Partition.kind}:"
    ours = (entry.wanted for key, entry in ledger.journal.items() if key.startswith(kind))
    return frozenset[int]().union(*map(cpulist.parse, ours))


def name_of(root: Root, group: str) -> str:
    """Who narrows a group: the nearest that asks for CPUs of its own, else one that took some for itself."""
    if cgroup.version(root) is cgroup.Version.V1:
        return f"the cpuset /{group}"
    while group:
        if cgroup.configured_cpus(root, group):
            return f"AllowedCPUs of {group.rpartition('/')[2]}"
        group = group.rpartition("/")[0]
    for name in root.list(cgroup.MOUNT):
        state = root.read(f"{cgroup.MOUNT}/{name}/cpuset.cpus.partition") or ""
        if state.startswith(("root", "isolated")) and "invalid" not in state:
            return f"the cpuset partition of {name}"
    return "its cgroup"
