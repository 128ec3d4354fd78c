"""Guests that say nothing of their memory, and guests whose memory the host cannot have back."""

import pytest

from pxsched.balance import balloon, giving
from pxsched.balance.balloon import Stats
from pxsched.guest.balloon import BELIEVED_S, Reading, Silence
from pxsched.value import replace

from .coordinating import decide, seen, told


def silent(vmid=100, actual=1024.0, **more):
    return seen(vmid, actual=actual, low=1024, high=8192, **({"stats": None} | more))


def hour(guest, available=40000.0, total=65536.0):
    """Its size after an hour of passes, what was said at the last, and the pass at which it first grew."""
    state, actual, grew = balloon.State(), guest.actual_mib, None
    for step in range(360):
        now = replace(guest, actual_mib=actual, resident_mib=actual)
        free = available - (actual - guest.actual_mib)
        outcome = decide([now], available=free, total=total, state=state, now_s=1000.0 + 10 * step)
        state = outcome.state
        if 100 in told(outcome):
            actual, grew = float(told(outcome)[100]), step if grew is None else grew
    return actual, outcome.skipped[100], grew


@pytest.mark.parametrize("silence", Silence)
def test_a_silent_guest_grows_from_its_minimum_after_five_minutes_while_the_host_has_room(silence):
    actual, said, grew = hour(silent(silence=silence.value))
    assert actual == 8192
    assert grew == giving.SILENT_S / 10 == 30
    assert said.startswith(silence.value)


def test_statistics_of_long_ago_count_as_none():
    state, now_s = balloon.State(), 1000.0
    wasteful = seen(actual=2048, used=300, age_s=BELIEVED_S - 1)
    assert told(decide([wasteful]))[100] < 2048
    stale = seen(actual=2048, used=300, age_s=BELIEVED_S + 1)
    for _ in range(3):
        outcome = decide([stale], state=state, now_s=now_s)
        assert told(outcome) == {} and "s old" in outcome.skipped[100]
        state, now_s = outcome.state, now_s + 10


def test_until_then_it_is_said_when_it_will():
    outcome = decide([silent(silence=Silence.NO_STATISTICS.value)])
    assert told(outcome) == {}
    assert "in 300 s it gets its part" in outcome.skipped[100]


def test_it_gets_no_more_than_its_part_of_a_host_that_others_share():
    others = [seen(vmid, actual=4096, used=3000, low=1024, high=8192) for vmid in (101, 102, 103)]
    guests = [silent(), *others]
    state = decide(guests, available=4000, now_s=1000).state
    later = decide(guests, available=4000, state=state, now_s=1400)
    assert told(later)[100] == pytest.approx((1024 + 3 * 4096 + 4000 - 512) / 4, abs=2)


def test_whoever_starves_comes_before_it_and_a_host_that_is_short_gives_it_nothing():
    guests = [silent(), seen(101, actual=2048, used=2040, high=8192)]
    state = decide(guests, now_s=1000).state
    assert told(decide(guests, available=512 + 300, state=state, now_s=1400)).keys() == {101}
    assert told(decide([silent()], available=300, state=state, now_s=1400)) == {}
    assert told(decide([silent()], available=8000, stalled=5.0, state=state, now_s=1400)) == {}


def test_nothing_is_taken_from_a_silent_guest_however_short_the_host_is():
    state = decide([silent(actual=8192.0)], available=50, now_s=1000).state
    outcome = decide([silent(actual=8192.0)], available=50, state=state, now_s=2000)
    assert told(outcome) == {}
    assert "it has all its memory" in outcome.skipped[100]


def test_what_a_silent_guest_is_given_is_not_held_against_it_when_it_speaks():
    state = decide([silent()], now_s=1000).state
    outcome = decide([silent()], state=state, now_s=1400)
    assert told(outcome) == {100: 8192}
    record = outcome.state.guests[100]
    assert (record.unanswered_mib, record.patience) == (0.0, 1.0)


