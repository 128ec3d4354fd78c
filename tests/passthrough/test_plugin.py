"""Where a VM's interrupts belong, when to look again, what is said; and the whole way through the journal."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched.guest.config import Machine
from pxsched.host import cpulist, interrupts
from pxsched.host.devices import Device
from pxsched.host.interrupts import Interrupt
from pxsched.host.irqbalance import Daemon, Running, Setup
from pxsched.host.links import Tap
from pxsched.knobs import file
from pxsched.ledger import file as ledgers
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import NODE
from pxsched.node.reconcile import reconcile
from pxsched.node.turns import Report
from pxsched.placement.request import VmClass
from pxsched.plugins import interrupts as plugin
from pxsched.plugins import nic
from pxsched.plugins.view import HostView, VmView
from pxsched.root import Root
from pxsched.settings.policy import NodeSettings, Policy
from pxsched.value import replace

from .conftest import PciMachine, topology, view

VF, GPU = "0000:17:02.0", "0000:01:00.0"
HOST = HostView(topology())
DAEMON = Daemon(7, 70, "run/irqbalance/irqbalance7.sock")


def vectors(device: str, count: int, *, first: int = 60) -> tuple[Interrupt, ...]:
    return tuple(
        Interrupt(first + at, (f"vfio-msix[{at}]({device})",), device, at, "0-15", "0") for at in range(count)
    )


def equipped(vm: VmView, *devices: Device, found: tuple[Interrupt, ...] = ()) -> VmView:
    return replace(vm, devices=devices, interrupts=found)


def wanted(vm: VmView, host: HostView = HOST) -> dict[str, str]:
    return {setting.knob.key: setting.want for setting in plugin.of_vm(vm, host)}


def places(vm: VmView, host: HostView = HOST) -> list[str]:
    return [want for key, want in wanted(vm, host).items() if key.startswith("irq:")]


class TestPlaces:
    def test_each_vector_goes_to_one_vcpu_in_turn(self) -> None:
        vm = equipped(view(cpus=("4", "5", "6", "7")), Device(VF), found=vectors(VF, 6))
        assert places(vm) == ["4", "5", "6", "7", "4", "5"]

    def test_in_the_order_of_vcpus_not_of_cpus(self) -> None:
        vm = equipped(view(VmClass.PINNED, ("7", "4")), Device(VF), found=vectors(VF, 3))
        assert places(vm) == ["7", "4", "7"]

    def test_a_second_device_starts_at_the_second_vcpu(self) -> None:
        found = (*vectors(VF, 1), *vectors(GPU, 2, first=80))
        vm = equipped(view(cpus=("4", "5", "6", "7")), Device(VF), Device(GPU), found=found)
        assert places(vm) == ["4", "5", "6"]

    def test_a_late_vector_does_not_move_the_others(self) -> None:
        few = (*vectors(VF, 1), *vectors(GPU, 2, first=80))
        more = (*vectors(VF, 3), *vectors(GPU, 2, first=80))
        vm = view(cpus=("4", "5", "6", "7"))
        before = wanted(equipped(vm, Device(VF), Device(GPU), found=few))
        after = wanted(equipped(vm, Device(VF), Device(GPU), found=more))
        assert before.items() <= after.items()

    def test_of_a_shared_vm_to_its_home(self) -> None:
        vm = equipped(view(VmClass.SHARED, ("0-7", "0-7")), Device(VF), found=vectors(VF, 3))
        assert places(vm) == ["0-7", "0-7", "0-7"]

    def test_never_to_a_cpu_that_is_offline(self) -> None:
        vm = equipped(view(cpus=("4", "5")), Device(VF), found=vectors(VF, 2))
        assert places(vm, HostView(topology("0-4,6-15"))) == ["4"]

    def test_switched_off_by_the_policy(self) -> None:
        vm = equipped(view(policy=Policy(interrupts=False)), Device(VF), found=vectors(VF, 2))
        host = replace(HOST, irqbalance=Running(DAEMON, Setup(10, (), "0")))
        assert wanted(vm, host) == {}
        assert not plugin.closer_look(vm, 0)

    def test_a_vm_without_devices_wants_nothing_even_of_irqbalance(self) -> None:
        host = replace(HOST, irqbalance=Running(DAEMON, Setup(10, (), "0")))
        assert wanted(view(), host) == {}


class TestIrqbalance:
    HOST = replace(HOST, irqbalance=Running(DAEMON, Setup(10, (3,), "0")))

    def test_loses_our_interrupts(self) -> None:
        vm = equipped(view(), Device(VF), found=vectors(VF, 2))
        keys = [key for key in wanted(vm, self.HOST) if key.startswith("irqbalance-irq:")]
        assert keys == ["irqbalance-irq:7,70,60", "irqbalance-irq:7,70,61"]

    def test_one_that_does_not_answer_is_not_believed_to_have_forgotten(self) -> None:
        vm = equipped(view(), Device(VF), found=vectors(VF, 2))
        silent = replace(HOST, irqbalance=Running(DAEMON, None))
        assert wanted(vm, silent) == wanted(vm, self.HOST)

    def test_too_many_vectors_are_said_not_forced(self) -> None:
        vm = equipped(view(), Device(VF), found=vectors(VF, 257, first=1000))
        bans = [key for key in wanted(vm, self.HOST) if key.startswith("irqbalance-irq:")]
        assert 90 < len(bans) < 100
        assert len(places(vm, self.HOST)) == 257
        (note,) = plugin.notes(vm, self.HOST)
        assert f"{257 - len(bans)} interrupts stay in irqbalance's hands" in note


class TestNotes:
    def test_an_interrupt_that_is_elsewhere_than_asked(self) -> None:
        at_home, astray = vectors(VF, 2)
        found = (replace(at_home, affinity="4", effective="4"), replace(astray, affinity="5", effective="9"))
        (note,) = plugin.notes(equipped(view(), Device(VF), found=found), HOST)
        assert "1 of 2 interrupts" in note
        assert "asked 5, is on 9" in note

    def test_nothing_when_all_is_well_or_the_kernel_does_not_say(self) -> None:
        first, second = vectors(VF, 2)
        found = (replace(first, affinity="4-5", effective="5"), replace(second, effective=""))
        assert list(plugin.notes(equipped(view(), Device(VF), found=found), HOST)) == []


class TestACloserLook:
    SECOND_NS = 10**9

    @pytest.mark.parametrize(
        ("age_s", "heard", "expected"),
        [(1, True, True), (59, True, True), (61, True, False), (61, False, True), (601, False, False)],
    )
    def test_in_the_first_minute_and_while_a_device_is_silent(
        self, age_s: int, heard: bool, expected: bool
    ) -> None:
        since_ns = 5 * self.SECOND_NS
        vm = equipped(view(since_ns=since_ns), Device(VF), found=vectors(VF, 1) if heard else ())
        assert plugin.closer_look(vm, since_ns + age_s * self.SECOND_NS) is expected

    def test_never_for_a_vm_without_devices_or_with_mediated_ones_only(self) -> None:
        assert not plugin.closer_look(view(), 0)
        assert not plugin.closer_look(equipped(view(), Device(VF, mdev="a-uuid")), 0)


class TestTheHostsOwn:
    """`device_interrupts`: other interrupts keep off dedicated CPUs."""

    def host(self, pci: PciMachine, *vms: VmView, ledger: Ledger | None = None, **more: object) -> HostView:
        entries = (ledger or Ledger()).journal
        return HostView(
            topology(),
            NodeSettings(device_interrupts=True),
            housekeeping=frozenset({0, 8}),
            claims={vm.vmid: vm.claim for vm in vms},
            originals={key: entry.original for key, entry in entries.items()},
            interrupts=interrupts.of_host(pci.root),
            default_irq_mask=pci.root.read("proc/irq/default_smp_affinity") or "",
            **more,  # type: ignore[arg-type]
        )

    def run(self, pci: PciMachine, *vms: VmView) -> Report:
        with ledgers.locked(pci.root) as ledger:
            settings = list(plugin.of_node(self.host(pci, *vms, ledger=ledger)))
            assert all(setting.owner == NODE for setting in settings)
            return reconcile(pci.root, ledger, settings, None)

    def test_leave_dedicated_cpus_and_come_back(self, pci: PciMachine) -> None:
        pci.interrupt(30, "nvme0q1", affinity="0-15")
        pci.interrupt(31, "eth0-TxRx-5", affinity="5")
        pci.interrupt(32, "eth0-TxRx-9", affinity="9")
        pci.interrupt(60, f"vfio-msix[0]({VF})", affinity="4")
        small, large = view(cpus=("4", "5"), vmid=100), view(cpus=("8", "9", "10"), vmid=101)
        self.run(pci, small)
        assert pci.affinities(30, 31, 32, 60) == ["0-3,6-15", "0,8", "9", "4"]
        assert pci.text("proc/irq/default_smp_affinity") == "ffcf\n"
        self.run(pci, small, large)
        assert pci.affinities(30, 31, 32) == ["0-3,6-7,11-15", "0", "0"]
        self.run(pci, large)
        assert pci.affinities(30, 31, 32) == ["0-7,11-15", "5", "0"]
        self.run(pci)
        assert pci.affinities(30, 31, 32, 60) == ["0-15", "5", "9", "4"]
        assert pci.text("proc/irq/default_smp_affinity") == "ffff\n"

    def test_nothing_without_the_setting_or_dedicated_vms(self, pci: PciMachine) -> None:
        pci.interrupt(30, "nvme0q1")
        shared = view(VmClass.SHARED, ("4-5",))
        assert list(plugin.of_node(self.host(pci, shared))) == []
        off = replace(self.host(pci, view()), node=NodeSettings())
        assert list(plugin.of_node(off)) == []

    def test_never_leave_them_without_a_cpu(self, pci: PciMachine) -> None:
        pci.interrupt(30, "nvme0q1")
        everything = view(cpus=tuple(str(cpu) for cpu in range(16)))
        assert list(plugin.of_node(self.host(pci, everything))) == []

    @pytest.mark.parametrize(
        "affinity, default, wanted, mask",
        [
            ("4,14", "ffff", "0,8", "ffef"),  # of its CPUs only an offline one would be left
            ("4,12-15", "f010", "0,8", "101"),
            ("3-4,14", "4010", "3,14", "101"),
            ("4", "0010", "0,8", "101"),
        ],
    )
    def test_the_cpus_asked_for_contain_an_online_one(
        self, pci: PciMachine, affinity: str, default: str, wanted: str, mask: str
    ) -> None:
        pci.interrupt(30, "nvme0q1", affinity=affinity)
        pci.write("proc/irq/default_smp_affinity", default)
        host = self.host(pci, view(cpus=("4",)))
        cpus = {number: replace(cpu, online=number < 12) for number, cpu in host.topology.cpus.items()}
        host = replace(host, topology=replace(host.topology, cpus=cpus))
        asked = {setting.knob.key: setting.want for setting in plugin.of_node(host)}
        assert asked == {"irq:30,nvme0q1": wanted, "irq-default:": mask}

    @given(data=st.data())
    def test_whatever_is_offline_every_mask_has_an_online_cpu_and_no_dedicated_one(self, data) -> None:
        some = st.frozensets(st.integers(0, 15), min_size=1)
        online, own, asked, before = (data.draw(some) for _ in range(4))
        vm = replace(
            view(cpus=tuple(str(cpu) for cpu in sorted(own)), emulator=cpulist.format(data.draw(some))),
            devices=(Device(VF),),
            interrupts=vectors(VF, 3),
            taps=(Tap("tap100i0", 17, ("rx-0", "tx-0")),),
        )
        banned = cpulist.format_mask(data.draw(some))
        host = HostView(
            topology(cpulist.format(online)),
            NodeSettings(device_interrupts=True),
            housekeeping=data.draw(some),
            claims={100: vm.claim},
            originals=data.draw(st.sampled_from([{}, {"irq:30,nvme0q1": cpulist.format(before)}])),
            interrupts=(Interrupt(30, ("nvme0q1",), affinity=cpulist.format(asked)),),
            default_irq_mask=cpulist.format_mask(asked),
            irqbalance=data.draw(st.sampled_from([None, Running(DAEMON, Setup(10, (), banned))])),
        )
        for setting in (*plugin.of_vm(vm, host), *plugin.of_node(host), *nic.of_vm(vm, host)):
            key = setting.knob.key
            if key.startswith("irqbalance-cpus"):
                assert online - cpulist.parse_mask(setting.want)
            elif not key.startswith("irqbalance"):
                read = cpulist.parse if key.startswith("irq:") else cpulist.parse_mask
                assert read(setting.want) & online, key
                assert setting.owner != NODE or not read(setting.want) & own, key

    def test_an_interrupt_that_irqbalance_left_on_offline_cpus_is_placed(self, pci: PciMachine) -> None:
        pci.interrupt(30, "nvme0q1", affinity="14")
        running = Running(DAEMON, Setup(10, (), "00000001"))
        host = self.host(pci, view(cpus=("4",)), irqbalance=running)
        cpus = {number: replace(cpu, online=number < 12) for number, cpu in host.topology.cpus.items()}
        host = replace(host, topology=replace(host.topology, cpus=cpus), originals={"irq:30,nvme0q1": "4,14"})
        assert {s.knob.key: s.want for s in plugin.of_node(host)}["irq:30,nvme0q1"] == "0,8"

    def test_irqbalance_is_told_and_may_move_the_rest_as_it_likes(self, pci: PciMachine) -> None:
        pci.interrupt(30, "nvme0q1", affinity="0-15")
        running = Running(DAEMON, Setup(10, (), "00000001"))
        settings = {
            s.knob.key: s for s in plugin.of_node(self.host(pci, view(cpus=("4",)), irqbalance=running))
        }
        assert settings["irq:30,nvme0q1"].want == "0-3,5-15"
        assert cpulist.parse_mask(settings["irqbalance-cpus:7,70"].want) == {0, 4}
        originals = {"irq:30,nvme0q1": "0-15"}
        pci.write("proc/irq/30/smp_affinity_list", "2")
        host = replace(self.host(pci, view(cpus=("4",)), irqbalance=running), originals=originals)
        assert {s.knob.key: s.want for s in plugin.of_node(host)}["irq:30,nvme0q1"] == "2"


class TestTheWholeWay:
    """Devices and interrupts as they come and go, through reconcile and its journal."""

    VM = view(cpus=("4", "5", "6", "7"))

    def run(self, pci: PciMachine, *, alive: bool = True, vm: VmView = VM) -> Report:
        device = Device(VF)
        seen = replace(
            vm, machine=Machine(), devices=(device,), interrupts=interrupts.of_devices(pci.root, [device])
        )
        with ledgers.locked(pci.root) as ledger:
            return reconcile(pci.root, ledger, list(plugin.of_vm(seen, HOST)) if alive else [], None)

    def test_late_vectors_are_caught_by_a_later_pass(self, pci: PciMachine) -> None:
        pci.device(VF)
        assert self.run(pci).turned == []
        pci.vectors(VF, [60, 61])
        assert len(self.run(pci).turned) == 2
        pci.vectors(VF, [62], first=2)
        self.run(pci)
        assert pci.affinities(60, 61, 62) == ["4", "5", "6"]

    def test_a_guests_reboot_brings_them_back_to_their_places(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.vectors(VF, [60, 61])
        self.run(pci)
        pci.reset(VF)
        assert self.run(pci).failed == []
        pci.vectors(VF, [61, 70])
        report = self.run(pci)
        assert pci.affinities(61, 70) == ["4", "5"]
        assert report.failed == []

    def test_a_vanished_one_is_forgotten_without_a_word(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.vectors(VF, [60])
        self.run(pci)
        pci.reset(VF)
        report = self.run(pci, alive=False)
        assert (report.failed, report.restored) == ([], [])
        assert ledgers.peek(pci.root).journal == {}

    def test_a_number_that_went_to_the_host_is_left_as_it_is(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.vectors(VF, [60])
        self.run(pci)
        pci.reset(VF)
        pci.interrupt(60, "nvme0q1", affinity="3")
        self.run(pci, alive=False)
        assert pci.affinities(60) == ["3"]

    def test_a_device_that_outlives_its_vm_gets_its_affinities_back(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.vectors(VF, [60, 61])
        before = {path: path.read_bytes() for path in pci.base.rglob("proc/irq/*/smp_affinity_list")}
        self.run(pci)
        self.run(pci, alive=False)
        assert {path: path.read_bytes() for path in before} == before

    @pytest.mark.parametrize("code", [errno.EPERM, errno.EIO])
    def test_a_managed_one_is_noted_once_and_harms_nobody(
        self, pci: PciMachine, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        pci.device(VF)
        pci.vectors(VF, [60, 61])
        write = file.write

        def kernel(root: Root, path: str, value: str) -> None:
            if path == "proc/irq/60/smp_affinity_list":
                raise OSError(code, "managed")
            write(root, path, value)

        monkeypatch.setattr(file, "write", kernel)
        report = self.run(pci)
        assert pci.affinities(60, 61) == ["0-15", "5"]
        assert len(report.failed) == 1
        assert [entry.note != "" for entry in ledgers.peek(pci.root).journal.values()] == [True, False]
        assert self.run(pci).failed == []
        self.run(pci, alive=False)
        assert ledgers.peek(pci.root).journal == {}
        assert pci.affinities(60, 61) == ["0-15", "0-15"]

    def test_one_that_vanishes_under_the_write_is_no_fault(
        self, pci: PciMachine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pci.device(VF)
        pci.vectors(VF, [60])

        def kernel(root: Root, path: str, value: str) -> None:
            pci.reset(VF)
            raise OSError(errno.EIO, "gone")

        monkeypatch.setattr(file, "write", kernel)
        assert self.run(pci).failed == []
        assert ledgers.peek(pci.root).journal == {}

    def test_what_irqbalance_moved_is_moved_back_and_counted(self, pci: PciMachine) -> None:
        pci.device(VF)
        pci.vectors(VF, [60])
        self.run(pci)
        pci.write("proc/irq/60/smp_affinity_list", "2")
        (turn,) = self.run(pci).turned
        assert turn.drifted
        assert pci.affinities(60) == ["4"]
        assert [entry.drifts for entry in ledgers.peek(pci.root).journal.values()] == [1]
