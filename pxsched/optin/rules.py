"""Which VMs get our hookscript, or lose it, and what is to be said of each. Pure.

Opting in is having our script as `hookscript`. Proxmox lets only root@pam set it, copies it to clones and
backups, and refuses to start a VM whose script is missing on its node.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pxsched.errors import UserError
from pxsched.proxmox.cluster import Guest

SCRIPT_NAME = "pxsched"


class Outcome(StrEnum):
    CHANGE = "change"
    ALREADY = "already"
    SKIP = "skip"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Selection:
    """The VMs meant: by number, by tag, or all of `node` (None: of all nodes)."""

    vmids: tuple[int, ...] = ()
    tag: str = ""
    everyone: bool = False
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one VM. want: its hookscript afterwards, empty for none. chain: the script that ours
    will run from now on. notes: what the admin should know.
    """

    guest: Guest
    outcome: Outcome
    want: str = ""
    chain: str = ""
    notes: tuple[str, ...] = ()


def is_ours(volume: str) -> bool:
    """On whichever storage."""
    return re.fullmatch(rf"[^:/\s]+:snippets/{SCRIPT_NAME}", volume, re.ASCII) is not None


def select(guests: Iterable[Guest], selection: Selection) -> tuple[list[Guest], list[int]]:
    """The VMs that are meant, and the numbers among those asked for that do not exist."""
    everyone = list(guests)
    if selection.vmids:
        found = {guest.vmid: guest for guest in everyone}
        wanted = dict.fromkeys(selection.vmids)
        return [found[vmid] for vmid in wanted if vmid in found], [v for v in wanted if v not in found]
    here = [guest for guest in everyone if selection.node in (None, guest.node)]
    if selection.tag:
        return [guest for guest in here if selection.tag in guest.tags], []
    if selection.everyone:
        return here, []
    raise UserError("no VM is named", hint="give VMIDs, --tag TAG or --all")


def enable(guest: Guest, volume: str, *, chain: bool, by_number: bool) -> Step:
    """What opting in means for one VM. by_number: the admin named this very VM."""
    if guest.describes_capacity:
        return Step(guest, Outcome.SKIP, notes=("describes the node's capacity and never runs",))
    if is_ours(guest.hookscript):
        return Step(guest, Outcome.ALREADY, guest.hookscript)
    if guest.template and not by_number:
        return Step(guest, Outcome.SKIP, notes=("a template; name it by number to opt in its clones",))
    if guest.hookscript and not chain:
        note = f"has the hookscript {guest.hookscript[:80]}; --chain keeps it running beside ours"
        return Step(guest, Outcome.REFUSE, guest.hookscript, notes=(note,))
    return Step(guest, Outcome.CHANGE, volume, guest.hookscript, _notes(guest))


def disable(guest: Guest, remembered: Mapping[int, str]) -> Step:
    """What opting out means: the VM's own script comes back, or none."""
    if not is_ours(guest.hookscript):
        return Step(guest, Outcome.ALREADY, guest.hookscript)
    own = remembered.get(guest.vmid, "")
    return Step(guest, Outcome.CHANGE, own, notes=(f"its own {own[:80]} is back",) if own else ())


def _notes(guest: Guest) -> tuple[str, ...]:
    notes = []
    if guest.template:
        notes.append("a template: its clones inherit the hookscript")
    if guest.ha:
        notes.append("an HA resource: every node it may move to needs pxsched installed")
    if guest.hookscript:
        notes.append(f"{guest.hookscript[:80]} runs beside ours; clones do not inherit it")
    return tuple(notes)
