"""The one error meant for the user's eyes, and the exit codes of every command."""

from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    DONE = 0
    REFUSED = 1
    USAGE = 2


class UserError(Exception):
    """Something the admin can act on: one clear line, and a hint how to mend it.

    message: names the thing that is wrong (file and line, key, VMID).
    hint: what to do about it, or None where there is nothing to say.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` for a mistyped name, empty where nothing is near."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
