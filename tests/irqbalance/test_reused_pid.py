"""A process that got a dead irqbalance's number is not taken for it, nor one that only bears the name."""

import os
from pathlib import Path

import pytest

from pxsched.host import irqbalance
from pxsched.host.irqbalance import Daemon, Setup
from pxsched.root import Root

PID, STARTED = 812, 4711


@pytest.fixture
def root(tmp_path: Path) -> Root:
    if os.geteuid() != 0:
        pytest.skip("only root's irqbalance counts")
    lives(tmp_path)
    return Root(str(tmp_path))


def lives(base: Path, *, name: str = "irqbalance", started: int = STARTED) -> None:
    path = base / f"proc/{PID}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "stat").write_text(f"{PID} ({name}) S {' '.join(['0'] * 18)} {started} 0\n")
    (path / "wchan").write_text("do_poll\n")


def daemon() -> Daemon:
    return Daemon(PID, STARTED, "run/irqbalance/irqbalance812.sock")


def test_what_an_earlier_daemon_with_the_number_said_is_not_believed(root, monkeypatch):
    said = Setup(10, (40,), "0")
    monkeypatch.setattr(irqbalance, "_said", {daemon(): said})
    assert irqbalance.known(root, PID, STARTED) == said
    lives(Path(root.base), started=STARTED + 1)
    assert irqbalance.known(root, PID, STARTED) is None


def test_nothing_is_asked_of_the_process_that_has_the_number_now(root):
    assert irqbalance._wait_until_idle(root, daemon(), float("inf"))
    lives(Path(root.base), started=STARTED + 1)
    with pytest.raises(ConnectionRefusedError, match="no more"):
        irqbalance._wait_until_idle(root, daemon(), float("inf"))


def test_a_process_with_another_name_is_no_irqbalance(root):
    assert irqbalance.start_of(root, PID) == STARTED
    lives(Path(root.base), name="irqbalanced")
    assert irqbalance.start_of(root, PID) is None
