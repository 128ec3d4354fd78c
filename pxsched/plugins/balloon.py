"""A guest keeps the memory that the coordinator told it to keep, as long as it is managed."""

from collections.abc import Iterator

from pxsched.knobs.balloon import Balloon, bounds
from pxsched.plugins.view import HostView, Setting, VmView

NAME = "balloon"


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    process, target_mib = vm.claim.process, vm.claim.balloon_mib
    if process is not None and target_mib is not None and vm.claim.policy.balloon:
        machine = vm.machine
        own = bounds(machine.balloon_mib or machine.memory_mib, machine.memory_mib)
        yield Setting(Balloon(vm.vmid, process.start_ticks), str(target_mib), vm.vmid, NAME, own)
