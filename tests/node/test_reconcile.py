"""The one loop that turns knobs: real threads, and files that stand for kernel values."""

import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxsched.errors import UserError
from pxsched.guest import process
from pxsched.host import cpulist
from pxsched.knobs import knob as knobs
from pxsched.knobs.knob import Gone, Knob, Rank
from pxsched.knobs.thread import ThreadAffinity
from pxsched.ledger import file as ledgers
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import Entry
from pxsched.node.reconcile import reconcile
from pxsched.node.turns import Report
from pxsched.plugins.view import Setting
from pxsched.root import Root
from pxsched.value import replace

CPUS = sorted(os.sched_getaffinity(0))
ALL = cpulist.format(CPUS)
FIRST, LAST = str(CPUS[0]), str(CPUS[-1])

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="a machine with a single CPU leaves nothing to choose")

CHILD = """
import sys, threading, time
tids = []
def run():
    tids.append(threading.get_native_id())
    time.sleep(600)
for _ in range(3):
    threading.Thread(target=run, daemon=True).start()
while len(tids) < 3:
    time.sleep(0.001)
print(*tids, flush=True)
time.sleep(600)
"""


class Threads:
    """Three real threads of a child process."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        assert child.stdout
        self.child = child
        self.tids = [int(word) for word in child.stdout.readline().split()]

    def mask(self, number: int) -> str:
        return cpulist.format(os.sched_getaffinity(self.tids[number]))

    def turn(self, number: int, cpus: str) -> None:
        os.sched_setaffinity(self.tids[number], cpulist.parse(cpus))

    def knob(self, number: int) -> ThreadAffinity:
        found = process.identify(Root(), self.tids[number])
        assert found is not None
        return ThreadAffinity(found.pid, found.start_ticks)

    def want(self, number: int, cpus: str, *, owner: int = 100, inherited: str | None = None) -> Setting:
        return Setting(self.knob(number), cpus, owner, "vcpu", inherited)


@pytest.fixture
def threads() -> Iterator[Threads]:
    with subprocess.Popen([sys.executable, "-I", "-c", CHILD], stdout=subprocess.PIPE, text=True) as child:
        yield Threads(child)
        child.kill()


class Host:
    """A root with the running kernel's processes, and a ledger of our own; every pass locks and reads it."""

    def __init__(self, base: Path) -> None:
        (base / "proc").symlink_to("/proc")
        self.root = Root(str(base))

    def reconcile(self, *desired: Setting, owners: set[int] | None = None) -> Report:
        with ledgers.locked(self.root) as ledger:
            return reconcile(self.root, ledger, desired, owners)

    @property
    def ledger(self) -> Ledger:
        return ledgers.peek(self.root)

    @property
    def journal(self) -> dict[str, Entry]:
        return self.ledger.journal


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# Threads


def test_a_thread_that_is_not_as_desired_is_turned_and_its_original_kept(host, threads):
    report = host.reconcile(threads.want(0, LAST))
    assert threads.mask(0) == LAST and threads.mask(1) == ALL
    assert [(turn.before, turn.after) for turn in report.turned] == [(ALL, LAST)]
    (entry,) = host.journal.values()
    assert (entry.original, entry.wanted, entry.owner, entry.plugin) == (ALL, LAST, 100, "vcpu")


def test_a_thread_that_is_as_desired_is_left_alone(host, threads):
    threads.turn(0, LAST)
    report = host.reconcile(threads.want(0, LAST))
    assert vars(report) == vars(Report()) and host.journal == {}


def test_a_second_pass_writes_nothing(host, threads):
    host.reconcile(threads.want(0, LAST))
    before = host.ledger
    assert vars(host.reconcile(threads.want(0, LAST))) == vars(Report())
    assert (host.ledger.claims, host.ledger.journal) == (before.claims, before.journal)


