"""What a settings file says, and what it said when it could last be read.

A file that cannot be read is not one that says nothing: with a bracket missing, in the middle of a copy, or
while /etc/pve is down, what it said last stays in force, and that is told. Its text is kept in /run/pxsched,
with what was made of it, so that a hook loads no TOML parser for a file that is as it was.
"""

import errno
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from pxsched import lock, state, stored
from pxsched.errors import UserError
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import Value, items

FILE = "run/pxsched/settings.json"
LOCK = "run/pxsched/settings.lock"
MOST_BYTES = 1 << 20
# An empty file, and one that is but the beginning of what it was, may be a copy in the middle: they count
# once they have stood for so long.
EMPTY_S, CUT_S = 60.0, 10.0
# What is in /etc/pve as long as pmxcfs is mounted there.
_CLUSTER_DIR = "etc/pve"
_CLUSTER_SIGNS = ("nodes", "local", "qemu-server")
_NO_CLUSTER = "/etc/pve is empty, as when pve-cluster is down"


class Record(Value):
    """What a file said. document: as parsed, None where JSON cannot hold that. at_s: when, since 1970."""

    text: str
    document: Mapping[str, Any] | None
    at_s: float


Records = dict[str, Record]


class Look(Value):
    """A file at this moment. text: None when it is not there, or cannot be read. trouble: why not.

    mtime_s: since 1970.
    """

    text: str | None = None
    trouble: str = ""
    mtime_s: float = 0.0


class Said(Value):
    """What counts. text: empty where there is none. document: None where it has to be parsed.

    stale: what to tell where this is not what the file says now.
    """

    text: str = ""
    document: Mapping[str, Any] | None = None
    stale: str = ""


def judge(file: str, look: Look, before: Record | None, now_s: float) -> Said:
    """What counts of a file; whether its text is whole is for `broken` to say."""
    if look.trouble:
        return fall_back(file, look.trouble, before)
    text = look.text or ""
    age_s = abs(now_s - look.mtime_s)
    if before is not None and look.text is not None and text != before.text:
        if not text.strip() and before.text.strip() and age_s < EMPTY_S:
            return fall_back(file, f"empty for less than {EMPTY_S:g} s, without so much as a comment", before)
        if before.text.startswith(text) and age_s < CUT_S:
            return fall_back(file, f"cut short less than {CUT_S:g} s ago", before)
    same = before is not None and before.text == text
    return Said(text, before.document if before is not None and same else None)


def fall_back(file: str, trouble: str, before: Record | None) -> Said:
    """What counts instead of what cannot be read."""
    if before is None:
        return Said(stale=f"/{file}: {trouble}; it was never read since this node started: defaults hold")
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(before.at_s))
    stale = f"/{file}: {trouble}; what it said at {at} stays in force"
    return Said(before.text, before.document, stale)


def look(root: Root, file: str, *, known: bool) -> Look:
    """The file as it is. known: it was read before."""
    try:
        fd = os.open(root.path(file), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return Look(trouble="" if _is_removed(root, file, known) else _NO_CLUSTER)
    except OSError as error:
        return Look(trouble=f"cannot be read: {error.strerror}")
    try:
        data = b""
        while chunk := os.read(fd, MOST_BYTES):
            data += chunk
            if len(data) > MOST_BYTES:
                raise OSError(errno.EFBIG, f"larger than {MOST_BYTES >> 10} KiB")
        return Look(data.decode("utf-8", "surrogateescape"), mtime_s=os.fstat(fd).st_mtime)
    except OSError as error:
        return Look(trouble=f"cannot be read: {error.strerror}")
    finally:
        os.close(fd)


def _is_removed(root: Root, file: str, known: bool) -> bool:
    """Whether a file that is not there was taken away, rather than its whole file system."""
    if not file.startswith(f"{_CLUSTER_DIR}/"):
        return True
    if not os.path.isdir(root.path(_CLUSTER_DIR)):
        return not known  # there is no Proxmox here; or there was?
    return any(os.path.lexists(root.path(f"{_CLUSTER_DIR}/{sign}")) for sign in _CLUSTER_SIGNS)


def load(root: Root, *, set_aside: bool) -> tuple[Records, str]:
    """What was kept by file, and what to tell where that is damaged."""
    found, damage = state.load(root, FILE, _records, set_aside=set_aside)
    return found or {}, damage


def _records(document: object) -> Records:
    files = stored.table(stored.table(document).get("files"))
    return {file: _record(stored.table(body)) for file, body in files.items()}


def _record(body: Mapping[str, Any]) -> Record:
    text = stored.text(body.get("text"), MOST_BYTES)
    return Record(text, stored.maybe(stored.table, body.get("document")), stored.number(body.get("at_s")))


def record(text: str, document: Mapping[str, Any] | None, now_s: float) -> Record:
    """What to keep of a file that was read. What JSON would give back otherwise is parsed anew each time."""
    try:
        whole = document is not None and stored.parse(json.dumps(document)) == document
    except (Damaged, TypeError, ValueError, RecursionError):
        whole = False
    return Record(text, document if whole else None, round(now_s, 3))


def save(root: Root, records: Records) -> None:
    """Keeps this. To fail costs nothing but what would have been kept."""
    try:
        with lock.held(root, LOCK, patience_s=0):
            if records:
                files = {file: dict(items(one)) for file, one in records.items()}
                state.save(root, FILE, {"schema": 1, "files": files})
            else:
                state.remove(root, FILE)
    except (UserError, OSError):
        pass
