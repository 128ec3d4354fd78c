"""How short the host is of memory, and whose tasks wait for what.

Rules: Documentation/accounting/psi.rst, proc(5) meminfo, OpenZFS arcstats.
"""

import re

from pxsched.root import Root
from pxsched.value import Value


class HostMemory(Value):
    """available_mib: what the host could give without swapping. stalled: per cent of the last ten seconds in
    which all tasks waited for memory.
    """

    total_mib: float
    available_mib: float
    stalled: float = 0.0


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
    available = int(fields["MemAvailable"]) / 1024 + _arc_shrinkable_mib(root)
    return HostMemory(int(fields["MemTotal"]) / 1024, available, stalled)


def _arc_shrinkable_mib(root: Root) -> float:
    """What ZFS would give back: its cache above its least size. MemAvailable does not count it."""
    text = root.read("proc/spl/kstat/zfs/arcstats")
    fields = dict(re.findall(r"^(\w+)\s+\d+\s+(\d{1,19})$", text or "", re.MULTILINE))
    if "size" not in fields or "c_min" not in fields:
        return 0.0
    return max(0, int(fields["size"]) - int(fields["c_min"])) / (1 << 20)
