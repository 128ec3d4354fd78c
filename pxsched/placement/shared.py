"""A home for a VM without CPUs of its own: the smallest L3 group or set of nodes that holds it, least
contended by weight and measured use, near its memory and its devices.
"""

from collections.abc import Mapping, Sequence

from pxsched.placement import explanation, memory
from pxsched.placement.kinds import Variant, variants
from pxsched.placement.machine import Machine, machine_of, mask_of, remoteness, set_of
from pxsched.placement.nodesets import Allowance, Need, Site, by_size, nearness
from pxsched.placement.occupancy import (
    UNKNOWN_LOAD,
    Occupancy,
    demand_of,
    nodes_mask,
    occupancy,
    offered,
)
from pxsched.placement.request import Holding, Host, Placement, Request, VmClass
from pxsched.placement.score import Home, HomeScore

# A VM keeps its home unless another one is better by this part: moving costs caches and memory.
HYSTERESIS = 0.1


def place_shared(host: Host, holdings: Sequence[Holding], request: Request) -> Placement:
    """A home all vCPUs float in. Raises Refused when no CPU or not enough memory is left for it."""
    machine = machine_of(host.topology)
    occupied = occupancy(machine, holdings, request, host)
    allowed = offered(machine, host, request)
    beside, everywhere = _bound(machine, request)
    pool = shared_pool(machine, occupied, allowed & beside, request.vcpus)
    if not pool:
        from pxsched.placement.refusals import no_cpu_left

        raise no_cpu_left(machine, request, allowed, beside)
    homes: list[Home] = []
    for room in memory.rooms(machine, host, request):
        homes = Homes(machine, occupied, request, room, everywhere=everywhere).all(pool)
        if homes:
            break
    if not homes:
        from pxsched.placement.refusals import memory_refusal

        raise memory_refusal(machine, host, request)
    best = min(homes, key=lambda home: home.score)
    chosen = _kept(homes, best, request) or best
    nodes = room.nodes(chosen.nodes, request.memory_mib).union(
        *(guest.host_nodes for guest in request.guest_nodes)
    )
    vcpus, rest, lines = _floating(host, holdings, occupied, request, chosen)
    why = list(explanation.shared(machine, occupied, homes, chosen, request, allowed & beside))
    if all(len(cpus) == 1 for cpus in vcpus) and chosen.mask.bit_count() > 1:
        why[0] = explanation.apart(machine, chosen, request)
    why[1:1] = lines
    why += explanation.far_memory(room, nodes)
    return Placement(request.vmid, VmClass.SHARED, vcpus, rest, nodes, tuple(why))


def _bound(machine: Machine, request: Request) -> tuple[int, bool]:
    """The CPUs beside the memory that guest nodes are bound to; and whether these are bound to different
    nodes, so that the home has to be on all of them. Raises Refused where such a node is not there.
    """
    if not request.guest_nodes:
        return machine.online, False
    from pxsched.placement import bindings

    bindings.refuse_missing(machine, request)
    wanted = [nodes for nodes in bindings.anchors(machine, request) if nodes]
    if not wanted:
        return machine.online, False
    return nodes_mask(machine, frozenset().union(*wanted)), len(set(wanted)) > 1


def _floating(
    host: Host,
    holdings: Sequence[Holding],
    occupied: Occupancy,
    request: Request,
    home: Home,
) -> tuple[tuple[frozenset[int], ...], frozenset[int], list[str]]:
    """The CPUs of each vCPU and those of all other threads: the home, if nothing is special about it; else
    what there is to say, too.
    """
    cpus = set_of(home.mask)
    vcpus: tuple[frozenset[int], ...] = (cpus,) * request.vcpus
    machine = machine_of(host.topology)
    if request.guest_nodes:
        from pxsched.placement import bindings

        vcpus = tuple(bindings.anchored(machine, request, vcpus))
    said: list[str] = []
    if len(home.nodes) > 1 and (request.guest_nodes or request.sockets > 1):
        from pxsched.placement import together

        vcpus, said = together.kept(machine, request, vcpus)
    if not home.mask & machine.isolated:
        return vcpus, cpus, said
    from pxsched.placement import isolated
    from pxsched.placement.housekeeping import emulator

    vcpus, lines = isolated.apart(machine, occupied, request, vcpus)
    rest = isolated.floating(machine, cpus)
    if not rest:
        rest, more = emulator(host, holdings, request, frozenset(home.nodes), cpus)
        lines += more
    return vcpus, rest, [*lines, *said]


