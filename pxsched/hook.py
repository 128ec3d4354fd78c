"""The hookscript's phases. Each is only a hint when to look: all four do the same pass, for one VM.

Proxmox calls it with the VM's lock held (PVE::GuestHelpers::exec_hookscript), so it never sleeps, waits for a
guest, or leaves a child behind. Its output goes into the task log; a migration's source reads that line by
line, which is why every line begins with `pxsched: `.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from pxsched import output
from pxsched.errors import Exit, UserError
from pxsched.guest import process
from pxsched.guest.process import VMID
from pxsched.host import cpulist
from pxsched.ledger.claim import Claim
from pxsched.node import settle, turning
from pxsched.node import sighting as node_module
from pxsched.node.sighting import Node, Sighting
from pxsched.root import Root
from pxsched.settings.policy import MemoryMode, Policy

# Where others' hookscripts are named; the second is an earlier version's.
CHAINS = ("etc/pxsched/hooks.d", "etc/pve/pxsched-chain.json")
PHASES = ("pre-start", "post-start", "pre-stop", "post-stop")
# A strict VM waits for the ledger as long as Proxmox waits for its QEMU at least (config_aware_timeout in
# PVE::QemuServer::Helpers); systemd may take as long to read the drop-in that QEMU must start with.
STRICT_LOCK_S = RELOAD_S = 30.0
MOST_REASONS = 4


def main(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Runs one phase; the exit code is what Proxmox should make of it."""
    output.open_streams()
    if len(arguments) != 2:
        say("usage: pxsched VMID pre-start|post-start|pre-stop|post-stop")
        return Exit.USAGE
    vmid, phase = arguments
    if phase not in PHASES:
        return Exit.DONE
    if not VMID.fullmatch(vmid):
        say(f"{vmid[:20]!r} is no VMID")
        return Exit.DONE
    root = Root(environ.get("PXSCHED_ROOT", "/"))
    ours = _guarded(root, int(vmid), phase, environ)
    if any(map(root.exists, (*CHAINS, f"etc/pve/pxsched/chain/{int(vmid)}.json"))):
        from pxsched.chain.run import run_chain

        return run_chain(root, int(vmid), phase, environ.get("PVE_MIGRATED_FROM", "")) or ours
    return ours


def _guarded(root: Root, vmid: int, phase: str, environ: Mapping[str, str]) -> int:
    """A fault of ours keeps no VM from starting, unless its policy is strict."""
    try:
        return run(root, vmid, phase, environ)
    except UserError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - the entry point of the hook
        reason = f"unexpected {type(error).__name__}: {error}"
    say(reason)
    if phase != "pre-start" or not _strict(root, vmid, environ):
        return Exit.DONE
    _count_refusal(root, vmid, reason)
    _stays(vmid, environ.get("PVE_MIGRATED_FROM", ""))
    return Exit.REFUSED


def run(root: Root, vmid: int, phase: str, environ: Mapping[str, str]) -> int:
    """One phase of one VM. Raises UserError when nothing could be done."""
    source = environ.get("PVE_MIGRATED_FROM", "")
    if node_module.config_path(root, vmid, source) is None:
        if node_module.is_container(root, vmid):
            say(f"{vmid} is a container; only VMs are placed")
            return Exit.DONE
        if phase == "pre-start":
            say(f"there is no configuration of VM {vmid}; it starts unplaced")
            return Exit.DONE
    node = node_module.open_node(root, environ, keep=True)
    if phase == "pre-start":
        for warning in (*node.settings.stale, *node.settings.warnings):
            say(warning)
    starter = process.identify(root, os.getppid()) if phase == "pre-start" else None
    sighting = node_module.sight(root, vmid, starter=starter, source=source, hooked=True)
    policy = _policy(node, sighting)
    confined = phase == "pre-start" and policy.memory is MemoryMode.STRICT
    done = settle.settle(
        node,
        [sighting],
        everybody=False,
        lock_s=STRICT_LOCK_S if policy.strict else settle.LOCK_S,
        patience_s=RELOAD_S if confined else turning.PATIENCE_S,
    )
    for line in (*done.notes, *_remarks(sighting, phase), *done.report.failed):
        say(line)
    refusal = done.changes.refused.get(vmid)
    if refusal is not None:
        return _refuse(node, sighting, phase, refusal)
    if confined and f"dropin:{vmid}" in done.report.unmet:
        reason = "systemd has not read the file that confines its memory"
        if policy.strict:
            return _refuse(node, sighting, phase, reason)
        say(f"VM {vmid} starts unconfined: {reason}")
    claim = done.claims.get(vmid)
    if phase == "pre-start" and claim is not None and claim.policy.compact:
        _compact(node, sighting, claim)
    if claim is not None and phase in ("pre-start", "post-start"):
        _tell(claim, phase, len(done.report.turned))
    return Exit.DONE


