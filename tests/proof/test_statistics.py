"""What is told from noise, on made-up series whose effect is known."""

import math
from collections.abc import Sequence
from random import Random

import pytest

from pxsched.proof import statistics
from pxsched.proof.block import order, whole_rounds
from pxsched.proof.figure import BY_NAME
from pxsched.proof.statistics import FEWEST_ROUNDS, POWER, Estimate, enough, estimate, student
from pxsched.proof.verdict import differences

from .series import LOADS, Load, run

FIGURE = BY_NAME["instructions"]
EFFECT = 0.07
# A rate that was counted over so many runs is known to three times its standard error.
FEW, MANY = 250, 3000


def estimates(load: Load, effect: float, runs: int, rounds: int, resamples: int) -> list[Estimate]:
    lot = Random(load.__name__)
    ways = {"stock": 1.0, "home": 1.0 + effect}
    found = []
    for _ in range(runs):
        blocks = run(lot, load, ways, rounds)
        values = differences(FIGURE, "home", "stock", whole_rounds(blocks, list(ways)))
        found.append(estimate(values, resamples=resamples))
    return found


def rate(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def slack(share: float, runs: int) -> float:
    return 3 * math.sqrt(share * (1 - share) / runs)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_intervals_hold_the_true_effect_as_often_as_they_say(load):
    found = estimates(load, EFFECT, FEW, 10, 300)
    covered = rate([one.low <= math.log1p(EFFECT) <= one.high for one in found])
    assert 0.93 - slack(0.95, FEW) <= covered <= 0.97 + slack(0.95, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [FEWEST_ROUNDS, 12])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_over_thousands_of_runs_95_per_cent_are_between_93_and_97(load, rounds):
    found = estimates(load, EFFECT, MANY, rounds, 1000)
    assert 0.93 <= rate([one.low <= math.log1p(EFFECT) <= one.high for one in found]) <= 0.97


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_without_an_effect_a_difference_is_claimed_no_more_often_than_one_in_twenty(load):
    found = estimates(load, 0.0, FEW, FEWEST_ROUNDS, 300)
    assert rate([one.told for one in found]) <= 0.05 + slack(0.05, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_over_thousands_of_runs_a_false_better_comes_at_its_nominal_rate_at_most(load):
    found = estimates(load, 0.0, MANY, FEWEST_ROUNDS, 1000)
    better = rate([one.told and one.mean > 0 for one in found])
    assert better <= 0.025 + slack(0.025, MANY)
    assert rate([one.told for one in found]) <= 0.05 + slack(0.05, MANY)


def test_as_many_rounds_as_are_said_to_be_enough_see_the_effect_as_often_as_stated():
    lot, spread = Random(17), 0.1
    pilot = [lot.gauss(0, 1) for _ in range(200)]
    scale = spread / math.sqrt(sum(one**2 for one in pilot) / 199)
    rounds = enough([one * scale for one in pilot], EFFECT)
    assert FEWEST_ROUNDS < rounds < 40
    runs = 200
    told = [
        estimate([lot.gauss(EFFECT, spread) for _ in range(rounds)], resamples=300).told for _ in range(runs)
    ]
    assert abs(rate(told) - POWER) <= 0.03 + slack(POWER, runs)


def test_a_difference_needs_so_many_rounds_to_be_told():
    values = [0.1, 0.11, 0.09, 0.1, 0.12, 0.1, 0.1, 0.11]
    assert len(values) == FEWEST_ROUNDS
    assert estimate(values).told
    assert not estimate(values[:-1]).told


def test_more_pairs_make_it_harder_to_claim_anything():
    values = [0.1, 0.11, 0.09, 0.1, 0.12, -0.02, 0.01, 0.11]
    one, six = estimate(values), estimate(values, pairs=6)
    assert one.told and not six.told
    assert six.low < one.low < one.mean < one.high < six.high


def test_eight_rounds_can_tell_a_difference_among_four_ways():
    assert estimate([1.0, 1.1, 1.2, 0.9, 1.0, 1.1, 1.2, 0.9], pairs=6).told


def test_the_same_rounds_give_the_same_answer():
    values = [0.1, -0.1, 0.3, 0.2, 0.0, 0.1, 0.2, -0.3, 0.2, 0.1, 0.2, 0.4, 0.1, 0.2]
    assert estimate(values) == estimate(values)


def test_rounds_that_all_say_the_same_have_no_width_and_no_difference_no_chance():
    assert estimate([0.0] * 8) == Estimate(0.0, 0.0, 0.0, 8, 1.0, pytest.approx(0.05))
    same = estimate([0.5] * 8)
    assert (same.low, same.high, same.told) == (0.5, 0.5, True)


def test_one_round_has_no_interval():
    one = estimate([0.5])
    assert (one.low, one.high, one.chance) == (-math.inf, math.inf, 1.0)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(5, 2.5706), (7, 2.3646), (9, 2.2622), (11, 2.2010), (29, 2.0452)]
)
def test_students_quantiles_are_those_of_the_tables(freedom, quantile):
    assert student(0.975, freedom) == pytest.approx(quantile, rel=2e-3)


def test_a_round_has_every_way_twice_and_reads_the_same_backwards():
    lot, ways = Random(3), ("stock", "home", "dedicated")
    orders = [order(ways, lot) for _ in range(300)]
    assert all(sorted(one) == sorted([*ways, *ways]) and one == one[::-1] for one in orders)
    first = [sum(one[0] == way for one in orders) for way in ways]
    assert min(first) > 70


def test_a_chance_beyond_what_can_be_counted_out_is_drawn():
    values = [0.1 + 0.01 * (number % 3) for number in range(20)]
    assert estimate(values).chance == 1 / (statistics.RESAMPLES + 1)
