"""JSON that may be damaged or hostile: what we stored ourselves, and what others hand us.

It is read with a bound on everything, and each value is asked for by its type and range. What does not pass
is `Damaged`: whoever reads sets it aside and names it.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
E = TypeVar("E")

MOST_BYTES = 16 << 20
# What a document may take in memory, and what its parts take there at most (CPython 3.11 to 3.13, 64 bits): a
# list and an object of one member, a number or short text, and a character beyond ASCII, as all around it.
MOST_MEMORY = 48 << 20
_LIST, _OBJECT, _VALUE, _WIDE = 96, 240, 56, 4
MOST_DIGITS = 19  # of a whole number: what fits into 64 bits
INT64 = (1 << 63) - 1


class Damaged(ValueError):
    """Content that cannot be ours; the message says what is wrong with it."""


def parse(data: bytes | str, *, most_bytes: int = MOST_BYTES) -> Any:
    """The JSON document. Raises Damaged for what is none, is too long or deep, or has too large numbers."""
    if len(data) > most_bytes:
        raise Damaged(f"{len(data)} bytes are too many")
    if len(data) * _OBJECT > MOST_MEMORY and _memory(data) > MOST_MEMORY:
        raise Damaged("it has too many parts")
    try:
        return json.loads(data, parse_int=_whole, parse_float=_finite, parse_constant=_no_number)
    except Damaged:
        raise
    except (ValueError, RecursionError) as error:
        raise Damaged(f"no JSON: {str(error)[:80]}") from error


def _memory(data: bytes | str) -> int:
    """What the document takes at most, by the signs that begin its parts."""
    raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    lists, objects, values = raw.count(b"["), raw.count(b"{"), raw.count(b",") + raw.count(b":")
    wide = 2 * _WIDE if not raw.isascii() else _WIDE if b"\\u" in raw else 1  # as bytes are decoded first
    return lists * _LIST + objects * _OBJECT + (lists + objects + values) * _VALUE + len(raw) * wide


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS + 1:
        raise Damaged(f"{text[:20]}... is too long a number")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Damaged(f"{text[:20]} is too large")
    return value


def _no_number(text: str) -> NoReturn:
    raise Damaged(f"{text} is no number")


def integer(value: object, low: int = 0, high: int = INT64) -> int:
    """A whole number in these bounds."""
    if type(value) is not int or not low <= value <= high:
        raise Damaged(f"{shown(value)} is no whole number from {low} to {high}")
    return value


def number(value: object, low: float = 0.0, high: float = 1e15) -> float:
    """A number in these bounds."""
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise Damaged(f"{shown(value)} is no number from {low:g} to {high:g}")
    return float(value)  # type: ignore[arg-type]


def text(value: object, most: int = 1 << 16) -> str:
    """A text of at most so many characters."""
    if type(value) is not str or len(value) > most:
        raise Damaged(f"{shown(value)} is no text of up to {most} characters")
    return value


def truth(value: object) -> bool:
    if type(value) is not bool:
        raise Damaged(f"{shown(value)} is neither true nor false")
    return value


def listed(value: object, most: int = 1 << 16) -> list[Any]:
    """A list of at most so many."""
    if type(value) is not list or len(value) > most:
        raise Damaged(f"{shown(value)} is no list of up to {most}")
    return value


def items(value: object, count: int) -> list[Any]:
    """A list of exactly so many."""
    if type(value) is not list or len(value) != count:
        raise Damaged(f"{shown(value)} is no list of {count}")
    return value


def pair(value: object) -> tuple[Any, Any]:
    """A list of two."""
    first, second = items(value, 2)
    return first, second


def table(value: object, most: int = 1 << 16) -> Mapping[str, Any]:
    """An object of at most so many members."""
    if type(value) is not dict or len(value) > most:
        raise Damaged(f"{shown(value)} is no object of up to {most} members")
    return value


def maybe(read: Callable[[object], T], value: object) -> T | None:
    """None, or what `read` makes of the value."""
    return None if value is None else read(value)


def by_vmid(value: object, read: Callable[[Any], T]) -> dict[int, T]:
    """An object whose members are named by VMIDs (or 0, the node)."""
    return {vmid(name): read(body) for name, body in table(value).items()}


def vmid(text: str) -> int:
    """A VMID (or 0, the node) as text."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Damaged(f"{shown(text)} is no VMID")
    return int(text)


def tid(text: str) -> int:
    """A thread's id as text."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise Damaged(f"{shown(text)} is no thread")
    return int(text)


def shown(value: object) -> str:
    return repr(value)[:40]
