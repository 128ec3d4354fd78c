"""Whether another node's processor has what a VM's CPU type wants of it.

Rules: PVE::QemuServer::CPUConfig (`cpu`, and custom models of virtual-guest/cpu-models.conf): QEMU starts
only with all flags of a type, but for `host`, which takes what is there. Which flags a named model has is
QEMU's own knowledge: of it we know only that a processor which has all of the present one's will do. Flags
have QEMU's names; /proc/cpuinfo writes them with `_`, and does not show all of them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pxsched.cluster.publication import Processor
from pxsched.guest import options as values
from pxsched.output import some
from pxsched.proxmox import sections
from pxsched.root import Root
from pxsched.value import NOTHING

MODELS = "etc/pve/virtual-guest/cpu-models.conf"
CUSTOM = "custom-"
DEFAULT = "kvm64"
_COPIES = ("host", "max")
# What every x86-64 processor has.
_OLD = ("kvm64", "kvm32", "qemu64", "qemu32", "486", "pentium", "pentium2", "pentium3", "coreduo", "athlon")
# Flags that /proc/cpuinfo always shows where they are.
_SHOWN = frozenset(("aes", "ibpb", "md_clear", "pcid", "pdpe1gb", "ssbd", "virt_ssbd"))

Models = Mapping[str, Mapping[str, str]]
"""Custom models by name, with their options."""


class CpuType(NamedTuple):
    """model: as QEMU is told it; empty for a custom one that is not defined. flags: those that are added."""

    name: str
    model: str
    flags: frozenset[str]


def models(root: Root) -> Models:
    found = sections.parse(root.read(MODELS) or "")
    return {section.name: section.options for section in found if section.kind == "cpu-model"}


def parse(text: str, custom: Models = NOTHING) -> CpuType:
    """A VM's option `cpu`. One that Proxmox would not take is its default."""
    try:
        said = values.property_string(text, "cputype")
    except ValueError:
        said = {}
    name = said.get("cputype", DEFAULT)
    model, flags = name, said.get("flags", "")
    if name.startswith(CUSTOM):
        options = custom.get(name.removeprefix(CUSTOM))
        if options is None:
            return CpuType(name, "", frozenset())
        model = options.get("reported-model", DEFAULT)
        flags = f"{options.get('flags', '')};{flags}"
    found: dict[str, bool] = {}
    for flag in filter(None, flags.split(";")):
        found[flag.lstrip("+-")] = not flag.startswith("-")
    return CpuType(name, model, frozenset(flag for flag, on in found.items() if on))


def against(
    wanted: CpuType, here: Processor, there: Processor, node: str, costs: list[str], *, runs: bool
) -> Iterator[str]:
    """Why a VM of this type cannot go from one processor to the other; what is not known is added to costs.
    node: the other's. runs: while it runs.
    """
    name = wanted.name[:40]
    if not wanted.model:
        yield f"CPU type {name} is not defined in the cluster"
        return
    level = re.fullmatch(r"x86-64-v(\d)(-AES)?(?:-.*)?", wanted.model, re.ASCII)
    if level:
        if there.level and int(level[1]) > there.level:
            yield f"CPU type {name} needs more than {node} has (x86-64-v{there.level})"
    elif wanted.model in _COPIES:
        if runs:
            yield from _copied(name, here, there, node, costs)
    elif wanted.model not in _OLD and not _covers(here, there):
        costs.append(f"whether {node} has all of CPU type {name} is not known")
    aes = frozenset(("aes",)) if level and level[2] else frozenset[str]()
    yield from _flags(wanted.flags | aes, here, there, node, costs)


def _copied(name: str, here: Processor, there: Processor, node: str, costs: list[str]) -> Iterator[str]:
    if not (here.flags and there.flags):
        costs.append(f"CPU type {name}: whether the processors are alike is not known")
    elif (here.vendor, here.flags) != (there.vendor, there.flags):
        lacks = sorted(here.features - there.features) if there.features else []
        without = f", without {some(lacks, 3)}" if lacks else ""
        yield f"CPU type {name}: {node} has another processor ({there.model[:60]}{without})"


def _covers(here: Processor, there: Processor) -> bool:
    """Whether the other has all that this one has."""
    return bool(here.features) and here.vendor == there.vendor and here.features <= there.features


def _flags(
    flags: frozenset[str], here: Processor, there: Processor, node: str, costs: list[str]
) -> Iterator[str]:
    for flag in sorted(flags):
        shown = re.sub(r"[-.]", "_", flag)
        if flag.startswith("hv-") or shown in there.features:
            continue  # what Hyper-V has is KVM's to give
        if there.features and (shown in _SHOWN or shown in here.features):
            yield f"{node} has no CPU flag {flag[:40]}"
        else:
            costs.append(f"whether {node} has the CPU flag {flag[:40]} is not known")
