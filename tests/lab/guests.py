"""Guests for the lab's node: firmware-only ones that start at once, and Linux ones with real drivers.

Both are started through `inside/qm` with a configuration file like any other; what makes them guests of the
lab is their `args`, which only an administrator may set in Proxmox, too.
"""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import kernel, rom
from .polling import TooLate, poll

if TYPE_CHECKING:
    from .node import Node

# A Linux guest is up in half a minute; one that takes this long hangs.
BOOT_S = 90
ROM_FILE, INITRD_FILE, BARE_FILE = "guest.rom", "guest.initrd", "bare.initrd"
LINUX_MODULES = ("virtio_pci", "virtio_balloon", "igbvf", "virtio_net")

_LINUX_INIT = """\
#!/bin/sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t tmpfs -o size=90% tmp /tmp
$b stty -F /dev/ttyS0 raw -echo
for module in /modules/*.ko; do [ ! -e "$module" ] || $b insmod "$module"; done
for link in /sys/class/net/eth*; do [ ! -e "$link" ] || $b ip link set "${link##*/}" up; done
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r verb argument; do
  case $verb in
    ping) echo pong ;;
    memory) $b dd if=/dev/zero of=/tmp/fill bs=1M count="$argument" conv=notrunc 2>/dev/null
      $b grep MemAvailable /proc/meminfo ;;
    free) $b rm -f /tmp/fill ;;
    burn) while :; do :; done & echo $! >/tmp/burner ;;
    rest) kill "$($b cat /tmp/burner)" ;;
    poweroff) $b poweroff -f ;;
    reset) $b reboot -f ;;
    *) $b sh -c "$verb $argument" ;;
  esac
  echo "<done $?>"
done
"""


def files(system: kernel.Kernel) -> dict[str, bytes]:
    """What the lab's node needs to start guests, by file name."""
    initrd = kernel.initramfs(system, LINUX_MODULES, _LINUX_INIT)
    return {
        ROM_FILE: rom.image(), INITRD_FILE: initrd, BARE_FILE: kernel.initramfs(system, (), _LINUX_INIT)
    }  # fmt: skip


def rom_args(vmid: int) -> str:
    return (
        f"-bios /lab/state/{ROM_FILE} -object memory-backend-file,id=lab,size={rom.PAGE_BYTES},share=on,"
        f"mem-path=/dev/shm/guest-{vmid} -device ivshmem-plain,memdev=lab,addr=0x10"
    )


def linux_args() -> str:
    return _linux(INITRD_FILE, "")


def steady_linux_args() -> str:
    """A guest without the interval timer; with a passed-through device such a one does not come up."""
    return _steady(INITRD_FILE)


def smp_linux_args() -> str:
    """A guest of several vCPUs, without drivers."""
    return _steady(BARE_FILE)


def _steady(initrd: str) -> str:
    """A kernel that is told the TSC's frequency (any will do), and that its timers need no help, has no
    interrupt of the interval timer, which hangs guests here (docs/lab.md). An Intel model: the emulated AMD
    host has no topoext to give.
    """
    model = "-cpu kvm64,vendor=GenuineIntel,+arat,+tsc-deadline,+x2apic"
    return f"{_linux(initrd, 'tsc_early_khz=2500000 lpj=5000000')} {model}"


def _linux(initrd: str, more: str) -> str:
    options = (
        "console=ttyS1 quiet mitigations=off no_timer_check tsc=reliable cryptomgr.notests panic=-1 nokaslr"
    )
    return f"-kernel /lab/vmlinux -initrd /lab/state/{initrd} -append '{f'{options} {more}'.strip()}'"


@dataclass(frozen=True, slots=True)
class RomGuest:
    """A guest without an operating system."""

    node: "Node"
    vmid: int

    def set_burning(self, *vcpus: int) -> None:
        mask = sum(1 << vcpu for vcpu in vcpus)
        self._poke(rom.BURN, mask)

    def touch(self, mib: int) -> None:
        """Memory the guest writes to, so that its pages exist."""
        self._poke(rom.WANT_MIB, mib)
        poll(
            lambda: self._peek(rom.TOUCHED_MIB, 1)[0] >= mib,
            f"guest {self.vmid} touches {mib} MiB",
            deadline_s=90,
        )

    def power_off(self) -> None:
        self._poke(rom.COMMAND, rom.POWER_OFF)

    def reset(self) -> None:
        self._poke(rom.COMMAND, rom.RESET)

    def rounds(self, vcpus: int) -> tuple[int, ...]:
        """How often each vCPU went round its loop; a burning one counts much faster than a halted one."""
        return self._peek(rom.COUNTERS, vcpus)

    def wait_started(self, vcpus: int, *, deadline_s: float = 90) -> None:
        poll(
            lambda: all(self.rounds(vcpus)),
            f"all {vcpus} vCPUs of guest {self.vmid} run",
            deadline_s=deadline_s,
        )

    @property
    def _page(self) -> str:
        return f"/dev/shm/guest-{self.vmid}"

    def _poke(self, offset: int, value: int) -> None:
        octal = "".join(f"\\{byte:03o}" for byte in struct.pack("<I", value))
        write = f"printf '{octal}' | dd of={self._page} bs=1 seek={offset} conv=notrunc status=none"
        self.node.run("sh", "-c", write).check()

    def _peek(self, offset: int, words: int) -> tuple[int, ...]:
        done = self.node.run("od", "-An", "-v", "-tu4", f"-j{offset}", f"-N{4 * words}", self._page).check()
        return tuple(int(word) for word in done.out.split())


@dataclass(frozen=True, slots=True)
class LinuxGuest:
    """Debian's kernel with a busybox that obeys its serial console."""

    node: "Node"
    vmid: int

    def tell(self, line: str, *, timeout_s: float = 60) -> str:
        return self.node.run("qm", "tell", str(self.vmid), line, timeout_s=timeout_s).check().out

    def wait_ready(self, *, tries: int = 4) -> None:
        """Until it answers; reset when it does not (see `inside/qm` for how the emulation hangs a guest)."""

        def answers() -> bool:
            # A guest that still boots would swallow the question.
            return "pong" in self.node.run("timeout", "20", "qm", "tell", str(self.vmid), "ping").out

        for attempt in range(tries):
            try:
                poll(answers, f"Linux guest {self.vmid} answers", deadline_s=BOOT_S, interval_s=1)
            except TooLate:
                if attempt == tries - 1:
                    raise
                self.reset()
            else:
                return

    def reset(self) -> None:
        self.node.qm("qmp", str(self.vmid), "system_reset").check()
