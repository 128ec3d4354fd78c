"""Opting in on a node: real configuration files, the sandbox's own `qm`, real guests, the real hook."""

import json
import shutil

import pytest

from pxsched.chain import files as chain
from pxsched.chain.entry import Entry
from pxsched.guest.identity import Identity
from pxsched.ledger import file as ledger
from pxsched.root import Root

OURS = "local:snippets/pxsched"

pytestmark = [
    pytest.mark.measures,
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed"),
]


@pytest.fixture
def sandbox(sandbox):
    sandbox.qm("create", 100, name="web", tags="prod", cores=1, memory=64)
    return sandbox


def config(sandbox, vmid=100):
    return sandbox.node.config(vmid).read_text()


def test_enable_and_disable_leave_the_configuration_as_it_was(sandbox, pxsched):
    before = config(sandbox)
    assert pxsched(Root(sandbox.root), "enable", "100")[0] == 0
    assert f"hookscript: {OURS}" in config(sandbox)
    assert pxsched(Root(sandbox.root), "disable", "100")[0] == 0
    assert config(sandbox) == before


def test_a_vm_that_is_enabled_is_placed_when_it_starts(sandbox, pxsched):
    pxsched(Root(sandbox.root), "enable", "100")
    assert "pxsched: VM 100" in sandbox.qm("start", 100).output


def test_enabling_twice_changes_nothing_the_second_time(sandbox, pxsched):
    pxsched(Root(sandbox.root), "enable", "100")
    stamp = sandbox.node.config(100).stat().st_mtime_ns
    code, out, _ = pxsched(Root(sandbox.root), "enable", "--all")
    assert (code, sandbox.node.config(100).stat().st_mtime_ns) == (0, stamp)
    assert "unchanged" in out


def test_a_dry_run_shows_and_does_not_touch(sandbox, pxsched):
    before = config(sandbox)
    code, out, _ = pxsched(Root(sandbox.root), "enable", "--tag", "prod", "--dry-run", "--json")
    [vm] = json.loads(out)["vms"]
    assert (code, vm["outcome"], vm["now"], vm["want"]) == (0, "change", None, OURS)
    assert config(sandbox) == before


def test_a_script_that_is_there_is_kept_with_chain_and_comes_back(sandbox, pxsched, tmp_path):
    log = tmp_path / "log"
    sandbox.snippet("mine.sh", f'#!/bin/sh\necho "$*" >>{log}\n')
    sandbox.qm("set", 100, hookscript="local:snippets/mine.sh")
    code, _, err = pxsched(Root(sandbox.root), "enable", "100")
    assert code == 1
    assert "--chain" in err

    assert pxsched(Root(sandbox.root), "enable", "100", "--chain")[0] == 0
    sandbox.qm("start", 100)
    sandbox.qm("stop", 100)
    phases = ["pre-start", "post-start", "pre-stop", "post-stop"]
    assert log.read_text().splitlines() == [f"100 {phase}" for phase in phases]

    assert pxsched(Root(sandbox.root), "disable", "100")[0] == 0
    assert "hookscript: local:snippets/mine.sh" in config(sandbox)
    assert chain.RECORDS.vmids(Root(sandbox.root)) == []


def test_a_chained_script_that_refuses_the_start_still_does(sandbox, pxsched):
    sandbox.snippet("no.sh", "#!/bin/sh\nexit 7\n")
    sandbox.qm("set", 100, hookscript="local:snippets/no.sh")
    pxsched(Root(sandbox.root), "enable", "100", "--chain")
    started = sandbox.qm("start", 100, check=False)
    assert started.code != 0
    assert "exit code 7" in started.output
    assert sandbox.pid(100) is None


def test_a_number_used_again_does_not_bring_an_old_script_back(sandbox, pxsched):
    root = Root(sandbox.root)
    chain.write(root, Entry(100, Identity(ctime_s="1"), "local:snippets/of-a-vm-long-gone.sh"))
    pxsched(root, "enable", "100")
    assert chain.RECORDS.vmids(root) == []
    before = config(sandbox)
    chain.write(root, Entry(100, Identity(ctime_s="1"), "local:snippets/of-a-vm-long-gone.sh"))
    assert "does not" not in sandbox.qm("start", 100).output
    assert config(sandbox) == before
    pxsched(root, "disable", "100")
    assert "hookscript" not in config(sandbox)


def test_without_the_hookscript_on_the_node_no_vm_is_enabled(sandbox, pxsched):
    from pxsched.errors import UserError

    sandbox.node.path("var/lib/vz/snippets/pxsched").unlink()
    with pytest.raises(UserError, match="not installed on this node"):
        pxsched(Root(sandbox.root), "enable", "100")
    assert "hookscript" not in config(sandbox)


def test_a_refusal_of_proxmox_is_relayed_and_the_chain_is_as_before(sandbox, pxsched):
    sandbox.snippet("mine.sh", "#!/bin/sh\n")
    sandbox.qm("set", 100, hookscript="local:snippets/mine.sh")
    storages = sandbox.node.path("etc/pve/storage.cfg")
    storages.write_text("dir: nas\n\tpath /var/lib/vz\n")  # a sandbox takes nothing but `local`
    code, _, err = pxsched(Root(sandbox.root), "enable", "100", "--chain", "--storage", "nas")
    storages.unlink()
    assert code == 1
    assert "invalid volume" in err
    assert chain.RECORDS.vmids(Root(sandbox.root)) == []
    assert "local:snippets/mine.sh" in config(sandbox)


