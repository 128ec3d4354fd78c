"""The admin's own hookscripts keep running: same phases, same arguments, same exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pxsched.chain import files, run
from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.guest.identity import Identity

OURS = "hookscript: local:snippets/pxsched\n"
PHASES = ("pre-start", "post-start", "pre-stop", "post-stop")


def chained(node, vmid, volume):
    """An opted-in VM whose own script is remembered."""
    node.vm(vmid, OURS + f"meta: ctime={vmid}\n")
    files.write(node.root, Entry(vmid, Identity(ctime_s=str(vmid)), volume))


def test_without_other_scripts_nothing_runs_and_nothing_fails(node):
    assert [run.run_chain(node.root, 100, phase) for phase in PHASES] == [0, 0, 0, 0]


def test_the_vms_own_script_gets_vmid_and_phase(node):
    node.snippet("mine.sh")
    chained(node, 100, "local:snippets/mine.sh")
    for phase in PHASES:
        assert run.run_chain(node.root, 100, phase) == 0
    assert node.calls == [f"mine.sh 100 {phase}" for phase in PHASES]


def test_it_runs_for_its_own_vm_only(node):
    node.snippet("mine.sh")
    chained(node, 100, "local:snippets/mine.sh")
    run.run_chain(node.root, 101, "pre-start")
    assert node.calls == []


def test_scripts_of_hooks_d_run_for_every_vm_in_the_order_of_their_names(node):
    node.hook("20-second")
    node.hook("10-first.sh")
    node.snippet("mine.sh")
    chained(node, 100, "local:snippets/mine.sh")
    run.run_chain(node.root, 100, "post-start")
    run.run_chain(node.root, 101, "post-start")
    assert node.calls == [
        "mine.sh 100 post-start", "10-first.sh 100 post-start", "20-second 100 post-start",
        "10-first.sh 101 post-start", "20-second 101 post-start",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["script~", "old.dpkg-dist", "mine.bak", ".hidden", "#mine#"])
def test_left_overs_of_editors_and_dpkg_are_not_run(node, name):
    node.hook(name)
    assert run.run_chain(node.root, 100, "pre-start") == 0
    assert node.calls == []


def test_files_that_are_not_executable_are_not_run(node):
    node.write("etc/pxsched/hooks.d/notes", "#!/bin/sh\nexit 1\n")
    assert run.run_chain(node.root, 100, "pre-start") == 0


def test_the_first_failures_exit_code_is_the_chains(node):
    node.hook("10-fails", exit_code=3)
    node.hook("20-fails-too", exit_code=4)
    assert run.run_chain(node.root, 100, "post-stop") == 3
    assert len(node.calls) == 2, "a clean-up must not be left out because another one failed"


def test_a_failing_pre_start_ends_the_chain_as_the_vm_will_not_start(node):
    node.hook("10-fails", exit_code=3)
    node.hook("20-prepares")
    assert run.run_chain(node.root, 100, "pre-start") == 3
    assert node.calls == ["10-fails 100 pre-start"]


def test_a_script_killed_by_a_signal_has_failed(node, capfd):
    node.hook("10-dies", text="kill -TERM $$\n")
    assert run.run_chain(node.root, 100, "pre-start") == 128 + 15
    assert "signal 15" in capfd.readouterr().err


def test_a_missing_script_fails_the_start_as_it_would_with_proxmox(node, capfd):
    chained(node, 100, "local:snippets/gone.sh")
    assert run.run_chain(node.root, 100, "pre-start") == 1
    assert "snippets/gone.sh" in capfd.readouterr().err


def test_a_script_on_another_storage_is_found_where_that_storage_is_mounted(node):
    node.write(
        "etc/pve/storage.cfg",
        "dir: local\n\tpath /var/lib/vz\n\nnfs: nas\n\texport /x\n\tserver 192.0.2.1\n"
        "\ndir: odd\n\tpath /srv/odd\n\tcontent-dirs snippets=hooks,iso=i\n",
    )
    node.script("mnt/pve/nas/snippets/a.sh")
    node.script("srv/odd/hooks/b.sh")
    chained(node, 100, "nas:snippets/a.sh")
    chained(node, 101, "odd:snippets/b.sh")
    assert run.run_chain(node.root, 100, "pre-start") == 0
    assert run.run_chain(node.root, 101, "pre-start") == 0
    assert node.calls == ["a.sh 100 pre-start", "b.sh 101 pre-start"]


@pytest.mark.parametrize("volume", ["local:snippets/../x", "local:snippets/..", "/bin/sh", "local:iso/x"])
def test_what_is_no_snippet_is_never_run(node, volume):
    chained(node, 100, volume)
    assert run.run_chain(node.root, 100, "pre-start") == 1


def test_the_script_sees_the_environment_and_output_of_the_hook(node):
    node.hook("10-env", text='echo "from=$PVE_MIGRATED_FROM"; echo "to stderr" >&2\n')
    code = (
        "import sys; from pxsched import root; from pxsched.chain import run; print('first')\n"
        "run.run_chain(root.Root(sys.argv[1]), 100, 'pre-start')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(node.base)],
        env={**os.environ, "PVE_MIGRATED_FROM": "pve2", "PYTHONPATH": str(Path(run.__file__).parents[2])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "first\nfrom=pve2\n"
    assert done.stderr == "to stderr\n"


def test_a_script_may_be_ended_by_a_broken_pipe_as_usual(node):
    """Python ignores SIGPIPE; a child that inherited this would loop on EPIPE."""
    node.hook("10-sig", text=f'grep SigIgn /proc/self/status >>"{node.log}"\n')
    run.run_chain(node.root, 100, "pre-start")
    ignored = int(node.calls[0].split()[1], 16)
    assert ignored & (1 << 12) == 0


def test_what_was_remembered_is_forgotten_without_a_trace(node):
    for vmid in (100, 101):
        files.write(node.root, Entry(vmid, Identity(), "local:snippets/a.sh"))
    files.RECORDS.drop(node.root, 100)
    assert files.RECORDS.vmids(node.root) == [101]
    files.RECORDS.drop(node.root, 101)
    files.RECORDS.drop(node.root, 101)
    assert not node.root.exists("etc/pve/pxsched")


DAMAGED = [
    "", "{", "[]", "null", '{"vmid": 101}', '{"vmid": 100, "hookscript": 3}', '{"vmid": 100, "uuid": null}',
    '{"vmid": 1e400}', "[" * 100_000, '{"vmid": 100, "hookscript": "' + "x" * 100_000 + '"}',
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:30])
def test_a_damaged_file_is_named_and_keeps_no_vm_from_starting(node, capfd, text):
    node.vm(100, OURS)
    node.write(files.RECORDS.path_of(100), text)
    assert run.run_chain(node.root, 100, "pre-start") == 0
    assert f"{files.RECORDS.path_of(100)} is damaged" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"hookscripts": 3}', '{"hookscripts": {"x": "y"}}', "null"])
def test_so_is_a_damaged_file_of_an_earlier_version(node, capfd, text):
    node.vm(100, OURS)
    node.write(files.OLD_FILE, text)
    assert run.run_chain(node.root, 100, "pre-start") == 0
    assert f"{files.OLD_FILE} is damaged" in capfd.readouterr().err


def test_a_cluster_without_quorum_is_said_as_such(node):
    node.write("etc/pve/pxsched", "")  # not even root can make a directory of it
    with pytest.raises(UserError, match="chain/100") as caught:
        files.write(node.root, Entry(100, Identity(), "local:snippets/a.sh"))
    assert "quorum" in caught.value.hint


def test_an_incoming_migration_finds_the_script_by_the_configuration_on_its_source(node):
    node.snippet("mine.sh")
    node.vm(100, OURS + "meta: ctime=100\n", node="pve2")
    files.write(node.root, Entry(100, Identity(ctime_s="100"), "local:snippets/mine.sh"))
    assert run.run_chain(node.root, 100, "pre-start", "pve2") == 0
    assert node.calls == ["mine.sh 100 pre-start"]


def test_a_configuration_that_cannot_be_read_runs_nobodys_script(node, capfd):
    node.snippet("mine.sh")
    files.write(node.root, Entry(100, Identity(), "local:snippets/mine.sh"))
    assert run.run_chain(node.root, 100, "pre-start") == 0
    assert node.calls == []
    assert "cannot be read" in capfd.readouterr().err


def test_list_tells_a_chained_script_from_a_hookscript_of_its_own(node, pxsched):
    chained(node, 100, "local:snippets/mine.sh")
    node.vm(101, "hookscript: local:snippets/other.sh\n")
    node.vm(102, OURS)
    _, first, second, third = pxsched(node.root, "list")[1].splitlines()
    assert first.endswith("(chained: local:snippets/mine.sh)") and " yes " in first
    assert second.endswith("(hookscript local:snippets/other.sh)") and " no " in second
    assert "script" not in third and " yes " in third
