"""A mapping whose values stay text until somebody asks for them, and are written back as they were.

A hook asks for what concerns its own VM; with a thousand others in the file that is most of its time saved.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Generic, TypeVar

from pxsched import stored

T = TypeVar("T")


class Block(Mapping[int, str]):
    """Lines by the number that each begins with: a line break, the number, a tab, and the rest.

    They lie between two places of a file's content, which is searched and not copied: a hook pays for each
    page of memory it touches.
    """

    def __init__(self, data: bytes = b"", begin: int = 0, end: int = 0) -> None:
        self._data = data
        self._begin = begin
        self._end = end
        self._lines: dict[int, str] | None = None
        self._spans: dict[int, tuple[int, int] | None] = {}  # that were searched for

    def find(self, words: bytes, begin: int | None = None) -> int:
        """Where these bytes are next; -1 where they are not."""
        return self._data.find(words, self._begin if begin is None else begin, self._end)

    def span(self, number: int) -> tuple[int, int] | None:
        """Where its line begins, with the line break before it, and ends; None without one."""
        if number not in self._spans:
            begin = self.find(b"\n%d\t" % number)
            end = self.find(b"\n", begin + 1)
            self._spans[number] = None if begin < 0 else (begin, self._end if end < 0 else end)
        return self._spans[number]

    def pieces(self, spans: Iterable[tuple[int, int, bytes]]) -> list[bytes | memoryview]:
        """The content with these spans, which ascend, replaced by other lines."""
        whole, pieces, at = memoryview(self._data), list[bytes | memoryview](), self._begin
        for begin, end, line in spans:
            pieces += [whole[at:begin], line]
            at = end
        return [*pieces, whole[at : self._end]]

    def __getitem__(self, number: int) -> str:
        span = self.span(number)
        if span is None:
            raise KeyError(number)
        return self._data[span[0] : span[1]].partition(b"\t")[2].decode("ascii", "replace")

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.span(number) is not None

    def __iter__(self) -> Iterator[int]:
        return iter(self.lines())

    def __len__(self) -> int:
        return len(self.lines())

    def lines(self) -> Mapping[int, str]:
        """All lines by their numbers. Raises Damaged."""
        if self._lines is None:
            text = self._data[self._begin : self._end].decode("ascii", "replace")
            pairs = (line.partition("\t") for line in text.split("\n")[1:])
            self._lines = {stored.vmid(number): rest for number, _, rest in pairs}
        return self._lines

    def beginning(self, word: bytes) -> list[int]:
        """The numbers of the lines that go on with this word. Raises Damaged."""
        found, at = [], self._begin
        while (at := self.find(b"\t" + word, at + 1)) >= 0:
            begin = self._data.rfind(b"\n", self._begin, at) + 1
            if self._data.find(b"\t", begin, at) < 0:
                found.append(stored.vmid(self._data[begin:at].decode("ascii", "replace")))
        return found


class Lazy(MutableMapping[int, T], Generic[T]):
    """Values by number. block, decoded: shared by all that read the same file, and never changed but for what
    `decode` adds; changes lie over them, None for what was removed.
    """

    def __init__(
        self,
        block: Block,
        decoded: dict[int, T],
        decode: Callable[[int, str], T],
        encode: Callable[[T], str],
    ) -> None:
        self.block = block
        self._decoded = decoded
        self._decode = decode
        self._encode = encode
        self._changes: dict[int, T | None] = {}
        self.changed = False  # since it was read or written

    def __getitem__(self, number: int) -> T:
        if number in self._changes:
            value = self._changes[number]
            if value is None:
                raise KeyError(number)
            return value
        value = self._decoded.get(number)
        if value is None:
            value = self._decoded[number] = self._decode(number, self.block[number])
        return value

    def __setitem__(self, number: int, value: T) -> None:
        if number in self._changes or number not in self.block or self[number] != value:
            self._changes[number] = value
            self.changed = True

    def __delitem__(self, number: int) -> None:
        if number not in self:
            raise KeyError(number)
        self.changed = True
        if number in self.block:
            self._changes[number] = None
        else:
            del self._changes[number]

    def __contains__(self, number: object) -> bool:
        if number in self._changes:
            return self._changes[number] is not None
        return number in self.block

    def __iter__(self) -> Iterator[int]:
        if not self._changes:
            return iter(self.block)
        kept = (number for number in self.block if self._changes.get(number, self) is not None)
        return iter([*kept, *self.added()])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def changes(self) -> list[int]:
        """The numbers that were set or removed since the block was read."""
        return list(self._changes)

    def added(self) -> list[int]:
        """The numbers that the block has not."""
        return [number for number in self._changes if number not in self.block]

    def known(self) -> Mapping[int, T | None]:
        """What was decoded or set already, by number; None where it was removed."""
        return {**self._decoded, **self._changes}

    def pieces(self) -> list[bytes | memoryview]:
        """The block as it is now: lines that nobody changed are those that were read."""
        spans = sorted((*span, number) for number in self._changes if (span := self.block.span(number)))
        changed = self.block.pieces((begin, end, self._line(number)) for begin, end, number in spans)
        return [*changed, *map(self._line, self.added())]

    def _line(self, number: int) -> bytes:
        value = self._changes[number]
        return b"" if value is None else f"\n{number}\t{self._encode(value)}".encode()
