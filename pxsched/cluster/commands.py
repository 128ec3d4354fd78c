"""`pxsched cluster status | fit | plan | rules`: several nodes at once, from any of them."""

import argparse

from pxsched import arguments
from pxsched.arguments import add, print_json
from pxsched.cluster import fit, planner, rules, status, text, view
from pxsched.cluster.carry import Carrier
from pxsched.cluster.known import Known
from pxsched.cluster.planner import Plan
from pxsched.errors import Exit, UserError
from pxsched.output import complain, say, say_toned
from pxsched.placement.request import Request, VmClass
from pxsched.report.frame import terminal_size
from pxsched.sandbox.stand_in import local_api
from pxsched.settings.policy import Smt
from pxsched.value import plain

EXAMPLES = """\
pxsched cluster status                        all nodes and VMs, in one table
pxsched cluster fit 100                       where VM 100 could run, how well, and why not elsewhere
pxsched cluster fit --vcpus 16 --memory 65536 --class dedicated
pxsched cluster plan --drain pve2             who would have to go where, so that pve2 is empty"""
NEW = 0
"""The VMID of a VM that does not exist yet."""
_CLASSES = (VmClass.SHARED, VmClass.DEDICATED)


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add(
        subparsers, "cluster", run_status,
        "look at all nodes of the cluster: where VMs fit, and which should move",
        description="Works on what the nodes' timers publish in /etc/pve, and needs no service of its own.",
        example=EXAMPLES,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = add(actions, "status", run_status, "show all nodes and VMs in one table",
                 example="pxsched cluster status --json", reads=True)  # fmt: skip
    action = add(actions, "fit", run_fit, "say on which nodes a VM fits, how well, and what is in the way",
                 example="pxsched cluster fit 100 --nodes pve1,pve2", reads=True)  # fmt: skip
    action.set_defaults(usage=action.error)
    action.add_argument("vm", metavar="VMID", type=arguments.vmid, nargs="?")
    action.add_argument("--vcpus", type=int, metavar="N", help="of a VM that does not exist yet")
    action.add_argument("--memory", type=int, metavar="MIB", help="its memory (default: 1024)")
    action.add_argument("--class", dest="vm_class", choices=[one.value for one in _CLASSES])
    action.add_argument("--smt", choices=[one.value for one in Smt], help="of a dedicated one")
    action.add_argument(
        "--hugepages", type=int, choices=(2, 1024), metavar="2|1024", help="its page size (MiB)"
    )
    action.add_argument("--nodes", default="", metavar="NODE,...", help="only these nodes")
    action = add(actions, "plan", run_plan,
                 "list the moves that would end crossings, contention and lack of a place, or make them",
                 example="pxsched cluster plan --even\npxsched cluster plan --drain pve2",
                 reads=True)  # fmt: skip
    action.add_argument("--drain", default="", metavar="NODE", help="the moves that empty this node instead")
    action.add_argument("--even", action="store_true", help="also even out what is wanted of the nodes")
    action.add_argument("--most", type=_count, default=planner.MOST_MOVES, metavar="N",
                        help=f"at most so many moves (default: {planner.MOST_MOVES}); no bound to a"
                        " drain")  # fmt: skip
    how = action.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="what it does anyway: only list")
    how.add_argument("--apply", action="store_true", help="make the moves, one after the other")
    action = add(actions, "rules", run_rules,
                 "have HA know where guests fit that care: say which rules, write or remove them",
                 example="pxsched cluster rules\npxsched cluster rules --apply", reads=True)  # fmt: skip
    how = action.add_mutually_exclusive_group()
    how.add_argument("--apply", action="store_true", help="write them, through Proxmox's API")
    how.add_argument("--undo", action="store_true", help="remove all of ours")


def _count(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000")
    return int(text)


def run_status(options: argparse.Namespace) -> int:
    found = status.of(view.look(options.root))
    if options.json:
        print_json(text.status_document(found))
    else:
        say_toned(text.of_status(found, terminal_size()[0]))
    return Exit.DONE


def run_fit(options: argparse.Namespace) -> int:
    names = [name for name in options.nodes.split(",") if name]
    described = (options.vcpus, options.memory, options.vm_class, options.smt, options.hugepages)
    if (options.vm is None) == (options.vcpus is None):
        options.usage("either a VMID, or --vcpus and more of a VM that does not exist yet")
    if options.vm is not None and any(one is not None for one in described):
        options.usage(f"VM {options.vm} is described by its configuration; leave out --memory and the like")
    looked = view.look(options.root)
    if options.vm is not None:
        fits = fit.of_vm(looked, options.vm, names)
        what = f"VM {options.vm}"
    else:
        request = _request(options)
        fits = fit.of_request(looked, request, names)
        what = f"a {request.vm_class} VM of {request.vcpus} vCPUs and {request.memory_mib} MiB"
    if options.json:
        print_json({"vmid": options.vm, "nodes": text.fits_document(fits)})
    else:
        say_toned(text.of_fits(what, fits))
    return Exit.DONE if any(one.fits for one in fits) else Exit.REFUSED


def run_plan(options: argparse.Namespace) -> int:
    looked = view.look(options.root)
    found = Known(looked)
    plan = planned(found, options)
    if options.json:
        print_json(text.plan_document(plan, found.unusable))
    else:
        say_toned(text.of_plan(plan, found.unusable, options.drain))
    if options.apply and plan.moves:
        tell = complain if options.json else say
        api = local_api(options.root)
        Carrier(lambda: Known(view.look(options.root)), api, tell).carry_out(plan.moves)
    return Exit.REFUSED if options.drain and plan.stays else Exit.DONE


def planned(found: Known, options: argparse.Namespace) -> Plan:
    """Raises UserError for a node that cannot be emptied, as nothing is known of it."""
    if options.drain:
        [member] = fit.chosen(found.view, [options.drain])
        if not member.usable:
            raise UserError(f"{options.drain} cannot be planned for: {fit.unusable(member)}")
    return planner.plan(
        found.sheets(), found.guests(), found,
        drain=options.drain, stopped=found.stopped(options.drain) if options.drain else (),
        even=options.even, closed=found.ha.away, most=options.most,
    )  # fmt: skip


def run_rules(options: argparse.Namespace) -> int:
    found = Known(view.look(options.root))
    steps = rules.undoing(found.ha) if options.undo else rules.wanted(found, rules.now_s())
    failures: dict[int, str] = {}
    writes = options.apply or options.undo
    for step in steps if writes else ():
        try:
            rules.carry_out(local_api(options.root), step)
        except UserError as error:
            failures[step.vmid] = str(error)
    done = [step for step in steps if step.vmid not in failures]
    if options.json:
        print_json(
            {"written": writes, "rules": plain(done), "failures": {str(k): v for k, v in failures.items()}}
        )
    else:
        say(*rules.describe(done, done=writes) if done or not failures else ())
    for vmid, reason in failures.items():
        complain(f"VM {vmid}: {reason}")
    return Exit.REFUSED if failures else Exit.DONE


def _request(options: argparse.Namespace) -> Request:
    memory_mib = 1024 if options.memory is None else options.memory
    if not 1 <= options.vcpus <= 8192 or not 1 <= memory_mib <= 1 << 32:
        raise UserError(f"{options.vcpus} vCPUs and {memory_mib} MiB are no VM")
    return Request(
        NEW, options.vcpus, memory_mib, VmClass(options.vm_class or VmClass.SHARED), cores=options.vcpus,
        smt=Smt(options.smt or Smt.PREFER), hugepage_mib=options.hugepages,
    )  # fmt: skip
