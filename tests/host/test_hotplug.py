"""The topology for whoever asks again and again."""

import pytest

from pxsched.errors import UserError
from pxsched.host import hotplug
from pxsched.root import Root

CPUS = "sys/devices/system/cpu"


@pytest.fixture
def put(tmp_path):
    def put(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    put(f"{CPUS}/online", "0-3\n")
    for cpu in range(4):
        put(f"{CPUS}/cpu{cpu}/topology/core_cpus_list", f"{cpu}\n")
        put(f"{CPUS}/cpu{cpu}/cpufreq/cpuinfo_max_freq", "3000000\n")
    put("sys/devices/system/node/node0/cpulist", "0-3\n")
    return put


@pytest.fixture
def reader(put, tmp_path):
    return hotplug.Reader(Root(str(tmp_path)))


def test_what_has_not_changed_is_the_very_same_and_not_read_again(reader, put, monkeypatch):
    first = reader.read()
    monkeypatch.setattr(hotplug.topology, "read", None)
    assert reader.read() is first and first.online == {0, 1, 2, 3}


def test_a_cpu_that_went_is_missed_at_once_and_back_when_it_came(reader, put):
    first = reader.read()
    put(f"{CPUS}/online", "0-2\n")
    assert reader.read().online == {0, 1, 2}
    put(f"{CPUS}/online", "0-3\n")
    assert reader.read() == first


def test_a_node_that_came_is_seen_at_once(reader, put):
    assert len(reader.read().nodes) == 1
    put("sys/devices/system/node/node1/cpulist", "\n")
    assert [node.id for node in reader.read().nodes] == [0, 1]


def test_what_nothing_tells_of_is_seen_within_a_minute(reader, put, monkeypatch):
    first = reader.read()
    monkeypatch.setattr(hotplug, "LONGEST_S", 0.0)
    assert reader.read() is first  # the same was read again
    put(f"{CPUS}/cpu0/cpufreq/cpuinfo_max_freq", "4000000\n")
    assert reader.read().cpus[0].max_khz == 4000000


def test_without_the_kernels_list_of_cpus_it_is_read_each_time(reader, put, tmp_path):
    (tmp_path / CPUS / "online").unlink()
    assert reader.read().online == {0, 1, 2, 3}
    put(f"{CPUS}/cpu3/online", "0\n")
    assert reader.read().online == {0, 1, 2}


def test_a_tree_without_cpus_is_said(tmp_path):
    with pytest.raises(UserError, match="no CPUs"):
        hotplug.Reader(Root(str(tmp_path))).read()
