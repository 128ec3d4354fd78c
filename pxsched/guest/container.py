"""Containers as a scheduler sees them: which ones run, and in which control group.

Rules: pve-container starts each in the group `lxc/VMID` at the hierarchy's root (its processes in `ns` below
that, lxc.cgroup.dir.container.inner), and its monitor process in `lxc.monitor/VMID`; what the container makes
itself lies below. They are found by these groups: /etc/pve may be empty. VMs and containers share one range
of numbers.
"""

import re

from pxsched.guest.process import VMID
from pxsched.host import cgroup
from pxsched.root import Root

GROUP, MONITORS = "lxc", "lxc.monitor"


def group(vmid: int) -> str:
    return f"{GROUP}/{vmid}"


def inner(vmid: int) -> str:
    """Where its processes are; older versions have no such group, and the files of the one above hold."""
    return f"{group(vmid)}/ns"


def running(root: Root) -> list[int]:
    """The containers that have processes, ascending."""
    names = root.list(cgroup.path(root, GROUP))
    return sorted(int(name) for name in names if VMID.fullmatch(name) and _populated(root, int(name)))


def _populated(root: Root, vmid: int) -> bool:
    """v2 says whether somebody is in or below a group; a group of v1 ends with its container."""
    events = root.read(f"{cgroup.path(root, group(vmid))}/cgroup.events")
    return events is None or re.search(r"^populated 1$", events, re.MULTILINE) is not None
