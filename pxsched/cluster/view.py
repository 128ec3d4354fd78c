"""The cluster as one look has it: nodes, VMs' configurations, storages and mappings, all below /etc/pve.

Which node a VM is on is always current there; whether it runs is known of nodes that published.
"""

from collections.abc import Mapping
from functools import cached_property

from pxsched.cluster import ha, hindrances, members, paper
from pxsched.cluster.ha import Ha
from pxsched.cluster.hindrances import Surroundings
from pxsched.cluster.members import Member
from pxsched.cluster.paper import Paper
from pxsched.errors import UserError
from pxsched.guest import config, passthrough
from pxsched.guest.config import Machine
from pxsched.node import sighting, wishes
from pxsched.node.sighting import Node
from pxsched.placement.request import Request
from pxsched.proxmox import cluster
from pxsched.root import Root
from pxsched.settings import files as settings_files
from pxsched.settings.files import Settings
from pxsched.value import NOTHING, Value


class Vm(Value):
    """A VM as its configuration has it. options: as written. snapshots: whether it has any."""

    vmid: int
    node: str
    options: Mapping[str, str]
    machine: Machine
    snapshots: bool = False


class View(Value):
    """node: this one. members: all, by name."""

    node: Node
    members: Mapping[str, Member]

    @property
    def root(self) -> Root:
        return self.node.root

    @cached_property
    def places(self) -> Mapping[int, str]:
        """The node of each VM. Raises UserError when /etc/pve cannot be read."""
        return cluster.places(self.root)

    @cached_property
    def ha(self) -> Ha:
        return ha.read(self.root)

    @cached_property
    def online(self) -> list[str]:
        """The nodes as HA sees them: without those in maintenance."""
        members = self.members.items()
        return [name for name, one in members if one.online is not False and name not in self.ha.away]

    @cached_property
    def surroundings(self) -> Surroundings:
        return hindrances.surroundings(self.root)

    @cached_property
    def _shared(self) -> Mapping[str, object]:
        return settings_files.content(self.root, settings_files.CLUSTER_FILE)

    @cached_property
    def _settings(self) -> dict[str, Settings]:
        return {}

    def settings(self, name: str) -> Settings:
        """What a node goes by."""
        if name == self.node.name:
            return self.node.settings
        if name not in self._settings:
            said = self.members[name].said
            local = said.local if said is not None and said.local is not None else NOTHING
            self._settings[name] = settings_files.of_node(name, self._shared, local)
        return self._settings[name]

    def vm(self, vmid: int) -> Vm:
        """Raises UserError where there is none."""
        found = self.find(vmid)
        if found is None:
            raise UserError(f"there is no VM {vmid} in the cluster")
        return found

    def find(self, vmid: int) -> Vm | None:
        """None where there is none, or none any more: VMs are destroyed and moved while we look."""
        name = self.places.get(vmid)
        file = f"{cluster.NODES_DIR}/{name}/qemu-server/{vmid}.conf"
        text = self.root.read(file) if name else None
        if name is None or text is None:
            return None
        parsed = config.parse(text, name=f"{vmid}.conf")
        return Vm(vmid, name, parsed.options, config.machine(parsed), bool(parsed.snapshots))

    def runs(self, vm: Vm) -> bool | None:
        """None when its node has not published."""
        said = self.members[vm.node].said
        return None if said is None else vm.vmid in said.running

    def request(self, vm: Vm, name: str) -> Request:
        """What placement would be asked for this VM on this node."""
        machine = vm.machine
        policy = self.settings(name).policy(vm.vmid, machine.tags)
        return wishes.request(vm.vmid, machine, policy, device_nodes=self._device_nodes(vm, name))

    def _device_nodes(self, vm: Vm, name: str) -> frozenset[int]:
        if not vm.machine.hostpci:
            return frozenset()
        if name == self.node.name:
            return passthrough.nodes(self.root, vm.vmid, vm.machine, name)
        said = self.members[name].said
        names = {option.mapping for option in vm.machine.hostpci if option.mapping}
        addresses = passthrough.mapped(self.surroundings.pci, names, name)
        found = said.devices if said is not None else {}
        nodes = (
            device.node
            for address, device in found.items()
            if address in addresses or address.rpartition(".")[0] in addresses
        )
        return frozenset(node for node in nodes if node is not None)

    def paper(self, name: str, sizes: Mapping[int, int] = NOTHING) -> Paper:
        """A usable node on paper. sizes: of the huge pages of VMs there that have some."""
        said = self.members[name].said
        assert said is not None
        return paper.of(said, sizes)


def look(root: Root) -> View:
    """Raises UserError when this machine's topology cannot be read."""
    node = sighting.open_node(root)
    return View(node, {member.name: member for member in members.look(node)})
