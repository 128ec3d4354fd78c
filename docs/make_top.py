"""Prints a picture of `pxsched top`, drawn by the program itself; how busy who is is made up.

python3 docs/make_top.py         > docs/top.svg       the machine of node.svg, 100 columns
python3 docs/make_top.py 80 2    > docs/top-80.svg    two CPUs in 80 columns
python3 docs/make_top.py 200 256 > docs/top-200.svg   256 CPUs and 48 VMs in 200
"""

import io
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_picture import VMS, machine, placed_on
from rich.console import Console

from pxsched.host.topology import L3, Cpu, Node, Package, Topology
from pxsched.ledger.claim import Claim
from pxsched.placement.request import VmClass
from pxsched.report import screen
from pxsched.report.frame import Frame, Row

GIB = 1 << 30


def plain(cpus: int, *, l3: int = 16) -> Topology:
    """One package; siblings side by side, an L3 for so many CPUs, two nodes where there are several."""
    groups = [frozenset(range(first, min(first + l3, cpus))) for first in range(0, cpus, l3)]
    nodes = 2 if len(groups) > 1 else 1
    per_node = -(-len(groups) // nodes)
    found = {
        cpu: Cpu(cpu, True, cpu // 2, cpu // l3, cpu // l3 // per_node, 0, frozenset((cpu & ~1, cpu | 1)))
        for cpu in range(cpus)
    }
    return Topology(
        found,
        tuple(L3(number, group, 32 << 20) for number, group in enumerate(groups)),
        tuple(
            Node(number, frozenset().union(*groups[number * per_node : (number + 1) * per_node]), 256 * GIB)
            for number in range(nodes)
        ),
        (Package(0, frozenset(range(cpus))),),
    )


def row(claim: Claim, number: int) -> Row:
    placement = claim.placement
    working = len(placement.vcpus) * (0.2 + number * 7 % 10 / 12)
    waits = 0.0 if placement.vm_class is VmClass.DEDICATED else number % 5 / 10
    crossings = len(placement.nodes) - 1
    return Row(
        placement.vmid, placement.vm_class.value, placement.vcpus, crossings, placement.nodes, 16384, working,
        waits, 12288 if number % 4 == 2 else None,
    )  # fmt: skip


def frame(topology: Topology, claims: list[Claim]) -> Frame:
    rows = tuple(row(claim, number) for number, claim in enumerate(claims))
    share = {cpu: one.running or 0.0 for one in rows for cpu in one.cpus}
    busy = {
        cpu: min(1.0, share.get(cpu, 0.0) / 12 + cpu * 37 % 11 / 14) if cpu in share else cpu % 7 / 60
        for cpu in topology.online
    }
    acted = (f"moved VM {claims[-1].placement.vmid}: it ran 18% slower than its fair share",)
    total = sum(node.memory_bytes or 0 for node in topology.nodes)
    return Frame(topology, rows, busy, total, total // 3, acted, 42.0)


def main(words: list[str]) -> None:
    if words:
        width, cpus = map(int, words)
        topology, housekeeping = plain(cpus), frozenset({0, 1}) if cpus > 2 else frozenset[int]()
        vms = [
            (100 + number, 2 if number % 3 else 4, VmClass.SHARED if number % 3 else VmClass.DEDICATED)
            for number in range(48)
        ]
        vms = vms if cpus > 2 else [(100, 2, VmClass.SHARED), (101, 1, VmClass.SHARED)]
    else:
        width, topology, housekeeping, vms = 100, machine(), frozenset({0, 64}), list(VMS)
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    console.print(screen.draw(frame(topology, placed_on(topology, housekeeping, vms)), width=width))
    drawn = console.export_svg(title="pxsched top")
    sys.stdout.write(re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL))  # nothing from the network


if __name__ == "__main__":
    main(sys.argv[1:])
