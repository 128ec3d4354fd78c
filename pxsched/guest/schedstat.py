"""What a VM's threads ran and waited, and what `cpulimit` held back.

Rules: Documentation/scheduler/sched-stats.rst (/proc/PID/schedstat: ns on a CPU, ns runnable but waiting),
cgroup-v2.rst (cpu.stat, PSI files).

A fast `watch` reads thousands of these files ten times a second, so they are kept open: an open file of
/proc stays with the thread it was opened for, and fails once that is gone, whoever has its number then.
"""

import os
import re
import resource
import time
from collections.abc import Iterable, Mapping

from pxsched.guest.process import Process, threads
from pxsched.root import Root
from pxsched.value import Value

_OTHER_FILES = 64  # descriptors left for everything else this process opens
_RESIDENT = re.compile(r"^(?:RssAnon|RssShmem):[ \t]*(\d{1,15}) kB$", re.MULTILINE)


class Wanted(Value):
    """One VM to look at. tids: its vCPU threads in order. limited: whether it has a `cpulimit`."""

    vmid: int
    process: Process
    tids: tuple[int, ...]
    limited: bool = False


class Counters(Value):
    """One VM's counters. at_ns: CLOCK_MONOTONIC. threads: ns run and waited since they began, by id."""

    at_ns: int
    threads: Mapping[int, tuple[int, int]]
    throttled_ns: int = 0


class _Open:
    """Files of one VM that stay open."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.threads: dict[int, int] = {}
        self.cpu_stat: int | None = None


class Reader:
    """Reads the counters of many VMs; with `keep`, again and again at little cost."""

    def __init__(self, root: Root, *, keep: bool = False) -> None:
        self._root = root
        self._keep = keep
        self._open: dict[int, _Open] = {}
        self._files = 0
        self._most = _allow_files() if keep else 0

    def read(self, vms: Iterable[Wanted]) -> dict[int, Counters]:
        """The counters of every VM of which something could be read."""
        found = {}
        asked = set()
        for vm in vms:
            asked.add(vm.vmid)
            counters = self._read(vm)
            if counters.threads:
                found[vm.vmid] = counters
        for vmid in self._open.keys() - asked:
            self._close(vmid)
        return found

    def close(self) -> None:
        for vmid in list(self._open):
            self._close(vmid)

    def _read(self, vm: Wanted) -> Counters:
        known = self._open.get(vm.vmid)
        if known is None or known.wanted != vm:
            self._close(vm.vmid)
            known = self._open_files(vm)
        threads: dict[int, tuple[int, int]] = {}
        at_ns = time.monotonic_ns()
        for tid in vm.tids:
            fd = known.threads.get(tid)
            try:
                data = self._read_thread(vm, tid) if fd is None else os.pread(fd, 128, 0)
                run, wait, _slices = data.split()
                threads[tid] = int(run), int(wait)
            except (OSError, ValueError):
                continue  # gone, or a kernel without schedstat
        throttled = self._throttled_ns(vm, known) if vm.limited else 0
        return Counters(at_ns, threads, throttled)

    def _read_thread(self, vm: Wanted, tid: int) -> bytes:
        return self._root.read_record(_thread_file(vm, tid)) or b""

    def _open_files(self, vm: Wanted) -> _Open:
        known = _Open(vm)
        if not self._keep or self._files + len(vm.tids) + 1 > self._most:
            return known
        try:
            for tid in vm.tids:
                known.threads[tid] = os.open(
                    self._root.path(_thread_file(vm, tid)), os.O_RDONLY | os.O_CLOEXEC
                )
            if vm.limited:
                known.cpu_stat = os.open(
                    self._root.path(_cpu_stat(self._root, vm.vmid)), os.O_RDONLY | os.O_CLOEXEC
                )
        except OSError:
            pass  # what could not be opened is looked for at every pass
        self._files += len(known.threads) + (known.cpu_stat is not None)
        self._open[vm.vmid] = known
        return known

    def _close(self, vmid: int) -> None:
        known = self._open.pop(vmid, None)
        if known is None:
            return
        fds = [*known.threads.values(), *([] if known.cpu_stat is None else [known.cpu_stat])]
        self._files -= len(fds)
        for fd in fds:
            os.close(fd)

    def _throttled_ns(self, vm: Wanted, known: _Open) -> int:
        try:
            if known.cpu_stat is not None:
                text = os.pread(known.cpu_stat, 4096, 0).decode("ascii", "replace")
            else:
                text = self._root.read(_cpu_stat(self._root, vm.vmid)) or ""
        except OSError:
            return 0
        match = re.search(r"^throttled_(usec|time) (\d{1,18})$", text, re.MULTILINE)
        return 0 if match is None else int(match[2]) * (1000 if match[1] == "usec" else 1)


def of_process(root: Root, process: Process) -> Mapping[int, tuple[int, int]]:
    """Of all threads of a VM's process: ns run and waited since they began, by id; empty once it is gone."""
    wanted = Wanted(0, process, tuple(thread.tid for thread in threads(root, process)))
    found = Reader(root).read([wanted]).get(0)
    return {} if found is None else found.threads


def _cpu_stat(root: Root, vmid: int) -> str:
    """v2 keeps it with everything else, v1 below the cpu controller."""
    from pxsched.host import cgroup

    group = cgroup.scope(vmid)
    unified = f"{cgroup.MOUNT}/{group}/cpu.stat"
    return unified if root.exists(unified) else f"{cgroup.MOUNT}/cpu/{group}/cpu.stat"


def _thread_file(vm: Wanted, tid: int) -> str:
    return f"proc/{vm.process.pid}/task/{tid}/schedstat"


def _allow_files() -> int:
    """How many files may be kept open, after raising the soft limit to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):
            pass
    return (1 << 20 if soft == resource.RLIM_INFINITY else soft) - _OTHER_FILES


def pressure(root: Root, vmid: int) -> dict[str, float]:
    """Per cent of the last ten seconds in which a VM's scope waited for cpu, memory and io (some)."""
    from pxsched.host import cgroup
    from pxsched.host.pressure import average

    base = f"{cgroup.MOUNT}/{cgroup.scope(vmid)}"
    found = {}
    for what in ("cpu", "memory", "io"):
        value = average(root.read(f"{base}/{what}.pressure"), "some")
        if value is not None:
            found[what] = value
    return found


def resident_mib(root: Root, pid: int) -> float | None:
    """The memory a process really holds, without what it maps of files: QEMU's program is no guest's memory.

    Private and shared (RssAnon, RssShmem of proc_pid_status(5)); huge pages are neither.
    """
    found = _RESIDENT.findall(root.read(f"proc/{int(pid)}/status") or "")
    return sum(map(int, found)) / 1024 if len(found) == 2 else None


def used_ns(root: Root, vmid: int, process: Process) -> int | None:
    """CPU time that a VM has used, its vhost workers included where its scope counts; None when it is gone.

    Without a scope it is QEMU's own: fields 14 and 15 of proc_pid_stat(5), of all its threads.
    """
    from pxsched.host import cgroup
    from pxsched.host.cputime import TICK_NS

    found = cgroup.used_ns(root, cgroup.scope(vmid))
    if found is not None:
        return found
    words = (root.read(f"proc/{process.pid}/stat") or "").rpartition(")")[2].split()
    times = words[11:13]
    return sum(map(int, times)) * TICK_NS if len(times) == 2 and all(map(str.isdecimal, times)) else None
