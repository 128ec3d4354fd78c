#!/usr/bin/env python3
"""What one placement decision costs, by the number of NUMA nodes: CPU time, and the most memory it had.

    bench/decisions.py [--corpora DIR] [--states N] [--foreign SHARE] [--markdown]

Each host is filled at random to a random degree: dedicated and shared VMs, `--foreign` of all VMs not opted
in (confined to CPUs as by an affinity, or free to run anywhere), and CPU time of the host itself on a tenth
of the CPUs; free memory differs from node to node. In each such state every kind of VM is asked for once.
Imports are done before, and timed apart; so is the first decision on each host, which makes its tables. The
collector is off while the clock runs, as one decision is one short process in real life. All are done several
times over, and the least counts for each: whoever shares the machine makes the same work take twice as long.
"""

import argparse
import gc
import random
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from placement import as_it_is, large_machine, node_per_package, percentile, topologies  # noqa: E402

from pxsched.host.topology import Node, Topology  # noqa: E402
from pxsched.placement.request import Foreign, Holding, Host, Refused, Request, VmClass  # noqa: E402
from pxsched.placement.search import place  # noqa: E402
from pxsched.settings.policy import Smt  # noqa: E402
from pxsched.value import replace  # noqa: E402

GIB = 1024
ROUNDS = 5


def l3_as_numa(topology: Topology) -> Topology:
    """The machine as AMD's firmware shows it with "ACPI SRAT L3 cache as NUMA domain"."""
    package_of = {l3.id: topology.cpus[min(l3.cpus)].package for l3 in topology.l3s}

    def distance(one: int, other: int) -> int:
        return 10 if one == other else 11 if package_of[one] == package_of[other] else 32

    return replace(
        topology,
        cpus={cpu.id: replace(cpu, node=cpu.l3) for cpu in topology.cpus.values()},
        nodes=tuple(
            Node(l3.id, l3.cpus, 64 << 30, {other.id: distance(l3.id, other.id) for other in topology.l3s})
            for l3 in topology.l3s
        ),
    )


HOSTS = (
    ("EPYC 7763 2x64, 2 nodes", "synth-AMD-19h-Zen3-2xEpyc-7763", node_per_package),
    ("EPYC 7763 2x64, L3 as NUMA", "synth-AMD-19h-Zen3-2xEpyc-7763", l3_as_numa),
    ("EPYC 9555 2x64 SMT, NPS4", "synth-prrte-turin-4gpu", as_it_is),
    ("EPYC 9555 2x64 SMT, L3 as NUMA", "synth-prrte-turin-4gpu", l3_as_numa),
    ("QEMU, dies as nodes", "hwloc-fakecpuid1f-64intel64-2p4d2n2c2t", as_it_is),
    ("generated 2x128 SMT, 2 nodes", "", lambda _: large_machine(2, 16, 8)),
    ("generated 2x128 SMT, L3 as NUMA", "", lambda _: l3_as_numa(large_machine(2, 16, 8))),
    ("generated 2x192 SMT, L3 as NUMA", "", lambda _: l3_as_numa(large_machine(2, 32, 6))),
)

WISHES: tuple[dict[str, object], ...] = (
    {"vcpus": 2, "memory_mib": 4 * GIB},
    {"vcpus": 8, "memory_mib": 32 * GIB},
    {"vcpus": 8, "memory_mib": 32 * GIB, "smt": Smt.SHARE},
    {"vcpus": 4, "memory_mib": 96 * GIB},
    {"vcpus": 48, "memory_mib": 96 * GIB, "sockets": 2, "cores": 24},
    {"vcpus": 8, "memory_mib": 400 * GIB},
    {"vcpus": 4, "memory_mib": 8 * GIB, "vm_class": VmClass.SHARED},
    {"vcpus": 4, "memory_mib": 96 * GIB, "vm_class": VmClass.SHARED},
    {"vcpus": 4, "memory_mib": 128 * GIB, "vm_class": VmClass.SHARED},
    {"vcpus": 32, "memory_mib": 256 * GIB, "vm_class": VmClass.SHARED},
)


