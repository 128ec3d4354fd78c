"""On which nodes a VM fits now, how well, and what stands in the way elsewhere.

Each node is asked what its own `plan` would say, by the same placement, from what it published.
"""

from collections.abc import Collection, Iterable

from pxsched.cluster import hindrances
from pxsched.cluster.hindrances import Verdict
from pxsched.cluster.members import Member
from pxsched.cluster.paper import Paper, Tenant, owns
from pxsched.cluster.view import View, Vm
from pxsched.errors import UserError, nearest
from pxsched.placement import defrag
from pxsched.placement.defrag import Span
from pxsched.placement.request import Holding, Placement, Refused, Request
from pxsched.value import Value

NOWHERE = Verdict(())
# Where more than this is wanted of each CPU, a VM that shares them had better lie wider, or elsewhere: what a
# new one will use is only guessed, and queues form before all of a CPU is wanted.
BUSY = 0.6


class Fit(Value):
    """One node's answer. against: what stands in the way, nothing where it fits. place: where it would be.

    here: the VM runs there. offline: it can come only while it is stopped, for this reason. contention: what
    is wanted of its CPUs, in CPUs for each. free_mib: what the node has left with it, None when unknown.
    """

    node: str
    against: tuple[str, ...]
    place: Placement | Holding | None = None
    span: Span | None = None
    contention: float = 0.0
    free_mib: int | None = None
    why: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()
    copy_mib: int = 0
    offline: str = ""
    here: bool = False

    @property
    def fits(self) -> bool:
        return not self.against

    @property
    def rank(self) -> tuple[object, ...]:
        """Smaller is better: nodes without anything against them, with CPUs to spare, fewest crossings, least
        contention.
        """
        span = self.span or Span(0, 0)
        warned = sum(line.startswith("warning:") for line in self.why)
        busy = self.place is not None and not owns(self.place) and self.contention > BUSY
        return (
            not self.fits, bool(self.offline), busy, span.rank, warned, round(self.contention, 2),
            not self.here, self.copy_mib > 0, -(self.free_mib or 0), self.node,
        )  # fmt: skip


def of_vm(view: View, vmid: int, names: Collection[str] = ()) -> list[Fit]:
    """The nodes for a VM of the cluster, best first. names: only these. Raises UserError."""
    vm = view.vm(vmid)
    runs = view.runs(vm)
    source = view.members[vm.node].said
    found = []
    for member in chosen(view, names):
        if member.name == vm.node and runs:
            found.append(_present(view, vm))
            continue
        verdict = NOWHERE
        if member.said is not None and member.name != vm.node:
            verdict = _with_ha(view, vm, member.name, hindrances.of_move(
                vm.options, source, member.said, view.surroundings, runs=runs is not False,
                snapshots=vm.snapshots, vmid=vmid,
            ))  # fmt: skip
        found.append(_on(view, member, view.request(vm, member.name), verdict))
    return sorted(found, key=lambda fit: fit.rank)


def _with_ha(view: View, vm: Vm, target: str, verdict: Verdict) -> Verdict:
    """HA lets the VM be moved anywhere, and moves it back where its rules want it."""
    back = view.ha.against(vm.vmid, target, view.online, view.places)
    return verdict._replace(costs=(*verdict.costs, f"{back}: it would not stay")) if back else verdict


def of_request(view: View, request: Request, names: Collection[str] = ()) -> list[Fit]:
    """The same for a VM that does not exist yet."""
    found = [_on(view, member, request, NOWHERE) for member in chosen(view, names)]
    return sorted(found, key=lambda fit: fit.rank)


def chosen(view: View, names: Collection[str]) -> Iterable[Member]:
    """Raises UserError for a node that is none."""
    for name in names:
        if name not in view.members:
            raise UserError(f"there is no node {name[:40]!r}{nearest(name, view.members)}")
    return [member for name, member in view.members.items() if not names or name in names]


def unusable(member: Member) -> str:
    """Why nothing can be said of a node; empty where it can."""
    if member.online is False:
        return "it is offline"
    if member.said is None:
        return member.problem
    if member.age_s < 0:
        return f"its clock is {-member.age_s / 60:.0f} minutes ahead of ours" * member.stale
    return f"what it published is {member.age_s / 60:.0f} minutes old: does its timer run?" * member.stale


def _on(view: View, member: Member, request: Request, verdict: Verdict) -> Fit:
    problem = unusable(member)
    if problem:
        return Fit(member.name, (problem,))
    assert member.said is not None
    # Where the VM was known to its node before, it is no neighbour of itself.
    sheet = view.paper(member.name)
    local = () if member.said.local is not None else ("its own settings are too long to be published",)
    try:
        placement = sheet.place(request)
    except Refused as refusal:
        return Fit(member.name, (*verdict.against, str(refusal)), costs=verdict.costs)
    return Fit(
        member.name,
        verdict.against,
        placement,
        defrag.span_of(sheet.machine, placement),
        sheet.contention(placement, request.load),
        _left(sheet, request),
        placement.why,
        (*verdict.costs, *local),
        verdict.copy_mib,
        verdict.offline,
    )


def _left(sheet: Paper, request: Request) -> int | None:
    free = sheet.host.free_mib
    return sum(free.values()) - request.memory_mib if free else None


def _present(view: View, vm: Vm) -> Fit:
    """Where it runs."""
    sheet = view.paper(vm.node)
    tenant: Tenant | None = sheet.tenants.get(vm.vmid)
    free = sum(sheet.host.free_mib.values()) if sheet.host.free_mib else None
    if tenant is None:
        why = ("it runs there, not opted in: where its threads run is the kernel's choice",)
        return Fit(vm.node, (), free_mib=free, why=why, here=True)
    held = tenant.held
    return Fit(
        vm.node,
        (),
        held,
        defrag.span_of(sheet.machine, held),
        sheet.contention(held, held.load),
        free,
        ("it runs there",),
        here=True,
    )
