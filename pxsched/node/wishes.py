"""What placement is asked for a VM: its configuration and policy as one request."""

import json
from typing import NamedTuple

from pxsched.guest.config import GuestNode, Machine
from pxsched.host import cpulist
from pxsched.node.fences import Fence
from pxsched.node.sighting import Sighting
from pxsched.placement.request import Request, VmClass
from pxsched.settings.policy import Policy, Wish
from pxsched.value import replace


class Asked(NamedTuple):
    """What placement is asked for a VM. signature: what the answer depends on."""

    wish: Request
    signature: str


def asked(
    sighting: Sighting,
    policy: Policy,
    device_nodes: frozenset[int],
    fence: Fence | None,
    online: frozenset[int],
) -> Asked:
    """What a VM asks for whose configuration was read. fence: around the CPUs that its cgroup can have."""
    assert sighting.machine is not None
    wish = request(
        sighting.vmid,
        sighting.machine,
        policy,
        device_nodes=device_nodes,
        running_vcpus=sighting.running_vcpus,
    )
    if fence is not None:
        wish = replace(wish, fence=fence.cpus, fence_name=fence.name)
    return Asked(wish, signature(wish, policy, frozenset(wish.affinity) - online))


def vm_class(machine: Machine, policy: Policy, vcpus: int) -> VmClass:
    """The class a VM gets. `affinity` comes first, as the admin wrote it."""
    if machine.affinity and len(machine.affinity) == vcpus:
        return VmClass.PINNED
    if policy.wish is Wish.DEDICATED:
        return VmClass.DEDICATED
    return VmClass.CONSTRAINED if machine.affinity else VmClass.SHARED


def request(
    vmid: int,
    machine: Machine,
    policy: Policy,
    *,
    device_nodes: frozenset[int] = frozenset(),
    running_vcpus: int = 0,
) -> Request:
    """What placement is asked for this VM. running_vcpus: those that QEMU has threads for; where these are
    more than the configuration says, QEMU is right.
    """
    vcpus = max(machine.vcpus, running_vcpus)
    if policy.pins:
        machine = replace(machine, affinity=cpulist.parse_ordered(policy.pins))
    wanted = vm_class(machine, policy, vcpus)
    sockets = machine.smp.sockets if machine.smp else machine.sockets
    per_socket = machine.smp.per_socket if machine.smp else machine.cores
    limits = [cpulist.parse(policy.cpus)] if policy.cpus else []
    if wanted is VmClass.DEDICATED and machine.affinity:
        limits.append(frozenset(machine.affinity))
    return Request(
        vmid=vmid,
        vcpus=vcpus,
        memory_mib=machine.memory_mib,
        vm_class=wanted,
        affinity=machine.affinity,
        affinity_name="pins" if policy.pins else "affinity",
        sockets=sockets,
        cores=max(per_socket, -(-vcpus // sockets)),
        smt=policy.smt,
        prefer=policy.prefer,
        guest_nodes=_guest_nodes(machine),
        device_nodes=device_nodes,
        hugepage_mib=machine.hugepage_mib,
        weight=machine.weight,
        cpus=frozenset.intersection(*limits) if limits else None,
        nodes=cpulist.parse(policy.nodes) if policy.nodes else None,
        far_memory=policy.far_memory,
    )


def _guest_nodes(machine: Machine) -> tuple[GuestNode, ...]:
    """The `numaN` rules; with huge pages and none of them, Proxmox puts guest socket i on host node i
    (PVE::QemuServer::Memory).
    """
    if not machine.numa:
        return ()
    if machine.guest_nodes or machine.hugepage_mib is None:
        return machine.guest_nodes
    cores, share_mib = machine.cores, machine.memory_mib // machine.sockets
    return tuple(
        GuestNode(
            frozenset(range(socket * cores, min(machine.vcpus, (socket + 1) * cores))),
            share_mib,
            frozenset((socket,)),
            "bind",
            f"guest socket {socket} (huge pages)",
        )
        for socket in range(machine.sockets)
    )


def signature(wish: Request, policy: Policy, offline: frozenset[int]) -> str:
    """What a placement depends on; a claim with another signature is computed again.

    offline: CPUs of `affinity` that are away at the moment.
    """
    nodes = [
        [sorted(rule.cpus), rule.memory_mib, sorted(rule.host_nodes), rule.policy]
        for rule in wish.guest_nodes
    ]
    return json.dumps(
        [
            wish.vm_class, wish.vcpus, wish.memory_mib, wish.affinity, wish.sockets, wish.cores, wish.smt,
            wish.prefer, nodes, sorted(wish.device_nodes), wish.hugepage_mib, policy.cpus, policy.nodes,
            wish.far_memory, sorted(offline), None if wish.fence is None else cpulist.format(wish.fence),
        ],
        separators=(",", ":"),
    )  # fmt: skip
