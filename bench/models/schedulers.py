"""The rules by which Proxmox's cluster resource scheduler (CRS) and ProxLB choose nodes, for comparison only.

Written from descriptions of pve-ha-manager 5.2, proxmox-resource-scheduling 2.1 and ProxLB 2.2. They know
cores, load and memory. Nodes and guests here are plain numbers; a guest counts on its node.
"""

from math import sqrt
from statistics import fmean, pstdev
from typing import NamedTuple

# Weights of a start's four criteria, all to be small: mean and highest load of CPUs, the same of memory.
WEIGHTS = (1, 2, 5, 10)
THRESHOLD, MARGIN, HOLD_ROUNDS = 0.3, 0.1, 3
BALANCINESS = 10.0  # ProxLB: percentage points


class Guest(NamedTuple):
    """cpu: what it uses, in CPUs; vcpus, memory_mib: what it was given."""

    vmid: int
    vcpus: int
    memory_mib: int
    cpu: float


class Node(NamedTuple):
    name: str
    cpus: int
    memory_mib: int


def loads(nodes, guests, places, *, dynamic):
    """(CPU, memory) of each node, as parts of what it has."""
    found = {node.name: [0.0, 0.0] for node in nodes}
    size = {node.name: node for node in nodes}
    for guest in guests:
        name = places.get(guest.vmid)
        if name is not None:
            found[name][0] += (guest.cpu if dynamic else guest.vcpus) / size[name].cpus
            found[name][1] += guest.memory_mib / size[name].memory_mib
    return found


def criteria(found):
    cpu, memory = zip(*found.values(), strict=True)

    def rms(values):
        return sqrt(fmean(value * value for value in values))

    return 1 + rms(cpu), 1 + max(cpu), 1 + rms(memory), 1 + max(memory)


def topsis(rows):
    """The score of each alternative; the highest is the best."""
    total = sum(WEIGHTS)
    norms = [sqrt(sum(row[column] ** 2 for row in rows)) or 1.0 for column in range(len(WEIGHTS))]
    scaled = [
        [value / norm * weight / total for value, norm, weight in zip(row, norms, WEIGHTS, strict=True)]
        for row in rows
    ]
    best, worst = list(map(min, zip(*scaled, strict=True))), list(map(max, zip(*scaled, strict=True)))
    scores = []
    for row in scaled:
        to_best, to_worst = (
            sqrt(sum((value - mark) ** 2 for value, mark in zip(row, marks, strict=True)))
            for marks in (best, worst)
        )
        scores.append(to_worst / (to_best + to_worst) if to_best + to_worst else 0.0)
    return scores


def crs_start(nodes, guests, places, guest, *, dynamic):
    """The node for a guest that starts: with its full size on each of them, that is what starts count as."""
    rows = []
    for node in nodes:
        found = loads(nodes, guests, places, dynamic=dynamic)
        found[node.name][0] += guest.vcpus / node.cpus
        found[node.name][1] += guest.memory_mib / node.memory_mib
        rows.append(criteria(found))
    scores = topsis(rows)
    return min(zip(nodes, scores, strict=True), key=lambda one: (-one[1], one[0].name))[0].name


def crs_drain(nodes, guests, places, leaving, *, dynamic):
    """A node in maintenance: each of its guests goes where it would start."""
    places, made = dict(places), []
    others = [node for node in nodes if node.name != leaving]
    for guest in guests:
        if places.get(guest.vmid) == leaving:
            rest = [other for other in guests if other.vmid != guest.vmid]
            there = {vmid: name for vmid, name in places.items() if name != leaving}
            target = crs_start(others, rest, there, guest, dynamic=dynamic)
            places[guest.vmid] = target
            made.append((guest.vmid, leaving, target))
    return made


def imbalance(values):
    """0 when all are alike, 1 when one node has it all."""
    count, total = len(values), sum(values)
    return pstdev(values) / (total / count) / sqrt(count - 1) if count > 1 and total else 0.0


def crs_rebalance(nodes, guests, places, *, dynamic, rounds):
    """`ha-auto-rebalance` with the method bruteforce: the moves of so many rounds, in order."""
    places, made, held = dict(places), [], 0

    def of(found):
        return imbalance([(cpu + memory) / 2 for cpu, memory in found.values()])

    for _ in range(rounds):
        now = of(loads(nodes, guests, places, dynamic=dynamic))
        held = held + 1 if now > THRESHOLD else 0
        if held < HOLD_ROUNDS:
            continue
        held = 0
        options = []
        for guest in guests:
            source = places.get(guest.vmid)
            for node in nodes if source else ():
                if node.name != source:
                    after = of(loads(nodes, guests, {**places, guest.vmid: node.name}, dynamic=dynamic))
                    options.append((after, guest.vmid, source, node.name))
        after, vmid, source, target = min(options, default=(now, 0, "", ""))
        if options and (now - after) / now >= MARGIN:
            places[vmid] = target
            made.append((vmid, source, target))
    return made


def proxlb(nodes, guests, places, *, method, leaving=""):
    """One run: method memory or cpu, mode used. leaving: a node in maintenance, whose guests leave; no others
    are moved then.
    """
    places, made = dict(places), []
    column = 0 if method == "cpu" else 1
    size = {node.name: node for node in nodes}

    def percent():
        found = loads(nodes, guests, places, dynamic=True)
        return {name: 100 * values[column] for name, values in found.items()}

    for guest in sorted(guests, key=lambda one: (one.memory_mib, one.vmid)):
        now = percent()
        source = places.get(guest.vmid)
        target = min((name for name in now if name != leaving), key=lambda name: (now[name], name))
        if leaving:
            wanted = source == leaving
        elif max(now.values()) - min(now.values()) <= BALANCINESS:
            break
        else:
            wanted = source == max(now, key=lambda name: (now[name], name)) and source != target
        free = size[target].memory_mib * (1 - loads(nodes, guests, places, dynamic=True)[target][1])
        if wanted and guest.memory_mib < free:
            places[guest.vmid] = target
            made.append((guest.vmid, source, target))
    return made
