"""QEMU's `-smp`: how many of what a guest's processor has, and which vCPU is which of them.

Rules: QEMU hw/core/machine-smp.c: a vCPU's index counts threads first, then cores, dies and sockets; options
given twice are merged key by key, the last one wins. Proxmox writes cpus, sockets, cores and maxcpus
(PVE::QemuServer::config_to_command) and then the words of `args`.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from pxsched.host.cpulist import MAX_CPU
from pxsched.value import Value

LEVELS = ("sockets", "dies", "cores", "threads")
# Further levels that QEMU knows; with more than one of any we do not know what the guest sees.
DEAF = ("drawers", "books", "clusters", "modules")


class Unreadable(ValueError):
    """`args` says something about processors that we do not understand; the message says what."""


class Smp(Value):
    """sockets: of dies each, and so on down to threads of a core. cpus: those present, the first of all."""

    cpus: int
    sockets: int = 1
    dies: int = 1
    cores: int = 1
    threads: int = 1

    @property
    def maxcpus(self) -> int:
        return self.sockets * self.dies * self.cores * self.threads

    def place(self, index: int) -> tuple[int, int, int, int]:
        """Socket, die in it, core in that and thread in that of a vCPU."""
        rest, thread = divmod(index, self.threads)
        rest, core = divmod(rest, self.cores)
        socket, die = divmod(rest, self.dies)
        return socket, die, core, thread

    def apic_id(self, index: int) -> int:
        """Each level has as many bits as its numbers need (QEMU include/hw/i386/topology.h)."""
        socket, die, core, thread = self.place(index)
        number = socket
        for part, size in ((die, self.dies), (core, self.cores), (thread, self.threads)):
            number = number << (size - 1).bit_length() | part
        return number


def words(args: str) -> list[str]:
    """`args` as Proxmox takes it apart. Raises Unreadable when a quote is left open."""
    try:
        return shlex.split(args)
    except ValueError as error:
        raise Unreadable(f"`args` cannot be taken apart: {error}") from error


def values_of(flag: str, split: Sequence[str]) -> Iterator[str]:
    """What follows `-flag` or `--flag`, each time it comes."""
    return (value for word, value in pairwise(split) if word in (f"-{flag}", f"--{flag}"))


def told(sockets: int, cores: int, vcpus: int, split: Sequence[str]) -> Smp:
    """What the guest is told by Proxmox's options and the words of `args`. Raises Unreadable."""
    numbers = {"cpus": vcpus, "sockets": sockets, "cores": cores, "maxcpus": sockets * cores}
    for text in values_of("smp", split):
        numbers |= _smp(text)
    if any(numbers.get(level, 1) > 1 for level in DEAF):
        raise Unreadable("`args` gives the processor levels that are not known here")
    smp = Smp(numbers["cpus"], *(numbers.get(level, 1) for level in LEVELS))
    if smp.maxcpus != numbers["maxcpus"] or not 0 < smp.cpus <= smp.maxcpus:
        raise Unreadable(
            f"{smp.sockets} sockets x {smp.dies} dies x {smp.cores} cores x {smp.threads} threads are not"
            f" {numbers['maxcpus']} vCPUs: QEMU refuses that"
        )
    return smp


def _smp(text: str) -> Mapping[str, int]:
    """One `-smp`: `8,sockets=1`; the bare number is cpus."""
    found = {}
    for part in text.split(","):
        key, equals, number = part.partition("=")
        if not equals:
            key, number = "cpus", key
        if not (number.isascii() and number.isdigit()) or not 0 < len(number) < 6 or int(number) > MAX_CPU:
            raise Unreadable(f"`args` has -smp {part[:30]!r}, which is no number")
        if key not in ("cpus", "maxcpus", *LEVELS, *DEAF):
            raise Unreadable(f"`args` has -smp {key[:30]!r}, which is not known here")
        found[key] = int(number)
    return found


def written(smp: Smp, *, maxcpus: bool) -> str:
    """The options of an `-smp` that leaves cpus to Proxmox. maxcpus: whether some vCPUs are absent."""
    levels = ",".join(f"{level}={getattr(smp, level)}" for level in LEVELS)
    return f"maxcpus={smp.maxcpus},{levels}" if maxcpus else levels
