"""One block of a proof: a stretch of time in which a VM ran in one way, and what was read of it meanwhile.

Blocks come in rounds. A round has every way twice, in an order drawn by lot and then backwards (A B B A), so
that a load that grows or shrinks steadily weighs on all ways alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from random import Random

from pxsched import stored
from pxsched.value import NOTHING, Value

MOST_FIGURES = 64


class Block(Value):
    """round: from 0. way: its name. begun_s: since 1970; lasted_s: the settling time before it is not part of
    it. figures: by name, those that could be read.
    """

    round: int
    way: str
    begun_s: float
    lasted_s: float
    figures: Mapping[str, float] = NOTHING

    @classmethod
    def from_json(cls, value: object) -> "Block":
        """The block again, out of what `plain` made of it. Raises Damaged."""
        body = stored.table(value)
        figures = stored.table(body.get("figures"), MOST_FIGURES)
        return cls(
            stored.integer(body.get("round"), 0, 1 << 20),
            stored.text(body.get("way"), 80),
            stored.number(body.get("begun_s")),
            stored.number(body.get("lasted_s")),
            {stored.text(name, 40): stored.number(one, -1e15) for name, one in figures.items()},
        )


def order(ways: Sequence[str], lot: Random) -> tuple[str, ...]:
    """The ways of one round, in the order of their blocks."""
    drawn = lot.sample(ways, len(ways))
    return (*drawn, *reversed(drawn))


def whole_rounds(blocks: Iterable[Block], ways: Sequence[str]) -> list[list[Block]]:
    """The blocks of the rounds that have every way twice; one that was broken off says nothing."""
    rounds: dict[int, list[Block]] = {}
    for block in blocks:
        rounds.setdefault(block.round, []).append(block)
    wanted = sorted([*ways, *ways])
    return [found for found in rounds.values() if sorted(block.way for block in found) == wanted]
