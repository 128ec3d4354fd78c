"""The rules of placement in their order, each on a machine small enough to follow by hand."""

import pytest

from pxsched.host import cpulist
from pxsched.host.topology import CpuKind
from pxsched.placement.request import Refused, VmClass
from pxsched.placement.search import place
from pxsched.settings.policy import Prefer, Smt
from pxsched.value import replace

from .machines import cores_of, from_table, guest_node, held, holding_of, host, l3s_of, machine, wish

BIG = machine(nodes=4, l3s=2, cores=4, threads=2)  # 64 CPUs; node 0: 0-7,32-39; L3 group 0: 0-3,32-35


def on(placement, topology=BIG) -> frozenset[int]:
    return topology.nodes_of(placement.cpus)


def cpus(placement) -> str:
    return cpulist.format(placement.cpus)


# Rule 1: feasible or refused


def test_a_refusal_names_the_rule_and_the_numbers():
    small = machine(nodes=2, l3s=1, cores=4, threads=1)
    with pytest.raises(
        Refused, match=r"needs 5 exclusive CPUs; 3 are free \(node 0 has 1, node 1 has 2\) of 8"
    ):
        place(host(small), [held("0-2,4-5", 105)], wish(5))
    with pytest.raises(Refused, match=r"needs 2 exclusive CPUs; 1 is free \(node 0 has 0, node 1 has 1\)"):
        place(host(small), [held("0-6", 1)], wish(2))


def test_a_refusal_names_the_vm_in_the_way():
    with pytest.raises(Refused) as refused:
        place(host(BIG), [held("0-7,32-39", 101), held("8-31,40-61", 102)], wish(20))
    assert refused.value.hint == "VM 102 would have to stop"


def test_memory_decides_before_nearness():
    answer = place(host(BIG, free_mib={0: 100, 1: 100, 2: 9000, 3: 100}), [], wish(4, memory_mib=8192))
    assert answer.nodes == {2}


def test_a_vm_larger_than_every_nodes_memory_gets_several_nodes():
    answer = place(host(BIG, free_mib=dict.fromkeys(range(4), 1000)), [], wish(2, memory_mib=1500))
    assert len(answer.nodes) == 2


def test_too_little_memory_is_refused_with_what_each_node_has():
    with pytest.raises(Refused, match="needs 5000 MiB; node 0 has 1000 MiB free, node 1 has 1000 MiB free"):
        place(host(BIG, free_mib=dict.fromkeys(range(4), 1000)), [], wish(2, memory_mib=5000))


def test_huge_pages_come_from_a_node_that_has_them_in_the_asked_size():
    machine_ = host(BIG, free_hugepages_mib={(0, 2): 8192, (3, 1024): 8192})
    assert place(machine_, [], wish(2, memory_mib=4096, hugepage_mib=1024)).nodes == {3}
    with pytest.raises(Refused, match="in huge pages of 1024 MiB"):
        place(machine_, [], wish(2, memory_mib=16384, hugepage_mib=1024))


@pytest.mark.parametrize("smt", Smt)
def test_housekeeping_isolated_and_offline_cpus_are_never_chosen(smt):
    topology = machine(nodes=1, l3s=1, cores=8, threads=2, isolated=(2, 10), offline=(3,))
    answer = place(host(topology, "0,8"), [], wish(3, smt=smt))
    assert not answer.cpus & {0, 8, 2, 10, 3}


def test_the_admin_may_list_isolated_and_housekeeping_cpus():
    topology = machine(nodes=1, l3s=1, cores=4, threads=1, isolated=(2, 3))
    assert cpus(place(host(topology, "0"), [], wish(3, cpus=frozenset({0, 2, 3})))) == "0,2-3"


def test_a_policys_nodes_are_a_limit():
    assert on(place(host(BIG), [], wish(4, nodes=frozenset({3})))) == {3}
    with pytest.raises(Refused, match=r"policy: nodes 3"):
        place(host(BIG), [], wish(17, nodes=frozenset({3})))


def test_guest_nodes_lie_on_the_host_nodes_that_the_admin_names():
    guests = (guest_node("0-3", 512, "2", "bind"), guest_node("4-7", 512, "1", "bind"))
    answer = place(host(BIG), [], wish(8, guest_nodes=guests))
    assert BIG.nodes_of(frozenset().union(*answer.vcpus[:4])) == {2}
    assert BIG.nodes_of(frozenset().union(*answer.vcpus[4:])) == {1}


