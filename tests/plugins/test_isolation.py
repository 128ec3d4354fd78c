"""Host tasks leave dedicated CPUs while their VMs run: on a generated tree, and in this machine's cpusets."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from pxsched.guest.process import Role, Thread
from pxsched.host import cgroup, cpulist, systemd
from pxsched.knobs import isolation as knobs
from pxsched.knobs import knob
from pxsched.knobs.isolation import GroupCpus, SliceCpus
from pxsched.knobs.knob import Gone
from pxsched.knobs.scope import Partition
from pxsched.ledger import file as ledgers
from pxsched.ledger import leases
from pxsched.ledger.claim import State
from pxsched.ledger.journal import NODE
from pxsched.node import turning
from pxsched.node.reconcile import reconcile
from pxsched.node.turns import Report
from pxsched.placement.request import VmClass
from pxsched.plugins import emulator, isolation
from pxsched.plugins.view import Setting
from pxsched.root import Root
from pxsched.settings.policy import Isolation, NodeSettings

SLICES = NodeSettings(isolation=Isolation.SLICES)
PARTITION = NodeSettings(isolation=Isolation.PARTITION)
KEYS = ["slice:system.slice", "slice:user.slice", "slice:init.scope", "cgroup:lxc", "cgroup:lxc.monitor"]


def wants(views, *claims, settings=SLICES):
    return views.wants(isolation.of_node(views.host(*claims, settings=settings)))


# What is wanted


def test_nothing_is_done_unless_the_admin_asks_for_it(views):
    assert wants(views, views.claim(100, "2-3"), settings=NodeSettings()) == {}


def test_all_host_tasks_and_containers_leave_dedicated_cpus(views):
    claims = views.claim(100, "2-3"), views.claim(101, "6")
    assert wants(views, *claims) == dict.fromkeys(KEYS, "0-1,4-5,7")


def test_without_dedicated_vms_every_slice_is_as_it_was(views):
    assert wants(views, views.claim(100, "2-3", VmClass.SHARED), views.claim(101, "4", VmClass.PINNED)) == {}


def test_a_vm_that_does_not_want_isolation_gets_none(views):
    assert wants(views, views.claim(100, "2-3", isolation=False)) == {}


def test_while_a_vm_starts_its_cpus_are_still_the_hosts(views):
    """The task that starts QEMU is steered onto them for its memory."""
    assert wants(views, views.claim(100, "2-3", state=State.STARTING)) == {}


def test_no_slice_is_ever_left_without_cpus(views):
    assert wants(views, views.claim(100, "0-7")) == dict.fromkeys(KEYS, "0")  # housekeeping


def test_a_vm_pays_for_isolation_only_where_it_is_on():
    """The hook runs at every start, and each module takes it time."""
    script = (
        "import sys\n"
        "from pxsched.guest.config import Machine\n"
        "from pxsched.host.topology import Topology\n"
        "from pxsched.ledger.claim import Claim, State\n"
        "from pxsched.placement.request import Placement, VmClass\n"
        "from pxsched.plugins import registry\n"
        "from pxsched.plugins.view import HostView, VmView\n"
        "cpus = frozenset((1,))\n"
        "claim = Claim(Placement(100, VmClass.DEDICATED, (cpus,), cpus, cpus), State.RUNNING)\n"
        "host = HostView(Topology({}, (), (), ()), claims={100: claim})\n"
        "list(registry.of_vm(VmView(claim, Machine()), host))\n"
        "list(registry.of_node(host))\n"
        "print(*(name for name in sys.modules if name.endswith('.isolation')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# The knobs, with a stand-in for systemd


@pytest.fixture
def settle(tree, views, fake_systemd):
    (tree.base / "run/pxsched").mkdir(parents=True)

    def act(*claims):
        return turned(tree.root, isolation.of_node(views.host(*claims, settings=SLICES)), NODE)

    return act


def turned(root: Root, settings: Iterable[Setting], owner: int) -> Report:
    """One pass for these settings."""
    with ledgers.locked(root) as ledger:
        report = reconcile(root, ledger, settings, [owner])
    turning.run(root, report)
    return report


def held(root: Root) -> list[str]:
    return sorted(ledgers.peek(root).journal)


def configured(tree, group: str) -> str:
    return tree.get(f"sys/fs/cgroup/{group}/cpuset.cpus")


def test_slices_are_narrowed_through_systemd_and_containers_by_their_file(tree, views, settle, fake_systemd):
    settle(views.claim(100, "2-3"))
    assert [call[-2:] for call in fake_systemd.calls] == [
        (unit, "AllowedCPUs=0-1,4-7") for unit in ("system.slice", "user.slice", "init.scope")
    ]
    assert configured(tree, "lxc") == "0-1,4-7"


def test_slices_widen_as_vms_stop_and_nothing_stays_behind(tree, views, settle, fake_systemd):
    before = tree.content()
    settle(views.claim(100, "2-3"), views.claim(101, "4"))
    settle(views.claim(101, "4"))
    assert configured(tree, "system.slice") == "0-3,5-7"
    settle()
    assert tree.content() == before
    assert ("daemon-reload",) not in fake_systemd.calls, "a hook has no time for that"
    assert not held(tree.root)


def test_what_the_admin_had_configured_comes_back(tree, views, settle, fake_systemd):
    fake_systemd.call(tree.root, "set-property", "user.slice", "AllowedCPUs=0-5")
    before = tree.content()
    settle(views.claim(100, "2-3"))
    settle()
    assert tree.content() == before
    assert configured(tree, "user.slice") == "0-5"


def test_the_set_in_force_counts_not_the_one_asked_for(tree, views, settle):
    """A cpuset silently falls back to its parent's."""
    claim = views.claim(100, "2-3")
    settle(claim)
    tree.put("sys/fs/cgroup/system.slice/cpuset.cpus.effective", "0-7")
    assert [turn.key for turn in settle(claim).turned] == ["slice:system.slice"]


