"""`topology`, `config`, `plan` and `status`: what is, and what would be. They change nothing."""

import argparse
import os
from typing import Any

from pxsched.arguments import add, print_json, vmid
from pxsched.errors import Exit, UserError
from pxsched.guest import config
from pxsched.guest.process import VMID
from pxsched.host import cpulist, topology
from pxsched.host.topology import Topology
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.ledger.journal import NODE, Entry
from pxsched.node import planning
from pxsched.node import sighting as nodes
from pxsched.node.planning import Plan
from pxsched.output import say
from pxsched.placement.request import EXCLUSIVE
from pxsched.root import Root
from pxsched.value import plain


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    add(commands, "topology", run_topology, "show the machine: CPUs, cores, L3 groups, NUMA nodes, packages",
        example="pxsched --root captured/ topology --json", reads=True)  # fmt: skip
    command = add(commands, "config", run_config, "show a VM's configuration as pxsched reads it",
                  example="pxsched config 100 --json", reads=True)  # fmt: skip
    command.add_argument("vm", metavar="VMID|FILE")
    command = add(commands, "plan", run_plan, "show what would be done for a VM, and why; changes nothing",
                  example="pxsched plan 100", reads=True)  # fmt: skip
    command.add_argument("vm", metavar="VMID", type=vmid)
    command = add(commands, "status", run_status, "show who holds what, and every knob that is turned",
                  example="pxsched status 100 --json", reads=True)  # fmt: skip
    command.add_argument("vm", metavar="VMID", type=vmid, nargs="?")


def run_topology(options: argparse.Namespace) -> int:
    machine = topology.read(options.root)
    if options.json:
        print_json(topology_document(machine))
    else:
        from pxsched.report import text

        say(*text.machine(machine))
    return Exit.DONE


def topology_document(machine: Topology) -> dict[str, Any]:
    return {
        "cpus": [
            {
                "id": cpu.id,
                "online": cpu.online,
                "core": cpu.core,
                "l3": cpu.l3,
                "node": cpu.node,
                "package": cpu.package,
                "siblings": cpulist.format(cpu.siblings),
                "kind": cpu.kind,
            }
            for cpu in machine.cpus.values()
        ],
        "l3": [
            {"id": l3.id, "cpus": cpulist.format(l3.cpus), "size_bytes": l3.size_bytes} for l3 in machine.l3s
        ],
        "nodes": [
            {
                "id": node.id,
                "cpus": cpulist.format(node.cpus),
                "memory_bytes": node.memory_bytes,
                "distances": {str(other): distance for other, distance in node.distances.items()},
            }
            for node in machine.nodes
        ],
        "packages": [
            {"id": package.id, "cpus": cpulist.format(package.cpus)} for package in machine.packages
        ],
        "isolated": cpulist.format(machine.isolated),
        "warnings": machine.warnings,
    }


def run_config(options: argparse.Namespace) -> int:
    parsed = config.parse(_config_text(options.root, options.vm), name=os.path.basename(options.vm))
    if options.json:
        print_json(
            {
                "options": parsed.options,
                "pending": parsed.pending,
                "snapshots": parsed.snapshots,
                "description": parsed.description,
                "warnings": parsed.warnings,
            }
        )
    else:
        say(*(f"{key}: {value}" for key, value in parsed.options.items()))
        say(*(f"# {warning}" for warning in parsed.warnings))
    return Exit.DONE


