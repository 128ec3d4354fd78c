"""The API of a sandbox node: the few requests pxsched makes, carried out by the sandbox's `qm`."""

import re
from collections.abc import Callable, Mapping

from pxsched.errors import UserError
from pxsched.proxmox import cluster, connection
from pxsched.proxmox.api import Api, ApiError, Method
from pxsched.root import Root
from pxsched.value import Value


class StandIn(Value):
    """qm: runs `qm` with these arguments and raises UserError when it fails."""

    root: Root
    qm: Callable[..., object]

    def call(self, method: Method, path: str, params: Mapping[str, str] | None = None) -> object:
        """Raises ApiError for what the sandbox refuses or has no counterpart of."""
        options = dict(params or {})
        try:
            return self._call(method, path, options)
        except ApiError:
            raise
        except UserError as error:
            raise ApiError(error.message, hint=error.hint) from error

    def _call(self, method: Method, path: str, options: dict[str, str]) -> object:
        if (method, path) == (Method.GET, "cluster/nextid"):
            return self._next_id()
        if method is Method.CREATE and re.fullmatch(r"nodes/[\w-]+/qemu", path):
            return self.qm("create", options.pop("vmid"), *_flags(options))
        config = re.fullmatch(r"nodes/([\w-]+)/qemu/(\d+)/config", path)
        if method is Method.SET and config:
            self._check_digest(config[1], int(config[2]), options.pop("digest", ""))
            return self.qm("set", config[2], *_flags(options))
        raise ApiError(f"a sandbox has no {method.value} /{path}", status=501)

    def _next_id(self) -> str:
        used = {guest.vmid for guest in cluster.guests(self.root)}
        return str(next(vmid for vmid in range(100, 10**9) if vmid not in used))

    def _check_digest(self, node: str, vmid: int, digest: str) -> None:
        guest = cluster.read_guest(self.root, node, vmid)
        if guest is None:
            raise ApiError(f"Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist")
        if digest and digest != guest.digest:
            raise ApiError("detected modified configuration - file changed by other user?")


def _flags(options: Mapping[str, str]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", value)]


def local_api(root: Root) -> Api:
    """The API of the node that `root` is: the running one, or a sandbox. Raises UserError for any other."""
    return connection.local() if root.base == "/" else find(root)


def find(root: Root) -> StandIn:
    """The sandbox that `root` is. Raises UserError when it is a mere copy of a machine's files."""
    from pathlib import Path

    from pxsched.sandbox import node, sandbox

    directory = Path(root.base)
    if not node.is_sandbox(directory):
        raise UserError(f"{root.base} is no sandbox: the VMs below it cannot be changed")
    home = node.find(directory)

    def qm(*words: str) -> None:
        result = sandbox.do(home, list(words))
        if result.code:
            raise UserError(" ".join(result.output.split()) or f"qm {words[0]}: exit code {result.code}")

    return StandIn(root, qm)
