"""Who holds what, and what everything was before we turned it: one locked, atomically replaced file.

It lives in /run: nothing we turn survives a reboot, and neither does this. A reader never needs the lock, as
the file is replaced whole. A damaged file is set aside and the generation before it used; what even that does
not know is found out anew from the machines that run.

    {"schema":2,"boot_id":"...","lines":2}
    claim   100   what VM 100 holds
    knobs   100   what VM 100's knobs were before
"""

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

from pxsched import stored
from pxsched.errors import UserError
from pxsched.ledger import claim as claims
from pxsched.ledger import journal as journals
from pxsched.ledger import lock
from pxsched.ledger.claim import Claim
from pxsched.ledger.journal import Entries, Journal
from pxsched.ledger.lazy import Lazy
from pxsched.placement.request import Holding
from pxsched.root import Root
from pxsched.stored import Damaged

SCHEMA = 2
DIR = "run/pxsched"
FILE = f"{DIR}/ledger.json"
PREVIOUS = f"{DIR}/ledger.previous.json"
LOCK = f"{DIR}/lock"
_CLAIM, _KNOBS = "claim", "knobs"


class _Content(NamedTuple):
    """What one file says: the lines as text, and what was made of them so far. Never changed otherwise."""

    text: str
    claim_texts: dict[int, str]
    knob_texts: dict[int, str]
    claims: dict[int, Claim]
    knobs: dict[int, Entries]


class Ledger:
    """The content of the file. Change it only inside `locked`. warnings: what was found damaged."""

    def __init__(self, content: _Content | None = None, warnings: Collection[str] = ()) -> None:
        content = content or _Content("", {}, {}, {}, {})
        self.claims = Lazy(content.claim_texts, content.claims, claims.decode, claims.encode)
        knobs = Lazy(content.knob_texts, content.knobs, journals.decode, journals.encode)
        self.journal = Journal(knobs, content.text)
        self.warnings = list(warnings)
        self.stored = True  # whether the file is the one it came from

    @property
    def changed(self) -> bool:
        return self.claims.changed or self.journal.by_owner.changed or not self.stored

    def felt(self) -> dict[int, Claim]:
        """The claims that matter to the node's knobs and to other VMs' (`Claim.felt`), by VMID."""
        texts = self.claims.texts
        near = [vmid for vmid in self.claims if vmid not in texts or claims.is_felt(texts[vmid])]
        return {vmid: self.claims[vmid] for vmid in near if self.claims[vmid].felt}

    def holdings(self, *, but: int | None = None) -> list[Holding]:
        """What all VMs but this one hold."""
        return [self._holding(vmid) for vmid in self.claims if vmid != but]

    def _holding(self, vmid: int) -> Holding:
        claim = self.claims.known(vmid)
        return claims.brief(vmid, self.claims.texts[vmid]) if claim is None else claims.holding(claim)


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
    claim_lines, knob_lines = ledger.claims.lines(), ledger.journal.by_owner.lines()
    try:
        if claim_lines or knob_lines:
            with open(temporary, "wb") as stream:
                stream.write(_written(_boot_id(root), claim_lines, knob_lines).encode())
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
    ledger.claims.saved(claim_lines)
    ledger.journal.saved(knob_lines)
    ledger.stored = True


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _load(root: Root, owners: Collection[int] | None, *, set_aside: bool) -> Ledger:
    warnings: list[str] = []
    for file in (FILE, PREVIOUS):
        data = root.read_bytes(file)
        if data is None:
            continue
        try:
            content = _content(data, _boot_id(root))
            ledger = Ledger(content, warnings)
            _check(ledger, owners)
        except Damaged as error:
            aside = f"{file}.damaged"
            if set_aside:
                _set_aside(root.path(file), root.path(aside))
            warnings.append(f"/{file} is damaged ({str(error)[:80]}), kept as /{aside}")
        else:
            ledger.stored = file == FILE
            return ledger
    ledger = Ledger(warnings=warnings)
    ledger.stored = False
    return ledger


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


def _boot_id(root: Root) -> str:
    return root.read("proc/sys/kernel/random/boot_id") or ""


# As text.


def _written(boot_id: str, claim_lines: dict[int, str], knob_lines: dict[int, str]) -> str:
    lines = len(claim_lines) + len(knob_lines)
    return "".join(
        [
            json.dumps({"schema": SCHEMA, "boot_id": boot_id, "lines": lines}),
            *(f"\n{_CLAIM}\t{vmid}\t{text}" for vmid, text in claim_lines.items()),
            *(f"\n{_KNOBS}\t{owner}\t{text}" for owner, text in knob_lines.items()),
            "\n",
        ]
    )


@lru_cache(maxsize=1)  # a `watch` reads the same again and again
def _content(data: bytes, boot_id: str) -> _Content:
    """The lines of the file. Raises Damaged; no line is looked into."""
    if len(data) > stored.MOST_BYTES:
        raise Damaged(f"{len(data)} bytes are too many")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise Damaged("no text") from error
    head, *lines = text.split("\n")
    header = stored.table(stored.parse(head))
    if header.get("schema") != SCHEMA:
        raise Damaged(f"schema {stored.shown(header.get('schema'))} is not {SCHEMA}")
    if not lines or lines.pop() or header.get("lines") != len(lines):
        raise Damaged("it is cut short")
    if stored.text(header.get("boot_id")) != boot_id:
        return _Content("", {}, {}, {}, {})  # of an earlier boot: every value it speaks of is gone
    texts: dict[str, dict[int, str]] = {_CLAIM: {}, _KNOBS: {}}
    for line in lines:
        kind, _, rest = line.partition("\t")
        number, _, body = rest.partition("\t")
        if kind not in texts or not number.isdigit() or len(number) > 9:
            raise Damaged(f"line {line[:20]!r}")
        texts[kind][int(number)] = body
    return _Content(text, texts[_CLAIM], texts[_KNOBS], {}, {})
