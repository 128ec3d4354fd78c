"""The commands. Each area registers its own; this file parses, runs, and turns errors into exit codes.

The timer starts `tick` every ten seconds: on that way only what it needs is loaded.
"""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING

from pxsched.errors import Exit, UserError, nearest
from pxsched.output import Unwritten, complain, journal, open_streams
from pxsched.root import Root
from pxsched.version import VERSION

if TYPE_CHECKING:
    import argparse

    Register = Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None]

# Command -> the module that registers it: only what is asked for is imported.
AREAS = {
    "topology": "pxsched.commands.reading",
    "config": "pxsched.commands.reading",
    "plan": "pxsched.commands.reading",
    "status": "pxsched.commands.status",
    "simulate": "pxsched.commands.placing",
    "defrag": "pxsched.commands.placing",
    "shape": "pxsched.commands.shaping",
    "prove": "pxsched.commands.proving",
    "report": "pxsched.commands.reporting",
    "top": "pxsched.commands.watching",
    "hook": "pxsched.commands.running",
    "tick": "pxsched.commands.running",
    "watch": "pxsched.commands.running",
    "restore": "pxsched.commands.running",
    "enable": "pxsched.optin.commands",
    "disable": "pxsched.optin.commands",
    "list": "pxsched.optin.commands",
    "cluster": "pxsched.cluster.commands",
    "karpenter": "pxsched.karpenter.commands",
    "doctor": "pxsched.doctor.commands",
    "node": "pxsched.setup.commands",
    "sandbox": "pxsched.sandbox.commands",
}


def entry() -> None:
    """What the installed command runs."""
    if sys.argv[1:] != ["tick"]:
        sys.exit(main())
    # A pass is over before it has made any garbage to speak of, and to look for it all the same costs a tenth
    # of its time; so does taking Python apart at its end.
    gc.disable()
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError):  # closed, or nobody reads it any more
            pass
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 done, 1 refused or failed with one line on stderr, 2 usage."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale that lacks a letter is no failure
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words == ["tick"]:
            from pxsched.commands.running import attend

            return attend(_default_root())
        words = _root_first(words)
        command = _command(words)
        top = parser(command if command in AREAS else None)
        if command and command not in AREAS:
            top.error(f"there is no command {command!r}{nearest(command, AREAS)}")
        options = top.parse_args(words)
        return int(options.run(options))
    except UserError as error:
        complain(str(error))
        return Exit.REFUSED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.DONE
    except Unwritten as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        complain(f"cannot write the output: {error.strerror}")
        return Exit.REFUSED
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the entry point: one line, a journal entry, exit 1
        if os.environ.get("PXSCHED_DEBUG"):
            raise
        _report(words, error)
        return Exit.REFUSED


def _report(words: list[str], error: Exception) -> None:
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    line = f"unexpected {type(error).__name__}: {error}"
    if where is not None:
        line += f" [{os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno}]"
    complain(f"{line} (please report it with `pxsched doctor --bundle FILE`)")
    journal(f"{' '.join(words)[:200]}: {line}")


def _root_first(words: list[str]) -> list[str]:
    """The words with `--root DIR`, which may stand anywhere, in front."""
    for place, word in enumerate(words):
        length = 2 if word == "--root" else 1 if word.startswith("--root=") else 0
        if word == "--":
            break
        if length:
            return [*words[place : place + length], *words[:place], *words[place + length :]]
    return words


def _command(words: list[str]) -> str | None:
    """The first word that is no option: only its area is loaded. None for the whole help."""
    skip = False
    for word in words:
        if skip or word.startswith("-"):
            skip = word == "--root"
            continue
        return word
    return None


def parser(command: str | None = None) -> "argparse.ArgumentParser":
    """The parser of one command, or of all."""
    import argparse
    from importlib import import_module

    from pxsched.arguments import new_parser

    top = new_parser(
        prog="pxsched",
        description="Places, pins and balances the QEMU guests of a Proxmox VE node.",
        epilog="examples:\n  pxsched topology\n  pxsched plan 100\n  pxsched status\n  pxsched enable 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--root", type=_root, default=_default_root(), metavar="DIR",
        help="look below DIR instead of / (a captured machine, a sandbox)",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"pxsched {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in dict.fromkeys([AREAS[command]] if command else AREAS.values()):
        register: Register = import_module(module).register
        register(commands)
    return top


def _default_root() -> Root:
    return Root(os.environ.get("PXSCHED_ROOT", "/"))


def _root(text: str) -> Root:
    from argparse import ArgumentTypeError

    if not os.path.isdir(text):
        raise ArgumentTypeError(f"{text!r} is no directory")
    return Root(os.path.abspath(text))