def shared_pool(machine: Machine, occupied: Occupancy, allowed: int, vcpus: int) -> int:
    """CPUs nobody has for himself; those an admin pinned VMs to only where the others do not suffice."""
    dedicated = 0
    for holding, mask in occupied.owned:
        if holding.vm_class is VmClass.DEDICATED:
            dedicated |= mask
    pool = allowed & ~dedicated & ~occupied.idle
    free = pool & ~occupied.taken
    return free if free.bit_count() >= vcpus else pool


class Homes:
    """The homes that one VM could have. everywhere: only one on all nodes that have CPUs to give."""

    def __init__(
        self, machine: Machine, occupied: Occupancy, request: Request, room: memory.Room, *, everywhere: bool
    ) -> None:
        self.machine, self.occupied, self.request, self.room = machine, occupied, request, room
        self.everywhere = everywhere
        self.allowance = Allowance()
        self.load: Mapping[int, float] = {
            node: occupied.demand(cpus) + (occupied.taken & cpus).bit_count()
            for node, cpus in machine.cpus.items()
        }

    def all(self, pool: int) -> list[Home]:
        """All homes of the fewest nodes that have the memory; of too few CPUs only where none has enough."""
        request = self.request
        bound = any(guest.host_nodes for guest in request.guest_nodes)
        if bound:
            from pxsched.placement import bindings

            if bindings.short_of_memory(request, self.room):
                return []
        if self.everywhere:
            nodes = tuple(node for node in self.machine.nodes if self.machine.cpus[node] & pool)
            return [self._home(nodes, pool, (0, 0))]
        least = 0 if bound else request.memory_mib
        return [
            home
            for variant in variants(self.machine, request.prefer, pool)
            for home in self._in_variant(variant, least)
        ]

    def _in_variant(self, variant: Variant, least_mib: int) -> list[Home]:
        room = {node: (variant.mask & cpus).bit_count() for node, cpus in self.machine.cpus.items()}
        sites = [
            Site(
                node,
                count,
                self.room.most(node),
                rank=(
                    remoteness(self.machine, (node,), self.request.device_nodes),
                    node not in self.request.resident,
                    node in self.machine.bare,
                    self.load[node] / self.machine.cpus[node].bit_count(),
                ),
            )
            for node, count in room.items()
            if count
        ]
        wanted = min(self.request.vcpus, variant.mask.bit_count())
        need = Need(wanted, least_mib - self.room.besides, lambda nodes: self.room.of(nodes) >= least_mib)
        for sets in by_size(sites, need, self.machine.pair, self.allowance):
            return [
                self._home(nodes, mask, variant.rank)
                for nodes in sets
                for mask in _cuts(self.machine, nodes, variant.mask, self.request.vcpus)
            ]
        return []

    def _home(self, nodes: tuple[int, ...], mask: int, rank: tuple[int, int]) -> Home:
        machine, request = self.machine, self.request
        size = max(1, mask.bit_count())
        others = self.occupied.demand(mask, request.weight)
        whole = sum(machine.cpus[node].bit_count() for node in nodes)
        return Home(
            HomeScore(
                nodes=len(nodes),
                distance=nearness(nodes, machine.pair) + self.room.remoteness(nodes, request.memory_mib),
                short=max(0, request.vcpus - mask.bit_count()),
                devices=remoteness(machine, nodes, request.device_nodes),
                away=len(request.resident.difference(nodes)),
                groups=len(machine.groups_of(mask)),
                crowd=int(others / size / UNKNOWN_LOAD),
                bare=len(machine.bare.intersection(nodes)),
                kinds=rank,
                contention=(others + demand_of(request.load, request.vcpus)) / size,
                node_load=sum(self.load[node] for node in nodes) / whole,
                missing_mib=-self.room.of(nodes),
                order=(mask & -mask,),
            ),
            nodes,
            mask,
        )


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


def _kept(homes: Sequence[Home], best: Home, request: Request) -> Home | None:
    """The home the VM had, where it is as good or nearly so."""
    if request.previous is None:
        return None
    mask = mask_of(request.previous.cpus)
    for home in homes:
        if home.mask == mask and home.score.rules == best.score.rules:
            near = home.score.contention <= best.score.contention * (1 + HYSTERESIS)
            return home if near else None
    return None
