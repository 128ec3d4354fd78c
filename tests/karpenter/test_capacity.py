"""What the capacity VM says about a machine."""

import pytest

from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.host import cpulist, topology
from pxsched.karpenter import capacity
from pxsched.settings.policy import NodeSettings

from .conftest import make_machine

EXAMPLE = """\
#Karpenter discovery service
affinity: 0-7,32-39,8-15,40-47,16-23,48-55,24-31,56-63
cores: 64
cpu: host
memory: 507904
name: node-capacity
numa: 1
numa0: cpus=0-15,hostnodes=0,memory=126976
numa1: cpus=16-31,hostnodes=1,memory=126976
numa2: cpus=32-47,hostnodes=2,memory=126976
numa3: cpus=48-63,hostnodes=3,memory=126976
tags: karpenter
"""

GIB_KIB = 1 << 20


def options(root, **settings):
    return capacity.build(topology.read(root), NodeSettings(**settings))


def test_the_documented_machine_gives_the_documented_configuration_to_the_letter(epyc):
    assert capacity.text(options(epyc)) == EXAMPLE


def test_our_own_parser_reads_it_back_as_the_same_machine(epyc):
    parsed = config.parse(capacity.text(options(epyc)))
    vm = config.machine(parsed)
    assert parsed.warnings == ()
    for number, node in enumerate(vm.guest_nodes):
        # positions in the ordered list, as the reader takes them
        offered = {vm.affinity[position] for position in node.cpus}
        assert offered == topology.read(epyc).nodes[number].cpus


def test_cpus_that_several_nodes_claim_are_offered_once(tmp_path):
    everything = make_machine(tmp_path, [("0-7", 8 * GIB_KIB)])
    for number in range(1, 8):
        directory = tmp_path / f"sys/devices/system/node/node{number}"
        directory.mkdir()
        (directory / "cpulist").write_text("0-7\n")
        (directory / "meminfo").write_text(f"Node {number} MemTotal:       {8 * GIB_KIB} kB\n")
    assert options(everything)["cores"] == "8"
    assert options(everything)["affinity"] == "0-7"


@pytest.mark.parametrize(
    ("kib", "mib"),
    [
        (131_709_440, 126_976),  # 125.6 GiB: 125 whole ones, one held back
        (125 * GIB_KIB, 124 * 1024),
        (2 * GIB_KIB, 1024),
        (2 * GIB_KIB - 4, 1024),  # one whole GiB: nothing to hold back
        (GIB_KIB, 1024),
    ],
)
def test_memory_is_whole_gib_and_one_is_held_back_where_there_is_more(machine, kib, mib):
    assert options(machine([("0-3", kib)]))["memory"] == str(mib)


def test_a_machine_with_no_memory_to_offer_is_refused(machine):
    with pytest.raises(UserError, match="no NUMA node has CPUs and 1 GiB"):
        options(machine([("0-3", GIB_KIB - 1)]))


def test_nodes_without_cpus_are_left_out_and_numbers_stay_dense(machine):
    root = machine([("0-3", 4 * GIB_KIB), ("", 64 * GIB_KIB), ("4-7", 4 * GIB_KIB)])
    found = options(root)
    assert found["numa1"] == "cpus=4-7,hostnodes=2,memory=3072"
    assert "numa2" not in found
    assert found["memory"] == "6144"


def test_offline_cpus_are_not_offered(machine, tmp_path):
    root = machine([("0-7", 8 * GIB_KIB)])
    (tmp_path / "root/sys/devices/system/cpu/online").write_text("0-2,4-7\n")
    assert options(root)["affinity"] == "0-2,4-7"
    assert options(root)["cores"] == "7"


def test_reserved_cpus_are_not_offered_where_the_reader_counts_right_without_them(machine):
    root = machine([("0-7", 4 * GIB_KIB)], siblings=1)
    found = options(root, housekeeping="0", reserved_cpus="7")
    assert (found["affinity"], found["cores"]) == ("1-6", "6")
    assert found["numa0"] == "cpus=0-5,hostnodes=0,memory=3072"


def test_reserving_every_cpu_is_refused(epyc):
    with pytest.raises(UserError, match="no CPU is left"):
        options(epyc, housekeeping="0-63")


def test_reserved_memory_is_taken_from_all_nodes_alike(epyc):
    found = options(epyc, karpenter_reserved_mib=4 * 1024)
    assert {found[f"numa{n}"].rpartition("=")[2] for n in range(4)} == {str(126_976 - 1024)}
    assert found["memory"] == str(507_904 - 4 * 1024)


def test_what_a_small_node_cannot_reserve_the_others_do(machine):
    root = machine([("0-3", 2 * GIB_KIB), ("4-7", 33 * GIB_KIB)])
    found = options(root, karpenter_reserved_mib=10 * 1024)
    assert found["numa0"].startswith("cpus=0-3,hostnodes=1,") and "numa1" not in found
    # 35 GiB less 10 are 25, on the large node; one held back
    assert found["numa0"].endswith(f"memory={24 * 1024}")


def test_a_run_of_cpus_over_two_nodes_stays_two_lists(machine):
    found = options(machine([("0-3", 4 * GIB_KIB), ("4-7", 4 * GIB_KIB)]))
    assert found["affinity"] == "0-3,4-7"
    assert cpulist.parse_ordered(found["affinity"]) == tuple(range(8))


def test_a_node_with_one_cpu_has_one_position(machine):
    found = options(machine([("0", 2 * GIB_KIB), ("1", 2 * GIB_KIB)], siblings=1))
    assert found["numa1"] == "cpus=1,hostnodes=1,memory=1024"


def test_more_than_eight_nodes_are_refused_with_advice(machine):
    root = machine([(str(cpu), 4 * GIB_KIB) for cpu in range(9)], siblings=1)
    with pytest.raises(UserError, match="numa0 to numa7") as caught:
        options(root)
    assert "karpenter settings" in caught.value.hint


def test_unknown_memory_is_named_instead_of_guessed(machine, tmp_path):
    root = machine([("0-3", 4 * GIB_KIB)])
    (tmp_path / "root/sys/devices/system/node/node0/meminfo").unlink()
    with pytest.raises(UserError, match="memory of NUMA node 0 is unknown"):
        options(root)
