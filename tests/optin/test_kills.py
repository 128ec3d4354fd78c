"""Killed at any write while VMs are opted in or out: no script is ever lost, and the next run finishes."""

import os
import time

import pytest

from pxsched.chain import files, upkeep
from pxsched.proxmox import cluster
from tests.killing import Proxmox, killed_at

from .test_upkeep import MINE, OURS, marks

MOST_WRITES = 60
ENABLE, DISABLE = ("enable", "100", "--chain", "--balloon"), ("disable", "100")


@pytest.fixture
def opted(node, pxsched, monkeypatch):
    """VM 100 with a script of its own, on a node that can opt it in."""
    node.snippet("mine.sh")
    node.snippet("pxsched")
    monkeypatch.setattr("pxsched.sandbox.stand_in.local_api", lambda root: Proxmox(root))
    reset(node)
    return node


def reset(node, hookscript=f"hookscript: {MINE}\n"):
    node.vm(100, f"{hookscript}memory: 2048\nballoon: 512\nshares: 1500\n{marks(1)}")


def state(node):
    """What the VM names, and what is remembered of it."""
    guest = cluster.read_guest(node.root, "pve1", 100)
    entry = files.find(node.root, 100, guest.options)
    return guest.options.get("hookscript"), entry and entry.hookscript, guest.options.get("shares")


def age(node):
    """Lets what is remembered be a day old."""
    for name in node.root.list(files.RECORDS.directory):
        os.utime(node.base / files.RECORDS.directory / name, (0, time.time() - 86400))


def run(pxsched, node, *words):
    code, out, err = pxsched(node.root, *words)
    assert code == 0, out + err


def test_opting_in_and_out_killed_at_any_write_loses_no_script_and_is_finished_by_the_next(opted, pxsched):
    before = state(opted)
    assert before == (MINE, None, "1500")
    run(pxsched, opted, *ENABLE)
    enabled = state(opted)
    assert enabled[1:] == (MINE, "0")
    ways = {DISABLE: (enabled, before), ENABLE: (before, enabled)}
    for words, (begin, end) in ways.items():
        for number in range(MOST_WRITES):
            killed = killed_at(number, lambda words=words: run(pxsched, opted, *words))
            named, remembered, _shares = state(opted)
            assert MINE in (named, remembered), f"{words} killed at write {number}: the script is lost"
            run(pxsched, opted, *words)
            age(opted)
            upkeep.clean(opted.root)  # what an opted out VM needs no more is the timer's
            assert state(opted) == end, f"{words} killed at write {number}"
            if not killed:
                break
            run(pxsched, opted, *(ENABLE if words == DISABLE else DISABLE))
            assert state(opted) == begin
        assert 3 < number < MOST_WRITES - 1
    assert opted.root.list(files.RECORDS.directory) == ["100.json"]


def test_taking_over_what_an_earlier_version_kept_killed_at_any_write_keeps_every_entry(node):
    vmids = range(100, 104)
    for vmid in vmids:
        node.vm(vmid, OURS + marks(vmid))
    scripts = ", ".join(f'"{vmid}": "local:snippets/{vmid}.sh"' for vmid in vmids)
    for number in range(MOST_WRITES):
        for name in node.root.list(files.RECORDS.directory):
            (node.base / files.RECORDS.directory / name).unlink()
        node.write(files.OLD_FILE, f'{{"hookscripts": {{{scripts}}}}}')
        killed = killed_at(number, lambda: upkeep.take_over(node.root))
        for _ in range(2):
            assert [files.read(node.root, vmid).hookscript for vmid in vmids] == [
                f"local:snippets/{vmid}.sh" for vmid in vmids
            ], f"killed at write {number}"
            upkeep.take_over(node.root)
        assert not node.root.exists(files.OLD_FILE)
        if not killed:
            break
    assert 8 < number < MOST_WRITES - 1
