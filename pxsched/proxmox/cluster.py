"""What the cluster's files below /etc/pve say: this node's name, the VMs' configurations, HA, quorum.

Reading them costs nothing beside the Proxmox API, and on a node they are the same data (pmxcfs replicates
them). Rules: PVE::Cluster, PVE::HA::Config; a configuration's digest is the SHA-1 of the whole file.
"""

import os
import re
from collections.abc import Iterator, Mapping

from pxsched import stored
from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.guest.hookscript import is_ours
from pxsched.node.sighting import name_of
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import NOTHING, Value

NODES_DIR = "etc/pve/nodes"
CAPACITY_NAME = "node-capacity"
CAPACITY_TAG = "karpenter"

_NODE = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?", re.ASCII)
_CONF = re.compile(r"([1-9]\d{2,8})\.conf", re.ASCII)
_VMID = re.compile(r"[1-9]\d{2,8}", re.ASCII)


class Guest(Value):
    """A VM of the cluster. options: those in force, as written; digest: of its file. running: None when
    unknown. problem: why its configuration cannot be read, so that the options are not all there are.
    snapshot_scripts: the hookscripts that come back when it is rolled back, by the snapshot's name.
    """

    vmid: int
    node: str
    options: Mapping[str, str] = NOTHING
    description: str = ""
    digest: str = ""
    running: bool | None = False
    ha: bool = False
    snapshot_scripts: Mapping[str, str] = NOTHING
    problem: str = ""

    @property
    def name(self) -> str:
        return self.options.get("name", "")

    @property
    def tags(self) -> frozenset[str]:
        return frozenset(tag for tag in re.split(r"[;,\s]+", self.options.get("tags", "")) if tag)

    @property
    def template(self) -> bool:
        return self.options.get("template", "0") not in ("0", "off", "no", "false")

    @property
    def hookscript(self) -> str:
        return self.options.get("hookscript", "")

    @property
    def our_snapshots(self) -> list[str]:
        """The snapshots whose rollback brings our hookscript back."""
        return [name for name, script in self.snapshot_scripts.items() if is_ours(script)]

    @property
    def names_ours(self) -> bool:
        """Whether its hookscript is ours, now or after some rollback."""
        return is_ours(self.hookscript) or bool(self.our_snapshots)

    @property
    def describes_capacity(self) -> bool:
        """Whether this is Karpenter's description of a node, which never runs and is no VM to us."""
        return self.name == CAPACITY_NAME and CAPACITY_TAG in self.tags


def parse_vmid(text: str) -> int:
    """Raises UserError when `text` is no VMID that Proxmox could have given."""
    if not _VMID.fullmatch(text):
        raise UserError(f"{text[:40]!r} is no VMID", hint="a number from 100 to 999999999")
    return int(text)


def node_name(root: Root) -> str:
    """This node's name, fit for a path of the API. Raises UserError when there is none."""
    name = name_of(root)
    if not _NODE.fullmatch(name):
        raise UserError("the name of this node is unknown", hint="is this the root of a Proxmox node?")
    return name


def nodes(root: Root) -> list[str]:
    """The names of all nodes of the cluster."""
    return [name for name in root.list(NODES_DIR) if _NODE.fullmatch(name)]


def places(root: Root) -> dict[int, str]:
    """Which node each VM is on. Raises UserError when that cannot be known: with pve-cluster down /etc/pve is
    empty, and with pmxcfs broken it cannot be read.
    """
    here = node_name(root)
    found: dict[int, str] = {}
    for node in _listed(root, NODES_DIR):
        if _NODE.fullmatch(node):
            names = _listed(root, f"{NODES_DIR}/{node}/qemu-server", needed=node == here)
            found |= {int(match[1]): node for name in names if (match := _CONF.fullmatch(name))}
    if not root.exists(f"{NODES_DIR}/{here}"):
        raise UserError(f"/{NODES_DIR} has no node {here}", hint=_HINT)
    return found


_HINT = "does pve-cluster run? systemctl status pve-cluster"


def _listed(root: Root, path: str, *, needed: bool = True) -> list[str]:
    try:
        return sorted(os.listdir(root.path(path)))
    except FileNotFoundError as error:
        if not needed:
            return []
        raise UserError(f"/{path} is not there", hint=_HINT) from error
    except OSError as error:
        raise UserError(f"/{path} cannot be read: {error.strerror}", hint=_HINT) from error


def guests(root: Root, node: str | None = None) -> list[Guest]:
    """The VMs of one node, or of the whole cluster, by VMID."""
    managed = ha_resources(root)
    names = [node] if node is not None else nodes(root)
    return sorted(
        (guest for name in names for guest in _of_node(root, name, managed)), key=lambda guest: guest.vmid
    )


def _of_node(root: Root, node: str, managed: frozenset[int]) -> Iterator[Guest]:
    for name in root.list(f"{NODES_DIR}/{node}/qemu-server"):
        match = _CONF.fullmatch(name)
        guest = read_guest(root, node, int(match[1]), managed) if match else None
        if guest is not None:
            yield guest


def read_guest(root: Root, node: str, vmid: int, managed: frozenset[int] = frozenset()) -> Guest | None:
    """One VM by its configuration file; None when it is not on this node (any more)."""
    import hashlib

    file = f"{NODES_DIR}/{node}/qemu-server/{vmid}.conf"
    raw = root.read_bytes(file)
    if raw is None:
        return None
    parsed = config.parse(raw.decode("utf-8", "replace"), name=f"/{file}")
    return Guest(
        vmid,
        node,
        parsed.options,
        parsed.description,
        hashlib.sha1(raw, usedforsecurity=False).hexdigest(),
        running=root.exists(f"run/qemu-server/{vmid}.pid"),
        ha=vmid in managed,
        snapshot_scripts={
            name: options["hookscript"]
            for name, options in parsed.snapshots.items()
            if "hookscript" in options
        },
    )


def ha_resources(root: Root) -> frozenset[int]:
    """The VMs that the HA manager starts, stops and moves (section headers of resources.cfg)."""
    text = root.read("etc/pve/ha/resources.cfg") or ""
    found = re.findall(r"^vm:[ \t]*([1-9]\d{2,8})[ \t]*$", text, re.ASCII | re.MULTILINE)
    return frozenset(int(vmid) for vmid in found)


class Membership(Value):
    """quorate: whether the cluster takes writes. online: by node; one that is missing is not known of."""

    quorate: bool = True
    online: Mapping[str, bool] = NOTHING


def membership(root: Root) -> Membership:
    """Who is there, by pmxcfs's `.members`, live from corosync. A node without a cluster is its own quorum; a
    file that cannot be understood is none.
    """
    text = root.read("etc/pve/.members")
    if not text:
        return Membership()
    try:
        said = stored.table(stored.parse(text))
        nodes = stored.table(said.get("nodelist", {}))
        online = {name: stored.table(body).get("online") in (1, True) for name, body in nodes.items()}
        if "cluster" not in said:
            return Membership(True, online)
        return Membership(stored.table(said["cluster"]).get("quorate") in (1, True), online)
    except Damaged:
        return Membership(quorate=False)


def quorate(root: Root) -> bool:
    """Whether the cluster takes writes."""
    return membership(root).quorate


def cluster_name(root: Root) -> str:
    """The name in corosync.conf; empty for a node on its own."""
    text = root.read("etc/pve/corosync.conf") or root.read("etc/corosync/corosync.conf") or ""
    match = re.search(r"^\s*cluster_name:\s*([\w.-]{1,64})\s*$", text, re.ASCII | re.MULTILINE)
    return match[1] if match else ""
