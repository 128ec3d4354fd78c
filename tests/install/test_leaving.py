"""Nobody is left naming a script that is gone: who names it, the stub that stays, and what it runs on."""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from pxsched import cli
from pxsched.chain import files as chain
from pxsched.chain import run
from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.guest import identity
from pxsched.guest.identity import Identity
from pxsched.optin import naming
from pxsched.proxmox.api import ApiError
from pxsched.root import Root
from pxsched.setup import stub

CHECKOUT = Path(__file__).parents[2]
HOOK = "var/lib/vz/snippets/pxsched"
OURS = "hookscript: local:snippets/pxsched\n"


class Node:
    """A node called pve1 of two, in a directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = Root(str(base))
        for name in ("pve1", "pve2"):
            (base / f"etc/pve/nodes/{name}/qemu-server").mkdir(parents=True)
        (base / "etc/pve/local").symlink_to("nodes/pve1")
        self.broken: set[int] = set()

    def write(self, relative: str, text: str, mode: int = 0o644) -> Path:
        path = self.base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def vm(self, vmid: int, text: str = "", *, node: str = "pve1", kind: str = "qemu-server") -> Path:
        return self.write(f"etc/pve/nodes/{node}/{kind}/{vmid}.conf", f"cores: 2\n{text}")

    def call(self, method, path, params=None):
        """Proxmox's API, for a change of one VM's configuration."""
        vmid = int(path.split("/")[3])
        if vmid in self.broken:
            raise ApiError(f"can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout")
        config = self.base / f"etc/pve/nodes/pve1/qemu-server/{vmid}.conf"
        head, mark, rest = config.read_text().partition("[")
        lines = [line for line in head.splitlines() if not line.startswith("hookscript:")]
        lines += [f"hookscript: {params['hookscript']}"] if "hookscript" in params else []
        config.write_text("\n".join(lines) + "\n" + mark + rest)

    def stub(self, vmid: int, phase: str = "pre-start") -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.base / HOOK, str(vmid), phase], capture_output=True, text=True)

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.base.rglob("*") if path.is_file()}


@pytest.fixture
def node(tmp_path, monkeypatch) -> Node:
    """A node with pxsched installed."""
    made = Node(tmp_path / "node")
    monkeypatch.setattr("pxsched.setup.leaving.local_api", lambda root: made)
    assert cli.main(["--root", str(made.base), "node", "install"]) == 0
    return made


@pytest.fixture
def uninstall(node, capsys):
    capsys.readouterr()

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(["--root", str(node.base), "node", "uninstall", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def without_would(said: str) -> list[str]:
    return [line.removeprefix("would ") for line in said.splitlines() if not line.startswith("  ")]


# Who names it.


def test_vms_snapshots_and_containers_of_all_nodes_are_found(node):
    node.vm(100, OURS)
    node.vm(101, f"\n[before]\n{OURS}\n[after]\n{OURS}\n[other]\nhookscript: local:snippets/x\n", node="pve2")
    node.vm(102, "hookscript: local:snippets/pxsched-of-mine\n#hookscript: local:snippets/pxsched\n")
    node.vm(200, OURS, node="pve2", kind="lxc")
    named = naming.survey(node.root)
    assert [guest.vmid for guest in named.now] == [100]
    assert named.snapshots == ["VM 101 before", "VM 101 after"]
    assert named.containers == ((200, "pve2"),)


UNREADABLE = ["empty", "no nodes", "another node's only", "a directory", "a configuration"]


@pytest.fixture(params=UNREADABLE)
def unreadable(request, node):
    """/etc/pve while pve-cluster is down, starting, or pmxcfs is broken; returns how to mend it."""
    node.vm(100, OURS)
    nodes, away = node.base / "etc/pve/nodes", node.base / "away"
    if request.param == "a directory":
        (nodes / "pve2/qemu-server").rmdir()
        (nodes / "pve2/qemu-server").write_text("")
        return lambda: ((nodes / "pve2/qemu-server").unlink(), (nodes / "pve2/qemu-server").mkdir())
    if request.param == "a configuration":
        (nodes / "pve2/qemu-server/300.conf").mkdir()
        return lambda: (nodes / "pve2/qemu-server/300.conf").rmdir()
    nodes.rename(away)
    if request.param != "empty":
        nodes.mkdir()
    if request.param == "another node's only":
        (nodes / "pve2/qemu-server").mkdir(parents=True)
    return lambda: (shutil.rmtree(nodes, ignore_errors=True), away.rename(nodes))


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--remove-stub"], ["--packaged"]])
def test_while_the_cluster_cannot_be_read_nothing_is_done_at_all(node, uninstall, unreadable, more):
    before = node.files()
    code, out, err = uninstall(*more)
    assert (code, out) == (1, "")
    assert "/etc/pve" in err
    assert node.files() == before
    unreadable()
    assert uninstall()[0] == 0
    assert "hookscript" not in (node.base / "etc/pve/nodes/pve1/qemu-server/100.conf").read_text()


def test_a_machine_that_lost_proxmox_has_nobody_to_ask(node, uninstall):
    shutil.rmtree(node.base / "etc/pve")
    assert naming.survey(node.root) == naming.Naming()
    assert uninstall("--remove-stub")[0] == 0
    assert not (node.base / HOOK).exists()


# The stub.


def test_a_stub_stays_that_lets_every_vm_start(node, uninstall):
    code, out, _ = uninstall()
    assert (code, "backups may name it" in out) == (0, True)
    phases = ("pre-start", "post-start", "pre-stop", "post-stop", "new-phase")
    assert [node.stub(100, phase).returncode for phase in phases] == [0] * 5
    assert node.stub(100).stdout == ""


def test_the_admin_may_have_it_removed_and_hears_what_that_means(node, uninstall):
    node.vm(100, f"\n[before]\n{OURS}")
    code, out, _ = uninstall("--remove-stub")
    assert code == 0
    assert "brings it back to 1: VM 100 before" in out
    assert "qm set VMID --delete hookscript" in out
    assert not (node.base / HOOK).exists()


@pytest.mark.parametrize("kind", ["qemu-server", "lxc"])
def test_it_is_not_removed_while_somebody_names_it(node, uninstall, kind):
    node.vm(200, OURS, node="pve2", kind=kind)
    before = node.files()
    for more in ([], ["--dry-run"]):
        code, out, err = uninstall("--remove-stub", *more)
        assert (code, out) == (1, "")
        assert "200 on pve2" in err
    assert node.files() == before, "nothing is done at all"


def test_it_is_not_removed_when_a_vm_could_not_be_changed_after_all(node, uninstall):
    node.vm(100, OURS)
    node.broken = {100}
    code, _, err = uninstall("--remove-stub")
    assert code == 1
    assert "VM 100" in err
    assert node.stub(100).returncode == 0
    node.broken = set()
    assert uninstall("--remove-stub")[0] == 0
    assert not (node.base / HOOK).exists()


def test_a_script_of_that_name_that_is_not_ours_is_neither_replaced_nor_removed(node, uninstall, capsys):
    node.write(HOOK, "#!/bin/sh\n# the admin's\n", 0o755)
    assert cli.main(["--root", str(node.base), "node", "install"]) == 1
    assert "not of pxsched" in capsys.readouterr().err
    uninstall("--remove-stub")
    assert "the admin's" in (node.base / HOOK).read_text()


def test_a_script_on_a_storage_that_other_nodes_share_stays_for_them(node, uninstall):
    node.write("etc/pve/storage.cfg", "dir: local\n\tpath /var/lib/vz\n\nnfs: nas\n\texport /x\n")
    assert cli.main(["--root", str(node.base), "node", "install", "--storage", "nas"]) == 0
    node.vm(200, "hookscript: nas:snippets/pxsched\n", node="pve2")
    _, out, _ = uninstall()
    assert "which other nodes use" in out
    assert b"pxsched.hook" in (node.base / "mnt/pve/nas/snippets/pxsched").read_bytes()


def test_scripts_of_all_storages_it_was_ever_put_on_become_stubs(node, uninstall):
    storages = "dir: local\n\tpath /var/lib/vz\ndir: fast\n\tpath /srv/fast\ndir: gone\n\tpath /srv/gone\n"
    node.write("etc/pve/storage.cfg", storages)
    for name in ("fast", "gone"):
        assert cli.main(["--root", str(node.base), "node", "install", "--storage", name]) == 0
    node.write("etc/pve/storage.cfg", storages.partition("dir: gone")[0])
    node.vm(100, "\n[before]\nhookscript: fast:snippets/pxsched\n")
    assert uninstall()[0] == 0
    for path in (HOOK, "srv/fast/snippets/pxsched", "srv/gone/snippets/pxsched"):
        assert stub.is_stub((node.base / path).read_bytes()), path


# What was chained.

U1, U2 = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
MARKS = [
    f"smbios1: base64=1,uuid={U1}\nvmgenid: {U2}\nmeta: ctime=5\n",
    f"smbios1: uuid={U1.upper()}\n",
    f"vmgenid: {U2}\n",
    "meta: creation-qemu=9.0,ctime=5\n",
    "",
]
OTHERS = [f"smbios1: uuid={uuid.UUID(int=9)}\nvmgenid: {uuid.UUID(int=8)}\nmeta: ctime=6\n"]


@pytest.fixture
def locked(node, uninstall):
    """VM 100 with a chained script, locked by a backup while pxsched is removed. Takes the VM's marks."""

    def make(marks: str = MARKS[0], exit_code: int = 0) -> Node:
        text = f'#!/bin/sh\necho "mine $*"\nexit {exit_code}\n'
        node.write("var/lib/vz/snippets/mine.sh", text, 0o755)
        node.vm(100, OURS + marks + "lock: backup\n")
        owner = identity.of(dict(line.split(": ", 1) for line in marks.splitlines()))
        chain.write(node.root, Entry(100, owner, "local:snippets/mine.sh"))
        node.broken = {100}
        code, out, err = uninstall()
        assert (code, "still named by VM 100" in out, "got timeout" in err) == (0, True, True)
        return node

    return make


