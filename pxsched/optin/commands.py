"""`pxsched enable`, `disable` and `list`."""

import argparse
import os
from collections.abc import Callable, Mapping

from pxsched import arguments
from pxsched.arguments import print_json
from pxsched.chain import files as chain
from pxsched.chain.entry import Entry
from pxsched.cluster import members
from pxsched.errors import Exit, UserError, nearest
from pxsched.guest.hookscript import SCRIPT_NAME
from pxsched.optin import asking, inventory, rules, text
from pxsched.optin.apply import apply
from pxsched.optin.rules import Outcome, Selection, Step
from pxsched.output import complain, progress, say
from pxsched.proxmox import cluster, snippets, storage
from pxsched.proxmox.api import Api, ApiError
from pxsched.proxmox.cluster import Guest
from pxsched.proxmox.connection import Login, remote
from pxsched.root import Root
from pxsched.sandbox import stand_in
from pxsched.shaping import record
from pxsched.stored import Damaged
from pxsched.value import Value, replace

EPILOG = """\
examples:
  pxsched enable 100 101              these two VMs, from their next start (running ones from the next pass)
  pxsched enable --all --dry-run      what would change on this node
  pxsched enable --tag db --now       all VMs tagged `db`, running ones at once
  pxsched enable 100 --chain          keep the VM's present hookscript running beside ours
  PXSCHED_TOKEN='audit@pve!ro=...' pxsched list --host pve1.example.org
"""


class Session(Value):
    """Where VMs are read from and changed. files: None over HTTPS; api: made when it is needed."""

    files: Root | None
    api: Callable[[], Api]
    node: str | None

    def guests(self, node: str | None = None) -> list[Guest]:
        """Those of one node, or of all. Raises UserError for a node that the cluster has not."""
        if self.files is not None:
            nodes = cluster.nodes(self.files)
            if node is not None and node not in (self.node, *nodes):
                raise UserError(f"there is no node {node[:40]!r}{nearest(node, nodes)}")
            guests = cluster.guests(self.files, node)
            known = members.running(self.files, {guest.node for guest in guests} - {self.node or ""})
            return [self._seen(guest, known) for guest in guests]
        return inventory.guests(self.api(), node)

    def _seen(self, guest: Guest, known: Mapping[str, frozenset[int] | None]) -> Guest:
        """A VM of another node runs if that published so."""
        if guest.node not in known:
            return guest
        running = known[guest.node]
        return replace(guest, running=None if running is None else guest.vmid in running)

    def remembered(self, guests: list[Guest]) -> dict[int, Entry]:
        """What these VMs had before they were opted in."""
        if self.files is None:
            return {}
        return chain.find_all(self.files, ((guest.vmid, guest.options) for guest in guests))

    def shaped(self, guest: Guest) -> bool:
        """Whether its processors are what `pxsched shape` wrote."""
        if self.files is None:
            return False
        try:
            return record.read(self.files, guest.vmid, guest.options) is not None
        except Damaged:
            return True  # what was there is not known, but something was


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for name, purpose in (
        ("enable", "opt VMs in: set our hookscript"),
        ("disable", "opt VMs out: remove it, or put their own script back"),
    ):
        parser = _parser(subparsers, name, purpose)
        parser.add_argument(
            "vmids", nargs="*", metavar="VMID", type=arguments.vmid, help="VMs by number, on any node"
        )
        parser.add_argument("--all", action="store_true", help="all VMs of this node (or --node, --cluster)")
        parser.add_argument("--tag", default="", help="those of them with this tag")
        parser.add_argument("--dry-run", action="store_true", help="show what would change")
        parser.add_argument("--now", action="store_true", help="apply to running VMs at once")
        if name == "enable":
            parser.add_argument("--chain", action="store_true", help="keep a script that is there already")
            parser.add_argument("--balloon", action="store_true", help="take balloons over from Proxmox")
            parser.add_argument("--storage", default="", help="storage with our script (default: local)")
    _parser(subparsers, "list", "show which VMs are opted in")


