"""The virtual node: QEMU 10 out of the image's own root, and a command line that makes two NUMA nodes.

QEMU runs in a private mount namespace, chrooted into the image, so that nothing needs to be installed outside
and a Debian 12 machine runs Debian 13's QEMU. It dies with the process that started it (PR_SET_PDEATHSIG).
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from .channel import Channel
from .image import Image
from .recipe import KERNEL_OPTIONS

CHECKOUT = Path(__file__).resolve().parents[2]

# What TCG lacks of the model, and -nrip-save, with which its emulated SVM cannot run KVM.
_CPU = "EPYC,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec"

_ENTER = """\
set -e
root=$1 image=$2 checkout=$3 state=$4
shift 4
mount --bind "$root" "$root"
mount --bind "$image" "$root/mnt"
mount --bind "$checkout" "$root/lab/checkout"
mount --bind "$state" "$root/lab/state"
mount --bind "$state" "$root/var/tmp"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
cd "$root"
exec chroot . "$@"
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """What can differ from lab to lab."""

    threaded: bool = False
    memory_mib_per_node: int = 3072
    kernel_options: str = ""
    boot_deadline_s: float = 240
    topology: str = "16,sockets=4,dies=1,cores=2,threads=2"
    node_cpus: tuple[str, str] = ("0-7", "8-15")
    distances: tuple[int, int] = (10, 21)
    extra: tuple[str, ...] = field(default=())


class BootFailed(Exception):
    """The lab did not come up; the message holds the end of its console."""


def command(shape: Shape, agent_fd: int, console_fd: int) -> list[str]:
    """QEMU's command line, with paths as seen inside the image's root."""
    threading = "multi" if shape.threaded else "single"
    return [
        "/usr/bin/qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35,smm=off,sata=off,smbus=off,hpet=on",
        "-accel", f"tcg,thread={threading},tb-size=512", "-cpu", _CPU, "-smp", shape.topology,
        *_memory(shape),
        "-acpitable", "file=/mnt/ssdt.aml", "-kernel", "/mnt/vmlinux", "-initrd", "/mnt/initrd",
        "-append", f"{KERNEL_OPTIONS} {shape.kernel_options}".strip(),
        "-drive", "file=/mnt/disk.img,format=raw,if=none,id=disk,snapshot=on,cache=unsafe",
        "-device", "intel-iommu,intremap=on",
        "-device", "virtio-blk-pci,drive=disk",
        "-device", "virtio-rng-pci",
        *_channels(agent_fd, console_fd),
        *_passthrough_devices(),
        *shape.extra,
    ]  # fmt: skip


def _memory(shape: Shape) -> list[str]:
    """Two NUMA nodes and how far they are from each other."""
    options = ["-m", str(shape.memory_mib_per_node * 2)]
    for node, cpus in enumerate(shape.node_cpus):
        options += ["-object", f"memory-backend-ram,id=m{node},size={shape.memory_mib_per_node}M"]
        options += ["-numa", f"node,nodeid={node},cpus={cpus},memdev=m{node}"]
    for source in (0, 1):
        for target in (0, 1):
            options += ["-numa", f"dist,src={source},dst={target},val={shape.distances[source != target]}"]
    return options


def _channels(agent_fd: int, console_fd: int) -> list[str]:
    """Console, agent, a shell for people, and the two directories both sides see."""
    return [
        "-chardev", "file,id=console,path=/lab/state/console.log", "-serial", "chardev:console",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,fd={agent_fd}",
        "-device", "virtserialport,chardev=agent,name=lab.agent",
        "-chardev", f"socket,id=person,fd={console_fd}", "-device", "virtconsole,chardev=person",
        "-fsdev", "local,id=checkout,path=/lab/checkout,security_model=none,readonly=on",
        "-device", "virtio-9p-pci,fsdev=checkout,mount_tag=checkout",
        "-fsdev", "local,id=state,path=/lab/state,security_model=none",
        "-device", "virtio-9p-pci,fsdev=state,mount_tag=state",
    ]  # fmt: skip


def _passthrough_devices() -> list[str]:
    """An nvme drive at home on node 0 and a network card on node 1, both with virtual functions.

    A device's NUMA node is that of the host bridge it hangs off.
    """
    nvme = "nvme,serial=lab,subsys=subsys,bus=rp0,sriov_max_vfs=2,sriov_vq_flexible=8,sriov_vi_flexible=4"
    return [
        "-device", "pxb-pcie,id=pxb0,bus=pcie.0,bus_nr=32,numa_node=0",
        "-device", "pxb-pcie,id=pxb1,bus=pcie.0,bus_nr=64,numa_node=1",
        "-device", "pcie-root-port,id=rp0,bus=pxb0,chassis=1,slot=1",
        "-device", "pcie-root-port,id=rp1,bus=pxb1,chassis=2,slot=2",
        "-netdev", "user,id=net,restrict=on", "-device", "igb,bus=rp1,netdev=net",
        "-device", "nvme-subsys,id=subsys", "-device", f"{nvme},max_ioqpairs=12,msix_qsize=12",
    ]  # fmt: skip


class Machine:
    """A booted lab. Use as a context manager."""

    def __init__(self, image: Image, shape: Shape | None = None, *, qemu: Image | None = None) -> None:
        """qemu: the image whose QEMU runs this one; by default its own."""
        self.image = image
        self.qemu = qemu or image
        self.shape = shape or Shape()
        self.state = Path(tempfile.mkdtemp(prefix="pxsched-lab-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self.person: socket.socket | None = None

    def __enter__(self) -> "Machine":
        try:
            self.boot()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def channel(self) -> Channel:
        if self._channel is None:
            raise RuntimeError("the lab is not running")
        return self._channel

    def boot(self) -> None:
        """Up to a working agent. Tried twice: emulated machines now and then hang in their first second."""
        for last in (False, True):
            self._start()
            if self._agent_came():
                return
            tail = self.console_tail()
            self._stop()
            if last:
                raise BootFailed(
                    f"no agent within {self.shape.boot_deadline_s:g} s; the console's end:\n{tail}"
                )

    def _agent_came(self) -> bool:
        end = time.monotonic() + self.shape.boot_deadline_s
        while time.monotonic() < end and self.alive and "Kernel panic" not in self.console_tail():
            if self.channel.wait_for_boot(1, deadline_s=2):
                return True
        return False

    def console_tail(self, lines: int = 60) -> str:
        try:
            text = (self.state / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            text = "(no console)"
        errors = self.state / "qemu.log"
        said = errors.read_text(errors="replace") if errors.exists() else ""
        return "\n".join([*text.splitlines()[-lines:], *said.splitlines()[-10:]])

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def end(self) -> None:
        self._stop()
        shutil.rmtree(self.state, ignore_errors=True)

    def _start(self) -> None:
        ours, agent = socket.socketpair()
        self.person, console = socket.socketpair()
        qemu = command(self.shape, agent.fileno(), console.fileno())
        enter = [
            "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private",
            "sh", "-c", _ENTER, "sh", str(self.qemu.root), str(self.image.path), str(CHECKOUT),
            str(self.state),
        ]  # fmt: skip
        with (self.state / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*enter, *qemu], pass_fds=(agent.fileno(), console.fileno()), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
            )  # fmt: skip
        agent.close()
        console.close()
        self._channel = Channel(ours)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._channel is not None:
            self._channel.close()
        if self.person is not None:
            self.person.close()
        self._process = self._channel = self.person = None
