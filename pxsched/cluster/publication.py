"""What a node tells the others of itself: its machine, who is on it, and what is free.

One JSON document of a few KiB, /etc/pve/nodes/NODE/pxsched.json, that whoever may read /etc/pve may read: of
tenants it has VMIDs and nothing else. Other nodes are trusted as little as files: everything is checked and
bounded when it is read.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pxsched import stored
from pxsched.cluster import machine
from pxsched.host import cpulist
from pxsched.placement.request import Holding, Host, VmClass
from pxsched.settings.policy import Smt
from pxsched.stored import Damaged
from pxsched.value import NOTHING, Value

SCHEMA = 1
MOST_BYTES = 512 << 10  # pmxcfs itself takes 1 MiB
MOST_VMS = 1 << 13
MOST_VCPUS = 8192
MOST_MIB = 1 << 32
MOST_DEVICES = 1 << 12
MOST_FEATURES = 8 << 10
MOST_LOCAL = 32 << 10
"""Characters of a node's own settings; longer ones are not published."""


class Vm(NamedTuple):
    """A VM with a place. held: what others must respect. nodes: where its memory belongs. memory_mib: its
    configured size. resident_mib: what the kernel counts of it by NUMA node; empty when unknown. since_s:
    when it came to this node, by start or migration, by the node's clock; 0 when unknown.
    """

    held: Holding
    nodes: frozenset[int]
    memory_mib: int
    resident_mib: Mapping[int, int] = NOTHING
    since_s: float = 0.0


class Stranger(NamedTuple):
    """A VM that is not opted in, or a container: where it runs, what it uses in CPUs, its memory by node."""

    vmid: int
    container: bool
    cpus: frozenset[int]
    load: float | None = None
    resident_mib: Mapping[int, int] = NOTHING

    @property
    def name(self) -> str:
        return f"{'container' if self.container else 'VM'} {self.vmid}"


class Processor(NamedTuple):
    """vendor, model: of /proc/cpuinfo. flags: a digest of its flags, features: these. level: N of x86-64-vN,
    0 unknown.
    """

    vendor: str = ""
    model: str = ""
    flags: str = ""
    level: int = 0
    features: frozenset[str] = frozenset()


class Device(NamedTuple):
    """A PCI function that a resource mapping names. node: its NUMA node; vmid: the VM that has it, or 0."""

    node: int | None
    vmid: int


class Publication(Value):
    """at_s: the writer's clock. host: without the strangers. fence: what all VMs may use, and who says so.
    devices: by address, those that are there. local: the node's own settings file, None where it is too long.
    """

    node: str
    at_s: float
    version: str
    host: Host
    vms: tuple[Vm, ...] = ()
    strangers: tuple[Stranger, ...] = ()
    fence: tuple[frozenset[int], str] | None = None
    processor: Processor = Processor()
    devices: Mapping[str, Device] = NOTHING
    local: Mapping[str, Any] | None = NOTHING

    @property
    def running(self) -> frozenset[int]:
        """The VMs that run there."""
        strangers = (one.vmid for one in self.strangers if not one.container)
        return frozenset((*(vm.held.vmid for vm in self.vms), *strangers))


# As text.


def document(said: Publication) -> dict[str, Any]:
    """What `read` reads."""
    host = said.host
    everybody = [(vm.held.vmid, vm.held.load, vm.resident_mib) for vm in said.vms]
    everybody += [(one.vmid, one.load, one.resident_mib) for one in said.strangers]
    return {
        "schema": SCHEMA,
        "version": said.version,
        "machine": machine.document(host.topology),
        "housekeeping": cpulist.format(host.housekeeping),
        "reserved": cpulist.format(host.reserved),
        "fence": None if said.fence is None else [cpulist.format(said.fence[0]), said.fence[1]],
        "vms": {str(vm.held.vmid): _vm_out(vm) for vm in said.vms},
        "others": {str(one.vmid): [one.container, cpulist.format(one.cpus)] for one in said.strangers},
        "processor": list(said.processor[:4]),
        "features": " ".join(sorted(said.processor.features)),
        "devices": {address: list(device) for address, device in said.devices.items()},
        "settings": None if said.local is None else dict(said.local),
        "measured": {
            "time": round(said.at_s, 1),
            "free_mib": _by_node_out(host.free_mib),
            "free_hugepages_mib": [[*key, free] for key, free in host.free_hugepages_mib.items()],
            "busy": _busy(host.busy),
            "loads": {str(vmid): load for vmid, load, _mib in everybody if load is not None},
            "since": {str(vm.held.vmid): round(vm.since_s) for vm in said.vms if vm.since_s},
            "resident_mib": {str(vmid): _by_node_out(mib) for vmid, _load, mib in everybody if mib},
        },
    }


def _busy(busy: Mapping[int, float]) -> list[list[object]]:
    """CPUs that are equally busy share an entry."""
    alike: dict[float, list[int]] = {}
    for cpu, part in busy.items():
        alike.setdefault(round(part, 3), []).append(cpu)
    return [[cpulist.format(cpus), part] for part, cpus in sorted(alike.items())]


def _vm_out(vm: Vm) -> list[object]:
    held = vm.held
    lists = [cpulist.format(cpus) for cpus in held.vcpus]
    alike = len(set(lists)) == 1
    return [
        held.vm_class.value,
        f"{lists[0]}*{len(lists)}" if alike else ";".join(lists),
        held.smt.value,
        held.weight,
        cpulist.format(vm.nodes),
        vm.memory_mib,
        bool(held.memory_mib),
    ]


def _by_node_out(amounts: Mapping[int, int]) -> dict[str, int]:
    return {str(node): amount for node, amount in amounts.items()}


