"""The name that Proxmox knows this node by."""

import os

from pxsched.root import Root


def name_of(root: Root) -> str:
    """The target of /etc/pve/local, else the host name up to its first dot."""
    try:
        return os.path.basename(os.readlink(root.path("etc/pve/local")))
    except OSError:
        name = root.read("etc/hostname") or root.read("proc/sys/kernel/hostname") or "localhost"
        return name.partition(".")[0]
