"""Who holds what, and what everything was before we turned it: one locked, atomically replaced file.

It lives in /run: nothing we turn survives a reboot, and neither does this. A reader never needs the lock, as
the file is replaced whole. A damaged file is set aside and the generation before it used; what even that does
not know is found out anew from the machines that run.

    {"schema":2,"boot_id":"...","claims":BYTES,"knobs":BYTES}
    100   what VM 100 holds
    100   what VM 100's knobs were before
"""

import json
import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

from pxsched import lock, stored
from pxsched.errors import UserError
from pxsched.ledger import claim as claims
from pxsched.ledger import journal as journals
from pxsched.ledger.claim import Claim
from pxsched.ledger.journal import Entries, Journal
from pxsched.ledger.lazy import Block, Lazy
from pxsched.placement.request import Holding
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import Memo, Value

SCHEMA = 2
DIR = "run/pxsched"
FILE = f"{DIR}/ledger.json"
PREVIOUS = f"{DIR}/ledger.previous.json"
DAMAGED, LOST = ".damaged", ".lost"  # what is added to the name of a file that is set aside, and mourned
LOCK = f"{DIR}/lock"


class _Content(Value):
    """What one file says: its lines as text, and what was made of them so far. Never changed otherwise."""

    claim_block: Block
    knob_block: Block
    claims: dict[int, Claim]
    knobs: dict[int, Entries]


class Ledger:
    """The content of the file. Change it only inside `locked`. warnings: what was found damaged.

    stored: whether the file is the one it came from.
    """

    def __init__(self, content: _Content | None = None, warnings: Collection[str] = ()) -> None:
        content = content or _empty()
        self.claims = Lazy(content.claim_block, content.claims, _claim, claims.encode)
        self.journal = Journal(Lazy(content.knob_block, content.knobs, _entries, journals.encode))
        self.warnings = list(warnings)
        self.stored = True

    @property
    def changed(self) -> bool:
        return self.claims.changed or self.journal.by_owner.changed or not self.stored

    def felt(self) -> dict[int, Claim]:
        """The claims that matter to the node's knobs and to other VMs' (`Claim.felt`), by VMID."""
        near = {*self.claims.block.beginning(claims.FELT.encode()), *self.claims.changes()}
        return {vmid: claim for vmid in near if (claim := self.claims.get(vmid)) is not None and claim.felt}

    def holdings(self, *, but: int | None = None) -> list[Holding]:
        """What all VMs but this one hold."""
        known = self.claims.known()
        held = [claims.holding(claim) for vmid, claim in known.items() if claim is not None and vmid != but]
        lines = self.claims.block.lines().items()
        return held + [claims.brief(vmid, text) for vmid, text in lines if vmid not in known and vmid != but]


