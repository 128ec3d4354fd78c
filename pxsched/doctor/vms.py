"""Checks of our own installation and of the VMs."""

import os
import shutil
from collections.abc import Iterator

from pxsched import child
from pxsched.chain import files as chain
from pxsched.chain import run, upkeep
from pxsched.doctor.finding import Finding, Level, Subject, some, vms
from pxsched.errors import UserError
from pxsched.guest.config import Machine
from pxsched.guest.hookscript import SCRIPT_NAME, is_ours
from pxsched.host import memory, mounts
from pxsched.ledger.journal import AGAIN_AND_AGAIN
from pxsched.proxmox import cluster
from pxsched.proxmox import storage as storages
from pxsched.proxmox.cluster import Guest

UNITS = ("pxsched.timer", "pxsched.service")


def hookscript(subject: Subject) -> Iterator[Finding]:
    """A VM whose hookscript is missing does not start."""
    root = subject.root
    storage = storages.of_hookscript(root)
    volumes = {guest.hookscript for guest in subject.enabled} | {f"{storage}:snippets/{SCRIPT_NAME}"}
    for volume in sorted(volumes):
        holders = [guest for guest in subject.enabled if guest.hookscript == volume]
        try:
            path = storages.script_path(root, volume)
            storages.check_mounted(root, volume.partition(":")[0])
        except UserError as error:
            remedy = f"VMs {vms(holders)} need it" if holders else "run install.sh --storage NAME"
            yield Finding(Level.BAD, "hookscript", f"{volume}: {error.message}", remedy)
            continue
        there = os.path.isfile(root.path(path))
        barred = there and mounts.is_barred(root, path)
        if there and not barred and os.access(root.path(path), os.X_OK):
            yield Finding(Level.OK, "hookscript", f"{volume} is in place, {len(holders)} VMs have it")
            continue
        wrong = "is not executable" if there else "is missing" if holders else "is not installed"
        remedy = f"chmod 755 /{path}" if there else "run install.sh (or `pxsched node install`)"
        if barred:
            remedy = "its file system is mounted `noexec`: mount it without that"
        if holders:
            text = f"{volume} {wrong}: VMs {vms(holders)} cannot start"
            yield Finding(Level.BAD, "hookscript", text, remedy)
        else:
            yield Finding(Level.NOTE, "hookscript", f"{volume} {wrong}", remedy)


def other_nodes(subject: Subject) -> Iterator[Finding]:
    """Migration to a node without the script fails, and so does HA's recovery there."""
    others = [name for name in cluster.nodes(subject.root) if name != subject.node]
    enabled = [guest for guest in subject.guests if is_ours(guest.hookscript)]
    if not others or not enabled:
        return
    ha = [guest for guest in enabled if guest.ha]
    if not (subject.root.base == "/" and subject.root.live and shutil.which("pvesh")):
        text = f"not asked: {some(others)}"
        yield Finding(Level.NOTE, "other nodes", text, "run the doctor on each node that VMs may move to")
        return
    for node in others:
        yield _on_node(subject, node, [g for g in enabled if g.node == node] + ha)


def _on_node(subject: Subject, node: str, concerned: list[Guest]) -> Finding:
    from pxsched.proxmox import snippets
    from pxsched.sandbox.stand_in import local_api

    storage = storages.of_hookscript(subject.root)
    try:
        volumes = snippets.on_node(local_api(subject.root), node, storage)
    except UserError as error:
        return Finding(Level.NOTE, "other nodes", f"{node} cannot be asked: {error.message}")
    if f"{storage}:snippets/{SCRIPT_NAME}" in volumes:
        return Finding(Level.OK, "other nodes", f"{node} has the hookscript")
    level = Level.BAD if concerned else Level.WARN
    text = f"{node} has no hookscript: VMs cannot move there"
    return Finding(level, "other nodes", text, f"run install.sh on {node}")


def chained(subject: Subject) -> Iterator[Finding]:
    """Scripts that run beside ours."""
    root = subject.root
    for path, reason in chain.damaged(root).items():
        yield Finding(Level.BAD, "chained scripts", f"/{path} is damaged: {reason}", "mend it or delete it")
    for one in upkeep.dead(root):
        text = f"/{chain.RECORDS.path_of(one.vmid)}: {one.reason}"
        yield Finding(Level.NOTE, "chained scripts", text, "the timer removes it")
    if root.exists(chain.OLD_FILE):
        text = f"/{chain.OLD_FILE} is an earlier version's"
        yield Finding(Level.NOTE, "chained scripts", text, "the timer takes it over")
    remembered = chain.find_all(root, ((guest.vmid, guest.options) for guest in subject.enabled))
    for vmid, entry in remembered.items():
        if entry.hookscript and not os.access(run.path_of(root, vmid, entry.hookscript), os.X_OK):
            text = f"VM {vmid} cannot start: its own script {entry.hookscript} is missing"
            yield Finding(Level.BAD, "chained scripts", text, f"put it back, or enable {vmid} anew")


