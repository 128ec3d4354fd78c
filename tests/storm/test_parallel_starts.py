"""Sixteen VMs started at once, again and again, with passes and kills in between: no CPU is dedicated twice.

The machine is generated (16 CPUs, each a core), its processes are real: for every start a task that runs the
hookscript as Proxmox does and a process that stands for QEMU, with pid file and command line. A third of the
tasks is killed before QEMU runs, a third of the QEMUs later; the timer's pass runs all the time.
"""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pxsched.host import cpulist
from pxsched.ledger import file as ledgers
from pxsched.placement.request import VmClass
from pxsched.root import Root

CHECKOUT = Path(__file__).parents[2]
HOOK = CHECKOUT / "hooks/pxsched"
CPUS, VMS, LONGEST_DELAY_S = 16, 16, 2.0
OURS = "hookscript: local:snippets/pxsched\n"
# A start as Proxmox makes it: pre-start as a child of the task, QEMU, its pid file, post-start.
# Says what the hook said and, of each phase, how long it waited for anything but a CPU.
TASK = r"""
import os, subprocess, sys, time
base, vmid, hook, fate = sys.argv[1:]
os.symlink(f"/proc/{os.getpid()}", f"{base}/proc/{os.getpid()}")
def on_cpu_s(pid):  # and queued for one
    ran, queued, _ = open(f"/proc/{pid}/schedstat").read().split()
    return (int(ran) + int(queued)) / 1e9
def phase(name):
    began, ours = time.monotonic(), on_cpu_s("self")
    child = subprocess.Popen([sys.executable, "-I", hook, vmid, name], stdout=subprocess.PIPE, text=True,
        env={"PATH": os.environ["PATH"], "PXSCHED_ROOT": base})
    said = child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    wall = time.monotonic() - began
    waited = wall - on_cpu_s(child.pid) - (on_cpu_s("self") - ours)
    print(said, end="")
    print(f"waited {max(0.0, waited):.3f}", flush=True)
    if child.wait():
        sys.exit(1)
phase("pre-start")
if fate == "dies early":
    os.kill(os.getpid(), 9)
qemu = subprocess.Popen([sys.executable, "-ISc", "input()", "-pidfile", f"/var/run/qemu-server/{vmid}.pid"],
    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
os.symlink(f"/proc/{qemu.pid}", f"{base}/proc/{qemu.pid}")
with open(f"{base}/run/qemu-server/{vmid}.pid", "w") as file:
    file.write(str(qemu.pid))
print("qemu", qemu.pid, flush=True)
phase("post-start")
sys.stdin.read()  # QEMU's standard input stays open as long as we live
"""


class Started(NamedTuple):
    """What became of a start. cpus: those that the hook said are the VM's own. waited_s: by phase."""

    vmid: int
    cpus: frozenset[int]
    waited_s: list[float]
    qemu: int | None


NOBODY = Started(0, frozenset(), [], None)


