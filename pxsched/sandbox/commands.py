"""`pxsched sandbox`: the stand-in node on the command line."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from pxsched.arguments import new_parser
from pxsched.errors import Exit, UserError
from pxsched.output import say

_EXAMPLES = """\
examples:
  pxsched sandbox qm create 100 --cores 2 --affinity 1,0 --hookscript local:snippets/pxsched --guest linux
  pxsched sandbox qm start 100
  pxsched sandbox qm list
  pxsched --root "$(pxsched sandbox path)" status
  pxsched sandbox shell            a shell with `qm`; its guests end with it
  pxsched sandbox demo             two minutes that show what pxsched does
  pxsched sandbox destroy          end all guests and delete the directory
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "sandbox",
        help="a stand-in Proxmox node in a directory, with real QEMU guests",
        description="A stand-in Proxmox node in a directory, for machines without Proxmox.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dir", metavar="DIR", type=Path, default=None, help=f"default: {default_directory()}"
    )
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    qm = actions.add_parser("qm", help="Proxmox's qm, as far as a sandbox has it", add_help=False)
    qm.add_argument("words", nargs=argparse.REMAINDER)
    actions.add_parser("shell", help="a shell with `qm`, whose end is the sandbox's")
    actions.add_parser("path", help="print the directory, for --root")
    actions.add_parser("demo", help="show what pxsched does, with three guests, in less than two minutes")
    actions.add_parser("destroy", help="end all guests and delete the directory")


def run(args: argparse.Namespace) -> int:
    """Do what `register` declared. Raises UserError."""
    directory = args.dir or default_directory()
    match args.action:
        case "qm":
            return _qm(directory, args.words)
        case "shell":
            return _shell(args.dir)
        case "demo":
            from pxsched.sandbox import demo

            return demo.run()
        case "path":
            from pxsched.sandbox import node

            say(str(node.find(directory).base))
        case "destroy":
            from pxsched.sandbox import sandbox

            sandbox.destroy(directory)
    return Exit.DONE


def default_directory() -> Path:
    """PXSCHED_SANDBOX (set by `sandbox shell`), or one below the user's state directory."""
    chosen = os.environ.get("PXSCHED_SANDBOX")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(chosen or Path(state, "pxsched/sandbox"))


def _qm(directory: Path, words: list[str]) -> int:
    """Through the sandbox's supervisor; one that ends when it has nothing to do is started if need be."""
    from pxsched.sandbox import node, qm, sandbox

    if not words or words[0] in ("help", "--help", "-h"):
        say(*qm.USAGE.splitlines())
        return Exit.DONE
    home = node.create(directory) if words[0] == "create" else node.find(directory)
    if not sandbox.listening(home):
        sandbox.launch(home, "--linger")
    result = sandbox.request(home, words)
    say(*result.output.splitlines(), to=sys.stderr if result.code else sys.stdout)
    return Exit.REFUSED if result.code else Exit.DONE


def _shell(directory: Path | None) -> int:
    """A shell with `qm` and `pxsched` for a sandbox that lasts as long as the shell."""
    from pxsched.sandbox.sandbox import Sandbox

    if not sys.stdin.isatty():
        raise UserError("`pxsched sandbox shell` needs a terminal")
    with Sandbox(directory) as sandbox:
        script = sandbox.node.path("usr/bin/qm")
        package = Path(__file__).parents[2]
        script.write_text(
            f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(package))} "
            f'exec {shlex.quote(sys.executable)} -m pxsched.sandbox.commands qm "$@"\n'
        )
        script.chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{script.parent}:{os.environ.get('PATH', '')}",
            "PXSCHED_SANDBOX": str(sandbox.directory),
            "PXSCHED_ROOT": sandbox.root,
        }
        say(
            f"A sandbox in {sandbox.root}: try `qm create 100 --cores 2`, `qm start 100`; `exit` ends it all."
        )
        return subprocess.run([os.environ.get("SHELL", "/bin/sh")], env=environment, check=False).returncode


def main() -> int:
    """The sandbox's commands alone, for `qm` in its shell."""
    parser = new_parser(prog="pxsched")
    register(parser.add_subparsers(dest="command", required=True))
    try:
        return run(parser.parse_args(["sandbox", *sys.argv[1:]]))
    except UserError as error:
        say(str(error), to=sys.stderr)
        return Exit.REFUSED


if __name__ == "__main__":
    sys.exit(main())
