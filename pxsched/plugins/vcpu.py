"""vCPU threads run where the placement says: one CPU each when pinned or dedicated, the home when shared."""

from collections.abc import Iterator
from functools import lru_cache

from pxsched.guest.process import Role
from pxsched.host import cpulist
from pxsched.knobs.thread import ThreadAffinity
from pxsched.plugins.view import HostView, Setting, VmView

NAME = "vcpu"


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    if not vm.claim.policy.vcpu:
        return
    placement, online = vm.claim.placement, host.topology.online
    places = dict(enumerate(placement.vcpus))
    vmid, inherited = vm.vmid, vm.claim.inherited or None
    for thread in vm.threads:
        if thread.role is not Role.VCPU:
            continue
        # A vCPU beyond the placement was hot-plugged a moment ago: with the others until it is placed.
        wanted = [places.get(vcpu) or placement.cpus for vcpu in thread.vcpus]
        cpus = wanted[0] if len(wanted) == 1 else frozenset().union(*wanted)
        if want := _online(cpus, online):
            yield Setting(ThreadAffinity(thread.tid, thread.start_ticks), want, vmid, NAME, inherited)


@lru_cache(maxsize=256)  # a pass meets each home many times
def _online(cpus: frozenset[int], online: frozenset[int]) -> str:
    return cpulist.format(cpus & online)
