"""Where a storage keeps its snippets on this node, from storage.cfg.

Rules: PVE::Storage::Plugin (section headers, `content-dirs`, sub-directory `snippets`); network file systems
are mounted on /mnt/pve/ID unless `path` says otherwise. Volume names have no directory part.
"""

import re
from collections.abc import Mapping

from pxsched.errors import UserError
from pxsched.host.mounts import is_mounted
from pxsched.proxmox.sections import parse
from pxsched.root import Root

STORAGE_FILE = "etc/pve/storage.cfg"
# Where an installation notes the storage that it put the hookscript on.
RECORD = "var/lib/pxsched/storage"
# The types whose plugins offer the content type snippets.
_MOUNTED = ("nfs", "cifs", "cephfs", "glusterfs")
# Those that hold the same for all nodes by nature ($SHARED_STORAGE there).
_SHARED = (*_MOUNTED, "rbd", "iscsi", "iscsidirect", "zfs", "drbd", "pbs")
_WITH_PATH = ("dir", "btrfs", *_MOUNTED)

_ID = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]*[a-zA-Z0-9]", re.ASCII)
_VOLUME = re.compile(r"([^:/\s]+):snippets/([^/\s]+)", re.ASCII)


def snippets_directory(root: Root, storage: str) -> str:
    """The directory's path below the root. Raises UserError when the storage can hold no snippets."""
    found = sections(root)
    if storage == "local" and storage not in found:
        return "var/lib/vz/snippets"  # Proxmox's own default when the file does not name it
    if storage not in found:
        known = ", ".join(sorted(found)) or "local"
        raise UserError(f"there is no storage {storage[:40]!r}", hint=f"Proxmox knows {known}")
    kind, options = found[storage]
    if kind not in _WITH_PATH:
        raise UserError(f"storage {storage} is of type {kind}, which cannot hold snippets")
    path = options.get("path") or (f"/mnt/pve/{storage}" if kind in _MOUNTED else "")
    if not path.startswith("/") or ".." in path.split("/"):
        raise UserError(f"storage {storage} has no usable path ({path[:80]!r})")
    directory = dict(
        part.partition("=")[::2] for part in options.get("content-dirs", "").split(",") if "=" in part
    ).get("snippets", "snippets")
    return f"{path.strip('/')}/{directory.strip('/')}"


def check_mounted(root: Root, storage: str) -> None:
    """Raises UserError when the storage's file system is not mounted now: what is written below its mount
    point then is on another disk, and hidden later.
    """
    kind, options = sections(root).get(storage, ("", {}))
    marked = options.get("is_mountpoint", "no")
    if kind not in _MOUNTED and marked in ("no", "0", "off", "false"):
        return
    point = options.get("path") or f"/mnt/pve/{storage}"
    if marked.startswith("/"):
        point = marked
    if is_mounted(root, point.strip("/")) is False:
        raise UserError(f"storage {storage} is not mounted on {point}", hint="mount it first")


def snippets_directories(root: Root) -> dict[str, str]:
    """Those of all storages that can have one, by the storage's name."""
    found = {}
    for storage in ("local", *sections(root)):
        try:
            found[storage] = snippets_directory(root, storage)
        except UserError:
            continue
    return found


def is_shared(root: Root, storage: str) -> bool:
    """Whether other nodes see the same files there."""
    kind, options = sections(root).get(storage, ("", {}))
    return kind in _MOUNTED or options.get("shared") == "1"


def shares(kind: str, options: Mapping[str, str]) -> bool:
    """Whether a disk on a storage of this type and options is the same one on other nodes."""
    return kind in _SHARED or options.get("shared") == "1"


def sections(root: Root) -> dict[str, tuple[str, dict[str, str]]]:
    """ID -> (type, options)."""
    return {
        one.name: (one.kind, one.options)
        for one in parse(root.read(STORAGE_FILE) or "")
        if _ID.fullmatch(one.name)
    }


def of_hookscript(root: Root) -> str:
    """The storage that the hookscript was installed on; `local` where nothing says."""
    return root.read(RECORD) or "local"


def script_path(root: Root, volume: str) -> str:
    """The path, below the root, of `STORAGE:snippets/NAME`. Raises UserError when it is no such volume."""
    match = _VOLUME.fullmatch(volume)
    if match is None or match[2] in (".", ".."):
        raise UserError(f"{volume[:80]!r} is no snippet")
    return f"{snippets_directory(root, match[1])}/{match[2]}"
