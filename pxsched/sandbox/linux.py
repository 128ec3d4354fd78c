"""The small Linux guest: Debian's kernel for clouds, and a first root of busybox and a few modules.

Both are made once and kept in the user's cache. The kernel comes from /boot, or else out of Debian's package,
which is downloaded but not installed. The archive format is the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

import functools
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pxsched.errors import UserError
from pxsched.value import Value

KERNEL_PACKAGE = "linux-image-cloud-amd64"
_CLOUD = "boot/vmlinuz-*-cloud-amd64"
_ANY = "boot/vmlinuz-*-amd64"
_BALLOON = "virtio_balloon"
_MODULES = ("virtio_pci", _BALLOON, "evdev", "button")
_DIRECTORIES = ("bin", "proc", "sys", "dev", "hold", "modules", "etc", "etc/acpi", "etc/acpi/PWRF")
_SCRIPTS = {
    "burn": '#!/bin/sh\necho $$ >"$1/cgroup.procs"\nwhile :; do :; done\n',
    "online": "#!/bin/sh\nfor file in /sys/devices/system/cpu/cpu*/online; do\n"
    '    read -r on <"$file"\n    [ "$on" = 1 ] || echo 1 >"$file"\ndone\n',
    "etc/acpi/PWRF/00000080": "#!/bin/sh\npoweroff -f\n",
}
_PATTERN_BYTES = 1 << 20


class Kernel(Value):
    """A kernel and the directory of its modules."""

    image: Path
    modules: Path


def cache() -> Path:
    """Where kernels and first roots are kept: PXSCHED_CACHE, or the user's cache directory."""
    chosen = os.environ.get("PXSCHED_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pxsched")


def kept() -> list[Path]:
    """What lies there of ours."""
    return [path for name in ("kernel", "busybox", "root-*.cpio") for path in sorted(cache().glob(name))]


def forget() -> list[Path]:
    """Delete what is kept, and nothing else that may be there. Returns what was deleted."""
    found = kept()
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with suppress(OSError):  # somebody else's files are in it, or it was never made
        cache().rmdir()
    return found


@functools.cache
def files() -> tuple[str, str]:
    """Kernel and first root, made if need be. Raises UserError where they cannot be had."""
    try:
        kernel = _kernel()
        data = _first_root(kernel)
        path = cache() / f"root-{hashlib.sha256(data).hexdigest()[:16]}.cpio"
        if not path.exists():
            _write_whole(path, data)
    except OSError as error:
        raise UserError(
            f"no files for a Linux guest: {error}", hint="PXSCHED_CACHE names another place"
        ) from error
    return str(kernel.image), str(path)


def _kernel() -> Kernel:
    """The cloud kernel, installed or kept; else downloaded; else, without a network, any of Debian's."""
    kept = cache() / "kernel"
    found = [*_kernels(kept, _CLOUD), *_kernels(Path("/"), _CLOUD)]
    if not found:
        try:
            _unpack(_dependency(KERNEL_PACKAGE), kept)
        except UserError:
            found = list(_kernels(Path("/"), _ANY))
            if not found:
                raise
        else:
            found = list(_kernels(kept, _CLOUD))
    if not found:
        raise UserError(f"{KERNEL_PACKAGE}: no kernel with readable modules in it")
    return found[-1]


def _kernels(root: Path, pattern: str) -> Iterator[Kernel]:
    """The kernels below a root whose modules we can read, oldest first."""
    for image in sorted(root.glob(pattern)):
        for place in ("usr/lib/modules", "lib/modules"):
            modules = root / place / image.name.removeprefix("vmlinuz-")
            if os.access(image, os.R_OK) and _BALLOON in _module_files(modules):
                yield Kernel(image, modules)
                break


def _module_files(modules: Path) -> dict[str, Path]:
    """Module files by name, plain or packed with xz."""
    paths = (path for pattern in ("*.ko", "*.ko.xz") for path in (modules / "kernel").rglob(pattern))
    return {path.name.partition(".")[0].replace("-", "_"): path for path in paths}


def _busybox() -> bytes:
    kept = cache() / "busybox"
    for path in (
        Path("/usr/bin/busybox"),
        Path("/bin/busybox"),
        kept / "bin/busybox",
        kept / "usr/bin/busybox",
    ):
        if path.exists() and b"/ld-linux" not in (data := path.read_bytes()):
            return data
    _unpack("busybox-static", kept)
    return next(kept.glob("**/bin/busybox")).read_bytes()


def _dependency(package: str) -> str:
    """The package that a meta package stands for."""
    match = re.search(r"Depends: (linux-image-\S+)", _tool("apt-cache", "depends", package))
    if match is None:
        raise UserError(f"apt knows no {package}", hint="`apt-get update`, on a Debian 12 or 13 machine")
    return match[1]


def _unpack(package: str, target: Path) -> None:
    """A Debian package's files, without installing it."""
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as directory:
        _tool("apt-get", "-q", "download", package, directory=directory)
        archive = next(Path(directory).glob("*.deb"))
        new = Path(directory, "new")
        _tool("dpkg-deb", "-x", str(archive), str(new))
        if not target.exists():
            new.rename(target)


def _tool(*command: str, directory: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"{command[0]}: {error}", hint="a Linux guest needs Debian's tools and packages"
        ) from error
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}", hint="is the network there?")
    return done.stdout


class _Member(Value):
    name: str
    mode: int
    data: bytes = b""


def _first_root(kernel: Kernel) -> bytes:
    members = [_Member(name, stat.S_IFDIR | 0o755) for name in _DIRECTORIES]
    members.append(_Member("bin/busybox", stat.S_IFREG | 0o755, _busybox()))
    init = Path(__file__).parent / "files/init"
    members.append(_Member("init", stat.S_IFREG | 0o755, init.read_bytes()))
    members.extend(_Member(name, stat.S_IFREG | 0o755, text.encode()) for name, text in _SCRIPTS.items())
    members.append(_Member("pattern", stat.S_IFREG | 0o644, _pattern()))
    modules = _with_dependencies(_module_files(kernel.modules), _MODULES)
    members.extend(
        _Member(f"modules/{name}.ko", stat.S_IFREG | 0o644, data) for name, data in modules.items()
    )
    order = "".join(f"{name}.ko\n" for name in modules)
    members.append(_Member("modules/order", stat.S_IFREG | 0o644, order.encode()))
    parts = [_packed(member, number) for number, member in enumerate(members, 1)]
    return b"".join([*parts, _packed(_Member("TRAILER!!!", 0), 0)])


def _pattern() -> bytes:
    """What fills the guest's pages: no two alike, so that merging equal pages gains nothing within a MiB."""
    return b"".join(hashlib.sha256(b"%d" % number).digest() * 16 for number in range(_PATTERN_BYTES // 512))


def _with_dependencies(available: dict[str, Path], names: Iterable[str]) -> dict[str, bytes]:
    """The modules of these names, each after those it needs (which it names itself: modinfo's `depends`)."""
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = available.get(name)
        if name in ordered or path is None:  # what is not a file is built in
            return
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        match = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in (match[1].decode() if match else "").split(","):
            if other:
                add(other.replace("-", "_"))
        ordered[name] = data

    for name in names:
        add(name)
    return ordered


def _packed(member: _Member, inode: int) -> bytes:
    name = member.name.encode() + b"\0"
    fields = (inode, member.mode, 0, 0, 1, 0, len(member.data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % value for value in fields) + name
    return header + b"\0" * (-len(header) % 4) + member.data + b"\0" * (-len(member.data) % 4)


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)
