"""What a VM's options were before `pxsched shape` changed them, until they are put back.

One file a VM below /etc/pve, so that it moves with the VM; it belongs to one VM, not to its number (see
`guest/identity.py`). It is written before Proxmox is asked, so a record may be of a change that never came.
"""

import json
import os
import re
from collections.abc import Mapping

from pxsched import stored
from pxsched.errors import UserError
from pxsched.guest import identity
from pxsched.guest.identity import Identity
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import Value, plain

DIRECTORY = "etc/pve/pxsched/shape"
MOST_BYTES = 1 << 16
MOST_WRITES = 8
_MOST_TEXT = 8192
_KEY = re.compile(r"args|sockets|cores|numa[0-7]?", re.ASCII)

Texts = Mapping[str, str | None]


class Record(Value):
    """before: what the options were, None for unset. wrote: what they were set to; several where it is not
    known whether Proxmox took the last.
    """

    vmid: int
    owner: Identity
    before: Texts
    wrote: tuple[Texts, ...]


class Undone(Value):
    """changes: what puts the options back. left: options that somebody else changed since, which stay."""

    changes: Texts
    left: tuple[str, ...] = ()


def undo(record: Record, options: Mapping[str, str]) -> Undone:
    """What puts back what we changed, and nothing that others did."""
    changes: dict[str, str | None] = {}
    left = []
    for key, old in record.before.items():
        now = options.get(key)
        written = [texts[key] for texts in record.wrote if key in texts]
        if now == old:
            continue
        if now in written:
            changes[key] = old
        elif key == "args" and (without := _without(now or "", old or "", written)) is not None:
            changes[key] = without or None
        else:
            left.append(key)
    return Undone(changes, tuple(left))


def _without(now: str, old: str, written: list[str | None]) -> str | None:
    """Somebody's new `args` without the words that we had added to the old ones; None where they are gone."""
    for text in written:
        ours = (text or "").removeprefix(old).strip()
        if ours and now.count(ours) == 1:
            head, _, tail = now.partition(ours)
            return f"{head.rstrip()} {tail.lstrip()}".strip()
    return None


def vmids(root: Root) -> list[int]:
    """The numbers that something is remembered of, whichever VMs have them now."""
    names = (re.fullmatch(r"([1-9]\d{2,8})\.json", name, re.ASCII) for name in root.list(DIRECTORY))
    return sorted(int(match[1]) for match in names if match)


def path_of(vmid: int) -> str:
    return f"{DIRECTORY}/{int(vmid)}.json"


def read(root: Root, vmid: int, options: Mapping[str, str]) -> Record | None:
    """What is remembered of the VM that has these options. Raises Damaged."""
    data = root.read_bytes(path_of(vmid))
    if data is None:
        return None
    document = stored.table(stored.parse(data, most_bytes=MOST_BYTES))
    owner = stored.table(document.get("owner"))
    record = Record(
        stored.integer(document.get("vmid")),
        Identity(*(stored.text(owner.get(name), 64) for name in ("uuid", "genid", "ctime_s"))),
        _texts(document.get("before")),
        tuple(_texts(texts) for texts in stored.listed(document.get("wrote"), MOST_WRITES)),
    )
    if record.vmid != vmid:
        raise Damaged("it is of another VMID")
    return record if identity.same(record.owner, identity.of(options)) else None


def _texts(value: object) -> dict[str, str | None]:
    texts = stored.table(value, 16)
    if unknown := [key for key in texts if not _KEY.fullmatch(key)]:
        raise Damaged(f"{unknown[0][:20]!r} is no option that is shaped")
    return {key: None if text is None else _line(text) for key, text in texts.items()}


def _line(value: object) -> str:
    text = stored.text(value, _MOST_TEXT)
    if "\n" in text or "\r" in text:
        raise Damaged("an option of several lines")
    return text


def write(root: Root, record: Record) -> None:
    """Raises UserError."""
    from pxsched.host import mounts  # the hook only reads

    mounts.check_cluster(root)
    path = root.path(path_of(record.vmid))
    new = f"{path}.tmp.{os.uname().nodename}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(new, "w", encoding="utf-8") as file:
            json.dump({"schema": 1, **plain(record)}, file, indent=1)
        os.replace(new, path)
    except OSError as error:
        raise _refusal(record.vmid, error) from error


def drop(root: Root, vmid: int) -> None:
    """Raises UserError."""
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
            return  # it has other entries


def _refusal(vmid: int, error: OSError) -> UserError:
    return UserError(f"/{path_of(vmid)}: {error.strerror}", hint="has the cluster quorum?")
