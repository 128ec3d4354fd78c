"""The node as one page for a browser: the picture with details on hover, and a table that sorts.

`pxsched report --html FILE`. The page holds all it needs and is told to load nothing (its Content-Security-
Policy), so it can be mailed and opened anywhere. Names of VMs are their tenants' and stay out of it.
"""

from collections.abc import Iterator, Sequence
from html import escape

from pxsched.output import printable
from pxsched.report.overview import TITLES, Line

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """\
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5em; color: #222; background: white }
table { border-collapse: collapse; margin: 1em 0 }
th, td { text-align: left; padding: .25em .8em; border-bottom: 1px solid #ddd; white-space: nowrap }
td:nth-child(3), td:nth-child(6) { white-space: normal }
th button { font: inherit; font-weight: 600; border: 0; padding: 0; background: none; cursor: pointer }
th[aria-sort=ascending] button::after { content: " \\25b2" }
th[aria-sort=descending] button::after { content: " \\25bc" }
tr.lit td { background: #ffefc0 }
svg g.dark { opacity: .25 }
#box { position: fixed; display: none; padding: .4em .7em; background: #222; color: white; border-radius: 4px;
  white-space: pre-line; pointer-events: none; max-width: 40em }
"""
# What a CPU's title names (svg.py) is looked up in the table.
_SCRIPT = """\
"use strict";
const box = document.getElementById("box");
const rows = [...document.querySelectorAll("tbody tr")];
const titles = [...document.querySelectorAll("thead th")].map(head => head.textContent);
const cpus = [...document.querySelectorAll("svg g")].filter(group => group.querySelector(":scope > title"));
const who = text => text.match(/VM \\d+/g) || [];
const of = new Map(cpus.map(cpu => [cpu, cpu.querySelector("title").textContent]));

function details(name) {
  const row = rows.find(one => one.cells[0].textContent === name);
  if (!row) return [name];
  return [...row.cells].map((cell, at) => at ? `${titles[at]}: ${cell.textContent}` : cell.textContent);
}
function light(names) {
  for (const row of rows) row.classList.toggle("lit", names.includes(row.cells[0].textContent));
  for (const [cpu, text] of of)
    cpu.classList.toggle("dark", names.length > 0 && !who(text).some(name => names.includes(name)));
}
for (const [cpu, text] of of) {
  cpu.querySelector("title").remove();
  cpu.addEventListener("mousemove", event => {
    box.textContent = [text, ...who(text).map(name => details(name).join(", "))].join("\\n");
    box.style.display = "block";
    const left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
    const top = Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8);
    box.style.left = `${Math.max(0, left)}px`;
    box.style.top = `${Math.max(0, top)}px`;
    light(who(text));
  });
  cpu.addEventListener("mouseleave", () => { box.style.display = "none"; light([]); });
}
for (const row of rows) {
  row.addEventListener("mouseenter", () => light([row.cells[0].textContent]));
  row.addEventListener("mouseleave", () => light([]));
}
document.querySelectorAll("thead th").forEach((head, at) => head.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = row => row.cells[at].dataset.value;
  const order = (one, other) => one.localeCompare(other, "en", {numeric: true});
  rows.sort((a, b) => {
    if (!value(a) || !value(b)) return !value(a) - !value(b);  // what is not known comes last either way
    return up ? order(value(a), value(b)) : order(value(b), value(a));
  });
  document.querySelector("tbody").append(...rows);
}));
"""


def draw(heading: str, picture: str, lines: Sequence[Line]) -> str:
    """A whole HTML document. picture: an SVG document of ours."""
    title = escape(printable(heading))
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}</title>
<style>
{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{picture}<table>
<thead><tr>{"".join(_head())}</tr></thead>
<tbody>
{"".join(f"<tr>{''.join(_cells(line))}</tr>" for line in lines)}
</tbody>
</table>
<div id="box"></div>
<script>
{_SCRIPT}</script>
</body>
</html>
"""


def _head() -> Iterator[str]:
    return (f'<th scope="col"><button>{escape(title or "name")}</button></th>' for title in TITLES)


def _cells(line: Line) -> Iterator[str]:
    for shown, value in zip(line.cells, _values(line), strict=True):
        text = escape(printable(shown)).replace(",", ",<wbr>")
        yield f'<td data-value="{escape(printable(value))}">{text}</td>'


def _values(line: Line) -> tuple[str, ...]:
    """What each cell is sorted by; empty where nothing is known. Numbers are compared as such."""
    waiting = "" if line.waiting is None else f"{line.waiting * 1000:.0f}"
    crossings = "" if line.crossings is None else str(line.crossings)
    memory = str(sum(line.memory_mib.values())) if line.memory_mib else ""
    alone = "" if line.exclusive is None else line.cells[-1]
    return str(line.vmid), line.kind, line.cpus, crossings, waiting, memory, alone
