"""A lab of this directory's own: its tests change what all units share."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import image, recipe
from lab.machine import Machine
from lab.node import Node
from lab.polling import poll

CHECKOUT = "/lab/checkout"
HOG = """\
import mmap, os, sys, threading, time
memory = mmap.mmap(-1, int(sys.argv[1]) << 20)
memory.write(b"x" * len(memory))
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
time.sleep(600)
"""


class Systemd:
    """The lab's systemd, and our knobs in front of it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        node.write("/run/hog.py", HOG)

    def turn(self, *steps: tuple[str, ...]) -> list:
        script = f"{CHECKOUT}/tests/systemd/knobs.py"
        command = ["/usr/bin/python3", "-B", "-I", script, CHECKOUT]
        return json.loads(self.node.run(*command, stdin=json.dumps(steps)).check().out)

    def write(self, key: str, value: str) -> float:
        (seconds,) = self.turn(("write", key, value))
        assert seconds != "gone", key
        return seconds

    def original(self, key: str) -> str:
        return self.turn(("original", key))[0]

    def shell(self, script: str) -> str:
        return self.node.shell(script).check().out.strip()

    def property(self, unit: str, name: str) -> str:
        return self.shell(f"systemctl show --value -p {name} {unit}")

    def group(self, group: str, name: str) -> str | None:
        path = f"/sys/fs/cgroup/{group}/{name}"
        return self.node.files(path).get(path, "").strip() or None

    def effective(self, group: str) -> str:
        """The CPUs in force, wherever the next file is that says it."""
        return self.group(group, "cpuset.cpus.effective") or self.effective(group.rpartition("/")[0])

    def mask(self, pid: int) -> str:
        return self.shell(f"taskset -pc {pid}").rpartition(" ")[2]

    def service(self, name: str, *command: str) -> int:
        self.shell(f"systemd-run --quiet --unit={name} {' '.join(command)}")
        return poll(lambda: int(self.property(name, "MainPID")), f"{name} runs", deadline_s=30)

    def scope(self, vmid: int, *, mib: int = 64, before: str = "", starter: str = "") -> int:
        """A process in a scope as Proxmox makes it; its memory is there when this returns.

        before: runs it inside the scope; starter: makes the scope.
        """
        hog = f"{before} python3 /run/hog.py {mib}"
        start = f"{starter} systemd-run --quiet --scope --unit={vmid} --slice=qemu.slice {hog}"
        self.shell(f"nohup {start} >/dev/null 2>&1 &")
        group = f"qemu.slice/{vmid}.scope"
        poll(lambda: sum(self.memory_mib(vmid)) >= mib, f"{vmid}.scope has its memory", deadline_s=60)
        return int((self.group(group, "cgroup.procs") or "").split()[-1])

    def memory_mib(self, vmid: int) -> list[int]:
        text = self.group(f"qemu.slice/{vmid}.scope", "memory.numa_stat") or ""
        lines = [line for line in text.splitlines() if line.startswith(("anon ", "shmem "))]
        by_node = [[int(word.partition("=")[2]) >> 20 for word in line.split()[1:]] for line in lines]
        return [sum(column) for column in zip(*by_node, strict=True)]

    def drop_ins(self) -> str:
        return self.shell("find /run/systemd -path '*.d/*.conf' -type f -exec grep -H . {} + || true")

    def cpusets(self) -> str:
        return self.shell("cd /sys/fs/cgroup; grep -rs . --include='cpuset.*' . | sort")


@pytest.fixture(scope="module", params=["systemd 257, Linux 6.12", "systemd 252, Linux 6.1"])
def lab(request: pytest.FixtureRequest) -> Iterator[Systemd]:
    try:
        qemu = image.get(recipe.HOST)
        older = image.get(recipe.OLDER_HOST) if "252" in request.param else qemu
    except image.Unavailable as reason:
        pytest.skip(str(reason))
    with Machine(older, qemu=qemu) as machine:
        yield Systemd(Node(machine))


@pytest.fixture
def partitions(lab: Systemd) -> None:
    release = lab.shell("uname -r").split(".")
    if (int(release[0]), int(release[1])) < (6, 7):
        pytest.skip("remote partitions came with Linux 6.7")


@pytest.fixture
def systemd(lab: Systemd) -> Iterator[Systemd]:
    yield lab
    lab.node.shell("systemctl stop 101.scope 102.scope bound.service; systemctl reset-failed; true")
