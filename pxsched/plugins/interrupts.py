"""Interrupts of passed-through devices go to their VM's CPUs; the host's own keep off dedicated ones.

Vector i of a device belongs to vCPU i: guests give queue i to CPU i. They come and go with the guest's
driver, long after the start and again after each guest reboot, so this looks at what is there now.
"""

from collections.abc import Iterator

from pxsched.host import cpulist
from pxsched.host.interrupts import Interrupt
from pxsched.host.irqbalance import Setup
from pxsched.knobs.interrupt import DefaultAffinity, InterruptAffinity
from pxsched.knobs.irqbalance import BANNED, CpuBan, InterruptBan
from pxsched.ledger.claim import dedicated
from pxsched.ledger.journal import NODE
from pxsched.plugins.view import HostView, Setting, VmView

NAME = "interrupts"

# A guest's driver is up within a minute, as a rule; some wait for a person at the boot menu.
FRESH_NS = 60 * 10**9
PATIENCE_NS = 600 * 10**9


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    if not vm.claim.policy.interrupts or not vm.interrupts:
        return
    if host.irqbalance is not None:
        daemon, setup = host.irqbalance.daemon, host.irqbalance.setup
        for interrupt in bannable(vm.interrupts, setup):
            ban = InterruptBan(daemon.pid, daemon.start_ticks, interrupt.number)
            yield Setting(ban, BANNED, vm.vmid, NAME)
    for interrupt in vm.interrupts:
        cpus = place(vm, interrupt) & host.topology.online
        if cpus:
            knob = InterruptAffinity(interrupt.number, interrupt.identity)
            yield Setting(knob, cpulist.format(cpus), vm.vmid, NAME)


def place(vm: VmView, interrupt: Interrupt) -> frozenset[int]:
    """The CPUs of the vCPU that a vector belongs to: one of them where vCPUs are pinned, else the home.

    Each further device starts one vCPU later, so that single-vector devices do not all meet on vCPU 0.
    """
    vcpus = vm.claim.placement.vcpus
    if not vcpus:
        return frozenset()
    order = [device.address for device in vm.devices]
    offset = order.index(interrupt.device) if interrupt.device in order else 0
    return vcpus[(interrupt.index + offset) % len(vcpus)]


def bannable(interrupts: tuple[Interrupt, ...], setup: Setup | None) -> Iterator[Interrupt]:
    """The interrupts whose numbers fit into irqbalance's request, those it has already first."""
    if setup is None:
        yield from interrupts
        return
    room_bytes = setup.room_bytes
    for interrupt in interrupts:
        if interrupt.number in setup.irqs:
            yield interrupt
            continue
        room_bytes -= len(f" {interrupt.number}")
        if room_bytes >= 0:
            yield interrupt


def of_node(host: HostView) -> Iterator[Setting]:
    """With `device_interrupts`: everything else keeps off CPUs that are dedicated to VMs, unless a VM wants
    nothing to do with interrupts.
    """
    own = dedicated(claim for claim in host.claims.values() if claim.policy.interrupts)
    others = host.topology.online - own
    if not host.node.device_interrupts or not own or not others:
        return
    for interrupt in host.interrupts:
        knob = InterruptAffinity(interrupt.number, interrupt.identity)
        base = cpulist.parse(host.originals.get(knob.key, interrupt.affinity))
        now = cpulist.parse(interrupt.affinity)
        if not base & own:
            continue
        # irqbalance moves it about among the other CPUs, which is its business.
        moved = host.irqbalance is not None and now & others and not now & own
        yield Setting(knob, cpulist.format(now if moved else _rest(base, own, host)), NODE, NAME)
    yield from _masks(host, own)


def _rest(cpus: frozenset[int], own: frozenset[int], host: HostView) -> frozenset[int]:
    """What a mask keeps without the dedicated CPUs. The kernel takes none without an online CPU, though masks
    name offline ones, too (write_irq_affinity() in kernel/irq/proc.c).
    """
    others = host.topology.online - own
    return cpus - own if cpus & others else (host.housekeeping & others) or others


def _masks(host: HostView, own: frozenset[int]) -> Iterator[Setting]:
    """What new interrupts start with, and where irqbalance may put any."""
    default = DefaultAffinity()
    now = host.originals.get(default.key, host.default_irq_mask)
    if now:
        remaining = _rest(cpulist.parse_mask(now), own, host)
        yield Setting(default, cpulist.format_mask(remaining), NODE, NAME)
    if host.irqbalance is not None and host.irqbalance.setup is not None:
        daemon = host.irqbalance.daemon
        knob = CpuBan(daemon.pid, daemon.start_ticks)
        banned = cpulist.parse_mask(host.originals.get(knob.key, host.irqbalance.setup.cpus)) | own
        if host.topology.online - banned:
            yield Setting(knob, cpulist.format_mask(banned), NODE, NAME)


def closer_look(vm: VmView, now_ns: int) -> bool:
    """Whether a VM's interrupts are worth looking at again soon: it is new, or a device has none yet.

    now_ns: boot time, as the claim's.
    """
    if not vm.claim.policy.interrupts or not any(not device.mdev for device in vm.devices):
        return False
    age_ns = now_ns - vm.claim.since_ns
    return age_ns < FRESH_NS or (age_ns < PATIENCE_NS and bool(_silent(vm)))


def _silent(vm: VmView) -> list[str]:
    """Devices whose guest driver has not enabled an interrupt."""
    heard = {interrupt.device for interrupt in vm.interrupts}
    return [device.address for device in vm.devices if not device.mdev and device.address not in heard]


def notes(vm: VmView, host: HostView) -> Iterator[str]:
    """What a person should know of this VM's interrupts, one line each."""
    if not vm.claim.policy.interrupts or not vm.interrupts:
        return
    strays = [stray for stray in vm.interrupts if astray(stray)]
    if strays:
        worst = strays[0]
        yield (
            f"VM {vm.vmid}: {len(strays)} of {len(vm.interrupts)} interrupts are not where they were asked to"
            f" be; {worst.identity} ({worst.number}): asked {worst.affinity}, is on {worst.effective}"
        )
    if host.irqbalance is not None:
        kept = len(vm.interrupts) - len(list(bannable(vm.interrupts, host.irqbalance.setup)))
        if kept:
            yield f"VM {vm.vmid}: {kept} interrupts stay in irqbalance's hands, its list of bans is full"


def astray(interrupt: Interrupt) -> bool:
    """Whether the hardware uses CPUs that nobody asked for."""
    if not interrupt.effective or not interrupt.affinity:
        return False
    return not cpulist.parse(interrupt.effective) <= cpulist.parse(interrupt.affinity)
