"""`status` tells of a VM's devices: where they sit, and where their interrupts really go."""

import json

import pytest

from pxsched import cli
from pxsched.guest.process import Process
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.placement.request import Placement, VmClass

from .conftest import PciMachine

PF, VF = "0000:17:00.0", "0000:17:02.3"


@pytest.fixture
def machine(pci: PciMachine) -> PciMachine:
    """VM 100 on node 0 with a virtual function of a card on node 1."""
    pci.device(PF, node=1)
    pci.device(VF, node=1, physical=PF, index=11)
    pci.write(f"sys/bus/pci/devices/{PF}/net/enp23s0f0/ifindex", "4")
    pci.write("sys/class/net/enp23s0f0/speed", "25000")
    pci.write("proc/4711/cmdline", f"kvm\0-device\0vfio-pci,host={VF},id=hostpci0\0")
    cpus = frozenset({4}), frozenset({5})
    placement = Placement(100, VmClass.DEDICATED, cpus, frozenset({0}), frozenset({0}))
    with ledgers.locked(pci.root) as ledger:
        ledger.claims[100] = Claim(placement, State.RUNNING, process=Process(4711, 1))
        ledgers.save(pci.root, ledger)
    return pci


def status(pci: PciMachine, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main(["--root", pci.root.base, "status", "100", *options]) == 0
    return capsys.readouterr().out


def test_before_the_guests_driver_is_up(machine: PciMachine, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        f"VM 100: {VF}; on node 1, far from the VM;"
        " virtual function 11 of enp23s0f0 at 25000 Mbit/s; no interrupts yet"
    ) in status(machine, capsys).splitlines()


def test_interrupts_are_counted_and_strays_named(
    machine: PciMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.vectors(VF, [60, 61])
    for number, effective in ((60, "4"), (61, "9")):
        machine.write(f"proc/irq/{number}/smp_affinity_list", str(number - 56))
        machine.write(f"proc/irq/{number}/effective_affinity_list", effective)
    assert "2 interrupts on CPU 4,9, 1 not where asked\n" in status(machine, capsys)
    (vm,) = json.loads(status(machine, capsys, "--json"))["vms"]
    (device,) = vm["devices"]
    assert (device["address"], device["node"], device["far"]) == (VF, 1, True)
    assert device["port"]["virtual_index"] == 11
    assert [vector["astray"] for vector in device["interrupts"]] == [False, True]


def test_a_vm_without_devices_has_an_empty_list(
    machine: PciMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.write("proc/4711/cmdline", "kvm\0-device\0virtio-net-pci\0")
    (vm,) = json.loads(status(machine, capsys, "--json"))["vms"]
    assert vm["devices"] == []
