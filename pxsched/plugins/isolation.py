"""Host tasks and containers leave the CPUs that are dedicated to running VMs, for as long as these run.

While a VM starts, the task that starts it must still reach the VM's CPUs and memory: its CPUs are taken from
the host once it runs.
"""

from collections.abc import Iterator

from pxsched.host import cpulist
from pxsched.knobs.isolation import GROUPS, UNITS, GroupCpus, SliceCpus
from pxsched.knobs.knob import Knob
from pxsched.knobs.scope import Partition
from pxsched.ledger.claim import Claim, State, dedicated
from pxsched.ledger.journal import NODE
from pxsched.placement.request import VmClass
from pxsched.plugins.others import CONTAINERS
from pxsched.plugins.view import HostView, Setting, VmView
from pxsched.settings.policy import Isolation, Others

NAME = "isolation"


def of_node(host: HostView) -> Iterator[Setting]:
    if host.node.isolation is not Isolation.SLICES:
        return
    if not _taken(host):
        return
    left = host.topology.online - _taken(host) or host.housekeeping & host.topology.online
    if not left:
        return  # a slice is never left without CPUs
    apart = {CONTAINERS} if host.node.others is Others.CONFINE else set()  # that plugin takes more from them
    knobs: list[Knob] = [*map(SliceCpus, UNITS), *(GroupCpus(name) for name in GROUPS if name not in apart)]
    for knob in knobs:
        yield Setting(knob, cpulist.format(left), NODE, NAME)


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    if in_partition(vm.claim, host):
        cpus = vm.claim.placement.cpus & host.topology.online
        yield Setting(Partition(vm.vmid), cpulist.format(cpus), vm.vmid, NAME)


def in_partition(claim: Claim, host: HostView) -> bool:
    """Whether the VM's scope has its CPUs to itself, so that all its threads have to live on them."""
    if host.node.isolation is not Isolation.PARTITION or not _isolated(claim):
        return False
    return bool(host.topology.online - _taken(host))  # partitions never take the host's last CPU


def _taken(host: HostView) -> frozenset[int]:
    """The CPUs that host tasks have to leave."""
    isolated = filter(_isolated, host.claims.values())
    return dedicated(isolated) & host.topology.online


def _isolated(claim: Claim) -> bool:
    dedicated = claim.placement.vm_class is VmClass.DEDICATED
    return dedicated and claim.policy.isolation and claim.state is State.RUNNING
