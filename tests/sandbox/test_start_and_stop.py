"""The order of steps, the hook's surroundings and the rules of failure are Proxmox's."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pxsched.guest.qmp import Qmp
from pxsched.root import Root
from pxsched.sandbox.sandbox import QmError

from .conftest import create, eventually

pytestmark = pytest.mark.measures


def test_a_run_calls_the_hook_in_all_four_phases(sandbox, recorder):
    create(sandbox)
    assert sandbox.qm("start", 100).output == "hook says pre-start\nhook says post-start\n"
    assert recorder.phases == ["pre-start", "post-start"]
    assert sandbox.qm("stop", 100).output == "hook says pre-stop\nhook says post-stop\n"
    assert recorder.phases == ["pre-start", "post-start", "pre-stop", "post-stop"]
    assert sandbox.pid(100) is None


def test_post_stop_comes_once_a_run_although_the_end_is_noticed_twice(sandbox, recorder):
    """By the stop task, and by whoever sees QEMU's event socket close."""
    create(sandbox)
    for _ in range(2):
        sandbox.qm("start", 100)
        sandbox.qm("stop", 100)
        time.sleep(0.3)
    assert recorder.phases.count("post-stop") == 2


def test_the_hook_sees_what_proxmox_shows_it(sandbox, recorder):
    create(sandbox)
    sandbox.qm("start", 100)
    sandbox.qm("stop", 100)
    for call in recorder.calls:
        path = f"{sandbox.root}/var/lib/vz/snippets/recorder"
        assert call["arguments"] == [path, "100", call["phase"]]
        assert call["environment"]["PATH"] == "/sbin:/bin:/usr/sbin:/usr/bin"
        assert call["environment"]["LC_ALL"] == "C"
        assert call["environment"]["PXSCHED_ROOT"] == sandbox.root
        assert call["locked"]
        assert call["input"] == ""
    before, after, stopping, stopped = recorder.calls
    assert [call["running"] for call in recorder.calls] == [False, True, True, False]
    assert before["environment"]["PVE_MIGRATED_FROM"] == after["environment"]["PVE_MIGRATED_FROM"] == ""
    assert "PVE_MIGRATED_FROM" not in stopping["environment"] | stopped["environment"]


def test_a_vm_without_hookscript_starts_and_stops(sandbox, recorder):
    sandbox.qm("create", 100, memory=32)
    sandbox.qm("start", 100)
    sandbox.qm("stop", 100)
    assert recorder.calls == []


def test_a_failing_pre_start_aborts_the_start_and_nothing_follows(sandbox, recorder):
    create(sandbox)
    recorder.fail_in("pre-start")
    with pytest.raises(QmError, match="exit code 3"):
        sandbox.qm("start", 100)
    assert sandbox.pid(100) is None
    sandbox.qm("stop", 100)
    assert recorder.phases == ["pre-start"]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.chmod(0o644)])
def test_a_hookscript_that_cannot_be_run_aborts_the_start(sandbox, spoil):
    create(sandbox)
    spoil(Path(sandbox.root, "var/lib/vz/snippets/recorder"))
    with pytest.raises(QmError, match=r"does not exist|not executable"):
        sandbox.qm("start", 100)
    assert sandbox.pid(100) is None


def test_a_hookscript_killed_by_a_signal_aborts_the_start(sandbox):
    sandbox.snippet("dies", "#!/bin/sh\nkill -9 $$\n")
    create(sandbox, hookscript="local:snippets/dies")
    with pytest.raises(QmError, match="signal 9"):
        sandbox.qm("start", 100)


@pytest.mark.parametrize("phase", ["post-start", "pre-stop", "post-stop"])
def test_a_failure_in_any_other_phase_only_warns(sandbox, recorder, phase):
    create(sandbox)
    recorder.fail_in(phase)
    started = sandbox.qm("start", 100)
    assert sandbox.pid(100)
    stopped = sandbox.qm("stop", 100)
    assert sandbox.pid(100) is None
    assert f"WARN: hookscript error for 100 on {phase}" in started.output + stopped.output
    assert recorder.phases == ["pre-start", "post-start", "pre-stop", "post-stop"]