class Killed(BaseException):
    pass


def test_a_widening_that_was_cut_short_is_not_taken_for_whole(tree, views, fake_systemd, monkeypatch):
    """systemd has forgotten the property, and the cgroup still has what it said."""
    narrow = list(isolation.of_node(views.host(views.claim(100, "2-3"), settings=SLICES)))

    def turn(settings) -> None:
        turned(tree.root, settings, NODE)

    turn(narrow)
    wanted = tree.content()

    def call(root: Root, *arguments: str) -> None:
        fake_systemd.call(root, *arguments)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(systemd, "call", call)
        turn([])
    assert tree.content() != wanted
    monkeypatch.setattr(leases.process, "alive", lambda *_: False)  # this one stands for the killed one
    turn(narrow)
    assert tree.content() == wanted
    (drifts,) = {entry.drifts for entry in ledgers.peek(tree.root).journal.values()}
    assert drifts == 0, "nobody else has turned it"
    assert {entry.note for entry in ledgers.peek(tree.root).journal.values()} == {""}


def test_a_node_without_containers_has_nothing_to_narrow_there(tree, views, settle):
    for path in (tree.base / "sys/fs/cgroup/lxc").iterdir():
        path.unlink()
    (tree.base / "sys/fs/cgroup/lxc").rmdir()
    assert settle(views.claim(100, "2-3")).failed == []
    assert held(tree.root) == sorted(KEYS[:3])


def test_a_slice_without_tasks_is_narrowed_for_those_to_come(tree, views, settle):
    """Nobody is logged in: user.slice has no cgroup, but it may have one before the VM stops."""
    shutil.rmtree(tree.base / "sys/fs/cgroup/user.slice")
    before, claim = tree.content(), views.claim(100, "2-3")
    settle(claim)
    dropin = "run/systemd/system.control/user.slice.d/50-AllowedCPUs.conf"
    assert tree.get(dropin) == "AllowedCPUs=0-1,4-7"
    assert settle(claim).turned == []
    settle()
    assert tree.content() == before


def test_a_slice_that_loses_its_last_task_is_widened_all_the_same(tree, views, settle):
    settle(views.claim(100, "2-3"))
    shutil.rmtree(tree.base / "sys/fs/cgroup/user.slice")
    settle()
    assert not (tree.base / "run/systemd/system.control/user.slice.d").exists()


def test_without_cpusets_slices_are_left_alone(tree):
    os.unlink(tree.base / "sys/fs/cgroup/cgroup.controllers")
    with pytest.raises(Gone):
        SliceCpus("system.slice").read(tree.root)


