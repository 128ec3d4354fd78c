"""What vCPU, vhost and emulator threads are told, by policy; and what VMs that share CPUs have in common."""

import pytest

from pxsched.guest.process import Role, Thread
from pxsched.placement.request import VmClass
from pxsched.plugins import emulator, isolation, latency, vcpu
from pxsched.settings.policy import EmulatorPlace, Isolation, NodeSettings
from pxsched.value import replace

VHOST, IO = Thread(30, 1, "vhost-9", Role.VHOST), Thread(31, 1, "IO x", Role.EMULATOR)


def test_vcpus_get_their_own_cpus_and_nobody_else_does(views):
    vm = views.vm(views.claim(100, "2-3"), threads=(*views.threads(10, 11), IO))
    assert views.wants(vcpu.of_vm(vm, views.host())) == {"affinity:10,1": "2", "affinity:11,1": "3"}


def test_where_the_policy_says_no_vcpus_are_left_alone(views):
    vm = views.vm(views.claim(100, "2-3", vcpu=False), threads=views.threads(10, 11))
    assert views.wants(vcpu.of_vm(vm, views.host())) == {}


def test_a_cpu_that_is_offline_is_asked_of_nobody(views):
    host = views.host()
    host = replace(host, topology=replace(host.topology, cpus={
        number: replace(cpu, online=number != 3) for number, cpu in host.topology.cpus.items()
    }))  # fmt: skip
    vm = views.vm(views.claim(100, "2-3"), threads=views.threads(10, 11))
    assert views.wants(vcpu.of_vm(vm, host)) == {"affinity:10,1": "2"}


@pytest.mark.parametrize(
    ("places", "want"),
    [
        ({}, {"affinity:30,1": "0", "affinity:31,1": "0"}),
        ({"vhost": EmulatorPlace.VM}, {"affinity:30,1": "2-3", "affinity:31,1": "0"}),
        ({"emulator": EmulatorPlace.VM}, {"affinity:30,1": "0", "affinity:31,1": "2-3"}),
        ({"emulator": EmulatorPlace.OFF}, {"affinity:30,1": "0"}),
        ({"vhost": EmulatorPlace.OFF}, {"affinity:31,1": "0"}),
    ],
)
def test_vhost_and_emulator_threads_each_follow_their_setting(views, places, want):
    vm = views.vm(views.claim(100, "2-3", **places), threads=(VHOST, IO))
    assert views.wants(emulator.of_vm(vm, views.host())) == want


@pytest.mark.parametrize("bounds_us", [(10, 50), (50, 10)])
def test_of_two_bounds_for_one_cpu_the_stricter_counts(views, bounds_us):
    claims = [
        views.claim(100 + number, "2", VmClass.PINNED, resume_latency_us=bound_us)
        for number, bound_us in enumerate(bounds_us)
    ]
    assert views.wants(latency.of_node(views.host(*claims))) == {"resume-latency:2": "10"}


@pytest.mark.parametrize("vm_class", VmClass)
def test_only_dedicated_vms_get_a_partition(views, vm_class):
    claim = views.claim(100, "2-3", vm_class)
    host = views.host(claim, settings=NodeSettings(isolation=Isolation.PARTITION))
    want = {"partition:100": "2-3"} if vm_class is VmClass.DEDICATED else {}
    assert views.wants(isolation.of_vm(views.vm(claim), host)) == want
