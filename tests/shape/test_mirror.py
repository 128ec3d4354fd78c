"""What mirrors a VM's pins, what is refused and why; and what guests make of the models Proxmox offers."""

import pytest

from pxsched.host.processor import Processor
from pxsched.shape import cpumodel, options
from pxsched.shape.cpumodel import Groups
from pxsched.shape.mirror import NoMirror
from pxsched.shape.picture import parts, seats, seen, truth
from pxsched.shape.smp import Unreadable, apic_id, levels

from .conftest import MILAN, XEON, changed, mirrored, traits_of
from .machines import machine

# 2 nodes x 2 L3 groups x 4 cores x 2 threads; the sibling of CPU n is n + 16.
TWO_NODES = machine()
PAIRS = (0, 16, 1, 17, 4, 20, 5, 21)


def vm(count: int, **more: str) -> dict[str, str]:
    return {"cores": str(count), "memory": "1024", "cpu": "EPYC-Milan"} | more


def refusal(cpus, options=None, host=MILAN) -> str:
    with pytest.raises(NoMirror) as refused:
        mirrored(TWO_NODES, cpus, options or vm(len(cpus)), host)
    return str(refused.value)


def test_siblings_and_l3_groups_become_threads_and_dies():
    _, changes = mirrored(TWO_NODES, PAIRS, vm(8))
    assert changes == {"args": "-smp sockets=1,dies=2,cores=2,threads=2"}


def test_where_dies_are_not_seen_l3_groups_become_sockets():
    _, changes = mirrored(TWO_NODES, PAIRS, vm(8, cpu="Skylake-Server"), XEON)
    assert changes == {"sockets": "2", "cores": "4", "args": "-smp sockets=2,dies=1,cores=2,threads=2"}


def test_sockets_of_whole_cores_need_no_args():
    _, changes = mirrored(TWO_NODES, (0, 1, 4, 5), vm(4, cpu="x86-64-v2-AES"))
    assert changes == {"sockets": "2", "cores": "2"}


def test_nodes_get_memory_in_proportion_and_the_hosts_distances():
    topology = machine(distances={(0, 1): 32, (1, 0): 32})
    _, changes = mirrored(topology, (0, 1, 2, 8), vm(4, memory="4096"))
    assert changes["numa0"] == "cpus=0-2,memory=3072"
    assert changes["numa1"] == "cpus=3-5,memory=1024"
    assert changes["args"].endswith("-numa dist,src=0,dst=1,val=32")


def test_pins_of_the_admin_bind_guest_nodes_to_theirs_and_placed_ones_do_not():
    _, changes = mirrored(TWO_NODES, (0, 8), vm(2, affinity="0,8"))
    assert changes["numa1"] == "cpus=1,memory=512,hostnodes=1,policy=preferred"
    _, changes = mirrored(TWO_NODES, (0, 8), vm(2))
    assert changes["numa1"] == "cpus=1,memory=512"


def test_a_short_last_group_is_made_of_absent_vcpus_that_numa_rules_name():
    topology = machine(nodes=2, l3s=1)
    found, changes = mirrored(topology, (0, 1, 2, 3, 4, 5), vm(6))
    assert (found.smp.cpus, found.smp.maxcpus) == (6, 8)
    assert changes["args"] == "-smp maxcpus=8,sockets=2,dies=1,cores=4,threads=1"
    assert changes["numa1"].startswith("cpus=4-7,")
    assert "sockets" not in changes, "Proxmox counts sockets x cores, which stays six"


def test_an_admins_numa_rules_that_are_true_stay_and_get_the_absent_vcpus():
    topology = machine(nodes=2, l3s=1)
    rules = {
        "numa": "1",
        "numa0": "cpus=0-3,memory=500",
        "numa1": "memory=524,cpus=4-5,hostnodes=1,policy=bind",
    }
    _, changes = mirrored(topology, (0, 1, 2, 3, 4, 5), vm(6, **rules))
    assert changes["numa1"] == "memory=524,cpus=4-7,hostnodes=1,policy=bind"
    assert "numa0" not in changes


