"""Host tasks leave the CPUs of dedicated VMs, and come back."""

import re
from collections.abc import Iterator

import pytest

from lab.node import Node
from lab.polling import poll
from lab.product import HOOK, Product

BUSY = "busy-host-task"


@pytest.fixture
def busy_pid(node: Node) -> Iterator[int]:
    """A host service that burns a CPU, on CPU 4 to begin with."""
    loop = ["sh", "-c", "while :; do :; done"]
    node.run("systemd-run", f"--unit={BUSY}", "--collect", *loop).check()
    yield int(node.run("systemctl", "show", "-P", "MainPID", BUSY).check().out)
    node.run("systemctl", "stop", BUSY)


def allowed(node: Node, pid: int) -> str:
    found = re.search(r"Cpus_allowed_list:\s*(\S+)", node.read(f"/proc/{pid}/status"))
    assert found
    return found[1]


def cpu_of(node: Node, pid: int) -> int:
    return int(node.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[36])


def test_host_tasks_leave_the_slices_cpus_and_return(node: Node, product: Product, busy_pid: int) -> None:
    product.configure('[node]\nisolation = "slices"\n[defaults]\nclass = "dedicated"\ncpus = "4-7"\n')
    node.rom_guest(100, cores=4, hookscript=HOOK)
    node.qm("start", "100").check()
    assert set(product.vcpus(100).values()) == {"4", "5", "6", "7"}
    assert allowed(node, busy_pid) == "0-3,8-15"
    assert cpu_of(node, busy_pid) not in {4, 5, 6, 7}
    assert node.read("/sys/fs/cgroup/system.slice/cpuset.cpus.effective") == "0-3,8-15"
    node.qm("stop", "100").check()
    assert allowed(node, busy_pid) == "0-15"


def test_a_partition_takes_the_cpus_from_everybody(node: Node, product: Product, busy_pid: int) -> None:
    product.configure('[node]\nisolation = "partition"\n[defaults]\nclass = "dedicated"\ncpus = "4-7"\n')
    node.rom_guest(100, cores=4, hookscript=HOOK)
    node.qm("start", "100").check()
    assert product.scope(100, "cpuset.cpus.partition") == "isolated"
    assert set(product.vcpus(100).values()) == {"4", "5", "6", "7"}
    assert allowed(node, busy_pid) == "0-3,8-15"
    node.qm("stop", "100").check()
    poll(lambda: allowed(node, busy_pid) == "0-15", "the CPUs are everybody's again", deadline_s=20)
