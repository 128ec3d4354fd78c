"""HA's rules that name where a guest fits: written only where they move nobody and break no other rule."""

import json

import pytest

from pxsched.cluster import commands, ha, rules
from pxsched.proxmox.api import ApiError, Method

OURS = "node-affinity: pxsched-vm-100\n\tresources vm:100\n\tnodes {nodes}\n\tcomment {comment}\n"


class Api:
    """Records what is written; version: of Proxmox VE."""

    def __init__(self) -> None:
        self.version, self.refuses = "9.0.3", ""
        self.writes = []

    def call(self, method, path, params=None):
        if method is Method.GET:
            return {"version": self.version}
        if self.refuses:
            raise ApiError(self.refuses, status=400)
        self.writes.append((method.name, path, dict(params or {})))
        return None


@pytest.fixture
def api(monkeypatch):
    found = Api()
    monkeypatch.setattr(commands, "local_api", lambda root: found)
    return found


@pytest.fixture
def cared(tmp_path, machines, request):
    """VM 100 has sixteen CPUs of its own on pve1; pve2 is too small for it, pve3 is not."""
    from tests.cluster.conftest import Cluster

    milan = machines / "pepc-milan0/root"
    cluster = Cluster(tmp_path, [milan, machines / "ghw-offlineCPUs/root", milan])
    cluster.settings('[vm.100]\nclass = "dedicated"\n')
    cluster.vm("pve1", 100, "cores: 16\n", running=True)
    cluster.vm("pve1", 101, "cores: 2\n", running=True)
    cluster.put("ha/resources.cfg", "vm: 100\n\nvm: 101\n")
    cluster.publish()
    return cluster


def test_a_guest_that_cares_gets_a_plain_rule_with_its_own_node_in_it(cared, run, api):
    code, out, _ = run(cared, "pve2", "cluster", "rules")
    assert code == 0 and api.writes == []
    said = "rule pxsched-vm-100 would be written: HA prefers pve1, pve3, and does not move it now"
    assert f"VM 100: {said} (it is dedicated)" in out
    assert "Proxmox takes no other node-affinity rule for it" in out and "101" not in out
    assert run(cared, "pve2", "cluster", "rules", "--apply")[0] == 0
    assert api.writes == [
        ("CREATE", "cluster/ha/rules", {"type": "node-affinity", "rule": "pxsched-vm-100",
         "resources": "vm:100", "nodes": "pve1,pve3", "comment": rules.COMMENT}),
    ]  # fmt: skip


def test_where_it_fits_everywhere_there_is_none(cared, run, api):
    cared.vm("pve1", 100, "cores: 1\nmemory: 16\n")
    cared.settings('[vm.100]\nclass = "dedicated"\n[node]\nhousekeeping = "0"\n')
    cared.publish()
    assert "VM 100: no rule (it fits on every node)" in run(cared, "pve1", "cluster", "rules")[1]


@pytest.mark.parametrize(
    "rule",
    [
        "node-affinity: mine\n\tresources vm:100\n\tnodes pve2\n",
        "resource-affinity: mine\n\tresources vm:100,vm:101\n\taffinity positive\n",
        "resource-affinity: mine\n\tresources vm:100,vm:101\n\taffinity negative\n",
    ],
)
def test_a_guest_of_a_users_rule_is_left_to_it(cared, run, api, rule):
    cared.put("ha/rules.cfg", rule)
    out = run(cared, "pve1", "cluster", "rules", "--apply")[1]
    assert "VM 100: no rule (it is in your rule mine)" in out and api.writes == []
    cared.put("ha/rules.cfg", rule + "\n" + OURS.format(nodes="pve1,pve3", comment=rules.COMMENT))
    run(cared, "pve1", "cluster", "rules", "--apply")
    assert api.writes == [("DELETE", "cluster/ha/rules/pxsched-vm-100", {})]


@pytest.mark.parametrize("kind", ["node-affinity", "resource-affinity"])
def test_a_users_disabled_rule_binds_nobody_and_keeps_its_place(cared, run, api, kind):
    """Beside one of ours it could not be enabled any more."""
    rule = f"{kind}: mine\n\tresources vm:100,vm:101\n\tnodes pve2\n\taffinity positive\n\tdisable 1\n"
    cared.put("ha/rules.cfg", rule)
    out = run(cared, "pve1", "cluster", "rules", "--apply")[1]
    assert "VM 100: no rule (it is in your rule mine, which is disabled)" in out and api.writes == []
    found = ha.read(cared.root("pve1"))
    assert found.against(100, "pve3", ["pve1", "pve2", "pve3"], {101: "pve2"}) == ""


def test_a_rule_of_ours_that_was_disabled_is_neither_doubled_nor_enabled_but_undone(cared, run, api):
    ours = OURS.format(nodes="pve1", comment=rules.COMMENT)
    cared.put("ha/rules.cfg", ours + "\tdisable 1\n")
    out = run(cared, "pve1", "cluster", "rules", "--apply")[1]
    assert "VM 100: no rule (you disabled pxsched-vm-100)" in out and api.writes == []
    run(cared, "pve1", "cluster", "rules", "--undo")
    assert api.writes == [("DELETE", "cluster/ha/rules/pxsched-vm-100", {})]


