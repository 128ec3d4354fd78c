"""What the timer's last pass found and did, for `status`: contention, balloons, moves and their reasons."""

import time

from pxsched.ledger.claim import Claim
from pxsched.node.remembered import Last


def of_vm(last: Last, claim: Claim) -> dict[str, object]:
    """One VM's part. contention: how much slower it runs than its fair share of the node would let it."""
    standing = last.standings.get(claim.vmid)
    found: dict[str, object] = {"contention": None, "balloon": None}
    if standing is not None:
        run, wait, due, lack = standing
        found["contention"] = {"running": run, "waiting": wait, "due": due, "lack": lack}
    why_not = last.skipped.get(claim.vmid)
    if claim.balloon_mib is not None or why_not:
        found["balloon"] = {"target_mib": claim.balloon_mib, "left_alone": why_not}
    return found


def waiting(last: Last) -> dict[int, float]:
    """By VMID, how many CPUs' worth of time it waited."""
    return {vmid: wait for vmid, (_run, wait, _due, _lack) in last.standings.items()}


def document(last: Last) -> dict[str, object] | None:
    """The node's part; None before the first pass."""
    if last.at_s is None:
        return None
    return {"at": last.at_s, "acted_at": last.acted_at_s, "acted": list(last.acted)}


def lines(last: Last, vmids: set[int]) -> list[str]:
    """The same for a person."""
    found = []
    for vmid, (run, wait, _due, lack) in last.standings.items():
        if vmid in vmids:
            share = f"VM {vmid} runs {run:.2f} and waits {wait:.2f} CPUs"
            found.append(f"{share}: {lack:.0%} slower than its fair share" if lack >= 0.01 else share)
    found += [
        f"VM {vmid}'s balloon is left alone: {reason}"
        for vmid, reason in last.skipped.items()
        if vmid in vmids
    ]
    if last.acted_at_s is not None:
        ago_s = max(0.0, time.time() - last.acted_at_s)
        found.append(f"The last pass that changed something, {ago_s:.0f} s ago:")
        found += [f"  {line}" for line in last.acted]
    return found
