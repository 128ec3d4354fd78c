"""Who has a knob in hand: the process that turns it, while another program is asked and no lock is held."""

import os

from pxsched.guest import process
from pxsched.guest.process import Process
from pxsched.ledger import file as ledgers
from pxsched.ledger.journal import Lease
from pxsched.root import Root

# Longer than any pass takes to turn what waits for others.
LONGEST_NS = 60 * 10**9


def take() -> Lease:
    """A lease of our own, from now on."""
    pid = os.getpid()
    us = process.identify(Root(), pid)
    return Lease(pid, us.start_ticks if us else 0, ledgers.now_ns() + LONGEST_NS)


def holds(lease: Lease, now_ns: int) -> bool:
    """Whether its process has the knob in hand. now_ns: boot time."""
    if not now_ns < lease.until_ns <= now_ns + LONGEST_NS:
        return False
    return process.alive(Root(), Process(lease.pid, lease.start_ticks))
