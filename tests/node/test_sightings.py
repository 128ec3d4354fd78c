"""A process that makes many passes reads of each VM only what has changed, and misses no change."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pxsched.guest import process
from pxsched.guest.process import Process, Role, Thread, Threads
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.file import Ledger
from pxsched.node.sighting import Sighting, sight
from pxsched.node.sightings import Sightings
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root

# Stands for QEMU. Starts a thread ("start NAME"), ends it ("end NAME") or names it ("name TID NAME"), as it
# is told, and says its id.
CHILD = """
import os, sys, threading
ends = {}
def run(end, said):
    said.append(threading.get_native_id())
    end.wait()
for line in sys.stdin:
    do, *rest = line.rstrip().split(' ', 2 if line.startswith('name') else 1)
    if do == 'end':
        tid, end = ends.pop(rest[0])
        end.set()
        while os.path.exists(f'/proc/self/task/{tid}'):
            pass
        print(0, flush=True)
        continue
    if do == 'start':
        end, said = threading.Event(), []
        threading.Thread(target=run, args=(end, said), daemon=True).start()
        while not said:
            pass
        ends[rest[0]] = said[0], end
        rest.insert(0, said[0])
    open(f'/proc/self/task/{rest[0]}/comm', 'w').write(rest[1])
    print(rest[0], flush=True)
"""
LAST_PID = "/proc/sys/kernel/ns_last_pid"


class Guest:
    """A VM on a node of its own: its configuration, and a real process that says to be its QEMU."""

    def __init__(self, base: Path, vmid: int) -> None:
        (base / "run/qemu-server").mkdir(parents=True)
        (base / "proc").symlink_to("/proc")
        self.root = Root(str(base))
        self.vmid = vmid
        self.pid_file = base / f"run/qemu-server/{vmid}.pid"
        self.config = base / f"etc/pve/nodes/here/qemu-server/{vmid}.conf"
        self.config.parent.mkdir(parents=True)
        (base / "etc/pve/local").symlink_to("nodes/here")

    def write(self, text: str, age_s: float = 60) -> None:
        """Writes the configuration as if it had been written so long ago."""
        self.config.write_text(text)
        then = int(time.time() - age_s)
        os.utime(self.config, (then, then))

    def start(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD, "-pidfile", str(self.pid_file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid_file.write_text(f"{self.child.pid}\n")

    def stop(self) -> None:
        self.child.kill()
        self.child.communicate()

    def tell(self, line: str) -> int:
        """Has a thread started, ended or named; gives its id."""
        assert self.child.stdin and self.child.stdout
        self.child.stdin.write(f"{line}\n")
        self.child.stdin.flush()
        return int(self.child.stdout.readline())


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """A VM with one vCPU whose threads count as old at once."""
    monkeypatch.setattr(process, "NAMED_S", 0.0)
    one = Guest(tmp_path, 100)
    one.write("cores: 1\nhookscript: local:snippets/pxsched\n")
    one.start()
    one.tell("start CPU 0/KVM")
    yield one
    one.stop()


Look = Callable[[], Sighting]


@pytest.fixture
def look(guest: Guest) -> Look:
    """Looks at the VM with all that earlier looks have left, of which there have been three."""
    seen = Sightings(guest.root)

    def look() -> Sighting:
        (found,) = seen.look(Ledger())
        return found

    for _ in range(3):
        look()
    return look


def again(number: int, start: Callable[[], int], end: Callable[[], object]) -> None:
    """Starts a task that gets this number, which was somebody's before."""
    for _ in range(50):
        try:
            Path(LAST_PID).write_text(str(number - 1))
        except OSError as error:
            pytest.skip(f"{LAST_PID}: {error.strerror}")
        if start() == number:
            return
        end()
    pytest.fail(f"somebody else always gets {number}")


def test_a_vm_that_stays_as_it_is_is_not_read_again(guest, look, monkeypatch):
    before = look()
    read: list[str] = []
    monkeypatch.setattr(Root, "read_bytes", lambda root, relative: read.append(relative))
    assert look() is before
    assert read == []


def test_a_changed_configuration_is_seen(guest, look):
    guest.write("cores: 1\ncpulimit: 1\nhookscript: local:snippets/pxsched\n")
    assert look().machine.cpu_limit == 1
    guest.write("cores: 1\ncpulimit: 1\n")
    assert not look().opted_in


