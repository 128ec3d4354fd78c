"""Installing on a node, upgrading, being interrupted, uninstalling: by install.sh, in Debian 12 and 13."""

import os
import subprocess
import sys

import pytest

from .conftest import CHECKOUT

pytestmark = pytest.mark.slow

HOOK = "var/lib/vz/snippets/pxsched"
OURS = "hookscript: local:snippets/pxsched\n"


def test_a_node_gets_hookscript_command_units_and_settings(machine):
    said = machine.run("./install.sh").stdout
    assert os.access(machine.path(HOOK), os.X_OK)
    assert machine.path("etc/default/proxmox-scheduler").exists()
    assert machine.path("etc/pxsched/pxsched.toml").exists()
    assert "pxsched doctor" in said
    assert '"schema": 1' in machine.run("pxsched", "list", "--json").stdout
    for unit in machine.path("checkout/hooks").glob("pxsched.*"):
        text = machine.path(f"etc/systemd/system/{unit.name}").read_text()
        assert "/usr/bin/pxsched" not in text


def test_the_hook_runs_with_nothing_but_debians_python(machine):
    machine.run("./install.sh")
    machine.vm(100, OURS)
    surroundings = {"PVE_MIGRATED_FROM": "", "LC_ALL": "C", "PYTHONPATH": "/nonsense"}
    done = machine.run(f"/{HOOK}", "100", "pre-start", **surroundings)
    assert "does not work" not in done.stdout
    assert "pxsched: VM 100" in done.stdout


def test_a_dry_run_changes_no_file(machine):
    before = machine.files()
    said = machine.run("./install.sh", "--dry-run").stdout
    assert f"would write /{HOOK}" in said
    assert machine.files() == before


def test_a_second_run_changes_nothing(machine):
    machine.run("./install.sh")
    before = machine.files()
    machine.run("./install.sh")
    assert machine.files() == before


def test_an_upgrade_replaces_the_program_and_keeps_the_admins_files(machine):
    machine.run("./install.sh")
    settings = machine.path("etc/default/proxmox-scheduler")
    settings.write_text("CPU_GOVERNOR_BUSY=performance\n")
    added = machine.path("checkout/pxsched/added_by_the_upgrade.py")
    added.write_text("")
    machine.path("checkout/hooks/pxsched").open("a").write("# newer\n")
    machine.run("./install.sh")
    assert settings.read_text() == "CPU_GOVERNOR_BUSY=performance\n"
    assert machine.path(HOOK).read_text().endswith("# newer\n")
    assert list(machine.path("opt/pxsched").rglob("added_by_the_upgrade.py"))
    added.unlink()
    machine.run("./install.sh")
    assert not list(machine.path("opt/pxsched").rglob("added_by_the_upgrade.py"))


def test_an_interrupted_run_is_finished_by_the_next_one(machine):
    """At moments nobody chose; test_tree.py has every single one."""
    for after_s in ("0.6", "1.2", "2", "3", "4.5"):
        machine.run("timeout", "-s", "KILL", after_s, "./install.sh", check=False)
    machine.run("./install.sh")
    assert '"schema": 1' in machine.run("pxsched", "doctor", "--json", check=False).stdout
    assert not list(machine.path("opt/pxsched").rglob(".pxsched-*"))


def test_uninstalling_leaves_the_machine_as_it_was(machine):
    before = machine.files()
    machine.run("./install.sh")
    machine.vm(100)
    machine.run("pxsched", "enable", "100")
    assert OURS in machine.path("etc/pve/nodes/pve1/qemu-server/100.conf").read_text()
    said = machine.run("./install.sh", "--uninstall").stdout
    assert "take the hookscript off VM 100" in said
    after = machine.files()
    after.pop("etc/pve/nodes/pve1/qemu-server/100.conf")
    assert after.keys() - before.keys() == {HOOK}, "the stub, as backups may name it"
    assert machine.run(f"/{HOOK}", "100", "pre-start").stdout == ""
    assert "hookscript" not in machine.path("etc/pve/nodes/pve1/qemu-server/100.conf").read_text()
    machine.run("./install.sh", "--uninstall", "--remove-stub")
    after = machine.files()
    after.pop("etc/pve/nodes/pve1/qemu-server/100.conf")
    assert after == before


def without_would(said):
    return [line.removeprefix("would ") for line in said.splitlines() if not line.startswith("  ")]


