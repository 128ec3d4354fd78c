"""Where entries are kept: one file a VM below /etc/pve, so that they move with the VMs and no node overwrites
what another one writes.

Rules: pmxcfs replicates each file by itself, renames atomically, knows neither modes nor links, and refuses
every change while there is no quorum. Only root can write here.
"""

import os
import re
from collections.abc import Iterable, Mapping

from pxsched.chain import entry as entries
from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.output import complain
from pxsched.root import Root
from pxsched.stored import Damaged

CHAIN_DIR = "etc/pve/pxsched/chain"
# Of all VMs in one file; read as long as it is there, see `upkeep.take_over`.
OLD_FILE = "etc/pve/pxsched-chain.json"

_NAME = re.compile(r"([1-9]\d{2,8})\.json", re.ASCII)
# Another node may remove the empty directory between our making it and our writing into it.
_TRIES = 20


def path_of(vmid: int) -> str:
    return f"{CHAIN_DIR}/{int(vmid)}.json"


def vmids(root: Root) -> list[int]:
    """The VMIDs that there are files of."""
    return sorted(int(match[1]) for name in root.list(CHAIN_DIR) if (match := _NAME.fullmatch(name)))


def read(root: Root, vmid: int) -> Entry | None:
    """What is remembered under this number, whichever VM it is of. Raises Damaged."""
    data = root.read_bytes(path_of(vmid))
    if data is not None:
        return entries.load(data, vmid)
    return read_old(root).get(vmid)


def read_old(root: Root) -> dict[int, Entry]:
    """Raises Damaged."""
    data = root.read_bytes(OLD_FILE)
    return {} if data is None else entries.load_old(data)


def damaged(root: Root) -> dict[str, str]:
    """The files that cannot be read, and what is wrong with each."""
    found = {}
    for path, vmid in [(path_of(vmid), vmid) for vmid in vmids(root)] + [(OLD_FILE, 0)]:
        try:
            read(root, vmid) if vmid else read_old(root)
        except Damaged as error:
            found[path] = str(error)
    return found


def find(root: Root, vmid: int, options: Mapping[str, str]) -> Entry | None:
    """What is remembered of the VM whose configuration has these options.

    What is of another VM of that number, or damaged, counts as nothing; the latter with a line.
    """
    try:
        entry = read(root, vmid)
    except Damaged as error:
        name = path_of(vmid) if root.exists(path_of(vmid)) else OLD_FILE
        complain(f"/{name} is damaged ({error}): no chained hookscript is run")
        return None
    return entry if entry is not None and entry.of(options) else None


def find_all(root: Root, vms: Iterable[tuple[int, Mapping[str, str]]]) -> dict[int, Entry]:
    """What is remembered of these VMs, given by number and options."""
    found = {vmid: find(root, vmid, options) for vmid, options in vms}
    return {vmid: entry for vmid, entry in found.items() if entry is not None}


def shares(root: Root, vmids: Iterable[int]) -> dict[int, str]:
    """The `shares` that are remembered under these numbers, empty for unset."""
    found = {}
    for vmid in vmids:
        try:
            entry = read(root, vmid)
        except Damaged:
            continue  # said by whoever needs it
        if entry is not None and entry.shares is not None:
            found[vmid] = entry.shares
    return found


def write(root: Root, entry: Entry) -> None:
    """Remembers, in the place of what was remembered under that number. Raises UserError."""
    from pxsched.host import mounts  # the hook only reads

    mounts.check_cluster(root)
    path = root.path(path_of(entry.vmid))
    new = f"{path}.tmp.{os.uname().nodename}.{os.getpid()}"
    for left in range(_TRIES, 0, -1):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(new, "wb") as file:
                file.write(entries.dump(entry))
            os.replace(new, path)
            return
        except FileNotFoundError as error:
            if left == 1:
                raise _refusal(entry.vmid, error) from error
        except OSError as error:
            raise _refusal(entry.vmid, error) from error


def drop(root: Root, vmid: int) -> None:
    """Forgets what is remembered under that number. Raises UserError."""
    path = root.path(path_of(vmid))
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refusal(vmid, error) from error
    for directory in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
        try:
            os.rmdir(directory)
        except OSError:
            return  # it has other entries, or gets one this moment


def drop_unfinished(root: Root, before_s: float) -> None:
    """Removes what a writer that was killed left before this Unix time."""
    for name in root.list(CHAIN_DIR):
        path = root.path(f"{CHAIN_DIR}/{name}")
        try:
            if ".json.tmp." in name and os.stat(path).st_mtime < before_s:
                os.unlink(path)
        except OSError:
            continue  # the next time, or another node did


def _refusal(vmid: int, error: OSError) -> UserError:
    return UserError(f"/{path_of(vmid)}: {error.strerror}", hint="has the cluster quorum?")
