"""Prints docs/node.svg: five VMs on a generated machine, where placement puts them. With --html the page of
`report --html`, of which docs/page.png is a photograph; what its VMs wait for is made up.

python3 docs/make_picture.py > docs/node.svg
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pxsched.host.topology import L3, Cpu, Node, Package, Topology
from pxsched.ledger.claim import Claim, State, holding
from pxsched.placement.request import Host, Placement, Request, VmClass
from pxsched.placement.search import place
from pxsched.report import overview, page, svg
from pxsched.report.overview import Line

CORES, NODES, L3_CORES = 64, 4, 8
VMS = (
    (100, 8, VmClass.DEDICATED), (101, 16, VmClass.DEDICATED), (102, 4, VmClass.SHARED),
    (103, 30, VmClass.DEDICATED), (104, 12, VmClass.SHARED),
)  # fmt: skip


def machine() -> Topology:
    """Two packages of 32 cores with two threads, four nodes, an L3 for eight cores."""

    def threads(first: int, count: int) -> frozenset[int]:
        return frozenset(range(first, first + count)) | frozenset(range(first + CORES, first + CORES + count))

    per_node = CORES // NODES
    cpus = {
        cpu: Cpu(cpu, True, core, core // L3_CORES, core // per_node, core // (CORES // 2), threads(core, 1))
        for core in range(CORES)
        for cpu in (core, core + CORES)
    }
    return Topology(
        cpus,
        tuple(
            L3(number, threads(number * L3_CORES, L3_CORES), 32 << 20) for number in range(CORES // L3_CORES)
        ),
        tuple(Node(number, threads(number * per_node, per_node), 189 << 30) for number in range(NODES)),
        tuple(Package(number, threads(number * CORES // 2, CORES // 2)) for number in range(2)),
    )


def placed_on(
    topology: Topology, housekeeping: frozenset[int], vms: Sequence[tuple[int, int, VmClass]]
) -> list[Claim]:
    """These VMs (number, vCPUs, class), one after the other where placement puts them."""
    host = Host(topology, housekeeping=housekeeping, reserved=housekeeping)
    claims: list[Claim] = []
    for vmid, vcpus, vm_class in vms:
        request = Request(vmid, vcpus, 16384, vm_class)
        placed = place(host, [holding(claim) for claim in claims], request)
        claims.append(Claim(placed, State.RUNNING))
    return claims


def main() -> None:
    topology = machine()
    claims = placed_on(topology, frozenset({0, CORES}), VMS)
    picture = svg.draw(topology, claims)
    if sys.argv[1:] == ["--html"]:
        lines = [_line(topology, claim.placement, number) for number, claim in enumerate(claims)]
        picture = page.draw("pve1, 2026-11-26 12:00:00 UTC", picture, lines)
    sys.stdout.write(picture)


def _line(topology: Topology, placed: Placement, number: int) -> Line:
    cpus, crossings = overview.cpus(placed), overview.crossings(topology, placed.cpus)
    alone = True if placed.vm_class is VmClass.DEDICATED else None
    memory_mib = dict.fromkeys(placed.nodes, 16384)
    name, kind = f"VM {placed.vmid}", placed.vm_class.value
    return Line(placed.vmid, name, kind, cpus, crossings, number / 8, memory_mib, alone)


if __name__ == "__main__":
    main()
