"""Two nodes on one machine, each with its QEMU: a guest is handed over by QEMU's own migration, with the
hooks that Proxmox calls on both sides. Pins are the target's, and nothing is left on the source.

Order as in PVE::QemuMigrate: start on the target, memory over, configuration renamed, guest resumed, source
stopped.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from pxsched.guest.qmp import Qmp
from pxsched.root import Root
from pxsched.sandbox.commandline import Accelerator
from pxsched.sandbox.sandbox import QmError, Sandbox
from tests.hook.conftest import HOOK, Host

pytestmark = [
    pytest.mark.measures,
    pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"),
]


@pytest.fixture
def nodes():
    """Two of them; each calls itself `sandbox`, and the target calls the source `far`."""
    with Sandbox(accelerator=Accelerator.TCG, most_vcpus=2) as one, Sandbox(
        accelerator=Accelerator.TCG, most_vcpus=2
    ) as other:
        for sandbox in (one, other):
            sandbox.snippet("pxsched", HOOK)
        yield Host(one), Host(other)


def qmp(host: Host, command: str, **arguments):
    with Qmp(Root(host.sandbox.root), 100, patience_s=10) as monitor:
        return monitor.execute(command, arguments or None)


def config(host: Host, node: str) -> Path:
    return Path(host.sandbox.root, "etc/pve/nodes", node, "qemu-server/100.conf")


def migrate(source: Host, target: Host, socket: Path) -> str:
    """VM 100 goes from one to the other; the target's log. Raises QmError where the target refuses it."""
    config(target, "far").parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(config(source, "sandbox"), config(target, "far"))
    log = target.start(100, migratedfrom="far").output
    qmp(target, "migrate-incoming", uri=f"unix:{socket}")
    qmp(source, "migrate", uri=f"unix:{socket}")
    until = time.monotonic() + 60
    while (state := qmp(source, "query-migrate")["status"]) != "completed":
        assert state != "failed" and time.monotonic() < until, state
        time.sleep(0.05)
    config(target, "far").rename(config(target, "sandbox"))
    qmp(target, "cont")
    source.stop(100)
    config(source, "sandbox").unlink()
    return log


def test_a_guest_comes_with_hooks_and_gets_the_targets_pins(nodes, tmp_path):
    source, target = nodes
    source.settings('[node.sandbox.vm.100]\npins = "0,1"\n')
    target.settings('[node.sandbox.vm.100]\npins = "1,0"\n')
    source.started(100, cores=2)
    assert source.masks(100) == ["0", "1"]
    log = migrate(source, target, tmp_path / "socket")
    assert "pxsched: VM 100 is pinned: vCPUs on 1,0" in log
    assert qmp(target, "query-status")["status"] == "running" and target.masks(100) == ["1", "0"]
    assert source.sandbox.pid(100) is None
    source.pxsched("tick")
    assert source.status()["vms"] == [] and source.status()["knobs"] == [] and source.leftovers() == []
    target.pxsched("tick")
    [vm] = target.status()["vms"]
    assert vm["vmid"] == 100 and [one["cpus"] for one in vm["vcpus"]] == ["1", "0"]
    assert json.loads(target.pxsched("cluster", "status", "--json").stdout)["vms"][0]["node"] == "sandbox"


def test_a_target_that_cannot_place_a_strict_vm_leaves_it_running_at_the_source(nodes, tmp_path):
    source, target = nodes
    target.settings('[vm.100]\nclass = "dedicated"\nstrict = true\n[node]\nhousekeeping = "0-1"\n')
    source.started(100, cores=2)
    with pytest.raises(QmError, match="the migration ends here: VM 100 runs on, on node far"):
        migrate(source, target, tmp_path / "socket")
    assert target.sandbox.pid(100) is None and target.status()["vms"] == []
    assert qmp(source, "query-status")["status"] == "running"
    assert source.status()["vms"][0]["vmid"] == 100
