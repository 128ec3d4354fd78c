"""Which files an installation on a node consists of, and in what order they come.

A VM whose hookscript is missing does not start, so the script comes before any VM has it.
"""

from collections.abc import Iterator
from pathlib import Path

from pxsched import material
from pxsched.errors import UserError
from pxsched.guest.hookscript import SCRIPT_NAME
from pxsched.proxmox import storage as storages
from pxsched.root import Root
from pxsched.setup import stub
from pxsched.setup.manifest import Manifest
from pxsched.setup.steps import Step, Systemctl, Write
from pxsched.value import Value

UNIT_DIR = "etc/systemd/system"
PREFIX = "opt/pxsched"

# What an admin edits: written once.
TEMPLATES = {
    "proxmox-scheduler": "etc/default/proxmox-scheduler",
    "pxsched.toml": "etc/pxsched/pxsched.toml",
}

# What every version of the hookscript does.
_HOOK = b"from pxsched.hook import main as run"


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
    """That of the program that runs. Raises UserError when there is none."""
    return Material(material.hooks(), str(material.prefix()))


def is_script(root: Root, path: str, known: Manifest) -> bool:
    """Whether a file is our hookscript of this or any other version, or the stub that stood in for it."""
    data = root.read_bytes(path)
    return data is not None and (known.is_ours(root, path) or _HOOK in data or stub.is_stub(data))


def install(
    root: Root, material: Material, storage: str, known: Manifest, *, packaged: bool
) -> Iterator[Step]:
    """The steps of an installation. packaged: units and templates come with the Debian package.

    Raises UserError when the storage cannot hold the script now, or has another one of that name.
    """
    directory = storages.snippets_directory(root, storage)
    storages.check_mounted(root, storage)
    script = material.read(SCRIPT_NAME)
    path = f"{directory}/{SCRIPT_NAME}"
    if root.exists(path) and not is_script(root, path, known):
        raise UserError(f"/{path} is not of pxsched", hint="move it away, or choose another --storage")
    if not packaged:
        script = script.replace(f"/{PREFIX}".encode(), material.prefix.encode())
    yield Write(path, script, 0o755)
    yield Write(storages.RECORD, f"{storage}\n".encode())
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
