"""Made-up series: a load that drifts, bursts and wanders, and ways whose effect on it is known."""

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random

from pxsched.proof.block import Block, order

Load = Callable[[Random, int], list[float]]


def steady(lot: Random, blocks: int) -> list[float]:
    return [math.exp(lot.gauss(0, 0.05)) for _ in range(blocks)]


def drifting(lot: Random, blocks: int) -> list[float]:
    """Three times as much in the end as in the beginning, or a third."""
    slope = lot.choice((1, -1)) * math.log(3) / blocks
    return [math.exp(slope * number + lot.gauss(0, 0.05)) for number in range(blocks)]


def bursting(lot: Random, blocks: int) -> list[float]:
    """One block in eight has four times the load, and some of them come together."""
    load, burst = [], 0
    for _ in range(blocks):
        burst = max(0, burst - 1) or (lot.choice((1, 1, 3)) if lot.random() < 0.08 else 0)
        load.append((4 if burst else 1) * math.exp(lot.gauss(0, 0.05)))
    return load


def wandering(lot: Random, blocks: int) -> list[float]:
    load, level = [], 0.0
    for _ in range(blocks):
        level += lot.gauss(0, 0.2)
        load.append(math.exp(level))
    return load


def beating(lot: Random, blocks: int) -> list[float]:
    """Something that comes every fourth block, as a job in the guest might: the length of a round."""
    start = lot.randrange(4)
    beat = [2 if (number + start) % 4 == 0 else 1 for number in range(blocks)]
    return [one * math.exp(lot.gauss(0, 0.05)) for one in beat]


LOADS: Mapping[str, Load] = {
    load.__name__: load for load in (steady, drifting, bursting, wandering, beating)
}


def run(
    lot: Random, load: Load, effects: Mapping[str, float], rounds: int, *, figure: str = "instructions"
) -> list[Block]:
    """A proof of the ways of `effects`, each of which does so many times the work of the load."""
    ways: Sequence[str] = list(effects)
    plan = [(number, way) for number in range(rounds) for way in order(ways, lot)]
    levels = load(lot, len(plan))
    return [
        Block(number, way, 0.0, 1.0, {figure: 1e9 * level * effects[way]})
        for (number, way), level in zip(plan, levels, strict=True)
    ]
