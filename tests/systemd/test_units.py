"""Slices and scopes on a real systemd and kernel: narrowed, bound, partitioned, and as before afterwards."""

import time

import pytest
from lab.polling import poll

pytestmark = pytest.mark.lab

CHECKOUT = "/lab/checkout"
UNITS = ("system.slice", "user.slice", "init.scope")
EVERYTHING = "0-15"


def settled(systemd, before: tuple[str, str]) -> None:
    """systemd takes controllers away a moment after nobody needs them."""
    poll(lambda: (systemd.drop_ins(), systemd.cpusets()) == before, "all is as it was", deadline_s=20)


def snapshot(systemd) -> tuple[str, str]:
    time.sleep(1)
    return systemd.drop_ins(), systemd.cpusets()


def narrow(systemd, cpus: str) -> dict[str, str]:
    originals = {unit: systemd.original(f"slice:{unit}") for unit in UNITS}
    for unit in UNITS:
        systemd.write(f"slice:{unit}", cpus)
    return originals


def widen(systemd, originals: dict[str, str]) -> None:
    for unit, original in originals.items():
        systemd.write(f"slice:{unit}", original)


def test_host_tasks_leave_and_come_back(systemd):
    pid = systemd.service("bound", "sleep", "600")
    before = snapshot(systemd)
    originals = narrow(systemd, "0-3")
    assert [systemd.turn(("read", f"slice:{unit}"))[0] for unit in UNITS] == ["0-3"] * 3
    assert systemd.effective("system.slice") == systemd.effective("init.scope") == "0-3"
    assert systemd.mask(pid) == systemd.mask(1) == "0-3"
    for unit in UNITS:
        systemd.write(f"slice:{unit}", "0-3,6-7")
    assert systemd.mask(pid) == "0-3,6,7"
    widen(systemd, originals)
    settled(systemd, before)
    assert systemd.mask(pid) == systemd.mask(1) == EVERYTHING


def test_who_logs_in_meanwhile_finds_the_slice_narrow(systemd):
    originals = narrow(systemd, "0-3")
    systemd.shell("systemd-run --quiet --unit=bound --slice=user.slice sleep 600")
    assert systemd.effective("user.slice") == "0-3"
    widen(systemd, originals)
    assert systemd.effective("user.slice") == EVERYTHING


def test_a_mask_that_a_service_chose_survives(systemd):
    pid = systemd.service("bound", "taskset", "-c", "5", "sleep", "600")
    poll(lambda: systemd.mask(pid) == "5", "the service has chosen its CPU", deadline_s=20)
    originals = narrow(systemd, "0-3")
    assert systemd.mask(pid) == "0-3"
    widen(systemd, originals)
    assert systemd.mask(pid) == "5"


def test_slices_widen_even_if_others_still_need_the_controller(systemd):
    """The kernel empties no set that has tasks, and systemd leaves it narrow."""
    pid = systemd.service("bound", "sleep", "600")
    systemd.scope(101)
    systemd.write("memory-nodes:101", "0-1")
    before = systemd.drop_ins()
    originals = narrow(systemd, "0-3")
    widen(systemd, originals)
    assert systemd.effective("system.slice") == systemd.effective("init.scope") == EVERYTHING
    assert systemd.mask(pid) == EVERYTHING
    assert systemd.drop_ins() == before


def test_a_drop_in_confines_from_the_first_page(systemd):
    systemd.write("dropin:101", "0-7 0")
    pid = systemd.scope(101, starter="taskset -c 8-15")
    on_node0, on_node1 = systemd.memory_mib(101)
    assert (on_node0 >= 64, on_node1) == (True, 0)
    assert systemd.mask(pid) == "0-7"
    systemd.write("dropin:101", "")
    assert "pxsched" not in systemd.drop_ins()
    assert systemd.effective("qemu.slice/101.scope") == EVERYTHING


def test_a_drop_in_of_a_vm_that_has_ended_confines_nobody(systemd):
    systemd.write("dropin:101", "0-7 0")
    systemd.scope(101)
    systemd.shell("systemctl stop 101.scope")
    poll(lambda: systemd.turn(("read", "memory-nodes:101")) == ["gone"], "the scope has ended", deadline_s=20)
    systemd.write("dropin:101", "")
    systemd.scope(101, before="numactl --cpunodebind=1 --membind=1")
    assert systemd.memory_mib(101)[1] >= 64


