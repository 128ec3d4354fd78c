"""Which files an installation consists of, and in what order they come and go.

A VM whose hookscript is missing does not start, so the script comes before any VM has it and goes after the
last one lost it; where one keeps it, a stub that exits 0 stays in its place.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pxsched.errors import UserError
from pxsched.optin.rules import SCRIPT_NAME
from pxsched.proxmox import storage as storages
from pxsched.root import Root
from pxsched.setup.steps import Remove, RemoveTree, Step, Systemctl, Write
from pxsched.value import Value

STATE_DIR = "var/lib/pxsched"
STORAGE_RECORD = f"{STATE_DIR}/storage"
UNIT_DIR = "etc/systemd/system"
PREFIX = "opt/pxsched"

# What an admin edits: written once, removed only while it is as we wrote it.
TEMPLATES = {
    "proxmox-scheduler": "etc/default/proxmox-scheduler",
    "pxsched.toml": "etc/pxsched/pxsched.toml",
}

STUB = b"""\
#!/bin/sh
# pxsched was removed from this node. This file stays because Proxmox does not start a VM whose hookscript is
# missing, and some VM still names it: `qm set VMID --delete hookscript` on each, then delete it.
exit 0
"""


class Material(Value):
    """The files that are installed: those of the checkout, or of the installed package."""

    directory: Path
    prefix: str

    def read(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError as error:
            path = self.directory / name
            raise UserError(f"{path}: {error.strerror}", hint="the copy is incomplete") from error

    def units(self) -> list[str]:
        """The names of the systemd units there are."""
        found = (path for path in self.directory.glob("pxsched*.*") if path.suffix in (".service", ".timer"))
        return sorted(path.name for path in found)

    def program(self) -> str:
        """The command as units and people call it."""
        return f"{self.prefix}/bin/pxsched"


def find_material() -> Material:
    """Beside the package in a checkout, else in PREFIX/share. Raises UserError when there is none."""
    package = Path(__file__).resolve().parents[1]
    prefix = package.parents[3] if len(package.parents) > 3 else Path("/")
    for directory in (package.parent / "hooks", prefix / "share/pxsched/hooks"):
        if (directory / SCRIPT_NAME).exists():
            return Material(directory, str(prefix))
    raise UserError(f"the files to install are not beside {package}", hint="run install.sh from a checkout")


def install(root: Root, material: Material, storage: str, *, packaged: bool) -> Iterator[Step]:
    """The steps of an installation. packaged: units and templates come with the Debian package. Raises
    UserError when the storage cannot hold the script now.
    """
    directory = storages.snippets_directory(root, storage)
    storages.check_mounted(root, storage)
    script = material.read(SCRIPT_NAME)
    if not packaged:
        script = script.replace(f"/{PREFIX}".encode(), material.prefix.encode())
    yield Write(f"{directory}/{SCRIPT_NAME}", script, 0o755)
    yield Write(STORAGE_RECORD, f"{storage}\n".encode())
    if packaged:
        return
    for name, target in TEMPLATES.items():
        yield Write(target, material.read(f"default/{name}"), keep=True)
    for name in material.units():
        text = material.read(name).replace(b"/usr/bin/pxsched", material.program().encode())
        yield Write(f"{UNIT_DIR}/{name}", text)
    yield Systemctl(("daemon-reload",))
    for name in material.units():
        if name.endswith(".timer") or f"{name.partition('.')[0]}.timer" not in material.units():
            yield Systemctl(("enable", name), offline=True)
            yield Systemctl(("restart", name))


def stop(material: Material) -> Iterator[Step]:
    """What has to end before anything is put back, so that no pass turns the knobs again."""
    for name in reversed(material.units()):
        yield Systemctl(("disable", name), must=False, offline=True)
        yield Systemctl(("stop", name), must=False)


def uninstall(root: Root, material: Material, *, keep_stub: bool, packaged: bool) -> Iterator[Step]:
    """The steps after every VM and every value was dealt with. keep_stub: some VM still names the script."""
    record = root.read(STORAGE_RECORD)
    for storage in dict.fromkeys(name for name in (record, "local") if name):
        try:
            path = f"{storages.snippets_directory(root, storage)}/{SCRIPT_NAME}"
            storages.check_mounted(root, storage)
        except UserError:
            continue  # the storage is gone, and the script with it
        if not os.path.lexists(root.path(path)):
            continue
        yield Write(path, STUB, 0o755) if keep_stub else Remove(path)
    yield RemoveTree("run/pxsched")
    yield RemoveTree(STATE_DIR)
    if packaged:
        return
    for name, target in TEMPLATES.items():
        yield Remove(target, only=material.read(f"default/{name}"))
    yield RemoveTree("etc/pxsched", empty=True)
    for name in material.units():
        yield Remove(f"{UNIT_DIR}/{name}")
    yield Systemctl(("daemon-reload",), must=False)


def leftovers(root: Root) -> list[str]:
    """Files of admins that an uninstallation leaves, below the root."""
    kept = [path for path in TEMPLATES.values() if root.exists(path)]
    hooks = [f"etc/pxsched/{name}" for name in root.list("etc/pxsched") if f"etc/pxsched/{name}" not in kept]
    cluster = [path for path in ("etc/pve/pxsched.toml",) if root.exists(path)]
    return [*kept, *hooks, *cluster]
