"""A ledger that is lost: that is said, the file is kept, and what can be known without it is put back."""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1")
FILES = "ledger.json", "ledger.previous.json"


def damage(host) -> None:
    for name in FILES:
        path = Path(host.sandbox.root, "run/pxsched", name)
        if path.exists():
            path.write_bytes(path.read_bytes()[:40])


def test_threads_get_back_what_their_vm_or_their_parent_has(host):
    host.settings('[vm.101]\ncpus = "1"\n')
    host.started(100, cores=2, affinity="1,0")
    host.started(101, cores=1)
    host.sandbox.qm("create", 102, cores=1, memory=32)
    host.start(102)
    os.sched_setaffinity(host.sandbox.vcpus(102)[0], {0})  # the admin's, not ours
    assert (host.masks(100), host.masks(101)) == (["1", "0"], ["1"])
    damage(host)
    done = host.pxsched("restore", "--all", check=False)
    assert done.returncode == 1
    assert "the ledger was damaged, and is kept as /run/pxsched/ledger.json.lost" in done.stdout
    assert "not known any more: interrupts" in done.stdout
    assert Path(host.sandbox.root, "run/pxsched/ledger.json.lost").exists()
    assert set(host.all_masks(100).values()) == set(host.all_masks(101).values()) == {"0-1"}
    assert host.masks(102) == ["0"]
    assert host.pxsched("restore", "--all").returncode == 0, "it is said once"


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_write_while_it_puts_back_what_can_be_known_the_next_run_says_and_does_it(host, stride):
    host.settings('[vm.100]\ncpus = "1"\n')
    host.started(100, cores=2)
    lost = Path(host.sandbox.root, "run/pxsched/ledger.json.lost")
    for number in range(2, 200, stride):
        host.pxsched("tick")
        assert host.masks(100) == ["1", "1"]
        damage(host)
        killed = host.killed_at(number, "pxsched", "restore", "--all")
        # The file is under the name of the lost once everything is back.
        assert lost.exists() <= (set(host.all_masks(100).values()) == {"0-1"}), f"killed at write {number}"
        host.pxsched("restore", "--all", check=False)
        assert set(host.all_masks(100).values()) == {"0-1"}, f"killed at write {number}"
        assert lost.exists()
        lost.unlink()
        if not killed:
            break
    assert 10 < number < 190


def test_what_a_pass_set_aside_before_is_not_forgotten(host):
    host.settings('[vm.100]\ncpus = "1"\n')
    host.started(100, cores=2)
    damage(host)
    assert "BAD" in host.pxsched("doctor", check=False).stdout.upper()
    assert any("damaged" in line for line in host.status()["warnings"])
    host.pxsched("tick")
    assert host.masks(100) == ["1", "1"]
    assert host.pxsched("restore", "--all", check=False).returncode == 1
    assert set(host.all_masks(100).values()) == {"0-1"}


def test_a_ledger_that_cannot_be_read_is_not_an_empty_one(host):
    host.started(100, cores=2, affinity="1,0")
    for name in FILES:
        path = Path(host.sandbox.root, "run/pxsched", name)
        path.unlink(missing_ok=True)
        path.mkdir()
        (path / "something").touch()
    done = host.pxsched("restore", "--all", check=False)
    assert done.returncode == 1 and "ledger.json.lost" in done.stdout
    assert set(host.all_masks(100).values()) == {"0-1"}


def test_a_file_that_confines_a_scope_goes_by_its_mark(host):
    units = Path(host.sandbox.root, "run/systemd/system")
    for vmid, name in ("100", "pxsched.conf"), ("101", "theirs.conf"):
        (units / f"{vmid}.scope.d").mkdir(parents=True)
        (units / f"{vmid}.scope.d" / name).write_text("[Scope]\n")
    host.started(102, cores=1)
    damage(host)
    assert host.pxsched("restore", "--all", check=False).returncode == 1
    assert [path.name for path in units.iterdir()] == ["101.scope.d"]
