"""A generated machine with every file the plugins turn, a stand-in for its systemd, and views of VMs."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pxsched.guest.config import Machine
from pxsched.guest.process import Process, Role, Thread
from pxsched.host import cpulist, systemd
from pxsched.host.topology import Cpu, Node, Topology
from pxsched.ledger.claim import Claim, State
from pxsched.placement.request import Placement, VmClass
from pxsched.plugins.view import HostView, VmView
from pxsched.root import Root
from pxsched.settings.policy import NodeSettings, Policy

CPUS, PER_NODE = 8, 4
ALL = cpulist.format(range(CPUS))
GROUPS = ("", "system.slice", "user.slice", "init.scope", "qemu.slice", "lxc")


class Tree:
    """Eight CPUs on two nodes. CPUs 2N and 2N+1 share the frequency policy 2N."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(str(base))
        for cpu in range(CPUS):
            self.put(f"sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us", "0")
        for policy in range(0, CPUS, 2):
            self.policy(policy, (policy, policy + 1))
        for node in range(2):
            self.node(node, free_mib=8192)
        self.put("sys/module/kvm/parameters/halt_poll_ns", "200000")
        self.put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids")
        for group in GROUPS:
            self.group(group)

    def put(self, relative: str, text: str) -> None:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def get(self, relative: str) -> str:
        return (self.base / relative).read_text().rstrip("\n")

    def policy(self, number: int, cpus: tuple[int, ...], governors: str = "performance schedutil powersave",
               governor: str = "schedutil", preference: str = "balance_performance") -> None:  # fmt: skip
        base = f"sys/devices/system/cpu/cpufreq/policy{number}"
        shutil.rmtree(self.base / base, ignore_errors=True)
        self.put(f"{base}/related_cpus", " ".join(map(str, cpus)))
        self.put(f"{base}/scaling_available_governors", governors)
        self.put(f"{base}/scaling_governor", governor)
        if preference:
            self.put(f"{base}/energy_performance_preference", preference)
            known = "default performance balance_performance balance_power power"
            self.put(f"{base}/energy_performance_available_preferences", known)
        for cpu in cpus:
            link = self.base / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
            link.unlink(missing_ok=True)
            link.symlink_to(f"../cpufreq/policy{number}")

    def node(self, number: int, free_mib: int, *, pools: dict[int, tuple[int, int]] | None = None) -> None:
        base = f"sys/devices/system/node/node{number}"
        self.put(f"{base}/meminfo", f"Node {number} MemTotal: {16384 << 10} kB\n"
                                    f"Node {number} MemFree: {free_mib << 10} kB")  # fmt: skip
        for size_mib, (pages, free) in (pools or {}).items():
            self.put(f"{base}/hugepages/hugepages-{size_mib << 10}kB/nr_hugepages", str(pages))
            self.put(f"{base}/hugepages/hugepages-{size_mib << 10}kB/free_hugepages", str(free))

    def group(self, group: str) -> None:
        base = f"sys/fs/cgroup/{group}".rstrip("/")
        self.put(f"{base}/cgroup.threads", "")
        for name, everything in ("cpuset.cpus", ALL), ("cpuset.mems", "0-1"):
            if not group:
                self.put(f"{base}/{name}.effective", everything)
                continue
            # What is configured is in force; where nothing is, what the parent has.
            self.put(f"{base}/{name}", "")
            (self.base / f"{base}/{name}.effective").symlink_to(name)

    def scope(self, vmid: int) -> str:
        """The cgroup of a VM that runs."""
        self.group(f"qemu.slice/{vmid}.scope")
        return f"sys/fs/cgroup/qemu.slice/{vmid}.scope"

    def governor(self, policy: int) -> str:
        return self.get(f"sys/devices/system/cpu/cpufreq/policy{policy}/scaling_governor")

    def preference(self, policy: int) -> str:
        return self.get(f"sys/devices/system/cpu/cpufreq/policy{policy}/energy_performance_preference")

    def content(self) -> dict[str, bytes]:
        """Every file but our own."""
        return {
            str(path.relative_to(self.base)): path.read_bytes()
            for path in sorted(self.base.rglob("*"))
            if path.is_file() and not path.is_relative_to(self.base / "run/pxsched")
        }


