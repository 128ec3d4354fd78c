"""All plugins, in the order in which `status` and `plan` show them.

Each is loaded only where there is something for it to say: the hook runs at every start and stop.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from typing import Any

from pxsched.ledger.claim import State
from pxsched.plugins.view import HostView, Setting, VmView
from pxsched.settings.policy import Isolation, Others
from pxsched.value import Memo

# Plugins of a VM's threads, which are many and mostly want what they wanted at the last pass.
OF_THREADS = ("vcpu", "emulator")
# Plugin -> whether a VM has anything for it.
OF_VM: dict[str, Callable[[VmView, HostView], Any]] = {
    "memory": lambda vm, host: True,
    "interrupts": lambda vm, host: vm.interrupts,
    "nic": lambda vm, host: vm.taps,
    "isolation": lambda vm, host: host.node.isolation is Isolation.PARTITION,
    "latency": lambda vm, host: vm.claim.policy.fifo,
    "balloon": lambda vm, host: vm.claim.balloon_mib,
}
# Plugin -> whether the node has.
OF_NODE: dict[str, Callable[[HostView], Any]] = {
    "interrupts": lambda host: host.node.device_interrupts,
    "governor": lambda host: host.frequency,
    "isolation": lambda host: host.node.isolation is not Isolation.OFF,
    "others": lambda host: host.node.others is Others.CONFINE,
    "latency": lambda host: any(
        claim.policy.halt_poll_ns >= 0 or claim.policy.resume_latency_us >= 0
        for claim in host.claims.values()
    ),
}
# Plugins that have more to say than settings.
NOTES: dict[str, Callable[[VmView], Any]] = {
    "interrupts": lambda vm: vm.interrupts,
    "nic": lambda vm: vm.devices,
    "memory": lambda vm: vm.claim.state is State.STARTING or vm.memory_bytes,
}


def of_vm(vm: VmView, host: HostView, threads: Memo[list[Setting]] | None = None) -> Iterator[Setting]:
    """What every plugin wants for one VM. threads: what was wanted for threads at the last pass."""
    if vm.threads:
        partitions = host.claims if host.node.isolation is Isolation.PARTITION else None
        given = vm.claim, vm.threads, host.topology.online, host.node, partitions
        yield from (threads or Memo()).of(vm.vmid, given, partial(_of_threads, vm, host))
    for name, concerned in OF_VM.items():
        if concerned(vm, host):
            yield from _plugin(name).of_vm(vm, host)


def _of_threads(vm: VmView, host: HostView) -> list[Setting]:
    return [setting for name in OF_THREADS for setting in _plugin(name).of_vm(vm, host)]


def of_node(host: HostView) -> Iterator[Setting]:
    """What every plugin wants for the node as a whole, given all claims."""
    for name, concerned in OF_NODE.items():
        if concerned(host):
            yield from _plugin(name).of_node(host)


def notes(vm: VmView, host: HostView) -> Iterator[str]:
    """What a person should know of a VM besides the knobs, one line each."""
    for name, concerned in NOTES.items():
        if concerned(vm):
            yield from _plugin(name).notes(vm, host)


def restless(vm: VmView, now_ns: int) -> bool:
    """Whether something of the VM is expected to appear soon. now_ns: boot time."""
    return bool(vm.devices) and bool(_plugin("interrupts").closer_look(vm, now_ns))


@cache
def _plugin(name: str) -> Any:
    return import_module(f"pxsched.plugins.{name}")
