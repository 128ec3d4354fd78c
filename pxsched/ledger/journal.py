"""What every knob was before we turned it, by the knob's key; kept by owner, so that a hook reads its own."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any, NamedTuple

from pxsched import stored
from pxsched.ledger.lazy import Lazy
from pxsched.stored import Damaged

NODE = 0  # the owner of knobs that belong to no single VM


class Lease(NamedTuple):
    """The process that turns a knob at the moment, without the ledger's lock. until_ns: boot time of its end,
    whatever becomes of the process.
    """

    pid: int
    start_ticks: int
    until_ns: int


class Entry(NamedTuple):
    """One knob we hold. owner: a VMID, or NODE. since_ns, drifted_ns: boot time of our first turn, and of
    when something else turned it last (None: never); drifts: how often. note: why it is not as wanted.
    leaving: it is being put back; where a pass was killed meanwhile, it may look as wanted and be so in part.
    lease: of the process that has it in hand; no other turns it then. failures: of its peer in a row, after
    which it is left alone until retry_ns, boot time.
    """

    owner: int
    plugin: str
    original: str
    wanted: str
    since_ns: int
    drifted_ns: int | None = None
    drifts: int = 0
    note: str = ""
    leaving: bool = False
    lease: Lease | None = None
    failures: int = 0
    retry_ns: int = 0


Entries = Mapping[str, Entry]

AGAIN_AND_AGAIN = 3
"""Drifts of a knob from which on it is no person who has a reason, but a program that will go on."""


class Journal(MutableMapping[str, Entry]):
    """The entries by key."""

    def __init__(self, by_owner: Lazy[Entries]) -> None:
        self.by_owner = by_owner
        self._owners: dict[str, int | None] = {}  # of the keys that were met; None: nobody's
        self._whole = False  # whether every key was met

    def owners(self) -> set[int]:
        return set(self.by_owner)

    def of(self, owners: Iterable[int]) -> dict[str, Entry]:
        """The entries of these owners; the node's last, as its cpusets end only after those of the VMs."""
        ordered = sorted(owners, reverse=True)
        found = {key: entry for owner in ordered for key, entry in self.by_owner.get(owner, {}).items()}
        if not self._whole:
            self._owners.update((key, entry.owner) for key, entry in found.items())
        return found

    def read(self) -> None:
        """Reads everybody's entries at once, after which none has to be searched for. Raises Damaged."""
        self.of(self.owners())
        self._whole = True

    def originals(self) -> Mapping[str, str]:
        """The original values by key."""
        return _Originals(self)

    def __getitem__(self, key: str) -> Entry:
        return self.by_owner[self._owner(key)][key]

    def _owner(self, key: str) -> int:
        """Whose entry it is. Raises KeyError."""
        if key not in self._owners:
            self._owners[key] = None if self._whole else self._search(key)
        owner = self._owners[key]
        if owner is None:
            raise KeyError(key)
        return owner

    def _search(self, key: str) -> int | None:
        """Whose entry the file has it as, found without reading all of them."""
        quoted, block = json.dumps(key), self.by_owner.block
        if block.find(quoted.encode()) < 0:
            return None
        near = (owner for owner, text in block.lines().items() if quoted in text)
        return next((owner for owner in near if key in self.by_owner.get(owner, {})), None)

    def __setitem__(self, key: str, entry: Entry) -> None:
        before = self.get(key)
        if before is not None and before.owner != entry.owner:
            del self[key]
        self.by_owner[entry.owner] = {**self.by_owner.get(entry.owner, {}), key: entry}
        self._owners[key] = entry.owner

    def __delitem__(self, key: str) -> None:
        owner = self._owner(key)
        left = {name: entry for name, entry in self.by_owner[owner].items() if name != key}
        if left:
            self.by_owner[owner] = left
        else:
            del self.by_owner[owner]
        self._owners[key] = None

    def __iter__(self) -> Iterator[str]:
        return iter([key for owner in self.by_owner for key in self.by_owner[owner]])

    def __len__(self) -> int:
        return sum(len(entries) for entries in self.by_owner.values())


class _Originals(Mapping[str, str]):
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __getitem__(self, key: str) -> str:
        return self._journal[key].original

    def __iter__(self) -> Iterator[str]:
        return iter(self._journal)

    def __len__(self) -> int:
        return len(self._journal)


# As text: [[what is known, [the keys of which it is]], ...], since the knobs of a VM mostly say the same.


def encode(entries: Entries) -> str:
    groups: dict[Entry, list[str]] = {}
    for key, entry in entries.items():
        groups.setdefault(entry, []).append(key)
    return json.dumps([[_out(entry), keys] for entry, keys in groups.items()], separators=(",", ":"))


def _out(entry: Entry) -> list[object]:
    """Without the owner, which stands before the text, and without what is mostly so at the end."""
    values: list[object] = list(entry[1:])
    while len(values) > _FEWEST and values[-1] == _DEFAULTS[len(values)]:
        values.pop()
    return values


def decode(owner: int, text: str) -> Entries:
    """One owner's entries, never changed. Raises Damaged."""
    found = {}
    for group in stored.listed(stored.parse(text)):
        body, keys = stored.pair(group)
        entry = _in(owner, body)
        found.update({stored.text(key): entry for key in stored.listed(keys)})
    return found


def _lease(body: object) -> Lease:
    pid, start_ticks, until_ns = (stored.integer(value) for value in stored.listed(body, 3))
    return Lease(pid, start_ticks, until_ns)


# What is read of each field but the owner.
_READ: tuple[Callable[[object], object], ...] = (
    stored.text, stored.text, stored.text, stored.integer, partial(stored.maybe, stored.integer),
    stored.integer, stored.text, stored.truth, partial(stored.maybe, _lease), stored.integer, stored.integer,
)  # fmt: skip
_DEFAULTS = {place: Entry._field_defaults.get(name) for place, name in enumerate(Entry._fields)}
_FEWEST = len(Entry._fields) - len(Entry._field_defaults) - 1


def _in(owner: int, body: object) -> Entry:
    values = stored.listed(body, len(_READ))
    if len(values) < _FEWEST:
        raise Damaged(f"a knob of {owner}")
    try:
        known: list[Any] = [read(value) for read, value in zip(_READ, values, strict=False)]
    except ValueError as error:
        raise Damaged(f"a knob of {owner}: {error}") from error
    return Entry(owner, *known)
