"""Proxmox VE 8's Debian 12 (kernel 6.1, systemd 252, Python 3.11): the package's life and one placed VM."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import image, package, recipe
from lab.machine import Machine
from lab.node import Node
from lab.product import Product

EVERYTHING = """
[node]
isolation = "slices"
[defaults]
class = "dedicated"
memory = "strict"
governor = "performance"
"""


@pytest.fixture(scope="module")
def older() -> Iterator[Node]:
    try:
        qemu, older = image.get(recipe.HOST), image.get(recipe.OLDER_HOST)
    except image.Unavailable as reason:
        pytest.skip(str(reason))
    with Machine(older, qemu=qemu) as machine:
        yield Node(machine)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    missing = package.missing_tools()
    if missing:
        pytest.skip(f"building the package needs {', '.join(missing)}")
    return package.build(tmp_path)


def test_the_package_places_a_vm_and_leaves_nothing_when_purged(older: Node, built: Path) -> None:
    product = Product(older)
    untouched = product.turned()
    shutil.copy(built, older.machine.state / "pxsched.deb")
    older.run("dpkg", "-i", "/lab/state/pxsched.deb", timeout_s=300).check()
    product.stop_timer()
    product.configure(EVERYTHING)
    guest = older.rom_guest(100, cores=4)
    product.run("enable", "100").check()
    older.qm("start", "100").check()
    guest.wait_started(4)
    own = frozenset().union(*older.vcpu_masks(100).values())
    assert len(own) == 4
    assert all(len(cpus) == 1 for cpus in older.vcpu_masks(100).values())
    assert {cpu for cpu, governor in older.governors().items() if governor == "performance"} == own
    product.tick()
    assert frozenset().union(*older.vcpu_masks(100).values()) == own
    older.run("dpkg", "-P", "pxsched", timeout_s=300).check()
    assert product.turned() == untouched
    assert set(product.vcpus(100).values()) == {"0-15"}
