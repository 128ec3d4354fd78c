"""The Debian package on Debian 13: installed, upgraded under a running VM, removed under it, purged."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import package
from lab.node import Node
from lab.product import HOOK, Product, Turned

POLICY = '[node]\nisolation = "slices"\n[defaults]\nclass = "dedicated"\ngovernor = "performance"\n'
# It stays for snapshots and backups that name it.
STUB = "/var/lib/vz/snippets/pxsched"
EVERY_FILE = (
    "find / -xdev \\( -path /var/log -o -path /var/lib/dpkg -o -path /var/cache -o -path /tmp -o -path /root"
    " -o -path /var/lib/systemd -o -name __pycache__ -o -path /etc/pve \\) -prune -o -type f -print | sort"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    missing = package.missing_tools()
    if missing:
        pytest.skip(f"building the package needs {', '.join(missing)}")
    place = tmp_path_factory.mktemp("packages")
    return package.build(place), package.build(place, version_suffix="+later")


@pytest.fixture
def bare(node: Node, untouched: Turned) -> Iterator[Node]:
    """The node without pxsched. What other tests installed comes back with their next use."""
    node.run("/lab/checkout/install.sh", "--uninstall", "--remove-stub", timeout_s=300)
    node.run("rm", "-rf", "/etc/pxsched")
    yield node
    node.clear_guests()
    node.run("dpkg", "--purge", "pxsched")


def test_install_sh_leaves_nothing_behind_when_uninstalled(bare: Node, untouched: Turned) -> None:
    before = bare.shell(EVERY_FILE).check().out.splitlines()
    product = Product(bare)
    product.install()
    product.configure(POLICY)
    bare.rom_guest(100, hookscript=HOOK)
    bare.qm("start", "100").check()
    assert product.turned() != untouched
    bare.run("/lab/checkout/install.sh", "--uninstall", timeout_s=300).check()
    assert product.turned() == untouched
    assert set(product.vcpus(100).values()) == {"0-15"}
    assert "hookscript" not in bare.qm("config", "100").out
    left = set(bare.shell(EVERY_FILE).check().out.splitlines()) - set(before)
    assert left == {"/etc/pxsched/pxsched.toml", STUB}, "settings that an admin has edited stay"


def test_the_package_is_upgraded_removed_and_purged_under_a_running_vm(
    bare: Node, untouched: Turned, packages: tuple[Path, Path]
) -> None:
    before = bare.shell(EVERY_FILE).check().out.splitlines()
    for name, path in zip(("first.deb", "later.deb"), packages, strict=True):
        shutil.copy(path, bare.machine.state / name)
    bare.run("dpkg", "-i", "/lab/state/first.deb", timeout_s=300).check()
    product = Product(bare)
    product.stop_timer()
    product.configure(POLICY)
    bare.rom_guest(100)
    product.run("enable", "100").check()
    bare.qm("start", "100").check()
    turned, vcpus = product.turned(), product.vcpus(100)
    assert turned != untouched

    bare.run("dpkg", "-i", "--force-confold", "/lab/state/later.deb", timeout_s=300).check()
    assert "+later" in bare.run("dpkg-query", "-W", "pxsched").out
    product.stop_timer()
    assert (product.turned(), product.vcpus(100)) == (turned, vcpus)

    bare.run("dpkg", "-r", "pxsched", timeout_s=300).check()
    assert product.turned() == untouched
    assert set(product.vcpus(100).values()) == {"0-15"}
    assert "hookscript" not in bare.qm("config", "100").out
    bare.qm("stop", "100").check()
    bare.qm("start", "100").check()

    bare.run("dpkg", "-P", "pxsched", timeout_s=300).check()
    assert set(bare.shell(EVERY_FILE).check().out.splitlines()) - set(before) <= {STUB}
