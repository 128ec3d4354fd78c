"""`pxsched defrag --dry-run` on a node whose ledger says that a VM crosses L3 groups."""

import json
from pathlib import Path

import pytest

from pxsched.cli import main
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root
from pxsched.settings.policy import Policy, Wish
from pxsched.value import replace


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """One node of eight cores in two L3 groups; VM 101 is on CPUs 3 and 4, though 1-2 and 5-7 are free."""
    files = {
        "sys/devices/system/cpu/online": "0-7",
        "sys/devices/system/node/node0/cpulist": "0-7",
        "sys/devices/system/node/node0/meminfo": f"Node 0 MemTotal: {8 << 20} kB\nNode 0 MemFree: 4194304 kB",
        "etc/hostname": "pve",
        "proc/sys/kernel/hostname": "pve",
        "etc/pve/nodes/pve/qemu-server/101.conf": "cores: 2\nmemory: 512\n",
        "etc/pxsched/pxsched.toml": '[vm.101]\nclass = "dedicated"\n',
    }
    for cpu in range(8):
        base = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{base}/topology/core_cpus_list"] = f"{cpu}"
        files[f"{base}/cache/index3/level"] = "3"
        files[f"{base}/cache/index3/shared_cpu_list"] = "0-3" if cpu < 4 else "4-7"
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    root = Root(str(tmp_path))
    torn = (frozenset({3}), frozenset({4}))
    placement = Placement(101, VmClass.DEDICATED, torn, frozenset({0}), frozenset({0}))
    with ledgers.locked(root) as ledger:
        claim = Claim(placement, State.RUNNING, since_ns=1)
        policy = replace(Policy(), wish=Wish.DEDICATED)
        ledger.claims[101] = replace(claim, policy=policy, memory_mib=512)
        ledgers.save(root, ledger)
    return root


def test_the_move_is_listed_and_nothing_is_moved(root, capsys):
    before = ledgers.peek(root)
    assert main(["--root", root.base, "defrag", "--dry-run"]) == 0
    assert (
        "VM 101 spans 1 node and 2 L3 groups; 1 move would make it 1 node and 1 L3 group"
        in capsys.readouterr().out
    )
    assert ledgers.peek(root).claims == before.claims


def test_the_move_as_json(root, capsys):
    assert main(["--root", root.base, "defrag", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == 1
    (remedy,) = answer["remedies"]
    assert remedy["vmid"] == 101 and remedy["l3_groups"] == [2, 1]
    assert remedy["moves"][0]["from"] == "3-4"


def test_a_vm_whose_configuration_is_gone_stays(root, capsys):
    Path(root.path("etc/pve/nodes/pve/qemu-server/101.conf")).unlink()
    assert main(["--root", root.base, "defrag"]) == 0
    assert "no VM crosses" in capsys.readouterr().out
