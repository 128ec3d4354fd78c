"""`simulate` and `defrag`: placement on paper."""

import argparse
import sys

from pxsched.cli import add
from pxsched.errors import Exit, UserError


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(commands, "simulate", run_simulate,
                  "say where VMs would go, from JSON lines of starts and stops",
                  example="pxsched --root captured/ simulate requests.jsonl --json", reads=True)  # fmt: skip
    command.add_argument("requests", metavar="REQUESTS.jsonl", help="a file; - for standard input")


def run_simulate(options: argparse.Namespace) -> int:
    from pxsched import simulate

    try:
        if options.requests == "-":
            lines = sys.stdin.read().splitlines()
        else:
            with open(options.requests, encoding="utf-8", errors="replace") as stream:
                lines = stream.read().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {options.requests!r}: {error.strerror}") from error
    for line in simulate.simulate(options.root, lines):
        print(line)
    return Exit.DONE
