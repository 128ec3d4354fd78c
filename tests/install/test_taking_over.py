"""The Debian package takes over from the daemon proxmox-scheduler, whose settings file has the same name, and
gives it back: on Debian 12 and 13, with a package of the daemon's name, files and scripts.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SETTINGS = "etc/default/proxmox-scheduler"
SHIPPED = (Path(__file__).parents[1] / "data/proxmox-scheduler/7bf47b9").read_text()
CHANGED = f'{SHIPPED}CPU_GOVERNOR_FREE=schedutil\nEXTRA_ARGS="--shared-policy=partition --reserved-cpus 0"\n'

CONTROL = """\
Package: proxmox-scheduler
Version: 0.12.0
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: a package of the daemon's name
"""
# As the daemon's own: started when configured, stopped and disabled before it is removed.
POSTINST = "#!/bin/sh\nset -e\nsystemctl enable proxmox-scheduler\nsystemctl restart proxmox-scheduler\n"
PRERM = (
    "#!/bin/sh\nset -e\nif systemctl is-active --quiet proxmox-scheduler; then"
    " systemctl stop proxmox-scheduler; fi\nsystemctl disable proxmox-scheduler\n"
)
# No systemd runs in these roots.
SYSTEMCTL = """\
#!/bin/sh
case $* in
    'restart proxmox-scheduler') proxmox-scheduler >/dev/null 2>&1 & echo $! >/run/daemon.pid ;;
    'is-active --quiet proxmox-scheduler') kill -0 "$(cat /run/daemon.pid)" ;;
    'stop proxmox-scheduler') kill "$(cat /run/daemon.pid)" ;;
esac
"""
# Whether the daemon's process is there, looked for ten seconds.
SHELL = """
runs() { [ "$(cat "/proc/$(cat /run/daemon.pid)/comm" 2>/dev/null)" = proxmox-schedul ]; }
soon() { for _ in $(seq 100); do if "$@"; then return; fi; sleep 0.1; done; return 1; }
stopped() { ! runs; }
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Path:
    """The daemon's package."""
    place = tmp_path_factory.mktemp("daemon")
    tree = place / "tree"
    files = {
        "DEBIAN/control": CONTROL,
        "DEBIAN/conffiles": f"/{SETTINGS}\n",
        "DEBIAN/postinst": POSTINST,
        "DEBIAN/prerm": PRERM,
        SETTINGS: SHIPPED,
        "usr/lib/systemd/system/proxmox-scheduler.service": "[Service]\nExecStart=proxmox-scheduler\n",
        "usr/sbin/proxmox-scheduler": "#!/bin/sh\nsleep 600\n",
    }
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if "sbin" in name or text.startswith("#!") else 0o644)
    package = place / "daemon.deb"
    build = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(package)]
    subprocess.run(build, check=True, capture_output=True)
    return package


@pytest.fixture
def node(machine, package, daemon):
    """Both packages lie ready; nothing is installed."""
    shutil.copy(package, machine.path("ours.deb"))
    shutil.copy(daemon, machine.path("daemon.deb"))
    fake = machine.path("usr/local/sbin/systemctl")
    fake.write_text(SYSTEMCTL)
    fake.chmod(0o755)
    return machine


def status(machine, name: str) -> str:
    return machine.run("dpkg-query", "-W", "-f", "${db:Status-Status}", name).stdout


@pytest.mark.parametrize("text", [SHIPPED, CHANGED], ids=["unchanged", "changed"])
def test_it_takes_over_without_a_question_and_gives_back_without_one(node, text):
    node.path("text").write_text(text)
    said = node.run(
        "sh", "-ec",
        f"{SHELL} dpkg -i /daemon.deb; cp /text /{SETTINGS}; soon runs; dpkg -i /ours.deb; soon stopped",
    ).stdout  # fmt: skip
    assert (status(node, "proxmox-scheduler"), status(node, "pxsched")) == ("config-files", "installed")
    assert node.path(SETTINGS).read_text() == text
    assert f"/{SETTINGS}:5: VERBOSITY is the older daemon's" in said
    assert ("EXTRA_ARGS --shared-policy" in said) == (text == CHANGED)

    assert node.run("dpkg", "-i", "/daemon.deb", check=False).returncode != 0
    node.run("dpkg", "-r", "pxsched")
    node.run("sh", "-ec", f"{SHELL} dpkg -i /daemon.deb; soon runs")
    assert node.path(SETTINGS).read_text() == text
    node.run("dpkg", "-P", "pxsched")
    assert node.path(SETTINGS).read_text() == text


def test_purging_what_is_left_of_the_daemon_takes_no_settings_along(node):
    node.run("sh", "-ec", f"dpkg -i /daemon.deb; echo RESERVED_CPUS=0 >>/{SETTINGS}; dpkg -i /ours.deb")
    node.run("dpkg", "-P", "proxmox-scheduler")
    assert node.path(SETTINGS).read_text() == f"{SHIPPED}RESERVED_CPUS=0\n"
    node.run("dpkg", "-P", "pxsched")
    assert not node.path(SETTINGS).exists()
    assert "proxmox-scheduler" not in node.run("dpkg-divert", "--list").stdout


def test_what_the_admin_took_away_does_not_come_back_with_an_upgrade(node):
    node.run("dpkg", "-i", "/ours.deb")
    assert "\nCPU_GOVERNOR_BUSY=performance\n" in node.path(SETTINGS).read_text()
    node.path(SETTINGS).unlink()
    node.run("dpkg", "-i", "/ours.deb")
    assert not node.path(SETTINGS).exists()
