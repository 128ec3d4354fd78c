"""A knob that is one small file of the kernel's."""

import os

from pxsched.knobs.knob import Gone
from pxsched.root import Root


def read(root: Root, path: str) -> str:
    """The file's text. Raises Gone where it does not exist, OSError where it cannot be read."""
    try:
        fd = os.open(root.path(path), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise Gone(path) from None
    try:
        return os.read(fd, 65536).decode("utf-8", "replace").strip("\0 \t\r\n")
    finally:
        os.close(fd)


def write(root: Root, path: str, value: str) -> None:
    """One write(2), as the kernel takes a value whole or not at all. Raises Gone or OSError."""
    try:
        fd = os.open(root.path(path), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise Gone(path) from None
    try:
        os.write(fd, f"{value}\n".encode())
    finally:
        os.close(fd)
