"""Generated machines with PCI devices and their interrupts, and views of VMs that have them."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pxsched.guest.config import Machine
from pxsched.host import cpulist
from pxsched.host.topology import Cpu, Node, Topology
from pxsched.ledger.claim import Claim, State
from pxsched.placement.request import Placement, VmClass
from pxsched.plugins.view import VmView
from pxsched.root import Root
from pxsched.settings.policy import Policy


class PciMachine:
    """A directory that looks like a machine of 16 CPUs on two nodes, as far as devices go."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(str(base))
        self.write("proc/irq/default_smp_affinity", "ffff")

    def write(self, relative: str, text: str) -> None:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def text(self, relative: str) -> str:
        return (self.base / relative).read_text()

    def link(self, relative: str, target: str) -> None:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, path)

    def device(self, address: str, *, node: int = -1, physical: str = "", index: int = 0) -> None:
        directory = f"sys/bus/pci/devices/{address}"
        self.write(f"{directory}/numa_node", str(node))
        self.write(f"{directory}/irq", "0")
        if physical:
            self.link(f"{directory}/physfn", f"../{physical}")
            self.link(f"sys/bus/pci/devices/{physical}/virtfn{index}", f"../{address}")

    def vectors(self, address: str, numbers: Sequence[int], *, kind: str = "msix", first: int = 0) -> None:
        """The guest's driver enables these vectors of a passed-through device."""
        for index, number in enumerate(numbers, first):
            self.write(f"sys/bus/pci/devices/{address}/msi_irqs/{number}", "msix")
            self.interrupt(number, f"vfio-{kind}[{index}]({address})")

    def interrupt(self, number: int, *names: str, affinity: str = "0-15", effective: str = "0") -> None:
        self.write(f"proc/irq/{number}/smp_affinity_list", affinity)
        self.write(f"proc/irq/{number}/effective_affinity_list", effective)
        self.write(f"proc/irq/{number}/node", "0")
        for name in names:
            (self.base / f"proc/irq/{number}/{name}").mkdir()

    def reset(self, address: str) -> None:
        """The guest reboots: its driver's vectors vanish."""
        directory = self.base / f"sys/bus/pci/devices/{address}/msi_irqs"
        for path in directory.iterdir():
            shutil.rmtree(self.base / f"proc/irq/{path.name}")
            path.unlink()

    def affinities(self, *numbers: int) -> list[str]:
        return [self.text(f"proc/irq/{number}/smp_affinity_list").strip() for number in numbers]


@pytest.fixture
def pci(tmp_path: Path) -> PciMachine:
    return PciMachine(tmp_path / "machine")


def topology(online: str = "0-15", *, isolated: str = "") -> Topology:
    """CPUs 0-7 are node 0, 8-15 node 1."""
    up = cpulist.parse(online)
    cpus = {
        cpu: Cpu(cpu, cpu in up, core=cpu, node=cpu // 8, package=0, siblings=frozenset({cpu}))
        for cpu in range(16)
    }
    nodes = tuple(Node(node, up & frozenset(range(8 * node, 8 * node + 8)), 1 << 36) for node in (0, 1))
    return Topology(cpus, (), nodes, (), cpulist.parse(isolated))


def view(
    vm_class: VmClass = VmClass.DEDICATED,
    cpus: Sequence[str] = ("4", "5", "6", "7"),
    *,
    vmid: int = 100,
    emulator: str = "0-1",
    nodes: str = "0",
    policy: Policy = Policy(),
    since_ns: int = 0,
) -> VmView:
    """A running VM whose vCPUs are where `cpus` says."""
    placed = tuple(cpulist.parse(text) for text in cpus)
    placement = Placement(vmid, vm_class, placed, cpulist.parse(emulator), cpulist.parse(nodes))
    return VmView(Claim(placement, State.RUNNING, policy, since_ns=since_ns), Machine(vcpus=len(cpus)))


View = Callable[..., VmView]
