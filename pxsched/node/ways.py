"""What each way to run a VM would mean on this node, found out before anything is turned."""

from collections.abc import Iterable, Mapping
from typing import Any

from pxsched.errors import UserError
from pxsched.guest.process import Process, Role
from pxsched.host import cpulist
from pxsched.ledger import file as ledgers
from pxsched.ledger.file import Ledger
from pxsched.node import fences, planning, trial
from pxsched.node import sighting as nodes
from pxsched.node.sighting import Node
from pxsched.placement.machine import machine_of
from pxsched.placement.request import EXCLUSIVE, Placement, VmClass
from pxsched.proof import way as ways
from pxsched.proof.way import Kind, Way
from pxsched.root import Root
from pxsched.settings.policy import Policy, Wish
from pxsched.value import Value, replace


class Subject(Value):
    """The VM of a proof. tids: its vCPU threads in order. policy: as its settings say. home: where it is."""

    vmid: int
    process: Process
    tids: tuple[int, ...]
    policy: Policy
    home: Placement


class Planned(Value):
    """One way. overlay: what it changes of the policy. placement: None for where the VM is. cpus: those that
    its vCPUs may use. room: the VMs that make room meanwhile. settings: of `[vm.VMID]`, to keep it.
    """

    way: Way
    overlay: Mapping[str, Any]
    placement: Placement | None
    cpus: frozenset[int]
    room: tuple[int, ...]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.way.name

    @property
    def place(self) -> str:
        """For a person."""
        cpus = cpulist.format(self.cpus)
        if self.way.kind is Kind.STOCK:
            return f"as Proxmox starts it, on CPUs {cpus}"
        own = self.placement is not None and self.placement.vm_class in EXCLUSIVE
        text = f"{'on CPUs of its own, ' if own else 'on CPUs '}{cpus}"
        if self.room:
            text += f"; VM {', '.join(map(str, self.room))} makes room meanwhile"
        return text


def subject(node: Node, vmid: int) -> Subject:
    """Raises UserError for a VM that does not run, or is not ours."""
    claim = ledgers.peek(node.root).claims.get(vmid)
    sighting = nodes.sight(node.root, vmid, source=claim.source if claim else "")
    if sighting.machine is None:
        raise UserError(f"there is no VM {vmid} on node {node.name}")
    if sighting.process is None:
        raise UserError(f"VM {vmid} does not run")
    if claim is None or claim.process != sighting.process:
        raise UserError(f"VM {vmid} has no place", hint="`pxsched enable` makes it ours")
    vcpus = sorted((one for one in sighting.threads if one.role is Role.VCPU), key=lambda one: one.vcpus)
    home = claim.aside.placement if claim.aside else claim.placement
    policy = node.settings.policy(vmid, sighting.machine.tags)
    return Subject(vmid, sighting.process, tuple(one.tid for one in vcpus), policy, home)


def plan(node: Node, vm: Subject, wanted: Iterable[Way], *, move_memory: bool) -> tuple[Planned, ...]:
    """Raises UserError for a way that cannot be, or takes from others, or is the same as another one."""
    ledger = ledgers.peek(node.root)
    found: list[Planned] = []
    for way in wanted:
        one = _plan(node, ledger, vm, way, move_memory=move_memory)
        same = next((o for o in found if (o.overlay, o.placement) == (one.overlay, one.placement)), None)
        if same is not None:
            raise UserError(f"{same.name} and {one.name} are the same for VM {vm.vmid}")
        found.append(one)
    return tuple(found)


def _plan(node: Node, ledger: Ledger, vm: Subject, way: Way, *, move_memory: bool) -> Planned:
    own = vm.home.vm_class in EXCLUSIVE
    exclusive = own or way.kind is Kind.DEDICATED
    if idle := ways.idle_features(way, node.settings.node, exclusive=exclusive):
        raise UserError(idle)
    policy = ways.policy(way, vm.policy, exclusive=own, move_memory=move_memory)
    placement = _placement(node, ledger, vm, way, policy, move_memory=move_memory)
    if placement is not None:
        _check(node, ledger, vm, placement, way)
        if not placement.nodes <= vm.home.nodes and not move_memory:
            here, there = cpulist.format(vm.home.nodes), cpulist.format(placement.nodes)
            raise UserError(f"{way.name} would move the memory of VM {vm.vmid} from node {here} to {there}",
                            hint="--move-memory allows that")  # fmt: skip
    cpus = (placement or vm.home).cpus
    if way.kind is Kind.STOCK:
        cpus = node.topology.online
    room: tuple[int, ...] = ()
    if placement is not None and placement.vm_class is VmClass.DEDICATED and not own:
        held = ledger.holdings(but=vm.vmid)
        room = tuple(sorted(h.vmid for h in held if h.vm_class is VmClass.SHARED and h.cpus & placement.cpus))
    overlay = ways.overlay(vm.policy, policy)
    return Planned(way, overlay, placement, cpus, room, ways.settings_of(way, vm.policy, exclusive=own))


def _placement(
    node: Node, ledger: Ledger, vm: Subject, way: Way, policy: Policy, *, move_memory: bool
) -> Placement | None:
    """Where the VM belongs in this way; None for where it is."""
    home, count = vm.home, len(vm.home.vcpus)
    own = home.vm_class in EXCLUSIVE
    if way.kind is Kind.HOME:
        if way.cpus is not None:
            nodes_of = machine_of(node.topology).memory_of(way.cpus) or home.nodes
            return replace(home, vcpus=(way.cpus,) * count, emulator=way.cpus, nodes=nodes_of)
        return replace(home, vcpus=(home.cpus,) * count) if own else None
    if way.kind is not Kind.DEDICATED or home.vm_class is VmClass.DEDICATED:
        if way.cpus is not None:
            raise UserError(f"{way.name}: VM {vm.vmid} has CPUs of its own already")
        return None
    if home.vm_class is VmClass.PINNED:
        raise UserError(f"{way.name}: the `affinity` of VM {vm.vmid} pins it already")
    said: dict[str, Any] = {"wish": Wish.DEDICATED}
    if way.cpus is not None:
        said["cpus"] = cpulist.format(way.cpus)
    if not move_memory and not policy.nodes:
        said["nodes"] = cpulist.format(home.nodes)
    vms = {**node.settings.vms, vm.vmid: {**node.settings.vms.get(vm.vmid, {}), **said}}
    elsewhere = Node(node.root, replace(node.settings, vms=vms), node.topology)
    outlook = planning.outlook(elsewhere, vm.vmid)
    if outlook.claim is None:
        raise UserError(f"{way.name} cannot be for VM {vm.vmid}: {outlook.refused}")
    return outlook.claim.placement


def _check(node: Node, ledger: Ledger, vm: Subject, placement: Placement, way: Way) -> None:
    cpus = placement.cpus
    if gone := cpus - node.topology.online:
        raise UserError(f"{way.name}: CPU {cpulist.format(gone)} is not online")
    if theirs := cpus & trial.taken(ledger, placement):
        raise UserError(f"{way.name}: another VM has CPU {cpulist.format(theirs)} to itself")
    fence = fences.of_vm(node, ledger, placement.vmid, vm.process)
    if fence is not None and (outside := cpus - fence.cpus):
        raise UserError(f"{way.name}: {fence.name} leaves out CPU {cpulist.format(outside)}")


def look(root: Root, vmid: int) -> tuple[Node, Subject]:
    node = nodes.open_node(root)
    return node, subject(node, vmid)
