"""Memory comes from the nodes of the vCPUs.

A VM's memory is touched while QEMU starts, and a process inherits the CPU mask of the one that starts it: so
the task that starts QEMU is steered onto the right nodes for that moment.
"""

from collections.abc import Iterator

from pxsched.host import cpulist
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger import State
from pxsched.placement.request import VmClass
from pxsched.plugins.view import HostView, Setting, VmView
from pxsched.policy import MemoryMode

NAME = "memory"


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    claim = vm.claim
    if claim.state is State.STARTING and claim.starter and claim.policy.memory is not MemoryMode.OFF:
        cpus = _near(claim.placement.nodes, vm.vmid, host)
        if cpus:
            knob = ThreadAffinity(claim.starter.pid, claim.starter.start_ticks)
            yield Setting(knob, cpulist.format(cpus), vm.vmid, NAME)


def _near(nodes: frozenset[int], vmid: int, host: HostView) -> frozenset[int]:
    """The online CPUs of these nodes that are not dedicated to other VMs."""
    near = frozenset().union(*(node.cpus for node in host.topology.nodes if node.id in nodes))
    taken = frozenset().union(
        *(
            claim.placement.cpus
            for claim in host.claims.values()
            if claim.vmid != vmid and claim.placement.vm_class is VmClass.DEDICATED
        )
    )
    return near - taken
