"""What is remembered belongs to one VM: destroyed and created anew, cloned, restored, migrated, rolled back.
"""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pxsched.chain import files, run, upkeep
from pxsched.chain.entry import Entry
from pxsched.guest import identity
from pxsched.optin import rules
from pxsched.proxmox import cluster

CHECKOUT = Path(__file__).parents[2]
OURS = "hookscript: local:snippets/pxsched\n"
MINE = "local:snippets/mine.sh"


def marks(number):
    """As Proxmox gives them to a new VM."""
    return f"smbios1: uuid={uuid.UUID(int=number)}\nvmgenid: {uuid.UUID(int=number + 500)}\nmeta: ctime=17\n"


def remember(node, vmid, number, *, age_s=0.0, **what):
    owner = identity.of(dict(line.split(": ", 1) for line in marks(number).splitlines()))
    files.write(node.root, Entry(vmid, owner, **(what or {"hookscript": MINE})))
    stamp = time.time() - age_s
    os.utime(node.base / files.RECORDS.path_of(vmid), (stamp, stamp))


@pytest.fixture
def chained(node):
    """VM 100, opted in with --chain."""
    node.snippet("mine.sh")
    node.vm(100, OURS + marks(1))
    remember(node, 100, 1)
    return node


def test_the_script_runs_for_its_vm(chained):
    assert run.run_chain(chained.root, 100, "pre-start") == 0
    assert chained.calls == ["mine.sh 100 pre-start"]
    assert upkeep.clean(chained.root) == []
    assert files.RECORDS.vmids(chained.root) == [100]


@pytest.mark.parametrize("gone", [False, True])
def test_a_new_vm_of_the_number_neither_runs_the_dead_ones_script_nor_is_kept_from_starting(chained, gone):
    chained.vm(100, OURS + marks(2))  # a clone of an opted-in VM inherits our hookscript
    if gone:
        (chained.base / "var/lib/vz/snippets/mine.sh").unlink()
    assert [run.run_chain(chained.root, 100, phase) for phase in ("pre-start", "post-start")] == [0, 0]
    assert chained.calls == []
    guest = cluster.read_guest(chained.root, "pve1", 100)
    step = rules.disable(guest, files.find(chained.root, 100, guest.options))
    assert (step.want, step.notes) == ("", ())
    assert upkeep.clean(chained.root) == [
        "forgot the hookscript remembered for VM 100: it is of an earlier VM of that number"
    ]
    assert not chained.root.exists("etc/pve/pxsched")


def test_what_a_destroyed_vm_had_is_forgotten_by_any_node(chained):
    (chained.base / "etc/pve/nodes/pve1/qemu-server/100.conf").unlink()
    assert upkeep.clean(chained.root) == ["forgot the hookscript remembered for VM 100: there is no such VM"]
    assert files.RECORDS.vmids(chained.root) == []


def test_a_vm_on_another_node_is_left_to_that_nodes_timer(node):
    node.vm(100, OURS + marks(2), node="pve2")
    remember(node, 100, 1)
    assert upkeep.clean(node.root) == []
    assert files.RECORDS.vmids(node.root) == [100]


def test_a_vm_that_proxmox_is_working_on_is_left_alone(chained):
    chained.vm(100, "lock: create\n")  # a restore over the VM: its configuration comes back at the end
    assert upkeep.clean(chained.root) == []
    chained.vm(100, OURS + marks(1))
    assert run.run_chain(chained.root, 100, "pre-start") == 0
    assert chained.calls == ["mine.sh 100 pre-start"]


def test_a_rollback_brings_the_hookscript_back_and_with_it_the_vms_own(node, pxsched, monkeypatch):
    node.snippet("mine.sh")
    config = node.vm(100, f"{OURS}{marks(1)}\n[before]\n{OURS}")
    remember(node, 100, 1, hookscript=MINE, shares="5")

    class Api:
        def call(self, method, path, params=None):
            config.write_text(f"cores: 2\nhookscript: {params['hookscript']}\n{marks(1)}\n[before]\n{OURS}")

    monkeypatch.setattr("pxsched.sandbox.stand_in.local_api", lambda root: Api())
    assert pxsched(node.root, "disable", "100")[0] == 0
    assert files.read(node.root, 100) == Entry(100, files.read(node.root, 100).owner, MINE, "5")
    os.utime(node.base / files.RECORDS.path_of(100), (1, 1))
    assert upkeep.clean(node.root) == []
    config.write_text(f"{OURS}{marks(1)}")  # rolled back
    assert run.run_chain(node.root, 100, "pre-start") == 0
    assert node.calls == ["mine.sh 100 pre-start"]


