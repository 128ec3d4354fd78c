"""What a pass measures of memory: guests' balloons and the host, as the values that `balance` works on."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pxsched.guest.config import Machine
from pxsched.ledger.claim import Claim
from pxsched.ledger.file import Ledger
from pxsched.node.sighting import Node, Sighting
from pxsched.root import Root
from pxsched.settings.policy import MemoryMode

if TYPE_CHECKING:  # most nodes have no guest whose balloon is ours
    from pxsched.balance import balloon
    from pxsched.guest.balloon import Reading

# All guests are asked for their statistics at once, and together get this long.
PATIENCE_S = 1.0
# What is remembered of balloons that Proxmox could not be given back yet (`chain/handback.py`).
UNSERVED = "run/pxsched/handback.json"
# Jobs of Proxmox that may take hours while the guest runs on: it may grow, as with Proxmox, whose own
# controller leaves out only VMs that migrate. What is taken from it would slow it, and the job.
BESIDE = {
    "backup": "it is being backed up",
    "snapshot": "a snapshot of it is being made",
    "snapshot-delete": "a snapshot of it is being deleted",
    "clone": "it is being cloned",
    "create": "it is being restored",  # and runs already: `qmrestore --live-restore`
}


def excluded(ledger: Ledger, managed: Mapping[int, Sighting]) -> dict[int, str]:
    """Those of these VMs whose balloons are not ours to move, and why."""
    reasons = {
        vmid: _excluded(sighting.machine, ledger.claims[vmid])
        for vmid, sighting in managed.items()
        if sighting.machine is not None
    }
    return {vmid: reason for vmid, reason in reasons.items() if reason}


def pinned(machine: Machine) -> str:
    """Why the host does not get a VM's memory back, whatever its balloon says; empty where it does.

    QEMU refuses to discard memory that a device or the processor has by its address
    (ram_block_discard_disable in hw/vfio and target/i386/sev.c).
    """
    if machine.hostpci or machine.vfio:
        return "its memory is pinned by passed-through devices"
    if machine.locked:
        return "QEMU keeps its memory locked"
    if machine.encrypted:
        return "its memory is encrypted, and pinned for that"
    if machine.hugepage_mib is not None:
        return "it has huge pages"
    return ""


def unserved(claims: Mapping[int, Claim], sightings: Iterable[Sighting]) -> list[int]:
    """The running VMs of ours that Proxmox leaves alone, and whose memory the host does not get back."""
    return [
        sighting.vmid
        for sighting in sightings
        if (machine := sighting.machine) is not None
        and machine.shares == 0
        and sighting.process is not None
        and sighting.vmid in claims
        and pinned(machine)
    ]


def stranded(ledger: Ledger, managed: Mapping[int, Sighting]) -> list[int]:
    """The VMs that are ours by their configuration, pinned, and have not been given all their memory: Proxmox
    starts them at their minimum, and nobody else would ever let them grow.
    """
    return [
        vmid
        for vmid, sighting in managed.items()
        if (machine := sighting.machine) is not None
        and _is_pinned(machine, ledger.claims[vmid])
        and ledger.claims[vmid].balloon_mib != machine.memory_mib
    ]


def _is_pinned(machine: Machine, claim: Claim) -> bool:
    return bool(pinned(machine)) and not _excluded(machine, claim, pinning=False)


def look(
    root: Root,
    ledger: Ledger,
    managed: Mapping[int, Sighting],
    reasons: Mapping[int, str],
    shares: Mapping[int, str],
) -> "list[balloon.Guest]":
    """The guests of these VMs, whose configuration and process are known, and what they say of themselves.

    reasons: what `excluded` gives for them. shares: what was remembered of VMs before they became ours.
    """
    busy = {
        vmid: f"it is locked: {sighting.machine.lock}"
        for vmid, sighting in managed.items()
        if sighting.machine is not None and sighting.machine.lock not in ("", *BESIDE)
    }
    freeing = set(stranded(ledger, managed))
    asked = [vmid for vmid in managed if vmid not in busy and (vmid not in reasons or vmid in freeing)]
    answers = _ask(root, asked) | busy
    return [
        _guest(
            root,
            sighting,
            ledger.claims[vmid],
            reasons.get(vmid, ""),
            answers.get(vmid, ""),
            _weight(sighting.machine, shares.get(vmid)),
        )
        for vmid, sighting in managed.items()
    ]


def _ask(root: Root, vmids: list[int]) -> "dict[int, Reading | str]":
    if not vmids:
        return {}
    from pxsched.guest.balloon import read_all

    return read_all(root, vmids, patience_s=PATIENCE_S)


def _weight(machine: Machine | None, before: str | None) -> int:
    """What the admin stated; 0: nothing. before: the `shares` it had until it became ours, empty: unset."""
    if before is None:
        return machine.shares if machine is not None else 0
    return int(before) if before.isdecimal() and len(before) < 6 else 1000


def _guest(
    root: Root,
    sighting: Sighting,
    claim: Claim,
    excluded: str,
    answer: "Reading | str",
    shares: int,
) -> "balloon.Guest":
    from pxsched.balance import balloon
    from pxsched.guest import schedstat

    machine, process = sighting.machine, sighting.process
    assert machine is not None and process is not None
    silence = None
    if not isinstance(answer, str):
        silence = answer.silence(machine.memory_mib, moved=claim.balloon_mib is not None)
    return balloon.Guest(
        vmid=sighting.vmid,
        start=process.start_ticks,
        actual_mib=machine.memory_mib if isinstance(answer, str) else answer.actual_mib,
        minimum_mib=machine.balloon_mib or machine.memory_mib,
        maximum_mib=machine.memory_mib,
        stats=_stats(answer),
        policy=claim.policy,
        shares=shares,
        nodes=claim.placement.nodes if claim.policy.memory is MemoryMode.STRICT else frozenset(),
        resident_mib=schedstat.resident_mib(root, process.pid),
        excluded=excluded,
        unheard=answer if isinstance(answer, str) else "",
        silence=silence.value if silence else "",
        kept=BESIDE.get(machine.lock, ""),
        pinned=_is_pinned(machine, claim),
    )


def _stats(answer: "Reading | str") -> "balloon.Stats | None":
    if isinstance(answer, str) or answer.age_s is None:
        return None
    from pxsched.balance import balloon

    return balloon.Stats(
        answer.total_mib,
        answer.available_mib,
        answer.swapped_in_mib,
        answer.major_faults,
        answer.age_s,
        answer.swapped_out_mib,
    )


def _excluded(machine: Machine, claim: Claim, *, pinning: bool = True) -> str:
    """Why a guest's balloon is not ours to move; empty when it is."""
    if not claim.policy.balloon:
        return "its policy says so"
    if machine.balloon_mib == 0:
        return "it has no balloon"
    if machine.balloon_mib is None or machine.balloon_mib >= machine.memory_mib:
        return "its `balloon` minimum is all its memory"
    reason = pinned(machine)
    if machine.shares > 0:
        return f"Proxmox balances it itself; {reason or 'with `shares: 0` it would be ours'}"
    return reason if pinning else ""


def host_memory(root: Root, node: Node, guests: "Iterable[balloon.Guest]") -> "balloon.Host | None":
    from pxsched.balance import balloon
    from pxsched.host import pressure

    found = pressure.host_memory(root)
    if found is None:
        return None
    nodes: dict[int, float] = {}
    if any(guest.nodes for guest in guests):
        nodes = {one.id: float(one.free_mib) for one in node.memory}
    return balloon.Host(
        found.total_mib, found.available_mib, found.stalled, nodes, found.arc_mib, found.merged_mib
    )
