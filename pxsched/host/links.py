"""Network devices: the taps of a VM with their queues, and the port behind an SR-IOV virtual function.

Rules: Documentation/networking/scaling.rst (RPS, XPS), Documentation/ABI/testing/sysfs-class-net; what a port
tells its virtual functions by rtnetlink. Proxmox calls the tap of `netN` tapVMIDiN.
"""

import re
from collections.abc import Iterable

from pxsched.host import devices
from pxsched.host.devices import PCI_DIR, Device
from pxsched.root import Root
from pxsched.value import Value, replace

NET_DIR = "sys/class/net"
_QUEUE = re.compile(r"([rt]x)-\d{1,5}", re.ASCII)


class Tap(Value):
    """ifindex: tells it from a later one with the same name. queues: `rx-0`, ...; tx queues are among them
    only where the device has several, as the kernel takes no mask otherwise.
    """

    name: str
    ifindex: int
    queues: tuple[str, ...]


class Port(Value):
    """The physical port behind a virtual function. up: None where the kernel could not be asked.

    speed_mbit: None when the link is down or the driver does not say. virtual_index: which of the port's
    functions it is; link_state: what the port tells it of the link: auto, enable, disable.
    """

    name: str
    node: int | None
    up: bool | None = None
    speed_mbit: int | None = None
    rx_queues: int | None = None
    tx_queues: int | None = None
    virtual_index: int | None = None
    link_state: str = ""


def taps(root: Root, vmid: int, nics: Iterable[int]) -> tuple[Tap, ...]:
    """The taps that exist now of these network devices of a VM."""
    found = (_tap(root, f"tap{int(vmid)}i{int(number)}") for number in nics)
    return tuple(tap for tap in found if tap is not None)


def _tap(root: Root, name: str) -> Tap | None:
    ifindex = root.read(f"{NET_DIR}/{name}/ifindex") or ""
    if not ifindex.isdecimal():
        return None
    queues = [queue for queue in root.list(f"{NET_DIR}/{name}/queues") if _QUEUE.fullmatch(queue)]
    transmit = [queue for queue in queues if queue.startswith("tx-")]
    if len(transmit) == 1:
        queues.remove(transmit[0])
    return Tap(name, int(ifindex), tuple(sorted(queues, key=_queue_order)))


def _queue_order(queue: str) -> tuple[str, int]:
    direction, _, number = queue.partition("-")
    return direction, int(number)


def port_of(root: Root, device: Device) -> Port | None:
    """The port behind a virtual function of a network card; None for every other device.

    Loading psutil and pyroute2 takes tens of milliseconds: for reports, never for the hook.
    """
    names = root.list(f"{PCI_DIR}/{device.physical}/net") if device.physical else []
    if not names:
        return None
    name = names[0]
    port = Port(
        name, devices.node_of(root, device.physical), virtual_index=devices.virtual_index(root, device)
    )
    if root.live:
        return _with_netlink(_with_state(port))
    speed = root.read(f"{NET_DIR}/{name}/speed") or ""  # of a captured machine
    return replace(port, speed_mbit=int(speed) if speed.isdecimal() else None)


def _with_state(port: Port) -> Port:
    """The port with its state and speed; as it was where the link is gone."""
    import psutil

    stats = psutil.net_if_stats().get(port.name)
    return port if stats is None else replace(port, up=stats.isup, speed_mbit=stats.speed or None)


def _with_netlink(port: Port) -> Port:
    """The port with what only rtnetlink knows; as it was where pyroute2 is missing or the link is gone."""
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        return port
    try:
        with IPRoute() as netlink:
            links = netlink.get_links(ifname=port.name, ext_mask=1)  # RTEXT_FILTER_VF
    except (NetlinkError, OSError):
        return port
    for link in links:
        if link.get_attr("IFLA_IFNAME") == port.name:
            return replace(
                port,
                rx_queues=link.get_attr("IFLA_NUM_RX_QUEUES"),
                tx_queues=link.get_attr("IFLA_NUM_TX_QUEUES"),
                link_state=_link_state(link, port.virtual_index),
            )
    return port


def _link_state(link: object, index: int | None) -> str:
    """IFLA_VF_LINK_STATE of one virtual function (linux/if_link.h)."""
    states = {0: "auto", 1: "enable", 2: "disable"}
    functions = link.get_attr("IFLA_VFINFO_LIST") if hasattr(link, "get_attr") else None
    for function in functions.get_attrs("IFLA_VF_INFO") if functions else ():
        state = function.get_attr("IFLA_VF_LINK_STATE")
        if state is not None and state["vf"] == index:
            return states.get(state["link_state"], "")
    return ""
