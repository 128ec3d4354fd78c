"""CPU fairness, as the product promises it, on a simulated host that runs the balancer's own code."""

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.models.cpu import Guest, Host, machine
from pxsched.balance import cpu, samples
from pxsched.balance.homes import Machine
from pxsched.balance.plan import Model, Party
from pxsched.balance.sharing import Claim, jain, mask_of, shares
from pxsched.settings.policy import NodeSettings
from pxsched.stored import Damaged
from pxsched.value import replace


def single(loads, homes, **more):
    """Single-vCPU VMs with these loads on these CPUs."""
    return [
        Guest(100 + number, (load,), frozenset((home,)), **more)
        for number, (load, home) in enumerate(zip(loads, homes, strict=True))
    ]


def passes(host, number):
    for _ in range(number):
        host.tick()
    return host


def total_moves(host):
    return sum(map(len, host.moves))


def homes_on(host, number):
    return sum(guest.home == {number} for guest in host.guests.values())


def test_eight_busy_vms_balanced_on_four_cpus_stay_where_they_are():
    host = Host(machine(), single([1.0] * 8, [0, 1, 2, 3] * 2))
    passes(host, 25)
    assert total_moves(host) == 0


def test_eight_busy_vms_on_one_cpu_end_two_on_each_within_three_passes_and_rest():
    host = Host(machine(), single([1.0] * 8, [0] * 8))
    passes(host, 3)
    assert [homes_on(host, number) for number in range(4)] == [2, 2, 2, 2]
    passes(host, 22)
    assert total_moves(host) == 6


@pytest.mark.parametrize("light", [0.1, 0.2, 0.3])
def test_four_heavy_and_four_light_vms_end_with_equal_sums(light):
    host = Host(machine(), single([1.0] * 4 + [light] * 4, [0, 0, 1, 1, 2, 2, 3, 3]))
    passes(host, 6)
    assert [host.demand_on(number) for number in range(4)] == pytest.approx([1 + light] * 4)
    moved = total_moves(host)
    assert moved <= 6  # four is the least possible
    passes(host, 15)
    assert total_moves(host) == moved


def test_four_busy_vms_stuck_on_cpu_0_get_unstuck():
    host = Host(machine(), single([1.0] * 4, [0] * 4))
    passes(host, 3)
    assert sorted(guest.home for guest in host.guests.values()) == [{0}, {1}, {2}, {3}] or all(
        homes_on(host, number) == 1 for number in range(4)
    )
    assert total_moves(host) == 3


@pytest.mark.parametrize("seed", range(5))
def test_one_busy_vm_among_idle_ones_moves_at_most_once(seed):
    host = Host(machine(), single([1.0] + [0.02] * 7, [0, 0, 0, 1, 1, 2, 2, 3]), seed=seed)
    passes(host, 25)
    assert sum(move.vmid == 100 for moves in host.moves for move in moves) <= 1
    assert total_moves(host) <= 1


def test_two_busy_and_two_idle_vcpus_end_apart():
    host = Host(machine(cores=2), single([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1]))
    passes(host, 2)
    assert host.guests[100].home != host.guests[101].home


def test_pinned_vcpus_move_one_by_one_where_the_profile_says_so():
    host = Host(
        machine(), [Guest(100, (1.0, 1.0, 0.0, 0.0), pins=(0, 0, 1, 1)), Guest(101, (1.0, 1.0), pins=(2, 3))]
    )
    passes(host, 3)
    busy = host.guests[100].pins[:2] + host.guests[101].pins
    assert sorted(busy) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("cores", "homes"),
    [
        (1, [{0}, {0}, {0}]),
        (4, [{0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}]),
        (4, [{0, 1, 2}, {0, 1}, {3}]),
        (4, [{3}, {2, 3}, {0, 1}]),
    ],
)
def test_weights_one_two_four_get_one_two_four(cores, homes):
    weights = (100, 200, 400)
    vcpus = 1 if cores == 1 else 4
    host = Host(
        machine(cores=cores),
        [
            Guest(100 + number, (1.0,) * vcpus, frozenset(home), weight=weight)
            for number, (home, weight) in enumerate(zip(homes, weights, strict=True))
        ],
        period_s=4.0,
    )
    passes(host, 6)
    got = [host.gained_ns[100 + number] / weight for number, weight in enumerate(weights)]
    assert max(got) / min(got) < 1.05


def test_everyone_equally_starved_means_that_nothing_moves():
    host = Host(machine(caches=2, cores=2), single([1.0] * 12, [0, 1, 2, 3] * 3))
    passes(host, 10)
    assert total_moves(host) == 0


