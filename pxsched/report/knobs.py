"""Turned knobs for a person: which, what they were, what they should be and what they are."""

from collections.abc import Mapping

from pxsched.knobs.words import label, shown
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
    return f"{label(root, key)}: {'-' if now is None else shown(key, now)} -> {shown(key, want)}"


def _line(root: Root, key: str, entry: Entry, now: str | None) -> str:
    text = f"{label(root, key)}: was {shown(key, entry.original)}, wanted {shown(key, entry.wanted)}"
    if now != entry.wanted:
        text += f", now {'gone' if now is None else shown(key, now)}"
    if entry.drifts and entry.drifted_ns is not None:
        ago_s = (ledgers.now_ns() - entry.drifted_ns) // 10**9
        times = f"{entry.drifts} times, last" if entry.drifts > 1 else "once,"
        text += f", turned by somebody else {times} {ago_s} s ago"
    return text + (f" ({entry.note})" if entry.note else "")
