"""Pinned and constrained VMs: the admin's `affinity`, obeyed as written, and what is odd about it said."""

from collections.abc import Sequence

from pxsched.host import cpulist
from pxsched.placement import bindings, isolated, obstacles
from pxsched.placement.housekeeping import emulator
from pxsched.placement.machine import machine_of, mask_of
from pxsched.placement.memory import memory_nodes
from pxsched.placement.occupancy import occupancy
from pxsched.placement.request import EXCLUSIVE, Holding, Host, Placement, Refused, Request, VmClass


def place_pinned(host: Host, holdings: Sequence[Holding], request: Request) -> Placement:
    """vCPU i on entry i of the list. Raises Refused when the list does not fit the VM or the machine."""
    pins, where = request.affinity, request.affinity_name
    if len(pins) != request.vcpus:
        raise Refused(
            f"{where} lists {len(pins)} CPUs for {request.vcpus} vCPUs",
            hint="a pinned VM needs one entry for each vCPU",
        )
    gone = set(pins) - host.topology.online
    if gone:
        raise Refused(
            f"{where} pins to {_cpus(gone)}, offline or absent on this machine",
            hint=f"online are {cpulist.format(host.topology.online)}",
        )
    why = [f"{where} pins vCPUs 0-{request.vcpus - 1} to {cpulist.format_ordered(pins)}, in this order"]
    if request.vcpus == 1:
        why = [f"{where} pins the vCPU to CPU {pins[0]}"]
    double = {cpu for cpu in pins if pins.count(cpu) > 1}
    if double:
        why.append(f"warning: {where} lists {_cpus(double)} more than once; vCPUs will share them")
    if request.fence is not None and not request.fence.issuperset(pins):
        outside = frozenset(pins) - request.fence
        none = request.fence.isdisjoint(pins) and where == "affinity"
        so = ": taskset refuses that, the VM cannot start" if none else ""
        why.append(f"warning: {where} pins to {_cpus(outside)}, outside of {_fence(request)}{so}")
    own = frozenset(pins)
    why += _overlaps(host, holdings, request, own)
    vcpus = tuple(frozenset((cpu,)) for cpu in pins)
    machine = machine_of(host.topology)
    why += bindings.warnings(machine, request, vcpus, f"{where} pins its vCPUs to")
    near, line = emulator(host, holdings, request, machine.sites_of(mask_of(own)), own)
    return Placement(request.vmid, VmClass.PINNED, vcpus, near, _nodes(host, request, own), (*why, *line))


def place_constrained(host: Host, holdings: Sequence[Holding], request: Request) -> Placement:
    """Every vCPU on the whole list, or on what of it is beside its memory, or where its guest node or socket
    is. Raises Refused when none of its CPUs can be had.
    """
    listed, where = frozenset(request.affinity), request.affinity_name
    online = listed & host.topology.online
    if not online:
        raise Refused(
            f"{where} lists only CPUs that are offline or absent: {cpulist.format(listed)}",
            hint=f"online are {cpulist.format(host.topology.online)}",
        )
    cpus = online if request.fence is None else online & request.fence
    if not cpus:
        raise Refused(f"{where} lists only CPUs outside of {_fence(request)}: {cpulist.format(online)}")
    why = [f"{where} lets {request.vcpus} vCPUs float on {cpulist.format(cpus)}"]
    if listed != online:
        why.append(f"warning: {where} lists {_cpus(listed - online)}, offline or absent; left out")
    if online != cpus:
        why.append(f"warning: {where} lists {_cpus(online - cpus)}, outside of {_fence(request)}; left out")
    if len(cpus) < request.vcpus:
        why.append(f"warning: {request.vcpus} vCPUs share {obstacles.count(len(cpus), 'CPU')}")
    why += _overlaps(host, holdings, request, cpus)
    machine = machine_of(host.topology)
    vcpus = tuple(bindings.anchored(machine, request, (cpus,) * request.vcpus, uncrowded=True))
    why += bindings.warnings(machine, request, vcpus, f"{where} keeps its vCPUs on")
    if request.guest_nodes or request.sockets > 1:
        from pxsched.placement import together

        vcpus, said = together.kept(machine, request, vcpus)
        why += said
    vcpus, lines = isolated.apart(machine, occupancy(machine, holdings, request, host), request, vcpus)
    rest = isolated.floating(machine, cpus)
    if not rest:
        rest, line = emulator(host, holdings, request, machine.sites_of(mask_of(cpus)), cpus)
        lines += line
    nodes = _nodes(host, request, cpus)
    return Placement(request.vmid, VmClass.CONSTRAINED, vcpus, rest, nodes, (*why, *lines))


def _nodes(host: Host, request: Request, cpus: frozenset[int]) -> frozenset[int]:
    """Where its memory lies: where all of it is bound, nowhere else."""
    machine = machine_of(host.topology)
    wished = frozenset[int]().union(*(guest.host_nodes for guest in request.guest_nodes))
    bound = all(guest.host_nodes and guest.policy != "preferred" for guest in request.guest_nodes)
    if wished and bound and wished <= host.topology.node_by_id.keys():
        return wished
    on = machine.sites_of(mask_of(cpus))
    return memory_nodes(machine, host, request, on) | (wished & host.topology.node_by_id.keys())


def _overlaps(host: Host, holdings: Sequence[Holding], request: Request, cpus: frozenset[int]) -> list[str]:
    others = [
        (f"VM {holding.vmid} ({holding.vm_class.value})", holding.cpus & cpus)
        for holding in holdings
        if holding.vmid != request.vmid and holding.vm_class in EXCLUSIVE
    ]
    others += [
        (f"{other.name}, which is confined there", other.cpus & cpus)
        for other in host.foreign
        if not other.cpus >= host.topology.online
    ]
    return [
        f"warning: {_cpus(shared)} {'is' if len(shared) == 1 else 'are'} also held by {name};"
        f" {request.affinity_name} is obeyed, both will run there"
        for name, shared in others
        if shared
    ]


def _fence(request: Request) -> str:
    return f"what {request.fence_name or 'its cgroup'} lets it have"


def _cpus(cpus: frozenset[int] | set[int]) -> str:
    return f"CPU{'' if len(cpus) == 1 else 's'} {cpulist.format(cpus)}"
