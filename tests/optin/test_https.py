"""Opting in from elsewhere: over HTTPS, with the certificate checked and Proxmox's refusals explained."""

import json

import pytest

from pxsched.errors import UserError

from .api_server import PASSWORD, TOKEN, USER, ApiServer, Vm, make_certificate

OURS = "local:snippets/pxsched"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificate")
    make_certificate(directory)
    return directory


@pytest.fixture
def api(certificate):
    server = ApiServer(
        certificate,
        {
            100: Vm("pve1", {"name": "web", "tags": "prod"}),
            101: Vm("pve2", {"name": "db", "hookscript": OURS}, status="running", hastate="started"),
            102: Vm("pve2", {"name": "old", "hookscript": "local:snippets/mine.pl"}),
        },
    )
    yield server
    server.close()


@pytest.fixture
def as_root(api, monkeypatch):
    monkeypatch.setenv("PXSCHED_PASSWORD", PASSWORD)
    return ("--host", api.host, "--ca", str(api.certificate), "--user", USER)


@pytest.fixture
def by_token(api):
    return ("--host", api.host, "--ca", str(api.certificate), "--token", TOKEN)


def test_enable_puts_the_hookscript_with_the_configurations_digest(node, pxsched, api, as_root):
    code, out, err = pxsched(node.root, "enable", "100", *as_root)
    assert (code, err) == (0, "")
    assert "100 web on pve1: enabled: hookscript none -> local:snippets/pxsched" in out
    assert api.writes == [("PUT", "nodes/pve1/qemu/100/config", {"hookscript": OURS, "digest": "d100"})]


def test_disable_deletes_it(node, pxsched, api, as_root):
    assert pxsched(node.root, "disable", "101", *as_root)[0] == 0
    assert api.writes == [("PUT", "nodes/pve2/qemu/101/config", {"delete": "hookscript", "digest": "d101"})]


def test_a_dry_run_writes_nothing(node, pxsched, api, by_token):
    code, out, _ = pxsched(node.root, "enable", "100", "--dry-run", *by_token)
    assert (code, api.writes) == (0, [])
    assert "would be enabled" in out


def test_all_with_a_node_reaches_that_node_only(node, pxsched, api, as_root):
    pxsched(node.root, "disable", "--all", "--node", "pve2", *as_root)
    assert [path for _, path, _ in api.writes] == ["nodes/pve2/qemu/101/config"]


def test_another_script_is_refused_and_chaining_needs_the_node(node, pxsched, api, as_root):
    code, _, err = pxsched(node.root, "enable", "102", *as_root)
    assert (code, api.writes) == (1, [])
    assert "mine.pl" in err
    code, _, err = pxsched(node.root, "enable", "102", "--chain", *as_root)
    assert (code, api.writes) == (1, [])
    assert "on a node" in err


def test_list_tells_nodes_ha_and_who_is_opted_in(node, pxsched, by_token):
    code, out, _ = pxsched(node.root, "list", "--json", *by_token)
    report = json.loads(out)
    assert (code, report["schema"]) == (0, 1)
    assert [(vm["vmid"], vm["node"], vm["enabled"], vm["ha"]) for vm in report["vms"]] == [
        (100, "pve1", False, False), (101, "pve2", True, True), (102, "pve2", False, False),
    ]  # fmt: skip


def test_that_only_root_may_set_it_is_explained(node, pxsched, api, by_token):
    api.failures["PUT", "nodes/pve1/qemu/100/config"] = (403, "only root can set 'hookscript' config", {})
    code, _, err = pxsched(node.root, "enable", "100", *by_token)
    assert code == 1
    assert "only root can set 'hookscript' config" in err
    assert "no API token either" in err


def test_a_parameter_error_names_the_parameter(node, pxsched, api, as_root):
    api.failures["PUT", "nodes/pve1/qemu/100/config"] = (
        400, "Parameter verification failed.", {"hookscript": "script 'x' does not exist"},
    )  # fmt: skip
    _, _, err = pxsched(node.root, "enable", "100", *as_root)
    assert "hookscript: script 'x' does not exist" in err


def test_a_concurrent_change_asks_to_try_again(node, pxsched, api, as_root):
    reason = "detected modified configuration - file changed by other user? Try again."
    api.failures["PUT", "nodes/pve1/qemu/100/config"] = (500, reason, {})
    assert "somebody changed the VM meanwhile" in pxsched(node.root, "enable", "100", *as_root)[2]


def test_one_vms_failure_does_not_stop_the_others(node, pxsched, api, as_root):
    api.failures["PUT", "nodes/pve1/qemu/100/config"] = (500, "can't lock file - got timeout", {})
    code, out, err = pxsched(node.root, "disable", "100", "101", "999", *as_root)
    assert code == 1
    assert "101 db on pve2: disabled" in out
    assert "VM 999: there is no such VM" in err


def test_a_certificate_that_is_not_trusted_ends_it(node, api):
    from pxsched.proxmox.api import Method
    from pxsched.proxmox.connection import Login, remote

    client = remote(Login(api.host, token=TOKEN), node.root)
    with pytest.raises(UserError, match="certificate") as caught:
        client.call(Method.GET, "cluster/resources")
    assert "--ca" in caught.value.hint
    assert api.requests == [], "no secret may reach a server that is not trusted"


def test_the_clusters_own_authority_is_trusted_on_a_node(node, pxsched, api):
    node.write("etc/pve/pve-root-ca.pem", api.certificate.read_text())
    assert pxsched(node.root, "list", "--host", api.host, "--token", TOKEN)[0] == 0


def test_a_wrong_password_is_one_clear_line(node, pxsched, api, as_root, monkeypatch):
    monkeypatch.setenv("PXSCHED_PASSWORD", "wrong")
    with pytest.raises(UserError, match="authenticate"):
        pxsched(node.root, "list", *as_root)


@pytest.mark.parametrize("token", ["root@pam", "root@pam!x", "x!y=z", "root@pam!a b=c"])
def test_a_token_of_the_wrong_form_is_named_before_anything_is_sent(node, pxsched, api, token):
    with pytest.raises(UserError, match="USER@REALM!NAME=SECRET"):
        pxsched(node.root, "list", "--host", api.host, "--token", token)
    assert api.requests == []


def test_a_host_that_does_not_answer_is_named(node, pxsched):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1"):
        pxsched(node.root, "list", "--host", "127.0.0.1:1", "--token", TOKEN)