@pytest.mark.parametrize("more", [[], ["--remove-stub"]], ids=["with a stub", "without"])
def test_a_dry_run_says_exactly_what_the_real_run_does(machine, more):
    machine.run("./install.sh")
    machine.vm(100, OURS)
    machine.vm(101, "[before]\n" + OURS)
    machine.path("etc/default/proxmox-scheduler").write_text("CPU_GOVERNOR_BUSY=performance\n")
    for path in ("opt/pxsched/lib/mine.txt", "opt/pxsched/notes", "etc/pxsched/hooks.d/10-mine"):
        machine.path(path).parent.mkdir(exist_ok=True)
        machine.path(path).write_text("#!/bin/sh\n")
    machine.path("opt/pxsched/share/pxsched/hooks/pxsched.timer").write_text("changed\n")
    before = machine.files()
    shown = machine.run("./install.sh", "--uninstall", "--dry-run", *more).stdout
    assert machine.files() == before
    said = machine.run("./install.sh", "--uninstall", *more).stdout
    assert without_would(shown) == without_would(said)
    assert "left: /opt/pxsched/notes (not of pxsched)" in said
    assert "left: /opt/pxsched/share/pxsched/hooks/pxsched.timer (changed since it was installed)" in said
    assert "left: /etc/default/proxmox-scheduler" in said
    assert "brings it back to 1: VM 101 before" in said
    assert "backup" in said
    assert machine.path(HOOK).exists() == (not more)
    left = [path for path in machine.files() if path.startswith("opt/")]
    assert sorted(left) == [
        "opt/pxsched/lib/mine.txt", "opt/pxsched/notes", "opt/pxsched/share/pxsched/hooks/pxsched.timer",
    ]  # fmt: skip


PREFIXES = ["/usr/", "//usr", "/etc/", "/root/", "/boot", "/var/lib", "/", "//", "/opt/link", "/checkout/"]


def test_no_prefix_however_it_is_spelled_makes_it_touch_what_is_not_ours(machine):
    machine.path("opt/link").symlink_to("/var/lib/mine")
    for path in ("var/lib/mine/data", "boot/vmlinuz", "root/notes"):
        machine.path(path).parent.mkdir(exist_ok=True)
        machine.path(path).write_text("precious\n")
    for step in ("before", "after"):
        before = machine.files()
        for prefix in PREFIXES:
            for words in (["--uninstall"], ["--uninstall", "--dry-run"], []):
                done = machine.run("./install.sh", *words, "--prefix", prefix, check=False)
                assert done.returncode != 0, (prefix, words, done.stdout)
        assert machine.files() == before, step
        machine.run("./install.sh")


@pytest.mark.parametrize("how", ["empty", "without this node"])
def test_nothing_is_done_while_the_cluster_cannot_be_read(machine, how):
    machine.run("./install.sh")
    machine.vm(100, OURS)
    nodes = machine.path("etc/pve/nodes")
    nodes.rename(machine.path("tmp/nodes"))
    local = machine.path("etc/pve/local")
    if how == "empty":
        local.unlink()
    else:
        nodes.mkdir()
    before = machine.files()
    for more in ([], ["--dry-run"], ["--remove-stub"]):
        done = machine.run("./install.sh", "--uninstall", *more, check=False)
        assert done.returncode == 1
        assert "pve-cluster" in done.stdout
    assert machine.files() == before
    if how != "empty":
        nodes.rmdir()
    machine.path("tmp/nodes").rename(nodes)
    if not local.is_symlink():
        local.symlink_to("nodes/pve1")
    machine.run("./install.sh", "--uninstall")
    assert "hookscript" not in machine.path("etc/pve/nodes/pve1/qemu-server/100.conf").read_text()


def test_an_installation_without_a_list_is_upgraded_first(machine):
    machine.run("./install.sh")
    machine.path("var/lib/pxsched/manifest.json").unlink()
    before = machine.files()
    done = machine.run("./install.sh", "--uninstall", check=False)
    assert done.returncode == 1
    assert "earlier version" in done.stdout
    assert machine.files() == before
    machine.path("opt/pxsched/notes").write_text("mine\n")
    machine.run("./install.sh")
    machine.run("./install.sh", "--uninstall", "--remove-stub")
    assert [path for path in machine.files() if "pxsched" in path] == ["opt/pxsched/notes"]


def test_a_chained_script_runs_on_when_its_vm_is_locked_while_we_leave(machine):
    mine = machine.path("var/lib/vz/snippets/mine.sh")
    machine.run("./install.sh")
    mine.write_text("#!/bin/sh\necho mine $1 $2\n")
    mine.chmod(0o755)
    config = machine.vm(100, "hookscript: local:snippets/mine.sh\nmeta: ctime=5\n")
    machine.run("pxsched", "enable", "100", "--chain")
    machine.path("etc/pve/broken").touch()
    said = machine.run("./install.sh", "--uninstall").stdout
    assert "still named by VM 100" in said
    assert machine.run(f"/{HOOK}", "100", "pre-start").stdout == "mine 100 pre-start\n"
    machine.path("etc/pve/broken").unlink()
    machine.run("./install.sh", "--uninstall", "--remove-stub")
    assert "hookscript: local:snippets/mine.sh" in config.read_text()
    assert not machine.path(HOOK).exists()


