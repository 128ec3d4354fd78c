"""The lab itself, before any of the product: is it the machine that the other tests take it for?

Each test reads what the lab's kernel says. A failure here explains failures elsewhere.
"""

import errno

import pytest

from lab.node import NIC, VF, CommandFailed, Node
from lab.polling import poll
from lab.recipe import CPUS

RECORDER = """\
#!/bin/sh
echo "$# $1 $2 from=${PVE_MIGRATED_FROM-unset} path=$PATH lc=$LC_ALL stdin=$(wc -c)" >>/run/hook-calls
[ "$2" != "$(cat /run/hook-fails 2>/dev/null)" ]
"""


def install_recorder(node: Node) -> None:
    node.run("rm", "-f", "/run/hook-calls", "/run/hook-fails").check()
    node.write("/var/lib/vz/snippets/recorder", RECORDER)
    node.run("chmod", "+x", "/var/lib/vz/snippets/recorder").check()


def phases(node: Node) -> list[str]:
    return [line.split()[2] for line in node.read("/run/hook-calls").splitlines()]


def test_two_nodes_four_caches_and_threads_in_pairs(node: Node) -> None:
    topology = node.files(
        "/sys/devices/system/node/node*/cpulist",
        "/sys/devices/system/node/node*/distance",
        "/sys/devices/system/cpu/cpu*/cache/index3/shared_cpu_list",
        "/sys/devices/system/cpu/cpu*/topology/thread_siblings_list",
    )

    def values(name: str) -> set[str]:
        return {text.strip() for path, text in topology.items() if path.endswith(name)}

    assert values("node0/cpulist") == {"0-7"}
    assert values("node1/cpulist") == {"8-15"}
    assert values("node0/distance") == {"10 21"}
    assert values("shared_cpu_list") == {"0-3", "4-7", "8-11", "12-15"}
    assert values("thread_siblings_list") == {f"{cpu}-{cpu + 1}" for cpu in range(0, CPUS, 2)}


def test_governors_can_be_written_for_single_cores(node: Node) -> None:
    before = node.governors()
    assert set(before) == set(range(CPUS))
    base = "/sys/devices/system/cpu/cpu6/cpufreq"
    assert {"performance", "powersave"} <= set(node.read(f"{base}/scaling_available_governors").split())
    assert node.write(f"{base}/scaling_governor", "performance") == 0
    changed = {cpu for cpu, governor in node.governors().items() if governor == "performance"}
    assert changed - {cpu for cpu, governor in before.items() if governor == "performance"} == {6, 7}
    node.write(f"{base}/scaling_governor", before[6])
    assert node.governors() == before


def test_devices_have_a_numa_home(node: Node) -> None:
    assert node.read(f"/sys/bus/pci/devices/{NIC}/numa_node") == "1"
    assert node.read("/sys/bus/pci/devices/0000:21:00.0/numa_node") == "0"
    assert node.read(f"/sys/bus/pci/devices/{NIC}/local_cpulist") == "8-15"


def test_managed_interrupts_refuse_to_move(node: Node) -> None:
    queues = node.interrupts("nvme0q")
    codes = {node.write(f"/proc/irq/{number}/smp_affinity_list", "3") for number in queues}
    assert codes & {errno.EPERM, errno.EIO}


def test_debians_irqbalance_runs(node: Node) -> None:
    assert node.run("systemctl", "is-active", "irqbalance.service").out.strip() == "active"


def test_a_guest_starts_in_its_scope_with_one_thread_per_vcpu(node: Node) -> None:
    guest = node.rom_guest(100, cores=4, burning=0b0101)
    node.qm("start", "100").check()
    guest.wait_started(4)
    assert set(node.vcpu_masks(100)) == {0, 1, 2, 3}
    assert node.read(f"/proc/{node.pid(100)}/cgroup") == "0::/qemu.slice/100.scope"
    first = guest.rounds(4)

    def gained() -> list[int] | None:
        rounds = [now - then for now, then in zip(guest.rounds(4), first, strict=True)]
        return rounds if all(rounds) else None

    rounds = poll(gained, "every vCPU goes on", deadline_s=30)
    assert min(rounds[0], rounds[2]) > 3 * max(rounds[1], rounds[3])


def test_a_scopes_cpus_bound_its_threads(node: Node) -> None:
    node.rom_guest(100)
    node.qm("start", "100").check()
    node.run("systemctl", "set-property", "--runtime", "100.scope", "AllowedCPUs=4-6").check()
    assert node.read("/sys/fs/cgroup/qemu.slice/100.scope/cpuset.cpus.effective") == "4-6"
    assert {thread.cpus for thread in node.threads(100)} == {frozenset({4, 5, 6})}


def test_affinity_is_a_taskset_around_all_threads(node: Node) -> None:
    node.rom_guest(100, affinity="9,3,5-6", virtio0="local:disk,iothread=1", net0="virtio=BC:24:11:00:00:01")
    node.qm("start", "100").check()
    threads = node.threads(100)
    assert {thread.cpus for thread in threads} == {frozenset({3, 5, 6, 9})}
    assert any(thread.name.startswith("vhost-") for thread in threads)


