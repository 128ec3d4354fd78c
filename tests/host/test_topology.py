"""The machine as sysfs shows it, compared with what independent readers say of captured machines."""

import csv
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pxsched.errors import UserError
from pxsched.host import cpulist, topology
from pxsched.host.topology import CpuKind, Topology
from pxsched.root import Root

INDEX = Path(os.environ["PXSCHED_CORPORA"], "topologies-index.csv")
ALL = [row["name"] for row in csv.DictReader(INDEX.open())]
OURS = [
    "ghw-offlineCPUs", "hwloc-16em64t-4s2c2t-offlines", "hwloc-2i386-2c-nohugepage",
    "hwloc-64amd64-4s2n4ca2co", "hwloc-fakeheterocpunuma", "nri-server-snc-pmem", "pepc-adl0", "pepc-arl-h-1",
    "pepc-milan0",
]  # fmt: skip

# hwloc turns the memory-side cache of Knights Landing into an L3; the kernel shows none.
L3_ONLY_HWLOC_KNOWS = {"hwloc-64intel64-fakeKNL-A2A-cache"}
# hwloc leaves out nodes without memory.
HAS_NODES_HWLOC_LEAVES_OUT = {"hwloc-fakememinitiators-1np2c+1npp+gi"}


class Machine:
    """One captured machine: what we read of it, and what is expected."""

    def __init__(self, directory: Path) -> None:
        self.name = directory.name
        self.path = directory / "root"
        self.root = Root(str(self.path))
        self.read = topology.read(self.root)
        self.expected = json.loads((directory / "expected.json").read_text())
        self.usable = cpulist.parse(self.expected["pus"])

    @property
    def limited(self) -> bool:
        """Captured inside a cgroup: sysfs shows more than its processes could use."""
        return self.usable != self.read.online

    def mine(self, groups: Iterable[frozenset[int]]) -> set[frozenset[int]]:
        """Groups within the usable CPUs; what is left of none of them is no group."""
        return {group & self.usable for group in groups} - {frozenset()}

    def theirs(self, items: Iterable[dict[str, str]]) -> set[frozenset[int]]:
        return {cpulist.parse(item["cpus"]) for item in items} - {frozenset()}

    def cpus_of_node(self, number: int) -> frozenset[int]:
        """What the kernel says; hwloc gives a node without CPUs those near to it."""
        base = f"sys/devices/system/node/node{number}"
        listed = self.root.read(f"{base}/cpulist")
        if listed is not None:
            return cpulist.parse(listed)
        return cpulist.parse_mask(self.root.read(f"{base}/cpumap") or "")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "machine" in metafunc.fixturenames:
        names = [f"ours:{name}" for name in OURS] + ALL
        metafunc.parametrize("machine", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest) -> Machine:
    directory, _, name = request.param.rpartition(":")
    return Machine(request.getfixturevalue("machines" if directory else "topologies") / name)


def test_the_online_cpus_are_those_that_can_be_used(machine):
    assert machine.usable <= machine.read.online
    if machine.limited:
        assert machine.name.startswith("hwloc-") and "c" in machine.name  # the three captures inside a cgroup


def test_packages(machine):
    packages = machine.theirs(machine.expected["packages"])
    assert machine.mine(package.cpus for package in machine.read.packages) == packages
    if not machine.limited:
        ids = {one["os_index"]: cpulist.parse(one["cpus"]) for one in machine.expected["packages"]}
        assert {package.id: package.cpus for package in machine.read.packages} == ids


def test_cores(machine):
    siblings = [cpu.siblings for cpu in machine.read.cpus.values() if cpu.online]
    assert machine.mine(siblings) == machine.theirs(machine.expected["cores"])


def test_l3_groups_with_their_sizes(machine):
    if machine.name in L3_ONLY_HWLOC_KNOWS:
        assert machine.read.l3s == ()
        return
    expected = machine.expected["caches"].get("L3", [])
    assert machine.mine(l3.cpus for l3 in machine.read.l3s) == machine.theirs(expected)
    sizes = {l3.cpus & machine.usable: l3.size_bytes for l3 in machine.read.l3s}
    for cache in expected:
        if cache["size_kB"] is not None:
            assert sizes[cpulist.parse(cache["cpus"])] == cache["size_kB"] * 1024


def test_numa_nodes_with_their_memory(machine):
    found = machine.read.node_by_id
    expected = {node["os_index"]: node for node in machine.expected["numa_nodes"]}
    more = set(found) - set(expected)
    assert set(expected) <= set(found)
    assert not more or machine.limited or machine.name in HAS_NODES_HWLOC_LEAVES_OUT
    numa = machine.root.list(topology.NODE_DIR)
    for number, node in expected.items():
        if node["memory_kB"] is not None:
            assert found[number].memory_bytes == node["memory_kB"] * 1024
        if numa and not machine.cpus_of_node(number):
            assert found[number].cpus == frozenset(), f"node {number} has memory only"
        else:
            listed = cpulist.parse(node["cpus"]) & machine.usable
            own = found[number].cpus & machine.usable
            assert own == listed or (own <= listed and machine.read.warnings), "nodes that overlap"


