"""`VMID.conf`: its grammar, and what in it matters for placing a VM.

Rules: Proxmox qemu-server, PVE::QemuServer::parse_vm_config and PVE::JSONSchema::parse_property_string.
Nothing here raises for what a file says: broken lines become warnings with file and line.
"""

import re
from collections.abc import Mapping

from pxsched.errors import UserError
from pxsched.host import cpulist
from pxsched.value import NOTHING, Value

MAX_VCPUS = 8192  # far above QEMU's limit; a hostile `cores` must not fill the memory
MAX_MIB = 1 << 32

_SECTION = re.compile(r"\[(.*)\]\s*")
_SNAPSHOT = r"(?ai)[a-z][a-z0-9_-]+"
# Five digits are more than any option has; greedy to the last character that is no space, as trying shorter
# values first takes quadratic time on a tenant's line of a megabyte of spaces.
_OPTION = re.compile(r"([a-z][a-z_-]*\d{0,5}):\s*(\S(?:.*\S)?|(?<=\s))\s*", re.ASCII)
_TRUE = ("1", "on", "yes", "true")
_FALSE = ("0", "off", "no", "false")
_BDF = r"(?ai)(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?"


class Config(Value):
    """One configuration file. options: the values in force; pending: those of the next start."""

    options: Mapping[str, str] = NOTHING
    pending: Mapping[str, str] = NOTHING
    cloudinit: Mapping[str, str] = NOTHING
    snapshots: Mapping[str, Mapping[str, str]] = NOTHING
    description: str = ""
    warnings: tuple[str, ...] = ()


class GuestNode(Value):
    """One `numaN` rule. cpus: guest vCPU indexes; host_nodes: empty where the admin binds nothing."""

    cpus: frozenset[int]
    memory_mib: int
    host_nodes: frozenset[int] = frozenset()
    policy: str = ""


class HostPci(Value):
    """`hostpciN`. addresses: `dddd:bb:dd.f`, or `dddd:bb:dd` for all functions; mapping: a resource's id."""

    number: int
    addresses: tuple[str, ...] = ()
    mapping: str = ""
    mdev: str = ""


class Machine(Value):
    """A VM as its configuration describes it, with Proxmox's defaults.

    affinity: CPUs in written order. balloon_mib: None = unset (device present), 0 = no device.
    hugepage_mib: 0 = any size ("any"), None = none. iothreads: drives with a thread of their own.
    """

    name: str = ""
    sockets: int = 1
    cores: int = 1
    vcpus: int = 1
    memory_mib: int = 512
    balloon_mib: int | None = None
    shares: int = 1000
    weight: int = 100
    cpu_limit: float = 0.0
    affinity: tuple[int, ...] = ()
    numa: bool = False
    guest_nodes: tuple[GuestNode, ...] = ()
    hugepage_mib: int | None = None
    hostpci: tuple[HostPci, ...] = ()
    nics: tuple[int, ...] = ()
    iothreads: tuple[str, ...] = ()
    hookscript: str = ""
    tags: tuple[str, ...] = ()
    lock: str = ""
    template: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def opted_in(self) -> bool:
        """Whether the VM's hookscript is ours; only root@pam can set it."""
        return bool(re.fullmatch(r"[^:/]+:snippets/pxsched", self.hookscript))


def parse(text: str, *, name: str = "config") -> Config:
    """Reads a configuration. name: what warnings call the file."""
    parser = _Parser(name)
    for number, line in enumerate(text.split("\n"), 1):
        parser.line(number, line)
    return parser.result()


