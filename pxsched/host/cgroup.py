"""Control groups as a scheduler sees them: which CPUs and memory nodes a group may use, and who is in it.

Rules: Documentation/admin-guide/cgroup-v2.rst (cpuset, memory.numa_stat) and cgroup-v1/cpusets.rst. On v2
the cpuset files of a group exist only where its parent hands the controller down, and an empty cpuset falls
back to the parent's silently: so what is in force is always read from the nearest group that says it.

Groups are named as below the hierarchy's root, without slashes at the ends: `qemu.slice/100.scope`.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum

from pxsched.errors import UserError
from pxsched.host import cpulist
from pxsched.root import Root
from pxsched.value import Value

MOUNT = "sys/fs/cgroup"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Version(Enum):
    """The hierarchy that holds the cpuset controller."""

    V1 = 1
    V2 = 2


class Task(Value):
    """A thread that keeps a CPU mask of its own. start_ticks tells it from a later one with its id."""

    tid: int
    start_ticks: int
    cpus: frozenset[int]


def version(root: Root) -> Version | None:
    """None where there is no cpuset controller at all."""
    if "cpuset" in (root.read(f"{MOUNT}/cgroup.controllers") or "").split():
        return Version.V2
    return Version.V1 if root.exists(f"{MOUNT}/cpuset/cgroup.procs") else None


def scope(vmid: int) -> str:
    """The group Proxmox starts a VM in."""
    return f"qemu.slice/{vmid}.scope"


def path(root: Root, group: str, controller: str = "cpuset") -> str:
    """Where the group's files for this controller are."""
    base = f"{MOUNT}/{controller}" if version(root) is Version.V1 else MOUNT
    return f"{base}/{group}" if group else base


def exists(root: Root, group: str) -> bool:
    return root.exists(path(root, group))


def configured_cpus(root: Root, group: str) -> str:
    """What was asked for the group, as it stands in its file; empty when nothing was."""
    return root.read(f"{path(root, group)}/cpuset.cpus") or ""


def configured_nodes(root: Root, group: str) -> str:
    return root.read(f"{path(root, group)}/cpuset.mems") or ""


def effective_cpus(root: Root, group: str) -> frozenset[int]:
    """The CPUs the group's tasks may use. Raises UserError when no file says anything."""
    return _effective(root, group, "cpus")


def effective_nodes(root: Root, group: str) -> frozenset[int]:
    return _effective(root, group, "mems")


def stated_cpus(root: Root, group: str) -> frozenset[int] | None:
    """The CPUs that a group's tasks may use, by the group's own word; None where it has no cpuset of its own,
    and on v1.
    """
    text = root.read(f"{MOUNT}/{group}/cpuset.cpus.effective")
    return cpulist.parse(text) if text else None


def group_of(root: Root, pid: int) -> str | None:
    """The group of the v1 cpuset hierarchy that a process is in; None on v2. Rule: cpuset(7)."""
    text = root.read(f"proc/{pid}/cpuset") if version(root) is Version.V1 else None
    return None if text is None or ".." in text.split("/") else text.strip("/")


def put(root: Root, group: str, name: str, value: str) -> None:
    """Writes a file of a group that systemd does not look after. Raises OSError."""
    file = root.path(f"{path(root, group)}/{name}")
    fd = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, f"{value}\n".encode())
    finally:
        os.close(fd)


def clear(root: Root, group: str, name: str) -> None:
    """Takes back what was configured in `cpuset.cpus` or `cpuset.mems`, where the controller is there at all.

    The kernel empties no set of a group that has tasks (validate_change() in kernel/cgroup/cpuset.c), and
    systemd only logs that; then the group gets everything there is, which comes to the same.
    Raises OSError.
    """
    if not root.read(f"{path(root, group)}/{name}"):
        return
    with suppress(FileNotFoundError):  # systemd takes the controller away at any moment
        try:
            put(root, group, name, "")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            put(root, group, name, _everything(root, name))


