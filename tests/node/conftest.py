"""A small node as files: its CPUs, VMs and QEMU processes, for what a pass, `plan` and `doctor` say of it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxsched import cli
from pxsched.knobs.thread import ThreadAffinity
from pxsched.root import Root

OURS = "hookscript: local:snippets/pxsched\n"


class Small:
    """Twelve CPUs on two NUMA nodes: cores of two siblings, CPU N and N + 6; node 0 has 0-2,6-8."""

    CPUS = 12

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(str(base))
        self.put("sys/devices/system/cpu/online", "0-11")
        self.put("sys/devices/system/cpu/possible", "0-11")
        for cpu in range(self.CPUS):
            core, node = cpu % 6, cpu % 6 // 3
            directory = f"sys/devices/system/cpu/cpu{cpu}"
            self.put(f"{directory}/topology/core_cpus_list", f"{core},{core + 6}")
            self.put(f"{directory}/topology/physical_package_id", str(node))
            self.put(f"{directory}/topology/core_id", str(core))
            l3 = f"{directory}/cache/index3"
            cpus = "0-2,6-8" if node == 0 else "3-5,9-11"
            for name, text in ("level", "3"), ("type", "Unified"), ("shared_cpu_list", cpus):
                self.put(f"{l3}/{name}", text)
        for node, cpus in enumerate(("0-2,6-8", "3-5,9-11")):
            directory = f"sys/devices/system/node/node{node}"
            self.put(f"{directory}/cpulist", cpus)
            self.put(f"{directory}/distance", "10 21" if node == 0 else "21 10")
            text = f"Node {node} MemTotal: {64 << 20} kB\nNode {node} MemFree: {60 << 20} kB"
            self.put(f"{directory}/meminfo", text)
        self.put("sys/devices/system/node/online", "0-1")
        self.put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids")
        self.put("sys/fs/cgroup/cpuset.cpus.effective", "0-11")
        self.put("proc/sys/kernel/osrelease", "6.17.2-1-pve")
        self.put("var/lib/vz/snippets/pxsched", "#!/bin/sh").chmod(0o755)
        self.put("etc/pxsched/pxsched.toml", "")
        (base / "etc/pve/nodes/pve1/qemu-server").mkdir(parents=True)
        os.symlink("nodes/pve1", base / "etc/pve/local")

    def put(self, relative: str, text: str) -> Path:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
        return path

    def settings(self, text: str) -> None:
        self.put("etc/pxsched/pxsched.toml", text)

    def vm(self, vmid: int, text: str, *, vcpus: int | None = None, indexes: tuple[int, ...] = ()) -> None:
        """A VM that is opted in. vcpus, or their indexes: it runs with so many threads."""
        self.put(f"etc/pve/nodes/pve1/qemu-server/{vmid}.conf", f"memory: 2048\n{OURS}{text}")
        if vcpus is not None or indexes:
            self._process(vmid, indexes or tuple(range(vcpus or 0)))

    def _process(self, vmid: int, indexes: tuple[int, ...]) -> None:
        pid = vmid * 100
        self.put(f"run/qemu-server/{vmid}.pid", str(pid))
        pid_file = f"/var/run/qemu-server/{vmid}.pid"
        self.put(f"proc/{pid}/cmdline", "").write_bytes(f"kvm\0-pidfile\0{pid_file}\0".encode())
        names = {pid: "kvm"} | {pid + 1 + number: f"CPU {i}/KVM" for number, i in enumerate(indexes)}
        for tid, name in names.items():
            for directory in (f"proc/{tid}", f"proc/{pid}/task/{tid}"):
                numbers = " ".join(["1"] * 18)
                self.put(f"{directory}/stat", f"{tid} ({name}) S {numbers} 100 0 0")
                self.put(f"{directory}/status", f"Name:\t{name}\nCpus_allowed_list:\t0-11")
                self.put(f"{directory}/comm", name)


class Said(Small):
    """And what the program says of it."""

    capsys: pytest.CaptureFixture[str]

    def run(self, *words: str) -> str:
        cli.main(["--root", str(self.base), *words])
        done = self.capsys.readouterr()
        return done.out + done.err

    def plan(self, vmid: int) -> dict:
        text = self.run("plan", str(vmid), "--json")
        return json.loads(text)

    def cpus(self, vmid: int) -> list[str]:
        return [vcpu["cpus"] for vcpu in self.plan(vmid)["vcpus"]]

    def findings(self, area: str) -> list[str]:
        found = json.loads(self.run("doctor", "--json"))["findings"]
        return [f"{item['level']}: {item['text']}" for item in found if item["area"] == area]


@pytest.fixture
def small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Said]:
    node = Said(tmp_path / "node")
    node.capsys = capsys
    yield node


@pytest.fixture
def obedient(small: Said, monkeypatch: pytest.MonkeyPatch) -> Said:
    """A node whose threads take what they are given; `masks` has it by the knob's key."""
    masks: dict[str, str] = {}
    monkeypatch.setattr(ThreadAffinity, "read", lambda knob, root: masks.get(knob.key, "0-11"))
    monkeypatch.setattr(ThreadAffinity, "write", lambda knob, root, cpus: masks.__setitem__(knob.key, cpus))
    monkeypatch.setattr(ThreadAffinity, "put_back", lambda knob, root, cpus: masks.pop(knob.key, None))
    small.masks = masks
    return small
