"""Starting a VM places it: what the kernel then says of threads, memory and clocks, for each class of VM."""

from lab.node import Node
from lab.product import HOOK, Product

ALL = frozenset(range(16))
L3S = [frozenset(range(first, first + 4)) for first in (0, 4, 8, 12)]


def test_enabling_a_vm_sets_the_hookscript_and_disabling_removes_it(node: Node, product: Product) -> None:
    node.rom_guest(100)
    product.run("enable", "100").check()
    assert f"hookscript: {HOOK}" in node.qm("config", "100").out
    product.run("disable", "100").check()
    assert "hookscript" not in node.qm("config", "100").out


def test_pinned_vcpus_run_in_the_order_in_which_affinity_is_written(node: Node, product: Product) -> None:
    guest = node.rom_guest(100, cores=4, affinity="11,3,13,5", hookscript=HOOK)
    node.qm("set", "100", "--virtio0", "local:disk,iothread=1", "--net0", "virtio=BC:24:11:00:00:01").check()
    node.qm("start", "100").check()
    guest.wait_started(4)
    assert product.vcpus(100) == {0: "11", 1: "3", 2: "13", 3: "5"}
    others = product.others(100)
    assert {"kvm", "call_rcu"} <= {thread.name for thread in others}
    assert any(thread.name.startswith("vhost-") for thread in others)
    assert sum(thread.name == "kvm" for thread in others) == 2, "the main loop and the disk's iothread"
    assert {thread.cpus & {11, 3, 13, 5} for thread in others} == {frozenset()}


def test_vcpus_float_in_an_affinity_that_does_not_name_one_cpu_each(node: Node, product: Product) -> None:
    node.rom_guest(100, cores=4, affinity="4-6", hookscript=HOOK)
    node.qm("start", "100").check()
    assert set(product.vcpus(100).values()) == {"4-6"}


def test_a_shared_vm_gets_a_home_of_cpus_with_one_cache(node: Node, product: Product) -> None:
    node.rom_guest(100, cores=3, hookscript=HOOK)
    node.rom_guest(101, cores=3, hookscript=HOOK)
    for vmid in ("100", "101"):
        node.qm("start", vmid).check()
    homes = [{frozenset(cpus) for cpus in node.vcpu_masks(vmid).values()} for vmid in (100, 101)]
    assert all(len(home) == 1 and home <= set(L3S) for home in homes)
    assert homes[0] != homes[1], "the second one goes where nobody lives yet"


def test_dedicated_vms_own_whole_cores_and_others_keep_off(node: Node, product: Product) -> None:
    """And run with the governor `performance`, by the line that comes with the installation."""
    product.configure('[vm.100]\nclass = "dedicated"\nsmt = "require"\n'
                      '[vm.101]\nclass = "dedicated"\nsmt = "isolate"\n')  # fmt: skip
    before = node.governors()
    assert "performance" not in before.values()
    for vmid, cores in ((100, 4), (101, 2), (102, 2)):
        node.rom_guest(vmid, cores=cores, hookscript=HOOK)
        node.qm("start", str(vmid)).check()
    siblings, isolated, shared = (node.vcpu_masks(vmid) for vmid in (100, 101, 102))
    first = frozenset().union(*siblings.values())
    assert all(len(cpus) == 1 for cpus in (*siblings.values(), *isolated.values()))
    assert {cpu ^ 1 for cpu in first} == first, "both threads of each core"
    second = frozenset().union(*isolated.values())
    whole = frozenset(cpu for cpu in ALL if cpu & ~1 in {own & ~1 for own in second})
    assert len(second) == 2 and len(whole) == 4, "a core for each vCPU"
    assert not first & whole
    assert not frozenset().union(*shared.values()) & (first | whole)
    busy = {cpu for cpu, governor in node.governors().items() if governor == "performance"}
    assert busy == {cpu for cpu in ALL if cpu & ~1 in {own & ~1 for own in first | second}}
    node.qm("stop", "100").check()
    left = {cpu for cpu, governor in node.governors().items() if governor == "performance"}
    assert left == {cpu for cpu in ALL if cpu & ~1 in {own & ~1 for own in second}}
    node.qm("stop", "101").check()
    assert node.governors() == before


def test_first_touch_puts_memory_near_the_vcpus(node: Node, product: Product) -> None:
    product.configure('[defaults]\nmemory = "prefer"\nnodes = "1"\n')
    guest = node.rom_guest(100, memory=96, hookscript=HOOK)
    node.qm("start", "100").check()
    guest.wait_started(2)
    guest.touch(64)
    pages = product.pages(100)
    assert pages[1] >= 64
    assert pages[0] < 8
    assert product.scope(100, "cpuset.mems") == "", "systemd is not needed for this"


def test_strict_memory_is_bound_by_the_scope_from_the_first_page(node: Node, product: Product) -> None:
    product.configure('[defaults]\nmemory = "strict"\nnodes = "1"\n')
    guest = node.rom_guest(100, memory=96, hookscript=HOOK)
    node.qm("start", "100").check()
    assert product.scope(100, "cpuset.mems.effective") == "1"
    guest.wait_started(2)
    guest.touch(64)
    pages = product.pages(100)
    assert pages[1] >= 64
    assert pages[0] == 0


def test_a_migrated_vm_is_placed_from_the_source_nodes_configuration(node: Node, product: Product) -> None:
    node.rom_guest(100, affinity="13,6", hookscript=HOOK)
    node.shell("mkdir -p /etc/pve/nodes/other/qemu-server && cd /etc/pve/nodes && "
               "mv lab/qemu-server/100.conf other/qemu-server/").check()  # fmt: skip
    node.qm("start", "100", "--migratedfrom", "other").check()
    assert product.vcpus(100) == {0: "13", 1: "6"}
    node.shell("mv /etc/pve/nodes/other/qemu-server/100.conf /etc/pve/nodes/lab/qemu-server/").check()
    product.tick()
    assert product.vcpus(100) == {0: "13", 1: "6"}


def test_a_vm_that_cannot_be_placed_starts_unless_its_policy_is_strict(node: Node, product: Product) -> None:
    product.configure('[defaults]\nclass = "dedicated"\n[vm.101]\nstrict = true\n')
    for vmid in (100, 101):
        node.rom_guest(vmid, cores=15, hookscript=HOOK)
    node.qm("start", "100").check()
    node.qm("stop", "100").check()
    product.configure('[defaults]\nclass = "dedicated"\ncpus = "4-7"\n[vm.101]\nstrict = true\n')
    node.qm("start", "100").check()
    assert len(product.vcpus(100)) == 15
    refused = node.qm("start", "101")
    assert refused.code
    assert "strict" in refused.out
    assert node.pid(101) is None
