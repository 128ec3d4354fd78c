"""A lock between processes: filelock on a file of ours. The kernel releases it when its holder ends, in
whatever way.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pxsched.errors import UserError
from pxsched.output import printable
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
        by = holder(path)
        who = f" by {by}" if by else ""
        raise Locked(f"{path} is locked{who} for more than {patience_s:g} s") from error
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


def holder(path: str) -> str:
    """Who holds the lock of that file, as `process 4711 (pxsched tick)`; empty when nobody can be named.

    Rule: proc_locks(5), `1: FLOCK ADVISORY WRITE 4711 00:1a:1234 0 EOF`, devices in hexadecimal.
    """
    kernel = Root()
    try:
        file = os.stat(path)
    except OSError:
        return ""
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    for line in (kernel.read("proc/locks") or "").splitlines():
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == place:
            command = (kernel.read_record(f"proc/{words[4]}/cmdline") or b"").decode("utf-8", "replace")
            command = printable(command.rstrip("\0").replace("\0", " ")[:80])
            return f"process {words[4]} ({command})"
    return ""
