"""The archive format the kernel unpacks as its first root: cpio "newc", written from memory.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: a directory, a regular file, a device node or a symbolic link, told apart by its mode."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, *, mode: int = 0o755) -> Entry:
    return Entry(name, stat.S_IFREG | mode, data)


def link(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def node(name: str, major: int, minor: int) -> Entry:
    return Entry(name, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: list[Entry]) -> bytes:
    """The members in the order given; parents must come before children."""
    parts = [_member(entry, number) for number, entry in enumerate(entries, start=1)]
    parts.append(_member(Entry("TRAILER!!!", 0), 0))
    return b"".join(parts)


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    fields = (
        inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, entry.device[0], entry.device[1], len(name), 0,
    )  # fmt: skip
    header = b"070701" + b"".join(b"%08x" % value for value in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
