"""What is kept of a VM's proof: how it was made, its blocks, and how it ended."""

from collections.abc import Mapping

from pxsched import stored
from pxsched.guest.identity import Identity
from pxsched.proof.block import Block
from pxsched.proof.verdict import judge
from pxsched.value import NOTHING, Value, plain

MOST_BLOCKS = 4096


class Result(Value):
    """ways: their names, in order; places: what each meant. identity: of the VM that has this number.

    settings: by way, what `[vm.VMID]` says where it is the VM's ordinary one. began_s: since 1970. block_s:
    what was measured of each block, after settle_s that were left out. absent: the figures that could not be
    read, and why. stopped: why it ended early; empty where it did not. kept: the way that went into the
    settings.
    """

    vmid: int
    identity: Identity
    ways: tuple[str, ...]
    places: Mapping[str, str]
    settings: Mapping[str, Mapping[str, object]]
    began_s: float
    block_s: float
    settle_s: float
    blocks: tuple[Block, ...] = ()
    absent: Mapping[str, str] = NOTHING
    stopped: str = ""
    quiet: bool = False
    kept: str = ""

    def to_json(self) -> dict[str, object]:
        return {"schema": 1, **plain(self)}

    @classmethod
    def from_json(cls, value: object) -> "Result":
        """The result again. Raises Damaged."""
        body = stored.table(value)
        settings = stored.table(body.get("settings"), 8)
        return cls(
            stored.integer(body.get("vmid"), 100, 999_999_999),
            _identity(body.get("identity")),
            tuple(stored.text(name, 80) for name in stored.listed(body.get("ways"), 8)),
            _texts(body.get("places")),
            {stored.text(name, 80): _scalars(one) for name, one in settings.items()},
            stored.number(body.get("began_s")),
            stored.number(body.get("block_s")),
            stored.number(body.get("settle_s")),
            tuple(map(Block.from_json, stored.listed(body.get("blocks"), MOST_BLOCKS))),
            _texts(body.get("absent")),
            stored.text(body.get("stopped"), 400),
            stored.truth(body.get("quiet")),
            stored.text(body.get("kept"), 80),
        )


class Worth(Value):
    """What a way made of the figure that decides: a part of one where that is relative, else in its unit.

    told: whether it could be told from noise.
    """

    way: str
    base: str
    figure: str
    difference: float
    told: bool


class Brief(Value):
    """What follows from a proof. sentence: for a person. worth: nothing while too little is known."""

    vmid: int
    identity: Identity
    began_s: float
    sentence: str
    worth: tuple[Worth, ...] = ()

    @classmethod
    def from_json(cls, value: object) -> "Brief":
        """Raises Damaged."""
        body = stored.table(value)
        return cls(
            stored.integer(body.get("vmid"), 100, 999_999_999),
            _identity(body.get("identity")),
            stored.number(body.get("began_s")),
            stored.text(body.get("sentence"), 1000),
            tuple(map(_worth, stored.listed(body.get("worth"), 16))),
        )


def brief(result: Result) -> Brief:
    verdict = judge(result.blocks, result.ways, every=False)
    worth = tuple(
        Worth(one.way, one.base, one.figure.name, one.estimate.mean, one.told)
        for one in verdict.comparisons
        if verdict.best is not None
    )
    return Brief(result.vmid, result.identity, result.began_s, verdict.sentence, worth)


def _worth(value: object) -> Worth:
    body = stored.table(value)
    way, base, figure = (stored.text(body.get(name), 80) for name in ("way", "base", "figure"))
    return Worth(
        way, base, figure, stored.number(body.get("difference"), -1e15), stored.truth(body.get("told"))
    )


def _identity(value: object) -> Identity:
    body = stored.table(value)
    return Identity(*(stored.text(body.get(name), 40) for name in ("uuid", "genid", "ctime_s")))


def _texts(value: object) -> dict[str, str]:
    return {stored.text(name, 80): stored.text(one, 400) for name, one in stored.table(value, 64).items()}


def _scalars(value: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, one in stored.table(value, 64).items():
        if type(one) not in (str, int, float, bool):
            raise stored.Damaged(f"{stored.shown(one)} is no setting")
        found[name] = one
    return found
