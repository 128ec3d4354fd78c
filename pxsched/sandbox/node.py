"""The directory of a sandbox: laid out as the root of a Proxmox node, so that `--root DIR` reads it like
one.

    etc/pve/nodes/NAME/qemu-server/VMID.conf   etc/pve/local, etc/pve/qemu-server -> there
    run/qemu-server/VMID.{pid,qmp,serial0,...}   var/run -> ../run
    var/lock/qemu-server/lock-VMID.conf   var/lib/vz/snippets/   proc -> /proc   sys -> /sys
    sandbox/   what a real node does not have: each guest's kind, memory file and console, the control socket

Rules: the paths Proxmox uses (`/var/run` on QEMU's command line, `/run` elsewhere).
"""

import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from pxsched import material
from pxsched.errors import UserError
from pxsched.value import Value

NAME: Final = "sandbox"
_MARK: Final = "sandbox/this-is-a-pxsched-sandbox"
_ALIAS: Final = "sandbox/alias"
_DIRECTORIES: Final = (
    f"etc/pve/nodes/{NAME}/qemu-server",
    "etc/default",
    "etc/pxsched",
    "run/qemu-server",
    "run/pxsched",
    "var/lib/vz/snippets",
    "var/lock/qemu-server",
    "sandbox",
    "usr/bin",
)
_LINKS: Final = {
    "etc/pve/local": f"nodes/{NAME}",
    "etc/pve/qemu-server": f"nodes/{NAME}/qemu-server",
    "var/run": "../run",
    "proc": "/proc",
    "sys": "/sys",
}
_SOCKET_PATH_BYTES: Final = 107
_LONGEST_SOCKET: Final = "/var/run/qemu-server/999999999.serial0"


class Node(Value):
    """A sandbox's directory. `base` is the path to use for it: short enough for unix sockets below it."""

    base: str

    def path(self, relative: str) -> Path:
        return Path(self.base, relative)

    def config(self, vmid: int, *, node: str = NAME) -> Path:
        return self.path(f"etc/pve/nodes/{node}/qemu-server/{vmid}.conf")

    def run(self, vmid: int, kind: str) -> Path:
        """`/run/qemu-server/VMID.kind`."""
        return self.path(f"run/qemu-server/{vmid}.{kind}")

    def var_run(self, vmid: int, kind: str) -> str:
        """The same file as QEMU's command line names it."""
        return f"{self.base}/var/run/qemu-server/{vmid}.{kind}"

    def own(self, vmid: int, kind: str) -> Path:
        """A file of the sandbox about that VM."""
        return self.path(f"sandbox/{vmid}.{kind}")

    def lock(self, vmid: int) -> Path:
        return self.path(f"var/lock/qemu-server/lock-{vmid}.conf")

    @property
    def control(self) -> Path:
        """The socket on which the supervisor takes commands."""
        return self.path("sandbox/control")

    @property
    def events(self) -> Path:
        """The socket on which QEMU processes report to the supervisor."""
        return self.path("run/qmeventd.sock")

    def vmids(self) -> list[int]:
        names = (path.stem for path in self.path(f"etc/pve/nodes/{NAME}/qemu-server").glob("*.conf"))
        return sorted(int(name) for name in names if re.fullmatch(r"[1-9]\d{2,8}", name))


def create(directory: Path) -> Node:
    """Lay the directory out as a node; one that already is a sandbox is taken as it stands."""
    directory = directory.absolute()
    if not is_sandbox(directory):
        if directory.exists() and any(directory.iterdir()):
            raise UserError(f"{directory} is neither empty nor a sandbox", hint="name another --dir")
        for name in _DIRECTORIES:
            (directory / name).mkdir(parents=True, exist_ok=True)
        for link, target in _LINKS.items():
            (directory / link).symlink_to(target)
        (directory / _MARK).touch()
    # Our own hookscript, by the interpreter that has what it needs, and the commands of `sandbox shell`.
    hook = str(material.hooks() / material.SCRIPT)
    _write_command(directory / "var/lib/vz/snippets/pxsched", sys.executable, "-I", hook)
    itself = ("env", f"PYTHONPATH={material.PACKAGE.parent}", *material.again())
    _write_command(directory / "usr/bin/pxsched", *itself)
    _write_command(directory / "usr/bin/qm", *itself, "sandbox", "--dir", str(directory), "qm")
    return find(directory)


def _write_command(path: Path, *words: str) -> None:
    """A script that stands for these words."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    new.chmod(0o755)
    new.replace(path)


def find(directory: Path) -> Node:
    """The sandbox in that directory."""
    directory = directory.absolute()
    if not is_sandbox(directory):
        raise UserError(f"{directory} is not a sandbox", hint="`pxsched sandbox qm create` makes one")
    # A comma would end the path within an option of QEMU.
    if len(os.fsencode(directory)) + len(_LONGEST_SOCKET) <= _SOCKET_PATH_BYTES and "," not in str(directory):
        return Node(str(directory))
    return Node(_alias(directory))


def remove(directory: Path) -> None:
    """Delete the directory of a sandbox, and nothing that is not one."""
    directory = directory.absolute()
    if not is_sandbox(directory):
        raise UserError(f"{directory} is not a sandbox")
    alias = directory / _ALIAS
    if alias.is_symlink():
        shutil.rmtree(alias.readlink().parent, ignore_errors=True)
    shutil.rmtree(directory)


def is_sandbox(directory: Path) -> bool:
    return (directory / _MARK).exists()


def _alias(directory: Path) -> str:
    """A short path to a directory whose own is too long for a unix socket below it."""
    note = directory / _ALIAS
    if note.is_symlink():
        known = note.readlink()
        if known.is_symlink() and known.readlink() == directory:
            return str(known)
        note.unlink()
    alias = Path(tempfile.mkdtemp(prefix="pxs-"), "node")
    alias.symlink_to(directory)
    note.symlink_to(alias)
    return str(alias)
