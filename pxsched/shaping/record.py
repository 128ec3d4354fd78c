"""What a VM's options were before `pxsched shape` changed them, until they are put back.

A record belongs to one VM, not to its number (see `guest/identity.py`). It is written before Proxmox is
asked, so it may be of a change that never came.
"""

import json
import re
from collections.abc import Mapping

from pxsched import stored
from pxsched.guest import identity
from pxsched.guest.identity import Identity
from pxsched.proxmox.records import Records
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import Value, plain

RECORDS = Records("etc/pve/pxsched/shape")
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


def read(root: Root, vmid: int, options: Mapping[str, str]) -> Record | None:
    """What is remembered of the VM that has these options. Raises Damaged."""
    data = RECORDS.read(root, vmid)
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
    RECORDS.write(root, record.vmid, json.dumps({"schema": 1, **plain(record)}, indent=1).encode())