def test_what_is_no_longer_desired_is_put_back_and_forgotten(host, threads):
    threads.turn(0, FIRST)
    host.reconcile(threads.want(0, LAST), threads.want(1, FIRST))
    report = host.reconcile(threads.want(1, FIRST))
    assert (threads.mask(0), threads.mask(1)) == (FIRST, FIRST)
    assert [(turn.before, turn.after) for turn in report.restored] == [(LAST, FIRST)]
    assert list(host.journal) == [threads.knob(1).key]


def test_the_original_survives_any_number_of_changes(host, threads):
    for want in (LAST, FIRST, ALL, LAST):
        host.reconcile(threads.want(0, want))
        assert threads.mask(0) == want
    host.reconcile()
    assert threads.mask(0) == ALL and host.journal == {}


def test_drift_is_corrected_counted_and_does_not_become_the_original(host, threads):
    host.reconcile(threads.want(0, LAST))
    threads.turn(0, FIRST)
    report = host.reconcile(threads.want(0, LAST))
    assert threads.mask(0) == LAST
    assert [turn.drifted for turn in report.turned] == [True]
    (entry,) = host.journal.values()
    assert (entry.original, entry.drifts) == (ALL, 1) and entry.drifted_ns is not None
    host.reconcile()
    assert threads.mask(0) == ALL


def test_a_new_wish_is_not_taken_for_drift(host, threads):
    host.reconcile(threads.want(0, LAST))
    host.reconcile(threads.want(0, FIRST))
    (entry,) = host.journal.values()
    assert (entry.drifts, entry.drifted_ns) == (0, None)


def test_the_order_of_a_list_is_no_difference(host, threads):
    threads.turn(0, ALL)
    backwards = cpulist.format_ordered(CPUS[::-1])
    assert vars(host.reconcile(threads.want(0, backwards))) == vars(Report())


def test_what_a_thread_inherited_from_us_is_not_its_original(host, threads):
    threads.turn(0, LAST)  # QEMU was started under a mask of ours
    host.reconcile(threads.want(0, FIRST, inherited=ALL), threads.want(1, ALL, inherited=ALL))
    host.reconcile()
    assert threads.mask(0) == ALL and host.journal == {}


def test_an_inherited_mask_is_put_back_even_where_nothing_had_to_be_turned(host, threads):
    threads.turn(0, LAST)
    report = host.reconcile(threads.want(0, LAST, inherited=ALL))
    assert report.turned == [] and len(host.journal) == 1
    host.reconcile()
    assert threads.mask(0) == ALL


def test_threads_that_are_gone_are_forgotten_in_silence(host, threads):
    desired = [threads.want(number, LAST) for number in range(3)]
    host.reconcile(*desired)
    threads.child.kill()
    threads.child.wait()
    assert vars(host.reconcile()) == vars(Report())
    assert host.journal == {}


def test_threads_that_are_gone_but_still_desired_are_forgotten_too(host, threads):
    desired = [threads.want(number, LAST) for number in range(3)]
    host.reconcile(*desired)
    threads.child.kill()
    threads.child.wait()
    assert vars(host.reconcile(*desired)) == vars(Report())
    assert host.journal == {}


def test_a_thread_that_took_the_id_of_another_is_not_touched(host, threads):
    real = threads.knob(0)
    earlier = replace(real, start_ticks=real.start_ticks - 1)
    host.reconcile(Setting(earlier, LAST, 100, "vcpu"))
    assert threads.mask(0) == ALL and host.journal == {}
    with ledgers.locked(host.root) as ledger:
        ledger.journal[earlier.key] = Entry(100, "vcpu", FIRST, LAST, 1)
        ledgers.save(host.root, ledger)
    host.reconcile()
    assert threads.mask(0) == ALL and host.journal == {}


def test_only_the_knobs_of_the_named_owners_are_put_back(host, threads):
    host.reconcile(threads.want(0, LAST, owner=100), threads.want(1, LAST, owner=101))
    host.reconcile(owners={100})
    assert (threads.mask(0), threads.mask(1)) == (ALL, LAST)
    assert [entry.owner for entry in host.journal.values()] == [101]


