"""What is remembered of a VM that was shaped, and what putting it back does and does not touch."""

import json

import pytest

from pxsched.guest.identity import Identity
from pxsched.root import Root
from pxsched.shaping import record
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
    record.drop(root, 100)
    assert record.read(root, 100, SAME) is None
    assert not (tmp_path / record.DIRECTORY).exists()


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
    path = tmp_path / record.path_of(100)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Damaged):
        record.read(root, 100, SAME)
