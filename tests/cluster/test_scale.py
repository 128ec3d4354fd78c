"""Thirty-two nodes of 256 CPUs and a thousand VMs: what `fit` and `plan` cost, from the files on; and how the
work grows.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from bench import cluster as bench
from pxsched.cluster import planner, publication
from pxsched.cluster.paper import Paper
from pxsched.cluster.publication import Publication, Stranger, Vm
from pxsched.cluster.wrongs import Guest
from pxsched.host import cpulist
from pxsched.placement.request import Request, VmClass
from pxsched.value import replace

CHECKOUT = Path(__file__).resolve().parents[2]
CHILD = r"""
import re, resource, sys
from pxsched import cli
code = cli.main(sys.argv[1:])
spent = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: that begins with what the process had that started this one.
peak_kib = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
print(f"cpu {spent.ru_utime + spent.ru_stime:.3f} peak {peak_kib // 1024}", file=sys.stderr)
"""


def tree(base: Path) -> Path:
    """One node of the cluster as files: its own machine, and what all nodes published."""

    def put(relative: str, text: str) -> None:
        path = base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    topology = bench.machine(2, 16, 4, 2)
    put("sys/devices/system/cpu/online", "0-255")
    for cpu in topology.cpus.values():
        directory = f"sys/devices/system/cpu/cpu{cpu.id}"
        put(f"{directory}/topology/core_cpus_list", cpulist.format(cpu.siblings))
        put(f"{directory}/topology/physical_package_id", str(cpu.package))
        put(f"{directory}/topology/core_id", str(cpu.core))
        put(f"{directory}/cache/index3/level", "3")
        put(f"{directory}/cache/index3/shared_cpu_list", cpulist.format(topology.l3s[cpu.l3].cpus))
    for node in topology.nodes:
        directory = f"sys/devices/system/node/node{node.id}"
        put(f"{directory}/cpulist", cpulist.format(node.cpus))
        put(f"{directory}/meminfo", f"Node {node.id} MemTotal: {512 << 20} kB\nNode {node.id} MemFree: 1 kB")
    rng, settings = random.Random(1), []
    sheets = bench.sheets_of([topology] * 32, 262144)
    for vmid in range(100, 1100):
        name = f"n{vmid % 32:02}"
        [wish] = bench.wishes(rng, 1)
        wish = replace(wish, vmid=vmid, hugepage_mib=None)
        sheets[name] = bench.started(sheets[name], wish)
        text = f"cores: {wish.vcpus}\nmemory: {wish.memory_mib}\nscsi0: ceph:vm-{vmid}-disk-0,size=32G"
        put(f"etc/pve/nodes/{name}/qemu-server/{vmid}.conf", f"{text}\nhookscript: local:snippets/pxsched")
        if wish.vm_class is VmClass.DEDICATED:
            settings.append(f'[vm.{vmid}]\nclass = "dedicated"')
    for name, sheet in sheets.items():
        vms = tuple(Vm(one.held, one.nodes, 1024, one.leaves_mib) for one in sheet.tenants.values())
        said = Publication(name, time.time(), "0", sheet.host, vms, tuple(sheet.strangers.values()))
        text = json.dumps(publication.document(said), separators=(",", ":"))
        assert len(text) < 10_000, "a few KiB"
        put(f"etc/pve/nodes/{name}/pxsched.json", text)
    put("etc/pve/pxsched.toml", "\n".join(settings))
    put("etc/pve/storage.cfg", "rbd: ceph\n\tpool vms")
    os.symlink("nodes/n00", base / "etc/pve/local")
    return base


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    return tree(tmp_path_factory.mktemp("large"))


def cost(root: Path, *words: str) -> tuple[float, int]:
    """CPU seconds and MiB at most, Python's start included."""
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    argv = [sys.executable, "-c", CHILD, "--root", str(root), "cluster", *words, "--json"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    found = re.search(r"cpu ([\d.]+) peak (\d+)", done.stderr)
    assert found and json.loads(done.stdout)["schema"] == 1
    return float(found[1]), int(found[2])


@pytest.mark.slow
@pytest.mark.measures
@pytest.mark.parametrize(
    ("words", "most_s"), [(("fit", "500"), 0.3), (("plan", "--even"), 2.0), (("status",), 2.0)]
)
def test_a_large_cluster_is_answered_for_quickly_and_in_little_memory(large, words, most_s):
    nothing_s, _ = cost(large, "fit", "--vcpus", "1", "--nodes", "n00")
    spent_s, peak_mib = cost(large, *words)
    assert spent_s < most_s + min(nothing_s, 0.3), "beside Python's start and a look at one's own machine"
    assert peak_mib < 200


# Work, counted in calls of Python and of its built-in functions, which no other load on the machine changes.


def filled(nodes: int, vms: int) -> tuple[dict[str, Paper], bench.Known]:
    """Equal nodes of 256 CPUs, on which the VMs are spread evenly. Nothing is wrong with any."""
    rng = random.Random(1)
    sheets, requests = bench.sheets_of([bench.machine(2, 16, 4, 2)] * nodes, 524288), {}
    for vmid in range(100, 100 + vms):
        name, vcpus, own = f"n{vmid % nodes:02}", rng.choice((2, 4, 8)), rng.random() < 0.4
        vm_class = VmClass.DEDICATED if own else VmClass.SHARED
        load = None if own else round(rng.random() * vcpus * 0.4, 2)
        requests[vmid] = Request(vmid, vcpus, 4096, vm_class, cores=vcpus, load=load)
        sheets[name] = bench.started(sheets[name], requests[vmid])
    return sheets, bench.Known(requests)


def work(nodes: int, vms: int, *, drain: str = "") -> int:
    sheets, known = filled(nodes, vms)
    guests = [Guest(vmid, True) for vmid in known.requests]
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        planner.plan(sheets, guests, known, drain=drain, even=not drain)
    finally:
        sys.setprofile(None)
    return calls


def test_work_grows_no_faster_than_vms_times_nodes():
    small = work(4, 40)
    assert work(8, 80) < 4 * small and work(16, 160) < 16 * small, "as many on each of more nodes"
    assert work(4, 160) < 4 * 1.25 * small, "more on the same nodes"


def test_a_drain_asks_no_more_than_its_vms_times_nodes():
    small = work(4, 40, drain="n00")
    assert work(8, 80, drain="n00") < 2 * small, "as many VMs to move: more nodes to choose from"


def test_what_asks_most_is_a_cluster_where_nothing_helps(monkeypatch):
    """Every VM has no place, and fits nowhere: each node is asked for each VM once."""
    asked = 0
    place = Paper.place

    def counted(self: Paper, request: Request) -> object:
        nonlocal asked
        asked += 1
        return place(self, request)

    monkeypatch.setattr(Paper, "place", counted)
    sheets, requests = bench.sheets_of([bench.machine(1, 1, 2, 1)] * 6, 65536), {}
    for vmid in range(100, 124):
        requests[vmid] = Request(vmid, 8, 1024, VmClass.DEDICATED, cores=8)
        name = f"n{vmid % 6:02}"
        one = Stranger(vmid, False, sheets[name].host.topology.online, 0.1)
        sheets[name] = replace(sheets[name], strangers={**sheets[name].strangers, vmid: one})
    guests = [Guest(vmid, True) for vmid in requests]
    found = planner.plan(sheets, guests, bench.Known(requests), even=True)
    assert len(found.stays) == 24 and asked <= 24 * 5
