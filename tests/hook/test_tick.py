"""The timer's pass finds what no hook tells: late starts, drift, vanished and hot-plugged things."""

import os
import signal

import pytest

from pxsched.ledger import file as ledger
from pxsched.ledger.claim import State
from pxsched.monitor import refusals
from pxsched.node import settle
from pxsched.node import sighting as node
from pxsched.node.sightings import Sightings
from pxsched.root import Root

pytestmark = [
    pytest.mark.measures,
    pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"),
]


def test_a_pass_with_nothing_to_do_says_nothing(host):
    host.started(100, cores=2, affinity="1,0")
    assert host.pxsched("tick").stdout == ""


def test_a_vm_that_was_running_before_us_is_placed(host):
    host.sandbox.qm("create", 100, cores=2, memory=32, affinity="1,0")
    host.start(100)
    host.sandbox.qm("set", 100, hookscript="local:snippets/pxsched")
    assert "placed VM 100" in host.pxsched("tick").stdout
    assert host.masks(100) == ["1", "0"]


def test_a_thread_that_somebody_else_moved_is_put_right_and_the_drift_is_counted(host):
    host.started(100, cores=2, affinity="1,0")
    os.sched_setaffinity(host.sandbox.vcpus(100)[0], {0})
    assert "turned 1 knobs, 1 of them again" in host.pxsched("tick").stdout
    assert host.masks(100) == ["1", "0"]
    assert [knob["drifts"] for knob in host.status()["knobs"] if knob["drifts"]] == [1]


def test_a_hot_plugged_vcpu_is_placed(host):
    host.create(100, cores=2, vcpus=1, affinity="1,0", hotplug="cpu")
    host.start(100)
    host.sandbox.qm("set", 100, vcpus=2)
    host.pxsched("tick")
    assert host.masks(100) == ["1", "0"]


def test_a_lost_post_stop_is_made_up_for(host):
    host.started(100, cores=2, affinity="1,0")
    host.sandbox.qm("set", 100, "--delete", "hookscript")
    os.kill(host.sandbox.pid(100), signal.SIGKILL)
    while host.sandbox.pid(100):
        pass
    host.pxsched("tick")
    assert host.status()["vms"] == []


def test_a_vm_that_opted_out_is_put_back_while_it_runs(host):
    host.create(100, cores=2)
    host.settings('[vm.100]\ncpus = "1"\n')
    host.start(100)
    assert host.masks(100) == ["1", "1"]
    host.sandbox.qm("set", 100, "--delete", "hookscript")
    host.pxsched("tick")
    assert host.masks(100) == ["0-1", "0-1"]


def test_a_vm_whose_configuration_cannot_be_read_keeps_what_it_has(host):
    host.started(100, cores=2, affinity="1,0")
    path = f"{host.sandbox.root}/etc/pve/nodes/sandbox/qemu-server/100.conf"
    os.rename(path, f"{path}.away")
    host.pxsched("tick")
    assert host.masks(100) == ["1", "0"]
    os.rename(f"{path}.away", path)


def test_a_pass_that_looked_before_a_hook_came_undoes_nothing(host):
    """The timer looks without the lock; what starts meanwhile is the hook's until the next pass."""
    root = Root(host.sandbox.root)
    host.create(100, cores=2, affinity="1,0")
    before = Sightings(root).look(ledger.peek(root))
    host.start(100)
    settle.settle(node.open_node(root), before, everybody=True)
    assert host.masks(100) == ["1", "0"]
    late = Sightings(root).look(ledger.peek(root))
    host.stop(100)
    settle.settle(node.open_node(root), late, everybody=True)
    assert host.leftovers() == []


def test_a_pass_that_saw_the_last_run_turns_nothing_of_the_next(host):
    root = Root(host.sandbox.root)
    host.started(100, cores=2, affinity="1,0")
    late = Sightings(root).look(ledger.peek(root))
    host.stop(100)
    host.start(100)
    before = ledger.peek(root)
    settle.settle(node.open_node(root), late, everybody=True)
    assert host.masks(100) == ["1", "0"]
    after = ledger.peek(root)
    assert dict(after.claims) == dict(before.claims) and dict(after.journal) == dict(before.journal)


def test_a_pass_that_saw_the_last_run_leaves_the_cpus_to_the_next(host):
    """Between pre-start and QEMU the claim is all there is: without it the CPUs are somebody else's."""
    root, mine = Root(host.sandbox.root), os.sched_getaffinity(0)
    host.settings('[defaults]\nclass = "dedicated"\ncpus = "1"\nstrict = true\n[node]\nhousekeeping = "0"\n')
    host.started(100, cores=1)
    late = Sightings(root).look(ledger.peek(root))
    host.stop(100)
    try:
        assert host.hook(100, "pre-start").returncode == 0  # this process is about to start it
        settle.settle(node.open_node(root), late, everybody=True)
        claim = ledger.peek(root).claims[100]
        assert (claim.state, claim.process) == (State.STARTING, None)
        host.create(101, cores=1)
        assert "exclusive" in host.hook(101, "pre-start").stdout
    finally:
        host.pxsched("restore", "--all")
    assert os.sched_getaffinity(0) == mine


def test_a_broken_file_of_settings_costs_a_running_vm_nothing_and_is_told_until_it_is_whole(host):
    whole = '[node]\nhousekeeping = "0"\n[vm.100]\nclass = "dedicated"\ncpus = "1"\nstrict = true\n'
    host.settings(whole)
    host.started(100, cores=1)
    host.settings(whole.replace("[vm.100]", "[vm.100"))
    assert "stays in force" in host.pxsched("tick").stdout
    assert host.masks(100) == ["1"]
    (vm,) = host.status()["vms"]
    assert vm["class"] == "dedicated"
    (warning,) = host.status()["warnings"]
    assert "/etc/pxsched/pxsched.toml" in warning and "stays in force" in warning
    assert "stays in force" in host.pxsched("doctor", check=False).stdout
    host.stop(100)
    started = host.start(100)
    assert "stays in force" in started.output and host.masks(100) == ["1"], "for those that start, too"
    host.settings(whole)
    assert host.pxsched("tick").stdout == "" and host.status()["warnings"] == []


def test_a_mail_that_cannot_be_sent_is_said_once_and_not_at_every_pass(host):
    """Whether it is sent where it can be is for the lab, which has a systemd and a sendmail of its own."""
    host.settings('[node]\nnotify = "mail"\n[vm.100]\nclass = "dedicated"\nstrict = true\n')
    assert host.pxsched("tick").stderr == ""
    assert host.sandbox.qm("start", host.create(100, cores=8), check=False).code != 0
    said = [host.pxsched("tick").stderr for _ in range(2)]
    assert said == ["pxsched: no mail could be sent: there is no /usr/sbin/sendmail\n", ""]
    (refused,) = refusals.load(Root(host.sandbox.root)).values()
    assert (refused.times, refused.reason.startswith("needs 8 exclusive CPUs")) == (1, True)
