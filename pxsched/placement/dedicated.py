"""Exclusive CPUs for one VM: the best candidate, or a refusal that names the rule."""

from collections.abc import Sequence

from pxsched.placement import bindings, explanation, refusals
from pxsched.placement.candidates import Search
from pxsched.placement.housekeeping import emulator
from pxsched.placement.machine import Machine, machine_of, mask_of
from pxsched.placement.nodesets import Allowance
from pxsched.placement.occupancy import Occupancy, occupancy, offered
from pxsched.placement.request import Holding, Host, Placement, Refused, Request, VmClass
from pxsched.placement.score import Candidate
from pxsched.settings.policy import Smt


def place_dedicated(host: Host, holdings: Sequence[Holding], request: Request) -> Placement:
    """Exclusive CPUs, one for each vCPU. Raises Refused naming the rule and the numbers."""
    machine = machine_of(host.topology)
    bindings.refuse_missing(machine, request)
    occupied = occupancy(machine, holdings, request, host)
    allowed = offered(machine, host, request)
    free = allowed & ~occupied.blocked
    allowance = Allowance()
    for pool, shunned in _pools(machine, occupied, free, request):
        search = Search(host, request, occupied, allowed, pool, allowance, shunned)
        found = search.candidates()
        if found:
            return _answer(host, holdings, search, found, request)
    raise refusals.refusal(search, allowed)


def _pools(machine: Machine, occupied: Occupancy, free: int, request: Request) -> list[tuple[int, int]]:
    """The CPUs to choose from, and of these the ones to take as few of as can be.

    First without those that others cannot leave: where the admin lets VMs float, and where somebody is
    confined whom nobody moves, at best without the siblings of these CPUs. Who may run wherever this VM may
    is confined only in the beginning.
    """
    fence = machine.online if request.fence is None else mask_of(request.fence)
    confined = occupied.confined(machine.online)
    kept = occupied.confined(machine.online & ~machine.isolated & fence)
    fixed = (machine.spread(confined), confined, machine.spread(kept), kept)
    pools = [free & ~held & ~occupied.constrained for held in fixed]
    pools += [free & ~confined, free & ~kept, free]
    return [(pool, pool & (kept | occupied.constrained)) for pool in dict.fromkeys(pools)]


def _answer(
    host: Host, holdings: Sequence[Holding], search: Search, found: list[Candidate], request: Request
) -> Placement:
    best = min(found, key=lambda candidate: candidate.score)
    before = search.previous(best)
    chosen, order = before or (best, search.vcpus(best))
    _leave_the_others_some(host, search, chosen)
    vcpus = tuple(frozenset((cpu,)) for cpu in order)
    own = frozenset(order)
    bound = frozenset().union(*(guest.host_nodes for guest in request.guest_nodes))
    nodes = search.room.nodes(chosen.nodes, request.memory_mib) | (bound & host.topology.node_by_id.keys())

    def other_group() -> Candidate | None:
        rest = search.usable & ~_groups_mask(search.machine, chosen.mask)
        second = Search(
            host, request, search.occupied, search.allowed, rest, search.allowance, search.shunned
        )
        return min(second.candidates(), key=lambda candidate: candidate.score, default=None)

    why = explanation.dedicated(
        search, found, chosen, order, again=before is not None, other_group=other_group
    )
    near, lines = emulator(host, holdings, request, frozenset(chosen.nodes), own)
    lines += explanation.far_memory(search.room, nodes)
    return Placement(request.vmid, VmClass.DEDICATED, vcpus, near, nodes, (*why, *lines))


def _groups_mask(machine: Machine, mask: int) -> int:
    """All CPUs of the L3 groups that these are in."""
    whole = 0
    for group in machine.groups_of(mask):
        whole |= machine.whole_group[group]
    return whole


def _leave_the_others_some(host: Host, search: Search, chosen: Candidate) -> None:
    """Raises Refused when shared VMs would have no CPU left."""
    machine = search.machine
    homeless = [
        vmid for other in search.occupied.floats if other.vm_class is VmClass.SHARED for vmid in other.vmids
    ]
    taken = machine.spread(chosen.mask) if search.request.smt is Smt.ISOLATE else chosen.mask
    open_ = machine.online & ~machine.isolated & ~mask_of(host.reserved)
    dedicated = 0
    for holding, mask in search.occupied.owned:
        if holding.vm_class is VmClass.DEDICATED:
            dedicated |= mask
    left = open_ & ~dedicated & ~search.occupied.idle
    if homeless and not left & ~taken:
        raise Refused(
            f"needs {chosen.mask.bit_count()} exclusive CPUs, which would leave none of the"
            f" {left.bit_count()} free ones to shared VM{'s' * (len(homeless) > 1)}"
            f" {', '.join(map(str, sorted(homeless)[:5]))}",
            hint="stop a VM, or ask for fewer CPUs",
        )
