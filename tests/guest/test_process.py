"""Finding a VM's process and threads among real processes, none of which is believed without proof."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pxsched.guest import process
from pxsched.guest.process import Process, Role
from pxsched.root import Root

# Stands for QEMU: threads named as asked, on two lines of output says its thread ids, and sleeps.
CHILD = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
def run(name, ready):
    libc.prctl(15, name.encode(), 0, 0, 0)   # PR_SET_NAME
    ready.append((name, threading.get_native_id()))
    time.sleep(600)
ready = []
names = [name.replace('PID', str(os.getpid())) for name in sys.argv[sys.argv.index('--') + 1:]]
for name in names:
    threading.Thread(target=run, args=(name, ready), daemon=True).start()
while len(ready) < len(names):
    time.sleep(0.001)
libc.prctl(15, sys.argv[1].encode(), 0, 0, 0)
print(' '.join(str(tid) for name, tid in sorted(ready, key=lambda one: names.index(one[0]))), flush=True)
time.sleep(600)
"""


class Guest:
    """A real process that says to be the QEMU of a VM."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        assert child.stdout
        self.child = child
        self.pid = child.pid
        self.tids = [int(word) for word in child.stdout.readline().split()]


class Node:
    """A root whose processes are the running kernel's, and whose /run is our own."""

    def __init__(self, base: Path) -> None:
        self.run = base / "run/qemu-server"
        self.run.mkdir(parents=True)
        (base / "proc").symlink_to("/proc")
        self.root = Root(str(base))

    def pid_file(self, vmid: int) -> Path:
        return self.run / f"{vmid}.pid"

    def write_pid(self, vmid: int, text: str) -> None:
        self.pid_file(vmid).write_text(text)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


Start = Callable[..., Guest]


@pytest.fixture
def start(node: Node) -> Iterator[Start]:
    """start(*thread names, comm=, arguments=, vmid=): a process with these threads."""
    with contextlib.ExitStack() as stack:

        def run(*names: str, comm: str = "kvm", arguments: list[str] | None = None, vmid: int = 100) -> Guest:
            if arguments is None:
                arguments = ["-id", str(vmid), "-pidfile", f"/var/run/qemu-server/{vmid}.pid", "-daemonize"]
            line = [sys.executable, "-I", "-c", CHILD, comm, *arguments, "--", *names]
            child = stack.enter_context(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
            stack.callback(child.kill)
            return Guest(child)

        yield run


def test_a_process_that_names_its_pid_file_is_the_vms(node, start):
    guest = start()
    node.write_pid(100, f"{guest.pid}\n")
    found = process.find(node.root, 100)
    assert found is not None and found.pid == guest.pid
    assert process.alive(node.root, found)
    assert process.running(node.root) == [100]


def test_a_process_that_names_another_vms_pid_file_is_not_believed(node, start):
    node.write_pid(100, f"{start(vmid=101).pid}\n")
    assert process.find(node.root, 100) is None


def test_a_process_that_names_no_pid_file_is_not_believed(node, start):
    node.write_pid(100, f"{start(arguments=['-id', '100']).pid}\n")
    assert process.find(node.root, 100) is None


@pytest.mark.parametrize(
    "arguments",
    [["-name", "/var/run/qemu-server/100.pid"], ["-pidfile=/var/run/qemu-server/100.pid"],
     ["-pidfile", "/home/me/run/qemu-server/100.pid"], ["-pidfile", "/var/run/qemu-server/100.pid.old"],
     ["-name", "-pidfile /var/run/qemu-server/100.pid"], ["-pidfile", ""]],
)  # fmt: skip
def test_only_the_argument_after_pidfile_counts(node, start, arguments):
    node.write_pid(100, f"{start(arguments=arguments).pid}\n")
    assert process.find(node.root, 100) is None


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1 2", "abc", "٣", "99999999999999", "4194305", "../1", "\0", "9" * 5000, "1e3"]
)
def test_a_pid_file_with_anything_else_is_no_vm(node, text):
    node.write_pid(100, text)
    assert process.find(node.root, 100) is None


