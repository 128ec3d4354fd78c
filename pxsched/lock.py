"""A lock between processes: flock(2) on a file. The kernel releases it when its holder ends, in whatever way.

Not by a library: to import filelock costs five times what Python's start does (Debian 13), at each start and
stop of a VM.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pxsched.errors import UserError
from pxsched.root import Root

_POLL_S = 0.01


class Locked(UserError):
    """Somebody else holds the lock."""


@contextmanager
def held(root: Root, file: str, *, patience_s: float) -> Iterator[None]:
    """Holds the lock of that file, which is made if need be, with its directory, and stays.

    Raises Locked when somebody else still holds it after patience_s, UserError when it cannot be had at all.
    """
    path = root.path(file)
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UserError(f"cannot use {directory}: {error.strerror}") from error
    try:
        deadline_s = time.monotonic() + patience_s
        while not _taken(fd):
            if time.monotonic() >= deadline_s:
                raise Locked(f"{path} is locked for more than {patience_s:g} s")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
