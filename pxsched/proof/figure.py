"""The figures that are read of each block: what each is called, in what unit, and which way is better.

One of them decides: the first of this list that every block has. The others are shown.
"""

from collections.abc import Iterable
from enum import IntEnum

from pxsched.proof.block import Block
from pxsched.value import Value


class Better(IntEnum):
    MORE = 1
    LESS = -1
    NEITHER = 0


class Figure(Value):
    """name: as in JSON. words: as a person reads it. unit: of a block's value.

    relative: differences are told in per cent of the value, else in the unit. worth: the least difference
    that matters, a part of one or in the unit. decides: whether it may be what a verdict rests on.
    """

    name: str
    words: str
    unit: str
    better: Better
    relative: bool = False
    worth: float = 0.0
    decides: bool = False


OWN, OWN_LESS = "own", "own_less"

FIGURES = (
    Figure(OWN, "the figure of your own", "", Better.MORE, relative=True, worth=0.005, decides=True),
    Figure(OWN_LESS, "the figure of your own (less is better)", "", Better.LESS, relative=True, worth=0.005,
           decides=True),
    Figure("instructions", "instructions per second", "/s", Better.MORE, relative=True, worth=0.005,
           decides=True),
    Figure("waiting", "time spent waiting for a CPU", "%", Better.LESS, worth=0.5, decides=True),
    Figure("running", "CPUs in use", "CPUs", Better.NEITHER),
    Figure("wait_us", "wait for each turn on a CPU", "us", Better.LESS),
    Figure("wakeup_us", "wake-up latency at its place", "us", Better.LESS),
    Figure("preempted", "involuntary switches", "/s", Better.LESS),
    Figure("migrations", "moves between CPUs", "/s", Better.LESS),
    Figure("steal", "steal as the guest sees it", "%", Better.LESS),
    Figure("interrupts", "interrupts on each CPU of its place", "/s", Better.NEITHER),
    Figure("far_memory", "memory on other nodes than its CPUs", "%", Better.LESS),
    Figure("moved_pages", "pages moved between nodes (whole machine)", "/s", Better.LESS),
    Figure("remote_pages", "pages allocated from remote nodes (whole machine)", "/s", Better.LESS),
    Figure("cycles", "cycles per second", "/s", Better.NEITHER, relative=True),
    Figure("per_cycle", "instructions per cycle", "", Better.MORE, relative=True),
    Figure("cache_misses", "last-level cache misses per 1000 instructions", "", Better.LESS, relative=True),
    Figure("remote_loads", "loads from remote nodes per 1000 instructions", "", Better.LESS, relative=True),
)  # fmt: skip
BY_NAME = {figure.name: figure for figure in FIGURES}


def common(blocks: Iterable[Block]) -> list[Figure]:
    """The figures that all these blocks have, and that say something: a ratio takes values above zero."""
    blocks = list(blocks)
    return [
        figure
        for figure in FIGURES
        if blocks
        and all(figure.name in block.figures for block in blocks)
        and not (figure.relative and any(block.figures[figure.name] <= 0 for block in blocks))
    ]


def deciding(figures: Iterable[Figure]) -> Figure | None:
    return next((figure for figure in figures if figure.decides), None)
