"""The values of a VM's options as Proxmox reads them.

Rules: PVE::JSONSchema (parse_property_string, parse_boolean), PVE::CpuSet::parse_cpuset, and the formats of
PVE::QemuServer. Whatever Proxmox does not take raises ValueError here: it drops such a line.
"""

import re
from collections.abc import Collection

from pxsched.host import cpulist
from pxsched.value import Value

MAX_VCPUS = 8192  # far above QEMU's limit; a hostile `cores` must not fill the memory
LEAST_MIB, MAX_MIB = 16, 1 << 32

# Compiled at first use, which few hooks come to.
_KEY = r"(?a)[a-z][a-z0-9_-]*"
_CPUS = r"(?a)\s*(\d{1,9})(?:-(\d{1,9}))?\s*"
_SETS = r"(?a)\d+(?:-\d+)?(?:;\d+(?:-\d+)?)*"
_TRUE = ("1", "on", "yes", "true")
_FALSE = ("0", "off", "no", "false")
_BDF = r"(?ai)(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?"


class GuestNode(Value):
    """One `numaN` rule. cpus: guest vCPU indexes; host_nodes: empty where the admin binds nothing. name: what
    it is called where no `numaN` says so.
    """

    cpus: frozenset[int]
    memory_mib: int
    host_nodes: frozenset[int] = frozenset()
    policy: str = ""
    name: str = ""

    def named(self, number: int) -> str:
        return self.name or f"numa{number}"


class HostPci(Value):
    """`hostpciN`. addresses: `dddd:bb:dd.f`, or `dddd:bb:dd` for all functions; mapping: a resource's id."""

    number: int
    addresses: tuple[str, ...] = ()
    mapping: str = ""
    mdev: str = ""


def property_string(text: str, default_key: str = "", keys: Collection[str] = ()) -> dict[str, str]:
    """`a=1,b=2`, with one bare value standing for `default_key`. keys: those there are, where we know all.

    Raises ValueError for a second value of one key, a bare value without a default key, a key that is none,
    and a value that is missing. Blanks belong to what they stand beside, so a key never has any.
    """
    values: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        if not equals:
            key, value = default_key, key
        if key in values or not value or not re.fullmatch(_KEY, key) or (keys and key not in keys):
            raise ValueError(f"{part[:40]!r} is no KEY=VALUE that Proxmox knows, or comes twice")
        values[key] = value
    return values


def boolean(text: str) -> bool:
    """Raises ValueError for anything that Proxmox does not take for a boolean."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{text[:40]!r} is no boolean")


def integer(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or not low <= int(text) <= high:
        raise ValueError(f"{text[:40]!r} is no whole number from {low} to {high}")
    return int(text)


def memory(text: str) -> int:
    return integer(property_string(text, "current").get("current", "512"), LEAST_MIB, MAX_MIB)


def affinity(text: str) -> tuple[int, ...]:
    """The CPUs in written order. As Perl splits, commas at the end are nothing; an empty entry before them is
    an error.
    """
    cpus: list[int] = []
    for part in text.rstrip(",").split(",") if text.strip(",") else ():
        match = re.fullmatch(_CPUS, part)
        if match is None:
            raise ValueError(f"{part[:40]!r} in {text[:40]!r} is neither a CPU nor a range")
        first = int(match[1])
        last = int(match[2] or first)
        if not first <= last <= cpulist.MAX_CPU:
            raise ValueError(f"{part[:40]!r} is not ascending below {cpulist.MAX_CPU}")
        cpus += range(first, last + 1)
        if len(cpus) > MAX_VCPUS:
            raise ValueError(f"more than {MAX_VCPUS} CPUs are too many")
    return tuple(cpus)


def taskset_takes(text: str) -> bool:
    """Whether a valid `affinity` is a list to taskset, too, which Proxmox starts QEMU with: there an entry
    begins with a digit (nextnumber() in lib/cpuset.c of util-linux 2.38).
    """
    return all(part[:1].isdigit() for part in text.split(",")) and text[-1:].isdigit()


def fraction(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        raise ValueError(f"{text[:40]!r} is no number")
    return float(text)


def hugepages(text: str) -> int:
    sizes = {"any": 0, "2": 2, "1024": 1024}
    if text not in sizes:
        raise ValueError(f"{text[:40]!r} is none of any, 2, 1024")
    return sizes[text]


def _indexes(text: str) -> frozenset[int]:
    """`0-3;8`: inner lists are separated by semicolons."""
    if not re.fullmatch(_SETS, text):
        raise ValueError(f"{text[:40]!r} is no list such as 0-3;8")
    return frozenset(affinity(text.replace(";", ",")))


def guest_node(text: str) -> GuestNode:
    values = property_string(text, keys=("cpus", "memory", "hostnodes", "policy"))
    if "cpus" not in values:
        raise ValueError("numa needs `cpus`")
    policy = values.get("policy", "")
    if policy not in ("", "preferred", "bind", "interleave"):
        raise ValueError(f"unknown policy {policy[:40]!r}")
    memory_mib = int(fraction(values.get("memory", "0")))
    host_nodes = _indexes(values["hostnodes"]) if "hostnodes" in values else frozenset[int]()
    return GuestNode(_indexes(values["cpus"]), memory_mib, host_nodes, policy)


def hostpci(number: int, text: str) -> HostPci:
    values = property_string(text, "host")
    addresses = tuple(_address(part) for part in values.get("host", "").split(";") if part)
    mapping = values.get("mapping", "")
    if not addresses and not mapping:
        raise ValueError("neither `host` nor `mapping`")
    return HostPci(number, addresses, mapping, values.get("mdev", ""))


def _address(text: str) -> str:
    match = re.fullmatch(_BDF, text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no PCI address")
    function = "" if match[4] is None else f".{match[4]}"
    return f"{(match[1] or '0000').lower()}:{match[2]}:{match[3]}{function}".lower()


_CHECKS = {
    "smp": lambda text: integer(text, 1, MAX_VCPUS),
    "sockets": lambda text: integer(text, 1, MAX_VCPUS),
    "cores": lambda text: integer(text, 1, MAX_VCPUS),
    "vcpus": lambda text: integer(text, 1, MAX_VCPUS),
    "memory": memory,
    "balloon": lambda text: integer(text, 0, MAX_MIB),
    "shares": lambda text: integer(text, 0, 50000),
    "cpuunits": lambda text: integer(text, 0, 262144),
    "cpulimit": fraction,
    "affinity": affinity,
    "numa": boolean,
    "hugepages": hugepages,
    "template": boolean,
    "onboot": boolean,
}


_HIGHEST = {"numa": 7, "hostpci": 15, "net": 31, "virtio": 15, "scsi": 30}
"""The last of each numbered option that we read (MAX_NETS and its like)."""


def invalid(key: str, value: str) -> str | None:
    """Why Proxmox would not take this value of an option we read; None when it would."""
    stem = key.rstrip("0123456789")
    number = key.removeprefix(stem)
    if stem in _HIGHEST and number and (str(int(number)) != number or int(number) > _HIGHEST[stem]):
        return f"there is no such option, they end with {stem}{_HIGHEST[stem]}"
    try:
        if key in _CHECKS:
            _CHECKS[key](value)
        elif stem == "numa" and key != stem:
            guest_node(value)
        elif stem == "hostpci" and key != stem:
            hostpci(0, value)
    except ValueError as error:
        return str(error)
    return None
