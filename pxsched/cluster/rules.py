"""HA rules that let HA's own decisions know where a guest fits: for guests with CPUs of their own, huge pages
or passed-through devices, which HA would put anywhere.

A node-affinity rule is an order: HA moves a running guest into it. So ours always has the node it is on, all
nodes alike, and is a plain one: where none of them is left, HA may go elsewhere. A guest can be in one such
rule only, so a guest of a rule of yours gets none; nor does one whose rules with other guests it could break.
Rules: pve-ha-manager; HA groups serve on Proxmox VE 8.
"""

import re
import time
from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum

from pxsched.cluster import fit
from pxsched.cluster.ha import Ha, Rule
from pxsched.cluster.known import Known
from pxsched.cluster.view import Vm
from pxsched.errors import UserError
from pxsched.placement.request import EXCLUSIVE
from pxsched.proxmox.api import Api, Method
from pxsched.value import Value

PREFIX = "pxsched-"
COMMENT = "pxsched: where it fits; `pxsched cluster rules --undo` removes this"
# Other nodes must have been the right ones for so long before a rule of ours is changed.
FOR_GOOD_S = 6 * 3600
_NOTED = re.compile(r" \[since (\d{1,12}): ([A-Za-z0-9,-]*)\]$", re.ASCII)


class Act(StrEnum):
    ADD = "add"
    CHANGE = "change"
    NOTE = "note"
    FORGET = "forget"
    REMOVE = "remove"
    KEEP = "keep"
    NONE = "none"


class Step(Value):
    """What happens to one guest's rule. nodes: those it names from now on. comment: as it is written. why:
    what is to be said of it.
    """

    vmid: int
    act: Act
    nodes: tuple[str, ...] = ()
    comment: str = COMMENT
    why: str = ""

    @property
    def name(self) -> str:
        return f"{PREFIX}vm-{self.vmid}"


def is_ours(rule: Rule) -> bool:
    name = rule.name.removeprefix("group ")
    return name.startswith(PREFIX) and rule.comment.startswith("pxsched:")


def wanted(known: Known, now_s: float) -> list[Step]:
    """A step for each HA guest that cares where it runs. Raises UserError when /etc/pve cannot be read."""
    steps = []
    for vmid, vm in known.vms.items():
        if known.ha.manages(vmid) and (kind := _cares(known, vm)):
            fits = [one.node for one in fit.of_vm(known.view, vmid) if one.fits or one.node == vm.node]
            steps.append(decide(vm, kind, sorted(fits), known.usable, known.ha, now_s))
    return steps


def _cares(known: Known, vm: Vm) -> str:
    """Why it matters where it runs; empty where it does not."""
    if vm.machine.hostpci:
        return "has passed-through devices"
    if vm.machine.hugepage_mib is not None:
        return "has huge pages"
    vm_class = known.request(vm.vmid, vm.node).vm_class
    return f"is {vm_class.value}" if vm_class in EXCLUSIVE else ""


def decide(vm: Vm, kind: str, fits: Sequence[str], usable: Collection[str], ha: Ha, now_s: float) -> Step:
    """fits: the nodes where the guest fits, its own among them. usable: all nodes of which this is known."""
    vmid = vm.vmid
    rules = ha.rules_of(vmid)
    theirs = [rule for rule in rules if not is_ours(rule)]
    ours = next((rule for rule in rules if is_ours(rule)), None)
    if theirs:
        why = f"it is in your rule {theirs[0].name}"
        return Step(vmid, Act.REMOVE if ours else Act.NONE, why=why)
    nodes = tuple(fits)
    if ours is None:
        if set(fits) >= set(usable):
            return Step(vmid, Act.NONE, why="it fits on every node")
        return Step(vmid, Act.ADD, nodes, why=f"it {kind}")
    before = tuple(sorted(ours.nodes))
    noted = _NOTED.search(ours.comment)
    if nodes == before:
        return Step(vmid, Act.FORGET if noted else Act.KEEP, before, why="as it should be")
    if noted is None or noted[2] != ",".join(nodes):
        comment = f"{COMMENT} [since {int(now_s)}: {','.join(nodes)}]"
        return Step(vmid, Act.NOTE, before, comment, f"now it fits on {', '.join(nodes)}; that has to last")
    if now_s - int(noted[1]) < FOR_GOOD_S:
        return Step(vmid, Act.KEEP, before, ours.comment, f"it fits on {', '.join(nodes)}, not for long yet")
    return Step(vmid, Act.CHANGE, nodes, why=f"for hours it has fitted on {', '.join(nodes)}")


