"""What can be put back when the ledger is lost: a thread has the mask its VM says, or its parent has; a
scope gets back what systemd has without us; a balloon is handed over.

Only VMs that are opted in are touched, and files that bear our mark. What else was turned is not to be known.
"""

import re

from pxsched.errors import UserError
from pxsched.guest import process
from pxsched.guest.config import Machine
from pxsched.guest.process import VMID, Process, Thread
from pxsched.host import cpulist, systemd
from pxsched.knobs import scope
from pxsched.knobs.balloon import Balloon, bounds, told
from pxsched.knobs.knob import Gone, Knob
from pxsched.knobs.latency import Scheduling
from pxsched.knobs.thread import ThreadAffinity
from pxsched.node import sighting as nodes
from pxsched.node.turns import Report, Turn
from pxsched.root import Root

PLUGIN = "salvage"
LOST = (
    "what else was turned before that is not known any more: interrupts, governors, idle states, NIC queues,"
    " halt polling, the CPUs of slices and containers, irqbalance's bans; a reboot puts them back"
)
_ORDINARY = "other 0"
_MARKED = re.compile(r"(\d+)\.scope\.d", re.ASCII)


def run(root: Root, report: Report) -> None:
    """Puts back what can be known, and says in the report's failures what cannot."""
    for name in root.list(scope.UNITS):
        match = _MARKED.fullmatch(name)
        if match and VMID.fullmatch(match[1]) and scope.DropIn(int(match[1])).exists(root):
            _turn(root, report, int(match[1]), scope.DropIn(int(match[1])), "")
    for vmid in process.running(root):
        machine, found = nodes.machine_of(root, vmid), process.find(root, vmid)
        if machine is not None and machine.opted_in and found is not None:
            _vm(root, report, vmid, machine, found)
    report.failed.append(LOST)


def _vm(root: Root, report: Report, vmid: int, machine: Machine, found: Process) -> None:
    for name, knob in ("AllowedMemoryNodes", scope.MemoryNodes(vmid)), ("AllowedCPUs", scope.Partition(vmid)):
        if systemd.drop_in(root, f"{vmid}.scope", name) is not None:
            _turn(root, report, vmid, knob, "")
    mask = cpulist.format(machine.affinity) if machine.affinity else _parents_mask(root, found)
    for thread in process.threads(root, found):
        _thread(root, report, vmid, thread, mask)
    start_ticks, _ = told(root).get(vmid, (-1, 0))
    if start_ticks == found.start_ticks:
        low_mib = machine.balloon_mib or machine.memory_mib
        _turn(root, report, vmid, Balloon(vmid, start_ticks), bounds(low_mib, machine.memory_mib))


def _thread(root: Root, report: Report, vmid: int, thread: Thread, mask: str | None) -> None:
    affinity = ThreadAffinity(thread.tid, thread.start_ticks)
    if mask is not None and not _is(root, affinity, mask):
        _turn(root, report, vmid, affinity, mask)
    scheduling = Scheduling(thread.tid, thread.start_ticks)
    if root.live and not _is(root, scheduling, _ORDINARY):
        _turn(root, report, vmid, scheduling, _ORDINARY)


def _parents_mask(root: Root, found: Process) -> str | None:
    parent = process.parent(root, found.pid)
    return None if parent is None else process.allowed(root, parent)


def _is(root: Root, knob: Knob, value: str) -> bool:
    try:
        return knob.same(knob.read(root), value)
    except (Gone, OSError):
        return True  # there is nothing to put back


def _turn(root: Root, report: Report, vmid: int, knob: Knob, value: str) -> None:
    try:
        knob.put_back(root, value)
    except Gone:
        return
    except (OSError, UserError) as error:
        report.failed.append(f"{knob.label(root)}: {getattr(error, 'strerror', None) or error}")
    else:
        report.restored.append(Turn(knob.key, PLUGIN, vmid, "", value))
