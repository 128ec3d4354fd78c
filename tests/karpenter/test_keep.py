"""Finding, comparing and writing the capacity VM; the requests to Proxmox are what is asserted."""

import json
from pathlib import Path

import pytest

from pxsched.errors import UserError
from pxsched.host import topology
from pxsched.karpenter import capacity, keep
from pxsched.proxmox.api import ApiError, Method
from pxsched.settings.policy import NodeSettings

CONFIGS = "etc/pve/nodes/pve1/qemu-server"


class Recorder:
    """A Proxmox that writes down what is asked of it."""

    def __init__(self, *, next_id=101, refuse=None):
        self.requests = []
        self.next_id = next_id
        self.refuse = refuse

    def call(self, method, path, params=None):
        self.requests.append((method, path, dict(params or {})))
        if self.refuse and method is not Method.GET:
            raise self.refuse
        return str(self.next_id) if path == "cluster/nextid" else None

    @property
    def written(self):
        return [request for request in self.requests if request[0] is not Method.GET]


@pytest.fixture
def node(epyc):
    return epyc


def config_file(root, vmid):
    return Path(root.path(f"{CONFIGS}/{vmid}.conf"))


def stored(root, vmid=101, **changes):
    """Puts the VM there as Proxmox would have stored it; a change of None leaves an option out."""
    options = {**capacity.build(topology.read(root), NodeSettings()), "protection": "1", **changes}
    options = {key: value for key, value in options.items() if value is not None}
    config_file(root, vmid).write_text(capacity.text(options))


def tick(root, api, **settings):
    return keep.tick(root, topology.read(root), NodeSettings(**settings), api)


def test_a_node_without_the_vm_gets_one_with_the_next_free_id(node):
    api = Recorder(next_id=104)
    assert "created VM 104" in tick(node, api)[0]
    [(method, path, params)] = api.written
    assert (method, path) == (Method.CREATE, "nodes/pve1/qemu")
    assert params["vmid"] == "104"
    assert params["description"] == "Karpenter discovery service"
    assert params["numa3"] == "cpus=48-63,hostnodes=3,memory=126976"
    assert params["protection"] == "1"


def test_it_is_created_so_that_it_cannot_start(node):
    api = Recorder()
    tick(node, api)
    [(_, _, params)] = api.written
    assert not {"onboot", "startup", "boot"} & params.keys()
    assert not [key for key in params if key.startswith(("scsi", "virtio", "ide", "sata", "net"))]
    # Proxmox ends a start at `hostnodes` without `policy`
    assert all("policy" not in value for key, value in params.items() if key.startswith("numa"))


def test_nothing_is_asked_of_proxmox_when_nothing_changed(node):
    stored(node)
    api = Recorder()
    assert tick(node, api) == []
    assert api.requests == []


def test_only_what_differs_is_written_with_the_configurations_digest(node):
    import hashlib

    stored(node, memory="4096", affinity="0-63")
    api = Recorder()
    assert "updated VM 101 (affinity, memory)" in tick(node, api)[0]
    [(method, path, params)] = api.written
    assert (method, path) == (Method.SET, "nodes/pve1/qemu/101/config")
    assert params == {
        "affinity": "0-7,32-39,8-15,40-47,16-23,48-55,24-31,56-63",
        "memory": "507904",
        "digest": hashlib.sha1(config_file(node, 101).read_bytes()).hexdigest(),
    }


def test_options_that_no_longer_apply_are_deleted(node):
    stored(node, numa4="cpus=64-79,hostnodes=4,memory=1024", onboot="1", sockets="2")
    api = Recorder()
    tick(node, api)
    assert api.written[0][2]["delete"] == "numa4,onboot,sockets"


def test_options_that_are_none_of_our_business_stay(node):
    stored(node, smbios1="uuid=6c8", vmgenid="0", ostype="l26", agent="1")
    api = Recorder()
    assert tick(node, api) == []


def test_another_way_of_writing_the_same_is_no_difference(node):
    stored(node, numa0="memory=126976,hostnodes=0,cpus=0-15", memory="current=507904")
    assert tick(node, Recorder()) == []


def test_changed_settings_change_the_vm(node):
    stored(node)
    api = Recorder()
    tick(node, api, karpenter_reserved_mib=4096)
    assert set(api.written[0][2]) == {"memory", "numa0", "numa1", "numa2", "numa3", "digest"}