@pytest.mark.parametrize("marks", MARKS)
def test_the_stub_goes_on_to_run_it_in_every_phase(locked, marks):
    node = locked(marks)
    for phase in ("pre-start", "post-start", "pre-stop", "post-stop"):
        done = node.stub(100, phase)
        assert (done.returncode, done.stdout) == (0, f"mine 100 {phase}\n")
    assert node.stub(101).stdout == ""
    assert node.stub(100, "no-phase").stdout == ""


@pytest.mark.parametrize("marks", MARKS)
def test_but_not_for_another_vm_that_takes_the_number(locked, marks):
    node = locked(marks)
    node.vm(100, OURS + OTHERS[0])
    assert (node.stub(100).returncode, node.stub(100).stdout) == (0, "")
    (node.base / "etc/pve/nodes/pve1/qemu-server/100.conf").unlink()
    assert (node.stub(100).returncode, node.stub(100).stdout) == (0, "")


def test_what_a_tenant_writes_into_notes_makes_no_vm_another(locked):
    node = locked()
    node.vm(100, f"#smbios1: uuid={U1}\n#%0Avmgenid: {U2}\nname: uuid={U1}\n" + OTHERS[0])
    assert node.stub(100).stdout == ""


def test_its_exit_code_is_the_stubs_and_a_failing_pre_start_ends_it(locked):
    node = locked(exit_code=7)
    node.write("etc/pxsched/hooks.d/10-common.sh", "#!/bin/sh\necho common\n", 0o755)
    done = node.stub(100)
    assert (done.returncode, done.stdout) == (7, "mine 100 pre-start\n")
    done = node.stub(100, "post-stop")
    assert (done.returncode, done.stdout) == (7, "mine 100 post-stop\ncommon\n")


