"""Network devices: the taps of a VM with their queues, and the port behind an SR-IOV virtual function.

Rules: Documentation/networking/scaling.rst (RPS, XPS), Documentation/ABI/testing/sysfs-class-net; the port's
state by rtnetlink. Proxmox calls the tap of `netN` tapVMIDiN.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pxsched.host import devices
from pxsched.host.devices import PCI_DIR, Device
from pxsched.root import Root

NET_DIR = "sys/class/net"
_QUEUE = re.compile(r"([rt]x)-\d{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tap:
    """ifindex: tells it from a later one with the same name. queues: `rx-0`, ...; tx queues are among them
    only where the device has several, as the kernel takes no mask otherwise.
    """

    name: str
    ifindex: int
    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """The physical port behind a virtual function. up: None where netlink could not be asked.

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

    Speaks netlink and takes tens of milliseconds to load it: for reports, never for the hook.
    """
    names = root.list(f"{PCI_DIR}/{device.physical}/net") if device.physical else []
    if not names:
        return None
    name, index = names[0], devices.virtual_index(root, device)
    speed = root.read(f"{NET_DIR}/{name}/speed") or ""
    port = Port(
        name,
        devices.node_of(root, device.physical),
        speed_mbit=int(speed) if speed.isdecimal() else None,
        virtual_index=index,
    )
    return _with_netlink(port) if root.live else port


def _with_netlink(port: Port) -> Port:
    """The port with what rtnetlink says; as it was where pyroute2 is missing or the link is gone."""
    from dataclasses import replace

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
                up=link.get_attr("IFLA_OPERSTATE") == "UP",
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
