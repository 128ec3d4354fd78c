"""How long the work at hand may take: one deadline for everything that is asked meanwhile.

Whoever asks another program (QEMU, systemd, irqbalance) has a patience of its own, and no more than is left.
"""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline_s: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def until(deadline_s: float) -> Iterator[None]:
    """What this thread asks meanwhile is over by then. deadline_s: of time.monotonic()."""
    token = _deadline_s.set(deadline_s)
    try:
        yield
    finally:
        _deadline_s.reset(token)


def left(most_s: float) -> float:
    """Seconds that an answer may take, at most these. Raises TimeoutError when there are none left."""
    deadline_s = _deadline_s.get()
    left_s = most_s if deadline_s is None else min(most_s, deadline_s - time.monotonic())
    if left_s <= 0:
        raise TimeoutError(errno.ETIMEDOUT, "there was no time left")
    return left_s
