"""What the timer's last pass found and did, for `status`: contention, balloons, moves and their reasons."""

import time
from collections.abc import Mapping

from pxsched.ledger.claim import Claim


def of_vm(last: Mapping[str, object], claim: Claim) -> dict[str, object]:
    """One VM's part. contention: how much slower it runs than its fair share of the node would let it."""
    standing = _table(last, "standings").get(str(claim.vmid))
    found: dict[str, object] = {"contention": None, "balloon": None}
    if isinstance(standing, list) and len(standing) == 4:
        run, wait, due, lack = standing
        found["contention"] = {"running": run, "waiting": wait, "due": due, "lack": lack}
    why_not = _table(last, "skipped").get(str(claim.vmid))
    if claim.balloon_mib is not None or why_not:
        found["balloon"] = {"target_mib": claim.balloon_mib, "left_alone": why_not}
    return found


def document(last: Mapping[str, object]) -> dict[str, object] | None:
    """The node's part; None before the first pass."""
    if "at" not in last:
        return None
    return {"at": last["at"], "acted_at": last.get("acted_at"), "acted": last.get("acted", [])}


def lines(last: Mapping[str, object], vmids: set[int]) -> list[str]:
    """The same for a person."""
    found = []
    for vmid, standing in _table(last, "standings").items():
        if int(vmid) in vmids and isinstance(standing, list) and len(standing) == 4:
            run, wait, _due, lack = standing
            share = f"VM {vmid} runs {run:.2f} and waits {wait:.2f} CPUs"
            found.append(f"{share}: {lack:.0%} slower than its fair share" if lack >= 0.01 else share)
    found += [
        f"VM {vmid}'s balloon is left alone: {reason}"
        for vmid, reason in _table(last, "skipped").items()
        if int(vmid) in vmids
    ]
    acted, acted_at = last.get("acted"), last.get("acted_at")
    if isinstance(acted, list) and isinstance(acted_at, float):
        found.append(f"The last pass that changed something, {max(0.0, time.time() - acted_at):.0f} s ago:")
        found += [f"  {line}" for line in acted]
    return found


def _table(last: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = last.get(name)
    return value if isinstance(value, dict) else {}
