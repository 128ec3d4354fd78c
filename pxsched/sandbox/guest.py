"""The system inside a sandbox's VM, and the load that it is given while it runs.

A ROM guest is steered through its memory file (see `rom`), a Linux guest through an agent on its serial port
(see `files/init`).
"""

import mmap
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.sandbox import boot, lifecycle, rom
from pxsched.sandbox.commandline import Kind
from pxsched.sandbox.node import Node
from pxsched.value import Value

_BOOT_S = 60.0
_ANSWER_S = 20.0
_CONNECT_S, _RETRY_S = 5.0, 0.05
_POLL_S = 0.3
_LATE_PONG = "ok ping"
_MAPPED_BYTES = 1 << 16
_T = TypeVar("_T")


class Guest(Value):
    """What runs in the VM `vmid`."""

    node: Node
    vmid: int

    def wait(self, *, timeout_s: float = _BOOT_S) -> None:
        """Until the guest has booted. Raises UserError when it does not."""
        ready = self._alive if self._kind is Kind.ROM else self._answers
        deadline = time.monotonic() + timeout_s
        while not ready():
            if time.monotonic() > deadline:
                raise UserError(f"VM {self.vmid} has not booted within {timeout_s} s{self._console()}")
            time.sleep(0.02)

    def load(self, vcpu: int, percent: int) -> None:
        """Keep a vCPU busy for that share of its time, until told otherwise; a ROM guest knows 0 and 100."""
        if self._kind is Kind.LINUX:
            self.tell(f"cpu {vcpu} {percent}")
            return
        if percent not in (0, 100):
            raise UserError("a ROM guest's vCPU burns or sleeps: 0 or 100")
        self._memory(lambda memory: self._wish(memory, vcpu, percent))
        lifecycle.ask(self.node, self.vmid, "inject-nmi")

    def hold(self, memory_mib: int) -> None:
        """Have a Linux guest keep that much memory in use."""
        self.tell(f"mem {memory_mib}")

    def balloon(self, *, driven: bool) -> None:
        """Take the driver from a Linux guest's balloon, or give it back."""
        self.tell(f"balloon {'on' if driven else 'off'}")

    def state(self) -> dict[str, str]:
        """What a Linux guest says of itself: cpus, memtotal_kib, memfree_kib, memavailable_kib."""
        return dict(re.findall(r"(\w+)=(\S+)", self.tell("state")))

    def power_off(self) -> None:
        """Have a Linux guest end by itself."""
        self.tell("poweroff")

    def rounds(self, vcpu: int) -> int:
        """How often a ROM guest's vCPU has been through its burning loop, modulo 2^32."""
        address = rom.COUNTER_ADDRESS + 4 * self._apic_id(vcpu)
        return self._memory(lambda memory: int.from_bytes(memory[address : address + 4], "little"))

    def tell(self, command: str) -> str:
        """A command for a Linux guest's agent, and its answer. Raises UserError."""
        with self._serial(_ANSWER_S) as connection, connection.makefile("rb") as lines:
            connection.sendall(command.encode() + b"\n")
            try:
                text = _LATE_PONG
                while text == _LATE_PONG:
                    text = lines.readline(4096).decode("utf-8", "replace").strip()
            except TimeoutError:
                raise UserError(f"VM {self.vmid}: no answer to {command!r}{self._console()}") from None
        if not text.startswith("ok"):
            raise UserError(f"VM {self.vmid}: {command!r}: {text}")
        return text

    @property
    def _kind(self) -> Kind:
        return boot.kind(self.node, self.vmid)

    def _alive(self) -> bool:
        vcpus = range(self._machine.vcpus)
        return self._memory(
            lambda memory: all(memory[rom.ALIVE_ADDRESS + self._apic_id(vcpu)] for vcpu in vcpus)
        )

    def _answers(self) -> bool:
        """Whether the agent answers a ping; answers to earlier ones are swept up, too."""
        answer = b""
        with self._serial(_POLL_S) as connection, suppress(TimeoutError):
            connection.sendall(b"ping\n")
            while data := connection.recv(4096):
                answer += data
        return answer.endswith(b"ok ping\n")

    def _serial(self, timeout_s: float) -> socket.socket:
        """QEMU takes one connection after the other; while one waits there is no room (EAGAIN, unix(7))."""
        deadline = time.monotonic() + _CONNECT_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout_s)
            try:
                connection.connect(str(self.node.run(self.vmid, "serial0")))
                return connection
            except OSError as error:
                connection.close()
                if not isinstance(error, BlockingIOError) or time.monotonic() >= deadline:
                    raise UserError(f"VM {self.vmid}: no serial port: {error.strerror}") from error
            time.sleep(_RETRY_S)

    def _memory(self, use: Callable[[mmap.mmap], _T]) -> _T:
        """Something done with the guest's first page frames."""
        with (
            self.node.own(self.vmid, "memory").open("r+b") as file,
            mmap.mmap(file.fileno(), _MAPPED_BYTES) as memory,
        ):
            return use(memory)

    def _wish(self, memory: mmap.mmap, vcpu: int, percent: int) -> None:
        memory[rom.WISH_ADDRESS + self._apic_id(vcpu)] = 1 if percent else 0

    @property
    def _machine(self) -> config.Machine:
        return config.machine(config.Config(options=lifecycle.load(self.node, self.vmid).options))

    def _apic_id(self, vcpu: int) -> int:
        machine = self._machine
        return rom.apic_id(vcpu, machine.smp.per_socket if machine.smp else machine.cores)

    def _console(self) -> str:
        path = self.node.own(self.vmid, "console")
        return (
            f"; its console ends with: {path.read_text('utf-8', 'replace')[-500:]}" if path.exists() else ""
        )
