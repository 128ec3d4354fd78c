"""A frame as a picture for the terminal, by rich: the CPUs with their use, the VMs, and what is wrong. Pure.

Use is told by the height of a block, never by colour alone; who owns CPUs, by letters.
"""

from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from string import ascii_lowercase, ascii_uppercase
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pxsched.host import cpulist
from pxsched.host.topology import Topology
from pxsched.output import printable
from pxsched.report.frame import Frame, Row

BLOCKS = " ▁▂▃▄▅▆▇█"
LETTERS = ascii_uppercase + ascii_lowercase
# From this use on a CPU is shown as busy, and as full.
BUSY, FULL = 0.5, 0.85
KEYS = "up/down: choose a VM   enter: its details   q: leave"
MOST_LINES_BELOW = 6
FEWEST_ROWS = 3


def draw(
    frame: Frame,
    *,
    width: int,
    height: int | None = None,
    selected: int | None = None,
    details: Sequence[str] | None = None,
    keys: bool = False,
) -> RenderableType:
    """The whole picture. selected: the VMID whose row is marked. details: of that VM, in place of the CPUs.
    keys: name those that can be pressed. height: lines there are; VMs around the marked one are shown, and as
    many of the details as have room. None: all.
    """
    above: list[RenderableType] = [_head(frame)]
    if details is None:
        above += [_cpus(frame, width)]
    below: list[RenderableType] = [*_below(frame)]
    if keys:
        below.append(Text(KEYS, style="dim"))
    left = None if height is None else height - _height(above, width) - _height(below, width)
    if details is None:
        return Group(*above, *_vms(frame, width, selected, left), *below)
    few = None if left is None else max(FEWEST_ROWS + 2, left // 3)
    table = _vms(frame, width, selected, few)
    lines: list[RenderableType] = [Text(f"VM {selected}", style="bold"), *map(_line, details)]
    if left is not None:
        lines = _fitting(lines, width, left - _height(table, width))
    return Group(*above, *table, *lines, *below)


def _height(parts: Sequence[RenderableType], width: int) -> int:
    """How many lines they take."""
    console = Console(width=width, file=StringIO(), legacy_windows=False)
    return len(console.render_lines(Group(*parts), pad=False)) if parts else 0


def _fitting(parts: list[RenderableType], width: int, most: int) -> list[RenderableType]:
    """As many of them as have room, and how many have none."""
    if _height(parts, width) <= most:
        return parts
    shown = 1
    while shown < len(parts) and _height(parts[: shown + 1], width) < most:
        shown += 1
    return [*parts[:shown], Text(f"  and {len(parts) - shown} more: pxsched status", style="dim")]


def _head(frame: Frame) -> Text:
    busy = sum(frame.busy.values())
    words = ["pxsched", f"{len(frame.rows)} VMs"]
    if frame.busy:
        words.append(f"{busy:.1f} of {len(frame.busy)} CPUs busy")
    if frame.memory_total and frame.memory_available is not None:
        total, available = frame.memory_total / 2**30, frame.memory_available / 2**30
        words.append(f"{available:.1f} of {total:.1f} GiB available")
    return Text("   ".join(words), style="bold")


# The CPUs.


def letters(rows: Sequence[Row]) -> dict[int, str]:
    """A letter for each VM that has CPUs of its own, in the order of the table; beyond the alphabet a `+`."""
    own = [row.vmid for row in rows if row.exclusive]
    return {vmid: LETTERS[number] if number < len(LETTERS) else "+" for number, vmid in enumerate(own)}


def _cpus(frame: Frame, width: int) -> RenderableType:
    topology = frame.topology
    named = letters(frame.rows)
    owners = {cpu: named[row.vmid] for row in frame.rows if row.exclusive for cpu in row.cpus}
    lines: list[Text] = []
    for title, groups in _nodes(topology):
        lines.append(Text(title, style="bold"))
        lines += _row_of_groups(groups, frame.busy, owners, width - 2)
    return Group(*lines)


def _nodes(topology: Topology) -> Iterator[tuple[str, list[tuple[str, list[int]]]]]:
    """Each package and node with its L3 groups: a title and the CPUs, siblings side by side."""
    places: dict[tuple[int, int], dict[int, list[int]]] = {}
    for cpu in sorted(topology.online, key=lambda one: (min(topology.cpus[one].siblings or {one}), one)):
        known = topology.cpus[cpu]
        place = (-1 if known.package is None else known.package, -1 if known.node is None else known.node)
        places.setdefault(place, {}).setdefault(-1 if known.l3 is None else known.l3, []).append(cpu)
    for (package, node), groups in sorted(places.items()):
        words = [f"package {package}"] * (package >= 0) + [f"node {node}"] * (node >= 0)
        yield (
            ", ".join(words) or "CPUs",
            [(f"L3 {number}" if number >= 0 else "", cpus) for number, cpus in sorted(groups.items())],
        )


def _row_of_groups(
    groups: list[tuple[str, list[int]]], busy: Mapping[int, float], owners: Mapping[int, str], width: int
) -> Iterator[Text]:
    """The groups side by side, each as its title and one block for every CPU; below them who owns which."""
    use, own = Text("  "), Text("  ", style="cyan")
    for title, cpus in groups:
        head = f"{title} " if title else ""
        for part in _parts(cpus, max(8, width - len(head) - 2)):
            cells = _blocks(part, busy)
            if len(use) > 2 and len(use) + len(head) + len(cells) + 2 > width + 2:
                yield from _pair(use, own)
                use, own = Text("  "), Text("  ", style="cyan")
            use.append(head, style="dim").append_text(cells).append("  ")
            own.append(" " * len(head) + "".join(owners.get(cpu, " ") for cpu in part) + "  ")
            head = " " * len(head)
    yield from _pair(use, own)


def _parts(cpus: list[int], most: int) -> Iterator[list[int]]:
    for begin in range(0, len(cpus), most):
        yield cpus[begin : begin + most]


def _pair(use: Text, own: Text) -> Iterator[Text]:
    yield use
    if own.plain.strip():
        yield own


def _blocks(cpus: list[int], busy: Mapping[int, float]) -> Text:
    text = Text()
    for cpu in cpus:
        part = busy.get(cpu)
        if part is None:
            text.append("·", style="dim")
            continue
        style = "red" if part >= FULL else "yellow" if part >= BUSY else "green"
        # An idle CPU is seen as well: the lowest block stands for it.
        text.append(BLOCKS[max(1, min(8, round(part * 8)))], style=style)
    return text


# The VMs.

COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("", "left"), ("VM", "right"), ("class", "left"), ("CPUs", "left"), ("L3", "right"), ("node", "left"),
    ("runs", "right"), ("waits", "right"), ("MiB", "right"), ("balloon", "right"),
)  # fmt: skip