class Systemd:
    """What systemd does with a property: a drop-in below /run, and the cgroup's file."""

    FILES = {"AllowedCPUs": "cpuset.cpus", "AllowedMemoryNodes": "cpuset.mems"}

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.works = False  # another process, which nobody kills
        self.kernel: Callable[[str], None] | None = None  # told of a unit's group whose cpuset was written

    def call(self, root: Root, *arguments: str) -> None:
        sys.audit("systemd.call")
        self.calls.append(arguments)
        self.works = True
        try:
            self._do(root, *arguments)
        finally:
            self.works = False

    def _do(self, root: Root, *arguments: str) -> None:
        if arguments[0] != "set-property":
            assert arguments == ("daemon-reload",)
            return
        unit, (name, _, value) = arguments[-2], arguments[-1].partition("=")
        group = unit if unit in GROUPS else f"qemu.slice/{unit}"
        active = root.exists(f"sys/fs/cgroup/{group}")
        if not active and unit.endswith(".scope"):
            raise systemd.NoSuchUnit(unit)
        where = "transient" if unit.endswith(".scope") else "system.control"
        path = Path(root.path(f"run/systemd/{where}/{unit}.d/50-{name}.conf"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}={value}\n")
        if not active:
            return
        # Seen with systemd 257: what is configured stays in the cgroup when the property is taken away.
        if value:
            Path(root.path(f"sys/fs/cgroup/{group}/{self.FILES[name]}")).write_text(f"{value}\n")
        if self.kernel is not None:
            self.kernel(group)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def fake_systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    stand_in = Systemd()
    monkeypatch.setattr(systemd, "call", stand_in.call)
    return stand_in


def topology() -> Topology:
    cpus = {cpu: Cpu(cpu, True, core=cpu // 2, node=cpu // PER_NODE) for cpu in range(CPUS)}
    nodes = tuple(
        Node(node, frozenset(range(node * PER_NODE, (node + 1) * PER_NODE)), 16 << 30) for node in range(2)
    )
    return Topology(cpus, (), nodes, ())


class Views:
    """Makes VMs and hosts as plugins see them, in few words."""

    topology = topology()
    starter = Process(4711, 1)

    def claim(self, vmid: int, cpus: str, vm_class: VmClass = VmClass.DEDICATED, *, nodes: str = "0",
              state: State = State.RUNNING, **policy) -> Claim:  # fmt: skip
        ordered = cpulist.parse_ordered(cpus)
        own = vm_class in (VmClass.PINNED, VmClass.DEDICATED)
        vcpus = tuple(frozenset((cpu,)) if own else frozenset(ordered) for cpu in ordered)
        placement = Placement(vmid, vm_class, vcpus, frozenset((0,)), cpulist.parse(nodes))
        starter = self.starter if state is State.STARTING else None
        return Claim(placement, state, Policy(**policy), starter=starter)

    def vm(self, claim: Claim, *, threads: tuple[Thread, ...] = (), memory_mib: dict[int, int] | None = None,
           **machine) -> VmView:  # fmt: skip
        by_node = None if memory_mib is None else {node: mib << 20 for node, mib in memory_mib.items()}
        return VmView(claim, Machine(**machine), threads, memory_bytes=by_node)

    def host(self, *claims: Claim, settings: NodeSettings | None = None, **fields) -> HostView:
        by_vmid = {claim.vmid: claim for claim in claims}
        return HostView(self.topology, settings or NodeSettings(), frozenset((0,)), by_vmid, **fields)

    def threads(self, *tids: int) -> tuple[Thread, ...]:
        return tuple(Thread(tid, 1, f"CPU {i}/KVM", Role.VCPU, (i,)) for i, tid in enumerate(tids))

    @staticmethod
    def wants(settings) -> dict[str, str]:
        return {setting.knob.key: setting.want for setting in settings}


@pytest.fixture
def views() -> Views:
    return Views()
