"""The machine as a picture, and who has what, are right for a reader's eyes."""

import re
from pathlib import Path

import pytest

from pxsched.errors import UserError
from pxsched.host import topology
from pxsched.knobs.knob import KINDS
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.journal import Entry
from pxsched.output import printable
from pxsched.placement.request import Placement, VmClass
from pxsched.report import knobs, text
from pxsched.root import Root


def write(root: Path, relative: str, content: str) -> None:
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n")


@pytest.fixture
def machine(tmp_path):
    """Two packages, each a node with an L3 of two cores; SMT on the first core only; CPU 5 is off."""
    siblings = {0: "0,4", 4: "0,4", 1: "1", 2: "2", 3: "3"}
    for cpu in range(6):
        base = f"sys/devices/system/cpu/cpu{cpu}"
        if cpu not in siblings:
            write(tmp_path, f"{base}/online", "0")
            continue
        package = 1 if cpu in (2, 3) else 0
        write(tmp_path, f"{base}/topology/physical_package_id", str(package))
        write(tmp_path, f"{base}/topology/package_cpus_list", "2-3" if package else "0-1,4")
        write(tmp_path, f"{base}/topology/core_cpus_list", siblings[cpu])
        write(tmp_path, f"{base}/topology/thread_siblings_list", siblings[cpu])
        write(tmp_path, f"{base}/topology/core_id", str(cpu % 4))
        write(tmp_path, f"{base}/cache/index3/level", "3")
        write(tmp_path, f"{base}/cache/index3/type", "Unified")
        write(tmp_path, f"{base}/cache/index3/size", "16384K")
        write(tmp_path, f"{base}/cache/index3/shared_cpu_list", "2-3" if package else "0-1,4")
    write(tmp_path, "sys/devices/system/cpu/online", "0-4")
    for node, cpus in ((0, "0-1,4"), (1, "2-3")):
        write(tmp_path, f"sys/devices/system/node/node{node}/cpulist", cpus)
        write(tmp_path, f"sys/devices/system/node/node{node}/meminfo", f"Node {node} MemTotal: 2097152 kB")
    write(tmp_path, "sys/devices/system/node/online", "0-1")
    return topology.read(Root(str(tmp_path)))


def placed(vmid: int, vm_class: VmClass, *vcpus: set[int], emulator: int = 0) -> Placement:
    sets = tuple(frozenset(cpus) for cpus in vcpus)
    return Placement(vmid, vm_class, sets, frozenset({emulator}), frozenset({0}), ("because",))


def test_a_machine_is_packages_of_nodes_of_caches_of_cores(machine):
    assert (
        "\n".join(text.machine(machine))
        == """\
package 0
  node 0, 2 GiB
    L3 0, 16 MiB
      ┌─────┐ ┌───┐
      │ 0 4 │ │ 1 │
      └─────┘ └───┘
package 1
  node 1, 2 GiB
    L3 1, 16 MiB
      ┌───┐ ┌───┐
      │ 2 │ │ 3 │
      └───┘ └───┘
offline: CPUs 5"""
    )


def test_below_each_cpu_stands_whose_it_is(machine):
    pinned = placed(100, VmClass.PINNED, {3}, {2})
    shared = placed(101, VmClass.SHARED, {0, 4}, {0, 4})
    lines = text.machine(machine, [shared, pinned])
    assert lines[5] == "      │ B B │ │ · │"
    assert lines[12] == "      │ A1 │ │ A0 │"
    assert lines[-2:] == [
        "A = VM 100, pinned: vCPUs 0 on CPU 3, 1 on CPU 2",
        "B = VM 101, shared: vCPUs 0-1 float on CPUs 0,4",
    ]


def test_many_vms_on_a_cpu_are_counted(machine):
    many = [placed(100 + number, VmClass.SHARED, {1}) for number in range(30)]
    picture = "\n".join(text.machine(machine, many))
    assert "30 VMs" in picture
    assert "\nD' = VM 129" in picture


def test_a_narrow_terminal_gets_more_rows(machine):
    assert max(len(line) for line in text.machine(machine, width=16)[:-1]) <= 16


