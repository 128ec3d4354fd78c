"""What kind of processor the host has.

Rules: /proc/cpuinfo (arch/x86/kernel/cpu/proc.c): one paragraph a CPU, all alike in these lines.
"""

import re

from pxsched.root import Root
from pxsched.value import Value


class Processor(Value):
    """vendor: as CPUID says it, empty when unknown. topoext: it tells siblings as AMD's later ones do."""

    vendor: str = ""
    family: int = 0
    model: int = 0
    topoext: bool = False


def read(root: Root) -> Processor:
    """The first CPU's; one without a vendor where /proc/cpuinfo is missing or another architecture's."""
    first = (root.read("proc/cpuinfo") or "").split("\n\n")[0]
    said = dict(re.findall(r"^([a-z_ ]+?)\s*: (.*)$", first, re.MULTILINE))
    if not all(re.fullmatch(r"\d{1,4}", said.get(name, ""), re.ASCII) for name in ("cpu family", "model")):
        return Processor()
    return Processor(
        said.get("vendor_id", "")[:20],
        int(said["cpu family"]),
        int(said["model"]),
        "topoext" in said.get("flags", "").split(),
    )
