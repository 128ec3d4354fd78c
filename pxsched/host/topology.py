"""The machine's CPUs, cores, L3 groups, NUMA nodes and packages, read from sysfs.

Rules: Documentation/admin-guide/cputopology.rst, Documentation/ABI/stable/sysfs-devices-system-cpu and
-node, Documentation/ABI/testing/sysfs-devices-system-cpu (cache/indexN). Everything may be missing: old
kernels have bitmaps only, guests no caches, offline CPUs no topology at all. Where damaged firmware tables
make nodes overlap, each CPU has one owner all the same.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

from pxsched.errors import UserError
from pxsched.host import cpulist
from pxsched.host.kinds import CpuKind as CpuKind
from pxsched.host.kinds import kinds
from pxsched.root import Root
from pxsched.value import NOTHING, Value, replace

CPU_DIR = "sys/devices/system/cpu"
NODE_DIR = "sys/devices/system/node"
LOCAL_DISTANCE = 10  # ACPI SLIT: a node's distance to itself


class Cpu(Value):
    """One logical CPU. core and l3 are numbers unique on the machine (positions in the machine's lists);
    node and package are the kernel's; None where the kernel says nothing. siblings includes the CPU itself.
    """

    id: int
    online: bool
    core: int | None = None
    l3: int | None = None
    node: int | None = None
    package: int | None = None
    siblings: frozenset[int] = frozenset()
    kind: CpuKind | None = None
    max_khz: int | None = None


class Tables(NamedTuple):
    """What is known of each CPU, by its number; None or missing where the kernel says nothing."""

    core: Mapping[int, int]
    siblings: Mapping[int, frozenset[int]]
    l3: Mapping[int, int]
    node: Mapping[int, int]
    package: Mapping[int, int]
    kind: Mapping[int, CpuKind | None]
    max_khz: Mapping[int, int | None]

    def cpu(self, number: int, *, online: bool) -> Cpu:
        return Cpu(
            id=number,
            online=online,
            core=self.core.get(number),
            l3=self.l3.get(number),
            node=self.node.get(number),
            package=self.package.get(number),
            siblings=self.siblings.get(number, frozenset()),
            kind=self.kind.get(number),
            max_khz=self.max_khz.get(number),
        )


class L3(Value):
    id: int
    cpus: frozenset[int]
    size_bytes: int | None


class Node(Value):
    """A NUMA node. cpus: its online CPUs, empty for memory-only nodes. distances: SLIT, to each node."""

    id: int
    cpus: frozenset[int]
    memory_bytes: int | None
    distances: Mapping[int, int] = NOTHING


class Package(Value):
    id: int
    cpus: frozenset[int]


class Topology(Value):
    """One machine. cpus holds the present CPUs by id, offline ones included; the other sets online CPUs only.

    isolated: CPUs the kernel keeps out of load balancing (isolcpus=).
    warnings: what in the tree contradicts itself, one line each.
    """

    cpus: Mapping[int, Cpu]
    l3s: tuple[L3, ...]
    nodes: tuple[Node, ...]
    packages: tuple[Package, ...]
    isolated: frozenset[int] = frozenset()
    warnings: tuple[str, ...] = ()

    @cached_property
    def online(self) -> frozenset[int]:
        return frozenset(cpu.id for cpu in self.cpus.values() if cpu.online)

    @cached_property
    def node_by_id(self) -> Mapping[int, Node]:
        return {node.id: node for node in self.nodes}

    def nodes_of(self, cpus: Iterable[int]) -> frozenset[int]:
        """The NUMA nodes that these CPUs belong to; unknown CPUs are passed over."""
        found = (self.cpus.get(cpu) for cpu in cpus)
        return frozenset(cpu.node for cpu in found if cpu is not None and cpu.node is not None)

    def distance(self, one: int, other: int) -> int:
        """SLIT distance; 10 to itself and 20 to others where the firmware gave none."""
        node = self.node_by_id.get(one)
        default = LOCAL_DISTANCE if one == other else 2 * LOCAL_DISTANCE
        return node.distances.get(other, default) if node else default


def read(root: Root) -> Topology:
    """The topology below `root`. Raises UserError when it shows no CPU at all."""
    present = _numbered(root.list(CPU_DIR), "cpu")
    if not present:
        raise UserError(f"no CPUs below {root.path(CPU_DIR)}", hint="is this the root of a Linux system?")
    online = _online(root, present)
    warnings: list[str] = []
    cores = _cores(root, online)
    core_of = _index(cores)
    siblings = {cpu: cores[core] for cpu, core in core_of.items()}
    leaders = sorted(min(core) for core in cores)
    packages = _packages(root, leaders, siblings)
    l3s = _l3s(root, leaders, siblings, online)
    nodes = _nodes(root, online)
    node_of = _node_of(nodes, warnings)
    if warnings:
        nodes = tuple(_owned(node, node_of) for node in nodes)
    if lost := online - node_of.keys():
        warnings.append(f"no node claims CPUs {cpulist.format(lost)}")
    package_of = {cpu: package.id for package in packages for cpu in package.cpus}
    l3_of = {cpu: l3.id for l3 in l3s for cpu in l3.cpus}
    max_khz = {
        cpu: khz
        for leader in leaders
        for khz in [_int(root.read(f"{CPU_DIR}/cpu{leader}/cpufreq/cpuinfo_max_freq"))]
        for cpu in siblings[leader]
    }
    kind_of = kinds(root, leaders, siblings, max_khz)
    tables = Tables(core_of, siblings, l3_of, node_of, package_of, kind_of, max_khz)
    cpus = {cpu: tables.cpu(cpu, online=cpu in online) for cpu in present}
    return Topology(cpus, l3s, nodes, packages, isolated(root) & online, tuple(warnings))


def isolated(root: Root) -> frozenset[int]:
    """The CPUs that the kernel's command line isolates; none where it does not say."""
    return _parsed(cpulist.parse, root.read(f"{CPU_DIR}/isolated")) or frozenset()


def _numbered(names: Iterable[str], prefix: str) -> list[int]:
    """The numbers N of the names `prefixN`, ascending."""
    return sorted(
        int(name.removeprefix(prefix))
        for name in names
        if name.startswith(prefix) and name.removeprefix(prefix).isdecimal() and name.isascii()
    )


def _int(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _parsed(parse: Callable[[str], frozenset[int]], text: str | None) -> frozenset[int] | None:
    """A CPU set that must not stop the reading when its file is damaged."""
    try:
        return parse(text) if text else None
    except UserError:
        return None


def _group(root: Root, cpu: int, *files: tuple[str, Callable[[str], frozenset[int]]]) -> frozenset[int]:
    """The first CPU set among the files of `cpu` that contains it; a file that does not is a wrong copy."""
    for name, parse in files:
        found = _parsed(parse, root.read(f"{CPU_DIR}/cpu{cpu}/{name}"))
        if found and cpu in found:
            return found
    return frozenset((cpu,))


def _online(root: Root, present: list[int]) -> frozenset[int]:
    listed = _parsed(cpulist.parse, root.read(f"{CPU_DIR}/online"))
    if listed:
        return listed & frozenset(present)
    # Kernels and captures without the list: a CPU that cannot be taken offline has no file of its own.
    return frozenset(cpu for cpu in present if root.read(f"{CPU_DIR}/cpu{cpu}/online") != "0")


# Newest name first, list before bitmap: kernels and captures have some of them.
_CORE_FILES = (
    ("topology/core_cpus_list", cpulist.parse),
    ("topology/thread_siblings_list", cpulist.parse),
    ("topology/core_cpus", cpulist.parse_mask),
    ("topology/thread_siblings", cpulist.parse_mask),
)
_PACKAGE_FILES = (
    ("topology/package_cpus_list", cpulist.parse),
    ("topology/core_siblings_list", cpulist.parse),
    ("topology/package_cpus", cpulist.parse_mask),
    ("topology/core_siblings", cpulist.parse_mask),
)


def _cores(root: Root, online: frozenset[int]) -> list[frozenset[int]]:
    """The CPUs of each core. AMD's family 15h lists the two cores of a module as siblings: they differ in
    core_id. All groups of a machine are of one make, so the first one tells.
    """
    cores = _partition(online, lambda cpu: _group(root, cpu, *_CORE_FILES))
    first = next((core for core in cores if len(core) > 1), frozenset())
    ids = {root.read(f"{CPU_DIR}/cpu{cpu}/topology/core_id") for cpu in first}
    return cores if len(ids) < 2 else [frozenset((cpu,)) for cpu in sorted(online)]


def _partition(online: frozenset[int], read_group: Callable[[int], frozenset[int]]) -> list[frozenset[int]]:
    """Groups of CPUs in the order of their first one; each group is read once, from its first member.

    A CPU whose file is missing, or leaves it out, is a group of its own.
    """
    groups: list[frozenset[int]] = []
    seen: set[int] = set()
    for cpu in sorted(online):
        if cpu not in seen:
            group = (read_group(cpu) & online) - seen | {cpu}
            groups.append(group)
            seen |= group
    return groups


def _index(groups: Iterable[frozenset[int]]) -> dict[int, int]:
    return {cpu: number for number, group in enumerate(groups) for cpu in group}


def _whole_cores(cpus: Iterable[int], siblings: Mapping[int, frozenset[int]]) -> frozenset[int]:
    """No package and no cache ends inside a core, whatever a damaged or truncated list says."""
    return frozenset().union(*(siblings[cpu] for cpu in cpus))


def _packages(root: Root, leaders: list[int], siblings: Mapping[int, frozenset[int]]) -> tuple[Package, ...]:
    """Packages by physical_package_id; 0 where it is missing or -1 (guests, some ARM machines)."""
    members: dict[int, set[int]] = {}
    seen: set[int] = set()
    for leader in leaders:
        if leader in seen:
            continue
        number = _int(root.read(f"{CPU_DIR}/cpu{leader}/topology/physical_package_id"))
        together = _group(root, leader, *_PACKAGE_FILES) & siblings.keys()
        group = _whole_cores(together, siblings) - seen
        seen |= group
        members.setdefault(max(0, number or 0), set()).update(group)
    return tuple(Package(number, frozenset(cpus)) for number, cpus in sorted(members.items()))


def _l3s(
    root: Root, leaders: list[int], siblings: Mapping[int, frozenset[int]], online: frozenset[int]
) -> tuple[L3, ...]:
    found: list[L3] = []
    seen: set[int] = set()
    for leader in leaders:
        if leader in seen:
            continue
        index = _l3_index(root, leader)
        if index is None:
            continue
        shared = _group(
            root,
            leader,
            (f"{index}/shared_cpu_list", cpulist.parse),
            (f"{index}/shared_cpu_map", cpulist.parse_mask),
        )
        group = _whole_cores(shared & online, siblings) - seen
        size_bytes = _size_bytes(root.read(f"{CPU_DIR}/cpu{leader}/{index}/size"))
        found.append(L3(len(found), group, size_bytes))
        seen |= group
    return tuple(found)


def _l3_index(root: Root, cpu: int) -> str | None:
    """The directory of the CPU's level 3 cache below its own; nearly always cache/index3."""
    base = f"{CPU_DIR}/cpu{cpu}"
    if root.read(f"{base}/cache/index3/level") == "3":
        return "cache/index3"
    names = (f"cache/index{number}" for number in _numbered(root.list(f"{base}/cache"), "index"))
    return next((name for name in names if root.read(f"{base}/{name}/level") == "3"), None)


def _size_bytes(text: str | None) -> int | None:
    """A cache size such as "32768K"; None when absent or zero (unknown to the firmware)."""
    match = re.fullmatch(r"(\d{1,15})([KMG]?)", text or "", re.ASCII)
    size = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0
    return size or None


def _nodes(root: Root, online: frozenset[int]) -> tuple[Node, ...]:
    """The NUMA nodes; one that holds everything where the kernel was built without NUMA."""
    numbers = _numbered(root.list(NODE_DIR), "node")
    if not numbers:
        total = _meminfo_bytes(root.read("proc/meminfo"))
        return (Node(0, online, total, {0: LOCAL_DISTANCE}),)
    return tuple(_node(root, number, numbers, online) for number in numbers)


def _node(root: Root, number: int, numbers: list[int], online: frozenset[int]) -> Node:
    base = f"{NODE_DIR}/node{number}"
    listed = _parsed(cpulist.parse, root.read(f"{base}/cpulist"))
    cpus = listed or _parsed(cpulist.parse_mask, root.read(f"{base}/cpumap")) or frozenset()
    row = [_int(word) for word in (root.read(f"{base}/distance") or "").split()]
    distances = {
        other: distance
        for other, distance in zip(numbers, row, strict=False)
        if distance is not None and len(row) == len(numbers)
    }
    return Node(number, cpus & online, _meminfo_bytes(root.read(f"{base}/meminfo")), distances)


def _meminfo_bytes(text: str | None) -> int | None:
    match = re.search(r"\bMemTotal:\s*(\d{1,15}) kB", text or "", re.ASCII)
    return int(match[1]) * 1024 if match else None


def _owned(node: Node, node_of: Mapping[int, int]) -> Node:
    """The node with its own CPUs only."""
    return replace(node, cpus=frozenset(cpu for cpu in node.cpus if node_of[cpu] == node.id))


def _node_of(nodes: Iterable[Node], warnings: list[str]) -> dict[int, int]:
    """Each CPU's node. Where damaged firmware tables make nodes overlap, the smaller one is the nearer."""
    owner: dict[int, int] = {}
    for node in sorted(nodes, key=lambda node: (len(node.cpus), node.id)):
        shared = node.cpus & owner.keys()
        if shared:
            warnings.append(f"node {node.id} shares CPUs {cpulist.format(shared)} with another node")
        owner.update((cpu, node.id) for cpu in node.cpus - shared)
    return owner
