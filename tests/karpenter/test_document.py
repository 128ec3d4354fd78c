"""The node-settings document of Karpenter's Proxmox provider."""

import json

from pxsched.host import topology
from pxsched.karpenter import document
from pxsched.settings.policy import NodeSettings
from pxsched.value import plain

GIB_KIB = 1 << 20


def build(root, **settings):
    return plain(document.build(topology.read(root), NodeSettings(**settings)))


def test_it_carries_what_the_provider_asks_for(epyc):
    described = build(epyc, housekeeping="0,32", karpenter_reserved_mib=2048)
    assert described["cores"] == 32
    assert described["sockets"] == 1
    assert described["threads"] == 2
    assert described["uncorecaches"] == 4  # L3 caches
    assert described["nodes"]["1"] == {"cpus": "8-15,40-47", "memsize": 131_709_440 * 1024}
    assert described["reservedcpus"] == [0, 32]
    assert described["reservedmemory"] == 2048 << 20


def test_it_carries_l3_groups_and_siblings_for_readers_that_want_more(epyc):
    described = build(epyc)
    assert described["l3"] == ["0-7,32-39", "8-15,40-47", "16-23,48-55", "24-31,56-63"]
    assert described["smt"][:2] == ["0,32", "1,33"]


def test_every_l3_group_of_a_node_counts(machine):
    assert build(machine([("0-15", 4 * GIB_KIB)], l3_cores=4))["uncorecaches"] == 2


def test_without_smt_there_is_one_thread_per_core(machine):
    described = build(machine([("0-3", 4 * GIB_KIB)], siblings=1))
    assert (described["cores"], described["threads"], described["smt"]) == (4, 1, [])


def test_memory_only_nodes_are_left_out(machine):
    assert list(build(machine([("0-3", 4 * GIB_KIB), ("", 8 * GIB_KIB)]))["nodes"]) == ["0"]


def test_nothing_but_node_settings_lies_where_the_provider_reads_strictly(epyc, run_karpenter):
    written = json.loads(run_karpenter(epyc, "settings", "--region", "eu"))
    assert list(written) == ["eu"]
    assert list(written["eu"]) == ["pve1"]
    assert written["eu"]["pve1"]["schema"] == 1


def test_the_region_is_the_clusters_name_when_none_is_given(epyc, run_karpenter, tmp_path):
    (tmp_path / "root/etc/pve/corosync.conf").write_text("totem {\n  cluster_name: lab-7\n}\n")
    assert list(json.loads(run_karpenter(epyc, "settings"))) == ["lab-7"]
