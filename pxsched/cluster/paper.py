"""One node of the cluster on paper: VMs come and go, and what is left is what placement is shown. Pure.

What is not known to become free does not: of an ordinary VM that leaves only the memory counts that the
kernel counted, while one that comes needs all that it is configured with.
"""

from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from pxsched.cluster.publication import Publication, Stranger, Vm
from pxsched.placement.defrag import Span
from pxsched.placement.machine import Machine, machine_of, mask_of
from pxsched.placement.memory import divide, free_memory
from pxsched.placement.occupancy import Occupancy, demand_of, occupancy
from pxsched.placement.request import EXCLUSIVE, Foreign, Holding, Host, Placement, Request, VmClass
from pxsched.placement.search import place, rehome
from pxsched.value import NOTHING, Value, replace

ANY_SIZE = 0  # as huge pages of any size are counted
NOBODY = Request(0, 1, 0, VmClass.SHARED)


class Tenant(NamedTuple):
    """A VM with a place. leaves_mib: the memory that becomes free by NUMA node when it goes, in huge pages of
    hugepage_mib, None for ordinary ones.
    """

    held: Holding
    nodes: frozenset[int]
    leaves_mib: Mapping[int, int]
    hugepage_mib: int | None = None


class Paper(Value):
    """host: with what is free now, and without strangers. All three of the others by VMID."""

    name: str
    host: Host
    tenants: Mapping[int, Tenant]
    strangers: Mapping[int, Stranger]
    fence: tuple[frozenset[int], str] | None = None

    @property
    def machine(self) -> Machine:
        return machine_of(self.host.topology)

    @property
    def holdings(self) -> list[Holding]:
        return [tenant.held for tenant in self.tenants.values()]

    def shown(self) -> Host:
        """The host as placement is shown it."""
        strangers = self.strangers.values()
        return replace(self.host, foreign=tuple(Foreign(one.name, one.cpus, one.load) for one in strangers))

    def place(self, request: Request) -> Placement:
        """Where the VM would go if it came now. Raises Refused."""
        return place(self.shown(), self.holdings, self._fenced(request))

    def _fenced(self, request: Request) -> Request:
        if self.fence is None:
            return request
        return replace(request, fence=self.fence[0], fence_name=self.fence[1])

    def without(self, vmid: int) -> "Paper":
        """After the VM has left."""
        if vmid in self.strangers:
            gone = self.strangers[vmid]
            left = {key: one for key, one in self.strangers.items() if key != vmid}
            return replace(self, strangers=left, host=freed(self.host, gone.resident_mib, None))
        tenant = self.tenants[vmid]
        host = freed(self.host, tenant.leaves_mib, tenant.hugepage_mib)
        rest = {key: one for key, one in self.tenants.items() if key != vmid}
        return replace(self, tenants=rest, host=host)

    def having(self, request: Request, placement: Placement) -> "Paper":
        """After the VM has come."""
        request = self._fenced(request)
        free = free_memory(self.machine, self.host, request)
        share_mib = divide(request.memory_mib, placement.nodes, free)
        held = Holding(
            request.vmid, placement.vm_class, placement.vcpus, request.smt, request.weight, request.load
        )
        tenant = Tenant(held, placement.nodes, share_mib, request.hugepage_mib)
        host = used(self.host, share_mib, request.hugepage_mib)
        after = replace(self, tenants={**self.tenants, request.vmid: tenant}, host=host)
        return after._with_room() if placement.vm_class is VmClass.DEDICATED else after

    def _with_room(self) -> "Paper":
        """Shared VMs leave CPUs that somebody has to himself now, as they do on the node."""
        empty = replace(self.shown(), free_mib=NOTHING, free_hugepages_mib=NOTHING)
        tenants = dict(self.tenants)
        for vmid, tenant in sorted(self.tenants.items()):
            held = tenant.held
            before = Placement(vmid, held.vm_class, held.vcpus, held.cpus, tenant.nodes)
            wish = Request(
                vmid, len(held.vcpus), 0, held.vm_class, weight=held.weight, load=held.load,
                previous=before, resident=tenant.nodes,
            )  # fmt: skip
            home = rehome(empty, [one.held for one in tenants.values()], self._fenced(wish))
            if home is not None:
                tenants[vmid] = tenant._replace(held=held._replace(vcpus=home.vcpus))
        return replace(self, tenants=tenants)

    @cached_property
    def around(self) -> Occupancy:
        """Everybody who is there."""
        return occupancy(self.machine, self.holdings, NOBODY, self.shown())

    @cached_property
    def demand(self) -> float:
        """What is wanted of the node, in CPUs: what VMs own counts as wanted whole."""
        floats = sum((held.load or 0.0) for held in self.holdings if not owns(held))
        strangers = sum(one.load or 0.0 for one in self.strangers.values())
        return self.around.taken.bit_count() + floats + strangers + sum(self.host.busy.values())

    def contention(self, vm: Holding | Placement, load: float | None) -> float:
        """What is wanted of the VM's CPUs in all, its own demand included, in CPUs for each of them. vm: one
        that is there, or would be.
        """
        mask = mask_of(vm.cpus)
        here = self.tenants.get(vm.vmid)
        there = here is not None and here.held is vm
        around = self.around
        if here is not None and not there:
            request = replace(NOBODY, vmid=vm.vmid)
            around = occupancy(self.machine, self.holdings, request, self.shown())
        wanted = around.demand(mask) + (0.0 if there else demand_of(load, len(vm.vcpus)))
        if around.taken & mask:
            owners = [held for held, own in around.owned if own & mask]
            wanted += sum(demand_of(held.load, len(held.vcpus)) for held in owners)
        return wanted / max(1, len(vm.cpus))


