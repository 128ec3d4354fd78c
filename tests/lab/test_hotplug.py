"""vCPUs plugged into a running VM: no hook fires, the next pass of the timer finds them."""

from lab.node import Node
from lab.product import HOOK, Product


def test_a_plugged_vcpu_of_a_dedicated_vm_gets_a_cpu_within_one_tick(node: Node, product: Product) -> None:
    product.configure('[defaults]\nclass = "dedicated"\n')
    guest = node.rom_guest(100, cores=4, vcpus=2, hotplug="cpu", hookscript=HOOK)
    node.qm("start", "100").check()
    before = product.vcpus(100)
    node.qm("set", "100", "--vcpus", "4").check()
    guest.wait_started(4)
    product.tick()
    after = node.vcpu_masks(100)
    assert set(after) == {0, 1, 2, 3}
    assert all(len(cpus) == 1 for cpus in after.values())
    assert len(frozenset().union(*after.values())) == 4, "a CPU each"
    emulator = frozenset().union(*(thread.cpus for thread in product.others(100)))
    assert not emulator & frozenset().union(*after.values())
    assert set(before) == {0, 1}


def test_a_plugged_vcpu_of_a_shared_vm_lives_in_its_home(node: Node, product: Product) -> None:
    node.rom_guest(100, cores=4, vcpus=1, hotplug="cpu", hookscript=HOOK)
    node.qm("start", "100").check()
    node.qm("set", "100", "--vcpus", "3").check()
    # Somebody moved the main thread meanwhile, so that the new ones inherited something else.
    node.run("taskset", "-a", "-cp", "15", str(node.pid(100))).check()
    product.tick()
    homes = set(node.vcpu_masks(100).values())
    assert len(homes) == 1
    assert homes != {frozenset({15})}
