"""A balloon that was taken from Proxmox and can no longer be served is Proxmox's again, by the timer."""

import json
import shutil
from pathlib import Path

import pytest

from pxsched import tick
from pxsched.chain import files as chain
from pxsched.chain import handback
from pxsched.ledger import file as ledgers
from pxsched.node import remembered
from pxsched.node.sighting import open_node
from pxsched.proxmox.api import ApiError
from pxsched.root import Root
from pxsched.sandbox import stand_in

OURS = "local:snippets/pxsched"
DEVICE, PAGES = "hostpci0: 0000:01:00.0\n", "hugepages: 2\n"

pytestmark = [
    pytest.mark.measures,
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed"),
]


def text(sandbox, vmid=100):
    return sandbox.node.config(vmid).read_text()


def got_later(sandbox, line, vmid=100):
    """As if Proxmox had added it at the VM's start."""
    path = sandbox.node.config(vmid)
    path.write_text(line + path.read_text())


def taken_over(sandbox, pxsched, vmid=100, **options):
    """A running VM whose balloon is ours; its configuration before that."""
    sandbox.qm("create", vmid, cores=1, memory=64, **options)
    before = text(sandbox, vmid)
    assert pxsched(Root(sandbox.root), "enable", str(vmid), "--balloon")[0] == 0
    assert "shares: 0" in text(sandbox, vmid)
    sandbox.qm("start", vmid)
    return before


def passes(sandbox, capsys, count=1):
    """What so many passes say."""
    capsys.readouterr()
    for _ in range(count):
        tick.report(tick.tick(Root(sandbox.root)))
    return capsys.readouterr().out


class Refusing:
    """A Proxmox that takes nothing. free: whether the locks of a pass could be had meanwhile."""

    def __init__(self, root):
        self.root, self.asked, self.free = root, 0, True

    def call(self, method, path, params=None):
        self.asked += 1
        with ledgers.locked(self.root, patience_s=0.1), tick._alone(self.root):
            raise ApiError("no quorum?\x1b[31m")


@pytest.mark.parametrize(
    ("line", "reason", "shares"),
    [(DEVICE, "passed-through devices", {}), (PAGES, "huge pages", {"shares": 500})],
)
def test_who_gets_a_device_or_huge_pages_later_is_proxmoxs_again(
    sandbox, pxsched, capsys, line, reason, shares
):
    before = taken_over(sandbox, pxsched, balloon=32, **shares)
    assert "Proxmox's again" not in passes(sandbox, capsys)
    got_later(sandbox, line)
    said = passes(sandbox, capsys)
    [of_pass] = [one for one in said.splitlines() if "balloon is Proxmox's again" in one]
    assert reason in of_pass
    after = sorted(text(sandbox).splitlines())
    assert after == sorted([*before.splitlines(), f"hookscript: {OURS}", line.strip()])
    assert chain.RECORDS.vmids(Root(sandbox.root)) == []
    assert "Proxmox's again" not in passes(sandbox, capsys, 2)
    skipped = remembered.last(Root(sandbox.root)).skipped[100]
    assert "Proxmox balances it itself" in skipped
    assert reason in skipped


def test_a_minimum_by_policy_is_put_back_and_its_own_script_kept(sandbox, pxsched, capsys):
    sandbox.snippet("mine.sh", "#!/bin/sh\n")
    settings = sandbox.node.path("etc/pxsched/pxsched.toml")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("[vm.100]\nballoon_minimum_percent = 25\n")
    sandbox.qm("create", 100, cores=1, memory=64, hookscript="local:snippets/mine.sh")
    assert pxsched(Root(sandbox.root), "enable", "100", "--balloon", "--chain")[0] == 0
    assert "balloon: 16\n" in text(sandbox)
    sandbox.qm("start", 100)
    got_later(sandbox, DEVICE)
    assert "balloon unset, shares unset" in passes(sandbox, capsys)
    assert "balloon" not in text(sandbox)
    entry = chain.read(Root(sandbox.root), 100)
    assert (entry.hookscript, entry.shares, entry.minimum) == ("local:snippets/mine.sh", None, None)


def test_what_the_admin_set_is_his_and_a_locked_vm_waits(sandbox, pxsched, capsys):
    taken_over(sandbox, pxsched, balloon=32)
    taken_over(sandbox, pxsched, 101, balloon=32)
    sandbox.qm("create", 102, memory=64, balloon=32, shares=0, hookscript=OURS)
    sandbox.qm("start", 102)
    sandbox.qm("set", 101, shares=7)  # decided meanwhile
    got_later(sandbox, DEVICE + "lock: backup\n")
    for vmid in (101, 102):
        got_later(sandbox, DEVICE, vmid)
    before = [text(sandbox, vmid) for vmid in (100, 101, 102)]
    assert "Proxmox's again" not in passes(sandbox, capsys)
    assert [text(sandbox, vmid) for vmid in (100, 101, 102)] == before
    path = sandbox.node.config(100)
    path.write_text(path.read_text().replace("lock: backup\n", ""))
    assert "VM 100's balloon is Proxmox's again" in passes(sandbox, capsys)


def test_a_refusal_is_said_once_shown_and_tried_again_later_with_no_lock_held(
    sandbox, pxsched, capsys, monkeypatch
):
    for vmid in (100, 101):
        taken_over(sandbox, pxsched, vmid, balloon=32)
        got_later(sandbox, DEVICE, vmid)
    root = Root(sandbox.root)
    proxmox = Refusing(root)
    monkeypatch.setattr(handback, "local_api", lambda root: proxmox)
    said = passes(sandbox, capsys, 4)
    assert said.count("VM 100's balloon is not Proxmox's again: no quorum?") == 1
    assert said.count("VM 101's balloon is not Proxmox's again: no quorum?") == 1
    assert "\x1b" not in said
    assert proxmox.asked == 2, "one failure a pass, and then each is left alone for a minute"
    last = handback.explained(root, remembered.last(root))
    assert "not given back to Proxmox: no quorum?" in last.skipped[100]
    monkeypatch.setattr(handback, "local_api", stand_in.local_api)
    assert "again" not in passes(sandbox, capsys)
    sandbox.qm("set", 100, name="mended")  # another configuration, another try
    assert "VM 100's balloon is Proxmox's again" in passes(sandbox, capsys)
    file = root.path(handback.FAILED)
    assert json.loads(Path(file).read_text())["vms"].keys() == {"101"}
    sandbox.qm("stop", 101)
    passes(sandbox, capsys)
    assert not Path(file).exists()


def test_without_quorum_nobody_is_asked(sandbox, pxsched, capsys):
    taken_over(sandbox, pxsched, balloon=32)
    got_later(sandbox, DEVICE)
    root = Root(sandbox.root)
    members = sandbox.node.path("etc/pve/.members")
    members.write_text('{"cluster": {"quorate": 0}}')
    proxmox = Refusing(root)
    assert list(handback.tick(open_node(root), [100], proxmox)) == []
    members.unlink()
    assert proxmox.asked == 0
