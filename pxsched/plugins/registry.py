"""All plugins, in the order in which `status` and `plan` show them."""

from collections.abc import Iterator

from pxsched.plugins import emulator, interrupts, memory, nic, vcpu
from pxsched.plugins.view import HostView, Setting, VmView

OF_VM = (vcpu, emulator, memory, interrupts, nic)
OF_NODE = (interrupts,)
NOTES = (interrupts, nic)


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    """What every plugin wants for one VM."""
    for plugin in OF_VM:
        yield from plugin.of_vm(vm, host)


def of_node(host: HostView) -> Iterator[Setting]:
    """What every plugin wants for the node as a whole, given all claims."""
    for plugin in OF_NODE:
        yield from plugin.of_node(host)


def notes(vm: VmView, host: HostView) -> Iterator[str]:
    """What a person should know of a VM besides the knobs, one line each."""
    for plugin in NOTES:
        yield from plugin.notes(vm, host)
