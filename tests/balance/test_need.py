"""What a guest needs: what it has available comes first, and what it reads or swaps only beside that."""

import pytest

from pxsched.balance import balloon, fair, lending
from pxsched.balance.balloon import Stats

from .coordinating import NODE, decide, seen, told

# More than any machine reads in ten seconds.
BUSY = {"swapped_in_mib": 20_000.0, "swapped_out_mib": 20_000.0, "major_faults": 1_000_000}


def active(actual, available, **counted):
    """The same guest ten seconds later, after it has counted so much."""
    known = decide([seen(actual=actual, used=actual - available)], now_s=990).state
    now = seen(actual=actual, high=8192, stats=Stats(actual, available, **counted))
    return decide([now], state=known, now_s=1000)


@pytest.mark.parametrize("counter", BUSY)
def test_whoever_has_more_than_its_upper_bound_available_never_starves_whatever_it_does(counter):
    outcome = active(2048, 700, **{counter: BUSY[counter]})
    assert not outcome.standings[100].starving
    assert not outcome.standings[100].losing
    assert outcome.standings[100].used_mib == 2048 - 700


def test_a_windows_guest_that_reads_files_gives_to_one_that_is_full():
    windows = seen(100, actual=4096, high=8192, stats=Stats(8192, 2096, swapped_in_mib=0))
    full = seen(101, actual=2048, used=2040, high=8192)
    first = decide([windows, full], available=2600, now_s=990)
    actual = told(first)[100]
    assert actual < 4096
    reading = seen(100, actual=actual, high=8192, stats=Stats(8192, actual - 2000, swapped_in_mib=20))
    sizes = told(decide([reading, full], available=2600, state=first.state, now_s=1000))
    assert sizes[100] < actual
    assert sizes[101] > 2048


def test_a_guest_that_faults_mapped_files_in_does_not_grow():
    """150 major faults a second with 6 of 8 GiB available; it once took 25 GiB more from the host."""
    state, actual = balloon.State(), 8192.0
    for step in range(40):
        guest = seen(actual=actual, high=32768, stats=Stats(actual, actual - 2000, major_faults=1500 * step))
        outcome = decide([guest], available=30000, total=65536, state=state, now_s=1000.0 + 10 * step)
        state = outcome.state
        actual = float(told(outcome).get(100, actual))
    assert actual < 2600


def test_short_of_memory_and_writing_to_its_swap_it_gets_what_it_wrote_besides():
    quiet = active(1024, 100)
    swapping = active(1024, 100, swapped_out_mib=50)
    assert told(swapping)[100] == told(quiet)[100] + 50
    assert swapping.standings[100].losing
    assert told(active(1024, 100, swapped_out_mib=20_000)) == told(active(1024, 0))


def test_writing_to_swap_while_it_does_not_starve_it_grows_by_as_much_and_gives_like_any_other():
    early = active(1024, 200, swapped_out_mib=10)
    assert early.standings[100].used_mib == 1024 - 200 + 10
    assert not early.standings[100].starving
    assert not early.standings[100].firm
    assert told(early)[100] == early.standings[100].high_mib
    assert told(active(1024, 310, swapped_out_mib=10)) == {}


@pytest.mark.parametrize("counter", ["swapped_in_mib", "major_faults"])
def test_reading_back_counts_only_where_it_starves_by_its_own_word_and_asks_for_no_more(counter):
    enough = active(1024, 160, **{counter: BUSY[counter]})
    assert not enough.standings[100].losing
    assert 100 not in told(enough)
    starving = active(1024, 100, **{counter: BUSY[counter]})
    assert starving.standings[100].losing
    assert told(starving) == told(active(1024, 100))


def test_who_is_short_and_swaps_gives_nothing_until_the_host_itself_is_about_to_kill():
    short = {"actual": 2048, "high": 4096}
    guests = [seen(100, stats=Stats(2048, 140), **short), seen(101, actual=512, used=505)]
    before = decide(guests, now_s=990).state
    assert told(decide(guests, available=400, state=before, now_s=1000))[100] < 2048
    now = [seen(100, stats=Stats(2048, 140, swapped_out_mib=50.0), **short), guests[1]]
    assert 100 not in told(decide(now, available=400, state=before, now_s=1000))
    firm = seen(100, actual=2048, stats=Stats(2048, 290), kept="it is being backed up")
    assert 100 not in told(decide([firm, guests[1]], available=400))
    assert told(decide([firm, guests[1]], available=100))[100] < 2048


def test_a_backup_only_stops_the_taking():
    full = seen(100, actual=512, used=500, kept="it is being backed up")
    idle = seen(101, actual=2048, used=300, kept="it is being backed up")
    sizes = told(decide([full, idle]))
    assert sizes[100] > 512
    assert 101 not in sizes


def test_a_total_of_zero_is_no_statistics():
    outcome = decide([seen(actual=4096, low=1024, high=8192, stats=Stats(0, 0))])
    assert told(outcome) == {}
    assert "without statistics" in outcome.skipped[100]


# Shares


