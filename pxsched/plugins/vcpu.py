"""vCPU threads run where the placement says: one CPU each when pinned or dedicated, the home when shared."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from pxsched.guest.process import Role, Thread
from pxsched.host import cpulist
from pxsched.knobs.thread import ThreadAffinity
from pxsched.placement.request import EXCLUSIVE, Placement
from pxsched.plugins.view import HostView, Setting, VmView

NAME = "vcpu"


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    if not vm.claim.policy.vcpu:
        return
    threads = [thread for thread in vm.threads if thread.role is Role.VCPU]
    places, online = _places(vm.claim.placement, threads), host.topology.online
    vmid, inherited = vm.vmid, vm.claim.inherited or None
    for thread in threads:
        wanted = [places[vcpu] for vcpu in thread.vcpus]
        cpus = wanted[0] if len(wanted) == 1 else frozenset[int]().union(*wanted)
        if want := _online(cpus, online):
            yield Setting(ThreadAffinity(thread.tid, thread.start_ticks), want, vmid, NAME, inherited)


def _places(placement: Placement, threads: Sequence[Thread]) -> dict[int, frozenset[int]]:
    """The CPUs of each vCPU that has a thread. One beyond the placement was plugged in a moment ago, or the
    indexes have gaps: it takes a place that nobody has, else it runs with the emulator, not over pins.
    """
    places = dict(enumerate(placement.vcpus))
    beyond = sorted(vcpu for thread in threads for vcpu in thread.vcpus if vcpu not in places)
    if beyond:
        used = {vcpu for thread in threads for vcpu in thread.vcpus}
        vacant = [cpus for vcpu, cpus in places.items() if vcpu not in used]
        rest = placement.emulator if placement.vm_class in EXCLUSIVE else placement.cpus
        for number, vcpu in enumerate(beyond):
            places[vcpu] = vacant[number] if number < len(vacant) else rest or placement.cpus
    return places


@lru_cache(maxsize=256)  # a pass meets each home many times
def _online(cpus: frozenset[int], online: frozenset[int]) -> str:
    return cpulist.format(cpus & online)
