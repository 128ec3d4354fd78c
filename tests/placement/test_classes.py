"""Pinned and constrained VMs, shared homes, housekeeping and emulator threads."""

import pytest

from pxsched.host import cpulist
from pxsched.placement.housekeeping import host_of, housekeeping
from pxsched.placement.request import Host, Refused, VmClass
from pxsched.placement.search import place, rehome
from pxsched.settings.policy import NodeSettings
from pxsched.value import replace

from .machines import held, holding_of, host, l3s_of, machine, wish

TWO_NODES = machine(nodes=2, l3s=2, cores=4, threads=2)  # node 0: 0-7,16-23


def pinned(affinity: str, vcpus: int, **more):
    return wish(vcpus, vm_class=VmClass.PINNED, affinity=cpulist.parse_ordered(affinity), **more)


def test_vcpu_i_of_a_pinned_vm_gets_entry_i_as_written():
    answer = place(host(TWO_NODES), [], pinned("5-6,16,0", 4))
    assert answer.vcpus == tuple(frozenset((cpu,)) for cpu in (5, 6, 16, 0))
    assert answer.nodes == {0}


def test_a_pin_to_an_absent_or_offline_cpu_is_refused():
    topology = machine(nodes=1, l3s=1, cores=4, threads=1, offline=(2,))
    with pytest.raises(Refused, match="CPUs 2,77, offline or absent"):
        place(host(topology), [], pinned("1,2,77", 3))


def test_a_cpu_listed_twice_is_obeyed_with_a_warning():
    answer = place(host(TWO_NODES), [], pinned("3,3", 2))
    assert answer.vcpus == (frozenset({3}), frozenset({3}))
    assert any("CPU 3 more than once" in line for line in answer.why)


def test_two_vms_pinned_to_one_cpu_are_obeyed_with_a_warning():
    answer = place(host(TWO_NODES), [held("3", 105, VmClass.PINNED)], pinned("3,4", 2))
    assert any("CPU 3 is also held by VM 105 (pinned)" in line for line in answer.why)


def test_a_constrained_vm_floats_in_what_is_online_of_its_list():
    topology = machine(nodes=2, l3s=1, cores=4, threads=1, offline=(2,))
    answer = place(
        host(topology, "0"), [], wish(6, vm_class=VmClass.CONSTRAINED, affinity=(0, 1, 2, 5), memory_mib=1)
    )
    assert answer.vcpus == (frozenset({0, 1, 5}),) * 6
    assert answer.emulator == {0, 1, 5}
    assert any("CPU 2, offline" in line for line in answer.why)
    assert any("6 vCPUs share 3 CPUs" in line for line in answer.why)


def test_a_constrained_vm_without_any_cpu_is_refused():
    with pytest.raises(Refused, match="offline or absent: 77"):
        place(host(TWO_NODES), [], wish(1, vm_class=VmClass.CONSTRAINED, affinity=(77,)))


def test_emulator_threads_run_on_the_housekeeping_cpus_of_the_vms_node():
    kept = host(TWO_NODES, "0,16,8,24")
    assert place(kept, [], pinned("9,10", 2)).emulator == {8, 24}
    assert place(kept, [], wish(2, nodes=frozenset({1}))).emulator == {8, 24}


def test_emulator_threads_run_on_idle_cpus_of_the_node_where_there_is_no_housekeeping():
    others = {8, *range(11, 16), 24, *range(27, 32)}
    assert place(host(TWO_NODES), [], pinned("9,10", 2)).emulator == others
    owned = [held("8,11-15,24-28", 105)]
    answer = place(host(TWO_NODES), owned, pinned("9,10", 2))
    assert answer.emulator == {29, 30, 31}
    assert not any("emulator" in line for line in answer.why)


def test_emulator_threads_never_go_onto_the_vms_own_housekeeping_core_while_others_are_idle():
    first_core_is_the_vms = pinned("8,24,9,25", 4)
    answer = place(host_of(TWO_NODES, NodeSettings()), [], first_core_is_the_vms)
    assert answer.emulator == {*range(10, 16), *range(26, 32)}


def test_emulator_threads_run_on_all_the_vms_own_cpus_where_others_hold_the_rest_and_that_is_said():
    answer = place(host(TWO_NODES), [held("8,11-15,24-31", 105)], pinned("9,10", 2))
    assert answer.emulator == {9, 10}
    assert any(line.startswith("warning: its emulator and I/O threads") for line in answer.why)


