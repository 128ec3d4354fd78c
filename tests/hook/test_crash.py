"""Killed at any write, nothing is lost: the next run finishes the work, and every original comes back."""

import os

import pytest

pytestmark = [
    pytest.mark.measures,
    pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"),
]
MOST_WRITES = 80


@pytest.fixture
def running(host):
    """A guest that runs without us, and then opts in."""
    host.sandbox.qm("create", 100, cores=2, memory=32)
    host.start(100)
    host.sandbox.qm("set", 100, hookscript="local:snippets/pxsched")
    host.settings('[vm.100]\ncpus = "1"\n')
    return host


def test_a_hook_killed_at_any_write_can_be_undone(running):
    before = running.all_masks(100)
    for write in range(MOST_WRITES):
        was_killed = running.killed_at(write, "hook", 100, "post-start")
        running.pxsched("restore", "--all")
        assert running.all_masks(100) == before, f"killed at write {write}"
        assert running.leftovers() == []
        if not was_killed:
            break
    assert 8 < write < MOST_WRITES - 1, "every write was tried, and there were some"


def test_a_hook_killed_at_any_write_is_finished_by_the_next(running):
    for write in range(MOST_WRITES):
        was_killed = running.killed_at(write, "hook", 100, "post-start")
        running.hook(100, "post-start")
        assert running.masks(100) == ["1", "1"], f"killed at write {write}"
        running.pxsched("restore", "--all")
        if not was_killed:
            break
    assert 8 < write < MOST_WRITES - 1


def test_an_undoing_killed_at_any_write_is_finished_by_the_next(running):
    before = running.all_masks(100)
    for write in range(MOST_WRITES):
        running.hook(100, "post-start")
        was_killed = running.killed_at(write, "pxsched", "restore", "--all")
        running.pxsched("restore", "--all")
        assert running.all_masks(100) == before, f"killed at write {write}"
        if not was_killed:
            break
    assert 8 < write < MOST_WRITES - 1


def test_a_start_killed_in_pre_start_gives_the_starter_back(host):
    """Pre-start steers the task that starts QEMU; here that is this very process."""
    host.settings('[node]\nhousekeeping = ""\n[vm.101]\nclass = "dedicated"\n')
    host.started(101, cores=1)
    host.create(100, cores=1)
    before = os.sched_getaffinity(0)
    for write in range(MOST_WRITES):
        was_killed = host.killed_at(write, "hook", 100, "pre-start")
        host.pxsched("restore", "--all")
        assert os.sched_getaffinity(0) == before, f"killed at write {write}"
        host.hook(101, "post-start")
        if not was_killed:
            break
    assert 4 < write < MOST_WRITES - 1