def test_ha_resources_and_templates_are_named(sandbox, pxsched):
    sandbox.qm("create", 101, name="golden")
    path = sandbox.node.config(101)
    path.write_text(path.read_text() + "template: 1\n")
    ha = sandbox.node.path("etc/pve/ha/resources.cfg")
    ha.parent.mkdir(exist_ok=True)
    ha.write_text("vm: 100\n\tstate started\n\nct: 200\n")
    _, out, _ = pxsched(Root(sandbox.root), "enable", "--all")
    assert "100 web on sandbox: enabled" in out
    assert "an HA resource" in out
    assert "101 golden on sandbox: skipped (a template" in out
    assert "hookscript" not in config(sandbox, 101)


def test_now_places_a_running_vm_without_waiting_for_the_timer(sandbox, pxsched):
    sandbox.qm("set", 100, affinity="0")
    sandbox.qm("start", 100)
    assert pxsched(Root(sandbox.root), "enable", "100", "--now")[0] == 0
    assert set(sandbox.masks(100)) == {"0"}
    with ledger.locked(Root(sandbox.root)) as held:
        assert 100 in held.claims


def test_karpenters_vm_is_kept_by_the_sandboxs_qm_and_cannot_start(sandbox, pxsched):
    from pxsched.host import topology
    from pxsched.karpenter import keep
    from pxsched.settings.policy import NodeSettings

    root = Root(sandbox.root)
    [line] = keep.tick(root, topology.read(root), NodeSettings())
    assert "created VM 101" in line
    assert "numa0: cpus=0-" in config(sandbox, 101)
    assert sandbox.qm("start", 101, check=False).code != 0
    assert keep.tick(root, topology.read(root), NodeSettings()) == []
    sandbox.qm("set", 101, memory=1024)
    assert "updated VM 101 (memory)" in keep.tick(root, topology.read(root), NodeSettings())[0]
    assert "skipped (describes the node's capacity" in pxsched(root, "enable", "--all")[1]


def test_the_tick_keeps_karpenters_vm_when_the_feature_is_on(sandbox, monkeypatch):
    from pxsched import tick

    root = Root(sandbox.root)
    tick.tick(root, {})
    assert not sandbox.node.config(101).exists()
    tick.tick(root, {"PROXMOX_FEATURE_FLAGS": "karpenter"})
    assert "name: node-capacity" in config(sandbox, 101)


def test_a_balloon_is_taken_over_and_given_back(sandbox, pxsched):
    sandbox.qm("set", 100, balloon=32)
    before = config(sandbox)
    code, out, _ = pxsched(Root(sandbox.root), "enable", "100", "--balloon")
    assert code == 0
    assert "shares unset -> 0" in out
    assert "shares: 0" in config(sandbox)
    assert pxsched(Root(sandbox.root), "disable", "100")[0] == 0
    assert config(sandbox) == before
    assert chain.RECORDS.vmids(Root(sandbox.root)) == []


def test_taking_the_balloon_over_later_keeps_the_chained_script(sandbox, pxsched):
    sandbox.snippet("mine.sh", "#!/bin/sh\n")
    sandbox.qm("set", 100, balloon=32, hookscript="local:snippets/mine.sh")
    before = config(sandbox)
    pxsched(Root(sandbox.root), "enable", "100", "--chain")
    pxsched(Root(sandbox.root), "enable", "100", "--balloon")
    assert chain.read(Root(sandbox.root), 100).hookscript == "local:snippets/mine.sh"
    pxsched(Root(sandbox.root), "disable", "100")
    assert sorted(config(sandbox).splitlines()) == sorted(before.splitlines())


@pytest.mark.parametrize(
    ("options", "running", "reason"),
    [
        ({"hostpci0": "0000:01:00.0"}, False, "pinned by passed-through devices"),
        ({"hostpci7": "mapping=gpu"}, False, "pinned by passed-through devices"),
        ({"hugepages": "2"}, False, "huge pages"),
        ({}, True, "no balloon driver"),
    ],
)
def test_a_balloon_that_would_not_be_served_stays_proxmoxs(sandbox, pxsched, options, running, reason):
    sandbox.qm("set", 100, balloon=32, **options)
    if running:
        sandbox.qm("start", 100)
    code, _, err = pxsched(Root(sandbox.root), "enable", "100", "--balloon")
    assert code == 1
    assert reason in err
    assert "shares" not in config(sandbox)
    assert f"hookscript: {OURS}" in config(sandbox)


def test_a_minimum_by_policy_is_set_through_proxmox_and_gone_when_disabled(sandbox, pxsched):
    before = config(sandbox)
    settings = sandbox.node.path("etc/pxsched/pxsched.toml")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("[profile.elastic]\ntag = true\nballoon_minimum_percent = 25\n")
    sandbox.qm("set", 100, tags="prod;pxsched-elastic")
    assert pxsched(Root(sandbox.root), "enable", "100", "--balloon")[0] == 0
    assert "balloon: 16\n" in config(sandbox)
    assert "shares: 0\n" in config(sandbox)
    assert pxsched(Root(sandbox.root), "disable", "100")[0] == 0
    settings.unlink()
    sandbox.qm("set", 100, tags="prod")
    assert config(sandbox) == before
