"""Where entries are kept (see `proxmox/records.py`), and the file in which an earlier version kept them."""

from collections.abc import Iterable, Mapping

from pxsched.chain import entry as entries
from pxsched.chain.entry import Entry
from pxsched.output import complain
from pxsched.proxmox.records import Records
from pxsched.root import Root
from pxsched.stored import Damaged

RECORDS = Records("etc/pve/pxsched/chain")
# Of all VMs in one file; read as long as it is there, see `upkeep.take_over`.
OLD_FILE = "etc/pve/pxsched-chain.json"


def read(root: Root, vmid: int) -> Entry | None:
    """What is remembered under this number, whichever VM it is of. Raises Damaged."""
    data = RECORDS.read(root, vmid)
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
    for path, vmid in [(RECORDS.path_of(vmid), vmid) for vmid in RECORDS.vmids(root)] + [(OLD_FILE, 0)]:
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
        name = RECORDS.path_of(vmid) if root.exists(RECORDS.path_of(vmid)) else OLD_FILE
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
    RECORDS.write(root, entry.vmid, entries.dump(entry))