def filled(topology: Topology, rng: random.Random, share: float) -> tuple[Host, list[Holding]]:
    """A host in use: VMs of one to eight CPUs next to each other, some of them not opted in."""
    cores = sorted({tuple(sorted(cpu.siblings)) for cpu in topology.cpus.values() if cpu.online})
    degree = rng.random() * 0.9
    holdings, foreign, vmid = [], [], 200
    while cores:
        taken, cores = cores[: rng.randint(1, 4)], cores[rng.randint(1, 4) :]
        if rng.random() >= degree:
            continue
        vmid += 1
        cpus = frozenset(cpu for core in taken for cpu in core)
        if rng.random() < share:
            where = cpus if rng.random() < 0.5 else topology.online
            foreign.append(Foreign(f"VM {vmid}", where, rng.random() * len(cpus)))
        elif rng.random() < 0.6:
            own = tuple(frozenset((cpu,)) for cpu in sorted(cpus))
            holdings.append(Holding(vmid, VmClass.DEDICATED, own))
        else:
            load = rng.random() * len(cpus)
            holdings.append(Holding(vmid, VmClass.SHARED, (cpus,) * len(cpus), load=load))
    busy = {cpu: rng.random() for cpu in topology.online if rng.random() < 0.1}
    size = max(1, len(topology.online) // len(topology.nodes)) * 4 * GIB
    free_mib = {node.id: rng.randrange(size // 8, size) for node in topology.nodes}
    return Host(topology, free_mib=free_mib, foreign=tuple(foreign), busy=busy), holdings


def decision(host: Host, holdings: list[Holding], wish: dict[str, object]) -> bool:
    request = Request(**{"vmid": 100, "vm_class": VmClass.DEDICATED, **wish})  # type: ignore[arg-type]
    try:
        place(host, holdings, request)
    except Refused:
        return False
    return True


def timed(host: Host, holdings: list[Holding], wish: dict[str, object]) -> tuple[int, bool]:
    """Nanoseconds of a decision, and whether it placed the VM."""
    gc.collect(1)
    gc.disable()
    begin = time.thread_time_ns()
    placed = decision(host, holdings, wish)
    took_ns = time.thread_time_ns() - begin
    gc.enable()
    return took_ns, placed


def measure(topology: Topology, states: int, share: float) -> tuple[list[int], int, int, int]:
    """Nanoseconds of each decision; how many were refused; the most bytes one had; the first one (ns).

    Memory is measured in a run of its own: tracemalloc makes everything slow.
    """
    rng = random.Random(1)
    filled_hosts = [filled(topology, rng, share) for _ in range(states)]
    asked = [(host, holdings, wish) for host, holdings in filled_hosts for wish in WISHES]
    first_ns, _ = timed(*asked[0])
    rounds = [[timed(*one) for one in asked] for _ in range(ROUNDS)]
    times_ns = [min(took_ns for took_ns, _ in same) for same in zip(*rounds, strict=True)]
    refused = sum(not placed for _, placed in rounds[0])
    peak = 0
    tracemalloc.start()
    host, holdings = filled(topology, random.Random(1), share)
    for wish in WISHES:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        decision(host, holdings, wish)
        peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    return times_ns, refused, peak, first_ns


COLUMNS = (
    "host", "CPUs", "nodes", "decisions", "refused", "first ms", "p50 ms", "p99 ms", "max ms", "most MB",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=Path, default=HERE.parent / "../shared/corpora")
    parser.add_argument("--states", type=int, default=60, help="states of each host")
    parser.add_argument("--foreign", type=float, default=0.3, help="share of VMs that are not opted in")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        machines = topologies(args.corpora, directory, HOSTS)
    some = next(iter(machines.values()))
    begin = time.thread_time_ns()
    decision(Host(some), [], dict(WISHES[0]))
    decision(Host(some), [], dict(WISHES[6]))
    took_ms = (time.thread_time_ns() - begin) / 1e6
    print(f"imports and the first two decisions: {took_ms:.1f} ms", file=sys.stderr)
    rows = [COLUMNS, tuple("-" * len(name) for name in COLUMNS)] if args.markdown else [COLUMNS]
    for name, topology in machines.items():
        times_ns, refused, peak, first_ns = measure(topology, args.states, args.foreign)
        rows.append(
            (
                name,
                str(len(topology.online)),
                str(len(topology.nodes)),
                str(len(times_ns)),
                str(refused),
                f"{first_ns / 1e6:.2f}",
                f"{percentile(times_ns, 0.5):.2f}",
                f"{percentile(times_ns, 0.99):.2f}",
                f"{max(times_ns) / 1e6:.2f}",
                f"{peak / 1e6:.2f}",
            )
        )
    for row in rows:
        print(f"| {' | '.join(row)} |" if args.markdown else "  ".join(f"{cell:>10}" for cell in row))


if __name__ == "__main__":
    main()
