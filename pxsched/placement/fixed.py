"""Pinned and constrained VMs: the admin's `affinity`, obeyed as written, and what is odd about it said."""

from collections.abc import Sequence

from pxsched.host import cpulist
from pxsched.placement.occupancy import EXCLUSIVE
from pxsched.placement.request import Holding, Host, Placement, Refused, Request, VmClass


def place_pinned(host: Host, holdings: Sequence[Holding], request: Request) -> Placement:
    """vCPU i on entry i of the list. Raises Refused when the list does not fit the VM or the machine."""
    pins = request.affinity
    if len(pins) != request.vcpus:
        raise Refused(
            f"affinity lists {len(pins)} CPUs for {request.vcpus} vCPUs",
            hint="a pinned VM needs one entry for each vCPU",
        )
    gone = set(pins) - host.topology.online
    if gone:
        raise Refused(
            f"affinity pins to {_cpus(gone)}, offline or absent on this machine",
            hint=f"online are {cpulist.format(host.topology.online)}",
        )
    why = [f"affinity pins vCPUs 0-{request.vcpus - 1} to {cpulist.format_ordered(pins)}, in this order"]
    if request.vcpus == 1:
        why = [f"affinity pins the vCPU to CPU {pins[0]}"]
    double = {cpu for cpu in pins if pins.count(cpu) > 1}
    if double:
        why.append(f"warning: affinity lists {_cpus(double)} more than once; vCPUs will share them")
    why += _overlaps(holdings, request, frozenset(pins))
    vcpus = tuple(frozenset((cpu,)) for cpu in pins)
    why += _check_guest_nodes(host, request, vcpus)
    nodes = _nodes(host, request, frozenset(pins))
    return Placement(
        request.vmid, VmClass.PINNED, vcpus, emulator(host, nodes, frozenset(pins)), nodes, tuple(why)
    )


def place_constrained(host: Host, holdings: Sequence[Holding], request: Request) -> Placement:
    """Every vCPU on the whole list. Raises Refused when none of its CPUs is online."""
    listed = frozenset(request.affinity)
    cpus = listed & host.topology.online
    if not cpus:
        raise Refused(
            f"affinity lists only CPUs that are offline or absent: {cpulist.format(listed)}",
            hint=f"online are {cpulist.format(host.topology.online)}",
        )
    why = [f"affinity lets {request.vcpus} vCPUs float on {cpulist.format(cpus)}"]
    if listed != cpus:
        why.append(f"warning: affinity lists {_cpus(listed - cpus)}, offline or absent; left out")
    if len(cpus) < request.vcpus:
        why.append(f"warning: {request.vcpus} vCPUs share {len(cpus)} CPUs")
    why += _overlaps(holdings, request, cpus)
    vcpus = (cpus,) * request.vcpus
    nodes = _nodes(host, request, cpus)
    return Placement(request.vmid, VmClass.CONSTRAINED, vcpus, cpus, nodes, tuple(why))


def emulator(host: Host, nodes: frozenset[int], own: frozenset[int]) -> frozenset[int]:
    """Housekeeping CPUs of the VM's nodes, besides its own if possible; its own where there are none."""
    near = frozenset(
        cpu
        for cpu in host.housekeeping
        if cpu in host.topology.cpus and host.topology.cpus[cpu].node in nodes
    )
    near &= host.topology.online
    return near - own or near or own


def _nodes(host: Host, request: Request, cpus: frozenset[int]) -> frozenset[int]:
    wished = frozenset().union(*(guest.host_nodes for guest in request.guest_nodes))
    return host.topology.nodes_of(cpus) | (wished & host.topology.node_by_id.keys())


def _overlaps(holdings: Sequence[Holding], request: Request, cpus: frozenset[int]) -> list[str]:
    others = [
        (holding, holding.cpus & cpus)
        for holding in holdings
        if holding.vmid != request.vmid and holding.vm_class in EXCLUSIVE
    ]
    return [
        f"warning: {_cpus(shared)} {'is' if len(shared) == 1 else 'are'} also held by VM {holding.vmid}"
        f" ({holding.vm_class.value}); affinity is obeyed, both will run there"
        for holding, shared in others
        if shared
    ]


def _check_guest_nodes(host: Host, request: Request, vcpus: tuple[frozenset[int], ...]) -> list[str]:
    """Guest nodes bound to host nodes that the pins of their vCPUs are not on."""
    found = []
    for number, guest in enumerate(request.guest_nodes):
        pinned = frozenset[int]().union(*(vcpus[vcpu] for vcpu in guest.cpus if vcpu < len(vcpus)))
        on = host.topology.nodes_of(pinned)
        if guest.host_nodes and not on <= guest.host_nodes:
            found.append(
                f"warning: numa{number} binds memory to node {cpulist.format(guest.host_nodes)}, but"
                f" affinity pins its vCPUs to node {cpulist.format(on)}"
            )
    return found


def _cpus(cpus: frozenset[int] | set[int]) -> str:
    return f"CPU{'' if len(cpus) == 1 else 's'} {cpulist.format(cpus)}"