def test_numa_distances(machine):
    expected = machine.expected.get("numa_distances")
    for one, row in zip(expected["order"], expected["matrix"], strict=True) if expected else ():
        for other, distance in zip(expected["order"], row, strict=True):
            assert machine.read.distance(one, other) == distance


def test_the_two_kinds_of_core_of_a_hybrid_machine(machine):
    hybrid = machine.expected.get("hybrid") or {}
    if hybrid:
        assert kinds(machine.read)[CpuKind.PERFORMANCE] == cpulist.parse(hybrid["cpu_core"])
        slower = cpulist.parse(hybrid["cpu_atom"]) | cpulist.parse(hybrid.get("cpu_lowpower", ""))
        assert kinds(machine.read)[CpuKind.EFFICIENCY] == slower
    elif len(machine.expected.get("cpu_kinds") or ()) < 2:
        assert kinds(machine.read).keys() <= {None}, "one kind of core, yet told apart"


@pytest.mark.parametrize(
    "name, performance",
    [("hwloc-nvidia-dgx-gb10", "5-9,15-19"), ("hwloc-20em64t-hybrid-1p6c2t+2ca4co1t", "0-11"),
     ("nri-sample1", "0-7")],
)  # fmt: skip
def test_kinds_of_core_are_told_by_capacity_or_frequency_where_the_kernel_names_none(
    topologies, name, performance
):
    read = topology.read(Root(str(topologies / name / "root")))
    assert kinds(read)[CpuKind.PERFORMANCE] == cpulist.parse(performance)
    assert kinds(read)[CpuKind.EFFICIENCY] == read.online - cpulist.parse(performance)


def test_every_online_cpu_is_in_exactly_one_core_and_package(machine):
    hold_together(machine.read)


def kinds(read: Topology) -> dict[CpuKind | None, frozenset[int]]:
    online = [cpu for cpu in read.cpus.values() if cpu.online]
    found = {cpu.kind for cpu in online}
    return {kind: frozenset(cpu.id for cpu in online if cpu.kind == kind) for kind in found}


def hold_together(read: Topology) -> None:
    """What is true of every topology, however damaged its files."""
    online = read.online
    assert online
    cores: dict[int, set[int]] = {}
    for cpu in read.cpus.values():
        if not cpu.online:
            assert (cpu.core, cpu.l3, cpu.package, cpu.siblings) == (None, None, None, frozenset())
            continue
        assert cpu.id in cpu.siblings <= online
        assert all(read.cpus[sibling].siblings == cpu.siblings for sibling in cpu.siblings)
        cores.setdefault(cpu.core, set()).add(cpu.id)
    assert all(read.cpus[cpu].siblings == core for core in cores.values() for cpu in core)
    assert sorted(cpu for package in read.packages for cpu in package.cpus) == sorted(online)
    with_l3 = [cpu for l3 in read.l3s for cpu in l3.cpus]
    assert len(with_l3) == len(set(with_l3)) and online.issuperset(with_l3)
    assert [l3.id for l3 in read.l3s] == list(range(len(read.l3s)))
    for group in (*read.packages, *read.l3s):
        assert all(read.cpus[cpu].siblings <= group.cpus for cpu in group.cpus), "a core is never torn apart"
    assert len({node.id for node in read.nodes}) == len(read.nodes) > 0
    for cpu in read.cpus.values():
        assert cpu.node is None or cpu.id in read.node_by_id[cpu.node].cpus
    assert all(node.cpus <= online for node in read.nodes)
    assert sum(len(node.cpus) for node in read.nodes) <= len(online), "each CPU has one owner"


# Trees made by hand: what no captured machine has.


@pytest.fixture
def tree(tmp_path: Path) -> "Tree":
    return Tree(tmp_path)