def test_status_tells_places_reasons_and_knobs_with_their_drift(tmp_path):
    claim = Claim(placement=placed(100, VmClass.PINNED, {1}, {0}), state=State.RUNNING)
    entries = {
        "affinity:7,1": Entry(100, "vcpu", "0-1", "1", 0),
        "affinity:8,1": Entry(100, "vcpu", "0-1", "0", 0, note="not allowed"),
        "governor:0": Entry(0, "governor", "powersave", "performance", 0),
    }
    now = {"affinity:7,1": "1", "affinity:8,1": "0-1", "governor:0": None}
    write(tmp_path, "proc/7/stat", "7 (CPU 0/KVM) S " + " ".join("1" * 49))
    write(tmp_path, "proc/7/comm", "CPU 0/KVM")
    assert (
        "\n".join(text.status([claim], knobs.lines(Root(str(tmp_path)), entries, now)))
        == """\
VM 100: pinned, running
  vCPUs     0 on CPU 1, 1 on CPU 0
  emulator  CPUs 0
  memory    node 0
  why       because
  knobs     affinity of CPU 0/KVM (7): was 0-1, wanted 1
            affinity of thread 8: was 0-1, wanted 0, now 0-1 (not allowed)
This node
  knobs     governor of frequency policy 0: was powersave, wanted performance, now gone"""
    )


def test_every_kind_of_knob_has_words_for_a_person(tmp_path):
    numbers = {"slice": "user.slice", "cgroup": "lxc", "kvm": "halt_poll_ns", "nic-queue": "tap100i0,7,rx-0",
               "affinity": "1,1", "scheduling": "1,1", "balloon": "100,1", "irq": "9,eth0", "irq-default": "",
               "irqbalance-irq": "1,1,9", "irqbalance-cpus": "1,1"}  # fmt: skip
    for kind in KINDS:
        key = f"{kind}:{numbers.get(kind, 7)}"
        assert knobs.planned(Root(str(tmp_path)), key, None, "x").partition(":")[0] not in ("", kind), key


@pytest.mark.parametrize(
    ("key", "entry", "now", "line"),
    [
        ("scheduling:7,1", Entry(100, "latency", "other 0", "fifo 5", 0), "fifo 5",
         "scheduling of C?U (7): was other 0, wanted fifo 5"),
        ("affinity:7,2", Entry(100, "vcpu", "0-1", "1", 0), None,
         "affinity of thread 7: was 0-1, wanted 1, now gone"),
        ("balloon:100,1", Entry(100, "balloon", "2048", "512", 0), "1024",
         "balloon of VM 100: was 2048 MiB, wanted 512 MiB, now 1024 MiB"),
        ("slice:user.slice", Entry(0, "isolation", '["","0-7",true,[]]', "0-3", 0), "0-3",
         "CPUs of user.slice: was 0-7, wanted 0-3"),
        ("irqbalance-irq:9,1,60", Entry(100, "interrupts", "free", "banned", 0), "banned",
         "interrupt 60 in irqbalance (9): was free, wanted banned"),
        ("memory-nodes:100", Entry(100, "memory", "", "1", 0), "1",
         "memory nodes of VM 100: was -, wanted 1"),
        ("slice:user.slice", Entry(0, "isolation", "[", "0-3", 0), "",
         "CPUs of user.slice: was [, wanted 0-3, now -"),
        ("warp-drive:1", Entry(0, "warp", "1", "9", 0), "9", "warp-drive:1: was 1, wanted 9"),
    ],
)  # fmt: skip
def test_a_knob_is_told_in_words(tmp_path, key, entry, now, line):
    write(tmp_path, "proc/7/stat", "7 (C\x1bU) S " + " ".join("1" * 49))
    write(tmp_path, "proc/7/comm", "C\x1bU")
    found = knobs.lines(Root(str(tmp_path)), {key: entry}, {key: now})
    assert [*map(printable, found[entry.owner])] == [line]


def test_a_knob_that_somebody_else_turned_says_when_last(tmp_path):
    drifted = ledgers.now_ns() - 12 * 10**9
    entry = Entry(0, "governor", "powersave", "performance", 0, drifted_ns=drifted, drifts=3)
    now = {"governor:0": "performance"}
    ((line,),) = knobs.lines(Root(str(tmp_path)), {"governor:0": entry}, now).values()
    assert line.endswith("wanted performance, turned by somebody else 3 times, last 12 s ago")


def test_status_of_nothing_says_so():
    assert text.status([], {}) == ["No VM has a place, and no knob is turned."]


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [(512 << 10, "512 KiB"), (32 << 20, "32 MiB"), (1600 << 20, "1.6 GiB"), (3 << 40, "3 TiB")],
)
def test_sizes_are_short(size_bytes, said):
    assert text.size(size_bytes) == said


@pytest.mark.slow
def test_every_known_machine_is_drawn_with_each_cpu_once(topologies):
    for root in sorted(topologies.glob("*/root")):
        try:
            machine = topology.read(Root(str(root)))
        except UserError:
            continue
        picture = "\n".join(text.machine(machine))
        cells = " ".join(
            re.findall(r"[\[│] ([\d ]+) [\]│]", picture.replace("│ │", "│  │").replace("] [", "]  ["))
        )
        assert sorted(int(word) for word in cells.split()) == sorted(machine.online), root.parent.name
