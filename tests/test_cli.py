"""The commands that read: their JSON, their exit codes, and their manners when something is wrong."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pxsched import cli
from pxsched.guest.process import Process
from pxsched.ledger import file as ledgers
from pxsched.ledger.claim import Claim, State
from pxsched.ledger.journal import Entry
from pxsched.placement.request import Placement, VmClass
from pxsched.root import Root
from pxsched.version import VERSION

CHECKOUT = Path(cli.__file__).resolve().parents[1]
PACKAGE = str(CHECKOUT)
DATA = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        document = json.loads(self.out)
        assert document["schema"] == 1
        return document


Run = Callable[..., Done]


@pytest.fixture
def node(machines: Path, tmp_path: Path) -> Path:
    """A node pve1 that is a hybrid of 16 CPUs, with a pinned VM 100 and an odd VM 101."""
    os.symlink(machines / "pepc-adl0/root/sys", tmp_path / "sys")
    configs = tmp_path / "etc/pve/nodes/pve1/qemu-server"
    configs.mkdir(parents=True)
    os.symlink("nodes/pve1", tmp_path / "etc/pve/local")
    (configs / "100.conf").write_text(
        "#the database\naffinity: 6,2,4\ncores: 3\nmemory: 2048\nname: db\n"
        "hookscript: local:snippets/pxsched\n\n[PENDING]\nmemory: 4096\n\n[before]\ncores: 1\n"
    )
    (configs / "101.conf").write_text("name: x\x1b[31mred\ncores: many\nmemory: 512\n")
    return tmp_path


@pytest.fixture
def run(node: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command below the node's root, in this process."""

    def run(*words: str, root: Path = node) -> Done:
        capsys.readouterr()
        try:
            code = cli.main(["--root", str(root), *words])
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


def shell(*words: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    """Runs a command as a process of its own."""
    env = {**os.environ, "PYTHONPATH": PACKAGE, **more.pop("env", {})}
    line = [sys.executable, "-m", "pxsched", *words]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=60, **more)


def one_line(done: Done) -> str:
    assert done.out == "" and done.err.count("\n") == 1 and "Traceback" not in done.err
    assert done.err.startswith("pxsched: ")
    return done.err


# topology


def test_topology_tells_the_machine(run):
    document = run("topology", "--json").json
    assert {"cpus", "l3", "nodes", "packages"} <= document.keys()
    cpus = document["cpus"]
    assert [cpu["id"] for cpu in cpus] == list(range(16))
    assert cpus[0] == {
        "id": 0, "online": True, "core": 0, "l3": 0, "node": 0, "package": 0, "siblings": "0-1",
        "kind": "performance",
    }  # fmt: skip
    assert cpus[15]["kind"] == "efficiency" and cpus[15]["siblings"] == "15"
    assert [(l3["id"], l3["cpus"]) for l3 in document["l3"]] == [(0, "0-15")]
    assert isinstance(document["l3"][0]["size_bytes"], int | None)
    (numa,) = document["nodes"]
    assert (numa["id"], numa["cpus"], numa["distances"]) == (0, "0-15", {"0": 10})
    assert numa["memory_bytes"] is None or numa["memory_bytes"] > 0
    assert document["packages"] == [{"id": 0, "cpus": "0-15"}]


def test_topology_says_null_where_the_kernel_says_nothing(run, machines):
    document = run("topology", "--json", root=machines / "hwloc-64amd64-4s2n4ca2co/root").json
    assert {cpu["kind"] for cpu in document["cpus"]} == {None}
    document = run("topology", "--json", root=machines / "hwloc-fakeheterocpunuma/root").json
    assert {cpu["l3"] for cpu in document["cpus"]} == {None} and document["l3"] == []
    assert document["warnings"]


def test_topology_is_shown_to_persons_too(run):
    done = run("topology")
    assert done.code == 0 and done.out.strip() and done.err == ""


# config


def test_config_tells_what_is_in_force_what_is_pending_and_the_snapshots(run):
    document = run("config", "100", "--json").json
    assert document["options"]["affinity"] == "6,2,4" and document["options"]["memory"] == "2048"
    assert document["pending"] == {"memory": "4096"}
    assert document["snapshots"] == {"before": {"cores": "1"}}
    assert document["description"] == "the database"