def _everything(root: Root, name: str) -> str:
    """All CPUs that may ever come online, or all nodes with memory."""
    if name == "cpuset.cpus":
        return root.read("sys/devices/system/cpu/possible") or cpulist.format(effective_cpus(root, ""))
    return cpulist.format(effective_nodes(root, ""))


def _effective(root: Root, group: str, what: str) -> frozenset[int]:
    while True:
        directory = path(root, group)
        for name in (f"cpuset.{what}.effective", f"cpuset.effective_{what}"):  # v2, v1
            text = root.read(f"{directory}/{name}")
            if text:
                return cpulist.parse(text)
        if not group:
            raise UserError(f"nothing below {root.path(directory)} says which {what} may be used")
        group = group.rpartition("/")[0]


def groups(root: Root, group: str) -> Iterator[str]:
    """The group and all groups below it, parents first."""
    pending = [group]
    while pending:
        group = pending.pop()
        yield group
        try:
            with os.scandir(root.path(path(root, group))) as entries:
                pending.extend(f"{group}/{entry.name}".strip("/") for entry in entries if entry.is_dir())
        except OSError:
            continue  # ended while we looked


def tids(root: Root, group: str) -> Iterator[int]:
    """The threads directly in a group, kernel threads included."""
    name = "tasks" if version(root) is Version.V1 else "cgroup.threads"
    for word in (root.read(f"{path(root, group)}/{name}") or "").split():
        if word.isdecimal():
            yield int(word)


def keeps_masks(root: Root) -> bool:
    """Whether tasks keep the CPU mask they chose when their group's set changes: since Linux 6.2, commit
    8f9ea86fdf99. Before, the set overwrites it.
    """
    match = re.match(r"(\d+)\.(\d+)", root.read("proc/sys/kernel/osrelease") or "")
    return match is not None and (int(match[1]), int(match[2])) >= (6, 2)


def self_bound(root: Root, group: str) -> tuple[Task, ...]:
    """The threads in and below a group whose CPU mask is less than their group's: somebody chose it."""
    found = []
    for member in groups(root, group):
        common = effective_cpus(root, member)
        tasks = (read_task(root, tid) for tid in tids(root, member))
        found += [task for task in tasks if task is not None and task.cpus < common]
    return tuple(found)


def read_task(root: Root, tid: int) -> Task | None:
    """A thread's mask by procfs; None when it is gone."""
    stat = (root.read(f"proc/{tid}/stat") or "").rpartition(")")[2].split()
    mask = re.search(r"^Cpus_allowed_list:\s*(\S+)$", root.read(f"proc/{tid}/status") or "", re.MULTILINE)
    if len(stat) < 20 or mask is None:
        return None
    return Task(tid, int(stat[19]), cpulist.parse(mask[1]))


def memory_bytes(root: Root, group: str) -> Mapping[int, int] | None:
    """The group's anonymous and shared memory by node, huge pages left out; None where it is not counted.

    A few microseconds, where numa_maps of a large process walks all its page tables.
    """
    unified = root.read(f"{MOUNT}/{group}/memory.numa_stat")
    text = unified or root.read(f"{MOUNT}/memory/{group}/memory.numa_stat")
    if text is None:
        return None
    kinds, unit = (("anon", "shmem"), 1) if unified else (("anon",), PAGE_BYTES)
    total: dict[int, int] = {}
    for line in text.splitlines():
        if re.split(r"[ =]", line, maxsplit=1)[0] in kinds:
            for node, amount in re.findall(r"\bN(\d+)=(\d+)", line):
                total[int(node)] = total.get(int(node), 0) + int(amount) * unit
    return total


def used_ns(root: Root, group: str) -> int | None:
    """CPU time that everybody in and below the group has used since it was made; None where it is not
    counted.
    """
    usage = re.search(r"^usage_usec (\d{1,18})$", root.read(f"{MOUNT}/{group}/cpu.stat") or "", re.MULTILINE)
    if usage:
        return int(usage[1]) * 1000
    text = root.read(f"{MOUNT}/cpuacct/{group}/cpuacct.usage") or ""
    return int(text) if text.isdecimal() else None
