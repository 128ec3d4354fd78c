"""What placement is asked, what it must respect, and what it answers. Plain values; no I/O.

CPU sets are frozensets of logical CPU ids; memory is in MiB; loads are in CPUs' worth of demand.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from pxsched.errors import UserError
from pxsched.guest.config import GuestNode as GuestNode
from pxsched.host.topology import Topology
from pxsched.settings.policy import FarMemory, Prefer, Smt
from pxsched.value import NOTHING, Value


class VmClass(StrEnum):
    """How a VM's vCPU threads are bound."""

    PINNED = "pinned"
    CONSTRAINED = "constrained"
    DEDICATED = "dedicated"
    SHARED = "shared"


# Whose CPUs are his own.
EXCLUSIVE = (VmClass.PINNED, VmClass.DEDICATED)


class Placement(Value):
    """Where a VM belongs. vcpus[i]: the CPUs that vCPU i may use; emulator: those of its other threads;
    nodes: where its memory belongs; why: sentences for a person, most important first.
    """

    vmid: int
    vm_class: VmClass
    vcpus: tuple[frozenset[int], ...]
    emulator: frozenset[int]
    nodes: frozenset[int]
    why: tuple[str, ...] = ()

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset().union(*self.vcpus)


class Request(Value):
    """What one VM wants.

    affinity: the admin's list in written order; empty when unset. affinity_name: where he wrote it.
    sockets, cores: the guest's topology, sockets x cores >= vcpus.
    device_nodes: NUMA nodes of its passed-through devices.
    hugepage_mib: size of the huge pages that back it; None for ordinary memory.
    weight: cpuunits. load: measured demand in CPUs, None when unknown.
    cpus, nodes: the policy's limits, None for no limit. far_memory: whether nodes without CPUs may serve it.
    fence: the CPUs that its cgroup can have, None for all; fence_name: who set it, as a person knows it.
    previous: what it had when it last ran.
    resident: nodes where its memory lies already; empty for a VM that is about to start.
    """

    vmid: int
    vcpus: int
    memory_mib: int
    vm_class: VmClass
    affinity: tuple[int, ...] = ()
    affinity_name: str = "affinity"
    sockets: int = 1
    cores: int = 1
    smt: Smt = Smt.PREFER
    prefer: Prefer = Prefer.ANY
    guest_nodes: tuple[GuestNode, ...] = ()
    device_nodes: frozenset[int] = frozenset()
    hugepage_mib: int | None = None
    weight: int = 100
    load: float | None = None
    cpus: frozenset[int] | None = None
    nodes: frozenset[int] | None = None
    far_memory: FarMemory = FarMemory.LAST
    fence: frozenset[int] | None = None
    fence_name: str = ""
    previous: Placement | None = None
    resident: frozenset[int] = frozenset()


class Holding(NamedTuple):
    """What another VM holds now. load: its measured demand in CPUs (running + waiting), None when unknown;
    memory_mib: by NUMA node.
    """

    vmid: int
    vm_class: VmClass
    vcpus: tuple[frozenset[int], ...]
    smt: Smt = Smt.PREFER
    weight: int = 100
    load: float | None = None
    memory_mib: Mapping[int, int] = NOTHING

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset().union(*self.vcpus)


class Foreign(Value):
    """Somebody on the node whom we do not place: a VM that is not opted in, or a container.

    name: as a person knows it, such as "VM 200" or "container 101". cpus: where its threads may really run.
    load: what it uses, in CPUs; None when unknown.
    """

    name: str
    cpus: frozenset[int]
    load: float | None = None


class Host(Value):
    """The machine as placement sees it.

    housekeeping: CPUs for host tasks and emulator threads, never dedicated to a VM.
    reserved: those of them that the admin listed: shared VMs keep off them as well.
    free_mib: memory available to new VMs by node; a node that is missing is not limited.
    free_hugepages_mib: free huge page memory by (node, page size in MiB).
    foreign: who else is there. busy: by CPU, the part of its time (0 to 1) that nobody we know of uses: host
    tasks, storage daemons; a CPU that is missing is idle, or was not looked at.
    """

    topology: Topology
    housekeeping: frozenset[int] = frozenset()
    reserved: frozenset[int] = frozenset()
    free_mib: Mapping[int, int] = NOTHING
    free_hugepages_mib: Mapping[tuple[int, int], int] = NOTHING
    foreign: tuple[Foreign, ...] = ()
    busy: Mapping[int, float] = NOTHING


class Refused(UserError):
    """The request cannot be met; the message names the rule and the numbers."""
