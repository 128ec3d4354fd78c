"""`pxsched node install | uninstall`: what install.sh and the Debian package's scripts have in common."""

import argparse
from collections.abc import Iterable

from pxsched.arguments import add
from pxsched.chain import files as chain
from pxsched.errors import Exit, UserError
from pxsched.optin import rules
from pxsched.optin.apply import apply
from pxsched.optin.rules import Outcome
from pxsched.output import complain, say
from pxsched.proxmox import cluster
from pxsched.root import Root
from pxsched.sandbox.stand_in import local_api
from pxsched.setup import plan
from pxsched.setup.steps import Step

EXAMPLES = """\
pxsched node install --storage local     put the hookscript and the units in place
pxsched node uninstall --dry-run         what an uninstallation would do"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add(
        subparsers,
        "node",
        run,
        "install or uninstall the files on this node (install.sh calls this)",
        description="Puts hookscript, units and settings in place on a Proxmox node, or takes them away.",
        example=EXAMPLES,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("install", "put the files in place"), ("uninstall", "undo everything")):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--dry-run", action="store_true", help="show each step, do none")
        action.add_argument("--packaged", action="store_true", help="as the Debian package's scripts call it")
        if name == "install":
            action.add_argument("--storage", default="", help="storage whose snippets get the hookscript")


def run(args: argparse.Namespace) -> int:
    """Raises UserError."""
    root: Root = args.root
    material = plan.find_material()
    if args.action == "install":
        storage = args.storage or root.read(plan.STORAGE_RECORD) or "local"
        _carry_out(root, plan.install(root, material, storage, packaged=args.packaged), args.dry_run)
        return Exit.DONE
    return _uninstall(root, material, args)


def _carry_out(root: Root, steps: Iterable[Step], dry_run: bool) -> None:
    for step in steps:
        if step.needed(root):
            say(f"{'would ' if dry_run else ''}{step.describe(root)}")
            if not dry_run:
                step.execute(root)


def _uninstall(root: Root, material: plan.Material, args: argparse.Namespace) -> int:
    """Timer, VMs, knobs, files, in this order: nothing turns a knob again after it was put back."""
    if not args.packaged:
        _carry_out(root, plan.stop(material), args.dry_run)
    holders = _opt_out(root, args.dry_run)
    failures = _restore(root, args.dry_run)
    steps = plan.uninstall(root, material, keep_stub=bool(holders), packaged=args.packaged)
    _carry_out(root, steps, args.dry_run)
    say(*_left(root, holders))
    for line in failures:
        complain(f"not put back: {line}")
    return Exit.REFUSED if failures else Exit.DONE


def _opt_out(root: Root, dry_run: bool) -> list[str]:
    """Takes the hookscript off this node's VMs; returns those of the cluster that still have it."""
    try:
        node = cluster.node_name(root)
    except UserError:
        return []  # no Proxmox here (any more)
    holders = []
    for guest in cluster.guests(root):
        step = rules.disable(guest, chain.find(root, guest.vmid, guest.options))
        if step.outcome is not Outcome.CHANGE:
            continue
        if guest.node != node:
            holders.append(f"VM {guest.vmid} on {guest.node}")
            continue
        say(f"{'would take' if dry_run else 'take'} the hookscript off VM {guest.vmid}")
        if dry_run:
            continue
        try:
            apply(step, local_api(root), root)
        except UserError as error:
            complain(f"VM {guest.vmid}: {error}")
            holders.append(f"VM {guest.vmid}")
    return holders


def _restore(root: Root, dry_run: bool) -> tuple[str, ...]:
    from pxsched.node import settle

    if dry_run:
        say("would put back every value that pxsched has changed")
        return ()
    report = settle.restore_all(root)
    say(f"put back {len(report.restored)} values")
    return tuple(report.failed)


def _left(root: Root, holders: list[str]) -> list[str]:
    lines = [f"left: /{path} (yours)" for path in plan.leftovers(root)]
    if holders:
        some = ", ".join(holders[:8]) + (" and more" if len(holders) > 8 else "")
        lines.append(f"left: a hookscript that does nothing, as it is still named by {some}")
    try:
        guests = cluster.guests(root, cluster.node_name(root))
    except UserError:
        return lines
    lines += [
        f"left: VM {guest.vmid} ({guest.name}), Karpenter's description of this node"
        for guest in guests
        if guest.describes_capacity
    ]
    return lines
