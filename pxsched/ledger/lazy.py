"""A mapping whose values stay text until somebody asks for them, and are written back as they were.

A hook asks for what concerns its own VM; with a thousand others in the file that is most of its time saved.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Lazy(MutableMapping[int, T], Generic[T]):
    """Values by number. texts, decoded: shared by all that read the same file, and never changed but for what
    `decode` adds; changes lie over them, None for what was removed.
    """

    def __init__(
        self,
        texts: Mapping[int, str],
        decoded: dict[int, T],
        decode: Callable[[int, str], T],
        encode: Callable[[T], str],
    ) -> None:
        self.texts = texts
        self._decoded = decoded
        self._decode = decode
        self._encode = encode
        self._changes: dict[int, T | None] = {}

    def __getitem__(self, number: int) -> T:
        if number in self._changes:
            value = self._changes[number]
            if value is None:
                raise KeyError(number)
            return value
        value = self._decoded.get(number)
        if value is None:
            value = self._decoded[number] = self._decode(number, self.texts[number])
        return value

    def __setitem__(self, number: int, value: T) -> None:
        if number not in self._changes and number in self.texts and self[number] == value:
            return
        self._changes[number] = value

    def __delitem__(self, number: int) -> None:
        if number not in self:
            raise KeyError(number)
        if number in self.texts:
            self._changes[number] = None
        else:
            del self._changes[number]

    def __contains__(self, number: object) -> bool:
        if number in self._changes:
            return self._changes[number] is not None
        return number in self.texts

    def __iter__(self) -> Iterator[int]:
        if not self._changes:
            return iter(self.texts)
        known = (number for number in self.texts if self._changes.get(number, self) is not None)
        added = (number for number in self._changes if number not in self.texts)
        return iter([*known, *added])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def known(self, number: int) -> T | None:
        """The value, if it was decoded or set already."""
        return self._changes.get(number) or self._decoded.get(number)

    @property
    def changed(self) -> bool:
        return bool(self._changes)

    def lines(self) -> dict[int, str]:
        """The text of each value: the one it was read from, unless it was changed."""
        return {
            number: self.texts[number] if number not in self._changes else self._encode(self[number])
            for number in self
        }

    def saved(self, lines: Mapping[int, str]) -> None:
        """Takes note that these lines were written, as `lines` gave them."""
        decoded = {number: value for number, value in self._decoded.items() if number in lines}
        decoded |= {number: value for number, value in self._changes.items() if value is not None}
        self.texts, self._decoded, self._changes = lines, decoded, {}
