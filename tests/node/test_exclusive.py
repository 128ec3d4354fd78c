"""Whether dedicated CPUs are exclusive, by the kernel's word: on trees shaped as Proxmox makes them, and with
real threads.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pxsched import cli
from pxsched.doctor import commands as doctor
from pxsched.guest import process
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.file import Ledger
from pxsched.monitor import families
from pxsched.node import exclusive, planning
from pxsched.node import sighting as nodes
from pxsched.node.exclusive import Kind
from pxsched.node.observing import Observer
from pxsched.placement.request import Placement, VmClass
from pxsched.report import exclusive as report
from pxsched.root import Root

CGROUP = "sys/fs/cgroup"
SLEEPER = "import sys, time; print('ready', flush=True); time.sleep(600)"


class Node:
    """Eight CPUs; VM 100 has CPUs 2 and 3 to itself, and nobody else is there."""

    def __init__(self, base):
        self.base = base
        self.root = Root(str(base))
        self.put("sys/devices/system/cpu/online", "0-7")
        for cpu in range(8):
            self.put(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", str(cpu))
        self.put("sys/devices/system/node/node0/cpulist", "0-7")
        self.put(f"{CGROUP}/cgroup.controllers", "cpuset cpu memory")
        self.put(f"{CGROUP}/cpuset.cpus.effective", "0-7")
        self.put("etc/hostname", "here")
        self.put("run/pxsched/.keep", "")
        self.ledger = Ledger()
        self.dedicate(100, {2, 3})

    def put(self, path, text):
        target = Path(self.base, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")

    def dedicate(self, vmid, cpus, vm_class=VmClass.DEDICATED):
        vcpus = tuple(frozenset({cpu}) for cpu in sorted(cpus))
        placement = Placement(vmid, vm_class, vcpus, frozenset({0}), frozenset({0}))
        self.ledger.claims[vmid] = Claim(placement, State.RUNNING)

    def vm(self, vmid, pid, *masks):
        """A VM whose threads have these masks."""
        self.put(f"run/qemu-server/{vmid}.pid", str(pid))
        self.put(f"proc/{pid}/cmdline", f"kvm\0-pidfile\0/var/run/qemu-server/{vmid}.pid\0")
        for index, mask in enumerate(masks):
            tid = pid + index
            stat = f"{tid} (kvm) S " + " ".join(["1"] * 18) + " 5000 0"
            for directory in {f"proc/{tid}", f"proc/{pid}/task/{tid}"}:
                self.put(f"{directory}/stat", stat)
                self.put(f"{directory}/status", f"Name:\tkvm\nCpus_allowed_list:\t{mask}")

    def group(self, name, cpus, populated=1):
        self.put(f"{CGROUP}/{name}/cpuset.cpus.effective", cpus)
        self.put(f"{CGROUP}/{name}/cgroup.events", f"populated {populated}\nfrozen 0")

    def interrupt(self, number, name, asked, effective=None):
        Path(self.base, f"proc/irq/{number}/{name}").mkdir(parents=True)
        self.put(f"proc/irq/{number}/smp_affinity_list", asked)
        if effective is not None:
            self.put(f"proc/irq/{number}/effective_affinity_list", effective)

    def check(self, isolated=frozenset()):
        return exclusive.check(self.root, self.ledger, isolated)

    def sharers(self):
        (found,) = self.check()
        return [(one.kind, one.name, sorted(one.cpus)) for one in found.sharers]

    def save(self):
        with ledgers.locked(self.root) as held:
            for vmid, claim in self.ledger.claims.items():
                held.claims[vmid] = claim
            ledgers.save(self.root, held)

    def remedies(self):
        self.save()
        return {f.text: f.remedy for f in doctor.examine(self.root) if f.area == "dedicated CPUs"}


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_where_nobody_else_may_run_the_cpus_are_exclusive(node):
    node.vm(100, 1000, "2", "3", "0")
    node.vm(200, 2000, "0-1", "4-7")
    node.group("system.slice", "0-1,4-7")
    node.group("lxc/101", "4-7")
    node.interrupt(40, "eth0", "0-7", "1")
    assert node.sharers() == []
    assert list(report.lines(node.check())) == [
        "VM 100: nothing else may run on CPUs 2-3 but the kernel's own threads"
    ]


def test_everything_that_may_run_there_is_named_with_the_cpus(node):
    node.vm(100, 1000, "2", "3", "0-7")
    node.vm(200, 2000, "0-1", "3-4")
    node.group("system.slice", "0-7")
    node.group("user.slice", "3", populated=0)
    node.group("qemu.slice", "0-7")
    node.group("lxc.monitor", "0-2")
    node.group("lxc/101", "2")
    node.interrupt(40, "eth0", "0-7", "3")
    node.interrupt(41, "nvme0q1", "2")
    assert node.sharers() == [
        ("slice", "lxc.monitor", [2]),
        ("slice", "system.slice", [2, 3]),
        ("container", "container 101", [2]),
        ("interrupt", "interrupt 40 (eth0)", [3]),
        ("interrupt", "interrupt 41 (nvme0q1)", [2]),
        ("vm", "VM 200", [3]),
    ]
    (line,) = report.lines(node.check())
    assert "lxc.monitor, container 101 on CPUs 2" in line
    assert "2 interrupts on CPUs 2-3" in line


def test_only_dedicated_vms_are_told_to_be_exclusive(node):
    node.ledger = Ledger()
    node.dedicate(300, {4}, VmClass.PINNED)
    node.group("system.slice", "0-7")
    assert node.check() == ()


def test_another_dedicated_vm_is_no_exception(node):
    node.dedicate(101, {4})
    node.vm(100, 1000, "2", "3")
    node.vm(101, 1100, "2,4")
    of_100, of_101 = node.check()
    assert [(one.name, one.cpus) for one in of_100.sharers] == [("VM 101", {2})]
    assert of_101.sharers == ()


def test_cpus_isolated_at_boot_are_left_by_host_tasks(node):
    node.group("system.slice", "0-7")
    assert node.check(frozenset({2, 3}))[0].sharers == ()
    assert node.check(frozenset({3}))[0].open_to(Kind.SLICE) == {2}


def test_without_systemds_cpusets_host_tasks_are_named_as_one(tmp_path):
    node = Node(tmp_path)
    os.unlink(tmp_path / CGROUP / "cgroup.controllers")
    node.put(f"{CGROUP}/cpuset/cgroup.procs", "")
    node.put(f"{CGROUP}/cpuset/cpuset.effective_cpus", "0-7")
    assert node.sharers() == [("slice", "host tasks", [2, 3])]


@pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1")
def test_masks_are_those_of_real_threads(tmp_path):
    node = Node(tmp_path)
    node.ledger = Ledger()
    node.dedicate(100, {1})
    (tmp_path / "proc").symlink_to("/proc")
    words = [sys.executable, "-c", SLEEPER, "-pidfile", "/var/run/qemu-server/200.pid"]
    vm = subprocess.Popen(["taskset", "--cpu-list", "0-1", *words], stdout=subprocess.PIPE, text=True)
    try:
        vm.stdout.readline()
        node.put("run/qemu-server/200.pid", str(vm.pid))
        (found,) = node.check()
        assert [one.cpus for one in found.sharers if one.kind is Kind.VM] == [{1}]
        os.sched_setaffinity(vm.pid, {0})
        (found,) = node.check()
        assert found.open_to(Kind.VM) == frozenset()
    finally:
        vm.kill()
        vm.communicate()


# Said by doctor, status and Prometheus.


@pytest.mark.parametrize(
    ("there", "remedy"),
    [
        (lambda node: node.group("system.slice", "0-7"), 'isolation = "slices"'),
        (lambda node: node.group("lxc/101", "0-7"), 'others = "confine"'),
        (lambda node: node.vm(200, 2000, "0-7"), 'others = "confine"'),
        (lambda node: node.interrupt(40, "eth0", "0-7", "2"), "device_interrupts = true"),
    ],
)
def test_the_doctor_says_what_ends_it(node, there, remedy):
    there(node)
    ((text, said),) = node.remedies().items()
    assert text.startswith("VM 100 does not have its CPUs to itself: ")
    assert said == f"{remedy} in [node]"
    node.put("etc/pxsched/pxsched.toml", f"[node]\n{remedy}\n")
    ((_, said),) = node.remedies().items()
    assert "it is set" in said


@pytest.mark.parametrize("setting", ["", '[node]\nisolation = "slices"'])
def test_on_cgroup_v1_nothing_is_offered_against_host_tasks_that_works_on_v2_only(node, setting):
    os.unlink(node.base / CGROUP / "cgroup.controllers")
    node.put(f"{CGROUP}/cpuset/cgroup.procs", "")
    node.put(f"{CGROUP}/cpuset/cpuset.effective_cpus", "0-7")
    node.put("etc/pxsched/pxsched.toml", setting)
    ((text, said),) = node.remedies().items()
    assert "host tasks" in text and said.startswith("a start with cgroup v2, where `isolation`")


@pytest.mark.parametrize("setting", ["", '[node]\nothers = "confine"'])
def test_for_threads_of_our_own_vms_the_doctor_names_their_policy_and_not_that_of_others(node, setting):
    node.dedicate(101, {4})
    node.vm(101, 1100, "2,4")
    node.put("etc/pxsched/pxsched.toml", setting)
    said = {text: remedy for text, remedy in node.remedies().items() if "VM 101 on CPUs 2" in text}
    (remedy,) = said.values()
    assert "`pxsched status` says why: its policy (`vcpu`, `emulator`, `vhost`)" in remedy
    node.vm(200, 2000, "2")
    assert any('"confine"' in one or "it is set" in one for one in node.remedies().values())


def test_the_doctor_says_that_they_are_exclusive_where_they_are(node):
    ((text, said),) = node.remedies().items()
    assert (text, said) == ("CPUs 2-3 are VM 100's alone, but for the kernel's own threads", "")


def test_the_doctor_names_those_who_are_not_placed(node):
    node.vm(200, 2000, "1", "2")
    node.group("lxc/101", "4-5")
    node.save()
    (found,) = [f for f in doctor.examine(node.root) if f.area == "others"]
    assert found.text.endswith("VM 200 on CPUs 1, container 101 on CPUs 4-5")


def test_status_says_it_and_who_else_is_there(node, capsys):
    node.vm(200, 2000, "3")
    node.group("lxc/101", "4-5")
    node.save()
    assert cli.main(["--root", node.root.base, "status", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    open_to = [{"kind": "vm", "name": "VM 200", "cpus": "3"}]
    assert document["vms"][0]["exclusive"] == {"cpus": "2-3", "open_to": open_to}
    assert [one["name"] for one in document["others"]] == ["VM 200", "container 101"]
    assert cli.main(["--root", node.root.base, "status"]) == 0
    said = capsys.readouterr().out
    assert "VM 100: CPUs 2-3 are open to others, too: VM 200 on CPUs 3\n" in said
    assert [line.split("  ")[0] for line in said.splitlines()[1:4]] == ["VM 100", "VM 200", "container 101"]


def test_prometheus_counts_the_cpus_that_are_open_to_others(node):
    node.vm(200, 2000, "3")
    node.group("system.slice", "0-7")
    lines = families.render(families.Facts(exclusive=node.check())).splitlines()
    assert 'pxsched_dedicated_cpus_open{to="vm",vmid="100"} 1.0' in lines
    assert 'pxsched_dedicated_cpus_open{to="slice",vmid="100"} 2.0' in lines
    assert 'pxsched_dedicated_cpus_open{to="interrupt",vmid="100"} 0.0' in lines


# What is exclusive is not taken from where somebody else is confined.


def planned(node, *, vcpus=2):
    node.put("etc/pve/nodes/here/qemu-server/100.conf",
             f"cores: {vcpus}\nmemory: 512\nhookscript: local:snippets/pxsched")  # fmt: skip
    node.put("etc/pxsched/pxsched.toml", '[node]\nhousekeeping = "0"\n[vm.100]\nclass = "dedicated"')
    memory = "Node 0 MemTotal: 8388608 kB\nNode 0 MemFree: 8388608 kB"
    node.put("sys/devices/system/node/node0/meminfo", memory)
    found = planning.plan(nodes.open_node(node.root, {}), 100).claim.placement
    return found.cpus, " ".join(found.why)


@pytest.mark.parametrize(
    ("there", "theirs", "name"),
    [
        (lambda node: node.vm(200, 2000, "1-2", "1-2"), {1, 2}, "VM 200"),
        (lambda node: node.vm(201, 2000, "1", "2,3"), {1, 2, 3}, "VM 201"),
        (lambda node: node.group("lxc/101", "1-4"), {1, 2, 3, 4}, "container 101"),
    ],
    ids=["its affinity", "masks that somebody chose", "a container's set"],
)
def test_exclusive_cpus_are_not_taken_from_where_somebody_is_confined(node, there, theirs, name):
    assert planned(node)[0] == {1, 2}
    there(node)
    Observer(node.root).look(Ledger(), [nodes.sight(node.root, vmid) for vmid in process.running(node.root)])
    cpus, why = planned(node)
    assert not cpus & theirs
    assert name in why


def test_where_nothing_else_is_left_they_are_taken_and_it_is_said(node):
    node.vm(200, 2000, "1-6", "1-6")
    cpus, why = planned(node, vcpus=3)
    assert cpus & set(range(1, 7))
    assert "VM 200" in why
