"""`status` begins with a line for each VM and container: class, CPUs, crossings, waits, memory, own."""

import json
import re
from pathlib import Path

import pytest

from pxsched import cli
from pxsched.guest.process import Process
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.node import remembered
from pxsched.node.exclusive import Exclusive, Kind, Sharer
from pxsched.node.others import Other
from pxsched.placement.request import Placement, VmClass
from pxsched.report import overview
from pxsched.root import Root

GIB = 1 << 30


@pytest.fixture
def tree(tmp_path):
    """Eight CPUs in two L3 groups, each a node."""

    def put(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    put("sys/devices/system/cpu/online", "0-7")
    for cpu in range(8):
        put(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", str(cpu))
        put(f"sys/devices/system/cpu/cpu{cpu}/cache/index3/level", "3")
        put(f"sys/devices/system/cpu/cpu{cpu}/cache/index3/shared_cpu_list", "0-3" if cpu < 4 else "4-7")
    put("sys/devices/system/node/node0/cpulist", "0-3")
    put("sys/devices/system/node/node1/cpulist", "4-7")
    put("etc/hostname", "here")
    put("run/pxsched/.keep", "")
    for vmid in (100, 101, 102):
        put(f"etc/pve/nodes/here/qemu-server/{vmid}.conf", "cores: 2" if vmid != 102 else "hugepages: 2")
        put(f"sys/fs/cgroup/qemu.slice/{vmid}.scope/memory.numa_stat",
            f"anon N0={2 * GIB} N1={GIB // 2}\nfile N0=7 N1=7")  # fmt: skip
    put("sys/fs/cgroup/cgroup.controllers", "cpuset memory")
    return tmp_path


def claim(vmid: int, vm_class: VmClass, *vcpus: set[int]) -> Claim:
    sets = tuple(frozenset(cpus) for cpus in vcpus)
    return Claim(Placement(vmid, vm_class, sets, frozenset({0}), frozenset({0})), State.RUNNING)


CLAIMS = (
    claim(100, VmClass.DEDICATED, {5}, {2}),
    claim(101, VmClass.SHARED, {0, 1}, {0, 1}),
    claim(102, VmClass.DEDICATED, {3}),
)
OTHERS = (
    Other(200, Process(7, 7), frozenset(range(8)), 0.5, {1: 300}),
    Other(103, None, frozenset({6})),
)
OPEN = Exclusive(102, frozenset({3}), (Sharer(Kind.VM, "VM 200", frozenset({3})),))


def test_a_line_says_what_and_where_each_is_what_it_waits_for_and_what_is_its_own(tree):
    checked = {100: Exclusive(100, frozenset({5, 2})), 102: OPEN}
    lines = overview.look(Root(str(tree)), CLAIMS, OTHERS, checked, {100: 0.25, 101: 0.0})
    assert list(overview.table(lines)) == [
        "               class         CPUs  L3 crossings  waits  memory by node          exclusive",
        "VM 100         dedicated     5,2   1             0.25   0: 2.0 GiB, 1: 512 MiB  yes",
        "VM 101         shared        0-1   0             0.00   0: 2.0 GiB, 1: 512 MiB  -",
        "VM 102         dedicated     3     0             -      -                       open to others",
        "VM 200         not opted in  0-7   -             -      1: 300 MiB              -",
        "container 103  container     6     -             -      -                       -",
    ]


def test_a_vm_of_ours_that_has_no_place_is_not_called_a_stranger(tmp_path):
    path = tmp_path / "etc/pve/nodes/here/qemu-server/200.conf"
    path.parent.mkdir(parents=True)
    (tmp_path / "etc/pve/local").symlink_to("nodes/here")
    path.write_text("hookscript: local:snippets/pxsched\n")
    (line,) = overview.look(Root(str(tmp_path)), (), OTHERS[:1], {}, {})
    assert line.kind == "not placed"


def test_what_the_machine_does_not_say_is_not_shown(tmp_path):
    (line,) = overview.look(Root(str(tmp_path)), CLAIMS[:1], (), {}, {})
    assert line.cells == ("VM 100", "dedicated", "5,2", "-", "-", "-", "-")
    assert list(overview.table([])) == []


def test_a_long_list_of_cpus_does_not_break_the_table(tree):
    wide = claim(100, VmClass.PINNED, *({cpu} for cpu in (7, 0, 6, 1, 5, 2, 4, 3) * 4))
    (line,) = overview.look(Root(str(tree)), [wide], (), {}, {})
    _, row = overview.table([line])
    assert row.startswith("VM 100  pinned  7,0,6,1,5,2,4,3,7,0,6,1,5,2,4…  1")


def test_status_begins_with_it_and_has_the_figures_as_json(tree, capsys):
    root = Root(str(tree))
    with ledgers.locked(root) as ledger:
        ledger.claims[101] = CLAIMS[1]
        ledgers.save(root, ledger)
    last = {"boot_id": "", "last": {"standings": {"101": [1.5, 0.5, 2, 0.1]}}}
    Path(tree, remembered.FILE).write_text(json.dumps(last))
    assert cli.main(["--root", str(tree), "status"]) == 0
    titles, first, *_ = capsys.readouterr().out.splitlines()
    assert tuple(re.split("  +", titles)) == overview.TITLES
    assert first.split()[:6] == ["VM", "101", "shared", "0-1", "0", "0.50"]
    assert cli.main(["--root", str(tree), "status", "--json"]) == 0
    (vm,) = json.loads(capsys.readouterr().out)["vms"]
    assert (vm["l3_crossings"], vm["memory_mib"]) == (0, {"0": 2048, "1": 512})
