"""The two ways to Proxmox on a node: proxmoxer's local backend, and `pvesh` where there is none.

`pvesh` is replaced by a script that keeps its arguments and answers as the real one does.
"""

import json
import os
import sys

import pytest

from pxsched.proxmox import api, connection
from pxsched.proxmox.api import ApiError, Method, Pvesh


class FakePvesh:
    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()

    def answers(self, *, stdout="", stderr="", code=0):
        (self.directory / "stdout").write_text(stdout)
        (self.directory / "stderr").write_text(stderr)
        script = (
            f'#!/bin/sh\ncd "{self.directory}"\n: >arguments\n'
            'for word; do printf "%s\\0" "$word" >>arguments; done\n'
            f"cat stdout; cat stderr >&2; exit {code}\n"
        )
        (self.directory / "pvesh").write_text(script)
        (self.directory / "pvesh").chmod(0o755)

    @property
    def arguments(self):
        return (self.directory / "arguments").read_text().split("\0")[:-1]


@pytest.fixture
def pvesh(tmp_path, monkeypatch):
    fake = FakePvesh(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.directory}:/usr/bin:/bin")
    return fake


def through_proxmoxer():
    pytest.importorskip("proxmoxer.backends.local", reason="proxmoxer is older than its local backend")
    client = connection.local()
    assert isinstance(client, api.Proxmoxer)
    return client


def through_pvesh():
    return Pvesh()


WAYS = pytest.mark.parametrize("way", [through_proxmoxer, through_pvesh])


@WAYS
def test_a_change_is_one_call_with_each_argument_by_itself(pvesh, way):
    pvesh.answers(stdout="update VM 100: -hookscript x\n" if way is through_pvesh else "")
    change = {"hookscript": "local:snippets/pxsched", "digest": "a"}
    way().call(Method.SET, "nodes/pve1/qemu/100/config", change)
    words = [word.removeprefix("-") if word.startswith("--") else word for word in pvesh.arguments]
    assert words[:2] == ["set", "/nodes/pve1/qemu/100/config"]
    assert words[2:6] == ["-hookscript", "local:snippets/pxsched", "-digest", "a"]
    assert words[6:] == ["-output-format", "json"]


@WAYS
def test_what_a_tenant_wrote_stays_one_argument(pvesh, way):
    pvesh.answers()
    hostile = "; touch /tmp/x $(id) `id` ' \" \\ |"
    way().call(Method.SET, "nodes/pve1/qemu/100/config", {"description": hostile})
    assert hostile in pvesh.arguments


@WAYS
def test_an_answer_is_read_as_json(pvesh, way):
    pvesh.answers(stdout=json.dumps([{"vmid": 100}]))
    assert way().call(Method.GET, "cluster/resources", {"type": "vm"}) == [{"vmid": 100}]


@WAYS
def test_what_a_task_says_before_its_answer_does_not_disturb(pvesh, way):
    pvesh.answers(stdout='trying something...\n"105"\n')
    assert way().call(Method.GET, "cluster/nextid") == "105"


@WAYS
def test_a_refusal_is_proxmoxs_own_line_with_its_status(pvesh, way):
    pvesh.answers(stderr="403 Permission check failed (/vms/100, VM.Config.Options)\n", code=255)
    with pytest.raises(ApiError, match="Permission check failed") as caught:
        way().call(Method.SET, "nodes/pve1/qemu/100/config", {"tags": "x"})
    assert caught.value.status == 403


@WAYS
def test_a_missing_quorum_is_explained(pvesh, way):
    pvesh.answers(stderr="cluster not ready - no quorum?\n", code=255)
    with pytest.raises(ApiError, match="no quorum") as caught:
        way().call(Method.SET, "nodes/pve1/qemu/100/config", {"tags": "x"})
    assert "nothing can be written" in caught.value.hint


PERLS_WARNING = "perl: warning: Setting locale failed.\nperl: warning: Falling back to the standard locale.\n"


@WAYS
def test_proxmox_is_called_with_its_own_umask_and_a_locale_that_there_always_is(pvesh, way, monkeypatch):
    """Our umask would keep pveproxy from its task logs; proxmoxer takes Perl's warning for a failure."""
    pvesh.answers(stdout='"105"\n')
    log = pvesh.directory / "task.log"
    warn = f"[ \"$LC_ALL\" = C ] || printf '{PERLS_WARNING}' >&2\n: >'{log}'\n"
    script = pvesh.directory / "pvesh"
    script.write_text(script.read_text().replace("cat stdout", f"{warn}cat stdout"))
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    before = os.umask(0o077)
    try:
        assert way().call(Method.GET, "cluster/nextid") == "105"
        assert os.umask(0o077) == 0o077, "our own files stay ours"
    finally:
        os.umask(before)
    assert log.stat().st_mode & 0o777 == 0o644


def test_a_proxmoxer_without_local_backend_leads_to_pvesh(pvesh, monkeypatch):
    monkeypatch.setitem(sys.modules, "proxmoxer.backends.local", None)
    assert isinstance(connection.local(), Pvesh)


def test_no_proxmoxer_at_all_leads_to_pvesh(pvesh, monkeypatch):
    monkeypatch.setitem(sys.modules, "proxmoxer", None)
    assert isinstance(connection.local(), Pvesh)


def test_a_machine_without_proxmox_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ApiError, match="pvesh is not here"):
        through_pvesh().call(Method.GET, "version")


def test_noise_is_no_failure_when_the_file_shows_the_change(pvesh, node, pxsched, monkeypatch):
    """proxmoxer's local backend makes an error of "trying to acquire lock...", though the change was made."""
    config = node.vm(100)
    node.snippet("pxsched")
    pvesh.answers(stderr="trying to acquire lock...\n OK\n")
    client = through_proxmoxer()

    class Changing:
        def call(self, method, path, params=None):
            config.write_text(f"cores: 2\nhookscript: {params['hookscript']}\n")
            return client.call(method, path, params)

    monkeypatch.setattr("pxsched.sandbox.stand_in.local_api", lambda root: Changing())
    code, out, _ = pxsched(node.root, "enable", "100")
    assert (code, "enabled" in out) == (0, True)


def test_a_change_that_the_file_does_not_show_is_a_failure(pvesh, node, pxsched, monkeypatch):
    node.vm(100)
    node.snippet("pxsched")
    pvesh.answers()
    monkeypatch.setattr("pxsched.sandbox.stand_in.local_api", lambda root: Pvesh())
    code, _, err = pxsched(node.root, "enable", "100")
    assert code == 1
    assert "does not show it" in err
