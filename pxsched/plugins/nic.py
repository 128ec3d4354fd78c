"""A VM's network queues are worked on near the VM, and devices that sit elsewhere are named.

RPS of a tap's receive queue says which CPUs handle what the guest sends; XPS of its transmit queues which
CPUs use which queue. Dedicated vCPUs are spared: the CPUs are those of the emulator threads there.
"""

from collections.abc import Iterator

from pxsched.host import cpulist
from pxsched.knobs.nic import QueueMask
from pxsched.placement.request import EXCLUSIVE
from pxsched.plugins.view import HostView, Setting, VmView

NAME = "nic"


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    cpus = side(vm, host)
    if not vm.claim.policy.nic or not cpus:
        return
    for tap in vm.taps:
        for queue in tap.queues:
            knob = QueueMask(tap.name, tap.ifindex, queue)
            yield Setting(knob, cpulist.format_mask(cpus), vm.vmid, NAME)


def side(vm: VmView, host: HostView) -> frozenset[int]:
    """The CPUs near the VM that may work for its network; isolated ones are refused by the kernel."""
    placement = vm.claim.placement
    exclusive = placement.vm_class in EXCLUSIVE
    cpus = placement.emulator if exclusive else placement.cpus
    return (cpus & host.topology.online) - host.topology.isolated


def notes(vm: VmView, host: HostView) -> Iterator[str]:
    """Devices on another node than their VM: every access crosses the machine."""
    nodes = vm.claim.placement.nodes
    if not vm.claim.policy.nic or not nodes:
        return
    for device in vm.devices:
        if device.node is not None and device.node not in nodes:
            what = f"virtual function of {device.physical}" if device.physical else "passed through"
            yield (
                f"VM {vm.vmid}: {device.address} ({what}) sits on node {device.node},"
                f" the VM on {cpulist.format(nodes)}"
            )