def timer(subject: Subject) -> Iterator[Finding]:
    """Without the periodic pass nothing follows late interrupts, hot-plugged vCPUs and crashes."""
    root = subject.root
    if root.base != "/" or not os.path.isdir("/run/systemd/system"):
        yield Finding(Level.NOTE, "timer", "not asked: systemd does not run below this root")
        return
    try:
        states = {unit: child.run(["systemctl", "is-active", unit]).stdout.strip() for unit in UNITS}
    except (OSError, child.Late) as error:
        yield Finding(Level.WARN, "timer", f"systemd cannot be asked: {error}")
        return
    failed = [unit for unit, state in states.items() if state == "failed"]
    if failed:
        yield Finding(Level.BAD, "timer", f"{', '.join(failed)} failed", f"journalctl -u {failed[0]}")
    elif "active" not in states.values():
        remedy = "systemctl enable --now pxsched.timer"
        yield Finding(Level.WARN, "timer", "no periodic pass runs", remedy)
    else:
        active = ", ".join(unit for unit, state in states.items() if state == "active")
        yield Finding(Level.OK, "timer", f"{active} is active")


def settings(subject: Subject) -> Iterator[Finding]:
    for stale in subject.settings.stale:
        yield Finding(Level.BAD, "settings", stale, "mend the file; the next pass reads it")
    for warning in subject.settings.warnings:
        yield Finding(Level.WARN, "settings", warning, "`man pxsched` and docs/settings.md list every key")
    if not subject.settings.warnings and not subject.settings.stale:
        yield Finding(Level.OK, "settings", "all keys and values are understood")
    for note in subject.settings.notes:
        yield Finding(Level.NOTE, "settings", note)


def huge_pages(subject: Subject) -> Iterator[Finding]:
    """Room for the huge pages that stopped VMs will ask for."""
    for size_mib in (2, 1024):
        stopped = [guest for guest in subject.here if not guest.running]
        asking = [guest for guest in stopped if subject.machines[guest.vmid].hugepage_mib == size_mib]
        if not asking:
            continue
        need = sum(subject.machines[guest.vmid].memory_mib for guest in asking)
        free = sum(node.pool_mib(size_mib) for node in memory.read(subject.root))
        text = f"{size_mib} MiB pages: {free} MiB free, stopped VMs {vms(asking)} want {need} MiB"
        late = size_mib == 1024 and free < need
        remedy = "reserve them at boot: hugepagesz=1G hugepages=N; later they are hard to find"
        yield Finding(Level.WARN if late else Level.OK, "huge pages", text, remedy if late else "")


def overcommit(subject: Subject) -> Iterator[Finding]:
    """How much the running VMs of the node together want."""
    running: dict[int, Machine] = {
        guest.vmid: subject.machines[guest.vmid] for guest in subject.here if guest.running
    }
    if not running:
        return
    cpus = len(subject.topology.online)
    vcpus = sum(max(machine.vcpus, subject.running_vcpus[vmid]) for vmid, machine in running.items())
    memory_mib = sum(machine.memory_mib for machine in running.values())
    total_mib = sum(node.memory_bytes or 0 for node in subject.topology.nodes) >> 20
    text = f"running VMs: {vcpus} vCPUs on {cpus} CPUs, {memory_mib} of {total_mib} MiB"
    if total_mib and memory_mib > total_mib:
        remedy = "balloon minimums, smaller VMs, or fewer of them"
        yield Finding(Level.WARN, "overcommit", text, remedy)
    else:
        yield Finding(Level.OK, "overcommit", text)
    wide = [str(guest.vmid) for guest in subject.enabled if subject.machines[guest.vmid].vcpus > cpus]
    if wide:
        text = f"VMs {some(wide)} have more vCPUs than the node has CPUs"
        yield Finding(Level.BAD, "overcommit", text, "Proxmox does not start them here")


def held(subject: Subject) -> Iterator[Finding]:
    """What something else keeps turning."""
    drifting = [key for key, entry in subject.ledger.journal.items() if entry.drifts >= AGAIN_AND_AGAIN]
    for warning in subject.ledger.warnings:
        remedy = "the next pass begins anew; what was turned before is not all known: `pxsched restore --all`"
        yield Finding(Level.BAD, "ledger", warning, remedy)
    if drifting:
        text = f"something else keeps turning {some(drifting, 3)}"
        yield Finding(Level.WARN, "ledger", text, "see `other daemons` above, and `pxsched status`")
    claims, knobs = len(subject.ledger.claims), len(subject.ledger.journal)
    yield Finding(Level.OK, "ledger", f"{claims} VMs placed, {knobs} knobs held")


def karpenter(subject: Subject) -> Iterator[Finding]:
    if "karpenter" not in subject.settings.features:
        return
    from pxsched.karpenter import keep

    try:
        todo = keep.plan(subject.root, subject.topology, subject.settings.node)
    except UserError as error:
        yield Finding(Level.BAD, "karpenter", error.message, error.hint or "")
        return
    for note in todo.notes:
        yield Finding(Level.WARN, "karpenter", note)
    if todo.changes:
        what = "is missing" if todo.vmid is None else f"differs in {some([c.key for c in todo.changes])}"
        yield Finding(Level.WARN, "karpenter", f"the capacity VM {what}", "pxsched karpenter apply")
    else:
        yield Finding(Level.OK, "karpenter", f"VM {todo.vmid} describes this node")


CHECKS = (
    hookscript, other_nodes, chained, timer, settings, huge_pages, overcommit, held, karpenter,
)  # fmt: skip
