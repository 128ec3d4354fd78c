"""An admin is told once of what he should know, by a mail that nobody else can have a say in."""

import base64
import email
import email.policy
import errno
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pxsched import lock
from pxsched.ledger.journal import NODE, Entry
from pxsched.monitor import events, mail, notices
from pxsched.monitor.events import LASTING_S, Event
from pxsched.monitor.notices import AWAY_S, QUIET_S, Notices
from pxsched.monitor.refusals import Refused
from pxsched.root import Root

S = 10**9
NOW_NS = 100_000 * S


def entry(
    owner: int = 100, *, plugin: str = "vcpu", note: str = "", drifts: int = 0, ago_s: int = 5
) -> Entry:
    drifted_ns = NOW_NS - ago_s * S if drifts else None
    return Entry(owner, plugin, "0-7", "3", 0, drifted_ns=drifted_ns, drifts=drifts, note=note)


def found(entries=None, unplaced=None, refused=None) -> dict[str, str]:
    all_of_them = events.find(entries or {}, unplaced or {}, refused or {}, "the {}".format, NOW_NS)
    return {event.key: event.text for event in all_of_them}


# Which events there are


def test_a_healthy_node_has_nothing_to_tell():
    assert found({"a": entry(), "b": entry(NODE)}) == {}


def test_what_is_refused_is_told_with_its_reason():
    assert found(unplaced={101: "no room"}, refused={100: Refused(1, "no room"), 102: Refused(3)}) == {
        "strict 100": "VM 100 is strict and was refused its start: no room",
        "strict 102": "VM 102 is strict and was refused its start (refused 3 times since the node booted)",
        "unplaced 101": "VM 101 has no place: no room",
    }


def test_knobs_of_a_vm_and_plugin_are_one_event_however_many_they_are():
    noted = {key: entry(note="not permitted") for key in ("a", "b", "c")}
    assert found({**noted, "d": entry(NODE, plugin="governor", note="busy")}) == {
        "untaken 100 vcpu": "VM 100: the a is not as wanted: not permitted, and 2 more like it",
        "untaken 0 governor": "this node: the d is not as wanted: busy",
    }


@pytest.mark.parametrize(("drifts", "ago_s", "told"), [(2, 5, False), (3, 5, True), (9, 3599, True),
                                                       (9, 3601, False)])  # fmt: skip
def test_drift_that_goes_on_is_told_and_not_what_somebody_turned_once(drifts, ago_s, told):
    said = found({"a": entry(drifts=drifts, ago_s=ago_s)})
    text = f"VM 100: the a was turned by somebody else {drifts} times"
    assert said == ({"drifting 100 vcpu": text} if told else {})


# Which of them are news


