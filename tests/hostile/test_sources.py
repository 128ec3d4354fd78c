"""Hostile text in every place that others write: whatever is run, none of it reaches a terminal or a journal.

The node is generated but for one QEMU, a real process with a real socket. Each source gets text that moves
cursors, hides, reorders and ends lines; then every command is run, and every phase of the hook.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pxsched import cli, tick
from pxsched.host import systemd
from pxsched.ledger import file as ledgers
from pxsched.ledger.journal import Entry
from pxsched.report import host
from pxsched.root import Root

HERE = Path(__file__).parent
MARK = "FORGED"
# For a field of one line; then with line ends, for a place that may hold them.
IN_LINE = f"x\x1b[2J\x9b31m\u202e\u200b\u3164\ufe0f\x07\x08\x7f{MARK}"
EVIL = f"x\x1b]0;t\x07\r\n<0>{MARK} 1\x85<0>{MARK} 2\u2028<0>{MARK} 3\x0b<0>{MARK} 4 {IN_LINE}"
UNDECODABLE = os.fsdecode(b"x\xff\x1b[2J\n<0>" + MARK.encode())
PCI = "0000:17:02.0"
CONFIG = (
    "cores: 1\nmemory: 512\nballoon: 256\nnet0: virtio=BC:24:11:00:00:01,queues=2\n"
    f"hostpci0: {PCI}\nhookscript: local:snippets/pxsched\n"
)
VM = "etc/pve/nodes/here/qemu-server/100.conf"


class Node:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.qemu: subprocess.Popen[str] | None = None
        self.put("sys/devices/system/cpu/online", "0-3")
        for cpu in range(4):
            self.put(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", str(cpu))
            self.put(f"sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us", "0")
            base_ = f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
            self.put(f"{base_}/related_cpus", str(cpu))
            self.put(f"{base_}/scaling_governor", "powersave")
            self.put(f"{base_}/scaling_available_governors", "performance powersave")
        self.put("sys/devices/system/node/node0/cpulist", "0-3")
        self.put(
            "sys/devices/system/node/node0/meminfo",
            f"Node 0 MemTotal: {8 << 20} kB\nNode 0 MemFree: {4 << 20} kB",
        )
        self.put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids")
        self.put("sys/module/kvm/parameters/halt_poll_ns", "200000")
        for name, text in {"class": "0x020000", "numa_node": "0", "irq": "0", "msi_irqs/60": "msix"}.items():
            self.put(f"sys/bus/pci/devices/{PCI}/{name}", text)
        self.interrupt(f"vfio-msix[0]({PCI})")
        self.put("proc/sys/kernel/osrelease", "6.17.2-1-pve")
        self.put("proc/sys/kernel/random/boot_id", "here")
        self.put("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB")
        self.put("proc/stat", "cpu  1 1 1 1\n")
        (base / "proc/self").symlink_to(str(os.getpid()))
        self.process(os.getpid())
        self.put(VM, CONFIG)
        (base / "etc/pve/local").symlink_to("nodes/here")
        self.put("var/lib/vz/snippets/pxsched", "#!/bin/sh\n")
        (base / "var/lib/vz/snippets/pxsched").chmod(0o755)
        self.put("etc/pve/storage.cfg", "dir: local\n\tpath /var/lib/vz\n")
        self.put("requests.jsonl", '{"op": "start", "vmid": 100, "cores": 1, "memory_mib": 64}')
        self.settings('[vm.100]\ngovernor = "performance"\n')

    def put(self, relative: str, text: str) -> None:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape") + b"\n")

    def settings(self, text: str) -> None:
        self.put("etc/pxsched/pxsched.toml", text)

    def config(self, text: str) -> None:
        """More lines of the VM's configuration; their keys do not count twice."""
        keys = {line.partition(":")[0] for line in text.split("\n")}
        kept = [line for line in CONFIG.splitlines() if line.partition(":")[0] not in keys]
        self.put(VM, "\n".join([*kept, text]))

    def interrupt(self, name: str) -> None:
        self.put("proc/irq/60/smp_affinity_list", "0-3")
        self.put(
            "proc/interrupts",
            f"            CPU0 CPU1 CPU2 CPU3\n 60:  1 1 1 1  PCI-MSIX-{PCI}  0-edge  {name}",
        )

    def process(self, pid: int) -> None:
        (self.base / f"proc/{pid}").symlink_to(f"/proc/{pid}")

    def start(self, how: str = "threads", text: str = EVIL, more: tuple[str, ...] = ()) -> None:
        run = self.base / "run/qemu-server"
        run.mkdir(parents=True, exist_ok=True)
        words = [
            str(run / "100.qmp"),
            "1",
            how,
            json.dumps(text),
            "-id",
            "100",
            "-pidfile",
            "/var/run/qemu-server/100.pid",
        ]
        words += ["-device", f"vfio-pci,host={PCI}", *more]
        script = [sys.executable, "-IS", str(HERE.parent / "stand_in_qemu.py")]
        self.qemu = subprocess.Popen([*script, *words], stdout=subprocess.PIPE, text=True)
        assert self.qemu.stdout is not None and self.qemu.stdout.readline().strip() == "ready"
        for tid in {self.qemu.pid, *map(int, os.listdir(f"/proc/{self.qemu.pid}/task"))}:
            self.process(tid)
        self.put("run/qemu-server/100.pid", str(self.qemu.pid))

    def entry(self, **fields: object) -> None:
        """A knob in the ledger that another version wrote, perhaps."""
        root = Root(str(self.base))
        entry = Entry(100, "governor", "powersave", "performance", 0)._replace(**fields)
        with ledgers.locked(root) as held:
            held.journal[str(fields.get("plugin", "warp:1"))] = entry
            ledgers.save(root, held)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(systemd, "call", lambda root, *arguments: None)
    monkeypatch.setattr(tick, "RESTLESS_PERIOD_S", 0)
    monkeypatch.setattr(host, "LOOK_S", 0.001)
    node = Node(tmp_path / "node")
    yield node
    if node.qemu is not None:
        node.qemu.kill()
        node.qemu.communicate()