def parse(node: str, data: bytes) -> Publication:
    """What a node's file says. Raises Damaged."""
    return read(node, stored.parse(data, most_bytes=MOST_BYTES))


def read(node: str, body: object) -> Publication:
    """Raises Damaged at whatever cannot be a node's."""
    said = stored.table(body, 64)
    if said.get("schema") != SCHEMA:
        raise Damaged(f"schema {stored.shown(said.get('schema'))} is not {SCHEMA}")
    measured = stored.table(said.get("measured"), 16)
    loads = {vmid: stored.number(load, 0, MOST_VCPUS) for vmid, load in _by_vmid(measured.get("loads"))}
    since = {vmid: stored.number(at, 0, 1e11) for vmid, at in _by_vmid(measured.get("since"))}
    resident = {vmid: _by_node_in(mib) for vmid, mib in _by_vmid(measured.get("resident_mib"))}
    host = Host(
        machine.read(said.get("machine")),
        machine.cpus(said.get("housekeeping")),
        machine.cpus(said.get("reserved")),
        _by_node_in(measured.get("free_mib")),
        {
            (stored.integer(number, 0, machine.MOST_NODES), stored.integer(size, 0, MOST_MIB)): _mib(free)
            for number, size, free in (
                stored.items(one, 3) for one in stored.listed(measured.get("free_hugepages_mib"))
            )
        },
        busy={
            cpu: stored.number(part, 0, 1)
            for cpus, part in map(stored.pair, stored.listed(measured.get("busy"), machine.MOST_CPUS))
            for cpu in machine.cpus(cpus)
        },
    )
    vms = tuple(
        _vm_in(vmid, body, loads.get(vmid), resident.get(vmid, NOTHING))._replace(
            since_s=since.get(vmid, 0.0)
        )
        for vmid, body in _by_vmid(said.get("vms"))
    )
    present = host.topology.cpus.keys()
    for vm in vms:
        if not all(cpus and cpus <= present for cpus in set(vm.held.vcpus)):
            raise Damaged(f"VM {vm.held.vmid} has CPUs that the machine has not")
    return Publication(
        node=node,
        at_s=stored.number(measured.get("time"), 0, 1e11),
        version=stored.text(said.get("version"), 40),
        host=host,
        vms=vms,
        strangers=tuple(
            _stranger_in(vmid, body, loads.get(vmid), resident.get(vmid, NOTHING))
            for vmid, body in _by_vmid(said.get("others"))
        ),
        fence=stored.maybe(_fence_in, said.get("fence")),
        processor=_processor_in(said.get("processor"))._replace(
            features=frozenset(stored.text(said.get("features", ""), MOST_FEATURES).split())
        ),
        devices={
            stored.text(address, 40): _device_in(device)
            for address, device in stored.table(said.get("devices"), MOST_DEVICES).items()
        },
        local=stored.maybe(lambda value: stored.table(value, 64), said.get("settings")),
    )


def _by_vmid(value: object) -> list[tuple[int, Any]]:
    return [(stored.vmid(name), body) for name, body in stored.table(value, MOST_VMS).items()]


def _vm_in(vmid: int, body: object, load: float | None, resident_mib: Mapping[int, int]) -> Vm:
    vm_class, vcpus, smt, weight, nodes, memory_mib, starting = stored.items(body, 7)
    on, size_mib = machine.cpus(nodes), _mib(memory_mib)
    share = size_mib // max(1, len(on))
    held = Holding(
        vmid,
        _member(VmClass, vm_class),
        _vcpus_in(stored.text(vcpus)),
        _member(Smt, smt),
        stored.integer(weight, 1, 1 << 18),
        load,
        dict.fromkeys(on, share) if stored.truth(starting) else NOTHING,
    )
    return Vm(held, on, size_mib, resident_mib)


def _vcpus_in(text: str) -> tuple[frozenset[int], ...]:
    home, star, count = text.partition("*")
    if star:
        return (machine.cpus(home),) * stored.integer(stored.vmid(count), 1, MOST_VCPUS)
    found = tuple(machine.cpus(part) for part in text.split(";"))
    if len(found) > MOST_VCPUS:
        raise Damaged(f"{len(found)} vCPUs are too many")
    return found


def _member(enum: Any, value: object) -> Any:
    try:
        return enum(stored.text(value, 40))
    except ValueError as error:
        raise Damaged(f"{stored.shown(value)} is no {enum.__name__}") from error


def _stranger_in(vmid: int, body: object, load: float | None, resident_mib: Mapping[int, int]) -> Stranger:
    container, cpus = stored.pair(body)
    return Stranger(vmid, stored.truth(container), machine.cpus(cpus), load, resident_mib)


def _fence_in(body: object) -> tuple[frozenset[int], str]:
    cpus, name = stored.pair(body)
    return machine.cpus(cpus), stored.text(name, 120)


def _processor_in(body: object) -> Processor:
    vendor, model, flags, level = stored.items(body, 4)
    return Processor(
        stored.text(vendor, 40), stored.text(model, 120), stored.text(flags, 64), stored.integer(level, 0, 9)
    )


def _device_in(body: object) -> Device:
    node, vmid = stored.pair(body)
    return Device(
        stored.maybe(lambda value: stored.integer(value, 0, machine.MOST_NODES), node),
        stored.integer(vmid, 0, 10**9),
    )


def _by_node_in(body: object) -> dict[int, int]:
    table = stored.table(body, machine.MOST_NODES)
    return {stored.vmid(node): _mib(amount) for node, amount in table.items()}


def _mib(value: object) -> int:
    return stored.integer(value, 0, MOST_MIB)