class Passes:
    """Passes of a timer, each with the events it finds; `told` are those that were sent at each time."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.told: list[tuple[float, str]] = []
        self.broken = False

    def at(self, now_s: float, *seen: Event) -> str:
        def send(lines: list[str]) -> None:
            if self.broken:
                raise OSError(errno.EIO, "no")
            self.told += [(now_s, line) for line in lines]

        return notices.tell(self.root, list(seen), now_s, send)


@pytest.fixture
def passes(tmp_path: Path) -> Passes:
    (tmp_path / "run/pxsched").mkdir(parents=True)
    return Passes(Root(str(tmp_path)))


A, B = Event("a", "A"), Event("b", "B")


def test_what_is_so_for_days_is_told_once(passes):
    for now_s in range(0, 200_000, 1000):
        passes.at(now_s, A)
    assert passes.told == [(0, "A")]


def test_what_was_away_for_an_hour_and_comes_again_is_told_again(passes):
    for now_s in (0, AWAY_S, 3 * AWAY_S):
        passes.at(now_s, A)
        passes.at(now_s + 10)
    assert passes.told == [(0, "A"), (3 * AWAY_S, "A")]


def test_what_is_news_soon_after_a_message_waits_for_the_next(passes):
    for now_s in range(0, 2000, 10):
        passes.at(now_s, A, *([B] if now_s > 20 else []))
    assert passes.told == [(0, "A"), (QUIET_S, "B")]


def test_what_happens_again_and_again_is_one_event(passes):
    for times in range(1, 1000):  # HA tries to start a VM every minute
        passes.at(times * 60, Event("strict", f"refused {times}", times))
    assert passes.told == [(60, "refused 1")]


def test_what_happened_once_is_no_news_however_long_it_is_known(passes):
    for now_s in range(0, 100_000, 1000):
        passes.at(now_s, Event("strict", "refused", 1))
    passes.at(100_000, Event("strict", "refused again", 2))
    assert passes.told == [(0, "refused"), (100_000, "refused again")]


def test_what_is_over_in_less_than_a_minute_is_not_told(passes):
    short = Event("a", "A", lasting_s=LASTING_S)
    for now_s in (0, 10, 20, 400, 410, 420):
        passes.at(now_s, short)
        passes.at(now_s + 5)
    assert passes.told == []
    for now_s in range(1000, 1200, 10):
        passes.at(now_s, short)
    assert passes.told == [(1000 + LASTING_S, "A")]


def test_what_could_not_be_sent_is_said_and_tried_again_later(passes):
    passes.broken = True
    assert passes.at(0, A) == "no mail could be sent: no"
    assert [passes.at(now_s, A) for now_s in range(10, 600, 10)] == [""] * 59
    passes.broken = False
    passes.at(QUIET_S, A)
    passes.at(QUIET_S + 10, A)
    assert passes.told == [(QUIET_S, "A")]


def test_what_cannot_be_remembered_is_not_sent_at_every_pass(passes, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(notices.state, "save", full)
    for now_s in range(0, 100, 10):
        assert "is told nobody" in passes.at(now_s, A)
    assert passes.told == []


def test_while_one_process_sends_another_one_neither_waits_nor_sends(passes):
    with lock.held(passes.root, notices.LOCK, patience_s=0):
        assert passes.at(0, A) == ""
    passes.at(10, A)
    assert passes.told == [(10, "A")]


@pytest.mark.parametrize("damaged", ["", "[]", "[1, {}, 2]", '[null, {"a": [1, 2]}]', '[-1, {}]', "[" * 9999])
def test_a_damaged_memory_begins_anew(passes, damaged):
    Path(passes.root.path(notices.FILE)).write_text(damaged)
    passes.at(5, A)
    passes.at(15, A)
    assert passes.told == [(5, "A")]


LASTING = st.sampled_from([0.0, LASTING_S])
EVENTS = st.builds(Event, st.sampled_from("abc"), st.just("x"), st.integers(0, 3), LASTING)


@given(st.lists(st.tuples(st.integers(1, 3000), st.lists(EVENTS, unique_by=lambda event: event.key))))
def test_whatever_comes_no_two_messages_are_nearer_than_ten_minutes(steps):
    known, now_s, sent = Notices(), 0.0, []
    for step_s, seen in steps:
        now_s += step_s
        known = notices.seen(known, seen, now_s)
        if fresh := notices.news(known, seen, now_s):
            known = notices.tried(known, fresh, now_s, sent=True)
            sent.append(now_s)
        assert Notices.from_json(known.to_json()) == known
    assert all(later - earlier >= QUIET_S for earlier, later in pairwise(sent))


# What the mail says


def read(lines: list[str], node: str = "pve1") -> email.message.EmailMessage:
    made = email.message_from_bytes(mail.message(node, lines), policy=email.policy.default)
    assert isinstance(made, email.message.EmailMessage)
    return made


def test_a_mail_has_a_line_for_each_event_and_says_how_to_have_no_more():
    made = read(["VM 100 has no place: no room", "VM 101: über"])
    assert made["Subject"] == "pxsched on pve1: 2 things to look at"
    assert (made["To"], made["Auto-Submitted"]) == ("root", "auto-generated")
    body = made.get_content().splitlines()
    assert body[:3] == ["VM 100 has no place: no room", "VM 101: über", ""]
    assert 'notify = "none" in [node]' in made.get_content()


def test_a_tenants_words_are_a_line_of_the_mail_and_nothing_else():
    evil = "VM 100: x\r\nTo: tenant@example.com\r\n\r\n.\nMAIL FROM\x1b[2J\u2028\x00"
    made = read([evil], node="pve1\nBcc: all")
    assert [*made] == ["From", "To", "Subject", "Auto-Submitted", "Content-Type", "Content-Transfer-Encoding",
                       "MIME-Version"]  # fmt: skip
    assert made["To"] == "root" and made["Subject"] == "pxsched on pve1?Bcc: all: something to look at"
    first, second, *_ = made.get_content().split("\n")
    assert first == "VM 100: x??To: tenant@example.com????.?MAIL FROM?[2J??" and second == ""


def test_a_mail_has_an_end():
    made = mail.message("p" * 5000, ["\U0001f600" * 10_000] * 10_000)
    assert len(base64.b64encode(made)) < 100_000, "it is one argument of systemd-run's: 128 KiB at most"
    assert "and 9960 more" in email.message_from_bytes(made, policy=email.policy.default).get_content()
