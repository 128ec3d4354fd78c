"""Which devices a VM has, where they sit, and what may be known of them before it starts."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pxsched.guest import config, passthrough
from pxsched.guest.config import Machine
from pxsched.guest.process import Process
from pxsched.host import devices
from pxsched.host.devices import Device
from pxsched.root import Root

from .conftest import PciMachine

CORPORA = Path(os.environ["PXSCHED_CORPORA"])
QEMU = Process(4711, 100)


def machine(*options: str) -> Machine:
    return config.machine(config.parse("\n".join(options)))


def command_line(pci: PciMachine, *device_arguments: str) -> None:
    words = ["/usr/bin/kvm", "-id", "100"]
    for argument in device_arguments:
        words += ["-device", argument]
    path = pci.base / f"proc/{QEMU.pid}/cmdline"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0".join(word.encode() for word in words) + b"\0")


MAPPINGS = """\
fastnic
\tdescription two ports, either will do
\tmap id=8086:1572,iommugroup=30,node=pve1,path=0000:17:00.0,subsystem-id=8086:0001
\tmap id=8086:1572,iommugroup=31,node=pve1,path=0000:b1:00.0,subsystem-id=8086:0001
\tmap id=8086:1572,iommugroup=99,node=pve2,path=0000:ff:00.0

