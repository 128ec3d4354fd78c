"""`report`: the node as a picture or as metrics."""

import argparse

from pxsched.arguments import add
from pxsched.errors import Exit
from pxsched.monitor import textfile
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
    if options.svg:
        from pxsched.host import topology
        from pxsched.ledger import file as ledgers
        from pxsched.report import svg

        textfile.write(options.svg, svg.draw(topology.read(root), ledgers.peek(root).claims.values()))
    elif options.prometheus == "-":
        say(*textfile.text(root).splitlines())
    else:
        textfile.write(options.prometheus, textfile.text(root))
    return Exit.DONE
