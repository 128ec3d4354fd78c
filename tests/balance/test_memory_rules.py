"""The memory coordinator beside other rules: recorded orders of MOM, and Proxmox's and the pairwise rule."""

import json
import os
from pathlib import Path

import pytest

from bench.models.memory import Coordinator
from bench.models.memory_guests import Guest, copies
from bench.models.memory_rules import Pairwise, Proxmox, nothing
from pxsched.balance import balloon, memory, need
from pxsched.balance.balloon import Stats
from pxsched.settings.policy import NodeSettings

from .coordinating import NODE, run, told

CASES = Path(os.environ["PXSCHED_CORPORA"], "placement-cases/mom-balloon.json")



def mom_cases():
    if not CASES.exists():
        pytest.skip("the cases are answers of a GPL program, and not copied")
    return json.loads(CASES.read_text())["cases"]


def test_on_recorded_hosts_the_direction_and_the_limits_are_right():
    for case in mom_cases():
        pressed = case["host_free_kB"] < 0.2 * case["host_mem_kB"]
        node = NodeSettings(reserved_mib=int(0.2 * case["host_mem_kB"] / 1024))
        guests = [mom_guest(100 + n, guest) for n, guest in enumerate(case["guests"])]
        host = balloon.Host(case["host_mem_kB"] / 1024, case["host_free_kB"] / 1024)
        outcome = memory.targets(guests, host, balloon.State(), node, 0.0)
        by_vmid = {guest.vmid: guest for guest in guests}
        grown = 0.0
        for target in outcome.targets:
            guest = by_vmid[target.vmid]
            assert guest.minimum_mib <= target.target_mib <= guest.maximum_mib, case["id"]
            used = guest.actual_mib - guest.stats.available_mib
            if target.target_mib < guest.actual_mib:
                assert target.target_mib >= used, case["id"]
            else:
                assert outcome.standings[target.vmid].starving or not pressed, case["id"]
                grown += target.target_mib - guest.actual_mib
        # Only the starving grow on a pressed host, and only into what it has left.
        assert grown <= max(0.0, case["host_free_kB"] / 1024) + 1, case["id"]


def test_a_pressed_host_is_relieved_as_fast_as_mom_does_where_guests_have_something_to_give():
    slower = []
    for case in mom_cases():
        if case["host_free_kB"] >= 0.2 * case["host_mem_kB"]:
            continue
        node = NodeSettings(reserved_mib=int(0.2 * case["host_mem_kB"] / 1024))
        guests = [mom_guest(100 + n, guest) for n, guest in enumerate(case["guests"])]
        host = balloon.Host(case["host_mem_kB"] / 1024, case["host_free_kB"] / 1024)
        sizes = told(memory.targets(guests, host, balloon.State(), node, 0.0))
        changes = [guest.actual_mib - sizes.get(guest.vmid, guest.actual_mib) for guest in guests]
        freed = sum(max(0.0, change) for change in changes)
        theirs = 0.0
        for guest, target in zip(case["guests"], case["mom_balloon_target_kB"], strict=True):
            if target is not None:
                used = guest["balloon_cur_kB"] - guest["mem_unused_kB"]
                # What pushes a guest below its use, or grows it, is not relief worth copying.
                floor = max(need.FLOOR_MIB * 1024, need.FLOOR_PART * guest["balloon_cur_kB"])
                kept = max(target, used + floor, guest["balloon_min_kB"])
                theirs += max(0.0, guest["balloon_cur_kB"] - kept) / 1024
        goal = max(0.0, node.reserved_mib - host.available_mib)
        if freed < min(theirs, goal) - 16:
            slower.append((case["id"], freed, theirs))
    assert slower == []


def mom_guest(vmid, guest):
    actual = guest["balloon_cur_kB"] / 1024
    stats = Stats(actual, guest["mem_unused_kB"] / 1024)
    return balloon.Guest(
        vmid, 1, actual, guest["balloon_min_kB"] // 1024, guest["balloon_max_kB"] // 1024, stats
    )


def busy_and_idle():
    import random

    rng = random.Random(3)
    guests = []
    for number in range(12):
        base, peak, phase = rng.uniform(200, 500), rng.uniform(800, 1700), rng.randrange(12)

        def load(now_s, base=base, peak=peak, phase=phase):
            return peak if (now_s // 600 + phase) % 4 == 0 else base

        guests.append(Guest(100 + number, 256, 2048, load, 1024.0))
    return guests


def test_ahead_of_every_other_rule_where_needs_come_and_go():
    tallies = {}
    for name, rule in {
        "pxsched": Coordinator(NODE),
        "Proxmox": Proxmox(goal=1 - 512 / 12800),
        "pairwise": Pairwise(),
        "none": nothing,
    }.items():
        tallies[name] = run(copies(busy_and_idle()), 12800, 120, rule).tally
    ours = tallies.pop("pxsched")
    assert ours.below_need == 0
    for name, theirs in tallies.items():
        assert ours.starved_minutes < theirs.starved_minutes, name
        assert ours.wasted_gib < theirs.wasted_gib, name
        assert ours.mean_fairness > theirs.mean_fairness, name
    assert ours.traffic_gib < tallies["pairwise"].traffic_gib