READING = (
    "topology", "config 100", "plan 100", "status", "status 100", "defrag", "list", "doctor", "shape 100",
    "cluster status", "cluster fit 100", "cluster plan",
)  # fmt: skip
COMMANDS = [
    *READING, *(f"{words} --json" for words in READING),
    "report --prometheus -", "top --once", "cluster rules", "shape 100 --undo --dry-run",
    "karpenter plan", "karpenter export", "karpenter settings", "karpenter settings --json",
    "hook 100 pre-start", "hook 100 post-start", "tick", "status", "hook 100 pre-stop",
    "enable --all --dry-run", "enable 100 --chain --dry-run --json", "disable --all --dry-run",
    "node uninstall --dry-run", "hook 100 post-stop", "restore --all",
]  # fmt: skip


def everything(node: Node, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    """What all commands say, to terminal and journal, and what they draw."""
    svg, requests = tmp_path / "node.svg", node.base / "requests.jsonl"
    for words in [*map(str.split, COMMANDS), ["report", "--svg", str(svg)], ["simulate", str(requests)]]:
        cli.main(["--root", str(node.base), *words])
    said = capfd.readouterr()
    drawn = svg.read_text() if svg.exists() else ""
    return said.out + said.err + drawn


# What is planted, and whether somebody is told of it, and so must be told in a harmless way.
TOML, QUOTED = json.dumps(IN_LINE), json.dumps(EVIL)  # a basic string of TOML is one of JSON
CONFIGURATIONS = {
    "a VM's name": (f"name: {IN_LINE}", True),
    "a VM's tags": (f"tags: {IN_LINE};pxsched-{IN_LINE}", True),
    "a VM's description": (f"description: {IN_LINE}\n#{IN_LINE}%0A<0>{MARK}", True),
    "a VM's hookscript": (f"hookscript: local:snippets/{IN_LINE}", True),
    "a VM's affinity": (f"affinity: {IN_LINE}", True),
    "a VM's cores and memory": (f"cores: {IN_LINE}\nmemory: {IN_LINE}\nballoon: {IN_LINE}", True),
    "a VM's NUMA": (f"numa: 1\nnuma0: cpus={IN_LINE}\nhugepages: {IN_LINE}", True),
    "a VM's devices": (f"hostpci0: {IN_LINE}\nhostpci1: mapping={IN_LINE}", True),
    "an unknown key of a VM": (f"{IN_LINE}: {IN_LINE}", True),
    "lines of a VM that are none": (EVIL, True),
    "a section of a VM": (f"[{IN_LINE}]\n{EVIL}", True),
}
SETTINGS = {
    "unknown settings": (f"[node]\n{QUOTED} = 1\n[vm.100]\n{TOML} = 2\n", True),
    "values of settings": (
        f"[node]\nhousekeeping = {QUOTED}\n[vm.100]\nclass = {QUOTED}\ncpus = {QUOTED}\n",
        True,
    ),
    "names of tables": (f"[{QUOTED}]\na = 1\n[profile.{QUOTED}]\ntag = true\n", True),
    "a profile's name": (f"[vm.100]\nprofile = {QUOTED}\n", True),
    "settings that are no TOML": (f"{IN_LINE}\n", False),
    "a governor that is wished": (f"[vm.100]\ngovernor = {TOML}\n", True),
}
DEFAULT = "etc/default/proxmox-scheduler"
CHAINED = json.dumps({"schema": 1, "hookscripts": {"100": EVIL}})
LAST_PASS = {
    "at": 1.0, "acted": [EVIL], "acted_at": 1.0, "standings": {"100": [EVIL]}, "skipped": {"100": EVIL},
}  # fmt: skip
FILES = {
    "the default file": (DEFAULT, f"{EVIL}\nA{IN_LINE}=1\nCPU_GOVERNOR_BUSY={IN_LINE}", True),
    "feature flags": (DEFAULT, f"PROXMOX_FEATURE_FLAGS={IN_LINE}", True),
    "the governor that is": ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", EVIL, False),
    "the ledger": ("run/pxsched/ledger.json", json.dumps({"schema": EVIL}), True),
    "what the last pass did": (
        "run/pxsched/balance.json",
        json.dumps({"boot_id": "here", "last": LAST_PASS}),
        True,
    ),
    "remembered hookscripts": ("etc/pve/pxsched-chain.json", CHAINED, True),
    "names in hooks.d": (f"etc/pxsched/hooks.d/{UNDECODABLE}", "", False),
    "the cluster's name": ("etc/pve/corosync.conf", f"cluster_name: {IN_LINE}", False),
    "storages": ("etc/pve/storage.cfg", f"dir: local\n\tpath /{IN_LINE}\n\ndir: {IN_LINE}\n", True),
    "versions of packages": ("var/lib/dpkg/status", f"Package: pve-manager\nVersion: 9.{IN_LINE}", True),
    "the kernel's version": ("proc/sys/kernel/osrelease", f"6.17{EVIL}", True),
    "names of other daemons": ("proc/77/comm", f"tuned{EVIL}", False),
    "isolated CPUs": ("sys/devices/system/cpu/isolated", EVIL, False),
    "the siblings of a CPU": ("sys/devices/system/cpu/cpu1/topology/core_cpus_list", EVIL, False),
    "the distances of nodes": ("sys/devices/system/node/node0/distance", EVIL, False),
    "the memory of a node": ("sys/devices/system/node/node0/meminfo", EVIL, False),
    "the list of online CPUs": ("sys/devices/system/cpu/online", EVIL, False),
    "HA's resources": ("etc/pve/ha/resources.cfg", f"vm: {IN_LINE}", False),
    "the cluster's members": ("etc/pve/.members", EVIL, False),
    "the host's name": ("etc/hostname", EVIL, True),
    "who else is there": (
        "run/pxsched/others.json",
        json.dumps({"boot_id": "here", "at_ns": 1, "others": [[300, None, EVIL, 1, {}]], "busy": {}}),
        False,
    ),
    "what was counted": ("run/pxsched/passes.json", json.dumps([1, 1, 1, 1, {}, {}, {EVIL: 1}, 0, []]), True),
    "what was said of shapes": (
        "run/pxsched/shape.json",
        json.dumps({"vms": {"100": {"why": EVIL, "digest": EVIL, "tries": 1, "again_s": 1}}}),
        False,
    ),
    "what was said of balloons": (
        "run/pxsched/handback.json",
        json.dumps({"vms": {"100": {"why": EVIL, "digest": EVIL, "tries": 1, "again_s": 1}}}),
        False,
    ),
    "what was said of Karpenter's VM": (
        "run/pxsched/karpenter.json", json.dumps({"vmid": 100, "said": [EVIL]}), False
    ),
    "settings that were kept": (
        "run/pxsched/settings.json",
        json.dumps({"files": {"etc/pve/pxsched.toml": {"text": EVIL, "document": {EVIL: EVIL}, "at_s": 1}}}),
        False,
    ),
    "a chained script": (
        "etc/pve/pxsched/chain/100.json",
        json.dumps({"vmid": 100, "hookscript": EVIL, "shares": EVIL, "minimum": EVIL}),
        True,
    ),
    "a shape that is remembered": (
        "etc/pve/pxsched/shape/100.json",
        json.dumps({"vmid": 100, "owner": {"uuid": EVIL}, "before": {EVIL: EVIL}, "wrote": []}),
        True,
    ),
    "what another node tells": (
        "etc/pve/nodes/other/pxsched.json", json.dumps({"schema": 1, "version": EVIL, EVIL: EVIL}), False
    ),
    "what was installed": (
        "var/lib/pxsched/manifest.json", json.dumps({"files": {EVIL: [EVIL]}, "directories": [EVIL]}), False
    ),
    "requests to simulate": ("requests.jsonl", json.dumps({"op": EVIL, EVIL: EVIL}), True),
}


def put(name: str) -> Callable[[Node], None]:
    def plant(node: Node) -> None:
        path, text, _ = FILES[name]
        if path == "etc/hostname":
            (node.base / "etc/pve/local").unlink()
        node.put(path, text)

    return plant


def qmp(how: str, text: str = EVIL) -> Callable[[Node], None]:
    """A VM one of whose vCPUs cannot be told by its thread's name, so that QEMU is asked."""

    def plant(node: Node) -> None:
        node.config("cores: 2")
        node.start(how, text)

    return plant


def interrupt(node: Node) -> None:
    node.start()
    node.interrupt(IN_LINE + f"({PCI})")


def port(node: Node) -> None:
    node.put(f"sys/bus/pci/devices/{PCI}/physfn/net/{UNDECODABLE}/x", "")
    node.put(f"sys/bus/pci/devices/{PCI}/physfn/numa_node", "0")
    node.start()


def node_names(node: Node) -> None:
    node.put(f"etc/pve/nodes/{UNDECODABLE}/qemu-server/101.conf", CONFIG)
    (node.base / "etc/pve/local").unlink()
    (node.base / "etc/pve/local").symlink_to(f"nodes/{UNDECODABLE}")


SOURCES: dict[str, tuple[Callable[[Node], None], bool]] = {
    **{name: (partial(Node.config, text=text), told) for name, (text, told) in CONFIGURATIONS.items()},
    **{name: (partial(Node.settings, text=text), told) for name, (text, told) in SETTINGS.items()},
    **{name: (put(name), told) for name, (_, _, told) in FILES.items()},
    "the names of QEMU's threads": (Node.start, True),
    "QMP's errors": (qmp("error"), True),
    "QMP's greeting": (qmp("greeting"), True),
    "QMP's answers": (qmp("answer"), True),
    "half a surrogate pair in QMP": (qmp("error", f"\ud800\n<0>{MARK}"), True),
    "QEMU's command line": (partial(Node.start, more=("-device", f"vfio-pci,sysfsdev=/{EVIL}")), True),
    "the name of an interrupt": (interrupt, True),
    "names of devices": (port, True),
    "names of nodes": (node_names, True),
    "a knob in the ledger": (
        partial(Node.entry, plugin=EVIL, original=EVIL, wanted=EVIL, note=EVIL), True
    ),
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_hostile_comes_out_of(source, node, capfd, tmp_path, monkeypatch):
    journal: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda priority, line: journal.append(line))
    plant, told = SOURCES[source]
    plant(node)
    said = everything(node, capfd, tmp_path) + "\n".join(journal)
    lines = said.split("\n")
    assert len(lines) > 100
    assert [line for line in lines if not line.isprintable()] == []
    assert [char for char in "\u3164\ufe0f" if char in said] == []
    assert [line for line in lines if line.lstrip().startswith(("<0>", MARK))] == []
    assert (MARK in said) == told, "the table says whether somebody is told"
    assert [line for line in lines if "Traceback" in line or "unexpected" in line] == []
