"""Files that are replaced as a whole: whoever reads one finds the old content or the new, never a part.

Rules: rename(2) for that; fsync(2) for what a crash of the machine leaves, which may be an empty file where
the content was not on the disk before the name was.
"""

import os
from contextlib import suppress

NEW = ".pxsched-new"
"""What the name of a file ends with that is being written. Whatever else has that name goes."""


def replace_file(path: str, data: bytes, *, mode: int | None = None, durable: bool = False) -> None:
    """Puts a file of this content where `path` is; its directory must be there.

    mode: what the file gets, whatever the umask; None leaves it to that. durable: the content is on the disk
    before the name is the file's. Raises OSError, and leaves what was there.
    """
    new = f"{path}{NEW}"
    try:
        with open(_create(new), "wb", buffering=0) as stream:
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            left = memoryview(data)
            while left:
                left = left[stream.write(left) :]
            if durable:
                os.fsync(stream.fileno())
        os.replace(new, path)
    except OSError:
        with suppress(OSError):
            os.unlink(new)
        raise


def _create(path: str) -> int:
    """A new file: never what somebody has put there, such as a link, to have us write elsewhere."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, flags, 0o666)
