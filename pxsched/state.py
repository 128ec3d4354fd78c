"""Small JSON files in /run/pxsched, remembered between runs: read with a check of everything, replaced as a
whole, and set aside where they are damaged. To lose one costs a pass.
"""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from pxsched import stored
from pxsched.replacing import replace_file
from pxsched.root import Root
from pxsched.stored import Damaged

T = TypeVar("T")


def load(root: Root, file: str, read: Callable[[Any], T], *, set_aside: bool) -> tuple[T | None, str]:
    """What `read` makes of the file, and a line to tell where it is damaged.

    read: raises Damaged (or ValueError, LookupError, TypeError, OverflowError) at what cannot be ours.
    set_aside: move a damaged file out of the way, which keeps it.
    """
    try:
        size = os.stat(root.path(file)).st_size
    except OSError:
        return None, ""
    if size > stored.MOST_BYTES:
        return None, _damaged(root, file, f"{size} bytes are too many", set_aside)
    data = root.read_bytes(file)
    if data is None:
        return None, ""
    try:
        return read(stored.parse(data)), ""
    except (Damaged, ValueError, LookupError, TypeError, OverflowError) as error:
        return None, _damaged(root, file, str(error)[:80] or type(error).__name__, set_aside)


def _damaged(root: Root, file: str, why: str, set_aside: bool) -> str:
    aside = f"{file}.damaged"
    if not set_aside:
        return f"/{file} is damaged ({why})"
    try:
        os.replace(root.path(file), root.path(aside))
    except OSError:
        return f"/{file} is damaged ({why})"
    return f"/{file} is damaged ({why}), kept as /{aside}"


def save(root: Root, file: str, document: object) -> None:
    """Replaces the file; a mapping is an object. Raises OSError, and leaves what was there."""
    text = json.dumps(document, default=dict, separators=(",", ":"))  # `dump` is not written in C
    replace_file(root.path(file), text.encode())


def remove(root: Root, file: str) -> None:
    """Removes the file, if there is one."""
    try:
        os.unlink(root.path(file))
    except OSError:
        pass
