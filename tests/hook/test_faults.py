"""Whatever is broken, the hook says so in one line and the VM starts."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from pxsched.monitor import refusals
from pxsched.root import Root

pytestmark = pytest.mark.measures

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path):
    """A copy of the hook with a package of the test's making."""
    (tmp_path / "hooks").mkdir()
    hook = tmp_path / "hooks/pxsched"
    shutil.copy(CHECKOUT / "hooks/pxsched", hook)
    (tmp_path / "pxsched").mkdir()
    (tmp_path / "pxsched/__init__.py").touch()

    def call(*words):
        return subprocess.run([hook, *words], capture_output=True, text=True, check=False)

    return tmp_path / "pxsched", call


@pytest.mark.parametrize("source", ["import no_such_module", "syntax error", "raise MemoryError", "main = 1"])
def test_a_broken_package_is_one_line_and_success(elsewhere, source):
    package, call = elsewhere
    (package / "hook.py").write_text(source)
    done = call("100", "pre-start")
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith("pxsched: ")


def test_an_interrupted_hook_ends_without_a_word(elsewhere):
    package, call = elsewhere
    (package / "hook.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = call("100", "pre-start")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_the_callers_python_path_is_shut_out(host, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    assert host.hook(100, "pre-start", PYTHONPATH=str(tmp_path)).returncode == 0


def test_an_unknown_phase_is_none_of_our_business(host):
    done = host.hook(100, "mid-life-crisis")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_vm_without_configuration_is_named(host):
    done = host.hook(999, "pre-start")
    assert done.returncode == 0
    assert done.stdout == "pxsched: there is no configuration of VM 999; it starts unplaced\n"


@pytest.mark.parametrize("vmid", ["../../etc/passwd", "0", "99", "1e3", "-1", "100\n", "१००", ""])
def test_what_is_no_vmid_is_refused_politely(host, vmid):
    done = host.hook(vmid, "pre-start")
    assert done.returncode == 0
    assert "is no VMID" in done.stdout


def test_a_containers_id_is_told_from_a_vm(host):
    directory = Path(host.sandbox.root, "etc/pve/nodes/sandbox/lxc")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "200.conf").write_text("arch: amd64\n")
    done = host.hook(200, "pre-start")
    assert done.returncode == 0
    assert "is a container" in done.stdout


def test_a_full_run_starts_the_vm_unplaced(host):
    """Nothing can be journalled, so nothing is turned."""
    directory = Path(host.sandbox.root, "run/pxsched")
    shutil.rmtree(directory, ignore_errors=True)
    directory.symlink_to("/dev/full")
    started = host.start(host.create(100, cores=2, affinity="1,0"))
    assert "cannot use" in started.output
    assert set(host.masks(100)) == {"0-1"}, "Proxmox's own taskset, and nothing of ours"


def test_a_disk_that_fills_up_leaves_the_ledger_as_it_was(host):
    if os.getuid() != 0:
        pytest.skip("mounting a small /run needs root")
    directory = Path(host.sandbox.root, "run/pxsched")
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", directory], check=True)
    try:
        started = host.start(host.create(100, cores=2, affinity="1,0"))
        (directory / "filler").write_bytes(b"x" * 4096) if not any(directory.glob("ledger*")) else None
        assert started.code == 0
        assert host.hook(100, "post-start").returncode == 0
        assert not list(directory.glob("*new"))
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_strict_turns_our_own_faults_into_a_refusal(host):
    host.settings("[defaults]\nstrict = true\n")
    directory = Path(host.sandbox.root, "run/pxsched")
    shutil.rmtree(directory, ignore_errors=True)
    directory.symlink_to("/dev/full")
    refused = host.sandbox.qm("start", host.create(100, cores=1), check=False)
    assert refused.code != 0
    assert host.sandbox.pid(100) is None


def test_a_refusal_for_a_fault_of_ours_is_counted_like_any_other(host):
    host.settings("[defaults]\nstrict = true\n")
    Path(host.sandbox.root, "run/pxsched").mkdir(parents=True, exist_ok=True)
    Path(host.sandbox.root, "run/pxsched/lock").symlink_to("/dev/full")
    assert host.sandbox.qm("start", host.create(100, cores=1), check=False).code != 0
    (refused,) = refusals.load(Root(host.sandbox.root)).values()
    assert (refused.times, "cannot use" in refused.reason) == (1, True)


def test_output_lines_never_look_like_a_migrations(host):
    """The source of a migration reads our output line by line (facts, section 1)."""
    host.settings('[vm.100]\n"QEMU: \\nmigration listens on" = 1\n')
    done = host.start(host.create(100, cores=1))
    for line in done.output.splitlines():
        assert line.startswith("pxsched: ")


def test_a_damaged_ledger_is_set_aside_and_named(host):
    host.started(100, cores=2, affinity="1,0")
    ledger = Path(host.sandbox.root, "run/pxsched/ledger.json")
    ledger.write_bytes(b"\0" * 100)
    done = host.hook(100, "post-start")
    assert "ledger.json is damaged" in done.stdout
    assert host.masks(100) == ["1", "0"]
    host.stop(100)
    assert [vm["vmid"] for vm in host.status()["vms"]] == []