def test_pinned_and_dedicated_vms_are_never_moved_but_count_as_load():
    fixed = [Guest(200 + number, (1.0,), frozenset((0,)), movable=False) for number in range(2)]
    host = Host(machine(cores=2), [*fixed, *single([1.0, 1.0], [0, 0])])
    passes(host, 4)
    assert {move.vmid for moves in host.moves for move in moves} <= {100, 101}
    assert [host.guests[vmid].home for vmid in (200, 201)] == [{0}, {0}]
    assert [host.guests[vmid].home for vmid in (100, 101)] == [{1}, {1}]


def test_homes_the_size_of_a_cache_group_move_between_cache_groups():
    host = Host(
        machine(nodes=2, caches=2), [Guest(100 + n, (1.0, 1.0), frozenset(range(4))) for n in range(8)]
    )
    passes(host, 4)
    homes = sorted(sorted(guest.home) for guest in host.guests.values())
    assert homes == sorted([list(range(first, first + 4)) for first in (0, 4, 8, 12)] * 2)
    assert total_moves(host) == 6


def test_a_vm_with_much_memory_stays_on_its_node_when_another_can_go():
    topology = machine(nodes=2, cores=2)
    guests = [
        Guest(100, (1.0, 1.0), frozenset((0, 1)), memory_mib={0: 64 * 1024}),
        Guest(101, (1.0, 1.0), frozenset((0, 1)), memory_mib={0: 1024}),
    ]
    host = passes(Host(topology, guests), 3)
    assert host.guests[100].home == {0, 1}
    assert host.guests[101].home == {2, 3}


def test_memory_far_too_large_to_drag_is_not_dragged():
    guests = [Guest(100 + n, (0.6, 0.6), frozenset((0, 1)), memory_mib={0: 512 * 1024}) for n in range(2)]
    host = passes(Host(machine(nodes=2, cores=2), guests), 4)
    assert total_moves(host) == 0


def test_a_moved_vm_rests_for_its_cooldown_and_no_longer():
    """Only one VM can go out of another's way; as often as it is put back, it has to wait."""
    stuck = Guest(100, (1.0,), frozenset((0,)))
    fixed = Guest(200, (1.0,), frozenset((0,)), movable=False)
    host = Host(machine(cores=2), [stuck, fixed], period_s=5.0, settings=NodeSettings(cooldown_s=60))
    passes(host, 3)
    assert total_moves(host) == 1
    moved = next(number for number, moves in enumerate(host.moves) if moves)
    host.guests[100] = replace(host.guests[100], home=frozenset((0,)))
    passes(host, 20)
    again = next(number for number, moves in enumerate(host.moves) if moves and number > moved)
    assert 60 <= 5.0 * (again - moved) <= 75
    assert total_moves(host) == 2


def test_no_pass_makes_more_moves_than_the_setting():
    for most in (0, 1, 3):
        host = Host(machine(), single([1.0] * 8, [0] * 8), settings=NodeSettings(moves=most))
        passes(host, 3)
        assert max(map(len, host.moves)) == most


def test_a_step_that_would_leave_another_worse_off_than_the_one_it_helps_is_not_made():
    def party(vmid, home, demand, run, weight):
        return Party(vmid, None, home, 0b11, 1, samples.Rate(run, demand - run, demand), weight, True)

    helped, neighbour = party(100, 0b01, 1.0, 0.5, 100), party(101, 0b01, 0.9, 0.5, 100)
    third = party(102, 0b10, 0.5, 0.5, 10)
    machine_ = Machine.of(machine(cores=2), (0, 1))
    for third_is_due, made in ((0.4, False), (0.1, True)):
        due = [1.0, 0.9, third_is_due]
        model = Model([helped, neighbour, third], due, [0.5, 0.44, 0.0], machine_, 60.0)
        assert (model.step({1: 0b10}, helped) is not None) == made


def test_a_new_vm_leaves_the_others_where_they_are():
    host = Host(machine(), single([1.0] * 4, [0, 1, 2, 3]))
    passes(host, 3)
    host.add(Guest(200, (1.0,), frozenset(range(4))))
    passes(host, 10)
    assert {move.vmid for moves in host.moves for move in moves} <= {200}


def crowd(looked_s):
    """Four busy VMs that were seen on one of four CPUs for so long."""
    rate = samples.Rate(0.25, 0.75, 1.0)
    home = (frozenset((0,)),)
    return [
        cpu.Vm(vmid, home, samples.Use(vmid, 1, looked_s, (rate,), rate), movable=True)
        for vmid in range(100, 104)
    ]


