"""Waiting: every wait of the lab is a poll with a deadline and says what it waited for."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TooLate(AssertionError):
    """The deadline passed; the message tells what was waited for and what was seen last."""


def poll(look: Callable[[], T], what: str, *, deadline_s: float, interval_s: float = 0.5) -> T:
    """The first truthy value of `look`, asked at least once more after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        late = time.monotonic() > end
        seen = look()
        if seen:
            return seen
        if late:
            raise TooLate(f"not within {deadline_s:g} s: {what}; last seen: {seen!r}")
        time.sleep(interval_s)
