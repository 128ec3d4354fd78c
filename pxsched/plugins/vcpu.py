"""vCPU threads run where the placement says: one CPU each when pinned or dedicated, the home when shared."""

from collections.abc import Iterator

from pxsched.guest.process import Role
from pxsched.host import cpulist
from pxsched.knobs.thread import ThreadAffinity
from pxsched.plugins.view import HostView, Setting, VmView

NAME = "vcpu"


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    if not vm.claim.policy.vcpu:
        return
    places, online = vm.claim.placement.vcpus, host.topology.online
    vmid, inherited = vm.vmid, vm.claim.inherited or None
    for thread in vm.threads:
        if thread.role is not Role.VCPU:
            continue
        # A vCPU beyond the placement was hot-plugged a moment ago: with the others until it is placed.
        wanted = [places[vcpu] if vcpu < len(places) else vm.claim.placement.cpus for vcpu in thread.vcpus]
        cpus = frozenset().union(*wanted) & online
        if cpus:
            knob = ThreadAffinity(thread.tid, thread.start_ticks)
            yield Setting(knob, cpulist.format(cpus), vmid, NAME, inherited)
