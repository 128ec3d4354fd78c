"""Changing options of one VM: one request, and what its configuration says afterwards.

Rules: PVE::API2::Qemu update_vm. proxmoxer's local backend takes any line on standard error for a failure,
"trying to acquire lock..." included, so what the file says decides, where there is one to read.
"""

from collections.abc import Mapping

from pxsched.proxmox import cluster
from pxsched.proxmox.api import Api, ApiError, Method
from pxsched.root import Root


def write(
    api: Api,
    node: str,
    vmid: int,
    changes: Mapping[str, str | None],
    *,
    digest: str = "",
    files: Root | None = None,
) -> None:
    """Sets options, and deletes those that are empty or None. digest: of the file that is to be changed,
    which Proxmox compares. files: the node's root, None when reached over HTTPS. Raises ApiError.
    """
    params = {key: value for key, value in changes.items() if value}
    if gone := [key for key, value in changes.items() if not value]:
        params["delete"] = ",".join(gone)
    if digest:
        params["digest"] = digest
    try:
        api.call(Method.SET, f"nodes/{node}/qemu/{vmid}/config", params)
    except ApiError:
        if files is None or not shown(files, node, vmid, changes):
            raise


def shown(files: Root, node: str, vmid: int, changes: Mapping[str, str | None]) -> bool:
    """Whether the VM's configuration says all of it."""
    found = cluster.read_guest(files, node, vmid)
    return found is not None and all(
        found.options.get(key, "") == (value or "") for key, value in changes.items()
    )
