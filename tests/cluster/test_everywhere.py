"""Opting in on all nodes at once; and a node that does not answer, which is not everybody's trouble."""

import json

import pytest

from pxsched.optin import commands
from pxsched.proxmox.api import ApiError, Method
from tests.optin.api_server import TOKEN, ApiServer, Vm, make_certificate

OURS = "local:snippets/pxsched"


class Api:
    """Proxmox on this node: writes options into the configurations, and knows who has the script."""

    def __init__(self, cluster, scripts) -> None:
        self.cluster, self.scripts = cluster, scripts
        self.calls = []

    def call(self, method, path, params=None):
        self.calls.append((method, path))
        words = path.split("/")
        if words[2] == "storage":
            if self.scripts[words[1]] is None:
                raise ApiError("595 no route to host", status=595)
            return [{"volid": OURS}] if self.scripts[words[1]] else []
        file = self.cluster.pve / f"nodes/{words[1]}/qemu-server/{words[3]}.conf"
        lines = [line for line in file.read_text().splitlines() if not line.startswith("hookscript")]
        lines += [f"hookscript: {params['hookscript']}"] if "hookscript" in params else []
        file.write_text("\n".join(lines) + "\n")
        return None


@pytest.fixture
def many(pair, monkeypatch):
    """VMs on two nodes, none of them opted in."""
    for name, vmid, more in (
        ("pve1", 100, ""),
        ("pve1", 101, "template: 1\n"),
        ("pve2", 200, "name: web\n"),
        ("pve2", 201, "lock: backup\n"),
    ):
        pair.put(f"nodes/{name}/qemu-server/{vmid}.conf", f"cores: 1\n{more}")
    pair.put("ha/resources.cfg", "vm: 200\n")
    script = pair.base / "pve1/var/lib/vz/snippets/pxsched"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    pair.api = Api(pair, {"pve1": True, "pve2": True})
    monkeypatch.setattr(commands.stand_in, "local_api", lambda root: pair.api)
    return pair


def enabled(cluster) -> set[int]:
    files = cluster.pve.glob("nodes/*/qemu-server/*.conf")
    return {int(file.stem) for file in files if "hookscript: " in file.read_text()}


def test_all_vms_of_all_nodes_in_one_call_each(many, run):
    code, out, _ = run(many, "pve1", "enable", "--all", "--cluster")
    assert code == 0 and enabled(many) == {100, 200, 201}
    writes = [path for method, path in many.api.calls if method is Method.SET]
    assert writes == [f"nodes/{node}/qemu/{vmid}/config" for node, vmid in
                      (("pve1", 100), ("pve2", 200), ("pve2", 201))]  # fmt: skip
    assert "VM 101 on pve1: skipped (a template" in out
    assert "200 web on pve2: enabled" in out and "an HA resource: every node" in out
    assert "locked (backup): Proxmox changes nothing" in out
    assert run(many, "pve1", "disable", "--all", "--cluster")[0] == 0 and enabled(many) == set()


@pytest.mark.parametrize(
    ("state", "said"),
    [(False, "pve2 has no hookscript local:snippets/pxsched: run install.sh there"),
     (None, "whether pve2 has the hookscript cannot be asked: 595 no route to host")],
)  # fmt: skip
def test_a_node_without_the_script_is_left_alone_and_the_others_are_not(many, run, state, said):
    many.api.scripts["pve2"] = state
    code, _, err = run(many, "pve1", "enable", "--all", "--cluster")
    assert code == 1 and enabled(many) == {100}
    assert f"VM 200: {said}" in err and f"VM 201: {said}" in err
    assert sum("storage" in path for _method, path in many.api.calls) == 1, "each node is asked once"


def test_on_one_node_it_says_that_it_is_one_node(many, run):
    out = run(many, "pve1", "enable", "--all")[1]
    assert enabled(many) == {100}
    assert out.endswith("these are the VMs of one node, pve1; --cluster means all 2\n")
    assert "--cluster" not in run(many, "pve1", "enable", "--all", "--cluster")[1]