def _config_text(root: Root, name: str) -> str:
    if VMID.fullmatch(name):
        path = nodes.config_path(root, int(name))
        if path is None:
            raise UserError(f"there is no VM {name} on node {nodes.name_of(root)}")
        text = root.read(path)
        if text is None:
            raise UserError(f"cannot read /{path}")
        return text
    try:
        with open(name, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError as error:
        raise UserError(f"cannot read {name!r}: {error.strerror}", hint="a VMID or a file") from error


def run_plan(options: argparse.Namespace) -> int:
    from pxsched.report import knobs
    from pxsched.shaping import advice

    node = nodes.open_node(options.root)
    plan = planning.plan(node, options.vm)
    placement = plan.claim.placement
    running = plan.claim.process is not None
    shape = advice.of_placement(node, placement, plan.claim.policy, running=running)
    if options.json:
        print_json(plan_document(plan) | {"shape": advice.line(shape) if shape else None})
        return Exit.DONE
    vmid = plan.claim.vmid
    not_yet = f"VM {vmid} is not opted in; this would be done for it after `pxsched enable {vmid}`:"
    say(
        *([] if plan.enabled else [not_yet]),
        f"VM {vmid} is {placement.vm_class}",
        *(f"  vCPU {number}: CPU {cpulist.format(cpus)}" for number, cpus in enumerate(placement.vcpus)),
        f"  emulator: CPU {cpulist.format(placement.emulator)}",
        f"  memory: node {cpulist.format(placement.nodes)}",
        *(f"  why: {line}" for line in placement.why),
        *(f"  warning: {line}" for line in plan.warnings),
        *(f"  {knobs.planned(options.root, item.knob, item.now, item.want)}" for item in plan.settings),
        *([f"  shape: {advice.line(shape)}"] if shape else []),
    )
    return Exit.DONE


def plan_document(plan: Plan) -> dict[str, Any]:
    settings = [{"knob": item.knob, "now": item.now, "want": item.want} for item in plan.settings]
    return {
        **claim_document(plan.claim),
        "enabled": plan.enabled,
        "warnings": plan.warnings,
        "settings": settings,
    }


def claim_document(claim: Claim) -> dict[str, Any]:
    placement = claim.placement
    return {
        "vmid": claim.vmid,
        "class": placement.vm_class,
        "vcpus": [
            {"vcpu": number, "cpus": cpulist.format(cpus)} for number, cpus in enumerate(placement.vcpus)
        ],
        "emulator": cpulist.format(placement.emulator),
        "nodes": cpulist.format(placement.nodes),
        "why": placement.why,
    }


def run_status(options: argparse.Namespace) -> int:
    ledger = ledgers.peek(options.root)
    claims = [claim for vmid, claim in sorted(ledger.claims.items()) if options.vm in (None, vmid)]
    entries = {
        key: entry for key, entry in ledger.journal.items() if options.vm is None or entry.owner == options.vm
    }
    if options.vm is not None and not claims and not entries:
        raise UserError(f"VM {options.vm} holds nothing", hint="is it running, and opted in?")
    states = {key: planning.standing(options.root, key, entry) for key, entry in entries.items()}
    from pxsched.chain import handback
    from pxsched.node import balancing, proofs, trial
    from pxsched.node import exclusive as facts
    from pxsched.node import others as strangers
    from pxsched.report import balance, exclusive, host, others, overview, proof
    from pxsched.settings import files as settings

    last = handback.explained(options.root, balancing.last(options.root))
    checked = {
        vm.vmid: vm
        for vm in facts.check(options.root, ledger, topology.isolated(options.root))
        if options.vm in (None, vm.vmid)
    }
    untrue = _untrue(options.root, claims)
    seen = strangers.known(options.root, {*ledger.claims})
    on = trial.load(options.root)
    proven = [one for one in proofs.briefs(options.root) if options.vm in (None, one.vmid)]
    warnings = [*ledger.warnings, *settings.load(options.root).stale]
    strange = seen.others if options.vm is None else ()
    lines = overview.look(options.root, claims, strange, checked, balance.waiting(last))
    if options.json:
        print_json(
            {
                "node": nodes.name_of(options.root),
                "vms": [
                    _status_document(options.root, claim)
                    | balance.of_vm(last, claim)
                    | {"exclusive": exclusive.document(checked.get(claim.vmid))}
                    | {"shape": untrue.get(claim.vmid)}
                    | overview.document(line)
                    for claim, line in zip(claims, lines, strict=False)
                ],
                "knobs": [_knob_document(key, entry, states[key]) for key, entry in entries.items()],
                "last_pass": balance.document(last),
                "host": plain(host.look(options.root)),
                **others.document(seen),
                "trial": None if on is None else {"vmid": on.vmid, "way": on.way},
                "proofs": [{"vmid": one.vmid, "at": one.began_s, "sentence": one.sentence} for one in proven],
                "warnings": warnings,
            }
        )
        return Exit.DONE
    from pxsched.report import devices, knobs, text

    say(*(f"warning: {warning}" for warning in warnings))
    say(*overview.table(lines))
    if now := host.look(options.root):
        say(now.line)
    say(*text.status(claims, knobs.lines(options.root, entries, states)))
    for claim in claims:
        say(*devices.lines(claim.vmid, devices.document(options.root, claim)))
    say(*exclusive.lines(checked.values()))
    say(*(f"VM {vmid}: {line}" for vmid, lines in untrue.items() for line in lines))
    say(*balance.lines(last, {claim.vmid for claim in claims}))
    say(*proof.on_trial(on), *map(proof.brief, proven))
    if options.vm is None:
        say(*others.lines(seen))
    return Exit.DONE


def _untrue(root: Root, claims: list[Claim]) -> dict[int, list[str]]:
    """What guests were told and is no longer so, since their VMs were placed elsewhere; nothing where the
    machine cannot be seen.
    """
    pinned = [claim for claim in claims if claim.placement.vm_class in EXCLUSIVE]
    if not pinned:
        return {}
    from pxsched.shaping import advice

    try:
        looks = advice.of_claims(nodes.open_node(root), pinned)
    except UserError:
        return {}
    return {found.vmid: found.differences for found in looks if found.shaped}


def _status_document(root: Root, claim: Claim) -> dict[str, Any]:
    from pxsched.report import devices

    return {
        **claim_document(claim),
        "state": claim.state,
        "pid": claim.process.pid if claim.process else None,
        "run_delay": planning.run_delay(root, claim),
        "load": claim.load,
        "devices": devices.document(root, claim),
    }


def _knob_document(key: str, entry: Entry, now: str | None) -> dict[str, Any]:
    return {
        "knob": key,
        "vmid": None if entry.owner == NODE else entry.owner,
        "plugin": entry.plugin,
        "original": entry.original,
        "now": now,
        "want": entry.wanted,
        "drift": now is not None and now != entry.wanted,
        "drifted_s_ago": None if entry.drifted_ns is None else (ledgers.now_ns() - entry.drifted_ns) / 1e9,
        "drifts": entry.drifts,
        "note": entry.note,
    }