def test_guest_nodes_that_do_not_fit_their_host_nodes_are_refused_with_the_numbers():
    guests = (guest_node("0-19", 512, "2", "bind"),)
    with pytest.raises(Refused, match="numa0 needs 20 CPUs and 512 MiB on node 2"):
        place(host(BIG), [], wish(20, guest_nodes=guests))


def test_unbound_guest_nodes_stay_whole_on_as_few_host_nodes_as_hold_them():
    guests = tuple(guest_node(f"{first}-{first + 5}", 512) for first in (0, 6, 12))
    answer = place(host(BIG), [], wish(18, guest_nodes=guests))
    parts = [BIG.nodes_of(frozenset().union(*answer.vcpus[first : first + 6])) for first in (0, 6, 12)]
    assert all(len(part) == 1 for part in parts)
    assert len(on(answer)) == 2


def test_a_guest_node_that_fits_nowhere_is_divided_and_that_is_said():
    answer = place(host(BIG), [], wish(24, guest_nodes=(guest_node("0-23", 512),)))
    assert any("divided" in line for line in answer.why)


# Rule 2: nodes


def test_one_node_is_chosen_where_one_suffices():
    taken = [held("0-3,32-35", 101), held("8-11,40-43", 102), held("16-19,48-51", 103)]
    assert on(place(host(BIG), taken, wish(12))) == {3}


