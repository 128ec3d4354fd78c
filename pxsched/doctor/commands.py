"""`pxsched doctor`: one screen of checks, each with what to do about it."""

import argparse
from collections.abc import Callable, Iterator

from pxsched.arguments import add, print_json
from pxsched.doctor import balloons, exclusive, host, nodes, placing, rivals, shape, vms
from pxsched.doctor.bundle import file as bundle
from pxsched.doctor.finding import Finding, Level, Subject
from pxsched.errors import Exit, UserError
from pxsched.output import complain, progress, say
from pxsched.root import Root
from pxsched.value import plain

EXAMPLES = """\
pxsched doctor
pxsched doctor --bundle bug.tar.gz     what the program reads of this machine, to go with a bug report
mkdir bug; tar -xzf bug.tar.gz -C bug; pxsched --root bug topology"""

MARKS = {Level.OK: "ok  ", Level.NOTE: "note", Level.WARN: "WARN", Level.BAD: "BAD "}


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add(
        subparsers,
        "doctor",
        run,
        "check this node and say what to mend",
        description="Checks node, installation and VMs; exit code 1 when something does not work.",
        example=EXAMPLES,
        reads=True,
    )
    parser.add_argument("--cluster", action="store_true", help="look at all nodes of the cluster, too")
    parser.add_argument("--bundle", metavar="FILE", help="write what the program reads into FILE.tar.gz")


def run(args: argparse.Namespace) -> int:
    """Raises UserError."""
    root: Root = args.root
    with progress() as tell:
        findings = list(examine(root, tell, of_cluster=args.cluster))
        count = bundle.write(root, args.bundle, findings, tell) if args.bundle else 0
    if args.bundle:
        complain(f"wrote {args.bundle}: {count} files, nothing of tenants")
    if args.json:
        counts = {level.value: sum(f.level is level for f in findings) for level in Level}
        print_json({"counts": counts, "findings": [plain(f) for f in findings]})
    else:
        _print(findings)
    return Exit.REFUSED if any(finding.level is Level.BAD for finding in findings) else Exit.DONE


def examine(
    root: Root, tell: Callable[[str], None] = lambda _line: None, *, of_cluster: bool = False
) -> Iterator[Finding]:
    """All checks; one that fails is itself a finding, and the others go on. tell: is given their names."""
    subject = Subject(root)
    node = (*host.CHECKS, *rivals.CHECKS, *vms.CHECKS, *balloons.CHECKS)
    more = nodes.CHECKS if of_cluster else ()
    for check in (*node, *placing.CHECKS, *exclusive.CHECKS, *shape.CHECKS, *more):
        name = check.__name__.replace("_", " ")
        tell(f"looking at {name}")
        try:
            yield from check(subject)
        except UserError as error:
            yield Finding(Level.BAD, name, error.message, error.hint or "")


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        say(f"{MARKS[finding.level]} {finding.area:16} {finding.text}")
        if finding.remedy:
            say(f"     {'':16} -> {finding.remedy}")
