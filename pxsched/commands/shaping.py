"""`shape`: a guest is told the processors that it has."""

import argparse
from collections.abc import Mapping

from pxsched.arguments import add, print_json, vmid
from pxsched.errors import Exit, UserError
from pxsched.node import sighting as nodes
from pxsched.output import say
from pxsched.proxmox.api import Api
from pxsched.report import shape as report
from pxsched.root import Root
from pxsched.shaping import apply as writing
from pxsched.shaping import look as looking
from pxsched.shaping.look import Look

EXAMPLE = """\
pxsched shape 100                     what the guest is told, beside where its vCPUs run
pxsched shape 100 --apply --dry-run   what would be written so that it sees what it has
pxsched shape 100 --apply             write it, for the next start
pxsched shape 100 --undo              put back what was there"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    help = "show whether a guest is told the cores, caches and nodes that it has"
    command = add(commands, "shape", run, help, example=EXAMPLE, reads=True)
    command.add_argument("vm", metavar="VMID", type=vmid)
    what = command.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="tell it, from its next start")
    what.add_argument("--undo", action="store_true", help="put back what was there before --apply")
    command.add_argument(
        "--dry-run", action="store_true", help="show what would be written, and write nothing"
    )


def run(options: argparse.Namespace) -> int:
    """Raises UserError."""
    return _undo(options) if options.undo else _shape(options)


def _shape(options: argparse.Namespace) -> int:
    root: Root = options.root
    found = looking.of(nodes.open_node(root), options.vm)
    write = bool(options.apply and not options.dry_run and found.changes)
    if options.apply and found.reason:
        raise UserError(f"VM {found.vmid} is not shaped: {found.reason}")
    if options.json:
        if write:
            writing.apply(root, found, _api(root))
        print_json(document(root, found) | {"applied": write})
        return Exit.DONE
    say(*report.heading(found.vmid, found.seen, found.real))
    if found.seen and found.real:
        say("", *report.pictures(found.seen, found.real, found.seats), "")
    say(*(f"  {line}" for line in found.differences))
    say(*_conclusion(found))
    if write:
        writing.apply(root, found, _api(root))
        say("written, for the next start")
    elif found.changes and not found.reason:
        why = writing.why_not_now(root, found.vmid, found.options)
        say(f"not now: {why}" if why else f"`pxsched shape {found.vmid} --apply` writes it")
    return Exit.DONE


def _conclusion(found: Look) -> list[str]:
    if found.reason:
        return [f"no shape: {found.reason}"]
    if not found.changes:
        return ["the guest sees what it has"]
    lines = ["what would mirror it, from the next start:", *report.diff(found.options, found.changes)]
    return lines + notes(found)


def notes(found: Look) -> list[str]:
    """What the admin should know before the next start."""
    lines = []
    sockets = found.mirror.smp.sockets if found.mirror else 1
    if sockets > len({seat.package for seat in found.seats}):
        lines.append(f"its {sockets} sockets stand for L3 groups: what is licensed by the socket counts them")
    if len({seat.kind for seat in found.seats}) > 1:
        lines.append("its CPUs are of several kinds, and no guest can be told that")
    if found.file.config.snapshots:
        lines.append("its snapshots keep the processors they were taken with: a rollback brings those back")
    if found.options.get("ostype", "").startswith("w"):
        lines.append("Windows may ask to be activated anew when its processors change")
    return lines


def document(root: Root, found: Look) -> dict[str, object]:
    told, wanted = found.told, found.mirror
    return {
        "vmid": found.vmid,
        "told": report.smp_document(told.smp) if told else None,
        "sees": report.picture_document(found.seen) if found.seen else None,
        "has": report.picture_document(found.real) if found.real else None,
        "cpus": [seat.cpu for seat in found.seats],
        "want": report.smp_document(wanted.smp) if wanted else None,
        "changes": report.changes_document(found.options, found.changes),
        "differences": found.differences,
        "reason": found.reason or None,
        "remembered": found.record is not None,
        "not_now": writing.why_not_now(root, found.vmid, found.options) or None,
    }


def _undo(options: argparse.Namespace) -> int:
    root: Root = options.root
    file = looking.read(root, options.vm)
    undone = writing.plan_undo(root, options.vm, file)
    if not options.dry_run:
        undone = writing.undo(root, options.vm, _api(root))
    before: Mapping[str, str] = file.next_start
    if options.json:
        print_json(
            {
                "vmid": options.vm,
                "changes": report.changes_document(before, undone.changes),
                "left": list(undone.left),
                "applied": not options.dry_run,
            }
        )
        return Exit.DONE
    say("what would be put back:" if options.dry_run else "put back, for the next start:")
    say(*(report.diff(before, undone.changes) or ["  nothing: it is as it was"]))
    say(*(f"  {key} was changed since by somebody else, and stays" for key in undone.left))
    return Exit.DONE


def _api(root: Root) -> Api:
    from pxsched.sandbox.stand_in import local_api

    return local_api(root)
