"""The options of `qm create` and `qm set` that a sandbox knows, and when a change takes effect.

Rules: PVE::QemuServer ($confdesc, vmconfig_hotplug_pending): a running VM takes some at once, the rest
waits under [PENDING] for its next start.
"""

import os
import re
from collections.abc import Mapping
from enum import Enum
from typing import Final

from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.sandbox.node import Node


class Effect(Enum):
    """When a change of a running VM's option takes effect."""

    AT_ONCE = 1
    VCPUS = 2
    BALLOON = 3
    NEXT_START = 4


_AT_ONCE: Final = frozenset(
    {"cpulimit", "cpuunits", "description", "hookscript", "lock", "name", "onboot", "protection", "shares"}
    | {"startup", "tags"}
)
_NEXT_START: Final = frozenset(
    {
        "affinity",
        "agent",
        "args",
        "cores",
        "cpu",
        "hotplug",
        "hugepages",
        "keephugepages",
        "machine",
        "memory",
    }
    | {"meta", "numa", "ostype", "scsihw", "smbios1", "sockets", "vmgenid"}
)
_NUMBERED: Final = re.compile(r"(?:numa[0-7]|(?:virtio|scsi|net|hostpci)\d{1,2})", re.ASCII)
_VOLUME: Final = re.compile(r"local:snippets/([A-Za-z0-9_.-]+)", re.ASCII)


def effect(key: str) -> Effect:
    """When it takes effect. Raises UserError for an option that no sandbox has."""
    if key in _AT_ONCE:
        return Effect.AT_ONCE
    if key == "vcpus":
        return Effect.VCPUS
    if key == "balloon":
        return Effect.BALLOON
    if key in _NEXT_START or _NUMBERED.fullmatch(key):
        return Effect.NEXT_START
    raise UserError(f"Unknown option: {key}", hint="a sandbox has only a part of Proxmox's options")


def check(node: Node, values: Mapping[str, str]) -> None:
    """Refuse what Proxmox would refuse. Raises UserError."""
    for key, value in values.items():
        effect(key)
        if "\n" in value and key != "description":
            raise UserError(f"{key}: a value is one line")
        problems = [] if key == "description" else config.parse(f"{key}: {value}", name="").warnings
        if problems:
            raise UserError(f"400 Parameter verification failed. {problems[0].partition(': ')[2]}")
    if "hookscript" in values:
        script(node, values["hookscript"])


def script(node: Node, volume: str) -> str:
    """The path of a hookscript's volume. Raises UserError where it is missing or cannot be run."""
    match = _VOLUME.fullmatch(volume)
    if match is None or match[1] in (".", ".."):
        raise UserError(f"hookscript: invalid volume {volume[:60]!r}", hint="local:snippets/NAME")
    path = node.path(f"var/lib/vz/snippets/{match[1]}")
    if not path.is_file():
        raise UserError(f"hook script '{volume}' does not exist")
    if not os.access(path, os.X_OK):
        raise UserError(f"script '{path}' is not executable")
    return str(path)
