"""QEMU's other threads (main loop, iothreads, vhost workers) stay off the vCPUs of pinned and dedicated VMs,
and inside the home of the others. A VM whose CPUs are a partition has no others to use.
"""

from collections.abc import Iterator

from pxsched.guest.process import Role
from pxsched.host import cpulist
from pxsched.knobs.thread import ThreadAffinity
from pxsched.plugins.view import HostView, Setting, VmView
from pxsched.policy import EmulatorPlace, Isolation

NAME = "emulator"


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    policy, placement = vm.claim.policy, vm.claim.placement
    places = {
        EmulatorPlace.OFF: frozenset[int](),
        EmulatorPlace.HOUSEKEEPING: placement.emulator & host.topology.online,
        EmulatorPlace.VM: placement.cpus & host.topology.online,
    }
    if host.node.isolation is Isolation.PARTITION:
        from pxsched.plugins import isolation

        if isolation.in_partition(vm.claim, host):
            places[EmulatorPlace.HOUSEKEEPING] = places[EmulatorPlace.VM]
    for thread in vm.threads:
        if thread.role is Role.VCPU:
            continue
        cpus = places[policy.vhost if thread.role is Role.VHOST else policy.emulator]
        if cpus:
            knob = ThreadAffinity(thread.tid, thread.start_ticks)
            yield Setting(knob, cpulist.format(cpus), vm.vmid, NAME, vm.claim.inherited or None)
