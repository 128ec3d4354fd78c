"""Tap queues are worked on near their VM; SR-IOV ports are known; devices far from their VM are named."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pxsched.host import links
from pxsched.host.devices import Device
from pxsched.host.links import Port, Tap
from pxsched.knobs.knob import Gone, from_key
from pxsched.knobs.nic import QueueMask
from pxsched.ledger import file as ledgers
from pxsched.node.reconcile import reconcile
from pxsched.placement.request import VmClass
from pxsched.plugins import nic
from pxsched.plugins.view import HostView, VmView
from pxsched.settings.policy import Policy
from pxsched.value import replace

from .conftest import PciMachine, topology, view

HOST = HostView(topology())
TAP = Tap("tap100i0", 17, ("rx-0", "rx-1", "tx-0", "tx-1"))
PF, VF = "0000:17:00.0", "0000:17:02.3"


def tap(pci: PciMachine, name: str = "tap100i0", *, ifindex: int = 17, queues: int = 2) -> None:
    pci.write(f"sys/class/net/{name}/ifindex", str(ifindex))
    for queue in range(queues):
        pci.write(f"sys/class/net/{name}/queues/rx-{queue}/rps_cpus", "0000")
        pci.write(f"sys/class/net/{name}/queues/tx-{queue}/xps_cpus", "0000")


def wanted(vm: VmView, host: HostView = HOST) -> dict[str, str]:
    return {setting.knob.key: setting.want for setting in nic.of_vm(vm, host)}


class TestWhichCpus:
    def test_of_a_shared_vm_its_home(self) -> None:
        vm = replace(view(VmClass.SHARED, ("8-15", "8-15")), taps=(TAP,))
        assert set(wanted(vm).values()) == {"ff00"}
        assert len(wanted(vm)) == 4

    @pytest.mark.parametrize("vm_class", [VmClass.DEDICATED, VmClass.PINNED])
    def test_where_vcpus_have_their_own_cpus_those_of_the_emulator(self, vm_class: VmClass) -> None:
        vm = replace(view(vm_class, ("4", "5"), emulator="0-1"), taps=(TAP,))
        assert set(wanted(vm).values()) == {"3"}

    def test_not_isolated_or_offline_ones(self) -> None:
        vm = replace(view(VmClass.SHARED, ("0-7",)), taps=(TAP,))
        assert set(wanted(vm, HostView(topology("0-5", isolated="4-5"))).values()) == {"f"}

    def test_nothing_where_none_is_left_or_the_policy_says_no(self) -> None:
        vm = replace(view(VmClass.SHARED, ("4-5",)), taps=(TAP,))
        assert wanted(vm, HostView(topology(isolated="4-5"))) == {}
        off = replace(view(VmClass.SHARED, ("4-5",), policy=Policy(nic=False)), taps=(TAP,))
        assert wanted(off) == {}


class TestTaps:
    def test_of_the_vms_own_network_devices_that_exist(self, pci: PciMachine) -> None:
        tap(pci, "tap100i0", ifindex=17)
        tap(pci, "tap100i10", ifindex=18, queues=12)
        tap(pci, "tap1000i0", ifindex=19)
        found = links.taps(pci.root, 100, (0, 3, 10))
        assert [(found_tap.name, found_tap.ifindex) for found_tap in found] == [
            ("tap100i0", 17),
            ("tap100i10", 18),
        ]
        assert found[1].queues[:12] == tuple(f"rx-{queue}" for queue in range(12))

    def test_the_only_transmit_queue_takes_no_mask(self, pci: PciMachine) -> None:
        tap(pci, queues=1)
        assert links.taps(pci.root, 100, (0,))[0].queues == ("rx-0",)

    def test_there_and_back_through_the_journal(self, pci: PciMachine) -> None:
        tap(pci)
        before = {path: path.read_bytes() for path in pci.base.rglob("?ps_cpus")}
        vm = replace(view(VmClass.SHARED, ("8-15",)), taps=links.taps(pci.root, 100, (0,)))
        with ledgers.locked(pci.root) as ledger:
            report = reconcile(pci.root, ledger, list(nic.of_vm(vm, HOST)), None)
        assert len(report.turned) == 4
        assert {path.read_text() for path in before} == {"ff00\n"}
        with ledgers.locked(pci.root) as ledger:
            reconcile(pci.root, ledger, [], None)
        assert {path: path.read_bytes() for path in before} == before

    def test_a_new_tap_with_the_old_name_is_another(self, pci: PciMachine) -> None:
        tap(pci, ifindex=17)
        knob = QueueMask("tap100i0", 17, "rx-0")
        knob.write(pci.root, "3")
        pci.write("sys/class/net/tap100i0/ifindex", "18")
        with pytest.raises(Gone):
            knob.read(pci.root)
        with pytest.raises(Gone):
            knob.write(pci.root, "0")

    @pytest.mark.parametrize(
        "key", ["nic-queue:../../x,1,rx-0", "nic-queue:eth0,1,rx-0", "nic-queue:tap1i0,1,rx-0/../../x"]
    )
    def test_a_key_that_names_anything_else_is_refused(self, pci: PciMachine, key: str) -> None:
        with pytest.raises(ValueError, match="no queue of a tap"):
            from_key(key).read(pci.root)


class TestPorts:
    def test_the_port_behind_a_virtual_function(self, pci: PciMachine) -> None:
        pci.device(PF, node=1)
        pci.device(VF, node=1, physical=PF, index=11)
        pci.write(f"sys/bus/pci/devices/{PF}/net/enp23s0f0/ifindex", "4")
        pci.write("sys/class/net/enp23s0f0/speed", "25000")
        port = links.port_of(pci.root, Device(VF, 1, physical=PF))
        assert port == Port("enp23s0f0", 1, speed_mbit=25000, virtual_index=11)

    def test_none_for_physical_functions_and_other_devices(self, pci: PciMachine) -> None:
        pci.device(PF, node=1)
        pci.device(VF, node=1, physical=PF)
        assert links.port_of(pci.root, Device(PF, 1)) is None
        assert links.port_of(pci.root, Device(VF, 1, physical=PF)) is None, "an nvme has no network port"

    def test_a_port_whose_link_is_down_has_no_speed(self, pci: PciMachine) -> None:
        pci.device(VF, physical=PF)
        pci.device(PF)
        pci.write(f"sys/bus/pci/devices/{PF}/net/enp23s0f0/ifindex", "4")
        pci.write("sys/class/net/enp23s0f0/speed", "-1")
        port = links.port_of(pci.root, Device(VF, physical=PF))
        assert port is not None
        assert port.speed_mbit is None

    def test_netlink_tells_state_and_queues_of_a_real_link(self) -> None:
        pytest.importorskip("pyroute2")
        port = links._with_netlink(links._with_state(Port("lo", None)))
        assert (port.rx_queues, port.tx_queues) == (1, 1)
        assert port.up is psutil.net_if_stats()["lo"].isup
        assert port.speed_mbit is None, "a loopback has none"

    def test_a_link_that_does_not_exist_leaves_the_port_as_it_was(self) -> None:
        port = Port("nosuchlink0", None, speed_mbit=10)
        assert links._with_netlink(port) == port

    def test_so_does_a_machine_without_pyroute2(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyroute2", None)
        port = Port("lo", None)
        assert links._with_netlink(port) == port


class TestNotes:
    def test_a_virtual_function_on_another_node_than_its_vm(self) -> None:
        vm = replace(view(nodes="0"), devices=(Device(VF, 1, physical=PF),))
        (note,) = nic.notes(vm, HOST)
        assert VF in note
        assert f"virtual function of {PF}" in note
        assert "on node 1, the VM on 0" in note

    def test_nothing_where_they_are_together_or_nobody_knows(self) -> None:
        vm = replace(view(nodes="0-1"), devices=(Device(VF, 1), Device(PF, None)))
        assert list(nic.notes(vm, HOST)) == []


REAL = """
import fcntl, os, struct, sys
sys.path.insert(0, {checkout!r})
from pxsched.host import links
from pxsched.knobs.nic import QueueMask
from pxsched.root import Root

IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, TUNSETIFF = 0x2, 0x1000, 0x100, 0x400454CA
queues = []
for _queue in range(2):
    queues.append(os.open("/dev/net/tun", os.O_RDWR))
    request = struct.pack("16sH22x", b"tap100i0", IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE)
    fcntl.ioctl(queues[-1], TUNSETIFF, request)
root = Root()
(tap,) = links.taps(root, 100, (0, 1))
print(" ".join(queue for queue in tap.queues if queue in ("rx-0", "rx-1", "tx-0", "tx-1")))
for queue in ("rx-0", "rx-1", "tx-0", "tx-1"):
    knob = QueueMask(tap.name, tap.ifindex, queue)
    before = knob.read(root)
    knob.write(root, "1")
    assert knob.same(knob.read(root), "1"), knob.read(root)
    knob.write(root, before)
    assert knob.read(root) == before
for queue in queues:
    os.close(queue)
try:
    QueueMask(tap.name, tap.ifindex, "rx-0").read(root)
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/net/tun"), reason="needs root and tun")
def test_a_real_tap_with_two_queues() -> None:
    """In a network namespace of its own, with a sysfs that shows it."""
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces may be made here")
    script = REAL.format(checkout=str(Path(__file__).parents[2]))
    inside = 'mount -t sysfs sysfs /sys && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", inside, sys.executable, script],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    assert done.stdout == "rx-0 rx-1 tx-0 tx-1\nGone\n"
