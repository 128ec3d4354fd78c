"""The directory below which every file is looked up: `/`, a captured machine, or a sandbox.

All paths given to `Root` are relative to it, without a leading slash.
"""

import os
from functools import cached_property

from pxsched.value import Value

MOST_BYTES = 40 << 20
"""Of one file. /proc/interrupts of 512 CPUs and 6000 interrupts has 34 MB; nothing else comes near."""


class Root(Value):
    """A file system root.

    base: directory, "/" for the running machine.
    """

    base: str = "/"

    def path(self, relative: str) -> str:
        """The real path of `relative`."""
        return os.path.join(self.base, relative)

    def read(self, relative: str) -> str | None:
        """A small text file without trailing white space and NUL bytes; None when it cannot be read."""
        data = self.read_bytes(relative)
        return None if data is None else data.decode("utf-8", "replace").strip("\0 \t\r\n")

    def read_bytes(self, relative: str, *, at_once: int = 65536) -> bytes | None:
        """A file's content; None when it does not exist, is a directory, has more than MOST_BYTES, or its
        reading fails (offline CPUs and vanished devices answer ENODEV, EIO and others).

        Plain system calls: a topology is a thousand small files, and this halves the time of each.
        at_once: bytes to ask for in one go; more than there are saves copying a large file together.
        """
        try:
            fd = os.open(f"{self.base}/{relative}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        # procfs ends a read at the end of a line, however much was asked for: a short one is not the end.
        short = 1 if relative.startswith("proc/") else at_once
        try:
            chunks = [os.read(fd, at_once)]
            size = len(chunks[0])
            while len(chunks[-1]) >= short or (chunks[-1] and size % 4096 == 0):
                chunks.append(os.read(fd, at_once))
                size += len(chunks[-1])
                if size > MOST_BYTES:
                    return None
            return b"".join(chunks)
        except OSError:
            return None
        finally:
            os.close(fd)

    def read_record(self, relative: str) -> bytes | None:
        """Up to 16 KiB of a file that the kernel gives at once; None when it cannot be read. A pass reads
        thousands of them, a task's status above all.
        """
        try:
            fd = os.open(f"{self.base}/{relative}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            return os.read(fd, 16384)
        except OSError:
            return None
        finally:
            os.close(fd)

    def list(self, relative: str) -> list[str]:
        """The names in a directory, sorted; empty when there is none."""
        try:
            return sorted(os.listdir(self.path(relative)))
        except OSError:
            return []

    def exists(self, relative: str) -> bool:
        return os.path.exists(self.path(relative))

    @cached_property
    def live(self) -> bool:
        """Whether the process ids below this root are those of the running kernel."""
        try:
            return os.readlink(self.path("proc/self")) == str(os.getpid())
        except OSError:
            return False
