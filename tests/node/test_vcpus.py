"""How many vCPUs a VM has: what `args` makes of them, and what QEMU really runs."""

import pytest

from pxsched.guest import config
from pxsched.guest.arguments import Smp
from pxsched.guest.config import Machine
from pxsched.node import wishes
from pxsched.placement import bindings
from pxsched.placement.machine import machine_of
from pxsched.placement.request import VmClass
from pxsched.settings.policy import Policy
from tests.placement.machines import machine

SMT = "-smp 8,sockets=1,cores=4,threads=2,maxcpus=8"


@pytest.mark.parametrize(
    "text, vcpus, vm_class",
    [
        (f"cores: 4\naffinity: 0-7\nargs: {SMT}", 8, "pinned"),
        (f"cores: 4\naffinity: 8-11\nargs: {SMT}", 8, "constrained"),
        (f"cores: 4\nargs: {SMT}", 8, "shared"),
        ("cores: 6\naffinity: 0-2\nargs: -smp cpus=3", 3, "pinned"),
        ("cores: 2\naffinity: 0-1\nargs: -smp '2,maxcpus=8' -smp cores=8", 2, "pinned"),
        ("sockets: 2\ncores: 2\nargs: -machine smp.threads=2,smp.cores=1", 4, "shared"),
    ],
)  # fmt: skip
def test_args_says_how_many_vcpus_there_are(small, text, vcpus, vm_class):
    small.vm(101, text, vcpus=vcpus)
    plan = small.plan(101)
    assert (len(plan["vcpus"]), plan["class"]) == (vcpus, vm_class)


def test_a_dedicated_vm_gets_a_cpu_for_every_vcpu_that_args_adds(small):
    small.settings('[node]\nhousekeeping = ""\n[vm.101]\nclass = "dedicated"\n')
    small.vm(101, f"cores: 4\nargs: {SMT}", vcpus=8)
    cpus = small.cpus(101)
    assert len(set(cpus)) == 8 and all(cpu.isdecimal() for cpu in cpus)


def test_more_vcpus_than_fit_are_refused_and_not_laid_over_each_other(small):
    small.settings('[node]\nhousekeeping = ""\n[vm.101]\nclass = "dedicated"\n')
    small.vm(101, "cores: 4\nargs: -smp 16,maxcpus=16,cores=8,threads=2")
    assert "16" in small.run("plan", "101") and '"vcpus"' not in small.run("plan", "101", "--json")


def test_where_qemu_runs_more_vcpus_than_the_configuration_says_qemu_is_right(small):
    small.vm(100, "cores: 4\naffinity: 8-11", vcpus=6)
    plan = small.plan(100)
    assert (plan["class"], len(plan["vcpus"])) == ("constrained", 6)
    assert {vcpu["cpus"] for vcpu in plan["vcpus"]} == {"8-11"}, "none floats over the others' pins"


def test_where_qemu_runs_fewer_the_others_may_still_be_plugged_in(small):
    small.vm(100, "cores: 4\naffinity: 8-11", vcpus=2)
    assert small.cpus(100) == ["8", "9", "10", "11"]


def test_the_guests_topology_is_the_one_that_args_describes():
    machine = Machine(cores=4, vcpus=8, smp=Smp(8, 8, sockets=2, cores=2, threads=2))
    wish = wishes.request(100, machine, Policy())
    assert (wish.vcpus, wish.sockets, wish.cores, wish.vm_class) == (8, 2, 4, VmClass.SHARED)
    surplus = wishes.request(100, Machine(cores=4, vcpus=4), Policy(), running_vcpus=6)
    assert (surplus.vcpus, surplus.sockets * surplus.cores) == (6, 6)


def test_a_guest_socket_in_huge_pages_is_named_as_what_it_is():
    """Proxmox binds guest socket i to host node i, though no `numaN` says so."""
    text = "sockets: 3\ncores: 2\nnuma: 1\nhugepages: 2\nmemory: 6144"
    wish = wishes.request(100, config.machine(config.parse(text)), Policy())
    (said,) = bindings.missing(machine_of(machine(nodes=2)), wish)
    assert said.startswith("guest socket 2 (huge pages) binds memory to node 2, which this machine does not")
