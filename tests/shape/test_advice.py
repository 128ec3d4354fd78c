"""`plan`, `status` and `doctor` say where a guest is told other processors than it has; the timer mends it
where the policy says so.
"""

import json
import shutil
from pathlib import Path

import pytest

from pxsched import tick
from pxsched.proxmox import failures
from pxsched.root import Root
from pxsched.setup import leaving
from pxsched.shaping import keep, record

from . import machines
from .conftest import needs_qemu, run, text

pytestmark = needs_qemu
POLICY = "etc/pve/pxsched.toml"


@pytest.fixture
def settings(sandbox):
    def write(content: str) -> None:
        Path(sandbox.root, POLICY).write_text(content)

    yield write
    Path(sandbox.root, POLICY).unlink(missing_ok=True)


@pytest.fixture
def another_machine(sandbox):
    """Calling it makes the node's two CPUs cores of their own, as if the VM had moved."""

    def move(**how: int) -> None:
        shutil.rmtree(Path(sandbox.root, "sys"))
        machines.write(Path(sandbox.root), **{"nodes": 1, "l3s": 1, "cores": 2, "threads": 1, **how})

    yield move
    move(cores=1, threads=2)


def test_plan_has_one_line_where_the_guest_is_not_told_what_it_has(sandbox):
    out = run(sandbox, "plan", "100")[1]
    assert [line for line in out.splitlines() if "shape" in line] == [
        "  shape: its guest sees 2 cores, 1 L3 group, 2 NUMA nodes, and it has 1 core x 2 threads,"
        " 1 L3 group, 1 NUMA node (pxsched shape 100 tells what that costs)"
    ]
    run(sandbox, "shape", "100", "--apply")
    assert json.loads(run(sandbox, "plan", "100", "--json")[1])["shape"] is None


def test_policy_off_says_nothing(sandbox, settings):
    settings('[defaults]\nshape = "off"\n')
    assert "shape" not in run(sandbox, "plan", "100")[1]


def test_the_doctor_names_running_guests_that_are_not_told(sandbox):
    sandbox.qm("start", 100)
    found = json.loads(run(sandbox, "doctor", "--json")[1])["findings"]
    [shape] = [finding for finding in found if finding["area"] == "shape"]
    assert (shape["level"], shape["text"].endswith("VMs 100")) == ("note", True)
    assert "shape" not in run(sandbox, "status", "100")[1], "status is for what is untrue"


def test_a_shape_that_is_no_longer_true_is_told_with_what_it_costs(sandbox, another_machine):
    run(sandbox, "shape", "100", "--apply")
    sandbox.qm("start", 100)
    before = text(sandbox)
    another_machine()
    cost = "the guest takes vCPUs 0-1 for siblings of one core and they are not"
    assert f"VM 100: {cost}" in run(sandbox, "status")[1]
    [vm] = json.loads(run(sandbox, "status", "--json")[1])["vms"]
    assert cost in vm["shape"][0]
    found = json.loads(run(sandbox, "doctor", "--json")[1])["findings"]
    [shape] = [finding for finding in found if finding["area"] == "shape"]
    assert (shape["level"], cost in shape["text"]) == ("warn", True)
    assert text(sandbox) == before, "nothing is changed while it runs"


def test_a_shape_is_replaced_by_what_is_true_now_and_undo_still_knows_the_beginning(sandbox, another_machine):
    before = text(sandbox)
    run(sandbox, "shape", "100", "--apply")
    another_machine()
    assert run(sandbox, "shape", "100", "--apply")[0] == 0
    assert "threads=2" not in text(sandbox)
    assert "numa: 0" in text(sandbox)
    assert run(sandbox, "shape", "100", "--undo")[0] == 0
    assert text(sandbox) == before


