#!/usr/bin/env python3
"""Five rules over the same guests, loads and host: pxsched's, Proxmox's, pairwise, kvmScheduling's, none.

    python3 bench/memory.py TRACES [--kinds] [--part tuning] [--least] [--hours 24] [--guests 30] [--seed 1]

TRACES: the directory with bitbrains-rnd/ and google-cpu-mem/. Writes a table to the standard output. Without
--kinds all guests are Linux; with it, nearly half are of other kinds. They begin with a fixed part of the
host; Proxmox's, and with --kinds pxsched's, at their minimum, as Proxmox starts them.

The traces are divided so that no number reported comes from what a constant was chosen with: VMs of even
number on days 2 and 5 are for tuning (--part tuning), those of odd number on days 3 and 6 for reporting.
"""

import argparse
import csv
import gzip
import random
import sys
from bisect import bisect_right
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.models.memory import Coordinator, Host
from bench.models.memory_guests import KERNEL_PART, Guest, Kind, copies
from bench.models.memory_rules import KvmScheduling, Pairwise, Proxmox, nothing
from pxsched.settings.policy import NodeSettings

RULES = ("pxsched", "Proxmox", "pairwise", "kvmScheduling", "none")
# Of each thirty guests, with --kinds; the others are Linux.
MIX = {Kind.WINDOWS: 6, Kind.ZRAM: 3, Kind.FREEBSD: 2, Kind.SILENT: 2, Kind.LYING: 1}
# The remainder of a VM's number by 2, and the days, counted from 1.
PARTS = {"tuning": (0, (2, 5)), "reporting": (1, (3, 6))}


class Trace:
    """Need over time, as recorded: it holds from one sample to the next."""

    def __init__(self, times, needs):
        self.times, self.needs = times, needs

    def __call__(self, now_s):
        return self.needs[max(0, bisect_right(self.times, now_s) - 1)]


