"""CPU fairness with real guests: QEMU's vCPU threads on this machine's CPUs, by the kernel's own counters."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from pxsched.node import others

from .conftest import WITH_OTHERS

pytestmark = [
    pytest.mark.measures,
    pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"),
]

HOT, COLD = frozenset((0,)), frozenset((1,))


def crowd(host, number, home=0, **options):
    vmids = [host.start(100 + n, **options) for n in range(number)]
    host.tick()
    for vmid in vmids:
        host.put(vmid, {home} if number else set())
    host.tick()
    for vmid in vmids:
        host.busy(vmid)
    host.tick(0.2)
    return vmids


def test_busy_vms_stuck_on_one_cpu_end_evenly_on_two_and_rest(host):
    host.settings('[node]\ncooldown_s = 0\nmoves = 1\n[defaults]\ncpus = "0-1"\n')
    vmids = crowd(host, 4)
    said = [host.tick(1.5) for _ in range(3)]
    homes = [host.home(vmid) for vmid in vmids]
    assert sorted(map(sorted, homes)) == [[0], [0], [1], [1]], said
    for vmid in vmids:
        assert host.sandbox.masks(vmid) == [str(min(host.home(vmid)))]
    before = {vmid: host.ran_ns(vmid) for vmid in vmids}
    assert [host.tick(1.5) for _ in range(4)] == [""] * 4
    ran = [host.ran_ns(vmid) - before[vmid] for vmid in vmids]
    assert min(ran) > 0.8 * max(ran)


@pytest.mark.slow
def test_a_balanced_host_stays_as_it_is(host):
    host.settings('[defaults]\ncpus = "0-1"\n')
    vmids = [host.start(100 + n) for n in range(4)]
    host.tick()
    for number, vmid in enumerate(vmids):
        host.put(vmid, {number % 2})
    host.tick()
    for vmid in vmids:
        host.busy(vmid)
    host.tick(0.5)
    assert [host.tick(0.7) for _ in range(10)] == [""] * 10


@pytest.mark.slow
def test_one_busy_vm_among_idle_ones_is_moved_at_most_once(host):
    host.settings('[defaults]\ncpus = "0-1"\n')
    vmids = [host.start(100 + n) for n in range(4)]
    host.tick()
    for vmid in vmids:
        host.put(vmid, {0})
    host.tick()
    host.busy(vmids[0])
    said = [host.tick(0.8) for _ in range(8)]
    assert sum("moved" in line for line in said) <= 1, said


def test_a_pinned_vm_is_never_touched(host):
    host.settings('[defaults]\ncpus = "0-1"\n')
    pinned = host.start(200, affinity="0")
    host.busy(pinned)
    crowd(host, 1)
    said = [host.tick(1.2) for _ in range(2)]
    assert host.sandbox.masks(pinned) == ["0"]
    assert host.home(100) == COLD, said


def test_status_has_what_the_last_pass_saw_and_did(host):
    host.settings('[defaults]\ncpus = "0-1"\n')
    crowd(host, 2)
    host.tick(1.5)
    assert {host.home(100), host.home(101)} == {HOT, COLD}
    last = host.state()["last"]
    assert "slower" in last["acted"][0]
    assert last["standings"].keys() == {"100", "101"}
    assert time.time() - last["at"] < 60
    status = host.pxsched("status")
    assert "The last pass that changed something" in status
    assert "slower than the" in status
    document = json.loads(host.pxsched("status", "--json"))
    assert document["last_pass"]["acted"] == last["acted"]
    assert document["vms"][0]["contention"]["running"] > 0.1


@pytest.mark.slow
def test_a_restarted_vm_and_a_damaged_state_cost_one_measurement(host):
    host.settings('[defaults]\ncpus = "0-1"\n')
    crowd(host, 2)
    host.sandbox.qm("stop", 100)
    host.sandbox.qm("start", 100)
    host.tick(0.3)
    with open(f"{host.sandbox.root}/run/pxsched/balance.json", "w") as file:
        file.write('{"samples": [')
    host.tick(0.3)
    assert host.state()["samples"].keys() == {"100", "101"}


@pytest.mark.slow
def test_a_vm_whose_policy_wants_pins_gets_one_cpu_for_each_vcpu(host):
    host.settings('[defaults]\ncpus = "0-1"\nfair = "pin"\n')
    host.start(100, cores=2)
    host.tick()
    host.tick(0.5)
    assert sorted(host.sandbox.masks(100)) == ["0", "1"]


@pytest.mark.slow
def test_a_fast_watch_does_the_same_and_sees_vms_come_and_go(host):
    host.settings('[defaults]\ncpus = "0-1"\n')
    crowd(host, 2)
    for vmid in (100, 101):
        host.put(vmid, {0})
    with host.watching(period_s=0.1) as said:
        assert eventually(lambda: {host.home(100), host.home(101)} == {HOT, COLD})
        host.start(102)
        assert eventually(lambda: host.home(102) == {0, 1})
        host.sandbox.qm("stop", 100)
        assert eventually(lambda: 100 not in host.claims())
    assert "moved VM" in said.read_text()
    assert "Traceback" not in said.read_text()


def eventually(condition, *, within_s=30.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return True
        except KeyError:
            pass
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_a_vm_gets_cpus_beside_a_burning_host_task(host):
    host.settings('[defaults]\ncpus = "0-1"\n')
    crowd(host, 1)
    host.program = WITH_OTHERS
    burner = subprocess.Popen(["taskset", "--cpu-list", "0", "sh", "-c", "while :; do :; done"])
    try:
        said = []
        for _ in range(12):
            said.append(host.tick(1.0))
            if host.home(100) != HOT:
                break
        if host.home(100) == HOT and min(busy(host, 0), busy(host, 1)) > 0.3:
            pytest.skip("other work keeps both CPUs busy")
        assert host.home(100) >= COLD, said
        assert "moved VM 100" in said[-1]
    finally:
        burner.kill()
        burner.wait()


def busy(host, cpu):
    """What the last pass took for the work of nobody it knows."""
    document = json.loads(Path(host.sandbox.root, others.FILE).read_text())
    return document["busy"].get(str(cpu), 0.0)
