"""Proofs of real guests on this machine's CPUs: what they say, and that they leave nothing behind."""

import json
import os
import signal
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from pxsched.node import proofs, trial
from pxsched.settings import files

pytestmark = pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1")

MOST_LOAD = 6
# Long enough never to end by itself in these tests.
LONG = ("--for", "60s")


def test_whatever_ends_a_proof_leaves_the_vm_as_it_was(host):
    """Killed in each way, interrupted, terminated; the pass that comes next does what there is to do."""
    host.vm(100, {0, 1})
    before = host.state(100)
    ways = ("stock", "home@0", "dedicated")
    for way in ways:
        running = host.start("prove", "100", *LONG, "--between", *ways)
        host.await_way(way)
        host.await_that(lambda: host.state(100) != before)
        running.kill()
        running.wait()
        host.run("tick")
        assert host.state(100) == before, way
        assert not host.root.exists(trial.FILE)
    for number in signal.SIGINT, signal.SIGTERM:
        running = host.start("prove", "100", *LONG, "--between", *ways)
        host.await_way("stock", "home@0")
        host.await_that(lambda: host.state(100) != before)
        running.send_signal(number)
        assert running.wait(20) == 130
        assert host.state(100) == before
        assert not host.root.exists(trial.FILE)


def test_two_proofs_at_once_a_stop_and_what_is_said_of_it(host):
    host.vm(100, {0, 1})
    host.vm(101, {0, 1})
    running = host.start("prove", "100", "--for", "32s", "--between", "stock", "home@0")
    host.await_way("stock", "home@0")
    assert "prove.lock is locked by process" in host.run("prove", "101", *LONG, code=1)
    status = host.run("status", "100")
    assert "VM 100 is on trial: it runs as " in status
    assert json.loads(host.run("status", "--json"))["trial"]["vmid"] == 100
    host.sandbox.qm("stop", 100)
    said, _ = running.communicate(timeout=20)
    assert running.returncode == 1
    assert "the proof of VM 100 ended early: VM 100 has" in said
    assert not host.root.exists(trial.FILE)


def test_a_vm_that_starts_and_wants_cpus_to_itself_ends_a_proof(host):
    host.vm(100, {0, 1})
    running = host.start("prove", "100", *LONG, "--between", "stock", "home@0")
    host.await_way("stock", "home@0")
    host.settings('[vm.101]\nclass = "dedicated"\n[node]\nhousekeeping = "0"\n')
    host.sandbox.qm("create", 101, memory=32, cores=1, hookscript="local:snippets/pxsched")
    host.sandbox.qm("start", 101)
    said, _ = running.communicate(timeout=20)
    assert running.returncode == 1
    assert "another VM looks for a place" in said or "settings of VM 100" in said or "not be any more" in said
    assert not host.root.exists(trial.FILE)
    assert len(set(host.sandbox.masks(101))) == 1


def test_what_would_be_done_is_said_and_a_dry_run_does_nothing(host):
    host.vm(100, {0, 1})
    host.vm(101, {0, 1})
    before = host.state(100)
    said = host.run("prove", "100", "--between", "stock", "dedicated", "--dry-run")
    assert "VM 100 runs in 2 ways in turn for 10 min: 40 blocks of 15 s" in said
    assert "stock: as Proxmox starts it, on CPUs 0-1" in said
    assert "VM 101 makes room meanwhile" in said
    assert host.state(100) == before
    assert not host.root.exists(trial.FILE)
    assert "too short" in host.run("prove", "100", "--for", "2s", code=1)
    assert "no way to run a VM" in host.run("prove", "100", "--between", "home", "nonsense", code=1)
    assert "which VM?" in host.run("prove", code=1)
    assert "nothing was proven of VM 100 yet" in host.run("prove", "100", "--show", code=1)
    assert "Nothing was proven" in host.run("prove", "--show")
    assert "go together" in host.run("prove", "--all", code=1)
    assert host.run("prove", "--all", "--quietly") == ""
    assert trial.load(host.root).vmid == 100
    host.run("tick")  # whose setting does not ask for it
    assert host.state(100) == before
    assert not host.root.exists(trial.FILE)


