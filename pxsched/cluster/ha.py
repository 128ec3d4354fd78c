"""What the HA manager makes of its guests: which it manages, and which rules move or keep them.

Rules: pve-ha-manager; rules.cfg of Proxmox VE 9, groups.cfg of 8. A node-affinity rule is an order: the
manager moves a running guest into the highest class of nodes at once, unless the resource has failback off.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pxsched import stored
from pxsched.proxmox import sections
from pxsched.root import Root
from pxsched.stored import Damaged
from pxsched.value import NOTHING, Value

DIR = "etc/pve/ha"
DEFAULT_PRIORITY = 0
ELSEWHERE = -1  # the priority of nodes that a plain rule does not name


class Rule(NamedTuple):
    """A node-affinity rule (or a group), or a resource-affinity rule. nodes: priorities by name, empty for
    the latter. apart: a negative one. failback: a group's; rules leave it to the resource. disabled: HA
    disregards it.
    """

    name: str
    sids: frozenset[str]
    nodes: Mapping[str, int] = NOTHING
    strict: bool = False
    apart: bool = False
    failback: bool = True
    comment: str = ""
    disabled: bool = False


class Ha(Value):
    """resources: options by sid, such as `vm:100`; those that HA ignores are left out. away: nodes that are
    in maintenance, or asked to be.
    """

    resources: Mapping[str, Mapping[str, str]] = NOTHING
    rules: tuple[Rule, ...] = ()
    away: frozenset[str] = frozenset()

    def manages(self, vmid: int) -> bool:
        return sid_of(vmid) in self.resources

    def rules_of(self, vmid: int) -> list[Rule]:
        """Those that name it, disabled ones too; none where HA does not manage it."""
        return [rule for rule in self.rules if sid_of(vmid) in rule.sids] if self.manages(vmid) else []

    def against(self, vmid: int, target: str, online: Iterable[str], places: Mapping[int, str]) -> str:
        """Why HA would not leave it on this node; empty where it would. places: the node of each VM."""
        for rule in self.rules_of(vmid):
            if rule.disabled:
                continue
            if rule.nodes:
                back = rule.failback and self.resources[sid_of(vmid)].get("failback", "1") != "0"
                best = top(rule, online) if back else allowed(rule, online)
                if target not in best:
                    return f"HA rule {rule.name} wants it on {' or '.join(sorted(best)) or 'other nodes'}"
                continue
            others = {sid for sid in rule.sids if sid != sid_of(vmid) and sid in self.resources}
            there = {sid for sid in others if places.get(vmid_of(sid)) == target}
            if rule.apart and there:
                return f"HA rule {rule.name} keeps it apart from {', '.join(sorted(there))}"
            if not rule.apart and others - there:
                return f"HA rule {rule.name} keeps it with {', '.join(sorted(others - there))}"
        return ""


def sid_of(vmid: int) -> str:
    return f"vm:{vmid}"


def vmid_of(sid: str) -> int:
    number = sid.partition(":")[2]
    return int(number) if number.isdecimal() and len(number) <= 9 else 0


def allowed(rule: Rule, online: Iterable[str]) -> frozenset[str]:
    """The nodes where the rule suffers the guest."""
    return frozenset(name for name in online if name in rule.nodes or not rule.strict)


def top(rule: Rule, online: Iterable[str]) -> frozenset[str]:
    """The nodes of the highest class that is online."""
    ranks = {name: rule.nodes.get(name, ELSEWHERE) for name in allowed(rule, online)}
    best = max(ranks.values(), default=None)
    return frozenset(name for name, rank in ranks.items() if rank == best)


def read(root: Root) -> Ha:
    """What the files say; nothing where there are none."""
    resources = {
        f"{section.kind}:{section.name}": section.options
        for section in sections.parse(root.read(f"{DIR}/resources.cfg") or "")
        if section.options.get("state", "started") != "ignored"
    }
    rules = [
        rule
        for section in sections.parse(root.read(f"{DIR}/rules.cfg") or "")
        if (rule := _rule(section)) is not None
    ]
    rules += _groups(sections.parse(root.read(f"{DIR}/groups.cfg") or ""), resources)
    return Ha(resources, tuple(rules), _away(root))


def _rule(section: sections.Section) -> Rule | None:
    """None for one of another kind. A hand-written `disable 0` counts as disabled, too."""
    options = section.options
    disabled = "disable" in options
    sids = frozenset(sid.strip() for sid in options.get("resources", "").split(",") if sid.strip())
    if section.kind == "node-affinity":
        return Rule(
            section.name,
            sids,
            _priorities(options.get("nodes", "")),
            options.get("strict") == "1",
            comment=options.get("comment", ""),
            disabled=disabled,
        )
    if section.kind == "resource-affinity":
        return Rule(section.name, sids, apart=options.get("affinity") == "negative", disabled=disabled)
    return None


def _groups(found: Iterable[sections.Section], resources: Mapping[str, Mapping[str, str]]) -> list[Rule]:
    return [
        Rule(
            f"group {section.name}",
            frozenset(sid for sid, options in resources.items() if options.get("group") == section.name),
            _priorities(section.options.get("nodes", "")),
            section.options.get("restricted") == "1",
            failback=section.options.get("nofailback") != "1",
            comment=section.options.get("comment", ""),
        )
        for section in found
        if section.kind == "group"
    ]


def _priorities(text: str) -> dict[str, int]:
    """`n1:2,n2`"""
    found = {}
    for part in text.split(","):
        name, _, priority = part.strip().partition(":")
        if name:
            found[name] = int(priority) if priority.isdecimal() and len(priority) < 10 else DEFAULT_PRIORITY
    return found


def _away(root: Root) -> frozenset[str]:
    """From the manager's own file, which lags by its round of some ten seconds."""
    data = root.read_bytes(f"{DIR}/manager_status")
    try:
        said = stored.table(stored.parse(data)) if data else {}
        status = stored.table(said.get("node_status") or {})
        wishes = stored.table(said.get("node_request") or {})
    except Damaged:
        return frozenset()
    asked = {name for name, wish in wishes.items() if isinstance(wish, dict) and wish.get("maintenance")}
    return frozenset(asked | {name for name, state in status.items() if state == "maintenance"})
