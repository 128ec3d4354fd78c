"""The cgroup a VM runs in, VMID.scope: the CPUs and memory nodes systemd gives it.

Rules: systemd.resource-control(5) AllowedCPUs=, AllowedMemoryNodes=; cgroup-v2.rst cpuset. A drop-in
confines QEMU from its first instruction, but systemd must read it before (daemon-reload); a property set on
the running scope moves the pages that are already there.
"""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pxsched.host import cgroup, cpulist, systemd
from pxsched.knobs import file
from pxsched.knobs.knob import Gone, Knob, Rank
from pxsched.root import Root

UNITS = "run/systemd/system"
_IN_FORCE = 0o044  # set once systemd has read the file: one that it has not confines nobody
_FILES = {"AllowedCPUs": "cpuset.cpus", "AllowedMemoryNodes": "cpuset.mems"}
_FILE = re.compile(r"AllowedCPUs=([\d,-]*)\nAllowedMemoryNodes=([\d,-]*)\n", re.ASCII)


class _Scope(Knob):
    rank = Rank.CPUSET

    @property
    def peer(self) -> str:
        return systemd.NAME


class DropIn(_Scope):
    """What the scope will be confined to when it starts: `CPUS NODES`, or nothing."""

    kind = "dropin"

    vmid: int

    def label(self, root: Root) -> str:
        return f"CPUs and memory nodes that VM {self.vmid} starts with"

    def read(self, root: Root) -> str:
        match = _FILE.search((root.read_bytes(self._path) or b"").decode("utf-8", "replace"))
        if match is None or not os.stat(root.path(self._path)).st_mode & _IN_FORCE:
            return ""
        return f"{match[1]} {match[2]}"

    def write(self, root: Root, value: str) -> None:
        with _as_knob(self.key):
            if value:
                self._put(root, *value.split(" "))
            else:
                self._remove(root)

    def _put(self, root: Root, cpus: str, nodes: str) -> None:
        path = root.path(self._path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(f"# Made by pxsched.\n[Scope]\nAllowedCPUs={cpus}\nAllowedMemoryNodes={nodes}\n")
        systemd.reload(root)
        os.chmod(path, 0o600 | _IN_FORCE)

    def _remove(self, root: Root) -> None:
        path = root.path(self._path)
        for remove, name in ((os.unlink, path), (os.rmdir, os.path.dirname(path))):
            try:
                remove(name)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:  # somebody else's drop-ins
                    raise
        # A scope that is started anew reads its files anew; only a running one must be told.
        group = cgroup.scope(self.vmid)
        if cgroup.exists(root, group):
            systemd.reload(root)
            for name, file_name in _FILES.items():
                if not systemd.runtime_property(root, f"{self.vmid}.scope", name):
                    cgroup.clear(root, group, file_name)

    def exists(self, root: Root) -> bool:
        """Whether there is a file of ours, read by systemd or not."""
        return root.exists(self._path)

    @property
    def _path(self) -> str:
        return f"{UNITS}/{self.vmid}.scope.d/pxsched.conf"


class MemoryNodes(_Scope):
    """The nodes that a running scope's memory may come from; nothing where all may."""

    kind = "memory-nodes"

    vmid: int

    def label(self, root: Root) -> str:
        return f"memory nodes of VM {self.vmid}"

    def read(self, root: Root) -> str:
        group = cgroup.scope(self.vmid)
        if not cgroup.exists(root, group):
            raise Gone(self.key)
        return cgroup.configured_nodes(root, group)

    def write(self, root: Root, value: str) -> None:
        with _as_knob(self.key):
            _set(root, self.vmid, "AllowedMemoryNodes", value)

    def same(self, now: str, want: str) -> bool:
        return cpulist.parse(now) == cpulist.parse(want)


class Partition(_Scope):
    """The CPUs that are the scope's alone, taken from all other groups; nothing where it shares.

    A remote `isolated` partition (Linux 6.7): every group above names the CPUs in cpuset.cpus.exclusive.
    systemd keeps the controller there for us as long as it has AllowedCPUs= of the scope to look after.
    """

    kind = "partition"

    vmid: int

    def label(self, root: Root) -> str:
        return f"partition of VM {self.vmid}"

    def read(self, root: Root) -> str:
        base = self._base(root)
        state = root.read(f"{base}/cpuset.cpus.partition") or "member"
        if state == "member":
            return ""
        return (root.read(f"{base}/cpuset.cpus.effective") or "") if state == "isolated" else state

    def write(self, root: Root, value: str) -> None:
        try:
            base = self._base(root)
        except Gone:
            _offer(root, frozenset())  # the groups above still name the CPUs that went with the scope
            raise
        # Each by itself: a write of ours may have been stopped between the two.
        if self.read(root):
            file.write(root, f"{base}/cpuset.cpus.partition", "member")
        if root.read(f"{base}/cpuset.cpus.exclusive"):
            file.write(root, f"{base}/cpuset.cpus.exclusive", "")
        with _as_knob(self.key):
            _set(root, self.vmid, "AllowedCPUs", value)
        if not value:
            _offer(root, frozenset())
            return
        if not root.exists(f"{base}/cpuset.cpus.exclusive"):
            raise OSError(errno.EOPNOTSUPP, "needs cgroup v2 and Linux 6.7")
        with _above(root):
            _offer(root, cpulist.parse(value), locked=True)
            file.write(root, f"{base}/cpuset.cpus.exclusive", value)
        file.write(root, f"{base}/cpuset.cpus.partition", "isolated")

    def _base(self, root: Root) -> str:
        group = cgroup.scope(self.vmid)
        if not cgroup.exists(root, group):
            raise Gone(self.key)
        return cgroup.path(root, group)


def _set(root: Root, vmid: int, name: str, value: str) -> None:
    if value:
        systemd.set_property(root, f"{vmid}.scope", name, value)
    else:
        systemd.forget_property(root, f"{vmid}.scope", name)
        cgroup.clear(root, cgroup.scope(vmid), _FILES[name])


@contextmanager
def _above(root: Root) -> Iterator[None]:
    """What the groups above a partition name is one process's to change: it depends on all partitions."""
    try:
        fd = os.open(root.path(cgroup.path(root, "qemu.slice")), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # no VM has ever run
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _offer(root: Root, more: frozenset[int], *, locked: bool = False) -> None:
    """Has qemu.slice name the CPUs of all partitions in it, so that each of them may take its own."""
    if not locked:
        with _above(root):
            _offer(root, more, locked=True)
        return
    base = cgroup.path(root, "qemu.slice")
    if not root.exists(f"{base}/cpuset.cpus.exclusive"):
        return
    taken = more
    for name in root.list(base):
        if name.endswith(".scope"):
            taken |= cpulist.parse(root.read(f"{base}/{name}/cpuset.cpus.exclusive") or "")
    file.write(root, f"{base}/cpuset.cpus.exclusive", cpulist.format(taken))


@contextmanager
def _as_knob(key: str) -> Iterator[None]:
    try:
        yield
    except systemd.NoSuchUnit:
        raise Gone(key) from None