def crowd(host, vmid: int) -> None:
    """A guest that burns on CPU 0 and weighs more there than other work of this machine."""
    if os.getloadavg()[0] > MOST_LOAD:
        pytest.skip("so much runs on this machine that both of its CPUs are equally full, whoever is where")
    host.vm(vmid, {0}, busy=True)
    (tid,) = host.sandbox.vcpus(vmid).values()
    os.setpriority(os.PRIO_PROCESS, tid, -15)


@pytest.mark.slow
@pytest.mark.measures
def test_beside_a_neighbour_that_burns_a_vm_is_proven_better_elsewhere_and_that_is_kept(host, tmp_path):
    host.vm(100, {0}, busy=True)
    crowd(host, 101)
    before = host.state(100)
    picture = tmp_path / "blocks.svg"
    said = host.run("prove", "100", "--for", "40s", "--between", "now", "home@1", "--keep", "--svg", picture)
    assert "home@1 saves" in said
    assert "Kept: home@1." in said
    assert host.state(100)[0] == before[0]
    policy = files.load(host.root, {}).policy(100)
    assert policy.cpus == "1"
    text = host.root.read(files.NODE_FILE)
    assert "# pxsched prove, " in text and "time spent waiting for a CPU" in text
    ElementTree.parse(picture)
    found = proofs.load(host.root, 100)
    assert found.kept == "home@1" and len(found.blocks) == 32
    assert "saves" in host.run("prove", "100", "--show") and "saves" in host.run("status", "100")
    assert 'pxsched_proof_difference_ratio{' in host.run("report", "--prometheus", "-")


@pytest.mark.slow
@pytest.mark.measures
def test_one_cpu_for_two_busy_vcpus_is_proven_worse_and_given_back(host):
    host.vm(100, {0, 1}, cores=2, busy=True)
    crowd(host, 101)
    before = host.state(100)
    found = host.proof("100", "--for", "32s", "--between", "home", "home@0", "--keep")
    assert found["best"] == "home"
    assert found["sentence"].startswith("home@0 adds ") and found["sentence"].endswith("leave it")
    assert "nothing" in found["kept"]
    assert host.state(100) == before


@pytest.mark.slow
@pytest.mark.measures
def test_an_own_figure_decides_and_is_told_by_its_command(host):
    host.vm(100, {0, 1})
    command = '[ "$PXSCHED_WAY" = stock ] && echo rate: 10 || echo rate: 12'
    found = host.proof("100", "--for", "16s", "--between", "stock", "home@0", "--measure", command)
    assert (found["deciding"], found["best"]) == ("own", "home@0")
    assert found["sentence"] == (
        "home@0 is worth 20 % (20 to 20) of the figure of your own over stock"
    )
    said = host.run("prove", "100", "--for", "16s", "--measure", "echo nonsense", code=1)
    assert "printed no number" in said


@pytest.mark.slow
@pytest.mark.measures
def test_a_vm_that_has_nobody_beside_it_shows_no_difference(host):
    host.vm(100, {0, 1})
    assert host.proof("100", "--for", "16s")["sentence"].startswith("it did next to nothing meanwhile")
    host.sandbox.guest(100).wait()
    host.sandbox.guest(100).load(0, 100)
    found = host.proof("100", "--for", "32s")
    (waiting,) = (one for one in found["differences"] if one["figure"] == "waiting")
    # One proof in twenty may take noise for a difference, but for no large one.
    assert waiting["low"] < 3 and waiting["high"] > -3


@pytest.mark.slow
@pytest.mark.measures
def test_a_proof_takes_less_than_half_a_percent_of_a_cpu(host):
    host.vm(100, {0, 1})
    lasts_s = 40
    running = host.start("prove", "100", "--for", f"{lasts_s * 15}s")
    host.await_way("stock", "home")
    used = used_s(running.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(lasts_s)
    used = used_s(running.pid) - used
    running.send_signal(signal.SIGINT)
    running.wait(20)
    assert used / lasts_s < 0.005


def used_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
