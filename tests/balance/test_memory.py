"""The memory coordinator, as the product promises it: what one pass decides."""

import json
import math

import pytest

from bench.models.memory_guests import bounds
from pxsched.balance import balloon, fair, lending, need, taking
from pxsched.balance.balloon import Stats
from pxsched.settings.policy import Policy
from pxsched.stored import Damaged
from pxsched.value import replace

from .coordinating import NODE, decide, seen, told


def fair_sizes(standings, host):
    return fair.sizes(list(standings), host, lending.means(host, None, NODE, 0.0)[0])


def test_a_starving_guest_gets_all_it_needs_in_one_pass():
    (target,) = decide([seen(actual=512, used=480)]).targets
    low, high = bounds(Policy(), target.target_mib)
    assert low <= target.target_mib - 480 <= high
    assert "starves" in target.why


def test_a_guest_whose_minimum_was_raised_gets_it_and_is_not_called_starving():
    (target,) = decide([seen(actual=1024, used=100, low=1536)]).targets
    assert target.target_mib >= 1536
    assert "is below its minimum" in target.why and "starves" not in target.why


def test_a_guest_that_starves_by_little_gets_that_little():
    outcome = decide([seen(actual=4096, used=3900, high=8192)], available=NODE.reserved_mib + 10.0)
    assert outcome.standings[100].low_mib == pytest.approx(4105, abs=1)
    assert told(outcome) == {100: pytest.approx(4106, abs=1)}


def test_what_its_kernel_keeps_is_used_memory():
    # A guest of 160 MiB whose own total is 114, of which 10 are available.
    starving = seen(actual=160, low=160, high=384, stats=Stats(114, 10), policy=Policy(starved_mib=24))
    (target,) = decide([starving]).targets
    assert target.target_mib - 150 >= 24


def test_a_guest_within_its_bounds_is_left_alone():
    assert told(decide([seen(actual=1024, used=1024 - 250)])) == {}


def test_the_starving_share_what_there_is_when_the_host_is_short():
    outcome = decide([seen(vmid, actual=512, used=500) for vmid in (100, 101, 102)], available=700.0)
    sizes = told(outcome)
    assert len(set(sizes.values())) == 1
    assert sum(sizes.values()) - 3 * 512 <= 700 - NODE.reserved_mib
    assert sum(sizes.values()) > 3 * 512


def test_of_the_hosts_reserve_the_starving_are_lent_what_others_are_about_to_give():
    starving = seen(actual=512, used=500)
    assert told(decide([starving], available=300.0)) == {}
    rich = seen(101, actual=1500, used=200)
    sizes = told(decide([starving, rich], available=300.0))
    assert sizes[101] < 1500
    assert 0 < sizes[100] - 512 <= 300 - NODE.reserved_mib / 2


def test_memory_is_taken_in_steps_and_never_below_what_is_used_and_a_floor():
    guest = seen(actual=2048, used=300)
    sizes = told(decide([guest]))
    assert 2048 - 10 * taking.PACE_MIB <= sizes[100] < 2048
    least = decide([guest]).standings[100].least_mib
    assert sizes[100] >= least >= 300 + need.FLOOR_MIB


def test_shares_weigh_how_much_slack_each_has_when_memory_is_short():
    guests = [seen(100, actual=1024, used=900, shares=1000), seen(101, actual=1024, used=900, shares=3000)]
    standings = decide(guests).standings
    sizes = fair_sizes(standings.values(), balloon.Host(4096, 700))
    slack = [sizes[vmid] - standings[vmid].low_mib for vmid in (100, 101)]
    assert slack[1] == pytest.approx(3 * slack[0])


def test_equal_guests_have_the_same_part_of_their_slack_at_any_budget():
    for available in (400, 600, 800, 3000):
        guests = [seen(100, actual=1024, used=900), seen(101, actual=3000, used=1900, high=4096)]
        standings = list(decide(guests).standings.values())
        sizes = fair_sizes(standings, balloon.Host(8192, available))
        fills = [(sizes[one.guest.vmid] - one.low_mib) / (one.high_mib - one.low_mib) for one in standings]
        if sizes[100] >= standings[0].low_mib:
            assert fills[0] == pytest.approx(fills[1], abs=0.02)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"excluded": "Proxmox balances it itself"}, "Proxmox balances"),
        ({"low": 2048}, "minimum"),
    ],
)
def test_a_guest_that_is_not_managed_is_named_with_its_reason(change, reason):
    outcome = decide([seen(100, actual=1024, used=1020, **change), seen(101, actual=512, used=500)])
    assert list(told(outcome)) == [101]
    assert reason in outcome.skipped[100]


def test_a_guest_that_does_not_follow_is_not_asked_for_more_and_then_more_gently():
    guest = seen(actual=2048, used=300)
    first = decide([guest], now_s=0)
    assert told(first)
    assert told(decide([guest], state=first.state, now_s=10)) == {}
    later = decide([guest], state=first.state, now_s=40)
    assert later.state.guests[100].pace < first.state.guests[100].pace
    assert told(later)[100] > told(first)[100]


