"""What guests say of their memory is bounded; what they are left with when their balloon is handed over."""

import json
import time

import pytest

from pxsched.guest import balloon, qmp
from pxsched.guest.balloon import MIB, Reading, needed_mib
from pxsched.root import Root


def stats(**more: object) -> dict[str, object]:
    said = {"stat-total-memory": 1024 * MIB, "stat-available-memory": 512 * MIB, **more}
    return {"last-update": 100, "stats": said}


@pytest.mark.parametrize("when", [10**400, -(10**400), 1 << 60, 0, True, 1.5, "now", None, [1]])
def test_a_time_that_makes_no_sense_is_none(when):
    assert balloon._reading(1 << 30, {**stats(), "last-update": when}, 101.0).age_s is None


@pytest.mark.parametrize("size", [10**400, 1 << 64, -1, 1.5, None, "much"])
def test_sizes_that_make_no_sense_are_none(size):
    assert balloon._reading(1 << 30, stats(**{"stat-total-memory": size}), 101.0).age_s is None
    assert balloon._reading(1 << 30, stats(**{"stat-swap-in": size}), 101.0).swapped_in_mib == 0


@pytest.mark.parametrize("line", [b"9" * 5000, b'{"return": 1e999}', b'{"return": NaN}', b"[" * 100_000])
def test_numbers_and_depths_without_end_are_no_qmp(line):
    conversation = object.__new__(qmp.Qmp)
    conversation._buffer = line + b"\n"
    with pytest.raises(qmp.QmpProtocol):
        conversation._receive(qmp.QmpBusy("late"))


def test_what_qemu_says_of_unsaid_statistics_is_read():
    conversation = object.__new__(qmp.Qmp)
    conversation._buffer = json.dumps({"return": {"stat-swap-in": (1 << 64) - 1}}).encode() + b"\n"
    assert conversation._receive(qmp.QmpBusy("late")) == {"return": {"stat-swap-in": (1 << 64) - 1}}


def test_guests_that_hang_do_not_keep_the_others_from_being_heard(monkeypatch):
    """More than are asked at the same time, and numbered before the one that answers."""
    hung = range(100, 150)

    def read(root, vmid, *, patience_s):
        if vmid in hung:
            time.sleep(patience_s)
            return "no answer"
        return Reading(1024.0)

    monkeypatch.setattr(balloon, "read", read)
    heard = set()
    for passed_us in range(0, 52, 13):
        monkeypatch.setattr(time, "monotonic_ns", lambda passed_us=passed_us: passed_us * 1000)
        found = balloon.read_all(Root("/"), [*hung, 150, 151], patience_s=0.1)
        heard |= {vmid for vmid, answer in found.items() if isinstance(answer, Reading)}
    assert heard == {150, 151}


# Handing over


def reading(actual_mib: float, used_mib: float, *, age_s: float | None = 1.0) -> Reading:
    return Reading(actual_mib, actual_mib, actual_mib - used_mib, age_s=age_s)


def test_a_guest_that_uses_much_is_not_sent_to_its_minimum():
    """384 MiB with 300 in use, and a minimum of 128: it was sent to 128, and its next fork killed it."""
    assert needed_mib(reading(384, 300), 128, 1024) == 600


def test_nothing_is_taken_from_a_guest():
    assert needed_mib(reading(900, 100), 128, 1024) == 900


def test_no_guest_gets_less_than_its_minimum_or_more_than_its_memory():
    assert needed_mib(reading(200, 10), 512, 2048) == 512
    assert needed_mib(reading(1000, 990), 512, 1024) == 1024


@pytest.mark.parametrize("age_s", [None, balloon.STALE_S + 1])
def test_a_guest_of_which_nothing_is_known_gets_all_it_may_have(age_s):
    assert needed_mib(reading(384, 300, age_s=age_s), 128, 1024) == 1024