def _parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=text,
        description=text,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, command=name)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--node", help="another node of the cluster")
    where.add_argument("--cluster", action="store_true", help="all nodes of the cluster")
    parser.add_argument("--host", help="reach the cluster over HTTPS: NAME[:PORT] of a node")
    parser.add_argument(
        "--token", help="USER@REALM!NAME=SECRET; better in PXSCHED_TOKEN, where `ps` does not show it"
    )
    parser.add_argument("--user", help="log in with a password instead (asked for, or PXSCHED_PASSWORD)")
    parser.add_argument("--ca", help="certificate authority to trust; a copy of /etc/pve/pve-root-ca.pem")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs one of the three commands. Raises UserError."""
    root: Root = args.root
    session = connect(args, root)
    if args.command == "list":
        return _list(session, args)
    selection = Selection(
        tuple(args.vmids),
        args.tag,
        args.all,
        None if args.cluster else args.node or session.node,
    )
    guests, missing = rules.select(session.guests(None if selection.vmids else selection.node), selection)
    steps = _steps(session, guests, args, root)
    failed = _carry_out(session, steps, missing, args)
    if args.now and not args.dry_run and session.files is not None:
        _pass_now(session.files)
    if args.all and not (args.json or args.cluster) and session.files is not None:
        count = len(cluster.nodes(session.files))
        if count > 1:
            say(f"these are the VMs of one node, {selection.node}; --cluster means all {count}")
    return Exit.REFUSED if failed else Exit.DONE


def connect(args: argparse.Namespace, root: Root) -> Session:
    """Raises UserError when neither this is a node nor another one can be reached."""
    if not args.host:
        return Session(root, lambda: stand_in.local_api(root), cluster.node_name(root))
    login = Login(
        args.host, args.token or os.environ.get("PXSCHED_TOKEN"), args.user, _password(args.user), args.ca
    )
    api = remote(login, root)
    return Session(None, lambda: api, None)


def _password(user: str | None) -> str | None:
    if not user:
        return None
    from getpass import getpass

    return os.environ.get("PXSCHED_PASSWORD") or getpass(f"password of {user}: ")


def _steps(session: Session, guests: list[Guest], args: argparse.Namespace, root: Root) -> list[Step]:
    if args.command == "disable":
        remembered = session.remembered(guests)
        return [
            rules.disable(guest, remembered.get(guest.vmid), shaped=session.shaped(guest)) for guest in guests
        ]
    volume = f"{args.storage or storage.of_hookscript(root)}:snippets/{SCRIPT_NAME}"
    if session.files is not None and any(guest.node == session.node for guest in guests):
        _require_script(session.files, volume)
    lacking = _lacking(session, guests, volume) if args.cluster else {}
    unserved = asking.unserved(session.files, session.node, guests) if args.balloon else {}
    percents = asking.minimum_percents(session.files, guests) if args.balloon else {}
    return [
        Step(guest, Outcome.REFUSE, notes=(lacking[guest.node],))
        if guest.node in lacking and not guest.problem
        else rules.enable(
            guest,
            volume,
            chain=args.chain,
            by_number=bool(args.vmids),
            balloon=args.balloon,
            unserved=unserved.get(guest.vmid, ""),
            minimum_percent=percents.get(guest.vmid, 0.0),
        )
        for guest in guests
    ]


def _lacking(session: Session, guests: list[Guest], volume: str) -> dict[str, str]:
    """Why no VM of a node can be opted in: it has no script of ours, or cannot be asked."""
    found = {}
    for node in sorted({guest.node for guest in guests if not guest.problem} - {session.node}):
        try:
            if volume not in snippets.on_node(session.api(), node, volume.partition(":")[0]):
                found[node] = f"{node} has no hookscript {volume}: run install.sh there"
        except ApiError as error:
            found[node] = f"whether {node} has the hookscript cannot be asked: {error.message}"
    return found


def _require_script(root: Root, volume: str) -> None:
    """A VM whose script is missing does not start, so none gets one that is not there."""
    path = root.path(storage.script_path(root, volume))
    if not os.access(path, os.X_OK):
        raise UserError(
            f"the hookscript {volume} is not installed on this node ({path})", hint="run install.sh"
        )


def _carry_out(session: Session, steps: list[Step], missing: list[int], args: argparse.Namespace) -> bool:
    """Applies the steps and reports each; one VM's failure does not stop the others."""
    failures = dict.fromkeys(missing, "there is no such VM")
    with progress() as tell:
        for number, step in enumerate(steps, 1):
            if step.outcome is Outcome.REFUSE:
                failures[step.guest.vmid] = "; ".join(step.notes)
            elif step.outcome is Outcome.CHANGE and not args.dry_run:
                tell(f"{number} of {len(steps)}: VM {step.guest.vmid}")
                try:
                    apply(step, session.api(), session.files)
                except UserError as error:
                    failures[step.guest.vmid] = str(error)
    if args.json:
        print_json(text.report(steps, failures, dry_run=args.dry_run))
    else:
        say(*text.told(steps, failures, f"{args.command}d", dry_run=args.dry_run))
    for vmid, reason in failures.items():
        complain(f"VM {vmid}: {reason}")
    refused = {step.guest.vmid: step.refused for step in steps if step.refused}
    for vmid, reason in refused.items():
        complain(f"VM {vmid}: {reason}")
    return bool(failures or refused)


def _list(session: Session, args: argparse.Namespace) -> int:
    guests = [guest for guest in session.guests(args.node) if not guest.describes_capacity]
    remembered = {
        vmid: entry.hookscript for vmid, entry in session.remembered(guests).items() if entry.hookscript
    }
    if args.json:
        print_json({"vms": [text.entry(guest, remembered) for guest in guests]})
        return Exit.DONE
    say(*text.rows(guests, remembered))
    return Exit.DONE


def _pass_now(root: Root) -> None:
    """Brings running VMs in line at once, as the timer would do within its period."""
    from pxsched import tick

    try:
        tick.report(tick.tick(root))
    except tick.Busy:
        return  # the pass that is under way does it
