"""The memory coordinator over many passes, on simulated guests that run its own code."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.models.memory import Coordinator, Host
from bench.models.memory_guests import Guest, Kind
from bench.models.memory_rules import nothing
from pxsched.balance import need
from pxsched.settings.policy import NodeSettings, Policy

from .coordinating import NODE, run, small, steady, steps


def test_one_guest_grows_and_frees_again():
    loads = [steps((0, 200), (120, 1400), (600, 200))] + [steady(200)] * 3
    host = run([small(100 + n, load) for n, load in enumerate(loads)], 8192, 5)
    assert host.guests[0].actual_mib - host.guests[0].need_mib > 150
    for _ in range(1200):  # the host has plenty: a past need lasts for hours
        host.tick()
    assert host.guests[0].actual_mib < 900
    assert host.tally.starved_minutes < 1  # until it has found out how much that is, a pass at a time
    assert host.tally.below_need == 0


def test_what_a_guest_wanted_back_it_keeps_longer():
    load = steps((0, 1400), (60, 200), (12000, 1400), (12060, 200))
    host = Host([small(100, load, actual_mib=1800.0)], 8192, Coordinator(NODE))
    sizes = {}
    while host.now_s < 24000:
        host.tick()
        sizes[round(host.now_s)] = host.guests[0].actual_mib
    assert sizes[11990] < 850
    assert sizes[24000] > sizes[11990] + 200


def test_all_grow_under_a_host_limit_and_share_it_fairly():
    guests = [small(100 + n, steps((0, 200), (60, 1100))) for n in range(4)]
    host = run(guests, 512 + 4 * 1250, 15)
    sizes = [guest.actual_mib for guest in host.guests]
    assert host.available_mib >= 0
    assert max(sizes) - min(sizes) < 64
    assert min(sizes) > 1150


def test_of_two_that_grow_one_stops_and_the_other_gets_its_memory():
    guests = [
        small(100, steps((0, 200), (60, 1100), (600, 150))),
        small(101, steps((0, 200), (60, 1100), (600, 1700))),
    ]
    host = run(guests, 512 + 2900, 20)
    assert host.guests[1].actual_mib - host.guests[1].need_mib > 100
    assert host.guests[0].actual_mib < 1100


def test_who_never_had_enough_since_the_host_had_none_gets_what_another_frees():
    """Small guests, whose loads leave a little of what they have, so that nothing is swapped or read back."""
    policy = Policy(starved_mib=40, wasteful_mib=90, wasteful_percent=25)
    idle, one, other = ([small(100 * n, steady(60), minimum_mib=128, maximum_mib=512, actual_mib=128.0)
                         for n in numbers] for numbers in ((1, 2), (3,), (4,)))  # fmt: skip
    for guest in (*one, *other):
        guest.load = lambda now_s, guest=guest: min(300, max(guest.need_mib, guest.actual_mib - 22) - 11)
    host = Host([*idle, *one, *other], 4 * 174, Coordinator(NodeSettings(reserved_mib=0), policy), period_s=3)
    for _ in range(10):
        host.tick()
    stopped, before = one[0].actual_mib, other[0].actual_mib
    assert before < 230
    assert host.rule.state.guests[400].unanswered_mib > 174 / 2
    one[0].load = steady(0)
    for _ in range(10):
        host.tick()
    assert other[0].actual_mib > before + 60
    assert one[0].actual_mib < stopped - 60


def test_what_was_lent_of_the_reserve_comes_back_also_when_each_guest_has_little_to_give():
    # Each has 13 MiB more than it starves with.
    guests = [small(100 + n, steady(959), actual_mib=1162.0) for n in range(20)]
    reserve, lent = NODE.reserved_mib, 150
    host = run(guests, 20 * 1162 + reserve - lent, 5)
    assert host.available_mib >= reserve - reserve / 32 - 1
    assert host.tally.starved_minutes == 0


def test_a_guest_that_swaps_to_zram_early_gets_no_more_than_others_who_use_as_much():
    kinds = [Kind.ZRAM, Kind.LINUX] * 2
    guests = [small(100 + n, steady(1200), maximum_mib=4096, kind=kind) for n, kind in enumerate(kinds)]
    host = run(guests, 512 + 4 * 1500, 10)
    settled_gib, sizes = host.tally.traffic_gib, [guest.actual_mib for guest in host.guests]
    for _ in range(60):
        host.tick()
    assert all(guest.early_mib > 1000 for guest in host.guests[::2])
    assert max(sizes) - min(sizes) < 32
    assert host.tally.traffic_gib == pytest.approx(settled_gib)


@pytest.mark.parametrize("seed", range(3))
def test_idle_guests_are_never_driven_into_swap(seed):
    import random

    rng = random.Random(seed)
    guests = [small(100 + n, steady(rng.uniform(50, 400)), actual_mib=2048.0) for n in range(4)]
    host = run([*guests, small(200, steps((0, 200), (120, 1800)))], 6000, 20)
    assert all(guest.swapped_mib == 0 for guest in host.guests[:4])
    assert host.tally.below_need == 0


def test_a_guest_whose_driver_dies_is_left_at_its_last_value():
    guests = [small(100, steady(300), actual_mib=2048.0), small(101, steady(300))]
    host = Host(guests, 8192, Coordinator(NODE))
    for _ in range(3):
        host.tick()
    guests[0].driver = False
    for _ in range(2):
        host.tick()
    last = host.rule.state.targets[100]
    for _ in range(25):
        assert 100 not in {target.vmid for target in host.tick()}
    assert host.rule.state.targets[100] == last
    assert "stale" in host.rule.skipped[100]


def test_the_host_recovers_by_everyone_shrinking_and_they_grow_back():
    guests = [small(100 + n, steady(700), actual_mib=1050.0) for n in range(4)]
    host = Host(guests, 4 * 1050 + 600, Coordinator(NODE))
    host.tick()
    host.used_mib = 600.0  # something else on the host needs it
    assert host.available_mib <= 0
    for _ in range(30):
        host.tick()
    assert host.available_mib > 250
    sizes = [guest.actual_mib for guest in guests]
    assert max(sizes) - min(sizes) < 32
    assert min(sizes) > 700 + need.FLOOR_MIB
    host.used_mib = 0.0
    for _ in range(6):
        host.tick()
    assert min(guest.actual_mib for guest in guests) > 700 + 150


def test_a_steady_host_comes_to_rest():
    guests = [small(100 + n, steady(200 + 150 * n), actual_mib=1500.0) for n in range(4)]
    host = run(guests, 8192, 40)
    assert [host.tick() for _ in range(60)] == [[]] * 60


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_whatever_the_loads_nobody_is_sent_below_need_or_outside_its_limits(data):
    number = data.draw(st.integers(1, 5))
    guests = []
    for index in range(number):
        maximum = data.draw(st.sampled_from([512, 1024, 4096]))
        minimum = data.draw(st.sampled_from([64, maximum // 2, maximum]))
        times = range(0, 600, data.draw(st.sampled_from([50, 100, 300])))
        load = steps(*[(at, data.draw(st.floats(20, maximum))) for at in times])
        actual = data.draw(st.floats(minimum, maximum))
        shares = data.draw(st.sampled_from([0, 100, 1000, 50000]))
        guests.append(Guest(100 + index, minimum, maximum, load, actual, shares))
    host = Host(guests, data.draw(st.floats(600, 12000)), Coordinator(NODE))
    for _ in range(60):
        for target in host.tick():
            guest = next(one for one in guests if one.vmid == target.vmid)
            assert guest.minimum_mib <= target.target_mib <= guest.maximum_mib
            if target.target_mib < guest.actual_mib:
                assert target.target_mib >= min(guest.actual_mib, guest.need_mib) - 1
    assert host.tally.below_need == 0


def test_a_host_that_runs_short_shrinks_guests_fairly_before_the_kernel_would_have_to_kill():
    """Something else on the host takes 20 MiB a second for minutes; with nobody to act it is killed."""
    guests = [small(100 + n, steady(700 + 100 * n), actual_mib=2048.0) for n in range(4)]
    host = Host(guests, 4 * 2048 + 1024, Coordinator(NODE))
    untouched = Host([replace(guest) for guest in guests], 4 * 2048 + 1024, nothing)
    for _ in range(22):
        for one in (host, untouched):
            one.used_mib += 200
            one.tick()
        assert host.available_mib > 0
    assert untouched.available_mib < 0
    assert host.tally.below_need == 0
    assert all(guest.swapped_mib == 0 for guest in host.guests)
    unused = [guest.actual_mib - guest.need_mib for guest in host.guests]
    assert max(unused) - min(unused) < 150


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.LYING])
def test_a_guest_of_whichever_kind_has_what_it_needs_where_the_host_has_room(kind):
    guests = [small(100, steady(1000), kind=kind), small(101, steady(300))]
    host = run(guests, 8192, 60)
    assert host.guests[0].actual_mib - host.guests[0].need_mib > 150
    assert host.tally.stuck_guests == 0
    assert not host.tally.pressed


def test_a_lying_guest_gets_no_more_than_its_part_of_the_host():
    guests = [small(100, steady(300), kind=Kind.LYING, maximum_mib=8192)]
    guests += [small(vmid, steps((0, 300), (120, 1200))) for vmid in (101, 102, 103)]
    host = run(guests, 6144, 60)
    assert host.guests[0].actual_mib <= 1.05 * (6144 - 512) * 8192 / (8192 + 3 * 2048)
