"""The proofs that were made on this node, one small file a VM: they outlive a reboot, and their VM not."""

import os
import re

from pxsched import state, stored
from pxsched.guest import config, identity
from pxsched.guest.identity import Identity
from pxsched.guest.process import VMID
from pxsched.node import sighting as nodes
from pxsched.proof.result import Brief, Result
from pxsched.proof.result import brief as briefly
from pxsched.root import Root
from pxsched.value import plain

DIR = "var/lib/pxsched/proofs"
SUMMARY = f"{DIR}/summary.json"
_NAME = re.compile(rf"({VMID.pattern})\.json", re.ASCII)


def identity_of(root: Root, vmid: int) -> Identity:
    """Which VM has this number now."""
    path = nodes.config_path(root, vmid)
    text = root.read(path) if path else None
    return identity.of(config.parse(text or "", name=f"{vmid}.conf").options)


def load(root: Root, vmid: int) -> Result | None:
    """What is known of the VM that has this number now."""
    found, _ = state.load(root, f"{DIR}/{int(vmid)}.json", Result.from_json, set_aside=False)
    if found is None or found.vmid != vmid or not identity.same(found.identity, identity_of(root, vmid)):
        return None
    return found


def load_all(root: Root) -> list[Result]:
    names = (match for name in root.list(DIR) if (match := _NAME.fullmatch(name)))
    found = (load(root, int(match[1])) for match in names)
    return sorted((one for one in found if one is not None), key=lambda one: one.vmid)


def save(root: Root, result: Result) -> None:
    """Raises OSError."""
    os.makedirs(root.path(DIR), mode=0o755, exist_ok=True)
    state.save(root, f"{DIR}/{result.vmid}.json", result.to_json())
    known = {one.vmid: one for one in briefs(root)} | {result.vmid: briefly(result)}
    state.save(root, SUMMARY, {"schema": 1, "proofs": [plain(known[vmid]) for vmid in sorted(known)]})


def briefs(root: Root) -> list[Brief]:
    """What follows from the proofs of the VMs that there are; a small file, as the timer reads it."""
    found, _ = state.load(root, SUMMARY, _briefs, set_aside=False)
    return [one for one in found or () if identity.same(one.identity, identity_of(root, one.vmid))]


def _briefs(document: object) -> list[Brief]:
    return [Brief.from_json(one) for one in stored.listed(stored.table(document).get("proofs"))]
