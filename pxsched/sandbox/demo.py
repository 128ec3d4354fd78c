"""`pxsched sandbox demo`: what pxsched does, shown with three guests, and checked while it is shown.

Everything it says about CPU masks is read from /proc at that moment. Each promise that does not hold is
named, and the exit code says whether there was one.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pxsched import material, output
from pxsched.errors import Exit, UserError
from pxsched.host import cpulist, topology
from pxsched.ledger.file import peek
from pxsched.report import text
from pxsched.root import Root
from pxsched.sandbox import linux
from pxsched.sandbox.commandline import Kind
from pxsched.sandbox.sandbox import Sandbox

PINNED, QUIET, BUSY = 100, 101, 102
_LIMIT_S = 120
_MEASURE_S = 3.0
_HOOK = "local:snippets/pxsched"
_MOST_VCPUS = 4


def run() -> int:
    """The whole demo; 0 if all that it promised held."""
    started = time.monotonic()
    before = _outside()
    demo = Demo()
    with Sandbox() as sandbox:
        pids = demo.show(sandbox)
    demo.say("")
    demo.title("Afterwards")
    demo.promise(not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "no guest is left running")
    demo.promise(not sandbox.directory.exists(), "the stand-in node is gone")
    changed = [name for name, value in _outside().items() if before.get(name, value) != value]
    demo.promise(not changed, "interrupts and governors of this machine are as they were", *changed)
    took_s = time.monotonic() - started
    demo.promise(took_s < _LIMIT_S, f"it took {took_s:.0f} seconds")
    demo.say("")
    if linux.kept():
        demo.say(f"Kept for the next time: the guests' kernel, in {linux.cache()}.")
        demo.say("`pxsched sandbox clean` deletes it.")
    demo.say(f"{demo.broken} of {demo.made} promises did not hold" if demo.broken else "All promises held.")
    return Exit.REFUSED if demo.broken else Exit.DONE


class Demo:
    """The story, and how many of its promises held."""

    def __init__(self) -> None:
        self.made = 0
        self.broken = 0
        self._kind = Kind.LINUX
        self._history: dict[str, dict[str, str]] = {}

    def say(self, *lines: str) -> None:
        output.say(*lines)

    def title(self, line: str) -> None:
        self.say(f"== {line} ==")

    def promise(self, held: bool, what: str, *details: str) -> None:
        """Say whether something is as it should be."""
        self.made += 1
        self.broken += not held
        self.say(f"  {'ok' if held else 'NOT SO'}: {what}" + (f" ({', '.join(details)})" if details else ""))

    def show(self, sandbox: Sandbox) -> list[int]:
        """The acts, in a sandbox; the ids of all QEMU processes that ran."""
        cpus = sorted(os.sched_getaffinity(0))[:_MOST_VCPUS]
        self._introduce()
        self._create(sandbox, cpus)
        pids = [self._without(sandbox), self._with(sandbox, cpus)]
        pids += self._share(sandbox)
        pids.append(self._change_mind(sandbox, cpus))
        self._undo(sandbox)
        return pids

    def _introduce(self) -> None:
        self.title("This machine")
        self.say(*text.machine(topology.read(Root())))
        try:
            with output.progress() as tell:
                tell("looking for the guests' kernel, or fetching it")
                linux.files()
        except UserError as error:
            self.say(f"The guests only burn or sleep, as there is no kernel for them: {error}")
            self._kind = Kind.ROM

    def _create(self, sandbox: Sandbox, cpus: list[int]) -> None:
        common = ("--guest", self._kind, "--memory", "192")
        order = cpulist.format_ordered(cpus[::-1])
        sandbox.qm("create", PINNED, *common, name="pinned", cores=len(cpus), affinity=order)
        for vmid, name in ((QUIET, "quiet"), (BUSY, "busy")):
            sandbox.qm("create", vmid, *common, name=name, balloon=160, hookscript=_HOOK)

    def _without(self, sandbox: Sandbox) -> int:
        """The pinned guest as plain Proxmox starts it."""
        self.say("")
        self.title(f"VM {PINNED} without pxsched")
        pid = self._start(sandbox, PINNED)
        self.say("`affinity` alone confines all threads to the list and knows no order:")
        self._remember(sandbox, "without")
        sandbox.qm("stop", PINNED)
        return pid

    def _with(self, sandbox: Sandbox, cpus: list[int]) -> int:
        self.say("")
        self.title(f"VM {PINNED} with pxsched: vCPU i on entry i of `affinity`")
        sandbox.qm("set", PINNED, hookscript=_HOOK)
        pid = self._start(sandbox, PINNED)
        masks = self._remember(sandbox, "with pxsched")
        self._promise_order(sandbox, masks, cpus[::-1])
        return pid

    def _share(self, sandbox: Sandbox) -> list[int]:
        self.say("")
        self.title(f"VMs {QUIET} and {BUSY} share what there is, under load")
        pids = [self._start(sandbox, vmid) for vmid in (QUIET, BUSY)]
        for vmid in (PINNED, QUIET, BUSY):
            sandbox.guest(vmid).wait()
        self._load(sandbox, {PINNED: 0, QUIET: 30, BUSY: 80})
        spent = _spent(sandbox, QUIET), _spent(sandbox, BUSY)
        time.sleep(_MEASURE_S)
        shares = [
            (_spent(sandbox, vmid) - before) / _MEASURE_S
            for vmid, before in zip((QUIET, BUSY), spent, strict=True)
        ]
        for vmid, share in zip((QUIET, BUSY), shares, strict=True):
            self.say(f"  VM {vmid} used {share:.0%} of a CPU in {_MEASURE_S:.0f} seconds")
        self.promise(min(shares) > 0.02, "both guests work")
        self._picture(sandbox)
        for vmid in (PINNED, QUIET, BUSY):
            self._promise_claimed(sandbox, vmid)
        self.say("")
        self.say("pxsched status says:")
        self.say(*_indented(_pxsched(sandbox, "status").splitlines()))
        return pids

    def _change_mind(self, sandbox: Sandbox, cpus: list[int]) -> int:
        order = cpus[1:] + cpus[:1] if len(cpus) > 2 else cpus
        self.say("")
        self.title(f"VM {PINNED} changes its mind: affinity {cpulist.format_ordered(order)}")
        sandbox.qm("set", PINNED, affinity=cpulist.format_ordered(order))
        self.say("The running guest keeps its places; the change waits for the next start.")
        self.promise(_masks(sandbox, PINNED) == self._history["with pxsched"], "nothing has moved yet")
        sandbox.qm("shutdown", PINNED, timeout=20, forceStop=1)
        pid = self._start(sandbox, PINNED)
        masks = self._remember(sandbox, "changed")
        self._promise_order(sandbox, masks, order)
        self._picture(sandbox)
        return pid

    def _undo(self, sandbox: Sandbox) -> None:
        self.say("")
        self.title("Everything is put back")
        self.say("`pxsched restore --all`, while the guests run:")
        _pxsched(sandbox, "restore", "--all")
        masks = self._remember(sandbox, "restored")
        self.promise(masks == self._history["without"], f"VM {PINNED}'s masks are those without pxsched")
        for vmid in (PINNED, QUIET, BUSY):
            sandbox.qm("stop", vmid)
        ledger = peek(Root(sandbox.root))
        self.promise(not ledger.claims and not ledger.journal, "after the stops nobody holds anything")
        self.say("")
        self.say(f"VM {PINNED}'s masks, as read from /proc:")
        self.say(*_indented(_table(self._history).splitlines()))

    def _start(self, sandbox: Sandbox, vmid: int) -> int:
        self.say(f"$ qm start {vmid}")
        said = sandbox.qm("start", vmid).output
        if said.strip():
            self.say(*_indented(said.splitlines()))
        pid = sandbox.pid(vmid)
        self.promise(pid is not None, f"VM {vmid} runs")
        return pid or 0

    def _load(self, sandbox: Sandbox, percent: Mapping[int, int]) -> None:
        for vmid, share in percent.items():
            if self._kind is Kind.ROM:
                share = 100 if share else 0
            sandbox.guest(vmid).load(0, share)

    def _remember(self, sandbox: Sandbox, moment: str) -> dict[str, str]:
        masks = _masks(sandbox, PINNED)
        self._history[moment] = masks
        for thread, mask in masks.items():
            self.say(f"  {thread:<15} may run on CPUs {mask}")
        return masks

    def _promise_order(self, sandbox: Sandbox, masks: Mapping[str, str], order: list[int]) -> None:
        wanted = [str(cpu) for cpu in order]
        found = [masks.get(f"vCPU {vcpu}", "") for vcpu in range(len(order))]
        listed = cpulist.format_ordered(order)
        self.promise(found == wanted, f"vCPUs 0-{len(order) - 1} are on CPUs {listed}, in this order")
        self._promise_claimed(sandbox, PINNED)

    def _promise_claimed(self, sandbox: Sandbox, vmid: int) -> None:
        """What the product says of a VM is what the kernel says of its threads."""
        try:
            (claim,) = json.loads(_pxsched(sandbox, "status", str(vmid), "--json"))["vms"]
        except UserError as error:
            self.promise(False, f"VM {vmid} has a place", str(error))
            return
        said = {f"vCPU {item['vcpu']}": item["cpus"] for item in claim["vcpus"]}
        masks = _masks(sandbox, vmid)
        wrong = [
            f"{thread} is on {mask}"
            for thread, mask in masks.items()
            if mask != said.get(thread, claim["emulator"])
        ]
        self.promise(not wrong, f"VM {vmid}'s threads are where `pxsched status` says", *wrong)

    def _picture(self, sandbox: Sandbox) -> None:
        claims = peek(Root(sandbox.root)).claims.values()
        self.say(*_indented(text.machine(topology.read(Root()), [claim.placement for claim in claims])))


def _masks(sandbox: Sandbox, vmid: int) -> dict[str, str]:
    """Where QEMU's threads may run, by /proc: each vCPU's, and what all others have."""
    vcpus = sandbox.vcpus(vmid)
    masks = {f"vCPU {vcpu}": sandbox.mask(tid) for vcpu, tid in vcpus.items()}
    others = {sandbox.mask(tid) for tid in sandbox.threads(vmid) if tid not in vcpus.values()}
    return {**masks, "other threads": " and ".join(sorted(others - {""}))}


def _spent(sandbox: Sandbox, vmid: int) -> float:
    """Seconds of CPU time that the VM's vCPUs have used."""
    ticks = 0
    for tid in sandbox.vcpus(vmid).values():
        stat = Path(f"/proc/{sandbox.pid(vmid)}/task/{tid}/stat").read_text()
        ticks += sum(int(field) for field in stat.rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def _table(history: Mapping[str, Mapping[str, str]]) -> str:
    """One column a moment, one row a thread."""
    threads = next(iter(history.values()))
    rows = [
        ["", *history],
        *([thread, *(masks.get(thread, "") for masks in history.values())] for thread in threads),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = ("   ".join(f"{cell:<{wide}}" for cell, wide in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in cells)


def _outside() -> dict[str, str]:
    """What a pxsched that went astray could have changed on this machine."""
    patterns = ("proc/irq/*/smp_affinity_list", "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    found = {}
    for pattern in patterns:
        for path in Path("/").glob(pattern):
            with suppress(OSError):
                found[str(path)] = path.read_text().strip()
    return found


def _pxsched(sandbox: Sandbox, *words: str) -> str:
    """What a command says, run as its user would. Raises UserError where it fails."""
    done = subprocess.run(
        material.again("--root", sandbox.root, *words),
        env=material.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"pxsched {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
