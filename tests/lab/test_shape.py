"""A guest that is told what it has: its own kernel says of cores, caches and nodes what the node's kernel
says of the CPUs that its vCPUs run on.
"""

from lab import guests
from lab.node import Node
from lab.product import HOOK, Product

# Two cores with both siblings, which share an L3, and one of the other NUMA node: groups of 4 + 2.
PINS = (4, 5, 6, 7, 8, 9)
SHARED = (
    "cd /sys/devices/system/cpu; for cpu in {}; do echo cpu$cpu/node* "
    "$(cat cpu$cpu/topology/core_cpus_list cpu$cpu/cache/index3/shared_cpu_list); done"
)


def parts(said: str) -> list[list[int]]:
    """By NUMA node, core and L3 cache: of each CPU the first one that it shares that with."""
    rows = [line.partition("/")[2].split() for line in said.splitlines() if line.startswith("cpu")]
    return [[column.index(name) for name in column] for column in zip(*rows, strict=True)]


def test_a_linux_guest_sees_what_its_vcpus_share_on_the_node(node: Node, product: Product) -> None:
    guest = node.linux_guest(
        100, cores=len(PINS), memory=192, affinity=",".join(map(str, PINS)), hookscript=HOOK,
        args=guests.smp_linux_args(),
    )  # fmt: skip
    before = node.qm("config", "100").out
    product.run("shape", "100", "--apply").check()
    node.qm("start", "100").check()
    guest.wait_ready()
    cpus = product.vcpus(100)
    real = parts(node.shell(SHARED.format(" ".join(cpus[vcpu] for vcpu in range(len(PINS))))).check().out)
    assert real == [[0, 0, 0, 0, 4, 4], [0, 0, 2, 2, 4, 4], [0, 0, 0, 0, 4, 4]]
    assert parts(guest.tell(SHARED.format("0 1 2 3 4 5"))) == real
    node.qm("stop", "100").check()
    product.run("shape", "100", "--undo").check()
    assert node.qm("config", "100").out == before
