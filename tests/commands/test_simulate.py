"""`pxsched simulate`: JSON lines in, one answer for each start, in order."""

import json
from pathlib import Path

import pytest

from pxsched.commands.simulate import simulate
from pxsched.errors import UserError
from pxsched.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Two nodes of four cores with 8 GiB each and no housekeeping but what the settings say: CPU 7."""
    files = {
        "sys/devices/system/cpu/online": "0-7",
        "etc/pxsched/pxsched.toml": '[node]\nhousekeeping = "7"\n',
    }
    for cpu in range(8):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"] = f"{cpu}"
        files[f"sys/devices/system/cpu/cpu{cpu}/cache/index3/level"] = "3"
        files[f"sys/devices/system/cpu/cpu{cpu}/cache/index3/shared_cpu_list"] = "0-3" if cpu < 4 else "4-7"
    for node in (0, 1):
        base = f"sys/devices/system/node/node{node}"
        files[f"{base}/cpulist"] = "0-3" if node == 0 else "4-7"
        files[f"{base}/meminfo"] = f"Node {node} MemTotal: {8 << 20} kB"
        files[f"{base}/distance"] = "10 20" if node == 0 else "20 10"
        files[f"{base}/hugepages/hugepages-1048576kB/free_hugepages"] = "4" if node else "0"
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return Root(str(tmp_path))


def start(vmid: int, vcpus: int = 2, **more) -> str:
    step = {"op": "start", "vmid": vmid, "vcpus": vcpus, "memory_mib": 1024, "class": "dedicated"}
    return json.dumps(step | {"smt": "prefer", "device_node": None} | more)


def stop(vmid: int) -> str:
    return json.dumps({"op": "stop", "vmid": vmid})


def answers(root: Root, *lines: str) -> list[dict]:
    return [json.loads(line) for line in simulate(root, lines)]


def test_each_start_is_answered_with_cpus_nodes_and_reasons(root):
    (answer,) = answers(root, start(1, 3))
    assert answer["schema"] == 1 and answer["vmid"] == 1 and answer["placed"] is True
    assert answer["vcpus"] == ["4", "5", "6"] or answer["vcpus"] == ["0", "1", "2"]
    assert answer["nodes"] in ("0", "1")
    assert answer["why"]


def test_stops_are_not_answered_and_free_what_was_held(root):
    found = answers(root, start(1, 4), start(2, 4), stop(1), stop(77), start(2, 4), start(3, 4))
    assert [(answer["vmid"], answer["placed"]) for answer in found] == [
        (1, True),
        (2, False),
        (2, False),
        (3, True),
    ] or [answer["placed"] for answer in found] == [True, False, True, False]


def test_a_vm_that_runs_is_not_started_twice(root):
    found = answers(root, start(1), start(1))
    assert found[1] == {"schema": 1, "vmid": 1, "placed": False, "why": ["VM 1 is running already"]}


def test_no_cpu_is_given_to_two_vms_and_housekeeping_to_none(root):
    found = answers(root, *(start(vmid, 1) for vmid in range(1, 10)))
    given = [answer["vcpus"][0] for answer in found if answer["placed"]]
    assert sorted(given) == ["0", "1", "2", "3", "4", "5", "6"]


def test_memory_is_counted(root):
    sizes_mib = {1: 7000, 2: 7000, 3: 4000}
    found = answers(root, *(start(vmid, 1, memory_mib=size) for vmid, size in sizes_mib.items()))
    assert [answer["placed"] for answer in found] == [True, True, False]
    assert "needs 4000 MiB; node 0 has 1192 MiB free, node 1 has 1192 MiB free" in found[2]["why"][0]


def test_huge_pages_are_counted(root):
    huge = {"hugepage_mib": 1024, "memory_mib": 4096}
    found = answers(root, start(1, 1, **huge), start(2, 1, **huge))
    assert [answer["placed"] for answer in found] == [True, False]
    assert found[0]["nodes"] == "1"


def test_a_shared_vm_makes_room_for_a_dedicated_one(root):
    found = answers(root, start(1, 4, **{"class": "shared"}), start(2, 4), start(3, 2, **{"class": "shared"}))
    home = found[0]["vcpus"][0]
    assert found[1]["placed"]
    assert not set(found[1]["vcpus"]) & {found[2]["vcpus"][0]}
    assert home == found[0]["vcpus"][3]


def test_affinity_decides_the_class(root):
    line = json.dumps({"op": "start", "vmid": 5, "vcpus": 3, "affinity": "6,0-1"})
    (answer,) = answers(root, line)
    assert answer["class"] == "pinned"
    assert answer["vcpus"] == ["6", "0", "1"]
    (answer,) = answers(root, json.dumps({"op": "start", "vmid": 5, "vcpus": 2, "affinity": "6,0-1"}))
    assert answer["class"] == "constrained"
    assert answer["vcpus"] == ["0-1,6", "0-1,6"]


def test_a_vm_that_comes_back_gets_what_it_had(root):
    found = answers(root, start(1, 2), start(2, 2), stop(2), stop(1), start(2, 2))
    assert found[2]["vcpus"] == found[1]["vcpus"]


def test_devices_and_guest_nodes_are_understood(root):
    found = answers(
        root,
        start(1, 2, device_node=1),
        start(2, 2, numa=[{"cpus": "0-1", "memory_mib": 1024, "host_nodes": "0", "policy": "bind"}]),
    )
    assert [answer["nodes"] for answer in found] == ["1", "0"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: a request is a JSON object"),
        ('{"op": "halt"}', "line 2: op: 'halt' is neither 'start' nor 'stop'"),
        ('{"op": "stop"}', "line 2: vmid: None is no whole number"),
        ('{"op": "start", "vmid": 1, "vcpsu": 2}', r"line 2: unknown key 'vcpsu'; did you mean 'vcpus'"),
        ('{"op": "start", "vmid": 1, "vcpus": 0}', "line 2: vcpus: 0 is no whole number from 1 to 4096"),
        ('{"op": "start", "vmid": 1, "vcpus": true}', "line 2: vcpus"),
        ('{"op": "start", "vmid": 1, "vcpus": 1e99}', "line 2: vcpus"),
        ('{"op": "start", "vmid": 1, "class": "golden"}', "line 2: class: 'golden' is none of pinned"),
        ('{"op": "start", "vmid": 1, "class": "pinned"}', "line 2: class: a pinned VM needs an affinity"),
        ('{"op": "start", "vmid": 1, "affinity": "x"}', "line 2: bad CPU list 'x'"),
        ('{"op": "start", "vmid": 1, "device_node": "0"}', "line 2: device_node"),
        ('{"op": "start", "vmid": 1, "numa": [{"cpu": "0"}]}', "line 2: unknown key 'cpu'"),
        ('{"op": "start", "vmid": 1, "smt": "never"}', "line 2: smt: 'never' is none of prefer"),
    ],
)
def test_a_line_that_is_not_understood_is_named_before_any_answer(root, line, message):
    with pytest.raises(UserError, match=message):
        next(simulate(root, [start(9), line]))


def test_empty_lines_are_passed_over(root):
    assert len(answers(root, "", start(1), "  \n")) == 1


def test_the_same_requests_get_the_same_answers(root):
    lines = [start(vmid, 1 + vmid % 3) for vmid in range(1, 6)] + [stop(2), start(7, 2)]
    assert answers(root, *lines) == answers(root, *lines)
