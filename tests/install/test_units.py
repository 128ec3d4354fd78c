"""The systemd units, as each Debian's own systemd judges them."""

import json
import re

import pytest

pytestmark = pytest.mark.slow

UNITS = ("pxsched.service", "pxsched.timer")
# systemd's exposure, 0 to 10; a service without any hardening has 9.6.
MOST_EXPOSURE = 60


@pytest.fixture
def node(machine):
    machine.run("./install.sh")
    return machine


def test_systemd_finds_nothing_wrong_with_them(node):
    paths = [f"/etc/systemd/system/{unit}" for unit in UNITS]
    done = node.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths)
    assert [line for line in done.stdout.splitlines() if "pxsched" in line] == []


def test_the_service_is_hardened(node):
    done = node.run(
        "systemd-analyze", "security", "--offline=true", "--json=short", f"--threshold={MOST_EXPOSURE}",
        "/etc/systemd/system/pxsched.service", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)


def test_the_timer_is_enabled_and_goes_with_an_uninstallation(node):
    links = [path for path in node.path("etc/systemd/system").rglob("pxsched.*") if path.is_symlink()]
    assert links
    node.run("./install.sh", "--uninstall")
    assert list(node.path("etc/systemd/system").rglob("pxsched.*")) == []


@pytest.mark.parametrize("unit", UNITS)
def test_proxmoxs_own_units_do_not_depend_on_ours(node, unit):
    text = node.path(f"etc/systemd/system/{unit}").read_text()
    assert not re.search(r"^(RequiredBy|UpheldBy|Before)=.*pve", text, re.MULTILINE)


def test_the_service_calls_the_program_that_was_installed(node):
    text = node.path("etc/systemd/system/pxsched.service").read_text()
    command = re.search(r"^ExecStart=[-+!@:]*(\S+)", text, re.MULTILINE)[1]
    assert node.run(command, "--help").returncode == 0