def test_policy_apply_tells_a_stopped_vm_at_the_next_pass_and_a_running_one_never(sandbox, settings, capsys):
    settings('[vm.100]\nshape = "apply"\n')
    sandbox.qm("start", 100)
    before = text(sandbox)
    tick.tick(Root(sandbox.root))
    assert text(sandbox) == before
    sandbox.qm("stop", 100)
    tick.tick(Root(sandbox.root))
    assert (
        "VM 100 is told what it has, from its next start: args, numa, numa0, numa1" in capsys.readouterr().out
    )
    assert "threads=2" in text(sandbox)
    written = sandbox.node.config(100).stat().st_mtime_ns
    tick.tick(Root(sandbox.root))
    assert sandbox.node.config(100).stat().st_mtime_ns == written
    assert run(sandbox, "shape", "100", "--undo")[0] == 0
    assert text(sandbox) == before


def test_what_fails_is_said_once_and_tried_again_when_the_vm_is_changed(sandbox, settings, capsys):
    settings('[vm.100]\nshape = "apply"\n')
    in_the_way = Path(sandbox.root, record.RECORDS.directory)
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("")
    for _ in range(3):
        tick.tick(Root(sandbox.root))
    assert capsys.readouterr().out.count("VM 100 is not shaped: /etc/pve/pxsched/shape/100.json: ") == 1
    assert "threads=2" not in text(sandbox)
    in_the_way.unlink()
    tick.tick(Root(sandbox.root))
    assert "threads=2" not in text(sandbox), "it is left alone for a while"
    sandbox.qm("set", 100, name="mended")
    tick.tick(Root(sandbox.root))
    assert "VM 100 is told what it has" in capsys.readouterr().out
    assert "threads=2" in text(sandbox)
    assert not Path(sandbox.root, keep.FAILED).exists()


def test_a_vm_that_fails_again_is_left_alone_for_longer_up_to_an_hour(tmp_path):
    failure, now_s, pauses = None, 1000.0, []
    for _ in range(9):
        failure = failures.after(failure, "no", "digest", now_s)
        pauses.append(failure.again_s - now_s)
        assert failures.rests(failure, "digest", failure.again_s - 1)
        assert not failures.rests(failure, "another", failure.again_s - 1)
        now_s = failure.again_s
        assert not failures.rests(failure, "digest", now_s)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    root = Root(str(tmp_path))
    (tmp_path / "run/pxsched").mkdir(parents=True)
    failures.save(root, keep.FAILED, {100: failure})
    assert failures.load(root, keep.FAILED) == {100: failure}
    (tmp_path / keep.FAILED).write_text('{"vms": {"100": {"why": 1}}}')
    assert failures.load(root, keep.FAILED) == {}


def test_advice_alone_writes_nothing(sandbox):
    before = text(sandbox)
    tick.tick(Root(sandbox.root))
    assert text(sandbox) == before
    assert not Path(sandbox.root, record.RECORDS.directory).exists()


def test_a_vm_that_is_opted_out_keeps_what_it_was_told_and_is_named_until_that_is_undone(sandbox):
    before = text(sandbox)
    assert "--undo" not in run(sandbox, "disable", "100", "--dry-run")[1]
    assert leaving.shapes(Root(sandbox.root)) == []
    run(sandbox, "shape", "100", "--apply")
    told = text(sandbox)
    assert "(its guest stays told what it had until `pxsched shape 100 --undo`)" in (
        run(sandbox, "disable", "100")[1]
    )
    assert leaving.shapes(Root(sandbox.root)) == [
        "left: what the guests of VM 100 are told of their processors"
    ]
    assert text(sandbox) == told.replace("hookscript: local:snippets/pxsched\n", "")
    found = json.loads(run(sandbox, "doctor", "--json")[1])["findings"]
    [shape] = [finding for finding in found if finding["area"] == "shape"]
    assert (shape["level"], shape["remedy"]) == ("note", "pxsched shape 100 --undo")
    assert run(sandbox, "shape", "100", "--undo")[0] == 0
    assert text(sandbox) == before.replace("hookscript: local:snippets/pxsched\n", "")