def test_config_reads_any_file(run):
    document = run("config", str(DATA / "configs/pinned.conf"), "--json").json
    assert document["options"]["name"] == "db1"
    assert set(document["snapshots"]) == {"before_upgrade"}


def test_config_names_broken_lines_and_sends_nothing_odd_to_the_terminal(run):
    done = run("config", "101")
    assert done.code == 0 and "\x1b" not in done.out
    assert "101.conf:2: cores" in done.out or "101:2: cores" in done.out


# plan


def test_plan_tells_what_would_be_done_and_why(run, node):
    document = run("plan", "100", "--json").json
    assert (document["vmid"], document["class"]) == (100, "pinned")
    assert document["vcpus"] == [{"vcpu": 0, "cpus": "6"}, {"vcpu": 1, "cpus": "2"}, {"vcpu": 2, "cpus": "4"}]
    assert document["nodes"] == "0" and document["emulator"]
    assert document["why"] and all(isinstance(line, str) for line in document["why"])
    assert all({"knob", "now", "want"} <= setting.keys() for setting in document["settings"])


def test_plan_of_a_vm_that_is_not_opted_in_says_so_first(run, node):
    first, second = run("plan", "100").out.splitlines()[:2]
    assert first == "VM 100 is pinned" and run("plan", "100", "--json").json["enabled"] is True
    config = node / "etc/pve/nodes/pve1/qemu-server/100.conf"
    config.write_text(config.read_text().replace("hookscript: local:snippets/pxsched\n", ""))
    first, second = run("plan", "100").out.splitlines()[:2]
    assert first.startswith("VM 100 is not opted in; ") and second == "VM 100 is pinned"
    assert run("plan", "100", "--json").json["enabled"] is False


def test_plan_changes_nothing(run, node):
    before = sorted(path for path in node.rglob("*"))
    assert run("plan", "100").code == 0
    assert sorted(path for path in node.rglob("*")) == before


# status


@pytest.fixture
def held(node: Path) -> Path:
    """VM 100 holds CPUs, and one thread that is gone by now."""
    root = Root(str(node))
    sets = tuple(frozenset({cpu}) for cpu in (6, 2, 4))
    placement = Placement(100, VmClass.PINNED, sets, frozenset({0, 1}), frozenset({0}), ("as written",))
    with ledgers.locked(root) as ledger:
        ledger.claims[100] = Claim(placement, State.RUNNING, process=Process(4_194_300, 1))
        ledger.journal["affinity:4194300,1"] = Entry(100, "vcpu", "0-15", "6", 5, drifts=2, note="x")
        ledgers.save(root, ledger)
    return node


def test_status_tells_claims_knobs_originals_drift_run_delay_and_balloon(run, held):
    document = run("status", "--json").json
    (vm,) = document["vms"]
    assert (vm["vmid"], vm["class"]) == (100, "pinned")
    assert [item["cpus"] for item in vm["vcpus"]] == ["6", "2", "4"]
    assert {"run_delay", "balloon", "why", "emulator", "nodes"} <= vm.keys()
    (knob,) = document["knobs"]
    assert (knob["knob"], knob["vmid"]) == ("affinity:4194300,1", 100)
    assert (knob["original"], knob["want"]) == ("0-15", "6")
    assert {"now", "drift"} <= knob.keys() and knob["drifts"] == 2


def test_status_of_one_vm(run, held):
    assert [vm["vmid"] for vm in run("status", "100", "--json").json["vms"]] == [100]
    assert "VM 101 holds nothing" in one_line(run("status", "101"))
    assert run("status").code == 0


def test_status_of_a_node_where_nobody_holds_anything(run):
    document = run("status", "--json").json
    assert (document["vms"], document["knobs"]) == ([], [])


def test_status_names_a_damaged_ledger(run, held):
    (held / ledgers.FILE).write_text("{")
    assert "is damaged" in run("status", "--json").json["warnings"][0]


# simulate


