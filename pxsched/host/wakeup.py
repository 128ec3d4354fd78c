"""How late a CPU wakes somebody up: a thread of ours sleeps there for a moment, and looks at the clock.

What is measured is the way of every timer: leaving an idle state, the interrupt, and the wait for whoever is
running. One look takes a millisecond of sleep and a few microseconds of work. Rules: sched_setaffinity(2),
prctl(2) PR_SET_TIMERSLACK.
"""

import ctypes
import os
import time

_SLEEP_NS = 1_000_000
_TIMER_SLACK = 29  # PR_SET_TIMERSLACK; the ordinary 50 us would be measured along


def latency_us(cpu: int) -> float | None:
    """How much later than asked this CPU wakes us up; None where we may not run."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        return None
    prctl = ctypes.CDLL(None).prctl
    prctl(_TIMER_SLACK, ctypes.c_ulong(1))
    try:
        asleep_ns = time.monotonic_ns()
        time.sleep(_SLEEP_NS / 1e9)
        return max(0, time.monotonic_ns() - asleep_ns - _SLEEP_NS) / 1000
    finally:
        prctl(_TIMER_SLACK, ctypes.c_ulong(0))  # what it was at first
        os.sched_setaffinity(0, before)
