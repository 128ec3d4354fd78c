"""How the time of a proof is cut into rounds and blocks."""

from pxsched.errors import UserError
from pxsched.proof.statistics import FEWEST_ROUNDS
from pxsched.value import Value

# What a block lasts where there is time enough, and the least that can be asked for.
WHOLE_S, SHORTEST_S = 15.0, 0.5
# The part of a block that is left out: caches fill, threads find their CPUs.
SETTLING, MOST_SETTLE_S = 0.2, 5.0
MOST_ROUNDS = 200


class Schedule(Value):
    """block_s: what is measured of a block, after settle_s."""

    rounds: int
    ways: int
    settle_s: float
    block_s: float

    @property
    def blocks(self) -> int:
        return self.rounds * self.ways * 2

    @property
    def lasts_s(self) -> float:
        return self.blocks * (self.settle_s + self.block_s)


def schedule(lasts_s: float, ways: int) -> Schedule:
    """As many rounds as fit with ordinary blocks, but enough to say something. Raises UserError where blocks
    would be too short for that.
    """
    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(lasts_s / (2 * ways * WHOLE_S))))
    whole_s = lasts_s / (2 * ways * rounds)
    if whole_s < SHORTEST_S:
        least_s = FEWEST_ROUNDS * 2 * ways * SHORTEST_S
        raise UserError(f"{lasts_s:g} s are too short for {ways} ways", hint=f"at least {least_s:g} s")
    settle_s = min(MOST_SETTLE_S, whole_s * SETTLING)
    return Schedule(rounds, ways, settle_s, whole_s - settle_s)
