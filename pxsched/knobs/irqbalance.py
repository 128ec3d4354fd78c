"""What irqbalance keeps its hands off: one interrupt, or a set of CPUs.

Each interrupt is a knob of its own, so that giving ours back leaves the admin's bans as they are, and those
that come and go meanwhile, too. A knob belongs to one run of the daemon: a restarted one has forgotten what
we asked for, and has bans of its own again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pxsched import lock, patience
from pxsched.host import cpulist, irqbalance
from pxsched.host.irqbalance import Daemon, Setup
from pxsched.knobs.knob import Gone, Knob
from pxsched.root import Root

BANNED, FREE = "banned", "free"
LOCK = "run/pxsched/irqbalance.lock"


class _Request(Knob):
    @property
    def peer(self) -> str:
        return "irqbalance"


class InterruptBan(_Request):
    kind = "irqbalance-irq"

    pid: int
    start_ticks: int
    number: int

    def read(self, root: Root) -> str:
        return BANNED if self.number in _known(root, self.pid, self.start_ticks).irqs else FREE

    def label(self, root: Root) -> str:
        return f"interrupt {self.number} in irqbalance ({self.pid})"

    def write(self, root: Root, value: str) -> None:
        with _alone(root, self.pid, self.start_ticks) as (daemon, setup):
            others = [number for number in setup.irqs if number != self.number]
            irqbalance.ban(root, daemon, [*others, self.number] if value == BANNED else others)


class CpuBan(_Request):
    """Value: a mask of CPUs."""

    kind = "irqbalance-cpus"

    pid: int
    start_ticks: int

    def read(self, root: Root) -> str:
        return _known(root, self.pid, self.start_ticks).cpus

    def label(self, root: Root) -> str:
        return f"banned CPUs of irqbalance ({self.pid})"

    def write(self, root: Root, value: str) -> None:
        with _alone(root, self.pid, self.start_ticks) as (daemon, _setup):
            irqbalance.ban_cpus(root, daemon, value)

    def same(self, now: str, want: str) -> bool:
        return now == want or cpulist.parse_mask(now) == cpulist.parse_mask(want)


def _known(root: Root, pid: int, start_ticks: int) -> Setup:
    """What that run of the daemon said when this process last asked it. Raises Gone when it is over."""
    said = irqbalance.known(root, pid, start_ticks)
    return said if said is not None else _asked(root, _running(root, pid, start_ticks))


def _running(root: Root, pid: int, start_ticks: int) -> Daemon:
    daemon = irqbalance.find(root)
    if daemon is None or (daemon.pid, daemon.start_ticks) != (pid, start_ticks):
        raise Gone(f"irqbalance {pid}")
    return daemon


def _asked(root: Root, daemon: Daemon) -> Setup:
    try:
        return irqbalance.setup(root, daemon)
    except (FileNotFoundError, ConnectionRefusedError):
        raise Gone(f"irqbalance {daemon.pid}") from None


@contextmanager
def _alone(root: Root, pid: int, start_ticks: int) -> Iterator[tuple[Daemon, Setup]]:
    """The daemon takes its list of interrupts only as a whole: one process changes it at a time."""
    daemon = _running(root, pid, start_ticks)
    with lock.held(root, LOCK, patience_s=patience.left(irqbalance.PATIENCE_S)):
        yield daemon, _asked(root, daemon)
