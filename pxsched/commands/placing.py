"""`simulate` and `defrag`: placement on paper."""

import argparse
import sys

from pxsched.arguments import add, print_json
from pxsched.errors import Exit, UserError
from pxsched.output import progress, say


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(commands, "simulate", run_simulate,
                  "say where VMs would go, from JSON lines of starts and stops",
                  example="pxsched --root captured/ simulate requests.jsonl --json", reads=True)  # fmt: skip
    command.add_argument(
        "requests", metavar="REQUESTS.jsonl", nargs="?", default="-", help="default: standard input"
    )
    command = add(commands, "defrag", run_defrag,
                  "list the moves that would end avoidable crossings of nodes and L3 groups; moves nothing",
                  example="pxsched defrag --dry-run", reads=True)  # fmt: skip
    command.add_argument("--dry-run", action="store_true", help="what it does anyway: only list")


def run_simulate(options: argparse.Namespace) -> int:
    from pxsched.commands import simulate

    try:
        if options.requests == "-":
            lines = sys.stdin.read().splitlines()
        else:
            with open(options.requests, encoding="utf-8", errors="replace") as stream:
                lines = stream.read().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {options.requests!r}: {error.strerror}") from error
    for line in simulate.simulate(options.root, lines):
        say(line)
    return Exit.DONE


def run_defrag(options: argparse.Namespace) -> int:
    from pxsched.commands.simulate import running_vms
    from pxsched.ledger import file as ledgers
    from pxsched.node.sighting import open_node
    from pxsched.node.sightings import Sightings
    from pxsched.placement import defrag

    node = open_node(options.root)
    ledger = ledgers.peek(options.root)
    with progress() as tell:
        tell("looking at the VMs")
        host, running = running_vms(node, ledger, Sightings(options.root).look(ledger))
        tell(f"looking for moves of {len(running)} VMs")
        found = defrag.remedies(host, running)
    if options.json:
        print_json({"remedies": [defrag.as_json(remedy) for remedy in found]})
    else:
        say(*defrag.describe(found))
    return Exit.DONE
