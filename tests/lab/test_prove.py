"""A proof on a node with real CPUs to take away: what ends it, and that everything is as before."""

import json

from lab.node import Node
from lab.polling import poll
from lab.product import HOOK, Product

TRIAL = "/run/pxsched/trial.json"


def begin(node: Node, *ways: str) -> None:
    line = f"pxsched prove 100 --for 10m --between {' '.join(ways)}"
    node.shell(f"rm -f /run/proved; ({line} > /run/said 2>&1; echo $? > /run/proved) > /dev/null 2>&1 &")
    poll(lambda: bool(node.files(TRIAL)), "the trial", deadline_s=60)


def ended(node: Node) -> tuple[str, str]:
    """Exit code, and the last line it said."""
    poll(lambda: bool(node.files("/run/proved")), "the end of the proof", deadline_s=60)
    return node.read("/run/proved").strip(), node.read("/run/said").strip().splitlines()[-1]


def test_a_cpu_that_goes_offline_ends_a_proof_and_all_is_as_before(node: Node, product: Product) -> None:
    node.rom_guest(100, cores=2, hookscript=HOOK)
    node.qm("start", "100").check()
    before = node.vcpu_masks(100)
    begin(node, "stock", "home@12-13")
    online = "/sys/devices/system/cpu/cpu13/online"
    try:
        assert node.write(online, "0") == 0
        code, said = ended(node)
    finally:
        assert node.write(online, "1") == 0
    assert (code, "ended early: home@12-13 cannot be any more" in said) == ("1", True), said
    product.tick()
    assert node.vcpu_masks(100) == before
    assert not node.files(TRIAL)


def test_a_plugged_vcpu_ends_a_proof_and_lives_in_the_home(node: Node, product: Product) -> None:
    guest = node.rom_guest(100, cores=4, vcpus=1, hotplug="cpu", hookscript=HOOK)
    node.qm("start", "100").check()
    before = node.vcpu_masks(100)
    begin(node, "stock", "dedicated")
    node.qm("set", "100", "--vcpus", "2").check()
    guest.wait_started(2)
    code, said = ended(node)
    assert (code, "ended early: the vCPUs of VM 100 have changed" in said) == ("1", True), said
    product.tick()
    assert set(node.vcpu_masks(100).values()) == {before[0]}


def test_killed_it_leaves_a_dedicated_block_to_the_next_pass(node: Node, product: Product) -> None:
    for vmid in 100, 101:
        node.rom_guest(vmid, cores=2, hookscript=HOOK)
        node.qm("start", str(vmid)).check()
    before = {vmid: node.vcpu_masks(vmid) for vmid in (100, 101)}
    begin(node, "home", "dedicated")
    poll(lambda: node.vcpu_masks(100) != before[100], "a dedicated block", deadline_s=60)
    owner = json.loads(node.read(TRIAL))["owner"][0]
    node.run("kill", "-9", str(owner)).check()
    product.tick()
    assert {vmid: node.vcpu_masks(vmid) for vmid in (100, 101)} == before
    assert not node.files(TRIAL)
