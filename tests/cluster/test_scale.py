"""Thirty-two nodes of 256 CPUs and a thousand VMs: what `fit` and `plan` cost, from the files on. And the
rules that the comparison in bench/ is made with.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import cluster as bench
from bench.models import schedulers
from pxsched.cluster import publication
from pxsched.cluster.publication import Publication, Vm
from pxsched.host import cpulist
from pxsched.placement.request import VmClass
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


# The rules of others, as far as figures of them are known.


def test_imbalance_is_0_where_all_are_alike_and_1_where_one_has_all():
    assert schedulers.imbalance([0.5, 0.5, 0.5]) == 0 and schedulers.imbalance([0, 0]) == 0
    assert schedulers.imbalance([1]) == 0
    for count in (2, 3, 8):
        assert schedulers.imbalance([1, *[0] * (count - 1)]) == pytest.approx(1)


def test_a_start_goes_to_the_emptiest_of_equal_nodes_and_ties_to_the_smaller_name():
    nodes = [schedulers.Node(name, 16, 65536) for name in ("b", "a", "c")]
    guests = [schedulers.Guest(100 + number, 4, 8192, 1.0) for number in range(3)]
    assert schedulers.crs_start(nodes, guests, {}, guests[0], dynamic=False) == "a"
    places = {100: "a", 101: "b"}
    assert schedulers.crs_start(nodes, guests, places, guests[2], dynamic=False) == "c"


def test_auto_rebalance_waits_three_rounds_and_makes_one_move():
    nodes = [schedulers.Node(name, 16, 65536) for name in "ab"]
    guests = [schedulers.Guest(100 + number, 4, 8192, 4.0) for number in range(4)]
    places = dict.fromkeys(range(100, 104), "a")
    assert schedulers.crs_rebalance(nodes, guests, places, dynamic=True, rounds=2) == []
    assert schedulers.crs_rebalance(nodes, guests, places, dynamic=True, rounds=3) == [(100, "a", "b")]
    assert len(schedulers.crs_rebalance(nodes, guests, places, dynamic=True, rounds=60)) == 2


def test_proxlb_moves_the_smallest_first_until_memory_is_within_ten_points():
    nodes = [schedulers.Node(name, 16, 65536) for name in "ab"]
    guests = [schedulers.Guest(100 + number, 2, 8192 * (number + 1), 1.0) for number in range(3)]
    places = dict.fromkeys(range(100, 103), "a")
    assert schedulers.proxlb(nodes, guests, places, method="memory") == [(100, "a", "b"), (101, "a", "b")]


def test_where_there_is_room_ours_leaves_nobody_without_a_place():
    rng = random.Random(3)
    topologies = [rng.choice(bench.KINDS) for _ in range(6)]
    requests = bench.wishes(rng, 30)
    found = {
        rule: bench.measure(*bench.simulate(rule, topologies, requests, ()), requests) for rule in bench.RULES
    }
    assert found["pxsched"][0] == 0 <= min(one[0] for one in found.values())
    assert found["pxsched"][2] <= min(one[2] for one in found.values())
