"""A machine's topology as a few KiB of JSON, and back: what other nodes have to know of it to place a VM.

Every set of CPUs is a list as the kernel writes it. Numbers of cores and L3 groups are their positions.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pxsched import stored
from pxsched.errors import UserError
from pxsched.host import cpulist
from pxsched.host.kinds import CpuKind
from pxsched.host.topology import L3, Node, Package, Tables, Topology
from pxsched.stored import Damaged

MOST_CPUS = 8192  # NR_CPUS of any kernel
MOST_NODES = 1024  # MAX_NUMNODES
MOST_BYTES = 1 << 60
MOST_DISTANCE = 1 << 16  # firmware says 10 to 254; captured trees have larger ones


def document(topology: Topology) -> dict[str, object]:
    """What `read` reads. Warnings stay at home."""
    cpus = topology.cpus.values()
    cores: dict[int, list[int]] = {}
    for cpu in cpus:
        if cpu.core is not None:
            cores.setdefault(cpu.core, []).append(cpu.id)
    kinds: dict[str, list[int]] = {}
    speeds: dict[int, list[int]] = {}
    for cpu in cpus:
        if cpu.kind is not None:
            kinds.setdefault(cpu.kind.value, []).append(cpu.id)
        if cpu.max_khz is not None:
            speeds.setdefault(cpu.max_khz, []).append(cpu.id)
    numbers = [node.id for node in topology.nodes]
    return {
        "cores": [cpulist.format(members) for _core, members in sorted(cores.items())],
        "l3s": [[cpulist.format(l3.cpus), l3.size_bytes] for l3 in topology.l3s],
        "nodes": [
            [node.id, cpulist.format(node.cpus), node.memory_bytes, [*map(node.distances.get, numbers)]]
            for node in topology.nodes
        ],
        "packages": [[package.id, cpulist.format(package.cpus)] for package in topology.packages],
        "offline": cpulist.format(cpu.id for cpu in cpus if not cpu.online),
        "isolated": cpulist.format(topology.isolated),
        "kinds": {kind: cpulist.format(members) for kind, members in kinds.items()},
        "khz": [[cpulist.format(members), khz] for khz, members in sorted(speeds.items())],
    }


def read(body: object) -> Topology:
    """The topology; the same object for machines that are alike, whose tables are then built once. Raises
    Damaged where sets overlap, or name CPUs that no core has.
    """
    return _read(json.dumps(body))


@lru_cache(maxsize=64)
def _read(text: str) -> Topology:
    said = stored.table(stored.parse(text), 16)
    cores = [cpus(one) for one in stored.listed(said.get("cores"), MOST_CPUS)]
    core_of = _owners(cores, "cores")
    online = frozenset(core_of)
    l3s = tuple(map(_l3, range(MOST_CPUS), stored.listed(said.get("l3s"), MOST_CPUS)))
    nodes = _nodes(stored.listed(said.get("nodes"), MOST_NODES))
    packages = tuple(map(_package, stored.listed(said.get("packages"), MOST_CPUS)))
    l3_of = _named(_owners([l3.cpus for l3 in l3s], "L3 groups"), [l3.id for l3 in l3s])
    node_of = _named(_owners([node.cpus for node in nodes], "nodes"), [node.id for node in nodes])
    package_of = _named(_owners([one.cpus for one in packages], "packages"), [one.id for one in packages])
    kind_of = {cpu: kind for kind in CpuKind for cpu in _kind(said.get("kinds"), kind)}
    khz_of = {
        cpu: stored.integer(khz, 1, 1 << 32)
        for members, khz in map(stored.pair, stored.listed(said.get("khz"), MOST_CPUS))
        for cpu in cpus(members)
    }
    offline, isolated = cpus(said.get("offline")), cpus(said.get("isolated"))
    if not online or online & offline or len({node.id for node in nodes}) < len(nodes):
        raise Damaged("no CPU, or one that is both online and not, or a node twice")
    if not online.issuperset((*l3_of, *node_of, *package_of, *isolated)):
        raise Damaged("a set names CPUs that no core has")
    siblings = {cpu: cores[core] for cpu, core in core_of.items()}
    tables = Tables(core_of, siblings, l3_of, node_of, package_of, kind_of, khz_of)
    found = {cpu: tables.cpu(cpu, online=cpu in online) for cpu in sorted(online | offline)}
    return Topology(found, l3s, nodes, packages, isolated)


def cpus(text: object) -> frozenset[int]:
    """A list as the kernel writes it. Raises Damaged."""
    try:
        found = cpulist.parse(stored.text(text, 1 << 14))
    except UserError as error:
        raise Damaged(error.message) from error
    if found and max(found) >= MOST_CPUS:
        raise Damaged(f"CPU {max(found)} is more than {MOST_CPUS - 1}")
    return found


def _owners(groups: Iterable[frozenset[int]], what: str) -> dict[int, int]:
    """The position of each CPU's group."""
    found: dict[int, int] = {}
    for number, group in enumerate(groups):
        if not found.keys().isdisjoint(group):
            raise Damaged(f"{what} overlap")
        found.update(dict.fromkeys(group, number))
    return found


def _named(owners: Mapping[int, int], names: list[int]) -> dict[int, int]:
    return {cpu: names[number] for cpu, number in owners.items()}


def _l3(number: int, body: object) -> L3:
    members, size = stored.pair(body)
    return L3(number, cpus(members), stored.maybe(lambda value: stored.integer(value, 0, MOST_BYTES), size))


def _nodes(bodies: list[object]) -> tuple[Node, ...]:
    rows = [stored.items(body, 4) for body in bodies]
    numbers = [stored.integer(number, 0, MOST_NODES) for number, *_rest in rows]
    found = []
    for number, members, memory, row in rows:
        memory_bytes = stored.maybe(lambda value: stored.integer(value, 0, MOST_BYTES), memory)
        distances = {
            other: stored.integer(distance, 0, MOST_DISTANCE)
            for other, distance in zip(numbers, stored.items(row, len(numbers)), strict=True)
            if distance is not None
        }
        found.append(Node(number, cpus(members), memory_bytes, distances))
    return tuple(found)


def _package(body: object) -> Package:
    number, members = stored.pair(body)
    return Package(stored.integer(number, 0, 1 << 31), cpus(members))


def _kind(body: Any, kind: CpuKind) -> frozenset[int]:
    return cpus(stored.table(body, len(CpuKind)).get(kind.value, ""))
