"""Nothing is written below a mount point on which nothing is mounted."""

import os
from pathlib import Path

import pytest

from pxsched.chain import files as chain
from pxsched.chain.entry import Entry
from pxsched.errors import UserError
from pxsched.host import cgroup, mounts
from pxsched.knobs import file
from pxsched.knobs.knob import Gone
from pxsched.root import Root

MOUNTS = r"""sysfs /sys sysfs rw 0 0
/dev/fuse /etc/pve fuse rw,nosuid 0 0
server:/a\040b /mnt/pve/a\040b nfs4 rw 0 0
none /etc/pve2 tmpfs rw 0 0
"""


@pytest.fixture
def root(tmp_path) -> Root:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mounts").write_text(MOUNTS)
    return Root(str(tmp_path))


@pytest.mark.parametrize(
    "path, mounted",
    [("sys", True), ("/sys/", True), ("mnt/pve/a b", True), ("mnt/pve/a", False), ("mnt/pve", False),
     ("etc/pve", True), ("etc", False), ("fuse", False)],
)  # fmt: skip
def test_what_is_mounted_is_what_the_kernel_says(root, path, mounted):
    assert mounts.is_mounted(root, path) is mounted


def test_where_nothing_says_nobody_knows(tmp_path):
    assert mounts.is_mounted(Root(str(tmp_path)), "sys") is None


def test_the_running_machines_own_mounts_are_found():
    assert mounts.is_mounted(Root(), "proc") is True
    assert mounts.is_mounted(Root(), "proc/self") is False


def test_nothing_is_remembered_in_the_cluster_while_its_file_system_is_away(monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it would write on this very machine")

    monkeypatch.setattr(mounts, "is_mounted", lambda root, path: path != mounts.CLUSTER)
    monkeypatch.setattr(os, "makedirs", never)
    with pytest.raises(UserError, match="/etc/pve is not mounted"):
        chain.write(Root(), Entry(100, None, "local:snippets/own"))


def test_a_file_of_the_kernels_that_is_not_there_is_not_made(tmp_path):
    root = Root(str(tmp_path))
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    with pytest.raises(Gone):
        file.write(root, "sys/fs/cgroup/cpuset.cpus", "0")
    with pytest.raises(FileNotFoundError):
        cgroup.put(root, "", "cpuset.cpus", "0")
    assert list((tmp_path / "sys/fs/cgroup").iterdir()) == []


@pytest.mark.parametrize(
    "above, below, barred",
    [("rw,noexec", "rw", False), ("rw", "ro,noexec", True), ("rw,noexec", None, True), ("rw", None, False)],
)
def test_programs_run_where_the_innermost_mount_lets_them(root, above, below, barred):
    lines = [f"/dev/sda1 / ext4 {above} 0 0"] + ([f"server:/x /mnt/x nfs {below} 0 0"] if below else [])
    Path(root.path("proc/mounts")).write_text("\n".join(lines))
    assert mounts.is_barred(root, "mnt/x/snippets/pxsched") is barred
