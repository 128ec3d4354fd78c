"""Which VMs get our hookscript, or lose it, and what is to be said of each. Pure.

Opting in is having our script as `hookscript`. Proxmox lets only root@pam set it, copies it to clones and
backups, and refuses to start a VM whose script is missing on its node.
"""

from collections.abc import Iterable
from enum import StrEnum

from pxsched.chain import entry as entries
from pxsched.chain.entry import Entry
from pxsched.errors import UserError, nearest
from pxsched.guest.hookscript import is_ours
from pxsched.optin import balloons
from pxsched.proxmox.cluster import Guest
from pxsched.value import Value


class Outcome(StrEnum):
    CHANGE = "change"
    ALREADY = "already"
    SKIP = "skip"
    REFUSE = "refuse"


class Selection(Value):
    """The VMs meant: by number, by tag, or all of `node` (None: of all nodes)."""

    vmids: tuple[int, ...] = ()
    tag: str = ""
    everyone: bool = False
    node: str | None = None


class Step(Value):
    """What happens to one VM. want: its hookscript afterwards, empty for none. chain: the script that ours
    will run from now on. shares, balloon: these options afterwards, empty for unset, None where they stay.
    notes: what the admin should know. refused: what of the wish is not done, and why.
    """

    guest: Guest
    outcome: Outcome
    want: str = ""
    chain: str = ""
    shares: str | None = None
    notes: tuple[str, ...] = ()
    balloon: str | None = None
    refused: str = ""


def select(guests: Iterable[Guest], selection: Selection) -> tuple[list[Guest], list[int]]:
    """The VMs that are meant, and the numbers among those asked for that do not exist. Raises UserError where
    nobody is named, or a tag that no VM has.
    """
    everyone = list(guests)
    if selection.vmids:
        found = {guest.vmid: guest for guest in everyone}
        wanted = dict.fromkeys(selection.vmids)
        return [found[vmid] for vmid in wanted if vmid in found], [v for v in wanted if v not in found]
    here = [guest for guest in everyone if selection.node in (None, guest.node)]
    if selection.tag:
        tagged = [guest for guest in here if selection.tag in guest.tags]
        if not tagged:
            near = nearest(selection.tag, sorted({tag for guest in here for tag in guest.tags}))
            where = f" on node {selection.node}" if selection.node else ""
            raise UserError(f"no VM{where} has the tag {selection.tag!r}{near}")
        return tagged, []
    if selection.everyone:
        return here, []
    raise UserError("no VM is named", hint="give VMIDs, --tag TAG or --all")


def enable(
    guest: Guest,
    volume: str,
    *,
    chain: bool,
    by_number: bool,
    balloon: bool = False,
    unserved: str = "",
    minimum_percent: float = 0.0,
) -> Step:
    """What opting in means for one VM. by_number: the admin named this very VM. balloon: take its balloon
    over from Proxmox, whose controller keeps away from VMs without shares. unserved, minimum_percent: see
    `balloons.takeover`.
    """
    if guest.problem:
        return Step(guest, Outcome.REFUSE, notes=(guest.problem,))
    if guest.describes_capacity:
        return Step(guest, Outcome.SKIP, notes=("describes the node's capacity and never runs",))
    took = balloons.takeover(guest, asked=balloon, unserved=unserved, minimum_percent=minimum_percent)
    said = (took.refused,) if took.refused and not by_number else ()
    refused = took.refused if by_number else ""
    if is_ours(guest.hookscript):
        outcome = Outcome.ALREADY if took.shares is None else Outcome.CHANGE
        known = (*said, *([took.note] if balloon and took.note else []))
        return Step(guest, outcome, guest.hookscript, "", took.shares, known, took.balloon, refused)
    if guest.template and not by_number:
        return Step(guest, Outcome.SKIP, notes=("a template; name it by number to opt in its clones",))
    if guest.hookscript and not chain:
        note = f"has the hookscript {guest.hookscript[:80]}; --chain keeps it running beside ours"
        return Step(guest, Outcome.REFUSE, guest.hookscript, notes=(note,))
    notes = (*_notes(guest), *said, *([took.note] if took.note else []))
    return Step(guest, Outcome.CHANGE, volume, guest.hookscript, took.shares, notes, took.balloon, refused)


def disable(guest: Guest, before: Entry | None, *, shaped: bool = False) -> Step:
    """What opting out means: the VM's own script, shares and balloon minimum come back, as remembered.

    shaped: whether `pxsched shape` changed its processors. That stays: it cannot be undone while the VM runs.
    """
    if guest.problem:
        return Step(guest, Outcome.REFUSE, notes=(guest.problem,))
    if not is_ours(guest.hookscript):
        return Step(guest, Outcome.ALREADY, guest.hookscript)
    own = (before.hookscript if before else None) or ""
    notes = [f"its own {own[:80]} is back"] if own else []
    if shaped:
        notes.append(f"its guest stays told what it had until `pxsched shape {guest.vmid} --undo`")
    # An admin who set shares meanwhile has decided.
    shares = before.shares if before and guest.options.get("shares") == "0" else None
    minimum = entries.restored(before.minimum if before else None, guest.options.get("balloon"))
    if shares is None and minimum is None:
        notes += balloons.deserted(guest)
    return Step(guest, Outcome.CHANGE, own, shares=shares, notes=tuple(notes), balloon=minimum)


def _notes(guest: Guest) -> tuple[str, ...]:
    notes = []
    if guest.template:
        notes.append("a template: its clones inherit the hookscript")
    if guest.ha:
        notes.append("an HA resource: every node it may move to needs pxsched installed")
    if lock := guest.options.get("lock"):
        notes.append(f"locked ({lock[:20]}): Proxmox changes nothing of it until that ends")
    if guest.hookscript:
        notes.append(f"{guest.hookscript[:80]} runs beside ours; clones do not inherit it")
    return tuple(notes)