def test_it_is_found_by_name_and_tag_among_other_vms(node):
    config_file(node, 100).write_text("name: node-capacity\n")
    config_file(node, 103).write_text("name: web\ntags: karpenter\n")
    stored(node, 102)
    assert keep.find(node, "pve1")[0].vmid == 102


def test_a_new_vmid_is_found_again_after_the_recorded_one_is_gone(node):
    stored(node, 101)
    tick(node, Recorder())
    config_file(node, 101).rename(config_file(node, 150))
    api = Recorder()
    assert tick(node, api) == []
    assert keep.find(node, "pve1")[0].vmid == 150


@pytest.mark.parametrize("line", ["scsi0: local-lvm:vm-102-disk-0,size=8G", "template: 1"])
def test_a_tenants_vm_that_could_run_is_never_taken_for_it(node, line):
    config_file(node, 102).write_text(f"name: node-capacity\ntags: karpenter\n{line}\n")
    api = Recorder()
    said = tick(node, api)
    assert api.written[0][0] is Method.CREATE
    assert any("VM 102" in line and "left alone" in line for line in said)


def test_a_running_vm_is_never_taken_for_it(node):
    stored(node, 102)
    pid_file = Path(node.path("run/qemu-server/102.pid"))
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text("77\n")
    assert keep.find(node, "pve1")[0] is None


def test_of_two_the_protected_one_is_ours_and_the_other_is_named(node):
    stored(node, 100, protection=None)
    stored(node, 105)
    guest, notes = keep.find(node, "pve1")
    assert guest.vmid == 105
    assert "VM 100" in notes[0]


def test_the_vm_of_another_node_is_not_ours(node):
    other = Path(node.path("etc/pve/nodes/pve2/qemu-server/101.conf"))
    other.parent.mkdir(parents=True)
    other.write_text("name: node-capacity\ntags: karpenter\n")
    assert keep.find(node, "pve1")[0] is None


def test_without_quorum_one_line_says_so_and_nothing_is_written(node):
    members = {"nodename": "pve1", "cluster": {"name": "c", "nodes": 3, "quorate": 0}}
    Path(node.path("etc/pve/.members")).write_text(json.dumps(members))
    api = Recorder()
    said = tick(node, api)
    assert len(said) == 1
    assert "no quorum" in said[0]
    assert api.written == []


def test_a_node_without_a_cluster_needs_no_quorum(node):
    Path(node.path("etc/pve/.members")).write_text('{"nodename": "pve1", "version": 3}')
    api = Recorder()
    tick(node, api)
    assert api.written


def test_a_refusal_is_said_once_and_every_pass_tries_again(node):
    refuse = ApiError("put /x: Permission check failed", status=403, hint="lacks a permission")
    api = Recorder(refuse=refuse)
    [line] = tick(node, api)
    assert "Permission check failed" in line
    assert "next pass" in line
    assert tick(node, api) == []
    assert len(api.written) == 2


def test_another_refusal_is_said_again(node):
    tick(node, Recorder(refuse=ApiError("one")))
    assert "two" in tick(node, Recorder(refuse=ApiError("two")))[0]
    assert "one" in tick(node, Recorder(refuse=ApiError("one")))[0]


def test_a_vmid_taken_meanwhile_is_said_as_such(node):
    api = Recorder(refuse=ApiError("post: unable to create VM 101: config file already exists"))
    with pytest.raises(UserError, match="VMID 101 was taken meanwhile"):
        keep.apply(node, keep.plan(node, topology.read(node), NodeSettings()), api)


def test_plan_says_what_would_change_and_changes_nothing(node, run_karpenter):
    stored(node, memory="4096")
    before = config_file(node, 101).read_bytes()
    shown = run_karpenter(node, "plan")
    assert "would update VM 101 on pve1" in shown
    assert "~ memory: 4096 -> 507904" in shown
    assert config_file(node, 101).read_bytes() == before


def test_plan_as_json_names_every_change(node, run_karpenter):
    stored(node, memory="4096", onboot="1")
    report = json.loads(run_karpenter(node, "plan", "--json"))
    assert report["schema"] == 1
    assert report["changes"] == [
        {"key": "memory", "now": "4096", "want": "507904"},
        {"key": "onboot", "now": "1", "want": None},
    ]


def test_export_prints_a_file_and_needs_no_proxmox(node, run_karpenter):
    assert run_karpenter(node, "export").startswith("#Karpenter discovery service\naffinity: 0-7,32-39,")
