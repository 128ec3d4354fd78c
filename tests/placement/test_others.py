"""Who else is on the node, what fences leave, where memory is bound, and CPUs the kernel does not balance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.host import cpulist
from pxsched.host.topology import CpuKind
from pxsched.placement.housekeeping import host_of
from pxsched.placement.request import Foreign, Refused, Request, VmClass
from pxsched.placement.search import place
from pxsched.settings.policy import NodeSettings, Smt
from pxsched.value import replace

from .machines import captured, from_table, guest_node, held, holding_of, host, l3s_of, machine, wish

TWO_NODES = machine(nodes=2, l3s=2, cores=4, threads=2)  # node 0: 0-7,16-23; node 1: 8-15,24-31
EIGHT_CORES = machine(nodes=1, l3s=1, cores=8, threads=2)  # siblings n, n+8


def foreign(name: str, cpus: str, load: float | None = None) -> Foreign:
    return Foreign(name, cpulist.parse(cpus), load)


def shared(vcpus: int, vmid: int = 100, **more) -> Request:
    return wish(vcpus, vmid, VmClass.SHARED, **more)


def on(answer, topology=TWO_NODES) -> frozenset[int]:
    return topology.nodes_of(answer.cpus)


# Who else is there


def test_exclusive_cpus_avoid_those_that_somebody_else_is_confined_to_and_say_who():
    others = (foreign("VM 200", "1,9,2,10"), foreign("VM 201", "3,11"))
    answer = place(host(EIGHT_CORES, "0,8", foreign=others), [], wish(4))
    assert answer.cpus <= {4, 12, 5, 13, 6, 14, 7, 15}
    assert "keeps off CPUs 1-3,9-11: VM 200 and VM 201 are confined there" in answer.why


def test_siblings_of_the_cpus_somebody_is_confined_to_are_avoided_while_there_are_others():
    others = (foreign("container 101", "1-3"),)
    assert place(host(EIGHT_CORES, "0,8", foreign=others), [], wish(8)).cpus == {4, 5, 6, 7, 12, 13, 14, 15}
    answer = place(host(EIGHT_CORES, "0,8", foreign=others), [], wish(10))
    assert not answer.cpus & {1, 2, 3}


def test_who_cannot_be_avoided_is_named_in_a_warning():
    others = (foreign("VM 200", "1,9,2,10"), foreign("container 300", "5"))
    answer = place(host(EIGHT_CORES, "0,8", foreign=others), [], wish(14))
    line = next(line for line in answer.why if "confined" in line)
    assert line.startswith("warning: VM 200 and container 300 are confined to some of these CPUs")


@pytest.mark.parametrize(("vcpus", "shared_with_others"), [(10, 1), (12, 3), (14, 5)])
def test_of_cpus_that_others_are_confined_to_no_more_are_taken_than_are_lacking(vcpus, shared_with_others):
    confined = cpulist.parse("1-2,5,9-10")
    others = (foreign("VM 200", "1,9,2,10"), foreign("container 300", "5"))
    answer = place(host(EIGHT_CORES, "0,8", foreign=others), [], wish(vcpus))
    assert len(answer.cpus & confined) == shared_with_others


def test_of_cpus_that_an_affinity_lets_a_vm_float_on_no_more_are_taken_than_are_lacking():
    lists = wish(2, 200, VmClass.CONSTRAINED, affinity=(1, 9, 2, 10, 3, 11))
    floats = holding_of(place(host(EIGHT_CORES), [], lists), lists)
    answer = place(host(EIGHT_CORES, "0,8"), [floats], wish(10))
    assert answer.cpus == cpulist.parse("4-7,12-15") | {1, 9}


def test_who_may_run_anywhere_is_in_nobodys_way():
    others = (foreign("VM 200", "0-15", 3.0),)
    answer = place(host(EIGHT_CORES, "0,8", foreign=others), [], wish(4))
    assert not any("confined" in line for line in answer.why)


def test_who_is_kept_off_kernel_isolated_cpus_only_is_not_called_confined():
    topology = machine(nodes=1, l3s=1, cores=8, threads=2, isolated=(6, 7, 14, 15))
    others = (foreign("VM 200", "0-5,8-13"), foreign("VM 201", "1,9"))
    answer = place(host(topology, "0,8", foreign=others), [], wish(4))
    assert not answer.cpus & {1, 9}
    assert any("VM 201 is confined there" in line for line in answer.why)
    assert not any("VM 200" in line for line in answer.why)


def test_homes_count_what_others_use():
    loud = (foreign("VM 200", "0-3,16-19", 6.0), foreign("container 101", "4-7,20-23", 5.0))
    answer = place(host(TWO_NODES, foreign=loud), [], shared(4))
    assert on(answer) == {1}
    everywhere = place(host(TWO_NODES, foreign=loud), [], shared(4, nodes=frozenset({0})))
    assert l3s_of(TWO_NODES, everywhere.cpus) == {1}
    assert any(line.startswith("shares it with container 101, demand") for line in everywhere.why)


def test_homes_count_cpu_time_that_belongs_to_nobody():
    busy = dict.fromkeys((0, 1, 2, 3, 8, 9, 12), 0.9)
    assert l3s_of(TWO_NODES, place(host(TWO_NODES, busy=busy), [], shared(4)).cpus) == {1}


def test_somebody_unmeasured_who_is_confined_counts_as_a_vm_of_that_size():
    others = (foreign("VM 200", "0-3,16-19"),)
    assert l3s_of(TWO_NODES, place(host(TWO_NODES, foreign=others), [], shared(4)).cpus) != {0}


# Fences


def test_no_class_is_placed_outside_of_a_fence_that_has_room():
    inside = cpulist.parse("8-15,24-31")
    for vm_class in (VmClass.SHARED, VmClass.DEDICATED):
        fenced = wish(4, vm_class=vm_class, fence=inside, fence_name="qemu.slice")
        answer = place(host(TWO_NODES), [], fenced)
        assert answer.cpus <= inside
        assert "qemu.slice lets it have 8-15,24-31" in answer.why


def test_a_fence_is_named_where_it_is_the_reason():
    fence = {"fence": cpulist.parse("8-9"), "fence_name": "AllowedCPUs of qemu.slice"}
    with pytest.raises(Refused, match=r"AllowedCPUs of qemu\.slice lets it have 8-9"):
        place(host(TWO_NODES), [], wish(4, **fence))
    with pytest.raises(Refused, match=r"AllowedCPUs of qemu\.slice lets it have 8-9"):
        place(host(TWO_NODES), [held("8-9")], shared(4, **fence))
    few = place(host(TWO_NODES), [], shared(4, **fence))
    assert few.cpus == {8, 9}
    assert "warning: 4 vCPUs share 2 CPUs; AllowedCPUs of qemu.slice lets it have 8-9" in few.why


@pytest.mark.parametrize(
    ("fence", "line"),
    [
        ("4-5", "warning: 4 vCPUs share 2 CPUs; qemu.slice lets it have 4-5"),
        ("5", "warning: 4 vCPUs share 1 CPU; qemu.slice lets it have 5"),
        ("4-7", "qemu.slice lets it have 4-7"),
    ],
)
def test_a_fence_around_a_shared_vm_is_named_once(fence, line):
    why = place(host(TWO_NODES), [], shared(4, fence=cpulist.parse(fence), fence_name="qemu.slice")).why
    assert [said for said in why if "qemu.slice" in said] == [line]


@pytest.mark.parametrize(
    ("vcpus", "more", "holdings", "words"),
    [
        (40, {}, [], "40 vCPUs share 32 CPUs: it may use no other"),
        (4, {"cpus": frozenset((4, 5))}, [], "4 vCPUs share 2 CPUs: it may use no other"),
        (32, {}, [held("4-7")], "32 vCPUs share 28 CPUs; other VMs hold the rest"),
        (4, {"fence": cpulist.parse("4-7"), "fence_name": "F"}, [held("4-6")], "; other VMs hold the rest"),
    ],
)
def test_why_a_home_is_too_small_is_said(vcpus, more, holdings, words):
    why = place(host(TWO_NODES), holdings, shared(vcpus, **more)).why
    assert any(line.startswith("warning: ") and line.endswith(words) for line in why)
    assert len([line for line in why if "F lets it have" in line]) == ("fence" in more)


def test_an_affinity_that_a_fence_narrows_is_said():
    fence = {"fence": cpulist.parse("0-3"), "fence_name": "qemu.slice"}
    floating = wish(2, vm_class=VmClass.CONSTRAINED, affinity=(2, 3, 4), **fence)
    answer = place(host(TWO_NODES), [], floating)
    assert answer.cpus == {2, 3}
    assert "warning: affinity lists CPU 4, outside of what qemu.slice lets it have; left out" in answer.why
    pins = wish(2, vm_class=VmClass.PINNED, affinity=(3, 4), **fence)
    assert any(
        line == "warning: affinity pins to CPU 4, outside of what qemu.slice lets it have"
        for line in place(host(TWO_NODES), [], pins).why
    )
    with pytest.raises(Refused, match=r"only CPUs outside of what qemu\.slice lets it have: 5-6"):
        place(host(TWO_NODES), [], wish(1, vm_class=VmClass.CONSTRAINED, affinity=(5, 6), **fence))


# Memory that is bound


def test_a_shared_vm_lives_beside_the_memory_its_guest_node_is_bound_to():
    guests = (guest_node("0-3", 512, "1", "bind"),)
    for load in (0.0, 16.0):
        crowd = [held("8-15,24-31", 101, VmClass.SHARED, load=load)]
        answer = place(host(TWO_NODES), crowd, shared(4, guest_nodes=guests))
        assert (on(answer), answer.nodes) == ({1}, {1})


def test_each_vcpu_of_a_shared_vm_floats_beside_the_memory_of_its_guest_node():
    guests = (guest_node("0-1", 512, "0", "bind"), guest_node("2-3", 512, "1", "bind"))
    answer = place(host(TWO_NODES), [], shared(4, guest_nodes=guests))
    assert [TWO_NODES.nodes_of(cpus) for cpus in answer.vcpus] == [{0}, {0}, {1}, {1}]
    assert answer.nodes == {0, 1}


def test_a_constrained_vm_keeps_to_what_of_its_list_is_beside_its_memory():
    guests = (guest_node("0-1", 512, "0", "bind"), guest_node("2-3", 512, "1", "bind"))
    request = wish(4, vm_class=VmClass.CONSTRAINED, affinity=tuple(range(4, 12)), guest_nodes=guests)
    answer = place(host(TWO_NODES), [], request)
    assert [cpulist.format(cpus) for cpus in answer.vcpus] == ["4-7", "4-7", "8-11", "8-11"]


@pytest.mark.parametrize(("near", "each"), [("8", "4-7,8"), ("8-9", "8-9"), ("8-10", "8-10")])
def test_a_list_with_fewer_cpus_beside_the_memory_than_vcpus_is_kept_whole(near, each):
    guests = (guest_node("0-1", 512, "1", "bind"),)
    listed = tuple(cpulist.parse(f"4-7,{near}"))
    request = wish(2, vm_class=VmClass.CONSTRAINED, affinity=listed, guest_nodes=guests)
    assert place(host(TWO_NODES), [], request).vcpus == (cpulist.parse(each),) * 2


@pytest.mark.parametrize(
    ("bound", "nodes"),
    [
        ([("1", "bind")], {1}),
        ([("1", "interleave")], {1}),
        ([("1", "preferred")], {0, 1}),
        ([("1", "bind"), ("", "")], {0, 1}),
        ([("7", "bind")], {0}),
    ],
)
def test_memory_that_is_bound_lies_nowhere_else(bound, nodes):
    guests = tuple(guest_node(f"{i}", 512, where, policy) for i, (where, policy) in enumerate(bound))
    for vm_class, affinity in (VmClass.PINNED, (4, 5)), (VmClass.CONSTRAINED, (4, 5, 6)):
        request = wish(2, vm_class=vm_class, affinity=affinity, guest_nodes=guests)
        assert place(host(TWO_NODES), [], request).nodes == nodes


@pytest.mark.parametrize(("listed", "words"), [((4,), "share 1 CPU"), ((4, 5), "share 2 CPUs")])
def test_a_list_shorter_than_the_vm_is_said_to_be_shared(listed, words):
    request = wish(3, vm_class=VmClass.CONSTRAINED, affinity=listed)
    assert f"warning: 3 vCPUs {words}" in place(host(TWO_NODES), [], request).why


def test_an_affinity_away_from_the_bound_memory_is_obeyed_and_said():
    guests = (guest_node("0-3", 512, "1", "bind"),)
    request = wish(4, vm_class=VmClass.CONSTRAINED, affinity=(0, 1, 2, 3, 4), guest_nodes=guests)
    answer = place(host(TWO_NODES), [], request)
    assert answer.cpus == {0, 1, 2, 3, 4}
    assert "warning: numa0 binds memory to node 1, but affinity keeps its vCPUs on node 0" in answer.why
    pins = replace(request, vm_class=VmClass.PINNED, affinity=(0, 1, 2, 3))
    assert any("numa0 binds memory to node 1, but" in line for line in place(host(TWO_NODES), [], pins).why)


def test_a_list_of_the_admins_away_from_the_bound_memory_is_refused():
    guests = (guest_node("0-3", 512, "1", "bind"),)
    with pytest.raises(Refused, match=r"memory to node 1, where it may use no CPU: CPUs 0-3 .*policy"):
        place(host(TWO_NODES), [], shared(4, guest_nodes=guests, cpus=frozenset(range(4))))


@pytest.mark.parametrize("vm_class", VmClass)
def test_a_binding_to_a_node_that_is_not_there_is_said_whatever_the_class(vm_class):
    guests = (guest_node("0-1", 512, "3", "bind"),)
    affinity = (0, 1) if vm_class in (VmClass.PINNED, VmClass.CONSTRAINED) else ()
    request = wish(2, vm_class=vm_class, affinity=affinity, guest_nodes=guests)
    words = "numa0 binds memory to node 3, which this machine does not have"
    if affinity:
        assert any(line.startswith(f"warning: {words}") for line in place(host(TWO_NODES), [], request).why)
    else:
        with pytest.raises(Refused, match=words):
            place(host(TWO_NODES), [], request)


def test_bound_memory_that_is_not_there_is_refused_with_the_numbers():
    guests = (guest_node("0-3", 4096, "1", "bind"),)
    with pytest.raises(Refused, match=r"numa0 needs 4 CPUs and 4096 MiB on node 1.*node 1 has 100 MiB free"):
        place(host(TWO_NODES, free_mib={0: 9000, 1: 100}), [], shared(4, guest_nodes=guests))


# Kernel-isolated CPUs


ISOLATED = machine(nodes=1, l3s=2, cores=6, threads=1, isolated=range(6, 12))


def test_vcpus_that_would_float_on_isolated_cpus_get_one_each_where_these_suffice():
    floating = wish(4, 100, VmClass.CONSTRAINED, affinity=tuple(range(6, 12)))
    first = place(host(ISOLATED, "0"), [], floating)
    assert [sorted(cpus) for cpus in first.vcpus] == [[6], [7], [8], [9]]
    assert first.emulator == {0}
    assert any("VM 100 is put on one of its own" in line and "isolcpus" in line for line in first.why)
    beside = replace(floating, vmid=101, vcpus=2)
    second = place(host(ISOLATED, "0"), [holding_of(first, floating)], beside)
    assert second.cpus == {10, 11}, "the ones that nobody uses come first"


def test_a_shared_vm_that_may_use_isolated_cpus_only_gets_one_for_each_vcpu():
    answer = place(host(ISOLATED, "0"), [], shared(3, cpus=frozenset(range(6, 12))))
    assert [len(cpus) for cpus in answer.vcpus] == [1, 1, 1]
    assert len(answer.cpus) == 3 and answer.cpus <= set(range(6, 12))
    assert answer.why[0].startswith("3 vCPUs, each on one of CPUs 6-11: ")
    assert answer.emulator == {0}


def test_too_few_isolated_cpus_are_warned_about_with_the_vms_name_and_what_to_do():
    floating = wish(8, 100, VmClass.CONSTRAINED, affinity=tuple(range(6, 12)))
    why = place(host(ISOLATED, "0"), [], floating).why
    assert any(line.startswith("warning: CPUs 6-11 are isolated") and "VM 100" in line for line in why)
    assert any('class = "dedicated"' in line for line in why)


def test_isolated_cpus_that_a_vm_is_pinned_to_one_by_one_are_no_reason_to_warn():
    pins = wish(2, vm_class=VmClass.PINNED, affinity=(6, 7))
    assert not any("isolcpus" in line for line in place(host(ISOLATED, "0"), [], pins).why)


# Kinds and nodes of homes


HYBRID = from_table(
    [(cpu, cpu // 2, 0, 0, 0) for cpu in range(16)] + [(cpu, cpu, 0, 0, 0) for cpu in range(16, 32)],
    kinds={cpu: CpuKind.PERFORMANCE if cpu < 16 else CpuKind.EFFICIENCY for cpu in range(32)},
)


def started(topology, count: int, vcpus: int, **more):
    """Shared VMs one after the other, on a machine where nobody else is."""
    holdings = []
    for vmid in range(100, 100 + count):
        request = shared(vcpus, vmid, **more)
        holdings.append(holding_of(place(host(topology), holdings, request), request))
    return holdings


def test_the_faster_kind_does_not_outrank_a_crowd():
    homes = [min(holding.cpus) for holding in started(HYBRID, 12, 4)]
    assert homes[:4] == [0] * 4, "there is room for four"
    assert homes.count(0) <= 8 and homes.count(16) >= 4


def test_homes_are_spread_over_nodes():
    topology = machine(nodes=2, l3s=8, cores=4, threads=2)
    nodes = [min(topology.nodes_of(holding.cpus)) for holding in started(topology, 8, 4)]
    assert nodes.count(0) == nodes.count(1) == 4


def test_of_nodes_as_loaded_as_each_other_the_one_with_more_free_memory_wins():
    assert on(place(host(TWO_NODES, free_mib={0: 8000, 1: 9000}), [], shared(4))) == {1}


def test_smt_that_is_off_is_said_to_be_off():
    topology = machine(nodes=1, l3s=1, cores=8, threads=1)
    with pytest.raises(Refused, match='smt = "require", but no core has siblings online: SMT is off'):
        place(host(topology), [held("0-7")], wish(4, smt=Smt.REQUIRE))


# On all captured machines


@pytest.fixture(scope="session")
def names(topologies) -> list[str]:
    return sorted(path.name for path in topologies.iterdir() if (path / "root").is_dir())


def some(data, cpus, *, least: int = 0) -> frozenset[int]:
    return frozenset(data.draw(st.lists(st.sampled_from(sorted(cpus)), min_size=least, max_size=12)))


@given(data=st.data())
def test_others_and_fences_are_respected_on_every_machine(topologies, names, data):
    topology = captured(topologies, data.draw(st.sampled_from(names)))
    there = host_of(topology, NodeSettings())
    others = tuple(
        Foreign(
            f"VM {900 + number}",
            some(data, topology.online, least=1),
            data.draw(st.sampled_from([None, 1.5])),
        )
        for number in range(data.draw(st.integers(0, 4)))
    )
    fence = data.draw(st.sampled_from([None, topology.online - some(data, topology.online)]))
    request = Request(
        100,
        data.draw(st.integers(1, 8)),
        0,
        data.draw(st.sampled_from([VmClass.DEDICATED, VmClass.SHARED])),
        smt=data.draw(st.sampled_from(Smt)),
        fence=fence,
        fence_name="qemu.slice",
    )
    busy = dict.fromkeys(some(data, topology.online), 0.5)
    try:
        answer = place(replace(there, foreign=others, busy=busy), [], request)
    except Refused as refused:
        assert fence is None or "qemu.slice lets it have" in refused.message or "smt" in refused.message
        if fence is None and request.vm_class is VmClass.DEDICATED:
            with pytest.raises(Refused):
                place(there, [], request)
        return
    inside = topology.online if fence is None else fence
    assert answer.cpus <= inside
    if request.vm_class is not VmClass.DEDICATED:
        return
    confined = frozenset().union(*(one.cpus for one in others if not one.cpus >= topology.online))
    if answer.cpus & confined:
        named = [line for line in answer.why if line.startswith("warning:") and "confined" in line]
        free = inside - confined
        assert named or not any(one.cpus < inside for one in others if one.cpus & answer.cpus)
        if free:
            with pytest.raises(Refused):
                place(there, [], replace(request, cpus=free & _open(there), fence=None))


def _open(there):
    return there.topology.online - there.housekeeping - there.topology.isolated


def test_a_refusal_names_what_of_a_list_is_away():
    topology = machine(nodes=1, l3s=1, cores=8, threads=1)
    topology = replace(topology, cpus={cpu: one for cpu, one in topology.cpus.items() if cpu != 4})
    listed = wish(3, affinity=(0, 4, 5), cpus=frozenset((0, 4, 5)))
    with pytest.raises(Refused, match=r"of 2 CPUs it may use \(affinity 0,4-5; offline or absent 4\)$"):
        place(host(topology), [], listed)


def test_siblings_that_a_list_or_a_fence_leaves_out_are_the_reason_and_no_lack_of_room():
    half = frozenset(range(1, 8))
    for limits in ({"cpus": half}, {"fence": half, "fence_name": "qemu.slice"}):
        with pytest.raises(
            Refused, match="no core is among CPUs 1-7 with all its siblings: that is all it may"
        ):
            place(host(EIGHT_CORES), [], wish(4, smt=Smt.REQUIRE, **limits))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"nodes": frozenset((3,))}, r"0 may be used \(policy: nodes 3\)$"),
        ({"cpus": frozenset((90,))}, r"0 may be used \(policy: cpus 90; offline or absent 90\)$"),
        ({"fence": frozenset((90,)), "fence_name": "F"}, r"0 may be used, .*; F lets it have 90$"),
    ],
)
def test_which_list_leaves_a_shared_vm_without_a_cpu_is_said(limits, words):
    with pytest.raises(Refused, match=words):
        place(host(TWO_NODES), [], shared(2, **limits))
