"""Reading interrupts: every form of /proc/interrupts, the vectors of passed-through devices; turning one."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxsched.host import interrupts
from pxsched.host.devices import Device
from pxsched.knobs.interrupt import DefaultAffinity, InterruptAffinity
from pxsched.knobs.knob import Gone, from_key
from pxsched.root import Root

from .conftest import PciMachine

CORPUS = Path(os.environ["PXSCHED_CORPORA"], "interrupts")
VF = "0000:17:02.0"
HEADER = "           CPU0       CPU1       CPU8\n"


def row(description: str) -> interrupts.Row:
    (found,) = interrupts.parse(f"{HEADER} 101:   1   0   7 {description}\n").rows
    return found


@pytest.mark.parametrize(
    ("description", "chip", "actions", "address"),
    [
        (
            "IR-PCI-MSIX-0000:17:00.2    0-edge      vfio-msix[0](0000:17:00.2)",
            "IR-PCI-MSIX-0000:17:00.2",
            ("vfio-msix[0](0000:17:00.2)",),
            "0000:17:00.2",
        ),
        (
            "IR-PCI-MSI 163843-edge  vfio-msi[0](0000:05:10.0)",
            "IR-PCI-MSI",
            ("vfio-msi[0](0000:05:10.0)",),
            None,
        ),
        (
            "IO-APIC  19-fasteoi   vfio-intx(0000:03:00.0)",
            "IO-APIC",
            ("vfio-intx(0000:03:00.0)",),
            "0000:03:00.0",
        ),
        (
            "PCI-MSI 3-edge mlx5_comp0@pci:0000:21:00.0",
            "PCI-MSI",
            ("mlx5_comp0@pci:0000:21:00.0",),
            "0000:21:00.0",
        ),
        ("PCI-MSI 134463489-edge i40e-enP1s15-TxRx-0", "PCI-MSI", ("i40e-enP1s15-TxRx-0",), ""),
        ("IR-PCI-MSI 163843-edge", "IR-PCI-MSI", (), ""),
        ("PCI-MSI-edge      eth6-TxRx-0", "PCI-MSI-edge", ("eth6-TxRx-0",), ""),
        ("IO-APIC-fasteoi   acpi", "IO-APIC-fasteoi", ("acpi",), ""),
        (
            "IO-APIC  16-fasteoi   uhci_hcd:usb5, uhci_hcd:usb11, ahci[0000:02:00.0]",
            "IO-APIC",
            ("uhci_hcd:usb5", "uhci_hcd:usb11", "ahci[0000:02:00.0]"),
            "0000:02:00.0",
        ),
        (
            "IR-PCI-MSI-0000:00:1c.0    0-edge      PCIe PME, pciehp",
            "IR-PCI-MSI-0000:00:1c.0",
            ("PCIe PME", "pciehp"),
            None,
        ),
        ("GICv3  27 Level     arch_timer", "GICv3", ("arch_timer",), ""),
        ("ITS-MSI 524288 Edge      nvme0q0", "ITS-MSI", ("nvme0q0",), ""),
        ("DMAR-MSI   0-edge      dmar0", "DMAR-MSI", ("dmar0",), ""),
        ("XT-PIC      timer", "XT-PIC", ("timer",), ""),
        ("8259      timer", "8259", ("timer",), ""),
        ("", "", (), ""),
    ],
)
def test_every_form_of_a_line_is_understood(
    description: str, chip: str, actions: tuple[str, ...], address: str | None
) -> None:
    found = row(description)
    assert (found.number, found.counts, found.chip, found.actions) == (101, (1, 0, 7), chip, actions)
    if address is None:
        address = next(iter(re.findall(r"\w{4}:\w\w:\w\w\.\d", description)))
    assert found.address == address


def test_a_column_is_not_the_number_of_its_cpu() -> None:
    table = interrupts.parse(HEADER + "  4:  5  6  7  IO-APIC 4-edge ttyS0\n")
    assert dict(zip(table.cpus, table.rows[0].counts, strict=True)) == {0: 5, 1: 6, 8: 7}


def test_short_rows_named_rows_and_garbage_do_no_harm() -> None:
    text = HEADER + "  9:  5\nERR:          0\nMIS:\n 10\nNMI: 1 2 3 Non-maskable interrupts\n\0\0: x\n"
    assert [(found.number, found.counts) for found in interrupts.parse(text).rows] == [(9, (5,))]
    assert interrupts.parse("").rows == ()


def test_a_line_of_a_machine_with_512_cpus() -> None:
    header = " ".join(f"CPU{cpu}" for cpu in range(512))
    counts = " ".join("1234567" for _cpu in range(512))
    (found,) = interrupts.parse(f"{header}\n 300: {counts} PCI-MSIX-0000:01:00.0 3-edge nvme0q3\n").rows
    assert (len(found.counts), found.actions) == (512, ("nvme0q3",))


class TestCapturedTables:
    @pytest.fixture(params=json.loads((CORPUS / "index.json").read_text()))
    def capture(self, request: pytest.FixtureRequest) -> dict[str, object]:
        return dict(request.param)

    def test_as_many_numbered_rows_as_the_index_counted(self, capture: dict[str, object]) -> None:
        table = interrupts.parse((CORPUS / str(capture["name"]) / "interrupts").read_text())
        assert len(table.rows) == capture["numeric_irqs"]
        assert len(table.cpus) == capture["cpus"]

    def test_the_same_names_as_the_index_found(self, capture: dict[str, object]) -> None:
        table = interrupts.parse((CORPUS / str(capture["name"]) / "interrupts").read_text())
        families = Counter(re.sub(r"\d+", "N", ", ".join(row.actions)) for row in table.rows)
        # The index leaves chip or hardware number in the name where it could not tell them apart.
        listed: Counter[str] = Counter()
        for label, count in dict(capture["label_families"]).items():  # type: ignore[call-overload]
            listed[re.sub(r"^IR-PCI-MSI(-edge | N-edge)", "", label)] += count
        assert families == listed

    def test_the_devices_that_labels_name_exist(self) -> None:
        name = "cnto-bm-worker2"
        known = json.loads((CORPUS / name / "pci.json").read_text())
        rows = interrupts.parse((CORPUS / name / "interrupts").read_text()).rows
        addresses = {row.address for row in rows if row.address}
        assert len(addresses) > 10
        assert addresses <= set(known)


class TestVectorsOfADevice:
    def test_in_the_order_of_the_device_whatever_their_numbers(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.vectors(VF, [62, 60, 61])
        found = interrupts.of_devices(pci.root, [Device(VF)])
        assert [(vector.index, vector.number) for vector in found] == [(0, 62), (1, 60), (2, 61)]
        assert {vector.affinity for vector in found} == {"0-15"}

    @pytest.mark.parametrize("kind", ["msi", "msix"])
    def test_msi_and_msix(self, pci: PciMachine, kind: str) -> None:
        pci.device(VF)
        pci.vectors(VF, [60], kind=kind)
        assert [vector.number for vector in interrupts.of_devices(pci.root, [Device(VF)])] == [60]

    def test_a_legacy_line_shared_with_a_host_driver(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.write(f"sys/bus/pci/devices/{VF}/irq", "19")
        pci.interrupt(19, f"vfio-intx({VF})", "uhci_hcd:usb5")
        (found,) = interrupts.of_devices(pci.root, [Device(VF)])
        assert (found.number, found.names) == (19, (f"vfio-intx({VF})",))

    def test_a_legacy_line_that_two_passed_through_devices_share(self, pci: PciMachine) -> None:
        other = "0000:03:00.0"
        for address in (VF, other):
            pci.device(address)
            pci.write(f"sys/bus/pci/devices/{address}/irq", "19")
        pci.interrupt(19, f"vfio-intx({VF})", f"vfio-intx({other})")
        found = interrupts.of_devices(pci.root, [Device(other)])
        assert [(vector.number, vector.device) for vector in found] == [(19, other)]

    def test_none_before_the_guests_driver_has_enabled_them(self, pci: PciMachine) -> None:
        pci.device(VF)
        assert interrupts.of_devices(pci.root, [Device(VF)]) == ()

    def test_allocated_but_not_yet_requested_ones_wait(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.vectors(VF, [60])
        pci.write(f"sys/bus/pci/devices/{VF}/msi_irqs/61", "msix")
        assert [vector.number for vector in interrupts.of_devices(pci.root, [Device(VF)])] == [60]

    def test_those_of_a_host_driver_are_left_alone(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.write(f"sys/bus/pci/devices/{VF}/msi_irqs/60", "msix")
        pci.interrupt(60, "iavf-ens1-TxRx-0")
        assert interrupts.of_devices(pci.root, [Device(VF)]) == ()

    def test_those_of_a_mediated_devices_parent_are_left_alone(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.vectors(VF, [60])
        assert interrupts.of_devices(pci.root, [Device(VF, mdev="a-uuid")]) == ()

    def test_the_table_serves_where_sysfs_does_not_list_them(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.interrupt(60)
        pci.interrupt(61)
        lines = [f" {60 + at}: 1 2 3 PCI-MSIX-{VF} {at}-edge vfio-msix[{at}]({VF})" for at in (1, 0)]
        pci.write("proc/interrupts", HEADER + "\n".join(lines))
        found = interrupts.of_devices(pci.root, [Device(VF)])
        assert [(vector.index, vector.number) for vector in found] == [(0, 60), (1, 61)]

    def test_257_vectors_of_one_function(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.vectors(VF, range(1000, 1257))
        found = interrupts.of_devices(pci.root, [Device(VF)])
        assert [vector.index for vector in found] == list(range(257))

    def test_without_devices_nothing_is_read(self) -> None:
        class Untouchable(Root):
            def read_bytes(self, relative: str) -> bytes | None:
                raise AssertionError(relative)

        assert interrupts.of_devices(Untouchable("/nowhere"), ()) == ()


class TestTheKnob:
    def test_its_key_finds_it_again(self, pci: PciMachine) -> None:
        pci.interrupt(60, f"vfio-msix[0]({VF})")
        knob = InterruptAffinity(60, interrupts.identity([f"vfio-msix[0]({VF})"]))
        assert from_key(knob.key) == knob
        assert from_key(knob.key).read(pci.root) == "0-15"

    def test_a_number_that_another_device_got_is_gone(self, pci: PciMachine) -> None:
        pci.interrupt(60, f"vfio-msix[0]({VF})")
        knob = InterruptAffinity(60, f"vfio-msix[0]({VF})")
        knob.write(pci.root, "4")
        (pci.base / f"proc/irq/60/vfio-msix[0]({VF})").rename(pci.base / "proc/irq/60/nvme0q1")
        with pytest.raises(Gone):
            knob.read(pci.root)
        with pytest.raises(Gone):
            knob.write(pci.root, "0-15")
        assert pci.affinities(60) == ["4"]

    def test_names_with_commas_and_blanks_make_a_key_too(self, pci: PciMachine) -> None:
        pci.interrupt(24, "PCIe PME", "a,b c")
        (found,) = interrupts.of_host(pci.root)
        knob = from_key(InterruptAffinity(found.number, found.identity).key)
        assert knob.read(pci.root) == "0-15"

    def test_the_default_mask_is_put_back_as_it_was_written(self, pci: PciMachine) -> None:
        pci.write("proc/irq/default_smp_affinity", "00000000,0000ffff")
        knob = from_key(DefaultAffinity().key)
        before = knob.read(pci.root)
        knob.write(pci.root, "f0f")
        assert knob.same("00000f0f", knob.read(pci.root))
        knob.write(pci.root, before)
        assert pci.text("proc/irq/default_smp_affinity") == "00000000,0000ffff\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestThisMachine:
    """The running kernel's own /proc/irq."""

    @pytest.fixture
    def root(self) -> Root:
        return Root()

    @pytest.fixture
    def idle(self, root: Root) -> Iterator[tuple[interrupts.Interrupt, frozenset[int]]]:
        """An interrupt that the kernel lets us move; put back whatever happens."""
        cpus = os.sched_getaffinity(0)
        if len(cpus) < 2:
            pytest.skip("needs two CPUs")
        for found in interrupts.of_host(root):
            path = root.path(f"proc/irq/{found.number}/smp_affinity_list")
            try:
                Path(path).write_text(found.affinity)
            except OSError:
                continue
            yield found, frozenset(cpus)
            Path(path).write_text(found.affinity)
            return
        pytest.skip("no interrupt here may be moved")

    def test_directories_and_table_tell_the_same(self, root: Root) -> None:
        rows = interrupts.parse(root.read("proc/interrupts") or "").rows
        table = {row.number: sorted(row.actions) for row in rows if row.actions}
        if not table:
            pytest.skip("this machine shows no device interrupts")
        assert {found.number: sorted(found.names) for found in interrupts.of_host(root)} == table

    def test_a_table_longer_than_a_page_is_read_whole(self, root: Root) -> None:
        """procfs hands out a few lines at a time."""
        for table in ("proc/interrupts", "proc/self/smaps", "proc/kallsyms"):
            data = root.read_bytes(table)
            assert data is not None
            assert data.count(b"\n") == pytest.approx(Path(f"/{table}").read_bytes().count(b"\n"), rel=0.1)

    def test_an_interrupt_moves_and_moves_back(
        self, root: Root, idle: tuple[interrupts.Interrupt, frozenset[int]]
    ) -> None:
        found, cpus = idle
        knob = InterruptAffinity(found.number, found.identity)
        original = knob.original(root)
        for cpu in sorted(cpus)[:2]:
            knob.write(root, str(cpu))
            assert knob.same(knob.read(root), str(cpu))
            assert Path(f"/proc/irq/{found.number}/smp_affinity_list").read_text().strip() == str(cpu)
        knob.write(root, original)
        assert knob.read(root) == found.affinity

    def test_a_managed_interrupt_refuses_and_says_so(self, root: Root) -> None:
        for found in interrupts.of_host(root):
            knob = InterruptAffinity(found.number, found.identity)
            try:
                knob.write(root, found.affinity)
            except OSError as error:
                assert error.strerror
                return
        pytest.skip("no managed interrupt here")

    def test_a_cpu_that_does_not_exist_is_refused(
        self, root: Root, idle: tuple[interrupts.Interrupt, frozenset[int]]
    ) -> None:
        found, _cpus = idle
        with pytest.raises(OSError):
            InterruptAffinity(found.number, found.identity).write(root, "4000")