def test_uninstalling_keeps_what_the_admin_wrote_and_says_so(machine):
    machine.run("./install.sh")
    machine.path("etc/default/proxmox-scheduler").write_text("CPU_GOVERNOR_BUSY=performance\n")
    said = machine.run("./install.sh", "--uninstall").stdout
    assert "left: /etc/default/proxmox-scheduler" in said
    assert machine.path("etc/default/proxmox-scheduler").exists()
    assert not machine.path("etc/pxsched").exists()


def test_a_vm_that_cannot_be_changed_keeps_a_stub_that_lets_it_start(machine):
    machine.run("./install.sh")
    machine.vm(100, OURS)
    machine.path("etc/pve/broken").touch()
    said = machine.run("./install.sh", "--uninstall").stdout
    assert "no quorum" in said
    assert "still named by VM 100" in said
    assert machine.run(f"/{HOOK}", "100", "pre-start").stdout == ""


def test_vms_of_other_nodes_may_still_arrive_and_find_a_stub(machine):
    machine.run("./install.sh")
    machine.vm(200, OURS, node="pve2")
    machine.run("./install.sh", "--uninstall")
    assert machine.run(f"/{HOOK}", "200", "pre-start").returncode == 0
    config = machine.path("etc/pve/nodes/pve2/qemu-server/200.conf").read_text()
    assert OURS in config, "pve2 still has pxsched"


def test_installing_after_uninstalling_replaces_the_stub(machine):
    machine.run("./install.sh")
    machine.vm(200, OURS, node="pve2")
    machine.run("./install.sh", "--uninstall")
    machine.run("./install.sh")
    assert "pxsched.hook" in machine.path(HOOK).read_text()


def test_uninstalling_twice_is_harmless(machine):
    machine.run("./install.sh")
    machine.run("./install.sh", "--uninstall")
    machine.run("./install.sh", "--uninstall")


def test_an_own_prefix_and_storage(machine):
    storages = "dir: local\n\tpath /var/lib/vz\n\ndir: fast\n\tpath /srv/fast\n"
    machine.path("etc/pve/storage.cfg").write_text(storages)
    machine.run("./install.sh", "--prefix", "/srv/tools/pxsched", "--storage", "fast")
    assert not machine.path("opt/pxsched").exists()
    config = machine.vm(100)
    machine.run("pxsched", "enable", "100")
    assert "hookscript: fast:snippets/pxsched" in config.read_text()
    done = machine.run("/srv/fast/snippets/pxsched", "100", "pre-start")
    assert "pxsched: VM 100" in done.stdout
    machine.run("./install.sh", "--uninstall", "--prefix", "/srv/tools//pxsched/", "--remove-stub")
    assert not machine.path("srv/fast/snippets/pxsched").exists()
    assert not machine.path("srv/tools/pxsched").exists()


@pytest.mark.parametrize("prefix", ["/usr", "relative", "/opt/../etc", "/opt/with space"])
def test_a_prefix_that_is_not_our_own_is_refused(machine, prefix):
    done = machine.run("./install.sh", "--prefix", prefix, check=False)
    assert done.returncode == 2


def test_without_root_it_says_exactly_what_is_missing(machine):
    done = machine.run("setpriv", "--reuid=65534", "--clear-groups", "./install.sh", check=False)
    assert done.returncode == 1
    assert "root is needed" in done.stdout


def test_on_a_machine_that_is_no_node_it_points_to_the_demo(machine):
    machine.path("usr/bin/qm").unlink()
    done = machine.run("./install.sh", check=False)
    assert done.returncode == 1
    assert "--demo" in done.stdout


def test_missing_python_packages_come_from_debian(machine):
    machine.run("dpkg", "--force-depends", "--remove", "python3-pyroute2")
    done = machine.run("./install.sh", check=False)
    if "Could not resolve" in done.stdout or "Unable to connect" in done.stdout:
        pytest.skip("no Debian mirror can be reached from the root")
    assert done.returncode == 0, done.stdout
    assert machine.path("usr/lib/python3/dist-packages/pyroute2").exists()


def test_each_debians_proxmoxer_speaks_https(machine):
    """Debian 12 has proxmoxer 1.2.0, Debian 13 2.2.0; they differ in what they raise."""
    machine.run("./install.sh")
    certificate = machine.path("certificate")
    certificate.mkdir()
    make = f"import sys; sys.path.insert(0, {str(CHECKOUT / 'tests/optin')!r}); import api_server"
    code = f"{make}, pathlib; api_server.make_certificate(pathlib.Path({str(certificate)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    said = machine.run("python3", "tests/install/files/https_session.py", "/certificate").stdout
    assert "0 VM 100 web on pve1: enabled" in said
    assert "'PUT', 'nodes/pve1/qemu/100/config', {'hookscript': 'local:snippets/pxsched', 'digest'" in said
    assert "100  pve1" in said
    assert "1 pxsched: 127.0.0.1" in said
    assert "certificate" in said
    assert "unexpected" not in said
