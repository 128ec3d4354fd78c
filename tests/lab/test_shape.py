"""A guest that is told what it has, on a node with siblings: its own kernel says the same as the node's.

Guests with several vCPUs hang in the emulation's single thread, so this node has several. The inner guest's
model is an Intel one: the emulated AMD host has no topoext to give it.
"""

import os
from collections.abc import Iterator

import pytest

from lab import guests, image, recipe
from lab.machine import Machine, Shape
from lab.node import Node
from lab.product import HOOK, Product

# Two cores with both siblings, one of each NUMA node.
PINS = (2, 3, 8, 9)
MODEL = "-cpu kvm64,vendor=GenuineIntel"
ASK = (
    "cd /sys/devices/system/cpu; for cpu in 0 1 2 3; do cat cpu$cpu/topology/core_cpus_list"
    " cpu$cpu/topology/physical_package_id; done; cat /sys/devices/system/node/node[01]/cpulist"
)


@pytest.fixture
def threaded() -> Iterator[Node]:
    try:
        built = image.get(recipe.HOST)
    except image.Unavailable as reason:
        pytest.skip(str(reason))
    with Machine(built, Shape(threaded=True)) as machine:
        yield Node(machine)


@pytest.mark.skipif(
    "PXSCHED_LAB_THREADED" not in os.environ,
    reason="an emulated machine with several threads hangs every other time: PXSCHED_LAB_THREADED=1 runs it",
)
def test_a_linux_guest_sees_the_siblings_and_nodes_that_its_vcpus_run_on(threaded: Node) -> None:
    product = Product(threaded)
    product.install()
    guest = threaded.linux_guest(
        100, cores=4, memory=384, affinity=",".join(map(str, PINS)), hookscript=HOOK,
        args=f"{guests.linux_args()} {MODEL}",
    )  # fmt: skip
    product.run("shape", "100", "--apply").check()
    threaded.qm("start", "100").check()
    assert product.vcpus(100) == {vcpu: str(cpu) for vcpu, cpu in enumerate(PINS)}
    guest.wait_ready()
    said = guest.tell(ASK).split()
    assert said[:8] == ["0-1", "0", "0-1", "0", "2-3", "1", "2-3", "1"], "cores and sockets"
    assert said[8:10] == ["0-1", "2-3"], "NUMA nodes"