def test_more_vcpus_than_cpus_are_refused_after_pre_start_and_without_post_stop(sandbox, recorder):
    create(sandbox, cores=9)
    with pytest.raises(QmError, match="MAX 8 vcpus"):
        sandbox.qm("start", 100)
    assert recorder.phases == ["pre-start"]


def test_a_qemu_that_does_not_start_is_no_run(sandbox, recorder):
    create(sandbox, affinity="4000")
    with pytest.raises(QmError, match="start failed"):
        sandbox.qm("start", 100)
    assert recorder.phases == ["pre-start"]


def test_affinity_is_the_mask_of_every_thread(sandbox):
    create(sandbox, cores=2, affinity="0", virtio0="local:vm-100-disk-0,iothread=1")
    sandbox.qm("start", 100)
    assert sorted(sandbox.vcpus(100)) == [0, 1]
    assert {sandbox.mask(tid) for tid in sandbox.threads(100)} == {"0"}


def test_threads_are_named_as_under_proxmox(sandbox):
    create(sandbox, cores=2, scsihw="virtio-scsi-single", scsi0="local:vm-100-disk-0,iothread=1")
    sandbox.qm("start", 100)
    names = list(sandbox.threads(100).values())
    assert {"CPU 0/TCG", "CPU 1/TCG"} <= set(names)
    assert names[0] == "kvm"
    with Qmp(Root(sandbox.root), 100, patience_s=5) as qmp:
        (iothread,) = [item for item in qmp.execute("query-iothreads") if item["id"] != "mon_iothread"]
    assert iothread["id"] == "iothread-virtioscsi0"
    assert sandbox.threads(100)[iothread["thread-id"]] == "kvm"


def test_the_command_line_names_the_pid_file_and_the_monitor(sandbox):
    create(sandbox, name="web")
    sandbox.qm("start", 100)
    words = Path(f"/proc/{sandbox.pid(100)}/cmdline").read_text().split("\0")
    run = f"{sandbox.root}/var/run/qemu-server"
    assert words[words.index("-pidfile") + 1] == f"{run}/100.pid"
    assert f"socket,id=qmp,path={run}/100.qmp,server=on,wait=off" in words
    assert words[words.index("-name") + 1] == "web,debug-threads=on"
    assert "-daemonize" in words


def test_pending_changes_are_merged_before_pre_start(sandbox, recorder):
    create(sandbox, affinity="0")
    sandbox.qm("start", 100)
    sandbox.qm("set", 100, affinity="1,0", delete="name")
    assert sandbox.masks(100) == ["0"]
    assert "new affinity: 1,0" in sandbox.qm("pending", 100).output
    assert "[PENDING]" in Path(sandbox.root, "etc/pve/qemu-server/100.conf").read_text()
    sandbox.qm("stop", 100)
    sandbox.qm("start", 100)
    config = recorder.calls[-2]["config"]
    assert recorder.phases[-2] == "pre-start"
    assert "affinity: 1,0\n" in config
    assert "[PENDING]" not in config
    assert sandbox.masks(100) == ["0-1"]


def test_statistics_are_asked_for_every_two_seconds(sandbox):
    create(sandbox, balloon=16)
    sandbox.qm("start", 100)
    with Qmp(Root(sandbox.root), 100, patience_s=5) as qmp:
        query = {"path": "machine/peripheral/balloon0", "property": "guest-stats-polling-interval"}
        assert qmp.execute("qom-get", query) == 2


def test_balloon_0_means_no_device(sandbox):
    create(sandbox, balloon=0)
    sandbox.qm("start", 100)
    assert "virtio-balloon" not in Path(f"/proc/{sandbox.pid(100)}/cmdline").read_text()


def test_a_shutdown_that_times_out_leaves_the_vm_running(sandbox, recorder):
    create(sandbox)
    sandbox.qm("start", 100)
    with pytest.raises(QmError, match="got timeout"):
        sandbox.qm("shutdown", 100, timeout=0.2)
    assert sandbox.pid(100)
    assert recorder.phases == ["pre-start", "post-start", "pre-stop"]


