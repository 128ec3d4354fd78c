"""Debian's kernel as the lab boots it: unpacked vmlinux, and the modules the first root needs.

An uncompressed vmlinux saves most of the boot time under emulation; QEMU enters it by its PVH note. Where the
payload lies in a bzImage is told by the setup header (Documentation/arch/x86/boot.rst: setup_sects,
payload_offset, payload_length).
"""

import lzma
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import cpio

_XZ, _ZSTD, _GZIP = b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x1f\x8b"
_DECOMPRESSORS = {_XZ: ["xz", "-dc"], _ZSTD: ["zstd", "-dcq"], _GZIP: ["gzip", "-dcq"]}


@dataclass(frozen=True, slots=True)
class Kernel:
    """The one kernel installed in a root."""

    root: Path
    release: str

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules" / self.release

    @property
    def bzimage(self) -> Path:
        return self.root / f"boot/vmlinuz-{self.release}"


def installed(root: Path) -> Kernel:
    releases = sorted(path.name for path in (root / "lib/modules").iterdir())
    if len(releases) != 1:
        raise RuntimeError(f"expected one kernel in {root}, found {releases}")
    return Kernel(root, releases[0])


def vmlinux(bzimage: bytes) -> bytes:
    """The ELF image inside a bzImage."""
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    for magic, command in _DECOMPRESSORS.items():
        if payload.startswith(magic):
            # The last four bytes are the unpacked size, which the tools call trailing garbage.
            done = subprocess.run(
                command, input=payload[:-4] if magic != _GZIP else payload, capture_output=True
            )
            if done.stdout[:4] == b"\x7fELF":
                return done.stdout
            raise RuntimeError(f"{command[0]}: {done.stderr.decode(errors='replace')}")
    raise RuntimeError(f"unknown kernel compression {payload[:6].hex()}")


def module_closure(kernel: Kernel, names: tuple[str, ...]) -> list[Path]:
    """Module files in an order in which each comes after what it needs; what is built in is left out."""
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, wanted = line.partition(":")
        needs[_module_name(path)] = (path, wanted.split())
    ordered: dict[str, None] = {}

    def add(path: str, wanted: list[str]) -> None:
        for other in reversed(wanted):
            ordered.setdefault(other)
        ordered.setdefault(path)

    for name in names:
        if name in needs:
            add(*needs[name])
    return [kernel.modules / path for path in ordered]


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".", 1)[0].replace("-", "_")


def module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if data.startswith(_XZ):
        return lzma.decompress(data)
    if data.startswith(_ZSTD):
        return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout
    return data


def initramfs(
    kernel: Kernel, modules: tuple[str, ...], init: str, *, extra: tuple[cpio.Entry, ...] = ()
) -> bytes:
    """A first root of busybox, an init script, and the modules named, under /modules in loading order."""
    entries = [cpio.directory(name) for name in ("bin", "dev", "proc", "sys", "modules", "newroot", "tmp")]
    entries.append(cpio.node("dev/console", 5, 1))
    entries.append(cpio.file("bin/busybox", (kernel.root / "bin/busybox").read_bytes()))
    entries.append(cpio.link("bin/sh", "busybox"))
    for number, path in enumerate(module_closure(kernel, modules)):
        entries.append(
            cpio.file(f"modules/{number:02d}-{_module_name(path.name)}.ko", module_bytes(path), mode=0o644)
        )
    entries.append(cpio.file("init", init.encode()))
    entries.extend(extra)
    return cpio.archive(entries)
