"""The timer publishes on change, seldom, with a quorum only, and waits for no file system that blocks."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pxsched import child
from pxsched.cluster import members, publish
from pxsched.ledger import file as ledgers
from pxsched.node import others


def passes(cluster, name="pve1") -> str:
    """What one pass of the timer tells."""
    node = cluster.node(name)
    ledger = ledgers.peek(node.root)
    return publish.tick(node, ledger, others.known(node.root, {*ledger.claims}))


def file(cluster, name="pve1"):
    return cluster.pve / "nodes" / name / publish.NAME


def age(cluster, seconds: float) -> int:
    """Makes the file so old; what it is told by."""
    at_s = time.time() - seconds
    os.utime(file(cluster), (at_s, at_s))
    return file(cluster).stat().st_mtime_ns


def was_written(cluster, before: int) -> bool:
    return file(cluster).stat().st_mtime_ns != before


def test_a_node_publishes_itself_and_leaves_nothing_else(pair):
    assert passes(pair) == ""
    assert json.loads(file(pair).read_text())["schema"] == 1
    assert [path.name for path in file(pair).parent.iterdir() if "json" in path.name] == [publish.NAME]
    assert pair.looked("pve2")["pve1"].usable


def test_a_node_on_its_own_has_nobody_to_tell(pair):
    (pair.pve / "nodes/pve2/qemu-server").rmdir()
    (pair.pve / "nodes/pve2").rmdir()
    passes(pair)
    assert not file(pair).exists()


@pytest.mark.parametrize("text", ['{"cluster": {"quorate": 0}}', "{", '{"cluster": []}'])
def test_nothing_is_written_without_quorum_nor_where_that_is_unknown(pair, text):
    pair.put(".members", text)
    passes(pair)
    assert not file(pair).exists()


def test_without_a_change_only_a_heartbeat_is_written(pair):
    passes(pair)
    before = age(pair, 120)
    passes(pair)
    assert not was_written(pair, before)
    before = age(pair, publish.HEARTBEAT_S + 1)
    passes(pair)
    assert was_written(pair, before)


def test_a_change_is_written_but_not_twice_a_minute(pair):
    passes(pair)
    pair.vm("pve1", 100, "cores: 2\n", running=True)
    before = age(pair, 30)
    passes(pair)
    assert not was_written(pair, before)
    before = age(pair, 61)
    passes(pair)
    assert was_written(pair, before) and "100" in json.loads(file(pair).read_text())["vms"]


@pytest.mark.parametrize(
    ("key", "was", "now", "new"),
    [
        ("loads", 1.0, 1.3, False),
        ("loads", 1.0, 1.7, True),
        ("loads", 40.0, 43.0, False),
        ("free_mib", 5000, 5900, False),
        ("free_mib", 5000, 6100, True),
        ("free_mib", 500_000, 540_000, False),
    ],
)
def test_a_little_more_load_or_memory_is_no_change(key, was, now, new):
    def document(value):
        measured = {name: {} for name in ("loads", "free_mib", "free_hugepages_mib", "resident_mib")}
        return {"schema": 1, "measured": {**measured, "time": value, key: {"0": value}}}

    assert publish.differs(document(was), document(now)) is new


def test_a_file_system_that_refuses_is_named(pair):
    file(pair).mkdir()  # a rename onto a directory fails
    age(pair, 3600)
    assert "cannot be written: Is a directory" in passes(pair)
    assert [path.name for path in file(pair).parent.iterdir() if ".tmp." in path.name] == []


def test_a_pass_does_not_wait_for_a_write_that_blocks(pair, monkeypatch):
    monkeypatch.setattr(publish, "PATIENCE_S", 0.05)
    monkeypatch.setattr(publish, "_writer", lambda path, data: lambda: time.sleep(60))
    begin = time.monotonic()
    assert "not written within 0.05 s" in passes(pair)
    assert time.monotonic() - begin < 5


def loaded(code: str) -> set[str]:
    """The modules of ours that a process has after this."""
    text = f"import sys; {code}; print(*[name for name in sys.modules if name.startswith('pxsched')])"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True, check=True)
    return {*done.stdout.split()}


def test_a_hook_loads_none_of_it(pair):
    pair.vm("pve1", 100, "cores: 2\n")
    root = str(pair.base / "pve1")
    call = f"from pxsched import hook; hook.run(hook.Root({root!r}), 100, 'pre-start', {{}})"
    assert not {name for name in loaded(call) if name.startswith("pxsched.cluster")}


def test_the_timer_loads_what_publishes_and_no_more(pair):
    call = f"from pxsched import tick; tick.tick(tick.Root({str(pair.base / 'pve1')!r}), {{}})"
    mine = {name for name in loaded(call) if name.startswith("pxsched.cluster.")}
    assert mine == {f"pxsched.cluster.{name}" for name in ("publish", "publication", "machine")}
    assert file(pair).exists()


def test_a_child_says_why_it_failed():
    def work():
        raise PermissionError(errno.EACCES, "no quorum")

    with pytest.raises(PermissionError):
        child.attempt(work, patience_s=5)


def test_a_child_keeps_no_lock_of_ours(tmp_path):
    """What blocks in it must not keep the next pass from the lock."""
    import fcntl

    path = tmp_path / "lock"
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(child.Late):
            child.attempt(lambda: time.sleep(60), patience_s=0.05)
    with open(path, "w") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_while_a_child_does_not_end_no_other_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda pid, number: None)  # as in the kernel, where no signal reaches it

    def blocked():
        while not (tmp_path / "go").exists():
            time.sleep(0.01)

    with pytest.raises(child.Late):
        child.attempt(blocked, patience_s=0.05)
    with pytest.raises(child.Late):
        child.attempt((tmp_path / "second").touch, patience_s=0.1)
    (tmp_path / "go").touch()
    child.attempt((tmp_path / "third").touch, patience_s=30)
    assert not (tmp_path / "second").exists() and (tmp_path / "third").exists()


def test_what_others_published_is_old_by_their_own_clock(pair):
    pair.publish("pve1", at_s=time.time() - members.STALE_S - 10)
    seen = pair.looked("pve2")
    assert seen["pve1"].stale and not seen["pve1"].usable and seen["pve2"].usable


def test_a_file_that_cannot_be_a_nodes_own_is_named_and_not_used(pair):
    pair.put("nodes/pve1/pxsched.json", '{"schema": 1}')
    seen = pair.looked("pve2")["pve1"]
    assert not seen.usable and "/etc/pve/nodes/pve1/pxsched.json cannot be its own" in seen.problem


def test_a_node_that_is_offline_is_no_place_to_go(pair):
    pair.publish()
    pair.corosync(offline=("pve2",))
    assert not pair.looked("pve1")["pve2"].usable
