#!/usr/bin/env python3
"""Which node? The same VMs on the same nodes by four rules: pxsched's `cluster fit` and `plan`, Proxmox's CRS
(static and dynamic, with auto rebalance), and ProxLB (by memory; it starts no VMs).

    python3 bench/cluster.py [--seeds 12] [--scale]

Every node has pxsched in all of them: it places what comes. What is counted is what the choice of nodes makes
of it. --scale: 32 nodes of 256 CPUs and 1,000 VMs instead: how long `fit` and `plan` take, and their memory.
"""

import argparse
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.models import cpu, schedulers
from pxsched.cluster import planner
from pxsched.cluster.fit import BUSY
from pxsched.cluster.hindrances import Verdict
from pxsched.cluster.paper import Paper, least, owns
from pxsched.cluster.publication import Stranger
from pxsched.cluster.wrongs import Guest
from pxsched.host.topology import L3, Cpu, Node, Package, Topology
from pxsched.placement import defrag
from pxsched.placement.housekeeping import host_of
from pxsched.placement.request import Holding, Refused, Request, VmClass
from pxsched.settings.policy import NodeSettings
from pxsched.value import replace


def machine(nodes, l3s, cores, threads):
    """`cores` in each of `l3s` groups of each node; thread t of core c is CPU c + t * (number of cores)."""
    total = nodes * l3s * cores
    members = [frozenset(core + thread * total for thread in range(threads)) for core in range(total)]

    def union(groups):
        return frozenset().union(*groups)

    l3_cpus = [union(members[first : first + cores]) for first in range(0, total, cores)]
    node_cpus = [union(l3_cpus[first : first + l3s]) for first in range(0, len(l3_cpus), l3s)]
    cpus = {
        cpu: Cpu(cpu, True, core, core // cores, core // (l3s * cores), core // (l3s * cores), members[core])
        for core in range(total)
        for cpu in sorted(members[core])
    }
    distances = [{other: 10 if other == node else 20 for other in range(nodes)} for node in range(nodes)]
    return Topology(
        dict(sorted(cpus.items())),
        tuple(L3(number, found, 32 << 20) for number, found in enumerate(l3_cpus)),
        tuple(Node(number, found, 64 << 30, distances[number]) for number, found in enumerate(node_cpus)),
        tuple(Package(number, found) for number, found in enumerate(node_cpus)),
    )


RULES = ("pxsched", "CRS static", "CRS dynamic", "ProxLB memory")
KINDS = (machine(1, 2, 4, 2), machine(2, 2, 4, 2), machine(2, 4, 4, 2), machine(2, 1, 6, 1))
MEMORY_MIB = 65536
SIMULATED_S = 0.4


class Known:
    """Nothing speaks against any move but room."""

    def __init__(self, requests):
        self.requests = requests

    def request(self, vmid, target):
        return self.requests[vmid]

    def verdict(self, vmid, target, places):
        return Verdict(())


def sheets_of(topologies, memory_mib):
    found = {}
    for number, topology in enumerate(topologies):
        free = dict.fromkeys((node.id for node in topology.nodes), memory_mib)
        huge = {(node, size): mib // 2 for node, mib in free.items() for size in (0, 2)}
        host = host_of(topology, NodeSettings(), free_mib=free, free_hugepages_mib=huge)
        found[f"n{number:02}"] = Paper(f"n{number:02}", host, {}, {})
    return found


def wishes(rng, count):
    """VMs as they are asked for: most share CPUs, some have their own, huge pages, or pins."""
    found = []
    for vmid in range(100, 100 + count):
        kind = rng.random()
        own = kind < 0.4
        vcpus = rng.choice((4, 6, 8, 12)) if own else rng.choice((2, 2, 4, 4, 8))
        memory_mib = 1024 * rng.choice((2, 4, 8, 16))
        load = float(vcpus) if own else round(rng.random() * vcpus, 2)
        vm_class = VmClass.DEDICATED if own else VmClass.SHARED
        huge = 2 if kind < 0.1 else None
        found.append(Request(vmid, vcpus, memory_mib, vm_class, cores=vcpus, load=load, hugepage_mib=huge))
    return found


def filling(rng, topologies, part):
    """As many VMs as want this part of all CPUs."""
    room = part * sum(len(topology.online) for topology in topologies)
    found = []
    for request in wishes(rng, 1000):
        room -= request.load
        if room < 0:
            return found
        found.append(request)
    raise AssertionError("more VMs are needed")


def started(sheet, request):
    """The node after the VM came; unplaced where it does not fit."""
    try:
        return sheet.having(request, sheet.place(request))
    except Refused:
        one = Stranger(request.vmid, False, sheet.host.topology.online, request.load)
        return replace(sheet, strangers={**sheet.strangers, request.vmid: one})


def best_start(sheets, request):
    """As `cluster fit` ranks them. What a VM will use is not known before it runs."""
    request = replace(request, load=None)
    found = []
    for name, sheet in sheets.items():
        try:
            placement = sheet.place(request)
        except Refused:
            continue
        span = defrag.span_of(sheet.machine, placement)
        contention = round(sheet.contention(placement, request.load), 2)
        busy = not owns(placement) and contention > BUSY
        found.append((busy, span.rank, contention, -sum(sheet.host.free_mib.values()), name))
    return min(found)[-1] if found else min(sheets)


class Cluster:
    """Nodes with VMs, as pxsched and as the others see them."""

    def __init__(self, topologies, requests):
        self.sheets = sheets_of(topologies, MEMORY_MIB)
        self.known = Known({request.vmid: request for request in requests})
        self.nodes = [
            schedulers.Node(f"n{number:02}", len(one.online), MEMORY_MIB * len(one.nodes))
            for number, one in enumerate(topologies)
        ]
        self.places = {}

    @property
    def guests(self):
        found = (self.known.requests[vmid] for vmid in sorted(self.places))
        return [self.guest(request) for request in found]

    @staticmethod
    def guest(request):
        return schedulers.Guest(request.vmid, request.vcpus, request.memory_mib, request.load)

    def start(self, rule, request, shut=()):
        """On the node that the rule chooses. shut: nodes that are not there."""
        sheets = {name: sheet for name, sheet in self.sheets.items() if name not in shut}
        nodes = [node for node in self.nodes if node.name not in shut]
        if rule == "pxsched":
            name = best_start(sheets, request)
        else:
            guests, guest = self.guests, self.guest(request)
            name = schedulers.crs_start(nodes, guests, self.places, guest, dynamic=rule == "CRS dynamic")
        self.places[request.vmid] = name
        self.sheets[name] = started(self.sheets[name], request)

    def stop(self, vmid):
        name = self.places.pop(vmid)
        self.sheets[name] = self.sheets[name].without(vmid)

    def rebalance(self, rule, drain=""):
        """What the rule moves by itself, or to empty a node; the moves as (VMID, source, target)."""
        dynamic = rule == "CRS dynamic"
        if rule == "pxsched":
            ours = [Guest(vmid, True) for vmid in self.places]
            plan = planner.plan(self.sheets, ours, self.known, drain=drain, most=100)
            moves = [(move.vmid, move.source, move.target) for move in plan.moves]
        elif rule == "ProxLB memory":
            moves = schedulers.proxlb(self.nodes, self.guests, self.places, method="memory", leaving=drain)
        elif drain:
            moves = schedulers.crs_drain(self.nodes, self.guests, self.places, drain, dynamic=dynamic)
        else:
            moves = schedulers.crs_rebalance(
                self.nodes, self.guests, self.places, dynamic=dynamic, rounds=60
            )
        for vmid, source, target in moves:
            sheet = self.sheets[source]
            self.sheets[target] = started(self.sheets[target], self.known.requests[vmid])
            self.sheets[source] = sheet.without(vmid)
            self.places[vmid] = target
        return moves


def starts(rule, rng, topologies, part):
    """VMs start, one after the other. Nobody moves any."""
    requests = filling(rng, topologies, part)
    cluster = Cluster(topologies, requests)
    for request in requests:
        cluster.start(rule, request)
    return cluster, []


def placed(rng, topologies, part, shut=()):
    """A cluster that CRS static filled."""
    there = [one for number, one in enumerate(topologies) if f"n{number:02}" not in shut]
    requests = filling(rng, there, part)
    cluster = Cluster(topologies, requests)
    for request in requests:
        cluster.start("CRS static", request, shut)
    return cluster


def stops(rule, rng, topologies, part):
    """A quarter of the VMs stops."""
    cluster = placed(rng, topologies, part)
    for vmid in rng.sample(sorted(cluster.places), len(cluster.places) // 4):
        cluster.stop(vmid)
    return cluster, cluster.rebalance(rule)


def emptied(rule, rng, topologies, part):
    """A node is emptied."""
    cluster = placed(rng, topologies, part)
    return cluster, cluster.rebalance(rule, "n01")


def back(rule, rng, topologies, part):
    """Of three nodes one was not there, and is."""
    cluster = placed(rng, topologies[:3], part, ("n01",))
    return cluster, cluster.rebalance(rule)


class Measured(NamedTuple):
    """misfits: VMs on a node that has no place for them. crossings: VMs with CPUs of their own on more NUMA
    nodes or L3 groups than an empty machine would need; who has no place runs anywhere, and crosses, too.
    waiting: vCPUs that wait for a CPU, by the simulator.
    """

    misfits: float
    crossings: float
    waiting: float
    moves: float
    moved_gib: float


def measure(cluster, moves):
    requests = cluster.known.requests
    misfits = crossings = 0
    for sheet in cluster.sheets.values():
        everywhere = sheet.host.topology.online
        misfits += len(sheet.strangers)
        for vmid in sheet.strangers:
            request = requests[vmid]
            anywhere = Holding(vmid, request.vm_class, (everywhere,) * request.vcpus)
            crossings += crosses(sheet, anywhere)
        crossings += sum(crosses(sheet, tenant.held) for tenant in sheet.tenants.values())
    waits = sum(map(waiting, cluster.sheets.values()))
    return Measured(
        misfits, crossings, waits, len(moves), sum(requests[vmid].memory_mib for vmid, _, _ in moves) / 1024
    )


def crosses(sheet, held):
    return owns(held) and defrag.span_of(sheet.machine, held).rank > least(sheet, len(held.vcpus)).rank


def waiting(sheet):
    """How many vCPUs wait for a CPU, in the mean. Who has CPUs to himself that nobody else is on waits for
    none.
    """
    guests = []
    for tenant in sheet.tenants.values():
        held = tenant.held
        loads = (min(1.0, (held.load or 0.0) / len(held.vcpus)),) * len(held.vcpus)
        if owns(held) and sheet.strangers:
            guests.append(cpu.Guest(held.vmid, loads, pins=tuple(min(cpus) for cpus in held.vcpus)))
        elif not owns(held):
            guests.append(cpu.Guest(held.vmid, loads, home=held.cpus, weight=held.weight))
    for one in sheet.strangers.values():
        count = max(1, round(one.load))
        guests.append(cpu.Guest(one.vmid, (min(1.0, one.load / count),) * count, home=one.cpus))
    if not guests:
        return 0.0
    host = cpu.Host(sheet.host.topology, guests)
    host.run(SIMULATED_S)
    threads = [one for vm in host.snapshot().vms.values() for one in vm.threads.values()]
    return sum(wait_ns for _run_ns, wait_ns in threads) / SIMULATED_S / 1e9


SCENARIOS: tuple[tuple[str, Callable, float], ...] = (
    ("VMs start", starts, 0.55),
    ("VMs start", starts, 0.7),
    ("a quarter stops", stops, 0.7),
    ("a quarter stops", stops, 0.85),
    ("a node is emptied", emptied, 0.55),
    ("a node is back", back, 0.7),
    ("a node is back", back, 0.85),
)


def played(scenario, part, rule, seed):
    """The cluster afterwards, and the moves."""
    rng = random.Random(seed)
    topologies = [rng.choice(KINDS) for _ in range(6)]
    return scenario(rule, rng, topologies, part)


def run(scenario, part, rule, seed):
    return measure(*played(scenario, part, rule, seed))


def compare(seeds):
    print("| what happens | wanted | rule | do not fit | crossings | vCPUs that wait | moves | GiB moved |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for name, scenario, part in SCENARIOS:
        for rule in RULES:
            if scenario is starts and rule == "ProxLB memory":
                continue
            rows = [run(scenario, part, rule, seed) for seed in range(seeds)]
            means = [sum(column) / seeds for column in zip(*rows, strict=True)]
            figures = " | ".join(f"{value:.1f}" for value in means)
            print(f"| {name} | {part:.0%} | {rule} | {figures} |", flush=True)


def scale():
    rng = random.Random(1)
    sheets = sheets_of([machine(2, 16, 4, 2)] * 32, 524288)
    requests = {}
    for vmid in range(100, 1100):
        name = f"n{vmid % 32:02}"
        vcpus = rng.choice((2, 4, 8))
        own = rng.random() < 0.4
        load = None if own else round(rng.random() * vcpus * (1.2 if vmid % 4 == 0 else 0.4), 2)
        vm_class = VmClass.DEDICATED if own else VmClass.SHARED
        requests[vmid] = Request(vmid, vcpus, 4096, vm_class, cores=vcpus, load=load)
        sheets[name] = started(sheets[name], requests[vmid])
    known, guests = Known(requests), [Guest(vmid, True) for vmid in requests]
    new = Request(99, 12, 65536, VmClass.DEDICATED, cores=12)
    begin = time.process_time()
    best_start(sheets, new)
    fit_s = time.process_time() - begin
    begin = time.process_time()
    plan = planner.plan(sheets, guests, known, even=True)
    plan_s = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"32 nodes of 256 CPUs, 1,000 VMs: fit {fit_s:.2f} s, plan {plan_s:.2f} s "
          f"({len(plan.moves)} moves), {peak:.0f} MB")  # fmt: skip
    return fit_s, plan_s, peak


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--scale", action="store_true")
    options = parser.parse_args()
    if options.scale:
        scale()
    else:
        compare(options.seeds)


if __name__ == "__main__":
    main()
