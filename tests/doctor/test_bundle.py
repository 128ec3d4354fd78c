"""A bundle replays the machine it came from, and holds nothing of its tenants."""

import gzip
import os
import tarfile
from pathlib import Path

import pytest

from pxsched.doctor import bundle, commands
from pxsched.errors import UserError
from pxsched.guest import config
from pxsched.host import topology
from pxsched.node import sighting as nodes
from pxsched.root import Root
from pxsched.settings import files as settings

CONFIG = """\
#cHJpdmF0ZQ secret-note
name: secret-name
tags: secret-tag
cores: 4
memory: 4096
affinity: 3,1,0-1
numa: 1
numa0: cpus=0-1,memory=2048,hostnodes=0,policy=bind
numa1: cpus=2;3,memory=2048
hostpci0: 0000:01:00;0000:02:00.1,pcie=1
net0: virtio=BC:24:11:5E:C2:E7,bridge=vmbr0
args: -secret-argument
cipassword: secret-password
hookscript: local:snippets/pxsched
smbios1: uuid=0c5e4f6e-secret
"""


@pytest.fixture
def machine(tmp_path):
    """The machine the test runs on, with a VM and settings that tell what they should not."""
    base = tmp_path / "secret-directory"
    for relative, text in {
        "etc/pve/nodes/secret-node/qemu-server/100.conf": CONFIG,
        "etc/pxsched/pxsched.toml": '# secret-comment\n[node]\nhousekeeping = "0" # secret\n',
        "proc/cmdline": "root=UUID=secret-uuid isolcpus=2-3 quiet token=secret-token amd_iommu=on\n",
        "proc/interrupts": Path("/proc/interrupts").read_text(),
        "proc/4711/cmdline": "secret-process\n",
    }.items():
        path = base / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    os.symlink("nodes/secret-node", base / "etc/pve/local")
    os.symlink("/sys", base / "sys")
    return Root(str(base))


@pytest.fixture
def replay(machine, tmp_path):
    path = tmp_path / "bundle.tar.gz"
    bundle.write(machine, str(path), list(commands.examine(machine)))
    target = tmp_path / "replay"
    with tarfile.open(path) as tar:
        tar.extractall(target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return Root(str(target))


def test_the_topology_is_the_same(machine, replay):
    assert topology.read(replay) == topology.read(machine)


def test_settings_are_the_same(machine, replay):
    assert settings.load(replay, {}) == settings.load(machine, {})


def test_the_vm_is_the_same_in_all_that_matters_for_placing_it(replay):
    real = config.machine(config.parse(CONFIG))
    copy = nodes.machine_of(replay, 100)
    fields = "vcpus sockets cores memory_mib affinity guest_nodes hostpci hookscript"
    for field in fields.split():
        assert getattr(copy, field) == getattr(real, field), field


def test_nothing_of_tenants_and_no_secret_is_in_it(machine, tmp_path):
    path = tmp_path / "bundle.tar.gz"
    bundle.write(machine, str(path), list(commands.examine(machine)))
    content = gzip.decompress(path.read_bytes())
    assert b"secret" not in content
    assert b"BC:24:11" not in content


def test_of_the_kernels_command_line_only_scheduling_is_kept(replay):
    assert replay.read("proc/cmdline") == "isolcpus=2-3 amd_iommu=on"


def test_the_doctor_can_be_asked_about_the_replay(replay):
    assert any(finding.area == "topology" for finding in commands.examine(replay))


def test_patterns_do_not_cross_directories(tmp_path):
    for name in ("a1/x", "a1/y", "a1/b/x", "a2/x", "c/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert bundle.expand(Root(str(tmp_path)), "a*/{x,z}") == ["a1/x", "a2/x"]


def test_a_file_that_cannot_be_written_is_named(machine):
    with pytest.raises(UserError, match="/nonexistent/x"):
        bundle.write(machine, "/nonexistent/x", [])
