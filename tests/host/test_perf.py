"""Counters of single threads, by software events of the very same system call: these are on any machine."""

import os
import subprocess
import sys
import threading
import time

import pytest

from pxsched.host import perf
from pxsched.host.perf import Counters, Event, between

BURN = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"


def available() -> bool:
    with Counters([threading.get_native_id()], perf.SOFTWARE) as counters:
        return not counters.absent


pytestmark = pytest.mark.skipif(not available(), reason="this kernel lends no performance counters")


@pytest.fixture
def burner():
    process = subprocess.Popen([sys.executable, "-Sc", BURN])
    yield process.pid
    process.kill()
    process.wait()


def test_another_processs_thread_is_counted_as_the_scheduler_counts_it(burner):
    def ran_ns() -> int:
        with open(f"/proc/{burner}/schedstat") as file:
            return int(file.read().split()[0])

    with Counters([burner], perf.SOFTWARE) as counters:
        at, before = ran_ns(), counters.read()
        time.sleep(0.3)
        counted, ran = between(before, counters.read()), ran_ns() - at
    assert ran > 20_000_000
    assert counted["task_clock_ns"] == pytest.approx(ran, rel=0.2, abs=5e6)


def test_two_threads_are_counted_together_and_a_third_is_not(burner):
    other = subprocess.Popen([sys.executable, "-Sc", BURN])
    try:
        with Counters([burner, threading.get_native_id()], perf.SOFTWARE) as counters:
            before = counters.read()
            time.sleep(0.2)
            after = counters.read()
        assert len(after["task_clock_ns"]) == 2
        assert between(before, after)["task_clock_ns"] < 0.25e9
    finally:
        other.kill()
        other.wait()


def test_moves_between_cpus_are_counted(burner):
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    with Counters([burner], perf.SOFTWARE) as counters:
        os.sched_setaffinity(burner, {cpus[0]})
        time.sleep(0.05)
        before = counters.read()
        os.sched_setaffinity(burner, {cpus[1]})
        time.sleep(0.05)
        assert between(before, counters.read())["migrations"] >= 1


def test_what_is_not_to_be_had_is_named_and_the_rest_counts():
    nonsense = Event("nonsense", 1, 1 << 40)
    with Counters([threading.get_native_id()], (nonsense, *perf.SOFTWARE)) as counters:
        assert counters.absent.keys() == {"nonsense"}
        assert counters.absent["nonsense"]
        assert counters.read().keys() == {"task_clock_ns", "migrations"}


def test_hardware_counters_count_or_are_named():
    with Counters([threading.get_native_id()]) as counters:
        before = counters.read()
        sum(range(100_000))
        counted = between(before, counters.read())
        names = {event.name for event in perf.HARDWARE}
        assert names <= counters.absent.keys() | counted.keys()
        assert counted.get("instructions", 1e6) > 100_000


def test_a_thread_that_is_gone_is_no_fault_of_ours():
    with Counters([(1 << 22) - 1], perf.SOFTWARE) as counters:
        assert counters.absent.keys() == {"task_clock_ns", "migrations"}
        assert counters.read() == {}


def test_no_file_stays_open():
    before = len(os.listdir("/proc/self/fd"))
    with Counters([threading.get_native_id(), (1 << 22) - 1]):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_event_that_had_half_of_the_turns_counts_double_and_one_without_any_is_left_out():
    before = {"cycles": [(100, 1000, 1000)], "instructions": [(0, 0, 0)], "migrations": [(1, 5, 5)]}
    after = {"cycles": [(200, 3000, 2000)], "instructions": [(0, 2000, 0)], "migrations": [(1, 5, 5)]}
    assert between(before, after) == {"cycles": 200.0, "migrations": 0.0}
