"""Placement on paper: starts and stops read from JSON lines, one answer for each start.

The machine is what the root path shows, empty at first. The contract is `pxsched simulate` in the manual;
nothing here touches the machine.
"""

from collections.abc import Iterable, Iterator, Mapping

from pxsched import output
from pxsched.commands import requests
from pxsched.commands.requests import Stop
from pxsched.host import cpulist, memory, topology
from pxsched.placement.housekeeping import host_of
from pxsched.placement.machine import machine_of
from pxsched.placement.memory import divide, free_memory
from pxsched.placement.request import Holding, Host, Placement, Refused, Request, VmClass
from pxsched.placement.search import place, rehome
from pxsched.root import Root
from pxsched.settings import files as settings
from pxsched.value import replace


def simulate(root: Root, lines: Iterable[str]) -> Iterator[str]:
    """One JSON object for each start, in order. Raises UserError naming the line that is not understood,
    before the first answer.
    """
    steps = [step for number, line in enumerate(lines, 1) for step in requests.parse(number, line)]
    machine = topology.read(root)
    memory_mib = {node.id: node.memory_bytes >> 20 for node in machine.nodes if node.memory_bytes is not None}
    pools = {(node.id, pool.size_mib): pool.free_mib for node in memory.read(root) for pool in node.pools}
    node = Node(host_of(machine, settings.load(root).node, free_mib=memory_mib, free_hugepages_mib=pools))
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


def _memory_of(request: Request, placement: Placement, free: Mapping[int, float]) -> dict[int, int]:
    bound = [guest for guest in request.guest_nodes if guest.host_nodes]
    if bound and len(bound) == len(request.guest_nodes):
        held: dict[int, int] = {}
        for guest in bound:
            for node, size_mib in divide(guest.memory_mib, guest.host_nodes, free).items():
                held[node] = held.get(node, 0) + size_mib
        return held
    return divide(request.memory_mib, placement.nodes, free)
