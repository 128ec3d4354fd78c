"""What keeps a VM from another node, apart from CPUs and memory: storage, devices, its CPU model, its lock.

Rules: the checks of qemu-server's PVE::QemuMigrate and PVE::API2::Qemu (migrate preconditions), on the files
below /etc/pve. Beyond those: devices of mappings that others use, and processors.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pxsched.cluster import cputype
from pxsched.cluster.publication import Processor, Publication
from pxsched.guest import options as values
from pxsched.guest import passthrough
from pxsched.proxmox import storage
from pxsched.root import Root
from pxsched.value import NOTHING, Value

USB_MAPPINGS = "etc/pve/mapping/usb.cfg"
_DISK = re.compile(r"(?:scsi|virtio|ide|sata|efidisk|tpmstate|unused)\d+", re.ASCII)
_UNITS = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
# What no QEMU hands over while it runs, whatever the mapping says.
_LIVE_ONLY = ("virtiofs", "amd-sev", "intel-tdx")


class Surroundings(Value):
    """What all VMs share. storages: type and options by name; pci, usb: the files of the mappings.
    cpu_models: the custom ones.
    """

    storages: Mapping[str, tuple[str, Mapping[str, str]]] = NOTHING
    pci: str = ""
    usb: str = ""
    cpu_models: cputype.Models = NOTHING


class Verdict(NamedTuple):
    """against: what rules the node out. costs: what a move there does besides. copy_mib: of local disks.
    offline: why the VM cannot be moved while it runs; empty where it can.
    """

    against: tuple[str, ...]
    costs: tuple[str, ...] = ()
    copy_mib: int = 0
    offline: str = ""


def surroundings(root: Root) -> Surroundings:
    return Surroundings(
        storage.sections(root),
        root.read(passthrough.MAPPINGS) or "",
        root.read(USB_MAPPINGS) or "",
        cputype.models(root),
    )


def of_move(
    options: Mapping[str, str],
    source: Publication | None,
    target: Publication,
    around: Surroundings,
    *,
    runs: bool,
    snapshots: bool,
    vmid: int,
) -> Verdict:
    """A move to another node. options: the VM's. source: None where its node published nothing."""
    against: list[str] = []
    costs: list[str] = []
    if options.get("lock"):
        against.append(f"it is locked ({options['lock'][:20]})")
    against += _bound(options)
    against += _mapped(options, around, target, vmid)
    copy_mib = 0
    for key, text in options.items():
        if _DISK.fullmatch(key):
            copy_mib += _disk(key, text, around, target.node, snapshots, runs, against, costs)
    if copy_mib:
        costs.append(f"copies {copy_mib / 1024:.1f} GiB of local disks")
    offline = next(_live(options, around), "") if runs else ""
    here = source.processor if source else Processor()
    wanted = cputype.parse(options.get("cpu", ""), around.cpu_models)
    against += cputype.against(wanted, here, target.processor, target.node, costs, runs=runs)
    return Verdict(tuple(against), tuple(costs), copy_mib, offline)


def _bound(options: Mapping[str, str]) -> Iterator[str]:
    """Local resources: Proxmox moves no VM that has any, running or not."""
    for key, text in options.items():
        stem, mapping = key.rstrip("0123456789"), "mapping" in _said(text)
        if stem == key:
            if key == "ivshmem":
                yield "its shared memory (ivshmem) is of its own node"
        elif stem == "hostpci" and not mapping:
            yield f"{key} is a device of its own node; a resource mapping could name another one"
        elif (
            (stem == "usb" and not mapping and _said(text).get("host") != "spice")
            or (stem == "serial" and text != "socket")
            or stem == "parallel"
        ):
            yield f"{key} is a device of its own node"


