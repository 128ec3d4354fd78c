"""This node as one pass sees it: its settings and topology, and the VMs on it.

A VM's configuration lies below its node's directory in /etc/pve: our own, or during an incoming migration the
source's. /etc/pve may be empty while pve-cluster is down; that never means that there are no VMs.
"""

import os
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from pxsched.guest import config, process
from pxsched.guest.config import Machine
from pxsched.guest.process import Process, Role, Thread
from pxsched.host import topology as topologies
from pxsched.host.name import name_of as name_of
from pxsched.host.topology import Topology
from pxsched.root import Root
from pxsched.settings import files as settings_module
from pxsched.settings.files import Settings
from pxsched.value import Memo, Value

if TYPE_CHECKING:
    from pxsched.host.cgroup import Version
    from pxsched.host.irqbalance import Running
    from pxsched.host.memory import NodeMemory
    from pxsched.node.fences import Stated
    from pxsched.node.measuring import Home
    from pxsched.node.wishes import Asked
    from pxsched.plugins.view import Setting

QMP_PATIENCE_S = 0.5


class Sighting(Value):
    """What was seen of one VM. machine: None when its configuration is nowhere to be read.

    starter: the task that is about to start QEMU. source: the node a migration comes from.
    opted_in: its hookscript is ours, or Proxmox called us for it.
    """

    vmid: int
    machine: Machine | None
    process: Process | None = None
    threads: tuple[Thread, ...] = ()
    starter: Process | None = None
    source: str = ""
    opted_in: bool = False
    notes: tuple[str, ...] = ()

    @property
    def running_vcpus(self) -> int:
        """How many vCPUs QEMU has threads for."""
        return len({vcpu for thread in self.threads for vcpu in thread.vcpus})

    @property
    def surplus(self) -> str:
        """What is to be said of a VM whose QEMU runs more vCPUs than its configuration says; else empty."""
        said, running = self.machine.vcpus if self.machine else 0, self.running_vcpus
        if not said or running <= said:
            return ""
        return f"QEMU runs {running} vCPUs, where the configuration says {said}; all {running} count"


class Memos:
    """What passes over a node worked out of its VMs, for the next one: what placement is asked, what their
    threads should have, what the balancer has to know.
    """

    def __init__(self) -> None:
        self.wishes: Memo[Asked] = Memo()
        self.threads: Memo[list[Setting]] = Memo()
        self.homes: Memo[Home] = Memo()

    def keep(self, vmids: Collection[int]) -> None:
        """Forgets all other VMs."""
        for memo in (self.wishes, self.threads, self.homes):
            memo.keep(vmids)


class Node(Value):
    """earlier: what passes before this one worked out."""

    root: Root
    settings: Settings
    topology: Topology
    earlier: Memos | None = None

    @cached_property
    def memos(self) -> Memos:
        return self.earlier or Memos()

    @cached_property
    def name(self) -> str:
        return name_of(self.root)

    @cached_property
    def memory(self) -> tuple["NodeMemory", ...]:
        """What each NUMA node has free, as this pass saw it."""
        from pxsched.host import memory

        return memory.read(self.root)

    @cached_property
    def irqbalance(self) -> "Running | None":
        """The daemon and what it says; None where there is none. It is asked once a pass."""
        from pxsched.host import irqbalance

        return irqbalance.look(self.root)

    @cached_property
    def slice_cpus(self) -> "Stated | None":
        """What the VMs' slice may use, and which group says so."""
        from pxsched.node import fences

        return fences.of_slice(self.root)

    @cached_property
    def scope_cpus(self) -> "dict[int, Stated | None]":
        """The same of running VMs' own groups, by VMID, as far as it was asked: `fences` reads each once."""
        return {}

    @cached_property
    def cgroups(self) -> "Version | None":
        from pxsched.host import cgroup

        return cgroup.version(self.root)

    @cached_property
    def housekeeping(self) -> frozenset[int]:
        from pxsched.placement.housekeeping import housekeeping

        return housekeeping(self.topology, self.settings.node)


def open_node(root: Root, environ: Mapping[str, str] = os.environ, *, keep: bool = False) -> Node:
    """keep: keep the settings for the day they cannot be read. Raises UserError when the topology cannot be
    read.
    """
    return Node(root, settings_module.load(root, environ, keep=keep), topologies.read(root))


def open_again(before: Node, topology: Topology, environ: Mapping[str, str]) -> Node:
    """The node for the next pass of the same process: what has not changed is the very same."""
    settings = settings_module.load(before.root, environ, keep=True)
    known = before.settings if settings == before.settings else settings
    return Node(before.root, known, topology, before.memos)


def config_path(root: Root, vmid: int, source: str = "") -> str | None:
    """Where the VM's configuration lies below the root: own node first, then the migration's source."""
    for node in (name_of(root), source):
        path = f"etc/pve/nodes/{node}/qemu-server/{int(vmid)}.conf"
        if node and "/" not in node and root.exists(path):
            return path
    # Roots without the cluster's directories, such as captures of a single file.
    path = f"etc/pve/qemu-server/{int(vmid)}.conf"
    return path if root.exists(path) else None


def machine_of(root: Root, vmid: int, source: str = "") -> Machine | None:
    path = config_path(root, vmid, source)
    return machine_at(root, vmid, path) if path else None


def machine_at(root: Root, vmid: int, path: str) -> Machine | None:
    """The VM that a file describes; None when it cannot be read."""
    text = root.read(path)
    return None if text is None else config.machine(config.parse(text, name=f"{vmid}.conf"))


def is_container(root: Root, vmid: int) -> bool:
    return root.exists(f"etc/pve/nodes/{name_of(root)}/lxc/{int(vmid)}.conf")


def sight(
    root: Root,
    vmid: int,
    *,
    starter: Process | None = None,
    source: str = "",
    hooked: bool = False,
) -> Sighting:
    """Looks at one VM. hooked: Proxmox called our hook for it."""
    machine = machine_of(root, vmid, source)
    opted_in = hooked or (machine is not None and machine.opted_in)
    found = process.find(root, vmid)
    if found is None:
        return Sighting(vmid, machine, starter=starter, source=source, opted_in=opted_in)
    threads, notes = _threads(root, vmid, found, machine)
    return Sighting(vmid, machine, found, threads, None, source, opted_in, notes)


def _threads(
    root: Root, vmid: int, found: Process, machine: Machine | None
) -> tuple[tuple[Thread, ...], tuple[str, ...]]:
    """The threads told by their names, which QEMU gives them as Proxmox asks it to (debug-threads=on); only
    where those leave a vCPU unfound is it asked which thread runs what.
    """
    threads = process.threads(root, found)
    named = sum(thread.role is Role.VCPU for thread in threads)
    if not root.live or (machine is not None and named >= machine.vcpus):
        return threads, ()
    from pxsched.guest import qmp

    try:
        with qmp.Qmp(root, vmid, patience_s=QMP_PATIENCE_S) as monitor:
            vcpus = qmp.vcpu_threads(monitor.execute("query-cpus-fast"))
    except qmp.QmpError as error:
        return threads, (f"threads told by their names, as QMP failed: {error}",)
    return process.with_vcpus(threads, vcpus), ()
