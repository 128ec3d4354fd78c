"""Metrics for node_exporter, which reads every *.prom in its textfile directory (its README)."""

from pxsched.errors import UserError
from pxsched.host import topology
from pxsched.ledger import file as ledgers
from pxsched.monitor import families, passes, refusals, runs
from pxsched.node import exclusive, proofs, remembered
from pxsched.replacing import replace_file
from pxsched.root import Root

NAME = "pxsched.prom"


def text(root: Root) -> str:
    """The node's metrics now. Raises UserError where the library is missing, or counts cannot be kept."""
    ledger = ledgers.peek(root)
    last = remembered.last(root)
    return families.render(
        families.Facts(
            ledger.claims.values(),
            ledger.journal,
            exclusive.check(root, ledger, topology.isolated(root)),
            passes.load(root),
            runs.count(root, ledger.claims.values()),
            {vmid: refused.times for vmid, refused in refusals.load(root).items()},
            {vmid: standing[3] for vmid, standing in last.standings.items()},
            last.balloons_mib,
            proofs.briefs(root),
        )
    )


def publish(root: Root, directory: str) -> None:
    """What the timer does after a pass. The file is replaced as a whole, as a collector may read at any
    moment, and is readable by everybody. Raises UserError.
    """
    file = root.path(path(directory))
    try:
        replace_file(file, text(root).encode(), mode=0o644)
    except OSError as error:
        raise UserError(f"cannot write {file!r}: {error.strerror}") from error


def path(directory: str) -> str:
    """The file in that directory, both below the root."""
    return f"{directory.strip('/')}/{NAME}"
