"""Killed at any write while a shape is written or put back: the next command finishes, either way."""

from pathlib import Path

import pytest

from pxsched.guest import config
from pxsched.shaping import record
from tests.killing import Proxmox, killed_at

from .conftest import run, text

MOST_WRITES = 60


@pytest.fixture
def vm(sandbox, monkeypatch):
    monkeypatch.setattr("pxsched.sandbox.stand_in.local_api", lambda root: Proxmox(root))
    return sandbox


def options(sandbox) -> dict[str, str]:
    return dict(config.parse(text(sandbox)).options)


def shape(sandbox, word: str) -> None:
    code, out, err = run(sandbox, "shape", "100", word)
    assert code == 0, out + err


def undone(sandbox) -> None:
    """Where nothing is remembered, nothing may have been changed."""
    if Path(sandbox.root, record.RECORDS.directory, "100.json").exists():
        shape(sandbox, "--undo")


@pytest.mark.parametrize("then", ["--apply", "--undo"])
def test_an_apply_killed_at_any_write_is_finished_or_undone_by_the_next_command(vm, then):
    before = options(vm)
    shape(vm, "--apply")
    shaped = options(vm)
    shape(vm, "--undo")
    assert options(vm) == before != shaped
    for number in range(MOST_WRITES):
        killed = killed_at(number, lambda: shape(vm, "--apply"))
        if then == "--apply":
            shape(vm, "--apply")
            assert options(vm) == shaped, number
        undone(vm)
        assert options(vm) == before, number
        if not killed:
            break
    assert 3 < number < MOST_WRITES - 1


def test_an_undo_killed_at_any_write_is_finished_by_the_next(vm):
    before = options(vm)
    for number in range(MOST_WRITES):
        shape(vm, "--apply")
        killed = killed_at(number, lambda: shape(vm, "--undo"))
        undone(vm)
        assert options(vm) == before, number
        assert not Path(vm.root, record.RECORDS.directory, "100.json").exists()
        if not killed:
            break
    assert 1 < number < MOST_WRITES - 1