def now_ns() -> int:
    """Time since boot, suspend included: no clock change ever moves it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def peek(root: Root) -> Ledger:
    """The ledger as it stands, for reading only."""
    return _load(root, None, set_aside=False)


@contextmanager
def locked(
    root: Root, owners: Collection[int] | None = None, *, patience_s: float = 10.0
) -> Iterator[Ledger]:
    """The ledger under its lock. Save with `save`; leaving does not.

    owners: whose lines are checked at once (None: all); others stay text until they are asked for, and raise
    Damaged then. Raises UserError when the lock is not to be had in time, or /run cannot be written.
    """
    with lock.held(root, LOCK, patience_s=patience_s):
        yield _load(root, owners, set_aside=True)


def save(root: Root, ledger: Ledger) -> None:
    """Replaces the file if anything changed; one that would say nothing is removed. Raises UserError, and
    leaves what was there, when there is no room.
    """
    if not ledger.changed:
        return
    path, previous, temporary = (root.path(name) for name in (FILE, PREVIOUS, f"{FILE}.new"))
    content = _written(_boot_id(root), ledger)
    try:
        if content:
            with open(temporary, "wb") as stream:
                stream.writelines(content)
            # The generation before stays at hand, for the day this one is damaged.
            if os.path.exists(path):
                os.replace(path, previous)
            os.replace(temporary, path)
        else:
            for name in (previous, temporary, path):
                _remove(name)
    except OSError as error:
        _remove(temporary)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    ledger.claims.changed = ledger.journal.by_owner.changed = False
    ledger.stored = True


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _load(root: Root, owners: Collection[int] | None, *, set_aside: bool) -> Ledger:
    warnings: list[str] = []
    for file in (FILE, PREVIOUS):
        try:
            data = _read(root, file)
            if data is None:
                continue
            content = _content(data, _boot_id(root))
            ledger = Ledger(content, warnings)
            _check(ledger, owners)
        except Damaged as error:
            aside = f"{file}{DAMAGED}"
            if set_aside:
                _set_aside(root.path(file), root.path(aside))
            kept = f", kept as /{aside}" if set_aside else ""
            warnings.append(f"/{file} is damaged ({str(error)[:80]}){kept}")
        else:
            ledger.stored = file == FILE
            return ledger
    ledger = Ledger(warnings=warnings)
    ledger.stored = False
    return ledger


def _read(root: Root, file: str) -> bytes | None:
    """None where there is no file. Raises Damaged where it cannot be read.

    Opened once: whoever saves renames twice, and between these a name is gone for a moment.
    """
    try:
        with open(root.path(file), "rb", buffering=0, opener=_without_waiting) as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Damaged("it is no file")
            if found.st_size > stored.MOST_BYTES:
                raise Damaged(f"{found.st_size} bytes are too many")
            return stream.readall()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _check(ledger: Ledger, owners: Collection[int] | None) -> None:
    """Raises Damaged where a line of theirs is."""
    for mapping in (ledger.claims, ledger.journal.by_owner):
        for number in mapping if owners is None else owners:
            mapping.get(number)


def _set_aside(path: str, aside: str) -> None:
    try:
        os.replace(path, aside)
    except OSError as error:
        raise UserError(f"cannot move {path} aside: {error.strerror}") from error


def is_damaged(root: Root) -> bool:
    """Whether a damaged file was set aside that nobody has mourned yet."""
    return any(root.exists(f"{file}{DAMAGED}") for file in (FILE, PREVIOUS))


def mourn(root: Root) -> list[str]:
    """Keeps damaged files under another name, once what can be known without them is put back; gives it."""
    found = []
    for file in (FILE, PREVIOUS):
        if root.exists(f"{file}{DAMAGED}"):
            _set_aside(root.path(f"{file}{DAMAGED}"), root.path(f"{file}{LOST}"))
            found.append(f"/{file}{LOST}")
    return found


def _boot_id(root: Root) -> str:
    return root.read("proc/sys/kernel/random/boot_id") or ""


# As text.


def _empty() -> _Content:
    return _Content(Block(), Block(), {}, {})


def _written(boot_id: str, ledger: Ledger) -> list[bytes | memoryview]:
    """The pieces of the file; none when it would say nothing."""
    held, knobs = ledger.claims.pieces(), ledger.journal.by_owner.pieces()
    sizes = {"claims": sum(map(len, held)), "knobs": sum(map(len, knobs))}
    if not any(sizes.values()):
        return []
    header = json.dumps({"schema": SCHEMA, "boot_id": boot_id, **sizes})
    return [header.encode(), *held, *knobs, b"\n"]


# Of a file that changed, most lines say what they said before.
_CLAIMS: Memo[Claim] = Memo()
_ENTRIES: Memo[Entries] = Memo()


def _claim(vmid: int, text: str) -> Claim:
    return _CLAIMS.of(vmid, (text,), partial(claims.decode, vmid, text))


def _entries(owner: int, text: str) -> Entries:
    return _ENTRIES.of(owner, (text,), partial(journals.decode, owner, text))


@lru_cache(maxsize=1)  # a `watch` reads the same again and again
def _content(data: bytes, boot_id: str) -> _Content:
    """The two blocks of the file. Raises Damaged; no line is looked into."""
    if len(data) > stored.MOST_BYTES:
        raise Damaged(f"{len(data)} bytes are too many")
    head = data.find(b"\n") % (len(data) + 1)
    header = stored.table(stored.parse(data[:head]))
    if header.get("schema") != SCHEMA:
        raise Damaged(f"schema {stored.shown(header.get('schema'))} is not {SCHEMA}")
    middle = head + stored.integer(header.get("claims"))
    end = middle + stored.integer(header.get("knobs"))
    if end + 1 != len(data) or data[-1:] != b"\n":
        raise Damaged("it is cut short")
    if stored.text(header.get("boot_id")) != boot_id:
        return _empty()  # of an earlier boot: every value it speaks of is gone
    return _Content(Block(data, head, middle), Block(data, middle, end), {}, {})
