"""What all nodes and VMs of the cluster have, as one table. Pure, but for the configurations of the VMs."""

from pxsched.cluster import fit
from pxsched.cluster.members import Member
from pxsched.cluster.paper import Paper, least, owns
from pxsched.cluster.view import View, Vm
from pxsched.cluster.wrongs import CROWDED
from pxsched.placement import defrag
from pxsched.placement.defrag import Span
from pxsched.placement.machine import bits, mask_of
from pxsched.placement.request import Holding
from pxsched.value import Value


class Group(Value):
    """An L3 group, or a node's CPUs without one. owned: CPUs that VMs have to themselves. load: what is
    wanted of the group, in CPUs.
    """

    node: int
    cpus: frozenset[int]
    owned: int
    load: float


class NodeRow(Value):
    """problem: why nothing is known. free_mib: by NUMA node."""

    name: str
    online: bool | None
    age_s: float
    problem: str
    groups: tuple[Group, ...] = ()
    free_mib: tuple[tuple[int, int], ...] = ()
    version: str = ""

    @property
    def cpus(self) -> int:
        return sum(len(group.cpus) for group in self.groups)


class VmRow(Value):
    """running: None when unknown. held: None for a VM without a place. crossing: it lies wider than an empty
    machine would have to put it. contention: what is wanted of its CPUs, in CPUs for each.
    """

    vmid: int
    name: str
    node: str
    running: bool | None
    enabled: bool
    held: Holding | None = None
    span: Span | None = None
    crossing: bool = False
    contention: float = 0.0

    @property
    def crowded(self) -> bool:
        return self.contention > CROWDED


class Status(Value):
    nodes: tuple[NodeRow, ...]
    vms: tuple[VmRow, ...]


def of(view: View) -> Status:
    """Raises UserError when /etc/pve cannot be read."""
    sheets = {name: view.paper(name) for name, member in view.members.items() if member.said is not None}
    nodes = tuple(_node(member, sheets.get(name)) for name, member in view.members.items())
    found = (view.find(vmid) for vmid in sorted(view.places))
    vms = tuple(_vm(view, vm, sheets.get(vm.node)) for vm in found if vm is not None)
    return Status(nodes, vms)


def _node(member: Member, sheet: Paper | None) -> NodeRow:
    problem = fit.unusable(member)
    if sheet is None or member.said is None:
        return NodeRow(member.name, member.online, member.age_s, problem)
    return NodeRow(
        member.name,
        member.online,
        member.age_s,
        problem,
        tuple(_groups(sheet)),
        tuple(sheet.host.free_mib.items()),
        member.said.version,
    )


def _groups(sheet: Paper) -> list[Group]:
    owned = mask_of(cpu for held in sheet.holdings if owns(held) for cpu in held.cpus)
    load = loads(sheet)
    found = []
    for node, cells in sheet.machine.cells.items():
        for cell in cells:
            cpus = frozenset(bits(cell.mask))
            wanted = sum(load.get(cpu, 0.0) for cpu in cpus)
            found.append(Group(node, cpus, (owned & cell.mask).bit_count(), wanted))
    return found


def loads(sheet: Paper) -> dict[int, float]:
    """What is wanted of each CPU, as far as it was measured: VMs, containers, and work of nobody's."""
    found = dict(sheet.host.busy)
    everybody = [(held.cpus, held.load) for held in sheet.holdings]
    everybody += [(one.cpus, one.load) for one in sheet.strangers.values()]
    for cpus, load in everybody:
        for cpu in cpus if load else ():
            found[cpu] = found.get(cpu, 0.0) + (load or 0.0) / len(cpus)
    return found


def _vm(view: View, vm: Vm, sheet: Paper | None) -> VmRow:
    vmid, machine = vm.vmid, vm.machine
    row = VmRow(vmid, machine.name, vm.node, view.runs(vm), machine.opted_in)
    tenant = sheet.tenants.get(vmid) if sheet else None
    if sheet is None or tenant is None:
        return row
    held = tenant.held
    span = defrag.span_of(sheet.machine, held)
    return VmRow(
        vmid, machine.name, vm.node, True, machine.opted_in, held, span,
        owns(held) and span.rank > least(sheet, len(held.vcpus)).rank,
        sheet.contention(held, held.load),
    )  # fmt: skip