def test_absent_vcpus_are_on_the_one_node_of_a_guest_that_has_numa():
    pins = (0, 16, 1, 17, 2)
    rules = {"numa": "1", "numa0": "cpus=0-4,memory=1024"}
    assert mirrored(TWO_NODES, pins, vm(5, **rules))[1]["numa0"] == "cpus=0-5,memory=1024"
    # Proxmox's own node lists the configured vCPUs only; huge pages need it.
    assert mirrored(TWO_NODES, pins, vm(5, numa="1"))[1]["numa"] == "0"
    assert "numa" not in mirrored(TWO_NODES, pins, vm(5, numa="1", hugepages="2"))[1]


def test_what_args_has_stays_in_front():
    _, changes = mirrored(TWO_NODES, PAIRS, vm(8, args="-device 'pvpanic'  -snapshot"))
    assert changes["args"].startswith("-device 'pvpanic'  -snapshot -smp sockets=1,")


def test_asymmetric_distances_are_all_given():
    topology = machine(distances={(0, 1): 32, (1, 0): 40})
    _, changes = mirrored(topology, (0, 8), vm(2))
    assert "src=0,dst=1,val=32" in changes["args"]
    assert "src=1,dst=0,val=40" in changes["args"]


@pytest.mark.parametrize(
    ("cpus", "reason"),
    [
        ((0, 1, 16, 17), "siblings of a core are not vCPUs with neighbouring numbers"),
        ((0, 4, 1, 5), "the vCPUs of an L3 group have no neighbouring numbers"),
        ((0, 16, 1, 4, 20), "some cores serve more of its vCPUs than others: CPU 0,16 but CPU 1"),
        ((0, 4, 5), "the L3 groups have 1 + 2 of its cores"),
        ((0, 0), "several vCPUs are pinned to one CPU"),
    ],
)
def test_what_qemu_cannot_build_is_refused_with_the_reason(cpus, reason):
    assert reason in refusal(cpus)


def test_a_refusal_names_an_order_that_can_be_mirrored():
    hint = refusal((0, 4, 5))
    assert "affinity 4,5,0 has the same CPUs" in hint
    mirrored(TWO_NODES, (4, 5, 0), vm(3))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"hotplug": "disk,cpu"}, "`hotplug` has cpu"),
        ({"vcpus": "4"}, "`vcpus` is below sockets x cores"),
        ({"args": "-smp 8,cores=8"}, "an -smp of your own"),
        ({"args": "-machine smp-cache.0.cache=l3,smp-cache.0.topology=core"}, "an smp-cache of your own"),
        ({"template": "1"}, "template"),
        ({"cpu": "EPYC-Milan,flags=-topoext"}, "would not see siblings"),
    ],
)
def test_what_stands_in_the_way_of_a_vm_is_named(more, reason):
    assert reason in refusal(PAIRS, vm(8, **more))


def test_memory_hotplug_excludes_nodes():
    assert "`hotplug` has memory" in refusal((0, 8), vm(2, hotplug="memory"))


def test_cpu_hotplug_takes_sockets_of_whole_cores():
    _, changes = mirrored(TWO_NODES, (0, 1, 4, 5), vm(4, cpu="kvm64", hotplug="cpu"))
    assert changes == {"sockets": "2", "cores": "2"}


@pytest.mark.parametrize(
    "args", ["-smp eight", "-smp 8,threads=3", "-numa node,cpus=0-3", "-readconfig x", "'open"]
)
def test_args_that_hide_what_the_guest_is_told_are_named(args):
    with pytest.raises(Unreadable, match="args"):
        options.read(vm(8, args=args))


def test_a_later_smp_is_merged_key_by_key_as_in_qemu():
    assert options.read(vm(4, args="-smp cores=2,threads=2")).smp == levels(4, 1, 1, 2, 2)
    assert options.read(vm(4, args="-smp 3")).smp == levels(3, 1, 1, 4, 1)


