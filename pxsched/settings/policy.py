"""Every setting there is: its name, type, default, check and meaning, declared once.

Files are checked against these declarations, and the manual's tables are made from them.
"""

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from pxsched.errors import UserError
from pxsched.host import cpulist
from pxsched.value import NOTHING, Value, fields


class Wish(StrEnum):
    """The class asked for; `auto` leaves it to `affinity`."""

    AUTO = "auto"
    DEDICATED = "dedicated"
    SHARED = "shared"


class Smt(StrEnum):
    """How a dedicated VM's vCPUs lie on SMT siblings."""

    PREFER = "prefer"
    REQUIRE = "require"
    ISOLATE = "isolate"
    SHARE = "share"


class Prefer(StrEnum):
    """Which CPUs come first where the machine has several kinds."""

    ANY = "any"
    PERFORMANCE = "performance"
    EFFICIENCY = "efficiency"
    CACHE = "cache"
    FREQUENCY = "frequency"


class MemoryMode(StrEnum):
    """off; first touch near the vCPUs; or bound to the nodes by the VM's scope from its first page."""

    OFF = "off"
    PREFER = "prefer"
    STRICT = "strict"


class FarMemory(StrEnum):
    """Whether a VM may have memory of nodes without CPUs: never, or when all others cannot hold it."""

    NEVER = "never"
    LAST = "last"


class EmulatorPlace(StrEnum):
    OFF = "off"
    HOUSEKEEPING = "housekeeping"
    VM = "vm"


class Fair(StrEnum):
    OFF = "off"
    HOME = "home"
    PIN = "pin"


class Shaping(StrEnum):
    """off; say where a guest is not told what it has; or tell it before its next start."""

    OFF = "off"
    ADVISE = "advise"
    APPLY = "apply"


class Isolation(StrEnum):
    OFF = "off"
    SLICES = "slices"
    PARTITION = "partition"


class Others(StrEnum):
    """What happens to VMs that are not opted in and to containers."""

    OBSERVE = "observe"
    CONFINE = "confine"


class Notify(StrEnum):
    """How the admin is told of what he should know."""

    NONE = "none"
    MAIL = "mail"


E = TypeVar("E", bound=StrEnum)


class Check(Value):
    """parse: the checked value; raises ValueError for one that is none. values: what it takes, in words."""

    parse: Callable[[object], object]
    values: str


def _choice(enum: type[E]) -> Check:
    def parse(value: object) -> E:
        for member in enum:
            if value == member.value:
                return member
        known = ", ".join(member.value for member in enum)
        raise ValueError(f"{value!r} is none of {known}")

    return Check(parse, ", ".join(f'`"{member.value}"`' for member in enum))


def _parse_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is neither true nor false")


_BOOL = Check(_parse_bool, "`true`, `false`")


def _number(low: float, high: float) -> Check:
    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{value!r} is no number from {low:g} to {high:g}")
        return float(value)

    return Check(parse, f"number from {low:g} to {high:g}")


def _integer(low: int, high: int) -> Check:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{value!r} is no whole number from {low} to {high}")
        return value

    return Check(parse, f"whole number from {low} to {high}")


def _list(value: object) -> tuple[int, ...]:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no CPU list such as '0-3,8'")
    try:
        return cpulist.parse_ordered(value)
    except UserError as error:
        raise ValueError(error.message) from error


def _parse_list(value: object) -> str:
    return cpulist.format(_list(value))


def _parse_ordered(value: object) -> str:
    return cpulist.format_ordered(_list(value))


_PINS = Check(_parse_ordered, 'CPUs in the order of the vCPUs, such as `"3,2,8-9"`')
_CPUS = Check(_parse_list, 'CPUs, such as `"0-3,8"`')
_NODES = Check(_parse_list, 'NUMA nodes, such as `"0-1"`')


