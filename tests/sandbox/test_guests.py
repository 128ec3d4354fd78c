"""Guests do as they are told while they run, and show it on the host."""

import time
from pathlib import Path

import pytest

from pxsched.errors import UserError
from pxsched.guest.qmp import Qmp
from pxsched.root import Root
from pxsched.sandbox.sandbox import QmError

from .conftest import create, eventually

pytestmark = pytest.mark.measures


def wanted_ns(sandbox, vmid: int) -> dict[int, int]:
    """How long each vCPU's thread has run or waited for a CPU, however busy this machine is."""
    times = {}
    for vcpu, tid in sandbox.vcpus(vmid).items():
        ran_ns, waited_ns, _ = Path(f"/proc/{sandbox.pid(vmid)}/task/{tid}/schedstat").read_text().split()
        times[vcpu] = int(ran_ns) + int(waited_ns)
    return times


def busy(sandbox, vmid: int, *, seconds: float = 0.6) -> dict[int, float]:
    """The share of the time in which each vCPU's thread wants a CPU."""
    before, began_ns = wanted_ns(sandbox, vmid), time.monotonic_ns()
    time.sleep(seconds)
    after, took_ns = wanted_ns(sandbox, vmid), time.monotonic_ns() - began_ns
    return {vcpu: (after[vcpu] - before[vcpu]) / took_ns for vcpu in before}


def test_each_vcpu_of_a_rom_guest_burns_or_sleeps_by_itself(sandbox):
    create(sandbox, cores=3)
    sandbox.qm("start", 100)
    guest = sandbox.guest(100)
    guest.wait(timeout_s=10)
    assert max(busy(sandbox, 100).values()) < 0.05
    guest.load(1, 100)
    assert eventually(lambda: guest.rounds(1) > 1000)
    shares = busy(sandbox, 100)
    assert shares[1] > 0.8
    assert shares[0] < 0.05
    assert shares[2] < 0.05
    guest.load(1, 0)
    time.sleep(0.2)
    assert max(busy(sandbox, 100).values()) < 0.05
    guest.load(0, 100)
    assert eventually(lambda: guest.rounds(0) > 1000)
    assert guest.rounds(2) == 0


def test_a_rom_guest_with_sockets_finds_its_vcpus(sandbox):
    create(sandbox, sockets=2, cores=3)
    sandbox.qm("start", 100)
    guest = sandbox.guest(100)
    guest.wait(timeout_s=10)
    guest.load(3, 100)  # the first core of the second socket
    assert eventually(lambda: guest.rounds(3) > 1000)
    assert busy(sandbox, 100)[3] > 0.8


def test_a_rom_guest_knows_no_half_load(sandbox):
    create(sandbox)
    sandbox.qm("start", 100)
    with pytest.raises(UserError, match="0 or 100"):
        sandbox.guest(100).load(0, 50)


def test_vcpus_are_plugged_into_a_running_vm_and_inherit_its_mask(sandbox, recorder):
    create(sandbox, cores=4, vcpus=1, hotplug="cpu", affinity="0")
    sandbox.qm("start", 100)
    assert list(sandbox.vcpus(100)) == [0]
    sandbox.qm("set", 100, vcpus=3)
    assert list(sandbox.vcpus(100)) == [0, 1, 2]
    assert sandbox.masks(100) == ["0", "0", "0"]
    guest = sandbox.guest(100)
    guest.wait(timeout_s=10)
    guest.load(2, 100)
    assert eventually(lambda: guest.rounds(2) > 1000)
    assert recorder.phases == ["pre-start", "post-start"]
    assert "vcpus: 3" in sandbox.qm("config", 100).output
    with pytest.raises(QmError, match="maxcpus: 4"):
        sandbox.qm("set", 100, vcpus=5)


def test_without_cpu_in_hotplug_vcpus_wait_for_the_next_start(sandbox):
    create(sandbox, cores=2, vcpus=1)
    sandbox.qm("start", 100)
    sandbox.qm("set", 100, vcpus=2)
    assert list(sandbox.vcpus(100)) == [0]
    sandbox.qm("stop", 100)
    sandbox.qm("start", 100)
    assert list(sandbox.vcpus(100)) == [0, 1]


