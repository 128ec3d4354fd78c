"""A VM as the balancer sees it, what it may tell one to do, and the parties a VM consists of."""

from collections.abc import Mapping

from pxsched.balance.plan import Party
from pxsched.balance.record import Record
from pxsched.balance.samples import Use
from pxsched.balance.sharing import mask_of
from pxsched.settings.policy import NodeSettings
from pxsched.value import NOTHING, Value


class Vm(Value):
    """One running VM as the balancer sees it.

    vcpus[i]: the CPUs vCPU i may use now. use: what it did in the last interval, None when not known yet.
    movable: a shared VM whose policy lets its home be moved; pins: its vCPUs are pinned and moved one by one;
    wants_pins: they are to be, and still float in its home.
    allowed: the policy's limits. memory_mib: by NUMA node.
    """

    vmid: int
    vcpus: tuple[frozenset[int], ...]
    use: Use | None = None
    weight: int = 100
    movable: bool = False
    pins: bool = False
    wants_pins: bool = False
    allowed: frozenset[int] | None = None
    memory_mib: Mapping[int, int] = NOTHING


class Move(Value):
    """A new home for a VM (vcpu None), or a new pin for one of its vCPUs."""

    vmid: int
    vcpu: int | None
    before: frozenset[int]
    after: frozenset[int]
    why: str


def parties(vm: Vm, record: Record, pool: int, settings: NodeSettings, now_s: float) -> list[Party]:
    """The VM as one party, or one per vCPU when it is pinned; nothing when it has not been measured."""
    if not record.rates or not vm.vcpus:
        return []
    allowed = pool if vm.allowed is None else pool & mask_of(vm.allowed)
    resting = record.moved_s is not None and 0 <= now_s - record.moved_s < settings.cooldown_s
    movable = vm.movable and vm.use is not None and not resting and bool(allowed)
    pins = vm.pins and len(record.rates) == len(vm.vcpus)
    homes = vm.vcpus if pins else (frozenset().union(*vm.vcpus),)
    return [
        Party(
            vmid=vm.vmid,
            vcpu=index if pins else None,
            home=mask_of(home),
            allowed=allowed if vm.movable and allowed else mask_of(home),
            width=1 if pins else len(vm.vcpus),
            rate=rate,
            weight=vm.weight / (len(homes) if pins else 1),
            movable=movable,
            memory_mib=vm.memory_mib,
        )
        for index, (home, rate) in enumerate(zip(homes, record.rates, strict=True))
    ]
