"""`cluster plan` as a user meets it: on nodes as files, with HA's rules and devices."""

import json

import pytest

from pxsched.cluster import ha
from pxsched.cluster.known import Known
from pxsched.cluster.view import look


@pytest.fixture
def crossing(pair):
    """VM 100 came to pve1 when all L3 groups were in use."""
    pair.settings('[defaults]\nclass = "dedicated"\n')
    for vmid in range(101, 117):
        pair.vm("pve1", vmid, "cores: 5\n", running=True)
    pair.vm("pve1", 100, "cores: 6\n", running=True)
    pair.publish()
    for name in pair.names:  # they have been there for long
        path = pair.pve / f"nodes/{name}/pxsched.json"
        document = json.loads(path.read_text())
        document["measured"]["since"] = {}
        path.write_text(json.dumps(document))
    return pair


def plan(run, cluster, *words, name="pve2"):
    code, out, _ = run(cluster, name, "cluster", "plan", *words, "--json")
    return code, json.loads(out)


def test_it_lists_moves_with_reasons_and_moves_nothing(crossing, run):
    code, out, _ = run(crossing, "pve2", "cluster", "plan")
    assert code == 0 and out.startswith("1. VM 100: pve1 -> pve2 (live, 1.0 GiB to copy)\n   why: it spans")
    assert "   there: 6 exclusive CPUs" in out
    assert (crossing.pve / "nodes/pve1/qemu-server/100.conf").exists()


def test_where_nothing_is_to_be_done_it_says_so(pair, run):
    pair.vm("pve1", 100, "cores: 2\n", running=True)
    pair.publish()
    assert run(pair, "pve1", "cluster", "plan")[1] == "no move would make anything better\n"
    assert run(pair, "pve1", "cluster", "plan", "--drain", "pve2")[1] == "no VM is on pve2\n"


def test_a_vm_that_came_just_now_rests(crossing, run):
    crossing.publish()
    _, document = plan(run, crossing)
    assert document["moves"] == [] and "less than an hour ago" in document["stays"][0]["why"]


def test_a_drain_that_leaves_somebody_fails_and_says_whom(crossing, run):
    crossing.vm("pve2", 200, "cores: 2\nhostpci0: 0000:01:00.0\n", running=True)
    crossing.publish("pve2")
    code, document = plan(run, crossing, "--drain", "pve2", name="pve1")
    assert code == 1 and document["stays"][0]["vmid"] == 200
    assert "hostpci0 is a device of its own node" in document["stays"][0]["why"]
    code, _, err = run(crossing, "pve1", "cluster", "plan", "--drain", "pve9")
    assert code == 1 and "there is no node 'pve9'" in err


def test_a_node_cannot_claim_the_vms_of_another(pair, run):
    """Whatever pve2 says of VM 100, it is where its configuration is."""
    pair.vm("pve1", 100, "cores: 2\n", running=True)
    pair.vm("pve2", 101, "cores: 2\n", running=True)
    pair.publish()
    path = pair.pve / "nodes/pve2/pxsched.json"
    document = json.loads(path.read_text())
    document["vms"]["100"] = document["vms"]["101"]
    path.write_text(json.dumps(document))

    def drained(node: str) -> list[tuple[int, str]]:
        _, found = plan(run, pair, "--drain", node, name="pve1")
        return [(move["vmid"], move["from"]) for move in found["moves"]]

    assert drained("pve1") == [(100, "pve1")] and drained("pve2") == [(101, "pve2")]


def test_a_drain_takes_stopped_vms_along_and_says_how(pair, run):
    pair.put("storage.cfg", "lvmthin: thin\n\tvgname pve\n\nrbd: ceph\n\tpool vms\n")
    pair.settings('[vm.101]\nclass = "dedicated"\n')
    pair.vm("pve2", 100, "cores: 2\nscsi0: thin:vm-100-disk-0,size=32G\n")
    pair.vm("pve2", 101, "cores: 500\nscsi0: ceph:vm-101-disk-0,size=32G\n")
    pair.vm("pve2", 102, "cores: 1\nlock: backup\n")
    pair.vm("pve2", 103, "cores: 1\n")
    pair.put("ha/resources.cfg", "vm: 103\n\tstate stopped\n")
    pair.vm("pve2", 104, "cores: 1\n", running=True)
    pair.publish()
    code, out, _ = run(pair, "pve1", "cluster", "plan", "--drain", "pve2")
    assert code == 1 and out.startswith("1. VM 104: pve2 -> pve1 (live, 1.0 GiB to copy)")
    assert "2. VM 100: pve2 -> pve1 (stopped, 32.0 GiB to copy)\n   why: pve2 is to be emptied\n" in out
    assert "3. VM 101: pve2 -> pve1 (stopped, 0.0 GiB to copy)" in out
    assert "pve2 is to be emptied; it could not start on pve1 now: needs 500 exclusive CPUs" in out
    assert "VM 102 stays on pve2: pve1: it is locked (backup)" in out
    assert "VM 103 stays on pve2: it does not run, and is HA's: ha-manager migrate vm:103 NODE" in out
    _, document = plan(run, pair, "--drain", "pve2")
    assert [move["stopped"] for move in document["moves"]] == [False, True, True]


