"""`pxsched shape` on a node: real configuration files, the sandbox's own `qm`, real QEMU, the real hook."""

import json
import shutil
from pathlib import Path

import pytest

from pxsched.guest.qmp import Qmp
from pxsched.root import Root
from pxsched.shaping import record

from . import machines
from .conftest import FOREIGN, needs_qemu, run, text

pytestmark = [pytest.mark.measures, needs_qemu]

TAIL = """
[PENDING]
cores: 2
delete: sockets
name: late

[before]
#a note
args: -S
cores: 1
"""


def threads_of_one_core(sandbox) -> bool:
    """Whether the running QEMU has its two vCPUs as threads of one core, on one node."""
    with Qmp(Root(sandbox.root), 100, patience_s=5.0) as qmp:
        props = [vcpu["props"] for vcpu in qmp.execute("query-cpus-fast")]
    return len({one["core-id"] for one in props}) == 1 and len({one.get("node-id") for one in props}) == 1


def test_apply_start_stop_and_undo_leave_the_configuration_as_it_was(sandbox):
    file = sandbox.node.config(100)
    original = file.read_text() + TAIL
    file.write_text(original)
    sandbox.qm("start", 100)
    sandbox.qm("stop", 100)
    before = text(sandbox)  # what was pending is no more, with or without us
    assert "name: late" in before

    file.write_text(original)
    code, out, _ = run(sandbox, "shape", "100", "--apply")
    assert code == 0
    assert out.index(f"+ args: {FOREIGN} -smp ") < out.index("written, for the next start")
    assert f"args: {FOREIGN} -smp sockets=1,dies=1,cores=1,threads=2" in text(sandbox)
    assert "numa0" not in text(sandbox)
    sandbox.qm("start", 100)
    assert threads_of_one_core(sandbox)
    sandbox.qm("stop", 100)
    assert run(sandbox, "shape", "100", "--undo")[0] == 0
    assert text(sandbox) == before
    assert not Path(sandbox.root, record.RECORDS.directory).exists()


def test_a_guest_that_was_told_sees_what_it_has(sandbox):
    assert "siblings" in run(sandbox, "shape", "100")[1]
    run(sandbox, "shape", "100", "--apply")
    document = json.loads(run(sandbox, "shape", "100", "--json")[1])
    assert document["sees"] == document["has"] == {"cores": ["0-1"], "l3": ["0-1"], "nodes": ["0-1"]}
    assert (document["changes"], document["remembered"]) == ([], True)


def test_a_dry_run_shows_the_difference_and_writes_nothing(sandbox):
    before = text(sandbox)
    code, out, _ = run(sandbox, "shape", "100", "--apply", "--dry-run")
    assert code == 0
    assert f"- args: {FOREIGN}\n" in out
    assert f"+ args: {FOREIGN} -smp " in out
    assert text(sandbox) == before
    assert not Path(sandbox.root, record.RECORDS.directory).exists()


def test_nothing_is_changed_for_a_vm_that_runs(sandbox):
    sandbox.qm("start", 100)
    before = text(sandbox)
    code, out, err = run(sandbox, "shape", "100", "--apply")
    assert code == 1
    assert "it runs" in err
    assert "written" not in out
    assert text(sandbox) == before
    assert "not now: it runs" in run(sandbox, "shape", "100")[1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("lock: backup", "locked (backup)"),
        ("lock: suspended", "suspended"),
        ("vmstate: local:100/x", "suspended"),
    ],
)
def test_nothing_is_changed_for_a_vm_that_is_locked_or_suspended(sandbox, line, why):
    file = sandbox.node.config(100)
    file.write_text(file.read_text() + f"{line}\n")
    before = text(sandbox)
    code, _, err = run(sandbox, "shape", "100", "--apply")
    file.write_text(before.replace(f"{line}\n", ""))
    assert code == 1
    assert why in err


def test_undo_leaves_what_the_admin_changed_since(sandbox):
    run(sandbox, "shape", "100", "--apply")
    now = text(sandbox)
    ours = next(line for line in now.splitlines() if line.startswith("args: ")).removeprefix("args: ")
    sandbox.qm("set", 100, args=f"{ours} -snapshot", numa=1)
    code, out, _ = run(sandbox, "shape", "100", "--undo")
    assert code == 0
    assert f"args: {FOREIGN} -snapshot\n" in text(sandbox)
    assert "numa: 1\n" in text(sandbox)
    assert "numa0: cpus=0,memory=32\n" in text(sandbox)
    assert "stays" not in out, "numa is back to what it was, by the admin's own hand"


def test_what_is_remembered_is_not_put_onto_another_vm_of_that_number(sandbox):
    run(sandbox, "shape", "100", "--apply")
    sandbox.qm("set", 100, smbios1="uuid=ffffffff-89ab-cdef-0123-456789abcdef")
    before = text(sandbox)
    code, _, err = run(sandbox, "shape", "100", "--undo")
    assert code == 1
    assert "another VM" in err
    assert text(sandbox) == before


def test_a_change_between_look_and_write_is_not_written_over(sandbox, monkeypatch):
    from pxsched.shaping import apply

    seen = apply.record.write

    def meanwhile(root, entry):
        seen(root, entry)
        file = sandbox.node.config(100)
        file.write_text(file.read_text().replace("name: web", "name: elsewhere"))

    monkeypatch.setattr(apply.record, "write", meanwhile)
    code, _, err = run(sandbox, "shape", "100", "--apply")
    assert code == 1
    assert "modified" in err
    assert "threads=2" not in text(sandbox)


def test_snapshots_keep_their_own_processors_and_that_is_said(sandbox):
    file = sandbox.node.config(100)
    file.write_text(file.read_text() + "\n[before]\ncores: 1\n")
    assert "a rollback brings those back" in run(sandbox, "shape", "100")[1]


def test_a_vm_that_is_not_opted_in_has_no_pins_to_mirror(sandbox):
    sandbox.qm("set", 100, delete="hookscript")
    code, out, _ = run(sandbox, "shape", "100")
    assert code == 0
    assert "not opted in" in out


def test_a_vm_that_floats_is_told_why_there_is_nothing_to_mirror(sandbox):
    sandbox.qm("set", 100, delete="affinity")
    code, _, err = run(sandbox, "shape", "100", "--apply")
    assert code == 1
    assert "its vCPUs float" in err


def test_sockets_that_stand_for_l3_groups_and_cpus_of_several_kinds_are_told(sandbox):
    base = Path(sandbox.root)
    for cpu in range(2):
        core = base / f"sys/devices/system/cpu/cpu{cpu}"
        (core / "topology/core_cpus_list").write_text(f"{cpu}\n")
        (core / "cache/index3/shared_cpu_list").write_text(f"{cpu}\n")
        (core / "cpu_capacity").write_text(f"{1024 >> cpu}\n")
    out = run(sandbox, "shape", "100")[1]
    shutil.rmtree(base / "sys")
    machines.write(base, nodes=1, l3s=1, cores=1)
    assert "its 2 sockets stand for L3 groups" in out
    assert "several kinds" in out
