"""What is remembered of a VM that was shaped, and what putting it back does and does not touch."""

import json
import shutil
from pathlib import Path

import pytest

from pxsched.guest.identity import Identity
from pxsched.root import Root
from pxsched.shaping import keep, record
from pxsched.shaping.record import Record
from pxsched.stored import Damaged

OWNER = Identity("01234567-89ab-cdef-0123-456789abcdef", "", "")
SAME = {"smbios1": f"uuid={OWNER.uuid}"}
SHAPED = Record(
    100,
    OWNER,
    {"args": "-device a", "sockets": None},
    ({"args": "-device a -smp threads=2", "sockets": "2"},),
)


def test_what_is_as_we_left_it_is_put_back():
    undone = record.undo(SHAPED, {"args": "-device a -smp threads=2", "sockets": "2"})
    assert undone.changes == {"args": "-device a", "sockets": None}


def test_what_somebody_else_changed_stays_and_is_named():
    undone = record.undo(SHAPED, {"args": "-device a -smp threads=2", "sockets": "4"})
    assert undone.changes == {"args": "-device a"}
    assert undone.left == ("sockets",)


def test_of_args_that_somebody_extended_only_our_words_go():
    undone = record.undo(SHAPED, {"args": "-S -device a -smp threads=2 -snapshot", "sockets": "2"})
    assert undone.changes["args"] == "-S -device a -snapshot"


def test_what_is_back_already_is_left_alone():
    assert not record.undo(SHAPED, {"args": "-device a"}).changes


def test_a_record_comes_back_as_it_was_written(tmp_path):
    root = Root(str(tmp_path))
    record.write(root, SHAPED)
    assert record.read(root, 100, SAME) == SHAPED
    record.RECORDS.drop(root, 100)
    assert record.read(root, 100, SAME) is None
    assert not (tmp_path / record.RECORDS.directory).exists()


def test_another_vm_of_that_number_has_no_record(tmp_path):
    root = Root(str(tmp_path))
    record.write(root, SHAPED)
    assert record.read(root, 100, {"smbios1": "uuid=ffffffff-89ab-cdef-0123-456789abcdef"}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"before": {"hookscript": "x"}},
        {"before": {"args": "a\nhookscript: local:snippets/evil"}},
        {"wrote": [{"numa9": "1"}]},
        {"vmid": 101},
        {"owner": None},
    ],
)
def test_a_damaged_record_is_named_and_nothing_of_it_is_used(tmp_path, change):
    root = Root(str(tmp_path))
    record.write(root, SHAPED)
    path = tmp_path / record.RECORDS.path_of(100)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Damaged):
        record.read(root, 100, SAME)


# Of VMs that are gone.

OURS = f"cores: 2\nsmbios1: uuid={OWNER.uuid}\n"


@pytest.fixture
def cluster(tmp_path) -> Path:
    """Two nodes; VM 100 was shaped on the first of them, and is there."""
    for node in "pve1", "pve2":
        (tmp_path / "etc/pve/nodes" / node / "qemu-server").mkdir(parents=True)
    (tmp_path / "etc/pve/local").symlink_to("nodes/pve1")
    put(tmp_path, OURS)
    record.write(Root(str(tmp_path)), SHAPED)
    return tmp_path


def put(base, text, node="pve1"):
    for place in base.glob("etc/pve/nodes/*/qemu-server/100.conf"):
        place.unlink()
    if text:
        (base / "etc/pve/nodes" / node / "qemu-server/100.conf").write_text(text)


@pytest.mark.parametrize(
    ("text", "node", "forgotten"),
    [
        (OURS, "pve1", ""),
        (OURS, "pve2", ""),
        ("cores: 2\nlock: create\n", "pve1", ""),
        ("", "", "there is no such VM"),
        ("cores: 2\nsmbios1: uuid=ffffffff-89ab-cdef-0123-456789abcdef\n", "pve1", "an earlier VM"),
        ("cores: 2\nsmbios1: uuid=ffffffff-89ab-cdef-0123-456789abcdef\n", "pve2", ""),
    ],
)
def test_the_timer_forgets_what_no_vm_can_need_again(cluster, text, node, forgotten):
    put(cluster, text, node)
    lines = keep.clean(Root(str(cluster)))
    assert forgotten in "".join(lines) and len(lines) == bool(forgotten)
    assert (cluster / record.RECORDS.path_of(100)).exists() == (not forgotten)


def test_nothing_is_forgotten_while_the_cluster_cannot_be_read(cluster):
    shutil.rmtree(cluster / "etc/pve/nodes")
    assert keep.clean(Root(str(cluster))) == []
    assert (cluster / record.RECORDS.path_of(100)).exists()
