"""Placement on paper: starts and stops read from JSON lines, one answer for each start.

The machine is what the root path shows, empty at first. The contract is `pxsched simulate` in the manual;
nothing here touches the machine.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from pxsched import output, stored
from pxsched.errors import UserError
from pxsched.host import cpulist, topology
from pxsched.placement.housekeeping import host_of
from pxsched.placement.machine import machine_of
from pxsched.placement.memory import divide, free_memory
from pxsched.placement.request import GuestNode, Holding, Host, Placement, Refused, Request, VmClass
from pxsched.placement.search import place, rehome
from pxsched.root import Root
from pxsched.settings import files as settings
from pxsched.settings.policy import Prefer, Smt
from pxsched.stored import Damaged
from pxsched.value import Value, replace

if TYPE_CHECKING:
    from pxsched.ledger.file import Ledger
    from pxsched.node.sighting import Node as PveNode
    from pxsched.node.sighting import Sighting

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")
D = TypeVar("D")

MAX_VCPUS = 4096  # KVM_MAX_VCPUS of arch/x86/include/asm/kvm_host.h
MAX_MIB = 1 << 32


class Start(Value):
    request: Request


class Stop(Value):
    vmid: int


def simulate(root: Root, lines: Iterable[str]) -> Iterator[str]:
    """One JSON object for each start, in order. Raises UserError naming the line that is not understood,
    before the first answer.
    """
    steps = [step for number, line in enumerate(lines, 1) for step in _parse(number, line)]
    machine = topology.read(root)
    memory_mib = {node.id: node.memory_bytes >> 20 for node in machine.nodes if node.memory_bytes is not None}
    node = Node(
        host_of(
            machine,
            settings.load(root).node,
            free_mib=memory_mib,
            free_hugepages_mib=_hugepages_mib(root),
        )
    )
    for step in steps:
        if isinstance(step, Stop):
            node.stop(step.vmid)
        else:
            yield output.json_text(node.start(step.request))


class Node:
    """The simulated node: what runs on it, and what each VM had when it last ran."""

    def __init__(self, empty: Host) -> None:
        self.empty = empty
        self.running: dict[int, tuple[Request, Holding]] = {}
        self.last: dict[int, Placement] = {}

    @property
    def holdings(self) -> list[Holding]:
        return [holding for _, holding in self.running.values()]

    @property
    def host(self) -> Host:
        """The machine with the memory that the running VMs leave."""
        plain, huge = dict(self.empty.free_mib), dict(self.empty.free_hugepages_mib)
        for request, holding in self.running.values():
            for node, size_mib in holding.memory_mib.items():
                key = (node, request.hugepage_mib or 0)
                if key in huge:
                    huge[key] -= size_mib
                elif node in plain:
                    plain[node] -= size_mib
        return replace(self.empty, free_mib=plain, free_hugepages_mib=huge)

    def start(self, request: Request) -> dict[str, object]:
        answer: dict[str, object] = {"schema": 1, "vmid": request.vmid, "placed": False}
        if request.vmid in self.running:
            return answer | {"why": [f"VM {request.vmid} is running already"]}
        request = replace(request, previous=self.last.get(request.vmid))
        try:
            placement = self.put(request)
        except Refused as error:
            return answer | {"why": [text for text in (error.message, error.hint) if text]}
        return answer | {
            "placed": True,
            "class": placement.vm_class.value,
            "vcpus": [cpulist.format(cpus) for cpus in placement.vcpus],
            "emulator": cpulist.format(placement.emulator),
            "nodes": cpulist.format(placement.nodes),
            "why": [*placement.why, *self._rehomed(placement)],
        }

    def put(self, request: Request) -> Placement:
        """Places the VM and lets it run. Raises Refused."""
        host = self.host
        placement = place(host, self.holdings, request)
        free = free_memory(machine_of(host.topology), host, request)
        holding = Holding(
            vmid=request.vmid,
            vm_class=placement.vm_class,
            vcpus=placement.vcpus,
            smt=request.smt,
            weight=request.weight,
            load=request.load,
            memory_mib=_memory_of(request, placement, free),
        )
        self.running[request.vmid] = (request, holding)
        self.last[request.vmid] = placement
        return placement

    def stop(self, vmid: int) -> None:
        self.running.pop(vmid, None)

    def _rehomed(self, newcomer: Placement) -> list[str]:
        """Moves the shared VMs whose home lost CPUs to the newcomer, and says so."""
        if newcomer.vm_class is not VmClass.DEDICATED:
            return []
        said = []
        for vmid, (request, holding) in sorted(self.running.items()):
            moving = replace(
                request, previous=self.last[vmid], resident=frozenset(holding.memory_mib), memory_mib=0
            )
            home = rehome(self.empty, self.holdings, moving)
            if home is not None and home.vcpus != holding.vcpus:
                self.running[vmid] = (request, holding._replace(vcpus=home.vcpus))
                self.last[vmid] = home
                said.append(f"shared VM {vmid} makes room and now floats on {cpulist.format(home.cpus)}")
        return said


def running_vms(
    node: "PveNode", ledger: "Ledger", sightings: Iterable["Sighting"]
) -> tuple[Host, list[tuple[Request, Holding]]]:
    """What `defrag` asks: the machine with its free memory, and every VM that is placed with its wish.

    A VM whose configuration cannot be read stands where it is, as if it were pinned.
    """
    from pxsched.ledger.claim import holding
    from pxsched.node import offer, others, views, wishes

    seen = {sighting.vmid: sighting for sighting in sightings}
    near = views.device_nodes(node, seen.values())
    running = []
    for vmid, claim in sorted(ledger.claims.items()):
        share = claim.memory_mib // max(1, len(claim.placement.nodes))
        held = holding(claim)._replace(memory_mib=dict.fromkeys(claim.placement.nodes, share))
        machine = seen[vmid].machine if vmid in seen else None
        if machine is None:
            held = held._replace(vm_class=VmClass.PINNED)
            running.append((Request(vmid, len(held.vcpus), 0, VmClass.PINNED), held))
            continue
        wish = wishes.request(vmid, machine, claim.policy, device_nodes=near.get(vmid, frozenset()))
        running.append((wish, held))
    return offer.host(node, others.known(node.root, {*ledger.claims})), running


def _memory_of(request: Request, placement: Placement, free: Mapping[int, float]) -> dict[int, int]:
    bound = [guest for guest in request.guest_nodes if guest.host_nodes]
    if bound and len(bound) == len(request.guest_nodes):
        held: dict[int, int] = {}
        for guest in bound:
            for node, size_mib in divide(guest.memory_mib, guest.host_nodes, free).items():
                held[node] = held.get(node, 0) + size_mib
        return held
    return divide(request.memory_mib, placement.nodes, free)


def _hugepages_mib(root: Root) -> dict[tuple[int, int], int]:
    """Free huge pages, as the kernel counts them by node."""
    found: dict[tuple[int, int], int] = {}
    for name in root.list(topology.NODE_DIR):
        node = name.removeprefix("node")
        if not node.isdecimal():
            continue
        base = f"{topology.NODE_DIR}/{name}/hugepages"
        for pool in root.list(base):
            size_kb = pool.removeprefix("hugepages-").removesuffix("kB")
            pages = root.read(f"{base}/{pool}/free_hugepages") or ""
            if size_kb.isdecimal() and pages.isdecimal() and int(size_kb) >= 1024:
                found[int(node), int(size_kb) // 1024] = int(pages) * int(size_kb) // 1024
    return found


def _parse(number: int, line: str) -> Iterator[Start | Stop]:
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
            close = difflib.get_close_matches(key, list(keys), n=1)
            raise UserError(
                f"unknown key {key[:60]!r}", hint=f"did you mean {close[0]!r}?" if close else None
            )


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