def test_a_chained_script_that_is_gone_keeps_the_vm_from_starting_as_proxmox_would(locked):
    node = locked()
    (node.base / "var/lib/vz/snippets/mine.sh").unlink()
    assert node.stub(100).returncode != 0


def test_scripts_for_every_vm_run_on_as_they_did(locked):
    node = locked()
    for name in ("20-b", "10-a.sh", "30-c.bak", ".hidden", "40~"):
        node.write(f"etc/pxsched/hooks.d/{name}", f"#!/bin/sh\necho {name} $2\n", 0o755)
    node.write("etc/pxsched/hooks.d/50-notes", "#!/bin/sh\necho no\n")
    before = [os.path.basename(path) for path in run.scripts(node.root, 100)]
    after = node.stub(100, "post-start").stdout.splitlines()
    assert [line.split()[0] for line in after] == [name.replace("mine.sh", "mine") for name in before]
    assert node.stub(777, "post-start").stdout == "10-a.sh post-start\n20-b post-start\n"


@pytest.mark.parametrize("name", ["it's.sh", "a b.sh", "$(touch x).sh", "`id`.sh"])
def test_no_name_of_a_script_is_more_than_a_name(node, name):
    path = node.write(f"var/lib/vz/snippets/{name}", "#!/bin/sh\necho ran\n", 0o755)
    node.vm(100)
    volume = f"local:snippets/{name}"
    text = stub.text(node.root, {100: Entry(100, Identity(), volume)})
    node.write(HOOK, text.decode(), 0o755)
    expected = "ran\n" if " " not in name else ""  # Proxmox knows no volume with a space
    assert node.stub(100).stdout == expected
    assert path.exists()
    assert not (Path.cwd() / "x").exists()


@pytest.mark.parametrize("vmid", ["", "../100", "100;id", "*", "1 0"])
def test_what_is_no_number_runs_nothing(locked, vmid):
    node = locked()
    assert node.stub(vmid).stdout == ""  # type: ignore[arg-type]


