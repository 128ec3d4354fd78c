"""The ways to run a VM that can be compared: what each is called, and what it makes of the VM's policy.

now          as its settings say
stock        as Proxmox starts it: no knob of ours but those of its memory
home         its vCPUs float in its home, or over the CPUs that are its own
dedicated    each vCPU has a CPU to itself
home@0-3     the same, on these CPUs
home+governor-emulator    with and without single plugins
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pxsched.errors import UserError, nearest
from pxsched.host import cpulist
from pxsched.settings.policy import EmulatorPlace, Fair, Isolation, MemoryMode, NodeSettings, Policy, Wish
from pxsched.value import Value, fields, replace

MOST_WAYS = 4


class Kind(StrEnum):
    NOW = "now"
    STOCK = "stock"
    HOME = "home"
    DEDICATED = "dedicated"


_STOCK: Mapping[str, Any] = {
    "vcpu": False, "emulator": EmulatorPlace.OFF, "vhost": EmulatorPlace.OFF, "interrupts": False,
    "governor": "", "energy": "", "nic": False, "isolation": False, "fifo": 0, "halt_poll_ns": -1,
    "resume_latency_us": -1, "fair": Fair.OFF,
}  # fmt: skip
# What a feature makes of the policy: with it, and without.
_FEATURES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "emulator": (
        {"emulator": EmulatorPlace.HOUSEKEEPING, "vhost": EmulatorPlace.HOUSEKEEPING},
        {"emulator": EmulatorPlace.OFF, "vhost": EmulatorPlace.OFF},
    ),
    "interrupts": ({"interrupts": True}, {"interrupts": False}),
    "governor": ({"governor": "performance"}, {"governor": ""}),
    "isolation": ({"isolation": True}, {"isolation": False}),
}
_SHAPE = re.compile(r"([a-z]+)(?:@([0-9,-]*[0-9]))?((?:[+-][a-z]+)*)", re.ASCII)


class Way(Value):
    """name: as it was asked for. cpus: the CPUs it is bound to, None for those that placement finds.

    features: with (True) or without each, in order.
    """

    name: str
    kind: Kind
    cpus: frozenset[int] | None = None
    features: tuple[tuple[str, bool], ...] = ()


def parse(name: str) -> Way:
    """Raises UserError for what is no way to run a VM."""
    match = _SHAPE.fullmatch(name)
    kinds = [kind.value for kind in Kind]
    if match is None or match[1] not in kinds:
        near = nearest(match[1] if match else name, kinds)
        raise UserError(f"{name[:40]!r} is no way to run a VM{near}", hint="such as stock, home, dedicated")
    kind = Kind(match[1])
    cpus = cpulist.parse(match[2]) if match[2] else None
    if cpus is not None and kind not in (Kind.HOME, Kind.DEDICATED):
        raise UserError(f"{name[:40]!r}: only home and dedicated can be bound to CPUs")
    features = []
    for sign, feature in re.findall(r"([+-])([a-z]+)", match[3]):
        if feature not in _FEATURES:
            raise UserError(f"{name[:40]!r}: there is no {feature!r} to turn{nearest(feature, _FEATURES)}")
        features.append((feature, sign == "+"))
    return Way(name, kind, cpus, tuple(features))


def parse_all(names: Iterable[str]) -> tuple[Way, ...]:
    """Raises UserError for fewer than two, too many, or one twice."""
    ways = tuple(map(parse, names))
    if not 2 <= len(ways) <= MOST_WAYS:
        raise UserError(f"{len(ways)} ways cannot be compared", hint=f"two to {MOST_WAYS}")
    if len({way.name for way in ways}) < len(ways):
        raise UserError("one of the ways is named twice")
    return ways


def policy(way: Way, settings: Policy, *, exclusive: bool, move_memory: bool) -> Policy:
    """What the VM's policy becomes. settings: as they are. exclusive: its CPUs are its own anyway, so that it
    keeps the claim to them. move_memory: as Proxmox starts it, memory is nobody's business either.
    """
    found = settings
    if way.kind is Kind.STOCK:
        found = replace(found, **_STOCK)
        if move_memory:
            found = replace(found, memory=MemoryMode.OFF)
    elif way.kind is Kind.HOME:
        # The balancer must not move it while it is measured.
        found = replace(found, vcpu=True, fair=Fair.OFF)
    elif way.kind is Kind.DEDICATED:
        found = replace(found, vcpu=True, wish=found.wish if exclusive else Wish.DEDICATED)
    else:
        found = replace(found, fair=Fair.OFF)
    for feature, wanted in way.features:
        found = replace(found, **_FEATURES[feature][0 if wanted else 1])
    return found


def overlay(settings: Policy, wanted: Policy) -> dict[str, Any]:
    """The fields in which they differ."""
    return {
        name: getattr(wanted, name)
        for name in fields(Policy)
        if getattr(wanted, name) != getattr(settings, name)
    }


def idle_features(way: Way, node: NodeSettings, *, exclusive: bool) -> str:
    """Why one of the features can make no difference; empty where all can. exclusive: the VM has CPUs to
    itself in this way.
    """
    for feature, wanted in way.features:
        if feature == "governor" and wanted and not exclusive:
            return f"{way.name}: only pinned and dedicated CPUs are governed"
        if feature == "isolation" and (not exclusive or node.isolation is Isolation.OFF):
            return f"{way.name}: nothing is isolated here ([node] isolation, and a dedicated VM)"
    return ""


def settings_of(way: Way, home: Policy, *, exclusive: bool) -> dict[str, Any]:
    """The keys of `[vm.VMID]` that make this way the VM's ordinary one."""
    if way.kind is Kind.NOW and not way.features:
        return {}
    wanted = policy(way, home, exclusive=exclusive, move_memory=False)
    found = overlay(home, replace(wanted, fair=home.fair if way.kind is not Kind.STOCK else wanted.fair))
    if way.cpus is not None:
        found["cpus"] = cpulist.format(way.cpus)
    return found
