"""VMs inside the CPUs that an admin lets their slice, or one scope, have: real systemd, the real kernel."""

from collections.abc import Callable, Iterator

import pytest

from lab.node import Node
from lab.product import HOOK, Product

Fence = Callable[[str, set[int]], None]


@pytest.fixture
def fence(node: Node, product: Product) -> Iterator[Fence]:
    def around(unit: str, cpus: set[int]) -> None:
        allowed = ",".join(map(str, sorted(cpus)))
        node.run("systemctl", "set-property", "--runtime", unit, f"AllowedCPUs={allowed}").check()

    yield around
    node.clear_guests()
    node.run("systemctl", "revert", "qemu.slice").check()
    node.run("systemctl", "stop", "qemu.slice").check()


def masks(product: Product, vmid: int) -> set[int]:
    """The CPUs that any thread of the guest may use."""
    cpus = set[int]().union(*product.node.vcpu_masks(vmid).values())
    return cpus.union(*(thread.cpus for thread in product.others(vmid)))


def test_vms_live_inside_the_fence_of_their_slice(node: Node, product: Product, fence: Fence) -> None:
    first, second = {4, 5, 6, 7}, {8, 9, 10, 11}
    product.configure('[node]\nhousekeeping = "0"\n[vm.101]\nclass = "dedicated"\n')
    fence("qemu.slice", first)
    for vmid in (100, 101):
        node.rom_guest(vmid, cores=2, hookscript=HOOK)
        started = node.qm("start", str(vmid)).check()
        assert "refused" not in started.out and "the kernel made it" not in started.out
        assert masks(product, vmid) <= first
    assert {len(cpus) for cpus in node.vcpu_masks(101).values()} == {1}
    assert "AllowedCPUs of qemu.slice lets it have" in product.run("plan", "101").check().out
    product.tick()
    assert product.tick().out == "", "a pass that changes nothing says nothing"

    fence("qemu.slice", second)
    product.tick()
    assert masks(product, 100) <= second and masks(product, 101) <= second
    assert product.tick().out == ""

    fence("qemu.slice", set(range(16)))
    product.tick()
    assert product.tick().out == ""
    assert "AllowedCPUs" not in product.run("plan", "101").check().out


def test_a_pin_that_the_fence_forbids_is_said_once_and_not_tried_for_ever(
    node: Node, product: Product, fence: Fence
) -> None:
    node.rom_guest(100, cores=2, affinity="2,5", hookscript=HOOK)
    node.qm("start", "100").check()
    assert product.vcpus(100) == {0: "2", 1: "5"}
    fence("100.scope", {4, 5, 6, 7})
    said = product.tick().out
    assert "none of these CPUs is online and one that the thread's cgroup may use" in said
    assert product.vcpus(100)[1] == "5"
    assert product.tick().out == ""
    knobs = {knob["knob"]: knob for knob in product.json("status", "100")["knobs"]}
    assert [knob["drifts"] for knob in knobs.values()] == [0] * len(knobs)
    assert "outside of what AllowedCPUs of 100.scope" in product.run("plan", "100").check().out
