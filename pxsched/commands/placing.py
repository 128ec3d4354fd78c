"""`simulate` and `defrag`: placement on paper."""

import argparse
from collections.abc import Iterable

from pxsched.arguments import add, print_json
from pxsched.commands import simulate
from pxsched.errors import Exit, UserError
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import holding
from pxsched.ledger.file import Ledger
from pxsched.node import offer, others, views, wishes
from pxsched.node.sighting import Node, Sighting, open_node
from pxsched.node.sightings import Sightings
from pxsched.output import progress, say
from pxsched.placement import defrag
from pxsched.placement.request import Holding, Host, Request, VmClass


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(commands, "simulate", run_simulate,
                  "say where VMs would go, from JSON lines of starts and stops",
                  example="pxsched --root captured/ simulate requests.jsonl --json", reads=True)  # fmt: skip
    command.add_argument(
        "requests", metavar="REQUESTS.jsonl", nargs="?", default="-", help="default: standard input"
    )
    command = add(commands, "defrag", run_defrag,
                  "list the moves that would end avoidable crossings of nodes and L3 groups; moves nothing",
                  example="pxsched defrag --dry-run", reads=True)  # fmt: skip
    command.add_argument("--dry-run", action="store_true", help="what it does anyway: only list")


def run_simulate(options: argparse.Namespace) -> int:
    source = 0 if options.requests == "-" else options.requests
    try:
        with open(source, encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {options.requests!r}: {error.strerror}") from error
    for line in simulate.simulate(options.root, lines):
        say(line)
    return Exit.DONE


def run_defrag(options: argparse.Namespace) -> int:
    node = open_node(options.root)
    ledger = ledgers.peek(options.root)
    with progress() as tell:
        tell("looking at the VMs")
        host, running = running_vms(node, ledger, Sightings(options.root).look(ledger))
        tell(f"looking for moves of {len(running)} VMs")
        found = defrag.remedies(host, running)
    if options.json:
        print_json({"remedies": [defrag.as_json(remedy) for remedy in found]})
    else:
        say(*defrag.describe(found))
    return Exit.DONE


def running_vms(
    node: Node, ledger: Ledger, sightings: Iterable[Sighting]
) -> tuple[Host, list[tuple[Request, Holding]]]:
    """What `defrag` asks: the machine with its free memory, and every VM that is placed with its wish.

    A VM whose configuration cannot be read stands where it is, as if it were pinned.
    """
    seen = {sighting.vmid: sighting for sighting in sightings}
    near = views.device_nodes(node, seen.values())
    running = []
    for vmid, claim in sorted(ledger.claims.items()):
        share = claim.memory_mib // max(1, len(claim.placement.nodes))
        held = holding(claim)._replace(memory_mib=dict.fromkeys(claim.placement.nodes, share))
        machine = seen[vmid].machine if vmid in seen else None
        if machine is None:
            held = held._replace(vm_class=VmClass.PINNED)
            running.append((Request(vmid, len(held.vcpus), 0, VmClass.PINNED), held))
            continue
        wish = wishes.request(vmid, machine, claim.policy, device_nodes=near.get(vmid, frozenset()))
        running.append((wish, held))
    return offer.host(node, others.known(node.root, {*ledger.claims})), running
