"""Prints pxsched(1), the manual page, from the parser of the command line and the declarations of settings.

    python3 docs/make_manual.py > pxsched.1

Needs nothing but Python itself: the Debian package is built with it, and install.sh calls it.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from make_settings import shown

from pxsched.cli import parser
from pxsched.settings.policy import NodeSettings, Policy, Settings, key_of
from pxsched.version import VERSION

HEAD = f"""\
.TH PXSCHED 1 "" "pxsched {VERSION}" "User Commands"
.SH NAME
pxsched \\- places, pins and balances the QEMU guests of a Proxmox VE node
.SH SYNOPSIS
.B pxsched
.RB [ \\-\\-root
.IR DIR ]
.I COMMAND
.RI [ ARGUMENT ...]
.SH DESCRIPTION
A VM that is opted in with
.B pxsched enable
is placed when it starts; a timer keeps it so, and all of it is undone when the VM stops.
"""
FILES = """\
.SH FILES
.TP
.I /etc/default/proxmox\\-scheduler
features and governors
.TP
.IR /etc/pve/pxsched.toml ", " /etc/pxsched/pxsched.toml
settings of the cluster and of this node
.TP
.I /etc/pve/nodes/NODE/pxsched.json
what a node tells the others of itself; written by its timer
.TP
.I /etc/pxsched/hooks.d/
executables that run for every VM that is opted in, with the arguments Proxmox gives a hookscript
.TP
.I /var/lib/pxsched/proofs/
what
.B pxsched prove
has found, a file for each VM
.TP
.I settings.md
recipes, and how the files of settings go together: in
.I /usr/share/doc/pxsched
or, where install.sh put the program, in
.I /opt/pxsched/share/doc/pxsched
.SH ENVIRONMENT
.TP
.B PXSCHED_ROOT
the same as
.B \\-\\-root
.SH EXIT STATUS
0 done, 1 refused or failed with one line on standard error, 2 usage.
"""

Parser = argparse.ArgumentParser


def main() -> None:
    os.environ["COLUMNS"] = "88"  # how wide argparse makes its usage lines
    sys.stdout.write(page())


def page() -> str:
    """The whole page, as man(7) has it."""
    top = parser()
    lines = [HEAD.rstrip("\n"), ".SH OPTIONS", *_options(top), ".SH COMMANDS"]
    for name, command in subcommands(top).items():
        lines += _command(f"pxsched {name}", command)
    lines += [".SH SETTINGS", ".SS [node]", *_settings(NodeSettings)]
    lines += [".SS [defaults], [profile.NAME], [vm.VMID]", *_settings(Policy), FILES]
    return "\n".join(lines)


def subcommands(of: Parser) -> dict[str, Parser]:
    """By name; none where the command takes no other."""
    found = (action.choices for action in of._actions if isinstance(action, argparse._SubParsersAction))
    return next(found, {})


def _command(name: str, command: Parser) -> Iterator[str]:
    yield f".SS {_text(name)}"
    yield _paragraph(command.description or "")
    usage = command.format_usage().removeprefix("usage: ")
    yield f".PP\n.nf\n{_text(usage.rstrip())}\n.fi"
    yield from _options(command)
    if command.epilog:
        yield f".PP\n.nf\n{_text(command.epilog)}\n.fi"
    for sub, parser_of in subcommands(command).items():
        yield from _command(f"{name} {sub}", parser_of)


def _options(command: Parser) -> Iterator[str]:
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction) or not action.help:
            continue
        metavar = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
        value = "" if action.nargs == 0 else str(metavar)
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in action.option_strings)
        help = (action.help or "") % vars(action) if "%" in (action.help or "") else action.help
        yield f".TP\n{names}{' ' if names and value else ''}\\fI{_text(value)}\\fR\n{_text(str(help))}"


def _settings(model: type[Settings]) -> Iterator[str]:
    for name, setting in model.declared.items():
        yield f".TP\n\\fB{_text(key_of(name))}\\fR = {_text(_plain(shown(setting.default)))}"
        yield _text(_plain(f"{setting.help} ({setting.values})"))


def _plain(text: str) -> str:
    return text.replace("`", "")


def _paragraph(text: str) -> str:
    return "\n".join(_text(line) for line in text.splitlines() if line.strip())


def _text(text: str) -> str:
    """What roff takes for itself is quoted: backslashes, hyphens, and what begins a line."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
