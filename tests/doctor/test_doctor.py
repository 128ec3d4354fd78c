"""The doctor: each fault is found on a node that has it, named, and given a remedy."""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from pxsched.chain import files as chain
from pxsched.chain import handback
from pxsched.chain.entry import Entry
from pxsched.doctor import commands
from pxsched.doctor.finding import Level
from pxsched.doctor.rivals import RIVALS
from pxsched.guest.balloon import Silence
from pxsched.guest.identity import Identity
from pxsched.guest.process import Process
from pxsched.ledger import file as ledger
from pxsched.ledger.claim import Claim, State
from pxsched.placement.request import Placement, VmClass
from pxsched.proxmox import failures
from pxsched.root import Root

OURS = "hookscript: local:snippets/pxsched\n"
GIB_KIB = 1 << 20


class Node:
    """A node of two NUMA nodes with four CPUs each, on which nothing is wrong."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(str(base))
        self.write("sys/devices/system/cpu/online", "0-7\n")
        for cpu in range(8):
            self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", f"{cpu}\n")
        for number in range(2):
            directory = f"sys/devices/system/node/node{number}"
            self.write(f"{directory}/cpulist", f"{4 * number}-{4 * number + 3}\n")
            self.write(f"{directory}/meminfo", f"Node {number} MemTotal: {8 * GIB_KIB} kB\n")
        self.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
        self.write("proc/sys/kernel/osrelease", "6.17.2-1-pve\n")
        self.write("var/lib/dpkg/status", "Package: pve-manager\nStatus: ok\nVersion: 9.1.4\n\n")
        self.write("var/lib/vz/snippets/pxsched", "#!/bin/sh\n", 0o755)
        (base / "etc/pve/nodes/pve1/qemu-server").mkdir(parents=True)
        os.symlink("nodes/pve1", base / "etc/pve/local")

    def write(self, relative: str, text: str, mode: int = 0o644) -> None:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def vm(self, vmid: int, text: str = "", *, node: str = "pve1", running: bool = False) -> None:
        self.write(f"etc/pve/nodes/{node}/qemu-server/{vmid}.conf", f"cores: 2\nmemory: 1024\n{text}")
        if running:
            self.write(f"run/qemu-server/{vmid}.pid", "4711\n")

    def found(self, area: str) -> list:
        return [finding for finding in commands.examine(self.root) if finding.area == area]

    def trouble(self) -> list:
        return [f for f in commands.examine(self.root) if f.level in (Level.WARN, Level.BAD)]


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path / "node")


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


def test_a_sound_node_gets_a_clean_bill(node):
    node.vm(100, OURS)
    assert node.trouble() == []


def test_every_trouble_has_a_remedy(node):
    node.vm(100, OURS + "hostpci0: 0000:01:00\nhugepages: 1024\n")
    (node.base / "var/lib/vz/snippets/pxsched").unlink()
    node.write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
    node.write("proc/77/comm", "irqbalance\n")
    node.write("etc/default/proxmox-scheduler", "CPU_GOVERNOR_BUSY=schedutil\n")
    trouble = node.trouble()
    assert len(trouble) >= 6
    assert [finding for finding in trouble if not finding.remedy] == []


def test_an_old_proxmox_is_named(node):
    node.write("var/lib/dpkg/status", "Package: pve-manager\nVersion: 7.4-17\n")
    assert only(node.found("versions")).level is Level.BAD


def test_the_version_is_that_of_the_package_itself(node):
    node.write(
        "var/lib/dpkg/status",
        "Package: a\nDepends: pve-manager\nVersion: 1\n\nPackage: pve-manager\nStatus: ok\nVersion: 8.4.1\n",
    )
    assert "pve-manager 8.4.1" in only(node.found("versions")).text


def test_cgroup_v1_is_named(node):
    (node.base / "sys/fs/cgroup/cgroup.controllers").unlink()
    assert "version 1" in only(node.found("cgroups")).text


@pytest.mark.parametrize("rival", [rival for rival in RIVALS if rival.process], ids=lambda rival: rival.name)
def test_daemons_that_turn_the_same_knobs_are_named(node, rival):
    node.write("proc/812/comm", f"{rival.process[:15]}\n")
    finding = only(node.found("other daemons"))
    assert finding.level is Level.WARN
    assert finding.text.startswith(f"{rival.name} runs and ")


def test_a_program_of_such_a_name_is_called_by_the_kernel_what_the_doctor_looks_for(tmp_path):
    """The names are longer than what the kernel keeps of them."""
    program = tmp_path / "proxmox-cpu-affinity-service"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "60"])
    try:
        own = Path("/proc/self/comm").read_text()
        # The kernel closes what an exec closes, for which Popen waits, before it sets the name.
        for _ in range(500):
            comm = Path(f"/proc/{child.pid}/comm").read_text()
            if comm != own:
                break
            time.sleep(0.01)
        comm = comm.strip()
        assert [rival.name for rival in RIVALS if rival.runs({comm}, set())] == ["proxmox-cpu-affinity"]
    finally:
        child.kill()
        child.wait()


def test_tlp_which_leaves_no_process_is_known_by_its_unit(node):
    node.write("proc/812/comm", "\n")
    node.write("etc/systemd/system/tlp.service.d/mine.conf", "")
    assert only(node.found("other daemons")).level is Level.OK
    wants = node.base / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "tlp.service").symlink_to("/lib/systemd/system/tlp.service")
    assert only(node.found("other daemons")).text.startswith("tlp is enabled and sets governors")


def test_what_the_older_daemon_would_do_otherwise_is_a_note(node):
    node.write("etc/default/proxmox-scheduler", "SHARED_POLICY=partition\n")
    assert [finding.level for finding in node.found("settings")] == [Level.OK, Level.NOTE]
    assert "SHARED_POLICY" in node.found("settings")[1].text


def test_a_vm_whose_hookscript_is_missing_cannot_start(node):
    node.vm(100, OURS)
    node.vm(101)
    (node.base / "var/lib/vz/snippets/pxsched").unlink()
    finding = only(node.found("hookscript"))
    assert finding.level is Level.BAD
    assert "VMs 100 cannot start" in finding.text


def test_a_vm_that_names_another_storage_is_checked_there(node):
    node.write("etc/pve/storage.cfg", "dir: local\n\tpath /var/lib/vz\n\nnfs: nas\n\tserver x\n\texport /y\n")
    node.vm(100, "hookscript: nas:snippets/pxsched\n")
    assert [f.level for f in node.found("hookscript")] == [Level.OK, Level.BAD]


def test_mail_that_is_asked_for_needs_a_program_that_sends_it(node):
    assert node.found("mail") == []
    node.write("etc/pxsched/pxsched.toml", '[node]\nnotify = "mail"\n')
    finding = only(node.found("mail"))
    assert (finding.level, "no /usr/sbin/sendmail" in finding.text) == (Level.WARN, True)
    node.write("usr/sbin/sendmail", "", 0o755)
    assert only(node.found("mail")).level is Level.OK


def test_a_governor_that_the_driver_does_not_know_is_named_with_those_it_knows(node):
    node.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "intel_pstate\n")
    node.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_available_governors", "performance powersave\n")
    node.write("etc/default/proxmox-scheduler", "CPU_GOVERNOR_BUSY=schedutil\n")
    finding = only(node.found("governor"))
    assert "schedutil" in finding.text
    assert "performance, powersave" in finding.remedy


def test_without_frequency_control_the_line_that_comes_with_us_is_no_fault(node):
    shipped = Path(__file__).parents[2] / "hooks/default/proxmox-scheduler"
    node.write("etc/default/proxmox-scheduler", shipped.read_text())
    assert only(node.found("governor")).level is Level.NOTE
    node.write("etc/default/proxmox-scheduler", "CPU_GOVERNOR_BUSY=schedutil\n")
    assert only(node.found("governor")).level is Level.WARN


def test_passthrough_without_iommu_is_named(node):
    node.vm(100, OURS + "hostpci0: 0000:01:00.0\n")
    assert "VMs 100" in only(node.found("passthrough")).text


def test_a_device_on_another_node_than_its_vm_is_named(node):
    node.vm(100, OURS + "hostpci0: 0000:01:00.0\n", running=True)
    node.write("sys/kernel/iommu_groups/1/type", "DMA\n")
    node.write("sys/bus/pci/devices/0000:01:00.0/numa_node", "1\n")
    placement = Placement(100, VmClass.SHARED, (frozenset({0}),), frozenset({0}), frozenset({0}))
    with ledger.locked(node.root) as held:
        held.claims[100] = Claim(placement, State.RUNNING, process=Process(4711, 1))
        ledger.save(node.root, held)
    remote = [f for f in node.found("passthrough") if f.level is Level.WARN]
    assert "VM 100 is on node 0, its device 0000:01:00.0 on node 1" in only(remote).text


def test_balloons_that_proxmox_moves_are_told(node):
    node.vm(100, OURS + "balloon: 512\n")
    node.vm(101, OURS + "balloon: 512\nshares: 0\n")
    finding = only(node.found("balloons"))
    assert "VMs 100;" in finding.text
    assert "enable VMID --balloon" in finding.remedy


def test_vms_whose_memory_is_pinned_are_not_advised_to_give_us_their_balloons(node):
    node.vm(105, OURS + "balloon: 512\nhostpci0: 0000:01:00.0\n")
    node.vm(106, OURS + "balloon: 512\nhugepages: 2\nnuma: 1\n")
    first, second = node.found("balloons")
    assert "VM 105; we cannot serve it: its memory is pinned by passed-through devices" in first.text
    assert "VM 106; we cannot serve it: it has huge pages" in second.text
    assert (first.remedy, second.remedy) == ("", "")


def test_vms_that_got_a_device_after_their_balloon_became_ours_are_told(node):
    node.vm(105, OURS + "balloon: 512\nshares: 0\nhostpci0: 0000:01:00.0\n")
    finding = only(node.found("balloons"))
    assert finding.level is Level.WARN
    assert "pinned by passed-through devices" in finding.text
    assert "qm set 105 --delete shares" in finding.remedy
    chain.write(node.root, Entry(105, Identity(), None, ""))
    assert only(node.found("balloons")).level is Level.NOTE, "the timer does it"
    failure = failures.after(None, "Proxmox does not answer", "digest", 1.0)
    node.write("run/pxsched/pxsched", "")
    failures.save(node.root, handback.FAILED, {105: failure})
    finding = only(node.found("balloons"))
    assert finding.level is Level.WARN
    assert "cannot be given back to Proxmox: Proxmox does not answer" in finding.text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [("[node]\nbalance_memory = false\n", "`balance_memory` is false"),
     ("[vm.101]\nballoon = false\n", "their policy says `balloon = false`")],
)  # fmt: skip
def test_balloons_that_we_have_and_are_told_to_leave_alone_are_told(node, settings, reason):
    node.vm(101, OURS + "balloon: 512\nshares: 0\n")
    node.write("etc/pxsched/pxsched.toml", settings)
    finding = only(node.found("balloons"))
    assert finding.level is Level.WARN
    assert reason in finding.text


def test_where_memory_is_not_balanced_nobody_is_told_to_give_us_a_balloon(node):
    settings = "[node]\nbalance_memory = false\n[defaults]\nballoon_minimum_percent = 50\n"
    node.write("etc/pxsched/pxsched.toml", settings)
    node.vm(100, OURS + "balloon: 512\n")
    node.vm(101, OURS)
    finding = only(node.found("balloons"))
    assert "Proxmox moves the balloons of VMs 100;" in finding.text
    assert finding.remedy == ""
    node.vm(105, OURS + "balloon: 512\nshares: 0\nhostpci0: 0000:01:00.0\n")
    assert not any("gets all its memory" in one.text for one in node.found("balloons"))


@pytest.mark.parametrize("silence", Silence)
def test_guests_that_say_nothing_of_their_memory_are_told_with_the_word_for_it(node, silence):
    node.vm(100, OURS + "balloon: 512\nshares: 0\n")
    node.write("proc/sys/kernel/random/boot_id", "b\n")
    last = {"at": 1.0, "skipped": {"100": f"{silence.value}: it has all its memory"}}
    node.write("run/pxsched/balance.json", json.dumps({"schema": 1, "boot_id": "b", "last": last}))
    finding = only(node.found("balloons"))
    assert finding.text == f"VMs 100 give no statistics: {silence.value}"
    assert finding.remedy


def test_a_minimum_that_the_policy_wants_and_the_vm_has_not_is_told(node):
    node.vm(100, OURS)
    node.vm(101, OURS + "balloon: 512\nshares: 0\n")
    assert node.found("balloons") == []
    node.write("etc/pxsched/pxsched.toml", "[defaults]\nballoon_minimum_percent = 50\n")
    assert "VMs 100 " in only(node.found("balloons")).text


def test_gigantic_pages_that_are_not_there_are_told(node):
    node.vm(100, "numa: 1\nhugepages: 1024\nmemory: 4096\n")
    assert "1024 MiB pages: 0 MiB free" in only(node.found("huge pages")).text
    directory = "sys/devices/system/node/node1/hugepages/hugepages-1048576kB"
    node.write(f"{directory}/free_hugepages", "4\n")
    assert only(node.found("huge pages")).level is Level.OK


def test_overcommitted_memory_is_told_with_the_numbers(node):
    node.vm(100, "memory: 20480\n", running=True)
    finding = only(node.found("overcommit"))
    assert finding.level is Level.WARN
    assert "20480 of 16384 MiB" in finding.text


def test_unknown_settings_come_with_the_nearest_name(node):
    node.write("etc/pxsched/pxsched.toml", '[node]\nhousekeping = "0"\n')
    assert "did you mean 'housekeeping'" in only(node.found("settings")).text


def test_isolated_cpus_are_told(node):
    node.write("sys/devices/system/cpu/isolated", "2-3\n")
    assert any("isolcpus=2-3" in finding.text for finding in node.found("topology"))


CHAINED = '{"vmid": 100, "ctime": "1", "hookscript": "local:snippets/x"}'


def test_scripts_remembered_for_a_vm_that_is_gone_are_told_and_left_to_the_timer(node):
    node.vm(100, f"{OURS}meta: ctime=2\n")
    node.write("etc/pve/pxsched/chain/100.json", CHAINED)
    finding = only(node.found("chained scripts"))
    assert "an earlier VM of that number" in finding.text
    assert node.root.exists("etc/pve/pxsched/chain/100.json")


def test_a_missing_chained_script_keeps_its_vm_from_starting(node):
    node.vm(100, f"{OURS}meta: ctime=1\n")
    node.write("etc/pve/pxsched/chain/100.json", CHAINED)
    assert only(node.found("chained scripts")).level is Level.BAD


def test_the_file_of_an_earlier_version_and_damaged_ones_are_told(node):
    node.write("etc/pve/pxsched-chain.json", '{"schema": 1, "hookscripts": {"100": "local:snippets/x"}}')
    assert "earlier version" in only(node.found("chained scripts")).text
    node.write("etc/pve/pxsched-chain.json", "{")
    assert "damaged" in node.found("chained scripts")[0].text


def test_karpenters_vm_is_compared_when_the_feature_is_on(node):
    assert node.found("karpenter") == []
    node.write("etc/default/proxmox-scheduler", "PROXMOX_FEATURE_FLAGS=karpenter\n")
    assert "missing" in only(node.found("karpenter")).text


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(node):
    for cpu in range(8):
        (node.base / f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list").unlink()
        (node.base / f"sys/devices/system/cpu/cpu{cpu}/topology").rmdir()
        (node.base / f"sys/devices/system/cpu/cpu{cpu}").rmdir()
    assert only(node.found("topology")).level is Level.BAD
    assert node.found("cgroups")[0].level is Level.OK


def test_hostile_names_do_not_reach_the_terminal(node, capsys):
    node.write("etc/pxsched/pxsched.toml", '[node]\n"\\u001b[2J" = 1\n')
    run(node)
    assert "\x1b" not in capsys.readouterr().out


def run(node, *words):
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["doctor", *words])
    args.root = node.root
    return args.run(args)


def test_the_exit_code_says_whether_something_does_not_work(node, capsys):
    node.vm(100, OURS)
    assert run(node) == 0
    (node.base / "var/lib/vz/snippets/pxsched").unlink()
    assert run(node) == 1


def test_json_counts_and_lists(node, capsys):
    run(node, "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == 1
    assert report["counts"]["bad"] == 0
    assert {"level", "area", "text", "remedy"} == set(report["findings"][0])
