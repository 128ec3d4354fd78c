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
from pxsched.cluster.ha import Ha, Rule, sid_of
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
MIGRATED = "ha-group-"
_OURS = re.compile(rf"(group |{MIGRATED})?{PREFIX}vm-([1-9]\d{{2,8}})", re.ASCII)
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
    what is to be said of it. rule: its name, where there is one. bound: whether that names the guest; a group
    may be left that no longer does.
    """

    vmid: int
    act: Act
    nodes: tuple[str, ...] = ()
    comment: str = COMMENT
    why: str = ""
    rule: str = ""
    bound: bool = True

    @property
    def name(self) -> str:
        return self.rule or f"{PREFIX}vm-{self.vmid}"


def ours_for(rule: Rule) -> int:
    """The VMID of the guest that a rule of ours is for; 0 of a rule that is not ours, or not any more: one
    that names others, too. From our groups Proxmox VE 9 makes rules with a name and a comment of its own.
    """
    match = _OURS.fullmatch(rule.name)
    if match is None or not rule.nodes or not (match[1] == MIGRATED or rule.comment.startswith("pxsched:")):
        return 0
    vmid = int(match[2])
    return vmid if rule.sids <= {sid_of(vmid)} else 0


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
    theirs = [rule for rule in rules if ours_for(rule) != vmid]
    ours = next((rule for rule in rules if ours_for(rule) == vmid), None)
    if theirs:
        why = f"it is in your rule {theirs[0].name}{', which is disabled' * theirs[0].disabled}"
        return Step(vmid, Act.REMOVE if ours else Act.NONE, why=why, rule=_name(ours))
    nodes = tuple(fits)
    if ours is None:
        if set(fits) >= set(usable):
            return Step(vmid, Act.NONE, why="it fits on every node")
        left = next((rule for rule in ha.rules if ours_for(rule) == vmid), None)
        return Step(vmid, Act.ADD, nodes, why=f"it {kind}", rule=_name(left), bound=False)
    if ours.disabled:
        return Step(vmid, Act.NONE, why=f"you disabled {ours.name}")
    return _kept(vmid, nodes, ours, now_s)


def _kept(vmid: int, nodes: tuple[str, ...], ours: Rule, now_s: float) -> Step:
    """A rule of ours stays, until others have been the right nodes for long."""
    rule = _name(ours)
    before = tuple(sorted(ours.nodes))
    noted = _NOTED.search(ours.comment)
    if nodes == before:
        return Step(vmid, Act.FORGET if noted else Act.KEEP, before, why="as it should be", rule=rule)
    if noted is None or noted[2] != ",".join(nodes):
        comment = f"{COMMENT} [since {int(now_s)}: {','.join(nodes)}]"
        return Step(
            vmid, Act.NOTE, before, comment, f"now it fits on {', '.join(nodes)}; that has to last", rule
        )
    if now_s - int(noted[1]) < FOR_GOOD_S:
        why = f"it fits on {', '.join(nodes)}, not for long yet"
        return Step(vmid, Act.KEEP, before, ours.comment, why, rule)
    return Step(vmid, Act.CHANGE, nodes, why=f"for hours it has fitted on {', '.join(nodes)}", rule=rule)


def _name(rule: Rule | None) -> str:
    """As Proxmox's API has it."""
    return "" if rule is None else rule.name.removeprefix("group ")


def undoing(ha: Ha) -> list[Step]:
    """All rules of ours go, disabled ones too."""
    found = [(vmid, rule) for rule in ha.rules if (vmid := ours_for(rule))]
    return [
        Step(vmid, Act.REMOVE, why="undone", rule=_name(rule), bound=bool(rule.sids))
        for vmid, rule in sorted(found, key=lambda one: (one[0], one[1].name))
    ]


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
        if step.name.startswith(MIGRATED):  # what Proxmox made of our group's `nofailback`
            api.call(Method.SET, f"cluster/ha/resources/{sid}", {"delete": "failback"})
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
        if step.rule:
            api.call(Method.SET, path, params)
        else:
            api.call(Method.CREATE, "cluster/ha/groups", {"group": step.name, "nofailback": "1", **params})
        api.call(Method.SET, resource, {"group": step.name})
    elif step.act is Act.REMOVE:
        if step.bound:
            api.call(Method.SET, resource, {"delete": "group"})
        api.call(Method.DELETE, path)
    else:
        api.call(Method.SET, path, params)


def now_s() -> float:
    return time.time()
