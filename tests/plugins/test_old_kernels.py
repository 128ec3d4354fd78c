"""Before Linux 6.2 a cpuset that is written overwrites the CPU masks of the tasks in it: everybody keeps, or
gets back, what is his.

The kernel's part is played: on the real threads of a VM, and on the tasks of a generated machine.
"""

import errno
import os
from collections.abc import Collection

import pytest

from pxsched.host import cgroup, cpulist, systemd
from pxsched.knobs import isolation as knobs
from pxsched.knobs.isolation import UNITS
from pxsched.ledger import file as ledgers
from pxsched.node import turning
from pxsched.node.reconcile import reconcile
from pxsched.plugins import isolation
from pxsched.root import Root
from pxsched.settings.policy import Isolation, NodeSettings

from .conftest import ALL, Systemd, Tree
from .whole import MODEST, Whole

SLICES = NodeSettings(isolation=Isolation.SLICES)
FAR = f"anon N0={1 << 30} N1={1 << 30}"
NEAR = f"anon N0={2 << 30} N1=0"

# A VM's threads, when its scope is confined and freed again


@pytest.fixture
def whole(tree, fake_systemd):
    if os.geteuid() != 0 or not {0, 1} <= os.sched_getaffinity(0):
        pytest.skip("needs root, and CPUs 0 and 1")
    whole = Whole(tree, fake_systemd, "slices")

    def overwrite(group: str) -> None:
        if group == cgroup.scope(MODEST):
            for tid in os.listdir(f"/proc/{whole.vms[MODEST].pid}/task"):
                os.sched_setaffinity(int(tid), {0, 1})

    fake_systemd.kernel = overwrite
    whole.configure("balance_memory", "false")  # it would turn the VM's knobs a second time
    yield whole
    whole.close()


def memory_lies(whole: Whole, where: str) -> None:
    whole.tree.put(f"sys/fs/cgroup/{cgroup.scope(MODEST)}/memory.numa_stat", where)


def test_threads_stay_pinned_while_their_scopes_cpuset_comes_and_goes(whole):
    whole.tick()
    assert f"memory-nodes:{MODEST}" in whole.journal
    assert whole.masks(MODEST) == {"0"}, "the pins come after the cpuset"
    memory_lies(whole, NEAR)
    whole.tick()
    assert f"memory-nodes:{MODEST}" not in whole.journal
    assert whole.masks(MODEST) == {"0"}, "pins that nothing was wrong with are set again"


def test_threads_that_were_as_wanted_before_the_cpuset_came_are_set_again(whole):
    memory_lies(whole, NEAR)
    whole.tick()
    assert whole.masks(MODEST) == {"0"}
    memory_lies(whole, FAR)
    whole.tick()
    assert f"memory-nodes:{MODEST}" in whole.journal
    assert whole.masks(MODEST) == {"0"}


def test_threads_get_their_own_masks_back_after_the_cpuset_has_gone(whole):
    assert whole.masks(MODEST) == {"0"}
    whole.tick()
    whole.restore()
    assert whole.masks(MODEST) == {"0"}, "as its `affinity` says"


# The host's tasks, when they leave a VM's CPUs


