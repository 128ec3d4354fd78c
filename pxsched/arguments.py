"""What the commands of all areas have in common: how one is added, its VMIDs, its JSON."""

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from pxsched.errors import UserError
from pxsched.output import printable, say_json
from pxsched.replacing import replace_file

if TYPE_CHECKING:
    import argparse


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: "Callable[[argparse.Namespace], int]",
    help: str,
    *,
    example: str,
    description: str = "",
    reads: bool = False,
) -> "argparse.ArgumentParser":
    """Adds one command. example: one or more lines. description: where more is to be said than the help does.
    reads: it takes --json.
    """
    from argparse import RawDescriptionHelpFormatter

    command = commands.add_parser(
        name,
        help=help,
        description=description or help[:1].upper() + help[1:] + ".",
        epilog="\n  ".join(["example:" if "\n" not in example else "examples:", *example.splitlines()]),
        formatter_class=RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    if reads:
        command.add_argument("--json", action="store_true", help="print JSON")
    return command


def vmid(text: str) -> int:
    """An argument that is a VMID."""
    from argparse import ArgumentTypeError

    from pxsched.guest.process import VMID

    if not VMID.fullmatch(text):
        raise ArgumentTypeError(f"{text!r} is no VMID")
    return int(text)


def print_json(document: dict[str, Any]) -> None:
    """One JSON object, with the schema every one of ours has."""
    say_json({"schema": 1, **document})


def write_file(path: str, content: str) -> None:
    """Writes what an option such as --svg FILE names: a file is replaced as a whole and is readable by all, a
    device or a pipe, such as /dev/stdout, is written to. Raises UserError.
    """
    data, real = content.encode(), os.path.realpath(path)
    try:
        if os.path.exists(real) and not os.path.isfile(real):
            with open(real, "wb") as stream:
                stream.write(data)
        else:
            replace_file(real, data, mode=0o644)
    except OSError as error:
        raise UserError(f"cannot write {path!r}: {error.strerror}") from error


def seconds(low: float, high: float) -> Callable[[str], float]:
    """An argument that is a time in these bounds."""

    def parse(text: str) -> float:
        from argparse import ArgumentTypeError

        try:
            value_s = float(text)
        except ValueError:
            value_s = math.nan
        if not low <= value_s <= high:
            raise ArgumentTypeError(f"{text!r} is not from {low:g} to {high:g} seconds")
        return value_s

    return parse


def new_parser(**said: Any) -> "argparse.ArgumentParser":
    """A parser whose errors repeat of the typed words what is printable. said: as argparse's."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            super().error(printable(message))

    return Parser(**said)
