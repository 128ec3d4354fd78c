"""The figures of a block, out of two readings of a machine's files; and of a process that really runs."""

import subprocess
import sys
import time

import pytest

from pxsched.guest import process
from pxsched.guest.agent import Times
from pxsched.host import interrupts, memory
from pxsched.node import figures
from pxsched.node.figures import Reader, Reading, Turns, Wakeups, between, far_percent
from pxsched.root import Root

SECOND = 10**9


def reading(at_s=0.0, **said):
    turns = Turns(0, 0, 0, 0)
    fields = {"turns": turns, "counted": {}, "served": None, "events": {}, "guest": None, **said}
    return Reading(int(at_s * SECOND), **fields)


def test_rates_are_per_second_and_waiting_is_a_part_of_what_was_wanted():
    after = reading(10, turns=Turns(6 * SECOND, 2 * SECOND, 1000, 50))
    assert between(reading(), after, 2) == {
        "running": 0.6, "waiting": 25.0, "wait_us": 2000.0, "preempted": 5.0,
    }  # fmt: skip


def test_an_idle_vm_waits_for_nothing():
    assert between(reading(), reading(10), 2)["waiting"] == 0.0


def test_counters_become_rates_and_ratios():
    counted = {name: [(0, 0, 0)] for name in ("instructions", "cycles", "cache_misses", "migrations")}
    later = {"instructions": [(8000, 9, 9)], "cycles": [(4000, 9, 9)], "cache_misses": [(16, 9, 9)],
             "migrations": [(6, 9, 9)]}  # fmt: skip
    found = between(reading(counted=counted), reading(2, counted=later), 2)
    assert found["instructions"] == 4000 and found["cycles"] == 2000 and found["migrations"] == 3
    assert found["per_cycle"] == 2 and found["cache_misses"] == 2


def test_interrupts_are_told_per_cpu_of_the_place_as_places_differ_in_size():
    found = between(reading(served=100), reading(2, served=900), 4)
    assert found["interrupts"] == 100


def test_the_machines_page_moves_and_remote_pages_are_rates():
    before, after = {"pgmigrate_success": 10, "numa_other": 0}, {"pgmigrate_success": 30, "numa_other": 8}
    found = between(reading(events=before), reading(2, events=after), 1)
    assert (found["moved_pages"], found["remote_pages"]) == (10, 4)


def test_steal_is_what_the_guest_says_as_long_as_it_can_be_true():
    def steal(before, after):
        return between(reading(guest=before), reading(2, guest=after), 1).get("steal")

    assert steal(Times(10, 100), Times(60, 300)) == 25
    assert steal(Times(10, 100), Times(900, 300)) is None
    assert steal(Times(10, 100), Times(10, 100)) is None
    assert steal(None, Times(10, 100)) is None


def test_a_thread_that_ended_leaves_no_figures_of_its_turns():
    assert "running" not in between(reading(), reading(2, turns=None), 1)


def test_memory_far_from_the_cpus_is_told_where_there_are_nodes(machines):
    from pxsched.host import topology

    several = next(
        found
        for one in sorted(machines.iterdir())
        if len((found := topology.read(Root(str(one / "root")))).nodes) > 1
    )
    near, far = several.nodes[0], several.nodes[1]
    by_node = {near.id: 3 << 20, far.id: 1 << 20}
    assert far_percent(by_node, near.cpus, several) == 25
    assert far_percent(by_node, near.cpus | far.cpus, several) == 0
    assert far_percent(None, near.cpus, several) is None
    assert far_percent({}, near.cpus, several) is None


TABLE = """           CPU0       CPU2
  1:         10         20   IO-APIC   1-edge      i8042
 30:        100          7   PCI-MSI 524288-edge      nvme0q0
LOC:     999999     999999   Local timer interrupts
"""


def test_interrupts_of_devices_are_counted_by_cpu(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/interrupts").write_text(TABLE)
    root = Root(str(tmp_path))
    assert interrupts.served(root, {0}) == 110
    assert interrupts.served(root, {0, 2}) == 137
    assert interrupts.served(root, {7}) is None
    assert interrupts.served(Root(str(tmp_path / "nowhere")), {0}) is None


def test_the_kernels_events_are_read_by_name(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 12\nnuma_other 5\nodd\n")
    assert memory.events(Root(str(tmp_path))) == {"nr_free_pages": 12, "numa_other": 5}


@pytest.fixture
def burner():
    child = subprocess.Popen([sys.executable, "-Sc", "while True: pass"])
    yield child.pid
    child.kill()
    child.wait()


def test_a_process_that_runs_is_read_as_the_kernel_counts_it(burner):
    root = Root()
    found = process.identify(root, burner)
    assert found is not None
    reader = Reader(root, 999_999_998, found, [burner])
    try:
        before = reader.read(frozenset((0,)))
        time.sleep(0.3)
        after = reader.read(frozenset((0,)))
    finally:
        reader.close()
    said = between(before, after, 1)
    assert 0.05 < said["running"] <= 1.01
    assert 0 <= said["waiting"] < 100
    assert said["running"] / (1 - said["waiting"] / 100) == pytest.approx(1.0, abs=0.15)
    assert "steal" in reader.absent


def test_a_process_that_is_gone_has_no_turns():
    reader = Reader(Root(), 999_999_998, process.Process((1 << 22) - 1, 1), [(1 << 22) - 1])
    assert reader.read(frozenset((0,))).turns is None
    assert reader.absent["turns"]
    reader.close()


def test_wake_ups_are_sampled_on_one_cpu_after_the_other(monkeypatch):
    asked = []
    monkeypatch.setattr(figures.wakeup, "latency_us", lambda cpu: asked.append(cpu) or float(cpu))
    samples = Wakeups(frozenset((1, 3)))
    for _ in range(3):
        samples.sample()
    assert asked == [1, 3, 1]
    assert samples.figures == {"wakeup_us": 1.0}


def test_where_we_may_not_run_there_is_no_latency(monkeypatch):
    monkeypatch.setattr(figures.wakeup, "latency_us", lambda cpu: None)
    samples = Wakeups(frozenset((1,)))
    samples.sample()
    assert samples.figures == {}
