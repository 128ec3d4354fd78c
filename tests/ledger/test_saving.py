"""What is written and what is not: nothing new, what was damaged, and whose a knob is."""

import os

from pxsched.guest.process import Process
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.journal import Entry
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root


def test_a_ledger_that_says_the_same_is_not_written_again(tmp_path):
    root = Root(str(tmp_path))
    placement = Placement(100, VmClass.SHARED, (frozenset((1,)),), frozenset((0,)), frozenset((0,)))
    claim = Claim(placement, State.RUNNING, process=Process(5, 6))
    written_ns = []
    for load in (None, None, 0.5):
        with ledgers.locked(root) as ledger:
            ledger.claims[100] = Claim(placement, State.RUNNING, process=claim.process, load=load)
            ledgers.save(root, ledger)
        written_ns.append(os.stat(root.path(ledgers.FILE)).st_mtime_ns)
    assert written_ns[0] == written_ns[1] != written_ns[2]


def saved(tmp_path, *entries: tuple[str, Entry]) -> Root:
    root = Root(str(tmp_path))
    for key, entry in entries:  # a generation each
        with ledgers.locked(root) as ledger:
            ledger.journal[key] = entry
            ledgers.save(root, ledger)
    return root


KNOB = Entry(100, "vcpu", "0-3", "1", 0)


def test_a_file_of_another_schema_is_not_taken_for_ours(tmp_path):
    root = saved(tmp_path, ("affinity:1,1", KNOB))
    path = tmp_path / ledgers.FILE
    path.write_bytes(path.read_bytes().replace(b'"schema": 2', b'"schema": 3'))
    found = ledgers.peek(root)
    assert not found.journal and "schema 3 is not 2" in found.warnings[0]


def test_what_came_from_the_generation_before_is_written_again_though_nothing_changed(tmp_path):
    root = saved(tmp_path, ("affinity:1,1", KNOB), ("affinity:2,2", KNOB))
    (tmp_path / ledgers.FILE).write_bytes(b"damaged")
    with ledgers.locked(root) as ledger:
        assert list(ledger.journal) == ["affinity:1,1"]
        ledgers.save(root, ledger)
    assert list(ledgers.peek(root).journal) == ["affinity:1,1"]
    assert (tmp_path / ledgers.FILE).exists()


def test_a_knob_has_one_owner_whoever_had_it_before(tmp_path):
    root = saved(tmp_path, ("affinity:1,1", KNOB), ("affinity:1,1", KNOB._replace(owner=101)))
    journal = ledgers.peek(root).journal
    assert (list(journal), journal.owners()) == (["affinity:1,1"], {101})


def test_of_a_file_that_changed_only_the_changed_lines_are_read_anew(tmp_path):
    root = saved(tmp_path, ("affinity:1,1", KNOB), ("affinity:2,1", KNOB._replace(owner=101)))
    before = dict(ledgers.peek(root).journal.by_owner)
    saved(tmp_path, ("affinity:2,1", KNOB._replace(owner=101, wanted="2")))
    after = ledgers.peek(root).journal.by_owner
    assert after[100] is before[100]
    assert after[101]["affinity:2,1"].wanted == "2"


def test_once_all_entries_were_read_none_is_searched_for(tmp_path, monkeypatch):
    journal = ledgers.peek(saved(tmp_path, ("affinity:1,1", KNOB))).journal
    journal.read()
    monkeypatch.setattr(type(journal), "_search", None)
    assert "affinity:1,1" in journal and "affinity:2,1" not in journal
    journal["affinity:2,1"] = KNOB._replace(owner=101)
    del journal["affinity:1,1"]
    assert "affinity:2,1" in journal and "affinity:1,1" not in journal
