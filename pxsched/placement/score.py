"""What a candidate placement is worth: the rules as a tuple, so that the best one is the smallest."""

from typing import NamedTuple

from pxsched.value import Value


class Score(NamedTuple):
    """Smaller is better, the first difference decides. The fields follow the order of the rules.

    bare: nodes among them that have no memory.
    """

    nodes: int
    bare: int
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
        return self[:9]


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
        return self.score[:8] == (1, 0, 0, 0, 0, 1, (0, 0), 0)


class HomeScore(NamedTuple):
    """Smaller is better, the first difference decides.

    crowd: how full of others it is, in steps that a VM nobody has measured takes. What kind of CPU it is, and
    how many of its nodes have no memory (bare), counts after that; the exact contention after these.
    node_load: demand per CPU of its whole nodes, for each has its own way to memory. missing_mib: their free
    memory, negative.
    """

    nodes: int
    distance: int
    short: int
    devices: int
    away: int
    groups: int
    crowd: int
    bare: int
    kinds: tuple[int, int]
    contention: float
    node_load: float
    missing_mib: float
    order: tuple[int, ...]

    @property
    def rules(self) -> tuple[object, ...]:
        """What must be as good for a VM to keep its home; its own demand changes what comes after."""
        return self[:9]


class Home(Value):
    """vcpus: where each vCPU floats, where guest nodes say more than the mask."""

    score: HomeScore
    nodes: tuple[int, ...]
    mask: int
