"""Memory by NUMA node: what is free, in which pages, and where a process's pages lie.

Rules: Documentation/admin-guide/mm/hugetlbpage.rst (per-node pools), Documentation/filesystems/proc.rst
(meminfo, buddyinfo, numa_maps), Documentation/ABI/stable/sysfs-devices-node (compact).
"""

import os
import re
from collections.abc import Iterable, Mapping

from pxsched.host import cgroup
from pxsched.root import Root
from pxsched.value import Value

NODE_DIR = "sys/devices/system/node"
POOL_DIR = "sys/kernel/mm/hugepages"
ANY_SIZE = 0  # Proxmox's `hugepages: any`


class Pool(Value):
    """Huge pages of one size on one node."""

    size_mib: int
    pages: int
    free: int

    @property
    def free_mib(self) -> int:
        return self.size_mib * self.free


class NodeMemory(Value):
    """free_mib: what new processes may have, page cache that can be dropped included, huge pages not.

    contiguous_mib: of that, what is free in blocks of 2 MiB and more; the rest would need compaction.
    """

    id: int
    total_mib: int
    free_mib: int
    contiguous_mib: int = 0
    pools: tuple[Pool, ...] = ()

    def huge_mib(self, size_mib: int) -> int:
        """What huge pages can give, those included that Proxmox makes of free memory when a VM starts."""
        return self.pool_mib(size_mib) + (self.free_mib // size_mib * size_mib if size_mib else self.free_mib)

    def pool_mib(self, size_mib: int) -> int:
        return sum(pool.free_mib for pool in self.pools if size_mib in (pool.size_mib, ANY_SIZE))


def read(root: Root) -> tuple[NodeMemory, ...]:
    """All nodes; a machine without NUMA is one."""
    contiguous = _contiguous_mib(root)
    names = [name for name in root.list(NODE_DIR) if re.fullmatch(r"node\d+", name, re.ASCII)]
    found = []
    for number in sorted(int(name.removeprefix("node")) for name in names):
        text = root.read(f"{NODE_DIR}/node{number}/meminfo")
        pools = _pools(root, f"{NODE_DIR}/node{number}/hugepages")
        if text:
            found.append(_node(number, text, contiguous, pools))
    if not found:
        text = root.read("proc/meminfo")
        return (_node(0, text, contiguous, _pools(root, POOL_DIR)),) if text else ()
    return tuple(found)


def free_mib(nodes: Iterable[NodeMemory]) -> dict[int, int]:
    """As placement takes it."""
    return {node.id: node.free_mib for node in nodes}


def free_hugepages_mib(nodes: Iterable[NodeMemory]) -> dict[tuple[int, int], int]:
    """As placement takes it: by node and page size, the size `any` included."""
    return {
        (node.id, size_mib): node.huge_mib(size_mib)
        for node in nodes
        for size_mib in (*(pool.size_mib for pool in node.pools), ANY_SIZE)
    }


def available_mib(root: Root) -> int | None:
    """MemAvailable of the whole machine."""
    kib = _fields(root.read("proc/meminfo") or "").get("MemAvailable")
    return None if kib is None else kib // 1024


def compact(root: Root, node: int) -> None:
    """Has the kernel move pages together on a node; takes seconds on a large one. Raises OSError."""
    with open(root.path(f"{NODE_DIR}/node{int(node)}/compact"), "w") as stream:
        stream.write("1\n")


def of_vm(root: Root, vmid: int, pid: int, *, hugepages: bool) -> Mapping[int, int] | None:
    """Bytes of a running VM's memory by node; None where nothing says it.

    hugepages: whether it has them. They are not counted in its cgroup; ordinary pages are, and asking the
    cgroup is much cheaper than a walk of the page tables.
    """
    if not hugepages:
        counted = cgroup.memory_bytes(root, cgroup.scope(vmid))
        if counted is not None:
            return counted
    text = root.read(f"proc/{int(pid)}/numa_maps")
    return numa_maps(text) if text else None


def numa_maps(text: str) -> dict[int, int]:
    """Bytes by node of all anonymous and shared mappings; files of programs and libraries left out."""
    total: dict[int, int] = {}
    for line in text.splitlines():
        size = re.search(r"\bkernelpagesize_kB=(\d+)", line)
        if "file=/" in line and "huge" not in line and "file=/dev/" not in line and "file=/memfd" not in line:
            continue
        for node, pages in re.findall(r"\bN(\d+)=(\d+)", line):
            page_bytes = int(size[1]) * 1024 if size else os.sysconf("SC_PAGE_SIZE")
            total[int(node)] = total.get(int(node), 0) + int(pages) * page_bytes
    return total


def _node(number: int, text: str, contiguous: Mapping[int, int], pools: tuple[Pool, ...]) -> NodeMemory:
    kib = _fields(text)
    return NodeMemory(
        id=number,
        total_mib=kib.get("MemTotal", 0) // 1024,
        free_mib=_free_kib(kib) // 1024,
        contiguous_mib=contiguous.get(number, 0),
        pools=pools,
    )


def _free_kib(kib: Mapping[str, int]) -> int:
    """The machine's own estimate, which nodes lack; there as si_mem_available() in mm/show_mem.c has it:
    half of the page cache, or the low watermark if that is less, has to stay.
    """
    if "MemAvailable" in kib:
        return kib["MemAvailable"]
    cache = kib.get("Active(file)", 0) + kib.get("Inactive(file)", 0)
    reclaimable = kib.get("SReclaimable", 0)
    low = kib.get("MemTotal", 0) // 64
    return kib.get("MemFree", 0) + cache - min(cache // 2, low) + reclaimable - min(reclaimable // 2, low)


def _fields(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"([\w()]+):\s+(\d+)", text, re.ASCII)}


def _pools(root: Root, base: str) -> tuple[Pool, ...]:
    """The pools of sizes that Proxmox can use, a whole number of MiB."""
    found = []
    for name in root.list(base):
        match = re.fullmatch(r"hugepages-(\d+)kB", name, re.ASCII)
        if match and int(match[1]) >= 1024:
            pages, free = (_count(root, f"{base}/{name}/{which}_hugepages") for which in ("nr", "free"))
            found.append(Pool(int(match[1]) // 1024, pages, free))
    return tuple(sorted(found, key=lambda pool: pool.size_mib))


def _count(root: Root, path: str) -> int:
    text = root.read(path) or ""
    return int(text) if text.isdecimal() else 0


def _contiguous_mib(root: Root) -> dict[int, int]:
    """`Node 0, zone Normal  1 2 3 ...`: free blocks of 1, 2, 4 ... pages."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total: dict[int, int] = {}
    for line in (root.read("proc/buddyinfo") or "").splitlines():
        match = re.match(r"Node\s+(\d+), zone\s+\S+((?:\s+\d+)+)$", line, re.ASCII)
        if match:
            sizes = [(page_bytes << order, int(count)) for order, count in enumerate(match[2].split())]
            large = sum(size * count for size, count in sizes if size >= 2 << 20)
            total[int(match[1])] = total.get(int(match[1]), 0) + large
    return {node: size // 2**20 for node, size in total.items()}


def events(root: Root) -> Mapping[str, int]:
    """What the kernel has counted since it began (/proc/vmstat), such as pages it moved, by its names."""
    return {
        name: int(count)
        for name, count in re.findall(r"^(\w+) (\d{1,20})$", root.read("proc/vmstat") or "", re.M)
    }
