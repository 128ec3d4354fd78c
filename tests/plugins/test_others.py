"""With `others = "confine"`, who is not ours leaves dedicated CPUs: wishes, real threads and real groups."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pxsched.guest import process
from pxsched.guest.process import Process, Thread
from pxsched.host import cgroup, cpulist
from pxsched.knobs.isolation import GroupCpus
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import State
from pxsched.ledger.journal import NODE
from pxsched.node.reconcile import reconcile
from pxsched.placement.request import VmClass
from pxsched.plugins import isolation, others, registry
from pxsched.plugins.view import Stranger
from pxsched.root import Root
from pxsched.settings.policy import Isolation, NodeSettings, Others

CONFINE = NodeSettings(others=Others.CONFINE)
FULL = frozenset(range(8))
MAIN, WORKER, LATE = "affinity:7,9", "affinity:8,9", "affinity:9,9"


def stranger(**masks):
    tids = {"main": 7, "worker": 8, "late": 9}
    threads = tuple(Thread(tids[name], 9, name) for name in masks)
    return Stranger(200, Process(7, 9), threads, {tids[name]: mask for name, mask in masks.items()})


def wishes(views, *claims, settings=CONFINE, **fields):
    return list(registry.of_node(views.host(*claims, settings=settings, **fields)))


def wants(views, *claims, **fields):
    return views.wants(wishes(views, *claims, **fields))


# What is wanted


def test_others_are_only_observed_unless_the_admin_says_more(views):
    vm = stranger(main=FULL)
    assert wants(views, views.claim(100, "2-3"), settings=NodeSettings(), strangers=(vm,)) == {}


def test_threads_and_containers_leave_dedicated_cpus_and_nothing_else(views):
    vm = stranger(main=FULL, worker=frozenset({2, 5}), late=frozenset({0, 1}))
    found = wishes(views, views.claim(100, "2-3"), strangers=(vm,))
    assert views.wants(found) == {"cgroup:lxc": "0-1,4-7", MAIN: "0-1,4-7", WORKER: "5"}
    assert {setting.owner for setting in found} == {NODE, 200}


def test_without_dedicated_cpus_nobody_is_confined(views):
    claims = views.claim(100, "2-3", VmClass.SHARED), views.claim(101, "4", VmClass.PINNED)
    assert wants(views, *claims, strangers=(stranger(main=FULL),)) == {}


def test_they_leave_as_soon_as_the_vm_starts(views):
    claim = views.claim(100, "2-3", state=State.STARTING)
    assert wants(views, claim, strangers=(stranger(main=FULL),))[MAIN] == "0-1,4-7"


def test_a_thread_that_has_no_other_cpu_stays_where_its_admin_put_it(views):
    vm = stranger(main=frozenset({2, 3}))
    assert MAIN not in wants(views, views.claim(100, "2-3"), strangers=(vm,))


def test_more_dedicated_cpus_are_taken_from_what_there_was_and_fewer_given_back(views):
    confined = stranger(main=FULL - {2, 3})
    originals = {MAIN: "0-7"}
    more = wants(views, views.claim(100, "2-4"), strangers=(confined,), originals=originals)
    assert more[MAIN] == "0-1,5-7"
    fewer = wants(views, views.claim(100, "2"), strangers=(confined,), originals=originals)
    assert fewer[MAIN] == "0-1,3-7"
    elsewhere = wants(views, views.claim(100, "6"), strangers=(stranger(main=frozenset({0})),),
                      originals={MAIN: "0-3"})  # fmt: skip
    assert MAIN not in elsewhere, "which puts it back"


def test_a_thread_born_in_confinement_gets_back_what_its_main_thread_had(views):
    vm = stranger(main=FULL - {2, 3}, late=FULL - {2, 3}, worker=frozenset({1}))
    found = wishes(views, views.claim(100, "2-3"), strangers=(vm,), originals={MAIN: "0-7"})
    inherited = {setting.knob.key: setting.inherited for setting in found}
    assert inherited[LATE] == "0-7"
    assert WORKER not in inherited


def test_with_isolation_the_group_of_containers_has_one_wish(views):
    both = NodeSettings(isolation=Isolation.SLICES, others=Others.CONFINE)
    keys = [setting.knob.key for setting in wishes(views, views.claim(100, "2-3"), settings=both)]
    assert sorted(keys) == [
        "cgroup:lxc", "cgroup:lxc.monitor", "slice:init.scope", "slice:system.slice", "slice:user.slice",
    ]  # fmt: skip
    spared = views.claim(100, "2-3", isolation=False)
    assert wants(views, spared, settings=both) == {"cgroup:lxc": "0-1,4-7"}
    assert others.CONTAINERS in isolation.GROUPS


# Real control groups


@pytest.fixture
def containers(tmp_path):
    """On the running kernel's cpusets: `lxc` with a container, in a hierarchy of cgroup v1."""
    base = Path("/sys/fs/cgroup/cpuset")
    if os.geteuid() != 0 or not os.access(base / "cgroup.procs", os.W_OK):
        pytest.skip("needs a cpuset hierarchy that may be written")
    top = base / f"pxsched-others-{os.getpid()}"
    made = [top, top / "lxc", top / "lxc/101"]
    try:
        for path in made:
            path.mkdir()
            (path / "cpuset.cpus").write_text("0-1")
            (path / "cpuset.mems").write_text("0")
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/cpuset").symlink_to(top)
        (tmp_path / "proc").symlink_to("/proc")
        (tmp_path / "run/pxsched").mkdir(parents=True)
        yield Root(str(tmp_path))
    finally:
        for path in reversed(made):
            if path.exists():
                path.rmdir()


@pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1")
def test_real_threads_and_a_real_group_leave_and_come_back(containers, views):
    (Path(containers.base) / "sys/fs/cgroup/cpuset/lxc/101/cpuset.cpus").write_text("0")
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    program += "print('ready', flush=True)\ntime.sleep(600)"
    vm = subprocess.Popen(["taskset", "-c", "0-1", sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        vm.stdout.readline()
        found = process.identify(containers, vm.pid)
        threads = process.threads(containers, found)
        assert len(threads) == 2
        masks = {thread.tid: process.mask(containers, thread.tid) for thread in threads}
        seen = Stranger(200, found, threads, masks)
        host = views.host(views.claim(100, "1,2-7"), settings=CONFINE, strangers=(seen,))
        with ledgers.locked(containers) as ledger:
            report = reconcile(containers, ledger, others.of_node(host), None)
        assert report.failed == []
        assert {cpulist.format(os.sched_getaffinity(thread.tid)) for thread in threads} == {"0"}
        assert cgroup.effective_cpus(containers, "lxc") == {0}
        with ledgers.locked(containers) as ledger:
            reconcile(containers, ledger, (), None)
            assert not ledger.journal
        assert {cpulist.format(os.sched_getaffinity(thread.tid)) for thread in threads} == {"0-1"}
        assert GroupCpus("lxc").read(containers) == "0-1"
    finally:
        vm.kill()
        vm.communicate()
        time.sleep(0)
