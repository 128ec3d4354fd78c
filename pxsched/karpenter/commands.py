"""`pxsched karpenter plan | apply | export | settings`."""

import argparse

from pxsched.arguments import add, print_json
from pxsched.errors import Exit
from pxsched.host import topology
from pxsched.karpenter import capacity, document, keep
from pxsched.output import say, say_json
from pxsched.proxmox import cluster
from pxsched.root import Root
from pxsched.sandbox.stand_in import local_api
from pxsched.settings import files as settings_module
from pxsched.value import plain

EXAMPLES = """\
pxsched karpenter plan                        what would be written, changes nothing
pxsched karpenter apply                       writes it, as the timer does with the feature flag on
pxsched --root CAPTURE karpenter export       the VM's configuration as text, from a captured machine
pxsched karpenter settings --region eu > node-settings.json"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add(
        subparsers,
        "karpenter",
        run,
        "describe this node's capacity to Karpenter",
        description="Keeps a VM that never runs: its configuration describes this node's CPUs and memory.",
        example=EXAMPLES,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("plan", "show what differs, change nothing"),
        ("apply", "create or update the VM"),
        ("export", "print the VM's configuration; needs nothing but the topology"),
        ("settings", "print the node-settings document for Karpenter's Proxmox provider"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--json", action="store_true", help="machine-readable output")
        if name == "settings":
            action.add_argument("--region", help="the region's name there (default: the cluster's name)")
            action.add_argument("--node", help="the node's name there (default: this node's)")


def run(args: argparse.Namespace) -> int:
    """Runs one action. Raises UserError."""
    root: Root = args.root
    machine = topology.read(root)
    node = settings_module.load(root).node
    if args.action == "export":
        return _export(capacity.build(machine, node), args.json)
    if args.action == "settings":
        return _settings(root, document.build(machine, node), args.region, args.node)
    todo = keep.plan(root, machine, node)
    vmid = keep.apply(root, todo, local_api(root)) if args.action == "apply" else todo.vmid
    _show(todo, vmid, args.action == "apply", args.json)
    return Exit.DONE


def _export(options: dict[str, str], as_json: bool) -> int:
    if as_json:
        print_json({"options": options, "description": capacity.DESCRIPTION})
    else:
        say(*capacity.text(options).splitlines())
    return Exit.DONE


def _settings(root: Root, described: document.Document, region: str | None, node: str | None) -> int:
    region = region or cluster.cluster_name(root) or "region-1"
    node = node or cluster.node_name(root)
    say_json({region: {node: plain(described)}}, indent=2)
    return Exit.DONE


def _show(todo: keep.Plan, vmid: int | None, applied: bool, as_json: bool) -> None:
    if as_json:
        changes = [plain(change) for change in todo.changes]
        report = {"node": todo.node, "vmid": vmid, "applied": applied}
        print_json(report | {"changes": changes, "notes": list(todo.notes)})
        return
    for note in todo.notes:
        say(note)
    if not todo.changes:
        say(f"VM {vmid} on {todo.node} is as it should be")
        return
    if todo.vmid is None:
        say(f"{'created' if applied else 'would create'} VM {vmid or '(next free VMID)'} on {todo.node}:")
    else:
        say(f"{'updated' if applied else 'would update'} VM {vmid} on {todo.node}:")
    for change in todo.changes:
        say(f"  {change}")