def undoing(ha: Ha) -> list[Step]:
    """All rules of ours go."""
    vmids = {int(sid.partition(":")[2]) for rule in ha.rules if is_ours(rule) for sid in rule.sids}
    return [Step(vmid, Act.REMOVE, why="undone") for vmid in sorted(vmids)]


def describe(steps: Sequence[Step], *, done: bool) -> Iterator[str]:
    """What is done, or would be, and what it means."""
    if not steps:
        yield "no HA guest cares where it runs, or has a rule of ours"
    for step in steps:
        names = ", ".join(step.nodes)
        would = "" if done else "would be "
        text = {
            Act.ADD: f"rule {step.name} {would}written: HA prefers {names}, and does not move it now",
            Act.CHANGE: f"rule {step.name} {would}changed to {names}",
            Act.NOTE: f"rule {step.name} stays at {names}",
            Act.KEEP: f"rule {step.name} stays at {names}",
            Act.FORGET: f"rule {step.name} stays at {names}",
            Act.REMOVE: f"rule {step.name} {would}removed",
            Act.NONE: "no rule",
        }[step.act]
        yield f"VM {step.vmid}: {text} ({step.why})"
    if any(step.act is Act.ADD for step in steps):
        yield "while a guest has such a rule, Proxmox takes no other node-affinity rule for it"


# The edge: Proxmox's API.


def carry_out(api: Api, step: Step) -> None:
    """Raises ApiError."""
    if step.act in (Act.KEEP, Act.NONE):
        return
    if _groups(api):
        _by_group(api, step)
        return
    path, nodes, sid = f"cluster/ha/rules/{step.name}", ",".join(step.nodes), f"vm:{step.vmid}"
    kind = {"type": "node-affinity"}
    if step.act is Act.ADD:
        params = {"rule": step.name, "resources": sid, "nodes": nodes, "comment": step.comment}
        api.call(Method.CREATE, "cluster/ha/rules", kind | params)
    elif step.act is Act.REMOVE:
        api.call(Method.DELETE, path)
    else:
        api.call(Method.SET, path, kind | {"nodes": nodes, "comment": step.comment})


def _groups(api: Api) -> bool:
    """Whether this is Proxmox VE 8, which has groups and no rules. Raises UserError when it does not say."""
    answer = api.call(Method.GET, "version")
    major = re.match(r"(\d+)\.", str(answer.get("version", ""))) if isinstance(answer, dict) else None
    if major is None:
        raise UserError("Proxmox does not say its version")
    return int(major[1]) < 9


def _by_group(api: Api, step: Step) -> None:
    """nofailback: a group, too, would move the guest."""
    path, resource = f"cluster/ha/groups/{step.name}", f"cluster/ha/resources/vm:{step.vmid}"
    params = {"nodes": ",".join(step.nodes), "comment": step.comment}
    if step.act is Act.ADD:
        api.call(Method.CREATE, "cluster/ha/groups", {"group": step.name, "nofailback": "1", **params})
        api.call(Method.SET, resource, {"group": step.name})
    elif step.act is Act.REMOVE:
        api.call(Method.SET, resource, {"delete": "group"})
        api.call(Method.DELETE, path)
    else:
        api.call(Method.SET, path, params)


def now_s() -> float:
    return time.time()
