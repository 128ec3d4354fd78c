"""`python3 -m pxsched.setup`: what install.sh does with the program's own directory.

Needs nothing but Python itself: what the program needs may not be there yet, or not any more.
"""

import argparse
import sys
from collections.abc import Sequence

from pxsched.errors import Exit, UserError
from pxsched.output import complain, say
from pxsched.root import Root
from pxsched.setup import prefix as prefixes
from pxsched.setup import program


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="install.sh")
    parser.add_argument("--root", default="/", help="the machine's files lie below this directory")
    parser.add_argument("action", choices=("check", "put", "installed", "remove"))
    parser.add_argument("--prefix")
    parser.add_argument("--private", action="store_true", help="with copies of the Python packages it needs")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(arguments)
    try:
        _run(args, Root(args.root))
    except UserError as error:
        complain(str(error))
        return Exit.USAGE if isinstance(error, prefixes.NotOurs) else Exit.REFUSED
    return Exit.DONE


def _run(args: argparse.Namespace, root: Root) -> None:
    if args.action == "installed":
        found = prefixes.installed(root, args.prefix)
        say(*([f"/{found}"] if found else []))
    elif args.action == "remove":
        if prefixes.installed(root, args.prefix):
            program.remove(root, dry_run=args.dry_run)
    else:
        prefix = prefixes.normal(root, args.prefix or prefixes.DEFAULT)
        prefixes.begin(root, prefix)
        if args.action == "put":
            program.put(root, prefix, private=args.private)


if __name__ == "__main__":
    sys.exit(main())