class Tree:
    """Four CPUs in two cores, one node; single files are then changed."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.cpus = base / "sys/devices/system/cpu"
        self.put("online", "0-3\n")
        for cpu in range(4):
            self.put(f"cpu{cpu}/topology/core_cpus_list", "0-1\n" if cpu < 2 else "2-3\n")
            self.put(f"cpu{cpu}/topology/package_cpus_list", "0-3\n")
            self.put(f"cpu{cpu}/topology/physical_package_id", "0\n")
            self.put(f"cpu{cpu}/cache/index3/level", "3\n")
            self.put(f"cpu{cpu}/cache/index3/shared_cpu_list", "0-3\n")
            self.put(f"cpu{cpu}/cache/index3/size", "1024K\n")

    def put(self, name: str, content: str) -> None:
        path = self.cpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())

    def read(self) -> Topology:
        read = topology.read(Root(str(self.base)))
        hold_together(read)
        return read


def cores(read: Topology) -> set[str]:
    return {cpulist.format(cpu.siblings) for cpu in read.cpus.values() if cpu.online}


def test_a_machine_without_numa_is_one_node(tree):
    (node,) = tree.read().nodes
    assert (node.id, node.cpus, node.distances) == (0, {0, 1, 2, 3}, {0: 10})


def test_cpu_0_may_be_offline(tree):
    tree.put("online", "1-3\n")
    read = tree.read()
    assert read.online == {1, 2, 3} and not read.cpus[0].online
    assert cores(read) == {"1", "2-3"}


def test_trailing_nul_bytes_are_passed_over(tree):
    tree.put("online", "0-3\0\0\n")
    tree.put("cpu0/topology/core_cpus_list", "0-1\n\0")
    tree.put("cpu0/cache/index3/level", "3\n\0")
    assert cores(tree.read()) == {"0-1", "2-3"}
    assert tree.read().l3s[0].size_bytes == 1 << 20


def test_without_the_online_list_each_cpu_says_itself_whether_it_is_online(tree):
    (tree.cpus / "online").unlink()
    tree.put("cpu1/online", "0\n")
    tree.put("cpu2/online", "1\n")
    assert tree.read().online == {0, 2, 3}


def test_bitmaps_do_where_there_are_no_lists(tree):
    for cpu, mask in enumerate(("3", "3", "c", "c")):
        (tree.cpus / f"cpu{cpu}/topology/core_cpus_list").unlink()
        tree.put(f"cpu{cpu}/topology/thread_siblings", f"{mask}\n")
    assert cores(tree.read()) == {"0-1", "2-3"}


def test_without_any_topology_file_each_cpu_is_a_core_and_all_are_one_package(tree):
    for cpu in range(4):
        shutil.rmtree(tree.cpus / f"cpu{cpu}/topology")
    read = tree.read()
    assert cores(read) == {"0", "1", "2", "3"}
    assert [package.cpus for package in read.packages] == [{0, 1, 2, 3}]


def test_a_cache_is_found_by_its_level_not_by_its_number(tree):
    for cpu in range(4):
        os.rename(tree.cpus / f"cpu{cpu}/cache/index3", tree.cpus / f"cpu{cpu}/cache/index7")
    assert len(tree.read().l3s) == 1


def test_a_cache_of_unknown_size_has_none(tree):
    tree.put("cpu0/cache/index3/size", "0K\n")
    assert tree.read().l3s[0].size_bytes is None


def test_isolated_cpus_are_named(tree):
    tree.put("isolated", "2-3,77\n")
    assert tree.read().isolated == {2, 3}


def test_a_tree_without_cpus_is_an_error_for_the_user(tmp_path):
    with pytest.raises(UserError, match="no CPUs below"):
        topology.read(Root(str(tmp_path)))


def test_nodes_that_overlap_are_said_and_each_cpu_has_one_owner(machines):
    read = topology.read(Root(str(machines / "hwloc-fakeheterocpunuma/root")))
    assert any("shares CPUs" in warning for warning in read.warnings)
    for node in read.nodes:
        assert all(read.cpus[cpu].node == node.id for cpu in node.cpus)


def test_nodes_that_all_list_the_same_cpus_are_one_with_cpus_and_others_with_memory_only(tree):
    for node in range(3):
        tree.put(f"../node/node{node}/cpulist", "0-3\n")
        tree.put(f"../node/node{node}/meminfo", f"Node {node} MemTotal: 4194304 kB\n")
    read = topology.read(Root(str(tree.base)))
    assert [sorted(node.cpus) for node in read.nodes] == [[0, 1, 2, 3], [], []]
    assert len(read.warnings) == 2


# Kinds of core that no PMU names. Ranks of preferred cores as a Zen 3 of two CCDs has them (linux-kselftest,
# 2023-10-09), which AMD's driver multiplies the highest frequency by.
RANKS = (226, 231, 211, 236, 216, 236, 206, 221, 191, 201, 186, 196, 171, 166, 181, 176)


def rated(tree, khz, **files: tuple[str, ...]) -> Topology:
    """Cores without siblings of these frequencies. files: a path with "__" for "/", its text by core."""
    for cpu, value in enumerate(khz):
        tree.put(f"cpu{cpu}/topology/core_cpus_list", f"{cpu}\n")
        tree.put(f"cpu{cpu}/cpufreq/cpuinfo_max_freq", f"{value}\n")
        for name, values in files.items():
            tree.put(f"cpu{cpu}/{name.replace('__', '/')}", values[cpu])
    tree.put("online", f"0-{len(khz) - 1}\n")
    return topology.read(Root(str(tree.base)))


def test_a_ranking_of_preferred_cores_is_one_kind(tree):
    sizes = ("1024K\n",) * 8 + ("512K\n",) * 8
    found = rated(tree, [3_400_000 * rank // 111 for rank in RANKS], cache__index2__size=sizes)
    assert kinds(found).keys() == {None}


def test_cores_that_differ_in_their_highest_frequency_only_are_one_kind(tree):
    assert kinds(rated(tree, [5_000_000] * 4 + [3_500_000] * 4)).keys() == {None}


@pytest.mark.parametrize(
    ("name", "fast", "slow"),
    [
        ("cache__index2__size", "2048K\n", "1024K\n"),
        ("cache__index3__size", "16384K\n", "8192K\n"),
        ("acpi_cppc__nominal_freq", "3800\n", "3000\n"),
        ("cache__index2__shared_cpu_list", "0\n", "4-7\n"),
    ],
)
def test_cores_with_a_gap_between_them_that_are_built_differently_are_two_kinds(tree, name, fast, slow):
    khz = [5_100_000, 5_000_000, 5_000_000, 5_000_000] + [3_300_000] * 4
    found = kinds(rated(tree, khz, **{name: (fast,) * 4 + (slow,) * 4}))
    assert found == {CpuKind.PERFORMANCE: {0, 1, 2, 3}, CpuKind.EFFICIENCY: {4, 5, 6, 7}}


def test_of_three_kinds_the_two_that_are_built_differently_are_told_apart(tree):
    khz = [5_000_000] * 4 + [3_800_000] * 2 + [2_500_000] * 2  # the lower two are the further apart
    found = kinds(rated(tree, khz, cache__index2__size=("2048K\n",) * 4 + ("4096K\n",) * 4))
    assert found == {CpuKind.PERFORMANCE: {0, 1, 2, 3}, CpuKind.EFFICIENCY: {4, 5, 6, 7}}


def test_the_two_cores_of_an_opteron_module_are_no_siblings(machines):
    read = topology.read(Root(str(machines / "hwloc-64amd64-4s2n4ca2co/root")))
    assert all(cpu.siblings == {cpu.id} for cpu in read.cpus.values())


# Damage: files deleted, cut, filled with rubbish.

RUBBISH = (
    b"", b"\0" * 64, b"\xff\xfe\x00garbage", b"-1\n", b"0-\n", b"99999999999999999999\n", b"0-65535\n",
    b"0-3\n", b"1\n", b"ffffffff,ffffffff\n", b"9" * 5000, b"Node 0 MemTotal: x kB\n", b"\n\n\n", b"0,0,0",
)  # fmt: skip


def damage(base: Path, chance: random.Random, files: int) -> list[str]:
    """Spoils some files below `base`; says what was done, for the failing test's report."""
    paths = [Path(directory, name) for directory, _, names in os.walk(base) for name in names]
    done = []
    for path in chance.sample(sorted(paths), min(files, len(paths))):
        how = chance.choice(("delete", "truncate", "rubbish", "directory"))
        done.append(f"{how} {path.relative_to(base)}")
        if how == "truncate" and path.is_file():
            data = path.read_bytes()
            path.write_bytes(data[: chance.randrange(len(data) + 1)])
            continue
        path.unlink()
        if how == "rubbish":
            path.write_bytes(chance.choice(RUBBISH))
        elif how == "directory":
            path.mkdir()
    return done


@pytest.fixture
def spoilable(machines: Path, tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "spoiled"
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


SMALL = ["hwloc-16em64t-4s2c2t-offlines", "hwloc-fakeheterocpunuma", "pepc-adl0", "ghw-offlineCPUs"]


def spoil_and_read(machines: Path, spoilable: Path, rounds: int) -> None:
    for seed in range(rounds):
        chance = random.Random(seed)
        shutil.rmtree(spoilable, ignore_errors=True)
        shutil.copytree(machines / chance.choice(SMALL) / "root", spoilable, symlinks=True)
        done = damage(spoilable, chance, chance.choice((1, 3, 30, 100)))
        try:
            hold_together(topology.read(Root(str(spoilable))))
        except UserError:
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}: {done}") from error


def test_a_damaged_tree_is_read_without_a_traceback(machines, spoilable):
    spoil_and_read(machines, spoilable, 15)


@pytest.mark.slow
def test_hundreds_of_damaged_trees_are_read_without_a_traceback(machines, spoilable):
    spoil_and_read(machines, spoilable, 400)
