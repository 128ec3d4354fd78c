"""A lock between processes: filelock on a file of ours. The kernel releases it when its holder ends, in
whatever way.
"""

import os
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
    import filelock  # whoever only looks needs no lock, and its import costs as much as Python's start

    path = root.path(file)
    directory = os.path.dirname(path)
    try:
        _make(directory, path)
        lock = filelock.FileLock(path)
        lock.acquire(timeout=patience_s, poll_interval=_POLL_S)
    except filelock.Timeout as error:
        raise Locked(f"{path} is locked for more than {patience_s:g} s") from error
    except OSError as error:
        raise UserError(f"cannot use {directory}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _make(directory: str, path: str) -> None:
    """Makes the file before filelock does: it would follow a link, and 3.9 leaves the mode to the umask."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
