"""Random arrivals and departures on every captured machine: what must hold whatever happened before."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pxsched.placement.housekeeping import host_of
from pxsched.placement.memory import divide
from pxsched.placement.request import Holding, Host, Refused, Request, VmClass
from pxsched.placement.search import place, rehome
from pxsched.settings.policy import NodeSettings, Smt

from .machines import captured, cores_of, l3s_of

EXCLUSIVE = (VmClass.DEDICATED, VmClass.PINNED)


@pytest.fixture(scope="session")
def names(topologies) -> list[str]:
    return sorted(path.name for path in topologies.iterdir() if (path / "root").is_dir())


class Ledger:
    """A machine with the VMs that run on it, and rules 1 to 6 written down once more, with plain sets."""

    def __init__(self, topology) -> None:
        self.topology = topology
        memory = {node.id: node.memory_bytes >> 20 for node in topology.nodes if node.memory_bytes}
        self.host = host_of(topology, NodeSettings(), free_mib=memory)
        self.running: dict[int, Holding] = {}
        self.used: dict[int, dict[int, int]] = {}

    def free_host(self) -> Host:
        free = dict(self.host.free_mib)
        for shares in self.used.values():
            for node, size_mib in shares.items():
                if node in free:
                    free[node] -= size_mib
        return Host(self.topology, self.host.housekeeping, self.host.reserved, free)

    def start(self, request: Request) -> None:
        host, holdings = self.free_host(), list(self.running.values())
        try:
            answer = place(host, holdings, request)
        except Refused as refused:
            assert refused.message
            assert not self.feasible(host, request), "refused though it fits"
            return
        assert answer == place(host, holdings[::-1], request), "the order of the others does not matter"
        assert len(answer.vcpus) == request.vcpus
        assert answer.why
        assert answer.nodes <= self.topology.node_by_id.keys()
        assert answer.cpus <= self.topology.online - self.topology.isolated
        assert answer.emulator and answer.emulator <= self.topology.online
        if all(self.topology.cpus[cpu].node is not None for cpu in self.topology.online):
            assert self.memory_of(host, answer.nodes) >= request.memory_mib
        if request.vm_class is VmClass.DEDICATED:
            self.check_dedicated(host, request, answer)
        self.used[request.vmid] = divide(request.memory_mib, answer.nodes, host.free_mib)
        self.running[request.vmid] = Holding(
            request.vmid, answer.vm_class, answer.vcpus, request.smt, request.weight
        )
        self.check_shared_homes()

    def stop(self, vmid: int) -> None:
        self.running.pop(vmid, None)
        self.used.pop(vmid, None)

    def memory_of(self, host: Host, nodes) -> float:
        return sum(host.free_mib.get(node, float("inf")) for node in nodes)

    def owned(self) -> dict[int, Holding]:
        found: dict[int, Holding] = {}
        for holding in self.running.values():
            if holding.vm_class in EXCLUSIVE:
                assert not holding.cpus & found.keys(), "a CPU is dedicated to two VMs"
                found |= dict.fromkeys(holding.cpus, holding)
        return found

    def usable(self, request: Request) -> set[int]:
        """The CPUs of which each can hold one vCPU of this VM."""
        owned = self.owned()
        kept = self.host.housekeeping | self.topology.isolated
        found = set()
        for cpu in self.topology.online - kept - owned.keys():
            near = [owned[one] for one in self.topology.cpus[cpu].siblings if one in owned]
            if all(request.smt is Smt.SHARE and other.smt is Smt.SHARE for other in near):
                found.add(cpu)
        if request.smt is Smt.REQUIRE:
            return {
                cpu
                for cpu in found
                if len(self.topology.cpus[cpu].siblings) > 1 and self.topology.cpus[cpu].siblings <= found
            }
        if request.smt is Smt.ISOLATE:
            return {
                min(self.topology.cpus[cpu].siblings & found)
                for cpu in found
                if not self.topology.cpus[cpu].siblings & self.host.housekeeping
            }
        return found

    def feasible(self, host: Host, request: Request) -> bool:
        nodes = [node.id for node in self.topology.nodes if node.cpus]
        memory = sum(self.node_memory(host, node) for node in nodes) >= request.memory_mib
        if request.vm_class is VmClass.SHARED:
            return memory and bool(self.open()) and self.shared_memory_reachable(host, request)
        usable = self.usable(request)
        if len(usable) < request.vcpus or not memory:
            return False
        if any(holding.vm_class is VmClass.SHARED for holding in self.running.values()):
            # It may still be refused because shared VMs would have nothing left.
            left = self.topology.online - self.topology.isolated - self.owned().keys()
            return (
                len(left) > 2 * max(len(cpu.siblings) for cpu in self.topology.cpus.values()) * request.vcpus
            )
        return True

    def shared_memory_reachable(self, host: Host, request: Request) -> bool:
        nodes = self.topology.nodes_of(self.open())
        return sum(self.node_memory(host, node) for node in nodes) >= request.memory_mib

    def open(self) -> frozenset[int]:
        """What shared VMs may have: no dedicated CPU, and no sibling of one that has its core to itself."""
        owned = self.owned()
        lonely = {
            cpu
            for cpu in self.topology.online
            for one in self.topology.cpus[cpu].siblings
            if one in owned and owned[one].smt is Smt.ISOLATE
        }
        return self.topology.online - self.topology.isolated - owned.keys() - lonely

    def node_memory(self, host: Host, node: int) -> float:
        if self.topology.node_by_id[node].memory_bytes != 0:
            return host.free_mib.get(node, float("inf"))
        lenders = [one.id for one in self.topology.nodes if not one.cpus and one.memory_bytes != 0]
        return sum(host.free_mib.get(lender, float("inf")) for lender in lenders)

    def check_dedicated(self, host: Host, request: Request, answer) -> None:
        topology = self.topology
        usable = self.usable(request)
        assert all(len(one) == 1 for one in answer.vcpus)
        own = answer.cpus
        assert len(own) == request.vcpus
        assert own <= usable, "housekeeping, isolated, held, or next to another dedicated VM"
        if request.smt is Smt.ISOLATE:
            assert len(cores_of(topology, own)) == request.vcpus
        capacity = {node.id: len(usable & node.cpus) for node in topology.nodes if node.cpus}
        if sum(capacity.values()) > len(usable):
            return  # firmware whose nodes overlap: the counts below would not mean anything
        self.check_nodes(host, request, answer, capacity)
        kinds = {topology.cpus[cpu].kind for cpu in own}
        assert len(kinds) == 1 or any("mixes" in line for line in answer.why)

    def check_nodes(self, host: Host, request: Request, answer, capacity) -> None:
        def holds(nodes) -> bool:
            memory = sum(self.node_memory(host, node) for node in nodes)
            return sum(capacity[node] for node in nodes) >= request.vcpus and memory >= request.memory_mib

        bare = any(node.cpus and node.memory_bytes == 0 for node in self.topology.nodes)
        spanned = len(self.topology.nodes_of(answer.cpus) if bare else answer.nodes)
        if spanned > 1:
            eligible = [n for n in capacity if capacity[n] or self.node_memory(host, n)]
            assert not any(holds(nodes) for nodes in combinations(eligible, spanned - 1)), "rule 2"
            return
        single = [node for node in capacity if holds((node,))]
        if len(self.topology.nodes_of(answer.cpus)) > 1 or not single:
            return
        near = request.device_nodes & set(single)
        if near:
            assert self.topology.nodes_of(answer.cpus) <= near, "rule 3"
        usable = self.usable(request)
        fewest = min(self.fewest_l3s(usable, node, request.vcpus) for node in near or single)
        if not request.device_nodes:
            assert len(l3s_of(self.topology, answer.cpus)) <= fewest, "rule 4"

    def fewest_l3s(self, usable, node: int, vcpus: int) -> int:
        sizes: dict[object, int] = {}
        for cpu in usable & self.topology.node_by_id[node].cpus:
            group = next(iter(l3s_of(self.topology, [cpu])))
            sizes[group] = sizes.get(group, 0) + 1
        count = 0
        for size in sorted(sizes.values(), reverse=True):
            if vcpus <= 0:
                break
            vcpus -= size
            count += 1
        return count

    def check_shared_homes(self) -> None:
        """Once those whose home lost CPUs are given another, no shared VM runs on a dedicated CPU."""
        for vmid, holding in list(self.running.items()):
            if holding.vm_class is not VmClass.SHARED:
                continue
            before = Request(vmid, len(holding.vcpus), 0, VmClass.SHARED)
            others = [other for other in self.running.values() if other.vmid != vmid]
            home = place(self.host, others, before) if holding.cpus & self.owned().keys() else None
            if home:
                self.running[vmid] = Holding(vmid, home.vm_class, home.vcpus)
                assert rehome(self.host, others, Request(vmid, 1, 0, VmClass.SHARED, previous=home)) is None
            dedicated = {cpu for cpu, owner in self.owned().items() if owner.vm_class is VmClass.DEDICATED}
            assert not self.running[vmid].cpus & dedicated


def step(data, ledger: Ledger, vmid: int) -> None:
    if ledger.running and data.draw(st.integers(0, 9)) < 3:
        ledger.stop(data.draw(st.sampled_from(sorted(ledger.running))))
        return
    nodes = [node.id for node in ledger.topology.nodes if node.cpus]
    most = max(1, len(ledger.topology.online))
    ledger.start(
        Request(
            vmid=vmid,
            vcpus=data.draw(st.one_of(st.integers(1, min(16, most)), st.integers(1, most))),
            memory_mib=data.draw(st.sampled_from([16, 512, 4096, 20_000, 100_000])),
            vm_class=data.draw(st.sampled_from([VmClass.DEDICATED] * 3 + [VmClass.SHARED])),
            smt=data.draw(st.sampled_from(Smt)),
            device_nodes=frozenset(data.draw(st.lists(st.sampled_from(nodes), max_size=1))),
        )
    )


def come_and_go(topologies, names, data) -> None:
    ledger = Ledger(captured(topologies, data.draw(st.sampled_from(names))))
    for number in range(data.draw(st.integers(1, 12))):
        step(data, ledger, 100 + number)


@given(data=st.data())
def test_rules_hold_whatever_came_and_went_before(topologies, names, data):
    come_and_go(topologies, names, data)


@pytest.mark.slow
@settings(max_examples=2000)
@given(data=st.data())
def test_rules_hold_in_two_thousand_histories(topologies, names, data):
    come_and_go(topologies, names, data)


def test_every_machine_holds_a_vm_of_each_class(topologies, names):
    for name in names:
        ledger = Ledger(captured(topologies, name))
        for number, smt in enumerate(Smt):
            ledger.start(Request(100 + number, 1, 16, VmClass.DEDICATED, smt=smt))
        ledger.start(Request(200, 2, 16, VmClass.SHARED))
        assert ledger.running, name
