"""What else may run on dedicated CPUs, by the kernel's word: whether "exclusive" is a fact.

Looked at are the masks of all other VMs' threads, the sets in force of containers and of the groups that host
tasks are in (systemd's slices), and where interrupts go. Not looked at are the kernel's own threads, of which
each CPU has some: no setting takes these away. CPUs isolated at boot (isolcpus) are left by host tasks, whose
masks come from the first process and lack them.
"""

import re
from collections.abc import Iterator
from enum import StrEnum

from pxsched.errors import UserError
from pxsched.guest import container, process
from pxsched.host import cgroup, cpulist, interrupts
from pxsched.ledger.file import Ledger
from pxsched.node import others
from pxsched.placement.request import VmClass
from pxsched.root import Root
from pxsched.value import Value, replace

HOST = "host tasks"


class Kind(StrEnum):
    VM = "vm"
    CONTAINER = "container"
    SLICE = "slice"
    INTERRUPT = "interrupt"


class Sharer(Value):
    """Somebody or something that may run on CPUs that a VM is to have to itself. cpus: which of them."""

    kind: Kind
    name: str
    cpus: frozenset[int]


class Exclusive(Value):
    """One dedicated VM. cpus: its own; sharers: who else may run there, nobody where they are exclusive."""

    vmid: int
    cpus: frozenset[int]
    sharers: tuple[Sharer, ...] = ()

    def open_to(self, kind: Kind) -> frozenset[int]:
        """Those of its CPUs on which something of this kind may run."""
        return frozenset[int]().union(*(one.cpus for one in self.sharers if one.kind is kind))


def check(root: Root, ledger: Ledger, isolated: frozenset[int]) -> tuple[Exclusive, ...]:
    """All dedicated VMs. isolated: by the kernel's command line. Nothing is read where there are none."""
    own = {
        vmid: claim.placement.cpus
        for vmid, claim in sorted(ledger.claims.items())
        if claim.placement.vm_class is VmClass.DEDICATED
    }
    if not own:
        return ()
    around = [*_slices(root, isolated), *_containers(root), *_interrupts(root)]
    vms = dict(_vms(root))
    return tuple(_one(vmid, cpus, around, vms) for vmid, cpus in own.items())


def _one(vmid: int, cpus: frozenset[int], around: list[Sharer], vms: dict[int, Sharer]) -> Exclusive:
    everybody = [*around, *(vm for other, vm in vms.items() if other != vmid)]
    found = (replace(one, cpus=one.cpus & cpus) for one in everybody)
    return Exclusive(vmid, cpus, tuple(one for one in found if one.cpus))


def _vms(root: Root) -> Iterator[tuple[int, Sharer]]:
    """All running VMs, ours or not, by the masks of all their threads."""
    for vmid in process.running(root):
        found = process.find(root, vmid)
        if found is None:
            continue
        masks = [process.mask(root, thread.tid) for thread in process.threads(root, found)]
        cpus = frozenset[int]().union(*(mask for mask in masks if mask is not None))
        yield vmid, Sharer(Kind.VM, f"VM {vmid}", cpus)


def _containers(root: Root) -> Iterator[Sharer]:
    for vmid in container.running(root):
        found = others.container_now(root, vmid)
        if found is not None:
            yield Sharer(Kind.CONTAINER, found.name, found.cpus)


def _slices(root: Root, isolated: frozenset[int]) -> Iterator[Sharer]:
    """The groups at the root that host tasks are in; on cgroup v1 systemd has no cpusets, and it is one."""
    version = cgroup.version(root)
    if version is None:
        return
    if version is cgroup.Version.V1:
        names = [""]
    else:
        apart = ("qemu.slice", container.GROUP)
        names = [name for name in root.list(cgroup.MOUNT) if name not in apart and _is_used(root, name)]
    for name in names:
        try:
            cpus = cgroup.effective_cpus(root, name) - isolated
        except UserError:
            continue  # ended meanwhile
        yield Sharer(Kind.SLICE, name or HOST, cpus)


def _is_used(root: Root, name: str) -> bool:
    events = root.read(f"{cgroup.MOUNT}/{name}/cgroup.events") or ""
    return re.search(r"^populated 1$", events, re.MULTILINE) is not None


def _interrupts(root: Root) -> Iterator[Sharer]:
    """The host's, where the hardware sends them; as they were asked for where it does not say."""
    for one in interrupts.of_host(root):
        effective = root.read(f"{interrupts.IRQ_DIR}/{one.number}/effective_affinity_list")
        try:
            cpus = cpulist.parse(effective or one.affinity)
        except UserError:
            continue  # ended meanwhile
        yield Sharer(Kind.INTERRUPT, f"interrupt {one.number} ({', '.join(one.names)})", cpus)
