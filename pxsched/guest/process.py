"""A VM's QEMU process and its threads, from pid file and procfs.

Rules: Proxmox PVE::QemuServer::Helpers (a pid counts only when its command line names the pid file),
proc(5) for stat, and QEMU's thread names (`CPU n/KVM`, debug-threads=on). A pid alone proves nothing: it is
always paired with the start time, so that a recycled one is never taken for the old.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from pxsched.host import cpulist
from pxsched.root import Root

RUN_DIR = "run/qemu-server"
VMID = re.compile(r"[1-9]\d{2,8}", re.ASCII)
_VCPU_NAME = re.compile(r"CPU (\d{1,5})/(?:KVM|TCG)", re.ASCII)


class Role(StrEnum):
    VCPU = "vcpu"
    IOTHREAD = "iothread"
    VHOST = "vhost"
    EMULATOR = "emulator"


@dataclass(frozen=True, slots=True)
class Process:
    """start_ticks: field 22 of /proc/PID/stat, clock ticks after boot."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Thread:
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


def alive(root: Root, process: Process) -> bool:
    """Whether the very same process still lives."""
    return identify(root, process.pid) == process


def threads(root: Root, process: Process) -> tuple[Thread, ...]:
    """All threads of the process, vCPU and vhost threads told by their names; empty once it is gone.

    vhost workers are threads of QEMU since Linux 6.4 (named vhost-PID), kernel threads before.
    """
    found = []
    for name in root.list(f"proc/{process.pid}/task"):
        stat = _stat(root, f"proc/{process.pid}/task/{name}/stat")
        if stat is not None and name.isdecimal():
            found.append(_named(int(name), stat, process.pid))
    if not any(thread.role is Role.VHOST for thread in found) and _kernel(root) < (6, 4):
        found.extend(_kernel_workers(root, process.pid))
    return tuple(found) if alive(root, process) else ()


def with_roles(
    found: Iterable[Thread], vcpus: Mapping[int, tuple[int, ...]], iothreads: Iterable[int]
) -> tuple[Thread, ...]:
    """The threads with what QMP says of them. Thread ids that are not among `found` are ignored: QEMU may be
    in a guest's hands and must not name other processes' threads.

    vcpus: vCPU indexes by thread id. iothreads: thread ids.
    """
    io_ids = frozenset(iothreads)
    known = []
    for thread in found:
        if thread.tid in vcpus:
            thread = replace(thread, role=Role.VCPU, vcpus=vcpus[thread.tid])
        elif thread.tid in io_ids and thread.role is not Role.VHOST:
            thread = replace(thread, role=Role.IOTHREAD)
        known.append(thread)
    return tuple(known)


def allowed(root: Root, tid: int) -> frozenset[int] | None:
    """The CPUs a thread may use, by procfs; None when it is gone."""
    text = root.read(f"proc/{tid}/status") or ""
    match = re.search(r"^Cpus_allowed_list:\s*(\S+)$", text, re.MULTILINE)
    return cpulist.parse(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class _Stat:
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
