"""The machine and its VMs as text for a terminal: who has what, and what is turned.

A core is a box with its CPUs; below each CPU stand the vCPUs it belongs to: `A0` is vCPU 0 of VM A alone,
`B` a VM whose vCPUs float there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import ascii_uppercase

from pxsched.host import cpulist
from pxsched.host.topology import Cpu, Topology
from pxsched.ledger.claim import Claim
from pxsched.ledger.journal import NODE
from pxsched.placement.request import Placement
from pxsched.value import Value

MOST_BOXES = 64
"""CPUs up to which each core gets a frame; larger machines are drawn in one line a row."""
MOST_APART = 4
"""vCPUs up to which each is named with its CPU."""
_MOST_MARKS = 3
_UNITS = ("KiB", "MiB", "GiB", "TiB")


def machine(topology: Topology, placements: Iterable[Placement] = (), *, width: int = 100) -> list[str]:
    """The machine as a picture, with the VMs that have a place on it."""
    placed = sorted(placements, key=lambda placement: placement.vmid)
    marks = _marks(placed)
    lines: list[str] = []
    shown: list[tuple[str, int]] = []
    framed = len(topology.cpus) <= MOST_BOXES
    for path, cores in _groups(topology):
        margin = "  " * _titles(topology, path, shown, lines)
        rows = _cores(cores, marks, width=width - len(margin), framed=framed)
        lines += [margin + row for row in rows]
    lines += _leftovers(topology)
    lines += [f"{_letter(number)} = {_who(placement)}" for number, placement in enumerate(placed)]
    return lines


def status(claims: Sequence[Claim], knobs: Mapping[int, Sequence[str]]) -> list[str]:
    """The VMs with a place, and every knob that is turned. knobs: a line for each, by owner."""
    lines: list[str] = []
    for claim in claims:
        process = f", process {claim.process.pid}" if claim.process else ""
        lines.append(f"VM {claim.vmid}: {claim.placement.vm_class}, {claim.state}{process}")
        lines += [f"  {line}" for line in placement(claim.placement)]
        lines += _knobs(knobs.get(claim.vmid, ()))
    others = knobs.keys() - {claim.vmid for claim in claims}
    for owner in sorted(others):
        lines.append("This node" if owner == NODE else f"VM {owner}, which is not placed")
        lines += _knobs(knobs[owner])
    return lines or ["No VM has a place, and no knob is turned."]


def placement(placed: Placement) -> list[str]:
    """Where a VM belongs, and why."""
    lines = [f"vCPUs     {vcpus(placed)}", f"emulator  CPUs {cpulist.format(placed.emulator)}"]
    if placed.nodes:
        lines.append(f"memory    node {cpulist.format(placed.nodes)}")
    labels = ["why       ", *[" " * 10] * len(placed.why)]
    return lines + [label + reason for label, reason in zip(labels, placed.why, strict=False)]


def vcpus(placed: Placement) -> str:
    """`0 on CPU 3, 1 on CPU 2`, or `0-15 on CPUs 3,2,8-21, in this order`, or `0-3 float on CPUs 0-7`."""
    if all(len(cpus) == 1 for cpus in placed.vcpus):
        if len(placed.vcpus) > MOST_APART:
            listed = cpulist.format_ordered([min(cpus) for cpus in placed.vcpus])
            return f"0-{len(placed.vcpus) - 1} on CPUs {listed}, in this order"
        return ", ".join(f"{vcpu} on CPU {min(cpus)}" for vcpu, cpus in enumerate(placed.vcpus))
    parts = []
    for cpus in dict.fromkeys(placed.vcpus):
        members = [vcpu for vcpu, own in enumerate(placed.vcpus) if own == cpus]
        verb = "floats" if len(members) == 1 else "float"
        parts.append(f"{cpulist.format(members)} {verb} on CPUs {cpulist.format(cpus)}")
    return ", ".join(parts)


def size(size_bytes: int) -> str:
    """512 KiB, 1.6 GiB"""
    amount, unit = size_bytes / 1024, 0
    while amount >= 1024 and unit + 1 < len(_UNITS):
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"


def _knobs(knobs: Sequence[str]) -> Iterator[str]:
    label = "  knobs     "
    for knob in knobs:
        yield label + knob
        label = " " * len(label)


class _Path(Value):
    """Where a core is: package, node and L3, each None where the kernel says nothing."""

    package: int | None
    node: int | None
    l3: int | None


def _groups(topology: Topology) -> list[tuple[_Path, list[list[Cpu]]]]:
    """The online cores by place, in the machine's order."""
    cores: dict[int, list[Cpu]] = {}
    for cpu in topology.cpus.values():
        if cpu.online:
            cores.setdefault(min(cpu.siblings or {cpu.id}), []).append(cpu)
    groups: dict[_Path, list[list[Cpu]]] = {}
    for _, core in sorted(cores.items()):
        first = core[0]
        groups.setdefault(_Path(first.package, first.node, first.l3), []).append(core)
    return sorted(groups.items(), key=lambda item: _order(item[0]))