def test_several_nodes_are_near_ones():
    far = {(a, b): 10 if a == b else 12 if a // 2 == b // 2 else 32 for a in range(4) for b in range(4)}
    topology = machine(nodes=4, l3s=2, cores=4, threads=2, distances=far)
    answer = place(host(topology), [held("0-3,32-35", 101)], wish(32))
    assert on(answer, topology) == {2, 3}


def test_vcpus_are_divided_evenly_over_nodes():
    answer = place(host(BIG), [], wish(24))
    counts = [len(answer.cpus & BIG.node_by_id[node].cpus) for node in on(answer)]
    assert counts == [12, 12]


def test_guest_sockets_are_not_torn_over_nodes():
    answer = place(host(BIG), [], wish(24, sockets=3, cores=8))
    for first in (0, 8, 16):
        assert len(BIG.nodes_of(frozenset().union(*answer.vcpus[first : first + 8]))) == 1


# Rule 3: devices


def test_the_node_of_the_devices_is_chosen():
    answer = place(host(BIG), [], wish(4, device_nodes=frozenset({2})))
    assert on(answer) == {2}
    assert any("devices are on node 2" in line for line in answer.why)


def test_fewer_nodes_count_more_than_the_devices_node():
    taken = [held("16-22,48-54", 101)]
    answer = place(host(BIG), taken, wish(4, device_nodes=frozenset({2})))
    assert len(on(answer)) == 1
    assert any(line.startswith("warning: passed-through devices are on node 2") for line in answer.why)


def test_the_nearest_node_serves_where_the_devices_node_is_full():
    near = {(a, b): 10 if a == b else 11 if {a, b} == {2, 3} else 30 for a in range(4) for b in range(4)}
    topology = machine(nodes=4, l3s=2, cores=4, threads=2, distances=near)
    answer = place(host(topology), [held("16-23,48-55")], wish(4, device_nodes=frozenset({2})))
    assert on(answer, topology) == {3}


# Rule 4: L3 groups


def test_a_group_is_not_left_where_one_holds_the_vm():
    taken = [held("0-1,32-33", 101), held("4-5,36-37", 102)]
    answer = place(host(BIG), taken, wish(8, nodes=frozenset({0, 1})))
    assert len(l3s_of(BIG, answer.cpus)) == 1


def test_of_several_groups_the_sets_that_fit_exactly_are_chosen():
    topology = machine(nodes=1, l3s=4, cores=8, threads=1)
    answer = place(host(topology), [held("8-11", 101)], wish(12))
    assert l3s_of(topology, answer.cpus) == {0, 1}, "8 of a whole group and the 4 left of the broken one"


def test_cpus_without_an_l3_are_one_group_of_their_node():
    topology = from_table((cpu, cpu, cpu // 4, None, 0) for cpu in range(8))
    assert len(topology.nodes_of(place(host(topology), [], wish(4)).cpus)) == 1


# Rule 5: SMT


def test_siblings_never_serve_two_dedicated_vms():
    topology = machine(nodes=1, l3s=1, cores=4, threads=2)
    first = place(host(topology), [], wish(3, 101))
    second = place(host(topology), [holding_of(first, wish(3, 101))], wish(3, 102))
    assert not cores_of(topology, first.cpus) & cores_of(topology, second.cpus)


def test_share_lets_two_vms_have_a_core_when_both_say_so():
    topology = machine(nodes=1, l3s=1, cores=2, threads=2)
    taken = [held("0-1", 101, smt=Smt.SHARE)]
    assert cpus(place(host(topology), taken, wish(2, smt=Smt.SHARE))) == "2-3"
    with pytest.raises(Refused):
        place(host(topology), taken, wish(2, smt=Smt.PREFER))
    with pytest.raises(Refused):
        place(host(topology), [held("0-1", 101)], wish(2, smt=Smt.SHARE))


def test_share_still_takes_cores_of_its_own_where_there_are_some():
    topology = machine(nodes=1, l3s=1, cores=4, threads=2)
    answer = place(host(topology), [held("0", 101, smt=Smt.SHARE)], wish(1, smt=Smt.SHARE))
    assert answer.cpus != {4}


def test_require_takes_whole_cores_only():
    topology = machine(nodes=1, l3s=1, cores=4, threads=2)
    assert len(cores_of(topology, place(host(topology, "0"), [], wish(6, smt=Smt.REQUIRE)).cpus)) == 3
    with pytest.raises(Refused, match="whole cores with siblings"):
        place(host(topology, "0,1"), [], wish(6, smt=Smt.REQUIRE))


def test_require_is_refused_where_no_core_has_siblings():
    with pytest.raises(Refused):
        place(host(machine(threads=1)), [], wish(2, smt=Smt.REQUIRE))


def test_isolate_takes_a_core_for_each_vcpu_and_nobody_gets_the_sibling():
    topology = machine(nodes=1, l3s=1, cores=4, threads=2)
    answer = place(host(topology), [], wish(3, 101, smt=Smt.ISOLATE))
    assert len(cores_of(topology, answer.cpus)) == 3
    shared = place(
        host(topology), [holding_of(answer, wish(3, 101, smt=Smt.ISOLATE))], wish(2, 102, VmClass.SHARED)
    )
    assert cpus(shared) == "3,7"


def test_neighbouring_vcpus_are_siblings():
    answer = place(host(BIG), [], wish(4))
    assert [next(iter(one)) for one in answer.vcpus] == [0, 32, 1, 33]


# Rule 6: kinds


HYBRID = from_table(
    [(cpu, cpu // 2, 0, 0, 0) for cpu in range(8)] + [(cpu, cpu, 0, 0, 0) for cpu in range(8, 16)],
    kinds={cpu: CpuKind.PERFORMANCE if cpu < 8 else CpuKind.EFFICIENCY for cpu in range(16)},
)


def test_kinds_are_not_mixed_where_one_kind_holds_the_vm():
    assert cpus(place(host(HYBRID), [held("0-3")], wish(6))) == "8-13"


def test_the_preferred_kind_comes_first():
    assert cpus(place(host(HYBRID), [], wish(2))) == "0-1"
    assert cpus(place(host(HYBRID), [], wish(2, prefer=Prefer.EFFICIENCY))) == "8-9"


def test_the_faster_kind_counts_more_than_a_core_of_ones_own_where_cores_may_be_shared():
    taken = [held("0,2,4,6", 101, smt=Smt.SHARE)]
    assert cpus(place(host(HYBRID), taken, wish(2, smt=Smt.SHARE))) == "1,3"


def test_mixing_is_said():
    answer = place(host(HYBRID), [], wish(12))
    assert any(line.startswith("warning: mixes performance and efficiency cores") for line in answer.why)


def test_cache_is_found_by_its_size():
    topology = machine(nodes=1, l3s=2, cores=4, threads=2, sizes={0: 32 << 20, 1: 96 << 20})
    assert l3s_of(topology, place(host(topology), [], wish(4, prefer=Prefer.CACHE)).cpus) == {1}
    full = place(host(topology), [held("4-7")], wish(4, prefer=Prefer.CACHE))
    assert l3s_of(topology, full.cpus) == {0}


def test_frequency_finds_the_favoured_cores():
    khz = {cpu: 5_400_000 if cpu in (2, 3) else 5_000_000 for cpu in range(8)}
    topology = machine(nodes=1, l3s=1, cores=8, threads=1, khz=khz)
    assert cpus(place(host(topology), [], wish(2, prefer=Prefer.FREQUENCY))) == "2-3"


# Rule 7: room


def test_a_broken_group_is_used_up_before_a_whole_one_is_broken():
    topology = machine(nodes=1, l3s=4, cores=8, threads=1)
    assert cpus(place(host(topology), [held("16-19", 101)], wish(4))) == "20-23"


def test_of_several_groups_a_broken_one_is_taken_rather_than_another_broken():
    # Groups of 6, 6 and 10 CPUs, 8 of the last free: 6+6 would leave less over, but break a whole one.
    topology = from_table((cpu, cpu, 0, 0 if cpu < 6 else 1 if cpu < 12 else 2, 0) for cpu in range(22))
    answer = place(host(topology), [held("12-13", 101)], wish(11))
    assert l3s_of(topology, answer.cpus) == {0, 2}
    assert answer.cpus >= {0, 1, 2, 3, 4, 5}


def test_nodes_are_filled_alike():
    first = place(host(BIG), [], wish(8, 101))
    second = place(host(BIG), [holding_of(first, wish(8, 101))], wish(8, 102))
    assert on(first) != on(second)


def test_cpus_where_no_shared_vm_lives_come_first():
    topology = machine(nodes=1, l3s=4, cores=4, threads=1)
    shared = held("0-3", 101, VmClass.SHARED)
    assert not place(host(topology), [shared], wish(4)).cpus & shared.cpus


# Rule 8: stability


def test_a_vm_that_comes_back_gets_what_it_had():
    first = place(host(BIG), [], wish(8, 101))
    taken = [holding_of(first, wish(8, 101))]
    second = place(host(BIG), taken, wish(8, 102))
    again = place(host(BIG), [], wish(8, 102, previous=second))
    assert again.vcpus == second.vcpus
    assert again.why[1].startswith("the same CPUs as when it last ran")


def test_what_it_had_is_given_up_for_something_better():
    spread = place(host(BIG), [held("0-5,32-37", 101)], wish(4, nodes=frozenset({0})))
    apart = replace(spread, vcpus=tuple(frozenset((cpu,)) for cpu in (0, 32, 8, 40)))
    assert len(on(place(host(BIG), [], wish(4, previous=apart)))) == 1


def test_what_another_vm_has_now_is_not_given_back():
    before = place(host(BIG), [], wish(4, 101))
    answer = place(host(BIG), [holding_of(before, wish(4))], wish(4, 101, previous=before))
    assert answer.cpus == before.cpus, "its own holding does not stand in its way"
    taken = [holding_of(before, wish(4))._replace(vmid=102)]
    assert not place(host(BIG), taken, wish(4, 101, previous=before)).cpus & before.cpus


# Living with the other classes


def test_pinned_cpus_are_not_dedicated_to_another():
    topology = machine(nodes=1, l3s=1, cores=4, threads=1)
    pinned = held("0-1", 101, VmClass.PINNED)
    assert cpus(place(host(topology), [pinned], wish(2))) == "2-3"


def test_where_the_admin_lets_a_vm_float_is_dedicated_last_and_with_a_warning():
    topology = machine(nodes=1, l3s=1, cores=4, threads=1)
    floating = held("0-1", 101, VmClass.CONSTRAINED)
    assert cpus(place(host(topology), [floating], wish(2))) == "2-3"
    answer = place(host(topology), [floating], wish(3))
    assert any("affinity lets VM 101 run on some of these CPUs" in line for line in answer.why)


def test_shared_vms_keep_at_least_one_cpu():
    topology = machine(nodes=1, l3s=1, cores=4, threads=1)
    shared = held("0-3", 101, VmClass.SHARED)
    assert place(host(topology), [shared], wish(3))
    with pytest.raises(Refused, match="would leave none of the 4 free ones to shared VM 101"):
        place(host(topology), [shared], wish(4))
