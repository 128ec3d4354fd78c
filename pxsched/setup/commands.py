"""`pxsched node install | uninstall`: what install.sh and the Debian package's scripts have in common."""

import argparse

from pxsched.arguments import add
from pxsched.errors import Exit, UserError
from pxsched.guest.hookscript import SCRIPT_NAME
from pxsched.optin import naming
from pxsched.output import complain, say
from pxsched.proxmox import cluster
from pxsched.proxmox import storage as storages
from pxsched.root import Root
from pxsched.settings import files as settings
from pxsched.setup import manifest as manifests
from pxsched.setup import plan, removal, stub
from pxsched.setup.leaving import Leaving, PutBack, Script, about_stub, decide, names
from pxsched.setup.manifest import Manifest
from pxsched.setup.steps import Write

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
        else:
            action.add_argument("--remove-stub", action="store_true", help="leave no stub of the hookscript")


def run(args: argparse.Namespace) -> int:
    """Raises UserError."""
    root: Root = args.root
    if args.action == "install":
        _install(root, args)
        return Exit.DONE
    return _uninstall(root, args)


def _install(root: Root, args: argparse.Namespace) -> None:
    known = manifests.load(root) or Manifest()
    storage = args.storage or storages.of_hookscript(root)
    steps = list(plan.install(root, plan.find_material(), storage, known, packaged=args.packaged))
    for step in steps:
        # Listed before it is written; a file of the admin's that is kept is not ours to list.
        ours = isinstance(step, Write) and (step.needed(root) or root.read_bytes(step.path) == step.data)
        if isinstance(step, Write) and ours and not args.dry_run:
            made = manifests.missing_directories(root, step.path) if step.path.startswith("etc/") else []
            known = known.with_directories(made).with_file(step.path, manifests.mark_of(step.data))
            manifests.save(root, known)
        if step.needed(root):
            say(f"{'would ' if args.dry_run else ''}{step.describe(root)}")
            if not args.dry_run:
                step.execute(root)
    say(*settings.load(root).notes)


def _uninstall(root: Root, args: argparse.Namespace) -> int:
    """Timer, VMs, knobs, files, in this order: nothing turns a knob again after it was put back."""
    named = naming.survey(root)
    known = _listed(root, packaged=args.packaged)
    if known is None:
        say("pxsched is not installed on this node")
        return Exit.DONE
    leaving = decide(
        root, plan.find_material(), known, named, packaged=args.packaged, remove_stub=args.remove_stub
    )
    node = cluster.node_name(root) if named.vms else ""
    done = _carry_out(root, leaving, args.dry_run)
    if done and not args.dry_run:
        removal.forget(root, known, lambda path: not known.is_program(path))
        named = naming.survey(root)
    holders = names(named, besides=node if args.dry_run else "")
    say(*leaving.lines, *about_stub(leaving.steps, named, holders))
    return Exit.DONE if done else Exit.REFUSED


def _carry_out(root: Root, leaving: Leaving, dry_run: bool) -> bool:
    """Whether all is done that must be."""
    fine = True
    for step in leaving.steps:
        say(f"{'would ' if dry_run else ''}{step.describe(root)}")
        try:
            if not dry_run:
                step.execute(root)
        except UserError as error:
            complain(str(error))
            if step.must:
                return False
            fine = fine and not isinstance(step, Script | PutBack)
    return fine


def _listed(root: Root, *, packaged: bool) -> Manifest | None:
    """The list of what was installed; an empty one where only a stub is left, None where nothing is."""
    known = manifests.load(root)
    if known is not None:
        return known
    paths = (f"{directory}/{SCRIPT_NAME}" for directory in storages.snippets_directories(root).values())
    scripts = [path for path in dict.fromkeys(paths) if plan.is_script(root, path, Manifest())]
    if all(stub.is_stub(root.read_bytes(path)) for path in scripts):
        return Manifest() if scripts else None
    raise UserError(
        f"/{scripts[0]} is of a version that kept no list of what it installed",
        hint="`pxsched node install --packaged` makes one" if packaged else "install this version over it",
    )
