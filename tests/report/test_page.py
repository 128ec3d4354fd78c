"""`report --html`: one page that needs nothing else, with details on hover and a table that sorts."""

import re
from pathlib import Path

import pytest

from pxsched import cli
from pxsched.host import topology
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.placement.request import Placement, VmClass
from pxsched.report import page, svg
from pxsched.report.overview import Line
from pxsched.root import Root

from . import browser

CLAIMS = [
    Claim(
        Placement(vmid, vm_class, tuple(map(frozenset, vcpus)), frozenset({0}), frozenset({0})), State.RUNNING
    )
    for vmid, vm_class, vcpus in (
        (100, VmClass.DEDICATED, ({2}, {1})),
        (1000, VmClass.SHARED, ({0, 3}, {0, 3})),
        (101, VmClass.PINNED, ({3},)),
    )
]
LINES = [
    Line(100, "VM 100", "dedicated", "2,1", 1, 0.25, {0: 512, 1: 1600}, True),
    Line(1000, "VM 1000", "shared", "0,3", 1, 1.5, {0: 900}),
    Line(101, "VM 101", "pinned", "3", 0, 0.0, {}),
    Line(200, "container 200", "container", "0-3"),
]


@pytest.fixture
def tree(tmp_path):
    """Four CPUs, two in each L3 group."""
    for cpu in range(4):
        for name, text in (
            ("topology/core_cpus_list", str(cpu)),
            ("topology/physical_package_id", "0"),
            ("cache/index3/level", "3"),
            ("cache/index3/shared_cpu_list", "0-1" if cpu < 2 else "2-3"),
        ):
            file = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/{name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-3\n")
    (tmp_path / "sys/devices/system/node/node0").mkdir(parents=True)
    (tmp_path / "sys/devices/system/node/node0/cpulist").write_text("0-3\n")
    (tmp_path / "run/pxsched").mkdir(parents=True)
    return Root(str(tmp_path))


def test_the_page_loads_nothing_and_may_not(tree):
    drawn = page.draw("node", svg.draw(topology.read(tree), CLAIMS), LINES)
    assert not re.findall(r"(?:src|href|action)\s*=|@import|url\((?!#p\d)", drawn)
    assert set(re.findall(r"https?://[^\s'\"]+", drawn)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in drawn


def test_words_of_others_are_text_on_the_page(tree):
    drawn = page.draw("<script>x", "<svg></svg>", [Line(1, "<b>", '"><img', "&\x1b")])
    assert "<script>x" not in drawn and "<img" not in drawn and "<b>" not in drawn and "\x1b" not in drawn


def test_the_command_writes_it(tree, tmp_path):
    with ledgers.locked(tree) as ledger:
        for claim in CLAIMS:
            ledger.claims[claim.vmid] = claim
        ledgers.save(tree, ledger)
    assert cli.main(["--root", tree.base, "report", "--html", str(tmp_path / "node.html")]) == 0
    written = (tmp_path / "node.html").read_text()
    assert written.startswith("<!DOCTYPE html>")
    assert re.findall(r">(VM \d+)</td>", written) == ["VM 100", "VM 101", "VM 1000"]


needs_browser = pytest.mark.skipif(browser.program() is None, reason="Chromium is not installed")
ROW = "document.querySelectorAll('tbody tr')"
CPU = (
    "[...document.querySelectorAll('svg g')]"
    ".find(group => group.querySelector(':scope > text')?.textContent === '{}')"
)


@pytest.fixture
def opened(tree, tmp_path):
    file = Path(tmp_path, "node.html")
    file.write_text(page.draw("node, now", svg.draw(topology.read(tree), CLAIMS), LINES))
    with browser.Browser() as one:
        one.open(file)
        yield one
        assert [url for url in one.loaded if not url.startswith(("file:", "about:"))] == []


@pytest.mark.slow
@needs_browser
def test_a_browser_sorts_the_table_by_any_column_both_ways(opened):
    def order(column: int) -> list[str]:
        opened.value(f"document.querySelectorAll('thead button')[{column}].click()")
        return opened.value(f"[...{ROW}].map(row => row.cells[0].textContent)")

    assert order(0) == ["VM 100", "VM 101", "container 200", "VM 1000"], "numbers are compared as such"
    assert order(0) == ["VM 1000", "container 200", "VM 101", "VM 100"]
    assert order(4) == ["VM 101", "VM 100", "VM 1000", "container 200"]
    assert order(4) == ["VM 1000", "VM 100", "VM 101", "container 200"], "what is not known stays last"
    assert order(5)[:2] == ["VM 1000", "VM 100"], "by all of its memory"
    assert opened.value("document.querySelector('[aria-sort]').textContent") == "memory by node"


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_details_where_the_pointer_is(opened):
    shown = "(box => box.style.display === 'block' ? box.textContent : '')(document.getElementById('box'))"
    assert opened.value(shown) == ""
    opened.move_to(CPU.format(3))
    said = opened.value(shown)
    assert said.startswith("CPU 3: VM 101 (pinned), VM 1000 (shared)\n")
    assert "VM 1000, class: shared, CPUs: 0,3, L3 crossings: 1, waits: 1.50, memory by node: 0:" in said
    lit = opened.value(f"[...{ROW}].filter(r => r.className === 'lit').map(r => r.cells[0].textContent)")
    assert sorted(lit) == ["VM 1000", "VM 101"]
    opened.move_to("document.querySelector('h1')")
    assert opened.value(shown) == ""
    opened.move_to(f"{ROW}[0]")
    dark = opened.value("[...document.querySelectorAll('svg g.dark > text')].map(one => one.textContent)")
    assert dark == ["0", "3"], "of the others' CPUs"


@pytest.mark.slow
@needs_browser
def test_a_browser_gives_the_cpus_of_a_vm_its_colour_and_draws_the_page(opened):
    colour = "getComputedStyle({}.querySelector(':scope > rect')).fill"
    assert opened.value(colour.format(CPU.format(1))) == opened.value(colour.format(CPU.format(2)))
    assert opened.value(colour.format(CPU.format(1))) != opened.value(colour.format(CPU.format(0)))
    drawn = len(opened.picture())
    opened.value("document.body.replaceChildren()")
    assert drawn > 2 * len(opened.picture()), "there is something to be seen"
