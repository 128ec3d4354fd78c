"""Which processor model a guest is shown, and what Linux in it makes of dies, sockets and threads.

Rules: QEMU target/i386/cpu.c, PVE::QemuServer::CPUConfig, Linux arch/x86/kernel/cpu/{amd,cacheinfo}.c. Tried
with QEMU 7.2, 10.0 and 11.1: an L3 group of a guest is a die on EPYC-Rome and later models with topoext, a
socket on others, and on the model EPYC whatever shares the bits of its APIC number above the third. Models
without a vendor of their own show the host's, and an AMD guest believes in siblings only with topoext.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

from pxsched.host.processor import Processor
from pxsched.shape.smp import Unreadable, values_of
from pxsched.value import Value

DEFAULT = "kvm64"  # what Proxmox takes where `cpu` is unset
AMD, INTEL = "AuthenticAMD", "GenuineIntel"


class Groups(StrEnum):
    """What an L3 group is in the guest."""

    DIES = "die"
    SOCKETS = "socket"
    EIGHTS = "eight APIC numbers"


class Model(Value):
    """name: QEMU's. flags: switched on or off by name."""

    name: str
    flags: Mapping[str, bool]
    vendor: str = ""


class Traits(Value):
    """siblings: whether the guest believes in threads of one core. remedy: options of `-global` that make it
    believe; deaf: why nothing does.
    """

    groups: Groups
    siblings: bool
    remedy: tuple[str, ...] = ()
    deaf: str = ""


def model(cpu: str, split: Sequence[str]) -> Model:
    """The model of the option `cpu`, or that of the last `-cpu` in the words of `args`. Raises Unreadable."""
    given = list(values_of("cpu", split))
    parts = (given[-1] if given else cpu or DEFAULT).split(",")
    name, vendor = DEFAULT, ""
    flags: dict[str, bool] = {}
    for number, part in enumerate(part.strip() for part in parts):
        key, equals, value = part.partition("=")
        if key == "cputype" or (number == 0 and not equals):
            name = value or key
        elif key == "flags":
            flags |= {flag[1:]: flag[0] == "+" for flag in value.split(";") if flag[:1] in ("+", "-")}
        elif key == "vendor":
            vendor = value
        elif part[:1] in ("+", "-"):
            flags[part[1:]] = part[0] == "+"
        elif value in ("on", "off"):
            flags[key] = value == "on"
    if name.startswith("custom-"):
        raise Unreadable(
            f"its CPU model {name[:40]} is one of your own: what a guest sees of it is not known"
        )
    for text in values_of("global", split):
        if found := re.fullmatch(r"[\w.-]+-x86_64-cpu\.topoext=(on|off)", text, re.ASCII):
            flags["topoext"] = found[1] == "on"
    return Model(name, flags, vendor)


_ROME_AND_LATER = r"EPYC-(?:Rome|Milan|Genoa|Turin)(?:-.*)?"
_OLD_AMD = r"athlon|phenom|Opteron_G\d"
# Models that show the host's vendor; the family of type names that `-global` needs.
_HOSTS_VENDOR = {
    "host": "host",
    "max": "max",
    "kvm64": "kvm64",
    "kvm32": "kvm32",
    "qemu64": "qemu64",
    "qemu32": "qemu32",
}
_LEVELS = r"x86-64-v\d(?:-AES|-abi\d)?"  # qemu64 with flags


def traits(shown: Model, host: Processor) -> Traits:
    """What a Linux guest sees of this model on this host."""
    name, topoext = shown.name, shown.flags.get("topoext")
    if re.fullmatch(_ROME_AND_LATER, name):
        if topoext is False:
            return Traits(Groups.SOCKETS, False, deaf=f"{name} without topoext shows no siblings")
        return Traits(Groups.DIES, True)
    if name.startswith("EPYC"):
        return Traits(Groups.EIGHTS, topoext is not False, deaf="topoext is off" if topoext is False else "")
    base = "qemu64" if re.fullmatch(_LEVELS, name) else _HOSTS_VENDOR.get(name)
    vendor = shown.vendor or (host.vendor if base else AMD if re.fullmatch(_OLD_AMD, name) else INTEL)
    if vendor == INTEL:
        return Traits(Groups.SOCKETS, True)
    if vendor != AMD:
        return Traits(Groups.SOCKETS, False, deaf="the host's processor is not known to us")
    # Zen and Zen+ (family 17h up to model 2Fh): Linux groups by eight APIC numbers, as on the model EPYC.
    naples = base in ("host", "max") and host.family == 0x17 and host.model < 0x30
    groups = Groups.EIGHTS if naples else Groups.SOCKETS
    if topoext:
        return Traits(groups, True)
    if base == "qemu64" and topoext is None and host.topoext:
        # Without the second one the guest would see no caches at all.
        return Traits(groups, False, ("qemu64-x86_64-cpu.topoext=on", "qemu64-x86_64-cpu.xlevel=0x8000001e"))
    if base == "host" and topoext is None and host.topoext:
        return Traits(groups, False, ("host-x86_64-cpu.topoext=on",))
    return Traits(groups, False, deaf=f"the model {name[:40]} shows no siblings on an AMD processor")
