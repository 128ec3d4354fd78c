"""Turned knobs for a person: which, what they were, what they should be and what they are."""

from collections.abc import Mapping

from pxsched.knobs.knob import Knob, from_key
from pxsched.ledger import file as ledgers
from pxsched.ledger.journal import Entry
from pxsched.root import Root


def lines(root: Root, entries: Mapping[str, Entry], now: Mapping[str, str | None]) -> dict[int, list[str]]:
    """One line a knob, by owner. now: the knobs' values as just read, None where there is none any more."""
    found: dict[int, list[str]] = {}
    for key, entry in sorted(entries.items()):
        found.setdefault(entry.owner, []).append(_line(root, key, entry, now.get(key)))
    return found


def planned(root: Root, key: str, now: str | None, want: str) -> str:
    """What would be turned, from what to what."""
    knob = _knob(key)
    label = knob.label(root) if knob else key
    return f"{label}: {'-' if now is None else _shown(knob, now)} -> {_shown(knob, want)}"


def _line(root: Root, key: str, entry: Entry, now: str | None) -> str:
    knob = _knob(key)
    label = knob.label(root) if knob else key
    text = f"{label}: was {_shown(knob, entry.original)}, wanted {_shown(knob, entry.wanted)}"
    if now != entry.wanted:
        text += f", now {'gone' if now is None else _shown(knob, now)}"
    if entry.drifts and entry.drifted_ns is not None:
        ago_s = (ledgers.now_ns() - entry.drifted_ns) // 10**9
        times = f"{entry.drifts} times, last" if entry.drifts > 1 else "once,"
        text += f", turned by somebody else {times} {ago_s} s ago"
    return text + (f" ({entry.note})" if entry.note else "")


def _knob(key: str) -> Knob | None:
    try:
        return from_key(key)
    except ValueError:  # another version's
        return None


def _shown(knob: Knob | None, value: str) -> str:
    try:
        return (knob.shown(value) if knob else value) or "-"
    except (ValueError, LookupError, TypeError):  # a damaged journal's
        return value
