"""A VM's QEMU process and its threads, from pid file and procfs.

Rules: Proxmox PVE::QemuServer::Helpers (a pid counts only when its command line names the pid file),
proc(5) for stat, and QEMU's thread names (`CPU n/KVM`, debug-threads=on). A pid alone proves nothing: it is
always paired with the start time, so that a recycled one is never taken for the old.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import pairwise

from pxsched.root import Root
from pxsched.value import Value, replace

RUN_DIR = "run/qemu-server"
VMID = re.compile(r"[1-9]\d{2,8}", re.ASCII)
NAMED_S = 2.0
_VCPU_NAME = re.compile(r"CPU (\d{1,5})/(?:KVM|TCG)", re.ASCII)


class Role(StrEnum):
    VCPU = "vcpu"
    VHOST = "vhost"
    EMULATOR = "emulator"


class Process(Value):
    """start_ticks: field 22 of /proc/PID/stat, clock ticks after boot."""

    pid: int
    start_ticks: int


class Thread(Value):
    """vcpus: indexes of the vCPUs that this thread runs; several only under single-threaded TCG."""

    tid: int
    start_ticks: int
    name: str
    role: Role = Role.EMULATOR
    vcpus: tuple[int, ...] = ()


def running(root: Root) -> list[int]:
    """The VMIDs that have a pid file, ascending; whether their process lives is for `find` to say."""
    stems = (name.removesuffix(".pid") for name in root.list(RUN_DIR) if name.endswith(".pid"))
    return sorted(int(stem) for stem in stems if VMID.fullmatch(stem))


def find(root: Root, vmid: int) -> Process | None:
    """The live QEMU process of a VM, or None."""
    text = root.read(f"{RUN_DIR}/{vmid}.pid")
    if text is None or not re.fullmatch(r"[1-9]\d{0,9}", text, re.ASCII):
        return None
    pid = int(text)
    arguments = (root.read_bytes(f"proc/{pid}/cmdline") or b"").split(b"\0")
    pid_files = [after for flag, after in pairwise(arguments) if flag == b"-pidfile"]
    suffix = f"{RUN_DIR}/{vmid}.pid"
    prefixes = ("/", "/var/", root.path(""), root.path("var/"))
    if not any(os.fsencode(prefix + suffix) in pid_files for prefix in prefixes):
        return None
    return identify(root, pid)


def identify(root: Root, pid: int) -> Process | None:
    """The process with this pid as it is now; None when there is none, or only its corpse."""
    stat = _stat(root, f"proc/{pid}/stat")
    return None if stat is None or stat.state in "ZX" else Process(pid, stat.start_ticks)


def parent(root: Root, pid: int) -> int | None:
    """The process's parent; None when it is gone."""
    after = (root.read(f"proc/{pid}/stat") or "").rpartition(")")[2].split()
    return int(after[1]) if len(after) > 1 and after[1].isdecimal() else None


def alive(root: Root, process: Process) -> bool:
    """Whether the very same process still lives."""
    return identify(root, process.pid) == process


def threads(root: Root, process: Process) -> tuple[Thread, ...]:
    """All threads of the process, vCPU and vhost threads told by their names; empty once it is gone.

    vhost workers are threads of QEMU since Linux 6.4 (named vhost-PID), kernel threads before.
    """
    return Threads(root, process).read()