def test_a_vm_that_starts_with_hotplugged_vcpus_has_them_all(sandbox):
    create(sandbox, sockets=2, cores=2, vcpus=3, hotplug="disk,cpu")
    sandbox.qm("start", 100)
    assert list(sandbox.vcpus(100)) == [0, 1, 2]
    sandbox.guest(100).wait(timeout_s=10)


def test_guest_nodes_are_memory_backends_bound_as_written(sandbox):
    create(
        sandbox, cores=2, numa=1, memory=64,
        numa0="cpus=0,memory=32,hostnodes=0,policy=bind", numa1="cpus=1,memory=32",
    )  # fmt: skip
    sandbox.qm("start", 100)
    command = Path(f"/proc/{sandbox.pid(100)}/cmdline").read_text()
    assert "id=ram-node0,size=32M" in command
    assert ",host-nodes=0,policy=bind" in command
    assert "node,nodeid=1,cpus=1,memdev=ram-node1" in command
    sandbox.guest(100).wait(timeout_s=10)


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
class TestLinux:
    """The small Linux guest."""

    @pytest.fixture
    def guest(self, sandbox):
        create(sandbox, guest="linux", cores=2, vcpus=1, hotplug="cpu", memory=192, balloon=160)
        sandbox.qm("start", 100)
        guest = sandbox.guest(100)
        guest.wait()
        return guest

    def test_load_is_a_share_of_a_vcpu(self, sandbox, guest):
        guest.load(0, 40)
        time.sleep(1)
        assert 0.25 < busy(sandbox, 100, seconds=3)[0] < 0.65
        guest.load(0, 0)
        time.sleep(0.5)
        assert busy(sandbox, 100, seconds=1)[0] < 0.2

    def test_memory_is_held_and_given_back(self, guest):
        def available_mib() -> int:
            return int(guest.state()["memavailable_kib"]) >> 10

        before = available_mib()
        guest.hold(40)
        assert before - available_mib() == pytest.approx(40, abs=12)
        guest.hold(8)
        assert before - available_mib() == pytest.approx(8, abs=12)

    def test_vcpus_come_and_go(self, sandbox, guest):
        assert guest.state()["cpus"] == "0"
        sandbox.qm("set", 100, vcpus=2)
        assert eventually(lambda: guest.state()["cpus"] == "0-1", within_s=20)
        sandbox.qm("set", 100, vcpus=1)
        assert list(sandbox.vcpus(100)) == [0]

    def test_it_starts_at_its_minimum_and_says_how_much_is_free(self, sandbox, guest):
        def ask(command: str, **arguments: str) -> dict:
            with Qmp(Root(sandbox.root), 100, patience_s=5) as qmp:
                return qmp.execute(command, arguments)

        assert eventually(lambda: ask("query-balloon")["actual"] == 160 << 20, within_s=20)
        path = "machine/peripheral/balloon0"
        stats = ask("qom-get", path=path, property="guest-stats")["stats"]
        assert 0 < stats["stat-available-memory"] < 192 << 20

    def test_its_own_power_off_ends_the_vm_with_post_stop_only(self, sandbox, guest, recorder):
        guest.power_off()
        assert eventually(lambda: "post-stop" in recorder.phases, within_s=20)
        assert recorder.phases == ["pre-start", "post-start", "post-stop"]
        assert sandbox.pid(100) is None

    def test_the_power_button_shuts_it_down_and_a_reboot_starts_it_again(self, sandbox, guest, recorder):
        pid = sandbox.pid(100)
        sandbox.qm("reboot", 100, timeout=30)
        assert recorder.phases == [
            "pre-start", "post-start", "pre-stop", "post-stop", "pre-start", "post-start",
        ]  # fmt: skip
        assert sandbox.pid(100) != pid
        guest.wait()
        sandbox.qm("shutdown", 100, timeout=30)
        assert sandbox.pid(100) is None
