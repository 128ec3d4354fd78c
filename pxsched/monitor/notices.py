"""Which events are news, so that each is told once and not at every pass.

An event is over when it was away for an hour; when it comes again after that it is another one. All that is
news goes into one message, and there is at most one message in ten minutes: what is news meanwhile waits for
the next, if it is still so then. What is known is kept in /run/pxsched from pass to pass, until a boot.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from pxsched import lock, state, stored
from pxsched.errors import UserError
from pxsched.knobs import words
from pxsched.ledger import file as ledgers
from pxsched.lock import Locked
from pxsched.monitor import mail, refusals
from pxsched.monitor.events import Event, find
from pxsched.node.sighting import Node
from pxsched.root import Root
from pxsched.value import NOTHING, Value, items, replace

FILE, LOCK = "run/pxsched/notices.json", "run/pxsched/notices.lock"
AWAY_S = 3600.0
QUIET_S = 600.0


class Known(Value):
    """One event. since_s, seen_s: when it began and was last so. times: how often it had happened by then."""

    since_s: float
    seen_s: float
    times: int
    told: bool

    def to_json(self) -> list[object]:
        return [one for _, one in items(self)]

    @classmethod
    def from_json(cls, value: object) -> "Known":
        """The same again. Raises Damaged."""
        since_s, seen_s, times, told = stored.items(value, 4)
        since_s, seen_s = stored.number(since_s), stored.number(seen_s)
        return cls(since_s, seen_s, stored.integer(times), stored.truth(told))


class Notices(Value):
    """known: by key. tried_s: when a message was last sent, or could not be; None: never."""

    known: Mapping[str, Known] = NOTHING
    tried_s: float | None = None

    def to_json(self) -> list[object]:
        return [self.tried_s, {key: known.to_json() for key, known in self.known.items()}]

    @classmethod
    def from_json(cls, value: object) -> "Notices":
        """The same again. Raises Damaged."""
        tried_s, known = stored.pair(value)
        found = {key: Known.from_json(one) for key, one in stored.table(known).items()}
        return cls(found, stored.maybe(stored.number, tried_s))


def seen(before: Notices, events: Iterable[Event], now_s: float) -> Notices:
    """What is known once these were seen. now_s: seconds since boot."""
    known = {key: one for key, one in before.known.items() if one.told and 0 <= now_s - one.seen_s <= AWAY_S}
    for event in events:
        one = before.known.get(event.key)
        if one is not None and event.times and event.times == one.times:
            known[event.key] = one  # it has not happened again
        elif one is None or not 0 <= now_s - one.seen_s <= AWAY_S:
            known[event.key] = Known(now_s, now_s, event.times, told=False)
        else:
            known[event.key] = replace(one, seen_s=now_s, times=event.times)
    return replace(before, known=known)


def news(notices: Notices, events: Iterable[Event], now_s: float) -> list[Event]:
    """What is to be told now; nothing while the last message is too near."""
    if notices.tried_s is not None and 0 <= now_s - notices.tried_s < QUIET_S:
        return []
    return [
        event
        for event in events
        if not notices.known[event.key].told and now_s - notices.known[event.key].since_s >= event.lasting_s
    ]


def tried(notices: Notices, events: Iterable[Event], now_s: float, *, sent: bool) -> Notices:
    """What is known after a message of these; one that could not be sent is tried again when it may be."""
    told = {event.key: replace(notices.known[event.key], told=True) for event in events} if sent else {}
    return Notices({**notices.known, **told}, now_s)


def tell(root: Root, events: list[Event], now_s: float, send: Callable[[list[str]], None]) -> str:
    """Sends what is news. Returns what is to be said: why it could not be sent, or nothing.

    send: is given the lines; raises OSError. Meanwhile another process that has something to tell leaves it
    to its next pass. Raises UserError where /run cannot be written.
    """
    try:
        with lock.held(root, LOCK, patience_s=0):
            return _tell(root, events, now_s, send)
    except Locked:
        return ""


def _tell(root: Root, events: list[Event], now_s: float, send: Callable[[list[str]], None]) -> str:
    before = state.load(root, FILE, Notices.from_json, set_aside=False)[0] or Notices()
    now = seen(before, events, now_s)
    fresh = news(now, events, now_s)
    if not fresh:
        if now != before:
            with suppress(OSError):
                state.save(root, FILE, now.to_json())
        return ""
    try:  # before it is sent: what cannot be remembered would be sent at every pass
        state.save(root, FILE, tried(now, fresh, now_s, sent=True).to_json())
    except OSError as error:
        return f"what is new is told nobody, as /{FILE} cannot be written: {error.strerror}"
    try:
        send([event.text for event in fresh])
    except OSError as error:
        with suppress(OSError):
            state.save(root, FILE, tried(now, fresh, now_s, sent=False).to_json())
        return f"no mail could be sent: {error.strerror or error}"
    return ""


def tick(node: Node, unplaced: Mapping[int, str]) -> str:
    """What the timer does after a pass. unplaced: the reason by VMID. Returns what `tell` does."""
    root, now_ns = node.root, ledgers.now_ns()
    label, send = partial(words.label, root), partial(mail.send, root, node.name)
    found = find(ledgers.peek(root).journal, unplaced, refusals.load(root), label, now_ns)
    try:
        return tell(root, found, now_ns / 1e9, send)
    except UserError as error:
        return error.message
