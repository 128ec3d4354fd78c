"""What a pass measures of CPUs: the VMs' threads and their scopes, as the values that `balance` works on."""

from collections.abc import Iterable, Mapping
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from pxsched.balance import cpu, samples
from pxsched.guest.config import Machine
from pxsched.guest.process import Role
from pxsched.guest.schedstat import Counters, Wanted
from pxsched.host import cpulist
from pxsched.host.topology import Topology
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.node import fences
from pxsched.node.others import Seen
from pxsched.node.sighting import Node, Sighting
from pxsched.placement.kinds import variants
from pxsched.placement.machine import machine_of, mask_of, set_of
from pxsched.placement.request import Placement, VmClass
from pxsched.settings.policy import Fair, Prefer, Smt


def wanted(sightings: Iterable[Sighting]) -> Iterable[Wanted]:
    for sighting in sightings:
        if sighting.process is None:
            continue
        vcpus = [thread for thread in sighting.threads if thread.role is Role.VCPU]
        vcpus.sort(key=attrgetter("vcpus"))
        limited = sighting.machine is not None and sighting.machine.cpu_limit > 0
        yield Wanted(sighting.vmid, sighting.process, tuple(thread.tid for thread in vcpus), limited)


def snapshot(wanted: Iterable[Wanted], counters: Mapping[int, Counters]) -> samples.Snapshot:
    return samples.Snapshot(
        {
            vm.vmid: samples.Reading(
                vm.vmid, vm.process.start_ticks, found.at_ns, found.threads, found.throttled_ns
            )
            for vm in wanted
            if (found := counters.get(vm.vmid)) is not None
        }
    )


def limits(sightings: Iterable[Sighting]) -> dict[int, float]:
    return {
        sighting.vmid: sighting.machine.cpu_limit
        for sighting in sightings
        if sighting.machine is not None and sighting.machine.cpu_limit > 0
    }


def pool(node: Node, ledger: Ledger) -> frozenset[int]:
    """The CPUs that shared VMs may use: online, not the host's by the admin's word, and nobody's own."""
    topology = node.topology
    taken = set(topology.isolated)
    if node.settings.node.housekeeping:
        taken |= cpulist.parse(node.settings.node.housekeeping)
    for claim in ledger.claims.values():
        if claim.placement.vm_class is VmClass.DEDICATED:
            taken |= claim.placement.cpus
            if claim.policy.smt is Smt.ISOLATE:
                taken.update(*(topology.cpus[own].siblings for own in claim.placement.cpus & topology.online))
    return topology.online - taken


def vm(
    sighting: Sighting, ledger: Ledger, uses: Mapping[int, samples.Use], node: Node, seen: Seen
) -> cpu.Vm | None:
    """One VM as the balancer sees it; those we do not place are load where their threads may run."""
    claim, machine = ledger.claims.get(sighting.vmid), sighting.machine
    if sighting.process is None:
        return None
    use = uses.get(sighting.vmid)
    if claim is None:
        masks = (other.cpus for other in seen.others if other.process == sighting.process)
        cpus = next(masks, node.topology.online)
        count = len(use.rates) if use else 1
        return cpu.Vm(sighting.vmid, (cpus,) * count, use, machine.weight if machine else 100)
    fence = fences.around(node, ledger, claim.vmid, claim.process)
    given = claim, machine, None if fence is None else fence[1], node.topology
    home = node.memos.homes.of(claim.vmid, given, partial(_home, *given))
    return cpu.Vm(claim.vmid, claim.placement.vcpus, use, *home)


class Home(NamedTuple):
    """What the balancer has to know of a claim, as the last fields of `cpu.Vm`."""

    weight: int
    movable: bool
    pins: bool
    wants_pins: bool
    allowed: frozenset[int] | None
    memory_mib: Mapping[int, int]


