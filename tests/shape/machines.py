"""Regular machines as sysfs trees, and as what is read of them."""

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pxsched.host import cpulist
from pxsched.host.topology import Topology, read
from pxsched.root import Root
from pxsched.value import NOTHING


def write(
    base: Path,
    *,
    nodes: int = 2,
    l3s: int = 2,
    cores: int = 4,
    threads: int = 2,
    distances: Mapping[tuple[int, int], int] = NOTHING,
) -> None:
    """`cores` in each of `l3s` groups of each node, a package each; CPU c + t * cores is of core c."""
    total = nodes * l3s * cores
    for cpu in range(total * threads):
        core = cpu % total
        siblings = cpulist.format(range(core, total * threads, total))
        together = [other for other in range(total * threads) if other % total // cores == core // cores]
        mine = base / f"sys/devices/system/cpu/cpu{cpu}"
        _files(mine / "topology", core_cpus_list=siblings, physical_package_id=core // (l3s * cores))
        _files(mine / "cache/index3", level=3, size="32768K", shared_cpu_list=cpulist.format(together))
    _files(base / "sys/devices/system/cpu", online=f"0-{total * threads - 1}")
    for node in range(nodes):
        cpus = [cpu for cpu in range(total * threads) if cpu % total // (l3s * cores) == node]
        row = [distances.get((node, other), 10 if other == node else 20) for other in range(nodes)]
        _files(
            base / f"sys/devices/system/node/node{node}",
            cpulist=cpulist.format(cpus),
            distance=" ".join(map(str, row)),
            meminfo=f"Node {node} MemTotal: 67108864 kB\nNode {node} MemFree: 67108864 kB",
        )


def _files(directory: Path, **contents: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_text(f"{content}\n")


def machine(**how: object) -> Topology:
    return _machine(tuple((key, tuple(v.items()) if isinstance(v, dict) else v) for key, v in how.items()))


@functools.cache
def _machine(how: tuple[tuple[str, object], ...]) -> Topology:
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), **{key: dict(v) if isinstance(v, tuple) else v for key, v in how})
        return read(Root(directory))
