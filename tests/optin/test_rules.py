"""Which VMs are opted in, which are passed over, which are refused."""

import pytest

from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.optin import rules
from pxsched.optin.rules import Outcome, Selection
from pxsched.proxmox.cluster import Guest

OURS = "local:snippets/pxsched"


def guest(vmid=100, *, node="pve1", ha=False, **options):
    return Guest(vmid, node, options, ha=ha)


def enable(vm, *, chain=False, by_number=True):
    return rules.enable(vm, OURS, chain=chain, by_number=by_number)


def test_a_vm_without_hookscript_gets_ours():
    step = enable(guest())
    assert (step.outcome, step.want, step.chain) == (Outcome.CHANGE, OURS, "")


@pytest.mark.parametrize("volume", [OURS, "nas:snippets/pxsched"])
def test_a_vm_that_has_ours_on_whichever_storage_is_left_as_it_is(volume):
    assert enable(guest(hookscript=volume)).outcome is Outcome.ALREADY


@pytest.mark.parametrize("volume", ["a:snippets/mine.pl", "a:snippets/pxsched.old", "a:snippets/y/pxsched"])
def test_another_hookscript_is_never_overwritten_unasked(volume):
    step = enable(guest(hookscript=volume))
    assert step.outcome is Outcome.REFUSE
    assert "--chain" in step.notes[0]


def test_with_chain_the_other_script_is_kept_beside_ours():
    step = enable(guest(hookscript="local:snippets/mine.pl"), chain=True)
    assert (step.outcome, step.want, step.chain) == (Outcome.CHANGE, OURS, "local:snippets/mine.pl")


def test_templates_are_passed_over_unless_named():
    template = guest(template="1")
    assert enable(template, by_number=False).outcome is Outcome.SKIP
    step = enable(template)
    assert step.outcome is Outcome.CHANGE
    assert "clones" in step.notes[0]


def test_an_ha_resource_is_enabled_with_a_word_about_its_other_nodes():
    step = enable(guest(ha=True))
    assert step.outcome is Outcome.CHANGE
    assert "every node" in step.notes[0]


def test_karpenters_description_of_a_node_is_no_vm_to_us():
    assert enable(guest(name="node-capacity", tags="karpenter")).outcome is Outcome.SKIP


def test_disabling_removes_ours():
    step = rules.disable(guest(hookscript=OURS), None)
    assert (step.outcome, step.want) == (Outcome.CHANGE, "")


def test_disabling_puts_the_vms_own_script_back():
    step = rules.disable(guest(hookscript=OURS), Entry(100, None, "local:snippets/mine.pl"))
    assert step.want == "local:snippets/mine.pl"


@pytest.mark.parametrize("options", [{}, {"hookscript": "local:snippets/mine.pl"}])
def test_disabling_leaves_vms_alone_that_are_not_opted_in(options):
    assert rules.disable(guest(**options), None).outcome is Outcome.ALREADY


GUESTS = [guest(100, tags="db;prod"), guest(101, tags="web"), guest(102, node="pve2", tags="db")]


def test_numbers_reach_vms_of_other_nodes_and_tell_what_is_missing():
    found, missing = rules.select(GUESTS, Selection((102, 999, 100), node="pve1"))
    assert [vm.vmid for vm in found] == [102, 100]
    assert missing == [999]


def test_all_means_all_of_the_node():
    found, _ = rules.select(GUESTS, Selection(everyone=True, node="pve1"))
    assert [vm.vmid for vm in found] == [100, 101]


def test_all_of_every_node_when_no_node_is_ours():
    found, _ = rules.select(GUESTS, Selection(everyone=True, node=None))
    assert len(found) == 3


def test_a_tag_is_matched_as_a_whole():
    found, _ = rules.select(GUESTS, Selection(tag="db", node="pve1"))
    assert [vm.vmid for vm in found] == [100]


def test_a_tag_that_no_vm_has_is_an_error_and_the_nearest_is_named():
    with pytest.raises(UserError, match=r"no VM on node pve1 has the tag 'prd'; did you mean 'prod'\?"):
        rules.select(GUESTS, Selection(tag="prd", node="pve1"))
    with pytest.raises(UserError, match=r"no VM has the tag 'zz'$"):
        rules.select(GUESTS, Selection(tag="zz"))


def test_naming_no_vm_is_an_error():
    with pytest.raises(UserError, match=r"no VM is named"):
        rules.select(GUESTS, Selection())


def test_disabling_gives_the_balloon_back_unless_somebody_else_decided_meanwhile():
    before = Entry(100, None, shares="2000")
    assert rules.disable(guest(hookscript=OURS, shares="0"), before).shares == "2000"
    assert rules.disable(guest(hookscript=OURS, shares="500"), before).shares is None


def test_a_node_of_sixteen_vms_is_opted_in_with_one_call_to_proxmox_a_vm(node, pxsched, monkeypatch):
    calls = []

    class Recorder:
        def call(self, method, path, params=None):
            calls.append(path)
            node.vm(int(path.split("/")[3]), "".join(f"{key}: {value}\n" for key, value in params.items()))

    monkeypatch.setattr("pxsched.sandbox.stand_in.local_api", lambda _root: Recorder())
    node.snippet("pxsched")
    for vmid in range(100, 116):
        node.vm(vmid)
    assert pxsched(node.root, "enable", "--all")[0] == 0
    assert sorted(calls) == [f"nodes/pve1/qemu/{vmid}/config" for vmid in range(100, 116)]
