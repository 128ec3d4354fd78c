"""What irqbalance keeps its hands off: one interrupt, or a set of CPUs.

Each interrupt is a knob of its own, so that giving ours back leaves the admin's bans as they are, and those
that come and go meanwhile, too. A knob belongs to one run of the daemon: a restarted one has forgotten what
we asked for, and has bans of its own again.
"""

from pxsched.host import cpulist, irqbalance
from pxsched.host.irqbalance import Daemon, Setup
from pxsched.knobs.knob import Gone, Knob
from pxsched.root import Root

BANNED, FREE = "banned", "free"


class InterruptBan(Knob):
    kind = "irqbalance-irq"

    pid: int
    start_ticks: int
    number: int

    def read(self, root: Root) -> str:
        _daemon, setup = _setup(root, self.pid, self.start_ticks)
        return BANNED if self.number in setup.irqs else FREE

    def label(self, root: Root) -> str:
        return f"interrupt {self.number} in irqbalance ({self.pid})"

    def write(self, root: Root, value: str) -> None:
        daemon, setup = _setup(root, self.pid, self.start_ticks)
        others = [number for number in setup.irqs if number != self.number]
        irqbalance.ban(root, daemon, [*others, self.number] if value == BANNED else others)


class CpuBan(Knob):
    """Value: a mask of CPUs."""

    kind = "irqbalance-cpus"

    pid: int
    start_ticks: int

    def read(self, root: Root) -> str:
        return _setup(root, self.pid, self.start_ticks)[1].cpus

    def label(self, root: Root) -> str:
        return f"banned CPUs of irqbalance ({self.pid})"

    def write(self, root: Root, value: str) -> None:
        irqbalance.ban_cpus(root, _setup(root, self.pid, self.start_ticks)[0], value)

    def same(self, now: str, want: str) -> bool:
        return now == want or cpulist.parse_mask(now) == cpulist.parse_mask(want)


def _setup(root: Root, pid: int, start_ticks: int) -> tuple[Daemon, Setup]:
    """Raises Gone when that run of the daemon is over."""
    daemon = irqbalance.find(root)
    if daemon is None or (daemon.pid, daemon.start_ticks) != (pid, start_ticks):
        raise Gone(f"irqbalance {pid}")
    try:
        return daemon, irqbalance.setup(root, daemon)
    except (FileNotFoundError, ConnectionRefusedError):
        raise Gone(f"irqbalance {pid}") from None
