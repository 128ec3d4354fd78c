"""QEMU's `-smp`: which vCPU is which thread, core, die and socket, and what is written.

Rules: QEMU hw/core/machine-smp.c: a vCPU's index counts threads first, then cores, dies and sockets. Proxmox
writes cpus, sockets, cores and maxcpus (PVE::QemuServer::config_to_command) and then the words of `args`.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pxsched.guest import arguments
from pxsched.guest.arguments import Smp

LEVELS = ("sockets", "dies", "cores", "threads")


class Unreadable(ValueError):
    """`args` says something about processors that we do not understand; the message says what."""


def levels(cpus: int, sockets: int, dies: int, cores: int, threads: int) -> Smp:
    """So many of each; absent vCPUs where there are fewer cpus."""
    most = sockets * dies * cores * threads
    return Smp(cpus, most, sockets, cores, dies, threads=threads)


def place(smp: Smp, index: int) -> tuple[int, int, int, int]:
    """Socket, die in it, core in that and thread in that of a vCPU."""
    rest, thread = divmod(index, smp.threads)
    rest, core = divmod(rest, smp.cores)
    socket, die = divmod(rest, smp.dies)
    return socket, die, core, thread


def apic_id(smp: Smp, index: int) -> int:
    """Each level has as many bits as its numbers need (QEMU include/hw/i386/topology.h)."""
    number, die, core, thread = place(smp, index)
    for part, size in ((die, smp.dies), (core, smp.cores), (thread, smp.threads)):
        number = number << (size - 1).bit_length() | part
    return number


def words(args: str) -> list[str]:
    """`args` as Proxmox takes it apart. Raises Unreadable for an open quote, for which it drops all of it."""
    split = arguments.words(args)
    if args.strip() and not split:
        raise Unreadable("`args` has a quote that is left open: Proxmox drops all of it")
    return split


def values_of(flag: str, split: Sequence[str]) -> Iterator[str]:
    """What follows `-flag` or `--flag`, each time it comes."""
    return (value for word, value in pairwise(split) if word in (f"-{flag}", f"--{flag}"))


def told(sockets: int, cores: int, vcpus: int, args: str) -> Smp:
    """What the guest is told by Proxmox's options and `args`. Raises Unreadable."""
    configured = Smp(vcpus, sockets * cores, sockets, cores)
    try:
        smp = arguments.smp(args, configured) or configured
    except ValueError as error:
        raise Unreadable(f"QEMU refuses the -smp in `args`: {error}") from error
    if smp.modules > 1:
        raise Unreadable("`args` divides dies into modules: what the guest makes of them is not known")
    return smp


def written(smp: Smp) -> str:
    """An `-smp` that leaves cpus to Proxmox."""
    text = ",".join(f"{level}={getattr(smp, level)}" for level in LEVELS)
    return text if smp.cpus == smp.maxcpus else f"maxcpus={smp.maxcpus},{text}"
