"""The balancer beside work that is not its own: VMs that are not opted in, containers, tasks of the host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.models.cpu import Guest, Host, machine
from pxsched.balance import cpu, samples
from pxsched.balance.background import Known, unexplained
from pxsched.balance.homes import Machine
from pxsched.balance.sharing import Claim, cpus_of, mask_of, shares
from pxsched.host.topology import CpuKind
from pxsched.settings.policy import NodeSettings
from pxsched.value import replace


def on(vmid, cpus, *loads, **more):
    return Guest(vmid, loads or (1.0,), frozenset(cpus), **more)


def passes(host, number):
    for _ in range(number):
        host.tick()
    return host


@pytest.mark.parametrize(
    "other", [{"hidden": True}, {"movable": False}], ids=["a host task", "a VM not opted in"]
)
def test_a_vm_leaves_a_cpu_that_somebody_else_burns(other):
    host = passes(Host(machine(), [on(100, {0}), on(900, {0}, **other)]), 3)
    assert host.guests[100].home != {0}
    assert host.guests[900].home == {0}
    moved = sum(map(len, host.moves))
    passes(host, 10)
    assert sum(map(len, host.moves)) == moved, "and it rests"


def test_a_vm_leaves_a_cache_whose_cpus_are_burnt():
    topology = machine(caches=2)
    burning = [on(900 + cpu, {cpu}, hidden=True) for cpu in range(4)]
    host = passes(Host(topology, [on(100, range(4), 1.0, 1.0), *burning]), 3)
    assert host.guests[100].home == frozenset(range(4, 8))


def test_nobody_moves_to_where_others_work_as_much():
    everywhere = [on(900 + cpu, {cpu}, hidden=True) for cpu in range(4)]
    host = passes(Host(machine(), [on(100, {0}), *everywhere]), 10)
    assert sum(map(len, host.moves)) == 0


def test_of_two_idle_looking_homes_the_one_without_a_busy_container_is_taken():
    topology = machine(caches=3)
    container = on(500, range(4, 8), 1.0, 1.0, 1.0, 1.0, movable=False)
    crowd = [on(100 + number, range(4), 1.0, 1.0, 1.0) for number in range(2)]
    host = passes(Host(topology, [*crowd, container]), 4)
    homes = [host.guests[vmid].home for vmid in (100, 101)]
    assert sorted(map(min, homes)) == [0, 8]


@pytest.mark.parametrize(("burnt", "moves"), [(0, True), (4, False)], ids=["here", "there"])
def test_where_bursts_collide_the_work_of_others_counts_as_much_as_ours(burnt, moves):
    def vm(vmid, first, run, wait=0.0):
        rate = samples.Rate(run, wait, run + wait)
        use = samples.Use(vmid, 1, 10.0, (), rate)
        return cpu.Vm(vmid, (frozenset(range(first, first + 4)),), use, movable=True)

    topology = machine(caches=2)
    outcome = cpu.rebalance(
        [vm(100, 0, 1.2, 0.2), vm(101, 0, 0.5), vm(102, 4, 0.8)],
        topology,
        topology.online,
        cpu.State(),
        NodeSettings(),
        10.0,
        busy={burnt: 0.8},
    )
    assert outcome.outstanding == (100,)
    assert bool(outcome.moves) == moves


def test_what_somebody_else_uses_is_not_dealt_out():
    assert shares([Claim(1.0, 1, 0b1)], {0: 0.4}) == [pytest.approx(0.6)]
    assert shares([Claim(1.0, 1, 0b11), Claim(1.0, 1, 0b11)], {0: 0.5}) == pytest.approx([0.75, 0.75])
    assert shares([Claim(1.0, 1, 0b1)], {1: 1.0}) == [1.0]


def test_the_work_of_vms_is_not_taken_for_the_hosts():
    busy = {0: 1.0, 1: 0.5, 2: 0.5, 3: 0.0}
    pinned, floating = Known(frozenset({0}), 1.0), Known(frozenset({1, 2}), 0.5)
    assert unexplained(busy, [floating, pinned]) == {1: 0.25, 2: 0.25}
    assert unexplained(busy, []) == {0: 1.0, 1: 0.5, 2: 0.5}
    assert unexplained(busy, [Known(frozenset(range(4)), 9.0)]) == {}


@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.lists(st.tuples(st.sets(st.integers(0, 3), min_size=1), st.floats(0, 4)), max_size=4),
)
def test_never_more_is_left_than_the_cpus_were_busy_and_never_less_than_nobody_explains(parts, known):
    busy = dict(enumerate(parts))
    left = unexplained(busy, [Known(frozenset(cpus), used) for cpus, used in known])
    assert all(0 < part <= busy[cpu] + 0.001 for cpu, part in left.items())
    assert sum(left.values()) >= sum(parts) - sum(used for _, used in known) - 0.1


# One idea of a home: the balancer's are placement's.


def hybrid():
    """Eight CPUs of one cache, the last four of them efficiency cores."""
    topology = machine(cores=8)
    kinds = {cpu: CpuKind.PERFORMANCE if cpu < 4 else CpuKind.EFFICIENCY for cpu in range(8)}
    return replace(topology, cpus={cpu: replace(one, kind=kinds[cpu]) for cpu, one in topology.cpus.items()})


def test_homes_never_mix_kinds_of_cpu():
    topology = hybrid()
    fast, slow = mask_of(range(4)), mask_of(range(4, 8))
    of = Machine.of(topology, topology.online)
    assert of.alike(fast, of.pool, {}) == [slow]
    assert of.wider(mask_of({0, 1}), of.pool) == [fast]
    for size in (1, 2, 3, 4):
        for home in of.alike(mask_of(range(size)), of.pool, {}):
            assert home & fast == 0 or home & slow == 0
    assert of.alike(mask_of(range(2, 6)), of.pool, {}) == [fast, slow]


def test_a_cache_that_spans_nodes_makes_a_home_on_each():
    topology = machine(nodes=2, cores=4)
    whole = topology.l3s[0].cpus | topology.l3s[1].cpus
    topology = replace(topology, l3s=(replace(topology.l3s[0], cpus=whole),))
    of = Machine.of(topology, topology.online)
    assert [cpus_of(home) for home in of.levels[0]] == [frozenset(range(4)), frozenset(range(4, 8))]


def test_a_crowd_on_the_fast_cpus_spreads_within_one_kind_each():
    vms = [on(100 + number, range(4), 1.0, 1.0) for number in range(4)]
    host = passes(Host(hybrid(), vms), 6)
    homes = [host.guests[vm.vmid].home for vm in vms]
    assert all(max(home) < 4 or min(home) >= 4 for home in homes)
    assert sorted(map(min, homes)) == [0, 0, 4, 4]


def test_somebody_who_may_run_everywhere_is_driven_into_the_pool_by_a_dedicated_vm():
    def vm(vmid, cpus, run, wait=0.0, **more):
        demand = run + wait
        use = samples.Use(vmid, 1, 2.0, (), samples.Rate(run, wait, demand))
        return cpu.Vm(vmid, (frozenset(cpus),), use, **more)

    dedicated = vm(200, {0, 1}, 2.0)
    everywhere = vm(900, range(4), 1.0, 0.5)
    shared = vm(100, {2, 3}, 1.0, 0.5, movable=True)
    outcome = cpu.rebalance(
        [dedicated, everywhere, shared], machine(), frozenset({2, 3}), cpu.State(), NodeSettings(), 10.0
    )
    # Four CPUs for a demand of five: nobody of the two in the pool is due all that it wants.
    assert outcome.standings[100].due < 1.5
    alone = cpu.rebalance([shared], machine(), frozenset({2, 3}), cpu.State(), NodeSettings(), 10.0)
    assert alone.standings[100].due == 1.5