class _Parser:
    """The state while reading: where the current section's options and notes go."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.warnings: list[str] = []
        self.sections: dict[str, dict[str, str]] = {"": {}}
        self.notes: dict[str, list[str]] = {"": []}
        self.section: str | None = ""

    def line(self, number: int, line: str) -> None:
        if not line.strip():
            return
        if heading := _SECTION.fullmatch(line):
            self.heading(number, heading[1])
        elif self.section is None:
            return
        elif line.startswith("#"):
            self.notes[self.section].append(decode_text(line[1:].rstrip("\r")))
        else:
            self.option(number, line)

    def heading(self, number: int, title: str) -> None:
        lower = title.lower()
        if lower == "pending" or lower.startswith("special:"):
            self.section = lower
        elif re.fullmatch(_SNAPSHOT, title):
            self.section = f"snapshot:{title}"
        else:
            self.warn(number, f"unknown section [{title[:40]}]")
            self.section = None
            return
        # A section that comes twice: Proxmox keeps the last one.
        self.sections[self.section] = {}
        self.notes[self.section] = []

    def option(self, number: int, line: str) -> None:
        match = _OPTION.fullmatch(line)
        if match is None or self.section is None:
            self.warn(number, f"cannot read {line[:60]!r}")
            return
        key, value = match[1], match[2]
        if key == "description":
            self.notes[self.section].append(decode_text(value))
        elif key == "delete" and self.section != "pending":
            self.warn(number, "`delete` outside of [PENDING]")
        elif problem := _invalid(key, value):
            self.warn(number, f"{key}: {problem}")
        else:
            self.sections[self.section][key] = value

    def warn(self, number: int, what: str) -> None:
        self.warnings.append(f"{self.name}:{number}: {what}")

    def result(self) -> Config:
        snapshots = {}
        for section, options in self.sections.items():
            if section.startswith("snapshot:"):
                notes = "\n".join(self.notes[section])
                described = {"description": notes} if notes else {}
                snapshots[section.removeprefix("snapshot:")] = options | described
        return Config(
            options=self.sections[""],
            pending=self.sections.get("pending", {}),
            cloudinit=self.sections.get("special:cloudinit", {}),
            snapshots=snapshots,
            description="\n".join(self.notes[""]),
            warnings=tuple(self.warnings),
        )


def decode_text(text: str) -> str:
    """Percent-decoded UTF-8, as Proxmox writes notes (PVE::Tools::decode_text)."""
    raw = re.sub(
        rb"%([0-9A-Fa-f]{2})", lambda match: bytes((int(match[1], 16),)), text.encode("utf-8", "replace")
    )
    return raw.decode("utf-8", "replace")


def property_string(text: str, default_key: str = "") -> dict[str, str]:
    """`a=1,b=2`, with one bare value standing for `default_key`.

    Raises ValueError for a second value of one key and for a bare value without a default key.
    """
    values: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        key, equals, value = part.strip().partition("=")
        if not equals:
            key, value = default_key, key
        if not key or key in values:
            raise ValueError(f"{part[:40]!r} is no KEY=VALUE or comes twice")
        values[key] = value
    return values


def boolean(text: str) -> bool:
    """Raises ValueError for anything that Proxmox does not take for a boolean."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{text[:40]!r} is no boolean")