def of(said: Publication, hugepages_mib: Mapping[int, int] | None = None) -> Paper:
    """The node as it published itself. hugepages_mib: the page size of the VMs that have huge pages."""
    sizes = hugepages_mib or {}
    return Paper(
        said.node,
        said.host,
        {vm.held.vmid: tenant_of(vm, sizes.get(vm.held.vmid)) for vm in said.vms},
        {one.vmid: one for one in said.strangers},
        said.fence,
    )


def tenant_of(vm: Vm, hugepage_mib: int | None) -> Tenant:
    """Huge pages are there from the start, and are not counted by the kernel's control groups."""
    leaves = vm.resident_mib
    if hugepage_mib is not None:
        leaves = dict.fromkeys(vm.nodes, vm.memory_mib // max(1, len(vm.nodes)))
    return Tenant(vm.held, vm.nodes, leaves, hugepage_mib)


# Memory. Proxmox makes huge pages of free memory when a VM starts, so each size counts both: what its pool
# has, and what could be made.


def used(host: Host, amounts_mib: Mapping[int, int], hugepage_mib: int | None) -> Host:
    """The host after so much was taken of each node: of a pool first, then of free memory."""
    plain, huge = dict(host.free_mib), dict(host.free_hugepages_mib)
    for node, amount in amounts_mib.items():
        if hugepage_mib is None:
            _change(plain, huge, node, -amount)
            continue
        pool = max(0, huge.get((node, hugepage_mib), 0) - plain.get(node, 0))
        made = max(0, amount - pool)
        _change(plain, huge, node, -made)
        for size in {hugepage_mib, ANY_SIZE}:
            if (node, size) in huge:
                huge[node, size] = max(0, huge[node, size] - (amount - made))
    return replace(host, free_mib=plain, free_hugepages_mib=huge)


def freed(host: Host, amounts_mib: Mapping[int, int], hugepage_mib: int | None) -> Host:
    """The host after so much was given back to each node. Huge pages stay huge."""
    plain, huge = dict(host.free_mib), dict(host.free_hugepages_mib)
    for node, amount in amounts_mib.items():
        if hugepage_mib is None:
            _change(plain, huge, node, amount)
        else:
            for size in {hugepage_mib, ANY_SIZE}:
                if (node, size) in huge:
                    huge[node, size] += amount
    return replace(host, free_mib=plain, free_hugepages_mib=huge)


def _change(plain: dict[int, int], huge: dict[tuple[int, int], int], node: int, amount: int) -> None:
    """Ordinary memory of a node becomes more or less, and with it what huge pages could be made of."""
    if node in plain:
        plain[node] = max(0, plain[node] + amount)
    for key in [key for key in huge if key[0] == node]:
        huge[key] = max(0, huge[key] + amount)


def owns(vm: Holding | Placement) -> bool:
    """Whether it has CPUs of its own."""
    return vm.vm_class in EXCLUSIVE


def least(sheet: Paper, vcpus: int) -> Span:
    """How narrow so many CPUs could be on this machine, were it empty but for housekeeping."""
    machine = sheet.machine
    usable = machine.online & ~machine.isolated & ~mask_of(sheet.host.housekeeping)
    return Span(
        _fewest([mask & usable for mask in machine.cpus.values()], vcpus),
        _fewest([mask & usable for mask in machine.whole_group.values()], vcpus),
    )


def _fewest(masks: list[int], vcpus: int) -> int:
    sizes = sorted(map(int.bit_count, masks), reverse=True)
    return next((count for count, total in enumerate(accumulate(sizes), 1) if total >= vcpus), len(sizes))