def test_what_the_kernel_refuses_is_said_once_and_stops_nothing_else(host, threads):
    absent = str(max(CPUS) + 5000)
    desired = [threads.want(0, absent), threads.want(1, LAST)]
    report = host.reconcile(*desired)
    assert threads.mask(1) == LAST and threads.mask(0) == ALL
    (line,) = report.failed
    why = "none of these CPUs is online and one that the thread's cgroup may use"
    assert re.match(rf"affinity of [^:]+ \({threads.tids[0]}\): the kernel refused {absent}: {why}", line)
    assert host.reconcile(*desired).failed == []
    assert host.journal[threads.knob(0).key].note in line
    assert host.journal[threads.knob(0).key].drifts == 0


def test_a_journal_entry_nobody_understands_stops_nothing_else(host, threads):
    host.reconcile(threads.want(0, LAST))
    with ledgers.locked(host.root) as ledger:
        for key in ("warp-drive:1", "affinity:1", "affinity:x,y"):
            ledger.journal[key] = Entry(100, "vcpu", "0", "1", 1)
        ledger.journal[threads.knob(1).key] = Entry(100, "vcpu", "no CPU list", "1", 1)
        ledgers.save(host.root, ledger)
    report = host.reconcile()
    assert len(report.failed) == 4
    last = f"({threads.tids[1]}): bad CPU list 'no CPU list'"
    assert any(line.startswith("affinity of python") and last in line for line in report.failed)
    assert threads.mask(0) == ALL and host.journal == {}


# The journal comes first


def test_when_the_journal_cannot_be_written_nothing_is_turned(host, threads, monkeypatch):
    def fails(root: Root, ledger: Ledger) -> None:
        raise UserError("no room")

    monkeypatch.setattr(ledgers, "save", fails)
    with pytest.raises(UserError, match="no room"):
        host.reconcile(threads.want(0, LAST), threads.want(1, FIRST))
    assert (threads.mask(0), threads.mask(1)) == (ALL, ALL)


def test_nothing_is_put_back_either_while_the_journal_cannot_be_written(host, threads, monkeypatch):
    host.reconcile(threads.want(0, LAST))

    def fails(root: Root, ledger: Ledger) -> None:
        raise UserError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(ledgers, "save", fails)
        with pytest.raises(UserError):
            host.reconcile(threads.want(1, LAST))
    assert (threads.mask(0), threads.mask(1)) == (LAST, ALL)
    host.reconcile()
    assert threads.mask(0) == ALL


def test_every_original_is_on_disk_before_the_first_write(host, threads, monkeypatch):
    seen = []
    write = ThreadAffinity.write

    def watched(knob: ThreadAffinity, root: Root, value: str) -> None:
        seen.append({key: entry.original for key, entry in host.journal.items()})
        write(knob, root, value)

    monkeypatch.setattr(ThreadAffinity, "write", watched)
    host.reconcile(*(threads.want(number, LAST) for number in range(3)))
    assert len(seen) == 3
    assert all(journal == {threads.knob(number).key: ALL for number in range(3)} for journal in seen)


KILLED = """
import os, signal, sys
from pxsched.ledger import file as ledgers
from pxsched.knobs.thread import ThreadAffinity
from pxsched.plugins.view import Setting
from pxsched.node.reconcile import reconcile
from pxsched.root import Root

root, want, fatal = Root(sys.argv[1]), sys.argv[2], int(sys.argv[3])
knobs = [ThreadAffinity(*map(int, word.split(","))) for word in sys.argv[4:]]
write, count = ThreadAffinity.write, 0
def counted(knob, root, value):
    global count
    count += 1
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    write(knob, root, value)
ThreadAffinity.write = counted
with ledgers.locked(root) as ledger:
    reconcile(root, ledger, [Setting(knob, want, 100, "vcpu") for knob in knobs], None)
"""