def test_simulate_answers_one_line_for_each_start(run, tmp_path):
    requests = tmp_path / "requests.jsonl"
    lines = [
        {"op": "start", "vmid": 1, "vcpus": 2, "memory_mib": 512, "class": "dedicated", "smt": "prefer",
         "device_node": None},
        {"op": "start", "vmid": 2, "vcpus": 400, "memory_mib": 512, "class": "dedicated", "smt": "prefer"},
        {"op": "stop", "vmid": 1},
        {"op": "start", "vmid": 3, "vcpus": 1, "memory_mib": 512, "class": "shared"},
    ]  # fmt: skip
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run("simulate", str(requests), "--json")
    answers = [json.loads(line) for line in done.out.splitlines()]
    placed = [(answer["vmid"], answer["placed"]) for answer in answers]
    assert done.code == 0 and placed == [(1, True), (2, False), (3, True)]
    assert len(answers[0]["vcpus"]) == 2 and len(set(answers[0]["vcpus"])) == 2
    assert all(answer["schema"] == 1 and answer["why"] for answer in answers)
    assert answers[0]["nodes"] == "0" and "vcpus" not in answers[1]


def test_simulate_names_the_line_that_is_wrong(run, tmp_path):
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"op": "stop", "vmid": 1}\n{"op": "start", "vmid": 1, "vcpu": 2}\n')
    assert "line 2: unknown key 'vcpu'; did you mean 'vcpus'?" in one_line(run("simulate", str(requests)))


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [(b'{"op": "stop", "vmid": 1}\n', 0, b""), (b'{"op": "stop", "vmid": 1}\n\xff\n', 1, b"line 2: no JSON"),
     (None, 0, b"")],
    ids=["a request", "no text", "closed"],
)  # fmt: skip
def test_simulate_reads_standard_input_whatever_is_in_it(data, code, said):
    done = subprocess.run(
        [sys.executable, "-m", "pxsched", "simulate"], input=data, capture_output=True, cwd=CHECKOUT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, timeout=30,
        preexec_fn=None if data else lambda: os.close(0),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, b"") and said in done.stderr
    assert b"unexpected" not in done.stderr


# Exit codes and manners