def _home(claim: Claim, machine: Machine | None, fence: frozenset[int] | None, topology: Topology) -> Home:
    policy, placement = claim.policy, claim.placement
    pinned = all(len(cpus) == 1 for cpus in placement.vcpus)
    fixed = _is_fixed(topology, placement)
    movable = (
        placement.vm_class is VmClass.SHARED and policy.vcpu and policy.fair is not Fair.OFF and not fixed
    )
    nodes = placement.nodes
    return Home(
        weight=claim.weight,
        movable=movable,
        pins=movable and policy.fair is Fair.PIN and pinned,
        wants_pins=movable and policy.fair is Fair.PIN and not pinned,
        allowed=_beside(topology, machine, claim, _fenced(topology, claim, fence)),
        memory_mib={one: claim.memory_mib // len(nodes) for one in nodes},
    )


def containers(seen: Seen, elapsed_s: float) -> list[cpu.Vm]:
    """The containers as the balancer sees them: what each used, on any of its CPUs.

    elapsed_s: the length of the pass. The weights that Proxmox gives containers are not compared with VMs'
    (these are in a group of their own), so all have the default.
    """
    found = []
    for other in seen.others:
        if other.process is None and other.load is not None and other.cpus:
            rate = samples.Rate(other.load, 0.0, other.load)
            use = samples.Use(other.vmid, 0, elapsed_s, (rate,), rate)
            found.append(cpu.Vm(other.vmid, (other.cpus,), use))
    return found


def _is_fixed(topology: Topology, placement: Placement) -> bool:
    """Whether each vCPU is where it is for a reason of its own: memory bound to another node than that of the
    rest, or CPUs that the kernel does not balance.
    """
    apart = len(set(placement.vcpus)) > 1 and any(len(cpus) > 1 for cpus in placement.vcpus)
    return apart or not placement.cpus.isdisjoint(topology.isolated)


def _beside(
    topology: Topology, machine: Machine | None, claim: Claim, allowed: frozenset[int] | None
) -> frozenset[int] | None:
    """Of the allowed CPUs those beside the memory that QEMU has bound; all where none is."""
    if machine is None or not machine.numa:
        return allowed
    from pxsched.node.wishes import request
    from pxsched.placement.bindings import anchors

    wish = request(claim.vmid, machine, claim.policy)
    bound = frozenset[int]().union(*anchors(machine_of(topology), wish))
    if not bound:
        return allowed
    cpus = frozenset(cpu for one in topology.nodes if one.id in bound for cpu in one.cpus)
    return cpus if allowed is None else cpus & allowed


def _fenced(topology: Topology, claim: Claim, fence: frozenset[int] | None) -> frozenset[int] | None:
    """The CPUs that a VM may be moved to, by its policy and its cgroup; None for all."""
    allowed = _allowed(claim, topology)
    return allowed if fence is None else fence & (topology.online if allowed is None else allowed)


def _allowed(claim: Claim, topology: Topology) -> frozenset[int] | None:
    """The CPUs that the policy lets a VM be moved to; None for all."""
    policy = claim.policy
    if not policy.cpus and not policy.nodes and policy.prefer is Prefer.ANY:
        return None
    allowed = cpulist.parse(policy.cpus) if policy.cpus else topology.online
    if policy.prefer is not Prefer.ANY:
        allowed &= _no_worse(claim, topology)
    if policy.nodes:
        wanted = cpulist.parse(policy.nodes)
        allowed &= frozenset(cpu for one in topology.nodes if one.id in wanted for cpu in one.cpus)
    return allowed


def _no_worse(claim: Claim, topology: Topology) -> frozenset[int]:
    """The CPUs that suit `prefer` as well as the VM's home does, or better."""
    machine = machine_of(topology)
    home, found = mask_of(claim.placement.cpus), 0
    for variant in variants(machine, claim.policy.prefer, machine.online):
        found |= variant.mask
        if not home & machine.online & ~found:
            break
    return set_of(found)