@pytest.mark.parametrize("fatal", [1, 2, 3])
def test_killed_at_any_write_the_next_pass_puts_everything_back(host, threads, fatal):
    threads.turn(1, FIRST)
    keys = [threads.knob(number).key.partition(":")[2] for number in range(3)]
    package = str(Path(ledgers.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, host.root.base, LAST, str(fatal), *keys],
        env={**os.environ, "PYTHONPATH": package}, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert [threads.mask(number) for number in range(3)].count(LAST) == fatal - 1
    host.reconcile()
    assert [threads.mask(number) for number in range(3)] == [ALL, FIRST, ALL]
    assert host.journal == {}


# Knobs of other kinds: files below the root stand for what the kernel would hold


class Plain(Knob):
    """A value in a file."""

    kind = "plain"
    name: str

    def path(self, root: Root) -> Path:
        return Path(root.path(f"values/{self.name}"))

    def label(self, root: Root) -> str:
        return f"the {self.kind} of {self.name}"

    def read(self, root: Root) -> str:
        try:
            return self.path(root).read_text()
        except FileNotFoundError:
            raise Gone(self.key) from None

    def write(self, root: Root, value: str) -> None:
        self.path(root).write_text(value)
        with Path(root.path("written")).open("a") as log:
            log.write(f"{self.kind} {self.name} {value}\n")


class Cpuset(Plain):
    """Writing it gives every thread in it the mask of the whole cpuset, as the kernel does."""

    kind = "testset"
    rank = Rank.CPUSET

    def write(self, root: Root, value: str) -> None:
        Plain.write(self, root, value)
        for file in Path(root.path("values")).glob("thread-*"):
            file.write_text(value)


class InSet(Plain):
    """A thread in that cpuset."""

    kind = "testthread"
    rank = Rank.THREAD


class Obstinate(Plain):
    """The kernel keeps to a choice of its own."""

    kind = "obstinate"

    def write(self, root: Root, value: str) -> None:
        Plain.write(self, root, "own choice")


class Fenced(Plain):
    """A CPU list of which the kernel takes what a fence lets through."""

    kind = "fenced"

    def write(self, root: Root, value: str) -> None:
        fence = cpulist.parse(Path(root.path("values/fence")).read_text())
        Plain.write(self, root, cpulist.format(cpulist.parse(value) & fence))


class FencedSet(Fenced):
    kind = "fencedset"
    rank = Rank.CPUSET


class Values:
    def __init__(self, host: Host) -> None:
        self.base = Path(host.root.base)
        (self.base / "values").mkdir()

    def put(self, name: str, value: str) -> None:
        (self.base / "values" / name).write_text(value)

    def __getitem__(self, name: str) -> str:
        return (self.base / "values" / name).read_text()

    def writes(self) -> list[str]:
        log = self.base / "written"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def values(host: Host, monkeypatch: pytest.MonkeyPatch) -> Values:
    module = types.ModuleType("pxsched_test_knobs")
    for model in (Plain, Cpuset, InSet, Obstinate, Fenced, FencedSet):
        setattr(module, model.__name__, model)
        monkeypatch.setitem(knobs.KINDS, model.kind, f"pxsched_test_knobs:{model.__name__}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Values(host)


def want(knob: Knob, value: str) -> Setting:
    return Setting(knob, value, 100, "test")


def test_a_cpuset_is_written_before_the_threads_in_it_and_put_back_before_them(host, values):
    values.put("set", "0-7")
    values.put("thread-1", "0-7")
    values.put("device", "a")
    host.reconcile(want(InSet("thread-1"), "3"), want(Plain("device"), "b"), want(Cpuset("set"), "0-3"))
    assert [line.split()[0] for line in values.writes()] == ["testset", "plain", "testthread"]
    assert (values["set"], values["thread-1"]) == ("0-3", "3")
    host.reconcile()
    assert [line.split()[0] for line in values.writes()] == ["testset", "plain", "testthread"]
    assert (values["set"], values["thread-1"], values["device"]) == ("0-7", "0-7", "a")


def test_threads_that_a_moving_cpuset_disturbs_are_set_again_in_the_same_pass(host, values):
    values.put("set", "0-7")
    values.put("thread-1", "3")  # already as desired, until the cpuset moves
    host.reconcile(want(InSet("thread-1"), "3"), want(Cpuset("set"), "0-3"))
    assert (values["set"], values["thread-1"]) == ("0-3", "3")
    host.reconcile(want(InSet("thread-1"), "3"))
    assert (values["set"], values["thread-1"]) == ("0-7", "3"), "the cpuset goes, the thread's wish stays"
    host.reconcile()
    assert values["thread-1"] == "3"


def test_what_the_kernel_made_of_a_value_is_noted_and_said_once(host, values):
    values.put("x", "before")
    first = host.reconcile(want(Obstinate("x"), "wish"))
    assert len(first.failed) == 1 and "own choice" in first.failed[0]
    assert host.reconcile(want(Obstinate("x"), "wish")).failed == []
    (entry,) = host.journal.values()
    assert entry.note == "the kernel made it own choice" and entry.original == "before"


def test_what_something_keeps_narrowing_is_not_turned_again_until_it_or_the_wish_changes(host, values):
    values.put("fence", "1-3")
    values.put("x", "1-3")
    assert len(host.reconcile(want(Fenced("x"), "0-1")).turned) == 1
    assert values["x"] == "1"
    values.writes()
    for _ in range(3):
        assert vars(host.reconcile(want(Fenced("x"), "0-1"))) == vars(Report())
    assert values.writes() == []
    host.reconcile(want(Fenced("x"), "0,2"))
    assert values["x"] == "2", "another wish is tried"
    values.put("fence", "0-7")
    values.put("x", "0,2")  # as the kernel has it from 6.2 on, once the fence is gone
    host.reconcile(want(Fenced("x"), "0,2"))
    (entry,) = host.journal.values()
    assert (entry.note, entry.drifts) == ("", 0)
    values.put("x", "5")
    host.reconcile(want(Fenced("x"), "0,2"))
    (entry,) = host.journal.values()
    assert (values["x"], entry.drifts) == ("0,2", 1), "and now it is somebody who turns it"


def test_a_fence_that_comes_later_is_no_drift(host, values):
    values.put("fence", "0-7")
    values.put("x", "0-7")
    host.reconcile(want(Fenced("x"), "0-1"))
    values.put("fence", "1-3")
    values.put("x", "1")
    report = host.reconcile(want(Fenced("x"), "0-1"))
    assert [turn.drifted for turn in report.turned] == [False] and len(report.failed) == 1
    values.put("x", "1-3")  # an older kernel resets it when the fence moves
    host.reconcile(want(Fenced("x"), "0-1"))
    assert values["x"] == "1"
    (entry,) = host.journal.values()
    assert (entry.drifts, entry.original) == (0, "0-7")


def test_threads_are_not_set_again_for_a_cpuset_that_stays_narrow(host, values):
    values.put("fence", "1-3")
    values.put("set", "1-3")
    values.put("thread-1", "1-3")
    desired = [want(FencedSet("set"), "0-1"), want(InSet("thread-1"), "1")]
    host.reconcile(*desired)
    values.writes()
    host.reconcile(*desired)
    assert values.writes() == []


def test_a_knob_that_comes_back_is_turned_anew_with_its_new_original(host, values):
    values.put("x", "one")
    host.reconcile(want(Plain("x"), "wish"))
    (values.base / "values/x").unlink()
    host.reconcile(want(Plain("x"), "wish"))
    assert host.journal == {}
    values.put("x", "two")
    host.reconcile(want(Plain("x"), "wish"))
    host.reconcile()
    assert values["x"] == "two"


def test_a_knobs_key_names_it_for_ever(values):
    for knob in (ThreadAffinity(12, 345), Plain("a.b-c"), Cpuset("set")):
        assert knobs.from_key(knob.key) == knob
    for key in ("", "affinity", "affinity:", "affinity:1,2,3", "affinity:a,b", "x:1", "plain:a,b"):
        with pytest.raises(ValueError):
            knobs.from_key(key)
