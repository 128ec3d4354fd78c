"""The node as a picture."""

import xml.etree.ElementTree as ElementTree
from itertools import combinations
from math import dist

import pytest

from pxsched.host import cpulist
from pxsched.host.topology import L3, Cpu, Node, Package, Topology
from pxsched.ledger.claim import Claim, State
from pxsched.placement.request import Placement, VmClass
from pxsched.report import svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def machine():
    cpus = {number: Cpu(number, True, number, number // 2, 0, 0, frozenset({number})) for number in range(4)}
    everything = frozenset(cpus)
    l3s = (L3(0, frozenset({0, 1}), 1 << 25), L3(1, frozenset({2, 3}), None))
    return Topology(cpus, l3s, (Node(0, everything, 1 << 34, {0: 10}),), (Package(0, everything),))


def claim(vmid, *vcpus):
    cpus = tuple(frozenset(own) for own in vcpus)
    return Claim(Placement(vmid, VmClass.PINNED, cpus, frozenset({0}), frozenset({0})), State.RUNNING)


def test_the_picture_shows_every_cpu_with_its_vms(machine):
    document = ElementTree.fromstring(svg.draw(machine, [claim(100, {1}, {2}), claim(101, {2})]))
    titles = [title.text for title in document.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["CPU 0: free", "CPU 1: VM 100 (pinned)", "CPU 2: VM 100 (pinned), VM 101 (pinned)",
                      "CPU 3: free"]  # fmt: skip


def test_the_picture_of_an_empty_machine_is_a_picture(machine):
    assert ElementTree.fromstring(svg.draw(machine, [])).tag.endswith("svg")


def test_no_words_of_the_legend_are_cut_off(machine):
    crowd = [claim(100, *[{cpu % 4} for cpu in range(64)]), claim(101, {0}), claim(102, {0, 1}, {2, 3})]
    document = ElementTree.fromstring(svg.draw(machine, crowd))
    width, height = float(document.get("width")), float(document.get("height"))
    words = [one.text for one in document.iter(f"{SVG}text") if one.text and len(one.text) > 20]
    assert max(map(len, words)) * svg.LETTER + 20 + 2 * svg.PAD <= width
    # All of it, in several lines.
    assert cpulist.format_ordered([cpu % 4 for cpu in range(64)]) in "".join(words).replace(" ", "")
    assert height >= 16 * len(words)


def test_every_vm_looks_different(machine):
    fills = [svg._colour(number) for number in range(len(svg.COLOURS) * len(svg.PATTERNS))]
    assert len(set(fills)) == len(fills) == 49
    drawn = svg.draw(machine, [claim(100 + number, {number % 4}) for number in range(49)])
    patterns = {f"url(#{one.get('id')})" for one in ElementTree.fromstring(drawn).iter(f"{SVG}pattern")}
    assert patterns == set(fills) - set(svg.COLOURS)


# How the two common kinds of colour blindness see (Vienot, Brettel and Mollon 1999, linear RGB).
BLIND = {
    "protan": ((0.112, 0.888, 0.0), (0.112, 0.888, 0.0), (0.004, -0.004, 1.0)),
    "deutan": ((0.293, 0.707, 0.0), (0.293, 0.707, 0.0), (-0.021, 0.021, 1.0)),
    "none": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}


@pytest.mark.parametrize("kind", BLIND)
def test_the_colour_blind_tell_the_colours_apart(kind):
    def seen(colour):
        red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
                  for value in (red, green, blue)]  # fmt: skip
        mixed = [sum(part * value for part, value in zip(row, linear, strict=True)) for row in BLIND[kind]]
        return [max(0.0, value) ** (1 / 2.2) for value in mixed]

    for one, other in combinations(svg.COLOURS, 2):
        assert dist(seen(one), seen(other)) > 0.1, (one, other)
