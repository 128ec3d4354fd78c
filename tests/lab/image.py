"""Building the lab's disk from Debian's packages, once, into a cache named by the recipe.

A directory of the cache holds `root` (the unpacked system, out of which QEMU itself is run), `disk.img` (the
same as ext4), `vmlinux`, `initrd` and `ssdt.aml`. It is built under another name and renamed when whole, so a
killed build leaves nothing that would be taken for an image.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import acpi, kernel
from .recipe import CPUS, Recipe

REQUIRED_TOOLS = ("mmdebstrap", "mke2fs", "iasl", "zstd", "xz", "unshare", "setpriv", "chroot")

_KEEP_UNUSED_S = 14 * 24 * 3600
_NO_INITRAMFS = "etc/initramfs-tools/update-initramfs.conf"

BOOT_INIT = """\
#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 200 ]; do /bin/busybox usleep 50000; tries=$((tries + 1)); done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /newroot
/bin/busybox umount /proc
/bin/busybox mount --move /dev /newroot/dev
exec /bin/busybox switch_root /newroot /sbin/init
"""


@dataclass(frozen=True, slots=True)
class Image:
    """A finished directory of the cache."""

    path: Path

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def disk(self) -> Path:
        return self.path / "disk.img"


class Unavailable(Exception):
    """The lab cannot be had here; the message is the reason a test skips with."""


def cache_directory() -> Path:
    chosen = os.environ.get("PXSCHED_LAB_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pxsched-lab"


def obstacles() -> list[str]:
    """Why the lab cannot be built or booted here; empty when it can."""
    found = [f"{tool} is not installed" for tool in REQUIRED_TOOLS if not shutil.which(tool)]
    if os.geteuid() != 0:
        found.append("needs root (chroot, mounts, device nodes)")
    if os.uname().machine != "x86_64":
        found.append(f"is for x86_64 machines, this is {os.uname().machine}")
    return found


def get(recipe: Recipe) -> Image:
    """The image of the recipe, built if the cache has none."""
    reasons = obstacles()
    if reasons:
        raise Unavailable("the lab " + ", ".join(reasons))
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    wanted = cache / recipe.key()
    with _locked(cache / f"{recipe.key()}.lock"):
        if not wanted.is_dir():
            _build(recipe, wanted)
        os.utime(wanted)
        _forget_unused(cache)
    return Image(wanted)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_unused(cache: Path) -> None:
    """Images of older recipes, a gigabyte each, that nobody has booted for two weeks."""
    for path in cache.iterdir():
        if path.is_dir() and path.stat().st_mtime < time.time() - _KEEP_UNUSED_S:
            shutil.rmtree(path, ignore_errors=True)


def _build(recipe: Recipe, wanted: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=f"{wanted.name}.", suffix=".partial", dir=wanted.parent))
    work.chmod(0o755)
    try:
        _install_packages(recipe, work / "root")
        _write_files(recipe, work / "root")
        _make_bootable(recipe, work)
        _make_disk(recipe, work)
        work.rename(wanted)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _install_packages(recipe: Recipe, root: Path) -> None:
    command = [
        "mmdebstrap", "--variant=minbase", f"--include={','.join(recipe.packages)}",
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-unsafe-io", "--dpkgopt=force-confold",
        # Nobody boots the initramfs Debian would make here; the lab brings its own.
        f"--essential-hook=mkdir -p $1/etc/initramfs-tools && echo update_initramfs=no >$1/{_NO_INITRAMFS}",
        recipe.suite, str(root),
    ]  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200, check=False
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise Unavailable(f"the lab's image could not be built: mmdebstrap failed:\n{tail}")


def _write_files(recipe: Recipe, root: Path) -> None:
    for name, text in recipe.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> ").strip())
        else:
            path.write_text(text)
    for unit in recipe.masked:
        path = root / "etc/systemd/system" / unit
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")


def _make_bootable(recipe: Recipe, work: Path) -> None:
    system = kernel.installed(work / "root")
    unpacked = kernel.vmlinux(system.bzimage.read_bytes())
    (work / "vmlinux").write_bytes(unpacked)
    # Inner guests run the same kernel.
    (work / "root/lab/vmlinux").write_bytes(unpacked)
    (work / "initrd").write_bytes(kernel.initramfs(system, recipe.boot_modules, BOOT_INIT))
    acpi.compile_table(acpi.table_source(CPUS, cpus_per_core=2), work / "ssdt.aml")


def _make_disk(recipe: Recipe, work: Path) -> None:
    disk = work / "disk.img"
    with disk.open("wb") as file:
        file.truncate(recipe.disk_mib << 20)
    command = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-m",
        "0",
        "-d",
        str(work / "root"),
        str(disk),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