@pytest.mark.parametrize(
    "words, said",
    [
        (["config", "999"], "there is no VM 999 on node pve1"),
        (["plan", "999"], "there is no VM 999 on node pve1"),
        (["config", "/nowhere/x.conf"], "cannot read '/nowhere/x.conf'"),
        (["config", "/"], "cannot read '/'"),
        (["simulate", "/nowhere"], "cannot read '/nowhere'"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_1(run, words, said):
    done = run(*words)
    assert done.code == 1 and said in one_line(done)


def test_a_root_without_cpus_is_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("topology", root=tmp_path / "empty")
    assert done.code == 1 and "no CPUs below" in one_line(done) and "is this the root" in done.err


@pytest.mark.parametrize(
    "words",
    [[], ["nonsense"], ["topology", "--jsn"], ["plan"], ["plan", "x"], ["plan", "99"], ["plan", "1" * 40],
     ["enable", "abc"], ["disable", "99"],
     ["status", "-1"], ["config"], ["restore"], ["simulate", "a", "b"]],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(run, words):
    done = run(*words)
    assert done.code == 2 and "usage:" in done.err and done.out == ""


def test_a_mistyped_command_gets_the_nearest(run):
    done = run("statsu")
    assert done.code == 2 and "there is no command 'statsu'; did you mean 'status'?" in done.err


def test_the_version_is_one_everywhere(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"pxsched {VERSION}\n"
    changelog = (CHECKOUT / "debian/changelog").read_text()
    assert changelog.startswith(f"pxsched ({VERSION}) ")
    assert f"## {VERSION}" in (CHECKOUT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_root_may_stand_before_and_after_the_command(capsys, tmp_path, place):
    (tmp_path / "sys/devices/system/cpu/cpu0").mkdir(parents=True)
    words = ["topology", "--json"]
    for root in (["--root", str(tmp_path)], [f"--root={tmp_path}"]):
        assert cli.main([*words[:place], *root, *words[place:]]) == 0
        assert '"cpus"' in capsys.readouterr().out


def test_a_root_that_is_no_directory_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--root", "/nowhere", "topology"])
    assert left.value.code == 2 and "is no directory" in capsys.readouterr().err


def test_a_fault_of_ours_is_one_line_too(run, monkeypatch):
    def fails(root: Root) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("pxsched.host.topology.read", fails)
    done = run("topology")
    assert done.code == 1 and "unexpected ZeroDivisionError: by design" in one_line(done)


@pytest.mark.parametrize("command", ["topology", "config", "plan", "status", "simulate"])
def test_every_command_has_a_help_with_an_example(run, command):
    done = run(command, "--help")
    assert done.code == 0 and "example:" in done.out and "--json" in done.out


def test_the_root_may_come_from_the_environment(node):
    done = shell("config", "100", "--json", env={"PXSCHED_ROOT": str(node)})
    assert json.loads(done.stdout)["options"]["name"] == "db"
    assert done.stderr == "" and done.returncode == 0


@pytest.mark.parametrize("words", [["topology", "--json"], ["config", "100"]], ids=["much", "little"])
def test_a_reader_that_leaves_is_no_error(node, words):
    env = {**os.environ, "PYTHONPATH": PACKAGE}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "pxsched", "--root", str(node), *words],
        env=env, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_unicode_gets_what_it_can_show(node):
    config = node / "etc/pve/nodes/pve1/qemu-server/100.conf"
    config.write_text("name: über\n#%C3%BC\n")
    for words in (["config", "100"], ["config", "100", "--json"], ["topology"]):
        done = shell("--root", str(node), *words, env={"PYTHONIOENCODING": "ascii"})
        assert (done.returncode, done.stderr) == (0, "")


def test_names_of_tenants_reach_the_terminal_without_control_characters(run, node):
    config = node / "etc/pve/nodes/pve1/qemu-server/100.conf"
    config.write_text("name: a\x1b]0;evil\x07\ntags: \x9b31m;b\naffinity: \x1b[2J\ncores: 1\n#%1B[2J\n")
    for words in (["config", "100"], ["plan", "100"], ["status"]):
        done = run(*words)
        assert not set(done.out + done.err) & {"\x1b", "\x07", "\x9b"}
    with contextlib.suppress(KeyError):
        assert json.loads(run("config", "100", "--json").out)["options"]["name"].startswith("a")


# tick, as the timer starts it: without loading what parses arguments


def test_a_plain_tick_ends_as_any_command_does(node):
    env = {"PXSCHED_ROOT": str(node)}
    assert (done := shell("tick", env=env)).returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    (node / "run/pxsched/lock").unlink(missing_ok=True)
    (node / "run/pxsched/lock").mkdir()
    done = shell("tick", env=env)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("pxsched: ") and done.stderr.count("\n") == 1


def test_a_plain_tick_says_what_it_did_even_into_a_pipe(node):
    shutil.rmtree(node / "run", ignore_errors=True)
    with ledgers.locked(Root(str(node))) as ledger:
        home = frozenset({0})
        ledger.claims[100] = Claim(Placement(100, VmClass.SHARED, (home,), home, home), State.RUNNING)
        ledgers.save(Root(str(node)), ledger)
    assert shell("tick", env={"PXSCHED_ROOT": str(node)}).stdout == "let go of VM 100\n"


def test_a_quiet_tick_loads_nothing_heavy(node):
    words = [sys.executable, "-X", "importtime", "-m", "pxsched", "tick"]
    env = {**os.environ, "PYTHONPATH": PACKAGE, "PXSCHED_ROOT": str(node)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pxsched.tick" in loaded
    heavy = {"argparse", "gettext", "shutil", "subprocess", "tempfile", "tomllib", "psutil", "pyroute2"}
    heavy |= {"pxsched.balance.balloon", "pxsched.balance.memory", "pxsched.guest.qmp", "pxsched.karpenter"}
    assert not loaded & heavy
    assert not [name for name in loaded if name.startswith(("pxsched.report", "pxsched.placement.search"))]
