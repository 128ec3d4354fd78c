"""Which VM one is, apart from its number: Proxmox gives the number of a destroyed VM to the next one.

Rules: PVE::API2::Qemu create_vm and clone_vm. A new VM gets a UUID in `smbios1` and a `vmgenid`; a clone gets
new ones, but its original's `meta` with the creation time; a rollback renews `vmgenid` alone. A VM older than
these options has none of them.
"""

import re
from collections.abc import Mapping

from pxsched.value import Value

_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
# "0" and "1" as vmgenid: none, and "make one".
_GENID = re.compile(_UUID, re.ASCII)
_SMBIOS = re.compile(rf"(?:^|,)uuid=({_UUID})(?:,|$)", re.ASCII)
_CTIME = re.compile(r"(?:^|,)ctime=(\d{1,12})(?:,|$)", re.ASCII)


class Identity(Value):
    """What tells a VM from another of its number; empty where its configuration does not say. ctime_s: Unix
    time of its creation.
    """

    uuid: str = ""
    genid: str = ""
    ctime_s: str = ""


def of(options: Mapping[str, str]) -> Identity:
    """The identity that a configuration states."""
    smbios, meta = _SMBIOS.search(options.get("smbios1", "")), _CTIME.search(options.get("meta", ""))
    genid = options.get("vmgenid", "")
    return Identity(
        smbios[1].lower() if smbios else "",
        genid.lower() if _GENID.fullmatch(genid) else "",
        meta[1] if meta else "",
    )


def same(one: Identity, other: Identity) -> bool:
    """Whether both are one VM.

    Either of the two UUIDs proves it, as each may be renewed or edited by itself. The creation time counts
    only where no UUID can be compared: clones of one template share it. VMs that say nothing are told apart
    by their number alone, which is the caller's.
    """
    for name in ("uuid", "genid"):
        mine, its = getattr(one, name), getattr(other, name)
        if mine and mine == its:
            return True
    if (one.uuid and other.uuid) or (one.genid and other.genid):
        return False
    if one.ctime_s or other.ctime_s:
        return one.ctime_s == other.ctime_s
    return _silent(one) and _silent(other)


def _silent(identity: Identity) -> bool:
    return not (identity.uuid or identity.genid)
