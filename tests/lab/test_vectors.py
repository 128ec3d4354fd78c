"""Interrupts of a passed-through device: they come after every hook, and irqbalance is at them."""

import json
from collections.abc import Iterator

import pytest

from lab.guests import LinuxGuest
from lab.node import NIC, Node
from lab.polling import poll
from lab.product import HOOK, Product

LABEL = "vfio-msix"
CPU = "11"

# What irqbalance says of itself on its own socket, banned interrupts included.
ASK_IRQBALANCE = """
import glob, json, os, re, socket, struct
path = glob.glob("/run/irqbalance/irqbalance*.sock")[0]
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(10)
    sock.connect(path)
    who = struct.pack("3i", os.getpid(), 0, 0)
    sock.sendmsg([b"setup"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
    text = sock.recv(65536).decode()
print(json.dumps([int(number) for number in re.findall(r"IRQ (\\d+) LOAD", text)]))
"""


def banned(node: Node) -> set[int]:
    return set(json.loads(node.run("python3", "-c", ASK_IRQBALANCE).check().out))


@pytest.fixture
def quick_irqbalance(node: Node) -> Iterator[None]:
    """Debian's own service, looking every second."""
    drop_in = "/run/systemd/system/irqbalance.service.d/lab.conf"
    node.run("mkdir", "-p", drop_in.rpartition("/")[0]).check()
    start = "[Service]\nExecStart=\nExecStart=/usr/sbin/irqbalance --foreground --interval=1\n"
    node.write(drop_in, start)
    node.shell("systemctl daemon-reload; systemctl restart irqbalance").check()
    yield
    node.shell(
        f"rm -r {drop_in.rpartition('/')[0]}; systemctl daemon-reload; systemctl restart irqbalance"
    ).check()


@pytest.fixture
def guest(node: Node, product: Product) -> LinuxGuest:
    """A pinned guest with a virtual function, right after its start: its driver has not been loaded yet."""
    if node.read(f"/sys/bus/pci/devices/{NIC}/sriov_numvfs") == "0":
        assert node.write(f"/sys/bus/pci/devices/{NIC}/sriov_numvfs", "2") == 0
    guest = node.linux_guest(102, hostpci0="41:10.0", balloon=0, affinity=CPU, hookscript=HOOK)
    node.qm("start", "102").check()
    assert not node.interrupts(LABEL)
    return guest


@pytest.mark.timeout(1200)  # a guest that hangs is reset
def test_vectors_are_placed_within_a_tick_of_their_coming(
    node: Node, product: Product, quick_irqbalance: None, guest: LinuxGuest
) -> None:
    guest.wait_ready()
    product.tick()
    assert set(node.interrupts(LABEL).values()) == {CPU}

    # A minute of a real irqbalance that looks every second.
    numbers = set(node.interrupts(LABEL))
    assert numbers <= banned(node)
    node.shell("sleep 60")
    assert set(node.interrupts(LABEL).values()) == {CPU}

    # The guest resets: the vectors vanish, and are on any CPU when they return.
    guest.reset()
    poll(lambda: not node.interrupts(LABEL), "the vectors vanish", deadline_s=60)
    guest.wait_ready()
    product.tick()
    assert set(node.interrupts(LABEL).values()) == {CPU}

    # Given back, irqbalance may move them again.
    numbers = set(node.interrupts(LABEL))
    product.run("restore", "--all").check()
    assert not numbers & banned(node)
