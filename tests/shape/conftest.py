"""VMs and machines to shape, and the way from options over the mirror to new options."""

import shutil
from collections.abc import Mapping, Sequence

import pytest

from pxsched.host.processor import Processor
from pxsched.host.topology import Topology
from pxsched.shape import cpumodel, mirror, options, picture
from pxsched.shape.cpumodel import Traits
from pxsched.shape.mirror import Mirror

MILAN = Processor("AuthenticAMD", 0x19, 1, topoext=True)
XEON = Processor("GenuineIntel", 6, 106)

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed")


def traits_of(told: options.Told, host: Processor) -> Traits:
    return cpumodel.traits(told.model, host)


def mirrored(
    topology: Topology, cpus: Sequence[int], vm: Mapping[str, str], host: Processor = MILAN
) -> tuple[Mirror, options.Changes]:
    """The mirror of these pins, and what it changes. Raises NoMirror, Unreadable."""
    told = options.read(vm)
    options.check(vm, told)
    where = picture.seats(topology, cpus)
    found = mirror.mirror(
        topology, where, told.machine.memory_mib, options.page_mib(told.machine), traits_of(told, host)
    )
    return found, options.changes(vm, told, found)


def changed(vm: Mapping[str, str], changes: options.Changes) -> dict[str, str]:
    return {key: value for key, value in {**vm, **changes}.items() if value is not None}