def test_on_cgroup_v1_it_is_said_once_that_slices_cannot_be_narrowed(tree, views, settle):
    os.unlink(tree.base / "sys/fs/cgroup/cgroup.controllers")
    for name, text in ("cgroup.procs", ""), ("cpuset.effective_cpus", "0-7"), ("lxc/cpuset.cpus", "0-7"):
        tree.put(f"sys/fs/cgroup/cpuset/{name}", text)
    (tree.base / "sys/fs/cgroup/cpuset/lxc/cpuset.effective_cpus").symlink_to("cpuset.cpus")
    before, claim = tree.content(), views.claim(100, "2-3")
    first, second = settle(claim), settle(claim)
    assert ["no cpusets on cgroup v1" in line for line in first.failed] == [True] * 3
    assert second.failed == []
    assert tree.get("sys/fs/cgroup/cpuset/lxc/cpuset.cpus") == "0-1,4-7"
    settle()
    assert tree.content() == before
    assert not held(tree.root)


def test_where_systemd_is_not_what_runs_it_is_said_and_forgotten(tree, views):
    before = tree.content()
    host = views.host(views.claim(100, "2-3"), settings=SLICES)
    report = turned(tree.root, isolation.of_node(host), NODE)
    assert sum("systemd is not what runs this system" in line for line in report.failed) == 3
    turned(tree.root, [], NODE)
    assert tree.content() == before
    assert not held(tree.root)


@pytest.mark.parametrize("key", ["slice:../../etc", "slice:ssh.service", "cgroup:qemu.slice", "cgroup:"])
def test_a_journal_cannot_name_other_groups(key):
    with pytest.raises(ValueError):
        knob.from_key(key)


def test_before_linux_6_2_the_original_names_tasks_that_bound_themselves(tree):
    tree.put("proc/sys/kernel/osrelease", "5.15.158-2-pve")
    tree.put("sys/fs/cgroup/system.slice/cgroup.threads", "31\n32")
    for tid, cpus in (31, "0-7"), (32, "2,5"):
        tree.put(f"proc/{tid}/stat", f"{tid} (x) S " + " ".join(str(field) for field in range(4, 53)))
        tree.put(f"proc/{tid}/status", f"Cpus_allowed_list:\t{cpus}")
    original = knobs.loads(SliceCpus("system.slice").original(tree.root))
    assert [(task.tid, cpulist.format(task.cpus)) for task in original.tasks] == [(32, "2,5")]
    assert (original.cpus, original.bare) == ("", True)
    tree.put("proc/sys/kernel/osrelease", "6.8.12-4-pve")
    assert knobs.loads(SliceCpus("system.slice").original(tree.root)).tasks == ()


# A partition of its own


def test_a_partition_is_wanted_for_each_dedicated_vm(views):
    vm = views.vm(views.claim(100, "2-3"))
    host = views.host(vm.claim, settings=PARTITION)
    assert views.wants(isolation.of_vm(vm, host)) == {"partition:100": "2-3"}
    assert views.wants(isolation.of_node(host)) == {}
    assert views.wants(isolation.of_vm(vm, views.host(vm.claim, settings=SLICES))) == {}


def test_no_partition_takes_the_hosts_last_cpu(views):
    vm = views.vm(views.claim(100, "0-7"))
    assert views.wants(isolation.of_vm(vm, views.host(vm.claim, settings=PARTITION))) == {}


def test_in_a_partition_the_emulator_lives_on_the_vms_cpus(views):
    vm = views.vm(views.claim(100, "2-3"), threads=(Thread(31, 1, "kvm", Role.EMULATOR),))
    inside, outside = (views.host(vm.claim, settings=settings) for settings in (PARTITION, SLICES))
    assert views.wants(emulator.of_vm(vm, inside)) == {"affinity:31,1": "2-3"}
    assert views.wants(emulator.of_vm(vm, outside)) == {"affinity:31,1": "0"}


@pytest.fixture
def partition(tree, fake_systemd) -> str:
    """The files of VM 100's partition, as the kernel shows them."""
    scope = tree.scope(100)
    tree.put(f"{scope}/cpuset.cpus.partition", "member")
    for group in scope, "sys/fs/cgroup/qemu.slice":
        tree.put(f"{group}/cpuset.cpus.exclusive", "")
    return scope


@pytest.mark.parametrize("last", ["cpuset.cpus.partition", "cpuset.cpus.exclusive"])
def test_a_partition_that_was_half_made_leaves_nothing(tree, partition, last):
    """A pass was killed before it wrote the last file."""
    before = tree.content()
    Partition(100).write(tree.root, "2-3")
    tree.put(f"{partition}/cpuset.cpus.partition", "member")
    if last == "cpuset.cpus.exclusive":
        tree.put(f"{partition}/cpuset.cpus.exclusive", "")
    Partition(100).write(tree.root, "")
    assert tree.content() == before


