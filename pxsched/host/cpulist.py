"""CPU sets as text: the kernel's list syntax (`0-3,8`, `0-31:2/8`), ordered lists, and masks.

Rules: Documentation/admin-guide/kernel-parameters.rst ("cpu lists") and lib/bitmap.c of the kernel; Proxmox's
`affinity` uses the same list without groups, and pxsched reads it in written order.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pxsched.errors import UserError

# Far above NR_CPUS of any kernel (8192); keeps a hostile "0-999999999", or "0-65535" a million times, from
# filling the memory.
MAX_CPU = 65535

_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9})/(\d{1,9}))?)?", re.ASCII)


def parse_ordered(text: str) -> tuple[int, ...]:
    """The CPUs of a list in written order, ranges expanded, duplicates kept.

    Raises UserError naming the part that is no CPU, range or `first-last:used/group`.
    """
    cpus: list[int] = []
    for part in text.replace("\0", "").split(","):
        part = part.strip()
        if part:
            cpus.extend(_expand(part, text))
        if len(cpus) > MAX_CPU + 1:
            raise UserError(f"bad CPU list {text[:80]!r}: more than {MAX_CPU + 1} CPUs")
    return tuple(cpus)


@lru_cache(maxsize=256)  # a node has few different ones, and a pass meets each thousands of times
def parse(text: str) -> frozenset[int]:
    """The CPUs of a list as a set. Raises UserError as `parse_ordered` does."""
    return frozenset(parse_ordered(text))


def _expand(part: str, text: str) -> Iterable[int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise UserError(f"bad CPU list {text[:80]!r}: {part[:40]!r} is neither a CPU nor a range")
    first = int(match[1])
    last = int(match[2] or first)
    if last < first or last > MAX_CPU:
        raise UserError(f"bad CPU list {text[:80]!r}: range {part[:40]!r} is not ascending below {MAX_CPU}")
    if match[3] is None:
        return range(first, last + 1)
    used, group = int(match[3]), int(match[4])
    if not 0 < used <= group:
        raise UserError(f"bad CPU list {text[:80]!r}: {part[:40]!r} uses {used} of groups of {group}")
    return (cpu for cpu in range(first, last + 1) if (cpu - first) % group < used)


def format(cpus: Iterable[int]) -> str:
    """Kernel list syntax, ascending: {0, 1, 2, 8} -> "0-2,8"."""
    return _format(frozenset(cpus))


@lru_cache(maxsize=256)
def _format(cpus: frozenset[int]) -> str:
    return format_ordered(sorted(cpus))


def format_ordered(cpus: Sequence[int]) -> str:
    """List syntax in the given order; only ascending runs become ranges: (3, 0, 1) -> "3,0-1"."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def of_vcpus(vcpus: Sequence[frozenset[int]]) -> str:
    """The CPUs that a VM may use: in the order of its vCPUs where each has one, else all, ascending."""
    if all(len(cpus) == 1 for cpus in vcpus):
        return format_ordered([min(cpus) for cpus in vcpus])
    return format(frozenset().union(*vcpus))


def parse_mask(text: str) -> frozenset[int]:
    """The CPUs of a bitmap file, comma-separated 32-bit words, most significant first.

    Raises UserError when it is not hexadecimal.
    """
    digits = "".join(word.strip().rjust(8, "0") for word in text.replace("\0", "").split(","))
    try:
        bits = int(digits, 16)
    except ValueError:
        raise UserError(f"bad CPU mask {text[:80]!r}") from None
    return frozenset(bit for bit in range(bits.bit_length()) if bits >> bit & 1)


def format_mask(cpus: Iterable[int]) -> str:
    """A bitmap as sysfs takes it: {0, 33} -> "2,00000001"."""
    bits = sum(1 << cpu for cpu in set(cpus))
    words = []
    while bits >> 32:
        words.append(f"{bits & 0xFFFFFFFF:08x}")
        bits >>= 32
    words.append(f"{bits:x}")
    return ",".join(reversed(words))
