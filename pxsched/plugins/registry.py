"""All plugins, in the order in which `status` and `plan` show them."""

from collections.abc import Iterator

from pxsched.plugins import emulator, memory, vcpu
from pxsched.plugins.view import HostView, Setting, VmView

OF_VM = (vcpu, emulator, memory)


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    """What every plugin wants for one VM."""
    for plugin in OF_VM:
        yield from plugin.of_vm(vm, host)


def of_node(host: HostView) -> Iterator[Setting]:
    """What every plugin wants for the node as a whole, given all claims."""
    yield from ()