@pytest.mark.parametrize(
    ("looked_s", "act", "helped", "moved"),
    [(10.0, True, True, True), (10.0, False, True, False), (0.2, True, False, False)],
    ids=["is made", "but by who only measures", "and after a short look nobody stands out"],
)
def test_a_move_that_helps(looked_s, act, helped, moved):
    topology = machine()
    outcome = cpu.rebalance(
        crowd(looked_s), topology, topology.online, cpu.State(), NodeSettings(), 10.0, act=act
    )
    assert (bool(outcome.outstanding), bool(outcome.moves)) == (helped, moved)


def test_beside_a_vm_that_was_paused_for_an_hour_a_move_is_made():
    """Its average load is all but nothing, and never zero."""
    topology, state = machine(), cpu.State()
    for number in range(360):
        rate = samples.Rate(0.0, 0.0, 0.0) if number else samples.Rate(0.5, 0.1, 0.6)
        paused = cpu.Vm(200, (frozenset((3,)),), samples.Use(200, 1, 10.0, (rate,), rate))
        others = crowd(10.0) if number % 20 == 0 else []
        outcome = cpu.rebalance(
            [paused, *others], topology, topology.online, state, NodeSettings(), 10.0 * number
        )
        state = outcome.state
        assert bool(outcome.moves) == bool(others)


def test_every_move_says_why():
    host = Host(machine(), single([1.0] * 4, [0] * 4))
    (move, *_) = host.tick()
    assert "slower" in move.why
    assert "from 0 to" in move.why


FEW = settings(deadline=None, max_examples=25)
MANY = settings(deadline=None, max_examples=1000)


@pytest.mark.parametrize("cases", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_random_loads_are_fair_within_five_passes(cases):
    """Busy vCPUs in random numbers, weights and homes: the weighted index of what each gets of its due.

    A home has a CPU for each vCPU, so a few mixtures cannot be divided any better than a little below 0.98.
    """
    rng = random.Random(5)
    reached = []
    for _ in range(cases):
        cores = rng.randint(2, 6)
        guests = [
            Guest(
                100 + number,
                (1.0,) * rng.randint(1, 3),
                frozenset((rng.randrange(cores),)),
                weight=rng.choice([50, 100, 200]),
            )
            for number in range(rng.randint(2, 10))
        ]
        # The default moves two VMs a pass; so many misplaced ones need more to be done in five passes.
        host = Host(machine(cores=cores), guests, settings=NodeSettings(moves=4))
        passes(host, 6)
        reached.append(host.fairness())
    assert sum(one >= 0.98 for one in reached) >= 0.98 * cases
    assert min(reached) > 0.9
    assert sum(reached) / cases > 0.99


def test_random_loads_that_come_and_go_in_bursts_are_fair_within_five_passes():
    """Bursts of two VMs on one CPU collide whatever anyone does: 0.98 mostly, and little below it always."""
    rng = random.Random(11)
    reached = []
    for case in range(40):
        cores = rng.randint(2, 6)
        number = rng.randint(2, 12)
        loads = [rng.uniform(0.1, 1.0) for _ in range(number)]
        homes = [rng.randrange(cores) for _ in range(number)]
        host = Host(machine(cores=cores), single(loads, homes), settings=NodeSettings(moves=4), seed=case)
        passes(host, 6)
        reached.append(host.fairness())
    assert min(reached) > 0.95
    assert sum(one >= 0.98 for one in reached) >= 36
    assert sum(reached) / len(reached) > 0.985


@FEW
@given(st.data())
def test_a_pass_never_makes_the_worst_vm_worse(data):
    check_that_the_worst_vm_is_never_made_worse(data)


@pytest.mark.slow
@MANY
@given(st.data())
def test_very_many_passes_never_make_the_worst_vm_worse(data):
    check_that_the_worst_vm_is_never_made_worse(data)


def check_that_the_worst_vm_is_never_made_worse(data):
    cores = data.draw(st.integers(2, 4))
    guests = []
    for number in range(data.draw(st.integers(2, 8))):
        vcpus = data.draw(st.integers(1, 3))
        home = data.draw(st.frozensets(st.integers(0, cores - 1), min_size=1))
        loads = tuple(data.draw(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=vcpus, max_size=vcpus)))
        weight = data.draw(st.sampled_from([50, 100, 400]))
        movable = data.draw(st.booleans())
        guests.append(Guest(100 + number, loads, home, weight=weight, movable=movable))
    host = Host(machine(cores=cores), guests)
    for _ in range(4):
        before = worst(host)
        moves = host.tick()
        assert worst(host) >= before - 0.02, moves


def worst(host):
    """The satisfaction of the worst-off VM by the fluid model: true loads, no noise."""
    guests = [guest for guest in host.guests.values() if sum(guest.loads) > 0]
    if not guests:
        return 1.0
    here = shares([Claim(sum(g.loads), g.weight, mask_of(g.home)) for g in guests])
    everywhere = mask_of(host.topology.online)
    best = shares(
        [Claim(sum(g.loads), g.weight, everywhere if g.movable else mask_of(g.home)) for g in guests]
    )
    return min(got / due for got, due in zip(here, best, strict=True))


