"""What `enable`, `disable` and `list` did or found, as lines and as JSON. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from pxsched.guest.hookscript import is_ours
from pxsched.optin.rules import Outcome, Step
from pxsched.proxmox.cluster import Guest

STATES = {True: "running", False: "stopped", None: "?"}
MARKS = {Outcome.CHANGE: "", Outcome.ALREADY: "unchanged", Outcome.SKIP: "skipped", Outcome.REFUSE: "REFUSED"}


def report(steps: Sequence[Step], failures: Mapping[int, str], *, dry_run: bool) -> dict[str, object]:
    """What was done, or would be. failures: by VMID."""
    vms = [
        {
            "vmid": step.guest.vmid,
            "node": step.guest.node,
            "outcome": "failed" if step.guest.vmid in failures else step.outcome.value,
            "now": step.guest.hookscript or None,
            "want": step.want or None,
            "chained": step.chain or None,
            "shares": step.shares,
            "balloon": step.balloon,
            "refused": step.refused or None,
            "notes": list(step.notes),
        }
        for step in steps
    ]
    return {
        "dry_run": dry_run,
        "vms": vms,
        "failures": {str(vmid): failures[vmid] for vmid in failures},
    }


def told(steps: Sequence[Step], failures: Mapping[int, str], done: str, *, dry_run: bool) -> Iterator[str]:
    """The same as lines, without what failed. done: the word for it, `enabled`."""
    if not steps and not failures:
        yield "no VM matches"
    for step in steps:
        if step.guest.vmid in failures:
            continue
        what = MARKS[step.outcome]
        if step.outcome is Outcome.CHANGE:
            what = f"{'would be ' * dry_run}{done}: {', '.join(_changes(step))}"
        yield f"VM {_label(step.guest)}: {what}{''.join(f' ({note})' for note in step.notes)}"


def _changes(step: Step) -> Iterator[str]:
    if step.want != step.guest.hookscript:
        yield f"hookscript {step.guest.hookscript or 'none'} -> {step.want or 'none'}"
    for key, value in (("shares", step.shares), ("balloon", step.balloon)):
        if value is not None:
            yield f"{key} {step.guest.options.get(key, 'unset')} -> {value or 'unset'}"


def _label(guest: Guest) -> str:
    name = guest.name[:40]
    return f"{guest.vmid} {name} on {guest.node}" if name else f"{guest.vmid} on {guest.node}"


def rows(guests: Sequence[Guest], remembered: Mapping[int, str]) -> Iterator[str]:
    """`list`, a line for each VM. remembered: the scripts that ours runs beside itself, by VMID."""
    yield f"{'VMID':>9}  {'NODE':12}  {'STATE':8}  {'PXSCHED':8}  NAME"
    for guest in guests:
        row = entry(guest, remembered)
        state = "template" if guest.template else STATES[guest.running]
        ha = " [HA]" if guest.ha else ""
        script = f" (hookscript {guest.hookscript[:60]})" if guest.hookscript else ""
        if row["enabled"]:
            chained = remembered.get(guest.vmid)
            script = f" (chained: {chained[:60]})" if chained else ""
        enabled = "?" if guest.problem else "yes" if row["enabled"] else "no"
        script = f" ({guest.problem[:120]})" if guest.problem else script
        yield f"{guest.vmid:>9}  {guest.node:12}  {state:8}  {enabled:8}  {guest.name[:40]}{ha}{script}"


def entry(guest: Guest, remembered: Mapping[int, str]) -> dict[str, object]:
    """A VM as a row of `list --json`."""
    return {
        "vmid": guest.vmid,
        "node": guest.node,
        "name": guest.name,
        "running": guest.running,
        "template": guest.template,
        "ha": guest.ha,
        "enabled": None if guest.problem else is_ours(guest.hookscript),
        "problem": guest.problem or None,
        "hookscript": guest.hookscript or None,
        "chained": remembered.get(guest.vmid),
    }
