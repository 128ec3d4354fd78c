"""The machine and who has what, as a picture for a browser: `pxsched report --svg FILE`.

Packages hold NUMA nodes, nodes hold L3 groups, groups hold cores, a core holds its CPUs side by side. A CPU
has the colour of the VM it belongs to alone; VMs that float there are stripes. Colours are Okabe and Ito's,
which the colour-blind tell apart (jfly.uni-koeln.de/color); patterns tell VMs of one colour apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from textwrap import wrap

from pxsched import output
from pxsched.host import cpulist
from pxsched.host.topology import Topology
from pxsched.ledger.claim import Claim
from pxsched.placement.request import Placement
from pxsched.report import text
from pxsched.value import Value

CELL, GAP, PAD, TITLE = 26, 4, 10, 18
MOST_COLUMNS = 16
FONT = "font-family='system-ui,sans-serif' font-size='11'"
FREE, LINE = "#f4f4f2", "#8a8a86"
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# What is drawn over a colour from its second use on: a path in a square of eight.
PATTERNS = (
    "",
    "M0,8 L8,0",
    "M0,0 L8,8",
    "M0,4 L8,4",
    "M4,0 L4,8",
    "M0,8 L8,0 M0,0 L8,8",
    "M0,4 L8,4 M4,0 L4,8",
)
# Dark numbers on every colour: a light edge around them.
NUMBER = f"{FONT} stroke='white' stroke-width='2' paint-order='stroke'"
LEGEND_LETTERS, LETTER = 150, 6.2


class Block(Value):
    """Something drawn: its size, and its lines relative to its own corner."""

    width: float
    height: float
    lines: tuple[str, ...]


def draw(topology: Topology, claims: Iterable[Claim]) -> str:
    """A whole SVG document."""
    placements = [claim.placement for claim in sorted(claims, key=lambda claim: claim.vmid)]
    owners: dict[int, list[Placement]] = {}
    for placement in placements:
        for cpu in placement.cpus:
            owners.setdefault(cpu, []).append(placement)
    colours = {placement.vmid: _colour(number) for number, placement in enumerate(placements)}
    packages = [
        _framed(f"package {package.id}", _nodes(topology, package.cpus, owners, colours))
        for package in topology.packages
    ]
    whole = _stacked([*packages, _legend(placements, colours)])
    return document(whole, _patterns(len(placements)))


def document(whole: Block, fills: str = "") -> str:
    """An SVG document of one block, with a margin. fills: the patterns that are defined in it."""
    size = f"width='{whole.width + 2 * PAD:g}' height='{whole.height + 2 * PAD:g}'"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' {size}>\n<rect width='100%' height='100%' fill='white'/>\n"
        f"{fills}<g transform='translate({PAD},{PAD})'>\n{output.lines(whole.lines)}</g>\n</svg>\n"
    )


def _nodes(
    topology: Topology,
    cpus: frozenset[int],
    owners: Mapping[int, list[Placement]],
    colours: Mapping[int, str],
) -> list[Block]:
    blocks = []
    for node in topology.nodes:
        inside = node.cpus & cpus
        if inside:
            memory = f", {text.size(node.memory_bytes)}" if node.memory_bytes else ""
            blocks.append(_framed(f"node {node.id}{memory}", _l3s(topology, inside, owners, colours)))
    return blocks


def _l3s(
    topology: Topology,
    cpus: frozenset[int],
    owners: Mapping[int, list[Placement]],
    colours: Mapping[int, str],
) -> list[Block]:
    groups = [(f"L3 {l3.id}", l3.cpus & cpus) for l3 in topology.l3s if l3.cpus & cpus]
    outside = cpus.difference(*(group for _, group in groups))
    if outside:
        groups.append(("no L3", outside))
    return [_framed(title, [_cores(topology, group, owners, colours)]) for title, group in groups]


def _cores(
    topology: Topology,
    cpus: frozenset[int],
    owners: Mapping[int, list[Placement]],
    colours: Mapping[int, str],
) -> Block:
    cores = sorted({topology.cpus[cpu].siblings & cpus for cpu in cpus}, key=min)
    widest = max(len(core) for core in cores)
    columns = max(1, MOST_COLUMNS // widest)
    lines = []
    for number, core in enumerate(cores):
        left = number % columns * (widest * CELL + GAP)
        top = number // columns * (CELL + GAP)
        for place, cpu in enumerate(sorted(core)):
            lines += _cpu(cpu, left + place * CELL, top, owners.get(cpu, []), colours)
    shown = min(columns, len(cores))
    rows = -(-len(cores) // columns)
    return Block(shown * (widest * CELL + GAP) - GAP, rows * (CELL + GAP) - GAP, tuple(lines))


def _cpu(
    cpu: int, left: float, top: float, owners: Sequence[Placement], colours: Mapping[int, str]
) -> list[str]:
    names = ", ".join(f"VM {placement.vmid} ({placement.vm_class})" for placement in owners) or "free"
    lines = [f"<g><title>CPU {cpu}: {escape(names)}</title>"]
    height = CELL / max(1, len(owners))
    fills = [colours[placement.vmid] for placement in owners] or [FREE]
    lines += [
        f"<rect x='{left:g}' y='{top + part * height:g}' width='{CELL}' height='{height:g}' fill='{fill}'/>"
        for part, fill in enumerate(fills)
    ]
    middle = f"x='{left + CELL / 2:g}' y='{top + CELL / 2 + 4:g}' text-anchor='middle'"
    lines += [
        f"<rect x='{left:g}' y='{top:g}' width='{CELL}' height='{CELL}' fill='none' stroke='{LINE}'/>",
        f"<text {middle} {NUMBER}>{cpu}</text></g>",
    ]
    return lines


def _framed(title: str, blocks: Sequence[Block]) -> Block:
    """Blocks side by side, several rows of them if need be, in a frame with a title."""
    rows: list[list[Block]] = [[]]
    for block in blocks:
        if rows[-1] and sum(other.width + PAD for other in rows[-1]) + block.width > 1200:
            rows.append([])
        rows[-1].append(block)
    inner = _stacked([_beside(row) for row in rows])
    width = max(inner.width, 8 * len(title)) + 2 * PAD
    height = inner.height + TITLE + PAD
    frame = f"<rect width='{width:g}' height='{height:g}' rx='4' fill='none' stroke='{LINE}'/>"
    label = f"<text x='{PAD}' y='{TITLE - 5}' {FONT} fill='#444'>{escape(title)}</text>"
    return Block(width, height, (frame, label, *_moved(inner, PAD, TITLE)))


def _beside(blocks: Sequence[Block]) -> Block:
    lines, left = [], 0.0
    for block in blocks:
        lines += _moved(block, left, 0)
        left += block.width + PAD
    return Block(max(0.0, left - PAD), max((block.height for block in blocks), default=0), tuple(lines))


def _stacked(blocks: Sequence[Block]) -> Block:
    lines, top = [], 0.0
    for block in blocks:
        lines += _moved(block, 0, top)
        top += block.height + PAD
    return Block(max((block.width for block in blocks), default=0), max(0.0, top - PAD), tuple(lines))


def _moved(block: Block, left: float, top: float) -> list[str]:
    return [f"<g transform='translate({left:g},{top:g})'>", *block.lines, "</g>"]


def _legend(placements: Sequence[Placement], colours: Mapping[int, str]) -> Block:
    """Names of VMs are their tenants' and stay out of the picture."""
    lines: list[str] = []
    top = 0
    for placement in placements:
        words = f"VM {placement.vmid}, {placement.vm_class}: {text.vcpus(placement)}"
        if placement.nodes:
            words += f"; memory of node {cpulist.format(placement.nodes)}"
        lines.append(
            f"<rect y='{top}' width='14' height='14' fill='{colours[placement.vmid]}' stroke='{LINE}'/>"
        )
        for part in wrap(words, LEGEND_LETTERS):
            lines.append(f"<text x='20' y='{top + 12}' {FONT}>{escape(part)}</text>")
            top += 16
        top += 4
    return Block(LEGEND_LETTERS * LETTER if placements else 0, top, tuple(lines))


def _colour(number: int) -> str:
    """A fill of its own for each VM, as far as colours and patterns go; then they come again."""
    again = number // len(COLOURS) % len(PATTERNS)
    return f"url(#p{number % (len(COLOURS) * len(PATTERNS))})" if again else COLOURS[number % len(COLOURS)]


def _patterns(count: int) -> str:
    """The fills that are more than a colour."""
    found = []
    for number in range(len(COLOURS), min(count, len(COLOURS) * len(PATTERNS))):
        path, colour = PATTERNS[number // len(COLOURS)], COLOURS[number % len(COLOURS)]
        found.append(
            f"<pattern id='p{number}' width='8' height='8' patternUnits='userSpaceOnUse'>"
            f"<rect width='8' height='8' fill='{colour}'/>"
            f"<path d='{path}' stroke='black' stroke-opacity='0.55'/></pattern>\n"
        )
    return f"<defs>\n{''.join(found)}</defs>\n" if found else ""
