"""What Karpenter's Proxmox provider makes of what it is told."""

from pathlib import Path

import pytest

from pxsched.errors import UserError
from pxsched.host import cpulist, topology
from pxsched.karpenter import capacity, document, keep, reader
from pxsched.root import Root
from pxsched.settings.policy import NodeSettings

GIB_KIB = 1 << 20


ASPECTS = ("a core", "an L3 cache", "a socket")


def groups(answer, aspect):
    """The sets of CPUs that share a core, an L3 cache or a socket."""
    found = {}
    for cpu, places in answer.items():
        found.setdefault(places[aspect], set()).add(cpu)
    return sorted(map(sorted, found.values()))


def by_the_provider(described):
    """The arithmetic of the provider's DiscoverFromSettings, written down once more after its source: core,
    L3 cache and socket of each CPU of a node-settings document.
    """
    lists = [cpulist.parse(node.cpus) for node in described.nodes.values()]
    cores = sum(len(cpus) // max(1, described.threads) for cpus in lists)
    cores_per_cache = max(1, cores // max(1, described.uncorecaches))
    cores_per_socket = max(1, cores // max(1, described.sockets))
    answer = {}
    for cpu in frozenset().union(*lists):
        core = cpu - cores if cpu >= cores else cpu
        answer[cpu] = core, core // cores_per_cache, cpu // cores_per_socket % max(1, described.sockets)
    return answer


def truth(machine):
    packages = {cpu: package.id for package in machine.packages for cpu in package.cpus}
    return {
        cpu: (min(machine.cpus[cpu].siblings), machine.cpus[cpu].l3, packages.get(cpu))
        for cpu in machine.online
        if machine.cpus[cpu].node is not None
    }


def test_of_the_documented_machine_it_believes_nothing_but_the_truth(epyc):
    machine = topology.read(epyc)
    assert capacity.notes(machine, NodeSettings()) == ()
    thought, real = by_the_provider(document.build(machine, NodeSettings())), truth(machine)
    for aspect in range(3):
        assert groups(thought, aspect) == groups(real, aspect)


def test_every_captured_machine_is_told_as_it_is_or_the_plan_says_what_is_not(topologies):
    names = sorted(path.name for path in topologies.iterdir() if (path / "root").is_dir())
    right = 0
    for name in names:
        machine = topology.read(Root(str(topologies / name / "root")))
        if not machine.nodes:
            continue
        thought, real = by_the_provider(document.build(machine, NodeSettings())), truth(machine)
        listed = reader.told(machine, {node.id: node.cpus for node in machine.nodes if node.cpus})
        said = " ".join(reader.mistakes(machine, listed))
        for aspect, what in enumerate(ASPECTS):
            known = all(places[aspect] is not None for places in real.values())
            same = known and groups(thought, aspect) == groups(real, aspect)
            assert not known or same == (f"who shares {what} " not in said), (name, what, said)
        right += not said
    assert right >= len(names) // 4, "the arithmetic fits the usual numbering"


def test_reserved_cpus_are_listed_where_siblings_would_be_mistaken_without_them(epyc):
    machine, settings = topology.read(epyc), NodeSettings(housekeeping="0,32")
    assert capacity.left_out(machine, settings) == frozenset()
    assert capacity.build(machine, settings)["cores"] == "64"
    (note,) = capacity.notes(machine, settings)
    assert "CPUs 0,32 are listed though they are reserved" in note and "karpenter settings" in note
    assert document.build(machine, settings).reservedcpus == [0, 32]


def test_the_plan_says_it(epyc):
    settings = NodeSettings(housekeeping="0,32")
    assert any("0,32" in note for note in keep.plan(epyc, topology.read(epyc), settings).notes)


def test_reserved_cpus_are_left_out_where_the_arithmetic_survives_that(machine):
    root = machine([("0-7", 8 * GIB_KIB)], siblings=1)
    settings = NodeSettings(housekeeping="0")
    assert capacity.build(topology.read(root), settings)["affinity"] == "1-7"
    assert capacity.notes(topology.read(root), settings) == ()


def test_cpus_of_a_node_without_memory_are_not_offered(machine):
    root = machine([("0-3", 4 * GIB_KIB), ("4-7", GIB_KIB - 1)], siblings=1)
    options = capacity.build(topology.read(root), NodeSettings())
    assert options["affinity"] == "0-3" and "numa1" not in options
    notes = capacity.notes(topology.read(root), NodeSettings())
    assert any("node 1 is not offered" in note for note in notes)


def test_cpus_that_no_node_claims_are_not_offered_and_that_is_said(machine):
    root = machine([("0-3", 4 * GIB_KIB), ("4-7", 4 * GIB_KIB)], siblings=1)
    Path(root.path("sys/devices/system/node/node1/cpulist")).write_text("4-5\n")
    found = topology.read(root)
    assert capacity.build(found, NodeSettings())["affinity"] == "0-3,4-5"
    assert "CPUs 6-7 are not offered: no NUMA node claims them" in capacity.notes(found, NodeSettings())
    assert found.warnings == ("no node claims CPUs 6-7",)


def test_siblings_that_are_numbered_side_by_side_cannot_be_told(tmp_path):
    base = tmp_path / "sys/devices/system"
    for cpu in range(8):
        first = cpu // 2 * 2
        directory = base / f"cpu/cpu{cpu}/topology"
        directory.mkdir(parents=True)
        (directory / "core_cpus_list").write_text(f"{first}-{first + 1}\n")
        (directory / "physical_package_id").write_text("0\n")
    (base / "cpu/online").write_text("0-7\n")
    (base / "node/node0").mkdir(parents=True)
    (base / "node/node0/cpulist").write_text("0-7\n")
    (base / "node/node0/meminfo").write_text(f"Node 0 MemTotal: {8 * GIB_KIB} kB\n")
    notes = capacity.notes(topology.read(Root(str(tmp_path))), NodeSettings())
    assert any("who shares a core for 8 of 8 CPUs: CPU 0 with 0,4, where it is 0-1" in note for note in notes)


def test_a_machine_whose_cpus_are_all_reserved_is_still_refused(epyc):
    with pytest.raises(UserError, match="no CPU is left"):
        capacity.notes(topology.read(epyc), NodeSettings(housekeeping="0-63"))