def test_memory_is_moved(systemd):
    systemd.scope(101, mib=128, before="numactl --membind=1")
    assert systemd.memory_mib(101)[1] >= 128
    original = systemd.original("memory-nodes:101")
    systemd.write("memory-nodes:101", "0")
    poll(lambda: systemd.memory_mib(101)[0] >= 120, "it has moved", deadline_s=20)
    assert systemd.memory_mib(101)[1] <= 8
    systemd.write("memory-nodes:101", original)
    assert systemd.memory_mib(101)[0] >= 120, "it stays where it was moved to"
    poll(lambda: systemd.group("qemu.slice/101.scope", "cpuset.mems") in (None, "0-1"), "free", deadline_s=20)


def test_a_kernel_without_partitions_says_so_and_nothing_stays(systemd):
    systemd.scope(101)
    if not systemd.shell("uname -r").startswith("6.1."):
        pytest.skip("this one has them")
    before = systemd.drop_ins()
    with pytest.raises(Exception, match=r"needs cgroup v2 and Linux 6\.7"):
        systemd.write("partition:101", "4-7")
    systemd.write("partition:101", "")
    assert systemd.drop_ins() == before
    assert systemd.effective("qemu.slice/101.scope") == EVERYTHING


def test_a_partition_is_the_scopes_alone(systemd, partitions):
    pid, other = systemd.scope(101), systemd.scope(102)
    before = snapshot(systemd)
    systemd.write("partition:101", "4-7")
    rest = "0-3,8-15"
    assert systemd.turn(("read", "partition:101")) == ["4-7"]
    assert systemd.mask(pid) == "4-7"
    assert systemd.mask(1) == systemd.mask(other) == rest
    systemd.shell("systemctl set-property --runtime 101.scope CPUWeight=50; systemctl daemon-reload")
    assert systemd.turn(("read", "partition:101")) == ["4-7"], "what Proxmox does on a live change"
    systemd.write("partition:102", "8-9")
    assert systemd.turn(("read", "partition:101"), ("read", "partition:102")) == ["4-7", "8-9"]
    systemd.write("partition:102", "")
    systemd.write("partition:101", "")
    assert systemd.turn(("read", "partition:101")) == [""]
    assert systemd.mask(pid) == systemd.mask(other) == systemd.mask(1) == EVERYTHING
    systemd.shell("systemctl set-property --runtime 101.scope CPUWeight=")
    assert "AllowedCPUs" not in systemd.drop_ins() and before


def test_a_partitions_cpus_come_back_when_its_vm_dies(systemd, partitions):
    pid = systemd.scope(101)
    systemd.write("partition:101", "4-7")
    systemd.shell(f"kill -9 {pid}")
    poll(lambda: systemd.mask(1) == EVERYTHING, "the CPUs are everybody's", deadline_s=20)
    assert systemd.turn(("read", "partition:101")) == ["gone"]


def test_a_property_is_quick_enough_for_a_hook(systemd):
    """Measured under emulation, which is some twenty times slower than a host."""
    original = systemd.original("slice:system.slice")
    seconds = [systemd.write("slice:system.slice", cpus) for cpus in ("0-7", "0-3", "0-5")]
    systemd.write("slice:system.slice", original)
    print(f"set-property: {min(seconds):.3f} s")
    assert min(seconds) < 1


def test_a_program_gets_what_it_reads_and_may_leave_its_work_to_a_child(systemd):
    """As a sendmail may."""
    program = "exec 3<&0; (sleep 2; cat <&3 >/run/was-read) &"
    words = ["/bin/sh", "-c", program]
    call = f"systemd.start(Root(), {words}, stdin=b'a\\n\\xff', description='x', most_s=60)"
    imports = f"import sys; sys.path.insert(0, {CHECKOUT!r}); from pxsched.host import systemd"
    code = f"{imports}; from pxsched.root import Root; {call}"
    systemd.node.run("/usr/bin/python3", "-B", "-I", "-c", code).check()
    poll(lambda: systemd.shell("od -An -c /run/was-read || true"), "it was read", deadline_s=30)
    assert systemd.shell("od -An -tx1 /run/was-read").split() == ["61", "0a", "ff"]
