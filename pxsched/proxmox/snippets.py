"""Which snippets a node sees on a storage, by Proxmox's API: of other nodes there is no other way."""

from pxsched.proxmox.api import Api, Method


def on_node(api: Api, node: str, storage: str) -> frozenset[str]:
    """The volumes, such as `local:snippets/pxsched`. Raises ApiError."""
    answer = api.call(Method.GET, f"nodes/{node}/storage/{storage}/content", {"content": "snippets"})
    entries = answer if isinstance(answer, list) else []
    return frozenset(str(item.get("volid")) for item in entries if isinstance(item, dict))