def test_a_pid_file_that_names_a_system_process_is_not_believed(node):
    node.write_pid(100, "1\n")
    assert process.find(node.root, 100) is None


def test_only_files_named_after_a_vm_are_pid_files(node):
    for name in ("100.pid", "99.pid", "0100.pid", "1234567890.pid", "x.pid", "200.qmp", "300.pid.tmp"):
        (node.run / name).write_text("1\n")
    assert process.running(node.root) == [100]


def test_a_recycled_pid_is_another_process(node, start):
    guest = start()
    node.write_pid(100, f"{guest.pid}\n")
    found = process.find(node.root, 100)
    earlier = Process(guest.pid, found.start_ticks - 1)
    assert not process.alive(node.root, earlier)
    assert process.threads(node.root, earlier) == ()
    assert process.threads(node.root, found) != ()


def test_a_process_that_ended_is_gone_even_as_a_zombie(node, start):
    guest = start()
    node.write_pid(100, f"{guest.pid}\n")
    found = process.find(node.root, 100)
    guest.child.kill()
    os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    assert Path(f"/proc/{guest.pid}/stat").exists()
    assert process.identify(node.root, guest.pid) is None
    assert process.find(node.root, 100) is None
    assert not process.alive(node.root, found)
    assert process.threads(node.root, found) == ()
    guest.child.wait()
    assert process.identify(node.root, guest.pid) is None


def test_threads_are_told_by_the_names_qemu_gives_them(node, start):
    names = ["CPU 0/KVM", "CPU 3/KVM", "CPU 255/TCG", "call_rcu", "kvm", "worker"]
    guest = start(*names)
    found = {thread.tid: thread for thread in threads(node, guest)}
    assert set(found) == {guest.pid, *guest.tids}
    assert [found[tid].name for tid in guest.tids] == names
    assert [found[tid].vcpus for tid in guest.tids] == [(0,), (3,), (255,), (), (), ()]
    assert [found[tid].role for tid in guest.tids[:3]] == [Role.VCPU] * 3
    assert {found[tid].role for tid in (guest.pid, *guest.tids[3:])} == {Role.EMULATOR}
    assert all(thread.start_ticks >= found[guest.pid].start_ticks for thread in found.values())


def test_names_that_only_resemble_a_vcpus_are_no_vcpu(node, start):
    guest = start("CPU x/KVM", "CPU 1/KVMX", "xCPU 1/KVM", "CPU 1", "CPU -1/KVM", "CPU 1/XEN", "ALL CPUs/TCG")
    assert all(thread.role is Role.EMULATOR for thread in threads(node, guest))


def test_a_vhost_worker_bears_its_own_process_id(node, start):
    guest = start("vhost-PID", "vhost-1")
    roles = {thread.tid: thread.role for thread in threads(node, guest)}
    assert roles == {guest.pid: Role.EMULATOR, guest.tids[0]: Role.VHOST, guest.tids[1]: Role.EMULATOR}


@pytest.mark.parametrize("name", [") R 1 2", "a) S 1 (b", "((((", "))))", ") Z 0 0 0 0"])
def test_a_name_made_to_confuse_hides_neither_the_process_nor_its_threads(node, start, name):
    guest = start(name, "CPU 1/KVM", comm=name)
    node.write_pid(100, f"{guest.pid}\n")
    found = process.find(node.root, 100)
    assert found is not None and found.start_ticks > 0
    assert found.start_ticks == pytest.approx(now_ticks(), abs=60 * os.sysconf("SC_CLK_TCK"))
    by_tid = {thread.tid: thread for thread in process.threads(node.root, found)}
    assert by_tid[guest.tids[0]].name == name and by_tid[guest.tids[0]].role is Role.EMULATOR
    assert by_tid[guest.tids[1]].vcpus == (1,)


def now_ticks() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")


def threads(node: Node, guest: Guest) -> tuple[process.Thread, ...]:
    found = process.identify(node.root, guest.pid)
    assert found is not None
    return process.threads(node.root, found)


