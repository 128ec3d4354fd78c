"""CPUs that a VM's cgroup cannot have are no candidates, and whoever fenced them off is named."""

import pytest

from pxsched.guest.process import Process
from pxsched.host import cpulist
from pxsched.knobs.scope import DropIn, Partition
from pxsched.ledger import file as ledgers
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import Entry
from pxsched.node import fences, sighting
from pxsched.node.fences import Fence

CGROUP = "sys/fs/cgroup"
NODE_1 = "3-5,9-11"


def fence(small, cpus: str, group: str = "qemu.slice", *, configured: bool = True) -> None:
    small.put(f"{CGROUP}/{group}/cpuset.cpus.effective", cpus)
    small.put(f"{CGROUP}/{group}/cpuset.cpus", cpus if configured else "")


def of_vm(small, vmid: int = 100, ledger: Ledger | None = None, *, runs: bool = True) -> Fence | None:
    node = sighting.open_node(small.root, {})
    process = Process(vmid * 100, 100) if runs else None
    return fences.of_vm(node, ledger or ledgers.peek(small.root), vmid, process)


@pytest.mark.parametrize(
    "text", ["cores: 4", "cores: 1", "cores: 4\naffinity: 0-3", "cores: 6\naffinity: 0-11"]
)
@pytest.mark.parametrize("settings", ["", '[vm.100]\nclass = "dedicated"'])
@pytest.mark.parametrize("inside", [NODE_1, "4-5,10-11", "2-5,8-11"])
def test_no_vcpu_is_placed_outside_the_fence_around_all_vms(small, text, settings, inside):
    small.settings(settings)
    fence(small, inside)
    small.vm(100, text)
    said = small.run("plan", "100")
    if "vCPU 0" not in said:
        assert "AllowedCPUs of qemu.slice" in said, "a refusal names the fence"
        return
    plan = small.plan(100)
    cpus = frozenset().union(*(cpulist.parse(vcpu["cpus"]) for vcpu in plan["vcpus"]))
    pinned = plan["class"] == "pinned"
    assert pinned or cpus <= cpulist.parse(inside)
    if plan["class"] in ("pinned", "constrained"):
        assert "AllowedCPUs of qemu.slice" in said, "what the admin listed and cannot have is said"


def test_a_scope_of_its_own_may_be_narrower_than_the_slice(small):
    small.vm(100, "cores: 2", vcpus=2)
    fence(small, "0-5")
    fence(small, "4-5", "qemu.slice/100.scope")
    assert of_vm(small) == Fence(frozenset((4, 5)), "AllowedCPUs of 100.scope")
    assert small.cpus(100) == ["4-5", "4-5"]
    assert of_vm(small, 101) == Fence(frozenset(range(6)), "AllowedCPUs of qemu.slice")
    assert of_vm(small, runs=False) == Fence(frozenset(range(6)), "AllowedCPUs of qemu.slice")


def test_a_scope_that_inherits_names_the_slice(small):
    fence(small, "0-5")
    fence(small, "0-5", "qemu.slice/100.scope", configured=False)
    assert of_vm(small) == Fence(frozenset(range(6)), "AllowedCPUs of qemu.slice")


def test_an_admins_partition_elsewhere_is_a_fence_for_vms(small):
    small.put(f"{CGROUP}/cpuset.cpus.effective", "0-7")
    small.put(f"{CGROUP}/rt.slice/cpuset.cpus.partition", "isolated")
    small.put(f"{CGROUP}/old.slice/cpuset.cpus.partition", "root invalid (no CPUs)")
    assert of_vm(small) == Fence(frozenset(range(8)), "the cpuset partition of rt.slice")


@pytest.mark.parametrize("cpus", ["0-11", "0-15"])
def test_a_group_that_may_use_all_cpus_is_no_fence(small, cpus):
    fence(small, cpus)
    assert of_vm(small) is None


def test_without_cpusets_there_is_no_fence(small):
    (small.base / f"{CGROUP}/cpuset.cpus.effective").unlink()
    assert of_vm(small) is None


def on_v1(small) -> None:
    (small.base / f"{CGROUP}/cgroup.controllers").unlink()
    (small.base / f"{CGROUP}/cpuset.cpus.effective").unlink()
    small.put(f"{CGROUP}/cpuset/cgroup.procs", "")
    small.put(f"{CGROUP}/cpuset/cpuset.effective_cpus", "0-11")


def test_on_cgroup_v1_a_running_vm_has_the_set_it_was_started_in(small):
    on_v1(small)
    small.vm(100, "cores: 2", vcpus=2)
    small.put("proc/10000/cpuset", "/user/vms")
    small.put(f"{CGROUP}/cpuset/user/vms/cpuset.effective_cpus", "4-5,10")
    assert of_vm(small) == Fence(frozenset((4, 5, 10)), "the cpuset /user/vms")
    assert frozenset().union(*map(cpulist.parse, small.cpus(100))) <= {4, 5, 10}
    assert of_vm(small, runs=False) is None, "in which set it will be is not known"


@pytest.mark.parametrize("group", ["/", "/user/gone", "/../elsewhere"])
def test_on_cgroup_v1_no_set_is_made_up(small, group):
    on_v1(small)
    small.put("proc/10000/cpuset", group)
    assert of_vm(small) is None
    (small.base / "proc/10000/cpuset").unlink()
    assert of_vm(small) is None


@pytest.mark.parametrize("knob", [DropIn(100), Partition(100)])
def test_what_we_confine_a_vm_to_ourselves_is_no_fence(small, knob):
    fence(small, "2-3", "qemu.slice/100.scope")
    assert of_vm(small) == Fence(frozenset((2, 3)), "AllowedCPUs of 100.scope")
    with ledgers.locked(small.root) as ledger:
        ledger.journal[knob.key] = Entry(100, "test", "", "2-3", 1)
        assert of_vm(small, ledger=ledger) is None


def test_what_partitions_of_ours_take_from_the_others_is_no_fence(small):
    small.settings('[node]\nisolation = "partition"\n')
    fence(small, "0-3,6-11", configured=False)
    with ledgers.locked(small.root) as ledger:
        ledger.journal[Partition(200).key] = Entry(200, "isolation", "", "4-5", 1)
        assert of_vm(small, ledger=ledger) is None
        ledger.journal[Partition(200).key] = Entry(200, "isolation", "", "4", 1)
        assert of_vm(small, ledger=ledger).cpus == frozenset(range(12)) - {5}


def test_a_fence_that_comes_or_goes_makes_a_vm_look_for_another_home(small):
    small.vm(100, "cores: 2", vcpus=2)
    small.run("tick")
    before = {cpu for vcpu in ledgers.peek(small.root).claims[100].placement.vcpus for cpu in vcpu}
    outside = NODE_1 if before <= cpulist.parse("0-2,6-8") else "0-2,6-8"
    fence(small, outside)
    small.run("tick")
    assert ledgers.peek(small.root).claims[100].placement.cpus <= cpulist.parse(outside)
    (small.base / f"{CGROUP}/qemu.slice/cpuset.cpus.effective").unlink()
    placed = ledgers.peek(small.root).claims[100].placement
    small.run("tick")
    assert ledgers.peek(small.root).claims[100].placement.cpus == placed.cpus, (
        "and stays where nothing drives it"
    )
