"""`topology`, `config` and `plan`: what is, and what would be. They change nothing."""

import argparse
import os
from typing import Any

from pxsched.arguments import add, print_json, vmid
from pxsched.errors import Exit, UserError
from pxsched.guest import config
from pxsched.guest.process import VMID
from pxsched.host import cpulist, topology
from pxsched.host.topology import Topology
from pxsched.ledger.claim import Claim
from pxsched.node import planning
from pxsched.node import sighting as nodes
from pxsched.node.planning import Plan
from pxsched.output import say
from pxsched.root import Root


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    add(commands, "topology", run_topology, "show the machine: CPUs, cores, L3 groups, NUMA nodes, packages",
        example="pxsched --root captured/ topology --json", reads=True)  # fmt: skip
    command = add(commands, "config", run_config, "show a VM's configuration as pxsched reads it",
                  example="pxsched config 100 --json", reads=True)  # fmt: skip
    command.add_argument("vm", metavar="VMID|FILE")
    command = add(commands, "plan", run_plan, "show what would be done for a VM, and why; changes nothing",
                  example="pxsched plan 100", reads=True)  # fmt: skip
    command.add_argument("vm", metavar="VMID", type=vmid)


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
