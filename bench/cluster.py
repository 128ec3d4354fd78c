#!/usr/bin/env python3
"""Which node? The same VMs on the same nodes by four rules: pxsched's `cluster fit` and `plan`, Proxmox's CRS
(static and dynamic, with auto rebalance), and ProxLB (by memory; its VMs start where CRS puts them).

    python3 bench/cluster.py [--seeds 5] [--scale]

Every node has pxsched in all of them: it places what comes. What is counted is what the choice of nodes makes
of it: VMs on a node that has no place for them, avoidable crossings, contention (what is wanted of CPUs
beyond what they are, over the vCPUs of VMs that share some), moves and GiB moved. --scale: 32 nodes of 256
CPUs and 1,000 VMs instead: how long `fit` and `plan` take, and their memory.
"""

import argparse
import random
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.models import schedulers
from pxsched.cluster import planner
from pxsched.cluster.hindrances import Verdict
from pxsched.cluster.paper import Paper, least, owns
from pxsched.cluster.publication import Stranger
from pxsched.cluster.wrongs import CROWDED, Guest
from pxsched.host.topology import L3, Cpu, Node, Package, Topology
from pxsched.placement import defrag
from pxsched.placement.housekeeping import host_of
from pxsched.placement.request import Refused, Request, VmClass
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


def started(sheet, request):
    """The node after the VM came; unplaced where it does not fit."""
    try:
        return sheet.having(request, sheet.place(request))
    except Refused:
        one = Stranger(request.vmid, False, sheet.host.topology.online, request.load)
        return replace(sheet, strangers={**sheet.strangers, request.vmid: one})


def best_start(sheets, request):
    """As `cluster fit` ranks them."""
    found = []
    for name, sheet in sheets.items():
        try:
            placement = sheet.place(request)
        except Refused:
            continue
        span = defrag.span_of(sheet.machine, placement)
        contention = round(sheet.contention(placement, request.load, request.weight), 2)
        crowded = not owns(placement) and contention > CROWDED
        found.append((crowded, span.rank, contention, -sum(sheet.host.free_mib.values()), name))
    return min(found)[-1] if found else min(sheets)


def simulate(rule, topologies, requests, gone):
    """(nodes at the end, moves as (VMID, source, target)). gone: VMs that stop before anything is moved."""
    sheets = sheets_of(topologies, MEMORY_MIB)
    nodes = [
        schedulers.Node(name, len(sheet.host.topology.online), MEMORY_MIB * len(sheet.host.topology.nodes))
        for name, sheet in sheets.items()
    ]
    known = Known({request.vmid: request for request in requests})
    guests = [schedulers.Guest(one.vmid, one.vcpus, one.memory_mib, one.load or 0.0) for one in requests]
    places = {}
    dynamic = rule == "CRS dynamic"
    for request, guest in zip(requests, guests, strict=True):
        if rule == "pxsched":
            name = best_start(sheets, request)
        else:
            name = schedulers.crs_start(nodes, guests, places, guest, dynamic=dynamic)
        places[request.vmid] = name
        sheets[name] = started(sheets[name], request)
    for vmid in gone:
        sheets[places[vmid]] = sheets[places[vmid]].without(vmid)
        del places[vmid]
    guests = [guest for guest in guests if guest.vmid in places]
    if rule == "pxsched":
        ours = [Guest(vmid, True) for vmid in places]
        plan = planner.plan(sheets, ours, known, most=100)
        return dict(plan.after), [(move.vmid, move.source, move.target) for move in plan.moves]
    if rule == "ProxLB memory":
        moves = schedulers.proxlb(nodes, guests, places, method="memory")
    else:
        moves = schedulers.crs_rebalance(nodes, guests, places, dynamic=dynamic, rounds=60)
    for vmid, source, target in moves:
        sheets[target] = started(sheets[target], known.requests[vmid])
        sheets[source] = sheets[source].without(vmid)
    return sheets, moves


def measure(sheets, moves, requests):
    sizes = {request.vmid: request.memory_mib for request in requests}
    misfits = crossings = 0
    contention = 0.0
    for sheet in sheets.values():
        misfits += len(sheet.strangers)
        for tenant in sheet.tenants.values():
            held = tenant.held
            if owns(held):
                crossings += defrag.span_of(sheet.machine, held).rank > least(sheet, len(held.vcpus)).rank
            else:
                wanted = sheet.contention(held, held.load, held.weight) - 1
                contention += max(0.0, wanted) * len(held.vcpus)
    return misfits, crossings, contention, len(moves), sum(sizes[vmid] for vmid, _, _ in moves) / 1024


def compare(seeds):
    print("| VMs | rule | do not fit | avoidable crossings | contention (CPUs) | moves | GiB moved |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for count in (30, 40, 50):
        for rule in RULES:
            rows = []
            for seed in range(seeds):
                rng = random.Random(seed)
                topologies = [rng.choice(KINDS) for _ in range(6)]
                requests = wishes(rng, count)
                gone = rng.sample([request.vmid for request in requests], count // 4)
                rows.append(measure(*simulate(rule, topologies, requests, gone), requests))
            means = [sum(column) / seeds for column in zip(*rows, strict=True)]
            print(f"| {count} | {rule} | {' | '.join(f'{value:.1f}' for value in means)} |")


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
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", action="store_true")
    options = parser.parse_args()
    if options.scale:
        scale()
    else:
        compare(options.seeds)


if __name__ == "__main__":
    main()
