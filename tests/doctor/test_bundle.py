"""A bundle replays the machine it came from, and holds nothing of its tenants."""

import contextlib
import gzip
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxsched import cli
from pxsched.doctor import commands
from pxsched.doctor.bundle import file as bundle
from pxsched.doctor.bundle import machine as machine_files
from pxsched.doctor.bundle import words
from pxsched.errors import UserError
from pxsched.guest import config, process
from pxsched.guest.process import Process
from pxsched.host import topology
from pxsched.knobs import balloon
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.journal import Entry
from pxsched.monitor import passes, refusals
from pxsched.node import others
from pxsched.node import sighting as nodes
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root
from pxsched.settings import files as settings
from pxsched.settings.policy import Policy

SECRET = "secret"
CONFIG = """\
#cHJpdmF0ZQ secret-note
name: secret-name
tags: secret-tag;pxsched-secret_profile
cores: 4
memory: 4096
affinity: 3,1,0-1
numa: 1
numa0: cpus=0-1,memory=2048,hostnodes=0,policy=bind
numa1: cpus=2;3,memory=2048
hostpci0: 0000:01:00;0000:02:00.1,pcie=1
hostpci1: mapping=secret-mapping
net0: virtio=BC:24:11:5E:C2:E7,bridge=vmbr0
args: -secret-argument
cipassword: secret-password
hookscript: local:snippets/pxsched
smbios1: uuid=0c5e4f6e-secret
unknown_key: secret

[secret-snapshot]
cores: 1
description: secret
"""
TOML = """\
# secret-comment
# it's a "secret" comment with quotes
[node]
housekeeping = "0" # secret, and it's quoted
secret_key = "secret"
governor_free = "secret_governor"
reserved_mib = 1024
[defaults]
fifo = 3 # "secret"
[profile.secret_profile]
tag = true
governor = "performance"
[profile.secret_other]
energy = "secret_preference"
[vm.100]
profile = "secret_other"
smt = "share"
secret = 1
[vm.secret]
fifo = 1
[secret_table]
a = 1
"""
CHAIN = '{"schema": 1, "hookscripts": {"100": "local:snippets/secret-script"}}'
WHY = "memory is bound to node 0"
FILES = {
    "etc/pve/nodes/secret-node/qemu-server/100.conf": CONFIG,
    "etc/pve/nodes/secret-other/qemu-server/101.conf": CONFIG,
    "etc/pve/nodes/secret-node/lxc/200.conf": "hostname: secret-container\n",
    "etc/pve/pxsched.toml": "[vm.101]\nsecret = true\n",
    "etc/pxsched/pxsched.toml": TOML,
    "etc/pxsched/hooks.d/secret-hook": "#!/bin/sh\n",
    "etc/pve/pxsched-chain.json": CHAIN,
    "etc/pve/corosync.conf": "cluster_name: secret-cluster\n",
    "etc/pve/storage.cfg": "dir: secret-storage\n\tpath /secret\n",
    "etc/pve/ha/resources.cfg": "vm: 100\n\tgroup secret-group\n",
    "etc/hostname": "secret-host\n",
    "etc/default/proxmox-scheduler": "PROXMOX_FEATURE_FLAGS=karpenter,secret # secret\n# secret\nSECRET=1\n",
    "var/lib/dpkg/status": "Package: pve-manager\nVersion: 9.1.4-secret\n",
    "proc/cmdline": (
        "root=UUID=secret-uuid isolcpus=2-3 quiet token=secret-token amd_iommu=on hugepagesz=secret "
        "cgroup_disable=secret isolcpus=secret,2\n"
    ),
    "proc/version": "Linux version 6.17.2-1-pve (secret@secret) #1\n",
    "proc/sys/kernel/osrelease": "6.17.2-1-pve-secret\n",
    "proc/sys/kernel/hostname": "secret-host\n",
    "proc/sys/kernel/random/boot_id": "12345678-5ec2-e75e-c2e7-secret000000\n",
    "proc/interrupts": (
        "     CPU0 CPU1\n  60:  1 2  IR-PCI-MSIX-0000:01:00.0  0-edge  vfio-msix[0](0000:01:00.0), secret\n"
        "  61:  1 2  secret-chip 0-edge secret-nic-rx-0\n secret:  1 2\n"
    ),
    "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nSecret: 1 kB\nsecret\n",
    "proc/stat": "cpu  1 2 3\ncpu0 1 2 3\nsecret 1\n",
    "proc/buddyinfo": "Node 0, zone   Normal  1 2 3\nNode 0, zone secret 1\n",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\nsecret\n",
    "proc/irq/61/smp_affinity_list": "0-1\n",
    "proc/irq/61/node": "secret\n",
    "proc/4712/cmdline": "secret-process\n",
    "run/pxsched/balance.json": json.dumps({
        "boot_id": "12345678-5ec2-e75e-c2e7-secret000000", "secret": 1,
        "last": {"at": 5.0, "acted_at": 4.0, "acted": ["VM 100: secret", "VM 100 moves"], "secret": "secret",
                 "skipped": {"100": "DeviceNotActive: secret"},
                 "standings": {"100": [0.5, 0.1, 0.5, 0.2], "101": "secret"}},
    }),
    "run/pxsched/secret": "secret\n",
    "run/pxsched/others.json": json.dumps({
        "boot_id": "12345678-5ec2-e75e-c2e7-secret000000", "secret": 1, "at_ns": 5, "busy": {"0": 0.25},
        "others": [[300, None, "0-1", 0.5, {"0": 512}]], "counters": {"secret": "secret"},
    }),
    "run/pxsched/passes.json": json.dumps([7, 1.5, 5.0, 0.25, {}, {}, {"vcpu": 2, "secret": 1}, 1, [101]]),
    "run/pxsched/refusals.json": '{"101": 3}',
    "run/pxsched/settings.json": '{"files": {"etc/pve/pxsched.toml": {"text": "# secret", "at_s": 1}}}',
    "run/pxsched/shape.json": '{"vms": {"100": {"why": "secret", "digest": "", "tries": 1, "again_s": 1}}}',
    "run/pxsched/handback.json": '{"vms": {"100": {"why": "secret", "digest": "secret", "tries": 1}}}',
    "run/pxsched/karpenter.json": '{"vmid": 100, "said": ["secret"]}',
    "run/pxsched/ledger.json.lost": "secret",
    "etc/pve/pxsched/chain/100.json": '{"vmid": 100, "hookscript": "local:snippets/secret"}',
    "etc/pve/pxsched/shape/100.json": '{"vmid": 100, "before": {"args": "secret"}}',
    "etc/pve/nodes/secret-node/pxsched.json": '{"name": "secret-node"}',
    "sys/class/net/tap100i0/ifindex": "7\n",
    "sys/class/net/secret-bridge/ifindex": "8\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Root]:
    """The machine the test runs on, with a VM, settings and state that tell what they should not."""
    base = tmp_path_factory.mktemp("secret-directory")
    for relative, text in FILES.items():
        path = base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    os.symlink("nodes/secret-node", base / "etc/pve/local")
    for name in ("devices", "kernel", "fs", "bus", "module"):
        os.symlink(f"/sys/{name}", base / "sys" / name)
    words = [
        "-pidfile",
        "/var/run/qemu-server/100.pid",
        "-name",
        "secret",
        "-device",
        "vfio-pci,host=secret",
    ]
    command = [sys.executable, "-c", RENAMED, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdout is not None and qemu.stdout.readline() == "ready\n"
        (base / f"proc/{qemu.pid}").symlink_to(f"/proc/{qemu.pid}")
        (base / "run/qemu-server").mkdir()
        (base / "run/qemu-server/100.pid").write_text(f"{qemu.pid}\n")
        root = Root(str(base))
        found = process.find(root, 100)
        assert found is not None
        _remember(root, found)
        yield root
        qemu.kill()


RENAMED = """
import sys
open("/proc/self/comm", "w").write("secret-thread")
print("ready", flush=True)
sys.stdin.read()
"""


def _remember(root: Root, qemu: Process) -> None:
    """A ledger as passes make it, with secrets wherever it holds text."""
    cpus = frozenset(os.sched_getaffinity(0))
    placement = Placement(
        100, VmClass.SHARED, (cpus,) * 4, cpus, frozenset((0,)), (WHY, "secret reason")
    )
    policy = Policy(governor="secret_governor", fifo=3)
    claim = Claim(placement, State.RUNNING, policy, qemu, None, "secret", '["secret"]', "secret-source",
                  "local:snippets/secret", 4096, balloon_mib=512)  # fmt: skip
    now = process.allowed(root, qemu.pid) or ""
    with ledgers.locked(root) as ledger:
        ledger.claims[100] = claim
        ledger.journal[ThreadAffinity(qemu.pid, qemu.start_ticks).key] = Entry(100, "vcpu", "0", now, 0)
        ledger.journal[balloon.Balloon(100, qemu.start_ticks).key] = Entry(
            100, "balloon", "2048", "512", 0, 5, 2, "GenericError: secret"
        )
        ledger.journal["kvm:halt_poll_ns"] = Entry(0, "latency", "200000", "0", 0)
        ledger.journal["irq:61,0,secret-nic-rx-0"] = Entry(0, "interrupts", "secret", "secret", 0)
        ledger.journal["secret:1"] = Entry(0, "secret", "secret", "secret", 0)
        ledgers.save(root, ledger)
    Path(root.path(balloon.FILE)).write_text(json.dumps({"100": [qemu.start_ticks, 512]}))


@pytest.fixture(scope="module")
def written(machine, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("written") / "secret-bundle.tar.gz"
    bundle.write(machine, str(path), list(commands.examine(machine)))
    return path


@pytest.fixture(scope="module")
def replay(written) -> Root:
    return unpacked(written)


def unpacked(path: Path) -> Root:
    with tarfile.open(path) as tar:
        tar.extractall(
            path.parent / "replay", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    return Root(str(path.parent / "replay"))


def said(root: Root, *words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["--root", root.base, *words]) == 0
    return out.getvalue()


def test_the_topology_is_the_same(machine, replay):
    assert topology.read(replay) == topology.read(machine)
    assert said(replay, "topology") == said(machine, "topology")


def test_status_shows_what_it_showed_but_for_what_is_secret(machine, replay):
    before, again = (
        said(root, "status").replace("  knobs ", "        ").splitlines() for root in (machine, replay)
    )
    kept = [line for line in before if SECRET not in line]
    assert [line for line in kept if line not in again] == [], again
    assert any(WHY in line for line in kept)
    assert any("balloon of VM 100: was 2048 MiB, wanted 512 MiB" in line for line in again)
    assert any("affinity of thread" in line for line in again)


def test_status_in_json_has_the_same_knobs_with_the_same_values(machine, replay):
    before, after = (json.loads(said(root, "status", "--json")) for root in (machine, replay))
    knobs = {knob["knob"]: knob["now"] for knob in after["knobs"]}
    assert len(knobs) == 3
    assert knobs.items() <= {knob["knob"]: knob["now"] for knob in before["knobs"]}.items()
    fields = "class vcpus emulator nodes state pid load contention run_delay"
    for field in fields.split():
        assert after["vms"][0][field] == before["vms"][0][field] or field == "run_delay", field
    assert after["vms"][0]["run_delay"] is not None


def test_who_else_is_there_and_what_was_counted_is_told_in_numbers(replay):
    seen = others.load(replay)
    assert seen is not None and (seen.at_ns, seen.busy) == (5, {0: 0.25})
    assert [(other.name, other.load, other.memory_mib) for other in seen.others] == [
        ("container 300", 0.5, {0: 512})
    ]
    counts = passes.load(replay)
    assert (counts.count, counts.seconds, counts.drifts, counts.unplaced) == (7, 1.5, {"vcpu": 2}, (101,))
    assert refusals.load(replay) == {101: (3, "")}


def test_a_plan_is_the_same(machine, tmp_path):
    path = Path(machine.path("etc/pve/nodes/secret-node/qemu-server/100.conf"))
    path.write_text(CONFIG.replace("affinity: 3,1,0-1\n", "").replace("cores: 4", "cores: 1"))
    try:
        bundle.write(machine, str(tmp_path / "b"), [])
        here = said(machine, "plan", "100")
        assert "secret-thread" in here
        assert said(unpacked(tmp_path / "b"), "plan", "100") == here.replace("secret-thread", "thread")
    finally:
        path.write_text(CONFIG)


def test_settings_are_the_same_but_for_words_and_names_that_nobody_knows(machine, replay):
    before, after = (settings.load(root, {}) for root in (machine, replay))
    assert after.warnings == ()
    assert after.node.housekeeping == before.node.housekeeping == "0"
    assert after.node.reserved_mib == 1024
    assert after.defaults == before.defaults
    assert after.vms == {100: before.vms[100], 101: {}}
    assert after.features == {"karpenter"}
    assert list(after.profiles) == ["p1", "p2"]
    assert after.vm_profiles == {100: "p2"}
    assert after.profiles["p1"] == before.profiles["secret_profile"]
    assert after.profiles["p2"].overlay == {}


def test_the_vm_is_the_same_in_all_that_matters_for_placing_it(replay):
    real = config.machine(config.parse(CONFIG))
    copy = nodes.machine_of(replay, 100)
    fields = "vcpus sockets cores memory_mib affinity guest_nodes hookscript"
    for field in fields.split():
        assert getattr(copy, field) == getattr(real, field), field
    assert [pci.addresses for pci in copy.hostpci] == [
        pci.addresses for pci in real.hostpci if pci.addresses
    ]
    assert copy.tags == ("pxsched-p1",)


def test_no_secret_is_in_it_nor_in_what_the_archive_says_of_itself(written):
    """Entries have no owner, no time and no name but the kernel's and ours; nor has the file around them."""
    raw = written.read_bytes()
    content = gzip.decompress(raw)
    for hidden in (SECRET, "BC:24:11", "5ec2-e75e"):
        assert hidden.encode() not in content.lower()
        assert hidden.encode() not in raw
    with tarfile.open(written) as tar:
        entries = tar.getmembers()
    assert len(entries) > 20
    assert {(one.uname, one.gname, one.uid, one.gid, one.mtime) for one in entries} == {
        ("", "", 0, 0, 0)
    }
    assert [one.name for one in entries if SECRET in one.name + one.linkname] == []
    assert [one.name for one in entries if "101.conf" in one.name or "lxc/" in one.name] == []


def test_only_its_owner_can_read_it_even_where_another_file_was(machine, tmp_path):
    path = tmp_path / "bundle.tar.gz"
    path.write_text("")
    path.chmod(0o644)
    bundle.write(machine, str(path), [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_not_written_through_a_link(machine, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="link"):
        bundle.write(machine, str(tmp_path / "link"), [])
    assert not (tmp_path / "other").exists()


def test_of_the_kernels_command_line_only_scheduling_is_kept(replay):
    assert replay.read("proc/cmdline") == "isolcpus=2-3 amd_iommu=on"


def test_of_interrupts_only_vfios_names_are_kept(replay):
    table = replay.read("proc/interrupts")
    assert "vfio-msix[0](0000:01:00.0), host" in table
    assert "chip 0-edge host" in table


def test_the_doctor_can_be_asked_about_the_replay(replay):
    assert any(finding.area == "topology" for finding in commands.examine(replay))
    told = json.loads(replay.read("doctor.json"))["findings"]
    assert {"level": "ok", "area": "topology"}.keys() == told[0].keys()


def test_patterns_do_not_cross_directories(tmp_path):
    for name in ("a1/x", "a1/y", "a1/b/x", "a2/x", "c/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert machine_files.expand(Root(str(tmp_path)), "a*/{x,z}") == ["a1/x", "a2/x"]


def test_containers_and_host_tasks_are_where_they_may_run(tmp_path):
    groups = {"lxc/101": "0-3", "lxc.monitor": "0-7", "system.slice": "0-1", "lxc/secret": "4"}
    for group, cpus in groups.items():
        directory = tmp_path / "sys/fs/cgroup" / group
        directory.mkdir(parents=True)
        (directory / "cpuset.cpus.effective").write_text(f"{cpus}\n")
        (directory / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    told = dict(machine_files.files(Root(str(tmp_path))))
    for group in ("lxc/101", "lxc.monitor", "system.slice"):
        assert told[f"sys/fs/cgroup/{group}/cpuset.cpus.effective"] == f"{groups[group]}\n"
        assert told[f"sys/fs/cgroup/{group}/cgroup.events"] == "populated 1\nfrozen 0\n"
    assert not any("secret" in name for name in told)


def test_every_file_of_the_kernels_keeps_to_its_words(tmp_path):
    """A secret in any file that is read: the line it stands in stays out."""
    planted = 0
    for pattern in machine_files.FILES:
        [name] = [example(one) for one in machine_files._alternatives(pattern)][:1]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text("1\nsecret\n1 secret\n[secret] 2\nsecret=1\n")
            planted += 1
    told = dict(machine_files.files(Root(str(tmp_path))))
    assert planted > 20 and sum(text == "1\n" for text in told.values()) >= planted - 2
    assert [name for name, text in told.items() if SECRET in text + name] == []


def example(pattern: str) -> str:
    address = "0000:01:00.0"
    parts = [address if part == "*" and "pci" in pattern else part for part in pattern.split("/")]
    return "/".join(parts).replace("[0-9]*", "0").replace("queues/*", "queues/rx-0").replace("*", "x")


@pytest.mark.parametrize("sentence", ["VM secret moves", "vCPUs at 10.0.0.1: Größe", "web01"])
def test_a_sentence_with_a_foreign_word_is_not_ours(sentence):
    assert not words.ours(sentence, "placement", "node")


def test_a_file_that_cannot_be_written_is_named(machine):
    with pytest.raises(UserError, match="/nonexistent/x"):
        bundle.write(machine, "/nonexistent/x", [])