def test_a_forced_shutdown_ends_it(sandbox, recorder):
    create(sandbox)
    sandbox.qm("start", 100)
    sandbox.qm("shutdown", 100, timeout=0.2, forceStop=1)
    assert sandbox.pid(100) is None
    assert recorder.phases[-2:] == ["pre-stop", "post-stop"]


def test_a_killed_qemu_gets_post_stop_and_no_pre_stop(sandbox, recorder):
    create(sandbox)
    sandbox.qm("start", 100)
    os.kill(sandbox.pid(100), signal.SIGKILL)
    assert eventually(lambda: "post-stop" in recorder.phases)
    time.sleep(0.2)
    assert recorder.phases == ["pre-start", "post-start", "post-stop"]
    assert recorder.calls[-1]["locked"]
    assert sandbox.qm("status", 100).output == "status: stopped\n"


def test_before_9_1_13_post_stop_came_after_the_stop_task(sandbox, recorder):
    create(sandbox)
    Path(sandbox.root, "run/qemu-server/force-legacy-cleanup").touch()
    sandbox.qm("start", 100)
    assert "post-stop" not in sandbox.qm("stop", 100).output
    assert eventually(lambda: "post-stop" in recorder.phases)
    assert recorder.phases == ["pre-start", "post-start", "pre-stop", "post-stop"]


def test_reset_and_pause_call_no_hook(sandbox, recorder):
    create(sandbox)
    sandbox.qm("start", 100)
    for command in ("suspend", "resume", "reset"):
        sandbox.qm(command, 100)
    assert recorder.phases == ["pre-start", "post-start"]


def test_a_migration_target_starts_paused_with_the_source_s_file(sandbox, recorder):
    create(sandbox)
    home = Path(sandbox.root, "etc/pve/nodes")
    (home / "far/qemu-server").mkdir(parents=True)
    (home / "sandbox/qemu-server/100.conf").rename(home / "far/qemu-server/100.conf")
    sandbox.qm("start", 100, migratedfrom="far")
    assert recorder.phases == ["pre-start", "post-start"]
    assert {call["environment"]["PVE_MIGRATED_FROM"] for call in recorder.calls} == {"far"}
    assert {call["config"] for call in recorder.calls} == {None}
    with Qmp(Root(sandbox.root), 100, patience_s=5) as qmp:
        assert qmp.execute("query-status")["status"] in ("inmigrate", "prelaunch")
    sandbox.qm("stop", 100, migratedfrom="far")
    assert recorder.phases[-1] == "post-stop"
    assert not recorder.calls[-1]["locked"]


def test_a_lock_of_proxmox_keeps_a_vm_from_starting(sandbox, recorder):
    create(sandbox, lock="backup")
    with pytest.raises(QmError, match="locked"):
        sandbox.qm("start", 100)
    assert recorder.calls == []


def test_a_running_vm_is_not_started_twice(sandbox):
    create(sandbox)
    sandbox.qm("start", 100)
    with pytest.raises(QmError, match="already running"):
        sandbox.qm("start", 100)


def test_a_child_that_keeps_the_output_open_delays_the_start(sandbox):
    sandbox.snippet("slow", "#!/bin/sh\nsleep 1 &\n")
    create(sandbox, hookscript="local:snippets/slow")
    before = time.monotonic()
    sandbox.qm("start", 100)
    assert time.monotonic() - before > 2


@pytest.mark.slow
def test_a_hook_cannot_change_its_own_vm(sandbox, recorder):
    """It holds the lock that `qm set` waits for, for ten seconds."""
    create(sandbox)
    sandbox.snippet("waits", '#!/bin/sh\n[ "$2" != pre-start ] || sleep 12\n')
    sandbox.qm("set", 100, hookscript="local:snippets/waits")
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(sandbox.qm, "start", 100)
        time.sleep(0.5)
        with pytest.raises(QmError, match="can't lock file"):
            sandbox.qm("set", 100, name="other")
        start.result()


def test_eight_vms_start_at_once(sandbox, recorder):
    vmids = [create(sandbox, vmid) for vmid in range(100, 108)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda vmid: sandbox.qm("start", vmid), vmids))
    assert all(sandbox.pid(vmid) for vmid in vmids)
    assert sorted(recorder.phases) == ["post-start"] * 8 + ["pre-start"] * 8
