"""Whose balloon is taken over from Proxmox: only where it will be served, and with a way back."""

import pytest

from pxsched.chain import entry as entries
from pxsched.chain.entry import Entry
from pxsched.guest.balloon import Silence
from pxsched.optin import apply as applying
from pxsched.optin import rules, text
from pxsched.optin.rules import Outcome
from pxsched.proxmox.cluster import Guest

OURS = "local:snippets/pxsched"


def guest(**options):
    return Guest(100, "pve1", {"memory": "4096", **options})


def enable(vm, *, balloon=True, by_number=True, **more):
    return rules.enable(vm, OURS, chain=False, by_number=by_number, balloon=balloon, **more)


def test_a_balloon_that_proxmox_moves_is_told_and_taken_over_only_when_asked():
    vm = guest(balloon="512")
    assert "--balloon" in enable(vm, balloon=False).notes[0]
    assert enable(vm, balloon=False).shares is None
    assert enable(vm).shares == "0"


def test_a_balloon_that_proxmox_leaves_alone_needs_no_taking_over():
    step = enable(guest(balloon="512", shares="0"))
    assert (step.shares, step.balloon, step.refused, step.notes) == (None, None, "", ())


@pytest.mark.parametrize("mine", [{}, {"hookscript": OURS}])
def test_of_one_that_has_no_shares_already_it_is_said_why_nothing_is_taken(mine):
    vm = guest(balloon="512", shares="0", hostpci0="0000:01:00.0", **mine)
    step = enable(vm)
    assert (step.shares, step.refused) == (None, "")
    assert step.notes == ("nothing is taken from it: its memory is pinned by passed-through devices",)
    assert enable(vm, balloon=False).notes == ()
    quiet = guest(balloon="512", shares="0", **mine)
    assert Silence.NO_DRIVER in enable(quiet, unserved=Silence.NO_DRIVER.value).notes[0]


@pytest.mark.parametrize("mine", [{}, {"hookscript": OURS}])
@pytest.mark.parametrize("options", [{}, {"balloon": "0"}, {"balloon": "4096"}])
def test_who_gives_us_a_balloon_that_cannot_move_is_told(options, mine):
    vm = guest(**options, **mine)
    step = enable(vm)
    assert (step.shares, step.balloon, step.refused) == (None, None, "")
    assert step.notes[0].startswith("nothing will move: ")
    assert enable(vm, balloon=False).notes == ()


@pytest.mark.parametrize(
    ("options", "more", "reason"),
    [
        ({"hostpci0": "0000:01:00.0"}, {}, "pinned by passed-through devices"),
        ({"hostpci3": "mapping=gpu"}, {}, "pinned by passed-through devices"),
        ({"hugepages": "2"}, {}, "huge pages"),
        ({"hugepages": "any"}, {}, "huge pages"),
        ({"args": "-device vfio-pci,host=01:00.0"}, {}, "pinned by passed-through devices"),
        ({"amd-sev": "type=snp"}, {}, "encrypted"),
        ({"intel-tdx": "type=tdx"}, {}, "encrypted"),
        *(({}, {"unserved": silence.value}, silence.value) for silence in Silence),
    ],
)
def test_what_will_not_be_served_is_not_taken_over_and_the_reason_is_said(options, more, reason):
    vm = guest(balloon="512", **options)
    step = enable(vm, **more)
    assert (step.outcome, step.shares) == (Outcome.CHANGE, None)  # our hookscript it gets
    assert reason in step.refused
    # Of many VMs that are meant together, it is no failure but a note.
    together = enable(vm, by_number=False, **more)
    assert together.refused == ""
    assert reason in together.notes[-1]
    if options:  # nor is it advised
        assert enable(vm, balloon=False).notes == ()


def test_a_policy_gives_a_minimum_to_vms_whose_balloon_is_all_their_memory():
    for options in ({}, {"balloon": "4096"}):
        step = enable(guest(**options), minimum_percent=25.0)
        assert (step.balloon, step.shares) == ("1024", "0")
        assert enable(guest(**options), balloon=False, minimum_percent=25.0).balloon is None
    assert enable(guest(balloon="512"), minimum_percent=25.0).balloon is None
    assert enable(guest(balloon="0"), minimum_percent=25.0).balloon is None


