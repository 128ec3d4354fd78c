"""The blocks of a proof over time, as a picture for a browser: `pxsched prove --svg FILE`.

One chart for each figure that says which way is better, and a bar for each block in the colour of its way.
"""

import time
from collections.abc import Sequence
from html import escape

from pxsched.proof import figure as figures
from pxsched.proof.block import Block
from pxsched.proof.figure import Better, Figure
from pxsched.proof.result import Result
from pxsched.proof.verdict import judge
from pxsched.report import svg
from pxsched.report.svg import COLOURS, FONT, LINE

WIDTH, HEIGHT, TITLE, GAP = 900, 90, 18, 14
_LEAST_BAR = 1.5


def draw(result: Result) -> str:
    """A whole SVG document."""
    colours = dict(zip(result.ways, COLOURS, strict=False))
    shown = [one for one in figures.common(result.blocks) if one.better is not Better.NEITHER]
    lines = [_text(0, 12, f"VM {result.vmid}: {judge(result.blocks, result.ways).sentence}")]
    left = 0.0
    for way in result.ways:
        lines.append(f"<rect x='{left:g}' y='20' width='12' height='12' fill='{colours[way]}'/>")
        label = f"{way}: {result.places.get(way, '')}"
        lines.append(_text(left + 16, 30, label))
        left += 40 + 6.4 * len(label)
    top = 44.0
    for figure in shown:
        lines += [f"<g transform='translate(0,{top:g})'>", *_chart(figure, result.blocks, colours), "</g>"]
        top += TITLE + HEIGHT + GAP
    return svg.document(svg.Block(max(WIDTH, left), top, tuple(lines)))


def _chart(figure: Figure, blocks: Sequence[Block], colours: dict[str, str]) -> list[str]:
    first = blocks[0].begun_s
    whole_s = max(block.begun_s + block.lasted_s for block in blocks) - first
    most = max(*(block.figures[figure.name] for block in blocks), 0.0) or 1.0
    unit = f" ({figure.unit})" if figure.unit else ""
    lines = [_text(0, 12, f"{figure.words}{unit}, up to {most:.4g}")]
    for block in blocks:
        value = block.figures[figure.name]
        height = max(0.0, value / most) * HEIGHT
        left = (block.begun_s - first) / whole_s * WIDTH
        width = max(_LEAST_BAR, block.lasted_s / whole_s * WIDTH)
        at = time.strftime("%H:%M:%S", time.localtime(block.begun_s))
        lines.append(
            f"<rect x='{left:.1f}' y='{TITLE + HEIGHT - height:.1f}' width='{width:.1f}'"
            f" height='{height:.1f}' fill='{colours[block.way]}'>"
            f"<title>{escape(block.way)}, {at}: {value:.4g}</title></rect>"
        )
    bottom = TITLE + HEIGHT
    lines.append(f"<line x1='0' y1='{bottom}' x2='{WIDTH}' y2='{bottom}' stroke='{LINE}'/>")
    return lines


def _text(left: float, top: float, words: str) -> str:
    return f"<text x='{left:g}' y='{top:g}' {FONT}>{escape(words)}</text>"