def _integer(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or not low <= int(text) <= high:
        raise ValueError(f"{text[:40]!r} is no whole number from {low} to {high}")
    return int(text)


def _memory(text: str) -> int:
    return _integer(property_string(text, "current").get("current", "512"), 1, MAX_MIB)


def _affinity(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9,\-\s]*", text, re.ASCII):
        raise ValueError(f"{text[:40]!r} is no list of CPUs")
    try:
        cpus = cpulist.parse_ordered(text)
    except UserError as error:
        raise ValueError(error.message) from error
    if len(cpus) > MAX_VCPUS:
        raise ValueError(f"{len(cpus)} CPUs are too many")
    return cpus


def _fraction(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        raise ValueError(f"{text[:40]!r} is no number")
    return float(text)


def _hugepages(text: str) -> int:
    sizes = {"any": 0, "2": 2, "1024": 1024}
    if text not in sizes:
        raise ValueError(f"{text[:40]!r} is none of any, 2, 1024")
    return sizes[text]


def _indexes(text: str) -> frozenset[int]:
    """`0-3;8`: inner lists are separated by semicolons."""
    return frozenset(_affinity(text.replace(";", ",")))


def _guest_node(text: str) -> GuestNode:
    values = property_string(text)
    if "cpus" not in values:
        raise ValueError("numa needs `cpus`")
    policy = values.get("policy", "")
    if policy not in ("", "preferred", "bind", "interleave"):
        raise ValueError(f"unknown policy {policy[:40]!r}")
    memory_mib = int(_fraction(values.get("memory", "0")))
    return GuestNode(_indexes(values["cpus"]), memory_mib, _indexes(values.get("hostnodes", "")), policy)


def _hostpci(number: int, text: str) -> HostPci:
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
    "sockets": lambda text: _integer(text, 1, MAX_VCPUS),
    "cores": lambda text: _integer(text, 1, MAX_VCPUS),
    "vcpus": lambda text: _integer(text, 1, MAX_VCPUS),
    "memory": _memory,
    "balloon": lambda text: _integer(text, 0, MAX_MIB),
    "shares": lambda text: _integer(text, 0, 50000),
    "cpuunits": lambda text: _integer(text, 0, 262144),
    "cpulimit": _fraction,
    "affinity": _affinity,
    "numa": boolean,
    "hugepages": _hugepages,
    "template": boolean,
    "onboot": boolean,
}


def _invalid(key: str, value: str) -> str | None:
    """Why Proxmox would not take this value of an option we read; None when it would."""
    stem = key.rstrip("0123456789")
    try:
        if key in _CHECKS:
            _CHECKS[key](value)
        elif stem == "numa" and key != stem:
            _guest_node(value)
        elif stem == "hostpci" and key != stem:
            _hostpci(0, value)
    except ValueError as error:
        return str(error)
    return None


def machine(config: Config) -> Machine:
    """The VM that the options in force describe. Raises nothing: `parse` dropped what is invalid."""
    options = config.options
    warnings: list[str] = []
    sockets = int(options.get("sockets", "1"))
    cores = int(options.get("cores", "1"))
    most = min(sockets * cores, MAX_VCPUS)
    vcpus = int(options.get("vcpus", most))
    if vcpus > most:
        warnings.append(f"vcpus {vcpus} is more than sockets x cores = {most}")
        vcpus = most
    weight = int(options.get("cpuunits", "0")) or 100
    balloon = options.get("balloon")
    hugepages = options.get("hugepages")
    return Machine(
        name=options.get("name", ""),
        sockets=sockets,
        cores=cores,
        vcpus=vcpus,
        memory_mib=_memory(options.get("memory", "512")),
        balloon_mib=None if balloon is None else int(balloon),
        shares=int(options.get("shares", "1000")),
        weight=min(10000, weight),  # cgroup v2; PVE::CGroup::clamp_cpu_shares
        cpu_limit=_fraction(options.get("cpulimit", "0")),
        affinity=_affinity(options.get("affinity", "")),
        numa=boolean(options.get("numa", "0")),
        guest_nodes=tuple(_guest_node(text) for _number, text in _numbered(options, "numa")),
        hugepage_mib=None if hugepages is None else _hugepages(hugepages),
        hostpci=tuple(_hostpci(number, text) for number, text in _numbered(options, "hostpci")),
        nics=tuple(number for number, _text in _numbered(options, "net")),
        iothreads=_iothreads(options),
        hookscript=options.get("hookscript", ""),
        tags=tuple(tag for tag in re.split(r"[;,\s]+", options.get("tags", "")) if tag),
        lock=options.get("lock", ""),
        template=boolean(options.get("template", "0")),
        warnings=tuple(warnings),
    )


def _numbered(options: Mapping[str, str], stem: str) -> list[tuple[int, str]]:
    found = (
        (int(key.removeprefix(stem)), value)
        for key, value in options.items()
        if re.fullmatch(rf"{stem}\d+", key, re.ASCII)
    )
    return sorted(found)


def _iothreads(options: Mapping[str, str]) -> tuple[str, ...]:
    """Drives whose `iothread` counts: virtioN always, scsiN only with virtio-scsi-single."""
    single = options.get("scsihw") == "virtio-scsi-single"
    stems = ("virtio", "scsi") if single else ("virtio",)
    found = []
    for stem in stems:
        for number, text in _numbered(options, stem):
            if re.search(r"(?:^|,)iothread=(?:1|on|yes|true)(?:,|$)", text):
                found.append(f"{stem}{number}")
    return tuple(found)
