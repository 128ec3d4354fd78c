"""How long each CPU has been idle, from /proc/stat.

Rules: proc_stat(5), show_stat() in fs/proc/stat.c. Idle time is exact on a tickless kernel, where the times
of user and system are samples at the tick: so what a CPU was busy is what it was not idle.
"""

import os
import re
from collections.abc import Mapping

from pxsched.root import Root

TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
_CPU = re.compile(rb"^cpu(\d+) (.*)$", re.MULTILINE)
# Fields: user nice system idle iowait irq softirq steal. What a hypervisor steals runs nothing here.
_IDLE = (3, 4, 7)


def idle_ns(root: Root) -> dict[int, int]:
    """Time since boot in which the CPU ran nothing, by online CPU; empty where it cannot be read."""
    found = {}
    for match in _CPU.finditer(root.read_bytes("proc/stat") or b""):
        fields = match[2].split()
        if len(fields) > max(_IDLE) and all(field.isdigit() for field in fields):
            found[int(match[1])] = sum(int(fields[index]) for index in _IDLE) * TICK_NS
    return found


def busy(before: Mapping[int, int], after: Mapping[int, int], elapsed_ns: int) -> dict[int, float]:
    """The part of the time (0 to 1) that each CPU was busy between two readings of `idle_ns`."""
    return {
        cpu: min(1.0, max(0.0, 1 - (now - before[cpu]) / elapsed_ns))
        for cpu, now in after.items()
        if cpu in before and elapsed_ns > 0
    }
