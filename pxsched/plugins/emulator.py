"""QEMU's other threads (main loop, iothreads, vhost workers) stay off the vCPUs of pinned and dedicated VMs,
and inside the home of the others. A VM whose CPUs are a partition has no others to use.
"""

from collections.abc import Iterator

from pxsched.guest.process import Role
from pxsched.host import cpulist
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger.claim import Claim
from pxsched.plugins.view import HostView, Setting, VmView
from pxsched.settings.policy import EmulatorPlace, Isolation

NAME = "emulator"


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    policy = vm.claim.policy
    for thread in vm.threads:
        if thread.role is Role.VCPU:
            continue
        place = policy.vhost if thread.role is Role.VHOST else policy.emulator
        if cpus := _cpus(place, vm.claim, host):
            knob = ThreadAffinity(thread.tid, thread.start_ticks)
            yield Setting(knob, cpulist.format(cpus), vm.vmid, NAME, vm.claim.inherited or None)


def _cpus(place: EmulatorPlace, claim: Claim, host: HostView) -> frozenset[int]:
    if place is EmulatorPlace.OFF:
        return frozenset()
    own = place is EmulatorPlace.VM
    if not own and host.node.isolation is Isolation.PARTITION:
        from pxsched.plugins import isolation

        own = isolation.in_partition(claim, host)
    return (claim.placement.cpus if own else claim.placement.emulator) & host.topology.online
