"""What vCPU, vhost and emulator threads are told, by policy."""

import pytest

from pxsched.guest.process import Role, Thread
from pxsched.plugins import emulator, vcpu
from pxsched.settings.policy import EmulatorPlace
from pxsched.value import replace

VHOST, IO = Thread(30, 1, "vhost-9", Role.VHOST), Thread(31, 1, "IO x", Role.IOTHREAD)


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
