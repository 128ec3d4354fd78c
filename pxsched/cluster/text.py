"""The cluster's status and answers as lines for a terminal, and as JSON. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pxsched.cluster.fit import Fit
from pxsched.cluster.planner import Plan
from pxsched.cluster.status import NodeRow, Status, VmRow
from pxsched.host import cpulist
from pxsched.output import Tone
from pxsched.placement.request import Placement

Line = tuple[str, Tone]
LEAST_WIDTH = 80
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def of_status(found: Status, width: int) -> Iterator[Line]:
    """Nodes, then VMs by node."""
    width = max(LEAST_WIDTH, width)
    yield f"{'NODE':14} {'STATE':10} {'CPUS':>5} {'OWNED':>5} {'LOAD':>6} {'FREE':>9}  L3 GROUPS", Tone.HEAD
    for node in found.nodes:
        yield from _node(node, width)
    yield "", Tone.PLAIN
    room = width - 71
    head = f"{'VMID':>9} {'NODE':14} {'CLASS':11} {'WANTED':>6} {'SPANS':9} {'CPUS':{room}} NAME"
    yield head, Tone.HEAD
    order = {node.name: number for number, node in enumerate(found.nodes)}
    for vm in sorted(found.vms, key=lambda vm: (order.get(vm.node, len(order)), vm.vmid)):
        yield _vm(vm, room)


def _node(node: NodeRow, width: int) -> Iterator[Line]:
    state = {True: "online", False: "OFFLINE", None: "unknown"}[node.online]
    if not node.groups:
        yield f"{node.name[:14]:14} {state:10} {node.problem}", Tone.BAD
        return
    owned = sum(group.owned for group in node.groups)
    load = sum(group.load for group in node.groups)
    free = f"{sum(mib for _node, mib in node.free_mib) / 1024:.1f} GiB" if node.free_mib else "-"
    line = f"{node.name[:14]:14} {state:10} {node.cpus:>5} {owned:>5} {load:>6.1f} {free:>9}  "
    bars = "".join(_EIGHTHS[min(8, round(8 * group.load / len(group.cpus)))] for group in node.groups)
    yield line + f"[{bars[: width - len(line) - 2]}]", Tone.PLAIN
    if node.problem:
        yield f"{'':14} {node.problem}", Tone.WARN


def _vm(vm: VmRow, room: int) -> Line:
    if vm.held is None or vm.span is None:
        state = {True: "running", False: "stopped", None: "?"}[vm.running]
        what = state if vm.enabled else f"{state}, not opted in"
        return f"{vm.vmid:>9} {vm.node[:14]:14} {what:{room + 30}} {vm.name[:16]}", Tone.DIM
    where = cpulist.of_vcpus(vm.held.vcpus)
    where = where if len(where) <= room else f"{where[: room - 3]}..."
    spans = f"{vm.span.nodes}N {vm.span.groups}L3{'!' * vm.crossing}"
    tone = Tone.WARN if vm.crossing or vm.crowded else Tone.PLAIN
    return (
        f"{vm.vmid:>9} {vm.node[:14]:14} {vm.held.vm_class:11} {vm.contention:>6.2f} {spans:9}"
        f" {where:{room}} {vm.name[:16]}",
        tone,
    )


def status_document(found: Status) -> dict[str, Any]:
    return {
        "nodes": [
            {
                "node": node.name,
                "online": node.online,
                "age_s": round(node.age_s, 1),
                "problem": node.problem or None,
                "version": node.version or None,
                "free_mib": {str(number): mib for number, mib in node.free_mib},
                "l3": [
                    {
                        "node": group.node,
                        "cpus": cpulist.format(group.cpus),
                        "owned": group.owned,
                        "load": round(group.load, 2),
                    }
                    for group in node.groups
                ],
            }
            for node in found.nodes
        ],
        "vms": [
            {
                "vmid": vm.vmid,
                "name": vm.name,
                "node": vm.node,
                "running": vm.running,
                "enabled": vm.enabled,
                "class": vm.held.vm_class.value if vm.held else None,
                "vcpus": [cpulist.format(cpus) for cpus in vm.held.vcpus] if vm.held else None,
                "spans": _span(vm),
                "crossing": vm.crossing,
                "contention": round(vm.contention, 3) if vm.held else None,
            }
            for vm in found.vms
        ],
    }


def _span(found: VmRow | Fit) -> dict[str, int] | None:
    return {"nodes": found.span.nodes, "l3": found.span.groups} if found.span else None


def of_fits(what: str, fits: Sequence[Fit]) -> Iterator[Line]:
    """Where it fits, best first, and why it does not elsewhere."""
    good = [fit for fit in fits if fit.fits]
    count = f"{len(good)} of {len(fits)} nodes"
    yield (f"{what} fits on {count}" if good else f"{what} fits on none of {len(fits)} nodes"), Tone.HEAD
    for fit in fits:
        yield from _fit(fit)


def _fit(fit: Fit) -> Iterator[Line]:
    if fit.against:
        yield f"{fit.node}: no: {'; '.join(fit.against)}", Tone.DIM
        return
    words = ["runs there" if fit.here else "yes"]
    if fit.offline:
        words.append(f"but only stopped: {fit.offline}")
    if fit.span:
        nodes, groups = fit.span.nodes, fit.span.groups
        words.append(f"{nodes} NUMA node{'s' * (nodes > 1)}, {groups} L3 group{'s' * (groups > 1)}")
        words.append(f"{fit.contention:.2f} wanted per CPU")
    if fit.free_mib is not None:
        words.append(f"{fit.free_mib / 1024:.1f} GiB left")
    yield f"{fit.node}: {', '.join(words)}", Tone.WARN if fit.offline else Tone.PLAIN
    for line in (*(fit.why if not fit.here else ()), *fit.costs):
        yield f"  {line}", Tone.DIM


def fits_document(fits: Sequence[Fit]) -> list[dict[str, Any]]:
    return [
        {
            "node": fit.node,
            "fits": fit.fits,
            "here": fit.here,
            "against": list(fit.against),
            "class": fit.place.vm_class.value if fit.place else None,
            "vcpus": [cpulist.format(cpus) for cpus in fit.place.vcpus] if fit.place else None,
            "nodes": cpulist.format(fit.place.nodes) if isinstance(fit.place, Placement) else None,
            "spans": _span(fit),
            "contention": round(fit.contention, 3) if fit.place else None,
            "free_mib_after": fit.free_mib,
            "only_stopped": fit.offline or None,
            "copy_mib": fit.copy_mib,
            "why": list(fit.why),
            "costs": list(fit.costs),
        }
        for fit in fits
    ]


def of_plan(plan: Plan, unusable: Mapping[str, str], drain: str) -> Iterator[Line]:
    """The moves in order, and what stays as it is."""
    for name, why in unusable.items():
        yield f"{name} is left out: {why}", Tone.WARN
    if not plan.moves and not plan.stays:
        yield (f"no VM is on {drain}" if drain else "no move would make anything better"), Tone.PLAIN
    for number, move in enumerate(plan.moves, 1):
        how = "HA moves it" if move.ha else "live" if move.to else "stopped"
        how += f", {move.cost_mib / 1024:.1f} GiB to copy"
        yield f"{number}. VM {move.vmid}: {move.source} -> {move.target} ({how})", Tone.HEAD
        yield f"   why: {move.why}", Tone.PLAIN
        for line in move.to.why[:2] if move.to else ():
            yield f"   there: {line}", Tone.DIM
    if plan.more:
        yield "there may be more to do after these: --most sets the bound", Tone.PLAIN
    for stay in plan.stays:
        yield f"VM {stay.vmid} stays on {stay.node}: {stay.why}", Tone.WARN


def plan_document(plan: Plan, unusable: Mapping[str, str]) -> dict[str, Any]:
    return {
        "moves": [
            {
                "vmid": move.vmid,
                "from": move.source,
                "to": move.target,
                "reason": move.reason.value,
                "why": move.why,
                "ha": move.ha,
                "copy_mib": move.cost_mib,
                "stopped": move.to is None,
                "vcpus": [cpulist.format(cpus) for cpus in move.to.vcpus] if move.to else None,
                "nodes": cpulist.format(move.to.nodes) if move.to else None,
                "there": list(move.to.why) if move.to else [],
            }
            for move in plan.moves
        ],
        "stays": [{"vmid": stay.vmid, "node": stay.node, "why": stay.why} for stay in plan.stays],
        "more": plan.more,
        "left_out": dict(unusable),
    }
