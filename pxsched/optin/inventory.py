"""The VMs of a cluster as its API tells them, for machines that cannot read /etc/pve."""

import re

from pxsched.errors import UserError
from pxsched.proxmox.api import Api, ApiError, Method
from pxsched.proxmox.cluster import Guest, parse_vmid

# What pveproxy answers for a node it cannot reach: no connection, and no answer in time. 0: none came at all.
UNREACHABLE = (0, 595, 596, 599)


def guests(api: Api, node: str | None = None) -> list[Guest]:
    """All VMs that the user may see, or those of one node. Raises UserError when the answer is no list."""
    entries = api.call(Method.GET, "cluster/resources", {"type": "vm"})
    if not isinstance(entries, list):
        raise UserError("the answer of /cluster/resources is not a list")
    vms = [entry for entry in entries if isinstance(entry, dict) and entry.get("type") == "qemu"]
    silent: dict[str, str] = {}
    found = [_guest(api, entry, silent) for entry in vms if node in (None, entry.get("node"))]
    return sorted(found, key=lambda guest: guest.vmid)


def _guest(api: Api, entry: dict[str, object], silent: dict[str, str]) -> Guest:
    """silent: nodes that did not answer, and what was said instead; they are not asked for each VM again."""
    vmid = parse_vmid(str(entry.get("vmid")))
    node = str(entry.get("node"))
    if not re.fullmatch(r"[A-Za-z0-9-]{1,63}", node, re.ASCII):
        raise UserError(f"VM {vmid} is on a node with the impossible name {node[:40]!r}")
    running, ha = entry.get("status") == "running", bool(entry.get("hastate"))
    problem = silent.get(node, "")
    try:
        answer = None if problem else api.call(Method.GET, f"nodes/{node}/qemu/{vmid}/config")
    except ApiError as error:
        problem = error.message
        if error.status in UNREACHABLE:
            silent[node] = f"node {node} does not answer: {error.message}"
    if problem:
        known = {key: str(entry[key]) for key in ("name", "tags", "template", "lock") if entry.get(key)}
        return Guest(vmid, node, known, running=None, ha=ha, problem=silent.get(node, problem))
    raw = answer if isinstance(answer, dict) else {}
    options = {str(key): str(value) for key, value in raw.items() if key not in ("digest", "description")}
    return Guest(
        vmid,
        node,
        options,
        str(raw.get("description", "")),
        str(raw.get("digest", "")),
        running=running,
        ha=ha,
    )
