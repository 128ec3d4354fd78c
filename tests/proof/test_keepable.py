"""Which way a proof may write into the settings."""

from random import Random

import pytest

from pxsched.commands.proving import keepable
from pxsched.guest.identity import Identity
from pxsched.proof.result import Result

from .series import run, steady

STOCK, OWN = {"vcpu": False}, {"wish": "dedicated"}


def result(effects, settings, rounds=10, stopped="") -> Result:
    blocks = tuple(run(Random(11), steady, effects, rounds))
    places = dict.fromkeys(effects, "")
    return Result(100, Identity(), tuple(effects), places, settings, 1e9, 12.0, 3.0, blocks, stopped=stopped)


def test_what_is_better_than_the_settings_beyond_the_interval_is_kept_with_the_reason():
    effects = {"home": 1.0, "dedicated": 1.2}
    way, why = keepable(result(effects, {"home": {}, "dedicated": OWN}))
    assert way == "dedicated"
    assert why.startswith("dedicated against home: ") and "10 rounds of blocks of 12 s" in why


def test_what_harms_is_given_up_for_what_is_better():
    way, why = keepable(result({"stock": 1.2, "home": 1.0}, {"stock": STOCK, "home": {}}))
    assert way == "stock"
    assert why.startswith("home against stock: ")


@pytest.mark.parametrize(
    ("effects", "settings", "more"),
    [
        ({"stock": 1.0, "home": 1.2}, {"stock": STOCK, "home": {}}, {}),  # the settings say it
        ({"stock": 1.0, "home": 1.0}, {"stock": STOCK, "home": {}}, {}),  # no better, which is no reason
        ({"home": 1.0, "dedicated": 1.2}, {"home": {}, "dedicated": OWN}, {"rounds": 7}),
        ({"home": 1.0, "dedicated": 1.2}, {"home": {}, "dedicated": OWN}, {"stopped": "it ended"}),
        ({"stock": 1.0, "dedicated": 1.0}, {"stock": STOCK, "dedicated": OWN}, {}),
    ],
)
def test_all_else_changes_no_settings(effects, settings, more):
    assert keepable(result(effects, settings, **more)) is None
