"""What a candidate placement is worth: the rules as a tuple, so that the best one is the smallest."""

from typing import NamedTuple

from pxsched.value import Value


class Score(NamedTuple):
    """Smaller is better, the first difference decides. The fields follow the order of the rules."""

    nodes: int
    distance: int
    unevenness: int
    devices: int
    groups: int
    kinds: tuple[int, int]
    joined: int
    torn: int
    room: tuple[float, ...]
    order: tuple[int, ...]

    @property
    def rules(self) -> tuple[object, ...]:
        """What must be as good for a VM to get back what it had."""
        return self[:8]


class Candidate(Value):
    """homes: the vCPUs of each node. split: a guest node had to be divided over host nodes."""

    score: Score
    nodes: tuple[int, ...]
    mask: int
    homes: tuple[tuple[int, ...], ...]
    split: bool = False

    @property
    def ideal(self) -> bool:
        """Whether nothing up to the cores joined with other VMs could be better."""
        return self.score[:7] == (1, 0, 0, 0, 1, (0, 0), 0)


class HomeScore(NamedTuple):
    """Smaller is better, the first difference decides."""

    nodes: int
    distance: int
    short: int
    devices: int
    away: int
    groups: int
    kinds: tuple[int, int]
    contention: float
    order: tuple[int, ...]


class Home(Value):
    score: HomeScore
    nodes: tuple[int, ...]
    mask: int