def test_a_node_that_says_nothing_is_left_out_and_named(crossing, run):
    (crossing.pve / "nodes/pve2/pxsched.json").unlink()
    out = run(crossing, "pve1", "cluster", "plan")[1]
    assert "pve2 is left out: it has published nothing" in out and "pve1 -> pve2" not in out
    code, _, err = run(crossing, "pve1", "cluster", "plan", "--drain", "pve2")
    assert code == 1 and "pve2 cannot be planned for: it has published nothing" in err


NODES = "node-affinity: own\n\tresources vm:100\n\tnodes "
TOGETHER = "resource-affinity: t\n\tresources vm:100,vm:"
RESOURCES = "vm: 100\n\tstate started\n\nvm: 101\n\tstate started\n"


@pytest.mark.parametrize(
    ("rules", "groups", "said"),
    [
        ("", "", None),
        (NODES + "pve1\n\tstrict 1\n", "", "HA rule own wants it on pve1"),
        (NODES + "pve1:2,pve2:1\n", "", "HA rule own wants it on pve1"),
        (NODES + "pve1:" + "9" * 5000 + ",pve2:x,:,\n", "", None),
        ("node-affinity: own\n\tresources vm:100\n\tnodes pve1,pve2\n", "", None),
        ("node-affinity: own\n\tresources vm:100\n\tnodes pve1\n\tdisable\n", "", None),
        ("node-affinity: own\n\tresources vm:101\n\tnodes pve1\n\tstrict 1\n", "", None),
        (TOGETHER + "101\n\taffinity positive\n", "", "keeps it with vm:101"),
        (TOGETHER + "101\n\taffinity negative\n", "", None),
        (TOGETHER + "300\n\taffinity negative\n", "", "apart from vm:300"),
        ("", "group: g\n\tnodes pve1\n\trestricted 1\n", "HA rule group g wants it on pve1"),
        ("", "group: g\n\tnodes pve1:2,pve2:1\n\tnofailback 1\n", None),
    ],
)  # fmt: skip
def test_a_move_that_ha_would_undo_is_none(crossing, run, rules, groups, said):
    crossing.vm("pve2", 300, "cores: 2\n", running=True)
    crossing.publish("pve2")
    resources = RESOURCES.replace("vm: 100\n", "vm: 100\n\tgroup g\n") if groups else RESOURCES
    crossing.put("ha/resources.cfg", resources + "\nvm: 300\n\tstate started\n")
    crossing.put("ha/rules.cfg", rules)
    crossing.put("ha/groups.cfg", groups)
    _, document = plan(run, crossing)
    if said is None:
        assert [(move["vmid"], move["ha"]) for move in document["moves"]] == [(100, True)]
    else:
        assert document["moves"] == [] and said in document["stays"][0]["why"]


def test_failback_off_lets_it_stay_where_it_is_allowed(crossing, run):
    crossing.put("ha/resources.cfg", "vm: 100\n\tfailback 0\n")
    crossing.put("ha/rules.cfg", "node-affinity: own\n\tresources vm:100\n\tnodes pve1:2,pve2:1\n")
    assert len(plan(run, crossing)[1]["moves"]) == 1


def test_a_guest_that_ha_ignores_is_not_its_own(crossing, run):
    crossing.put("ha/resources.cfg", "vm: 100\n\tstate ignored\n")
    crossing.put("ha/rules.cfg", "node-affinity: own\n\tresources vm:100\n\tnodes pve1\n\tstrict 1\n")
    assert plan(run, crossing)[1]["moves"][0]["ha"] is False


@pytest.mark.parametrize(
    "status",
    ['{"node_status": {"pve2": "maintenance"}}', '{"node_request": {"pve2": {"maintenance": 1}}}'],
)
def test_a_node_in_maintenance_takes_nobody(crossing, run, status):
    crossing.put("ha/manager_status", status)
    assert plan(run, crossing)[1]["moves"] == []


@pytest.mark.parametrize("status", ["{", "[]", '{"node_status": 3}'])
def test_a_status_of_ha_that_makes_no_sense_says_nothing(pair, status):
    pair.put("ha/manager_status", status)
    assert ha.read(pair.root("pve1")).away == frozenset()


def test_a_device_is_not_promised_twice(pair):
    mapping = "nic\n\tlive-migration-capable 1\n\tmap id=15b3:101d,node=pve2,path=0000:42:00.0\n"
    pair.put("mapping/pci.cfg", mapping)
    for vmid in (100, 101):
        pair.vm("pve1", vmid, "cores: 2\nhostpci0: mapping=nic\n", running=True)
    pair.publish()
    known = Known(look(pair.root("pve1")))
    here, there = {100: "pve1", 101: "pve1"}, {100: "pve1", 101: "pve2"}
    assert not any("VM 101 will have" in text for text in known.verdict(100, "pve2", here).against)
    assert "VM 101 will have the device of mapping nic there" in known.verdict(100, "pve2", there).against
