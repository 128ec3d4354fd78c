"""VMs whose policy asks for it wake up faster: real-time vCPU threads, halt polling, shallow idle states."""

from collections.abc import Iterator

from pxsched.guest.process import Role
from pxsched.knobs.latency import KvmParameter, ResumeLatency, Scheduling, resume_latency
from pxsched.ledger.journal import NODE
from pxsched.placement.request import EXCLUSIVE
from pxsched.plugins.view import HostView, Setting, VmView

NAME = "latency"


def of_vm(vm: VmView, host: HostView) -> Iterator[Setting]:
    """Real time only where a vCPU has CPUs of its own: elsewhere it would starve its neighbours."""
    own = vm.claim.placement.vm_class in EXCLUSIVE
    if not own or not vm.claim.policy.fifo:
        return
    for thread in vm.threads:
        if thread.role is Role.VCPU:
            knob = Scheduling(thread.tid, thread.start_ticks)
            yield Setting(knob, f"fifo {vm.claim.policy.fifo}", vm.vmid, NAME)


def of_node(host: HostView) -> Iterator[Setting]:
    claims = host.claims.values()
    polls_ns = [claim.policy.halt_poll_ns for claim in claims if claim.policy.halt_poll_ns >= 0]
    if polls_ns:
        yield Setting(KvmParameter("halt_poll_ns"), str(max(polls_ns)), NODE, NAME)
    bounds_us: dict[int, int] = {}
    for claim in claims:
        bound_us = claim.policy.resume_latency_us
        if bound_us >= 0:
            for cpu in claim.placement.cpus & host.topology.online:
                bounds_us[cpu] = min(bound_us, bounds_us.get(cpu, bound_us))
    for cpu, bound_us in sorted(bounds_us.items()):
        yield Setting(ResumeLatency(cpu), resume_latency(bound_us), NODE, NAME)