def test_what_nothing_names_any_more_is_forgotten_after_a_while(node):
    """Not at once: it is written before the VM gets our hookscript."""
    node.vm(100, marks(1))
    remember(node, 100, 1, age_s=60)
    assert upkeep.clean(node.root) == []
    remember(node, 100, 1, age_s=3600)
    assert "not opted in" in upkeep.clean(node.root)[0]


@pytest.mark.parametrize("broken", ["empty", "no nodes", "not this node", "not readable", "no quorum"])
def test_nothing_is_concluded_from_a_cluster_that_cannot_be_read(chained, broken):
    """pmxcfs that is down, starting, or broken; the entries themselves are still shown."""
    nodes = chained.base / "etc/pve/nodes"
    if broken == "no quorum":
        (chained.base / "etc/pve/.members").write_text('{"cluster": {"quorate": 0}}')
        (nodes / "pve1/qemu-server/100.conf").unlink()
    elif broken == "not readable":
        nodes.rename(nodes.with_name("away"))
        nodes.write_text("")
    else:
        nodes.rename(chained.base / "away")
        if broken != "empty":
            nodes.mkdir()
        if broken == "not this node":
            (nodes / "pve2/qemu-server").mkdir(parents=True)
    assert upkeep.clean(chained.root) == []
    assert files.RECORDS.vmids(chained.root) == [100]


def test_what_a_killed_writer_left_goes_once_it_is_old(chained):
    left = chained.write(f"{files.RECORDS.path_of(101)}.tmp.pve1.77", "{")
    assert upkeep.clean(chained.root) == []
    assert left.exists()
    os.utime(left, (1, 1))
    assert upkeep.clean(chained.root) == []
    assert not left.exists()


# What an earlier version wrote.


def test_the_one_file_of_an_earlier_version_serves_until_it_is_taken_over(node):
    node.snippet("mine.sh")
    node.vm(100, OURS + marks(1))
    node.write(files.OLD_FILE, '{"schema": 1, "hookscripts": {"100": "local:snippets/mine.sh"}}')
    assert run.run_chain(node.root, 100, "pre-start") == 0
    assert upkeep.clean(node.root) == []
    assert run.run_chain(node.root, 100, "post-start") == 0
    assert node.calls == ["mine.sh 100 pre-start", "mine.sh 100 post-start"]
    assert not node.root.exists(files.OLD_FILE)
    node.vm(100, OURS + marks(2))
    assert run.run_chain(node.root, 100, "pre-start") == 0
    assert len(node.calls) == 2


def test_nothing_of_it_is_lost(node):
    for vmid in range(100, 150):
        node.vm(vmid, OURS + marks(vmid), node="pve1" if vmid % 2 else "pve2")
    scripts = ", ".join(f'"{vmid}": "local:snippets/{vmid}.sh"' for vmid in range(100, 150))
    shares = ", ".join(f'"{vmid}": ""' for vmid in range(100, 150, 3))
    node.write(files.OLD_FILE, f'{{"hookscripts": {{{scripts}}}, "shares": {{{shares}}}}}')
    assert upkeep.take_over(node.root) == []
    for vmid in range(100, 150):
        entry = files.read(node.root, vmid)
        assert entry.hookscript == f"local:snippets/{vmid}.sh"
        assert entry.shares == ("" if vmid % 3 == 1 else None)
        assert entry.owner.uuid == str(uuid.UUID(int=vmid))


def test_of_it_only_what_nobody_has_any_more_is_dropped_and_said(node):
    node.vm(100, marks(1))
    node.write(files.OLD_FILE, '{"hookscripts": {"100": "a:snippets/b", "101": "a:snippets/c"}}')
    assert [line.split(":")[0] for line in upkeep.clean(node.root)] == [
        "forgot the hookscript remembered for VM 100", "forgot the hookscript remembered for VM 101",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["{", '{"hookscripts": {"100": 1}}'])
