"""Knobs that another program turns: without the lock, by one process at a time, and never beyond recovery."""

import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from pxsched.knobs import knob as knobs
from pxsched.knobs.knob import Knob, Rank
from pxsched.ledger import file as ledgers
from pxsched.ledger.journal import Entry
from pxsched.node import settle, turning
from pxsched.node.reconcile import reconcile
from pxsched.node.turns import Report
from pxsched.plugins.view import Setting
from pxsched.root import Root


class Asked(Knob):
    """A value in a file, which its program writes as soon as there is a file `go`."""

    kind = "asked"
    name: str

    @property
    def peer(self) -> str:
        return self.name

    def label(self, root: Root) -> str:
        return f"what {self.name} was asked"

    def read(self, root: Root) -> str:
        return Path(root.path(self.name)).read_text()

    def write(self, root: Root, value: str) -> None:
        Path(root.path(f"{self.name}.asked")).touch()
        while not Path(root.path("go")).exists():
            time.sleep(0.005)
        Path(root.path(self.name)).write_text(value)


class AskedSet(Asked):
    kind = "askedset"
    rank = Rank.CPUSET


class Thread(Asked):
    """One in that set: at once."""

    kind = "thread"
    rank = Rank.THREAD
    peer = ""  # type: ignore[assignment]

    def write(self, root: Root, value: str) -> None:
        Path(root.path(self.name)).write_text(f"{value} after {Path(root.path('set')).read_text()}")

    def same(self, now: str, want: str) -> bool:
        return now.split()[0] == want.split()[0]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Root:
    (tmp_path / "proc").symlink_to("/proc")
    module = types.ModuleType("pxsched_slow_knobs")
    for model in (Asked, AskedSet, Thread):
        setattr(module, model.__name__, model)
        monkeypatch.setitem(knobs.KINDS, model.kind, f"pxsched_slow_knobs:{model.__name__}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in "one", "two", "set", "task":
        (tmp_path / name).write_text("before")
    return Root(str(tmp_path))


def turn(root: Root, *desired: Setting) -> Report:
    with ledgers.locked(root, patience_s=0.5) as ledger:
        report = reconcile(root, ledger, desired, None)
    turning.run(root, report)
    return report


def want(name: str, value: str) -> Setting:
    return Setting(Asked(name), value, 100, "test")


def entry(root: Root, name: str) -> Entry | None:
    return ledgers.peek(root).journal.get(Asked(name).key)


def value(root: Root, name: str) -> str:
    return Path(root.path(name)).read_text()


def elsewhere(root: Root, work: Callable[[], object]) -> int:
    """Has another process begin this; gives its pid once its program was asked."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    while not any(Path(root.base).glob("*.asked")):
        time.sleep(0.005)
    return pid


def go(root: Root) -> None:
    Path(root.path("go")).touch()


def test_the_original_is_journalled_and_the_lock_is_free_while_a_program_takes_its_time(root):
    passing = threading.Thread(target=turn, args=(root, want("one", "after")))
    passing.start()
    while not Path(root.path("one.asked")).exists():
        time.sleep(0.005)
    with ledgers.locked(root, patience_s=0) as ledger:
        (held,) = ledger.journal.values()
    assert (held.original, held.wanted) == ("before", "after") and held.lease is not None
    go(root)
    passing.join()
    assert value(root, "one") == "after"
    assert entry(root, "one") == held._replace(lease=None)


def test_what_another_process_has_in_hand_is_left_to_it(root):
    child = elsewhere(root, lambda: turn(root, want("one", "after")))
    report = turn(root, want("one", "something else"))
    assert report.unmet == {Asked("one").key} and report.turned == []
    held = entry(root, "one")
    assert held is not None and (held.original, held.wanted) == ("before", "after")
    go(root)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert value(root, "one") == "after"
    turn(root)
    assert (value(root, "one"), entry(root, "one")) == ("before", None)


def test_what_is_no_longer_wanted_while_it_is_turned_is_put_back_by_the_next_pass(root):
    child = elsewhere(root, lambda: turn(root, want("one", "after")))
    turn(root)
    held = entry(root, "one")
    assert held is not None and held.leaving, "the journal forgets nothing that is being turned"
    go(root)
    os.waitpid(child, 0)
    held = entry(root, "one")
    assert held is not None and held.leaving and held.lease is None
    turn(root)
    assert (value(root, "one"), entry(root, "one")) == ("before", None)


def test_restoring_everything_waits_for_what_another_process_has_in_hand(root):
    child = elsewhere(root, lambda: turn(root, want("one", "after")))
    threading.Timer(0.5, go, (root,)).start()
    assert settle.restore_all(root).failed == []
    os.waitpid(child, 0)
    assert (value(root, "one"), entry(root, "one")) == ("before", None)


def test_a_killed_process_has_nothing_in_hand_any_more(root):
    child = elsewhere(root, lambda: turn(root, want("one", "after")))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    held = entry(root, "one")
    assert held is not None and held.lease is not None and held.original == "before"
    go(root)
    assert len(turn(root, want("one", "after")).turned) == 1
    held = entry(root, "one")
    assert held is not None and (held.original, held.drifts, held.lease) == ("before", 0, None)


def test_a_program_that_does_not_answer_in_time_keeps_no_other_waiting(root, monkeypatch):
    """The slow one has its worker for itself; what it does in the end is found by a later pass."""
    monkeypatch.setattr(Asked, "write", _only_two)
    begin = time.monotonic()
    with ledgers.locked(root) as ledger:
        report = reconcile(root, ledger, [want("one", "after"), want("two", "after")], None)
    turning.run(root, report, patience_s=0.5)
    assert time.monotonic() - begin < 2
    assert (value(root, "one"), value(root, "two")) == ("before", "after")
    assert report.unmet == {Asked("one").key}
    held = entry(root, "one")
    assert held is not None and held.original == "before"
    again = turn(root, want("one", "other"), want("two", "after"))
    assert again.unmet == {Asked("one").key}, "it is still at it"


def _only_two(self: Asked, root: Root, value: str) -> None:
    time.sleep(0 if self.name == "two" else 3)
    Path(root.path(self.name)).write_text(value)


def test_threads_are_set_after_the_cpuset_that_a_program_sets(root):
    go(root)
    desired = [
        Setting(AskedSet("set"), "narrow", 100, "test"), Setting(Thread("task"), "pinned", 100, "test"),
    ]  # fmt: skip
    turn(root, *desired)
    assert value(root, "task") == "pinned after narrow"
    turn(root)
    assert value(root, "task") == "before after before"
    assert ledgers.peek(root).journal == {}
