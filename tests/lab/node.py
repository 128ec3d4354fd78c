"""The booted lab as tests see it: a Proxmox-shaped node to run commands and start guests on."""

import shlex
from dataclasses import dataclass

from . import guests, kernel, rom
from .channel import Done
from .machine import Machine
from .polling import poll

DEFAULT_VCPUS = 2
# The network card and its first virtual function.
NIC, VF = "0000:41:00.0", "0000:41:10.0"


class CommandFailed(AssertionError):
    """A command in the lab said no where the test needed a yes."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in the lab left behind."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    def check(self) -> "Result":
        if self.code:
            raise CommandFailed(str(self))
        return self

    def __str__(self) -> str:
        return f"$ {shlex.join(self.argv)}\n[exit {self.code}]\n{self.out}{self.err}"


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of a guest's QEMU as the kernel shows it."""

    tid: int
    name: str
    cpus: frozenset[int]

    @property
    def vcpu(self) -> int | None:
        """Its vCPU number, for a vCPU thread."""
        words = self.name.split()
        return int(words[1].split("/")[0]) if words[0] == "CPU" and len(words) == 2 else None


class Node:
    """Everything the tests do to the lab goes through here."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        for name, data in guests.files(kernel.installed(machine.image.root)).items():
            (machine.state / name).write_bytes(data)

    # Commands and files

    def run(
        self, *argv: str, timeout_s: float = 120, stdin: str = "", env: dict[str, str] | None = None
    ) -> Result:
        done: Done = self.machine.channel.run(*argv, timeout_s=timeout_s, stdin=stdin, env=env)
        return Result(done.argv, done.code, done.out, done.err)

    def shell(self, script: str, *, timeout_s: float = 120) -> Result:
        return self.run("sh", "-c", script, timeout_s=timeout_s)

    def files(self, *globs: str) -> dict[str, str]:
        found: dict[str, str] = self.machine.channel.request("read", deadline_s=60, globs=list(globs))[
            "files"
        ]
        return found

    def read(self, path: str) -> str:
        found = self.files(path)
        if path not in found:
            raise FileNotFoundError(path)
        return found[path].strip("\0\n ")

    def write(self, path: str, text: str) -> int:
        """0, or the errno with which the kernel refused."""
        code: int = self.machine.channel.request("write", deadline_s=60, path=path, text=text)["errno"]
        return code

    def reboot(self, *, deadline_s: float = 240) -> None:
        before = self.machine.channel.boots
        # A power cut: the harder case for the product, and quicker than stopping every unit.
        self.write("/proc/sys/kernel/sysrq", "1")
        self.shell("sync; (sleep 1; echo b > /proc/sysrq-trigger) >/dev/null 2>&1 &")
        if not self.machine.channel.wait_for_boot(before + 1, deadline_s=deadline_s):
            raise CommandFailed(f"the lab did not come back:\n{self.machine.console_tail()}")

    # Guests

    def qm(self, *argv: str, timeout_s: float = 180) -> Result:
        return self.run("qm", *argv, timeout_s=timeout_s)

    def rom_guest(self, vmid: int, *, burning: int = 0, **options: str | int) -> guests.RomGuest:
        """Writes the configuration of a firmware-only guest, and its shared page; does not start it."""
        small: dict[str, str | int] = {"cores": DEFAULT_VCPUS, "memory": 32, "balloon": 0}
        options = small | {"args": guests.rom_args(vmid)} | options
        vcpus = int(options["cores"]) * int(options.get("sockets", 1))
        (self.machine.state / f"page-{vmid}").write_bytes(rom.page(vcpus=vcpus, burning=burning))
        self.run("cp", f"/lab/state/page-{vmid}", f"/dev/shm/guest-{vmid}").check()
        self._create(vmid, options)
        return guests.RomGuest(self, vmid)

    def linux_guest(self, vmid: int, **options: str | int) -> guests.LinuxGuest:
        small: dict[str, str | int] = {"cores": 1, "memory": 256, "args": guests.linux_args()}
        self._create(vmid, small | options)
        return guests.LinuxGuest(self, vmid)

    def _create(self, vmid: int, options: dict[str, str | int]) -> None:
        flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        self.qm("create", str(vmid), *flags).check()

    def pid(self, vmid: int) -> int | None:
        pid_file = self.files(f"/run/qemu-server/{vmid}.pid").values()
        for text in pid_file:
            pid = int(text)
            words = self.files(f"/proc/{pid}/cmdline").get(f"/proc/{pid}/cmdline", "").split("\0")
            return pid if f"/var/run/qemu-server/{vmid}.pid" in words else None
        return None

    def threads(self, vmid: int) -> list[Thread]:
        pid = self.pid(vmid)
        if pid is None:
            raise CommandFailed(f"VM {vmid} does not run")
        found = self.machine.channel.request("masks", deadline_s=60, pids=[pid])["threads"]
        return [Thread(tid, name, frozenset(cpus)) for _, tid, name, cpus in found]

    def vcpu_masks(self, vmid: int) -> dict[int, frozenset[int]]:
        return {thread.vcpu: thread.cpus for thread in self.threads(vmid) if thread.vcpu is not None}

    def gone(self, vmid: int, *, deadline_s: float = 60) -> None:
        """Waits until QEMU has ended and post-stop has been called."""

        def over() -> bool:
            return self.pid(vmid) is None and not self.files(f"/run/qemu-server/{vmid}.cleanup")

        poll(over, f"VM {vmid} is gone and its post-stop has run", deadline_s=deadline_s)

    def clear_guests(self) -> None:
        """Stops and forgets every guest; what a test leaves must not reach the next."""
        self.shell("for vmid in $(qm list | cut -d' ' -f1); do qm destroy $vmid & done; wait", timeout_s=300)

    # What the kernel says

    def governors(self) -> dict[int, str]:
        found = self.files("/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
        return {int(path.split("/")[5][3:]): text.strip() for path, text in found.items()}

    def interrupts(self, label: str) -> dict[int, str]:
        """The numbers of the interrupts whose line holds `label`, with their effective CPUs."""
        table = self.read("/proc/interrupts").splitlines()
        numbers = [line.split(":")[0].strip() for line in table if label in line]
        found = self.files(
            *(f"/proc/irq/{number}/effective_affinity_list" for number in numbers if number.isdigit())
        )
        return {int(path.split("/")[3]): text.strip() for path, text in found.items()}