@pytest.mark.parametrize("words", ["--apply", "--undo"])
def test_a_rule_of_ours_that_names_another_guest_too_is_a_users(cared, run, api, words):
    ours = OURS.format(nodes="pve1", comment=rules.COMMENT).replace("vm:100", "vm:100,vm:101")
    cared.put("ha/rules.cfg", ours)
    assert run(cared, "pve1", "cluster", "rules", words)[0] == 0 and api.writes == []


def test_what_proxmox_ve_9_made_of_a_group_of_ours_is_ours(cared, run, api):
    made = "node-affinity: ha-group-pxsched-vm-100\n\tresources vm:100\n\tnodes pve1,pve3\n"
    cared.put("ha/rules.cfg", made + "\tcomment Generated from HA group\n")
    out = run(cared, "pve1", "cluster", "rules", "--apply")[1]
    assert "VM 100: rule ha-group-pxsched-vm-100 stays at pve1, pve3" in out and api.writes == []
    run(cared, "pve1", "cluster", "rules", "--undo")
    assert api.writes == [
        ("DELETE", "cluster/ha/rules/ha-group-pxsched-vm-100", {}),
        ("SET", "cluster/ha/resources/vm:100", {"delete": "failback"}),
    ]


def test_a_rule_is_changed_only_when_other_nodes_fit_for_hours(cared, run, api, monkeypatch):
    clock = 1_764_000_000
    monkeypatch.setattr(rules, "now_s", lambda: clock)

    def applied() -> list:
        api.writes.clear()
        run(cared, "pve1", "cluster", "rules", "--apply")
        return [params.get("nodes") for _, _, params in api.writes]

    cared.put("ha/rules.cfg", OURS.format(nodes="pve1", comment=rules.COMMENT))
    assert applied() == ["pve1"], "at first only the comment is another"
    comment = api.writes[0][2]["comment"]
    assert comment.endswith(" [since 1764000000: pve1,pve3]")
    cared.put("ha/rules.cfg", OURS.format(nodes="pve1", comment=comment))
    clock += rules.FOR_GOOD_S - 1
    assert applied() == []
    clock += 1
    assert applied() == ["pve1,pve3"] and api.writes[0][2]["comment"] == rules.COMMENT


def test_what_did_not_last_is_forgotten(cared, run, api):
    note = f"{rules.COMMENT} [since 1764000000: pve1]"
    cared.put("ha/rules.cfg", OURS.format(nodes="pve1,pve3", comment=note))
    run(cared, "pve1", "cluster", "rules", "--apply")
    assert [params["comment"] for _, _, params in api.writes] == [rules.COMMENT]


def test_undo_removes_ours_and_nothing_else(cared, run, api):
    mine = "node-affinity: pxsched-mine\n\tresources vm:101\n\tnodes pve1\n\tcomment my own\n"
    cared.put("ha/rules.cfg", mine + "\n" + OURS.format(nodes="pve1", comment=rules.COMMENT))
    assert run(cared, "pve1", "cluster", "rules", "--undo")[0] == 0
    assert api.writes == [("DELETE", "cluster/ha/rules/pxsched-vm-100", {})]


def test_proxmox_ve_8_has_groups(cared, run, api):
    api.version = "8.4.1"
    run(cared, "pve1", "cluster", "rules", "--apply")
    group = {"group": "pxsched-vm-100", "nofailback": "1", "nodes": "pve1,pve3", "comment": rules.COMMENT}
    assert api.writes == [
        ("CREATE", "cluster/ha/groups", group),
        ("SET", "cluster/ha/resources/vm:100", {"group": "pxsched-vm-100"}),
    ]
    text = "group: pxsched-vm-100\n\tnodes pve1,pve3\n\tnofailback 1\n\tcomment " + rules.COMMENT + "\n"
    cared.put("ha/groups.cfg", text)
    cared.put("ha/resources.cfg", "vm: 100\n\tgroup pxsched-vm-100\n")
    api.writes.clear()
    run(cared, "pve1", "cluster", "rules", "--undo")
    assert api.writes == [
        ("SET", "cluster/ha/resources/vm:100", {"delete": "group"}),
        ("DELETE", "cluster/ha/groups/pxsched-vm-100", {}),
    ]


def test_a_group_that_was_left_unbound_is_used_again_or_removed_alone(cared, run, api):
    """Such as when the second of two requests failed; the guest may be in a group of yours since."""
    api.version = "8.4.1"
    cared.put("ha/groups.cfg", "group: pxsched-vm-100\n\tnodes pve1\n\tcomment " + rules.COMMENT + "\n")
    run(cared, "pve1", "cluster", "rules", "--apply")
    assert [(method, path) for method, path, _ in api.writes] == [
        ("SET", "cluster/ha/groups/pxsched-vm-100"), ("SET", "cluster/ha/resources/vm:100"),
    ]  # fmt: skip
    api.writes.clear()
    run(cared, "pve1", "cluster", "rules", "--undo")
    assert api.writes == [("DELETE", "cluster/ha/groups/pxsched-vm-100", {})]


def test_what_proxmox_refuses_is_said(cared, run, api):
    api.refuses = "invalid parameter 'resources': rule is infeasible"
    code, out, err = run(cared, "pve1", "cluster", "rules", "--apply", "--json")
    assert code == 1 and json.loads(out)["failures"].keys() == {"100"} and "VM 100: invalid parameter" in err
