"""A proof as a table, as JSON, as metrics and as a picture."""

import json
import xml.etree.ElementTree as ElementTree
from random import Random

from pxsched.guest.identity import Identity
from pxsched.proof.result import Brief, Result
from pxsched.proof.result import brief as briefly
from pxsched.report import blocks, proof
from pxsched.value import plain, replace

from .series import run, steady

SVG = "{http://www.w3.org/2000/svg}"


def result(effect=1.2, rounds=8, **said) -> Result:
    made = run(Random(11), steady, {"stock": 1.0, "home": effect}, rounds)
    timed = tuple(replace(block, begun_s=1e9 + 15 * n, lasted_s=12.0) for n, block in enumerate(made))
    places = {"stock": "as Proxmox starts it, on CPUs 0-7", "home": "on CPUs 0-3"}
    fields = {"blocks": timed, "absent": {"cycles": "no such counter"}, **said}
    settings = {"stock": {"vcpu": False}, "home": {}}
    return Result(100, Identity(), ("stock", "home"), places, settings, 1e9, 12.0, 3.0, **fields)


def test_the_table_has_each_figure_its_interval_and_one_sentence():
    lines = list(proof.lines(result()))
    assert lines[0].endswith("32 blocks of 12 s, 8 whole rounds")
    (row,) = (line for line in lines if "instructions per second" in line and "better" in line)
    assert "stock 9.994e+08" in row and "home 1.2" in row and " to " in row and " %" in row
    assert "  intervals of 95 %; `noise` is what cannot be told from none" in lines
    assert "  not read: cycles per second (no such counter)" in lines
    assert lines[-1].startswith("VM 100: home is worth ") and lines[-1].endswith("over stock.")


def test_too_few_blocks_are_said_to_be_too_few():
    lines = list(proof.lines(result(rounds=1, stopped="VM 100 has stopped")))
    assert "It ended early: VM 100 has stopped." in lines
    assert lines[-1] == "VM 100: nothing can be said yet: it takes 28 more blocks (7 rounds)."


def test_json_has_all_of_it_and_is_json():
    document = json.loads(json.dumps(proof.document(result(rounds=1)), allow_nan=False))
    assert (document["best"], document["rounds"], len(document["blocks"])) == (None, 1, 4)
    assert document["differences"][0]["low"] is None
    document = json.loads(json.dumps(proof.document(result()), allow_nan=False))
    assert (document["best"], document["deciding"], document["differences"][0]["says"]) == (
        "home", "instructions", "better",
    )  # fmt: skip


def test_what_follows_is_kept_apart_from_the_blocks():
    found = briefly(result())
    assert Brief.from_json(json.loads(json.dumps(plain(found)))) == found
    (one,) = found.worth
    assert (one.way, one.base, one.figure, one.told) == ("home", "stock", "instructions", True)
    assert 0.15 < one.difference < 0.25
    assert briefly(result(rounds=1)).worth == ()


def test_the_picture_has_a_bar_for_each_block_in_the_colour_of_its_way():
    picture = ElementTree.fromstring(blocks.draw(result()))
    bars = [one for one in picture.iter(f"{SVG}rect") if one.find(f"{SVG}title") is not None]
    assert len(bars) == 32
    colours = {one.get("fill") for one in bars}
    assert len(colours) == 2
    by_way = {one.find(f"{SVG}title").text.split(",")[0]: one.get("fill") for one in bars}
    assert by_way.keys() == {"stock", "home"} and set(by_way.values()) == colours


def test_status_has_one_line():
    said = proof.brief(briefly(result()))
    assert said.startswith("VM 100, proof of 2001-09-09: home is worth ")
