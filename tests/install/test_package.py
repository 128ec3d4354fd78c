"""The Debian package: built with the standard tools, clean, and working on Debian 12 and 13."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import CHECKOUT, build

pytestmark = pytest.mark.slow

HOOK = "var/lib/vz/snippets/pxsched"
OURS = "hookscript: local:snippets/pxsched\n"


def contents(package: Path) -> list[str]:
    done = subprocess.run(["dpkg-deb", "-c", str(package)], text=True, capture_output=True, check=True)
    return [line.split()[5] for line in done.stdout.splitlines()]


@pytest.fixture
def installed(machine, package):
    """A node on which the package was installed with dpkg."""
    shutil.copy(package, machine.path("package.deb"))
    machine.run("dpkg", "-i", "/package.deb")
    return machine


def test_lintian_has_nothing_to_say(package):
    changes = next(package.parent.glob("*.changes"))
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "warning,error", str(changes)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "W:" not in done.stdout


def test_it_holds_the_program_the_hookscript_the_units_and_the_manual(package):
    names = contents(package)
    for name in ("usr/bin/pxsched", "usr/share/pxsched/hooks/pxsched", "etc/pxsched/pxsched.toml"):
        assert f"./{name}" in names
    for name in ("bash-completion/completions/pxsched", "zsh/vendor-completions/_pxsched",
                 "man/man1/pxsched.1.gz", "doc/pxsched/settings.md", "doc/pxsched/replacing.md"):  # fmt: skip
        assert f"./usr/share/{name}" in names
    units = [path.name for path in (CHECKOUT / "hooks").glob("pxsched.*")]
    for unit in units:
        assert any(name.endswith(f"/systemd/system/{unit}") for name in names)


def test_who_builds_it_elsewhere_and_later_gets_the_same_bytes(package, tmp_path):
    again = build(tmp_path, umask=0o077, TZ="Asia/Tokyo", LC_ALL="C")
    assert again.read_bytes() == package.read_bytes()


def test_it_holds_no_tests_and_nothing_of_the_build(package):
    assert [name for name in contents(package) if "tests" in name or "__pycache__" in name] == []


def test_installing_it_puts_the_hookscript_in_place(installed):
    assert os.access(installed.path(HOOK), os.X_OK)
    installed.vm(100, OURS)
    done = installed.run(f"/{HOOK}", "100", "pre-start", PVE_MIGRATED_FROM="")
    assert "pxsched: VM 100" in done.stdout


def test_installing_it_again_keeps_the_admins_files(installed):
    settings = installed.path("etc/pxsched/pxsched.toml")
    settings.write_text("[node]\nmoves = 1\n")
    installed.run("dpkg", "-i", "/package.deb")
    assert settings.read_text() == "[node]\nmoves = 1\n"


def test_removing_it_takes_the_hookscript_off_and_leaves_a_stub_for_snapshots_and_backups(installed):
    installed.vm(100, "[before]\n" + OURS)
    installed.run("pxsched", "enable", "100")
    said = installed.run("dpkg", "-r", "pxsched").stdout
    text = installed.path("etc/pve/nodes/pve1/qemu-server/100.conf").read_text()
    assert "hookscript" not in text.partition("[before]")[0]
    assert installed.run(f"/{HOOK}", "100", "pre-start").stdout == ""
    assert "brings it back to 1: VM 100 before" in said


def test_it_is_not_removed_while_nobody_knows_who_names_the_hookscript(installed):
    installed.vm(100, OURS)
    installed.path("etc/pve/nodes").rename(installed.path("tmp/nodes"))
    done = installed.run("dpkg", "-r", "pxsched", check=False)
    assert done.returncode != 0
    assert "pve-cluster" in done.stdout
    assert "pxsched.hook" in installed.path(HOOK).read_text()
    installed.path("tmp/nodes").rename(installed.path("etc/pve/nodes"))
    assert installed.run("pxsched", "list").returncode == 0
    installed.run("dpkg", "-r", "pxsched")


def test_removing_it_leaves_a_stub_where_a_vm_cannot_be_changed(installed):
    installed.vm(100, OURS)
    installed.path("etc/pve/broken").touch()
    installed.run("dpkg", "-r", "pxsched")
    assert installed.run(f"/{HOOK}", "100", "pre-start").stdout == ""


def test_purging_it_leaves_no_file(machine, package):
    before = machine.files()
    shutil.copy(package, machine.path("tmp/package.deb"))
    machine.run("dpkg", "-i", "/tmp/package.deb")
    machine.run("dpkg", "-P", "pxsched")
    after = machine.files()
    assert after.pop(HOOK)
    assert after == before


def test_install_sh_does_not_install_beside_the_package(installed):
    done = installed.run("./install.sh", check=False)
    assert done.returncode == 1
    assert "Debian package" in done.stdout


def test_the_timer_is_enabled_by_it_and_gone_with_it(installed):
    links = [path for path in installed.path("etc/systemd/system").rglob("pxsched.*") if path.is_symlink()]
    assert [path.name for path in links] == ["pxsched.timer"]
    installed.run("dpkg", "-P", "pxsched")
    assert list(installed.path("etc/systemd/system").rglob("pxsched.*")) == []