class OldKernel:
    """Tasks below a generated /proc, and cpusets that overwrite their masks."""

    def __init__(self, tree: Tree, fake_systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tree, self._groups, self._systemds = tree, {}, False
        tree.put("proc/sys/kernel/osrelease", "5.15.158-2-pve")
        (tree.base / "proc/self").symlink_to(str(os.getpid()))
        self.root = Root(str(tree.base))
        fake_systemd.kernel = self._written
        put = cgroup.put

        def written(root: Root, group: str, name: str, value: str) -> None:
            put(root, group, name, value)
            self._overwrite(group)

        monkeypatch.setattr(cgroup, "put", written)
        monkeypatch.setattr(os, "sched_setaffinity", self._set)
        monkeypatch.setattr(knobs, "LONG_MOMENT_S", 0)

    def task(self, tid: int, group: str, cpus: str) -> None:
        self._groups[tid] = group
        self.tree.put(f"proc/{tid}/stat", f"{tid} (x) S " + " ".join(str(field) for field in range(4, 53)))
        self.tree.put(f"proc/{tid}/status", f"Cpus_allowed_list:\t{cpus}")
        tids = (str(other) for other, where in self._groups.items() if where == group)
        self.tree.put(f"sys/fs/cgroup/{group}/cgroup.threads", "\n".join(tids))

    def masks(self) -> dict[int, str]:
        return {tid: self.tree.get(f"proc/{tid}/status").partition("\t")[2] for tid in self._groups}

    def _set(self, tid: int, cpus: Collection[int]) -> None:
        """sched_setaffinity(2)"""
        allowed = frozenset(cpus) & cgroup.effective_cpus(self.root, self._groups[tid])
        if not allowed:
            raise OSError(errno.EINVAL, "Invalid argument")
        self.tree.put(f"proc/{tid}/status", f"Cpus_allowed_list:\t{cpulist.format(allowed)}")

    def _written(self, group: str) -> None:
        """systemd hands the controller to all units with the first property, and takes it with the last."""
        before = self._systemds
        self._systemds = any(systemd.runtime_property(self.root, unit, "AllowedCPUs") for unit in UNITS)
        for unit in UNITS if self._systemds != before else (group,):
            self._overwrite(unit)

    def _overwrite(self, group: str) -> None:
        force = cpulist.format(cgroup.effective_cpus(self.root, group))
        for tid, where in self._groups.items():
            if where == group:
                self.tree.put(f"proc/{tid}/status", f"Cpus_allowed_list:\t{force}")


@pytest.fixture
def kernel(tree, fake_systemd, monkeypatch):
    kernel = OldKernel(tree, fake_systemd, monkeypatch)
    kernel.task(31, "system.slice", ALL)
    kernel.task(32, "system.slice", "2,5")
    kernel.task(33, "user.slice", "1,6")
    kernel.task(34, "init.scope", "3,7")
    kernel.task(35, "lxc", "2,4")
    return kernel


@pytest.fixture
def dedicate(kernel, views):
    """Gives CPUs to VMs of their own, and takes them from the host."""

    def act(*cpus: str) -> None:
        claims = [views.claim(vmid, text) for vmid, text in enumerate(cpus, 100)]
        with ledgers.locked(kernel.root) as ledger:
            settings = list(isolation.of_node(views.host(*claims, settings=SLICES)))
            report = reconcile(kernel.root, ledger, settings, None)
        turning.run(kernel.root, report)
        assert report.failed == []

    return act


def test_tasks_that_chose_their_cpus_keep_what_is_left_of_them(kernel, dedicate):
    dedicate("2-3")
    assert kernel.masks() == {31: "0-1,4-7", 32: "5", 33: "1,6", 34: "7", 35: "4"}


def test_they_have_all_of_them_again_when_the_vm_has_gone(kernel, dedicate):
    before = kernel.masks()
    dedicate("2-3")
    dedicate()
    assert kernel.masks() == before


def test_of_a_choice_of_which_nothing_is_left_everything_comes_back(kernel, dedicate):
    before = kernel.masks()
    dedicate("2-3")
    dedicate("2-3", "5")
    assert kernel.masks() == {31: "0-1,4,6-7", 32: "0-1,4,6-7", 33: "1,6", 34: "7", 35: "4"}
    dedicate()
    assert kernel.masks() == before


def test_a_task_that_chooses_while_its_group_is_narrow_keeps_its_choice(kernel, dedicate):
    dedicate("2-3")
    kernel._set(32, {0, 1})
    kernel._set(31, {4})
    dedicate("2-3", "7")
    assert kernel.masks()[31] == "4"
    dedicate()
    assert (kernel.masks()[31], kernel.masks()[32]) == ("4", "0-1")