def weighed(*shares):
    guests = [seen(100 + n, actual=1024, used=900, shares=one) for n, one in enumerate(shares)]
    return fair.weights(list(decide(guests).standings.values()))


def test_shares_of_zero_state_nothing_and_weigh_as_much_as_the_others_on_average():
    assert weighed(0, 0) == {100: 1.0, 101: 1.0}
    assert weighed(3000, 0, 5000) == {100: 0.75, 101: 1.0, 102: 1.25}
    assert weighed(50000, 0) == {100: 1.0, 101: 1.0}


# Who says that it never has enough


def test_a_guest_that_is_full_whatever_it_gets_and_never_swaps_takes_nothing_at_the_cost_of_others():
    """With statistics that lie, it once had all that it may have, and the others what was left."""
    state, sizes = balloon.State(), {100: 1024.0, 101: 1024.0, 102: 1024.0, 103: 1024.0}
    total, reserve = 8192.0, NODE.reserved_mib
    for step in range(300):
        guests = [seen(100, actual=sizes[100], used=sizes[100], high=8192)]
        guests += [seen(vmid, actual=sizes[vmid], used=1000, high=8192) for vmid in (101, 102, 103)]
        free = total - reserve - sum(sizes.values())
        # In the end an hour apart: it is not forgotten in days.
        now_s = 1000.0 + 10 * step + 3600 * max(0, step - 200)
        outcome = decide(guests, available=free + reserve, total=total, state=state, now_s=now_s)
        before, state = sizes[100], outcome.state
        sizes |= {vmid: float(size) for vmid, size in told(outcome).items()}
        assert step < 200 or sizes[100] == before
    assert not any(outcome.standings[vmid].starving for vmid in (101, 102, 103))
    assert sizes[100] < total - reserve - 3 * 1100


@pytest.mark.parametrize(("available", "left"), [(6, 3000), (106, 2900), (0, 2994), (4000, 0)])
def test_whoever_has_more_or_less_available_than_before_answers_by_that_much(available, left):
    """A guest that needs all it has has little available, and now this, now that."""
    known = balloon.Record(1, 1000.0, 4090.0, unanswered_mib=3000.0, available_mib=6.0)
    state = balloon.State({100: known})
    full = seen(actual=4096, used=4096 - available, high=8192)
    later = decide([full], available=0, state=state, now_s=1010.0)
    assert later.state.guests[100].unanswered_mib == left


def test_a_guest_that_swaps_is_believed():
    place = fair.Place(decide([seen(actual=4096, used=4090, high=8192)]).standings[100], 1.0, 1000.0, 5000.0)
    assert place.granted(6000.0) == 4096
    believed = fair.Place(place.standing, 1.0, 1000.0, 0.0)
    assert believed.granted(6000.0) == 6000.0
    full = active(1024, 0, swapped_out_mib=50)
    assert full.state.guests[100].unanswered_mib == told(full)[100] - 1024


# The host


@pytest.mark.parametrize(("stalled", "lends"), [(0.0, True), (0.9, True), (1.0, False), (20.0, False)])
def test_memory_stalls_stop_lending(stalled, lends):
    means, _ = lending.means(balloon.Host(8192, 300, stalled), None, NODE, 0.0)
    assert means.lends is lends
    rich = seen(101, actual=1500, used=200)
    sizes = told(decide([seen(actual=512, used=500), rich], available=300.0, total=8192, stalled=stalled))
    assert (100 in sizes) is lends
    assert sizes[101] < 1500


def test_what_zfs_holds_counts_as_fast_as_it_shrinks():
    host = balloon.Host(65536, 1000, arc_mib=16384)
    means, record = lending.means(host, None, NODE, 0.0)
    assert means.available_mib == 1000 + 16384 / 128 * 10
    # It was counted on, the host is short, and it stays as large as it was.
    short = balloon.Host(65536, 100, arc_mib=16384)
    for at_s in (10.0, 20.0, 30.0):
        means, record = lending.means(short, record, NODE, at_s)
    assert means.available_mib == pytest.approx(100 + 16384 / 128 / 8 * 10)
    # Then it is seen to give 3 GiB in ten seconds.
    means, record = lending.means(balloon.Host(65536, 100, arc_mib=13384), record, NODE, 40.0)
    assert record.arc_mib_s == pytest.approx(300)
    assert means.available_mib == pytest.approx(3100)


def test_a_small_cache_of_zfs_never_counts_for_more_than_it_is():
    means, _ = lending.means(balloon.Host(65536, 1000, arc_mib=5), None, NODE, 0.0)
    assert means.available_mib <= 1005
    assert lending.means(balloon.Host(65536, 1000), None, NODE, 0.0)[0].available_mib == 1000


def test_no_size_is_planned_with_what_ksm_saves():
    guests = [seen(vmid, actual=1024, used=800) for vmid in (100, 101)]
    standings = list(decide(guests).standings.values())

    def sizes(merged_mib):
        host = balloon.Host(4096, 600, merged_mib=merged_mib)
        return sum(fair.sizes(standings, host, lending.means(host, None, NODE, 0.0)[0]).values())

    assert sizes(0.0) - sizes(100.0) == pytest.approx(100, abs=1)