def _vms(frame: Frame, width: int, selected: int | None, most: int | None) -> list[RenderableType]:
    """The table in so many lines at most: the rows around the marked one, and which of all they are."""
    if not frame.rows:
        return [Text("No VM runs here.")]
    if most is None or len(frame.rows) < most:
        return [_table(frame, width, selected, frame.rows)]
    shown = max(FEWEST_ROWS, most - 2)
    marked = next((number for number, row in enumerate(frame.rows) if row.vmid == selected), 0)
    first = max(0, min(marked - shown // 2, len(frame.rows) - shown))
    rows = frame.rows[first : first + shown]
    which = f"VMs {first + 1} to {first + len(rows)} of {len(frame.rows)}; up and down for the others"
    return [_table(frame, width, selected, rows), Text(which, style="dim")]


def _table(frame: Frame, width: int, selected: int | None, rows: Sequence[Row]) -> Table:
    named = letters(frame.rows)
    table = Table(box=None, pad_edge=False, padding=(0, 1), expand=False)
    for title, justify in COLUMNS:
        table.add_column(title, justify=justify, no_wrap=True, overflow="ellipsis")
    most = max(12, width - 60)
    for row in rows:
        style = "reverse" if row.vmid == selected else "dim" if not row.vcpus else ""
        waits = Text(_number(row.waiting), style="red" if (row.waiting or 0) >= 0.5 else "")
        where = _shortened(cpulist.of_vcpus(row.vcpus) or "-", most)
        table.add_row(
            named.get(row.vmid, ""), str(row.vmid), row.vm_class, where,
            str(row.l3_groups) if row.l3_groups else "-", cpulist.format(row.nodes) or "-",
            _number(row.running), waits, "?" if row.memory_mib is None else str(row.memory_mib),
            "-" if row.balloon_mib is None else str(row.balloon_mib),
            style=style,
        )  # fmt: skip
    return table


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _below(frame: Frame) -> list[Text]:
    lines = []
    if frame.acted and frame.acted_s_ago is not None:
        lines.append(_line(f"{frame.acted_s_ago:.0f} s ago: {frame.acted[0]}"))
        lines += [_line(f"  {line}") for line in frame.acted[1:MOST_LINES_BELOW]]
    lines += [_line(f"wrong: {line}", "red") for line in frame.wrong[:MOST_LINES_BELOW]]
    return lines


def _line(text: str, style: str = "") -> Text:
    """Words of others are shown as they are anywhere else."""
    return Text(printable(text), style=style, overflow="fold")
