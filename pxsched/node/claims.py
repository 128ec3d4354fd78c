"""From what was seen of the VMs to who holds what: claims are made, kept, moved and dropped here.

Placement itself is a pure function; this decides when it is asked, and with what.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING

from pxsched.guest import process
from pxsched.host import cpulist
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State, dedicated
from pxsched.ledger.file import Ledger
from pxsched.node import fences, wishes
from pxsched.node import trial as trials
from pxsched.node.sighting import Node, Sighting
from pxsched.node.trial import Trial
from pxsched.node.wishes import Asked
from pxsched.placement.request import EXCLUSIVE, Holding, Placement, Refused, Request, VmClass
from pxsched.root import Root
from pxsched.settings.policy import Policy
from pxsched.value import replace

if TYPE_CHECKING:  # a hook loads it when a VM needs a place
    from pxsched.node.others import Seen

# A start that takes longer has failed: Proxmox waits a second per GiB at most (config_aware_timeout).
LONGEST_START_NS = 3600 * 10**9


class Changes:
    """What one update did. placed: VMIDs with a new placement; dropped: those that lost theirs; why: the
    reason, where they have not simply ended; refused: the reason by VMID. called_off: the VM whose trial ends
    here, as others look for a place.
    """

    def __init__(self) -> None:
        self.placed: list[int] = []
        self.dropped: list[int] = []
        self.why: dict[int, str] = {}
        self.refused: dict[int, str] = {}
        self.called_off: int | None = None


def update(
    node: Node,
    ledger: Ledger,
    sightings: Iterable[Sighting],
    device_nodes: Mapping[int, frozenset[int]] | None = None,
) -> Changes:
    """Brings the claims up to date with what was seen, and drops those whose VM is gone.

    Exclusive wishes come first, so that many VMs found at once fit whatever their order. Never raises for one
    VM: a refusal is kept under its VMID. A sighting that is out of date changes nothing.
    """
    changes = Changes()
    sightings = list(sightings)
    seen = {one.vmid: one for one in sightings if _is_current(node.root, ledger.claims.get(one.vmid), one)}
    _forget_dead(node, ledger, [one.vmid for one in sightings], seen, changes)
    asked = []
    for sighting in seen.values():
        machine = sighting.machine
        before = ledger.claims.get(sighting.vmid)
        if machine is None:
            if before and sighting.process:
                ledger.claims[sighting.vmid] = replace(before, process=sighting.process, state=State.RUNNING)
            continue
        if not _opted_in(before, sighting) or not (sighting.process or sighting.starter):
            continue
        policy = node.settings.policy(sighting.vmid, machine.tags)
        nodes = (device_nodes or {}).get(sighting.vmid, frozenset())
        fence = fences.of_vm(node, ledger, sighting.vmid, sighting.process)
        given = sighting, policy, nodes, fence, node.topology.online
        work = partial(wishes.asked, *given)
        asked.append((node.memos.wishes.of(sighting.vmid, given, work), sighting, policy))
    trial = trials.load(node.root)
    if trial is not None:
        newcomers = (one.wish.vm_class for one, _, _ in asked if one.wish.vmid not in ledger.claims)
        if trials.yields(trial, ledger, newcomers):
            ledger.claims[trial.vmid] = trials.back(ledger.claims[trial.vmid])
            changes.called_off, trial = trial.vmid, None
    asked.sort(key=lambda one: (_ORDER[one[0].wish.vm_class], one[1].vmid not in ledger.claims, one[1].vmid))
    if trial is not None:  # by its place others know what they may have
        asked.sort(key=lambda one: one[1].vmid != trial.vmid)
    owned: frozenset[int] | None = None
    taken: frozenset[int] | None = None
    around = _Around(node, {*ledger.claims, *(sighting.vmid for _, sighting, _ in asked)})
    for one, sighting, policy in asked:
        vmid = sighting.vmid
        if _try(node, ledger, vmid, policy, trial, changes):
            continue
        if owned is None and one.wish.vm_class in EXCLUSIVE:
            owned = dedicated(ledger.felt().values(), pinned=True)
        # Shared VMs come last: by now everyone has who gets CPUs of his own.
        if taken is None and one.wish.vm_class is VmClass.SHARED:
            taken = dedicated(ledger.felt().values())
        try:
            before = ledger.claims.get(vmid)
            if _claim(around, ledger, one, sighting, policy, owned or frozenset(), taken or frozenset()):
                owned = None
                changes.placed.append(vmid)
                claim = ledger.claims[vmid]
                if trial is not None and before is not None and before.signature == claim.signature:
                    ledger.claims[vmid] = trials.made_room(claim, before)
        except Refused as refusal:
            owned = None
            changes.refused[vmid] = str(refusal)
            if vmid in ledger.claims:
                _drop(ledger, vmid, changes, str(refusal))
    return changes


def _try(
    node: Node, ledger: Ledger, vmid: int, policy: Policy, trial: Trial | None, changes: Changes
) -> bool:
    """Has a VM on trial where its block wants it, and says so. One that is no longer gets back what it had,
    as far as that is free, and so do those that made room.
    """
    before = ledger.claims.get(vmid)
    if before is None:
        return False
    if trial is not None and trial.vmid == vmid:
        claim = trials.on_trial(trial, ledger, before, policy)
        if claim is not None and claim.placement.cpus <= node.topology.online:
            if claim.placement != before.placement:
                changes.placed.append(vmid)
            ledger.claims[vmid] = claim
            return True
    if before.aside is not None:
        home = trials.back(before)
        if _fits(node, home, trials.taken(ledger, home.placement)):
            ledger.claims[vmid] = home
        elif trial is None or trial.vmid == vmid:
            ledger.claims[vmid] = replace(before, aside=None)
    return False


def _is_current(root: Root, before: Claim | None, sighting: Sighting) -> bool:
    """Whether the process that was seen is still the VM's, which is asked wherever the claim says otherwise.

    Sightings are older than the lock: since then the VM may have ended, and a hook have claimed CPUs for its
    next start.
    """
    if sighting.process is None or (before is not None and before.process == sighting.process):
        return True
    return process.find(root, sighting.vmid) == sighting.process


def _forget_dead(
    node: Node, ledger: Ledger, vmids: Iterable[int], seen: Mapping[int, Sighting], changes: Changes
) -> None:
    """Drops the claims of these VMs that are gone. Those that look for a place want to know that of the
    others, too, where these own CPUs or are about to take memory.
    """
    newcomers = any(vmid not in ledger.claims for vmid in seen)
    asked = dict.fromkeys(vmid for vmid in vmids if vmid in ledger.claims)
    if newcomers:
        asked |= dict.fromkeys(ledger.felt())
    for vmid in asked:
        if not _holds(node, ledger.claims[vmid], seen.get(vmid)):
            sighting = seen.get(vmid)
            runs = sighting is not None and sighting.process is not None
            _drop(ledger, vmid, changes, "it is no longer opted in" if runs else "")


def _drop(ledger: Ledger, vmid: int, changes: Changes, reason: str) -> None:
    """Ends a claim. Shared VMs that had to make room for it are placed again when they are next looked at,
    and pinned ones whose other threads found no room beside it.
    """
    gone = ledger.claims.pop(vmid).placement
    changes.dropped.append(vmid)
    if reason:
        changes.why[vmid] = reason
    if gone.vm_class not in EXCLUSIVE:
        return
    for other, claim in ledger.claims.items():
        place = claim.placement
        crowded = (place.vm_class is VmClass.SHARED and gone.vm_class is VmClass.DEDICATED) or (
            place.vm_class is VmClass.PINNED and place.emulator <= place.cpus
        )
        if crowded and place.nodes & gone.nodes:
            ledger.claims[other] = replace(claim, signature="")


_ORDER = {VmClass.PINNED: 0, VmClass.DEDICATED: 1, VmClass.CONSTRAINED: 2, VmClass.SHARED: 3}


def _holds(node: Node, claim: Claim, sighting: Sighting | None) -> bool:
    """Whether the claim still has a VM behind it."""
    if sighting is not None and (sighting.process or sighting.starter):
        return sighting.machine is None or _opted_in(claim, sighting)
    if claim.process is not None and process.alive(node.root, claim.process):
        return True
    if claim.state is State.STARTING and claim.starter is not None:
        young = ledgers.now_ns() - claim.since_ns < LONGEST_START_NS
        return young and process.alive(node.root, claim.starter)
    return False


def _opted_in(claim: Claim | None, sighting: Sighting) -> bool:
    """Whether we may place the VM: its hookscript is ours, or is still the one that once called us."""
    if sighting.opted_in or claim is None or sighting.machine is None:
        return sighting.opted_in
    return claim.hookscript == sighting.machine.hookscript


class _Around:
    """What a VM that looks for a place has to know of the node; read when the first one does.

    ours: the VMs that are placed, or about to be.
    """

    def __init__(self, node: Node, ours: Collection[int]) -> None:
        self.node = node
        self._ours = ours

    @cached_property
    def _others(self) -> "Seen":
        from pxsched.node import others

        return others.known(self.node.root, self._ours)

    def place(self, holdings: list[Holding], wish: Request, *, allocated: bool) -> Placement:
        """Asks placement, which most phases have no need to load. Raises Refused.

        allocated: the VM has its memory, so that a lack of it is no reason to refuse.
        """
        from pxsched.node import offer
        from pxsched.placement.search import place

        return place(offer.host(self.node, self._others, allocated=allocated), holdings, wish)

    def clear(self, holdings: list[Holding], wish: Request, placement: Placement) -> Placement:
        """Leaves its vCPUs where they are, and gives its other threads CPUs that nobody has to himself."""
        from pxsched.node import offer
        from pxsched.placement.housekeeping import cleared

        return cleared(offer.host(self.node, self._others, allocated=True), holdings, wish, placement)


def _claim(
    around: _Around,
    ledger: Ledger,
    asked: Asked,
    sighting: Sighting,
    policy: Policy,
    owned: frozenset[int],
    taken: frozenset[int],
) -> bool:
    """Makes or renews one claim; says whether the VM was placed anew. Raises Refused.

    owned: the CPUs of all vCPUs that have one to themselves, for a VM of such. taken: the CPUs that are
    dedicated to somebody, for a shared VM.
    """
    node, (wish, signature) = around.node, asked
    before = ledger.claims.get(wish.vmid)
    moved = before is None or before.signature != signature or not _fits(node, before, taken)
    placement = before.placement if before else None
    if moved or placement is None:
        load = before.load if before else None
        wish = replace(wish, previous=placement, load=load)
        holdings = ledger.holdings(but=wish.vmid)
        placement = around.place(holdings, wish, allocated=sighting.process is not None)
    elif before is not None and _in_the_way(node, before, owned):
        placement = around.clear(ledger.holdings(but=wish.vmid), wish, placement)
    claim = before or Claim(placement, State.STARTING, since_ns=ledgers.now_ns())
    ledger.claims[wish.vmid] = Claim(
        placement,
        state=State.RUNNING if sighting.process else State.STARTING,
        policy=policy,
        process=sighting.process,
        starter=None if sighting.process else sighting.starter,
        inherited=_inherited(node, ledger, claim, sighting),
        signature=signature,
        source=sighting.source or claim.source,
        memory_mib=wish.memory_mib,
        weight=wish.weight,
        hookscript=sighting.machine.hookscript if sighting.machine else "",
        since_ns=claim.since_ns if claim.process in (None, sighting.process) else ledgers.now_ns(),
        load=claim.load,
        # Another process has another balloon.
        balloon_mib=claim.balloon_mib if claim.process == sighting.process else None,
        aside=claim.aside if claim.process == sighting.process else None,
    )
    return moved


def _inherited(node: Node, ledger: Ledger, claim: Claim, sighting: Sighting) -> str:
    """The mask QEMU's threads have without us: `affinity`, else that of the task that starts it."""
    starter = sighting.starter
    if sighting.machine and sighting.machine.affinity:
        return cpulist.format(sighting.machine.affinity)
    if sighting.process is not None or starter is None or starter == claim.starter:
        return claim.inherited
    steered = ledger.journal.get(ThreadAffinity(starter.pid, starter.start_ticks).key)
    if steered is not None:
        return steered.original  # the same task is starting another VM, too
    return process.allowed(node.root, starter.pid) or ""


