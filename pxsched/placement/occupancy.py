"""What other VMs leave of the machine: free CPUs for exclusive use, CPUs for shared homes, and loads."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pxsched.placement.machine import Machine, mask_of
from pxsched.placement.request import EXCLUSIVE, Holding, Host, Request, VmClass
from pxsched.settings.policy import Smt
from pxsched.value import NOTHING, Value


class Float(Value):
    """VMs of one class and weight that have no CPUs of their own and may run on the same ones.

    demand: what they need there together, in CPUs.
    """

    vmids: tuple[int, ...]
    vm_class: VmClass
    mask: int
    demand: float
    weight: int


class Outsiders(NamedTuple):
    """Those on the node whom we do not place and who may run on the same CPUs.

    demand: what they use there together, in CPUs.
    """

    names: tuple[str, ...]
    mask: int
    demand: float


class Occupancy(Value):
    """owned: VMs by the CPUs they hold exclusively. taken: the union of these.
    blocked: taken, and the siblings that another dedicated VM must not use.
    idle: siblings that must stay idle. constrained: where the admin lets VMs float.
    outsiders: who else is there. busy: by CPU, the part of its time that nobody we know of uses.
    """

    owned: tuple[tuple[Holding, int], ...]
    floats: tuple[Float, ...]
    taken: int
    blocked: int
    idle: int
    constrained: int
    outsiders: tuple[Outsiders, ...] = ()
    busy: Mapping[int, float] = NOTHING

    def confined(self, everywhere: int) -> int:
        """The CPUs of those who cannot run everywhere, and whom we do not place."""
        mask = 0
        for others in self.outsiders:
            if everywhere & ~others.mask:
                mask |= others.mask
        return mask

    def confined_to(self, mask: int, everywhere: int) -> list[str]:
        """Those of them who can run on any CPU of the mask, by name."""
        return [
            name
            for others in self.outsiders
            if everywhere & ~others.mask and others.mask & mask
            for name in others.names
        ]

    def demand(self, mask: int, weight: int | None = None) -> float:
        """What others want of these CPUs, in CPUs. Another VM's demand counts by its chance to win against a
        VM of this weight, twice w / (w + weight); plainly without one.
        """
        total = 0.0
        for other in self.floats:
            inside = (other.mask & mask).bit_count()
            if inside:
                odds = 1.0 if weight is None else 2 * other.weight / max(1, other.weight + weight)
                total += other.demand * odds * inside / other.mask.bit_count()
        for others in self.outsiders:
            inside = (others.mask & mask).bit_count()
            if inside:
                total += others.demand * inside / others.mask.bit_count()
        if self.busy:
            total += sum(part for cpu, part in self.busy.items() if mask >> cpu & 1)
        return total


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


def _outsiders(machine: Machine, host: Host) -> tuple[Outsiders, ...]:
    """Those with the same CPUs together. Who may run anywhere and was not measured changes no comparison."""
    found: dict[int, tuple[list[str], float]] = {}
    for other in host.foreign:
        mask = mask_of(other.cpus) & machine.online
        if not mask:
            continue
        load = other.load
        if load is None:
            load = 0.0 if mask == machine.online else UNKNOWN_LOAD * mask.bit_count()
        names, demand = found.get(mask, ([], 0.0))
        found[mask] = ([*names, other.name], demand + load)
    return tuple(Outsiders(tuple(names), mask, demand) for mask, (names, demand) in found.items())


def occupancy(machine: Machine, holdings: Sequence[Holding], request: Request, host: Host) -> Occupancy:
    """What all but the requesting VM hold, seen with its wish about SMT siblings."""
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
        outsiders=_outsiders(machine, host),
        busy=host.busy,
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
    if request.fence is not None:
        mask &= mask_of(request.fence)
    return mask


def nodes_mask(machine: Machine, nodes: frozenset[int]) -> int:
    mask = 0
    for node in nodes:
        mask |= machine.cpus.get(node, 0)
    return mask


def owners(occupied: Occupancy, mask: int) -> list[int]:
    """The VMs that hold any of these CPUs exclusively."""
    return sorted(holding.vmid for holding, held in occupied.owned if held & mask)