def test_a_chained_vm_that_shares_the_script_with_other_nodes_keeps_the_program(node, uninstall):
    """The script stays for the others, and without the program it would run nothing."""
    node.write("etc/pve/storage.cfg", "dir: local\n\tpath /var/lib/vz\n\nnfs: nas\n\texport /x\n")
    assert cli.main(["--root", str(node.base), "node", "install", "--storage", "nas"]) == 0
    node.vm(100, "hookscript: nas:snippets/pxsched\nmeta: ctime=5\n")
    chain.write(node.root, Entry(100, Identity(ctime_s="5"), "local:snippets/mine.sh"))
    node.broken = {100}
    before = {path for path in node.files() if "/run/" not in path}
    code, _, err = uninstall()
    assert (code, "VM 100" in err) == (1, True)
    assert {path for path in node.files() if "/run/" not in path} == before


# Plan and execution.


def test_metrics_do_not_go_on_to_tell_of_what_was(node, uninstall):
    node.write("etc/pxsched/pxsched.toml", '[node]\ntextfile = "/var/lib/prometheus/node-exporter"\n')
    ours = node.write("var/lib/prometheus/node-exporter/pxsched.prom", "pxsched_passes_total 1\n")
    theirs = node.write("var/lib/prometheus/node-exporter/apt.prom", "apt 1\n")
    code, out, _ = uninstall()
    assert (code, "remove /var/lib/prometheus/node-exporter/pxsched.prom" in out) == (0, True)
    assert (ours.exists(), theirs.exists()) == (False, True)


def test_a_dry_run_says_what_the_real_run_does_and_does_nothing(node, uninstall):
    node.vm(100, OURS)
    node.vm(101, f"\n[before]\n{OURS}")
    node.write("etc/pxsched/hooks.d/10-mine", "#!/bin/sh\n")
    node.write("etc/default/proxmox-scheduler", "CPU_GOVERNOR_BUSY=performance\n")
    before = node.files()
    shown = uninstall("--dry-run")
    assert node.files() == before
    done = uninstall()
    assert shown[0] == done[0] == 0
    assert without_would(shown[1]) == without_would(done[1])
    assert "left: /etc/default/proxmox-scheduler (changed since it was installed)" in done[1]
    assert "left: /etc/pxsched/hooks.d" in done[1]
    gone = {os.path.relpath(path, node.base) for path in before.keys() - node.files().keys()}
    said = [line.removeprefix("remove /") for line in done[1].splitlines() if line.startswith("remove /")]
    assert {name for name in said if not name.endswith("/")} | {"var/lib/pxsched/manifest.json"} == gone


def test_uninstalling_again_says_that_nothing_is_installed_or_takes_what_was_left(node, uninstall):
    uninstall()
    assert uninstall()[0] == 0
    assert uninstall("--remove-stub")[0] == 0
    before = node.files()
    assert uninstall() == (0, "pxsched is not installed on this node\n", "")
    assert node.files() == before


def test_without_a_list_nothing_is_removed(node, uninstall):
    (node.base / "var/lib/pxsched/manifest.json").unlink()
    before = node.files()
    code, _, err = uninstall()
    assert code == 1
    assert "kept no list" in err
    assert node.files() == before


def test_a_list_that_is_damaged_removes_nothing(node, uninstall):
    node.write("var/lib/pxsched/manifest.json", "{")
    before = node.files()
    code, _, err = uninstall()
    assert (code, "damaged" in err) == (1, True)
    assert node.files() == before


def test_killed_anywhere_uninstalling_is_finished_by_the_next_run(node, uninstall, tmp_path):
    from .test_removal import killed_at

    node.vm(100, OURS)
    node.vm(101, OURS)
    saved = tmp_path / "saved"
    shutil.copytree(node.base, saved, symlinks=True)
    arguments = ["--root", str(node.base), "node", "uninstall"]
    number, end = 0, None
    while True:
        shutil.rmtree(node.base)
        shutil.copytree(saved, node.base, symlinks=True)
        killed = killed_at(number, lambda: cli.main(arguments))
        assert os.access(node.base / HOOK, os.X_OK), "every VM can start at any moment"
        assert uninstall()[0] == 0
        left = {path for path in node.files() if "/run/" not in path}
        end = end or left
        assert left == end, number
        if not killed:
            break
        number += 1
    assert number > 10


def test_an_unreadable_cluster_in_the_middle_is_an_error_and_not_nobody(node, monkeypatch):
    node.vm(100, OURS)
    monkeypatch.setattr(naming.cluster, "read_guest", lambda *_: None)
    with pytest.raises(UserError, match="comes and goes"):
        naming.survey(node.root)


def test_the_other_nodes_are_left_nothing_of_this_one(node, uninstall):
    own = node.write("etc/pve/nodes/pve1/pxsched.json", "{}")
    theirs = node.write("etc/pve/nodes/pve2/pxsched.json", "{}")
    uninstall()
    assert not own.exists() and theirs.exists()
