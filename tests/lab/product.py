"""pxsched as installed in the lab, the way a user installs it, and what the kernel shows of its work."""

import json
import re
from dataclasses import dataclass
from typing import Any

from .node import CommandFailed, Node, Result, Thread
from .polling import poll

HOOK = "local:snippets/pxsched"
SETTINGS = "/etc/pxsched/pxsched.toml"
# What an admin was told, and VMs that were refused their start, are remembered until the next boot.
TOLD = ("/run/pxsched/notices.json", "/run/pxsched/refusals.json")
# One VM whose policy turns everything there is to turn in the lab.
EVERYTHING = """
[node]
isolation = "slices"
device_interrupts = true
[vm.100]
class = "dedicated"
memory = "strict"
governor = "performance"
halt_poll_ns = 0
"""
_FIND_DROP_INS = "find /run/systemd -name '*[0-9p].*.d' -o -path '*system.control*' -type f"
UNITS = ("pxsched.timer", "pxsched.service")


@dataclass(frozen=True, slots=True)
class Turned:
    """Every value in the lab that pxsched may turn, as the kernel and systemd have it."""

    governors: dict[int, str]
    files: dict[str, str]
    drop_ins: tuple[str, ...]


class Product:
    """The installed program."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def install(self) -> None:
        """As the manual says; does nothing when it is there."""
        if not self.node.files("/opt/pxsched/bin/pxsched"):
            self.node.run("/lab/checkout/install.sh", timeout_s=300).check()
        self.stop_timer()

    def stop_timer(self) -> None:
        """Most tests call `tick` themselves, to know when it runs; those of the timer start it."""
        self.node.run("systemctl", "stop", *UNITS)

    def run(self, *words: str, timeout_s: float = 180) -> Result:
        return self.node.run("pxsched", *words, timeout_s=timeout_s)

    def tick(self) -> Result:
        return self.run("tick").check()

    def json(self, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run(*words, "--json").check().out)
        return answer

    def configure(self, toml: str) -> None:
        assert self.node.write(SETTINGS, toml) == 0

    def turned(self) -> Turned:
        files = self.node.files(
            "/sys/fs/cgroup/*.slice/cpuset.cpus",
            "/sys/fs/cgroup/init.scope/cpuset.cpus",
            "/sys/fs/cgroup/*/cpuset.cpus.partition",
            "/sys/module/kvm/parameters/halt_poll_ns",
            "/proc/irq/default_smp_affinity",
        )
        drop_ins = self.node.shell(_FIND_DROP_INS).out
        return Turned(self.node.governors(), files, tuple(sorted(drop_ins.split())))

    def start_turning_everything(self, untouched: Turned) -> None:
        """VM 100, with all that its policy can ask for."""
        self.configure(EVERYTHING)
        self.node.rom_guest(100, cores=2, hookscript=HOOK, net0="virtio=BC:24:11:00:00:01")
        self.node.qm("start", "100").check()
        turned = self.turned()
        assert turned.governors != untouched.governors
        assert turned.files != untouched.files
        assert turned.drop_ins != untouched.drop_ins
        assert {len(cpus.split(",")) for cpus in self.vcpus(100).values()} == {1}

    def reset(self) -> None:
        """Ends what a test began: guests, knobs, settings, and what was told of them."""
        self.stop_timer()
        self.node.clear_guests()
        self.run("restore", "--all")
        self.node.run("rm", "-f", SETTINGS, *TOLD)

    # What the tests ask of a running guest

    def vcpus(self, vmid: int) -> dict[int, str]:
        """Each vCPU's CPUs as the kernel lists them."""
        return {vcpu: text(cpus) for vcpu, cpus in self.node.vcpu_masks(vmid).items()}

    def others(self, vmid: int) -> list[Thread]:
        """QEMU's threads that are no vCPUs, without the kernel's own helper that nobody can place."""
        return [t for t in self.node.threads(vmid) if t.vcpu is None and t.name != "kvm-nx-lpage-re"]

    def scope(self, vmid: int, name: str) -> str:
        found = self.node.files(f"/sys/fs/cgroup/qemu.slice/{vmid}.scope/{name}")
        return next(iter(found.values()), "").strip()

    def pages(self, vmid: int) -> dict[int, int]:
        """The guest process's anonymous and huge memory in MiB, by NUMA node."""
        pid = self.node.pid(vmid)
        if pid is None:
            raise CommandFailed(f"VM {vmid} does not run")
        found: dict[int, int] = {0: 0, 1: 0}
        for line in self.node.read(f"/proc/{pid}/numa_maps").splitlines():
            size = re.search(r"kernelpagesize_kB=(\d+)", line)
            if size and ("anon=" in line or "huge" in line):
                for place, pages in re.findall(r" N(\d+)=(\d+)", line):
                    found[int(place)] += int(pages) * int(size[1]) // 1024
        return found

    def wait_vcpus(self, vmid: int, wanted: dict[int, str], *, deadline_s: float = 30) -> None:
        poll(lambda: self.vcpus(vmid) == wanted, f"vCPUs of {vmid} on {wanted}", deadline_s=deadline_s)


def text(cpus: frozenset[int]) -> str:
    """A CPU set as the kernel would write it."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)
