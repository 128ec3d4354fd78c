"""Exit codes are 0, 1 and 2, whatever has become of the standard streams."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
CLOSED = [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]
FULL = [">/dev/full", ">/dev/full 2>/dev/full"]
COMMANDS = {"topology": 0, "status --json": 0, "restore --all": 0, "tick": 0, "nonsense": 2, "plan 100": 1}


@pytest.fixture
def node(tmp_path) -> Path:
    for name, text in (("online", "0"), ("possible", "0"), ("cpu0/topology/core_cpus_list", "0")):
        path = tmp_path / "sys/devices/system/cpu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def run(node: Path, words: str, streams: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PXSCHED_ROOT": str(node), "PYTHONPATH": str(CHECKOUT)}
    line = f"exec {sys.executable} {words} {streams}"
    return subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("streams", CLOSED)
@pytest.mark.parametrize("command", COMMANDS)
def test_closed_streams_change_no_exit_code_and_fill_no_file(node, command, streams):
    done = run(node, f"-m pxsched {command}", streams)
    assert (done.returncode, "Traceback" in done.stderr) == (COMMANDS[command], False)
    for path in node.rglob("*"):
        assert not path.is_file() or b"pxsched" not in path.read_bytes()


@pytest.mark.parametrize("streams", FULL)
@pytest.mark.parametrize("command", ["topology", "status --json", "restore --all"])
def test_output_that_cannot_be_written_is_a_failure_that_is_said(node, command, streams):
    done = run(node, f"-m pxsched {command}", streams)
    assert done.returncode == 1
    assert done.stderr in ("pxsched: cannot write the output: No space left on device\n", "")


@pytest.mark.parametrize("streams", CLOSED + FULL)
def test_no_stream_keeps_a_vm_from_starting(node, streams):
    assert run(node, f"{CHECKOUT}/hooks/pxsched 100 pre-start", streams).returncode == 0