def test_a_guest_that_speaks_again_is_treated_like_any_other():
    state = decide([silent()], now_s=1000).state
    spoke = decide([seen(actual=1024, used=700, low=1024, high=8192)], state=state, now_s=1200).state
    assert 100 not in told(decide([silent()], state=spoke, now_s=1400))


def test_a_guest_that_could_not_be_asked_keeps_what_it_has():
    state = decide([seen(actual=2048, used=300)], now_s=1000).state
    for now_s in (1400, 2400):
        unheard = seen(actual=2048, stats=None, unheard="QEMU does not answer")
        outcome = decide([unheard], state=state, now_s=now_s)
        assert told(outcome) == {}
        assert outcome.skipped[100] == "QEMU does not answer"
        assert 100 in outcome.state.guests


def test_a_guest_that_does_not_follow_is_told_once_and_what_it_was_told_is_given_to_nobody():
    """It is paused, say: once it goes on it may take all of that at once."""
    stopped = silent(resident_mib=1024.0, silence=Silence.STALE.value)
    state = decide([stopped], now_s=1000).state
    outcome = decide([stopped], available=40000, state=state, now_s=1400)
    assert told(outcome) == {100: 8192}
    poor = seen(101, actual=512, used=505)
    later = decide([stopped, poor], available=7168 + 512 + 100, state=outcome.state, now_s=1410)
    assert told(later).keys() == {101}
    assert told(later)[101] <= 512 + 100
    pinned = seen(actual=2048, high=16384, excluded="it has huge pages", pinned=True, stats=None)
    state = decide([pinned]).state
    assert told(decide([pinned], state=state)) == {}


def test_what_a_guest_was_given_is_given_to_nobody_while_it_cannot_be_asked():
    state = balloon.State({100: balloon.Record(1, 990.0, 3700.0, target_mib=4096)})
    hung = seen(actual=4096, high=4096, stats=None, unheard="QEMU does not answer", resident_mib=200.0)
    poor = seen(101, actual=512, used=500)
    assert told(decide([hung, poor], available=512 + 3896 + 100, state=state)) == {101: 612}


def test_what_a_guest_had_counted_before_it_spoke_is_not_of_now():
    """Its polling was off, say: what it swapped in a month came in one pass."""
    state = decide([silent(actual=2048.0)], now_s=1000).state
    since_boot = Stats(2048, 290, swapped_in_mib=9000, swapped_out_mib=9000, major_faults=10**7)
    speaks = decide([silent(actual=2048.0, stats=since_boot)], state=state, now_s=1010)
    assert not speaks.standings[100].losing
    assert speaks.standings[100].used_mib == 2048 - 290
    more = Stats(2048, 290, swapped_out_mib=9050)
    assert decide([silent(actual=2048.0, stats=more)], state=speaks.state, now_s=1020).standings[100].losing


def test_a_guest_with_pinned_memory_gets_all_of_it_however_short_the_host_is():
    guest = seen(actual=2048, low=2048, high=16384, excluded="it has huge pages", pinned=True, stats=None)
    outcome = decide([guest], available=10)
    assert told(outcome) == {100: 16384}
    whole = seen(actual=16384, low=2048, high=16384, excluded="it has huge pages", pinned=True, stats=None)
    later = decide([whole], available=10, state=outcome.state)
    assert told(later) == {}
    assert 100 in later.state.guests  # so that what it was told stays in force


# In which way


@pytest.mark.parametrize(
    ("reading", "moved", "word"),
    [
        (Reading(8192.0), False, Silence.NO_DRIVER),
        (Reading(1024.0), False, Silence.NO_STATISTICS),  # somebody keeps the balloon inflated
        (Reading(8192.0), True, Silence.NO_STATISTICS),
        (Reading(8192.0, answered=True), False, Silence.NO_STATISTICS),  # with every value unset
        (Reading(8192.0, 8000.0, 300.0, age_s=40.0, answered=True), False, Silence.STALE),
        (Reading(8192.0, 8000.0, 300.0, age_s=3.0, answered=True), False, None),
    ],
)
def test_three_ways_to_be_silent_have_three_words(reading, moved, word):
    assert reading.silence(8192, moved=moved) is word
    assert len(set(Silence)) == 3
