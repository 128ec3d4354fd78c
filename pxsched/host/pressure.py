"""How short the host is of memory, and whose tasks wait for what.

Rules: Documentation/accounting/psi.rst, Documentation/admin-guide/mm/ksm.rst, cgroup-v2.rst, proc(5) meminfo,
OpenZFS arcstats.
"""

import math
import os
import re

from pxsched.root import Root
from pxsched.value import Value

# All VMs are in it. Beyond `memory.high` they are throttled, beyond `memory.max` the kernel kills them.
_SLICE = "sys/fs/cgroup/qemu.slice"


class HostMemory(Value):
    """available_mib: what the host could give VMs at once without swapping. stalled: per cent of the last ten
    seconds in which all tasks waited for memory. arc_mib: what ZFS would give back besides, in its own time.
    merged_mib: what KSM saves, until somebody writes to it.
    """

    total_mib: float
    available_mib: float
    stalled: float = 0.0
    arc_mib: float = 0.0
    merged_mib: float = 0.0


def average(text: str | None, line: str) -> float | None:
    """The ten-second average of a pressure file's line (`some` or `full`), in per cent; None without one."""
    match = re.search(rf"^{line} avg10=(\d+\.\d+)", text or "", re.MULTILINE)
    return None if match is None else float(match[1])


def host_memory(root: Root) -> HostMemory | None:
    """None where /proc/meminfo says nothing."""
    fields = dict(re.findall(r"^(\w+):\s+(\d{1,18})", root.read("proc/meminfo") or "", re.MULTILINE))
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    stalled = average(root.read("proc/pressure/memory"), "full") or 0.0
    total, available = (int(fields[name]) / 1024 for name in ("MemTotal", "MemAvailable"))
    most = _slice_mib(root)
    available = min(available, most)
    arc = min(_arc_shrinkable_mib(root), most - available)
    return HostMemory(total, available, stalled, arc, _merged_mib(root))


def _slice_mib(root: Root) -> float:
    """What VMs may still have together, where an admin has limited their slice; without end where not."""
    limits = [root.read(f"{_SLICE}/memory.{name}") or "" for name in ("high", "max")]
    current = root.read(f"{_SLICE}/memory.current") or ""
    found = [int(limit) for limit in limits if re.fullmatch(r"\d{1,19}", limit, re.ASCII)]
    if not found or not re.fullmatch(r"\d{1,19}", current, re.ASCII):
        return math.inf
    stat = root.read(f"{_SLICE}/memory.stat") or ""
    # Cached files and the like: it goes first.
    cached = re.findall(r"^(?:active_file|inactive_file|slab_reclaimable) (\d{1,19})$", stat, re.MULTILINE)
    return max(0, min(found) - int(current) + sum(map(int, cached))) / (1 << 20)


def _arc_shrinkable_mib(root: Root) -> float:
    """What ZFS would give back: its cache above its least size. MemAvailable does not count it."""
    text = root.read("proc/spl/kstat/zfs/arcstats")
    fields = dict(re.findall(r"^(\w+)\s+\d+\s+(\d{1,19})$", text or "", re.MULTILINE))
    if "size" not in fields or "c_min" not in fields:
        return 0.0
    return max(0, int(fields["size"]) - int(fields["c_min"])) / (1 << 20)


def _merged_mib(root: Root) -> float:
    """`pages_sharing`: how many more places use KSM's pages than there are pages: what is saved."""
    text = root.read("sys/kernel/mm/ksm/pages_sharing") or ""
    pages = int(text) if re.fullmatch(r"\d{1,15}", text, re.ASCII) else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
