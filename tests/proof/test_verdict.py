"""What a proof says in words."""

import json
import re
from random import Random

import pytest

from pxsched.proof.block import Block
from pxsched.proof.figure import BY_NAME
from pxsched.proof.verdict import favours, judge
from pxsched.stored import Damaged
from pxsched.value import plain, replace

from .series import bursting, drifting, run, steady

WAYS = ("stock", "home", "dedicated")


def said(effects, rounds=10, load=steady, figure="instructions"):
    return judge(run(Random(11), load, effects, rounds, figure=figure), list(effects))


def test_what_is_better_is_named_with_its_worth_and_what_is_not_is_left():
    found = said({"stock": 1.0, "home": 1.07, "dedicated": 1.07})
    assert found.best == "home"
    first, second = found.sentence.split("; ", 1)
    shape = r"home is worth ([\d.]+) % \(([\d.]+) to ([\d.]+)\) of instructions per second over stock"
    match = re.fullmatch(shape, first)
    assert match is not None, first
    worth, low, high = map(float, match.groups())
    assert low < worth < high and low < 7 < high
    assert second.startswith("dedicated is no better than home: leave it")


def test_what_harms_is_left_with_what_it_costs():
    found = said({"stock": 1.0, "home": 0.8})
    assert found.best == "stock"
    assert found.sentence.startswith("home costs ") and found.sentence.endswith("over stock: leave it")


def test_less_waiting_is_saved_and_more_is_added():
    blocks = [
        Block(number, way, 0, 1, {"waiting": (40.0 if way == "stock" else 2.0) + number % 3})
        for number in range(8)
        for way in ("stock", "home", "home", "stock")
    ]
    assert judge(blocks, ("stock", "home")).sentence == (
        "home saves 38 points (38 to 38) of time spent waiting for a CPU over stock"
    )
    assert judge(blocks, ("home", "stock")).sentence == (
        "stock adds 38 points (38 to 38) of time spent waiting for a CPU over home: leave it"
    )


def test_a_difference_that_is_certain_and_worth_nothing_changes_nothing():
    blocks = [
        Block(number, way, 0, 1, {"waiting": 0.2 if way == "stock" else 0.1})
        for number in range(8)
        for way in ("stock", "home", "home", "stock")
    ]
    found = judge(blocks, ("stock", "home"))
    assert (found.best, found.sentence) == ("stock", "home is no better than stock: leave it")
    assert found.comparisons[0].told


@pytest.mark.parametrize("load", [steady, drifting, bursting])
def test_a_vm_that_does_the_same_either_way_keeps_what_needs_least(load):
    found = said({"stock": 1.0, "home": 1.0}, load=load)
    assert found.best == "stock"
    assert "no better than stock: leave it" in found.sentence


@pytest.mark.parametrize(("rounds", "missing"), [(0, 32), (3, 20), (7, 4)])
def test_too_few_blocks_say_nothing_but_how_many_more_it_takes(rounds, missing):
    found = said({"stock": 1.0, "home": 2.0}, rounds)
    assert found.best is None
    assert found.sentence == (
        f"nothing can be said yet: it takes {missing} more blocks ({missing // 4} rounds)"
    )


def test_where_noise_hides_half_of_what_would_show_it_says_how_many_more_blocks_it_takes():
    found = said({"stock": 1.0, "home": 1.0}, load=bursting)
    assert "would not have shown;" in found.sentence
    assert "more blocks see half of that" in found.sentence


def test_a_round_that_was_broken_off_does_not_count():
    blocks = run(Random(5), steady, {"stock": 1.0, "home": 1.1}, 9)[:-1]
    assert judge(blocks, ("stock", "home")).rounds == 8


def test_a_figure_that_a_block_lacks_is_left_out_for_all():
    blocks = run(Random(5), steady, {"stock": 1.0, "home": 1.1}, 8)
    blocks = [replace(block, figures={**block.figures, "waiting": 1.0}) for block in blocks]
    blocks[3] = replace(blocks[3], figures={"waiting": 1.0})
    found = judge(blocks, ("stock", "home"))
    assert [one.figure.name for one in found.comparisons] == ["waiting"]
    assert found.deciding == BY_NAME["waiting"]


def test_without_a_figure_that_decides_nothing_is_said():
    blocks = run(Random(5), steady, {"stock": 1.0, "home": 1.1}, 8, figure="running")
    found = judge(blocks, ("stock", "home"))
    assert (found.best, found.deciding) == (None, None)
    assert found.sentence == "no figure was read that says which way is better"


def test_a_vm_that_did_nothing_proves_nothing():
    blocks = [
        Block(number, way, 0, 1, {"waiting": 5.0 if way == "stock" else 1.0, "running": 0.004})
        for number in range(8)
        for way in ("stock", "home", "home", "stock")
    ]
    for every in (True, False):
        found = judge(blocks, ("stock", "home"), every=every)
        assert found.best is None
        assert found.sentence.startswith("it did next to nothing meanwhile")
    told = [replace(block, figures={**block.figures, "own": block.figures["waiting"]}) for block in blocks]
    assert judge(told, ("stock", "home")).best == "stock"


def test_the_users_own_figure_decides_before_all_others():
    blocks = run(Random(5), steady, {"stock": 1.0, "home": 1.2}, 8)
    blocks = [
        replace(block, figures={**block.figures, "own": 5.0 if block.way == "home" else 10.0})
        for block in blocks
    ]
    found = judge(blocks, ("stock", "home"))
    assert found.best == "stock"
    assert found.sentence.startswith("home costs 50 %")
    less = [replace(block, figures={"own_less": block.figures["own"]}) for block in blocks]
    assert judge(less, ("stock", "home")).best == "home"


def test_each_figure_of_each_pair_of_ways_has_its_line():
    found = said({"stock": 1.0, "home": 1.5, "dedicated": 1.0})
    assert [(one.way, one.base) for one in found.comparisons] == [
        ("home", "stock"), ("dedicated", "stock"), ("dedicated", "home"),
    ]  # fmt: skip
    assert [favours(one) for one in found.comparisons] == ["better", "noise", "worse"]


def test_a_block_comes_back_as_it_was_written():
    block = Block(3, "home", 1e9, 10.5, {"waiting": 1.5, "own": -2.0})
    assert Block.from_json(json.loads(json.dumps(plain(block)))) == block
    with pytest.raises(Damaged):
        Block.from_json({**plain(block), "figures": {"waiting": "much"}})
