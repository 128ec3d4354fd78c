"""A running VM's passed-through devices for `status`: where they sit, their port, their interrupts."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from pxsched.guest import passthrough
from pxsched.guest.config import Machine
from pxsched.host import cpulist, interrupts, links
from pxsched.host.devices import Device
from pxsched.host.interrupts import Interrupt
from pxsched.ledger.claim import Claim
from pxsched.plugins.interrupts import astray
from pxsched.root import Root
from pxsched.value import plain


def document(root: Root, claim: Claim) -> list[dict[str, Any]]:
    """One object a device; empty for a VM without any, and before QEMU runs."""
    if claim.process is None:
        return []
    devices = passthrough.of_vm(root, claim.vmid, Machine(), claim.process)
    vectors = interrupts.of_devices(root, devices)
    return [_device(root, claim, device, vectors) for device in devices]


def _device(root: Root, claim: Claim, device: Device, vectors: Iterable[Interrupt]) -> dict[str, Any]:
    nodes = claim.placement.nodes
    port = links.port_of(root, device)
    return {
        "address": device.address,
        "node": device.node,
        "far": device.node is not None and bool(nodes) and device.node not in nodes,
        "physical_function": device.physical or None,
        "mdev": device.mdev or None,
        "port": None if port is None else plain(port),
        "interrupts": [
            {
                "number": vector.number,
                "name": vector.names[0],
                "asked": vector.affinity,
                "effective": vector.effective,
                "astray": astray(vector),
            }
            for vector in vectors
            if vector.device == device.address
        ],
    }


def lines(vmid: int, devices: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The same for a person."""
    for device in devices:
        words = [device["address"]]
        if device["node"] is not None:
            words.append(f"on node {device['node']}" + (", far from the VM" if device["far"] else ""))
        if device["mdev"]:
            words.append(f"mediated device {device['mdev']}")
        if port := device["port"]:
            speed = f" at {port['speed_mbit']} Mbit/s" if port["speed_mbit"] else ""
            index = "" if port["virtual_index"] is None else f"virtual function {port['virtual_index']} of "
            words.append(f"{index}{port['name']}{speed}")
        words.append(_summary(device["interrupts"]))
        yield f"VM {vmid}: {'; '.join(words)}"


def _summary(found: list[dict[str, Any]]) -> str:
    if not found:
        return "no interrupts yet"
    places = Counter(vector["effective"] or vector["asked"] for vector in found)
    cpus = cpulist.format(cpu for place in places for cpu in cpulist.parse(place))
    strays = sum(vector["astray"] for vector in found)
    wrong = f", {strays} not where asked" if strays else ""
    return f"{len(found)} interrupt{'s' if len(found) > 1 else ''} on CPU {cpus}{wrong}"
