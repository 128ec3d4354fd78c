"""What a VM's wake-ups wait for: its threads' scheduling class, KVM's halt polling, the CPUs' idle states.

Rules: sched(7); Documentation/virt/kvm/halt-polling.rst; Documentation/ABI/testing/sysfs-devices-power
(pm_qos_resume_latency_us, where "0" means no bound and "n/a" a bound of zero).
"""

import errno
import os

from pxsched.guest import process
from pxsched.knobs import file
from pxsched.knobs.knob import Gone, Knob, Rank
from pxsched.knobs.thread import name_of
from pxsched.root import Root

_POLICIES = {
    "other": os.SCHED_OTHER,
    "fifo": os.SCHED_FIFO,
    "rr": os.SCHED_RR,
    "batch": os.SCHED_BATCH,
    "idle": os.SCHED_IDLE,
}
_REAL_TIME = ("fifo", "rr")
_RESET = "+reset"  # SCHED_RESET_ON_FORK


class Scheduling(Knob):
    """One thread's scheduling policy and real-time priority: `fifo 5`, `other 0`, `batch+reset 0`."""

    kind = "scheduling"
    rank = Rank.THREAD

    tid: int
    start_ticks: int

    def read(self, root: Root) -> str:
        self._check(root)
        try:
            number = os.sched_getscheduler(self.tid)
            priority = os.sched_getparam(self.tid).sched_priority
        except ProcessLookupError:
            raise Gone(self.key) from None
        plain = number & ~os.SCHED_RESET_ON_FORK
        name = next((name for name, value in _POLICIES.items() if value == plain), str(plain))
        return f"{name}{_RESET if number & os.SCHED_RESET_ON_FORK else ''} {priority}"

    def write(self, root: Root, value: str) -> None:
        self._check(root)
        name, _, priority = value.partition(" ")
        plain = name.removesuffix(_RESET)
        if plain in _REAL_TIME:
            _check_throttling(root)
        number = _POLICIES[plain] if plain in _POLICIES else int(plain)
        if name.endswith(_RESET):
            number |= os.SCHED_RESET_ON_FORK
        try:
            os.sched_setscheduler(self.tid, number, os.sched_param(int(priority)))
        except ProcessLookupError:
            raise Gone(self.key) from None

    def label(self, root: Root) -> str:
        return f"scheduling of {name_of(root, self.tid, self.start_ticks)}"

    def _check(self, root: Root) -> None:
        if not root.live:
            raise OSError(errno.EROFS, "not the running system")
        now = process.identify(root, self.tid)
        if now is None or now.start_ticks != self.start_ticks:
            raise Gone(self.key)


def _check_throttling(root: Root) -> None:
    """A guest that spins in real time would starve everything else on its CPU, the kernel's own work too,
    if the kernel did not take back a share of it (Documentation/scheduler/sched-rt-group.rst).
    """
    runtime_us = root.read("proc/sys/kernel/sched_rt_runtime_us")
    if runtime_us == "-1":
        raise OSError(errno.EPERM, "kernel.sched_rt_runtime_us is -1: nothing would throttle the guest")


class KvmParameter(Knob):
    """A module parameter of KVM that concerns the whole node: halt_poll_ns."""

    kind = "kvm"

    name: str

    def label(self, root: Root) -> str:
        return f"{self.name} of KVM"

    def check(self) -> None:
        if self.name != "halt_poll_ns":
            raise ValueError(f"{self.name[:40]!r} is no parameter of ours")

    def read(self, root: Root) -> str:
        return file.read(root, f"sys/module/kvm/parameters/{self.name}")

    def write(self, root: Root, value: str) -> None:
        file.write(root, f"sys/module/kvm/parameters/{self.name}", value)


class ResumeLatency(Knob):
    """How long one CPU may take to wake up, in microseconds, as the kernel writes it."""

    kind = "resume-latency"

    cpu: int

    def label(self, root: Root) -> str:
        return f"wake-up latency of CPU {self.cpu}, in microseconds"

    def read(self, root: Root) -> str:
        return file.read(root, self._path)

    def write(self, root: Root, value: str) -> None:
        file.write(root, self._path, value)

    @property
    def _path(self) -> str:
        return f"sys/devices/system/cpu/cpu{self.cpu}/power/pm_qos_resume_latency_us"


def resume_latency(bound_us: int) -> str:
    """The kernel's word for a bound: zero is "n/a", as its "0" means none."""
    return "n/a" if bound_us == 0 else str(bound_us)
