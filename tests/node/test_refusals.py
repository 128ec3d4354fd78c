"""What the kernel refused is no drift: nobody turned the knob, it never was as wanted."""

from pxsched.ledger import file as ledgers
from pxsched.ledger.journal import Entry

from .test_reconcile import Host, Obstinate, Plain, Values, host, values, want

__all__ = ["host", "values"]  # fixtures


def test_a_refused_knob_that_changes_by_itself_has_not_drifted(host: Host, values: Values):
    values.put("x", "before")
    host.reconcile(want(Obstinate("x"), "wish"))
    values.put("x", "something else")
    report = host.reconcile(want(Obstinate("x"), "wish"))
    assert [turn.drifted for turn in report.turned] == [False]
    (entry,) = host.journal.values()
    assert (entry.drifts, entry.drifted_ns) == (0, None)


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
