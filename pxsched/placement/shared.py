"""A home for a VM without CPUs of its own: the smallest L3 group or set of nodes that holds it, least
contended by weight and measured use, near its memory and its devices.
"""

from collections.abc import Sequence
from itertools import combinations

from pxsched.placement import explanation, memory
from pxsched.placement.kinds import variants
from pxsched.placement.machine import Machine, machine_of, mask_of, remoteness, set_of
from pxsched.placement.occupancy import Float, Occupancy, demand_of, occupancy, offered
from pxsched.placement.request import Holding, Host, Placement, Refused, Request, VmClass
from pxsched.placement.score import Home, HomeScore

# A VM keeps its home unless another one is better by this part: moving costs caches and memory.
HYSTERESIS = 0.1


def place_shared(host: Host, holdings: Sequence[Holding], request: Request) -> Placement:
    """A home all vCPUs float in. Raises Refused when no CPU or not enough memory is left for it."""
    machine = machine_of(host.topology)
    occupied = occupancy(machine, holdings, request)
    allowed = offered(machine, host, request)
    pool = shared_pool(machine, occupied, allowed, request.vcpus)
    if not pool:
        raise Refused(
            f"no CPU is left for a shared VM: {allowed.bit_count()} may be used,"
            f" all of them dedicated to other VMs",
            hint="stop a dedicated VM, or give the VM other CPUs",
        )
    homes = _homes(machine, host, occupied, request, pool)
    if not homes:
        raise explanation.memory_refusal(machine, host, request)
    best = min(homes, key=lambda home: home.score)
    chosen = _kept(homes, best, request) or best
    cpus = set_of(chosen.mask)
    nodes = memory.memory_nodes(machine, host, request, chosen.nodes)
    why = explanation.shared(machine, occupied, homes, chosen, request)
    return Placement(request.vmid, VmClass.SHARED, (cpus,) * request.vcpus, cpus, nodes, why)


def shared_pool(machine: Machine, occupied: Occupancy, allowed: int, vcpus: int) -> int:
    """CPUs nobody has for himself; those an admin pinned VMs to only where the others do not suffice."""
    dedicated = 0
    for holding, mask in occupied.owned:
        if holding.vm_class is VmClass.DEDICATED:
            dedicated |= mask
    pool = allowed & ~dedicated & ~occupied.idle
    free = pool & ~occupied.taken
    return free if free.bit_count() >= vcpus else pool


def _homes(machine: Machine, host: Host, occupied: Occupancy, request: Request, pool: int) -> list[Home]:
    """All homes of the fewest nodes that have the memory; of too few CPUs only where none has enough."""
    free = memory.free_memory(machine, host, request)
    found: list[Home] = []
    for variant in variants(machine, request.prefer, pool):
        room = {node: (variant.mask & machine.cpus[node]).bit_count() for node in machine.nodes}
        eligible = [node for node in machine.nodes if room[node]]
        wanted = min(request.vcpus, variant.mask.bit_count())
        for count in range(1, len(eligible) + 1):
            sets = [
                nodes
                for nodes in combinations(eligible, count)
                if sum(room[node] for node in nodes) >= wanted
                and sum(free[node] for node in nodes) >= request.memory_mib
            ]
            if sets:
                found += [
                    _home(machine, occupied, request, nodes, mask, variant.rank)
                    for nodes in sets
                    for mask in _cuts(machine, nodes, variant.mask, request.vcpus)
                ]
                break
    return found


def _cuts(machine: Machine, nodes: tuple[int, ...], mask: int, vcpus: int) -> list[int]:
    """The L3 groups of one node that hold the VM; where none does, all CPUs of the nodes."""
    if len(nodes) == 1:
        cells = [cell.mask & mask for cell in machine.cells[nodes[0]]]
        holding = [cell for cell in cells if cell.bit_count() >= vcpus]
        if holding:
            return holding
    whole = 0
    for node in nodes:
        whole |= machine.cpus[node] & mask
    return [whole]


def _home(
    machine: Machine,
    occupied: Occupancy,
    request: Request,
    nodes: tuple[int, ...],
    mask: int,
    rank: tuple[int, int],
) -> Home:
    distance = machine.topology.distance
    return Home(
        HomeScore(
            nodes=len(nodes),
            distance=sum(distance(a, b) + distance(b, a) for a, b in combinations(nodes, 2)),
            short=max(0, request.vcpus - mask.bit_count()),
            devices=remoteness(machine, nodes, request.device_nodes),
            away=len(request.resident.difference(nodes)),
            groups=len(machine.groups_of(mask)),
            kinds=rank,
            contention=contention(occupied.floats, request, mask),
            order=(mask & -mask,),
        ),
        nodes,
        mask,
    )


def contention(floats: Sequence[Float], request: Request, mask: int) -> float:
    """Demand per CPU that this VM would meet on `mask`, its own included.

    Another VM's demand counts by its chance to win against this one: twice w / (w + own weight).
    """
    demand = demand_of(request.load, request.vcpus)
    for other in floats:
        inside = (other.mask & mask).bit_count()
        if inside:
            odds = 2 * other.weight / max(1, other.weight + request.weight)
            demand += other.demand * odds * inside / other.mask.bit_count()
    return demand / max(1, mask.bit_count())


def _kept(homes: Sequence[Home], best: Home, request: Request) -> Home | None:
    """The home the VM had, where it is as good or nearly so."""
    if request.previous is None:
        return None
    mask = mask_of(request.previous.cpus)
    for home in homes:
        if home.mask == mask and home.score[:7] == best.score[:7]:
            near = home.score.contention <= best.score.contention * (1 + HYSTERESIS)
            return home if near else None
    return None
