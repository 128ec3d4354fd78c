"""Changing VMs through Proxmox: one call, three ways to make it.

On a node proxmoxer's local backend, or `pvesh` where proxmoxer is absent or too old to have one (before
1.3.0, as in Debian 12); from elsewhere HTTPS with the certificate checked.
Rules: the Proxmox VE API; pvesh(1).
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol

from pxsched import child, stored
from pxsched.errors import UserError
from pxsched.stored import Damaged
from pxsched.value import Value

# `pvesh` loads all of Proxmox's Perl and may ask another node over ssh.
TIMEOUT_S = 60


class Method(StrEnum):
    GET = "get"
    CREATE = "post"
    SET = "put"
    DELETE = "delete"


class ApiError(UserError):
    """Proxmox refused or could not be asked. status: HTTP's, 0 where there is none."""

    def __init__(self, message: str, *, status: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Api(Protocol):
    def call(self, method: Method, path: str, params: Mapping[str, str] | None = None) -> object:
        """One request; path without leading slash. Raises ApiError."""


class Proxmoxer(Value):
    """Through the library proxmoxer, local or https."""

    client: Any
    where: str = ""

    def call(self, method: Method, path: str, params: Mapping[str, str] | None = None) -> object:
        from proxmoxer.core import ResourceException

        failures = (ResourceException, OSError, child.Late)  # requests' own errors are OSErrors
        try:
            with child.surroundings():
                answer: object = getattr(self.client(path), method.value)(**(params or {}))
        except failures as error:
            raise _refusal(error, method, path, self.where) from error
        if isinstance(answer, dict) and isinstance(answer.get("errors"), str | bytes):
            return None  # what pvesh printed beside JSON, e.g. "update VM 100: ..."
        return answer


def _refusal(error: Exception, method: Method, path: str, where: str) -> ApiError:
    status = getattr(error, "status_code", 0)
    # 2.x gives parameter errors apart, 1.2 only the message.
    parts = [str(getattr(error, "content", "") or error), getattr(error, "errors", None)]
    text = " ".join(_flat(part) for part in parts if part)
    return ApiError(
        f"{where}{method.name.lower()} /{path}: {one_line(text)}", status=status, hint=hint_for(status, text)
    )


def _flat(part: object) -> str:
    if isinstance(part, dict):
        return "; ".join(f"{key}: {value}" for key, value in part.items())
    return str(part)


def one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no answer")[:300]


def hint_for(status: int, text: str) -> str | None:
    """What to do about the refusals that have one cause."""
    lower = text.lower()
    if "only root can" in lower:
        return "Proxmox lets nobody but root@pam set this, no API token either; run it on the node"
    if "digest" in lower or "modified config" in lower:
        return "somebody changed the VM meanwhile; try again"
    if "quorum" in lower:
        return "the cluster has no quorum; nothing can be written until it has"
    if "can't lock file" in lower or "is locked" in lower:
        return "the VM is busy (backup, migration, snapshot); try again later"
    if "certificate" in lower:
        return "give the cluster's certificate with --ca, a copy of /etc/pve/pve-root-ca.pem"
    if status in (401, 403):
        return "the user or token lacks a permission"
    return None


class Pvesh(Value):
    """Through the command `pvesh`, which is root@pam on the node."""

    command: tuple[str, ...] = ("pvesh",)

    def call(self, method: Method, path: str, params: Mapping[str, str] | None = None) -> object:
        verb = {Method.CREATE: "create", Method.SET: "set"}.get(method, method.value)
        options = [word for key, value in (params or {}).items() for word in (f"--{key}", value)]
        argv = [*self.command, verb, f"/{path}", *options, "--output-format", "json"]
        try:
            done = child.run(argv, patience_s=TIMEOUT_S)
        except FileNotFoundError:
            raise ApiError(
                "pvesh is not here", hint="this is no Proxmox node; use --host to reach one"
            ) from None
        except (OSError, child.Late) as error:
            raise ApiError(f"pvesh {verb} /{path}: {error}") from error
        if done.returncode:
            text = one_line(done.stderr or done.stdout)
            code = re.match(r"(\d{3}) ", text)
            status = int(code[1]) if code else 0
            raise ApiError(f"pvesh {verb} /{path}: {text}", status=status, hint=hint_for(status, done.stderr))
        return _json_tail(done.stdout)


def _json_tail(text: str) -> object:
    """The JSON at the end of pvesh's output, which some calls precede with what their task says."""
    lines = text.splitlines()
    for first in range(len(lines)):
        try:
            value: object = stored.parse("\n".join(lines[first:]))
        except Damaged:
            continue
        return value
    return None