gpu
\tmdev 1
\tmap id=10de:2236,node=pve1,path=0000:b1:00;0000:b2:00.0
"""


class TestBeforeTheStart:
    def test_the_node_of_a_raw_address(self, pci: PciMachine) -> None:
        pci.device("0000:17:00.0", node=1)
        assert passthrough.nodes(pci.root, 100, machine("hostpci0: 17:00.0,pcie=1"), "pve1") == {1}

    def test_a_slot_without_function_means_all_its_functions(self, pci: PciMachine) -> None:
        pci.device("0000:01:00.0", node=0)
        pci.device("0000:01:00.1", node=0)
        found = passthrough.of_vm(pci.root, 100, machine("hostpci0: 01:00,pcie=1"), None)
        assert [device.address for device in found] == ["0000:01:00.0", "0000:01:00.1"]
        assert passthrough.nodes(pci.root, 100, machine("hostpci0: 01:00"), "pve1") == {0}

    def test_a_slot_may_lack_its_first_function(self, pci: PciMachine) -> None:
        pci.device("0000:01:00.3", node=1)
        assert passthrough.nodes(pci.root, 100, machine("hostpci0: 01:00"), "pve1") == {1}

    def test_several_devices_in_one_option_and_several_options(self, pci: PciMachine) -> None:
        for address, node in (("0000:17:00.0", 0), ("0000:b1:00.0", 1), ("0000:b2:00.0", 3)):
            pci.device(address, node=node)
        vm = machine("hostpci0: 17:00.0;b1:00.0", "hostpci1: 0000:b2:00.0")
        assert passthrough.nodes(pci.root, 100, vm, "pve1") == {0, 1, 3}

    def test_a_mapping_may_give_any_of_its_alternatives_on_this_node(self, pci: PciMachine) -> None:
        pci.write(passthrough.MAPPINGS, MAPPINGS)
        for address, node in (("0000:17:00.0", 0), ("0000:b1:00.0", 1), ("0000:ff:00.0", 5)):
            pci.device(address, node=node)
        assert passthrough.nodes(pci.root, 100, machine("hostpci0: mapping=fastnic"), "pve1") == {0, 1}
        assert passthrough.nodes(pci.root, 100, machine("hostpci0: mapping=fastnic"), "pve3") == set()
        assert passthrough.nodes(pci.root, 100, machine("hostpci0: mapping=unknown"), "pve1") == set()

    def test_once_proxmox_has_chosen_an_alternative_the_others_no_longer_count(self, pci: PciMachine) -> None:
        pci.write(passthrough.MAPPINGS, MAPPINGS)
        pci.write(passthrough.RESERVATIONS, "0000:b1:00.0 100 pid:4711\n0000:17:00.0 101 time:17")
        pci.device("0000:17:00.0", node=0)
        pci.device("0000:b1:00.0", node=1)
        vm = machine("hostpci0: mapping=fastnic")
        assert passthrough.nodes(pci.root, 100, vm, "pve1") == {1}
        assert passthrough.of_vm(pci.root, 100, vm, None) == (Device("0000:b1:00.0", 1),)

    def test_the_parent_of_a_mediated_device_tells_its_node(self, pci: PciMachine) -> None:
        pci.write(passthrough.MAPPINGS, MAPPINGS)
        pci.device("0000:b1:00.0", node=1)
        assert passthrough.nodes(pci.root, 100, machine("hostpci0: mapping=gpu,mdev=nv-1"), "pve1") == {1}

    def test_a_device_without_a_known_node_asks_for_none(self, pci: PciMachine) -> None:
        pci.device("0000:17:00.0", node=-1)
        assert passthrough.nodes(pci.root, 100, machine("hostpci0: 17:00.0"), "pve1") == set()

    def test_a_device_that_is_absent_and_mappings_that_make_no_sense(self, pci: PciMachine) -> None:
        pci.write(passthrough.MAPPINGS, "fastnic\n\tmap ,,node=pve1\n\tmap node=pve1,path=../../etc/passwd\n")
        vm = machine("hostpci0: 17:00.0", "hostpci1: mapping=fastnic")
        assert passthrough.nodes(pci.root, 100, vm, "pve1") == set()

    def test_a_vm_without_devices_costs_no_look_at_the_machine(self) -> None:
        class Untouchable(Root):
            def path(self, relative: str) -> str:
                raise AssertionError(relative)

            def read_bytes(self, relative: str) -> bytes | None:
                raise AssertionError(relative)

        root = Untouchable("/nowhere")
        assert passthrough.nodes(root, 100, machine("net0: virtio"), "pve1") == set()
        assert passthrough.of_vm(root, 100, machine("net0: virtio"), None) == ()


class TestARunningVm:
    def test_its_command_line_names_every_function_once(self, pci: PciMachine) -> None:
        pci.device("0000:01:00.0", node=0)
        pci.device("0000:01:00.1", node=0)
        command_line(
            pci,
            "vfio-pci,host=0000:01:00.0,id=hostpci0.0,bus=ich9-pcie-port-1,addr=0x0.0,multifunction=on",
            "vfio-pci,host=0000:01:00.1,id=hostpci0.1,bus=ich9-pcie-port-1,addr=0x0.1",
            "virtio-net-pci,mac=00:11:22:33:44:55,netdev=net0,host=0000:02:00.0",
            "vfio-pci,host=0000:01:00.0",
        )
        found = passthrough.of_vm(pci.root, 100, machine("hostpci0: 01:00"), QEMU)
        assert found == (Device("0000:01:00.0", 0), Device("0000:01:00.1", 0))

    def test_a_device_that_came_through_args_counts_as_well(self, pci: PciMachine) -> None:
        pci.device("0000:05:00.0", node=1)
        command_line(pci, '{"driver":"vfio-pci-nohotplug","host":"05:00.0","id":"x"}')
        assert passthrough.of_vm(pci.root, 100, machine("args: -device ..."), QEMU) == (
            Device("0000:05:00.0", 1),
        )

    def test_a_virtual_function_knows_its_parent_and_number(self, pci: PciMachine) -> None:
        pci.device("0000:17:00.0", node=0)
        pci.device("0000:17:02.3", node=0, physical="0000:17:00.0", index=11)
        command_line(pci, "vfio-pci,host=0000:17:02.3,id=hostpci0")
        (found,) = passthrough.of_vm(pci.root, 100, machine(), QEMU)
        assert found.physical == "0000:17:00.0"
        assert devices.virtual_index(pci.root, found) == 11

    def test_a_mediated_device_is_found_through_its_parent(self, pci: PciMachine) -> None:
        uuid = "00000000-0000-0000-0000-000000000100"
        pci.device("0000:b1:00.4", node=1)
        pci.link(f"sys/bus/mdev/devices/{uuid}", f"../../../devices/pci0000:b0/0000:b1:00.4/{uuid}")
        command_line(pci, f"vfio-pci,sysfsdev=/sys/bus/mdev/devices/{uuid},id=hostpci0")
        found = passthrough.of_vm(pci.root, 100, machine("hostpci0: b1:00.4,mdev=nvidia-1"), QEMU)
        assert found == (Device("0000:b1:00.4", 1, mdev=uuid),)

    def test_a_virtual_function_given_by_its_sysfs_path_is_a_whole_device(self, pci: PciMachine) -> None:
        pci.device("0000:b1:00.4", node=1)
        command_line(pci, "vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:b1:00.4,id=hostpci0")
        assert passthrough.of_vm(pci.root, 100, machine(), QEMU) == (Device("0000:b1:00.4", 1),)

    @pytest.mark.parametrize(
        "argument",
        [
            "vfio-pci,host=../../../etc",
            "vfio-pci,sysfsdev=/",
            "vfio-pci",
            "{not json vfio-pci",
            '{"driver": "vfio-pci", "host": ["0000:01:00.0"]}',
            '["vfio-pci"]',
            "vfio-pci,host=0000:ff:1f.7",
        ],
    )
    def test_nonsense_on_the_command_line_is_no_device(self, pci: PciMachine, argument: str) -> None:
        command_line(pci, argument)
        assert passthrough.of_vm(pci.root, 100, machine(), QEMU) == ()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.one_of(st.text(), st.sampled_from(["-device", '{"driver":"vfio-pci","host":"']))))
def test_no_command_line_makes_it_fail(pci: PciMachine, words: list[str]) -> None:
    command_line(pci, "vfio-pci", *words)
    assert passthrough.of_vm(pci.root, 100, machine(), QEMU) == ()


@settings(max_examples=60)
@given(
    text=st.lists(st.one_of(st.text(), st.sampled_from(["fastnic", "\n", "\tmap ", "node=pve1,", "path=0"])))
)
def test_no_mapping_file_makes_it_fail(text: list[str]) -> None:
    found = passthrough.mapped("".join(text), {"fastnic"}, "pve1")
    assert all(devices.FUNCTION.fullmatch(path) or devices.SLOT.fullmatch(path) for path in found)


def test_a_real_machines_devices_sit_where_an_independent_capture_says(tmp_path: Path) -> None:
    name = "cnto-bm-worker2"
    archive = CORPORA / "topologies.tar.xz"
    subprocess.run(["tar", "-xJf", archive, "-C", tmp_path, f"{name}/root/sys"], check=True)
    root = Root(str(tmp_path / name / "root"))
    expected = json.loads((CORPORA / "interrupts" / name / "pci.json").read_text())
    nodes = {address: devices.node_of(root, address) for address in expected}
    assert len(nodes) > 200
    assert nodes == {address: int(entry["numa_node"]) for address, entry in expected.items()}
    slot = next(address for address in expected if f"{address[:-1]}1" in expected)[:-2]
    assert devices.expand(root, slot) == tuple(sorted(a for a in expected if a.startswith(f"{slot}.")))