def test_with_its_vm_a_partitions_cpus_leave_the_groups_above(tree, partition, views):
    vm = views.vm(views.claim(100, "2-3"))
    above = "sys/fs/cgroup/qemu.slice/cpuset.cpus.exclusive"
    turned(tree.root, isolation.of_vm(vm, views.host(vm.claim, settings=PARTITION)), 100)
    assert tree.get(above) == "2-3"
    shutil.rmtree(tree.base / partition)
    turned(tree.root, [], 100)
    assert tree.get(above) == ""
    assert not held(tree.root)


# Real cpusets and real tasks


@pytest.fixture
def containers():
    """A real group called lxc, as Proxmox has it for its containers."""
    root = Root("/")
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    if cgroup.version(root) is None:
        pytest.skip("no cpuset controller")
    path = Path(root.path(cgroup.path(root, "lxc")))
    if path.exists():
        pytest.skip("this machine has containers")
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"cgroups cannot be made here: {error}")
    try:
        if cgroup.version(root) is cgroup.Version.V1:
            (path / "cpuset.mems").write_text(cpulist.format(cgroup.effective_nodes(root, "")))
            (path / "cpuset.cpus").write_text(cpulist.format(cpus))
        elif not (path / "cpuset.cpus").exists():
            pytest.skip("the cpuset controller is not handed down")
        yield path
    finally:
        for tid in (path / "cgroup.procs").read_text().split():
            os.kill(int(tid), 9)
        deadline = time.monotonic() + 10
        while (path / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        path.rmdir()


def test_real_tasks_leave_and_come_back_and_keep_the_masks_they_chose(containers):
    root, group = Root("/"), GroupCpus("lxc")
    cpus = sorted(cgroup.effective_cpus(root, "lxc"))
    first, last = cpus[0], cpus[-1]
    masks = {"floating": set(cpus), "on the first": {first}, "on the last": {last}}
    tasks = {}
    with subprocess.Popen(["sleep", "60"]) as a, subprocess.Popen(["sleep", "60"]) as b, \
         subprocess.Popen(["sleep", "60"]) as c:  # fmt: skip
        for child, name in zip((a, b, c), masks, strict=True):
            (containers / "cgroup.procs").write_text(str(child.pid))
            os.sched_setaffinity(child.pid, masks[name])
            tasks[name] = child.pid

        def now() -> dict[str, set[int]]:
            return {name: os.sched_getaffinity(tid) for name, tid in tasks.items()}

        before = (containers / "cpuset.cpus").read_text()
        original = group.original(root)
        group.write(root, str(first))
        assert group.read(root) == str(first)
        assert now() == {name: {first} for name in masks}
        group.write(root, original)
        assert (containers / "cpuset.cpus").read_text() == before
        assert now() == masks
        for child in (a, b, c):
            child.kill()


def test_what_an_old_kernel_forgot_is_given_back(containers, monkeypatch):
    """Before Linux 6.2 changing the set overwrites the tasks' masks, as is done here by hand."""
    monkeypatch.setattr(cgroup, "keeps_masks", lambda root: False)
    root, group = Root("/"), GroupCpus("lxc")
    cpus = sorted(cgroup.effective_cpus(root, "lxc"))
    with subprocess.Popen(["sleep", "60"]) as child:
        (containers / "cgroup.procs").write_text(str(child.pid))
        os.sched_setaffinity(child.pid, {cpus[-1]})
        original = group.original(root)
        group.write(root, str(cpus[0]))
        os.sched_setaffinity(child.pid, cpus)
        assert os.sched_getaffinity(child.pid) == {cpus[0]}
        group.write(root, original)
        assert os.sched_getaffinity(child.pid) == {cpus[-1]}
        child.kill()


def test_a_task_that_chose_anew_meanwhile_keeps_its_choice():
    task = cgroup.Task(31, 1, frozenset((2, 5)))
    anew = cgroup.Task(31, 1, frozenset((0,)))
    narrow = frozenset((0, 1, 5))
    chosen = knobs._chosen
    assert chosen([anew], [task], narrow) == [anew]
    assert chosen([cgroup.Task(31, 1, frozenset((5,)))], [task], narrow) == [task]
    assert chosen([], [task], narrow) == [task]
    assert chosen([anew], [], narrow) == [anew]
