"""What other VMs leave of the machine: free CPUs for exclusive use, CPUs for shared homes, and loads."""

from collections.abc import Sequence

from pxsched.placement.machine import Machine, mask_of
from pxsched.placement.request import Holding, Host, Request, VmClass
from pxsched.settings.policy import Smt
from pxsched.value import Value

EXCLUSIVE = (VmClass.DEDICATED, VmClass.PINNED)


class Float(Value):
    """A VM without CPUs of its own: where its vCPUs may run, and what it needs there."""

    vmid: int
    vm_class: VmClass
    mask: int
    demand: float
    weight: int


class Occupancy(Value):
    """owned: VMs by the CPUs they hold exclusively. taken: the union of these.
    blocked: taken, and the siblings that another dedicated VM must not use.
    idle: siblings that must stay idle. constrained: where the admin lets VMs float.
    """

    owned: tuple[tuple[Holding, int], ...]
    floats: tuple[Float, ...]
    taken: int
    blocked: int
    idle: int
    constrained: int


# Demand assumed of a VM nobody has measured yet, in CPUs per vCPU.
UNKNOWN_LOAD = 0.5


def demand_of(load: float | None, vcpus: int) -> float:
    return UNKNOWN_LOAD * vcpus if load is None else load


def holding_mask(holding: Holding) -> int:
    """All CPUs of a VM that has its own: mostly one for each vCPU."""
    mask = 0
    for cpus in holding.vcpus:
        for cpu in cpus:
            mask |= 1 << cpu
    return mask


def occupancy(machine: Machine, holdings: Sequence[Holding], request: Request) -> Occupancy:
    """What all VMs but the requesting one hold, seen with its wish about SMT siblings."""
    owned: list[tuple[Holding, int]] = []
    floats: list[Float] = []
    taken = shareable = lonely = constrained = 0
    memo: dict[frozenset[int], int] = {}
    for holding in holdings:
        if holding.vmid == request.vmid:
            continue
        if holding.vm_class in EXCLUSIVE:
            mask = holding_mask(holding)
            owned.append((holding, mask))
            taken |= mask
            if holding.smt is Smt.SHARE:
                shareable |= mask
            if holding.smt is Smt.ISOLATE and holding.vm_class is VmClass.DEDICATED:
                lonely |= mask
            continue
        home = holding.vcpus[0] if holding.vcpus else frozenset()
        mask = memo.get(home, 0)
        if not mask:
            mask = memo[home] = mask_of(home)
        for other in holding.vcpus[1:]:
            if other is not home and other != home:
                mask |= mask_of(other)
        demand = demand_of(holding.load, len(holding.vcpus))
        floats.append(Float(holding.vmid, holding.vm_class, mask, demand, holding.weight))
        if holding.vm_class is VmClass.CONSTRAINED:
            constrained |= mask
    alone = taken if request.smt is not Smt.SHARE else taken & ~shareable
    return Occupancy(
        owned=tuple(owned),
        floats=tuple(floats),
        taken=taken,
        blocked=taken | machine.spread(alone),
        idle=machine.spread(lonely) & ~lonely,
        constrained=constrained,
    )


def offered(machine: Machine, host: Host, request: Request) -> int:
    """The CPUs that this VM may be given at all, before asking who holds them.

    Housekeeping and kernel-isolated CPUs count only where the admin lists them. Housekeeping CPUs that nobody
    listed are kept from dedicated VMs only: half of a small machine must not lie idle.
    """
    listed = request.affinity if request.cpus is None else request.cpus
    mask = machine.online
    if request.cpus is not None:
        mask &= mask_of(request.cpus)
    if request.affinity:
        mask &= mask_of(request.affinity)
    if not listed:
        kept = host.reserved if request.vm_class is VmClass.SHARED else host.housekeeping
        mask &= ~machine.isolated & ~mask_of(kept)
    if request.nodes is not None:
        mask &= nodes_mask(machine, request.nodes)
    return mask


def nodes_mask(machine: Machine, nodes: frozenset[int]) -> int:
    mask = 0
    for node in nodes:
        mask |= machine.cpus.get(node, 0)
    return mask


def owners(occupied: Occupancy, mask: int) -> list[int]:
    """The VMs that hold any of these CPUs exclusively."""
    return sorted(holding.vmid for holding, held in occupied.owned if held & mask)
