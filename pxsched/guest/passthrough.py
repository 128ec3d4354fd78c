"""Which PCI devices a VM has, or may get when it starts.

A running QEMU's command line says it best. Before that there are the configuration's `hostpciN`, the
cluster's resource mappings (several alternatives per node; Proxmox chooses after pre-start) and what Proxmox
reserved.
Rules: qemu-server PVE::QemuServer::PCI, pve-guest-common PVE::Mapping::PCI and PVE::SectionConfig.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

from pxsched import stored
from pxsched.guest.config import Machine
from pxsched.guest.options import property_string
from pxsched.guest.process import VMID, Process
from pxsched.host import devices
from pxsched.host.devices import Device
from pxsched.root import Root
from pxsched.stored import Damaged

MAPPINGS = "etc/pve/mapping/pci.cfg"
RESERVATIONS = "run/qemu-server/pci-id-reservations"


def of_vm(root: Root, vmid: int, machine: Machine, process: Process | None) -> tuple[Device, ...]:
    """The devices of a VM, in the order of its command line; before QEMU runs, those that are certain."""
    if process is not None:
        found = _of_command_line(root, process.pid)
    elif machine.hostpci:
        found = [(address, "") for address in _reserved(root, vmid)]
        for option in machine.hostpci:
            certain = (function for address in option.addresses for function in devices.expand(root, address))
            found += [(address, option.mdev) for address in certain]
    else:
        return ()
    mdevs = dict(reversed(found))
    order = dict.fromkeys(address for address, _mdev in found)
    read = (devices.read(root, address, mdev=mdevs[address]) for address in order)
    return tuple(device for device in read if device is not None)


def nodes(root: Root, vmid: int, machine: Machine, node_name: str) -> frozenset[int]:
    """The NUMA nodes of all devices that the VM has or may get on this node; cheap, and before its start too.

    node_name: this node's name, as mappings use it.
    """
    if not machine.hostpci:
        return frozenset()
    addresses = [address for option in machine.hostpci for address in option.addresses]
    mappings = {option.mapping for option in machine.hostpci if option.mapping}
    if mappings:
        reserved = _reserved(root, vmid)
        alternatives = mapped(root.read(MAPPINGS) or "", mappings, node_name)
        addresses += [address for address in reserved if _covered(address, alternatives)] or alternatives
    known = (_node_of_slot(root, address) for address in addresses)
    return frozenset(node for node in known if node is not None)


def mapped(text: str, names: Iterable[str] | None, node_name: str) -> list[str]:
    """The addresses that these resource mappings (None: all) offer on one node, all alternatives, as written.

    Sections start with a bare name in the first column; their properties are indented.
    """
    return [address for address, _model in _entries(text, names, node_name)]


def unmapped(root: Root, name: str, node_name: str) -> str:
    """Why a resource mapping keeps a VM from starting on this node: each device that it names for the node
    must be there, and be the one that was mapped (PVE::Mapping::PCI, assert_valid). Empty where it does not.
    """
    text = root.read(MAPPINGS)
    entries = _entries(text or "", (name,), node_name)
    if text is not None and not entries:
        return f"mapping {name[:40]} has no device on this node"
    gone = [address for address, _model in entries if not devices.expand(root, address)]
    if gone:
        return f"{' '.join(gone)} {'is' if len(gone) == 1 else 'are'} not there"
    for address, model in entries:
        now = devices.model_of(root, address)
        if now and model not in ("", now):
            return f"{address} is {now}, not {model}"
    return ""


def _entries(text: str, names: Iterable[str] | None, node_name: str) -> list[tuple[str, str]]:
    """(address, `vendor:device` as mapped) of each device."""
    wanted = None if names is None else frozenset(names)
    section, found = "", []
    for line in text.splitlines():
        if line.strip() and not line[0].isspace() and not line.startswith("#"):
            section = line.strip().rstrip(":")
        elif (wanted is None or section in wanted) and line.strip().startswith("map "):
            found += _entry(line.strip().removeprefix("map "), node_name)
    return found


def _entry(entry: str, node_name: str) -> list[tuple[str, str]]:
    try:
        values = property_string(entry)
    except ValueError:
        return []
    if values.get("node") != node_name:
        return []
    paths = (path.strip().lower() for path in values.get("path", "").split(";"))
    model = values.get("id", "").lower()
    return [
        (path, model) for path in paths if devices.FUNCTION.fullmatch(path) or devices.SLOT.fullmatch(path)
    ]


def _covered(address: str, alternatives: list[str]) -> bool:
    return address in alternatives or address.rpartition(".")[0] in alternatives


def _node_of_slot(root: Root, address: str) -> int | None:
    """All functions of a slot sit on one node: the first that exists speaks for it."""
    return next((devices.node_of(root, function) for function in devices.expand(root, address)), None)


def _reserved(root: Root, vmid: int) -> list[str]:
    return [address for address, owner in reservations(root).items() if owner == vmid]


def reservations(root: Root) -> dict[str, int]:
    """The VM that Proxmox reserved each function for: lines `ADDRESS VMID pid:N` or `ADDRESS VMID time:N`."""
    lines = (line.split() for line in (root.read(RESERVATIONS) or "").splitlines())
    return {
        words[0]: int(words[1])
        for words in lines
        if len(words) >= 2 and devices.FUNCTION.fullmatch(words[0]) and VMID.fullmatch(words[1])
    }


def _of_command_line(root: Root, pid: int) -> list[tuple[str, str]]:
    """(address, UUID of a mediated device or "") of every vfio device on QEMU's command line."""
    data = root.read_bytes(f"proc/{pid}/cmdline") or b""
    if b"vfio-pci" not in data:
        return []
    arguments = data.decode("utf-8", "replace").split("\0")
    found = (_vfio(root, _device_argument(value)) for flag, value in pairwise(arguments) if flag == "-device")
    return [entry for entry in found if entry[0]]


def _device_argument(text: str) -> dict[str, str]:
    """QEMU takes `driver,key=value,...` and JSON; what is neither has no properties."""
    if text.startswith("{"):
        try:
            document = stored.table(stored.parse(text))
        except Damaged:
            return {}
        return {str(key): str(value) for key, value in document.items()}
    driver, *properties = text.split(",")
    pairs = (part.partition("=") for part in properties)
    return {"driver": driver} | {key: value for key, _, value in pairs}


def _vfio(root: Root, values: dict[str, str]) -> tuple[str, str]:
    """Address and UUID of a vfio device; two empty words for any other."""
    if not values.get("driver", "").startswith("vfio-pci"):
        return "", ""
    if host := values.get("host", "").lower():
        if not re.match(r"[0-9a-f]{4,8}:[0-9a-f]{2}:", host):
            host = f"0000:{host}"
        return (host, "") if devices.FUNCTION.fullmatch(host) else ("", "")
    name = values.get("sysfsdev", "").rstrip("/").rpartition("/")[2].lower()
    if devices.FUNCTION.fullmatch(name):
        return name, ""
    return devices.mdev_parent(root, name), name