class Threads:
    """The threads of one process, to be listed again and again: each is read once.

    A thread is the same while its directory in procfs has the same inode: the kernel forgets that when the
    thread ends (proc_flush_pid() in fs/proc/base.c), and whoever gets its number gets another inode.
    """

    def __init__(self, root: Root, process: Process) -> None:
        self._root = root
        self._process = process
        self._known: dict[str, tuple[int, Thread]] = {}  # inode and thread, by the name of its directory
        self._last: tuple[dict[str, int], tuple[Thread, ...]] = {}, ()  # inodes and answer, once all is known

    def read(self) -> tuple[Thread, ...]:
        """All threads, as `threads` describes."""
        inodes = self._inodes()
        if inodes == self._last[0]:
            return self._last[1]
        known = {name: self._one(name, inode) for name, inode in sorted(inodes.items())}
        found = tuple(one[1] for one in known.values() if one is not None)
        # Threads that are all known belong to the process that is.
        fresh = any(one is not self._known.get(name) for name, one in known.items())
        if not found or (fresh and not alive(self._root, self._process)):
            return ()
        self._known = {name: one for name, one in known.items() if one and self._is_named(one[1])}
        if not any(thread.role is Role.VHOST for thread in found) and _kernel(self._root) < (6, 4):
            return (*found, *_kernel_workers(self._root, self._process.pid))
        if len(self._known) == len(inodes):
            self._last = inodes, found
        return found

    def _inodes(self) -> dict[str, int]:
        try:
            with os.scandir(self._root.path(f"proc/{self._process.pid}/task")) as entries:
                return {entry.name: entry.inode() for entry in entries if entry.name.isdecimal()}
        except OSError:
            return {}

    def _one(self, name: str, inode: int) -> tuple[int, Thread] | None:
        known = self._known.get(name)
        if known is not None and known[0] == inode:
            return known
        pid = self._process.pid
        stat = _stat(self._root, f"proc/{pid}/task/{name}/stat")
        return None if stat is None else (inode, _named(int(name), stat, pid))

    def _is_named(self, thread: Thread) -> bool:
        """Whether it is old enough to bear its own name, which it gets a moment after it begins."""
        if not self._root.live:
            return True
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - thread.start_ticks / os.sysconf("SC_CLK_TCK")
        return age_s >= NAMED_S


def with_vcpus(found: Iterable[Thread], vcpus: Mapping[int, tuple[int, ...]]) -> tuple[Thread, ...]:
    """The threads with the vCPUs that QMP says they run. Thread ids that are not among `found` are ignored:
    QEMU may be in a guest's hands and must not name other processes' threads.

    vcpus: vCPU indexes by thread id.
    """
    return tuple(
        replace(thread, role=Role.VCPU, vcpus=vcpus[thread.tid]) if thread.tid in vcpus else thread
        for thread in found
    )


def allowed(root: Root, tid: int) -> str | None:
    """The CPUs a thread may use, as procfs lists them; None when it is gone."""
    _, found, rest = (root.read_record(f"proc/{tid}/status") or b"").rpartition(b"Cpus_allowed_list:")
    return rest.partition(b"\n")[0].strip().decode("ascii", "replace") if found else None


def mask(root: Root, tid: int) -> frozenset[int] | None:
    """The online CPUs a thread may use; None when it is gone. Of a captured machine by procfs."""
    if root.live:
        try:
            return frozenset(os.sched_getaffinity(tid))
        except OSError:
            return None
    from pxsched.host import cpulist

    listed = allowed(root, tid)
    return None if listed is None else cpulist.parse(listed)


class _Stat(Value):
    name: str
    state: str
    start_ticks: int


def _stat(root: Root, path: str) -> _Stat | None:
    """proc(5): the name stands in parentheses and may itself hold any character."""
    head, _, tail = (root.read(path) or "").rpartition(")")
    after = tail.split()
    if len(after) < 20 or not after[19].isdecimal():
        return None
    return _Stat(head.partition("(")[2], after[0], int(after[19]))


def _named(tid: int, stat: _Stat, pid: int) -> Thread:
    if match := _VCPU_NAME.fullmatch(stat.name):
        return Thread(tid, stat.start_ticks, stat.name, Role.VCPU, (int(match[1]),))
    role = Role.VHOST if stat.name == f"vhost-{pid}" else Role.EMULATOR
    return Thread(tid, stat.start_ticks, stat.name, role)


def _kernel(root: Root) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", root.read("proc/sys/kernel/osrelease") or "")
    return (int(match[1]), int(match[2])) if match else (99, 0)


def _kernel_workers(root: Root, pid: int) -> list[Thread]:
    """Kernel threads named vhost-PID. Only children of kthreadd (pid 2) count: anybody may take a name."""
    workers = []
    for tid in (root.read("proc/2/task/2/children") or "").split():
        if root.read(f"proc/{tid}/comm") == f"vhost-{pid}":
            stat = _stat(root, f"proc/{tid}/stat")
            if stat is not None:
                workers.append(Thread(int(tid), stat.start_ticks, stat.name, Role.VHOST))
    return workers
