"""The topology for whoever asks again and again: it is read anew when CPUs or nodes came or went.

Rules: Documentation/ABI/stable/sysfs-devices-node, Documentation/ABI/testing/sysfs-devices-system-cpu.
`online` names the CPUs that are there; what they share does not change while they are.
"""

import time

from pxsched.host import topology
from pxsched.host.topology import CPU_DIR, NODE_DIR, Topology
from pxsched.root import Root

# What else can change, such as the greatest frequency of a core or the size of a node, is seen so late.
LONGEST_S = 60.0


class Reader:
    """Gives the very same topology as long as nothing changed."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._topology: Topology | None = None
        self._stamp: tuple[str | None, ...] = ()
        self._read_s = 0.0

    def read(self) -> Topology:
        """Raises UserError when the tree shows no CPU at all."""
        stamp, now_s = self._look(), time.monotonic()
        same = stamp[0] and stamp == self._stamp and now_s - self._read_s < LONGEST_S
        if self._topology is None or not same:
            found = topology.read(self._root)
            if found != self._topology:
                self._topology = found
            self._stamp, self._read_s = stamp, now_s
        return self._topology

    def _look(self) -> tuple[str | None, ...]:
        """The CPUs that are online, None where the kernel does not list them; those isolated; the nodes."""
        files = [self._root.read(f"{CPU_DIR}/{name}") for name in ("online", "isolated")]
        return (*files, *self._root.list(NODE_DIR))
