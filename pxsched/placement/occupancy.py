"""What other VMs leave of the machine: free CPUs for exclusive use, CPUs for shared homes, and loads."""

from collections.abc import Sequence

from pxsched.placement.machine import Machine, mask_of
from pxsched.placement.request import Holding, Host, Request, VmClass
from pxsched.settings.policy import Smt
from pxsched.value import Value

EXCLUSIVE = (VmClass.DEDICATED, VmClass.PINNED)


class Float(Value):
    """VMs of one class and weight that have no CPUs of their own and may run on the same ones.

    demand: what they need there together, in CPUs.
    """

    vmids: tuple[int, ...]
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


def _floating_mask(holding: Holding) -> int:
    """All CPUs that a VM's vCPUs may use: mostly the same for each of them."""
    mask = 0
    for cpus in set(holding.vcpus):
        mask |= mask_of(cpus)
    return mask


def occupancy(machine: Machine, holdings: Sequence[Holding], request: Request) -> Occupancy:
    """What all VMs but the requesting one hold, seen with its wish about SMT siblings."""
    owned: list[tuple[Holding, int]] = []
    floats: dict[tuple[VmClass, int, int], list[tuple[int, float]]] = {}
    taken = shareable = lonely = constrained = 0
    memo: dict[int, int] = {}  # many VMs of a home share one tuple
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
        mask = memo.get(id(holding.vcpus), 0)
        if not mask:
            mask = memo[id(holding.vcpus)] = _floating_mask(holding)
        demand = demand_of(holding.load, len(holding.vcpus))
        floats.setdefault((holding.vm_class, mask, holding.weight), []).append((holding.vmid, demand))
        if holding.vm_class is VmClass.CONSTRAINED:
            constrained |= mask
    alone = taken if request.smt is not Smt.SHARE else taken & ~shareable
    return Occupancy(
        owned=tuple(owned),
        floats=tuple(
            Float(tuple(vmid for vmid, _ in vms), vm_class, mask, sum(demand for _, demand in vms), weight)
            for (vm_class, mask, weight), vms in floats.items()
        ),
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