def test_a_restarted_guest_starts_afresh():
    before = decide([seen(actual=2048, used=1900)], now_s=0).state
    guest = balloon.Guest(100, 2, 2048.0, 256, 2048, Stats(2048, 1848))
    assert decide([guest], state=before, now_s=10).standings[100].need_mib == pytest.approx(200)


def test_need_rises_at_once_and_falls_slowly():
    high = decide([seen(actual=2048, used=1500)], now_s=0).state
    fallen = decide([seen(actual=2048, used=500)], state=high, now_s=10)
    assert 1300 < fallen.standings[100].need_mib < 1500
    risen = decide([seen(actual=2048, used=1700)], state=fallen.state, now_s=20)
    assert risen.standings[100].need_mib == pytest.approx(1700)


def test_a_past_need_is_forgotten_sooner_where_the_host_has_little_to_spare():
    high = decide([seen(actual=2048, used=1500)], now_s=0).state
    needs = [
        decide([seen(actual=2048, used=500)], available=available, state=high, now_s=600)
        .standings[100]
        .need_mib
        for available in (512, 800, 1400, 16000)
    ]
    assert needs[0] == pytest.approx(500 + 1000 / math.e, abs=5)
    assert needs[0] < needs[1] < needs[2] == pytest.approx(500 + 1000 * math.exp(-1 / 12), abs=5)
    assert needs[2] == needs[3]


def test_a_past_need_counts_for_nothing_while_somebody_starves():
    before = decide([seen(100, actual=2048, used=1800), seen(101, actual=512, used=200)], now_s=0).state
    now = [seen(100, actual=2048, used=500), seen(101, actual=512, used=500)]
    with_room = told(decide(now, available=8192, state=before, now_s=10))
    assert 100 not in with_room
    assert with_room[101] > 512
    assert told(decide(now, available=512, state=before, now_s=10))[100] < 2048


def test_whoever_is_inside_the_bounds_is_left_alone_while_others_are_above_them():
    guests = [seen(101, actual=1024, used=734), seen(102, actual=1000, used=820)]
    before = decide([seen(100, actual=2048, used=1800), *guests, seen(103, actual=512, used=300)], now_s=0)
    now = [seen(100, actual=2048, used=1500), *guests, seen(103, actual=512, used=500)]
    sizes = told(decide(now, available=512, state=before.state, now_s=10))
    assert sizes.keys() == {100, 103}
    assert sizes[100] < 2048


def test_memory_stalls_on_the_host_make_it_keep_more():
    guests = [seen(vmid, actual=1090, used=800) for vmid in (100, 101)]
    calm = decide(guests, available=680, total=4096)
    pressed = decide(guests, available=680, total=4096, stalled=20.0)
    assert told(calm) == {}
    assert all(size < 1090 for size in told(pressed).values())
    assert told(pressed)


def test_guests_bound_to_a_full_numa_node_shrink_while_others_do_not():
    nodes = {0: 100.0, 1: 8000.0}
    guests = [
        seen(100, actual=1024, used=780, nodes=frozenset((0,))),
        seen(101, actual=1024, used=780, nodes=frozenset((1,))),
    ]
    sizes = fair_sizes(decide(guests).standings.values(), balloon.Host(16384, 8100, nodes_mib=nodes))
    assert sizes[100] < 1024
    assert sizes[101] > sizes[100]


def test_untouched_memory_of_guests_is_not_given_a_second_time():
    idle = seen(100, actual=4096, used=3700, high=4096, resident_mib=200.0)
    poor = seen(101, actual=512, used=500)
    assert told(decide([idle, poor], available=512 + 3000)).get(101, 512) <= 512 + 256


def test_memory_that_a_guest_may_touch_at_any_moment_is_given_to_nobody():
    """Not even where a fair size would allow it: first it has to be taken."""
    idle = seen(100, actual=4096, used=100, high=4096, resident_mib=200.0)
    poor = seen(101, actual=512, used=500)
    assert told(decide([idle, poor], available=512 + 1000)).keys() == {100}
    assert 101 in told(decide([replace(idle, resident_mib=4096.0), poor], available=512 + 1000))


def test_the_state_survives_as_text_and_damage_is_named():
    state = decide([seen(actual=2048, used=300)]).state
    assert state.targets == {100: state.guests[100].target_mib}
    assert balloon.State.from_json(json.loads(json.dumps(state.to_json()))) == state
    whole = [1, 0.0, 300.0, 0, 0, 0, None, 0.0, 1.0, 0.0, 1.0, None, 0.0, 0.0]
    guests = ({"100": [1, 2]}, {"100": ["a"] * 14}, {"100": [None] * 14}, {"x": whole})
    hosts = ([1, 2], "abc", [None, 1, 2], 7)
    found = balloon.State.from_json({"guests": {"100": whole}})
    assert found.guests[100].need_mib == 300
    damage = [{"guests": one} for one in guests] + [{"guests": {"100": whole}, "host": one} for one in hosts]
    for damaged in (None, [], *damage):
        with pytest.raises(Damaged):
            balloon.State.from_json(damaged)