def test_node_and_cluster_exclude_each_other(many, run):
    with pytest.raises(SystemExit) as error:
        run(many, "pve1", "enable", "--all", "--cluster", "--node", "pve2")
    assert error.value.code == 2


def test_the_list_knows_of_other_nodes_vms_what_these_published(many, run):
    def state() -> str | None:
        rows = json.loads(run(many, "pve1", "list", "--cluster", "--json")[1])["vms"]
        return {row["vmid"]: row["running"] for row in rows}[202]

    many.vm("pve2", 202, "cores: 1\n", running=True)
    assert state() is None
    many.publish("pve2")
    assert state() is True
    many.publish("pve2", at_s=1000.0)
    assert state() is None


def test_doctor_looks_at_all_nodes(many, run):
    many.vm("pve2", 202, "cores: 1\n", running=True)
    many.publish("pve2")
    found = json.loads(run(many, "pve1", "doctor", "--cluster", "--json")[1])["findings"]
    lines = [f"{item['level']} {item['area']} {item['text']}" for item in found]
    assert any(line.startswith("ok pve2 published") and line.endswith("1 VMs run") for line in lines)
    assert "ok pve2 1 of 3 VMs are opted in" in lines and "note pve2 locked: VMs 201" in lines
    (many.pve / "nodes/pve2/pxsched.json").unlink()
    many.corosync(quorate=0)
    found = json.loads(run(many, "pve1", "doctor", "--cluster", "--json")[1])["findings"]
    said = {item["text"]: item for item in found}
    assert said["it has published nothing: is pxsched installed there?"]["remedy"] == "run install.sh there"
    assert any(text.startswith("no quorum") for text in said)
    plain = json.loads(run(many, "pve1", "doctor", "--json")[1])["findings"]
    assert not [item for item in plain if item["area"] == "pve2"]


# From elsewhere, over HTTPS.


@pytest.fixture
def api(tmp_path):
    make_certificate(tmp_path)
    vms = {
        100: Vm("pve1", {"name": "web", "tags": "prod"}),
        200: Vm("pve2", {"name": "db"}, status="running"),
        201: Vm("pve2", {"name": "old"}),
    }
    server = ApiServer(tmp_path, vms)
    for vmid in (200, 201):
        path = f"nodes/pve2/qemu/{vmid}/config"
        server.failures["GET", path] = (595, "No route to host", {})
    yield server
    server.close()


def words(api) -> tuple[str, ...]:
    return ("--host", api.host, "--ca", str(api.certificate), "--token", TOKEN)


def test_one_node_that_does_not_answer_does_not_break_the_list(pair, run, api):
    code, out, _ = run(pair, "pve1", "list", *words(api))
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert rows["100"].split()[:4] == ["100", "pve1", "stopped", "no"]
    assert rows["200"].split()[:4] == ["200", "pve2", "?", "?"]
    assert "node pve2 does not answer: " in rows["201"] and "No route to host" in rows["201"]
    asked = [path for _method, path, _params in api.requests if "pve2" in path]
    assert len(asked) == 1, "a node that does not answer is not asked for each of its VMs"


@pytest.mark.parametrize("command", ["enable", "disable"])
def test_nor_changes_to_the_others(pair, run, api, command):
    api.vms[100].config |= {"hookscript": OURS} if command == "disable" else {}
    code, _, err = run(pair, "pve1", command, "--all", *words(api))
    assert code == 1 and [path for _, path, _ in api.writes] == ["nodes/pve1/qemu/100/config"]
    assert "VM 200: node pve2 does not answer" in err and "VM 201: node pve2 does not answer" in err


def test_a_vm_by_number_on_a_node_that_answers_is_changed_as_ever(pair, run, api):
    assert run(pair, "pve1", "enable", "100", *words(api))[0] == 0
