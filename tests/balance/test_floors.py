"""How far a guest can be sent down at most: its floor and its minimum."""

import pytest

from pxsched.balance import memory, need, taking
from pxsched.balance.balloon import Guest, Host, Outcome, Record, State, Stats
from pxsched.settings.policy import NodeSettings, Policy

NODE = NodeSettings(reserved_mib=512)
# Wishes that leave hardly any room above what is used, so that floor and minimum are what holds.
EAGER = Policy(starved_mib=0, starved_percent=0.0, wasteful_mib=1, wasteful_percent=0.0)

KNOWN = State({100: Record(1, 1000.0, 300.0)})


def guest(*, used: float, actual: float = 1024.0, minimum: int = 64, **stats: float) -> Guest:
    said = Stats(actual, actual - used, **stats)
    return Guest(100, 1, actual, minimum, 4096, stats=said, policy=EAGER)


def one_pass(seen: Guest, state: State | None = None, now_s: float = 1000.0) -> Outcome:
    # A poor host: whoever has anything is asked for it.
    return memory.targets([seen], Host(8192, 100), state or State(), NODE, now_s)


@pytest.mark.parametrize(("actual", "floor"), [(1024.0, need.FLOOR_MIB), (4096.0, 0.03 * 4096)])
def test_no_guest_is_asked_to_go_below_what_it_uses_and_its_floor(actual, floor):
    """It ends at its bounds; asked for more, as when memory is missing, it ends at its least."""
    standing = one_pass(guest(used=300, actual=actual)).standings[100]
    assert standing.guest.policy is EAGER
    assert need.standing(standing.guest, standing.guest.stats, None, 600, 0).used_mib == 300
    assert standing.least_mib == min(300 + floor, standing.low_mib)


def test_a_plain_policy_leaves_the_floor_above_what_is_used():
    seen = Guest(100, 1, 1024.0, 64, 4096, stats=Stats(1024, 724))
    assert one_pass(seen).standings[100].least_mib == 300 + need.FLOOR_MIB


def test_a_guest_that_does_not_lose_is_asked():
    outcome = one_pass(guest(used=300), KNOWN, 1010.0)
    assert not outcome.standings[100].losing
    assert outcome.targets[0].target_mib < 1024


def test_no_guest_is_sent_below_its_configured_minimum():
    """However long it is asked."""
    state, actual = State(), 1024.0
    for turn in range(200):
        outcome = one_pass(guest(used=100, actual=actual, minimum=700), state, 1000.0 + 10 * turn)
        state = outcome.state
        actual = float(outcome.targets[0].target_mib) if outcome.targets else actual
        assert all(size >= 700 for size in (actual, outcome.standings[100].least_mib))
    assert actual < 800


def test_a_step_ends_at_the_minimum_and_at_the_least_whatever_size_was_meant():
    standing = one_pass(guest(used=100, actual=720.0, minimum=700)).standings[100]
    for size in (0.0, 300.0):
        told = taking.step(standing, size, Record(1, 0.0, 100.0, pace=64.0), 1000.0, 8.0, lent=False)[0]
        assert told is None or told.target_mib >= 700
    standing = one_pass(guest(used=500, actual=1024.0, minimum=64)).standings[100]
    told = taking.step(standing, 0.0, Record(1, 0.0, 100.0, pace=64.0), 1000.0, 8.0, lent=False)[0]
    assert told is not None and told.target_mib >= standing.least_mib


def test_what_guests_may_take_without_asking_is_given_to_nobody_else():
    """A guest of 2 GiB that has touched 300 MiB can touch the rest at any moment."""
    starving = Guest(100, 1, 512.0, 256, 2048, stats=Stats(512, 12))
    for resident_mib, told in ((300.0, set()), (2048.0, {100})):
        idle = Guest(101, 1, 2048.0, 256, 4096, stats=Stats(2048, 1948), resident_mib=resident_mib)
        outcome = memory.targets([starving, idle], Host(8192, 1200), State(), NODE, 1000.0)
        assert {target.vmid for target in outcome.targets} - {101} == told
