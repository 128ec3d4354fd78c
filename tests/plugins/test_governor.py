"""Frequency governors and energy preferences follow the claims of pinned and dedicated VMs, and go back."""

import pytest

from pxsched.host import frequency
from pxsched.ledger.file import Ledger
from pxsched.ledger.journal import NODE
from pxsched.node.reconcile import reconcile
from pxsched.placement.request import VmClass
from pxsched.plugins import governor
from pxsched.settings.policy import NodeSettings


@pytest.fixture
def settle(tree, views):
    """Reconciles the node for these claims, as a pass does."""
    tree.put("run/pxsched/.keep", "")
    ledger = Ledger()

    def act(*claims, **settings):
        host = views.host(*claims, settings=NodeSettings(**settings))
        policies = frequency.read(tree.root, governor.cpus(host.claims))
        host = views.host(*claims, settings=NodeSettings(**settings), frequency=policies)
        return reconcile(tree.root, ledger, governor.of_node(host), [NODE])

    act.ledger = ledger
    return act


def test_the_policies_of_a_vms_cpus_are_governed_as_it_wishes(tree, views, settle):
    settle(views.claim(100, "2-4", governor="performance"))
    assert [tree.governor(policy) for policy in (0, 2, 4, 6)] == [
        "schedutil", "performance", "performance", "schedutil"]  # fmt: skip


def test_cpus_that_share_a_policy_are_one_knob(tree, views):
    tree.policy(0, tuple(range(8)))
    claim = views.claim(100, "2,3,5", governor="performance")
    host = views.host(claim, frequency=frequency.read(tree.root, governor.cpus({100: claim})))
    assert views.wants(governor.of_node(host)) == {"governor:0": "performance"}


def test_when_the_vm_leaves_everything_is_as_it_was(tree, views, settle):
    before = tree.content()
    settle(views.claim(100, "2-3", governor="performance", energy="performance"))
    assert tree.content() != before
    settle()
    assert tree.content() == before
    assert not settle.ledger.journal


def test_the_most_performant_wish_wins_and_falls_back(tree, views, settle):
    slow = views.claim(100, "2", governor="powersave", energy="power")
    fast = views.claim(101, "3", governor="performance", energy="performance")
    settle(slow)
    assert (tree.governor(2), tree.preference(2)) == ("powersave", "power")
    settle(slow, fast)
    assert (tree.governor(2), tree.preference(2)) == ("performance", "performance")
    settle(slow)
    assert (tree.governor(2), tree.preference(2)) == ("powersave", "power")
    settle()
    assert (tree.governor(2), tree.preference(2)) == ("schedutil", "balance_performance")


def test_what_is_more_performant_is_no_matter_of_the_alphabet(tree, views, settle):
    tree.policy(2, (2, 3), governors="powersave schedutil")
    settle(views.claim(100, "2", governor="powersave"), views.claim(101, "3", governor="schedutil"))
    assert tree.governor(2) == "schedutil"


def test_the_admins_free_governor_is_what_cpus_are_given_back_with(tree, views, settle):
    settle(views.claim(100, "2", governor="performance"), governor_free="powersave")
    settle(governor_free="powersave")
    assert tree.governor(2) == "powersave"


def test_the_free_governor_counts_even_if_the_busy_one_was_there_already(tree, views, settle):
    tree.policy(2, (2, 3), governor="performance")
    settle(views.claim(100, "2", governor="performance"), governor_free="powersave")
    settle(governor_free="powersave")
    assert tree.governor(2) == "powersave"


def test_a_free_governor_that_is_not_available_is_not_tried(tree, views, settle):
    settle(views.claim(100, "2", governor="performance"), governor_free="ondemand")
    settle(governor_free="ondemand")
    assert tree.governor(2) == "schedutil"


def test_an_unavailable_governor_is_said_once_and_nothing_breaks(tree, views, settle):
    claims = views.claim(100, "2", governor="ondemand"), views.claim(101, "4", governor="performance")
    first, second = settle(*claims), settle(*claims)
    assert len(first.failed) == 1
    assert "available are performance schedutil powersave" in first.failed[0]
    assert second.failed == []
    assert (tree.governor(2), tree.governor(4)) == ("schedutil", "performance")
    settle()
    assert tree.governor(2) == "schedutil"
    assert not settle.ledger.journal


def test_what_is_available_is_asked_of_each_policy(tree, views, settle):
    tree.policy(4, (4, 5), governors="performance powersave", governor="powersave")
    settle(views.claim(100, "2,4", governor="schedutil"), views.claim(101, "5", governor="powersave"))
    assert (tree.governor(2), tree.governor(4)) == ("schedutil", "powersave")


def test_a_preference_that_performance_forced_is_put_back_with_the_governor(tree, views, settle):
    """amd-pstate before Linux 6.14 leaves it at `performance`."""
    settle(views.claim(100, "2", governor="performance"))
    tree.put("sys/devices/system/cpu/cpufreq/policy2/energy_performance_preference", "performance")
    settle()
    assert (tree.governor(2), tree.preference(2)) == ("schedutil", "balance_performance")


def test_drift_is_turned_back_and_the_original_kept(tree, views, settle):
    claim = views.claim(100, "2", governor="performance")
    settle(claim)
    tree.put("sys/devices/system/cpu/cpufreq/policy2/scaling_governor", "powersave")
    report = settle(claim)
    assert [turn.drifted for turn in report.turned] == [True]
    settle()
    assert tree.governor(2) == "schedutil"


@pytest.mark.parametrize("vm_class", [VmClass.SHARED, VmClass.CONSTRAINED])
def test_vms_that_float_wish_nothing(tree, views, settle, vm_class):
    settle(views.claim(100, "2-3", vm_class, governor="performance"))
    assert tree.governor(2) == "schedutil"


def test_without_wishes_nothing_is_read(views):
    assert governor.cpus({100: views.claim(100, "2-3")}) == frozenset()


def test_a_machine_without_frequencies_is_left_alone(tree, views, settle):
    for cpu in range(8):
        (tree.base / f"sys/devices/system/cpu/cpu{cpu}/cpufreq").unlink()
    assert settle(views.claim(100, "2", governor="performance")).failed == []
