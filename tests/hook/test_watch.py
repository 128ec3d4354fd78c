"""`watch` in one process with real guests: what it remembers of them hides nothing from it."""

import os

import pytest

from pxsched.guest import process
from pxsched.node import sightings
from pxsched.root import Root
from pxsched.tick import Session

pytestmark = [
    pytest.mark.measures,
    pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"),
]


@pytest.fixture
def look(host, monkeypatch):
    """A pass that looks at everything, of a process that has made some before and trusts what it knows."""
    monkeypatch.setattr(process, "NAMED_S", 0.0)
    monkeypatch.setattr(sightings, "FRESH_S", 0.0)
    session = Session(Root(host.sandbox.root), {}, keep=True)

    def look():
        session._looked_s = float("-inf")
        return session.tick().settled

    return look


def started(host, look, **options):
    host.started(100, **options)
    for _ in range(3):
        look()
    assert look().report.turned == []


def test_a_thread_that_somebody_else_moved_is_put_right(host, look):
    started(host, look, cores=2, affinity="1,0")
    os.sched_setaffinity(host.sandbox.vcpus(100)[0], {0})
    assert [turn.drifted for turn in look().report.turned] == [True]
    assert host.masks(100) == ["1", "0"]


def test_a_changed_configuration_is_followed(host, look):
    host.settings('[profile.right]\ntag = true\ncpus = "1"\n')
    started(host, look, cores=2)
    host.sandbox.qm("set", 100, tags="pxsched-right")
    look()
    assert host.masks(100) == ["1", "1"]


def test_changed_settings_are_followed(host, look):
    started(host, look, cores=2)
    host.settings('[vm.100]\ncpus = "1"\n')
    look()
    assert host.masks(100) == ["1", "1"]


def test_a_hot_plugged_vcpu_is_placed(host, look):
    started(host, look, cores=2, vcpus=1, affinity="1,0", hotplug="cpu")
    host.sandbox.qm("set", 100, vcpus=2)
    look()
    assert host.masks(100) == ["1", "0"]


def test_a_vm_that_opts_out_is_put_back(host, look):
    started(host, look, cores=2, affinity="1,0")
    host.sandbox.qm("set", 100, "--delete", "hookscript")
    look()
    assert host.masks(100) == ["0-1", "0-1"]


def test_a_vm_that_was_started_again_is_another_one(host, look):
    started(host, look, cores=2, affinity="1,0")
    host.stop(100)
    host.start(100)
    os.sched_setaffinity(host.sandbox.vcpus(100)[1], {1})
    look()
    assert host.masks(100) == ["1", "0"]
    host.stop(100)
    look()
    assert host.leftovers() in ([], ["tick.lock"])
