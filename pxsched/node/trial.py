"""A VM on trial: for a short time it runs in another way than its settings say, so that both can be compared.

The trial is a file in /run that lies over the settings of one VM, and every pass respects it. It ends by
itself: with its time, with the process that wrote it, with the VM's process. Whoever makes the next pass then
finds the VM's knobs to be other than wanted, and puts them back, as after any crash.

What the VM held before stays in its claim (`Claim.aside`), and so it does of shared VMs that make room: they
get their own place again, and not just any.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pxsched import state, stored
from pxsched.guest import process
from pxsched.guest.process import Process
from pxsched.ledger import claim as claims
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Aside, Claim
from pxsched.ledger.file import Ledger
from pxsched.placement.request import EXCLUSIVE, Placement, VmClass
from pxsched.root import Root
from pxsched.settings.policy import Policy
from pxsched.value import NOTHING, Value, replace

FILE = "run/pxsched/trial.json"
# No block is longer: what claims to last longer is not ours.
LONGEST_NS = 2 * 3600 * 10**9


class Trial(Value):
    """way: its name. process: the VM's. until_ns: boot time. owner: who measures; the trial ends with it;
    None where passes of the timer do, so that time alone ends it. overlay: fields of the VM's policy.
    placement: where it belongs meanwhile, None for where it is.
    """

    vmid: int
    way: str
    process: Process
    until_ns: int
    owner: Process | None = None
    overlay: Mapping[str, Any] = NOTHING
    placement: Placement | None = None

    def policy(self, policy: Policy) -> Policy:
        return replace(policy, **self.overlay)


def load(root: Root) -> Trial | None:
    """The trial that is on; None when there is none, or it is over."""
    found, _ = state.load(root, FILE, _parse, set_aside=False)
    if found is None or not 0 < found.until_ns - ledgers.now_ns() <= LONGEST_NS:
        return None
    if found.owner is not None and not process.alive(Root(), found.owner):
        return None
    return found


def save(root: Root, trial: Trial) -> None:
    """Begins a trial, or goes on with it in another way. Raises OSError."""
    placement = None if trial.placement is None else claims.placement_out(trial.placement)
    document = {
        "schema": 1,
        "vmid": trial.vmid,
        "way": trial.way,
        "process": [trial.process.pid, trial.process.start_ticks],
        "until_ns": trial.until_ns,
        "owner": None if trial.owner is None else [trial.owner.pid, trial.owner.start_ticks],
        "overlay": dict(trial.overlay),
        "placement": placement,
    }
    state.save(root, FILE, document)


def remove(root: Root) -> None:
    state.remove(root, FILE)


def tidy(root: Root) -> None:
    """Removes what is left of a trial that is over."""
    if root.exists(FILE) and load(root) is None:
        remove(root)


def _parse(document: object) -> Trial:
    """Raises Damaged, LookupError, ValueError."""
    body = stored.table(document)
    vmid = stored.integer(body["vmid"], 100, 999_999_999)
    overlay = stored.table(body["overlay"], 64)
    return Trial(
        vmid,
        stored.text(body["way"], 80),
        _process(body["process"]),
        stored.integer(body["until_ns"]),
        stored.maybe(_process, body["owner"]),
        {name: Policy.declared[name].parse(value) for name, value in overlay.items()},
        stored.maybe(lambda value: claims.placement_in(vmid, value), body["placement"]),
    )


def _process(body: object) -> Process:
    pid, start_ticks = stored.pair(body)
    return Process(stored.integer(pid, 0, 1 << 22), stored.integer(start_ticks))


# What becomes of claims.


def on_trial(trial: Trial, ledger: Ledger, before: Claim, policy: Policy) -> Claim | None:
    """The claim of the VM that is on trial; None where it cannot be, as others have the CPUs to themselves or
    the VM has changed. policy: as its settings say.
    """
    home = before.aside.placement if before.aside else before.placement
    placement = trial.placement or home
    if before.process != trial.process or len(placement.vcpus) != len(home.vcpus):
        return None
    if not placement.cpus.isdisjoint(taken(ledger, placement)):
        return None
    aside = before.aside or Aside(before.placement, before.signature)
    # Without a signature it is placed anew, should its own place be gone by then.
    return replace(before, placement=placement, policy=trial.policy(policy), signature="", aside=aside)


def back(claim: Claim) -> Claim:
    """The claim as it was before the trial."""
    if claim.aside is None:
        return claim
    return replace(claim, placement=claim.aside.placement, signature=claim.aside.signature, aside=None)


def made_room(claim: Claim, before: Claim) -> Claim:
    """A shared VM's new claim, after it made room for the one on trial."""
    return replace(claim, aside=before.aside or Aside(before.placement, before.signature))


def taken(ledger: Ledger, placement: Placement) -> frozenset[int]:
    """The CPUs that nobody may have in such a placement, as others have them to themselves."""
    classes = EXCLUSIVE if placement.vm_class in EXCLUSIVE else (VmClass.DEDICATED,)
    held = ledger.holdings(but=placement.vmid)
    return frozenset[int]().union(*(one.cpus for one in held if one.vm_class in classes))


def yields(trial: Trial, ledger: Ledger, newcomers: Iterable[VmClass]) -> bool:
    """Whether the trial has to end for VMs that look for a place: they want CPUs to themselves, or it has
    some that are not its VM's otherwise.
    """
    newcomers = list(newcomers)
    claim = ledger.claims.get(trial.vmid)
    if claim is None or claim.aside is None or not newcomers:
        return False
    borrowed = claim.placement.cpus - claim.aside.placement.cpus or (
        claim.placement.vm_class in EXCLUSIVE and claim.aside.placement.vm_class not in EXCLUSIVE
    )
    return bool(borrowed) or any(one in EXCLUSIVE for one in newcomers)