def test_of_a_vm_that_is_ours_only_what_changes_is_printed():
    step = enable(guest(hookscript=OURS), minimum_percent=25.0)
    assert list(text.told([step], {}, "enabled", dry_run=False)) == [
        "VM 100 on pve1: enabled: shares unset -> 0, balloon unset -> 1024"
    ]


def test_a_running_vm_with_shares_of_0_would_get_its_new_minimum_at_once_and_is_refused():
    running = Guest(100, "pve1", {"memory": "4096", "shares": "0"}, running=True)
    step = enable(running, minimum_percent=25.0)
    assert step.balloon is None
    assert "stop the VM first" in step.refused
    assert enable(guest(shares="0"), minimum_percent=25.0).balloon == "1024"


def test_disabling_puts_the_minimum_back_unless_somebody_else_decided_meanwhile():
    kept = Entry(100, None, None, "", entries.remember("1024", ""))
    vm = guest(hookscript=OURS, shares="0", balloon="1024")
    step = rules.disable(vm, kept)
    assert (step.balloon, step.shares) == ("", "")
    assert rules.disable(guest(hookscript=OURS, shares="0", balloon="2048"), kept).balloon is None
    back = Entry(100, None, None, "", entries.remember("1024", "4096"))
    assert rules.disable(vm, back).balloon == "4096"


def test_a_vm_that_nobody_serves_once_we_have_left_is_told():
    """A clone has the shares of 0 that its template was given, and nothing is remembered of it."""
    clone = guest(hookscript=OURS, shares="0", balloon="1024")
    assert "qm set 100 --delete shares" in rules.disable(clone, None).notes[0]
    assert rules.disable(clone, Entry(100, None, None, "")).notes == ()
    for options in ({"shares": "0"}, {"balloon": "1024"}, {"shares": "0", "balloon": "0"}):
        assert rules.disable(guest(hookscript=OURS, **options), None).notes == ()


def test_what_a_rollback_brings_back_can_be_undone_once_more():
    before = Entry(100, None, None, "700", "1024:")
    taken = {"hookscript": OURS, "shares": "0", "balloon": "1024"}
    with_snapshot = Guest(100, "pve1", {"memory": "4096", **taken}, snapshot_scripts={"one": OURS})
    entry = applying.remembered_from_now(rules.disable(with_snapshot, before), before)
    assert (entry.shares, entry.minimum) == ("700", "1024:")
    assert applying.remembered_from_now(rules.disable(guest(**taken), before), before) is None


@pytest.mark.parametrize(
    ("step", "shares", "minimum"),
    [({"shares": "0"}, "500", "1024:"), ({"balloon": "2048"}, "700", "2048:")],
    ids=["the minimum when only shares are set again", "the shares when only the minimum is"],
)
def test_taking_over_once_more_forgets_nothing_of_the_first_time(step, shares, minimum):
    before = Entry(100, None, None, "700", "1024:")
    vm = guest(hookscript=OURS, shares="500" if "shares" in step else "0", balloon="1024")
    entry = applying.remembered_from_now(rules.Step(vm, Outcome.CHANGE, OURS, **step), before)
    assert (entry.shares, entry.minimum) == (shares, minimum)


class Calls:
    def __init__(self):
        self.made = []

    def call(self, method, path, params):
        self.made.append(params)


@pytest.mark.parametrize(("before", "balloon"), [("", "1024"), ("0", "")])
def test_a_minimum_is_set_by_itself_and_before_the_shares(before, balloon):
    """With shares of 0 Proxmox tells a running guest its new minimum at once."""
    api = Calls()
    step = rules.Step(guest(), Outcome.CHANGE, OURS, "", "", (), balloon)
    applying._set(step, api, None)
    first, second = api.made
    assert first == ({"balloon": balloon} if balloon else {"delete": "balloon"})
    assert second == {"hookscript": OURS, "delete": "shares"}
