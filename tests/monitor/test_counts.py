"""What is counted goes up as long as the node is up: over passes, ended threads, and VMs that start again."""

import json
from pathlib import Path

import pytest

from pxsched.balance.balloon import BalloonTarget
from pxsched.balance.cpu import Move
from pxsched.monitor import passes, refusals, runs
from pxsched.monitor.passes import Passes
from pxsched.monitor.runs import Run, Time
from pxsched.node.balancing import Result
from pxsched.node.claims import Changes
from pxsched.node.settle import Pass
from pxsched.node.turns import Report, Turn
from pxsched.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "run/pxsched").mkdir(parents=True)
    return Root(str(tmp_path))


def turn(plugin: str, *, drifted: bool) -> Turn:
    return Turn("affinity:1,1", plugin, 100, "0", "1", drifted)


def a_pass(*turns: Turn, failed: tuple[str, ...] = (), refused: tuple[int, ...] = ()) -> Pass:
    report, changes = Report(), Changes()
    report.turned += turns
    report.failed += failed
    changes.refused |= dict.fromkeys(refused, "no room")
    return Pass(changes, report)


def test_passes_add_up():
    move = Move(vmid=100, vcpu=None, before=frozenset({0}), after=frozenset({1}), why="why")
    moved = Result(Report(), (move,), (BalloonTarget(101, 512, "why"),))
    drifted = turn("vcpu", drifted=True)
    first = passes.after(Passes(), a_pass(drifted, turn("nic", drifted=False)), moved, 50.0, 0.5)
    second = passes.after(first, a_pass(drifted, failed=("no",), refused=(7,)), moved, 60.0, 0.25)
    assert second == Passes(2, 0.75, 60.0, 0.25, {100: 2}, {101: 2}, {"vcpu": 2}, 1, (7,))
    assert passes.after(second, a_pass(), None, 70.0, 0.25).unplaced == ()


def test_what_failed_or_drifted_while_balancing_counts_too():
    report = Report()
    report.failed += ["no"]
    report.turned += [turn("vcpu", drifted=True)]
    found = passes.after(Passes(), a_pass(), Result(report), 1.0, 1.0)
    assert (found.failures, found.drifts) == (1, {"vcpu": 1})


def test_passes_are_read_back_as_they_were_written(root):
    passes.count(root, a_pass(turn("vcpu", drifted=True), refused=(7,)), None, 50.0, 0.5)
    passes.count(root, a_pass(), None, 60.0, 0.5)
    assert passes.load(root) == Passes(2, 1.0, 60.0, 0.5, {}, {}, {"vcpu": 1})


@pytest.mark.parametrize(
    "damaged", ["", "[]", "[1,2,3,4,5,6,7,8,9]", "[" * 10_000, "[-1,0,0,0,{},{},{},0,[]]"]
)
def test_damaged_counts_begin_anew(root, damaged):
    Path(root.path(passes.FILE)).write_text(damaged)
    assert passes.load(root) == Passes()
    passes.count(root, a_pass(), None, 50.0, 0.5)
    assert passes.load(root).count == 1


def test_what_a_thread_ran_is_counted_once_and_kept_when_it_ends():
    first = runs.counted(None, 7, {11: Time(100, 10), 12: Time(50, 5)})
    assert first.total == (150, 15)
    second = runs.counted(first, 7, {11: Time(130, 10)})
    assert second.total == (180, 15)
    assert runs.counted(second, 7, {11: Time(130, 10), 13: Time(5, 1)}).total == (185, 16)


def test_a_vm_that_starts_again_goes_on_where_it_was():
    before = runs.counted(None, 7, {11: Time(100, 10)})
    again = runs.counted(before, 900, {11: Time(120, 2)})
    assert again.total == (220, 12), "another process with the same numbers"


def test_a_threads_number_may_be_given_to_another():
    before = runs.counted(None, 7, {11: Time(100, 10)})
    assert runs.counted(before, 7, {11: Time(30, 20)}).total == (130, 30)


def test_a_run_is_read_back_as_it_was_written():
    run = Run(7, Time(150, 15), {11: Time(100, 10)})
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run


def test_damaged_runs_are_set_aside(root):
    Path(root.path(runs.FILE)).write_text('{"100": [1, [2, 3], {"x": [1, 1]}]}')
    assert runs.count(root, []) == {}
    assert Path(root.path(f"{runs.FILE}.damaged")).exists()


def test_refused_starts_are_counted_by_vm(root):
    for vmid, reason in (100, "no room"), (101, "x" * 5000), (100, "no memory"):
        refusals.count(root, vmid, reason)
    assert refusals.load(root) == {100: (2, "no memory"), 101: (1, "x" * 300)}


def test_starts_that_an_earlier_version_counted_count(root):
    Path(root.path(refusals.FILE)).write_text('{"100": 2}')
    refusals.count(root, 100, "no room")
    assert refusals.load(root) == {100: (3, "no room")}
