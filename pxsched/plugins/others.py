"""With `others = "confine"`: VMs that are not opted in and containers leave the CPUs that are dedicated to a
VM, for as long as they are.

Containers are confined in the group above them all, `lxc`. Proxmox deals the CPUs out among them every ten
seconds (`rebalance_lxc_containers` of pvestatd), by the sets of their own groups below it. A container may
use its own set within that of `lxc`, or all of the latter where they have nothing in common. So neither
writes over the other, whatever Proxmox chooses.

A VM keeps what its admin gave it: from its threads' masks the dedicated CPUs are taken, and a thread that has
no others stays where it is. A thread that was born since has its mask from the confined main thread, and gets
back what that one had.
"""

from collections.abc import Iterator

from pxsched.host import cpulist
from pxsched.knobs.isolation import GroupCpus
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger.claim import dedicated
from pxsched.ledger.journal import NODE
from pxsched.plugins.view import HostView, Setting, Stranger

NAME = "others"
CONTAINERS = "lxc"


def of_node(host: HostView) -> Iterator[Setting]:
    taken = dedicated(host.claims.values()) & host.topology.online
    left = host.topology.online - taken or host.housekeeping & host.topology.online
    if not taken or not left:
        return
    yield Setting(GroupCpus(CONTAINERS), cpulist.format(left), NODE, NAME)
    for stranger in host.strangers:
        yield from _of_vm(stranger, host, taken)


def _of_vm(vm: Stranger, host: HostView, taken: frozenset[int]) -> Iterator[Setting]:
    first = host.originals.get(ThreadAffinity(vm.process.pid, vm.process.start_ticks).key)
    narrow = None if first is None else vm.masks.get(vm.process.pid)
    for thread in vm.threads:
        mask = vm.masks.get(thread.tid)
        if mask is None:
            continue  # ended meanwhile
        knob = ThreadAffinity(thread.tid, thread.start_ticks)
        original = host.originals.get(knob.key)
        inherited = first if original is None and mask == narrow else None
        base = original or inherited
        cpus = mask if base is None else cpulist.parse(base)
        want = (cpus - taken) & host.topology.online
        if want and cpus & taken:
            yield Setting(knob, cpulist.format(want), vm.vmid, NAME, inherited)
