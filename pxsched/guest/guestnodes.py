"""A VM's guest NUMA nodes: what of them keeps it from starting, or counts for nothing.

Rules: PVE::QemuServer::Memory (config, hugepages_topology) of qemu-server 9.2.
"""

from collections.abc import Iterator

from pxsched.guest.config import Machine


def remarks(machine: Machine) -> Iterator[str]:
    """For a person, without the VM's number."""
    nodes = machine.guest_nodes
    if not machine.numa:
        if machine.hugepage_mib is not None:
            yield "the VM cannot start: huge pages need `numa: 1`"
        elif nodes:
            yield f"{nodes[0].named(0)} counts for nothing without `numa: 1`"
        return
    for number, node in enumerate(nodes):
        if not node.memory_mib:
            yield f"the VM cannot start: {node.named(number)} has no memory"
        if node.host_nodes and not node.policy:
            yield f"the VM cannot start: {node.named(number)} has `hostnodes` and no `policy`"
        if machine.hugepage_mib is not None and len(node.host_nodes) != 1:
            yield f"the VM cannot start: huge pages need one host node in `hostnodes` of {node.named(number)}"
    total_mib = sum(node.memory_mib for node in nodes)
    if nodes and total_mib != machine.memory_mib:
        yield f"the VM cannot start: its guest nodes have {total_mib} MiB, `memory` says {machine.memory_mib}"