def _parse_word(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[a-z0-9_]{0,32}", value, re.ASCII):
        return value
    raise ValueError(f"{value!r} is no plain word")


# A value the kernel names, such as a governor: a plain word, so that it can never be anything else.
_WORD = Check(_parse_word, 'word, such as `"performance"`')


def _parse_directory(value: object) -> str:
    """An absolute path that stays what it is when it is joined to a root."""
    if value == "":
        return ""
    path = value if isinstance(value, str) else ""
    plain = re.fullmatch(r"(/[A-Za-z0-9._+-]{1,255}){1,16}/?", path, re.ASCII)
    if not plain or ".." in path.split("/"):
        raise ValueError(f"{value!r} is no plain directory such as '/var/lib/prometheus/node-exporter'")
    return path


_DIRECTORY = Check(_parse_directory, 'directory, such as `"/var/lib/prometheus/node-exporter"`')


class Setting(Value):
    """parse, values: as in Check. help: one sentence."""

    default: Any
    parse: Callable[[object], object]
    help: str
    values: str


def _setting(default: Any, check: Check, help: str) -> Any:
    return Setting(default, check.parse, help, check.values)


NOTHING_DECLARED: Mapping[str, Setting] = NOTHING


class Settings(Value):
    """Values that are declared by `_setting`. declared: what was said of each, by field."""

    declared = NOTHING_DECLARED

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.declared = {name: vars(cls)[name] for name in fields(cls)}
        for name, setting in cls.declared.items():
            setattr(cls, name, setting.default)


class Policy(Settings):
    """What one VM gets: `[defaults]`, overlaid by its profile, overlaid by `[vm.VMID]`."""

    wish: Wish = _setting(
        Wish.AUTO, _choice(Wish), "class: dedicated CPUs, a shared home, or as `affinity` says"
    )
    smt: Smt = _setting(
        Smt.PREFER, _choice(Smt), "siblings together if possible, always, a core each, or shared"
    )
    prefer: Prefer = _setting(Prefer.ANY, _choice(Prefer), "kind of CPU that comes first")
    cpus: str = _setting("", _CPUS, "only these CPUs may be chosen; empty: all")
    pins: str = _setting(
        "", _PINS, "what counts instead of `affinity`: in `[node.NAME.vm.VMID]` for one node's CPU numbers"
    )
    nodes: str = _setting("", _NODES, "only these NUMA nodes may be chosen; empty: all")
    strict: bool = _setting(False, _BOOL, "refuse to start when the VM cannot be placed as wished")
    memory: MemoryMode = _setting(MemoryMode.PREFER, _choice(MemoryMode), "how memory follows the vCPUs")
    far_memory: FarMemory = _setting(
        FarMemory.LAST,
        _choice(FarMemory),
        "memory of nodes without CPUs (CXL, Optane, MCDRAM): never, or when the VM cannot be held otherwise",
    )
    compact: bool = _setting(False, _BOOL, "compact memory at pre-start when huge pages are short")
    vcpu: bool = _setting(True, _BOOL, "place vCPU threads")
    emulator: EmulatorPlace = _setting(
        EmulatorPlace.HOUSEKEEPING, _choice(EmulatorPlace), "where emulator, iothread and vhost threads run"
    )
    vhost: EmulatorPlace = _setting(
        EmulatorPlace.HOUSEKEEPING,
        _choice(EmulatorPlace),
        "where vhost workers run, if not with the emulator",
    )
    interrupts: bool = _setting(True, _BOOL, "place interrupts of passed-through devices")
    governor: str = _setting("", _WORD, "frequency governor of pinned and dedicated CPUs; empty: untouched")
    energy: str = _setting("", _WORD, "energy_performance_preference of those CPUs; empty: untouched")
    nic: bool = _setting(True, _BOOL, "place tap queues and watch the nodes of SR-IOV links")
    isolation: bool = _setting(True, _BOOL, "keep host tasks off this VM's dedicated CPUs")
    fifo: int = _setting(
        0,
        _integer(0, 49),
        "SCHED_FIFO priority of vCPU threads; 0: normal scheduling. Its price: the kernel takes 50 ms"
        " of each second from a vCPU that is always busy (since Linux 6.12 only where others want its CPU)",
    )
    halt_poll_ns: int = _setting(
        -1, _integer(-1, 10_000_000), "KVM halt polling while this VM runs; -1: untouched"
    )
    resume_latency_us: int = _setting(
        -1, _integer(-1, 1_000_000), "wake-up latency bound of its CPUs; -1: untouched, 0: no idle states"
    )
    fair: Fair = _setting(
        Fair.HOME, _choice(Fair), "what the balancer may move: the home, single pins, nothing"
    )
    shape: Shaping = _setting(
        Shaping.ADVISE,
        _choice(Shaping),
        "say which guests are not told the cores and caches they have; or tell them",
    )
    balloon: bool = _setting(True, _BOOL, "let the memory coordinator manage this guest where it may")
    balloon_minimum_percent: float = _setting(
        0.0,
        _number(0, 99),
        "`enable --balloon` gives VMs whose `balloon` is all their memory this minimum (per cent); 0: none",
    )
    starved_mib: int = _setting(150, _integer(0, 1 << 20), "a guest with less unused memory starves (MiB)")
    starved_percent: float = _setting(
        5.0, _number(0, 100), "the same in per cent of its memory; the larger counts"
    )
    wasteful_mib: int = _setting(
        300, _integer(0, 1 << 20), "a guest with more unused memory is wasteful (MiB)"
    )
    wasteful_percent: float = _setting(15.0, _number(0, 100), "the same in per cent; the larger counts")


class NodeSettings(Settings):
    """What concerns the node as a whole: `[node]`."""

    housekeeping: str = _setting("", _CPUS, "CPUs for host tasks; empty: the first core of each node")
    isolation: Isolation = _setting(Isolation.OFF, _choice(Isolation), "how host tasks leave dedicated CPUs")
    others: Others = _setting(
        Others.OBSERVE,
        _choice(Others),
        "containers and VMs that are not opted in: only counted, or kept off dedicated CPUs",
    )
    device_interrupts: bool = _setting(False, _BOOL, "keep all other interrupts off dedicated CPUs")
    governor_free: str = _setting("", _WORD, "governor of CPUs given back; empty: what they had before")
    reserved_mib: int = _setting(2048, _integer(0, 1 << 24), "memory the host keeps for itself (MiB)")
    reserved_cpus: str = _setting("", _CPUS, "CPUs not offered to Karpenter, besides housekeeping")
    karpenter_reserved_mib: int = _setting(0, _integer(0, 1 << 24), "memory not offered to Karpenter (MiB)")
    deviation: float = _setting(
        2.0, _number(0, 10), "standard deviations from the others before a VM is moved"
    )
    contention_floor: float = _setting(0.05, _number(0, 1), "least contention that is worth a move")
    moves: int = _setting(2, _integer(0, 64), "most moves in one pass")
    cooldown_s: float = _setting(60.0, _number(0, 86400), "least time between two moves of one VM (s)")
    balance_cpu: bool = _setting(True, _BOOL, "rebalance CPUs")
    balance_memory: bool = _setting(True, _BOOL, "move balloon memory between guests")
    textfile: str = _setting(
        "", _DIRECTORY, "node_exporter's textfile directory, for metrics after each pass; empty: none"
    )
    notify: Notify = _setting(
        Notify.NONE,
        _choice(Notify),
        "mail root, once each: strict VMs that were refused, VMs without a place, values that the kernel does"
        " not take, and those that somebody else turns again and again",
    )
    prove: bool = _setting(
        False,
        _BOOL,
        "let the timer compare, one VM at a time and a round of four blocks an hour, what its place is worth",
    )


def key_of(name: str) -> str:
    """A field's key in the file: `wish` is written `class`, a word Python keeps for itself."""
    return "class" if name == "wish" else name