def _order(path: _Path) -> tuple[int, int, int]:
    package, node, l3 = (-1 if part is None else part for part in (path.package, path.node, path.l3))
    return package, node, l3


def _titles(topology: Topology, path: _Path, shown: list[tuple[str, int]], lines: list[str]) -> int:
    """The headings that are new on the way to this group; how deep the group is."""
    parts = [("package", path.package), ("node", path.node), ("L3", path.l3)]
    known = [(kind, number) for kind, number in parts if number is not None]
    common = 0
    while common < len(known) and common < len(shown) and shown[common] == known[common]:
        common += 1
    for depth, (kind, number) in enumerate(known):
        if depth >= common:
            lines.append("  " * depth + f"{kind} {number}" + _detail(topology, kind, number))
    shown[:] = known
    return len(known)


def _detail(topology: Topology, kind: str, number: int) -> str:
    if kind == "node":
        node = topology.node_by_id.get(number)
        return f", {size(node.memory_bytes)}" if node and node.memory_bytes else ""
    if kind == "L3":
        found = [l3.size_bytes for l3 in topology.l3s if l3.id == number and l3.size_bytes]
        return f", {size(found[0])}" if found else ""
    return ""


def _cores(cores: list[list[Cpu]], marks: Mapping[int, str], *, width: int, framed: bool) -> Iterator[str]:
    """The cores side by side, in as many rows as the width demands."""
    cell = max(len(text) for core in cores for cpu in core for text in (str(cpu.id), marks.get(cpu.id, "·")))
    blocks = [_core(core, marks, cell, framed) for core in cores]
    row: list[list[str]] = []
    for block in blocks:
        if row and sum(len(each[0]) + 1 for each in row) + len(block[0]) > width:
            yield from _side_by_side(row)
            row = []
        row.append(block)
    yield from _side_by_side(row)


def _core(core: list[Cpu], marks: Mapping[int, str], cell: int, framed: bool) -> list[str]:
    """One core as lines of equal length."""
    numbers = " ".join(f"{cpu.id:>{cell}}" for cpu in core)
    holders = " ".join(f"{marks.get(cpu.id, '·'):>{cell}}" for cpu in core)
    if not framed:
        return [f"[ {numbers} ]", *([f"  {holders}  "] if marks else [])]
    rule = "─" * (len(numbers) + 2)
    return [f"┌{rule}┐", f"│ {numbers} │", *([f"│ {holders} │"] if marks else []), f"└{rule}┘"]


def _side_by_side(blocks: list[list[str]]) -> Iterator[str]:
    return (" ".join(parts).rstrip() for parts in zip(*blocks, strict=True))


def _leftovers(topology: Topology) -> Iterator[str]:
    for node in topology.nodes:
        if not node.cpus:
            yield f"node {node.id}" + _detail(topology, "node", node.id) + ", memory only"
    offline = [cpu.id for cpu in topology.cpus.values() if not cpu.online]
    if offline:
        yield f"offline: CPUs {cpulist.format(offline)}"
    if topology.isolated:
        yield f"isolated by the kernel: CPUs {cpulist.format(topology.isolated)}"
    slow = [cpu.id for cpu in topology.cpus.values() if cpu.kind == "efficiency"]
    if slow:
        yield f"efficiency cores: CPUs {cpulist.format(slow)}"
    yield from (f"note: {warning}" for warning in topology.warnings)


def _marks(placed: Sequence[Placement]) -> dict[int, str]:
    """What stands below each CPU."""
    found: dict[int, list[str]] = {}
    for number, each in enumerate(placed):
        for vcpu, cpus in enumerate(each.vcpus):
            mark = _letter(number) + (str(vcpu) if len(cpus) == 1 else "")
            for cpu in cpus:
                marks = found.setdefault(cpu, [])
                if mark not in marks:
                    marks.append(mark)
    return {
        cpu: "".join(marks) if len(marks) <= _MOST_MARKS else f"{len(marks)} VMs"
        for cpu, marks in found.items()
    }


def _letter(number: int) -> str:
    """A to Z, then A' to Z', and so on."""
    return ascii_uppercase[number % 26] + "'" * (number // 26)


def _who(placed: Placement) -> str:
    return f"VM {placed.vmid}, {placed.vm_class}: vCPU{'s' if len(placed.vcpus) > 1 else ''} {vcpus(placed)}"
