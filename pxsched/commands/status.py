"""`status`: who holds what, every knob that is turned, and what the last pass did. It changes nothing."""

import argparse
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from pxsched.arguments import add, print_json, vmid
from pxsched.chain import handback
from pxsched.commands.reading import claim_document
from pxsched.errors import Exit, UserError
from pxsched.host import topology
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import NODE, Entry
from pxsched.node import exclusive as facts
from pxsched.node import others as strangers
from pxsched.node import planning, proofs, remembered, trial
from pxsched.node import sighting as nodes
from pxsched.node.exclusive import Exclusive
from pxsched.node.others import Seen
from pxsched.node.remembered import Last
from pxsched.node.trial import Trial
from pxsched.output import say
from pxsched.placement.request import EXCLUSIVE
from pxsched.proof.result import Brief
from pxsched.report import balance, devices, exclusive, host, knobs, others, overview, proof, text
from pxsched.report.overview import Line
from pxsched.root import Root
from pxsched.settings import files as settings
from pxsched.shaping import advice
from pxsched.value import Value, plain


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = add(commands, "status", run, "show who holds what, and every knob that is turned",
                  example="pxsched status 100 --json", reads=True)  # fmt: skip
    command.add_argument("vm", metavar="VMID", type=vmid, nargs="?")


class Standing(Value):
    """How the node stands, or one VM; each part is read when first asked for. vmid: that VM, None for all."""

    root: Root
    vmid: int | None

    def concerns(self, vmid: int) -> bool:
        return self.vmid in (None, vmid)

    @cached_property
    def ledger(self) -> Ledger:
        return ledgers.peek(self.root)

    @cached_property
    def claims(self) -> list[Claim]:
        return [claim for vmid, claim in sorted(self.ledger.claims.items()) if self.concerns(vmid)]

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Of the journal, by the knob's key."""
        return {key: entry for key, entry in self.ledger.journal.items() if self.concerns(entry.owner)}

    @cached_property
    def values(self) -> Mapping[str, str | None]:
        """What each of these knobs says now."""
        return {key: planning.standing(self.root, key, entry) for key, entry in self.entries.items()}

    @cached_property
    def last(self) -> Last:
        return handback.explained(self.root, remembered.last(self.root))

    @cached_property
    def exclusive(self) -> Mapping[int, Exclusive]:
        """Who may run on the CPUs of VMs that have some to themselves, by VMID."""
        found = facts.check(self.root, self.ledger, topology.isolated(self.root))
        return {vm.vmid: vm for vm in found if self.concerns(vm.vmid)}

    @cached_property
    def untrue(self) -> Mapping[int, list[str]]:
        """What guests were told and is no longer so, since their VMs were placed elsewhere; nothing where the
        machine cannot be seen.
        """
        pinned = [claim for claim in self.claims if claim.placement.vm_class in EXCLUSIVE]
        try:
            looks = advice.of_claims(nodes.open_node(self.root), pinned) if pinned else []
        except UserError:
            return {}
        return {found.vmid: found.differences for found in looks if found.shaped}

    @cached_property
    def seen(self) -> Seen:
        """Who else is on the node."""
        return strangers.known(self.root, {*self.ledger.claims})

    @cached_property
    def lines(self) -> list[Line]:
        """A line for each VM with a place, and then for who else is there."""
        strange = self.seen.others if self.vmid is None else ()
        return overview.look(self.root, self.claims, strange, self.exclusive, balance.waiting(self.last))

    @cached_property
    def trial(self) -> Trial | None:
        return trial.load(self.root)

    @cached_property
    def proven(self) -> list[Brief]:
        return [one for one in proofs.briefs(self.root) if self.concerns(one.vmid)]

    @cached_property
    def warnings(self) -> list[str]:
        return [*self.ledger.warnings, *settings.load(self.root).stale]


def run(options: argparse.Namespace) -> int:
    now = Standing(options.root, options.vm)
    if now.vmid is not None and not now.claims and not now.entries:
        raise UserError(f"VM {now.vmid} holds nothing", hint="is it running, and opted in?")
    if options.json:
        print_json(document(now))
    else:
        say(*lines(now))
    return Exit.DONE


def document(now: Standing) -> dict[str, Any]:
    """For --json."""
    on = now.trial
    return {
        "node": nodes.name_of(now.root),
        "vms": [
            _vm(now.root, claim)
            | balance.of_vm(now.last, claim)
            | {"exclusive": exclusive.document(now.exclusive.get(claim.vmid))}
            | {"shape": now.untrue.get(claim.vmid)}
            | overview.document(line)
            for claim, line in zip(now.claims, now.lines, strict=False)
        ],
        "knobs": [_knob(key, entry, now.values[key]) for key, entry in now.entries.items()],
        "last_pass": balance.document(now.last),
        "host": plain(host.look(now.root)),
        **others.document(now.seen),
        "trial": None if on is None else {"vmid": on.vmid, "way": on.way},
        "proofs": [{"vmid": one.vmid, "at": one.began_s, "sentence": one.sentence} for one in now.proven],
        "warnings": now.warnings,
    }


def lines(now: Standing) -> Iterator[str]:
    """The same for a person."""
    yield from (f"warning: {warning}" for warning in now.warnings)
    yield from overview.table(now.lines)
    if machine := host.look(now.root):
        yield machine.line
    yield from text.status(now.claims, knobs.lines(now.root, now.entries, now.values))
    for claim in now.claims:
        yield from devices.lines(claim.vmid, devices.document(now.root, claim))
    yield from exclusive.lines(now.exclusive.values())
    yield from (f"VM {vmid}: {line}" for vmid, found in now.untrue.items() for line in found)
    yield from balance.lines(now.last, {claim.vmid for claim in now.claims})
    yield from proof.on_trial(now.trial)
    yield from map(proof.brief, now.proven)
    if now.vmid is None:
        yield from others.lines(now.seen)


def _vm(root: Root, claim: Claim) -> dict[str, Any]:
    return {
        **claim_document(claim),
        "state": claim.state,
        "pid": claim.process.pid if claim.process else None,
        "run_delay": planning.run_delay(root, claim),
        "load": claim.load,
        "devices": devices.document(root, claim),
    }


def _knob(key: str, entry: Entry, now: str | None) -> dict[str, Any]:
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