def test_housekeeping_is_the_first_core_of_each_node_unless_the_admin_says_otherwise():
    assert housekeeping(TWO_NODES, NodeSettings()) == {0, 16, 8, 24}
    assert housekeeping(TWO_NODES, NodeSettings(housekeeping="2-3,99")) == {2, 3}
    assert host_of(TWO_NODES, NodeSettings()).housekeeping == {0, 16, 8, 24}


def test_a_machine_of_one_core_has_no_housekeeping():
    assert housekeeping(machine(nodes=1, l3s=1, cores=1, threads=2), NodeSettings()) == frozenset()


def test_offline_first_cpus_are_no_housekeeping():
    topology = machine(nodes=1, l3s=1, cores=4, threads=1, offline=(0,))
    assert housekeeping(topology, NodeSettings()) == {1}


def test_a_shared_vm_gets_the_smallest_home_that_holds_it():
    answer = place(host(TWO_NODES), [], wish(6, vm_class=VmClass.SHARED))
    assert l3s_of(TWO_NODES, answer.cpus) == {0}
    assert len(set(answer.vcpus)) == 1
    assert TWO_NODES.nodes_of(place(host(TWO_NODES), [], wish(12, vm_class=VmClass.SHARED)).cpus) == {0}
    assert len(place(host(TWO_NODES), [], wish(20, vm_class=VmClass.SHARED)).cpus) == 32


def test_a_shared_vm_goes_where_least_is_wanted():
    crowd = [
        held("0-3,16-19", 101, VmClass.SHARED, load=6.0),
        held("4-7,20-23", 102, VmClass.SHARED, load=1.0),
    ]
    busy = [
        held("8-11,24-27", 103, VmClass.SHARED, load=5.0),
        held("12-15,28-31", 104, VmClass.SHARED, load=5.0),
    ]
    assert l3s_of(TWO_NODES, place(host(TWO_NODES), crowd + busy, wish(4, vm_class=VmClass.SHARED)).cpus) == {
        1
    }


def test_heavier_neighbours_count_more():
    heavy = held("0-3,16-19", 101, VmClass.SHARED, load=4.0, weight=1000)
    light = [
        held(cpus, 102 + i, VmClass.SHARED, load=4.5, weight=10)
        for i, cpus in enumerate(("4-7,20-23", "8-11,24-27", "12-15,28-31"))
    ]
    answer = place(host(TWO_NODES), [heavy, *light], wish(4, vm_class=VmClass.SHARED))
    assert 0 not in l3s_of(TWO_NODES, answer.cpus)


def test_a_shared_home_is_near_the_devices_and_the_memory():
    assert place(
        host(TWO_NODES), [], wish(2, vm_class=VmClass.SHARED, device_nodes=frozenset({1}))
    ).nodes == {1}
    assert place(host(TWO_NODES), [], wish(2, vm_class=VmClass.SHARED, resident=frozenset({1}))).nodes == {1}


def test_a_shared_vm_keeps_off_dedicated_cpus():
    answer = place(host(TWO_NODES), [held("0-3,16-19")], wish(4, vm_class=VmClass.SHARED))
    assert not answer.cpus & {0, 1, 2, 3, 16, 17, 18, 19}


def test_a_shared_vm_with_no_cpu_left_is_refused():
    topology = machine(nodes=1, l3s=1, cores=2, threads=1)
    with pytest.raises(Refused, match="no CPU is left"):
        place(host(topology), [held("0-1")], wish(1, vm_class=VmClass.SHARED))


def test_a_home_that_lost_cpus_is_moved_and_any_other_is_not():
    request = wish(4, 101, VmClass.SHARED)
    home = place(host(TWO_NODES), [], request)
    running = replace(request, previous=home)
    assert rehome(host(TWO_NODES), [holding_of(home, request)], running) is None
    newcomer = held("0-1", 102)
    moved = rehome(host(TWO_NODES), [holding_of(home, request), newcomer], running)
    assert moved is not None and not moved.cpus & newcomer.cpus


def test_a_vm_without_vcpus_is_refused():
    with pytest.raises(Refused):
        place(host(TWO_NODES), [], wish(0))


def test_listed_housekeeping_keeps_shared_vms_off_and_the_default_does_not():
    topology = machine(nodes=1, l3s=1, cores=2, threads=1)
    listed = host_of(topology, NodeSettings(housekeeping="0"))
    assert place(listed, [], wish(1, vm_class=VmClass.SHARED)).cpus == {1}
    default = host_of(topology, NodeSettings())
    assert place(default, [], wish(2, vm_class=VmClass.SHARED)).cpus == {0, 1}
    assert isinstance(default, Host)
