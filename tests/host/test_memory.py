"""Memory by node: captured files, and a real process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pxsched.host import memory
from pxsched.host.memory import NodeMemory, Pool
from pxsched.root import Root

MEMINFO = """\
Node {node} MemTotal:       16384000 kB
Node {node} MemFree:         1024000 kB
Node {node} Active(file):     300000 kB
Node {node} Inactive(file):   700000 kB
Node {node} SReclaimable:     100000 kB
"""
NUMA_MAPS = """\
55d3a2000000 default file=/usr/bin/qemu-system-x86_64 mapped=900 N0=900 kernelpagesize_kB=4
55d3a4000000 default heap anon=1000 dirty=1000 N0=1000 kernelpagesize_kB=4
7f1000000000 bind:1 file=/run/hugepages/kvm/2048kB/x huge dirty=256 N0=6 N1=250 kernelpagesize_kB=2048
7f2000000000 default anon=51200 dirty=51200 N0=200 N1=51000 kernelpagesize_kB=4
7f3000000000 default file=/memfd:ram\\040(deleted) dirty=10 N1=10 kernelpagesize_kB=4
7ffd00000000 default stack anon=3 dirty=3 N0=3 kernelpagesize_kB=4
"""


def write(base: Path, relative: str, text: str) -> None:
    path = base / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def machine(tmp_path) -> Path:
    for node in range(2):
        write(tmp_path, f"sys/devices/system/node/node{node}/meminfo", MEMINFO.format(node=node))
    pool = "sys/devices/system/node/node1/hugepages/hugepages-{}kB/{}_hugepages"
    for size_kib, pages, free in ((2048, 512, 100), (1048576, 2, 1), (64, 9, 9)):
        write(tmp_path, pool.format(size_kib, "nr"), f"{pages}\n")
        write(tmp_path, pool.format(size_kib, "free"), f"{free}\n")
    # Blocks of 2^0 ... 2^10 pages; those of 2 MiB and 4 MiB count as contiguous.
    write(tmp_path, "proc/buddyinfo", "Node 1, zone   Normal  5 5 5 5 5 5 5 5 5 3 2\n"
                                      "Node 1, zone    DMA32  0 0 0 0 0 0 0 0 0 1 0\n")  # fmt: skip
    return tmp_path


def test_nodes_with_what_is_free_in_which_pages(machine):
    zero, one = memory.read(Root(str(machine)))
    # Free, and the page cache but for the low watermark's worth, a 64th of all.
    low = 16384000 // 64
    free_mib = (1024000 + 1000000 - low + 100000 - 50000) // 1024
    assert zero == NodeMemory(0, 16000, free_mib)
    assert one.free_mib == free_mib
    assert one.contiguous_mib == 3 * 2 + 2 * 4 + 1 * 2
    assert one.pools == (Pool(2, 512, 100), Pool(1024, 2, 1))


def test_a_machine_without_nodes_is_one(tmp_path):
    write(tmp_path, "proc/meminfo", "MemTotal: 4096000 kB\nMemFree: 100 kB\nMemAvailable: 2048000 kB\n")
    assert memory.read(Root(str(tmp_path))) == (NodeMemory(0, 4000, 2000),)
    assert memory.available_mib(Root(str(tmp_path))) == 2000


def test_nothing_known_is_nothing_said(tmp_path):
    root = Root(str(tmp_path))
    assert memory.read(root) == ()
    assert memory.available_mib(root) is None
    assert memory.of_vm(root, 100, 1, hugepages=False) is None


def test_where_a_processs_pages_lie():
    """Programs and libraries belong to everybody; huge pages and shared memory are the guest's."""
    assert memory.numa_maps(NUMA_MAPS) == {
        0: (1000 + 200 + 3) * 4096 + 6 * 2**21,
        1: (51000 + 10) * 4096 + 250 * 2**21,
    }


def test_ordinary_memory_is_asked_of_the_cgroup_and_huge_pages_of_the_process(machine):
    write(machine, "sys/fs/cgroup/cgroup.controllers", "cpuset memory\n")
    stat = "anon N0=1000 N1=2000\nfile N0=7 N1=7\nshmem N0=1 N1=2\nanon_thp N0=9 N1=9\n"
    write(machine, "sys/fs/cgroup/qemu.slice/100.scope/memory.numa_stat", stat)
    write(machine, "proc/77/numa_maps", NUMA_MAPS)
    root = Root(str(machine))
    assert memory.of_vm(root, 100, 77, hugepages=False) == {0: 1001, 1: 2002}
    assert memory.of_vm(root, 100, 77, hugepages=True) == memory.numa_maps(NUMA_MAPS)
    assert memory.of_vm(root, 101, 77, hugepages=False) == memory.numa_maps(NUMA_MAPS)


def test_cgroup_v1_counts_pages(machine):
    write(machine, "sys/fs/cgroup/cpuset/cgroup.procs", "")
    stat = "total=7 N0=3 N1=4\nfile=2 N0=2 N1=0\nanon=5 N0=1 N1=4\nhierarchical_anon=9 N0=9 N1=0\n"
    write(machine, "sys/fs/cgroup/memory/qemu.slice/100.scope/memory.numa_stat", stat)
    page = os.sysconf("SC_PAGE_SIZE")
    assert memory.of_vm(Root(str(machine)), 100, 77, hugepages=False) == {0: page, 1: 4 * page}


def test_this_machine_and_a_real_process():
    root = Root("/")
    assert sum(node.free_mib for node in memory.read(root)) > 0
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("a kernel without NUMA")
    code = (
        "import mmap, sys; memory = mmap.mmap(-1, 64 << 20); memory.write(b'x' * (64 << 20));"
        "print('x', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        by_node = memory.numa_maps(root.read(f"proc/{process.pid}/numa_maps"))
        process.stdin.close()
    assert 64 << 20 <= sum(by_node.values()) < 256 << 20
