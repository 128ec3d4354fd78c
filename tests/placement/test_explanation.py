"""What `why` tells a person: the choice, the next best and why it lost, and what would be better."""

from pxsched.host.topology import CpuKind
from pxsched.placement.request import VmClass
from pxsched.placement.search import place
from pxsched.settings.policy import Prefer, Smt

from .machines import from_table, held, host, machine, wish

BIG = machine(nodes=4, l3s=2, cores=4, threads=2)  # node 0: 0-7,32-39; L3 groups of 0-3,32-35 and so on


def why(topology, taken, request, **more) -> str:
    return "\n".join(place(host(topology, **more), taken, request).why)


def test_the_first_line_says_what_was_chosen():
    first = why(BIG, [], wish(4)).splitlines()[0]
    assert first == "4 exclusive CPUs 0,32,1,33 on node 0, in one L3 group (0-3,32-35)"


def test_the_next_best_is_named_with_the_rule_by_which_it_lost():
    text = why(BIG, [], wish(4, device_nodes=frozenset({2})))
    assert "next best was node 0, in one L3 group (0-3,32-35): it is further from the passed-through" in text
    text = why(BIG, [held("8-9,12-13,40-41,44-45")], wish(8, nodes=frozenset({0, 1})))
    assert "next best was node 1, in 2 L3 groups: it spans 2 L3 groups instead of 1" in text


def test_on_a_machine_of_one_node_the_next_best_is_another_l3_group():
    topology = machine(nodes=1, l3s=4, cores=4, threads=1)
    text = why(topology, [held("4-5", 101)], wish(2))
    assert "on node 0, in one L3 group (4-7)" in text
    assert "next best was node 0, in one L3 group (0-3): it would break into an L3 group that" in text


def test_where_nothing_else_can_hold_it_that_is_said():
    taken = [held("0-7,32-39", 101), held("8-15,40-47", 102), held("16-23,48-55", 103)]
    assert "no other node can hold it now" in why(BIG, taken, wish(16))


def test_the_vm_in_the_way_of_one_node_is_named():
    taken = [
        held("0-1,32-33", 101),
        held("8-13,40-45", 102),
        held("16-21,48-53", 103),
        held("24-30,56-62", 104),
    ]
    text = why(BIG, taken, wish(16))
    assert "one node would do without VM 101 (4 CPUs on node 0)" in text


def test_the_vms_in_the_way_of_one_l3_group_are_named():
    topology = machine(nodes=1, l3s=2, cores=4, threads=1)
    text = why(topology, [held("0", 101), held("4", 102), held("5", 103)], wish(4))
    assert "one L3 group would do without VM 101 (1 CPUs of L3 group 0-3)" in text


def test_missing_memory_is_named_as_what_is_in_the_way():
    text = why(BIG, [], wish(2, memory_mib=1500), free_mib=dict.fromkeys(range(4), 1000))
    assert "one node has the CPUs but not 1500 MiB: node 0 has 1000 MiB free" in text


def test_shared_cores_are_admitted():
    topology = machine(nodes=1, l3s=1, cores=1, threads=2)
    assert "shares 1 core with other VMs" in why(topology, [held("0", smt=Smt.SHARE)], wish(1, smt=Smt.SHARE))


def test_an_odd_require_is_admitted():
    assert "3 vCPUs are no multiple of 2: one core is used in part" in why(BIG, [], wish(3, smt=Smt.REQUIRE))


def test_a_preference_that_could_not_be_met_is_admitted():
    kinds = {cpu: CpuKind.PERFORMANCE if cpu < 2 else CpuKind.EFFICIENCY for cpu in range(8)}
    topology = from_table(((cpu, cpu, 0, 0, 0) for cpu in range(8)), kinds=kinds)
    text = why(topology, [], wish(4, prefer=Prefer.PERFORMANCE))
    assert "wishes performance cores; too few are free, these are efficiency" in text


def test_a_shared_vm_is_told_with_whom_it_shares():
    taken = [held("0-3,32-35", 101, VmClass.SHARED, load=2.0)]
    text = why(BIG, taken, wish(4, vm_class=VmClass.SHARED, cpus=frozenset({0, 1, 2, 3})))
    assert text.splitlines()[0] == "4 vCPUs float on CPUs 0-3: node 0, in one L3 group (0-3,32-35)"
    assert "shares it with VM 101" in text


def test_a_shared_vm_is_told_why_the_next_best_home_lost():
    taken = [held("8-11,40-43", 101, VmClass.SHARED, load=6.0)]
    text = why(BIG, taken, wish(4, vm_class=VmClass.SHARED, nodes=frozenset({1})))
    assert "next best was node 1, in one L3 group (8-11,40-43): more demand there" in text
