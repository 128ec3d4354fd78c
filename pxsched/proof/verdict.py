"""What a proof says: the difference of each figure between the ways, which way to keep, and how sure that is.

The ways stand in the order in which they would be preferred if all did the same: what needs least first. One
takes another's place only by a difference that could be told from noise and is worth something.
"""

import math
from collections.abc import Sequence
from itertools import combinations

from pxsched.proof import figure as figures
from pxsched.proof import statistics
from pxsched.proof.block import Block, whole_rounds
from pxsched.proof.figure import Better, Figure
from pxsched.proof.statistics import FEWEST_ROUNDS, Estimate
from pxsched.value import Value

# What an operating system uses that only waits; nothing can be told from that.
IDLE_CPUS = 0.01


class Comparison(Value):
    """One figure in `way`, against `base`. Both values are means over the blocks; the estimate is a part of
    the value where the figure is relative, else in its unit.
    """

    figure: Figure
    way: str
    base: str
    value: float
    base_value: float
    estimate: Estimate

    @property
    def told(self) -> bool:
        return self.estimate.told

    @property
    def better(self) -> bool:
        """Better beyond the interval, and by something that matters."""
        return self.told and self.estimate.mean * self.figure.better > self.figure.worth

    @property
    def worse(self) -> bool:
        return self.told and -self.estimate.mean * self.figure.better > self.figure.worth


class Verdict(Value):
    """rounds: whole ones. comparisons: of each pair of ways, each figure. deciding: the figure that counts,
    None where none was read. best: the way to keep, None while too little is known. sentence: for a person.
    """

    ways: tuple[str, ...]
    rounds: int
    comparisons: tuple[Comparison, ...]
    deciding: Figure | None
    best: str | None
    sentence: str


def judge(blocks: Sequence[Block], ways: Sequence[str], *, every: bool = True) -> Verdict:
    """What these blocks say of these ways, two or more. every: compare all figures, not only the one that
    decides, which takes many times as long.
    """
    rounds = whole_rounds(blocks, ways)
    inside = [block for found in rounds for block in found]
    known = figures.common(inside)
    deciding = figures.deciding(known)
    idle = deciding is not None and deciding.name not in (figures.OWN, figures.OWN_LESS) and _is_idle(inside)
    if not every:
        known = [] if deciding is None else [deciding]
    pairs = list(combinations(ways, 2))
    comparisons = tuple(
        _compare(figure, way, base, rounds, len(pairs)) for base, way in pairs for figure in known
    )
    if not rounds or deciding is None:
        said = _too_few(0, len(ways)) if not rounds else "no figure was read that says which way is better"
        return Verdict(tuple(ways), len(rounds), comparisons, deciding, None, said)
    if len(rounds) < FEWEST_ROUNDS:
        return Verdict(
            tuple(ways), len(rounds), comparisons, deciding, None, _too_few(len(rounds), len(ways))
        )
    if idle:
        said = "it did next to nothing meanwhile; what a placement is worth shows when it works"
        return Verdict(tuple(ways), len(rounds), comparisons, deciding, None, said)
    best, parts = _choose(deciding, ways, {(one.way, one.base): one for one in comparisons
                                           if one.figure == deciding}, rounds)  # fmt: skip
    return Verdict(tuple(ways), len(rounds), comparisons, deciding, best, "; ".join(parts))


def _is_idle(blocks: Sequence[Block]) -> bool:
    used = [block.figures["running"] for block in blocks if "running" in block.figures]
    return bool(used) and math.fsum(used) / len(used) < IDLE_CPUS


def _compare(
    figure: Figure, way: str, base: str, rounds: Sequence[Sequence[Block]], pairs: int
) -> Comparison:
    blocks = [block for found in rounds for block in found]
    found = statistics.estimate(differences(figure, way, base, rounds), pairs=pairs)
    if figure.relative:
        mean, low, high = (_part(one) for one in (found.mean, found.low, found.high))
        found = Estimate(mean, low, high, found.rounds, found.chance, found.sure)
    return Comparison(figure, way, base, _mean(figure, way, blocks), _mean(figure, base, blocks), found)


