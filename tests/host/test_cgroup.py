"""Control groups of both versions: paths, sets in force, and tasks with masks of their own."""

import errno
from pathlib import Path

import pytest

from pxsched.errors import UserError
from pxsched.host import cgroup
from pxsched.host.cgroup import Version
from pxsched.root import Root


@pytest.fixture
def put(tmp_path):
    def write(relative: str, text: str) -> None:
        path = tmp_path / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    write.root = Root(str(tmp_path))
    return write


@pytest.fixture
def v2(put):
    put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory pids")
    put("sys/fs/cgroup/cpuset.cpus.effective", "0-15")
    put("sys/fs/cgroup/cpuset.mems.effective", "0-1")
    return put


def task(put, tid: int, cpus: str) -> None:
    put(f"proc/{tid}/stat", f"{tid} (a) b) S " + " ".join(str(field) for field in range(4, 53)))
    put(f"proc/{tid}/status", f"Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}")


def test_a_vms_scope_is_where_proxmox_puts_it(v2):
    assert cgroup.version(v2.root) is Version.V2
    assert cgroup.path(v2.root, cgroup.scope(100)) == "sys/fs/cgroup/qemu.slice/100.scope"


def test_on_v1_each_controller_has_a_tree_of_its_own(put):
    put("sys/fs/cgroup/cpuset/cgroup.procs", "")
    put("sys/fs/cgroup/cpuset/lxc/cpuset.effective_cpus", "0-3")
    root = put.root
    assert cgroup.version(root) is Version.V1
    assert cgroup.path(root, "lxc") == "sys/fs/cgroup/cpuset/lxc"
    assert cgroup.path(root, "lxc", "memory") == "sys/fs/cgroup/memory/lxc"
    assert cgroup.effective_cpus(root, "lxc") == {0, 1, 2, 3}


def test_v2_without_the_controller_is_not_v2(put):
    put("sys/fs/cgroup/cgroup.controllers", "cpu memory")
    assert cgroup.version(put.root) is None


def test_a_group_without_files_has_what_its_parent_has(v2):
    v2("sys/fs/cgroup/qemu.slice/cpuset.cpus.effective", "0-7")
    v2("sys/fs/cgroup/qemu.slice/100.scope/cgroup.threads", "")
    assert cgroup.effective_cpus(v2.root, "qemu.slice/100.scope") == set(range(8))
    assert cgroup.effective_nodes(v2.root, "qemu.slice/100.scope") == {0, 1}
    assert cgroup.configured_cpus(v2.root, "qemu.slice/100.scope") == ""


def test_where_nothing_says_anything_it_is_said(put):
    with pytest.raises(UserError, match="says which cpus may be used"):
        cgroup.effective_cpus(put.root, "system.slice")


def test_tasks_that_chose_their_mask_are_told_from_those_that_did_not(v2):
    v2("sys/fs/cgroup/system.slice/cgroup.threads", "")
    v2("sys/fs/cgroup/system.slice/a.service/cgroup.threads", "11\n12")
    v2("sys/fs/cgroup/system.slice/confined.service/cgroup.threads", "13\n14\n99")
    v2("sys/fs/cgroup/system.slice/confined.service/cpuset.cpus.effective", "4-7")
    for tid, cpus in (11, "0-15"), (12, "3"), (13, "4-7"), (14, "5"):
        task(v2, tid, cpus)
    found = cgroup.self_bound(v2.root, "system.slice")
    assert {item.tid: item.cpus for item in found} == {12: {3}, 14: {5}}
    assert {item.start_ticks for item in found} == {22}


@pytest.mark.parametrize("after", ["the first look", "a refusal"])
def test_a_set_whose_controller_systemd_takes_away_meanwhile_is_cleared(v2, monkeypatch, after):
    v2("sys/fs/cgroup/system.slice/cpuset.cpus", "0-3")
    answers = [OSError(errno.ENOSPC, "tasks")] if after == "a refusal" else []
    answers.append(FileNotFoundError(errno.ENOENT, "gone"))

    def put(*_args):
        raise answers.pop(0)

    monkeypatch.setattr(cgroup, "put", put)
    cgroup.clear(v2.root, "system.slice", "cpuset.cpus")
    assert not answers


def test_this_machine_has_sets_in_force():
    root = Root("/")
    if cgroup.version(root) is None:
        pytest.skip("no cpuset controller")
    assert cgroup.effective_cpus(root, "")
    assert Path("/", cgroup.path(root, "")).is_dir()
