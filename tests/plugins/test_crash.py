"""Killed at any write, with every kind of knob there is: the next run undoes it all, or finishes it.

Every pass is a process of its own, and some are killed with SIGKILL before their N-th write: at a few N
always, at every N as a slow test.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from pxsched.knobs.knob import KINDS
from pxsched.node import turning

from .conftest import Tree
from .whole import EVERYTHING, MODEST, Whole

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="real-time threads and irqbalance need root"),
    pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"),
]
FEWEST_WRITES, MOST_WRITES = 20, 600
STRIDE = 37
ISOLATIONS = ("slices", "partition")  # each excludes the other

Kills = Callable[[Callable[[int], bool], Callable[[str], None]], None]


@pytest.fixture(autouse=True)
def _patience(monkeypatch) -> None:
    """What takes long on a busy machine is no failure here."""
    for setting in "host.irqbalance.PATIENCE_S", "knobs.balloon._PATIENCE_S", "node.guests.PATIENCE_S":
        monkeypatch.setattr(f"pxsched.{setting}", 10.0)


@pytest.fixture(params=ISOLATIONS)
def whole(request, tree, fake_systemd) -> Iterator[Whole]:
    whole = Whole(tree, fake_systemd, request.param)
    yield whole
    whole.close()


@pytest.fixture(params=["some writes", pytest.param("every write", marks=pytest.mark.slow)])
def kills(request) -> Kills:
    """Has work killed before its writes, one after the other, and looks what is left each time."""
    some = request.param == "some writes"
    # Tests begin at different writes, so that together they try more of them.
    first = sum(request.node.name.encode()) % STRIDE if some else 0

    def kill(work: Callable[[int], bool], then: Callable[[str], None]) -> None:
        for number in range(first, MOST_WRITES, STRIDE if some else 1):
            killed = work(number)
            then(f"killed before write {number}")
            if not killed:
                break
        assert FEWEST_WRITES < number < MOST_WRITES - STRIDE, "it came to the end, and that was far"

    return kill


def check(whole: Whole, state: dict[str, object], when: str = "") -> None:
    now = whole.state()
    differences = {key: (state.get(key), now.get(key)) for key in state.keys() | now.keys()
                   if state.get(key) != now.get(key)}  # fmt: skip
    assert differences == {}, when


def check_untouched(whole: Whole, state: dict[str, object], when: str = "") -> None:
    check(whole, state, when)
    assert whole.held() == [], when


def test_every_kind_of_knob_is_turned(tmp_path, fake_systemd):
    turned = set()
    for isolation in ISOLATIONS:
        whole = Whole(Tree(tmp_path / isolation), fake_systemd, isolation)
        try:
            before = whole.state()
            whole.tick()
            turned |= whole.turned
            whole.restore()
            check(whole, before)
        finally:
            whole.close()
    assert turned == set(KINDS), "a new kind of knob is to be turned here, too"


def test_turning_killed_at_any_write_can_be_undone(whole, kills):
    before = whole.state()

    def undone(when: str) -> None:
        whole.restore()
        check_untouched(whole, before, when)

    kills(whole.tick, undone)


def test_turning_killed_at_any_write_is_finished_by_the_next_pass(whole, kills):
    before = whole.state()
    whole.tick()
    wanted = whole.state()
    whole.restore()

    def finished(when: str) -> None:
        whole.tick()
        check(whole, wanted, when)
        whole.restore()
        check_untouched(whole, before, when)

    kills(whole.tick, finished)


def test_undoing_killed_at_any_write_is_finished_by_the_next(whole, kills):
    before = whole.state()
    whole.tick()

    def undone(when: str) -> None:
        whole.restore()
        check_untouched(whole, before, when)
        whole.tick()

    kills(whole.restore, undone)


def test_undoing_killed_at_any_write_is_itself_undone_by_the_next_pass(whole, kills):
    """The VMs run on, and the timer comes before anybody restores again."""
    before = whole.state()
    whole.tick()
    wanted = whole.state()

    def turned(when: str) -> None:
        whole.tick()
        check(whole, wanted, when)

    kills(whole.restore, turned)
    whole.restore()
    check_untouched(whole, before)


def test_vms_that_opt_out_get_everything_back_wherever_the_pass_is_killed(whole, kills):
    before = whole.state()
    whole.tick()

    def left(when: str) -> None:
        whole.tick()
        check_untouched(whole, before, when)
        whole.opt_in(EVERYTHING, MODEST)
        whole.tick()
        whole.opt_out(EVERYTHING, MODEST)

    whole.opt_out(EVERYTHING, MODEST)
    kills(whole.tick, left)


def test_a_vm_that_ends_leaves_what_the_other_one_wants_wherever_the_hook_is_killed(whole, kills):
    before = whole.state()
    whole.tick()
    whole.end(EVERYTHING)
    whole.hook(EVERYTHING, "post-stop")
    whole.tick()  # those who were confined for it are the timer's
    alone = whole.state()

    def left(when: str) -> None:
        whole.tick()
        check(whole, alone, when)
        whole.start(EVERYTHING)

    def end(fatal: int) -> bool:
        whole.tick()
        whole.end(EVERYTHING)
        return whole.hook(EVERYTHING, "post-stop", fatal)

    whole.start(EVERYTHING)
    kills(end, left)
    whole.restore()
    check_untouched(whole, before)


class AtOnce:
    """A thread that does its work when it is started."""

    def __init__(self, target: Callable[..., None], args: tuple[object, ...], daemon: bool) -> None:
        self.start = lambda: target(*args)

    def join(self, timeout_s: float) -> None:
        pass


@pytest.mark.slow
def test_debians_irqbalance_gets_back_what_is_its_own(tree, fake_systemd, kills, monkeypatch):
    """Killed anywhere but in the middle of a conversation with it, which it does not survive itself: so
    nothing else is turned at the same time.
    """
    monkeypatch.setattr(turning, "threading", SimpleNamespace(Thread=AtOnce))
    if not shutil.which("irqbalance", path=os.environ["PATH"] + ":/usr/sbin"):
        pytest.skip("irqbalance is not installed")
    whole = Whole(tree, fake_systemd, "slices", real=True)
    try:
        before = whole.state()

        def undone(when: str) -> None:
            whole.restore()
            check_untouched(whole, before, when)

        kills(whole.tick, undone)
        assert whole.irqbalance_cpus() == ""
        whole.tick()
        assert whole.irqbalance_cpus() == "1"
        kills(whole.restore, lambda when: whole.tick() and None)
        whole.restore()
        assert whole.irqbalance_cpus() == ""
        check_untouched(whole, before)
    finally:
        whole.close()


def test_a_start_killed_in_any_phase_is_made_up_for(whole, kills):
    whole.tick()
    wanted = whole.state()
    whole.end(EVERYTHING)
    whole.restore()
    before = whole.state()
    for phase in "pre-start", "post-start":

        def start(fatal: int, phase: str = phase) -> bool:
            killed = whole.hook(EVERYTHING, "pre-start", fatal if phase == "pre-start" else None)
            whole.start(EVERYTHING)
            return whole.hook(EVERYTHING, "post-start", None if phase == "pre-start" else fatal) or killed

        def started(when: str, phase: str = phase) -> None:
            whole.tick()
            check(whole, wanted, f"{phase} {when}")
            whole.end(EVERYTHING)
            whole.tick()
            whole.restore()
            check_untouched(whole, before, f"{phase} {when}")

        kills(start, started)
