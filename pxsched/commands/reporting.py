"""`report`: the node as a picture or as metrics."""

import argparse

from pxsched.arguments import add, write_file
from pxsched.errors import Exit
from pxsched.monitor import textfile
from pxsched.output import say
from pxsched.root import Root


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(commands, "report", run_report, "write the node's state: a picture, a page, metrics",
                  example="pxsched report --svg node.svg")  # fmt: skip
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--svg", metavar="FILE", help="a picture of the machine and who has what")
    what.add_argument("--html", metavar="FILE", help="the picture and a table that sorts, as one page")
    what.add_argument(
        "--prometheus", metavar="FILE", help="metrics for a textfile collector; - for the screen"
    )


def run_report(options: argparse.Namespace) -> int:
    root = options.root
    if options.svg:
        from pxsched.host import topology
        from pxsched.ledger import file as ledgers
        from pxsched.report import svg

        write_file(options.svg, svg.draw(topology.read(root), ledgers.peek(root).claims.values()))
    elif options.html:
        write_file(options.html, _page(root))
    elif options.prometheus == "-":
        say(*textfile.text(root).splitlines())
    else:
        write_file(options.prometheus, textfile.text(root))
    return Exit.DONE


def _page(root: Root) -> str:
    """Raises UserError when the topology cannot be read."""
    import time

    from pxsched.host import topology
    from pxsched.ledger import file as ledgers
    from pxsched.node import sighting
    from pxsched.report import overview, page, svg

    ledger = ledgers.peek(root)
    at = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return page.draw(
        f"{sighting.name_of(root)}, {at}",
        svg.draw(topology.read(root), ledger.claims.values()),
        overview.of_node(root, ledger),
    )
