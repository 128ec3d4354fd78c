"""What can be told from noise: the difference between two ways, its confidence interval, and its chance.

Nothing is assumed about how a figure is distributed. What is counted are rounds, as blocks of one round have
their neighbourhood in common: each gives one difference, of the mean of its two blocks in one way and of its
two in the other.

The interval is the bootstrap's: rounds are drawn again and again from those that were seen. That of few is
too narrow, so it is taken wider as far as Student's t is wider than the normal distribution (T. Hesterberg,
What Teachers Should Know About the Bootstrap, 2015, section 5.3). Bursts leave even that too narrow, so it
reaches at least as far as the means of all choices of rounds do (J. A. Hartigan, Using Subsample Values as
Typical Values, 1969), which is what Fisher's test cannot tell from the truth.

The chance is that of R. A. Fisher's randomization test: the order within a round was drawn by lot, so where a
way makes no difference each round's difference might as well have had the other sign. That holds whatever the
load did meanwhile.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import compress, product
from operator import itemgetter, mul
from random import Random
from statistics import NormalDist, stdev

from pxsched.value import Value

# From so many rounds on the interval holds what it promises, and a chance can be small enough.
FEWEST_ROUNDS = 8
CONFIDENCE = 0.95
# How sure one wants to be of seeing a difference that is there.
POWER = 0.8
RESAMPLES = 2000
# Up to so many rounds all signs are tried, 4096 of them; beyond, so many are drawn.
_ALL_SIGNS = 12
_SEED = 20260217  # the same rounds give the same interval

Draw = Callable[[Sequence[float]], tuple[float, ...]]


class Estimate(Value):
    """The mean difference over some rounds. low, high: its confidence interval. chance: how often rounds
    without any difference would show one as large, 1 where nothing can be said. sure: how small it had to be.
    """

    mean: float
    low: float
    high: float
    rounds: int
    chance: float
    sure: float

    @property
    def told(self) -> bool:
        """Whether the difference could be told from noise."""
        return self.rounds >= FEWEST_ROUNDS and not self.low <= 0 <= self.high


def estimate(differences: Sequence[float], *, pairs: int = 1, resamples: int = RESAMPLES) -> Estimate:
    """What rounds say together. differences: one of each round, at least one. pairs: how many pairs of ways
    are compared at once, so that all of them together are wrong no more often than one would be (Bonferroni).
    """
    rounds = len(differences)
    mean = math.fsum(differences) / rounds
    sure = (1 - CONFIDENCE) / pairs
    if rounds < 2:
        return Estimate(mean, -math.inf, math.inf, rounds, 1.0, sure)
    lows, highs = zip(_interval(differences, sure, resamples), _typical(differences, sure), strict=True)
    return Estimate(mean, min(lows), max(highs), rounds, _chance(differences), sure)


def _interval(differences: Sequence[float], sure: float, resamples: int) -> tuple[float, float]:
    rounds = len(differences)
    means = sorted(sum(draw(differences)) / rounds for draw in _draws(rounds, resamples))
    tail = NormalDist().cdf(-math.sqrt(rounds / (rounds - 1)) * student(1 - sure / 2, rounds - 1))
    return _quantile(means, tail), _quantile(means, 1 - tail)


def _typical(differences: Sequence[float], sure: float) -> tuple[float, float]:
    """The range that all but `sure` of the means of choices of rounds leave to the truth."""
    rounds = len(differences)
    choices = _choices(rounds)
    means = sorted(sum(compress(differences, choice)) / sum(choice) for choice in choices)
    outside = int(sure / 2 * (len(choices) + 1))
    return (means[outside - 1], means[-outside]) if outside else (-math.inf, math.inf)


@lru_cache(maxsize=8)
def _choices(rounds: int) -> tuple[tuple[int, ...], ...]:
    """All choices of at least one round; of many rounds so many that are drawn."""
    if rounds <= _ALL_SIGNS:
        return tuple(product((0, 1), repeat=rounds))[1:]
    lot = Random(_SEED)
    drawn = (tuple(lot.choices((0, 1), k=rounds)) for _ in range(RESAMPLES))
    return tuple(choice for choice in drawn if any(choice))


@lru_cache(maxsize=8)
def _draws(rounds: int, count: int) -> tuple[Draw, ...]:
    lot = Random(_SEED)
    return tuple(itemgetter(*lot.choices(range(rounds), k=rounds)) for _ in range(count))


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = min(max(share * (len(ordered) + 1) - 1, 0.0), len(ordered) - 1.0)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _chance(differences: Sequence[float]) -> float:
    """How often the signs alone, drawn by lot, give a sum as far from zero as the one that was seen."""
    seen = abs(math.fsum(differences)) * (1 - 1e-12)
    if not any(differences):
        return 1.0
    if len(differences) <= _ALL_SIGNS:
        sums = _sums(differences)
        return sum(abs(total) >= seen for total in sums) / len(sums)
    signs = _signs(len(differences))
    sizes = [float(one) for one in differences]
    hits: int = sum(abs(sum(map(mul, sizes, row))) >= seen for row in signs)
    return (hits + 1) / (len(signs) + 1)


def _sums(differences: Sequence[float]) -> list[float]:
    """The sums for all choices of signs but the first one's, which only mirrors them."""
    sums = [float(differences[0])]
    for one in differences[1:]:
        sums = [total + sign * one for total in sums for sign in (1, -1)]
    return sums


@lru_cache(maxsize=8)
def _signs(rounds: int) -> tuple[tuple[float, ...], ...]:
    lot = Random(_SEED)
    return tuple(tuple(lot.choices((-1.0, 1.0), k=rounds)) for _ in range(RESAMPLES))


def enough(differences: Sequence[float], effect: float, *, pairs: int = 1) -> int:
    """How many rounds it takes, by the spread of these, to see an effect of that size four times out of five
    (`POWER`); never fewer than anything can be said from.
    """
    if len(differences) < 2 or not effect:
        return FEWEST_ROUNDS
    sure = (1 - CONFIDENCE) / pairs
    rounds = FEWEST_ROUNDS
    for _ in range(8):  # Student's t depends on the answer
        wide = student(1 - sure / 2, rounds - 1) + NormalDist().inv_cdf(POWER)
        needed = max(FEWEST_ROUNDS, math.ceil((wide * stdev(differences) / effect) ** 2))
        if needed == rounds:
            break
        rounds = min(needed, 1 << 20)
    return rounds


def student(share: float, freedom: int) -> float:
    """The quantile of Student's t, from that of the normal distribution (Abramowitz and Stegun, 26.7.5); to
    1 % from five degrees of freedom on.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / (4 * freedom),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4),
    )
    return math.fsum((z, *terms))