def differences(figure: Figure, way: str, base: str, rounds: Sequence[Sequence[Block]]) -> list[float]:
    """Of each round: how much more one way had than the other; of relative figures the logarithm of it."""
    return [
        _level(figure, [block for block in found if block.way == way])
        - _level(figure, [block for block in found if block.way == base])
        for found in rounds
    ]


def _level(figure: Figure, blocks: Sequence[Block]) -> float:
    values = [block.figures[figure.name] for block in blocks]
    return math.fsum(map(math.log, values) if figure.relative else values) / len(values)


def _mean(figure: Figure, way: str, blocks: Sequence[Block]) -> float:
    values = [block.figures[figure.name] for block in blocks if block.way == way]
    return math.fsum(values) / len(values)


def _part(logarithm: float) -> float:
    return logarithm if math.isinf(logarithm) else math.expm1(min(logarithm, 700.0))


def _too_few(rounds: int, ways: int) -> str:
    missing = (FEWEST_ROUNDS - rounds) * 2 * ways
    return f"nothing can be said yet: it takes {missing} more blocks ({FEWEST_ROUNDS - rounds} rounds)"


def _choose(
    figure: Figure,
    ways: Sequence[str],
    found: dict[tuple[str, str], Comparison],
    rounds: Sequence[Sequence[Block]],
) -> tuple[str, list[str]]:
    best, parts = ways[0], []
    for way in ways[1:]:
        one = found[way, best]
        if one.better:
            verb = "is worth" if figure.better is Better.MORE else "saves"
            parts.append(f"{way} {verb} {amount(one)} over {best}")
            best = way
        elif one.worse:
            verb = "costs" if figure.better is Better.MORE else "adds"
            parts.append(f"{way} {verb} {amount(one)} over {best}: leave it")
        else:
            parts.append(f"{way} is no better than {best}: leave it{_seen(one, rounds, found)}")
    return best, parts


def _seen(
    one: Comparison, rounds: Sequence[Sequence[Block]], found: dict[tuple[str, str], Comparison]
) -> str:
    """What would have shown, and how many blocks it takes to see half of that."""
    values = differences(one.figure, one.way, one.base, rounds)
    half = max(abs(one.estimate.high - one.estimate.mean), abs(one.estimate.mean - one.estimate.low))
    if half <= one.figure.worth:
        return ""
    least = math.log1p(half / 2) if one.figure.relative else half / 2
    more = statistics.enough(values, least, pairs=len(found)) - len(rounds)
    if more <= 0:
        return f" (less than {_size(one.figure, half)} would not have shown)"
    blocks = more * 2 * len({block.way for block in rounds[0]})
    return (
        f" (less than {_size(one.figure, half)} would not have shown; {blocks} more blocks see half of that)"
    )


def amount(one: Comparison) -> str:
    """`7 % (4 to 10) of instructions per second`, without a sign."""
    ends = sorted((abs(one.estimate.low), abs(one.estimate.high)))
    scale = 100 if one.figure.relative else 1
    low, high = (f"{end * scale:.3g}" for end in ends)
    return f"{_size(one.figure, abs(one.estimate.mean))} ({low} to {high}) of {one.figure.words}"


def _size(figure: Figure, value: float) -> str:
    if figure.relative:
        return f"{value * 100:.3g} %"
    return f"{value:.3g} {'points' if figure.unit == '%' else figure.unit}".rstrip()


def favours(one: Comparison) -> str:
    """One word for a table."""
    if not one.told or one.figure.better is Better.NEITHER:
        return "" if one.told else "noise"
    return "better" if one.estimate.mean * one.figure.better > 0 else "worse"