def least_moves(cores, loads, homes, wanted):
    """The fewest VMs that must move so that the worst one gets `wanted` of its due; by trying everything."""
    everywhere = mask_of(range(cores))
    due = shares([Claim(load, 100, everywhere) for load in loads])
    masks = [1 << number for number in range(cores)] + [everywhere]
    fewest = len(loads) + 1
    for choice in itertools.product(masks, repeat=len(loads)):
        moved = sum(mask != 1 << home for mask, home in zip(choice, homes, strict=True))
        if moved < fewest:
            got = shares([Claim(load, 100, mask) for load, mask in zip(loads, choice, strict=True)])
            if min(one / other for one, other in zip(got, due, strict=True)) >= wanted - 1e-6:
                fewest = moved
    return fewest


def test_moves_are_within_half_more_than_the_least_possible():
    """On cases small enough to know; in sum, and nowhere more than two above the least."""
    rng = random.Random(7)
    made = least = 0
    for case in range(25):
        cores, number = rng.choice([(2, 3), (2, 4), (3, 4), (2, 5)])
        loads = [rng.choice([0.25, 0.5, 1.0]) for _ in range(number)]
        homes = [rng.randrange(cores) for _ in range(number)]
        host = passes(Host(machine(cores=cores), single(loads, homes), seed=case), 8)
        reached = worst(host)
        needed = least_moves(cores, loads, homes, min(reached, 0.95))
        assert total_moves(host) <= max(needed + 2, 1.5 * needed), (cores, loads, homes, host.moves)
        made += total_moves(host)
        least += needed
    assert made <= 1.5 * least


def test_the_state_survives_as_text_and_damage_is_named():
    host = passes(Host(machine(), single([1.0] * 4, [0] * 4)), 1)
    assert cpu.State.from_json(json.loads(json.dumps(host.state.to_json()))) == host.state
    for damaged in (None, 3, [], {"x": []}, {"100": [1]}, {"100": [1, [["a", 1, 1]], 0.0, None]}):
        with pytest.raises(Damaged):
            cpu.State.from_json(damaged)


def test_the_fair_share_of_nested_homes_is_weighted_max_min():
    claims = [Claim(1, 1, 0b1), Claim(1, 1, 0b1), Claim(2, 1, 0b11), Claim(0.1, 5, 0b11)]
    assert shares(claims) == pytest.approx([0.5, 0.5, 0.9, 0.1])


@given(
    st.lists(
        st.tuples(st.floats(0.01, 4), st.sampled_from([1, 2, 5]), st.integers(1, 63)), min_size=1, max_size=7
    )
)
def test_shares_are_feasible_and_nobody_can_get_more_without_taking_from_a_poorer_one(parties):
    claims = [Claim(*party) for party in parties]
    got = shares(claims)
    for mask in range(1, 64):
        inside = sum(share for share, claim in zip(got, claims, strict=True) if claim.mask & ~mask == 0)
        assert inside <= mask.bit_count() + 1e-6
    for index, claim in enumerate(claims):
        if got[index] >= claim.demand - 1e-6:
            continue
        # A set of CPUs that is full, holds it, and in which nobody has more for its weight.
        assert any(
            claim.mask & ~mask == 0
            and sum(g for g, c in zip(got, claims, strict=True) if c.mask & ~mask == 0)
            >= mask.bit_count() - 1e-6
            and all(
                g / c.weight <= got[index] / claim.weight + 1e-6
                for g, c in zip(got, claims, strict=True)
                if c.mask & ~mask == 0
            )
            for mask in range(1, 64)
        )


def test_jain_is_one_for_equals_and_a_share_for_one_who_has_all():
    assert jain([0.3, 0.3, 0.3]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)


def test_two_thousand_vms_are_looked_at_in_little_time():
    import time

    topology = machine(nodes=2, caches=8, cores=8)
    vms = []
    for number in range(2000):
        first = number % 16 * 8
        rate = samples.Rate(0.04, 0.0005, 0.0402)
        use = samples.Use(number, 1, 10.0, (rate,) * 8, samples.Rate(0.32, 0.004, 0.3216))
        vms.append(cpu.Vm(number, (frozenset(range(first, first + 8)),) * 8, use, movable=True))
    began = time.process_time()
    outcome = cpu.rebalance(vms, topology, topology.online, cpu.State(), NodeSettings(), 10.0)
    assert outcome.moves == ()
    assert time.process_time() - began < 0.5