def test_a_configuration_that_changes_twice_within_a_second_is_seen(guest, look):
    """As large as before and, to /etc/pve, as old."""
    guest.write("cores: 1\nmemory: 512\n", age_s=0)
    now = os.stat(guest.config).st_mtime
    assert look().machine.memory_mib == 512
    guest.config.write_text("cores: 1\nmemory: 768\n")
    os.utime(guest.config, (now, now))
    assert look().machine.memory_mib == 768


def test_a_configuration_that_goes_away_is_missed(guest, look):
    guest.config.rename(guest.config.with_suffix(".away"))
    found = look()
    assert found.machine is None and found.process is not None
    guest.config.with_suffix(".away").rename(guest.config)
    assert look().machine is not None


def test_a_hot_plugged_vcpu_is_seen_before_and_after_its_configuration(guest, look):
    tid = guest.tell("start CPU 1/KVM")
    assert Role.VCPU in [thread.role for thread in look().threads if thread.tid == tid]
    guest.write("cores: 2\n")
    found = look()
    assert found.machine.vcpus == 2
    assert sorted(thread.vcpus for thread in found.threads if thread.role is Role.VCPU) == [(0,), (1,)]


def test_a_thread_that_ended_is_no_longer_there(guest, look):
    tid = guest.tell("start worker")
    assert tid in [thread.tid for thread in look().threads]
    guest.tell("end worker")
    assert tid not in [thread.tid for thread in look().threads]


def test_a_thread_that_comes_and_goes_does_not_have_the_others_read_again(guest, look, monkeypatch):
    guest.tell("start worker")
    before = {thread.tid: thread for thread in look().threads}
    guest.tell("end worker")
    tid = guest.tell("start other")
    for thread in look().threads:
        assert thread.tid == tid or thread is before[thread.tid]


def test_a_thread_number_that_comes_back_is_another_thread(guest, look):
    tid = guest.tell("start worker")
    (before,) = [thread for thread in look().threads if thread.tid == tid]
    time.sleep(0.02)  # a start time is known to 10 ms
    guest.tell("end worker")
    again(tid, lambda: guest.tell("start worker"), lambda: guest.tell("end worker"))
    (after,) = [thread for thread in look().threads if thread.tid == tid]
    assert after.start_ticks > before.start_ticks


def test_a_process_number_that_comes_back_is_another_process(guest, look):
    before = look()
    time.sleep(0.02)
    guest.stop()

    def start() -> int:
        guest.start()
        return guest.child.pid

    again(before.process.pid, start, guest.stop)
    after = look()
    assert after.process.pid == before.process.pid
    assert after.process.start_ticks > before.process.start_ticks
    assert not any(thread.role is Role.VCPU for thread in after.threads)


def test_a_vm_that_ended_has_no_process(guest, look):
    guest.stop()
    assert look().process is None


def test_a_process_that_lost_its_pid_file_is_no_vm(guest):
    home = frozenset({0})
    ledger = Ledger()
    ledger.claims[100] = Claim(Placement(100, VmClass.SHARED, (home,), home, home), State.RUNNING)
    seen = Sightings(guest.root)
    assert [one.process is not None for one in seen.look(ledger)] == [True]
    guest.pid_file.unlink()
    assert [one.process is not None for one in seen.look(ledger)] == [False]


def test_a_thread_gets_its_name_a_moment_after_it_begins(guest, monkeypatch):
    monkeypatch.setattr(process, "NAMED_S", 2.0)
    threads = Threads(guest.root, process.identify(guest.root, guest.child.pid))
    tid = guest.tell("start python3")
    assert role(threads.read(), tid) is Role.EMULATOR
    guest.tell(f"name {tid} CPU 1/KVM")
    assert role(threads.read(), tid) is Role.VCPU


def role(threads: tuple[Thread, ...], tid: int) -> Role:
    return next(thread.role for thread in threads if thread.tid == tid)


def test_threads_of_a_process_that_is_gone_are_none(guest):
    found = process.identify(guest.root, guest.child.pid)
    threads = Threads(guest.root, found)
    assert len(threads.read()) == len(threads.read()) == 2
    assert Threads(guest.root, Process(found.pid, found.start_ticks - 1)).read() == ()
    guest.stop()
    assert threads.read() == ()


def test_qemu_is_asked_only_for_a_vcpu_that_no_thread_is_named_after(guest):
    """It serves one client at a time, and Proxmox is one; this one has no socket."""
    assert sight(guest.root, 100, hooked=True).notes == ()
    guest.write("cores: 2\nhookscript: local:snippets/pxsched\n")
    (note,) = sight(guest.root, 100, hooked=True).notes
    assert note.startswith("threads told by their names, as QMP failed")
