"""vCPU threads get the CPUs of their places, also where their indexes are not those of the placement."""

import pytest

from pxsched.guest.process import Role, Thread
from pxsched.placement.request import VmClass
from pxsched.plugins import registry, vcpu
from pxsched.value import Memo, replace


def threads(*indexes: int) -> tuple[Thread, ...]:
    return tuple(
        Thread(10 + i, 1, f"CPU {index}/KVM", Role.VCPU, (index,)) for i, index in enumerate(indexes)
    )


def wants(views, claim, found) -> list[str]:
    vm = views.vm(claim, threads=found)
    return [setting.want for setting in vcpu.of_vm(vm, views.host(claim))]


@pytest.mark.parametrize("vm_class", [VmClass.PINNED, VmClass.DEDICATED])
def test_a_thread_beyond_the_placement_runs_with_the_emulator_and_not_over_pins(views, vm_class):
    claim = views.claim(100, "4,5", vm_class)
    assert wants(views, claim, threads(0, 1, 2, 3)) == ["4", "5", "0", "0"]


def test_a_thread_beyond_a_home_stays_in_the_home(views):
    claim = views.claim(100, "4-5", VmClass.SHARED)
    assert wants(views, claim, threads(0, 1, 2)) == ["4-5", "4-5", "4-5"]


def test_indexes_with_gaps_take_the_places_that_nobody_has(views):
    claim = views.claim(100, "4,5,6,7")
    assert wants(views, claim, threads(0, 1, 4, 5)) == ["4", "5", "6", "7"]
    assert wants(views, claim, threads(0, 5, 4)) == ["4", "6", "5"]


def test_a_vcpu_that_is_not_there_yet_keeps_its_place(views):
    claim = views.claim(100, "4,5,6")
    assert wants(views, claim, threads(0, 2)) == ["4", "6"]


def test_one_thread_that_runs_all_vcpus_has_all_their_places(views):
    claim = views.claim(100, "4,5")
    everything = (Thread(10, 1, "CPU 0/TCG", Role.VCPU, (0, 1, 2)),)
    assert wants(views, claim, everything) == ["0,4-5"]


def test_no_thread_is_left_without_cpus_where_the_emulator_has_none(views):
    claim = views.claim(100, "4,5")
    claim = replace(claim, placement=replace(claim.placement, emulator=frozenset()))
    assert wants(views, claim, threads(0, 1, 2)) == ["4", "5", "4-5"]


def test_what_is_wanted_for_threads_follows_all_that_it_depends_on(views):
    claim, memo = views.claim(100, "4,5"), Memo()

    def wanted(claim=claim, found=threads(0, 1), **fields):
        host = replace(views.host(claim), **fields)
        return [setting.want for setting in registry.of_vm(views.vm(claim, threads=found), host, memo)]

    assert wanted() == wanted() == ["4", "5"]
    fewer = replace(topology := views.host(claim).topology, cpus={n: topology.cpus[n] for n in range(5)})
    assert wanted(topology=fewer) == ["4"]  # CPU 5 went offline
    assert wanted() == ["4", "5"]
    assert wanted(found=threads(1, 0)) == ["5", "4"]
    moved = replace(claim, placement=replace(claim.placement, vcpus=(frozenset((6,)), frozenset((7,)))))
    assert wanted(moved) == ["6", "7"]
    assert wanted(replace(claim, policy=replace(claim.policy, vcpu=False))) == []


def test_what_is_wanted_for_threads_is_not_asked_again_where_all_is_as_it_was(views, monkeypatch):
    claim, memo = views.claim(100, "4,5"), Memo()
    vm, host = views.vm(claim, threads=threads(0, 1)), views.host(claim)
    first = list(registry.of_vm(vm, host, memo))
    monkeypatch.setattr(vcpu, "of_vm", None)
    assert list(registry.of_vm(replace(vm), replace(host), memo)) == first != []