@pytest.mark.parametrize(
    ("cpu", "host", "groups", "siblings"),
    [
        ("EPYC-Rome", MILAN, Groups.DIES, True),
        ("EPYC-Genoa-v1", XEON, Groups.DIES, True),
        ("EPYC-Milan,flags=-topoext", MILAN, Groups.SOCKETS, False),
        ("EPYC", MILAN, Groups.EIGHTS, True),
        ("EPYC-IBPB", MILAN, Groups.EIGHTS, True),
        ("Skylake-Server-noTSX-IBRS", XEON, Groups.SOCKETS, True),
        ("x86-64-v2-AES", XEON, Groups.SOCKETS, True),
        ("x86-64-v2-AES", MILAN, Groups.SOCKETS, False),
        ("", MILAN, Groups.SOCKETS, False),
        ("host", MILAN, Groups.SOCKETS, False),
        ("host", Processor("AuthenticAMD", 0x17, 1, topoext=True), Groups.EIGHTS, False),
        ("host", XEON, Groups.SOCKETS, True),
        ("Opteron_G5", XEON, Groups.SOCKETS, False),
    ],
)
def test_what_a_model_shows(cpu, host, groups, siblings):
    found = traits_of(options.read(vm(2, cpu=cpu)), host)
    assert (found.groups, found.siblings) == (groups, siblings)


def test_an_amd_guest_of_a_general_model_gets_topoext_and_its_caches():
    _, changes = mirrored(TWO_NODES, PAIRS[:4], vm(4, cpu="x86-64-v2-AES"))
    assert "-global qemu64-x86_64-cpu.topoext=on" in changes["args"]
    assert "-global qemu64-x86_64-cpu.xlevel=0x8000001e" in changes["args"]
    again = options.read(changed(vm(4, cpu="x86-64-v2-AES"), changes))
    assert traits_of(again, MILAN).siblings


def test_a_guest_whose_processor_we_do_not_know_is_not_told_of_siblings():
    assert "not known" in refusal(PAIRS, vm(8, cpu="host"), Processor())
    with pytest.raises(Unreadable, match="custom-mine"):
        options.read(vm(8, cpu="custom-mine"))


def test_the_model_epyc_sees_groups_of_eight_numbers_which_sometimes_fit():
    naples = machine(nodes=2, l3s=1)  # groups of 4 cores x 2 threads, as it has
    cpus = (0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15)
    found, _ = mirrored(naples, cpus, vm(16, cpu="EPYC"))
    assert seen(found.smp, found.node_of(), cpumodel.Traits(Groups.EIGHTS, True)) == truth(
        seats(naples, cpus)
    )
    assert "eight APIC numbers" in refusal((0, 1, 4, 5), vm(4, cpu="EPYC"))


def test_apic_numbers_are_those_of_qemu():
    assert [apic_id(levels(6, 1, 2, 3, 1), vcpu) for vcpu in range(6)] == [0, 1, 2, 4, 5, 6]


def test_vcpus_that_no_rule_lists_are_on_the_first_node():
    told = options.read(vm(4, numa="1", numa0="cpus=1,memory=512", numa1="cpus=2,memory=512"))
    picture = seen(told.smp, told.node_of, traits_of(told, MILAN))
    assert picture.nodes == parts("aaba")


def test_guest_nodes_with_huge_pages_name_their_host_node_and_hold_whole_pages():
    big = {"numa": "1", "hugepages": "1024", "memory": "4096"}
    _, changes = mirrored(TWO_NODES, (8, 9, 10, 0, 1, 2), vm(6, **big))
    assert changes["numa0"] == "cpus=0-2,memory=2048,hostnodes=1,policy=preferred"
    _, changes = mirrored(TWO_NODES, (0, 1, 2, 8, 9, 10), vm(6, **big))
    assert changes == {"sockets": "2", "cores": "3"}, "Proxmox binds socket i to host node i"
    assert "in pages of 1024 MiB" in refusal((0, 8), vm(2, numa="1", hugepages="1024", memory="1536"))


def test_huge_pages_that_the_admin_bound_to_guest_nodes_stay():
    rules = {"numa": "1", "hugepages": "2", "numa0": "cpus=0,memory=512,hostnodes=0,policy=bind",
             "numa1": "cpus=1,memory=512,hostnodes=1,policy=bind"}  # fmt: skip
    assert "huge pages are bound to guest nodes" in refusal((0, 1), vm(2, **rules))
