"""The CPU affinity of one thread, as sched_setaffinity(2) sets it."""

import errno
import os
from functools import cached_property

from pxsched.guest import process
from pxsched.host import cpulist
from pxsched.knobs.knob import Gone, Knob, Rank, in_words
from pxsched.root import Root

# sched_setaffinity(2)
_REFUSALS = {
    errno.EINVAL: "none of these CPUs is online and one that the thread's cgroup may use (AllowedCPUs)"
}


class ThreadAffinity(Knob):
    """start_ticks tells the thread from a later one with the same id."""

    kind = "affinity"
    rank = Rank.THREAD

    tid: int
    start_ticks: int

    @cached_property
    def key(self) -> str:
        """As every knob's, only quicker: a pass asks for thousands."""
        return f"{self.kind}:{self.tid},{self.start_ticks}"

    def read(self, root: Root) -> str:
        """The online CPUs the thread may use; whoever asks has just seen the thread."""
        if not root.live:
            return self.original(root)
        try:
            return cpulist.format(os.sched_getaffinity(self.tid))
        except ProcessLookupError:
            raise Gone(self.key) from None

    def original(self, root: Root) -> str:
        """The whole mask; sched_getaffinity leaves out CPUs that are offline at the moment."""
        cpus = process.allowed(root, self.tid)
        if cpus is None:
            raise Gone(self.key)
        return cpus

    def write(self, root: Root, value: str) -> None:
        if not root.live:
            raise OSError(errno.EROFS, "not the running system")
        if not self.present(root):
            raise Gone(self.key)
        try:
            with in_words(_REFUSALS):
                os.sched_setaffinity(self.tid, cpulist.parse(value))
        except ProcessLookupError:
            raise Gone(self.key) from None

    def present(self, root: Root) -> bool:
        now = process.identify(root, self.tid)
        return now is not None and now.start_ticks == self.start_ticks

    def label(self, root: Root) -> str:
        return f"affinity of {name_of(root, self.tid, self.start_ticks)}"

    def same(self, now: str, want: str) -> bool:
        return now == want or cpulist.parse(now) == cpulist.parse(want)


def name_of(root: Root, tid: int, start_ticks: int) -> str:
    """`CPU 0/KVM (4711)`: the thread's name, which a guest may have chosen once it broke out into QEMU."""
    found = process.identify(root, tid)
    name = root.read(f"proc/{tid}/comm") if found and found.start_ticks == start_ticks else None
    if not name:
        return f"thread {tid}"
    return f"{name} ({tid})"