def test_a_damaged_one_stays_for_the_admin(node, text):
    node.write(files.OLD_FILE, text)
    assert upkeep.clean(node.root) == []
    assert node.root.read(files.OLD_FILE) == text


def test_one_that_cannot_be_judged_yet_stays_as_it_is(node):
    node.vm(100, "lock: create\n")
    node.write(files.OLD_FILE, '{"hookscripts": {"100": "a:snippets/b"}}')
    assert upkeep.clean(node.root) == []
    assert node.root.exists(files.OLD_FILE)


# Several nodes at once.

WRITER = """
import sys
from pxsched.chain import files
from pxsched.chain.entry import Entry
from pxsched.guest.identity import Identity
from pxsched.root import Root
root, first, rounds = Root(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for vmid in range(first, first + 25):
    for again in range(rounds):
        files.write(root, Entry(vmid, Identity(), f"local:snippets/{vmid}"))
        files.RECORDS.drop(root, vmid)
    files.write(root, Entry(vmid, Identity(), f"local:snippets/{vmid}"))
"""


def test_four_nodes_that_write_at_once_lose_no_entry(node):
    """One directory, as pmxcfs shows it to all nodes; it comes and goes with its first and last entry."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(node.base), str(first), "20"], env=environment
        )
        for first in range(100, 200, 25)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0, 0]
    assert files.RECORDS.vmids(node.root) == list(range(100, 200))
    assert {vmid: files.read(node.root, vmid).hookscript for vmid in files.RECORDS.vmids(node.root)} == {
        vmid: f"local:snippets/{vmid}" for vmid in range(100, 200)
    }
    assert files.RECORDS.vmids(node.root) == list(range(100, 200))
    assert len(os.listdir(node.base / files.RECORDS.directory)) == 100


def test_a_directory_that_goes_while_it_is_looked_at_is_made_again(node, monkeypatch):
    """`os.makedirs` finds it there, and then no directory any more."""
    real, gone = os.makedirs, [FileExistsError(17, "File exists")] * 3

    def makedirs(*arguments, **options):
        if gone:
            raise gone.pop()
        real(*arguments, **options)

    monkeypatch.setattr(os, "makedirs", makedirs)
    files.write(node.root, Entry(100, identity.of({}), MINE))
    assert files.RECORDS.vmids(node.root) == [100]


def test_two_nodes_that_enable_one_vm_at_once_keep_its_script(node, pxsched, monkeypatch):
    """The slower one's change is refused by the digest; what the faster one remembered stays."""
    node.snippet("mine.sh")
    node.snippet("pxsched")
    config = node.vm(100, f"hookscript: {MINE}\n{marks(1)}")

    class Api:
        def call(self, method, path, params=None):
            from pxsched.proxmox.api import ApiError

            # The other node was faster, and has our script on another storage.
            config.write_text(f"cores: 2\nhookscript: nas:snippets/pxsched\n{marks(1)}")
            raise ApiError("detected modified configuration")

    monkeypatch.setattr("pxsched.sandbox.stand_in.local_api", lambda root: Api())
    assert pxsched(node.root, "enable", "100", "--chain")[0] == 1
    assert files.read(node.root, 100).hookscript == MINE


def test_what_another_nodes_failed_attempt_took_away_is_written_again(node, pxsched, monkeypatch):
    node.snippet("mine.sh")
    node.snippet("pxsched")
    config = node.vm(100, f"hookscript: {MINE}\n{marks(1)}")

    class Api:
        def call(self, method, path, params=None):
            files.RECORDS.drop(node.root, 100)
            config.write_text(f"cores: 2\n{OURS}{marks(1)}")

    monkeypatch.setattr("pxsched.sandbox.stand_in.local_api", lambda root: Api())
    assert pxsched(node.root, "enable", "100", "--chain")[0] == 0
    assert files.read(node.root, 100).hookscript == MINE


def test_without_entries_the_upkeep_reads_nothing(node, monkeypatch):
    def never(*_):
        raise AssertionError("the cluster's files were read")

    monkeypatch.setattr(cluster, "places", never)
    monkeypatch.setattr(cluster, "quorate", never)
    assert upkeep.clean(node.root) == []
