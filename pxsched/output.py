"""Where text leaves the program: lines for a terminal, a journal, a task log or a picture, and JSON.

Names, tags, descriptions, thread names and what QEMU answers are their writers' own. In a terminal, control
characters move the cursor and change what was written before; in a journal or task log a line end begins a
line that we did not write. So a line is made of what is seen (Unicode's printable characters), and only this
module ends it.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, TextIO

# Unicode calls these printable, yet nothing is seen of them: default-ignorable characters of the letters and
# marks (DerivedCoreProperties.txt) and the empty Braille pattern. The other invisible ones (bidirectional
# controls, zero-width spaces and joiners, line separators, tags) are not printable to begin with.
_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)


def printable(text: str) -> str:
    """The text as it may be shown: `?` for every character that is not seen, line ends included."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(char if char.isprintable() and char not in _UNSEEN else "?" for char in text)


def lines(found: Iterable[str]) -> str:
    """Lines as one text, each ended by us. Empty for none."""
    return "".join(f"{printable(line)}\n" for line in found)


def some(items: Sequence[str], most: int = 8) -> str:
    """The first few of a list, for one line: `a, b and 3 more`."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


class Unwritten(OSError):
    """Standard output takes nothing more, as when its disk is full."""


def open_streams() -> None:
    """Standard streams that were closed when we were started lead nowhere from now on, rather than into the
    first file that is opened.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def say(*found: str, to: TextIO | None = None) -> None:
    """Lines on standard output (or another stream), at once. Raises OSError where they cannot be written."""
    _write(to or sys.stdout, lines(found))


class Tone(StrEnum):
    """How a line stands out on a terminal that has colours (ECMA-48, select graphic rendition)."""

    PLAIN = ""
    HEAD = "1"
    DIM = "2"
    WARN = "33"
    BAD = "31"


def say_toned(found: Iterable[tuple[str, Tone]]) -> None:
    """Lines on standard output, in colour where that is a terminal and nobody said NO_COLOR."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    _write(sys.stdout, "".join(_toned(line, tone if coloured else Tone.PLAIN) for line, tone in found))


def _toned(line: str, tone: Tone) -> str:
    text = lines([line])
    return f"\x1b[{tone}m{text[:-1]}\x1b[m\n" if tone else text


def complain(line: str) -> None:
    """`pxsched: line` on standard error; where that is closed or full there is nobody to tell."""
    try:
        _write(sys.stderr, lines([f"pxsched: {line}"]))
    except OSError:
        pass


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """How far a long command is: each line that is told takes the place of the one before, on standard error
    where that is a terminal, and the last is gone in the end. In a pipe or a file there is nothing.
    """
    stream = sys.stderr
    if stream is None or not stream.isatty():
        yield lambda _line: None
        return
    import shutil

    width = shutil.get_terminal_size().columns - 1
    try:
        yield lambda line: _write(stream, f"\r\x1b[K{printable(line)[:width]}")
    finally:
        _write(stream, "\r\x1b[K")


def say_json(document: Any, *, indent: int | None = None) -> None:
    """One JSON document on standard output. Raises as `say` does."""
    _write(sys.stdout, json_text(document, indent=indent) + "\n")


def json_text(document: Any, *, indent: int | None = None) -> str:
    """JSON in ASCII. Its texts are shown by other programs, so they are as printable as ours; line ends stay,
    as JSON writes them as `\\n`, and a text of several lines is one.
    """
    import json

    return json.dumps(_shown(document), indent=indent)


def journal(line: str) -> None:
    """One line in the system's journal, as an error."""
    import syslog

    syslog.openlog("pxsched")
    syslog.syslog(syslog.LOG_ERR, printable(line))


def _shown(document: Any) -> Any:
    if isinstance(document, str):
        return "\n".join(map(printable, document.split("\n")))
    if isinstance(document, dict):
        return {_shown(key): _shown(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_shown(value) for value in document]
    return document


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed when we were started
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:  # a locale that lacks a letter is no failure
            stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritten(error.errno, error.strerror) from error
