"""Who else is on the node, for `status`: VMs that are not opted in, containers, the host's own work."""

from collections.abc import Iterator
from typing import Any

from pxsched.host import cpulist
from pxsched.node.others import Seen

# Work of the host that is named: this much of one CPU.
WORTH_NAMING = 0.1


def document(seen: Seen) -> dict[str, Any]:
    """load: in CPUs, null when unknown; busy: by CPU, the part of its time that nobody known uses."""
    return {
        "others": [
            {
                "name": other.name,
                "cpus": cpulist.format(other.cpus),
                "load": other.load,
                "memory_mib": dict(other.memory_mib),
            }
            for other in seen.others
        ],
        "busy": dict(seen.busy),
    }


def lines(seen: Seen) -> Iterator[str]:
    """What work of nobody uses, for a person."""
    busy = {cpu: part for cpu, part in seen.busy.items() if part >= WORTH_NAMING}
    if busy:
        yield f"other work uses {sum(busy.values()):.2f} CPUs of CPUs {cpulist.format(busy)}"
