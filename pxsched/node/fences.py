"""The CPUs that VMs cannot have, because somebody fenced their control groups: AllowedCPUs= of `qemu.slice`
or of a VM's scope, an admin's cpuset partition.

Rules: systemd.resource-control(5) AllowedCPUs=; Documentation/admin-guide/cgroup-v2.rst: a group's tasks run
on what `cpuset.cpus.effective` says; where a group has no such file, on what the nearest group above says.

On cgroup v1 systemd has no cpusets: a VM is in the set of whoever started it, which is known once it runs.
"""

from typing import TYPE_CHECKING

from pxsched.errors import UserError
from pxsched.guest.process import Process
from pxsched.host import cgroup, cpulist
from pxsched.ledger.file import Ledger
from pxsched.root import Root
from pxsched.settings.policy import Isolation
from pxsched.value import Value

if TYPE_CHECKING:
    from pxsched.node.sighting import Node

SLICE = "qemu.slice"


class Fence(Value):
    """cpus: those inside, of which some online ones are missing. name: who set it, as a person knows it."""

    cpus: frozenset[int]
    name: str


# A group, and the CPUs that it says its tasks may use.
Stated = tuple[str, frozenset[int]]


def of_slice(root: Root) -> Stated | None:
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
    said = around(node, ledger, vmid, process)
    return None if said is None else Fence(said[1], name_of(node.root, said[0]))


def around(node: "Node", ledger: Ledger, vmid: int, process: Process | None) -> Stated | None:
    """The group that fences a VM, and its CPUs; as `of_vm`."""
    said = node.slice_cpus
    if process is not None:
        said = _own(node, ledger, vmid, process) or said
    if said is None:
        return None
    group, cpus = said
    if node.topology.online <= cpus:
        return None
    if node.settings.node.isolation is Isolation.PARTITION:
        cpus |= _given_back(ledger)
        if node.topology.online <= cpus:
            return None
    return group, cpus


def _own(node: "Node", ledger: Ledger, vmid: int, process: Process) -> Stated | None:
    """What the group of a running VM says; None where its slice says it, and while that is what we chose."""
    if vmid not in node.scope_cpus:
        said = _stated(node, vmid, process)
        node.scope_cpus[vmid] = said if said and not _confined(ledger, vmid) else None
    return node.scope_cpus[vmid]


def _stated(node: "Node", vmid: int, process: Process) -> Stated | None:
    group = cgroup.scope(vmid)
    if node.cgroups is not cgroup.Version.V1:
        cpus = cgroup.stated_cpus(node.root, group)
        return None if cpus is None else (group, cpus)
    try:
        found = cgroup.group_of(node.root, process.pid)
        return None if found is None else (found, cgroup.effective_cpus(node.root, found))
    except UserError:
        return None  # it ended meanwhile


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
