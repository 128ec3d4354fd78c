"""Prints what completes `pxsched` in a shell, from the parser of the command line.

    python3 docs/make_completions.py bash > pxsched
    python3 docs/make_completions.py zsh > _pxsched

Both complete commands, options, what options choose among, VMIDs of this node, and files where one is wanted.
Needs nothing but Python itself: the Debian package is built with it, and install.sh calls it.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from make_manual import subcommands

from pxsched.cli import parser

# Where the VMs of this node are, for those who may look.
VMS = "/etc/pve/qemu-server"


class Value(NamedTuple):
    """What stands for a word: one of `choices`, a VMID, a directory or file, or what nobody can complete."""

    name: str = ""
    choices: tuple[str, ...] = ()
    vmid: bool = False
    file: bool = False
    directory: bool = False


class Option(NamedTuple):
    names: tuple[str, ...]
    help: str
    value: Value | None


class Command(NamedTuple):
    """path: its words, none for the program itself. subcommands: with their help."""

    path: tuple[str, ...]
    options: tuple[Option, ...]
    values: tuple[Value, ...]
    many: bool
    subcommands: dict[str, str]


def main() -> None:
    sys.stdout.write({"bash": bash, "zsh": zsh}[sys.argv[1]](list(commands(parser()))))


def commands(of: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[Command]:
    """The command and all below it."""
    below = subcommands(of)
    options, values, many, helps = [], [], False, {}
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: _help(choice) for choice in action._choices_actions}
        elif action.option_strings:
            options.append(Option((*action.option_strings,), _help(action), _value(action)))
        else:
            values.append(_value(action) or Value())
            many = many or action.nargs in ("*", "+")
    yield Command(path, tuple(options), tuple(values), many, {name: helps.get(name, "") for name in below})
    for name, command in below.items():
        yield from commands(command, (*path, name))


def _help(action: argparse.Action) -> str:
    return (action.help or "") % vars(action) if "%" in (action.help or "") else action.help or ""


def _value(action: argparse.Action) -> Value | None:
    if action.nargs == 0:
        return None
    name = str(action.metavar or action.dest)
    return Value(
        name.replace(":", " "),
        tuple(map(str, action.choices or ())),
        vmid="VMID" in name,
        file="FILE" in name or "." in name,
        directory=name == "DIR",
    )


BASH = """\
# bash completion for pxsched, made from its parser

_pxsched_vmids() {{
    local file
    for file in {vms}/*.conf; do
        file=${{file##*/}}
        [[ $file == "*.conf" ]] || echo "${{file%.conf}}"
    done
}}

_pxsched() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} path='' i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$path ${{COMP_WORDS[i]}}" in
            {takes_value}) ((++i)) ;;
            {is_command}) path="$path ${{COMP_WORDS[i]}}" ;;
        esac
    done
    COMPREPLY=()
    if ((i == COMP_CWORD)); then
        case "$path" in
{words}
        esac
    else
        case "$path ${{COMP_WORDS[COMP_CWORD-1]}}" in
{option_values}
        esac
    fi
}}
complete -F _pxsched pxsched
"""


def bash(all_commands: list[Command]) -> str:
    """The completion file for bash: which words may come next depends on the command so far."""
    taking = [
        (f'"{_joined(command)} {name}"' if command.path else f'*" {name}"', option.value)
        for command in all_commands
        for option in command.options
        if option.value
        for name in option.names
    ]
    typed = [f'"{_joined(command)} {name}"' for command in all_commands for name in command.subcommands]
    words = []
    for command in all_commands:
        own = [name for option in command.options for name in option.names]
        if any(value.vmid for value in command.values):
            own.append("$(_pxsched_vmids)")
        own += [choice for value in command.values for choice in value.choices]
        line = f'COMPREPLY=($(compgen -W "{" ".join([*command.subcommands, *own])}" -- "$cur"))'
        if any(value.file for value in command.values):
            line += '; [[ $cur == -* ]] || COMPREPLY+=($(compgen -f -- "$cur"))'
        words.append(f'            "{_joined(command)}") {line} ;;')
    return BASH.format(
        vms=VMS,
        takes_value=" | ".join(words for words, _ in taking),
        is_command=" | ".join(typed),
        words="\n".join(words),
        option_values="\n".join(
            f"            {words}) {line} ;;" for words, value in taking if (line := _bash_value(value))
        ),
    )


def _joined(command: Command) -> str:
    return "".join(f" {word}" for word in command.path)


def _bash_value(value: Value) -> str:
    for wanted, flags in (
        (value.choices, f'-W "{" ".join(value.choices)}"'),
        (value.vmid, '-W "$(_pxsched_vmids)"'),
        (value.directory, "-d"),
        (value.file, "-f"),
    ):
        if wanted:
            return f'COMPREPLY=($(compgen {flags} -- "$cur"))'
    return ""


ZSH = """\
#compdef pxsched
# made from the parser of pxsched

_pxsched_vmids() {{
    local -a found
    found=({vms}/<->.conf(N:t:r))
    (( $#found )) && compadd -- $found
}}

_pxsched_vmids_or_files() {{
    _alternative 'vmids:VMID:_pxsched_vmids' 'files:file:_files'
}}

{functions}

_pxsched "$@"
"""


def zsh(all_commands: list[Command]) -> str:
    """The completion file for zsh: a function a command."""
    return ZSH.format(vms=VMS, functions="\n\n".join(map(_zsh_function, all_commands)))


def _zsh_function(command: Command) -> str:
    name = "_".join(("_pxsched", *command.path))
    specs = [_zsh_option(option) for option in command.options]
    if not command.subcommands:
        for number, value in enumerate(command.values, 1):
            place = "*" if command.many and value is command.values[-1] else str(number)
            specs.append(f"'{place}:{_zsh_text(value.name)}:{_zsh_action(value)}'")
        return f"{name}() {{\n    _arguments {' '.join(_wrapped(specs))}\n}}"
    listed = _wrapped(f"'{sub}:{_zsh_text(help)}'" for sub, help in command.subcommands.items())
    return f"""\
{name}() {{
    local curcontext=$curcontext state line
    local -a subcommands
    typeset -A opt_args
    _arguments -C {" ".join(_wrapped([*specs, "'1:command:->command'", "'*::argument:->argument'"]))}
    case $state in
        command)
            subcommands=({" ".join(listed)})
            _describe command subcommands ;;
        argument)
            (( $+functions[{name}_$line[1]] )) && {name}_$line[1] ;;
    esac
}}"""


def _wrapped(specs: Iterator[str] | list[str]) -> Iterator[str]:
    return (f"\\\n        {spec}" for spec in specs)


def _zsh_option(option: Option) -> str:
    end = f":{_zsh_text(option.value.name)}:{_zsh_action(option.value)}" if option.value else ""
    help = f"[{_zsh_text(option.help)}]"
    if len(option.names) == 1:
        return f"'{option.names[0]}{help}{end}'"
    return f"'({' '.join(option.names)})'{{{','.join(option.names)}}}'{help}{end}'"


def _zsh_action(value: Value) -> str:
    if value.choices:
        return f"({' '.join(value.choices)})"
    if value.vmid and value.file:
        return "_pxsched_vmids_or_files"
    if value.vmid:
        return "_pxsched_vmids"
    if value.directory:
        return "_files -/"
    return "_files" if value.file else " "


def _zsh_text(text: str) -> str:
    """As it may stand in a specification in single quotes."""
    return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''")


if __name__ == "__main__":
    main()
