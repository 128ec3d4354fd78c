"""What a plan has to know of VMs and moves, from one look at the cluster: requests, hindrances, HA."""

import time
from collections.abc import Mapping
from functools import cached_property

from pxsched.cluster import fit, hindrances
from pxsched.cluster.ha import Ha
from pxsched.cluster.hindrances import Verdict
from pxsched.cluster.paper import Paper
from pxsched.cluster.publication import Stranger
from pxsched.cluster.view import View, Vm
from pxsched.cluster.wrongs import Guest
from pxsched.guest import passthrough
from pxsched.placement.request import Refused, Request
from pxsched.value import replace


class Known:
    """Answers are computed when first asked for, and kept."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._requests: dict[tuple[int, str], Request] = {}
        self._verdicts: dict[tuple[int, str], Verdict] = {}
        self._idle: dict[int, Vm] = {}

    @property
    def ha(self) -> Ha:
        return self.view.ha

    @cached_property
    def vms(self) -> Mapping[int, Vm]:
        """Those that run, on nodes that can be used. Raises UserError when /etc/pve cannot be read."""
        running = frozenset[int]().union(*map(self._running, self.usable))
        places = self.view.places
        found = (self.view.find(vmid) for vmid in sorted(running) if places.get(vmid) in self.usable)
        return {vm.vmid: vm for vm in found if vm is not None}

    def stopped(self, name: str) -> list[Guest]:
        """The VMs, and templates, that do not run on this node. Raises UserError."""
        places = self.view.places
        vms = [vm for vmid in sorted(places) if places[vmid] == name and (vm := self.view.find(vmid))]
        idle = [vm for vm in vms if vm.vmid not in self.vms and self.view.runs(vm) is False]
        self._idle |= {vm.vmid: vm for vm in idle}
        return [Guest(vm.vmid, vm.machine.opted_in, ha=self.ha.manages(vm.vmid)) for vm in idle]

    def _vm(self, vmid: int) -> Vm:
        return self.vms[vmid] if vmid in self.vms else self._idle[vmid]

    def _running(self, name: str) -> frozenset[int]:
        said = self.view.members[name].said
        return said.running if said is not None else frozenset()

    @cached_property
    def usable(self) -> list[str]:
        return [name for name, member in self.view.members.items() if member.usable]

    @cached_property
    def unusable(self) -> dict[str, str]:
        """Why nothing can be said of the others."""
        members = self.view.members.items()
        return {name: fit.unusable(member) for name, member in members if not member.usable}

    def sheets(self) -> dict[str, Paper]:
        """The usable nodes on paper. Whatever they published, a VM is where its configuration is."""
        sizes = {vmid: size for vmid, vm in self.vms.items() if (size := vm.machine.hugepage_mib) is not None}
        found = {name: self.view.paper(name, sizes) for name in self.usable}
        for name in self.usable:
            for vmid in self._running(name):
                if self.view.places.get(vmid, name) != name:
                    found[name] = found[name].without(vmid)
        for vmid in sorted(self._moved):
            name = self.vms[vmid].node
            found[name] = self._arrived(found[name], vmid)
        return found

    @cached_property
    def _moved(self) -> frozenset[int]:
        """VMs that came to another node since that published."""
        return frozenset(vmid for vmid, vm in self.vms.items() if vmid not in self._running(vm.node))

    def _arrived(self, sheet: Paper, vmid: int) -> Paper:
        """The node with such a VM: where it would put it, else anywhere."""
        request = self.request(vmid, sheet.name)
        try:
            return sheet.having(request, sheet.place(request))
        except Refused:
            one = Stranger(vmid, False, sheet.host.topology.online)
            return replace(sheet, strangers={**sheet.strangers, vmid: one})

    def guests(self) -> list[Guest]:
        now_s = time.time()
        since = {
            (vm.held.vmid, name): vm.since_s
            for name, member in self.view.members.items()
            for vm in (member.said.vms if member.said else ())
        }

        def rested_s(vm: Vm) -> float | None:
            if vm.vmid in self._moved:
                return 0.0
            came_s = since.get((vm.vmid, vm.node))
            return now_s - came_s if came_s else None

        return [
            Guest(vmid, vm.machine.opted_in, rested_s(vm), self.ha.manages(vmid))
            for vmid, vm in self.vms.items()
        ]

    def request(self, vmid: int, target: str) -> Request:
        key = (vmid, target)
        if key not in self._requests:
            self._requests[key] = self.view.request(self._vm(vmid), target)
        return self._requests[key]

    def verdict(self, vmid: int, target: str, places: Mapping[int, str]) -> Verdict:
        verdict = self._hindrances(vmid, target)
        back = self.ha.against(vmid, target, self.view.online, places)
        more = tuple(text for text in (back, self._device(vmid, target, places)) if text)
        return verdict._replace(against=(*verdict.against, *more)) if more else verdict

    def _hindrances(self, vmid: int, target: str) -> Verdict:
        key = (vmid, target)
        if key not in self._verdicts:
            vm, members = self._vm(vmid), self.view.members
            said = members[target].said
            assert said is not None
            self._verdicts[key] = hindrances.of_move(
                vm.options, members[vm.node].said, said, self.view.surroundings,
                runs=vmid in self.vms, snapshots=vm.snapshots, vmid=vmid,
            )  # fmt: skip
        return self._verdicts[key]

    def _device(self, vmid: int, target: str, places: Mapping[int, str]) -> str:
        """Whether the VMs that will be there by then leave it a device of its mappings."""
        for name in _mappings(self.vms[vmid]) if vmid in self.vms else ():
            users = [
                other
                for other, vm in self.vms.items()
                if other != vmid and places.get(other) == target and name in _mappings(vm)
            ]
            count = len(passthrough.mapped(self.view.surroundings.pci, (name,), target))
            if users and len(users) >= count:
                return f"VM {users[0]} will have the device of mapping {name[:40]} there"
        return ""


def _mappings(vm: Vm) -> list[str]:
    """Of devices that one VM has as a whole."""
    return [option.mapping for option in vm.machine.hostpci if option.mapping and not option.mdev]