def _mapped(
    options: Mapping[str, str], around: Surroundings, target: Publication, vmid: int
) -> Iterator[str]:
    """Mappings that name nothing on the target, or nothing that is there and free."""
    for key, text in options.items():
        name = _said(text).get("mapping", "")
        if key.startswith("usb") and name and target.node not in _nodes_of(around.usb, name):
            yield f"its USB mapping {name[:40]} names no device on {target.node}"
        if not key.startswith("hostpci") or not name:
            continue
        paths = passthrough.mapped(around.pci, (name,), target.node)
        there = {
            address: device
            for address, device in target.devices.items()
            if address in paths or address.rpartition(".")[0] in paths
        }
        if not paths:
            yield f"its mapping {name[:40]} names no device on {target.node}"
        elif not there:
            yield f"the devices that its mapping {name[:40]} names on {target.node} are not there"
        elif "mdev" not in text and all(device.vmid not in (0, vmid) for device in there.values()):
            holders = sorted({device.vmid for device in there.values()})
            yield f"VM {', '.join(map(str, holders))} has all of mapping {name[:40]} on {target.node}"


def _live(options: Mapping[str, str], around: Surroundings) -> Iterator[str]:
    """Why a running VM cannot be handed over, though it can be moved while it is stopped."""
    for key, text in options.items():
        name = _said(text).get("mapping", "")
        if key.startswith("hostpci") and name and not _migrates(around.pci, name):
            yield f"{key} (mapping {name[:40]}) cannot be handed over"
        if key.startswith("usb") and name:
            yield f"{key} (mapping {name[:40]}) cannot be handed over"
        if key.rstrip("0123456789") in _LIVE_ONLY:
            yield f"{key} cannot be handed over"


def _disk(
    key: str,
    text: str,
    around: Surroundings,
    target: str,
    snapshots: bool,
    runs: bool,
    against: list[str],
    costs: list[str],
) -> int:
    """One drive: what speaks against the move is added; MiB that have to be copied."""
    said = values_of(text, "file")
    volume = said.get("file") or said.get("volume", "")
    name, colon, inside = volume.partition(":")
    if volume in ("", "none"):
        return 0
    if not colon or volume.startswith("/"):
        if not key.startswith("unused"):
            against.append(f"{key} is {volume[:40]}, which belongs to its own node")
        return 0
    kind, options = around.storages.get(name, ("", {}))
    nodes = [one for one in options.get("nodes", "").split(",") if one]
    if (not kind and name != "local") or "disable" in options or (nodes and target not in nodes):
        against.append(f"storage {name[:40]} of {key} is not available on {target}")
        return 0
    if storage.shares(kind, options):
        return 0
    if said.get("media") == "cdrom" and "cloudinit" not in inside:
        if runs:
            against.append(f"{key} is a local image; eject it first")
        return 0
    if "/" in inside and inside.startswith("base-"):
        against.append(f"{key} is a linked clone on local storage")
    elif snapshots:
        against.append(f"{key} is local and the VM has snapshots")
    return _mib(said.get("size", ""))


def _said(text: str) -> Mapping[str, str]:
    return values_of(text, "host")


def values_of(text: str, default: str) -> Mapping[str, str]:
    """A property string's parts; none of one that Proxmox would not take."""
    try:
        return values.property_string(text, default)
    except ValueError:
        return {}


def _nodes_of(mappings: str, name: str) -> set[str]:
    return {node for node, _line in _maps(mappings, name)}


def _maps(mappings: str, name: str) -> Iterator[tuple[str, str]]:
    """Node and line of each entry of one mapping."""
    for line in _section(mappings, name):
        if line.startswith("map "):
            yield values_of(line.removeprefix("map "), "").get("node", ""), line


def _migrates(mappings: str, name: str) -> bool:
    return "live-migration-capable 1" in _section(mappings, name)


def _section(mappings: str, name: str) -> list[str]:
    """The properties of one mapping, stripped."""
    found: list[str] = []
    inside = False
    for line in mappings.splitlines():
        if line.strip() and not line[0].isspace() and not line.startswith("#"):
            inside = line.strip().rstrip(":") == name
        elif inside and line.strip():
            found.append(" ".join(line.split()))
    return found


def _mib(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})(?:\.\d+)?([KMGT])", text, re.ASCII)
    return int(int(match[1]) * _UNITS[match[2]]) if match else 0
