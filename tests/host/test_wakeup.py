import os
import time

from pxsched.host import wakeup


def test_a_cpu_wakes_us_up_a_little_late_and_we_are_where_we_were():
    before = os.sched_getaffinity(0)
    cpu = max(before)
    found = sorted(latency for _ in range(5) if (latency := wakeup.latency_us(cpu)) is not None)
    assert 0 <= found[0] < 50_000
    assert os.sched_getaffinity(0) == before


def test_a_cpu_that_is_not_there_has_no_latency():
    began = time.monotonic()
    assert wakeup.latency_us(8191) is None
    assert time.monotonic() - began < 1