def _remarks(sighting: Sighting, phase: str) -> Iterator[str]:
    """What is wrong with the VM itself, once for each start."""
    warnings = sighting.machine.warnings if sighting.machine and phase == "pre-start" else ()
    surplus = sighting.surplus if phase == "post-start" else ""
    for line in (*warnings, *([surplus] if surplus else [])):
        yield f"VM {sighting.vmid}: {line}"


def _refuse(node: Node, sighting: Sighting, phase: str, reason: str) -> int:
    vmid = sighting.vmid
    if _policy(node, sighting).strict and phase == "pre-start":
        _count_refusal(node.root, vmid, reason)
        say(f"VM {vmid} is refused, as its policy is strict: {reason}")
        _stays(vmid, sighting.source)
        return Exit.REFUSED
    say(f"VM {vmid} runs unplaced: {reason}")
    return Exit.DONE


def _count_refusal(root: Root, vmid: int, reason: str) -> None:
    from pxsched.monitor import refusals

    refusals.count(root, vmid, reason)


def _stays(vmid: int, source: str) -> None:
    """What a refusal means to a VM that was to come from another node: Proxmox ends the migration."""
    if source:
        say(f"the migration ends here: VM {vmid} runs on, on node {source}")


def _policy(node: Node, sighting: Sighting) -> Policy:
    """The VM's; one whose configuration cannot be read has what its VMID alone says."""
    return node.settings.policy(sighting.vmid, sighting.machine.tags if sighting.machine else ())


def _compact(node: Node, sighting: Sighting, claim: Claim) -> None:
    """Makes room for huge pages where memory is too fragmented, as the admin asked for."""
    from pxsched.host import memory
    from pxsched.plugins.shortage import shortages

    assert sighting.machine is not None
    for lack in shortages(sighting.machine, claim.placement, node.memory):
        if lack.fragmented:
            say(f"compacting the memory of node {lack.node}")
            memory.compact(node.root, lack.node)


def _tell(claim: Claim, phase: str, turned: int) -> None:
    placement = claim.placement
    if phase == "post-start":
        say(f"VM {claim.vmid} is placed: {turned or 'no'} knobs had to be turned")
        return
    singles = all(len(cpus) == 1 for cpus in placement.vcpus)
    where = f"vCPUs {'on' if singles else 'within'} {cpulist.of_vcpus(placement.vcpus)}"
    emulator, memory = cpulist.format(placement.emulator), cpulist.format(placement.nodes)
    say(f"VM {claim.vmid} is {placement.vm_class}: {where}, emulator on {emulator}, memory of node {memory}")
    for reason in placement.why[:MOST_REASONS]:
        say(f"  {reason}")


def _strict(root: Root, vmid: int, environ: Mapping[str, str]) -> bool:
    from pxsched.settings import files as settings

    machine = node_module.machine_of(root, vmid, environ.get("PVE_MIGRATED_FROM", ""))
    return settings.load(root, environ).policy(vmid, machine.tags if machine else ()).strict


def say(line: str) -> None:
    """One line for the task log; a reader that left is no reason to fail."""
    try:
        output.say(f"pxsched: {line}")
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
