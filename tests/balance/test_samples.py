"""Measuring: nothing is counted twice, and nothing that cannot be true is believed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.balance.samples import Counter, Reading, Snapshot, between
from pxsched.stored import Damaged

S = 10**9


def snapshot(at_s, *, run_s=0.0, wait_s=0.0, start=1, tid=11, throttled_s=0.0, vmid=100):
    counter = Counter(int(run_s * S), int(wait_s * S))
    return Snapshot({vmid: Reading(vmid, start, int(at_s * S), {tid: counter}, int(throttled_s * S))})


def use(before, after, **limits):
    return between(before, after, limits.get("limits")).uses.get(100)


def test_rates_are_over_the_time_that_really_passed():
    found = use(snapshot(100, run_s=5), snapshot(107, run_s=8.5, wait_s=1.75))
    assert found.elapsed_s == pytest.approx(7)
    assert found.total.run == pytest.approx(0.5)
    assert found.total.wait == pytest.approx(0.25)
    # It slept a quarter of the time; without waiting it would have run two thirds of the rest.
    assert found.total.demand == pytest.approx(2 / 3)


def test_a_vm_that_restarted_in_between_has_no_interval_yet():
    interval = between(snapshot(100, run_s=5), snapshot(110, run_s=1, start=2))
    assert interval.uses == {}
    assert interval.base.vms[100].start == 2


def test_a_thread_that_is_new_is_measured_from_now_on():
    before, after = snapshot(100, tid=11), snapshot(110, run_s=9, tid=12)
    interval = between(before, after)
    assert interval.uses == {} and interval.base == after


@pytest.mark.parametrize("back", [{"run_s": 1, "wait_s": 5}, {"run_s": 5, "wait_s": 1}])
def test_counters_that_went_back_are_no_interval_yet_and_nobody_idle(back):
    before, after = snapshot(100, run_s=5, wait_s=5), snapshot(110, **back)
    interval = between(before, after)
    assert interval.uses == {} and interval.base == after


def test_vms_that_came_or_went_in_between_do_not_matter_to_the_others():
    before = Snapshot({**snapshot(100).vms, **snapshot(100, vmid=101).vms})
    after = Snapshot({**snapshot(110, run_s=5).vms, **snapshot(110, vmid=102).vms})
    interval = between(before, after)
    assert list(interval.uses) == [100]
    assert interval.base.vms.keys() == {100, 102}


def test_a_pass_right_after_another_leaves_the_measurement_to_the_next():
    first = snapshot(100, run_s=5)
    interval = between(first, snapshot(100.001, run_s=5.001))
    assert interval.uses == {}
    assert interval.base == first
    assert use(interval.base, snapshot(110, run_s=10)).total.run == pytest.approx(0.5)


def test_a_clock_that_went_back_measures_nothing():
    assert use(snapshot(100, run_s=5), snapshot(50, run_s=6)) is None


def test_a_sleep_of_the_machine_that_shows_in_the_counters_is_no_contention():
    assert use(snapshot(100), snapshot(110, wait_s=3600)) is None
    assert use(snapshot(100), snapshot(110, run_s=3600)) is None


def test_waiting_that_cpulimit_caused_is_no_contention():
    held = use(snapshot(100), snapshot(110, run_s=5, wait_s=5, throttled_s=4))
    assert held.total.wait == pytest.approx(0.1)
    capped = use(snapshot(100), snapshot(110, run_s=5, wait_s=5), limits={100: 0.5})
    assert capped.total.wait == 0
    assert capped.total.demand == pytest.approx(0.5)


def test_the_snapshot_survives_as_text_and_damage_is_named():
    before = snapshot(100, run_s=5, wait_s=1, throttled_s=2)
    assert Snapshot.from_json(json.loads(json.dumps(before.to_json()))) == before
    for damaged in (None, [], {"a": 1}, {"100": [1, 2]}, {"100": [1, 2, 3, {"x": [1]}]}):
        with pytest.raises(Damaged):
            Snapshot.from_json(damaged)


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**11),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
)
def test_whatever_the_counters_say_nobody_uses_more_than_a_cpu_a_thread(at, elapsed, run, wait, throttled):
    before = Snapshot({100: Reading(100, 1, at, {11: (0, 0)})})
    after = Snapshot({100: Reading(100, 1, at + elapsed, {11: (run, wait)}, throttled)})
    found = between(before, after).uses.get(100)
    if found is not None:
        total = found.total
        assert 0 <= total.run <= 1
        assert 0 <= total.wait <= 1 - total.run + 1e-9
        assert total.run - 1e-9 <= total.demand <= total.run + total.wait + 1e-9
