"""Starts and stops of VMs as JSON lines, one object each: what `pxsched simulate` is asked. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TypeVar

from pxsched import stored
from pxsched.errors import UserError, nearest
from pxsched.host import cpulist
from pxsched.placement.request import GuestNode, Request, VmClass
from pxsched.settings.policy import Prefer, Smt
from pxsched.stored import Damaged
from pxsched.value import Value

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")
D = TypeVar("D")

MAX_VCPUS = 4096  # KVM_MAX_VCPUS of arch/x86/include/asm/kvm_host.h
MAX_MIB = 1 << 32


class Start(Value):
    request: Request


class Stop(Value):
    vmid: int


def parse(number: int, line: str) -> Iterator[Start | Stop]:
    """The step on one line, nothing for an empty one. Raises UserError naming line and key."""
    if not line.strip():
        return
    try:
        step = stored.parse(line)
    except Damaged as error:
        raise UserError(f"line {number}: {error}") from None
    if not isinstance(step, dict):
        raise UserError(f'line {number}: a request is a JSON object, such as {{"op": "stop", "vmid": 100}}')
    try:
        yield _step(step)
    except UserError as error:
        raise UserError(f"line {number}: {error.message}", hint=error.hint) from None


def _step(step: Mapping[str, object]) -> Start | Stop:
    op = step.get("op")
    if op == "stop":
        _known(step, ("op", "vmid"))
        return Stop(_integer(step, "vmid", 0, 1, 1 << 31))
    if op != "start":
        raise UserError(f"op: {op!r} is neither 'start' nor 'stop'")
    _known(step, _START_KEYS)
    return Start(_request(step))


_START_KEYS = (
    "op", "vmid", "vcpus", "memory_mib", "class", "smt", "device_node", "affinity", "prefer", "sockets",
    "cores", "weight", "load", "hugepage_mib", "numa", "cpus", "nodes",
)  # fmt: skip


def _known(step: Mapping[str, object], keys: Iterable[str]) -> None:
    for key in step:
        if key not in keys:
            raise UserError(f"unknown key {key[:60]!r}{nearest(key, keys)}")


def _request(step: Mapping[str, object]) -> Request:
    sockets = _integer(step, "sockets", 1, 1, MAX_VCPUS)
    cores = _integer(step, "cores", 0, 1, MAX_VCPUS)
    vcpus = _integer(step, "vcpus", sockets * cores or 1, 1, MAX_VCPUS)
    affinity = _list(step, "affinity", cpulist.parse_ordered, ())
    wish = step.get("class")
    if wish is None and affinity:
        wish = VmClass.PINNED if len(affinity) == vcpus else VmClass.CONSTRAINED
    vm_class = _choice(VmClass, "class", VmClass.SHARED if wish is None else wish)
    if vm_class in (VmClass.PINNED, VmClass.CONSTRAINED) and not affinity:
        raise UserError(f"class: a {vm_class.value} VM needs an affinity")
    load = step.get("load")
    if load is not None and (isinstance(load, bool) or not isinstance(load, int | float) or load < 0):
        raise UserError(f"load: {load!r} is no number of CPUs")
    size_mib = _integer(step, "hugepage_mib", 0, 1, MAX_MIB)
    return Request(
        vmid=_integer(step, "vmid", 0, 1, 1 << 31),
        vcpus=vcpus,
        memory_mib=_integer(step, "memory_mib", 512, 0, MAX_MIB),
        vm_class=vm_class,
        affinity=affinity,
        sockets=sockets,
        cores=cores or -(-vcpus // sockets),
        smt=_choice(Smt, "smt", step.get("smt") or Smt.PREFER),
        prefer=_choice(Prefer, "prefer", step.get("prefer") or Prefer.ANY),
        guest_nodes=_guest_nodes(step.get("numa")),
        device_nodes=_nodes(step.get("device_node")),
        hugepage_mib=size_mib or None,
        weight=_integer(step, "weight", 100, 1, 10000),
        load=load,
        cpus=_list(step, "cpus", cpulist.parse, None),
        nodes=_list(step, "nodes", cpulist.parse, None),
    )


def _integer(step: Mapping[str, object], key: str, default: int, low: int, high: int) -> int:
    """A whole number; `default` where it is absent or null, but a VMID must be there."""
    value = step.get(key)
    if value is None and key != "vmid":
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{key}: {value!r} is no whole number from {low} to {high}")
    return value


def _choice(enum: type[E], key: str, value: object) -> E:
    for member in enum:
        if value == member.value:
            return member
    known = ", ".join(member.value for member in enum)
    raise UserError(f"{key}: {value!r} is none of {known}")


def _list(step: Mapping[str, object], key: str, parse: Callable[[str], T], default: D) -> T | D:
    value = step.get(key)
    if value is None or value == "":
        return default
    if not isinstance(value, str):
        raise UserError(f"{key}: {value!r} is no list such as '0-3,8'")
    return parse(value)


def _nodes(value: object) -> frozenset[int]:
    """One node, several in a JSON list, or none; -1 is the kernel's word for unknown."""
    if value is None:
        return frozenset()
    found: set[int] = set()
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bool) or not isinstance(one, int) or one < -1:
            raise UserError(f"device_node: {one!r} is no NUMA node")
        found.add(one)
    return frozenset(found - {-1})


def _guest_nodes(value: object) -> tuple[GuestNode, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UserError('numa: a list such as [{"cpus": "0-3", "memory_mib": 4096, "host_nodes": "0"}]')
    found = []
    for one in value:
        _known(one, ("cpus", "memory_mib", "host_nodes", "policy"))
        found.append(
            GuestNode(
                cpus=_list(one, "cpus", cpulist.parse, frozenset()),
                memory_mib=_integer(one, "memory_mib", 0, 0, MAX_MIB),
                host_nodes=_list(one, "host_nodes", cpulist.parse, frozenset()),
                policy=str(one.get("policy") or ""),
            )
        )
    return tuple(found)
