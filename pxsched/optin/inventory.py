"""The VMs of a cluster as its API tells them, for machines that cannot read /etc/pve."""

import re

from pxsched.errors import UserError
from pxsched.proxmox.api import Api, Method
from pxsched.proxmox.cluster import Guest, parse_vmid


def guests(api: Api, node: str | None = None) -> list[Guest]:
    """All VMs that the user may see, or those of one node. Raises UserError when the answer is no list."""
    entries = api.call(Method.GET, "cluster/resources", {"type": "vm"})
    if not isinstance(entries, list):
        raise UserError("the answer of /cluster/resources is not a list")
    vms = [entry for entry in entries if isinstance(entry, dict) and entry.get("type") == "qemu"]
    found = [_guest(api, entry) for entry in vms if node in (None, entry.get("node"))]
    return sorted(found, key=lambda guest: guest.vmid)


def _guest(api: Api, entry: dict[str, object]) -> Guest:
    vmid = parse_vmid(str(entry.get("vmid")))
    node = str(entry.get("node"))
    if not re.fullmatch(r"[A-Za-z0-9-]{1,63}", node, re.ASCII):
        raise UserError(f"VM {vmid} is on a node with the impossible name {node[:40]!r}")
    answer = api.call(Method.GET, f"nodes/{node}/qemu/{vmid}/config")
    raw = answer if isinstance(answer, dict) else {}
    options = {str(key): str(value) for key, value in raw.items() if key not in ("digest", "description")}
    return Guest(
        vmid,
        node,
        options,
        str(raw.get("description", "")),
        str(raw.get("digest", "")),
        running=entry.get("status") == "running",
        ha=bool(entry.get("hastate")),
    )
