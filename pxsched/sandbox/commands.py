"""`pxsched sandbox`: the stand-in node on the command line."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from pxsched.errors import Exit
from pxsched.output import say

_EXAMPLES = """\
examples:
  pxsched sandbox qm create 100 --cores 2 --affinity 1,0 --hookscript local:snippets/pxsched --guest linux
  pxsched sandbox qm start 100
  pxsched sandbox qm list
  pxsched --root "$(pxsched sandbox path)" status
  pxsched sandbox destroy          end all guests and delete the directory
  pxsched sandbox shell            a shell with `qm` and `pxsched`; its guests end with it
  pxsched sandbox demo             two minutes that show what pxsched does
  pxsched sandbox clean            delete the guests' kernel, which is kept for the next time
"""
_WELCOME = """\
A stand-in node in {root}; `exit` ends its guests and deletes it. For a start:
  qm create 100 --cores 2     a VM, as Proxmox makes it
  pxsched enable 100          opt it in
  qm start 100                and see where it goes
  pxsched status
No timer runs here: `pxsched tick` is one pass of it."""


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
    actions.add_parser("shell", help="a shell with `qm` and `pxsched`, whose end is the sandbox's")
    actions.add_parser("path", help="print the directory, for --root")
    actions.add_parser("demo", help="show what pxsched does, with three guests, in less than two minutes")
    actions.add_parser("destroy", help="end all guests and delete the directory")
    actions.add_parser("clean", help="delete what was kept for the guests in the user's cache")


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
        case "clean":
            from pxsched.sandbox import linux

            gone = linux.forget()
            say(*(f"deleted {path}" for path in gone) if gone else ("nothing was kept",))
    return Exit.DONE


def default_directory() -> Path:
    """PXSCHED_SANDBOX (set by `sandbox shell`), or one below the user's state directory."""
    chosen = os.environ.get("PXSCHED_SANDBOX")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(chosen or Path(state, "pxsched/sandbox"))


def _qm(directory: Path, words: list[str]) -> int:
    """Through the sandbox's supervisor."""
    from pxsched.sandbox import node, qm, sandbox

    if not words or words[0] in ("help", "--help", "-h"):
        say(*qm.USAGE.splitlines())
        return Exit.DONE
    home = node.create(directory) if words[0] == "create" else node.find(directory)
    result = sandbox.do(home, words)
    say(*result.output.splitlines(), to=sys.stderr if result.code else sys.stdout)
    return Exit.REFUSED if result.code else Exit.DONE


def _shell(directory: Path | None) -> int:
    """A shell with `qm` and `pxsched` for a sandbox that lasts as long as the shell."""
    from pxsched.sandbox.sandbox import Sandbox

    with Sandbox(directory) as sandbox:
        environment = {
            **os.environ,
            "PATH": f"{sandbox.node.path('usr/bin')}:{os.environ.get('PATH', '')}",
            "PXSCHED_SANDBOX": str(sandbox.directory),
            "PXSCHED_ROOT": sandbox.root,
        }
        say(*_WELCOME.format(root=sandbox.root).splitlines())
        return subprocess.run([os.environ.get("SHELL", "/bin/sh")], env=environment, check=False).returncode
