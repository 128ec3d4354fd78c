"""Guests for the coordinator's tests: simulated ones, and ones as a single pass sees them."""

from bench.models.memory import Coordinator, Host
from bench.models.memory_guests import Guest
from pxsched.balance import balloon, memory
from pxsched.balance.balloon import Stats
from pxsched.settings.policy import NodeSettings

NODE = NodeSettings(reserved_mib=512)


def steady(mib):
    return lambda now_s: mib


def steps(*pairs):
    """A need that changes at given times: (0, 200), (60, 1500), ..."""
    return lambda now_s: [mib for at, mib in pairs if at <= now_s][-1]


def small(vmid, load, **more):
    """512 MiB that may grow to 2 GiB."""
    more = {"minimum_mib": 512, "maximum_mib": 2048, "actual_mib": 512.0} | more
    return Guest(vmid, load=load, **more)


def run(guests, total_mib, minutes, rule=None, period_s=10.0, **more):
    host = Host(guests, total_mib, rule or Coordinator(NODE), period_s=period_s, **more)
    for _ in range(int(minutes * 60 / period_s)):
        host.tick()
    return host


def seen(vmid=100, *, actual=1024.0, used=400.0, low=256, high=2048, age_s=0.0, **more):
    """A guest as one pass sees it."""
    stats = Stats(actual, actual - used, age_s=age_s)
    return balloon.Guest(vmid, 1, actual, low, high, **({"stats": stats} | more))


def decide(guests, available=8192.0, total=16384.0, state=None, now_s=1000.0, **host):
    return memory.targets(
        guests, balloon.Host(total, available, **host), state or balloon.State(), NODE, now_s
    )


def told(outcome):
    return {target.vmid: target.target_mib for target in outcome.targets}
