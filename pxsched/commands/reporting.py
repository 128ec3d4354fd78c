"""`report`: the node as a picture or as metrics."""

import argparse
import os

from pxsched.arguments import add
from pxsched.errors import Exit, UserError
from pxsched.host import topology
from pxsched.ledger import file as ledgers
from pxsched.node import planning
from pxsched.output import say


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(commands, "report", run_report, "write the node's state as a picture or for Prometheus",
                  example="pxsched report --svg node.svg")  # fmt: skip
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--svg", metavar="FILE", help="a picture of the machine and who has what")
    what.add_argument(
        "--prometheus", metavar="FILE", help="metrics for a textfile collector; - for the screen"
    )


def run_report(options: argparse.Namespace) -> int:
    root = options.root
    ledger = ledgers.peek(root)
    if options.svg:
        from pxsched.report import svg

        _write(options.svg, svg.draw(topology.read(root), ledger.claims.values()))
    else:
        from pxsched.node import exclusive
        from pxsched.report import prometheus

        metrics = prometheus.render(
            ledger.claims.values(),
            ledger.journal,
            lambda claim: planning.run_delay(root, claim),
            exclusive.check(root, ledger, topology.isolated(root)),
        )
        _write(options.prometheus, metrics)
    return Exit.DONE


def _write(path: str, content: str) -> None:
    """Whole or not at all: a collector may read at any moment."""
    if path == "-":
        say(*content.splitlines())
        return
    temporary = f"{path}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path!r}: {error.strerror}") from error
