"""Real-time vCPU threads, halt polling and shallow idle states, undone: on real threads, and in the real
sysfs where it can be written.
"""

import os
import subprocess
from collections.abc import Iterator

import pytest

from pxsched.guest import process
from pxsched.knobs import knob as knobs
from pxsched.knobs.knob import Gone
from pxsched.knobs.latency import KvmParameter, ResumeLatency, Scheduling
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import NODE
from pxsched.node.reconcile import reconcile
from pxsched.placement.request import VmClass
from pxsched.plugins import latency
from pxsched.root import Root

LIVE = Root("/")


@pytest.fixture
def sleeper() -> Iterator[Scheduling]:
    with subprocess.Popen(["sleep", "60"]) as child:
        found = process.identify(LIVE, child.pid)
        yield Scheduling(found.pid, found.start_ticks)
        child.kill()


def needs_privilege() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError:
        pytest.skip("real-time scheduling is not allowed here")


def test_a_thread_becomes_real_time_and_ordinary_again(sleeper):
    needs_privilege()
    assert sleeper.read(LIVE) == "other 0"
    sleeper.write(LIVE, "fifo 7")
    assert os.sched_getscheduler(sleeper.tid) == os.SCHED_FIFO
    assert os.sched_getparam(sleeper.tid).sched_priority == 7
    sleeper.write(LIVE, "other 0")
    assert sleeper.read(LIVE) == "other 0"


@pytest.mark.parametrize("policy", ["batch 0", "idle 0", "rr 3", "fifo+reset 2", "batch+reset 0"])
def test_whatever_policy_a_thread_had_is_what_it_gets_back(sleeper, policy):
    needs_privilege()
    sleeper.write(LIVE, policy)
    original = sleeper.original(LIVE)
    sleeper.write(LIVE, "fifo 9")
    sleeper.write(LIVE, original)
    assert sleeper.read(LIVE) == policy


def test_niceness_survives(sleeper):
    needs_privilege()
    os.setpriority(os.PRIO_PROCESS, sleeper.tid, 5)
    sleeper.write(LIVE, "fifo 9")
    sleeper.write(LIVE, "other 0")
    assert os.getpriority(os.PRIO_PROCESS, sleeper.tid) == 5


def test_another_thread_with_the_same_number_is_left_alone(sleeper):
    with pytest.raises(Gone):
        Scheduling(sleeper.tid, sleeper.start_ticks + 1).write(LIVE, "fifo 1")
    assert sleeper.read(LIVE) == "other 0"


class Unthrottled(Root):
    live = True

    def read(self, relative: str) -> str | None:
        return "-1" if relative.endswith("sched_rt_runtime_us") else super().read(relative)


def test_real_time_is_refused_where_the_kernel_throttles_nobody(sleeper):
    with pytest.raises(PermissionError, match="sched_rt_runtime_us is -1"):
        sleeper.write(Unthrottled("/"), "fifo 7")
    assert sleeper.read(LIVE) == "other 0"


@pytest.mark.parametrize("vm_class", list(VmClass))
def test_only_vcpus_with_cpus_of_their_own_run_in_real_time(views, vm_class):
    vm = views.vm(views.claim(100, "2-3", vm_class, fifo=5), threads=views.threads(31, 32))
    wants = views.wants(latency.of_vm(vm, views.host(vm.claim)))
    own = vm_class in (VmClass.PINNED, VmClass.DEDICATED)
    assert wants == ({"scheduling:31,1": "fifo 5", "scheduling:32,1": "fifo 5"} if own else {})


def test_without_a_wish_nothing_is_turned(views):
    vm = views.vm(views.claim(100, "2-3"), threads=views.threads(31, 32))
    host = views.host(vm.claim)
    assert views.wants([*latency.of_vm(vm, host), *latency.of_node(host)]) == {}


def test_the_longest_halt_polling_and_the_tightest_wakeup_win(views):
    host = views.host(
        views.claim(100, "2-3", halt_poll_ns=0, resume_latency_us=20),
        views.claim(101, "3-4", halt_poll_ns=50_000, resume_latency_us=0),
    )
    assert views.wants(latency.of_node(host)) == {
        "kvm:halt_poll_ns": "50000",
        "resume-latency:2": "20",
        "resume-latency:3": "n/a",  # the kernel's word for a bound of zero
        "resume-latency:4": "n/a",
    }


def test_node_wide_values_go_back_when_the_last_vm_leaves(tree, views):
    tree.put("run/pxsched/.keep", "")
    before, ledger = tree.content(), Ledger()
    host = views.host(views.claim(100, "2-3", halt_poll_ns=10, resume_latency_us=0))
    reconcile(tree.root, ledger, latency.of_node(host), [NODE])
    assert tree.get("sys/module/kvm/parameters/halt_poll_ns") == "10"
    reconcile(tree.root, ledger, latency.of_node(views.host()), [NODE])
    assert tree.content() == before


@pytest.mark.parametrize("knob, value", [(ResumeLatency(0), "n/a"), (KvmParameter("halt_poll_ns"), "12345")])
def test_this_machines_own_files_take_the_values_and_give_them_back(knob, value):
    try:
        before = knob.read(LIVE)
        knob.write(LIVE, before)
    except (Gone, OSError) as error:
        pytest.skip(f"{knob.key} cannot be written here: {error}")
    try:
        knob.write(LIVE, value)
        assert knob.read(LIVE) == value
    finally:
        knob.write(LIVE, before)
    assert knob.read(LIVE) == before


def test_a_journal_cannot_name_other_kvm_parameters():
    with pytest.raises(ValueError, match="no parameter of ours"):
        knobs.from_key("kvm:../../../../etc/passwd")