@pytest.mark.parametrize("huge", [False, True], ids=["small pages", "huge pages"])
def test_a_guests_memory_lies_on_the_node_it_asked_for(node: Node, huge: bool) -> None:
    guest = node.rom_guest(100, memory=64, numa=1, numa0="cpus=0-1,memory=64,hostnodes=1,policy=bind")
    if huge:
        node.qm("set", "100", "--hugepages", "2").check()
    node.qm("start", "100").check()
    guest.wait_started(2)
    guest.touch(48)
    lines = node.read(f"/proc/{node.pid(100)}/numa_maps").splitlines()
    bound = [line for line in lines if "bind:1" in line]
    page_kib = 2048 if huge else 4
    pages = sum(int(word[3:]) for line in bound for word in line.split() if word.startswith("N1="))
    assert pages * page_kib >= 48 << 10
    assert not any(word.startswith("N0=") for line in bound for word in line.split())


def test_a_vcpu_can_be_plugged_into_a_running_guest(node: Node) -> None:
    guest = node.rom_guest(100, cores=3, vcpus=1, hotplug="cpu", burning=0b111)
    node.qm("start", "100").check()
    guest.wait_started(1)
    node.qm("set", "100", "--vcpus", "3").check()
    assert set(node.vcpu_masks(100)) == {0, 1, 2}
    guest.wait_started(3)


def test_hooks_are_called_the_way_proxmox_does(node: Node) -> None:
    install_recorder(node)
    node.rom_guest(100, hookscript="local:snippets/recorder")
    node.qm("start", "100").check()
    node.qm("stop", "100").check()
    common = "path=/sbin:/bin:/usr/sbin:/usr/bin lc=C stdin=0"
    assert node.read("/run/hook-calls").splitlines() == [
        f"2 100 pre-start from= {common}",
        f"2 100 post-start from= {common}",
        f"2 100 pre-stop from=unset {common}",
        f"2 100 post-stop from=unset {common}",
    ]


@pytest.mark.parametrize("how", ["power-off", "SIGKILL"])
def test_a_guest_that_ends_by_itself_gets_post_stop_alone(node: Node, how: str) -> None:
    install_recorder(node)
    guest = node.rom_guest(100, hookscript="local:snippets/recorder")
    node.qm("start", "100").check()
    guest.wait_started(2)
    if how == "power-off":
        guest.power_off()
    else:
        node.run("kill", "-9", str(node.pid(100))).check()
    node.gone(100)
    poll(lambda: "post-stop" in phases(node), "post-stop", deadline_s=30)
    assert phases(node) == ["pre-start", "post-start", "post-stop"]


def test_a_failing_pre_start_aborts_without_post_stop(node: Node) -> None:
    install_recorder(node)
    node.write("/run/hook-fails", "pre-start")
    node.rom_guest(100, hookscript="local:snippets/recorder")
    with pytest.raises(CommandFailed):
        node.qm("start", "100").check()
    assert node.pid(100) is None
    assert phases(node) == ["pre-start"]


def test_a_migration_target_starts_from_the_source_nodes_configuration(node: Node) -> None:
    install_recorder(node)
    node.rom_guest(100, hookscript="local:snippets/recorder")
    node.shell("mkdir -p /etc/pve/nodes/other/qemu-server && cd /etc/pve/nodes && "
               "mv lab/qemu-server/100.conf other/qemu-server/").check()  # fmt: skip
    node.qm("start", "100", "--migratedfrom", "other").check()
    assert "from=other" in node.read("/run/hook-calls")
    assert '"inmigrate"' in node.qm("qmp", "100", "query-status").out
    node.shell("mv /etc/pve/nodes/other/qemu-server/100.conf /etc/pve/nodes/lab/qemu-server/").check()


def test_vectors_of_a_passed_through_device_come_late_and_can_be_moved(node: Node) -> None:
    node.write(f"/sys/bus/pci/devices/{NIC}/sriov_numvfs", "2")
    guest = node.linux_guest(102, hostpci0="41:10.0", balloon=0)
    node.qm("start", "102").check()
    driver = node.run("readlink", f"/sys/bus/pci/devices/{VF}/driver").check().out.strip()
    assert driver.endswith("/vfio-pci")
    assert node.interrupts("vfio-msix") == {}, "the guest's driver cannot have loaded yet"
    guest.wait_ready()
    vectors = poll(lambda: node.interrupts("vfio-msix"), "the guest's driver enables vectors", deadline_s=60)
    for number in vectors:
        assert node.write(f"/proc/irq/{number}/smp_affinity_list", "11") == 0
    assert set(node.interrupts("vfio-msix").values()) == {"11"}


def test_a_linux_guest_gives_memory_back_through_its_balloon(node: Node) -> None:
    guest = node.linux_guest(101, memory=256, balloon=192)
    node.qm("start", "101").check()
    guest.wait_ready()

    def actual() -> int:
        return int(node.qm("qmp", "101", "query-balloon").check().out.split(":")[1].strip(" }\n")) >> 20

    poll(lambda: actual() == 192, "the balloon reaches the configured minimum", deadline_s=60)
    node.qm("qmp", "101", "balloon", f'{{"value": {160 << 20}}}').check()
    poll(lambda: actual() == 160, "the guest follows its balloon's target", deadline_s=60)


def test_a_cpu_goes_offline_and_comes_back(node: Node) -> None:
    try:
        assert node.write("/sys/devices/system/cpu/cpu13/online", "0") == 0
        assert node.read("/sys/devices/system/cpu/online") == "0-12,14-15"
    finally:
        assert node.write("/sys/devices/system/cpu/cpu13/online", "1") == 0
    assert node.read("/sys/devices/system/cpu/online") == "0-15"


def test_the_lab_comes_back_from_a_reset(node: Node) -> None:
    before = node.read("/proc/sys/kernel/random/boot_id")
    node.reboot()
    assert node.read("/proc/sys/kernel/random/boot_id") != before
