"""Everybody on the node: VMs that are not opted in, a container shaped as Proxmox makes it, host tasks."""

import re
from collections.abc import Iterator

import pytest

from lab.node import Node
from lab.polling import poll
from lab.product import HOOK, Product

OWN = frozenset(range(4, 8))
SETTINGS = '[node]\n{node}\n[vm.100]\nclass = "dedicated"\ncpus = "4-7"\n'
CONFINED = 'isolation = "slices"\nothers = "confine"\ndevice_interrupts = true'
GROUP = "/sys/fs/cgroup/lxc"
CONTAINER = f"{GROUP}/101"


def cpus(text: str) -> frozenset[int]:
    found = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def masks(node: Node) -> dict[tuple[int, int], frozenset[int]]:
    """Every thread of user space by process and thread id, but KVM's helper that nobody can place."""
    found = {}
    for path, text in node.files("/proc/[0-9]*/task/[0-9]*/status").items():
        says = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        # The kernel's own threads have no memory.
        if "VmRSS" in says and says["Name"].strip() != "kvm-nx-lpage-re":
            found[int(path.split("/")[2]), int(path.split("/")[4])] = cpus(says["Cpus_allowed_list"])
    return found


def effective(node: Node, group: str) -> frozenset[int]:
    return cpus(node.read(f"{group}/cpuset.cpus.effective"))


@pytest.fixture
def container(node: Node) -> Iterator[int]:
    """A container that computes all the time: its process id."""
    enabled = node.read("/sys/fs/cgroup/cgroup.subtree_control").split()
    ours = [name for name in ("cpuset", "cpu") if name not in enabled]
    try:
        for name in ours:
            node.shell(f"echo +{name} > /sys/fs/cgroup/cgroup.subtree_control").check()
        node.shell(
            f"mkdir -p {GROUP} && echo +cpuset > {GROUP}/cgroup.subtree_control"
            f" && echo +cpu > {GROUP}/cgroup.subtree_control && mkdir -p {CONTAINER}"
        ).check()
        script = f"echo 0 > {CONTAINER}/cgroup.procs; while :; do :; done"  # 0: the writer itself
        node.run("systemd-run", "--unit=container-101", "--collect", "sh", "-c", script).check()
        pid = int(node.run("systemctl", "show", "-P", "MainPID", "container-101").check().out)
        poll(lambda: node.read(f"{CONTAINER}/cgroup.procs") == str(pid), "the container runs", deadline_s=30)
        yield pid
    finally:
        node.shell(f"kill -9 $(cat {CONTAINER}/cgroup.procs)")
        poll(lambda: not node.read(f"{CONTAINER}/cgroup.procs"), "the container has ended", deadline_s=30)
        node.run("rmdir", CONTAINER, GROUP)
        for name in ours:
            node.shell(f"echo -{name} > /sys/fs/cgroup/cgroup.subtree_control")


def test_nobody_else_may_run_on_dedicated_cpus_after_one_pass(
    node: Node, product: Product, container: int
) -> None:
    product.configure(SETTINGS.format(node=CONFINED))
    node.rom_guest(200, burning=1)
    node.qm("start", "200").check()
    node.rom_guest(100, cores=4, hookscript=HOOK)
    before = masks(node)
    assert before[container, container] & OWN
    node.qm("start", "100").check()
    product.tick()
    own = node.pid(100)
    now = masks(node)
    assert {who for who, mask in now.items() if who[0] != own and mask & OWN} == set()
    for group in (GROUP, CONTAINER, "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/init.scope"):
        assert not effective(node, group) & OWN, group
    # Proxmox deals CPUs out among containers, and knows nothing of ours.
    assert node.write(f"{CONTAINER}/cpuset.cpus", "4-5") == 0
    assert not effective(node, CONTAINER) & OWN
    assert product.tick().out == ""
    assert node.read(f"{CONTAINER}/cpuset.cpus") == "4-5"
    (vm,) = [vm for vm in product.json("status")["vms"] if vm["vmid"] == 100]
    assert [one for one in vm["exclusive"]["open_to"] if one["kind"] != "interrupt"] == []
    node.qm("stop", "100").check()
    assert node.write(f"{CONTAINER}/cpuset.cpus", "0-15") == 0  # the kernel empties no set that has tasks
    product.tick()
    after = masks(node)
    still = before.keys() & after.keys()
    assert {who for who in still if before[who] != after[who]} == set()


def test_what_may_run_on_dedicated_cpus_is_said(node: Node, product: Product, container: int) -> None:
    product.configure(SETTINGS.format(node=""))
    node.rom_guest(200)
    node.qm("start", "200").check()
    node.rom_guest(100, cores=4, hookscript=HOOK)
    node.qm("start", "100").check()
    (vm,) = [vm for vm in product.json("status")["vms"] if vm["vmid"] == 100]
    names = {one["name"] for one in vm["exclusive"]["open_to"]}
    assert {"VM 200", "container 101", "system.slice"} <= names
    findings = [one for one in product.json("doctor")["findings"] if one["area"] == "dedicated CPUs"]
    remedies = " ".join(one["remedy"] for one in findings)
    assert 'others = "confine"' in remedies
    assert 'isolation = "slices"' in remedies


def test_passes_that_are_killed_are_made_good_by_the_next(
    node: Node, product: Product, container: int
) -> None:
    def killed_passes() -> None:
        for delay_s in ("0.3", "0.6", "0.9", "1.2"):
            node.run("timeout", "--signal=KILL", delay_s, "pxsched", "tick")

    product.configure(SETTINGS.format(node=CONFINED))
    node.rom_guest(200)
    node.qm("start", "200").check()
    before = masks(node)
    node.rom_guest(100, cores=4, hookscript=HOOK)
    node.qm("start", "100").check()
    killed_passes()
    product.tick()
    own = node.pid(100)
    assert {who for who, mask in masks(node).items() if who[0] != own and mask & OWN} == set()
    node.qm("stop", "100").check()
    killed_passes()
    product.tick()
    after = masks(node)
    assert {who for who in before.keys() & after.keys() if before[who] != after[who]} == set()
    assert not product.json("status")["knobs"]


def test_a_burning_host_task_makes_the_vm_move(node: Node, product: Product) -> None:
    product.configure('[vm.100]\ncpus = "4-5"\nfair = "pin"\n')
    guest = node.rom_guest(100, cores=1, burning=1, hookscript=HOOK)
    node.qm("start", "100").check()
    guest.wait_started(1)

    def pinned() -> str:
        product.tick()
        where = product.vcpus(100)[0]
        return where if re.fullmatch("[45]", where) else ""

    poll(pinned, "the vCPU is pinned", deadline_s=60)
    first = pinned()
    node.run("systemd-run", "--unit=burner", "--collect", "taskset", "--cpu-list", first,
             "sh", "-c", "while :; do :; done").check()  # fmt: skip
    try:
        poll(lambda: pinned() != first, "the vCPU has moved", deadline_s=120)
    finally:
        node.run("systemctl", "stop", "burner")