class Node:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(str(base))
        self.tasks: dict[int, subprocess.Popen[str]] = {}
        self.put("sys/devices/system/cpu/online", f"0-{CPUS - 1}")
        for cpu in range(CPUS):
            self.put(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", str(cpu))
        self.put("sys/devices/system/node/node0/cpulist", f"0-{CPUS - 1}")
        self.put(
            "sys/devices/system/node/node0/meminfo",
            f"Node 0 MemTotal: {64 << 20} kB\nNode 0 MemFree: {60 << 20} kB",
        )
        self.put("proc/sys/kernel/random/boot_id", "here")
        settings = '[node]\nhousekeeping = "0"\nbalance_cpu = false\nbalance_memory = false\n'
        # Claims are what this is about: the CPUs are not there, so no thread is put on them.
        policy = 'class = "dedicated"\nmemory = "off"\nvcpu = false\nemulator = "off"\nvhost = "off"\n'
        self.put("etc/pxsched/pxsched.toml", f"{settings}[defaults]\n{policy}")
        (base / "run/qemu-server").mkdir(parents=True)
        for vmid in range(100, 100 + VMS):
            self.put(f"etc/pve/nodes/here/qemu-server/{vmid}.conf", f"cores: 2\nmemory: 64\n{OURS}")
        (base / "etc/pve/local").symlink_to("nodes/here")

    def put(self, relative: str, text: str) -> None:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def start(self, vmid: int, fate: str) -> None:
        command = [sys.executable, "-ISc", TASK, str(self.base), str(vmid), str(HOOK), fate]
        self.tasks[vmid] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def outcome(self, vmid: int) -> Started:
        """Once the start is over: QEMU runs and post-start was run, or the task has ended."""
        stream = self.tasks[vmid].stdout
        assert stream is not None
        text, phases = "", 0
        while phases < 2 and (line := stream.readline()):
            text += line
            phases += line.startswith("waited ")
        assert "Traceback" not in text, text
        own = re.search(r"is dedicated: vCPUs on ([\d,-]+)", text)
        qemu = re.search(r"^qemu (\d+)$", text, re.MULTILINE)
        waited = [float(word) for word in re.findall(r"^waited (\S+)$", text, re.MULTILINE)]
        assert waited, text
        cpus = cpulist.parse(own[1]) if own else frozenset()
        return Started(vmid, cpus, waited, int(qemu[1]) if qemu else None)

    def end(self, vmid: int) -> None:
        """The VM is gone; half of the time nobody tells us."""
        task = self.tasks.pop(vmid)
        task.kill()
        task.communicate()
        (self.base / f"run/qemu-server/{vmid}.pid").unlink(missing_ok=True)

    def tick(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pxsched", "tick"], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PXSCHED_ROOT": str(self.base)},
        )  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr

    def twice(self) -> list[int]:
        """CPUs that two claims of the ledger have as their own."""
        own = [
            cpu
            for claim in ledgers.peek(self.root).claims.values()
            if claim.placement.vm_class is VmClass.DEDICATED
            for cpu in claim.placement.cpus
        ]
        return sorted({cpu for cpu in own if own.count(cpu) > 1})


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    for vmid in list(node.tasks):
        node.end(vmid)


def watch(node: Node, over: threading.Event, twice: list[int]) -> None:
    while not over.is_set():
        twice += node.twice()
        time.sleep(0.01)


def passes(node: Node, over: threading.Event, failed: list[BaseException]) -> None:
    while not over.is_set():
        try:
            node.tick()
        except AssertionError as error:
            failed.append(error)


@pytest.mark.measures
@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_no_cpu_is_dedicated_twice_and_no_start_waits_long(node, rounds):
    chance = random.Random(16)
    over, twice, failed = threading.Event(), list[int](), list[BaseException]()
    threads = [threading.Thread(target=watch, args=(node, over, twice)),
               threading.Thread(target=passes, args=(node, over, failed))]  # fmt: skip
    for thread in threads:
        thread.start()
    waited_s: list[float] = []
    placed, lives = 0, dict[int, Started]()
    try:
        for _ in range(rounds):
            vmids = [vmid for vmid in range(100, 100 + VMS) if vmid not in node.tasks]
            chance.shuffle(vmids)
            for vmid in vmids:
                node.start(vmid, chance.choice(["lives", "lives", "dies early"]))
            started = [node.outcome(vmid) for vmid in vmids]
            waited_s += [wait for one in started for wait in one.waited_s]
            lives |= {one.vmid: one for one in started if one.qemu is not None}
            own = [cpu for one in lives.values() for cpu in one.cpus]
            assert len(own) == len(set(own)), lives
            placed += sum(bool(one.cpus) and one.vmid in lives for one in started)
            for vmid in list(node.tasks):
                if vmid not in lives or chance.random() < 2 / 3:
                    if qemu := lives.pop(vmid, NOBODY).qemu:
                        os.kill(qemu, signal.SIGKILL)
                    node.end(vmid)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert twice == []
    assert failed == []
    assert placed >= 2 * rounds
    assert max(waited_s) < LONGEST_DELAY_S, sorted(waited_s)[-20:]
