"""What the kernel refused is no drift: nobody turned the knob, it never was as wanted."""

import errno
import sys
from pathlib import Path

from pxsched.knobs import knob as knobs
from pxsched.ledger import file as ledgers
from pxsched.ledger.journal import Entry
from pxsched.root import Root

from .test_reconcile import Host, Plain, Values, host, values, want

__all__ = ["host", "values"]  # fixtures


class Refusing(Plain):
    """The kernel takes nothing while there is a file that says so."""

    kind = "refusing"

    def write(self, root: Root, value: str) -> None:
        if root.exists("values/refused"):
            raise OSError(errno.EBUSY, "busy")
        Plain.write(self, root, value)


def test_a_knob_that_was_refused_and_then_taken_has_not_drifted(host: Host, values: Values, monkeypatch):
    module = sys.modules["pxsched_test_knobs"]
    monkeypatch.setattr(module, "Refusing", Refusing, raising=False)
    monkeypatch.setitem(knobs.KINDS, "refusing", "pxsched_test_knobs:Refusing")
    values.put("x", "before")
    values.put("refused", "")
    assert len(host.reconcile(want(Refusing("x"), "wish")).failed) == 1
    (Path(host.root.base) / "values/refused").unlink()
    report = host.reconcile(want(Refusing("x"), "wish"))
    assert [(turn.after, turn.drifted) for turn in report.turned] == [("wish", False)]
    (entry,) = host.journal.values()
    assert (entry.drifts, entry.drifted_ns, entry.note) == (0, None, "")


def test_a_taken_knob_that_somebody_turns_has(host: Host, values: Values):
    values.put("x", "before")
    host.reconcile(want(Plain("x"), "wish"))
    values.put("x", "something else")
    report = host.reconcile(want(Plain("x"), "wish"))
    assert [turn.drifted for turn in report.turned] == [True]
    (entry,) = host.journal.values()
    assert entry.drifts == 1


def test_a_knob_that_was_half_put_back_is_written_again_though_it_looks_as_wanted(host: Host, values: Values):
    values.put("x", "wish")
    with ledgers.locked(host.root) as ledger:
        ledger.journal[Plain("x").key] = Entry(100, "test", "before", "wish", 0, leaving=True)
        ledgers.save(host.root, ledger)
    host.reconcile(want(Plain("x"), "wish"))
    assert values.writes() == ["plain x wish"]
