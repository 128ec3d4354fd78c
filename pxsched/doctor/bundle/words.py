"""Which text may leave the machine in a bundle: numbers, the kernel's words, and sentences of our own."""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pkgutil import walk_packages
from types import CodeType

# Numbers, lists and masks of CPUs, sizes, counters by name.
_NUMBER = re.compile(
    r"-?\d[\d,-]*(?:\.\d+)?[KMG]?|[0-9a-f]{1,8}(?:,[0-9a-f]{8})*|0x[0-9a-f]{1,8}|N\d+=\d+"
    r"|(?:avg10|avg60|avg300|total)=\d+(?:\.\d+)?|cpu\d*",
    re.ASCII,
)
# What the kernel itself says where it says words: Documentation/admin-guide/pm (governors, preferences,
# drivers), cgroup-v2.rst (controllers, statistics, partitions), sysfs ABI (caches, SMT, huge pages), and the
# memory fields that the program reads.
_KERNEL = """
conservative ondemand performance powersave schedutil userspace
balance_performance balance_power default power
acpi-cpufreq amd-pstate amd-pstate-epp cppc_cpufreq intel_cpufreq intel_pstate
Data Instruction Unified on off forceoff notsupported notimplemented always madvise never defer defer+madvise
cpu cpuset dmem hugetlb io memory misc pids rdma root member isolated max some full
populated frozen
usage_usec user_usec system_usec nice_usec nr_periods nr_throttled throttled_usec nr_bursts burst_usec
anon file kernel_stack pagetables shmem file_mapped file_dirty file_writeback anon_thp
Node zone DMA DMA32 Normal Movable kB
MemTotal: MemFree: MemAvailable: MemUsed: Active(file): Inactive(file): SReclaimable: Shmem: Buffers: Cached:
SwapTotal: SwapFree: HugePages_Total: HugePages_Free: HugePages_Surp: HugePages_Rsvd: Hugepagesize:
"""
KERNEL = frozenset(_KERNEL.split())
# What our own journal says of knobs, besides numbers and the kernel's words.
KNOBS = frozenset(("banned", "free", "fifo", "other", "true", "false", "null"))


def understood(text: str, more: frozenset[str] = frozenset()) -> bool:
    """Whether it is nothing but numbers, words of the kernel's and `more`."""
    known = KERNEL | more
    words = re.split(r'[\s\[\]";]+', text)
    return all(_NUMBER.fullmatch(word) or word.rstrip(",") in known for word in words if word.strip(","))


def kept(text: str) -> str:
    """The lines of a file of the kernel's that are understood."""
    return "".join(f"{line}\n" for line in text.splitlines() if understood(line))


def word(text: str) -> str:
    """A setting that the kernel names, such as a governor; empty for any other word."""
    return text if text in KERNEL else ""


def ours(sentence: str, *rooms: str) -> bool:
    """Whether it is made of numbers and of words that the program's rooms (`placement`, ...) use, too."""
    spoken = frozenset().union(*map(_spoken, rooms))
    return sentence.isascii() and all(part.lower() in spoken for part in re.findall(r"[A-Za-z]+", sentence))


@lru_cache
def _spoken(room: str) -> frozenset[str]:
    """The words of all constant texts in a room's modules."""
    name = f"pxsched.{room}"
    spec = find_spec(name)
    assert spec is not None
    inner = walk_packages(spec.submodule_search_locations, f"{name}.")
    names = [name, *(module.name for module in inner)]
    texts = (text for one in names for text in _constants(_code(one)))
    return frozenset(part.lower() for text in texts for part in re.findall(r"[A-Za-z]+", text))


def _code(module: str) -> CodeType | None:
    spec = find_spec(module)
    get_code = getattr(spec.loader, "get_code", None) if spec else None
    code = get_code(module) if get_code else None
    return code if isinstance(code, CodeType) else None


def _constants(code: CodeType | None) -> Iterator[str]:
    waiting: list[object] = [code]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, CodeType):
            waiting += one.co_consts
        elif isinstance(one, Iterable):
            waiting += one