def bitbrains(folder, number, hours, start_h, rng, parity):
    """VMs of 2 GiB and more that were on: need is the memory the hypervisor saw in use."""
    rows = {}
    begin, end = start_h * 3600, (start_h + hours) * 3600
    with gzip.open(folder / "bitbrains-rnd" / "rnd-2013-7-week1.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            t = float(row["t_s"])
            if begin <= t < end and int(row["vm"]) % 2 == parity:
                rows.setdefault(row["vm"], []).append(
                    (t - begin, float(row["mem_prov_kB"]) / 1024, float(row["mem_used_kB"]) / 1024)
                )
    found = [
        (max(mib for _, mib, _ in samples), samples)
        for samples in rows.values()
        if len(samples) > hours * 10 and min(mib for _, mib, _ in samples) >= 2048
    ]
    rng.shuffle(found)
    return [
        (size, Trace([t for t, _, _ in samples], [min(used, 0.9 * size) for _, _, used in samples]))
        for size, samples in found[:number]
    ]


def google(folder, number, hours, rng, parity):
    """VMs of 4 GiB each; need is their per cent of it."""
    rows = {}
    with gzip.open(folder / "google-cpu-mem" / "vms.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["vm"], []).append(float(row["mem_pct"]))
    names = sorted(rows)[parity::2]
    rng.shuffle(names)
    size = 4096.0
    return [
        (
            size,
            Trace(
                [300.0 * step for step in range(len(rows[name]))],
                [min(0.9, p / 100) * size for p in rows[name]],
            ),
        )
        for name in names[:number]
    ]


def guests_of(loads, capacity_mib):
    """At first everyone has the part of the host that its size is of all sizes."""
    total = sum(size for size, _ in loads)
    return [
        Guest(
            100 + number,
            minimum(size),
            int(size),
            load,
            actual_mib=min(size, size / total * capacity_mib),
        )
        for number, (size, load) in enumerate(loads)
    ]


def needed(loads, now_s):
    """What everyone needs at one time, the least that no guest starves with included."""
    needs = [(load(now_s) + KERNEL_PART * size, minimum(size)) for size, load in loads]
    return sum(max(least, need + 150, need / 0.95) for need, least in needs)


def minimum(size):
    return max(256, int(size / 16))


def least_traffic_gib(loads, guests, capacity_mib, hours):
    """What must be moved so that nobody ever starves, if all needs were known beforehand; None if none can.

    A linear programme: the sizes at each sample, the least sum of their changes.
    """
    from ortools.linear_solver import pywraplp

    solver = pywraplp.Solver.CreateSolver("GLOP")
    before = [guest.actual_mib for guest in guests]
    changes = []
    for step in range(int(hours * 12)):
        sizes = []
        for (size, load), last in zip(loads, before, strict=True):
            need = load(300.0 * step) + KERNEL_PART * size
            now = solver.NumVar(max(minimum(size), min(size, max(need + 150, need / 0.95))), size, "")
            change = solver.NumVar(0, solver.infinity(), "")
            solver.Add(change >= now - last)
            solver.Add(change >= last - now)
            sizes.append(now)
            changes.append(change)
        solver.Add(sum(sizes) <= capacity_mib + 1)
        before = sizes
    solver.Minimize(sum(changes))
    return solver.Objective().Value() / 1024 if solver.Solve() == solver.OPTIMAL else None


def mix(guests, rng):
    """Other kinds among them, whoever it is."""
    kinds = [kind for kind, count in MIX.items() for _ in range(count * len(guests) // 30)]
    for guest, kind in zip(rng.sample(guests, len(kinds)), kinds, strict=True):
        guest.kind = kind


def run(name, guests, total_mib, reserve_mib, hours, *, started):
    """started: guests begin at their minimum."""
    settings = NodeSettings(reserved_mib=int(reserve_mib))
    rule = {
        "pxsched": Coordinator(settings),
        # Its goal is a part of the host's memory: the same reserve for everyone.
        "Proxmox": Proxmox(goal=1 - reserve_mib / total_mib),
        "pairwise": Pairwise(),
        "kvmScheduling": KvmScheduling(),
        "none": nothing,
    }[name]
    guests = copies(guests)
    if name == "Proxmox" or (started and name == "pxsched"):
        for guest in guests:
            guest.actual_mib = guest.minimum_mib  # as it starts them
    host = Host(guests, total_mib, rule)
    for step in range(int(hours * 360)):
        host.tick()
        if step < 360:
            host.tally.first_hour_gib = host.tally.traffic_gib
    return host.tally


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", type=Path)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--guests", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", choices=PARTS, default="reporting")
    parser.add_argument("--kinds", action="store_true", help="guests of several kinds")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--later", action="store_true", help="say how much traffic is after the first hour")
    parser.add_argument("--least", action="store_true", help="only the least traffic there can be (OR-Tools)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    parity, days = PARTS[options.part]
    sets = {
        f"BitBrains, day {day}": bitbrains(
            options.traces, options.guests, options.hours, 24 * (day - 1), rng, parity
        )
        for day in days
    }
    sets["Google"] = google(options.traces, options.guests, options.hours, rng, parity)
    print(
        "| loads | host | rule | starved, min | worst guest, min | wasted, GiB | fairness of slack | "
        "traffic, GiB | below need | guests pressed | guests stuck | swapped, GiB |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, loads in sets.items():
        sizes = sum(size for size, _ in loads)
        peak = max(needed(loads, 300.0 * step) for step in range(int(options.hours * 12)))
        for part in (1.0, 1.25):
            capacity = peak * part / 0.95
            reserve = 0.05 * capacity
            guests = guests_of(loads, capacity - reserve)
            machine = f"{capacity / 1024:.0f} GiB for {sizes / 1024:.0f}"
            if options.least:
                least = least_traffic_gib(loads, guests, capacity - reserve, options.hours)
                told = "none" if least is None else f"{least:.0f}"
                print(f"| {name} | {machine} | with foresight | 0 | 0 | | | {told} | 0 | 0 | 0 | 0 |")
                continue
            if options.kinds:
                mix(guests, rng)
            for rule in options.rules:
                tally = run(rule, guests, capacity, reserve, options.hours, started=options.kinds)
                later = f" ({tally.traffic_gib - tally.first_hour_gib:.0f} later)" if options.later else ""
                print(
                    f"| {name} | {machine} | {rule} | {tally.starved_minutes:.0f} | "
                    f"{tally.worst_minutes:.0f} | {tally.wasted_gib:.2f} | {tally.mean_fairness:.3f} | "
                    f"{tally.traffic_gib:.0f}{later} | {tally.below_need} | {len(tally.pressed)} | "
                    f"{tally.stuck_guests} | {tally.swapped_gib:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
