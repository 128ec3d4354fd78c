"""The ways to run a VM, and how the time of a proof is cut up."""

import json

import pytest

from pxsched.errors import UserError
from pxsched.guest.identity import Identity
from pxsched.proof import way as ways
from pxsched.proof.block import Block
from pxsched.proof.result import Result
from pxsched.proof.schedule import schedule
from pxsched.proof.statistics import FEWEST_ROUNDS
from pxsched.proof.way import Kind, Way, parse, parse_all, settings_of
from pxsched.settings.policy import EmulatorPlace, Fair, MemoryMode, Policy, Wish
from pxsched.stored import Damaged
from pxsched.value import replace


def test_a_way_is_a_kind_with_cpus_and_features():
    assert parse("home") == Way("home", Kind.HOME)
    assert parse("home@0-1,4") == Way("home@0-1,4", Kind.HOME, frozenset((0, 1, 4)))
    assert parse("dedicated+governor-emulator").features == (("governor", True), ("emulator", False))


@pytest.mark.parametrize(
    ("name", "said"),
    [("hme", "did you mean 'home'"), ("stock@0", "only home and dedicated"), ("home+governer", "'governor'"),
     ("home@", "no way"), ("", "no way"), ("home; rm", "no way"), ("home@3-1", "3-1")],
)  # fmt: skip
def test_what_is_no_way_is_said_with_the_nearest_one(name, said):
    with pytest.raises(UserError, match=said):
        parse(name)


@pytest.mark.parametrize("names", ["home", "home home", "home@0 home@1 home@2 home@3 stock"])
def test_two_to_four_different_ways_are_compared(names):
    with pytest.raises(UserError):
        parse_all(names.split())


def made(name: str, before: Policy = Policy(), **said) -> Policy:
    return ways.policy(parse(name), before, **{"exclusive": False, "move_memory": False, **said})


def test_as_proxmox_starts_it_no_plugin_has_anything_to_say_but_the_memorys():
    tuned = Policy(memory=MemoryMode.STRICT, fifo=3, governor="performance", halt_poll_ns=0)
    found = made("stock", tuned)
    assert (found.vcpu, found.interrupts, found.nic, found.isolation) == (False,) * 4
    assert (found.emulator, found.vhost, found.fair) == (EmulatorPlace.OFF, EmulatorPlace.OFF, Fair.OFF)
    assert (found.fifo, found.governor, found.halt_poll_ns) == (0, "", -1)
    assert found.memory is MemoryMode.STRICT
    assert made("stock", tuned, move_memory=True).memory is MemoryMode.OFF


def test_the_balancer_moves_no_vm_while_it_is_measured():
    assert all(made(name).fair is Fair.OFF for name in ("stock", "home", "now"))
    assert made("dedicated").wish is Wish.DEDICATED


def test_features_are_added_to_and_taken_from_a_way():
    assert made("home-emulator").emulator is EmulatorPlace.OFF
    assert made("stock+emulator").emulator is EmulatorPlace.HOUSEKEEPING
    assert made("dedicated+governor").governor == "performance"
    assert made("home-interrupts").interrupts is False


def test_what_is_kept_of_a_way_is_what_differs_from_the_settings():
    assert settings_of(parse("home"), Policy(), exclusive=False) == {}
    assert settings_of(parse("now"), Policy(), exclusive=False) == {}
    assert settings_of(parse("dedicated"), Policy(), exclusive=False) == {"wish": Wish.DEDICATED}
    assert settings_of(parse("home@0-1"), Policy(), exclusive=False) == {"cpus": "0-1"}
    stock = settings_of(parse("stock"), Policy(), exclusive=False)
    assert stock["vcpu"] is False and stock["fair"] is Fair.OFF
    assert replace(Policy(), **stock) == made("stock")


def test_ten_minutes_are_ten_rounds_of_two_ways():
    found = schedule(600, 2)
    assert (found.rounds, found.blocks) == (10, 40)
    assert (found.settle_s, found.block_s) == (3, 12)
    assert found.lasts_s == pytest.approx(600)


def test_more_ways_make_shorter_blocks_rather_than_too_few_rounds():
    found = schedule(600, 4)
    assert found.rounds == FEWEST_ROUNDS and found.lasts_s == pytest.approx(600)


def test_too_little_time_is_refused_with_what_it_takes():
    with pytest.raises(UserError, match="at least 16 s"):
        schedule(10, 2)


RESULT = Result(
    100, Identity("a", "b", "1"), ("stock", "home"), {"stock": "on CPUs 0-3", "home": "on CPUs 0-1"},
    {"stock": {"vcpu": False, "emulator": EmulatorPlace.OFF, "fifo": 0}, "home": {}}, 1e9, 12.0, 3.0,
    (Block(0, "home", 1e9, 12.0, {"waiting": 1.0}),), {"steal": "no agent"}, "it has stopped", False, "home",
)  # fmt: skip


def test_a_result_comes_back_as_it_was_written():
    assert Result.from_json(json.loads(json.dumps(RESULT.to_json()))) == RESULT


@pytest.mark.parametrize(
    "change", [{"vmid": 5}, {"ways": "x"}, {"blocks": [1]}, {"settings": {"a": {"b": []}}}, {"quiet": 1}]
)
def test_a_damaged_result_is_none(change):
    with pytest.raises(Damaged):
        Result.from_json({**RESULT.to_json(), **change})
