"""PCI devices: their NUMA node, the functions of a slot, SR-IOV parents, mediated devices.

Rules: Documentation/ABI/testing/sysfs-bus-pci and Documentation/driver-api/vfio-mediated-device.rst of the
kernel. Addresses are `dddd:bb:dd.f` (a function) or `dddd:bb:dd` (a slot with all its functions).
"""

import os
import re

from pxsched.root import Root
from pxsched.value import Value

PCI_DIR = "sys/bus/pci/devices"
MDEV_DIR = "sys/bus/mdev/devices"
FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.ASCII)
SLOT = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}", re.ASCII)
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


class Device(Value):
    """One function that a VM was given. node: its NUMA node, None where the firmware does not say.

    physical: the physical function when this is a virtual one, else empty.
    mdev: the UUID when only a mediated device on it was given: its interrupts stay the host driver's.
    """

    address: str
    node: int | None = None
    physical: str = ""
    mdev: str = ""


def read(root: Root, address: str, *, mdev: str = "") -> Device | None:
    """The function with this address; None when there is none now."""
    if not FUNCTION.fullmatch(address) or not root.exists(f"{PCI_DIR}/{address}"):
        return None
    return Device(address, node_of(root, address), physical_of(root, address), mdev)


def expand(root: Root, address: str) -> tuple[str, ...]:
    """The functions that exist now of a slot, or of the one function's address."""
    if FUNCTION.fullmatch(address):
        candidates = [address]
    elif SLOT.fullmatch(address):
        candidates = [f"{address}.{function}" for function in range(8)]
    else:
        return ()
    return tuple(found for found in candidates if root.exists(f"{PCI_DIR}/{found}"))


def model_of(root: Root, address: str) -> str:
    """`vendor:device` of a function, or of a slot's first one; empty where sysfs does not say."""
    for function in expand(root, address)[:1]:
        words = [root.read(f"{PCI_DIR}/{function}/{name}") or "" for name in ("vendor", "device")]
        return ":".join(word.removeprefix("0x") for word in words) if all(words) else ""
    return ""


def node_of(root: Root, address: str) -> int | None:
    """The NUMA node of a function; the kernel writes -1 for an unknown one."""
    text = root.read(f"{PCI_DIR}/{address}/numa_node") or ""
    return int(text) if re.fullmatch(r"\d{1,4}", text, re.ASCII) else None


def physical_of(root: Root, address: str) -> str:
    """The physical function behind a virtual one; empty for all others."""
    name = _target(root, f"{PCI_DIR}/{address}/physfn")
    return name if FUNCTION.fullmatch(name) else ""


def virtual_index(root: Root, device: Device) -> int | None:
    """Which of its parent's virtual functions a device is: N of `virtfnN`."""
    directory = f"{PCI_DIR}/{device.physical}"
    for name in root.list(directory) if device.physical else ():
        number = name.removeprefix("virtfn")
        if number.isdecimal() and _target(root, f"{directory}/{name}") == device.address:
            return int(number)
    return None


def mdev_parent(root: Root, uuid: str) -> str:
    """The function that a mediated device lives on; empty when there is no such device.

    MDEV_DIR/UUID is a link to its directory inside the parent's.
    """
    if not UUID.fullmatch(uuid):
        return ""
    try:
        target = os.readlink(root.path(f"{MDEV_DIR}/{uuid}"))
    except OSError:
        return ""
    return next((part for part in reversed(target.split("/")) if FUNCTION.fullmatch(part)), "")


def _target(root: Root, link: str) -> str:
    try:
        return os.path.basename(os.readlink(root.path(link)))
    except OSError:
        return ""
