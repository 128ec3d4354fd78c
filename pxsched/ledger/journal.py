"""What every knob was before we turned it, by the knob's key; kept by owner, so that a hook reads its own."""

import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import NamedTuple

from pxsched import stored
from pxsched.ledger.lazy import Lazy
from pxsched.stored import Damaged

NODE = 0  # the owner of knobs that belong to no single VM


class Entry(NamedTuple):
    """One knob we hold. owner: a VMID, or NODE. since_ns, drifted_ns: boot time of our first turn, and of
    when something else turned it last (None: never); drifts: how often. note: why it is not as wanted.
    leaving: it is being put back; where a pass was killed meanwhile, it may look as wanted and be so in part.
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


Entries = Mapping[str, Entry]


class Journal(MutableMapping[str, Entry]):
    """The entries by key. text: what the file says of all of them, to look a key up in."""

    def __init__(self, by_owner: Lazy[Entries], text: str = "") -> None:
        self.by_owner = by_owner
        self._text = text
        self._owners: dict[str, int | None] = {}  # of the keys that were met; None: nobody's

    def owners(self) -> set[int]:
        return set(self.by_owner)

    def of(self, owners: Iterable[int]) -> dict[str, Entry]:
        """The entries of these owners."""
        return {key: entry for owner in owners for key, entry in self.by_owner.get(owner, {}).items()}

    def saved(self, lines: Mapping[int, str]) -> None:
        """Takes note that these lines were written."""
        self.by_owner.saved(lines)
        self._text, self._owners = "\n".join(lines.values()), {}

    def originals(self) -> Mapping[str, str]:
        """The original values by key."""
        return _Originals(self)

    def __getitem__(self, key: str) -> Entry:
        return self.by_owner[self._owner(key)][key]

    def _owner(self, key: str) -> int:
        """Whose entry it is. Raises KeyError."""
        if key not in self._owners:
            self._owners[key] = self._search(key)
        owner = self._owners[key]
        if owner is None:
            raise KeyError(key)
        return owner

    def _search(self, key: str) -> int | None:
        quoted = json.dumps(key)
        if quoted not in self._text:
            return None
        texts = self.by_owner.texts.items()
        near = (owner for owner, text in texts if quoted in text)
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


# As text.


def encode(entries: Entries) -> str:
    return json.dumps({key: _out(entry) for key, entry in entries.items()}, separators=(",", ":"))


def _out(entry: Entry) -> list[object]:
    """Without the owner, which stands before the text; `leaving` only where it is true."""
    return list(entry[1:] if entry.leaving else entry[1:-1])


def decode(owner: int, text: str) -> Entries:
    """One owner's entries. Raises Damaged."""
    return {key: _in(owner, body) for key, body in stored.table(stored.parse(text)).items()}


_TYPES = tuple(
    [str, str, str, int, drifted, int, str, *leaving]
    for drifted in (int, type(None))
    for leaving in ((), (bool,))
)


def _in(owner: int, body: object) -> Entry:
    if not isinstance(body, list) or [type(value) for value in body] not in _TYPES:
        raise Damaged(f"a knob of {owner}")
    return Entry(owner, *body)
