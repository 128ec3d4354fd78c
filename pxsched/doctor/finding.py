"""What a check sees and what it says."""

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property

from pxsched import output
from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.guest.config import Machine
from pxsched.guest.hookscript import is_ours
from pxsched.host import topology as topologies
from pxsched.host.topology import Topology
from pxsched.ledger import file as ledger
from pxsched.ledger.file import Ledger
from pxsched.node.sighting import sight
from pxsched.proxmox import cluster
from pxsched.proxmox.cluster import Guest
from pxsched.root import Root
from pxsched.settings import files as settings_module
from pxsched.settings.files import Settings
from pxsched.value import Value


class Level(StrEnum):
    """ok; note: worth knowing; warn: something works worse than it could; bad: something does not work."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    BAD = "bad"


class Finding(Value):
    """area: what was looked at. remedy: what to do about it, empty where nothing is to be done."""

    level: Level
    area: str
    text: str
    remedy: str = ""


class Subject(Value):
    """The node as the checks see it; read when first asked for."""

    root: Root

    @cached_property
    def settings(self) -> Settings:
        return settings_module.load(self.root)

    @cached_property
    def topology(self) -> Topology:
        return topologies.read(self.root)

    @cached_property
    def ledger(self) -> Ledger:
        return ledger.peek(self.root)

    @cached_property
    def node(self) -> str:
        """This node's name; empty when it has none."""
        try:
            return cluster.node_name(self.root)
        except UserError:
            return ""

    @cached_property
    def guests(self) -> list[Guest]:
        """All VMs of the cluster but Karpenter's descriptions of nodes."""
        return [guest for guest in cluster.guests(self.root) if not guest.describes_capacity]

    @cached_property
    def here(self) -> list[Guest]:
        return [guest for guest in self.guests if guest.node == self.node]

    @cached_property
    def enabled(self) -> list[Guest]:
        """The VMs of this node that are opted in."""
        return [guest for guest in self.here if is_ours(guest.hookscript)]

    @cached_property
    def machines(self) -> Mapping[int, Machine]:
        """What the VMs of this node are, by VMID."""
        return {guest.vmid: config.machine(config.Config(guest.options)) for guest in self.here}

    @cached_property
    def running_vcpus(self) -> Mapping[int, int]:
        """How many vCPUs have threads, by VMID, of the VMs of this node."""
        seen = (sight(self.root, guest.vmid) for guest in self.here)
        return {sighting.vmid: sighting.running_vcpus for sighting in seen}


def some(items: list[str], most: int = 6) -> str:
    """The first few of a list, for one line."""
    return output.some(items, most)


def vms(guests: list[Guest]) -> str:
    return some([str(guest.vmid) for guest in guests])
