"""Who names our hookscript: Proxmox does not start a VM or container whose hookscript is missing.

All of the cluster is read, and what cannot be read is an error and not nobody: with pve-cluster down /etc/pve
is empty. Snapshots count, as a rollback brings their `hookscript` back. Backups do, too, and cannot be known.
"""

import errno
import os
import re

from pxsched.errors import UserError
from pxsched.guest.hookscript import is_ours
from pxsched.proxmox import cluster
from pxsched.proxmox.cluster import Guest
from pxsched.root import Root
from pxsched.value import Value

_TRIES = 3
_LINE = re.compile(r"^hookscript:[ \t]*(\S+)[ \t]*$", re.MULTILINE)
# What there is of Proxmox on a machine while /etc/pve is empty.
_PROXMOX = ("etc/pve", "usr/bin/pvesh", "var/lib/pve-cluster")


class Naming(Value):
    """vms: those whose hookscript is ours, or some snapshot's. containers: the VMIDs of such, by node."""

    vms: tuple[Guest, ...] = ()
    containers: tuple[tuple[int, str], ...] = ()

    @property
    def now(self) -> list[Guest]:
        return [guest for guest in self.vms if is_ours(guest.hookscript)]

    @property
    def snapshots(self) -> list[str]:
        """`VM 100 before-upgrade`, one for each snapshot."""
        return [f"VM {guest.vmid} {name}" for guest in self.vms for name in guest.our_snapshots]


def survey(root: Root) -> Naming:
    """Reads the whole cluster. A machine without any Proxmox has nobody. Raises UserError."""
    if not any(root.exists(path) for path in _PROXMOX):
        return Naming()
    for left in range(_TRIES, 0, -1):
        try:
            return _survey(root)
        except FileNotFoundError as error:  # destroyed or migrated meanwhile
            if left == 1:
                raise UserError(f"{error.filename} comes and goes", hint="try again") from error
    raise AssertionError


def _survey(root: Root) -> Naming:
    vms = []
    for vmid, node in sorted(cluster.places(root).items()):
        guest = cluster.read_guest(root, node, vmid)
        if guest is None:
            _readable(root, f"{cluster.NODES_DIR}/{node}/qemu-server/{vmid}.conf")
            raise FileNotFoundError(errno.ENOENT, "", f"VM {vmid}")
        if guest.names_ours:
            vms.append(guest)
    return Naming(tuple(vms), tuple(_containers(root)))


def _containers(root: Root) -> list[tuple[int, str]]:
    found = []
    for node in cluster.nodes(root):
        for name in root.list(f"{cluster.NODES_DIR}/{node}/lxc"):
            if re.fullmatch(r"\d{3,9}\.conf", name, re.ASCII):
                text = _readable(root, f"{cluster.NODES_DIR}/{node}/lxc/{name}")
                if any(map(is_ours, _LINE.findall(text))):
                    found.append((int(name.removesuffix(".conf")), node))
    return found


def _readable(root: Root, path: str) -> str:
    """The content of a file. Raises FileNotFoundError, and UserError for any other reason not to have it."""
    try:
        with open(root.path(path), "rb") as file:
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"/{path} cannot be read: {os.strerror(error.errno or 0)}") from error
