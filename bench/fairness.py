#!/usr/bin/env python3
"""CPU fairness of four rules over the same VMs, loads and first homes: pxsched's balancer, random moves, the
busiest CPUs' VMs moved to the idlest ones, and none.

    python3 bench/fairness.py TRACES [--passes 60]

TRACES: the directory with planetlab-cpu/. VMs of 1, 2 and 4 vCPUs with recorded loads (a sample every five
minutes, here every four passes), weights 50, 100 and 200, on 16 CPUs in 4 cache groups; their first homes are
random. In the rows "with others" every fifth VM is not opted in (it floats over all CPUs, and no rule may
move it), and tasks of the host burn two of the CPUs for most of the time; of these a pass is told only how
busy the CPUs are, while the other rules know what they want. What is counted is how the VMs of ours fare.
The scheduler is `bench.models.cpu`'s. Writes a table to the standard output, and below it how much more than
"busiest to idlest" pxsched lets VMs wait, run by run with the same loads.
"""

import argparse
import gzip
import random
import sys
from pathlib import Path
from statistics import mean, stdev

from pxsched.value import replace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.models.cpu import Guest, Host, machine
from pxsched.balance.sharing import jain
from pxsched.settings.policy import NodeSettings

RULES = ("pxsched", "busiest to idlest", "random", "none")
SAMPLE_PASSES = 4
# Name, VMs, how much busier than recorded, and whether there are others.
LOADS = (
    ("light", 20, 1.5, False),
    ("half", 24, 3.0, False),
    ("overcommitted", 28, 6.0, False),
    ("light, with others", 20, 1.5, True),
    ("half, with others", 24, 3.0, True),
)


def planetlab(folder, day):
    with gzip.open(folder / "planetlab-cpu" / f"{day}.csv.gz", "rt") as file:
        return [[int(value) / 100 for value in line.split(",")[1:]] for line in file]


def virtual_machines(traces, number, factor, rng, *, others):
    """VMs and, for each, the loads of its vCPUs over time; factor: how much busier than recorded."""
    everywhere = frozenset(range(16))
    groups = [frozenset(range(first, first + 4)) for first in (0, 4, 8, 12)]
    guests, loads = [], {}
    for index in range(number):
        vcpus = rng.choice((1, 1, 2, 4))
        columns = [[min(1.0, load * factor) for load in rng.choice(traces)] for _ in range(vcpus)]
        # Some are small enough to have been put on less than a cache group.
        home = rng.choice(groups)
        if vcpus == 1 and rng.random() < 0.5:
            home = frozenset((rng.choice(sorted(home)),))
        weight, stranger = rng.choice((50, 100, 200)), others and index % 5 == 4
        first = tuple(column[0] for column in columns)
        home = everywhere if stranger else home
        guests.append(Guest(100 + index, first, home, weight=weight, movable=not stranger))
        loads[100 + index] = columns
    if others:
        guests += [
            Guest(900 + cpu, (0.8,), frozenset((cpu,)), movable=False, hidden=True)
            for cpu in rng.sample(range(16), 2)
        ]
    return guests, loads


def random_moves(host, rng):
    for guest in rng.sample(ours(host), 2):
        move(host, guest, rng.choice(alternatives(guest)))


def busiest_to_idlest(host, rng):
    """One VM a pass from the most loaded cache group or CPU to the least loaded of the same size."""
    homes = {guest.home for guest in ours(host)}
    load = {home: sum(map(host.demand_on, home)) / len(home) for home in homes}
    home = max(load, key=load.get)
    guest = rng.choice([guest for guest in ours(host) if guest.home == home])
    best = min(alternatives(guest), key=lambda other: sum(map(host.demand_on, other)) / len(other))
    move(host, guest, best)


def ours(host):
    return [guest for guest in host.guests.values() if guest.movable]


def alternatives(guest):
    size = len(guest.home)
    return [frozenset(range(first, first + size)) for first in range(0, 16, size)]


def move(host, guest, home):
    if home != guest.home:
        host.guests[guest.vmid] = replace(guest, home=home)
        host.foreign += 1


def run(rule, guests, loads, passes, seed):
    settings = NodeSettings(moves=2 if rule == "pxsched" else 0)
    host = Host(machine(caches=4, cores=4), guests, settings=settings, period_s=1.0, seed=seed)
    host.foreign = 0
    rng = random.Random(seed)
    fairness, satisfied, waited, ran = [], [], 0, 0
    for number in range(passes):
        if number % SAMPLE_PASSES == 0:
            for vmid, columns in loads.items():
                host.change(vmid, tuple(column[number // SAMPLE_PASSES] for column in columns))
        before = counters(host)
        host.tick()
        run_ns, wait_ns = (now - then for now, then in zip(counters(host), before, strict=True))
        ran, waited = ran + run_ns, waited + wait_ns
        if number >= 5:
            found = host.satisfaction()
            mine = [found[guest.vmid] for guest in ours(host) if guest.vmid in found]
            fairness.append(jain(mine))
            satisfied += [min(1.0, value) for value in mine]
        if rule == "random":
            random_moves(host, rng)
        elif rule == "busiest to idlest":
            busiest_to_idlest(host, rng)
    satisfied.sort()
    return {
        "fairness": sum(fairness) / len(fairness),
        "contention": waited / (ran + waited),
        "least": satisfied[len(satisfied) // 20],
        "moves": sum(map(len, host.moves)) + host.foreign,
    }


def counters(host):
    vms, mine = host.snapshot().vms, {guest.vmid for guest in ours(host)}
    threads = [t for vmid, reading in vms.items() if vmid in mine for t in reading.threads.values()]
    return sum(run for run, _ in threads), sum(wait for _, wait in threads)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", type=Path)
    parser.add_argument("--passes", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    traces = planetlab(options.traces, "20110322")
    print("| load | rule | weighted fairness | contention | 5th percentile of what is due | moves |")
    print("|---|---|---:|---:|---:|---:|")
    compared = {}
    for name, number, factor, others in LOADS:
        waited = {}
        for rule in RULES:
            results = []
            for seed in range(options.seeds):
                guests, loads = virtual_machines(traces, number, factor, random.Random(seed), others=others)
                results.append(run(rule, guests, loads, options.passes, seed))
            waited[rule] = [one["contention"] for one in results]
            middle = {key: mean(one[key] for one in results) for key in results[0]}
            print(
                f"| {name} | {rule} | {middle['fairness']:.3f} | {middle['contention']:.3f} | "
                f"{middle['least']:.2f} | {middle['moves']:.0f} |",
                flush=True,
            )
        compared[name] = [one - other for one, other in zip(waited[RULES[0]], waited[RULES[1]], strict=True)]
    if options.seeds < 2:
        return
    print("\n| load | contention, pxsched less busiest to idlest | standard error |\n|---|---:|---:|")
    for name, found in compared.items():
        print(f"| {name} | {mean(found):+.4f} | {stdev(found) / len(found) ** 0.5:.4f} |")


if __name__ == "__main__":
    main()
