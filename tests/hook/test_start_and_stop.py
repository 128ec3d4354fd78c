"""A VM that starts is placed and pinned; when it stops nothing is left. Real QEMU, real threads."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.measures,
    pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"),
]


def lines_of_ours(output):
    return [line for line in output.splitlines() if line.startswith("pxsched: ")]


def test_a_pinned_vm_gets_its_cpus_in_written_order(host):
    host.started(100, cores=2, affinity="1,0")
    assert host.masks(100) == ["1", "0"]
    assert host.status()["vms"][0]["class"] == "pinned"


def test_a_range_and_an_odd_order_are_read_as_written(host):
    host.started(100, cores=4, affinity="1,0-1,0")
    assert host.masks(100) == ["1", "0", "1", "0"]


def test_a_constrained_vm_floats_in_its_set(host):
    host.started(100, cores=2, affinity="1")
    assert host.masks(100) == ["1", "1"]
    assert host.status()["vms"][0]["class"] == "constrained"


def test_a_shared_vm_floats_in_its_home(host):
    host.started(100, cores=2)
    assert host.masks(100) == ["0-1", "0-1"]


def test_a_dedicated_vm_has_its_cpus_for_itself(host):
    host.settings('[node]\nhousekeeping = "0"\n[vm.100]\nclass = "dedicated"\n')
    host.started(101, cores=1, affinity="1")
    host.stop(101)
    host.started(100, cores=1)
    assert host.masks(100) == ["1"]
    vcpus = host.sandbox.vcpus(100).values()
    others = {mask for tid, mask in host.all_masks(100).items() if tid not in vcpus}
    assert others == {"0"}, "QEMU's other threads belong on the housekeeping CPU"


def test_two_vms_never_have_one_cpu_dedicated(host):
    host.settings('[node]\nhousekeeping = "0"\n[defaults]\nclass = "dedicated"\n')
    host.started(100, cores=1)
    output = host.start(host.create(101, cores=1)).output
    assert "runs unplaced: needs 1 exclusive CPU" in output
    assert host.masks(101) == ["0-1"]


def test_strict_refuses_what_cannot_be_placed(host):
    host.settings('[node]\nhousekeeping = "0"\n[defaults]\nclass = "dedicated"\nstrict = true\n')
    host.started(100, cores=1)
    refused = host.sandbox.qm("start", host.create(101, cores=1), check=False)
    assert refused.code != 0
    assert "refused" in refused.output
    assert host.sandbox.pid(101) is None


def test_a_shared_vm_makes_room_for_a_dedicated_one(host):
    host.settings('[node]\nhousekeeping = ""\n[vm.101]\nclass = "dedicated"\n')
    host.started(100, cores=1)
    assert host.masks(100) == ["0-1"]
    host.started(101, cores=1)
    assert host.masks(101) == ["1"]
    assert host.masks(100) == ["0"]


def test_nothing_is_left_after_a_stop(host):
    host.started(100, cores=2, affinity="1,0")
    host.stop(100)
    assert host.leftovers() == []
    status = host.status()
    assert (status["vms"], status["knobs"], status["warnings"]) == ([], [], [])


def test_a_killed_vm_leaves_nothing(host, eventually):
    host.started(100, cores=2, affinity="1,0")
    os.kill(host.sandbox.pid(100), signal.SIGKILL)
    assert eventually(lambda: host.leftovers() == [])


def test_a_hot_plugged_vcpu_is_placed_at_the_next_look(host):
    host.create(100, cores=2, vcpus=1, affinity="1,0", hotplug="cpu")
    host.start(100)
    assert host.status()["vms"][0]["class"] == "constrained"
    host.sandbox.qm("set", 100, vcpus=2)
    assert len(host.masks(100)) == 2
    host.hook(100, "post-start")
    assert host.masks(100) == ["1", "0"], "now it has as many vCPUs as `affinity` lists CPUs"


def test_vcpus_that_args_adds_are_placed_like_all_others(host):
    host.create(100, cores=1, affinity="1,0", args="-smp 2,cores=1,threads=2,maxcpus=2")
    host.start(100)
    assert host.masks(100) == ["1", "0"]
    assert host.status()["vms"][0]["class"] == "pinned"


def test_disabling_puts_a_running_vm_back(host):
    host.started(100, cores=2)
    tids = list(host.sandbox.vcpus(100).values())
    host.settings('[vm.100]\ncpus = "1"\n')
    host.hook(100, "post-start")
    assert host.masks(100) == ["1", "1"]
    host.sandbox.qm("set", 100, "--delete", "hookscript")
    host.pxsched("restore", "--all")
    assert [host.sandbox.mask(tid) for tid in tids] == ["0-1", "0-1"]


def test_phases_in_any_order_and_number_are_harmless(host):
    host.started(100, cores=2, affinity="1,0")
    for phase in ("post-stop", "pre-start", "pre-start", "pre-stop", "post-start", "post-stop", "post-start"):
        assert host.hook(100, phase).returncode == 0
        assert host.masks(100) == ["1", "0"]
    host.stop(100)
    for phase in ("post-stop", "pre-stop", "post-start", "post-stop"):
        assert host.hook(100, phase).returncode == 0
    assert host.leftovers() == []


def test_eight_starts_at_once_all_succeed(host):
    host.settings('[vm.100]\nclass = "dedicated"\n[vm.101]\nclass = "dedicated"\n')
    for vmid in range(100, 108):
        host.create(vmid, cores=1)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(host.start, range(100, 108)))
    assert all(result.code == 0 for result in results)
    dedicated = [vm for vm in host.status()["vms"] if vm["class"] == "dedicated"]
    assert len(dedicated) == 1, "one CPU is free of host tasks, so one of the two wishes is met"
    owner = dedicated[0]["vmid"]
    assert host.masks(owner) == ["1"]
    assert all(host.masks(vmid) == ["0"] for vmid in range(102, 108))


def test_the_starter_is_given_its_mask_back(host):
    host.started(100, cores=1, affinity="1")
    assert host.status()["knobs"], "the VM's threads are held"
    assert all(knob["plugin"] != "memory" for knob in host.status()["knobs"])


def test_a_vm_arriving_by_migration_is_found_below_its_source(host):
    nodes = Path(host.sandbox.root, "etc/pve/nodes")
    (nodes / "elsewhere/qemu-server").mkdir(parents=True)
    text = "cores: 2\naffinity: 1,0\nmemory: 32\nhookscript: local:snippets/pxsched\n"
    (nodes / "elsewhere/qemu-server/100.conf").write_text(text)
    output = host.sandbox.qm("start", 100, "--migratedfrom", "elsewhere").output
    assert all(line.startswith("pxsched: ") for line in lines_of_ours(output))
    assert host.masks(100) == ["1", "0"]


@pytest.mark.slow
def test_two_hundred_cycles_leave_nothing(host):
    host.create(100, cores=2, affinity="1,0")
    for _ in range(200):
        host.start(100)
        host.stop(100)
    assert host.leftovers() == []


def test_a_shared_vm_gets_its_room_back_when_the_dedicated_one_leaves(host):
    host.settings('[vm.101]\nclass = "dedicated"\n')
    host.started(100, cores=1)
    host.started(101, cores=1)
    assert host.masks(100) == ["0"]
    host.stop(101)
    host.hook(100, "pre-stop")
    assert host.masks(100) == ["0-1"]


def test_cpus_listed_for_housekeeping_are_kept_from_shared_vms(host):
    host.settings('[node]\nhousekeeping = "0"\n')
    host.started(100, cores=1)
    assert host.masks(100) == ["1"]


def far_away(host, vmid: int) -> None:
    """The VM is on another node, as it is while a migration from there begins."""
    nodes = Path(host.sandbox.root, "etc/pve/nodes")
    (nodes / "far/qemu-server").mkdir(parents=True)
    (nodes / f"sandbox/qemu-server/{vmid}.conf").rename(nodes / f"far/qemu-server/{vmid}.conf")


def test_a_migration_that_cannot_be_placed_is_refused_in_words_that_belong_to_it(host):
    host.settings('[vm.100]\nclass = "dedicated"\nstrict = true\n')
    far_away(host, host.create(100, cores=8))
    done = host.sandbox.qm("start", 100, migratedfrom="far", check=False)
    assert done.code != 0 and not Path(host.sandbox.root, "run/qemu-server/100.pid").exists()
    said = lines_of_ours(done.output)
    assert said[-1] == "pxsched: the migration ends here: VM 100 runs on, on node far"
    assert said[-2].startswith("pxsched: VM 100 is refused, as its policy is strict: needs 8 exclusive CPUs")


def test_a_migrated_vm_gets_the_pins_of_this_node(host):
    host.settings('[node.sandbox.vm.100]\npins = "1,0"\n[node.far.vm.100]\npins = "0,1"\n')
    far_away(host, host.create(100, cores=2))
    host.start(100, migratedfrom="far")
    assert host.masks(100) == ["1", "0"]
