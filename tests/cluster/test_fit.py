"""Where a VM fits: each node's answer is what its own `plan` would say, and what is in the way is named."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pxsched.cluster import fit, view
from pxsched.host import cpulist
from pxsched.node import planning
from pxsched.placement.request import Placement
from tests.cluster.conftest import Cluster

MACHINES = (
    "pepc-milan0", "nri-server-snc-pmem", "hwloc-64amd64-4s2n4ca2co", "pepc-arl-h-1", "pepc-adl0",
    "ghw-offlineCPUs", "hwloc-16em64t-4s2c2t-offlines", "hwloc-fakeheterocpunuma",
)  # fmt: skip
POLICIES = {
    "shared": "",
    "dedicated": 'class = "dedicated"\n',
    "whole cores": 'class = "dedicated"\nsmt = "isolate"\n',
    "pairs": 'class = "dedicated"\nsmt = "require"\n',
    "confined": 'cpus = "0-3"\n',
}


def answers(cluster: Cluster, vmid: int, name: str = "pve1") -> dict[str, fit.Fit]:
    return {one.node: one for one in fit.of_vm(view.look(cluster.root(name)), vmid)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, machines: Path) -> Cluster:
    """A node of every kind of machine; some have VMs."""
    cluster = Cluster(
        tmp_path_factory.mktemp("mixed"), [machines / name / "root" for name in MACHINES]
    )
    cluster.settings('[vm.201]\nclass = "dedicated"\n')
    for number, name in enumerate(cluster.names[:5]):
        cluster.vm(name, 300 + number, "cores: 2\n", running=True)
    cluster.vm("pve1", 201, "cores: 8\n", running=True)
    cluster.publish()
    return cluster


@settings(max_examples=25)
@given(
    vcpus=st.integers(1, 40),
    memory_mib=st.sampled_from((512, 4096, 65536, 1 << 20)),
    policy=st.sampled_from(sorted(POLICIES)),
    extra=st.sampled_from(("", "hugepages: 2\nnuma: 1\n", "numa: 1\n", "affinity: 0-3\n")),
)
def test_it_agrees_with_each_nodes_own_plan(mixed, vcpus, memory_mib, policy, extra):
    mixed.settings(f'[vm.201]\nclass = "dedicated"\n[vm.100]\n{POLICIES[policy]}')
    mixed.vm("pve1", 100, f"memory: {memory_mib}\ncores: {vcpus}\n{extra}")
    found = answers(mixed, 100)
    for name in mixed.names:
        if name != "pve1":
            mixed.move(100, "pve1", name)
        own = planning.outlook(mixed.node(name), 100)
        if name != "pve1":
            mixed.move(100, name, "pve1")
        if own.claim is None:
            assert own.refused in found[name].against
        else:
            place = found[name].place
            assert isinstance(place, Placement) and found[name].fits
            assert (place.vcpus, place.nodes) == (own.claim.placement.vcpus, own.claim.placement.nodes)
            assert place.why == own.claim.placement.why


def test_the_best_node_comes_first(tmp_path, machines):
    """Twenty vCPUs: a node of Milan has them, on the other machine they span three."""
    cluster = Cluster(tmp_path, [machines / "pepc-milan0/root", machines / "hwloc-64amd64-4s2n4ca2co/root"])
    cluster.settings('[vm.100]\nclass = "dedicated"\n')
    cluster.vm("pve2", 100, "cores: 20\n")
    cluster.publish()
    first, second = fit.of_vm(view.look(cluster.root("pve1")), 100)
    assert (first.node, second.node) == ("pve1", "pve2")
    assert first.span and second.span and first.span.rank < second.span.rank


def test_where_it_runs_is_an_answer_too(pair):
    pair.vm("pve2", 100, "cores: 2\n", running=True)
    pair.publish()
    found = answers(pair, 100)
    assert found["pve2"].here and found["pve2"].fits and not found["pve1"].here


def test_exclusive_cpus_there_are_not_given_again(pair):
    pair.settings('[defaults]\nclass = "dedicated"\n')
    pair.vm("pve2", 101, "cores: 40\n", running=True)
    pair.vm("pve1", 100, "cores: 40\n", running=True)
    pair.publish()
    target = answers(pair, 100)["pve2"]
    taken = {cpu for vm in pair.looked()["pve2"].said.vms for cpu in vm.held.cpus}
    assert target.fits and not target.place.cpus & taken


def test_a_node_whose_settings_are_its_own_is_asked_by_them(pair):
    (pair.base / "pve2/etc/pxsched").mkdir()
    (pair.base / "pve2/etc/pxsched/pxsched.toml").write_text('[vm.100]\ncpus = "60-63"\n')
    pair.settings('[node.pve1.vm.100]\ncpus = "10-11"\n')
    pair.vm("pve1", 100, "cores: 2\n")
    pair.publish()
    places = {name: cpulist.format(one.place.cpus) for name, one in answers(pair, 100).items()}
    assert places == {"pve1": "10-11", "pve2": "60-63"}


def test_a_fence_around_vms_there_is_known(tmp_path, machines):
    cluster = Cluster(tmp_path, [machines / "ghw-offlineCPUs/root"] * 2)
    node = cluster.base / "pve2"
    (node / "sys").unlink()
    (node / "sys/fs/cgroup/qemu.slice").mkdir(parents=True)
    (node / "sys/devices").symlink_to(machines / "ghw-offlineCPUs/root/sys/devices")
    (node / "sys/fs/cgroup/qemu.slice/cpuset.cpus.effective").write_text("1\n")
    cluster.vm("pve1", 100, "cores: 1\n")
    cluster.publish()
    assert answers(cluster, 100)["pve2"].place.cpus == {1}


MAPPINGS = (
    "gpu\n\tmap id=10de:1eb8,node=pve1,path=0000:41:00.0\n\tmap id=10de:1eb8,node=pve2,path=0000:42:00\n\n"
    "nic\n\tlive-migration-capable 1\n\tmap id=15b3:101d,node=pve2,path=0000:42:00.0\n\n"
    "lonely\n\tmap id=10de:1eb8,node=pve1,path=0000:41:00.0\n"
)
STORAGES = (
    "dir: local\n\tpath /var/lib/vz\n\nzfspool: fast\n\tpool rpool\n\tnodes pve1\n\n"
    "lvmthin: thin\n\tvgname pve\n\nrbd: ceph\n\tpool vms\n\nnfs: old\n\tserver nas\n\tdisable\n"
)


def with_devices(cluster: Cluster, reserved: str = "") -> None:
    """A node of its own below the captured machine, with one PCI device."""
    node = cluster.base / "pve2"
    machine = (node / "sys").resolve()
    (node / "sys").unlink()
    (node / "sys/bus/pci/devices/0000:42:00.0").mkdir(parents=True)
    (node / "sys/bus/pci/devices/0000:42:00.0/numa_node").write_text("0\n")
    (node / "sys/devices").symlink_to(machine / "devices")
    (node / "run/qemu-server").mkdir(parents=True, exist_ok=True)
    (node / "run/qemu-server/pci-id-reservations").write_text(reserved)


@pytest.mark.parametrize(
    ("options", "running", "said"),
    [
        ("hostpci0: 0000:41:00.0\n", False, "hostpci0 is a device of its own node; a resource mapping"),
        ("hostpci0: mapping=lonely\n", False, "its mapping lonely names no device on pve2"),
        ("usb0: host=1-2\n", False, "usb0 is a device of its own node"),
        ("usb0: spice\n", False, None),
        ("usb0: mapping=key\n", False, "its USB mapping key names no device on pve2"),
        ("serial0: /dev/ttyS0\n", False, "serial0 is a device of its own node"),
        ("serial0: socket\n", False, None),
        ("lock: backup\n", False, "it is locked (backup)"),
        ("scsi0: fast:vm-100-disk-0,size=32G\n", False, "storage fast of scsi0 is not available on pve2"),
        ("scsi0: old:100/vm-100-disk-0.qcow2,size=32G\n", False, "storage old of scsi0 is not available"),
        ("scsi0: gone:vm-100-disk-0\n", False, "storage gone of scsi0 is not available on pve2"),
        ("scsi0: ceph:vm-100-disk-0,size=32G\n", True, None),
        ("scsi0: /dev/sdb\n", False, "scsi0 is /dev/sdb, which belongs to its own node"),
        ("ide2: none,media=cdrom\n", True, None),
        ("ide2: local:iso/debian.iso,media=cdrom\n", True, "ide2 is a local image; eject it first"),
        ("ide2: local:iso/debian.iso,media=cdrom\n", False, None),
        ("scsi0: thin:vm-100-disk-0\n[before]\ncores: 1\n", False, "scsi0 is local and the VM has snap"),
        ("scsi0: local:base-9-disk-0.qcow2/vm-100-disk-0.qcow2\n", False, "scsi0 is a linked clone on local"),
        ("cpu: x86-64-v4\n", False, "CPU type x86-64-v4 needs more than pve2 has (x86-64-v3)"),
        ("cpu: x86-64-v2-AES\n", False, "pve2 has no CPU flag aes"),
        ("cpu: x86-64-v2\n", False, None),
        ("cpu: custom-mine\n", False, "pve2 has no CPU flag aes"),
        ("cpu: custom-mine,flags=-aes\n", False, None),
        ("cpu: custom-gone\n", False, "CPU type custom-gone is not defined in the cluster"),
        ("cpu: host\n", True, "CPU type host: pve2 has another processor (Another one, without aes)"),
        ("cpu: host\n", False, None),
    ],
)
def test_what_keeps_it_from_another_node_is_said(pair, options, running, said):
    def processor(name, model, flags):
        path = pair.base / name / "proc/cpuinfo"
        path.unlink(missing_ok=True)
        path.write_text(f"vendor_id\t: GenuineIntel\nmodel name\t: {model}\nflags\t\t: {flags}\n")

    levels = (
        "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
    )
    processor("pve1", "One", levels + " aes")
    processor("pve2", "Another one", levels)
    pair.put("mapping/pci.cfg", MAPPINGS)
    pair.put("storage.cfg", STORAGES)
    pair.put("virtual-guest/cpu-models.conf", "cpu-model: mine\n\tflags +aes\n\treported-model kvm64\n")
    pair.vm("pve1", 100, f"cores: 2\n{options}", running=running)
    pair.publish()
    against = answers(pair, 100)["pve2"].against
    assert any(said in line for line in against) if said else against == ()


def test_local_disks_are_a_cost(pair):
    pair.put("storage.cfg", STORAGES)
    disks = "scsi0: thin:vm-100-disk-0,size=32G\nefidisk0: thin:vm-100-disk-1,size=528K\n"
    pair.vm("pve1", 100, f"cores: 2\n{disks}")
    pair.publish()
    found = answers(pair, 100)["pve2"]
    assert found.copy_mib == 32 * 1024 and "copies 32.0 GiB of local disks" in found.costs


def test_a_mapped_device_has_a_numa_node_on_each_node_and_may_be_taken(pair):
    pair.put("mapping/pci.cfg", MAPPINGS)
    with_devices(pair)
    pair.vm("pve1", 100, "cores: 2\nhostpci0: mapping=gpu\n")
    pair.publish()
    assert answers(pair, 100)["pve2"].place.why[1] == "its passed-through devices are on node 0"
    (pair.base / "pve2/run/qemu-server/pci-id-reservations").write_text("0000:42:00.0 777 pid:1\n")
    pair.publish()
    assert answers(pair, 100)["pve2"].against == ("VM 777 has all of mapping gpu on pve2",)


def test_some_devices_can_come_only_while_the_vm_is_stopped(pair):
    pair.put("mapping/pci.cfg", MAPPINGS)
    with_devices(pair)
    pair.vm("pve1", 100, "cores: 2\nhostpci0: mapping=gpu\n", running=True)
    pair.vm("pve1", 101, "cores: 2\nhostpci0: mapping=nic\n", running=True)
    pair.publish()
    assert answers(pair, 100)["pve2"].offline == "hostpci0 (mapping gpu) cannot be handed over"
    assert answers(pair, 101)["pve2"].offline == ""


def test_where_has_rules_would_bring_it_back_is_said(pair):
    pair.vm("pve1", 100, "cores: 2\n", running=True)
    pair.put("ha/resources.cfg", "vm: 100\n")
    pair.put("ha/rules.cfg", "node-affinity: own\n\tresources vm:100\n\tnodes pve1\n")
    pair.publish()
    found = answers(pair, 100)["pve2"]
    assert found.fits and "HA rule own wants it on pve1: it would not stay" in found.costs


def test_a_node_that_says_nothing_is_no_answer(pair):
    pair.vm("pve1", 100, "cores: 2\n")
    assert answers(pair, 100)["pve2"].against == ("it has published nothing: is pxsched installed there?",)
    pair.publish("pve2", at_s=1000.0)
    assert "minutes old: does its timer run?" in answers(pair, 100)["pve2"].against[0]
    pair.publish("pve2")
    pair.corosync(offline=("pve2",))
    assert answers(pair, 100)["pve2"].against == ("it is offline",)


def test_clocks_that_differ_much_are_said_whichever_is_ahead(pair):
    pair.vm("pve1", 100, "cores: 2\n")
    now_s = time.time()
    pair.publish("pve2", at_s=now_s + 86400)
    assert answers(pair, 100)["pve2"].against == ("its clock is 1440 minutes ahead of ours",)
    pair.publish("pve2", at_s=now_s + 60)
    assert answers(pair, 100)["pve2"].fits


def test_what_is_there_and_cannot_be_read_is_not_taken_for_a_node_without_pxsched(pair):
    pair.vm("pve1", 100, "cores: 2\n")
    (pair.pve / "nodes/pve2/pxsched.json").mkdir()
    assert answers(pair, 100)["pve2"].against == ("/etc/pve/nodes/pve2/pxsched.json cannot be read",)


# As a user meets it.


def test_the_command_says_where_and_why_not(pair, run):
    pair.settings('[vm.100]\nclass = "dedicated"\n')
    pair.vm("pve1", 100, "cores: 4\nmemory: 1024\n", running=True)
    pair.vm("pve2", 101, "cores: 2\nhostpci0: 0000:01:00.0\n")
    pair.publish()
    code, out, _ = run(pair, "pve1", "cluster", "fit", "100")
    assert code == 0 and out.startswith("VM 100 fits on 2 of 2 nodes\npve1: runs there, 1 NUMA node, 1 L3")
    assert "\npve2: yes, 1 NUMA node, 1 L3 group, 0.50 wanted per CPU" in out
    code, out, _ = run(pair, "pve1", "cluster", "fit", "101", "--nodes", "pve1")
    assert code == 1 and "VM 101 fits on none of 1 nodes\npve1: no: hostpci0 is a device" in out


def test_a_vm_that_does_not_exist_yet_is_described(pair, run):
    pair.publish()
    words = ("cluster", "fit", "--vcpus", "6", "--memory", "2048", "--class", "dedicated", "--json")
    code, out, _ = run(pair, "pve1", *words)
    document = json.loads(out)
    assert code == 0 and document["schema"] == 1
    assert [one["node"] for one in document["nodes"]] == ["pve1", "pve2"]
    assert document["nodes"][0]["spans"] == {"nodes": 1, "l3": 1} and len(document["nodes"][0]["vcpus"]) == 6


@pytest.mark.parametrize("words", [(), ("100", "--vcpus", "2"), ("100", "--memory", "2")])
def test_half_a_question_is_a_usage_error(pair, run, words):
    with pytest.raises(SystemExit) as error:
        run(pair, "pve1", "cluster", "fit", *words)
    assert error.value.code == 2


def test_a_node_that_is_none_is_named(pair, run):
    pair.vm("pve1", 100, "cores: 4\n")
    code, _, err = run(pair, "pve1", "cluster", "fit", "100", "--nodes", "pve3")
    assert code == 1 and "there is no node 'pve3'; did you mean 'pve" in err
