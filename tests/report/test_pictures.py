"""The node as a picture and as metrics."""

import xml.etree.ElementTree as ElementTree

import pytest

from pxsched.host.topology import L3, Cpu, Node, Package, Topology
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.journal import Entry
from pxsched.placement.request import Placement, VmClass
from pxsched.report import prometheus, svg


@pytest.fixture
def machine():
    cpus = {number: Cpu(number, True, number, number // 2, 0, 0, frozenset({number})) for number in range(4)}
    everything = frozenset(cpus)
    l3s = (L3(0, frozenset({0, 1}), 1 << 25), L3(1, frozenset({2, 3}), None))
    return Topology(cpus, l3s, (Node(0, everything, 1 << 34, {0: 10}),), (Package(0, everything),))


def claim(vmid, *vcpus):
    cpus = tuple(frozenset(own) for own in vcpus)
    return Claim(Placement(vmid, VmClass.PINNED, cpus, frozenset({0}), frozenset({0})), State.RUNNING)


def test_the_picture_shows_every_cpu_with_its_vms(machine):
    document = ElementTree.fromstring(svg.draw(machine, [claim(100, {1}, {2}), claim(101, {2})]))
    titles = [title.text for title in document.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["CPU 0: free", "CPU 1: VM 100 (pinned)", "CPU 2: VM 100 (pinned), VM 101 (pinned)",
                      "CPU 3: free"]  # fmt: skip


def test_the_picture_of_an_empty_machine_is_a_picture(machine):
    assert ElementTree.fromstring(svg.draw(machine, [])).tag.endswith("svg")


def test_metrics_count_what_is_held_and_what_drifted():
    entries = {
        "affinity:1,1": Entry(100, "vcpu", "0-3", "1", 1, 5, 2),
        "irq:9,x": Entry(100, "interrupts", "0", "1", 1),
    }
    delay = {"ran_ns": 2_500_000_000, "waited_ns": 1}
    lines = prometheus.render([claim(100, {1})], entries, lambda claim: delay).splitlines()
    assert 'pxsched_vm_cpus{vmid="100",class="pinned",state="running"} 1' in lines
    assert 'pxsched_vm_run_seconds_total{vmid="100"} 2.500000' in lines
    assert 'pxsched_knob_drifts_total{plugin="vcpu"} 2' in lines
    assert 'pxsched_knobs{plugin="interrupts"} 1' in lines


def test_a_vm_that_just_left_has_no_run_time():
    assert "run_seconds_total{" not in prometheus.render([claim(100, {1})], {}, lambda claim: None)