def _fits(node: Node, claim: Claim, taken: frozenset[int]) -> bool:
    """Whether a placement still serves: its CPUs are there, and nobody else has them to himself."""
    placement = claim.placement
    if placement.vm_class is VmClass.SHARED:
        return bool(placement.cpus & node.topology.online) and not placement.cpus & taken
    return placement.cpus <= node.topology.online


def _in_the_way(node: Node, claim: Claim, owned: frozenset[int]) -> bool:
    """Whether threads of a VM with CPUs of its own run where another one has its own since, and the admin
    does not want them there.

    owned: the CPUs of all VMs that have some.
    """
    placement = claim.placement
    if placement.vm_class not in EXCLUSIVE:
        return False
    crossed = (placement.emulator & owned) - placement.cpus
    return bool(crossed) and not crossed <= cpulist.parse(node.settings.node.housekeeping)


def displaced(node: Node, ledger: Ledger) -> list[int]:
    """Shared VMs whose home was dedicated to another VM since, and VMs whose other threads are in the way of
    somebody's vCPUs.
    """
    felt = ledger.felt()
    owned = dedicated(felt.values(), pinned=True)
    found = [vmid for vmid, claim in felt.items() if _in_the_way(node, claim, owned)]
    taken = dedicated(felt.values())
    if taken:
        homes = ledger.holdings()
        found += [home.vmid for home in homes if home.vm_class is VmClass.SHARED and home.cpus & taken]
    return found


def moved_to(placement: Placement, cpus: frozenset[int], nodes: frozenset[int], why: str) -> Placement:
    """The same VM in another home, as the balancer proposes."""
    return replace(
        placement,
        vcpus=(cpus,) * len(placement.vcpus),
        emulator=cpus,
        nodes=nodes,
        why=(why, *placement.why[:3]),
    )
