"""Debian's real irqbalance, in a mount namespace where it finds a machine of our making."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pxsched.host import irqbalance
from pxsched.root import Root

ADMINS = 40  # the admin bans it on the command line
HOSTS = 45  # a network queue of the host, which irqbalance likes to move
OURS = (50, 51, 52)
UNTOUCHED = "3"

_ENTER = r"""
mount -t tmpfs tmpfs /run
[ "$1" = abstract ] || mkdir /run/irqbalance
# What Debian 13's unit asks for by PrivateUsers= and PrivateNetwork=.
[ "$1" = confined ] && confine="unshare --user --map-root-user --net" || confine=
mount --bind "$2/irq" /proc/irq
mount --bind "$2/interrupts" /proc/interrupts
mount --bind "$2/pci" /sys/bus/pci/devices
shift 2
exec $confine irqbalance --foreground --interval=1 --deepestcache=1 "$@"
"""


class Irqbalance:
    """A running daemon. root: the machine as it sees it."""

    def __init__(self, base: Path, *, place: str = "run", banned: tuple[int, ...] = (ADMINS,)) -> None:
        self.base = base
        self._place = place
        self.start(banned)

    def start(self, banned: tuple[int, ...]) -> None:
        bans = [f"--banirq={number}" for number in banned]
        script = ["sh", "-ec", _ENTER, "enter", self._place, str(self.base)]
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", *script, *bans],
            env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.root = Root(f"/proc/{self.process.pid}/root")
        self.wait(lambda: self.process.poll() is not None or irqbalance.look(self.root) is not None)
        if self.process.poll() is not None:
            pytest.skip(f"irqbalance does not run on this machine (exit {self.process.returncode})")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self, banned: tuple[int, ...] = (ADMINS,)) -> None:
        self.stop()
        self.start(banned)

    def wait(self, condition: Callable[[], bool], patience_s: float = 10) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, "waited too long for irqbalance"
            time.sleep(0.05)

    @property
    def daemon(self) -> irqbalance.Daemon:
        found = irqbalance.find(self.root)
        assert found is not None
        return found

    @property
    def setup(self) -> irqbalance.Setup:
        return irqbalance.setup(self.root, self.daemon)

    @property
    def bans(self) -> set[int]:
        return set(self.setup.irqs)

    def mask(self, number: int) -> Path:
        """The file that irqbalance writes; our knobs write its list form."""
        return self.base / f"irq/{number}/smp_affinity"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not shutil.which("irqbalance", path=os.environ["PATH"] + ":/usr/sbin"):
        pytest.skip("irqbalance is not installed")
    lines = ["            CPU0       CPU1       "]
    for number in (ADMINS, HOSTS, *OURS):
        directory = tmp_path / f"irq/{number}"
        directory.mkdir(parents=True)
        for file, text in (
            ("smp_affinity", UNTOUCHED),
            ("smp_affinity_list", "0-1"),
            ("affinity_hint", "0"),
            ("node", "-1"),
        ):
            (directory / file).write_text(f"{text}\n")
        address = "0000:00:03.0" if number < OURS[0] else "0000:17:02.0"
        name = f"eth0-{number}" if number < OURS[0] else f"vfio-msix[{number - OURS[0]}]({address})"
        (directory / name).mkdir()
        lines.append(f" {number}:  100000   100000  PCI-MSIX-{address}  0-edge   {name}")
        device = tmp_path / f"pci/{address}"
        (device / "msi_irqs").mkdir(parents=True, exist_ok=True)
        (device / "msi_irqs" / str(number)).write_text("msix\n")
        for file in ("vendor", "device", "subsystem_vendor", "subsystem_device"):
            (device / file).write_text("0x8086\n")
        for file, text in (("class", "0x020000"), ("numa_node", "-1"), ("local_cpus", "3"), ("irq", "0")):
            (device / file).write_text(f"{text}\n")
    (tmp_path / "interrupts").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What a process remembers of daemons, it remembers by pid; tests share one process."""
    yield
    irqbalance._deaf_until.clear()
    irqbalance._asked_cpus.clear()


@pytest.fixture
def running(base: Path) -> Iterator[Irqbalance]:
    daemon = Irqbalance(base)
    yield daemon
    daemon.stop()


@pytest.fixture
def running_confined(base: Path) -> Iterator[Irqbalance]:
    daemon = Irqbalance(base, place="confined")
    yield daemon
    daemon.stop()


@pytest.fixture
def running_abstract(base: Path) -> Iterator[Irqbalance]:
    daemon = Irqbalance(base, place="abstract")
    yield daemon
    daemon.stop()
