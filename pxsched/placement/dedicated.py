"""Exclusive CPUs for one VM: the best candidate, or a refusal that names the rule."""

from collections.abc import Sequence

from pxsched.placement import explanation, memory
from pxsched.placement.candidates import Search
from pxsched.placement.fixed import emulator
from pxsched.placement.machine import Machine, machine_of, mask_of
from pxsched.placement.occupancy import occupancy, offered
from pxsched.placement.request import Holding, Host, Placement, Refused, Request, VmClass
from pxsched.placement.score import Candidate
from pxsched.settings.policy import Smt


def place_dedicated(host: Host, holdings: Sequence[Holding], request: Request) -> Placement:
    """Exclusive CPUs, one for each vCPU. Raises Refused naming the rule and the numbers."""
    machine = machine_of(host.topology)
    occupied = occupancy(machine, holdings, request)
    allowed = offered(machine, host, request)
    pool = allowed & ~occupied.blocked
    pools = dict.fromkeys((pool & ~occupied.constrained, pool))
    for pool in pools:
        search = Search(host, request, occupied, allowed, pool)
        found = search.candidates()
        if found:
            return _answer(host, search, found, request)
    raise explanation.refusal(search, allowed)


def _answer(host: Host, search: Search, found: list[Candidate], request: Request) -> Placement:
    best = min(found, key=lambda candidate: candidate.score)
    before = search.previous(best)
    chosen, order = before or (best, search.vcpus(best))
    _leave_the_others_some(host, search, chosen)
    vcpus = tuple(frozenset((cpu,)) for cpu in order)
    own = frozenset(order)
    bound = frozenset().union(*(guest.host_nodes for guest in request.guest_nodes))
    nodes = memory.memory_nodes(search.machine, host, request, chosen.nodes) | (
        bound & host.topology.node_by_id.keys()
    )

    def other_group() -> Candidate | None:
        rest = search.usable & ~_groups_mask(search.machine, chosen.mask)
        second = Search(host, request, search.occupied, search.allowed, rest)
        return min(second.candidates(), key=lambda candidate: candidate.score, default=None)

    why = explanation.dedicated(
        search, found, chosen, order, again=before is not None, other_group=other_group
    )
    near = emulator(host, frozenset(chosen.nodes), own)
    return Placement(request.vmid, VmClass.DEDICATED, vcpus, near, nodes, why)


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