def test_what_qmp_says_goes_before_the_names(node, start):
    guest = start("CPU 0/KVM", "kvm", "kvm")
    zero, one, io = guest.tids
    known = process.with_vcpus(threads(node, guest), {zero: (1,), one: (0,)})
    roles = {thread.tid: (thread.role, thread.vcpus) for thread in known}
    assert roles[zero] == (Role.VCPU, (1,))
    assert roles[one] == (Role.VCPU, (0,))
    assert roles[io] == (Role.EMULATOR, ())
    assert roles[guest.pid] == (Role.EMULATOR, ())


def test_threads_of_other_processes_that_qmp_names_are_passed_over(node, start):
    guest = start("CPU 0/KVM")
    known = process.with_vcpus(threads(node, guest), {1: (0,), os.getpid(): (1,)})
    assert {thread.tid for thread in known} == {guest.pid, *guest.tids}
    assert [thread.vcpus for thread in known if thread.role is Role.VCPU] == [(0,)]


def test_a_vhost_worker_is_known_by_its_name(node, start):
    guest = start("vhost-PID")
    assert [thread.role for thread in threads(node, guest) if thread.tid == guest.tids[0]] == [Role.VHOST]


def test_the_mask_of_a_thread_is_read_from_procfs(node, start):
    guest = start("CPU 0/KVM")
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(guest.tids[0], {cpu})
    assert process.allowed(node.root, guest.tids[0]) == str(cpu)
    assert process.allowed(node.root, 4_194_305) is None


# Trees of files: kernels other than the running one.


class Tree:
    """A procfs made of files."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(str(base))

    def put(self, name: str, content: str) -> None:
        path = self.base / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def thread(self, where: str, tid: int, name: str, start: int = 1000) -> None:
        after = ["S", "1", *["0"] * 17, str(start), "0", "0"]
        self.put(f"{where}/stat", f"{tid} ({name}) {' '.join(after)}\n")
        self.put(f"{where}/comm", f"{name}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A kernel of before 6.4: QEMU 500 with two threads, and three kernel threads."""
    tree = Tree(tmp_path)
    tree.put("sys/kernel/osrelease", "6.1.0-13-amd64\n")
    tree.thread("500", 500, "kvm")
    tree.thread("500/task/500", 500, "kvm")
    tree.thread("500/task/501", 501, "CPU 0/KVM")
    tree.put("2/task/2/children", "3 700 701 702 \n")
    tree.thread("700", 700, "vhost-500")
    tree.thread("701", 701, "vhost-600")
    tree.thread("702", 702, "vhost-500", start=1200)
    tree.thread("900", 900, "vhost-500")  # a tenant's process that took the name
    return tree


def test_on_older_kernels_vhost_workers_are_kernel_threads(tree):
    found = process.threads(tree.root, Process(500, 1000))
    assert [(thread.tid, thread.start_ticks) for thread in found if thread.role is Role.VHOST] == [
        (700, 1000),
        (702, 1200),
    ]
    assert {thread.tid for thread in found} == {500, 501, 700, 702}


@pytest.mark.parametrize("release", ["6.4.0", "6.8.12-4-pve", "7.0"])
def test_on_newer_kernels_no_kernel_thread_belongs_to_qemu(tree, release):
    tree.put("sys/kernel/osrelease", f"{release}\n")
    assert {thread.tid for thread in process.threads(tree.root, Process(500, 1000))} == {500, 501}


@pytest.mark.parametrize("stat", ["", "501", "501 (x", "501 (x) S", f"501 (x) S {'x ' * 30}", ") ("])
def test_a_damaged_stat_file_hides_one_thread_and_nothing_else(tree, stat):
    tree.put("500/task/501/stat", stat)
    assert 500 in {thread.tid for thread in process.threads(tree.root, Process(500, 1000))}


def test_what_is_no_thread_id_among_the_tasks_is_passed_over(tree):
    tree.thread("500/task/lost+found", 1, "x")
    assert 500 in {thread.tid for thread in process.threads(tree.root, Process(500, 1000))}
